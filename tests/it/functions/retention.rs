//! What the functions remove: by length, by age, by expiry, and the feed's own refs.
//!
//! The tests were seen to fail without each kind of trimming and without the minimum, the age and the cap of the feed;
//! with an expiry that is not set, renewed on every publish or kept when the policy has none; without the listing, and
//! with one that fails the call.

use super::{CHANNELS, DAY_MS, FEED, Functions, Id, id, item, key_of, show};
use crate::support::resp::Reply;
use crate::support::until;

/// Refs that are kept however old they are.
const FEED_LENGTH_MIN: usize = 100_000;
/// Refs that are kept however young they are.
const FEED_LENGTH_MAX: i64 = 5_000_000;
/// Age until which a ref is kept.
const FEED_AGE_MS: u64 = 60_000;

#[tokio::test]
async fn at_least_the_length_and_up_to_200_more_of_the_newest_are_kept() {
    let mut store = Functions::load().await;
    for (channel, length_max) in [("one", 1), ("some", 100), ("more", 777)] {
        let mut all = Vec::new();
        for _ in 0..20 {
            let batch: Vec<_> = (0..80).map(|_| item(channel, "x").kept(Some(length_max), None)).collect();
            all.extend(super::ids(&store.publish(&[&batch])[0]));
        }
        let kept: Vec<Id> = store.channel(channel).iter().map(|event| event.id).collect();
        let least = usize::try_from(length_max).unwrap();
        assert!((least..=least + 200).contains(&kept.len()), "{channel} keeps {}", kept.len());
        assert_eq!(kept, all[all.len() - kept.len()..], "the newest");
    }
}

#[tokio::test]
async fn what_is_older_than_the_age_is_gone_to_the_millisecond() {
    let mut store = Functions::load().await;
    let age = 60_000;
    let cut = store.now() - age;
    let old: Vec<Id> = (cut - 300..cut + 3_000).map(|ms| (ms, 0)).collect();
    for id in &old {
        store.resp.push(&["XADD", &key_of("orders"), &show(*id), "v", "1", "type", "t", "data", "d"]);
    }
    store.resp.flush();
    for _ in &old {
        assert_ne!(store.resp.receive(), Reply::Nil);
    }
    let newest = store.publish_one(item("orders", "new").kept(None, Some(age)));
    let kept: Vec<Id> = store.channel("orders").iter().map(|event| event.id).collect();
    let expected: Vec<Id> = old.into_iter().filter(|id| id.0 >= newest.0 - age).chain([newest]).collect();
    assert_eq!(kept, expected);
    assert!(kept.len() < 3_300, "something was old enough to go");
}

#[tokio::test]
async fn a_channel_expires_a_tenth_after_its_newest_event_is_too_old() {
    let mut store = Functions::load().await;
    let hour = 3_600_000;
    store.publish_one(item("orders", "0").kept(None, Some(hour)));
    let ttl = store.number(&["PTTL", &key_of("orders")]);
    assert!((3_900_000..=3_961_000).contains(&ttl), "{ttl}");
    assert_eq!(store.number(&["SISMEMBER", CHANNELS, "orders"]), 1);

    let expires_at = store.number(&["PEXPIRETIME", &key_of("orders")]);
    let published_at = store.now();
    until("the clock moves on", async || (store.now() > published_at + 1).then_some(())).await;
    store.publish_one(item("orders", "1").kept(None, Some(hour)));
    let renewed = store.number(&["PEXPIRETIME", &key_of("orders")]);
    assert_eq!(renewed, expires_at, "not renewed while it is enough");
    store.call(&["PEXPIRE", &key_of("orders"), "3599000"]);
    store.publish_one(item("orders", "2").kept(None, Some(hour)));
    let ttl = store.number(&["PTTL", &key_of("orders")]);
    assert!(ttl > 3_900_000, "renewed when it would end before the event does: {ttl}");
}

#[tokio::test]
async fn a_channel_follows_when_its_policy_changes() {
    let mut store = Functions::load().await;
    let key = key_of("orders");
    let publish = |store: &mut Functions, age: Option<u64>| {
        store.publish_one(item("orders", "x").kept(None, age));
        store.number(&["PTTL", &key])
    };
    assert_eq!(publish(&mut store, None), -1, "no age, no expiry");
    assert_eq!(store.number(&["SISMEMBER", CHANNELS, "orders"]), 1);
    assert!(publish(&mut store, Some(3_600_000)) > 3_600_000, "an age was set");
    assert!(publish(&mut store, Some(2 * DAY_MS)) > 2 * 86_400_000, "a longer one");
    assert!(publish(&mut store, Some(3_600_000)) >= 3_600_000, "a shorter one");
    assert_eq!(publish(&mut store, None), -1, "the age was taken away");
    assert_eq!(store.channel("orders").len(), 5);
}

#[tokio::test]
async fn a_name_is_listed_again_when_its_channel_comes_back() {
    let mut store = Functions::load().await;
    for age in [None, Some(3_600_000)] {
        store.publish_one(item("orders", "0").kept(None, age));
        store.call(&["DEL", &key_of("orders"), CHANNELS]);
        store.publish_one(item("orders", "1").kept(None, age));
        assert_eq!(store.number(&["SISMEMBER", CHANNELS, "orders"]), 1, "{age:?}");
    }
    store.xadd("foreign", (1, 1), &["data", "x"]);
    assert_eq!(store.number(&["SISMEMBER", CHANNELS, "foreign"]), 0);
    store.publish_one(item("foreign", "1"));
    assert_eq!(store.number(&["SISMEMBER", CHANNELS, "foreign"]), 1);
}

#[tokio::test]
async fn a_listing_that_is_no_set_fails_no_publish() {
    let mut store = Functions::load().await;
    store.call(&["SET", CHANNELS, "x"]);
    store.publish(&[&[item("orders", "0"), item("other", "1")]]);
    assert_eq!((store.channel("orders").len(), store.channel("other").len()), (1, 1));
    store.assert_feed_and_channels_agree(&["orders", "other"]);
}

#[tokio::test]
async fn old_refs_above_100_000_go_and_young_ones_stay() {
    let mut store = Functions::load().await;
    let now = store.now();
    store.call(&["DEL", FEED]);
    fill_feed(&mut store, now - 3_600_000, 102_000);
    let young: Vec<Id> = (0..500).map(|i| (now - 30_000 + i, 0)).collect();
    for id in &young {
        store.call(&["XADD", FEED, &show(*id), "ch", "c", "n", "1"]);
    }
    // The epoch that the feed had lies above what was filled in, so no floor is asked for.
    let published = store.publish_one(item("orders", "0"));
    let ids: Vec<Id> = store.refs().iter().map(|(id, _)| *id).collect();
    let (gone, least) = (102_501 - ids.len(), FEED_LENGTH_MIN);
    assert!((least..=least + 200).contains(&ids.len()), "{} are left", ids.len());
    assert!(gone > 2_000 && ids.ends_with(&[&young[..], &[published]].concat()), "the oldest {gone} went");

    // All of it young: nothing goes, however many there are.
    store.call(&["DEL", FEED]);
    let now = store.now();
    fill_feed(&mut store, now, 102_000);
    store.publish_one(item("orders", "1"));
    assert_eq!(store.number(&["XLEN", FEED]), 102_001);
    assert!(store.now() < now + FEED_AGE_MS, "the machine was too slow to tell");
}

#[tokio::test]
async fn a_feed_is_trimmed_no_further_than_what_is_young() {
    let mut store = Functions::load().await;
    let now = store.now();
    store.call(&["DEL", FEED]);
    fill_feed(&mut store, now - 3_600_000, 500);
    fill_feed(&mut store, now, 102_000);
    store.publish_one(item("orders", "0"));
    let ids: Vec<Id> = store.refs().iter().map(|(id, _)| *id).collect();
    assert_eq!(ids.len(), 102_001, "the old refs went, whole nodes of them, and no young one");
    assert!(ids[0].0 >= now);
}

#[tokio::test]
async fn a_feed_has_a_cap_however_young_its_refs_are() {
    let mut store = Functions::load().await;
    let now = store.now();
    store.call(&["DEL", FEED]);
    let mut length = 0;
    while length < FEED_LENGTH_MAX + 500 {
        fill_feed(&mut store, now + 1 + u64::try_from(length).unwrap(), 250_000);
        length += 250_000;
    }
    // One call removes at most 10,000 refs, so that no call takes long.
    let published = store.publish_one(item("orders", "0"));
    let left = store.number(&["XLEN", FEED]);
    assert!(left <= length + 1 - 9_000 && left > length - 11_000, "{left} of {length}");
    let last = store.call(&["XREVRANGE", FEED, "+", "-", "COUNT", "1"]);
    assert_eq!(id(last.items()[0].items()[0].text()), published);
}

/// Adds `count` refs of one millisecond.
fn fill_feed(store: &mut Functions, ms: u64, count: usize) {
    let script = "for i = 1, tonumber(ARGV[2]) do \
                    redis.call('XADD', KEYS[1], ARGV[1] .. '-' .. i, 'ch', 'c', 'n', '1') \
                  end";
    store.call(&["EVAL", script, "1", FEED, &ms.to_string(), &count.to_string()]);
}
