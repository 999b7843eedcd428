//! Every route with every kind of credential: the exact status and code.
//!
//! The broker verifies RS256 with a public key for one audience. A route without a row fails the test, because the
//! rows are compared with the list that the router itself is made from.

use std::collections::BTreeSet;

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::support::tokens::{RsaIssuer, hs256, now, unsigned};
use crate::support::{Broker, Store};

/// A route, a request to it, and what is answered to a caller with the right and to one without.
struct Row {
    method: Method,
    route: &'static str,
    path: &'static str,
    body: Option<&'static str>,
    right: u16,
    /// The status, and the code of a problem.
    without_right: (u16, &'static str),
    /// No credential is looked at.
    is_open: bool,
}

const FORBIDDEN: (u16, &str) = (403, "forbidden");

fn rows() -> Vec<Row> {
    let row = |method, route, path, body, right, without_right| Row {
        method,
        route,
        path,
        body,
        right,
        without_right,
        is_open: false,
    };
    let open = |path| Row { is_open: true, ..row(Method::GET, path, path, None, 200, (200, "")) };
    let event = Some(r#"{"data":1}"#);
    let (channel, history) = ("/channels/{channel}", "/channels/{channel}/events");
    let adopt = "/channels/{channel}/adopt";
    vec![
        row(Method::GET, "/events", "/events?channels=mine", None, 200, FORBIDDEN),
        row(
            Method::GET,
            "/events/authenticated",
            "/events/authenticated?channels=mine",
            None,
            200,
            FORBIDDEN,
        ),
        row(Method::POST, "/events", "/events", Some(r#"[{"channel":"mine","data":1}]"#), 200, FORBIDDEN),
        row(Method::GET, "/cursor", "/cursor?channels=mine", None, 200, FORBIDDEN),
        // Lists what the caller may see, which is nothing.
        row(Method::GET, "/channels", "/channels", None, 200, (200, "")),
        row(Method::GET, channel, "/channels/mine", None, 200, FORBIDDEN),
        row(Method::GET, history, "/channels/mine/events", None, 200, FORBIDDEN),
        row(Method::POST, history, "/channels/mine/events", event, 201, FORBIDDEN),
        row(Method::POST, adopt, "/channels/mine/adopt", None, 200, FORBIDDEN),
        row(Method::GET, "/revocations", "/revocations", None, 200, FORBIDDEN),
        row(Method::POST, "/revocations", "/revocations", Some(r#"{"sub":"nobody"}"#), 201, FORBIDDEN),
        row(Method::DELETE, channel, "/channels/mine", None, 204, FORBIDDEN),
        open("/healthz"),
        open("/readyz"),
        open("/metrics"),
    ]
}

/// What is presented, and what is answered where a credential is looked at.
struct Credential {
    name: &'static str,
    token: Option<String>,
    expected: Expected,
}

#[derive(Clone, Copy)]
enum Expected {
    Unauthorized(&'static str),
    WithoutRight,
    Right,
}

fn credentials(issuer: &RsaIssuer) -> Vec<Credential> {
    let good = json!({
        "sub": "u", "aud": "headwater", "exp": now() + 3_600, "headwater": {"admin": true},
    });
    let with = |changes: Value| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        claims
    };
    let invalid = Expected::Unauthorized("token_invalid");
    let signed = |name, changes: Value, expected| Credential {
        name,
        token: Some(issuer.token(&with(changes))),
        expected,
    };
    let public_key = issuer.public_key();
    let other = |name, token| Credential { name, token: Some(token), expected: invalid };
    let header = json!({"alg": "HS256", "typ": "JWT"});
    vec![
        Credential { name: "no token", token: None, expected: Expected::Unauthorized("token_required") },
        other("malformed", "not.a-token".to_owned()),
        other("empty", String::new()),
        signed("expired", json!({"exp": now() - 1}), Expected::Unauthorized("token_expired")),
        signed("without exp", json!({"exp": null}), invalid),
        signed("not yet valid", json!({"nbf": now() + 600}), invalid),
        signed("issued in the future", json!({"iat": now() + 600}), invalid),
        other("wrong key", RsaIssuer::new().token(&good)),
        other("alg none", unsigned(&good)),
        other("algorithm confusion", hs256(public_key.as_bytes(), &header, &good)),
        other("algorithm confusion, trimmed", hs256(public_key.trim().as_bytes(), &header, &good)),
        signed("wrong audience", json!({"aud": ["other", "headwater.example"]}), invalid),
        signed(
            "insufficient scope",
            json!({"headwater": {"subscribe": ["other", "min"], "publish": ["other", "mine.*"]}}),
            Expected::WithoutRight,
        ),
        signed("right", json!({}), Expected::Right),
    ]
}

/// Seen to fail with a route that has no row, with a signature, an `exp` or an audience that is not looked at, and with a
/// handler that does not ask for the right to its channel. That an algorithm is not the token's to choose is held by three
/// checks at once (`auth/tests.rs`), so breaking one of them does not show here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_answers_every_kind_of_credential_as_it_must() {
    let listed: BTreeSet<(String, &str)> =
        headwater::http::routes().iter().map(|route| (route.method.to_string(), route.path)).collect();
    let covered: BTreeSet<(String, &str)> =
        rows().iter().map(|row| (row.method.to_string(), row.route)).collect();
    assert_eq!(covered, listed, "every route has a row, and every row a route");

    let issuer = RsaIssuer::new();
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("issuer.pem");
    std::fs::write(&key_file, issuer.public_key()).unwrap();
    let builder =
        Broker::on(Store::Embedded).await.set("auth.jwt.public_key_file", key_file.to_str().unwrap());
    let broker = builder.set("auth.jwt.audience", "headwater").start().await;
    let client = Client::builder().no_proxy().build().unwrap();
    let mut problems = Vec::new();
    for credential in credentials(&issuer) {
        for row in rows() {
            let answer = ask(&client, &broker, &row, credential.token.as_deref()).await;
            let wanted = match credential.expected {
                _ if row.is_open => (row.right, ""),
                Expected::Unauthorized(code) => (401, code),
                Expected::WithoutRight => row.without_right,
                Expected::Right => (row.right, ""),
            };
            let Answer { status, code, challenge } = &answer;
            if (*status, code.as_str()) != wanted || challenge.as_deref() != challenge_for(wanted) {
                problems.push(format!("{} {}, {}: {answer:?}", row.method, row.path, credential.name));
            }
        }
        // The rows end with a purge; the next credential finds an event again.
        let right =
            issuer.token(&json!({"aud": "headwater", "exp": now() + 60, "headwater": {"admin": true}}));
        let seed = &rows()[7];
        assert_eq!(ask(&client, &broker, seed, Some(&right)).await.status, 201);
    }
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// RFC 6750, section 3: nothing is said about an error where nothing was presented.
fn challenge_for((status, code): (u16, &str)) -> Option<&'static str> {
    match (status, code) {
        (401, "token_required") => Some("Bearer realm=\"headwater\""),
        (401, _) => Some("Bearer realm=\"headwater\", error=\"invalid_token\""),
        (403, _) => Some("Bearer realm=\"headwater\", error=\"insufficient_scope\""),
        _ => None,
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    code: String,
    challenge: Option<String>,
}

/// Reads the head only where the answer is no problem: a stream has no end.
async fn ask(client: &Client, broker: &Broker, row: &Row, token: Option<&str>) -> Answer {
    let mut request = client.request(row.method.clone(), format!("{}{}", broker.url(), row.path));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if let Some(body) = row.body {
        request = request.header("content-type", "application/json").body(body);
    }
    let response = request.send().await.expect("the broker answers");
    let status = response.status();
    let challenge =
        response.headers().get("www-authenticate").map(|value| value.to_str().unwrap().to_owned());
    let code = if status.is_success() || status == StatusCode::NO_CONTENT {
        String::new()
    } else {
        let problem: Value = response.json().await.expect("a refusal is a problem");
        assert_eq!(problem["status"], status.as_u16());
        problem["code"].as_str().unwrap_or_default().to_owned()
    };
    Answer { status: status.as_u16(), code, challenge }
}
