//! Members that do not answer: who waits, who is expelled, and what goes on meanwhile.

use std::time::{Duration, Instant};

use crate::bed::{MIB, Plan, Thing, Unit, eventually};
use crate::hang::{Frozen, connection, start, with_m2_elsewhere};

/// Twelve writers of a block each, which have to be answered.
const WRITERS: &str = "pids=
    for n in $(seq 0 11); do
        dd if=$D/piece of=$U bs=4k seek=$n count=1 conv=notrunc oflag=direct status=none &
        pids=\"$pids $!\"
    done
    for p in $pids; do wait $p; done";

fn set(unit: &Unit, parameter: &str, value: u32) {
    unit.accepted(&format!("set {parameter} {value}"));
}

fn events(unit: &Unit, name: &str) -> usize {
    let events = unit.read("events");
    events.matches(&format!("\"event\":\"{name}\"")).count()
}

#[test]
fn a_member_that_hangs_is_expelled_and_comes_back_by_minicopy() {
    let (mut unit, dir) = with_m2_elsewhere();
    set(&unit, "member_timeout", 8);
    unit.sh("head -c 4096 /dev/urandom > $D/piece");
    let frozen = Frozen::new(&unit, dir);
    let mut writers = start(&unit, WRITERS);
    eventually("requests wait", || unit.read("state") == "mount-verify\n");
    assert!(
        !unit.status()["members"][1]["answers"]
            .as_bool()
            .expect("a word")
    );
    assert_eq!(events(&unit, "member-silent"), 1);
    eventually("it is expelled", || unit.state_of("m2") == "expelled");
    assert!(
        writers.wait().expect("ended").success(),
        "no write has failed"
    );
    assert_eq!(unit.read("state"), "reduced\n");
    // Nobody waits for it any more.
    unit.sh("timeout 10 dd if=$D/piece of=$U bs=4k seek=40 count=1 conv=notrunc,fsync oflag=direct status=none");
    let refused = unit.command(b"attach m2").expect_err("calls are out");
    assert_eq!(refused.errno, libc::EBUSY, "{refused:?}");
    drop(frozen);
    eventually("it comes back", || {
        unit.command(b"attach m2 policy=minicopy").is_ok()
    });
    unit.sh("shadowset wait dsa1 --timeout 60");
    unit.sh("for n in $(seq 0 11) 40; do cmp -n 4096 -i 0:$((n * 4096)) $D/piece $U; done");
    unit.stop_and_compare();
}

#[test]
fn a_unit_can_be_stopped_while_a_member_hangs() {
    let (mut unit, dir) = with_m2_elsewhere();
    set(&unit, "member_timeout", 3);
    unit.sh("head -c 4096 /dev/urandom > $D/piece");
    let frozen = Frozen::new(&unit, dir);
    let mut writers = start(&unit, WRITERS);
    assert!(
        writers.wait().expect("ended").success(),
        "no write has failed"
    );
    assert_eq!(unit.state_of("m2"), "expelled");
    let stopped = unit.try_sh("timeout 60 shadowset stop dsa1");
    assert_eq!(stopped.code, 0, "{stopped:?}");
    assert!(stopped.err.contains("holds its process"), "{stopped:?}");
    is_marked_clean(&unit);
    drop(frozen);
    comes_back(&mut unit);
    unit.sh("for n in $(seq 0 11); do cmp -n 4096 -i 0:$((n * 4096)) $D/piece $U; done");
    unit.stop_and_compare();
}

/// The server has ended, or will when the members answer that hold it.
fn is_marked_clean(unit: &Unit) {
    let clean = "shadowset examine --json $I/m1.img | grep -Eq '\"clean\": ?true'";
    eventually("m1 is marked clean", || unit.try_sh(clean).code == 0);
}

/// What a member was not given before it was expelled is known to the next mount.
fn comes_back(unit: &mut Unit) {
    unit.gone();
    unit.mount();
    assert_eq!(unit.state_of("m2"), "expelled");
    unit.minicopy("m2");
}

/// The server stayed for ever when all other workers had ended before the member was expelled.
#[test]
fn a_connection_that_is_aborted_while_a_member_hangs_ends_the_server() {
    let (mut unit, dir) = with_m2_elsewhere();
    set(&unit, "member_timeout", 15);
    let connection = connection(&unit);
    let frozen = Frozen::new(&unit, dir);
    let write = "dd if=/dev/zero of=$U bs=4k count=1 conv=notrunc oflag=direct status=none";
    let mut writer = start(&unit, write);
    eventually("it waits", || unit.read("state") == "mount-verify\n");
    unit.sh(&format!("umount -l $M; echo 1 > {connection}/abort"));
    writer.wait().expect("ended");
    eventually("the worker is left behind", || {
        unit.try_sh("grep -q 'members hold threads' $D/log").code == 0
    });
    is_marked_clean(&unit);
    drop(frozen);
    comes_back(&mut unit);
    unit.stop_and_compare();
}

#[test]
fn a_control_block_that_cannot_be_written_in_time_holds_up_no_command() {
    let mut unit = Plan::new(3, 16 * MIB).create();
    unit.sh("truncate -s 64M $D/disk; mkfs.ext4 -q $D/disk");
    let disk = unit.path("disk").display().to_string();
    let dir = unit.mount_device(&disk, "slow", "-o loop");
    for file in ["m2.img", "m2.scb"] {
        unit.sh(&format!(
            "cp $I/{file} $D/slow; rm $I/{file}; ln -s $D/slow/{file} $I/{file}"
        ));
    }
    unit.mount();
    set(&unit, "m2.timeout", 1);
    let frozen = Frozen::new(&unit, dir.display().to_string());
    unit.accepted("detach m3 policy=minicopy");
    assert_eq!(unit.state_of("m2"), "expelled");
    assert_eq!(unit.state_of("m3"), "detached");
    unit.sh(
        "timeout 10 dd if=/dev/urandom of=$U bs=4k seek=40 count=1 conv=notrunc,fsync status=none",
    );
    drop(frozen);
    set(&unit, "m2.timeout", 20);
    eventually("it comes back", || {
        unit.command(b"attach m2 policy=minicopy").is_ok()
    });
    unit.minicopy("m3");
    unit.sh("shadowset wait dsa1 --timeout 60");
    unit.stop_and_compare();
}

#[test]
fn an_expel_cuts_the_wait_short() {
    let (mut unit, dir) = with_m2_elsewhere();
    set(&unit, "member_timeout", 600);
    unit.sh("head -c 4096 /dev/urandom > $D/piece");
    let frozen = Frozen::new(&unit, dir);
    let mut writers = start(&unit, WRITERS);
    eventually("requests wait", || unit.read("state") == "mount-verify\n");
    let begun = Instant::now();
    unit.accepted("expel m2");
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );
    assert!(writers.wait().expect("ended").success());
    drop(frozen);
    eventually("it comes back", || {
        unit.command(b"attach m2 policy=minicopy").is_ok()
    });
    unit.sh("shadowset wait dsa1 --timeout 60");
    unit.stop_and_compare();
}

#[test]
fn a_unit_that_nobody_answers_waits_and_then_fails() {
    let mut unit = Plan::new(1, 16 * MIB).create();
    unit.sh("truncate -s 64M $D/disk; mkfs.ext4 -q $D/disk");
    let dir = unit.mount_device(&unit.path("disk").display().to_string(), "slow", "-o loop");
    unit.sh("cp $I/m1.img $D/slow/m1.img; rm $I/m1.img; ln -s $D/slow/m1.img $I/m1.img");
    unit.mount();
    set(&unit, "member_timeout", 1);
    set(&unit, "mvtimeout", 12);
    unit.sh("head -c 4096 /dev/urandom > $D/piece");
    let frozen = Frozen::new(&unit, dir.display().to_string());
    let refused = unit.command(b"abort").expect_err("it has not been asked");
    assert!(refused.text.contains("not-in-mount-verify"), "{refused:?}");
    let write = "dd if=$D/piece of=$U bs=4k seek=3 count=1 conv=notrunc oflag=direct status=none";
    let mut writer = start(&unit, write);
    eventually("it waits", || unit.read("state") == "mount-verify\n");
    assert_eq!(unit.state_of("m1"), "source", "there is no other");
    assert!(
        !writer.wait().expect("ended").success(),
        "it has waited enough"
    );
    eventually("it has failed", || unit.read("state") == "failed\n");
    let begun = Instant::now();
    assert_ne!(unit.try_sh(write).code, 0, "nobody waits any more");
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    drop(frozen);
    eventually("it answers", || unit.read("state") == "steady\n");
    unit.sh(write);
    unit.sh("cmp -n 4096 -i 0:12288 $D/piece $U");
    // A verification is cut short by command as well.
    set(&unit, "mvtimeout", 3600);
    let frozen = Frozen::new(&unit, dir.display().to_string());
    let mut writer = start(&unit, write);
    eventually("it waits", || unit.read("state") == "mount-verify\n");
    unit.accepted("abort");
    assert!(!writer.wait().expect("ended").success());
    drop(frozen);
    eventually("it answers", || unit.read("state") == "steady\n");
    unit.stop();
    unit.take_away(&Thing::Mount(dir));
}

/// The release of a member whose file system did not answer held up the control thread: no command was answered, nobody
/// else expelled, and the unit could not be stopped.
#[test]
fn a_member_that_hangs_can_be_released() {
    let mut unit = Unit::new(2, 16 * MIB);
    unit.sh("truncate -s 64M $D/disk; mkfs.ext4 -q $D/disk");
    let disk = unit.path("disk").display().to_string();
    let dir = unit.mount_device(&disk, "slow", "-o loop");
    let image = dir.join("m3.img").display().to_string();
    unit.sh(&format!("truncate -s 16M {image}"));
    unit.accepted(&format!("attach {image} as=m3 policy=full confirm"));
    unit.sh("shadowset wait dsa1 --timeout 60; head -c 4096 /dev/urandom > $D/piece");
    set(&unit, "member_timeout", 2);
    let frozen = Frozen::new(&unit, dir.display().to_string());
    let mut writers = start(&unit, WRITERS);
    let written = writers.wait().expect("ended").success();
    assert!(written, "no write has failed");
    assert_eq!(unit.state_of("m3"), "expelled");
    unit.sh("timeout -k 1 30 bash -c 'echo release m3 > $C'");
    unit.sh("timeout -k 1 5 bash -c 'echo set member_timeout 3 > $C'; [ ! -e $S/members/m3 ]");
    unit.sh(&format!("[ -e {image}.scb ]"));
    drop(frozen);
    set(&unit, "member_timeout", 20);
    let removed = format!("[ ! -e {image}.scb ]");
    eventually("its block is removed", || unit.try_sh(&removed).code == 0);
    unit.stop_and_compare();
}
