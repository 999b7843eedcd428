//! What a broker says of itself: every metric is documented, and tells what happened.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::tokens::{SECRET, admin_claims, hs256, now, token};
use crate::support::{Broker, Metrics, Proxy, Redis, Store, Subscribe, until};

/// Names of metrics with their types and labels.
type Table = BTreeMap<String, (String, BTreeSet<String>)>;

/// The rows of `docs/metrics.md` that concern this store.
fn documented(store: Store) -> Table {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let text = std::fs::read_to_string(path).expect("docs/metrics.md is there");
    let other = match store {
        Store::Embedded => "On Redis",
        Store::Redis => "With the embedded log",
    };
    let mut table = Table::new();
    for section in text.split("\n## ").filter(|section| !section.starts_with(other)) {
        for row in section.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            // Another table has other columns.
            let [_, name, kind @ ("counter" | "gauge" | "histogram"), labels, meaning, _] = cells[..] else {
                continue;
            };
            assert!(!meaning.is_empty(), "{row}");
            let word = |word: &str| word.trim().trim_matches('`').to_owned();
            let labels = labels.split(',').map(word).filter(|label| !label.is_empty()).collect();
            assert!(
                table.insert(word(name), (kind.to_owned(), labels)).is_none(),
                "{row} stands there twice"
            );
        }
    }
    table
}

/// The same of what a broker answers.
fn answered(metrics: &Metrics) -> Table {
    let mut table: Table =
        metrics.types.iter().map(|(name, kind)| (name.clone(), (kind.clone(), BTreeSet::new()))).collect();
    for series in metrics.series.keys() {
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let own = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let name = own.filter(|own| table.contains_key(*own)).unwrap_or(name);
        let (_, known) = table.get_mut(name).unwrap_or_else(|| panic!("{series} has no type"));
        let labels = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
        known.extend(labels.map(|(label, _)| label.to_owned()).filter(|label| label != "le"));
    }
    table
}

/// Seen to fail with a row less and with a metric less, in either direction, and with a label that is not named.
async fn every_metric_stands_in_the_documentation_and_no_other(store: Store) {
    let broker = Broker::start(store).await;
    let (documented, answered) = (documented(store), answered(&broker.metrics()));
    for (name, row) in &answered {
        assert_eq!(
            Some(row),
            documented.get(name),
            "{name}: what is answered, and what docs/metrics.md says"
        );
    }
    let unknown: Vec<_> = documented.keys().filter(|name| !answered.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "docs/metrics.md lists what is not answered: {unknown:?}");
}

/// Seen to fail with each of these counters not counted.
async fn metrics_tell_what_happened(store: Store) {
    let broker = Broker::on(store).await.set("limits.connections_max", "2").start().await;
    let mut reader = Subscribe::to(&["a", "b"]).query("filters", r#"{"x":1}"#).connect(broker.addr).await;
    let first = broker.http.publish("a", "first").await.id;
    broker.http.publish("b", "second").await;
    assert_eq!(reader.data(2).await, ["first", "second"]);

    let now = broker.metrics();
    for (name, expected) in [
        ("headwater_event_streams", 1),
        ("headwater_subscriptions", 2),
        ("headwater_topics", 2),
        ("headwater_filters", 1),
        ("headwater_events_delivered_total", 2),
        ("headwater_refs_released_total", 2),
        ("headwater_release_seconds_count", 2),
        ("headwater_events_published_total{outcome=\"published\"}", 2),
        ("headwater_append_seconds_count", 2),
        ("headwater_gaps_total", 0),
        ("headwater_replay_reads_total", 0),
    ] {
        assert_eq!(now.get(name), expected, "{name}");
    }
    assert!(now.get("headwater_ring_bytes") > 0);
    assert!(now.get("headwater_stream_bytes_total") >= reader.raw.len() as u64);
    assert!(now.get("headwater_connections") >= 2, "the stream and the one that asks");
    let watermark = &now.series["headwater_watermark_timestamp_seconds{partition=\"0\"}"];
    assert!(watermark.parse::<f64>().unwrap() > 1.7e9, "{watermark}");

    // One that resumes inside the ring reads nothing; one from the beginning reads, and is told of no gap.
    let mut resumed = Subscribe::to(&["a", "b"]).after(&first).connect(broker.addr).await;
    assert_eq!(resumed.one().await, "second");
    let refused = Subscribe::to(&["a"]).open(broker.addr).await;
    assert_eq!(refused.status, 200);
    drop(resumed);
    until("there is room again", async || {
        (broker.metrics().get("headwater_event_streams") < 2).then_some(())
    })
    .await;
    let mut lost = Subscribe::to(&["a"]).after("nonsense").connect(broker.addr).await;
    assert_eq!(lost.gap().await["reason"], "invalid_cursor");
    drop(lost);
    broker.http.delete("/channels/a").await.expect(204);
    assert_eq!(reader.gap().await["reason"], "reset");
    broker.http.get("/channels/a%20b").await.problem(400);
    let item = json!({ "data": 1, "idempotency_key": "k" });
    let path = "/channels/c/events";
    broker.http.post(path, &item).await.expect(201);
    broker.http.post(path, &item).await.expect(200);

    let now = broker.metrics();
    for (name, expected) in [
        ("headwater_gaps_total{reason=\"invalid_cursor\"}", 1),
        ("headwater_gaps_total{reason=\"reset\"}", 1),
        ("headwater_refusals_total{code=\"overloaded\"}", 1),
        ("headwater_refusals_total{code=\"invalid_channel\"}", 1),
        ("headwater_events_published_total{outcome=\"duplicate\"}", 1),
        ("headwater_event_streams", 1),
    ] {
        assert_eq!(now.get(name), expected, "{name}");
    }
}

/// Kept pages go after a while, also when nothing happens. Seen to fail with a tailer that does not let them go.
async fn pages_that_nobody_needs_are_let_go(store: Store) {
    let broker = Broker::start(store).await;
    broker.http.publish_all("a", &vec!["x".repeat(10_000); 20]).await;
    let mut readers = Vec::new();
    for _ in 0..3 {
        let mut reader = Subscribe::to(&["a"]).after("earliest").connect(broker.addr).await;
        assert_eq!(reader.data(20).await.len(), 20);
        readers.push(reader);
    }
    let now = broker.metrics();
    assert!(now.get("headwater_pages_read_total") >= 1);
    assert!(now.get("headwater_pages_found_total") >= 1, "what one has read, others find");
    assert!(now.get("headwater_replay_reads_total") >= 1);
    assert!(now.get("headwater_kept_page_bytes") > 200_000);
    until("pages are let go", async || {
        (broker.metrics().get("headwater_kept_page_bytes") == 0).then_some(())
    })
    .await;
}

both_stores!(
    every_metric_stands_in_the_documentation_and_no_other,
    metrics_tell_what_happened,
    pages_that_nobody_needs_are_let_go,
);

/// Seen to fail with each of these counters not counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_credentials_revocations_and_limits_show() {
    let builder = Broker::on(Store::Embedded).await.set("auth.jwt.secret", SECRET);
    let builder = builder.set("auth.jwt.audience", "a").set("auth.jwt.issuer", "i");
    let broker =
        builder.set("limits.connections_per_ip", "1").set("limits.publish_rate", "1/h").start().await;
    let claims = |changes: Value| {
        let mut claims = admin_claims();
        for more in [json!({"aud": "a", "iss": "i", "jti": "t"}), changes] {
            claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        }
        claims
    };
    let good = broker.http.bearing(&token(&claims(json!({}))));
    let header = |alg: &str| json!({"alg": alg});
    for (reason, presented) in [
        ("unknown", "no-such-key".to_owned()),
        ("malformed", "a.b.c".to_owned()),
        ("algorithm", hs256(SECRET.as_bytes(), &header("HS512"), &claims(json!({})))),
        ("signature", hs256(b"another", &header("HS256"), &claims(json!({})))),
        ("claims", token(&claims(json!({"exp": null})))),
        ("not_yet_valid", token(&claims(json!({"nbf": now() + 600})))),
        ("issuer", token(&claims(json!({"iss": "j"})))),
        ("audience", token(&claims(json!({"aud": "b"})))),
        ("expired", token(&claims(json!({"exp": now() - 1})))),
    ] {
        broker.http.bearing(&presented).get("/cursor").await.expect(401);
        let series = format!("headwater_credentials_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(broker.metrics().get(&series), 1, "{series}");
    }
    assert_eq!(broker.metrics().get("headwater_credentials_refused_total"), 9);

    let mut reader = Subscribe::to(&["a"]).bearing(&token(&claims(json!({})))).connect(broker.addr).await;
    good.get("/events?channels=a").await.expect(429);
    good.publish("a", 1).await;
    assert_eq!(reader.one().await, "1");
    good.post("/channels/a/events", &json!({"data": 2})).await.expect(429);
    good.post("/revocations", &json!({"jti": "t"})).await.expect(201);
    assert_eq!(reader.next_control("closing").await.json()["reason"], "revoked");
    good.get("/cursor").await.expect(401);
    let after = broker.metrics();
    for (series, expected) in [
        ("headwater_credentials_refused_total{reason=\"revoked\"}", 1),
        ("headwater_limited_total{limit=\"connections_per_ip\"}", 1),
        ("headwater_limited_total{limit=\"publish_rate\"}", 1),
        ("headwater_limited_total", 2),
        ("headwater_rates_remembered", 1),
        ("headwater_revocations", 1),
        ("headwater_closings_total{reason=\"revoked\"}", 1),
    ] {
        assert_eq!(after.get(series), expected, "{series}");
    }
}

/// Seen to fail with the number of connections at the start of each purpose.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_redis_are_watched() {
    let redis = std::sync::Arc::new(Redis::start().await);
    let proxy = Proxy::to(redis.port());
    let broker = Broker::on_redis(&redis).through(&proxy.redis_url()).start().await;
    let start = broker.metrics();
    assert_eq!(
        start.get("headwater_redis_connections"),
        8,
        "append, news, one partition, a pool of 4, control"
    );
    assert_eq!(start.get("headwater_redis_reconnects_total"), 0, "the first connection is none made anew");
    proxy.cut();
    until("every connection was made anew", async || {
        let now = broker.metrics();
        let (up, anew) =
            (now.get("headwater_redis_connections"), now.get("headwater_redis_reconnects_total"));
        (up == 8 && anew == 8).then_some(())
    })
    .await;
    assert!(broker.metrics().get("headwater_tailer_failures_total") >= 1);
    broker.http.publish_surely("a", "k", "x").await;
}
