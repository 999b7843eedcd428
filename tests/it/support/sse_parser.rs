//! An event stream's bytes turned into events, exactly as a browser does it.
//!
//! Written from the HTML standard, "Server-sent events", 9.2.5 (parsing) and 9.2.6 (interpreting), and from
//! nothing else. Invariant: how the bytes are cut into pieces changes nothing. Neighbour: `sse.rs` gets the bytes.

use serde_json::Value;

/// Types that the server itself sends.
const CONTROL_TYPES: [&str; 4] = ["connected", "gap", "heartbeat", "closing"];

/// An event as a browser would dispatch it, and what its block said beside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// What the block's `id:` set; `None` when it had none.
    pub(crate) id: Option<String>,
    /// What `event.lastEventId` would be.
    pub(crate) last_event_id: String,
    /// The type, `message` unless the block named one.
    pub(crate) kind: String,
    /// The data, lines joined by LF.
    pub(crate) data: String,
    /// What the block's `retry:` set, in milliseconds.
    pub(crate) retry: Option<u64>,
}

impl Event {
    /// Whether the server sent it on its own account.
    pub(crate) fn is_control(&self) -> bool {
        CONTROL_TYPES.contains(&self.kind.as_str())
    }

    /// The data as JSON, or the test fails.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error} in the data of {self:?}"))
    }
}

/// What came out of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A dispatched event.
    Event(Event),
    /// A line that began with a colon, without it.
    Comment(String),
}

/// The parser's state between two pieces.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// Bytes of the line that is not complete.
    line: Vec<u8>,
    /// The line before ended with CR: an LF that follows belongs to it.
    after_cr: bool,
    /// A byte order mark may only stand before the first line.
    past_first_line: bool,
    /// The block that is not complete; `data` ends with an LF per line.
    block: Event,
    /// What `id:` fields said, dispatched or not.
    id_buffer: String,
    /// What a reconnect would send.
    last_event_id: String,
}

impl Parser {
    /// A parser whose connection was opened with this cursor.
    pub(crate) fn resumed_from(last_event_id: &str) -> Self {
        Self { id_buffer: last_event_id.into(), last_event_id: last_event_id.into(), ..Self::default() }
    }

    /// What a reconnect would send as `Last-Event-ID`.
    pub(crate) fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    /// Takes the next piece of the body and hands every completed item to `out`.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], out: &mut impl Extend<Item>) {
        while let [first, rest @ ..] = bytes {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                bytes = rest;
                continue;
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.line.extend_from_slice(bytes);
                return;
            };
            self.line.extend_from_slice(&bytes[..end]);
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            out.extend(self.line());
        }
    }

    fn line(&mut self) -> Option<Item> {
        let bytes = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&bytes);
        let first = !std::mem::replace(&mut self.past_first_line, true);
        let line = if first { line.strip_prefix('\u{feff}').unwrap_or(&line) } else { &line };
        if line.is_empty() {
            return self.dispatch().map(Item::Event);
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        if name.is_empty() {
            return Some(Item::Comment(value.to_owned()));
        }
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.block.kind),
            "data" => {
                self.block.data.push_str(value);
                self.block.data.push('\n');
            }
            "id" if !value.contains('\0') => {
                value.clone_into(&mut self.id_buffer);
                self.block.id = Some(value.to_owned());
            }
            "retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                self.block.retry = value.parse().ok();
            }
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Event> {
        let mut event = std::mem::take(&mut self.block);
        self.last_event_id.clone_from(&self.id_buffer);
        if event.data.is_empty() {
            return None;
        }
        event.data.pop();
        if event.kind.is_empty() {
            event.kind.push_str("message");
        }
        event.last_event_id.clone_from(&self.last_event_id);
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> (Vec<Item>, String) {
        let (mut parser, mut items) = (Parser::resumed_from("before"), Vec::new());
        for piece in pieces {
            parser.feed(piece, &mut items);
        }
        (items, parser.last_event_id().to_owned())
    }

    fn events(body: &str) -> Vec<(String, String, String)> {
        let (items, _) = parse(&[body.as_bytes()]);
        let triple = |item| match item {
            Item::Event(event) => Some((event.last_event_id, event.kind, event.data)),
            Item::Comment(_) => None,
        };
        items.into_iter().filter_map(triple).collect()
    }

    fn triple(id: &str, event: &str, data: &str) -> (String, String, String) {
        (id.into(), event.into(), data.into())
    }

    /// The streams that the standard gives as examples, with the events that it says they give.
    #[test]
    fn the_examples_of_the_standard_give_what_it_says() {
        let stocks = "data: YHOO\ndata: +2\ndata: 10\n\n";
        assert_eq!(events(stocks), [triple("before", "message", "YHOO\n+2\n10")]);
        let ids =
            ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
        let expected = [("1", "first event"), ("", "second event"), ("", " third event")];
        assert_eq!(events(ids), expected.map(|(id, data)| triple(id, "message", data)));
        let empty = "data\n\ndata\ndata\n\ndata:";
        assert_eq!(events(empty), [triple("before", "message", ""), triple("before", "message", "\n")]);
        assert_eq!(
            events("data:test\n\ndata: test\n\n"),
            [triple("before", "message", "test"), triple("before", "message", "test")]
        );
    }

    #[test]
    fn an_id_counts_from_the_end_of_its_block_even_without_data() {
        assert_eq!(parse(&[b"id: 7\n\n"]), (vec![], "7".into()));
        assert_eq!(
            parse(&[b"id: 7\ndata: x\n"]),
            (vec![], "before".into()),
            "an unfinished block is forgotten"
        );
        assert_eq!(parse(&[b"id: 7\0\n\n"]).1, "before");
        assert_eq!(events("event: a\n\ndata: x\n\n"), [triple("before", "message", "x")]);
    }

    #[test]
    fn retry_counts_only_as_digits_and_comments_are_kept_apart() {
        let (items, _) =
            parse(&[b"\xef\xbb\xbf: hi\r\nretry: 3000\nretry: 3x\nevent: a\rdata: \xef\xbb\xbf\r\r"]);
        let event = Event {
            last_event_id: "before".into(),
            kind: "a".into(),
            data: "\u{feff}".into(),
            retry: Some(3000),
            ..Event::default()
        };
        assert_eq!(items, [Item::Comment(" hi".into()), Item::Event(event)]);
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_changes_nothing(body in "(data|id|event|[: \r\n\u{feff}xé]){0,40}", cut: prop::sample::Index) {
            let bytes = body.as_bytes();
            let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(parse(&[bytes]), parse(&[head, tail]));
            prop_assert_eq!(parse(&[bytes]), parse(&single));
        }
    }
}
