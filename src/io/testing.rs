//! What the tests of this module share: directories that can do direct I/O, loop devices that go.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{loopdev, sys};

/// Repeats `attempt` until it answers. A lock or a claim may outlive its owner for a moment: another
/// test that starts a program copies all descriptors until that program runs.
pub(crate) fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(answer) = attempt() {
            return answer;
        }
        assert!(Instant::now() < end, "it should have happened by now");
        sys::poll(&[], Some(Duration::from_millis(5))).unwrap();
    }
}

/// A temporary directory whose file system can do direct I/O. There is always one: a test that
/// needs it must not pass without.
pub(crate) fn direct_dir() -> tempfile::TempDir {
    let places = [
        std::env::temp_dir(),
        "/var/tmp".into(),
        env!("CARGO_MANIFEST_DIR").into(),
    ];
    let dirs = places
        .iter()
        .filter_map(|place| tempfile::tempdir_in(place).ok());
    let can = |dir: &tempfile::TempDir| {
        let mut options = File::options();
        options
            .write(true)
            .create(true)
            .custom_flags(libc::O_DIRECT);
        options.open(dir.path().join("probe")).is_ok()
    };
    dirs.into_iter()
        .find(can)
        .expect("one of TMPDIR, /var/tmp and the source can do direct I/O")
}

/// A file of `len` bytes, all a hole.
pub(crate) fn sparse(path: &Path, len: u64) {
    File::create(path).unwrap().set_len(len).unwrap();
}

/// A loop device that ends with the test.
#[derive(Debug)]
pub(crate) struct Loop {
    pub(crate) device: PathBuf,
}

impl Loop {
    /// Needs root; without it the test fails and says so.
    pub(crate) fn new(file: &Path) -> Self {
        let attached = loopdev::attach(file, false, 512).expect("loop devices need root");
        Self {
            device: attached.device,
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = loopdev::detach(&self.device);
        } else {
            eventually(|| loopdev::detach(&self.device).ok());
        }
    }
}
