//! Keys: where they come from, and how they change while a broker runs.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::guarded;
use crate::support::broker::command;
use crate::support::tokens::{RsaIssuer, SECRET, admin_claims, hs256, sha256, token};
use crate::support::{Broker, Store, Subscribe, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_comes_with_a_key_of_which_only_the_hash_is_stored() {
    let keys = format!(
        "[{{ name = \"orders\", sha256 = \"{}\", publish = [\"orders.*\"] }}, {{ name = \"ops\", sha256 = \"{}\", admin = true }}]",
        sha256("the orders key"),
        sha256("the ops key"),
    );
    let broker = Broker::on(Store::Embedded).await.set("auth.keys", &keys).start().await;
    let orders = broker.http.bearing("the orders key");
    orders.publish("orders.eu", 1).await;
    assert_eq!(orders.get("/channels/orders.eu/events").await.problem(403)["code"], "forbidden");
    let ops = broker.http.bearing("the ops key");
    assert_eq!(ops.history("orders.eu").await.len(), 1);
    ops.delete("/channels/orders.eu").await.expect(204);
    for wrong in [sha256("the ops key"), "the ops kez".to_owned(), token(&admin_claims())] {
        let refused = broker.http.bearing(&wrong).get("/channels").await.problem(401);
        assert_eq!(refused["code"], "token_invalid");
    }
}

/// An issuer's key set behind a URL.
struct KeyServer {
    url: String,
    /// `None` is an issuer in trouble.
    keys: Arc<Mutex<Option<Vec<Value>>>>,
    asked: Arc<Mutex<usize>>,
    serving: JoinSet<()>,
}

impl KeyServer {
    async fn start(keys: Option<Vec<Value>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let (keys, asked) = (Arc::new(Mutex::new(keys)), Arc::new(Mutex::new(0)));
        let (served, counted) = (Arc::clone(&keys), Arc::clone(&asked));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                *counted.lock() += 1;
                let _ = socket.read(&mut [0; 4096]).await;
                let (status, body) = match &*served.lock() {
                    Some(keys) => ("200 OK", json!({"keys": keys}).to_string()),
                    None => ("500 Internal Server Error", String::new()),
                };
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        Self { url, keys, asked, serving }
    }
}

/// Seen to fail when only the first fetch counts, when every unknown key is asked for, and when an unknown key is refused
/// for good though the issuer has not been asked since: an `EventSource` never came back from that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuers_keys_are_fetched_when_a_new_one_appears_and_outlive_an_outage() {
    let (old, new) = (RsaIssuer::new(), RsaIssuer::new());
    let mut server = KeyServer::start(Some(vec![old.jwk("old")])).await;
    let began = Instant::now();
    let broker = Broker::on(Store::Embedded).await.set("auth.jwt.jwks_url", &server.url).start().await;
    let status = async |token: String| broker.http.bearing(&token).get("/cursor").await.status;
    assert_eq!(status(old.token_of("old", &admin_claims())).await, 200);
    assert_eq!(status(new.token_of("old", &admin_claims())).await, 401, "the signature is another's");

    // Until the issuer may be asked again nobody can say that a key is none of its: a browser must come back.
    until("the issuer was asked a moment ago", async || {
        let answer = broker.http.bearing(&new.token_of("newer", &admin_claims())).get("/cursor").await;
        assert_eq!(answer.status, 401);
        answer.header("retry-after").parse::<u64>().ok()
    })
    .await;
    let unknown = new.token_of("newer still", &admin_claims());
    let mut refused = Subscribe::to(&["a"]).bearing(&unknown).open(broker.addr).await;
    assert_eq!(
        refused.next_control("closing").await.json(),
        json!({"reason": "unavailable", "reconnect": true})
    );

    // However many ask for an unknown key, the issuer is not asked more often than every 10 s.
    for n in 0..50 {
        assert_eq!(status(new.token_of(&format!("unknown {n}"), &admin_claims())).await, 401);
    }
    let (asked, at_most) = (*server.asked.lock(), 2 + began.elapsed().as_secs() as usize / 10);
    assert!(asked <= at_most, "asked {asked} times");
    server.keys.lock().as_mut().unwrap().push(new.jwk("new"));
    until("the new key is known", async || {
        (status(new.token_of("new", &admin_claims())).await == 200).then_some(())
    })
    .await;

    server.serving.abort_all();
    while server.serving.join_next().await.is_some() {}
    assert_eq!(status(old.token_of("old", &admin_claims())).await, 200, "known keys outlive the issuer");
    // Whether an unknown key is the issuer's newest cannot be known now: a browser must come back.
    let unknown = old.token_of("newest", &admin_claims());
    until("the outage is noticed", async || (status(unknown.clone()).await == 503).then_some(())).await;
    let mut refused = Subscribe::to(&["a"]).bearing(&unknown).open(broker.addr).await;
    assert_eq!(refused.status, 200);
    assert_eq!(
        refused.next_control("closing").await.json(),
        json!({"reason": "unavailable", "reconnect": true})
    );
    assert_eq!(status(new.token_of("new", &admin_claims())).await, 200);
}

/// Seen to fail with a broker that does not ask again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_starts_without_its_issuer_and_believes_nobody_until_it_is_there() {
    let issuer = RsaIssuer::new();
    let server = KeyServer::start(None).await;
    let broker = Broker::on(Store::Embedded).await.set("auth.jwt.jwks_url", &server.url).start().await;
    let http = broker.http.bearing(&issuer.token_of("k", &admin_claims()));
    let refused = http.get("/cursor").await;
    assert!(refused.header("retry-after").parse::<u64>().is_ok(), "{refused:?}");
    assert_eq!(refused.problem(503)["code"], "unavailable");
    assert_eq!(broker.http.get("/cursor").await.problem(401)["code"], "token_required");
    *server.keys.lock() = Some(vec![issuer.jwk("k")]);
    until("the keys are there", async || (http.get("/cursor").await.status == 200).then_some(())).await;
    let metrics = broker.metrics();
    assert!(metrics.get("headwater_key_fetches_total{outcome=\"failed\"}") >= 1);
    assert_eq!(metrics.get("headwater_key_fetches_total{outcome=\"fetched\"}"), 1);
}

/// Seen to fail with keys that are only read at start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_read_again_on_a_hangup_and_bad_ones_are_not_taken() {
    let (old, new, dir) = (RsaIssuer::new(), RsaIssuer::new(), tempfile::tempdir().unwrap());
    let file = dir.path().join("jwks.json");
    let publish = |keys: &[Value]| std::fs::write(&file, json!({"keys": keys}).to_string()).unwrap();
    publish(&[old.jwk("old")]);
    let builder = Broker::on(Store::Embedded).await.set("auth.jwt.jwks_file", file.to_str().unwrap());
    let broker = builder.start().await;
    let status = async |issuer: &RsaIssuer, kid: &str| {
        broker.http.bearing(&issuer.token_of(kid, &admin_claims())).get("/cursor").await.status
    };
    assert_eq!((status(&old, "old").await, status(&new, "new").await), (200, 401));
    publish(&[]);
    broker.sighup();
    until("the broker says why", async || {
        broker.output().contains("the keys for tokens stay as they were").then_some(())
    })
    .await;
    assert_eq!(status(&old, "old").await, 200);
    publish(&[old.jwk("old"), new.jwk("new")]);
    broker.sighup();
    until("the new key counts", async || (status(&new, "new").await == 200).then_some(())).await;
    assert_eq!(status(&old, "old").await, 200, "the old one has not gone");
    publish(&[new.jwk("new")]);
    broker.sighup();
    until("the old key has gone", async || (status(&old, "old").await == 401).then_some(())).await;
}

/// Seen to fail when only the start measures secrets, and when only `auth.jwt.secret` is measured.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_can_be_guessed_is_not_taken_on_a_hangup_either() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, set) = (dir.path().join("secret"), dir.path().join("jwks.json"));
    let jwks = |key: &str| json!({"keys": [{"kty": "oct", "k": key}]}).to_string();
    // "guess me" in base64url, and 32 bytes.
    let (weak, strong) = ("Z3Vlc3MgbWU", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY");
    let bytes = "0123456789abcdef0123456789abcdef";
    for (key, file, good, bad) in [
        ("auth.jwt.secret_file", &secret, bytes.to_owned(), "guess me".to_owned()),
        ("auth.jwt.jwks_file", &set, jwks(strong), jwks(weak)),
    ] {
        std::fs::write(file, good).unwrap();
        let builder = Broker::on(Store::Embedded).await.reachable_from_elsewhere();
        let broker = builder.set(key, file.to_str().unwrap()).start().await;
        let header = json!({"alg": "HS256"});
        let status = async |secret: &str| {
            let token = hs256(secret.as_bytes(), &header, &admin_claims());
            broker.http.bearing(&token).get("/cursor").await.status
        };
        assert_eq!(status(bytes).await, 200);
        std::fs::write(file, bad).unwrap();
        broker.sighup();
        until("the broker says why", async || {
            let output = broker.output();
            (output.contains("stay as they were") && output.contains("fewer than 32 bytes")).then_some(())
        })
        .await;
        assert_eq!((status("guess me").await, status(bytes).await), (401, 200), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minted_token_works_for_the_client_commands() {
    let broker = guarded(Store::Embedded).await.start().await;
    let run = |args: &[&str], token: Option<&str>| {
        let mut command = command(args);
        command.env("HEADWATER_URL", broker.url()).env("HEADWATER_AUTH__JWT__SECRET", SECRET);
        command.envs(token.map(|token| ("HEADWATER_TOKEN", token)));
        command.output().expect("the binary starts")
    };
    let minted = run(
        &["token", "--sub", "ann", "--publish", "a", "b.*", "--subscribe", "{sub}", "a", "--ttl", "5m"],
        None,
    );
    assert!(minted.status.success(), "{minted:?}");
    let minted = String::from_utf8(minted.stdout).unwrap().trim().to_owned();
    let published = run(&["publish", "b.c", "x"], Some(&minted));
    assert!(published.status.success(), "{published:?}");
    let by_flag = run(&["publish", "a", "x", "--token", &minted], None);
    assert!(by_flag.status.success(), "{by_flag:?}");
    let tailed = run(&["tail", "a", "ann", "--from", "earliest", "--count", "1"], Some(&minted));
    assert!(tailed.status.success(), "{tailed:?}");
    let refused = run(&["publish", "c", "x"], Some(&minted));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(64));
    assert!(said.contains("[403 forbidden]") && said.contains("channel c"), "{said}");
    let without = run(&["tail", "a"], None);
    assert_eq!(without.status.code(), Some(64));
    assert!(String::from_utf8(without.stderr).unwrap().contains("[401 token_required]"));
}
