//! The main job on real data: a week of earthquakes goes in as NDJSON, and every subscriber gets exactly its part.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::support::{Broker, Event, Store, Subscribe, ZERO_CURSOR, seeded};

const EARTHQUAKES: &str = include_str!("../data/earthquakes.ndjson");

/// One line of the file.
#[derive(Deserialize)]
struct Quake {
    channel: String,
    data: Box<RawValue>,
}

fn quakes() -> Vec<Quake> {
    let quakes: Vec<Quake> =
        EARTHQUAKES.lines().map(|line| serde_json::from_str(line).expect("the file is NDJSON")).collect();
    assert_eq!(quakes.len(), 1_707);
    quakes
}

fn channels(quakes: &[Quake]) -> Vec<&str> {
    quakes.iter().map(|quake| quake.channel.as_str()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// What subscribers of `channels` must get, in order.
fn expected<'a>(quakes: &'a [Quake], channels: &[&str]) -> Vec<&'a str> {
    let of_them = quakes.iter().filter(|quake| channels.contains(&quake.channel.as_str()));
    of_them.map(|quake| quake.data.get()).collect()
}

fn assert_is(got: &[Event], expected: &[&str], who: &str) {
    assert_eq!(got.len(), expected.len(), "{who}");
    for (number, (event, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!((event.kind.as_str(), event.data.as_str()), ("quake", *expected), "{who}, event {number}");
    }
    assert!(got.is_sorted_by(|a, b| a.last_event_id < b.last_event_id), "{who}: ids strictly increase");
}

async fn publish_file(broker: &Broker) -> String {
    let answer = broker.http.publish_ndjson(EARTHQUAKES).await.expect(200).json();
    assert_eq!((&answer["published"], &answer["duplicates"]), (&json!(1_707), &json!(0)), "{answer}");
    answer["last_id"].as_str().expect("`last_id` is a string").to_owned()
}

/// Seen to fail without the merge of the channels by id, and with keys that are not remembered.
async fn every_live_subscriber_gets_its_channels_whole_and_in_order(store: Store) {
    let broker = Broker::start(store).await;
    let quakes = quakes();
    let names = channels(&quakes);
    let mut readers = BTreeMap::new();
    for name in &names {
        readers.insert(vec![*name], Subscribe::to(&[name]).connect(broker.addr).await);
    }
    readers.insert(names.clone(), Subscribe::to(&names).connect(broker.addr).await);

    let last_id = publish_file(&broker).await;
    for (channels, reader) in &mut readers {
        let expected = expected(&quakes, channels);
        assert_is(&reader.events(expected.len()).await, &expected, &channels.join(","));
    }
    assert_eq!(readers[&names].last_event_id(), last_id);

    let again = broker.http.publish_ndjson(EARTHQUAKES).await.expect(200).json();
    assert_eq!((&again["published"], &again["duplicates"]), (&json!(0), &json!(1_707)), "{again}");
    for (number, name) in names.iter().enumerate() {
        broker.http.publish(name, format!("fence {number}")).await;
    }
    for (channels, reader) in &mut readers {
        // Had anything been published twice, it would come before the fence.
        let first = names.iter().position(|name| name == &channels[0]).expect("a channel of the file");
        assert_eq!(reader.one().await, format!("fence {first}"));
    }
}

/// Seen to fail without the merge by id, with a merge that goes past what one of its channels has read, and with an
/// `earliest` that is `latest`.
async fn a_late_subscriber_gets_the_whole_week(store: Store) {
    let broker = Broker::start(store).await;
    let quakes = quakes();
    publish_file(&broker).await;
    let names = channels(&quakes);
    let mut late = Subscribe::to(&names).query("last_event_id", "earliest").connect(broker.addr).await;
    assert_eq!(late.connected.last_event_id, ZERO_CURSOR);
    assert_is(&late.events(quakes.len()).await, &expected(&quakes, &names), "the late subscriber");
    for name in &names {
        let expected = expected(&quakes, &[name]);
        let mut late = Subscribe::to(&[name]).after("earliest").connect(broker.addr).await;
        assert_is(&late.events(expected.len()).await, &expected, name);
    }
}

/// Seen to fail with the same.
async fn any_cursor_in_the_middle_gives_exactly_the_rest_of_any_channels(store: Store) {
    let mut rng = seeded();
    let broker = Broker::start(store).await;
    let quakes = quakes();
    publish_file(&broker).await;
    let names = channels(&quakes);
    let mut reader = Subscribe::to(&names).after("earliest").connect(broker.addr).await;
    let all = reader.events(quakes.len()).await;

    for _ in 0..20 {
        let seen = rng.random_range(0..quakes.len());
        let some: Vec<&str> = names.iter().copied().filter(|_| rng.random_bool(0.4)).collect();
        let rest = expected(&quakes[seen + 1..], &some);
        let cursor = &all[seen].last_event_id;
        let mut resumed = Subscribe::to(&some).after(cursor).connect(broker.addr).await;
        assert_eq!(resumed.connected.last_event_id, *cursor);
        assert_is(&resumed.events(rest.len()).await, &rest, &format!("{some:?} after {cursor}"));
    }
}

both_stores!(
    every_live_subscriber_gets_its_channels_whole_and_in_order,
    a_late_subscriber_gets_the_whole_week,
    any_cursor_in_the_middle_gives_exactly_the_rest_of_any_channels,
);
