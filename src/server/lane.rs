//! Lanes: one thread per member for what takes long on a device, so that members flush at once.
//!
//! The system tells of lost writes once: a flush behind one that has failed would succeed without them. So the lane keeps
//! a failure until it is settled who leaves for it, and all flushes meanwhile fail by it (I10).

use crate::sync::Instant;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::thread;
use crate::sync::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, PoisonError};

use crate::sync::channel::{Sender, bounded, unbounded};

use super::meter::{Asked, Meters};
use super::pipeline::Stores;
use super::rescue::Held;
use super::results::{Results, given_up, not_open};
use super::watch::{Time, Watch};
use crate::io::Storage;
use crate::set::member::MEMBERS_MAX;
use crate::set::{MemberId, MemberSet};

/// Nanoseconds below which a flush costs less than to wake another thread for it.
const QUICK: u64 = 30_000;

type Job = Box<dyn FnOnce() + Send>;
/// Called once with what became of a flush.
type Report = Box<dyn FnOnce(Result<(), Unflushed>) + Send>;

/// Why a flush of a member failed.
#[derive(Debug)]
pub(super) struct Unflushed {
    pub(super) error: io::Error,
    /// The number of the failure on the lane of its member. A result may come late: it settles this failure and those
    /// before it, and none that came since. 0 where the flush is waited for no longer: that settles nothing.
    pub(super) ticket: u64,
}

impl Unflushed {
    pub(super) fn given_up() -> Self {
        Self {
            error: given_up(),
            ticket: 0,
        }
    }

    /// The same once more.
    fn again(&self) -> Self {
        let number = self.error.raw_os_error();
        let kind = || self.error.kind().into();
        Self {
            error: number.map_or_else(kind, io::Error::from_raw_os_error),
            ticket: self.ticket,
        }
    }
}

/// Which members are flushed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flushed {
    pub(super) all: MemberSet,
    /// Those that are not even asked, since they answer nobody: for them it has failed.
    pub(super) lost: MemberSet,
}

/// The lanes of a unit. A lane's thread starts with its first job and ends with the unit, or when its member
/// is given up.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: [Arc<Place>; MEMBERS_MAX],
    meters: Arc<Meters>,
}

/// What is kept of a member's flushes.
#[derive(Debug)]
struct Place {
    lane: Mutex<Lane>,
    /// Held by who flushes: the next one looks first whether that has failed.
    turn: Mutex<()>,
    /// Whether somebody has it, who may have it for long.
    taken: AtomicBool,
    /// Nanoseconds that a flush takes, by the last ones; the most there are before the first.
    takes: AtomicU64,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            lane: Mutex::default(),
            turn: Mutex::default(),
            taken: AtomicBool::new(false),
            takes: AtomicU64::new(u64::MAX),
        }
    }
}

impl Place {
    fn lock(&self) -> MutexGuard<'_, Lane> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flushes on this thread, unless a flush has failed and nobody has settled it.
    fn flush(&self, store: Option<&dyn Storage>) -> Result<(), Unflushed> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = self.lock().failed.as_ref().map(Unflushed::again);
        if let Some(failed) = failed.filter(|_| !makes!(FlushTriedAgain)) {
            return Err(failed);
        }
        self.taken.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        let flushed = store.ok_or_else(not_open).and_then(Storage::flush);
        let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let takes = match self.takes.load(Ordering::Relaxed) {
            u64::MAX => took,
            last => last - last / 4 + took / 4,
        };
        self.takes.store(takes, Ordering::Relaxed);
        self.taken.store(false, Ordering::Relaxed);
        flushed.map_err(|error| self.lock().fail(error))
    }
}

#[derive(Default)]
struct Lane {
    jobs: Option<Sender<Job>>,
    last: u64,
    /// Who waits for which flush, and since when.
    waiting: VecDeque<(u64, Time, Report)>,
    /// Flushes that have failed, ever.
    failures: u64,
    /// The last of them, until it is settled who leaves.
    failed: Option<Unflushed>,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut lane = f.debug_struct("Lane");
        lane.field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Lane {
    fn take(&mut self, number: u64) -> Option<Report> {
        let place = self.waiting.iter().position(|(n, ..)| *n == number)?;
        self.waiting.remove(place).map(|(.., report)| report)
    }

    /// A flush has failed, whether anybody waits for it still or not.
    fn fail(&mut self, error: io::Error) -> Unflushed {
        self.failures += 1;
        let ticket = self.failures;
        self.failed.insert(Unflushed { error, ticket }).again()
    }
}

impl Lanes {
    pub(super) fn new(meters: Arc<Meters>) -> Self {
        Self {
            meters,
            ..Self::default()
        }
    }

    /// Flushes the members at once and waits for all of them, or until those that do not answer are given up.
    pub(super) fn flush(&self, stores: Stores, members: Flushed, watch: &Watch<Held>) -> Results {
        let (sender, outcomes) = bounded(MEMBERS_MAX);
        self.start(stores, members, watch, move |id, outcome| {
            let _ = sender.send((id, outcome));
        });
        let mut results = Results::default();
        for (id, outcome) in outcomes {
            results.add_flush(id, outcome);
            if makes!(FlushHalfAwaited) {
                break;
            }
        }
        results
    }

    /// Flushes the members in the background; `done` gets what came of it.
    pub(super) fn flush_later(
        &self,
        stores: Stores,
        members: Flushed,
        watch: &Watch<Held>,
        done: impl FnOnce(Results) + Send + 'static,
    ) {
        assert!(!members.all.is_empty(), "I2: a flush of no member");
        let batch = Mutex::new((members.all.len(), Results::default(), Some(done)));
        self.start(stores, members, watch, move |id, outcome| {
            let mut batch = batch.lock().unwrap_or_else(PoisonError::into_inner);
            let (left, results, done) = &mut *batch;
            results.add_flush(id, outcome);
            *left -= 1;
            if let Some(done) = done.take_if(|_| *left == 0 || makes!(FlushHalfAwaited)) {
                done(std::mem::take(results));
            }
        });
    }

    /// Puts a flush on the lane of each member; `report` gets each outcome.
    ///
    /// A storage is let go of before its outcome is told: who waits for it may lock the image.
    fn start(
        &self,
        mut stores: Stores,
        members: Flushed,
        watch: &Watch<Held>,
        report: impl Fn(MemberId, Result<(), Unflushed>) + Send + Sync + 'static,
    ) {
        let report = Arc::new(report);
        for id in members.all.iter() {
            if members.lost.contains(id) {
                report(id, Err(Unflushed::given_up()));
                continue;
            }
            let (store, report) = (stores[id.index()].take(), Arc::clone(&report));
            let number = {
                let mut lane = self.lanes[id.index()].lock();
                lane.last += 1;
                let number = lane.last;
                let report = Box::new(move |outcome| report(id, outcome));
                lane.waiting.push_back((number, watch.now(), report));
                number
            };
            watch.rouse_if_asleep();
            let place = Arc::clone(&self.lanes[id.index()]);
            let meters = Arc::clone(&self.meters);
            let job: Job = Box::new(move || {
                let begun = Instant::now();
                // A failure is noted before the storage is let go of: behind that its member may come back with a new one.
                let outcome = place.flush(store.as_deref());
                meters.ended(id, Asked::Flush, begun);
                drop(store);
                let report = place.lock().take(number);
                if let Some(report) = report {
                    report(outcome);
                }
            });
            if let Err(job) = self.run(id, job) {
                job();
            }
        }
    }

    /// Whether members are flushed sooner by the thread that asks than by another one.
    pub(super) fn are_quick(&self, members: MemberSet) -> bool {
        members.iter().all(|id| {
            let place = &self.lanes[id.index()];
            let is_free = !place.taken.load(Ordering::Relaxed);
            is_free
                && place.takes.load(Ordering::Relaxed) < QUICK
                && place.lock().waiting.is_empty()
        })
    }

    /// Flushes a member on this thread, and lets go of its storage.
    pub(super) fn flush_here(
        &self,
        id: MemberId,
        store: Option<Arc<dyn Storage>>,
    ) -> Result<(), Unflushed> {
        let begun = Instant::now();
        let outcome = self.lanes[id.index()].flush(store.as_deref());
        self.meters.ended(id, Asked::Flush, begun);
        outcome
    }

    /// It is settled what the failures of these flushes mean: who is a member still is flushed again.
    pub(super) fn settled(&self, results: &Results) {
        for (id, ticket) in results.tickets() {
            self.lanes[id.index()]
                .lock()
                .failed
                .take_if(|failed| failed.ticket <= ticket);
        }
    }

    /// A member has come back: what failed on it before was settled when it left.
    pub(super) fn welcome(&self, id: MemberId) {
        self.lanes[id.index()].lock().failed = None;
    }

    /// When the oldest flush of each member began that has not ended.
    pub(super) fn oldest(&self) -> [Option<Time>; MEMBERS_MAX] {
        let oldest = |at: usize| {
            self.lanes[at]
                .lock()
                .waiting
                .front()
                .map(|(_, since, _)| *since)
        };
        std::array::from_fn(oldest)
    }

    /// Nobody waits any longer for the flushes of a member: they count as failed. The thread that is in one
    /// ends with it. Whether that is so `still` is asked under the lock behind which [`Self::welcome`] comes: the
    /// flushes of a member that has come back are waited for.
    pub(super) fn give_up(&self, id: MemberId, still: impl FnOnce() -> bool) {
        let given_back = {
            let mut lane = self.lanes[id.index()].lock();
            if !still() {
                return;
            }
            if !lane.waiting.is_empty() {
                lane.jobs = None;
            }
            std::mem::take(&mut lane.waiting)
        };
        for (.., report) in given_back {
            report(Err(Unflushed::given_up()));
        }
    }

    /// Runs a job on the member's lane. Gives the job back when no thread can be had.
    fn run(&self, id: MemberId, job: Job) -> Result<(), Job> {
        let mut lane = self.lanes[id.index()].lock();
        if lane.jobs.is_none() {
            let (sender, jobs) = unbounded::<Job>();
            let name = format!("lane-{}", id.index());
            let work = move || jobs.into_iter().for_each(|job| job());
            if thread::Builder::new().name(name).spawn(work).is_err() {
                return Err(job);
            }
            lane.jobs = Some(sender);
        }
        match &lane.jobs {
            Some(sender) => sender.send(job).map_err(|back| back.0),
            None => Err(job),
        }
    }
}

#[cfg(test)]
mod tests;
