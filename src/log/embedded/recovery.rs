//! Opening the database, at start and again after a disk failed.
//!
//! After a failed write or fsync nobody knows what reached the disk, and fjall rightly refuses to go on. So the
//! database is closed and opened anew: what its journal holds whole is the truth from then on, a piece of a
//! group is cut off, and followers are sent to read the log. Invariant: a group in doubt appears as a whole or
//! not at all, and only after it was written to disk once more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::directory::{Directory, OpenError};
use super::partition_state::{self, PartitionState};
use super::store::{Store, StoreError};

/// How long readers of the failed database may take to end.
const READERS_WAIT: Duration = Duration::from_secs(5);

/// Opens the database and its state, and begins its history where there is none.
///
/// `rewrite`: after a failed fsync; see [`super::journal::check`]. Answers whether the history is new, too.
pub(super) fn open(
    directory: &Directory,
    rewrite: bool,
    cache_bytes: u64,
    now_ms: u64,
) -> Result<(Store, PartitionState, bool), OpenError> {
    let damaged = |what: String| OpenError::Damaged { dir: directory.path().to_owned(), what };
    let store = Store::open(directory, rewrite, cache_bytes)?;
    let read = |store: &Store| -> Result<_, StoreError> {
        let found = store.partition_state(&store.snapshot())?;
        if found.is_none() && !store.is_blank()? {
            return Err(StoreError::Damaged("the partition's state is missing".to_owned()));
        }
        Ok(found)
    };
    if let Some(state) = read(&store).map_err(|error| damaged(error.to_string()))? {
        return Ok((store, state, false));
    }
    let state = PartitionState::begin(now_ms);
    let mut batch = store.batch();
    batch.insert(&store.partition, partition_state::KEY, state.encode());
    Store::commit_durably(batch).map_err(|error| OpenError::Io {
        dir: directory.path().to_owned(),
        doing: "write the first entry",
        error: std::io::Error::other(error.to_string()),
    })?;
    Ok((store, state, true))
}

/// Opens the database anew if the disk takes writes again. Otherwise says why not; what can be read until then
/// stays readable, unless the database was closed already.
pub(super) fn reopen(shared: &Shared) -> Result<PartitionState, String> {
    let dir = shared.directory.path().display();
    shared.directory.probe().map_err(|error| format!("cannot write to {dir}: {error}"))?;
    let failed = shared.store.write().take();
    if let Some(failed) = failed
        && let Err(still_read) = wait_for_readers(failed)
    {
        *shared.store.write() = Some(still_read);
        return Err(format!("cannot write to {dir}: waiting for readers to end"));
    }
    let cache_bytes = shared.options.cache_bytes;
    let (store, state, _) =
        open(&shared.directory, true, cache_bytes, (shared.clock)()).map_err(|error| error.to_string())?;
    *shared.store.write() = Some(Arc::new(store));
    Ok(state)
}

/// Closes the database once nobody reads from it any more.
fn wait_for_readers(mut store: Arc<Store>) -> Result<(), Arc<Store>> {
    let deadline = Instant::now() + READERS_WAIT;
    loop {
        match Arc::try_unwrap(store) {
            Ok(store) => {
                drop(store);
                return Ok(());
            }
            Err(shared) if Instant::now() > deadline => return Err(shared),
            Err(shared) => store = shared,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
