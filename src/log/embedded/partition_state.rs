//! What the partition remembers: its last id and its epoch. Written with every append, in the same batch.
//!
//! ```text
//! key "0"   value   last id, 16 bytes, epoch, 16 bytes
//! ```
//!
//! Invariant: `last` never goes back, whatever the clock, a purge or a restart does, so no id is given twice.

use super::codec::{Corrupt, Fields};
use crate::id::{MS_MAX, StreamId};

/// The key, for the one partition there is.
pub(super) const KEY: &[u8] = b"0";

/// Last id and epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartitionState {
    /// The newest id given to an event or a marker.
    pub(super) last: StreamId,
    /// The id at which the history last began.
    pub(super) epoch: StreamId,
}

impl PartitionState {
    /// A history that begins at `now_ms`.
    pub(super) fn begin(now_ms: u64) -> Self {
        let first = next_id(StreamId::ZERO, now_ms);
        Self { last: first, epoch: first }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        [self.last.to_be_bytes(), self.epoch.to_be_bytes()].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut fields = Fields::new(bytes);
        let last = fields.id("the partition's last id")?;
        let epoch = fields.id("the partition's epoch")?;
        fields.end("a partition state of 32 bytes")?;
        Ok(Self { last, epoch })
    }
}

/// The id that follows `last` at `now_ms` by the clock, as Redis assigns `*`: never less than `last`.
///
/// The clock is held one millisecond below the greatest possible, so that callers that refuse to go on once
/// `last` has reached [`MS_MAX`] always find a next id.
pub(super) fn next_id(last: StreamId, now_ms: u64) -> StreamId {
    let now_ms = now_ms.min(MS_MAX - 1);
    let (ms, seq) = if now_ms > last.ms() {
        (now_ms, 0)
    } else {
        last.seq().checked_add(1).map_or((last.ms() + 1, 0), |seq| (last.ms(), seq))
    };
    StreamId::new(ms, seq).unwrap_or(StreamId::MAX)
}

/// Whether ids after `last` are left. Only a damaged record or a wild clock can use them up.
pub(super) fn has_room(last: StreamId) -> bool {
    last.ms() < MS_MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_state_comes_back_as_it_was_stored(a in (0..=MS_MAX, any::<u64>()), b in (0..=MS_MAX, any::<u64>())) {
            let id = |(ms, seq)| StreamId::new(ms, seq).unwrap();
            let state = PartitionState { last: id(a), epoch: id(b) };
            prop_assert_eq!(PartitionState::decode(&state.encode()), Ok(state));
        }

        #[test]
        fn ids_increase_whatever_the_clock_says(start in (0..MS_MAX, any::<u64>()), clock: Vec<u64>) {
            let mut last = StreamId::new(start.0, start.1).unwrap();
            for now in clock {
                prop_assume!(has_room(last));
                let next = next_id(last, now);
                prop_assert!(next > last);
                last = next;
            }
        }
    }

    #[test]
    fn a_full_millisecond_goes_on_in_the_next() {
        let last = StreamId::new(5, u64::MAX).unwrap();
        assert_eq!(next_id(last, 5), StreamId::new(6, 0).unwrap());
        assert_eq!(next_id(last, 4), StreamId::new(6, 0).unwrap());
        assert_eq!(next_id(last, 7), StreamId::new(7, 0).unwrap());
    }
}
