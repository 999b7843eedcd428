//! `[publish]`: how much may be published at once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{InvalidKey, value};

/// The `[publish]` section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Largest data of one event, in bytes of UTF-8.
    #[serde(deserialize_with = "value::number::<_, usize, 1, { 16 << 20 }>")]
    pub event_bytes_max: usize,
    /// Most events in one array.
    #[serde(deserialize_with = "value::number::<_, usize, 1, 100_000>")]
    pub batch_events_max: usize,
    /// Largest body of one array, in bytes.
    #[serde(deserialize_with = "value::number::<_, usize, 1, { 256 << 20 }>")]
    pub batch_bytes_max: usize,
    /// How long an idempotency key counts when the publisher says nothing else.
    #[serde(
        deserialize_with = "value::duration::<_, 100, { value::DAY }>",
        serialize_with = "value::print_duration"
    )]
    pub idempotency_window: Duration,
}

impl Publish {
    /// Checks what concerns several keys.
    pub(super) fn check(&self) -> Result<(), InvalidKey> {
        if self.batch_bytes_max < self.event_bytes_max {
            let reason = format!(
                "must be at least publish.event_bytes_max ({}), or the largest event fits no array; it is {}",
                self.event_bytes_max, self.batch_bytes_max
            );
            return Err(InvalidKey { key: "publish.batch_bytes_max", reason });
        }
        Ok(())
    }
}
