//! A blocking client of Redis on one connection: pipelined, and binary in what it sends.
//!
//! Invariant: answers come in the order of the commands. `redis.rs` looks in from outside with one connection a
//! command; this one is for those who call often, the tests of the function library and its benchmark.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longest silence of the server; it also ends a test that waits in vain.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// One connection.
pub(crate) struct Resp {
    socket: BufReader<TcpStream>,
    /// Commands that were not sent yet.
    request: Vec<u8>,
}

/// An answer (Redis documentation, "Redis serialization protocol", version 2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Nothing there.
    Nil,
    /// A number.
    Int(i64),
    /// A status or a string; bytes that are no UTF-8 are replaced.
    Text(String),
    /// The command was refused.
    Error(String),
    /// Several.
    Array(Vec<Reply>),
}

impl Resp {
    /// Connects to a server of this machine.
    pub(crate) fn connect(port: u16) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).expect("redis-server listens");
        socket.set_nodelay(true).expect("a TCP option");
        socket.set_read_timeout(Some(SILENCE_MAX)).expect("a TCP option");
        Self { socket: BufReader::with_capacity(1 << 18, socket), request: Vec::new() }
    }

    /// Adds a command to those that [`Resp::flush`] sends.
    pub(crate) fn push<W: AsRef<[u8]>>(&mut self, words: &[W]) {
        self.request.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words.iter().map(AsRef::as_ref) {
            self.request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            self.request.extend_from_slice(word);
            self.request.extend_from_slice(b"\r\n");
        }
    }

    /// Sends what was pushed.
    pub(crate) fn flush(&mut self) {
        self.socket.get_mut().write_all(&self.request).expect("redis-server reads");
        self.request.clear();
    }

    /// The next answer.
    pub(crate) fn receive(&mut self) -> Reply {
        let mut line = String::new();
        self.socket.read_line(&mut line).expect("redis-server answers in time");
        let line = line.strip_suffix("\r\n").expect("an answer is a line, or redis-server ended");
        let (kind, rest) = line.split_at(1);
        let number = || rest.parse::<i64>().expect("a number");
        match kind {
            "+" => Reply::Text(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Int(number()),
            "$" => usize::try_from(number()).map_or(Reply::Nil, |length| {
                let mut bytes = vec![0; length + 2];
                self.socket.read_exact(&mut bytes).expect("redis-server answers in time");
                Reply::Text(String::from_utf8_lossy(&bytes[..length]).into_owned())
            }),
            "*" => usize::try_from(number())
                .map_or(Reply::Nil, |length| Reply::Array((0..length).map(|_| self.receive()).collect())),
            _ => panic!("no answer begins like {line:?}"),
        }
    }

    /// Sends one command and waits for its answer, an error included.
    pub(crate) fn try_call<W: AsRef<[u8]>>(&mut self, words: &[W]) -> Reply {
        self.push(words);
        self.flush();
        self.receive()
    }

    /// [`Resp::try_call`]; an error panics.
    pub(crate) fn call<W: AsRef<[u8]>>(&mut self, words: &[W]) -> Reply {
        let reply = self.try_call(words);
        if let Reply::Error(error) = &reply {
            let shown = |word: &W| word.as_ref().escape_ascii().take(80).map(char::from).collect::<String>();
            let words: Vec<String> = words.iter().take(8).map(shown).collect();
            panic!("{words:?} answered {error}");
        }
        reply
    }
}

impl Reply {
    /// The text.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            other => panic!("expected a string, got {other:?}"),
        }
    }

    /// The items.
    pub(crate) fn items(&self) -> &[Self] {
        match self {
            Self::Array(items) => items,
            other => panic!("expected an array, got {other:?}"),
        }
    }
}
