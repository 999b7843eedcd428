//! Encoding for `text/event-stream` (HTML, "Server-sent events", 9.2.6).
//!
//! Invariant: whatever a type, an id or data holds, a block has the fields that were asked for and no other:
//! line breaks in data become further `data:` lines, and nothing else can contain one. Neighbours: `fanout`
//! keeps encoded events, `session` sends them and the control events made here.

use std::fmt::{self, Write};

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::channel::Channel;
use crate::cursor::Cursor;
use crate::event::{DEFAULT_TYPE, Event};
use crate::id::{EventId, Partition};
use crate::metrics::label;

/// Bytes of `id: <ULID>\n`.
const ID_LINE_LEN: usize = 4 + EventId::TEXT_LEN + 1;

/// An encoded event: the whole block, and the block after its `id:` line for sessions that write their own.
#[derive(Clone, Debug)]
pub struct Encoded {
    block: Bytes,
}

impl Encoded {
    /// The whole block; its `id:` is the event's own ULID.
    pub fn block(&self) -> &Bytes {
        &self.block
    }

    /// What follows the `id:` line.
    pub fn tail(&self) -> Bytes {
        self.block.slice(ID_LINE_LEN..)
    }

    /// Where the data stands in the block when it is one line, so that it need not be kept twice.
    fn single_line_data(&self, data: &[u8]) -> Option<Bytes> {
        let end = self.block.len() - 2;
        let start = end.checked_sub(data.len())?;
        (&self.block[start..end] == data && self.block[..start].ends_with(b"\ndata: "))
            .then(|| self.block.slice(start..end))
    }
}

/// Encodes an event as subscribers without an envelope get it.
pub fn encode_event(event: &Event, partition: Partition) -> Encoded {
    let draft = &event.draft;
    let data = draft.data.as_str();
    let mut block = BytesMut::with_capacity(ID_LINE_LEN + draft.kind.as_str().len() + data.len() + 24);
    put_id(&mut block, &event.id.at(partition));
    put_line(&mut block, "event", draft.kind.as_str());
    if let Some(retry) = draft.retry {
        put(&mut block, format_args!("retry: {retry}\n"));
    }
    put_data(&mut block, data);
    block.put_u8(b'\n');
    Encoded { block: block.freeze() }
}

/// Encodes an event as subscribers with `envelope=1` get it.
pub fn encode_envelope(event: &Event, partition: Partition, channel: &Channel) -> Encoded {
    #[derive(Serialize)]
    struct Envelope<'a> {
        id: String,
        channel: &'a str,
        event: &'a str,
        data: Box<RawValue>,
        timestamp: String,
    }
    let draft = &event.draft;
    let id = event.id.at(partition);
    let envelope = Envelope {
        id: id.to_string(),
        channel: public_name(channel),
        event: draft.kind.as_str(),
        data: draft.data.to_json(),
        timestamp: timestamp(event.id.ms()),
    };
    let json = serde_json::to_string(&envelope).expect("strings and checked JSON");
    let mut block = BytesMut::with_capacity(ID_LINE_LEN + json.len() + 40);
    put_id(&mut block, &id);
    put_line(&mut block, "event", DEFAULT_TYPE);
    if let Some(retry) = draft.retry {
        put(&mut block, format_args!("retry: {retry}\n"));
    }
    put_data(&mut block, &json);
    block.put_u8(b'\n');
    Encoded { block: block.freeze() }
}

/// The event with its data sharing the encoded block's memory where it stands there as one piece.
pub fn share_memory(mut event: Event, encoded: &Encoded) -> Event {
    use crate::event::Data;
    let data = &event.draft.data;
    let shared = encoded.single_line_data(data.bytes());
    // A copy lets go of the read buffer that the data was a slice of.
    let bytes = shared.unwrap_or_else(|| Bytes::copy_from_slice(data.bytes()));
    event.draft.data = Data::stored(data.format(), bytes);
    event
}

/// What outsiders see as the channel of an event: system channels lose the identity in their name.
pub fn public_name(channel: &Channel) -> &str {
    let name = channel.as_str();
    match name.split_once(':') {
        Some((system, _)) if system.starts_with('$') => system,
        _ => name,
    }
}

/// RFC 3339 in UTC with milliseconds.
pub fn timestamp(ms: u64) -> String {
    let instant = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    // Past the year 9999 the number itself says more than a wrong date.
    instant.map_or_else(|| ms.to_string(), |t| t.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}

/// A comment, which moves no cursor and reaches no listener.
pub fn encode_comment(text: &'static str) -> Bytes {
    debug_assert!(!text.contains(['\r', '\n']), "a comment is one line");
    Bytes::from(format!(": {text}\n\n"))
}

/// The `id:` line of a session whose cursor spans several partitions.
pub fn encode_id_line(cursor: &Cursor) -> Bytes {
    Bytes::from(format!("id: {cursor}\n"))
}

/// Why a `gap` is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// Retention removed what the cursor needs.
    Trimmed,
    /// History was purged, flushed or rolled back, or the cursor lies in the future.
    Reset,
    /// The cursor is malformed or of a foreign partition.
    InvalidCursor,
}

label!(GapReason, "reason", Trimmed => "trimmed", Reset => "reset", InvalidCursor => "invalid_cursor");

/// Why a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClosingReason {
    /// The node stops.
    Shutdown,
    /// The stream reached `sse.lifetime_max`.
    Lifetime,
    /// Too many streams are open.
    Overloaded,
    /// The node cannot serve streams yet or any more.
    Unavailable,
    /// This address or user has, or asks too fast for, more than one may have.
    RateLimited,
    /// The token reached its end.
    TokenExpired,
    /// An administrator revoked the token.
    Revoked,
}

label!(
    ClosingReason, "reason",
    Shutdown => "shutdown", Lifetime => "lifetime", Overloaded => "overloaded", Unavailable => "unavailable",
    RateLimited => "rate_limited",
    TokenExpired => "token_expired",
    Revoked => "revoked",
);

impl ClosingReason {
    /// Whether the client is to come back.
    pub fn reconnect(self) -> bool {
        match self {
            Self::Shutdown | Self::Lifetime | Self::Overloaded | Self::Unavailable | Self::RateLimited => {
                true
            }
            Self::TokenExpired | Self::Revoked => false,
        }
    }
}

/// The first event of every stream.
#[derive(Debug, Serialize)]
pub struct Connected<'a> {
    /// Names the connection on this node.
    pub connection_id: &'a str,
    /// Who is connected.
    pub user_id: Option<&'a str>,
    /// Which node serves the stream.
    pub node: &'a str,
    /// Subscribed channels, as asked for.
    pub channels: &'a [&'a str],
    /// How often a quiet stream shows that it lives.
    pub heartbeat_ms: u64,
    /// When the stream began.
    pub timestamp: String,
}

/// Encodes `connected`; `retry_ms` comes first, as reconnection advice for the whole stream.
pub fn encode_connected(retry_ms: u64, cursor: Option<&Cursor>, connected: &Connected<'_>) -> Bytes {
    let mut block = BytesMut::with_capacity(256);
    put(&mut block, format_args!("retry: {retry_ms}\n"));
    put_control(&mut block, cursor, "connected", connected);
    block.freeze()
}

/// Encodes `gap`: what is missing of `channel` after `after`, and the oldest event that is left.
pub fn encode_gap(
    channel: Option<&Channel>,
    after: Option<EventId>,
    oldest: Option<EventId>,
    reason: GapReason,
) -> Bytes {
    #[derive(Serialize)]
    struct Gap<'a> {
        channel: Option<&'a str>,
        after: Option<String>,
        oldest: Option<String>,
        reason: GapReason,
    }
    let text = |id: Option<EventId>| id.map(|id| id.to_string());
    let gap = Gap { channel: channel.map(public_name), after: text(after), oldest: text(oldest), reason };
    let mut block = BytesMut::with_capacity(160);
    put_control(&mut block, None, "gap", &gap);
    block.freeze()
}

/// Encodes `heartbeat`; `cursor` only when the session is caught up.
pub fn encode_heartbeat(cursor: Option<&Cursor>, now_ms: u64) -> Bytes {
    #[derive(Serialize)]
    struct Heartbeat {
        timestamp: String,
    }
    let mut block = BytesMut::with_capacity(112);
    put_control(&mut block, cursor, "heartbeat", &Heartbeat { timestamp: timestamp(now_ms) });
    block.freeze()
}

/// Encodes `closing` with a hint when to come back, in milliseconds.
pub fn encode_closing(reason: ClosingReason, retry_ms: Option<u64>) -> Bytes {
    #[derive(Serialize)]
    struct Closing {
        reason: ClosingReason,
        reconnect: bool,
    }
    let mut block = BytesMut::with_capacity(96);
    if let Some(retry_ms) = retry_ms {
        put(&mut block, format_args!("retry: {retry_ms}\n"));
    }
    put_control(&mut block, None, "closing", &Closing { reason, reconnect: reason.reconnect() });
    block.freeze()
}

fn put_control(block: &mut BytesMut, cursor: Option<&Cursor>, kind: &str, data: &impl Serialize) {
    if let Some(cursor) = cursor {
        put_id(block, cursor);
    }
    put_line(block, "event", kind);
    put_data(block, &serde_json::to_string(data).expect("control events are plain structs of text"));
    block.put_u8(b'\n');
}

fn put_id(block: &mut BytesMut, id: &impl fmt::Display) {
    put(block, format_args!("id: {id}\n"));
}

fn put(block: &mut BytesMut, text: fmt::Arguments<'_>) {
    block.write_fmt(text).expect("a BytesMut grows");
}

fn put_line(block: &mut BytesMut, field: &str, value: &str) {
    debug_assert!(!value.contains(['\r', '\n']), "only data may contain line breaks");
    for part in [field.as_bytes(), b": ", value.as_bytes(), b"\n"] {
        block.put_slice(part);
    }
}

/// One `data:` line per line; CRLF, CR and LF end one (HTML 9.2.5, `end-of-line`).
fn put_data(block: &mut BytesMut, data: &str) {
    let mut rest = data;
    while let Some(at) = rest.find(['\r', '\n']) {
        put_line(block, "data", &rest[..at]);
        let width = if rest[at..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[at + width..];
    }
    put_line(block, "data", rest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{Data, Draft, EventType, Format, SkipList};
    use crate::id::StreamId;

    fn event(kind: &str, data: Data, retry: Option<u32>) -> Event {
        let kind = EventType::parse(kind).unwrap();
        Event {
            id: StreamId::new(1_737_000_000_000, 7).unwrap(),
            draft: Draft { kind, data, retry, skip: SkipList::default() },
        }
    }

    /// Reads blocks by the letter of HTML 9.2.6: (id, event, retry, data).
    fn parse(stream: &str) -> Vec<(String, String, Option<u64>, String)> {
        let normalized = stream.replace("\r\n", "\n").replace('\r', "\n");
        let (mut id, mut kind, mut retry, mut data) = (String::new(), String::new(), None, String::new());
        let mut events = Vec::new();
        for line in normalized.split_terminator('\n') {
            if line.is_empty() {
                if !data.is_empty() {
                    data.pop();
                    events.push((id.clone(), std::mem::take(&mut kind), retry, std::mem::take(&mut data)));
                }
                kind.clear();
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => id = value.to_owned(),
                "event" => kind = value.to_owned(),
                "retry" => retry = value.parse().ok(),
                "data" => data.extend([value, "\n"]),
                _ => {}
            }
        }
        events
    }

    proptest! {
        #[test]
        fn any_data_arrives_as_it_was_up_to_its_kind_of_line_breaks(
            data in "(\\PC|\r|\n|\r\n|:|data: |id: |\0|\u{2028}| ){0,20}", retry: Option<u32>,
        ) {
            let event = event("quake", Data::text(data.clone()), retry);
            let encoded = encode_event(&event, Partition(0));
            let text = std::str::from_utf8(encoded.block()).unwrap();
            let expected = data.replace("\r\n", "\n").replace('\r', "\n");
            let id = event.id.at(Partition(0)).to_string();
            prop_assert_eq!(parse(text), [(id.clone(), "quake".to_owned(), retry.map(u64::from), expected)]);
            let with_own_id = format!("id: {id}\n{}", std::str::from_utf8(&encoded.tail()).unwrap());
            prop_assert_eq!(&with_own_id, text);
            let shared = share_memory(event.clone(), &encoded);
            prop_assert_eq!(shared, event);
        }

        #[test]
        fn an_envelope_holds_any_data(data in "(\\PC|\r|\n|\"|\\\\|\0){0,20}") {
            let event = event("quake", Data::text(data.clone()), None);
            let encoded = encode_envelope(&event, Partition(0), &Channel::parse("a/b").unwrap());
            let parsed = parse(std::str::from_utf8(encoded.block()).unwrap());
            prop_assert_eq!(&parsed[0].1, "message");
            let json: serde_json::Value = serde_json::from_str(&parsed[0].3).unwrap();
            prop_assert_eq!(json, serde_json::json!({
                "id": parsed[0].0, "channel": "a/b", "event": "quake", "data": data,
                "timestamp": "2025-01-16T04:00:00.000Z",
            }));
        }
    }

    #[test]
    fn data_on_one_line_is_kept_once() {
        let event = event("quake", Data::stored(Format::Json, Bytes::from_static(b"{\"a\":1}")), None);
        let encoded = encode_event(&event, Partition(0));
        let shared = share_memory(event, &encoded);
        let block = encoded.block().as_ptr_range();
        assert!(block.contains(&shared.draft.data.bytes().as_ptr()), "the data is a slice of the block");
    }

    #[test]
    fn control_events_read_as_the_contract_shows_them() {
        let id = StreamId::new(1_737_000_000_000, 7).unwrap().at(Partition(0));
        let gap = encode_gap(Some(&Channel::parse("a").unwrap()), Some(id), None, GapReason::Trimmed);
        assert_eq!(
            gap,
            format!(
                "event: gap\ndata: {{\"channel\":\"a\",\"after\":\"{id}\",\"oldest\":null,\"reason\":\"trimmed\"}}\n\n"
            )
        );
        let closing = encode_closing(ClosingReason::Shutdown, Some(1500));
        assert_eq!(
            closing,
            "retry: 1500\nevent: closing\ndata: {\"reason\":\"shutdown\",\"reconnect\":true}\n\n"
        );
        let heartbeat = encode_heartbeat(Some(&Cursor::single(id)), 0);
        assert_eq!(
            heartbeat,
            format!("id: {id}\nevent: heartbeat\ndata: {{\"timestamp\":\"1970-01-01T00:00:00.000Z\"}}\n\n")
        );
        assert_eq!(public_name(&Channel::parse_stored("$user:42").unwrap()), "$user");
    }
}
