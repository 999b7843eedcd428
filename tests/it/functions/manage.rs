//! Tail, reset, purge, listing and adoption.
//!
//! The tests were seen to fail with each branch broken: a marker below the floor, or one taken back that stays; an epoch
//! that the state does not keep, a reset where nothing was lost, or above the watermark alone; a purge that leaves the
//! key, the name or no trace, old purges that stay and young ones that go; names of dead channels listed or kept, and a
//! glob that is passed over; adoption that leaves originals, takes events too, ends after a page, keeps any type or
//! forgets retention.

use std::collections::BTreeSet;

use super::{CHANNELS, DAY_MS, Entry, FEED, Functions, Id, NO_FLOOR, STATE, id, item, key_of, refusal, show};
use crate::support::resp::Reply;
use crate::support::until;

impl Functions {
    fn tail(&mut self, floor: &str) -> (Id, Id) {
        ends(&self.fcall("headwater_tail_v1", &[floor]))
    }

    fn reset(&mut self, watermark: Id, floor: Id) -> (Id, Id) {
        ends(&self.fcall("headwater_reset_v1", &[&show(watermark), &show(floor)]))
    }

    fn purge(&mut self, channel: &str, floor: &str, age_max: &str) -> Id {
        id(self.fcall("headwater_purge_v1", &[channel, floor, age_max]).text())
    }

    /// Lists page by page; answers the names and how many pages there were.
    fn list(&mut self, glob: &str, count: &str) -> (BTreeSet<String>, usize) {
        let (mut names, mut cursor, mut pages) = (BTreeSet::new(), "0".to_owned(), 0);
        loop {
            let reply = self.fcall("headwater_channels_v1", &[&cursor, glob, count]);
            names.extend(reply.items()[1].items().iter().map(|name| name.text().to_owned()));
            reply.items()[0].text().clone_into(&mut cursor);
            pages += 1;
            if cursor == "0" {
                return (names, pages);
            }
        }
    }

    /// Adopts one page; answers how many events that made and where the next page starts.
    fn adopt_page(&mut self, channel: &str, from: &str) -> (i64, String) {
        let reply = self.fcall("headwater_adopt_v1", &[channel, from, NO_FLOOR, "", ""]);
        let [Reply::Int(adopted), next] = reply.items() else { panic!("{reply:?}") };
        (*adopted, next.text().to_owned())
    }

    fn adopt(&mut self, channel: &str) -> i64 {
        let (mut adopted, mut from) = (0, "0-0".to_owned());
        loop {
            let (count, next) = self.adopt_page(channel, &from);
            adopted += count;
            assert!(adopted < 10_000, "adopting comes to an end");
            if next.is_empty() {
                return adopted;
            }
            from = next;
        }
    }
}

/// End of the feed and epoch.
fn ends(reply: &Reply) -> (Id, Id) {
    (id(reply.items()[0].text()), id(reply.items()[1].text()))
}

#[tokio::test]
async fn tail_tells_end_and_epoch_and_creates_a_feed_that_is_missing() {
    let mut store = Functions::load().await;
    let epoch = store.epochs()[0];
    assert_eq!(store.tail(NO_FLOOR), (epoch, epoch));
    let last = store.publish_one(item("orders", "0"));
    assert_eq!(store.tail(NO_FLOOR), (last, epoch));
    assert_eq!(store.tail("99999999999999-0"), (last, epoch), "a floor matters to a new feed only");

    store.call(&["FLUSHALL"]);
    let floor = (last.0 + DAY_MS, 7);
    assert_eq!(store.tail(&show(floor)), ((floor.0 + 1, 0), (floor.0 + 1, 0)), "above the floor");
    assert_eq!(store.epochs().len(), 1);
}

#[tokio::test]
async fn reset_changes_nothing_where_nothing_was_lost() {
    let mut store = Functions::load().await;
    let epoch = store.epochs()[0];
    let first = store.publish_one(item("orders", "0"));
    let last = store.publish_one(item("orders", "1"));
    for watermark in [(0, 0), epoch, first, last] {
        assert_eq!(store.reset(watermark, last), (last, epoch), "{watermark:?} is there");
    }
    store.call(&["XTRIM", FEED, "MAXLEN", "1"]);
    assert_eq!(store.reset(first, last), (last, epoch), "trimmed is not lost");
}

#[tokio::test]
async fn reset_begins_history_anew_once_above_watermark_and_floor() {
    let mut store = Functions::load().await;
    let last = store.publish_one(item("orders", "0"));
    let watermark = (last.0 + 3_600_000, 3);
    let floor = (watermark.0 + 3_600_000, 9);
    let (end, epoch) = store.reset(watermark, floor);
    assert_eq!((end, epoch), ((floor.0 + 1, 0), (floor.0 + 1, 0)));
    assert_eq!(store.reset(watermark, floor), (end, epoch), "idempotent");
    assert_eq!(store.epochs().len(), 2);
    assert_eq!(store.channel("orders").len(), 1, "what is left of the channels stays");

    // Another node remembers less, and a third more than the epoch says.
    assert_eq!(store.reset((watermark.0 - 1_000, 0), last), (end, epoch));
    let more = (epoch.0 + 60_000, 0);
    let (end, epoch) = store.reset(more, last);
    assert_eq!((end, epoch), ((more.0 + 1, 0), (more.0 + 1, 0)));
    assert_eq!(store.state("epoch"), Some(show(epoch)));
}

#[tokio::test]
async fn two_nodes_with_different_watermarks_agree_on_an_epoch_above_both() {
    let mut store = Functions::load().await;
    let one = store.publish_one(item("orders", "0"));
    // The clock has not got there yet.
    let other = (one.0 + 60_000, 0);
    store.call(&["FLUSHALL"]);
    let (end, epoch) = store.reset(one, one);
    assert!(epoch > one && epoch < other && end == epoch);
    let (end, epoch) = store.reset(other, other);
    assert_eq!((end, epoch), ((other.0 + 1, 0), (other.0 + 1, 0)), "the epoch so far says nothing of it");
    for watermark in [one, other] {
        assert_eq!(store.reset(watermark, watermark), (end, epoch));
    }
}

#[tokio::test]
async fn a_purge_removes_the_channel_and_leaves_a_marker_above_the_floor() {
    let mut store = Functions::load().await;
    store.publish(&[&[item("orders", "0"), item("other", "1")]]);
    let floor = (store.now() + 60_000, 4);
    let marker = store.purge("orders", &show(floor), "3600000");
    assert_eq!(marker, (floor.0 + 1, 0));
    let last = store.stream(FEED).pop().unwrap();
    assert_eq!(
        (last.id, last.fields),
        (marker, ["mark", "purge", "ch", "orders"].map(String::from).to_vec())
    );
    assert_eq!(store.state("epoch:orders"), Some(format!("{} 3600000", show(marker))));
    assert_eq!(store.number(&["EXISTS", &key_of("orders")]), 0);
    let listed = store.call(&["SMEMBERS", CHANNELS]);
    assert_eq!(listed.items().iter().map(Reply::text).collect::<Vec<_>>(), ["other"]);

    let again = store.purge("orders", NO_FLOOR, "");
    assert!(again > marker, "a purge of nothing is one too");
    assert_eq!(store.state("epoch:orders"), Some(format!("{} ", show(again))));
    assert!(store.publish_one(item("orders", "2")) > again);
    assert_eq!(store.number(&["SISMEMBER", CHANNELS, "orders"]), 1);
}

#[tokio::test]
async fn a_purge_mends_what_refuses_to_be_published_to() {
    let mut store = Functions::load().await;
    store.xadd("orders", (store.redis.port().into(), 0), &["data", "x"]);
    let ahead = (store.now() + 2 * DAY_MS, 0);
    store.xadd("orders", ahead, &["data", "x"]);
    store.call(&["SET", &key_of("text"), "x"]);
    assert_eq!(store.publish(&[&[item("orders", "0")]]), [refusal("poisoned", "orders")]);
    for channel in ["orders", "text"] {
        store.purge(channel, NO_FLOOR, "");
        let published = store.publish_one(item(channel, "mended"));
        assert!(published < ahead);
    }
}

#[tokio::test]
async fn a_purge_of_a_missing_feed_creates_it_first() {
    let mut store = Functions::load().await;
    store.call(&["FLUSHALL"]);
    let marker = store.purge("orders", NO_FLOOR, "");
    let marks: Vec<_> =
        store.stream(FEED).iter().map(|entry| entry.field("mark").unwrap().to_owned()).collect();
    assert_eq!(marks, ["epoch", "purge"]);
    assert!(marker > store.epochs()[0]);
}

#[tokio::test]
async fn old_purges_are_forgotten_however_many_there_were() {
    let mut store = Functions::load().await;
    for n in 0..3_000 {
        store.resp.push(&["HSET", STATE, &format!("epoch:old{n}"), "5-0 1000"]);
        store.resp.push(&["HSET", STATE, &format!("epoch:no-age{n}"), "5-0 "]);
    }
    store.resp.flush();
    (0..6_000).for_each(|_| assert_eq!(store.resp.receive(), Reply::Int(1)));
    let young = store.purge("young", NO_FLOOR, "3600000");
    let kept = 3_000 + 3; // without an age, of the young one, epoch and partitions
    until("old purges are forgotten", async || {
        store.purge("busy", NO_FLOOR, "1");
        let left = store.number(&["HLEN", STATE]);
        assert!(left >= kept, "{left}: something went that says more");
        // The newest old ones go at the next rounds.
        (left <= kept + 50).then_some(())
    })
    .await;
    assert_eq!(store.state("epoch:young"), Some(format!("{} 3600000", show(young))));
    assert!(store.state("epoch").is_some() && store.state("partitions").is_some());
}

#[tokio::test]
async fn listing_pages_matches_and_drops_the_names_of_expired_channels() {
    let mut store = Functions::load().await;
    let names: BTreeSet<String> = (0..300).map(|n| format!("orders.{n}")).collect();
    let items: Vec<_> = names.iter().map(|name| item(name, "x")).collect();
    store.publish(&[&items, &[item("other", "x"), item("[a]*", "x"), item("[a]b", "x")]]);
    let (listed, pages) = store.list("orders.*", "20");
    assert_eq!(listed, names);
    assert!(pages > 1, "{pages} pages");
    assert_eq!(store.list("*", "1000").0.len(), 303);
    let one = |store: &mut Functions, glob: &str| store.list(glob, "1000").0.into_iter().collect::<Vec<_>>();
    assert_eq!(one(&mut store, "oth*"), ["other"]);
    assert_eq!(one(&mut store, "\\[a\\]\\**"), ["[a]*"], "the caller escapes");

    store.call(&["DEL", &key_of("orders.7"), &key_of("other")]);
    assert_eq!(store.list("*", "1000").0.len(), 301);
    assert_eq!(store.number(&["SCARD", CHANNELS]), 301, "the names went too");
    store.call(&["DEL", CHANNELS]);
    assert_eq!(store.list("*", "10"), (BTreeSet::new(), 1));
}

fn fields(entry: &Entry) -> Vec<&str> {
    entry.fields.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn adopting_publishes_what_no_function_wrote_and_removes_the_originals() {
    let mut store = Functions::load().await;
    let now = store.now();
    let foreign: [&[&str]; 6] = [
        &["type", "tick", "data", "text"],
        &["data", "{\"a\": [1]}"],
        &["data", "[1"],
        &["type", "a\nb", "data", "x"],
        &["type", "closing", "data", "y"],
        &["b", "1", "a", "\"quoted\""],
    ];
    for (n, fields) in (0u64..).zip(foreign) {
        store.xadd("orders", (now - 5_000, n), fields);
    }
    let event = store.publish_one(item("orders", "published"));
    assert_eq!(store.adopt("orders"), 6);
    let events = store.channel("orders");
    assert_eq!(events[0].id, event, "what was published stays where it is");
    let adopted: Vec<_> = events[1..].iter().map(fields).collect();
    assert_eq!(adopted[0], ["v", "1", "type", "tick", "data", "text"]);
    assert_eq!(adopted[1], ["v", "1j", "type", "message", "data", "{\"a\": [1]}"]);
    assert_eq!(adopted[2], ["v", "1", "type", "message", "data", "[1"], "no JSON after all");
    assert_eq!(adopted[3], ["v", "1", "type", "message", "data", "x"], "no type with a line feed");
    assert_eq!(adopted[4], ["v", "1", "type", "message", "data", "y"], "no type that the server sends");
    assert_eq!(adopted[5][..4], ["v", "1j", "type", "message"]);
    let other: serde_json::Value = serde_json::from_str(adopted[5][5]).unwrap();
    assert_eq!(other, serde_json::json!({ "a": "\"quoted\"", "b": "1" }));
    store.assert_feed_and_channels_agree(&["orders"]);
    assert_eq!(store.number(&["SISMEMBER", CHANNELS, "orders"]), 1);

    let before = (store.stream(FEED), store.channel("orders"));
    assert_eq!(store.adopt("orders"), 0);
    assert_eq!((store.stream(FEED), store.channel("orders")), before, "run again it changes nothing");
}

#[tokio::test]
async fn adopting_a_type_that_is_no_utf8_makes_it_a_message() {
    let mut store = Functions::load().await;
    let words: [&[u8]; 7] = [b"XADD", b"hw:{0}:ch:orders", b"*", b"type", b"ti\xffck", b"data", b"\xfe"];
    store.resp.call(&words);
    assert_eq!(store.adopt("orders"), 1);
    let event = store.channel("orders").remove(0);
    assert_eq!(event.field("type"), Some("message"), "no broker could deliver another");
}

#[tokio::test]
async fn adopting_takes_as_many_pages_as_it_needs_and_keeps_the_order() {
    let mut store = Functions::load().await;
    for n in 0..1_200 {
        store.resp.push(&["XADD", &key_of("orders"), &format!("5-{}", n + 1), "data", &n.to_string()]);
    }
    store.resp.flush();
    (0..1_200).for_each(|_| assert_ne!(store.resp.receive(), Reply::Nil));
    assert_eq!(store.adopt_page("orders", "0-0"), (500, "5-500".into()));
    assert_eq!(store.adopt("orders"), 700, "it may be left and taken up again");
    let data: Vec<_> = store.channel("orders").iter().map(|e| e.field("data").unwrap().to_owned()).collect();
    assert_eq!(data, (0..1_200).map(|n| n.to_string()).collect::<Vec<_>>());
    store.assert_feed_and_channels_agree(&["orders"]);
}

#[tokio::test]
async fn adopting_obeys_retention_and_meets_a_channel_that_is_ahead() {
    let mut store = Functions::load().await;
    let ahead = (store.now() + 3_600_000, 0);
    store.xadd("orders", ahead, &["data", "0"]);
    let reply = store.fcall("headwater_adopt_v1", &["orders", "0-0", NO_FLOOR, "10", "60000"]);
    assert_eq!(reply.items()[0], Reply::Int(1));
    assert_eq!(store.channel("orders")[0].id, (ahead.0 + 1, 0));
    assert!(store.number(&["PTTL", &key_of("orders")]) > 0);
    store.assert_feed_and_channels_agree(&["orders"]);
}

#[tokio::test]
async fn adopting_is_refused_where_publishing_is_and_finds_nothing_in_what_is_not_there() {
    let mut store = Functions::load().await;
    assert_eq!(store.adopt("orders"), 0);
    assert_eq!(store.number(&["EXISTS", &key_of("orders")]), 0);
    let ahead = (store.now() + 2 * DAY_MS, 0);
    store.xadd("poisoned", ahead, &["data", "x"]);
    let error = store.refused("headwater_adopt_v1", &["poisoned", "0-0", NO_FLOOR, "", ""]);
    assert_eq!(error, format!("HWREFUSED poisoned {}", show(ahead)));
    assert_eq!((store.refs().len(), store.channel("poisoned").len()), (0, 1));
    store.call(&["SET", &key_of("text"), "x"]);
    let error = store.refused("headwater_adopt_v1", &["text", "0-0", NO_FLOOR, "", ""]);
    assert!(error.contains("WRONGTYPE"), "{error}");
}
