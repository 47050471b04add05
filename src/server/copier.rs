//! The copier: moves the steps of copies under the fence, several at once.
//!
//! A copy's work is a value that the control thread hands in and gets back. A step takes the fence,
//! pins the View, reads from a source and writes the target; holes stay holes. Only a finished step
//! clears bits (I1), and only the fence of a step delays an application (I9). Readers drain a merge too.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::Message;
use super::pipeline::{Fenced, Pipeline, is_of_medium};
use super::step::{Failure, Scratch, Target, Unreadable, copy_range};
use super::throttle::pause_after;
use crate::set::{CopyEnd, CopyStep, CopyWork, Event, MemberId, OpId};

/// Steps of one copy that are under way at once.
const DEPTH: usize = 2;
/// Most bytes of a step: 32 regions of 127 blocks.
const STEP_BYTES: u64 = 32 * 127 * 512;

/// Copies that are running.
#[derive(Debug)]
pub(super) struct Copier {
    pipeline: Arc<Pipeline>,
    messages: Sender<Message>,
    runs: HashMap<OpId, Arc<Run>>,
    halted: bool,
}

#[derive(Debug)]
struct State {
    work: Option<Box<CopyWork>>,
    paused: bool,
    halted: bool,
    end: Option<CopyEnd>,
    threads: usize,
}

/// One running copy.
#[derive(Debug)]
struct Run {
    target: MemberId,
    /// Whether the target is read, and written only where it differs.
    compares: bool,
    /// Whether it gives way to applications.
    yields: bool,
    state: Mutex<State>,
    changed: Condvar,
}

impl Copier {
    pub(super) fn new(pipeline: Arc<Pipeline>, messages: Sender<Message>) -> Self {
        Self {
            pipeline,
            messages,
            runs: HashMap::new(),
            halted: false,
        }
    }

    /// Starts a copy. Without a thread it comes back as failed at once.
    pub(super) fn start(&mut self, work: Box<CopyWork>) {
        let (op, target) = (work.op(), work.target());
        let (compares, yields) = (work.kind().compares(), work.kind().is_merge());
        let state = State {
            work: Some(work),
            paused: false,
            halted: self.halted,
            end: None,
            threads: 0,
        };
        let run = Arc::new(Run {
            target,
            compares,
            yields,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        self.runs.insert(op, Arc::clone(&run));
        // Held until all threads are counted, so that the first cannot take itself for the last.
        let mut state = run.lock();
        for index in 0..DEPTH {
            let (run, pipeline) = (Arc::clone(&run), Arc::clone(&self.pipeline));
            let messages = self.messages.clone();
            let thread = std::thread::Builder::new().name(format!("copy-{op}.{index}"));
            match thread.spawn(move || run.work(&pipeline, &messages)) {
                Ok(_) => state.threads += 1,
                Err(error) => tracing::error!(%op, %error, "no thread for a copy"),
            }
        }
        if state.threads == 0 {
            let reason = "no thread could be started".to_owned();
            state.end = Some(CopyEnd::SourceFailed(reason));
            state.give_back(&self.messages);
        }
    }

    /// Holds all copies back, those to come as well, or lets them go on.
    pub(super) fn halt(&mut self, halted: bool) {
        if std::mem::replace(&mut self.halted, halted) == halted {
            return;
        }
        for run in self.runs.values() {
            run.lock().halted = halted;
            run.changed.notify_all();
        }
    }

    pub(super) fn pause(&self, op: OpId, paused: bool) {
        if let Some(run) = self.runs.get(&op) {
            run.lock().paused = paused;
            run.changed.notify_all();
        }
    }

    /// Tells a copy to come back when its steps under way have ended.
    pub(super) fn stop(&self, op: OpId) {
        if let Some(run) = self.runs.get(&op) {
            run.lock().end.get_or_insert(CopyEnd::Stopped);
            run.changed.notify_all();
        }
    }

    /// Forgets a copy that has come back.
    pub(super) fn ended(&mut self, op: OpId) {
        self.runs.remove(&op);
    }
}

impl State {
    fn give_back(&mut self, messages: &Sender<Message>) {
        if let Some(work) = self.work.take() {
            let end = self.end.take().filter(|_| !work.is_drained());
            let end = end.unwrap_or(CopyEnd::Drained);
            // A closed channel means that the unit has ended and nobody waits.
            let _ = messages.send(Message::Event(Event::CopyEnded(work, end)));
        }
    }
}

impl Run {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies steps until there are none or the copy has to end; the last thread gives the work back.
    fn work(&self, pipeline: &Pipeline, messages: &Sender<Message>) {
        let mut scratch = Scratch::new(STEP_BYTES as usize);
        let _leave = Leave {
            run: self,
            messages,
        };
        while let Some(mut step) = self.next() {
            let fenced = pipeline.enter(step.range());
            let (requests, begun) = (pipeline.requests(), Instant::now());
            let outcome = self.copy(pipeline, &fenced, &mut step, &mut scratch);
            // Under the fence: a mark of a later epoch must come after this clear (I1).
            self.finish(step, outcome);
            drop(fenced);
            if self.yields {
                let came = pipeline.requests().wrapping_sub(requests);
                self.wait(pause_after(begun.elapsed(), came));
            }
        }
    }

    /// Copies one step.
    fn copy(
        &self,
        pipeline: &Pipeline,
        fenced: &Fenced<'_>,
        step: &mut CopyStep,
        scratch: &mut Scratch,
    ) -> Result<(), CopyEnd> {
        if !fenced.live().view().writers().contains(self.target) {
            return Err(CopyEnd::Stopped);
        }
        let permit = fenced.permit_copy(step.regions());
        let mut target = Target::new(self.target, self.compares);
        for part in step.parts() {
            let parts = (&mut [&mut target][..], part);
            copy_range(pipeline, fenced, &permit, parts, scratch).map_err(|Unreadable| {
                CopyEnd::SourceFailed("no source could be read".to_owned())
            })?;
        }
        step.found_equal(target.equal);
        target.failed.map_or(Ok(()), |failure| Err(end_by(failure)))
    }

    /// Lets applications go first, unless the copy has to end.
    fn wait(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut state = self.lock();
        while state.end.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn next(&self) -> Option<CopyStep> {
        let mut state = self.lock();
        loop {
            if state.end.is_some() {
                return None;
            }
            if !(state.paused || state.halted) {
                let work = state.work.as_mut()?;
                if let Some(step) = work.next_step(STEP_BYTES) {
                    return Some(step);
                }
                // Readers may drain what is left at any moment: the bits were looked at just now, and once more
                // when the work is given back.
                if work.is_idle() {
                    self.changed.notify_all();
                    return None;
                }
            }
            // Another thread's step may still leave its regions stale.
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn finish(&self, step: CopyStep, outcome: Result<(), CopyEnd>) {
        let mut state = self.lock();
        if let Some(work) = state.work.as_mut() {
            work.finish(step, outcome.is_ok());
        }
        if let Err(end) = outcome {
            state.end.get_or_insert(end);
        }
        self.changed.notify_all();
    }
}

/// How a copy ends whose target has failed.
fn end_by(failure: Failure) -> CopyEnd {
    match failure {
        Failure::Target(error) => {
            let text = format!("a copy step could not be written: {error}");
            CopyEnd::TargetFailed(text, is_of_medium(&error))
        }
        Failure::Gone => CopyEnd::Stopped,
    }
}

/// Counts a thread out, however it ends; the last one gives the work back.
struct Leave<'a> {
    run: &'a Run,
    messages: &'a Sender<Message>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut state = self.run.lock();
        if std::thread::panicking() {
            let reason = "a copy thread has failed; see the log".to_owned();
            state.end.get_or_insert(CopyEnd::SourceFailed(reason));
            self.run.changed.notify_all();
        }
        state.threads -= 1;
        if state.threads == 0 {
            state.give_back(self.messages);
        }
    }
}
