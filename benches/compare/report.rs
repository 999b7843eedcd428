//! The report: ratios and goals first, figures second, then the machine and the versions.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::goals::GOALS;
use crate::measure::Results;
use crate::servers::{LOAD_CORE, SERVER_CORE, Server};
use crate::{recovery, scenarios};

const BEGIN: &str = "<!-- compare: begin -->";
const END: &str = "<!-- compare: end -->";

/// The whole report.
pub(crate) fn markdown(results: &Results, rounds: usize, realtime: bool, load_before: &str) -> String {
    let mut text =
        String::from("### Goals and ratios\n\n| what | measured | goal | reached |\n|---|---:|---:|---|\n");
    for goal in GOALS {
        let Some(value) = goal.value(results) else { continue };
        let reached = if goal.limit.is_met(value) { "yes" } else { "no" };
        let _ = writeln!(
            text,
            "| {} | {}{} | {} | {reached} |",
            goal.what,
            number(value),
            goal.unit,
            goal.limit.text(goal.unit)
        );
    }
    text.push_str("\n### Figures\n");
    for scenario in scenarios::all().iter().filter(|scenario| results.has(scenario.name)) {
        figures(&mut text, results, scenario.name, scenario.servers, scenario.figures);
    }
    if results.has(recovery::NAME) {
        let columns = [(recovery::FIGURE, "ms from its return to the next delivery")];
        figures(&mut text, results, recovery::NAME, &[Server::RedisBeside], &columns);
    }
    let _ = write!(text, "\n### Machine\n\n{}", machine(rounds, realtime, load_before));
    text
}

fn figures(
    text: &mut String,
    results: &Results,
    scenario: &'static str,
    servers: &[Server],
    columns: &[(&str, &str)],
) {
    let titles: Vec<&str> = columns.iter().map(|(_, title)| *title).collect();
    let _ = write!(
        text,
        "\n**{scenario}**\n\n| | {} |\n|---|{}\n",
        titles.join(" | "),
        "---:|".repeat(columns.len())
    );
    for server in servers {
        let cells: Vec<String> =
            columns.iter().map(|(name, _)| cell(results, scenario, *server, name)).collect();
        let _ = writeln!(text, "| {} | {} |", server.name(), cells.join(" | "));
    }
}

/// The median, and how far the rounds lie apart.
fn cell(results: &Results, scenario: &'static str, server: Server, name: &str) -> String {
    let unit = if name.contains("_us") { " us" } else { "" };
    match (results.median(scenario, server, name), results.range(scenario, server, name)) {
        (Some(median), Some((min, max))) if min < max => {
            format!("{}{unit} ({} to {})", number(median), number(min), number(max))
        }
        (Some(median), _) => format!("{}{unit}", number(median)),
        _ => "-".to_owned(),
    }
}

/// Three digits that count, in groups of three.
pub(crate) fn number(value: f64) -> String {
    let (size, sign) = (value.abs(), if value < 0.0 { "-" } else { "" });
    if size < 10.0 && size.fract() != 0.0 {
        return format!("{value:.2}");
    }
    if size < 100.0 && size.fract() != 0.0 {
        return format!("{value:.1}");
    }
    let step = if size >= 100_000.0 { 1_000.0 } else { 1.0 };
    let digits = format!("{:.0}", (size / step).round() * step);
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    format!("{sign}{text}")
}

fn machine(rounds: usize, realtime: bool, load_before: &str) -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |found| found.1);
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let congestion = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    let disturbed = if realtime {
        "servers and load ran with real-time priority and so went before it"
    } else {
        "it takes from every rate and adds to every latency, while CPU time per event hardly notices"
    };
    format!(
        "{cores} cores ({}), Linux {}, TCP with {}; headwater {} (release build, {}), {}, {}, {}. Servers on core \
         {SERVER_CORE}, the load on core {LOAD_CORE}, events of 200 bytes unless a title says otherwise. Medians of {rounds} \
         rounds, the smallest and the largest behind them. Load average before and after: {load_before} and {}; what \
         exceeds 1 was other work on the same cores: {disturbed}.\n",
        cpu.trim(),
        kernel.trim(),
        congestion.trim(),
        env!("CARGO_PKG_VERSION"),
        version("rustc", &["--version"]),
        version("redis-server", &["--version"]),
        version("nginx", &["-v"]).replace("version: ", ""),
        version("dpkg-query", &["-W", "-f", "Nchan ${Version}", "libnginx-mod-nchan"]),
        load_average(),
    )
}

/// The first words of what a program says of itself.
fn version(program: &str, args: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(args).output() else { return format!("{program} unknown") };
    let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let said = String::from_utf8_lossy(&said).into_owned();
    said.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Of the last minute.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// Puts the report where the file's two markers are.
pub(crate) fn replace_between_markers(path: &Path, text: &str) -> anyhow::Result<()> {
    let name = path.display();
    let before = fs::read_to_string(path).with_context(|| format!("{name} cannot be read"))?;
    let (head, rest) = before.split_once(BEGIN).with_context(|| format!("{name} has no line {BEGIN}"))?;
    let (_, tail) = rest.split_once(END).with_context(|| format!("{name} has no line {END}"))?;
    fs::write(path, format!("{head}{BEGIN}\n{text}{END}{tail}"))
        .with_context(|| format!("{name} cannot be written"))
}

/// Shows the report instead.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("standard output takes the report")
}
