//! What can happen next in a small world: something begins, or something that was begun goes one step on.

use shadowset::set::{AttachPolicy, Bytes, Command, Event, Policy};
use shadowset::testing::{Path, Rng};

use crate::commands::name;
use crate::ops::{Coming, Trouble};
use crate::requests::{Kind, Stage};
use crate::scripts::id;
use crate::small::state::NAMES;
use crate::world::{Asker, BLOCK, Checked, World};

/// Blocks of the unit: two whole regions, and one of a single block.
const BLOCKS: u64 = 17;
/// Requests that are under way at once.
const REQUESTS_MAX: usize = 2;
/// A seed with which the images are as large as the unit.
const SEED: u64 = 1;
/// More operations on storage than anything takes.
const MANY: u64 = 1 << 20;

/// One thing that happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Deed {
    /// A request of so many blocks from a first one.
    Write(u64, u64),
    Discard(u64, u64),
    Read(u64, u64),
    Flush,
    /// A write that fails on every member.
    Doomed(u64, u64),
    /// From now on no write comes to this member, counted from one.
    FailOn(usize),
    Detach(usize),
    Attach(usize, AttachPolicy),
    DeleteBitmap(usize),
    Expel(usize),
    Merge,
    /// Some time passes.
    Tick,
    /// The unit is stopped in order.
    Stop,
    Kill,
    PowerLoss,
    /// A stopped unit is mounted.
    Mount,
    /// A step of one of the requests, of some copy, of the set.
    Request(usize),
    Copy,
    Deliver,
    EndFlush,
}

/// The steps of what was begun.
pub(super) const STEPS: [Deed; 6] = [
    Deed::Request(0),
    Deed::Request(1),
    Deed::Copy,
    Deed::Deliver,
    Deed::EndFlush,
    Deed::Mount,
];

/// One thing that happened: what it was, before which operation on blocks the program ended, and what was chosen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Act {
    pub(super) deed: Deed,
    /// 0 where the program went on.
    pub(super) strike: u64,
    pub(super) choices: Vec<u8>,
}

/// A unit whose members are equal, just mounted; then what happens before, each to its end. And how that went.
pub(super) fn first(members: usize, before: &[Deed], log: bool) -> (World, Checked) {
    let mut plan = crate::scripts::plan(members, (true, 1));
    (plan.blocks, plan.blocks_max, plan.hot_blocks, plan.grows) = (BLOCKS, BLOCKS, BLOCKS, false);
    plan.faults.planned = 1;
    let mut world = World::with(Rng::new(SEED), plan, SEED, log);
    world.ops.replaying = true;
    let begun = world.begin_life();
    let outcome = begun.and_then(|()| {
        before.iter().try_for_each(|deed| {
            world.tick_over();
            world.rng = Rng::new(SEED);
            world.perform(*deed)?;
            world.rest()
        })
    });
    world.ops.replaying = false;
    (world, outcome)
}

impl World {
    /// Whether it can happen now.
    pub(super) fn can(&self, deed: Deed) -> bool {
        if self.crashed || self.stopped {
            let crash = matches!(deed, Deed::Kill | Deed::PowerLoss);
            return crash && self.crashed || matches!(deed, Deed::Mount) && self.stopped;
        }
        let asked = self
            .tickets
            .values()
            .any(|a| matches!(a, Asker::Command(_)));
        let departed = |m| self.state(id(m)).departed().is_some();
        let closed = |m: usize| !self.disks[m - 1].open;
        match deed {
            Deed::Write(..)
            | Deed::Discard(..)
            | Deed::Read(..)
            | Deed::Flush
            | Deed::Doomed(..) => self.requests.len() < REQUESTS_MAX,
            Deed::FailOn(m) => !self.disks[m - 1].bad_writes,
            Deed::Detach(m) | Deed::Expel(m) => !asked && !departed(m),
            Deed::Attach(m, _) => !asked && departed(m) && closed(m),
            Deed::DeleteBitmap(m) => {
                let tag = self.state(id(m)).departed().and_then(|d| d.tag);
                !asked && tag.is_some()
            }
            Deed::Merge => !asked,
            Deed::Stop => !asked && self.requests.is_empty(),
            Deed::Tick | Deed::Kill | Deed::PowerLoss => true,
            Deed::Mount => false,
            Deed::Request(at) => {
                at < self.requests.len() && self.requests[at].stage != Stage::Waiting
            }
            Deed::Copy => !self.copies.is_empty(),
            Deed::Deliver => !self.inbox.is_empty(),
            Deed::EndFlush => !self.flushes.is_empty(),
        }
    }

    /// Has it happen along a path. Gives the path with all that was chosen, and how many operations on blocks there were.
    pub(super) fn happen(&mut self, act: &Act) -> (Checked, Path, u64) {
        self.tick_over();
        self.rng = Rng::along(Path {
            choices: act.choices.clone(),
            members: self.disks.len() as u64,
            ..Path::default()
        });
        let left = if act.strike > 0 { act.strike } else { MANY };
        let coming = Coming {
            left,
            what: Trouble::Kill,
            blocks_only: true,
        };
        self.ops.coming = Some(coming);
        let outcome = self.perform(act.deed);
        let outcome = self.unless_crashed(outcome);
        let done = self
            .ops
            .coming
            .take()
            .map_or(left, |coming| left - coming.left);
        let path = self.rng.path().cloned().unwrap_or_default();
        (outcome, path, done)
    }

    /// The next step begins; the clock stands still.
    fn tick_over(&mut self) {
        self.now += 1;
        self.turns.skew = -i64::try_from(self.now).unwrap_or(0);
        self.ids = self.ids.max(NAMES);
    }

    fn perform(&mut self, deed: Deed) -> Checked {
        match deed {
            Deed::Write(first, blocks) => {
                let value = self.fresh_value();
                self.begin(Kind::Write(value), Some((first, blocks)), false)
            }
            Deed::Doomed(first, blocks) => {
                let value = self.fresh_value();
                self.begin(Kind::Write(value), Some((first, blocks)), true)
            }
            Deed::Discard(first, blocks) => self.begin(Kind::Discard, Some((first, blocks)), false),
            Deed::Read(first, blocks) => self.begin(Kind::Read, Some((first, blocks)), false),
            Deed::Flush => self.begin(Kind::Flush, None, false),
            Deed::FailOn(m) => {
                self.disks[m - 1].bad_writes = true;
                Ok(())
            }
            Deed::Detach(m) => self.command_on("detach", m, |member| Command::Detach {
                member,
                policy: Policy::MinicopyOptional,
            }),
            Deed::Expel(m) => self.command_on("expel", m, |member| Command::Expel { member }),
            Deed::Attach(m, policy) => self.attach_member(m, policy),
            Deed::DeleteBitmap(m) => self.delete_bitmap_of(m),
            Deed::Merge => self.give("demand merge", None, Command::Merge { full: false }),
            Deed::Tick => self.handle(Event::Tick),
            Deed::Stop => {
                self.rng = Rng::new(1);
                self.stop()
            }
            Deed::Kill | Deed::Mount => self.end(false),
            Deed::PowerLoss => self.end(true),
            Deed::Request(at) => self.step_of(at),
            Deed::Copy => self.with_bursts(Self::step_copy),
            Deed::Deliver => self.deliver(),
            Deed::EndFlush => self.end_flush(),
        }
    }

    /// A request begins and queues at the fence.
    fn begin(&mut self, kind: Kind, blocks: Option<(u64, u64)>, doomed: bool) -> Checked {
        let range = blocks.map(|(first, blocks)| {
            let range = self
                .geometry
                .clip(Bytes(first * BLOCK), Bytes(blocks * BLOCK));
            range.expect("inside the unit")
        });
        self.ask(kind, range, doomed);
        match self.requests.last().map(|r| r.stage) {
            Some(Stage::Fence) => self.go_on(self.requests.len() - 1),
            _ => Ok(()),
        }
    }

    fn command_on(
        &mut self,
        word: &'static str,
        m: usize,
        command: impl Fn(String) -> Command,
    ) -> Checked {
        self.give(word, Some(id(m)), command(name(id(m))))
    }

    /// One step that others can tell from the one before: who may pass the fence loads its View at once, since
    /// nobody sees it between; and so on.
    fn step_of(&mut self, at: usize) -> Checked {
        let (id, before) = (self.requests[at].id, self.requests[at].stage);
        let reads = self.requests[at].kind == Kind::Read;
        match before == Stage::Merge || reads {
            true => self.with_bursts(|world| world.go_on(at))?,
            false => self.go_on(at)?,
        }
        let Some(request) = self.requests.get(at).filter(|r| r.id == id) else {
            return Ok(());
        };
        let passes = before == Stage::Fence && request.stage == Stage::Load;
        match passes || request.is_written() {
            true => self.go_on(at),
            false => Ok(()),
        }
    }

    fn with_bursts(&mut self, step: impl FnOnce(&mut Self) -> Checked) -> Checked {
        let bursts = |world: &mut Self, are| {
            if let Some(path) = world.rng.path() {
                path.bursts = are;
            }
        };
        bursts(self, true);
        let outcome = step(self);
        bursts(self, false);
        outcome
    }

    fn end(&mut self, power: bool) -> Checked {
        self.power = power;
        // The mark of a mount is a name as well.
        self.reboot()
    }
}
