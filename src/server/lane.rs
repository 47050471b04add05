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

    /// Flushes the members at once and waits for all of them; the last one on this thread.
    pub(super) fn flush(&self, stores: &Stores, members: MemberSet) -> Results {
        let (sender, outcomes) = bounded(MEMBERS_MAX);
        let mut ids: Vec<MemberId> = members.iter().collect();
        let last = ids.pop();
        for id in ids {
            let store = stores[id.index()].clone();
            let outcome = sender.clone();
            let job: Job = Box::new(move || {
                let _ = outcome.send((id, flush(store.as_deref())));
            });
            if let Err(job) = self.run(id, job) {
                job();
            }
        }
        let mut results = Results::default();
        if let Some(id) = last {
            results.add(id, flush(stores[id.index()].as_deref()));
        }
        drop(sender);
        for (id, outcome) in outcomes {
            results.add(id, outcome);
        }
        results
    }

    /// Flushes the members in the background; `done` gets those that failed.
    pub(super) fn flush_later(
        self: &Arc<Self>,
        stores: Stores,
        members: MemberSet,
        done: impl FnOnce(MemberSet) + Send + 'static,
    ) -> std::io::Result<()> {
        let lanes = Arc::clone(self);
        let work = move || done(lanes.flush(&stores, members).failed);
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
