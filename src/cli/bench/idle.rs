//! `bench idle`: subscribers to whom nothing is sent: how fast they are taken, and what each costs while it waits.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::time::sleep;

use super::super::Failure;
use super::board::{Begin, Board};
use super::fleet::{Fleet, Opening};
use super::meter::Meter;
use super::process::Memory;
use super::report::Report;
use super::{CommonArgs, Run, count};

/// Subscribers that come and go before the first look, so that what a server allocates once is not counted.
const FIRST: usize = 16;
/// Between two looks at memory that may still change.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Memory that changes by less than this counts as settled.
const STEADY_BYTES: u64 = 64 * 1024;
/// Looks after which memory is taken as it is.
const LOOKS_MAX: usize = 25;

/// Subscribers to whom nothing is sent.
#[derive(Args)]
pub(super) struct IdleArgs {
    /// Subscribers
    #[arg(long, value_name = "N", default_value_t = 8000, value_parser = count)]
    connections: usize,
    /// Channels, which the subscribers share evenly
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count)]
    channels: usize,
    /// How long they stay
    #[arg(long, value_name = "D", default_value = "5s", value_parser = humantime::parse_duration)]
    duration: Duration,
    #[command(flatten)]
    pub(super) common: CommonArgs,
}

/// Measures idle subscribers.
pub(super) async fn run(arguments: &IdleArgs) -> Result<Report, Failure> {
    let IdleArgs { connections, channels, duration, common } = arguments;
    let mut run = Run::prepare(common, connections + FIRST).await?;
    let mut report = run.report("idle");
    report.setting("connections", *connections);
    report.setting("channels", *channels);
    report.setting("duration", humantime::format_duration(*duration).to_string());
    let (board, names) = (Arc::new(Board::new(*channels, 1)), run.channels(*channels));
    let opening = Opening {
        connections: FIRST,
        connecting: run.connecting,
        cursor: None,
        begin: Begin { counts: false, keeps_id: false, missed: 0 },
        stalled: false,
        patience: run.patience,
    };
    let first = Fleet::open(&board, &run.target, &names, &opening);
    first.connected().await?;
    first.close().await;
    let before = steady(&run.meter).await?;

    let mark = run.meter.mark().await?;
    let fleet = Fleet::open(&board, &run.target, &names, &Opening { connections: *connections, ..opening });
    report.metric("connections_per_s", fleet.connected().await?);
    run.meter.since(&mark).await?.tell_cpu(&mut report, "connect", *connections as f64);
    let connected = steady(&run.meter).await?;
    let mark = run.meter.mark().await?;
    sleep(*duration).await;
    let spent = run.meter.since(&mark).await?;
    let connection_seconds = *connections as f64 * spent.elapsed_s;
    spent.tell_cpu(&mut report, "idle_connection_second", connection_seconds);
    spent.tell_rest(&mut report);
    board.tally(|tally| {
        report.metric("streams_ended_early", tally.ended as f64);
        if let Some(failure) = &tally.failure {
            report.note(format!("{} streams ended early: {failure}", tally.ended));
        }
    });
    fleet.close().await;
    if let (Some(before), Some(connected), Some(after)) = (before, connected, steady(&run.meter).await?) {
        let each = |after: u64, before: u64| (after as f64 - before as f64) / *connections as f64;
        report.metric("server_pss_bytes_per_connection", each(connected.pss, before.pss));
        report.metric("server_rss_bytes_per_connection", each(connected.rss, before.rss));
        report.metric("server_pss_bytes_before", before.pss as f64);
        report.metric("server_pss_bytes_connected", connected.pss as f64);
        report.metric("server_pss_bytes_after", after.pss as f64);
    }
    Ok(report)
}

/// Memory once it no longer changes; what ends or begins frees and allocates for a moment.
async fn steady(meter: &Meter) -> Result<Option<Memory>, Failure> {
    let mut last = meter.memory()?;
    for _ in 0..LOOKS_MAX {
        sleep(LOOK_INTERVAL).await;
        let now = meter.memory()?;
        let change = now.zip(last).map_or(0, |(now, last)| now.pss.abs_diff(last.pss));
        last = now;
        if change < STEADY_BYTES {
            break;
        }
    }
    Ok(last)
}
