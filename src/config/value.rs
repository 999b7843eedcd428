//! How single values are read and printed: durations with units, numbers with ranges, secrets.
//!
//! Invariant: no error and no printed form repeats the value of a [`Secret`]. Neighbours: the sections name
//! these functions in `deserialize_with` and `serialize_with`, with the range beside the field.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};

/// Milliseconds in a second, a minute, an hour and a day: the unit of ranges of durations.
pub(super) const SECOND: u64 = 1_000;
pub(super) const MINUTE: u64 = 60 * SECOND;
pub(super) const HOUR: u64 = 60 * MINUTE;
pub(super) const DAY: u64 = 24 * HOUR;

/// The word for "no limit" where a limit may stand. TOML has no null.
const NO_LIMIT: &str = "none";

/// What stands for a secret wherever it would be printed.
const REDACTED: &str = "<redacted>";

/// A text that is never printed: `Debug`, `Display` and serialization show a placeholder.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text as it is.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Do not log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        hidden_text(deserializer).map(Self)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

/// A limit that a rule sets itself; a rule that sets none inherits its section's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit<T> {
    /// `"none"`.
    Unlimited,
    /// Up to this much.
    At(T),
}

impl<T> Limit<T> {
    fn from_option(limit: Option<T>) -> Self {
        limit.map_or(Self::Unlimited, Self::At)
    }

    /// `None` is no limit.
    pub fn into_option(self) -> Option<T> {
        match self {
            Self::Unlimited => None,
            Self::At(limit) => Some(limit),
        }
    }
}

/// What a scalar of the configuration can be before its key says what it must be.
enum Scalar {
    Integer(i128),
    Text(String),
}

struct ScalarVisitor(&'static str);

impl Visitor<'_> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Scalar, E> {
        Ok(Scalar::Integer(number.into()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Scalar, E> {
        Ok(Scalar::Integer(number.into()))
    }

    fn visit_i128<E: Error>(self, number: i128) -> Result<Scalar, E> {
        Ok(Scalar::Integer(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(text.to_owned()))
    }
}

/// Reads a duration such as `"30s"` or `"1h 30m"` that lies within the range of milliseconds.
pub(super) fn duration<'de, D, const MIN_MS: u64, const MAX_MS: u64>(
    deserializer: D,
) -> Result<Duration, D::Error>
where
    D: Deserializer<'de>,
{
    match deserializer.deserialize_any(ScalarVisitor("a duration such as \"30s\""))? {
        Scalar::Text(text) => checked_duration::<MIN_MS, MAX_MS>(&text).map_err(Error::custom),
        Scalar::Integer(number) => {
            Err(Error::custom(format!("a duration needs its unit, as in \"{number}s\" or \"{number}ms\"")))
        }
    }
}

/// Like [`duration`], or the word for no limit.
pub(super) fn duration_or_none<'de, D, const MIN_MS: u64, const MAX_MS: u64>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error>
where
    D: Deserializer<'de>,
{
    match deserializer.deserialize_any(ScalarVisitor("a duration such as \"30s\", or \"none\""))? {
        Scalar::Text(text) if text == NO_LIMIT => Ok(None),
        Scalar::Text(text) => checked_duration::<MIN_MS, MAX_MS>(&text).map(Some).map_err(Error::custom),
        Scalar::Integer(number) => Err(Error::custom(format!(
            "a duration needs its unit, as in \"{number}s\"; no limit is written \"none\""
        ))),
    }
}

fn checked_duration<const MIN_MS: u64, const MAX_MS: u64>(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|e| format!("{text:?} is not a duration such as \"30s\", \"500ms\" or \"1h 30m\": {e}"))?;
    let (min, max) = (Duration::from_millis(MIN_MS), Duration::from_millis(MAX_MS));
    if duration < min || duration > max {
        let (min, max) = (humantime::format_duration(min), humantime::format_duration(max));
        return Err(format!("must lie between {min} and {max}, not {text:?}"));
    }
    Ok(duration)
}

/// Reads a whole number within the range.
pub(super) fn number<'de, D, T, const MIN: u64, const MAX: u64>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    match deserializer.deserialize_any(ScalarVisitor("a whole number"))? {
        Scalar::Integer(number) => checked_number::<T, MIN, MAX>(number).map_err(Error::custom),
        Scalar::Text(text) => Err(Error::custom(format!("expected a whole number, found the text {text:?}"))),
    }
}

/// Like [`number`], for a key without a default.
pub(super) fn optional_number<'de, D, T, const MIN: u64, const MAX: u64>(
    deserializer: D,
) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    number::<D, T, MIN, MAX>(deserializer).map(Some)
}

/// Like [`number`], or the word for no limit.
pub(super) fn number_or_none<'de, D, T, const MIN: u64, const MAX: u64>(
    deserializer: D,
) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    match deserializer.deserialize_any(ScalarVisitor("a whole number, or \"none\""))? {
        Scalar::Text(text) if text == NO_LIMIT => Ok(None),
        Scalar::Integer(number) => checked_number::<T, MIN, MAX>(number).map(Some).map_err(Error::custom),
        Scalar::Text(text) => {
            Err(Error::custom(format!("expected a whole number, or \"none\" for no limit, found {text:?}")))
        }
    }
}

fn checked_number<T: TryFrom<u64>, const MIN: u64, const MAX: u64>(number: i128) -> Result<T, String> {
    u64::try_from(number)
        .ok()
        .filter(|number| (MIN..=MAX).contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("must lie between {MIN} and {MAX}, not {number}"))
}

/// Reads a rule's own duration or the word for no limit.
pub(super) fn duration_limit<'de, D, const MIN_MS: u64, const MAX_MS: u64>(
    deserializer: D,
) -> Result<Option<Limit<Duration>>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(Some(Limit::from_option(duration_or_none::<D, MIN_MS, MAX_MS>(deserializer)?)))
}

/// Reads a rule's own number or the word for no limit.
pub(super) fn number_limit<'de, D, const MIN: u64, const MAX: u64>(
    deserializer: D,
) -> Result<Option<Limit<u64>>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(Some(Limit::from_option(number_or_none::<D, u64, MIN, MAX>(deserializer)?)))
}

/// Reads a text whose value no error may repeat.
pub(super) fn hidden_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let refuse = || Error::custom("expected a text in quotes");
    match deserializer.deserialize_any(ScalarVisitor("a text")) {
        Ok(Scalar::Text(text)) => Ok(text),
        Ok(Scalar::Integer(_)) | Err(_) => Err(refuse()),
    }
}

/// Reads a text and turns it into what `parse` makes of it.
pub(super) fn parsed<'de, D, T, E: fmt::Display>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
{
    parse(&String::deserialize(deserializer)?).map_err(Error::custom)
}

/// Prints a duration as it can be read again.
pub(super) fn print_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// Prints a duration, or the word for no limit.
#[expect(clippy::ref_option, reason = "serde hands over a reference to the field")]
pub(super) fn print_duration_or_none<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => print_duration(duration, serializer),
        None => serializer.serialize_str(NO_LIMIT),
    }
}

/// Prints a number, or the word for no limit.
#[expect(clippy::ref_option, reason = "serde hands over a reference to the field")]
pub(super) fn print_number_or_none<S: Serializer>(
    number: &Option<u64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match number {
        Some(number) => serializer.serialize_u64(*number),
        None => serializer.serialize_str(NO_LIMIT),
    }
}

/// Prints a rule's own duration; a rule without one is left out by `skip_serializing_if`.
#[expect(clippy::ref_option, reason = "serde hands over a reference to the field")]
pub(super) fn print_duration_limit<S: Serializer>(
    limit: &Option<Limit<Duration>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    print_duration_or_none(&limit.and_then(Limit::into_option), serializer)
}

/// Prints a rule's own number; a rule without one is left out by `skip_serializing_if`.
#[expect(clippy::ref_option, reason = "serde hands over a reference to the field")]
pub(super) fn print_number_limit<S: Serializer>(
    limit: &Option<Limit<u64>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    print_number_or_none(&limit.and_then(Limit::into_option), serializer)
}
