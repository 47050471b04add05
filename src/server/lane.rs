//! Lanes: one thread per member for what takes long on a device, so that members flush at once.
//!
//! The system tells of lost writes once: a flush behind one that has failed would succeed without them. So the lane keeps
//! a failure until it is settled who leaves for it, and all flushes meanwhile fail by it (I10).

use crate::sync::Instant;
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
    fn given_up() -> Self {
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
    lanes: [Arc<Mutex<Lane>>; MEMBERS_MAX],
    meters: Arc<Meters>,
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
            if let Some(done) = done.take_if(|_| *left == 0) {
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
                let mut lane = lock(&self.lanes[id.index()]);
                lane.last += 1;
                let number = lane.last;
                let report = Box::new(move |outcome| report(id, outcome));
                lane.waiting.push_back((number, watch.now(), report));
                number
            };
            watch.rouse_if_asleep();
            let lane = Arc::clone(&self.lanes[id.index()]);
            let meters = Arc::clone(&self.meters);
            let job: Job = Box::new(move || {
                let begun = Instant::now();
                let failed = lock(&lane).failed.as_ref().map(Unflushed::again);
                let outcome = match failed.filter(|_| !makes!(FlushTriedAgain)) {
                    Some(failed) => Err(failed),
                    // Before the storage is let go of: behind that its member may come back with a new one.
                    None => flush(store.as_deref()).map_err(|error| lock(&lane).fail(error)),
                };
                meters.ended(id, Asked::Flush, begun);
                drop(store);
                let report = lock(&lane).take(number);
                if let Some(report) = report {
                    report(outcome);
                }
            });
            if let Err(job) = self.run(id, job) {
                job();
            }
        }
    }

    /// It is settled what the failures of these flushes mean: who is a member still is flushed again.
    pub(super) fn settled(&self, results: &Results) {
        for (id, ticket) in results.tickets() {
            lock(&self.lanes[id.index()])
                .failed
                .take_if(|failed| failed.ticket <= ticket);
        }
    }

    /// A member has come back: what failed on it before was settled when it left.
    pub(super) fn welcome(&self, id: MemberId) {
        lock(&self.lanes[id.index()]).failed = None;
    }

    /// When the oldest flush of each member began that has not ended.
    pub(super) fn oldest(&self) -> [Option<Time>; MEMBERS_MAX] {
        let oldest = |at: usize| {
            lock(&self.lanes[at])
                .waiting
                .front()
                .map(|(_, since, _)| *since)
        };
        std::array::from_fn(oldest)
    }

    /// Nobody waits any longer for the flushes of a member: they count as failed. The thread that is in one
    /// ends with it.
    pub(super) fn give_up(&self, id: MemberId) {
        let given_back = {
            let mut lane = lock(&self.lanes[id.index()]);
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
        let mut lane = lock(&self.lanes[id.index()]);
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

fn lock(lane: &Mutex<Lane>) -> MutexGuard<'_, Lane> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

fn flush(store: Option<&dyn Storage>) -> io::Result<()> {
    match store {
        Some(store) => store.flush(),
        None => Err(not_open()),
    }
}

#[cfg(test)]
mod tests;
