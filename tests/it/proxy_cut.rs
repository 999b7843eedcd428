//! A bad network between the broker and Redis, and between clients and the broker: sessions stay, publishers get
//! a clear answer, and nothing is lost or repeated when the network is back.

use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{Broker, Ledger, Mode, Proxy, Redis, Setup, Store, Streams, Subscribe, read_log, until};

const CHANNELS: [&str; 2] = ["a", "b"];
const WRITERS: usize = 3;
const EVENTS_PER_WRITER: usize = 60;
/// What a client misses while its network stalls: more than socket, network and ring hold, less than retention keeps.
const STALLED_EVENTS: usize = 400;
const STALLED_EVENT_BYTES: usize = 5_000;

/// Publishes with keys, trying again until it is acknowledged.
async fn write(broker: &Broker, writer: usize, ledger: &Ledger) {
    for number in 0..EVENTS_PER_WRITER {
        let channel = CHANNELS[number % CHANNELS.len()];
        let data = format!("{channel}/{writer}/{number}");
        let receipt = broker.http.publish_surely(channel, &data, &data).await;
        ledger.acknowledge(&data, &receipt.id);
    }
}

/// Does one thing after the other to the network, each once the writers got on since the last.
async fn harm(proxy: &Proxy, broker: &Broker, ledger: &Ledger) {
    let harms =
        [Mode::Pass, Mode::LoseAnswers, Mode::Refuse, Mode::Stall, Mode::HalfClose, Mode::LoseAnswers];
    for (number, mode) in harms.into_iter().enumerate() {
        let enough = (number + 1) * WRITERS * EVENTS_PER_WRITER / (harms.len() + 2);
        until("the writers get on", async || (ledger.acknowledged() >= enough).then_some(())).await;
        let lost = proxy.answers_lost();
        proxy.set(mode);
        match mode {
            Mode::LoseAnswers => {
                until("an answer is lost", async || (proxy.answers_lost() > lost).then_some(())).await;
            }
            Mode::Refuse => proxy.cut(),
            _ => {}
        }
        if mode != Mode::Pass {
            until("the trouble is noticed", async || {
                let answer = broker.http.post("/channels/probe/events", &json!({ "data": number })).await;
                (answer.status == 503).then_some(())
            })
            .await;
        }
        proxy.cut();
        proxy.set(Mode::Pass);
    }
}

/// Seen to fail with keys that are not remembered, and with a tailer that gives up at the first failure.
async fn no_trouble_between_broker_and_redis_loses_or_repeats_an_event_with_a_key(streams: Streams) {
    let redis = Arc::new(Redis::start().await);
    let proxy = Proxy::to(redis.port());
    let broker = Broker::on_redis(&redis)
        .streams(streams)
        .through(&proxy.redis_url())
        .set("retention.max_length", "100000");
    let broker = broker.start().await;
    let mut steady = Subscribe::to(&CHANNELS).connect(broker.addr).await;
    let ledger = Ledger::default();
    tokio::join!(
        join_all((0..WRITERS).map(|writer| write(&broker, writer, &ledger))),
        harm(&proxy, &broker, &ledger),
    );
    let (mut log, _) = read_log(broker.addr, &CHANNELS).await;
    log.pop();
    assert_eq!(log.len(), WRITERS * EVENTS_PER_WRITER);
    ledger.check(&log).unwrap_or_else(|why| panic!("{why}"));
    let got: Vec<String> =
        steady.events(log.len()).await.into_iter().map(|event| event.last_event_id).collect();
    let expected: Vec<String> = log.into_iter().map(|stored| stored.id).collect();
    assert_eq!(got, expected, "the session stayed and missed nothing");
}

/// Seen to fail with a log that appends again when the answer is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_whose_answer_was_lost_is_told_so_and_not_repeated() {
    let redis = Arc::new(Redis::start().await);
    let proxy = Proxy::to(redis.port());
    let broker = Broker::on_redis(&redis).through(&proxy.redis_url()).start().await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    proxy.set(Mode::LoseAnswers);
    let body = json!({ "data": "once" });
    let lose = async {
        until("the event is in Redis", async || {
            (redis.command(&["XLEN", "hw:{0}:ch:a"]).await.int() > 0).then_some(())
        })
        .await;
        proxy.cut();
        proxy.set(Mode::Pass);
    };
    let (answer, ()) = tokio::join!(broker.http.post("/channels/a/events", &body), lose);
    assert_eq!(answer.problem(503)["outcome"], "unknown");
    broker.http.publish_surely("a", "fence", "fence").await;
    assert_eq!(reader.data(2).await, ["once", "fence"]);
    assert_eq!(broker.http.history("a").await.len(), 2);
}

/// Seen to fail with a session that ends when history cannot be read, with a tailer that gives up at the first failure,
/// and with a node that never says that it is degraded.
async fn while_redis_is_away_sessions_stay_new_ones_wait_and_publishers_are_told(streams: Streams) {
    let redis = Arc::new(Redis::start().await);
    let proxy = Proxy::to(redis.port());
    let broker = Broker::on_redis(&redis).streams(streams).through(&proxy.redis_url()).start().await;
    let mut steady = Subscribe::to(&["a"]).connect(broker.addr).await;
    let older = broker.http.publish("a", "older").await;
    broker.http.publish("a", "before").await;
    assert_eq!(steady.data(2).await, ["older", "before"]);

    proxy.set(Mode::Refuse);
    proxy.cut();
    let refusal = until("a publish is refused", async || {
        let answer = broker.http.post("/channels/a/events", &json!({ "data": "refused" })).await;
        let problem = (answer.status == 503).then(|| answer.problem(503))?;
        // The first one may have been under way when the connection broke.
        (problem["outcome"] == "not_published").then_some(problem)
    });
    assert!(refusal.await["title"].is_string());
    let degraded = until("the node says that it is degraded", async || {
        let answer = broker.http.get("/readyz").await.expect(200).json();
        (answer["degraded"] == json!(["redis"])).then_some(())
    });
    degraded.await;
    assert_eq!(broker.http.get("/readyz?strict=1").await.status, 503);
    broker.http.get("/healthz").await.expect(200);
    // Nobody here listened to `b`: what it holds after the cursor only Redis knows.
    let mut waiting = Subscribe::to(&["a", "b"]).after(&older.id).open(broker.addr).await;
    assert_eq!(waiting.status, 200, "a new stream is accepted and waits");

    proxy.set(Mode::Pass);
    let after = broker.http.publish_surely("a", "key", "after").await;
    for reader in [&mut steady, &mut waiting] {
        let event = until("the event after the outage", async || {
            let event = reader.next().await.expect("the stream goes on");
            (event.kind == "message" && event.data == "after").then_some(event)
        });
        assert_eq!(event.await.last_event_id, after.id);
    }
    until("the node is whole again", async || {
        let answer = broker.http.get("/readyz?strict=1").await;
        (answer.status == 200).then_some(())
    })
    .await;
}

/// Seen to fail with keys that are not remembered, and with a tailer that gives up at the first failure.
async fn a_redis_that_freezes_delays_sessions_and_loses_nothing(streams: Streams) {
    let redis = Arc::new(Redis::start().await);
    let broker = Broker::on_redis(&redis).streams(streams).start().await;
    let mut steady = Subscribe::to(&["a"]).connect(broker.addr).await;
    broker.http.publish("a", "before").await;
    redis.pause();
    let refused =
        broker.http.post("/channels/a/events", &json!({ "data": "frozen", "idempotency_key": "k" })).await;
    let outcome = refused.problem(503)["outcome"].clone();
    assert!(["unknown", "not_published"].contains(&outcome.as_str().unwrap()), "{outcome}");
    redis.resume();
    broker.http.publish_surely("a", "k", "frozen").await;
    broker.http.publish_surely("a", "fence", "fence").await;
    assert_eq!(steady.data(3).await, ["before", "frozen", "fence"]);
}

/// Seen to fail, as detached streams, with a write that forgets what the socket did not take, and, both ways, with a
/// session that moves past what a full batch had no room for.
async fn a_client_behind_a_slow_and_stalling_network_gets_everything(streams: Streams) {
    let broker = Broker::start(Setup { store: Store::Embedded, streams }).await;
    let proxy = Proxy::to(broker.addr.port());
    let mut reader = Subscribe::to(&["a"]).header("Host", "localhost").connect(proxy.addr()).await;
    let texts = |from: usize, count: usize, bytes: usize| -> Vec<String> {
        (from..from + count).map(|n| format!("{n} {}", "x".repeat(bytes))).collect()
    };
    let slow = texts(0, 200, 500);
    proxy.set(Mode::Slow(700));
    broker.http.publish_all("a", &slow).await;
    assert_eq!(reader.data(100).await, slow[..100]);
    proxy.set(Mode::Stall);
    let stalled = texts(200, STALLED_EVENTS, STALLED_EVENT_BYTES);
    broker.http.publish_all("a", &stalled).await;
    proxy.set(Mode::Slow(16_000));
    assert_eq!(reader.data(100).await, slow[100..]);
    assert_eq!(reader.data(STALLED_EVENTS / 2).await, stalled[..STALLED_EVENTS / 2]);
    proxy.set(Mode::Pass);
    broker.http.publish("a", "last").await;
    assert_eq!(reader.data(STALLED_EVENTS / 2).await, stalled[STALLED_EVENTS / 2..]);
    assert_eq!(reader.one().await, "last");
}

both_streams!(
    no_trouble_between_broker_and_redis_loses_or_repeats_an_event_with_a_key,
    while_redis_is_away_sessions_stay_new_ones_wait_and_publishers_are_told,
    a_redis_that_freezes_delays_sessions_and_loses_nothing,
    a_client_behind_a_slow_and_stalling_network_gets_everything,
);
