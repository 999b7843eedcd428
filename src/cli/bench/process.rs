//! What processes use, as the kernel counts it (`proc(5)`), and which core this thread runs on.
//!
//! CPU time is user and system of all threads, memory what the kernel calls PSS: pages that processes share are
//! split between them. Sockets' buffers are the kernel's and in neither.

use std::fs;
use std::ops::{Add, Sub};

use anyhow::{Context, anyhow};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Processes that are watched.
#[derive(Clone, Debug)]
pub(super) struct Processes {
    pids: Vec<u32>,
    ticks_per_second: f64,
}

/// CPU time since a process began, or between two looks, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cpu {
    pub(super) user_s: f64,
    pub(super) system_s: f64,
}

impl Cpu {
    pub(super) fn total_s(self) -> f64 {
        self.user_s + self.system_s
    }
}

impl Add for Cpu {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { user_s: self.user_s + other.user_s, system_s: self.system_s + other.system_s }
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { user_s: self.user_s - other.user_s, system_s: self.system_s - other.system_s }
    }
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) pss: u64,
    pub(super) rss: u64,
}

impl Processes {
    /// These processes; none is allowed, and uses nothing.
    pub(super) fn new(pids: Vec<u32>) -> Self {
        Self { pids, ticks_per_second: rustix::param::clock_ticks_per_second() as f64 }
    }

    /// This process.
    pub(super) fn own() -> Self {
        Self::new(vec![std::process::id()])
    }

    /// Nothing is watched.
    pub(super) fn is_empty(&self) -> bool {
        self.pids.is_empty()
    }

    /// CPU time of all of them.
    pub(super) fn cpu(&self) -> anyhow::Result<Cpu> {
        let mut sum = Cpu::default();
        for pid in &self.pids {
            let (user, system) = parse_stat(&read(*pid, "stat")?).context("/proc/PID/stat is unreadable")?;
            sum =
                sum + Cpu { user_s: user / self.ticks_per_second, system_s: system / self.ticks_per_second };
        }
        Ok(sum)
    }

    /// Memory of all of them.
    pub(super) fn memory(&self) -> anyhow::Result<Memory> {
        let mut sum = Memory::default();
        for pid in &self.pids {
            let rollup = read(*pid, "smaps_rollup")?;
            let field = |name| parse_kib(&rollup, name).context("/proc/PID/smaps_rollup is unreadable");
            sum.pss += field("Pss:")?;
            sum.rss += field("Rss:")?;
        }
        Ok(sum)
    }
}

fn read(pid: u32, file: &str) -> anyhow::Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path)
        .with_context(|| format!("--pid {pid}: cannot read {path}; does the process run, and is it yours?"))
}

/// User and system time in ticks: fields 14 and 15. The name, field 2, may contain anything, but ends with the last
/// parenthesis.
fn parse_stat(stat: &str) -> Option<(f64, f64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// A line as in `Pss:   1234 kB`, in bytes.
fn parse_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Keeps the calling thread on one core.
pub(super) fn pin(core: usize) -> anyhow::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(anyhow!("--pin {core}: cores are numbered from 0, at most {}", CpuSet::MAX_CPU - 1));
    }
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set)
        .with_context(|| format!("--pin {core}: this thread cannot run on that core"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_it_is_called() {
        let stat = "42 (a) b) (c) S 1 42 42 0 -1 4194560 1 0 0 0 150 25 0 0 20 0 1 0 100 1 1";
        assert_eq!(parse_stat(stat), Some((150.0, 25.0)));
        assert_eq!(parse_stat("42 (a"), None);
        assert_eq!(parse_kib("Rss:   12 kB\nPss:    7 kB\nPss_Dirty: 9 kB\n", "Pss:"), Some(7 * 1024));
    }

    #[test]
    fn this_process_uses_something_and_one_that_is_not_there_is_named() {
        let memory = Processes::own().memory().unwrap();
        assert!(memory.pss > 0 && memory.rss >= memory.pss, "{memory:?}");
        assert!(Processes::own().cpu().is_ok());
        let error = format!("{:#}", Processes::new(vec![u32::MAX]).cpu().unwrap_err());
        assert!(error.contains("--pid 4294967295"), "{error}");
        assert_eq!(Processes::new(vec![]).memory().unwrap(), Memory::default());
        assert!(pin(usize::MAX).is_err());
    }
}
