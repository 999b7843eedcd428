//! Sessions: one subscriber's state machine, without I/O.
//!
//! ```text
//! Opening --(start known)--> Replay --(every ring covers the position)--> Live
//!                              ^                                            |
//!                              +---------(a ring left the position behind)--+      any --> Closing
//! ```
//!
//! A driver calls [`Session::step`] whenever its sink has room and something may have changed, writes what the
//! session put into the [`Batch`], reads the pages it asks for, and calls again. A session holds positions, not
//! messages: falling behind its rings turns it back to Replay, and it is served from the log with nothing kept
//! for it. Invariants: ids within a partition strictly increase; what is delivered is the log after the cursor,
//! restricted to the session's channels and filter, or a `gap` was sent; an `id:` is only sent for a position up
//! to which everything was.

pub mod driver;
mod flow;
mod gather;
pub mod metrics;
mod opening;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use self::metrics::SessionMetrics;
use self::opening::Opening;
use crate::auth::{Caller, Revocations};
use crate::backoff::Backoff;
use crate::channel::Channel;
use crate::cursor::{Cursor, InvalidCursor, Start};
use crate::fanout::pages::{Found, HeadRequest, Heads, ReplayPage, Wanted};
use crate::fanout::{Filter, Hub, Joined, Mailbox};
use crate::id::{Partition, StreamId};
use crate::limits::StreamPermit;
use crate::log::LogError;
use crate::sse::{self, ClosingReason};

/// A driver writes about this much at a time.
const BATCH_BYTES_MAX: usize = 64 * 1024;
const BATCH_CHUNKS_MAX: usize = 256;
/// How often a session looks on in one step when nothing of what comes is for it.
const ROUNDS_MAX: usize = 32;
/// After a failed read a session tries again, later each time.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

/// What every session of a node has in common.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Name of the node.
    pub node: Arc<str>,
    /// How often a quiet stream shows that it lives.
    pub heartbeat_interval: Duration,
    /// Whether heartbeats are comments, which move no cursor.
    pub comment_heartbeats: bool,
    /// Reconnection advice.
    pub retry: Duration,
    /// How long a client may take nothing of what is due before it is given up.
    pub write_timeout: Duration,
    /// When a stream ends by itself, before it is spread.
    pub lifetime_max: Option<Duration>,
    /// What sessions count.
    pub metrics: SessionMetrics,
}

/// What a subscriber asked for.
pub struct Subscription {
    /// Names the connection; contains the node's name.
    pub connection: Arc<str>,
    /// Without repetitions.
    pub channels: Vec<Channel>,
    /// Where to start; an invalid cursor is answered with a `gap`.
    pub start: Result<Start, InvalidCursor>,
    /// Which events of its channels.
    pub filter: Option<Arc<Filter>>,
    /// Every event as a `message` that names channel, type and time.
    pub envelope: bool,
    /// Its place among the node's streams, given back when the session ends.
    pub permit: Option<StreamPermit>,
}

/// The moment of a step. `jitter`, between 0 and 1, is random.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic.
    pub instant: Instant,
    /// Milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// Spreads what many sessions would do at once.
    pub jitter: f64,
}

/// What a session wants written, in order.
#[derive(Debug, Default)]
pub struct Batch {
    chunks: Vec<Bytes>,
    bytes: usize,
    /// Published events among the chunks.
    events: u64,
}

/// What a session waits for after a step.
pub enum Next {
    /// Write the batch, then step again.
    Flush,
    /// Write the batch, which is everything so far; step again when woken, or at this time.
    FlushAndWait(Instant),
    /// Step again soon, but let others go first: much was left out, and more follows.
    Again,
    /// Read these pages, hand them to [`Session::loaded`], and step again; meanwhile too, which tells when.
    Read(Vec<HeadRequest>),
    /// Step again when woken, or at this time.
    Wait(Instant),
    /// Write the batch, then end the stream.
    End,
}

/// One subscriber.
pub struct Session {
    hub: Arc<Hub>,
    options: Arc<SessionOptions>,
    mailbox: Arc<Mailbox>,
    registration: u32,
    connection: Arc<str>,
    filter: Option<Arc<Filter>>,
    envelope: bool,
    slots: SmallVec<[Slot; 1]>,
    subs: SmallVec<[Sub; 1]>,
    /// Present while some channel is served from the log.
    replay: Option<Box<Replay>>,
    phase: Phase,
    /// A gap was told and no position since: the client would come back to the same gap.
    owes_position: bool,
    quiet_since: Instant,
    ends_at: Option<Instant>,
    /// Held, not used.
    _permit: Option<StreamPermit>,
}

/// What advancing came to.
#[derive(Default)]
struct Advance {
    /// What has to be read first.
    requests: Vec<HeadRequest>,
    /// A position moved, so there may be more.
    progressed: bool,
    /// Nothing more is known to anybody on this node.
    drained: bool,
}

/// Where what a step wrote came from; the greatest of several counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Served {
    /// From rings, and they hold nothing more.
    Rings,
    /// From rings, as far as the batch had room or one look reaches.
    PartOfRings,
    /// Some of it from the log, or it has to be read there first.
    Log,
}

enum Phase {
    /// The position that the session starts from is not known yet, or not told.
    Opening(Opening),
    Open,
    Closed,
}

/// One channel of a session.
struct Sub {
    joined: Joined,
    /// Index of the partition among the session's.
    slot: u16,
}

/// One partition of a session.
struct Slot {
    partition: Partition,
    /// Everything up to here has been delivered, or a gap told.
    position: StreamId,
    /// Epochs up to here need not be told: the session was told, or asked for what is left of history.
    known_epoch: StreamId,
    /// The position is known not to lie in the future.
    verified: bool,
}

impl Slot {
    /// The partition ends at `last`: a position after it lies in the future.
    fn end_at(&mut self, last: StreamId) {
        self.position = self.position.min(last);
        self.verified = true;
    }
}

/// What serving from the log needs.
struct Replay {
    /// One per channel.
    subs: Box<[ReplaySub]>,
    reading: bool,
    retry_at: Option<Instant>,
    retry: Backoff,
    /// Memory of the heads; both are given back by the step that follows the read.
    permit: Option<OwnedSemaphorePermit>,
}

/// What serving one channel from the log needs.
#[derive(Clone, Default)]
struct ReplaySub {
    /// Nothing of the channel is due up to here.
    from: StreamId,
    due: Due,
    /// Purges up to here need not be told.
    known_purge: StreamId,
    head: Option<Arc<ReplayPage>>,
}

impl ReplaySub {
    /// A gap has been told when history reached `told`: what is left after `position` follows.
    fn restart(&mut self, position: StreamId, told: StreamId) {
        *self = Self { from: position, due: Due::WhatIsLeft(told), known_purge: position, head: None };
    }
}

/// What is known of the history right after [`ReplaySub::from`].
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Due {
    /// Nothing: whether it is whole has to be proven.
    #[default]
    Unproven,
    /// The subscriber asked for what is left, or was told that the rest is gone: what was lost up to here need not
    /// be told, what is lost after it must be.
    WhatIsLeft(StreamId),
    /// This event follows.
    Event(StreamId),
}

impl Session {
    /// Opens a session of a caller who was identified a moment ago, and whose right may have ended since: it is
    /// admitted first and looked at again after, while a revocation counts first and looks for sessions after.
    pub fn open_for(
        caller: &Caller,
        revocations: &Revocations,
        hub: &Arc<Hub>,
        options: &Arc<SessionOptions>,
        subscription: Subscription,
        now: Now,
    ) -> Self {
        let mailbox = Arc::new(Mailbox::of(caller.clone()));
        let session = Self::open(Arc::clone(hub), Arc::clone(options), subscription, mailbox, now);
        if revocations.cover(caller, now.unix_ms) {
            session.mailbox.close(ClosingReason::Revoked);
        }
        session
    }

    /// Joins the topics. `mailbox` reaches the session from now on.
    pub fn open(
        hub: Arc<Hub>,
        options: Arc<SessionOptions>,
        subscription: Subscription,
        mailbox: Arc<Mailbox>,
        now: Now,
    ) -> Self {
        let Subscription { connection, channels, start, filter, envelope, permit } = subscription;
        let registration = hub.admit(Arc::clone(&mailbox));
        // A topic first, the position after: what the topic does not hold lies before the position.
        let joined = channels.iter().map(|channel| hub.join(channel, &mailbox)).collect();
        let (slots, subs) = opening::slots(&hub, joined, &start);
        // A fifth of the lifetime is spread, so that streams that began together do not end together.
        let ends_at = options.lifetime_max.map(|max| now.instant + max.mul_f64(0.9 + 0.2 * now.jitter));
        let mut session = Self {
            hub,
            options,
            mailbox,
            registration,
            connection,
            filter,
            envelope,
            slots,
            subs,
            replay: None,
            phase: Phase::Open,
            owes_position: false,
            quiet_since: now.instant,
            ends_at,
            _permit: permit,
        };
        session.phase = Phase::Opening(session.opening(&start));
        session
    }

    /// Goes on as far as the batch has room. The batch must be empty.
    pub fn step(&mut self, now: Now, batch: &mut Batch) -> Next {
        assert!(batch.is_empty(), "the driver wrote the batch before");
        let next = self.next(now, batch);
        if !batch.is_empty() {
            self.options.metrics.delivered(batch);
        }
        next
    }

    fn next(&mut self, now: Now, batch: &mut Batch) -> Next {
        if matches!(self.phase, Phase::Closed) {
            return Next::End;
        }
        if let Some(reason) = self.closing(now) {
            batch.push(sse::encode_closing(reason, self.retry_hint(reason, now)));
            self.options.metrics.closings.of(reason).inc();
            self.phase = Phase::Closed;
            // The client may take its time to the last byte; pages, and memory for them, are for those who go on.
            self.replay = None;
            return Next::End;
        }
        let advance =
            if self.is_reading() { Advance::default() } else { self.advance_until_something(now, batch) };
        if batch.is_empty() {
            let caught_up = !advance.progressed && advance.requests.is_empty() && !self.is_reading();
            if now.instant >= self.heartbeat_at() || (caught_up && self.owes_position) {
                batch.push(self.heartbeat(caught_up, now));
            }
        }
        if !batch.is_empty() {
            self.quiet_since = now.instant;
            let is_all = advance.drained && !self.owes_position;
            return if is_all { Next::FlushAndWait(self.wake_at(now)) } else { Next::Flush };
        }
        if advance.requests.is_empty() && advance.progressed {
            return Next::Again;
        }
        self.wait(advance.requests, now)
    }

    /// Why the session is to end, if it is. What lasts goes before what a client comes back from.
    fn closing(&self, now: Now) -> Option<ClosingReason> {
        let has_no_right = self.mailbox.caller().ends_at_ms().is_some_and(|end| now.unix_ms >= end);
        let is_over = self.ends_at.is_some_and(|end| now.instant >= end);
        (has_no_right.then_some(ClosingReason::TokenExpired))
            .or_else(|| self.mailbox.closing())
            .or(is_over.then_some(ClosingReason::Lifetime))
    }

    /// Whether what was gathered before, and is not on its way yet, must not be delivered any more: the right to it has
    /// ended, and the subscriber has not been told yet.
    pub fn is_barred(&self, now: Now) -> bool {
        let is_open = !matches!(self.phase, Phase::Closed);
        is_open && self.closing(now).is_some_and(|reason| !reason.reconnect())
    }

    /// What the last [`Next::Read`] asked for, or why it cannot be had now.
    pub fn loaded(&mut self, result: Result<Heads, LogError>, now: Now) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        let replay = self.replay_mut();
        replay.reading = false;
        let heads = match result {
            Ok(heads) => heads,
            Err(error) => {
                replay.retry_at = Some(now.instant + replay.retry.next(now.jitter));
                tracing::debug!(%error, connection = &*self.connection, "history cannot be read yet");
                return;
            }
        };
        replay.retry.reset();
        replay.permit = Some(heads.permit);
        let (mut origins, mut ends) = (Vec::new(), Vec::new());
        for head in heads.heads {
            match head.found {
                Found::Page(page) => replay.subs[head.of].head = Some(page),
                Found::Origin { from, feed_last } => origins.push((head.of, from, feed_last)),
                Found::End(last) => ends.push((head.of, last)),
            }
        }
        if !origins.is_empty() {
            self.rewound(&origins);
        }
        for (slot, last) in ends {
            self.slots[slot].end_at(last);
        }
    }

    /// Reaches this session.
    pub fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// What every session of the node has in common.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Where its topics and pages are.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Whether the next batch comes from the log, and nothing has to be read for it first.
    pub fn is_behind(&self) -> bool {
        self.replay.as_ref().is_some_and(|replay| !replay.reading)
    }

    /// Whether the next step ends the stream.
    pub fn is_to_close(&self, now: Now) -> bool {
        self.closing(now).is_some()
    }

    /// Advances as long as all that comes is left out by the filter or a skip list, within bounds.
    fn advance_until_something(&mut self, now: Now, batch: &mut Batch) -> Advance {
        let mut advance = Advance::default();
        for _ in 0..ROUNDS_MAX {
            advance = self.advance(now, batch);
            if !batch.is_empty() || !advance.requests.is_empty() || !advance.progressed {
                break;
            }
        }
        advance
    }

    fn advance(&mut self, now: Now, batch: &mut Batch) -> Advance {
        if let Some(requests) = self.try_open(now, batch) {
            return Advance { requests, ..Advance::default() };
        }
        let was_live = self.replay.is_none();
        let mut behind = Vec::new();
        let (mut served, mut progressed) = (Served::Rings, false);
        for slot in 0..self.slots.len() {
            let before = self.slots[slot].position;
            served = served.max(self.flow(slot, batch, &mut behind));
            progressed |= self.slots[slot].position > before;
        }
        if was_live && served == Served::Log {
            self.options.metrics.lagged.inc();
        }
        if served == Served::Rings && self.nothing_skipped_ahead() {
            self.replay = None;
        } else if let Some(replay) = &mut self.replay {
            replay.subs.iter_mut().for_each(|sub| sub.head = None);
            replay.permit = None;
        }
        Advance { requests: self.requests(&behind), progressed, drained: served == Served::Rings }
    }

    /// Whether no channel remembers a position ahead of its partition's.
    fn nothing_skipped_ahead(&self) -> bool {
        let position = |sub: &Sub| self.slots[usize::from(sub.slot)].position;
        let Some(replay) = &self.replay else { return true };
        let mut subs = replay.subs.iter().zip(&self.subs);
        subs.all(|(state, sub)| state.from.max(state.known_purge) <= position(sub))
    }

    fn requests(&self, behind: &[(usize, StreamId)]) -> Vec<HeadRequest> {
        let request = |&(of, after): &(usize, StreamId)| {
            let topic = Arc::clone(&self.subs[of].joined.topic);
            HeadRequest { of, want: Wanted::After(topic, after) }
        };
        behind.iter().map(request).collect()
    }

    /// When something is due although nobody wakes the session.
    fn wake_at(&self, now: Now) -> Instant {
        // A time that the clock cannot hold never comes.
        let right_ends_at =
            self.mailbox.caller().ends_at_ms().and_then(|end| {
                now.instant.checked_add(Duration::from_millis(end.saturating_sub(now.unix_ms)))
            });
        let ends = [self.ends_at, right_ends_at];
        ends.into_iter().flatten().fold(self.heartbeat_at(), Instant::min)
    }

    fn wait(&mut self, requests: Vec<HeadRequest>, now: Now) -> Next {
        let wake_at = self.wake_at(now);
        if requests.is_empty() {
            return Next::Wait(wake_at);
        }
        let replay = self.replay_mut();
        match replay.retry_at {
            Some(at) if at > now.instant => Next::Wait(at.min(wake_at)),
            _ => {
                replay.retry_at = None;
                replay.reading = true;
                // Whoever waits for memory holds none.
                replay.permit = None;
                Next::Read(requests)
            }
        }
    }

    fn is_reading(&self) -> bool {
        self.replay.as_ref().is_some_and(|replay| replay.reading)
    }

    fn replay_mut(&mut self) -> &mut Replay {
        let subs = self.subs.len();
        self.replay.get_or_insert_with(|| {
            Box::new(Replay {
                subs: vec![ReplaySub::default(); subs].into_boxed_slice(),
                reading: false,
                retry_at: None,
                retry: RETRY,
                permit: None,
            })
        })
    }

    fn heartbeat_at(&self) -> Instant {
        self.quiet_since + self.options.heartbeat_interval
    }

    /// Only a session that has delivered everything may move its client's cursor; before `connected` nothing
    /// but a comment may be sent. A position that is owed is no comment: it moves the cursor past the gap.
    fn heartbeat(&mut self, caught_up: bool, now: Now) -> Bytes {
        let settles = caught_up && self.owes_position;
        let is_opening = self.is_opening();
        if is_opening || (self.options.comment_heartbeats && !settles) {
            return sse::encode_comment("heartbeat");
        }
        self.owes_position &= !caught_up;
        let cursor = self.cursor(0).filter(|_| caught_up);
        sse::encode_heartbeat(cursor.as_ref(), now.unix_ms)
    }

    /// The session's positions; the one of `first` is written first.
    fn cursor(&self, first: usize) -> Option<Cursor> {
        let own = self.slots.get(first)?.partition;
        Some(Cursor::new(self.slots.iter().map(|slot| (slot.partition, slot.position)), own))
    }

    /// Spreads the return of clients that are sent away together.
    fn retry_hint(&self, reason: ClosingReason, now: Now) -> Option<u64> {
        let retry = self.options.retry.mul_f64(0.5 + now.jitter);
        reason.reconnect().then(|| u64::try_from(retry.as_millis()).unwrap_or(u64::MAX))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for sub in &self.subs {
            self.hub.leave(&sub.joined);
        }
        self.hub.forget(self.registration);
    }
}

impl Batch {
    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// What to write, in order; the batch is empty afterwards and keeps no memory.
    pub fn take(&mut self) -> Vec<Bytes> {
        (self.bytes, self.events) = (0, 0);
        std::mem::take(&mut self.chunks)
    }

    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES_MAX || self.chunks.len() >= BATCH_CHUNKS_MAX
    }

    fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.chunks.push(chunk);
    }

    fn push_event(&mut self, chunk: Bytes) {
        self.events += 1;
        self.push(chunk);
    }

    fn append(&mut self, mut other: Self) {
        self.bytes += other.bytes;
        self.events += other.events;
        self.chunks.append(&mut other.chunks);
    }
}
