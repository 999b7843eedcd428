//! Rings: the newest frames of one topic, bounded by count and bytes.
//!
//! Invariant: a ring that starts at `start` holds every event of its channel with `start < id <= watermark`
//! that is not lost; whoever asks for more is sent to the log. The newest frame stays until it expires.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::frame::Frame;
use crate::id::StreamId;

/// Bounds of one ring.
#[derive(Clone, Copy, Debug)]
pub struct RingLimits {
    /// Most frames.
    pub frames_max: usize,
    /// Most bytes.
    pub bytes_max: usize,
}

/// The frames of one topic.
#[derive(Debug)]
pub(super) struct Ring {
    start: StreamId,
    purged: StreamId,
    frames: VecDeque<Arc<Frame>>,
    bytes: usize,
    /// Bytes of all rings of the node.
    total: Arc<AtomicUsize>,
}

/// Frames that follow a position.
#[derive(Debug)]
pub struct Run {
    /// In id order.
    pub frames: Vec<Arc<Frame>>,
    /// Everything up to here is in `frames`.
    pub through: StreamId,
}

impl Ring {
    /// A ring that will be given everything after `start`, and counts its bytes in `total` too.
    pub(super) fn starting_at(start: StreamId, total: Arc<AtomicUsize>) -> Self {
        Self { start, purged: StreamId::ZERO, frames: VecDeque::new(), bytes: 0, total }
    }

    /// The marker of the newest purge that this node heard of.
    pub(super) fn purged(&self) -> StreamId {
        self.purged
    }

    /// Drops all frames but the newest.
    pub(super) fn shrink(&mut self) {
        while self.frames.len() > 1 {
            self.drop_oldest();
        }
        self.frames.shrink_to_fit();
    }

    /// Drops the frames from before `oldest_ms`: whoever needs them is told by the log that they have expired.
    pub(super) fn expire(&mut self, oldest_ms: u64) {
        while self.frames.front().is_some_and(|frame| frame.id().ms() < oldest_ms) {
            self.drop_oldest();
        }
    }

    /// Adds a frame that follows all others, and drops the oldest ones beyond the limits.
    pub(super) fn push(&mut self, frame: Arc<Frame>, limits: RingLimits) {
        assert!(
            frame.id() > self.frames.back().map_or(self.start, |last| last.id()),
            "frames of a topic arrive in id order"
        );
        self.bytes += frame.size();
        self.total.fetch_add(frame.size(), Ordering::Relaxed);
        self.frames.push_back(frame);
        while self.frames.len() > 1
            && (self.frames.len() > limits.frames_max || self.bytes > limits.bytes_max)
        {
            self.drop_oldest();
        }
    }

    /// Forgets everything up to `position`: what lay there is no longer known to be whole.
    pub(super) fn restart_after(&mut self, position: StreamId) {
        while self.frames.front().is_some_and(|frame| frame.id() <= position) {
            self.drop_oldest();
        }
        self.start = self.start.max(position);
        if self.frames.is_empty() {
            self.frames.shrink_to_fit();
        }
    }

    /// The channel was purged at `marker`.
    pub(super) fn purge(&mut self, marker: StreamId) {
        self.restart_after(marker);
        self.purged = marker;
    }

    /// Frames after `position` up to `watermark`, at most `count_max`; `None` when the ring does not reach
    /// back that far.
    pub(super) fn following(&self, position: StreamId, watermark: StreamId, count_max: usize) -> Option<Run> {
        if position < self.start {
            return None;
        }
        let first = self.frames.partition_point(|frame| frame.id() <= position);
        let released = self.frames.range(first..).take_while(|frame| frame.id() <= watermark);
        let frames: Vec<_> = released.take(count_max).cloned().collect();
        let through = match frames.last() {
            Some(last) if frames.len() == count_max => last.id(),
            _ => watermark.max(position),
        };
        Some(Run { frames, through })
    }

    fn drop_oldest(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.bytes -= frame.size();
            self.total.fetch_sub(frame.size(), Ordering::Relaxed);
            self.start = frame.id();
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Data, Draft, Event, EventType, SkipList};
    use crate::id::Partition;

    fn id(ms: u64) -> StreamId {
        StreamId::new(ms, 0).unwrap()
    }

    fn frame(ms: u64, bytes: usize) -> Arc<Frame> {
        let data = Data::text("x".repeat(bytes));
        let draft = Draft { kind: EventType::default(), data, retry: None, skip: SkipList::default() };
        Arc::new(Frame::new(Event { id: id(ms), draft }, Partition(0)))
    }

    fn ids(run: &Run) -> Vec<u64> {
        run.frames.iter().map(|frame| frame.id().ms()).collect()
    }

    const WIDE: RingLimits = RingLimits { frames_max: 100, bytes_max: usize::MAX };

    #[test]
    fn a_ring_tells_how_far_it_reaches_in_both_directions() {
        let mut ring = Ring::starting_at(id(10), Arc::default());
        for ms in [11, 12, 13] {
            ring.push(frame(ms, 1), WIDE);
        }
        assert!(ring.following(id(9), id(20), 10).is_none(), "events before the start were not seen");
        let run = ring.following(id(10), id(12), 10).unwrap();
        assert_eq!((ids(&run), run.through), (vec![11, 12], id(12)), "nothing beyond the watermark");
        let run = ring.following(id(10), id(20), 2).unwrap();
        assert_eq!((ids(&run), run.through), (vec![11, 12], id(12)), "a full run ends at its last frame");
        let run = ring.following(id(13), id(20), 10).unwrap();
        assert_eq!((ids(&run), run.through), (vec![], id(20)));
        assert_eq!(
            ring.following(id(30), id(20), 10).unwrap().through,
            id(30),
            "a position is never moved back"
        );
    }

    #[test]
    fn limits_drop_the_oldest_but_never_the_newest() {
        let mut ring = Ring::starting_at(id(0), Arc::default());
        let limits = RingLimits { frames_max: 2, bytes_max: 10_000 };
        for ms in 1..=3 {
            ring.push(frame(ms, 1), limits);
        }
        assert!(ring.following(id(0), id(9), 9).is_none());
        assert_eq!(ids(&ring.following(id(1), id(9), 9).unwrap()), [2, 3]);
        ring.push(frame(4, 20_000), limits);
        assert_eq!(ids(&ring.following(id(3), id(9), 9).unwrap()), [4]);
        ring.push(frame(5, 1), limits);
        assert_eq!(ids(&ring.following(id(4), id(9), 9).unwrap()), [5]);
        assert!(ring.bytes < 1_000, "dropped frames are no longer counted");
    }

    #[test]
    fn expired_frames_leave_even_the_newest_and_move_the_start() {
        let mut ring = Ring::starting_at(id(0), Arc::default());
        for ms in [1, 2, 5] {
            ring.push(frame(ms, 1), WIDE);
        }
        ring.expire(2);
        assert!(ring.following(id(0), id(9), 9).is_none(), "the log has to say what became of 1");
        assert_eq!(ids(&ring.following(id(1), id(9), 9).unwrap()), [2, 5], "as old as allowed");
        ring.expire(6);
        assert!(ring.following(id(4), id(9), 9).is_none());
        assert_eq!((ids(&ring.following(id(5), id(9), 9).unwrap()), ring.bytes), (vec![], 0));
    }

    #[test]
    fn a_loss_or_a_purge_moves_the_start() {
        let mut ring = Ring::starting_at(id(0), Arc::default());
        for ms in [1, 2, 5] {
            ring.push(frame(ms, 1), WIDE);
        }
        ring.restart_after(id(3));
        assert!(ring.following(id(2), id(9), 9).is_none());
        assert_eq!(ids(&ring.following(id(3), id(9), 9).unwrap()), [5]);
        ring.purge(id(7));
        assert_eq!((ring.purged(), ring.bytes), (id(7), 0));
        assert!(ring.following(id(5), id(9), 9).is_none());
    }
}
