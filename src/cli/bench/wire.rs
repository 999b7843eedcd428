//! Answers of a server as they arrive: head, framing, lines, with as little work for each byte as possible.
//!
//! Invariant: what is handed on does not depend on how the bytes were cut on their way. The framing is that of
//! RFC 9112, sections 6 and 7: by length, in chunks, or until the connection closes.

use memchr::memchr;

/// Bytes of a head; a server that sends more is none to measure.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;

/// Bytes of a line that is kept until its end arrives.
const LINE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// An answer on its way in.
pub(super) struct Answer {
    state: State,
    status: Option<u16>,
    closes: bool,
}

enum State {
    Head(Vec<u8>),
    /// So many bytes are left.
    Sized(u64),
    UntilClose,
    /// Within the line that tells the size of a chunk, whose digits end at the first other character.
    ChunkSize(u64, Digits),
    Chunk(u64),
    /// The line break behind a chunk.
    ChunkEnd,
    /// What follows the last chunk; the length of its present line.
    Trailer(usize),
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Digits {
    Going,
    Over,
}

impl Answer {
    /// Nothing has arrived.
    pub(super) fn new() -> Self {
        Self { state: State::Head(Vec::new()), status: None, closes: false }
    }

    /// The status, once the head has arrived.
    pub(super) fn status(&self) -> Option<u16> {
        self.status
    }

    /// Nothing more belongs to the answer. One without a length and chunks ends with its connection only.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// The connection takes no further request.
    pub(super) fn closes(&self) -> bool {
        self.closes || !self.has_ended()
    }

    /// Takes what arrived and hands the body's parts on.
    pub(super) fn take(&mut self, bytes: &[u8], body: &mut impl FnMut(&[u8])) -> Result<(), String> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let used = match &mut self.state {
                State::Head(head) => {
                    let before = head.len();
                    head.extend_from_slice(rest);
                    self.read_head()?.map_or(rest.len(), |end| end - before)
                }
                State::Sized(left) | State::Chunk(left) => {
                    let used = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= used as u64;
                    body(&rest[..used]);
                    self.next_when_drained();
                    used
                }
                State::UntilClose => {
                    body(rest);
                    rest.len()
                }
                State::Ended => rest.len(),
                State::ChunkSize(..) | State::ChunkEnd | State::Trailer(_) => {
                    self.take_framing(rest[0])?;
                    1
                }
            };
            rest = &rest[used..];
        }
        Ok(())
    }

    /// Reads the head if it is whole; answers where it ends.
    fn read_head(&mut self) -> Result<Option<usize>, String> {
        let State::Head(head) = &self.state else { return Ok(None) };
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let end = match response.parse(head) {
            Ok(httparse::Status::Complete(end)) => end,
            Ok(httparse::Status::Partial) if head.len() < HEAD_BYTES_MAX => return Ok(None),
            Ok(httparse::Status::Partial) => return Err("the head of an answer does not end".to_owned()),
            Err(error) => return Err(format!("an answer is not HTTP/1: {error}")),
        };
        let find = |name: &str| {
            let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            found.and_then(|header| std::str::from_utf8(header.value).ok())
        };
        let status = response.code.unwrap_or_default();
        let is_chunked = find("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        let closes = find("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let length = find("content-length").and_then(|value| value.parse::<u64>().ok());
        self.state = match length {
            _ if status < 200 => State::Head(Vec::new()),
            _ if matches!(status, 204 | 304) => State::Ended,
            _ if is_chunked => State::ChunkSize(0, Digits::Going),
            Some(length) => State::Sized(length),
            None => State::UntilClose,
        };
        if status >= 200 {
            (self.status, self.closes) = (Some(status), closes);
        }
        self.next_when_drained();
        Ok(Some(end))
    }

    fn next_when_drained(&mut self) {
        match self.state {
            State::Sized(0) => self.state = State::Ended,
            State::Chunk(0) => self.state = State::ChunkEnd,
            _ => {}
        }
    }

    /// Takes one byte between chunks.
    fn take_framing(&mut self, byte: u8) -> Result<(), String> {
        self.state = match (&self.state, byte) {
            (State::ChunkSize(0, _), b'\n') => State::Trailer(0),
            (State::ChunkSize(size, _), b'\n') => State::Chunk(*size),
            (State::ChunkSize(size, digits), byte) => {
                match char::from(byte).to_digit(16).filter(|_| *digits == Digits::Going) {
                    None => State::ChunkSize(*size, Digits::Over),
                    Some(digit) => {
                        let larger = size.checked_mul(16).ok_or("a chunk has an absurd size")?;
                        State::ChunkSize(larger + u64::from(digit), Digits::Going)
                    }
                }
            }
            (State::ChunkEnd, b'\n') => State::ChunkSize(0, Digits::Going),
            (State::Trailer(0), b'\n') => State::Ended,
            (State::Trailer(_), b'\n') => State::Trailer(0),
            (State::Trailer(length), byte) if byte != b'\r' => State::Trailer(length + 1),
            _ => return Ok(()),
        };
        Ok(())
    }
}

/// Cuts a body into lines. An event stream may end them with CRLF too; a lone CR, which it may use as well, is not
/// looked for.
#[derive(Default)]
pub(super) struct Lines {
    /// The beginning of a line whose end has not arrived.
    partial: Vec<u8>,
}

impl Lines {
    /// Takes a part of the body and hands on every line that it completes, without its end.
    pub(super) fn take(&mut self, bytes: &[u8], line: &mut impl FnMut(&[u8])) -> Result<(), String> {
        let mut rest = bytes;
        while let Some(end) = memchr(b'\n', rest) {
            if self.partial.is_empty() {
                line(without_cr(&rest[..end]));
            } else {
                self.partial.extend_from_slice(&rest[..end]);
                line(without_cr(&self.partial));
                self.partial.clear();
            }
            rest = &rest[end + 1..];
        }
        if self.partial.len() + rest.len() > LINE_BYTES_MAX {
            return Err("a line of the stream does not end".to_owned());
        }
        self.partial.extend_from_slice(rest);
        Ok(())
    }
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(pieces: &[&[u8]]) -> (Answer, Vec<String>) {
        let (mut answer, mut lines, mut found) = (Answer::new(), Lines::default(), Vec::new());
        for piece in pieces {
            let mut body = |part: &[u8]| {
                let mut keep = |line: &[u8]| found.push(String::from_utf8_lossy(line).into_owned());
                lines.take(part, &mut keep).unwrap();
            };
            answer.take(piece, &mut body).unwrap();
        }
        (answer, found)
    }

    const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
        5\r\nid: 1\r\n4;x=1\r\n\nabc\r\n2\r\n\r\n\r\n0\r\nTrailer: x\r\n\r\n";
    const SIZED: &[u8] =
        b"HTTP/1.1 201 Created\r\ncontent-length: 6\r\nConnection: close\r\n\r\nid: 1\nnothing";
    const UNTIL_CLOSE: &[u8] = b"HTTP/1.1 200 OK\r\n\r\nid: 1\n\nd";

    #[test]
    fn every_framing_is_undone() {
        let (answer, lines) = whole(&[CHUNKED]);
        assert!(answer.has_ended() && !answer.closes() && answer.status() == Some(200));
        assert_eq!(lines, ["id: 1", "abc"]);
        let (answer, lines) = whole(&[SIZED]);
        assert!(answer.has_ended() && answer.closes() && answer.status() == Some(201));
        assert_eq!(lines, ["id: 1"]);
        let (answer, lines) = whole(&[UNTIL_CLOSE]);
        assert!(!answer.has_ended(), "only the connection's end ends it");
        assert_eq!(lines, ["id: 1", ""]);
        let (answer, _) = whole(&[b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"]);
        assert!(answer.has_ended() && answer.status() == Some(204));
    }

    #[test]
    fn what_is_no_http_is_said_to_be_none() {
        let mut ignore = |_: &[u8]| {};
        assert!(Answer::new().take(b"SSH-2.0-OpenSSH\r\n", &mut ignore).is_err());
        assert!(Answer::new().take(&vec![b'x'; 2 * HEAD_BYTES_MAX], &mut ignore).is_err());
        let endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n";
        assert!(Answer::new().take(endless, &mut ignore).is_err());
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
            for bytes in [CHUNKED, SIZED, UNTIL_CLOSE] {
                let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
                at.extend([0, bytes.len()]);
                at.sort_unstable();
                let pieces: Vec<&[u8]> = at.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
                let ((once, expected), (cut, lines)) = (whole(&[bytes]), whole(&pieces));
                prop_assert_eq!(lines, expected);
                prop_assert_eq!((once.status(), once.has_ended()), (cut.status(), cut.has_ended()));
            }
        }
    }
}
