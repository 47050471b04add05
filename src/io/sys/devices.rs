//! Block devices.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_int;

use super::check;

/// `_IOR(0x12, 114, size_t)`: the request's number holds the size of its argument.
const BLKGETSIZE64: libc::Ioctl =
    ((2u32 << 30) | ((size_of::<usize>() as u32) << 16) | (0x12 << 8) | 114) as libc::Ioctl;

/// Bytes of a block device.
///
/// # Errors
/// The system's error.
pub fn device_size(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: u64 = 0;
    // SAFETY: BLKGETSIZE64 stores one u64 into bytes, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) })?;
    Ok(bytes)
}

/// Bytes of a block device's logical block: the unit of its requests.
///
/// # Errors
/// The system's error.
pub fn logical_block_size(fd: BorrowedFd<'_>) -> io::Result<u64> {
    device_u32(fd, libc::BLKSSZGET)
}

/// Bytes of a block device's physical block: the unit it writes without reading.
///
/// # Errors
/// The system's error.
pub fn physical_block_size(fd: BorrowedFd<'_>) -> io::Result<u64> {
    device_u32(fd, libc::BLKPBSZGET)
}

fn device_u32(fd: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<u64> {
    let mut bytes: u32 = 0;
    // SAFETY: both requests store one 32-bit number into bytes, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut bytes) })?;
    Ok(u64::from(bytes))
}

/// Sets or lifts the mark that forbids writing to a block device.
///
/// # Errors
/// The system's error.
pub fn set_device_read_only(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // `_IO(0x12, 93)`, counted from `_IO(0x12, 104)`: how numbers are made differs by architecture.
    const BLKROSET: libc::Ioctl = libc::BLKSSZGET - 11;
    let mark = c_int::from(on);
    // SAFETY: BLKROSET reads one int, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKROSET, &raw const mark) }).map(drop)
}
