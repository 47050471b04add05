//! The watch: which calls of members are under way, and what has to be done in place of a thread that does
//! not come back from one.
//!
//! A call is made on the thread that needs it, since with page-cached members another thread costs more
//! than the call. Meanwhile what belongs to the request is left here, where another thread can take it: a
//! thread that waits in the kernel cannot be called back. Nothing here decides when that is.

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard};
use std::sync::PoisonError;
use std::time::Duration;

use crate::set::MemberId;
use crate::set::member::MEMBERS_MAX;

/// Parts of the table, so that threads do not wait for each other. One in a schedule: who meets whom must not depend on what
/// ran before.
const SHARDS: usize = if cfg!(shuttle) { 1 } else { 16 };

thread_local! {
    static SHARD: usize = {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) as usize % SHARDS
    };
}

/// A time of the watch in milliseconds. It goes on only while somebody watches, so that nobody is taken for
/// silent while this program did not run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Time(pub(super) u64);

impl Time {
    /// The milliseconds from an earlier time to this one.
    pub(super) fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One call under way, with what it leaves here.
#[derive(Debug)]
struct Call<T> {
    number: u64,
    member: MemberId,
    since: Time,
    /// It is a flush, which takes long by its nature.
    is_flush: bool,
    /// Nothing when it has been taken: the member owes an answer still.
    held: Option<T>,
    /// Another thread has answered in place of the one that is in it.
    left: bool,
}

/// A part of the table on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Shard<T>(Mutex<Calls<T>>);

#[derive(Debug)]
struct Calls<T> {
    last: u64,
    calls: Vec<Call<T>>,
}

/// The calls of members that are under way.
#[derive(Debug)]
pub(super) struct Watch<T> {
    clock: AtomicU64,
    shards: Box<[Shard<T>]>,
    /// When each member has answered last.
    answered: [AtomicU64; MEMBERS_MAX],
    /// Threads in calls whose place others have taken.
    lost: AtomicU64,
    /// Whether nobody watches until there is something to watch.
    asleep: AtomicBool,
    /// Whether who watches has been roused since it looked last.
    sleeper: Mutex<bool>,
    roused: Condvar,
    /// Something was taken, or a thread whose place was taken has come back.
    stirred: Condvar,
}

/// What becomes of a call that is looked at.
pub(super) enum Fate<T, U> {
    /// It goes on.
    Stays(T),
    /// It goes on and finds this when it returns; the rest is taken.
    Left(T, U),
    /// It is taken: who made it finds nothing.
    Taken(U),
}

impl<T> Watch<T> {
    pub(super) fn new() -> Self {
        let shard = || {
            let calls = Vec::with_capacity(16);
            Shard(Mutex::new(Calls { last: 0, calls }))
        };
        Self {
            clock: AtomicU64::new(1),
            shards: (0..SHARDS).map(|_| shard()).collect(),
            answered: Default::default(),
            lost: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            sleeper: Mutex::new(false),
            roused: Condvar::new(),
            stirred: Condvar::new(),
        }
    }

    /// The time.
    pub(super) fn now(&self) -> Time {
        Time(self.clock.load(Ordering::Relaxed))
    }

    /// Moves the time on.
    pub(super) fn pass(&self, time: Duration) -> Time {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Time(self.clock.fetch_add(millis, Ordering::Relaxed) + millis)
    }

    /// Leaves `held` here for the time of a call, which began at `since`. Who finds nothing afterwards has been
    /// replaced: it must touch nothing of the request any more.
    pub(super) fn call<R>(
        &self,
        asked: (MemberId, Time),
        held: T,
        call: impl FnOnce(&Kept<'_, T>) -> R,
    ) -> (R, Option<T>) {
        let ticket = self.begin(asked, held);
        self.make(ticket, call)
    }

    /// As [`Self::call`], of a flush.
    pub(super) fn flush<R>(
        &self,
        asked: (MemberId, Time),
        held: T,
        call: impl FnOnce(&Kept<'_, T>) -> R,
    ) -> (R, Option<T>) {
        let ticket = self.note(asked, held, true);
        self.make(ticket, call)
    }

    fn make<R>(&self, ticket: Ticket, call: impl FnOnce(&Kept<'_, T>) -> R) -> (R, Option<T>) {
        let kept = Kept {
            watch: self,
            ticket,
        };
        let result = call(&kept);
        (result, self.end(ticket))
    }

    /// As [`Self::call`], of a call that ends on another thread, with [`Self::end`].
    pub(super) fn begin(&self, asked: (MemberId, Time), held: T) -> Ticket {
        self.note(asked, held, false)
    }

    fn note(&self, (member, since): (MemberId, Time), held: T, is_flush: bool) -> Ticket {
        let shard = SHARD.with(|shard| *shard);
        let number = {
            let mut calls = self.shard(shard);
            calls.last += 1;
            let number = calls.last;
            calls.calls.push(Call {
                number,
                member,
                since,
                is_flush,
                held: Some(held),
                left: false,
            });
            number
        };
        // Behind the lock: who fell asleep before it has seen the call.
        self.rouse_if_asleep();
        Ticket { shard, number }
    }

    /// A call has ended: what it has left, or nothing when that was taken.
    pub(super) fn end(&self, ticket: Ticket) -> Option<T> {
        let call = self.take(ticket);
        if call.as_ref().is_some_and(|call| call.left) {
            self.lost.fetch_sub(1, Ordering::Relaxed);
            self.stir();
        }
        call.and_then(|call| call.held)
    }

    fn take(&self, ticket: Ticket) -> Option<Call<T>> {
        let mut calls = self.shard(ticket.shard);
        let place = calls.calls.iter().position(|c| c.number == ticket.number)?;
        Some(calls.calls.swap_remove(place))
    }

    fn shard(&self, at: usize) -> MutexGuard<'_, Calls<T>> {
        self.shards[at]
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Threads that members hold, and whose place others have taken.
    pub(super) fn lost_threads(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// A member has answered.
    pub(super) fn answered(&self, member: MemberId) {
        let (now, last) = (self.now(), &self.answered[member.index()]);
        // Mostly it is the same: then all processors keep the line.
        if last.load(Ordering::Relaxed) != now.0 {
            last.store(now.0, Ordering::Relaxed);
        }
    }

    /// When a member has answered last.
    pub(super) fn last_answer(&self, member: MemberId) -> Time {
        Time(self.answered[member.index()].load(Ordering::Relaxed))
    }

    /// The beginning of the oldest call of each member that is no flush.
    pub(super) fn oldest(&self) -> [Option<Time>; MEMBERS_MAX] {
        self.oldest_of(false)
    }

    /// The beginning of the oldest flush of each member that a thread makes which asks for it.
    pub(super) fn oldest_flush(&self) -> [Option<Time>; MEMBERS_MAX] {
        self.oldest_of(true)
    }

    fn oldest_of(&self, flushes: bool) -> [Option<Time>; MEMBERS_MAX] {
        let mut oldest = [None; MEMBERS_MAX];
        for at in 0..SHARDS {
            let calls = self.shard(at);
            for call in calls.calls.iter().filter(|call| call.is_flush == flushes) {
                let first = &mut oldest[call.member.index()];
                *first = first.map_or(Some(call.since), |time: Time| Some(time.min(call.since)));
            }
        }
        oldest
    }

    /// Decides about every call under way, while it cannot return.
    pub(super) fn sweep<U>(
        &self,
        mut decide: impl FnMut(MemberId, Time, T) -> Fate<T, U>,
    ) -> Vec<U> {
        let mut taken = Vec::new();
        for at in 0..SHARDS {
            let mut calls = self.shard(at);
            for place in 0..calls.calls.len() {
                let call = &mut calls.calls[place];
                let Some(held) = call.held.take() else {
                    continue;
                };
                let left = match decide(call.member, call.since, held) {
                    Fate::Stays(held) => {
                        call.held = Some(held);
                        false
                    }
                    Fate::Left(held, part) => {
                        call.held = Some(held);
                        taken.push(part);
                        true
                    }
                    Fate::Taken(all) => {
                        taken.push(all);
                        true
                    }
                };
                let newly = left && !call.left;
                call.left |= left;
                self.lost.fetch_add(u64::from(newly), Ordering::Relaxed);
            }
        }
        if !taken.is_empty() {
            self.stir();
        }
        taken
    }

    /// Tells those who wait that something has been taken, or given back.
    pub(super) fn stir(&self) {
        drop(self.lock_sleeper());
        self.stirred.notify_all();
    }

    /// Waits for so long at most, or until something is taken or has come back.
    pub(super) fn pause(&self, at_most: Duration) {
        let waited = self.stirred.wait_timeout(self.lock_sleeper(), at_most);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits for a `tick`, or a long `rest` while there is nothing to look at: then the next call ends it. Whether it
    /// was a rest.
    pub(super) fn sleep(
        &self,
        (tick, rest): (Duration, Duration),
        is_idle: impl Fn() -> bool,
    ) -> bool {
        self.asleep.store(is_idle(), Ordering::SeqCst);
        // Once more behind that: who has put a call into a table before has not seen that somebody sleeps.
        let rests = self.asleep.load(Ordering::SeqCst) && is_idle();
        let roused = self.lock_sleeper();
        let at_most = if rests { rest } else { tick };
        let waited = self
            .roused
            .wait_timeout_while(roused, at_most, |roused| !*roused);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
        self.asleep.store(false, Ordering::SeqCst);
        rests
    }

    #[cfg(test)]
    pub(super) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }

    /// Ends the sleep of who watches, or the next one.
    pub(super) fn rouse(&self) {
        *self.lock_sleeper() = true;
        self.roused.notify_all();
    }

    /// As [`Self::rouse`], if anybody sleeps until there is something to look at.
    pub(super) fn rouse_if_asleep(&self) {
        if self.asleep.load(Ordering::Relaxed) {
            self.rouse();
        }
    }

    fn lock_sleeper(&self) -> MutexGuard<'_, bool> {
        self.sleeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a call is found in the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    shard: usize,
    number: u64,
}

/// What a call has left in the table.
#[derive(Debug)]
pub(super) struct Kept<'a, T> {
    watch: &'a Watch<T>,
    ticket: Ticket,
}

impl<T> Kept<'_, T> {
    /// Whether it is there still.
    pub(super) fn is_there(&self) -> bool {
        let calls = self.watch.shard(self.ticket.shard);
        let own = |call: &&Call<T>| call.number == self.ticket.number;
        calls
            .calls
            .iter()
            .find(own)
            .is_some_and(|call| call.held.is_some())
    }
}

impl<T> Drop for Kept<'_, T> {
    /// A call that has panicked leaves nothing behind.
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(self.watch.take(self.ticket));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const LONG: Duration = Duration::from_secs(600);

    fn nothing<T>(watch: &Watch<T>) -> bool {
        watch.oldest().iter().all(Option::is_none)
    }

    fn member(at: usize) -> MemberId {
        MemberId::new(at).expect("a place")
    }

    #[test]
    fn what_a_call_leaves_can_be_taken_while_it_lasts() {
        let watch = Watch::new();
        let (out, held) = watch.call((member(1), watch.now()), "request", |kept| {
            assert_eq!(watch.oldest()[1], Some(Time(1)));
            assert!(kept.is_there());
            let seen = watch.sweep(|id, _, held| match id == member(0) {
                true => Fate::Taken(held),
                false => Fate::Stays(held),
            });
            assert!(seen.is_empty());
            let taken = watch.sweep(|_, _, held| Fate::Taken(held));
            assert_eq!(taken, ["request"]);
            assert!(!kept.is_there());
            assert_eq!(watch.lost_threads(), 1);
            7
        });
        assert_eq!((out, held), (7, None), "who is replaced finds nothing");
        assert_eq!(watch.lost_threads(), 0);
        let (_, held) = watch.call((member(1), watch.now()), "request", |_| ());
        assert_eq!(held, Some("request"));
        assert_eq!(watch.oldest(), [None; MEMBERS_MAX]);
    }

    #[test]
    fn a_part_may_be_left_to_the_caller() {
        let watch = Watch::new();
        let (_, held) = watch.call((member(0), watch.now()), 5, |_| {
            assert_eq!(watch.sweep(|_, _, held| Fate::Left(held + 1, held)), [5]);
            assert_eq!(watch.lost_threads(), 1);
        });
        assert_eq!(watch.lost_threads(), 0);
        assert_eq!(held, Some(6));
    }

    #[test]
    fn who_sleeps_is_roused_by_the_next_call() {
        let watch = Arc::new(Watch::<()>::new());
        let sleeper = {
            let watch = Arc::clone(&watch);
            std::thread::spawn(move || watch.sleep((Duration::ZERO, LONG), || nothing(&watch)))
        };
        while !sleeper.is_finished() {
            watch.call((member(0), watch.now()), (), |_| ());
            std::thread::yield_now();
        }
        sleeper.join().expect("no panic");
        let begun = std::time::Instant::now();
        watch.call((member(0), watch.now()), (), |_| {
            watch.sleep((Duration::ZERO, LONG), || nothing(&watch));
        });
        assert!(
            begun.elapsed() < Duration::from_secs(300),
            "there was a call"
        );
    }

    #[test]
    fn time_passes_only_while_somebody_watches() {
        let watch = Watch::<()>::new();
        let before = watch.now();
        assert_eq!(watch.pass(Duration::from_millis(20)).since(before), 20);
        watch.answered(member(2));
        assert_eq!(watch.last_answer(member(2)), watch.now());
    }
}
