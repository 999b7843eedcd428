//! `[telemetry]`: what the broker tells its operators.

use serde::{Deserialize, Deserializer, Serialize};

use super::value;
use crate::telemetry::parse_filter;

/// The `[telemetry]` section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// How log lines are written to stderr.
    pub log_format: LogFormat,
    /// Which log lines are written; `HEADWATER_LOG` in the environment goes before it.
    #[serde(deserialize_with = "log_filter")]
    pub log_filter: String,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

fn log_filter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    value::parsed(deserializer, |text| parse_filter(text).map(|_| text.to_owned()))
}
