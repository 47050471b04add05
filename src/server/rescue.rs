//! Going on in place of threads that members hold, and giving up what nobody can answer.
//!
//! A write that a member holds goes on without it when the member has been expelled: the bits of its range are
//! set, so what the member does with it later does not matter, as long as it comes back only when all its
//! calls have returned. A read or a seek goes on with another member at any time. Nothing here decides who is expelled.

use crate::sync::atomic::Ordering;
use crate::sync::thread;
use crate::sync::{Mutex, MutexGuard};
use std::sync::{Arc, PoisonError};

use crate::sync::channel::bounded;
use crate::sync::swap::Guard;

use super::change::Change;
use super::errand::Errand;
use super::flushing::{Done, Flushing};
use super::merging::Merge;
use super::pipeline::{Live, Pipeline, WritePermit};
use super::queued::{Flight, Joint};
use super::reading::Read;
use super::results::{Results, given_up};
use super::seek::Seeking;
use super::shares::{Shares, Step};
use super::watch::{Fate, Time};
use crate::io::slots::Slot;
use crate::set::member::MEMBERS_MAX;
use crate::set::{ByteRange, MemberId, MemberSet};

/// What a call of a member leaves for others to take.
#[derive(Debug)]
pub(super) enum Held {
    Change(Change),
    /// A member's part of a change that several have at once.
    Part(Arc<Joint>),
    Read(Read),
    Seek(Seeking),
    /// A read that merges its regions first.
    Merge(Merge),
    /// Steps of copies that share a fence.
    Step(Step),
    Verify(Errand),
    Flush(Flushing),
    /// A look at a member, which nothing waits for. It keeps the epoch, so that no image is locked past it, as long as
    /// the member is not late.
    Look(Guard<Arc<Live>>),
    /// Nobody waits for the request any more. Its range stays fenced until the call returns: what comes
    /// of it must not come behind a later write (I4).
    Left(Arc<WritePermit>),
    /// Another thread has taken it.
    Nothing,
}

/// What is done in place of a thread.
pub(super) enum Rescue {
    Change(Change, MemberId),
    /// A part that a member will not answer, and one that it has answered with an error.
    Part(Arc<Joint>, MemberId),
    Again(Arc<Joint>, MemberId, Arc<Slot>),
    /// A change that all members have answered, some with errors.
    Conclude(Change),
    /// A read that a member has answered with an error.
    ReadAgain(Read),
    Flush(Flushing, MemberId),
    /// A flush that has not begun.
    Asked(Done),
    /// A flush that all members have answered, some with errors.
    Settle(Flushing),
    Read(Read, MemberId, Time),
    Seek(Seeking, MemberId),
    Merge(Merge),
    Step(Step),
    Verify(Errand, MemberId, Time),
    /// Steps of copies that no member answers.
    Ended(Shares),
    /// A change that no member can take.
    Failed(Failed),
    /// A read that no member answers.
    Unread(Read),
    /// A seek that no member answers.
    Unsought(Seeking),
    /// A look at a member that is late.
    Look(#[expect(dead_code, reason = "it is dropped")] Guard<Arc<Live>>),
    /// What was left to a call of a member that has been expelled since.
    Left(#[expect(dead_code, reason = "it is dropped")] Arc<WritePermit>),
}

/// A change that has failed everywhere, as far as anybody knows.
pub(super) struct Failed {
    /// Shared with the calls that it is in, which may return before the verdict: until then no copy step may read
    /// there, since the set goes by that.
    permit: Arc<WritePermit>,
    range: ByteRange,
    results: Results,
    done: super::change::Changed,
    _flight: Option<Flight>,
}

impl Failed {
    /// What the member is in, and what it has not come to.
    fn new(mut change: Change, member: MemberId) -> (Arc<WritePermit>, Self) {
        let rest = change.rest.or(change.queued);
        for id in std::iter::once(member).chain(rest.iter()) {
            change.results.add(id, Err(given_up()));
        }
        Self::of(change)
    }

    /// With its fence for the calls that the change is in.
    pub(super) fn of(change: Change) -> (Arc<WritePermit>, Self) {
        let permit = Arc::new(change.permit);
        let failed = Self {
            permit: Arc::clone(&permit),
            range: change.range,
            results: change.results,
            done: change.done,
            _flight: change.flight,
        };
        (permit, failed)
    }
}

impl Rescue {
    fn run(self, pipeline: &Arc<Pipeline>) {
        match self {
            Self::Change(change, member) => change.go_on_without(member, pipeline),
            Self::Part(joint, member) => pipeline.answered(&joint, member, Err(given_up())),
            Self::Again(joint, member, slot) => pipeline.change_again(joint, member, &slot),
            Self::Conclude(change) => pipeline.conclude(change),
            Self::ReadAgain(read) => pipeline.read_again(read),
            Self::Flush(flushing, member) => flushing.go_on_without(member, pipeline),
            Self::Asked(done) => pipeline.flush_then(done),
            Self::Settle(flushing) => flushing.settle(pipeline),
            Self::Read(read, member, since) => read.go_on_without((member, since), pipeline),
            Self::Seek(seeking, member) => seeking.go_on_without(member, pipeline),
            Self::Merge(merge) => merge.begin_anew(pipeline),
            Self::Step(step) => step.give_back(pipeline),
            Self::Verify(errand, member, since) => errand.go_on_without((member, since), pipeline),
            Self::Ended(shares) => shares.give_back(pipeline),
            Self::Unread(read) => read.fail(),
            Self::Unsought(seeking) => seeking.fail(),
            Self::Look(_) | Self::Left(_) => {}
            Self::Failed(Failed {
                permit,
                range,
                results,
                done,
                _flight,
            }) => {
                let settled = pipeline.settle(permit.live(), Some(range), &results);
                drop(permit);
                done(settled);
            }
        }
    }
}

/// What a sweep is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sweep {
    /// Members that do not answer, since when reads do not wait for each of them.
    pub(super) silent: [Option<Time>; MEMBERS_MAX],
    /// Members for which copies and merges do not wait any longer, as far as others have the bytes.
    pub(super) slow: MemberSet,
}

impl Sweep {
    fn silent(&self) -> MemberSet {
        let silent = |id: &MemberId| self.silent[id.index()].is_some();
        (0..MEMBERS_MAX)
            .filter_map(MemberId::new)
            .filter(silent)
            .collect()
    }

    fn decide(
        &self,
        pipeline: &Pipeline,
        (member, since): (MemberId, Time),
        held: Held,
    ) -> Fate<Held, Rescue> {
        // Asked for under the lock of the call: a member may have come back since the sweep began.
        let gone = pipeline.is_gone(member);
        let slow = gone || self.slow.contains(member);
        let late = self.silent[member.index()].is_some_and(|until| since <= until);
        match held {
            Held::Change(mut change) if gone => {
                change.secure();
                change.fly(&pipeline.flying);
                Fate::Taken(Rescue::Change(change, member))
            }
            Held::Part(joint) if gone => Fate::Taken(Rescue::Part(joint, member)),
            Held::Flush(flushing) if gone => Fate::Taken(Rescue::Flush(flushing, member)),
            Held::Read(read) if gone || late && read.has_other(self.silent()) => {
                Fate::Taken(Rescue::Read(read, member, since))
            }
            Held::Seek(seeking) if gone || late && seeking.has_other(self.silent()) => {
                Fate::Taken(Rescue::Seek(seeking, member))
            }
            Held::Look(live) if gone || late => Fate::Taken(Rescue::Look(live)),
            Held::Merge(merge) if gone || slow && merge.has_other(member) => {
                Fate::Taken(Rescue::Merge(merge))
            }
            Held::Step(step) if gone || slow && step.has_other(member) => {
                Fate::Taken(Rescue::Step(step))
            }
            Held::Left(permit) if gone => Fate::Taken(Rescue::Left(permit)),
            Held::Verify(errand) if gone || slow && errand.is_held_needlessly() => {
                Fate::Taken(Rescue::Verify(errand, member, since))
            }
            held => Fate::Stays(held),
        }
    }
}

impl Pipeline {
    /// Members that do not answer now.
    pub(super) fn silent_members(&self) -> MemberSet {
        let bits = self.silent.load(Ordering::Relaxed);
        match bits {
            0 => MemberSet::EMPTY,
            _ => members_of(bits),
        }
    }

    /// Whether members hold threads whose requests others have answered in their place.
    #[must_use]
    pub fn has_lost_threads(&self) -> bool {
        self.watch.lost_threads() > 0
    }

    /// Goes on with what need not wait any longer.
    pub(super) fn sweep(self: &Arc<Self>, sweep: &Sweep) {
        let mut rescued = std::mem::take(&mut *self.unstarted.lock());
        let decide = |id, since, held| sweep.decide(self, (id, since), held);
        rescued.extend(self.watch.sweep(decide));
        self.rescue(rescued);
        for id in self.gone().iter() {
            self.lanes().give_up(id, || self.is_gone(id));
        }
    }

    /// Has a stop wait for the changes that members hold: others go on with them later, or nobody does.
    pub(super) fn await_changes(&self) {
        let nothing: Vec<Rescue> = self.watch.sweep(|_, _, mut held| {
            if let Held::Change(change) = &mut held {
                change.fly(&self.flying);
            }
            Fate::Stays(held)
        });
        drop(nothing);
    }

    /// Whether something waits for a thread that could not be started.
    pub(super) fn has_unswept(&self) -> bool {
        !self.unstarted.lock().is_empty()
    }

    /// Answers with errors whatever waits for these members, which stay what they are: it may come of some
    /// of it still what was asked for.
    pub(super) fn abort(self: &Arc<Self>, members: MemberSet) {
        self.aborted.store(true, Ordering::Relaxed);
        let failed = self.watch.sweep(|id, since, held| match held {
            Held::Change(mut change) if members.contains(id) => {
                change.fly(&self.flying);
                let (permit, failed) = Failed::new(change, id);
                Fate::Left(Held::Left(permit), Rescue::Failed(failed))
            }
            Held::Part(joint) if members.contains(id) => match joint.give_up(id) {
                Some(failed) => Fate::Left(Held::Part(joint), Rescue::Failed(failed)),
                None => Fate::Stays(Held::Part(joint)),
            },
            Held::Read(read) if members.contains(id) => Fate::Taken(Rescue::Unread(read)),
            Held::Seek(seeking) if members.contains(id) => Fate::Taken(Rescue::Unsought(seeking)),
            Held::Flush(flushing) if members.contains(id) => {
                Fate::Taken(Rescue::Flush(flushing, id))
            }
            Held::Look(live) if members.contains(id) => Fate::Taken(Rescue::Look(live)),
            Held::Step(step) if members.contains(id) => {
                let (permit, step) = step.leave();
                Fate::Left(Held::Left(Arc::new(permit)), Rescue::Ended(step))
            }
            Held::Merge(merge) if members.contains(id) => {
                let (permit, read) = merge.give_up(self);
                Fate::Left(Held::Left(Arc::new(permit)), Rescue::Unread(read))
            }
            Held::Verify(errand) if members.contains(id) => {
                let (permit, errand) = errand.leave();
                let rescue = Rescue::Verify(errand, id, since);
                match permit {
                    Some(permit) => Fate::Left(Held::Left(Arc::new(permit)), rescue),
                    None => Fate::Taken(rescue),
                }
            }
            held => Fate::Stays(held),
        });
        self.rescue(failed);
        self.rouse_fence();
        for id in members.iter() {
            self.lanes().give_up(id, || true);
        }
    }

    /// Each on a thread of its own: the next member may not answer either. What gets no thread waits for the next
    /// look.
    pub(super) fn rescue(self: &Arc<Self>, rescued: Vec<Rescue>) {
        for rescue in rescued {
            let (hand, handed) = bounded(1);
            let pipeline = Arc::clone(self);
            let run = move || {
                let rescue: Result<Rescue, _> = handed.recv();
                rescue.into_iter().for_each(|rescue| rescue.run(&pipeline));
            };
            match thread::Builder::new().name("rescue".into()).spawn(run) {
                Ok(_) => drop(hand.send(rescue)),
                Err(error) => {
                    tracing::warn!(%error, "no thread yet for a request that a member holds");
                    self.unstarted.lock().push(rescue);
                    // Who watches may rest.
                    self.watch.rouse();
                }
            }
        }
    }
}

/// What is to be done on threads that could not be started yet.
#[derive(Default)]
pub(super) struct Unstarted(Mutex<Vec<Rescue>>);

impl Unstarted {
    fn lock(&self) -> MutexGuard<'_, Vec<Rescue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Unstarted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Unstarted")
            .field(&self.lock().len())
            .finish()
    }
}

/// The members of a mask of places.
pub(super) fn members_of(bits: u8) -> MemberSet {
    let ids = (0..MEMBERS_MAX).filter(|at| bits & 1 << at != 0);
    ids.filter_map(MemberId::new).collect()
}
