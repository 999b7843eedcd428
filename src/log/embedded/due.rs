//! What is to be removed, and when: an index by time that the sweep reads from the front.
//!
//! ```text
//! key     due ms u64, kind u8, then
//! kind    1 channel, look for expired events: its name
//!         2 idempotency key: as it is stored
//!         3 leftovers of a purge: the last id to remove, 16 bytes, the channel's name
//! value   empty; for leftovers the id to start from, 16 bytes
//! ```
//! Leftovers carry an id in the key, since a channel may be purged twice within a millisecond.
//!
//! Invariant: whatever can expire has an entry at or before the moment it does. An entry may be stale (its
//! channel was scheduled anew, its key used again): the sweep compares it with what it names.

use super::codec::{Corrupt, Fields};
use crate::channel::Channel;
use crate::id::StreamId;

const KIND_CHANNEL: u8 = 1;
const KIND_KEY: u8 = 2;
const KIND_LEFTOVERS: u8 = 3;

/// Something to look at when its time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// A channel whose oldest event, or whose purge marker, may have expired.
    Channel(Channel),
    /// An idempotency key, as stored, that may have expired.
    Key(Vec<u8>),
    /// Events of a purged channel, from one id through another, both included.
    Leftovers(Channel, StreamId, StreamId),
}

impl Due {
    /// Key and value of the entry.
    pub(super) fn encode(&self, due_ms: u64) -> (Vec<u8>, Vec<u8>) {
        let (kind, through, name) = match self {
            Self::Channel(channel) => (KIND_CHANNEL, None, channel.as_str().as_bytes()),
            Self::Key(key) => (KIND_KEY, None, key.as_slice()),
            Self::Leftovers(channel, _, through) => {
                (KIND_LEFTOVERS, Some(through.to_be_bytes()), channel.as_str().as_bytes())
            }
        };
        let mut key = Vec::with_capacity(25 + name.len());
        key.extend_from_slice(&due_ms.to_be_bytes());
        key.push(kind);
        key.extend_from_slice(through.as_ref().map_or(&[], <[u8; 16]>::as_slice));
        key.extend_from_slice(name);
        let value = match self {
            Self::Leftovers(_, from, _) => from.to_be_bytes().to_vec(),
            Self::Channel(_) | Self::Key(_) => Vec::new(),
        };
        (key, value)
    }

    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<(u64, Self), Corrupt> {
        let mut fields = Fields::new(key);
        let due_ms = fields.u64("a due time")?;
        let kind = fields.u8("a kind of due entry")?;
        let due = match kind {
            KIND_CHANNEL => Self::Channel(channel(fields.rest())?),
            KIND_KEY => Self::Key(fields.rest().to_vec()),
            KIND_LEFTOVERS => {
                let through = fields.id("where leftovers end")?;
                let from = Fields::new(value).id("where leftovers start")?;
                Self::Leftovers(channel(fields.rest())?, from, through)
            }
            _ => return Err(Corrupt("a known kind of due entry")),
        };
        Ok((due_ms, due))
    }
}

fn channel(name: &[u8]) -> Result<Channel, Corrupt> {
    let name = std::str::from_utf8(name).map_err(|_| Corrupt("a channel name"))?;
    Channel::parse_stored(name).map_err(|_| Corrupt("a channel name"))
}

/// The key that every entry due at `due_ms` or later is at or after.
pub(super) fn key_from(due_ms: u64) -> Vec<u8> {
    due_ms.to_be_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn due() -> impl Strategy<Value = Due> {
        let channel = || "[a-z:]{1,9}".prop_map(|name| Channel::parse_stored(&name).unwrap());
        let id = || (0..1_u64 << 48, any::<u64>()).prop_map(|(ms, seq)| StreamId::new(ms, seq).unwrap());
        prop_oneof![
            channel().prop_map(Due::Channel),
            any::<Vec<u8>>().prop_map(Due::Key),
            (channel(), id(), id()).prop_map(|(channel, a, b)| Due::Leftovers(channel, a, b)),
        ]
    }

    proptest! {
        #[test]
        fn an_entry_comes_back_as_it_was_stored(due in due(), due_ms: u64) {
            let (key, value) = due.encode(due_ms);
            prop_assert_eq!(Due::decode(&key, &value), Ok((due_ms, due)));
        }

        #[test]
        fn entries_sort_by_time(a in (due(), any::<u64>()), b in (due(), any::<u64>())) {
            if a.1 < b.1 {
                prop_assert!(a.0.encode(a.1).0 < b.0.encode(b.1).0);
                prop_assert!(a.0.encode(a.1).0 < key_from(b.1));
            }
        }

        #[test]
        fn any_bytes_are_an_entry_or_an_error(key: Vec<u8>, value: Vec<u8>) {
            let _ = Due::decode(&key, &value);
        }
    }
}
