//! Control of the one node there is: revocations in a file beside the database, a line each.
//!
//! ```text
//! 1700000000000 sub:42        the end in milliseconds since the Unix epoch, and which tokens
//! ```
//!
//! Invariant: the file is whole at any time, and what was acknowledged is in it. Revocations are few and made by
//! people: the file is written anew each time.

use std::fmt::Write;

use async_trait::async_trait;
use tokio::task::spawn_blocking;

use super::{EmbeddedLog, Shared, closed};
use crate::auth::revocation::{Revocation, Target, Until};
use crate::control::{Control, News, Snapshot};
use crate::id::StreamId;
use crate::log::LogError;

/// Its name in the data directory.
const FILE: &str = "revocations";

#[async_trait]
impl Control for EmbeddedLog {
    async fn revoke(&self, target: &Target, until: Until) -> Result<u64, LogError> {
        let target = target.clone();
        self.with_file(move |shared| {
            let now_ms = (shared.clock)();
            let mut kept = read(shared)?;
            let earlier = kept.iter().find(|known| known.target == target).map(|known| known.until_ms);
            let until_ms = until.beside(earlier);
            kept.retain(|known| known.until_ms > now_ms && known.target != target);
            if until_ms > now_ms {
                kept.push(Revocation { target, until_ms });
            }
            let mut lines = String::new();
            for Revocation { target, until_ms } in &kept {
                writeln!(lines, "{until_ms} {target}").expect("a String takes text");
            }
            let written = shared.directory.write_whole(FILE, &lines);
            written
                .map(|()| until_ms)
                .map_err(|error| LogError::Refused(format!("revocations cannot be written: {error}")))
        })
        .await
    }

    /// Nothing gets lost here that this node still knows.
    async fn restore(&self, _revocation: &Revocation) -> Result<bool, LogError> {
        Ok(true)
    }

    async fn read(&self, _heard: StreamId) -> Result<Snapshot, LogError> {
        let revocations = self.with_file(read).await?;
        Ok(Snapshot { revocations, position: StreamId::ZERO, continues: true })
    }

    /// Nobody else has news.
    async fn listen(&self, _position: StreamId) -> Result<News, LogError> {
        std::future::pending().await
    }
}

impl EmbeddedLog {
    /// Works with the file on a thread that may wait for the disk, one at a time.
    async fn with_file<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let shared = std::sync::Arc::clone(&self.shared);
        let work = move || {
            let _held = shared.revocations.lock();
            work(&shared)
        };
        spawn_blocking(work).await.map_err(|_| closed())?
    }
}

fn read(shared: &Shared) -> Result<Vec<Revocation>, LogError> {
    let damaged =
        || LogError::Damaged(format!("the file {FILE} in the data directory is not what was written"));
    let text = match std::fs::read_to_string(shared.directory.path().join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LogError::Unavailable(format!("revocations cannot be read: {error}"))),
    };
    let parse = |line: &str| {
        let (until_ms, target) = line.split_once(' ')?;
        Some(Revocation { until_ms: until_ms.parse().ok()?, target: target.parse().ok()? })
    };
    text.lines().map(|line| parse(line).ok_or_else(damaged)).collect()
}
