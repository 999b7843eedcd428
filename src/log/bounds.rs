//! What a cursor proves: whether everything that followed it in a channel is still there.
//!
//! A channel forgets: by length, by age, by a purge, by a flush or a rollback of the store. [`Bounds`] is
//! what the store knows about a channel at one moment, [`Bounds::prove`] decides from it whether the history
//! after a position is whole. Invariant: [`Proof::Complete`] is answered only when no event after the position
//! can have been removed; what cannot be proven counts as lost.

use crate::id::StreamId;

/// A channel and its partition at one moment, read atomically.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The channel's own figures; `None` when the store holds no such channel.
    pub extent: Option<Extent>,
    /// The id at which the partition's history last began.
    pub epoch: StreamId,
    /// The id of the channel's last purge; [`StreamId::ZERO`] when there was none that still matters.
    pub purged: StreamId,
    /// The newest ref of the partition.
    pub feed_last: StreamId,
    /// Events at or before this position are older than the channel's maximum age; `None` without one.
    pub expired: Option<StreamId>,
    /// Events older than the maximum age that were still there after the position that was asked for.
    pub passed_over_expired: bool,
}

/// Markers up to which a reader needs not be told again: it was told, or asked for what is left of history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Of the partition's epochs.
    pub epoch: StreamId,
    /// Of the channel's purges.
    pub purge: StreamId,
}

/// What the store keeps of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The oldest entry.
    pub first: StreamId,
    /// The newest entry ever.
    pub last: StreamId,
    /// Entries now.
    pub length: u64,
    /// Entries since the key was created, removed ones included.
    pub entries_added: u64,
    /// The newest entry that was deleted singly. Trimming does not move it.
    pub max_deleted: StreamId,
}

/// What can be said about the history after a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Nothing is missing.
    Complete,
    /// Retention may have removed events after the position.
    Trimmed,
    /// History was purged, flushed or rolled back after the position, or the position lies in the future.
    Reset,
}

impl Bounds {
    /// Judges the history after `position`, for a reader that knows of the markers `known`.
    pub fn prove(&self, position: StreamId, known: Known) -> Proof {
        if self.began_anew(position, known) || self.was_purged(position, known) {
            return Proof::Reset;
        }
        if self.retained_after(position) { Proof::Complete } else { Proof::Trimmed }
    }

    /// Whether the whole partition's history began after `position`, or ends before it.
    pub fn began_anew(&self, position: StreamId, known: Known) -> bool {
        self.epoch > position.max(known.epoch) || position > self.feed_last
    }

    /// Whether the channel was purged after `position`.
    pub fn was_purged(&self, position: StreamId, known: Known) -> bool {
        self.purged > position.max(known.purge)
    }

    fn retained_after(&self, position: StreamId) -> bool {
        let young = self.expired.is_none_or(|expired| position >= expired);
        if self.passed_over_expired && !young {
            return false;
        }
        let Some(extent) = self.extent else {
            // The key is gone. Without a maximum age only a purge removes it, and that moved `purged`; with
            // one, an event younger than it cannot have expired.
            return young;
        };
        if extent.last <= position {
            return true;
        }
        // A key that was never trimmed holds all that was added since its creation; what an earlier
        // incarnation held had expired before, which a young position rules out.
        let never_trimmed = extent.entries_added == extent.length && young;
        (extent.first <= position || never_trimmed) && extent.max_deleted <= position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(ms: u64) -> StreamId {
        StreamId::new(ms, 0).unwrap()
    }

    fn bounds(extent: Option<Extent>) -> Bounds {
        Bounds {
            extent,
            epoch: id(10),
            purged: StreamId::ZERO,
            feed_last: id(1_000),
            expired: Some(id(100)),
            passed_over_expired: false,
        }
    }

    fn extent(first: u64, last: u64, length: u64, entries_added: u64) -> Extent {
        Extent { first: id(first), last: id(last), length, entries_added, max_deleted: StreamId::ZERO }
    }

    #[test]
    fn each_clause_of_the_rule_decides_its_own_case() {
        let none = Known::default();
        let trimmed = bounds(Some(extent(200, 900, 5, 9)));
        assert_eq!(trimmed.prove(id(200), none), Proof::Complete, "the cursor's own event is still there");
        assert_eq!(trimmed.prove(id(199), none), Proof::Trimmed);
        assert_eq!(trimmed.prove(id(900), none), Proof::Complete, "nothing followed");
        assert_eq!(trimmed.prove(id(1_001), none), Proof::Reset, "a cursor from the future");
        assert_eq!(trimmed.prove(id(9), none), Proof::Reset, "from before the epoch");
        assert_eq!(
            trimmed.prove(id(9), Known { epoch: id(10), ..none }),
            Proof::Trimmed,
            "the epoch is known to the reader"
        );

        let whole = bounds(Some(extent(200, 900, 5, 5)));
        assert_eq!(whole.prove(id(150), none), Proof::Complete, "never trimmed and young enough");
        assert_eq!(whole.prove(id(99), none), Proof::Trimmed, "an earlier incarnation may have expired");

        let punched = bounds(Some(Extent { max_deleted: id(500), ..extent(200, 900, 4, 5) }));
        assert_eq!(punched.prove(id(499), none), Proof::Trimmed);
        assert_eq!(punched.prove(id(500), none), Proof::Complete);

        let absent = bounds(None);
        assert_eq!(absent.prove(id(100), none), Proof::Complete, "a younger event could not have expired");
        assert_eq!(absent.prove(id(99), none), Proof::Trimmed);
        assert_eq!(Bounds { expired: None, ..absent }.prove(id(20), none), Proof::Complete);
        assert_eq!(Bounds { purged: id(300), ..absent }.prove(id(299), none), Proof::Reset);
        assert_eq!(Bounds { purged: id(300), ..absent }.prove(id(300), none), Proof::Complete);

        let expiring = Bounds { passed_over_expired: true, ..bounds(Some(extent(20, 900, 5, 5))) };
        assert_eq!(
            expiring.prove(id(30), none),
            Proof::Trimmed,
            "events after it have expired but are still there"
        );
    }
}
