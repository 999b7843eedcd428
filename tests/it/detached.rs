//! The connection around an event stream: what a client sends after its request, how it leaves, and how the stream
//! ends on the wire. Most of it is the same whoever writes the stream; what is not says so.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{Broker, Setup, Store, Streams, Subscribe, until, within};

/// What slow clients do between two reads. With the second, one large event takes several times the `write_timeout`.
const BREATH: Duration = Duration::from_micros(200);
const READING: Duration = Duration::from_millis(20);

const GET: &str = "GET /events?channels=a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n";

async fn start(streams: Streams) -> Broker {
    Broker::start(Setup { store: Store::Embedded, streams }).await
}

/// Connects and sends this.
async fn send(addr: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    socket
}

/// Reads on until this has come; answers everything so far.
async fn read_until(socket: &mut TcpStream, text: &str) -> String {
    let mut got = Vec::new();
    let reading = async {
        let mut seen = 0;
        while !got[seen..].windows(text.len()).any(|window| window == text.as_bytes()) {
            seen = got.len().saturating_sub(text.len());
            let count = socket.read_buf(&mut got).await.unwrap();
            assert!(count > 0, "the stream ended before {text:?}: {}", String::from_utf8_lossy(&got));
        }
    };
    within(&format!("{text:?} comes"), reading).await;
    String::from_utf8(got).unwrap()
}

/// Waits until this many sessions of the broker listen to `a`.
async fn subscribers(broker: &Broker, expected: u64) {
    until("the subscribers are counted", async || {
        let info = broker.http.get("/channels/a").await;
        let total = if info.status == 200 { info.json()["subscribers"]["total"].as_u64() } else { Some(0) };
        (total == Some(expected)).then_some(())
    })
    .await;
}

async fn what_a_client_sends_after_its_request_changes_nothing(streams: Streams) {
    let broker = start(streams).await;
    let pipelined = format!("{GET}\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let body = format!("{GET}Content-Length: 5\r\n\r\nhello");
    let chunked = format!("{GET}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    let unfinished = format!("{GET}Content-Length: 100\r\nExpect: 100-continue\r\n\r\n");
    for request in [pipelined, body, chunked, unfinished] {
        let mut socket = send(broker.addr, request.as_bytes()).await;
        read_until(&mut socket, "event: connected").await;
        broker.http.publish("a", "live").await;
        let got = read_until(&mut socket, "data: live").await;
        assert!(!got.contains("HTTP/1.1"), "a second answer after {request:?}: {got}");
    }
    // The HTTP library notices who left without the rest of a body when it has something to write.
    until("the last client is noticed to be gone", async || {
        broker.http.publish("a", "nobody is there").await;
        (broker.metrics().get("headwater_event_streams") == 0).then_some(())
    })
    .await;
}

/// Over the other path the HTTP library stops reading instead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_without_end_is_read_and_ignored() {
    let broker = Broker::start(Store::Embedded).await;
    let mut socket = send(broker.addr, format!("{GET}\r\n").as_bytes()).await;
    read_until(&mut socket, "event: connected").await;
    let junk = vec![b'x'; 1 << 20];
    for _ in 0..8 {
        within("the server takes what is sent", socket.write_all(&junk)).await.unwrap();
    }
    broker.http.publish("a", "live").await;
    read_until(&mut socket, "data: live").await;
}

async fn answers_to_earlier_requests_arrive_whole_before_the_stream(streams: Streams) {
    let broker = start(streams).await;
    let text = "x".repeat(100_000);
    for _ in 0..10 {
        broker.http.publish("big", text.as_str()).await;
    }
    let history = "GET /channels/big/events?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let mut socket = socket.connect(broker.addr).await.unwrap();
    socket.write_all(format!("{history}{history}{GET}\r\n").as_bytes()).await.unwrap();
    let got = read_until(&mut socket, "event: connected").await;
    let heads: Vec<_> = got.match_indices("HTTP/1.1 200 OK").map(|(at, _)| at).collect();
    assert_eq!(heads.len(), 3);
    for answer in [&got[heads[0]..heads[1]], &got[heads[1]..heads[2]]] {
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).expect("a whole answer");
        assert_eq!(body["events"].as_array().unwrap().len(), 10);
    }
}

async fn a_client_that_leaves_or_vanishes_is_noticed_at_once(streams: Streams) {
    let broker = start(streams).await;
    for reset in [false, true] {
        let mut socket = send(broker.addr, format!("{GET}\r\n").as_bytes()).await;
        read_until(&mut socket, "event: connected").await;
        subscribers(&broker, 1).await;
        if reset {
            socket.set_zero_linger().unwrap();
        }
        drop(socket);
        subscribers(&broker, 0).await;
    }
    let mut half = send(broker.addr, format!("{GET}\r\n").as_bytes()).await;
    read_until(&mut half, "event: connected").await;
    half.shutdown().await.unwrap();
    subscribers(&broker, 0).await;
    let mut rest = Vec::new();
    within("the server ends its direction too", half.read_to_end(&mut rest)).await.unwrap();
}

/// Who was cut off can tell it from the end of a stream: see docs/decisions. Seen to fail without chunks.
async fn a_broker_that_dies_leaves_a_body_that_is_broken(streams: Streams) {
    let mut broker = start(streams).await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    broker.http.publish("a", "last").await;
    assert_eq!(reader.one().await, "last");
    broker.kill9();
    reader.end().await;
    assert!(reader.is_broken());
}

/// A socket that is closed with unread bytes resets the connection, and what was on its way is lost. Seen to fail
/// with a stream that closes its socket as soon as it has ended its direction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_reaches_a_client_that_still_sends() {
    let setup = Broker::on(Store::Embedded).await.set("retention.max_length", "10000");
    let broker = setup.set("sse.lifetime_max", "300ms").start().await;
    let texts = vec!["x".repeat(10_000); 1_000];
    for part in texts.chunks(250) {
        broker.http.publish_all("a", part).await;
    }
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let socket = socket.connect(broker.addr).await.unwrap();
    let (mut reader, mut writer) = socket.into_split();
    writer.write_all(format!("{GET}Last-Event-ID: earliest\r\n\r\n").as_bytes()).await.unwrap();
    let sending = async {
        while writer.write_all(b"noise\r\n").await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    let reading = async {
        let (mut got, mut piece) = (Vec::new(), [0; 2_048]);
        loop {
            match reader.read(&mut piece).await.expect("the connection is not reset") {
                0 => return got,
                count => got.extend_from_slice(&piece[..count]),
            }
            tokio::time::sleep(BREATH).await;
        }
    };
    let got = within("the stream ends", async {
        tokio::select! { got = reading => got, () = sending => panic!("the connection broke while the client sent") }
    })
    .await;
    let end = String::from_utf8_lossy(&got[got.len().saturating_sub(200)..]).into_owned();
    assert!(end.contains("event: closing") && end.ends_with("\n\n\r\n0\r\n\r\n"), "it ended with {end:?}");
}

/// Heads are the same over both paths up to how the end of the body is found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_stream_has_the_head_that_the_layers_gave_it() {
    let origin = "https://app.example";
    let mut heads = Vec::new();
    for streams in [Streams::Detached, Streams::Bodies] {
        let broker = Broker::on(Setup { store: Store::Embedded, streams }).await;
        let broker = broker.set("cors.allowed_origins", &format!("[\"{origin}\"]")).start().await;
        let mut socket = send(broker.addr, format!("{GET}Origin: {origin}\r\n\r\n").as_bytes()).await;
        let got = read_until(&mut socket, "\r\n\r\n").await;
        let (head, _) = got.split_once("\r\n\r\n").unwrap();
        let mut lines: Vec<String> = head.lines().map(ToOwned::to_owned).collect();
        let date = lines.iter().position(|line| line.starts_with("date: ")).expect("a date");
        let date = lines.remove(date);
        assert!(
            date.ends_with(" GMT") && date.len() == "date: Sun, 06 Nov 1994 08:49:37 GMT".len(),
            "{date}"
        );
        lines.sort();
        heads.push(lines);
    }
    let [mut detached, body] = heads.try_into().unwrap();
    let framing = |lines: &mut Vec<String>, line: &str| {
        let at =
            lines.iter().position(|known| known == line).unwrap_or_else(|| panic!("{line} in {lines:?}"));
        lines.remove(at);
    };
    framing(&mut detached, "connection: close");
    assert_eq!(detached, body);
    assert!(detached.contains(&format!("access-control-allow-origin: {origin}")), "{detached:?}");
}

async fn requests_around_a_stream_are_ordinary(streams: Streams) {
    let broker = start(streams).await;
    let answer = broker.http.send(Method::HEAD, "/events?channels=a", &[], "").await.expect(200);
    assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
    let head = GET.replace("GET", "HEAD");
    let wrong = GET.replace("channels=a", "channels=$a");
    let mut socket = send(broker.addr, format!("{head}\r\n{wrong}\r\n{GET}\r\n").as_bytes()).await;
    let got = read_until(&mut socket, "event: connected").await;
    let statuses: Vec<_> = got.match_indices("HTTP/1.1 ").map(|(at, _)| &got[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "400", "200"], "one connection answers what precedes its stream: {got}");
}

/// Seen to fail with a `write_timeout` that counts from the first byte that had to wait.
async fn a_client_that_reads_little_but_reads_is_kept(streams: Streams) {
    let setup = Broker::on(Setup { store: Store::Embedded, streams }).await;
    let broker = setup.set("sse.write_timeout", "1s").set("publish.event_bytes_max", "4000000").start().await;
    let text = "x".repeat(3_000_000);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(32 * 1024).unwrap();
    let mut socket = socket.connect(broker.addr).await.unwrap();
    socket.write_all(format!("{GET}\r\n").as_bytes()).await.unwrap();
    read_until(&mut socket, "event: connected").await;
    broker.http.publish("a", text.as_str()).await;
    let (mut got, mut piece) = (0, vec![0; 16 * 1024]);
    while got < text.len() {
        let count = within("more of the event", socket.read(&mut piece)).await.unwrap();
        assert!(count > 0, "the stream ended after {got} bytes");
        got += count;
        tokio::time::sleep(READING).await;
    }
    read_until(&mut socket, "\n\n").await;
}

both_streams!(
    what_a_client_sends_after_its_request_changes_nothing,
    answers_to_earlier_requests_arrive_whole_before_the_stream,
    a_client_that_leaves_or_vanishes_is_noticed_at_once,
    a_broker_that_dies_leaves_a_body_that_is_broken,
    requests_around_a_stream_are_ordinary,
    a_client_that_reads_little_but_reads_is_kept,
);
