//! Appending: order, ids, all or nothing. Seen to fail, on the embedded log, without the look at a whole request before
//! its first item is written.

use futures_util::future::join_all;

use super::*;
use crate::log::Refusal;

pub(crate) async fn ids_increase_across_concurrent_appenders(harness: &impl Harness) {
    let log = harness.log();
    let shared = channel("shared");
    let appenders = (0..8).map(|appender| {
        let shared = &shared;
        async move {
            let mut own = Vec::new();
            for n in 0..12 {
                let items = vec![item(shared, &format!("{appender}-{n}-a")), item(shared, "b")];
                own.extend(append(log, items).await.iter().map(|receipt| receipt.id));
            }
            assert_increasing(&own);
            own
        }
    });
    let mut all = join_all(appenders).await.concat();
    all.sort_unstable();
    assert_increasing(&all);
    let read = ids(&read(log, &shared, everything()).await.events);
    assert_eq!(read, all, "the channel holds what was acknowledged, in id order");
}

pub(crate) async fn order_is_kept_within_a_request_and_across_the_requests_of_a_call(harness: &impl Harness) {
    let log = harness.log();
    let channels = neighbours(log, "order", 2);
    let name = |request: usize, n: usize| format!("{request}.{n}");
    let requests =
        (0..4).map(|request| (0..5).map(|n| item(&channels[n % 2], &name(request, n))).collect()).collect();
    let appended = append_all(log, requests).await;
    let receipts: Vec<_> = appended.into_iter().flat_map(Result::unwrap).collect();
    assert_increasing(&receipts.iter().map(|receipt| receipt.id).collect::<Vec<_>>());
    assert!(receipts.iter().all(|receipt| !receipt.duplicate));
    for (which, channel) in channels.iter().enumerate() {
        let expected: Vec<_> = (0..4)
            .flat_map(|request| (0..5).filter(|n| n % 2 == which).map(move |n| name(request, n)))
            .collect();
        assert_eq!(texts(log, channel).await, expected);
    }
}

pub(crate) async fn a_request_with_one_refused_item_leaves_nothing_behind(harness: &impl Harness) {
    let log = harness.log();
    let channels = neighbours(log, "whole", 2);
    let [good, bad] = &channels[..] else { unreachable!("two were asked for") };
    append_text(log, bad, "before").await;
    harness.spoil(bad).await;
    let requests = vec![
        vec![item(good, "first")],
        vec![item(good, "must not appear"), item(bad, "refused"), item(good, "nor this")],
        vec![item(good, "last")],
    ];
    let appended = append_all(log, requests).await;
    assert!(appended[0].is_ok() && appended[2].is_ok(), "{appended:?}");
    match &appended[1] {
        Err(Refusal::WrongType(channel, _) | Refusal::Poisoned(channel)) => assert_eq!(channel, bad),
        other => panic!("{other:?}"),
    }
    assert_eq!(texts(log, good).await, ["first", "last"]);
}

pub(crate) async fn purging_a_channel_mends_it(harness: &impl Harness) {
    let log = harness.log();
    let bad = channel("broken");
    append_text(log, &bad, "before").await;
    harness.spoil(&bad).await;
    assert!(append_all(log, vec![vec![item(&bad, "refused")]]).await[0].is_err());
    log.purge(&bad, &KEEP).await.unwrap();
    append_text(log, &bad, "after").await;
    assert_eq!(texts(log, &bad).await, ["after"]);
}

pub(crate) async fn an_acknowledged_event_is_read_at_once(harness: &impl Harness) {
    let log = harness.log();
    let name = channel("at-once");
    for n in 0..20 {
        let id = append_text(log, &name, &n.to_string()).await;
        let query = ReadQuery { ascending: false, count_max: 1, ..everything() };
        let page = read(log, &name, query).await;
        assert_eq!(ids(&page.events), [id]);
        assert!(page.bounds.feed_last >= id);
        assert_eq!(page.bounds.extent.unwrap().last, id);
    }
}
