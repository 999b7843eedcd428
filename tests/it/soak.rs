//! The same again and again: connect, subscribe, publish, receive, leave. Whatever a cycle leaves behind adds up,
//! and shows in the memory of the broker.
//!
//! `make test` runs some thousands of cycles, `make soak` 200,000 against a release build; the code is the same.

use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::iter;

use crate::support::{Broker, Store, Subscribe, until};

/// Cycles unless `HEADWATER_SOAK_CYCLES` says otherwise.
const CYCLES: usize = 10_000;
/// Clients at a time.
const AT_A_TIME: usize = 32;
/// Channels in turn.
const CHANNELS: usize = 50;
/// Memory is looked at so many times.
const LOOKS: usize = 20;
/// The first looks see caches, rings and the allocator's arenas fill.
const WARM_UP: usize = 4;
/// How many looks make one figure, by their median: one of them may see what the system does meanwhile.
const LOOKS_A_FIGURE: usize = 5;
/// Memory at the end, compared with that after the warm-up; what the allocator keeps for later changes it by a few
/// per cent. Of what a cycle leaves behind, the short soak notices a kilobyte on Redis (a broker of 20 MiB), the long
/// one 30 bytes, and 300 on the embedded log. That no session, topic or task stays, the harness counts besides.
const RATIO_MAX: f64 = 1.2;
/// The embedded log's cache and memory tables are full after some 400,000 cycles only, whatever the broker does.
const CACHES_BYTES: u64 = (16 + 2 * 8) * 1024 * 1024;

/// One client's life: it leaves in one of three ways.
async fn cycle(broker: &Broker, number: usize) {
    let channel = format!("soak-{}", number % CHANNELS);
    let subscribe = Subscribe::to(&[&channel, "quiet"]).query("filters", &format!(r#"{{"n":{number}}}"#));
    let mut reader = subscribe.query("envelope", ["0", "1"][number % 2]).connect(broker.addr).await;
    broker.http.publish(&channel, serde_json::json!({ "n": number })).await;
    let data = reader.one().await;
    assert!(
        data.contains(&format!("{{\"n\":{number}}}")),
        "event {number} is filtered from all others: {data}"
    );
    match number % 3 {
        0 => reader.reset(),
        1 => {
            reader.end_sending().await;
            reader.end().await;
        }
        _ => {}
    }
}

fn median(looks: &[u64]) -> u64 {
    let mut sorted = looks.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// Seen to fail with a session that stays registered when it is dropped.
async fn memory_is_flat_over_many_cycles(store: Store) {
    let given = std::env::var("HEADWATER_SOAK_CYCLES").ok();
    let cycles = given.map_or(CYCLES, |text| text.parse().expect("HEADWATER_SOAK_CYCLES is a number"));
    let broker = Broker::start(store).await;
    let (begun, mut looks) = (Instant::now(), Vec::new());
    for look in 0..LOOKS {
        let numbers = cycles * look / LOOKS..cycles * (look + 1) / LOOKS;
        iter(numbers)
            .map(|number| cycle(&broker, number))
            .buffer_unordered(AT_A_TIME)
            .collect::<Vec<_>>()
            .await;
        until("every client is forgotten", async || {
            let now = broker.metrics();
            (now.get("headwater_event_streams") == 0 && now.get("headwater_filters") == 0).then_some(())
        })
        .await;
        looks.push(broker.rss_bytes());
    }
    let (seconds, mib): (_, Vec<u64>) =
        (begun.elapsed().as_secs_f64(), looks.iter().map(|bytes| bytes / 1024 / 1024).collect());
    let (first, last) = (&looks[WARM_UP..WARM_UP + LOOKS_A_FIGURE], &looks[LOOKS - LOOKS_A_FIGURE..]);
    let caches = if store == Store::Embedded { CACHES_BYTES } else { 0 };
    let ratio = median(last).saturating_sub(caches) as f64 / median(first) as f64;
    eprintln!("{store:?}: {cycles} cycles in {seconds:.1} s; MiB {mib:?}; ratio {ratio:.3}");
    assert!(ratio < RATIO_MAX, "memory grows: {mib:?} MiB over {cycles} cycles");
}

both_stores!(memory_is_flat_over_many_cycles);
