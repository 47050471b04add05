//! The rate that all copies of all units of a node share: one small file that their processes take turns at.
//!
//! The file holds what has been read and not been waited for yet, and up to when that has been reckoned. Time pays
//! it at the rate. The lock of the file is the kernel's, so a process that is killed leaves nothing behind but
//! what it has read, which time pays as well. Nobody waits here: who comes while another is at it comes again.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::sys;

/// Name of the file; no unit has such a name.
const NAME: &str = ".copy-rate";
/// Time, bytes, and a word that shows that both belong together.
pub(super) const BYTES: usize = 24;
const CHECK: u64 = 0x7368_6164_6f77_7261;
const SECOND: u128 = 1_000_000_000;

/// A rate that the units of a node share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeRate {
    path: PathBuf,
    rate: u64,
}

/// What the file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Owed {
    /// Nanoseconds of the time of day: it goes on over a restart of the machine, and when it jumps no more comes
    /// of it than what is owed just then.
    at: u64,
    bytes: u64,
}

impl NodeRate {
    /// A rate in bytes per second, above 0, of the units whose runtime directories are in `base`.
    ///
    /// # Errors
    /// The system's error when the file cannot be opened or made.
    pub fn open(base: &Path, rate: u64) -> io::Result<Self> {
        let path = base.join(NAME);
        let shared = Self { path, rate };
        shared.file().map(|_| shared)
    }

    /// The rate, in bytes per second.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// So many bytes have been read: gives the time until everything is paid that any unit has read up to
    /// now. `None`, with nothing done, while another one is at it.
    ///
    /// # Errors
    /// The system's error.
    pub fn add(&self, bytes: u64) -> io::Result<Option<Duration>> {
        self.add_at(bytes, now())
    }

    fn add_at(&self, bytes: u64, now: u64) -> io::Result<Option<Duration>> {
        let file = self.file()?;
        if !sys::try_lock(file.as_fd())? {
            return Ok(None);
        }
        let owed = read(&file)?.after(self.rate, now).and(bytes);
        file.write_all_at(&owed.encode(), 0)?;
        Ok(Some(owed.time(self.rate)))
    }

    /// Opened anew each time: an open file has one lock for all threads.
    fn file(&self) -> io::Result<File> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        options.mode(0o600).open(&self.path)
    }
}

impl Owed {
    /// What is left at a time.
    pub(super) fn after(self, rate: u64, now: u64) -> Self {
        let passed = u128::from(now.saturating_sub(self.at));
        let paid = u64::try_from(passed * u128::from(rate) / SECOND).unwrap_or(u64::MAX);
        Self {
            at: now,
            bytes: self.bytes.saturating_sub(paid),
        }
    }

    pub(super) fn and(self, bytes: u64) -> Self {
        Self {
            bytes: self.bytes.saturating_add(bytes),
            ..self
        }
    }

    pub(super) fn time(self, rate: u64) -> Duration {
        let nanos = u128::from(self.bytes) * SECOND / u128::from(rate.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    pub(super) fn encode(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let words = [self.at, self.bytes, self.at ^ self.bytes ^ CHECK];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What is no such file counts as nothing.
    pub(super) fn decode(bytes: [u8; BYTES]) -> Self {
        let mut words = bytes.chunks_exact(8).map(|place| {
            let bytes = place.try_into().unwrap_or_default();
            u64::from_le_bytes(bytes)
        });
        let mut word = || words.next().unwrap_or_default();
        let (at, bytes, check) = (word(), word(), word());
        match at ^ bytes ^ CHECK == check {
            true => Self { at, bytes },
            false => Self::default(),
        }
    }
}

fn read(file: &File) -> io::Result<Owed> {
    let mut bytes = [0; BYTES];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(Owed::decode(bytes)),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(Owed::default()),
        Err(e) => Err(e),
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn units_wait_for_what_all_have_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let [one, other] = [(); 2].map(|()| NodeRate::open(dir.path(), 1000).expect("opened"));
        let ms = |rate: &NodeRate, bytes, at_ms| {
            let left = rate.add_at(bytes, at_ms * MS).expect("readable");
            left.map(|left| left.as_millis())
        };
        assert_eq!(ms(&one, 500, 10_000), Some(500));
        assert_eq!(ms(&other, 500, 10_000), Some(1000));
        assert_eq!(ms(&one, 100, 10_600), Some(500));
        assert_eq!(
            ms(&other, 100, 60_000),
            Some(100),
            "idle time is not saved up"
        );
        assert_eq!(
            ms(&one, 100, 50_000),
            Some(200),
            "a clock that was put back"
        );
        assert_eq!(ms(&one, 100, 50_100), Some(200));
    }

    #[test]
    fn nobody_waits_for_the_lock_and_who_dies_gives_it_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let rate = NodeRate::open(dir.path(), 1000).expect("opened");
        let held = rate.file().expect("there");
        assert!(sys::try_lock(held.as_fd()).expect("lockable"));
        assert_eq!(rate.add(1).expect("readable"), None);
        drop(held);
        assert!(rate.add(1).expect("readable").is_some());
    }

    #[test]
    fn what_is_no_such_file_counts_as_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let rate = NodeRate::open(dir.path(), 1000).expect("opened");
        for text in ["", "x", "a text that is longer than what the file holds"] {
            std::fs::write(dir.path().join(NAME), text).expect("written");
            let left = rate.add_at(1000, 5000 * MS).expect("readable");
            assert_eq!(left, Some(Duration::from_secs(1)), "{text}");
        }
        std::fs::remove_file(dir.path().join(NAME)).expect("removed");
        assert!(rate.add(1).expect("made anew").is_some());
    }
}
