//! The data path: reads, writes, discards and flushes of the unit, on the caller's thread.

use crate::io::{Seek, Zero};

/// The data path of a running unit. Every method may be called by any number of threads.
#[derive(Debug)]
pub struct Pipeline {}

/// Failure of a request: an errno for the application.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl Pipeline {
    /// Size of the unit in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        0
    }

    /// Fills the buffer from `at`; returns the number of bytes, fewer only at the end of the unit.
    ///
    /// # Errors
    /// EIO when no source could answer.
    pub fn read(&self, _at: u64, _buf: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno(libc::EIO))
    }

    /// Writes the buffer at `at`.
    ///
    /// # Errors
    /// ENOSPC beyond the end, EROFS, EIO or what the members answered when no source has it.
    pub fn write(&self, _at: u64, _data: &[u8]) -> Result<(), Errno> {
        Err(Errno(libc::EIO))
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn zero(&self, _at: u64, _len: u64, _how: Zero) -> Result<(), Errno> {
        Err(Errno(libc::EIO))
    }

    /// Allocates space inside the unit.
    ///
    /// # Errors
    /// EFBIG beyond the end; ENOSPC.
    pub fn allocate(&self, _at: u64, _len: u64) -> Result<(), Errno> {
        Err(Errno(libc::EIO))
    }

    /// Copies `len` bytes inside the unit; returns the number of bytes copied.
    ///
    /// # Errors
    /// As [`Self::read`] and [`Self::write`].
    pub fn copy(&self, _from: u64, _to: u64, _len: u64) -> Result<u64, Errno> {
        Err(Errno(libc::EIO))
    }

    /// Makes every write that has returned durable on every source (I10).
    ///
    /// # Errors
    /// EIO when it failed on every source.
    pub fn flush(&self) -> Result<(), Errno> {
        Err(Errno(libc::EIO))
    }

    /// The next data or hole at or behind `at`; ENXIO when there is none.
    ///
    /// # Errors
    /// ENXIO, EIO.
    pub fn seek(&self, _at: u64, _what: Seek) -> Result<u64, Errno> {
        Err(Errno(libc::EIO))
    }
}
