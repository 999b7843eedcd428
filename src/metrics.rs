//! Metrics: what components count, and how Prometheus gets to see it.
//!
//! A component owns its counters from the start and puts them onto a registry that it is handed (`register`);
//! nothing is global, so two brokers in one process do not mix. What is kept anyway, as the number of sessions,
//! is looked up when somebody asks ([`observe`]), so only counters cost anything on the way of an event: a
//! relaxed addition per batch. Invariants: labels have few values that are all known from the start
//! ([`label!`](crate::metrics::label)), so no series carries the name of a channel, a user or an address; every
//! name stands in the table of `docs/metrics.md`.

mod process;

use std::fmt::{self, Debug};
use std::marker::PhantomData;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeGaugeValue, EncodeMetric, MetricEncoder, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
pub use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
pub use prometheus_client::registry::Registry;

use crate::id::Partition;

/// What goes before every name but those of the process.
const PREFIX: &str = "headwater";
/// Upper bounds of durations, in seconds: from a commit in memory to a log that is away.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// The registry of one broker, complete once every component has registered.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// What `Content-Type` [`Metrics::encode`] needs.
    pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

    /// The metrics of a broker that consists of what `register` hands its registry to, and of its process.
    pub fn new(register: impl FnOnce(&mut Registry)) -> Self {
        let mut registry = Registry::default();
        process::register(&mut registry);
        let own = registry.sub_registry_with_prefix(PREFIX);
        own.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        register(own);
        Self { registry }
    }

    /// Everything as it is now, in Prometheus' text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry).expect("a String takes text");
        text
    }
}

/// A histogram of durations in seconds.
pub fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// An enum whose variants are the values of a label; made by [`label!`](crate::metrics::label).
pub trait Label: Copy + PartialEq + Debug + Send + Sync + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// Every variant.
    const ALL: &'static [Self];

    /// What stands in the label.
    fn value(self) -> &'static str;
}

/// Makes an enum a [`Label`]; a variant that is left out does not compile.
macro_rules! label {
    ($type:ty, $name:literal, $($variant:ident => $value:literal),+ $(,)?) => {
        impl $crate::metrics::Label for $type {
            const NAME: &'static str = $name;
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn value(self) -> &'static str {
                match self { $(Self::$variant => $value,)+ }
            }
        }
    };
}
pub(crate) use label;

/// A counter for each value of a label, all of them there from the start. Clones share them.
#[derive(Debug)]
pub struct Counters<L> {
    counters: Arc<[Counter]>,
    label: PhantomData<L>,
}

impl<L: Label> Counters<L> {
    /// The counter of this value.
    pub fn of(&self, value: L) -> &Counter {
        let index = L::ALL.iter().position(|known| *known == value);
        &self.counters[index.expect("every variant is listed")]
    }
}

impl<L: Label> Default for Counters<L> {
    fn default() -> Self {
        let counters = L::ALL.iter().map(|_| Counter::default()).collect();
        Self { counters, label: PhantomData }
    }
}

impl<L> Clone for Counters<L> {
    fn clone(&self) -> Self {
        Self { counters: Arc::clone(&self.counters), label: PhantomData }
    }
}

impl<L: Label> EncodeMetric for Counters<L> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (value, counter) in L::ALL.iter().zip(&*self.counters) {
            counter.encode(encoder.encode_family(&[(L::NAME, value.value())])?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// Registers a gauge that is looked up when somebody asks.
pub fn observe<V: EncodeGaugeValue + 'static>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    look: impl Fn() -> V + Send + Sync + 'static,
) {
    let encode = move |encoder: MetricEncoder<'_>| ConstGauge::new(look()).encode(encoder);
    registry.register(name, help, Observed { kind: MetricType::Gauge, encode });
}

/// Registers a gauge for each partition that is looked up when somebody asks.
pub fn observe_partitions<V: EncodeGaugeValue + 'static>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    partitions: u16,
    look: impl Fn(Partition) -> V + Send + Sync + 'static,
) {
    let encode = move |mut encoder: MetricEncoder<'_>| {
        (0..partitions).try_for_each(|number| {
            let gauge = ConstGauge::new(look(Partition(number)));
            gauge.encode(encoder.encode_family(&[("partition", number)])?)
        })
    };
    registry.register(name, help, Observed { kind: MetricType::Gauge, encode });
}

/// Registers a gauge, or with [`MetricType::Counter`] a counter, for each value of a label that is looked up
/// when somebody asks.
pub(crate) fn observe_labelled<L: Label>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    kind: MetricType,
    look: impl Fn(L) -> u64 + Send + Sync + 'static,
) {
    let encode = move |mut encoder: MetricEncoder<'_>| {
        L::ALL.iter().try_for_each(|label| {
            let value = look(*label);
            let labels = [(L::NAME, label.value())];
            let labelled = encoder.encode_family(&labels)?;
            match kind {
                MetricType::Counter => ConstCounter::new(value).encode(labelled),
                _ => ConstGauge::new(value).encode(labelled),
            }
        })
    };
    registry.register(name, help, Observed { kind, encode });
}

/// A metric whose value is somebody else's.
struct Observed<F> {
    kind: MetricType,
    encode: F,
}

impl<F> Debug for Observed<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").finish_non_exhaustive()
    }
}

impl<F: Fn(MetricEncoder<'_>) -> fmt::Result> EncodeMetric for Observed<F> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        (self.encode)(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Colour {
        Red,
        Blue,
    }
    label!(Colour, "colour", Red => "red", Blue => "blue");

    #[test]
    fn every_series_is_there_from_the_start_and_shows_what_was_counted() {
        let drops = Counters::<Colour>::default();
        let metrics = Metrics::new(|registry| {
            registry.register("drops", "Drops", drops.clone());
            observe(registry, "level", "Level", || 7_i64);
            observe_partitions(registry, "depth", "Depth", 2, |partition| f64::from(partition.0) + 0.5);
            observe_labelled(registry, "taken", "Taken", MetricType::Counter, |c: Colour| {
                u64::from(c == Colour::Red)
            });
        });
        drops.of(Colour::Blue).inc_by(3);
        let text = metrics.encode();
        for line in [
            "# TYPE headwater_drops_total counter",
            "headwater_drops_total{colour=\"red\"} 0",
            "headwater_drops_total{colour=\"blue\"} 3",
            "# TYPE headwater_level gauge",
            "headwater_level 7",
            "headwater_depth{partition=\"0\"} 0.5",
            "headwater_depth{partition=\"1\"} 1.5",
            "headwater_taken_total{colour=\"red\"} 1",
            concat!("headwater_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is missing in\n{text}");
        }
    }
}
