//! Idempotency: a key used again within its window answers the first id and appends nothing. Seen to fail, on the embedded
//! log, with keys that are not remembered, that share a record between channels, and that count longer than their window.

use super::*;

const WINDOW: Duration = Duration::from_secs(60);

pub(crate) async fn a_key_used_again_answers_the_first_id(harness: &impl Harness) {
    let log = harness.log();
    let name = channel("orders");
    let first = append(log, vec![keyed(&name, "first", "k", WINDOW)]).await[0];
    assert!(!first.duplicate);
    let again = append_all(
        log,
        vec![
            vec![keyed(&name, "other payload", "k", WINDOW)],
            vec![item(&name, "new"), keyed(&name, "third", "k", WINDOW)],
        ],
    )
    .await;
    let duplicate = Receipt { id: first.id, duplicate: true };
    assert_eq!(again[0].as_ref().unwrap(), &[duplicate]);
    assert_eq!(again[1].as_ref().unwrap()[1], duplicate);
    assert_eq!(texts(log, &name).await, ["first", "new"]);
}

pub(crate) async fn a_key_repeated_within_a_request_duplicates_its_first_item(harness: &impl Harness) {
    let log = harness.log();
    let name = channel("repeated");
    let items = vec![
        keyed(&name, "a", "k", WINDOW),
        keyed(&name, "b", "l", WINDOW),
        keyed(&name, "c", "k", WINDOW),
        item(&name, "d"),
    ];
    let receipts = append(log, items).await;
    assert_eq!(receipts[2], Receipt { id: receipts[0].id, duplicate: true });
    assert_eq!(receipts.iter().filter(|receipt| receipt.duplicate).count(), 1);
    assert_eq!(texts(log, &name).await, ["a", "b", "d"]);

    // The same across the requests of one call.
    let requests = vec![vec![keyed(&name, "e", "m", WINDOW)], vec![keyed(&name, "f", "m", WINDOW)]];
    let appended = append_all(log, requests).await;
    let id = appended[0].as_ref().unwrap()[0].id;
    assert_eq!(appended[1].as_ref().unwrap(), &[Receipt { id, duplicate: true }]);
}

pub(crate) async fn a_key_counts_until_its_window_ends(harness: &impl Harness) {
    let log = harness.log();
    let name = channel("window");
    let short = Duration::from_millis(1_500);
    let first = append(log, vec![keyed(&name, "a", "k", short), keyed(&name, "b", "long", WINDOW)]).await;
    harness.advance(Duration::from_millis(300)).await;
    // The window runs from the first use: using the key again does not extend it.
    assert!(append(log, vec![keyed(&name, "c", "k", WINDOW)]).await[0].duplicate);
    harness.advance(Duration::from_millis(1_300)).await;
    let receipts = append(log, vec![keyed(&name, "d", "k", short), keyed(&name, "e", "long", WINDOW)]).await;
    assert!(!receipts[0].duplicate && receipts[0].id > first[1].id);
    assert_eq!(receipts[1], Receipt { id: first[1].id, duplicate: true });
    assert_eq!(texts(log, &name).await, ["a", "b", "d"]);
}

pub(crate) async fn keys_belong_to_their_channel(harness: &impl Harness) {
    let log = harness.log();
    for (name, key) in [("a:b", "c"), ("a", "b:c"), ("a:b:c", "d"), ("b", "c")] {
        let receipts = append(log, vec![keyed(&channel(name), "x", key, WINDOW)]).await;
        assert!(!receipts[0].duplicate, "{name} + {key}");
    }
    for (name, key) in [("a:b", "c"), ("a", "b:c"), ("a:b:c", "d"), ("b", "c")] {
        let receipts = append(log, vec![keyed(&channel(name), "x", key, WINDOW)]).await;
        assert!(receipts[0].duplicate, "{name} + {key}");
    }
}

pub(crate) async fn keys_survive_a_purge(harness: &impl Harness) {
    let log = harness.log();
    let name = channel("purged-keys");
    let first = append(log, vec![keyed(&name, "a", "k", WINDOW)]).await[0];
    log.purge(&name, &KEEP).await.unwrap();
    let again = append(log, vec![keyed(&name, "a", "k", WINDOW)]).await[0];
    assert_eq!(again, Receipt { id: first.id, duplicate: true });
    assert!(texts(log, &name).await.is_empty());
}

pub(crate) async fn a_refused_request_uses_up_no_key(harness: &impl Harness) {
    let log = harness.log();
    let channels = neighbours(log, "unused", 2);
    let [good, bad] = &channels[..] else { unreachable!("two were asked for") };
    append_text(log, bad, "before").await;
    harness.spoil(bad).await;
    let request = vec![keyed(good, "a", "k", WINDOW), item(bad, "refused")];
    assert!(append_all(log, vec![request]).await[0].is_err());
    assert!(!append(log, vec![keyed(good, "b", "k", WINDOW)]).await[0].duplicate);
    assert_eq!(texts(log, good).await, ["b"]);
}
