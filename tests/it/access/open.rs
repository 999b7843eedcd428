//! A broker without a key: whom it serves, and what it says about it at its start.

use std::sync::Arc;

use reqwest::Method;

use super::guarded;
use super::users::publish_to_user;
use crate::support::broker::Builder;
use crate::support::tokens::sha256;
use crate::support::{Broker, Redis, Store, Subscribe, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_broker_takes_a_subscribers_word_for_who_they_are() {
    let redis = Arc::new(Redis::start().await);
    let broker = Broker::on_redis(&redis).start().await;
    let mut reader = Subscribe::to(&[]).for_user("ignored").query("user", "ann").connect(broker.addr).await;
    assert_eq!(reader.connected.json()["user_id"], "ann");
    publish_to_user(&redis, "ann", "x").await;
    assert_eq!(reader.one().await, "x");
    assert_eq!(broker.http.get("/events/authenticated").await.problem(400)["code"], "invalid_query");
}

/// Seen to fail when `auth.open` takes the guard away: what is open to this machine must not be open to every page that a
/// browser on it shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_loopback_an_open_broker_serves_no_page_of_others_whether_that_is_said_or_not() {
    for open in ["false", "true"] {
        let broker = Broker::on(Store::Embedded).await.set("auth.open", open).start().await;
        let status = async |path: &str, header: (&str, &str)| {
            broker.http.send(Method::GET, path, &[header], "").await.status
        };
        assert_eq!(status("/cursor", ("host", "evil.example")).await, 403, "{open}");
        assert_eq!(status("/cursor", ("origin", "https://evil.example")).await, 403, "{open}");
        assert_eq!(status("/cursor", ("host", "localhost")).await, 200);
        assert_eq!(status("/cursor", ("origin", "http://localhost:3000")).await, 200);
        assert_eq!(status("/healthz", ("host", "evil.example")).await, 200);
    }
}

/// Seen to fail with each line changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_says_at_start_what_is_open_to_whom() {
    let said = async |builder: Builder| {
        let broker = builder.start().await;
        until("the broker greets", async || {
            let output = broker.output();
            output.contains("Look: http").then_some(output)
        })
        .await
    };
    let on = || Broker::on(Store::Embedded);
    let line = "Open to every program on this machine, and to no other machine's programs and pages";
    for builder in [on().await, on().await.set("auth.open", "true")] {
        let open = said(builder).await;
        assert!(open.contains(line), "{open}");
    }
    let world = said(on().await.set("auth.open", "true").reachable_from_elsewhere()).await;
    let line = |stream: &str| {
        let mut lines = world.lines().filter(|line| line.starts_with(stream));
        let line = lines.find(|line| line.contains("OPEN TO EVERYBODY WHO REACHES 0.0.0.0:"));
        line.unwrap_or_else(|| panic!("{world}")).to_owned()
    };
    assert!(line("stdout: ").contains("anybody can read, publish to and purge every channel"));
    assert!(line("stderr: ").contains("WARN"));
    let key = format!("[{{ name = \"k\", sha256 = \"{}\" }}]", sha256("k"));
    let guarded = said(guarded(Store::Embedded).await.set("auth.keys", &key)).await;
    let line = "Needs a token (HS256) or one of 1 API key(s); nothing is open without.";
    assert!(guarded.contains(line), "{guarded}");
    let partly = on().await.set("auth.keys", &key).set("auth.anonymous_subscribe", "[\"public.*\"]");
    let partly = said(partly).await;
    assert!(partly.contains("API key(s); without, only subscribing to public.*."), "{partly}");
}
