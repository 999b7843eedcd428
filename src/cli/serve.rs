//! `headwater serve`: runs the broker until a signal, and turns its end into an exit code.
//!
//! Neighbours: `lifecycle.rs` ends what runs, the broker spawns on its scope.

use std::io::Write;

use anyhow::{Context, anyhow};
use headwater::broker::{self, Broker, StartError};
use headwater::config::{Config, limits};
use headwater::lifecycle::{Lifecycle, Scope, Timing};
use headwater::log::LogError;
use headwater::log::embedded::OpenError;
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

/// Starts the broker and tells how to try it.
async fn start_broker(config: Config, descriptors: u64, scope: Scope) -> Result<(), Failure> {
    let broker = broker::start(&config, descriptors, &scope).await.map_err(|error| match error {
        StartError::Log(LogError::Damaged(_)) | StartError::Embedded(OpenError::Damaged { .. }) => {
            Failure::internal(error)
        }
        StartError::Log(LogError::Unavailable(_) | LogError::Unknown(_)) => Failure::unavailable(error),
        StartError::Embedded(ref why) if why.is_retryable() => Failure::unavailable(error),
        // What remains is for the operator to mend: another start would end the same way.
        _ => Failure::usage(error),
    })?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        address = %broker.address,
        node = config.server.node_id.as_str(),
        log = broker.log,
        "serving"
    );
    // A closed standard output is no reason not to serve.
    let _ = greet(&config, &broker);
    Ok(())
}

fn greet(config: &Config, broker: &Broker) -> std::io::Result<()> {
    let url = format!("http://{}", broker.address);
    let mut out = std::io::stdout().lock();
    writeln!(out, "Headwater {} serves on {url} ({})", env!("CARGO_PKG_VERSION"), broker.log)?;
    if config.server.is_loopback() {
        writeln!(
            out,
            "Open to every program on this machine, and to none of another: no key is configured."
        )?;
    } else {
        writeln!(
            out,
            "OPEN TO EVERYBODY WHO REACHES {}: no key is configured and auth.open is set.",
            broker.address
        )?;
    }
    writeln!(out, "\nTry it, in two terminals:\n  curl -N '{url}/events?channels=demo'")?;
    writeln!(
        out,
        "  curl {url}/channels/demo/events -H 'Content-Type: application/json' -d '{{\"data\":\"hello\"}}'"
    )?;
    writeln!(out, "Look: {url}/channels  {url}/channels/demo/events  {url}/readyz  {url}/metrics")?;
    out.flush()
}

/// SIGTERM and SIGINT as messages, for as long as `tasks` lives. SIGHUP, which a closed terminal sends, ends
/// nothing.
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
    let mut hangups = signal(SignalKind::hangup()).context("cannot listen for signals")?;
    tasks.spawn(async move {
        while hangups.recv().await.is_some() {
            info!("SIGHUP: there is nothing to reload");
        }
    });
    Ok(receiver)
}
