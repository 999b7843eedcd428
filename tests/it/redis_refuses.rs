//! A Redis that answers and refuses: publishers are told that nothing was published, subscribers are served from what
//! can be read, and everything goes on by itself when Redis takes writes again.

use std::sync::Arc;

use serde_json::json;

use crate::support::{Broker, Mode, Proxy, Redis, Store, Subscribe, until};

/// Streams that wait while Redis is away.
const WAITING: usize = 300;
/// What each may cost meanwhile, buffers of its socket in the process included; in bytes.
const WAITING_BYTES_MAX: u64 = 100_000;

/// Refuses writes by `refuse`, then takes them again by `accept`. Each of the three tests was seen to fail with a refusal
/// that counts as a lost answer, and with a function for reading that Redis takes for one that writes.
async fn refuse_and_accept(refuse: &[&str], accept: &[&str], said: &str) {
    let broker = Broker::start(Store::Redis).await;
    let redis = broker.redis();
    let mut steady = Subscribe::to(&["a"]).connect(broker.addr).await;
    let first = broker.http.publish("a", "first").await;
    broker.http.publish("a", "second").await;
    redis.command(refuse).await;
    for body in [json!({ "data": "refused" }), json!({ "data": "refused", "idempotency_key": "k" })] {
        let answer = broker.http.post("/channels/a/events", &body).await;
        assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
        let problem = answer.problem(503);
        assert_eq!(problem["outcome"], "not_published", "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(said), "it says why: {problem}");
    }
    let batch = json!([{ "channel": "a", "data": "refused" }, { "channel": "b", "data": "refused" }]);
    assert_eq!(broker.http.post("/events", &batch).await.problem(503)["outcome"], "not_published");
    let mut replaying = Subscribe::to(&["a"]).after(&first.id).connect(broker.addr).await;
    assert_eq!(replaying.one().await, "second", "what is there is served");
    assert_eq!(broker.http.history("a").await.len(), 2);

    redis.command(accept).await;
    broker.http.publish_surely("a", "k", "third").await;
    assert_eq!(steady.data(3).await, ["first", "second", "third"]);
    assert_eq!(replaying.one().await, "third");
    assert_eq!(broker.http.history("a").await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_refuses_publishers_and_serves_subscribers() {
    let (full, room) = (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]);
    refuse_and_accept(&full, &room, "OOM").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_redis_refuses_publishers_and_serves_subscribers() {
    let demoted = ["REPLICAOF", "127.0.0.1", "1"];
    refuse_and_accept(&demoted, &["REPLICAOF", "NO", "ONE"], "READONLY").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_without_enough_replicas_refuses_publishers_and_serves_subscribers() {
    let set = |count| ["CONFIG", "SET", "min-replicas-to-write", count];
    refuse_and_accept(&set("1"), &set("0"), "NOREPLICAS").await;
}

/// Seen to fail with a function for purging that a full Redis refuses (`allow-oom`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_can_be_emptied_when_redis_is_full() {
    let broker = Broker::start(Store::Redis).await;
    broker.http.publish("a", "x").await;
    broker.redis().command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    broker.http.delete("/channels/a").await.expect(204);
    assert_eq!(reader.gap().await["reason"], "reset");
}

/// Seen to fail when a stream is refused while Redis is away, and when what waits holds a page each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_come_while_redis_is_away_wait_for_little_and_miss_nothing() {
    let redis = Arc::new(Redis::start().await);
    let network = Proxy::to(redis.port());
    let broker =
        Broker::on_redis(&redis).through(&network.redis_url()).set("sse.heartbeat_interval", "200ms");
    let broker = broker.start().await;
    let first = broker.http.publish("a", "first").await;
    let texts: Vec<String> = (0..50).map(|n| format!("{n} {}", "x".repeat(1_000))).collect();
    broker.http.publish_all("a", &texts).await;
    let mut live = Subscribe::to(&["a"]).connect(broker.addr).await;
    network.set(Mode::Refuse);
    network.cut();
    let before = broker.rss_bytes();
    let mut waiting = Vec::new();
    for _ in 0..WAITING {
        let stream = Subscribe::to(&["a"]).after(&first.id).open(broker.addr).await;
        assert_eq!(stream.status, 200);
        waiting.push(stream);
    }
    let last = waiting.last_mut().expect("some wait");
    assert_eq!(last.next_within(std::time::Duration::from_millis(700)).await, None, "nothing but comments");
    assert!(last.comments.iter().any(|comment| comment.contains("heartbeat")), "{:?}", last.comments);
    let growth = broker.rss_bytes().saturating_sub(before);
    let bound = WAITING as u64 * WAITING_BYTES_MAX;
    assert!(growth < bound, "{WAITING} streams that wait cost {growth} bytes");

    network.set(Mode::Pass);
    let after = broker.http.publish_surely("a", "after", "after").await;
    let mut expected = texts;
    expected.push("after".to_owned());
    for mut stream in waiting {
        let connected = until("the stream opens", async || stream.next().await).await;
        assert_eq!(connected.kind, "connected", "{connected:?}");
        assert_eq!(stream.data(expected.len()).await, expected);
        assert_eq!(stream.last_event_id(), after.id);
    }
    assert_eq!(live.one().await, "after");
}
