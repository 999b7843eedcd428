//! The embedded log: one node, no Redis, events on the local disk.
//!
//! An LSM database (fjall) in one directory, one partition, one writer thread:
//!
//! ```text
//! append ── queue ── writer: gather -> group -> one batch, fsync -> feed -> answer      writer.rs group.rs
//! read   ── blocking thread: one snapshot                                               read.rs
//! follow ── the feed, in memory                                                         feed.rs
//! ```
//!
//! Invariants:
//! - an append is acknowledged, and its events become readable, only after fsync: a killed process or a power
//!   loss takes nothing back, and a request is found whole or not at all;
//! - ids strictly increase for ever: the last id survives purges, restarts and clocks that jump back;
//! - one process holds the directory ([`OpenError::Locked`]).
//!
//! Reads run on blocking threads (`spawn_blocking`), because any of them may have to wait for the disk; so do
//! reads of events just written, though most of those find them in memory: a memory table may have gone to
//! disk in between, and a stalled disk must not stall the runtime. That costs about 10 us per call, and the
//! tailer makes one call for many events.

mod channel_state;
mod codec;
mod control;
mod directory;
mod due;
mod feed;
mod group;
mod idempotency;
mod journal;
mod partition_state;
mod read;
mod record;
mod recovery;
mod store;
mod sweep;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use self::directory::Directory;
pub use self::directory::OpenError;
use self::feed::Feed;
use self::store::{Store, StoreError};
use self::writer::{Command, Queued, Reply, Writer};
use super::{
    AppendRequest, Appended, ChannelInfo, ChannelList, Followed, ListQuery, Log, LogError, Page, ReadQuery,
    Ref, RefKind, Retention, Tail, Want,
};
use crate::channel::Channel;
use crate::event::Event;
use crate::id::{Partition, StreamId};
use crate::metrics::{Registry, observe};

/// Room in the queue to the writer, in KiB of data. A full queue makes appenders wait.
const QUEUE_KIB: u32 = 64 * 1024;

/// What a command takes of the queue at least and at most, in KiB: the least bounds their number (4,096), the
/// most lets an oversized call in when it is alone.
const COMMAND_KIB_MIN: u32 = 16;
const COMMAND_KIB_MAX: u32 = 32 * 1024;

/// How long a ping waits for the writer before it calls the disk stuck.
const PING_WAIT: Duration = Duration::from_secs(2);

/// Milliseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The clock of this machine.
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    })
}

/// What may be tuned.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedOptions {
    /// How often expired events of quiet channels are removed from disk, at least.
    pub sweep_interval: Duration,
    /// Refs kept in memory for followers, about 100 bytes each. Who falls behind further reads the channels.
    pub feed_refs_max: usize,
    /// Memory for blocks of data read from disk, in bytes.
    pub cache_bytes: u64,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self { sweep_interval: Duration::from_secs(1), feed_refs_max: 100_000, cache_bytes: 16 * 1024 * 1024 }
    }
}

/// The log in a directory.
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    /// A permit per KiB. Whoever holds a command's share finds room in the queue without waiting.
    room: Arc<Semaphore>,
    /// `None` once the log is closed.
    writer: Mutex<Option<WriterHandle>>,
    /// Cancelled when the writer has ended.
    writer_ended: CancellationToken,
}

struct WriterHandle {
    queue: SyncSender<Queued>,
    thread: JoinHandle<()>,
}

/// What readers and the writer have in common.
struct Shared {
    directory: Directory,
    options: EmbeddedOptions,
    clock: Clock,
    feed: Feed,
    /// `None` once the log is closed, and for a moment while the database is opened anew.
    store: RwLock<Option<Arc<Store>>>,
    /// Held while the file of revocations is read or written.
    revocations: Mutex<()>,
}

impl Shared {
    fn store(&self) -> Option<Arc<Store>> {
        self.store.read().clone()
    }
}

impl EmbeddedLog {
    /// Opens the log in `dir`, or creates it, and starts its writer thread. Blocks while what a crash left in
    /// the journal is read.
    ///
    /// # Errors
    /// [`OpenError`], in words for the operator.
    pub fn open(dir: &Path, options: EmbeddedOptions, clock: Clock) -> Result<Self, OpenError> {
        let directory = Directory::open(dir)?;
        let (store, state, is_new) = recovery::open(&directory, false, options.cache_bytes, clock())?;
        let tail = Tail { last: state.last, epoch: state.epoch };
        let feed = if is_new {
            let marker = Ref { id: state.epoch, kind: RefKind::Epoch };
            Feed::new(StreamId::ZERO, tail, vec![marker], options.feed_refs_max)
        } else {
            Feed::new(tail.last, tail, Vec::new(), options.feed_refs_max)
        };
        let store = RwLock::new(Some(Arc::new(store)));
        let shared =
            Arc::new(Shared { directory, options, clock, feed, store, revocations: Mutex::default() });
        let (queue, commands) = sync_channel((QUEUE_KIB / COMMAND_KIB_MIN) as usize);
        let writer = Writer::new(Arc::clone(&shared), state);
        let writer_ended = CancellationToken::new();
        let ended = writer_ended.clone().drop_guard();
        let thread = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || {
                let _ended = ended;
                writer.run(&commands);
            })
            .map_err(|error| OpenError::Io { dir: dir.to_owned(), doing: "start a thread", error })?;
        let writer = Mutex::new(Some(WriterHandle { queue, thread }));
        let room = Arc::new(Semaphore::new(QUEUE_KIB as usize));
        Ok(Self { shared, room, writer, writer_ended })
    }

    /// Queues a command for the writer and waits for its answer.
    async fn ask<T>(&self, bytes: usize, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, LogError> {
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).clamp(COMMAND_KIB_MIN, COMMAND_KIB_MAX);
        let permit = Arc::clone(&self.room).acquire_many_owned(kib).await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        let queued = Queued { command: command(reply), permit };
        match self.writer.lock().as_ref().map(|writer| writer.queue.try_send(queued)) {
            Some(Ok(())) => {}
            None | Some(Err(TrySendError::Disconnected(_))) => return Err(closed()),
            Some(Err(TrySendError::Full(_))) => {
                return Err(LogError::Refused("the queue of the log is full".to_owned()));
            }
        }
        // Without an answer the thread ended in the middle of the command.
        answer.await.map_err(|_| LogError::Unknown("the writer of the log ended".to_owned()))?
    }

    /// Reads on a thread that may wait for the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store, u64) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, LogError> {
        let shared = Arc::clone(&self.shared);
        let read = move || {
            let store = shared.store().ok_or_else(closed)?;
            read(&store, (shared.clock)()).map_err(LogError::from)
        };
        spawn_blocking(read).await.map_err(|error| {
            if error.is_panic() {
                LogError::Damaged("reading the database panicked".to_owned())
            } else {
                closed()
            }
        })?
    }

    /// Lets the writer finish what is queued, and closes the database.
    fn shut_down(shared: &Shared, writer: Option<WriterHandle>) {
        if let Some(WriterHandle { queue, thread }) = writer {
            drop(queue);
            if thread.join().is_err() {
                tracing::error!("the writer of the log panicked");
            }
        }
        drop(shared.store.write().take());
    }
}

fn closed() -> LogError {
    LogError::Unavailable("the log is closed".to_owned())
}

#[async_trait]
impl Log for EmbeddedLog {
    fn partitions(&self) -> u16 {
        1
    }

    async fn append(
        &self,
        _partition: Partition,
        requests: &[AppendRequest],
    ) -> Result<Vec<Appended>, LogError> {
        let requests = requests.to_vec();
        self.ask(writer::data_bytes(&requests), |reply| Command::Append(requests, reply)).await
    }

    async fn read(&self, channel: &Channel, query: &ReadQuery) -> Result<Page, LogError> {
        let (channel, query) = (channel.clone(), *query);
        self.blocking(move |store, now_ms| read::page(store, &channel, &query, now_ms)).await
    }

    async fn follow(&self, _partition: Partition, watermark: StreamId) -> Result<Followed, LogError> {
        Ok(self.shared.feed.follow(watermark).await)
    }

    async fn read_new(&self, _partition: Partition, wants: &[Want]) -> Result<Vec<Vec<Event>>, LogError> {
        let wants = wants.to_vec();
        self.blocking(move |store, _| read::announced(store, &wants)).await
    }

    async fn tail(&self, _partition: Partition) -> Result<Tail, LogError> {
        Ok(self.shared.feed.tail())
    }

    async fn reset(&self, _partition: Partition, watermark: StreamId) -> Result<Tail, LogError> {
        self.ask(0, |reply| Command::Reset(watermark, reply)).await
    }

    async fn purge(&self, channel: &Channel, _retention: &Retention) -> Result<(), LogError> {
        self.ask(0, |reply| Command::Purge(channel.clone(), reply)).await
    }

    /// Nobody else can write to this log: there is nothing to adopt.
    async fn adopt(&self, _channel: &Channel, _retention: &Retention) -> Result<u64, LogError> {
        Ok(0)
    }

    async fn info(&self, channel: &Channel, _retention: &Retention) -> Result<Option<ChannelInfo>, LogError> {
        let channel = channel.clone();
        self.blocking(move |store, now_ms| read::info(store, &channel, now_ms)).await
    }

    async fn channels(&self, query: &ListQuery) -> Result<ChannelList, LogError> {
        let query = query.clone();
        self.blocking(move |store, now_ms| read::names(store, &query, now_ms)).await
    }

    /// Goes through the writer: a disk that hangs is an answer, too.
    async fn ping(&self) -> Result<(), LogError> {
        let stuck = |_| LogError::Unavailable(format!("the disk has not answered for {PING_WAIT:?}"));
        tokio::time::timeout(PING_WAIT, self.ask(0, Command::Ping)).await.map_err(stuck)?
    }

    fn register(&self, registry: &mut Registry) {
        let room = Arc::clone(&self.room);
        let queued = move || (QUEUE_KIB as usize).saturating_sub(room.available_permits()) * 1024;
        observe(registry, "embedded_queue_bytes", "Room taken in the queue to the log's writer", queued);
        // The directory is free as soon as the log is gone, whoever still holds a registry.
        let shared = Arc::downgrade(&self.shared);
        let refs = move || shared.upgrade().map_or(0, |shared| shared.feed.refs());
        observe(registry, "embedded_feed_refs", "Refs of the feed in memory", refs);
    }

    async fn broken(&self) {
        self.writer_ended.cancelled().await;
    }

    async fn close(&self) {
        let shared = Arc::clone(&self.shared);
        let writer = self.writer.lock().take();
        // The join handle only fails with the runtime, and then there is nobody to tell.
        let _ = spawn_blocking(move || Self::shut_down(&shared, writer)).await;
    }
}

impl Drop for EmbeddedLog {
    /// Waits for the commit in flight, so that the directory is free afterwards.
    fn drop(&mut self) {
        Self::shut_down(&self.shared, self.writer.get_mut().take());
    }
}
