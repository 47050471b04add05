//! Third parties on the real thing: loads of Debian's packages on ext4, xfs and btrfs over a loop device over a unit,
//! while members leave and come back and the server is killed; fsck, scrub, `cmp` and the loads themselves judge.
//!
//! `SHADOWSET_SOAK_MINUTES` makes it long, with PostgreSQL; `SHADOWSET_SOAK_SEED` decides who comes when. The rest is
//! real time. Needs what `tests/mount` needs.

#![allow(clippy::expect_used, reason = "a test that cannot go on has failed")]

#[path = "../mount/bed/mod.rs"]
#[allow(dead_code, unused_imports, reason = "tests/mount uses the rest")]
mod bed;
mod child;
mod conductor;
mod ground;
mod loads;
mod party;
mod tally;

use std::time::{Duration, Instant, SystemTime};

use shadowset::testing::Rng;

use conductor::{Conductor, End, Turn};
use ground::{KINDS, Kind};
use party::Load;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

fn seed() -> Option<u64> {
    number("SHADOWSET_SOAK_SEED")
}

fn shuffled(rng: &mut Rng, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for at in (1..count).rev() {
        order.swap(at, rng.place(at + 1));
    }
    order
}

/// Each load once on a new file system, some at a time: until the server is killed, and once to an orderly end.
fn turn(kind: &'static Kind, loads: &[&'static dyn Load], most: Most, conductor: &mut Conductor) {
    let rng = &mut conductor.rng;
    let order = shuffled(rng, loads.len());
    let hands = order.chunks(most.loads);
    let orderly = rng.place(hands.len());
    let plan: Vec<_> = (0..)
        .zip(hands)
        .map(|(round, hand)| match round == orderly {
            true => (hand, rng.between(1, most.cycles), End::Orderly),
            false => (hand, rng.between(1, most.cycles), End::Kill),
        })
        .collect();
    let mut turn = Turn::new(kind, loads, conductor);
    for (hand, cycles, end) in plan {
        turn.round(hand, cycles, end);
    }
}

/// Of one round.
struct Most {
    loads: usize,
    cycles: u64,
}

fn short(which: usize) {
    let other_for_each = 7 + which as u64;
    let mut conductor = Conductor::new(seed().unwrap_or(other_for_each));
    let most = Most {
        loads: 4,
        cycles: 1,
    };
    turn(&KINDS[which], &loads::USUAL, most, &mut conductor);
}

/// All file systems in turn, until the time is over.
fn long(conductor: &mut Conductor, minutes: u64) {
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    while Instant::now() < end {
        for kind in shuffled(&mut conductor.rng, KINDS.len()) {
            let most = Most {
                loads: 3,
                cycles: 3,
            };
            turn(&KINDS[kind], &loads::ALL, most, conductor);
        }
    }
}

#[test]
fn ext4_under_all_loads() {
    short(0);
}

#[test]
fn xfs_under_all_loads() {
    short(1);
}

#[test]
fn btrfs_under_all_loads() {
    short(2);
}

#[test]
#[ignore = "it takes as long as SHADOWSET_SOAK_MINUTES says: make soak MINUTES=60"]
fn all_file_systems_for_a_long_time() {
    let minutes = number("SHADOWSET_SOAK_MINUTES").expect("SHADOWSET_SOAK_MINUTES is set");
    let seed = seed().unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.expect("a clock").as_secs()
    });
    println!("SHADOWSET_SOAK_SEED={seed}");
    let mut conductor = Conductor::new(seed);
    long(&mut conductor, minutes);
}
