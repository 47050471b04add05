//! A lease on an image that is away: tells that somebody opens it for writing.
//!
//! It holds the opener until it is dropped, and keeps the file system of the image busy. It must not
//! be held while the set itself opens the image.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::sys;

/// A read lease of one file; dropping it lets openers go on.
#[derive(Debug)]
pub struct Lease(File);

impl Lease {
    /// Takes a lease on the regular file at `path`.
    ///
    /// # Errors
    /// The system's error: somebody writes it, or its file system has no leases.
    pub fn take(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        let file = options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        sys::take_read_lease(file.as_fd())?;
        Ok(Self(file))
    }

    /// Whether nobody has tried to open the file for writing.
    #[must_use]
    pub fn holds(&self) -> bool {
        sys::has_read_lease(self.0.as_fd()).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{direct_dir, eventually, sparse};
    use super::*;

    #[test]
    fn a_lease_tells_of_writers_and_not_of_readers() {
        let dir = direct_dir();
        let path = dir.path().join("m1.img");
        sparse(&path, 4096);
        let lease = eventually(|| Lease::take(&path).ok());
        std::fs::read(&path).expect("reads");
        assert!(lease.holds(), "reading is free");
        let mut options = File::options();
        let writer = options.write(true).custom_flags(libc::O_NONBLOCK);
        let error = writer.open(&path).expect_err("it is held");
        assert_eq!(error.raw_os_error(), Some(libc::EWOULDBLOCK));
        assert!(!lease.holds());
        drop(lease);
        let open = eventually(|| File::options().write(true).open(&path).ok());
        assert!(Lease::take(&path).is_err(), "somebody writes it");
        drop(open);
    }
}
