//! `[fanout]`: how much of the channels' ends a node holds in memory.

use serde::{Deserialize, Serialize};

use super::{InvalidKey, value};

/// The `[fanout]` section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fanout {
    /// Most events that a channel's ring holds.
    #[serde(deserialize_with = "value::number::<_, usize, 1, 1_000_000>")]
    pub ring_events: usize,
    /// Most bytes that a channel's ring holds; its newest event always stays.
    #[serde(deserialize_with = "value::number::<_, usize, 1024, { 1 << 30 }>")]
    pub ring_bytes: usize,
    /// Most bytes that all rings and pages of this node hold together.
    #[serde(deserialize_with = "value::number::<_, usize, { 1 << 20 }, { 1 << 40 }>")]
    pub memory_bytes_max: usize,
}

impl Fanout {
    /// Checks what concerns several keys.
    pub(super) fn check(&self) -> Result<(), InvalidKey> {
        if self.memory_bytes_max < self.ring_bytes {
            let reason = format!(
                "must be at least fanout.ring_bytes ({}), or one ring exceeds the node's budget; it is {}",
                self.ring_bytes, self.memory_bytes_max
            );
            return Err(InvalidKey { key: "fanout.memory_bytes_max", reason });
        }
        Ok(())
    }
}
