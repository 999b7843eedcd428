//! Sessions over a real embedded log: what a subscriber is sent, step by step.
//!
//! The tailer is turned by hand, so that a test decides when what was published reaches the rings. `model`
//! does the same at random.

mod losses;
mod model;
mod rights;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use super::metrics::SessionMetrics;
use super::{BATCH_BYTES_MAX, BATCH_CHUNKS_MAX, Batch, Next, Now, Session, SessionOptions, Subscription};
use crate::channel::Channel;
use crate::cursor::{Cursor, InvalidCursor, Start};
use crate::event::{Data, Draft, EventType, SkipList};
use crate::fanout::{FanoutOptions, Hub, Mailbox, RingLimits};
use crate::id::{Partition, StreamId};
use crate::log::embedded::{Clock, EmbeddedLog, EmbeddedOptions, system_clock};
use crate::log::retention::RetentionRules;
use crate::log::{AppendItem, AppendRequest, Followed, Log, LogError, Retention};
use crate::sse::ClosingReason;

const ZERO: Partition = Partition(0);
const DEADLINE: Duration = Duration::from_secs(20);

/// A node without its tasks.
struct Node {
    log: Arc<EmbeddedLog>,
    hub: Arc<Hub>,
    retention: Retention,
    options: Arc<SessionOptions>,
    _dir: TempDir,
}

impl Node {
    async fn new(ring_frames: usize, retention: Retention) -> Self {
        let fanout = FanoutOptions {
            ring: RingLimits { frames_max: ring_frames, bytes_max: 1 << 20 },
            rings_bytes_max: 1 << 24,
            page_bytes_max: 1 << 22,
        };
        Self::with(EmbeddedOptions::default(), system_clock(), fanout, retention).await
    }

    async fn with(
        options: EmbeddedOptions,
        clock: Clock,
        fanout: FanoutOptions,
        retention: Retention,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = Arc::new(EmbeddedLog::open(dir.path(), options, clock).unwrap());
        let tail = log.tail(ZERO).await.unwrap();
        let rules = RetentionRules::new(Vec::new(), retention);
        let hub = Hub::new(Arc::clone(&log) as Arc<dyn Log>, &[tail], rules, fanout);
        let options = Arc::new(SessionOptions {
            node: "n".into(),
            heartbeat_interval: Duration::from_secs(30),
            comment_heartbeats: false,
            retry: Duration::from_secs(3),
            write_timeout: Duration::from_secs(30),
            lifetime_max: None,
            metrics: SessionMetrics::default(),
        });
        Self { log, hub, retention, options, _dir: dir }
    }

    async fn with_everything_kept() -> Self {
        Self::new(1_024, Retention { max_length: None, max_age: None }).await
    }

    async fn publish(&self, channel: &str, data: &str) -> StreamId {
        self.publish_json(channel, Data::text(data), SkipList::default()).await
    }

    async fn publish_json(&self, channel: &str, data: Data, skip: SkipList) -> StreamId {
        let item = AppendItem {
            channel: Channel::parse_stored(channel).unwrap(),
            draft: Draft { kind: EventType::default(), data, retry: None, skip },
            retention: self.retention,
            idempotency: None,
        };
        let answers = self.log.append(ZERO, &[AppendRequest { items: vec![item] }]).await.unwrap();
        answers[0].as_ref().unwrap()[0].id
    }

    /// One turn of the tailer for everything that has been published.
    async fn tail(&self) {
        let watermark = self.hub.marks(ZERO).watermark;
        match self.log.follow(ZERO, watermark).await.unwrap() {
            Followed::Refs(refs) if refs.is_empty() => panic!("nothing was published"),
            Followed::Refs(refs) => {
                let look = self.hub.look(ZERO, &refs);
                let events = self.log.read_new(ZERO, &look.wants()).await.unwrap();
                self.hub.release(look, events);
            }
            other => panic!("{other:?}"),
        }
    }

    fn subscribe(&self, channels: &[&str], start: Result<Start, InvalidCursor>) -> Client {
        self.subscribe_with(channels, start, |subscription| subscription)
    }

    fn subscribe_with(
        &self,
        channels: &[&str],
        start: Result<Start, InvalidCursor>,
        adjust: impl FnOnce(Subscription) -> Subscription,
    ) -> Client {
        let subscription = Subscription {
            connection: "n.1".into(),
            channels: channels.iter().map(|name| Channel::parse_stored(name).unwrap()).collect(),
            start,
            filter: None,
            envelope: false,
            permit: None,
        };
        let session = Session::open(
            Arc::clone(&self.hub),
            Arc::clone(&self.options),
            adjust(subscription),
            Arc::new(Mailbox::default()),
            now(),
        );
        Client { session, hub: Arc::clone(&self.hub), reads: 0 }
    }
}

fn now() -> Now {
    Now { instant: Instant::now(), unix_ms: 1_000, jitter: 0.5 }
}

fn after(id: StreamId) -> Start {
    Start::After(Cursor::single(id.at(ZERO)))
}

/// Drives a session as a connection would.
struct Client {
    session: Session,
    hub: Arc<Hub>,
    reads: usize,
}

/// A block as the subscriber sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    id: Option<String>,
    event: String,
    data: String,
}

impl Block {
    fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap()
    }
}

impl Client {
    /// Steps until it asks for pages.
    fn drain_until_read(&mut self) {
        let mut batch = Batch::default();
        while !matches!(self.session.step(now(), &mut batch), Next::Read(..)) {
            batch.take();
        }
    }

    /// Everything that the session sends before it waits.
    async fn drain(&mut self) -> Vec<Block> {
        self.drain_at(now()).await
    }

    async fn drain_at(&mut self, now: Now) -> Vec<Block> {
        let mut bytes = Vec::new();
        loop {
            let mut batch = Batch::default();
            let next = self.session.step(now, &mut batch);
            batch.take().iter().for_each(|chunk| bytes.extend_from_slice(chunk));
            match next {
                Next::Flush | Next::Again => {}
                Next::Read(requests) => {
                    self.reads += 1;
                    let read = Arc::clone(&self.hub.pages).read_heads(requests);
                    let result = tokio::time::timeout(DEADLINE, read).await.expect("a page is read");
                    self.session.loaded(result, now);
                }
                Next::FlushAndWait(_) | Next::Wait(_) | Next::End => return blocks(&bytes),
            }
        }
    }
}

fn blocks(bytes: &[u8]) -> Vec<Block> {
    let text = std::str::from_utf8(bytes).unwrap();
    let parse = |block: &str| {
        let field = |name: &str| {
            let lines = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            lines.map(str::to_owned).reduce(|a, b| a + "\n" + &b)
        };
        Block {
            id: field("id"),
            event: field("event").unwrap_or_default(),
            data: field("data").unwrap_or_default(),
        }
    };
    text.split_terminator("\n\n").map(parse).collect()
}

fn data(blocks: &[Block]) -> Vec<&str> {
    blocks.iter().filter(|block| block.event == "message").map(|block| block.data.as_str()).collect()
}

fn kinds(blocks: &[Block]) -> Vec<&str> {
    blocks.iter().map(|block| block.event.as_str()).collect()
}

#[tokio::test]
async fn connected_comes_first_and_names_the_position_that_the_session_starts_from() {
    let node = Node::with_everything_kept().await;
    let first = node.publish("a", "1").await;
    node.tail().await;
    let mut client = node.subscribe(&["a"], Ok(Start::Latest));
    let sent = client.drain().await;
    assert_eq!(kinds(&sent), ["connected"]);
    assert_eq!(sent[0].id, Some(first.at(ZERO).to_string()));
    assert_eq!(sent[0].json()["channels"], serde_json::json!(["a"]));
    node.publish("a", "2").await;
    node.tail().await;
    assert_eq!(data(&client.drain().await), ["2"]);
    assert_eq!(client.reads, 0, "a live session never reads the log");
}

/// Broken to see it fail: a batch that is never full; a batch that is taken for all there is although a channel holds more
/// than one look reaches.
#[tokio::test]
async fn a_batch_ends_once_it_is_full() {
    let node = Node::with_everything_kept().await;
    let channels = ["a", "b", "c", "d", "e", "f"];
    for (size, events) in [(20_000, 4), (10, 60), (10, 150)] {
        let mut client = node.subscribe(&channels, Ok(Start::Latest));
        client.drain().await;
        let text = "x".repeat(size);
        for channel in channels {
            for _ in 0..events {
                node.publish(channel, &text).await;
            }
        }
        node.tail().await;
        let (mut batch, mut sent) = (Batch::default(), 0);
        let mut is_all = false;
        while !is_all {
            is_all = match client.session.step(now(), &mut batch) {
                Next::Flush => false,
                Next::FlushAndWait(_) => true,
                _ => panic!("it has more to say"),
            };
            let chunks = batch.take();
            let before_the_last: usize = chunks.iter().rev().skip(1).map(Bytes::len).sum();
            assert!(before_the_last < BATCH_BYTES_MAX && chunks.len() <= BATCH_CHUNKS_MAX);
            sent += chunks.len();
        }
        assert_eq!(sent, events * channels.len(), "what had no room follows");
    }
}

/// Broken to see it fail: a topic that starts at the watermark instead of `looked`.
#[tokio::test]
async fn a_session_that_joins_while_refs_are_being_read_misses_nothing() {
    let node = Node::with_everything_kept().await;
    let start = node.hub.latest(ZERO);
    node.publish("a", "1").await;
    let Followed::Refs(refs) = node.log.follow(ZERO, start).await.unwrap() else { panic!() };
    // The tailer has looked and found nobody who listens; its watermark has not moved.
    let look = node.hub.look(ZERO, &refs);
    let mut client = node.subscribe(&["a"], Ok(after(start)));
    node.publish("a", "2").await;
    assert_eq!(data(&client.drain().await), ["1", "2"], "served from the log");
    node.hub.release(look, Vec::new());
    node.publish("a", "3").await;
    node.tail().await;
    assert_eq!(data(&client.drain().await), ["3"]);
}

#[tokio::test]
async fn replay_merges_channels_in_order_and_hands_over_to_live_without_loss_or_repetition() {
    let node = Node::with_everything_kept().await;
    let start = node.hub.latest(ZERO);
    for n in 0..40 {
        node.publish(["a", "b", "c"][n % 3], &n.to_string()).await;
    }
    node.tail().await;
    let mut client = node.subscribe(&["a", "c"], Ok(after(start)));
    for n in 40..80 {
        node.publish(["a", "b", "c"][n % 3], &n.to_string()).await;
    }
    let replayed = client.drain().await;
    assert_eq!(kinds(&replayed)[0], "connected");
    assert_eq!(replayed[0].id, Some(start.at(ZERO).to_string()));
    node.tail().await;
    for n in 80..90 {
        node.publish(["a", "b", "c"][n % 3], &n.to_string()).await;
    }
    node.tail().await;
    let live = client.drain().await;
    let expected: Vec<String> = (0..90).filter(|n| n % 3 != 1).map(|n| n.to_string()).collect();
    assert_eq!([data(&replayed), data(&live)].concat(), expected);
}

#[tokio::test]
async fn a_session_that_falls_behind_its_ring_is_served_from_the_log() {
    let node = Node::new(4, Retention { max_length: None, max_age: None }).await;
    let mut client = node.subscribe(&["a"], Ok(Start::Latest));
    client.drain().await;
    for round in 0..5 {
        for n in 0..20 {
            node.publish("a", &(round * 20 + n).to_string()).await;
        }
        node.tail().await;
    }
    let sent = client.drain().await;
    assert_eq!(data(&sent), (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(client.reads > 0);
    node.publish("a", "live").await;
    node.tail().await;
    let reads = client.reads;
    assert_eq!(data(&client.drain().await), ["live"]);
    assert_eq!(client.reads, reads, "caught up, it is live again");
}

#[tokio::test]
async fn trimmed_history_is_told_once_and_goes_on_with_the_oldest_that_is_left() {
    let retention = Retention { max_length: Some(10), max_age: None };
    let node = Node::new(4, retention).await;
    let start = node.hub.latest(ZERO);
    for n in 0..500 {
        node.publish("a", &n.to_string()).await;
        if n % 100 == 0 {
            node.publish("b", &n.to_string()).await;
        }
    }
    node.tail().await;
    let mut client = node.subscribe(&["a", "b"], Ok(after(start)));
    let sent = client.drain().await;
    assert_eq!(kinds(&sent)[..2], ["connected", "gap"]);
    assert_eq!(sent[0].id, Some(start.at(ZERO).to_string()));
    let gap = sent[1].json();
    assert_eq!((&gap["channel"], &gap["reason"]), (&"a".into(), &"trimmed".into()));
    assert_eq!(gap["after"], start.at(ZERO).to_string());
    let oldest = sent.iter().find(|block| block.id.as_deref() == gap["oldest"].as_str()).unwrap();
    let oldest: usize = oldest.data.parse().unwrap();
    assert_eq!(
        kinds(&sent).iter().filter(|kind| **kind == "gap").count(),
        1,
        "b lost nothing, a is told once"
    );
    let from_b = [0, 100, 200, 300, 400].iter().filter(|n| **n < oldest);
    let got = data(&sent);
    assert!(from_b.clone().all(|n| got.contains(&n.to_string().as_str())), "b is whole");
    assert!((oldest..500).all(|n| got.contains(&n.to_string().as_str())), "a is whole from its oldest on");
}

#[tokio::test]
async fn a_purge_is_told_to_live_sessions_and_to_cursors_from_before_once() {
    let node = Node::with_everything_kept().await;
    let before = node.publish("a", "1").await;
    node.publish("b", "1").await;
    node.tail().await;
    let mut live = node.subscribe(&["a", "b"], Ok(Start::Latest));
    live.drain().await;
    node.log.purge(&Channel::parse("a").unwrap(), &node.retention).await.unwrap();
    node.tail().await;
    let told = live.drain().await;
    assert_eq!(kinds(&told), ["gap", "heartbeat"]);
    assert_eq!((&told[0].json()["channel"], &told[0].json()["reason"]), (&"a".into(), &"reset".into()));
    node.publish("a", "2").await;
    node.tail().await;
    assert_eq!(data(&live.drain().await), ["2"]);

    let mut away = node.subscribe(&["a", "b"], Ok(after(before)));
    let sent = away.drain().await;
    assert_eq!(kinds(&sent), ["connected", "gap", "message", "message", "heartbeat"], "{sent:?}");
    assert_eq!(data(&sent), ["1", "2"], "b's event and what came after the purge");
    let mut again = node.subscribe(&["a", "b"], Ok(after(node.hub.latest(ZERO))));
    assert_eq!(kinds(&again.drain().await), ["connected"], "the gap does not repeat");
}

#[tokio::test]
async fn a_cursor_from_the_future_is_reset_to_now() {
    let node = Node::with_everything_kept().await;
    let last = node.publish("a", "1").await;
    node.tail().await;
    let future = StreamId::new(last.ms() + 1_000_000, 0).unwrap();
    let mut client = node.subscribe(&["a"], Ok(after(future)));
    let sent = client.drain().await;
    assert_eq!(kinds(&sent), ["connected", "gap", "heartbeat"]);
    assert_eq!(sent[0].id, Some(last.at(ZERO).to_string()));
    assert_eq!(sent[1].json()["reason"], "reset");
    node.publish("a", "2").await;
    node.tail().await;
    assert_eq!(data(&client.drain().await), ["2"]);
}

#[tokio::test]
async fn an_invalid_cursor_is_told_and_goes_on_live() {
    let node = Node::with_everything_kept().await;
    let last = node.publish("a", "1").await;
    node.tail().await;
    let mut client = node.subscribe(&["a"], Err(InvalidCursor));
    let sent = client.drain().await;
    assert_eq!(kinds(&sent), ["connected", "gap"]);
    assert_eq!(sent[0].id, Some(last.at(ZERO).to_string()));
    assert_eq!(
        sent[1].json(),
        serde_json::json!({"channel": null, "after": null, "oldest": null, "reason": "invalid_cursor"})
    );
}

#[tokio::test]
async fn earliest_is_what_is_left_and_never_a_gap() {
    let node = Node::new(4, Retention { max_length: Some(10), max_age: None }).await;
    for n in 0..500 {
        node.publish("a", &n.to_string()).await;
    }
    node.tail().await;
    let mut client = node.subscribe(&["a", "b"], Ok(Start::Earliest));
    let sent = client.drain().await;
    assert_eq!(sent[0].id.as_deref(), Some("00000000000000000000000000"));
    assert!(!kinds(&sent).contains(&"gap"));
    let got = data(&sent);
    let first: usize = got[0].parse().unwrap();
    assert!((250..=490).contains(&first));
    assert_eq!(got, (first..500).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn rewind_brings_the_last_events_of_each_channel() {
    let node = Node::with_everything_kept().await;
    for n in 0..10 {
        node.publish("a", &format!("a{n}")).await;
    }
    node.publish("b", "b0").await;
    node.tail().await;
    let mut client = node.subscribe(&["a", "b", "empty"], Ok(Start::Rewind(3)));
    let sent = client.drain().await;
    assert_eq!(data(&sent), ["a7", "a8", "a9", "b0"]);
    assert_eq!(kinds(&sent).iter().filter(|kind| **kind == "gap").count(), 0);
    node.publish("empty", "e0").await;
    node.tail().await;
    assert_eq!(data(&client.drain().await), ["e0"]);
}

#[tokio::test]
async fn heartbeats_carry_the_watermark_only_when_everything_was_delivered() {
    let node = Node::with_everything_kept().await;
    let mut client = node.subscribe(&["quiet"], Ok(Start::Latest));
    client.drain().await;
    let last = node.publish("loud", "x").await;
    node.tail().await;
    let later = Now { instant: Instant::now() + Duration::from_secs(31), ..now() };
    let sent = client.drain_at(later).await;
    assert_eq!(kinds(&sent), ["heartbeat"]);
    assert_eq!(sent[0].id, Some(last.at(ZERO).to_string()), "the cursor of an idle subscriber does not age");
    // A session that waits for a page must not move its client's cursor.
    let mut behind = node.subscribe(&["loud"], Ok(after(last.before())));
    let mut batch = Batch::default();
    assert!(matches!(behind.session.step(now(), &mut batch), Next::Read(..)));
    let (Next::Flush | Next::FlushAndWait(_)) = behind.session.step(later, &mut batch) else {
        panic!("a heartbeat is due")
    };
    assert_eq!(batch.take(), [": heartbeat\n\n"], "before connected there is nothing but comments");
}

/// Seen to fail with a session that asks again at once.
#[tokio::test]
async fn what_cannot_be_read_is_asked_for_again_later_each_time_and_not_together() {
    let node = Node::with_everything_kept().await;
    node.publish("a", "1").await;
    let begin = now();
    let wait_for = async |jitters: &[f64]| {
        let mut client = node.subscribe(&["a"], Ok(Start::Earliest));
        client.drain_until_read();
        let (mut at, mut waits) = (begin, Vec::new());
        for jitter in jitters {
            at.jitter = *jitter;
            client.session.loaded(Err(LogError::Unavailable("away".to_owned())), at);
            let Next::Wait(until) = client.session.step(at, &mut Batch::default()) else {
                panic!("it waits")
            };
            waits.push(until - at.instant);
            at.instant = until;
            let next = client.session.step(at, &mut Batch::default());
            assert!(matches!(next, Next::Read(_)), "it asks again when the time has come");
        }
        waits.iter().map(Duration::as_millis).collect::<Vec<_>>()
    };
    assert_eq!(wait_for(&[0.5; 7]).await, [50, 100, 200, 400, 800, 1_000, 1_000]);
    assert_eq!(wait_for(&[0.0, 1.0, 0.25]).await, [25, 150, 150], "each by its own jitter");
}

#[tokio::test]
async fn a_heartbeat_moves_no_cursor_while_a_page_is_outstanding() {
    let node = Node::new(4, Retention { max_length: None, max_age: None }).await;
    let mut client = node.subscribe(&["a", "b"], Ok(Start::Latest));
    client.drain().await;
    for n in 0..20 {
        node.publish("a", &n.to_string()).await;
    }
    let last = node.publish("b", "20").await;
    node.tail().await;
    let mut batch = Batch::default();
    let Next::Read(requests) = client.session.step(now(), &mut batch) else { panic!("a is behind") };
    let later = Now { instant: Instant::now() + Duration::from_secs(31), ..now() };
    let (Next::Flush | Next::FlushAndWait(_)) = client.session.step(later, &mut batch) else {
        panic!("a heartbeat is due")
    };
    let sent = blocks(&batch.take().concat());
    assert_eq!((kinds(&sent), &sent[0].id), (vec!["heartbeat"], &None));
    let heads = Arc::clone(&node.hub.pages).read_heads(requests).await;
    client.session.loaded(heads, later);
    let rest = client.drain_at(later).await;
    assert_eq!(data(&rest).len(), 21);
    assert_eq!(rest.last().unwrap().id, Some(last.at(ZERO).to_string()));
}

#[tokio::test]
async fn filters_and_skip_lists_leave_out_events_and_the_cursor_moves_on() {
    let node = Node::with_everything_kept().await;
    let filter = node.hub.filters.compile(r#"{"n":2}"#).unwrap();
    let mut client =
        node.subscribe_with(&["a", "$user:1"], Ok(Start::Latest), |s| Subscription { filter, ..s });
    client.drain().await;
    let json = |text: &str| Data::stored(crate::event::Format::Json, text.to_owned().into());
    node.publish_json("a", json(r#"{"n":1}"#), SkipList::default()).await;
    node.publish_json("a", json(r#"{"n":2}"#), SkipList::default()).await;
    node.publish_json("a", json(r#"{"n":2}"#), Box::new(["n.1".into()])).await;
    node.publish_json("$user:1", json(r#"{"n":3}"#), SkipList::default()).await;
    node.publish_json("a", json(r#"{"n":4}"#), SkipList::default()).await;
    node.tail().await;
    assert_eq!(data(&client.drain().await), [r#"{"n":2}"#, r#"{"n":3}"#]);
    let later = Now { instant: Instant::now() + Duration::from_secs(31), ..now() };
    let heartbeat = client.drain_at(later).await;
    assert_eq!(heartbeat[0].id, Some(node.hub.latest(ZERO).at(ZERO).to_string()));
}

#[tokio::test]
async fn an_order_to_close_ends_the_stream_with_a_hint_when_to_come_back() {
    let node = Node::with_everything_kept().await;
    let mut client = node.subscribe(&["a"], Ok(Start::Latest));
    client.drain().await;
    assert_eq!(node.hub.close_some(10, ClosingReason::Shutdown), 0);
    let mut batch = Batch::default();
    assert!(matches!(client.session.step(now(), &mut batch), Next::End));
    assert_eq!(
        batch.take(),
        ["retry: 3000\nevent: closing\ndata: {\"reason\":\"shutdown\",\"reconnect\":true}\n\n"]
    );
    assert_eq!((node.hub.sessions(), node.hub.topics()), (1, 1));
    drop(client);
    assert_eq!((node.hub.sessions(), node.hub.topics()), (0, 0), "nothing is left behind");
}

#[tokio::test]
async fn sessions_that_resume_from_one_position_share_one_read() {
    let node = Node::new(4, Retention { max_length: None, max_age: None }).await;
    let start = node.hub.latest(ZERO);
    for n in 0..300 {
        node.publish("a", &n.to_string()).await;
    }
    node.tail().await;
    let mut reads = 0;
    for _ in 0..50 {
        let mut client = node.subscribe(&["a"], Ok(after(start)));
        assert_eq!(data(&client.drain().await).len(), 300);
        reads += client.reads;
    }
    assert!(reads <= 2, "{reads} reads for 50 sessions");
}
