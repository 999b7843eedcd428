//! Slow subscribers: one that stops reading costs a bounded amount of memory, disturbs nobody, and is served from
//! the log, complete, when it reads again.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::support::until::{PAUSE, Wait};
use crate::support::{Broker, Setup, Store, Subscribe, until};

/// Published while the subscribers do not read, in bytes: batches of events, 105 MB.
const BATCHES: usize = 42;
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

/// What the kernel may hold for a subscriber that does not read, in bytes: 128 KiB that are not sent, and the write
/// that went beyond them.
const UNSENT_BYTES_MAX: u64 = 512 * 1024;

/// What a slow subscriber reads at a time, between two pauses, and for how long.
const SIP_BYTES: usize = 3_000;
const SLOW_FOR: Duration = PAUSE.saturating_mul(800);

/// An event that names its number and is large.
fn numbered(number: usize) -> String {
    format!("{number}:{}", "x".repeat(EVENT_BYTES))
}

/// Broken to see it fail: rings without a bound (on Redis, where nothing else takes memory), a ring that forgets that
/// it dropped frames, and a kernel without `TCP_NOTSENT_LOWAT`, which holds 3.6 MB for each subscriber.
async fn a_subscriber_that_stops_reading_is_served_from_the_log_in_bounded_memory(setup: Setup) {
    let store = setup.store;
    // Longer than a busy machine takes for all of this: the subscribers are to be slow, not given up.
    let setup = Broker::on(setup).await.set("retention.max_length", "10000").set("sse.write_timeout", "1h");
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
        // A byte now and then is no reading that the network could see.
        assert!(stuck[0].sip(1).await, "whoever reads a byte at a time is not dropped");
    }
    let growth = peak.saturating_sub(before);
    let published = BATCHES * BATCH_EVENTS * EVENT_BYTES;
    assert!(growth < growth_max(store), "memory grew by {growth} bytes while {published} were published");
    let unsent = broker.unsent_bytes();
    assert!(unsent.iter().all(|bytes| *bytes < UNSENT_BYTES_MAX), "the kernel holds {unsent:?}");
    let now = broker.metrics();
    assert!(now.get("headwater_sessions_lagged_total") >= STUCK as u64);
    assert!(now.get("headwater_kept_page_bytes") <= 8_388_608 / 4, "{now:?}");

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

/// What retention took from a subscriber that does not read is told, once; what it left is delivered. Seen to fail
/// with a session that takes what a page begins with for what follows its position.
async fn a_subscriber_that_stops_reading_for_too_long_is_told_what_it_missed(setup: Setup) {
    let kept = 100;
    let setup = Broker::on(setup).await.set("retention.max_length", &kept.to_string());
    let broker = setup.set("sse.write_timeout", "1h").set("fanout.ring_events", "10").start().await;
    let mut stuck = Subscribe::to(&["a"]).receive_buffer(16 * 1024).connect(broker.addr).await;
    let total = 16 * BATCH_EVENTS;
    for batch in 0..total / BATCH_EVENTS {
        let texts: Vec<String> = (0..BATCH_EVENTS).map(|n| numbered(batch * BATCH_EVENTS + n)).collect();
        broker.http.publish_all("a", &texts).await;
        until("the first events are on their way", async || {
            (broker.metrics().get("headwater_events_delivered_total") > 0).then_some(())
        })
        .await;
    }
    let number = |data: &str| data.split_once(':').and_then(|(number, _)| number.parse::<usize>().ok());
    let (mut seen, mut gaps) = (Vec::new(), Vec::new());
    while seen.last() != Some(&(total - 1)) {
        let event = stuck.next().await.expect("the stream goes on");
        match event.kind.as_str() {
            "heartbeat" => {}
            "gap" => {
                assert_eq!(event.json()["reason"], "trimmed", "{event:?}");
                gaps.push(seen.len());
            }
            _ => seen.push(number(&event.data).expect("a numbered event")),
        }
    }
    let holes: Vec<usize> = (1..seen.len()).filter(|at| seen[*at] != seen[at - 1] + 1).collect();
    assert!(holes.len() == 1 && seen[0] == 0, "one stretch is gone: {holes:?} in {seen:?}");
    assert_eq!(gaps, holes, "the gap is told where the hole is");
    assert!(total - seen[holes[0]] >= kept, "everything that is kept follows");
    assert_eq!(broker.metrics().get("headwater_gaps_total{reason=\"trimmed\"}"), 1);
}

/// Slow is not dead: as long as something is taken, however long a buffer takes to empty. Seen to fail without
/// `TCP_NOTSENT_LOWAT`, where the kernel reports progress only when a third of megabytes is gone.
async fn a_subscriber_that_makes_slow_progress_is_never_closed(setup: Setup) {
    let setup = Broker::on(setup).await.set("retention.max_length", "10000").set("sse.write_timeout", "2s");
    let broker = setup.start().await;
    let texts: Vec<String> = (0..200).map(numbered).collect();
    for part in texts.chunks(BATCH_EVENTS) {
        broker.http.publish_all("a", part).await;
    }
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let addr = broker.addr;
        readers.spawn(async move {
            let mut reader = Subscribe::to(&["a"]).after("earliest").connect(addr).await;
            // Long enough for a stream that is believed dead to be closed.
            let wait = Wait::until("it has read slowly");
            let start = std::time::Instant::now();
            while start.elapsed() < SLOW_FOR {
                assert!(reader.sip(SIP_BYTES).await, "a slow reader is closed");
                wait.again().await;
            }
            reader.data(200).await
        });
    }
    while let Some(data) = readers.join_next().await {
        assert!(data.expect("a slow reader gets everything") == texts);
    }
}

async fn a_subscriber_without_any_progress_is_closed_and_can_resume(setup: Setup) {
    let setup =
        Broker::on(setup).await.set("retention.max_length", "10000").set("sse.write_timeout", "400ms");
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

both_paths!(
    a_subscriber_that_makes_slow_progress_is_never_closed,
    a_subscriber_that_stops_reading_for_too_long_is_told_what_it_missed,
    a_subscriber_that_stops_reading_is_served_from_the_log_in_bounded_memory,
    a_subscriber_without_any_progress_is_closed_and_can_resume,
);
