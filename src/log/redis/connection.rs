//! Connections to Redis and what their errors mean.
//!
//! Each kind of work has connections of its own, because the driver sends the commands of one connection in
//! order and a blocking one holds up all behind it: appends, one blocking follower per partition and one for
//! control, the tailers' reads, and a pool for everybody's history. Invariant: a command is attempted once and fails at
//! once while the connection is down, so that nothing queues up unseen and no append runs twice.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fred::clients::{Client, Pool};
use fred::error::Error;
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::{
    Config, ConnectionConfig, Options, ReconnectPolicy, Server, TcpConfig, UnresponsiveConfig,
};
use fred::types::{Builder, CustomCommand, Value};
use parking_lot::Mutex;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

use super::metrics::Purpose;
use crate::id::Partition;
use crate::log::LogError;

/// How long a follower lets the server wait for news.
pub(super) const BLOCK: Duration = Duration::from_secs(1);
/// Longer than any healthy server needs for the largest call.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that stays silent this long while an answer is due counts as broken.
const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(6);
const RECONNECT_DELAY_MIN_MS: u32 = 20;
const RECONNECT_DELAY_MAX_MS: u32 = 500;

/// Whether a command changes something: decides what a lost answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Read,
    Write,
}

/// Where to and as whom.
#[derive(Clone)]
pub struct Endpoint {
    /// `redis://host:port/database`; may carry user and password.
    pub url: String,
    /// Overrides the URL's.
    pub username: Option<String>,
    /// Overrides the URL's.
    pub password: Option<String>,
}

impl Endpoint {
    /// What is wrong with the URL, if anything is.
    pub fn check(&self) -> Result<(), String> {
        Config::from_url(&self.url).map(drop).map_err(|error| {
            format!("{}; expected redis://host:port/database, the database a number", error.details())
        })
    }

    /// Where to, without credentials.
    fn address(&self) -> &str {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        authority.rsplit_once('@').map_or(authority, |(_, host)| host)
    }
}

/// Shows nothing, because the URL may hold a password, too.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").finish_non_exhaustive()
    }
}

/// The connections of one node.
pub(super) struct Connections {
    append: Client,
    news: Client,
    followers: Vec<Follower>,
    control: Client,
    reads: Pool,
}

/// A single connection, for work before there is a node: checks and migrations.
pub(super) async fn connect_one(endpoint: &Endpoint) -> Result<Client, LogError> {
    let client = builder(endpoint)?.build().map_err(|error| not_connected(endpoint, &error))?;
    client.init().await.map_err(|error| not_connected(endpoint, &error))?;
    Ok(client)
}

impl Connections {
    pub(super) async fn open(
        endpoint: &Endpoint,
        partitions: u16,
        pool_size: usize,
    ) -> Result<Self, LogError> {
        let builder = builder(endpoint)?;
        let error = |error: Error| not_connected(endpoint, &error);
        let connections = Self {
            append: builder.build().map_err(error)?,
            news: builder.build().map_err(error)?,
            followers: (0..partitions)
                .map(|_| builder.build().map(Follower::new))
                .collect::<Result<_, _>>()
                .map_err(error)?,
            control: builder.build().map_err(error)?,
            reads: builder.build_pool(pool_size).map_err(error)?,
        };
        connections.reads.init().await.map_err(error)?;
        for client in connections.single() {
            client.init().await.map_err(error)?;
        }
        Ok(connections)
    }

    pub(super) fn append(&self) -> &Client {
        &self.append
    }

    pub(super) fn news(&self) -> &Client {
        &self.news
    }

    pub(super) fn follower(&self, partition: Partition) -> &Follower {
        &self.followers[usize::from(partition.0)]
    }

    /// Waits for news that concern every node.
    pub(super) fn control(&self) -> &Client {
        &self.control
    }

    /// A connection for history, another one each time.
    pub(super) fn read(&self) -> &Client {
        self.reads.next()
    }

    /// The connections that serve this purpose.
    pub(super) fn of(&self, purpose: Purpose) -> Vec<&Client> {
        match purpose {
            Purpose::Append => vec![&self.append],
            Purpose::News => vec![&self.news],
            Purpose::Follow => self.followers.iter().map(Follower::client).collect(),
            Purpose::History => self.reads.clients().iter().collect(),
            Purpose::Control => vec![&self.control],
        }
    }

    fn single(&self) -> impl Iterator<Item = &Client> {
        [&self.append, &self.news, &self.control]
            .into_iter()
            .chain(self.followers.iter().map(Follower::client))
    }

    pub(super) async fn close(&self) {
        for client in self.single().chain(self.reads.clients()) {
            // Nothing can be done about a connection that fails to end in good order.
            let _ = client.quit().await;
        }
    }
}

/// A connection that follows a feed, and whether it may lead to another server, or another state of the
/// server, than the one before.
pub(super) struct Follower {
    client: Client,
    reconnects: Mutex<Receiver<Server>>,
    unverified: AtomicBool,
}

impl Follower {
    fn new(client: Client) -> Self {
        let reconnects = Mutex::new(client.reconnect_rx());
        Self { client, reconnects, unverified: AtomicBool::new(true) }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Whether the connection was made anew since [`Follower::verified`]. The driver announces a new
    /// connection before it takes commands for it, so an answer from it is never taken for one from the old.
    pub(super) fn is_unverified(&self) -> bool {
        let mut reconnects = self.reconnects.lock();
        while !matches!(reconnects.try_recv(), Err(TryRecvError::Empty | TryRecvError::Closed)) {
            self.unverified.store(true, Ordering::Relaxed);
        }
        self.unverified.load(Ordering::Relaxed)
    }

    /// The server holds what this node has seen.
    pub(super) fn verified(&self) {
        self.unverified.store(false, Ordering::Relaxed);
    }
}

fn builder(endpoint: &Endpoint) -> Result<Builder, LogError> {
    let mut config = Config::from_url(&endpoint.url).map_err(|error| not_connected(endpoint, &error))?;
    config.fail_fast = true;
    config.username = endpoint.username.clone().or(config.username);
    config.password = endpoint.password.clone().or(config.password);
    let mut builder = Builder::from_config(config);
    builder.with_connection_config(|connection: &mut ConnectionConfig| {
        connection.connection_timeout = CONNECT_TIMEOUT;
        connection.internal_command_timeout = CONNECT_TIMEOUT;
        connection.max_command_attempts = 1;
        connection.unresponsive =
            UnresponsiveConfig { max_timeout: Some(UNRESPONSIVE_AFTER), interval: Duration::from_secs(1) };
        connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
        connection.reconnect_on_auth_error = true;
    });
    builder.with_performance_config(|performance| performance.default_command_timeout = COMMAND_TIMEOUT);
    let mut policy = ReconnectPolicy::new_exponential(0, RECONNECT_DELAY_MIN_MS, RECONNECT_DELAY_MAX_MS, 2);
    policy.set_jitter(RECONNECT_DELAY_MAX_MS / 5);
    builder.set_policy(policy);
    Ok(builder)
}

/// Why there is no connection: something to wait for, or something that only the operator can mend.
fn not_connected(endpoint: &Endpoint, error: &Error) -> LogError {
    let text = format!("cannot connect to Redis at {}: {}", endpoint.address(), readable(error.details()));
    let code = error.details().split_whitespace().next().unwrap_or_default();
    match code {
        "WRONGPASS" | "NOAUTH" | "NOPERM" | "ERR" => LogError::Refused(text),
        _ => LogError::Unavailable(text),
    }
}

/// The driver shows the operating system's errors as it would to a programmer.
fn readable(details: &str) -> &str {
    let message = details.split_once("message: \"").and_then(|(_, rest)| rest.split_once('"'));
    message.map_or(details, |(message, _)| message)
}

/// Sends one command and waits for its answer.
pub(super) async fn call(
    client: &Client,
    effect: Effect,
    command: &'static str,
    args: Vec<Value>,
) -> Result<Value, LogError> {
    send(client, effect, CustomCommand::new_static(command, None::<u16>, false), args).await
}

/// Sends a command that the server may answer only after [`BLOCK`].
pub(super) async fn call_blocking(
    client: &Client,
    command: &'static str,
    args: Vec<Value>,
) -> Result<Value, LogError> {
    send(client, Effect::Read, CustomCommand::new_static(command, None::<u16>, true), args).await
}

async fn send(
    client: &Client,
    effect: Effect,
    command: CustomCommand,
    args: Vec<Value>,
) -> Result<Value, LogError> {
    if !client.is_connected() {
        return Err(LogError::Unavailable("no connection to Redis".to_owned()));
    }
    let options = Options {
        max_attempts: Some(1),
        fail_fast: true,
        timeout: Some(COMMAND_TIMEOUT),
        ..Options::default()
    };
    let answer: Result<Value, _> = client.with_options(&options).custom(command, args).await;
    answer.map_err(|error| classify(error.details(), effect))
}

/// What an error says about the effect of its command. The server's own errors start with a word in capitals.
fn classify(details: &str, effect: Effect) -> LogError {
    let code = details.split_whitespace().next().unwrap_or_default();
    let from_server = code.len() >= 2 && code.bytes().all(|b| b.is_ascii_uppercase());
    let details = details.to_owned();
    match (from_server, effect) {
        (true, _) => match code {
            // A function that stopped half-way keeps what it wrote.
            _ if details.contains("script:") && effect == Effect::Write => LogError::Unknown(details),
            "WRONGTYPE" | "ERR" => LogError::Damaged(details),
            _ => LogError::Refused(details),
        },
        (false, Effect::Read) => LogError::Unavailable(details),
        (false, Effect::Write) => LogError::Unknown(details),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Outcome;

    #[test]
    fn an_error_tells_whether_the_write_may_have_happened() {
        let outcome = |details| classify(details, Effect::Write).outcome();
        for refused in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "READONLY You can't write",
            "LOADING Redis",
        ] {
            assert_eq!(outcome(refused), Outcome::NotPublished, "{refused}");
        }
        let half_way =
            "ERR user_function:1: Script attempted x script: headwater_publish_v1, on @user_function:1.";
        for lost in [
            "Connection closed unexpectedly.",
            "Request timed out.",
            "Too many failed write attempts.",
            half_way,
        ] {
            assert_eq!(outcome(lost), Outcome::Unknown, "{lost}");
        }
        assert!(matches!(classify("Request timed out.", Effect::Read), LogError::Unavailable(_)));
    }
}
