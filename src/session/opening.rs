//! Opening: finding the position that a session starts from, and telling it in `connected`.
//!
//! Invariant: `connected` is the first event and its `id:` is the position that the session really starts
//! from; nothing but comments is sent before it is known.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Batch, Due, Now, Phase, Session, Slot, Sub};
use crate::channel::Channel;
use crate::cursor::{InvalidCursor, Start};
use crate::fanout::pages::{HeadRequest, Wanted};
use crate::fanout::{Hub, Joined};
use crate::id::{Partition, StreamId};
use crate::sse::{self, Connected, GapReason};

/// What is to be settled before `connected` can be sent.
pub(super) enum Opening {
    /// Nothing.
    Known,
    /// Nothing, but the cursor was none of this store's.
    Invalid,
    /// Whether the history after the cursor is whole; gaps that are known already wait here.
    Resume(Box<Batch>),
    /// Where the last so many events begin.
    Rewind(u32),
}

/// The session's partitions, each at the position that `start` names in it, and its channels.
pub(super) fn slots(
    hub: &Hub,
    joined: Vec<Joined>,
    start: &Result<Start, InvalidCursor>,
) -> (SmallVec<[Slot; 1]>, SmallVec<[Sub; 1]>) {
    let mut slots = SmallVec::<[Slot; 1]>::new();
    let mut slot_of = |partition: Partition| {
        let known = slots.iter().position(|slot| slot.partition == partition);
        known.unwrap_or_else(|| {
            slots.push(slot_at(hub, partition, start));
            slots.len() - 1
        })
    };
    let subs = joined
        .into_iter()
        .map(|joined| {
            let slot = slot_of(joined.topic.partition());
            Sub { joined, slot: u16::try_from(slot).expect("a partition number has 16 bits") }
        })
        .collect();
    // Without channels there is still a position to resume from.
    if slots.is_empty() {
        slots.push(slot_at(hub, Partition(0), start));
    }
    (slots, subs)
}

fn slot_at(hub: &Hub, partition: Partition, start: &Result<Start, InvalidCursor>) -> Slot {
    let latest = hub.latest(partition);
    let (position, known_epoch, verified) = match start {
        Ok(Start::Latest) | Err(InvalidCursor) => (latest, StreamId::ZERO, true),
        // Until the first page tells how far history has been read, no marker concerns the session.
        Ok(Start::Earliest | Start::Rewind(_)) => (StreamId::ZERO, StreamId::MAX, true),
        Ok(Start::After(cursor)) => match cursor.position(partition) {
            // What `earliest` was told before anything came from this partition.
            StreamId::ZERO => (StreamId::ZERO, StreamId::MAX, true),
            position => (position, StreamId::ZERO, position <= latest),
        },
    };
    Slot { partition, position, known_epoch, verified }
}

impl Session {
    pub(super) fn opening(&mut self, start: &Result<Start, InvalidCursor>) -> Opening {
        for sub in 0..self.subs.len() {
            if self.slots[usize::from(self.subs[sub].slot)].known_epoch == StreamId::MAX {
                let state = &mut self.replay_mut().subs[sub];
                (state.due, state.known_purge) = (Due::WhatIsLeft(StreamId::MAX), StreamId::MAX);
            }
        }
        match start {
            Ok(Start::Latest | Start::Earliest) => Opening::Known,
            Ok(Start::After(_)) => Opening::Resume(Box::default()),
            Ok(Start::Rewind(count)) => Opening::Rewind(*count),
            Err(InvalidCursor) => Opening::Invalid,
        }
    }

    /// Sends `connected` as soon as the position is known. `Some` when it is not, with what has to be read.
    pub(super) fn try_open(&mut self, now: Now, batch: &mut Batch) -> Option<Vec<HeadRequest>> {
        let Phase::Opening(opening) = &mut self.phase else { return None };
        let mut gaps = Batch::default();
        match opening {
            Opening::Known => {}
            Opening::Invalid => {
                self.options.metrics.gaps.of(GapReason::InvalidCursor).inc();
                gaps.push(sse::encode_gap(None, None, None, GapReason::InvalidCursor));
            }
            Opening::Rewind(_) if self.subs.is_empty() => self.start_at_the_end(),
            Opening::Rewind(count) => {
                let count = *count;
                return Some(self.origin_requests(count));
            }
            Opening::Resume(told) => {
                if self.subs.is_empty() && !self.slots[0].verified {
                    // This node may only lag: where the position lies, the log knows.
                    let want = Wanted::End(self.slots[0].partition);
                    return Some(vec![HeadRequest { of: 0, want }]);
                }
                gaps = std::mem::take(&mut **told);
                let mut behind = Vec::new();
                for slot in 0..self.slots.len() {
                    behind.extend(self.gather(slot, &mut gaps).behind);
                }
                if !behind.is_empty() {
                    self.put_heads_back(&mut behind);
                    self.phase = Phase::Opening(Opening::Resume(Box::new(gaps)));
                    return Some(self.requests(&behind));
                }
            }
        }
        batch.push(self.connected(now));
        batch.append(gaps);
        self.phase = Phase::Open;
        None
    }

    /// Whoever waits for memory holds none: a head that is there is asked for anew, together with those that are not.
    fn put_heads_back(&mut self, behind: &mut Vec<(usize, StreamId)>) {
        for sub in 0..self.subs.len() {
            let head = self.replay_mut().subs[sub].head.take();
            if head.is_some() && behind.iter().all(|(of, _)| *of != sub) {
                behind.push((sub, self.due_after(sub)));
            }
        }
    }

    fn origin_requests(&self, count: u32) -> Vec<HeadRequest> {
        let request = |(of, sub): (usize, &Sub)| {
            let topic = Arc::clone(&sub.joined.topic);
            HeadRequest { of, want: Wanted::Rewind(topic, count) }
        };
        self.subs.iter().enumerate().map(request).collect()
    }

    /// Where the last events of each channel begin: the session starts at the earliest of these.
    pub(super) fn rewound(&mut self, origins: &[(usize, StreamId, StreamId)]) {
        for slot in 0..self.slots.len() {
            let of_slot = || origins.iter().filter(|(sub, ..)| usize::from(self.subs[*sub].slot) == slot);
            let (Some(from), Some(feed_last)) =
                (of_slot().map(|(_, from, _)| *from).min(), of_slot().map(|(.., last)| *last).min())
            else {
                continue;
            };
            (self.slots[slot].position, self.slots[slot].known_epoch) = (from, feed_last);
        }
        let replay = self.replay_mut();
        for (sub, from, feed_last) in origins {
            (replay.subs[*sub].from, replay.subs[*sub].known_purge) = (*from, *feed_last);
        }
        self.phase = Phase::Opening(Opening::Known);
    }

    fn start_at_the_end(&mut self) {
        for slot in &mut self.slots {
            (slot.position, slot.known_epoch) = (self.hub.latest(slot.partition), StreamId::ZERO);
        }
    }

    fn connected(&self, now: Now) -> bytes::Bytes {
        let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let channels = self.subs.iter().map(|sub| sub.joined.topic.channel());
        // The user's own channel was not asked for by its name.
        let channels: Vec<&str> = channels.filter(|c| !c.is_system()).map(Channel::as_str).collect();
        let connected = Connected {
            connection_id: &self.connection,
            user_id: self.mailbox.caller().user().map(|user| &**user),
            node: &self.options.node,
            channels: &channels,
            heartbeat_ms: millis(self.options.heartbeat_interval),
            timestamp: sse::timestamp(now.unix_ms),
        };
        sse::encode_connected(millis(self.options.retry), self.cursor(0).as_ref(), &connected)
    }
}
