//! Making the process fit to serve I/O when memory is short.
//!
//! Dirty pages of a file system on the unit are written by this process: it must not wait for memory
//! that only its own work can free, must not be paged out, and must not be killed for memory. What it
//! may not have it does without. Nothing here knows what the process does.

use std::fs;
use std::io;

use super::sys;

/// No memory pressure ends the process.
const NEVER_KILLED: &str = "-1000";

/// What the process could get, each with the reason where it could not.
#[derive(Debug)]
pub struct Fitness {
    /// Its memory requests do not wait for the I/O that it serves.
    flusher: io::Result<()>,
    /// Its memory is not paged out.
    locked: io::Result<()>,
    /// It is not killed to free memory.
    spared: io::Result<()>,
}

impl Fitness {
    /// Gets what can be got, for this thread and those that it starts later.
    #[must_use]
    pub fn get() -> Self {
        Self {
            flusher: sys::become_io_flusher(),
            locked: lock(),
            spared: fs::write("/proc/self/oom_score_adj", NEVER_KILLED),
        }
    }

    /// One sentence of what the process has, and of what it lacks and why; whether it lacks something by more than a
    /// missing privilege.
    #[must_use]
    pub fn told(&self) -> (String, bool) {
        let all = [
            (
                &self.flusher,
                "waits for no I/O of its own",
                "may wait for its own I/O",
            ),
            (&self.locked, "is not paged out", "may be paged out"),
            (&self.spared, "is not killed", "may be killed"),
        ];
        let says = all.map(|(got, good, bad)| match got {
            Ok(()) => good.to_owned(),
            Err(error) => format!("{bad} ({error})"),
        });
        let is_odd = |(got, ..): &(&io::Result<()>, _, _)| {
            got.as_ref().is_err_and(|error| !is_privilege(error))
        };
        let says = format!("when memory is short the server {}", says.join(", "));
        (says, all.iter().any(is_odd))
    }
}

/// Locks memory, unless a limit on that would make later allocations fail.
///
/// # Errors
/// `EPERM` where there is such a limit; the system's error.
pub fn lock() -> io::Result<()> {
    let (status, limits) = ("/proc/self/status", "/proc/self/limits");
    let may = is_unlimited(&fs::read_to_string(limits)?)
        || may_lock(&fs::read_to_string(status)?).unwrap_or(false);
    match may {
        true => sys::lock_memory(),
        false => Err(io::Error::from_raw_os_error(libc::EPERM)),
    }
}

/// Whether the soft limit of locked memory is none.
fn is_unlimited(limits: &str) -> bool {
    let mut lines = limits.lines();
    let limit = lines.find_map(|line| line.strip_prefix("Max locked memory"));
    limit.is_some_and(|values| values.trim_start().starts_with("unlimited"))
}

/// Whether the process is above that limit.
fn may_lock(status: &str) -> Option<bool> {
    const CAP_IPC_LOCK: u32 = 14;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(line.trim(), 16).ok()?;
    Some(effective >> CAP_IPC_LOCK & 1 == 1)
}

fn is_privilege(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_locked_only_where_no_limit_can_strike_later() {
        let limits =
            |soft| format!("Max processes  1 1 processes\nMax locked memory  {soft}  8 bytes\n");
        assert!(is_unlimited(&limits("unlimited")) && !is_unlimited(&limits("8388608")));
        assert!(!is_unlimited(""));
        let status = |caps| format!("Name:\tx\nCapEff:\t{caps}\nCapBnd:\t0\n");
        assert_eq!(may_lock(&status("000001fffeffffff")), Some(true));
        assert_eq!(may_lock(&status("000001ffffffbfff")), Some(false));
        assert_eq!(may_lock("Name:\tx\n"), None);
    }

    #[test]
    fn what_is_lacking_is_told_with_its_reason() {
        let fitness = |errno: Option<i32>| Fitness {
            flusher: Ok(()),
            locked: errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno))),
            spared: Ok(()),
        };
        let text = |locked| {
            format!(
                "when memory is short the server waits for no I/O of its own, {locked}, is not killed"
            )
        };
        assert_eq!(fitness(None).told(), (text("is not paged out"), false));
        let lacks = "may be paged out (Operation not permitted (os error 1))";
        assert_eq!(fitness(Some(libc::EPERM)).told(), (text(lacks), false));
        assert!(!fitness(Some(libc::EACCES)).told().1);
        assert!(
            fitness(Some(libc::ENOMEM)).told().1,
            "no privilege is missing"
        );
    }
}
