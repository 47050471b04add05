//! Lanes: one thread per member for what takes long on a device, so that members flush at once.

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

    /// Flushes the members at once and waits for all of them.
    ///
    /// A storage is let go of before its outcome is told: who waits for it may lock the image.
    pub(super) fn flush(&self, mut stores: Stores, members: MemberSet) -> Results {
        let (sender, outcomes) = bounded(MEMBERS_MAX);
        for id in members.iter() {
            let store = stores[id.index()].take();
            let outcome = sender.clone();
            let job: Job = Box::new(move || {
                let result = flush(store.as_deref());
                drop(store);
                let _ = outcome.send((id, result));
            });
            if let Err(job) = self.run(id, job) {
                job();
            }
        }
        let mut results = Results::default();
        drop((sender, stores));
        for (id, outcome) in outcomes {
            results.add(id, outcome);
        }
        results
    }

    /// Flushes the members in the background; `done` gets those that failed.
    pub(super) fn flush_later(
        self: &Arc<Self>,
        mut stores: Stores,
        members: MemberSet,
        done: impl FnOnce(MemberSet) + Send + 'static,
    ) -> std::io::Result<()> {
        let lanes = Arc::clone(self);
        for (index, store) in stores.iter_mut().enumerate() {
            if !MemberId::new(index).is_some_and(|id| members.contains(id)) {
                *store = None;
            }
        }
        let work = move || done(lanes.flush(stores, members).failed);
        std::thread::Builder::new()
            .name("flush".into())
            .spawn(work)
            .map(drop)
    }
}

fn flush(store: Option<&dyn Storage>) -> std::io::Result<()> {
    match store {
        Some(store) => store.flush(),
        None => Err(std::io::Error::other("the member is not open")),
    }
}
