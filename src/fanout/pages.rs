//! Pages: stretches of history that sessions replay, read from the log once whoever asks.
//!
//! Sessions that resume from the same position wait for the same read; a page stays for a while, and whoever
//! comes with a position inside it is served from memory. Invariants: memory for reads under way is reserved
//! before they start, for all heads of one merge at once, so that merges cannot starve each other; kept pages
//! are bounded in bytes and age.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared, try_join_all};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::clock::millis;
use super::frame::Frame;
use super::metrics::FanoutMetrics;
use super::ring::Run;
use super::topic::Topic;
use crate::channel::Channel;
use crate::id::{Partition, StreamId};
use crate::log::bounds::Extent;
use crate::log::{Bounds, Log, LogError, Page, ReadQuery, Tail};

/// Kept pages live this long at most.
const PAGE_LIFETIME: Duration = Duration::from_secs(5);
/// Bytes of one page where a session replays a single channel.
const PAGE_BYTES_MAX: usize = 256 * 1024;
/// Bytes of one page where it replays very many.
const PAGE_BYTES_MIN: usize = 16 * 1024;
/// Bytes of the heads of one merge, where the page sizes above allow.
const MERGE_BYTES: usize = 1024 * 1024;
/// Unit of the budget.
const PERMIT_BYTES: usize = 1024;

/// A stretch of a channel's history, encoded.
#[derive(Debug)]
pub struct ReplayPage {
    /// The page begins right after this position.
    pub after: StreamId,
    /// Everything up to here is on the page.
    pub through: StreamId,
    /// The channel at the moment of reading.
    pub bounds: Bounds,
    frames: Vec<Arc<Frame>>,
    bytes: usize,
    read: Instant,
}

impl ReplayPage {
    /// Whether the page says what follows `position`.
    pub fn covers(&self, position: StreamId) -> bool {
        self.after == position || (self.after < position && position < self.through)
    }

    /// Whether what follows `position` on the page has expired since it was read.
    pub fn is_expired(&self, position: StreamId) -> bool {
        let (Some(expired), Some(next)) = (self.bounds.expired, self.next_after(position)) else {
            return false;
        };
        next.ms() < expired.ms().saturating_add(millis(self.read.elapsed()))
    }

    /// Frames after `position`, at most `count_max`.
    pub fn following(&self, position: StreamId, count_max: usize) -> Run {
        let first = self.frames.partition_point(|frame| frame.id() <= position);
        let frames: Vec<_> = self.frames[first..].iter().take(count_max).cloned().collect();
        let through = match frames.last() {
            Some(last) if frames.len() == count_max => last.id(),
            _ => self.through,
        };
        Run { frames, through }
    }

    /// The first event after `position`.
    pub fn next_after(&self, position: StreamId) -> Option<StreamId> {
        let first = self.frames.partition_point(|frame| frame.id() <= position);
        self.frames.get(first).map(|frame| frame.id())
    }
}

/// What a session needs to know before it can go on.
pub struct HeadRequest {
    /// Which of the session's subscriptions, or of its partitions.
    pub of: usize,
    /// What to read.
    pub want: Wanted,
}

/// What to read.
pub enum Wanted {
    /// What follows a position in a channel.
    After(Arc<Topic>, StreamId),
    /// Only where the last `n` events of a channel begin.
    Rewind(Arc<Topic>, u32),
    /// Where a partition ends.
    End(Partition),
}

/// A read head.
pub struct Head {
    /// Which of the session's subscriptions, or of its partitions.
    pub of: usize,
    /// What was read.
    pub found: Found,
}

/// What was read.
pub enum Found {
    /// What follows a position.
    Page(Arc<ReplayPage>),
    /// The position before the last `n` events, and the end of the feed at that moment.
    Origin {
        /// Replay begins after this position.
        from: StreamId,
        /// The newest ref of the partition.
        feed_last: StreamId,
    },
    /// The newest ref of the partition.
    End(StreamId),
}

/// Heads of one merge and the memory that was reserved for them.
pub struct Heads {
    /// One per request.
    pub heads: Vec<Head>,
    /// Returned to the budget when the session has used them.
    pub permit: OwnedSemaphorePermit,
}

type Load = BoxFuture<'static, Result<Arc<ReplayPage>, LogError>>;

/// Reads and keeps pages for the sessions of a node.
pub struct Pages {
    log: Arc<dyn Log>,
    cache: Mutex<Cache>,
    budget: Arc<Semaphore>,
    budget_permits: u32,
    metrics: FanoutMetrics,
}

#[derive(Default)]
struct Cache {
    pages: HashMap<Channel, Vec<Arc<ReplayPage>>>,
    order: VecDeque<(Instant, Channel, StreamId)>,
    bytes: usize,
    bytes_max: usize,
    loading: HashMap<(Channel, StreamId), WeakShared<Load>>,
}

impl Pages {
    /// `bytes_max` bounds the reads under way and, once more, the kept pages.
    pub fn new(log: Arc<dyn Log>, bytes_max: usize, metrics: FanoutMetrics) -> Arc<Self> {
        let permits = (bytes_max / PERMIT_BYTES).clamp(PAGE_BYTES_MAX / PERMIT_BYTES, Semaphore::MAX_PERMITS);
        let budget_permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let budget = Arc::new(Semaphore::new(budget_permits as usize));
        Arc::new(Self {
            log,
            cache: Mutex::new(Cache { bytes_max, ..Cache::default() }),
            budget,
            budget_permits,
            metrics,
        })
    }

    /// Bytes of the pages that are kept.
    pub fn kept_bytes(&self) -> usize {
        self.cache.lock().bytes
    }

    /// Bytes that are reserved for pages under way, and for those that sessions have not used yet.
    pub fn reserved_bytes(&self) -> usize {
        (self.budget_permits as usize).saturating_sub(self.budget.available_permits()) * PERMIT_BYTES
    }

    /// A kept page that says what follows `position`, read after `known`, the newest marker that matters.
    pub fn find(&self, channel: &Channel, position: StreamId, known: StreamId) -> Option<Arc<ReplayPage>> {
        let cache = self.cache.lock();
        let pages = cache.pages.get(channel)?;
        let usable = |page: &&Arc<ReplayPage>| {
            page.covers(position) && page.bounds.feed_last >= known && !page.is_expired(position)
        };
        let found = pages.iter().find(|page| page.through > position && usable(page)).cloned();
        self.metrics.pages_found.inc_by(u64::from(found.is_some()));
        found
    }

    /// Reads the heads of one merge. Waits until there is memory for all of them.
    pub async fn read_heads(self: Arc<Self>, requests: Vec<HeadRequest>) -> Result<Heads, LogError> {
        let bytes = (MERGE_BYTES / requests.len().max(1)).clamp(PAGE_BYTES_MIN, PAGE_BYTES_MAX);
        let permits = u32::try_from(requests.len() * bytes / PERMIT_BYTES).unwrap_or(u32::MAX);
        let permits = permits.min(self.budget_permits);
        let budget = Arc::clone(&self.budget);
        let permit = budget.acquire_many_owned(permits).await.map_err(closed)?;
        self.metrics.replay_reads.inc();
        let reads = requests.into_iter().map(|request| self.read_head(request, bytes));
        Ok(Heads { heads: try_join_all(reads).await?, permit })
    }

    async fn read_head(self: &Arc<Self>, request: HeadRequest, bytes_max: usize) -> Result<Head, LogError> {
        let found = match request.want {
            Wanted::After(topic, position) => Found::Page(self.load(&topic, position, bytes_max).await?),
            Wanted::Rewind(topic, count) => self.find_origin(&topic, count).await?,
            Wanted::End(partition) => Found::End(self.log.tail(partition).await?.last),
        };
        Ok(Head { of: request.of, found })
    }

    /// Joins a read of the same page that is under way, or starts one.
    fn load(self: &Arc<Self>, topic: &Arc<Topic>, after: StreamId, bytes_max: usize) -> Shared<Load> {
        let mut cache = self.cache.lock();
        let key = (topic.channel().clone(), after);
        if let Some(loading) = cache.loading.get(&key).and_then(WeakShared::upgrade) {
            return loading;
        }
        let (pages, topic) = (Arc::clone(self), Arc::clone(topic));
        let load = async move {
            let result = pages.read_page(&topic, after, bytes_max).await;
            pages.cache.lock().finish(topic.channel(), after, result.as_ref().ok());
            result
        };
        let shared = load.boxed().shared();
        cache.loading.retain(|_, load| load.upgrade().is_some());
        cache.loading.insert(key, shared.downgrade().expect("not polled yet"));
        shared
    }

    async fn read_page(
        &self,
        topic: &Topic,
        after: StreamId,
        bytes_max: usize,
    ) -> Result<Arc<ReplayPage>, LogError> {
        let query = ReadQuery { bytes_max, ..ReadQuery::following(after, topic.retention()) };
        let page = self.read_or_lose(topic, &query).await?;
        self.metrics.pages_read.inc();
        let encode = |event| Arc::new(Frame::new(event, topic.partition()));
        let frames: Vec<_> = page.events.into_iter().map(encode).collect();
        let last = frames.last().map_or(after, |frame| frame.id());
        let through = if page.exhausted { page.bounds.feed_last.max(last) } else { last };
        let bytes = size_of::<ReplayPage>() + frames.iter().map(|frame| frame.size()).sum::<usize>();
        Ok(Arc::new(ReplayPage { after, through, bounds: page.bounds, frames, bytes, read: Instant::now() }))
    }

    /// A channel that cannot be read is empty to its subscribers, with everything lost: they are told, and the
    /// other channels of the same stream go on.
    async fn read_or_lose(&self, topic: &Topic, query: &ReadQuery) -> Result<Page, LogError> {
        let error = match self.log.read(topic.channel(), query).await {
            Err(error @ (LogError::Damaged(_) | LogError::Channel(_))) => error,
            result => return result,
        };
        tracing::error!(%error, channel = %topic.channel(), "a channel cannot be read");
        let Tail { last, epoch } = self.log.tail(topic.partition()).await?;
        let extent = Extent {
            first: StreamId::MAX,
            last: StreamId::MAX,
            length: 0,
            entries_added: 1,
            max_deleted: StreamId::MAX,
        };
        let bounds = Bounds {
            extent: Some(extent),
            epoch,
            purged: StreamId::ZERO,
            feed_last: last,
            expired: None,
            passed_over_expired: false,
        };
        Ok(Page { events: Vec::new(), exhausted: true, bounds })
    }

    /// Walks back `count` events without keeping them.
    async fn find_origin(&self, topic: &Topic, count: u32) -> Result<Found, LogError> {
        let mut left = count as usize;
        let mut query = ReadQuery {
            ascending: false,
            count_max: left,
            ..ReadQuery::following(StreamId::ZERO, topic.retention())
        };
        let mut from = None;
        let mut feed_last = None;
        loop {
            let page = self.read_or_lose(topic, &query).await?;
            let end = *feed_last.get_or_insert(page.bounds.feed_last);
            left = left.saturating_sub(page.events.len());
            if let Some(oldest) = page.events.last() {
                from = Some(oldest.id.before());
                query = ReadQuery { before: oldest.id, count_max: left.max(1), ..query };
            }
            if page.exhausted || left == 0 {
                return Ok(Found::Origin { from: from.unwrap_or(end), feed_last: end });
            }
        }
    }

    /// Lets go of pages that have grown old. Called now and then.
    pub fn expire(&self) {
        self.cache.lock().expire();
    }
}

fn closed<E>(_: E) -> LogError {
    LogError::Unavailable("the node is stopping".to_owned())
}

impl Cache {
    fn finish(&mut self, channel: &Channel, after: StreamId, page: Option<&Arc<ReplayPage>>) {
        self.loading.remove(&(channel.clone(), after));
        self.expire();
        let Some(page) = page.filter(|page| page.bytes <= self.bytes_max) else { return };
        while self.bytes + page.bytes > self.bytes_max {
            self.drop_oldest();
        }
        self.bytes += page.bytes;
        self.order.push_back((Instant::now(), channel.clone(), after));
        self.pages.entry(channel.clone()).or_default().push(Arc::clone(page));
    }

    fn expire(&mut self) {
        while self.order.front().is_some_and(|(read, ..)| read.elapsed() > PAGE_LIFETIME) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some((_, channel, after)) = self.order.pop_front() else { return };
        let Some(pages) = self.pages.get_mut(&channel) else { return };
        if let Some(at) = pages.iter().position(|page| page.after == after) {
            self.bytes -= pages.remove(at).bytes;
        }
        if pages.is_empty() {
            self.pages.remove(&channel);
        }
    }
}
