//! What processes cost, as /proc tells it.

use std::fs;

/// Ticks of a second in /proc/PID/stat, for every program on Linux.
const TICKS: f64 = 100.0;

/// Seconds of processor that they have used.
pub(crate) fn cpu_seconds(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in brackets and may hold anything.
        let (_, behind) = stat.rsplit_once(')')?;
        let numbers = behind.split_whitespace().skip(11).take(2);
        numbers
            .map(|number| number.parse::<f64>().ok())
            .sum::<Option<f64>>()
    };
    pids.iter().filter_map(ticks).sum::<f64>() / TICKS
}

/// What is resident now, in MiB; nothing without processes.
pub(crate) fn resident(pids: &[u32]) -> Option<f64> {
    memory(pids, "VmRSS:")
}

/// The most that was resident since [`forget_peak`].
pub(crate) fn peak(pids: &[u32]) -> Option<f64> {
    memory(pids, "VmHWM:")
}

/// Has the peak begin with what is resident now. Where that is refused it goes on.
pub(crate) fn forget_peak(pids: &[u32]) {
    for pid in pids {
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
    }
}

fn memory(pids: &[u32], key: &str) -> Option<f64> {
    let kib = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()
    };
    let sum = pids.iter().map(kib).sum::<Option<f64>>()?;
    (!pids.is_empty()).then_some(sum / 1024.0)
}
