//! What the sessions of a node count.

use super::Batch;
use crate::metrics::{Counter, Counters, Registry};
use crate::sse::{ClosingReason, GapReason};

/// Counters of all sessions of a node. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct SessionMetrics {
    events: Counter,
    bytes: Counter,
    /// Times that a live session fell behind a ring.
    pub(super) lagged: Counter,
    /// Gaps told, one for each channel concerned.
    pub(super) gaps: Counters<GapReason>,
    /// Streams that the server ended.
    pub(super) closings: Counters<ClosingReason>,
}

impl SessionMetrics {
    /// Registers what sessions count.
    pub fn register(&self, registry: &mut Registry) {
        let Self { events, bytes, lagged, gaps, closings } = self.clone();
        registry.register("events_delivered", "Events handed to connections", events);
        registry.register("stream_bytes", "Bytes handed to connections as event streams", bytes);
        registry.register("sessions_lagged", "Times that a live session fell behind a ring", lagged);
        registry.register("gaps", "Gaps told to subscribers, one for each channel", gaps);
        registry.register("closings", "Event streams that the server ended", closings);
    }

    /// A batch goes out.
    pub(super) fn delivered(&self, batch: &Batch) {
        self.bytes.inc_by(batch.bytes as u64);
        if batch.events > 0 {
            self.events.inc_by(batch.events);
        }
    }
}
