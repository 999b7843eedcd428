//! Peers that are gone without having said so: no end, no reset, no acknowledgement. Nothing but time tells.

use crate::support::sse::SseReader;
use crate::support::{Broker, Mode, Peer, Proxy, Store, Subscribe, until};

/// Waits until the broker serves nobody but who asks.
async fn nobody_is_left(broker: &Broker) {
    until("nobody is left", async || {
        let now = broker.metrics();
        let idle = now.get("headwater_event_streams") == 0 && now.get("headwater_connections") <= 1;
        idle.then_some(())
    })
    .await;
}

/// Heartbeats ask; who acknowledges none of them is gone. Seen to fail without `TCP_USER_TIMEOUT`: the kernel then
/// tries for a quarter of an hour.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_vanished_is_given_up() {
    let setup = Broker::on(Store::Embedded).await.set("sse.heartbeat_interval", "200ms");
    let mut broker = setup.set("sse.write_timeout", "1s").start().await;
    let (first, second) = (Subscribe::to(&["a"]), Subscribe::to(&["a", "b"]).http_1_0());
    let readers = [first.connect(broker.addr).await, second.connect(broker.addr).await];
    readers.iter().for_each(SseReader::vanish);
    broker.forget_connections();
    nobody_is_left(&broker).await;
}

/// Nothing is due to a publisher in the middle of its stream, so the kernel has to ask. Seen to fail without
/// keep-alives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_vanished_in_the_middle_is_given_up() {
    let mut broker = Broker::on(Store::Embedded).await.set("sse.write_timeout", "1s").start().await;
    let head = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";
    let line = "{\"channel\":\"a\",\"data\":1}\n";
    let peer = Peer::sending(broker.addr, format!("{head}{:x}\r\n{line}\r\n", line.len())).await;
    until("its first line is published", async || (broker.http.history("a").await.len() == 1).then_some(()))
        .await;
    peer.vanish();
    broker.forget_connections();
    nobody_is_left(&broker).await;
    drop(peer);
}

/// A network that takes nothing is a reader that takes nothing; when it is back, the client goes on where it was.
/// Seen to fail without `sse.write_timeout` in both the kernel and the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_behind_a_stalled_network_is_given_up_and_can_resume() {
    let setup = Broker::on(Store::Redis).await.set("retention.max_length", "10000");
    let broker = setup.set("sse.write_timeout", "1s").start().await;
    let proxy = Proxy::to(broker.addr.port());
    let mut reader = Subscribe::to(&["a"]).connect(proxy.addr()).await;
    let texts: Vec<String> = (0..200).map(|number| format!("{number}:{}", "x".repeat(100_000))).collect();
    broker.http.publish_all("a", &texts[..20]).await;
    assert!(reader.data(20).await == texts[..20]);
    proxy.set(Mode::Stall);
    for part in texts[20..].chunks(20) {
        broker.http.publish_all("a", part).await;
    }
    until("the subscriber is given up", async || {
        (broker.metrics().get("headwater_event_streams") == 0).then_some(())
    })
    .await;
    proxy.set(Mode::Pass);
    let mut seen = 20;
    while let Some(event) = reader.next().await {
        assert!(event.data == texts[seen], "event {seen}");
        seen += 1;
    }
    assert!(seen < texts.len(), "it was closed before it got all");
    let mut resumed = Subscribe::to(&["a"]).after(reader.last_event_id()).connect(proxy.addr()).await;
    assert!(resumed.data(texts.len() - seen).await == texts[seen..], "exactly the rest");
}
