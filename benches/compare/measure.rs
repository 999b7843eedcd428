//! Measuring: one load on one server that was started for it, and the figures of all rounds.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::scenarios::Scenario;
use crate::servers::{LOAD_CORE, Server, Setup};

/// Figures by scenario, server and name, one per round.
#[derive(Default)]
pub(crate) struct Results {
    figures: BTreeMap<(&'static str, &'static str, String), Vec<f64>>,
}

impl Results {
    pub(crate) fn add(&mut self, scenario: &'static str, server: &'static str, name: &str, value: f64) {
        self.figures.entry((scenario, server, name.to_owned())).or_default().push(value);
    }

    /// The median of all rounds.
    pub(crate) fn median(&self, scenario: &'static str, server: Server, name: &str) -> Option<f64> {
        let mut values = self.figures.get(&(scenario, server.name(), name.to_owned()))?.clone();
        values.sort_by(f64::total_cmp);
        Some(values[values.len() / 2])
    }

    /// The smallest and the largest of all rounds.
    pub(crate) fn range(&self, scenario: &'static str, server: Server, name: &str) -> Option<(f64, f64)> {
        let values = self.figures.get(&(scenario, server.name(), name.to_owned()))?;
        let fold = |start: f64, pick: fn(f64, f64) -> f64| values.iter().copied().fold(start, pick);
        Some((fold(f64::INFINITY, f64::min), fold(f64::NEG_INFINITY, f64::max)))
    }

    /// Whether a scenario was measured at all.
    pub(crate) fn has(&self, scenario: &str) -> bool {
        self.figures.keys().any(|(name, _, _)| *name == scenario)
    }
}

/// Starts the server, runs the load, and takes down every figure of its report.
pub(crate) fn run(
    setup: &Setup,
    scenario: &Scenario,
    server: Server,
    short: bool,
    results: &mut Results,
) -> anyhow::Result<()> {
    let running = setup.start(server, scenario.settings)?;
    let mut command = setup.launcher.on_core(LOAD_CORE, &setup.broker);
    let args = scenario.args.iter().map(ToString::to_string).collect();
    let args: Vec<String> = if short { shortened(args) } else { args };
    command.arg("bench").args(args).args(server.templates());
    command.args(["--json", "--url", &running.url(), "--pin", &LOAD_CORE.to_string()]);
    for pid in &running.pids {
        command.args(["--pid", &pid.to_string()]);
    }
    if let Some(redis) = &running.redis {
        command.args(["--redis", &redis.url()]);
    }
    let output = command.output().context("the load cannot be started")?;
    let report: Value = match serde_json::from_slice(&output.stdout) {
        Ok(report) => report,
        Err(_) => bail!("no report: {}", String::from_utf8_lossy(&output.stderr).trim()),
    };
    for part in ["metrics", "checks"] {
        for (name, value) in report[part].as_object().into_iter().flatten() {
            if let Some(value) = value.as_f64() {
                results.add(scenario.name, server.name(), name, value);
            }
        }
    }
    Ok(())
}

/// A tenth of the load for a moment, to try whether everything runs.
fn shortened(mut args: Vec<String>) -> Vec<String> {
    for at in 1..args.len() {
        let (name, value) = (args[at - 1].clone(), &mut args[at]);
        match name.as_str() {
            "--duration" => "1s".clone_into(value),
            "--connections" | "--channels" | "--events" => {
                let number: usize = value.parse().expect("the scenarios hold numbers");
                *value = number.div_ceil(10).to_string();
            }
            _ => {}
        }
    }
    args
}
