//! Ends: what was begun with a right stops with it.

use reqwest::Body;
use serde_json::json;

use super::{admin, guarded};
use crate::support::tokens::{claims, now, token};
use crate::support::{Setup, Store, Subscribe};

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

both_paths!(a_stream_ends_with_its_token_and_is_not_to_come_back);
