//! The feed: in memory, since one process is the only reader of its own log.
//!
//! Invariant: after `base`, which the oldest kept ref follows, the feed lists every event and marker in id
//! order; it holds at most `refs_max` refs and forgets the oldest first. A watermark before `base` is told
//! [`Followed::Trimmed`], which also covers a restart: `base` is then the last id of the run before.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::id::StreamId;
use crate::log::{Followed, Ref, Tail};

/// How long following waits for news.
const FOLLOW_WAIT: Duration = Duration::from_secs(1);

/// Refs in one answer: enough to make a call cheap, few enough to keep the answer small.
const FOLLOW_REFS_MAX: usize = 4096;

/// Recent refs, and a bell for who waits for more.
pub(super) struct Feed {
    refs_max: usize,
    recent: Mutex<Recent>,
    /// Carries the last id so that nobody who looked before a release can miss it.
    bell: watch::Sender<StreamId>,
}

struct Recent {
    /// Every ref after this id is in `refs`.
    base: StreamId,
    refs: VecDeque<Ref>,
    tail: Tail,
}

impl Feed {
    /// A feed that has forgotten everything through `base` and holds what `refs` lists.
    pub(super) fn new(base: StreamId, tail: Tail, refs: Vec<Ref>, refs_max: usize) -> Self {
        let recent = Recent { base, refs: refs.into(), tail };
        Self { refs_max: refs_max.max(1), recent: Mutex::new(recent), bell: watch::Sender::new(tail.last) }
    }

    /// How many refs it holds.
    pub(super) fn refs(&self) -> usize {
        self.recent.lock().refs.len()
    }

    /// Appends refs of what is durable now.
    pub(super) fn release(&self, refs: Vec<Ref>, tail: Tail) {
        {
            let mut recent = self.recent.lock();
            assert!(
                refs.first().is_none_or(|first| first.id > recent.tail.last),
                "the feed never lists an id twice"
            );
            recent.refs.extend(refs);
            recent.tail = tail;
            while recent.refs.len() > self.refs_max {
                if let Some(forgotten) = recent.refs.pop_front() {
                    recent.base = forgotten.id;
                }
            }
        }
        self.bell.send_replace(tail.last);
    }

    /// Forgets every ref, as a restart does: followers are told to read their channels up to `tail`.
    pub(super) fn restart(&self, tail: Tail) {
        *self.recent.lock() = Recent { base: tail.last, refs: VecDeque::new(), tail };
        self.bell.send_replace(tail.last);
    }

    /// Last id and epoch.
    pub(super) fn tail(&self) -> Tail {
        self.recent.lock().tail
    }

    /// Waits for refs after `watermark`.
    pub(super) async fn follow(&self, watermark: StreamId) -> Followed {
        let mut bell = self.bell.subscribe();
        let found = self.look(watermark);
        if found != Followed::Refs(Vec::new()) {
            return found;
        }
        // An error means that the feed is gone or that nothing came: either way there is no news.
        let _ = timeout(FOLLOW_WAIT, bell.changed()).await;
        self.look(watermark)
    }

    fn look(&self, watermark: StreamId) -> Followed {
        let recent = self.recent.lock();
        if watermark > recent.tail.last {
            return Followed::RolledBack;
        }
        if watermark < recent.base {
            return Followed::Trimmed(recent.tail);
        }
        let start = recent.refs.partition_point(|entry| entry.id <= watermark);
        Followed::Refs(recent.refs.range(start..).take(FOLLOW_REFS_MAX).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::RefKind;

    fn id(ms: u64) -> StreamId {
        StreamId::new(ms, 0).unwrap()
    }

    fn tail(last: u64) -> Tail {
        Tail { last: id(last), epoch: id(1) }
    }

    fn refs(range: std::ops::RangeInclusive<u64>) -> Vec<Ref> {
        range.map(|ms| Ref { id: id(ms), kind: RefKind::Foreign }).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_feed_forgets_the_oldest_and_says_so() {
        let feed = Feed::new(StreamId::ZERO, tail(1), refs(1..=1), 3);
        feed.release(refs(2..=3), tail(3));
        assert_eq!(feed.follow(StreamId::ZERO).await, Followed::Refs(refs(1..=3)));
        feed.release(refs(4..=5), tail(5));
        assert_eq!(feed.follow(id(1)).await, Followed::Trimmed(tail(5)));
        assert_eq!(
            feed.follow(id(2)).await,
            Followed::Refs(refs(3..=5)),
            "refs after the last forgotten one"
        );
        assert_eq!(feed.follow(id(5)).await, Followed::Refs(Vec::new()), "nothing within a second");
        assert_eq!(feed.follow(id(6)).await, Followed::RolledBack);
    }

    #[tokio::test(start_paused = true)]
    async fn a_restarted_feed_sends_followers_to_the_log() {
        let feed = Feed::new(StreamId::ZERO, tail(3), refs(1..=3), 9);
        feed.restart(tail(7));
        assert_eq!(feed.follow(id(3)).await, Followed::Trimmed(tail(7)));
        assert_eq!(feed.follow(id(7)).await, Followed::Refs(Vec::new()));
    }

    #[tokio::test]
    async fn a_release_ends_the_wait() {
        let feed = Feed::new(StreamId::ZERO, tail(1), refs(1..=1), 9);
        let started = tokio::time::Instant::now();
        let (found, ()) = tokio::join!(feed.follow(id(1)), async {
            tokio::task::yield_now().await;
            feed.release(refs(2..=2), tail(2));
        });
        assert_eq!(found, Followed::Refs(refs(2..=2)));
        assert!(started.elapsed() < FOLLOW_WAIT, "it did not wait for the timeout");
    }
}
