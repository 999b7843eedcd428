//! Reads a stream of Server-Sent Events, chunk by chunk, as the HTML specification says (section 9.2.6,
//! "Interpreting an event stream").
//!
//! Invariants: the events do not depend on where the chunks are cut; memory is bounded by
//! [`EVENT_BYTES_MAX`]. Neighbour: `tail.rs` reconnects with what is learnt here.

use std::time::Duration;

/// Most bytes of a line, and of one event's data: four times the most that a broker can be configured to accept.
pub(super) const EVENT_BYTES_MAX: usize = 64 << 20;

/// One event, as a browser would dispatch it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SseEvent {
    /// The last id that the stream gave, with this event or before it; may be empty.
    pub(super) id: String,
    /// The type, `message` when the stream names none.
    pub(super) kind: String,
    /// The data lines, joined by line feeds.
    pub(super) data: String,
}

/// A line or an event exceeds [`EVENT_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream holds a line or an event of more than {EVENT_BYTES_MAX} bytes")]
pub(super) struct TooLong;

/// The state between two chunks.
#[derive(Debug, Default)]
pub(super) struct SseReader {
    /// The line that has begun.
    line: Vec<u8>,
    /// The chunk before ended with a CR: a LF that follows belongs to it.
    after_cr: bool,
    /// Whether a line was read: a byte order mark may stand before the first one only.
    begun: bool,
    /// The data of the event that has begun; each line ends with a LF.
    data: String,
    kind: String,
    id: String,
    retry: Option<Duration>,
    /// What counts after the last blank line.
    last_event_id: String,
}

impl SseReader {
    /// A reader for a connection that resumes from `last_event_id`; it holds until the stream gives another.
    pub(super) fn resuming(last_event_id: &str) -> Self {
        Self { id: last_event_id.to_owned(), last_event_id: last_event_id.to_owned(), ..Self::default() }
    }

    /// The id to resume from; empty when there is none.
    pub(super) fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    /// How long to wait before connecting again, if the stream said so.
    pub(super) fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// Takes the next bytes and answers the events that they complete.
    pub(super) fn push(&mut self, mut chunk: &[u8]) -> Result<Vec<SseEvent>, TooLong> {
        let mut events = Vec::new();
        if self.after_cr && !chunk.is_empty() {
            chunk = chunk.strip_prefix(b"\n").unwrap_or(chunk);
            self.after_cr = false;
        }
        while let Some(end) = chunk.iter().position(|b| matches!(b, b'\n' | b'\r')) {
            self.append(&chunk[..end])?;
            let line = std::mem::take(&mut self.line);
            events.extend(self.end_line(&line)?);
            let is_cr = chunk[end] == b'\r';
            chunk = &chunk[end + 1..];
            self.after_cr = is_cr && chunk.is_empty();
            if is_cr {
                chunk = chunk.strip_prefix(b"\n").unwrap_or(chunk);
            }
        }
        self.append(chunk)?;
        Ok(events)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.line.len() + bytes.len() > EVENT_BYTES_MAX {
            return Err(TooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self, line: &[u8]) -> Result<Option<SseEvent>, TooLong> {
        let line = match line.strip_prefix(b"\xef\xbb\xbf") {
            Some(rest) if !self.begun => rest,
            _ => line,
        };
        self.begun = true;
        if line.is_empty() {
            return Ok(self.dispatch());
        }
        // No code point but the line's end contains a CR or LF byte, so decoding by line is decoding the stream.
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        self.field(field, value.strip_prefix(' ').unwrap_or(value))?;
        Ok(None)
    }

    /// A line that starts with a colon has the empty field name: a comment, like every unknown field.
    fn field(&mut self, field: &str, value: &str) -> Result<(), TooLong> {
        match field {
            "event" => value.clone_into(&mut self.kind),
            "data" => {
                if self.data.len() + value.len() > EVENT_BYTES_MAX {
                    return Err(TooLong);
                }
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            "retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                self.retry = value.parse().ok().map(Duration::from_millis).or(self.retry);
            }
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self) -> Option<SseEvent> {
        self.last_event_id.clone_from(&self.id);
        let kind = std::mem::take(&mut self.kind);
        let mut data = std::mem::take(&mut self.data);
        // Only the last line feed goes: an event of one empty data line has empty data and is dispatched.
        data.pop()?;
        let kind = if kind.is_empty() { "message".to_owned() } else { kind };
        Some(SseEvent { id: self.id.clone(), kind, data })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(chunks: &[&[u8]]) -> (Vec<SseEvent>, String, Option<Duration>) {
        let mut reader = SseReader::default();
        let events = chunks.iter().flat_map(|chunk| reader.push(chunk).unwrap()).collect();
        (events, reader.last_event_id().to_owned(), reader.retry())
    }

    fn triples(stream: &[u8]) -> Vec<(String, String, String)> {
        read(&[stream]).0.into_iter().map(|event| (event.kind, event.data, event.id)).collect()
    }

    /// Type, data and id.
    type Expected = (&'static str, &'static str, &'static str);

    /// What every stream holds. The first rows are the examples of the specification.
    const TABLE: &[(&str, &[Expected])] = &[
        ("data: YHOO\ndata: +2\ndata: 10\n\n", &[("message", "YHOO\n+2\n10", "")]),
        (
            ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            &[
                ("message", "first event", "1"),
                ("message", "second event", ""),
                ("message", " third event", ""),
            ],
        ),
        ("data\n\ndata\ndata\n\ndata:", &[("message", "", ""), ("message", "\n", "")]),
        ("data:test\n\ndata: test\n\n", &[("message", "test", ""), ("message", "test", "")]),
        (
            "event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n",
            &[("add", "73857293", ""), ("remove", "2153", "")],
        ),
        (
            "data: a\r\rdata: b\r\n\r\ndata: c\n\n",
            &[("message", "a", ""), ("message", "b", ""), ("message", "c", "")],
        ),
        ("data: a\r\ndata: b\rdata: c\ndata: d\r\r\n", &[("message", "a\nb\nc\nd", "")]),
        ("\u{feff}data: a\n\n", &[("message", "a", "")]),
        ("\u{feff}\u{feff}data: a\n\ndata: b\n\n", &[("message", "b", "")]),
        ("data: a\n\n\u{feff}data: b\n\n", &[("message", "a", "")]),
        ("event: x\n\ndata: a\n\n", &[("message", "a", "")]),
        ("id: 1\n\ndata: a\n\n", &[("message", "a", "1")]),
        ("id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n", &[("message", "a", "1"), ("message", "b", "1")]),
        ("data: unfinished\n", &[]),
        ("data: a\n\n\n\n: comment\n\n", &[("message", "a", "")]),
        ("Data: a\n data: b\ndata : c\nfoo: d\n\n", &[]),
        ("data: a:b: c\n\n", &[("message", "a:b: c", "")]),
        ("event:\ndata: a\n\nevent: x\nevent:\ndata: b\n\n", &[("message", "a", ""), ("message", "b", "")]),
        ("data:\u{2028}\u{85}\u{b}\n\n", &[("message", "\u{2028}\u{85}\u{b}", "")]),
        ("", &[]),
    ];

    #[test]
    fn streams_mean_what_the_specification_says() {
        for (stream, events) in TABLE {
            let expected: Vec<_> =
                events.iter().map(|(k, d, i)| ((*k).to_owned(), (*d).to_owned(), (*i).to_owned())).collect();
            assert_eq!(triples(stream.as_bytes()), expected, "{stream:?}");
        }
    }

    #[test]
    fn retry_takes_digits_only_and_the_last_one_counts() {
        let retry = |stream: &str| read(&[stream.as_bytes()]).2.map(|d| d.as_millis());
        assert_eq!(retry("retry: 1500\n"), Some(1_500));
        assert_eq!(retry("retry:10\nretry: x\nretry: -1\nretry: 1.5\nretry\nretry:  7\n"), Some(10));
        assert_eq!(retry("retry: 99999999999999999999\n"), None);
    }

    #[test]
    fn an_id_counts_from_its_blank_line_on_also_without_data() {
        assert_eq!(read(&[b"id: 1\ndata: a\n\nid: 2\n"]).1, "1");
        assert_eq!(read(&[b"id: 1\ndata: a\n\nid: 2\n\n"]).1, "2");
        let mut resumed = SseReader::resuming("7");
        assert_eq!(resumed.push(b"data: a\n\n").unwrap()[0].id, "7");
        assert_eq!(resumed.last_event_id(), "7");
    }

    #[test]
    fn bytes_that_are_no_utf8_are_replaced() {
        assert_eq!(triples(b"data: a\xffb\n\n")[0].1, "a\u{fffd}b");
        assert_eq!(triples(b"data: \xe2\x82\ndata: x\n\n")[0].1, "\u{fffd}\nx");
    }

    #[test]
    fn an_endless_line_and_an_endless_event_are_refused() {
        let megabyte = vec![b'x'; 1 << 20];
        let mut reader = SseReader::default();
        assert_eq!((0..65).find_map(|_| reader.push(&megabyte).err()), Some(TooLong));
        let mut reader = SseReader::default();
        let line = [b"data:", &megabyte[..], b"\n"].concat();
        assert_eq!((0..65).find_map(|_| reader.push(&line).err()), Some(TooLong));
    }

    /// Anything that looks like a stream, with every kind of line end and bytes that are no UTF-8.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            &b"data: a"[..],
            b"data",
            b"data:",
            b":c",
            b"id: 1",
            b"id:\0",
            b"event: e",
            b"retry: 5",
            b"\n",
            b"\n",
            b"\r",
            b"\r",
            b"\r\n",
            b"\r\n\r\n",
            b"\n\n",
            b"\xef\xbb\xbf",
            b"\xe2\x82\xac",
            b"\xe2\x82",
            b"\xff",
            b" ",
            b"x",
        ]);
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn where_the_chunks_are_cut_changes_nothing(stream in stream(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            at.extend([0, stream.len()]);
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|ends| &stream[ends[0]..ends[1]]).collect();
            let bytes: Vec<&[u8]> = stream.chunks(1).collect();
            let whole = read(&[&stream]);
            prop_assert_eq!(&read(&chunks), &whole);
            prop_assert_eq!(&read(&bytes), &whole);
        }

        #[test]
        fn what_an_encoder_writes_is_read_back(data in "[^\r]{0,40}", kind in "[a-z]{1,8}", id in "[0-9A-Z]{0,8}") {
            let lines = data.replace('\n', "\ndata: ");
            let stream = format!("id: {id}\nevent: {kind}\ndata: {lines}\n\n");
            prop_assert_eq!(triples(stream.as_bytes()), vec![(kind, data, id)]);
        }
    }
}
