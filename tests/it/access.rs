//! Who may do what, beside the matrix of routes and credentials: where a token may stand, what a browser may do
//! with a cookie, and what a right covers. When rights end, where keys come from, whom users are and what is open
//! without a key stands in the files below.

mod ends;
mod keys;
mod open;
mod users;

use reqwest::Method;
use serde_json::json;

use crate::support::broker::Builder;
use crate::support::tokens::{SECRET, admin_claims, claims, now, sha256, token};
use crate::support::{Broker, Http, Setup, Store, Subscribe};

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

both_paths!(a_cursor_gives_no_right_to_what_it_covers);

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

/// Every place that can carry a token, good and bad, at the highest verbosity. Seen to fail with a trace of the
/// request's URI.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_is_ever_logged() {
    let builder = guarded(Store::Embedded).await.set("telemetry.log_filter", "trace");
    let mut broker = builder.start().await;
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
    // All that it had to say.
    broker.sigterm();
    assert!(broker.exit_status().await.success());
    let output = broker.output();
    assert!(output.contains("TRACE"), "the highest verbosity");
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
