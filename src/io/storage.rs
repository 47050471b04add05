//! Storage: the bytes of one member, behind a trait with an exact contract.

use std::io;

use super::sys::uring::Payload;

/// How a range becomes zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zero {
    /// Give the space back where that is possible (discard, punch hole).
    Punch,
    /// Keep the space allocated (zero range).
    Keep,
}

/// Most bytes that one call makes zero, or reserves, where the system need not write them.
pub const SPACE_BYTES: u64 = 64 << 20;

/// How far a call has come that makes bytes zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Zeroed {
    /// Bytes from the start of the range that read as zeros now.
    pub bytes: u64,
    /// Whether zeros were written, for want of another way.
    pub written: bool,
}

/// What a search for data or holes looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    /// The next byte that is data.
    Data,
    /// The next byte that is a hole.
    Hole,
}

/// The bytes of one member.
///
/// Any number of threads may call any method at once; ordering between overlapping calls is the
/// caller's business (the fence, I4). No method changes the image's length. Every range lies inside
/// [`Storage::len`]. After an error the bytes of the range are undefined, and no others.
#[allow(
    clippy::len_without_is_empty,
    reason = "a length here is a size, not a count of elements"
)]
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// Length in bytes, the most that it was when the storage was opened, or measured.
    fn len(&self) -> u64;

    /// Gives the length that the image has now. What it has grown by may be asked for, and may be gone again:
    /// only [`Storage::require`] insists on it.
    ///
    /// # Errors
    /// The system's error.
    fn measure(&self) -> io::Result<u64>;

    /// An image that is shorter than this counts as cut from now on, as one does that is shorter than it was when the
    /// storage was opened.
    fn require(&self, len: u64) {
        let _ = len;
    }

    /// Requests whose borders are multiples of this need no read-modify-write; a power of two.
    /// The caller fences ranges that are rounded out to it, and clipped at the end.
    fn align(&self) -> u64;

    /// Fills the buffer from `at`. A short read is an error, never zeros.
    ///
    /// # Errors
    /// The system's error; `UnexpectedEof` when the image has become shorter.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()>;

    /// Writes the whole buffer at `at`. Visible to every later read when it returns; durable after
    /// the next successful [`Storage::flush`].
    ///
    /// # Errors
    /// The system's error; `UnexpectedEof` when the image has become shorter, which no write mends.
    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<()>;

    /// Makes bytes from `at` on read as zeros; durable like a write. Falls back to writing zeros.
    ///
    /// Of `len` bytes it does the first ones, as many as a slow member does in a few seconds, and says how many: one that
    /// works must not be taken for one that does not answer. The caller asks for the rest.
    ///
    /// # Errors
    /// The system's error.
    fn zero_at(&self, at: u64, len: u64, how: Zero) -> io::Result<Zeroed>;

    /// Allocates space from `at` on without changing what is read there; for how many of `len` bytes, as
    /// [`Storage::zero_at`].
    ///
    /// # Errors
    /// The system's error, `StorageFull` among them. Where space cannot be reserved it succeeds.
    fn allocate(&self, at: u64, len: u64) -> io::Result<u64>;

    /// Makes every write that has returned durable. A failed flush must not be retried (I10).
    ///
    /// # Errors
    /// The system's error.
    fn flush(&self) -> io::Result<()>;

    /// What is cached of `len` bytes at `at` and written back may be dropped, so that a read sees what the
    /// medium has. A hint: after a failed flush the cache may hold bytes that the medium does not.
    fn forget(&self, at: u64, len: u64) {
        let _ = (at, len);
    }

    /// The first data or hole at or behind `at`, as lseek(2) finds it; `None` when there is no more
    /// data. The end of the image counts as a hole. Storage that knows no holes is all data.
    ///
    /// # Errors
    /// The system's error.
    fn seek(&self, at: u64, what: Seek) -> io::Result<Option<u64>>;

    /// Whether [`Storage::seek`] finds holes. A block device keeps to itself what was discarded in it; zeros that
    /// are read from it may be a hole.
    fn finds_holes(&self) -> bool;

    /// How it is asked without a thread that waits; none where a thread has to.
    fn queue(&self) -> Option<&dyn Queue> {
        None
    }
}

/// Called once with the end of a request, and with its memory.
pub type Then = Box<dyn FnOnce(io::Result<()>, Payload) + Send>;

/// Storage that answers later.
pub trait Queue {
    /// Begins to fill `len` bytes of the memory from `at`, or to write them there. Borders are multiples of
    /// [`Storage::align`].
    ///
    /// `then` is called on another thread, which it must not hold up, or before this returns. Only what is done as a
    /// whole is no error; the bytes of the range are undefined after one, and may be asked for again. Storage lets go
    /// of what it has opened before `then` is called.
    fn begin(&self, at: u64, len: usize, payload: Payload, then: Then);
}
