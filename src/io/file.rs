//! Files and block devices as [`Storage`], through the page cache or past it.
//!
//! Direct I/O wants borders that are multiples of [`Storage::align`]; a request with others reads,
//! changes and writes the blocks it touches in a buffer of the thread. It must not retry a flush,
//! change a length, or let a byte that was to become zero keep its value.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::aligned::{AlignedBuf, PAGE};
use super::ring::Ring;
use super::storage::{Queue, SPACE_BYTES, Seek, Storage, Then, Zero, Zeroed};
use super::sys::uring::Payload;
use super::sys::{self, DirectAlign, Fallocate};

/// Bytes of a thread's buffer for requests that direct I/O does not take as they are.
const BOUNCE_BYTES: usize = 1 << 20;

/// Most zeros that one call writes: as many bytes as the largest write of an application.
const ZERO_BYTES: u64 = 1 << 20;

thread_local! {
    /// Made at the first such request, so that a thread without one pays nothing.
    static BOUNCE: RefCell<Option<AlignedBuf>> = const { RefCell::new(None) };
}

#[repr(align(4096))]
struct Zeros([u8; 1 << 16]);

/// What is written where the system cannot make zeros itself; aligned for direct I/O.
static ZEROS: Zeros = Zeros([0; 1 << 16]);

/// What kind of file holds the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A regular file.
    File,
    /// A block device.
    Device,
}

/// An open file or block device as storage.
///
/// The lock on the image, if there is one, belongs to the same open file and ends with it.
#[derive(Debug)]
pub struct FileStorage {
    file: Arc<File>,
    kind: Kind,
    /// Where the last range may end. Only grows.
    len: AtomicU64,
    /// Length below which the image counts as cut. Only grows, and is never more than `len`.
    required: AtomicU64,
    /// It was seen to be shorter than required: nothing behind its end can be believed any more.
    cut: AtomicBool,
    align: u64,
    /// Alignment of memory, when the page cache is bypassed.
    direct: Option<u64>,
    /// Where requests are under way that no thread waits for.
    ring: Option<Ring>,
}

impl FileStorage {
    /// Takes a file that was opened to be read and written; `direct` says that it was opened with
    /// `O_DIRECT`. The length is what it is now.
    ///
    /// # Errors
    /// The system's error; `Unsupported` when direct I/O does not work here, or when the length is
    /// no multiple of what it needs.
    pub fn new(file: File, kind: Kind, direct: bool) -> io::Result<Self> {
        let len = match kind {
            Kind::File => file.metadata()?.len(),
            Kind::Device => sys::device_size(file.as_fd())?,
        };
        let mut storage = Self {
            file: Arc::new(file),
            kind,
            len: AtomicU64::new(len),
            required: AtomicU64::new(len),
            cut: AtomicBool::new(false),
            align: 1,
            direct: None,
            ring: None,
        };
        if direct {
            let DirectAlign { memory, offset } = storage.probe_direct()?;
            storage.ring = Ring::start()
                .inspect_err(
                    |error| tracing::info!(%error, "no io_uring: a thread waits for each request"),
                )
                .ok();
            storage.direct = Some(memory);
            storage.align = offset;
            if len % offset != 0 {
                let text = format!("direct I/O needs a size in units of {offset} bytes, not {len}");
                return Err(io::Error::new(ErrorKind::Unsupported, text));
            }
        } else if kind == Kind::Device {
            // The page cache of a device writes whole pages. A neighbour's write must not bring a
            // page back that a discard is dropping, so the fence has to cover the page.
            let block = sys::logical_block_size(storage.file.as_fd())?;
            storage.align = block.max(PAGE as u64);
        }
        assert!(
            storage.align.is_power_of_two(),
            "align {} is a power of two",
            storage.align
        );
        Ok(storage)
    }

    /// File or block device.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What direct I/O needs here: what the system tells, or else what a read shows to work.
    fn probe_direct(&self) -> io::Result<DirectAlign> {
        let told = match self.kind {
            Kind::Device => None,
            Kind::File => sys::direct_align(self.file.as_fd())?,
        };
        if let Some(DirectAlign { memory, offset }) = told {
            let usable = |a: u64| a.is_power_of_two() && a <= BOUNCE_BYTES as u64 / 2;
            if usable(offset) && usable(memory) && memory <= PAGE as u64 {
                return Ok(DirectAlign { memory, offset });
            }
        }
        let least = match self.kind {
            Kind::Device => sys::logical_block_size(self.file.as_fd())?,
            Kind::File => 512,
        };
        for align in [least, PAGE as u64] {
            let mut buf = AlignedBuf::zeroed(align as usize);
            if self.file.read_at(&mut buf, 0).is_ok() {
                return Ok(DirectAlign {
                    memory: align.min(PAGE as u64),
                    offset: align,
                });
            }
        }
        Err(io::Error::new(
            ErrorKind::Unsupported,
            "direct I/O does not work here",
        ))
    }

    /// Whether the request can go to the system as it is.
    fn fits(&self, buf: &[u8], at: u64) -> bool {
        let aligned = |x: u64| x & (self.align - 1) == 0;
        self.direct.is_none_or(|memory| {
            aligned(at) && aligned(buf.len() as u64) && buf.as_ptr() as u64 & (memory - 1) == 0
        })
    }

    /// Reads into `buf` as it is.
    fn read_plain(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], at + done as u64) {
                Ok(0) => return Err(self.ended(at + done as u64)),
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            if done < buf.len() && !self.fits(&buf[done..], at + done as u64) {
                // Direct I/O stops inside a block at the end of a file and nowhere else.
                return Err(self.ended(at + done as u64));
            }
        }
        Ok(())
    }

    /// Writes `buf` as it is.
    fn write_plain(&self, buf: &[u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.write_at(&buf[done..], at + done as u64) {
                Ok(0) => {
                    let text = format!("nothing could be written at byte {}", at + done as u64);
                    return Err(io::Error::new(ErrorKind::WriteZero, text));
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reads the blocks around the range and copies the range out of them.
    fn read_bounced(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let (piece, part) = self.piece(at + done as u64, buf.len() - done);
            with_bounce(piece.bytes, |bounce| {
                self.read_plain(bounce, piece.first)?;
                buf[done..done + part].copy_from_slice(&bounce[piece.skip..piece.skip + part]);
                Ok(())
            })?;
            done += part;
        }
        Ok(())
    }

    /// Reads the blocks at the borders, lays the range over them and writes the whole. The caller
    /// has fenced these blocks.
    fn write_bounced(&self, buf: &[u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let (piece, part) = self.piece(at + done as u64, buf.len() - done);
            with_bounce(piece.bytes, |bounce| {
                let block = self.align as usize;
                let last = piece.bytes - block;
                let tail_cut = piece.skip + part < piece.bytes;
                if piece.skip > 0 {
                    self.read_plain(&mut bounce[..block], piece.first)?;
                }
                if tail_cut && (last > 0 || piece.skip == 0) {
                    self.read_plain(&mut bounce[last..], piece.first + last as u64)?;
                }
                bounce[piece.skip..piece.skip + part].copy_from_slice(&buf[done..done + part]);
                self.write_plain(bounce, piece.first)
            })?;
            done += part;
        }
        Ok(())
    }

    /// The aligned piece that holds the first bytes of a range, and how many of them it holds.
    fn piece(&self, at: u64, len: usize) -> (Piece, usize) {
        let first = at & !(self.align - 1);
        let skip = (at - first) as usize;
        let part = len.min(BOUNCE_BYTES - skip);
        let bytes = (skip + part).next_multiple_of(self.align as usize);
        assert!(bytes <= BOUNCE_BYTES && first + bytes as u64 <= self.len());
        (Piece { first, skip, bytes }, part)
    }

    /// Makes the first part of an aligned range zero by the system's means, or by writing when it has none.
    fn zero_aligned(&self, at: u64, len: u64, how: Zero) -> io::Result<Zeroed> {
        use Fallocate::{Allocate, PunchHole, ZeroRange};
        let ways: &[&[Fallocate]] = match (how, self.kind) {
            (Zero::Punch, _) => &[&[PunchHole], &[ZeroRange]],
            // A hole gives space back, so the space has to be taken again.
            (Zero::Keep, Kind::File) => &[&[ZeroRange], &[PunchHole, Allocate]],
            (Zero::Keep, Kind::Device) => &[&[ZeroRange]],
        };
        for way in ways {
            // On a device without a command for it the system writes.
            let written = self.kind == Kind::Device && *way == [ZeroRange];
            let part = Zeroed::part(len, written);
            let fallocate = |&what| sys::fallocate(self.file.as_fd(), what, at, part.bytes);
            match way.iter().try_for_each(fallocate) {
                Err(e) if not_supported(&e) => {}
                other => return other.map(|()| part),
            }
        }
        let part = Zeroed::part(len, true);
        self.write_zeros(at, part.bytes).map(|()| part)
    }

    fn write_zeros(&self, at: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let part = (len - done).min(ZEROS.0.len() as u64);
            self.write_at(&ZEROS.0[..part as usize], at + done)?;
            done += part;
        }
        Ok(())
    }

    /// lseek(2) where the file knows of holes. An image that has become shorter is an error: its
    /// missing end must not pass for a hole.
    fn seek_file(&self, at: u64, what: Seek) -> io::Result<Option<u64>> {
        let found = match what {
            Seek::Data => sys::seek_data(self.file.as_fd(), at),
            Seek::Hole => sys::seek_hole(self.file.as_fd(), at),
        };
        let found = match found {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(self.all_data(at, what)),
            other => other?,
        };
        let is_end = found.is_none() || what == Seek::Hole;
        if is_end && self.file.metadata()?.len() < self.required() {
            return Err(self.ended(self.file.metadata()?.len()));
        }
        match what {
            Seek::Data => Ok(found.filter(|&data| data < self.len())),
            Seek::Hole => Ok(found.map(|hole| hole.min(self.len()))),
        }
    }

    fn all_data(&self, at: u64, what: Seek) -> Option<u64> {
        (at < self.len()).then_some(match what {
            Seek::Data => at,
            Seek::Hole => self.len(),
        })
    }

    /// Refuses what would make an image long again that was cut short: a hole between its end and the bytes that
    /// are written would be read as zeros.
    fn check_whole(&self) -> io::Result<()> {
        if self.kind == Kind::Device {
            return Ok(());
        }
        let len = sys::known_len(self.file.as_fd())?;
        match self.cut.load(Ordering::Acquire) || len < self.required() {
            true => Err(self.ended(len)),
            false => Ok(()),
        }
    }

    fn required(&self) -> u64 {
        self.required.load(Ordering::Acquire)
    }

    /// What was looked for at `at` is not there, since the image ends before.
    fn ended(&self, at: u64) -> io::Error {
        let required = self.required();
        if at < required {
            self.cut.store(true, Ordering::Release);
        }
        let text = format!("the image ends at byte {at}, it should have {required} bytes");
        io::Error::new(ErrorKind::UnexpectedEof, text)
    }

    fn assert_inside(&self, at: u64, len: u64) {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len());
        assert!(
            inside,
            "{len} bytes at {at} lie inside an image of {} bytes",
            self.len()
        );
    }
}

impl Storage for FileStorage {
    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn measure(&self) -> io::Result<u64> {
        let now = match self.kind {
            Kind::File => self.file.metadata()?.len(),
            Kind::Device => sys::device_size(self.file.as_fd())?,
        };
        // What direct I/O cannot reach counts as not there.
        let now = match self.direct {
            Some(_) => now - now % self.align,
            None => now,
        };
        self.len.fetch_max(now, Ordering::AcqRel);
        Ok(now)
    }

    fn require(&self, len: u64) {
        // Direct I/O reads and writes whole blocks.
        let whole = len.next_multiple_of(self.align).min(self.len());
        self.required.fetch_max(whole, Ordering::AcqRel);
    }

    fn align(&self) -> u64 {
        self.align
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.assert_inside(at, buf.len() as u64);
        if self.fits(buf, at) {
            self.read_plain(buf, at)
        } else {
            self.read_bounced(buf, at)
        }
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<()> {
        self.assert_inside(at, buf.len() as u64);
        self.check_whole()?;
        if self.fits(buf, at) {
            self.write_plain(buf, at)
        } else {
            self.write_bounced(buf, at)
        }
    }

    fn zero_at(&self, at: u64, len: u64, how: Zero) -> io::Result<Zeroed> {
        self.assert_inside(at, len);
        self.check_whole()?;
        let end = at + len;
        let first = at.next_multiple_of(self.align).min(end);
        let last = (end & !(self.align - 1)).max(first);
        self.write_zeros(at, first - at)?;
        let zeroed = match last - first {
            0 => Zeroed::part(0, false),
            whole => self.zero_aligned(first, whole, how)?,
        };
        let done = first + zeroed.bytes;
        let tail = if done == last { end - last } else { 0 };
        self.write_zeros(last, tail)?;
        Ok(Zeroed {
            bytes: done + tail - at,
            ..zeroed
        })
    }

    fn allocate(&self, at: u64, len: u64) -> io::Result<u64> {
        self.assert_inside(at, len);
        if len == 0 || self.kind == Kind::Device {
            return Ok(len);
        }
        let part = len.min(SPACE_BYTES);
        match sys::fallocate(self.file.as_fd(), Fallocate::Allocate, at, part) {
            Err(e) if not_supported(&e) => Ok(len),
            other => other.map(|()| part),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.check_whole()?;
        self.file.sync_data()
    }

    fn forget(&self, at: u64, len: u64) {
        // A page that is cut by a border would be kept.
        let first = at & !(PAGE as u64 - 1);
        let end = (at + len).next_multiple_of(PAGE as u64);
        sys::drop_cache(self.file.as_fd(), first, end - first);
    }

    fn seek(&self, at: u64, what: Seek) -> io::Result<Option<u64>> {
        match self.kind {
            Kind::Device => Ok(self.all_data(at, what)),
            Kind::File if at >= self.len() => Ok(None),
            Kind::File => self.seek_file(at, what),
        }
    }

    fn finds_holes(&self) -> bool {
        self.kind == Kind::File
    }

    fn queue(&self) -> Option<&dyn Queue> {
        self.ring.is_some().then_some(self)
    }
}

impl Queue for FileStorage {
    fn begin(&self, at: u64, len: usize, payload: Payload, then: Then) {
        self.assert_inside(at, len as u64);
        let whole = match &payload {
            Payload::Room(_) => Ok(()),
            Payload::Data(_) => self.check_whole(),
        };
        match (whole, &self.ring) {
            (Ok(()), Some(ring)) => ring.begin(Arc::clone(&self.file), (at, len), payload, then),
            (whole, _) => then(whole.and(Err(not_now())), payload),
        }
    }
}

impl Zeroed {
    /// As much of `len` bytes as one call does.
    fn part(len: u64, written: bool) -> Self {
        let most = if written { ZERO_BYTES } else { SPACE_BYTES };
        let bytes = len.min(most);
        Self { bytes, written }
    }
}

/// Whole blocks that hold a part of a range.
struct Piece {
    /// First byte of the first block.
    first: u64,
    /// Bytes before the part.
    skip: usize,
    /// Bytes of all blocks.
    bytes: usize,
}

fn with_bounce<T>(bytes: usize, work: impl FnOnce(&mut [u8]) -> io::Result<T>) -> io::Result<T> {
    BOUNCE.with_borrow_mut(|slot| {
        let bounce = slot.get_or_insert_with(|| AlignedBuf::zeroed(BOUNCE_BYTES));
        work(&mut bounce[..bytes])
    })
}

fn not_now() -> io::Error {
    io::Error::other("it can only be waited for")
}

fn not_supported(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    //! Every method against a plain vector, on each kind of storage; then the borders by hand.

    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;

    use super::super::slots::Pool;
    use super::super::testing::{Loop, direct_dir, sparse};
    use super::*;

    const BOTH: [Zero; 2] = [Zero::Punch, Zero::Keep];

    fn open(path: &Path, kind: Kind, direct: bool) -> FileStorage {
        let mut options = File::options();
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let file = options
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
            .unwrap();
        FileStorage::new(file, kind, direct).unwrap()
    }

    /// Storage of each kind with `len` zeros: file and device, each buffered and direct.
    fn each_kind(len: u64, test: impl Fn(&str, &FileStorage, &Path)) {
        let dir = direct_dir();
        for (kind, direct) in [
            (Kind::File, false),
            (Kind::File, true),
            (Kind::Device, false),
            (Kind::Device, true),
        ] {
            let name = format!("{kind:?}, direct {direct}");
            let image = dir.path().join(&name);
            sparse(&image, len);
            if kind == Kind::File {
                test(&name, &open(&image, kind, direct), &image);
            } else {
                let device = Loop::new(&image);
                test(&name, &open(&device.device, kind, direct), &device.device);
            }
        }
    }

    fn read(storage: &FileStorage, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0xEE; len];
        storage.read_at(&mut buf, at).unwrap();
        buf
    }

    #[derive(Clone, Debug)]
    enum Op {
        Read(u64, u64),
        Write(u64, u64, u8),
        Zero(u64, u64, bool),
        Allocate(u64, u64),
        Flush,
    }

    fn op(len: u64) -> impl Strategy<Value = Op> {
        // Every second border lies on a block, so that aligned requests occur as well.
        let border = prop_oneof![0..=len, (0..=len / 512).prop_map(|block| block * 512)];
        let range = (border.clone(), border).prop_map(|(a, b)| (a.min(b), a.max(b) - a.min(b)));
        prop_oneof![
            2 => range.clone().prop_map(|(at, len)| Op::Read(at, len)),
            4 => (range.clone(), 1..=u8::MAX).prop_map(|((at, len), byte)| Op::Write(at, len, byte)),
            3 => (range.clone(), any::<bool>()).prop_map(|((at, len), p)| Op::Zero(at, len, p)),
            1 => range.prop_map(|(at, len)| Op::Allocate(at, len)),
            1 => Just(Op::Flush),
        ]
    }

    /// Makes a whole range zero.
    fn zero(storage: &FileStorage, mut at: u64, len: u64, how: Zero) {
        let end = at + len;
        while at < end {
            let zeroed = storage.zero_at(at, end - at, how).unwrap();
            assert!((1..=end - at).contains(&zeroed.bytes), "{zeroed:?}");
            at += zeroed.bytes;
        }
    }

    /// Bytes that differ from each other, so that a shift is noticed.
    fn pattern(len: u64, byte: u8) -> Vec<u8> {
        (0..len).map(|i| byte ^ (i % 251) as u8).collect()
    }

    fn run(name: &str, storage: &FileStorage, path: &Path, ops: &[Op]) {
        let mut oracle = vec![0; storage.len() as usize];
        for op in ops {
            let range = |at: u64, len: u64| at as usize..(at + len) as usize;
            match *op {
                Op::Read(at, len) => {
                    assert_eq!(
                        read(storage, at, len as usize),
                        oracle[range(at, len)],
                        "{name}"
                    );
                }
                Op::Write(at, len, byte) => {
                    let bytes = pattern(len, byte);
                    storage.write_at(&bytes, at).unwrap();
                    oracle[range(at, len)].copy_from_slice(&bytes);
                }
                Op::Zero(at, len, punch) => {
                    zero(storage, at, len, BOTH[usize::from(punch)]);
                    oracle[range(at, len)].fill(0);
                }
                Op::Allocate(at, len) => assert_eq!(storage.allocate(at, len).unwrap(), len),
                Op::Flush => storage.flush().unwrap(),
            }
            assert!(
                read(storage, 0, oracle.len()) == oracle,
                "{name}: after {op:?}"
            );
            assert_holes_are_zero(name, storage, &oracle);
        }
        storage.flush().unwrap();
        assert!(
            std::fs::read(path).unwrap() == oracle,
            "{name}: seen from outside"
        );
    }

    /// Data and holes alternate up to the end, and a hole reads as zeros.
    fn assert_holes_are_zero(name: &str, storage: &FileStorage, oracle: &[u8]) {
        let mut at = 0;
        while at < storage.len() {
            let data = storage.seek(at, Seek::Data).unwrap();
            let hole_end = data.unwrap_or(storage.len());
            assert!(hole_end >= at && hole_end <= storage.len(), "{name}");
            assert!(
                oracle[at as usize..hole_end as usize]
                    .iter()
                    .all(|&b| b == 0),
                "{name}"
            );
            let Some(data) = data else { break };
            at = storage.seek(data, Seek::Hole).unwrap().unwrap();
            assert!(at > data && at <= storage.len(), "{name}");
        }
    }

    const LEN: u64 = 5 * 4096;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn storage_behaves_like_a_vector(ops in proptest::collection::vec(op(LEN), 1..24)) {
            each_kind(LEN, |name, storage, path| run(name, storage, path, &ops));
        }

        #[test]
        fn a_length_may_be_odd(ops in proptest::collection::vec(op(10_007), 1..24)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image");
            sparse(&path, 10_007);
            run("odd", &open(&path, Kind::File, false), &path, &ops);
        }
    }

    /// Whether there is io_uring here. Where it is forbidden direct storage answers at once, and is tested so above.
    fn has_rings() -> bool {
        let ring = Ring::start();
        if let Err(error) = &ring {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            println!("no io_uring here: {error}");
        }
        ring.is_ok()
    }

    /// Begins a request and waits for its end.
    fn later(storage: &FileStorage, at: u64, payload: Payload) -> (io::Result<()>, Payload) {
        let (tell, told) = crossbeam_channel::bounded(1);
        let then = move |outcome, payload| drop(tell.send((outcome, payload)));
        let queue = storage.queue().expect("a ring");
        queue.begin(at, 8192, payload, Box::new(then));
        told.recv().unwrap()
    }

    #[test]
    fn direct_storage_answers_later_as_well() {
        let pool = Arc::<Pool>::default();
        each_kind(64 << 10, |name, storage, path| {
            let answers_later = storage.direct.is_some() && has_rings();
            assert_eq!(storage.queue().is_some(), answers_later, "{name}");
            if !answers_later {
                return;
            }
            let mut slot = pool.take(8192).unwrap();
            slot[..8192].copy_from_slice(&pattern(8192, 3));
            let (outcome, _) = later(storage, 16384, Payload::Data(Arc::new(slot)));
            outcome.unwrap();
            assert!(read(storage, 16384, 8192) == pattern(8192, 3), "{name}");
            let (outcome, room) = later(storage, 16384, Payload::Room(pool.take(8192).unwrap()));
            outcome.unwrap();
            let Payload::Room(slot) = room else {
                panic!("{name}: the same memory")
            };
            assert!(slot[..8192] == pattern(8192, 3), "{name}");
            if storage.kind == Kind::File {
                // What is not there is an error, and nothing makes the image long again.
                File::options()
                    .write(true)
                    .open(path)
                    .unwrap()
                    .set_len(20480)
                    .unwrap();
                for payload in [
                    Payload::Room(slot),
                    Payload::Data(Arc::new(pool.take(8192).unwrap())),
                ] {
                    assert!(later(storage, 16384, payload).0.is_err(), "{name}");
                }
                assert_eq!(std::fs::metadata(path).unwrap().len(), 20480, "{name}");
            }
        });
    }

    #[test]
    fn many_requests_are_under_way_at_once_and_let_go_of_the_file() {
        let (dir, pool) = (direct_dir(), Arc::<Pool>::default());
        let path = dir.path().join("image");
        sparse(&path, 8192 * 100);
        let storage = open(&path, Kind::File, true);
        if !has_rings() {
            return;
        }
        let file = Arc::downgrade(&storage.file);
        let (tell, told) = crossbeam_channel::unbounded();
        for number in 0..100_u64 {
            let mut slot = pool.take(8192).unwrap();
            slot.fill(number as u8);
            let (tell, file) = (tell.clone(), std::sync::Weak::clone(&file));
            let then = move |outcome: io::Result<()>, _| {
                drop(tell.send((outcome, number, file.strong_count())));
            };
            let payload = Payload::Data(Arc::new(slot));
            let queue = storage.queue().unwrap();
            queue.begin(number * 8192, 8192, payload, Box::new(then));
        }
        drop(storage);
        drop(tell);
        let mut ends: Vec<_> = told.iter().collect();
        // The last one to let go of it need not be the last one that has told.
        let open = ends.iter().map(|end| end.2).min();
        assert_eq!(open, Some(0), "nobody has it open");
        ends.sort_by_key(|end| end.1);
        let image = std::fs::read(&path).unwrap();
        for (number, end) in ends.iter().enumerate() {
            assert!(end.0.is_ok() && end.1 == number as u64);
            assert!(
                image[number * 8192..][..8192]
                    .iter()
                    .all(|b| *b == number as u8)
            );
        }
        assert_eq!(ends.len(), 100);
    }

    #[test]
    fn requests_may_be_larger_than_the_bounce_buffer() {
        let len = 4 * BOUNCE_BYTES as u64;
        each_kind(len, |name, storage, _| {
            let long = pattern(3 * BOUNCE_BYTES as u64 + 3, 9);
            storage.write_at(&long, 1001).unwrap();
            assert!(read(storage, 1001, long.len()) == long, "{name}");
            assert_eq!(
                read(storage, 0, 1001),
                vec![0; 1001],
                "{name}: bytes before it"
            );
            let behind = (len - 1001) as usize - long.len();
            assert!(
                read(storage, len - behind as u64, behind)
                    .iter()
                    .all(|&b| b == 0),
                "{name}"
            );
            zero(storage, 1002, long.len() as u64 - 2, Zero::Keep);
            assert_eq!(read(storage, 1000, 3), [0, long[0], 0], "{name}");
            let end = 1001 + long.len() as u64;
            assert_eq!(
                read(storage, end - 2, 3),
                [0, long[long.len() - 1], 0],
                "{name}"
            );
        });
    }

    #[test]
    fn unaligned_zeros_leave_their_neighbours() {
        each_kind(LEN, |name, storage, _| {
            for how in BOTH {
                for (at, len) in [
                    (1, 1),
                    (511, 2),
                    (4095, 4098),
                    (100, 20_000),
                    (0, LEN),
                    (LEN, 0),
                ] {
                    storage.write_at(&vec![0xAA; LEN as usize], 0).unwrap();
                    zero(storage, at, len, how);
                    let mut expected = vec![0xAA; LEN as usize];
                    expected[at as usize..(at + len) as usize].fill(0);
                    assert!(
                        read(storage, 0, LEN as usize) == expected,
                        "{name} {how:?} {at}+{len}"
                    );
                }
            }
        });
    }

    /// Who waits for the answer would take a member for silent that works on a long range.
    #[test]
    fn a_call_does_no_more_than_a_slow_member_does_in_time() {
        let len = SPACE_BYTES + (3 << 20);
        each_kind(len, |name, storage, _| {
            for (how, at) in [
                (Zero::Punch, 0_u64),
                (Zero::Punch, 511),
                (Zero::Keep, 0),
                (Zero::Keep, 511),
            ] {
                let written = storage.kind() == Kind::Device && how == Zero::Keep;
                let most = if written { ZERO_BYTES } else { SPACE_BYTES };
                let border = at.next_multiple_of(storage.align());
                let bytes = border - at + most;
                let zeroed = storage.zero_at(at, len - at, how).unwrap();
                assert_eq!(zeroed, Zeroed { bytes, written }, "{name} {how:?} {at}");
            }
            let reserved = match storage.kind() {
                Kind::File => SPACE_BYTES,
                Kind::Device => len,
            };
            assert_eq!(storage.allocate(0, len).unwrap(), reserved, "{name}");
        });
    }

    #[test]
    fn only_a_punch_gives_space_back() {
        let dir = direct_dir();
        let path = dir.path().join("image");
        sparse(&path, 1 << 20);
        let storage = open(&path, Kind::File, false);
        let allocated = || std::fs::metadata(&path).unwrap().blocks() * 512;
        storage.allocate(0, 1 << 20).unwrap();
        assert!(allocated() >= 1 << 20);
        assert_eq!(read(&storage, 0, 4096), vec![0; 4096]);
        storage.zero_at(0, 1 << 20, Zero::Keep).unwrap();
        assert!(allocated() >= 1 << 20);
        storage.zero_at(0, 1 << 20, Zero::Punch).unwrap();
        assert_eq!(allocated(), 0);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
    }

    /// tmpfs cannot keep space and zero it in one call: the space is taken again.
    #[test]
    fn space_is_kept_where_a_range_cannot_be_zeroed() {
        let small = SmallFs::new();
        let path = small.0.path().join("image");
        sparse(&path, 1 << 19);
        let storage = open(&path, Kind::File, false);
        let direct = sys::fallocate(storage.file.as_fd(), Fallocate::ZeroRange, 0, 4096);
        assert!(
            not_supported(&direct.unwrap_err()),
            "this test needs a system that cannot"
        );
        storage.write_at(&vec![7; 1 << 19], 0).unwrap();
        storage.zero_at(0, 1 << 19, Zero::Keep).unwrap();
        assert!(read(&storage, 0, 1 << 19).iter().all(|&b| b == 0));
        assert_eq!(std::fs::metadata(&path).unwrap().blocks() * 512, 1 << 19);
    }

    #[test]
    fn holes_are_found_and_end_with_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        sparse(&path, 1 << 20);
        let storage = open(&path, Kind::File, false);
        assert_eq!(storage.seek(0, Seek::Data).unwrap(), None);
        assert_eq!(storage.seek(0, Seek::Hole).unwrap(), Some(0));
        storage.write_at(&[1; 4096], 65536).unwrap();
        assert_eq!(storage.seek(0, Seek::Data).unwrap(), Some(65536));
        assert_eq!(storage.seek(65536, Seek::Hole).unwrap(), Some(69632));
        assert_eq!(storage.seek(69632, Seek::Data).unwrap(), None);
        assert_eq!(storage.seek(1 << 20, Seek::Hole).unwrap(), None);
        // What lies behind the served size is none of the caller's business.
        let longer = File::options().append(true).open(&path).unwrap();
        longer.set_len(3 << 20).unwrap();
        longer.write_at(&[1], 2 << 20).unwrap();
        assert_eq!(storage.seek(69632, Seek::Data).unwrap(), None);
        assert_eq!(
            storage.seek((1 << 20) - 1, Seek::Hole).unwrap(),
            Some((1 << 20) - 1)
        );
    }

    #[test]
    fn a_device_is_all_data() {
        each_kind(LEN, |name, storage, _| {
            if storage.kind() == Kind::Device {
                assert_eq!(storage.seek(5, Seek::Data).unwrap(), Some(5), "{name}");
                assert_eq!(storage.seek(5, Seek::Hole).unwrap(), Some(LEN), "{name}");
                assert_eq!(storage.seek(LEN, Seek::Data).unwrap(), None, "{name}");
            }
        });
    }

    #[test]
    fn a_shortened_image_is_an_error_and_no_zeros() {
        for direct in [false, true] {
            let dir = direct_dir();
            let path = dir.path().join("image");
            sparse(&path, LEN);
            let storage = open(&path, Kind::File, direct);
            storage.write_at(&vec![1; LEN as usize], 0).unwrap();
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(8192 + 100)
                .unwrap();
            for (at, len) in [
                (8192, 512),
                (0, LEN),
                (8291, 2),
                (8292, 1),
                (16384, 4096),
                (3, 9000),
            ] {
                let e = storage.read_at(&mut vec![0; len as usize], at).unwrap_err();
                assert_eq!(e.kind(), ErrorKind::UnexpectedEof, "{at}+{len}: {e}");
                let first_missing = at.max(8292);
                let told: u64 = e
                    .to_string()
                    .split(' ')
                    .nth(5)
                    .unwrap()
                    .trim_matches(',')
                    .parse()
                    .unwrap();
                assert!(told <= first_missing && told >= 8192, "{at}+{len}: {e}");
            }
            assert_eq!(read(&storage, 0, 8192), vec![1; 8192]);
            let e = storage.seek(8292, Seek::Data).unwrap_err();
            assert_eq!(
                e.kind(),
                ErrorKind::UnexpectedEof,
                "a missing end is no hole"
            );
            let e = storage.seek(0, Seek::Hole).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn an_image_that_was_cut_short_is_not_made_long_again() {
        for direct in [false, true] {
            let changes: [fn(&FileStorage) -> io::Result<()>; 4] = [
                |storage| storage.write_at(&[1; 512], LEN - 512),
                |storage| storage.write_at(&[1; 512], 0),
                |storage| storage.zero_at(0, 4096, Zero::Keep).map(drop),
                |storage| storage.flush(),
            ];
            for change in changes {
                let dir = direct_dir();
                let path = dir.path().join("image");
                sparse(&path, LEN);
                let storage = open(&path, Kind::File, direct);
                let set_len = |len| storage.file.set_len(len).unwrap();
                set_len(8192);
                let e = change(&storage).unwrap_err();
                assert_eq!(e.kind(), ErrorKind::UnexpectedEof, "{e}");
                assert_eq!(storage.file.metadata().unwrap().len(), 8192);
                // Nor is it believed when somebody else has done that.
                set_len(LEN);
                let e = change(&storage).unwrap_err();
                assert_eq!(e.kind(), ErrorKind::UnexpectedEof, "{e}");
            }
        }
    }

    /// A rehearsal of a resize asks for the length as well.
    #[test]
    fn an_image_has_to_keep_what_it_has_grown_by_once_that_is_required() {
        for direct in [false, true] {
            let dir = direct_dir();
            let path = dir.path().join("image");
            sparse(&path, LEN);
            let storage = open(&path, Kind::File, direct);
            let set_len = |len| storage.file.set_len(len).unwrap();
            let eof = |done: io::Result<()>| {
                assert_eq!(done.unwrap_err().kind(), ErrorKind::UnexpectedEof);
            };
            set_len(2 * LEN);
            assert_eq!(storage.measure().unwrap(), 2 * LEN);
            assert_eq!(read(&storage, LEN, 4096), vec![0; 4096]);
            set_len(LEN);
            assert_eq!(storage.measure().unwrap(), LEN);
            eof(storage.read_at(&mut [1; 4096], LEN));
            assert_eq!(storage.seek(0, Seek::Hole).unwrap(), Some(0));
            storage.write_at(&[1; 512], 0).unwrap();
            storage.flush().unwrap();
            set_len(2 * LEN);
            storage.measure().unwrap();
            storage.require(2 * LEN - 4096);
            set_len(2 * LEN - 4096);
            storage.flush().unwrap();
            set_len(2 * LEN - 8192);
            eof(storage.seek(LEN, Seek::Data).map(drop));
            eof(storage.write_at(&[1; 512], 0));
            set_len(2 * LEN);
            eof(storage.flush());
        }
    }

    /// On a small file system of its own: others need the space of the disk.
    #[test]
    fn a_full_file_system_is_told() {
        let small = SmallFs::new();
        let path = small.0.path().join("image");
        sparse(&path, 4 << 20);
        let storage = open(&path, Kind::File, false);
        storage.allocate(0, 512 << 10).unwrap();
        let e = storage.allocate(0, 4 << 20).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::StorageFull, "{e}");
        let e = storage.write_at(&vec![1; 4 << 20], 0).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::StorageFull, "{e}");
        storage.zero_at(0, 4 << 20, Zero::Punch).unwrap();
        storage.write_at(&[1; 4096], 2 << 20).unwrap();
    }

    /// One mebibyte in memory.
    struct SmallFs(tempfile::TempDir);

    impl SmallFs {
        fn new() -> Self {
            let dir = Self(tempfile::tempdir().unwrap());
            let target = CString::new(dir.0.path().as_os_str().as_bytes()).unwrap();
            sys::mount(c"none", &target, c"tmpfs", 0, c"size=1m").expect("mounting needs root");
            dir
        }
    }

    impl Drop for SmallFs {
        fn drop(&mut self) {
            let target = CString::new(self.0.path().as_os_str().as_bytes()).unwrap();
            let _ = sys::unmount(&target, true);
        }
    }

    #[test]
    fn direct_io_refuses_what_it_cannot_do() {
        let dir = direct_dir();
        let path: PathBuf = dir.path().join("image");
        sparse(&path, 10_007);
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_DIRECT);
        let e = FileStorage::new(options.open(&path).unwrap(), Kind::File, true).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported);
        assert!(e.to_string().contains("not 10007"), "{e}");
    }

    #[test]
    #[should_panic(expected = "1 bytes at 20480 lie inside an image of 20480 bytes")]
    fn a_range_outside_is_a_mistake_of_the_caller() {
        let dir = tempfile::tempdir().unwrap();
        sparse(&dir.path().join("image"), LEN);
        let _ = open(&dir.path().join("image"), Kind::File, false).write_at(&[1], LEN);
    }
}
