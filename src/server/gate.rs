//! The gate in front of every change of the unit: whether it may pass, has to wait, or is refused.
//!
//! The control thread opens and closes it; nothing here decides when.

use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Condvar, Mutex};
use std::sync::PoisonError;
use std::time::Duration;

use super::pipeline::{EIO, Errno};

/// The unit has been stopped: no change passes any more.
const CLOSED: u8 = 1;
/// The unit takes no writes.
const READ_ONLY: u8 = 1 << 1;
/// The membership is not durable (I3): no write may be acknowledged until it is.
const HALTED: u8 = 1 << 2;
/// A change of membership is being written down; the control thread is about to say whether it could be.
const DECIDING: u8 = 1 << 3;
/// The unit is about to grow: a new change waits before it pins an epoch.
const GROWING: u8 = 1 << 4;
/// The operator has new changes wait, before they pin an epoch.
const STALLED: u8 = 1 << 5;

/// Longest wait for a decision.
const DECISION: Duration = Duration::from_secs(30);
/// A wait for the end of a stall or a growth; another one follows.
const ANOTHER: Duration = match cfg!(test) {
    true => Duration::from_millis(1),
    false => Duration::from_secs(600),
};

/// The gate: what holds changes back at this moment, nothing where it is open. There a change pays one load.
#[derive(Debug)]
pub(super) struct Gate {
    state: AtomicU8,
    turning: Mutex<()>,
    turned: Condvar,
}

impl Gate {
    pub(super) fn new(read_only: bool) -> Self {
        Self {
            state: AtomicU8::new(if read_only { READ_ONLY } else { 0 }),
            turning: Mutex::new(()),
            turned: Condvar::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.now() == 0
    }

    fn now(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    fn is(&self, reason: u8) -> bool {
        self.now() & reason != 0
    }

    /// Whether changes wait for the end of a stall.
    pub(super) fn is_stalled(&self) -> bool {
        self.now() & (CLOSED | READ_ONLY | STALLED) == STALLED
    }

    /// Whether changes may pass; waits for the end of a stall, of a growth, and for a decision.
    pub(super) fn pass(&self) -> Result<(), Errno> {
        loop {
            let now = self.now();
            let (reason, longest) = match now {
                0 => return Ok(()),
                _ if now & CLOSED != 0 => return Err(EIO),
                _ if now & READ_ONLY != 0 => return Err(Errno(libc::EROFS)),
                // Whoever waits gets no error because of what may be over by then.
                _ if now & STALLED != 0 => (STALLED, ANOTHER),
                _ if now & GROWING != 0 => (GROWING, ANOTHER),
                _ if now & DECIDING != 0 => (DECIDING, DECISION),
                _ => return Err(EIO),
            };
            // A stall may be asked for anew any number of times, and a growth take as long as members and commands
            // may; the end of both always comes.
            if !self.wait_out(reason, longest) && reason == DECIDING {
                return Err(EIO);
            }
        }
    }

    /// Whether flushes may be acknowledged: not while the membership is not durable.
    pub(super) fn pass_flush(&self) -> Result<(), Errno> {
        let decided = self.wait_out(DECIDING, DECISION);
        match decided && !self.is(HALTED) {
            true => Ok(()),
            false => Err(EIO),
        }
    }

    /// Whether a change that has passed may go on with bits in memory only: not before the loss of the journal is
    /// durable, since a crash would have the next mount believe a journal without those bits (I1). Waits neither for
    /// a growth nor for the end of a stall, which wait for the change.
    pub(super) fn pass_unkept(&self) -> Result<(), Errno> {
        self.pass_flush()
    }

    /// Waits until this holds nobody back any more; whether that came in time.
    fn wait_out(&self, reason: u8, longest: Duration) -> bool {
        if !self.is(reason) {
            return true;
        }
        let guard = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        // Who is refused for good has nothing to wait for.
        let still = |(): &mut ()| self.is(reason) && !self.is(CLOSED);
        let waited = self.turned.wait_timeout_while(guard, longest, still);
        waited.is_ok_and(|(_, waited)| !waited.timed_out())
    }

    /// Has changes wait for the next [`Self::halt`].
    pub(super) fn hold(&self) {
        self.turn(|state| match state & HALTED {
            0 => state | DECIDING,
            _ => state,
        });
    }

    /// Has new changes wait for [`Self::lift`], before they pin an epoch.
    pub(super) fn hold_for_growth(&self) {
        self.turn(|state| state | GROWING);
    }

    /// Lets changes pass that have waited for a growth, unless something else holds them back.
    pub(super) fn lift(&self) {
        self.turn(|state| state & !GROWING);
    }

    /// Has new changes wait, before they pin an epoch, or lets them pass, unless something else holds them back.
    pub(super) fn stall(&self, stalled: bool) {
        self.turn(|state| match stalled {
            true => state | STALLED,
            false => state & !STALLED,
        });
    }

    /// Refuses all changes, or lets them pass again, unless something else holds them back (I3).
    pub(super) fn halt(&self, halted: bool) {
        self.turn(|state| match halted {
            true => state & !DECIDING | HALTED,
            false => state & !(DECIDING | HALTED),
        });
    }

    /// Lets no change pass any more.
    pub(super) fn close(&self) {
        self.turn(|state| state | CLOSED);
    }

    /// Who waits looks at the state under the lock, and misses no turn.
    fn turn(&self, to: impl Fn(u8) -> u8) {
        let guard = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.now();
        self.state.store(to(state), Ordering::Release);
        drop(guard);
        self.turned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sys;

    #[test]
    fn a_unit_that_grows_stays_held_until_it_is_lifted() {
        let gate = Gate::new(false);
        gate.hold_for_growth();
        gate.halt(false);
        assert!(!gate.is_open());
        gate.halt(true);
        gate.lift();
        assert_eq!(gate.pass(), Err(EIO));
        gate.halt(false);
        assert!(gate.is_open());
        gate.lift();
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
        gate.lift();
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
            gate.lift();
            assert_eq!(waits.join().expect("no panic"), Ok(()));
        });
    }

    /// A growth that took more than a minute failed the changes that waited for it, although no source had.
    #[test]
    fn who_waits_for_a_growth_waits_as_long_as_it_takes() {
        let gate = Gate::new(false);
        gate.hold_for_growth();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| gate.pass());
            sys::poll(&[], Some(ANOTHER * 50)).expect("a pause");
            assert!(!waits.is_finished(), "{:?}", waits.join());
            gate.lift();
            assert_eq!(waits.join().expect("no panic"), Ok(()));
        });
    }

    #[test]
    fn a_flush_is_not_acknowledged_by_a_growth_or_a_stall_while_the_membership_is_not_durable() {
        let gate = Gate::new(false);
        gate.halt(true);
        gate.hold_for_growth();
        gate.stall(true);
        assert_eq!(gate.pass_flush(), Err(EIO));
        gate.halt(false);
        assert_eq!(gate.pass_flush(), Ok(()), "they hold no flush");
    }

    #[test]
    fn a_stall_ends_neither_by_a_growth_nor_by_a_decision() {
        let gate = Gate::new(false);
        gate.stall(true);
        gate.hold();
        gate.halt(false);
        gate.hold_for_growth();
        gate.lift();
        assert!(gate.is_stalled() && !gate.is_open());
        gate.stall(false);
        assert!(!gate.is_stalled() && gate.is_open());
    }

    #[test]
    fn who_waits_for_the_end_of_a_stall_gets_no_error_of_what_was_meanwhile() {
        let gate = Gate::new(false);
        gate.stall(true);
        gate.halt(true);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| gate.pass());
            gate.halt(false);
            gate.hold_for_growth();
            gate.stall(false);
            gate.lift();
            assert_eq!(waits.join().expect("no panic"), Ok(()));
        });
    }

    #[test]
    fn who_waits_for_the_end_of_a_stall_is_refused_when_the_unit_is_closed() {
        let gate = Gate::new(false);
        gate.stall(true);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| gate.pass());
            gate.close();
            assert_eq!(waits.join().expect("no panic"), Err(EIO));
        });
        assert!(!gate.is_stalled(), "nobody waits any more");
    }

    #[test]
    fn a_read_only_unit_is_never_stalled() {
        let gate = Gate::new(true);
        gate.stall(true);
        assert!(!gate.is_stalled());
        assert_eq!(gate.pass(), Err(Errno(libc::EROFS)), "at once");
    }
}
