//! The embedded log against the conformance suite; `disk`, `group` and `sweep` hold what only this log does.

mod disk;
mod group;
mod sweep;

use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

use super::*;
use crate::log::conformance::{self, Harness};

/// A clock that a test moves.
#[derive(Clone)]
struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1_700_000_000_000)))
    }

    fn get(&self) -> Clock {
        let now = Arc::clone(&self.0);
        Arc::new(move || now.load(Ordering::SeqCst))
    }

    fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }
}

fn open(dir: &Path, clock: &ManualClock) -> EmbeddedLog {
    EmbeddedLog::open(dir, options(), clock.get()).unwrap()
}

/// Waits for a condition.
async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(met) = condition().await {
                return met;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(conformance::DEADLINE, waiting).await.unwrap_or_else(|_| panic!("waited for {what}"))
}

/// Sweeps far more often than in production, so that cases meet channels in every state.
fn options() -> EmbeddedOptions {
    EmbeddedOptions { sweep_interval: Duration::from_millis(5), ..EmbeddedOptions::default() }
}

struct Embedded {
    log: EmbeddedLog,
    clock: ManualClock,
    _dir: TempDir,
}

#[async_trait]
impl Harness for Embedded {
    async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::new();
        let log = EmbeddedLog::open(dir.path(), options(), clock.get()).unwrap();
        Self { log, clock, _dir: dir }
    }

    fn log(&self) -> &dyn Log {
        &self.log
    }

    async fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    async fn spoil(&self, channel: &Channel) {
        let store = self.log.shared.store().unwrap();
        store.channels.insert(channel.as_str(), "no channel state").unwrap();
    }
}

conformance::suite!(Embedded);
