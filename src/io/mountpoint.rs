//! Mount points: mount(2) of a unit, what is mounted where, and unmounting.
//!
//! The mount is made here and not by the FUSE library, because only so is its type
//! `fuse.shadowset` and its source the unit: both are part of the interface. Nothing here looks
//! into a mount whose server may be silent, except [`stale`], which says so.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::set::Code;

use super::sys;

/// Type of our mounts, as /proc/mounts shows it.
pub const FSTYPE: &str = "fuse.shadowset";

/// Most bytes of one read request.
const MAX_READ: u32 = 1 << 20;

/// What may be chosen about a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MountOptions {
    /// Whether users other than the one who mounts may look at it.
    pub allow_other: bool,
    /// Whether nothing in it can be written.
    pub read_only: bool,
}

/// A mount as the kernel lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mounted {
    /// Type of the file system.
    pub fstype: OsString,
    /// Its source: for our mounts the name of the unit.
    pub source: OsString,
    /// Number of its device, as files on it tell.
    pub device: u64,
    /// Whether nothing in it can be written.
    pub read_only: bool,
    /// Whether users other than the one who mounted may look at it.
    pub allow_other: bool,
}

impl Mounted {
    /// Whether this is the mount of `unit`.
    #[must_use]
    pub fn is_unit(&self, unit: &str) -> bool {
        self.fstype == FSTYPE && self.source == unit
    }
}

/// Mounts `unit` on `dir`; the answer is the descriptor to serve it by. The mount answers nothing
/// until that is done, and is stale once the descriptor is closed.
///
/// # Errors
/// `NoSuchFile`, `NotPermitted`; `NotSupported` without FUSE; the system's error.
pub fn mount_fuse(unit: &str, dir: &Path, options: MountOptions) -> Result<OwnedFd> {
    let failed = |e| Error::io(format!("{unit} cannot be mounted on {}", dir.display()), e);
    let target = c_path(dir).map_err(failed)?;
    let source = CString::new(unit).map_err(|e| failed(e.into()))?;
    let fuse = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|e| {
            let text = format!("{unit} cannot be mounted: /dev/fuse cannot be opened");
            Error::new(Code::NotSupported, text)
                .caused_by(e)
                .with_hint("load the kernel module fuse")
        })?;
    let fstype = CString::new(FSTYPE).map_err(|e| failed(e.into()))?;
    let data = fuse_data(&fuse, options).map_err(failed)?;
    let flags = flags(options.read_only);
    sys::mount(&source, &target, &fstype, flags, &data).map_err(failed)?;
    Ok(fuse.into())
}

fn flags(read_only: bool) -> libc::c_ulong {
    let always = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_NOATIME;
    always | if read_only { libc::MS_RDONLY } else { 0 }
}

/// Makes the mount of `unit` on `dir` read-only, or lets it be written again. The kernel does it
/// alone: it refuses what writes, and the server is not asked.
///
/// # Errors
/// `NotMounted` when the topmost mount is not that of the unit; `InUse` when something in it is open
/// for writing and it is to be read-only; the system's error.
pub fn remount_unit(unit: &str, dir: &Path, read_only: bool) -> Result<()> {
    expect_unit(unit, dir)?;
    let failed = |e| {
        Error::io(
            format!("{unit} cannot be remounted on {}", dir.display()),
            e,
        )
    };
    let target = resolve(dir).and_then(|dir| c_path(&dir)).map_err(failed)?;
    let name = CString::new(unit).map_err(|e| failed(e.into()))?;
    let fstype = CString::new(FSTYPE).map_err(|e| failed(e.into()))?;
    let flags = flags(read_only) | libc::MS_REMOUNT;
    sys::mount(&name, &target, &fstype, flags, c"").map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => {
            let text = format!("{} is open for writing", dir.display());
            Error::new(Code::InUse, text).with_hint("close what is open in it, loop devices too")
        }
        _ => failed(e),
    })
}

fn fuse_data(fuse: &File, options: MountOptions) -> io::Result<CString> {
    let (fd, uid, gid) = (fuse.as_raw_fd(), sys::effective_uid(), sys::effective_gid());
    let allow_other = if options.allow_other {
        ",allow_other"
    } else {
        ""
    };
    // The mode of the root in octal: a directory.
    let data = format!(
        "fd={fd},rootmode=40000,user_id={uid},group_id={gid},default_permissions{allow_other},\
         max_read={MAX_READ}"
    );
    Ok(CString::new(data)?)
}

/// Mounts the file system of type `fstype` that is on a block device; `data` are its own options.
///
/// # Errors
/// `NotSupported` when the kernel does not know the type; the system's error.
pub fn mount_disk(
    device: &Path,
    dir: &Path,
    fstype: &str,
    data: &str,
    read_only: bool,
) -> Result<()> {
    let text = || {
        let (device, dir) = (device.display(), dir.display());
        format!("{device} cannot be mounted on {dir} as {fstype}")
    };
    let flags = if read_only { libc::MS_RDONLY } else { 0 };
    let mounted = c_path(device)
        .and_then(|source| Ok((source, c_path(dir)?)))
        .and_then(|(source, target)| {
            let (fstype, data) = (CString::new(fstype)?, CString::new(data)?);
            sys::mount(&source, &target, &fstype, flags | libc::MS_NOATIME, &data)
        });
    mounted.map_err(|e| match e.raw_os_error() {
        Some(libc::ENODEV) => Error::new(Code::NotSupported, text())
            .caused_by(e)
            .with_hint("load the kernel module of this file system"),
        _ => Error::io(text(), e),
    })
}

/// Unmounts what is mounted on `dir`; `lazy` lets open files live on.
///
/// # Errors
/// `InUse` when files in it are open and `lazy` is false; `NotMounted`; the system's error.
pub fn unmount(dir: &Path, lazy: bool) -> Result<()> {
    let failed = |e| Error::io(format!("{} cannot be unmounted", dir.display()), e);
    let target = resolve(dir).and_then(|dir| c_path(&dir)).map_err(failed)?;
    sys::unmount(&target, lazy).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => Error::new(Code::InUse, format!("{} is busy", dir.display()))
            .with_hint("close what is open in it, and detach its loop devices"),
        Some(libc::EINVAL) => Error::new(
            Code::NotMounted,
            format!("nothing is mounted on {}", dir.display()),
        ),
        _ => failed(e),
    })
}

/// Unmounts `unit` from `dir`, and nothing else: what may be mounted over it, or in its place, is
/// not ours to take away.
///
/// # Errors
/// `NotMounted` when the topmost mount is not that of the unit; those of [`unmount`].
pub fn unmount_unit(unit: &str, dir: &Path, lazy: bool) -> Result<()> {
    expect_unit(unit, dir)?;
    unmount(dir, lazy)
}

/// Makes sure that the topmost mount on `dir` is that of `unit`.
///
/// # Errors
/// `NotMounted` with what is there instead; the system's error.
pub fn expect_unit(unit: &str, dir: &Path) -> Result<()> {
    let place = dir.display();
    let on = mounted(dir).map_err(|e| Error::io(format!("{place} cannot be looked at"), e))?;
    let text = match on {
        Some(on) if on.is_unit(unit) => return Ok(()),
        Some(on) => format!(
            "{unit} is not to be seen on {place}: {} is mounted there",
            on.source.to_string_lossy()
        ),
        None => format!("{unit} is not mounted on {place}"),
    };
    Err(Error::new(Code::NotMounted, text))
}

/// What is mounted on `dir`, the topmost if several are; `None` when nothing is. Asks the kernel's
/// list only, so a server that does not answer cannot delay it.
///
/// # Errors
/// The system's error.
pub fn mounted(dir: &Path) -> io::Result<Option<Mounted>> {
    let dir = resolve(dir)?;
    Ok(find(&fs::read("/proc/self/mountinfo")?, &dir))
}

/// Whether `unit` is among what is mounted on `dir`, a path without links, also when something else is mounted over it. Its
/// `server` may live among other mounts than we do.
///
/// # Errors
/// The system's error.
pub fn is_listed(unit: &str, dir: &Path, server: Option<u32>) -> io::Result<bool> {
    let theirs = server.and_then(|pid| fs::read(format!("/proc/{pid}/mountinfo")).ok());
    let mounts = theirs.map_or_else(|| fs::read("/proc/self/mountinfo"), Ok)?;
    let mut mounts = mounts.split(|&byte| byte == b'\n').filter_map(parse);
    Ok(mounts.any(|(point, on)| point == dir && on.is_unit(unit)))
}

/// The unit whose mount on `dir` has lost its server; `None` when it works, or is not ours.
/// Waits for the server's answer if there is one.
///
/// # Errors
/// The system's error.
pub fn stale(dir: &Path) -> io::Result<Option<OsString>> {
    let Some(Mounted { fstype, source, .. }) = mounted(dir)? else {
        return Ok(None);
    };
    if fstype != FSTYPE {
        return Ok(None);
    }
    // An open asks the server each time; attributes may come from the kernel's cache for long after
    // its death.
    match fs::read_dir(dir) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => Ok(Some(source)),
        Err(e) => Err(e),
        Ok(_) => Ok(None),
    }
}

/// The path without links, as the kernel lists it. The last name is not looked at when its mount
/// has lost its server.
fn resolve(dir: &Path) -> io::Result<PathBuf> {
    match (fs::canonicalize(dir), dir.file_name()) {
        (Err(e), Some(name)) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            Ok(fs::canonicalize(parent.unwrap_or(Path::new(".")))?.join(name))
        }
        (resolved, _) => resolved,
    }
}

fn find(mountinfo: &[u8], dir: &Path) -> Option<Mounted> {
    let lines = mountinfo.rsplit(|&byte| byte == b'\n');
    lines
        .filter_map(parse)
        .find(|(point, _)| point == dir)
        .map(|(_, mounted)| mounted)
}

/// Mount point and mount of one line: `id parent dev root POINT OPTIONS [tag]... - TYPE SOURCE OPTIONS`.
fn parse(line: &[u8]) -> Option<(PathBuf, Mounted)> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = device(fields.nth(2)?)?;
    let point = PathBuf::from(unescape(fields.nth(1)?));
    let here = fields.next()?;
    fields.find(|&field| field == b"-")?;
    let (fstype, source) = (unescape(fields.next()?), unescape(fields.next()?));
    let everywhere = fields.next().unwrap_or_default();
    let has = |options: &[u8], word: &[u8]| options.split(|&byte| byte == b',').any(|w| w == word);
    let mounted = Mounted {
        fstype,
        source,
        device,
        read_only: has(here, b"ro") || has(everywhere, b"ro"),
        allow_other: has(everywhere, b"allow_other"),
    };
    Some((point, mounted))
}

/// The number of a device that stands as `major:minor`.
fn device(field: &[u8]) -> Option<u64> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Blanks, line ends and backslashes stand as a backslash and three octal digits.
pub(super) fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let octal = behind.first_chunk::<3>().filter(|_| first == b'\\');
        let code =
            octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    OsString::from_vec(bytes)
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A directory that may be a mount point, and is none when the test is over.
    struct MountDir(tempfile::TempDir);

    impl MountDir {
        fn new() -> Self {
            Self(tempfile::Builder::new().prefix("a b\\c").tempdir().unwrap())
        }

        fn path(&self) -> &Path {
            self.0.path()
        }
    }

    impl Drop for MountDir {
        fn drop(&mut self) {
            let _ = unmount(self.path(), true);
        }
    }

    #[test]
    fn a_mount_without_server_is_seen_as_stale() {
        let dir = MountDir::new();
        assert_eq!(mounted(dir.path()).unwrap(), None);
        let fuse = mount_fuse("dsa1", dir.path(), MountOptions::default());
        let fuse = fuse.expect("mounting needs root and /dev/fuse");
        let Mounted { fstype, source, .. } = mounted(dir.path()).unwrap().unwrap();
        assert_eq!(
            (fstype.to_str(), source.to_str()),
            (Some(FSTYPE), Some("dsa1"))
        );
        drop(fuse);
        assert_eq!(stale(dir.path()).unwrap(), Some("dsa1".into()));
        unmount(dir.path(), false).unwrap();
        assert_eq!(mounted(dir.path()).unwrap(), None);
        assert_eq!(stale(dir.path()).unwrap(), None);
        assert_eq!(
            unmount(dir.path(), false).unwrap_err().code(),
            Code::NotMounted
        );
    }

    #[test]
    fn the_options_reach_the_kernel() {
        let dir = MountDir::new();
        let options = MountOptions {
            allow_other: true,
            read_only: true,
        };
        let _fuse = mount_fuse("dsa1", dir.path(), options).unwrap();
        let escaped = dir
            .path()
            .to_str()
            .unwrap()
            .replace('\\', "\\134")
            .replace(' ', "\\040");
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mountinfo
            .lines()
            .find(|line| line.contains(&escaped))
            .unwrap();
        for option in [
            "nosuid",
            "nodev",
            "noexec",
            "noatime",
            "ro,",
            "default_permissions",
        ] {
            assert!(line.contains(option), "{option} in {line}");
        }
        assert!(line.contains("allow_other,max_read=1048576"), "{line}");
        let on = mounted(dir.path()).unwrap().unwrap();
        assert!(on.read_only && on.allow_other, "{on:?}");
    }

    #[test]
    fn a_remount_changes_whether_it_can_be_written_and_nothing_else() {
        let dir = MountDir::new();
        let _fuse = mount_fuse("dsa1", dir.path(), MountOptions::default()).unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap();
        let end = &name["a b\\c".len()..];
        let line = || {
            let list = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let ours = list.lines().find(|line| line.contains(end));
            ours.unwrap().to_owned()
        };
        let before = line();
        remount_unit("dsa1", dir.path(), true).unwrap();
        assert!(mounted(dir.path()).unwrap().unwrap().read_only);
        let wrong = remount_unit("dsa2", dir.path(), false).unwrap_err();
        assert_eq!(wrong.code(), Code::NotMounted);
        remount_unit("dsa1", dir.path(), false).unwrap();
        assert_eq!(line(), before);
    }

    #[test]
    fn a_busy_mount_goes_only_lazily() {
        let dir = MountDir::new();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "none"])
            .arg(dir.path())
            .status();
        assert!(mount.unwrap().success());
        let open = File::create(dir.path().join("open")).unwrap();
        assert_eq!(stale(dir.path()).unwrap(), None, "it is not ours");
        assert_eq!(unmount(dir.path(), false).unwrap_err().code(), Code::InUse);
        unmount(dir.path(), true).unwrap();
        assert_eq!(mounted(dir.path()).unwrap(), None);
        drop(open);
    }

    #[test]
    fn only_the_unit_that_is_meant_is_unmounted() {
        let dir = MountDir::new();
        let code = |unit| unmount_unit(unit, dir.path(), true).map_err(|e| e.code());
        assert_eq!(code("dsa1"), Err(Code::NotMounted));
        drop(mount_fuse("dsa1", dir.path(), MountOptions::default()).unwrap());
        assert_eq!(code("dsa2"), Err(Code::NotMounted), "another unit");
        drop(mount_fuse("dsa2", dir.path(), MountOptions::default()).unwrap());
        assert_eq!(code("dsa1"), Err(Code::NotMounted), "it is covered");
        let on = || mounted(dir.path()).unwrap().map(|on| on.source);
        assert_eq!(on(), Some("dsa2".into()), "nothing was taken away");
        assert_eq!(code("dsa2"), Ok(()));
        assert_eq!(code("dsa1"), Ok(()));
        assert_eq!(on(), None);
    }

    #[test]
    fn a_mount_needs_a_directory() {
        let dir = MountDir::new();
        let options = MountOptions::default();
        let e = mount_fuse("dsa1", &dir.path().join("missing"), options).unwrap_err();
        assert_eq!(e.code(), Code::NoSuchFile);
        let e = mount_fuse("a\0b", dir.path(), options).unwrap_err();
        assert_eq!(e.code(), Code::Io);
    }

    #[test]
    fn links_lead_to_the_mount_point() {
        let dir = MountDir::new();
        let links = tempfile::tempdir().unwrap();
        let link = links.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        drop(mount_fuse("dsa1", dir.path(), MountOptions::default()).unwrap());
        assert_eq!(stale(&link).unwrap(), Some("dsa1".into()));
        unmount(&link, false).unwrap();
    }

    #[test]
    fn the_kernels_list_is_understood() {
        let list = b"22 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/root rw\n\
            23 22 0:21 / /mnt/a\\040b\\134\\011\\012c rw - fuse.x src\\040name rw\n\
            24 22 0:22 / /mnt/x rw - tmpfs lower rw\n\
            25 22 0:23 / /mnt/x rw - tmpfs upper rw\n\
            nonsense\n";
        let at = |dir: &str| find(list, Path::new(dir)).map(|m| (m.fstype, m.source));
        assert_eq!(at("/"), Some(("ext4".into(), "/dev/root".into())));
        assert_eq!(
            at("/mnt/a b\\\t\nc"),
            Some(("fuse.x".into(), "src name".into()))
        );
        assert_eq!(at("/mnt/x"), Some(("tmpfs".into(), "upper".into())));
        assert_eq!(at("/mnt"), None);
        assert_eq!(unescape(b"\\04\\x\\"), "\\04\\x\\");
        assert_eq!(unescape(b"\\777"), "\\777");
    }
}
