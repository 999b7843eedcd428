//! Looking and managing: history, channels, purge, nodes, health, and who may call from a browser.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Broker, Store, Subscribe, until};

fn names(body: &Value) -> Vec<String> {
    let channels = body["channels"].as_array().expect("`channels` is an array");
    channels
        .iter()
        .map(|c| c["channel"].as_str().or(c.as_str()).expect("a channel's name").to_owned())
        .collect()
}

fn data(body: &Value) -> Vec<u64> {
    body["events"]
        .as_array()
        .expect("`events` is an array")
        .iter()
        .map(|e| e["data"].as_u64().unwrap())
        .collect()
}

/// Seen to fail with an `after` that counts itself, in each store, and with an order that is not asked for.
async fn history_is_read_in_pages_in_either_direction(store: Store) {
    let broker = Broker::start(store).await;
    let mut ids = Vec::new();
    for n in 0..25 {
        ids.push(broker.http.publish_event("a/b", &json!({ "event": "tick", "data": n })).await);
    }
    let get = async |query: &str| {
        broker.http.get(&format!("/channels/a%2Fb/events?{query}")).await.expect(200).json()
    };
    let all = get("").await;
    assert_eq!(data(&all), (0..25).collect::<Vec<_>>());
    let first = &all["events"][0];
    let keys: Vec<&String> = first.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["id", "stream_id", "channel", "event", "data", "timestamp"]);
    assert_eq!((&first["id"], &first["stream_id"]), (&json!(ids[0].id), &json!(ids[0].stream_id)));
    assert_eq!((&first["channel"], &first["event"]), (&json!("a/b"), &json!("tick")));

    let between = get(&format!("after={}&before={}", ids[3].id, ids[7].stream_id)).await;
    assert_eq!(data(&between), [4, 5, 6], "both ends are exclusive, in either form of id");
    let newest = get("order=desc&limit=3").await;
    assert_eq!(data(&newest), [24, 23, 22]);

    let (mut seen, mut page) = (Vec::new(), get("limit=10").await);
    loop {
        seen.extend(data(&page));
        let Some(next) = page["next"].as_str().map(ToOwned::to_owned) else { break };
        page = get(&format!("limit=10&after={next}")).await;
    }
    assert_eq!(seen, (0..25).collect::<Vec<_>>());
    for wrong in ["limit=0", "limit=x", "order=sideways", "after=x", "before=x", "limit=1&limit=2"] {
        broker.http.get(&format!("/channels/a/events?{wrong}")).await.problem(400);
    }
}

/// Broken on purpose: with every event turned into a `serde_json::Value` for the answer, the channel's history
/// could not be read at all for as long as it held one of the last three.
async fn history_gives_json_back_to_the_last_digit(store: Store) {
    let broker = Broker::start(store).await;
    let deep = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
    let published = [
        r#"{"b":12345678901234567890123,"a":1.0,"a":2}"#,
        "1e400",
        r#"{"lone surrogate":"\ud800"}"#,
        deep.as_str(),
    ];
    for data in published {
        let body = format!(r#"{{"data":{data}}}"#);
        let json = [("content-type", "application/json")];
        broker.http.send(Method::POST, "/channels/a/events", &json, body).await.expect(201);
    }
    let history = broker.http.get("/channels/a/events").await.expect(200).body;
    for data in published {
        assert!(history.contains(&format!(r#""data":{data},"timestamp""#)), "{data} in {history}");
    }
}

/// Seen to fail with listeners that are not counted.
async fn a_channel_tells_what_it_holds_and_who_listens(store: Store) {
    let broker = Broker::start(store).await;
    let first = broker.http.publish("orders", 1).await;
    let last = broker.http.publish("orders", 2).await;
    let _reader = Subscribe::to(&["orders"]).connect(broker.addr).await;
    let info = until("the subscriber is counted", async || {
        let info = broker.http.get("/channels/orders").await.expect(200).json();
        (info["subscribers"]["total"] == 1).then_some(info)
    });
    let info = info.await;
    assert_eq!(info["length"], 2, "{info}");
    assert_eq!((&info["first_id"], &info["last_id"]), (&json!(first.id), &json!(last.id)), "{info}");
    let key = if store == Store::Redis { json!("hw:{0}:ch:orders") } else { Value::Null };
    assert_eq!((&info["redis_key"], &info["partition"]), (&key, &json!(0)), "{info}");
}

/// Seen to fail with a prefix that does not reach the log.
async fn channels_are_listed_by_prefix_in_pages(store: Store) {
    let broker = Broker::start(store).await;
    for n in 0..30 {
        broker.http.publish(&format!("orders.{n}"), n).await;
    }
    broker.http.publish("other", 1).await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page =
            broker.http.get(&format!("/channels?prefix=orders.&limit=7{cursor}")).await.expect(200).json();
        seen.extend(names(&page));
        let Some(next) = page["next"].as_str().or(page["cursor"].as_str()) else { break };
        cursor = format!("&cursor={}", crate::support::http::escape(next));
    }
    seen.sort();
    let mut expected: Vec<String> = (0..30).map(|n| format!("orders.{n}")).collect();
    expected.sort();
    assert_eq!(seen, expected);
}

/// Seen to fail when the marker in the feed is passed over.
async fn a_purge_is_a_reset_for_live_sessions_and_old_cursors(store: Store) {
    let broker = Broker::start(store).await;
    let mut reader = Subscribe::to(&["a", "b"]).connect(broker.addr).await;
    let before = broker.http.publish("a", "gone").await;
    broker.http.publish("b", "stays").await;
    assert_eq!(reader.data(2).await, ["gone", "stays"]);

    broker.http.delete("/channels/a").await.expect(204);
    let gap = reader.gap().await;
    assert_eq!((&gap["channel"], &gap["reason"]), (&json!("a"), &json!("reset")), "{gap}");
    broker.http.publish("a", "new").await;
    assert_eq!(reader.one().await, "new");

    let mut back = Subscribe::to(&["a", "b"]).after(&before.id).connect(broker.addr).await;
    let gap = back.gap().await;
    assert_eq!((&gap["channel"], &gap["reason"]), (&json!("a"), &json!("reset")), "{gap}");
    broker.http.publish("b", "fence").await;
    let data = until("the fence", async || {
        let event = back.events(1).await.remove(0);
        assert_ne!(event.data, "gone", "what was purged does not come back");
        (event.data == "fence").then_some(())
    });
    data.await;
    let mut earliest = Subscribe::to(&["a"]).after("earliest").connect(broker.addr).await;
    assert_eq!(earliest.one().await, "new", "asking for what is left is never a gap");
    let mut resumed = Subscribe::to(&["a", "b"]).after(back.last_event_id()).connect(broker.addr).await;
    broker.http.publish("a", "no more gaps").await;
    assert_eq!(resumed.one().await, "no more gaps");
    broker.http.delete("/channels/never").await.expect(204);
}

/// Seen to fail with a purge that the state does not keep, in each store.
async fn a_purge_is_told_to_clients_that_were_away_over_a_restart(store: Store) {
    let mut broker = Broker::start(store).await;
    let before = broker.http.publish("a", "gone").await;
    broker.http.delete("/channels/a").await.expect(204);
    broker.kill9();
    broker.restart().await;
    let mut back = Subscribe::to(&["a"]).after(&before.id).connect(broker.addr).await;
    assert_eq!(back.gap().await["reason"], "reset");
    let after = broker.http.publish("a", "new").await;
    assert!(after.id > before.id, "ids go on over purge and restart");
    assert_eq!(back.one().await, "new");
}

/// Seen to fail when every origin is told that it is allowed.
async fn only_listed_origins_may_read_and_on_errors_too(store: Store) {
    let (listed, other) = ("https://app.example", "http://localhost:9999");
    let setup = Broker::on(store).await.set("cors.allowed_origins", r#"["https://app.example"]"#);
    let broker = setup.start().await;
    let asking = [
        ("origin", listed),
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "authorization,content-type,idempotency-key,last-event-id,cache-control",
        ),
    ];
    let preflight = broker.http.send(Method::OPTIONS, "/channels/a/events", &asking, "").await;
    assert!((200..300).contains(&preflight.status), "{preflight:?}");
    assert_eq!(preflight.header("access-control-allow-origin"), listed);
    assert_eq!(preflight.header("access-control-allow-credentials"), "true");
    let allowed = preflight.header("access-control-allow-headers").to_ascii_lowercase();
    for name in ["authorization", "last-event-id", "idempotency-key", "content-type", "cache-control"] {
        assert!(allowed.contains(name), "{name} in {allowed}");
    }

    for (path, status) in [("/channels", 200), ("/events?filters=x", 400), ("/nothing", 404)] {
        let answer = broker.http.send(Method::GET, path, &[("origin", listed)], "").await.expect(status);
        assert_eq!(answer.header("access-control-allow-origin"), listed, "{path}");
        let exposed = answer.header("access-control-expose-headers").to_ascii_lowercase();
        assert!(exposed.contains("retry-after"), "{path}: {exposed}");
        let answer = broker.http.send(Method::GET, path, &[("origin", other)], "").await;
        assert_eq!(answer.header("access-control-allow-origin"), "", "{path}");
    }
    let stream = Subscribe::to(&["a"]).header("Origin", listed).connect(broker.addr).await;
    assert_eq!(stream.header("access-control-allow-origin"), Some(listed));
}

/// Seen to fail when `Host` and `Origin` are not looked at.
async fn an_open_broker_listens_only_to_pages_of_this_machine(store: Store) {
    let broker = Broker::start(store).await;
    let get = async |headers: &[(&str, &str)]| broker.http.send(Method::GET, "/channels", headers, "").await;
    for host in ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example"] {
        get(&[("host", host)]).await.problem(403);
        let health = broker.http.send(Method::GET, "/healthz", &[("host", host)], "").await;
        assert_eq!(health.status, 200, "health checks name any host");
    }
    for host in ["localhost", "localhost:1234", "127.0.0.1", "[::1]:80"] {
        get(&[("host", host)]).await.expect(200);
    }
    for origin in ["https://evil.example", "http://localhost.evil.example", "null"] {
        get(&[("origin", origin)]).await.problem(403);
        let stream = Subscribe::to(&["a"]).header("Origin", origin).open(broker.addr).await;
        assert_eq!(stream.status, 403, "{origin}");
    }
    for origin in ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:5173"] {
        get(&[("origin", origin)]).await.expect(200);
    }
}

/// Seen to fail without both the guard and the limit of the HTTP library's buffer: each covers for the other here.
async fn a_head_that_is_too_large_is_refused(store: Store) {
    let broker = Broker::start(store).await;
    let large = "x".repeat(70_000);
    let answer = broker.http.send(Method::GET, "/channels", &[("x-large", &large)], "").await;
    assert_eq!(answer.status, 431);
    broker.http.get("/healthz").await.expect(200);
}

both_stores!(
    history_is_read_in_pages_in_either_direction,
    history_gives_json_back_to_the_last_digit,
    a_channel_tells_what_it_holds_and_who_listens,
    channels_are_listed_by_prefix_in_pages,
    a_purge_is_a_reset_for_live_sessions_and_old_cursors,
    a_purge_is_told_to_clients_that_were_away_over_a_restart,
    only_listed_origins_may_read_and_on_errors_too,
    an_open_broker_listens_only_to_pages_of_this_machine,
    a_head_that_is_too_large_is_refused,
);
