//! The tailer: one task per partition that follows the feed and releases what is new to the topics.
//!
//! ```text
//! follow(W) -> refs -> look (which topics care) -> read_new -> release (rings, then W, then wake) -> follow
//! ```
//!
//! Invariants: topics get every event of their channel in id order up to W, or begin anew where that is
//! impossible; a failing log changes nothing, the loop goes on from W.

mod metrics;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::metrics::Restart;
pub use self::metrics::TailerMetrics;
use crate::backoff::Backoff;
use crate::fanout::{Hub, Look};
use crate::id::Partition;
use crate::log::{Followed, Log, LogError, Ref, RefKind};

/// After a failure the tailer tries again, later each time.
const RETRY: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));

/// Bytes of the events that are read and released together.
const RELEASE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A healthy tailer finishes a turn at least this often: the log answers a follow within about a second.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// A tailer's sign of life.
pub struct Pulse(Mutex<Instant>);

impl Pulse {
    /// Whether no turn has succeeded for so long that, if the log answers others, the tailer must hang.
    pub fn is_stuck(&self) -> bool {
        self.age() > STUCK_AFTER
    }

    /// How long ago a turn succeeded last.
    pub fn age(&self) -> Duration {
        self.0.lock().elapsed()
    }

    fn beat(&self) {
        *self.0.lock() = Instant::now();
    }
}

/// Follows one partition until `stop`.
pub struct Tailer {
    partition: Partition,
    log: Arc<dyn Log>,
    hub: Arc<Hub>,
    pulse: Arc<Pulse>,
    retry: Backoff,
    metrics: TailerMetrics,
}

impl Tailer {
    /// A tailer that goes on from the hub's watermark.
    pub fn new(partition: Partition, log: Arc<dyn Log>, hub: Arc<Hub>, metrics: TailerMetrics) -> Self {
        let pulse = Arc::new(Pulse(Mutex::new(Instant::now())));
        Self { partition, log, hub, pulse, retry: RETRY, metrics }
    }

    /// Tells whether the tailer still runs.
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// Runs until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        while let Some(turn) = stop.run_until_cancelled(self.turn()).await {
            match turn {
                Ok(()) => {
                    self.pulse.beat();
                    if self.retry.is_under_way() {
                        tracing::info!(partition = self.partition.0, "the tailer follows the log again");
                    }
                    self.retry.reset();
                }
                Err(error) => {
                    self.metrics.failures.inc();
                    if !self.retry.is_under_way() {
                        tracing::warn!(%error, partition = self.partition.0, "the tailer waits for the log");
                    }
                    let wait = self.retry.next(rand::random());
                    if stop.run_until_cancelled(sleep(wait)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    async fn turn(&self) -> Result<(), LogError> {
        self.hub.pages.expire();
        let watermark = self.hub.marks(self.partition).watermark;
        match self.log.follow(self.partition, watermark).await? {
            Followed::Refs(refs) => {
                for refs in chunks(&refs) {
                    self.release(refs).await;
                }
            }
            Followed::Trimmed(tail) => {
                tracing::warn!(partition = self.partition.0, %watermark, last = %tail.last, "refs were trimmed before this node read them; its sessions turn to the log");
                self.metrics.restarts.of(Restart::Trimmed).inc();
                self.hub.restart(self.partition, tail);
            }
            Followed::RolledBack => {
                let tail = self.log.reset(self.partition, watermark).await?;
                tracing::error!(partition = self.partition.0, %watermark, epoch = %tail.epoch, "the log lost history; sessions are told with a gap");
                self.metrics.restarts.of(Restart::RolledBack).inc();
                self.hub.restart(self.partition, tail);
            }
        }
        Ok(())
    }

    /// Once looked at, refs must be released: the reading is repeated until it succeeds.
    async fn release(&self, refs: &[Ref]) {
        let look = self.hub.look(self.partition, refs);
        let events = self.read_new(&look).await;
        self.hub.release(look, events);
        if let Some(last) = refs.last() {
            self.metrics.released(refs.len(), last.id);
        }
    }

    async fn read_new(&self, look: &Look) -> Vec<Vec<crate::event::Event>> {
        let wants = look.wants();
        if wants.is_empty() {
            return Vec::new();
        }
        let mut retry = RETRY;
        loop {
            match self.log.read_new(self.partition, &wants).await {
                Ok(events) => return events,
                Err(error) => {
                    tracing::warn!(%error, partition = self.partition.0, "announced events cannot be read yet");
                    sleep(retry.next(rand::random())).await;
                }
            }
        }
    }
}

/// Stretches of refs whose events, as announced, fit the memory for one release; an event larger than that has a
/// stretch of its own.
fn chunks(refs: &[Ref]) -> impl Iterator<Item = &[Ref]> {
    let mut rest = refs;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|r| {
            if let RefKind::Event(_, announced) = &r.kind {
                bytes += announced;
            }
            bytes <= RELEASE_BYTES_MAX
        });
        let count = fits.count().max(1).min(rest.len());
        let (chunk, after) = rest.split_at(count);
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Channel;
    use crate::id::StreamId;

    #[test]
    fn refs_are_released_in_stretches_that_fit_in_memory() {
        let event = |ms, bytes| Ref {
            id: StreamId::new(ms, 0).unwrap(),
            kind: RefKind::Event(Channel::parse("a").unwrap(), bytes),
        };
        let half = RELEASE_BYTES_MAX / 2;
        let refs =
            [event(1, 1), event(2, half), event(3, half), event(4, 2 * half + 1), event(5, 1), event(6, 1)];
        let sizes: Vec<usize> = chunks(&refs).map(<[Ref]>::len).collect();
        assert_eq!(sizes, [2, 1, 1, 2]);
        assert_eq!(chunks(&refs).flatten().count(), refs.len());
        assert_eq!(chunks(&[]).count(), 0);
    }
}
