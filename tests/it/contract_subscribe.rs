//! The contract's "Subscribe" table, row by row: parameters, cursors, gaps, filters, envelopes and heads.
//! What the server says on its own account (heartbeats, refusals, ends) is in `contract_control.rs`.

use serde_json::{Value, json};

use crate::support::{Broker, Setup, Subscribe, ZERO_CURSOR, until};

/// Numbered texts.
fn texts(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

/// Seen to fail without `X-Accel-Buffering`, without `retry:` and without an id in `connected`.
async fn a_stream_begins_as_the_contract_shows(setup: Setup) {
    let broker = Broker::start(setup).await;
    let published = broker.http.publish("a", "before").await;
    let reader = Subscribe::to(&["a", "b"]).connect(broker.addr).await;
    assert_eq!(reader.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(reader.header("cache-control"), Some("no-cache, no-transform"));
    assert_eq!(reader.header("x-accel-buffering"), Some("no"));
    let begin = String::from_utf8(reader.raw.clone()).unwrap();
    assert!(begin.starts_with("retry: 3000\nid: "), "{begin}");

    let connected = &reader.connected;
    assert_eq!(connected.retry, Some(3_000));
    assert!(
        connected.id.as_ref().is_some_and(|id| *id >= published.id),
        "the stream starts from now: {connected:?}"
    );
    let data = connected.json();
    let keys: Vec<&String> = data.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["connection_id", "user_id", "node", "channels", "heartbeat_ms", "timestamp"]);
    assert!(data["connection_id"].as_str().is_some_and(|id| !id.is_empty()), "{data}");
    assert!(data["node"].as_str().is_some_and(|node| !node.is_empty()), "{data}");
    assert!(data["timestamp"].as_str().is_some_and(|time| time.starts_with("20")), "{data}");
    assert_eq!(
        (&data["user_id"], &data["channels"], &data["heartbeat_ms"]),
        (&Value::Null, &json!(["a", "b"]), &json!(30_000))
    );
}

/// Seen to fail with a name that is listened to twice, and with one of the two parameters.
async fn channels_may_be_listed_or_repeated_under_either_name(setup: Setup) {
    let broker = Broker::start(setup).await;
    let subscribe =
        Subscribe::to(&["a", "b"]).query("channels", "c").query("channel", "d").query("channel", "a");
    let mut reader = subscribe.connect(broker.addr).await;
    let mut channels: Vec<String> =
        serde_json::from_value(reader.connected.json()["channels"].clone()).unwrap();
    channels.sort();
    assert_eq!(channels, ["a", "b", "c", "d"]);
    for name in ["a", "b", "c", "d"] {
        broker.http.publish(name, name).await;
    }
    assert_eq!(reader.data(4).await, ["a", "b", "c", "d"]);
}

/// Seen to fail with a position that stays where it began.
async fn a_stream_without_channels_is_open_and_silent(setup: Setup) {
    let broker = Broker::on(setup).await.set("sse.heartbeat_interval", "100ms").start().await;
    let mut reader = Subscribe::to(&[]).connect(broker.addr).await;
    assert_eq!(reader.connected.json()["channels"], json!([]));
    let published = broker.http.publish("a", "not for you").await;
    until("a heartbeat covers what was published elsewhere", async || {
        let event = reader.next().await.expect("the stream goes on");
        assert_eq!(event.kind, "heartbeat");
        (event.last_event_id >= published.id).then_some(())
    })
    .await;
}

/// Seen to fail with names that may hold anything, and with any number of them.
async fn channels_that_cannot_be_are_refused_by_name(setup: Setup) {
    let broker = Broker::start(setup).await;
    let long = "x".repeat(201);
    for name in ["a b", "a\nb", "a{b", "a}b", "$user:1", "$conn:1", &long] {
        let answer =
            broker.http.get(&format!("/events?channel={}", crate::support::http::escape(name))).await;
        answer.problem(400);
    }
    let many = texts(0..101).join(",");
    broker.http.get(&format!("/events?channels={many}")).await.problem(400);
    let allowed = texts(0..100);
    let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
    Subscribe::to(&allowed).connect(broker.addr).await;
    for name in ["日本", "a/b:c.d-e_f*%2F", &"x".repeat(200)] {
        let mut reader = Subscribe::to(&[name]).connect(broker.addr).await;
        broker.http.publish(name, "here").await;
        assert_eq!(reader.one().await, "here", "{name}");
    }
}

/// Seen to fail when a key that is lacking excludes, and when any value is in a list.
async fn filters_let_pass_what_equals_is_listed_or_lacks_the_key(setup: Setup) {
    let broker = Broker::start(setup).await;
    let filters = json!({ "region": "eu", "level": [1, "two", null] }).to_string();
    let subscribe = Subscribe::to(&["a"]).query("filters", &filters);
    let mut reader = subscribe.connect(broker.addr).await;
    let events = [
        (json!({ "n": 0, "region": "eu", "level": 1 }), true),
        (json!({ "n": 1, "region": "us", "level": 1 }), false),
        (json!({ "n": 2, "region": "eu", "level": 2 }), false),
        (json!({ "n": 3, "region": "eu", "level": "two" }), true),
        (json!({ "n": 4, "region": "eu", "level": null }), true),
        (json!({ "n": 5, "region": "eu" }), true),
        (json!({ "n": 6, "level": 3 }), false),
        (json!({ "n": 7 }), true),
        (json!([{ "region": "us" }]), true),
        (json!("region"), true),
        (json!(17), true),
        (json!(null), true),
        (json!({ "n": 8, "region": ["eu"] }), false),
        (json!({ "n": 9, "region": "eu", "level": "1" }), false),
        (json!("fence"), true),
    ];
    for (data, _) in &events {
        broker.http.publish("a", data.clone()).await;
    }
    let text = |data: &Value| data.as_str().map_or_else(|| data.to_string(), ToOwned::to_owned);
    let expected: Vec<String> =
        events.iter().filter(|(_, passes)| *passes).map(|(data, _)| text(data)).collect();
    assert_eq!(reader.data(expected.len()).await, expected, "live");
    let mut replayed = subscribe.after("earliest").connect(broker.addr).await;
    assert_eq!(replayed.data(expected.len()).await, expected, "replayed");
}

/// Seen to fail with a malformed filter that counts as none.
async fn a_malformed_filter_is_refused_and_harms_nobody(setup: Setup) {
    let broker = Broker::start(setup).await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    for filters in ["[1]", "1", "\"x\"", "null", "{", "{\"a\":", "x"] {
        let path = format!("/events?channels=a&filters={}", crate::support::http::escape(filters));
        broker.http.get(&path).await.problem(400);
    }
    broker.http.get("/events?channels=a&filters=%7B%7D&filters=%7B%22x%22%3A1%7D").await.problem(400);
    broker.http.publish("a", "still here").await;
    assert_eq!(reader.one().await, "still here");
}

/// Seen to fail with the URL first, and with no cursor at all.
async fn a_fresh_header_wins_over_the_url_in_every_spelling(setup: Setup) {
    let broker = Broker::start(setup).await;
    let ids = broker.http.publish_all("a", &texts(0..4)).await;
    for name in ["last_event_id", "lastEventId", "lastEventID"] {
        let by_url = Subscribe::to(&["a"]).query(name, &ids[0]);
        assert_eq!(by_url.connect(broker.addr).await.data(3).await, ["1", "2", "3"], "{name}");
        let by_header = by_url.after(&ids[2]);
        assert_eq!(by_header.connect(broker.addr).await.one().await, "3", "the header wins over {name}");
    }
}

/// Seen to fail with each taken for the other.
async fn earliest_gives_all_and_latest_nothing_of_the_past(setup: Setup) {
    let broker = Broker::start(setup).await;
    let ids = broker.http.publish_all("a", &texts(0..3)).await;
    let mut earliest = Subscribe::to(&["a"]).query("last_event_id", "earliest").connect(broker.addr).await;
    assert_eq!(earliest.connected.last_event_id, ZERO_CURSOR);
    assert_eq!(earliest.data(3).await, ["0", "1", "2"]);

    let mut latest = Subscribe::to(&["a"]).query("last_event_id", "latest").connect(broker.addr).await;
    let mut absent = Subscribe::to(&["a"]).connect(broker.addr).await;
    assert!(latest.connected.last_event_id >= ids[2] && absent.connected.last_event_id >= ids[2]);
    broker.http.publish("a", "new").await;
    assert_eq!((latest.one().await, absent.one().await), ("new".into(), "new".into()));
    assert_eq!(earliest.one().await, "new");
}

/// Seen to fail with ULIDs only.
async fn a_cursor_may_be_written_as_redis_writes_it(setup: Setup) {
    let broker = Broker::start(setup).await;
    broker.http.publish("a", "0").await;
    let first = broker.http.publish("a", "1").await;
    broker.http.publish("a", "2").await;
    for cursor in [&first.stream_id, &first.id, &first.id.to_lowercase()] {
        let mut reader = Subscribe::to(&["a"]).after(cursor).connect(broker.addr).await;
        assert_eq!(reader.connected.last_event_id, first.id);
        assert_eq!(reader.one().await, "2", "after {cursor}");
    }
}

/// Seen to fail without a rewind, and with one that goes before the cursor.
async fn rewind_gives_the_last_events_of_each_channel_unless_there_is_a_cursor(setup: Setup) {
    let broker = Broker::start(setup).await;
    for n in 0..5 {
        broker.http.publish("a", format!("a{n}")).await;
        broker.http.publish("b", format!("b{n}")).await;
    }
    let after_all = broker.http.publish("c", "c0").await;
    let rewind = |n| Subscribe::to(&["a", "b", "c", "empty"]).query("rewind", n);
    let mut reader = rewind("2").connect(broker.addr).await;
    assert_eq!(reader.data(5).await, ["a3", "b3", "a4", "b4", "c0"]);
    broker.http.publish("a", "live").await;
    assert_eq!(reader.one().await, "live");

    assert_eq!(rewind("100").connect(broker.addr).await.data(12).await.len(), 12);
    let mut resumed = rewind("2").after(&after_all.id).connect(broker.addr).await;
    assert_eq!(resumed.one().await, "live", "the cursor counts, not the rewind");
    for wrong in ["101", "-1", "x", "", "1&rewind=2"] {
        broker.http.get(&format!("/events?channels=a&rewind={wrong}")).await.problem(400);
    }
}

/// Seen to fail with the bare event.
async fn an_envelope_carries_channel_and_type_in_a_message(setup: Setup) {
    let broker = Broker::start(setup).await;
    let mut reader = Subscribe::to(&["a", "b"]).query("envelope", "1").connect(broker.addr).await;
    assert_eq!(reader.connected.kind, "connected", "control events keep their type");
    let data = [("a", "tick", json!({ "z": 1.0, "a": [null, "x"] })), ("b", "message", json!("te\"xt\r\n"))];
    for (channel, kind, data) in &data {
        let receipt = broker.http.publish_event(channel, &json!({ "event": kind, "data": data })).await;
        let event = reader.events(1).await.remove(0);
        assert_eq!((event.kind.as_str(), &event.last_event_id), ("message", &receipt.id));
        let envelope = event.json();
        let keys: Vec<&String> = envelope.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["id", "channel", "event", "data", "timestamp"]);
        assert_eq!(envelope["id"], json!(receipt.id));
        assert_eq!((&envelope["channel"], &envelope["event"]), (&json!(channel), &json!(kind)));
        assert_eq!(envelope["data"].to_string(), data.to_string(), "what was published, key order included");
    }
}

/// Seen to fail with a bad cursor that counts as none, and with one that counts as `earliest`.
async fn a_cursor_that_is_none_gives_a_gap_once_and_then_live_events(setup: Setup) {
    let broker = Broker::start(setup).await;
    broker.http.publish("a", "old").await;
    for cursor in [
        "x",
        "1-",
        "01JD7Q3ZK8",
        "81JD7Q3ZK8000000000000000A",
        "\u{1F600}",
        "01JD7Q3ZK8000G000000000000",
        "'; --",
        "0 OR 1",
    ] {
        let mut reader = Subscribe::to(&["a", "b"]).query("last_event_id", cursor).connect(broker.addr).await;
        let gap = reader.gap().await;
        assert_eq!(gap["reason"], "invalid_cursor", "{cursor:?}: {gap}");
        assert_eq!((&gap["channel"], &gap["after"]), (&Value::Null, &Value::Null), "{cursor:?}: {gap}");
        broker.http.publish("a", cursor).await;
        assert_eq!(reader.one().await, cursor, "only one gap, and nothing old");
    }
    let foreign = "01JD7Q3ZK8000G000000000000";
    let reader = Subscribe::to(&["a"]).after(foreign).connect(broker.addr).await;
    let position = reader.connected.last_event_id.clone();
    broker.http.publish("a", "next").await;
    let mut again = Subscribe::to(&["a"]).after(&position).connect(broker.addr).await;
    assert_eq!(again.one().await, "next", "connected gave a cursor without a gap");
}

/// Seen to fail when the end of the feed is not looked at.
async fn a_cursor_from_the_future_is_a_reset_once(setup: Setup) {
    let broker = Broker::start(setup).await;
    broker.http.publish("a", "old").await;
    let mut reader = Subscribe::to(&["a"]).after("7ZZZZZZZZZ0000000000000000").connect(broker.addr).await;
    let position = reader.connected.last_event_id.clone();
    let gap = reader.gap().await;
    assert_eq!((&gap["channel"], &gap["reason"]), (&json!("a"), &json!("reset")), "{gap}");
    broker.http.publish("a", "new").await;
    assert_eq!(reader.one().await, "new");
    let mut again = Subscribe::to(&["a"]).after(&position).connect(broker.addr).await;
    assert_eq!(again.one().await, "new", "the gap does not repeat");
}

/// Broken to see it fail: history that counts as complete without a proof.
async fn a_trimmed_cursor_is_told_and_replayed_from_the_oldest_that_is_left(setup: Setup) {
    let broker = Broker::on(setup).await.set("retention.max_length", "10").start().await;
    let first = broker.http.publish("a", "first").await;
    let quiet = broker.http.publish("quiet", "quiet").await;
    for hundred in 0..5 {
        broker.http.publish_all("a", &texts(hundred * 100..hundred * 100 + 100)).await;
    }
    let oldest = broker.http.history("a").await.remove(0);
    let kept: usize = 500 - oldest.data.parse::<usize>().expect("the first event was trimmed");
    assert!((10..=210).contains(&kept), "kept: 10 to 200 more, not {kept}");

    let channels = ["a", "quiet", "never"];
    let mut reader = Subscribe::to(&channels).after(&quiet.id).connect(broker.addr).await;
    let gap = reader.gap().await;
    assert_eq!((&gap["channel"], &gap["reason"]), (&json!("a"), &json!("trimmed")), "{gap}");
    assert_eq!((&gap["after"], &gap["oldest"]), (&json!(quiet.id), &json!(oldest.id)), "{gap}");
    assert_eq!(
        reader.data(kept).await,
        texts(500 - kept..500),
        "no gap for channels that had nothing to miss"
    );

    let mut all = Subscribe::to(&["a"]).after("earliest").connect(broker.addr).await;
    assert_eq!(all.data(kept).await, texts(500 - kept..500), "asking for what is left is never a gap");
    let mut at_oldest = Subscribe::to(&["a"]).after(&oldest.id).connect(broker.addr).await;
    assert_eq!(
        at_oldest.data(kept - 1).await,
        texts(501 - kept..500),
        "a cursor that is still there proves it all"
    );
    let mut first_cursor = Subscribe::to(&["quiet"]).after(&first.id).connect(broker.addr).await;
    assert_eq!(first_cursor.one().await, "quiet");
}

/// Seen to fail with a cursor that lies ahead, and with one that is passed over.
async fn a_cursor_read_first_misses_nothing_that_follows(setup: Setup) {
    let broker = Broker::start(setup).await;
    broker.http.publish("a", "part of the page's state").await;
    let cursor = broker.http.cursor("a,b").await;
    broker.http.publish("a", "1").await;
    broker.http.publish("b", "2").await;
    let mut reader = Subscribe::to(&["a", "b"]).after(&cursor).connect(broker.addr).await;
    assert_eq!(reader.data(2).await, ["1", "2"]);
}

/// Seen to fail as a detached stream, with chunks for every version.
async fn a_stream_is_served_over_http_1_0_too(setup: Setup) {
    let broker = Broker::start(setup).await;
    let mut reader = Subscribe::to(&["a"]).http_1_0().connect(broker.addr).await;
    assert_eq!(reader.header("transfer-encoding"), None, "HTTP/1.0 knows no chunks");
    assert_ne!(reader.header("connection"), Some("keep-alive"), "the body ends with the connection");
    broker.http.publish("a", "old but works").await;
    assert_eq!(reader.one().await, "old but works");
}

both_paths!(
    a_stream_begins_as_the_contract_shows,
    channels_may_be_listed_or_repeated_under_either_name,
    a_stream_without_channels_is_open_and_silent,
    channels_that_cannot_be_are_refused_by_name,
    filters_let_pass_what_equals_is_listed_or_lacks_the_key,
    a_malformed_filter_is_refused_and_harms_nobody,
    a_fresh_header_wins_over_the_url_in_every_spelling,
    earliest_gives_all_and_latest_nothing_of_the_past,
    a_cursor_may_be_written_as_redis_writes_it,
    rewind_gives_the_last_events_of_each_channel_unless_there_is_a_cursor,
    an_envelope_carries_channel_and_type_in_a_message,
    a_cursor_that_is_none_gives_a_gap_once_and_then_live_events,
    a_cursor_from_the_future_is_a_reset_once,
    a_trimmed_cursor_is_told_and_replayed_from_the_oldest_that_is_left,
    a_cursor_read_first_misses_nothing_that_follows,
    a_stream_is_served_over_http_1_0_too,
);
