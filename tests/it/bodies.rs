//! Bodies on their way in: all of them together have a bound, and what finds no room is told so.

use std::net::SocketAddr;

use reqwest::Method;
use serde_json::json;

use crate::support::http::Answer;
use crate::support::{Broker, Http2, Peer, Store, until, within};

/// What an array may have.
const ARRAY_BYTES: usize = 4 * 1024 * 1024;
/// Of one NDJSON line, less than the longest that may turn out to be an event.
const LINE_BYTES: usize = 1500 * 1024;
/// Many times what there is room for.
const BODIES: usize = 300;
/// Together many times what there is room for.
const HTTP2_CONNECTIONS: usize = 40;
const HTTP2_UPLOADS: usize = 6;
/// The room, what a copy here and there costs, and what the allocator keeps for a moment.
const GROWTH_MAX: u64 = 160 * 1024 * 1024;

/// Sends a body but for its last byte. `None` when the broker refused it before.
async fn begin(addr: SocketAddr, media: &str, begin: &str, bytes: usize) -> Option<Peer> {
    let head = format!(
        "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media}\r\nContent-Length: {bytes}\r\n\r\n"
    );
    let mut peer = Peer::sending(addr, head).await;
    let body = format!("{begin}{}", "x".repeat(bytes - 1 - begin.len()));
    peer.send(body).await.then_some(peer)
}

async fn publish(broker: &Broker, bytes: usize) -> Answer {
    let headers = [("content-type", "text/plain")];
    broker.http.send(Method::POST, "/channels/a/events", &headers, "x".repeat(bytes)).await
}

/// Waits until bodies are refused; memory has not grown much since it was `before`.
async fn refuses_and_stays_small(broker: &Broker, before: u64) {
    until("bodies are refused", async || {
        let refused = broker.metrics().get("headwater_refusals_total{code=\"overloaded\"}");
        (refused > 10).then_some(())
    })
    .await;
    let growth = broker.rss_bytes().saturating_sub(before);
    assert!(growth < GROWTH_MAX, "memory grew by {growth} bytes");
}

/// Sends unfinished bodies until no more fit, and looks what that means to everybody else.
async fn fill(broker: &Broker, media: &str, first: &str, bytes: usize) {
    let before = broker.rss_bytes();
    let mut bodies = Vec::new();
    for _ in 0..BODIES {
        bodies.extend(begin(broker.addr, media, first, bytes).await);
    }
    refuses_and_stays_small(broker, before).await;
    drop(bodies);
}

/// Seen to fail with room for any number of bodies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arrays_that_do_not_end_are_refused_before_they_fill_the_memory() {
    let broker = Broker::start(Store::Embedded).await;
    fill(&broker, "application/json", "[", ARRAY_BYTES).await;
    within("there is room again", async { while publish(&broker, 200_000).await.status != 201 {} }).await;
}

/// Many bodies a connection, each with a window. Seen to fail with room for any number of bodies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_over_http2_are_refused_before_they_fill_the_memory() {
    let broker = Broker::start(Store::Embedded).await;
    let before = broker.rss_bytes();
    let mut body = vec![b'x'; ARRAY_BYTES - 1];
    body[0] = b'[';
    // Every body shares these bytes; what the broker takes of them is its own.
    let body = bytes::Bytes::from(body);
    let (mut connections, mut uploads) = (Vec::new(), Vec::new());
    for _ in 0..HTTP2_CONNECTIONS {
        let mut client = Http2::connect(broker.addr, 65_535).await;
        for _ in 0..HTTP2_UPLOADS {
            uploads.push(client.begin_post("/events", body.clone()).await);
        }
        connections.push(client);
    }
    refuses_and_stays_small(&broker, before).await;
    assert_eq!(publish(&broker, 1_000).await.status, 201, "a small event needs no room");
    drop((uploads, connections));
    within("there is room again", async { while publish(&broker, 200_000).await.status != 201 {} }).await;
}

/// Seen to fail with room for any number of lines.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_do_not_end_are_refused_before_they_fill_the_memory() {
    let broker = Broker::start(Store::Embedded).await;
    fill(&broker, "application/x-ndjson", "{", LINE_BYTES).await;
}

/// Seen to fail without the share of every body that is not counted, and with a stream that gives up instead of
/// publishing what it holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_there_is_no_room_large_bodies_are_told_and_small_ones_and_streams_go_on() {
    let broker = Broker::start(Store::Embedded).await;
    let mut bodies = Vec::new();
    // All of them fit, and hold all that there is but a few KiB.
    for _ in 0..16 {
        bodies.push(begin(broker.addr, "application/json", "[", ARRAY_BYTES).await.expect("it fits"));
    }
    let all = 16 * (ARRAY_BYTES as u64 - 8 * 1024);
    until("the bodies have arrived", async || {
        (broker.metrics().get("headwater_request_body_bytes") >= all).then_some(())
    })
    .await;
    bodies.push(begin(broker.addr, "application/json", "[", 136 * 1024).await.expect("it fits"));
    until("the room is taken", async || {
        (broker.metrics().get("headwater_request_body_bytes") >= all + 128 * 1024).then_some(())
    })
    .await;
    let answer = publish(&broker, 200_000).await;
    assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    let problem = answer.problem(503);
    assert_eq!((&problem["code"], &problem["outcome"]), (&json!("overloaded"), &json!("not_published")));
    assert_eq!(publish(&broker, 1_000).await.status, 201, "a small event needs no room");
    let line = json!({"channel": "b", "data": "x".repeat(1_000)}).to_string() + "\n";
    let answer = broker.http.publish_ndjson(line.repeat(3_000)).await.expect(200);
    assert_eq!(answer.json()["published"], 3_000);
    drop(bodies);
    within("there is room again", async { while publish(&broker, 200_000).await.status != 201 {} }).await;
}
