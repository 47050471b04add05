//! Mounted file systems: which of them lie on a disk, and who would be held up if they stood still.
//!
//! What is found is found by device numbers and by the numbers of mounts, never by a name alone: a path may lead elsewhere
//! by now. Nothing here freezes anything.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::set::Code;

use super::mountpoint::unescape;

/// What to do where this program does not know how to bring a file system to rest.
const BY_HAND: &str = "bring it to rest by commands of your own: --freeze-cmd and --thaw-cmd";

/// A mounted file system on a disk.
#[derive(Debug)]
pub struct FileSystem {
    /// Where it is mounted; one place if there are several.
    pub mountpoint: PathBuf,
    /// Number of that mount.
    pub mount_id: u64,
    /// The block device: the disk or a partition of it.
    pub device: PathBuf,
    /// The disk.
    pub disk: PathBuf,
    /// Its type, as `ext4`.
    pub fstype: String,
    /// First byte and number of bytes on the disk, where it is on a partition.
    pub span: Option<(u64, u64)>,
    /// The mount point, open for reading.
    pub file: File,
    /// Device number that the kernel's lists of mounts give it.
    number: String,
}

/// A disk or a partition of it, as sysfs knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Slot {
    name: OsString,
    /// `major:minor`.
    number: String,
    span: Option<(u64, u64)>,
    holders: Vec<String>,
}

/// One line of the kernel's list of mounts.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Row {
    id: u64,
    number: String,
    mountpoint: PathBuf,
    fstype: String,
    source: OsString,
}

impl Row {
    /// Whether it is a mount of what is on a slot; btrfs has a number of its own, and its disks stand in sysfs.
    fn is_on(&self, slot: &Slot, btrfs_disks: &[OsString]) -> bool {
        let name = Path::new(&self.source).file_name();
        let is_btrfs = || {
            self.fstype == "btrfs"
                && btrfs_disks
                    .iter()
                    .any(|disk| Some(disk.as_os_str()) == name)
        };
        self.number == slot.number || is_btrfs()
    }
}

/// The mounted file systems on a disk and its partitions, in the order of their mounts.
///
/// # Errors
/// `InUse` when something other than a mount that can be seen here uses the disk: a mapping, a file system with other
/// disks, a mount in another name space, swap. The system's error.
pub fn on_disk(disk: &Path) -> Result<Vec<FileSystem>> {
    let failed = |e| Error::io(format!("{} cannot be looked at", disk.display()), e);
    let slots = slots(Path::new("/sys/block"), disk).map_err(failed)?;
    refuse_mappings(&slots)?;
    let rows = rows(&fs::read("/proc/self/mountinfo").map_err(failed)?);
    let mut found = Vec::new();
    for slot in &slots {
        let on_slot = rows_on(&rows, slot, &slots).map_err(failed)??;
        found.extend(reachable(disk, &on_slot, slot)?);
    }
    refuse_unseen(&slots, &found).map_err(failed)??;
    found.sort_by_key(|fs| fs.mount_id);
    Ok(found)
}

/// Keeps the one that is mounted at a place, which may be another mount of it than the one that was found.
///
/// # Errors
/// `NotMounted` when the path is no mount point; `NoSuchFile` when what is mounted there is not among them.
pub fn select(found: Vec<FileSystem>, mountpoint: &Path) -> Result<FileSystem> {
    let shown = mountpoint.display();
    let looked = |e| Error::io(format!("{shown} cannot be looked at"), e);
    let place = fs::canonicalize(mountpoint).map_err(looked)?;
    let rows = rows(&fs::read("/proc/self/mountinfo").map_err(looked)?);
    let Some(row) = rows.iter().rfind(|row| row.mountpoint == place) else {
        let says = format!("{shown} is no mount point");
        return Err(Error::new(Code::NotMounted, says).with_hint("`findmnt` lists them"));
    };
    let on = found.into_iter().find(|fs| fs.number == row.number);
    on.ok_or_else(|| {
        let says = format!("{shown} is not mounted from a loop device of the unit");
        Error::new(Code::NoSuchFile, says).with_hint(BY_HAND)
    })
}

/// A file that a process has open on one of the file systems; none when there is no such file.
///
/// # Errors
/// The system's error.
pub fn open_file_of(pid: u32, on: &[FileSystem]) -> io::Result<Option<PathBuf>> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    // The process may have a name space of its own; device numbers mean the same in all.
    let rows = rows(&fs::read(process.join("mountinfo"))?);
    let is_on = |row: &Row| on.iter().any(|fs| fs.number == row.number);
    let ids: Vec<u64> = rows.iter().filter(|r| is_on(r)).map(|r| r.id).collect();
    for entry in fs::read_dir(process.join("fdinfo"))? {
        let number = entry?.file_name();
        // A file that was closed meanwhile is on nothing.
        let info = fs::read_to_string(process.join("fdinfo").join(&number)).unwrap_or_default();
        if mount_in(&info).is_some_and(|id| ids.contains(&id)) {
            return fs::read_link(process.join("fd").join(&number)).map(Some);
        }
    }
    Ok(None)
}

/// Who claims a disk, as words behind its name; empty when that cannot be seen from here.
///
/// # Errors
/// The system's error.
pub fn users_of(disk: &Path) -> io::Result<String> {
    let slots = slots(Path::new("/sys/block"), disk)?;
    let rows = rows(&fs::read("/proc/self/mountinfo")?);
    let mut users = Vec::new();
    for slot in &slots {
        users.extend(
            slot.holders
                .iter()
                .map(|holder| format!("held by {holder}")),
        );
        let disks = btrfs_disks(&slot.name)?;
        let on_slot = rows.iter().filter(|row| row.is_on(slot, &disks));
        users.extend(on_slot.map(|row| format!("mounted on {}", row.mountpoint.display())));
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let shown = disk.display().to_string();
    if swaps
        .lines()
        .any(|line| line.split(' ').next() == Some(&shown))
    {
        users.push("used as swap".to_owned());
    }
    Ok(match users.is_empty() {
        true => String::new(),
        false => format!("is {}", users.join(", ")),
    })
}

/// The processes that have a file open, as `process 1234 (qemu)`; those that may be looked at.
///
/// # Errors
/// The system's error.
pub fn openers_of(file: &Path) -> io::Result<Vec<String>> {
    let is_number = |name: &OsStr| name.as_bytes().iter().all(u8::is_ascii_digit);
    let mut openers = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if !is_number(&entry.file_name()) {
            continue;
        }
        // A process may end meanwhile, or be somebody else's.
        let Ok(open) = fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        let links = open
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok());
        if links.into_iter().any(|link| link == file) {
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let pid = entry.file_name().to_string_lossy().into_owned();
            openers.push(format!("process {pid} ({})", comm.trim()));
        }
    }
    Ok(openers)
}

/// Opens a mount point, if it still is the mount of this number.
///
/// # Errors
/// `NotMounted` when something else is there; the system's error.
pub fn open(mountpoint: &Path, mount_id: u64) -> Result<File> {
    let shown = mountpoint.display();
    let (file, id) = open_any(mountpoint)
        .map_err(|e| Error::io(format!("{shown} cannot be opened to freeze it"), e))?;
    if id == Some(mount_id) {
        return Ok(file);
    }
    let says = format!("another mount covers the file system at {shown}");
    Err(Error::new(Code::NotMounted, says).with_hint("take that mount away"))
}

fn open_any(path: &Path) -> io::Result<(File, Option<u64>)> {
    // A mount point may be a file; waiting for nobody who would have to open a pipe.
    let mut options = File::options();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = mount_in(&info);
    Ok((file, id))
}

fn mount_in(fdinfo: &str) -> Option<u64> {
    let mut lines = fdinfo.lines();
    let id = lines.find_map(|line| line.strip_prefix("mnt_id:"))?;
    id.trim().parse().ok()
}

/// The disk, then its partitions.
fn slots(sysfs: &Path, disk: &Path) -> io::Result<Vec<Slot>> {
    let name = disk.file_name().unwrap_or_default();
    let dir = sysfs.join(name);
    let mut found = vec![slot(&dir, name)?];
    for entry in fs::read_dir(&dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && fs::exists(entry.path().join("partition"))? {
            found.push(slot(&entry.path(), &entry.file_name())?);
        }
    }
    found[1..].sort_by_key(|slot| slot.span);
    Ok(found)
}

fn slot(dir: &Path, name: &OsStr) -> io::Result<Slot> {
    let text = |file: &str| fs::read_to_string(dir.join(file)).map(|text| text.trim().to_owned());
    // sysfs counts in 512 bytes, whatever the device's blocks are.
    let bytes = |file: &str| {
        let blocks: u64 = text(file)?.parse().map_err(io::Error::other)?;
        Ok::<_, io::Error>(blocks * 512)
    };
    let span = match fs::exists(dir.join("partition"))? {
        true => Some((bytes("start")?, bytes("size")?)),
        false => None,
    };
    let holders = match fs::read_dir(dir.join("holders")) {
        Ok(entries) => entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e),
    };
    Ok(Slot {
        name: name.to_owned(),
        number: text("dev")?,
        span,
        holders,
    })
}

/// Device mapper or md on a disk: what is mounted on them cannot be told from here.
fn refuse_mappings(slots: &[Slot]) -> Result<()> {
    let held = slots.iter().find(|slot| !slot.holders.is_empty());
    let Some(slot) = held else {
        return Ok(());
    };
    let (name, by) = (slot.name.to_string_lossy(), slot.holders.join(", "));
    let says = format!("/dev/{name} is held by {by}, and what is on that is not frozen from here");
    Err(Error::new(Code::InUse, says).with_hint(BY_HAND))
}

fn rows(mountinfo: &[u8]) -> Vec<Row> {
    let lines = mountinfo.split(|&byte| byte == b'\n');
    lines.filter_map(row).collect()
}

/// `id parent major:minor root POINT options [tag]... - TYPE SOURCE ...`.
fn row(line: &[u8]) -> Option<Row> {
    let mut fields = line.split(|&byte| byte == b' ');
    let text = |field: &[u8]| unescape(field).into_string().ok();
    let id = text(fields.next()?)?.parse().ok()?;
    let number = text(fields.nth(1)?)?;
    let mountpoint = PathBuf::from(unescape(fields.nth(1)?));
    fields.find(|&field| field == b"-")?;
    Some(Row {
        id,
        number,
        mountpoint,
        fstype: text(fields.next()?)?,
        source: unescape(fields.next()?),
    })
}

/// The mounts of the file system on a slot.
fn rows_on(rows: &[Row], slot: &Slot, slots: &[Slot]) -> io::Result<Result<Vec<Row>>> {
    let disks = btrfs_disks(&slot.name)?;
    let others = |name: &&OsString| !slots.iter().any(|slot| slot.name == **name);
    if let Some(other) = disks.iter().find(others) {
        let (name, other) = (slot.name.to_string_lossy(), other.to_string_lossy());
        let says = format!("the file system on /dev/{name} is on /dev/{other} too");
        return Ok(Err(Error::new(Code::InUse, says).with_hint(
            "an image of one of its disks is no backup of it: use `btrfs send`",
        )));
    }
    let on_slot = rows.iter().filter(|row| row.is_on(slot, &disks));
    Ok(Ok(on_slot.cloned().collect()))
}

/// The disks of the mounted btrfs that has one of this name; none when there is no such file system.
fn btrfs_disks(name: &OsStr) -> io::Result<Vec<OsString>> {
    let entries = match fs::read_dir("/sys/fs/btrfs") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    for entry in entries {
        let devices = entry?.path().join("devices");
        if fs::exists(devices.join(name))? {
            let disks = fs::read_dir(devices)?;
            return disks.map(|disk| Ok(disk?.file_name())).collect();
        }
    }
    Ok(Vec::new())
}

/// One open mount of the file system on a slot: the first that no other mount covers.
fn reachable(disk: &Path, on_slot: &[Row], slot: &Slot) -> Result<Option<FileSystem>> {
    let mut last = None;
    for row in on_slot {
        match open(&row.mountpoint, row.id) {
            Ok(file) => {
                return Ok(Some(FileSystem {
                    mountpoint: row.mountpoint.clone(),
                    mount_id: row.id,
                    device: Path::new("/dev").join(&slot.name),
                    disk: disk.to_owned(),
                    fstype: row.fstype.clone(),
                    span: slot.span,
                    file,
                    number: row.number.clone(),
                }));
            }
            Err(error) => last = Some(error),
        }
    }
    last.map_or(Ok(None), Err)
}

/// Who claims a disk or a partition on which nothing that can be seen is mounted is not brought to rest by freezing
/// anything.
fn refuse_unseen(slots: &[Slot], found: &[FileSystem]) -> io::Result<Result<()>> {
    let has = |partition: bool| found.iter().any(|fs| fs.span.is_some() == partition);
    for slot in slots {
        let device = Path::new("/dev").join(&slot.name);
        // A mount of the disk claims its partitions, and the other way round.
        let is_explained = found.iter().any(|fs| fs.device == device) || has(slot.span.is_none());
        if !is_explained && is_claimed(&device)? {
            let says = format!(
                "{} is in use, but not by a mount that can be seen here: by swap, by a program, or in a container",
                device.display()
            );
            return Ok(Err(Error::new(Code::InUse, says).with_hint(BY_HAND)));
        }
    }
    Ok(Ok(()))
}

fn is_claimed(device: &Path) -> io::Result<bool> {
    let mut options = File::options();
    match options.read(true).custom_flags(libc::O_EXCL).open(device) {
        Ok(_) => Ok(false),
        Err(e) => match e.raw_os_error() {
            Some(libc::EBUSY) => Ok(true),
            // Nobody can have mounted what has no node.
            Some(libc::ENOENT | libc::ENXIO) => Ok(false),
            _ => Err(e),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_with_its_numbers() {
        let line = b"43 27 7:0 /sub /srv/a\\040b rw,relatime shared:1 - ext4 /dev/loop0 rw";
        let expected = Row {
            id: 43,
            number: "7:0".into(),
            mountpoint: "/srv/a b".into(),
            fstype: "ext4".into(),
            source: "/dev/loop0".into(),
        };
        assert_eq!(row(line), Some(expected));
        assert_eq!(row(b""), None);
        assert_eq!(row(b"x 27 7:0 / / rw - ext4 /dev/loop0 rw"), None);
        assert_eq!(
            mount_in("pos:\t0\nflags:\t0100000\nmnt_id:\t43\n"),
            Some(43)
        );
    }

    /// A disk `loop7` with two partitions, the second one held by a mapping.
    fn sysfs() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            let parent = path.parent().expect("a file in a directory");
            fs::create_dir_all(parent).expect("made");
            fs::write(path, text).expect("written");
        };
        put("loop7/dev", "7:7\n");
        for (name, number, start) in [("loop7p2", "259:1", "4096"), ("loop7p1", "259:0", "2048")] {
            put(&format!("loop7/{name}/partition"), "1\n");
            put(&format!("loop7/{name}/dev"), number);
            put(&format!("loop7/{name}/start"), start);
            put(&format!("loop7/{name}/size"), "2048\n");
        }
        put("loop7/loop7p2/holders/dm-0", "");
        dir
    }

    #[test]
    fn partitions_are_found_in_their_order_and_a_mapping_on_one_is_refused() {
        let dir = sysfs();
        let found = slots(dir.path(), Path::new("/dev/loop7")).expect("read");
        let spans: Vec<_> = found.iter().map(|s| (s.number.as_str(), s.span)).collect();
        let mib = 1 << 20;
        let expected = [
            ("7:7", None),
            ("259:0", Some((mib, mib))),
            ("259:1", Some((2 * mib, mib))),
        ];
        assert_eq!(spans, expected);
        let refused = refuse_mappings(&found).expect_err("dm-0 is on it");
        assert_eq!(refused.code(), Code::InUse);
        let says = "/dev/loop7p2 is held by dm-0, and what is on that is not frozen from here";
        assert_eq!(refused.to_string(), says);
        assert!(refuse_mappings(&found[..2]).is_ok());
    }

    #[test]
    fn a_covered_mount_point_is_not_taken_for_the_file_system_under_it() {
        let (_, id) = open_any(Path::new("/proc/self")).expect("proc is mounted");
        let id = id.expect("a number");
        assert!(open(Path::new("/proc/self"), id).is_ok());
        let refused = open(Path::new("/proc/self"), id + 1).expect_err("another number");
        assert_eq!(refused.code(), Code::NotMounted);
    }
}
