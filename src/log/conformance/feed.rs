//! The feed: it names everything once, in order, and says so when it cannot. Seen to fail, on the embedded log, with refs
//! that begin at the watermark instead of after it.

use futures_util::future::join;

use super::*;
use crate::log::{RefKind, Want};

fn event_refs(refs: &[Ref]) -> Vec<(StreamId, Channel)> {
    refs.iter()
        .filter_map(|entry| match &entry.kind {
            RefKind::Event(channel, _) => Some((entry.id, channel.clone())),
            _ => None,
        })
        .collect()
}

pub(crate) async fn the_feed_names_every_event_once_in_order_from_any_watermark(harness: &impl Harness) {
    let log = harness.log();
    let channels = neighbours(log, "feed", 3);
    let partition = partition_of(log, &channels[0]);
    let start = log.tail(partition).await.unwrap().last;
    let mut expected = Vec::new();
    for round in 0..6 {
        let items: Vec<_> = (0..7).map(|n| item(&channels[(n * round) % 3], "12345")).collect();
        let named: Vec<_> = items.iter().map(|item| item.channel.clone()).collect();
        expected.extend(append(log, items).await.iter().map(|receipt| receipt.id).zip(named));
    }
    let through = expected.last().unwrap().0;
    let refs = follow_through(log, partition, start, through).await;
    assert_eq!(event_refs(&refs), expected);
    assert!(refs.iter().all(|entry| !matches!(entry.kind, RefKind::Event(_, bytes) if bytes < 5)));
    for (nth, (watermark, _)) in expected.iter().enumerate().take(expected.len() - 1) {
        let rest = follow_through(log, partition, *watermark, through).await;
        assert_eq!(event_refs(&rest), expected[nth + 1..]);
    }
}

pub(crate) async fn the_feed_names_events_appended_while_it_is_followed(harness: &impl Harness) {
    let log = harness.log();
    let channels = neighbours(log, "race", 2);
    let partition = partition_of(log, &channels[0]);
    let mut watermark = log.tail(partition).await.unwrap().last;
    let appending = async {
        let mut expected = Vec::new();
        for n in 0..60 {
            let items: Vec<_> = (0..=n % 3).map(|k| item(&channels[(n + k) % 2], "x")).collect();
            expected.extend(append(log, items).await.iter().map(|receipt| receipt.id));
        }
        append_text(log, &channels[0], &"the end".repeat(20)).await;
        expected
    };
    let following = async {
        let mut found = Vec::new();
        loop {
            let Followed::Refs(refs) = log.follow(partition, watermark).await.unwrap() else {
                panic!("the feed is far longer than this");
            };
            for entry in refs {
                assert!(entry.id > watermark, "{} comes after {watermark}", entry.id);
                watermark = entry.id;
                if matches!(entry.kind, RefKind::Event(_, bytes) if bytes >= 140) {
                    return found;
                }
                found.push(entry.id);
            }
        }
    };
    let both = tokio::time::timeout(DEADLINE, join(appending, following));
    let (expected, found) = both.await.expect("the follower reaches the end");
    assert_eq!(found, expected);
}

pub(crate) async fn following_without_news_answers_nothing_after_a_while(harness: &impl Harness) {
    let log = harness.log();
    let name = channel("quiet");
    let partition = partition_of(log, &name);
    let last = append_text(log, &name, "x").await;
    let followed = tokio::time::timeout(DEADLINE, log.follow(partition, last)).await;
    assert_eq!(followed.expect("an answer in any case").unwrap(), Followed::Refs(Vec::new()));
}

pub(crate) async fn announced_events_are_read_exactly(harness: &impl Harness) {
    let log = harness.log();
    let channels = neighbours(log, "new", 3);
    let partition = partition_of(log, &channels[0]);
    let mut receipts = Vec::new();
    for round in 0..5 {
        let items = (0..6).map(|n| item(&channels[n % 3], &format!("{round}.{n}"))).collect();
        receipts.extend(append(log, items).await);
    }
    // Rounds 1 to 3 of the first and the last channel; the middle one is not wanted.
    let of = |which: usize, round: usize, n: usize| receipts[round * 6 + which + n * 3].id;
    let want = |which: usize| Want {
        channel: channels[which].clone(),
        after: of(which, 0, 1),
        through: of(which, 3, 0),
        refs: 5,
        bytes: 15,
    };
    let read = log.read_new(partition, &[want(2), want(0)]).await.unwrap();
    for (which, events) in [2, 0].into_iter().zip(&read) {
        let expected: Vec<_> =
            [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)].map(|(round, n)| of(which, round, n)).to_vec();
        assert_eq!(ids(events), expected);
        assert!(events.iter().all(|event| event.draft.data.as_str().ends_with(&format!(".{which}"))
            || event.draft.data.as_str().ends_with(&format!(".{}", which + 3))));
    }
    assert_eq!(read.len(), 2);
}

pub(crate) async fn a_purge_is_announced_and_removes_what_was_announced(harness: &impl Harness) {
    let log = harness.log();
    let channels = neighbours(log, "purge", 2);
    let [name, other] = &channels[..] else { unreachable!("two were asked for") };
    let partition = partition_of(log, name);
    let start = log.tail(partition).await.unwrap().last;
    let before = append_text(log, name, "before").await;
    append_text(log, other, "stays").await;
    log.purge(name, &KEEP).await.unwrap();
    let purged = log.tail(partition).await.unwrap().last;
    assert!(texts(log, name).await.is_empty());
    let after = append_text(log, name, "after").await;

    let refs = follow_through(log, partition, start, after).await;
    let kinds: Vec<_> = refs.iter().map(|entry| (entry.id, &entry.kind)).collect();
    assert!(kinds.contains(&(purged, &RefKind::Purged(name.clone()))), "{kinds:?}");
    assert!(before < purged && purged < after);
    let want = Want { channel: name.clone(), after: start, through: after, refs: 2, bytes: 11 };
    let read = log.read_new(partition, &[want]).await.unwrap();
    assert_eq!(ids(&read[0]), [after], "what was purged is no longer there, which is no error");
    assert_eq!(texts(log, other).await, ["stays"]);
}

pub(crate) async fn the_tail_moves_with_appends_and_the_epoch_does_not(harness: &impl Harness) {
    let log = harness.log();
    let name = channel("tail");
    let partition = partition_of(log, &name);
    let fresh = log.tail(partition).await.unwrap();
    assert!(
        fresh.epoch > StreamId::ZERO && fresh.epoch <= fresh.last,
        "a history begins with a marker: {fresh:?}"
    );
    let id = append_text(log, &name, "x").await;
    assert!(id > fresh.last);
    let tail = log.tail(partition).await.unwrap();
    assert_eq!((tail.last, tail.epoch), (id, fresh.epoch));
    assert_eq!(
        log.reset(partition, id).await.unwrap(),
        tail,
        "a watermark within the history resets nothing"
    );
    assert_eq!(log.reset(partition, fresh.epoch).await.unwrap(), tail);
    assert_eq!(read(log, &name, everything()).await.bounds.epoch, fresh.epoch);
    log.ping().await.unwrap();
}

pub(crate) async fn a_watermark_from_the_future_is_a_rollback_and_a_reset_begins_anew(
    harness: &impl Harness,
) {
    let log = harness.log();
    let name = channel("rollback");
    let partition = partition_of(log, &name);
    let last = append_text(log, &name, "x").await;
    // Ten seconds ahead: the watermark of a node that saw what this store has lost.
    let watermark = StreamId::new(last.ms() + 10_000, 7).unwrap();
    let rolled_back =
        async { while log.follow(partition, watermark).await.unwrap() != Followed::RolledBack {} };
    tokio::time::timeout(DEADLINE, rolled_back).await.expect("the follower learns of the rollback");
    let tail = log.reset(partition, watermark).await.unwrap();
    assert!(tail.epoch > watermark && tail.last >= tail.epoch, "{tail:?}");
    let refs = follow_through(log, partition, watermark, tail.epoch).await;
    assert!(refs.iter().any(|entry| entry.id == tail.epoch && entry.kind == RefKind::Epoch), "{refs:?}");
    let next = append_text(log, &name, "y").await;
    assert!(next > tail.epoch, "ids go on above the new epoch");
    let bounds = read(log, &name, everything()).await.bounds;
    assert_eq!(bounds.epoch, tail.epoch);
    assert_eq!(bounds.prove(last, crate::log::Known::default()), crate::log::Proof::Reset);
    assert_eq!(bounds.prove(tail.epoch, crate::log::Known::default()), crate::log::Proof::Complete);
}
