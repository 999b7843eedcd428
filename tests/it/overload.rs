//! More than the store can take: publishers are refused at once and clearly, memory stays bounded, and what was
//! acknowledged is there.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream::iter;
use reqwest::Method;
use serde_json::json;

use crate::support::{Broker, Store, Subscribe, until};

/// Published while Redis does not answer: 400 MB where 32 MiB may wait.
const EVENTS: usize = 1_600;
const EVENT_BYTES: usize = 250_000;
/// Requests at a time: more than fit the queue.
const AT_A_TIME: usize = 250;
/// The queue, the call under way, bodies that are being read, and what the allocator keeps of them for a moment.
const GROWTH_MAX: u64 = 160 * 1024 * 1024;

/// Broken to see it fail: a queue of publishers without a bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_at_once_and_keeps_what_it_took() {
    let broker = Broker::on(Store::Redis).await.set("retention.max_length", "10000").start().await;
    broker.http.publish("a", "first").await;
    let before = broker.rss_bytes();
    broker.redis().pause();
    let publish = async |number: usize| {
        let body = format!("{number}:{}", "x".repeat(EVENT_BYTES));
        let headers = [("content-type", "text/plain")];
        let answer = broker.http.send(Method::POST, "/channels/a/events", &headers, body).await;
        (number, answer)
    };
    let publishing = iter(0..EVENTS).map(publish).buffer_unordered(AT_A_TIME);
    let mut publishing = std::pin::pin!(publishing);
    // Whoever finds no room is told at once, while what found room waits: Redis still says nothing.
    let mut answers = Vec::new();
    while answers.len() < EVENTS / 2 {
        let (number, answer) = publishing.next().await.expect("not all have room");
        let problem = answer.clone().problem(503);
        assert_eq!((&problem["code"], &problem["outcome"]), (&json!("overloaded"), &json!("not_published")));
        assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
        answers.push((number, answer));
    }
    let growth = broker.rss_bytes().saturating_sub(before);
    assert!(growth < GROWTH_MAX, "memory grew by {growth} bytes");
    broker.redis().resume();
    answers.extend(publishing.collect::<Vec<_>>().await);

    let fence = broker.http.publish_surely("a", "fence", "fence").await.id;
    let mut held = BTreeMap::new();
    let mut reader = Subscribe::to(&["a"]).after("earliest").connect(broker.addr).await;
    until("the fence", async || {
        let event = reader.events(1).await.remove(0);
        let number = event.data.split_once(':').and_then(|(number, _)| number.parse::<usize>().ok());
        held.extend(number.map(|number| (number, event.last_event_id.clone())));
        (event.last_event_id == fence).then_some(())
    })
    .await;
    let mut acknowledged = 0;
    for (number, answer) in answers {
        match answer.status {
            201 => {
                acknowledged += 1;
                assert_eq!(held.get(&number), Some(&answer.receipt().id), "{number} was acknowledged");
            }
            _ if answer.clone().problem(503)["outcome"] == "not_published" => {
                assert!(!held.contains_key(&number), "{number} was refused");
            }
            _ => assert_eq!(answer.problem(503)["outcome"], "unknown"),
        }
    }
    assert!(acknowledged > 50, "what had found room was published: {acknowledged}");
}
