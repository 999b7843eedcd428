//! The functions on a server that is full, was restarted, or is a replica.
//!
//! The tests were seen to fail without each `no-writes` and each `allow-oom`, with `allow-oom` where something is
//! published, and, over a restart, with keys that are forgotten.

use super::{FEED, Functions, NO_FLOOR, ids, item, show};
use crate::support::resp::{Reply, Resp};
use crate::support::{Redis, until};

impl Functions {
    fn used_memory(&mut self) -> u64 {
        let info = self.call(&["INFO", "memory"]);
        let line = info.text().lines().find_map(|line| line.strip_prefix("used_memory:"));
        line.expect("the server tells").trim().parse().expect("a number of bytes")
    }

    fn limit_memory(&mut self, bytes: u64) {
        self.call(&["CONFIG", "SET", "maxmemory", &bytes.to_string()]);
    }

    /// How many refs, entries and keys there are.
    fn extent(&mut self) -> (i64, i64, i64) {
        let length = |store: &mut Self, key: &str| store.number(&["XLEN", key]);
        (length(self, FEED), length(self, &super::key_of("orders")), self.number(&["DBSIZE"]))
    }
}

#[tokio::test]
async fn a_full_server_refuses_a_publish_as_a_whole_and_still_reads_and_purges() {
    let mut store = Functions::load().await;
    let items: Vec<_> = (0..100).map(|_| item("orders", &"x".repeat(20_000))).collect();
    store.publish(&[&items]);
    let (before, used) = (store.extent(), store.used_memory());
    store.limit_memory(used / 2);
    for requests in
        [&[&[item("orders", "0")][..]][..], &[&[item("orders", "1"), item("new", "2").keyed("k")]]]
    {
        let error = store.try_publish(NO_FLOOR, requests).unwrap_err();
        assert!(error.starts_with("OOM "), "{error}");
    }
    let error = store.refused("headwater_publish", &["orders", "tick", "x", "key"]);
    assert!(error.starts_with("OOM "), "{error}");
    let error = store.refused("headwater_adopt_v1", &["orders", "0-0", NO_FLOOR, "", ""]);
    assert!(error.starts_with("OOM "), "{error}");
    assert_eq!(store.extent(), before, "nothing was written");

    let page =
        store.fcall("headwater_read_v1", &["orders", "0-0", "99999999999999-0", "asc", "5", "1000000", ""]);
    assert_eq!(page.items()[7].items().len(), 5);
    let counted = store.fcall("headwater_count_v1", &["orders", "-", "+"]);
    assert!(matches!(counted.items(), [Reply::Int(100), _]), "{counted:?}");
    store.fcall("headwater_tail_v1", &[NO_FLOOR]);
    store.fcall("headwater_reset_v1", &[NO_FLOOR, NO_FLOOR]);
    store.fcall("headwater_channels_v1", &["0", "*", "10"]);
    store.fcall("headwater_purge_v1", &["orders", NO_FLOOR, ""]);
    store.publish_one(item("orders", "there is room again"));
    assert_eq!(store.extent().1, 1);
}

#[tokio::test]
async fn a_call_that_fills_the_server_is_finished() {
    let mut store = Functions::load().await;
    store.publish_one(item("orders", "0"));
    let used = store.used_memory();
    // A channel takes far more memory than the words that create it, which count too.
    let names: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
    let items: Vec<_> = names.iter().map(|name| item(name, "x")).collect();
    let limit = used + 2_000_000;
    store.limit_memory(limit);
    let results = store.publish(&[&items, &[item("orders", "last"), item("0", "last")]]);
    assert_eq!((ids(&results[0]).len(), ids(&results[1]).len()), (1_000, 2), "all or nothing, so all");
    assert!(store.used_memory() > limit, "it went over the limit on the way");
    let names: Vec<&str> = names.iter().map(String::as_str).chain(["orders"]).collect();
    store.assert_feed_and_channels_agree(&names);
    let error = store.try_publish(NO_FLOOR, &[&[item("orders", "one more")]]).unwrap_err();
    assert!(error.starts_with("OOM "), "{error}");
}

#[tokio::test]
async fn functions_and_events_are_there_after_a_restart_from_the_append_only_file() {
    survive(Redis::durable().await, &[]).await;
}

#[tokio::test]
async fn functions_and_events_are_there_after_a_restart_from_a_snapshot() {
    survive(Redis::start().await, &["SAVE"]).await;
}

async fn survive(redis: Redis, before_the_end: &[&str]) {
    let mut store = Functions::load_on(redis);
    let first = store.publish_one(item("orders", "0").keyed("k"));
    if !before_the_end.is_empty() {
        store.call(before_the_end);
    }
    store.redis.kill9();
    store.redis.restart().await;
    store.resp = Resp::connect(store.redis.port());
    let again = store.try_publish(&show(first), &[&[item("orders", "0").keyed("k")]]).unwrap();
    assert!(again[0].as_ref().unwrap()[0].duplicate);
    let next = store.try_publish(&show(first), &[&[item("orders", "1")]]).unwrap();
    assert!(ids(&next[0])[0] > first);
    assert!(store.fcall("headwater_publish", &["orders", "tick", "2"]).text() > show(first).as_str());
    assert_eq!(store.epochs().len(), 1, "nothing was lost, and nothing says so");
    store.assert_feed_and_channels_agree(&["orders"]);
}

#[tokio::test]
async fn a_replica_reads_and_refuses_everything_else() {
    let mut store = Functions::load().await;
    let published = store.publish_one(item("orders", "0"));
    let replica = Redis::start().await;
    let mut at_replica = Resp::connect(replica.port());
    at_replica.call(&["REPLICAOF", "127.0.0.1", &store.redis.port().to_string()]);
    until("the replica has caught up", async || {
        let refs = at_replica.try_call(&["XLEN", FEED]);
        (refs == Reply::Int(2)).then_some(())
    })
    .await;
    let primary = std::mem::replace(&mut store.resp, at_replica);

    let error = store.try_publish(NO_FLOOR, &[&[item("orders", "1")]]).unwrap_err();
    assert!(error.starts_with("READONLY "), "{error}");
    for (function, args) in [
        ("headwater_publish", &["orders", "tick", "x"][..]),
        ("headwater_tail_v1", &[NO_FLOOR]),
        ("headwater_reset_v1", &[NO_FLOOR, NO_FLOOR]),
        ("headwater_purge_v1", &["orders", NO_FLOOR, ""]),
        ("headwater_channels_v1", &["0", "*", "10"]),
        ("headwater_adopt_v1", &["orders", "0-0", NO_FLOOR, "", ""]),
    ] {
        let error = store.refused(function, args);
        assert!(error.starts_with("READONLY "), "{function}: {error}");
    }
    let page =
        store.fcall("headwater_read_v1", &["orders", "0-0", "99999999999999-0", "asc", "5", "1000", ""]);
    assert_eq!(page.items()[0].text(), show(published), "the replica's own end of the feed");

    // What the functions did arrives there as it was done here: the same ids, not calls that run again.
    let replica = std::mem::replace(&mut store.resp, primary);
    let several = store.publish(&[&[item("orders", "1"), item("other", "2").keyed("k")]]);
    store.fcall("headwater_purge_v1", &["orders", NO_FLOOR, ""]);
    let last = store.publish_one(item("orders", "3"));
    let feed = store.stream(FEED);
    store.resp = replica;
    until("the replica has caught up again", async || (store.stream(FEED) == feed).then_some(())).await;
    assert_eq!(store.channel("other")[0].id, ids(&several[0])[1]);
    assert_eq!(store.channel("orders").iter().map(|event| event.id).collect::<Vec<_>>(), [last]);
}
