//! What the server says on its own account: heartbeats, ends, temporary refusals, and events for one user or one
//! connection.

use reqwest::Method;
use serde_json::json;

use crate::support::{Broker, Store, Subscribe, until};

async fn heartbeats_move_the_cursor_of_a_subscriber_that_gets_nothing(store: Store) {
    let broker = Broker::on(store).await.set("sse.heartbeat_interval", "50ms").start().await;
    let mut idle = Subscribe::to(&["idle"]).connect(broker.addr).await;
    let mut filtered = Subscribe::to(&["busy"]).query("filters", r#"{"x":1}"#).connect(broker.addr).await;
    assert_eq!(idle.connected.json()["heartbeat_ms"], 50);
    let published = broker.http.publish("busy", json!({ "x": 2 })).await;
    for reader in [&mut idle, &mut filtered] {
        until("a heartbeat covers what was published elsewhere", async || {
            let event = reader.next().await.expect("the stream goes on");
            assert_eq!(event.kind, "heartbeat");
            assert!(event.json()["timestamp"].is_string(), "{event:?}");
            event.id.filter(|id| *id >= published.id)
        })
        .await;
    }
    let cursor = idle.last_event_id().to_owned();
    broker.http.publish("idle", "next").await;
    let mut resumed = Subscribe::to(&["idle"]).after(&cursor).connect(broker.addr).await;
    assert_eq!(resumed.one().await, "next");
}

async fn a_heartbeat_may_be_a_comment_that_moves_nothing(store: Store) {
    let quiet = Broker::on(store).await.set("sse.heartbeat_interval", "50ms").set("sse.heartbeat", "comment");
    let broker = quiet.start().await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    let begin = reader.last_event_id().to_owned();
    until("a comment comes", async || {
        let event = reader.next_within(std::time::Duration::from_millis(20)).await;
        assert_eq!(event, None, "nothing was published");
        (reader.comments.len() >= 2).then_some(())
    })
    .await;
    assert_eq!(reader.last_event_id(), begin);
}

async fn a_stream_that_reached_its_lifetime_asks_to_reconnect(store: Store) {
    let broker =
        Broker::on(store).await.set("sse.lifetime_max", "300ms").set("sse.retry", "70ms").start().await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    assert_eq!(reader.connected.retry, Some(70));
    let closing = reader.next_control("closing").await;
    assert_eq!(closing.json(), json!({ "reason": "lifetime", "reconnect": true }));
    reader.end().await;
}

/// Opens a second stream that is refused for now: once as an `EventSource` asks, once as a program does.
async fn assert_refused_for_now(broker: &Broker, reason: &str, status: u16) {
    let mut refused = Subscribe::to(&["a"]).open(broker.addr).await;
    assert_eq!(
        (refused.status, refused.header("content-type")),
        (200, Some("text/event-stream; charset=utf-8"))
    );
    let closing = refused.next_control("closing").await;
    assert_eq!(closing.json(), json!({ "reason": reason, "reconnect": true }));
    assert!(closing.retry.is_some_and(|ms| ms > 0), "a browser must not come back at once: {closing:?}");
    assert_eq!(closing.id, None, "a refusal moves no cursor");
    refused.end().await;

    let answer = broker.http.send(Method::GET, "/events?channels=a", &[("accept", "*/*")], "").await;
    assert!(answer.header("retry-after").parse::<u64>().is_ok(), "{answer:?}");
    answer.problem(status);
}

async fn a_full_node_refuses_streams_so_that_browsers_come_back(store: Store) {
    let broker = Broker::on(store).await.set("limits.connections_max", "1").start().await;
    let mut first = Subscribe::to(&["a"]).connect(broker.addr).await;
    assert_refused_for_now(&broker, "overloaded", 503).await;
    broker.http.publish("a", "others still work").await;
    assert_eq!(first.one().await, "others still work");
    drop(first);
    until("the place of a client that left is free again", async || {
        let mut next = Subscribe::to(&["a"]).open(broker.addr).await;
        next.next().await.filter(|event| event.kind == "connected")
    })
    .await;
}

async fn one_address_cannot_take_every_place(store: Store) {
    let broker = Broker::on(store).await.set("limits.connections_per_ip", "2").start().await;
    let _first = Subscribe::to(&["a"]).connect(broker.addr).await;
    let _second = Subscribe::to(&["a"]).connect(broker.addr).await;
    assert_refused_for_now(&broker, "rate_limited", 429).await;
}

async fn connecting_faster_than_the_rate_is_refused_for_now(store: Store) {
    let broker = Broker::on(store).await.set("limits.connect_rate", "1/m").start().await;
    let _first = Subscribe::to(&["a"]).connect(broker.addr).await;
    assert_refused_for_now(&broker, "rate_limited", 429).await;
    broker.http.get("/healthz").await.expect(200);
}

async fn an_event_for_a_user_reaches_every_connection_and_those_that_were_away(store: Store) {
    let broker = Broker::start(store).await;
    let of = |user| Subscribe::to(&["a"]).at("/events/authenticated").query("user", user);
    let mut phone = of("42").connect(broker.addr).await;
    let mut laptop = of("42").connect(broker.addr).await;
    let mut other = of("7").connect(broker.addr).await;
    assert_eq!(phone.connected.json()["user_id"], "42");
    let cursor = phone.connected.last_event_id.clone();

    let receipt =
        broker.http.post("/users/42/events", &json!({ "event": "note", "data": "hi" })).await.expect(201);
    let both = broker
        .http
        .post("/users/events", &json!({ "user_ids": ["42", "7"], "data": "both" }))
        .await
        .expect(200);
    assert_eq!(both.json()["published"], 2);
    for reader in [&mut phone, &mut laptop] {
        let events = reader.events(2).await;
        assert_eq!((events[0].kind.as_str(), events[0].data.as_str()), ("note", "hi"));
        assert_eq!(events[0].last_event_id, receipt.receipt().id);
        assert_eq!(events[1].data, "both");
    }
    assert_eq!(other.one().await, "both", "nobody else's");
    let mut back = of("42").after(&cursor).query("filters", r#"{"x":1}"#).connect(broker.addr).await;
    assert_eq!(back.data(2).await, ["hi", "both"], "filters do not apply to it");

    let enveloped =
        of("42").after(&cursor).query("envelope", "1").connect(broker.addr).await.events(1).await.remove(0);
    assert_eq!((&enveloped.json()["channel"], &enveloped.json()["event"]), (&json!("$user"), &json!("note")));
    let public = Subscribe::to(&[]).query("user", "42").after(&cursor).connect(broker.addr).await;
    let mut public = public;
    let id = public.connected.json()["connection_id"].as_str().unwrap().to_owned();
    broker.http.post(&format!("/connections/{id}/events"), &json!({ "data": "direct" })).await.expect(201);
    assert_eq!(public.one().await, "direct", "the public route delivers no user's events");

    let history = broker.http.get("/users/42/events").await.expect(200).json();
    assert_eq!(history["events"].as_array().unwrap().len(), 2);
    broker.http.delete("/users/42/events").await.expect(204);
    let history = broker.http.get("/users/42/events").await.expect(200).json();
    assert_eq!(history["events"], json!([]));
}

async fn an_event_for_one_connection_reaches_that_one(store: Store) {
    let broker = Broker::start(store).await;
    let mut target = Subscribe::to(&["a"]).connect(broker.addr).await;
    let mut other = Subscribe::to(&["a"]).connect(broker.addr).await;
    let id = target.connected.json()["connection_id"].as_str().unwrap().to_owned();
    let cursor_before = target.last_event_id().to_owned();
    let path = format!("/connections/{id}/events");
    broker.http.post(&path, &json!({ "event": "hello", "data": { "n": 1 } })).await.expect(201);
    let event = target.next().await.expect("the event for this connection");
    assert_eq!((event.kind.as_str(), event.data.as_str()), ("hello", r#"{"n":1}"#));
    broker.http.publish("a", "for both").await;
    assert_eq!((target.one().await, other.one().await), ("for both".into(), "for both".into()));
    let mut resumed = Subscribe::to(&["a"]).after(&cursor_before).connect(broker.addr).await;
    assert_eq!(resumed.one().await, "for both", "a connection's events end with it");

    drop(target);
    until("the connection is known to be gone", async || {
        let answer = broker.http.post(&path, &json!({ "data": 1 })).await;
        (answer.status == 404).then(|| answer.problem(404))
    })
    .await;
    broker.http.post("/connections/nobody/events", &json!({ "data": 1 })).await.problem(404);
}

async fn a_connection_can_be_ended_for_good(store: Store) {
    let broker = Broker::start(store).await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    let id = reader.connected.json()["connection_id"].as_str().unwrap().to_owned();
    let path = format!("/connections/{id}");
    until("the connection can be ended", async || {
        let answer = broker.http.delete(&path).await;
        (answer.status != 404).then(|| assert!((200..300).contains(&answer.status), "{answer:?}"))
    })
    .await;
    let closing = reader.next_control("closing").await;
    assert_eq!(closing.json(), json!({ "reason": "disconnected", "reconnect": false }));
    reader.end().await;
}

both_stores!(
    heartbeats_move_the_cursor_of_a_subscriber_that_gets_nothing,
    a_heartbeat_may_be_a_comment_that_moves_nothing,
    a_stream_that_reached_its_lifetime_asks_to_reconnect,
    a_full_node_refuses_streams_so_that_browsers_come_back,
    one_address_cannot_take_every_place,
    connecting_faster_than_the_rate_is_refused_for_now,
    an_event_for_a_user_reaches_every_connection_and_those_that_were_away,
    an_event_for_one_connection_reaches_that_one,
    a_connection_can_be_ended_for_good,
);
