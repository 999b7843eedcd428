//! Random calls compared with a simple model of what they ought to do. Seen to fail with most branches of the functions
//! broken: refs without events, forgotten keys, missed poison, wrong types in a batch, no epoch after a flush, no trimming.
//!
//! Brokers publish, purge and lose the store to a flush, and somebody else writes into the channels with ids that
//! lie ahead or too far ahead. Invariants: ids strictly rise, also over a flush; every ref has its event unless
//! retention removed it; every event has exactly one ref; every result is the model's.

use std::collections::{BTreeMap, HashMap, HashSet};

use rand::RngExt;
use rand::rngs::StdRng;

use super::{
    CHANNELS, DAY_MS, Functions, Id, Item, NO_FLOOR, Outcome, Receipt, id, item, key_of, refusal, show,
};
use crate::support::seeded;

/// The last one keeps few events.
const NAMES: [&str; 5] = ["a", "b", "a:b", "wrong", "short"];
const SHORT_LENGTH: u64 = 10;
const KEYS: [&str; 4] = ["k", "b:k", "1", "2"];
const CALLS: usize = 4_000;
/// Calls between two looks at everything that is stored.
const CHECK_EVERY: usize = 50;

/// What a channel ought to hold.
#[derive(Default)]
struct Channel {
    /// Ids, data, and whether a function wrote it; what retention removed included.
    entries: Vec<(Id, String, bool)>,
    last: Id,
    is_wrong_type: bool,
}

#[derive(Default)]
struct Model {
    channels: BTreeMap<&'static str, Channel>,
    /// Refs since the last flush; those of purged channels stay.
    refs: Vec<(Id, String)>,
    /// Ids by channel and key.
    keys: HashMap<(String, String), Id>,
    /// The highest id that this node was given.
    newest: Id,
    /// From here on a channel's last id is poison.
    poison_from: u64,
}

impl Model {
    fn channel(&mut self, name: &str) -> &mut Channel {
        let name = NAMES.iter().find(|known| **known == name).expect("a known name");
        self.channels.entry(name).or_default()
    }

    fn refuses(&mut self, name: &str) -> Option<Outcome> {
        let poison_from = self.poison_from;
        let channel = self.channel(name);
        if channel.is_wrong_type {
            Some(refusal("wrong_type", name))
        } else if channel.last.0 >= poison_from {
            Some(refusal("poisoned", name))
        } else {
            None
        }
    }

    /// Takes in one request's result after checking it.
    fn request(&mut self, items: &[Item], result: &Outcome) {
        if items.len() > 1
            && let Some(refused) = items.iter().find_map(|item| self.refuses(&item.channel))
        {
            assert_eq!(result, &refused);
            return;
        }
        let mut receipts = result.iter().flatten();
        for item in items {
            let key = (item.channel.clone(), item.key.clone());
            if let Some(id) = self.keys.get(&key) {
                assert_eq!(receipts.next(), Some(&Receipt { id: *id, duplicate: true }), "{item:?}");
                continue;
            }
            if let Some(refused) = self.refuses(&item.channel) {
                assert_eq!(result, &refused);
                return;
            }
            let receipt = receipts.next().unwrap_or_else(|| panic!("{item:?} was answered {result:?}"));
            assert!(!receipt.duplicate, "{item:?}");
            self.append(item, receipt.id);
            if !item.key.is_empty() {
                self.keys.insert(key, receipt.id);
            }
        }
    }

    fn append(&mut self, item: &Item, id: Id) {
        assert!(id > self.newest, "{id:?} after {:?}", self.newest);
        self.newest = id;
        self.refs.push((id, item.channel.clone()));
        let channel = self.channel(&item.channel);
        assert!(id > channel.last, "{id:?} after the channel's {:?}", channel.last);
        channel.last = id;
        channel.entries.push((id, item.data.clone(), true));
    }
}

/// A model and the store that it describes.
struct Game {
    store: Functions,
    model: Model,
    rng: StdRng,
    number: usize,
    seen: HashSet<&'static str>,
}

impl Game {
    fn one_of(&mut self, names: &[&'static str]) -> &'static str {
        names[self.rng.random_range(0..names.len())]
    }

    fn request(&mut self) -> Vec<Item> {
        let items = if self.rng.random_bool(0.5) { 1 } else { self.rng.random_range(2..5) };
        let mut next = || {
            self.number += 1;
            let rest = NAMES[self.rng.random_range(0..NAMES.len())];
            let channel = if self.rng.random_bool(0.3) { "short" } else { rest };
            let length_max = (channel == "short").then_some(SHORT_LENGTH);
            let event = item(channel, &self.number.to_string()).kept(length_max, None);
            if self.rng.random_bool(0.2) {
                event.keyed(KEYS[self.rng.random_range(0..KEYS.len())])
            } else {
                event
            }
        };
        (0..items).map(|_| next()).collect()
    }

    fn publish(&mut self) {
        let requests: Vec<Vec<Item>> = (0..self.rng.random_range(1..4)).map(|_| self.request()).collect();
        let slices: Vec<&[Item]> = requests.iter().map(Vec::as_slice).collect();
        let floor = show(self.model.newest);
        let results = self.store.try_publish(&floor, &slices).expect("nothing that this node saw is missing");
        assert_eq!(results.len(), requests.len());
        for (request, result) in requests.iter().zip(&results) {
            self.model.request(request, result);
            self.seen.insert(match result {
                Err((code, _)) if code == "poisoned" => "poisoned",
                Err(_) => "wrong_type",
                Ok(receipts) if receipts.iter().any(|receipt| receipt.duplicate) => "duplicate",
                Ok(_) => "published",
            });
        }
    }

    /// Somebody's `XADD` at this many milliseconds from now.
    fn foreign(&mut self, ahead: u64, what: &'static str) {
        let name = self.one_of(&NAMES);
        let at = (self.store.now() + ahead, self.rng.random());
        let channel = self.model.channel(name);
        if channel.is_wrong_type || at <= channel.last {
            return;
        }
        self.store.xadd(name, at, &["data", "foreign"]);
        channel.last = at;
        channel.entries.push((at, "foreign".into(), false));
        self.seen.insert(what);
    }

    /// Somebody's `SET` over a channel.
    fn break_type(&mut self) {
        self.store.call(&["SET", &key_of("wrong"), "x"]);
        *self.model.channel("wrong") = Channel { is_wrong_type: true, ..Channel::default() };
    }

    fn purge(&mut self) {
        let name = self.one_of(&NAMES);
        let floor = show(self.model.newest);
        let marker = id(self.store.fcall("headwater_purge_v1", &[name, &floor, ""]).text());
        assert!(marker > self.model.newest);
        self.model.newest = marker;
        *self.model.channel(name) = Channel::default();
    }

    fn flush(&mut self) {
        self.store.call(&["FLUSHALL"]);
        self.model.channels.clear();
        self.model.refs.clear();
        self.model.keys.clear();
    }

    fn reset(&mut self) {
        let newest = show(self.model.newest);
        let reply = self.store.fcall("headwater_reset_v1", &[&newest, &newest]);
        self.model.newest = self.model.newest.max(id(reply.items()[0].text()));
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..75 => self.publish(),
            75..83 => self.foreign(0, "foreign now"),
            83..88 => {
                let ahead = self.rng.random_range(0..3_600_000);
                self.foreign(ahead, "foreign ahead");
            }
            88..90 => self.foreign(2 * DAY_MS, "foreign poison"),
            90..92 => self.break_type(),
            92..95 => self.purge(),
            95..99 => self.reset(),
            _ if self.rng.random_bool(0.3) => self.flush(),
            _ => {}
        }
    }

    fn check(&mut self) {
        let refs = self.store.refs();
        assert!(refs.windows(2).all(|pair| pair[0].0 < pair[1].0), "ids rise");
        assert_eq!(refs, self.model.refs);
        let listed = self.store.call(&["SMEMBERS", CHANNELS]);
        for name in NAMES {
            let channel = self.model.channels.entry(name).or_default();
            if channel.is_wrong_type {
                continue;
            }
            let stored = self.store.channel(name);
            let stored: Vec<(Id, String, bool)> =
                stored.iter().map(|e| (e.id, e.field("data").unwrap().to_owned(), e.is_event())).collect();
            let (kept, all) = (stored.len(), channel.entries.len());
            let least = if name == "short" { all.min(SHORT_LENGTH.try_into().unwrap()) } else { all };
            assert!((least..=all).contains(&kept), "{name} keeps {kept} of {all}");
            assert_eq!(stored, channel.entries[all - kept..], "{name}");
            if channel.entries.iter().any(|(_, _, is_event)| *is_event) {
                assert!(listed.items().iter().any(|of| of.text() == name), "{name} is listed");
            }
            if kept < all {
                self.seen.insert("trimmed");
            }
        }
    }
}

#[tokio::test]
async fn random_calls_do_what_a_simple_model_does() {
    let mut store = Functions::load().await;
    let newest = id(store.fcall("headwater_tail_v1", &[NO_FLOOR]).items()[0].text());
    let poison_from = store.now() + DAY_MS + DAY_MS / 2;
    let model = Model { newest, poison_from, ..Model::default() };
    let mut game = Game { store, model, rng: seeded(), number: 0, seen: HashSet::new() };
    for call in 0..CALLS {
        game.step();
        if call % CHECK_EVERY == 0 {
            game.check();
        }
    }
    game.check();
    let all = [
        "published",
        "duplicate",
        "poisoned",
        "wrong_type",
        "foreign now",
        "foreign ahead",
        "foreign poison",
        "trimmed",
    ];
    let missing: Vec<_> = all.into_iter().filter(|what| !game.seen.contains(what)).collect();
    assert!(missing.is_empty(), "never happened in {CALLS} calls: {missing:?}");
}
