//! Clients that hold a connection for nothing, leave in the middle, or speak no HTTP: they are dropped or
//! forgotten, whichever protocol they seem to speak, and disturb nobody.
//!
//! That nothing is left of them the harness proves at the end of every test.

use std::net::SocketAddr;

use futures_util::StreamExt;
use futures_util::stream::iter;
use rand::RngExt;
use tokio::task::JoinSet;

use crate::support::until::Wait;
use crate::support::{Broker, Peer, Store, Subscribe, seeded, until, within};

/// The beginning of HTTP/2 with prior knowledge, and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Clients at a time.
const AT_A_TIME: usize = 64;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// Waits until no stream is open.
async fn streams_end(broker: &Broker) {
    until("the streams are given up", async || {
        (broker.metrics().get("headwater_event_streams") == 0).then_some(())
    })
    .await;
}

/// Seen to fail with a server that detects the protocol without a timer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_finish_its_head_is_dropped() {
    let broker = Broker::on(Store::Embedded).await.set("server.header_timeout", "300ms").start().await;
    let preface_and_settings = [PREFACE, SETTINGS].concat();
    let beginnings: [&[u8]; 6] =
        [b"", b"G", b"PRI * HT", PREFACE, &preface_and_settings, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-"];
    for begin in beginnings {
        Peer::sending(broker.addr, begin).await.read_to_end().await;
    }
    let answered = Peer::sending(broker.addr, get("/healthz")).await.read_to_end().await;
    assert!(answered.starts_with(b"HTTP/1.1 200 "), "and who asks nothing further is dropped, too");
}

/// Sends `begin` and then `more` again and again, until the broker hangs up.
async fn trickle(addr: SocketAddr, begin: Vec<u8>, more: &'static [u8]) {
    let mut peer = Peer::sending(addr, &begin).await;
    let wait = Wait::until("the broker drops a client that trickles");
    while peer.send(more).await {
        wait.again().await;
    }
}

/// Seen to fail without a timer on the heads of HTTP/1.1, and without one on connections of HTTP/2 that have no
/// request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_come_byte_by_byte_are_dropped_and_disturb_nobody() {
    let broker = Broker::on(Store::Embedded).await.set("server.header_timeout", "500ms").start().await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    // A HEADERS frame that announces 16,000 bytes (RFC 9113, section 6.2).
    let headers = [PREFACE, SETTINGS, &[0, 0x3e, 0x80, 1, 5, 0, 0, 0, 1]].concat();
    let mut slow = JoinSet::new();
    for _ in 0..100 {
        slow.spawn(trickle(
            broker.addr,
            b"GET /events HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".to_vec(),
            b"x",
        ));
        slow.spawn(trickle(broker.addr, headers.clone(), &[0x82]));
    }
    for number in 0..20 {
        broker.http.publish("a", number.to_string()).await;
        assert_eq!(reader.one().await, number.to_string());
    }
    within("every slow head is dropped", slow.join_all()).await;
}

/// A literal HEADERS frame for `GET path` on stream 1, without Huffman coding or indexing.
fn http2_get(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86];
    for (index, value) in [(4u8, path), (1, "localhost")] {
        block.extend([index, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    }
    let length = u32::try_from(block.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], 1, 0x5, 0, 0, 0, 1];
    frame.extend(block);
    [PREFACE, SETTINGS, &frame].concat()
}

/// Connects and leaves in one of several ways.
async fn come_and_go(addr: SocketAddr, manner: u16) {
    let stream = get("/events?channels=a,b,c&last_event_id=earliest");
    match manner % 10 {
        0 => drop(Peer::connect(addr).await),
        1 => Peer::connect(addr).await.reset(),
        2 => drop(Peer::sending(addr, &stream[..stream.len() / 2]).await),
        3 => drop(Peer::sending(addr, &stream).await),
        4 => Peer::sending(addr, &stream).await.reset(),
        5 => {
            let mut peer = Peer::sending(addr, &stream).await;
            peer.read_until("event: connected").await;
            peer.reset();
        }
        6 => Peer::sending(addr, PREFACE).await.reset(),
        7 => drop(Peer::sending(addr, http2_get("/events?channels=a")).await),
        8 => Peer::sending(addr, http2_get("/events?channels=a,b")).await.reset(),
        _ => {
            let mut peer = Peer::sending(addr, &stream).await;
            peer.end_sending().await;
            peer.read_to_end().await;
        }
    }
}

/// Seen to fail with a session that stays registered when it is dropped, with a listener that stays in its topic,
/// and with a task for each connection that does not end.
async fn thousands_that_come_and_go_leave_nothing(store: Store) {
    let broker = Broker::start(store).await;
    broker.http.publish_all("a", &vec!["x".repeat(1_000); 50]).await;
    let before = broker.metrics();
    let clients: u16 = 3_000;
    let leaving = iter(0..clients).map(|manner| come_and_go(broker.addr, manner));
    within("they come and go", leaving.buffer_unordered(AT_A_TIME).collect::<Vec<_>>()).await;
    streams_end(&broker).await;
    let now = broker.metrics();
    let came =
        now.get("headwater_connections_accepted_total") - before.get("headwater_connections_accepted_total");
    assert!(came >= u64::from(clients), "{came} of {clients} connections");
    until("every descriptor is closed", async || {
        (broker.metrics().get("process_open_fds") <= before.get("process_open_fds")).then_some(())
    })
    .await;
}

/// Seen to fail with a session that stays registered when its client resets.
async fn clients_that_reset_in_the_middle_of_a_stream_are_forgotten_and_the_others_get_everything(
    store: Store,
) {
    let broker = Broker::on(store).await.set("retention.max_length", "10000").start().await;
    let mut rng = seeded();
    broker.http.publish_all("a", &vec!["old".repeat(3_000); 100]).await;
    let mut steady = Subscribe::to(&["a"]).connect(broker.addr).await;
    let mut restless = JoinSet::new();
    for _ in 0..150 {
        let (addr, sips) = (broker.addr, rng.random_range(0..40));
        restless.spawn(async move {
            let mut reader = Subscribe::to(&["a"]).after("earliest").connect(addr).await;
            for _ in 0..sips {
                reader.sip(20_000).await;
            }
            reader.reset();
        });
    }
    let texts: Vec<String> = (0..200).map(|number| format!("{number}:{}", "x".repeat(5_000))).collect();
    for part in texts.chunks(20) {
        broker.http.publish_all("a", part).await;
    }
    assert!(steady.data(texts.len()).await == texts, "others are not disturbed");
    within("all have reset", restless.join_all()).await;
    until("only one is left", async || (broker.metrics().get("headwater_event_streams") == 1).then_some(()))
        .await;
}

/// What comes back must be an error of the client's, or nothing.
async fn is_refused(addr: SocketAddr, bytes: &[u8]) {
    let answer = Peer::sending(addr, bytes).await.read_to_end().await;
    let text = String::from_utf8_lossy(&answer);
    // HTTP/2 answers with frames: SETTINGS, and GOAWAY when it gives up.
    let is_http2 = PREFACE.starts_with(&bytes[..bytes.len().min(PREFACE.len())]);
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
    assert!(
        answer.is_empty() || text.starts_with("HTTP/1.1 4") || is_http2,
        "{shown:?} was answered {text:?}"
    );
}

/// Seen to fail with a handler that panics on a head that it does not expect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_http_is_refused_and_harms_nobody() {
    let broker = Broker::on(Store::Embedded).await.set("server.header_timeout", "300ms").start().await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    let many_headers = format!("GET /events HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(5_000));
    let long_line = format!("GET /events?channels={} HTTP/1.1\r\n", "a,".repeat(100_000));
    let post = "POST /channels/a/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n";
    let garbage: Vec<Vec<u8>> = [
        "\0\0\0\0\0\0\0\0",
        // A TLS handshake, SSH, SMTP, Redis.
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}",
        "SSH-2-OpenSSH_9.2\r\n",
        "EHLO localhost\r\n",
        "*1\r\n$4\r\nPING\r\n",
        "GET /events HTTP/9.9\r\n\r\n",
        "GET /events\r\n\r\n",
        "GET  HTTP/1.1\r\n\r\n",
        "\r\n\r\n\r\n\r\n",
        "GET /events HTTP/1.1\r\nno colon\r\n\r\n",
        "GET /events HTTP/1.1\r\nX: a\0b\r\n\r\n",
        "GET /events HTTP/1.1\r\n: nameless\r\n\r\n",
        "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
        many_headers.as_str(),
        long_line.as_str(),
        &format!("{post}Content-Length: -1\r\n\r\n"),
        &format!("{post}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        &format!("{post}Content-Length: 99999999999999999999999\r\n\r\n"),
        &format!("{post}Transfer-Encoding: chunked\r\n\r\nZZ\r\n"),
        &format!("{post}Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n"),
        &format!("{post}Transfer-Encoding: gzip\r\n\r\n"),
    ]
    .into_iter()
    .map(|text| text.as_bytes().to_vec())
    .chain([
        // Frames that are too long, of no known stream, or not allowed there (RFC 9113, 4.2, 5.1, 6.5).
        [PREFACE, &[0xff; 64]].concat(),
        [PREFACE, SETTINGS, &[0, 0, 4, 3, 0, 0, 0, 0, 9, 0, 0, 0, 8]].concat(),
        [PREFACE, SETTINGS, &[0, 0, 1, 4, 1, 0, 0, 0, 1, 0]].concat(),
        [&PREFACE[..PREFACE.len() - 1], b"x"].concat(),
    ])
    .collect();
    for bytes in &garbage {
        is_refused(broker.addr, bytes).await;
    }
    let mut rng = seeded();
    let noise: Vec<Vec<u8>> =
        (0..300).map(|_| (0..rng.random_range(1..2_000)).map(|_| rng.random()).collect()).collect();
    let noise = iter(&noise).map(|bytes| is_refused(broker.addr, bytes));
    within("noise is refused", noise.buffer_unordered(AT_A_TIME).collect::<Vec<_>>()).await;
    broker.http.publish("a", "still there").await;
    assert_eq!(reader.one().await, "still there");
}

/// A client that ends its direction is gone, as with every server that streams: no browser or library does that
/// and still reads. Seen to fail when half-closed connections are kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_ends_its_direction_is_gone() {
    let broker = Broker::start(Store::Embedded).await;
    let mut peer = Peer::sending(broker.addr, get("/events?channels=a")).await;
    peer.read_until("event: connected").await;
    peer.end_sending().await;
    peer.read_to_end().await;
    streams_end(&broker).await;
}

/// Seen to fail when a connection ends with its first answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_one_piece_are_answered_in_their_order_and_the_last_one_streams() {
    let broker = Broker::start(Store::Embedded).await;
    let publish = "POST /channels/a/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\npiped";
    let requests =
        [&get("/healthz"), publish, &get("/channels/a/events"), &get("/events?channels=a&rewind=1")].concat();
    let mut peer = Peer::sending(broker.addr, requests).await;
    let seen = peer.read_until("data: piped\n").await;
    let order = ["\"status\":\"ok\"", "201 Created", "\"events\":[", "event: connected", "data: piped\n"];
    let found: Vec<_> = order.iter().map(|part| seen.find(part)).collect();
    assert!(found.iter().all(Option::is_some) && found.is_sorted(), "{found:?} in {seen}");
}

/// What a client sends behind its request for a stream neither disturbs the stream nor hides that it is gone.
/// Seen to fail without heartbeats, where only writing tells that nobody reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_behind_a_request_for_a_stream_are_ignored() {
    let broker = Broker::on(Store::Embedded).await.set("sse.heartbeat_interval", "100ms").start().await;
    let mut peer = Peer::sending(broker.addr, get("/events?channels=a") + "GET /healthz HTTP/1.1\r\n").await;
    peer.read_until("event: connected").await;
    assert!(peer.send("and more\r\n\r\n".repeat(1_000)).await);
    broker.http.publish("a", "news").await;
    let seen = peer.read_until("data: news").await;
    assert!(!seen.contains("HTTP/1.1"), "{seen}");
    drop(peer);
    streams_end(&broker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_that_are_no_text_and_slow_or_early_ended_bodies_get_clear_errors() {
    let broker = Broker::start(Store::Embedded).await;
    for path in ["/channels/%FF", "/channels/%FF/events"] {
        assert_eq!(broker.http.get(path).await.problem(400)["code"], "invalid_channel");
    }
    let head = "POST /channels/a/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nhalf";
    drop(Peer::sending(broker.addr, head).await);
    broker.http.publish("a", "whole").await;
    let stored = broker.http.history("a").await;
    assert_eq!(stored.len(), 1, "half an event is none");
    let mut reader = Subscribe::to(&["a"]).after("earliest").connect(broker.addr).await;
    assert_eq!(reader.one().await, "whole");
}

both_stores!(
    thousands_that_come_and_go_leave_nothing,
    clients_that_reset_in_the_middle_of_a_stream_are_forgotten_and_the_others_get_everything,
);
