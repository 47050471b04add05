//! The virtual unit as a file: what the requests of the kernel mean on the data path.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::io::aligned::AlignedBuf;
use crate::io::{Seek, Zero};
use crate::server::{Errno, Handle};

/// Most bytes of one read or write request.
pub(super) const REQUEST_BYTES: u32 = 1 << 20;
/// Most bytes that one copy_file_range moves; the caller asks again.
const COPY_BYTES: u64 = 16 << 20;

/// Opens for writing that are remembered for the truncation that may follow.
const OPENERS_KEPT: usize = 256;

/// What a worker thread keeps between requests.
struct Worker {
    buffer: AlignedBuf,
    /// Tells that the thread has ended: dropped with it.
    _ended: Ended,
}

/// Called when a worker thread ends.
pub(super) type OnEnd = Arc<dyn Fn() + Send + Sync>;

struct Ended(OnEnd);

impl Drop for Ended {
    fn drop(&mut self) {
        (self.0)();
    }
}

thread_local! {
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
}

/// The unit's file.
pub(super) struct Unit {
    handle: Handle,
    ended: OnEnd,
    /// Milliseconds since 1970 of the last write.
    written: AtomicU64,
    openers: Openers,
}

impl std::fmt::Debug for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unit")
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

impl Unit {
    /// The file of a running unit; `ended` is called when a thread that has served reads ends.
    pub(super) fn new(handle: Handle, ended: OnEnd) -> Self {
        let mounted = handle.state().mounted;
        Self {
            handle,
            ended,
            written: AtomicU64::new(mounted.0),
            openers: Openers::default(),
        }
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.handle.pipeline().size()
    }

    /// When it was written last.
    pub(super) fn mtime(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.written.load(Ordering::Relaxed))
    }

    /// Notes an open for writing.
    pub(super) fn opened(&self, pid: u32) {
        self.openers.opened(pid);
    }

    /// Whether a process may give the unit this size: the one it has, or nothing by an open.
    pub(super) fn may_resize(&self, size: u64, pid: u32, by_handle: bool) -> bool {
        size == self.size() || (size == 0 && !by_handle && self.openers.is_opening(pid))
    }

    fn touch(&self) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        if let Some(now) = since.ok().and_then(|d| u64::try_from(d.as_millis()).ok()) {
            self.written.store(now, Ordering::Relaxed);
        }
    }

    /// Reads into the thread's buffer and hands the bytes on; nothing is allocated for a request.
    pub(super) fn read(&self, at: u64, size: u32, then: impl FnOnce(Result<&[u8], Errno>)) {
        let size = size as usize;
        WORKER.with_borrow_mut(|worker| {
            let worker = worker.get_or_insert_with(|| Worker {
                buffer: AlignedBuf::zeroed(REQUEST_BYTES as usize),
                _ended: Ended(Arc::clone(&self.ended)),
            });
            if worker.buffer.len() < size {
                worker.buffer = AlignedBuf::zeroed(size);
            }
            let read = self.handle.pipeline().read(at, &mut worker.buffer[..size]);
            then(read.map(|n| &worker.buffer[..n]));
        });
    }

    /// Writes; what lies behind the end is left out, and a write that begins there is refused.
    pub(super) fn write(&self, at: u64, data: &[u8]) -> Result<u32, Errno> {
        let room = self.size().saturating_sub(at);
        let len = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if len == 0 && !data.is_empty() {
            return Err(Errno(libc::ENOSPC));
        }
        self.handle.pipeline().write(at, &data[..len])?;
        self.touch();
        u32::try_from(len).map_err(|_| Errno(libc::EINVAL))
    }

    /// Makes everything durable.
    pub(super) fn flush(&self) -> Result<(), Errno> {
        self.handle.pipeline().flush()
    }

    /// fallocate(2).
    pub(super) fn fallocate(&self, at: u64, len: u64, mode: i32) -> Result<(), Errno> {
        let pipeline = self.handle.pipeline();
        match plan_fallocate(self.size(), at, len, mode)? {
            Space::Nothing => return Ok(()),
            Space::Allocate(len) => pipeline.allocate(at, len)?,
            Space::Zero(len, how) => pipeline.zero(at, len, how)?,
        }
        self.touch();
        Ok(())
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`.
    pub(super) fn seek(&self, at: i64, whence: i32) -> Result<i64, Errno> {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return Err(Errno(libc::EINVAL)),
        };
        let at = u64::try_from(at).map_err(|_| Errno(libc::ENXIO))?;
        let found = self.handle.pipeline().seek(at, what)?;
        i64::try_from(found).map_err(|_| Errno(libc::EOVERFLOW))
    }

    /// copy_file_range(2) inside the unit; fewer bytes than asked for are copied when they are many.
    pub(super) fn copy(&self, from: u64, to: u64, len: u64) -> Result<u32, Errno> {
        let size = self.size();
        let (source, room) = (size.saturating_sub(from), size.saturating_sub(to));
        let len = len.min(source).min(COPY_BYTES);
        if len == 0 {
            return Ok(0);
        }
        if room == 0 {
            return Err(Errno(libc::ENOSPC));
        }
        let copied = self.handle.pipeline().copy(from, to, len.min(room))?;
        self.touch();
        u32::try_from(copied).map_err(|_| Errno(libc::EOVERFLOW))
    }
}

/// Who has just opened the unit for writing.
///
/// An open with `O_TRUNC` comes as an open and a truncation to nothing. It changes nothing here, as
/// on a disk, while truncate(2) is refused; the two look alike but for the open before.
#[derive(Debug, Default)]
struct Openers(Mutex<VecDeque<u32>>);

impl Openers {
    fn opened(&self, pid: u32) {
        let mut pids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pids.len() == OPENERS_KEPT {
            pids.pop_front();
        }
        pids.push_back(pid);
    }

    /// Whether this thread has opened the unit and not truncated it since; tells so once.
    fn is_opening(&self, pid: u32) -> bool {
        let mut pids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = pids.contains(&pid);
        pids.retain(|other| *other != pid);
        opened
    }
}

/// What a fallocate comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Space {
    Nothing,
    Allocate(u64),
    Zero(u64, Zero),
}

/// The unit never grows: what would extend it is refused, what only zeroes is cut at the end.
fn plan_fallocate(size: u64, at: u64, len: u64, mode: i32) -> Result<Space, Errno> {
    const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP_SIZE;
    const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_RANGE_KEEP: i32 = ZERO_RANGE | KEEP_SIZE;
    if len == 0 {
        return Err(Errno(libc::EINVAL));
    }
    let end = at.checked_add(len).ok_or(Errno(libc::EFBIG))?;
    let inside = len.min(size.saturating_sub(at));
    let zero = |how| match inside {
        0 => Space::Nothing,
        len => Space::Zero(len, how),
    };
    match mode {
        0 | KEEP_SIZE | ZERO_RANGE if end > size => Err(Errno(libc::EFBIG)),
        0 | KEEP_SIZE => Ok(Space::Allocate(len)),
        PUNCH_HOLE => Ok(zero(Zero::Punch)),
        ZERO_RANGE | ZERO_RANGE_KEEP => Ok(zero(Zero::Keep)),
        _ => Err(Errno(libc::EOPNOTSUPP)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncation_belongs_to_the_open_before_it() {
        let openers = Openers::default();
        assert!(!openers.is_opening(7));
        openers.opened(7);
        openers.opened(8);
        assert!(openers.is_opening(7) && !openers.is_opening(7));
        assert!(openers.is_opening(8));
        for _ in 0..2 * OPENERS_KEPT {
            openers.opened(9);
        }
        assert!(openers.is_opening(9) && !openers.is_opening(9));
    }

    #[test]
    fn fallocate_never_extends_the_unit() {
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        let plan = |at, len, mode| plan_fallocate(1000, at, len, mode).map_err(|e| e.0);
        assert_eq!(plan(0, 1000, 0), Ok(Space::Allocate(1000)));
        assert_eq!(plan(0, 1001, 0), Err(libc::EFBIG));
        assert_eq!(plan(500, 500, KEEP), Ok(Space::Allocate(500)));
        assert_eq!(plan(500, 501, KEEP), Err(libc::EFBIG));
        assert_eq!(plan(u64::MAX, 2, 0), Err(libc::EFBIG));
        assert_eq!(plan(0, 0, 0), Err(libc::EINVAL));
        assert_eq!(
            plan(900, 200, PUNCH | KEEP),
            Ok(Space::Zero(100, Zero::Punch))
        );
        assert_eq!(plan(1000, 200, PUNCH | KEEP), Ok(Space::Nothing));
        assert_eq!(plan(900, 100, ZERO), Ok(Space::Zero(100, Zero::Keep)));
        assert_eq!(plan(900, 101, ZERO), Err(libc::EFBIG));
        assert_eq!(
            plan(900, 101, ZERO | KEEP),
            Ok(Space::Zero(100, Zero::Keep))
        );
        for mode in [
            PUNCH,
            libc::FALLOC_FL_COLLAPSE_RANGE,
            libc::FALLOC_FL_INSERT_RANGE,
            libc::FALLOC_FL_UNSHARE_RANGE,
            PUNCH | ZERO | KEEP,
        ] {
            assert_eq!(plan(0, 100, mode), Err(libc::EOPNOTSUPP), "{mode:#x}");
        }
    }
}
