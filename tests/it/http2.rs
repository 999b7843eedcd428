//! Where HTTP/2 differs: streams end one by one, and each has a window of its own.

use bytes::Bytes;
use serde_json::json;

use crate::support::http2::Stream;
use crate::support::tokens::{SECRET, admin_claims, claims, token};
use crate::support::until::{PAUSE, Wait};
use crate::support::{Broker, Http2, Store, until};

/// What the protocol gives a stream unless a client says otherwise (RFC 9113, section 6.9.2).
const USUAL_WINDOW: u32 = 65_535;

async fn streams(broker: &Broker, count: u64) {
    until("so many streams are open", async || {
        (broker.metrics().get("headwater_event_streams") == count).then_some(())
    })
    .await;
}

/// Seen to fail when only the socket, and not the stream's window, is watched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_opens_its_window_is_dropped() {
    let broker = Broker::on(Store::Embedded).await.set("sse.write_timeout", "500ms").start().await;
    let mut client = Http2::connect(broker.addr, 0).await;
    let mut stream = client.get("/events?channels=a").await;
    streams(&broker, 1).await;
    streams(&broker, 0).await;
    assert_eq!(stream.next().await, None);
}

/// Seen to fail with a session that stays registered when it is dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_reset_is_forgotten_and_the_others_of_its_connection_go_on() {
    let broker = Broker::start(Store::Embedded).await;
    let mut client = Http2::connect(broker.addr, USUAL_WINDOW).await;
    let mut readers = Vec::new();
    for _ in 0..50 {
        let mut stream = client.get("/events?channels=a").await;
        stream.read_until("event: connected").await;
        readers.push(stream);
    }
    streams(&broker, 50).await;
    let mut rest = readers.split_off(25);
    readers.into_iter().for_each(Stream::reset);
    streams(&broker, 25).await;
    broker.http.publish("a", "news").await;
    for stream in &mut rest {
        stream.read_until("data: news").await;
    }
    let mut other = client.get("/healthz").await;
    other.read_until("ok").await;
}

/// Requests that are taken back as fast as they are made cost the client its connection, or nothing. Seen to fail
/// with a session that is kept when its stream is reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_taken_back_at_once_leave_nothing() {
    let broker = Broker::start(Store::Embedded).await;
    for _ in 0..5 {
        let mut client = Http2::connect(broker.addr, USUAL_WINDOW).await;
        for _ in 0..1_000 {
            if !client.get_and_reset("/events?channels=a,b").await {
                break;
            }
        }
    }
    streams(&broker, 0).await;
    let mut client = Http2::connect(broker.addr, USUAL_WINDOW).await;
    client.get("/healthz").await.read_until("ok").await;
}

/// Larger events than the window, taken a little at a time: progress, though no event is through for long. Seen to
/// fail with chunks that are handed over whole, and watched only when the next one is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_takes_its_time_is_never_dropped() {
    let broker = Broker::on(Store::Embedded).await.set("sse.write_timeout", "2s").start().await;
    let event = "x".repeat(250_000);
    broker.http.publish_all("a", &[event.clone(), event.clone()]).await;
    let mut client = Http2::connect(broker.addr, USUAL_WINDOW).await;
    let mut stream = client.get("/events?channels=a&last_event_id=earliest").await;
    let (mut seen, mut owed) = (Vec::new(), 0);
    let wait = Wait::until("the event is through, bit by bit");
    while seen.len() < 2 * event.len() || !seen.ends_with(b"x\n\n") {
        let bytes: Bytes = match tokio::time::timeout(PAUSE, stream.next()).await {
            Ok(bytes) => bytes.expect("the stream goes on"),
            Err(_) => Bytes::new(),
        };
        seen.extend_from_slice(&bytes);
        owed += bytes.len();
        let some = owed.min(500);
        stream.give_back(some);
        owed -= some;
        wait.again().await;
    }
    stream.give_back(owed);
    broker.http.publish("a", "and on").await;
    stream.read_until("data: and on").await;
}

/// Seen to fail when only the bytes of HTTP/1 count as a request, and when a connection keeps its seat for good once it had
/// one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_request_make_room_and_those_with_a_stream_stay() {
    // A quarter of them for connections that wait.
    let broker = Broker::on(Store::Embedded).await.descriptors(128).start().await;
    let mut reader = Http2::connect(broker.addr, USUAL_WINDOW).await;
    let mut stream = reader.get("/events?channels=a").await;
    stream.read_until("event: connected").await;
    let mut served = Http2::connect(broker.addr, USUAL_WINDOW).await;
    served.get("/healthz").await.read_until("ok").await;
    let mut idle = Vec::new();
    for _ in 0..64 {
        idle.push(Http2::connect(broker.addr, USUAL_WINDOW).await);
    }
    until("the oldest have made room", async || {
        (broker.metrics().get("headwater_connections_dismissed_total") >= 32).then_some(())
    })
    .await;
    assert!(broker.metrics().get("headwater_connections_waiting") <= 33);
    assert!(!served.get_and_reset("/healthz").await, "it was served, and waited for longest since");
    let mut newcomer = Http2::connect(broker.addr, USUAL_WINDOW).await;
    newcomer.get("/healthz").await.read_until("ok").await;
    broker.http.publish("a", "still here").await;
    stream.read_until("data: still here").await;
}

/// A page of history is gathered at once and goes out as the client takes it. Seen to fail when what was gathered before
/// the right ended goes out after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_slow_reader_is_not_delivered_once_the_right_to_it_has_ended() {
    let broker = Broker::on(Store::Embedded).await.set("auth.jwt.secret", SECRET).start().await;
    let admin = broker.http.bearing(&token(&admin_claims()));
    let texts: Vec<String> = (0..60).map(|n| format!("{n}: {}", "x".repeat(500))).collect();
    admin.publish_all("a", &texts).await;
    let slow = token(&claims("slow", &["a"], &[]));
    let mut client = Http2::connect(broker.addr, 2_000).await;
    let path = format!("/events?channels=a&last_event_id=earliest&access_token={slow}");
    let mut stream = client.get(&path).await;
    let mut seen = stream.read_until("data: 1: ").await;
    admin.post("/revocations", &json!({"sub": "slow"})).await.expect(201);
    while let Some(bytes) = stream.next().await {
        stream.give_back(bytes.len());
        seen.push_str(&String::from_utf8_lossy(&bytes));
    }
    assert!(seen.contains("\"reason\":\"revoked\""), "{seen}");
    assert!(!seen.contains("data: 30: "), "only what was on its way already: {seen}");
    let (whole, rest) = seen.rsplit_once("event: closing").unwrap();
    assert!(whole.ends_with("\n\n") && rest.ends_with("\n\n"), "events end before the end is told: {seen}");
}
