//! Frames: events as a node keeps them, encoded once and shared by every session.
//!
//! Invariant: a frame is immutable to the outside; the envelope and the filters' verdicts are worked out at
//! most once, when the first session asks.

use std::sync::OnceLock;

use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::filter::Filter;
use crate::channel::Channel;
use crate::event::Event;
use crate::id::{Partition, StreamId};
use crate::sse::{Encoded, encode_envelope, encode_event, share_memory};

/// Verdicts of this many filters are remembered per frame; further ones are worked out each time.
const VERDICTS_MAX: usize = 64;

/// An event and its encodings.
#[derive(Debug)]
pub struct Frame {
    event: Event,
    partition: Partition,
    plain: Encoded,
    envelope: OnceLock<Encoded>,
    verdicts: Mutex<SmallVec<[(u64, bool); 1]>>,
}

impl Frame {
    /// Encodes an event of `partition`.
    pub fn new(event: Event, partition: Partition) -> Self {
        let plain = encode_event(&event, partition);
        let event = share_memory(event, &plain);
        Self { event, partition, plain, envelope: OnceLock::new(), verdicts: Mutex::default() }
    }

    /// Where the event stands in its partition.
    pub fn id(&self) -> StreamId {
        self.event.id
    }

    /// Bytes that the frame occupies, about; an envelope, where one is asked for, comes on top.
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.plain.block().len()
    }

    /// Whether the event must not go to this connection.
    pub fn skips(&self, connection: &str) -> bool {
        self.event.draft.skip.iter().any(|skipped| **skipped == *connection)
    }

    /// Whether the event passes the filter.
    pub fn passes(&self, filter: &Filter) -> bool {
        if let Some((_, verdict)) = self.verdicts.lock().iter().find(|(number, _)| *number == filter.number())
        {
            return *verdict;
        }
        let verdict = filter.matches(&self.event.draft.data);
        let mut verdicts = self.verdicts.lock();
        if verdicts.len() < VERDICTS_MAX {
            verdicts.push((filter.number(), verdict));
        }
        verdict
    }

    /// The whole block, with the event's own ULID as its id.
    pub fn block(&self, envelope: Option<&Channel>) -> &Bytes {
        self.encoded(envelope).block()
    }

    /// The block after its `id:` line.
    pub fn tail(&self, envelope: Option<&Channel>) -> Bytes {
        self.encoded(envelope).tail()
    }

    fn encoded(&self, envelope: Option<&Channel>) -> &Encoded {
        match envelope {
            None => &self.plain,
            Some(channel) => {
                self.envelope.get_or_init(|| encode_envelope(&self.event, self.partition, channel))
            }
        }
    }
}
