//! Crashes: the broker, or Redis, is killed without warning while several writers publish. What was acknowledged is
//! there afterwards, and every client resumes exactly.

use std::sync::Arc;

use crate::support::{
    Broker, Fleet, Redis, Setup, Store, Streams, Subscribe, Writers, read_log, seeded, until,
};

const CHANNELS: [&str; 4] = ["a", "b", "c", "d"];

async fn a_killed_broker_loses_nothing_that_it_acknowledged(setup: Setup) {
    let mut rng = seeded();
    let mut broker = Broker::on(setup).await.set("retention.max_length", "100000").start().await;
    let nodes = [broker.addr];
    let cursor = broker.http.cursor("a,b,c,d").await;
    let fleet = Fleet::start(&nodes, &CHANNELS, 4, &cursor, &mut rng);
    let writers = Writers::start(&nodes, &CHANNELS, (4, 200), &mut rng);
    for kill in 1..=3 {
        until("a part of the events is acknowledged", async || {
            (writers.acknowledged() >= kill * 180).then_some(())
        })
        .await;
        broker.kill9();
        broker.restart().await;
    }
    let ledger = writers.done().await;
    let (log, fence) = read_log(broker.addr, &CHANNELS).await;
    fleet.prove(&ledger, &log, &fence).await;
}

/// Broken to see it fail: a call to the log that failed and is acknowledged all the same.
async fn a_killed_redis_that_writes_before_it_answers_loses_nothing(streams: Streams) {
    let mut rng = seeded();
    let redis = Arc::new(Redis::durable().await);
    let broker =
        Broker::on_redis(&redis).streams(streams).set("retention.max_length", "100000").start().await;
    let nodes = [broker.addr];
    let cursor = broker.http.cursor("a,b,c,d").await;
    let mut steady = Subscribe::to(&CHANNELS).connect(broker.addr).await;
    let fleet = Fleet::start(&nodes, &CHANNELS, 4, &cursor, &mut rng);
    let writers = Writers::start(&nodes, &CHANNELS, (4, 200), &mut rng);
    for kill in 1..=2 {
        until("a part of the events is acknowledged", async || {
            (writers.acknowledged() >= kill * 150).then_some(())
        })
        .await;
        redis.kill9();
        redis.restart().await;
        // Writers are refused meanwhile; the next kill must hit writers at work again.
        let key = format!("after kill {kill}");
        broker.http.publish_surely("probe", &key, "probe").await;
    }
    let ledger = writers.done().await;
    let (log, fence) = read_log(broker.addr, &CHANNELS).await;
    let events = steady.events(log.len() - 1).await;
    let expected: Vec<&str> = log[..log.len() - 1].iter().map(|stored| stored.id.as_str()).collect();
    let got: Vec<&str> = events.iter().map(|event| event.last_event_id.as_str()).collect();
    assert_eq!(got, expected, "a session that stayed got the same");
    fleet.prove(&ledger, &log, &fence).await;
}

/// A killed process takes nothing from the kernel's buffers along, a power cut does; so the calls are counted.
/// Broken to see it fail: a commit that does not sync.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledgement_of_the_embedded_log_waited_for_the_disk() {
    let broker = Broker::on(Store::Embedded).await.traced("fsync,fdatasync").start().await;
    let mut syncs = broker.traced_calls();
    for number in 0..20 {
        broker.http.publish("a", number).await;
        let now = broker.traced_calls();
        assert!(now > syncs, "publish {number} was acknowledged without a sync");
        syncs = now;
    }
}

both_paths!(a_killed_broker_loses_nothing_that_it_acknowledged);
both_streams!(a_killed_redis_that_writes_before_it_answers_loses_nothing);
