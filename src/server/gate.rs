//! The gate in front of every change of the unit: whether it may pass, has to wait, or is refused.
//!
//! The control thread opens and closes it; nothing here decides when.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::pipeline::{EIO, Errno};

/// Changes pass.
const OPEN: u8 = 0;
/// The unit takes no writes.
const READ_ONLY: u8 = 1;
/// The membership is not durable (I3): no write may be acknowledged until it is.
const HALTED: u8 = 2;
/// The unit has been stopped.
const CLOSED: u8 = 3;
/// A change of membership is being written down; the control thread is about to say whether it could be.
const DECIDING: u8 = 4;
/// The unit is about to grow: a new change waits before it pins an epoch.
const GROWING: u8 = 5;
/// Longest wait for that. Longer than a command may take, which gives up and lets changes go on.
const GROWTH: Duration = Duration::from_secs(60);
/// Longest wait for a decision.
const DECISION: Duration = Duration::from_secs(30);

/// The gate. Where it is open a change pays one load.
#[derive(Debug)]
pub(super) struct Gate {
    state: AtomicU8,
    /// The membership is not durable, or that is being decided, whatever `state` says.
    undurable: AtomicBool,
    deciding: Mutex<()>,
    decision: Condvar,
}

impl Gate {
    pub(super) fn new(read_only: bool) -> Self {
        Self {
            state: AtomicU8::new(if read_only { READ_ONLY } else { OPEN }),
            undurable: AtomicBool::new(false),
            deciding: Mutex::new(()),
            decision: Condvar::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.now() == OPEN
    }

    fn now(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    /// Whether changes may pass; waits while that is being decided, or the unit grows.
    pub(super) fn pass(&self) -> Result<(), Errno> {
        match self.now() {
            OPEN => Ok(()),
            READ_ONLY => Err(Errno(libc::EROFS)),
            DECIDING if self.decided() != HALTED => self.pass(),
            GROWING if self.wait_while(GROWING, GROWTH) => self.pass(),
            _ => Err(EIO),
        }
    }

    /// Whether flushes may be acknowledged: not while the membership is not durable.
    pub(super) fn pass_flush(&self) -> Result<(), Errno> {
        match self.now() {
            HALTED => Err(EIO),
            DECIDING if self.decided() == HALTED => Err(EIO),
            _ => Ok(()),
        }
    }

    /// Whether a change that has passed may go on with bits in memory only: not before the loss of the journal is
    /// durable, since a crash would have the next mount believe a journal without those bits (I1). Does not wait for
    /// a growth, which waits for the change.
    pub(super) fn pass_unkept(&self) -> Result<(), Errno> {
        if self.now() == DECIDING {
            self.decided();
        }
        match self.undurable.load(Ordering::Acquire) {
            true => Err(EIO),
            false => Ok(()),
        }
    }

    /// Waits until the control thread has decided, and gives what.
    fn decided(&self) -> u8 {
        match self.wait_while(DECIDING, DECISION) {
            true => self.now(),
            false => HALTED,
        }
    }

    fn wait_while(&self, state: u8, longest: Duration) -> bool {
        let guard = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        let still = |(): &mut ()| self.now() == state;
        let waited = self.decision.wait_timeout_while(guard, longest, still);
        waited.is_ok_and(|(_, waited)| !waited.timed_out())
    }

    /// Has changes wait for the next [`Self::halt`]. Read-only and closed units stay as they are.
    pub(super) fn hold(&self) {
        self.undurable.store(true, Ordering::Release);
        self.turn(|state| state == OPEN, DECIDING);
    }

    /// Has new changes wait for [`Self::lift`], before they pin an epoch.
    pub(super) fn hold_for_growth(&self) {
        self.turn(|state| matches!(state, OPEN | DECIDING | HALTED), GROWING);
    }

    /// Holds all changes back, or lets them pass again (I3). A unit that grows stays held.
    pub(super) fn halt(&self, halted: bool) {
        self.undurable.store(halted, Ordering::Release);
        let to = if halted { HALTED } else { OPEN };
        self.turn(|state| matches!(state, OPEN | DECIDING | HALTED), to);
    }

    /// Lets changes pass that have waited for a growth, unless the membership is not durable (I3).
    pub(super) fn lift(&self, halted: bool) {
        let to = if halted { HALTED } else { OPEN };
        self.turn(|state| state == GROWING, to);
    }

    /// Lets no change pass any more.
    pub(super) fn close(&self) {
        self.turn(|_| true, CLOSED);
    }

    /// Who waits looks at the state under the lock, and misses no turn.
    fn turn(&self, from: impl Fn(u8) -> bool, to: u8) {
        let guard = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        let next = |state| from(state).then_some(to);
        let _ = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
        drop(guard);
        self.decision.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_grows_stays_held_until_it_is_lifted() {
        let gate = Gate::new(false);
        gate.hold_for_growth();
        gate.halt(false);
        assert!(!gate.is_open());
        gate.lift(true);
        assert_eq!(gate.pass(), Err(EIO));
        gate.halt(false);
        assert!(gate.is_open());
        gate.lift(true);
        assert!(gate.is_open(), "nothing was held");
    }

    #[test]
    fn bits_in_memory_do_only_when_the_membership_is_durable() {
        let gate = Gate::new(false);
        gate.halt(true);
        assert_eq!(gate.pass_unkept(), Err(EIO));
        gate.hold_for_growth();
        assert_eq!(gate.pass_unkept(), Err(EIO), "a growth hides nothing");
        gate.halt(false);
        assert_eq!(gate.pass_unkept(), Ok(()), "nor does one hold it");
    }

    #[test]
    fn a_read_only_unit_stays_so() {
        let gate = Gate::new(true);
        gate.hold_for_growth();
        gate.lift(false);
        gate.halt(true);
        assert_eq!(gate.pass(), Err(Errno(libc::EROFS)));
        gate.close();
        assert_eq!(gate.pass(), Err(EIO));
    }

    #[test]
    fn who_waits_goes_on_when_the_unit_has_grown() {
        let gate = Gate::new(false);
        gate.hold_for_growth();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| gate.pass());
            gate.lift(false);
            assert_eq!(waits.join().expect("no panic"), Ok(()));
        });
    }
}
