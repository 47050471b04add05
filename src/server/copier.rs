//! The copier: moves the steps of copies under the fence, several at once.
//!
//! A copy's work is a value that the control thread hands in and gets back. A step takes the fence,
//! pins the View, reads from a source and writes the target; holes stay holes. Copies that run at the same time
//! join each other's steps where they lack the same regions, so that the source is read once. Only a finished step
//! clears bits (I1), and only the fence of a step delays an application (I9). Readers drain a merge too.

use crate::sync::Instant;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread;
use crate::sync::{Condvar, Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::sync::channel::Sender;

use super::Message;
use super::pipeline::Pipeline;
use super::shares::{Outcome, Share, Shares, Step};
use super::step::Scratch;
use super::throttle::{Debt, Done, Rates, share_of_node};
use super::verifier::Verifier;
use crate::io::node_rate::NodeRate;
use crate::set::{CopyEnd, CopyStep, CopyWork, Event, MemberId, OpId, Progress, UNLIMITED};

/// Most bytes of a step: 32 regions of 127 blocks.
pub(super) const STEP_BYTES: u64 = 32 * 127 * 512;
/// How often a copy that waits looks at its rate.
pub(super) const RATE_LOOK: Duration = Duration::from_millis(100);
/// Most bytes of a step while applications ask for something: they wait for no longer one.
const BUSY_BYTES: u64 = 4 * 127 * 512;
/// Most bytes of a step through a hole of the source.
pub(super) const HOLE_BYTES: u64 = 1 << 30;

/// The copies that run.
type Runs = Arc<Mutex<HashMap<OpId, Arc<Run>>>>;

/// Everybody who shares the rates of the unit: the threads of the copies that run, and that of a verify.
#[derive(Clone, Debug, Default)]
pub(super) struct Crowd {
    runs: Runs,
    verifying: Arc<AtomicBool>,
}

impl Crowd {
    /// A verify begins or ends.
    pub(super) fn set_verifying(&self, verifying: bool) {
        self.verifying.store(verifying, Ordering::Relaxed);
    }

    /// The threads that there are, not those that may be: one too many keeps its rate until it leaves.
    pub(super) fn threads(&self) -> u64 {
        let runs = lock(&self.runs);
        let threads: usize = runs.values().map(|run| run.lock().threads).sum();
        threads as u64 + u64::from(self.verifying.load(Ordering::Relaxed))
    }
}

/// Copies that are running.
#[derive(Debug)]
pub(super) struct Copier {
    pipeline: Arc<Pipeline>,
    messages: Sender<Message>,
    crowd: Crowd,
    node_rate: Option<Arc<NodeRate>>,
    halted: bool,
}

#[derive(Debug)]
struct State {
    work: Option<Box<CopyWork>>,
    paused: bool,
    halted: bool,
    end: Option<CopyEnd>,
    /// One for each step that may be under way.
    threads: usize,
    /// Where the source has had a hole, in bytes of the unit: steps may be longer there.
    hole: (u64, u64),
    /// Most bytes of the next step elsewhere.
    most: u64,
    /// What it has read beyond its own rate.
    debt: Debt,
}

/// One running copy.
pub(super) struct Run {
    op: OpId,
    pub(super) target: MemberId,
    /// The source that was named for it.
    pub(super) from: Option<MemberId>,
    progress: Arc<Progress>,
    /// What all copies share with those of other units.
    node_rate: Option<Arc<NodeRate>>,
    /// Whether the target is read, and written only where it differs.
    pub(super) compares: bool,
    /// All copies: who takes a step holds the lock while the others join it. It is taken before that of a state.
    crowd: Crowd,
    messages: Sender<Message>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Copier {
    pub(super) fn new(
        pipeline: Arc<Pipeline>,
        messages: Sender<Message>,
        node_rate: Option<NodeRate>,
    ) -> Self {
        Self {
            pipeline,
            messages,
            crowd: Crowd::default(),
            node_rate: node_rate.map(Arc::new),
            halted: false,
        }
    }

    /// What verifies the unit beside the copies, and shares their rates.
    pub(super) fn verifier(&self) -> Verifier {
        let (pipeline, messages) = (Arc::clone(&self.pipeline), self.messages.clone());
        Verifier::new(
            pipeline,
            messages,
            (self.node_rate.clone(), self.crowd.clone()),
        )
    }

    /// Starts a copy. Without a thread it comes back as failed at once.
    pub(super) fn start(&mut self, work: Box<CopyWork>) {
        let (op, kind) = (work.op(), work.kind());
        let run = Arc::new(Run {
            op,
            target: work.target(),
            from: work.from(),
            progress: work.progress(),
            node_rate: self.node_rate.clone(),
            compares: kind.compares(),
            crowd: self.crowd.clone(),
            messages: self.messages.clone(),
            state: Mutex::new(State {
                work: Some(work),
                paused: false,
                halted: self.halted,
                end: None,
                threads: 0,
                hole: (0, 0),
                most: STEP_BYTES,
                debt: Debt::none(Instant::now()),
            }),
            changed: Condvar::new(),
        });
        lock(&self.crowd.runs).insert(op, Arc::clone(&run));
        // Held until all threads are counted, so that the first cannot take itself for the last.
        let mut state = run.lock();
        Run::deepen(&run, &self.pipeline, &mut state);
        if state.threads == 0 {
            let reason = "no thread could be started".to_owned();
            state.end = Some(CopyEnd::SourceFailed(reason));
            state.give_back(&self.messages);
        }
    }

    /// Has all copies do as many steps at once as they may now.
    pub(super) fn follow_depth(&self) {
        for run in lock(&self.crowd.runs).values() {
            let mut state = run.lock();
            // One without threads is on its way back.
            if state.threads > 0 {
                Run::deepen(run, &self.pipeline, &mut state);
            }
            drop(state);
            run.changed.notify_all();
        }
    }

    /// Holds all copies back, those to come as well, or lets them go on.
    pub(super) fn halt(&mut self, halted: bool) {
        if std::mem::replace(&mut self.halted, halted) == halted {
            return;
        }
        for run in lock(&self.crowd.runs).values() {
            run.change(|state| state.halted = halted);
        }
    }

    pub(super) fn pause(&self, op: OpId, paused: bool) {
        if let Some(run) = lock(&self.crowd.runs).get(&op) {
            run.change(|state| state.paused = paused);
        }
    }

    /// Tells a copy to come back when its steps under way have ended.
    pub(super) fn stop(&self, op: OpId) {
        if let Some(run) = lock(&self.crowd.runs).get(&op) {
            run.change(|state| {
                state.end.get_or_insert(CopyEnd::Stopped);
            });
        }
    }

    /// Forgets a copy that has come back.
    pub(super) fn ended(&mut self, op: OpId) {
        lock(&self.crowd.runs).remove(&op);
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Each knows all.
        let mut run = f.debug_struct("Run");
        run.field("target", &self.target).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Gives the work back when no thread and no step is left, those included that other copies lead.
    fn give_back(&mut self, messages: &Sender<Message>) {
        let over = |work: &mut Box<CopyWork>| work.is_idle();
        if self.threads > 0 {
            return;
        }
        if let Some(work) = self.work.take_if(over) {
            let end = self.end.take().filter(|_| !work.is_drained());
            let end = end.unwrap_or(CopyEnd::Drained);
            // A closed channel means that the unit has ended and nobody waits.
            let _ = messages.send(Message::Event(Event::CopyEnded(work, end)));
        }
    }

    fn may_begin(&self) -> bool {
        !(self.paused || self.halted) && self.end.is_none()
    }

    /// Most bytes of a step that begins at a byte.
    fn budget((hole, most): ((u64, u64), u64), at: u64) -> u64 {
        let inside = (hole.0..hole.1).contains(&at);
        let rest = if inside { hole.1 - at } else { 0 };
        rest.clamp(most, HOLE_BYTES)
    }
}

impl Run {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Starts the threads that a copy may have and has not.
    fn deepen(this: &Arc<Self>, pipeline: &Arc<Pipeline>, state: &mut State) {
        while state.threads < pipeline.copy_depth() {
            let (run, pipeline) = (Arc::clone(this), Arc::clone(pipeline));
            let thread = thread::Builder::new().name(format!("copy-{}", this.op));
            if let Err(error) = thread.spawn(move || Self::work(&run, &pipeline)) {
                return tracing::error!(op = %this.op, %error, "no thread for a copy");
            }
            state.threads += 1;
        }
    }

    /// Goes on without a thread that a member holds: it is counted out, and another one takes its place.
    pub(super) fn replace_thread(this: &Arc<Self>, pipeline: &Arc<Pipeline>) {
        let mut state = this.lock();
        state.threads -= 1;
        if state.end.is_none() {
            Self::deepen(this, pipeline, &mut state);
        }
        state.give_back(&this.messages);
    }

    /// Copies steps until there are none or the copy has to end; the last thread gives the work back.
    fn work(this: &Arc<Self>, pipeline: &Arc<Pipeline>) {
        let mut scratch = Scratch::new(STEP_BYTES as usize);
        let mut leave = Leave {
            run: this,
            counted: true,
        };
        while let Some(shares) = Self::next(this, pipeline, &mut leave) {
            let range = shares[0].step.range();
            let Some(fenced) = pipeline.enter_unless_dead(range) else {
                // Nobody answers: it is taken again when somebody does.
                Shares::new(shares).cut_short();
                continue;
            };
            let (requests, moved) = (pipeline.requests(), scratch.moved());
            let begun = Instant::now();
            scratch.allow(STEP_BYTES.max(pipeline.geometry().region_bytes()));
            let step = Step::begin(shares, fenced);
            let Some((step, outcomes)) = step.copy(pipeline, &mut scratch) else {
                leave.counted = false;
                return;
            };
            let hole = scratch.hole_at(range.end());
            this.lock().hole = hole.unwrap_or_default();
            // Under the fence: a mark of a later epoch must come after this clear (I1).
            step.finish(outcomes, scratch.moved() - moved);
            let done = Done {
                step: begun.elapsed(),
                bytes: scratch.moved() - moved,
                requests: pipeline.requests().wrapping_sub(requests),
            };
            this.lock().most = most_of(done.requests);
            let mut shared = None;
            this.wait(begun + done.step, |since| {
                let own = this.rates(pipeline).pause(done);
                own.max(share_of_node(
                    this.node_rate.as_deref(),
                    &mut shared,
                    done.bytes,
                    since,
                ))
            });
        }
    }

    /// What the parameters leave to each thread of all copies of the unit.
    fn rates(&self, pipeline: &Pipeline) -> Rates {
        pipeline.copy_rates().shared(self.crowd.threads())
    }

    /// Lets applications go first, and keeps the rate, unless the copy has to end. The pause is asked for anew
    /// now and then: another rate holds at once.
    fn wait(&self, since: Instant, mut pause: impl FnMut(Duration) -> Duration) {
        loop {
            let passed = since.elapsed();
            let left = pause(passed).saturating_sub(passed);
            let state = self.lock();
            // Who waits behind the last step holds up the end of the copy.
            let over = state.work.as_ref().is_none_or(|work| work.is_drained());
            if left.is_zero() || over || state.end.is_some() {
                return;
            }
            let waited = self.changed.wait_timeout(state, left.min(RATE_LOOK));
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The next step, and those of the other copies that join it. No other step is taken meanwhile, so that
    /// two copies at the same place do not both read it.
    fn next(this: &Arc<Self>, pipeline: &Pipeline, leave: &mut Leave<'_>) -> Option<Vec<Share>> {
        loop {
            let runs = lock(&this.crowd.runs);
            let mut state = this.lock();
            if state.end.is_some() {
                return None;
            }
            if state.threads > pipeline.copy_depth() {
                leave.counted_out(&mut state);
                return None;
            }
            if pipeline.is_dead() {
                drop(runs);
                this.wait_for_change(state, RATE_LOOK);
                continue;
            }
            let due = this.due(&mut state);
            if state.may_begin() && !(due.is_zero() && this.has_its_turn(&state)) {
                // Readers may have drained what is left of a merge.
                if state.work.as_ref()?.is_drained() {
                    this.changed.notify_all();
                    return None;
                }
            } else if state.may_begin() {
                let room = (state.hole, state.most.min(this.rate_max()));
                let work = state.work.as_mut()?;
                if let Some(step) = work.next_step(|at| State::budget(room, at)) {
                    drop(state);
                    return Some(Self::share(this, step, &runs));
                }
                // Readers may drain what is left at any moment: the bits were looked at just now, and once more
                // when the work is given back.
                if work.is_idle() {
                    this.changed.notify_all();
                    return None;
                }
            }
            drop(runs);
            // A step under way may still leave its regions stale.
            this.wait_for_change(state, due);
        }
    }

    /// No step reads more than a second of its own rate and of that of the node.
    fn rate_max(&self) -> u64 {
        let of_node = self
            .node_rate
            .as_ref()
            .map_or(UNLIMITED, |rate| rate.rate());
        self.progress.rate_max().min(of_node)
    }

    /// Whether it may take part in one more step: what a step reads is known at its end, so a copy with a rate of
    /// its own takes part in one at a time.
    fn has_its_turn(&self, state: &State) -> bool {
        let idle = || state.work.as_ref().is_none_or(|work| work.is_idle());
        self.progress.rate_max() == UNLIMITED || idle()
    }

    /// The time until it may take part in a step, as far as its own rate goes.
    fn due(&self, state: &mut State) -> Duration {
        state.debt.due(self.progress.rate_max(), Instant::now())
    }

    /// Waits until something has changed, or for a part of the time that its rate leaves it to wait: another
    /// rate holds at once.
    fn wait_for_change(&self, state: MutexGuard<'_, State>, due: Duration) {
        if due.is_zero() {
            let waited = self.changed.wait(state);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            return;
        }
        let waited = self.changed.wait_timeout(state, due.min(RATE_LOOK));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn share(this: &Arc<Self>, step: CopyStep, runs: &HashMap<OpId, Arc<Self>>) -> Vec<Share> {
        let mut shares = vec![Share {
            run: Arc::clone(this),
            step,
        }];
        // Each reads the source that was named for it.
        let others = runs.values().filter(|run| run.from == this.from);
        for run in others.filter(|run| !Arc::ptr_eq(run, this)) {
            let mut state = run.lock();
            let due = run.due(&mut state);
            let may = state.may_begin() && due.is_zero() && run.has_its_turn(&state);
            let work = may.then_some(state.work.as_mut()).flatten();
            if let Some(step) = work.and_then(|work| work.join(&shares[0].step)) {
                shares.push(Share {
                    run: Arc::clone(run),
                    step,
                });
            }
        }
        shares
    }

    /// Ends a step of which so many bytes were read, for this copy or for others that share it. One that was cut
    /// short is taken again.
    pub(super) fn finish(&self, step: CopyStep, outcome: Outcome, read: u64) {
        let mut state = self.lock();
        state.debt.add(read.min(step.bytes()));
        if let Some(work) = state.work.as_mut() {
            work.finish(step, matches!(outcome, Outcome::Copied));
        }
        if let Outcome::Ends(end) = outcome {
            state.end.get_or_insert(end);
        }
        state.give_back(&self.messages);
        self.changed.notify_all();
    }
}

/// Most bytes of the next step, when so many requests of applications have come in beside the last one.
pub(super) fn most_of(requests: u64) -> u64 {
    match requests {
        0 => STEP_BYTES,
        _ => BUSY_BYTES,
    }
}

/// Counts a thread out, however it ends; the last one gives the work back.
struct Leave<'a> {
    run: &'a Run,
    /// Whether it is one of the threads of the copy still.
    counted: bool,
}

impl Leave<'_> {
    /// The thread is one too many. It is counted out with the lock held: no other one goes in its place.
    fn counted_out(&mut self, state: &mut State) {
        state.threads -= 1;
        self.counted = false;
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        let mut state = self.run.lock();
        if std::thread::panicking() {
            let reason = "a copy thread has failed; see the log".to_owned();
            state.end.get_or_insert(CopyEnd::SourceFailed(reason));
            self.run.changed.notify_all();
        }
        state.threads -= 1;
        state.give_back(&self.run.messages);
    }
}
