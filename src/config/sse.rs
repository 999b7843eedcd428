//! `[sse]`: what streams look like to their clients.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::value;

/// The `[sse]` section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sse {
    /// After so long without an event a heartbeat is sent.
    #[serde(
        deserialize_with = "value::duration::<_, 10, { value::HOUR }>",
        serialize_with = "value::print_duration"
    )]
    pub heartbeat_interval: Duration,
    /// What a heartbeat is.
    pub heartbeat: Heartbeat,
    /// What `retry:` tells clients: how long to wait before they reconnect.
    #[serde(
        deserialize_with = "value::duration::<_, 1, { value::HOUR }>",
        serialize_with = "value::print_duration"
    )]
    pub retry: Duration,
    /// A client that takes nothing of what is due, or answers nothing, for so long is disconnected.
    #[serde(
        deserialize_with = "value::duration::<_, 100, { value::HOUR }>",
        serialize_with = "value::print_duration"
    )]
    pub write_timeout: Duration,
    /// Streams end after about this long; `None` is never.
    #[serde(
        default,
        deserialize_with = "value::duration_or_none::<_, 100, { 365 * value::DAY }>",
        serialize_with = "value::print_duration_or_none"
    )]
    pub lifetime_max: Option<Duration>,
}

/// What a heartbeat is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Heartbeat {
    /// An event of type `heartbeat`, which moves the client's cursor and can be watched by scripts.
    Event,
    /// A comment line, which no script sees and which moves no cursor.
    Comment,
}
