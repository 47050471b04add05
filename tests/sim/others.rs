//! What went wrong elsewhere: each test is named after a failure of another program that keeps bitmaps, and
//! shows that it ends here in equal members or in a refusal.

use shadowset::set::{Bytes, Code, CopyKind, Event, MemberState, Start};

use crate::scripts::Do::{
    Attach, Begin, Detach, FailEverywhere, FailOn, Flush, Kill, Mount, New, PowerLoss,
    Start as Under, Stop, Ticks, Verify, Write,
};
use crate::scripts::{Do, id, strike_everywhere, world};
use crate::world::{BLOCK, World};

/// Orders of events that each test runs.
const SEEDS: u64 = 60;

impl World {
    fn run_all(&mut self, script: &[Do]) {
        for step in script {
            self.log(format!("-- {step:?}"));
            let outcome = self.act(*step);
            assert!(outcome.is_ok(), "{step:?}: {outcome:?}");
        }
    }

    /// Whether the bitmap of a departed member has this block, in memory and in the home.
    fn has_bit(&self, m: usize, block: usize) -> bool {
        let range = self.bytes_of(block);
        let departed = self.state(id(m)).departed().expect("it has departed");
        let map = departed.marks().expect("it has a bitmap");
        let seeds = departed.seeds.iter().any(|seed| seed.is_stale(range));
        let kept = self.home.with_bits(map.id(), |bits| bits.is_stale(range));
        seeds || map.is_stale(range) && kept == Some(true)
    }

    fn refusal_of_attach(&mut self, m: usize, size: u64, changed: bool) -> Code {
        let attach = shadowset::set::Attach {
            word: format!("m{m}"),
            joiner: shadowset::set::Joiner::Departed(id(m)),
            candidate: shadowset::set::CandidateId(0),
            size: Bytes(size),
            blank: false,
            blank_tail: false,
            changed: changed.then(|| "it was written".into()),
            said: None,
            foreign: false,
            policy: shadowset::set::AttachPolicy::Minicopy,
            source: None,
            confirm: false,
        };
        let plan = self.set.plan_attach(&attach);
        let command = shadowset::set::Command::Attach(Box::new(attach));
        let given = self.give("attach", Some(id(m)), command);
        assert!(given.is_ok(), "{given:?}");
        plan.expect_err("it cannot come in").code
    }

    fn kind_of_last_copy(&self) -> Option<&'static str> {
        self.set.status().operations.last().map(|o| o.kind())
    }
}

/// Runs a check in worlds of three members that differ in the order of events, then all must end well.
fn in_worlds(members: usize, check: impl Fn(&mut World)) {
    for seed in 0..SEEDS {
        let mut world = world(members, (true, 1), seed, true);
        let begun = world.begin_life();
        assert!(begun.is_ok(), "{begun:?}");
        check(&mut world);
        let ended = world.end_well();
        let operations = world.last_operations(60).join("\n");
        assert!(ended.is_ok(), "seed {seed}: {ended:?}\n{operations}");
    }
}

/// OpenZFS issue 5806: a scrub that ended while a device was offline cleared the record of what it lacked.
/// Its return was then taken for complete, and errors were found long after.
#[test]
fn zfs_5806() {
    in_worlds(3, |world| {
        world.run_all(&[Detach(3), Write(0, 2), Write(17, 1)]);
        // A merge and a verify of the members that are there, on a failure and at a mount; and intents that are dropped.
        for between in [
            FailEverywhere(1, 3),
            Verify,
            Ticks(5),
            Kill,
            PowerLoss,
            Flush,
        ] {
            world.run_all(&[between, Ticks(3)]);
            assert!(world.has_bit(3, 1) && world.has_bit(3, 17), "{between:?}");
            assert!(!world.has_bit(3, 10), "{between:?}: only what was written");
        }
        world.run_all(&[Attach(3)]);
        assert_eq!(world.kind_of_last_copy(), Some(CopyKind::Mini.name()));
    });
    let script = [
        Detach(3),
        Write(0, 2),
        FailEverywhere(1, 3),
        Kill,
        Ticks(2),
        Attach(3),
    ];
    strike_everywhere("zfs_5806", 3, &script);
}

/// DRBD issue 145: a rule of the handshake took two nodes for equal and cleared a bitmap that was not empty.
/// Here an election at a mount decides who is what, and never clears the bitmap of who has left.
#[test]
fn drbd_145() {
    in_worlds(3, |world| {
        world.run_all(&[Detach(3), Write(6, 4), Flush]);
        let mounts: [&[Do]; 5] = [
            &[Kill],
            &[PowerLoss],
            &[Stop, Mount(&[])],
            &[Stop, Mount(&[2]), Attach(2)],
            &[Kill, Kill],
        ];
        for mount in mounts {
            world.run_all(mount);
            assert!(world.has_bit(3, 6) && world.has_bit(3, 9), "{mount:?}");
        }
    });
    let script = [
        Detach(3),
        Write(6, 4),
        Kill,
        Stop,
        Mount(&[2]),
        Attach(2),
        Attach(3),
    ];
    strike_everywhere("drbd_145", 3, &script);
}

/// WinDRBD issue 27: an acknowledgement of an older write cleared the bit that a newer write had just set.
/// Here bits of intent are dropped as a whole, and not while a write that set one is not flushed.
#[test]
fn windrbd_27() {
    in_worlds(2, |world| {
        world.run_all(&[Write(0, 1), Ticks(1), Under(0, 1)]);
        let range = world.bytes_of(0);
        for _ in 0..4 {
            let ticked = world.handle(Event::Tick);
            assert!(ticked.is_ok(), "{ticked:?}");
            for _ in 0..20 {
                let outcome = world.deliver().and_then(|()| world.end_flush());
                assert!(outcome.is_ok(), "{outcome:?}");
            }
            let intended = |world: &World| world.set.intents().any(|map| map.is_stale(range));
            let kept = |world: &World| {
                let ids = world.set.intents().map(shadowset::set::WriteBitmap::id);
                let set = |id| world.home.with_bits(id, |bits| bits.is_stale(range));
                ids.into_iter().any(|id| set(id) == Some(true))
            };
            let marked = world
                .requests
                .iter()
                .any(crate::requests::Request::has_marked);
            assert!(
                !marked || intended(world) && kept(world),
                "the bit of a write under way"
            );
        }
        world.run_all(&[PowerLoss]);
    });
    let script = [
        Write(0, 1),
        Ticks(1),
        Under(0, 1),
        Ticks(2),
        Under(0, 2),
        Ticks(3),
    ];
    strike_everywhere("windrbd_27", 2, &script);
}

/// Mayastor issue 1806: a temporary error when a member came back threw its log away, and all was copied.
/// Here a refused attach keeps the bitmap, also over a crash; the next one is a minicopy.
#[test]
fn mayastor_1806() {
    in_worlds(2, |world| {
        let unit = world.geometry.size().0;
        world.run_all(&[Detach(2), Write(9, 2)]);
        for crash in [None, Some(Kill), Some(PowerLoss)] {
            crash.iter().for_each(|c| world.run_all(&[*c]));
            let small = world.refusal_of_attach(2, unit - BLOCK, false);
            let changed = world.refusal_of_attach(2, unit, true);
            assert_eq!((small, changed), (Code::MemberTooSmall, Code::ImageChanged));
            assert!(world.has_bit(2, 9), "{crash:?}");
        }
        world.run_all(&[Attach(2)]);
        assert_eq!(world.kind_of_last_copy(), Some(CopyKind::Mini.name()));
    });
}

/// mdadm issue 22: members failed one after another, and at the next start the stale one was taken for good.
/// Here m1 fails, m2 goes on alone and is absent at the next mount: m1 alone is refused.
#[test]
fn mdadm_22() {
    in_worlds(2, |world| {
        world.run_all(&[Write(0, 2), Flush, FailOn(1, 8, 1), Write(17, 2)]);
        for crash in [Kill, PowerLoss, Stop] {
            let refusal = world.elect_without(&[2]).expect_err("m1 is stale");
            // Its own block says so too, once a mount has seen both.
            let stale = [Code::WrongGeneration, Code::NeedsCopy];
            assert!(stale.contains(&refusal.code), "{refusal:?}");
            assert!(refusal.hint().contains("m2"), "{}", refusal.hint());
            world.run_all(&[crash]);
        }
        assert!(world.elect_without(&[2]).is_err());
        let starts = world.elect_without(&[]).expect("both are there").starts;
        assert_eq!(starts, [Start::Expelled, Start::Source]);
    });
    let script = [
        Write(0, 2),
        FailOn(1, 8, 1),
        Write(17, 2),
        Mount(&[2]),
        Write(0, 1),
    ];
    strike_everywhere("mdadm_22", 2, &script);
}

/// Linux 133d4527: a write that was in flight while a spare became active was not recorded for it.
/// Here a member that joins is written by every request before its copy begins.
#[test]
fn md_133d4527() {
    in_worlds(3, |world| {
        world.run_all(&[Detach(2), Write(0, 2), Under(0, 4), Under(6, 4), Begin(2)]);
        world.run_all(&[Under(1, 9), Under(12, 3), Write(18, 2), Under(0, 3), New]);
    });
    let script = [
        Detach(2),
        Write(0, 2),
        Under(0, 4),
        Begin(2),
        Under(3, 9),
        Under(12, 3),
        Flush,
    ];
    strike_everywhere("md_133d4527", 3, &script);
}

/// Linux 1a855a06: a member whose recovery was interrupted was added again as if it were complete.
/// Here a crash in a full copy or a minicopy leaves a copy target, which is filled to its end.
#[test]
fn md_1a855a06() {
    for m in [2, 3] {
        in_worlds(2, |world| {
            world.run_all(&[Write(0, 20), Flush]);
            if m == 2 {
                world.run_all(&[Detach(2), Write(0, 20)]);
            }
            world.run_all(&[Begin(m)]);
            while world.copies.is_empty() {
                let outcome = world.deliver().and_then(|()| world.end_flush());
                assert!(outcome.is_ok(), "{outcome:?}");
            }
            // Some steps of the copy, not all: it has three regions.
            (0..8).for_each(|_| assert!(world.step_copy().is_ok()));
            world.run_all(&[PowerLoss]);
            let target = matches!(world.state(id(m)), MemberState::Target { .. });
            assert!(target, "{}", world.state(id(m)).name());
        });
    }
    strike_everywhere(
        "md_1a855a06, full copy",
        2,
        &[Write(0, 20), New, Write(3, 1)],
    );
    let script = [Detach(2), Write(0, 20), Attach(2), Write(3, 1)];
    strike_everywhere("md_1a855a06, minicopy", 2, &script);
}
