//! The database's journal, looked at before the database is opened.
//!
//! fjall recovers a journal whose last batch was cut short, but after a power loss it may refuse one whose
//! last batch has a hole (sectors reach a disk in any order), and it drops in silence whatever follows a bad
//! tag, acknowledged or not. So the journal is checked here: a torn tail, which can only be a batch that was
//! never acknowledged, is cut off; damage that intact batches follow is reported and left alone.
//!
//! The format (fjall 3, `version` 3), all numbers little-endian:
//! ```text
//! batch   1 u8, items u32, seqno u64     item...     3 u8, XXH3-64 of the items u64, "FJL" 3
//! item    2 u8, type u8, compression u8, keyspace u64, key len u16, len u32, stored len u32, key, value
//!         or 4 u8, keyspace u64
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

const TAG_START: u8 = 1;
const TAG_ITEM: u8 = 2;
const TAG_END: u8 = 3;
const TAG_CLEAR: u8 = 4;
const TRAILER: &[u8] = b"FJL\x03";
const START_BYTES: usize = 13;
const END_BYTES: usize = 13;

/// The database's `version` file when its journals have this format.
const VERSION: &[u8] = b"FJL\x03";

/// What is wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    /// Intact batches follow a broken one: this is no torn write.
    #[error("{} is broken at byte {at}, and intact entries follow at byte {intact}", .path.display())]
    Broken { path: PathBuf, at: usize, intact: usize },
    /// The file system refused.
    #[error("cannot check the journal: {0}")]
    Io(#[from] io::Error),
}

/// What the check did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Checked {
    /// Bytes of a torn write that were cut off.
    pub(super) cut_bytes: u64,
}

/// Checks every journal of the database in `dir` and cuts off a torn tail.
///
/// `rewrite` writes the intact part again: after a failed fsync the kernel may hold pages as clean that never
/// reached the disk, so what can be read is not yet what is kept.
pub(super) fn check(dir: &Path, rewrite: bool) -> Result<Checked, JournalError> {
    let mut checked = Checked::default();
    // Any other format looks torn from its first byte on, and is fjall's to judge.
    if fs::read(dir.join("version")).is_ok_and(|version| version != VERSION) || !dir.try_exists()? {
        return Ok(checked);
    }
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            checked.cut_bytes += check_file(&path)?;
            if rewrite {
                rewrite_in_place(&path)?;
            }
        }
    }
    Ok(checked)
}

fn check_file(path: &Path) -> Result<u64, JournalError> {
    let bytes = fs::read(path)?;
    // The file is allocated ahead: zeros at its end were never written.
    let written = &bytes[..written_len(&bytes)];
    let end = intact_len(written);
    if end == written.len() {
        return Ok(0);
    }
    if let Some(intact) = find_batch(&written[end..]) {
        return Err(JournalError::Broken { path: path.to_owned(), at: end, intact: end + intact });
    }
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(end as u64)?;
    file.sync_all()?;
    Ok((written.len() - end) as u64)
}

/// Length without the zeros at the end. A batch ends in its trailer, never in a zero.
pub(super) fn written_len(bytes: &[u8]) -> usize {
    const BLOCK: usize = 4096;
    let mut len = bytes.len();
    while len > 0 {
        let start = len.saturating_sub(BLOCK);
        // Whole blocks are compared first: most of a journal may be zeros.
        if bytes[start..len] == [0; BLOCK][..len - start] {
            len = start;
        } else {
            return start + bytes[start..len].iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        }
    }
    0
}

fn rewrite_in_place(path: &Path) -> io::Result<()> {
    let mut file: File = OpenOptions::new().read(true).write(true).open(path)?;
    let mut chunk = vec![0; 1024 * 1024];
    let mut at = 0;
    loop {
        file.seek(SeekFrom::Start(at))?;
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return file.sync_all();
        }
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&chunk[..read])?;
        at += read as u64;
    }
}

/// How many bytes from the start are whole batches.
fn intact_len(bytes: &[u8]) -> usize {
    let mut end = 0;
    while let Walk::Batch(len) = walk(&bytes[end..]) {
        end += len;
    }
    end
}

/// Where in a broken tail an intact batch starts. A broken batch whose items can still be told apart is
/// skipped as a whole, so that nothing an event contains is taken for a batch.
fn find_batch(tail: &[u8]) -> Option<usize> {
    let mut at = match walk(tail) {
        Walk::Batch(_) => return Some(0),
        Walk::Broken(readable) => readable.max(1),
    };
    while at < tail.len() {
        if tail[at] == TAG_START && matches!(walk(&tail[at..]), Walk::Batch(_)) {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// What stands at the start of some bytes.
enum Walk {
    /// A whole batch of this length.
    Batch(usize),
    /// Anything else; so many bytes could be told apart.
    Broken(usize),
}

fn walk(bytes: &[u8]) -> Walk {
    if bytes.first() != Some(&TAG_START) || bytes.len() < START_BYTES {
        return Walk::Broken(0);
    }
    let items = le_u32(bytes, 1).unwrap_or(0);
    let mut at = START_BYTES;
    for _ in 0..items {
        match item_len(&bytes[at..]) {
            Some(len) if at + len <= bytes.len() => at += len,
            _ => return Walk::Broken(at),
        }
    }
    let Some(end) = bytes.get(at..at + END_BYTES) else {
        return Walk::Broken(at);
    };
    let checksum = xxh3_64(&bytes[START_BYTES..at]).to_le_bytes();
    if items > 0 && end[0] == TAG_END && end[1..9] == checksum && &end[9..] == TRAILER {
        Walk::Batch(at + END_BYTES)
    } else {
        Walk::Broken(at)
    }
}

fn item_len(bytes: &[u8]) -> Option<usize> {
    match *bytes.first()? {
        TAG_ITEM => {
            let key_len = u16::from_le_bytes(*bytes.get(11..13)?.first_chunk()?);
            let stored_len = le_u32(bytes, 17)?;
            Some(21 + usize::from(key_len) + stored_len as usize)
        }
        TAG_CLEAR => Some(9),
        _ => None,
    }
}

fn le_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..at + 4)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};
    use proptest::prelude::*;

    use super::*;

    /// A journal of batches with one to three items each, small and large, as fjall itself writes it.
    fn written_by_the_database(dir: &Path, batches: usize) -> PathBuf {
        let db = Database::builder(dir).open().unwrap();
        let keyspace = db.keyspace("k", KeyspaceCreateOptions::default).unwrap();
        for n in 0..batches {
            let mut batch = db.batch().durability(Some(PersistMode::Buffer));
            for item in 0..=n % 3 {
                batch.insert(&keyspace, format!("{n}-{item}"), "x".repeat(n * item * 997));
            }
            batch.remove(&keyspace, format!("{n}"));
            batch.commit().unwrap();
        }
        dir.join("0.jnl")
    }

    /// Lengths of the intact starts of a journal, the whole last.
    fn batch_ends(bytes: &[u8]) -> Vec<usize> {
        let mut ends = vec![0];
        while let Walk::Batch(len) = walk(&bytes[*ends.last().unwrap()..]) {
            ends.push(ends.last().unwrap() + len);
        }
        ends
    }

    #[test]
    fn what_the_database_writes_is_intact_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = written_by_the_database(dir.path(), 12);
        let bytes = fs::read(&path).unwrap();
        assert!(batch_ends(&bytes).len() > 12, "each batch is recognized");
        assert_eq!(check(dir.path(), false).unwrap(), Checked::default());
        assert_eq!(check(dir.path(), true).unwrap(), Checked::default());
        assert!(fs::read(&path).unwrap() == bytes);
    }

    #[test]
    fn damage_before_intact_batches_is_reported_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = written_by_the_database(dir.path(), 12);
        let mut bytes = fs::read(&path).unwrap();
        let ends = batch_ends(&bytes);
        let (at, intact) = (ends[ends.len() - 5], ends[ends.len() - 4]);
        bytes[at + 40] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = check(dir.path(), false).unwrap_err();
        assert!(
            matches!(error, JournalError::Broken { at: a, intact: i, .. } if (a, i) == (at, intact)),
            "{error}"
        );
        assert!(fs::read(&path).unwrap() == bytes);
    }

    #[test]
    fn a_database_of_another_version_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = written_by_the_database(dir.path(), 3);
        fs::write(dir.path().join("version"), b"FJL\x04").unwrap();
        fs::write(&path, b"who knows what").unwrap();
        assert_eq!(check(dir.path(), false).unwrap(), Checked::default());
        assert_eq!(fs::read(&path).unwrap(), b"who knows what");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_torn_last_batch_is_cut_and_the_database_opens_with_all_others(
            holes in prop::collection::vec((any::<prop::sample::Index>(), 1..600_usize), 0..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = written_by_the_database(dir.path(), 12);
            let mut bytes = fs::read(&path).unwrap();
            let ends = batch_ends(&bytes);
            let [.., start, end] = ends[..] else { panic!("at least two batches") };
            for (at, len) in holes {
                let at = start + at.index(end - start);
                bytes[at..(at + len).min(end)].fill(0);
            }
            if let Some(cut) = cut {
                bytes.truncate(start + cut.index(end - start));
            }
            fs::write(&path, &bytes).unwrap();
            check(dir.path(), false).unwrap();

            let db = Database::builder(dir.path()).open().unwrap();
            let keyspace = db.keyspace("k", KeyspaceCreateOptions::default).unwrap();
            for n in 0..11 {
                for item in 0..=n % 3 {
                    let found = keyspace.contains_key(format!("{n}-{item}")).unwrap();
                    prop_assert!(found, "batch {n}");
                }
            }
        }
    }
}
