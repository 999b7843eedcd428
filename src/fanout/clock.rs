//! The log's clock as a node knows it: by the newest id that it read, and the time since.
//!
//! Invariant: it is never ahead of the clock that the ids come from, as long as that one goes forward. Age is
//! judged by it, since the node's own clock may be wrong.

use std::time::Duration;

use tokio::time::Instant;

use crate::id::StreamId;

/// The log's time, at least.
#[derive(Clone, Copy, Debug)]
pub struct LogClock {
    ms: u64,
    read: Instant,
}

impl LogClock {
    /// The log has given the id just now, or earlier.
    pub fn at(id: StreamId) -> Self {
        Self { ms: id.ms(), read: Instant::now() }
    }

    /// The log has given this id too.
    pub fn advance(&mut self, id: StreamId) {
        let given = Self::at(id);
        if given.ms > self.ms_at(given.read) {
            *self = given;
        }
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.ms_at(Instant::now())
    }

    fn ms_at(&self, instant: Instant) -> u64 {
        self.ms.saturating_add(millis(instant.saturating_duration_since(self.read)))
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_goes_on_by_itself_and_is_set_forward_by_newer_ids_only() {
        let id = |ms| StreamId::new(ms, 0).unwrap();
        let mut clock = LogClock::at(id(1_000));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(clock.now_ms(), 1_500);
        clock.advance(id(1_200));
        assert_eq!(clock.now_ms(), 1_500, "the id is old");
        clock.advance(id(9_000));
        assert_eq!(clock.now_ms(), 9_000, "the node slept, or began with an old id");
    }
}
