//! `bench publish`: acknowledged events a second, one a request or as a stream of lines.

use std::sync::Arc;

use clap::Args;
use tokio::time::Instant;

use super::super::Failure;
use super::board::Board;
use super::ndjson::LineStream;
use super::publishers::{Common, Pace, Publishers, UntilArgs};
use super::report::Report;
use super::{CommonArgs, Run, count, rate};

/// Acknowledged events a second.
#[derive(Args)]
pub(super) struct PublishArgs {
    /// Connections that publish
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = count)]
    connections: usize,
    /// Channels, published to in turn by lines and at random by requests
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count)]
    channels: usize,
    /// Publish lines of JSON to POST /events, as one request per connection and stretch
    #[arg(long, conflicts_with = "rate")]
    ndjson: bool,
    /// Events a second; without it each connection publishes as soon as it was answered
    #[arg(long, value_name = "EVENTS", value_parser = rate)]
    rate: Option<f64>,
    #[command(flatten)]
    until: UntilArgs,
    #[command(flatten)]
    pub(super) common: CommonArgs,
}

/// Measures publishing.
pub(super) async fn run(arguments: &PublishArgs) -> Result<Report, Failure> {
    let run = Run::prepare(&arguments.common, arguments.connections).await?;
    let mut report = run.report("publish");
    report.setting("connections", arguments.connections);
    report.setting("channels", arguments.channels);
    report.setting("ndjson", arguments.ndjson);
    arguments.until.tell(&mut report);
    if arguments.ndjson {
        lines(arguments, run, report).await
    } else {
        requests(arguments, run, report).await
    }
}

async fn lines(arguments: &PublishArgs, mut run: Run, mut report: Report) -> Result<Report, Failure> {
    let stream = LineStream {
        target: Arc::clone(&run.target),
        channels: run.channels(arguments.channels).into(),
        size: run.size,
        patience: run.patience,
    };
    stream.publish(arguments.connections, arguments.until.warm_up()).await.map_err(Failure::unavailable)?;
    let (mark, begin) = (run.meter.mark().await?, Instant::now());
    let published = stream.publish(arguments.connections, arguments.until.measured()).await;
    let (published, acknowledged) = published.map_err(Failure::unavailable)?;
    report.metric("events", acknowledged as f64);
    report.metric("events_per_s", acknowledged as f64 / begin.elapsed().as_secs_f64());
    let spent = run.meter.since(&mark).await?;
    spent.tell_cpu(&mut report, "event", acknowledged as f64);
    spent.tell_rest(&mut report);
    report.published(published, acknowledged);
    Ok(report)
}

async fn requests(arguments: &PublishArgs, mut run: Run, mut report: Report) -> Result<Report, Failure> {
    let board = Arc::new(Board::new(arguments.channels, arguments.connections));
    let channels = run.channels(arguments.channels);
    let common = Common {
        board: &board,
        target: &run.target,
        size: run.size,
        patience: run.patience,
        seed: rand::random(),
    };
    let mut publishers = Publishers::new(arguments.connections, &channels, &common);
    let pace = arguments.rate.map_or(Pace::Window(u64::MAX), Pace::Rate);
    publishers.publish(pace, arguments.until.warm_up()).await.map_err(Failure::unavailable)?;
    let before = board.tally(|tally| {
        tally.forget_latencies();
        tally.acknowledged
    });
    let (mark, begin) = (run.meter.mark().await?, Instant::now());
    publishers.publish(pace, arguments.until.measured()).await.map_err(Failure::unavailable)?;
    let seconds = begin.elapsed().as_secs_f64();
    let spent = run.meter.since(&mark).await?;
    board.tally(|tally| {
        let events = tally.acknowledged - before;
        report.metric("events", events as f64);
        report.metric("events_per_s", events as f64 / seconds);
        report.latencies("acknowledgement", &tally.acknowledgements);
        spent.tell_cpu(&mut report, "event", events as f64);
        report.published(tally.published, tally.acknowledged);
    });
    spent.tell_rest(&mut report);
    Ok(report)
}
