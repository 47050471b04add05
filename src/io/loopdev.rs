//! Loop devices: a file as a block device.
//!
//! Attaching must not claim direct I/O that the kernel did not give; detaching must not claim that
//! a device is gone while somebody still uses it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::set::Code;

use super::sys::{self, LoopStatus};

/// How often a free device may be snatched away before attaching gives up.
const ATTEMPTS: usize = 64;

/// How long a program that only looks at a device may keep it from going.
const PATIENCE: Duration = Duration::from_secs(2);

/// A loop device that has been bound to a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    /// The device: `/dev/loopN`.
    pub device: PathBuf,
    /// Whether it bypasses the page cache of the file, as the kernel tells it.
    pub direct_io: bool,
}

/// Binds a free loop device to `file`. Where direct I/O is wanted and not given, the answer says so.
/// A `block_size` of 0 lets the kernel choose.
///
/// # Errors
/// `NoSuchFile`; `NotSupported` where there are no loop devices; the system's error.
pub fn attach(file: &Path, direct_io: bool, block_size: u32) -> Result<Attached> {
    let backing = File::options().read(true).write(true).open(file);
    let backing = backing.map_err(|e| failed(file, "cannot be opened", e))?;
    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .map_err(|e| {
            Error::new(Code::NotSupported, "loop devices cannot be used here").caused_by(e)
        })?;
    let no_device = |e| failed(file, "cannot be bound to a loop device", e);
    for _ in 0..ATTEMPTS {
        let number = sys::loop_get_free(control.as_fd()).map_err(no_device)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::options().read(true).write(true).open(&path);
        let device = device.map_err(|e| failed(&path, "cannot be opened", e))?;
        let name = file.as_os_str().as_bytes();
        match sys::loop_configure(device.as_fd(), backing.as_fd(), name, block_size, direct_io) {
            Ok(()) => return finish(number, path, &device),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) => return Err(no_device(e)),
        }
    }
    let text = format!("{ATTEMPTS} free loop devices were taken by other programs meanwhile");
    Err(Error::new(Code::InUse, text))
}

/// Asks the kernel what it did; a device that it cannot tell of is given back.
fn finish(number: u32, path: PathBuf, device: &File) -> Result<Attached> {
    match fs::read_to_string(format!("/sys/block/loop{number}/loop/dio")) {
        Ok(dio) => Ok(Attached {
            device: path,
            direct_io: dio.trim() == "1",
        }),
        Err(e) => {
            let e = failed(&path, "cannot be examined", e);
            sys::loop_clear(device.as_fd())
                .map_err(|e| failed(&path, "cannot be given back", e))?;
            Err(e)
        }
    }
}

/// Unbinds a loop device and makes sure that it is free afterwards.
///
/// # Errors
/// `InUse` when a file system or a program claims it, and nothing is changed; `InUse` too when it is
/// merely open somewhere, and then it goes at the last close. `NotMounted` when it is free already.
pub fn detach(device: &Path) -> Result<()> {
    let in_use = |how: &str| Error::new(Code::InUse, format!("{} {how}", device.display()));
    // The exclusive open is refused while somebody claims the device.
    let exclusive = File::options()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(device);
    let exclusive = exclusive.map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => {
            in_use("is mounted, or claimed by a program").with_hint("unmount what is on it first")
        }
        _ => failed(device, "cannot be opened", e),
    })?;
    let failed = |e| failed(device, "cannot be detached", e);
    let Some(bound) = sys::loop_status(exclusive.as_fd()).map_err(failed)? else {
        let text = format!("{} is bound to no file", device.display());
        return Err(Error::new(Code::NotMounted, text).with_hint("`losetup -a` lists the devices"));
    };
    sys::loop_clear(exclusive.as_fd()).map_err(failed)?;
    drop(exclusive);
    if is_gone(device, bound).map_err(failed)? {
        return Ok(());
    }
    Err(in_use("is open in a program").with_hint("it goes when that program closes it"))
}

/// Waits until the device has left its file; somebody may be looking at it, as udev does.
fn is_gone(device: &Path, bound: LoopStatus) -> io::Result<bool> {
    let end = Instant::now() + PATIENCE;
    loop {
        match sys::loop_status(File::open(device)?.as_fd())? {
            // Unbinding marks the device; without the mark somebody has bound it anew.
            Some(s) if s.autoclear && (s.device, s.inode) == (bound.device, bound.inode) => {}
            _ => return Ok(true),
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        sys::poll(&[], Some(Duration::from_millis(10)))?;
    }
}

/// The loop devices that are bound to `file`, whatever its name was then, in the order of their
/// numbers.
///
/// # Errors
/// `NoSuchFile`; the system's error.
pub fn find(file: &Path) -> Result<Vec<PathBuf>> {
    let meta = fs::metadata(file).map_err(|e| failed(file, "cannot be examined", e))?;
    let numbers = bound_to(&meta).map_err(|e| failed(file, "may be bound to a loop device", e))?;
    Ok(numbers
        .iter()
        .map(|number| PathBuf::from(format!("/dev/loop{number}")))
        .collect())
}

fn bound_to(file: &fs::Metadata) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("loop")?.parse().ok());
        if let Some(number) = number {
            if is_bound_to(number, file)? {
                found.push(number);
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Free devices are not opened. One that vanishes meanwhile, or has no node, is bound to nothing.
fn is_bound_to(number: u32, file: &fs::Metadata) -> io::Result<bool> {
    if !fs::exists(format!("/sys/block/loop{number}/loop/backing_file"))? {
        return Ok(false);
    }
    let device = match File::open(format!("/dev/loop{number}")) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENXIO)) => return Ok(false),
        other => other?,
    };
    let status = sys::loop_status(device.as_fd())?;
    Ok(status.is_some_and(|s| (s.device, s.inode) == (file.dev(), file.ino())))
}

fn failed(path: &Path, how: &str, e: io::Error) -> Error {
    Error::io(format!("{} {how}", path.display()), e)
}
