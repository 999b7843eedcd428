//! Events: what is published and what a channel holds.
//!
//! Invariant: an [`EventType`] holds no line break and is none of the types that the server itself sends;
//! [`Data`] is UTF-8, and what is marked as JSON was valid and compact when it was published. Neighbours:
//! `publish.rs` makes drafts, the log turns a draft into an event by giving it an id, `sse.rs` encodes it.

use std::fmt;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::id::StreamId;

/// Longest event type in bytes of UTF-8.
pub const TYPE_BYTES_MAX: usize = 200;

/// Types that only the server sends.
pub const RESERVED_TYPES: [&str; 4] = ["connected", "gap", "heartbeat", "closing"];

/// The type of events that name none (HTML, "Server-sent events", 9.2.6).
pub const DEFAULT_TYPE: &str = "message";

/// What stands in `event:`, and the name of the listener that a browser calls.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EventType(Bytes);

/// Why a text is no event type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidType {
    /// The type is empty.
    #[error("an event type has at least one character; leave it out to publish a {DEFAULT_TYPE:?}")]
    Empty,
    /// The type is longer than [`TYPE_BYTES_MAX`].
    #[error("an event type has at most {TYPE_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// The type contains a control character, which could end its line.
    #[error("event type {0:?} contains a control character")]
    Control(String),
    /// Only the server sends this type.
    #[error("event type {0:?} is reserved: the server sends it itself")]
    Reserved(String),
}

impl EventType {
    /// Validates a type from outside.
    pub fn parse(name: &str) -> Result<Self, InvalidType> {
        if name.is_empty() {
            return Err(InvalidType::Empty);
        }
        if name.len() > TYPE_BYTES_MAX {
            return Err(InvalidType::TooLong(name.len()));
        }
        if name.chars().any(char::is_control) {
            return Err(InvalidType::Control(name.to_owned()));
        }
        if RESERVED_TYPES.contains(&name) {
            return Err(InvalidType::Reserved(name.to_owned()));
        }
        Ok(if name == DEFAULT_TYPE { Self::default() } else { Self(Bytes::copy_from_slice(name.as_bytes())) })
    }

    /// The type as it was given.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("made from a str")
    }
}

impl Default for EventType {
    fn default() -> Self {
        Self(Bytes::from_static(DEFAULT_TYPE.as_bytes()))
    }
}

impl fmt::Debug for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// How the data was published, so that envelopes and history give the same back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A string: delivered as it is.
    Text,
    /// Any other JSON value: delivered compact, with its key order and its digits.
    Json,
}

/// The payload of an event: UTF-8 and how to read it.
#[derive(Clone, PartialEq, Eq)]
pub struct Data {
    format: Format,
    bytes: Bytes,
}

impl Data {
    /// A string.
    pub fn text(text: impl Into<String>) -> Self {
        Self { format: Format::Text, bytes: Bytes::from(text.into()) }
    }

    /// A JSON value as a client sent it: a string is unwrapped, anything else loses its white space only.
    ///
    /// # Errors
    /// When a string's escapes give no Unicode text (a lone surrogate).
    pub fn from_json(raw: &RawValue) -> Result<Self, serde_json::Error> {
        let json = raw.get();
        if json.starts_with('"') {
            return serde_json::from_str::<String>(json).map(Self::text);
        }
        Ok(Self { format: Format::Json, bytes: Bytes::from(compact(json)) })
    }

    /// Data as the store holds it. Bytes that are no UTF-8 (another program wrote them) are replaced by U+FFFD.
    pub fn stored(format: Format, bytes: Bytes) -> Self {
        match std::str::from_utf8(&bytes) {
            Ok(_) => Self { format, bytes },
            Err(_) => Self { format, bytes: Bytes::from(String::from_utf8_lossy(&bytes).into_owned()) },
        }
    }

    /// How the data was published.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The payload as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes).expect("checked by every constructor")
    }

    /// The payload as shared bytes of UTF-8.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The payload as a JSON value: what was published as JSON stays, a text becomes a JSON string.
    ///
    /// The mark alone is not trusted, since anybody may write to the store: what is marked as JSON and is
    /// none is given back as text.
    pub fn to_json(&self) -> Box<RawValue> {
        if self.format == Format::Json
            && let Ok(raw) = serde_json::from_str::<Box<RawValue>>(self.as_str())
        {
            // Another program may have published JSON over several lines.
            let one_line =
                raw.get().contains(['\r', '\n']).then(|| RawValue::from_string(compact(raw.get())));
            return one_line.and_then(Result::ok).unwrap_or(raw);
        }
        serde_json::value::to_raw_value(self.as_str()).expect("a str is always a JSON string")
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({:?})", self.format, self.as_str())
    }
}

/// Removes the white space outside of strings from valid JSON. Key order, repeated keys, digits and escapes stay.
fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in json.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if c.is_ascii_whitespace() {
            continue;
        } else {
            in_string = c == '"';
        }
        out.push(c);
    }
    out
}

/// Ids of connections that must not get an event.
pub type SkipList = Box<[Box<str>]>;

/// An event before the log gave it an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Goes into `event:`.
    pub kind: EventType,
    /// Goes into `data:`.
    pub data: Data,
    /// Goes into `retry:`, in milliseconds.
    pub retry: Option<u32>,
    /// Connections that do not get the event, most often the publisher's own.
    pub skip: SkipList,
}

/// One immutable record of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where it stands in its partition.
    pub id: StreamId,
    /// What was published.
    pub draft: Draft,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json_data(json: &str) -> Data {
        Data::from_json(&serde_json::from_str::<Box<RawValue>>(json).unwrap()).unwrap()
    }

    #[test]
    fn json_keeps_key_order_repeated_keys_digits_and_escapes() {
        let cases = [
            (
                r#" { "b" : 1.0 , "a" : [ 1e400, 12345678901234567890123 ] } "#,
                r#"{"b":1.0,"a":[1e400,12345678901234567890123]}"#,
            ),
            ("{\"a\":\"x \\\" \\\\\",\n\"a\" :\ttrue}", r#"{"a":"x \" \\","a":true}"#),
            (" null ", "null"),
            (r#"{"k  k":"  "}"#, r#"{"k  k":"  "}"#),
        ];
        for (given, expected) in cases {
            let data = json_data(given.trim());
            assert_eq!((data.format(), data.as_str()), (Format::Json, expected));
        }
        let text = json_data(r#""a\nb""#);
        assert_eq!((text.format(), text.as_str()), (Format::Text, "a\nb"));
    }

    proptest! {
        #[test]
        fn compact_json_means_the_same(text in "\\PC{0,20}", n: i64, deep in 0usize..4) {
            let mut value = serde_json::json!({ text.clone(): [n, text, null] });
            for _ in 0..deep {
                value = serde_json::json!([value, {"k": " "}]);
            }
            let compacted = compact(&serde_json::to_string_pretty(&value).unwrap());
            prop_assert_eq!(&compacted, &serde_json::to_string(&value).unwrap());
        }
    }

    #[test]
    fn what_is_marked_as_json_and_is_none_comes_back_as_text() {
        let data = Data::stored(Format::Json, Bytes::from_static(b"{oops"));
        assert_eq!(data.to_json().get(), r#""{oops""#);
        let binary = Data::stored(Format::Text, Bytes::from_static(b"\xff"));
        assert_eq!(binary.as_str(), "\u{fffd}");
    }

    #[test]
    fn types_that_could_inject_a_line_or_pose_as_the_server_are_refused() {
        for name in ["", "a\nb", "a\rb", "a\0", "connected", "gap", "heartbeat", "closing", &"x".repeat(201)]
        {
            assert!(EventType::parse(name).is_err(), "{name:?}");
        }
        assert_eq!(EventType::parse("quake").unwrap().as_str(), "quake");
    }
}
