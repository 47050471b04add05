//! The record by which umount(8) finds its helper.
//!
//! umount(8) asks the kernel what a mount is, and takes ours for any FUSE file system: then it calls
//! no helper and returns before the members are clean. It looks closer when `utab`, its own list of
//! mounts, has a record of the place. The record says nothing else, and nothing here depends on it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::sys;

/// Source in our records; no mount of mount(8) has it, so no record of its own is taken for ours.
const SOURCE: &str = "shadowset:";
/// How often the list is tried while another program changes it.
const ATTEMPTS: u32 = 100;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// The list of mounts that mount(8) and umount(8) keep.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Utab {
    dir: PathBuf,
}

impl Default for Utab {
    /// The one of the system.
    fn default() -> Self {
        Self::at("/run/mount")
    }
}

impl Utab {
    /// The one in a directory.
    #[must_use]
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Records that this process serves what is mounted on `mountpoint`. A record of a server that was
    /// killed gives way.
    ///
    /// # Errors
    /// The system's error; nothing is changed then.
    pub fn add(&self, mountpoint: &Path) -> io::Result<()> {
        match fs::create_dir(&self.dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        self.change(mountpoint, true)
    }

    /// Takes the record of this process for `mountpoint` away, if there is one.
    ///
    /// # Errors
    /// The system's error; nothing is changed then.
    pub fn remove(&self, mountpoint: &Path) -> io::Result<()> {
        match self.change(mountpoint, false) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn change(&self, mountpoint: &Path, add: bool) -> io::Result<()> {
        let _lock = self.lock()?;
        let list = self.dir.join("utab");
        let old = match fs::read(&list) {
            Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        let new = changed(&old, mountpoint, add);
        if new == old {
            return Ok(());
        }
        let next = self.dir.join("utab.shadowset");
        let mut file = File::create(&next)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(&new)?;
        fs::rename(&next, &list)
    }

    /// The lock that mount(8) and umount(8) take for a change. They may remove its file.
    fn lock(&self) -> io::Result<File> {
        let path = self.dir.join("utab.lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        for _ in 0..ATTEMPTS {
            let file = options.mode(0o644).open(&path)?;
            if sys::try_flock(file.as_fd())? && file.metadata()?.nlink() > 0 {
                return Ok(file);
            }
            sys::poll(&[], Some(PAUSE))?;
        }
        Err(ErrorKind::WouldBlock.into())
    }
}

/// The list with one record of ours for `mountpoint`, or without that of this process.
pub(super) fn changed(list: &[u8], mountpoint: &Path, add: bool) -> Vec<u8> {
    let target = mangle(mountpoint.as_os_str().as_bytes());
    let any = format!("SRC={SOURCE} TARGET={target} ROOT=/ OPTS=x-shadowset=");
    let own = format!("{any}{}\n", std::process::id());
    let lines = list.split_inclusive(|&byte| byte == b'\n');
    let gives_way = |line: &[u8]| match add {
        true => line.starts_with(any.as_bytes()),
        false => line == own.as_bytes(),
    };
    let mut new = lines
        .filter(|line| !gives_way(line))
        .collect::<Vec<_>>()
        .concat();
    if add {
        new.extend(own.into_bytes());
    }
    new
}

/// As mount(8) writes it: blanks, line ends, backslashes and what is not ASCII as a backslash and three octal digits.
fn mangle(path: &[u8]) -> String {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'\\' && byte != b'#';
    let mangled = path.iter().map(|&byte| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("\\{byte:03o}"),
    });
    mangled.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHERS: &str = "SRC=/dev/vdb TARGET=/data ROOT=/ OPTS=_netdev\n";

    #[test]
    fn a_record_comes_once_and_goes_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let utab = Utab::at(dir.path().join("mount"));
        let list = || fs::read_to_string(dir.path().join("mount/utab")).expect("the list");
        utab.remove(Path::new("/srv/a")).expect("there is no list");
        utab.add(Path::new("/srv/a"))
            .expect("the directory is made");
        fs::write(dir.path().join("mount/utab"), list() + OTHERS).expect("written");
        utab.add(Path::new("/srv/a")).expect("known already");
        utab.add(Path::new("/srv/b c\\d")).expect("another");
        let pid = std::process::id();
        let ours =
            |target| format!("SRC=shadowset: TARGET={target} ROOT=/ OPTS=x-shadowset={pid}\n");
        let (a, b) = (ours("/srv/a"), ours("/srv/b\\040c\\134d"));
        assert_eq!(list(), format!("{OTHERS}{a}{b}"));
        utab.remove(Path::new("/srv/a")).expect("removed");
        utab.remove(Path::new("/data"))
            .expect("not ours, so it stays");
        assert_eq!(list(), format!("{OTHERS}{b}"));
        let killed = "SRC=shadowset: TARGET=/srv/a ROOT=/ OPTS=x-shadowset=1\n";
        fs::write(dir.path().join("mount/utab"), killed).expect("written");
        utab.remove(Path::new("/srv/a"))
            .expect("of another process, so it stays");
        assert_eq!(list(), killed);
        utab.add(Path::new("/srv/a")).expect("the newer one counts");
        assert_eq!(list(), a);
    }

    #[test]
    fn a_list_that_another_program_changes_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let utab = Utab::at(dir.path());
        let held = utab.lock().expect("free");
        let refused = utab.add(Path::new("/srv/a")).expect_err("it is held");
        assert_eq!(refused.kind(), ErrorKind::WouldBlock);
        assert!(!dir.path().join("utab").exists());
        fs::remove_file(dir.path().join("utab.lock")).expect("as umount(8) may do");
        utab.add(Path::new("/srv/a"))
            .expect("the file that was held has no name");
        drop(held);
    }
}
