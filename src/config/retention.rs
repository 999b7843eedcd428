//! `[retention]`: how much of a channel is kept, and exceptions by name.
//!
//! Neighbour: `log/retention.rs` holds the rules as the rest of the broker knows them.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::value::{self, Limit};
use crate::channel::Channel;
use crate::log::retention::{Retention as Kept, RetentionRule, RetentionRules};
use crate::pattern::Pattern;

/// Largest length that can be asked for.
const LENGTH_MAX: u64 = 1_000_000_000;

/// Largest age that can be asked for, in milliseconds.
const AGE_MS_MAX: u64 = 3_650 * value::DAY;

/// The `[retention]` section: what holds for channels that no rule names.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// At least this many of the newest events; `None` is no limit.
    #[serde(
        deserialize_with = "value::number_or_none::<_, u64, 1, LENGTH_MAX>",
        serialize_with = "value::print_number_or_none"
    )]
    pub max_length: Option<u64>,
    /// Older events are gone; `None` is no limit.
    #[serde(
        deserialize_with = "value::duration_or_none::<_, 100, AGE_MS_MAX>",
        serialize_with = "value::print_duration_or_none"
    )]
    pub max_age: Option<Duration>,
    /// Exceptions; the first whose pattern matches counts.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// One `[[retention.rules]]`: what it leaves out holds as in `[retention]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Exact name, or a glob in which `*` matches any run of characters.
    #[serde(deserialize_with = "pattern")]
    pub pattern: String,
    /// As in the section.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "value::number_limit::<_, 1, LENGTH_MAX>",
        serialize_with = "value::print_number_limit"
    )]
    pub max_length: Option<Limit<u64>>,
    /// As in the section.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "value::duration_limit::<_, 100, AGE_MS_MAX>",
        serialize_with = "value::print_duration_limit"
    )]
    pub max_age: Option<Limit<Duration>>,
}

impl Retention {
    /// The same as the log needs it.
    pub fn to_rules(&self) -> RetentionRules {
        let default = Kept { max_length: self.max_length, max_age: self.max_age };
        let rules = self.rules.iter().map(|rule| RetentionRule {
            pattern: Pattern::new(&rule.pattern),
            retention: Kept {
                max_length: rule.max_length.map_or(default.max_length, Limit::into_option),
                max_age: rule.max_age.map_or(default.max_age, Limit::into_option),
            },
        });
        RetentionRules::new(rules.collect(), default)
    }
}

/// A pattern that is no name, once its `*` are taken literally, matches no channel: most likely a mistake.
fn pattern<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    value::parsed(deserializer, |text| match Channel::parse_stored(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(e) => Err(format!("pattern {text:?} can match no channel: {e}")),
    })
}
