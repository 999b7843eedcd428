//! The real binary as a child process, and everything a test does to it.
//!
//! Invariant: a broker ends with the [`Broker`] that started it. One that panicked, or that still keeps
//! something of its clients when they are gone, fails its test. What it printed is shown when a test fails.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::http::Http;
use super::metrics::{Metrics, assert_nothing_left_behind};
use super::redis::Redis;
use super::until::{until, within};

/// Path of the binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_headwater");

/// Where the calls of a traced broker are written down, in its directory.
const TRACE: &str = "trace";

/// How many lines of a broker's output a failing test shows.
const LINES_SHOWN: usize = 200;

/// Where events are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// In the broker's own directory.
    Embedded,
    /// In a `redis-server` of the test.
    Redis,
}

/// Who writes an event stream over HTTP/1 to its socket (`server.detach`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Streams {
    /// The session itself, as configured unless said otherwise.
    Detached,
    /// The HTTP library, as over HTTP/2.
    Bodies,
}

/// What a test runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// Where events are kept.
    pub(crate) store: Store,
    /// Who writes streams.
    pub(crate) streams: Streams,
}

impl From<Store> for Setup {
    fn from(store: Store) -> Self {
        Self { store, streams: Streams::Detached }
    }
}

/// A broker about to be started.
pub(crate) struct Builder {
    redis: Option<Arc<Redis>>,
    /// Replaces the server's own address, as when a proxy stands before it.
    redis_url: Option<String>,
    settings: Vec<(String, String)>,
    /// System calls to write down.
    traced: Option<&'static str>,
    /// The authority of its certificate, in PEM.
    authority: Option<String>,
    listens_on: Ipv4Addr,
    /// How many files the process may open.
    descriptors: Option<u32>,
}

impl Builder {
    /// Sets a configuration key by its dotted name, as in `set("sse.retry", "50ms")`.
    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        let name = format!("HEADWATER_{}", key.to_uppercase().replace('.', "__"));
        self.settings.push((name, value.into()));
        self
    }

    /// Chooses who writes event streams.
    pub(crate) fn streams(self, streams: Streams) -> Self {
        match streams {
            Streams::Detached => self,
            Streams::Bodies => self.set("server.detach", "false"),
        }
    }

    /// Reaches its Redis at this address.
    pub(crate) fn through(mut self, redis_url: &str) -> Self {
        self.redis_url = Some(redis_url.into());
        self
    }

    /// Is to be reached over TLS; its certificate is this authority's.
    pub(crate) fn over_tls(mut self, authority: &str) -> Self {
        self.authority = Some(authority.into());
        self
    }

    /// Listens on every address of this machine, as a server in production does.
    pub(crate) fn reachable_from_elsewhere(mut self) -> Self {
        self.listens_on = Ipv4Addr::UNSPECIFIED;
        self
    }

    /// Lets the process open no more files than this.
    pub(crate) fn descriptors(mut self, max: u32) -> Self {
        self.descriptors = Some(max);
        self
    }

    /// Writes down these system calls, see [`Broker::traced_calls`]. Restarts are not traced.
    pub(crate) fn traced(mut self, calls: &'static str) -> Self {
        self.traced = Some(calls);
        self
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn start(self) -> Broker {
        let redis_url = self.redis_url.or_else(|| Some(self.redis.as_ref()?.url()));
        let dir = tempfile::tempdir().expect("a temporary directory");
        let program = match (self.traced, self.descriptors) {
            (Some(calls), _) => traced_command(calls, dir.path()),
            (None, Some(max)) => bounded_command(max),
            (None, None) => command(&[]),
        };
        let process =
            Process::start(program, dir.path(), redis_url.as_deref(), &self.settings, (self.listens_on, 0));
        let addr = process.address().await;
        let http = match &self.authority {
            Some(authority) => Http::over_tls(addr, authority),
            None => Http::new(addr),
        };
        let is_protected = self.settings.iter().any(|(name, _)| name.contains("PROTECT_METRICS"));
        // Looking is done without TLS, and without a token.
        let can_look = self.authority.is_none() && !is_protected;
        let (redis, settings) = (self.redis, self.settings);
        let mut broker = Broker {
            addr,
            http,
            redis,
            redis_url,
            settings,
            dir,
            process,
            start: None,
            leaves: AtomicBool::new(false),
        };
        broker.ready().await;
        broker.start = can_look.then(|| broker.metrics());
        broker
    }
}

/// A running broker.
pub(crate) struct Broker {
    /// Where it listens; a restart keeps it.
    pub(crate) addr: SocketAddr,
    /// A client of it.
    pub(crate) http: Http,
    redis: Option<Arc<Redis>>,
    redis_url: Option<String>,
    settings: Vec<(String, String)>,
    dir: TempDir,
    process: Process,
    /// How it was before its first client; see [`Broker::drop`].
    start: Option<Metrics>,
    /// It was asked to end.
    leaves: AtomicBool,
}

impl Broker {
    /// A broker on this kind of store with a Redis of its own, otherwise in the configuration that everybody gets.
    pub(crate) async fn on(setup: impl Into<Setup>) -> Builder {
        let Setup { store, streams } = setup.into();
        let redis = match store {
            Store::Embedded => None,
            Store::Redis => Some(Arc::new(Redis::start().await)),
        };
        Self::with(redis).streams(streams)
    }

    /// A broker on a Redis that the test started.
    pub(crate) fn on_redis(redis: &Arc<Redis>) -> Builder {
        Self::with(Some(redis.clone()))
    }

    fn with(redis: Option<Arc<Redis>>) -> Builder {
        Builder {
            redis,
            redis_url: None,
            settings: Vec::new(),
            traced: None,
            authority: None,
            listens_on: Ipv4Addr::LOCALHOST,
            descriptors: None,
        }
    }

    /// [`Broker::on`], started.
    pub(crate) async fn start(setup: impl Into<Setup>) -> Self {
        Self::on(setup).await.start().await
    }

    /// The Redis that it keeps its events in.
    pub(crate) fn redis(&self) -> &Arc<Redis> {
        self.redis.as_ref().expect("the test runs on Redis")
    }

    /// Its address as clients write it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Where the embedded log is.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Traced system calls that succeeded so far.
    pub(crate) fn traced_calls(&self) -> usize {
        let trace = std::fs::read_to_string(self.dir.path().join(TRACE)).expect("the broker is traced");
        trace.lines().filter(|line| line.trim_end().ends_with("= 0")).count()
    }

    /// Everything that it printed so far.
    pub(crate) fn output(&self) -> String {
        self.process.output.lock().join("\n")
    }

    /// Asks it to read its files again.
    pub(crate) fn sighup(&self) {
        kill_process(self.process.pid(), Signal::HUP).expect("the broker takes signals");
    }

    /// Ends it without any warning.
    pub(crate) fn kill9(&mut self) {
        self.process.end();
    }

    /// Asks it to end, as an orchestrator does.
    pub(crate) fn sigterm(&self) {
        self.leaves.store(true, Ordering::Relaxed);
        kill_process(self.process.pid(), Signal::TERM).expect("the broker takes signals");
    }

    /// Freezes the process: its sockets stay open and nothing moves.
    pub(crate) fn pause(&self) {
        kill_process(self.process.pid(), Signal::STOP).expect("the broker takes signals");
    }

    /// Ends [`Broker::pause`].
    pub(crate) fn resume(&self) {
        kill_process(self.process.pid(), Signal::CONT).expect("the broker takes signals");
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn exit_status(&mut self) -> ExitStatus {
        let status = until("the broker exits", async || {
            self.process.child.try_wait().expect("the broker can be waited for")
        })
        .await;
        // What it said last is there, too.
        self.process.end();
        status
    }

    /// Starts it again on its port and its data, and waits until it is ready.
    pub(crate) async fn restart(&mut self) {
        self.restart_unready().await;
        self.ready().await;
    }

    /// [`Broker::restart`] without waiting until it is ready.
    pub(crate) async fn restart_unready(&mut self) {
        self.process.end();
        self.process.assert_no_panic();
        let (dir, listen) = (self.dir.path(), (Ipv4Addr::LOCALHOST, self.addr.port()));
        self.process = Process::start(command(&[]), dir, self.redis_url.as_deref(), &self.settings, listen);
        assert_eq!(self.process.address().await, self.addr);
        self.leaves.store(false, Ordering::Relaxed);
        self.http = Http::new(self.addr);
    }

    /// Closes the connections that its own client keeps.
    pub(crate) fn forget_connections(&mut self) {
        self.http = Http::new(self.addr);
    }

    /// What it says of itself now.
    pub(crate) fn metrics(&self) -> Metrics {
        Metrics::of(self.addr).expect("the broker answers GET /metrics")
    }

    /// Memory that the process holds, in bytes (`proc(5)`, `VmRSS`).
    pub(crate) fn rss_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.child.id());
        let status = std::fs::read_to_string(path).expect("Linux shows what a process holds");
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a living process has memory");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
        kib * 1024
    }

    /// Bytes that the kernel holds for each of its connections because they were not sent or not acknowledged
    /// (`proc_pid_net(5)`, `tcp`, `tx_queue`).
    pub(crate) fn unsent_bytes(&self) -> Vec<u64> {
        let sockets = std::fs::read_to_string("/proc/net/tcp").expect("Linux lists its sockets");
        let own = format!(":{:04X}", self.addr.port());
        let unsent = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let queued = fields.get(4).filter(|_| fields[1].ends_with(&own))?.split_once(':')?.0;
            u64::from_str_radix(queued, 16).ok()
        };
        sockets.lines().filter_map(unsent).collect()
    }

    async fn ready(&self) {
        until("GET /readyz answers 200", async || {
            let answer = self.http.try_send(reqwest::Method::GET, "/readyz", &[], "").await;
            answer.ok().filter(|answer| answer.status == 200)
        })
        .await;
    }
}

impl Drop for Broker {
    /// When a test ends in good order, its broker has forgotten all of its clients. Tests declare what talks to
    /// a broker after it, so that it is gone by now.
    fn drop(&mut self) {
        let Some(start) = &self.start else { return };
        if std::thread::panicking() || self.leaves.load(Ordering::Relaxed) || self.process.has_ended() {
            return;
        }
        let runtime = tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor());
        assert!(
            !matches!(runtime, Ok(tokio::runtime::RuntimeFlavor::CurrentThread)),
            "clients can only end while the broker is dropped with #[tokio::test(flavor = \"multi_thread\", ..)]"
        );
        self.http = Http::new(self.addr);
        assert_nothing_left_behind(self.addr, start);
    }
}

/// The child process and what it prints.
struct Process {
    child: Child,
    output: Output,
    readers: Vec<JoinHandle<()>>,
}

/// Lines of both streams in the order in which they came.
type Output = Arc<Mutex<Vec<String>>>;

impl Process {
    fn start(
        mut command: Command,
        dir: &std::path::Path,
        redis_url: Option<&str>,
        settings: &[(String, String)],
        listen: (Ipv4Addr, u16),
    ) -> Self {
        command.args(["serve", "--listen"]).arg(SocketAddr::from(listen).to_string());
        command.current_dir(dir).arg("--data-dir").arg(dir.join("data"));
        if let Some(url) = redis_url {
            command.args(["--redis", url]);
        }
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("{command:?} cannot be started ({error}); `make setup` installs strace, or: apt-get install strace")
        });
        let output = Output::default();
        let stdout = collect("stdout", child.stdout.take().expect("stdout is piped"), &output);
        let stderr = collect("stderr", child.stderr.take().expect("stderr is piped"), &output);
        Self { child, output, readers: vec![stdout, stderr] }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The address that it printed on standard output.
    async fn address(&self) -> SocketAddr {
        let found = until("the broker prints its address, or ends", async || {
            // Its output ends when the process does: what is not there then never comes.
            let ended = self.readers.iter().all(JoinHandle::is_finished);
            let found = self.output.lock().iter().find_map(|line| printed_address(line));
            (ended || found.is_some()).then_some(found)
        });
        found.await.unwrap_or_else(|| panic!("the broker ended before it listened:\n{}", self.shown()))
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the broker can be waited for").is_some()
    }

    /// Kills the process if it still runs, and reads its output to the end.
    fn end(&mut self) {
        // Either may fail only because the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            reader.join().expect("reading output does not panic");
        }
    }

    fn assert_no_panic(&self) {
        let panicked = self.output.lock().iter().any(|line| line.contains("panicked at"));
        assert!(!panicked, "the broker panicked:\n{}", self.shown());
    }

    fn shown(&self) -> String {
        let output = self.output.lock();
        output[output.len().saturating_sub(LINES_SHOWN)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("what the broker printed:\n{}", self.shown());
        } else {
            self.assert_no_panic();
        }
    }
}

fn printed_address(line: &str) -> Option<SocketAddr> {
    let line = line.strip_prefix("stdout: ")?;
    let (_, rest) = line.split_once("http://").or_else(|| line.split_once("https://"))?;
    let rest = rest.strip_prefix("127.0.0.1:").or_else(|| rest.strip_prefix("0.0.0.0:"))?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some(SocketAddr::from((Ipv4Addr::LOCALHOST, digits.parse().ok()?)))
}

fn collect(name: &'static str, from: impl Read + Send + 'static, output: &Output) -> JoinHandle<()> {
    let output = output.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            output.lock().push(format!("{name}: {line}"));
        }
    })
}

/// The binary with these arguments and nothing of this process' own configuration.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(args);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HEADWATER_"))
    {
        command.env_remove(name);
    }
    command
}

/// The binary with a bound of its open files that it cannot raise.
fn bounded_command(descriptors: u32) -> Command {
    let mut bounded = Command::new("sh");
    for (name, _) in command(&[]).get_envs() {
        bounded.env_remove(name);
    }
    bounded.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &descriptors.to_string(), BINARY]);
    bounded
}

/// Runs a command that has to end by itself: one that serves instead fails its test, and ends with it.
pub(crate) async fn ended(command: Command) -> std::process::Output {
    let mut command = tokio::process::Command::from(command);
    let ending = command.stdin(Stdio::null()).kill_on_drop(true).output();
    within("the command ends", ending).await.expect("the binary starts")
}

/// The binary watched by `strace`, which is no parent of it and ends with it.
fn traced_command(calls: &str, dir: &std::path::Path) -> Command {
    let mut traced = Command::new("strace");
    for (name, _) in command(&[]).get_envs() {
        traced.env_remove(name);
    }
    let trace = format!("trace={calls}");
    traced.args(["-D", "-f", "-e", &trace, "-o"]).arg(dir.join(TRACE)).arg(BINARY);
    traced
}

#[test]
fn the_printed_address_is_found_on_standard_output_only() {
    let addr = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 4711)));
    assert_eq!(printed_address("stdout: Headwater listens on http://127.0.0.1:4711/"), addr);
    assert_eq!(printed_address("stdout: Headwater listens on https://127.0.0.1:4711"), addr);
    assert_eq!(printed_address("stderr: Headwater listens on http://127.0.0.1:4711/"), None);
    assert_eq!(printed_address("stdout: Headwater serves on http://0.0.0.0:4711 (..)"), addr);
    assert_eq!(printed_address("stdout: http://127.0.0.1:"), None);
}
