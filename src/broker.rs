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

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::sse::Heartbeat;
use crate::config::{Config, InvalidKey};
use crate::fanout::{FanoutOptions, Hub, RingLimits};
use crate::http::listener::ListenerOptions;
use crate::http::metrics::HttpMetrics;
use crate::http::{self, App, AppOptions, Bodies};
use crate::id::Partition;
use crate::lifecycle::Scope;
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
    /// Topics and sessions.
    pub hub: Arc<Hub>,
}

/// Starts a broker on `scope`, which ends it. `descriptors` is how many files the process may open.
pub async fn start(config: &Config, descriptors: u64, scope: &Scope) -> Result<Broker, StartError> {
    let address = config.server.listen;
    let listener = TcpListener::bind(address).await.map_err(|error| StartError::Listen { address, error })?;
    let address = listener.local_addr().map_err(|error| StartError::Listen { address, error })?;
    let (log, log_in_words) = open_log(config).await?;
    let hub = start_on(log, listener, config, descriptors, scope).await?;
    Ok(Broker { address, log: log_in_words, hub })
}

/// Starts what a broker consists of between the log and the listener.
async fn start_on(
    log: Arc<dyn Log>,
    listener: TcpListener,
    config: &Config,
    descriptors: u64,
    scope: &Scope,
) -> Result<Arc<Hub>, LogError> {
    let mut tails = Vec::new();
    for partition in (0..log.partitions()).map(Partition) {
        tails.push(log.tail(partition).await?);
    }
    let hub = Hub::new(Arc::clone(&log), &tails, config.retention_rules(), fanout_options(config));
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
    scope.spawn_critical("waking", Arc::clone(&hub).wake_in_turn(served.clone()));
    let broken = Arc::clone(&log);
    scope.spawn_critical("log", until_drain(scope.clone(), async move { broken.broken().await }));
    scope.spawn_critical("publisher", until_drain(scope.clone(), publisher.ended()));
    let options = app_options(config, descriptors);
    let bodies = Bodies::new(&options.publish);
    let metrics = Metrics::new(|registry| {
        http_metrics.register(registry);
        options.session.metrics.register(registry);
        hub.register(registry);
        tailer_metrics.register(registry, &pulses);
        publisher.register(registry);
        bodies.register(registry);
        log.register(registry);
    });
    let app = App {
        log: Arc::clone(&log),
        hub: Arc::clone(&hub),
        publisher,
        bodies,
        pulses,
        scope: scope.clone(),
        metrics,
        http_metrics,
        options,
    };
    let end_of_service = served.clone().drop_guard();
    scope.spawn_critical("listener", async move {
        let _end_of_service = end_of_service;
        http::serve(listener, Arc::new(app)).await;
    });
    let closing = close_sessions(Arc::clone(&hub), scope.clone(), served.clone(), config.drain.deadline);
    scope.tracker().spawn(closing);
    scope.tracker().spawn(close_log(log, served, workers));
    Ok(hub)
}

async fn open_log(config: &Config) -> Result<(Arc<dyn Log>, String), StartError> {
    let Some(options) = config.redis_options()? else {
        let dir = config.embedded.data_dir.clone();
        let words = format!("embedded log in {}", dir.display());
        let open = move || EmbeddedLog::open(&dir, EmbeddedOptions::default(), system_clock());
        let log = tokio::task::spawn_blocking(open).await.expect("opening the log does not panic")?;
        return Ok((Arc::new(log), words));
    };
    let patience = Instant::now() + REDIS_PATIENCE;
    let mut told = false;
    loop {
        match RedisLog::open(&options).await {
            Ok(log) => return Ok((Arc::new(log), format!("Redis, keys {}:*", options.prefix))),
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
        connections_max: config.limits.connections_max(descriptors),
        channels_per_connection: config.limits.channels_per_connection,
        allowed_origins: config.cors.allowed_origins.clone(),
        loopback_only: !config.auth.open,
        log_name: if config.redis.url.is_some() { "redis" } else { "embedded" },
        listener: ListenerOptions {
            header_timeout: config.server.header_timeout,
            write_timeout: config.sse.write_timeout,
            detach: config.server.detach,
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
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sources = Sources::defaults(NodeId::generate("test", 1));
        let config = Config::load(&sources).unwrap();
        let lifecycle = Lifecycle::new();
        start_on(log, listener, &config, 1_024, &lifecycle.scope()).await.unwrap();
        broken.store(true, Ordering::SeqCst);
        let (_signals, none) = mpsc::channel(1);
        let timing = Timing { delay: Duration::ZERO, deadline: Duration::from_secs(10) };
        let ended = tokio::time::timeout(Duration::from_secs(30), lifecycle.run(none, timing)).await;
        assert_eq!(ended.expect("the broker ends by itself").failed, Some("log"));
    }
}
