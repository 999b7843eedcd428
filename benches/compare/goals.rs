//! What is to be reached, as ratios of figures of one run wherever another server gives the measure.

use crate::measure::Results;
use crate::recovery::{FIGURE, NAME};
use crate::report::number;
use crate::scenarios::{
    CHANNELS, IDLE_MANY, IDLE_ONE, LATENCY, NDJSON, NOT_STALLED, PACED, SATURATED, STALLED, STORM,
};
use crate::servers::Server::{
    self, Embedded, EmbeddedInMemory, Nchan, NchanRedis, Redis, RedisBeside, WriteLoop,
};
use Divisor::{Figure as By, Number, PerSecondOfCpu, Without};
use Limit::{AtLeast, AtMost};

/// A figure of the report.
pub(crate) type Figure = (&'static str, Server, &'static str);

/// Something to reach.
pub(crate) struct Goal {
    pub(crate) what: &'static str,
    ours: Figure,
    /// What is done to ours.
    by: Divisor,
    pub(crate) limit: Limit,
    pub(crate) unit: &'static str,
}

pub(crate) enum Divisor {
    Number(f64),
    Figure(Figure),
    /// Ours divides a million: so many per second of CPU time.
    PerSecondOfCpu,
    /// What goes without it is taken off first.
    Without(Figure, f64),
}

#[derive(Clone, Copy)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Limit {
    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }

    pub(crate) fn text(self, unit: &str) -> String {
        match self {
            Self::AtMost(limit) => format!("at most {}{unit}", number(limit)),
            Self::AtLeast(limit) => format!("at least {}{unit}", number(limit)),
        }
    }
}

impl Goal {
    /// What was measured.
    pub(crate) fn value(&self, results: &Results) -> Option<f64> {
        let median = |(scenario, server, name): Figure| results.median(scenario, server, name);
        let ours = median(self.ours)?;
        Some(match self.by {
            Number(by) => ours / by,
            By(theirs) => ours / median(theirs)?,
            PerSecondOfCpu => 1e6 / ours,
            Without(other, by) => (ours - median(other)?) / by,
        })
    }
}

const PSS: &str = "server_pss_bytes_per_connection";
const GROWTH: &str = "server_pss_growth_bytes";
const CONNECTIONS: &str = "connections_per_s";
const PER_DELIVERY: &str = "server_cpu_us_per_delivery";
const PER_EVENT: &str = "server_cpu_us_per_event";
const DELIVERIES: &str = "deliveries_per_s";
const EVENTS: &str = "events_per_s";
const READS: &str = "redis_reads";
const P99: &str = "delivery_p99_us";

/// Everything, in the order of the report.
pub(crate) const GOALS: &[Goal] = &[
    Goal {
        what: "user memory of an idle subscriber, one channel",
        ours: (IDLE_ONE, Embedded, PSS),
        by: Number(1.0),
        limit: AtMost(1_500.0),
        unit: " B",
    },
    Goal {
        what: "the same, next to Nchan",
        ours: (IDLE_ONE, Embedded, PSS),
        by: By((IDLE_ONE, Nchan, PSS)),
        limit: AtMost(0.15),
        unit: "",
    },
    Goal {
        what: "user memory of an idle subscriber, a channel each",
        ours: (IDLE_MANY, Embedded, PSS),
        by: Number(1.0),
        limit: AtMost(2_500.0),
        unit: " B",
    },
    Goal {
        what: "connections/s to `connected`, next to Nchan",
        ours: (IDLE_ONE, Embedded, CONNECTIONS),
        by: By((IDLE_ONE, Nchan, CONNECTIONS)),
        limit: AtLeast(1.0),
        unit: "",
    },
    Goal {
        what: "CPU per delivery, paced, next to Nchan",
        ours: (PACED, Embedded, PER_DELIVERY),
        by: By((PACED, Nchan, PER_DELIVERY)),
        limit: AtMost(0.70),
        unit: "",
    },
    Goal {
        what: "CPU per delivery, paced, next to the bare write loop",
        ours: (PACED, Embedded, PER_DELIVERY),
        by: By((PACED, WriteLoop, PER_DELIVERY)),
        limit: AtMost(1.15),
        unit: "",
    },
    Goal {
        what: "saturated deliveries/s, next to Nchan",
        ours: (SATURATED, Embedded, DELIVERIES),
        by: By((SATURATED, Nchan, DELIVERIES)),
        limit: AtLeast(4.5),
        unit: "",
    },
    Goal {
        what: "CPU per saturated delivery, next to Nchan",
        ours: (SATURATED, Embedded, PER_DELIVERY),
        by: By((SATURATED, Nchan, PER_DELIVERY)),
        limit: AtMost(0.22),
        unit: "",
    },
    Goal {
        what: "CPU per event over many channels, embedded log next to Nchan in memory",
        ours: (CHANNELS, Embedded, PER_EVENT),
        by: By((CHANNELS, Nchan, PER_EVENT)),
        limit: AtMost(1.0),
        unit: "",
    },
    Goal {
        what: "the same on Redis, Redis included, next to Nchan on Redis",
        ours: (CHANNELS, Redis, PER_EVENT),
        by: By((CHANNELS, NchanRedis, PER_EVENT)),
        limit: AtMost(0.5),
        unit: "",
    },
    Goal {
        what: "replay storm, events/s delivered",
        ours: (STORM, Redis, DELIVERIES),
        by: Number(1.0),
        limit: AtLeast(800_000.0),
        unit: "",
    },
    Goal {
        what: "replay storm, Redis reads in all",
        ours: (STORM, Redis, READS),
        by: Number(1.0),
        limit: AtMost(49.0),
        unit: "",
    },
    Goal {
        what: "acknowledged events/s through one stream of NDJSON into Redis",
        ours: (NDJSON, RedisBeside, EVENTS),
        by: Number(1.0),
        limit: AtLeast(50_000.0),
        unit: "",
    },
    Goal {
        what: "the same per second of the broker's CPU",
        ours: (NDJSON, RedisBeside, PER_EVENT),
        by: PerSecondOfCpu,
        limit: AtLeast(50_000.0),
        unit: "",
    },
    Goal {
        what: "publish to delivery, p99, 200 events/s to 100 subscribers, Redis",
        ours: (LATENCY, RedisBeside, P99),
        by: Number(1_000.0),
        limit: AtMost(5.0),
        unit: " ms",
    },
    Goal {
        what: "the same, embedded log",
        ours: (LATENCY, Embedded, P99),
        by: Number(1_000.0),
        limit: AtMost(5.0),
        unit: " ms",
    },
    Goal {
        what: "the same, embedded log in memory",
        ours: (LATENCY, EmbeddedInMemory, P99),
        by: Number(1_000.0),
        limit: AtMost(5.0),
        unit: " ms",
    },
    Goal {
        what: "memory for a stalled subscriber 20 MB behind, Redis",
        ours: (STALLED, RedisBeside, GROWTH),
        by: Without((NOT_STALLED, RedisBeside, GROWTH), 10_000.0),
        limit: AtMost(1_000.0),
        unit: " kB",
    },
    Goal {
        what: "the same, embedded log",
        ours: (STALLED, Embedded, GROWTH),
        by: Without((NOT_STALLED, Embedded, GROWTH), 10_000.0),
        limit: AtMost(1_000.0),
        unit: " kB",
    },
    Goal {
        what: "from Redis' return to the next delivery",
        ours: (NAME, RedisBeside, FIGURE),
        by: Number(1.0),
        limit: AtMost(1_000.0),
        unit: " ms",
    },
];
