//! Back-off: how long to wait before something that failed is tried again.
//!
//! Invariant: each wait lies between half and one and a half times a delay that doubles with every failure up to
//! its maximum, so that what failed together does not come back together.

use std::time::Duration;

/// Delays between attempts.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    delay: Duration,
    min: Duration,
    max: Duration,
}

impl Backoff {
    /// Begins with `min`.
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self { delay: min, min, max }
    }

    /// How long to wait after one more failure. `jitter`, between 0 and 1, is random.
    pub fn next(&mut self, jitter: f64) -> Duration {
        let wait = self.delay.mul_f64(0.5 + jitter);
        self.delay = (self.delay * 2).min(self.max);
        wait
    }

    /// Something failed since the last success.
    pub fn is_under_way(&self) -> bool {
        self.delay > self.min
    }

    /// It succeeded.
    pub fn reset(&mut self) {
        self.delay = self.min;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_start_again_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        assert!(!backoff.is_under_way());
        let waits: Vec<u128> = (0..7).map(|_| backoff.next(0.5).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1_000, 1_000]);
        assert!(backoff.is_under_way());
        backoff.reset();
        assert!(!backoff.is_under_way());
        assert_eq!(backoff.next(0.5).as_millis(), 50);
    }

    proptest! {
        #[test]
        fn jitter_spreads_each_wait_around_its_delay(jitter in 0.0..1.0, failures in 0..20_u32) {
            let (min, max) = (Duration::from_millis(20), Duration::from_millis(500));
            let mut backoff = Backoff::new(min, max);
            for _ in 0..failures {
                backoff.next(0.5);
            }
            let delay = (min * 2_u32.pow(failures.min(10))).min(max);
            let wait = backoff.next(jitter);
            prop_assert!(wait >= delay / 2 && wait <= delay * 3 / 2, "{:?} around {:?}", wait, delay);
            let other = Backoff { delay, ..backoff }.next(1.0 - jitter);
            prop_assert!((jitter - 0.5).abs() < 0.01 || wait != other);
        }
    }
}
