//! Groups: however requests fall into groups, the log holds what it would hold had they come one by one.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::super::group::Group;
use super::super::recovery;
use super::super::sweep::Sweep;
use super::*;
use crate::log::conformance::{KEEP, channel, everything, ids, item, kept, keyed};

/// Kept by the channels of the model; they may hold 200 more.
const KEPT: usize = 5;

#[derive(Clone, Debug)]
enum Op {
    /// Appends so many events to a channel.
    Append(usize, usize),
    /// Appends one event with a key.
    Keyed(usize, u8),
    Purge(usize),
    /// The group ends here.
    Commit,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..2_usize, 1..130_usize).prop_map(|(which, count)| Op::Append(which, count)),
        3 => (0..2_usize, 0..4_u8).prop_map(|(which, key)| Op::Keyed(which, key)),
        1 => (0..2_usize).prop_map(Op::Purge),
        3 => Just(Op::Commit),
    ]
}

#[derive(Default)]
struct Model {
    held: [Vec<StreamId>; 2],
    keys: HashMap<(usize, u8), StreamId>,
    /// Ids that were given to events with a key.
    keyed_ever: HashSet<StreamId>,
}

impl Model {
    fn apply(&mut self, group: &mut Group<'_>, op: &Op) {
        let retention = Retention { max_length: Some(KEPT as u64), ..KEEP };
        let name = |which: usize| channel(&format!("c{which}"));
        let mut append = |items: Vec<_>| {
            let request = AppendRequest { items };
            group.load(std::slice::from_ref(&request)).unwrap();
            group.append(&request).unwrap()
        };
        match op {
            Op::Append(which, count) => {
                let receipts = append(vec![kept(item(&name(*which), "x"), retention); *count]);
                self.held[*which].extend(receipts.iter().map(|receipt| receipt.id));
            }
            Op::Keyed(which, key) => {
                let keyed = keyed(&name(*which), "x", &key.to_string(), Duration::from_secs(60));
                let receipt = append(vec![kept(keyed, retention)])[0];
                let first = *self.keys.entry((*which, *key)).or_insert(receipt.id);
                assert_eq!((receipt.id, receipt.duplicate), (first, self.keyed_ever.contains(&first)));
                if self.keyed_ever.insert(first) {
                    self.held[*which].push(first);
                }
            }
            Op::Purge(which) => {
                group.purge(&name(*which)).unwrap();
                self.held[*which].clear();
            }
            Op::Commit => unreachable!("handled by the caller"),
        }
    }

    fn trim(&mut self) {
        for held in &mut self.held {
            if held.len() > KEPT + 200 {
                held.drain(..held.len() - KEPT);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_group_does_what_its_requests_would_do_one_by_one(mut ops in prop::collection::vec(op(), 1..30)) {
        ops.push(Op::Commit);
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        let (store, mut state, _) = recovery::open(&directory, false, 1 << 20, 1_000).unwrap();
        let mut model = Model::default();
        for ops in ops.split_inclusive(|op| matches!(op, Op::Commit)) {
            let mut group = Group::new(&store, state, 1_000);
            for op in ops.iter().filter(|op| !matches!(op, Op::Commit)) {
                model.apply(&mut group, op);
            }
            model.trim();
            let prepared = group.finish().unwrap();
            if let Some(batch) = prepared.batch {
                Store::commit_durably(batch).unwrap();
            }
            prop_assert!(prepared.refs.windows(2).all(|pair| pair[0].id < pair[1].id));
            prop_assert!(prepared.refs.first().is_none_or(|first| first.id > state.last));
            state = prepared.state;
            for (which, held) in model.held.iter().enumerate() {
                let page = read::page(&store, &channel(&format!("c{which}")), &everything(), 1_000).unwrap();
                prop_assert_eq!(&ids(&page.events), held);
                prop_assert_eq!(page.bounds.extent.map_or(0, |extent| extent.length), held.len() as u64);
                prop_assert_eq!(page.bounds.extent.map(|extent| extent.first), held.first().copied());
                prop_assert_eq!(page.bounds.feed_last, state.last);
            }
        }
        // Nothing that cannot be read stays on disk.
        while Sweep::default().run(&store, 1_000, 1_000).unwrap() {}
        prop_assert_eq!(store.events.len().unwrap(), model.held.concat().len());
    }
}
