//! `headwater serve`: runs the broker until a signal, and turns its end into an exit code.
//!
//! Neighbours: `lifecycle.rs` ends what runs, the broker spawns on its scope.

use anyhow::{Context, anyhow};
use headwater::config::{Config, limits};
use headwater::lifecycle::{Lifecycle, Scope, Timing};
use headwater::telemetry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::Failure;

/// A first signal drains, a second one ends at once, further ones change nothing.
const SIGNALS_MAX: usize = 2;

/// Runs the broker to its end.
pub(super) async fn run(config: Config) -> Result<(), Failure> {
    let filter = std::env::var(telemetry::FILTER_VARIABLE).ok();
    telemetry::init(&config.telemetry, filter.as_deref())
        .with_context(|| format!("{} or telemetry.log_filter", telemetry::FILTER_VARIABLE))
        .map_err(Failure::usage)?;
    let descriptors = limits::raise_descriptor_limit().unwrap_or_else(|e| {
        warn!(error = %e, "cannot raise the limit of open files; 1,024 are assumed");
        1_024
    });
    let timing = Timing { delay: config.drain.delay, deadline: config.drain.deadline };
    let mut forwarding = JoinSet::new();
    let mut signals = forward_signals(&mut forwarding).map_err(Failure::internal)?;
    let lifecycle = Lifecycle::new();
    tokio::select! {
        started = start_broker(config, descriptors, lifecycle.scope()) => started?,
        Some(()) = signals.recv() => {
            info!("told to leave before the broker had started");
            return Ok(());
        }
    }
    let ended = lifecycle.run(signals, timing).await;
    info!("{ended}");
    if ended.is_clean() { Ok(()) } else { Err(Failure::internal(anyhow!("{ended}"))) }
}

/// Starts everything on `scope` and answers once the broker serves.
#[expect(clippy::unused_async, reason = "opens the log and the listener")]
async fn start_broker(_config: Config, _descriptors: u64, _scope: Scope) -> Result<(), Failure> {
    Err(Failure::internal(anyhow!("this build holds no broker yet")))
}

/// SIGTERM and SIGINT as messages, for as long as `tasks` lives.
fn forward_signals(tasks: &mut JoinSet<()>) -> anyhow::Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(SIGNALS_MAX);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("cannot listen for signals")?;
        let sender = sender.clone();
        tasks.spawn(async move {
            while signals.recv().await.is_some() {
                // A full queue means that two signals wait already, which is as much as they can say.
                let _ = sender.try_send(());
            }
        });
    }
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::super::Exit;
    use super::super::testing::soon;
    use super::*;

    #[tokio::test]
    async fn a_broker_that_cannot_start_fails_the_exit_code() {
        let node_id = headwater::config::NodeId::parse("n").unwrap();
        let config = Config::load(&headwater::config::Sources::defaults(node_id)).unwrap();
        assert_eq!(
            soon(start_broker(config, 1_024, Lifecycle::new().scope())).await.unwrap_err().exit,
            Exit::Internal
        );
    }
}
