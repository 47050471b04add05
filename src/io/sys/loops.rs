//! Loop devices.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_ulong;

use super::check;

/// What a loop device is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoopStatus {
    /// Device number of the file system that holds the backing file, as st_dev has it.
    pub device: u64,
    /// Inode of the backing file.
    pub inode: u64,
    /// First byte of the file that the device shows.
    pub offset: u64,
    /// Whether the kernel unbinds the device at its last close.
    pub autoclear: bool,
    /// Whether it bypasses the page cache of the backing file.
    pub direct_io: bool,
}

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_SET_DIRECT_IO: libc::Ioctl = 0x4C08;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;

/// The number of a loop device that is free at this moment; made if there is none.
///
/// # Errors
/// The system's error.
pub fn loop_get_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: the request takes no argument.
    let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
    Ok(number.unsigned_abs())
}

/// Binds a free loop device to `backing`, in one step. `name` is what LOOP_GET_STATUS64 tells of the
/// backing file, cut to 63 bytes; a `block_size` of 0 lets the kernel choose.
///
/// # Errors
/// `EBUSY` when somebody else was quicker.
pub fn loop_configure(
    device: BorrowedFd<'_>,
    backing: BorrowedFd<'_>,
    name: &[u8],
    block_size: u32,
    direct_io: bool,
) -> io::Result<()> {
    let mut info = empty_loop_info();
    for (to, from) in info.file_name.iter_mut().take(63).zip(name) {
        *to = *from;
    }
    info.flags = if direct_io { LO_FLAGS_DIRECT_IO } else { 0 };
    let fd = backing.as_raw_fd().unsigned_abs();
    let config = LoopConfig {
        fd,
        block_size,
        info,
        reserved: [0; 8],
    };
    // SAFETY: config is the struct that LOOP_CONFIGURE reads, and outlives the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }).map(drop)
}

/// What a loop device is bound to; `None` when it is free.
///
/// # Errors
/// The system's error.
pub fn loop_status(device: BorrowedFd<'_>) -> io::Result<Option<LoopStatus>> {
    let mut info = empty_loop_info();
    // SAFETY: info is the struct that LOOP_GET_STATUS64 fills, and outlives the call.
    match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) }) {
        Ok(_) => Ok(Some(LoopStatus {
            device: info.device,
            inode: info.inode,
            offset: info.offset,
            autoclear: info.flags & LO_FLAGS_AUTOCLEAR != 0,
            direct_io: info.flags & LO_FLAGS_DIRECT_IO != 0,
        })),
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Switches direct I/O of a bound loop device.
///
/// # Errors
/// `EINVAL` where the backing file cannot do it.
pub fn loop_set_direct_io(device: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // SAFETY: a number is passed by value.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_DIRECT_IO, c_ulong::from(on)) })
        .map(drop)
}

/// Unbinds a loop device, at the latest when its last user closes it.
///
/// # Errors
/// `ENXIO` when it is free already.
pub fn loop_clear(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) }).map(drop)
}

fn empty_loop_info() -> LoopInfo {
    // SAFETY: LoopInfo is plain numbers; all zeros is a valid value.
    unsafe { mem::zeroed() }
}
