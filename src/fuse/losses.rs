//! Who has been told that writes are lost: every open handle once, as the system tells it of a file (errseq).
//!
//! A flush that fails on every source fails for whoever asked for it. The others that have the unit open, such as a loop
//! device beside a program, wrote what is lost just as well.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What each open handle knows of the losses, as their count.
#[derive(Debug, Default)]
pub(super) struct Losses(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    handles: HashMap<u64, u64>,
    /// The most that any handle was told of.
    told: u64,
}

impl Losses {
    /// A handle is opened. Losses that nobody was told of are told to it, or they were told to nobody at all.
    pub(super) fn opened(&self, handle: u64) {
        let mut known = self.lock();
        let told = known.told;
        known.handles.insert(handle, told);
    }

    /// A handle is closed.
    pub(super) fn closed(&self, handle: u64) {
        self.lock().handles.remove(&handle);
    }

    /// Whether there are losses that a handle does not know of; now it does.
    pub(super) fn tell(&self, handle: u64, losses: u64) -> bool {
        let mut known = self.lock();
        known.told = known.told.max(losses);
        // The count of a flush that has ended behind this one may be known already.
        let seen = known.handles.get_mut(&handle);
        seen.is_some_and(|seen| std::mem::replace(seen, losses.max(*seen)) < losses)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_handle_is_told_of_a_loss_once() {
        let losses = Losses::default();
        losses.opened(1);
        losses.opened(2);
        assert!(!losses.tell(1, 0));
        assert!(losses.tell(1, 1) && !losses.tell(1, 1));
        assert!(losses.tell(2, 3) && !losses.tell(2, 2));
        assert!(losses.tell(1, 3));
    }

    #[test]
    fn who_opens_the_unit_hears_only_of_what_nobody_was_told() {
        let losses = Losses::default();
        losses.opened(1);
        assert!(losses.tell(1, 1));
        losses.opened(2);
        assert!(!losses.tell(2, 1));
        losses.closed(1);
        losses.closed(2);
        losses.opened(3);
        assert!(losses.tell(3, 2));
        losses.opened(4);
        assert!(!losses.tell(4, 2));
    }
}
