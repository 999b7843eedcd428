//! Real `redis-server` processes on free loopback ports, each in a directory of its own, and a small client
//! that looks in as `redis-cli` would.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::until::until;

/// How often a port that another process took first is replaced by a new one.
const PORT_TRIES: usize = 10;

/// Where a server without an append-only file keeps its data.
const DUMP: &str = "dump.rdb";

/// The data of a server at one moment.
pub(crate) struct Snapshot(Vec<u8>);

/// A running server; it ends when this is dropped.
pub(crate) struct Redis {
    port: u16,
    dir: TempDir,
    /// Configuration directives given on the command line, later ones win.
    options: Vec<(String, String)>,
    child: Mutex<Child>,
}

impl Redis {
    /// A server that keeps nothing on disk.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A server that answers a write only after it is on disk, and so loses nothing to `kill -9`.
    pub(crate) async fn durable() -> Self {
        Self::with(&[("appendonly", "yes"), ("appendfsync", "always")]).await
    }

    /// A server with directives of `redis.conf`, as `("maxmemory", "20mb")`.
    pub(crate) async fn with(options: &[(&str, &str)]) -> Self {
        let base = [("save", ""), ("appendonly", "no")];
        let options: Vec<_> =
            base.iter().chain(options).map(|(name, value)| ((*name).into(), (*value).into())).collect();
        for _ in 0..PORT_TRIES {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let port = free_port();
            let child = Mutex::new(launch(port, &dir, &options));
            let redis = Self { port, dir, options: options.clone(), child };
            if redis.answers().await {
                return redis;
            }
        }
        panic!("redis-server ended {PORT_TRIES} times as soon as it started with {options:?}");
    }

    /// The port it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What `--redis` takes.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends the server as a power cut would.
    pub(crate) fn kill9(&self) {
        let mut child = self.child.lock();
        child.kill().expect("redis-server can be killed");
        child.wait().expect("redis-server can be waited for");
    }

    /// Starts it again on its port and with what its directory holds.
    pub(crate) async fn restart(&self) {
        *self.child.lock() = launch(self.port, &self.dir, &self.options);
        assert!(self.answers().await, "redis-server did not come back on port {}", self.port);
    }

    /// What the server holds now, functions included, for [`Redis::restore`].
    pub(crate) async fn snapshot(&self) -> Snapshot {
        self.command(&["SAVE"]).await;
        Snapshot(std::fs::read(self.dir.path().join(DUMP)).expect("SAVE wrote a file"))
    }

    /// Ends the server without warning and starts it with what it held at that moment: the rest of history is lost.
    pub(crate) async fn restore(&self, snapshot: &Snapshot) {
        self.kill9();
        std::fs::write(self.dir.path().join(DUMP), &snapshot.0).expect("the directory takes a file");
        self.restart().await;
    }

    /// Freezes the server: its connections stay open and nothing answers.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Ends [`Redis::pause`].
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Bytes that were sent to it and that it has not read (`proc_pid_net(5)`, `tcp`, `rx_queue`).
    pub(crate) fn unread_bytes(&self) -> u64 {
        let sockets = std::fs::read_to_string("/proc/net/tcp").expect("Linux lists its sockets");
        let own = format!(":{:04X}", self.port);
        let unread = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let queued = fields.get(4).filter(|_| fields[1].ends_with(&own))?.split_once(':')?.1;
            u64::from_str_radix(queued, 16).ok()
        };
        sockets.lines().filter_map(unread).sum()
    }

    /// Runs one command on a connection of its own; an error answer fails the test.
    pub(crate) async fn command(&self, words: &[&str]) -> Value {
        match self.try_command(words).await {
            Ok(Value::Error(message)) => panic!("{words:?} answered {message}"),
            Ok(value) => value,
            Err(error) => panic!("{words:?} failed: {error}"),
        }
    }

    async fn try_command(&self, words: &[&str]) -> std::io::Result<Value> {
        let mut socket = BufReader::new(TcpStream::connect(("127.0.0.1", self.port)).await?);
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
        }
        socket.write_all(&request).await?;
        Box::pin(read_value(&mut socket)).await
    }

    /// Waits for the answer to PING; false when the process ended instead.
    async fn answers(&self) -> bool {
        until("redis-server answers PING", async || {
            if self.child.lock().try_wait().expect("redis-server can be waited for").is_some() {
                return Some(false);
            }
            let pong = self.try_command(&["PING"]).await;
            // A server that still loads its file answers with an error.
            matches!(pong, Ok(Value::Text(text)) if text == "PONG").then_some(true)
        })
        .await
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child.lock());
        kill_process(pid, signal).expect("redis-server takes signals");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let mut child = self.child.lock();
        // Either may fail only because the process is gone already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// An answer of Redis (Redis documentation, "Redis serialization protocol", version 2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// Nothing there.
    Nil,
    /// A number.
    Int(i64),
    /// A status or a string; bytes that are no UTF-8 are replaced.
    Text(String),
    /// The command was refused.
    Error(String),
    /// Several.
    Array(Vec<Value>),
}

impl Value {
    /// The text, or the test fails.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            other => panic!("expected a string, got {other:?}"),
        }
    }

    /// The number, or the test fails.
    pub(crate) fn int(&self) -> i64 {
        match self {
            Self::Int(number) => *number,
            other => panic!("expected a number, got {other:?}"),
        }
    }

    /// The items, or the test fails.
    pub(crate) fn items(&self) -> &[Self] {
        match self {
            Self::Array(items) => items,
            other => panic!("expected an array, got {other:?}"),
        }
    }

    /// The items as texts.
    pub(crate) fn texts(&self) -> Vec<&str> {
        self.items().iter().map(Self::text).collect()
    }

    /// The value that follows `name` in a flat list of names and values, as in a hash or a stream entry.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.items().chunks(2).find(|pair| pair[0].text() == name).map(|pair| pair[1].text())
    }
}

async fn read_value(socket: &mut BufReader<TcpStream>) -> std::io::Result<Value> {
    let mut line = String::new();
    socket.read_line(&mut line).await?;
    let Some(rest) = line.strip_suffix("\r\n") else {
        return Err(ErrorKind::UnexpectedEof.into());
    };
    let (kind, rest) = rest.split_at(1);
    let number = || rest.parse::<i64>().map_err(|_| std::io::Error::from(ErrorKind::InvalidData));
    match kind {
        "+" => Ok(Value::Text(rest.to_owned())),
        "-" => Ok(Value::Error(rest.to_owned())),
        ":" => Ok(Value::Int(number()?)),
        "$" => {
            let Ok(length) = usize::try_from(number()?) else { return Ok(Value::Nil) };
            let mut bytes = vec![0; length + 2];
            socket.read_exact(&mut bytes).await?;
            Ok(Value::Text(String::from_utf8_lossy(&bytes[..length]).into_owned()))
        }
        "*" => {
            let Ok(length) = usize::try_from(number()?) else { return Ok(Value::Nil) };
            let mut items = Vec::with_capacity(length);
            for _ in 0..length {
                items.push(Box::pin(read_value(socket)).await?);
            }
            Ok(Value::Array(items))
        }
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

fn launch(port: u16, dir: &TempDir, options: &[(String, String)]) -> Child {
    let mut command = Command::new("redis-server");
    command.current_dir(dir.path()).args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
    for (name, value) in options {
        command.arg(format!("--{name}")).arg(value);
    }
    let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    started.unwrap_or_else(|error| {
        panic!("redis-server cannot be started ({error}); `make setup` installs it, or: apt-get install redis-server")
    })
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
    listener.local_addr().expect("a bound socket has an address").port()
}

#[tokio::test]
async fn what_was_written_is_there_after_kill_and_restart_and_a_paused_server_is_silent() {
    let redis = Redis::durable().await;
    redis.command(&["SET", "key", "value\r\n"]).await;
    redis.kill9();
    assert!(redis.try_command(&["PING"]).await.is_err(), "nobody listens");
    redis.restart().await;
    assert_eq!(redis.command(&["GET", "key"]).await, Value::Text("value\r\n".into()));
    assert_eq!(redis.command(&["GET", "none"]).await, Value::Nil);

    redis.command(&["XADD", "s", "1-1", "type", "t"]).await;
    let entries = redis.command(&["XRANGE", "s", "-", "+"]).await;
    assert_eq!(entries.items()[0].items()[1].field("type"), Some("t"));

    redis.pause();
    let blocked = tokio::time::timeout(std::time::Duration::from_millis(200), redis.command(&["PING"]));
    assert!(blocked.await.is_err(), "a paused server does not answer");
    redis.resume();
    assert_eq!(redis.command(&["PING"]).await.text(), "PONG");
}
