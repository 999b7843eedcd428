//! `headwater bench`: load for any server of Server-Sent Events, and what it costs that server.
//!
//! Everything runs on one thread, which `--pin` keeps on one core; the server's cost is read from `/proc` by `--pid`.
//! Events are numbered, and a run in which a subscriber misses one, or gets one twice or out of order, fails after
//! its report. Below: `target` says how to reach the server, `fleet` subscribes, `publishers` and `ndjson` publish,
//! `board` keeps the records, one module per scenario measures.

mod board;
mod delivery;
mod fleet;
mod idle;
mod meter;
mod ndjson;
mod process;
mod publish;
mod publishers;
mod redis;
mod replay;
mod report;
mod stamp;
mod target;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use headwater::config::limits::raise_descriptor_limit;

use self::meter::Meter;
use self::report::Report;
use self::target::{Target, TargetArgs};
use super::{Failure, output};

/// Descriptors beside those of subscribers and publishers.
const DESCRIPTORS_SPARE: u64 = 64;

/// Measure a server of Server-Sent Events under load.
#[derive(Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    scenario: Scenario,
}

/// What to measure.
#[derive(Subcommand)]
enum Scenario {
    /// Acknowledged events a second, one a request or as a stream of lines
    Publish(publish::PublishArgs),
    /// One channel, many subscribers: latency when paced, deliveries a second when not
    Fanout(delivery::FanoutArgs),
    /// Subscribers that all come back at once and resume
    ReplayStorm(replay::ReplayArgs),
    /// Subscribers to whom nothing is sent: memory and CPU of each
    Idle(idle::IdleArgs),
    /// Many channels with one subscriber each, published to at random
    Channels(delivery::ChannelsArgs),
}

/// What every scenario takes.
#[derive(Args)]
struct CommonArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// A process of the server, whose CPU time and memory are read; repeatable
    #[arg(long = "pid", value_name = "PID")]
    pids: Vec<u32>,
    /// Core that the load stays on
    #[arg(long, value_name = "CPU")]
    pin: Option<usize>,
    /// Redis of the server, whose calls are counted, as in <redis://127.0.0.1:6379>
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Data of one event, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 200, value_parser = size)]
    size: usize,
    /// Subscribers on their way to `connected` at once
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = count)]
    connecting: usize,
    /// Silence after which the run is given up
    #[arg(long, value_name = "D", default_value = "10s", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// Channels are called so, with a number behind; by default something new in every run
    #[arg(long, value_name = "NAME", value_parser = channel_name)]
    channel: Option<String>,
    /// One line of JSON instead of a table
    #[arg(long)]
    json: bool,
}

fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "expected a number from 1".to_owned())
}

fn size(text: &str) -> Result<usize, String> {
    let min = stamp::SIZE_MIN;
    let parsed = text.parse().ok().filter(|size| *size >= min);
    parsed.ok_or_else(|| format!("expected a number of bytes from {min}, which the stamp of an event takes"))
}

fn rate(text: &str) -> Result<f64, String> {
    let parsed = text.parse().ok().filter(|rate| (0.001..=1e9).contains(rate));
    parsed.ok_or_else(|| "expected events a second, 0.001 to 1000000000".to_owned())
}

fn channel_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.is_empty() || !text.chars().all(fits) {
        return Err("letters, digits, '-', '_' and '.' only, which need no encoding in an address".to_owned());
    }
    Ok(text.to_owned())
}

/// What every scenario works with.
struct Run {
    target: Arc<Target>,
    meter: Meter,
    size: usize,
    connecting: usize,
    patience: Duration,
    channel: String,
}

impl Run {
    async fn prepare(common: &CommonArgs, sockets: usize) -> Result<Self, Failure> {
        if let Some(core) = common.pin {
            process::pin(core).map_err(Failure::usage)?;
        }
        let descriptors = raise_descriptor_limit().context("cannot raise the limit of open files");
        let (descriptors, needed) =
            (descriptors.map_err(Failure::internal)?, sockets as u64 + DESCRIPTORS_SPARE);
        if descriptors < needed {
            let message = format!(
                "{needed} open files are needed and {descriptors} allowed; raise the hard limit (ulimit -Hn)"
            );
            return Err(Failure::usage(anyhow!(message)));
        }
        Ok(Self {
            target: Arc::new(Target::new(&common.target).await?),
            meter: Meter::new(common.pids.clone(), common.redis.as_deref()).await?,
            size: common.size,
            connecting: common.connecting,
            patience: common.patience,
            channel: common.channel.clone().unwrap_or_else(|| format!("bench-{:08x}", rand::random::<u32>())),
        })
    }

    /// Names of so many channels.
    fn channels(&self, count: usize) -> Vec<String> {
        (0..count).map(|number| format!("{}-{number}", self.channel)).collect()
    }

    /// A report that says how the run was set up.
    fn report(&self, scenario: &'static str) -> Report {
        let mut report = Report::new(scenario, &self.target.url);
        report.setting("size", self.size);
        report
    }
}

/// Runs a scenario, prints its report, and fails when a record is not clean.
pub(super) async fn run(arguments: BenchArgs) -> Result<(), Failure> {
    let (report, json) = match arguments.scenario {
        Scenario::Publish(arguments) => (publish::run(&arguments).await?, arguments.common.json),
        Scenario::Fanout(arguments) => (delivery::fanout(&arguments).await?, arguments.common.json),
        Scenario::ReplayStorm(arguments) => (replay::run(&arguments).await?, arguments.common.json),
        Scenario::Idle(arguments) => (idle::run(&arguments).await?, arguments.common.json),
        Scenario::Channels(arguments) => (delivery::channels(&arguments).await?, arguments.common.json),
    };
    output::line(&mut io::stdout(), &if json { report.json() } else { report.table() })?;
    report
        .complaint()
        .map_or(Ok(()), |complaint| Err(Failure::internal(anyhow!("the run is not clean: {complaint}"))))
}
