//! Gathering: what each channel of a session holds after its position, from its ring or from a page, and
//! whether that is everything.
//!
//! Invariant: history that may have lost events is never passed over in silence: a gap is told before the
//! position moves past it, once.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Batch, Due, Phase, Session};
use crate::fanout::frame::Frame;
use crate::fanout::pages::ReplayPage;
use crate::fanout::{Marks, Topic};
use crate::id::StreamId;
use crate::log::{Bounds, Known, Proof};
use crate::sse::{self, GapReason};

/// Frames taken from one channel at a time.
const RUN_FRAMES_MAX: usize = 64;

/// What the channels of one partition hold.
pub(super) struct Gathered {
    /// Events after the position, with the index of their channel; in id order per channel.
    pub(super) frames: Vec<(usize, Arc<Frame>)>,
    /// Up to here `frames` is complete.
    pub(super) bound: StreamId,
    /// Channels whose history has to be read first, and after which position.
    pub(super) behind: SmallVec<[(usize, StreamId); 1]>,
    /// Every channel was served from its ring.
    pub(super) from_rings: bool,
    /// Up to here the rings were filled when they were looked at.
    pub(super) watermark: StreamId,
}

/// Where a channel's next events come from.
enum Source {
    Ring(crate::fanout::ring::Run),
    Page(crate::fanout::ring::Run),
    Behind(StreamId),
    /// The whole partition's history was lost; the position has moved.
    Reset,
}

impl Session {
    /// Looks at all channels of a partition. Gaps go to `gaps`.
    pub(super) fn gather(&mut self, slot: usize, gaps: &mut Batch) -> Gathered {
        'anew: loop {
            // The watermark first, then the rings.
            let marks = self.hub.marks(self.slots[slot].partition);
            if marks.epoch > self.slots[slot].position.max(self.slots[slot].known_epoch) {
                let now = self.hub.latest(self.slots[slot].partition);
                let position = if self.is_opening() { now } else { marks.epoch };
                self.reset_slot(slot, position, marks.watermark, gaps);
            }
            let mut gathered = Gathered {
                frames: Vec::new(),
                bound: if self.subs.is_empty() { marks.watermark } else { StreamId::MAX },
                behind: SmallVec::new(),
                from_rings: true,
                watermark: marks.watermark,
            };
            for sub in 0..self.subs.len() {
                if usize::from(self.subs[sub].slot) != slot {
                    continue;
                }
                let run = match self.look(sub, &marks, gaps) {
                    Source::Ring(run) => run,
                    Source::Page(run) => {
                        gathered.from_rings = false;
                        run
                    }
                    Source::Behind(position) => {
                        gathered.from_rings = false;
                        gathered.bound = gathered.bound.min(position);
                        gathered.behind.push((sub, position));
                        continue;
                    }
                    Source::Reset => continue 'anew,
                };
                gathered.bound = gathered.bound.min(run.through);
                gathered.frames.extend(run.frames.into_iter().map(|frame| (sub, frame)));
            }
            return gathered;
        }
    }

    fn look(&mut self, sub: usize, marks: &Marks, gaps: &mut Batch) -> Source {
        let topic = Arc::clone(&self.subs[sub].joined.topic);
        let slot = usize::from(self.subs[sub].slot);
        loop {
            let position = self.due_after(sub);
            let sight = topic.look(position, marks, RUN_FRAMES_MAX);
            if sight.purged > position.max(self.known(sub).purge) {
                self.purged(sub, position, sight.purged, marks.watermark, gaps);
                continue;
            }
            if let Some(run) = sight.run
                && self.slots[slot].verified
            {
                return Source::Ring(run);
            }
            let Some(page) = self.page(sub, position, sight.purged) else { return Source::Behind(position) };
            match self.judge(sub, &page, position) {
                Proof::Complete => {}
                Proof::Trimmed => {
                    self.tell_gap(&topic, position, page.next_after(position), GapReason::Trimmed, gaps);
                }
                Proof::Reset if page.bounds.began_anew(position, self.known(sub)) => {
                    let target = self.reset_target(&page.bounds, position);
                    self.reset_slot(slot, target, page.bounds.feed_last, gaps);
                    return Source::Reset;
                }
                Proof::Reset => {
                    self.purged(sub, position, page.bounds.purged, page.bounds.feed_last, gaps);
                    continue;
                }
            }
            let position = self.accept(sub, &page, position);
            return Source::Page(page.following(position, RUN_FRAMES_MAX));
        }
    }

    /// Where to go on after history was lost: a session that has told no position yet goes on from now, one
    /// that has goes on from where history began anew.
    fn reset_target(&self, bounds: &Bounds, position: StreamId) -> StreamId {
        if self.is_opening() || position > bounds.feed_last { bounds.feed_last } else { bounds.epoch }
    }

    pub(super) fn is_opening(&self) -> bool {
        matches!(self.phase, Phase::Opening(_))
    }

    /// The markers that need not be told.
    fn known(&self, sub: usize) -> Known {
        let purge = self.replay.as_ref().map_or(StreamId::ZERO, |replay| replay.subs[sub].known_purge);
        Known { epoch: self.slots[usize::from(self.subs[sub].slot)].known_epoch, purge }
    }

    /// Up to where nothing of a channel is due.
    pub(super) fn due_after(&self, sub: usize) -> StreamId {
        let position = self.slots[usize::from(self.subs[sub].slot)].position;
        self.replay.as_ref().map_or(position, |replay| position.max(replay.subs[sub].from))
    }

    /// A page that says what follows `position`: the one just read, or one that somebody else needed.
    fn page(&self, sub: usize, position: StreamId, purged: StreamId) -> Option<Arc<ReplayPage>> {
        let head = self.replay.as_ref().and_then(|replay| replay.subs[sub].head.clone());
        let usable = |head: &Arc<ReplayPage>| {
            head.covers(position) && head.bounds.feed_last >= purged && !head.is_expired(position)
        };
        if let Some(head) = head.filter(usable) {
            return Some(head);
        }
        let slot = &self.slots[usize::from(self.subs[sub].slot)];
        if !slot.verified {
            return None;
        }
        let known = self.hub.marks(slot.partition).epoch.max(purged);
        self.hub.pages.find(self.subs[sub].joined.topic.channel(), position, known)
    }

    fn judge(&self, sub: usize, page: &ReplayPage, position: StreamId) -> Proof {
        let known = self.known(sub);
        if page.bounds.began_anew(position, known) || page.bounds.was_purged(position, known) {
            return Proof::Reset;
        }
        let state = self.replay.as_ref().map(|replay| &replay.subs[sub]).filter(|sub| sub.from == position);
        let (next, feed_last) = (page.next_after(position), page.bounds.feed_last);
        match state.map_or(Due::Unproven, |sub| sub.due) {
            Due::WhatIsLeft(told) if told >= next.unwrap_or(feed_last) => Proof::Complete,
            Due::WhatIsLeft(told) => page.bounds.prove(position.max(told), known),
            Due::Event(id) if next == Some(id) => Proof::Complete,
            Due::Event(_) | Due::Unproven => page.bounds.prove(position, known),
        }
    }

    /// Takes what the page says after `position` as all there is: the channel's next event is known, and
    /// nothing is due before it.
    fn accept(&mut self, sub: usize, page: &ReplayPage, position: StreamId) -> StreamId {
        let slot = &mut self.slots[usize::from(self.subs[sub].slot)];
        slot.verified = true;
        if slot.known_epoch == StreamId::MAX {
            slot.known_epoch = page.bounds.feed_last;
        }
        let state = &mut self.replay_mut().subs[sub];
        if state.known_purge == StreamId::MAX {
            state.known_purge = page.bounds.feed_last;
        }
        (state.from, state.due) = match page.next_after(position) {
            Some(next) => (next.before(), Due::Event(next)),
            None => (page.through.max(position), Due::Unproven),
        };
        state.from
    }

    fn purged(&mut self, sub: usize, position: StreamId, marker: StreamId, told: StreamId, gaps: &mut Batch) {
        let topic = Arc::clone(&self.subs[sub].joined.topic);
        self.tell_gap(&topic, position, None, GapReason::Reset, gaps);
        self.replay_mut().subs[sub].restart(marker, marker.max(told));
    }

    /// The partition's history was lost: all its channels go on from `position`, with what is left after it. This
    /// is told when history reaches `told`.
    fn reset_slot(&mut self, slot: usize, position: StreamId, told: StreamId, gaps: &mut Batch) {
        let after = self.slots[slot].position;
        for sub in 0..self.subs.len() {
            if usize::from(self.subs[sub].slot) == slot {
                let topic = Arc::clone(&self.subs[sub].joined.topic);
                self.tell_gap(&topic, after, None, GapReason::Reset, gaps);
                self.replay_mut().subs[sub].restart(position, position.max(told));
            }
        }
        let slot = &mut self.slots[slot];
        (slot.position, slot.known_epoch, slot.verified) = (position, position, true);
    }

    fn tell_gap(
        &mut self,
        topic: &Topic,
        after: StreamId,
        oldest: Option<StreamId>,
        reason: GapReason,
        gaps: &mut Batch,
    ) {
        self.owes_position = true;
        let at = |id: StreamId| id.at(topic.partition());
        self.options.metrics.gaps.of(reason).inc();
        gaps.push(sse::encode_gap(Some(topic.channel()), Some(at(after)), oldest.map(at), reason));
    }
}
