//! Fixed scripts: short sequences of commands, each run with trouble at its first, second, third ... operation
//! on storage, until it passes untouched.
//!
//! After each the set must assemble by itself, hold all checks, and end with equal members.

use shadowset::set::{
    Attach, AttachPolicy, Bytes, CandidateId, Command, Joiner, MemberId, MemberState, Policy, Start,
};
use shadowset::testing::Rng;

use crate::commands::name;
use crate::ops::{Coming, Trouble};
use crate::plan::{Faults, Plan};
use crate::requests::Kind;
use crate::runs::catching;
use crate::world::{BLOCK, Checked, Violation, World, ensure, member};

/// Blocks of the unit: two whole regions and half of one.
const BLOCKS: u64 = 20;
/// Steps until everything is at rest.
const STEPS_MAX: u64 = 100_000;
/// Operations that a short script has at most.
const OPERATIONS_MAX: u64 = 5000;

/// One thing that a script does. Members count from one; blocks from zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Do {
    /// A write of some blocks, to its end.
    Write(u64, u64),
    /// A write that runs beside what comes next.
    Start(u64, u64),
    Discard(u64, u64),
    Flush,
    /// A write that fails on one member: it is expelled.
    FailOn(usize, u64, u64),
    /// A write that fails on every member.
    FailEverywhere(u64, u64),
    Detach(usize),
    /// By minicopy where there is a bitmap.
    Attach(usize),
    /// By compare copy.
    Compare(usize),
    /// An attach, of a new image where nobody has this number, that does not wait for the copy.
    Begin(usize),
    /// A new image.
    New,
    /// So many ticks, each with what comes of it.
    Ticks(u64),
    DeleteBitmap(usize),
    /// A verify of the whole unit, where there are members to compare.
    Verify,
    /// The unit grows to so many blocks, or as far as it can.
    Resize(u64),
    /// Stops the unit in order.
    Stop,
    /// Mounts it, without these members.
    Mount(&'static [usize]),
    /// The program is killed, and the unit is mounted again.
    Kill,
    /// Power is lost, and the unit is mounted again.
    PowerLoss,
}

/// A set of `members` sources at rest.
pub(crate) fn world(members: usize, home: (bool, u64), seed: u64, log: bool) -> World {
    World::with(Rng::new(seed), plan(members, home), seed, log)
}

/// The plan of a world in which only what is scripted happens.
pub(crate) fn plan(members: usize, home: (bool, u64)) -> Plan {
    Plan {
        blocks: BLOCKS,
        region_blocks: crate::plan::REGION_BLOCKS,
        stride: crate::plan::STRIDE,
        starts: vec![Start::Source; members],
        steps: 0,
        requests_max: 8,
        blocks_max: BLOCKS,
        hot_blocks: BLOCKS,
        deeds: [1; crate::plan::DEEDS],
        kinds: [1; 4],
        faults: Faults::default(),
        budget_regions: 1,
        timeouts: 0,
        crashes: 0,
        home,
        absent: 0,
        slow: 0,
        stop_early: false,
        backups: 0,
        clock: 0,
        memory: 0,
        impatience: 0,
        limits: 0,
        verifies: 0,
        held: false,
        hangs: 0,
        stalls: 0,
        grows: true,
    }
}

impl World {
    /// The first mount, then the steps as far as they come, then what crash there was, then everything must
    /// be well. A second crash may strike the mount after the first.
    pub(crate) fn play(&mut self, script: &[Do], again: Option<Coming>) -> Checked {
        let begun = self.begin_life();
        self.unless_crashed(begun)?;
        for step in script {
            if self.crashed {
                break;
            }
            self.log(format!("-- {step:?}"));
            let outcome = self.act(*step);
            self.unless_crashed(outcome)?;
            self.ops.full = false;
        }
        if self.crashed {
            self.ops.coming = again;
        }
        self.end_well()
    }

    /// One step, until everything is at rest again.
    pub(crate) fn act(&mut self, step: Do) -> Checked {
        match step {
            Do::Write(first, blocks) => self.start(first, blocks, false),
            Do::FailEverywhere(first, blocks) => self.start(first, blocks, true),
            Do::Start(first, blocks) => {
                self.start(first, blocks, false);
                // Some of its blocks are written, on some members.
                (0..6).try_for_each(|_| self.step_request())?;
                return Ok(());
            }
            Do::Discard(first, blocks) => {
                let range = self
                    .geometry
                    .clip(Bytes(first * BLOCK), Bytes(blocks * BLOCK));
                self.ask(Kind::Discard, range.ok(), false);
            }
            Do::Flush => self.ask(Kind::Flush, None, false),
            Do::FailOn(m, first, blocks) => {
                self.disks[m - 1].bad_writes = true;
                self.start(first, blocks, false);
            }
            Do::Detach(m) => self.detach_member(m)?,
            Do::Attach(m) => self.attach_member(m, AttachPolicy::MinicopyOptional)?,
            Do::Compare(m) => self.attach_member(m, AttachPolicy::Compare)?,
            Do::Begin(m) if m > self.set.members().len() => return self.attach_new(),
            Do::Begin(m) => return self.attach_member(m, AttachPolicy::MinicopyOptional),
            Do::New => self.attach_new()?,
            Do::Ticks(ticks) => return self.ticks(ticks),
            Do::Verify => {
                let (range, repair) = (None, None);
                self.give("verify", None, Command::Verify { range, repair })?;
            }
            Do::DeleteBitmap(m) => self.delete_bitmap_of(m)?,
            Do::Resize(blocks) => self.resize_to(blocks)?,
            Do::Stop => return self.stop(),
            Do::Mount(away) => {
                self.away = away.iter().map(|m| m - 1).collect();
                self.reboot()?;
                self.away.clear();
            }
            Do::Kill | Do::PowerLoss => {
                self.power = step == Do::PowerLoss;
                return self.reboot();
            }
        }
        self.rest()
    }

    /// A write inside the unit, which may not have grown as the script has it.
    fn start(&mut self, first: u64, blocks: u64, doomed: bool) {
        let unit = self.geometry.blocks();
        let (first, end) = (first.min(unit - 1), (first + blocks).min(unit));
        let len = end.saturating_sub(first).max(1);
        let range = self.geometry.clip(Bytes(first * BLOCK), Bytes(len * BLOCK));
        let value = self.fresh_value();
        self.ask(Kind::Write(value), range.ok(), doomed);
    }

    /// Lets everything that is under way end.
    pub(crate) fn rest(&mut self) -> Checked {
        self.quiet = true;
        for _ in 0..STEPS_MAX {
            if self.crashed || self.is_idle() {
                self.quiet = false;
                return Ok(());
            }
            self.now += 1;
            match self.rng.below(4) {
                0 => self.step_request()?,
                1 => self.step_copy()?,
                2 => self.deliver()?,
                _ => self.end_flush()?,
            }
        }
        Err(Violation("a step of a script does not end".into()))
    }

    fn ticks(&mut self, ticks: u64) -> Checked {
        for _ in 0..ticks {
            if !self.crashed {
                self.handle(shadowset::set::Event::Tick)?;
                self.rest()?;
            }
        }
        Ok(())
    }

    fn detach_member(&mut self, m: usize) -> Checked {
        let id = id(m);
        let command = Command::Detach {
            member: name(id),
            policy: Policy::MinicopyOptional,
        };
        self.give("detach", Some(id), command)
    }

    /// Brings a departed member back, if it has departed.
    pub(crate) fn attach_member(&mut self, m: usize, policy: AttachPolicy) -> Checked {
        let id = id(m);
        let changed = self.disks[m - 1]
            .changed
            .then(|| "it was written".to_owned());
        let attach = Attach {
            word: name(id),
            joiner: Joiner::Departed(id),
            candidate: CandidateId(self.now),
            size: Bytes(self.disks[m - 1].blocks() * BLOCK),
            blank: false,
            blank_tail: self.loose_from(id) == self.inside.len(),
            changed,
            said: self.said(self.disks[m - 1].scb.as_ref()),
            foreign: false,
            policy,
            source: None,
            confirm: true,
        };
        self.give("attach", Some(id), Command::Attach(Box::new(attach)))
    }

    fn attach_new(&mut self) -> Checked {
        let place = self.set.members().len();
        self.put_image(place, true);
        let size = self.geometry.size();
        let m = member(place, size.0);
        let attach = Attach {
            word: m.path.clone(),
            joiner: Joiner::New {
                name: m.name,
                uuid: m.uuid,
                path: m.path,
            },
            candidate: CandidateId(self.now),
            size,
            blank: true,
            blank_tail: false,
            changed: None,
            said: None,
            foreign: true,
            policy: AttachPolicy::MinicopyOptional,
            source: None,
            confirm: true,
        };
        let id = MemberId::new(place);
        self.give("attach", id, Command::Attach(Box::new(attach)))
    }

    pub(crate) fn delete_bitmap_of(&mut self, m: usize) -> Checked {
        let departed = self.state(id(m)).departed();
        match departed.and_then(|d| d.tag) {
            Some(tag) => self.give("delete", None, Command::DeleteBitmap { id: tag.id }),
            None => Ok(()),
        }
    }

    /// However the script went: the set is mounted, everything comes to rest, all members come back, and
    /// they are equal; then the unit is stopped in order, and a mount after that copies nothing.
    pub(crate) fn end_well(&mut self) -> Checked {
        let mut mounts = 0;
        while self.crashed || self.stopped {
            mounts += 1;
            ensure!(mounts < 5, "the set does not stay mounted");
            let outcome = self.reboot();
            self.unless_crashed(outcome)?;
        }
        self.ops.coming = None;
        self.be_quiet()?;
        self.check_quiet()?;
        for m in 1..=self.set.members().len() {
            if self.state(id(m)).departed().is_some() {
                self.attach_member(m, AttachPolicy::MinicopyOptional)?;
                self.be_quiet()?;
            }
        }
        self.check_equal()?;
        self.check_rotation()?;
        self.stop()?;
        self.reboot()?;
        let copies = self.set.status().operations.len();
        ensure!(copies == 0, "{copies} operations after a stop in order");
        self.check_equal()
    }

    /// Every member that was not given up, and has room for the unit, is a source, and all images are equal as far as the unit goes.
    pub(crate) fn check_equal(&self) -> Checked {
        let unit = |place: usize| &self.disks[place].image.contents()[..self.inside.len()];
        let first = self.sources().iter().next().map_or(0, MemberId::index);
        for id in self.ids() {
            let state = self.state(id);
            let is_small = self.disks[id.index()].blocks() < self.inside.len() as u64;
            let is_outgrown = state.departed().is_some() && is_small;
            if matches!(state, MemberState::Vacant) || is_outgrown {
                continue;
            }
            let source = matches!(state, MemberState::Source);
            ensure!(source, "{id:?} is {} at the end", state.name());
            let same = unit(id.index()) == unit(first);
            ensure!(same, "{id:?} differs at the end");
        }
        Ok(())
    }
}

pub(crate) fn id(m: usize) -> MemberId {
    MemberId::new(m - 1).expect("a member")
}

/// Strikes a script at each of its operations on storage, with every trouble, and says at how many.
pub(crate) fn strike_everywhere(name: &str, members: usize, script: &[Do]) {
    let mut points = 0;
    for home in [(true, 1), (true, 2), (false, 1)] {
        for what in Trouble::ALL {
            points += strike_each(name, members, script, (home, what));
        }
    }
    println!("{name}: {points} points");
}

fn strike_each(
    name: &str,
    members: usize,
    script: &[Do],
    (home, what): ((bool, u64), Trouble),
) -> u64 {
    for left in 0..OPERATIONS_MAX {
        // With a second crash in the mount after the first, or without.
        for again in [None, Some(left % 13)] {
            let again = again.filter(|_| what.is_crash());
            let run = |log| {
                let mut world = world(members, home, left % 3, log);
                world.plan.faults.planned = u64::from(!what.is_crash());
                let coming = |left| Coming {
                    left,
                    what,
                    blocks_only: false,
                };
                world.ops.coming = Some(coming(left));
                let outcome = catching(|| world.play(script, again.map(coming)));
                (outcome, world)
            };
            let (outcome, world) = run(false);
            if let Err(text) = outcome {
                let (_, world) = run(true);
                panic!(
                    "{name}: {what:?} at operation {left}, then {again:?}, home {home:?}: {text}\n{}",
                    world.last_operations(80).join("\n")
                );
            }
            if world.ops.struck.is_none() {
                return left;
            }
        }
    }
    panic!("{name} does not end");
}

macro_rules! script {
    ($name:ident, $members:literal, $($step:expr),+ $(,)?) => {
        #[test]
        fn $name() {
            use Do::*;
            strike_everywhere(stringify!($name), $members, &[$($step),+]);
        }
    };
}

script!(
    detach_with_writes_before_and_after,
    3,
    Write(0, 3),
    Start(6, 4),
    Detach(2),
    Write(17, 2),
    Flush,
    Write(1, 1),
);
script!(
    attach_by_minicopy,
    2,
    Write(0, 2),
    Detach(2),
    Write(9, 2),
    Start(5, 6),
    Attach(2),
    Write(9, 1),
    Flush,
);
script!(
    attach_by_compare_copy,
    2,
    Write(0, 2),
    Detach(2),
    Write(9, 2),
    Start(5, 6),
    Compare(2),
    Write(9, 1),
    Flush,
);
script!(
    attach_of_a_new_image,
    2,
    Write(0, 2),
    Start(14, 4),
    New,
    Write(3, 9),
    Flush,
);
script!(
    expulsion_by_a_write_error,
    3,
    Write(2, 2),
    Start(9, 2),
    FailOn(2, 6, 5),
    Write(0, 1),
    Discard(8, 8),
    Attach(2),
    Flush,
);
script!(
    failure_everywhere_and_its_merge,
    3,
    Write(2, 2),
    FailEverywhere(7, 4),
    Write(7, 2),
    Ticks(2),
    FailEverywhere(0, 1),
);
script!(
    stop_and_mount,
    3,
    Write(4, 8),
    Detach(3),
    Write(0, 1),
    Stop,
    Mount(&[]),
    Write(18, 2),
    Attach(3),
    Stop,
    Mount(&[]),
);
script!(
    mount_without_a_member_and_its_return,
    3,
    Write(4, 8),
    Flush,
    Stop,
    Mount(&[2]),
    Write(0, 1),
    Write(16, 2),
    Attach(2),
    Write(0, 1),
    Flush,
);
script!(
    crash_then_mount_without_a_member,
    3,
    Write(4, 8),
    Kill,
    Stop,
    Mount(&[3]),
    Write(0, 1),
    Attach(3),
    Write(0, 1),
);
script!(
    rotation_of_intent,
    2,
    Write(0, 2),
    Ticks(2),
    Start(9, 2),
    Ticks(1),
    Write(0, 2),
    Ticks(3),
    Flush,
    Ticks(2),
);
script!(
    rotation_while_a_member_is_away,
    3,
    Write(0, 2),
    FailOn(3, 8, 1),
    Ticks(2),
    Start(9, 2),
    Ticks(2),
    Attach(3),
    Ticks(2),
);
script!(
    growth_while_a_member_is_away,
    3,
    Write(0, 2),
    Detach(3),
    Write(18, 2),
    Start(5, 6),
    Resize(23),
    Write(19, 2),
    Attach(3),
    Flush,
    Write(20, 1),
);
script!(
    growth_before_and_after_a_departure,
    2,
    Write(0, 2),
    Resize(21),
    Write(20, 1),
    Detach(2),
    Resize(23),
    Kill,
    Write(1, 2),
    Attach(2),
    Write(20, 1),
);
script!(
    deletion_of_a_bitmap,
    2,
    Write(0, 2),
    Detach(2),
    Write(9, 2),
    DeleteBitmap(2),
    Write(0, 1),
    Attach(2),
    Flush,
);
script!(
    crashes_on_crashes,
    2,
    Write(0, 2),
    Kill,
    Write(6, 4),
    PowerLoss,
    Detach(2),
    Write(0, 1),
    Kill,
    Attach(2),
);
