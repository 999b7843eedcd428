//! Who may do what, beside the matrix of routes and credentials: where a token may stand, what a browser may do
//! with a cookie, when a right ends, and where keys come from.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::broker::{Builder, command};
use crate::support::tokens::{RsaIssuer, SECRET, admin_claims, claims, now, sha256, token};
use crate::support::{Broker, Http, Redis, Setup, Store, Subscribe, until};

/// A broker that verifies tokens of [`token`].
async fn guarded(setup: impl Into<Setup>) -> Builder {
    Broker::on(setup).await.set("auth.jwt.secret", SECRET)
}

fn admin(broker: &Broker) -> Http {
    broker.http.bearing(&token(&admin_claims()))
}

/// Seen to fail when a bad token in the header is passed over for a good one in the query.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_place_that_holds_a_token_decides() {
    let broker = guarded(Store::Embedded).await.start().await;
    let (good, bad) = (token(&admin_claims()), token(&json!({"exp": now() - 1})));
    let query = |token: &str| format!("/cursor?channels=a&access_token={token}");
    let bearer = |token: &str| ("authorization", format!("Bearer {token}"));
    let cookie = |token: &str| ("cookie", format!("x=1; headwater_token={token}"));
    let none = "/cursor?channels=a".to_owned();
    let cases = [
        (none.clone(), vec![bearer(&good), cookie(&bad)], 200),
        (query(&bad), vec![bearer(&good)], 200),
        (query(&good), vec![bearer(&bad)], 401),
        (query(&good), vec![cookie(&bad)], 200),
        (query(&bad), vec![cookie(&good)], 401),
        (none.clone(), vec![cookie(&good)], 200),
        (none.clone(), vec![cookie(&bad)], 401),
        (query(&good), vec![("authorization", "Basic eDp5".to_owned())], 200),
        (none, vec![], 401),
    ];
    for (path, headers, status) in cases {
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        broker.http.send(Method::GET, &path, &headers, "").await.expect(status);
    }
}

/// A page of anybody's can have a browser send the cookie. Seen to fail without the check.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_by_cookie_needs_a_page_of_this_site_or_a_listed_one() {
    let listed = "https://app.example";
    let broker =
        guarded(Store::Embedded).await.set("cors.allowed_origins", &format!("[\"{listed}\"]")).start().await;
    let own = broker.url();
    let cookie = format!("headwater_token={}", token(&admin_claims()));
    let publish = async |origin: Option<&str>, extra: Option<(&str, &str)>| {
        let mut headers = vec![("content-type", "application/json"), ("cookie", cookie.as_str())];
        headers.extend(origin.map(|origin| ("origin", origin)));
        headers.extend(extra);
        broker.http.send(Method::POST, "/channels/a/events", &headers, r#"{"data":1}"#).await
    };
    publish(Some(&own), None).await.expect(201);
    publish(Some(listed), None).await.expect(201);
    for origin in [None, Some("null"), Some("https://evil.example"), Some("https://app.example.evil.example")]
    {
        assert_eq!(publish(origin, None).await.problem(403)["code"], "forbidden_origin", "{origin:?}");
    }
    // A token that no browser sends by itself needs no page.
    let bearer = format!("Bearer {}", token(&admin_claims()));
    publish(Some("https://evil.example"), Some(("authorization", &bearer))).await.expect(201);
    // Reading is for CORS to keep apart.
    let headers = [("cookie", cookie.as_str()), ("origin", "https://evil.example")];
    let read = broker.http.send(Method::GET, "/channels/a/events", &headers, "").await.expect(200);
    assert_eq!(read.header("access-control-allow-origin"), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_listed_origins_can_read_errors_too_and_send_their_token() {
    let listed = "https://app.example";
    let broker =
        guarded(Store::Embedded).await.set("cors.allowed_origins", &format!("[\"{listed}\"]")).start().await;
    let refused =
        broker.http.send(Method::GET, "/events?channels=a", &[("origin", listed)], "").await.expect(401);
    assert_eq!(refused.header("access-control-allow-origin"), listed);
    assert_eq!(refused.header("access-control-allow-credentials"), "true");
    assert!(refused.header("access-control-expose-headers").to_lowercase().contains("retry-after"));
    assert_eq!(refused.header("x-content-type-options"), "nosniff");
    assert_eq!(refused.header("cache-control"), "no-store");
    for (path, status) in [("/nowhere", 404), ("/healthz", 405), ("/channels", 405)] {
        let refused = broker.http.send(Method::POST, path, &[("origin", listed)], "").await.expect(status);
        assert_eq!(refused.header("access-control-allow-origin"), listed, "{path}");
    }
    // A preflight carries no token.
    let preflight = [
        ("origin", listed),
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "authorization,content-type,idempotency-key,last-event-id,cache-control",
        ),
    ];
    let allowed = broker.http.send(Method::OPTIONS, "/channels/a/events", &preflight, "").await.expect(200);
    let headers = allowed.header("access-control-allow-headers").to_lowercase();
    for name in ["authorization", "content-type", "idempotency-key", "last-event-id", "cache-control"] {
        assert!(headers.contains(name), "{headers}");
    }
    let stranger = [("origin", "https://evil.example")];
    let refused = broker.http.send(Method::GET, "/events?channels=a", &stranger, "").await.expect(401);
    assert_eq!(refused.header("access-control-allow-origin"), "");
}

/// Seen to fail when `"*"` lists every origin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_every_page_may_read_none_may_use_the_cookie() {
    let broker = guarded(Store::Embedded).await.set("cors.allowed_origins", "[\"*\"]").start().await;
    let cookie = format!("headwater_token={}", token(&admin_claims()));
    let headers = [("origin", "https://anywhere.example"), ("cookie", cookie.as_str())];
    let read = broker.http.send(Method::GET, "/cursor", &headers, "").await.expect(200);
    assert_eq!(read.header("access-control-allow-origin"), "*");
    assert_eq!(read.header("access-control-allow-credentials"), "", "so no browser shows it to the page");
    let written = broker.http.send(Method::DELETE, "/channels/a", &headers, "").await;
    assert_eq!(written.problem(403)["code"], "forbidden_origin");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_only_what_is_open_to_all_can_be_subscribed_to() {
    let broker =
        guarded(Store::Embedded).await.set("auth.anonymous_subscribe", "[\"public.*\"]").start().await;
    let mut reader = Subscribe::to(&["public.a"]).connect(broker.addr).await;
    admin(&broker).publish("public.a", "for all").await;
    admin(&broker).publish("private", "not for all").await;
    assert_eq!(reader.one().await, "for all");
    for path in ["/events?channels=public.a,private", "/channels/private/events", "/cursor?channels=private"]
    {
        let problem = broker.http.get(path).await.problem(401);
        assert_eq!(problem["code"], "token_required");
        assert!(problem["detail"].as_str().unwrap().contains("private"), "{problem}");
    }
    let listed = broker.http.get("/channels").await.expect(200).json();
    assert_eq!(listed["channels"].as_array().unwrap().len(), 1, "{listed}");
    let refused = broker.http.post("/events", &json!([{"channel": "public.a", "data": 1}])).await;
    assert_eq!(refused.problem(401)["code"], "token_required");
    // Whoever has a token does not lose what is open to all.
    let user = token(&claims("u", &["mine"], &[]));
    Subscribe::to(&["public.a", "mine"]).bearing(&user).connect(broker.addr).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_names_the_channel_and_publishes_nothing() {
    let broker = guarded(Store::Embedded).await.start().await;
    let user = broker.http.bearing(&token(&claims("u", &["user.{sub}.*"], &["user.{sub}.*"])));
    user.publish("user.u.a", 1).await;
    user.get("/channels/user.u.a/events").await.expect(200);
    let refused = user.get("/events?channels=user.u.a,user.v.a").await.problem(403);
    assert_eq!((&refused["code"], &refused["channel"]), (&json!("forbidden"), &json!("user.v.a")));
    let batch = json!([{"channel": "user.u.a", "data": 2}, {"channel": "user.v.a", "data": 2}]);
    let refused = user.post("/events", &batch).await.problem(403);
    assert_eq!((&refused["channel"], &refused["index"]), (&json!("user.v.a"), &json!(1)));
    let lines = "{\"channel\":\"user.u.a\",\"data\":3}\n{\"channel\":\"$user:u\",\"data\":3}\n";
    let system = user.publish_ndjson(lines.to_owned()).await.problem(400);
    assert_eq!((&system["code"], &system["line"]), (&json!("invalid_channel"), &json!(2)));
    let lines = "{\"channel\":\"user.u.a\",\"data\":4}\n{\"channel\":\"user.v.a\",\"data\":4}\n";
    let refused = user.publish_ndjson(lines.to_owned()).await.problem(403);
    assert_eq!((&refused["line"], &refused["published"]), (&json!(2), &json!(1)));
    let held: Vec<String> =
        admin(&broker).history("user.u.a").await.into_iter().map(|event| event.data).collect();
    assert_eq!(held, ["1", "3", "4"], "of an array nothing, of a stream what came before");
    assert!(admin(&broker).history("user.v.a").await.is_empty());
}

/// Publishes to a user's own channel, as a broker does.
async fn publish_to_user(redis: &Redis, user: &str, data: &str) {
    let channel = format!("$user:{user}");
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

/// What a cursor covers was looked at when it was given, with the token of that time. Seen to fail when channels are
/// only looked at where the request brings no cursor.
async fn a_cursor_gives_no_right_to_what_it_covers(setup: Setup) {
    let broker = guarded(setup).await.start().await;
    let wide = token(&claims("ann", &["a", "b"], &[]));
    let mut reader = Subscribe::to(&["a", "b"]).bearing(&wide).connect(broker.addr).await;
    let begin = reader.connected.last_event_id.clone();
    admin(&broker).publish("a", "1").await;
    admin(&broker).publish("b", "2").await;
    admin(&broker).publish("a", "3").await;
    assert_eq!(reader.data(3).await, ["1", "2", "3"]);
    drop(reader);
    let narrow = token(&claims("ann", &["a"], &[]));
    let mut theirs = vec!["1".to_owned(), "3".to_owned()];
    for cursor in [begin.as_str(), "earliest"] {
        let of = |channels: &[&str]| Subscribe::to(channels).bearing(&narrow).after(cursor);
        assert_eq!(of(&["a", "b"]).open(broker.addr).await.status, 403, "nothing is silently left out");
        let query = format!("/events?channels=b&last_event_id={cursor}");
        let refused = broker.http.bearing(&narrow).get(&query).await.problem(403);
        assert_eq!(refused["channel"], "b");
        let mut own = of(&["a"]).connect(broker.addr).await;
        assert_eq!(own.data(theirs.len()).await, theirs);
        admin(&broker).publish("b", "not theirs").await;
        admin(&broker).publish("a", "4").await;
        assert_eq!(own.one().await, "4");
        theirs.push("4".to_owned());
        assert!(!String::from_utf8_lossy(&own.raw).contains("not theirs"));
    }
}

/// Every route that takes a channel's name. Seen to fail with names that are parsed as a store's own are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reaches_a_system_channel_by_its_name() {
    let broker = guarded(Store::Embedded).await.start().await;
    let (admin, event) = (admin(&broker), json!({"data": 1}));
    for name in ["$user:ann", "$conn:1"] {
        let escaped = name.replace('$', "%24").replace(':', "%3A");
        let item = json!({"channel": name, "data": 1});
        for answer in [
            admin.get(&format!("/events?channels=a,{name}")).await,
            admin.get(&format!("/events?channel={escaped}")).await,
            admin.get(&format!("/events/authenticated?channels={name}")).await,
            admin.get(&format!("/cursor?channels={name}")).await,
            admin.get(&format!("/channels/{escaped}")).await,
            admin.get(&format!("/channels/{name}/events")).await,
            admin.delete(&format!("/channels/{name}")).await,
            admin.post(&format!("/channels/{escaped}/events"), &event).await,
            admin.post(&format!("/channels/{name}/adopt"), &event).await,
            admin.post("/events", &item).await,
            admin.post("/events", &json!([item])).await,
            admin.publish_ndjson(item.to_string()).await,
        ] {
            assert_eq!(answer.problem(400)["code"], "invalid_channel");
        }
    }
}

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

/// Seen to fail with a session that does not know when the right ends.
async fn a_stream_ends_with_its_token_and_is_not_to_come_back(setup: Setup) {
    let broker = guarded(setup).await.start().await;
    let mut brief = claims("u", &["a"], &[]);
    brief["exp"] = json!(now() + 2);
    let brief = token(&brief);
    let mut reader = Subscribe::to(&["a"]).bearing(&brief).connect(broker.addr).await;
    admin(&broker).publish("a", "before").await;
    assert_eq!(reader.one().await, "before");
    let closing = reader.next_control("closing").await;
    assert_eq!(closing.json(), json!({"reason": "token_expired", "reconnect": false}));
    assert_eq!(closing.retry, None);
    reader.end().await;
    let again = Subscribe::to(&["a"]).bearing(&brief).after(reader.last_event_id()).open(broker.addr).await;
    assert_eq!(again.status, 401);
}

/// Seen to fail without the look at the caller before each chunk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_publishes_ends_with_its_token_too() {
    let broker = guarded(Store::Embedded).await.start().await;
    let mut brief = claims("u", &["a"], &["a"]);
    brief["exp"] = json!(now() + 2);
    let http = broker.http.bearing(&token(&brief));
    let pace = tokio::time::interval(std::time::Duration::from_millis(50));
    let endless = futures_util::stream::unfold((0, pace), async |(n, mut pace)| {
        pace.tick().await;
        let line = json!({"channel": "a", "data": n}).to_string() + "\n";
        Some((Ok::<_, std::io::Error>(line), (n + 1, pace)))
    });
    let problem = http.publish_ndjson(Body::wrap_stream(endless)).await.problem(401);
    assert_eq!(problem["code"], "token_expired");
    let published = problem["published"].as_u64().unwrap();
    assert!(published > 0, "{problem}");
    assert_eq!(admin(&broker).history("a").await.len() as u64, published);
}

both_paths!(a_stream_ends_with_its_token_and_is_not_to_come_back, a_cursor_gives_no_right_to_what_it_covers);

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_are_open_or_for_operators_as_it_is_configured() {
    let open = guarded(Store::Embedded).await.start().await;
    open.http.get("/metrics").await.expect(200);
    let key = format!("[{{ name = \"scraper\", sha256 = \"{}\" }}]", sha256("the scraper's key"));
    let builder = guarded(Store::Embedded).await.set("auth.keys", &key).set("auth.protect_metrics", "true");
    let broker = builder.start().await;
    assert_eq!(broker.http.get("/metrics").await.problem(401)["code"], "token_required");
    let user = broker.http.bearing(&token(&claims("u", &["*"], &["*"])));
    assert_eq!(user.get("/metrics").await.problem(403)["code"], "forbidden");
    broker.http.bearing("the scraper's key").get("/metrics").await.expect(200);
    admin(&broker).get("/metrics").await.expect(200);
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

/// Seen to fail when only the first fetch counts, and when every unknown key is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuers_keys_are_fetched_when_a_new_one_appears_and_outlive_an_outage() {
    let (old, new) = (RsaIssuer::new(), RsaIssuer::new());
    let mut server = KeyServer::start(Some(vec![old.jwk("old")])).await;
    let began = Instant::now();
    let broker = Broker::on(Store::Embedded).await.set("auth.jwt.jwks_url", &server.url).start().await;
    let status = async |token: String| broker.http.bearing(&token).get("/cursor").await.status;
    assert_eq!(status(old.token_of("old", &admin_claims())).await, 200);
    assert_eq!(status(new.token_of("old", &admin_claims())).await, 401, "the signature is another's");

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

/// Every place that can carry a token, good and bad, at the highest verbosity. Seen to fail with a trace of the
/// request's URI.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_is_ever_logged() {
    let builder = guarded(Store::Embedded).await.set("telemetry.log_filter", "trace");
    let broker = builder.start().await;
    let mut tokens = vec![token(&admin_claims()), token(&json!({"exp": 1})), "a-key-that-is-none".to_owned()];
    tokens.push(tokens[0].clone() + "x");
    for token in &tokens {
        let cookie = format!("headwater_token={token}");
        let bearer = format!("Bearer {token}");
        for headers in [vec![("authorization", bearer.as_str())], vec![("cookie", cookie.as_str())], vec![]] {
            for path in
                ["/cursor?channels=a", &format!("/cursor?channels=a&access_token={token}"), "/nowhere"]
            {
                broker.http.send(Method::GET, path, &headers, "").await;
                broker.http.send(Method::POST, path, &headers, "").await;
            }
        }
        let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
        let url = format!("{}/cursor?channels=a&access_token={token}", broker.url());
        client.get(url).header("authorization", &bearer).header("cookie", &cookie).send().await.unwrap();
        let stream = Subscribe::to(&["a"]).query("access_token", token).open(broker.addr).await;
        drop(stream);
    }
    until("the broker logs something", async || broker.output().contains("TRACE").then_some(())).await;
    let output = broker.output();
    assert!(!output.contains(SECRET));
    for token in tokens {
        let signature = token.rsplit('.').next().unwrap();
        assert!(
            !output.contains(signature),
            "{}",
            output.lines().find(|line| line.contains(signature)).unwrap()
        );
    }
}
