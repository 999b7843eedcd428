//! Flowing: merging what the channels of a partition hold, in id order, into the batch.
//!
//! Invariant: an event is written only when every other channel of its partition is known to hold nothing
//! before it, and the position moves only past what was written, filtered out or skipped.

use std::sync::Arc;

use super::{Batch, Served, Session};
use crate::fanout::frame::Frame;
use crate::id::StreamId;
use crate::sse;

impl Session {
    /// Writes what one partition holds. Channels that have to be read first are added to `behind`.
    pub(super) fn flow(
        &mut self,
        slot: usize,
        batch: &mut Batch,
        behind: &mut Vec<(usize, StreamId)>,
    ) -> Served {
        let mut gathered = self.gather(slot, batch);
        let bound = gathered.bound;
        gathered.frames.retain(|(_, frame)| frame.id() <= bound);
        gathered.frames.sort_unstable_by_key(|(_, frame)| frame.id());
        for (sub, frame) in &gathered.frames {
            if batch.is_full() {
                return if gathered.from_rings { Served::PartOfRings } else { Served::Log };
            }
            assert!(frame.id() > self.slots[slot].position, "ids within a partition strictly increase");
            self.slots[slot].position = frame.id();
            self.write(slot, *sub, frame, batch);
        }
        let position = &mut self.slots[slot].position;
        *position = bound.max(*position);
        behind.extend(gathered.behind);
        match gathered.from_rings {
            true if bound >= gathered.watermark => Served::Rings,
            true => Served::PartOfRings,
            false => Served::Log,
        }
    }

    fn write(&self, slot: usize, sub: usize, frame: &Arc<Frame>, batch: &mut Batch) {
        let channel = self.subs[sub].joined.topic.channel();
        // Filters are for channels; what is addressed to the user or the connection always arrives.
        let filter = self.filter.as_ref().filter(|_| !channel.is_system());
        if frame.skips(&self.connection) || filter.is_some_and(|filter| !frame.passes(filter)) {
            return;
        }
        let envelope = self.envelope.then_some(channel);
        if self.slots.len() == 1 {
            batch.push_event(frame.block(envelope).clone());
        } else {
            batch.push(sse::encode_id_line(&self.cursor(slot).expect("the slot exists")));
            batch.push_event(frame.tail(envelope));
        }
    }
}
