//! Injection: whatever stands in data, type, channel or cursor, a reader that follows the standard gets what was
//! published and no line more.

use std::collections::BTreeSet;

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::support::http::escape;
use crate::support::{Broker, Store, Subscribe, seeded};

/// Pieces that mean something to a parser of event streams, or to something before it.
const EVIL: [&str; 22] = [
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\0",
    "\u{2028}",
    "\u{2029}",
    "\u{85}",
    "\u{feff}",
    ":",
    " ",
    "data: x",
    "id: 0-0",
    "event: gap",
    "retry: 0",
    "data",
    "\u{b}",
    "\u{c}",
    "é",
    "\u{1F600}",
    "\\n",
    "a",
];

fn evil(rng: &mut StdRng) -> String {
    (0..rng.random_range(0..12)).map(|_| EVIL[rng.random_range(0..EVIL.len())]).collect()
}

/// What the format can carry of a text: line ends come back as LF.
fn lines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// Seen to fail with a CR that ends no line of data.
async fn evil_data_arrives_as_data_and_nothing_else(store: Store) {
    let mut rng = seeded();
    let broker = Broker::start(store).await;
    let texts: Vec<String> = (0..300).map(|_| evil(&mut rng)).collect();
    let mut plain = Subscribe::to(&["a"]).connect(broker.addr).await;
    let mut enveloped = Subscribe::to(&["a"]).query("envelope", "1").connect(broker.addr).await;
    let ids = broker.http.publish_all("a", &texts).await;
    let mut replayed = Subscribe::to(&["a"]).after("earliest").connect(broker.addr).await;
    for (text, id) in texts.iter().zip(&ids) {
        for reader in [&mut plain, &mut replayed] {
            let event = reader.events(1).await.remove(0);
            assert_eq!(
                (event.data.as_str(), event.kind.as_str()),
                (lines(text).as_str(), "message"),
                "{text:?}"
            );
            assert_eq!((event.id.as_ref(), event.retry), (Some(id), None), "{text:?}");
        }
        let envelope = enveloped.events(1).await.remove(0).json();
        assert_eq!(envelope["data"], json!(text), "an envelope keeps even the line ends");
    }
    let history: Vec<String> = broker.http.history("a").await.into_iter().map(|event| event.data).collect();
    assert_eq!(history, texts, "and so does history");
}

/// Seen to fail with the same.
async fn evil_text_bodies_arrive_as_they_are(store: Store) {
    let mut rng = seeded();
    let broker = Broker::start(store).await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    for _ in 0..50 {
        let text = evil(&mut rng);
        let headers = [("content-type", "text/plain")];
        broker
            .http
            .send(reqwest::Method::POST, "/channels/a/events", &headers, text.clone())
            .await
            .expect(201);
        assert_eq!(reader.one().await, lines(&text), "{text:?}");
    }
}

/// Seen to fail with control characters in types.
async fn an_evil_type_is_refused_or_arrives_as_the_type(store: Store) {
    let mut rng = seeded();
    let broker = Broker::start(store).await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    let mut accepted = 0;
    for number in 0..100 {
        let kind = evil(&mut rng);
        let body = json!({ "event": kind, "data": number });
        let answer = broker.http.post("/channels/a/events", &body).await;
        let harmless = !kind.is_empty() && !kind.chars().any(char::is_control) && kind.len() <= 200;
        assert_eq!(answer.status == 201, harmless, "{kind:?}: {answer:?}");
        if harmless {
            accepted += 1;
            let event = reader.events(1).await.remove(0);
            assert_eq!((event.kind, event.data), (kind, number.to_string()));
        }
    }
    assert!(accepted > 0, "some types are harmless");
}

/// Seen to fail with names that may hold anything.
async fn an_evil_channel_is_refused_or_works_as_a_name(store: Store) {
    let mut rng = seeded();
    let broker = Broker::start(store).await;
    let mut names = BTreeSet::new();
    for number in 0..60 {
        // The number keeps the names apart, and every other one from being empty.
        let name =
            if number % 2 == 0 { evil(&mut rng) } else { format!("{}{number}", EVIL[number % EVIL.len()]) };
        if !names.insert(name.clone()) {
            continue;
        }
        let answer =
            broker.http.post(&format!("/channels/{}/events", escape(&name)), &json!({ "data": name })).await;
        let refused = |c: char| c.is_whitespace() || c.is_control() || ",{}".contains(c);
        let harmless = !name.is_empty() && name.len() <= 200 && !name.contains(refused);
        assert_eq!(answer.status == 201, harmless, "{name:?}: {answer:?}");
        if harmless {
            let mut reader = Subscribe::to(&[&name]).after("earliest").connect(broker.addr).await;
            assert_eq!(reader.connected.json()["channels"], json!([name]));
            assert_eq!(reader.one().await, name, "the channel's first event");
        }
    }
}

/// Seen to fail with a bad cursor that counts as none.
async fn an_evil_cursor_is_a_gap_and_no_line(store: Store) {
    let mut rng = seeded();
    let broker = Broker::start(store).await;
    for _ in 0..30 {
        let cursor = format!("x{}", evil(&mut rng));
        let mut reader = Subscribe::to(&["a"]).query("last_event_id", &cursor).connect(broker.addr).await;
        let gap = reader.gap().await;
        assert_eq!((&gap["reason"], &gap["after"]), (&json!("invalid_cursor"), &Value::Null), "{cursor:?}");
        broker.http.publish("a", "next").await;
        assert_eq!(reader.one().await, "next", "{cursor:?}");
    }
}

/// Broken on purpose: with bytes that are no UTF-8 replaced, as the ready-made decoder does it, every one of
/// these was taken for the name U+FFFD.
async fn bytes_that_are_no_text_are_refused_in_a_query(store: Store) {
    let broker = Broker::start(store).await;
    for path in [
        "/events?channels=caf%E9",
        "/cursor?channel=%FF",
        "/channels?prefix=%C3",
        "/channels/a/events?after=%FF",
    ] {
        let problem = broker.http.get(path).await.problem(400);
        assert_eq!(problem["code"], "invalid_query", "{path}: {problem}");
    }
    let text = [("content-type", "text/plain")];
    broker.http.send(reqwest::Method::POST, "/channels/a/events?event=%FF", &text, "x").await.problem(400);
    let mut reader = Subscribe::to(&["caf\u{e9}"]).connect(broker.addr).await;
    broker.http.publish("caf\u{e9}", "text").await;
    assert_eq!(reader.one().await, "text");
    let cursor = "/events?channels=a&last_event_id=%FF";
    broker.http.send(reqwest::Method::HEAD, cursor, &[], "").await.expect(200);
}

/// Seen to fail without the length of the channel in the stored key, in each store.
async fn evil_keys_and_users_stay_apart(store: Store) {
    let mut rng = seeded();
    let broker = Broker::start(store).await;
    for (a, b) in [("a:b", "c"), ("a", "b:c"), ("4:a", "b"), ("a", ":b")] {
        let body = json!({ "data": 1, "idempotency_key": b });
        broker.http.publish_event(a, &body).await;
    }
    let mut keys: Vec<String> = (0..40).map(|_| evil(&mut rng)).filter(|key| !key.is_empty()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let body = json!({ "data": 1, "idempotency_key": key });
        let first = broker.http.post("/channels/k/events", &body).await;
        assert!([201, 400].contains(&first.status), "{key:?}: {first:?}");
        if first.status == 201 {
            let again = broker.http.post("/channels/k/events", &body).await.expect(200).receipt();
            assert_eq!(again.id, first.receipt().id, "{key:?}");
        }
    }
}

both_stores!(
    evil_data_arrives_as_data_and_nothing_else,
    evil_text_bodies_arrive_as_they_are,
    an_evil_type_is_refused_or_arrives_as_the_type,
    an_evil_channel_is_refused_or_works_as_a_name,
    an_evil_cursor_is_a_gap_and_no_line,
    bytes_that_are_no_text_are_refused_in_a_query,
    evil_keys_and_users_stay_apart,
);
