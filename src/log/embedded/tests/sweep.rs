//! What goes: expired events, keys and channels, and what purges leave behind.

use fjall::Keyspace;

use super::super::recovery;
use super::super::sweep::Sweep;
use super::*;
use crate::log::conformance::{
    KEEP, append, append_text, channel, everything, item, kept, keyed, read, texts,
};
use crate::log::{Known, Proof};

const AGE: Duration = Duration::from_secs(10);
const AGED: Retention = Retention { max_length: None, max_age: Some(AGE) };

fn count(keyspace: &Keyspace) -> usize {
    keyspace.len().unwrap()
}

async fn until_empty(log: &EmbeddedLog, what: &str, keyspace: impl Fn(&Store) -> &Keyspace) {
    let store = log.shared.store().unwrap();
    eventually(what, async || (count(keyspace(&store)) == 0).then_some(())).await;
}

#[tokio::test]
async fn quiet_channels_vanish_from_the_disk_when_their_events_have_expired() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let log = open(dir.path(), &clock);
    for n in 0..30 {
        append(&log, vec![kept(item(&channel(&format!("c{}", n % 7)), "x"), AGED)]).await;
        clock.advance(Duration::from_millis(100));
    }
    let store = log.shared.store().unwrap();
    assert_eq!((count(&store.events), count(&store.channels)), (30, 7));
    clock.advance(AGE / 2);
    append(&log, vec![kept(item(&channel("c0"), "young"), AGED)]).await;
    clock.advance(AGE / 2);
    eventually("the old to go", async || (count(&store.events) == 1).then_some(())).await;
    assert_eq!(texts(&log, &channel("c0")).await, ["young"]);
    assert_eq!(log.info(&channel("c0"), &KEEP).await.unwrap().unwrap().length, 1);
    clock.advance(AGE);
    until_empty(&log, "the last event", |store| &store.events).await;
    until_empty(&log, "the channels", |store| &store.channels).await;
    until_empty(&log, "the index", |store| &store.due).await;
}

#[tokio::test]
async fn a_channel_without_a_maximum_age_stays() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let log = open(dir.path(), &clock);
    append_text(&log, &channel("kept"), "x").await;
    append(&log, vec![kept(item(&channel("aged"), "x"), AGED)]).await;
    clock.advance(AGE * 1_000_000);
    eventually("the other to go", async || (count(&log.shared.store().unwrap().events) == 1).then_some(()))
        .await;
    assert_eq!(texts(&log, &channel("kept")).await, ["x"]);
}

#[tokio::test]
async fn used_keys_go_when_their_window_has_ended() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let log = open(dir.path(), &clock);
    let name = channel("a");
    append(&log, (0..20).map(|n| keyed(&name, "x", &n.to_string(), AGE)).collect()).await;
    clock.advance(AGE);
    // Used anew: it must outlive the index entry of its first use.
    assert!(!append(&log, vec![keyed(&name, "y", "7", AGE)]).await[0].duplicate);
    let store = log.shared.store().unwrap();
    eventually("expired keys to go", async || (count(&store.keys) == 1).then_some(())).await;
    assert!(append(&log, vec![keyed(&name, "z", "7", AGE)]).await[0].duplicate);
    clock.advance(AGE);
    until_empty(&log, "the last key", |store| &store.keys).await;
}

#[tokio::test]
async fn a_purged_channel_leaves_the_disk_and_its_marker_goes_with_its_age() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let log = open(dir.path(), &clock);
    let name = channel("a");
    let before = append(&log, (0..2_000).map(|_| kept(item(&name, "x"), AGED)).collect()).await[0].id;
    log.purge(&name, &KEEP).await.unwrap();
    append(&log, (0..500).map(|_| kept(item(&name, "y"), AGED)).collect()).await;
    log.purge(&name, &KEEP).await.unwrap();
    let kept_id = append(&log, vec![kept(item(&name, "kept"), AGED)]).await[0].id;
    let store = log.shared.store().unwrap();
    eventually("leftovers to go", async || (count(&store.events) == 1).then_some(())).await;
    assert_eq!(texts(&log, &name).await, ["kept"]);
    let query = ReadQuery { max_age: Some(AGE), after: before, ..everything() };
    assert_eq!(read(&log, &name, query).await.bounds.prove(before, Known::default()), Proof::Reset);

    log.purge(&name, &KEEP).await.unwrap();
    clock.advance(AGE + Duration::from_millis(1));
    until_empty(&log, "the marker", |store| &store.channels).await;
    for position in [before, kept_id] {
        let bounds = read(&log, &name, ReadQuery { after: position, ..query }).await.bounds;
        assert_ne!(
            bounds.prove(position, Known::default()),
            Proof::Complete,
            "age rules out what the marker did"
        );
    }
}

#[tokio::test]
async fn an_age_that_was_shortened_counts_from_the_next_append() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let log = open(dir.path(), &clock);
    let name = channel("a");
    append(&log, vec![kept(item(&name, "x"), Retention { max_age: Some(AGE * 1_000), ..KEEP })]).await;
    append(&log, vec![kept(item(&name, "y"), AGED)]).await;
    clock.advance(AGE * 2);
    until_empty(&log, "both events", |store| &store.events).await;
}

#[tokio::test]
async fn a_sweep_goes_in_bounded_pieces_that_each_leave_the_channel_whole() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let name = channel("a");
    {
        // Nothing expires while the writer thread may sweep too.
        let log = open(dir.path(), &clock);
        append(&log, (0..100).map(|_| kept(item(&name, "old"), AGED)).collect()).await;
        clock.advance(AGE / 2);
        append(&log, (0..5).map(|_| kept(item(&name, "young"), AGED)).collect()).await;
        log.close().await;
    }
    clock.advance(AGE / 2 + Duration::from_millis(1));
    let now_ms = clock.get()();
    let directory = Directory::open(dir.path()).unwrap();
    let (store, _, _) = recovery::open(&directory, false, 1 << 20, now_ms).unwrap();
    let mut left = count(&store.events);
    assert_eq!(left, 105);
    let mut sweep = Sweep::default();
    loop {
        let more = sweep.run(&store, now_ms, 10).unwrap();
        let now_left = count(&store.events);
        assert!(left - now_left <= 10, "{left} to {now_left}");
        let state = store.channel_state(&store.snapshot(), &name).unwrap().unwrap();
        let held = state.held.unwrap();
        assert_eq!(held.length, now_left as u64);
        let query = ReadQuery { after: held.first.before(), ..everything() };
        assert_eq!(read::page(&store, &name, &query, now_ms).unwrap().events[0].id, held.first);
        assert_eq!(held.entries_added, 105, "what was removed still counts");
        left = now_left;
        if !more {
            break;
        }
    }
    assert_eq!(left, 5);
}
