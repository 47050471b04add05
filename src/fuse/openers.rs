//! Who has just opened the unit for writing.
//!
//! An open with `O_TRUNC` comes as an open and a truncation to nothing. It changes nothing here, as
//! on a disk, while truncate(2) is refused; the two look alike but for the open just before. The
//! data path passes through here, so there is no lock.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Opens that are remembered for the truncation that may follow.
const KEPT: usize = 256;
/// Set in the handles of the unit: the numbers of control files are small.
const UNIT_HANDLE: u64 = 1 << 63;

/// The last opens, each in the slot that its number gives: the number above the thread.
pub(super) struct Openers {
    slots: [AtomicU64; KEPT],
    next: AtomicU64,
}

impl std::fmt::Debug for Openers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Openers")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Default for Openers {
    fn default() -> Self {
        Self {
            slots: [const { AtomicU64::new(0) }; KEPT],
            // An empty slot belongs to no open.
            next: AtomicU64::new(1),
        }
    }
}

impl Openers {
    /// Notes an open by a thread; the answer is the handle's number.
    pub(super) fn opened(&self, pid: u32) -> u64 {
        let number = self.number();
        self.slot(number)
            .store(number << 32 | u64::from(pid), Relaxed);
        UNIT_HANDLE | number
    }

    /// The number of the handle of an open that truncates nothing.
    pub(super) fn opened_to_read(&self) -> u64 {
        UNIT_HANDLE | self.number()
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed) & u64::from(u32::MAX)
    }

    /// Forgets the open of a handle that is used: a truncation would have come before.
    pub(super) fn used(&self, handle: u64) {
        let number = handle & u64::from(u32::MAX);
        let slot = self.slot(number);
        let held = slot.load(Relaxed);
        if held != 0 && held >> 32 == number {
            // When it fails, somebody else has forgotten or replaced it.
            let _ = slot.compare_exchange(held, 0, Relaxed, Relaxed);
        }
    }

    /// Whether this thread has opened the unit and done nothing with it since; tells so once.
    pub(super) fn is_opening(&self, pid: u32) -> bool {
        let mut found = false;
        for slot in &self.slots {
            let held = slot.load(Relaxed);
            if held != 0 && held & u64::from(u32::MAX) == u64::from(pid) {
                found |= slot.compare_exchange(held, 0, Relaxed, Relaxed).is_ok();
            }
        }
        found
    }

    fn slot(&self, number: u64) -> &AtomicU64 {
        // The remainder is smaller than the array.
        &self.slots[(number % KEPT as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncation_belongs_to_the_open_before_it() {
        let openers = Openers::default();
        assert!(!openers.is_opening(7) && !openers.is_opening(0));
        openers.opened(7);
        openers.opened(8);
        assert!(openers.is_opening(7) && !openers.is_opening(7));
        assert!(openers.is_opening(8));
        for _ in 0..2 * KEPT {
            openers.opened(9);
        }
        assert!(openers.is_opening(9) && !openers.is_opening(9));
    }

    #[test]
    fn a_handle_that_is_used_opens_no_more() {
        let openers = Openers::default();
        let (old, other) = (openers.opened(7), openers.opened(8));
        assert_ne!(old, other);
        openers.used(old);
        openers.used(0);
        assert!(!openers.is_opening(7) && openers.is_opening(8));
        for _ in 0..KEPT {
            openers.opened(9);
        }
        openers.used(other);
        assert!(openers.is_opening(9), "the slot is another's now");
    }
}
