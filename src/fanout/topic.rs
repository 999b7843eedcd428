//! Topics: channels as this node holds them, each with its ring and the sessions that listen.
//!
//! Invariant: a topic lives exactly as long as a session listens; nothing is allocated for what is not there.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Marks;
use super::frame::Frame;
use super::mailbox::Mailbox;
use super::ring::{Ring, RingLimits, Run};
use super::waking::Listeners;
use crate::channel::Channel;
use crate::id::{Partition, StreamId};
use crate::log::Retention;

/// What a session sees of a topic from its position.
#[derive(Debug)]
pub struct Sight {
    /// The marker of the channel's newest purge that this node heard of.
    pub purged: StreamId,
    /// Frames after the position; `None` when the ring does not reach back that far.
    pub run: Option<Run>,
}

/// One channel on this node.
pub struct Topic {
    channel: Channel,
    partition: Partition,
    retention: Retention,
    ring: Mutex<Ring>,
    pub(super) listeners: Mutex<Listeners>,
}

impl Topic {
    /// A topic whose events after the start of `ring` will be pushed.
    pub(super) fn new(channel: Channel, partition: Partition, retention: Retention, ring: Ring) -> Self {
        Self { channel, partition, retention, ring: Mutex::new(ring), listeners: Mutex::default() }
    }

    /// The channel's name.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The partition that orders the channel.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// What the channel keeps.
    pub fn retention(&self) -> &Retention {
        &self.retention
    }

    /// What the topic holds after `position` up to the watermark of `marks`. Load the marks first: a ring is
    /// filled before the watermark moves.
    pub fn look(&self, position: StreamId, marks: &Marks, count_max: usize) -> Sight {
        let mut ring = self.ring.lock();
        if let Some(max_age_ms) = self.retention.max_age_ms() {
            ring.expire(marks.clock.now_ms().saturating_sub(max_age_ms));
        }
        Sight { purged: ring.purged(), run: ring.following(position, marks.watermark, count_max) }
    }

    /// How many sessions listen.
    pub fn listeners(&self) -> usize {
        self.listeners.lock().len()
    }

    pub(super) fn listen(&self, mailbox: Arc<Mailbox>) -> u32 {
        self.listeners.lock().insert(mailbox)
    }

    /// Ends listening; answers whether nobody listens any more.
    pub(super) fn leave(&self, key: u32) -> bool {
        self.listeners.lock().remove(key)
    }

    /// Adds what the tailer read. `lost` is the newest announced event that was no longer there.
    pub(super) fn push(
        &self,
        frames: impl Iterator<Item = Arc<Frame>>,
        lost: Option<StreamId>,
        limits: RingLimits,
    ) {
        let mut ring = self.ring.lock();
        if let Some(lost) = lost {
            ring.restart_after(lost);
        }
        for frame in frames.filter(|frame| lost.is_none_or(|lost| frame.id() > lost)) {
            ring.push(frame, limits);
        }
    }

    pub(super) fn shrink(&self) {
        self.ring.lock().shrink();
    }

    pub(super) fn purge(&self, marker: StreamId) {
        self.ring.lock().purge(marker);
    }

    pub(super) fn restart_after(&self, position: StreamId) {
        self.ring.lock().restart_after(position);
    }

    /// Wakes the sessions, or answers true when they have to be woken in turns.
    #[must_use]
    pub(super) fn wake(&self) -> bool {
        self.listeners.lock().wake()
    }
}
