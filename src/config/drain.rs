//! `[drain]`: how the broker leaves.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::value;

/// The `[drain]` section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// How long to report unready while still serving.
    #[serde(
        deserialize_with = "value::duration::<_, 0, { value::HOUR }>",
        serialize_with = "value::print_duration"
    )]
    pub delay: Duration,
    /// After the delay, how long sessions and requests have to end.
    #[serde(
        deserialize_with = "value::duration::<_, 0, { value::HOUR }>",
        serialize_with = "value::print_duration"
    )]
    pub deadline: Duration,
}
