//! `headwater tail`: follows channels, comes back by itself, and prints one line per event.
//!
//! Invariant: between two printed events nothing that the broker still had is missing, however often the
//! connection broke: every connection resumes from the last id seen. Heartbeats move that id in silence; the
//! other control events are told on standard error.

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Response, Url};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{sleep, timeout};

use super::client::{self, Broker, ClientArgs};
use super::sse_reader::{SseEvent, SseReader};
use super::{Failure, output};

/// How long to wait before connecting again until the broker says something else.
const RETRY_DEFAULT: Duration = Duration::from_secs(3);

/// Waiting doubles with every attempt that fails, up to this, unless the broker asked for more.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// A connection on which nothing comes for so long is dead, until the broker has said how often its heart beats.
const SILENCE_DEFAULT: Duration = Duration::from_secs(120);

/// A connection is given up after three heartbeats that did not come, but not faster than this.
const SILENCE_MIN: Duration = Duration::from_secs(1);

/// Follow channels and print their events.
#[derive(Args)]
pub(crate) struct TailArgs {
    /// Channels to follow
    #[arg(required = true, value_name = "CHANNEL")]
    channels: Vec<String>,
    /// Where to start: an id or cursor, `earliest` for all that is retained, `latest` for what comes from now on
    #[arg(long, value_name = "CURSOR", default_value = "latest")]
    from: String,
    /// JSON object; an event passes when each key that its data has equals the value, or is in it if it is a list
    #[arg(long, value_name = "JSON")]
    filter: Option<String>,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time, such as 30s, with exit code 69
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// How events are printed
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    #[command(flatten)]
    client: ClientArgs,
}

/// How events are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object a line: id, channel, event, data, timestamp
    Json,
    /// For people: id, channel, type, and the data with its later lines indented
    Text,
    /// The data alone, as it came
    Data,
}

/// What the broker sends for every event, because the command asks for `envelope=1`: one stream carries many
/// channels.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    channel: Cow<'a, str>,
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
struct Connected {
    node: Option<String>,
    heartbeat_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Closing {
    reason: String,
    reconnect: bool,
}

/// Follows until it is told to stop.
pub(super) async fn run(arguments: TailArgs) -> Result<(), Failure> {
    tail(arguments, io::stdout(), io::stderr()).await
}

async fn tail(arguments: TailArgs, out: impl Write, notes: impl Write) -> Result<(), Failure> {
    let mut tail = Tail::new(&arguments, out, notes)?;
    let Some(limit) = arguments.timeout else {
        return tail.follow().await;
    };
    timeout(limit, tail.follow()).await.unwrap_or_else(|_| {
        let wanted = arguments.count.map(|count| format!(" of {count}")).unwrap_or_default();
        let limit = humantime::format_duration(limit);
        Err(Failure::unavailable(anyhow!("{}{wanted} events came within {limit}", tail.printed)))
    })
}

struct Tail<O, N> {
    broker: Broker,
    url: Url,
    format: Format,
    count: Option<u64>,
    out: O,
    notes: N,
    printed: u64,
    /// What the next connection resumes from; empty is from now on.
    cursor: String,
    retry: Duration,
    silence_max: Duration,
    /// Before the first stream every failure ends the command: most likely the arguments are wrong.
    ever_connected: bool,
}

/// Why a connection is over although the command is not done.
struct Interrupted {
    why: String,
    /// The connection had become a stream, so the next attempt is a first one.
    was_stream: bool,
}

/// Whether to go on.
enum Next {
    Done,
    Reconnect(Interrupted),
}

impl<O: Write, N: Write> Tail<O, N> {
    fn new(arguments: &TailArgs, out: O, notes: N) -> Result<Self, Failure> {
        let broker = Broker::new(&arguments.client)?;
        let mut url = broker.url(&["events"]);
        url.query_pairs_mut().append_pair("envelope", "1");
        for channel in &arguments.channels {
            let channel = headwater::channel::Channel::parse(channel).map_err(Failure::usage)?;
            url.query_pairs_mut().append_pair("channel", channel.as_str());
        }
        if let Some(filter) = &arguments.filter {
            serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(filter)
                .context("--filter is not a JSON object such as '{\"region\":\"eu\"}'")
                .map_err(Failure::usage)?;
            url.query_pairs_mut().append_pair("filters", filter);
        }
        Ok(Self {
            broker,
            url,
            format: arguments.format,
            count: arguments.count,
            out,
            notes,
            printed: 0,
            cursor: if arguments.from == "latest" { String::new() } else { arguments.from.clone() },
            retry: RETRY_DEFAULT,
            silence_max: SILENCE_DEFAULT,
            ever_connected: false,
        })
    }

    async fn follow(&mut self) -> Result<(), Failure> {
        let mut failures = 0;
        loop {
            let interrupted = match self.connection().await? {
                Next::Done => return Ok(()),
                Next::Reconnect(interrupted) => interrupted,
            };
            failures = if interrupted.was_stream { 0 } else { failures + 1 };
            let pause = backoff(self.retry, failures);
            self.note(&format!(
                "{}; connecting again in {}",
                interrupted.why,
                humantime::format_duration(pause)
            ));
            sleep(pause).await;
        }
    }

    /// One connection from its request to its end.
    async fn connection(&mut self) -> Result<Next, Failure> {
        let mut call = self.broker.http.get(self.url.clone()).header(ACCEPT, "text/event-stream");
        if !self.cursor.is_empty() {
            let cursor = HeaderValue::from_bytes(self.cursor.as_bytes())
                .context("--from contains a character that a header cannot carry")
                .map_err(Failure::usage)?;
            call = call.header("last-event-id", cursor);
        }
        let answered = match call.send().await {
            Ok(response) => stream_of(response).await,
            Err(e) => Err(self.broker.unreachable(e)),
        };
        match answered {
            Ok(Some(response)) => self.read(response).await,
            Ok(None) => Ok(Next::Done),
            Err(failure) if self.ever_connected && failure.exit == super::Exit::Unavailable => {
                let why = failure.message.map(|message| format!("{message:#}")).unwrap_or_default();
                Ok(Next::Reconnect(Interrupted { why, was_stream: false }))
            }
            Err(failure) => Err(failure),
        }
    }

    async fn read(&mut self, mut response: Response) -> Result<Next, Failure> {
        self.ever_connected = true;
        let mut reader = SseReader::resuming(&self.cursor);
        loop {
            let why = match timeout(self.silence_max, response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    let events = reader.push(&chunk).map_err(Failure::internal)?;
                    self.retry = reader.retry().unwrap_or(self.retry);
                    reader.last_event_id().clone_into(&mut self.cursor);
                    for event in events {
                        if self.take(&event)? {
                            return Ok(Next::Done);
                        }
                    }
                    continue;
                }
                Ok(Ok(None)) => "the stream ended".to_owned(),
                Ok(Err(e)) => format!("{:#}", anyhow!(e.without_url()).context("the stream broke")),
                Err(_) => format!("nothing came for {}", humantime::format_duration(self.silence_max)),
            };
            return Ok(Next::Reconnect(Interrupted { why, was_stream: true }));
        }
    }

    /// Prints an event, or heeds one of the broker's own. Answers whether the command is done.
    fn take(&mut self, event: &SseEvent) -> Result<bool, Failure> {
        match event.kind.as_str() {
            "connected" => self.connected(event),
            "heartbeat" => {}
            "gap" => self.note(&format!("gap: {}", event.data)),
            "closing" => self.closing(event)?,
            _ => {
                let line = self
                    .format
                    .render(&event.data)
                    .context("the answer is no envelope; is that a Headwater?");
                output::line(&mut self.out, &line.map_err(Failure::internal)?)?;
                self.printed += 1;
            }
        }
        Ok(self.count.is_some_and(|count| self.printed >= count))
    }

    fn connected(&mut self, event: &SseEvent) {
        let Ok(connected) = serde_json::from_str::<Connected>(&event.data) else { return };
        if let Some(heartbeat_ms) = connected.heartbeat_ms {
            self.silence_max = Duration::from_millis(heartbeat_ms.saturating_mul(3)).max(SILENCE_MIN);
        }
        self.note(&format!("connected to {} at {}", connected.node.as_deref().unwrap_or("a node"), event.id));
    }

    fn closing(&mut self, event: &SseEvent) -> Result<(), Failure> {
        if let Ok(Closing { reason, reconnect: false }) = serde_json::from_str(&event.data) {
            let reason = output::printable(&reason);
            return Err(Failure::unavailable(anyhow!("the broker ended the stream: {reason}")));
        }
        self.note(&format!("closing: {}", event.data));
        Ok(())
    }

    /// Nobody may listen on standard error; that is no reason to stop.
    fn note(&mut self, text: &str) {
        let _ = writeln!(self.notes, "headwater: {}", output::printable(text));
    }
}

impl Format {
    fn render(self, envelope: &str) -> serde_json::Result<String> {
        let Envelope { id, channel, event, data } = serde_json::from_str(envelope)?;
        let text = || match serde_json::from_str::<String>(data.get()) {
            Ok(text) => text,
            Err(_) => data.get().to_owned(),
        };
        Ok(match self {
            Self::Json => envelope.to_owned(),
            Self::Text => {
                output::printable(&format!("{id} {channel} {event}: {}", text().replace('\n', "\n  ")))
            }
            Self::Data => text(),
        })
    }
}

/// The answer if it is a stream, `None` when there is nothing to come back for (HTML, section 9.2.3).
async fn stream_of(response: Response) -> Result<Option<Response>, Failure> {
    if response.status() == reqwest::StatusCode::NO_CONTENT {
        return Ok(None);
    }
    let response = client::accepted(response).await?;
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream")) {
        return Ok(Some(response));
    }
    Err(Failure::usage(anyhow!(
        "the answer is no event stream but {kind:?}; is that a Headwater at this address?"
    )))
}

/// What the broker asked for after a stream; twice as long after every attempt that failed since.
fn backoff(retry: Duration, failures: u32) -> Duration {
    retry.saturating_mul(1 << failures.min(16)).min(RETRY_MAX.max(retry))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Answer, ScriptedBroker, json, soon, stream, told};
    use super::super::{Command, Exit, parse};
    use super::*;

    struct Told {
        out: Vec<String>,
        notes: String,
        result: Result<(), Failure>,
    }

    /// An event in its envelope.
    fn event(id: &str, data: &str) -> String {
        format!("id: {id}\ndata: {{\"id\":\"{id}\",\"channel\":\"a\",\"event\":\"x\",\"data\":{data}}}\n\n")
    }

    async fn tail_with(broker: &ScriptedBroker, arguments: &[&str]) -> Told {
        let whole = ["headwater", "tail"].iter().chain(arguments).map(std::ffi::OsString::from);
        let Ok(Command::Tail(mut parsed)) = parse(whole) else { panic!("{arguments:?}") };
        parsed.client = broker.client();
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let result = soon(tail(parsed, &mut out, &mut notes)).await;
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Told { out: text(out).lines().map(str::to_owned).collect(), notes: text(notes), result }
    }

    #[tokio::test]
    async fn events_are_printed_one_a_line_and_control_events_are_not_among_them() {
        let events = "retry: 1\nid: 0\nevent: connected\ndata: {\"node\":\"n1\",\"heartbeat_ms\":30000}\n\n\
                      event: gap\ndata: {\"reason\":\"trimmed\"}\n\n"
            .to_owned()
            + &event("1", r#""a\nb""#)
            + "id: 2\nevent: heartbeat\ndata: {}\n\n"
            + &event("3", r#"{"k":"\u001b"}"#);
        let mut broker = ScriptedBroker::start(vec![Answer::Hold(stream(&events))]).await;
        let told =
            tail_with(&broker, &["a", "b/c", "--count", "2", "--filter", "{\"k\":1}", "--from", "earliest"])
                .await;
        told.result.unwrap();
        assert_eq!(
            told.out,
            [
                r#"{"id":"1","channel":"a","event":"x","data":"a\nb"}"#,
                r#"{"id":"3","channel":"a","event":"x","data":{"k":"\u001b"}}"#
            ]
        );
        assert!(
            told.notes.contains("connected to n1 at 0\n") && told.notes.contains("gap: {"),
            "{}",
            told.notes
        );
        let request = broker.request().await;
        assert!(
            request.starts_with("GET /events?envelope=1&channel=a&channel=b%2Fc&filters=%7B%22k%22%3A1%7D "),
            "{request}"
        );
        assert!(request.contains("\r\naccept: text/event-stream\r\n"), "{request}");
        assert!(request.contains("\r\nlast-event-id: earliest\r\n"), "{request}");
        assert!(request.contains("\r\nauthorization: Bearer t0ken\r\n"), "{request}");
    }

    #[tokio::test]
    async fn it_comes_back_with_the_last_id_after_the_end_a_refusal_and_a_closing() {
        let mut broker = ScriptedBroker::start(vec![
            Answer::Bytes(stream(&format!("retry: 1\n{}id: 9\ndata: never finished\n", event("1", "\"a\"")))),
            json("503 Service Unavailable", r#"{"title":"Away"}"#),
            Answer::Bytes(stream("id: 2\nevent: heartbeat\ndata: {}\n\n")),
            Answer::Bytes(stream("event: closing\ndata: {\"reason\":\"shutdown\",\"reconnect\":true}\n\n")),
            Answer::Hold(stream(&event("3", "\"b\""))),
        ])
        .await;
        let told = tail_with(&broker, &["a", "--count", "2", "--format", "data"]).await;
        told.result.unwrap();
        assert_eq!(told.out, ["a", "b"]);
        let pauses: Vec<_> = told.notes.lines().filter_map(|note| note.split_once("again in ")).collect();
        assert_eq!(pauses.iter().map(|(_, pause)| *pause).collect::<Vec<_>>(), ["1ms", "2ms", "1ms", "1ms"]);
        let mut resumed_from = Vec::new();
        for _ in 0..5 {
            let request = broker.request().await;
            resumed_from.push(
                request.lines().find_map(|line| line.strip_prefix("last-event-id: ").map(str::to_owned)),
            );
        }
        let expected = [None, Some("1"), Some("1"), Some("2"), Some("2")];
        assert_eq!(resumed_from, expected.map(|id| id.map(str::to_owned)));
    }

    #[tokio::test]
    async fn it_stays_away_when_the_broker_says_so() {
        let closing = "event: closing\ndata: {\"reason\":\"revoked\",\"reconnect\":false}\n\n";
        let broker = ScriptedBroker::start(vec![Answer::Bytes(stream(closing))]).await;
        let (exit, message) = told(tail_with(&broker, &["a"]).await.result.unwrap_err());
        assert_eq!((exit, message.as_str()), (Exit::Unavailable, "the broker ended the stream: revoked"));
        let broker =
            ScriptedBroker::start(vec![Answer::Bytes(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())]).await;
        tail_with(&broker, &["a"]).await.result.unwrap();
    }

    #[tokio::test]
    async fn a_timeout_exits_with_69_and_says_how_far_it_came() {
        let broker = ScriptedBroker::start(vec![Answer::Hold(stream(&event("1", "1")))]).await;
        let told_by = tail_with(&broker, &["a", "--count", "2", "--timeout", "300ms"]).await;
        assert_eq!(told_by.out.len(), 1);
        let expected = (Exit::Unavailable, "1 of 2 events came within 300ms".to_owned());
        assert_eq!(told(told_by.result.unwrap_err()), expected);
    }

    #[tokio::test]
    async fn a_connection_whose_heart_stopped_is_given_up() {
        let events = "retry: 1\nid: 1\nevent: connected\ndata: {\"heartbeat_ms\":10}\n\n";
        let answers = vec![Answer::Hold(stream(events)), Answer::Hold(stream(&event("1", "1")))];
        let broker = ScriptedBroker::start(answers).await;
        let told = tail_with(&broker, &["a", "--count", "1"]).await;
        told.result.unwrap();
        assert!(told.notes.contains("nothing came for 1s;"), "{}", told.notes);
    }

    #[tokio::test]
    async fn the_first_connection_must_succeed() {
        let refused = ScriptedBroker::start(vec![json(
            "403 Forbidden",
            r#"{"detail":"not yours","code":"forbidden"}"#,
        )])
        .await;
        let (exit, message) = told(tail_with(&refused, &["a"]).await.result.unwrap_err());
        assert_eq!((exit, message.as_str()), (Exit::Usage, "the broker refused: not yours [403 forbidden]"));
        // The script is over: nothing listens there any more.
        assert_eq!(told(tail_with(&refused, &["a"]).await.result.unwrap_err()).0, Exit::Unavailable);
        let page = ScriptedBroker::start(vec![json("200 OK", "{}")]).await;
        assert!(told(tail_with(&page, &["a"]).await.result.unwrap_err()).1.contains("no event stream"));
        for arguments in
            [&["a b"][..], &["a", "--filter", "[1]"], &["a", "--filter", "{"], &["a", "--from", "x\ny"]]
        {
            assert_eq!(
                tail_with(&page, arguments).await.result.unwrap_err().exit,
                Exit::Usage,
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn attempts_that_fail_wait_longer_up_to_a_bound() {
        let seconds = Duration::from_secs;
        let waits: Vec<_> = (0..6).map(|failures| backoff(seconds(3), failures)).collect();
        assert_eq!(waits, [3, 6, 12, 24, 30, 30].map(seconds));
        assert_eq!(backoff(seconds(120), 9), seconds(120), "never less than the broker asked for");
        assert_eq!(backoff(Duration::MAX, u32::MAX), Duration::MAX);
    }

    #[test]
    fn text_for_people_indents_and_disarms() {
        let envelope = r#"{"id":"1","channel":"c","event":"x","data":"a\n\u001b[2Jb"}"#;
        assert_eq!(Format::Text.render(envelope).unwrap(), "1 c x: a\n  \u{fffd}[2Jb");
    }
}
