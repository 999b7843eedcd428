//! What survives: restarts, torn writes, damage, a disk that fails.

use std::fs;
use std::path::PathBuf;

use futures_util::future::join_all;
use proptest::prelude::*;

use super::super::journal::written_len;
use super::*;
use crate::log::conformance::{
    KEEP, append, append_text, channel, everything, item, keyed, noise, read, texts,
};
use crate::log::{Known, Outcome, Proof};

const HOUR: Duration = Duration::from_secs(3600);

/// A log that writes nothing of its own accord.
fn without_sweeps(dir: &Path, clock: &ManualClock) -> EmbeddedLog {
    let options = EmbeddedOptions { sweep_interval: HOUR, ..EmbeddedOptions::default() };
    EmbeddedLog::open(dir, options, clock.get()).unwrap()
}

/// What a disk would show if the power failed now.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn journal(dir: &Path) -> PathBuf {
    dir.join("db/0.jnl")
}

#[tokio::test]
async fn a_restart_without_close_keeps_what_was_acknowledged() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let (a, b) = (channel("a"), channel("b"));
    let log = open(dir.path(), &clock);
    let fresh = log.tail(Partition(0)).await.unwrap();
    let first = append(&log, vec![keyed(&a, "1", "k", HOUR), item(&b, "2")]).await;
    log.purge(&b, &KEEP).await.unwrap();
    let last = append_text(&log, &b, "3").await;
    drop(log);

    let log = open(dir.path(), &clock);
    assert_eq!(log.tail(Partition(0)).await.unwrap(), Tail { last, epoch: fresh.epoch });
    assert_eq!(texts(&log, &a).await, ["1"]);
    assert_eq!(texts(&log, &b).await, ["3"]);
    let again = append(&log, vec![keyed(&a, "1", "k", HOUR)]).await[0];
    assert_eq!((again.id, again.duplicate), (first[0].id, true));
    let bounds = read(&log, &b, everything()).await.bounds;
    assert_eq!(bounds.prove(first[1].id, Known::default()), Proof::Reset, "the purge is remembered");

    // The feed starts anew, where the run before ended.
    assert_eq!(
        log.follow(Partition(0), fresh.last).await.unwrap(),
        Followed::Trimmed(log.tail(Partition(0)).await.unwrap())
    );
    let next = append_text(&log, &a, "4").await;
    let Followed::Refs(refs) = log.follow(Partition(0), last).await.unwrap() else { panic!("refs") };
    assert_eq!(refs.iter().map(|entry| entry.id).collect::<Vec<_>>(), [next]);
}

#[tokio::test]
async fn ids_go_on_when_the_clock_jumps_back() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let name = channel("a");
    let mut all = Vec::new();
    for _ in 0..3 {
        let log = open(dir.path(), &clock);
        all.push(append_text(&log, &name, "x").await);
        log.purge(&name, &KEEP).await.unwrap();
        all.push(log.tail(Partition(0)).await.unwrap().last);
        clock.0.fetch_sub(3_600_000, Ordering::SeqCst);
        all.push(append_text(&log, &name, "y").await);
    }
    conformance::assert_increasing(&all);
}

#[tokio::test]
async fn an_open_directory_is_refused_and_a_closed_one_is_free() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let log = open(dir.path(), &clock);
    let error = EmbeddedLog::open(dir.path(), options(), clock.get()).err().unwrap();
    assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
    assert!(matches!(error, OpenError::Locked(_)) && error.is_retryable());
    let id = append_text(&log, &channel("a"), "x").await;

    log.close().await;
    for error in [
        log.ping().await.unwrap_err(),
        log.purge(&channel("a"), &KEEP).await.unwrap_err(),
        log.read(&channel("a"), &everything()).await.unwrap_err(),
    ] {
        assert!(matches!(error, LogError::Unavailable(_)), "{error}");
    }
    drop(log);
    assert_eq!(open(dir.path(), &clock).tail(Partition(0)).await.unwrap().last, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_share_a_commit() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let log = without_sweeps(dir.path(), &clock);
    let name = channel("a");
    let batches = || {
        let bytes = fs::read(journal(dir.path())).unwrap();
        bytes.windows(4).filter(|window| window == b"FJL\x03").count()
    };
    let before = batches();
    let free = log.room.available_permits();
    let held = Arc::clone(&log.shared);
    let (let_go, gone) = oneshot::channel::<()>();
    let holding = spawn_blocking(move || {
        let _writer_waits = held.store.write();
        let _ = gone.blocking_recv();
    });
    eventually("the lock", async || log.shared.store.try_read().is_none().then_some(())).await;
    let appends = join_all((0..50).map(|n| append_text(&log, &name, if n == 0 { "first" } else { "x" })));
    let release = async {
        let all = 50 * COMMAND_KIB_MIN as usize;
        eventually("the queue", async || (free - log.room.available_permits() == all).then_some(())).await;
        let_go.send(()).unwrap();
    };
    let (ids, ()) = tokio::join!(appends, release);
    holding.await.unwrap();
    assert_eq!(ids.len(), 50);
    assert!((1..=2).contains(&(batches() - before)), "{} commits", batches() - before);
    assert_eq!(texts(&log, &name).await.len(), 50);
}

#[tokio::test]
async fn a_write_with_a_hole_in_it_is_cut_off() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let log = without_sweeps(dir.path(), &clock);
    append_text(&log, &channel("a"), "acknowledged").await;
    let acknowledged = written_len(&fs::read(journal(dir.path())).unwrap());
    append_text(&log, &channel("a"), &noise(3_000)).await;
    drop(log);
    // One sector never arrived, what came after it did: the batch looks whole but for its checksum.
    let mut bytes = fs::read(journal(dir.path())).unwrap();
    bytes[acknowledged + 1_000..][..512].fill(0);
    fs::write(journal(dir.path()), &bytes).unwrap();
    assert_eq!(texts(&without_sweeps(dir.path(), &clock), &channel("a")).await, ["acknowledged"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_torn_write_takes_nothing_back_and_appears_whole_or_not_at_all(
        sizes in prop::collection::vec(0..30_000_usize, 1..5),
        holes in prop::collection::vec((any::<prop::sample::Index>(), 1..5_000_usize), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
            let (live, torn) = (dir.path().join("live"), dir.path().join("torn"));
            let name = channel("a");
            let log = without_sweeps(&live, &clock);
            append(&log, (0..20).map(|n| item(&name, &format!("acknowledged {n}"))).collect()).await;
            let acknowledged = written_len(&fs::read(journal(&live)).unwrap());
            append(&log, sizes.iter().map(|size| item(&name, &noise(*size))).collect()).await;
            copy(&live, &torn);
            drop(log);

            let mut bytes = fs::read(journal(&torn)).unwrap();
            let end = written_len(&bytes);
            for (at, len) in holes {
                let at = acknowledged + at.index(end - acknowledged);
                bytes[at..(at + len).min(end)].fill(0);
            }
            if let Some(cut) = cut {
                bytes.truncate(acknowledged + cut.index(end - acknowledged));
            }
            fs::write(journal(&torn), &bytes).unwrap();

            let log = without_sweeps(&torn, &clock);
            let found = texts(&log, &name).await;
            let whole = found.len() == 20 + sizes.len();
            assert!(whole || found.len() == 20, "{} events", found.len());
            assert_eq!(found[19], "acknowledged 19");
            let last = read(&log, &name, everything()).await.events.last().unwrap().id;
            assert!(append_text(&log, &name, "goes on").await > last);
            drop(log);
            let found_again = texts(&without_sweeps(&torn, &clock), &name).await;
            assert_eq!(found_again.len(), found.len() + 1);
        });
    }
}

#[tokio::test]
async fn damage_in_the_middle_of_the_journal_is_reported_in_words() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let log = without_sweeps(dir.path(), &clock);
    append_text(&log, &channel("a"), "first").await;
    let at = written_len(&fs::read(journal(dir.path())).unwrap()) - 30;
    append_text(&log, &channel("a"), "second").await;
    drop(log);
    let mut bytes = fs::read(journal(dir.path())).unwrap();
    bytes[at] ^= 1;
    fs::write(journal(dir.path()), &bytes).unwrap();
    let error = EmbeddedLog::open(dir.path(), options(), clock.get()).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }) && !error.is_retryable());
    assert!(error.to_string().contains("0.jnl is broken at byte"), "{error}");
}

#[tokio::test]
async fn a_database_without_its_files_is_reported_in_words() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let log = open(dir.path(), &clock);
    append_text(&log, &channel("a"), "x").await;
    log.shared.store().unwrap().events.rotate_memtable_and_wait().unwrap();
    drop(log);
    let tables: Vec<_> = walk(&dir.path().join("db/keyspaces"))
        .into_iter()
        .filter(|path| path.parent().is_some_and(|parent| parent.ends_with("tables")))
        .collect();
    assert!(!tables.is_empty());
    for table in tables {
        fs::remove_file(table).unwrap();
    }
    let error = EmbeddedLog::open(dir.path(), options(), clock.get()).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. } | OpenError::Io { .. }), "{error}");
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn stored_values_that_contradict_the_layout_are_damage_and_no_panic() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let log = open(dir.path(), &clock);
    let (good, event, state) = (channel("good"), channel("event"), channel("state"));
    append_text(&log, &good, "x").await;
    let id = append_text(&log, &event, "x").await;
    append_text(&log, &state, "x").await;
    let store = log.shared.store().unwrap();
    store.events.insert(record::key(&event, id), [0xff_u8; 3]).unwrap();
    store.channels.insert(state.as_str(), [0xff_u8; 80]).unwrap();
    for name in [&event, &state] {
        let error = log.read(name, &everything()).await.unwrap_err();
        assert!(
            matches!(error, LogError::Damaged(_)) && error.to_string().contains(name.as_str()),
            "{error}"
        );
    }
    assert!(matches!(log.info(&state, &KEEP).await, Err(LogError::Damaged(_))));
    assert_eq!(texts(&log, &good).await, ["x"], "other channels are not concerned");
    log.purge(&event, &KEEP).await.unwrap();
    assert!(texts(&log, &event).await.is_empty(), "a purge mends a channel");

    store.partition.insert(partition_state::KEY, "no state").unwrap();
    drop((store, log));
    let error = EmbeddedLog::open(dir.path(), options(), clock.get()).err().unwrap();
    assert!(matches!(&error, OpenError::Damaged { what, .. } if what.contains("partition")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_refuses_publishing_until_it_recovers_and_loses_nothing() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let (live, other) = (dir.path().join("live"), dir.path().join("other"));
    let name = channel("a");
    let log = without_sweeps(&live, &clock);
    let first = append_text(&log, &name, "acknowledged").await;
    // What the journal looks like when the next request reached the disk.
    copy(&live, &other);
    let twin = without_sweeps(&other, &clock);
    append(&twin, vec![item(&name, "in"), item(&name, "doubt")]).await;
    drop(twin);

    // A memory table cannot be written: the database refuses everything from then on. The disk stays bad.
    let (tables, away) = (live.join("db/keyspaces"), live.join("db/away"));
    fs::rename(&tables, &away).unwrap();
    fs::create_dir(live.join("probe")).unwrap();
    let store = log.shared.store().unwrap();
    store.events.rotate_memtable().unwrap();
    eventually("the database to refuse", async || store.events.insert("probe", "").is_err().then_some(()))
        .await;
    drop(store);
    let request = [AppendRequest { items: vec![item(&name, "in"), item(&name, "doubt")] }];
    let error = log.append(Partition(0), &request).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    assert!(error.to_string().contains(&live.display().to_string()), "{error}");

    // What comes now certainly has no effect, and what was there can be read.
    let error = log.append(Partition(0), &request).await.unwrap_err();
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotPublished, true), "{error}");
    assert!(log.ping().await.is_err());
    assert_eq!(texts(&log, &name).await, ["acknowledged"]);

    // The request in doubt did reach the disk; the disk recovers.
    let journal_in_doubt = fs::read(journal(&other)).unwrap();
    fs::write(journal(&live), journal_in_doubt).unwrap();
    fs::rename(&away, &tables).unwrap();
    fs::remove_dir(live.join("probe")).unwrap();
    eventually("the disk to recover", async || log.ping().await.ok()).await;
    let followed = log.follow(Partition(0), first).await.unwrap();
    assert!(matches!(followed, Followed::Trimmed(tail) if tail.last > first), "{followed:?}");
    let last = append_text(&log, &name, "after").await;
    assert_eq!(texts(&log, &name).await, ["acknowledged", "in", "doubt", "after"]);
    let all = read(&log, &name, everything()).await.events;
    conformance::assert_increasing(&conformance::ids(&all));
    assert_eq!(all.last().unwrap().id, last);
}

#[tokio::test]
async fn nothing_is_lost_when_memory_tables_go_to_disk_in_between() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let name = channel("a");
    let mut expected = Vec::new();
    for round in 0..4 {
        let log = open(dir.path(), &clock);
        for n in 0..10 {
            let retention = Retention { max_length: Some(1_000), ..KEEP };
            let text = format!("{round}.{n}");
            append(&log, vec![conformance::kept(item(&name, &text), retention)]).await;
            expected.push(text);
            if n == 3 || n == 7 {
                let store = log.shared.store().unwrap();
                for keyspace in [&store.events, &store.channels, &store.partition] {
                    keyspace.rotate_memtable_and_wait().unwrap();
                }
            }
        }
        assert_eq!(texts(&log, &name).await, expected);
    }
    assert_eq!(texts(&open(dir.path(), &clock), &name).await, expected);
}
