//! The figures of the last run as the table of `docs/performance.md`, from what criterion wrote down.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Prints a row per function, by group and name.
pub(crate) fn print() {
    let mut rows: Vec<(String, String)> = reports().iter().filter_map(|dir| row(dir)).collect();
    rows.sort();
    let head = "| what | median | spread of the samples |\n|---|---:|---:|\n".to_owned();
    let lines = rows.into_iter().map(|(name, figures)| format!("| {name} | {figures} |\n"));
    let text: String = std::iter::once(head).chain(lines).collect();
    std::io::stdout().write_all(text.as_bytes()).expect("standard output takes a table");
}

/// Where criterion keeps the newest figures of each function.
fn reports() -> Vec<PathBuf> {
    let own = std::env::current_exe().expect("this program has a path");
    let target = own.ancestors().nth(3).expect("it lies in target/release/deps");
    let below = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups = below(&target.join("criterion"));
    groups.flat_map(|group| below(&group).collect::<Vec<_>>()).map(|function| function.join("new")).collect()
}

fn row(dir: &Path) -> Option<(String, String)> {
    let read = |name| serde_json::from_str::<Value>(&fs::read_to_string(dir.join(name)).ok()?).ok();
    let (about, estimates): (Value, Value) = (read("benchmark.json")?, read("estimates.json")?);
    // A step of many sessions counts once for each.
    let each = about["throughput"]["Elements"].as_f64().unwrap_or(1.0);
    let figure = |name: &str| Some(estimates[name]["point_estimate"].as_f64()? / each);
    let name = format!("{}: {}", about["group_id"].as_str()?, about["function_id"].as_str()?);
    Some((name, format!("{:.0} ns | {:.0} ns", figure("median")?, figure("median_abs_dev")?)))
}
