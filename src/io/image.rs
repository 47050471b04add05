//! Opening a member's image: what it must be, who it is, and the lock that keeps it ours.
//!
//! Identity is taken after the open and the lock (I12), so that no rename can slip another file in
//! between. It must not write: an image that is refused is untouched.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::set::Code;

use super::file::{FileStorage, Kind};
use super::loopdev;
use super::storage::{Seek, Storage};
use super::sys;

/// How long the last requests of a server may take that was killed, and how often it is looked whether they have ended.
const LAST_REQUESTS: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);

/// How an image is read and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoMode {
    /// Through the page cache.
    #[default]
    Buffered,
    /// Past the page cache (`O_DIRECT`).
    Direct,
    /// Past the page cache where the member is a block device.
    Auto,
}

impl IoMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Buffered, Self::Direct, Self::Auto];

    /// Its name in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Buffered => "buffered",
            Self::Direct => "direct",
            Self::Auto => "auto",
        }
    }

    fn bypasses_cache(self, kind: Kind) -> bool {
        match self {
            Self::Buffered => false,
            Self::Direct => true,
            Self::Auto => kind == Kind::Device,
        }
    }
}

/// Who an image is, whatever path leads to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Identity {
    /// A regular file.
    File {
        /// Number of the file system's device.
        dev: u64,
        /// Number in the file system.
        ino: u64,
    },
    /// A block device.
    Device {
        /// The device's own number.
        rdev: u64,
    },
}

impl Identity {
    /// Who the file at `path` is, without opening it; `None` when it could not be an image.
    ///
    /// # Errors
    /// The system's error.
    pub fn of(path: &Path) -> io::Result<Option<Self>> {
        Ok(kind_of(&fs::metadata(path)?).map(|(_, identity)| identity))
    }

    /// Who an open file is; `None` when it could not be an image.
    ///
    /// # Errors
    /// The system's error.
    pub fn of_open(file: &File) -> io::Result<Option<Self>> {
        Ok(kind_of(&file.metadata()?).map(|(_, identity)| identity))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::File { dev, ino } => {
                write!(
                    f,
                    "inode {ino} on device {}:{}",
                    libc::major(dev),
                    libc::minor(dev)
                )
            }
            Self::Device { rdev } => {
                write!(
                    f,
                    "block device {}:{}",
                    libc::major(rdev),
                    libc::minor(rdev)
                )
            }
        }
    }
}

/// An image that is open, locked and checked.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    identity: Identity,
    allocated: u64,
    storage: Arc<FileStorage>,
}

impl Image {
    /// Opens an image to be read and written, and locks it.
    ///
    /// The lock lives as long as the storage: a write lock of the open file (`F_OFD_SETLK`) on a
    /// regular file, the exclusive claim (`O_EXCL`) of a block device. Of a loop device the file behind it must not be
    /// held by anybody: it is the same image.
    ///
    /// # Errors
    /// `NoSuchFile`; `ReadOnlyImage` when it cannot be written, or when its mode has no write
    /// permission for anybody, even if the system would let root pass; `ImageLocked`;
    /// `NotSupported` when it is neither file nor block device, or cannot do direct I/O.
    pub fn open(path: &Path, mode: IoMode) -> Result<Self> {
        let (handle, kind, identity) = look(path)?;
        let direct = mode.bypasses_cache(kind);
        let is_busy = |file: &io::Result<File>| {
            let error = file.as_ref().err().and_then(io::Error::raw_os_error);
            error == Some(libc::EBUSY)
        };
        let file = patiently(direct, || reopen(&handle, kind, direct), is_busy);
        let file = file.map_err(|e| explain(path, kind, e))?;
        if kind == Kind::File {
            let lock = || sys::try_lock(file.as_fd());
            let locked = patiently(direct, lock, |locked| matches!(locked, Ok(false)));
            if !locked.map_err(|e| Error::io(format!("{} cannot be locked", path.display()), e))? {
                return Err(locked_by_another(path));
            }
            if let Some(device) = loop_over(path)? {
                let text = format!("{} is behind {}", path.display(), device.display());
                let hint = format!("unmount it, then losetup -d {}", device.display());
                return Err(Error::new(Code::InUse, text).with_hint(hint));
            }
        } else if let Some(behind) = held_behind(&file).map_err(|e| explain_use(path, e))? {
            return Err(locked_behind(path, &behind));
        }
        let meta = file.metadata().map_err(|e| explain_use(path, e))?;
        assert_eq!(
            kind_of(&meta),
            Some((kind, identity)),
            "the handle names the file"
        );
        let storage = FileStorage::new(file, kind, direct).map_err(|e| explain_use(path, e))?;
        let (path, allocated) = (path.to_owned(), meta.blocks() * 512);
        Ok(Self {
            path,
            identity,
            allocated,
            storage: Arc::new(storage),
        })
    }

    /// Opens an image that cannot be written now, only to be looked at: without a lock, and every write
    /// to it fails. It must not become a member's storage.
    ///
    /// # Errors
    /// As [`Self::open`]; `ReadOnlyImage` also for a block device.
    pub fn glance(path: &Path) -> Result<Self> {
        let (handle, kind, identity) = look(path)?;
        if kind == Kind::Device {
            return Err(read_only(path, "it is a device"));
        }
        let open = || {
            let file = File::open(format!("/proc/self/fd/{}", handle.as_raw_fd()))?;
            let allocated = file.metadata()?.blocks() * 512;
            let storage = Arc::new(FileStorage::new(file, kind, false)?);
            Ok(Self {
                path: path.to_owned(),
                identity,
                allocated,
                storage,
            })
        };
        open().map_err(|e| Error::io(format!("{} cannot be read", path.display()), e))
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Its length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.storage.len()
    }

    /// Bytes that the file system had allocated for it when it was opened; 0 for a block device.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Its bytes.
    #[must_use]
    pub fn storage(&self) -> Arc<FileStorage> {
        Arc::clone(&self.storage)
    }

    /// Its bytes, and the lock with them.
    #[must_use]
    pub fn into_storage(self) -> Arc<FileStorage> {
        self.storage
    }

    /// Whether it holds nothing; see [`is_blank`].
    ///
    /// # Errors
    /// The system's error.
    pub fn is_blank(&self, most: u64) -> Result<bool> {
        is_blank(&*self.storage, most)
            .map_err(|e| Error::io(format!("{} cannot be read", self.path.display()), e))
    }

    /// Whether the bytes `from .. to` hold nothing; see [`is_blank_behind`]. No when they cannot be read.
    #[must_use]
    pub fn is_blank_behind(&self, from: u64, to: u64, most: u64) -> bool {
        is_blank_behind(&*self.storage, from, to, most).unwrap_or(false)
    }
}

/// Loop devices on files on loop devices are followed this far.
const NESTING_MAX: usize = 16;

/// Whether the file at `path` is stored on the file system with device number `mount`, directly or through
/// loop devices. Says no where it cannot be told.
#[must_use]
pub fn lies_on(path: &Path, mount: u64) -> bool {
    let mut dev = device_of(path);
    for _ in 0..NESTING_MAX {
        let Some(number) = dev else { return false };
        if number == mount {
            return true;
        }
        dev = loop_backing(number).and_then(|backing| device_of(&backing));
    }
    false
}

/// Whether the file at `path` is stored on a loop device over `file`, directly or through others, by the name that
/// the kernel has of `file`: it may answer nothing any more. Of a path that does not exist the directory counts.
#[must_use]
pub fn lies_over(path: &Path, file: &Path) -> bool {
    let mut dev = path.ancestors().find_map(device_of);
    for _ in 0..NESTING_MAX {
        let Some(backing) = dev.and_then(loop_backing) else {
            return false;
        };
        if backing == file {
            return true;
        }
        dev = device_of(&backing);
    }
    false
}

/// The device that a file is stored on, or that it is.
fn device_of(path: &Path) -> Option<u64> {
    let meta = fs::metadata(path).ok()?;
    let is_device = meta.file_type().is_block_device();
    Some(if is_device { meta.rdev() } else { meta.dev() })
}

/// The file behind a loop device, or behind the loop device that a partition is on.
fn loop_backing(dev: u64) -> Option<PathBuf> {
    let device = format!("/sys/dev/block/{}:{}", libc::major(dev), libc::minor(dev));
    let read = |file: String| fs::read_to_string(file).ok();
    let name = read(format!("{device}/loop/backing_file"))
        .or_else(|| read(format!("{device}/../loop/backing_file")))?;
    Some(PathBuf::from(name.trim_end_matches('\n')))
}

/// What is behind a loop device, or behind the one that a partition is on, if a lock or a claim of it is held. What has
/// no name here cannot be asked.
fn held_behind(device: &File) -> io::Result<Option<PathBuf>> {
    let Some(path) = loop_backing(device.metadata()?.rdev()) else {
        return Ok(None);
    };
    let bound = sys::loop_status(device.as_fd())?.map(|s| (s.device, s.inode));
    let meta = fs::metadata(&path).ok();
    let meta = meta.filter(|meta| bound == Some((meta.dev(), meta.ino())));
    let Some((kind, _)) = meta.as_ref().and_then(kind_of) else {
        return Ok(None);
    };
    let claim = if kind == Kind::Device {
        libc::O_EXCL
    } else {
        0
    };
    let held = match File::options().read(true).custom_flags(claim).open(&path) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => true,
        Err(e) => return Err(e),
        Ok(file) if kind == Kind::Device => return held_behind(&file),
        Ok(file) => sys::is_locked(file.as_fd())?,
    };
    Ok(held.then_some(path))
}

/// Bytes of data that a look may read before it gives up; more takes longer than a command should.
pub const LOOK_BYTES: u64 = 64 << 20;

/// Whether storage holds only holes and zeros. Holes are not read; `false` as well when there are more
/// than `most` bytes of data, all zeros so far: what cannot be told is taken for data.
///
/// # Errors
/// The system's error.
pub fn is_blank(storage: &dyn Storage, most: u64) -> io::Result<bool> {
    is_blank_behind(storage, 0, storage.len(), most)
}

/// As [`is_blank`], for the bytes `from .. to`.
///
/// # Errors
/// The system's error.
pub fn is_blank_behind(storage: &dyn Storage, from: u64, to: u64, most: u64) -> io::Result<bool> {
    let (mut at, mut left) = (from, most);
    while let Some(data) = storage.seek(at, Seek::Data)?.filter(|data| *data < to) {
        let end = storage.seek(data, Seek::Hole)?.unwrap_or(to).min(to);
        if end - data > left || !is_zero(storage, data, end - data)? {
            return Ok(false);
        }
        left -= end - data;
        at = end;
    }
    Ok(true)
}

/// The loop device that a regular file is behind, if there is one: somebody uses the image. One that is
/// just being let go of is given a moment.
fn loop_over(path: &Path) -> Result<Option<PathBuf>> {
    const TRIES: u32 = 50;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
    for _ in 0..TRIES {
        if loopdev::find(path)?.is_empty() {
            return Ok(None);
        }
        sys::poll(&[], Some(PAUSE)).map_err(|e| Error::io("cannot wait", e))?;
    }
    Ok(loopdev::find(path)?.pop())
}

/// Bytes that are compared with zero at once.
const ZERO_BYTES: u64 = 1 << 20;

fn is_zero(storage: &dyn Storage, at: u64, len: u64) -> io::Result<bool> {
    let mut buf = super::aligned::AlignedBuf::zeroed(ZERO_BYTES.min(len) as usize);
    let mut done = 0;
    while done < len {
        let part = (len - done).min(buf.len() as u64) as usize;
        storage.read_at(&mut buf[..part], at + done)?;
        if buf[..part].iter().any(|&b| b != 0) {
            return Ok(false);
        }
        done += part as u64;
    }
    Ok(true)
}

/// Looks at a file without opening it, so that no tape is rewound and no FIFO waited for. The handle
/// names this very file from now on, whatever happens to the path.
fn look(path: &Path) -> Result<(File, Kind, Identity)> {
    let failed = |e| Error::io(format!("{} cannot be opened", path.display()), e);
    let handle = File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path);
    let handle = handle.map_err(failed)?;
    let meta = handle.metadata().map_err(failed)?;
    let Some((kind, identity)) = kind_of(&meta) else {
        let text = format!("{} is {}, not an image", path.display(), describe(&meta));
        let e = Error::new(Code::NotSupported, text);
        return Err(e.with_hint("name a regular file or a block device"));
    };
    if meta.mode() & 0o222 == 0 {
        return Err(read_only(path, "nobody has permission to write it"));
    }
    if kind == Kind::Device && device_is_read_only(meta.rdev()) {
        return Err(read_only(path, "the device is set read-only"));
    }
    Ok((handle, kind, identity))
}

fn kind_of(meta: &Metadata) -> Option<(Kind, Identity)> {
    let file_type = meta.file_type();
    if file_type.is_file() {
        Some((
            Kind::File,
            Identity::File {
                dev: meta.dev(),
                ino: meta.ino(),
            },
        ))
    } else if file_type.is_block_device() {
        Some((Kind::Device, Identity::Device { rdev: meta.rdev() }))
    } else {
        None
    }
}

fn describe(meta: &Metadata) -> &'static str {
    let file_type = meta.file_type();
    match () {
        () if file_type.is_dir() => "a directory",
        () if file_type.is_char_device() => "a character device",
        () if file_type.is_fifo() => "a FIFO",
        () if file_type.is_socket() => "a socket",
        () => "no regular file",
    }
}

/// Tries once, and for a while again where requests past the page cache may be under way of a server that was killed: what
/// it had opened is open until they have ended.
fn patiently<T>(direct: bool, attempt: impl Fn() -> T, is_busy: impl Fn(&T) -> bool) -> T {
    let begun = Instant::now();
    loop {
        let tried = attempt();
        let over = !direct || begun.elapsed() > LAST_REQUESTS;
        if over || !is_busy(&tried) || sys::poll(&[], Some(LOOK)).is_err() {
            return tried;
        }
    }
}

/// Opens the very file that the handle looked at.
fn reopen(handle: &File, kind: Kind, direct: bool) -> io::Result<File> {
    let direct = if direct { libc::O_DIRECT } else { 0 };
    let exclusive = if kind == Kind::Device {
        libc::O_EXCL
    } else {
        0
    };
    File::options()
        .read(true)
        .write(true)
        .custom_flags(direct | exclusive)
        .open(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// What a failed open says about the image.
fn explain(path: &Path, kind: Kind, e: io::Error) -> Error {
    match (e.raw_os_error(), kind) {
        (Some(libc::EROFS), _) => read_only(path, "its file system is read-only"),
        (Some(libc::EPERM), Kind::File) => {
            let hint = format!(
                "a member's protect = \"immutable\" ends when it is attached or released; else see \
                 lsattr, and chattr -i {}",
                path.display()
            );
            read_only(path, "it is marked immutable or append-only").with_hint(hint)
        }
        (Some(libc::EBUSY), Kind::Device) => locked_by_another(path),
        (Some(libc::EINVAL), _) => explain_use(path, io::Error::from(io::ErrorKind::Unsupported)),
        _ => Error::io(
            format!("{} cannot be opened for writing", path.display()),
            e,
        ),
    }
}

/// Asked of the system, because some devices can be opened for writing all the same.
fn device_is_read_only(rdev: u64) -> bool {
    let ro = format!(
        "/sys/dev/block/{}:{}/ro",
        libc::major(rdev),
        libc::minor(rdev)
    );
    fs::read_to_string(ro).is_ok_and(|ro| ro.trim() == "1")
}

fn explain_use(path: &Path, e: io::Error) -> Error {
    if e.kind() == io::ErrorKind::Unsupported {
        return Error::new(
            Code::NotSupported,
            format!("{} cannot do direct I/O", path.display()),
        )
        .caused_by(e)
        .with_hint("use io = \"buffered\" for this member");
    }
    Error::io(format!("{} cannot be used", path.display()), e)
}

fn read_only(path: &Path, why: &str) -> Error {
    Error::new(
        Code::ReadOnlyImage,
        format!("{} cannot be written: {why}", path.display()),
    )
}

fn locked_by_another(path: &Path) -> Error {
    let text = format!("{} is in use by another set or program", path.display());
    Error::new(Code::ImageLocked, text)
}

fn locked_behind(device: &Path, behind: &Path) -> Error {
    let text = format!(
        "{} is a loop device over {}, which is in use by another set or program",
        device.display(),
        behind.display()
    );
    Error::new(Code::ImageLocked, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, symlink};
    use std::process::Command;

    use super::super::testing::{Loop, direct_dir, eventually, sparse};
    use super::*;

    fn refusal(path: &Path, mode: IoMode) -> (Code, String) {
        let e = Image::open(path, mode).expect_err("it must be refused");
        let text = e.to_string();
        assert!(text.contains(&path.display().to_string()), "{text}");
        (e.code(), text)
    }

    fn run(program: &str, args: &[&str], path: &Path) {
        let status = Command::new(program).args(args).arg(path).status().unwrap();
        assert!(status.success(), "{program} {args:?} {}", path.display());
    }

    #[test]
    fn an_image_is_opened_and_known() {
        let dir = direct_dir();
        let path = dir.path().join("m1.img");
        sparse(&path, 1 << 20);
        for mode in [IoMode::Buffered, IoMode::Direct] {
            let image = eventually(|| Image::open(&path, mode).ok());
            assert_eq!(
                (image.path(), image.size(), image.allocated()),
                (&*path, 1 << 20, 0)
            );
            assert_eq!(Some(image.identity()), Identity::of(&path).unwrap());
            let direct = image.storage().align() > 1;
            assert_eq!(direct, mode == IoMode::Direct);
        }
    }

    #[test]
    fn the_lock_lives_as_long_as_the_storage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m1.img");
        sparse(&path, 4096);
        let image = Image::open(&path, IoMode::Buffered).unwrap();
        assert_eq!(refusal(&path, IoMode::Buffered).0, Code::ImageLocked);
        let storage = image.into_storage();
        assert_eq!(refusal(&path, IoMode::Buffered).0, Code::ImageLocked);
        drop(storage);
        eventually(|| Image::open(&path, IoMode::Buffered).ok());
    }

    #[test]
    fn other_paths_lead_to_the_same_image() {
        let dir = tempfile::tempdir().unwrap();
        let [path, soft, hard, other] = ["m1", "soft", "hard", "m2"].map(|n| dir.path().join(n));
        sparse(&path, 4096);
        sparse(&other, 4096);
        symlink(&path, &soft).unwrap();
        fs::hard_link(&path, &hard).unwrap();
        let image = Image::open(&path, IoMode::Buffered).unwrap();
        for same in [&soft, &hard] {
            assert_eq!(Identity::of(same).unwrap(), Some(image.identity()));
            assert_eq!(refusal(same, IoMode::Buffered).0, Code::ImageLocked);
        }
        let other = Image::open(&other, IoMode::Buffered).unwrap();
        assert_ne!(other.identity(), image.identity());
        drop(image);
        let by_link = eventually(|| Image::open(&soft, IoMode::Buffered).ok());
        assert_eq!(Some(by_link.identity()), Identity::of(&path).unwrap());
    }

    #[test]
    fn a_device_is_claimed_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m1.img");
        sparse(&file, 1 << 20);
        let device = Loop::new(&file);
        for mode in [IoMode::Buffered, IoMode::Direct] {
            let image = eventually(|| Image::open(&device.device, mode).ok());
            assert_eq!(
                (image.size(), image.storage().kind()),
                (1 << 20, Kind::Device)
            );
            assert!(matches!(image.identity(), Identity::Device { .. }));
            let (code, text) = refusal(&device.device, IoMode::Buffered);
            assert_eq!(code, Code::ImageLocked, "{text}");
            let link = dir.path().join(format!("{mode:?}"));
            symlink(&device.device, &link).unwrap();
            assert_eq!(Identity::of(&link).unwrap(), Some(image.identity()));
            assert_eq!(refusal(&link, IoMode::Buffered).0, Code::ImageLocked);
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m1.img");
        assert_eq!(refusal(&path, IoMode::Buffered).0, Code::NoSuchFile);
        run("mkfifo", &[], &path);
        for (path, what) in [
            (dir.path(), "a directory"),
            (&*path, "a FIFO"),
            (Path::new("/dev/null"), "character"),
        ] {
            let (code, text) = refusal(path, IoMode::Buffered);
            assert_eq!(code, Code::NotSupported);
            assert!(text.contains(what), "{text}");
        }
    }

    #[test]
    fn an_image_that_cannot_be_written_is_refused() {
        let dir = direct_dir();
        let path = dir.path().join("m1.img");
        sparse(&path, 1 << 20);
        run("chmod", &["0444"], &path);
        assert_eq!(refusal(&path, IoMode::Buffered).0, Code::ReadOnlyImage);
        run("chmod", &["0644"], &path);
        {
            let device = Loop::new(&path);
            let open = File::open(&device.device).unwrap();
            sys::set_device_read_only(open.as_fd(), true).unwrap();
            let refused = std::panic::catch_unwind(|| refusal(&device.device, IoMode::Buffered));
            // The mark outlives the binding: the next user of the device would meet it.
            sys::set_device_read_only(open.as_fd(), false).unwrap();
            let (code, text) = refused.unwrap();
            assert_eq!(code, Code::ReadOnlyImage, "{text}");
        }
        run("chattr", &["+i"], &path);
        let (code, text) = refusal(&path, IoMode::Buffered);
        run("chattr", &["-i"], &path);
        assert_eq!(code, Code::ReadOnlyImage, "{text}");
        Image::open(&path, IoMode::Buffered).unwrap();
    }

    #[test]
    fn direct_io_that_cannot_be_done_is_refused() {
        let dir = direct_dir();
        let path = dir.path().join("m1.img");
        sparse(&path, 4097);
        let (code, text) = refusal(&path, IoMode::Direct);
        assert_eq!(code, Code::NotSupported);
        assert!(text.contains("4097"), "{text}");
        Image::open(&path, IoMode::Buffered).unwrap();
    }

    #[test]
    fn one_byte_makes_an_image_used() {
        let dir = tempfile::tempdir().unwrap();
        let len = LOOK_BYTES + (1 << 20);
        for at in [None, Some(0), Some(4095), Some(1_234_567), Some(len - 1)] {
            let path = dir.path().join(format!("{at:?}"));
            sparse(&path, len);
            if let Some(at) = at {
                File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .write_at(&[1], at)
                    .unwrap();
            }
            let image = Image::open(&path, IoMode::Buffered).unwrap();
            assert_eq!(image.is_blank(LOOK_BYTES).unwrap(), at.is_none(), "{at:?}");
        }
        let path = dir.path().join("zeros");
        fs::write(&path, vec![0; 3 << 20]).unwrap();
        let zeros = Image::open(&path, IoMode::Buffered).unwrap();
        assert!(zeros.is_blank(3 << 20).unwrap());
        assert!(
            !zeros.is_blank((3 << 20) - 1).unwrap(),
            "more than may be read"
        );
    }

    /// A running member was taken a second time: by a loop device over its image, by a partition of one, by one over another.
    #[test]
    fn a_loop_device_over_an_image_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m1.img");
        sparse(&path, 1 << 20);
        let image = Image::open(&path, IoMode::Buffered).unwrap();
        let losetup = "losetup --find --show --partscan --sector-size 512";
        let script = format!("d=$({losetup} $0) && addpart $d 1 8 1024 && echo $d");
        let ran = Command::new("sh").args(["-c", &script]).arg(&path).output();
        let parts = Loop {
            device: String::from_utf8(ran.unwrap().stdout)
                .unwrap()
                .trim()
                .into(),
        };
        let partition = PathBuf::from(format!("{}p1", parts.device.display()));
        let inner = Loop::new(&path);
        let outer = Loop::new(&inner.device);
        for device in [&partition, &inner.device, &outer.device] {
            let (code, text) = refusal(device, IoMode::Buffered);
            assert_eq!(code, Code::ImageLocked, "{text}");
            assert!(text.contains("m1.img, which is in use"), "{text}");
        }
        drop(image);
        let image = eventually(|| Image::open(&inner.device, IoMode::Buffered).ok());
        let (code, text) = refusal(&outer.device, IoMode::Buffered);
        assert_eq!(code, Code::ImageLocked, "{text}");
        drop(image);
        eventually(|| Image::open(&outer.device, IoMode::Buffered).ok());
    }

    #[test]
    fn an_image_behind_a_loop_device_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m1.img");
        sparse(&path, 1 << 20);
        let device = Loop::new(&path);
        let (code, text) = refusal(&path, IoMode::Buffered);
        assert_eq!(code, Code::InUse);
        assert!(text.contains("/dev/loop"), "{text}");
        drop(device);
        Image::open(&path, IoMode::Buffered).unwrap();
    }
}
