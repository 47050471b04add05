//! Changes of the unit: writes, zeros, allocation. One change goes to one member after the other: with
//! page-cached members the time goes into copying bytes, and a second thread costs more than it gives.
//!
//! A change is a value that any thread can go on with, so that a member that does not answer holds the thread
//! and not the change ([`super::watch`]).

use crate::sync::Instant;
use crate::sync::atomic::Ordering;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::lane::Flushed;
use super::meter::Asked;
use super::pipeline::{Errno, Pipeline, WritePermit};
use super::queued::{Flight, Flying};
use super::rescue::Held;
use super::results::{Results, given_up, is_out_of_reach, not_open};
use super::watch::{Kept, Time};
use crate::io::aligned::AlignedBuf;
use crate::io::sys::{Loan, lend};
use crate::io::{Storage, Zero};
use crate::set::{ByteRange, Homeless, MemberId, MemberSet};

/// How long a member that is out of reach is left alone before it is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// Called once with what became of a change, on whatever thread it ended.
pub(super) type Changed = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// What is done to a range of each member.
#[derive(Clone, Copy, Debug)]
enum What {
    Write,
    Zero(Zero),
    Allocate,
}

/// The bytes of a change.
#[derive(Debug)]
enum Data {
    /// Zeros, or none.
    None,
    /// Those of the thread that makes it.
    Lent(Loan),
    /// A copy, for another thread.
    Own(AlignedBuf),
}

/// A change under way.
pub(super) struct Change {
    pub(super) permit: WritePermit,
    pub(super) range: ByteRange,
    what: What,
    data: Data,
    /// Members that it has not come to.
    pub(super) rest: MemberSet,
    /// Members that get it last, all at once, and answer later.
    pub(super) queued: MemberSet,
    pub(super) results: Results,
    pub(super) done: Changed,
    /// While no thread waits for it.
    pub(super) flight: Option<Flight>,
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut change = f.debug_struct("Change");
        change.field("what", &self.what).field("range", &self.range);
        change.finish_non_exhaustive()
    }
}

impl What {
    /// Does it to the first bytes of a range; to how many.
    fn apply(self, store: &dyn Storage, range: ByteRange, data: &[u8]) -> io::Result<u64> {
        let (at, len) = (range.start(), range.len());
        match self {
            Self::Write if data.len() as u64 != len => {
                Err(io::Error::other("the bytes of a write are gone"))
            }
            Self::Write => store.write_at(data, at).map(|()| len),
            Self::Zero(how) => store.zero_at(at, len, how).map(|zeroed| zeroed.bytes),
            Self::Allocate => store.allocate(at, len),
        }
    }
}

impl Change {
    /// No thread of a face waits for it any more.
    pub(super) fn fly(&mut self, flying: &Arc<Flying>) {
        self.flight.get_or_insert_with(|| flying.begin());
    }

    /// Makes the bytes its own. The thread that has lent them is in a call, and stays there meanwhile.
    pub(super) fn secure(&mut self) {
        if let Data::Lent(loan) = &self.data {
            let copy = loan.with(|bytes| {
                let mut copy = AlignedBuf::zeroed(bytes.len());
                copy.copy_from_slice(bytes);
                copy
            });
            self.data = copy.map_or(Data::None, Data::Own);
        }
    }

    /// Goes on in place of a thread that a member holds.
    pub(super) fn go_on_without(mut self, member: MemberId, pipeline: &Pipeline) {
        self.results.add(member, Err(given_up()));
        match std::mem::replace(&mut self.data, Data::None) {
            // The next member may hold this thread as well.
            Data::Own(bytes) => lend(&bytes, |loan| {
                self.data = Data::Lent(loan.clone());
                pipeline.go_on(self, &bytes);
            }),
            Data::None | Data::Lent(_) => pipeline.go_on(self, &[]),
        }
    }
}

impl Pipeline {
    /// Writes the buffer at `at`. `done` is called when it has come to its end: before this returns, but for a
    /// member that does not answer, which holds this thread and not the write.
    ///
    /// Errors are ENOSPC beyond the end, EROFS, EIO or what the members answered when no source has it.
    pub fn write_then(&self, at: u64, data: &[u8], done: Changed) {
        if data.is_empty() {
            return done(Ok(()));
        }
        lend(data, |loan| {
            let lent = Data::Lent(loan.clone());
            let range = self.writable(at, data.len() as u64);
            self.change(range, (What::Write, lent), data, done);
        });
    }

    /// Makes a range read as zeros; otherwise as [`Self::write_then`].
    pub fn zero_then(&self, at: u64, len: u64, how: Zero, done: Changed) {
        let range = self.writable(at, len);
        self.change(range, (What::Zero(how), Data::None), &[], done);
    }

    /// Allocates space inside the unit; what the range reads as does not change. Errors are EFBIG beyond the
    /// end, and ENOSPC.
    pub fn allocate_then(&self, at: u64, len: u64, done: Changed) {
        let range = self.writable(at, len).map_err(|e| match e {
            Errno(libc::ENOSPC) => Errno(libc::EFBIG),
            other => other,
        });
        self.change(range, (What::Allocate, Data::None), &[], done);
    }

    fn change(
        &self,
        range: Result<ByteRange, Errno>,
        (what, data): (What, Data),
        bytes: &[u8],
        done: Changed,
    ) {
        self.count_request();
        let permitted = range.and_then(|range| {
            let fenced = self.enter_to_change(range)?;
            // What reads as before needs no bits.
            let permit = match what {
                What::Allocate => fenced.permit_copy([]),
                What::Write | What::Zero(_) => self.permit(fenced, range)?,
            };
            Ok((permit, range))
        });
        match permitted {
            Err(error) => done(Err(error)),
            Ok((permit, range)) => {
                let live = permit.live();
                let queued = match what {
                    What::Write => live.queued(range).and(live.view().writers()),
                    What::Zero(_) | What::Allocate => MemberSet::EMPTY,
                };
                let change = Change {
                    rest: live.view().writers().without(queued),
                    permit,
                    range,
                    what,
                    data,
                    queued,
                    results: Results::default(),
                    done,
                    flight: None,
                };
                self.go_on(change, bytes);
            }
        }
    }

    /// Applies a change to the members that it has not come to, and ends it.
    fn go_on(&self, mut change: Change, data: &[u8]) {
        while let Some(id) = change.rest.iter().next() {
            change.rest.remove(id);
            let Some(store) = change.permit.store(id).cloned() else {
                change.results.add(id, Err(not_open()));
                continue;
            };
            let Some((back, outcome)) = self.apply(change, (id, &*store), data) else {
                return;
            };
            change = back;
            if let (What::Allocate, Err(error)) = (change.what, &outcome) {
                let errno = Errno(error.raw_os_error().unwrap_or(libc::EIO));
                drop(store);
                drop(change.permit);
                return (change.done)(Err(errno));
            }
            change.results.add(id, outcome);
        }
        if change.queued.is_empty() {
            return self.conclude(change);
        }
        let whole = data.len() as u64 == change.range.len();
        match self.this.upgrade().zip(self.keep(data)).filter(|_| whole) {
            Some((this, slot)) => this.begin_changing(change, &slot),
            None => {
                change.rest = std::mem::replace(&mut change.queued, MemberSet::EMPTY);
                self.go_on(change, data);
            }
        }
    }

    /// Applies a change to a member, in as many calls as that takes: each has its own time to be answered. Gives nothing
    /// to who has been replaced.
    fn apply(
        &self,
        mut change: Change,
        (id, store): (MemberId, &dyn Storage),
        data: &[u8],
    ) -> Option<(Change, io::Result<()>)> {
        let (what, mut rest) = (change.what, Some(change.range));
        while let Some(range) = rest {
            let apply = || what.apply(store, range, data);
            let (outcome, held) =
                self.call_patiently(id, Held::Change(change), (range.len(), apply));
            let Held::Change(back) = held else {
                return None;
            };
            change = back;
            rest = match outcome {
                Ok(done) => range.split(done).1,
                Err(error) => return Some((change, Err(error))),
            };
        }
        Some((change, Ok(())))
    }

    /// All members have answered.
    pub(super) fn conclude(&self, change: Change) {
        if makes!(MarkedLate) {
            let Ok(marked) = change.permit.live().view().mark(change.range, &Homeless);
            drop(marked);
        }
        let settled = self.settle(change.permit.live(), Some(change.range), &change.results);
        drop(change.permit);
        (change.done)(settled);
    }

    /// Calls a member while `held` can be taken, and again as long as it is out of reach and is waited for.
    /// It is asked for so many bytes, and says for how many it has done what was asked. Gives [`Held::Nothing`] to who has
    /// been replaced.
    pub(super) fn call_patiently(
        &self,
        member: MemberId,
        held: Held,
        (bytes, call): (u64, impl Fn() -> io::Result<u64>),
    ) -> (io::Result<u64>, Held) {
        if self.is_lost(member) {
            return (Err(given_up()), held);
        }
        let tried = |kept: &Kept<'_, Held>| loop {
            let begun = Instant::now();
            let outcome = call();
            let asked = Asked::Write(*outcome.as_ref().unwrap_or(&bytes));
            self.meters.ended(member, asked, begun);
            let lost = outcome.as_ref().is_err_and(is_out_of_reach);
            if !lost {
                self.watch.answered(member);
            }
            if !(lost && self.waits_for(member) && kept.is_there()) {
                return outcome;
            }
            self.watch.pause(RETRY);
        };
        let (outcome, held) = self.watch.call((member, self.watch.now()), held, tried);
        (outcome, held.unwrap_or(Held::Nothing))
    }

    /// Waits a little before a member is tried again that has been out of reach since then.
    pub(super) fn wait_for(&self, (member, since): (MemberId, Time), held: Held) -> Held {
        let (_, held) = self
            .watch
            .call((member, since), held, |_| self.watch.pause(RETRY));
        held.unwrap_or(Held::Nothing)
    }

    /// Whether requests wait for a member that is out of reach.
    pub(super) fn waits_for(&self, member: MemberId) -> bool {
        let given_up = self.aborted.load(Ordering::Relaxed) || self.is_gone(member);
        !self.timeout(member).is_zero() && !given_up
    }

    /// Members to be flushed, with those of them that are not even tried.
    pub(super) fn asked(&self, all: MemberSet) -> Flushed {
        let lost = all.iter().filter(|id| self.is_lost(*id)).collect();
        Flushed { all, lost }
    }

    /// Takes those of the sources for good on which nothing has failed, also those that were not asked; of them not who
    /// is not even tried. Says whether any source is good.
    pub(super) fn trust(&self, sources: MemberSet, results: &mut Results) -> bool {
        let others = sources.without(results.failed);
        let tried = others.iter().filter(|id| !self.is_lost(*id));
        tried.for_each(|id| results.good.insert(id));
        !results.good.and(sources).is_empty()
    }

    /// Whether a member is not even tried: it answers nobody, and nobody is to wait any more.
    pub(super) fn is_lost(&self, member: MemberId) -> bool {
        self.aborted.load(Ordering::Relaxed) && self.silent_members().contains(member)
    }
}
