//! The few things that the verbs ask of the system, each behind one thin function.
//!
//! Names of `io` that may still move are used here and nowhere else in the command line.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::io::{loopdev, sys};
use crate::server::setup::Setup;
use crate::set::{Bytes, Code};

/// A mounted unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Running {
    /// Its name.
    pub(super) unit: String,
    /// Its server, when it is ours to know.
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
        loopdev::find(&self.file()).unwrap_or_default()
    }
}

/// All mounted units of this node, by name.
pub(super) fn running() -> Result<Vec<Running>> {
    let Ok(entries) = std::fs::read_dir(runtime_dir()) else {
        return Ok(Vec::new());
    };
    let mut units: Vec<Running> = entries.flatten().filter_map(|e| one(&e.path())).collect();
    units.sort_by(|a, b| a.unit.cmp(&b.unit));
    Ok(units)
}

fn one(dir: &Path) -> Option<Running> {
    let line = |name| {
        std::fs::read_to_string(dir.join(name))
            .ok()
            .map(|s| s.trim().to_owned())
    };
    let unit = dir.file_name()?.to_str()?.to_owned();
    Some(Running {
        unit,
        pid: line("pid")?.parse().ok(),
        mountpoint: line("mountpoint")?.into(),
    })
}

fn runtime_dir() -> PathBuf {
    std::env::var_os("SHADOWSET_RUNTIME_DIR").map_or_else(|| "/run/shadowset".into(), PathBuf::from)
}

/// Creates the member images and their storage control blocks.
pub(super) fn create(_: &Setup, _: Option<&str>, _: Option<Bytes>, _: bool) -> Result<()> {
    Err(Error::new(Code::NotSupported, "not merged"))
}

/// Waits until an open control file has changed since it was read; false when the time is over.
pub(super) fn wait_for_change(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
    let events = sys::poll(&[(fd, libc::POLLPRI)], timeout)?;
    Ok(events.iter().any(|e| *e != 0))
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

/// Waits for a while, and for nothing else.
pub(super) fn pause(time: Duration) -> io::Result<()> {
    sys::poll(&[], Some(time)).map(drop)
}

/// Takes a mount away: at once but only from the name space (`lazy`), or when nobody uses it.
pub(super) fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let path = CString::new(mountpoint.as_os_str().as_bytes()).map_err(io::Error::other)?;
    sys::unmount(&path, lazy)
}

/// Leaves the session of the launcher, so that its end is not ours.
pub(super) fn leave_session() -> Result<()> {
    sys::new_session().map_err(|cause| Error::io("cannot leave the session", cause))
}

/// Whether the process acts as root.
pub(super) fn is_root() -> bool {
    sys::effective_uid() == 0
}

/// Sets up a loop device with direct I/O over a file.
pub(super) fn loop_attach(file: &Path) -> Result<loopdev::Attached> {
    loopdev::attach(file, true, 0)
}

/// The loop devices over a file.
pub(super) fn loop_find(file: &Path) -> Result<Vec<PathBuf>> {
    loopdev::find(file)
}

/// Frees a loop device.
pub(super) fn loop_detach(device: &Path) -> Result<()> {
    loopdev::detach(device)
}
