//! Clients that hold a connection for nothing are dropped, whichever protocol they seem to speak.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Broker, Store, Subscribe, until, within};

/// The beginning of HTTP/2 with prior knowledge, and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// `SETTINGS_INITIAL_WINDOW_SIZE` 0: the client takes no data on any stream.
const NO_WINDOW: &[u8] = &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0];

async fn is_dropped_after(addr: SocketAddr, begin: &[u8]) {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    socket.write_all(begin).await.unwrap();
    let drained = async {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = socket.read_to_end(&mut rest).await;
    };
    within(&format!("the server drops a client that sent {begin:?}"), drained).await;
}

/// Seen to fail with a server that detects the protocol without a timer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_finish_its_head_is_dropped() {
    let broker = Broker::on(Store::Embedded).await.set("server.header_timeout", "300ms").start().await;
    let preface_and_settings = [PREFACE, SETTINGS].concat();
    let beginnings: [&[u8]; 6] =
        [b"", b"G", b"PRI * HT", PREFACE, &preface_and_settings, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-"];
    for begin in beginnings {
        is_dropped_after(broker.addr, begin).await;
    }
    broker.http.get("/healthz").await.expect(200);
}

/// A literal HEADERS frame for `GET /events?channels=a` on stream 1, without Huffman coding or indexing.
fn http2_get(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86];
    for (index, value) in [(4u8, path), (1, "localhost")] {
        block.extend([index, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    }
    let length = u32::try_from(block.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], 1, 0x5, 0, 0, 0, 1];
    frame.extend(block);
    frame
}

/// Seen to fail when only the socket, and not the stream's window, is watched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_client_that_never_opens_its_window_is_dropped() {
    let broker = Broker::on(Store::Embedded).await.set("sse.write_timeout", "500ms").start().await;
    let mut socket = TcpStream::connect(broker.addr).await.unwrap();
    let request = [PREFACE, NO_WINDOW, &http2_get("/events?channels=a")].concat();
    socket.write_all(&request).await.unwrap();
    let subscribers = async || {
        let info = broker.http.get("/channels/a").await;
        if info.status == 200 { info.json()["subscribers"]["total"].as_u64() } else { Some(0) }
    };
    until("the stream is open", async || (subscribers().await == Some(1)).then_some(())).await;
    until("the stream is given up", async || (subscribers().await == Some(0)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_that_are_no_text_and_slow_or_early_ended_bodies_get_clear_errors() {
    let broker = Broker::start(Store::Embedded).await;
    for path in ["/channels/%FF", "/channels/%FF/events"] {
        assert_eq!(broker.http.get(path).await.problem(400)["code"], "invalid_channel");
    }
    let mut socket = TcpStream::connect(broker.addr).await.unwrap();
    let head = "POST /channels/a/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nhalf";
    socket.write_all(head.as_bytes()).await.unwrap();
    drop(socket);
    broker.http.publish("a", "whole").await;
    let stored = broker.http.history("a").await;
    assert_eq!(stored.len(), 1, "half an event is none");
    let mut reader = Subscribe::to(&["a"]).after("earliest").connect(broker.addr).await;
    assert_eq!(reader.one().await, "whole");
}
