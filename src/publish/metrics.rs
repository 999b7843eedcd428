//! What the publisher counts.

use super::{PublishError, Publisher, QUEUE_BYTES_MAX};
use crate::id::Partition;
use crate::log::{Outcome, Receipt};
use crate::metrics::{Counters, Histogram, Registry, label, observe_partitions, seconds};

/// What became of an event that somebody wanted published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Published,
    Duplicate,
    /// The channel, or what stands under its key, does not take it.
    Refused,
    /// The queue was full.
    Overloaded,
    NotPublished,
    Unknown,
}

label!(
    Fate, "outcome",
    Published => "published", Duplicate => "duplicate", Refused => "refused", Overloaded => "overloaded",
    NotPublished => "not_published", Unknown => "unknown",
);

impl From<&PublishError> for Fate {
    fn from(error: &PublishError) -> Self {
        match (error, error.outcome()) {
            (PublishError::Overloaded, _) => Self::Overloaded,
            (PublishError::Refused(_), _) => Self::Refused,
            (_, Outcome::NotPublished) => Self::NotPublished,
            (_, Outcome::Unknown) => Self::Unknown,
        }
    }
}

/// Counters of a publisher. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct PublishMetrics {
    events: Counters<Fate>,
    /// Seconds that calls to the log took.
    pub(super) append_seconds: Histogram,
}

impl Default for PublishMetrics {
    fn default() -> Self {
        Self { events: Counters::default(), append_seconds: seconds() }
    }
}

impl PublishMetrics {
    /// A request of so many events was answered.
    pub(super) fn answered(&self, items: usize, result: &Result<Vec<Receipt>, PublishError>) {
        match result {
            Ok(receipts) => {
                let duplicates = receipts.iter().filter(|receipt| receipt.duplicate).count();
                self.count(Fate::Published, receipts.len() - duplicates);
                self.count(Fate::Duplicate, duplicates);
            }
            Err(error) => self.failed(items, error),
        }
    }

    /// A request of so many events failed.
    pub(super) fn failed(&self, items: usize, error: &PublishError) {
        self.count(error.into(), items);
    }

    fn count(&self, fate: Fate, events: usize) {
        self.events.of(fate).inc_by(events as u64);
    }
}

impl Publisher {
    /// Registers what waits and what was counted.
    pub fn register(&self, registry: &mut Registry) {
        let PublishMetrics { events, append_seconds } = self.metrics.clone();
        registry.register(
            "events_published",
            "Events that were to be published, by what became of them",
            events,
        );
        registry.register("append_seconds", "Duration of calls that append to the log", append_seconds);
        let partitions = u16::try_from(self.partitions.len()).expect("a partition number has 16 bits");
        let senders: Vec<_> = self.partitions.iter().map(|queue| queue.sender.downgrade()).collect();
        let waiting = move |Partition(number): Partition| {
            let sender = senders[usize::from(number)].upgrade();
            sender.map_or(0, |sender| sender.max_capacity() - sender.capacity())
        };
        observe_partitions(
            registry,
            "publish_queue_requests",
            "Requests that wait to be appended",
            partitions,
            waiting,
        );
        let rooms: Vec<_> = self.partitions.iter().map(|queue| queue.bytes.clone()).collect();
        let taken = move |Partition(number): Partition| {
            QUEUE_BYTES_MAX.saturating_sub(rooms[usize::from(number)].available_permits())
        };
        let help = "Bytes of requests that wait to be appended or are being appended";
        observe_partitions(registry, "publish_queue_bytes", help, partitions, taken);
    }
}
