//! A node without its tasks: a hub to which events are released by hand, and sessions that are stepped by hand.
//!
//! The hub's log is an embedded one that nothing is written to: what is released here never was in a log, and no
//! session falls so far behind that it would look there.

use std::sync::Arc;
use std::time::Duration;

use headwater::channel::Channel;
use headwater::cursor::Start;
use headwater::event::{Draft, Event};
use headwater::fanout::{FanoutOptions, Hub, Mailbox, Marks, RingLimits, Topic};
use headwater::id::{Partition, StreamId};
use headwater::log::embedded::{EmbeddedLog, EmbeddedOptions, system_clock};
use headwater::log::retention::RetentionRules;
use headwater::log::{Log, Ref, RefKind, Retention, Tail};
use headwater::session::metrics::SessionMetrics;
use headwater::session::{Batch, Next, Now, Session, SessionOptions, Subscription};
use tempfile::TempDir;
use tokio::time::Instant;

const ZERO: Partition = Partition(0);

pub(crate) struct Node {
    hub: Arc<Hub>,
    options: Arc<SessionOptions>,
    /// Of the last released event.
    last: StreamId,
    _dir: TempDir,
}

/// A session, and what it writes.
pub(crate) struct Client {
    session: Session,
    batch: Batch,
    now: Now,
}

impl Node {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default(), system_clock())
            .expect("a log can be opened in an empty directory");
        let last = StreamId::new(1_795_346_312_082, 0).expect("a time of this century");
        let fanout = FanoutOptions {
            ring: RingLimits { frames_max: 1024, bytes_max: 1 << 20 },
            rings_bytes_max: 1 << 26,
            page_bytes_max: 1 << 22,
        };
        let rules = RetentionRules::new(Vec::new(), Retention { max_length: None, max_age: None });
        let log: Arc<dyn Log> = Arc::new(log);
        let hub = Hub::new(log, &[Tail { last, epoch: StreamId::ZERO }], rules, fanout);
        let options = SessionOptions {
            node: "n".into(),
            heartbeat_interval: Duration::from_secs(3600),
            comment_heartbeats: false,
            retry: Duration::from_secs(3),
            write_timeout: Duration::from_secs(30),
            lifetime_max: None,
            metrics: SessionMetrics::default(),
        };
        Self { hub, options: Arc::new(options), last, _dir: dir }
    }

    /// A topic that somebody listens to.
    pub(crate) fn join(&self, channel: &str) -> Arc<Topic> {
        self.hub.join(&parsed(channel), &Arc::default()).topic
    }

    /// Releases so many events to a channel, as the tailer does.
    pub(crate) fn release(&mut self, channel: &str, events: usize, draft: &Draft) {
        if events == 0 {
            return;
        }
        let channel = parsed(channel);
        let (mut refs, mut released) = (Vec::new(), Vec::new());
        for _ in 0..events {
            self.last = StreamId::new(self.last.ms(), self.last.seq() + 1).expect("the same millisecond");
            refs.push(Ref { id: self.last, kind: RefKind::Event(channel.clone(), 200) });
            released.push(Event { id: self.last, draft: draft.clone() });
        }
        let look = self.hub.look(ZERO, &refs);
        self.hub.release(look, vec![released]);
    }

    pub(crate) fn marks(&self) -> Marks {
        self.hub.marks(ZERO)
    }

    /// The position that so many released events follow.
    pub(crate) fn before_last(&self, events: u64) -> StreamId {
        StreamId::new(self.last.ms(), self.last.seq() - events).expect("the same millisecond")
    }

    /// A subscriber from now on that has got its `connected`.
    pub(crate) fn subscribe(&self, channels: &[String], filter: Option<&str>) -> Client {
        let subscription = Subscription {
            connection: "n.1".into(),
            channels: channels.iter().map(|name| parsed(name)).collect(),
            start: Ok(Start::Latest),
            filter: filter.and_then(|json| self.hub.filters.compile(json).expect("a filter")),
            envelope: false,
            permit: None,
        };
        let now = Now { instant: Instant::now(), unix_ms: 1_795_346_312_082, jitter: 0.5 };
        let mailbox = Arc::new(Mailbox::default());
        let session =
            Session::open(Arc::clone(&self.hub), Arc::clone(&self.options), subscription, mailbox, now);
        let mut client = Client { session, batch: Batch::default(), now };
        client.drain();
        client
    }
}

impl Client {
    /// Steps until there is nothing to do; answers how many pieces were to write.
    pub(crate) fn drain(&mut self) -> usize {
        let mut pieces = 0;
        loop {
            match self.session.step(self.now, &mut self.batch) {
                Next::Flush => pieces += self.batch.take().len(),
                Next::FlushAndWait(_) => return pieces + self.batch.take().len(),
                Next::Again => {}
                Next::Wait(_) => return pieces,
                Next::Read(..) | Next::End => unreachable!("the rings hold everything and nothing closes"),
            }
        }
    }
}

fn parsed(channel: &str) -> Channel {
    Channel::parse(channel).expect("a channel's name")
}
