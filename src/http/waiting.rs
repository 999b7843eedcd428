//! Waiting: connections that have not sent a whole head yet, and which of them go when there is no room.
//!
//! Invariant: whoever sends their head at once is served, however many others hold connections for nothing: the
//! oldest of those that wait are closed beyond a bound, and one for each that cannot be accepted for want of a
//! descriptor. Neighbours: `listener.rs` takes the seats, `peer.rs` notes that a request came.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::metrics::{Counter, Registry, observe};

/// All that wait on one listener.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    seats: Mutex<Seats>,
    dismissed: Counter,
}

#[derive(Debug, Default)]
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
    /// Registers how many wait, and how many had to make room.
    pub(super) fn register(self: &Arc<Self>, registry: &mut Registry) {
        let waiting = Arc::clone(self);
        let seats = move || waiting.seats.lock().by_age.len();
        observe(registry, "connections_waiting", "Sockets that have not sent a whole head yet", seats);
        let help = "Sockets without a request that were closed to make room for others";
        registry.register("connections_dismissed", help, self.dismissed.clone());
    }

    /// A seat for a connection that was just accepted; beyond `max` the oldest ones make room.
    pub(super) fn take(self: &Arc<Self>, max: usize) -> Seat {
        let called = Arc::new(Notify::new());
        let mut seats = self.seats.lock();
        let number = seats.next;
        seats.next += 1;
        seats.by_age.insert(number, Arc::clone(&called));
        let surplus = seats.by_age.len().saturating_sub(max);
        let dismissed = (0..surplus).filter(|_| seats.dismiss_oldest()).count();
        drop(seats);
        self.dismissed.inc_by(dismissed as u64);
        Seat { waiting: Arc::clone(self), number, called }
    }

    /// Has the one that waits longest make room; false when nobody waits.
    pub(super) fn dismiss_oldest(&self) -> bool {
        let is_somebody = self.seats.lock().dismiss_oldest();
        self.dismissed.inc_by(u64::from(is_somebody));
        is_somebody
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
        let waiting = Arc::new(Waiting::default());
        let take = || waiting.take(2);
        let served = take();
        served.is_served();
        let (first, second) = (take(), take());
        assert!(!is_dismissed(&served), "whoever is served stays");
        let third = take();
        assert!(is_dismissed(&first) && !is_dismissed(&second) && !is_dismissed(&third));
        drop(second);
        let fourth = take();
        assert!(!is_dismissed(&third), "there was room");
        assert!(waiting.dismiss_oldest() && is_dismissed(&third));
        fourth.is_served();
        assert!(!waiting.dismiss_oldest() && !is_dismissed(&fourth), "nobody waits");
        assert_eq!(waiting.dismissed.get(), 2);
    }
}
