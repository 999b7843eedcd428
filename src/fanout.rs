//! Fan-out: what a node holds in memory between the tailer and its sessions.
//!
//! A topic's ring is a shared log, not a queue per subscriber: a session keeps positions and asks its topics
//! for what follows. Invariants: `looked` and the set of topics change under one lock, so a topic that starts
//! at `looked` misses no ref; a ring is filled before the watermark moves, and sessions load the watermark
//! before they read rings, so what they see up to it is whole.

mod clock;
pub mod filter;
pub mod frame;
pub mod mailbox;
mod metrics;
pub mod pace;
pub mod pages;
pub mod ring;
pub mod topic;
mod waking;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use slab::Slab;
use tokio_util::sync::CancellationToken;

pub use self::clock::LogClock;
pub use self::filter::{Filter, Filters};
pub use self::mailbox::Mailbox;
pub use self::metrics::FanoutMetrics;
pub use self::pace::Pace;
pub use self::pages::Pages;
use self::ring::Ring;
pub use self::ring::RingLimits;
pub use self::topic::Topic;
use self::waking::Turns;
use crate::auth::Caller;
use crate::channel::Channel;
use crate::event::Event;
use crate::fanout::frame::Frame;
use crate::id::{Partition, StreamId};
use crate::log::retention::RetentionRules;
use crate::log::{Log, Ref, RefKind, Tail, Want};
use crate::sse::ClosingReason;

/// Topics, rings, pages, filters and sessions of a node.
pub struct Hub {
    partitions: Box<[PartitionHub]>,
    retention: RetentionRules,
    ring_limits: RingLimits,
    rings_bytes: Arc<AtomicUsize>,
    rings_bytes_max: usize,
    /// What was left after the rings were last cut.
    rings_floor: AtomicUsize,
    /// History for sessions that are behind their rings.
    pub pages: Arc<Pages>,
    /// Turns of sessions that are behind their rings.
    pub pace: Pace,
    /// Filters in use.
    pub filters: Filters,
    sessions: Mutex<Sessions>,
    turns: Turns,
    metrics: FanoutMetrics,
}

#[derive(Default)]
struct Sessions {
    open: Slab<Arc<Mailbox>>,
    /// All have been told to close: so is whoever comes late.
    closing: Option<ClosingReason>,
    /// All have been cut off: so is whoever comes late.
    cut: bool,
}

/// Memory that a hub may use.
#[derive(Clone, Copy, Debug)]
pub struct FanoutOptions {
    /// Bounds of each ring.
    pub ring: RingLimits,
    /// Bytes of all rings together; beyond them every ring is cut down to its newest frame.
    pub rings_bytes_max: usize,
    /// Bytes for pages under way and kept.
    pub page_bytes_max: usize,
}

struct PartitionHub {
    topics: Mutex<Topics>,
    marks: Mutex<Marks>,
}

#[derive(Default)]
struct Topics {
    by_channel: HashMap<Channel, Arc<Topic>>,
    looked: StreamId,
}

/// Positions of a partition that sessions compare their own with.
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    /// Everything up to here has been released to the rings.
    pub watermark: StreamId,
    /// The id at which history last began, as far as this node knows.
    pub epoch: StreamId,
    /// The highest id this node has seen, in the feed or as a receipt.
    pub seen: StreamId,
    /// Tells which frames have expired.
    pub clock: LogClock,
}

/// A topic that a session listens to.
pub struct Joined {
    /// The topic.
    pub topic: Arc<Topic>,
    /// Names the listener within the topic.
    pub key: u32,
}

/// What a batch of refs means for this node: made by [`Hub::look`], used up by [`Hub::release`].
pub struct Look {
    partition: Partition,
    last: StreamId,
    dirty: Vec<Dirty>,
    purged: Vec<(Arc<Topic>, StreamId)>,
    epoch: Option<StreamId>,
}

struct Dirty {
    topic: Arc<Topic>,
    ids: Vec<StreamId>,
    bytes: u64,
}

impl Hub {
    /// A hub that begins at the given tails, one per partition in order.
    pub fn new(
        log: Arc<dyn Log>,
        tails: &[Tail],
        retention: RetentionRules,
        options: FanoutOptions,
    ) -> Arc<Self> {
        let partition = |tail: &Tail| PartitionHub {
            topics: Mutex::new(Topics { looked: tail.last, ..Topics::default() }),
            marks: Mutex::new(Marks {
                watermark: tail.last,
                epoch: tail.epoch,
                seen: tail.last,
                clock: LogClock::at(tail.last),
            }),
        };
        let metrics = FanoutMetrics::default();
        Arc::new(Self {
            partitions: tails.iter().map(partition).collect(),
            retention,
            ring_limits: options.ring,
            rings_bytes: Arc::default(),
            rings_bytes_max: options.rings_bytes_max,
            rings_floor: AtomicUsize::new(0),
            pages: Pages::new(log, options.page_bytes_max, metrics.clone()),
            pace: Pace::default(),
            filters: Filters::default(),
            sessions: Mutex::default(),
            turns: Turns::default(),
            metrics,
        })
    }

    /// Number of partitions.
    pub fn partitions(&self) -> u16 {
        u16::try_from(self.partitions.len()).expect("a partition number has 16 bits")
    }

    /// The partition's positions at this moment.
    pub fn marks(&self, partition: Partition) -> Marks {
        *self.hub(partition).marks.lock()
    }

    /// Where a subscriber that asks for no history begins: after everything this node has seen.
    pub fn latest(&self, partition: Partition) -> StreamId {
        let looked = self.hub(partition).topics.lock().looked;
        looked.max(self.marks(partition).seen)
    }

    /// This node was given a receipt.
    pub fn saw(&self, partition: Partition, id: StreamId) {
        let mut marks = self.hub(partition).marks.lock();
        marks.seen = marks.seen.max(id);
    }

    /// Makes a session a listener of `channel`.
    pub fn join(&self, channel: &Channel, mailbox: &Arc<Mailbox>) -> Joined {
        let partition = channel.partition(self.partitions());
        let mut topics = self.hub(partition).topics.lock();
        let looked = topics.looked;
        let topic = topics.by_channel.entry(channel.clone()).or_insert_with(|| {
            let ring = Ring::starting_at(looked, Arc::clone(&self.rings_bytes));
            Arc::new(Topic::new(channel.clone(), partition, self.retention.of(channel), ring))
        });
        Joined { topic: Arc::clone(topic), key: topic.listen(Arc::clone(mailbox)) }
    }

    /// Ends what [`Hub::join`] began; the last listener takes the topic along.
    pub fn leave(&self, joined: &Joined) {
        let mut topics = self.hub(joined.topic.partition()).topics.lock();
        if joined.topic.leave(joined.key) {
            topics.by_channel.remove(joined.topic.channel());
            // A table keeps the room that it once needed.
            if topics.by_channel.len() < topics.by_channel.capacity() / 4 {
                topics.by_channel.shrink_to_fit();
            }
        }
    }

    /// Sessions of this node that listen to `channel`.
    pub fn listeners(&self, channel: &Channel) -> usize {
        let partition = channel.partition(self.partitions());
        let topics = self.hub(partition).topics.lock();
        topics.by_channel.get(channel).map_or(0, |topic| topic.listeners())
    }

    /// Bytes in all rings.
    pub fn rings_bytes(&self) -> usize {
        self.rings_bytes.load(Ordering::Relaxed)
    }

    /// Topics of this node.
    pub fn topics(&self) -> usize {
        self.partitions.iter().map(|hub| hub.topics.lock().by_channel.len()).sum()
    }

    /// Listeners of all topics together.
    pub fn subscriptions(&self) -> usize {
        let of = |hub: &PartitionHub| -> usize {
            hub.topics.lock().by_channel.values().map(|topic| topic.listeners()).sum()
        };
        self.partitions.iter().map(of).sum()
    }

    /// Notes a session, so that it can be told to close; answers a key for [`Hub::forget`].
    pub fn admit(&self, mailbox: Arc<Mailbox>) -> u32 {
        let mut sessions = self.sessions.lock();
        if let Some(reason) = sessions.closing {
            mailbox.close(reason);
        }
        if sessions.cut {
            mailbox.cut();
        }
        slab_key(sessions.open.insert(mailbox))
    }

    /// The session has ended.
    pub fn forget(&self, key: u32) {
        let mut sessions = self.sessions.lock();
        sessions.open.remove(key as usize);
        give_back(&mut sessions.open);
    }

    /// Open sessions.
    pub fn sessions(&self) -> usize {
        self.sessions.lock().open.len()
    }

    /// Tells up to `count` sessions to close; answers how many were left to tell. When none is, whoever is
    /// admitted later is told at once.
    pub fn close_some(&self, count: usize, reason: ClosingReason) -> usize {
        let mut sessions = self.sessions.lock();
        let mut open = sessions.open.iter().filter(|(_, mailbox)| mailbox.closing().is_none());
        open.by_ref().take(count).for_each(|(_, mailbox)| mailbox.close(reason));
        let left = open.count();
        if left == 0 {
            sessions.closing = Some(reason);
        }
        left
    }

    /// Tells all connections that sessions drive themselves to end at once, those of later sessions too.
    pub fn cut_all(&self) {
        let mut sessions = self.sessions.lock();
        sessions.cut = true;
        sessions.open.iter().for_each(|(_, mailbox)| mailbox.cut());
    }

    /// Wakes the sessions of large topics and lets those go on that are behind, a few at a time, until `stop` is
    /// cancelled.
    pub async fn take_turns(self: Arc<Self>, stop: CancellationToken) {
        let both = async { tokio::join!(self.turns.run(), self.pace.run()) };
        stop.run_until_cancelled(both).await;
    }

    fn wake(&self, topic: &Arc<Topic>) {
        if topic.wake() {
            self.turns.push(Arc::clone(topic));
        }
    }

    /// Tells the sessions of these callers to close; answers how many there were.
    pub fn close_of(&self, is_meant: impl Fn(&Caller) -> bool, reason: ClosingReason) -> usize {
        let sessions = self.sessions.lock();
        let meant = sessions.open.iter().filter(|(_, mailbox)| is_meant(mailbox.caller()));
        meant.map(|(_, mailbox)| mailbox.close(reason)).count()
    }

    fn hub(&self, partition: Partition) -> &PartitionHub {
        &self.partitions[usize::from(partition.0)]
    }
}

/// A slab's key in half the space: one is kept per session.
fn slab_key(key: usize) -> u32 {
    u32::try_from(key).expect("limits.connections_max fits into 32 bits")
}

/// A slab keeps the room that it once needed; what lies behind its last entry goes when most of it is empty, looked
/// at now and then, since that takes a walk through it.
fn give_back(slab: &mut Slab<Arc<Mailbox>>) {
    if slab.is_empty() || (slab.len().is_power_of_two() && slab.len() < slab.capacity() / 4) {
        slab.shrink_to_fit();
    }
}

/// The tailer's side.
impl Hub {
    /// Notes how far the feed was read and which topics have something to read. Refs must not be empty.
    pub fn look(&self, partition: Partition, refs: &[Ref]) -> Look {
        let last = refs.last().expect("a look needs refs").id;
        let mut look = Look { partition, last, dirty: Vec::new(), purged: Vec::new(), epoch: None };
        let mut dirty: BTreeMap<&Channel, (Vec<StreamId>, u64)> = BTreeMap::new();
        let mut topics = self.hub(partition).topics.lock();
        assert!(last > topics.looked, "the feed is read forward");
        topics.looked = last;
        for r in refs {
            match &r.kind {
                RefKind::Event(channel, bytes) if topics.by_channel.contains_key(channel) => {
                    let (ids, sum) = dirty.entry(channel).or_default();
                    ids.push(r.id);
                    *sum += bytes;
                }
                RefKind::Purged(channel) => {
                    look.purged.extend(topics.by_channel.get(channel).map(|topic| (Arc::clone(topic), r.id)));
                }
                RefKind::Epoch => look.epoch = Some(r.id),
                RefKind::Event(..) | RefKind::Foreign => {}
            }
        }
        look.dirty = dirty
            .into_iter()
            .map(|(channel, (ids, bytes))| Dirty {
                topic: Arc::clone(&topics.by_channel[channel]),
                ids,
                bytes,
            })
            .collect();
        look
    }

    /// Gives the topics what was read for them, in the order of [`Look::wants`], moves the watermark and
    /// wakes the sessions.
    pub fn release(&self, look: Look, events: Vec<Vec<Event>>) {
        let Look { partition, last, dirty, purged, epoch } = look;
        assert_eq!(events.len(), dirty.len(), "one answer per want");
        for (dirty, events) in dirty.iter().zip(events) {
            let lost = dirty.newest_lost(&events);
            let frames = events.into_iter().map(|event| Arc::new(Frame::new(event, partition)));
            dirty.topic.push(frames, lost, self.ring_limits);
        }
        for (topic, marker) in &purged {
            topic.purge(*marker);
        }
        {
            let mut marks = self.hub(partition).marks.lock();
            marks.watermark = last;
            marks.clock.advance(last);
            marks.seen = marks.seen.max(last);
            marks.epoch = epoch.unwrap_or(marks.epoch);
        }
        let purged = purged.iter().map(|(topic, _)| topic);
        dirty.iter().map(|dirty| &dirty.topic).chain(purged).for_each(|topic| self.wake(topic));
        if epoch.is_some() {
            self.wake_partition(partition);
        }
        self.keep_within_budget();
    }

    fn keep_within_budget(&self) {
        let bytes = self.rings_bytes.load(Ordering::Relaxed);
        // Where the newest frames alone are too much, cutting is worth it again only after some growth.
        let floor = self.rings_floor.load(Ordering::Relaxed);
        if bytes <= self.rings_bytes_max.max(floor + floor / 4) {
            return;
        }
        for hub in &self.partitions {
            hub.topics.lock().by_channel.values().for_each(|topic| topic.shrink());
        }
        self.rings_floor.store(self.rings_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        self.metrics.ring_cuts.inc();
        tracing::info!(
            bytes,
            "the rings exceeded their share of fanout.memory_bytes_max and were cut to their newest frames"
        );
    }

    /// Refs were trimmed unread, or history was lost: every topic begins anew at the partition's tail, and its
    /// sessions turn to the log. What a new epoch means to them follows from the marks.
    pub fn restart(&self, partition: Partition, tail: Tail) {
        let hub = self.hub(partition);
        let mut topics = hub.topics.lock();
        topics.looked = topics.looked.max(tail.last);
        for topic in topics.by_channel.values() {
            topic.restart_after(tail.last);
        }
        {
            let mut marks = hub.marks.lock();
            marks.watermark = marks.watermark.max(tail.last);
            marks.seen = marks.seen.max(tail.last);
            marks.clock.advance(tail.last);
            marks.epoch = marks.epoch.max(tail.epoch);
        }
        drop(topics);
        self.wake_partition(partition);
    }

    fn wake_partition(&self, partition: Partition) {
        for topic in self.hub(partition).topics.lock().by_channel.values() {
            self.wake(topic);
        }
    }
}

impl Look {
    /// What to read from the log, in the order in which [`Hub::release`] expects the answers.
    pub fn wants(&self) -> Vec<Want> {
        self.dirty.iter().map(Dirty::want).collect()
    }
}

impl Dirty {
    fn want(&self) -> Want {
        let (first, last) = (self.ids.first(), self.ids.last());
        Want {
            channel: self.topic.channel().clone(),
            after: first.expect("a dirty topic has refs").before(),
            through: *last.expect("a dirty topic has refs"),
            refs: self.ids.len(),
            bytes: self.bytes,
        }
    }

    /// The newest announced event that retention had removed before it could be read.
    fn newest_lost(&self, events: &[Event]) -> Option<StreamId> {
        let is_there = |id: &StreamId| events.binary_search_by_key(id, |event| event.id).is_ok();
        self.ids.iter().rev().find(|id| !is_there(id)).copied()
    }
}
