//! `headwater_publish_v1`: ids, refusals, idempotency and the floor.
//!
//! The tests were seen to fail with each branch of the function broken: ids compared as Lua numbers or as plain text; no
//! second try above a channel that is ahead, or one in the same millisecond; a ref that stays without its event; poison
//! that is not looked for, or also below the end of the feed, or in single requests only; a wrong type and a wrong record
//! of a key unseen within a request; keys that are forgotten, not marked as duplicates, share a record or count too
//! long; `retry` and `skip` that are not stored; a feed that begins without an epoch or below the floor; a floor that is
//! not looked for, that counts as lost once it is trimmed, and one that no epoch explains.

use super::{DAY_MS, FEED, Functions, Item, Receipt, id, ids, item, key_of, refusal, show};
use crate::support::until;

#[tokio::test]
async fn a_feed_that_has_to_be_created_begins_with_an_epoch_marker() {
    let mut store = Functions::load().await;
    let feed = store.stream(FEED);
    assert_eq!((feed.len(), feed[0].field("mark")), (1, Some("epoch")), "created before serving");
    assert_eq!(store.state("epoch"), Some(show(feed[0].id)));

    store.call(&["FLUSHALL"]);
    let published = store.publish_one(item("orders", "0"));
    let feed = store.stream(FEED);
    assert_eq!(feed.len(), 2);
    assert_eq!((feed[0].field("mark"), feed[1].field("ch")), (Some("epoch"), Some("orders")));
    assert_eq!(feed[1].id, published);
    assert_eq!(store.state("epoch"), Some(show(feed[0].id)));
}

#[tokio::test]
async fn an_event_stands_in_feed_and_channel_under_the_same_id() {
    let mut store = Functions::load().await;
    let mut full = item("orders", "{\"a\":1}");
    (full.format, full.kind, full.retry, full.skip) = ("1j", "tick", "50", "n.1,n.2");
    let first = store.publish_one(full);
    let second = store.publish_one(item("orders", "line\r\n\u{0}line"));
    assert!(second > first);
    let events = store.channel("orders");
    assert_eq!(events.iter().map(|event| event.id).collect::<Vec<_>>(), [first, second]);
    let expected = ["v", "1j", "type", "tick", "data", "{\"a\":1}", "retry", "50", "skip", "n.1,n.2"];
    assert_eq!(events[0].fields, expected, "the mark stands first");
    assert_eq!(events[1].fields, ["v", "1", "type", "message", "data", "line\r\n\u{0}line"]);
    let feed = store.stream(FEED);
    assert_eq!(feed[1].fields, ["ch", "orders", "n", "11"], "type and data count");
    store.assert_feed_and_channels_agree(&["orders"]);

    // What is optional stands behind the rest, whatever else there is.
    for (retry, skip, more) in [("7", "", ["retry", "7"]), ("", "n.1", ["skip", "n.1"])] {
        for length_max in [None, Some(10)] {
            let kept = Item { retry, skip, ..item("optional", "x").kept(length_max, None) };
            store.publish_one(kept);
            let event = store.channel("optional").pop().unwrap();
            assert_eq!(event.fields[..6], ["v", "1", "type", "message", "data", "x"]);
            assert_eq!(event.fields[6..], more);
        }
    }
}

#[tokio::test]
async fn every_request_of_a_call_is_answered_in_order_with_rising_ids() {
    let mut store = Functions::load().await;
    let results = store.publish(&[
        &[item("a", "0"), item("b", "1"), item("a", "2")],
        &[item("c", "3")],
        &[item("b", "4"), item("c", "5")],
    ]);
    assert_eq!(results.iter().map(|result| ids(result).len()).collect::<Vec<_>>(), [3, 1, 2]);
    let all: Vec<_> = results.iter().flat_map(ids).collect();
    assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");
    let refs: Vec<_> = store.refs().into_iter().collect();
    let expected: Vec<_> = all.into_iter().zip(["a", "b", "a", "c", "b", "c"].map(String::from)).collect();
    assert_eq!(refs, expected);
    store.assert_feed_and_channels_agree(&["a", "b", "c"]);
}

#[tokio::test]
async fn a_channel_ahead_of_the_feed_is_met_above_its_last_id_and_leaves_no_orphan() {
    let mut store = Functions::load().await;
    let ahead = (store.now() + 3_600_000, u64::MAX - 1);
    store.xadd("orders", ahead, &["data", "foreign"]);
    let published = store.publish_one(item("orders", "0"));
    assert_eq!(published, (ahead.0 + 1, 0), "the next millisecond, with no arithmetic on the sequence");
    store.assert_feed_and_channels_agree(&["orders"]);
    let next = store.publish(&[&[item("other", "1"), item("orders", "2")]]);
    assert!(ids(&next[0])[0] > published, "the feed never goes back");

    // Once more, now within a request of several.
    let ahead = (ahead.0 + 60_000, 7);
    store.xadd("orders", ahead, &["data", "foreign"]);
    let results = store.publish(&[&[item("other", "3"), item("orders", "4"), item("other", "5")]]);
    assert_eq!(ids(&results[0])[1], (ahead.0 + 1, 0));
    store.assert_feed_and_channels_agree(&["orders", "other"]);
}

#[tokio::test]
async fn a_channel_more_than_a_day_ahead_is_refused_alone_and_lifts_nobody() {
    let mut store = Functions::load().await;
    let now = store.now();
    store.xadd("poisoned", (now + DAY_MS + 3_600_000, 0), &["data", "x"]);
    let results = store.publish(&[
        &[item("fine", "0")],
        &[item("poisoned", "1")],
        &[item("fine", "2"), item("poisoned", "3"), item("other", "4")],
        &[item("fine", "5"), item("other", "6")],
    ]);
    assert_eq!(results[1], refusal("poisoned", "poisoned"));
    assert_eq!(results[2], refusal("poisoned", "poisoned"));
    let last = ids(&results[3])[1];
    assert!(last.0 < now + 3_600_000, "nobody else's ids were lifted: {last:?}");
    assert_eq!(store.channel("fine").len(), 2, "nothing of the refused requests is written");
    assert_eq!(store.channel("poisoned").len(), 1);
    store.assert_feed_and_channels_agree(&["fine", "poisoned", "other"]);
}

#[tokio::test]
async fn a_poison_that_was_deleted_from_its_channel_still_refuses_the_whole_request() {
    let mut store = Functions::load().await;
    let ahead = (store.now() + 2 * DAY_MS, 0);
    store.xadd("poisoned", ahead, &["data", "x"]);
    store.call(&["XDEL", &key_of("poisoned"), &show(ahead)]);
    let results = store.publish(&[&[item("fine", "0"), item("poisoned", "1")], &[item("poisoned", "2")]]);
    assert_eq!(results, [refusal("poisoned", "poisoned"), refusal("poisoned", "poisoned")]);
    assert_eq!(store.channel("fine").len(), 0);
    store.assert_feed_and_channels_agree(&["fine", "poisoned"]);
}

#[tokio::test]
async fn a_clock_that_went_back_by_days_poisons_no_channel() {
    let mut store = Functions::load().await;
    // As a feed looks whose server's clock was two days ahead until a moment ago.
    let ahead = (store.now() + 2 * DAY_MS, 0);
    store.call(&["XADD", FEED, &show(ahead), "mark", "epoch"]);
    let single = store.publish_one(item("orders", "0"));
    assert!(single > ahead, "the feed never goes back: {single:?}");
    store.publish_one(item("orders", "1"));
    let several = store.publish(&[&[item("orders", "2"), item("other", "3")]]);
    assert!(ids(&several[0])[0] > single, "what the functions wrote themselves is no poison");
    store.assert_feed_and_channels_agree(&["orders", "other"]);
}

#[tokio::test]
async fn a_key_that_is_no_stream_refuses_its_request_and_no_other() {
    let mut store = Functions::load().await;
    store.call(&["SET", &key_of("text"), "x"]);
    store.call(&["HSET", &key_of("hash"), "a", "b"]);
    let results = store.publish(&[
        &[item("fine", "0")],
        &[item("text", "1")],
        &[item("fine", "2"), item("hash", "3")],
        &[item("other", "4"), item("fine", "5")],
    ]);
    assert_eq!(results[1], refusal("wrong_type", "text"));
    assert_eq!(results[2], refusal("wrong_type", "hash"));
    assert_eq!((ids(&results[0]).len(), ids(&results[3]).len()), (1, 2));
    let data: Vec<_> = store.channel("fine").iter().map(|event| event.fields[5].clone()).collect();
    assert_eq!(data, ["0", "5"], "nothing of the refused request is written");
    assert_eq!(store.call(&["GET", &key_of("text")]).text(), "x", "what was there stays");
    assert_eq!(store.refs().len(), 3, "no orphan refs");
}

#[tokio::test]
async fn an_idempotency_record_that_is_no_string_refuses_its_request_and_no_other() {
    let mut store = Functions::load().await;
    store.call(&["LPUSH", "hw:{0}:idem:6:orders:k", "x"]);
    let results = store.publish(&[
        &[item("orders", "0").keyed("k")],
        &[item("orders", "1"), item("orders", "2").keyed("k")],
        &[item("orders", "3").keyed("other")],
    ]);
    assert_eq!(results[0], refusal("wrong_type", "orders"));
    assert_eq!(results[1], refusal("wrong_type", "orders"));
    assert_eq!(store.refs().len(), 1);
    assert_eq!(store.channel("orders")[0].field("data"), Some("3"));
}

#[tokio::test]
async fn a_repeated_key_is_one_event_within_a_request_a_call_and_across_calls() {
    let mut store = Functions::load().await;
    let keyed = |data: &str| item("orders", data).keyed("k");
    let results = store.publish(&[&[keyed("0"), item("orders", "1"), keyed("2")], &[keyed("3")]]);
    let first = ids(&results[0])[0];
    let duplicate = Receipt { id: first, duplicate: true };
    assert_eq!(results[0].as_ref().unwrap()[2], duplicate, "within a request");
    assert_eq!(results[1], Ok(vec![duplicate.clone()]), "within a call");
    assert_eq!(store.publish(&[&[keyed("4")]])[0], Ok(vec![duplicate.clone()]), "across calls");
    assert_eq!(
        store.publish(&[&[keyed("5"), keyed("6")]])[0],
        Ok(vec![duplicate.clone(), duplicate.clone()]),
        "a request of nothing but duplicates"
    );
    assert_eq!(store.channel("orders").len(), 2);
    store.assert_feed_and_channels_agree(&["orders"]);

    store.fcall("headwater_purge_v1", &["orders", &show(first), ""]);
    assert_eq!(store.publish(&[&[keyed("7")]])[0], Ok(vec![duplicate]), "keys survive purges");
}

#[tokio::test]
async fn a_key_counts_in_its_channel_and_its_window_only() {
    let mut store = Functions::load().await;
    let results = store.publish(&[
        &[item("a:b", "0").keyed("c"), item("a", "1").keyed("b:c")],
        &[item("a", "2").keyed("c"), item("b", "3").keyed("c")],
    ]);
    assert!(results.iter().flat_map(|result| result.as_ref().unwrap()).all(|receipt| !receipt.duplicate));

    let mut brief = item("brief", "0").keyed("k");
    brief.window_ms = 1_000;
    let first = store.publish_one(brief.clone());
    let ttl = store.number(&["PTTL", "hw:{0}:idem:5:brief:k"]);
    assert!((1..=1_000).contains(&ttl), "{ttl}");
    until("the window ends", async || {
        (store.number(&["EXISTS", "hw:{0}:idem:5:brief:k"]) == 0).then_some(())
    })
    .await;
    let again = store.publish(&[&[brief]]).remove(0).unwrap().remove(0);
    assert!(again.id > first && !again.duplicate);
}

#[tokio::test]
async fn a_floor_that_the_feed_holds_or_has_trimmed_or_began_after_passes() {
    let mut store = Functions::load().await;
    let floor = store.publish_one(item("orders", "0"));
    let next = store.try_publish(&show(floor), &[&[item("orders", "1")]]).unwrap();
    assert!(ids(&next[0])[0] > floor, "the feed holds it");

    store.call(&["XTRIM", FEED, "MAXLEN", "1"]);
    let trimmed = store.try_publish(&show(floor), &[&[item("orders", "2")]]).unwrap();
    assert!(ids(&trimmed[0])[0] > floor, "older than the first ref");

    let lost = (ids(&trimmed[0])[0].0 + 5_000, 0);
    store.fcall("headwater_reset_v1", &[&show(lost), super::NO_FLOOR]);
    let after = store.try_publish(&show(lost), &[&[item("orders", "3")]]).unwrap();
    assert!(ids(&after[0])[0] > lost, "an epoch says that it was lost");
}

#[tokio::test]
async fn a_floor_that_is_missing_refuses_the_call_and_writes_nothing() {
    let mut store = Functions::load().await;
    let last = store.publish_one(item("orders", "0"));
    // As after a failover to a replica that had not got the last ref.
    for missing in [(last.0 + 1, 0), (last.0, last.1 + 1), (last.0 + 3_600_000, 0)] {
        let refused = store.try_publish(&show(missing), &[&[item("orders", "1")], &[item("other", "2")]]);
        let error = refused.unwrap_err();
        assert_eq!(error, format!("HWROLLEDBACK the feed does not hold {}", show(missing)));
    }
    assert_eq!(store.refs().len(), 1);
    assert_eq!((store.channel("orders").len(), store.channel("other").len()), (1, 0));
}

#[tokio::test]
async fn after_a_flush_ids_go_on_above_a_floor_that_is_ahead_of_the_clock() {
    let mut store = Functions::load().await;
    let floor = (store.now() + 10 * DAY_MS, 42);
    store.call(&["FLUSHALL"]);
    let results = store.try_publish(&show(floor), &[&[item("orders", "0"), item("other", "1")]]).unwrap();
    let feed = store.stream(FEED);
    assert_eq!(feed[0].fields, ["mark", "epoch"]);
    assert_eq!(feed[0].id, (floor.0 + 1, 0), "the epoch lies above the floor");
    assert_eq!(store.state("epoch"), Some(show(feed[0].id)));
    assert_eq!(feed.len(), 3, "the marker that was taken back is gone");
    assert!(ids(&results[0])[0] > feed[0].id);
    store.assert_feed_and_channels_agree(&["orders", "other"]);
}

#[tokio::test]
async fn ids_are_compared_beyond_what_a_lua_number_holds() {
    let mut store = Functions::load().await;
    // As text 10 comes before 9, and 2^53 and 2^53 + 1 are the same Lua number.
    let (ms, floor) = (store.now() + 3_600_000, 9_007_199_254_740_992);
    for seq in [9, floor] {
        let before = show((ms, seq));
        store.call(&["XADD", FEED, &before, "mark", "epoch"]);
        let marker = store.fcall("headwater_purge_v1", &["other", &before, ""]).text().to_owned();
        assert_eq!(id(&marker), (ms, seq + 1), "the next id lies above the floor and is not taken back");
        store.call(&["XTRIM", FEED, "MAXLEN", "1"]);
        store.try_publish(&before, &[]).expect("a floor right before the first ref was trimmed, not lost");
    }
    store.xadd("orders", (ms, floor + 2), &["data", "x"]);
    let published = store.publish_one(item("orders", "0"));
    assert_eq!(id(&show(published)), (ms + 1, 0));
    let missing = format!("{published_ms}-9007199254740993", published_ms = published.0);
    let error = store.try_publish(&missing, &[&[item("orders", "1")]]).unwrap_err();
    assert!(error.starts_with("HWROLLEDBACK"), "{error}");
    store.assert_feed_and_channels_agree(&["orders"]);
}
