//! Tokens that are ended before their time: on every node, at once, and for good.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::tokens::{SECRET, admin_claims, claims, now, token};
use crate::support::{Broker, Http, Mode, Peer, Proxy, Redis, Setup, Store, Subscribe, until};

fn admin(broker: &Broker) -> Http {
    broker.http.bearing(&token(&admin_claims()))
}

/// A token with an id of its own.
fn token_of(sub: &str, jti: &str) -> String {
    let mut claims = claims(sub, &["a"], &["a"]);
    claims["jti"] = json!(jti);
    token(&claims)
}

/// One beside its Redis, and one whose way there can be disturbed.
struct TwoNodes {
    near: Broker,
    far: Broker,
    proxy: Proxy,
    redis: Arc<Redis>,
}

impl TwoNodes {
    async fn start() -> Self {
        let redis = Arc::new(Redis::start().await);
        let proxy = Proxy::to(redis.port());
        let node = || Broker::on_redis(&redis).set("auth.jwt.secret", SECRET);
        let far = node().through(&proxy.redis_url());
        let (near, far) = tokio::join!(node().start(), far.start());
        Self { near, far, proxy, redis }
    }
}

async fn status_of(broker: &Broker, token: &str) -> u16 {
    broker.http.bearing(token).get("/cursor?channels=a").await.status
}

/// Seen to fail with a token that is not looked up among the revocations, and with a revocation that ends no streams.
async fn a_revoked_token_ends_its_streams_and_is_refused_after(setup: Setup) {
    let mut broker = Broker::on(setup).await.set("auth.jwt.secret", SECRET).start().await;
    let (first, second) = (token_of("ann", "1"), token_of("ann", "2"));
    let bob = token_of("bob", "3");
    let open = async |token: &str| Subscribe::to(&["a"]).bearing(token).connect(broker.addr).await;
    let (mut by_first, mut by_second, mut bobs) = (open(&first).await, open(&second).await, open(&bob).await);
    let revoked = admin(&broker).post("/revocations", &json!({"jti": "1"})).await.expect(201).json();
    assert_eq!(revoked["jti"], "1");
    let closing = by_first.next_control("closing").await;
    assert_eq!(closing.json(), json!({"reason": "revoked", "reconnect": false}));
    by_first.end().await;
    let refused = Subscribe::to(&["a"]).bearing(&first).open(broker.addr).await;
    assert_eq!(refused.status, 401);
    assert_eq!(broker.http.bearing(&first).get("/channels").await.problem(401)["code"], "token_revoked");
    assert_eq!(status_of(&broker, &second).await, 200, "the other token of the same user still counts");

    admin(&broker).post("/revocations", &json!({"sub": "ann"})).await.expect(201);
    assert_eq!(by_second.next_control("closing").await.json()["reason"], "revoked");
    admin(&broker).publish("a", "still").await;
    assert_eq!(bobs.one().await, "still", "nobody else is concerned");

    broker.restart().await;
    let kept = admin(&broker).get("/revocations").await.expect(200).json();
    let targets: Vec<&Value> = kept["revocations"].as_array().unwrap().iter().collect();
    assert_eq!((targets.len(), &targets[0]["jti"], &targets[1]["sub"]), (2, &json!("1"), &json!("ann")));
    for token in [&first, &second, &token_of("ann", "made later")] {
        assert_eq!(status_of(&broker, token).await, 401, "a revocation outlives the process");
    }
    assert_eq!(status_of(&broker, &bob).await, 200);
}

/// Seen to fail when an order without an end shortens an earlier one, which it did.
async fn a_revocation_ends_by_itself_and_can_be_lifted(setup: Setup) {
    let broker = Broker::on(setup).await.set("auth.jwt.secret", SECRET).start().await;
    let (ann, bob) = (token_of("ann", "1"), token_of("bob", "2"));
    admin(&broker).post("/revocations", &json!({"sub": "ann", "until": now() + 2})).await.expect(201);
    admin(&broker)
        .post("/revocations", &json!({"sub": "bob", "until": "2999-01-01T00:00:00Z"}))
        .await
        .expect(201);
    assert_eq!((status_of(&broker, &ann).await, status_of(&broker, &bob).await), (401, 401));
    until("the end has passed", async || (status_of(&broker, &ann).await == 200).then_some(())).await;
    assert_eq!(status_of(&broker, &bob).await, 401);
    admin(&broker).post("/revocations", &json!({"sub": "bob", "until": 0})).await.expect(200);
    assert_eq!(status_of(&broker, &bob).await, 200);
    let left = admin(&broker).get("/revocations").await.json();
    assert_eq!(left, json!({"revocations": []}));
    // Whoever does not say until when takes nothing back; whoever does, does.
    let until_of = async |order: Value| {
        let answer = admin(&broker).post("/revocations", &order).await.expect(201).json();
        let listed = admin(&broker).get("/revocations").await.json()["revocations"][0].clone();
        assert_eq!(answer, listed);
        answer["until"].as_str().unwrap().to_owned()
    };
    let far = until_of(json!({"sub": "ann", "until": "2999-01-01T00:00:00Z"})).await;
    assert!(far.starts_with("2999-01-01"), "{far}");
    assert_eq!(until_of(json!({"sub": "ann"})).await, far);
    let near = until_of(json!({"sub": "ann", "until": now() + 600})).await;
    assert!(near < far, "{near}");
    let usual = until_of(json!({"sub": "ann"})).await;
    assert!(near < usual && usual < far, "{usual}");
    for wrong in [json!({}), json!({"sub": "a", "jti": "b"}), json!({"sub": "a", "until": "soon"}), json!([])]
    {
        assert_eq!(admin(&broker).post("/revocations", &wrong).await.problem(400)["code"], "invalid_body");
    }
}

both_paths!(
    a_revoked_token_ends_its_streams_and_is_refused_after,
    a_revocation_ends_by_itself_and_can_be_lifted
);

/// Seen to fail without the listener.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_obeys_a_revocation() {
    let redis = Arc::new(Redis::start().await);
    let node = || Broker::on_redis(&redis).set("auth.jwt.secret", SECRET).start();
    let (one, two) = tokio::join!(node(), node());
    let ann = token_of("ann", "1");
    let other = token_of("ann", "2");
    let mut reader = Subscribe::to(&["a"]).bearing(&ann).connect(two.addr).await;
    let mut by_other = Subscribe::to(&["a"]).bearing(&other).connect(two.addr).await;
    admin(&one).post("/revocations", &json!({"jti": "2"})).await.expect(201);
    assert_eq!(by_other.next_control("closing").await.json()["reason"], "revoked");
    assert_eq!((status_of(&two, &other).await, status_of(&two, &ann).await), (401, 200));
    admin(&one).post("/revocations", &json!({"jti": "2", "until": 0})).await.expect(200);
    admin(&one).post("/revocations", &json!({"sub": "ann"})).await.expect(201);
    assert_eq!(reader.next_control("closing").await.json()["reason"], "revoked");
    assert_eq!(status_of(&two, &ann).await, 401);
    let listed = admin(&two).get("/revocations").await.json();
    assert_eq!(listed["revocations"][0]["sub"], "ann");
    admin(&two).post("/revocations", &json!({"sub": "ann", "until": 0})).await.expect(200);
    until("it is lifted on the other node too", async || (status_of(&one, &ann).await == 200).then_some(()))
        .await;
    let third = node().await;
    assert_eq!(status_of(&third, &ann).await, 200);
    // Operators can look.
    admin(&one).post("/revocations", &json!({"jti": "j"})).await.expect(201);
    let held = redis.command(&["ZRANGE", "hw:revocations", "0", "-1"]).await;
    assert_eq!(held.texts(), ["lifted:jti:2", "lifted:sub:ann", "jti:j"]);
    admin(&one).post("/revocations", &json!({"jti": "2"})).await.expect(201);
    let held = redis.command(&["ZRANGE", "hw:revocations", "0", "-1"]).await;
    assert_eq!(held.texts(), ["lifted:sub:ann", "jti:j", "jti:2"]);
}

/// Seen to fail when only news are followed after an interruption.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_cut_off_learns_what_it_missed() {
    let TwoNodes { redis, proxy, near, far } = TwoNodes::start().await;
    let (ann, bob) = (token_of("ann", "1"), token_of("bob", "2"));
    admin(&near).post("/revocations", &json!({"sub": "bob"})).await.expect(201);
    until("the far node knows", async || (status_of(&far, &bob).await == 401).then_some(())).await;
    let mut reader = Subscribe::to(&["a"]).bearing(&ann).connect(far.addr).await;
    proxy.set(Mode::Refuse);
    proxy.cut();
    admin(&near).post("/revocations", &json!({"sub": "ann"})).await.expect(201);
    admin(&near).post("/revocations", &json!({"sub": "bob", "until": 0})).await.expect(200);
    // News that nobody hears can get lost: what counts is what is in force.
    for missed in redis.command(&["XREVRANGE", "hw:ctl", "+", "-", "COUNT", "2"]).await.items() {
        redis.command(&["XDEL", "hw:ctl", missed.items()[0].text()]).await;
    }
    redis.command(&["XADD", "hw:ctl", "*", "later", "versions"]).await;
    proxy.set(Mode::Pass);
    assert_eq!(reader.next_control("closing").await.json()["reason"], "revoked");
    until("what was lifted counts again", async || (status_of(&far, &bob).await == 200).then_some(())).await;
}

/// The stream keeps the newest 10,000 news. Seen to fail when a node that no longer finds there what it heard last takes
/// everything for lost that it alone knows: it locked out again whom an administrator had let in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_fell_behind_all_news_brings_nothing_back_that_was_lifted() {
    let TwoNodes { redis, proxy, near, far } = TwoNodes::start().await;
    let (ann, bob) = (token_of("ann", "1"), token_of("bob", "2"));
    for user in ["ann", "bob"] {
        admin(&near).post("/revocations", &json!({"sub": user})).await.expect(201);
    }
    let knows = async || (status_of(&far, &bob).await == 401).then_some(());
    until("the far node knows", knows).await;
    proxy.set(Mode::Refuse);
    proxy.cut();
    admin(&near).post("/revocations", &json!({"sub": "bob", "until": 0})).await.expect(200);
    redis.command(&["XTRIM", "hw:ctl", "MAXLEN", "0"]).await;
    // This one was not lifted: the server lost it.
    redis.command(&["ZREM", "hw:revocations", "sub:ann"]).await;
    proxy.set(Mode::Pass);
    until("what was lifted counts again", async || (status_of(&far, &bob).await == 200).then_some(())).await;
    until_held(&redis).await;
    assert_eq!((status_of(&near, &bob).await, status_of(&far, &ann).await), (200, 401));
}

/// Seen to fail when a doorbell that could not be rung is forgotten: the other nodes never heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_got_halfway_is_no_success_and_is_completed() {
    let redis = Arc::new(Redis::start().await);
    let node = || Broker::on_redis(&redis).set("auth.jwt.secret", SECRET).start();
    let (one, two) = tokio::join!(node(), node());
    let ann = token_of("ann", "1");
    redis.command(&["ACL", "SETUSER", "default", "-xadd"]).await;
    let problem = admin(&one).post("/revocations", &json!({"sub": "ann"})).await.problem(503);
    assert!(problem["detail"].as_str().unwrap().contains("outcome is unknown"), "{problem}");
    let held = redis.command(&["ZRANGE", "hw:revocations", "0", "-1"]).await;
    assert_eq!((held.texts(), status_of(&two, &ann).await), (vec!["sub:ann"], 200));
    redis.command(&["ACL", "SETUSER", "default", "+xadd"]).await;
    until("every node obeys", async || {
        (status_of(&one, &ann).await == 401 && status_of(&two, &ann).await == 401).then_some(())
    })
    .await;
}

/// Whoever orders may leave in the middle, or their proxy give up. Seen to fail when only an order whose answer was waited
/// for is completed: the store had it, and no other node was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_whose_sender_left_is_completed() {
    let TwoNodes { redis, proxy, near, mut far } = TwoNodes::start().await;
    let ann = token_of("ann", "1");
    proxy.set(Mode::LoseAnswers);
    let body = r#"{"sub":"ann"}"#;
    let admin = token(&admin_claims());
    let order = format!(
        "POST /revocations HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {admin}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let sender = Peer::sending(far.addr, order).await;
    until("the store has it", async || {
        let held = redis.command(&["ZRANGE", "hw:revocations", "0", "-1"]).await;
        (held.texts() == ["sub:ann"]).then_some(())
    })
    .await;
    assert_eq!(status_of(&near, &ann).await, 200, "nobody was told");
    drop(sender);
    far.forget_connections();
    until("its sender is forgotten", async || {
        (far.metrics().get("headwater_connections") <= 1).then_some(())
    })
    .await;
    proxy.set(Mode::Pass);
    proxy.cut();
    until("every node obeys", async || {
        (status_of(&near, &ann).await == 401 && status_of(&far, &ann).await == 401).then_some(())
    })
    .await;
}

/// An order that the store does not take, `refuse` and `accept` in turns: no success, and nothing in force.
async fn refused_and_accepted(broker: &Broker, refuse: impl AsyncFn(), accept: impl AsyncFn()) {
    let ann = token_of("ann", "1");
    refuse().await;
    let answer = admin(broker).post("/revocations", &json!({"sub": "ann"})).await;
    assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    assert_eq!(answer.problem(503)["code"], "unavailable");
    assert_eq!(admin(broker).get("/revocations").await.json(), json!({"revocations": []}));
    assert_eq!(status_of(broker, &ann).await, 200);
    accept().await;
    until("it is taken", async || {
        let answer = admin(broker).post("/revocations", &json!({"sub": "ann"})).await;
        (answer.status == 201).then_some(())
    })
    .await;
    assert_eq!(status_of(broker, &ann).await, 401);
}

/// Seen to fail with an error of the store that is passed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_full_or_read_only_takes_no_revocation_and_nobody_says_it_did() {
    let turns: [[&[&str]; 2]; 2] = [
        [&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]],
        [&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]],
    ];
    for [refuse, accept] in turns {
        let broker = Broker::on(Store::Redis).await.set("auth.jwt.secret", SECRET).start().await;
        let command = async |words: &[&str]| drop(broker.redis().command(words).await);
        refused_and_accepted(&broker, async || command(refuse).await, async || command(accept).await).await;
    }
}

/// Seen to fail with an error of the disk that is passed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_takes_no_revocation_and_nobody_says_it_did() {
    let broker = Broker::on(Store::Embedded).await.set("auth.jwt.secret", SECRET).start().await;
    // What is written there meets a full disk.
    let new = broker.data_dir().join("revocations.new");
    let refuse = async || std::os::unix::fs::symlink("/dev/full", &new).unwrap();
    refused_and_accepted(&broker, refuse, async || std::fs::remove_file(&new).unwrap()).await;
}

/// A server that comes back with less, one that has news by then that the node has not heard, and one that is
/// emptied under its connections. Seen to fail when what the store says replaces what a node knows, whatever the store has
/// lost; when only the newest news tell what was lost; and when a node that hears nothing does not look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_that_redis_loses_are_written_again_by_whoever_knows_them() {
    let redis = Arc::new(Redis::start().await);
    let broker = Broker::on_redis(&redis).set("auth.jwt.secret", SECRET).start().await;
    let ann = token_of("ann", "1");
    admin(&broker).post("/revocations", &json!({"sub": "ann"})).await.expect(201);
    redis.kill9();
    redis.restart().await;
    until_held(&redis).await;
    broker.pause();
    redis.kill9();
    redis.restart().await;
    redis.command(&["XADD", "hw:ctl", "*", "later", "versions"]).await;
    broker.resume();
    until_held(&redis).await;
    redis.command(&["DEL", "hw:ctl", "hw:revocations"]).await;
    until_held(&redis).await;
    assert_eq!(status_of(&broker, &ann).await, 401);
    let other = Broker::on_redis(&redis).set("auth.jwt.secret", SECRET).start().await;
    assert_eq!(status_of(&other, &ann).await, 401);
}

async fn until_held(redis: &Redis) {
    until("the revocation is there again", async || {
        let held = redis.command(&["ZRANGE", "hw:revocations", "0", "-1"]).await;
        held.texts().contains(&"sub:ann").then_some(())
    })
    .await;
}

/// Seen to fail when only the beginning of a request is judged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_outlasts_the_right_to_publish_it_is_not_published() {
    let broker = Broker::on(Store::Embedded).await.set("auth.jwt.secret", SECRET).start().await;
    let token = token_of("ann", "1");
    let mut held_back = Vec::new();
    for (path, body) in
        [("/channels/a/events", r#"{"data":1}"#), ("/events", r#"[{"channel":"a","data":1}]"#)]
    {
        let (begin, last) = body.split_at(body.len() - 1);
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
             Expect: 100-continue\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut peer = Peer::sending(broker.addr, head).await;
        // Asked for the body: the request was let in.
        peer.read_until("100 Continue").await;
        assert!(peer.send(begin).await);
        held_back.push((peer, last));
    }
    admin(&broker).post("/revocations", &json!({"jti": "1"})).await.expect(201);
    for (mut peer, last) in held_back {
        assert!(peer.send(last).await);
        let answer = String::from_utf8(peer.read_to_end().await).unwrap();
        assert!(answer.contains("HTTP/1.1 401 ") && answer.contains("token_revoked"), "{answer}");
    }
    assert!(admin(&broker).history("a").await.is_empty());
}
