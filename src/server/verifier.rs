//! The verifier: compares the sources piece by piece, each step under the fence of its bytes.
//!
//! No write is under way inside a fence, so what differs there is no write that has come to one member and not yet
//! to another. It runs on one thread, holds up no application but for a step (I9), gives way to them and keeps the
//! rates as copies do. What it reads it compares, what it finds it writes down; who leaves is not its business.

use crate::sync::Instant;
use crate::sync::thread;
use crate::sync::{Condvar, Mutex, MutexGuard};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::sync::channel::Sender;

use super::Message;
use super::compare::Comparer;
use super::copier::{Crowd, HOLE_BYTES, RATE_LOOK, STEP_BYTES, most_of};
use super::errand::{Errand, Hold, Stop};
use super::pipeline::Pipeline;
use super::run::Runner;
use super::throttle::{Debt, Done, share_of_node};
use super::watch::Time;
use crate::io::node_rate::NodeRate;
use crate::set::{Event, MemberId, OpId, Progress, UNLIMITED, VerifyWork};

/// What runs the verify of a unit.
#[derive(Debug)]
pub(super) struct Verifier {
    pipeline: Arc<Pipeline>,
    messages: Sender<Message>,
    node_rate: Option<Arc<NodeRate>>,
    crowd: Crowd,
    halted: bool,
    run: Option<Arc<Run>>,
}

/// The verify that runs.
#[derive(Debug)]
pub(super) struct Run {
    op: OpId,
    progress: Arc<Progress>,
    node_rate: Option<Arc<NodeRate>>,
    crowd: Crowd,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    paused: bool,
    halted: bool,
    stopped: bool,
    /// What it has read beyond its own rate.
    debt: Debt,
}

impl Verifier {
    /// One that shares rates with others.
    pub(super) fn new(
        pipeline: Arc<Pipeline>,
        messages: Sender<Message>,
        (node_rate, crowd): (Option<Arc<NodeRate>>, Crowd),
    ) -> Self {
        Self {
            pipeline,
            messages,
            node_rate,
            crowd,
            halted: false,
            run: None,
        }
    }

    /// Starts a verify. Without a thread it comes to its end at once.
    pub(super) fn start(&mut self, work: VerifyWork) {
        let op = work.op();
        let run = Arc::new(Run {
            op,
            progress: work.progress(),
            node_rate: self.node_rate.clone(),
            crowd: self.crowd.clone(),
            state: Mutex::new(State {
                paused: false,
                halted: self.halted,
                stopped: false,
                debt: Debt::none(Instant::now()),
            }),
            changed: Condvar::new(),
        });
        self.crowd.set_verifying(true);
        self.run = Some(Arc::clone(&run));
        let end = End {
            op,
            complete: false,
            messages: self.messages.clone(),
        };
        let errand = Errand::new(run, work, end);
        let pipeline = Arc::clone(&self.pipeline);
        let thread = thread::Builder::new().name(format!("verify-{op}"));
        // Without a thread the closure is dropped, and tells its end.
        if let Err(error) = thread.spawn(move || Run::work(errand, &pipeline, None)) {
            tracing::error!(%op, %error, "no thread for a verify");
        }
    }

    /// Holds the verify back, one to come as well, or lets it go on.
    pub(super) fn halt(&mut self, halted: bool) {
        self.halted = halted;
        if let Some(run) = &self.run {
            run.change(|state| state.halted = halted);
        }
    }

    pub(super) fn pause(&self, op: OpId, paused: bool) {
        if let Some(run) = self.run.as_ref().filter(|run| run.op == op) {
            run.change(|state| state.paused = paused);
        }
    }

    /// Has the verify end behind its step under way.
    pub(super) fn stop(&self, op: OpId) {
        if let Some(run) = self.run.as_ref().filter(|run| run.op == op) {
            run.change(|state| state.stopped = true);
        }
    }

    /// Forgets the verify, which has ended.
    pub(super) fn ended(&mut self) {
        self.crowd.set_verifying(false);
        self.run = None;
    }
}

/// Tells the end of a verify, however it comes.
#[derive(Debug)]
pub(super) struct End {
    op: OpId,
    complete: bool,
    messages: Sender<Message>,
}

impl Drop for End {
    fn drop(&mut self) {
        // A closed channel means that the unit has ended and nobody waits.
        let event = Event::VerifyEnded(self.op, self.complete);
        let _ = self.messages.send(Message::Event(event));
    }
}

impl Run {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Compares steps until everything is compared or it has to end, or another thread goes on with it. A member that
    /// is late, since then, is waited for first.
    pub(super) fn work(
        mut errand: Errand,
        pipeline: &Arc<Pipeline>,
        mut late: Option<(MemberId, Time)>,
    ) {
        let this = Arc::clone(&errand.run);
        let (mut comparer, mut most) = (Comparer::default(), STEP_BYTES);
        while this.may_go_on() {
            let (room, hole) = (most.min(this.rate_max()), comparer.hole());
            let reach = |from: u64| hole.min(from + HOLE_BYTES).saturating_sub(from);
            let Some(range) = errand.work.next_step(|from| room.max(reach(from))) else {
                errand.end.complete = true;
                break;
            };
            let (requests, begun) = (pipeline.requests(), Instant::now());
            let mut hold = Hold::new(pipeline, errand);
            let (read, outcome) = match late.take() {
                Some(late) => (0, hold.ask_again(late)),
                None => comparer.step(&mut hold, range, room),
            };
            // Another thread has it otherwise.
            let Some(back) = hold.into_errand() else {
                return;
            };
            errand = back;
            this.lock().debt.add(read);
            match outcome {
                Ok(()) => {}
                Err(Stop::Late(id, since)) => late = Some((id, since)),
                Err(Stop::Later | Stop::Replaced) => this.look_later(),
            }
            let done = Done {
                step: begun.elapsed(),
                bytes: read,
                requests: pipeline.requests().wrapping_sub(requests),
            };
            most = most_of(done.requests);
            this.give_way(pipeline, begun, done);
        }
    }

    /// No step reads more than a second of its own rate and of that of the node.
    fn rate_max(&self) -> u64 {
        let of_node = self.node_rate.as_ref().map_or(UNLIMITED, |r| r.rate());
        self.progress.rate_max().min(of_node)
    }

    /// Waits while it is held or its own rate has it wait; says whether it may go on.
    fn may_go_on(&self) -> bool {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return false;
            }
            let due = state.debt.due(self.progress.rate_max(), Instant::now());
            let held = state.paused || state.halted;
            if !held && due.is_zero() {
                return true;
            }
            let time = if held {
                Duration::MAX
            } else {
                due.min(RATE_LOOK)
            };
            let waited = self.changed.wait_timeout(state, time);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets applications go first, and keeps the rates. Another rate holds at once.
    fn give_way(&self, pipeline: &Pipeline, begun: Instant, done: Done) {
        let since = begun + done.step;
        let mut told = None;
        loop {
            let passed = since.elapsed();
            let rates = pipeline.copy_rates().shared(self.crowd.threads());
            let of_node = share_of_node(self.node_rate.as_deref(), &mut told, done.bytes, passed);
            let left = rates.pause(done).max(of_node).saturating_sub(passed);
            let state = self.lock();
            if left.is_zero() || state.stopped {
                return;
            }
            let waited = self.changed.wait_timeout(state, left.min(RATE_LOOK));
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Whether it has to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Waits a little, unless it has to end: nothing can be compared just now.
    pub(super) fn look_later(&self) {
        let state = self.lock();
        if !state.stopped {
            let waited = self.changed.wait_timeout(state, RATE_LOOK);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Runner {
    /// Forgets what has come back, if that is what has happened.
    pub(super) fn note_end(&mut self, event: &Event) {
        match event {
            Event::CopyEnded(work, _) => self.copier.ended(work.op()),
            Event::VerifyEnded(..) => self.verifier.ended(),
            _ => {}
        }
    }

    /// Has a copy or a verify come back.
    pub(super) fn stop_work(&self, op: OpId) {
        self.copier.stop(op);
        self.verifier.stop(op);
    }

    /// Lets a verify run, and its clock with it.
    pub(super) fn start_verify(&mut self, work: VerifyWork) {
        self.speeds.begin(work.op(), None, 0, Instant::now());
        self.verifier.start(work);
    }
}

#[cfg(test)]
mod tests;
