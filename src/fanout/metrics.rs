//! What a hub counts, and what it lets others look up.

use std::sync::Arc;

use super::Hub;
use crate::metrics::{Counter, Registry, observe, observe_partitions};

/// Counters of a hub and its pages. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct FanoutMetrics {
    /// Times that all rings were cut to keep within their budget.
    pub(super) ring_cuts: Counter,
    /// Times that a session asked the log.
    pub(super) replay_reads: Counter,
    /// Pages that were read from the log.
    pub(super) pages_read: Counter,
    /// Times that a session found a page in memory.
    pub(super) pages_found: Counter,
}

impl Hub {
    /// Registers what the hub holds and counts.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        let of = |look: fn(&Self) -> usize| {
            let hub = Arc::clone(self);
            move || look(&hub)
        };
        observe(registry, "event_streams", "Open event streams, each one session", of(Self::sessions));
        observe(registry, "topics", "Channels that somebody on this node listens to", of(Self::topics));
        observe(
            registry,
            "subscriptions",
            "Channels of all open event streams together",
            of(Self::subscriptions),
        );
        observe(registry, "ring_bytes", "Bytes in the rings of all topics", of(Self::rings_bytes));
        observe(
            registry,
            "kept_page_bytes",
            "Bytes of pages that are kept",
            of(|hub| hub.pages.kept_bytes()),
        );
        observe(
            registry,
            "reading_page_bytes",
            "Bytes reserved for pages that are read or that sessions hold",
            of(|hub| hub.pages.reserved_bytes()),
        );
        observe(registry, "filters", "Distinct filters in use", of(|hub| hub.filters.in_use()));
        let hub = Arc::clone(self);
        observe_partitions(
            registry,
            "watermark_timestamp_seconds",
            "Time of the newest ref that this node has released",
            self.partitions(),
            move |partition| hub.marks(partition).watermark.ms() as f64 / 1000.0,
        );
        let FanoutMetrics { ring_cuts, replay_reads, pages_read, pages_found } = self.metrics.clone();
        registry.register("ring_cuts", "Times that all rings were cut to keep within memory", ring_cuts);
        registry.register("replay_reads", "Times that a session turned to the log", replay_reads);
        registry.register("pages_read", "Pages that were read from the log", pages_read);
        registry.register("pages_found", "Pages that a session found in memory", pages_found);
    }
}
