//! A scripted broker for tests of the client commands: it answers one connection after the other with the
//! bytes it was given, and tells what it was asked.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Failure;
use super::client::ClientArgs;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Listens on a free port of loopback until it is dropped.
pub(super) struct ScriptedBroker {
    address: SocketAddr,
    requests: mpsc::Receiver<String>,
    _task: JoinSet<()>,
}

/// What a connection gets.
pub(super) enum Answer {
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// These bytes, then nothing until the client leaves.
    Hold(Vec<u8>),
}

impl ScriptedBroker {
    pub(super) async fn start(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, requests) = mpsc::channel(64);
        let mut task = JoinSet::new();
        task.spawn(async move {
            for answer in answers {
                let (mut socket, _) = listener.accept().await.unwrap();
                sender.send(read_request(&mut socket).await).await.unwrap();
                let (Answer::Bytes(bytes) | Answer::Hold(bytes)) = &answer;
                socket.write_all(bytes).await.unwrap();
                if matches!(answer, Answer::Hold(_)) {
                    let _ = socket.read_to_end(&mut Vec::new()).await;
                }
            }
        });
        Self { address, requests, _task: task }
    }

    pub(super) fn client(&self) -> ClientArgs {
        ClientArgs { url: format!("http://{}", self.address), token: Some("t0ken".to_owned()) }
    }

    /// The next request, head and body as they came.
    pub(super) async fn request(&mut self) -> String {
        tokio::time::timeout(PATIENCE, self.requests.recv()).await.unwrap().unwrap()
    }
}

async fn read_request(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let chunked = head.contains("transfer-encoding: chunked");
            let complete =
                if chunked { body.ends_with("0\r\n\r\n") } else { body.len() >= length.unwrap_or(0) };
            if complete {
                return text;
            }
        }
        if socket.read_buf(&mut bytes).await.unwrap() == 0 {
            return text;
        }
    }
}

/// An answer with a JSON body.
pub(super) fn json(status: &str, body: &str) -> Answer {
    let length = body.len();
    Answer::Bytes(
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .into_bytes(),
    )
}

/// The head of an event stream and what it holds.
pub(super) fn stream(events: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n{events}")
        .into_bytes()
}

/// A failure as its user sees it.
pub(super) fn told(failure: Failure) -> (super::Exit, String) {
    (failure.exit, failure.message.map(|message| format!("{message:#}")).unwrap_or_default())
}

/// Waits for a command that must end.
pub(super) async fn soon<T>(command: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, command).await.expect("the command ends")
}
