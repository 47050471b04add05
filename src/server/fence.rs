//! The fence: at most one writer per block, application or copy step (I4).
//!
//! First come, first served among overlapping ranges, so a copy step cannot be starved by
//! applications nor the other way round; ranges that do not overlap never wait for each other (I9).

use crate::sync::{Condvar, Mutex, MutexGuard};
use std::sync::{Arc, PoisonError};

use crate::set::BlockRange;

/// Who holds what and who waits for what, in order of arrival.
#[derive(Debug, Default)]
pub struct FenceTable {
    entries: Vec<(u64, BlockRange)>,
    next: u64,
}

impl FenceTable {
    /// A table with room for `requests` at once before it has to grow.
    #[must_use]
    pub fn with_capacity(requests: usize) -> Self {
        Self {
            entries: Vec::with_capacity(requests),
            next: 0,
        }
    }

    /// Queues for a range; gives the place in the queue.
    pub fn enter(&mut self, range: BlockRange) -> u64 {
        let place = self.next + 1;
        self.enter_at(place, range);
        place
    }

    /// Queues for a range at a place that is behind all others.
    fn enter_at(&mut self, place: u64, range: BlockRange) {
        debug_assert!(self.next < place, "I4: first come, first served");
        self.next = place;
        self.entries.push((place, range));
    }

    /// Whether no earlier entry overlaps: the holder of this place may go on.
    #[must_use]
    pub fn may_pass(&self, place: u64) -> bool {
        let Some((_, mine)) = self.entries.iter().find(|(p, _)| *p == place) else {
            return false;
        };
        !self
            .entries
            .iter()
            .any(|(p, range)| *p < place && range.overlaps(*mine))
    }

    /// Frees the range of a place.
    pub fn leave(&mut self, place: u64) {
        let found = self.entries.iter().position(|(p, _)| *p == place);
        debug_assert!(found.is_some(), "I4: a fence is freed twice");
        if let Some(index) = found {
            self.entries.swap_remove(index);
        }
    }

    /// Number of entries, holding and waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody holds or waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[derive(Debug)]
struct Gate {
    table: FenceTable,
    waiting: usize,
}

/// Parts of the fence. In a schedule there are few, and small ones, so that requests have several.
const PARTS: usize = if cfg!(shuttle) { 4 } else { 16 };
/// Blocks of a stretch of the unit, one MiB; stretches belong to the parts in turn.
const STRETCH: u64 = if cfg!(shuttle) { 8 } else { 2048 };

/// The fence between threads.
///
/// A request locks the part that its range lies in, seldom two, for a scan of the requests under way there, and no
/// request sleeps while it is held. Who needs several parts queues in all of them at once, so that any two requests have the
/// same order in every part that they share.
#[derive(Debug, Default)]
pub struct Fence([Part; PARTS]);

/// A part on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Part {
    gate: Mutex<Gate>,
    freed: Condvar,
}

impl Default for Part {
    fn default() -> Self {
        let gate = Gate {
            table: FenceTable::with_capacity(32),
            waiting: 0,
        };
        Self {
            gate: Mutex::new(gate),
            freed: Condvar::new(),
        }
    }
}

/// The parts of a range, lowest first.
#[derive(Clone, Copy, Debug)]
struct Parts(u16);

impl Parts {
    fn of(range: BlockRange) -> Self {
        let (first, last) = (range.first().0 / STRETCH, (range.end().0 - 1) / STRETCH);
        let all = 1 + (last - first).min(PARTS as u64 - 1);
        let bits = (0..all).map(|at| 1 << ((first + at) % PARTS as u64));
        Self(bits.fold(0, |all, bit| all | bit))
    }

    fn iter(self) -> impl Iterator<Item = usize> {
        (0..PARTS).filter(move |at| self.0 & 1 << at != 0)
    }

    /// The only one, as it is mostly.
    fn only(self) -> Option<usize> {
        let part = self.0.trailing_zeros() as usize;
        self.0.is_power_of_two().then_some(part)
    }
}

impl Fence {
    /// Waits until no earlier holder overlaps the range, then holds it.
    pub fn acquire(self: &Arc<Self>, range: BlockRange) -> FenceGuard {
        let (guard, gate) = self.enter(range);
        guard.wait(gate, || false);
        guard
    }

    /// As [`Self::acquire`], unless it has to wait and `gives_up`; that is asked again after [`Self::rouse`].
    pub fn acquire_unless(
        self: &Arc<Self>,
        range: BlockRange,
        gives_up: impl Fn() -> bool,
    ) -> Option<FenceGuard> {
        let (guard, gate) = self.enter(range);
        let held = guard.wait(gate, gives_up);
        held.then_some(guard)
    }

    /// Has all who wait ask whether they give up.
    pub fn rouse(&self) {
        for part in &self.0 {
            drop(part.lock());
            part.freed.notify_all();
        }
    }

    /// Queues for a range. The lock of the only part is given back, for who can go on at once.
    fn enter(self: &Arc<Self>, range: BlockRange) -> (FenceGuard, Option<MutexGuard<'_, Gate>>) {
        let parts = Parts::of(range);
        let guard = |place| FenceGuard {
            fence: Arc::clone(self),
            parts,
            place,
        };
        if let Some(only) = parts.only() {
            let mut gate = self.0[only].lock();
            let place = gate.table.enter(range);
            return (guard(place), Some(gate));
        }
        let mut gates: [Option<MutexGuard<'_, Gate>>; PARTS] = Default::default();
        let mut place = 0;
        for at in parts.iter() {
            let gate = gates[at].insert(self.0[at].lock());
            place = place.max(gate.table.next + 1);
        }
        for gate in gates.iter_mut().flatten() {
            gate.table.enter_at(place, range);
        }
        (guard(place), None)
    }
}

impl Part {
    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(
        &self,
        mut gate: MutexGuard<'_, Gate>,
        place: u64,
        gives_up: impl Fn() -> bool,
    ) -> bool {
        while !(gate.table.may_pass(place) || makes!(FencePassed)) {
            if gives_up() {
                return false;
            }
            gate.waiting += 1;
            gate = self
                .freed
                .wait(gate)
                .unwrap_or_else(PoisonError::into_inner);
            gate.waiting -= 1;
        }
        true
    }

    fn leave(&self, place: u64) {
        let too_early = makes!(WakeupLost).then(|| self.lock().waiting > 0);
        let mut gate = self.lock();
        gate.table.leave(place);
        let wake = too_early.unwrap_or(gate.waiting > 0);
        drop(gate);
        if wake {
            self.freed.notify_all();
        }
    }
}

/// A held range; dropping it frees the range. Any thread may do that: who waits for a member that does not
/// answer cannot.
#[derive(Debug)]
#[must_use = "the range is free again when this is dropped"]
pub struct FenceGuard {
    fence: Arc<Fence>,
    parts: Parts,
    place: u64,
}

impl FenceGuard {
    /// Waits until nobody is before it, in one part after the other.
    fn wait(&self, only: Option<MutexGuard<'_, Gate>>, gives_up: impl Fn() -> bool) -> bool {
        let mut held = only;
        self.parts.iter().all(|at| {
            let part = &self.fence.0[at];
            let gate = held.take().unwrap_or_else(|| part.lock());
            part.wait(gate, self.place, &gives_up)
        })
    }
}

impl Drop for FenceGuard {
    fn drop(&mut self) {
        for at in self.parts.iter() {
            self.fence.0[at].leave(self.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::{Bytes, Geometry};
    use std::sync::atomic::{AtomicU32, Ordering};

    fn range(first: u64, blocks: u64) -> BlockRange {
        let unit = Geometry::new(Bytes(1 << 20), 127).expect("valid");
        unit.clip(Bytes(first * 512), Bytes(blocks * 512))
            .expect("inside")
            .blocks()
    }

    /// Holds a range for a moment, in which nobody else may hold one.
    fn hold(fence: &Arc<Fence>, range: BlockRange, inside: &AtomicU32) {
        let _held = fence.acquire(range);
        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "I4");
        // Long enough for another one to come in, if it could.
        std::thread::yield_now();
        inside.fetch_sub(1, Ordering::SeqCst);
    }

    fn is_empty(fence: &Fence) -> bool {
        fence.0.iter().all(|part| part.lock().table.is_empty())
    }

    fn long(first: u64, blocks: u64) -> BlockRange {
        let unit = Geometry::new(Bytes(1 << 32), 127).expect("valid");
        let range = unit.clip(Bytes(first * 512), Bytes(blocks * 512));
        range.expect("inside").blocks()
    }

    #[test]
    fn a_range_has_the_parts_of_its_stretches() {
        let parts = |first, blocks| Parts::of(long(first, blocks)).0;
        assert_eq!((parts(0, 1), parts(2047, 1), parts(2048, 1)), (1, 1, 2));
        assert_eq!((parts(2047, 2), parts(2047, 2049 + 1)), (3, 7));
        assert_eq!(parts(15 * 2048, 2049), 1 << 15 | 1, "they come in turn");
        assert_eq!(
            (parts(5, 16 * 2048), parts(0, 1 << 20)),
            (u16::MAX, u16::MAX)
        );
        assert_eq!(Parts::of(long(2048, 9)).only(), Some(1));
        assert_eq!(Parts::of(long(2047, 9)).only(), None);
    }

    /// Each has parts that another one has, and all meet in a circle.
    #[test]
    fn who_needs_several_parts_waits_for_nobody_who_waits_for_it() {
        let (fence, inside) = (Arc::new(Fence::default()), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (fence, inside) = (&fence, &inside);
                scope.spawn(move || {
                    for turn in 0..2000 {
                        // Every range holds block 20 * 2048, and begins and ends in other parts.
                        let (before, behind) = ((thread * 3 + turn) % 8, turn % 7 + 1);
                        let first = (20 - before) * 2048;
                        hold(fence, long(first, (before + behind) * 2048), inside);
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..500 {
                    hold(&fence, long(0, 1 << 20), &inside);
                }
            });
        });
        assert!(is_empty(&fence));
    }

    #[test]
    fn overlapping_requests_pass_in_order_of_arrival() {
        let mut table = FenceTable::default();
        let (a, b, c) = (
            table.enter(range(0, 4)),
            table.enter(range(3, 4)),
            table.enter(range(6, 1)),
        );
        let d = table.enter(range(20, 1));
        assert!(table.may_pass(a) && !table.may_pass(b) && !table.may_pass(c) && table.may_pass(d));
        table.leave(a);
        assert!(
            table.may_pass(b) && !table.may_pass(c),
            "c waits for b, which came first"
        );
        table.leave(b);
        assert!(table.may_pass(c));
    }

    #[test]
    fn who_waits_may_give_up() {
        let (fence, dead) = (Arc::new(Fence::default()), AtomicU32::new(0));
        let held = fence.acquire(range(0, 4));
        let gives_up = || dead.load(Ordering::SeqCst) > 0;
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| fence.acquire_unless(range(3, 4), gives_up).is_some());
            while fence.0[0].lock().waiting == 0 {
                std::thread::yield_now();
            }
            dead.store(1, Ordering::SeqCst);
            fence.rouse();
            assert!(!waits.join().expect("no panic"));
        });
        let free = fence.acquire_unless(range(4, 1), gives_up);
        assert!(free.is_some(), "nobody is in its way");
        drop((held, free));
        assert!(is_empty(&fence));
    }

    #[test]
    fn no_two_threads_hold_one_block() {
        let (fence, inside) = (Arc::new(Fence::default()), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (fence, inside) = (&fence, &inside);
                scope.spawn(move || {
                    for turn in 0..2000 {
                        hold(fence, range((thread + turn) % 3, 3), inside);
                    }
                });
            }
        });
        assert!(is_empty(&fence));
    }
}
