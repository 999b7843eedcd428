//! The layout in Redis: created once, restored when a server lost its functions, and refused when it is newer or
//! other than this binary expects.

use std::sync::Arc;

use crate::support::broker::{command, ended};
use crate::support::{Broker, Redis, Subscribe, Writers, seeded};

async fn serve(redis: &Redis, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = command(&["serve", "--listen", "127.0.0.1:0", "--redis", &redis.url()]);
    command.envs(environment.iter().copied());
    let output = ended(command).await;
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Seen to fail with any layout accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_layout_and_another_number_of_partitions_are_refused_in_words() {
    let redis = Arc::new(Redis::start().await);
    drop(Broker::on_redis(&redis).start().await);
    let (code, told) = serve(&redis, &[("HEADWATER_REDIS__PARTITIONS", "3")]).await;
    assert_eq!(code, Some(64), "{told}");
    assert!(told.contains("created with 1 partition(s), redis.partitions says 3"), "{told}");
    redis.command(&["HSET", "hw:meta", "layout", "99"]).await;
    let (code, told) = serve(&redis, &[]).await;
    assert_eq!(code, Some(64), "{told}");
    assert!(told.contains("layout 99") && told.contains("newer release"), "{told}");
}

/// Seen to fail when the role is not looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_refused_in_words() {
    let primary = Redis::start().await;
    let replica = Redis::with(&[("replicaof", &format!("127.0.0.1 {}", primary.port()))]).await;
    let (code, told) = serve(&replica, &[]).await;
    assert_eq!(code, Some(64), "{told}");
    assert!(told.contains("is a replica"), "{told}");
}

/// Seen to fail when each node begins history anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_together_make_one_layout() {
    let redis = Arc::new(Redis::start().await);
    let start = || Broker::on_redis(&redis).start();
    let nodes = tokio::join!(start(), start(), start(), start());
    let mut reader = Subscribe::to(&["a"]).connect(nodes.0.addr).await;
    for node in [&nodes.1, &nodes.2, &nodes.3] {
        node.http.publish("a", "x").await;
    }
    assert_eq!(reader.data(3).await.len(), 3);
    let markers = redis.command(&["XRANGE", "hw:{0}:feed", "-", "+"]).await;
    let epochs = markers.items().iter().filter(|entry| format!("{entry:?}").contains("epoch")).count();
    assert_eq!(epochs, 1, "history began once");
}

/// Seen to fail when they are loaded at start only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_that_a_server_lost_are_loaded_again() {
    let redis = Arc::new(Redis::start().await);
    let broker = Broker::on_redis(&redis).start().await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    redis.command(&["FUNCTION", "FLUSH"]).await;
    broker.http.publish("a", "published").await;
    assert_eq!(reader.one().await, "published");
    redis.command(&["FUNCTION", "FLUSH"]).await;
    assert_eq!(broker.http.history("a").await.len(), 1);
}

/// Seen to fail with a cursor of the event's own partition only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_several_partitions_clients_get_everything_once_too() {
    let mut rng = seeded();
    let redis = Arc::new(Redis::start().await);
    let channels = ["a", "b", "c", "d", "e", "f"];
    let node = || {
        let node = Broker::on_redis(&redis).set("redis.partitions", "3");
        node.set("retention.max_length", "100000").set("sse.heartbeat_interval", "100ms")
    };
    let (one, two) = tokio::join!(node().start(), node().start());
    let nodes = [one.addr, two.addr];
    // Every partition is named by the cursor, so that it is exact in each.
    let cursor = one.http.cursor(&channels.join(",")).await;
    let mut reader = Subscribe::to(&channels).after(&cursor).connect(one.addr).await;
    let ledger = Writers::start(&nodes, &channels, (3, 150), &mut rng).done().await;
    let mut expected = Vec::new();
    for channel in channels {
        expected.extend(two.http.history(channel).await.into_iter().map(|stored| stored.data));
    }
    assert_eq!(expected.len(), ledger.acknowledged(), "every publish was acknowledged and is there");
    let mut got = reader.data(expected.len()).await;
    got.sort_unstable();
    expected.sort_unstable();
    assert_eq!(got, expected);
    let resumed_at = reader.last_event_id().to_owned();
    assert_eq!(resumed_at.split('.').count(), cursor.split('.').count(), "one id per partition");
    two.http.publish("a", "later").await;
    let mut resumed = Subscribe::to(&channels).after(&resumed_at).connect(two.addr).await;
    assert_eq!(resumed.one().await, "later", "nothing is repeated");
}
