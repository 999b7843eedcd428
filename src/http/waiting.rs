//! Waiting: connections without a request under way, and which of them go when there is no room.
//!
//! Invariant: whoever sends their head at once is served, however many others hold connections for nothing, before
//! their first request or after one: those that wait longest are closed beyond a bound, and one for each that cannot
//! be accepted for want of a descriptor. Neighbours: `listener.rs` takes the seats, `peer.rs` notes requests.

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

/// One connection's place while it has no request.
pub(super) struct Seat {
    waiting: Arc<Waiting>,
    max: usize,
    requests: Mutex<Requests>,
    called: Arc<Notify>,
}

/// What a connection is doing.
#[derive(Debug)]
enum Requests {
    /// Since this number was given.
    None(u64),
    Some(usize),
}

/// A request that is being answered.
pub(super) struct Served(Arc<Seat>);

impl Drop for Served {
    fn drop(&mut self) {
        let mut requests = self.0.requests.lock();
        *requests = match *requests {
            Requests::Some(others @ 2..) => Requests::Some(others - 1),
            _ => Requests::None(self.0.waiting.enter(&self.0.called, self.0.max)),
        };
    }
}

impl Waiting {
    /// Registers how many wait, and how many had to make room.
    pub(super) fn register(self: &Arc<Self>, registry: &mut Registry) {
        let waiting = Arc::clone(self);
        let seats = move || waiting.seats.lock().by_age.len();
        observe(registry, "connections_waiting", "Sockets without a request under way", seats);
        let help = "Sockets without a request that were closed to make room for others";
        registry.register("connections_dismissed", help, self.dismissed.clone());
    }

    /// A seat for a connection that was just accepted; beyond `max` those that wait longest make room.
    pub(super) fn take(self: &Arc<Self>, max: usize) -> Arc<Seat> {
        let called = Arc::new(Notify::new());
        let requests = Mutex::new(Requests::None(self.enter(&called, max)));
        Arc::new(Seat { waiting: Arc::clone(self), max, requests, called })
    }

    fn enter(&self, called: &Arc<Notify>, max: usize) -> u64 {
        let mut seats = self.seats.lock();
        let number = seats.next;
        seats.next += 1;
        seats.by_age.insert(number, Arc::clone(called));
        let surplus = seats.by_age.len().saturating_sub(max);
        let dismissed = (0..surplus).filter(|_| seats.dismiss_oldest()).count();
        drop(seats);
        self.dismissed.inc_by(dismissed as u64);
        number
    }

    fn leave(&self, number: u64) {
        self.seats.lock().by_age.remove(&number);
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
    /// A request came: until it is answered the connection is not asked to make room.
    pub(super) fn serve(self: &Arc<Self>) -> Served {
        let mut requests = self.requests.lock();
        *requests = match *requests {
            Requests::None(number) => {
                self.waiting.leave(number);
                Requests::Some(1)
            }
            Requests::Some(others) => Requests::Some(others + 1),
        };
        drop(requests);
        Served(Arc::clone(self))
    }

    /// Returns when the connection has to make room.
    pub(super) async fn dismissed(&self) {
        self.called.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Requests::None(number) = *self.requests.get_mut() {
            self.waiting.leave(number);
        }
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
        let _request = served.serve();
        let (first, second) = (take(), take());
        assert!(!is_dismissed(&served), "whoever is served stays");
        let third = take();
        assert!(is_dismissed(&first) && !is_dismissed(&second) && !is_dismissed(&third));
        drop(second);
        let fourth = take();
        assert!(!is_dismissed(&third), "there was room");
        assert!(waiting.dismiss_oldest() && is_dismissed(&third));
        let _request = fourth.serve();
        assert!(!waiting.dismiss_oldest() && !is_dismissed(&fourth), "nobody waits");
        assert_eq!(waiting.dismissed.get(), 2);
    }

    /// Seen to fail when the first request frees the seat for good.
    #[test]
    fn whoever_was_served_waits_again_when_the_last_request_is_answered() {
        let waiting = Arc::new(Waiting::default());
        let seat = waiting.take(2);
        let (one, another) = (seat.serve(), seat.serve());
        drop(one);
        assert!(!waiting.dismiss_oldest(), "one request is under way");
        drop(another);
        let younger = waiting.take(2);
        assert!(waiting.dismiss_oldest() && is_dismissed(&seat) && !is_dismissed(&younger));
        drop((seat, younger));
        assert!(!waiting.dismiss_oldest(), "nobody is left");
    }
}
