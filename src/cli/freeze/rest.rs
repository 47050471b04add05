//! Several file systems brought to rest one after the other, and let go all at once.
//!
//! Each step may wait for the servers of the units below, for as long as these like. So nothing here holds a lock
//! across one, and letting go never waits for one file system before it begins with the next.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::system;
use super::wire::End;

/// How long thawing may take before somebody looks whether a server is stopped.
pub(super) const LOOK: Duration = Duration::from_millis(200);

/// File systems on their way to rest and back.
#[derive(Debug)]
pub(super) struct Rest {
    places: Vec<Arc<Place>>,
    released: AtomicBool,
}

#[derive(Debug)]
struct Place {
    file: File,
    state: Mutex<State>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Open,
    /// In the call, which cannot be taken back.
    Freezing,
    Frozen(Instant),
    /// In the call.
    Thawing,
    Over(End),
}

impl Rest {
    /// File systems that go on, each by an open file of it.
    pub(super) fn new(files: Vec<File>) -> Self {
        Self::all(files, &State::Open)
    }

    /// File systems that another process has frozen at this time or later.
    pub(super) fn assumed(files: Vec<File>, since: Instant) -> Self {
        Self::all(files, &State::Frozen(since))
    }

    fn all(files: Vec<File>, state: &State) -> Self {
        let place = |file| {
            let state = Mutex::new(state.clone());
            Arc::new(Place { file, state })
        };
        Self {
            places: files.into_iter().map(place).collect(),
            released: AtomicBool::new(false),
        }
    }

    /// Freezes them in their order, each of which is told of before; goes no further once they are released.
    ///
    /// # Errors
    /// The index of the one that cannot be frozen, and the system's error.
    pub(super) fn freeze(&self, begins: impl Fn(usize)) -> Result<(), (usize, io::Error)> {
        for (index, place) in self.places.iter().enumerate() {
            if self.released.load(Ordering::SeqCst) {
                return Ok(());
            }
            begins(index);
            place.freeze().map_err(|error| (index, error))?;
            // Who released them meanwhile has left this one to its freezer.
            if self.released.load(Ordering::SeqCst) {
                place.thaw();
            }
        }
        Ok(())
    }

    /// Lets go of all that are frozen, and of one that is being frozen as soon as it is. Servers that are stopped are
    /// continued when thawing waits for them.
    pub(super) fn release(&self, servers: &[u32]) {
        self.released.store(true, Ordering::SeqCst);
        let (done, over) = mpsc::channel();
        let is_left = |place: &&Arc<Place>| !place.thaw_beside(&done);
        let left: Vec<_> = self.places.iter().filter(is_left).collect();
        // There is no thread to be had for these.
        for place in left {
            servers
                .iter()
                .for_each(|pid| system::continue_if_stopped(*pid));
            place.thaw();
        }
        drop(done);
        wake(servers, || over.recv_timeout(LOOK));
    }

    /// How each has ended; one that has not is stuck.
    pub(super) fn ends(&self) -> Vec<End> {
        let end = |place: &Arc<Place>| match &*place.lock() {
            State::Over(end) => end.clone(),
            State::Open => End::Never,
            State::Freezing | State::Frozen(_) | State::Thawing => {
                End::Stuck("it has not come to an end".into())
            }
        };
        self.places.iter().map(end).collect()
    }

    /// Whether one is on its way to rest.
    pub(super) fn is_freezing(&self) -> bool {
        let is = |place: &Arc<Place>| *place.lock() == State::Freezing;
        self.places.iter().any(is)
    }
}

/// Waits until there is nothing more to receive, and keeps the servers going meanwhile.
pub(super) fn wake<T>(servers: &[u32], mut next: impl FnMut() -> Result<T, RecvTimeoutError>) {
    loop {
        match next() {
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                servers
                    .iter()
                    .for_each(|pid| system::continue_if_stopped(*pid));
            }
        }
    }
}

impl Place {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn freeze(&self) -> io::Result<()> {
        *self.lock() = State::Freezing;
        // Writers wait from the beginning of the call.
        let since = Instant::now();
        let frozen = system::freeze(self.file.as_fd());
        *self.lock() = match frozen {
            Ok(()) => State::Frozen(since),
            Err(_) => State::Over(End::Never),
        };
        frozen
    }

    /// Thaws it on a thread of its own; false when there is none.
    fn thaw_beside(self: &Arc<Self>, done: &Sender<()>) -> bool {
        let (place, done) = (Arc::clone(self), done.clone());
        let thaw = move || {
            place.thaw();
            // Nobody waits any more: then it does not matter.
            let _ = done.send(());
        };
        std::thread::Builder::new().spawn(thaw).is_ok()
    }

    /// Does nothing unless it is frozen; only one caller finds it so.
    fn thaw(&self) {
        let since = {
            let mut state = self.lock();
            let State::Frozen(since) = *state else {
                return;
            };
            *state = State::Thawing;
            since
        };
        let end = match system::thaw(self.file.as_fd()) {
            Ok(()) => End::Thawed(u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => End::ThawedBefore,
            Err(e) => End::Stuck(e.to_string()),
        };
        *self.lock() = State::Over(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_frozen_is_not_thawed() {
        // proc cannot be frozen.
        let file = || File::open("/proc").expect("it is there");
        let rest = Rest::new(vec![file(), file()]);
        let (index, error) = rest.freeze(|_| {}).expect_err("proc goes on");
        assert_eq!((index, error.raw_os_error()), (0, Some(libc::EOPNOTSUPP)));
        rest.release(&[]);
        assert_eq!(rest.ends(), [End::Never, End::Never]);
        let rest = Rest::new(vec![file()]);
        rest.release(&[]);
        assert!(rest.freeze(|_| {}).is_ok(), "too late for that");
        assert_eq!(rest.ends(), [End::Never]);
    }
}
