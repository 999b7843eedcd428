//! Reports: what a run came to, as a table for people and as JSON for scripts.
//!
//! Invariant: both show the same figures under the same names, and a run whose records are not clean says so and
//! fails.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Map, Value};

use super::board::Checked;
use super::redis::Calls;

/// What a run came to.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    scenario: &'static str,
    url: String,
    version: &'static str,
    settings: Map<String, Value>,
    metrics: Map<String, Value>,
    checks: Checks,
    #[serde(skip_serializing_if = "Option::is_none")]
    redis_calls: Option<std::collections::BTreeMap<String, u64>>,
    /// What makes figures doubtful.
    notes: Vec<String>,
}

/// Whether every subscriber received what was published.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Checks {
    published: u64,
    acknowledged: u64,
    expected: u64,
    received: u64,
    lost: u64,
    repeated: u64,
    disordered_connections: u64,
    gaps: u64,
}

impl Report {
    pub(super) fn new(scenario: &'static str, url: &str) -> Self {
        Self {
            scenario,
            url: url.to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            settings: Map::new(),
            metrics: Map::new(),
            checks: Checks::default(),
            redis_calls: None,
            notes: Vec::new(),
        }
    }

    /// How the run was set up.
    pub(super) fn setting(&mut self, name: &str, value: impl Into<Value>) {
        self.settings.insert(name.to_owned(), value.into());
    }

    /// A figure; its name ends with its unit.
    pub(super) fn metric(&mut self, name: &str, value: f64) {
        self.metrics.insert(name.to_owned(), rounded(value));
    }

    /// Latencies in microseconds, if there are any.
    pub(super) fn latencies(&mut self, of: &str, histogram: &Histogram<u64>) {
        if histogram.is_empty() {
            return;
        }
        for (quantile, at) in [("p50", 0.5), ("p99", 0.99)] {
            self.metric(&format!("{of}_{quantile}_us"), histogram.value_at_quantile(at) as f64);
        }
        self.metric(&format!("{of}_max_us"), histogram.max() as f64);
    }

    /// Something that makes figures doubtful.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// What was published, and taken over.
    pub(super) fn published(&mut self, published: u64, acknowledged: u64) {
        (self.checks.published, self.checks.acknowledged) = (published, acknowledged);
    }

    /// What came of a fleet.
    pub(super) fn checked(&mut self, checked: Checked) {
        let checks = &mut self.checks;
        checks.expected += checked.expected;
        checks.received += checked.received;
        checks.lost += checked.lost;
        checks.repeated += checked.repeated;
        checks.disordered_connections += checked.disordered;
    }

    /// How often subscribers were told that something may be missing.
    pub(super) fn gaps(&mut self, gaps: u64) {
        self.checks.gaps = gaps;
    }

    /// What Redis was asked for.
    pub(super) fn redis(&mut self, calls: Calls) {
        self.metric("redis_reads", calls.reads() as f64);
        self.redis_calls = Some(calls.0);
    }

    /// What is wrong with the records, if anything is.
    pub(super) fn complaint(&self) -> Option<String> {
        let Checks { published, acknowledged, lost, repeated, disordered_connections, gaps, .. } =
            self.checks;
        let wrong: Vec<String> = [
            (lost, "deliveries are missing"),
            (repeated, "deliveries came twice or out of order"),
            (disordered_connections, "connections saw another order than the rest"),
            (gaps, "gaps were told"),
            (published - acknowledged.min(published), "events were not acknowledged"),
        ]
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
        (!wrong.is_empty()).then(|| wrong.join(", "))
    }

    /// One line of JSON.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers")
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let settings: Vec<String> =
            self.settings.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect();
        let mut text = format!("{} at {}: {}\n", self.scenario, self.url, settings.join(", "));
        let width = self.metrics.keys().map(String::len).max().unwrap_or(0);
        for (name, value) in &self.metrics {
            let _ = write!(text, "\n  {name:width$}  {:>14}", shown(value));
        }
        let Checks { published, acknowledged, expected, received, .. } = self.checks;
        let _ = write!(
            text,
            "\n\n  {} events published, {} acknowledged",
            grouped(&published.to_string()),
            grouped(&acknowledged.to_string())
        );
        let _ = write!(
            text,
            "; {} of {} deliveries received",
            grouped(&received.to_string()),
            grouped(&expected.to_string())
        );
        let _ = match self.complaint() {
            Some(complaint) => write!(text, "; WRONG: {complaint}"),
            None => write!(text, "; nothing lost, in order"),
        };
        if let Some(calls) = &self.redis_calls {
            let calls: Vec<String> = calls.iter().map(|(name, count)| format!("{name} {count}")).collect();
            let _ = write!(text, "\n  Redis calls: {}", calls.join(", "));
        }
        for note in &self.notes {
            let _ = write!(text, "\n  note: {note}");
        }
        text
    }
}

/// Four digits are more than a measurement is worth.
fn rounded(value: f64) -> Value {
    let rounded = match value.abs() {
        large if large >= 1_000.0 => value.round(),
        middle if middle >= 1.0 => (value * 100.0).round() / 100.0,
        _ => (value * 1e5).round() / 1e5,
    };
    serde_json::Number::from_f64(rounded).map_or(Value::Null, Value::Number)
}

fn shown(value: &Value) -> String {
    match value.as_f64() {
        Some(large) if large.abs() >= 1_000.0 => {
            let text = format!("{large:.0}");
            let digits = text.trim_start_matches('-');
            format!("{}{}", &text[..text.len() - digits.len()], grouped(digits))
        }
        Some(number) => number.to_string(),
        None => "-".to_owned(),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

/// Digits in groups of three.
fn grouped(digits: &str) -> String {
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new("fanout", "http://h/");
        report.setting("connections", 2);
        report.metric("deliveries_per_s", 1_234_567.8);
        report.metric("server_cpu_us_per_delivery", 2.34567);
        report.published(10, 10);
        report.checked(Checked { expected: 20, received: 20, ..Checked::default() });
        report
    }

    #[test]
    fn table_and_json_tell_the_same() {
        let report = report();
        let table = report.table();
        assert!(table.starts_with("fanout at http://h/: connections 2\n"), "{table}");
        assert!(table.contains("deliveries_per_s                 1,234,568"), "{table}");
        assert!(table.contains("20 of 20 deliveries received; nothing lost, in order"), "{table}");
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["metrics"]["deliveries_per_s"], 1_234_568.0);
        assert_eq!(json["metrics"]["server_cpu_us_per_delivery"], 2.35);
        assert_eq!(json["checks"]["expected"], 20);
        assert_eq!(report.complaint(), None);
    }

    #[test]
    fn whatever_is_wrong_is_told() {
        let mut report = report();
        report.checked(Checked { expected: 9, received: 6, lost: 3, repeated: 2, disordered: 1 });
        report.gaps(4);
        report.published(12, 7);
        let complaint = report.complaint().unwrap();
        for part in ["3 deliveries are missing", "2 deliveries came", "1 connections", "4 gaps", "5 events"] {
            assert!(complaint.contains(part), "{part}: {complaint}");
        }
        assert!(report.table().contains("WRONG: 3 deliveries"));
    }

    #[test]
    fn numbers_are_grouped_and_rounded() {
        assert_eq!(["0", "999", "1000", "1234567"].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0.000_123_456, 12.345_6, 12_345.6].map(|n| shown(&rounded(n))),
            ["0.00012", "12.35", "12,346"]
        );
        assert_eq!(shown(&rounded(-4_321.2)), "-4,321");
        assert_eq!(rounded(f64::NAN), Value::Null);
    }
}
