//! Stamps: what the data of a measured event says, `#sequence.number@microseconds;` and padding.
//!
//! Each sequence is numbered from 0 without holes, so whoever receives it can tell what is lost or comes twice,
//! and how long it was on its way. The stamp is found wherever in its line a server puts it.

use std::io::Write;

use memchr::memchr;

/// Data shorter than this would not hold every stamp.
pub(super) const SIZE_MIN: usize = 48;

/// What an event says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Which publisher numbered it.
    pub(super) sequence: usize,
    /// From 0.
    pub(super) number: u64,
    /// When it was sent, in microseconds since the run began.
    pub(super) sent_us: u64,
}

impl Stamp {
    /// The data of the event, `size` bytes of it.
    pub(super) fn write(self, size: usize, data: &mut Vec<u8>) {
        data.clear();
        let Self { sequence, number, sent_us } = self;
        write!(data, "#{sequence}.{number}@{sent_us};").expect("a Vec grows");
        data.resize(size.max(data.len()), b'x');
    }

    /// Reads the stamp in a line.
    pub(super) fn find(line: &[u8]) -> Option<Self> {
        let rest = &line[memchr(b'#', line)? + 1..];
        let (sequence, rest) = number(rest, b'.')?;
        let (number_of, rest) = number(rest, b'@')?;
        let (sent_us, _) = number(rest, b';')?;
        Some(Self { sequence: usize::try_from(sequence).ok()?, number: number_of, sent_us })
    }
}

/// Decimal digits up to `end`, and what follows.
fn number(bytes: &[u8], end: u8) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'0'..=b'9' => value = value.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?,
            _ if *byte == end && at > 0 => return Some((value, &bytes[at + 1..])),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_stamp_is_found_in_whatever_a_server_makes_of_it(
            sequence in 0..1000_usize, number: u32, sent_us in 0..u64::from(u32::MAX) * 1000, size in SIZE_MIN..400,
        ) {
            let stamp = Stamp { sequence, number: u64::from(number), sent_us };
            let mut data = vec![b'?'; 3];
            stamp.write(size, &mut data);
            prop_assert_eq!(data.len(), size);
            for (before, after) in [("data: ", ""), ("data: {\"text\":\"", "\"}")] {
                let line = [before.as_bytes(), &data, after.as_bytes()].concat();
                prop_assert_eq!(Stamp::find(&line), Some(stamp));
            }
        }

        #[test]
        fn anything_else_is_none(line in prop::collection::vec(any::<u8>(), 0..40)) {
            let found = Stamp::find(&line);
            prop_assert!(found.is_none() || line.contains(&b'@'));
        }
    }

    #[test]
    fn halves_of_stamps_are_none() {
        for line in [
            "data: #",
            "data: #1",
            "data: #1.",
            "data: #1.2@",
            "data: #1.2@3",
            "data: #.2@3;",
            "data: 1.2@3;",
        ] {
            assert_eq!(Stamp::find(line.as_bytes()), None, "{line}");
        }
    }
}
