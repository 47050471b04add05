//! Mounts, and file systems as a whole.

use std::ffi::CStr;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_ulong};

use super::check;

/// Mounts; see mount(2).
///
/// # Errors
/// The system's error.
pub fn mount(
    source: &CStr,
    target: &CStr,
    fstype: &CStr,
    flags: c_ulong,
    data: &CStr,
) -> io::Result<()> {
    let (source, target, fstype) = (source.as_ptr(), target.as_ptr(), fstype.as_ptr());
    // SAFETY: four C strings that outlive the call; the kernel copies them.
    check(unsafe { libc::mount(source, target, fstype, flags, data.as_ptr().cast()) }).map(drop)
}

/// Unmounts without following a symbolic link; `lazy` lets open files live on.
///
/// # Errors
/// The system's error; `EBUSY` when it is used and `lazy` is false.
pub fn unmount(target: &CStr, lazy: bool) -> io::Result<()> {
    let flags = libc::UMOUNT_NOFOLLOW | if lazy { libc::MNT_DETACH } else { 0 };
    // SAFETY: a C string that outlives the call.
    check(unsafe { libc::umount2(target.as_ptr(), flags) }).map(drop)
}

/// The filesystem ioctl `_IOWR('X', number, int)`.
const fn filesystem_request(number: u32) -> libc::Ioctl {
    ((3u32 << 30) | ((size_of::<c_int>() as u32) << 16) | (0x58 << 8) | number) as libc::Ioctl
}

/// Writes back the file system that holds `fd`, and holds all writes to it until [`thaw`].
///
/// # Errors
/// `EBUSY` when it is frozen already; `EOPNOTSUPP` where it cannot be.
pub fn freeze(fd: BorrowedFd<'_>) -> io::Result<()> {
    let unused: c_int = 0;
    // SAFETY: the request passes its argument by value and does not look at it.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), filesystem_request(119), unused) }).map(drop)
}

/// Lets a frozen file system go on.
///
/// # Errors
/// `EINVAL` when it is not frozen.
pub fn thaw(fd: BorrowedFd<'_>) -> io::Result<()> {
    let unused: c_int = 0;
    // SAFETY: the request passes its argument by value and does not look at it.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), filesystem_request(120), unused) }).map(drop)
}

/// Bytes that the file system of `fd` can still take from an ordinary user.
///
/// # Errors
/// The system's error.
pub fn free_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: statvfs is plain numbers; all zeros is a valid value.
    let mut stat: libc::statvfs64 = unsafe { mem::zeroed() };
    // SAFETY: stat is what the call fills, and outlives it.
    check(unsafe { libc::fstatvfs64(fd.as_raw_fd(), &raw mut stat) })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
