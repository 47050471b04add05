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
        self.next += 1;
        self.entries.push((self.next, range));
        self.next
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

/// The fence between threads.
///
/// One lock for the whole unit, held for a scan of the requests under way: with at most some dozens
/// of them that costs less than a hundred nanoseconds, and no request sleeps while it is held.
#[derive(Debug)]
pub struct Fence {
    gate: Mutex<Gate>,
    freed: Condvar,
}

impl Default for Fence {
    fn default() -> Self {
        let gate = Gate {
            table: FenceTable::with_capacity(256),
            waiting: 0,
        };
        Self {
            gate: Mutex::new(gate),
            freed: Condvar::new(),
        }
    }
}

impl Fence {
    /// Waits until no earlier holder overlaps the range, then holds it.
    pub fn acquire(self: &Arc<Self>, range: BlockRange) -> FenceGuard {
        let mut gate = self.lock();
        let place = gate.table.enter(range);
        self.wait(gate, place, || false);
        FenceGuard {
            fence: Arc::clone(self),
            place,
        }
    }

    /// As [`Self::acquire`], unless it has to wait and `gives_up`; that is asked again after [`Self::rouse`].
    pub fn acquire_unless(
        self: &Arc<Self>,
        range: BlockRange,
        gives_up: impl Fn() -> bool,
    ) -> Option<FenceGuard> {
        let mut gate = self.lock();
        let place = gate.table.enter(range);
        let held = self.wait(gate, place, gives_up);
        let guard = FenceGuard {
            fence: Arc::clone(self),
            place,
        };
        held.then_some(guard)
    }

    /// Has all who wait ask whether they give up.
    pub fn rouse(&self) {
        drop(self.lock());
        self.freed.notify_all();
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

    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A held range; dropping it frees the range. Any thread may do that: who waits for a member that does not
/// answer cannot.
#[derive(Debug)]
#[must_use = "the range is free again when this is dropped"]
pub struct FenceGuard {
    fence: Arc<Fence>,
    place: u64,
}

impl Drop for FenceGuard {
    fn drop(&mut self) {
        let too_early = makes!(WakeupLost).then(|| self.fence.lock().waiting > 0);
        let mut gate = self.fence.lock();
        gate.table.leave(self.place);
        let wake = too_early.unwrap_or(gate.waiting > 0);
        drop(gate);
        if wake {
            self.fence.freed.notify_all();
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
            while fence.lock().waiting == 0 {
                std::thread::yield_now();
            }
            dead.store(1, Ordering::SeqCst);
            fence.rouse();
            assert!(!waits.join().expect("no panic"));
        });
        let free = fence.acquire_unless(range(4, 1), gives_up);
        assert!(free.is_some(), "nobody is in its way");
        drop((held, free));
        assert!(fence.lock().table.is_empty());
    }

    #[test]
    fn no_two_threads_hold_one_block() {
        let (fence, inside) = (Arc::new(Fence::default()), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (fence, inside) = (&fence, &inside);
                scope.spawn(move || {
                    for turn in 0..2000 {
                        let _held = fence.acquire(range((thread + turn) % 3, 3));
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "I4");
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(fence.lock().table.is_empty());
    }
}
