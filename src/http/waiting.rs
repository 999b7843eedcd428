//! Waiting: connections that have not sent a whole head yet, and which of them go when there is no room.
//!
//! Invariant: whoever sends their head at once is served, however many others hold connections for nothing: the
//! oldest of those that wait are closed beyond a bound, and one for each that cannot be accepted for want of a
//! descriptor. Neighbours: `listener.rs` takes the seats, `peer.rs` notes that a request came.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// All that wait on one listener.
pub(super) struct Waiting {
    max: usize,
    seats: Mutex<Seats>,
}

#[derive(Default)]
struct Seats {
    next: u64,
    /// The oldest first.
    by_age: BTreeMap<u64, Arc<Notify>>,
}

/// One connection's place, until its first request has come.
pub(super) struct Seat {
    waiting: Arc<Waiting>,
    number: u64,
    called: Arc<Notify>,
}

impl Waiting {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, seats: Mutex::default() })
    }

    /// A seat for a connection that was just accepted; the oldest ones make room.
    pub(super) fn take(self: &Arc<Self>) -> Seat {
        let called = Arc::new(Notify::new());
        let mut seats = self.seats.lock();
        let number = seats.next;
        seats.next += 1;
        seats.by_age.insert(number, Arc::clone(&called));
        while seats.by_age.len() > self.max {
            seats.dismiss_oldest();
        }
        drop(seats);
        Seat { waiting: Arc::clone(self), number, called }
    }

    /// Has the one that waits longest make room; false when nobody waits.
    pub(super) fn dismiss_oldest(&self) -> bool {
        self.seats.lock().dismiss_oldest()
    }
}

impl Seats {
    fn dismiss_oldest(&mut self) -> bool {
        self.by_age.pop_first().is_some_and(|(_, called)| {
            called.notify_one();
            true
        })
    }
}

impl Seat {
    /// The connection serves a purpose: it is not asked to make room any more.
    pub(super) fn is_served(&self) {
        self.waiting.seats.lock().by_age.remove(&self.number);
    }

    /// Returns when the connection has to make room.
    pub(super) async fn dismissed(&self) {
        self.called.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.is_served();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_dismissed(seat: &Seat) -> bool {
        seat.dismissed().now_or_never().is_some()
    }

    /// Seen to fail with a seat that is kept once its connection is served.
    #[test]
    fn the_oldest_that_sent_nothing_makes_room() {
        let waiting = Waiting::new(2);
        let served = waiting.take();
        served.is_served();
        let (first, second) = (waiting.take(), waiting.take());
        assert!(!is_dismissed(&served), "whoever is served stays");
        let third = waiting.take();
        assert!(is_dismissed(&first) && !is_dismissed(&second) && !is_dismissed(&third));
        drop(second);
        let fourth = waiting.take();
        assert!(!is_dismissed(&third), "there was room");
        assert!(waiting.dismiss_oldest() && is_dismissed(&third));
        fourth.is_served();
        assert!(!waiting.dismiss_oldest() && !is_dismissed(&fourth), "nobody waits");
    }
}
