//! The servers: how each is started on the server's core, how the load reaches it, which processes are its own.
//!
//! Invariant: whatever was started ends with its [`Running`], Redis included, and keeps its files in a directory that
//! goes with it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tempfile::TempDir;

/// Core of the servers, and of the load.
pub(crate) const SERVER_CORE: usize = 0;
pub(crate) const LOAD_CORE: usize = 1;

/// A file system in memory.
const IN_MEMORY: &str = "/dev/shm";
/// A server that does not listen by then does not start.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// The lowest are enough to go before what has none.
const REALTIME_PRIORITY: &str = "5";
const PAUSE: Duration = Duration::from_millis(20);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Server {
    Embedded,
    /// Its log in a file system in memory, which leaves out the disk.
    EmbeddedInMemory,
    Redis,
    /// On Redis, which has the load's core, so that the server's is the broker's alone.
    RedisBeside,
    Nchan,
    NchanRedis,
    AxumSse,
    WriteLoop,
}

/// Where programs are.
pub(crate) struct Setup {
    pub(crate) broker: PathBuf,
    /// How programs are started on a core.
    pub(crate) launcher: Launcher,
    examples: PathBuf,
}

/// A server that listens.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) pids: Vec<u32>,
    pub(crate) redis: Option<Redis>,
    children: Vec<Process>,
    _dir: TempDir,
}

/// A `redis-server` that keeps what it acknowledged over a restart, or nothing.
pub(crate) struct Redis {
    pub(crate) port: u16,
    launcher: Launcher,
    core: usize,
    durable: bool,
    dir: TempDir,
    process: Process,
}

/// A child that ends when this is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Either may fail only because the process is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Embedded => "Headwater, embedded log",
            Self::EmbeddedInMemory => "Headwater, embedded log in memory",
            Self::Redis => "Headwater, Redis",
            Self::RedisBeside => "Headwater, Redis on the other core",
            Self::Nchan => "Nchan",
            Self::NchanRedis => "Nchan, Redis",
            Self::AxumSse => "axum Sse",
            Self::WriteLoop => "bare write loop",
        }
    }

    /// How `headwater bench` reaches it.
    pub(crate) fn templates(self) -> &'static [&'static str] {
        match self {
            Self::Embedded | Self::EmbeddedInMemory | Self::Redis | Self::RedisBeside => &[],
            Self::Nchan | Self::NchanRedis => {
                &["--ready", "head", "--subscribe", "/sub?id={channel}", "--publish", "/pub?id={channel}"]
            }
            Self::AxumSse => &[
                "--ready",
                "head",
                "--subscribe",
                "/events?channel={channel}",
                "--publish",
                "/publish?channel={channel}",
            ],
            Self::WriteLoop => &["--ready", "head"],
        }
    }
}

impl Setup {
    pub(crate) fn new(broker: &Path, realtime: bool) -> anyhow::Result<Self> {
        // Servers are started in directories of their own.
        let missing = || format!("{} is not there; benches/compare.sh builds it", broker.display());
        let broker = broker.canonicalize().with_context(missing)?;
        let own = std::env::current_exe().context("this program has a path")?;
        let examples = own.parent().context("this program has a directory")?.to_owned();
        Ok(Self { broker, launcher: Launcher { realtime }, examples })
    }

    /// Starts a server with these settings of the broker's, `("retention.max_length", "1000")`.
    pub(crate) fn start(&self, server: Server, settings: &[(&str, &str)]) -> anyhow::Result<Running> {
        let dir = match server {
            Server::EmbeddedInMemory => tempfile::tempdir_in(IN_MEMORY),
            _ => tempfile::tempdir(),
        };
        let dir = dir.context("a temporary directory")?;
        let address = free_address()?;
        let redis = match server {
            Server::Redis | Server::NchanRedis => Some(Redis::start(self.launcher, SERVER_CORE, false)?),
            Server::RedisBeside => Some(Redis::start(self.launcher, LOAD_CORE, false)?),
            _ => None,
        };
        let command = match server {
            Server::Embedded | Server::EmbeddedInMemory | Server::Redis | Server::RedisBeside => {
                self.broker_command(address, dir.path(), redis.as_ref(), settings)
            }
            Server::Nchan | Server::NchanRedis => self.nginx_command(address, dir.path(), redis.as_ref())?,
            Server::AxumSse => self.example("axum_sse", address),
            Server::WriteLoop => self.example("write_loop", address),
        };
        let mut children = vec![spawn(command)?];
        wait_for(address, &mut children[0])?;
        let main = children[0].0.id();
        let mut pids = vec![main];
        pids.extend(children_of(main)?);
        if server == Server::Redis || server == Server::NchanRedis {
            pids.extend(redis.iter().map(|redis| redis.process.0.id()));
        }
        Ok(Running { address, pids, redis, children: std::mem::take(&mut children), _dir: dir })
    }

    /// The broker on this Redis.
    pub(crate) fn start_on(&self, redis: Redis, settings: &[(&str, &str)]) -> anyhow::Result<Running> {
        let dir = tempfile::tempdir().context("a temporary directory")?;
        let address = free_address()?;
        let mut broker = spawn(self.broker_command(address, dir.path(), Some(&redis), settings))?;
        wait_for(address, &mut broker)?;
        let pids = vec![broker.0.id()];
        Ok(Running { address, pids, redis: Some(redis), children: vec![broker], _dir: dir })
    }

    fn broker_command(
        &self,
        address: SocketAddr,
        dir: &Path,
        redis: Option<&Redis>,
        settings: &[(&str, &str)],
    ) -> Command {
        let mut command = self.launcher.on_core(SERVER_CORE, &self.broker);
        command.args(["serve", "--listen", &address.to_string()]).arg("--data-dir").arg(dir.join("data"));
        if let Some(redis) = redis {
            command.args(["--redis", &redis.url()]);
        }
        command.env("HEADWATER_LOG", "error").current_dir(dir);
        for (key, value) in settings {
            command.env(format!("HEADWATER_{}", key.to_uppercase().replace('.', "__")), value);
        }
        command
    }

    fn nginx_command(
        &self,
        address: SocketAddr,
        dir: &Path,
        redis: Option<&Redis>,
    ) -> anyhow::Result<Command> {
        let url = redis.map(Redis::url);
        let upstream = url.map(|url| format!("upstream store {{ nchan_redis_server {url}; }}"));
        let pass = if upstream.is_some() { "nchan_redis_pass store;" } else { "" };
        let config = include_str!("nchan.conf")
            .replace("{dir}", &dir.display().to_string())
            .replace("{address}", &address.to_string())
            .replace("{upstream}", &upstream.unwrap_or_default())
            .replace("{pass}", pass);
        let path = dir.join("nginx.conf");
        fs::write(&path, config).context("the configuration of nginx can be written")?;
        let mut command = self.launcher.on_core(SERVER_CORE, Path::new("nginx"));
        command.arg("-c").arg(path).arg("-e").arg(dir.join("error.log")).arg("-p").arg(dir);
        Ok(command)
    }

    fn example(&self, name: &str, address: SocketAddr) -> Command {
        let mut command = self.launcher.on_core(SERVER_CORE, &self.examples.join(name));
        command.arg(address.to_string());
        command
    }
}

impl Running {
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // nginx' worker outlives a master that is killed, so each is told first.
        for process in &mut self.children {
            let _ = Command::new("kill").arg(process.0.id().to_string()).status();
            let begin = Instant::now();
            while matches!(process.0.try_wait(), Ok(None)) && begin.elapsed() < Duration::from_secs(12) {
                sleep(PAUSE);
            }
        }
    }
}

impl Redis {
    pub(crate) fn start(launcher: Launcher, core: usize, durable: bool) -> anyhow::Result<Self> {
        let (dir, port) = (tempfile::tempdir().context("a temporary directory")?, free_address()?.port());
        let process = Self::spawn(launcher, core, port, durable, dir.path())?;
        Ok(Self { port, launcher, core, durable, dir, process })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.process.0.kill().context("redis-server can be killed")?;
        self.process.0.wait().context("redis-server can be waited for")?;
        Ok(())
    }

    /// Starts it again with what it kept; answers when it took commands again.
    pub(crate) fn restart(&mut self) -> anyhow::Result<Instant> {
        self.process = Self::spawn(self.launcher, self.core, self.port, self.durable, self.dir.path())?;
        Ok(Instant::now())
    }

    fn spawn(
        launcher: Launcher,
        core: usize,
        port: u16,
        durable: bool,
        dir: &Path,
    ) -> anyhow::Result<Process> {
        let mut command = launcher.on_core(core, Path::new("redis-server"));
        command.current_dir(dir).args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
        command.args(["--appendonly", if durable { "yes" } else { "no" }]);
        let mut process = spawn(command)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let begin = Instant::now();
        while !answers_ping(address) {
            check_start(&mut process, begin, address)?;
        }
        Ok(process)
    }
}

/// Whether a Redis has loaded what it kept.
fn answers_ping(address: SocketAddr) -> bool {
    use std::io::{Read, Write};
    let Ok(mut socket) = TcpStream::connect(address) else { return false };
    let mut answer = [0; 7];
    socket.write_all(b"PING\r\n").is_ok() && socket.read_exact(&mut answer).is_ok() && &answer == b"+PONG\r\n"
}

/// How programs are started on a core.
#[derive(Clone, Copy)]
pub(crate) struct Launcher {
    realtime: bool,
}

impl Launcher {
    /// The tools before the program become it, so that the child's pid is the program's.
    pub(crate) fn on_core(self, core: usize, program: &Path) -> Command {
        let mut command = Command::new(if self.realtime { "chrt" } else { "taskset" });
        if self.realtime {
            command.args(["--rr", REALTIME_PRIORITY, "taskset"]);
        }
        command.args(["--cpu-list", &core.to_string()]).arg(program).stdin(Stdio::null());
        command
    }
}

fn spawn(mut command: Command) -> anyhow::Result<Process> {
    let child =
        command.stdout(Stdio::null()).spawn().with_context(|| format!("{command:?} cannot be started"))?;
    Ok(Process(child))
}

fn wait_for(address: SocketAddr, process: &mut Process) -> anyhow::Result<()> {
    let begin = Instant::now();
    while TcpStream::connect(address).is_err() {
        check_start(process, begin, address)?;
    }
    // nginx listens before its worker runs.
    sleep(PAUSE * 10);
    Ok(())
}

fn check_start(process: &mut Process, begin: Instant, address: SocketAddr) -> anyhow::Result<()> {
    if let Some(status) = process.0.try_wait().context("a child can be waited for")? {
        return Err(anyhow!("the server ended as it started: {status}"));
    }
    if begin.elapsed() > START_DEADLINE {
        return Err(anyhow!("the server does not answer at {address}"));
    }
    sleep(PAUSE);
    Ok(())
}

fn children_of(pid: u32) -> anyhow::Result<Vec<u32>> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?;
    Ok(text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// An address that was free a moment ago.
fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a free loopback port")?;
    listener.local_addr().context("a bound socket has an address")
}
