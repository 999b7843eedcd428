//! Cursors: the position that a client resumes from, as it stands in `id:` and comes back as `Last-Event-ID`.
//!
//! With one partition a cursor is one ULID and exact for any set of channels. With several, it carries one
//! ULID per partition joined by `.`, the delivered event's own first; a partition that it does not name
//! starts one second before its earliest timestamp, so that nothing is missed (at least once there, exactly
//! once elsewhere). Neighbours: `id.rs` below, `session.rs` above.

use std::fmt;

use smallvec::SmallVec;

use crate::id::{EventId, Partition, StreamId};

/// How far before its smallest timestamp a cursor begins in a partition that it does not name, in milliseconds.
const UNNAMED_PARTITION_SLACK_MS: u64 = 1_000;

/// Where a subscriber asks to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// From now on.
    Latest,
    /// Everything that is retained. Asking for it is never a gap.
    Earliest,
    /// Right after this cursor.
    After(Cursor),
    /// With the last `n` events of each channel.
    Rewind(u32),
}

/// One position per partition; at least one, no partition twice.
#[derive(Clone, PartialEq, Eq)]
pub struct Cursor(SmallVec<[EventId; 1]>);

/// The text is no cursor, or one of a store with other partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this store")]
pub struct InvalidCursor;

impl Cursor {
    /// A cursor of a store with one partition.
    pub fn single(id: EventId) -> Self {
        Self(SmallVec::from_buf([id]))
    }

    /// Combines positions; `first` names the partition whose id is written first.
    ///
    /// # Panics
    /// When `positions` is empty or names a partition twice.
    pub fn new(positions: impl IntoIterator<Item = (Partition, StreamId)>, first: Partition) -> Self {
        let mut ids: SmallVec<[EventId; 1]> = positions.into_iter().map(|(p, id)| id.at(p)).collect();
        ids.sort_by_key(|id| (id.partition() != first, id.partition()));
        assert!(!ids.is_empty(), "a cursor has at least one position");
        assert!(ids.windows(2).all(|w| w[0].partition() != w[1].partition()), "a partition stands once");
        Self(ids)
    }

    /// Reads a cursor of a store with `partitions` partitions.
    ///
    /// `ms-seq` is accepted where there is one partition, because that is what `redis-cli` prints.
    pub fn parse(text: &str, partitions: u16) -> Result<Self, InvalidCursor> {
        if partitions == 1
            && let Ok(id) = text.parse::<StreamId>()
        {
            return Ok(Self::single(id.at(Partition(0))));
        }
        let mut ids = SmallVec::<[EventId; 1]>::new();
        for part in text.split('.') {
            let id: EventId = part.parse().map_err(|_| InvalidCursor)?;
            let repeated = ids.iter().any(|known| known.partition() == id.partition());
            if id.partition().0 >= partitions || repeated {
                return Err(InvalidCursor);
            }
            ids.push(id);
        }
        Ok(Self(ids))
    }

    /// The position to resume from in `partition`.
    pub fn position(&self, partition: Partition) -> StreamId {
        if let Some(id) = self.0.iter().find(|id| id.partition() == partition) {
            return id.stream_id();
        }
        let smallest = self.0.iter().map(|id| id.stream_id().ms()).min().unwrap_or(0);
        StreamId::start_of(smallest.saturating_sub(UNNAMED_PARTITION_SLACK_MS))
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, id) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            fmt::Display::fmt(id, f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Start {
    /// Reads what a client sent as its cursor; an empty text is what a browser without history sends.
    pub fn parse(text: &str, partitions: u16) -> Result<Self, InvalidCursor> {
        match text {
            "" | "latest" => Ok(Self::Latest),
            "earliest" => Ok(Self::Earliest),
            text => match Cursor::parse(text, partitions)? {
                // The zero cursor is what a connection from `earliest` was told as its start.
                Cursor(ids) if ids.iter().all(|id| id.stream_id() == StreamId::ZERO) => Ok(Self::Earliest),
                cursor => Ok(Self::After(cursor)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::id::MS_MAX;

    fn positions() -> impl Strategy<Value = BTreeMap<u16, (u64, u64)>> {
        prop::collection::btree_map(0u16..40, (2_000..=MS_MAX, any::<u64>()), 1..10)
    }

    proptest! {
        #[test]
        fn a_cursor_reads_back_as_it_was_written(positions in positions(), pick: prop::sample::Index) {
            let first = *positions.keys().nth(pick.index(positions.len())).unwrap();
            let at = |(ms, seq)| StreamId::new(ms, seq).unwrap();
            let cursor = Cursor::new(positions.iter().map(|(p, id)| (Partition(*p), at(*id))), Partition(first));
            let text = cursor.to_string();
            prop_assert!(text.starts_with(&at(positions[&first]).at(Partition(first)).to_string()));
            let read = Cursor::parse(&text, 40).unwrap();
            prop_assert_eq!(&read, &cursor);
            for (p, id) in &positions {
                prop_assert_eq!(read.position(Partition(*p)), at(*id));
            }
            let smallest = positions.values().map(|(ms, _)| *ms).min().unwrap();
            prop_assert!(read.position(Partition(99)) < StreamId::new(smallest - 999, 0).unwrap());
            prop_assert!(Cursor::parse(&text, *positions.keys().max().unwrap()).is_err());
        }

        #[test]
        fn any_text_is_a_cursor_or_an_error(text in "\\PC{0,60}", partitions in 1u16..3) {
            let _ = Start::parse(&text, partitions);
        }
    }

    #[test]
    fn words_and_stream_ids_are_understood_where_they_are_unambiguous() {
        assert_eq!(Start::parse("", 1), Ok(Start::Latest));
        assert_eq!(Start::parse("latest", 4), Ok(Start::Latest));
        assert_eq!(Start::parse("earliest", 4), Ok(Start::Earliest));
        assert_eq!(Start::parse("00000000000000000000000000", 1), Ok(Start::Earliest));
        assert_eq!(Start::parse("0-0", 1), Ok(Start::Earliest));
        let id = StreamId::new(1_526_919_030_474, 55).unwrap().at(Partition(0));
        assert_eq!(Start::parse("1526919030474-55", 1), Ok(Start::After(Cursor::single(id))));
        assert_eq!(Start::parse("1526919030474-55", 2), Err(InvalidCursor));
    }

    #[test]
    fn a_partition_named_twice_is_no_cursor() {
        let id = StreamId::new(5, 5).unwrap().at(Partition(1));
        assert_eq!(Cursor::parse(&format!("{id}.{id}"), 4), Err(InvalidCursor));
        assert_eq!(Cursor::parse(&format!("{id}."), 4), Err(InvalidCursor));
    }
}
