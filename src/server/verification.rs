//! Mount verification: who watches whether members answer, and for how long they have not.
//!
//! One thread of the unit looks at the calls under way every few milliseconds, and sleeps while there are none.
//! It lets reads go on with other members, tells the set who does not answer and who has not for too long,
//! and goes on with what waits for a member that has been expelled. Who is expelled is the set's to decide.

use crate::sync::Instant;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use crate::sync::swap::Guard;
use crate::sync::thread;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Message;
use super::pipeline::{Live, Pipeline};
use super::rescue::{Held, Sweep, members_of};
use super::results::{is_out_of_reach, not_open};
use super::watch::Time;
use crate::io::Storage;
use crate::io::aligned::AlignedBuf;
use crate::set::member::MEMBERS_MAX;
use crate::set::{Event, MemberId, MemberSet};

/// How often the calls under way are looked at.
const TICK: Duration = Duration::from_millis(20);
/// Most time that counts between two looks: more means that this program did not run.
const TICK_MAX: Duration = Duration::from_millis(100);
/// Reads wait so long for a member that answers nobody, in milliseconds, when another one could answer them.
const SILENT: u64 = 50;
/// A read waits so long for a member that answers others.
const LATE: u64 = 1000;
/// Copies, and the set, hear of a member that has owed an answer for so long.
const OVERDUE: u64 = 2000;
/// So it is with a flush, which takes long by its nature.
const FLUSH_OVERDUE: u64 = 10_000;
/// How often the set is told that somebody has to leave, until it has.
const REMIND: u64 = 500;
/// How often it is looked how fast members are, and for how many looks a member may be too slow.
const PACE: u64 = 1000;
const SLOW: u32 = 3;
/// Bytes by which a member is asked whether it answers.
const PROBE_BYTES: u64 = 4096;
/// How long nobody looks when there is nothing to look at.
const REST: Duration = Duration::from_secs(3600);

/// What the data path and the watching thread tell each other of members.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Members that have been expelled: nothing waits for them.
    gone: AtomicU8,
    /// Seconds that each may leave requests unanswered; 0 for those of the unit.
    timeouts: [AtomicU32; MEMBERS_MAX],
    /// The unit has been stopped.
    ends: AtomicBool,
}

fn bit(id: MemberId) -> u8 {
    1 << id.index()
}

impl Pipeline {
    /// Nothing waits any longer for a member that has been expelled.
    pub(super) fn give_up(&self, id: MemberId) {
        self.standing.gone.fetch_or(bit(id), Ordering::Relaxed);
        self.watch.rouse();
    }

    /// Whether a member has been expelled and has not come back.
    pub(super) fn is_gone(&self, id: MemberId) -> bool {
        self.gone().contains(id)
    }

    /// Members that have been expelled and have not come back.
    pub(super) fn gone(&self) -> MemberSet {
        members_of(self.standing.gone.load(Ordering::Relaxed))
    }

    /// A member has come back.
    pub(super) fn welcome(&self, id: MemberId) {
        self.standing.gone.fetch_and(!bit(id), Ordering::Relaxed);
    }

    /// Gives the members, by place, their own times to answer, in seconds; 0 for that of the unit.
    pub(super) fn set_timeouts(&self, seconds: impl Iterator<Item = u32>) {
        for (timeout, seconds) in self.standing.timeouts.iter().zip(seconds) {
            timeout.store(seconds, Ordering::Relaxed);
        }
    }

    /// How long a member may leave requests unanswered.
    pub(super) fn timeout(&self, id: MemberId) -> Duration {
        match self.standing.timeouts[id.index()].load(Ordering::Relaxed) {
            0 => self.params.member_timeout(),
            seconds => Duration::from_secs(u64::from(seconds)),
        }
    }

    /// Ends the watching thread. It may take a moment, and must not keep the images locked for so long.
    pub(super) fn end_watch(&self) {
        self.let_go();
        self.standing.ends.store(true, Ordering::Relaxed);
        self.watch.rouse();
    }

    /// Watches until the unit has been stopped.
    pub(super) fn keep_watch(self: &Arc<Self>) {
        let mut look = Look::default();
        let mut last = Instant::now();
        while !self.standing.ends.load(Ordering::Relaxed) {
            look.look(self);
            look.sleep(self, &mut last);
        }
    }
}

/// What the set was told last.
#[derive(Debug, Default)]
struct Look {
    overdue: MemberSet,
    reminded: Time,
    /// Since when no source answers.
    dead: Option<Time>,
    /// How fast the members are.
    pace: Pace,
}

impl Look {
    /// Looks once.
    fn look(&mut self, pipeline: &Arc<Pipeline>) {
        let now = pipeline.watch.now();
        let gone = pipeline.gone();
        let (calls, flushes) = owed(pipeline, gone);
        let owed = std::array::from_fn(|at| calls[at].into_iter().chain(flushes[at]).min());
        let answers = |at: usize, since: Time| {
            let last = MemberId::new(at).map(|id| pipeline.watch.last_answer(id));
            now.since(last.unwrap_or_default().max(since)) < SILENT
        };
        // Reads that began so early do not wait any longer.
        let until: [Option<Time>; MEMBERS_MAX] = std::array::from_fn(|at| {
            let since = calls[at]?;
            let wait = if answers(at, since) { LATE } else { SILENT };
            (now.since(since) >= wait).then(|| Time(now.0.saturating_sub(wait)))
        });
        let silent = members(|at| calls[at].is_some_and(|since| !answers(at, since)));
        let avoided = silent.or(gone).iter().map(bit);
        let bits = avoided.fold(0, |all, bit| all | bit);
        pipeline.silent.store(bits, Ordering::Relaxed);
        let longer = |owed: Option<Time>, most| owed.is_some_and(|since| now.since(since) >= most);
        let overdue =
            members(|at| longer(calls[at], OVERDUE) || longer(flushes[at], FLUSH_OVERDUE));
        pipeline.sweep(&Sweep {
            silent: until,
            slow: overdue,
        });
        self.tell(pipeline, overdue.without(gone), (now, &owed));
        let slow = self.pace.look(pipeline, (now, &owed));
        for id in slow.without(gone).iter() {
            let _ = pipeline.messages.send(Message::Event(Event::TooSlow(id)));
        }
    }

    /// Waits for the next look, and moves the time on.
    fn sleep(&self, pipeline: &Pipeline, last: &mut Instant) {
        let rested = pipeline
            .watch
            .sleep((TICK, REST), || self.may_rest(pipeline));
        let passed = std::mem::replace(last, Instant::now()).elapsed();
        // The call that ends a rest has only begun.
        if !rested {
            pipeline.watch.pass(passed.min(TICK_MAX));
        }
    }

    /// Whether there is nothing to look at, and nobody believes that there is.
    fn may_rest(&self, pipeline: &Pipeline) -> bool {
        let told = !self.overdue.is_empty() || pipeline.aborted.load(Ordering::Relaxed);
        let (calls, flushes) = owed(pipeline, pipeline.gone());
        let owed = calls.iter().chain(&flushes).any(Option::is_some);
        !(told || owed || pipeline.has_unswept())
    }

    /// Tells the set who owes an answer, who has owed it for too long, and that all do.
    fn tell(&mut self, pipeline: &Arc<Pipeline>, overdue: MemberSet, (now, owed): (Time, &Owed)) {
        let tell = |event| drop(pipeline.messages.send(Message::Event(event)));
        if overdue != self.overdue {
            self.overdue = overdue;
            tell(Event::Silent(overdue));
        }
        let sources = pipeline.live().view().sources();
        let dead = !overdue.is_empty() && sources.without(overdue).is_empty();
        let since = self.dead.take().filter(|_| dead).unwrap_or(now);
        self.dead = dead.then_some(since);
        if dead && pipeline.aborted.load(Ordering::Relaxed) {
            // Also what has come in between.
            pipeline.abort(overdue);
        }
        if !dead && pipeline.aborted.swap(false, Ordering::Relaxed) {
            tracing::info!("a source answers again");
        }
        if now.since(self.reminded) < REMIND {
            return;
        }
        self.reminded = now;
        for id in overdue.iter() {
            let timeout = pipeline.timeout(id);
            let owes = owed[id.index()].map(|since| Duration::from_millis(now.since(since)));
            let least = timeout.max(Duration::from_millis(OVERDUE));
            let others = sources.without(overdue);
            if owes.is_some_and(|time| time >= least) && answer(pipeline, others, owed[id.index()])
            {
                let why = format!("it has not answered for {} s", timeout.as_secs().max(2));
                tell(Event::GivenUp(id, why));
            }
        }
        let waited = Duration::from_millis(now.since(since) + OVERDUE);
        if dead
            && waited >= pipeline.params.mvtimeout()
            && !pipeline.aborted.load(Ordering::Relaxed)
        {
            tell(Event::WaitedEnough);
        }
    }
}

/// Whether one of these sources has answered anything since then. Those that have been asked nothing are asked: a
/// change goes to one member after the other, so nobody knows of the next one.
fn answer(pipeline: &Arc<Pipeline>, others: MemberSet, since: Option<Time>) -> bool {
    let answers = |id: &MemberId| Some(pipeline.watch.last_answer(*id)) >= since;
    if others.iter().any(|id| answers(&id)) {
        return true;
    }
    others.iter().for_each(|id| pipeline.probe(id));
    false
}

impl Pipeline {
    /// Looks at a member. The image is let go of before the epoch: who hears that the epoch is over may lock it.
    fn look_at<R>(
        &self,
        live: Guard<Arc<Live>>,
        id: MemberId,
        look: impl FnOnce(&dyn Storage) -> io::Result<R>,
    ) -> io::Result<R> {
        let Some(store) = live.store(id).cloned() else {
            return Err(not_open());
        };
        let (watch, held) = (&self.watch, Held::Look(live));
        let (outcome, held) = watch.call((id, watch.now()), held, |_| {
            let outcome = look(&*store);
            drop(store);
            outcome
        });
        drop(held);
        if !outcome.as_ref().is_err_and(is_out_of_reach) {
            watch.answered(id);
        }
        outcome
    }

    /// Asks a member for something, on a thread of its own.
    fn probe(self: &Arc<Self>, id: MemberId) {
        let (pipeline, live) = (Arc::clone(self), self.live());
        let ask = move || {
            let _ = pipeline.look_at(live, id, |store| {
                let mut buf = AlignedBuf::zeroed(PROBE_BYTES.min(store.len()) as usize);
                // What the page cache has the member need not have.
                store.forget(0, buf.len() as u64);
                store.read_at(&mut buf, 0)
            });
        };
        if let Err(error) = thread::Builder::new().name("probe".into()).spawn(ask) {
            tracing::warn!(%error, "no thread to ask whether a member answers");
        }
    }
}

/// How long requests of the members take, looked at once a second.
#[derive(Debug, Default)]
struct Pace {
    looked: Time,
    /// What each meter had counted then.
    counted: [(u64, Duration); MEMBERS_MAX],
    /// For how many looks each member has been too slow.
    slow: [u32; MEMBERS_MAX],
}

impl Pace {
    /// The members that have been too slow for a while.
    fn look(
        &mut self,
        pipeline: &Pipeline,
        (now, owed): (Time, &[Option<Time>; MEMBERS_MAX]),
    ) -> MemberSet {
        if now.since(self.looked) < PACE {
            return MemberSet::EMPTY;
        }
        self.looked = now;
        let most = pipeline.params.max_latency();
        members(|at| {
            let Some(id) = MemberId::new(at) else {
                return false;
            };
            let counted = pipeline.meters.total(id);
            let before = std::mem::replace(&mut self.counted[at], counted);
            let count = counted.0.saturating_sub(before.0);
            let took = counted.1.saturating_sub(before.1);
            let waits = owed[at].map(|since| Duration::from_millis(now.since(since)));
            let mean = match u32::try_from(count) {
                Ok(0) => waits.unwrap_or_default(),
                Ok(count) => took / count,
                Err(_) => Duration::ZERO,
            };
            let slow = most.is_some_and(|most| mean > most);
            self.slow[at] = if slow { self.slow[at] + 1 } else { 0 };
            self.slow[at] >= SLOW
        })
    }
}

type Owed = [Option<Time>; MEMBERS_MAX];

/// Since when members owe an answer to a call, and to a flush; not those that have been expelled: nobody waits for
/// them.
fn owed(pipeline: &Pipeline, gone: MemberSet) -> (Owed, Owed) {
    let here = |at: usize| MemberId::new(at).is_some_and(|id| !gone.contains(id));
    let of_members = |owed: Owed| std::array::from_fn(|at| owed[at].filter(|_| here(at)));
    let (at_once, on_lanes) = (pipeline.watch.oldest_flush(), pipeline.lanes().oldest());
    let first = |at: usize| at_once[at].into_iter().chain(on_lanes[at]).min();
    (
        of_members(pipeline.watch.oldest()),
        of_members(std::array::from_fn(first)),
    )
}

fn members(mut is: impl FnMut(usize) -> bool) -> MemberSet {
    let ids = (0..MEMBERS_MAX).filter(|at| is(*at));
    ids.filter_map(MemberId::new).collect()
}

#[cfg(test)]
pub(super) mod tests;
