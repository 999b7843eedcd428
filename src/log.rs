//! The log: the port to where events are kept.
//!
//! [`Log`] is what the broker needs of a store: append, read a page, follow a partition's feed, read what is
//! new. Two adapters keep it: [`redis`] for production and [`embedded`] for one node without Redis. One
//! conformance suite (`conformance.rs`) runs against both.
//!
//! Invariants every adapter keeps:
//! - ids of a partition are assigned by the store, strictly increase, and exceed every id this node has seen;
//! - a request is appended as a whole or not at all, and what was acknowledged is returned by every later read
//!   that covers it until retention removes it;
//! - [`Log::follow`] names every appended event in id order, or says that it cannot ([`Followed`]).

pub mod bounds;
#[cfg(test)]
pub(crate) mod conformance;
pub mod embedded;
pub mod redis;
pub mod retention;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::channel::Channel;
use crate::event::{Draft, Event};
use crate::id::{Partition, StreamId};
use crate::metrics::Registry;
pub use bounds::{Bounds, Known, Proof};
pub use retention::Retention;

/// Storage for events. All methods may be called concurrently; dropping a future of [`Log::append`] leaves
/// its outcome unknown, dropping any other has no effect.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Number of partitions, at least 1, fixed for the life of the store.
    fn partitions(&self) -> u16;

    /// Appends several requests to one partition in the order given, each all or nothing.
    ///
    /// Answers one result per request, in order. `Err` speaks for the whole call: see [`LogError::outcome`].
    /// All channels must belong to `partition`.
    async fn append(
        &self,
        partition: Partition,
        requests: &[AppendRequest],
    ) -> Result<Vec<Appended>, LogError>;

    /// Reads a page of one channel, atomically with the channel's bounds.
    async fn read(&self, channel: &Channel, query: &ReadQuery) -> Result<Page, LogError>;

    /// Waits until the feed holds refs after `watermark`, at most about a second, and answers what it found.
    ///
    /// One caller per partition at a time.
    async fn follow(&self, partition: Partition, watermark: StreamId) -> Result<Followed, LogError>;

    /// Reads the events that refs announced. The answer holds for each want, in the same order, every event
    /// with `after < id <= through` that is still there.
    async fn read_new(&self, partition: Partition, wants: &[Want]) -> Result<Vec<Vec<Event>>, LogError>;

    /// The end of the feed and the partition's epoch. Creates the feed of a store that has none.
    async fn tail(&self, partition: Partition) -> Result<Tail, LogError>;

    /// Marks that history after `watermark` was lost: the partition gets a new epoch above `watermark` and
    /// above every id this node has seen. Does nothing when `watermark` is (again) part of the history.
    async fn reset(&self, partition: Partition, watermark: StreamId) -> Result<Tail, LogError>;

    /// Removes a channel's events. Its followers, and cursors from before, are told ([`RefKind::Purged`]).
    async fn purge(&self, channel: &Channel, retention: &Retention) -> Result<(), LogError>;

    /// Publishes entries anew that another program wrote past the broker, and removes the originals.
    /// Answers how many; 0 when called again.
    async fn adopt(&self, channel: &Channel, retention: &Retention) -> Result<u64, LogError>;

    /// What is known of a channel; `None` when it holds nothing.
    async fn info(&self, channel: &Channel, retention: &Retention) -> Result<Option<ChannelInfo>, LogError>;

    /// A page of the channels that hold events and whose name starts with `prefix`, in no particular order.
    async fn channels(&self, query: &ListQuery) -> Result<ChannelList, LogError>;

    /// Whether the store answers now.
    async fn ping(&self) -> Result<(), LogError>;

    /// Registers what this store counts.
    fn register(&self, _registry: &mut Registry) {}

    /// Comes back when the store's own work has died, so that nothing can be appended any more.
    async fn broken(&self) {
        std::future::pending::<()>().await;
    }

    /// Ends connections and background work after the last use; what was acknowledged is safe before.
    async fn close(&self);
}

/// One publisher's request: events that are appended together.
#[derive(Clone, Debug)]
pub struct AppendRequest {
    /// At least one; in this order.
    pub items: Vec<AppendItem>,
}

/// One event to append.
#[derive(Clone, Debug)]
pub struct AppendItem {
    /// Where to.
    pub channel: Channel,
    /// What.
    pub draft: Draft,
    /// What the channel keeps.
    pub retention: Retention,
    /// Makes a repetition harmless.
    pub idempotency: Option<Idempotency>,
}

/// An idempotency key within its channel and how long it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// Chosen by the publisher.
    pub key: String,
    /// From the first publish on.
    pub window: Duration,
}

/// What became of one request: an id per item, or why nothing of it was appended.
pub type Appended = Result<Vec<Receipt>, Refusal>;

/// Acknowledgement of one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The event's position; of the first one where the key had been used.
    pub id: StreamId,
    /// The key had been used within its window: nothing was appended.
    pub duplicate: bool,
}

/// Why the store refused one request while it took others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another program wrote an entry that lies more than a day in the future.
    #[error("the last entry of channel {0} lies more than a day in the future; purge the channel to mend it")]
    Poisoned(Channel),
    /// The channel's key, or the key of its idempotency record, holds something else.
    #[error("the key of channel {0} does not hold what Headwater keeps there: {1}")]
    WrongType(Channel, String),
}

/// Which part of a channel to read.
#[derive(Clone, Copy, Debug)]
pub struct ReadQuery {
    /// Only events after this position.
    pub after: StreamId,
    /// Only events before this position.
    pub before: StreamId,
    /// Ascending: the oldest first. Otherwise the newest first.
    pub ascending: bool,
    /// At most this many events, at least 1.
    pub count_max: usize,
    /// Stop when the payloads exceed this many bytes; one event always fits.
    pub bytes_max: usize,
    /// Older events count as removed.
    pub max_age: Option<Duration>,
}

impl ReadQuery {
    /// Replay: what follows `after`, oldest first.
    pub fn following(after: StreamId, retention: &Retention) -> Self {
        Self {
            after,
            before: StreamId::MAX,
            ascending: true,
            count_max: 1_000,
            bytes_max: 256 * 1024,
            max_age: retention.max_age,
        }
    }
}

/// A page of a channel and what the channel looked like at that moment.
#[derive(Clone, Debug)]
pub struct Page {
    /// In the order that the query asked for.
    pub events: Vec<Event>,
    /// Nothing more matches the query.
    pub exhausted: bool,
    /// Needed to prove that nothing is missing.
    pub bounds: Bounds,
}

/// Where the feed ends and since when its history counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The newest ref.
    pub last: StreamId,
    /// The id at which the partition's history last began.
    pub epoch: StreamId,
}

/// What following the feed found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// Every ref after the watermark, in order, up to the last one listed. Empty when nothing came.
    Refs(Vec<Ref>),
    /// Refs after the watermark were trimmed before they could be read. The partition's tail now.
    Trimmed(Tail),
    /// The watermark is no longer part of the history: the store was flushed or rolled back.
    RolledBack,
}

/// An entry of the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ref {
    /// Position of the event, or of the marker.
    pub id: StreamId,
    /// What happened there.
    pub kind: RefKind,
}

/// What a ref announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefKind {
    /// An event of about this many bytes.
    Event(Channel, u64),
    /// The channel was purged.
    Purged(Channel),
    /// The partition's history begins anew.
    Epoch,
    /// An entry that this version does not understand.
    Foreign,
}

/// A stretch of a channel that refs announced.
#[derive(Clone, Debug)]
pub struct Want {
    /// Which channel.
    pub channel: Channel,
    /// Everything up to here is known.
    pub after: StreamId,
    /// The channel's last announced event.
    pub through: StreamId,
    /// How many events were announced.
    pub refs: usize,
    /// How many bytes were announced.
    pub bytes: u64,
}

/// What is known of a channel that holds events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelInfo {
    /// Number of events.
    pub length: u64,
    /// The oldest.
    pub first: StreamId,
    /// The newest.
    pub last: StreamId,
    /// The Redis key; `None` in the embedded log.
    pub key: Option<String>,
}

/// Which channels to list.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// Only names that start so.
    pub prefix: String,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// At most this many names.
    pub limit: usize,
    /// Whose names whoever lists may know.
    pub visible: Visible,
}

/// Some channels' names are not for everybody: those stand nowhere in a list, not in its cursor either.
#[derive(Clone, Default)]
pub struct Visible(Option<Arc<IsVisible>>);

type IsVisible = dyn Fn(&Channel) -> bool + Send + Sync;

impl Visible {
    /// Only channels for which this is true.
    pub fn only(is_visible: impl Fn(&Channel) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(is_visible)))
    }

    /// Whether the name may be told.
    pub fn includes(&self, channel: &Channel) -> bool {
        self.0.as_ref().is_none_or(|is_visible| is_visible(channel))
    }
}

impl fmt::Debug for Visible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "some" } else { "all" })
    }
}

/// Some channels, and where the next page starts.
#[derive(Clone, Debug, Default)]
pub struct ChannelList {
    /// Names.
    pub channels: Vec<Channel>,
    /// `None` at the end.
    pub next: Option<String>,
}

/// Why a call to the log failed as a whole.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The store cannot be reached or does not answer; the call had no effect.
    #[error("the log is unavailable: {0}")]
    Unavailable(String),
    /// The call was sent and its answer was lost: it may have had its effect.
    #[error("the log did not answer, the outcome is unknown: {0}")]
    Unknown(String),
    /// The store answered that it cannot do this now, as when it is full or a replica; the call had no effect.
    #[error("the log refused: {0}")]
    Refused(String),
    /// The store holds something that contradicts the layout.
    #[error("the log is damaged: {0}")]
    Damaged(String),
    /// The channel refuses, as it would refuse an append.
    #[error(transparent)]
    Channel(#[from] Refusal),
    /// The cursor of a listing is none that this store gave.
    #[error("the cursor of the listing is not one that was answered before")]
    BadCursor,
}

/// What is known about the effect of a failed append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was appended.
    NotPublished,
    /// Some or all may have been appended.
    Unknown,
}

impl LogError {
    /// What a publisher must assume.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown(_) => Outcome::Unknown,
            Self::Unavailable(_)
            | Self::Refused(_)
            | Self::Damaged(_)
            | Self::Channel(_)
            | Self::BadCursor => Outcome::NotPublished,
        }
    }

    /// Whether the same call may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Damaged(_) | Self::Channel(_) | Self::BadCursor)
    }
}
