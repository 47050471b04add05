//! Locks and leases of open files.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_int;

use super::check;

/// Takes a write lock on the whole file, held by the open file description; false when another
/// open file holds one.
///
/// # Errors
/// The system's error.
pub fn try_lock(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut lock = whole_file_lock();
    // SAFETY: lock outlives the call and is the struct that F_OFD_SETLK reads.
    match check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) }) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Has programs that this process starts keep `fd` open, and the locks of its open file with it.
///
/// # Errors
/// The system's error.
pub fn pass_on(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: numbers only; the descriptor is open for as long as it is borrowed.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) }).map(drop)
}

/// Takes the lock of flock(2), which other programs know; false when another open file holds it.
///
/// # Errors
/// The system's error.
pub fn try_flock(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: flock touches no memory of ours.
    match check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether another open file holds a lock that [`try_lock`] would meet. Takes nothing.
///
/// # Errors
/// The system's error.
pub fn is_locked(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut lock = whole_file_lock();
    // SAFETY: lock outlives the call and is the struct that F_OFD_GETLK reads and fills.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    Ok(c_int::from(lock.l_type) != libc::F_UNLCK)
}

/// Takes a read lease on a file that is open for reading only: who opens it for writing waits until the
/// lease is given back, at most `/proc/sys/fs/lease-break-time` seconds. Closing the file gives it back.
///
/// The kernel would end the process with `SIGIO`; `SIGURG` is sent instead, which nobody waits for.
///
/// # Errors
/// `EAGAIN` when somebody has the file open for writing; `EACCES` when it is somebody else's; `EINVAL` or
/// `EOPNOTSUPP` where the file system has no leases.
pub fn take_read_lease(fd: BorrowedFd<'_>) -> io::Result<()> {
    // The same number on every architecture that Rust has, and missing in the crate.
    const F_SETSIG: c_int = 10;
    // SAFETY: numbers only; the descriptor is open for as long as it is borrowed.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, libc::SIGURG) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) }).map(drop)
}

/// Whether the read lease of an open file is there and nobody waits for its end.
///
/// # Errors
/// The system's error.
pub fn has_read_lease(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: numbers only; the descriptor is open for as long as it is borrowed.
    let kind = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETLEASE) })?;
    Ok(kind == libc::F_RDLCK)
}

fn whole_file_lock() -> libc::flock {
    // SAFETY: flock is plain numbers; all zeros is a valid value and means "from 0 to the end".
    let mut lock: libc::flock = unsafe { mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use super::super::super::testing::eventually;
    use super::*;

    #[test]
    fn a_lock_belongs_to_the_open_file() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            options.open(dir.path().join("lock")).unwrap()
        };
        let (one, two) = (open(), open());
        assert!(!is_locked(two.as_fd()).unwrap());
        assert!(try_lock(one.as_fd()).unwrap());
        assert!(
            try_lock(one.as_fd()).unwrap(),
            "its own lock does not stop it"
        );
        assert!(is_locked(two.as_fd()).unwrap());
        assert!(!try_lock(two.as_fd()).unwrap());
        // POSIX locks would vanish when any descriptor of the file is closed.
        drop(open());
        assert!(!try_lock(two.as_fd()).unwrap());
        drop(one);
        eventually(|| try_lock(two.as_fd()).unwrap().then_some(()));
    }
}
