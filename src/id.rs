//! Event ids: where an event stands in its partition's order, and how the outside writes that down.
//!
//! Inside, a position is a [`StreamId`], the `ms-seq` pair that Redis assigned (Redis documentation,
//! "Redis Streams", "Entry IDs"). Outside, an event is named by an [`EventId`]: a ULID whose timestamp is
//! `ms` (48 bit) and whose random part is `partition (16 bit) << 64 | seq (64 bit)`.
//!
//! Invariant: the two are a bijection, and within one partition ULID order, as text and as number, is
//! stream order. Neighbour: `cursor.rs` combines positions of several partitions.

use std::fmt;
use std::str::FromStr;

use ulid::Ulid;

/// Largest millisecond timestamp that fits a ULID's 48 bits (the year 10889).
pub const MS_MAX: u64 = (1 << 48) - 1;

/// Number of a partition, from 0. Fixed for a channel as long as the store's partition count is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u16);

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A position in a partition's order: milliseconds since the Unix epoch, then a sequence number.
///
/// Written `ms-seq`, as `redis-cli` shows it. Ordered as Redis orders stream entries.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    ms: u64,
    seq: u64,
}

/// Why a text is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Neither 26 Crockford base-32 characters nor `ms-seq`.
    #[error("expected a ULID of 26 characters or milliseconds-sequence, as in 1526919030474-0")]
    Malformed,
    /// The number does not fit: 128 bits for a ULID, 48 bits of milliseconds, 64 bits of sequence.
    #[error("the id is out of range: a ULID starts with 0-7, milliseconds have at most 48 bits")]
    OutOfRange,
}

impl StreamId {
    /// Before every event. As a cursor: all retained history.
    pub const ZERO: Self = Self { ms: 0, seq: 0 };
    /// After every event.
    pub const MAX: Self = Self { ms: MS_MAX, seq: u64::MAX };

    /// `None` when `ms` exceeds [`MS_MAX`].
    pub const fn new(ms: u64, seq: u64) -> Option<Self> {
        if ms > MS_MAX { None } else { Some(Self { ms, seq }) }
    }

    /// Milliseconds since the Unix epoch, by the clock of the store that assigned the id.
    pub const fn ms(self) -> u64 {
        self.ms
    }

    /// Sequence number within the millisecond.
    pub const fn seq(self) -> u64 {
        self.seq
    }

    /// The closest position before this one; [`StreamId::ZERO`] has none and answers itself.
    pub const fn before(self) -> Self {
        match (self.ms, self.seq) {
            (0, 0) => self,
            (ms, 0) => Self { ms: ms - 1, seq: u64::MAX },
            (ms, seq) => Self { ms, seq: seq - 1 },
        }
    }

    /// The position just before everything that happened at `ms` or later.
    pub const fn start_of(ms: u64) -> Self {
        let ms = if ms > MS_MAX { MS_MAX } else { ms };
        Self { ms, seq: 0 }.before()
    }

    /// The same position as a publicly known id.
    pub fn at(self, partition: Partition) -> EventId {
        let random = u128::from(partition.0) << 64 | u128::from(self.seq);
        EventId(Ulid::from_parts(self.ms, random))
    }

    /// Sixteen bytes whose lexicographic order is the order of ids.
    pub fn to_be_bytes(self) -> [u8; 16] {
        (u128::from(self.ms) << 64 | u128::from(self.seq)).to_be_bytes()
    }

    /// Inverse of [`StreamId::to_be_bytes`]; `None` for bytes that no id gives.
    pub fn from_be_bytes(bytes: [u8; 16]) -> Option<Self> {
        let wide = u128::from_be_bytes(bytes);
        Self::new((wide >> 64) as u64, wide as u64)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StreamId {
    type Err = InvalidId;

    /// Reads `ms-seq`. Only plain decimal digits count: no sign, no blank, nothing left out.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let (ms, seq) = text.split_once('-').ok_or(InvalidId::Malformed)?;
        let number = |digits: &str| {
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(InvalidId::Malformed);
            }
            digits.parse::<u64>().map_err(|_| InvalidId::OutOfRange)
        };
        Self::new(number(ms)?, number(seq)?).ok_or(InvalidId::OutOfRange)
    }
}

/// The public id of an event: partition and position as one ULID, 26 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(Ulid);

impl EventId {
    /// Length of the text form in bytes.
    pub const TEXT_LEN: usize = ulid::ULID_LEN;

    /// The partition whose order this id belongs to.
    pub fn partition(self) -> Partition {
        Partition((self.0.random() >> 64) as u16)
    }

    /// The position within the partition.
    pub fn stream_id(self) -> StreamId {
        StreamId { ms: self.0.timestamp_ms(), seq: self.0.random() as u64 }
    }

    /// The text form without an allocation.
    pub fn encode(self, buffer: &mut [u8; Self::TEXT_LEN]) -> &str {
        self.0.array_to_str(buffer)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.encode(&mut [0; Self::TEXT_LEN]))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EventId {
    type Err = InvalidId;

    /// Reads a ULID in either case. The `ulid` crate drops the two bits by which 26 characters exceed 128;
    /// they are refused here, or two texts would name one event.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let ulid = Ulid::from_string(text).map_err(|_| InvalidId::Malformed)?;
        if text.as_bytes()[0] > b'7' {
            return Err(InvalidId::OutOfRange);
        }
        Ok(Self(ulid))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream_id() -> impl Strategy<Value = StreamId> {
        (0..=MS_MAX, any::<u64>()).prop_map(|(ms, seq)| StreamId { ms, seq })
    }

    proptest! {
        #[test]
        fn ulid_and_stream_id_are_a_bijection(id in stream_id(), partition: u16) {
            let public = id.at(Partition(partition));
            prop_assert_eq!(public.stream_id(), id);
            prop_assert_eq!(public.partition(), Partition(partition));
            prop_assert_eq!(public.to_string().parse::<EventId>(), Ok(public));
            prop_assert_eq!(public.to_string().to_lowercase().parse::<EventId>(), Ok(public));
            prop_assert_eq!(id.to_string().parse::<StreamId>(), Ok(id));
            prop_assert_eq!(StreamId::from_be_bytes(id.to_be_bytes()), Some(id));
        }

        #[test]
        fn ulid_order_within_a_partition_is_stream_order(a in stream_id(), b in stream_id(), partition: u16) {
            let (x, y) = (a.at(Partition(partition)), b.at(Partition(partition)));
            prop_assert_eq!(a.cmp(&b), x.cmp(&y));
            prop_assert_eq!(a.cmp(&b), x.to_string().cmp(&y.to_string()));
            prop_assert_eq!(a.cmp(&b), a.to_be_bytes().cmp(&b.to_be_bytes()));
        }

        #[test]
        fn nothing_lies_between_an_id_and_the_one_before(id in stream_id()) {
            let before = id.before();
            prop_assert!(id == StreamId::ZERO || before < id);
            let next = if before.seq == u64::MAX { (before.ms + 1, 0) } else { (before.ms, before.seq + 1) };
            prop_assert!(id == StreamId::ZERO || next == (id.ms, id.seq));
        }

        #[test]
        fn any_text_is_an_id_or_a_clear_error(text in "\\PC{0,30}") {
            let _ = text.parse::<EventId>();
            let _ = text.parse::<StreamId>();
        }
    }

    #[test]
    fn texts_that_are_no_id_are_refused() {
        for text in ["", "1", "-", "1-", "-1", "+1-0", "1-+0", "1-0-0", " 1-0", "1-0 ", "a-0"] {
            assert_eq!(text.parse::<StreamId>(), Err(InvalidId::Malformed), "{text:?}");
        }
        for text in ["281474976710656-0", "1-18446744073709551616"] {
            assert_eq!(text.parse::<StreamId>(), Err(InvalidId::OutOfRange), "{text:?}");
        }
        for text in ["", "01JD7Q3ZK8", "01JD7Q3ZK8000000000000000U", "01JD7Q3ZK8000000000000000A0"] {
            assert_eq!(text.parse::<EventId>(), Err(InvalidId::Malformed), "{text:?}");
        }
        assert_eq!("81JD7Q3ZK8000000000000000A".parse::<EventId>(), Err(InvalidId::OutOfRange));
    }
}
