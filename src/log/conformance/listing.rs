//! What is known of channels: names and figures. Seen to fail with a prefix that is passed over and with names of channels
//! that hold nothing, on the embedded log, and with expired events that count, on Redis.

use super::*;
use crate::log::{ListQuery, Visible};

/// All pages of a listing, sorted.
async fn list(log: &dyn Log, prefix: &str, limit: usize) -> Vec<String> {
    let mut names = Vec::new();
    let mut query = ListQuery { prefix: prefix.to_owned(), limit, ..ListQuery::default() };
    for _ in 0..1_000 {
        let page = log.channels(&query).await.unwrap();
        assert!(page.channels.len() <= limit, "{} names on a page of {limit}", page.channels.len());
        names.extend(page.channels.iter().map(|channel| channel.as_str().to_owned()));
        if page.next.is_none() {
            names.sort_unstable();
            return names;
        }
        query.cursor = page.next;
    }
    panic!("the listing does not end");
}

pub(crate) async fn channels_are_listed_by_prefix_and_in_pages(harness: &impl Harness) {
    let log = harness.log();
    let mut all: Vec<_> = (0..300).map(|n| format!("list:{n}")).collect();
    all.extend(["$user:1".to_owned(), "list".to_owned(), "lisu".to_owned(), "lis".to_owned()]);
    for name in &all {
        append_text(log, &channel(name), "x").await;
    }
    all.sort_unstable();
    for limit in [1, 7, 100, 1_000] {
        assert_eq!(list(log, "", limit).await, all, "{limit} a page");
        let some: Vec<_> = all.iter().filter(|name| name.starts_with("list:1")).cloned().collect();
        assert_eq!(list(log, "list:1", limit).await, some);
    }
    assert_eq!(list(log, "none", 10).await, Vec::<String>::new());
    // A star in a prefix is a star.
    assert_eq!(list(log, "li*", 10).await, Vec::<String>::new());
}

pub(crate) async fn names_that_are_not_for_everybody_stand_in_no_cursor(harness: &impl Harness) {
    let log = harness.log();
    for n in 0..40 {
        append_text(log, &channel(&format!("hidden:{n}")), "x").await;
        append_text(log, &channel(&format!("{}:{n}", if n % 8 == 0 { "open" } else { "also:hidden" })), "x")
            .await;
    }
    let visible = Visible::only(|channel| channel.as_str().starts_with("open"));
    let mut query = ListQuery { limit: 1, visible, ..ListQuery::default() };
    let mut names = Vec::new();
    loop {
        let page = log.channels(&query).await.unwrap();
        names.extend(page.channels.iter().map(|channel| channel.as_str().to_owned()));
        let Some(next) = page.next else { break };
        assert!(!next.contains("hidden"), "{next}");
        query.cursor = Some(next);
    }
    names.sort_unstable();
    assert_eq!(names, ["open:0", "open:16", "open:24", "open:32", "open:8"]);
}

pub(crate) async fn purged_and_expired_channels_are_not_listed(harness: &impl Harness) {
    let log = harness.log();
    let age = Retention { max_length: None, max_age: Some(Duration::from_secs(1)) };
    append(log, vec![kept(item(&channel("gone:aged"), "x"), age)]).await;
    append_text(log, &channel("gone:purged"), "x").await;
    append_text(log, &channel("gone:not"), "x").await;
    log.purge(&channel("gone:purged"), &KEEP).await.unwrap();
    log.purge(&channel("gone:never-was"), &KEEP).await.unwrap();
    harness.advance(Duration::from_millis(2_500)).await;
    for limit in [1, 10] {
        assert_eq!(list(log, "gone:", limit).await, ["gone:not"]);
    }
    for name in ["gone:aged", "gone:purged", "gone:never-was"] {
        assert_eq!(log.info(&channel(name), &KEEP).await.unwrap(), None, "{name}");
    }
    append_text(log, &channel("gone:purged"), "again").await;
    assert_eq!(list(log, "gone:", 10).await, ["gone:not", "gone:purged"]);
}

pub(crate) async fn names_that_go_between_pages_take_no_others_along(harness: &impl Harness) {
    let log = harness.log();
    let age = Retention { max_length: None, max_age: Some(Duration::from_secs(1)) };
    let mut kept_names = Vec::new();
    for n in 0..300 {
        append(log, vec![kept(item(&channel(&format!("pages:{n:03}:aged")), "x"), age)]).await;
        append_text(log, &channel(&format!("pages:{n:03}:kept")), "x").await;
        kept_names.push(format!("pages:{n:03}:kept"));
    }
    harness.advance(Duration::from_millis(2_500)).await;
    let mut listed = list(log, "pages:", 20).await;
    listed.dedup();
    assert_eq!(listed, kept_names);
}

pub(crate) async fn info_tells_length_first_and_last(harness: &impl Harness) {
    let log = harness.log();
    let name = channel("info");
    assert_eq!(log.info(&name, &KEEP).await.unwrap(), None);
    let items = (0..5).map(|n| item(&name, &n.to_string())).collect();
    let receipts = append(log, items).await;
    let info = log.info(&name, &KEEP).await.unwrap().unwrap();
    assert_eq!((info.length, info.first, info.last), (5, receipts[0].id, receipts[4].id));
}

pub(crate) async fn info_does_not_count_what_has_expired(harness: &impl Harness) {
    let log = harness.log();
    let age = Retention { max_length: None, max_age: Some(Duration::from_secs(2)) };
    let name = channel("info:aged");
    let old = |n: i32| kept(item(&name, &n.to_string()), age);
    // More than one stretch of a count.
    append(log, (0..700).map(old).collect()).await;
    harness.advance(Duration::from_millis(1_500)).await;
    let young = append(log, vec![old(700), old(701)]).await;
    harness.advance(Duration::from_secs(1)).await;
    let info = log.info(&name, &age).await.unwrap().unwrap();
    assert_eq!((info.length, info.first, info.last), (2, young[0].id, young[1].id));
    assert_eq!(log.info(&name, &age).await.unwrap().unwrap().length, 2, "looking changes nothing");
    harness.advance(Duration::from_secs(2)).await;
    assert_eq!(log.info(&name, &age).await.unwrap(), None);
}
