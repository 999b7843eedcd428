//! `bench fanout` and `bench channels`: events on their way from publishers to subscribers.
//!
//! A warm-up comes first and counts in nothing but the records: connections, rings and allocators are at their usual
//! size when the measured stretch begins, and it ends when the last delivery has arrived.

use std::sync::Arc;

use clap::Args;

use super::super::Failure;
use super::board::{Begin, Board};
use super::fleet::{Fleet, Opening};
use super::meter::Spent;
use super::publishers::{Common, Pace, Publishers, UntilArgs};
use super::report::Report;
use super::{CommonArgs, Run, count, rate};

/// One channel, many subscribers.
#[derive(Args)]
pub(super) struct FanoutArgs {
    /// Subscribers
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = count)]
    connections: usize,
    /// Further subscribers that read nothing while the measured events are published, and everything afterwards
    #[arg(long, value_name = "N", default_value_t = 0)]
    stalled: usize,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    pub(super) common: CommonArgs,
}

/// Many channels with one subscriber each.
#[derive(Args)]
pub(super) struct ChannelsArgs {
    /// Channels, and subscribers
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = count)]
    channels: usize,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    pub(super) common: CommonArgs,
}

/// How events are published.
#[derive(Args)]
struct LoadArgs {
    /// Events a second; without it as fast as the subscribers follow
    #[arg(long, value_name = "EVENTS", value_parser = rate)]
    rate: Option<f64>,
    /// Without a rate: how many events may be on their way to a subscriber
    #[arg(long, value_name = "EVENTS", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    window: u64,
    #[command(flatten)]
    until: UntilArgs,
    /// Connections that publish, one event a request
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = count)]
    publishers: usize,
}

/// Measures one channel with many subscribers.
pub(super) async fn fanout(arguments: &FanoutArgs) -> Result<Report, Failure> {
    let FanoutArgs { connections, stalled, load, common } = arguments;
    let run = Run::prepare(common, connections + stalled + load.publishers).await?;
    let mut report = run.report("fanout");
    report.setting("connections", *connections);
    if *stalled > 0 {
        report.setting("stalled", *stalled);
    }
    let channels = run.channels(1);
    Delivery { run, load, channels, connections: *connections, stalled: *stalled, report }.measure().await
}

/// Measures many channels with one subscriber each.
pub(super) async fn channels(arguments: &ChannelsArgs) -> Result<Report, Failure> {
    let ChannelsArgs { channels, load, common } = arguments;
    let run = Run::prepare(common, channels + load.publishers).await?;
    let mut report = run.report("channels");
    report.setting("channels", *channels);
    let names = run.channels(*channels);
    Delivery { run, load, channels: names, connections: *channels, stalled: 0, report }.measure().await
}

struct Delivery<'a> {
    run: Run,
    load: &'a LoadArgs,
    channels: Vec<String>,
    connections: usize,
    stalled: usize,
    report: Report,
}

/// Sums at the beginning of the measured stretch.
struct Sums {
    published: u64,
    delivered: u64,
    at_us: u64,
}

impl Delivery<'_> {
    async fn measure(mut self) -> Result<Report, Failure> {
        self.tell_settings();
        let board = Arc::new(Board::new(self.channels.len(), self.load.publishers));
        let fleet = self.open(&board, self.connections, false);
        self.report.metric("connections_per_s", fleet.connected().await?);
        let common = Common {
            board: &board,
            target: &self.run.target,
            size: self.run.size,
            patience: self.run.patience,
            seed: rand::random(),
        };
        let mut publishers = Publishers::new(self.load.publishers, &self.channels, &common);
        let warm_up = self.load.until.warm_up();
        publishers.publish(self.pace(), warm_up).await.map_err(Failure::unavailable)?;
        fleet.drained().await;
        let stalled = self.open_stalled(&board).await?;
        let memory = self.run.meter.memory()?;
        let sums = board.tally(|tally| {
            tally.forget_latencies();
            Sums { published: tally.published, delivered: tally.delivered, at_us: board.now_us() }
        });
        let mark = self.run.meter.mark().await?;
        let measured = self.load.until.measured();
        publishers.publish(self.pace(), measured).await.map_err(Failure::unavailable)?;
        fleet.drained().await;
        let spent = self.run.meter.since(&mark).await?;
        self.tell(&board, &sums, spent);
        if let (Some(before), Some(after)) = (memory, self.run.meter.memory()?) {
            self.report.metric("server_pss_bytes", after.pss as f64);
            self.report.metric("server_pss_growth_bytes", after.pss as f64 - before.pss as f64);
        }
        if let Some(stalled) = stalled {
            self.finish_stalled(stalled, &board, &sums).await;
        }
        self.report.checked(fleet.check());
        board.tally(|tally| {
            self.report.published(tally.published, tally.acknowledged);
            self.report.gaps(tally.gaps);
            if let Some(failure) = &tally.failure {
                self.report.note(format!("{} streams ended early: {failure}", tally.ended));
            }
        });
        fleet.close().await;
        Ok(self.report)
    }

    fn tell_settings(&mut self) {
        let LoadArgs { rate, window, publishers, until } = self.load;
        match rate {
            Some(rate) => self.report.setting("rate", *rate),
            None => self.report.setting("window", *window),
        }
        self.report.setting("publishers", *publishers);
        until.tell(&mut self.report);
    }

    fn pace(&self) -> Pace {
        self.load.rate.map_or(Pace::Window(self.load.window), Pace::Rate)
    }

    fn open(&self, board: &Arc<Board>, connections: usize, stalled: bool) -> Fleet {
        let opening = Opening {
            connections,
            connecting: self.run.connecting,
            cursor: None,
            begin: Begin { counts: !stalled, keeps_id: false, missed: 0 },
            stalled,
            patience: self.run.patience,
        };
        Fleet::open(board, &self.run.target, &self.channels, &opening)
    }

    async fn open_stalled(&self, board: &Arc<Board>) -> Result<Option<Fleet>, Failure> {
        if self.stalled == 0 {
            return Ok(None);
        }
        let stalled = self.open(board, self.stalled, true);
        stalled.connected().await?;
        Ok(Some(stalled))
    }

    /// Lets the stalled subscribers read, and looks whether they get everything.
    async fn finish_stalled(&mut self, stalled: Fleet, board: &Board, sums: &Sums) {
        let begin_us = board.now_us();
        stalled.resume();
        stalled.drained().await;
        let checked = stalled.check();
        let backlog = board.tally(|tally| tally.published - sums.published) * self.run.size as u64;
        self.report.metric("backlog_bytes", backlog as f64);
        let took_us = board.tally(|tally| tally.last_us).saturating_sub(begin_us).max(1);
        self.report.metric("stalled_catch_up_events_per_s", checked.received as f64 * 1e6 / took_us as f64);
        self.report.checked(checked);
        stalled.close().await;
    }

    fn tell(&mut self, board: &Board, sums: &Sums, spent: Spent) {
        let (events, deliveries, seconds) = board.tally(|tally| {
            let last_us = tally.last_us.max(sums.at_us + 1);
            let (events, deliveries) = (tally.published - sums.published, tally.delivered - sums.delivered);
            (events, deliveries, (last_us - sums.at_us) as f64 / 1e6)
        });
        self.report.metric("events", events as f64);
        self.report.metric("events_per_s", events as f64 / seconds);
        self.report.metric("deliveries_per_s", deliveries as f64 / seconds);
        board.tally(|tally| {
            self.report.latencies("delivery", &tally.deliveries);
            self.report.latencies("acknowledgement", &tally.acknowledgements);
        });
        if self.channels.len() == 1 {
            spent.tell_cpu(&mut self.report, "delivery", deliveries as f64);
        }
        spent.tell_cpu(&mut self.report, "event", events as f64);
        spent.tell_rest(&mut self.report);
    }
}
