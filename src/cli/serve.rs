//! `headwater serve`: runs the broker until a signal, and turns its end into an exit code.
//!
//! Neighbours: `lifecycle.rs` ends what runs, the broker spawns on its scope.

use std::io::Write;

use anyhow::{Context, anyhow};
use headwater::broker::{self, Broker, Reloader, StartError};
use headwater::config::{Config, limits};
use headwater::lifecycle::{Lifecycle, Scope, Timing};
use headwater::log::LogError;
use headwater::log::embedded::OpenError;
use headwater::telemetry;
use tokio::signal::unix::{Signal, SignalKind, signal};
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
    // Taken from now on: a closed terminal sends it, too, and it must not end the broker.
    let hangups =
        signal(SignalKind::hangup()).context("cannot listen for signals").map_err(Failure::internal)?;
    let lifecycle = Lifecycle::new();
    tokio::select! {
        started = start_broker(config, descriptors, lifecycle.scope()) => {
            forwarding.spawn(reload_on(hangups, started?));
        }
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
async fn start_broker(config: Config, descriptors: u64, scope: Scope) -> Result<Reloader, Failure> {
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
    if config.auth.has_no_key() && !config.server.is_loopback() {
        warn!(address = %broker.address, "{}", open_to_everybody(&broker));
    }
    // A closed standard output is no reason not to serve.
    let _ = greet(&config, &broker);
    Ok(broker.reloader)
}

/// SIGHUP means that files have changed.
async fn reload_on(mut hangups: Signal, reloader: Reloader) {
    while hangups.recv().await.is_some() {
        info!("SIGHUP: keys and certificates are read again");
        reloader.reload();
    }
}

fn greet(config: &Config, broker: &Broker) -> std::io::Result<()> {
    let scheme = if config.tls.cert_file.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", broker.address);
    let mut out = std::io::stdout().lock();
    writeln!(out, "Headwater {} serves on {url} ({})", env!("CARGO_PKG_VERSION"), broker.log)?;
    writeln!(out, "{}", who_may_do_what(config, broker))?;
    let credential = if config.auth.has_no_key() { "" } else { " -H \"Authorization: Bearer $TOKEN\"" };
    writeln!(out, "\nTry it, in two terminals:\n  curl -N '{url}/events?channels=demo'{credential}")?;
    writeln!(
        out,
        "  curl {url}/channels/demo/events{credential} -H 'Content-Type: application/json' -d '{{\"data\":\"hello\"}}'"
    )?;
    writeln!(out, "Look: {url}/channels  {url}/channels/demo/events  {url}/readyz  {url}/metrics")?;
    out.flush()
}

/// What is open to whom, in one line.
fn who_may_do_what(config: &Config, broker: &Broker) -> String {
    let auth = &config.auth;
    if !auth.has_no_key() {
        let mut keys: Vec<String> =
            broker.token_keys.iter().map(|keys| format!("a token ({keys})")).collect();
        if !auth.keys.is_empty() {
            keys.push(format!("one of {} API key(s)", auth.keys.len()));
        }
        let without = match &auth.anonymous_subscribe[..] {
            [] => "nothing is open without".to_owned(),
            patterns => format!("without, only subscribing to {}", patterns.join(", ")),
        };
        return format!("Needs {}; {without}.", keys.join(" or "));
    }
    if config.server.is_loopback() {
        return "Open to every program on this machine, and to no other machine's programs and pages: no key is configured."
            .to_owned();
    }
    open_to_everybody(broker)
}

fn open_to_everybody(broker: &Broker) -> String {
    format!(
        "OPEN TO EVERYBODY WHO REACHES {}, programs and web pages: anybody can read, publish to and purge every channel, \
         because auth.open is set and no key is configured.",
        broker.address
    )
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
