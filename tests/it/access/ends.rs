//! Ends: what was begun with a right stops with it.

use futures_util::StreamExt;
use reqwest::Body;
use serde_json::json;

use super::{admin, guarded};
use crate::support::tokens::{claims, now, token};
use crate::support::{Setup, Store, Subscribe, until};

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

/// Publishes one event, then says nothing and does not end.
fn silent_after_one() -> Body {
    let line = json!({"channel": "a", "data": 1}).to_string() + "\n";
    let one = futures_util::stream::iter([Ok::<_, std::io::Error>(line)]);
    Body::wrap_stream(one.chain(futures_util::stream::pending()))
}

/// Seen to fail when the right is looked at before a chunk only: such a stream stayed for as long as its client liked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_stream_of_publishes_ends_with_its_token_or_its_revocation() {
    let broker = guarded(Store::Embedded).await.start().await;
    let mut brief = claims("brief", &[], &["a"]);
    brief["exp"] = json!(now() + 2);
    let http = broker.http.bearing(&token(&brief));
    let problem = http.publish_ndjson(silent_after_one()).await.problem(401);
    assert_eq!((&problem["code"], &problem["published"]), (&json!("token_expired"), &json!(1)));
    assert_eq!(problem["line"], 2);

    let http = broker.http.bearing(&token(&claims("locked out", &[], &["a"])));
    let (problem, ()) =
        tokio::join!(async { http.publish_ndjson(silent_after_one()).await.problem(401) }, async {
            let published = async || (admin(&broker).history("a").await.len() == 2).then_some(());
            until("the first line is published", published).await;
            // Of somebody else, so that nobody ends by being woken.
            admin(&broker).post("/revocations", &json!({"sub": "brief"})).await.expect(201);
            admin(&broker).post("/revocations", &json!({"sub": "locked out"})).await.expect(201);
        });
    assert_eq!((&problem["code"], &problem["published"]), (&json!("token_revoked"), &json!(1)));
}

/// Seen to fail when rights are looked at for each line only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_may_publish_nowhere_opens_no_stream_of_publishes() {
    let broker = guarded(Store::Embedded).await.start().await;
    let reader = broker.http.bearing(&token(&claims("u", &["*"], &[])));
    let silent = || Body::wrap_stream(futures_util::stream::pending::<Result<&str, std::io::Error>>());
    assert_eq!(reader.publish_ndjson(silent()).await.problem(403)["code"], "forbidden");
    assert_eq!(broker.http.publish_ndjson(silent()).await.problem(401)["code"], "token_required");
}

both_paths!(a_stream_ends_with_its_token_and_is_not_to_come_back);
