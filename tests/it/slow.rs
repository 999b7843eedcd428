//! Slow subscribers: one that stops reading costs a bounded amount of memory, disturbs nobody, and is served from
//! the log, complete, when it reads again.

use std::collections::BTreeSet;

use crate::support::{Broker, Store, Subscribe, until};

/// Published while the subscribers do not read, in bytes: batches of events.
const BATCHES: usize = 24;
const BATCH_EVENTS: usize = 50;
const EVENT_BYTES: usize = 50_000;

/// Subscribers that do not read. A queue for each would hold their number times what is published.
const STUCK: usize = 3;

/// What the broker may grow by: far below one copy per subscriber, above what its buffers are configured to hold.
/// The embedded log's own tables add to them.
const fn growth_max(store: Store) -> u64 {
    let mib = match store {
        Store::Redis => 48,
        Store::Embedded => 160,
    };
    mib * 1024 * 1024
}

/// An event that names its number and is large.
fn numbered(number: usize) -> String {
    format!("{number}:{}", "x".repeat(EVENT_BYTES))
}

/// Broken to see it fail: rings without a bound (on Redis, where nothing else takes memory), and a ring that forgets
/// that it dropped frames.
async fn a_subscriber_that_stops_reading_is_served_from_the_log_in_bounded_memory(store: Store) {
    // Longer than a busy machine takes for all of this: the subscribers are to be slow, not given up.
    let setup = Broker::on(store).await.set("retention.max_length", "10000").set("sse.write_timeout", "1h");
    let broker = setup.set("fanout.memory_bytes_max", "8388608").start().await;
    let mut stuck = Vec::new();
    for _ in 0..STUCK {
        stuck.push(Subscribe::to(&["a"]).receive_buffer(16 * 1024).connect(broker.addr).await);
    }
    let mut brisk = Subscribe::to(&["a"]).connect(broker.addr).await;
    broker.http.publish_all("warm-up", &[numbered(0)]).await;
    let before = broker.rss_bytes();
    let mut peak = 0;
    for batch in 0..BATCHES {
        let texts: Vec<String> = (0..BATCH_EVENTS).map(|n| numbered(batch * BATCH_EVENTS + n)).collect();
        broker.http.publish_all("a", &texts).await;
        assert!(brisk.data(BATCH_EVENTS).await == texts, "others are not disturbed");
        peak = peak.max(broker.rss_bytes());
    }
    let growth = peak.saturating_sub(before);
    let published = BATCHES * BATCH_EVENTS * EVENT_BYTES;
    assert!(growth < growth_max(store), "memory grew by {growth} bytes while {published} were published");

    for (number, reader) in stuck.iter_mut().enumerate() {
        for event in 0..BATCHES * BATCH_EVENTS {
            let data = reader.one().await;
            assert!(
                data.starts_with(&format!("{event}:")),
                "reader {number} got {} as event {event}",
                &data[..12]
            );
        }
    }
    broker.http.publish("a", "live again").await;
    for reader in &mut stuck {
        assert_eq!(reader.one().await, "live again");
    }
}

async fn a_subscriber_without_any_progress_is_closed_and_can_resume(store: Store) {
    let setup =
        Broker::on(store).await.set("retention.max_length", "10000").set("sse.write_timeout", "400ms");
    let broker = setup.start().await;
    let mut stuck = Subscribe::to(&["a"]).receive_buffer(4_096).connect(broker.addr).await;
    let texts: Vec<String> = (0..120).map(numbered).collect();
    for part in texts.chunks(BATCH_EVENTS) {
        broker.http.publish_all("a", part).await;
    }
    until("the subscriber is gone", async || {
        let info = broker.http.get("/channels/a").await.expect(200).json();
        (info["subscribers"]["total"] == 0).then_some(())
    })
    .await;
    let mut seen = BTreeSet::new();
    while let Some(event) = stuck.next().await {
        seen.insert(event.data);
    }
    assert!(seen.len() < texts.len(), "it was closed before it got all");
    let mut resumed = Subscribe::to(&["a"]).after(stuck.last_event_id()).connect(broker.addr).await;
    assert!(resumed.data(texts.len() - seen.len()).await == texts[seen.len()..], "exactly the rest");
}

both_stores!(
    a_subscriber_that_stops_reading_is_served_from_the_log_in_bounded_memory,
    a_subscriber_without_any_progress_is_closed_and_can_resume,
);
