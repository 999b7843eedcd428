//! What is remembered of a channel beside its events: the figures that prove a cursor, and when to look again.
//!
//! ```text
//! key     the channel's name
//! value   purged id, max age ms u64, due ms u64, then for a channel that holds events:
//!         first id, last id, length u64, entries added u64            (u64::MAX stands for none)
//! ```
//!
//! Invariant: `first` and `last` name events that are stored, `length` counts the stored events from `first`
//! on, and nothing from `first` on was ever removed. So a read that starts at `first` meets no removed event.
//! Neighbours: `group.rs` and `sweep.rs` change it, `read.rs` uses it.

use super::codec::{Corrupt, Fields};
use crate::id::StreamId;
use crate::log::bounds::Extent;

/// What is remembered of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ChannelState {
    /// The events it holds; `None` when only a purge is remembered.
    pub(super) held: Option<Held>,
    /// The id of the last purge, [`StreamId::ZERO`] for none that still matters.
    pub(super) purged: StreamId,
    /// The maximum age in milliseconds at the last append; the sweep and listings go by it.
    pub(super) max_age_ms: Option<u64>,
    /// When the sweep looks at the channel next, in milliseconds since the epoch; see `due.rs`.
    pub(super) due_ms: Option<u64>,
}

/// The events that a channel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// The oldest.
    pub(super) first: StreamId,
    /// The newest.
    pub(super) last: StreamId,
    /// How many.
    pub(super) length: u64,
    /// How many were added since the channel last held none.
    pub(super) entries_added: u64,
}

impl ChannelState {
    /// Figures for a proof. Events at or before `expired` count as gone, and a channel without others as absent.
    pub(super) fn extent(&self, expired: Option<StreamId>) -> Option<Extent> {
        let held = self.held.filter(|held| expired.is_none_or(|expired| held.last > expired))?;
        Some(Extent {
            first: held.first,
            last: held.last,
            length: held.length,
            entries_added: held.entries_added,
            // Events are never deleted singly here.
            max_deleted: StreamId::ZERO,
        })
    }

    /// The greatest position that is older than the channel's own maximum age.
    pub(super) fn expired(&self, now_ms: u64) -> Option<StreamId> {
        self.max_age_ms.map(|age| expired_at(now_ms, age))
    }

    /// When the oldest event expires, or else the purge marker; in milliseconds since the epoch.
    pub(super) fn expires_ms(&self) -> Option<u64> {
        let oldest = self.held.map_or(self.purged, |held| held.first);
        // The first millisecond at which `expired` reaches the oldest.
        Some(oldest.ms().saturating_add(self.max_age_ms?).saturating_add(1))
    }

    /// Whether the channel holds events that have not expired.
    pub(super) fn is_alive(&self, now_ms: u64) -> bool {
        self.extent(self.expired(now_ms)).is_some()
    }

    /// Counts one event more.
    pub(super) fn add(&mut self, id: StreamId) {
        let held = self.held.get_or_insert(Held { first: id, last: id, length: 0, entries_added: 0 });
        held.last = id;
        held.length += 1;
        held.entries_added += 1;
    }

    /// Counts the `removed` oldest events out; `next` is the oldest that stays, `None` when none does.
    pub(super) fn remove_oldest(&mut self, removed: u64, next: Option<StreamId>) {
        self.held = match (self.held, next) {
            (Some(held), Some(first)) => {
                Some(Held { first, length: held.length.saturating_sub(removed).max(1), ..held })
            }
            _ => None,
        };
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(80);
        value.extend_from_slice(&self.purged.to_be_bytes());
        value.extend_from_slice(&self.max_age_ms.unwrap_or(u64::MAX).to_be_bytes());
        value.extend_from_slice(&self.due_ms.unwrap_or(u64::MAX).to_be_bytes());
        if let Some(held) = self.held {
            value.extend_from_slice(&held.first.to_be_bytes());
            value.extend_from_slice(&held.last.to_be_bytes());
            value.extend_from_slice(&held.length.to_be_bytes());
            value.extend_from_slice(&held.entries_added.to_be_bytes());
        }
        value
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut fields = Fields::new(bytes);
        let purged = fields.id("the id of the last purge")?;
        let max_age_ms = fields.u64("a maximum age")?;
        let due_ms = fields.u64("a due time")?;
        let held = if bytes.len() > 32 { Some(decode_held(&mut fields)?) } else { None };
        fields.end("a channel state of 32 or 80 bytes")?;
        let some = |ms: u64| (ms != u64::MAX).then_some(ms);
        Ok(Self { held, purged, max_age_ms: some(max_age_ms), due_ms: some(due_ms) })
    }
}

fn decode_held(fields: &mut Fields<'_>) -> Result<Held, Corrupt> {
    let held = Held {
        first: fields.id("the channel's first id")?,
        last: fields.id("the channel's last id")?,
        length: fields.u64("the channel's length")?,
        entries_added: fields.u64("the number of entries added")?,
    };
    if held.first > held.last || held.length == 0 || held.length > held.entries_added {
        return Err(Corrupt("first <= last and 0 < length <= entries added"));
    }
    Ok(held)
}

/// The greatest position older than `age_ms` at `now_ms`.
pub(super) fn expired_at(now_ms: u64, age_ms: u64) -> StreamId {
    StreamId::start_of(now_ms.saturating_sub(age_ms))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> impl Strategy<Value = StreamId> {
        (0..1_u64 << 48, any::<u64>()).prop_map(|(ms, seq)| StreamId::new(ms, seq).unwrap())
    }

    proptest! {
        #[test]
        fn the_state_comes_back_as_it_was_stored(
            a in id(), b in id(), purged in id(), length in 1..u64::MAX, more: u32,
            max_age_ms in prop::option::of(0..u64::MAX), due_ms in prop::option::of(0..u64::MAX), empty: bool,
        ) {
            let held = Held {
                first: a.min(b), last: a.max(b), length, entries_added: length.saturating_add(more.into()),
            };
            let state = ChannelState { held: (!empty).then_some(held), purged, max_age_ms, due_ms };
            prop_assert_eq!(ChannelState::decode(&state.encode()), Ok(state));
        }

        #[test]
        fn any_bytes_are_a_state_or_an_error(bytes: Vec<u8>) {
            let _ = ChannelState::decode(&bytes);
        }
    }

    #[test]
    fn figures_that_contradict_each_other_are_refused() {
        let id = |ms| StreamId::new(ms, 0).unwrap();
        let held = Held { first: id(1), last: id(2), length: 2, entries_added: 2 };
        for held in [Held { first: id(3), ..held }, Held { length: 0, ..held }, Held { length: 3, ..held }] {
            let state = ChannelState { held: Some(held), ..ChannelState::default() };
            assert!(ChannelState::decode(&state.encode()).is_err(), "{held:?}");
        }
    }
}
