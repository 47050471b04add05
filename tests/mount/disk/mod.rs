//! A disk in memory, mounted by FUSE: it fails, kills or loses its power at an operation that is chosen beforehand.
//!
//! Members, their control blocks and the state directory lie on it. It does not know what they hold.

mod face;
mod store;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuser::{BackgroundSession, Config};
use shadowset::io::sys;
use shadowset::testing::Rng;

use face::Face;
use store::{ROOT, Store};

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Reads data.
    Read,
    /// Writes data.
    Write,
    /// fsync(2) and fdatasync(2), of directories too.
    Sync,
    /// fallocate(2) and ftruncate(2).
    Space,
    /// Opens what is there.
    Open,
    /// Makes, renames or removes a name.
    Name,
    /// Looks at names and lengths.
    Look,
}

const KINDS: usize = Kind::Look as usize + 1;

/// How many operations of each kind there were.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts([u64; KINDS]);

impl Counts {
    /// How many of these kinds.
    pub(crate) fn of(&self, kinds: &[Kind]) -> u64 {
        sum(&self.0, kinds)
    }
}

fn sum(counts: &[u64; KINDS], kinds: &[Kind]) -> u64 {
    kinds.iter().map(|kind| counts[*kind as usize]).sum()
}

/// All that change what is on the disk.
pub(crate) const CHANGES: &[Kind] = &[Kind::Write, Kind::Sync, Kind::Space, Kind::Name];

/// What happens at the chosen operation, in place of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Strike {
    /// It fails, and the next ones do not.
    Fail(i32),
    /// Who asked for it is killed, and nothing comes through to the disk any more.
    Kill,
}

/// The operation that is struck.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) kinds: &'static [Kind],
    /// Counted from 1.
    pub(crate) nth: u64,
    pub(crate) strike: Strike,
}

#[derive(Debug)]
struct State {
    store: Store,
    fault: Option<Fault>,
    /// Operations since the disk was armed, of each kind.
    counts: [u64; KINDS],
    struck: bool,
    off: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation of a thread; gives the error that it ends with.
    fn strike(&self, state: &mut State, kind: Kind, thread: u32) -> Option<i32> {
        if state.off {
            return Some(libc::EIO);
        }
        state.counts[kind as usize] += 1;
        let fault = state.fault.filter(|fault| fault.kinds.contains(&kind))?;
        if sum(&state.counts, fault.kinds) != fault.nth {
            return None;
        }
        state.struck = true;
        self.changed.notify_all();
        match fault.strike {
            Strike::Fail(errno) => Some(errno),
            Strike::Kill => {
                // The answer reaches nobody: no thread of it runs another instruction.
                sys::kill(thread, libc::SIGKILL).expect("who asks lives");
                state.off = true;
                Some(libc::EIO)
            }
        }
    }
}

/// The mounted disk.
pub(crate) struct Disk {
    shared: Arc<Shared>,
    // Unmounted before its directory goes.
    _session: BackgroundSession,
    dir: tempfile::TempDir,
}

impl Disk {
    /// An empty disk with the directories `images` and `state`.
    pub(crate) fn mount() -> Self {
        let dir = tempfile::Builder::new().prefix("shadowset-disk-").tempdir();
        let dir = dir.expect("a temporary directory");
        let mut store = Store::new();
        for name in ["images", "state"] {
            store.make(ROOT, name.as_ref(), None);
        }
        let state = State {
            store,
            fault: None,
            counts: [0; KINDS],
            struck: false,
            off: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let face = Face(Arc::clone(&shared));
        let session = fuser::spawn_mount(face, dir.path(), &Config::default());
        Self {
            shared,
            _session: session.expect("a disk in memory"),
            dir,
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Chooses the operation that is struck; counting begins anew.
    pub(crate) fn arm(&self, fault: Fault) {
        let mut state = self.shared.lock();
        (state.fault, state.counts, state.struck) = (Some(fault), [0; KINDS], false);
    }

    /// Nothing is struck any more. Gives how many operations of each kind there were, and whether one was struck.
    pub(crate) fn disarm(&self) -> (Counts, bool) {
        let mut state = self.shared.lock();
        state.fault = None;
        (Counts(state.counts), state.struck)
    }

    /// Whether the operation has come.
    pub(crate) fn is_struck(&self) -> bool {
        self.shared.lock().struck
    }

    /// Waits for it, but not for long.
    pub(crate) fn wait(&self, at_most: Duration) -> bool {
        let state = self.shared.lock();
        let wait = &self.shared.changed;
        let waited = wait.wait_timeout_while(state, at_most, |state| !state.struck);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.struck
    }

    /// Nothing comes through to it from now on.
    pub(crate) fn cut(&self) {
        let mut state = self.shared.lock();
        (state.off, state.struck) = (true, true);
    }

    /// Serves again, after a loss of what was not flushed if there is a generator for it.
    pub(crate) fn serve(&self, power: Option<&mut Rng>) {
        let mut state = self.shared.lock();
        if let Some(rng) = power {
            state.store.lose_power(rng);
        }
        (state.off, state.fault) = (false, None);
    }

    /// What a member's image holds.
    pub(crate) fn image(&self, member: &str) -> Vec<u8> {
        let mut state = self.shared.lock();
        let images = state.store.look_up(ROOT, "images".as_ref()).expect("made");
        let name = PathBuf::from(format!("{member}.img"));
        let inode = state.store.look_up(images, name.as_os_str());
        let inode = inode.unwrap_or_else(|| panic!("{member} has no image"));
        let file = state.store.file(inode).expect("an image is a file");
        file.bytes.clone()
    }
}
