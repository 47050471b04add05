//! Ranges, lengths, alignment and attributes of open files.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_int;

use super::{check, offset, retry};

/// What fallocate(2) does with a range. None of them changes the file's length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fallocate {
    /// Reserves space; the bytes keep their value.
    Allocate,
    /// Gives the space back; the range reads as zeros.
    PunchHole,
    /// Keeps the space; the range reads as zeros.
    ZeroRange,
}

/// Applies `what` to `len` bytes at `at`.
///
/// # Errors
/// The system's error; `EOPNOTSUPP` where the file system or device cannot do it.
pub fn fallocate(fd: BorrowedFd<'_>, what: Fallocate, at: u64, len: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_KEEP_SIZE
        | match what {
            Fallocate::Allocate => 0,
            Fallocate::PunchHole => libc::FALLOC_FL_PUNCH_HOLE,
            Fallocate::ZeroRange => libc::FALLOC_FL_ZERO_RANGE,
        };
    let (at, len) = (offset(at)?, offset(len)?);
    retry(|| {
        // SAFETY: the descriptor is open for as long as it is borrowed; no memory is passed.
        unsafe { libc::fallocate64(fd.as_raw_fd(), mode, at, len) }
    })
    .map(drop)
}

/// Lets the page cache drop whole clean pages of a range. Only a hint, so that an error is none.
pub fn drop_cache(fd: BorrowedFd<'_>, at: u64, len: u64) {
    let (Ok(at), Ok(len)) = (offset(at), offset(len)) else {
        return;
    };
    // SAFETY: the descriptor is open for as long as it is borrowed; no memory is passed.
    let _ = unsafe { libc::posix_fadvise64(fd.as_raw_fd(), at, len, libc::POSIX_FADV_DONTNEED) };
}

/// The next byte of data at or behind `at`; `None` behind the last one.
///
/// # Errors
/// The system's error; `EINVAL` where holes are unknown.
pub fn seek_data(fd: BorrowedFd<'_>, at: u64) -> io::Result<Option<u64>> {
    seek(fd, at, libc::SEEK_DATA)
}

/// The next byte of a hole at or behind `at`, the end of the file being one; `None` behind the end.
///
/// # Errors
/// The system's error; `EINVAL` where holes are unknown.
pub fn seek_hole(fd: BorrowedFd<'_>, at: u64) -> io::Result<Option<u64>> {
    seek(fd, at, libc::SEEK_HOLE)
}

/// Moves the descriptor's offset, which nothing here uses: all reads and writes name theirs.
fn seek(fd: BorrowedFd<'_>, at: u64, whence: c_int) -> io::Result<Option<u64>> {
    // SAFETY: the descriptor is open for as long as it is borrowed; no memory is passed.
    let found = unsafe { libc::lseek64(fd.as_raw_fd(), offset(at)?, whence) };
    if found >= 0 {
        return Ok(Some(found.unsigned_abs()));
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        e => Err(e),
    }
}

/// What direct I/O on a file demands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectAlign {
    /// Alignment of memory.
    pub memory: u64,
    /// Alignment of offsets and lengths.
    pub offset: u64,
}

/// What statx(2) says that direct I/O demands; `None` where the kernel does not know.
///
/// # Errors
/// The system's error.
pub fn direct_align(fd: BorrowedFd<'_>) -> io::Result<Option<DirectAlign>> {
    // SAFETY: statx is plain numbers; all zeros is a valid value.
    let mut stx: libc::statx = unsafe { mem::zeroed() };
    let (flags, mask) = (libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN);
    check(
        // SAFETY: the path is a C string, stx outlives the call and has the size the kernel fills.
        unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), flags, mask, &raw mut stx) },
    )?;
    let known = stx.stx_mask & mask != 0 && stx.stx_dio_offset_align != 0;
    Ok(known.then(|| DirectAlign {
        memory: u64::from(stx.stx_dio_mem_align),
        offset: u64::from(stx.stx_dio_offset_align),
    }))
}

/// The length of a file as far as this machine knows it. Asks no server of a network file system, which would have
/// to be given first what was written.
///
/// # Errors
/// The system's error.
pub fn known_len(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: statx is plain numbers; all zeros is a valid value.
    let mut stx: libc::statx = unsafe { mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    let (fd, mask) = (fd.as_raw_fd(), libc::STATX_SIZE);
    // SAFETY: as above.
    check(unsafe { libc::statx(fd, c"".as_ptr(), flags, mask, &raw mut stx) })?;
    Ok(stx.stx_size)
}

/// The flags that chattr(1) shows, as the kernel numbers them.
///
/// # Errors
/// The system's error; `ENOTTY` or `EOPNOTSUPP` where the file system has none.
pub fn inode_flags(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    // The request's number names a long, of which the kernel uses an int.
    let mut flags: [c_int; 2] = [0; 2];
    // SAFETY: the request stores one int, a long at most, into flags, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_GETFLAGS, flags.as_mut_ptr()) })?;
    Ok(flags[0])
}

/// Replaces the flags of an inode.
///
/// # Errors
/// As [`inode_flags`]; `EPERM` without the right, `EROFS` on a file system that is mounted read-only.
pub fn set_inode_flags(fd: BorrowedFd<'_>, flags: c_int) -> io::Result<()> {
    let flags = [flags, 0];
    // SAFETY: the request reads one int, a long at most, from flags, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_SETFLAGS, flags.as_ptr()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn offsets_behind_the_last_one_are_refused() {
        let file = tempfile::tempfile().unwrap();
        let e = fallocate(file.as_fd(), Fallocate::Allocate, u64::MAX, 1).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EFBIG));
    }
}
