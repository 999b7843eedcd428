//! The board: what all connections of a run write down, and what the run waits for.
//!
//! Invariant: each connection's record is exact. Every event that was published on its channel is counted once as
//! received or as lost, and what comes twice or too late is told apart. Neighbours: `fleet.rs` writes, the
//! scenarios read.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::stamp::Stamp;

/// Read at once from a socket.
const BUFFER_BYTES: usize = 256 * 1024;
/// Latencies are kept to three digits, up to a minute.
const LATENCY_US_MAX: u64 = 60_000_000;
/// How often a condition is looked at that no latency depends on.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// One run's.
pub(super) struct Board {
    began: Instant,
    state: Mutex<State>,
    /// An event has reached everybody.
    settled: Notify,
}

/// What is written down.
pub(super) struct State {
    /// For whichever socket is read.
    pub(super) buffer: Vec<u8>,
    pub(super) tally: Tally,
}

/// Sums over all connections, and each one's record.
pub(super) struct Tally {
    pub(super) records: Vec<Record>,
    /// What each channel was sent, by sequence.
    sent: Vec<Box<[u64]>>,
    /// Events sent in total.
    pub(super) published: u64,
    /// Events that the server took over.
    pub(super) acknowledged: u64,
    pub(super) delivered: u64,
    pub(super) connected: usize,
    pub(super) gaps: u64,
    pub(super) ended: usize,
    /// Why the first connection that failed did.
    pub(super) failure: Option<String>,
    pub(super) deliveries: Histogram<u64>,
    pub(super) acknowledgements: Histogram<u64>,
    /// When something last happened, in microseconds since the run began.
    pub(super) last_us: u64,
    pub(super) last_connected_us: u64,
    settling: Settling,
    has_settled: bool,
}

/// What one connection received.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// Index of the channel.
    pub(super) channel: usize,
    pub(super) is_connected: bool,
    /// Its arrivals decide what has reached everybody.
    counts: bool,
    /// The number that comes next, by sequence.
    next: Box<[u64]>,
    received: u64,
    lost: u64,
    repeated: u64,
    /// Depends on the order of everything received.
    order: u64,
    pub(super) last_id: String,
    keeps_id: bool,
}

/// How many events have reached everybody whose arrivals count.
#[derive(Default)]
struct Settling {
    /// Connections that one event goes to.
    per_event: u32,
    /// Events that have reached all.
    settled: u64,
    /// How many connections have received so many events more than all.
    ahead: VecDeque<u32>,
}

impl Settling {
    /// A connection received its `nth` event, from 0; answers whether that was the last one missing.
    fn arrived(&mut self, nth: u64) -> bool {
        if self.per_event == 1 {
            self.settled += 1;
            return true;
        }
        let Some(at) = nth.checked_sub(self.settled).and_then(|at| usize::try_from(at).ok()) else {
            return false;
        };
        if self.ahead.len() <= at {
            self.ahead.resize(at + 1, 0);
        }
        self.ahead[at] += 1;
        let before = self.settled;
        while self.ahead.front().is_some_and(|count| *count >= self.per_event) {
            self.ahead.pop_front();
            self.settled += 1;
        }
        self.settled > before
    }
}

/// What a fleet's connections have in common when they begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begin {
    /// Arrivals decide what has reached everybody.
    pub(super) counts: bool,
    /// Ids are kept to resume from.
    pub(super) keeps_id: bool,
    /// How many of the events of the first sequence are still due to it.
    pub(super) missed: u64,
}

/// What came of the connections with these numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Checked {
    pub(super) expected: u64,
    pub(super) received: u64,
    pub(super) lost: u64,
    pub(super) repeated: u64,
    /// Connections that saw another order than the first one of their channel.
    pub(super) disordered: u64,
}

impl Board {
    /// A run over so many channels, each published to in so many sequences.
    pub(super) fn new(channels: usize, sequences: usize) -> Self {
        let histogram = || Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are in order");
        let tally = Tally {
            records: Vec::new(),
            sent: vec![vec![0; sequences].into_boxed_slice(); channels],
            published: 0,
            acknowledged: 0,
            delivered: 0,
            connected: 0,
            gaps: 0,
            ended: 0,
            failure: None,
            deliveries: histogram(),
            acknowledgements: histogram(),
            last_us: 0,
            last_connected_us: 0,
            settling: Settling::default(),
            has_settled: false,
        };
        let state = State { buffer: vec![0; BUFFER_BYTES], tally };
        Self { began: Instant::now(), state: Mutex::new(state), settled: Notify::new() }
    }

    /// Microseconds since the run began.
    pub(super) fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Everything that is written down. Hold it shortly.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Reads or changes the sums.
    pub(super) fn tally<T>(&self, look: impl FnOnce(&mut Tally) -> T) -> T {
        look(&mut self.lock().tally)
    }

    /// Tells those who wait for room whether there may be some.
    pub(super) fn announce(&self, has_settled: bool) {
        if has_settled {
            self.settled.notify_waiters();
        }
    }

    /// Waits until fewer than `window` events are on their way; false when nothing happens for `patience`.
    pub(super) async fn room(&self, window: u64, patience: Duration) -> bool {
        loop {
            let notified = self.settled.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.tally(|tally| tally.on_the_way() < window) {
                return true;
            }
            let deadline = self.tally(|tally| tally.last_us) + micros(patience);
            tokio::select! {
                () = notified => {}
                () = sleep(Duration::from_micros(deadline.saturating_sub(self.now_us()))) => {
                    if self.is_silent(patience) {
                        return false;
                    }
                }
            }
        }
    }

    /// Waits until `done`; false when nothing happens for `patience`, or a connection failed.
    pub(super) async fn wait(&self, patience: Duration, done: impl Fn(&Tally) -> bool) -> bool {
        let begin_us = self.now_us();
        loop {
            let (is_done, failed) = self.tally(|tally| (done(tally), tally.failure.is_some()));
            if is_done || failed {
                return is_done;
            }
            if self.is_silent(patience) && self.now_us() > begin_us + micros(patience) {
                return false;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    fn is_silent(&self, patience: Duration) -> bool {
        self.tally(|tally| tally.last_us) + micros(patience) < self.now_us()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 2)
}

impl Tally {
    /// Adds the records of a fleet on these channels, in turn; answers the number of the first.
    pub(super) fn enlist(&mut self, connections: usize, begin: Begin) -> usize {
        let first = self.records.len();
        let channels = self.sent.len();
        self.records.extend((0..connections).map(|connection| {
            let channel = connection % channels;
            let mut next = self.sent[channel].clone();
            next[0] -= begin.missed;
            Record { channel, next, counts: begin.counts, keeps_id: begin.keeps_id, ..Record::default() }
        }));
        if begin.counts {
            let per_event = u32::try_from(connections.div_ceil(channels)).unwrap_or(u32::MAX);
            let settled = self.published - begin.missed;
            self.settling = Settling { per_event, settled, ahead: VecDeque::new() };
        }
        first
    }

    /// The next number of a channel's sequence, which counts as sent.
    pub(super) fn send(&mut self, channel: usize, sequence: usize) -> u64 {
        let next = &mut self.sent[channel][sequence];
        let number = *next;
        *next += 1;
        self.published += 1;
        number
    }

    /// Events that have not reached everybody yet.
    pub(super) fn on_the_way(&self) -> u64 {
        self.published.saturating_sub(self.settling.settled)
    }

    /// Whether an event has reached everybody since the last call.
    pub(super) fn take_settled(&mut self) -> bool {
        std::mem::take(&mut self.has_settled)
    }

    /// A connection became one.
    pub(super) fn connected(&mut self, connection: usize, now_us: u64) {
        if !std::mem::replace(&mut self.records[connection].is_connected, true) {
            self.connected += 1;
            (self.last_us, self.last_connected_us) = (now_us, now_us);
        }
    }

    /// A line of a connection's stream.
    pub(super) fn line(&mut self, connection: usize, line: &[u8], now_us: u64) {
        match line.first() {
            Some(b'd') => {
                if let Some(stamp) = line.starts_with(b"data").then(|| Stamp::find(line)).flatten() {
                    self.event(connection, stamp, now_us);
                }
            }
            Some(b'e') => match line {
                b"event: connected" => self.connected(connection, now_us),
                b"event: gap" => self.gaps += 1,
                _ => {}
            },
            Some(b'i') if self.records[connection].keeps_id => {
                if let Some(id) = line.strip_prefix(b"id:") {
                    self.records[connection].last_id = String::from_utf8_lossy(id.trim_ascii()).into_owned();
                }
            }
            _ => {}
        }
    }

    fn event(&mut self, connection: usize, stamp: Stamp, now_us: u64) {
        let record = &mut self.records[connection];
        self.last_us = now_us;
        let before = record.position();
        if !record.take(stamp) {
            return;
        }
        self.delivered += 1;
        self.deliveries.saturating_record(now_us.saturating_sub(stamp.sent_us));
        if record.counts {
            for nth in before..record.position() {
                self.has_settled |= self.settling.arrived(nth);
            }
        }
    }

    /// Forgets the latencies of a warm-up.
    pub(super) fn forget_latencies(&mut self) {
        self.deliveries.reset();
        self.acknowledgements.reset();
    }

    /// Compares what the connections from `first` on received with what was sent since they began.
    pub(super) fn check(&self, first: usize, connections: usize) -> Checked {
        let mut checked = Checked::default();
        let mut orders: Vec<Option<u64>> = vec![None; self.sent.len()];
        for record in &self.records[first..first + connections] {
            let sent: u64 = self.sent[record.channel].iter().sum();
            let missing = sent.saturating_sub(record.position());
            checked.expected += record.received + record.lost + missing;
            checked.received += record.received;
            checked.lost += record.lost + missing;
            checked.repeated += record.repeated;
            let order = *orders[record.channel].get_or_insert(record.order);
            checked.disordered += u64::from(order != record.order);
        }
        checked
    }
}

impl Record {
    /// Events of the channel that are behind it, received or lost.
    fn position(&self) -> u64 {
        self.next.iter().sum()
    }

    /// Takes an event; answers whether it is new. One that comes after a later one of its sequence is not: it has
    /// been counted as lost.
    fn take(&mut self, stamp: Stamp) -> bool {
        let Some(next) = self.next.get_mut(stamp.sequence) else { return false };
        if stamp.number < *next {
            self.repeated += 1;
            return false;
        }
        self.lost += stamp.number - *next;
        *next = stamp.number + 1;
        self.received += 1;
        let place = (stamp.sequence as u64) << 48 ^ stamp.number;
        self.order = (self.order ^ place).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTED: Begin = Begin { counts: true, keeps_id: false, missed: 0 };

    fn tally(channels: usize, sequences: usize) -> Tally {
        Board::new(channels, sequences).state.into_inner().tally
    }

    fn send(tally: &mut Tally, events: u64) {
        for number in 0..events {
            assert_eq!(tally.send(0, 0), number);
        }
    }

    fn receive(tally: &mut Tally, connection: usize, sequence: usize, number: u64) {
        let mut data = Vec::new();
        Stamp { sequence, number, sent_us: 5 }.write(48, &mut data);
        tally.line(connection, &[b"data: ", &data[..]].concat(), 9);
    }

    #[test]
    fn a_whole_record_is_clean_and_an_event_has_settled_when_the_last_has_it() {
        let mut tally = tally(1, 1);
        assert_eq!(tally.enlist(2, COUNTED), 0);
        send(&mut tally, 3);
        for number in 0..3 {
            receive(&mut tally, 0, 0, number);
        }
        assert!(!tally.take_settled() && tally.on_the_way() == 3);
        receive(&mut tally, 1, 0, 0);
        assert!(tally.take_settled() && tally.on_the_way() == 2);
        receive(&mut tally, 1, 0, 1);
        receive(&mut tally, 1, 0, 2);
        let expected = Checked { expected: 6, received: 6, ..Checked::default() };
        assert_eq!((tally.check(0, 2), tally.delivered, tally.on_the_way()), (expected, 6, 0));
        assert_eq!(tally.deliveries.max(), 4);
    }

    #[test]
    fn what_is_lost_or_comes_twice_is_counted_and_holds_up_nobody() {
        let mut tally = tally(1, 1);
        tally.enlist(2, COUNTED);
        send(&mut tally, 4);
        for number in [0, 2, 2, 1] {
            receive(&mut tally, 0, 0, number);
        }
        (0..4).for_each(|number| receive(&mut tally, 1, 0, number));
        assert_eq!(tally.on_the_way(), 1, "the lost event counts as behind, the missing one does not");
        let checked = tally.check(0, 2);
        assert_eq!((checked.expected, checked.received), (8, 6));
        assert_eq!((checked.lost, checked.repeated, checked.disordered), (2, 2, 1));
    }

    #[test]
    fn two_publishers_may_overtake_each_other_but_everybody_sees_one_order() {
        let mut tally = tally(1, 2);
        tally.enlist(3, COUNTED);
        for sequence in [0, 0, 1] {
            tally.send(0, sequence);
        }
        for connection in 0..2 {
            for (sequence, number) in [(1, 0), (0, 0), (0, 1)] {
                receive(&mut tally, connection, sequence, number);
            }
        }
        for (sequence, number) in [(0, 0), (1, 0), (0, 1)] {
            receive(&mut tally, 2, sequence, number);
        }
        let checked = tally.check(0, 3);
        assert_eq!((checked.received, checked.lost, checked.repeated, checked.disordered), (9, 0, 0, 1));
    }

    #[test]
    fn a_later_fleet_owes_only_what_follows() {
        let mut tally = tally(2, 1);
        tally.send(0, 0);
        tally.send(1, 0);
        let first = tally.enlist(2, COUNTED);
        tally.send(1, 0);
        receive(&mut tally, first + 1, 0, 1);
        assert_eq!(tally.on_the_way(), 0);
        let checked = tally.check(first, 2);
        assert_eq!((checked.expected, checked.received, checked.lost), (1, 1, 0));
    }

    #[test]
    fn whoever_resumes_is_owed_what_it_missed() {
        let mut tally = tally(1, 1);
        send(&mut tally, 4);
        tally.enlist(2, Begin { missed: 3, ..COUNTED });
        for number in 1..4 {
            receive(&mut tally, 0, 0, number);
        }
        receive(&mut tally, 1, 0, 2);
        let checked = tally.check(0, 2);
        assert_eq!((checked.expected, checked.received, checked.lost), (6, 4, 2));
    }

    #[test]
    fn control_events_are_noticed() {
        let mut tally = tally(1, 1);
        tally.enlist(1, Begin { counts: false, keeps_id: true, missed: 0 });
        for line in
            ["id: 01J", "event: connected", "data: {}", "event: gap", "event: message", "data: no stamp"]
        {
            tally.line(0, line.as_bytes(), 1);
        }
        assert_eq!((tally.connected, tally.gaps, tally.delivered), (1, 1, 0));
        assert_eq!(tally.records[0].last_id, "01J");
    }
}
