//! The state directory of a unit: made when it is missing, and locked for the life of the unit.
//!
//! The lock holds for every durability: what lies in the directory belongs to one running unit at a
//! time. It must not know what is kept there. Its file is never removed, so that whoever has it open
//! has the one that the next unit will lock.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::sys;
use crate::error::{Error, Result};
use crate::set::Code;

/// Name of the lock's file.
const LOCK: &str = "lock";
/// Who can read the lock's file can hold a read lock, which would keep every unit out.
const LOCK_MODE: u32 = 0o600;

/// The right to use a state directory. It ends with this value.
#[derive(Debug)]
pub struct StateDir {
    /// Open as long as the directory is used.
    _lock: File,
}

impl StateDir {
    /// Takes the directory; what is missing of its path is made, durably.
    ///
    /// # Errors
    /// [`Code::InUse`] when another unit uses it; the system's error.
    pub fn claim(dir: &Path) -> Result<Self> {
        let failed = |e| {
            let text = format!("the state directory {} cannot be used", dir.display());
            Error::io(text, e)
        };
        make(dir).map_err(failed)?;
        Self::lock(dir)
    }

    /// Makes sure that no other unit uses the directory, which need not be there; nothing is made.
    ///
    /// # Errors
    /// As [`Self::claim`].
    pub fn expect_free(dir: &Path) -> Result<()> {
        match dir.join(LOCK).exists() {
            true => Self::lock(dir).map(drop),
            false => Ok(()),
        }
    }

    fn lock(dir: &Path) -> Result<Self> {
        let failed = |e| {
            let text = format!("the state directory {} cannot be used", dir.display());
            Error::io(text, e)
        };
        let lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(LOCK_MODE)
            .open(dir.join(LOCK))
            .map_err(failed)?;
        if !sys::try_lock(lock.as_fd()).map_err(failed)? {
            let text = format!(
                "the state directory {} is used by another unit",
                dir.display()
            );
            let hint = "give each unit a state_dir of its own; `shadowset list` shows the units";
            return Err(Error::new(Code::InUse, text).with_hint(hint));
        }
        Ok(Self { _lock: lock })
    }
}

/// Makes a directory and those above it. The name of each must last as long as what will be in it.
pub(crate) fn make(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = dir.parent().filter(|above| !above.as_os_str().is_empty());
    above.map_or(Ok(()), make)?;
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(e) => Err(e),
        Ok(()) => File::open(above.unwrap_or(Path::new(".")))?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unit_has_it_at_a_time() {
        let place = tempfile::tempdir().expect("a directory");
        let dir = place.path().join("a/b/state");
        let first = StateDir::claim(&dir).expect("made and claimed");
        let link = place.path().join("link");
        std::os::unix::fs::symlink(&dir, &link).expect("a link");
        for path in [&dir, &link] {
            let error = StateDir::claim(path).expect_err("in use");
            let says = format!(
                "the state directory {} is used by another unit",
                path.display()
            );
            assert_eq!((error.code(), error.to_string()), (Code::InUse, says));
        }
        let other = place.path().join("other");
        StateDir::claim(&other).expect("another one is free");
        drop(first);
        StateDir::claim(&link).expect("free again");
    }

    #[test]
    fn what_cannot_be_a_directory_is_named() {
        let place = tempfile::tempdir().expect("a directory");
        let file = place.path().join("file");
        fs::write(&file, "").expect("a file");
        for dir in [file.clone(), file.join("state")] {
            let error = StateDir::claim(&dir).expect_err("no directory");
            let says = format!("the state directory {} cannot be used", dir.display());
            assert!(error.to_string().starts_with(&says), "{error}");
        }
    }
}
