//! The application: a thread that writes pieces, one after the other, until it is told to end.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::pieces::{self, Layout, PIECE, Place};
use super::shell::Shell;
use crate::error::{Error, Result};
use crate::set::Code;

/// How long a writer may need for one piece before something is wrong.
const PIECE_MAX: Duration = Duration::from_secs(60);
/// How often the wait for a writer looks for signals.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct State {
    /// Pieces that are acknowledged.
    written: u64,
    stop: bool,
    failed: Option<std::io::Error>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A writer that runs; dropping it ends it.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts to write the busy slots of a place.
    pub(super) fn start(place: Place, layout: Layout) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || write(&place, layout, &theirs))
            .map_err(|e| Error::io("demo: cannot start the writer", e))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Pieces that are acknowledged.
    pub(super) fn written(&self) -> u64 {
        self.shared.lock().written
    }

    /// Waits until so many pieces are acknowledged.
    pub(super) fn reach(&self, count: u64, shell: &Shell) -> Result<()> {
        let mut deadline = Instant::now() + PIECE_MAX;
        let mut seen = self.written();
        loop {
            let state = self.shared.lock();
            let waited = self.shared.changed.wait_timeout(state, TICK);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if let Some(cause) = state.failed.take() {
                return Err(Error::io("demo: the writer has failed", cause));
            }
            if state.written >= count {
                return Ok(());
            }
            if state.written > seen {
                seen = state.written;
                deadline = Instant::now() + PIECE_MAX;
            }
            drop(state);
            shell.check()?;
            if Instant::now() > deadline {
                let says = format!("demo: the writer has come to a stop after {seen} pieces");
                return Err(Error::new(Code::TimedOut, says));
            }
        }
    }

    /// Ends the writer; how many pieces it has written.
    pub(super) fn end(mut self) -> Result<u64> {
        self.join();
        let mut state = self.shared.lock();
        match state.failed.take() {
            Some(cause) => Err(Error::io("demo: the writer has failed", cause)),
            None => Ok(state.written),
        }
    }

    fn join(&mut self) {
        self.shared.lock().stop = true;
        if let Some(thread) = self.thread.take() {
            // A writer that panicked has told so on standard error.
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.join();
    }
}

fn write(place: &Place, layout: Layout, shared: &Shared) {
    let mut buf = vec![0; PIECE];
    loop {
        let number = {
            let state = shared.lock();
            if state.stop {
                return;
            }
            state.written + 1
        };
        let slot = layout.slot(number);
        pieces::make(slot, number, &mut buf);
        let written = place.write(slot, &buf);
        let mut state = shared.lock();
        match written {
            Ok(()) => state.written = number,
            Err(cause) => {
                state.failed = Some(cause);
                state.stop = true;
            }
        }
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::pieces::Span;

    const LAYOUT: Layout = Layout { still: 0, busy: 4 };

    #[test]
    fn what_a_writer_acknowledges_is_there() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let place = Place::Files(dir.path().to_owned());
        // In a thread of its own: the shell changes its mask of signals.
        let written = std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                let shell = Shell::new().expect("a shell");
                let writer = Writer::start(place.clone(), LAYOUT).expect("a thread");
                writer.reach(6, &shell).expect("it writes");
                assert!(writer.written() >= 6);
                writer.end().expect("no failure")
            });
            run.join().expect("the assertions hold")
        });
        let span = Span {
            before: written,
            after: written,
        };
        assert_eq!(place.check(LAYOUT, span).expect("all there"), 4);
    }

    #[test]
    fn a_writer_that_fails_says_so() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let place = Place::Files(dir.path().join("none"));
        // In a thread of its own: the shell changes its mask of signals.
        let run = std::thread::spawn(|| {
            let shell = Shell::new().expect("a shell");
            let writer = Writer::start(place, LAYOUT).expect("a thread");
            writer.reach(1, &shell).map_err(|e| e.code())
        });
        assert_eq!(run.join().expect("no panic"), Err(Code::NoSuchFile));
    }
}
