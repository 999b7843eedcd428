//! Metrics of the process, under the names that Prometheus' own clients use, and of its runtime.
//!
//! Linux only, as the kernel's `/proc` is where they come from; elsewhere they are absent (`proc(5)`).

use std::fs;

use tokio::runtime::Handle;

use super::{Registry, observe};

/// Registers what can be told here.
pub(super) fn register(registry: &mut Registry) {
    if resident_bytes().is_some() {
        observe(registry, "process_resident_memory_bytes", "Memory that the process holds", || {
            resident_bytes().unwrap_or_default()
        });
    }
    if open_descriptors().is_some() {
        observe(registry, "process_open_fds", "File descriptors that the process holds", || {
            open_descriptors().unwrap_or_default()
        });
    }
    if let Ok(runtime) = Handle::try_current() {
        observe(registry, "headwater_tokio_tasks", "Tasks that have not ended", move || {
            runtime.metrics().num_alive_tasks() as u64
        });
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn open_descriptors() -> Option<u64> {
    // Listing the directory opens one more.
    fs::read_dir("/proc/self/fd").ok().map(|entries| (entries.count() as u64).saturating_sub(1))
}
