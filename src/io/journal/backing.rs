//! The file operations of the journal, behind a trait so that tests can lose and tear writes.
//!
//! Nothing here knows what is written.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use crate::io::sys;

/// Bytes that are written at once where a range becomes zeros.
const ZEROS: usize = 1 << 20;

/// One file of the journal.
pub(super) trait Backing: Send + Sync + Debug {
    /// Takes all the space that the file will ever need and makes it that long; what is there stays.
    /// A `fresh` file is empty before and all zeros afterwards.
    fn reserve(&self, len: u64, fresh: bool) -> io::Result<()>;

    /// Fills the buffer; `UnexpectedEof` when the file is shorter.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()>;

    /// Writes all bytes: visible to other processes when it returns, durable after the next
    /// successful sync.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Makes every write that has returned durable; never called again after a failure.
    fn sync(&self) -> io::Result<()>;
}

impl Backing for File {
    fn reserve(&self, len: u64, fresh: bool) -> io::Result<()> {
        match sys::fallocate(self.as_fd(), sys::Fallocate::Allocate, 0, len) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) && fresh => {
                write_zeros(self, 0, len)?;
            }
            // What was written once has its space where nothing can be reserved.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            other => other?,
        }
        if fresh || self.metadata()?.len() < len {
            self.set_len(len)?;
        }
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(buf, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Writes zeros. Space that was only reserved costs a change of the file system's own tables at its
/// first write; space that was written does not.
pub(super) fn write_zeros(to: &dyn Backing, at: u64, len: u64) -> io::Result<()> {
    let zeros = vec![0; ZEROS];
    let mut done = 0;
    while done < len {
        let part = usize::try_from(len - done).map_or(ZEROS, |left| left.min(ZEROS));
        to.write_at(&zeros[..part], at + done)?;
        done += part as u64;
    }
    Ok(())
}
