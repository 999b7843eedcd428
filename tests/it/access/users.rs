//! Users: what is addressed to them reaches them and nobody else, whatever their ids look like.

use std::sync::Arc;

use serde_json::json;

use super::admin;
use crate::support::tokens::{SECRET, claims, now, token};
use crate::support::{Broker, Redis, Subscribe};

/// Publishes to a user's own channel, as a broker does. The name is `$user:` and the user's id, encoded.
pub(super) async fn publish_to_user(redis: &Redis, encoded: &str, data: &str) {
    let channel = format!("$user:{encoded}");
    let words = [
        "FCALL",
        "headwater_publish_v1",
        "1",
        "hw:{0}:feed",
        "0-0",
        "1",
        "1000",
        "86400000",
        "1",
        &channel,
        "1",
        "message",
        data,
        "",
        "",
        "1",
        "",
        "",
    ];
    redis.command(&words).await;
}

/// Seen to fail when the user's channel is taken from a parameter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_own_events_reach_the_user_alone_live_and_replayed() {
    let redis = Arc::new(Redis::start().await);
    let broker = Broker::on_redis(&redis).set("auth.jwt.secret", SECRET).start().await;
    let (ann, bob) = (token(&claims("ann", &["a"], &[])), token(&claims("bob", &["a"], &[])));
    let mut anns = Subscribe::to(&["a"]).for_user(&ann).connect(broker.addr).await;
    let mut bobs = Subscribe::to(&["a"]).for_user(&bob).query("user", "ann").connect(broker.addr).await;
    let mut public = Subscribe::to(&["a"]).bearing(&ann).connect(broker.addr).await;
    assert_eq!(anns.connected.json()["user_id"], "ann");
    assert_eq!(anns.connected.json()["channels"], json!(["a"]));
    publish_to_user(&redis, "ann", "for ann").await;
    admin(&broker).publish("a", "for all").await;
    assert_eq!(anns.data(2).await, ["for ann", "for all"]);
    let listed = admin(&broker).get("/channels").await.expect(200).json();
    assert_eq!(listed["channels"].as_array().unwrap().len(), 1, "users are not listed: {listed}");
    assert_eq!(bobs.one().await, "for all");
    assert_eq!(public.one().await, "for all", "GET /events delivers no user's events");

    let begin = anns.connected.last_event_id.clone();
    let mut again =
        Subscribe::to(&[]).for_user(&ann).after(&begin).query("envelope", "1").connect(broker.addr).await;
    let envelope = again.events(1).await.remove(0).json();
    assert_eq!((&envelope["channel"], &envelope["data"]), (&json!("$user"), &json!("for ann")));
    let mut other = Subscribe::to(&["a"]).for_user(&bob).after(&begin).connect(broker.addr).await;
    assert_eq!(other.one().await, "for all", "a cursor of somebody else's brings nothing of theirs");

    let nobody = token(&json!({"exp": now() + 60, "headwater": {"subscribe": ["*"]}}));
    let refused = broker.http.bearing(&nobody).get("/events/authenticated").await.problem(403);
    assert!(refused["detail"].as_str().unwrap().contains("sub"), "{refused}");
}

/// Seen to fail when the id stands in the name of the user's channel as it is: whoever had a space, a comma or a brace in
/// their id, or a long one, got 400 for their own events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_a_token_is_for_gets_their_own_events() {
    let redis = Arc::new(Redis::start().await);
    let broker = Broker::on_redis(&redis).set("auth.jwt.secret", SECRET).start().await;
    let (long, spaces) = ("x".repeat(255), " ".repeat(255));
    for (user, encoded) in [
        ("Ann Müller", "Ann%20Müller"),
        ("cn=ann,dc={x}", "cn=ann%2Cdc=%7Bx%7D"),
        ("a%20b", "a%2520b"),
        (&long, &long),
        (&spaces, &"%20".repeat(255)),
    ] {
        let own = token(&claims(user, &[], &[]));
        let mut reader = Subscribe::to(&[]).for_user(&own).connect(broker.addr).await;
        assert_eq!(reader.connected.json()["user_id"], user);
        publish_to_user(&redis, encoded, "live").await;
        assert_eq!(reader.one().await, "live");
        publish_to_user(&redis, encoded, "while away").await;
        let cursor = reader.connected.last_event_id.clone();
        let mut again = Subscribe::to(&[]).for_user(&own).after(&cursor).connect(broker.addr).await;
        assert_eq!(again.data(2).await, ["live", "while away"]);
    }
    for user in [&"x".repeat(256), "a\nb", ""] {
        let refused = broker.http.bearing(&token(&claims(user, &[], &[]))).get("/cursor").await.problem(401);
        assert!(refused["detail"].as_str().unwrap().contains("255 bytes"), "{refused}");
    }
}
