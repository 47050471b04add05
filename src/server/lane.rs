//! Lanes: one thread per member for what takes long on a device, so that members flush at once.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Sender, bounded, unbounded};

use super::pipeline::{Results, Stores};
use crate::io::Storage;
use crate::set::member::MEMBERS_MAX;
use crate::set::{MemberId, MemberSet};

type Job = Box<dyn FnOnce() + Send>;

/// The lanes of a unit. A lane's thread starts with its first job and ends with the unit.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: [Mutex<Option<Sender<Job>>>; MEMBERS_MAX],
}

impl Lanes {
    /// Flushes the members at once and waits for all of them.
    pub(super) fn flush(&self, stores: Stores, members: MemberSet) -> Results {
        let (sender, outcomes) = bounded(MEMBERS_MAX);
        self.start(stores, members, move |id, outcome| {
            let _ = sender.send((id, outcome));
        });
        let mut results = Results::default();
        for (id, outcome) in outcomes {
            results.add(id, outcome);
        }
        results
    }

    /// Flushes the members in the background; `done` gets those that failed.
    pub(super) fn flush_later(
        &self,
        stores: Stores,
        members: MemberSet,
        done: impl FnOnce(MemberSet) + Send + 'static,
    ) {
        assert!(!members.is_empty(), "I2: a flush of no member");
        let batch = Mutex::new((members.len(), Results::default(), Some(done)));
        self.start(stores, members, move |id, outcome| {
            let mut batch = batch.lock().unwrap_or_else(PoisonError::into_inner);
            let (left, results, done) = &mut *batch;
            results.add(id, outcome);
            *left -= 1;
            if let Some(done) = done.take_if(|_| *left == 0) {
                done(results.failed);
            }
        });
    }

    /// Puts a flush on the lane of each member; `report` gets each outcome.
    ///
    /// A storage is let go of before its outcome is told: who waits for it may lock the image.
    fn start(
        &self,
        mut stores: Stores,
        members: MemberSet,
        report: impl Fn(MemberId, io::Result<()>) + Send + Sync + 'static,
    ) {
        let report = Arc::new(report);
        for id in members.iter() {
            let (store, report) = (stores[id.index()].take(), Arc::clone(&report));
            let job: Job = Box::new(move || {
                let outcome = flush(store.as_deref());
                drop(store);
                report(id, outcome);
            });
            if let Err(job) = self.run(id, job) {
                job();
            }
        }
    }

    /// Runs a job on the member's lane. Gives the job back when no thread can be had.
    fn run(&self, id: MemberId, job: Job) -> Result<(), Job> {
        let mut lane = self.lanes[id.index()]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if lane.is_none() {
            let (sender, jobs) = unbounded::<Job>();
            let name = format!("lane-{}", id.index());
            let work = move || jobs.into_iter().for_each(|job| job());
            if std::thread::Builder::new().name(name).spawn(work).is_err() {
                return Err(job);
            }
            *lane = Some(sender);
        }
        match &*lane {
            Some(sender) => sender.send(job).map_err(|back| back.0),
            None => Err(job),
        }
    }
}

fn flush(store: Option<&dyn Storage>) -> io::Result<()> {
    match store {
        Some(store) => store.flush(),
        None => Err(io::Error::other("the member is not open")),
    }
}
