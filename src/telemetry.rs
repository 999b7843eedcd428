//! Telemetry: where log lines go.
//!
//! One process has one subscriber, so only the binary calls [`init`]; the library only emits.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::telemetry::{LogFormat, Telemetry};

/// The variable that goes before `telemetry.log_filter`.
pub const FILTER_VARIABLE: &str = "HEADWATER_LOG";

/// Why log lines cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is none.
    #[error(transparent)]
    Filter(#[from] InvalidFilter),
    /// Another subscriber is in place.
    #[error("log lines are already written elsewhere in this process")]
    Taken,
}

/// Why a text is no filter of log lines.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no log filter such as \"info\" or \"info,headwater::tailer=debug\": {reason}")]
pub struct InvalidFilter {
    text: String,
    reason: String,
}

/// Reads a filter: a level, or levels by module.
pub fn parse_filter(text: &str) -> Result<EnvFilter, InvalidFilter> {
    let invalid = |reason: String| InvalidFilter { text: text.to_owned(), reason };
    // A single word that is no level would be taken for the name of a module and silence everything.
    let lone_word = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphabetic());
    if lone_word && text.parse::<tracing_subscriber::filter::LevelFilter>().is_err() {
        return Err(invalid("the levels are off, error, warn, info, debug and trace".to_owned()));
    }
    EnvFilter::builder().parse(text).map_err(|e| invalid(e.to_string()))
}

/// Starts writing log lines to stderr. `filter`, the value of [`FILTER_VARIABLE`], goes before the configured
/// one unless it is empty.
///
/// # Errors
/// When `filter` is none, or when called twice in one process.
pub fn init(config: &Telemetry, filter: Option<&str>) -> Result<(), TelemetryError> {
    subscriber(config, filter, io::stderr)?.try_init().map_err(|_| TelemetryError::Taken)
}

fn subscriber<W>(
    config: &Telemetry,
    filter: Option<&str>,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, InvalidFilter>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = parse_filter(filter.filter(|text| !text.is_empty()).unwrap_or(&config.log_filter))?;
    let registry = tracing_subscriber::registry().with(filter);
    // Colours are for people; a file or a pipe gets none.
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(io::stderr().is_terminal());
    Ok(match config.log_format {
        LogFormat::Text => Box::new(registry.with(lines)),
        LogFormat::Json => Box::new(registry.with(lines.json().flatten_event(true))),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(log_format: LogFormat, configured: &str, filter: Option<&str>) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let config = Telemetry { log_format, log_filter: configured.to_owned() };
        let subscriber = subscriber(&config, filter, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("a detail");
            tracing::info!(events = 3, "it happened");
        });
        let bytes = captured.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_lines_are_one_object_each_with_the_fields_at_the_top() {
        let text = lines(LogFormat::Json, "info", None);
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!((&line["message"], &line["events"]), (&"it happened".into(), &3.into()));
        assert!(lines(LogFormat::Text, "info", None).contains("it happened"));
    }

    #[test]
    fn the_variable_goes_before_the_configured_filter_unless_it_is_empty() {
        assert!(lines(LogFormat::Text, "info", Some("debug")).contains("a detail"));
        assert!(!lines(LogFormat::Text, "info", Some("")).contains("a detail"));
        assert!(!lines(LogFormat::Text, "debug", Some("off")).contains("it happened"));
    }

    #[test]
    fn a_filter_that_would_silently_hide_everything_is_refused() {
        for text in ["verbose", "headwater=loud", "=", "[", "info,,=x="] {
            assert!(parse_filter(text).is_err(), "{text:?}");
        }
        for text in ["", "info", "WARN", "off", "info,headwater::tailer=debug", "headwater=trace"] {
            assert!(parse_filter(text).is_ok(), "{text:?}");
        }
    }
}
