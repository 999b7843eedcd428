//! Pace: how much of what is served from the log is begun before everybody else has their turn.
//!
//! After a restart thousands of sessions replay at once, each with the next batch ready whenever its socket takes
//! one. Left to the runtime they would stand in one queue with the tailer and the live sessions, which need several
//! turns for an event. Invariant: between two looks at whatever else is due, at most [`SLICE`] turns are begun, in
//! the order in which they were asked for. Neighbours: `waking.rs` does the same for the listeners of large
//! topics, `session/driver.rs` asks.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;

/// Turns that are begun together: a batch each, about a millisecond of writing.
const SLICE: usize = 16;

/// Hands out turns.
#[derive(Default)]
pub struct Pace {
    waiting: Mutex<Waiting>,
    more: Notify,
}

#[derive(Default)]
struct Waiting {
    /// At most one for each session; whoever does not wait any more is passed over.
    queue: VecDeque<oneshot::Sender<()>>,
    /// The node stops: nobody has to wait any more.
    is_over: bool,
}

/// A place in the queue. Ready when it is the holder's turn, which nobody else waits for.
pub type Turn = oneshot::Receiver<()>;

impl Pace {
    /// Queues for a turn.
    pub fn turn(&self) -> Turn {
        let (begin, turn) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if !waiting.is_over {
            waiting.queue.push_back(begin);
            self.more.notify_one();
        }
        turn
    }

    /// Begins one slice after another, until this future is dropped, polled or not.
    pub(super) fn run(&self) -> impl Future<Output = ()> + Send {
        let over = Over(self);
        async move {
            let _over = over;
            loop {
                if !self.begin_slice() {
                    self.more.notified().await;
                    continue;
                }
                yield_now().await;
            }
        }
    }

    /// Answers whether anybody waited.
    fn begin_slice(&self) -> bool {
        let mut waiting = self.waiting.lock();
        let mut begun = 0;
        while begun < SLICE
            && let Some(begin) = waiting.queue.pop_front()
        {
            begun += usize::from(begin.send(()).is_ok());
        }
        if waiting.queue.is_empty() {
            waiting.queue.shrink_to_fit();
        }
        begun > 0
    }
}

/// Lets everybody go on.
struct Over<'a>(&'a Pace);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock();
        (waiting.is_over, waiting.queue) = (true, VecDeque::new());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::JoinSet;

    use super::*;

    /// Seen to fail when all who wait are let go on at once.
    #[tokio::test]
    async fn whoever_has_something_else_to_do_waits_for_one_slice_at_most() {
        let (pace, begun) = (Arc::new(Pace::default()), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        let runs = Arc::clone(&pace);
        let mut pacer = JoinSet::new();
        pacer.spawn(async move { runs.run().await });
        for _ in 0..100 {
            let (pace, begun) = (Arc::clone(&pace), Arc::clone(&begun));
            tasks.spawn(async move {
                for _ in 0..10 {
                    pace.turn().await.expect("the node runs");
                    begun.fetch_add(1, Ordering::Relaxed);
                    // As a connection does that has written its share and has more.
                    yield_now().await;
                }
            });
        }
        let mut before = 0;
        while !tasks.is_empty() {
            yield_now().await;
            let now = begun.load(Ordering::Relaxed);
            assert!(now - before <= 2 * SLICE, "{} turns between two looks", now - before);
            before = now;
            while tasks.try_join_next().is_some() {}
        }
        assert_eq!(before, 1_000, "everybody had all of their turns");
    }

    /// Seen to fail when a turn that nobody takes, because its stream is gone or is not read, holds up the others.
    #[tokio::test]
    async fn nobody_waits_for_a_turn_that_is_not_taken() {
        let pace = Pace::default();
        let not_taken: Vec<_> = (0..4 * SLICE).map(|_| pace.turn()).collect();
        for _ in 0..4 * SLICE {
            drop(pace.turn());
        }
        tokio::select! { () = pace.run() => {}, turn = pace.turn() => turn.expect("it comes") }
        drop(not_taken);
    }

    /// Seen to fail when the end of the queue is not told to those who wait, or come later.
    #[tokio::test]
    async fn nobody_waits_when_the_node_stops() {
        let pace = Pace::default();
        let before = pace.turn();
        drop(pace.run());
        assert!(before.await.is_err());
        assert!(pace.turn().await.is_err());
    }
}
