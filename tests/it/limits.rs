//! What one address, one user, and everybody together may take, and what still works when it is taken.

use reqwest::Method;
use serde_json::json;

use crate::contract_control::assert_refused_for_now;
use crate::support::tokens::{SECRET, admin_claims, claims, token};
use crate::support::{Broker, Store, Subscribe, until};

async fn limited(key: &str, value: &str) -> Broker {
    Broker::on(Store::Embedded).await.set(key, value).start().await
}

/// Seen to fail with a place that is not given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_has_as_many_streams_as_one_may_have() {
    let broker = limited("limits.connections_per_ip", "1").await;
    let mut first = Subscribe::to(&["a"]).connect(broker.addr).await;
    assert_refused_for_now(&broker, "rate_limited", 429).await;
    // Whoever is not trusted can claim what they like.
    let claiming = Subscribe::to(&["a"]).header("X-Forwarded-For", "192.0.2.1").open(broker.addr).await;
    assert!(claiming.header("content-length").is_some(), "a refusal is whole at once");
    broker.http.publish("a", "x").await;
    assert_eq!(first.one().await, "x");
    drop((first, claiming));
    until("the place is free again", async || {
        let mut next = Subscribe::to(&["a"]).open(broker.addr).await;
        next.next().await.filter(|event| event.kind == "connected")
    })
    .await;
}

/// Seen to fail when no proxy is trusted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_trusted_proxy_its_clients_are_counted() {
    let builder = Broker::on(Store::Embedded).await.set("server.trusted_proxies", "[\"127.0.0.0/8\"]");
    let broker = builder.set("limits.connections_per_ip", "1").start().await;
    let of = |address: &str| Subscribe::to(&["a"]).header("X-Forwarded-For", address);
    let _first = of("192.0.2.1").connect(broker.addr).await;
    let _other = of("192.0.2.2").connect(broker.addr).await;
    let _v6 = of("2001:db8::1").connect(broker.addr).await;
    for again in ["192.0.2.1", "198.51.100.7, 192.0.2.1", "2001:db8::2", "192.0.2.1, 127.0.0.9"] {
        let mut refused = of(again).open(broker.addr).await;
        assert_eq!(refused.next_control("closing").await.json()["reason"], "rate_limited", "{again}");
    }
    let forwarded = Subscribe::to(&["a"]).header("Forwarded", "for=\"[2001:db8:0:1::1]:4711\";proto=https");
    forwarded.connect(broker.addr).await;
}

/// Seen to fail without the bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_has_as_many_streams_as_one_may_have_on_a_node() {
    let builder = Broker::on(Store::Embedded).await.set("auth.jwt.secret", SECRET);
    let broker = builder.set("limits.connections_per_user", "1").start().await;
    let of = |user: &str| Subscribe::to(&["a"]).bearing(&token(&claims(user, &["a"], &[])));
    let _first = of("ann").connect(broker.addr).await;
    let _other = of("bob").connect(broker.addr).await;
    let mut second = of("ann").open(broker.addr).await;
    assert_eq!(
        second.next_control("closing").await.json(),
        json!({"reason": "rate_limited", "reconnect": true})
    );
}

/// Seen to fail without the rate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_streams_come_no_faster_than_the_rate() {
    let broker = limited("limits.connect_rate", "2/h").await;
    for _ in 0..2 {
        Subscribe::to(&["a"]).connect(broker.addr).await;
    }
    assert_refused_for_now(&broker, "rate_limited", 429).await;
    broker.http.publish("a", "others still work").await;
}

/// Seen to fail without the rate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_is_refused_slowed_down_or_told_that_it_never_fits() {
    let broker = limited("limits.publish_rate", "3/h").await;
    let array = |count: usize| json!(vec![json!({"channel": "a", "data": 1}); count]);
    assert_eq!(broker.http.post("/events", &array(4)).await.problem(413)["code"], "batch_too_large");
    broker.http.post("/events", &array(2)).await.expect(200);
    broker.http.publish("a", 1).await;
    let refused = broker.http.post("/channels/a/events", &json!({"data": 1})).await;
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=1_200).contains(&wait), "a third of an hour for one event: {wait}");
    assert_eq!(refused.problem(429)["code"], "rate_limited");
    assert_eq!(broker.http.history("a").await.len(), 3);

    let broker = limited("limits.publish_rate", "100/s").await;
    let lines: String = (0..250).map(|n| json!({"channel": "a", "data": n}).to_string() + "\n").collect();
    let answer = broker.http.publish_ndjson(lines).await.expect(200).json();
    assert_eq!(answer["published"], 250, "a stream waits instead");
}

/// Seen to fail without the bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_node_still_answers_health_checks_publishers_and_administrators() {
    let builder = Broker::on(Store::Embedded).await.set("auth.jwt.secret", SECRET);
    let broker =
        builder.set("limits.connections_max", "1").set("limits.connections_per_ip", "1").start().await;
    let admin = broker.http.bearing(&token(&admin_claims()));
    let mut only = Subscribe::to(&["a"]).bearing(&token(&admin_claims())).connect(broker.addr).await;
    let full = admin.send(Method::GET, "/events?channels=a", &[("accept", "*/*")], "").await;
    assert_eq!(full.problem(503)["code"], "overloaded");
    for path in ["/healthz", "/readyz"] {
        broker.http.get(path).await.expect(200);
    }
    for path in ["/channels", "/revocations", "/cursor?channels=a"] {
        admin.get(path).await.expect(200);
    }
    admin.publish("a", "x").await;
    assert_eq!(only.one().await, "x");
    admin.post("/revocations", &json!({"sub": "root"})).await.expect(201);
    assert_eq!(only.next_control("closing").await.json()["reason"], "revoked");
}
