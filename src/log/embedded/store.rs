//! The database: five keyspaces, opened together, read through one snapshot and written through one batch.
//!
//! | keyspace | holds | file |
//! |---|---|---|
//! | `partition` | last id, epoch | `partition_state.rs` |
//! | `channels` | figures of each channel | `channel_state.rs` |
//! | `events` | the events | `record.rs` |
//! | `keys` | idempotency keys | `idempotency.rs` |
//! | `due` | what is to be removed, and when | `due.rs` |
//!
//! Invariant: a batch committed with [`Store::commit_durably`] is on disk, whole, before any reader sees any of
//! it (fjall writes and syncs its journal before it fills its memory tables), and no other thread writes.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable, Snapshot, UserValue,
};

use super::channel_state::ChannelState;
use super::codec::Corrupt;
use super::directory::{Directory, OpenError};
use super::journal::{self, JournalError};
use super::partition_state::{self, PartitionState};
use crate::channel::Channel;
use crate::log::LogError;

/// Threads that write full memory tables to disk and merge tables. With several, the database's first one has to stay
/// free for memory tables, and while the others merge it passes waiting merges round in a busy loop.
const WORKER_THREADS: usize = 1;

/// Size from which a memory table of events goes to disk, in bytes. Up to four of them may wait.
const EVENTS_MEMTABLE_BYTES: u64 = 8 * 1024 * 1024;

/// The same for the small keyspaces.
const SMALL_MEMTABLE_BYTES: u64 = 2 * 1024 * 1024;

/// What has to be read again after a crash, at most about, in bytes.
const JOURNAL_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// The database and its keyspaces.
pub(super) struct Store {
    pub(super) db: Database,
    pub(super) partition: Keyspace,
    pub(super) channels: Keyspace,
    pub(super) events: Keyspace,
    pub(super) keys: Keyspace,
    pub(super) due: Keyspace,
}

/// Why reading or writing the database failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// The disk, or the database because the disk failed it before.
    #[error("{0}")]
    Disk(String),
    /// What was read contradicts the layout.
    #[error("{0}")]
    Damaged(String),
}

impl StoreError {
    pub(super) fn corrupt(what: impl fmt::Display, corrupt: Corrupt) -> Self {
        Self::Damaged(format!("{what}: {corrupt}"))
    }
}

impl From<fjall::Error> for StoreError {
    fn from(error: fjall::Error) -> Self {
        use fjall::Error;
        match &error {
            Error::Io(io) | Error::Storage(fjall::LsmError::Io(io)) => Self::Disk(io.to_string()),
            Error::Poisoned => Self::Disk("an earlier write to the disk failed".to_owned()),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

impl From<StoreError> for LogError {
    /// For calls that had no effect.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Disk(reason) => Self::Unavailable(reason),
            StoreError::Damaged(what) => Self::Damaged(what),
        }
    }
}

impl Store {
    /// Opens the database in `directory`, or creates it. `rewrite`: see [`journal::check`].
    pub(super) fn open(directory: &Directory, rewrite: bool, cache_bytes: u64) -> Result<Self, OpenError> {
        let dir = || directory.path().to_owned();
        let checked = journal::check(&directory.database(), rewrite).map_err(|error| match error {
            JournalError::Broken { .. } => OpenError::Damaged { dir: dir(), what: error.to_string() },
            JournalError::Io(error) => OpenError::Io { dir: dir(), doing: "check the journal", error },
        })?;
        if checked.cut_bytes > 0 {
            tracing::warn!(
                dir = %directory.path().display(),
                bytes = checked.cut_bytes,
                "cut off a torn write that was never acknowledged"
            );
        }
        // fjall asserts what it expects of its files; a panic in there is damage found, not a bug of ours.
        catch_unwind(AssertUnwindSafe(|| Self::open_database(directory, cache_bytes)))
            .unwrap_or_else(|_| Err(fjall::Error::Unrecoverable))
            .map_err(|error| match error {
                fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
                    OpenError::Io { dir: dir(), doing: "open the database", error }
                }
                fjall::Error::Locked => OpenError::Locked(dir()),
                error => {
                    OpenError::Damaged { dir: dir(), what: format!("the database does not open: {error}") }
                }
            })
    }

    fn open_database(directory: &Directory, cache_bytes: u64) -> fjall::Result<Self> {
        let db = Database::builder(directory.database())
            .worker_threads(WORKER_THREADS)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .cache_size(cache_bytes)
            .open()?;
        let keyspace =
            |name, bytes| db.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(bytes));
        let store = Self {
            partition: keyspace("partition", SMALL_MEMTABLE_BYTES)?,
            channels: keyspace("channels", SMALL_MEMTABLE_BYTES)?,
            events: keyspace("events", EVENTS_MEMTABLE_BYTES)?,
            keys: keyspace("keys", SMALL_MEMTABLE_BYTES)?,
            due: keyspace("due", SMALL_MEMTABLE_BYTES)?,
            db,
        };
        // A process that was killed may have left batches in the page cache only; they are visible from here on.
        store.db.persist(PersistMode::SyncAll)?;
        Ok(store)
    }

    /// A consistent view of all keyspaces.
    pub(super) fn snapshot(&self) -> Snapshot {
        self.db.snapshot()
    }

    /// A batch to commit.
    pub(super) fn batch(&self) -> OwnedWriteBatch {
        self.db.batch()
    }

    /// Commits what must survive: when this returns, the batch is on disk.
    pub(super) fn commit_durably(batch: OwnedWriteBatch) -> Result<(), StoreError> {
        Ok(batch.durability(Some(PersistMode::SyncAll)).commit()?)
    }

    /// Commits what can be done again after a crash, such as the removal of expired events.
    pub(super) fn commit_lazily(batch: OwnedWriteBatch) -> Result<(), StoreError> {
        Ok(batch.durability(Some(PersistMode::Buffer)).commit()?)
    }

    /// Last id and epoch; `None` before the first write.
    pub(super) fn partition_state(&self, view: &Snapshot) -> Result<Option<PartitionState>, StoreError> {
        let Some(value) = view.get(&self.partition, partition_state::KEY)? else {
            return Ok(None);
        };
        PartitionState::decode(&value)
            .map(Some)
            .map_err(|corrupt| StoreError::corrupt("the partition's state", corrupt))
    }

    /// The stored state of a channel.
    pub(super) fn channel_value(
        &self,
        view: &Snapshot,
        channel: &Channel,
    ) -> Result<Option<UserValue>, StoreError> {
        Ok(view.get(&self.channels, channel.as_str())?)
    }

    /// What is remembered of a channel.
    pub(super) fn channel_state(
        &self,
        view: &Snapshot,
        channel: &Channel,
    ) -> Result<Option<ChannelState>, StoreError> {
        let Some(value) = self.channel_value(view, channel)? else {
            return Ok(None);
        };
        ChannelState::decode(&value)
            .map(Some)
            .map_err(|corrupt| StoreError::corrupt(format_args!("the state of channel {channel}"), corrupt))
    }

    /// Whether no channel was ever written to.
    pub(super) fn is_blank(&self) -> Result<bool, StoreError> {
        Ok(self.channels.is_empty()? && self.events.is_empty()?)
    }
}
