//! kill -9 again and again while members come and go: nothing acknowledged is lost, no full copy begins by
//! itself, who was away comes back by minicopy. `SHADOWSET_KILL_ROUNDS` sets the number of rounds.

use serde_json::Value;
use shadowset::testing::Rng;

use crate::bed::{MIB, Plan, Unit, Writers, last_writes};

const WRITERS: u64 = 3;
const ROUNDS: u64 = 6;

/// Detaches or attaches a member, as its state has it; what is refused is refused. A detach insists on a bitmap: without
/// one, as `minicopy=optional` leaves during a merge, an attach asks for a full copy, which a mount then goes on
/// with.
fn steer(unit: &Unit, rng: &mut Rng) {
    let member = ["m1", "m2", "m3"][rng.place(3)];
    let word = match unit.state_of(member).as_str() {
        "source" => "detach",
        "detached" => "attach",
        _ => return,
    };
    let policies = match word {
        "detach" => ["minicopy"; 2],
        _ => ["minicopy", "minicopy=optional"],
    };
    let policy = policies[rng.place(2)];
    let _ = unit.command(format!("{word} {member} policy={policy}").as_bytes());
}

/// Operations that the mount has begun.
fn operations(unit: &Unit) -> Vec<Value> {
    let status = unit.status();
    status["operations"].as_array().expect("a list").clone()
}

fn zero(unit: &Unit) {
    unit.sh("dd if=/dev/zero of=$U bs=1M count=8 conv=notrunc,fsync status=none");
}

/// Brings back whoever is away, by minicopy where a bitmap is kept, and compares all members.
fn reunite(unit: &mut Unit) -> u64 {
    unit.sh("shadowset wait dsa1 --timeout 120");
    let mut by_bitmap = 0;
    for member in unit.status()["members"].as_array().expect("a list").clone() {
        if member["state"] == "source" {
            continue;
        }
        let name = member["name"].as_str().expect("a name");
        let policy = match member["bitmap"].is_null() {
            true => "minicopy=optional",
            false => "minicopy",
        };
        by_bitmap += u64::from(policy == "minicopy");
        unit.sh(&format!(
            "shadowset attach dsa1 {name} --policy {policy} --wait"
        ));
    }
    unit.stop_and_compare();
    by_bitmap
}

#[test]
fn rounds_of_kill_9_lose_nothing_and_start_no_full_copy() {
    let rounds = std::env::var("SHADOWSET_KILL_ROUNDS").map_or(ROUNDS, |n| {
        n.parse().expect("SHADOWSET_KILL_ROUNDS is a number")
    });
    kill_again_and_again(Unit::new(3, 96 * MIB), rounds);
}

/// The last requests of a server are under way behind its end; the next one begins at once.
#[test]
fn direct_members_outlive_kill_9_as_well() {
    let unit = Plan::new(3, 96 * MIB).direct().mount();
    kill_again_and_again(unit, ROUNDS / 2);
}

fn kill_again_and_again(mut unit: Unit, rounds: u64) {
    unit.sh(
        "head -c 96M /dev/urandom | dd of=$U bs=1M conv=notrunc,fsync iflag=fullblock status=none",
    );
    let (mut rng, mut returned) = (Rng::new(7), 0);
    for round in 0..rounds {
        zero(&unit);
        let writers = Writers::start(&unit.file(), WRITERS);
        for _ in 0..rng.below(4) {
            writers.go_on(rng.between(1, 60));
            steer(&unit, &mut rng);
        }
        writers.go_on(rng.between(1, 200));
        unit.kill();
        let acknowledged = writers.died();
        unit.umount();
        unit.gone();
        unit.mount();
        let begun = operations(&unit);
        let full = |op: &&Value| op["kind"] == "full-copy" || op["kind"] == "merge";
        let status = unit.status();
        assert_eq!(begun.iter().find(full), None, "round {round}: {status}");
        let held = last_writes(&std::fs::read(unit.file()).expect("the unit"), WRITERS);
        for (held, acknowledged) in held.iter().zip(&acknowledged) {
            assert!(
                held >= acknowledged,
                "round {round}: {held} of {acknowledged}"
            );
        }
        if round % 3 == 2 {
            returned += reunite(&mut unit);
            unit.mount();
        }
    }
    returned += reunite(&mut unit);
    println!("{rounds} rounds, {returned} returns by minicopy behind a kill");
    // However it went: who is away at a kill comes back by its bitmap.
    unit.mount();
    unit.detach("m3");
    zero(&unit);
    unit.kill();
    unit.umount();
    unit.gone();
    unit.mount();
    assert_eq!(reunite(&mut unit), 1);
}

#[test]
fn a_copy_goes_on_over_a_stop_and_over_a_kill() {
    let mut unit = Unit::new(2, 128 * MIB);
    unit.sh(
        "head -c 128M /dev/urandom | dd of=$U bs=1M conv=notrunc,fsync iflag=fullblock status=none",
    );
    unit.sh("shadowset detach dsa1 m2 --policy none");
    // It must not be over before it is held.
    unit.accepted("set copy_rate_max 16M");
    let answer = unit.accepted("attach m2 policy=full");
    let op = answer.number("operation");
    unit.accepted(&format!("pause {op}"));
    let done = operations(&unit)[0]["done_bytes"].as_u64().expect("bytes");
    unit.stop();
    unit.mount();
    let resumed = operations(&unit);
    let (kind, total) = (&resumed[0]["kind"], &resumed[0]["total_bytes"]);
    assert_eq!(kind, "full-copy", "it goes on: {resumed:?}");
    let total = total.as_u64().expect("bytes");
    assert!(total + done <= 128 * MIB, "{total} left, {done} were done");
    assert_ne!(unit.state_of("m2"), "detached");
    unit.kill();
    unit.umount();
    unit.gone();
    unit.mount();
    unit.sh("shadowset wait dsa1 --timeout 120");
    assert_eq!(unit.state_of("m2"), "source");
    unit.stop_and_compare();
}

#[test]
fn a_full_state_directory_refuses_bitmaps_and_never_a_write() {
    let mut unit = Unit::new(2, 8 * MIB);
    unit.stop();
    // Too small for a journal.
    unit.sh("rm -f $D/state/*; mount -t tmpfs -o size=1m none $D/state");
    unit.keep(crate::bed::Thing::Mount(unit.path("state")));
    unit.mount();
    unit.sh("printf x | dd of=$U bs=1 conv=notrunc,fsync status=none");
    let refused = unit
        .command(b"detach m2 policy=minicopy")
        .expect_err("no room for its bitmap");
    assert_eq!(refused.errno, libc::ENOSPC, "{refused:?}");
    assert_eq!(unit.state_of("m2"), "source", "it stays");
    let status = unit.status();
    assert_eq!(status["durability"], "memory", "{status}");
    let why = status["durability_reason"].as_str().unwrap_or_default();
    assert!(why.starts_with("there is no room"), "{status}");
    unit.accepted("detach m2 policy=minicopy=optional");
    let member = unit.status()["members"][1].clone();
    assert!(member["bitmap"].is_null(), "{member}");
    unit.sh("shadowset attach dsa1 m2 --wait");
    unit.stop_and_compare();
}
