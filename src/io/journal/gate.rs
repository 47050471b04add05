//! Group commit: who writes, who waits for whom, and the latch.
//!
//! At most one thread writes at any time, the leader. Announcements of marks that come meanwhile gather;
//! when the leader is done one of those who wait leads for all of them, or for as many as the message
//! mode lets go together. There is no thread of its own. Nothing here knows how a batch is written.
//!
//! Announcements are numbered and committed in the order of their numbers, so one number says which are
//! durable. Whoever waits returns when its own is, whatever the mode and whoever led.

use crate::sync::Instant;
use crate::sync::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::mode::{Due, MessageCounts, MessageSettings, Messages};
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

/// A run that waits for its commit.
#[derive(Debug)]
struct Pending {
    /// Number of the announcement that it belongs to.
    number: u64,
    /// When that came; zero where no clock is read.
    at: Duration,
    run: Run,
}

#[derive(Debug, Default)]
struct State {
    leading: bool,
    /// Threads that wait to lead with a change that is no mark; they go before marks.
    changes: usize,
    /// In the order of their numbers.
    pending: VecDeque<Pending>,
    running: Vec<Run>,
    /// Numbers of the last announcement that was made, of the last that is being written, and of the
    /// last that is durable.
    announced: u64,
    begun: u64,
    done: u64,
    messages: Messages,
    failed: Option<String>,
}

/// What a thread does whose announcement is not durable yet.
enum Turn {
    /// Leads, for so many announcements at most.
    Lead(u64),
    /// Waits until something has changed.
    Wait,
    /// Waits as well, but no longer than this.
    WaitFor(Duration),
}

/// The queue in front of the writer.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    moved: Condvar,
    start: Instant,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            moved: Condvar::new(),
            start: Instant::now(),
        }
    }
}

impl Gate {
    /// Makes the runs durable, alone or together with others. `write` is called by a thread that
    /// leads, with the runs of all that are committed together, sorted and joined; `is_durable` tells of
    /// a run whether somebody else has made durable what the caller needs of it, since it looked.
    pub(super) fn mark(
        &self,
        runs: &[Run],
        is_durable: impl Fn(&Run) -> bool,
        write: impl Fn(&[Run]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut state = self.lock();
        state.check()?;
        // Asked with the lock: what was written meanwhile would be announced and written once more.
        if runs.iter().all(is_durable) {
            return Ok(());
        }
        let number = match state.under_way(runs) {
            Some(number) => number,
            None => {
                let now = self.now(&state);
                state.announce(runs, now)
            }
        };
        loop {
            if state.done >= number {
                return Ok(());
            }
            state.check()?;
            let now = self.now(&state);
            state = match state.turn(now) {
                Turn::Wait => self.wait(state),
                Turn::WaitFor(time) => self.wait_for(state, time),
                Turn::Lead(most) => {
                    let batch = state.begin(most);
                    drop(state);
                    let lead = Lead(self);
                    let written = lead.run(|| write(&batch));
                    drop(lead);
                    written?;
                    self.lock()
                }
            };
        }
    }

    /// Commits announcements by other rules from now on, those that wait among them.
    pub(super) fn set_messages(&self, settings: MessageSettings) {
        self.lock().messages.set(settings, self.start.elapsed());
        self.moved.notify_all();
    }

    /// Counts announcements into these from now on.
    pub(super) fn count_into(&self, counts: Arc<MessageCounts>) {
        self.lock().messages.count_into(counts);
    }

    /// What is counted of announcements.
    #[cfg(test)]
    pub(super) fn counts(&self) -> Arc<MessageCounts> {
        Arc::clone(self.lock().messages.counts())
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

    /// The time, where it matters.
    fn now(&self, state: &State) -> Duration {
        match state.messages.needs_time() {
            true => self.start.elapsed(),
            false => Duration::ZERO,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let moved = self.moved.wait(state);
        moved.unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let moved = self.moved.wait_timeout(state, time);
        moved.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl State {
    fn check(&self) -> io::Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(text) => Err(io::Error::other(text.clone())),
        }
    }

    /// The announcement that makes all these runs durable, if they are being written or wait already.
    fn under_way(&self, runs: &[Run]) -> Option<u64> {
        let mut last = 0;
        for run in runs {
            let number = match self.running.iter().any(|r| r.holds(run)) {
                true => self.begun,
                false => self.pending.iter().find(|p| p.run.holds(run))?.number,
            };
            last = last.max(number);
        }
        Some(last)
    }

    /// Announces runs; gives the number to wait for.
    fn announce(&mut self, runs: &[Run], now: Duration) -> u64 {
        self.messages.announce(now);
        self.announced += 1;
        let number = self.announced;
        let pending = runs.iter().map(|run| Pending {
            number,
            at: now,
            run: *run,
        });
        self.pending.extend(pending);
        number
    }

    /// What a thread does now whose announcement is not durable: it is being written, or among those that wait.
    fn turn(&self, now: Duration) -> Turn {
        let Some(oldest) = self.pending.front() else {
            return Turn::Wait;
        };
        if self.leading || self.changes > 0 {
            return Turn::Wait;
        }
        match self
            .messages
            .due(self.announced - self.done, oldest.at, now)
        {
            Due::Now(most) => Turn::Lead(most),
            Due::At(time) => Turn::WaitFor(time.saturating_sub(now)),
        }
    }

    /// Begins to lead with the oldest announcements; gives their runs.
    fn begin(&mut self, most: u64) -> Vec<Run> {
        self.leading = true;
        self.begun = self.announced.min(self.done.saturating_add(most));
        let count = self.pending.partition_point(|p| p.number <= self.begun);
        self.messages.committed(self.begun - self.done);
        self.running = join(self.pending.drain(..count).map(|p| p.run).collect());
        self.running.clone()
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
            state.done = state.begun;
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
