//! Operations on storage, counted one by one: writes and flushes of members, control blocks, changes of the
//! home, durable marks. One of them may be struck: by the end of the program, or by an error.
//!
//! Who strikes is decided elsewhere: the scheduler at random, the scripts at every place in turn.

use shadowset::set::{Epoch, Event, HomeChange, MemberSet};

use crate::repairer::Repairing;
use crate::returned::Returned;
use crate::silence::Silence;
use crate::stall::Stall;
use crate::unflushed::Losses;
use crate::world::{Checked, Violation, World};

/// An operation on storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    /// One block of a member.
    Write,
    /// A flush of one member.
    Flush,
    /// The control block of one member.
    Block,
    /// A change of the home.
    Change,
    /// Bits that become durable.
    Mark,
}

/// What happens at an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trouble {
    /// The program is killed.
    Kill,
    /// Power is lost.
    Power,
    /// It fails, once; the home fails for good.
    Error,
    /// There is no room: it fails, and so do the writes of all members for a while.
    Full,
}

impl Trouble {
    /// Every one.
    pub(crate) const ALL: [Self; 4] = [Self::Kill, Self::Power, Self::Error, Self::Full];

    /// Whether the program ends.
    pub(crate) fn is_crash(self) -> bool {
        matches!(self, Self::Kill | Self::Power)
    }
}

/// Trouble that comes after some more operations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coming {
    /// Operations that still pass.
    pub(crate) left: u64,
    pub(crate) what: Trouble,
    /// Only control blocks and changes of the home count.
    pub(crate) blocks_only: bool,
}

/// How an operation goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Strike {
    Passes,
    Fails,
    /// It is not carried out, or in part, and nothing comes after it.
    Crashes,
}

/// The operations up to now, and the trouble to come.
#[derive(Debug, Default)]
pub(crate) struct Ops {
    /// Changes wait by command.
    pub(crate) stall: Stall,
    /// Operations up to now.
    pub(crate) done: u64,
    pub(crate) coming: Option<Coming>,
    /// The operation that was struck last.
    pub(crate) struck: Option<Op>,
    /// No member has room for a write.
    pub(crate) full: bool,
    /// Members that have left, and whose images are let go of once that is durable.
    pub(crate) unclosed: MemberSet,
    /// Members that were expelled, and whose blocks do not say so yet.
    pub(crate) unstamped: MemberSet,
    /// Members of which the set has heard in this life that their blocks say that they have left.
    pub(crate) heard: MemberSet,
    /// Blocks to come that cannot be written.
    pub(crate) stuck: u64,
    /// Starts in a row that were refused since a block could not be written.
    pub(crate) refused: usize,
    /// Members whose blocks could not be written just now; nobody has told the set yet.
    pub(crate) just_failed: MemberSet,
    /// The set has said that a flush has failed on all sources.
    pub(crate) flush_lost: bool,
    /// Views before this one may have seen what a flush has lost.
    pub(crate) lost_before: Option<Epoch>,
    /// Members have been in doubt: who reads there compares more than is stale.
    pub(crate) doubted: bool,
    /// Writes that get lost.
    pub(crate) losses: Losses,
    /// The read repair that is under way.
    pub(crate) repair: Option<Repairing>,
    /// Members that do not answer.
    pub(crate) silence: Silence,
    /// Members that have come back.
    pub(crate) returned: Returned,
    /// What happens has happened before in the same way: what was checked then is not checked again.
    pub(crate) replaying: bool,
}

impl Ops {
    /// With these writes that get lost.
    pub(crate) fn of(losses: Losses) -> Self {
        Self {
            losses,
            ..Self::default()
        }
    }
}

impl World {
    /// Whether the next operation of this kind is struck.
    pub(crate) fn is_struck(&self, op: Op) -> bool {
        let counts = |c: &Coming| !c.blocks_only || matches!(op, Op::Block | Op::Change);
        self.ops.coming.is_some_and(|c| c.left == 0 && counts(&c))
    }

    /// Counts an operation and says how it goes.
    pub(crate) fn strike(&mut self, op: Op) -> Strike {
        if self.crashed {
            return Strike::Crashes;
        }
        self.ops.done += 1;
        let Some(coming) = self.ops.coming.filter(|_| self.is_struck(op)) else {
            if let Some(coming) = &mut self.ops.coming {
                let counts = !coming.blocks_only || matches!(op, Op::Block | Op::Change);
                coming.left -= u64::from(counts);
            }
            return match self.ops.full && op == Op::Write {
                true => Strike::Fails,
                false => Strike::Passes,
            };
        };
        (self.ops.coming, self.ops.struck) = (None, Some(op));
        self.log(format!("{:?} at {op:?}", coming.what));
        self.mark(match op {
            Op::Write => "trouble at a member write",
            Op::Flush => "trouble at a flush",
            Op::Block => "trouble between control blocks",
            Op::Change => "trouble between changes of bitmaps",
            Op::Mark => "trouble at a durable mark",
        });
        self.ops.full = coming.what == Trouble::Full && op == Op::Write;
        match coming.what.is_crash() {
            true => {
                (self.crashed, self.power) = (true, coming.what == Trouble::Power);
                Strike::Crashes
            }
            false => Strike::Fails,
        }
    }

    /// What a crash looks like to whoever was at work: it goes no further.
    pub(crate) fn cut_short() -> Violation {
        Violation("the program has ended".into())
    }

    /// Takes the outcome of a step: one that was cut short by a crash is no violation.
    pub(crate) fn unless_crashed(&self, outcome: Checked) -> Checked {
        match self.crashed {
            true => Ok(()),
            false => outcome,
        }
    }

    /// Tells the set whose blocks could not be written, behind the answers, as the server does. Blocks of
    /// members that stay are tried again.
    pub(crate) fn report_blocks(&mut self) -> Checked {
        let failed = std::mem::take(&mut self.ops.just_failed);
        if failed.is_empty() || self.crashed {
            return Ok(());
        }
        self.mark("control block not written");
        self.ops.heard = self.ops.heard.without(failed);
        let (now, held) = (self.moment(), self.written.held(failed));
        let effects = self.set.handle(now, Event::BlocksFailed(held));
        self.carry_out(effects)
    }

    /// Tries again to make a membership durable that no member could write down, as the server does with
    /// every tick.
    pub(crate) fn persist_again(&mut self) -> Checked {
        if !self.is_undurable() || self.crashed {
            return Ok(());
        }
        let (generation, to) = (self.set.generation(), self.set.writers());
        self.write_blocks(generation, false, to);
        if !self.is_undurable() && !self.crashed {
            self.mark("a membership became durable late");
            self.change_home(&HomeChange::Describe(self.set.proof()));
        }
        self.carry_out(Vec::new())
    }

    /// Whether a member that takes part could say something else after a crash (I3).
    pub(crate) fn is_undurable(&self) -> bool {
        !self.written.is_durable(self.set.writers())
    }
}
