//! The virtual unit as a file: what the requests of the kernel mean on the data path.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use super::losses::Losses;
use super::openers::Openers;
use crate::io::aligned::AlignedBuf;
use crate::io::{Seek, Zero};
use crate::server::meter::Asked;
use crate::server::{Errno, Handle};

/// Most bytes of one read or write request.
pub(super) const REQUEST_BYTES: u32 = 1 << 20;

thread_local! {
    /// What a thread reads into: kept between requests.
    static BUFFER: RefCell<Option<AlignedBuf>> = const { RefCell::new(None) };
}

/// Descriptors that are open, loop devices included.
#[derive(Debug, Default)]
pub(super) struct Opens(AtomicU64);

impl Opens {
    /// In place of their number when none can be opened any more.
    const CLOSED: u64 = u64::MAX;

    /// Notes one more; false when the unit has been closed for good.
    pub(super) fn enter(&self) -> bool {
        let more = |opens| (opens != Self::CLOSED).then(|| opens + 1);
        self.0.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    /// Notes that one is closed.
    pub(super) fn leave(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        match self.0.load(Relaxed) {
            Self::CLOSED => 0,
            opens => opens,
        }
    }

    /// Lets nobody open the unit any more, if nobody has; else tells how many have.
    pub(super) fn close(&self) -> u64 {
        match self.0.compare_exchange(0, Self::CLOSED, Relaxed, Relaxed) {
            Err(opens) if opens != Self::CLOSED => opens,
            _ => 0,
        }
    }
}

/// A write that is to be durable when it is answered (`O_DSYNC`, `O_SYNC`): the kernel leaves that to us.
#[derive(Clone, Copy, Debug)]
pub(super) struct Through {
    /// Who is told of lost writes.
    pub(super) handle: u64,
    /// Whether the thread that ends the write may wait for a flush.
    pub(super) may_wait: fn() -> bool,
}

/// The unit's file.
pub(super) struct Unit {
    handle: Handle,
    /// Milliseconds since 1970 of the last write.
    written: AtomicU64,
    openers: Openers,
    opens: Opens,
    losses: Losses,
}

impl std::fmt::Debug for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unit")
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

impl Unit {
    /// The file of a running unit.
    pub(super) fn new(handle: Handle) -> Self {
        let mounted = handle.state().mounted;
        Self {
            handle,
            written: AtomicU64::new(mounted.0),
            openers: Openers::default(),
            opens: Opens::default(),
            losses: Losses::default(),
        }
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.handle.pipeline().size()
    }

    /// Whether changes have to wait now.
    pub(super) fn is_stalled(&self) -> bool {
        self.handle.pipeline().is_stalled()
    }

    /// Calls `changed` from the control thread after every change of the unit's state; it must not block.
    pub(super) fn on_change(&self, changed: impl Fn() + Send + Sync + 'static) {
        self.handle.on_change(Box::new(changed));
    }

    /// Calls `grown` from the control thread when the unit has become larger; it must not block.
    pub(super) fn on_growth(self: &Arc<Self>, grown: impl Fn() + Send + Sync + 'static) {
        let (unit, last) = (Arc::clone(self), AtomicU64::new(self.size()));
        self.handle.on_change(Box::new(move || {
            let size = unit.size();
            if last.swap(size, Relaxed) != size {
                grown();
            }
        }));
    }

    /// When it was written last.
    pub(super) fn mtime(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.written.load(Relaxed))
    }

    /// Who has it open.
    pub(super) fn opens(&self) -> &Opens {
        &self.opens
    }

    /// Notes an open; the answer is the handle's number. None when the unit has been closed for good.
    pub(super) fn open(&self, pid: u32, writes: bool) -> Option<u64> {
        if !self.opens.enter() {
            return None;
        }
        let handle = match writes {
            true => self.openers.opened(pid),
            false => self.openers.opened_to_read(),
        };
        self.losses.opened(handle);
        Some(handle)
    }

    /// Notes that a handle is closed.
    pub(super) fn close(&self, handle: u64) {
        self.used(handle);
        self.losses.closed(handle);
        self.opens.leave();
    }

    /// Notes that a handle is used for something else than the truncation of its open.
    pub(super) fn used(&self, handle: u64) {
        self.openers.used(handle);
    }

    /// Whether a process may give the unit this size: the one it has, or nothing by an open.
    pub(super) fn resize(&self, size: u64, pid: u32, by_handle: bool) -> Result<(), Errno> {
        match size.cmp(&self.size()) {
            Ordering::Equal => Ok(()),
            Ordering::Greater => Err(Errno(libc::EFBIG)),
            Ordering::Less if size == 0 && !by_handle && self.openers.is_opening(pid) => Ok(()),
            Ordering::Less => Err(Errno(libc::EPERM)),
        }
    }

    fn touch(&self) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        if let Some(now) = since.ok().and_then(|d| u64::try_from(d.as_millis()).ok()) {
            self.written.store(now, Relaxed);
        }
    }

    /// Reads into the thread's buffer and hands the bytes on; no buffer is allocated for a request.
    pub(super) fn read(
        self: &Arc<Self>,
        at: u64,
        size: u32,
        then: impl FnOnce(Result<&[u8], Errno>) + Send + 'static,
    ) {
        let (size, begun, unit) = (size as usize, Instant::now(), Arc::clone(self));
        let then = move |read: Result<&[u8], Errno>| {
            let bytes = read.map_or(0, <[u8]>::len) as u64;
            let asked = Asked::Read(bytes);
            let pipeline = unit.handle.pipeline();
            pipeline.requested(asked, begun, read.is_ok());
            then(read);
        };
        BUFFER.with_borrow_mut(|buffer| {
            let least = size.max(REQUEST_BYTES as usize);
            let buffer = buffer.get_or_insert_with(|| AlignedBuf::zeroed(least));
            if buffer.len() < size {
                *buffer = AlignedBuf::zeroed(size);
            }
            let pipeline = self.handle.pipeline();
            pipeline.read_then(at, &mut buffer[..size], Box::new(then));
        });
    }

    /// Writes; what lies behind the end is left out, and a write that begins there is refused.
    pub(super) fn write(
        self: &Arc<Self>,
        at: u64,
        data: &[u8],
        through: Option<Through>,
        then: impl FnOnce(Result<u32, Errno>) + Send + 'static,
    ) {
        let room = self.size().saturating_sub(at);
        let len = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if len == 0 && !data.is_empty() {
            return then(Err(Errno(libc::ENOSPC)));
        }
        let unit = Arc::clone(self);
        let then = move |written: Result<(), Errno>| {
            let bytes = u32::try_from(len).map_err(|_| Errno(libc::EINVAL));
            match (through, written.and(bytes)) {
                (Some(through), Ok(bytes)) => {
                    unit.flush_through(through, move |flushed| then(flushed.map(|()| bytes)));
                }
                (_, written) => then(written),
            }
        };
        let pipeline = self.handle.pipeline();
        let asked = Asked::Write(len as u64);
        pipeline.write_then(at, &data[..len], self.touching(asked, then));
    }

    /// As `then`, and notes the time of a change and what it was before.
    fn touching(
        self: &Arc<Self>,
        asked: Asked,
        then: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) -> Box<dyn FnOnce(Result<(), Errno>) + Send> {
        let (unit, begun) = (Arc::clone(self), Instant::now());
        Box::new(move |changed| {
            let pipeline = unit.handle.pipeline();
            pipeline.requested(asked, begun, changed.is_ok());
            if changed.is_ok() {
                unit.touch();
            }
            then(changed);
        })
    }

    /// The flush behind a write that is to be durable when it is answered.
    fn flush_through(
        self: &Arc<Self>,
        through: Through,
        then: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let pipeline = self.handle.pipeline();
        let done = self.flushed(through.handle, then);
        match (through.may_wait)() {
            true => pipeline.flush_then(done),
            false => pipeline.flush_elsewhere(done),
        }
    }

    /// Makes everything durable.
    pub(super) fn flush(
        self: &Arc<Self>,
        handle: u64,
        then: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        self.handle
            .pipeline()
            .flush_then(self.flushed(handle, then));
    }

    /// What follows a flush. Where writes are lost each handle is told once, whoever's flush it was that failed.
    fn flushed(
        self: &Arc<Self>,
        handle: u64,
        then: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) -> Box<dyn FnOnce(Result<(), Errno>) + Send> {
        let (unit, begun) = (Arc::clone(self), Instant::now());
        Box::new(move |flushed: Result<(), Errno>| {
            let pipeline = unit.handle.pipeline();
            let flushed = match unit.losses.tell(handle, pipeline.losses()) {
                true => flushed.and(Err(Errno(libc::EIO))),
                false => flushed,
            };
            pipeline.requested(Asked::Flush, begun, flushed.is_ok());
            then(flushed);
        })
    }

    /// fallocate(2).
    pub(super) fn fallocate(
        self: &Arc<Self>,
        (at, len, mode): (u64, u64, i32),
        then: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let pipeline = self.handle.pipeline();
        match plan_fallocate(self.size(), at, len, mode) {
            Err(error) => then(Err(error)),
            Ok(Space::Nothing) => then(Ok(())),
            Ok(Space::Allocate(len)) => {
                // It changes no bytes.
                pipeline.allocate_then(at, len, self.touching(Asked::Write(0), then));
            }
            Ok(Space::Zero(len, how)) => {
                pipeline.zero_then(at, len, how, self.touching(Asked::Write(len), then));
            }
        }
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`.
    pub(super) fn seek(
        &self,
        at: i64,
        whence: i32,
        then: impl FnOnce(Result<i64, Errno>) + Send + 'static,
    ) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return then(Err(Errno(libc::EINVAL))),
        };
        let Ok(at) = u64::try_from(at) else {
            return then(Err(Errno(libc::ENXIO)));
        };
        let told = |found| i64::try_from(found).map_err(|_| Errno(libc::EOVERFLOW));
        let done = move |sought: Result<u64, Errno>| then(sought.and_then(told));
        self.handle.pipeline().seek_then(at, what, Box::new(done));
    }

    /// copy_file_range(2) inside the unit; fewer bytes than asked for are copied when they are many.
    pub(super) fn copy(
        self: &Arc<Self>,
        (from, to, len): (u64, u64, u64),
        then: impl FnOnce(Result<u32, Errno>) + Send + 'static,
    ) {
        let size = self.size();
        let (source, room) = (size.saturating_sub(from), size.saturating_sub(to));
        let len = len.min(source);
        if len == 0 {
            return then(Ok(0));
        }
        if room == 0 {
            return then(Err(Errno(libc::ENOSPC)));
        }
        let (unit, begun) = (Arc::clone(self), Instant::now());
        let then = move |copied: Result<u64, Errno>| {
            let asked = Asked::Write(copied.unwrap_or(0));
            let pipeline = unit.handle.pipeline();
            pipeline.requested(asked, begun, copied.is_ok());
            let copied = copied.inspect(|_| unit.touch());
            then(copied.and_then(|n| u32::try_from(n).map_err(|_| Errno(libc::EOVERFLOW))));
        };
        let pipeline = self.handle.pipeline();
        pipeline.copy_then((from, to, len.min(room)), then);
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
    fn a_unit_is_closed_for_good_when_nobody_has_it_open() {
        let opens = Opens::default();
        assert!(opens.enter() && opens.enter());
        assert_eq!((opens.count(), opens.close()), (2, 2));
        opens.leave();
        opens.leave();
        assert_eq!((opens.count(), opens.close()), (0, 0));
        assert!(!opens.enter());
        assert_eq!((opens.count(), opens.close()), (0, 0));
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
