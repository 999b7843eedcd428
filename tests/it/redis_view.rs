//! What an operator sees with `redis-cli`: the documented keys, the function that other programs call, and entries
//! that somebody wrote past the broker.

use std::sync::Arc;

use headwater::id::EventId;
use serde_json::json;

use crate::support::broker::{command, ended};
use crate::support::{Broker, Redis, Store, Subscribe};

const DAY_MS: i64 = 24 * 3_600 * 1_000;

/// Seen to fail without the listing, and without the expiry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_is_one_entry_of_its_channel_and_one_ref_of_the_feed() {
    let broker = Broker::start(Store::Redis).await;
    let redis = broker.redis();
    let body = json!({ "event": "tick", "data": { "a": 1 }, "retry": 50, "idempotency_key": "k" });
    let receipt = broker.http.publish_event("orders", &body).await;
    broker.http.publish("orders", "text").await;

    let entries = redis.command(&["XRANGE", "hw:{0}:ch:orders", "-", "+"]).await;
    assert_eq!(entries.items().len(), 2);
    let [id, fields] = entries.items()[0].items() else { panic!("{entries:?}") };
    assert_eq!(id.text(), receipt.stream_id);
    assert_eq!(fields.texts()[0], "v", "the mark stands first");
    assert_eq!((fields.field("v"), fields.field("type")), (Some("1j"), Some("tick")));
    assert_eq!((fields.field("data"), fields.field("retry")), (Some(r#"{"a":1}"#), Some("50")));
    let text = &entries.items()[1].items()[1];
    assert_eq!((text.field("v"), text.field("data")), (Some("1"), Some("text")));

    let refs = redis.command(&["XRANGE", "hw:{0}:feed", &receipt.stream_id, &receipt.stream_id]).await;
    let of_feed = &refs.items()[0].items()[1];
    assert_eq!(of_feed.field("ch"), Some("orders"));
    assert!(of_feed.field("n").is_some_and(|bytes| bytes.parse::<u64>().is_ok_and(|n| n > 0)), "{of_feed:?}");

    assert_eq!(redis.command(&["SMEMBERS", "hw:{0}:channels"]).await.texts(), ["orders"]);
    let expires = redis.command(&["PTTL", "hw:{0}:ch:orders"]).await.int();
    assert!((DAY_MS..=DAY_MS * 5 / 4).contains(&expires), "the channel expires with its events: {expires}");
    let idem = "hw:{0}:idem:6:orders:k";
    assert_eq!(redis.command(&["GET", idem]).await.text(), receipt.stream_id);
    let window = redis.command(&["PTTL", idem]).await.int();
    assert!((540_000..=600_000).contains(&window), "10 minutes: {window}");
    let meta = redis.command(&["HGETALL", "hw:meta"]).await;
    assert_eq!(meta.field("partitions"), Some("1"));
    assert!(meta.field("layout").is_some() && meta.field("created_at").is_some(), "{meta:?}");
    let state = redis.command(&["HGETALL", "hw:{0}:state"]).await;
    assert!(state.field("epoch").is_some(), "{state:?}");
}

/// Seen to fail with a key that is not looked up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_program_publishes_with_one_function_call() {
    let broker = Broker::start(Store::Redis).await;
    let redis = broker.redis();
    let mut reader = Subscribe::to(&["orders"]).connect(broker.addr).await;
    let call = ["FCALL", "headwater_publish", "1", "hw:{0}:feed", "orders", "tick", "from\nredis-cli"];
    let id = redis.command(&call).await;
    let event = reader.events(1).await.remove(0);
    assert_eq!((event.kind.as_str(), event.data.as_str()), ("tick", "from\nredis-cli"));
    let ulid: EventId = event.last_event_id.parse().expect("an id is a ULID");
    assert_eq!(ulid.stream_id().to_string(), id.text());

    let keyed: Vec<&str> = call.into_iter().chain(["key"]).collect();
    let first = redis.command(&keyed).await;
    assert_eq!(redis.command(&keyed).await, first, "the same key is the same event");
    let body = json!({ "data": 1, "idempotency_key": "key" });
    let receipt = broker.http.post("/channels/orders/events", &body).await.expect(200).receipt();
    assert_eq!(receipt.stream_id, first.text(), "for the broker too");
    assert_eq!(broker.http.history("orders").await.len(), 2);
    assert_eq!(reader.one().await, "from\nredis-cli");
}

/// Seen to fail when unmarked entries are read as events, and when adopting leaves the originals.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_xadd_is_no_publish_until_it_is_adopted() {
    let broker = Broker::start(Store::Redis).await;
    let redis = broker.redis();
    let mut reader = Subscribe::to(&["orders"]).connect(broker.addr).await;
    broker.http.publish("orders", "0").await;
    redis.command(&["XADD", "hw:{0}:ch:orders", "*", "type", "tick", "data", "foreign"]).await;
    broker.http.publish("orders", "1").await;
    assert_eq!(reader.data(2).await, ["0", "1"], "not live");
    let mut late = Subscribe::to(&["orders"]).after("earliest").connect(broker.addr).await;
    assert_eq!(late.data(2).await, ["0", "1"], "not replayed");
    assert_eq!(broker.http.history("orders").await.len(), 2, "not in history");

    let adopted = broker.http.post("/channels/orders/adopt", &json!({})).await.expect(200).json();
    assert_eq!(adopted, json!({ "adopted": 1 }));
    for reader in [&mut reader, &mut late] {
        let event = reader.events(1).await.remove(0);
        assert_eq!((event.kind.as_str(), event.data.as_str()), ("tick", "foreign"));
    }
    let again = broker.http.post("/channels/orders/adopt", &json!({})).await.expect(200).json();
    assert_eq!(again, json!({ "adopted": 0 }), "the original is gone");
    assert_eq!(redis.command(&["XLEN", "hw:{0}:ch:orders"]).await.int(), 3);
}

/// Seen to fail when reading passes the error of the store on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_no_stream_is_named_whatever_is_asked_of_its_channel() {
    let broker = Broker::start(Store::Redis).await;
    broker.redis().command(&["SET", "hw:{0}:ch:orders", "x"]).await;
    let answers = [
        broker.http.post("/channels/orders/events", &json!({ "data": 1 })).await,
        broker.http.post("/channels/orders/adopt", &json!({})).await,
        broker.http.get("/channels/orders/events").await,
        broker.http.get("/channels/orders").await,
    ];
    for answer in answers {
        let problem = answer.problem(409);
        assert_eq!(problem["code"], "channel_blocked", "{problem}");
        assert!(!problem.to_string().contains("script"), "no traces of the inside: {problem}");
    }
    broker.http.delete("/channels/orders").await.expect(204);
    broker.http.publish("orders", "mended").await;
}

/// Seen to fail when nothing looks for the watermark or the epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_is_a_reset_for_those_who_listen_and_those_who_come_back() {
    let broker = Broker::start(Store::Redis).await;
    let mut reader = Subscribe::to(&["orders"]).connect(broker.addr).await;
    let before = broker.http.publish("orders", "before").await;
    assert_eq!(reader.one().await, "before");
    broker.redis().command(&["FLUSHALL"]).await;
    let gap = reader.gap().await;
    assert_eq!((&gap["channel"], &gap["reason"]), (&json!("orders"), &json!("reset")), "{gap}");
    let after = broker.http.publish_surely("orders", "after", "after").await;
    assert!(after.id > before.id, "ids never go back");
    assert_eq!(reader.one().await, "after");
    let mut back = Subscribe::to(&["orders"]).after(&before.id).connect(broker.addr).await;
    assert_eq!(back.gap().await["reason"], "reset");
}

/// Seen to fail with functions that take any last id, and with a refusal that is told as another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_whose_last_entry_lies_far_ahead_is_refused_alone() {
    let broker = Broker::start(Store::Redis).await;
    broker.http.publish("poisoned", "0").await;
    broker.redis().command(&["XADD", "hw:{0}:ch:poisoned", "99999999999999-0", "data", "x"]).await;
    let answer = broker.http.post("/channels/poisoned/events", &json!({ "data": 1 })).await;
    assert!((400..600).contains(&answer.status), "{answer:?}");
    let status = answer.status;
    assert_eq!(answer.problem(status)["code"], "channel_poisoned");
    let fine = broker.http.publish("fine", "1").await;
    assert!(fine.stream_id.len() < "99999999999999-0".len(), "nobody else's ids were lifted");
    broker.http.delete("/channels/poisoned").await.expect(204);
    broker.http.publish("poisoned", "mended").await;
}

/// Seen to fail without either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_removes_the_key_and_leaves_an_epoch() {
    let broker = Broker::start(Store::Redis).await;
    broker.http.publish("orders", "0").await;
    broker.http.delete("/channels/orders").await.expect(204);
    assert_eq!(broker.redis().command(&["EXISTS", "hw:{0}:ch:orders"]).await.int(), 0);
    let state = broker.redis().command(&["HGETALL", "hw:{0}:state"]).await;
    assert!(state.field("epoch:orders").is_some(), "{state:?}");
}

/// Seen to fail with a fixed name for the description of the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_begins_with_the_configured_prefix() {
    let redis = Arc::new(Redis::start().await);
    let broker = Broker::on_redis(&redis).set("redis.prefix", "shop").start().await;
    let _reader = Subscribe::to(&["orders"]).connect(broker.addr).await;
    broker.http.publish("orders", "0").await;
    let keys = redis.command(&["KEYS", "*"]).await;
    assert!(keys.texts().iter().all(|key| key.starts_with("shop:")), "{keys:?}");
}

/// Seen to fail with any policy accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_evicts_is_refused_unless_it_is_allowed() {
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let redis = Arc::new(Redis::with(&[("maxmemory", "50mb"), ("maxmemory-policy", policy)]).await);
        let refused = ended(command(&["serve", "--listen", "127.0.0.1:0", "--redis", &redis.url()])).await;
        assert!(matches!(refused.status.code(), Some(64 | 69)), "{policy}: {refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("allow_eviction") && said.contains(policy), "it names the setting: {said}");
        let broker = Broker::on_redis(&redis).set("redis.allow_eviction", "true").start().await;
        broker.http.publish("a", "allowed").await;
    }
}
