//! Idempotency keys as they are stored: which id a key got, and until when that counts.
//!
//! ```text
//! key     <bytes of the channel's name, decimal>:<channel>:<key>
//! value   id, 16 bytes, expires ms u64
//! ```
//!
//! Invariant: two pairs of channel and key never share a stored key, since the length says where the channel
//! ends (`a:b` and `c` differ from `a` and `b:c`). Keys outlive purges; `sweep.rs` removes expired ones.

use super::codec::{Corrupt, Fields};
use crate::channel::Channel;
use crate::id::StreamId;

/// Longest stored key in bytes; the store's own limit is 65,535 and `due.rs` puts 9 more in front.
pub(super) const KEY_BYTES_MAX: usize = 65_000;

/// What a used key stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UsedKey {
    /// The id that its first use was given.
    pub(super) id: StreamId,
    /// From then on, in milliseconds since the epoch, the key counts as new.
    pub(super) expires_ms: u64,
}

/// The stored key.
pub(super) fn key(channel: &Channel, key: &str) -> Vec<u8> {
    let name = channel.as_str();
    format!("{}:{name}:{key}", name.len()).into_bytes()
}

impl UsedKey {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = self.id.to_be_bytes().to_vec();
        value.extend_from_slice(&self.expires_ms.to_be_bytes());
        value
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut fields = Fields::new(bytes);
        let id = fields.id("the id of an idempotency key")?;
        let expires_ms = fields.u64("the expiry of an idempotency key")?;
        fields.end("an idempotency record of 24 bytes")?;
        Ok(Self { id, expires_ms })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_used_key_comes_back_as_it_was_stored(ms in 0..1_u64 << 48, seq: u64, expires_ms: u64) {
            let used = UsedKey { id: StreamId::new(ms, seq).unwrap(), expires_ms };
            prop_assert_eq!(UsedKey::decode(&used.encode()), Ok(used));
        }

        #[test]
        fn different_pairs_have_different_keys(
            a in ("[ab:1]{1,4}", "[ab:1]{0,4}"), b in ("[ab:1]{1,4}", "[ab:1]{0,4}"),
        ) {
            let stored = |pair: &(String, String)| key(&Channel::parse(&pair.0).unwrap(), &pair.1);
            prop_assert_eq!(a == b, stored(&a) == stored(&b));
        }
    }
}
