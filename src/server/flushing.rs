//! Flushes of applications as values: whichever thread ends one answers it.
//!
//! Members whose flushes take next to no time are flushed by the thread that asks, one after the other: another thread
//! would cost more than the flush. The others are flushed at once, each on its lane.

use std::sync::Arc;

use super::departure::{PATIENCE, begin, until};
use super::lane::Unflushed;
use super::pipeline::{Errno, Live, Pipeline};
use super::queued::Flight;
use super::rescue::{Held, Rescue};
use super::results::Results;
use super::run::Runner;
use crate::io::Storage;
use crate::set::{MemberId, MemberSet, Outcome};
use crate::sync::Instant;

/// Called once with what became of a flush, on whatever thread it ended.
pub(super) type Done = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// A flush under way.
pub(super) struct Flushing {
    live: Arc<Live>,
    /// Members that it has not come to.
    rest: MemberSet,
    results: Results,
    done: Done,
    flight: Flight,
}

impl std::fmt::Debug for Flushing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut flushing = f.debug_struct("Flushing");
        flushing.field("rest", &self.rest).finish_non_exhaustive()
    }
}

impl Flushing {
    /// Goes on in place of a thread that a member holds.
    pub(super) fn go_on_without(mut self, member: MemberId, pipeline: &Arc<Pipeline>) {
        self.results.add_flush(member, Err(Unflushed::given_up()));
        pipeline.go_on_flushing(self);
    }

    /// Answers it, once it is settled who has to leave.
    pub(super) fn settle(self, pipeline: &Pipeline) {
        let settled = pipeline.settle(&self.live, None, &self.results);
        drop(self.live);
        (self.done)(settled);
        drop(self.flight);
    }
}

impl Runner {
    /// A flush has failed on every source. Their caches may show what no medium has, until it is evicted: nobody reads that
    /// from now on, so that no copy or merge takes it for what the source has.
    pub(super) fn flush_lost(&self) {
        self.pipeline.flush_lost();
        let end = self.set.geometry().size().0;
        // Those that hang are asked for nothing; what they have not answered is not known to be lost.
        let silent = self.pipeline.silent_members();
        let asked = self.set.writers().without(silent);
        let stores = asked
            .iter()
            .filter_map(|id| self.stores[id.index()].clone());
        let begin = |store: Arc<dyn Storage>| begin("forget", move || store.forget(0, end));
        let under_way: Vec<_> = stores.map(begin).collect();
        let deadline = Instant::now() + PATIENCE;
        for forgotten in under_way {
            if let Err(error) = until(deadline, forgotten) {
                tracing::warn!(%error, "a cache may show what its medium does not have");
            }
        }
    }
}

impl Pipeline {
    /// Makes every write that has returned durable on every source (I10). `done` is called when it has come to its end,
    /// before this returns or not.
    ///
    /// The error is EIO when it failed on every source, or while the membership cannot be made durable: who is no
    /// member any more may then be elected after a crash, and was not flushed (I3).
    pub fn flush_then(self: &Arc<Self>, done: Box<dyn FnOnce(Result<(), Errno>) + Send>) {
        self.count_request();
        let live = self.live_now();
        // Behind the View: the gate is closed before one is published that is not durable.
        if let Err(error) = self.gate().pass_flush() {
            drop(live);
            return done(Err(error));
        }
        let asked = self.asked(live.view().writers());
        let mut flushing = Flushing {
            rest: asked.all,
            live,
            results: Results::default(),
            done,
            flight: self.flying.begin(),
        };
        if asked.lost.is_empty() && self.lanes().are_quick(asked.all) {
            return self.go_on_flushing(flushing);
        }
        let (stores, this) = (flushing.live.stores(), Arc::clone(self));
        let end = move |results| {
            flushing.results = results;
            this.end_flush(flushing);
        };
        self.lanes().flush_later(stores, asked, &self.watch, end);
    }

    /// As [`Self::flush_then`], on another thread: for who must not wait.
    pub fn flush_elsewhere(self: &Arc<Self>, done: Box<dyn FnOnce(Result<(), Errno>) + Send>) {
        self.rescue(vec![Rescue::Asked(done)]);
    }

    /// Flushes the members that a flush has not come to on this thread, and ends it.
    pub(super) fn go_on_flushing(self: &Arc<Self>, mut flushing: Flushing) {
        while let Some(id) = flushing.rest.iter().next() {
            flushing.rest.remove(id);
            let store = flushing.live.store(id).cloned();
            let held = Held::Flush(flushing);
            let (outcome, held) = self.watch.flush((id, self.watch.now()), held, |_| {
                self.lanes().flush_here(id, store)
            });
            let Some(Held::Flush(back)) = held else {
                return;
            };
            self.watch.answered(id);
            flushing = back;
            flushing.results.add_flush(id, outcome);
        }
        self.end_flush(flushing);
    }

    fn end_flush(self: &Arc<Self>, flushing: Flushing) {
        let (good, failed) = (flushing.results.good, flushing.results.failed);
        match flushing.live.view().settle(good, failed) {
            Outcome::Done => flushing.settle(self),
            // The verdict has to be waited for, and this may be the lane of a member.
            _ => self.rescue(vec![Rescue::Settle(flushing)]),
        }
    }
}
