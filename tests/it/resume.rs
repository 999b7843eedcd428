//! The resume property: clients that lose their connection anywhere, all the time, while others publish, get over
//! all their connections exactly what was published, in order, once.

use std::sync::Arc;

use crate::support::{Broker, Fleet, Redis, Setup, Streams, Subscribe, Writers, read_log, seeded};

const CHANNELS: [&str; 6] = ["a", "b", "c", "d/e", "f.g", "日本"];

/// Broken to see it fail: channels that are not merged by id; events written although another channel of the
/// partition may hold earlier ones; a ring that forgets that it dropped frames.
async fn clients_cut_at_any_byte_get_everything_once_and_in_order(setup: Setup) {
    let mut rng = seeded();
    // Small rings and pages: replay, the hand-over to live, and falling behind all happen often.
    let setup = Broker::on(setup).await.set("retention.max_length", "100000").set("fanout.ring_events", "16");
    let broker = setup.set("sse.heartbeat_interval", "100ms").start().await;
    let cursor = broker.http.cursor(&CHANNELS.join(",")).await;
    let nodes = [broker.addr];
    let fleet = Fleet::start(&nodes, &CHANNELS, 8, &cursor, &mut rng);
    let writers = Writers::start(&nodes, &CHANNELS, (4, 250), &mut rng);
    let ledger = writers.done().await;
    let (log, fence) = read_log(broker.addr, &CHANNELS).await;
    assert!(log.len() > 1_000, "every publish was acknowledged");
    let received = fleet.prove(&ledger, &log, &fence).await;
    assert!(received > log.len(), "the readers did read");
}

async fn clients_that_change_the_node_with_every_connection_get_everything_once(streams: Streams) {
    let mut rng = seeded();
    let redis = Arc::new(Redis::start().await);
    let node = || {
        let node = Broker::on_redis(&redis).streams(streams).set("retention.max_length", "100000");
        node.set("sse.heartbeat_interval", "100ms")
    };
    let (one, two) = tokio::join!(node().start(), node().start());
    let nodes = [one.addr, two.addr];
    let cursor = one.http.cursor("a").await;
    let fleet = Fleet::start(&nodes, &CHANNELS, 8, &cursor, &mut rng);
    let ledger = Writers::start(&nodes, &CHANNELS, (4, 250), &mut rng).done().await;
    let (log, fence) = read_log(two.addr, &CHANNELS).await;
    fleet.prove(&ledger, &log, &fence).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_publishes_reaches_the_subscribers_of_the_other() {
    let redis = Arc::new(Redis::start().await);
    let (one, two) = tokio::join!(Broker::on_redis(&redis).start(), Broker::on_redis(&redis).start());
    let mut reader = Subscribe::to(&["a"]).connect(one.addr).await;
    let far = two.http.publish("a", "from far").await;
    let near = one.http.publish("a", "from near").await;
    let events = reader.events(2).await;
    assert_eq!((&events[0].last_event_id, &events[1].last_event_id), (&far.id, &near.id));
}

both_paths!(clients_cut_at_any_byte_get_everything_once_and_in_order);
both_streams!(clients_that_change_the_node_with_every_connection_get_everything_once);
