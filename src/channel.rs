//! Channel names: validated at the edge, cheap to clone inside, and mapped to partitions.
//!
//! Invariant: a [`Channel`] made with [`Channel::parse`] can stand in a Redis key, a URL query and a
//! comma-separated list without quoting, and never names a system channel; so can a user's own channel, whose name
//! is the user's id with whatever would need quoting percent-encoded, and no two users share one. Neighbours:
//! `log.rs` stores by channel, `pattern.rs` matches names.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::id::Partition;

/// Longest name in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 200;

/// Longest user id in bytes of UTF-8, as `OpenID` Connect bounds `sub` (Core 1.0, section 2).
pub const USER_BYTES_MAX: usize = 255;

/// What every user's own channel begins with.
const USER_PREFIX: &str = "$user:";

/// Longest name of a system channel: a user's whose every byte had to be encoded.
const SYSTEM_NAME_BYTES_MAX: usize = USER_PREFIX.len() + 3 * USER_BYTES_MAX;

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
    /// There is no such user.
    #[error(transparent)]
    User(#[from] InvalidUser),
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

/// Why a text is no user id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a user id has 1 to {USER_BYTES_MAX} bytes and no control characters")]
pub struct InvalidUser;

/// Validates the id of a user: a token's `sub`, or what stands in a path.
pub fn check_user(user: &str) -> Result<(), InvalidUser> {
    if user.is_empty() || user.len() > USER_BYTES_MAX || user.chars().any(char::is_control) {
        return Err(InvalidUser);
    }
    Ok(())
}

/// A user's id as it stands in a channel name: what a name may not have, and `%`, percent-encoded byte by byte.
pub fn escape_user(user: &str) -> Cow<'_, str> {
    let is_escaped = |c: char| c == '%' || needs_quoting(c);
    if !user.contains(is_escaped) {
        return Cow::Borrowed(user);
    }
    let mut escaped = String::with_capacity(user.len() + 8);
    for character in user.chars() {
        if is_escaped(character) {
            let mut utf8 = [0; 4];
            for byte in character.encode_utf8(&mut utf8).bytes() {
                escaped.extend(['%', hex_digit(byte >> 4), hex_digit(byte & 0xF)]);
            }
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

fn hex_digit(value: u8) -> char {
    char::from_digit(u32::from(value), 16).expect("half a byte is a digit").to_ascii_uppercase()
}

/// Whether a character would need quoting somewhere on a name's way.
fn needs_quoting(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, ',' | '{' | '}')
}

impl Channel {
    /// Validates a name from outside.
    pub fn parse(name: &str) -> Result<Self, InvalidChannel> {
        if name.starts_with('$') {
            return Err(InvalidChannel::System(name.to_owned()));
        }
        Self::parse_stored(name)
    }

    /// A user's own channel. Every user id has one, and each another.
    pub fn of_user(user: &str) -> Result<Self, InvalidChannel> {
        check_user(user)?;
        Self::parse_stored(&format!("{USER_PREFIX}{}", escape_user(user)))
    }

    /// Validates a name that the store holds; it may be a system channel's.
    pub fn parse_stored(name: &str) -> Result<Self, InvalidChannel> {
        if name.is_empty() {
            return Err(InvalidChannel::Empty);
        }
        let bytes_max = if name.starts_with('$') { SYSTEM_NAME_BYTES_MAX } else { NAME_BYTES_MAX };
        if name.len() > bytes_max {
            return Err(InvalidChannel::TooLong(name.len()));
        }
        match name.chars().find(|c| needs_quoting(*c)) {
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
    use proptest::prelude::*;

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

    #[test]
    fn whoever_a_token_may_be_for_has_a_channel_and_others_are_refused() {
        for (user, name) in [
            ("42", "$user:42"),
            ("auth0|5f7c8ec7c33c6c004bbafe82", "$user:auth0|5f7c8ec7c33c6c004bbafe82"),
            ("ann@example.com", "$user:ann@example.com"),
            ("Ann Müller", "$user:Ann%20Müller"),
            ("cn=ann,dc={x}", "$user:cn=ann%2Cdc=%7Bx%7D"),
            ("a%20b", "$user:a%2520b"),
            ("a\u{2003}b", "$user:a%E2%80%83b"),
        ] {
            assert_eq!(Channel::of_user(user).unwrap().as_str(), name);
        }
        for user in [&" ".repeat(USER_BYTES_MAX), &"x".repeat(USER_BYTES_MAX), &"\u{2003}".repeat(85)] {
            assert_eq!(Channel::of_user(user).map(|channel| channel.is_system()), Ok(true), "{user:?}");
        }
        for user in ["", "a\nb", "\0", "\u{85}", &"x".repeat(USER_BYTES_MAX + 1)] {
            assert_eq!(Channel::of_user(user), Err(InvalidChannel::User(InvalidUser)), "{user:?}");
        }
    }

    proptest! {
        /// Seen to fail when spaces, commas and braces are not escaped, which was the case, and when `%` is not.
        #[test]
        fn every_user_has_a_channel_and_no_two_share_one(
            one in "[ab%20,{} \u{2003}]{1,12}|\\PC{1,20}"
        ) {
            // Whoever is most likely to be taken for the first.
            let other = escape_user(&one);
            let (ones, others) = (Channel::of_user(&one).unwrap(), Channel::of_user(&other).unwrap());
            prop_assert_eq!(ones == others, one == other);
            prop_assert_eq!(Channel::parse_stored(ones.as_str()), Ok(ones));
        }
    }
}
