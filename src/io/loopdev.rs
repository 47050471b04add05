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

use super::filesystems;
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
    /// Bytes of its logical block, as the kernel tells it.
    pub block_size: u64,
}

/// Binds a free loop device to `file`. Where direct I/O is wanted and not given, the answer says so.
/// A `block_size` of 0 lets the kernel choose. What the kernel has made is looked at before it is given out: the file, its
/// first byte and its size, and the block size.
///
/// # Errors
/// `NoSuchFile`; `NotSupported` where there are no loop devices; `Io` when the device is not what was asked for, and then
/// it is given back; the system's error.
pub fn attach(file: &Path, direct_io: bool, block_size: u32) -> Result<Attached> {
    let backing = File::options().read(true).write(true).open(file);
    let backing = backing.map_err(|e| failed(file, "cannot be opened", e))?;
    let (number, path, device) = bind(&backing, file, direct_io, block_size)?;
    finish(number, path, &device, &backing, block_size)
}

/// Binds a free loop device to `file` for reading only: the kernel refuses each write to the device.
///
/// # Errors
/// As [`attach`].
pub fn attach_read_only(file: &Path) -> Result<PathBuf> {
    // A device over a file that is open for reading is read-only from its start.
    let backing = File::open(file).map_err(|e| failed(file, "cannot be opened", e))?;
    bind(&backing, file, false, 0).map(|(_, path, _)| path)
}

/// The number, path and open file of a device that is now bound to `backing`.
fn bind(
    backing: &File,
    file: &Path,
    direct_io: bool,
    block_size: u32,
) -> Result<(u32, PathBuf, File)> {
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
            Ok(()) => return Ok((number, path, device)),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) => return Err(no_device(e)),
        }
    }
    let text = format!("{ATTEMPTS} free loop devices were taken by other programs meanwhile");
    Err(Error::new(Code::InUse, text))
}

/// Asks the kernel what it did; a device that it cannot tell of, or that is another than was asked for, is given back.
fn finish(
    number: u32,
    path: PathBuf,
    device: &File,
    backing: &File,
    block_size: u32,
) -> Result<Attached> {
    let looked = direct_io_of(number, device).and_then(|direct_io| {
        let other = other_than(device, backing, block_size)?;
        Ok((direct_io, sys::logical_block_size(device.as_fd())?, other))
    });
    let error = match looked {
        Ok((direct_io, block_size, None)) => {
            return Ok(Attached {
                device: path,
                direct_io,
                block_size,
            });
        }
        Ok((_, _, Some(how))) => Error::new(
            Code::Io,
            format!("{} is not as it was asked for: {how}", path.display()),
        ),
        Err(e) => failed(&path, "cannot be examined", e),
    };
    sys::loop_clear(device.as_fd()).map_err(|e| failed(&path, "cannot be given back", e))?;
    Err(error)
}

/// In which way a new device is another than was asked for.
fn other_than(device: &File, backing: &File, block_size: u32) -> io::Result<Option<String>> {
    let (meta, block) = (
        backing.metadata()?,
        sys::logical_block_size(device.as_fd())?,
    );
    let is_bound = sys::loop_status(device.as_fd())?.is_some_and(|s| {
        (s.device, s.inode, s.offset, s.autoclear) == (meta.dev(), meta.ino(), 0, false)
    });
    if !is_bound {
        return Ok(Some("it is bound to something else".to_owned()));
    }
    if block_size != 0 && block != u64::from(block_size) {
        return Ok(Some(format!(
            "its blocks have {block} bytes, not {block_size}"
        )));
    }
    // A device over a device has the size of that, which its metadata does not tell.
    let (size, expected) = (
        sys::device_size(device.as_fd())?,
        meta.len() / block * block,
    );
    let is_short = meta.is_file() && size != expected;
    Ok(is_short.then(|| format!("it has {size} bytes, not {expected}")))
}

/// Lifts the mark of an earlier user that the device is read-only, which outlives its binding.
fn direct_io_of(number: u32, device: &File) -> io::Result<bool> {
    sys::set_device_read_only(device.as_fd(), false)?;
    let dio = fs::read_to_string(format!("/sys/block/loop{number}/loop/dio"))?;
    Ok(dio.trim() == "1")
}

/// Unbinds a loop device and makes sure that it is free afterwards.
///
/// # Errors
/// `InUse` when a file system or a program claims it, and nothing is changed; `InUse` too when it is
/// merely open somewhere, and then it goes at the last close. `NotMounted` when it is free already.
pub fn detach(device: &Path) -> Result<()> {
    unbind(device, None)
}

/// As [`detach`], of a device over `file` alone: since it was found somebody may have bound it to another file.
///
/// # Errors
/// Those of [`detach`]; `NoSuchFile`; `StateChanged` when it is over another file, and nothing is changed.
pub fn detach_from(file: &Path, device: &Path) -> Result<()> {
    let meta = fs::metadata(file).map_err(|e| failed(file, "cannot be examined", e))?;
    unbind(device, Some((meta.dev(), meta.ino())))
}

/// As [`detach_from`], of a device over a file that answers nobody, since the server of its file system has ended: `file` is
/// the path that it had when the device was bound to it.
///
/// # Errors
/// `InUse` as [`detach`]; `StateChanged` when it is over another file, or none, and nothing is changed.
pub fn detach_from_dead(file: &Path, device: &Path) -> Result<()> {
    let exclusive = claimed(device)?;
    let is_bound = || is_named(device, file);
    // Nobody binds it to another file while it is open here.
    if !is_bound().map_err(|e| failed(device, "cannot be examined", e))? {
        return Err(elsewhere(device));
    }
    clear(device, exclusive, is_bound)
}

fn unbind(device: &Path, file: Option<(u64, u64)>) -> Result<()> {
    let exclusive = claimed(device)?;
    let bound = sys::loop_status(exclusive.as_fd());
    let Some(bound) = bound.map_err(|e| failed(device, "cannot be detached", e))? else {
        let text = format!("{} is bound to no file", device.display());
        return Err(Error::new(Code::NotMounted, text).with_hint("`losetup -a` lists the devices"));
    };
    if file.is_some_and(|file| file != (bound.device, bound.inode)) {
        return Err(elsewhere(device));
    }
    clear(device, exclusive, || is_leaving(device, bound))
}

/// The device, open for nobody else that wants it alone: a file system, or a program that claims it.
fn claimed(device: &Path) -> Result<File> {
    let exclusive = File::options()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(device);
    exclusive.map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => {
            let who = match filesystems::users_of(device) {
                Ok(users) if !users.is_empty() => users,
                Ok(_) | Err(_) => "is claimed by a program, or in another name space".to_owned(),
            };
            in_use(device, &who).with_hint("unmount what is on it first")
        }
        _ => failed(device, "cannot be opened", e),
    })
}

fn in_use(device: &Path, how: &str) -> Error {
    Error::new(Code::InUse, format!("{} {how}", device.display()))
}

fn elsewhere(device: &Path) -> Error {
    let text = format!("{} is over another file now", device.display());
    Error::new(Code::StateChanged, text).with_hint("`losetup -l` shows over which")
}

/// Unbinds a claimed device, and waits until it has left its file.
fn clear(device: &Path, exclusive: File, is_bound: impl Fn() -> io::Result<bool>) -> Result<()> {
    let failed = |e| failed(device, "cannot be detached", e);
    sys::loop_clear(exclusive.as_fd()).map_err(failed)?;
    drop(exclusive);
    if is_gone(is_bound).map_err(failed)? {
        return Ok(());
    }
    let who = filesystems::openers_of(device).unwrap_or_default();
    let who = if who.is_empty() {
        "a program".to_owned()
    } else {
        who.join(", ")
    };
    let says = format!("is open in {who}");
    Err(in_use(device, &says).with_hint("it goes when that program closes it"))
}

/// Whether a device that was unbound is bound to its file still. Unbinding marks the device; without the mark somebody has
/// bound it anew.
fn is_leaving(device: &Path, bound: LoopStatus) -> io::Result<bool> {
    let status = sys::loop_status(File::open(device)?.as_fd())?;
    Ok(status.is_some_and(|s| s.autoclear && (s.device, s.inode) == (bound.device, bound.inode)))
}

/// Whether a device is bound to a file of this path.
fn is_named(device: &Path, file: &Path) -> io::Result<bool> {
    let name = device.file_name().unwrap_or_default();
    match fs::read(Path::new("/sys/block").join(name).join("loop/backing_file")) {
        Ok(path) => Ok(path.trim_ascii_end() == file.as_os_str().as_bytes()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Waits until the device has left its file; somebody may be looking at it, as udev does.
fn is_gone(is_bound: impl Fn() -> io::Result<bool>) -> io::Result<bool> {
    let end = Instant::now() + PATIENCE;
    loop {
        if !is_bound()? {
            return Ok(true);
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

/// Free devices are not opened. One that vanishes meanwhile, or has no node, is bound to nothing. One whose file
/// cannot be asked for, as when the server of its file system has died, is bound to another: ours has answered.
fn is_bound_to(number: u32, file: &fs::Metadata) -> io::Result<bool> {
    if !fs::exists(format!("/sys/block/loop{number}/loop/backing_file"))? {
        return Ok(false);
    }
    let device = match File::open(format!("/dev/loop{number}")) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENXIO)) => return Ok(false),
        other => other?,
    };
    match sys::loop_status(device.as_fd()) {
        Ok(status) => Ok(status.is_some_and(|s| (s.device, s.inode) == (file.dev(), file.ino()))),
        Err(e) if is_out_of_reach(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether a FUSE server has died, or the server of a network has lost the file. Other errors may pass, and be those of
/// our own image (I12).
fn is_out_of_reach(e: &io::Error) -> bool {
    const ERRORS: [i32; 3] = [libc::ENOTCONN, libc::ECONNABORTED, libc::ESTALE];
    e.raw_os_error().is_some_and(|e| ERRORS.contains(&e))
}

fn failed(path: &Path, how: &str, e: io::Error) -> Error {
    Error::io(format!("{} {how}", path.display()), e)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::testing::{Loop, direct_dir, eventually, sparse};
    use super::*;

    fn image() -> (tempfile::TempDir, PathBuf) {
        let dir = direct_dir();
        let path = dir.path().join("image");
        sparse(&path, 1 << 20);
        (dir, path)
    }

    #[test]
    fn a_file_becomes_a_device_and_is_found_by_it() {
        let (dir, path) = image();
        assert_eq!(find(&path).unwrap(), Vec::<PathBuf>::new());
        let (one, two) = (Loop::new(&path), Loop::new(&path));
        let link = dir.path().join("link");
        fs::hard_link(&path, &link).unwrap();
        let mut both = [&one.device, &two.device];
        both.sort_by_key(|device| (device.as_os_str().len(), device.as_os_str()));
        assert_eq!(find(&link).unwrap().iter().collect::<Vec<_>>(), both);
        File::options()
            .write(true)
            .open(&one.device)
            .unwrap()
            .write_all_at(b"hello", 512)
            .unwrap();
        File::open(&one.device).unwrap().sync_all().unwrap();
        assert_eq!(&fs::read(&path).unwrap()[512..517], b"hello");
        let device = File::open(&one.device).unwrap();
        assert_eq!(sys::device_size(device.as_fd()).unwrap(), 1 << 20);
    }

    #[test]
    fn a_device_for_reading_takes_no_writes() {
        let (_dir, path) = image();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(b"hello", 512)
            .unwrap();
        let device = Loop {
            device: attach_read_only(&path).unwrap(),
        };
        let mut found = [0; 5];
        let open = File::options().read(true).open(&device.device).unwrap();
        open.read_exact_at(&mut found, 512).unwrap();
        assert_eq!(&found, b"hello");
        // The kernel lets root open it for writing on some versions and refuses the write then.
        let written = File::options()
            .write(true)
            .open(&device.device)
            .and_then(|f| f.write_all_at(b"other", 512).and_then(|()| f.sync_all()));
        assert!(written.is_err());
        assert_eq!(&fs::read(&path).unwrap()[512..517], b"hello");
    }

    #[test]
    fn direct_io_and_block_size_are_what_was_asked() {
        let (_dir, path) = image();
        for (direct_io, block_size) in [(true, 4096), (false, 512)] {
            let attached = attach(&path, direct_io, block_size).unwrap();
            let device = Loop {
                device: attached.device,
            };
            assert_eq!(attached.direct_io, direct_io);
            assert_eq!(attached.block_size, u64::from(block_size));
            let open = File::open(&device.device).unwrap();
            assert_eq!(
                sys::logical_block_size(open.as_fd()).unwrap(),
                u64::from(block_size)
            );
            assert!(sys::physical_block_size(open.as_fd()).unwrap() >= u64::from(block_size));
            let status = sys::loop_status(open.as_fd()).unwrap().unwrap();
            assert_eq!(
                (status.direct_io, status.autoclear, status.offset),
                (direct_io, false, 0)
            );
        }
    }

    #[test]
    fn a_device_that_is_another_than_asked_for_is_told_from_the_right_one() {
        let (dir, path) = image();
        let other = dir.path().join("other");
        sparse(&other, 1 << 20);
        let (device, open) = (Loop::new(&path), |path: &Path| File::open(path).unwrap());
        let looked = |backing: &Path, block: u32| {
            other_than(&open(&device.device), &open(backing), block).unwrap()
        };
        assert_eq!(looked(&path, 512), None);
        let says = "its blocks have 512 bytes, not 4096";
        assert_eq!(looked(&path, 4096).as_deref(), Some(says));
        let says = "it is bound to something else";
        assert_eq!(looked(&other, 512).as_deref(), Some(says));
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 19)
            .unwrap();
        let says = "it has 1048576 bytes, not 524288";
        assert_eq!(looked(&path, 512).as_deref(), Some(says));
    }

    #[test]
    fn direct_io_can_be_switched() {
        let (_dir, path) = image();
        let device = Loop::new(&path);
        let open = File::open(&device.device).unwrap();
        for on in [true, false] {
            sys::loop_set_direct_io(open.as_fd(), on).unwrap();
            assert_eq!(
                sys::loop_status(open.as_fd()).unwrap().unwrap().direct_io,
                on
            );
        }
    }

    #[test]
    fn a_mark_of_an_earlier_user_is_lifted() {
        let (_dir, path) = image();
        let device = Loop::new(&path);
        let name = device.device.file_name().unwrap().to_str().unwrap();
        let ro = || fs::read_to_string(format!("/sys/block/{name}/ro")).unwrap();
        let open = File::open(&device.device).unwrap();
        sys::set_device_read_only(open.as_fd(), true).unwrap();
        assert_eq!(ro(), "1\n");
        direct_io_of(name.trim_start_matches("loop").parse().unwrap(), &open).unwrap();
        assert_eq!(ro(), "0\n");
    }

    #[test]
    fn a_claimed_device_stays_as_it_was() {
        let (_dir, path) = image();
        let device = Loop::new(&path);
        let mut options = File::options();
        let claim = options
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(&device.device)
            .unwrap();
        assert_eq!(detach(&device.device).unwrap_err().code(), Code::InUse);
        assert!(!sys::loop_status(claim.as_fd()).unwrap().unwrap().autoclear);
        drop(claim);
        assert_eq!(find(&path).unwrap(), std::slice::from_ref(&device.device));
    }

    /// One loop device over a file that a server of NFS had lost stood in the way of every unit.
    #[test]
    fn a_device_over_a_lost_file_is_bound_to_another() {
        let out_of_reach = |code| is_out_of_reach(&io::Error::from_raw_os_error(code));
        assert!(out_of_reach(libc::ESTALE) && !out_of_reach(libc::EIO));
    }

    /// Somebody may have bound it to something else since it was found.
    #[test]
    fn a_device_over_another_file_stays_as_it_was() {
        let (dir, path) = image();
        let other = dir.path().join("other");
        sparse(&other, 1 << 20);
        let device = attach(&path, false, 0).unwrap().device;
        let refused = detach_from(&other, &device).unwrap_err();
        assert_eq!(refused.code(), Code::StateChanged, "{refused}");
        assert_eq!(find(&path).unwrap(), std::slice::from_ref(&device));
        eventually(|| detach_from(&path, &device).ok());
        assert_eq!(find(&path).unwrap(), Vec::<PathBuf>::new());
    }

    /// Unbinding is lazy: the call succeeds while the device lives on.
    #[test]
    fn an_open_device_is_not_said_to_be_gone() {
        let (_dir, path) = image();
        let device = attach(&path, false, 0).unwrap().device;
        let open = File::open(&device).unwrap();
        let e = detach(&device).unwrap_err();
        assert_eq!(
            (e.code(), e.hint()),
            (Code::InUse, "it goes when that program closes it")
        );
        let own = format!("process {} (", std::process::id());
        assert!(e.to_string().contains(&own), "{e}");
        assert_eq!(find(&path).unwrap(), [device]);
        drop(open);
        eventually(|| find(&path).unwrap().is_empty().then_some(()));
    }

    #[test]
    fn somebody_who_only_looks_does_not_stop_it() {
        let (_dir, path) = image();
        let device = attach(&path, false, 0).unwrap().device;
        let open = File::open(&device).unwrap();
        std::thread::scope(|scope| {
            let detaching = scope.spawn(|| detach(&device));
            // The mark tells that the other thread has come to the point where it waits.
            while !sys::loop_status(open.as_fd()).unwrap().unwrap().autoclear {
                sys::poll(&[], Some(Duration::from_millis(1))).unwrap();
            }
            drop(open);
            detaching.join().unwrap().unwrap();
        });
        assert_eq!(find(&path).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_cannot_be_done_names_the_object() {
        let (dir, path) = image();
        let missing = dir.path().join("missing");
        for e in [
            attach(&missing, true, 0).unwrap_err(),
            find(&missing).unwrap_err(),
        ] {
            assert_eq!(e.code(), Code::NoSuchFile);
            assert!(e.to_string().contains("missing"), "{e}");
        }
        let e = attach(&path, false, 7).unwrap_err();
        assert_eq!((e.code(), e.errno()), (Code::Io, libc::EINVAL));
        assert!(e.to_string().contains("image cannot be bound"), "{e}");
    }

    #[test]
    fn threads_do_not_take_each_others_devices() {
        let (dir, _) = image();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let path = dir.path().join(format!("image{thread}"));
                sparse(&path, 1 << 16);
                scope.spawn(move || {
                    for _ in 0..10 {
                        let device = Loop::new(&path);
                        assert_eq!(find(&path).unwrap(), std::slice::from_ref(&device.device));
                    }
                });
            }
        });
    }
}
