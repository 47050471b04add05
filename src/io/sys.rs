//! System calls that std lacks, as small safe functions.
//!
//! The only file with `unsafe`. Each function is one call: it checks nothing but its own arguments,
//! decides nothing and keeps no state. What a call means for a member is told by its callers. Beside them
//! stands [`lend`], for who may not come back from a call.
#![allow(unsafe_code)]

pub mod uring;

use std::cell::Cell;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libc::{c_int, c_ulong, off64_t};

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

/// Becomes the leader of a new session, without a controlling terminal.
///
/// # Errors
/// `EPERM` when the process leads a group already.
pub fn new_session() -> io::Result<()> {
    // SAFETY: no arguments, no memory.
    check(unsafe { libc::setsid() }).map(drop)
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

/// Data can be read.
pub const POLL_IN: i16 = libc::POLLIN;
/// Data can be written.
pub const POLL_OUT: i16 = libc::POLLOUT;
/// Something exceptional: a watched file of a control tree has changed.
pub const POLL_PRI: i16 = libc::POLLPRI;
/// An error; always watched.
pub const POLL_ERR: i16 = libc::POLLERR;
/// The other side is gone; always watched.
pub const POLL_HUP: i16 = libc::POLLHUP;

/// Waits until one of the descriptors has one of its events; the events of each, in order, all 0
/// when the time is over. `None` waits for ever. With no descriptor it only waits.
///
/// # Errors
/// The system's error. Signals do not end it.
pub fn poll(fds: &[(BorrowedFd<'_>, i16)], timeout: Option<Duration>) -> io::Result<Vec<i16>> {
    let pollfd = |&(fd, events): &(BorrowedFd<'_>, i16)| libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    let mut polled: Vec<_> = fds.iter().map(pollfd).collect();
    let end = timeout.and_then(|t| Instant::now().checked_add(t));
    retry(|| {
        let left = end.map_or(-1, |end| {
            milliseconds(end.saturating_duration_since(Instant::now()))
        });
        // SAFETY: the array has as many entries as are named, and outlives the call; the
        // descriptors are open for as long as they are borrowed.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, left) }
    })?;
    Ok(polled.iter().map(|p| p.revents).collect())
}

/// Rounded up, so that a wait never ends before its time.
fn milliseconds(time: Duration) -> c_int {
    c_int::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX)
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

/// Bytes of a thread that is in [`lend`], for other threads to read meanwhile.
#[derive(Clone, Debug)]
pub struct Loan(Arc<Mutex<Option<Lent>>>);

#[derive(Clone, Copy, Debug)]
struct Lent {
    bytes: *const u8,
    len: usize,
}

// SAFETY: the pointer is read in Loan::with alone, where the bytes are borrowed still.
unsafe impl Send for Lent {}

/// Lets other threads read `bytes` until `during` returns: a thread that waits in a system call cannot hand
/// on what it has only borrowed.
pub fn lend<R>(bytes: &[u8], during: impl FnOnce(&Loan) -> R) -> R {
    struct Revoke(Loan);
    impl Drop for Revoke {
        fn drop(&mut self) {
            *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
    thread_local! {
        /// The last loan of the thread, to be used again: lending allocates nothing then.
        static LAST: Cell<Option<Loan>> = const { Cell::new(None) };
    }
    let lent = Lent {
        bytes: bytes.as_ptr(),
        len: bytes.len(),
    };
    // Who has a copy of the last one still must not see these bytes by it.
    let last = LAST.take().filter(|last| Arc::strong_count(&last.0) == 1);
    let loan = last.unwrap_or_else(|| Loan(Arc::default()));
    *loan.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(lent);
    let revoke = Revoke(loan);
    let result = during(&revoke.0);
    LAST.set(Some(revoke.0.clone()));
    result
}

impl Loan {
    /// Reads the bytes, if they are lent still; the lender waits for the end of it.
    pub fn with<R>(&self, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let lent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Lent { bytes, len } = (*lent)?;
        // SAFETY: `lend` borrows the bytes until it has emptied this option under the lock that is held here,
        // also when it unwinds; a slice's pointer and length are what they were taken from.
        Some(read(unsafe { std::slice::from_raw_parts(bytes, len) }))
    }
}

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

fn check(ret: c_int) -> io::Result<c_int> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// Repeats a call that a signal interrupted.
fn retry(mut call: impl FnMut() -> c_int) -> io::Result<c_int> {
    loop {
        match check(call()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn offset(bytes: u64) -> io::Result<off64_t> {
    off64_t::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    use super::super::testing::eventually;
    use super::*;

    #[test]
    fn what_is_lent_can_be_read_until_the_lender_goes_on() {
        let (lent_tx, lent) = crossbeam_channel::bounded(1);
        let (go_tx, go) = crossbeam_channel::bounded::<()>(0);
        let lender = std::thread::spawn(move || {
            let bytes = vec![7; 4096];
            lend(&bytes, |loan| {
                lent_tx.send(loan.clone()).unwrap();
                let _ = go.recv();
            });
        });
        let loan = lent.recv().unwrap();
        assert_eq!(loan.with(<[u8]>::to_vec), Some(vec![7; 4096]));
        drop(go_tx);
        lender.join().unwrap();
        assert_eq!(loan.with(<[u8]>::len), None);
        let kept = lend(&[1], Loan::clone);
        lend(&[2], |_| {
            assert_eq!(kept.with(<[u8]>::len), None, "another loan");
        });
        let unwound = std::panic::catch_unwind(|| lend(&[1], |loan| panic!("{loan:?}")));
        assert!(unwound.is_err());
    }

    #[test]
    fn poll_tells_which_descriptor_is_ready() {
        let (a_read, _a_write) = UnixStream::pair().unwrap();
        let (b_read, mut b_write) = UnixStream::pair().unwrap();
        let fds = [(a_read.as_fd(), POLL_IN), (b_read.as_fd(), POLL_IN)];
        assert_eq!(poll(&fds, Some(Duration::ZERO)).unwrap(), [0, 0]);
        b_write.write_all(b"x").unwrap();
        assert_eq!(poll(&fds, None).unwrap(), [0, POLL_IN]);
    }

    #[test]
    fn poll_waits_its_time() {
        let start = Instant::now();
        assert!(
            poll(&[], Some(Duration::from_micros(20_500)))
                .unwrap()
                .is_empty()
        );
        assert!(start.elapsed() >= Duration::from_micros(20_500));
    }

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

    /// Root without the capability is common in containers.
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

    #[test]
    fn offsets_behind_the_last_one_are_refused() {
        let file = tempfile::tempfile().unwrap();
        let e = fallocate(file.as_fd(), Fallocate::Allocate, u64::MAX, 1).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EFBIG));
    }
}
