//! The few things that the verbs ask of the system, each behind one thin function.
//!
//! Names of `io` that may still move are used here and nowhere else in the command line.

use std::fs::{self, DirEntry, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::io::mountpoint::{self, FSTYPE, Mounted};
use crate::io::runtime::{Entry, Runtime};
use crate::io::utab::Utab;
use crate::io::{filesystems, loopdev, pressure, sys};
use crate::set::Code;

/// A mounted unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Running {
    /// Its name.
    pub(super) unit: String,
    /// Its server; none when that has died, or is not ours to know.
    pub(super) pid: Option<u32>,
    /// Where it is mounted.
    pub(super) mountpoint: PathBuf,
}

impl Running {
    /// The file of the virtual unit.
    pub(super) fn file(&self) -> PathBuf {
        self.mountpoint.join(&self.unit)
    }

    /// The loop devices over the virtual unit; none when they cannot be seen.
    pub(super) fn loop_devices(&self) -> Vec<PathBuf> {
        loopdev::find(&self.file()).unwrap_or_else(|_| loops_by_name(&self.file()))
    }

    /// Whether its mount is among those of the system, be it under another one.
    pub(super) fn is_listed(&self) -> bool {
        // Where the list cannot be read nothing is known against it.
        mountpoint::is_listed(&self.unit, &self.mountpoint, self.pid).unwrap_or(true)
    }

    /// What is mounted over the unit, or stands in its place; none when nothing hides it.
    pub(super) fn covered_by(&self) -> Option<String> {
        match mountpoint::mounted(&self.mountpoint) {
            Ok(Some(top)) if top.is_unit(&self.unit) => None,
            Ok(Some(top)) if top.fstype == FSTYPE => Some(top.source.to_string_lossy().into()),
            Ok(Some(top)) => {
                let (source, fstype) = (top.source.to_string_lossy(), top.fstype.to_string_lossy());
                Some(format!("{source} ({fstype})"))
            }
            Ok(None) | Err(_) => None,
        }
    }
}

/// The devices that were bound to a file of this name: all that can be told when its server has died, or
/// without opening a device.
pub(super) fn loops_by_name(file: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    let is_over = |entry: &DirEntry| {
        let name = fs::read(entry.path().join("loop/backing_file"));
        name.is_ok_and(|name| name.trim_ascii_end() == file.as_os_str().as_bytes())
    };
    let entries = entries.flatten().filter(is_over);
    let mut devices: Vec<_> = entries
        .map(|entry| Path::new("/dev").join(entry.file_name()))
        .collect();
    devices.sort();
    devices
}

/// The unit that a loop device is over, by the name of the file that it is bound to and the list of mounts
/// alone: neither the device nor the unit is opened, so no server is waited for.
pub(super) fn unit_under(device: &Path) -> Result<Option<String>> {
    let name = device.file_name().unwrap_or_default();
    let file = Path::new("/sys/block").join(name).join("loop/backing_file");
    let file = match fs::read(&file) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => {
            read.map_err(|cause| Error::io(format!("cannot read {}", file.display()), cause))?
        }
    };
    let is_under = |unit: &Running| {
        file.trim_ascii_end() == unit.file().as_os_str().as_bytes() && unit.covered_by().is_none()
    };
    Ok(running()?
        .into_iter()
        .find(is_under)
        .map(|found| found.unit))
}

/// The runtime directory of this process.
///
/// # Errors
/// [`Code::Config`] for an ordinary user who has none.
pub(super) fn runtime() -> Result<Runtime> {
    Runtime::from_env().map_err(|error| match error.code() {
        Code::Config => {
            let says = "become root, or set XDG_RUNTIME_DIR: this user has no directory for the \
                        files of running units";
            Error::new(Code::Config, says)
                .with_hint("`sudo shadowset ...` sees the units of the system")
        }
        _ => error,
    })
}

/// All mounted units of this node, by name; also those whose server has died and left its mount.
pub(super) fn running() -> Result<Vec<Running>> {
    let entries = runtime()?.list()?;
    Ok(entries.into_iter().filter_map(one).collect())
}

fn one(entry: Entry) -> Option<Running> {
    let (unit, alive) = (entry.unit, entry.alive);
    // A unit without a mount point is being mounted or has been stopped.
    let mountpoint = entry.mountpoint?;
    let is_ours = || match mountpoint::mounted(&mountpoint) {
        Ok(Some(mounted)) => mounted.is_unit(&unit),
        Ok(None) | Err(_) => false,
    };
    let shown = alive || is_ours();
    let pid = entry.pid.filter(|_| alive);
    shown.then_some(Running {
        unit,
        pid,
        mountpoint,
    })
}

/// What ends a wait for a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// The control file differs from what was read.
    File,
    /// Something was mounted or unmounted.
    Mounts,
}

/// The kernel's list of mounts, to wait for a change of it from now on.
pub(super) fn mounts() -> io::Result<File> {
    File::open("/proc/self/mountinfo")
}

/// Waits until an open control file has changed since it was read, or until the list of mounts has;
/// nothing when the time is over.
pub(super) fn wait_for_change(
    file: BorrowedFd<'_>,
    mounts: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> io::Result<Option<Change>> {
    let events = sys::poll(&[(file, libc::POLLPRI), (mounts, libc::POLLPRI)], timeout)?;
    Ok(match events.as_slice() {
        [0, 0] => None,
        [0, _] => Some(Change::Mounts),
        _ => Some(Change::File),
    })
}

/// A handle on a process that tells its end; nothing when it has ended.
pub(super) fn process(pid: u32) -> io::Result<Option<OwnedFd>> {
    match sys::pidfd_open(pid) {
        Ok(fd) => Ok(Some(fd)),
        Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(cause) => Err(cause),
    }
}

/// Waits for the end of a process; false when the time is over.
pub(super) fn wait_for_end(process: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    let events = sys::poll(&[(process.as_fd(), libc::POLLIN)], Some(timeout))?;
    Ok(events.iter().any(|e| *e != 0))
}

/// Waits until a pipe can be read without waiting; false when the time is over.
pub(super) fn is_readable(pipe: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let events = sys::poll(&[(pipe, libc::POLLIN)], Some(timeout))?;
    Ok(events.iter().any(|e| *e != 0))
}

/// Kills a process that leads a group, with the whole group.
pub(super) fn kill_group(pid: u32) -> io::Result<()> {
    sys::kill_group(pid, libc::SIGKILL)
}

/// The other processes that have a file open, as `process 1234 (tar)`; those that may be looked at.
pub(super) fn others_with(file: &Path) -> Vec<String> {
    let own = format!("process {} (", std::process::id());
    let openers = fs::canonicalize(file).and_then(|file| filesystems::openers_of(&file));
    let mut openers = openers.unwrap_or_default();
    openers.retain(|process| !process.starts_with(&own));
    openers
}

/// Lets a process go on that was stopped by a signal; what cannot be known or done is not.
pub(super) fn continue_if_stopped(pid: u32) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before the state may hold anything.
    let is_stopped = stat
        .rsplit_once(')')
        .is_some_and(|(_, rest)| rest.starts_with(" T"));
    if is_stopped {
        let _ = sys::kill(pid, libc::SIGCONT);
    }
}

/// Gives a command that is to be started the signals as a shell gives them, whatever this process has done to its own.
pub(super) fn default_signals(command: &mut Command) {
    sys::unblock_signals(command);
}

/// Has signals that ask for the end of the process wait for it.
pub(super) fn hold_signals() -> io::Result<()> {
    sys::Signals::collect().map(drop)
}

/// Has the process need no disk to go on, if it may: its program may lie on what it freezes.
pub(super) fn stay_in_memory() {
    let _ = pressure::lock();
}

/// Freezes a file system.
pub(super) fn freeze(file: BorrowedFd<'_>) -> io::Result<()> {
    sys::freeze(file)
}

/// Thaws a file system.
pub(super) fn thaw(file: BorrowedFd<'_>) -> io::Result<()> {
    sys::thaw(file)
}

/// Opens a mount point, if the mount of this number is there.
pub(super) fn open_mount(mountpoint: &Path, mount_id: u64) -> Result<File> {
    filesystems::open(mountpoint, mount_id)
}

/// Waits for a while, and for nothing else.
pub(super) fn pause(time: Duration) -> io::Result<()> {
    sys::poll(&[], Some(time)).map(drop)
}

/// Takes the mount of a unit away: at once but only from the name space (`lazy`), or when nobody uses
/// it.
pub(super) fn unmount(unit: &Running, lazy: bool) -> Result<()> {
    mountpoint::unmount_unit(&unit.unit, &unit.mountpoint, lazy)
}

/// Makes the mount of a unit read-only, or lets it be written again.
pub(super) fn remount(unit: &Running, read_only: bool) -> Result<()> {
    mountpoint::remount_unit(&unit.unit, &unit.mountpoint, read_only)
}

/// The list of mounts that umount(8) looks at.
pub(super) fn utab() -> Utab {
    Utab::default()
}

/// What is mounted on a directory.
pub(super) fn mounted(dir: &Path) -> io::Result<Option<Mounted>> {
    mountpoint::mounted(dir)
}

/// Makes sure that a unit is what is mounted at its place.
pub(super) fn expect_mounted(unit: &Running) -> Result<()> {
    mountpoint::expect_unit(&unit.unit, &unit.mountpoint)
}

/// The unit that is mounted on a directory; none when something else is, or nothing.
pub(super) fn unit_at(dir: &Path) -> io::Result<Option<String>> {
    let on = mountpoint::mounted(dir)?.filter(|on| on.fstype == FSTYPE);
    Ok(on.and_then(|on| on.source.into_string().ok()))
}

/// Leaves the session of the launcher, so that its end is not ours.
pub(super) fn leave_session() -> Result<()> {
    sys::new_session().map_err(|cause| Error::io("cannot leave the session", cause))
}

/// Whether the process acts as root.
pub(super) fn is_root() -> bool {
    sys::effective_uid() == 0
}

/// The right to set up a loop device over the file of a unit, until it is dropped.
pub(super) fn loop_turn(file: &Path) -> Result<File> {
    const PAUSE: Duration = Duration::from_millis(20);
    const TRIES: u32 = 500;
    let failed = |cause| Error::io(format!("{} cannot be locked", file.display()), cause);
    let open = File::open(file).map_err(failed)?;
    for _ in 0..TRIES {
        if sys::try_flock(open.as_fd()).map_err(failed)? {
            return Ok(open);
        }
        pause(PAUSE).map_err(failed)?;
    }
    let says = format!("another program has locked {}", file.display());
    Err(Error::new(Code::InUse, says).with_hint("`lslocks` names it"))
}

/// Sets up a loop device with direct I/O over the file of a unit, whose blocks it has.
pub(super) fn loop_attach(file: &Path) -> Result<loopdev::Attached> {
    const BLOCK: u32 = 512;
    const { assert!(BLOCK as u64 == crate::set::geometry::BLOCK_BYTES) };
    loopdev::attach(file, true, BLOCK)
}

/// The loop devices over a file.
pub(super) fn loop_find(file: &Path) -> Result<Vec<PathBuf>> {
    loopdev::find(file)
}

/// Frees a loop device over a file.
pub(super) fn loop_detach(file: &Path, device: &Path) -> Result<()> {
    loopdev::detach_from(file, device)
}

/// Frees a loop device over a file of a unit whose server has ended.
pub(super) fn loop_detach_from_dead(file: &Path, device: &Path) -> Result<()> {
    loopdev::detach_from_dead(file, device)
}
