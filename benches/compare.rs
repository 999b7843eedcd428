//! The broker beside others: starts each server on one core, puts the load of `headwater bench` on another, and writes
//! what came of it, ratios first. `benches/compare.sh` builds and installs what it needs and calls it.
//!
//! Every round measures all servers one after the other, each started anew, so that what else the machine does hits
//! them alike; the medians count. Arguments: `--broker PATH`, `--rounds N`, `--report FILE` (the part between its two
//! markers is replaced), `--short` for a try, words that select sections or rows, and `--realtime` (root only), which
//! gives servers and load precedence over everything else on their cores, for machines that do other work too.

#[path = "compare/goals.rs"]
mod goals;
#[path = "compare/measure.rs"]
mod measure;
#[path = "compare/recovery.rs"]
mod recovery;
#[path = "compare/report.rs"]
mod report;
#[path = "compare/scenarios.rs"]
mod scenarios;
#[path = "compare/servers.rs"]
mod servers;

use std::path::PathBuf;

use anyhow::{Context, bail};
use measure::Results;
use servers::Setup;

/// Rounds of a report; an odd number has a median.
const ROUNDS: usize = 5;

fn main() -> anyhow::Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let setup = Setup::new(&options.broker, options.realtime)?;
    let load_before = report::load_average();
    let mut results = Results::default();
    for round in 1..=options.rounds {
        for scenario in scenarios::all() {
            for server in scenario.servers {
                let name = format!("{} {}", scenario.name, server.name());
                if !options.words.iter().all(|word| name.contains(word.as_str())) {
                    continue;
                }
                tell(&format!("round {round} of {}: {name}", options.rounds));
                measure::run(&setup, &scenario, *server, options.short, &mut results)
                    .with_context(|| format!("{name} cannot be measured"))?;
            }
        }
        if options.words.iter().all(|word| recovery::NAME.contains(word.as_str())) {
            tell(&format!("round {round} of {}: {}", options.rounds, recovery::NAME));
            recovery::run(&setup, &mut results).context("the recovery cannot be measured")?;
        }
    }
    let text = report::markdown(&results, options.rounds, options.realtime, &load_before);
    match options.report {
        Some(path) => report::replace_between_markers(&path, &text),
        None => report::print(&text),
    }
}

#[expect(clippy::print_stderr, reason = "a word to whoever waits")]
fn tell(text: &str) {
    eprintln!("compare: {text}");
}

/// What the command line says.
struct Options {
    broker: PathBuf,
    rounds: usize,
    report: Option<PathBuf>,
    short: bool,
    realtime: bool,
    words: Vec<String>,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut options = Self {
            broker: PathBuf::from("target/release/headwater"),
            rounds: ROUNDS,
            report: None,
            short: false,
            realtime: false,
            words: Vec::new(),
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--broker" => options.broker = value()?.into(),
                "--rounds" => options.rounds = value()?.parse().context("--rounds is a number")?,
                "--report" => options.report = Some(value()?.into()),
                "--short" => options.short = true,
                "--realtime" => options.realtime = true,
                flag if flag.starts_with('-') => bail!("{flag} is not known here"),
                _ => options.words.push(arg),
            }
        }
        Ok(options)
    }
}
