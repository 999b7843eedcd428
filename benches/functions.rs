//! What the Redis function library costs: events per second of every way to publish and to read.
//!
//! One `redis-server` without persistence, one pipelined connection, 200-byte events. Every measurement stands
//! beside one of plain commands taken right before it, and the ratio is that of the CPU time of the server's main
//! thread, so that a busy machine changes figures more than ratios. `cargo bench --bench functions` takes about a
//! minute; without `--bench` (as `cargo test --benches` calls it) every scenario runs once and briefly.
//!
//! Arguments: `--markdown` prints the table of `docs/performance.md`, `--rounds N` measures N times (the median
//! counts), `--migrations DIR` loads other sources of the libraries to compare them, a word selects scenarios.

#[path = "../tests/it/support/resp.rs"]
mod resp;
#[path = "functions/scenarios.rs"]
mod scenarios;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use resp::{Reply, Resp};
use scenarios::{Scenario, Side};

/// Words in flight at once, about; more would only lengthen the server's queue.
const WINDOW_BYTES: usize = 64 * 1024;

fn main() {
    let options = Options::parse(std::env::args().skip(1));
    let server = Server::start();
    let mut bench = Bench { resp: Resp::connect(server.port), options: &options };
    let mut table = Vec::new();
    let scenarios: Vec<Scenario> =
        scenarios::all().into_iter().filter(|scenario| scenario.name.contains(&options.filter)).collect();
    for scenario in &scenarios {
        let mut rounds: Vec<(Cost, Cost)> = (0..options.rounds).map(|_| bench.round(scenario)).collect();
        rounds.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        table.push((scenario, rounds[rounds.len() / 2]));
    }
    let text = if options.markdown { markdown(&table) } else { plain(&table) };
    let about = bench.about();
    std::io::stdout()
        .write_all(format!("{text}\n\n{about}\n").as_bytes())
        .expect("standard output takes a table");
}

/// What the command line says.
struct Options {
    markdown: bool,
    rounds: usize,
    /// How long one side of a measurement takes, about.
    slice: Duration,
    migrations: PathBuf,
    filter: String,
}

impl Options {
    fn parse(args: impl Iterator<Item = String>) -> Self {
        let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/0001");
        let slice = Duration::from_millis(20);
        let mut options = Self { markdown: false, rounds: 1, slice, migrations, filter: String::new() };
        let mut args = args.peekable();
        let mut rounds = None;
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => (options.rounds, options.slice) = (3, Duration::from_millis(250)),
                "--markdown" => options.markdown = true,
                "--rounds" => rounds = args.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0),
                "--migrations" => options.migrations = args.next().map(PathBuf::from).unwrap_or_default(),
                // What test runners hand to every binary means nothing here.
                flag if flag.starts_with('-') => {}
                word => word.clone_into(&mut options.filter),
            }
        }
        options.rounds = rounds.unwrap_or(options.rounds);
        options
    }
}

/// A server of its own; it ends with this.
struct Server {
    port: u16,
    child: Child,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        drop(listener);
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed; `make setup` does it");
        let server = Self { port, child };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(10), "redis-server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either may fail only because the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What events cost.
#[derive(Clone, Copy)]
struct Cost {
    /// CPU time of the server's main thread per event, in microseconds.
    cpu_us: f64,
    per_second: f64,
}

/// How much of the plain commands' rate is left.
fn ratio((plain, function): &(Cost, Cost)) -> f64 {
    plain.cpu_us / function.cpu_us
}

struct Bench<'a> {
    resp: Resp,
    options: &'a Options,
}

impl Bench<'_> {
    /// Measures plain commands and the functions, each on an empty store.
    fn round(&mut self, scenario: &Scenario) -> (Cost, Cost) {
        let plain = self.side(&scenario.plain);
        (plain, self.side(&scenario.function))
    }

    fn side(&mut self, side: &Side) -> Cost {
        self.empty();
        let mut call = (side.prepare)(&mut self.resp);
        let first = call(0);
        let bytes: usize = first.iter().flatten().map(|word| word.len() + 14).sum();
        let window = (WINDOW_BYTES / bytes).clamp(1, 256);
        let (start, cpu) = (Instant::now(), self.cpu_seconds());
        let (mut calls, mut waiting) = (0, 0);
        // One window is written while the server works on the one before.
        while calls == 0 || (start.elapsed() < self.options.slice && calls < side.calls_max) {
            let mut pushed = 0;
            for _ in 0..window.min(side.calls_max - calls) {
                for command in call(calls) {
                    self.resp.push(&command);
                    pushed += 1;
                }
                calls += 1;
            }
            self.resp.flush();
            self.receive(waiting, side.is_refused);
            waiting = pushed;
        }
        self.receive(waiting, side.is_refused);
        let (elapsed, cpu) = (start.elapsed().as_secs_f64(), self.cpu_seconds() - cpu);
        let events = (calls * side.events) as f64;
        Cost { cpu_us: cpu.max(1e-6) * 1e6 / events, per_second: events / elapsed }
    }

    fn receive(&mut self, answers: usize, are_refused: bool) {
        for _ in 0..answers {
            let answer = self.resp.receive();
            assert!(refuses(&answer) == are_refused, "the server answered {answer:?}");
        }
    }

    fn empty(&mut self) {
        self.resp.call(&["CONFIG", "SET", "maxmemory", "0"]);
        self.resp.call(&["FLUSHALL"]);
        self.resp.call(&["FUNCTION", "FLUSH"]);
        let read = |name: &str| {
            let path = self.options.migrations.join(name);
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        for name in ["headwater_v1", "headwater"] {
            let code = format!("#!lua name={name}\n{}{}", read("core.lua"), read(&format!("{name}.lua")));
            self.resp.call(&["FUNCTION", "LOAD", &code]);
        }
        self.resp.call(&["XADD", scenarios::FEED, scenarios::EPOCH, "mark", "epoch"]);
        self.resp.call(&["HSET", scenarios::STATE, "epoch", scenarios::EPOCH, "partitions", "1"]);
    }

    fn cpu_seconds(&mut self) -> f64 {
        let info = self.resp.call(&["INFO", "cpu"]);
        let of = |name: &str| info_field(&info, name).parse::<f64>().expect("a number of seconds");
        of("used_cpu_user_main_thread") + of("used_cpu_sys_main_thread")
    }

    fn about(&mut self) -> String {
        let info = self.resp.call(&["INFO", "server"]);
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        format!(
            "headwater {}, Redis {}, {cores} cores ({}), {}; median of {}.",
            env!("CARGO_PKG_VERSION"),
            info_field(&info, "redis_version"),
            cpu.map_or("unknown", |(_, name)| name.trim()),
            info_field(&info, "os"),
            self.options.rounds,
        )
    }
}

fn info_field<'a>(info: &'a Reply, name: &str) -> &'a str {
    let line = info.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("INFO tells no {name}")).trim()
}

/// Errors, and refusals of single requests.
fn refuses(answer: &Reply) -> bool {
    match answer {
        Reply::Error(_) => true,
        Reply::Text(text) => text.starts_with('!'),
        Reply::Array(_) => answer.items().first().is_some_and(refuses),
        _ => false,
    }
}

fn plain(table: &[(&Scenario, (Cost, Cost))]) -> String {
    let row = |(scenario, costs): &(&Scenario, (Cost, Cost))| {
        let (us, rate) = (costs.1.cpu_us, costs.1.per_second);
        format!("{:<62} {:>6.2} {us:>9.2} {rate:>12.0}", scenario.name, ratio(costs))
    };
    let head = format!("{:<62} {:>6} {:>9} {:>12}", "", "ratio", "us/event", "events/s");
    std::iter::once(head).chain(table.iter().map(row)).collect::<Vec<_>>().join("\n")
}

fn markdown(table: &[(&Scenario, (Cost, Cost))]) -> String {
    let row = |(scenario, costs): &(&Scenario, (Cost, Cost))| {
        let (us, thousands) = (costs.1.cpu_us, (costs.1.per_second / 1_000.0).round());
        format!("| {} | {:.2} | {us:.2} us | {thousands},000 |", scenario.name, ratio(costs))
    };
    let head = "| what | ratio | server CPU per event | events/s |\n|---|---:|---:|---:|".to_owned();
    std::iter::once(head).chain(table.iter().map(row)).collect::<Vec<_>>().join("\n")
}
