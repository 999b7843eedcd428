//! The broker: opens the log, starts the tasks in order, and ends them in the reverse order.
//!
//! ```text
//! start:  log -> tails -> hub -> publisher, tailers -> listener
//! drain:  listener stops -> sessions close, spread out -> connections end -> publisher, tailers -> log
//! ```
//!
//! Invariant: whatever can still be served while the node leaves is: tailers run until the last connection has
//! ended, and the publisher sends what it took.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{Access, FETCH_INTERVAL_MIN, Issuer, KeySet, KeyStore, Tokens};
use crate::config::auth::{Jwt, TokenKeys};
use crate::config::server::Server;
use crate::config::sse::Heartbeat;
use crate::config::tls::Tls as TlsFiles;
use crate::config::{Config, InvalidKey};
use crate::control::{Control, Controller};
use crate::fanout::{FanoutOptions, Hub, RingLimits};
use crate::http::listener::ListenerOptions;
use crate::http::metrics::HttpMetrics;
use crate::http::{self, App, AppOptions, Bodies, Tls};
use crate::id::Partition;
use crate::lifecycle::Scope;
use crate::limits::Limits;
use crate::log::embedded::{EmbeddedLog, EmbeddedOptions, OpenError, system_clock};
use crate::log::redis::RedisLog;
use crate::log::{Log, LogError};
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::session::SessionOptions;
use crate::session::metrics::SessionMetrics;
use crate::sse::ClosingReason;
use crate::tailer::{Tailer, TailerMetrics};

/// Part of the memory budget for pages of history; the rest is for rings.
const PAGES_SHARE: usize = 4;
/// Part of the descriptors for connections that have not sent a head yet.
const WAITING_SHARE: u64 = 4;
const WAITING_MIN: usize = 16;
/// A Redis that starts together with the broker may take this long.
const REDIS_PATIENCE: Duration = Duration::from_secs(5);
const REDIS_RETRY: Duration = Duration::from_millis(250);
/// Sessions are told to close in steps of this length, over at most half of the drain's deadline.
const CLOSING_STEP: Duration = Duration::from_millis(20);
/// What the clients' return costs the other nodes: sessions told per second at most, unless time is short.
const CLOSINGS_PER_SECOND: f64 = 500.0;

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration asks for something impossible.
    #[error(transparent)]
    Config(#[from] InvalidKey),
    /// The directory of the embedded log cannot be used.
    #[error(transparent)]
    Embedded(#[from] OpenError),
    /// The log refused, or cannot be reached.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error} (server.listen)")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
}

/// A broker that serves.
pub struct Broker {
    /// Where it listens; the port that was found when 0 was asked for.
    pub address: SocketAddr,
    /// What the log is, in words.
    pub log: String,
    /// With what tokens are verified, in words; `None` when none are taken.
    pub token_keys: Option<String>,
    /// Topics and sessions.
    pub hub: Arc<Hub>,
    /// Reads files again.
    pub reloader: Reloader,
}

/// Takes on what has changed in files while the broker runs: the keys for tokens and the certificate.
pub struct Reloader {
    auth: Jwt,
    server: Server,
    tls: TlsFiles,
    access: Arc<Access>,
    shown: Option<Arc<Tls>>,
}

impl Reloader {
    /// Reads the files again. What cannot be used is told, and the old stays.
    pub fn reload(&self) {
        match self.auth.keys(&self.server) {
            Ok(Some(TokenKeys::Fixed(keys))) => {
                warn_of_weak(&keys);
                self.access.replace_keys(keys);
                tracing::info!("the keys for tokens were read again");
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "the keys for tokens stay as they were"),
        }
        match (self.tls.certificate(), &self.shown) {
            (Ok(Some(certificate)), Some(shown)) => {
                shown.replace(certificate);
                tracing::info!("the certificate was read again");
            }
            (Ok(_), _) => {}
            (Err(error), _) => tracing::error!(%error, "the certificate stays as it was"),
        }
    }
}

/// Starts a broker on `scope`, which ends it. `descriptors` is how many files the process may open.
pub async fn start(config: &Config, descriptors: u64, scope: &Scope) -> Result<Broker, StartError> {
    let address = config.server.listen;
    let listener = TcpListener::bind(address).await.map_err(|error| StartError::Listen { address, error })?;
    let address = listener.local_addr().map_err(|error| StartError::Listen { address, error })?;
    let (access, token_keys) = open_access(config, scope)?;
    let tls = config.tls.certificate()?.map(Tls::new);
    let reloader = Reloader {
        auth: config.auth.jwt.clone(),
        server: config.server.clone(),
        tls: config.tls.clone(),
        access: Arc::clone(&access),
        shown: tls.clone(),
    };
    let store = open_log(config).await?;
    let log = store.words.clone();
    let hub = start_on(store, access, (listener, tls), config, descriptors, scope).await?;
    Ok(Broker { address, log, token_keys, hub, reloader })
}

/// Starts what a broker consists of between the store and the listener.
async fn start_on(
    store: Opened,
    access: Arc<Access>,
    (listener, tls): (TcpListener, Option<Arc<Tls>>),
    config: &Config,
    descriptors: u64,
    scope: &Scope,
) -> Result<Arc<Hub>, LogError> {
    let Opened { log, control, .. } = store;
    let mut tails = Vec::new();
    for partition in (0..log.partitions()).map(Partition) {
        tails.push(log.tail(partition).await?);
    }
    let hub = Hub::new(Arc::clone(&log), &tails, config.retention_rules(), fanout_options(config));
    let controller = Arc::new(Controller::new(control, Arc::clone(&access), Arc::clone(&hub)));
    let position = controller.begin().await?;
    // Lives until the last connection has ended.
    let served = scope.hard().child_token();
    let workers = TaskTracker::new();
    let publisher = Publisher::start(&log, &hub, &workers, &served);
    let (tailer_metrics, http_metrics) = (TailerMetrics::default(), HttpMetrics::default());
    let mut pulses = Vec::new();
    for partition in (0..log.partitions()).map(Partition) {
        let tailer = Tailer::new(partition, Arc::clone(&log), Arc::clone(&hub), tailer_metrics.clone());
        pulses.push(tailer.pulse());
        scope.spawn_critical("tailer", tailer.run(served.clone()));
    }
    scope.spawn_critical("turns", Arc::clone(&hub).take_turns(served.clone()));
    let broken = Arc::clone(&log);
    scope.spawn_critical("log", until_drain(scope.clone(), async move { broken.broken().await }));
    scope.spawn_critical("publisher", until_drain(scope.clone(), publisher.ended()));
    scope.spawn_critical("controller", Arc::clone(&controller).run(position, served.clone()));
    let options = app_options(config, descriptors);
    let bodies = Bodies::new(&options.publish);
    let limits = Limits::new(config.limits.options(descriptors));
    let metrics = Metrics::new(|registry| {
        http_metrics.register(registry);
        options.session.metrics.register(registry);
        hub.register(registry);
        tailer_metrics.register(registry, &pulses);
        publisher.register(registry);
        bodies.register(registry);
        access.register(registry);
        limits.register(registry);
        controller.register(registry);
        log.register(registry);
    });
    let app = App {
        log: Arc::clone(&log),
        hub: Arc::clone(&hub),
        publisher,
        bodies,
        access,
        limits,
        controller,
        pulses,
        scope: scope.clone(),
        metrics,
        http_metrics,
        options,
    };
    let end_of_service = served.clone().drop_guard();
    scope.spawn_critical("listener", async move {
        let _end_of_service = end_of_service;
        http::serve(listener, Arc::new(app), tls).await;
    });
    let closing = close_sessions(Arc::clone(&hub), scope.clone(), served.clone(), config.drain.deadline);
    scope.tracker().spawn(closing);
    scope.tracker().spawn(close_log(log, served, workers));
    Ok(hub)
}

/// Who may do what, and with what tokens are verified, in words. Starts fetching an issuer's keys.
fn open_access(config: &Config, scope: &Scope) -> Result<(Arc<Access>, Option<String>), InvalidKey> {
    let auth = &config.auth;
    if auth.has_no_key() {
        return Ok((Arc::new(Access::open()), None));
    }
    let (keys, words) = match auth.jwt.keys(&config.server)? {
        None => (None, None),
        Some(TokenKeys::Fixed(keys)) => {
            warn_of_weak(&keys);
            let words = keys.algorithms().join(", ");
            (Some(KeyStore::Fixed(RwLock::new(Arc::new(keys)))), Some(words))
        }
        Some(TokenKeys::Issuer(url)) => {
            let words = format!("keys from {url}");
            let issuer = Issuer::new(url, auth.jwt.algorithms.clone(), FETCH_INTERVAL_MIN)
                .map_err(|reason| InvalidKey { key: "auth.jwt.jwks_url", reason })?;
            let issuer = Arc::new(issuer);
            scope.spawn_critical("issuer", Arc::clone(&issuer).run(scope.soft().clone()));
            (Some(KeyStore::Issuer(issuer)), Some(words))
        }
    };
    let tokens = keys.map(|keys| Tokens { keys, policy: auth.jwt.policy() });
    let access = Access::guarded(auth.api_keys(), tokens, auth.anonymous_subscribe.clone());
    Ok((Arc::new(access), words))
}

fn warn_of_weak(keys: &KeySet) {
    if keys.has_weak_secret() {
        tracing::warn!(
            "a secret for tokens is short and can be guessed; openssl rand -hex 32 makes a good one"
        );
    }
}

/// A store, by its ports.
struct Opened {
    log: Arc<dyn Log>,
    control: Arc<dyn Control>,
    words: String,
}

impl Opened {
    fn new(store: Arc<impl Log + Control>, words: String) -> Self {
        Self { log: Arc::clone(&store) as Arc<dyn Log>, control: store, words }
    }
}

async fn open_log(config: &Config) -> Result<Opened, StartError> {
    let Some(options) = config.redis_options()? else {
        let dir = config.embedded.data_dir.clone();
        let words = format!("embedded log in {}", dir.display());
        let open = move || EmbeddedLog::open(&dir, EmbeddedOptions::default(), system_clock());
        let log = tokio::task::spawn_blocking(open).await.expect("opening the log does not panic")?;
        return Ok(Opened::new(Arc::new(log), words));
    };
    let patience = Instant::now() + REDIS_PATIENCE;
    let mut told = false;
    loop {
        match RedisLog::open(&options).await {
            Ok(log) => return Ok(Opened::new(Arc::new(log), format!("Redis, keys {}:*", options.prefix))),
            Err(LogError::Unavailable(error)) if Instant::now() < patience => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(error, "waiting for Redis");
                }
                sleep(REDIS_RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn fanout_options(config: &Config) -> FanoutOptions {
    let fanout = &config.fanout;
    let page_bytes_max = fanout.memory_bytes_max / PAGES_SHARE;
    FanoutOptions {
        ring: RingLimits { frames_max: fanout.ring_events, bytes_max: fanout.ring_bytes },
        rings_bytes_max: fanout.memory_bytes_max - page_bytes_max,
        page_bytes_max,
    }
}

fn app_options(config: &Config, descriptors: u64) -> AppOptions {
    let session = SessionOptions {
        node: config.server.node_id.as_str().into(),
        heartbeat_interval: config.sse.heartbeat_interval,
        comment_heartbeats: config.sse.heartbeat == Heartbeat::Comment,
        retry: config.sse.retry,
        write_timeout: config.sse.write_timeout,
        lifetime_max: config.sse.lifetime_max,
        metrics: SessionMetrics::default(),
    };
    AppOptions {
        session: Arc::new(session),
        publish: config.publish.clone(),
        retention: config.retention_rules(),
        trusted_proxies: config.server.trusted_proxies.clone(),
        channels_per_connection: config.limits.channels_per_connection,
        allowed_origins: config.cors.allowed_origins.clone(),
        cookie: config.auth.cookie.clone(),
        // A token counts for the leeway longer, and so must what revokes it.
        token_lifetime_ms: u64::try_from((config.auth.jwt.lifetime_max + config.auth.jwt.leeway).as_millis())
            .unwrap_or(u64::MAX),
        protect_metrics: config.auth.protect_metrics,
        // Pages of others are kept out by the token once there is one; who is open to the world has said so.
        loopback_only: config.auth.has_no_key() && config.server.is_loopback(),
        log_name: if config.redis.url.is_some() { "redis" } else { "embedded" },
        listener: ListenerOptions {
            header_timeout: config.server.header_timeout,
            write_timeout: config.sse.write_timeout,
            detach: config.server.detach,
            waiting_max: usize::try_from(descriptors / WAITING_SHARE).unwrap_or(usize::MAX).max(WAITING_MIN),
        },
    }
}

/// Whatever ends during the drain has ended in good order.
async fn until_drain(scope: Scope, ended: impl Future<Output = ()>) {
    scope.soft().run_until_cancelled(ended).await;
}

/// Tells the sessions to close once the drain begins, a few at a time, and cuts off those that have not ended in
/// the end.
async fn close_sessions(hub: Arc<Hub>, scope: Scope, served: CancellationToken, deadline: Duration) {
    scope.soft().cancelled().await;
    let sessions = hub.sessions();
    let spread = Duration::from_secs_f64(sessions as f64 / CLOSINGS_PER_SECOND).min(deadline / 2);
    let steps = (spread.as_secs_f64() / CLOSING_STEP.as_secs_f64()).ceil().max(1.0);
    let per_step = (sessions as f64 / steps).ceil().max(1.0);
    tracing::info!(sessions, spread_ms = spread.as_millis() as u64, "closing event streams");
    #[expect(clippy::cast_sign_loss, reason = "at least 1")]
    while hub.close_some(per_step as usize, ClosingReason::Shutdown) > 0 {
        if scope.hard().run_until_cancelled(sleep(CLOSING_STEP)).await.is_none() {
            break;
        }
    }
    // The end of the last connection, or the hard token.
    served.cancelled().await;
    hub.cut_all();
}

/// Closes the log when nothing uses it any more.
async fn close_log(log: Arc<dyn Log>, served: CancellationToken, workers: TaskTracker) {
    served.cancelled().await;
    workers.close();
    workers.wait().await;
    log.close().await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::mpsc;

    use super::*;
    use crate::config::Sources;
    use crate::config::server::NodeId;
    use crate::lifecycle::{Lifecycle, Timing};

    /// Seen to fail without the critical task that waits for the log.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_broker_whose_log_died_drains_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let broken = Arc::new(AtomicBool::new(false));
        let breaks = Arc::clone(&broken);
        let clock = Arc::new(move || {
            let writes = std::thread::current().name() == Some("log-writer");
            assert!(!(writes && breaks.load(Ordering::SeqCst)), "the test breaks the writer");
            1_700_000_000_000
        });
        let log = Arc::new(EmbeddedLog::open(dir.path(), EmbeddedOptions::default(), clock).unwrap());
        let store = Opened::new(log, String::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sources = Sources::defaults(NodeId::generate("test", 1));
        let config = Config::load(&sources).unwrap();
        let lifecycle = Lifecycle::new();
        let access = Arc::new(Access::open());
        start_on(store, access, (listener, None), &config, 1_024, &lifecycle.scope()).await.unwrap();
        broken.store(true, Ordering::SeqCst);
        let (_signals, none) = mpsc::channel(1);
        let timing = Timing { delay: Duration::ZERO, deadline: Duration::from_secs(10) };
        let ended = tokio::time::timeout(Duration::from_secs(30), lifecycle.run(none, timing)).await;
        assert_eq!(ended.expect("the broker ends by itself").failed, Some("log"));
    }
}
