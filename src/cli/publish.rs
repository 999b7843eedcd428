//! `headwater publish`: one event from an argument or standard input, or many as NDJSON.
//!
//! Data that is a JSON object or array goes out as JSON, so that filters see its keys; everything else goes
//! out as text, byte for byte. `--json` and `--text` decide otherwise.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use clap::Args;
use futures_util::{Stream, stream};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use reqwest::Body;
use reqwest::header::CONTENT_TYPE;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::time::timeout;

use super::client::{self, Broker, CALL_TIMEOUT, ClientArgs};
use super::{Failure, output};

/// A broker gives up a stream that is silent for longer than 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Longest line of NDJSON in bytes: as much as the largest event that a broker can be configured to accept,
/// escaped in the worst way, and then some.
const LINE_BYTES_MAX: usize = 128 << 20;

/// Bytes that are read from standard input at once.
const BLOCK_BYTES: usize = 64 << 10;

/// Publish an event, or many.
#[derive(Args)]
pub(crate) struct PublishArgs {
    /// Channel to publish to; with --ndjson, the channel of lines that name none
    #[arg(required_unless_present = "ndjson")]
    channel: Option<String>,
    /// What to publish; read from standard input when left out, less one line break at its end
    #[arg(allow_hyphen_values = true)]
    data: Option<String>,
    /// Event type
    #[arg(long = "type", value_name = "T")]
    kind: Option<String>,
    /// Publishing again with the same key changes nothing and prints the first id
    #[arg(long, value_name = "K")]
    idempotency_key: Option<String>,
    /// The data is JSON; without --json and --text, an object or an array is
    #[arg(long, conflicts_with = "text")]
    json: bool,
    /// The data is text, even if it looks like JSON
    #[arg(long)]
    text: bool,
    /// Publish every line of standard input: `{"channel": .., "event": .., "data": .., "idempotency_key": ..}`
    #[arg(long, conflicts_with_all = ["data", "kind", "idempotency_key", "json", "text"])]
    ndjson: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Serialize)]
struct Request<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a str>,
    data: Box<RawValue>,
}

#[derive(Deserialize)]
struct Published {
    id: String,
    duplicate: bool,
}

#[derive(Deserialize)]
struct Summary {
    published: u64,
    duplicates: u64,
    last_id: Option<String>,
}

/// Publishes and prints the id, or the summary.
pub(super) async fn run(arguments: PublishArgs) -> Result<(), Failure> {
    let stdin = BufReader::with_capacity(BLOCK_BYTES, tokio::io::stdin());
    publish(arguments, stdin, &mut io::stdout()).await
}

async fn publish<R>(arguments: PublishArgs, mut input: R, out: &mut impl Write) -> Result<(), Failure>
where
    R: AsyncBufRead + Unpin + Send + 'static,
{
    let broker = Broker::new(&arguments.client)?;
    match &arguments.channel {
        Some(channel) if !arguments.ndjson => {
            publish_one(&broker, channel, &arguments, &mut input, out).await
        }
        Some(file) if is_file_of_lines(file) => Err(Failure::usage(anyhow!(
            "{file} is a file, and --ndjson reads standard input: headwater publish --ndjson < {file}"
        ))),
        channel => publish_lines(&broker, channel.as_deref(), input, out).await,
    }
}

fn is_file_of_lines(name: &str) -> bool {
    let path = Path::new(name);
    path.extension()
        .is_some_and(|extension| ["ndjson", "jsonl", "json"].iter().any(|known| extension == *known))
        && path.is_file()
}

async fn publish_one(
    broker: &Broker,
    channel: &str,
    arguments: &PublishArgs,
    input: &mut (impl AsyncBufRead + Unpin),
    out: &mut impl Write,
) -> Result<(), Failure> {
    let channel = client::channel(channel)?;
    let data = match &arguments.data {
        Some(data) => data.clone(),
        None => read_all(input).await?,
    };
    let data = as_json(&data, arguments.json, arguments.text).map_err(Failure::usage)?;
    let request = Request { event: arguments.kind.as_deref(), data };
    let mut call = broker
        .http
        .post(broker.url(&["channels", channel.as_str(), "events"]))
        .timeout(CALL_TIMEOUT)
        .json(&request);
    if let Some(key) = &arguments.idempotency_key {
        call = call.header("idempotency-key", key);
    }
    let response = client::accepted(call.send().await.map_err(|e| broker.unreachable(e))?).await?;
    let published: Published = response.json().await.map_err(Failure::internal)?;
    if published.duplicate {
        tell("duplicate: nothing was published, this is the first event's id");
    }
    output::line(out, &published.id)
}

async fn read_all(input: &mut (impl AsyncBufRead + Unpin)) -> Result<String, Failure> {
    if io::stdin().is_terminal() {
        tell("reading the data from the terminal; Ctrl-D ends it");
    }
    let mut text = String::new();
    input.read_to_string(&mut text).await.context("cannot read standard input").map_err(Failure::usage)?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// The data as a JSON value: itself, or a JSON string that holds it.
fn as_json(data: &str, json: bool, text: bool) -> anyhow::Result<Box<RawValue>> {
    let structured = data.trim_start().starts_with(['{', '[']);
    if json || (structured && !text) {
        match serde_json::from_str::<&RawValue>(data) {
            Ok(value) => return Ok(value.to_owned()),
            Err(e) if json => return Err(anyhow!(e).context("--json: the data is not JSON")),
            Err(_) => {}
        }
    }
    Ok(serde_json::value::to_raw_value(data)?)
}

async fn publish_lines<R>(
    broker: &Broker,
    channel: Option<&str>,
    input: R,
    out: &mut impl Write,
) -> Result<(), Failure>
where
    R: AsyncBufRead + Unpin + Send + 'static,
{
    let channel = channel.map(headwater::channel::Channel::parse).transpose().map_err(Failure::usage)?;
    let progress = progress_bar();
    let lines = Lines::new(channel.as_ref().map(|channel| channel.as_str().to_owned()));
    let body = Body::wrap_stream(blocks(input, lines, progress.clone()));
    let call =
        broker.http.post(broker.url(&["events"])).header(CONTENT_TYPE, "application/x-ndjson").body(body);
    let sent = call.send().await;
    progress.finish_and_clear();
    let response = sent.map_err(|e| {
        if e.is_connect() {
            return broker.unreachable(e);
        }
        let sent = progress.position();
        Failure::unavailable(anyhow!(e.without_url()).context(format!(
            "sending broke off after about {sent} lines; with idempotency keys they can simply be sent again"
        )))
    })?;
    let summary: Summary = client::accepted(response).await?.json().await.map_err(Failure::internal)?;
    let last = summary.last_id.map(|id| format!(", last id {id}")).unwrap_or_default();
    output::line(out, &format!("published {}, duplicates {}{last}", summary.published, summary.duplicates))
}

/// Shown only where standard error is a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {pos} lines, {msg}, {elapsed}")
        .expect("the template is fixed and tests parse it");
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Whole lines as they arrive: a block of input, less the line it breaks off in. While none arrive, a space now and then,
/// which moves no line.
fn blocks<R>(input: R, lines: Lines, progress: ProgressBar) -> impl Stream<Item = io::Result<Bytes>>
where
    R: AsyncBufRead + Unpin,
{
    stream::try_unfold(Some((input, lines, 0u64)), move |state| {
        let progress = progress.clone();
        async move {
            let Some((mut input, mut lines, mut sent)) = state else { return Ok(None) };
            loop {
                let Ok(block) = timeout(KEEP_ALIVE, input.fill_buf()).await else {
                    return Ok(Some((Bytes::from_static(b" "), Some((input, lines, sent)))));
                };
                let block = block?;
                let (block_bytes, at_end) = (block.len(), block.is_empty());
                let complete = if at_end { lines.finish() } else { lines.push(block)? };
                input.consume(block_bytes);
                if complete.is_empty() && !at_end {
                    continue;
                }
                sent += complete.len() as u64;
                progress.inc(complete.split(|b| *b == b'\n').count() as u64 - 1);
                progress.set_message(HumanBytes(sent).to_string());
                let next = (!at_end).then_some((input, lines, sent));
                return Ok(Some((Bytes::from(complete), next)));
            }
        }
    })
}

/// Cuts input into whole lines and gives the default channel to those that name none.
struct Lines {
    /// How a line begins that gets the default channel, `{"channel":"..."`.
    opening: Option<String>,
    unfinished: Vec<u8>,
}

impl Lines {
    fn new(channel: Option<String>) -> Self {
        let opening = channel.map(|channel| format!("{{\"channel\":{}", serde_json::Value::from(channel)));
        Self { opening, unfinished: Vec::new() }
    }

    /// The lines that `block` completes.
    fn push(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        let Some(last) = block.iter().rposition(|b| *b == b'\n') else {
            if self.unfinished.len() + block.len() > LINE_BYTES_MAX {
                let message = format!("a line has more than {LINE_BYTES_MAX} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            self.unfinished.extend_from_slice(block);
            return Ok(Vec::new());
        };
        let mut complete = std::mem::take(&mut self.unfinished);
        complete.extend_from_slice(&block[..=last]);
        self.unfinished.extend_from_slice(&block[last + 1..]);
        Ok(self.with_channel(complete))
    }

    /// What is left: a last line without a line break.
    fn finish(&mut self) -> Vec<u8> {
        let rest = std::mem::take(&mut self.unfinished);
        self.with_channel(rest)
    }

    fn with_channel(&self, lines: Vec<u8>) -> Vec<u8> {
        let Some(opening) = &self.opening else { return lines };
        let mut out = Vec::with_capacity(lines.len());
        for line in lines.split_inclusive(|b| *b == b'\n') {
            match fields_without_channel(line) {
                Some(fields) => {
                    out.extend_from_slice(opening.as_bytes());
                    out.extend_from_slice(if fields.starts_with(b"}") { b"" } else { b"," });
                    out.extend_from_slice(fields);
                }
                None => out.extend_from_slice(line),
            }
        }
        out
    }
}

/// What follows the brace of an object that names no channel. Anything else is sent as it is, since the broker
/// knows best how to refuse it and counts the lines.
fn fields_without_channel(line: &[u8]) -> Option<&[u8]> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(default, rename = "channel", deserialize_with = "is_there")]
        has_channel: bool,
    }
    let fields = line.trim_ascii_start().strip_prefix(b"{")?;
    let named: Named = serde_json::from_slice(line).ok()?;
    (!named.has_channel).then(|| fields.trim_ascii_start())
}

/// Whatever the value is, `null` too.
fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

#[expect(clippy::print_stderr, reason = "a word to the person at the terminal")]
fn tell(text: &str) {
    eprintln!("headwater: {text}");
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::super::testing::{Answer, ScriptedBroker, json, soon, told};
    use super::super::{Command, Exit, parse};
    use super::*;

    async fn run_with(
        broker: &ScriptedBroker,
        arguments: &[&str],
        input: &'static [u8],
    ) -> Result<String, Failure> {
        let whole = ["headwater", "publish"].iter().chain(arguments).map(std::ffi::OsString::from);
        let Ok(Command::Publish(mut parsed)) = parse(whole) else { panic!("{arguments:?}") };
        parsed.client = broker.client();
        let mut out = Vec::new();
        soon(publish(parsed, input, &mut out)).await?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn created() -> Vec<Answer> {
        vec![json("201 Created", r#"{"id":"01J","stream_id":"1-0","channel":"a","duplicate":false}"#)]
    }

    /// As from `tail -f` at night. Seen to fail when nothing is sent while there is nothing to publish.
    #[tokio::test(start_paused = true)]
    async fn silence_of_the_input_is_filled_with_what_moves_no_line() {
        let (input, mut writer) = tokio::io::duplex(100);
        let mut sent = std::pin::pin!(blocks(BufReader::new(input), Lines::new(None), progress_bar()));
        let mut next = async || sent.next().await.unwrap().unwrap();
        writer.write_all(b"{\"a\":1}\n{\"b\"").await.unwrap();
        assert_eq!(next().await, "{\"a\":1}\n");
        let began = tokio::time::Instant::now();
        assert_eq!((next().await, next().await), (Bytes::from_static(b" "), Bytes::from_static(b" ")));
        assert_eq!(began.elapsed(), 2 * KEEP_ALIVE);
        writer.write_all(b":2}\n").await.unwrap();
        assert_eq!(next().await, "{\"b\":2}\n");
    }

    #[tokio::test]
    async fn an_event_is_posted_and_its_id_printed() {
        let mut broker = ScriptedBroker::start(created()).await;
        let arguments = ["a/b", "hello", "--type", "greeting", "--idempotency-key", "k1"];
        assert_eq!(run_with(&broker, &arguments, b"").await.unwrap(), "01J\n");
        let request = broker.request().await;
        assert!(request.starts_with("POST /channels/a%2Fb/events HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("\r\nidempotency-key: k1\r\n"), "{request}");
        assert!(request.contains("\r\nauthorization: Bearer t0ken\r\n"), "{request}");
        assert!(request.contains("\r\ncontent-type: application/json\r\n"), "{request}");
        assert!(request.ends_with("\r\n\r\n{\"event\":\"greeting\",\"data\":\"hello\"}"), "{request}");
    }

    #[tokio::test]
    async fn standard_input_is_the_data_when_none_is_given_less_one_line_break() {
        for (input, data) in
            [(&b"two\nlines\r\n"[..], "\"two\\nlines\""), (b"x\n\n", "\"x\\n\""), (b"", "\"\"")]
        {
            let mut broker = ScriptedBroker::start(created()).await;
            run_with(&broker, &["a"], input).await.unwrap();
            let request = broker.request().await;
            assert!(request.ends_with(&format!("{{\"data\":{data}}}")), "{request}");
        }
        let broker = ScriptedBroker::start(vec![]).await;
        let failure = run_with(&broker, &["a"], b"\xff").await.unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
    }

    #[test]
    fn objects_and_arrays_are_json_and_everything_else_is_text_unless_said_otherwise() {
        let cases = [
            ("{\"a\": 1.0}", false, false, "{\"a\": 1.0}"),
            (" [1, 2]", false, false, "[1, 2]"),
            ("{\"a\": 1}", false, true, "\"{\\\"a\\\": 1}\""),
            ("{not json", false, false, "\"{not json\""),
            ("42", false, false, "\"42\""),
            ("42", true, false, "42"),
            ("null", false, false, "\"null\""),
            ("\"quoted\"", true, false, "\"quoted\""),
        ];
        for (data, json, text, expected) in cases {
            assert_eq!(as_json(data, json, text).unwrap().get(), expected, "{data}");
        }
        assert!(as_json("oops", true, false).is_err());
    }

    #[tokio::test]
    async fn lines_are_streamed_and_summed_up() {
        let summary = r#"{"published":2,"duplicates":1,"last_id":"01K"}"#;
        let mut broker = ScriptedBroker::start(vec![json("200 OK", summary)]).await;
        let input = b"{\"data\":1}\n{\"channel\":\"x\",\"data\":2}\n{\"data\":3}";
        let out = run_with(&broker, &["--ndjson", "a"], input).await.unwrap();
        assert_eq!(out, "published 2, duplicates 1, last id 01K\n");
        let request = broker.request().await;
        assert!(request.starts_with("POST /events HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("\r\ncontent-type: application/x-ndjson\r\n"), "{request}");
        assert!(
            request.contains("{\"channel\":\"a\",\"data\":1}\n{\"channel\":\"x\",\"data\":2}\n"),
            "{request}"
        );
        assert!(request.contains("{\"channel\":\"a\",\"data\":3}"), "{request}");
    }

    #[tokio::test]
    async fn a_file_in_the_place_of_the_channel_is_explained() {
        let broker = ScriptedBroker::start(Vec::new()).await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("events.ndjson");
        std::fs::write(&file, "").unwrap();
        let file = file.to_str().unwrap();
        let (exit, message) = told(run_with(&broker, &["--ndjson", file], b"").await.unwrap_err());
        assert_eq!(exit, Exit::Usage);
        assert!(message.contains(&format!("headwater publish --ndjson < {file}")), "{message}");
    }

    #[tokio::test]
    async fn a_refused_line_is_named() {
        let problem = r#"{"title":"Bad Request","detail":"data is missing","code":"invalid_event","line":2,"published":1}"#;
        let broker = ScriptedBroker::start(vec![json("400 Bad Request", problem)]).await;
        let (exit, message) = told(run_with(&broker, &["--ndjson"], b"{}\n{}\n").await.unwrap_err());
        assert_eq!(exit, Exit::Usage);
        assert!(message.contains("stopped at line 2; 1 events were published before"), "{message}");
    }

    #[tokio::test]
    async fn a_broker_that_is_away_is_unavailable_and_one_that_is_full_too() {
        let broker =
            ScriptedBroker::start(vec![json("503 Service Unavailable", r#"{"title":"Full"}"#)]).await;
        assert_eq!(told(run_with(&broker, &["a", "b"], b"").await.unwrap_err()).0, Exit::Unavailable);
        // The script is over: nothing listens there any more.
        for arguments in [&["a", "b"][..], &["--ndjson"]] {
            let (exit, message) = told(run_with(&broker, arguments, b"{}\n").await.unwrap_err());
            assert_eq!(exit, Exit::Unavailable);
            assert!(message.starts_with("cannot reach the broker at http://127.0.0.1:"), "{message}");
        }
    }

    #[tokio::test]
    async fn a_channel_that_cannot_be_is_refused_before_anything_is_sent() {
        let broker = ScriptedBroker::start(vec![]).await;
        for arguments in [&["a b", "x"][..], &["$user:1", "x"], &["..", "x"], &["--ndjson", "a,b"]] {
            assert_eq!(
                run_with(&broker, arguments, b"").await.unwrap_err().exit,
                Exit::Usage,
                "{arguments:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn lines_survive_any_cut_and_those_without_a_channel_get_one(
            lines in prop::collection::vec(
                prop::sample::select(vec!["{}", " { \"data\" : 1 }", "{\"channel\":\"x\"}", "{\"channel\":null}", "", "oops", "[1]", "{\"data\":\"é\\n\"}\r"]),
                0..12,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            ended: bool,
        ) {
            let mut input = lines.join("\n").into_bytes();
            if ended { input.push(b'\n'); }
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
            at.extend([0, input.len()]);
            at.sort_unstable();
            for channel in [None, Some("a\"b".to_owned())] {
                let mut cutter = Lines::new(channel.clone());
                let mut out = Vec::new();
                for ends in at.windows(2) {
                    out.extend(cutter.push(&input[ends[0]..ends[1]]).unwrap());
                }
                out.extend(cutter.finish());
                if channel.is_none() {
                    prop_assert_eq!(&out, &input);
                    continue;
                }
                let (before, after) = (String::from_utf8_lossy(&input), String::from_utf8_lossy(&out));
                prop_assert_eq!(before.split('\n').count(), after.split('\n').count());
                for (before, after) in before.split('\n').zip(after.split('\n')) {
                    match serde_json::from_str::<serde_json::Map<_, _>>(before) {
                        Ok(mut fields) if !fields.contains_key("channel") => {
                            fields.insert("channel".into(), "a\"b".into());
                            prop_assert_eq!(serde_json::from_str::<serde_json::Map<_, _>>(after).unwrap(), fields);
                        }
                        _ => prop_assert_eq!(before, after),
                    }
                }
            }
        }
    }
}
