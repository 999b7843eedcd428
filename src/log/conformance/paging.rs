//! Reading: pages, limits, ages, lengths. Seen to fail with an `after` that counts itself and without trimming, on the
//! embedded log, and with a maximum age that is not asked for, on Redis.

use super::*;

pub(crate) async fn pages_of_any_size_cover_the_channel_in_both_directions(harness: &impl Harness) {
    let log = harness.log();
    let name = channel("pages");
    let items = (0..23).map(|n| item(&name, &n.to_string())).collect();
    let mut expected: Vec<_> = append(log, items).await.iter().map(|receipt| receipt.id).collect();
    for ascending in [true, false] {
        for count_max in [1, 2, 7, 22, 23, 24] {
            let mut found: Vec<StreamId> = Vec::new();
            let mut query = ReadQuery { ascending, count_max, ..everything() };
            loop {
                let page = read(log, &name, query).await;
                assert!(page.events.len() <= count_max);
                assert!(
                    page.exhausted || !page.events.is_empty(),
                    "a page that is not the last makes progress"
                );
                found.extend(ids(&page.events));
                assert!(found.len() <= expected.len(), "no event comes twice");
                let Some(last) = found.last() else { break };
                (query.after, query.before) =
                    if ascending { (*last, StreamId::MAX) } else { (StreamId::ZERO, *last) };
                if page.exhausted {
                    assert!(read(log, &name, query).await.events.is_empty(), "exhausted means nothing more");
                    break;
                }
            }
            assert_eq!(found, expected, "ascending: {ascending}, {count_max} a page");
        }
        expected.reverse();
    }
}

pub(crate) async fn after_and_before_are_exclusive(harness: &impl Harness) {
    let log = harness.log();
    let name = channel("range");
    let items = (0..6).map(|n| item(&name, &n.to_string())).collect();
    let all: Vec<_> = append(log, items).await.iter().map(|receipt| receipt.id).collect();
    for from in 0..all.len() {
        for to in 0..all.len() {
            let inside: &[StreamId] = if from + 1 < to { &all[from + 1..to] } else { &[] };
            let query = ReadQuery { after: all[from], before: all[to], ..everything() };
            let page = read(log, &name, query).await;
            assert_eq!((ids(&page.events).as_slice(), page.exhausted), (inside, true), "{from}..{to}");
            let query = ReadQuery { after: all[from].before(), ..query };
            let inside: &[StreamId] = if from < to { &all[from..to] } else { &[] };
            assert_eq!(ids(&read(log, &name, query).await.events), inside);
        }
    }
}

pub(crate) async fn a_page_ends_when_its_bytes_are_used_up_and_holds_at_least_one_event(
    harness: &impl Harness,
) {
    let log = harness.log();
    let name = channel("bytes");
    let sizes = [100, 100, 100, 30_000, 10, 0, 0, 5_000];
    let items = sizes.iter().map(|size| item(&name, &"x".repeat(*size))).collect();
    let mut expected: Vec<_> = append(log, items).await.iter().map(|receipt| receipt.id).collect();
    for ascending in [true, false] {
        for bytes_max in [0, 1, 99, 100, 250, 10_000, 40_000] {
            let mut query = ReadQuery { ascending, bytes_max, ..everything() };
            let mut found = Vec::new();
            loop {
                let page = read(log, &name, query).await;
                let lens: Vec<_> = page.events.iter().map(|event| event.draft.data.bytes().len()).collect();
                let [before_last @ .., _] = &lens[..] else { panic!("one event always fits") };
                assert!(before_last.iter().sum::<usize>() <= bytes_max, "{lens:?} of {bytes_max}");
                found.extend(ids(&page.events));
                assert!(found.len() <= expected.len(), "no event comes twice");
                if page.exhausted || found.len() == expected.len() {
                    break;
                }
                let last = page.events.last().unwrap().id;
                (query.after, query.before) =
                    if ascending { (last, StreamId::MAX) } else { (StreamId::ZERO, last) };
            }
            assert_eq!(found, expected, "ascending: {ascending}, {bytes_max} bytes a page");
        }
        expected.reverse();
    }
}

pub(crate) async fn a_channel_without_events_reads_as_exhausted(harness: &impl Harness) {
    let log = harness.log();
    let page = read(log, &channel("nothing"), everything()).await;
    assert!(page.events.is_empty() && page.exhausted);
    assert_eq!(page.bounds.extent, None);
}

pub(crate) async fn expired_events_are_never_returned(harness: &impl Harness) {
    let log = harness.log();
    let name = channel("aged");
    let age = Duration::from_secs(3);
    let retention = Retention { max_length: None, max_age: Some(age) };
    let query = ReadQuery { max_age: Some(age), ..everything() };
    append(log, vec![kept(item(&name, "old"), retention)]).await;
    harness.advance(Duration::from_millis(1_500)).await;
    append(log, vec![kept(item(&name, "young"), retention)]).await;
    assert_eq!(read(log, &name, query).await.events.len(), 2);
    harness.advance(Duration::from_millis(1_800)).await;
    for ascending in [true, false] {
        let page = read(log, &name, ReadQuery { ascending, ..query }).await;
        assert_eq!(page.events.iter().map(|e| e.draft.data.as_str()).collect::<Vec<_>>(), ["young"]);
    }
    harness.advance(Duration::from_secs(3)).await;
    let page = read(log, &name, query).await;
    assert!(page.events.is_empty() && page.exhausted);
    assert_eq!(page.bounds.extent, None, "a channel whose events have all expired counts as absent");
}

pub(crate) async fn a_long_channel_keeps_the_newest(harness: &impl Harness) {
    let log = harness.log();
    let name = channel("long");
    let retention = Retention { max_length: Some(50), max_age: None };
    let mut total = 0;
    // More than one chunk at once, single events, and a request longer than the channel may be.
    for count in [120, 1, 1, 200, 60, 700, 1, 330] {
        let items = (total..total + count).map(|n| kept(item(&name, &n.to_string()), retention)).collect();
        append(log, items).await;
        total += count;
        let found = texts(log, &name).await;
        assert!((50.min(total)..=250).contains(&found.len()), "{} of {total}", found.len());
        let newest: Vec<_> = (total - found.len()..total).map(|n| n.to_string()).collect();
        assert_eq!(found, newest);
        let info = log.info(&name, &KEEP).await.unwrap().unwrap();
        assert_eq!(info.length, found.len() as u64);
    }
}
