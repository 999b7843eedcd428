//! The log on Redis: every channel is a stream, every partition has a feed, publishing is one function call.
//!
//! Invariants: nothing outside this folder names the driver; the floor, the highest id this node has read or
//! been given, only rises, and no read from a server whose feed ends before it is believed.
//!
//! `connection` sends commands, `functions` and `migrate` prepare the server, `append`, `page`, `feed` and
//! `entry` translate. The layout is described in `migrations/README.md`.

mod append;
mod checks;
mod connection;
mod control;
mod entry;
mod feed;
mod functions;
mod keys;
mod listing;
mod metrics;
mod migrate;
mod page;
#[cfg(test)]
mod tests;
mod value;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use fred::types::Value;
use parking_lot::Mutex;

pub use self::connection::Endpoint;
use self::connection::{Connections, Effect, call};
use self::feed::Found;
use self::functions::fcall;
use self::keys::Keys;
pub use self::migrate::LAYOUT;
use self::value::{Reply, unexpected};
use crate::channel::Channel;
use crate::event::Event;
use crate::id::{Partition, StreamId};
use crate::log::retention::RetentionRules;
use crate::log::{
    AppendRequest, Appended, ChannelInfo, ChannelList, Followed, ListQuery, Log, LogError, Page, ReadQuery,
    RefKind, Refusal, Retention, Tail, Want,
};
use crate::metrics::{Counter, Registry};

/// Entries that no function wrote are told about this often.
const FOREIGN_TOLD_EVERY: Duration = Duration::from_secs(60);

/// How a node uses Redis.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// Which server.
    pub endpoint: Endpoint,
    /// First part of every key.
    pub prefix: String,
    /// Partitions of a new store; must equal those of an existing one.
    pub partitions: u16,
    /// Connections for reading history.
    pub pool_size: usize,
    /// Whether a server that may evict channels is accepted.
    pub allow_eviction: bool,
    /// Written down for programs that publish without a broker.
    pub retention: RetentionRules,
}

/// A [`Log`] kept in Redis Streams.
pub struct RedisLog {
    options: RedisOptions,
    keys: Keys,
    partitions: u16,
    connections: Connections,
    floors: Vec<Mutex<StreamId>>,
    /// When entries that no function wrote were last told about.
    told_of_foreign: Mutex<Option<Instant>>,
    /// Entries that no function wrote, as often as they were met.
    foreign: Counter,
}

/// What migrating would do, or has done, in words.
pub async fn migrate(options: &RedisOptions, dry_run: bool) -> Result<Vec<String>, LogError> {
    let keys = Keys::new(&options.prefix);
    let client = connection::connect_one(&options.endpoint).await?;
    checks::check_server(&client, true).await?;
    let steps = migrate::plan(&client, &keys, options.partitions).await?;
    if !dry_run {
        migrate::apply(&client, &keys, options.partitions).await?;
    }
    Ok(steps)
}

impl RedisLog {
    /// Connects, checks the server, brings the layout up to date and writes down the retention rules.
    pub async fn open(options: &RedisOptions) -> Result<Self, LogError> {
        let keys = Keys::new(&options.prefix);
        let connections = Connections::open(&options.endpoint, options.partitions, options.pool_size).await?;
        let client = connections.news();
        for warning in checks::check_server(client, options.allow_eviction).await? {
            tracing::warn!("{warning}");
        }
        let log = Self {
            options: options.clone(),
            keys,
            partitions: options.partitions,
            connections,
            floors: (0..options.partitions).map(|_| Mutex::default()).collect(),
            told_of_foreign: Mutex::default(),
            foreign: Counter::default(),
        };
        log.prepare().await?;
        Ok(log)
    }

    /// Brings the layout up to date and writes down the retention rules, also again after a flush.
    async fn prepare(&self) -> Result<(), LogError> {
        migrate::apply(self.connections.news(), &self.keys, self.partitions).await?;
        self.write_retention(&self.options.retention).await
    }

    async fn write_retention(&self, rules: &RetentionRules) -> Result<(), LogError> {
        let limit = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let mut fields: Vec<(String, String)> = Vec::new();
        for (number, (pattern, retention)) in rules.iter().enumerate() {
            // A pattern that stands twice counts the first time.
            if fields.iter().all(|(known, _)| known != pattern) {
                let keeps =
                    format!("{number} {} {}", limit(retention.max_length), limit(retention.max_age_ms()));
                fields.push((pattern.to_owned(), keeps));
            }
        }
        for partition in (0..self.partitions).map(Partition) {
            let key = Value::from(self.keys.retention(partition));
            let client = self.connections.news();
            // Never a moment without rules: the new ones first, then away with what is left of the old.
            let pairs = fields.iter().flat_map(|(pattern, keeps)| [Value::from(pattern), Value::from(keeps)]);
            call(client, Effect::Write, "HSET", std::iter::once(key.clone()).chain(pairs).collect()).await?;
            let known = call(client, Effect::Read, "HKEYS", vec![key.clone()]).await?;
            let is_old = |field: &&Value| {
                let field = field.text();
                fields.iter().all(|(pattern, _)| field.as_deref() != Some(pattern.as_str()))
            };
            let old: Vec<Value> = known.elements().iter().filter(is_old).cloned().collect();
            if !old.is_empty() {
                call(client, Effect::Write, "HDEL", std::iter::once(key).chain(old).collect()).await?;
            }
        }
        Ok(())
    }

    fn partition_of(&self, channel: &Channel) -> Partition {
        channel.partition(self.partitions)
    }

    fn floor(&self, partition: Partition) -> StreamId {
        *self.floors[usize::from(partition.0)].lock()
    }

    fn raise_floor(&self, partition: Partition, id: StreamId) {
        let mut floor = self.floors[usize::from(partition.0)].lock();
        *floor = id.max(*floor);
    }

    fn decode_tail(&self, partition: Partition, reply: &Value) -> Result<Tail, LogError> {
        let [last, epoch] = reply.elements() else { return Err(unexpected("headwater_tail_v1", reply)) };
        let (Some(last), Some(epoch)) = (last.stream_id(), epoch.stream_id()) else {
            return Err(unexpected("headwater_tail_v1", reply));
        };
        self.raise_floor(partition, last);
        Ok(Tail { last, epoch })
    }

    async fn append_once(
        &self,
        partition: Partition,
        requests: &[AppendRequest],
    ) -> Result<Vec<Appended>, LogError> {
        let feed = self.keys.feed(partition);
        let args = || append::encode(requests, self.floor(partition));
        let client = self.connections.append();
        let reply = fcall(client, Effect::Write, "headwater_publish_v1", &feed, args).await?;
        // It was executed, whatever the answer means.
        let results =
            append::decode(&reply, requests).map_err(|error| LogError::Unknown(error.to_string()))?;
        let newest = results.iter().flatten().flatten().map(|receipt| receipt.id).max();
        self.raise_floor(partition, newest.unwrap_or_default());
        Ok(results)
    }

    /// Entries of a channel before `end`, counted in stretches that hold up nobody else.
    async fn count_before(&self, channel: &Channel, end: StreamId) -> Result<u64, LogError> {
        let feed = self.keys.feed(self.partition_of(channel));
        let (mut counted, mut from) = (0, "-".to_owned());
        loop {
            let args = || [channel.as_str(), &from, &format!("({end}")].map(Value::from).to_vec();
            let reply =
                fcall(self.connections.read(), Effect::Read, "headwater_count_v1", &feed, args).await?;
            let [count, next] = reply.elements() else {
                return Err(unexpected("headwater_count_v1", &reply));
            };
            counted += count.number().unwrap_or_default();
            match next.text().filter(|next| !next.is_empty()) {
                None => return Ok(counted),
                Some(next) => from = next.into_owned(),
            }
        }
    }

    /// Tells about entries that no function wrote, but not at every read.
    fn tell_of_foreign(&self, channel: &Channel, entries: usize) {
        self.foreign.inc_by(entries as u64);
        let mut told = self.told_of_foreign.lock();
        if entries > 0 && told.is_none_or(|at| at.elapsed() > FOREIGN_TOLD_EVERY) {
            *told = Some(Instant::now());
            tracing::warn!(%channel, entries, "the channel holds entries that were not published; headwater adopt publishes them");
        }
    }
}

#[async_trait]
impl Log for RedisLog {
    fn partitions(&self) -> u16 {
        self.partitions
    }

    async fn append(
        &self,
        partition: Partition,
        requests: &[AppendRequest],
    ) -> Result<Vec<Appended>, LogError> {
        match self.append_once(partition, requests).await {
            Err(LogError::Refused(error)) if error.starts_with("HWROLLEDBACK") => {
                self.reset(partition, self.floor(partition)).await?;
                self.append_once(partition, requests).await
            }
            result => result,
        }
    }

    async fn read(&self, channel: &Channel, query: &ReadQuery) -> Result<Page, LogError> {
        let partition = self.partition_of(channel);
        let (feed, floor) = (self.keys.feed(partition), self.floor(partition));
        let mut query = *query;
        loop {
            let args = || page::encode(channel, &query);
            let client = self.connections.read();
            let answer = fcall(client, Effect::Read, "headwater_read_v1", &feed, args).await;
            let reply = answer.map_err(|error| match error {
                LogError::Damaged(text) if text.starts_with("WRONGTYPE") => {
                    Refusal::WrongType(channel.clone(), text).into()
                }
                error => error,
            })?;
            let decoded = page::decode(&reply)?;
            if decoded.page.bounds.feed_last < floor {
                return Err(LogError::Unavailable(format!("the server's feed ends before {floor}")));
            }
            self.tell_of_foreign(channel, decoded.foreign);
            match decoded.last_entry {
                // A page of nothing but foreign entries says nothing about the end of the channel.
                Some(last) if decoded.page.events.is_empty() && !decoded.page.exhausted => {
                    if query.ascending {
                        query.after = last;
                    } else {
                        query.before = last;
                    }
                }
                _ => return Ok(decoded.page),
            }
        }
    }

    async fn follow(&self, partition: Partition, watermark: StreamId) -> Result<Followed, LogError> {
        let follower = self.connections.follower(partition);
        let floor = self.floor(partition);
        match feed::follow(follower, &self.keys, partition, watermark, floor).await? {
            Found::Refs(refs) => {
                self.raise_floor(partition, refs.last().map(|r| r.id).unwrap_or_default());
                if refs.iter().any(|r| r.kind == RefKind::Epoch) {
                    // Whatever began history anew may have taken the rest of the layout along.
                    self.prepare().await?;
                }
                Ok(Followed::Refs(refs))
            }
            Found::Trimmed => {
                // What looks trimmed may be a flush with a long feed behind it: the epoch tells.
                let tail = self.tail(partition).await?;
                if tail.epoch > watermark {
                    self.prepare().await?;
                }
                Ok(Followed::Trimmed(tail))
            }
            Found::RolledBack => Ok(Followed::RolledBack),
        }
    }

    async fn read_new(&self, partition: Partition, wants: &[Want]) -> Result<Vec<Vec<Event>>, LogError> {
        feed::read_new(self.connections.news(), wants, |want| self.keys.channel(partition, &want.channel))
            .await
    }

    async fn tail(&self, partition: Partition) -> Result<Tail, LogError> {
        let args = || vec![Value::from(self.floor(partition).to_string())];
        let feed = self.keys.feed(partition);
        let reply = fcall(self.connections.news(), Effect::Write, "headwater_tail_v1", &feed, args).await?;
        self.decode_tail(partition, &reply)
    }

    async fn reset(&self, partition: Partition, watermark: StreamId) -> Result<Tail, LogError> {
        // Lost is also what only a receipt told this node of.
        let args = || {
            let floor = self.floor(partition);
            [watermark.max(floor), floor].map(|id| Value::from(id.to_string())).to_vec()
        };
        let feed = self.keys.feed(partition);
        let reply = fcall(self.connections.news(), Effect::Write, "headwater_reset_v1", &feed, args).await?;
        self.prepare().await?;
        self.decode_tail(partition, &reply)
    }

    async fn purge(&self, channel: &Channel, retention: &Retention) -> Result<(), LogError> {
        let partition = self.partition_of(channel);
        let args = || {
            let max_age = retention.max_age_ms().map(|age| age.to_string()).unwrap_or_default();
            vec![
                Value::from(channel.as_str()),
                Value::from(self.floor(partition).to_string()),
                Value::from(max_age),
            ]
        };
        let feed = self.keys.feed(partition);
        let reply =
            fcall(self.connections.append(), Effect::Write, "headwater_purge_v1", &feed, args).await?;
        let marker = reply.stream_id().ok_or_else(|| unexpected("headwater_purge_v1", &reply))?;
        self.raise_floor(partition, marker);
        Ok(())
    }

    async fn adopt(&self, channel: &Channel, retention: &Retention) -> Result<u64, LogError> {
        let partition = self.partition_of(channel);
        let feed = self.keys.feed(partition);
        let limit = |number: Option<u64>| Value::from(number.map(|n| n.to_string()).unwrap_or_default());
        let (mut adopted, mut from) = (0, "0-0".to_owned());
        loop {
            let args = || {
                let floor = self.floor(partition).to_string();
                let mut args = [channel.as_str(), &from, &floor].map(Value::from).to_vec();
                args.extend([limit(retention.max_length), limit(retention.max_age_ms())]);
                args
            };
            let client = self.connections.append();
            let answer = fcall(client, Effect::Write, "headwater_adopt_v1", &feed, args).await;
            let reply = answer.map_err(|error| adopt_refusal(error, channel))?;
            let [count, next] = reply.elements() else {
                return Err(unexpected("headwater_adopt_v1", &reply));
            };
            adopted += count.number().unwrap_or_default();
            match next.text().as_deref() {
                None | Some("") => return Ok(adopted),
                Some(next) => next.clone_into(&mut from),
            }
        }
    }

    async fn info(&self, channel: &Channel, retention: &Retention) -> Result<Option<ChannelInfo>, LogError> {
        let query = ReadQuery { count_max: 1, ..ReadQuery::following(StreamId::ZERO, retention) };
        let descending = ReadQuery { ascending: false, ..query };
        let (oldest, newest) = tokio::try_join!(self.read(channel, &query), self.read(channel, &descending))?;
        let (Some(first), Some(last)) = (oldest.events.first(), newest.events.first()) else {
            return Ok(None);
        };
        let key = self.keys.channel(self.partition_of(channel), channel);
        let mut length = oldest.bounds.extent.map_or(0, |extent| extent.length);
        if oldest.bounds.passed_over_expired {
            length = length.saturating_sub(self.count_before(channel, first.id).await?);
        }
        Ok(Some(ChannelInfo { length, first: first.id, last: last.id, key: Some(key) }))
    }

    async fn channels(&self, query: &ListQuery) -> Result<ChannelList, LogError> {
        listing::list(self.connections.news(), &self.keys, self.partitions, query).await
    }

    async fn ping(&self) -> Result<(), LogError> {
        call(self.connections.news(), Effect::Read, "PING", Vec::new()).await.map(drop)
    }

    fn register(&self, registry: &mut Registry) {
        metrics::register(registry, &self.connections, self.foreign.clone());
    }

    async fn close(&self) {
        self.connections.close().await;
    }
}

/// A channel that refuses is an error of its own, as it is when somebody publishes.
fn adopt_refusal(error: LogError, channel: &Channel) -> LogError {
    let text = match error {
        // The function looks into the channel before it writes an event.
        LogError::Unknown(text) if text.starts_with("WRONGTYPE") => {
            let detail = text.split(" script:").next().unwrap_or_default();
            return Refusal::WrongType(channel.clone(), detail.to_owned()).into();
        }
        LogError::Refused(text) => text,
        error => return error,
    };
    match text.strip_prefix("HWREFUSED ").map(|rest| rest.split_once(' ').unwrap_or((rest, ""))) {
        Some(("poisoned", _)) => Refusal::Poisoned(channel.clone()).into(),
        Some((_, detail)) => Refusal::WrongType(channel.clone(), detail.to_owned()).into(),
        None => LogError::Refused(text),
    }
}
