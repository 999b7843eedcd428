//! The proof: what was acknowledged is in the log, and each client got the log's part that it asked for, exactly
//! once and in order, or was told of a gap.
//!
//! A test publishes and notes every answer in a [`Ledger`]; each client notes what it reads in a [`Recorder`]
//! over any number of connections; at the end both are compared with the log as a late reader finds it
//! ([`Stored`]). Where the store itself was made to lose history, the test says what that may be, and everything else
//! is still exact. One partition: ids compare as text.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

use super::ZERO_CURSOR;
use super::sse_parser::Event;

/// An event as the log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Its id as a ULID.
    pub(crate) id: String,
    /// Its channel.
    pub(crate) channel: String,
    /// Its data as text. Tests that use a ledger publish every text once.
    pub(crate) data: String,
}

impl Stored {
    /// Reads an event of a stream with `envelope=1`.
    pub(crate) fn from_envelope(event: &Event) -> Self {
        let envelope = event.json();
        let text =
            |name: &str| envelope[name].as_str().unwrap_or_else(|| panic!("no {name}: {event:?}")).to_owned();
        Self { id: text("id"), channel: text("channel"), data: text("data") }
    }
}

/// What publishers were told.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Id by data.
    acknowledged: Mutex<BTreeMap<String, String>>,
    /// Data of publishes whose answer was lost or said `unknown`.
    uncertain: Mutex<BTreeSet<String>>,
}

impl Ledger {
    /// The broker answered that it holds this event.
    pub(crate) fn acknowledge(&self, data: &str, id: &str) {
        let before = self.acknowledged.lock().insert(data.into(), id.into());
        assert!(before.is_none(), "{data:?} was published twice by the test itself");
    }

    /// Nobody can know whether this event was appended.
    pub(crate) fn doubt(&self, data: &str) {
        self.uncertain.lock().insert(data.into());
    }

    /// How many events were acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.lock().len()
    }

    /// The data of everything that was acknowledged so far.
    pub(crate) fn all_acknowledged(&self) -> BTreeSet<String> {
        self.acknowledged.lock().keys().cloned().collect()
    }

    /// Compares with everything that the log holds: what was acknowledged is there under its id, and what is
    /// there was acknowledged or in doubt, once.
    pub(crate) fn check(&self, log: &[Stored]) -> Result<(), String> {
        let lost = self.lost(log)?;
        match lost.first() {
            Some(lost) => Err(format!("{lost:?} was acknowledged and is not in the log")),
            None => Ok(()),
        }
    }

    /// What was acknowledged and is not in the log; anything else that is wrong is an error.
    pub(crate) fn lost(&self, log: &[Stored]) -> Result<Vec<Stored>, String> {
        let mut lost = Vec::new();
        let held: BTreeMap<&str, &str> = log.iter().map(|e| (e.data.as_str(), e.id.as_str())).collect();
        if held.len() != log.len() {
            return Err(format!("{} events are in the log more than once", log.len() - held.len()));
        }
        let (acknowledged, uncertain) = (self.acknowledged.lock(), self.uncertain.lock());
        for (data, id) in &*acknowledged {
            match held.get(data.as_str()) {
                Some(held) if held == id => {}
                Some(held) => {
                    return Err(format!("{data:?} was acknowledged as {id} and is in the log as {held}"));
                }
                None => {
                    lost.push(Stored { id: id.clone(), channel: String::new(), data: data.clone() });
                }
            }
        }
        match held.keys().find(|data| !acknowledged.contains_key(**data) && !uncertain.contains(**data)) {
            Some(data) => Err(format!("{data:?} is in the log and nobody was told")),
            None => Ok(lost),
        }
    }
}

/// One client over all its connections.
#[derive(Debug)]
pub(crate) struct Recorder {
    name: String,
    cursor: String,
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    channels: BTreeSet<String>,
    /// The cursor that was sent.
    asked: String,
    /// Where the stream said that it starts.
    from: String,
    to: String,
    got: Vec<Got>,
}

/// What came, in order.
#[derive(Debug)]
enum Got {
    Event { id: String, data: String },
    Gap { channel: String, reason: String },
}

impl Recorder {
    /// A client that starts from this cursor, a ULID or `earliest`.
    pub(crate) fn new(name: impl Into<String>, cursor: &str) -> Self {
        let cursor = if cursor == "earliest" { ZERO_CURSOR } else { cursor };
        Self { name: name.into(), cursor: cursor.to_owned(), connections: Vec::new() }
    }

    /// What to resume from.
    pub(crate) fn cursor(&self) -> &str {
        &self.cursor
    }

    /// A new connection for these channels from [`Recorder::cursor`].
    pub(crate) fn connect<'a>(&mut self, channels: impl IntoIterator<Item = &'a str>) {
        self.connections.push(Connection {
            channels: channels.into_iter().map(ToOwned::to_owned).collect(),
            asked: self.cursor.clone(),
            from: self.cursor.clone(),
            to: self.cursor.clone(),
            got: Vec::new(),
        });
    }

    /// An event came. Ids may never go back on a connection, and a published event's id must be new. That a stream
    /// starts elsewhere than at the cursor is judged in the end: a `gap` must have said why.
    pub(crate) fn take(&mut self, event: &Event) {
        let connection = self.connections.last_mut().expect("connect comes first");
        let (name, id) = (&self.name, &event.last_event_id);
        if !event.is_control() {
            assert!(*id > connection.to, "{name}: {id} came after {}: {event:?}", connection.to);
            connection.got.push(Got::Event { id: id.clone(), data: event.data.clone() });
        } else if event.kind == "gap" {
            let text = |name: &str| event.json()[name].as_str().unwrap_or_default().to_owned();
            connection.got.push(Got::Gap { channel: text("channel"), reason: text("reason") });
        } else if event.kind == "connected" {
            connection.from.clone_from(id);
            connection.to.clone_from(id);
        }
        assert!(*id >= connection.to, "{name}: the cursor went back from {}: {event:?}", connection.to);
        connection.to.clone_from(id);
        self.cursor.clone_from(id);
    }

    /// The cursor moved without an event.
    pub(crate) fn moved_to(&mut self, cursor: &str) {
        let connection = self.connections.last_mut().expect("connect comes first");
        assert!(*cursor >= *connection.to, "{}: the cursor went back to {cursor}", self.name);
        cursor.clone_into(&mut connection.to);
        cursor.clone_into(&mut self.cursor);
    }

    /// The reasons of all gaps that were announced.
    pub(crate) fn gaps(&self) -> Vec<&str> {
        let mut gaps = Vec::new();
        for got in self.connections.iter().flat_map(|connection| &connection.got) {
            if let Got::Gap { reason, .. } = got {
                gaps.push(reason.as_str());
            }
        }
        gaps
    }

    /// How many connections were begun.
    pub(crate) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// How many published events came.
    pub(crate) fn received(&self) -> usize {
        let is_event = |got: &&Got| matches!(got, Got::Event { .. });
        self.connections.iter().map(|connection| connection.got.iter().filter(is_event).count()).sum()
    }

    /// Whoever got what the store lost must have been told of a gap since: what it shows may not exist. Two ways past a
    /// gap are the contract's own: a connection without channels has none to be told of, and one that breaks between
    /// `connected`, which carries the new position, and the `gap` behind it was not told any more.
    pub(crate) fn was_told_of(&self, lost: &[Stored]) -> Result<(), String> {
        let lost: BTreeSet<&str> = lost.iter().map(|event| event.id.as_str()).collect();
        let mut untold: Option<&str> = None;
        for connection in &self.connections {
            for got in &connection.got {
                match got {
                    Got::Gap { .. } => untold = None,
                    Got::Event { id, .. } if lost.contains(id.as_str()) => untold = Some(id),
                    Got::Event { .. } => {}
                }
            }
            let broke_before_the_gap = connection.from != connection.asked && connection.got.is_empty();
            untold = untold.filter(|id| !broke_before_the_gap && !connection.passes_unheard(id));
        }
        untold.map_or(Ok(()), |id| Err(format!("{} got {id}, which was lost, and was not told", self.name)))
    }

    /// Compares with everything that the log holds, in order: on each connection exactly the events of its channels
    /// between where it started and where it ended. Where a gap was announced, the channel's events between the one
    /// before and the one after it may lack. What is in `lost` was delivered before the store lost it, or not.
    pub(crate) fn check(&self, log: &[Stored], lost: &[Stored]) -> Result<(), String> {
        for (number, connection) in self.connections.iter().enumerate() {
            connection.check(log, lost).map_err(|why| {
                let Self { name, .. } = self;
                let Connection { from, to, channels, .. } = connection;
                format!("{name}, connection {number} from {from} to {to} for {channels:?}: {why}")
            })?;
        }
        Ok(())
    }
}

impl Connection {
    /// Without channels the cursor moves on and no gap can be told.
    fn passes_unheard(&self, id: &str) -> bool {
        self.channels.is_empty() && self.to.as_str() > id
    }

    fn check(&self, log: &[Stored], lost: &[Stored]) -> Result<(), String> {
        let said_why = self.got.iter().any(|got| matches!(got, Got::Gap { .. }));
        // Where the store lost history, the connection may have broken between `connected` and the gap.
        if self.from != self.asked && !said_why && (lost.is_empty() || !self.got.is_empty()) {
            return Err(format!("it was asked for what follows {}", self.asked));
        }
        let log = part(log, &self.from, &self.to);
        for channel in &self.channels {
            self.check_channel(channel, log)?;
        }
        let known: BTreeMap<&str, &Stored> =
            log.iter().filter(|e| self.channels.contains(&e.channel)).map(|e| (e.id.as_str(), e)).collect();
        for got in &self.got {
            let Got::Event { id, data } = got else { continue };
            let is_in_log = known.get(id.as_str()).is_some_and(|event| event.data == *data);
            let was_lost = || lost.iter().any(|event| event.id == *id && event.data == *data);
            if !is_in_log && !was_lost() {
                return Err(format!("{id} with {data:?} came and is not in the log there"));
            }
        }
        Ok(())
    }

    /// Whether every event of a channel came, but for those that a gap excuses. `log` is what the connection passed.
    fn check_channel(&self, channel: &str, log: &[Stored]) -> Result<(), String> {
        let mut due = log.iter().filter(|event| event.channel == channel).peekable();
        let mut gap_open = false;
        for got in &self.got {
            match got {
                Got::Gap { channel: of, .. } => gap_open |= of == channel || of.is_empty(),
                Got::Event { id, .. } => {
                    let missed = std::iter::from_fn(|| due.next_if(|event| event.id < *id)).next();
                    if let Some(missed) = missed.filter(|_| !gap_open) {
                        return Err(format!("expected {missed:?}, got {got:?}"));
                    }
                    while due.next_if(|event| event.id < *id).is_some() {}
                    if due.next_if(|event| event.id == *id).is_some() {
                        gap_open = false;
                    }
                }
            }
        }
        match due.next().filter(|_| !gap_open) {
            Some(missed) => Err(format!("{missed:?} did not come")),
            None => Ok(()),
        }
    }
}

/// What of the log, which is in order, lies after `from` up to `to`.
fn part<'a>(log: &'a [Stored], from: &str, to: &str) -> &'a [Stored] {
    let after = |id: &str| log.partition_point(|event| event.id.as_str() <= id);
    &log[after(from)..after(to).max(after(from))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Vec<Stored> {
        let entry = |(id, channel): &(&str, &str)| Stored {
            id: (*id).to_owned(),
            channel: (*channel).to_owned(),
            data: format!("d{id}"),
        };
        [("1", "a"), ("2", "b"), ("3", "a"), ("4", "c"), ("5", "a")].iter().map(entry).collect()
    }

    fn event(id: &str) -> Event {
        Event { last_event_id: id.into(), kind: "message".into(), data: format!("d{id}"), ..Event::default() }
    }

    fn control(id: &str, kind: &str, data: &str) -> Event {
        Event { last_event_id: id.into(), kind: kind.into(), data: data.into(), ..Event::default() }
    }

    fn client(connections: &[&[Event]]) -> Recorder {
        let mut client = Recorder::new("client", "earliest");
        for connection in connections {
            client.connect(["a", "b"]);
            connection.iter().for_each(|event| client.take(event));
        }
        client
    }

    fn gap_at(id: &str) -> Event {
        control(id, "gap", r#"{"channel":"a","reason":"reset"}"#)
    }

    #[test]
    fn exactly_the_channels_of_a_connection_in_order_pass() {
        let whole = client(&[
            &[event("1"), event("2")],
            &[],
            &[event("3"), control("4", "heartbeat", "{}"), event("5")],
        ]);
        assert_eq!(whole.check(&log(), &[]), Ok(()));
        assert_eq!((whole.received(), whole.gaps().len()), (4, 0));
        let not_yet = client(&[&[event("1")]]);
        assert_eq!(not_yet.check(&log(), &[]), Ok(()), "what follows the cursor may still come");
    }

    #[test]
    fn a_lost_a_foreign_and_a_skipped_event_are_found() {
        assert!(client(&[&[event("1"), event("3")]]).check(&log(), &[]).is_err(), "2 is lost");
        assert!(
            client(&[&[event("1")], &[event("3")]]).check(&log(), &[]).is_err(),
            "2 is lost between connections"
        );
        let skipped = client(&[&[event("1"), control("2", "heartbeat", "{}")]]);
        assert!(skipped.check(&log(), &[]).is_err(), "a heartbeat moved the cursor over 2");
        let foreign = client(&[&[event("1"), event("2"), event("3"), event("4")]]);
        assert!(foreign.check(&log(), &[]).is_err(), "4 is of another channel");
    }

    #[test]
    #[should_panic(expected = "came after")]
    fn a_repeated_event_is_found() {
        client(&[&[event("1")], &[event("1")]]);
    }

    #[test]
    fn a_gap_excuses_only_the_oldest_of_its_channel() {
        let gap = || control("00000000000000000000000000", "gap", r#"{"channel":"a"}"#);
        assert_eq!(client(&[&[gap(), event("2"), event("3"), event("5")]]).check(&log(), &[]), Ok(()));
        assert!(
            client(&[&[gap(), event("1"), event("2"), event("5")]]).check(&log(), &[]).is_err(),
            "3 is no older"
        );
        assert!(
            client(&[&[gap(), event("3"), event("5")]]).check(&log(), &[]).is_err(),
            "2 is of another channel"
        );
        assert_eq!(
            client(&[&[event("1"), gap_at("1"), event("2"), event("5")]]).check(&log(), &[]),
            Ok(()),
            "the gap lies between 1 and 5"
        );
    }

    #[test]
    fn what_the_store_lost_may_have_come_and_a_stream_that_starts_elsewhere_says_why() {
        let lost = || Stored { id: "25".into(), channel: String::new(), data: "d25".into() };
        let got = client(&[&[event("1"), event("2"), event("25"), event("3"), event("5")]]);
        assert_eq!(got.check(&log(), &[lost()]), Ok(()));
        assert!(got.check(&log(), &[]).is_err());
        assert!(got.was_told_of(&[lost()]).is_err());
        let told = client(&[&[event("25"), gap_at("25"), event("3"), event("5")]]);
        assert_eq!(told.was_told_of(&[lost()]), Ok(()));
        let moved = || control("2", "connected", "{}");
        assert!(client(&[&[moved(), event("3"), event("5")]]).check(&log(), &[]).is_err());
        assert_eq!(client(&[&[moved(), gap_at("2"), event("3"), event("5")]]).check(&log(), &[]), Ok(()));
    }

    #[test]
    fn the_ledger_finds_what_is_missing_repeated_or_unexplained() {
        let ledger = Ledger::default();
        for id in ["1", "2", "3", "4"] {
            ledger.acknowledge(&format!("d{id}"), id);
        }
        assert!(ledger.check(&log()).is_err(), "nobody was told of 5");
        ledger.doubt("d5");
        assert_eq!(ledger.check(&log()), Ok(()));
        assert_eq!(ledger.check(&log()[..4]), Ok(()), "a doubtful one may be missing");
        assert!(ledger.check(&log()[1..]).is_err(), "1 was acknowledged");
        let mut twice = log();
        twice.push(Stored { id: "6".into(), ..twice[4].clone() });
        assert!(ledger.check(&twice).is_err(), "5 is there twice");
    }
}
