//! Group commit: who writes, who waits for whom, and the latch.
//!
//! At most one thread writes at any time, the leader. Marks that come meanwhile gather; when the
//! leader is done one of those who wait leads for all of them. There is no thread of its own.
//! Nothing here knows how a batch is written.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::set::BitmapId;

/// Words `first .. end` of a map that have to become durable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Run {
    pub(super) key: BitmapId,
    pub(super) first: u64,
    pub(super) end: u64,
}

impl Run {
    fn holds(&self, other: &Self) -> bool {
        self.key == other.key && self.first <= other.first && self.end >= other.end
    }
}

#[derive(Debug, Default)]
struct State {
    leading: bool,
    /// Threads that wait to lead with a change that is no mark; they go before marks.
    changes: usize,
    pending: Vec<Run>,
    running: Vec<Run>,
    /// Batches of marks that are durable: those who joined the batch with a lower or this number.
    done: u64,
    failed: Option<String>,
}

/// The queue in front of the writer.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    moved: Condvar,
}

impl Gate {
    /// Makes the runs durable, alone or together with others. `write` is called by the thread that
    /// leads, with the runs of all who wait, sorted and joined.
    pub(super) fn mark(
        &self,
        runs: &[Run],
        write: impl FnOnce(&[Run]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut state = self.lock();
        state.check()?;
        if runs.is_empty() {
            return Ok(());
        }
        let joins = runs
            .iter()
            .all(|r| state.running.iter().any(|b| b.holds(r)));
        let ticket = if joins {
            state.done + 1
        } else {
            state.pending.extend(runs);
            // The batch that is running, if there is one, is the one before.
            state.done + 1 + u64::from(!state.running.is_empty())
        };
        loop {
            state.check()?;
            if state.done >= ticket {
                return Ok(());
            }
            if !state.leading && state.changes == 0 {
                break;
            }
            state = self.wait(state);
        }
        state.leading = true;
        state.running = join(std::mem::take(&mut state.pending));
        let batch = state.running.clone();
        drop(state);
        let lead = Lead(self);
        let written = lead.run(|| write(&batch));
        drop(lead);
        written
    }

    /// Waits until nobody leads, and leads. Marks wait until the result is dropped.
    pub(super) fn lead(&self) -> io::Result<Lead<'_>> {
        let mut state = self.lock();
        state.changes += 1;
        while state.leading {
            state = self.wait(state);
        }
        state.changes -= 1;
        if let Err(e) = state.check() {
            self.moved.notify_all();
            return Err(e);
        }
        state.leading = true;
        Ok(Lead(self))
    }

    /// The first failure, if there was one.
    pub(super) fn check(&self) -> io::Result<()> {
        self.lock().check()
    }

    /// Number of marks that wait for a batch which has not begun.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().pending.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let moved = self.moved.wait(state);
        moved.unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> io::Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(text) => Err(io::Error::other(text.clone())),
        }
    }
}

/// The right to write, and the latch: it ends when this value is dropped.
#[derive(Debug)]
#[must_use = "the right to write ends with this value"]
pub(super) struct Lead<'a>(&'a Gate);

impl Lead<'_> {
    /// Writes. After a failure nobody will ever write again: what is on disk is unknown.
    pub(super) fn run<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        write().map_err(|e| {
            let text = format!("the journal failed and takes nothing more: {e}");
            self.0.lock().failed.get_or_insert(text.clone());
            io::Error::other(text)
        })
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if std::thread::panicking() {
            let text = "the journal failed and takes nothing more: a thread ended inside it";
            state.failed.get_or_insert(text.to_owned());
        }
        if !state.running.is_empty() && state.failed.is_none() {
            state.done += 1;
        }
        state.running.clear();
        state.leading = false;
        self.0.moved.notify_all();
    }
}

/// Sorts the runs and joins those that touch.
fn join(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable();
    let mut joined: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.key == run.key && run.first <= last.end => {
                last.end = last.end.max(run.end);
            }
            _ => joined.push(run),
        }
    }
    joined
}
