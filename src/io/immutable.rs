//! The immutable flag of a file: while it is set nobody can write, cut, rename or remove the file, not even root.
//!
//! Needs a file system that has the flag and a process that may set it (`CAP_LINUX_IMMUTABLE`). Setting and clearing it
//! change the file's ctime, and nothing else of it. It must not decide whose image gets it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Identity, sys};

/// `FS_IMMUTABLE_FL` of the kernel.
const IMMUTABLE: libc::c_int = 0x10;

/// Makes the file at `path` immutable, durably. False when it was so before.
///
/// # Errors
/// The system's error; `NotFound` when the file there is not the one that `identity` names.
pub fn set(path: &Path, identity: Identity) -> io::Result<bool> {
    change(path, Some(identity), true)
}

/// Ends that, durably. False when there was nothing to end. Without an identity it may be any file.
///
/// # Errors
/// As [`set`].
pub fn clear(path: &Path, identity: Option<Identity>) -> io::Result<bool> {
    change(path, identity, false)
}

/// Whether the file at `path` is immutable; where that cannot be told, it is not.
#[must_use]
pub fn is_set(path: &Path) -> bool {
    let flags = open(path).and_then(|file| sys::inode_flags(file.as_fd()));
    flags.is_ok_and(|flags| flags & IMMUTABLE != 0)
}

fn change(path: &Path, identity: Option<Identity>, on: bool) -> io::Result<bool> {
    let file = open(path)?;
    let found = Identity::of_open(&file)?;
    if !matches!(found, Some(Identity::File { .. })) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "it is no regular file",
        ));
    }
    if identity.is_some() && identity != found {
        let text = "another file is at its path";
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    let flags = sys::inode_flags(file.as_fd())?;
    if (flags & IMMUTABLE != 0) == on {
        return Ok(false);
    }
    sys::set_inode_flags(file.as_fd(), flags ^ IMMUTABLE)?;
    // After a loss of power a member that takes part must not be immutable.
    file.sync_all()?;
    Ok(true)
}

/// Whatever is at the path by now, the open does not wait for a writer or a carrier.
fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::super::testing::{Loop, sparse};
    use super::super::{Image, IoMode, Storage};
    use super::*;
    use crate::set::Code;

    /// A file system of its own: that of the tests may have no such flag.
    struct Disk {
        dir: tempfile::TempDir,
        _device: Loop,
    }

    impl Disk {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let file = dir.path().join("disk");
            sparse(&file, 16 << 20);
            run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file));
            let device = Loop::new(&file);
            fs::create_dir(dir.path().join("mnt")).expect("a directory");
            let disk = Self {
                dir,
                _device: device,
            };
            let mut mount = Command::new("mount");
            run(mount
                .arg(&disk._device.device)
                .arg(disk.dir.path().join("mnt")));
            disk
        }

        fn image(&self) -> std::path::PathBuf {
            self.dir.path().join("mnt/m1.img")
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            // A test that starts a program just now copies our descriptors for a moment.
            let mut unmount = Command::new("umount");
            let _ = unmount.arg("-l").arg(self.dir.path().join("mnt")).status();
        }
    }

    fn run(command: &mut Command) {
        let status = command.status().expect("it starts");
        assert!(status.success(), "{command:?}");
    }

    fn identity(path: &Path) -> Identity {
        let found = Identity::of(path).expect("it is there");
        found.expect("a file")
    }

    #[test]
    fn nobody_can_change_an_immutable_file_and_all_can_read_it() {
        let disk = Disk::new();
        let path = disk.image();
        fs::write(&path, [7; 8192]).expect("writes");
        let own = identity(&path);
        assert!(!is_set(&path));
        assert!(set(&path, own).expect("ext4 has the flag"));
        assert!(!set(&path, own).expect("twice is once"));
        assert!(is_set(&path));
        let open = File::options().write(true).open(&path);
        let refused = [
            open.map(drop).expect_err("write"),
            fs::rename(&path, path.with_extension("old")).expect_err("rename"),
            fs::remove_file(&path).expect_err("remove"),
        ];
        for error in refused {
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
        }
        assert_eq!(fs::read(&path).expect("reads"), [7; 8192]);
        let error = Image::open(&path, IoMode::Buffered).expect_err("it cannot be written");
        assert_eq!(error.code(), Code::ReadOnlyImage);
        assert!(error.hint().contains("chattr -i"), "{}", error.hint());
        let glance = Image::glance(&path).expect("it can be read");
        assert_eq!((glance.identity(), glance.size()), (own, 8192));
        assert!(glance.storage().write_at(&[1], 0).is_err());
        assert!(clear(&path, Some(own)).expect("cleared"));
        assert!(!clear(&path, None).expect("twice is once"));
        fs::write(&path, [8; 10]).expect("writes");
    }

    #[test]
    fn only_the_file_that_is_meant_is_changed() {
        let disk = Disk::new();
        let path = disk.image();
        sparse(&path, 4096);
        let other = path.with_extension("other");
        sparse(&other, 4096);
        let error = set(&path, identity(&other)).expect_err("another file");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!is_set(&path) && !is_set(&other));
        let dir = path.parent().expect("a directory");
        assert!(clear(dir, None).is_err(), "no file");
        assert!(
            set(
                Path::new("/proc/version"),
                identity(Path::new("/proc/version"))
            )
            .is_err()
        );
    }
}
