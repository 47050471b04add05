//! This process, its threads, and others.

use std::io;
use std::os::fd::OwnedFd;

use libc::{c_int, c_ulong};

use super::{check, owned};

/// Becomes the leader of a new session, without a controlling terminal.
///
/// # Errors
/// `EPERM` when the process leads a group already.
pub fn new_session() -> io::Result<()> {
    // SAFETY: no arguments, no memory.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Has programs that this process starts keep nothing open of what it has itself, but the three standard ones.
///
/// # Errors
/// `ENOSYS` or `EINVAL` before Linux 5.11.
pub fn pass_on_nothing() -> io::Result<()> {
    let (first, last, flags) = (3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: numbers only; nothing is closed in this process.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    check(c_int::try_from(done).unwrap_or(-1)).map(drop)
}

/// Has nobody but the owner write the files that this process makes, whatever its umask was.
pub fn deny_others_writing() {
    // SAFETY: numbers only; the call cannot fail.
    let before = unsafe { libc::umask(0o077) };
    // SAFETY: as above.
    unsafe { libc::umask(before | 0o022) };
}

/// Tells the kernel that this thread and those it starts later serve I/O, so that their memory
/// requests do not wait for that I/O (`PR_SET_IO_FLUSHER`).
///
/// # Errors
/// `EPERM` without `CAP_SYS_RESOURCE`, `EINVAL` before Linux 5.6.
pub fn become_io_flusher() -> io::Result<()> {
    const PR_SET_IO_FLUSHER: c_int = 57;
    let (on, unused): (c_ulong, c_ulong) = (1, 0);
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) }).map(drop)
}

/// Keeps the memory of the process from being paged out: what it has now is read in, and what it gets later stays
/// once it has been touched. Nothing is allocated that is not used.
///
/// # Errors
/// `EPERM` or `ENOMEM` without `CAP_IPC_LOCK`, where the limit `RLIMIT_MEMLOCK` is too low.
pub fn lock_memory() -> io::Result<()> {
    // SAFETY: numbers only; what is mapped stays mapped where it is.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT) })?;
    let later = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: as above.
    check(unsafe { libc::mlockall(later) }).map(drop)
}

/// Has the C library get every allocation of so many bytes or more from the system for itself, and give it back when it
/// is freed, if it can. Bitmaps are large, come and go; once the first was freed the allocator would keep the memory of the
/// others.
pub fn map_large_allocations(bytes: c_int) {
    #[cfg(target_env = "gnu")]
    // SAFETY: numbers only; the allocator changes its parameter under its lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, bytes);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}

/// The effective user.
#[must_use]
pub fn effective_uid() -> u32 {
    // SAFETY: no arguments; cannot fail.
    unsafe { libc::geteuid() }
}

/// The effective group.
#[must_use]
pub fn effective_gid() -> u32 {
    // SAFETY: no arguments; cannot fail.
    unsafe { libc::getegid() }
}

/// A descriptor that becomes readable when the process `pid` ends.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let flags: libc::c_uint = 0;
    // SAFETY: numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process_id(pid)?, flags) };
    owned(c_int::try_from(fd).unwrap_or(-1))
}

/// Sends `signal` to the process `pid`; signal 0 only asks whether it exists.
///
/// # Errors
/// `ESRCH` when there is no such process, `EPERM` when it is somebody else's.
pub fn kill(pid: u32, signal: c_int) -> io::Result<()> {
    // SAFETY: numbers only; process_id lets through neither 0 nor a group.
    check(unsafe { libc::kill(process_id(pid)?, signal) }).map(drop)
}

/// Sends `signal` to all processes of the group that `pid` leads.
///
/// # Errors
/// `ESRCH` when there is no such group.
pub fn kill_group(pid: u32, signal: c_int) -> io::Result<()> {
    // SAFETY: numbers only; process_id lets through neither 0 nor a negative number.
    check(unsafe { libc::kill(-process_id(pid)?, signal) }).map(drop)
}

/// 0 and negative numbers would mean whole groups of processes.
fn process_id(pid: u32) -> io::Result<libc::pid_t> {
    match libc::pid_t::try_from(pid) {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

/// Whether a process has a group among its supplementary ones; no, when that cannot be told.
#[must_use]
pub fn is_in_group(pid: u32, gid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    let mut groups = groups.unwrap_or_default().split_whitespace();
    groups.any(|group| group.parse() == Ok(gid))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::super::{POLL_IN, poll};
    use super::*;

    #[test]
    fn a_pidfd_becomes_readable_when_the_process_ends() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        let watched = [(pidfd.as_fd(), POLL_IN)];
        assert_eq!(poll(&watched, Some(Duration::ZERO)).unwrap(), [0]);
        kill(child.id(), 0).unwrap();
        kill(child.id(), libc::SIGKILL).unwrap();
        assert_eq!(
            poll(&watched, Some(Duration::from_secs(10))).unwrap(),
            [POLL_IN]
        );
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_thread_with_the_capability_becomes_an_io_flusher() {
        const CAP_SYS_RESOURCE: u64 = 24;
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let effective = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:\t"))
            .unwrap();
        let may = u64::from_str_radix(effective, 16).unwrap() >> CAP_SYS_RESOURCE & 1 == 1;
        // The mark stays with the thread.
        let answer = std::thread::spawn(become_io_flusher).join().unwrap();
        let expected = if may { None } else { Some(libc::EPERM) };
        assert_eq!(answer.err().and_then(|e| e.raw_os_error()), expected);
    }

    #[test]
    fn no_number_means_a_group_of_processes() {
        for pid in [0, u32::MAX, 1 << 31] {
            assert_eq!(
                kill(pid, 0).unwrap_err().raw_os_error(),
                Some(libc::ESRCH),
                "{pid}"
            );
            assert_eq!(
                pidfd_open(pid).unwrap_err().raw_os_error(),
                Some(libc::ESRCH),
                "{pid}"
            );
        }
    }
}
