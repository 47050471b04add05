//! Requests for callers that wait for the outcome, and a copy inside the unit, which is a read and a write.

use std::sync::Arc;

use crate::sync::channel::bounded;

use super::pipeline::{EIO, Errno, Pipeline};
use crate::io::aligned::AlignedBuf;
use crate::io::{Seek, Zero};

/// Bytes that a copy inside the unit moves at once.
const COPY_BYTES: u64 = 1 << 20;

impl Pipeline {
    /// As [`Self::read_then`]; gives the number of bytes.
    ///
    /// # Errors
    /// EIO when no source could answer.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let (done, read) = bounded(1);
        let tell = move |read: Result<&[u8], Errno>| drop(done.send(read.map(<[u8]>::to_vec)));
        self.read_then(at, buf, Box::new(tell));
        // Another thread may have answered, from a buffer of its own.
        let bytes = read.recv().map_err(|_| EIO)??;
        buf[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    /// As [`Self::seek_then`].
    ///
    /// # Errors
    /// Those of a seek.
    pub fn seek(&self, at: u64, what: Seek) -> Result<u64, Errno> {
        let (done, sought) = bounded(1);
        self.seek_then(
            at,
            what,
            Box::new(move |outcome| {
                let _ = done.send(outcome);
            }),
        );
        sought.recv().map_err(|_| EIO)?
    }

    /// As [`Self::write_then`].
    ///
    /// # Errors
    /// Those of a write.
    pub fn write(&self, at: u64, data: &[u8]) -> Result<(), Errno> {
        let (done, written) = bounded(1);
        self.write_then(
            at,
            data,
            Box::new(move |outcome| {
                let _ = done.send(outcome);
            }),
        );
        written.recv().map_err(|_| EIO)?
    }

    /// As [`Self::zero_then`].
    ///
    /// # Errors
    /// Those of a write.
    pub fn zero(&self, at: u64, len: u64, how: Zero) -> Result<(), Errno> {
        let (done, zeroed) = bounded(1);
        self.zero_then(
            at,
            len,
            how,
            Box::new(move |outcome| {
                let _ = done.send(outcome);
            }),
        );
        zeroed.recv().map_err(|_| EIO)?
    }

    /// As [`Self::flush_then`].
    ///
    /// # Errors
    /// Those of a flush.
    pub fn flush(self: &Arc<Self>) -> Result<(), Errno> {
        let (done, flushed) = bounded(1);
        self.flush_then(Box::new(move |outcome| {
            let _ = done.send(outcome);
        }));
        flushed.recv().map_err(|_| EIO)?
    }

    /// Copies up to `len` bytes inside the unit, no more than a mebibyte of them; `done` gets the number of bytes
    /// as with [`Self::write_then`].
    ///
    /// Errors are those of a read and a write.
    pub fn copy_then(
        &self,
        (from, to, len): (u64, u64, u64),
        done: impl FnOnce(Result<u64, Errno>) + Send + 'static,
    ) {
        let len = len.min(self.size().saturating_sub(from)).min(COPY_BYTES);
        let mut buf = AlignedBuf::zeroed(usize::try_from(len).unwrap_or_default());
        // Waited for: who answers a read must not be held up by a write.
        match self.read(from, &mut buf) {
            Err(error) => done(Err(error)),
            Ok(bytes) => {
                let done = move |written: Result<(), Errno>| done(written.map(|()| bytes as u64));
                self.write_then(to, &buf[..bytes], Box::new(done));
            }
        }
    }
}
