//! Waiting: for a condition or for an answer, always with a deadline and never by a fixed sleep.

use std::time::{Duration, Instant};

/// Nothing that a test waits for takes longer, on a machine that is busy with other things too.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Time between two looks at a condition.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// A loop that looks again and again, and its deadline.
pub(crate) struct Wait<'a> {
    what: &'a str,
    start: Instant,
}

impl<'a> Wait<'a> {
    /// Starts waiting until `what` happens.
    pub(crate) fn until(what: &'a str) -> Self {
        Self { what, start: Instant::now() }
    }

    /// Rests before the next look; fails the test at the deadline, naming what did not happen.
    pub(crate) async fn again(&self) {
        assert!(self.start.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain until {}", self.what);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Looks again until `probe` answers, see [`Wait`].
pub(crate) async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = Wait::until(what);
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        wait.again().await;
    }
}

/// Awaits `future`; fails the test when it takes longer than [`DEADLINE`].
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let answer = tokio::time::timeout(DEADLINE, future).await;
    answer.unwrap_or_else(|_| panic!("waited {DEADLINE:?} in vain: {what}"))
}

#[tokio::test(start_paused = true)]
async fn a_condition_that_comes_true_ends_the_wait() {
    let mut looks = 0;
    let seen = until("the third look", async || {
        looks += 1;
        (looks == 3).then_some(looks)
    });
    assert_eq!(seen.await, 3);
}
