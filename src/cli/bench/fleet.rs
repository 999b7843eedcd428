//! Fleets: subscribers, each a bare socket whose bytes are looked at once.
//!
//! A load that is dearer than what it measures measures itself, so a subscriber is no HTTP client: all of them
//! share one buffer, and of the stream only lines, stamps and few words are recognized.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::Failure;
use super::board::{Begin, Board, Checked, State, Tally};
use super::target::{Ready, Target};
use super::wire::{Answer, Lines};

/// The receive buffer of a subscriber that stalls: the smallest that Linux gives.
const STALLED_BUFFER_BYTES: u32 = 4 * 1024;

/// How a fleet begins.
#[derive(Clone)]
pub(super) struct Opening {
    pub(super) connections: usize,
    /// How many may be on their way to `connected` at once.
    pub(super) connecting: usize,
    /// What to resume from.
    pub(super) cursor: Option<String>,
    pub(super) begin: Begin,
    /// Nothing is read after `connected`, until [`Fleet::resume`].
    pub(super) stalled: bool,
    /// Silence after which the run is given up.
    pub(super) patience: Duration,
}

/// Subscribers; their connections end when this is dropped.
pub(super) struct Fleet {
    board: Arc<Board>,
    first: usize,
    connections: usize,
    patience: Duration,
    go_on: CancellationToken,
    tasks: JoinSet<()>,
    /// When the first one began to connect.
    began_us: u64,
}

/// One connection.
struct Subscriber {
    board: Arc<Board>,
    ready: Ready,
    number: usize,
    request: String,
    go_on: Option<CancellationToken>,
}

impl Fleet {
    /// Begins to connect; [`Fleet::connected`] waits for it. Connection n listens to channel n in turn.
    pub(super) fn open(
        board: &Arc<Board>,
        target: &Arc<Target>,
        channels: &[String],
        opening: &Opening,
    ) -> Self {
        let first = board.tally(|tally| tally.enlist(opening.connections, opening.begin));
        let (go_on, places) = (CancellationToken::new(), Arc::new(Semaphore::new(opening.connecting)));
        let mut tasks = JoinSet::new();
        for connection in 0..opening.connections {
            let channel = &channels[connection % channels.len()];
            let subscriber = Subscriber {
                board: Arc::clone(board),
                ready: target.ready,
                number: first + connection,
                request: target.subscription(channel, connection, opening.cursor.as_deref()),
                go_on: opening.stalled.then(|| go_on.clone()),
            };
            tasks.spawn(subscriber.run(Arc::clone(target), Arc::clone(&places)));
        }
        let (board, connections) = (Arc::clone(board), opening.connections);
        let began_us = board.now_us();
        Self { board, first, connections, patience: opening.patience, go_on, tasks, began_us }
    }

    /// Waits until all are connected; answers how many a second that were.
    pub(super) async fn connected(&self) -> Result<f64, Failure> {
        let came = |tally: &Tally| {
            let own = &tally.records[self.first..self.first + self.connections];
            own.iter().filter(|record| record.is_connected).count()
        };
        let done = self.board.wait(self.patience, |tally| came(tally) == self.connections).await;
        self.board.tally(|tally| {
            let took_us = tally.last_connected_us.saturating_sub(self.began_us).max(1);
            if done {
                return Ok(self.connections as f64 / (took_us as f64 / 1e6));
            }
            let came = came(tally);
            let why = tally.failure.take().unwrap_or_else(|| {
                "nothing more came; a server that sends no event `connected` needs --ready head".to_owned()
            });
            Err(Failure::unavailable(anyhow!(
                "{came} of {} subscribers are connected: {why}",
                self.connections
            )))
        })
    }

    /// Waits until all that was sent has arrived, or nothing more does.
    pub(super) async fn drained(&self) -> bool {
        self.board.wait(self.patience, |tally| tally.check(self.first, self.connections).lost == 0).await
    }

    /// Lets stalled subscribers read.
    pub(super) fn resume(&self) {
        self.go_on.cancel();
    }

    /// Compares what they received with what was sent.
    pub(super) fn check(&self) -> Checked {
        self.board.tally(|tally| tally.check(self.first, self.connections))
    }

    /// The last id that a subscriber received.
    pub(super) fn last_id(&self) -> String {
        self.board.tally(|tally| tally.records[self.first].last_id.clone())
    }

    /// Ends the connections.
    pub(super) async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

impl Subscriber {
    async fn run(self, target: Arc<Target>, places: Arc<Semaphore>) {
        let place = places.acquire_owned().await.expect("the semaphore is never closed");
        let why = match self.follow(&target, place).await {
            Ok(()) => "the server ended the stream".to_owned(),
            Err(why) => why,
        };
        self.board.tally(|tally| {
            tally.ended += 1;
            tally.failure.get_or_insert(why);
        });
    }

    async fn follow(&self, target: &Target, place: OwnedSemaphorePermit) -> Result<(), String> {
        let buffer = self.go_on.as_ref().map(|_| STALLED_BUFFER_BYTES);
        let error = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
        let mut socket = target.connect_subscriber(buffer).await.map_err(error("cannot connect"))?;
        socket.write_all(self.request.as_bytes()).await.map_err(error("cannot send a request"))?;
        let (mut place, mut stream) = (Some(place), (Answer::new(), Lines::default()));
        loop {
            socket.readable().await.map_err(error("a connection broke"))?;
            match self.read(&socket, &mut stream)? {
                Read::Nothing => {}
                Read::Something if place.is_none() => {}
                Read::Something => {
                    if self.board.tally(|tally| tally.records[self.number].is_connected) {
                        place = None;
                        if let Some(go_on) = &self.go_on {
                            go_on.cancelled().await;
                        }
                    }
                }
                Read::End => return Ok(()),
            }
        }
    }

    /// Takes what has arrived.
    fn read(&self, socket: &TcpStream, (answer, lines): &mut (Answer, Lines)) -> Result<Read, String> {
        let mut state = self.board.lock();
        let State { buffer, tally } = &mut *state;
        let bytes = match socket.try_read(buffer) {
            Ok(0) => return Ok(Read::End),
            Ok(length) => &buffer[..length],
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Read::Nothing),
            Err(error) => return Err(format!("a connection broke: {error}")),
        };
        let (now_us, mut unfit) = (self.board.now_us(), Ok(()));
        answer.take(bytes, &mut |part| {
            let taken = lines.take(part, &mut |line| tally.line(self.number, line, now_us));
            if taken.is_err() {
                unfit = taken;
            }
        })?;
        unfit?;
        match answer.status() {
            Some(200) if self.ready == Ready::Head => tally.connected(self.number, now_us),
            Some(200) | None => {}
            Some(status) => return Err(format!("a subscriber was answered {status}")),
        }
        if answer.has_ended() {
            return Ok(Read::End);
        }
        let has_settled = tally.take_settled();
        drop(state);
        self.board.announce(has_settled);
        Ok(Read::Something)
    }
}

/// What a look at a socket found.
enum Read {
    Nothing,
    Something,
    End,
}
