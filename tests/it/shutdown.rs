//! SIGTERM: every session ends in bounded time with a reason and a hint when to come back, spread out, and nothing
//! acknowledged is lost.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Broker, Setup, Store, Subscribe, Writers, read_log, seeded, until};

/// The drain deadline that these tests configure, and what a busy machine may add.
const DRAIN: &str = "3s";
const BOUND: Duration = Duration::from_secs(8);

/// Sessions that end together; they are told over 400 ms, and advised to wait from half a second to one and a half.
const SESSIONS: usize = 200;
const SPREAD: Duration = Duration::from_millis(200);
const RETRY_SPREAD: Duration = Duration::from_millis(500);

/// Broken to see it fail: all sessions told at once, and the same `retry:` for each.
async fn every_session_is_told_to_come_back_and_not_all_at_once(setup: Setup) {
    let mut broker =
        Broker::on(setup).await.set("drain.deadline", DRAIN).set("sse.retry", "1s").start().await;
    let mut readers =
        join_all((0..SESSIONS).map(async |_| Subscribe::to(&["a"]).connect(broker.addr).await)).await;
    broker.http.publish("a", "last").await;
    for reader in &mut readers {
        assert_eq!(reader.one().await, "last");
    }

    let start = Instant::now();
    broker.sigterm();
    let ends = join_all(readers.iter_mut().map(async |reader| {
        let closing = reader.next_control("closing").await;
        assert_eq!(closing.json(), json!({ "reason": "shutdown", "reconnect": true }));
        assert_eq!(closing.id, None, "an end moves no cursor");
        let told = start.elapsed();
        let back = Duration::from_millis(closing.retry.expect("the end hints when to come back"));
        reader.end().await;
        (told, back)
    }));
    let (told, back): (Vec<_>, Vec<_>) = ends.await.into_iter().unzip();
    assert!(start.elapsed() < BOUND, "the sessions ended within {BOUND:?}");
    for (what, times, apart) in [("were told", told, SPREAD), ("come back", back, RETRY_SPREAD)] {
        let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
        assert!(*last > *first + apart, "they all {what} between {first:?} and {last:?}");
    }

    assert_eq!(broker.exit_status().await.code(), Some(0));
    assert!(start.elapsed() < BOUND);
}

/// Seen to fail with detached streams that do not hear of the hard end.
async fn a_client_that_does_not_read_cannot_hold_up_the_end(setup: Setup) {
    let setup = Broker::on(setup).await.set("drain.deadline", DRAIN).set("sse.write_timeout", "60s");
    let mut broker = setup.start().await;
    let stuck = Subscribe::to(&["a"]).receive_buffer(4_096).connect(broker.addr).await;
    let mut brisk = Subscribe::to(&["a"]).connect(broker.addr).await;
    let large = vec!["x".repeat(200_000); 20];
    broker.http.publish_all("a", &large).await;
    // What has reached one session, the other has too, and cannot write.
    assert!(brisk.data(20).await == large);
    let start = Instant::now();
    broker.sigterm();
    assert_eq!(broker.exit_status().await.code(), Some(0));
    assert!(start.elapsed() < BOUND, "it took {:?}", start.elapsed());
    drop(stuck);
}

/// Broken to see it fail: connections that do not heed the hard token.
async fn a_publisher_that_never_ends_its_stream_cannot_hold_up_the_end(setup: Setup) {
    let mut broker = Broker::on(setup).await.set("drain.deadline", DRAIN).start().await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    let mut publisher = TcpStream::connect(broker.addr).await.unwrap();
    let line = "{\"channel\":\"a\",\"data\":1}\n";
    let head = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n";
    let request = format!("{head}Content-Length: 1000\r\n\r\n{line}");
    publisher.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(reader.one().await, "1", "the stream is being read");
    let start = Instant::now();
    broker.sigterm();
    assert_eq!(broker.exit_status().await.code(), Some(0));
    assert!(start.elapsed() < BOUND, "it took {:?}", start.elapsed());
}

async fn nothing_acknowledged_before_the_end_is_lost(setup: Setup) {
    let mut rng = seeded();
    let setup = Broker::on(setup).await.set("drain.deadline", DRAIN).set("retention.max_length", "100000");
    let mut broker = setup.start().await;
    let channels = ["a", "b"];
    let writers = Writers::start(&[broker.addr], &channels, (4, 150), &mut rng);
    until("writers are at work", async || (writers.acknowledged() > 150).then_some(())).await;
    broker.sigterm();
    assert_eq!(broker.exit_status().await.code(), Some(0));
    broker.restart().await;
    let ledger = writers.done().await;
    let (mut log, _) = read_log(broker.addr, &channels).await;
    log.pop();
    ledger.check(&log).unwrap_or_else(|why| panic!("{why}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_under_way_when_the_end_comes_is_still_answered() {
    let mut broker = Broker::on(Store::Redis).await.set("drain.deadline", "10s").start().await;
    let http = broker.http.clone();
    let large = json!({ "data": "x".repeat(60_000) });
    broker.redis().pause();
    let (answer, ()) = tokio::join!(http.post("/channels/a/events", &large), async {
        until("the event waits in the socket of Redis", async || {
            (broker.redis().unread_bytes() > 50_000).then_some(())
        })
        .await;
        broker.sigterm();
        until("the node takes no more connections", async || {
            Subscribe::to(&[]).try_open(broker.addr).await.is_err().then_some(())
        })
        .await;
        broker.redis().resume();
    });
    let id = answer.expect(201).receipt().id;
    assert_eq!(broker.exit_status().await.code(), Some(0));
    broker.restart().await;
    assert_eq!(broker.http.history("a").await[0].id, id);
}

async fn a_draining_node_is_not_ready_but_still_serves(setup: Setup) {
    let setup = Broker::on(setup).await.set("drain.delay", "1s").set("drain.deadline", DRAIN);
    let mut broker = setup.start().await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    broker.sigterm();
    until("the node says that it drains", async || {
        let answer = broker.http.get("/readyz").await;
        (answer.status == 503).then_some(())
    })
    .await;
    broker.http.get("/healthz").await.expect(200);
    broker.http.publish("a", "still serving").await;
    assert_eq!(reader.one().await, "still serving");
    assert_eq!(reader.next_control("closing").await.json()["reason"], "shutdown");
    assert_eq!(broker.exit_status().await.code(), Some(0));
}

both_paths!(
    every_session_is_told_to_come_back_and_not_all_at_once,
    a_client_that_does_not_read_cannot_hold_up_the_end,
    a_publisher_that_never_ends_its_stream_cannot_hold_up_the_end,
    nothing_acknowledged_before_the_end_is_lost,
    a_draining_node_is_not_ready_but_still_serves,
);
