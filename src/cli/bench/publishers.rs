//! Publishers: connections that publish one event a request, paced or as fast as the subscribers follow.
//!
//! Each publisher numbers its own events, so that several may publish to one channel and every subscriber can still
//! tell what is missing. Latency counts from when an event was due, also where its publisher was held up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::board::Board;
use super::report::Report;
use super::stamp::Stamp;
use super::target::Target;
use super::wire::Answer;

/// How long to measure unless something else is asked for.
const DURATION_DEFAULT: Duration = Duration::from_secs(10);
/// Read at once of an answer.
const BUFFER_BYTES: usize = 4 * 1024;
/// Of a refusal's body, so much is shown.
const REFUSAL_BYTES: usize = 300;

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// So many events a second.
    Rate(f64),
    /// As long as fewer events than this are on their way to a subscriber.
    Window(u64),
}

/// When publishing ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Until {
    /// After this time.
    pub(super) duration: Duration,
    /// Or after so many events.
    pub(super) events: u64,
}

impl Until {
    /// After this time.
    pub(super) fn after(duration: Duration) -> Self {
        Self { duration, events: u64::MAX }
    }

    /// After so many events.
    pub(super) fn events(events: u64) -> Self {
        Self { duration: Duration::MAX, events }
    }
}

/// How long to publish.
#[derive(Args)]
pub(super) struct UntilArgs {
    /// How long to measure; 10s unless --events says how much
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    events: Option<u64>,
    /// How long to publish before measuring begins
    #[arg(long, value_name = "D", default_value = "2s", value_parser = humantime::parse_duration)]
    warm_up: Duration,
}

impl UntilArgs {
    /// The warm-up.
    pub(super) fn warm_up(&self) -> Until {
        Until::after(self.warm_up)
    }

    /// The measured stretch.
    pub(super) fn measured(&self) -> Until {
        let otherwise = if self.events.is_some() { Duration::MAX } else { DURATION_DEFAULT };
        let duration = self.duration.unwrap_or(otherwise);
        Until { duration, events: self.events.unwrap_or(u64::MAX) }
    }

    pub(super) fn tell(&self, report: &mut Report) {
        let text = |duration| humantime::format_duration(duration).to_string();
        let Until { duration, .. } = self.measured();
        if duration < Duration::MAX {
            report.setting("duration", text(duration));
        }
        if let Some(events) = self.events {
            report.setting("events", events);
        }
        report.setting("warm_up", text(self.warm_up));
    }
}

/// Connections to publish on, one sequence each.
pub(super) struct Publishers {
    publishers: Vec<Publisher>,
}

struct Publisher {
    board: Arc<Board>,
    target: Arc<Target>,
    /// Names, with their index on the board.
    channels: Vec<(usize, String)>,
    sequence: usize,
    size: usize,
    patience: Duration,
    rng: StdRng,
    socket: Option<TcpStream>,
    request: Vec<u8>,
    data: Vec<u8>,
    buffer: Vec<u8>,
}

/// What all publishers of a run know.
pub(super) struct Common<'a> {
    pub(super) board: &'a Arc<Board>,
    pub(super) target: &'a Arc<Target>,
    pub(super) size: usize,
    pub(super) patience: Duration,
    /// Of the choice of channels.
    pub(super) seed: u64,
}

/// What a stretch of publishing shares.
struct Stretch {
    pace: Pace,
    until: Until,
    begin: Instant,
    begun: AtomicU64,
}

impl Publishers {
    /// So many, all of which publish to all channels.
    pub(super) fn new(count: usize, channels: &[String], common: &Common<'_>) -> Self {
        let publisher = |sequence| Publisher {
            board: Arc::clone(common.board),
            target: Arc::clone(common.target),
            channels: channels.iter().cloned().enumerate().collect(),
            sequence,
            size: common.size,
            patience: common.patience,
            rng: StdRng::seed_from_u64(common.seed.wrapping_add(sequence as u64)),
            socket: None,
            request: Vec::new(),
            data: Vec::new(),
            buffer: vec![0; BUFFER_BYTES],
        };
        Self { publishers: (0..count).map(publisher).collect() }
    }

    /// Publishes; answers whether the subscribers followed to the end.
    pub(super) async fn publish(&mut self, pace: Pace, until: Until) -> anyhow::Result<bool> {
        let stretch = Arc::new(Stretch { pace, until, begin: Instant::now(), begun: AtomicU64::new(0) });
        let mut tasks = JoinSet::new();
        for mut publisher in self.publishers.drain(..) {
            let stretch = Arc::clone(&stretch);
            tasks.spawn(async move {
                let result = publisher.run(&stretch).await;
                (publisher, result)
            });
        }
        let mut followed = true;
        while let Some(ended) = tasks.join_next().await {
            let (publisher, result) = ended.context("a publisher failed")?;
            self.publishers.push(publisher);
            followed &= result?;
        }
        Ok(followed)
    }
}

impl Stretch {
    /// When the next event is due, if there is one.
    fn next_due(&self) -> Option<Instant> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let due = match self.pace {
            Pace::Rate(rate) => self.begin + Duration::from_secs_f64(number as f64 / rate),
            Pace::Window(_) => Instant::now(),
        };
        let is_in_time = due.saturating_duration_since(self.begin) < self.until.duration;
        (number < self.until.events && is_in_time).then_some(due)
    }
}

impl Publisher {
    async fn run(&mut self, stretch: &Stretch) -> anyhow::Result<bool> {
        loop {
            if let Pace::Window(window) = stretch.pace
                && !self.board.room(window, self.patience).await
            {
                return Ok(false);
            }
            let Some(due) = stretch.next_due() else { return Ok(true) };
            let late = due.elapsed();
            sleep_until(due).await;
            // A timer that fires late is not the server's fault; a publisher that was busy when the event was due is.
            let sent_us =
                self.board.now_us().saturating_sub(u64::try_from(late.as_micros()).unwrap_or_default());
            let channel = self.rng.random_range(0..self.channels.len());
            self.publish(channel, sent_us).await?;
        }
    }

    async fn publish(&mut self, channel: usize, sent_us: u64) -> anyhow::Result<()> {
        let (index, name) = &self.channels[channel];
        let number = self.board.tally(|tally| tally.send(*index, self.sequence));
        Stamp { sequence: self.sequence, number, sent_us }.write(self.size, &mut self.data);
        self.target.publication(name, &self.data, &mut self.request);
        let answered = timeout(self.patience, self.exchange()).await;
        answered.with_context(|| format!("a publish was not answered for {:?}", self.patience))??;
        self.board.tally(|tally| {
            let now_us = self.board.now_us();
            tally.acknowledged += 1;
            tally.acknowledgements.saturating_record(now_us.saturating_sub(sent_us));
            tally.last_us = now_us;
        });
        Ok(())
    }

    /// Sends the request and takes the answer.
    async fn exchange(&mut self) -> anyhow::Result<()> {
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => self.target.connect_publisher().await?,
        };
        socket.write_all(&self.request).await.context("a publish cannot be sent")?;
        let (answer, body) = receive(&mut socket, &mut self.buffer).await?;
        let status = answer.status().unwrap_or_default();
        if !(200..300).contains(&status) {
            return Err(anyhow!(
                "a publish was answered {status}: {}",
                String::from_utf8_lossy(&body).trim()
            ));
        }
        self.socket = (!answer.closes()).then_some(socket);
        Ok(())
    }
}

/// Reads a whole answer, and of its body as much as an error message needs.
pub(super) async fn receive(socket: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<(Answer, Vec<u8>)> {
    let (mut answer, mut body) = (Answer::new(), Vec::new());
    while !answer.has_ended() {
        let length = socket.read(buffer).await.context("a publish was not answered")?;
        if length == 0 && answer.status().is_some() {
            break;
        }
        if length == 0 {
            return Err(anyhow!("the server closed the connection instead of answering a publish"));
        }
        let mut keep = |part: &[u8]| {
            body.extend_from_slice(&part[..part.len().min(REFUSAL_BYTES.saturating_sub(body.len()))]);
        };
        answer.take(&buffer[..length], &mut keep).map_err(|error| anyhow!(error))?;
    }
    Ok((answer, body))
}
