//! `bench replay-storm`: subscribers that all come back at once and resume from the same position.
//!
//! A first event yields the position, the others follow while nobody listens, so that what a server keeps in memory
//! for listeners is gone when the storm begins. Every subscriber must get all of them, in order.

use std::sync::Arc;

use anyhow::anyhow;
use clap::Args;

use super::super::Failure;
use super::board::{Begin, Board};
use super::fleet::{Fleet, Opening};
use super::publishers::{Common, Pace, Publishers, Until};
use super::report::Report;
use super::{CommonArgs, Run, count};

/// Subscribers that resume at once.
#[derive(Args)]
pub(super) struct ReplayArgs {
    /// Subscribers
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = count)]
    connections: usize,
    /// Events that each has missed
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    #[command(flatten)]
    pub(super) common: CommonArgs,
}

/// Measures the storm.
pub(super) async fn run(arguments: &ReplayArgs) -> Result<Report, Failure> {
    let ReplayArgs { connections, events, common } = arguments;
    let mut run = Run::prepare(common, connections + 2).await?;
    let mut report = run.report("replay-storm");
    report.setting("connections", *connections);
    report.setting("events", *events);
    let (board, channels) = (Arc::new(Board::new(1, 1)), run.channels(1));
    let cursor = publish_history(&run, &board, &channels, *events).await?;
    let delivered_before = board.tally(|tally| tally.delivered);
    let (mark, begin_us) = (run.meter.mark().await?, board.now_us());
    let storm = Opening {
        connections: *connections,
        cursor: Some(cursor),
        begin: Begin { counts: false, keeps_id: false, missed: *events },
        ..opening(&run)
    };
    let fleet = Fleet::open(&board, &run.target, &channels, &storm);
    report.metric("connections_per_s", fleet.connected().await?);
    fleet.drained().await;
    let spent = run.meter.since(&mark).await?;
    board.tally(|tally| {
        let delivered = tally.delivered - delivered_before;
        let seconds = tally.last_us.saturating_sub(begin_us).max(1) as f64 / 1e6;
        report.metric("storm_s", seconds);
        report.metric("deliveries_per_s", delivered as f64 / seconds);
        spent.tell_cpu(&mut report, "delivery", delivered as f64);
        report.published(tally.published, tally.acknowledged);
        report.gaps(tally.gaps);
        if let Some(failure) = &tally.failure {
            report.note(format!("{} streams ended early: {failure}", tally.ended));
        }
    });
    spent.tell_rest(&mut report);
    if let Some(memory) = run.meter.memory()? {
        report.metric("server_pss_bytes", memory.pss as f64);
    }
    report.checked(fleet.check());
    fleet.close().await;
    Ok(report)
}

/// Publishes an event that somebody receives, and then the others; answers the first one's id.
async fn publish_history(
    run: &Run,
    board: &Arc<Board>,
    channels: &[String],
    events: u64,
) -> Result<String, Failure> {
    let (target, size, patience) = (&run.target, run.size, run.patience);
    let mut publishers = Publishers::new(1, channels, &Common { board, target, size, patience, seed: 0 });
    let probe = Fleet::open(board, target, channels, &opening(run));
    probe.connected().await?;
    let unbounded = Pace::Window(u64::MAX);
    publishers.publish(unbounded, Until::events(1)).await.map_err(Failure::unavailable)?;
    let came = probe.drained().await;
    let cursor = probe.last_id();
    probe.close().await;
    if !came || cursor.is_empty() {
        let what = if came { "has no id to resume from" } else { "did not arrive" };
        return Err(Failure::unavailable(anyhow!("the first event {what}")));
    }
    publishers.publish(unbounded, Until::events(events)).await.map_err(Failure::unavailable)?;
    Ok(cursor)
}

/// A single subscriber that notes ids.
fn opening(run: &Run) -> Opening {
    Opening {
        connections: 1,
        connecting: run.connecting,
        cursor: None,
        begin: Begin { counts: false, keeps_id: true, missed: 0 },
        stalled: false,
        patience: run.patience,
    }
}
