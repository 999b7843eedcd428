//! The data directory: who holds it, and which layout it has.
//!
//! ```text
//! lock      held for as long as the log is open
//! layout    "headwater embedded log, layout 1"
//! db/       the database
//! revocations  tokens that were ended before their time, see `control.rs`
//! ```
//!
//! Invariant: nothing is written to a directory that another process holds, that holds something else, or
//! that a newer version wrote.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The layout that this version writes and understands.
const LAYOUT: u32 = 1;
const LAYOUT_TEXT: &str = "headwater embedded log, layout ";

/// Why a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another log in this one, holds the directory.
    #[error("the data directory {} is in use by another broker; stop it, or choose another directory", .0.display())]
    Locked(PathBuf),
    /// The directory holds something that is no log.
    #[error(
        "the directory {} holds {entry:?} and no log of events; choose an empty or a new directory", .dir.display()
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// One of the names found there.
        entry: String,
    },
    /// A newer version wrote the directory.
    #[error(
        "the data directory {} has layout {found}, this version understands up to {LAYOUT}; use the newer version",
        .dir.display()
    )]
    Newer {
        /// The directory.
        dir: PathBuf,
        /// The layout it has.
        found: u32,
    },
    /// What is stored contradicts the layout.
    #[error("the data directory {} is damaged: {what}", .dir.display())]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What was found.
        what: String,
    },
    /// The file system refused.
    #[error("cannot {doing} in the data directory {}: {error}", .dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

impl OpenError {
    /// Whether opening may succeed later without a change to the directory.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Locked(_) | Self::Io { .. })
    }
}

/// A locked data directory of a known layout.
pub(super) struct Directory {
    path: PathBuf,
    /// Unlocked when it is dropped, or when the process ends in whatever way.
    _lock: File,
}

impl Directory {
    /// Creates the directory where there is none, locks it and checks its layout.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |doing| move |error| OpenError::Io { dir: path.to_owned(), doing, error };
        create_private(path).map_err(io("create a directory"))?;
        if read_layout(path).map_err(io("read the layout"))?.is_none() {
            refuse_foreign(path)?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(io("open the lock file"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => OpenError::Locked(path.to_owned()),
            TryLockError::Error(error) => io("lock a file")(error),
        })?;
        match read_layout(path).map_err(io("read the layout"))? {
            None => write_layout(path).map_err(io("write the layout"))?,
            Some(text) => check_layout(path, &text)?,
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The directory itself.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the database lives.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join("db")
    }

    /// Replaces a file of this name: when this returns, it is on disk, whole.
    pub(super) fn write_whole(&self, name: &str, text: &str) -> io::Result<()> {
        write_whole(&self.path, name, text)
    }

    /// Whether the disk takes and keeps a megabyte now.
    pub(super) fn probe(&self) -> io::Result<()> {
        let path = self.path.join("probe");
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&vec![0; 1024 * 1024])?;
            file.sync_all()
        });
        fs::remove_file(&path)?;
        written
    }
}

/// Events are nobody else's business: only the broker's user may enter the directory.
fn create_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)
}

fn read_layout(path: &Path) -> io::Result<Option<String>> {
    match fs::read(path.join("layout")) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A directory without a layout may hold what a first start left behind, or a file system puts there.
fn refuse_foreign(path: &Path) -> Result<(), OpenError> {
    let io = |error| OpenError::Io { dir: path.to_owned(), doing: "list the files", error };
    for entry in fs::read_dir(path).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if !["lock", "layout.new", "lost+found"].iter().any(|known| name == *known) {
            let entry = name.to_string_lossy().into_owned();
            return Err(OpenError::Foreign { dir: path.to_owned(), entry });
        }
    }
    Ok(())
}

fn check_layout(path: &Path, text: &str) -> Result<(), OpenError> {
    let dir = || path.to_owned();
    match text.strip_prefix(LAYOUT_TEXT).and_then(|number| number.trim_end().parse().ok()) {
        Some(LAYOUT) => Ok(()),
        Some(found) if found > LAYOUT => Err(OpenError::Newer { dir: dir(), found }),
        _ => Err(OpenError::Damaged { dir: dir(), what: format!("the layout file says {text:?}") }),
    }
}

fn write_layout(path: &Path) -> io::Result<()> {
    write_whole(path, "layout", &format!("{LAYOUT_TEXT}{LAYOUT}\n"))
}

/// The file appears whole or not at all.
fn write_whole(path: &Path, name: &str, text: &str) -> io::Result<()> {
    let new = path.join(format!("{name}.new"));
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path.join(name))?;
    sync_directory(path)
}

#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_by_one_log_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = Directory::open(dir.path()).unwrap();
        let error = Directory::open(dir.path()).err().unwrap();
        assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
        assert!(matches!(error, OpenError::Locked(_)));
        drop(held);
        assert!(Directory::open(dir.path()).is_ok());
    }

    #[test]
    fn other_directories_and_newer_layouts_are_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "x").unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(OpenError::Foreign { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        fs::remove_file(dir.path().join("thesis.txt")).unwrap();
        fs::write(dir.path().join("layout"), "headwater embedded log, layout 2\n").unwrap();
        let error = Directory::open(dir.path()).err().unwrap();
        assert!(matches!(error, OpenError::Newer { found: 2, .. }));
        assert!(error.to_string().contains("newer version"), "{error}");

        fs::write(dir.path().join("layout"), "\u{0}\u{0}").unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(OpenError::Damaged { .. })));
    }
}
