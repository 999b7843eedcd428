//! The writer: one thread that turns queued requests into groups, and groups into commits.
//!
//! It takes what waits, bounded by events and bytes, writes it as one batch, waits for the disk, releases the
//! refs to followers and only then answers. While the disk is busy the next group gathers, so the number of
//! commits does not grow with the number of publishers.
//!
//! Invariants: what a caller or a follower was told is on disk; requests are decided in the order they were
//! queued. When a write fails, fjall refuses every later one: requests in flight are told that their outcome is
//! unknown, later ones that nothing was published, and once the disk takes a write again the database is
//! opened anew (`recovery.rs`). Neighbours: `group.rs` prepares, `sweep.rs` cleans up between groups.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::group::Group;
use super::partition_state::PartitionState;
use super::store::{Store, StoreError};
use super::sweep::Sweep;
use super::{Shared, recovery};
use crate::channel::Channel;
use crate::id::StreamId;
use crate::log::{AppendRequest, Appended, LogError, Tail};

/// A group takes no further command once it holds this many events.
const GROUP_EVENTS_MAX: usize = 8_192;

/// A group takes no further command once its data has this many bytes.
const GROUP_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Removals in a row between two groups when nothing was appended; more after a large group, so that removal
/// keeps up with appending.
const SWEEP_REMOVALS_MIN: usize = 512;

/// How often a disk that failed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What the writer is asked to do. Every reply may find that nobody waits any more.
pub(super) enum Command {
    Append(Vec<AppendRequest>, Reply<Vec<Appended>>),
    Purge(Channel, Reply<()>),
    Reset(StreamId, Reply<Tail>),
    Ping(Reply<()>),
}

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, LogError>>;

/// A command, and its share of the queue until it is done.
pub(super) struct Queued {
    pub(super) command: Command,
    pub(super) permit: OwnedSemaphorePermit,
}

/// The writer thread's own.
pub(super) struct Writer {
    shared: Arc<Shared>,
    state: PartitionState,
    sweep: Sweep,
    more_due: bool,
    swept: Instant,
    /// Why writing fails, and when it was tried last.
    failed: Option<(String, Instant)>,
}

/// An answer that waits for the commit.
enum Answer {
    Append(Vec<Appended>, Reply<Vec<Appended>>),
    Purge(Reply<()>),
    Reset(Reply<Tail>),
    Ping(Reply<()>),
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, state: PartitionState) -> Self {
        let swept = Instant::now();
        Self { shared, state, sweep: Sweep::default(), more_due: true, swept, failed: None }
    }

    /// Works until the queue is closed and empty.
    pub(super) fn run(mut self, queue: &Receiver<Queued>) {
        loop {
            let wait = match (&self.failed, self.more_due) {
                (None, true) => Duration::ZERO,
                (Some(_), _) => RETRY_INTERVAL,
                (None, false) => self.shared.options.sweep_interval,
            };
            let first = match queue.recv_timeout(wait) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut events = 0;
            let gathered = gather(first, queue, &mut events);
            self.recover();
            if let Some((reason, _)) = &self.failed {
                let error = LogError::Unavailable(reason.clone());
                refuse(gathered, &error);
                continue;
            }
            if !gathered.is_empty() {
                self.commit(gathered);
            }
            self.clean_up(events);
        }
    }

    /// Prepares, writes, releases, answers.
    fn commit(&mut self, gathered: Vec<Queued>) {
        let Some(store) = self.shared.store() else {
            let error = LogError::Unavailable("the log is closed".to_owned());
            return refuse(gathered, &error);
        };
        let mut group = Group::new(&store, self.state, (self.shared.clock)());
        let mut answers = Vec::with_capacity(gathered.len());
        let mut permits = Vec::with_capacity(gathered.len());
        for Queued { command, permit } in gathered {
            permits.push(permit);
            answers.extend(apply(&mut group, command));
        }
        let prepared = match group.finish() {
            Ok(prepared) => prepared,
            // Reading failed before anything was written.
            Err(error) => return fail(answers, &error.into()),
        };
        if let Some(batch) = prepared.batch
            && let Err(error) = Store::commit_durably(batch)
        {
            drop(store);
            return self.give_up(answers, &error);
        }
        self.state = prepared.state;
        if let Some(due_ms) = prepared.due_ms {
            self.sweep.note(due_ms);
        }
        let tail = self.tail();
        self.shared.feed.release(prepared.refs, tail);
        for answer in answers {
            acknowledge(answer, tail);
        }
    }

    /// The batch may or may not be on disk: nobody can know before the database is opened anew.
    fn give_up(&mut self, answers: Vec<Answer>, error: &StoreError) {
        let dir = self.shared.directory.path().display();
        tracing::error!(%dir, %error, "cannot write the log; publishing is refused until the disk recovers");
        fail(answers, &LogError::Unknown(format!("writing to {dir} failed: {error}")));
        self.failed = Some((format!("cannot write to {dir}: {error}"), Instant::now()));
    }

    /// Tries a disk that failed again.
    fn recover(&mut self) {
        let Some((_, tried)) = &mut self.failed else {
            return;
        };
        if tried.elapsed() < RETRY_INTERVAL {
            return;
        }
        *tried = Instant::now();
        match recovery::reopen(&self.shared) {
            Ok(state) => {
                tracing::info!(dir = %self.shared.directory.path().display(), "the disk takes writes again");
                if state != self.state {
                    self.state = state;
                    self.shared.feed.restart(self.tail());
                }
                self.failed = None;
                self.sweep = Sweep::default();
            }
            Err(reason) => self.failed = Some((reason, Instant::now())),
        }
    }

    /// Removes what is due, after each group and at least once in a while.
    fn clean_up(&mut self, events: usize) {
        if !self.more_due && self.swept.elapsed() < self.shared.options.sweep_interval {
            return;
        }
        let Some(store) = self.shared.store() else {
            return;
        };
        let budget = SWEEP_REMOVALS_MIN.max(events * 2);
        self.swept = Instant::now();
        match self.sweep.run(&store, (self.shared.clock)(), budget) {
            Ok(more) => self.more_due = more,
            Err(error @ StoreError::Disk(_)) => {
                drop(store);
                self.give_up(Vec::new(), &error);
            }
            Err(StoreError::Damaged(what)) => {
                self.more_due = false;
                tracing::error!(what, "cannot remove expired events");
            }
        }
    }

    fn tail(&self) -> Tail {
        Tail { last: self.state.last, epoch: self.state.epoch }
    }
}

/// The first command and what else waits, until the group is full.
fn gather(first: Option<Queued>, queue: &Receiver<Queued>, events: &mut usize) -> Vec<Queued> {
    let mut gathered = Vec::new();
    let mut bytes = 0;
    let mut next = first;
    while let Some(queued) = next {
        if let Command::Append(requests, _) = &queued.command {
            *events += requests.iter().map(|request| request.items.len()).sum::<usize>();
            bytes += data_bytes(requests);
        }
        gathered.push(queued);
        let full = *events >= GROUP_EVENTS_MAX || bytes >= GROUP_BYTES_MAX;
        next = if full { None } else { queue.try_recv().ok() };
    }
    gathered
}

/// Bytes of data in some requests.
pub(super) fn data_bytes(requests: &[AppendRequest]) -> usize {
    requests.iter().flat_map(|request| &request.items).map(|item| item.draft.data.bytes().len()).sum()
}

/// Adds a command to the group; answers at once what concerns this command alone.
fn apply(group: &mut Group<'_>, command: Command) -> Option<Answer> {
    match command {
        Command::Append(requests, reply) => match group.load(&requests) {
            Ok(()) => {
                let appended = requests.iter().map(|request| group.append(request)).collect();
                Some(Answer::Append(appended, reply))
            }
            Err(error) => send(reply, Err(error)),
        },
        Command::Purge(channel, reply) => match group.purge(&channel) {
            Ok(()) => Some(Answer::Purge(reply)),
            Err(error) => send(reply, Err(error)),
        },
        Command::Reset(watermark, reply) => match group.reset(watermark) {
            Ok(()) => Some(Answer::Reset(reply)),
            Err(error) => send(reply, Err(error)),
        },
        Command::Ping(reply) => Some(Answer::Ping(reply)),
    }
}

/// A reply that nobody waits for any more is no error.
fn send<T, A>(reply: Reply<T>, result: Result<T, LogError>) -> Option<A> {
    let _ = reply.send(result);
    None
}

fn acknowledge(answer: Answer, tail: Tail) {
    let _: Option<()> = match answer {
        Answer::Append(appended, reply) => send(reply, Ok(appended)),
        Answer::Purge(reply) | Answer::Ping(reply) => send(reply, Ok(())),
        Answer::Reset(reply) => send(reply, Ok(tail)),
    };
}

fn fail(answers: Vec<Answer>, error: &LogError) {
    for answer in answers {
        let _: Option<()> = match answer {
            Answer::Append(_, reply) => send(reply, Err(error.clone())),
            Answer::Purge(reply) | Answer::Ping(reply) => send(reply, Err(error.clone())),
            Answer::Reset(reply) => send(reply, Err(error.clone())),
        };
    }
}

fn refuse(gathered: Vec<Queued>, error: &LogError) {
    for Queued { command, .. } in gathered {
        let _: Option<()> = match command {
            Command::Append(_, reply) => send(reply, Err(error.clone())),
            Command::Purge(_, reply) | Command::Ping(reply) => send(reply, Err(error.clone())),
            Command::Reset(_, reply) => send(reply, Err(error.clone())),
        };
    }
}
