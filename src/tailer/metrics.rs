//! What the tailers of a node count.

use std::sync::Arc;

use super::Pulse;
use crate::clock;
use crate::id::{Partition, StreamId};
use crate::metrics::{Counter, Counters, Histogram, Registry, label, observe_partitions, seconds};

/// Why the topics of a partition begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    /// Refs were trimmed before this node read them.
    Trimmed,
    /// The log lost history.
    RolledBack,
}

label!(Restart, "reason", Trimmed => "trimmed", RolledBack => "rolled_back");

/// Counters of all tailers of a node. Clones share them.
#[derive(Clone, Debug)]
pub struct TailerMetrics {
    /// Refs that were released.
    refs: Counter,
    /// Age of the newest ref of a release.
    release_seconds: Histogram,
    /// Turns that failed.
    pub(super) failures: Counter,
    pub(super) restarts: Counters<Restart>,
}

impl Default for TailerMetrics {
    fn default() -> Self {
        Self {
            refs: Counter::default(),
            release_seconds: seconds(),
            failures: Counter::default(),
            restarts: Counters::default(),
        }
    }
}

impl TailerMetrics {
    /// Registers what tailers count, and how long ago each showed that it lives.
    pub fn register(&self, registry: &mut Registry, pulses: &[Arc<Pulse>]) {
        let Self { refs, release_seconds, failures, restarts } = self.clone();
        registry.register("refs_released", "Refs of the feeds that were released", refs);
        registry.register("release_seconds", "Age of what was released to the rings", release_seconds);
        registry.register("tailer_failures", "Turns of a tailer that the log failed", failures);
        registry.register("tailer_restarts", "Times that the topics of a partition began anew", restarts);
        let partitions = u16::try_from(pulses.len()).expect("a partition number has 16 bits");
        let pulses = pulses.to_vec();
        observe_partitions(
            registry,
            "tailer_turn_age_seconds",
            "Time since a tailer last heard from the log, about a second at most when nothing happens",
            partitions,
            move |Partition(number)| pulses[usize::from(number)].age().as_secs_f64(),
        );
    }

    /// So many refs up to `last` were released.
    pub(super) fn released(&self, refs: usize, last: StreamId) {
        self.refs.inc_by(refs as u64);
        // The log's clock may run ahead of this one.
        let age_ms = clock::unix_ms().saturating_sub(last.ms());
        self.release_seconds.observe(age_ms as f64 / 1000.0);
    }
}
