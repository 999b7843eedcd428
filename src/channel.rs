//! Channel names: validated at the edge, cheap to clone inside, and mapped to partitions.
//!
//! Invariant: a [`Channel`] made with [`Channel::parse`] can stand in a Redis key, a URL query and a
//! comma-separated list without quoting, and never names a system channel. Neighbours: `log.rs` stores by
//! channel, `pattern.rs` matches names.

use std::fmt;
use std::sync::Arc;

use crate::id::Partition;

/// Longest name in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 200;

/// The name of a log of events.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel(Arc<str>);

/// Why a text is no channel name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChannel {
    /// The name is empty.
    #[error("a channel name has at least one character")]
    Empty,
    /// The name is longer than [`NAME_BYTES_MAX`].
    #[error("a channel name has at most {NAME_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// The name contains a character that would need quoting somewhere on its way.
    #[error(
        "channel name {name:?} contains {character:?}: white space, control characters, commas and braces are not allowed"
    )]
    Character {
        /// The whole name.
        name: String,
        /// The first character that is refused.
        character: char,
    },
    /// The name belongs to a user's or a connection's own channel.
    #[error("channel name {0:?} starts with $: system channels are not addressed by name")]
    System(String),
}

impl Channel {
    /// Validates a name from outside.
    pub fn parse(name: &str) -> Result<Self, InvalidChannel> {
        if name.starts_with('$') {
            return Err(InvalidChannel::System(name.to_owned()));
        }
        Self::parse_stored(name)
    }

    /// A user's own channel.
    pub fn of_user(user: &str) -> Result<Self, InvalidChannel> {
        Self::parse_stored(&format!("$user:{user}"))
    }

    /// Validates a name that the store holds; it may be a system channel's.
    pub fn parse_stored(name: &str) -> Result<Self, InvalidChannel> {
        if name.is_empty() {
            return Err(InvalidChannel::Empty);
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(InvalidChannel::TooLong(name.len()));
        }
        let refused = |c: &char| c.is_whitespace() || c.is_control() || matches!(c, ',' | '{' | '}');
        match name.chars().find(refused) {
            Some(character) => Err(InvalidChannel::Character { name: name.to_owned(), character }),
            None => Ok(Self(name.into())),
        }
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a user's or a connection's own channel.
    pub fn is_system(&self) -> bool {
        self.0.starts_with('$')
    }

    /// Which of `partitions` partitions holds this channel: CRC-16/XMODEM of the name, as Redis Cluster hashes keys.
    pub fn partition(&self, partitions: u16) -> Partition {
        Partition(if partitions <= 1 { 0 } else { crc16(self.0.as_bytes()) % partitions })
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// CRC-16/XMODEM (polynomial 0x1021, initial value 0), see the Redis Cluster specification, appendix A.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0u16, |mut crc, byte| {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
        }
        crc
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_follow_the_redis_cluster_hash() {
        assert_eq!(crc16(b"123456789"), 0x31C3, "the check value of the specification");
        assert_eq!(Channel::parse("orders").unwrap().partition(1), Partition(0));
        assert!(Channel::parse("orders").unwrap().partition(32).0 < 32);
    }

    #[test]
    fn names_that_would_need_quoting_are_refused() {
        for name in
            ["", " ", "a b", "a\nb", "a,b", "a{b", "a}b", "a\u{7f}", "a\u{85}b", "\u{2028}", "$user:1", "$"]
        {
            assert!(Channel::parse(name).is_err(), "{name:?}");
        }
        assert!(Channel::parse(&"x".repeat(201)).is_err());
        for name in ["orders", "a/b", "a:b", "a.b-c_d*", "Grüße", "日本", "%2F", "a$b", &"x".repeat(200)]
        {
            assert_eq!(Channel::parse(name).unwrap().as_str(), name);
        }
        assert!(Channel::parse_stored("$user:42").is_ok());
    }
}
