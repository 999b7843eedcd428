//! Reading replies: small accessors over the driver's value type that answer `None` instead of panicking,
//! because anybody may write anything to Redis.

use std::borrow::Cow;

use bytes::Bytes;
use fred::types::Value;

use crate::id::StreamId;
use crate::log::LogError;

/// Accessors over a reply.
pub(super) trait Reply {
    /// The elements of an array; none for anything else.
    fn elements(&self) -> &[Value];
    /// The bytes of a string.
    fn raw(&self) -> Option<Bytes>;
    /// The text of a string or a number; `None` for what is no UTF-8.
    fn text(&self) -> Option<Cow<'_, str>>;
    /// A number, also one written as text.
    fn number(&self) -> Option<u64>;
    /// A position.
    fn stream_id(&self) -> Option<StreamId>;
    /// The value behind a name in an array of alternating names and values.
    fn field(&self, name: &str) -> Option<&Value>;
}

impl Reply for Value {
    fn elements(&self) -> &[Value] {
        match self {
            Value::Array(elements) => elements,
            _ => &[],
        }
    }

    fn raw(&self) -> Option<Bytes> {
        match self {
            Value::String(text) => Some(text.clone().into_inner()),
            Value::Bytes(bytes) => Some(bytes.clone()),
            _ => None,
        }
    }

    fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Value::String(text) => Some(Cow::Borrowed(text)),
            Value::Bytes(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
            Value::Integer(number) => Some(Cow::Owned(number.to_string())),
            _ => None,
        }
    }

    fn number(&self) -> Option<u64> {
        match self {
            Value::Integer(number) => u64::try_from(*number).ok(),
            other => other.text()?.parse().ok(),
        }
    }

    fn stream_id(&self) -> Option<StreamId> {
        self.text()?.parse().ok()
    }

    fn field(&self, name: &str) -> Option<&Value> {
        let pair = self.elements().chunks_exact(2).find(|pair| pair[0].text().as_deref() == Some(name))?;
        Some(&pair[1])
    }
}

/// The error for a reply of another shape than the layout promises.
pub(super) fn unexpected(what: &str, reply: &Value) -> LogError {
    let mut shown = format!("{reply:?}");
    if shown.len() > 200 {
        let end = (0..=200).rev().find(|i| shown.is_char_boundary(*i)).unwrap_or(0);
        shown.truncate(end);
        shown.push_str("...");
    }
    LogError::Damaged(format!("{what} answered {shown}"))
}
