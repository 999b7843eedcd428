//! `headwater_read_v1` and `headwater_count_v1`: pages in both directions, their limits, and the bounds that come with them.
//!
//! The tests were seen to fail with either end counted in, one direction for both, limits of count and bytes that are
//! passed over or leave no room for one event, an end that is not told, events that are too old, or passed over in
//! silence, the page's figures in place of the channel's, an error that reads as an empty channel, and a count that ends
//! after one stretch.

use super::{Entry, FEED, Functions, Id, entry, id, item, key_of, show};
use crate::support::resp::Reply;

const ZERO: &str = "0-0";
/// More pages than any channel here has.
const PAGES_MAX: usize = 300;
const END: &str = "18446744073709551615-18446744073709551615";

/// A page as the function answers it.
#[derive(Debug)]
struct Page {
    feed_last: String,
    epoch: String,
    purged: String,
    expiry: String,
    passed_over: bool,
    exhausted: bool,
    /// First, last, length, added, max deleted; nothing when the channel does not exist.
    bounds: Vec<String>,
    entries: Vec<Entry>,
}

/// What is asked for.
struct Query<'a> {
    after: &'a str,
    before: &'a str,
    ascending: bool,
    count: usize,
    bytes: usize,
    age_max: Option<u64>,
}

const ALL: Query =
    Query { after: ZERO, before: END, ascending: true, count: 1_000, bytes: 1 << 20, age_max: None };

impl Functions {
    fn read(&mut self, channel: &str, query: &Query) -> Page {
        let order = if query.ascending { "asc" } else { "desc" };
        let (count, bytes) = (query.count.to_string(), query.bytes.to_string());
        let age = query.age_max.map(|age| age.to_string()).unwrap_or_default();
        let args = [channel, query.after, query.before, order, &count, &bytes, &age];
        let reply = self.fcall("headwater_read_v1", &args);
        let [feed_last, epoch, purged, expiry, passed_over, exhausted, bounds, entries] = reply.items()
        else {
            panic!("eight parts, not {reply:?}");
        };
        Page {
            feed_last: feed_last.text().into(),
            epoch: epoch.text().into(),
            purged: purged.text().into(),
            expiry: expiry.text().into(),
            passed_over: *passed_over == Reply::Int(1),
            exhausted: *exhausted == Reply::Int(1),
            bounds: bounds.items().iter().map(|bound| bound.text().to_owned()).collect(),
            entries: entries.items().iter().map(entry).collect(),
        }
    }

    /// Reads page after page to the end.
    fn read_through(
        &mut self,
        channel: &str,
        ascending: bool,
        count: usize,
        bytes: usize,
    ) -> Vec<Vec<Entry>> {
        let (mut pages, mut at) = (Vec::new(), None::<Id>);
        loop {
            let position = at.map(show);
            let (after, before) = match (&position, ascending) {
                (Some(at), true) => (at.as_str(), END),
                (Some(at), false) => (ZERO, at.as_str()),
                (None, _) => (ZERO, END),
            };
            let page = self.read(channel, &Query { after, before, ascending, count, bytes, age_max: None });
            at = page.entries.last().map(|entry| entry.id).or(at);
            let exhausted = page.exhausted;
            assert!(exhausted || !page.entries.is_empty(), "a page without an event leads nowhere");
            pages.push(page.entries);
            assert!(pages.len() < PAGES_MAX, "reading comes to an end");
            if exhausted {
                return pages;
            }
        }
    }
}

#[tokio::test]
async fn pages_in_both_directions_add_up_to_the_channel() {
    let mut store = Functions::load().await;
    // More than the short first look and several of the longer ones.
    let items: Vec<_> = (0..230).map(|n| item("orders", &format!("event {n}"))).collect();
    store.publish(&[&items]);
    let all = store.channel("orders");
    let backwards: Vec<Entry> = all.iter().rev().cloned().collect();
    for count in [1, 7, 16, 17, 80, 100, 230, 1_000] {
        for (ascending, expected) in [(true, &all), (false, &backwards)] {
            let pages = store.read_through("orders", ascending, count, 1 << 20);
            assert!(pages.iter().rev().skip(1).all(|page| page.len() == count), "{count} a page");
            assert!(pages.len() <= all.len() / count + 1, "the last page says so");
            assert_eq!(&pages.concat(), expected, "count {count}, ascending {ascending}");
        }
    }
}

#[tokio::test]
async fn a_page_is_limited_by_bytes_but_one_event_always_fits() {
    let mut store = Functions::load().await;
    let sizes = [10, 5_000, 10, 10, 200_000, 10, 3_000, 3_000, 10];
    let items: Vec<_> = sizes.iter().map(|size| item("orders", &"x".repeat(*size))).collect();
    store.publish(&[&items]);
    let all = store.channel("orders");
    for limit in [1, 100, 4_000, 6_100, 1 << 20] {
        for ascending in [true, false] {
            let pages = store.read_through("orders", ascending, 100, limit);
            for page in &pages {
                let bytes: usize = page.iter().flat_map(|entry| &entry.fields).map(String::len).sum();
                assert!(bytes <= limit || page.len() == 1, "{bytes} bytes in {} of {limit}", page.len());
            }
            let mut read = pages.concat();
            if !ascending {
                read.reverse();
            }
            assert_eq!(read, all, "limit {limit}, ascending {ascending}");
        }
    }
    let exact: usize = all[0].fields.iter().map(String::len).sum();
    let page = store.read("orders", &Query { bytes: exact, ..ALL });
    assert_eq!((page.entries.len(), page.exhausted), (1, false), "a limit may be used up");
}

#[tokio::test]
async fn both_ends_are_exclusive_and_one_call_tells_whether_more_is_there() {
    let mut store = Functions::load().await;
    let items: Vec<_> = (0..5).map(|n| item("orders", &n.to_string())).collect();
    let ids: Vec<String> = super::ids(&store.publish(&[&items])[0]).into_iter().map(show).collect();
    let between = Query { after: &ids[0], before: &ids[3], ..ALL };
    let page = store.read("orders", &between);
    assert_eq!(page.entries.iter().map(|entry| show(entry.id)).collect::<Vec<_>>(), ids[1..3]);
    assert!(page.exhausted);
    let page = store.read("orders", &Query { ascending: false, count: 1, ..between });
    assert_eq!((show(page.entries[0].id), page.exhausted), (ids[2].clone(), false));
    let page = store.read("orders", &Query { after: &ids[4], ..ALL });
    assert!(page.entries.is_empty() && page.exhausted);
    assert_eq!(page.bounds[1], ids[4], "the bounds are the channel's, not the page's");
}

#[tokio::test]
async fn the_bounds_tell_what_can_be_proven() {
    let mut store = Functions::load().await;
    let items: Vec<_> = (0..5).map(|n| item("orders", &n.to_string())).collect();
    let ids: Vec<String> = super::ids(&store.publish(&[&items])[0]).into_iter().map(show).collect();
    let page = store.read("orders", &ALL);
    assert_eq!(page.bounds, [&ids[0], &ids[4], "5", "5", ZERO]);
    assert_eq!((page.feed_last.as_str(), page.purged.as_str()), (ids[4].as_str(), ZERO));
    assert_eq!(Some(page.epoch), store.state("epoch"));
    assert_eq!((page.expiry.as_str(), page.passed_over), ("", false), "no age, no expiry");

    store.call(&["XDEL", &key_of("orders"), &ids[2]]);
    store.call(&["XTRIM", &key_of("orders"), "MAXLEN", "3"]);
    assert_eq!(store.read("orders", &ALL).bounds, [&ids[1], &ids[4], "3", "5", &ids[2]]);

    for event in &ids {
        store.call(&["XDEL", &key_of("orders"), event]);
    }
    let page = store.read("orders", &ALL);
    assert_eq!(page.bounds, ["", &ids[4], "0", "5", &ids[4]], "nothing is left, but it is known what was");
    assert!(page.entries.is_empty() && page.exhausted);

    let other = store.publish_one(item("other", "x"));
    assert_eq!(store.read("orders", &ALL).feed_last, show(other), "the feed's end, not the channel's");
    let marker = store.fcall("headwater_purge_v1", &["orders", ZERO, "3600000"]).text().to_owned();
    let page = store.read("orders", &ALL);
    assert_eq!((page.purged, page.feed_last), (marker.clone(), marker));
    assert!(page.bounds.is_empty());
}

#[tokio::test]
async fn what_is_too_old_is_passed_over_and_said_so() {
    let mut store = Functions::load().await;
    let (now, age) = (store.now(), 3_600_000);
    let old: Vec<Id> = (1..=3).map(|n| (now - 2 * age + n, 0)).collect();
    for id in &old {
        store.xadd("orders", *id, &["v", "1", "type", "t", "data", "old"]);
    }
    let young = store.publish_one(item("orders", "young"));
    for ascending in [true, false] {
        let page = store.read("orders", &Query { age_max: Some(age), ascending, ..ALL });
        assert_eq!(page.entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), [young], "{ascending}");
        assert!(page.passed_over && page.exhausted);
        let expiry: u64 = page.expiry.parse().unwrap();
        assert!((now - age..=store.now() - age).contains(&expiry), "{expiry}");
        assert_eq!(page.bounds[0], show(old[0]), "the first that is stored, too old or not");
    }
    let after_old = show(old[2]);
    let page = store.read("orders", &Query { after: &after_old, age_max: Some(age), ..ALL });
    assert!(!page.passed_over, "nothing after the cursor was passed over");
    assert_eq!(page.entries.len(), 1);
    let young = show(young);
    let page = store.read("orders", &Query { after: &young, age_max: Some(age), ..ALL });
    assert!(!page.passed_over && page.entries.is_empty());
    let page = store.read("orders", &Query { age_max: Some(10 * now), ..ALL });
    assert_eq!((page.expiry.as_str(), page.entries.len()), ("0", 4), "an age longer than time itself");
}

#[tokio::test]
async fn a_count_goes_on_where_a_stretch_ended() {
    let mut store = Functions::load().await;
    let items: Vec<_> = (0..1_100).map(|n| item("orders", &n.to_string())).collect();
    let ids = super::ids(&store.publish(&[&items])[0]);
    let end = format!("({}", show(ids[1_050]));
    let (mut counted, mut from) = (Vec::new(), "-".to_owned());
    while counted.is_empty() || !from.is_empty() {
        let reply = store.fcall("headwater_count_v1", &["orders", &from, &end]);
        let [Reply::Int(count), next] = reply.items() else { panic!("{reply:?}") };
        counted.push(*count);
        next.text().clone_into(&mut from);
        assert!(counted.len() < 5, "counting comes to an end: {counted:?}");
    }
    assert_eq!(counted, [500, 500, 50]);
}

#[tokio::test]
async fn a_channel_that_does_not_exist_is_an_empty_page_with_the_feeds_bounds() {
    let mut store = Functions::load().await;
    let other = store.publish_one(item("other", "x"));
    for age_max in [None, Some(3_600_000)] {
        let page = store.read("orders", &Query { age_max, ..ALL });
        assert!(page.bounds.is_empty() && page.entries.is_empty() && page.exhausted, "{page:?}");
        assert_eq!((page.feed_last, page.purged, page.passed_over), (show(other), ZERO.into(), false));
        assert_eq!(page.expiry.is_empty(), age_max.is_none());
        assert_eq!(Some(page.epoch), store.state("epoch"));
    }
    store.call(&["FLUSHALL"]);
    let page = store.read("orders", &ALL);
    assert_eq!((page.feed_last.as_str(), page.epoch.as_str()), (ZERO, ZERO), "not even a feed");
    assert_eq!(store.number(&["EXISTS", FEED]), 0, "reading writes nothing");
}

#[tokio::test]
async fn a_key_that_is_no_stream_is_an_error_and_what_no_function_wrote_is_shown() {
    let mut store = Functions::load().await;
    store.call(&["SET", &key_of("text"), "x"]);
    for age in ["", "1000"] {
        let error = store.refused("headwater_read_v1", &["text", ZERO, END, "asc", "10", "1000", age]);
        assert!(error.contains("WRONGTYPE"), "{error}");
    }
    let (now, foreign) = (store.now(), ["type", "t", "data", "foreign"]);
    store.xadd("orders", (now - 1_000, 5), &foreign);
    let event = store.publish_one(item("orders", "0"));
    let page = store.read("orders", &ALL);
    assert_eq!(page.entries[0].fields, foreign, "the reader tells them apart");
    assert!(!page.entries[0].is_event() && page.entries[1].is_event());
    assert_eq!(page.entries[1].id, event);
    assert_eq!(id(&page.bounds[0]), (now - 1_000, 5));
}
