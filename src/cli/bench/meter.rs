//! The meter: CPU time, memory and calls of Redis between two marks.

use tokio::time::Instant;

use super::super::Failure;
use super::process::{Cpu, Memory, Processes};
use super::redis::{Calls, Redis};
use super::report::Report;

/// A load that is busier than this may be what limits a figure.
const LOAD_BUSY_MAX: f64 = 0.9;

/// What is watched.
pub(super) struct Meter {
    server: Processes,
    load: Processes,
    redis: Option<Redis>,
}

/// A look at everything.
pub(super) struct Mark {
    at: Instant,
    server: Cpu,
    load: Cpu,
    calls: Calls,
}

/// What was used between two looks.
pub(super) struct Spent {
    pub(super) elapsed_s: f64,
    server: Option<Cpu>,
    load: Cpu,
    calls: Option<Calls>,
}

impl Meter {
    pub(super) async fn new(pids: Vec<u32>, redis: Option<&str>) -> Result<Self, Failure> {
        let (server, load) = (Processes::new(pids), Processes::own());
        server.cpu().map_err(Failure::usage)?;
        let redis = match redis {
            Some(url) => Some(Redis::connect(url).await.map_err(Failure::unavailable)?),
            None => None,
        };
        Ok(Self { server, load, redis })
    }

    pub(super) async fn mark(&mut self) -> Result<Mark, Failure> {
        let calls = match &mut self.redis {
            Some(redis) => redis.calls().await.map_err(Failure::unavailable)?,
            None => Calls::default(),
        };
        let cpu = |processes: &Processes| processes.cpu().map_err(Failure::unavailable);
        Ok(Mark { at: Instant::now(), server: cpu(&self.server)?, load: cpu(&self.load)?, calls })
    }

    pub(super) async fn since(&mut self, mark: &Mark) -> Result<Spent, Failure> {
        let now = self.mark().await?;
        Ok(Spent {
            elapsed_s: (now.at - mark.at).as_secs_f64(),
            server: (!self.server.is_empty()).then(|| now.server - mark.server),
            load: now.load - mark.load,
            calls: self.redis.is_some().then(|| now.calls.since(&mark.calls)),
        })
    }

    /// Memory of the server; `None` when no process is known.
    pub(super) fn memory(&self) -> Result<Option<Memory>, Failure> {
        if self.server.is_empty() {
            return Ok(None);
        }
        self.server.memory().map(Some).map_err(Failure::unavailable)
    }
}

impl Spent {
    /// CPU time of the server for each of so many of something.
    pub(super) fn tell_cpu(&self, report: &mut Report, of: &str, count: f64) {
        let Some(cpu) = self.server else { return };
        let each = |seconds: f64| seconds * 1e6 / count.max(1.0);
        report.metric(&format!("server_cpu_us_per_{of}"), each(cpu.total_s()));
        report.metric(&format!("server_user_us_per_{of}"), each(cpu.user_s));
    }

    /// How busy server and load were, and what Redis was asked for.
    pub(super) fn tell_rest(self, report: &mut Report) {
        let share = |cpu: Cpu| cpu.total_s() / self.elapsed_s.max(1e-9);
        if let Some(cpu) = self.server {
            report.metric("server_cores_busy", share(cpu));
        }
        report.metric("load_cores_busy", share(self.load));
        if share(self.load) > LOAD_BUSY_MAX {
            report.note("the load's core was full: the load, not the server, may be what limits the rate");
        }
        if let Some(calls) = self.calls {
            report.redis(calls);
        }
    }
}
