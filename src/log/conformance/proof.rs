//! What a cursor proves, judged against a model that remembers every event ever appended. Seen to fail with history that
//! counts as whole, with a trimmed channel that looks as if it never was, and with a purge that leaves no marker.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::log::{Known, Proof};

const AGE: Duration = Duration::from_secs(4);

/// A channel and what was ever appended to it.
struct Model {
    channel: Channel,
    retention: Retention,
    ever: Vec<StreamId>,
    /// Positions worth asking about besides those of events.
    positions: Vec<StreamId>,
    purged: StreamId,
}

impl Model {
    async fn step(&mut self, harness: &impl Harness, rng: &mut StdRng) {
        let log = harness.log();
        match rng.random_range(0..10) {
            0..5 => {
                let count = rng.random_range(1..6);
                self.append(log, count).await;
            }
            5 => self.append(log, 150).await,
            6 => {
                log.purge(&self.channel, &KEEP).await.unwrap();
                self.purged = log.tail(partition_of(log, &self.channel)).await.unwrap().last;
                self.positions.push(self.purged);
            }
            7 => {
                // Somebody else's event moves the partition on.
                let other = append_text(log, &neighbours(log, self.channel.as_str(), 1)[0], "x").await;
                self.positions.push(other);
            }
            _ => harness.advance(Duration::from_millis(rng.random_range(200..1_700))).await,
        }
    }

    async fn append(&mut self, log: &dyn Log, count: usize) {
        let items = (0..count).map(|_| kept(item(&self.channel, "x"), self.retention)).collect();
        self.ever.extend(append(log, items).await.iter().map(|receipt| receipt.id));
    }

    /// Asks about every kind of position, and compares with what is there.
    async fn check(&self, log: &dyn Log, rng: &mut StdRng) {
        let query = ReadQuery { max_age: self.retention.max_age, ..everything() };
        let retained = ids(&read(log, &self.channel, query).await.events);
        let mut positions = self.positions.clone();
        for _ in 0..12.min(self.ever.len()) {
            positions.push(self.ever[rng.random_range(0..self.ever.len())]);
        }
        positions.extend(retained.first().into_iter().chain(retained.last()));
        positions.extend(positions.clone().into_iter().map(StreamId::before));
        for position in positions {
            let page = read(log, &self.channel, ReadQuery { after: position, ..query }).await;
            let found = ids(&page.events);
            let due: Vec<_> = self.ever.iter().copied().filter(|id| *id > position).collect();
            assert!(found.iter().all(|id| due.contains(id)), "only what was appended is read");
            let bounds = page.bounds;
            let proof = bounds.prove(position, Known::default());
            let context = || format!("{:?} after {position}: {bounds:?}", self.retention);
            if proof == Proof::Complete {
                assert_eq!(found, due, "proven complete, {}", context());
            }
            let in_history =
                position >= bounds.epoch.max(bounds.purged).max(self.purged) && position <= bounds.feed_last;
            let young = bounds.expired.is_none_or(|expired| position >= expired);
            if in_history && young && (due.is_empty() || retained.contains(&position)) {
                assert_eq!(proof, Proof::Complete, "a false alarm, {}", context());
            }
            if position < self.purged && young {
                assert_eq!(proof, Proof::Reset, "{}", context());
            }
        }
    }
}

pub(crate) async fn a_proof_is_complete_only_where_nothing_is_missing(harness: &impl Harness) {
    let log = harness.log();
    let retentions = [(None, None), (Some(20), None), (None, Some(AGE)), (Some(20), Some(AGE))];
    for seed in 0..8 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let (max_length, max_age) = retentions[seed as usize % retentions.len()];
        let name = channel(&format!("proof-{seed}"));
        let start = log.tail(partition_of(log, &name)).await.unwrap().last;
        let mut model = Model {
            channel: name,
            retention: Retention { max_length, max_age },
            ever: Vec::new(),
            positions: vec![start],
            purged: StreamId::ZERO,
        };
        for _ in 0..14 {
            model.step(harness, rng).await;
            model.check(log, rng).await;
        }
    }
}

pub(crate) async fn a_channel_with_nothing_to_miss_is_not_flagged(harness: &impl Harness) {
    let log = harness.log();
    let channels = neighbours(log, "unmissed", 2);
    let [name, other] = &channels[..] else { unreachable!("two were asked for") };
    let age = Some(AGE);
    let start = log.tail(partition_of(log, name)).await.unwrap().last;
    let query = ReadQuery { max_age: age, after: start, ..everything() };
    append_text(log, other, "x").await;
    let absent = read(log, name, query).await.bounds;
    assert_eq!(absent.prove(start, Known::default()), Proof::Complete, "nobody ever wrote to it");

    let retention = Retention { max_length: None, max_age: age };
    append(log, vec![kept(item(name, "x"), retention)]).await;
    let whole = read(log, name, query).await.bounds;
    assert_eq!(whole.prove(start, Known::default()), Proof::Complete, "its first event came later");

    harness.advance(AGE + Duration::from_millis(500)).await;
    let expired = read(log, name, query).await.bounds;
    assert_eq!(expired.prove(start, Known::default()), Proof::Trimmed, "it may have missed what expired");
    let now = append_text(log, other, "y").await;
    let young = read(log, name, ReadQuery { after: now, ..query }).await.bounds;
    assert_eq!(young.prove(now, Known::default()), Proof::Complete, "nothing younger can have expired");
}

pub(crate) async fn a_purge_resets_cursors_from_before(harness: &impl Harness) {
    let log = harness.log();
    let channels = neighbours(log, "reset", 2);
    let [name, other] = &channels[..] else { unreachable!("two were asked for") };
    let before = append_text(log, name, "a").await;
    append_text(log, other, "b").await;
    log.purge(name, &KEEP).await.unwrap();
    let purged = log.tail(partition_of(log, name)).await.unwrap().last;
    let bounds = read(log, name, everything()).await.bounds;
    assert_eq!(bounds.purged, purged);
    assert_eq!(bounds.prove(before, Known::default()), Proof::Reset);
    assert_eq!(
        bounds.prove(before, Known { purge: purged, ..Known::default() }),
        Proof::Complete,
        "a reader that knows of the purge is not told again"
    );
    assert_eq!(bounds.prove(purged, Known::default()), Proof::Complete);
    let untouched = read(log, other, everything()).await.bounds;
    assert_eq!(
        untouched.prove(before, Known::default()),
        Proof::Complete,
        "other channels are not concerned"
    );
    append_text(log, name, "c").await;
    let refilled = read(log, name, everything()).await.bounds;
    assert_eq!(refilled.prove(before, Known::default()), Proof::Reset);
    assert_eq!(refilled.prove(purged, Known::default()), Proof::Complete);
}
