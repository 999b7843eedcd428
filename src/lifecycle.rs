//! Lifecycle: how the tasks of one broker begin, drain and end together.
//!
//! Three tokens are cancelled in this order: *leaving* (report unready, serve on), *soft* (drain: end every
//! session and take no new work), *hard* (stop now). Each is a child of the next, so a later one implies the
//! earlier. Invariant: [`Lifecycle::run`] returns within delay + deadline + [`HARD_GRACE`] of the first
//! reason to leave, whatever the tasks do. Nothing here is global: two brokers run in one process. Neighbours:
//! the binary turns SIGTERM and SIGINT into messages, `broker.rs` spawns on the [`Scope`].

use std::fmt;
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

/// How long tasks have to end after the hard token; those that do not are abandoned.
pub const HARD_GRACE: Duration = Duration::from_secs(2);

/// How long the steps of leaving may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between leaving and soft: unready, still serving.
    pub delay: Duration,
    /// Between soft and hard.
    pub deadline: Duration,
}

/// What tasks share: tokens that tell them to end, and the tracker that waits for them.
#[derive(Clone, Debug)]
pub struct Scope {
    leaving: CancellationToken,
    soft: CancellationToken,
    hard: CancellationToken,
    tracker: TaskTracker,
    /// The first critical task that died, kept for the exit code.
    failed: Arc<Mutex<Option<&'static str>>>,
}

impl Scope {
    /// Cancelled first: the node is about to go and reports itself unready.
    pub fn leaving(&self) -> &CancellationToken {
        &self.leaving
    }

    /// Cancelled second: drain.
    pub fn soft(&self) -> &CancellationToken {
        &self.soft
    }

    /// Cancelled last: stop now.
    pub fn hard(&self) -> &CancellationToken {
        &self.hard
    }

    /// Waits for whatever is spawned on it.
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Asks the broker to leave, as the first signal does.
    pub fn leave(&self) {
        self.leaving.cancel();
    }

    /// Spawns a task without which the broker is no broker. When it ends before the drain, or panics at any
    /// time, the broker drains without delay and [`Ended::failed`] names it.
    pub fn spawn_critical(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let guard = CriticalGuard { name, scope: self.clone() };
        self.tracker.spawn(async move {
            // Moved in, so that it drops with the task however that ends.
            let _guard = guard;
            task.await;
        });
    }
}

struct CriticalGuard {
    name: &'static str,
    scope: Scope,
}

impl Drop for CriticalGuard {
    fn drop(&mut self) {
        let early = !self.scope.soft.is_cancelled();
        if early || std::thread::panicking() {
            error!(task = self.name, "a critical task died; the broker drains");
            self.scope.failed.lock().get_or_insert(self.name);
            self.scope.soft.cancel();
        }
    }
}

/// Owns a broker's [`Scope`] and ends it.
#[derive(Debug)]
pub struct Lifecycle {
    scope: Scope,
}

/// How the tasks ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By themselves, within the deadline.
    Drained,
    /// By the hard token: the deadline passed, or a second signal came.
    Cut,
    /// This many did not even heed the hard token.
    Abandoned(usize),
}

/// The end of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How the tasks ended.
    pub how: How,
    /// The critical task whose death was the reason.
    pub failed: Option<&'static str>,
}

impl Ended {
    /// Whether the process may exit with 0. Being cut at the deadline is a bounded drain, not a failure.
    pub fn is_clean(&self) -> bool {
        self.failed.is_none() && !matches!(self.how, How::Abandoned(_))
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.how {
            How::Drained => f.write_str("every task ended by itself")?,
            How::Cut => f.write_str("tasks were cut off")?,
            How::Abandoned(tasks) => write!(f, "{tasks} tasks did not end and were abandoned")?,
        }
        match self.failed {
            Some(task) => write!(f, " after the critical task {task:?} had died"),
            None => Ok(()),
        }
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Lifecycle {
    /// A lifecycle in which nothing runs yet.
    pub fn new() -> Self {
        let hard = CancellationToken::new();
        let soft = hard.child_token();
        let leaving = soft.child_token();
        let scope = Scope { leaving, soft, hard, tracker: TaskTracker::new(), failed: Arc::default() };
        Self { scope }
    }

    /// What to hand to those who spawn.
    pub fn scope(&self) -> Scope {
        self.scope.clone()
    }

    /// Waits for a reason to leave (a message on `signals`, [`Scope::leave`], a token, the death of a critical
    /// task), then ends all tasks. A further message means hard. A closed channel sends no more signals.
    pub async fn run(self, mut signals: mpsc::Receiver<()>, timing: Timing) -> Ended {
        let scope = &self.scope;
        tokio::select! {
            () = scope.leaving.cancelled() => {}
            () = next(&mut signals) => info!("leaving on a signal; a second one ends at once"),
        }
        scope.leaving.cancel();
        tokio::select! {
            biased;
            () = scope.soft.cancelled() => {}
            () = next(&mut signals) => scope.hard.cancel(),
            () = sleep(timing.delay) => {}
        }
        scope.soft.cancel();
        scope.tracker.close();
        let how =
            if drained(scope, &mut signals, timing.deadline).await { How::Drained } else { cut(scope).await };
        Ended { how, failed: *scope.failed.lock() }
    }
}

/// Whether all tasks ended before the deadline, the hard token, or another signal.
async fn drained(scope: &Scope, signals: &mut mpsc::Receiver<()>, deadline: Duration) -> bool {
    tokio::select! {
        biased;
        () = scope.tracker.wait() => true,
        () = scope.hard.cancelled() => false,
        () = next(signals) => {
            warn!(tasks = scope.tracker.len(), "a second signal ends the drain");
            false
        }
        () = sleep(deadline) => {
            warn!(tasks = scope.tracker.len(), "the deadline ends the drain");
            false
        }
    }
}

async fn cut(scope: &Scope) -> How {
    scope.hard.cancel();
    match timeout(HARD_GRACE, scope.tracker.wait()).await {
        Ok(()) => How::Cut,
        Err(_) => How::Abandoned(scope.tracker.len()),
    }
}

async fn next(signals: &mut mpsc::Receiver<()>) {
    if signals.recv().await.is_none() {
        pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const TIMING: Timing = Timing { delay: Duration::from_secs(3), deadline: Duration::from_secs(10) };

    fn signals(count: usize) -> mpsc::Receiver<()> {
        let (sender, receiver) = mpsc::channel(4);
        (0..count).for_each(|_| sender.try_send(()).unwrap());
        receiver
    }

    fn drained() -> Ended {
        Ended { how: How::Drained, failed: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_reports_unready_then_drains_after_the_delay() {
        let lifecycle = Lifecycle::new();
        let scope = lifecycle.scope();
        let started = Instant::now();
        let (seen, mut at) = mpsc::channel(2);
        for token in [scope.leaving().clone(), scope.soft().clone()] {
            let seen = seen.clone();
            scope.tracker().spawn(async move {
                token.cancelled().await;
                seen.send(started.elapsed()).await.unwrap();
            });
        }
        assert_eq!(lifecycle.run(signals(1), TIMING).await, drained());
        assert_eq!(at.recv().await, Some(Duration::ZERO));
        assert_eq!(at.recv().await, Some(TIMING.delay));
        assert!(!scope.hard().is_cancelled());
        assert!(drained().is_clean());
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_every_task_to_end_and_no_longer() {
        let lifecycle = Lifecycle::new();
        let scope = lifecycle.scope();
        for seconds in [1, 4] {
            let soft = scope.soft().clone();
            scope.tracker().spawn(async move {
                soft.cancelled().await;
                sleep(Duration::from_secs(seconds)).await;
            });
        }
        let started = Instant::now();
        scope.leave();
        assert_eq!(lifecycle.run(signals(0), TIMING).await, drained());
        assert_eq!(started.elapsed(), TIMING.delay + Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_means_hard() {
        let lifecycle = Lifecycle::new();
        let hard = lifecycle.scope().hard().clone();
        lifecycle.scope().tracker().spawn(async move { hard.cancelled().await });
        let started = Instant::now();
        let ended = lifecycle.run(signals(1), TIMING).await;
        assert_eq!(ended, Ended { how: How::Cut, failed: None });
        assert!(ended.is_clean());
        assert_eq!(started.elapsed(), TIMING.delay + TIMING.deadline);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_means_hard_during_the_delay_and_during_the_drain() {
        for pause in [Duration::from_secs(1), TIMING.delay + Duration::from_secs(1)] {
            let lifecycle = Lifecycle::new();
            let scope = lifecycle.scope();
            let hard = scope.hard().clone();
            scope.tracker().spawn(async move { hard.cancelled().await });
            let (sender, receiver) = mpsc::channel(2);
            scope.tracker().spawn(async move {
                sender.send(()).await.unwrap();
                sleep(pause).await;
                sender.send(()).await.unwrap();
            });
            let started = Instant::now();
            assert_eq!(lifecycle.run(receiver, TIMING).await.how, How::Cut);
            assert_eq!(started.elapsed(), pause);
            assert!(scope.soft().is_cancelled() && scope.leaving().is_cancelled());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_heeds_nothing_is_abandoned_in_bounded_time() {
        let lifecycle = Lifecycle::new();
        lifecycle.scope().tracker().spawn(pending::<()>());
        let started = Instant::now();
        let ended = lifecycle.run(signals(1), TIMING).await;
        assert_eq!(ended, Ended { how: How::Abandoned(1), failed: None });
        assert!(!ended.is_clean());
        assert_eq!(started.elapsed(), TIMING.delay + TIMING.deadline + HARD_GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn the_death_of_a_critical_task_drains_at_once_and_fails_the_exit() {
        for panics in [false, true] {
            let lifecycle = Lifecycle::new();
            let scope = lifecycle.scope();
            scope.spawn_critical("tailer", async move {
                sleep(Duration::from_secs(60)).await;
                assert!(!panics, "a panic that the test wants");
            });
            let soft = scope.soft().clone();
            scope.spawn_critical("listener", async move { soft.cancelled().await });
            let started = Instant::now();
            let ended = lifecycle.run(signals(0), TIMING).await;
            assert_eq!(ended, Ended { how: How::Drained, failed: Some("tailer") });
            assert!(!ended.is_clean());
            assert_eq!(started.elapsed(), Duration::from_secs(60), "no delay: part of the broker is dead");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_critical_task_may_end_during_the_drain_but_not_panic() {
        for panics in [false, true] {
            let lifecycle = Lifecycle::new();
            let soft = lifecycle.scope().soft().clone();
            lifecycle.scope().spawn_critical("tailer", async move {
                soft.cancelled().await;
                assert!(!panics, "a panic that the test wants");
            });
            let ended = lifecycle.run(signals(1), TIMING).await;
            assert_eq!((ended.how, ended.is_clean()), (How::Drained, !panics));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_lifecycles_in_one_process_do_not_touch() {
        let (first, second) = (Lifecycle::new(), Lifecycle::new());
        let scope = second.scope();
        assert_eq!(first.run(signals(1), TIMING).await, drained());
        assert!(!scope.leaving().is_cancelled());
    }
}
