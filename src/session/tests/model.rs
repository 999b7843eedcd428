//! Sessions against a model: random worlds in which everything that may happen to a subscriber happens in
//! any order, and a bookkeeper who knows what each one must be told.
//!
//! A world publishes, purges, begins history anew, lets events age and be trimmed, holds the tailer open between look
//! and release, keeps tiny rings and pages, and lets clients lose their connections, and the end of what was under way on
//! them, and come back with the last id that they saw. The book says, per connection: ids strictly increase;
//! what came is what was published to its channels between its first and its last id, less what a `gap` named
//! and the log really lost, or what lies before a new beginning; and a world that loses nothing hears of no gap.
//! Broken to see it fail: a session that keeps its position at a new epoch, one that takes a trimmed page for
//! complete, and a ring that is given a frame after the watermark has moved.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::event::Format;
use crate::fanout::pages::{HeadRequest, Heads};
use crate::fanout::{Filter, Look};
use crate::log::{LogError, ReadQuery};

const CHANNELS: [&str; 4] = ["a", "b", "c", "$user:1"];
/// Among them the one that no filter concerns.
const USER: usize = 3;
const WORLDS: u64 = 16;
const TURNS: usize = 400;
const CLIENTS: usize = 4;
/// A burst that a channel of ten events cannot keep, the log's slack included.
const BURST: usize = 120;

/// What was published.
#[derive(Clone, Copy, Debug)]
struct Entry {
    id: StreamId,
    channel: usize,
    /// What the filters of the model ask for.
    even: bool,
    /// Not for the connections of this model.
    skipped: bool,
}

struct World {
    node: Node,
    now_ms: Arc<AtomicU64>,
    rng: StdRng,
    even: Arc<Filter>,
    published: Vec<Entry>,
    /// Newest marker by channel.
    purged: BTreeMap<usize, StreamId>,
    may_purge: bool,
    /// Beginnings of history, as after rollbacks that another node noticed.
    epochs: Vec<StreamId>,
    may_reset: bool,
    tailer: Turn,
    /// What sessions take for the time; a failed read is due again with every step.
    instant: Instant,
    clients: Vec<Reader>,
}

/// Where the tailer was stopped.
enum Turn {
    Idle,
    Looked(Look),
    Read(Look, Vec<Vec<crate::event::Event>>),
}

/// One client over all its connections.
#[derive(Default)]
struct Reader {
    cursor: Option<StreamId>,
    connection: Option<Connection>,
    received: usize,
    gaps: usize,
}

struct Connection {
    session: Session,
    under_way: UnderWay,
    channels: BTreeSet<usize>,
    filtered: bool,
    /// Asked for what is left of history: what the log lost before the first event of a channel is no loss.
    takes_what_is_left: bool,
    /// `None` before `connected`.
    from: Option<StreamId>,
    to: StreamId,
    got: Vec<StreamId>,
    excused: BTreeSet<StreamId>,
}

enum UnderWay {
    Nothing,
    Asked(Vec<HeadRequest>),
    Answered(Result<Heads, LogError>),
}

impl World {
    async fn new(mut rng: StdRng) -> Self {
        let retention = Retention {
            max_length: rng.random_bool(0.4).then_some(10),
            max_age: rng.random_bool(0.3).then_some(Duration::from_secs(10)),
        };
        let now_ms = Arc::new(AtomicU64::new(1_700_000_000_000));
        let clock = Arc::clone(&now_ms);
        let options = EmbeddedOptions {
            sweep_interval: Duration::from_millis(if rng.random_bool(0.5) { 1 } else { 1_000 }),
            feed_refs_max: if rng.random_bool(0.3) { 40 } else { 100_000 },
            ..EmbeddedOptions::default()
        };
        let fanout = FanoutOptions {
            ring: RingLimits { frames_max: [1, 2, 8, 64, 1_000][rng.random_range(0..5)], bytes_max: 1 << 16 },
            rings_bytes_max: if rng.random_bool(0.3) { 4_000 } else { 1 << 20 },
            page_bytes_max: if rng.random_bool(0.5) { 1 } else { 1 << 20 },
        };
        let now = Arc::new(move || clock.load(Ordering::SeqCst));
        let node = Node::with(options, now, fanout, retention).await;
        let even = node.hub.filters.compile(r#"{"even":true}"#).unwrap().unwrap();
        Self {
            node,
            now_ms,
            even,
            published: Vec::new(),
            purged: BTreeMap::new(),
            may_purge: rng.random_bool(0.4),
            epochs: Vec::new(),
            may_reset: rng.random_bool(0.3),
            tailer: Turn::Idle,
            instant: Instant::now(),
            clients: (0..CLIENTS).map(|_| Reader::default()).collect(),
            rng,
        }
    }

    fn loses_nothing(&self) -> bool {
        let Retention { max_length, max_age } = self.node.retention;
        max_length.is_none() && max_age.is_none() && !self.may_purge && !self.may_reset
    }

    async fn run(mut self) -> (usize, usize) {
        for _ in 0..TURNS {
            match self.rng.random_range(0..100) {
                0..14 => self.publish().await,
                14..34 => self.tail().await,
                34 if self.may_purge => self.purge().await,
                35 if self.may_reset => self.reset().await,
                36..39 => {
                    let by = self.rng.random_range(1..3_000);
                    self.now_ms.fetch_add(by, Ordering::SeqCst);
                }
                _ => {
                    let client = self.rng.random_range(0..CLIENTS);
                    self.turn_of(client).await;
                }
            }
        }
        self.settle().await;
        let sum = |count: fn(&Reader) -> usize| self.clients.iter().map(count).sum();
        let (received, gaps) = (sum(|client| client.received), sum(|client| client.gaps));
        assert!(gaps == 0 || !self.loses_nothing(), "a gap though nothing was lost");
        (received, gaps)
    }

    async fn publish(&mut self) {
        let count = if self.rng.random_bool(0.1) { BURST } else { self.rng.random_range(1..6) };
        let mut items = Vec::new();
        let mut entries = Vec::new();
        let favourite = self.rng.random_range(0..CHANNELS.len());
        for _ in 0..count {
            let spread = self.rng.random_bool(0.4);
            let channel = if spread { self.rng.random_range(0..CHANNELS.len()) } else { favourite };
            let (even, skipped) = (self.rng.random_bool(0.5), self.rng.random_bool(0.1));
            let padding = if self.rng.random_bool(0.02) { 40_000 } else { self.rng.random_range(0..50) };
            let json = format!(r#"{{"even":{even},"of":{channel},"x":"{}"}}"#, "x".repeat(padding));
            let skip: SkipList = if skipped { Box::new(["n.1".into()]) } else { SkipList::default() };
            let data = Data::stored(Format::Json, json.into());
            items.push(AppendItem {
                channel: Channel::parse_stored(CHANNELS[channel]).unwrap(),
                draft: Draft { kind: EventType::default(), data, retry: None, skip },
                retention: self.node.retention,
                idempotency: None,
            });
            entries.push(Entry { id: StreamId::ZERO, channel, even, skipped });
        }
        let answers = self.node.log.append(ZERO, &[AppendRequest { items }]).await.unwrap();
        let receipts = answers[0].as_ref().unwrap();
        for (entry, receipt) in entries.iter_mut().zip(receipts) {
            entry.id = receipt.id;
        }
        if self.rng.random_bool(0.5) {
            self.node.hub.saw(ZERO, entries.last().unwrap().id);
        }
        self.published.extend(entries);
    }

    async fn purge(&mut self) {
        let channel = self.rng.random_range(0..CHANNELS.len());
        let name = Channel::parse_stored(CHANNELS[channel]).unwrap();
        self.node.log.purge(&name, &self.node.retention).await.unwrap();
        self.purged.insert(channel, self.node.log.tail(ZERO).await.unwrap().last);
    }

    /// History begins anew; what lay before may or may not be left.
    async fn reset(&mut self) {
        let last = self.node.log.tail(ZERO).await.unwrap().last;
        let seen = StreamId::new(last.ms() + 1, 0).unwrap();
        self.epochs.push(self.node.log.reset(ZERO, seen).await.unwrap().epoch);
    }

    /// One step of the tailer, which may stop for a while after each.
    async fn tail(&mut self) {
        let hub = &self.node.hub;
        self.tailer = match std::mem::replace(&mut self.tailer, Turn::Idle) {
            Turn::Idle if hub.marks(ZERO).watermark == self.node.log.tail(ZERO).await.unwrap().last => {
                Turn::Idle
            }
            Turn::Idle => match self.node.log.follow(ZERO, hub.marks(ZERO).watermark).await.unwrap() {
                Followed::Refs(refs) => Turn::Looked(hub.look(ZERO, &refs)),
                Followed::Trimmed(tail) => {
                    hub.restart(ZERO, tail);
                    Turn::Idle
                }
                Followed::RolledBack => panic!("nothing rolls back here"),
            },
            Turn::Looked(look) => {
                let events = self.node.log.read_new(ZERO, &look.wants()).await.unwrap();
                Turn::Read(look, events)
            }
            Turn::Read(look, events) => {
                hub.release(look, events);
                Turn::Idle
            }
        };
    }

    async fn turn_of(&mut self, client: usize) {
        match &self.clients[client].connection {
            None => self.connect(client),
            Some(_) if self.rng.random_bool(0.08) => self.disconnect(client).await,
            Some(_) => {
                let late = if self.rng.random_bool(0.1) { Duration::from_secs(31) } else { Duration::ZERO };
                self.step(client, late).await;
            }
        }
    }

    fn connect(&mut self, client: usize) {
        let cursor = self.clients[client].cursor;
        let mut channels: BTreeSet<usize> =
            (0..CHANNELS.len()).filter(|_| self.rng.random_bool(0.6)).collect();
        let start = match (cursor, self.rng.random_range(0..3)) {
            (Some(id), _) if id == StreamId::ZERO => Start::Earliest,
            (Some(id), _) => after(id),
            (None, 0) => Start::Earliest,
            (None, 1) => {
                channels = [self.rng.random_range(0..CHANNELS.len())].into();
                Start::Rewind(3)
            }
            (None, _) => Start::Latest,
        };
        let takes_what_is_left = matches!(start, Start::Earliest | Start::Rewind(_));
        let filtered = self.rng.random_bool(0.3);
        let names: Vec<&str> = channels.iter().map(|channel| CHANNELS[*channel]).collect();
        let filter = filtered.then(|| Arc::clone(&self.even));
        let opened = self.node.subscribe_with(&names, Ok(start), |s| Subscription { filter, ..s });
        self.clients[client].connection = Some(Connection {
            session: opened.session,
            under_way: UnderWay::Nothing,
            channels,
            filtered,
            takes_what_is_left,
            from: None,
            to: cursor.unwrap_or_default(),
            got: Vec::new(),
            excused: BTreeSet::new(),
        });
    }

    /// One step of a client's session, or of the read that it waits for; part of what is written may be lost
    /// together with the connection.
    async fn step(&mut self, client: usize, late: Duration) {
        let connection = self.clients[client].connection.as_mut().expect("connected");
        self.instant += Duration::from_secs(2) + late;
        let now = Now { instant: self.instant, ..now() };
        connection.under_way = match std::mem::replace(&mut connection.under_way, UnderWay::Nothing) {
            UnderWay::Asked(requests) if self.rng.random_bool(0.7) => {
                let read = Arc::clone(&self.node.hub.pages).read_heads(requests);
                // Another reader may hold all the memory for pages.
                match tokio::time::timeout(Duration::from_millis(20), read).await {
                    Ok(result) => UnderWay::Answered(result),
                    Err(_) => UnderWay::Answered(Err(LogError::Unavailable("no memory".to_owned()))),
                }
            }
            UnderWay::Answered(result) if self.rng.random_bool(0.7) => {
                connection.session.loaded(result, now);
                UnderWay::Nothing
            }
            other => other,
        };
        let mut batch = Batch::default();
        match connection.session.step(now, &mut batch) {
            Next::Read(requests) => connection.under_way = UnderWay::Asked(requests),
            Next::Flush | Next::FlushAndWait(_) | Next::Again | Next::Wait(_) => {}
            Next::End => panic!("nobody ends a session here"),
        }
        let bytes = batch.take().concat();
        let mut sent = blocks(&bytes);
        let lost = self.rng.random_bool(0.05);
        if lost {
            sent.truncate(self.rng.random_range(0..=sent.len()));
        }
        for block in &sent {
            self.receive(client, block).await;
        }
        if lost {
            self.disconnect(client).await;
        }
    }

    async fn receive(&mut self, client: usize, block: &Block) {
        let id = block.id.as_deref().map(|id| id.parse::<crate::id::EventId>().unwrap().stream_id());
        let reader = &mut self.clients[client];
        let connection = reader.connection.as_mut().expect("connected");
        match (block.event.as_str(), id) {
            ("connected", Some(id)) => {
                assert!(connection.from.is_none(), "connected comes first and once");
                let began_between = |cursor| self.epochs.iter().any(|epoch| *epoch > cursor && *epoch <= id);
                let expected = |cursor| cursor == id || began_between(cursor);
                assert!(reader.cursor.is_none_or(expected), "it starts elsewhere: {block:?}");
                connection.from = Some(id);
            }
            ("message", Some(id)) => {
                assert!(connection.from.is_some(), "connected comes first");
                assert!(id > connection.to, "{id} came after {}", connection.to);
                let at = self.published.binary_search_by_key(&id, |entry| entry.id);
                let entry = self.published[at.expect("what comes was published")];
                assert_eq!(block.json()["of"], entry.channel, "the data is the event's own");
                connection.got.push(id);
                reader.received += 1;
                if connection.takes_what_is_left {
                    self.excuse(client, entry.channel, id).await;
                }
            }
            ("heartbeat", Some(id)) => assert!(id >= connection.to, "the cursor went back to {id}"),
            ("heartbeat" | "", None) => return,
            ("gap", None) => return self.gap(client, block).await,
            _ => panic!("{block:?}"),
        }
        let id = id.expect("only gaps and comments have none");
        let reader = &mut self.clients[client];
        reader.connection.as_mut().expect("connected").to = id;
        reader.cursor = Some(id);
    }

    async fn gap(&mut self, client: usize, block: &Block) {
        let gap = block.json();
        let channel = CHANNELS.iter().position(|name| {
            gap["channel"] == crate::sse::public_name(&Channel::parse_stored(name).unwrap())
        });
        let channel = channel.expect("a gap names a channel");
        let bound =
            |name: &str| gap[name].as_str().map(|id| id.parse::<crate::id::EventId>().unwrap().stream_id());
        let (told_after, oldest) = (bound("after").expect("where the hole begins"), bound("oldest"));
        let connection = self.clients[client].connection.as_ref().expect("connected");
        assert!(connection.from.is_some(), "connected comes first");
        assert!(connection.channels.contains(&channel), "{gap} is none of its channels");
        let Retention { max_length, max_age } = self.node.retention;
        match gap["reason"].as_str() {
            Some("trimmed") => {
                assert!(max_length.or(max_age.map(|_| 0)).is_some(), "nothing is trimmed here");
            }
            Some("reset") if self.epochs.last().is_some_and(|epoch| *epoch > told_after) => {
                let epoch = *self.epochs.last().expect("there is one");
                let before = |entry: &&Entry| entry.channel == channel && entry.id < epoch;
                let before = self.published.iter().filter(before).map(|entry| entry.id);
                self.clients[client].connection.as_mut().expect("connected").excused.extend(before);
            }
            Some("reset") => assert!(self.purged[&channel] > told_after, "{gap}: it was not purged since"),
            _ => panic!("{gap}"),
        }
        self.clients[client].gaps += 1;
        self.excuse(client, channel, oldest.unwrap_or(StreamId::MAX)).await;
    }

    /// What the log really lost of a channel before `before` need not come on this connection.
    async fn excuse(&mut self, client: usize, channel: usize, before: StreamId) {
        let held = self.held(channel).await;
        let lost =
            |entry: &&Entry| entry.channel == channel && entry.id < before && !held.contains(&entry.id);
        let lost = self.published.iter().filter(lost).map(|entry| entry.id);
        self.clients[client].connection.as_mut().expect("connected").excused.extend(lost);
    }

    /// What the log holds of a channel now.
    async fn held(&self, channel: usize) -> BTreeSet<StreamId> {
        let name = Channel::parse_stored(CHANNELS[channel]).unwrap();
        let mut held = BTreeSet::new();
        let mut query = ReadQuery::following(StreamId::ZERO, &self.node.retention);
        loop {
            let page = self.node.log.read(&name, &query).await.unwrap();
            held.extend(page.events.iter().map(|event| event.id));
            query.after = page.events.last().map_or(query.after, |event| event.id);
            if page.exhausted {
                return held;
            }
        }
    }

    /// Ends a connection and compares what it brought with what it had to bring.
    async fn disconnect(&mut self, client: usize) {
        let connection = self.clients[client].connection.as_ref().expect("connected");
        if connection.takes_what_is_left {
            let silent = |channel: &usize| {
                !connection.got.iter().any(|id| {
                    let at = self.published.binary_search_by_key(id, |entry| entry.id).unwrap();
                    self.published[at].channel == *channel
                })
            };
            let silent: Vec<usize> = connection.channels.iter().copied().filter(silent).collect();
            for channel in silent {
                self.excuse(client, channel, StreamId::MAX).await;
            }
        }
        let connection = self.clients[client].connection.take().expect("connected");
        let Some(from) = connection.from else { return };
        let mut got = connection.got.iter().peekable();
        for entry in self.published.iter().filter(|entry| entry.id > from && entry.id <= connection.to) {
            let wanted = connection.channels.contains(&entry.channel)
                && !entry.skipped
                && (entry.even || !connection.filtered || entry.channel == USER);
            let came = got.next_if_eq(&&entry.id).is_some();
            assert!(wanted || !came, "{entry:?} was not asked for");
            assert!(
                came || !wanted || connection.excused.contains(&entry.id),
                "{entry:?} is missing between {from} and {} on {:?}",
                connection.to,
                connection.channels
            );
        }
        assert_eq!(got.next(), None, "what came lies between the first and the last id");
    }

    /// Lets everybody catch up, and requires that they do.
    async fn settle(&mut self) {
        let last = self.node.log.tail(ZERO).await.unwrap().last;
        while self.node.hub.marks(ZERO).watermark < last {
            self.tail().await;
        }
        let deadline = Instant::now() + DEADLINE;
        for client in (0..CLIENTS).cycle() {
            let behind = |client: &Reader| client.connection.as_ref().is_none_or(|c| c.to < last);
            if !self.clients.iter().any(behind) {
                break;
            }
            assert!(Instant::now() < deadline, "a client does not get to the end");
            if self.clients[client].connection.is_none() {
                self.connect(client);
            }
            self.step(client, Duration::from_secs(31)).await;
        }
        for client in 0..CLIENTS {
            self.disconnect(client).await;
        }
    }
}

#[tokio::test]
async fn whatever_happens_a_subscriber_gets_everything_once_in_order_or_is_told() {
    let given = std::env::var("HEADWATER_TEST_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let first = given.unwrap_or_else(|| rand::random::<u32>().into());
    let worlds = if given.is_some() { 1 } else { WORLDS };
    let (mut received, mut gaps) = (0, 0);
    for seed in first..first + worlds {
        eprintln!("replay with HEADWATER_TEST_SEED={seed}");
        let world = World::new(StdRng::seed_from_u64(seed)).await;
        let (more, more_gaps) = world.run().await;
        (received, gaps) = (received + more, gaps + more_gaps);
    }
    eprintln!("{received} events and {gaps} gaps in {worlds} worlds");
    assert!(given.is_some() || (received > 1_000 && gaps > 0), "the worlds are not empty");
}
