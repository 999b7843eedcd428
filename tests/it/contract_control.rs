//! What the server says on its own account: heartbeats, ends and temporary refusals.

use reqwest::Method;
use serde_json::json;

use crate::support::{Broker, Setup, Subscribe, until};

/// Seen to fail with heartbeats without an id.
async fn heartbeats_move_the_cursor_of_a_subscriber_that_gets_nothing(setup: Setup) {
    let broker = Broker::on(setup).await.set("sse.heartbeat_interval", "100ms").start().await;
    let mut idle = Subscribe::to(&["idle"]).connect(broker.addr).await;
    let mut filtered = Subscribe::to(&["busy"]).query("filters", r#"{"x":1}"#).connect(broker.addr).await;
    assert_eq!(idle.connected.json()["heartbeat_ms"], 100);
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

/// Seen to fail with heartbeats that are always events.
async fn a_heartbeat_may_be_a_comment_that_moves_nothing(setup: Setup) {
    let quiet =
        Broker::on(setup).await.set("sse.heartbeat_interval", "100ms").set("sse.heartbeat", "comment");
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

/// Seen to fail with a lifetime that does not count.
async fn a_stream_that_reached_its_lifetime_asks_to_reconnect(setup: Setup) {
    let broker =
        Broker::on(setup).await.set("sse.lifetime_max", "300ms").set("sse.retry", "70ms").start().await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    assert_eq!(reader.connected.retry, Some(70));
    let closing = reader.next_control("closing").await;
    assert_eq!(closing.json(), json!({ "reason": "lifetime", "reconnect": true }));
    reader.end().await;
}

/// Opens a second stream that is refused for now: once as an `EventSource` asks, once as a program does.
pub(crate) async fn assert_refused_for_now(broker: &Broker, reason: &str, status: u16) {
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

/// Seen to fail with a status for everybody, and without the bound.
async fn a_full_node_refuses_streams_so_that_browsers_come_back(setup: Setup) {
    let broker = Broker::on(setup).await.set("limits.connections_max", "1").start().await;
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

both_paths!(
    heartbeats_move_the_cursor_of_a_subscriber_that_gets_nothing,
    a_heartbeat_may_be_a_comment_that_moves_nothing,
    a_stream_that_reached_its_lifetime_asks_to_reconnect,
    a_full_node_refuses_streams_so_that_browsers_come_back,
);
