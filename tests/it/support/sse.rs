//! A subscriber: one connection over a plain socket, read only when the test asks, and cut where the test likes.
//!
//! Invariant: bytes that were not asked for stay in the kernel's buffers, so a reader that is not polled is a
//! subscriber that does not read. Neighbour: `sse_parser.rs` makes events of the bytes.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::http::escape;
use super::peer;
use super::sse_parser::{Event, Item, Parser};
use super::until::within;

/// How much of a body is kept as it came.
const RAW_BYTES_MAX: usize = 64 * 1024;

/// How much is read at a time.
const READ_BYTES: usize = 64 * 1024;

/// A subscription about to be made.
#[derive(Clone, Debug)]
pub(crate) struct Subscribe {
    path: &'static str,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    version: &'static str,
    receive_buffer: Option<u32>,
    cut_at: Option<usize>,
}

impl Subscribe {
    /// `GET /events` for these channels, as a browser asks.
    pub(crate) fn to(channels: &[&str]) -> Self {
        let query = match channels {
            [] => vec![],
            some => vec![("channels".to_owned(), some.join(","))],
        };
        let headers = vec![("Accept".to_owned(), "text/event-stream".to_owned())];
        Self { path: "/events", query, headers, version: "HTTP/1.1", receive_buffer: None, cut_at: None }
    }

    /// `GET /events/authenticated` instead, with this token.
    pub(crate) fn for_user(mut self, token: &str) -> Self {
        self.path = "/events/authenticated";
        self.bearing(token)
    }

    /// With this token.
    pub(crate) fn bearing(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    /// Adds a query parameter, escaped.
    pub(crate) fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push((name.into(), value.into()));
        self
    }

    /// Adds a header, or replaces the one of that name.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Resumes as a browser does; nothing is sent for an empty cursor.
    pub(crate) fn after(self, cursor: &str) -> Self {
        if cursor.is_empty() { self } else { self.header("Last-Event-ID", cursor) }
    }

    /// Speaks HTTP/1.0, as nginx does to its upstreams unless told otherwise.
    pub(crate) fn http_1_0(mut self) -> Self {
        self.version = "HTTP/1.0";
        self
    }

    /// Offers the server a small window, so that a reader that does not read is noticed soon. Bytes.
    pub(crate) fn receive_buffer(mut self, bytes: u32) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Pretends that the connection breaks when the body has this many bytes.
    pub(crate) fn cut_at(mut self, body_bytes: usize) -> Self {
        self.cut_at = Some(body_bytes);
        self
    }

    /// Connects and reads the response's head; whatever status it has.
    pub(crate) async fn open(&self, addr: SocketAddr) -> SseReader {
        within("an answer to GET /events", self.try_open(addr)).await.expect("the broker answers GET /events")
    }

    /// Connects and reads on until `connected`; anything else fails the test.
    pub(crate) async fn connect(&self, addr: SocketAddr) -> SseReader {
        let mut reader = self.open(addr).await;
        if reader.status != 200 {
            let why = reader.rest_as_text().await;
            panic!("GET /events was refused with {}: {why}", reader.status);
        }
        reader.connected = reader.next_control("connected").await;
        reader
    }

    /// [`Subscribe::open`] where failing is expected: the broker may be gone.
    pub(crate) async fn try_open(&self, addr: SocketAddr) -> std::io::Result<SseReader> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let mut socket = socket.connect(addr).await?;
        socket.write_all(self.request(addr).as_bytes()).await?;
        let cursor = self.headers.iter().find(|(name, _)| name == "Last-Event-ID");
        SseReader::start(socket, cursor.map_or("", |(_, cursor)| cursor), self.cut_at).await
    }

    fn request(&self, addr: SocketAddr) -> String {
        let mut request = format!("GET {}", self.path);
        for (i, (name, value)) in self.query.iter().enumerate() {
            let separator = if i == 0 { '?' } else { '&' };
            write!(request, "{separator}{name}={}", escape(value)).expect("a String takes text");
        }
        write!(request, " {}\r\nHost: {addr}\r\n", self.version).expect("a String takes text");
        for (name, value) in &self.headers {
            write!(request, "{name}: {value}\r\n").expect("a String takes text");
        }
        request + "\r\n"
    }
}

/// How the end of the body is found (RFC 9112, section 6).
#[derive(Debug)]
enum Framing {
    UntilClose,
    Length(usize),
    Chunked(Chunks),
}

/// Where in the chunked coding the reader stands.
#[derive(Debug)]
enum Chunks {
    Size(Vec<u8>),
    Data(usize),
    /// The line end after a chunk's data.
    LineEnd(usize),
    Done,
}

/// An open connection to the event stream.
#[derive(Debug)]
pub(crate) struct SseReader {
    /// The response's status code.
    pub(crate) status: u16,
    /// The `connected` event; default until it was read.
    pub(crate) connected: Event,
    /// The body's first bytes, without its framing, up to [`RAW_BYTES_MAX`].
    pub(crate) raw: Vec<u8>,
    /// Comments so far, without the colon.
    pub(crate) comments: Vec<String>,
    headers: Vec<(String, String)>,
    socket: TcpStream,
    framing: Framing,
    parser: Parser,
    ready: VecDeque<Event>,
    /// The connection is cut when this many more bytes of the body have come.
    bytes_left: usize,
    ended: bool,
    /// The connection ended where the body's framing says that more follows.
    broken: bool,
    /// What a read fills, kept for its capacity.
    buffer: Vec<u8>,
}

impl SseReader {
    async fn start(mut socket: TcpStream, cursor: &str, cut_at: Option<usize>) -> std::io::Result<Self> {
        let mut head = Vec::with_capacity(READ_BYTES);
        let end = loop {
            if let Some(at) = head.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if socket.read_buf(&mut head).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        };
        let rest = head.split_off(end + 4);
        let head =
            String::from_utf8(head).map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidData))?;
        let mut lines = head.trim_end().split("\r\n");
        let status =
            lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status line");
        let header = |line: &str| {
            let (name, value) = line.split_once(':').expect("a header has a colon");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let mut reader = Self {
            status,
            connected: Event::default(),
            raw: Vec::new(),
            comments: Vec::new(),
            headers: lines.map(header).collect(),
            socket,
            framing: Framing::UntilClose,
            parser: Parser::resumed_from(cursor),
            ready: VecDeque::new(),
            bytes_left: cut_at.unwrap_or(usize::MAX),
            ended: false,
            broken: false,
            buffer: Vec::with_capacity(READ_BYTES),
        };
        if reader.header("transfer-encoding") == Some("chunked") {
            reader.framing = Framing::Chunked(Chunks::Size(Vec::new()));
        } else if let Some(length) = reader.header("content-length") {
            reader.framing = Framing::Length(length.parse().expect("a length is a number"));
        }
        reader.take_wire(&rest);
        Ok(reader)
    }

    /// A response header by its lower-case name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether the stream ended as no server ends one that is complete.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// What a reconnect would send as `Last-Event-ID`.
    pub(crate) fn last_event_id(&self) -> &str {
        self.parser.last_event_id()
    }

    /// The next event of any kind; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        within("the next event", self.next_unhurried()).await
    }

    /// As [`SseReader::next`], for as long as `patience`; `None` then too.
    pub(crate) async fn next_within(&mut self, patience: Duration) -> Option<Event> {
        tokio::time::timeout(patience, self.next_unhurried()).await.ok().flatten()
    }

    /// The next event but heartbeats, which do not prolong the wait; `None` at the end of the stream.
    async fn next_news(&mut self) -> Option<Event> {
        let news = async {
            loop {
                match self.next_unhurried().await {
                    Some(event) if event.kind == "heartbeat" => {}
                    other => return other,
                }
            }
        };
        within("the next event", news).await
    }

    async fn next_unhurried(&mut self) -> Option<Event> {
        while self.ready.is_empty() && self.fill().await {}
        self.ready.pop_front()
    }

    /// The next `count` published events; heartbeats are passed over, anything else fails the test.
    pub(crate) async fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            let seen = events.len();
            match self.next_news().await {
                Some(event) if event.is_control() => panic!("event {seen} of {count} is {event:?}"),
                Some(event) => events.push(event),
                None => panic!("the stream ended after {seen} of {count} events"),
            }
        }
        events
    }

    /// The data of the next `count` published events.
    pub(crate) async fn data(&mut self, count: usize) -> Vec<String> {
        self.events(count).await.into_iter().map(|event| event.data).collect()
    }

    /// The data of the next published event.
    pub(crate) async fn one(&mut self) -> String {
        self.data(1).await.remove(0)
    }

    /// The next event but heartbeats, which must be of this control type.
    pub(crate) async fn next_control(&mut self, kind: &str) -> Event {
        match self.next_news().await {
            Some(event) if event.kind == kind => event,
            other => panic!("expected {kind}, got {other:?}"),
        }
    }

    /// The next event but heartbeats, which must be a `gap`; answers its data.
    pub(crate) async fn gap(&mut self) -> Value {
        self.next_control("gap").await.json()
    }

    /// The stream ends here: nothing but heartbeats may come before.
    pub(crate) async fn end(&mut self) {
        let news = self.next_news().await;
        assert_eq!(news, None, "the stream goes on");
    }

    /// Everything that is left of the body, as text.
    pub(crate) async fn rest_as_text(&mut self) -> String {
        within("the end of the body", async { while self.fill().await {} }).await;
        String::from_utf8_lossy(&self.raw).into_owned()
    }

    /// Reads at most so many bytes of the wire, as a slow reader does; false at the end of the stream.
    pub(crate) async fn sip(&mut self, bytes_max: usize) -> bool {
        within("bytes of the stream", self.fill_with(bytes_max)).await
    }

    /// From now on nothing of what the broker sends arrives, and nothing answers it.
    pub(crate) fn vanish(&self) {
        peer::vanish(&self.socket);
    }

    /// Ends the direction to the broker.
    pub(crate) async fn end_sending(&mut self) {
        // The broker may have hung up before.
        let _ = self.socket.shutdown().await;
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) {
        peer::reset(&self.socket);
    }

    /// Reads once more; false at the end, where the cut was asked for, and on a broken connection.
    async fn fill(&mut self) -> bool {
        self.fill_with(READ_BYTES).await
    }

    async fn fill_with(&mut self, bytes_max: usize) -> bool {
        if self.ended {
            return false;
        }
        let mut wire = std::mem::take(&mut self.buffer);
        wire.clear();
        // A read that was given up took the buffer with it.
        wire.reserve(READ_BYTES);
        match (&mut self.socket).take(bytes_max as u64).read_buf(&mut wire).await {
            Ok(0) => (self.ended, self.broken) = (true, !matches!(self.framing, Framing::UntilClose)),
            Err(_) => (self.ended, self.broken) = (true, true),
            Ok(_) => self.take_wire(&wire),
        }
        self.buffer = wire;
        true
    }

    fn take_wire(&mut self, mut wire: &[u8]) {
        while let [first, rest @ ..] = wire {
            let (body, left, next) = match &mut self.framing {
                Framing::UntilClose => (wire, &[][..], None),
                Framing::Length(0) | Framing::Chunked(Chunks::Done) => {
                    self.ended = true;
                    return;
                }
                Framing::Length(length) => {
                    let (body, left) = wire.split_at((*length).min(wire.len()));
                    (body, left, Some(Framing::Length(*length - body.len())))
                }
                Framing::Chunked(Chunks::Size(line)) => {
                    line.push(*first);
                    let size = line.strip_suffix(b"\r\n").map(|digits| {
                        let digits = std::str::from_utf8(digits).expect("a chunk size is text");
                        usize::from_str_radix(digits, 16).expect("a chunk size is hexadecimal")
                    });
                    let next =
                        size.map(|n| Framing::Chunked(if n == 0 { Chunks::Done } else { Chunks::Data(n) }));
                    (&[][..], rest, next)
                }
                Framing::Chunked(Chunks::Data(left_over)) => {
                    let (body, left) = wire.split_at((*left_over).min(wire.len()));
                    let open = *left_over - body.len();
                    let state = if open == 0 { Chunks::LineEnd(2) } else { Chunks::Data(open) };
                    (body, left, Some(Framing::Chunked(state)))
                }
                Framing::Chunked(Chunks::LineEnd(bytes)) => {
                    let next = if *bytes == 1 { Chunks::Size(Vec::new()) } else { Chunks::LineEnd(1) };
                    (&[][..], rest, Some(Framing::Chunked(next)))
                }
            };
            if let Some(next) = next {
                self.framing = next;
            }
            wire = left;
            self.take_body(body);
        }
        self.ended |= matches!(self.framing, Framing::Length(0) | Framing::Chunked(Chunks::Done));
    }

    fn take_body(&mut self, body: &[u8]) {
        self.ended |= self.bytes_left <= body.len();
        let body = &body[..body.len().min(self.bytes_left)];
        self.bytes_left -= body.len();
        let kept = RAW_BYTES_MAX.saturating_sub(self.raw.len()).min(body.len());
        self.raw.extend_from_slice(&body[..kept]);
        let mut items = Vec::new();
        self.parser.feed(body, &mut items);
        for item in items {
            match item {
                Item::Event(event) => self.ready.push_back(event),
                Item::Comment(comment) => self.comments.push(comment),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Serves one connection with these bytes, in pieces of `piece` bytes.
    async fn serve(answer: String, piece: usize, cut: Option<usize>) -> Vec<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serving = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let n = socket.read(&mut request).await.unwrap();
            assert!(request[..n].starts_with(b"GET /events?channels=a%2Cb HTTP/1.1\r\n"));
            for bytes in answer.as_bytes().chunks(piece) {
                if socket.write_all(bytes).await.is_err() {
                    break;
                }
                socket.flush().await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let reading = async {
            let subscribe = Subscribe::to(&["a", "b"]);
            let subscribe = cut.map_or(subscribe.clone(), |cut| subscribe.cut_at(cut));
            let mut reader = subscribe.open(addr).await;
            let mut seen = vec![];
            while let Some(event) = reader.next().await {
                seen.push(event.data);
            }
            seen
        };
        tokio::join!(serving, reading).1
    }

    #[tokio::test]
    async fn every_framing_of_the_body_gives_the_same_events() {
        let close = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: 1\n\ndata: 22\n\n";
        let length = "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\ndata: 1\n\ndata: 22\n\nHTTP/1.1";
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                       b\r\ndata: 1\n\nda\r\n8\r\nta: 22\n\n\r\n0\r\n\r\n";
        for answer in [close, length, chunked] {
            for piece in [1, 7, 1_000] {
                assert_eq!(serve(answer.to_owned(), piece, None).await, ["1", "22"], "{answer} by {piece}");
            }
        }
    }

    #[tokio::test]
    async fn a_cut_forgets_what_was_not_complete() {
        let answer = "HTTP/1.1 200 OK\r\n\r\ndata: 1\n\ndata: 22\n\n";
        for (cut, expected) in [(0, 0), (8, 0), (9, 1), (18, 1), (19, 2)] {
            assert_eq!(serve(answer.to_owned(), 5, Some(cut)).await.len(), expected, "cut at {cut}");
        }
    }
}
