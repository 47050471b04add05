//! Signals as data.

use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{POLL_IN, owned, poll};

/// Has the program of `command` begin with no signal blocked, whatever the thread has blocked that starts it.
pub fn unblock_signals(command: &mut Command) {
    // SAFETY: the function makes two calls that may be made between fork and exec, and allocates nothing.
    unsafe { command.pre_exec(unblock_all) };
}

fn unblock_all() -> io::Result<()> {
    // SAFETY: a signal set is plain memory; sigemptyset gives it its value below.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: set outlives the calls.
    let ret = unsafe {
        libc::sigemptyset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut())
    };
    match ret {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Signals as a descriptor, readable when one is pending.
#[derive(Debug)]
pub struct Signals {
    file: File,
}

impl Signals {
    /// Blocks `SIGTERM`, `SIGINT` and `SIGHUP` in this thread and those it starts later, and
    /// collects them here instead. Call it before any thread is started.
    ///
    /// # Errors
    /// The system's error.
    pub fn collect() -> io::Result<Self> {
        // SAFETY: a signal set is plain memory; sigemptyset gives it its value below.
        let mut set: libc::sigset_t = unsafe { mem::zeroed() };
        // SAFETY: set outlives the calls, the numbers are valid signals.
        let ret = unsafe {
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::sigaddset(&raw mut set, libc::SIGHUP);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
        };
        if ret != 0 {
            return Err(io::Error::from_raw_os_error(ret));
        }
        // SAFETY: set outlives the call; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
        owned(fd).map(|fd| Self {
            file: File::from(fd),
        })
    }

    /// The next signal's number. Waits for one; poll the descriptor to wait with a deadline.
    ///
    /// # Errors
    /// The system's error.
    pub fn next(&self) -> io::Result<i32> {
        self.read().map(|(signal, _)| signal)
    }

    /// The next signal, and whether a process has sent it rather than the kernel, as a terminal has it do. Nothing
    /// once `end` is readable.
    ///
    /// # Errors
    /// The system's error.
    pub fn next_before(&self, end: BorrowedFd<'_>) -> io::Result<Option<(i32, bool)>> {
        let events = poll(&[(self.file.as_fd(), POLL_IN), (end, POLL_IN)], None)?;
        match events.as_slice() {
            [_, 0] => self.read().map(Some),
            _ => Ok(None),
        }
    }

    fn read(&self) -> io::Result<(i32, bool)> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        (&self.file).read_exact(&mut info)?;
        // The number, an errno, and the code.
        let [a, b, c, d, _, _, _, _, e, f, g, h, ..] = info;
        let code = i32::from_ne_bytes([e, f, g, h]);
        Ok((i32::from_ne_bytes([a, b, c, d]), code <= 0))
    }

    /// Lets this thread be ended by signals again, and those that it starts later.
    ///
    /// # Errors
    /// The system's error.
    pub fn release(self) -> io::Result<()> {
        unblock_all()
    }
}

impl std::os::fd::AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn signals_arrive_as_data() {
        // In a thread of its own: the mask stays with it.
        std::thread::spawn(|| {
            let signals = Signals::collect().unwrap();
            // SAFETY: the signal is blocked in this thread and directed to it alone.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGHUP) };
            let watched = [(signals.as_fd(), POLL_IN)];
            assert_eq!(
                poll(&watched, Some(Duration::from_secs(10))).unwrap(),
                [POLL_IN]
            );
            assert_eq!(signals.next().unwrap(), libc::SIGHUP);
            assert_eq!(poll(&watched, Some(Duration::ZERO)).unwrap(), [0]);
        })
        .join()
        .unwrap();
    }
}
