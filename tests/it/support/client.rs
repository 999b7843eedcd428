//! The clients that people use, as programs under tests/clients: what each printed is noted and proven.
//!
//! A program reads a URL from its standard input and prints each event as `{"id", "event", "data"}`, a line each,
//! where `id` is the position it would resume from. Other lines (`{"note": ...}`) tell what happens beside.
//! Invariant: a program ends with the [`Client`] that started it, and one that fails or ends fails its test.

use std::process::Stdio;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;

use super::recorder::{Recorder, Stored};
use super::sse_parser::Event;
use super::until::{until, within};

#[path = "../../clients/rust/eventsource_client.rs"]
mod eventsource_client;

/// How many events of a client a failing test shows.
const EVENTS_SHOWN: usize = 10;

/// A library as one of the programs uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Library {
    /// Chromium's own `EventSource`.
    Chromium,
    /// `@microsoft/fetch-event-source` in Chromium, as docs/clients.md says.
    FetchEventSource,
    /// The same as its documentation shows it.
    FetchEventSourceCareless,
    /// npm `eventsource`, the newest major version.
    EventSource5,
    /// The last one for Node.js 18.
    EventSource3,
    /// An old one that is still used much.
    EventSource2,
    /// PyPI `httpx-sse`, as docs/clients.md says.
    HttpxSse,
    /// The same as its documentation shows it.
    HttpxSseCareless,
    /// PyPI `sseclient-py`, as docs/clients.md says.
    Sseclient,
    /// The same as its documentation shows it.
    SseclientCareless,
    /// The crate `eventsource-client`, in this process, as docs/clients.md says.
    RustEventsourceClient,
    /// The same as its documentation shows it.
    RustEventsourceClientCareless,
    /// curl in a shell loop.
    Curl,
}

impl Library {
    /// The program and its arguments, below tests/clients.
    fn command(self) -> Option<&'static [&'static str]> {
        const PYTHON: &str = "python/.venv/bin/python";
        Some(match self {
            Self::Chromium => &["node", "js/browser.mjs"],
            Self::FetchEventSource => &["node", "js/browser.mjs", "fetch-event-source"],
            Self::FetchEventSourceCareless => &["node", "js/browser.mjs", "fetch-event-source", "careless"],
            Self::EventSource5 => &["node", "js/eventsource.mjs"],
            Self::EventSource3 => &["node", "js/eventsource.mjs", "3"],
            Self::EventSource2 => &["node", "js/eventsource.mjs", "2"],
            Self::HttpxSse => &[PYTHON, "python/httpx_sse_client.py"],
            Self::HttpxSseCareless => &[PYTHON, "python/httpx_sse_client.py", "careless"],
            Self::Sseclient => &[PYTHON, "python/sseclient_client.py"],
            Self::SseclientCareless => &[PYTHON, "python/sseclient_client.py", "careless"],
            Self::Curl => &["bash", "shell/curl.sh"],
            Self::RustEventsourceClient | Self::RustEventsourceClientCareless => return None,
        })
    }

    /// Whether it is a page in a browser, which has an origin.
    fn is_page(self) -> bool {
        matches!(self, Self::Chromium | Self::FetchEventSource | Self::FetchEventSourceCareless)
    }
}

/// A client program that has begun, and what it told.
pub(crate) struct Client {
    library: Library,
    /// Origin of the page it runs in; empty for programs.
    pub(crate) origin: String,
    program: Option<Program>,
    told: Arc<Mutex<Told>>,
    /// The task that takes what it tells.
    listening: JoinSet<()>,
    is_expected_to_fail: bool,
}

/// What a client told so far.
#[derive(Debug)]
pub(crate) struct Told {
    /// Every event, and how the connections hang together.
    pub(crate) recorder: Recorder,
    /// Events in the order in which they came.
    pub(crate) events: Vec<Event>,
    /// Notes beside.
    pub(crate) notes: Vec<Value>,
    channels: Vec<String>,
    is_recorded: bool,
}

impl Client {
    /// Starts the program; a page is open then.
    pub(crate) async fn start(library: Library) -> Self {
        let mut program = library.command().map(Program::start);
        let mut origin = String::new();
        if let Some(program) = program.as_mut().filter(|_| library.is_page()) {
            let lines = program.lines.as_mut().expect("nobody listens yet");
            let note = within("the page opens", next_line(lines)).await.expect("the browser starts");
            note["origin"].as_str().expect("a page has an origin").clone_into(&mut origin);
        }
        let told = Arc::new(Mutex::new(Told::new(library, &[], "")));
        Self { library, origin, program, told, listening: JoinSet::new(), is_expected_to_fail: false }
    }

    /// Does not require that what it tells is right.
    pub(crate) fn expected_to_fail(mut self) -> Self {
        self.is_expected_to_fail = true;
        self
    }

    /// Subscribes at this address, from `cursor` on, which the URL names as a page that loaded its state would do.
    pub(crate) async fn subscribe(&mut self, address: &str, channels: &[&str], cursor: &str) {
        let told = Told::new(self.library, channels, cursor);
        *self.told.lock() = Told { is_recorded: !self.is_expected_to_fail, ..told };
        let url = format!("{address}/events?channels={}&last_event_id={cursor}", channels.join(","));
        let told = self.told.clone();
        let Some(program) = &mut self.program else {
            let careless = self.library == Library::RustEventsourceClientCareless;
            self.listening.spawn(eventsource_client::receive(url, careless, move |id, kind, data| {
                told.lock().take_event(id, kind, data);
            }));
            return;
        };
        let stdin = program.stdin.as_mut().expect("the program is open");
        stdin.write_all(format!("{url}\n").as_bytes()).await.expect("the program reads");
        let mut lines = program.lines.take().expect("it subscribes once");
        self.listening.spawn(async move {
            while let Some(line) = next_line(&mut lines).await {
                told.lock().take_line(line);
            }
        });
    }

    /// Ends it by the end of its standard input, which gives a browser the time to end well.
    pub(crate) async fn close(mut self) {
        let Some(mut program) = self.program.take() else { return };
        program.stdin = None;
        if self.library.is_page() {
            let status =
                within("the program ends", program.child.wait()).await.expect("it can be waited for");
            assert!(status.success(), "{:?} ended with {status}", self.library);
        }
    }

    /// Looks at what it told until `probe` finds what it looks for. A client that failed fails the test.
    pub(crate) async fn tells<T>(&mut self, what: &str, mut probe: impl FnMut(&Told) -> Option<T>) -> T {
        let library = self.library;
        until(&format!("{library:?} tells {what}"), async || {
            if let Some(end) = self.listening.try_join_next() {
                end.unwrap_or_else(|error| panic!("{library:?}: {error}"));
                panic!("{library:?} ended by itself");
            }
            probe(&self.told.lock())
        })
        .await
    }

    /// Waits for a `message` with this data, and answers the data of all.
    pub(crate) async fn tells_message(&mut self, data: &str) -> Vec<String> {
        let all = |told: &Told| told.messages().into_iter().map(ToOwned::to_owned).collect();
        self.tells(data, |told| told.messages().contains(&data).then(|| all(told))).await
    }

    /// Waits until it has caught up with `fence`, and proves that it got exactly what `log` holds, from its start on.
    pub(crate) async fn proves(&mut self, log: &[Stored], fence: &str) {
        self.tells("the last event", |told| (told.recorder.cursor() >= fence).then_some(())).await;
        self.told(|told| {
            told.recorder.check(log, &[]).unwrap_or_else(|why| panic!("{why}"));
            assert!(told.recorder.gaps().is_empty(), "nothing was trimmed, so nothing may be called lost");
            assert_eq!(told.recorder.received(), log.len(), "it received from the first to the last");
        });
    }

    /// A look at what it told so far.
    pub(crate) fn told<T>(&self, look: impl FnOnce(&Told) -> T) -> T {
        look(&self.told.lock())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let told = self.told.lock();
            let (events, notes) = (&told.events, &told.notes);
            let last = &events[events.len().saturating_sub(EVENTS_SHOWN)..];
            eprintln!("what {:?} told last, of {} events: {last:#?}\n{notes:#?}", self.library, events.len());
        }
    }
}

impl Told {
    fn new(library: Library, channels: &[&str], cursor: &str) -> Self {
        Self {
            recorder: Recorder::new(format!("{library:?}"), cursor),
            events: Vec::new(),
            notes: Vec::new(),
            channels: channels.iter().map(ToString::to_string).collect(),
            is_recorded: true,
        }
    }

    fn take_line(&mut self, line: Value) {
        if line["note"].is_string() {
            return self.notes.push(line);
        }
        let text = |name: &str| line[name].as_str().unwrap_or_else(|| panic!("no {name} in {line}"));
        self.take_event(text("id"), text("event"), text("data"));
    }

    fn take_event(&mut self, id: &str, kind: &str, data: &str) {
        // Some libraries show an empty id for an event without one, and keep what they resume from to themselves;
        // `connected` of the next connection tells.
        let id = if id.is_empty() { self.recorder.cursor() } else { id };
        let event =
            Event { last_event_id: id.into(), kind: kind.into(), data: data.into(), ..Event::default() };
        self.events.push(event.clone());
        if !self.is_recorded {
            return;
        }
        if kind == "connected" {
            self.recorder.connect(self.channels.iter().map(String::as_str));
        }
        // A connection that was refused has not begun.
        if self.recorder.connections() > 0 {
            self.recorder.take(&event);
        }
    }

    /// How many events of this type came.
    pub(crate) fn count(&self, kind: &str) -> usize {
        self.events.iter().filter(|event| event.kind == kind).count()
    }

    /// How often it was told to come back later for this reason.
    pub(crate) fn refusals(&self, reason: &str) -> usize {
        let closing = format!("{{\"reason\":\"{reason}\",\"reconnect\":true}}");
        self.events.iter().filter(|event| event.kind == "closing" && event.data == closing).count()
    }

    /// Data of the events of type `message`.
    pub(crate) fn messages(&self) -> Vec<&str> {
        let messages = self.events.iter().filter(|event| event.kind == "message");
        messages.map(|event| event.data.as_str()).collect()
    }
}

/// The child process with all that it started.
struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    /// `None` once they are listened to.
    lines: Option<Lines<BufReader<ChildStdout>>>,
    /// Where it keeps what it needs only while it runs.
    _dir: TempDir,
}

impl Program {
    fn start(words: &[&str]) -> Self {
        let clients = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let program =
            if words[0].contains('/') { format!("{clients}/{}", words[0]) } else { words[0].into() };
        let mut command = Command::new(program);
        command.args(&words[1..]).current_dir(clients).env("TMPDIR", dir.path()).process_group(0);
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn();
        let mut child =
            started.unwrap_or_else(|error| panic!("{words:?} cannot be started ({error}): run `make setup`"));
        let stdin = child.stdin.take();
        let lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        Self { child, stdin, lines, _dir: dir }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The group: a shell has started curl. It fails only when all have ended.
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// What a program prints next; `None` when it ended.
async fn next_line(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<Value> {
    let line = lines.next_line().await.expect("stdout is text")?;
    Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}")))
}
