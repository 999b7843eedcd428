//! nginx and HAProxy as child processes, configured by the very files that docs/proxies recommends.
//!
//! Invariant: of such a file nothing but addresses is replaced; what a test changes beside is named in the test.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, geteuid, kill_process, kill_process_group};
use tempfile::TempDir;

use super::http::Http;
use super::redis::free_port;
use super::until::Wait;

/// How often a port that another process took first is replaced by a new one.
const PORT_TRIES: usize = 10;

/// Where the files expect one and two brokers.
const BROKERS: [&str; 2] = ["127.0.0.1:8080", "127.0.0.1:8081"];

/// A proxy about to be started.
#[derive(Clone)]
pub(crate) struct Setup {
    name: String,
    text: String,
}

/// A configuration of docs/proxies by its name.
pub(crate) fn recommended(name: &str) -> Setup {
    let path = format!("{}/docs/proxies/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    Setup { name: name.into(), text }
}

impl Setup {
    /// Another text in place of one that must be there.
    pub(crate) fn with(mut self, old: &str, new: &str) -> Self {
        assert!(self.text.contains(old), "{} has no {old:?}", self.name);
        self.text = self.text.replace(old, new);
        self
    }

    /// Another line before this one.
    pub(crate) fn with_line(self, line: &str, before: &str) -> Self {
        self.with(before, &format!("{line}\n{before}"))
    }

    /// Without the line that contains this.
    pub(crate) fn without_line(self, part: &str) -> Self {
        let line = self.text.lines().find(|line| line.contains(part));
        let line = line.unwrap_or_else(|| panic!("{} has no {part:?}", self.name)).to_owned();
        self.with(&format!("{line}\n"), "")
    }

    /// Starts it before these brokers, and waits until it passes a request on. The first broker must answer.
    pub(crate) async fn start(&self, brokers: &[SocketAddr]) -> ReverseProxy {
        let mut text = self.text.clone();
        if brokers.len() > 1 {
            // The files show where a second one would stand.
            text = text.replace("# server", "server");
        }
        for (written, broker) in BROKERS.iter().zip(brokers) {
            text = text.replace(written, &broker.to_string());
        }
        for _ in 0..PORT_TRIES {
            let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let own = text.replace("listen 8000;", &format!("listen {addr};"));
            let own = own.replace("bind :8000", &format!("bind {addr}"));
            let dir = tempfile::tempdir().expect("a temporary directory");
            let mut command = if self.name.starts_with("nginx") {
                nginx(dir.path(), &own)
            } else {
                haproxy(dir.path(), &own)
            };
            let log = fs::File::create(dir.path().join("log")).expect("a file");
            let twin = log.try_clone().expect("a file has handles");
            command.current_dir(dir.path()).process_group(0).stdin(Stdio::null()).stdout(log).stderr(twin);
            let started = command.spawn();
            let child = started
                .unwrap_or_else(|error| panic!("{command:?} cannot be started ({error}): run `make setup`"));
            let mut proxy = ReverseProxy { addr, http: Http::new(addr), child, dir };
            if proxy.answers().await {
                return proxy;
            }
        }
        panic!("{} ended {PORT_TRIES} times as soon as it started", self.name);
    }
}

fn nginx(dir: &Path, text: &str) -> Command {
    let mut main = String::from("daemon off;\nworker_processes 1;\npid pid;\nerror_log stderr notice;\n");
    if geteuid().is_root() {
        // Its workers write below the test's directory.
        main += "user root;\n";
    }
    main += "events {}\nhttp {\naccess_log off;\n";
    main += "client_body_temp_path body;\nproxy_temp_path proxied;\nfastcgi_temp_path fastcgi;\n";
    main += "uwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\ninclude headwater.conf;\n}\n";
    fs::write(dir.join("nginx.conf"), main).expect("a file");
    fs::write(dir.join("headwater.conf"), text).expect("a file");
    let mut command = program("nginx");
    command.arg("-p").arg(dir).args(["-c", "nginx.conf", "-e", "stderr"]);
    command
}

fn haproxy(dir: &Path, text: &str) -> Command {
    fs::write(dir.join("haproxy.cfg"), text).expect("a file");
    let mut command = program("haproxy");
    command.args(["-db", "-f", "haproxy.cfg"]);
    command
}

/// Debian keeps servers where only root looks.
fn program(name: &str) -> Command {
    let path = format!("/usr/sbin/{name}");
    if Path::new(&path).exists() { Command::new(path) } else { Command::new(name) }
}

/// A running proxy; it ends when this is dropped.
pub(crate) struct ReverseProxy {
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    /// A client of it.
    pub(crate) http: Http,
    child: Child,
    dir: TempDir,
}

impl ReverseProxy {
    /// Its address as clients write it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Lets nginx read its configuration again, with which new connections are served.
    pub(crate) fn reload(&self) {
        kill_process(Pid::from_child(&self.child), Signal::HUP).expect("nginx takes signals");
    }

    /// What it said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits until a request reaches a broker; false when the process ended instead.
    async fn answers(&mut self) -> bool {
        let wait = Wait::until("the proxy passes requests on");
        loop {
            if self.child.try_wait().expect("the proxy can be waited for").is_some() {
                let log = self.log();
                assert!(log.contains("Address already in use") || log.contains("cannot bind"), "{log}");
                return false;
            }
            let answer = self.http.try_send(reqwest::Method::GET, "/healthz", &[], "").await;
            if answer.is_ok_and(|answer| answer.status == 200) {
                return true;
            }
            wait.again().await;
        }
    }
}

impl Drop for ReverseProxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what the proxy said:\n{}", self.log());
        }
        // The group: nginx has workers. Either may fail only because it is gone already.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}
