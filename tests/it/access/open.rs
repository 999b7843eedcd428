//! A broker without a key: whom it serves, and what it says about it at its start.

use std::sync::Arc;

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
    let open = said(on().await).await;
    assert!(open.contains("Open to every program on this machine, and to none of another"), "{open}");
    let key = format!("[{{ name = \"k\", sha256 = \"{}\" }}]", sha256("k"));
    let guarded = said(guarded(Store::Embedded).await.set("auth.keys", &key)).await;
    let line = "Needs a token (HS256) or one of 1 API key(s); nothing is open without.";
    assert!(guarded.contains(line), "{guarded}");
    let partly = on().await.set("auth.keys", &key).set("auth.anonymous_subscribe", "[\"public.*\"]");
    let partly = said(partly).await;
    assert!(partly.contains("API key(s); without, only subscribing to public.*."), "{partly}");
}
