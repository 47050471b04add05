//! Verify: silent damage is found where it is, named where that can be told, repaired on demand, and never seen where
//! there is none.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::Value;

use crate::bed::{Fio, MIB, Plan, Unit, eventually, pause};
use crate::faults::{Fault, unit};
use crate::hang::{Frozen, start, with_m2_elsewhere};

/// Bytes of a block.
const BLOCK: u64 = 512;

impl Unit {
    /// Somebody changes one byte of a member's image behind the unit's back.
    fn damage(&self, member: &str, at: u64) {
        let image = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.image(member))
            .expect("the image");
        let mut byte = [0];
        image.read_exact_at(&mut byte, at).expect("a byte");
        image.write_all_at(&[!byte[0]], at).expect("a byte");
        image.sync_all().expect("on the disk");
    }

    /// Random contents, flushed.
    fn fill(&self, mib: u64) {
        self.sh(&format!(
            "dd if=/dev/urandom of=$U bs=1M count={mib} conv=notrunc,fsync status=none"
        ));
    }

    /// A verify to its end; gives its operation and its report.
    fn verified(&self, command: &str) -> (Value, String) {
        let op = self.accepted(command).number("operation");
        let ended = self.finished(op);
        (ended, self.report(op))
    }

    fn report(&self, op: u64) -> String {
        self.read(&format!("operations/{op}/report"))
    }
}

/// The lines of a report that name blocks.
fn runs(report: &str) -> Vec<&str> {
    let names_blocks =
        |line: &&str| line.starts_with("differs ") || line.starts_with("unreadable ");
    report.lines().filter(names_blocks).collect()
}

fn count(op: &Value, key: &str) -> u64 {
    op[key].as_u64().unwrap_or_else(|| panic!("{key} of {op}"))
}

#[test]
fn the_odd_one_of_three_is_named_and_repaired_from_the_majority() {
    let mut unit = Unit::new(3, 8 * MIB);
    unit.fill(8);
    let sums = ["m1", "m2", "m3"].map(|m| unit.checksum(m));
    let (op, report) = unit.verified("verify");
    assert!(runs(&report).is_empty(), "{report}");
    assert_eq!(count(&op, "done_bytes"), 8 * MIB, "{op}");
    unit.damage("m2", 5 * MIB + 3 * BLOCK + 77);
    unit.damage("m3", 8 * MIB - 1);
    let (op, report) = unit.verified("verify");
    let block = 5 * MIB / BLOCK + 3;
    let last = 8 * MIB / BLOCK - 1;
    let found = runs(&report);
    assert_eq!(found.len(), 2, "{report}");
    let first = format!("differs {block}-{block} odd=m2 fate=left m1=");
    assert!(found[0].starts_with(&first), "{report}");
    let second = format!("differs {last}-{last} odd=m3 fate=left m1=");
    assert!(found[1].starts_with(&second), "{report}");
    assert_eq!(count(&op, "differing_blocks"), 2);
    assert_ne!(unit.checksum("m2"), sums[1], "nothing was written");
    // The part without damage has none.
    let (_, report) = unit.verified(&format!("verify range=0-{}", block - 1));
    assert!(runs(&report).is_empty(), "{report}");
    let (op, report) = unit.verified("verify repair");
    assert_eq!(count(&op, "repaired_blocks"), 2, "{report}");
    assert_eq!(count(&op, "copied_bytes"), 2 * BLOCK, "{op}");
    assert_eq!(["m1", "m2", "m3"].map(|m| unit.checksum(m)), sums);
    let events = unit.read("events");
    assert_eq!(events.matches("\"verify-differs\"").count(), 2, "{events}");
    assert_eq!(events.matches("\"verify-ended\"").count(), 4, "{events}");
    unit.stop_and_compare();
}

#[test]
fn of_two_members_none_is_guessed() {
    let mut unit = Unit::new(2, 8 * MIB);
    unit.fill(8);
    let good = unit.checksum("m1");
    unit.damage("m2", 3 * MIB);
    let sums = ["m1", "m2"].map(|m| unit.checksum(m));
    let (_, report) = unit.verified("verify");
    let block = 3 * MIB / BLOCK;
    let line = format!("differs {block}-{block} odd=unknown fate=left m1=");
    assert!(runs(&report)[0].starts_with(&line), "{report}");
    assert!(
        report.contains("cannot be told which member is right"),
        "{report}"
    );
    let refused = unit.command(b"verify repair").expect_err("a guess");
    assert_eq!(refused.errno, libc::ECANCELED);
    assert!(
        refused.text.starts_with("error: no-majority "),
        "{}",
        refused.text
    );
    assert!(
        refused.text.contains("source=m1 or source=m2"),
        "{}",
        refused.text
    );
    assert_eq!(
        ["m1", "m2"].map(|m| unit.checksum(m)),
        sums,
        "nothing was written"
    );
    for (command, code) in [
        ("verify range=9-8", "out-of-range"),
        ("verify range=0-16384", "out-of-range"),
        ("verify repair source=m9", "no-such-member"),
        ("verify source=m1", "syntax"),
    ] {
        let refused = unit.command(command.as_bytes()).expect_err(command);
        assert!(
            refused.text.starts_with(&format!("error: {code} ")),
            "{}",
            refused.text
        );
    }
    let dry = unit.accepted("verify dry-run");
    assert_eq!(dry.number("read_bytes"), 16 * MIB);
    let (op, report) = unit.verified("verify repair source=m1");
    assert_eq!(count(&op, "repaired_blocks"), 1, "{report}");
    assert_eq!(["m1", "m2"].map(|m| unit.checksum(m)), [good; 2]);
    unit.stop_and_compare();
}

/// It had lost a write that the other one still had: the repair took that from both.
#[test]
fn who_cannot_be_flushed_is_not_taken_for_right() {
    let (unit, named) = unit(2, Fault::Flush);
    assert_eq!(named, "m2");
    unit.fill(1);
    let wanted = unit.sh("sha256sum < $I/m1.img");
    // No flush of the server's own hears of it before.
    unit.accepted("set hbmm_rtc 65535");
    unit.sh("dd if=/dev/urandom of=$D/back.img bs=4k seek=3 count=1 conv=notrunc status=none");
    Fault::Flush.begin(&unit);
    let op = unit.accepted("verify repair source=m2").number("operation");
    eventually("it has left", || unit.state_of("m2") == "expelled");
    eventually("nobody is left to compare", || {
        unit.read(&format!("operations/{op}/state")) == "failed\n"
    });
    assert_eq!(unit.sh("sha256sum < $I/m1.img"), wanted);
    Fault::Flush.end(&unit);
}

#[test]
fn a_repair_is_known_to_members_that_are_away() {
    let mut unit = Unit::new(3, 8 * MIB);
    unit.fill(8);
    unit.detach("m3");
    // What is taken for right is not what m3 has left with.
    unit.damage("m2", 6 * MIB + 9);
    let (op, report) = unit.verified("verify repair source=m2");
    assert_eq!(count(&op, "repaired_blocks"), 1, "{report}");
    assert_eq!(unit.bitmap("m3", "set_bits"), 1, "{report}");
    unit.minicopy("m3");
    let (op, report) = unit.verified("verify");
    assert_eq!(count(&op, "differing_blocks"), 0, "{report}");
    unit.stop_and_compare();
}

#[test]
fn a_member_that_cannot_be_read_is_named_and_expelled_when_it_cannot_be_repaired() {
    let mut unit = Unit::new(3, 8 * MIB);
    unit.fill(8);
    let image = unit.image("m3").display().to_string();
    unit.sh(&format!("truncate -s {} {image}", 7 * MIB));
    let (op, report) = unit.verified("verify");
    let blocks = MIB / BLOCK;
    assert_eq!(count(&op, "unreadable_blocks"), blocks, "{report}");
    let line = format!(
        "unreadable {}-{} odd=m3 fate=left m1=",
        7 * blocks,
        8 * blocks - 1
    );
    assert!(runs(&report)[0].starts_with(&line), "{report}");
    assert!(report.contains(" m3=unreadable"), "{report}");
    assert!(unit.read("members/m3/errors").trim() != "0");
    // An image that was cut short is believed no more.
    let (op, report) = unit.verified("verify repair");
    assert_eq!(count(&op, "repaired_blocks"), 0, "{report}");
    assert!(
        runs(&report)[0].contains(" odd=m3 fate=failed "),
        "{report}"
    );
    assert_eq!(unit.state_of("m3"), "expelled");
    unit.sh(&format!("truncate -s {} {image}", 8 * MIB));
    let attach = || unit.command(b"attach m3");
    eventually("its image is let go of", || attach().is_ok());
    eventually("it is back", || unit.state_of("m3") == "source");
    let (op, report) = unit.verified("verify");
    assert_eq!(count(&op, "unreadable_blocks"), 0, "{report}");
    unit.stop_and_compare();
}

#[test]
fn a_verify_of_a_unit_with_holes_reads_none() {
    let unit = Unit::new(2, 1024 * MIB);
    unit.sh("printf x | dd of=$U bs=1M seek=700 conv=notrunc,fsync status=none");
    unit.damage("m2", 300 * MIB);
    // A rate that would take many minutes for what the unit seems to have.
    unit.accepted("set copy_rate_max 4M");
    let (op, report) = unit.verified("verify");
    assert_eq!(count(&op, "done_bytes"), 1024 * MIB, "{op}");
    let block = 300 * MIB / BLOCK;
    assert!(
        runs(&report)[0].starts_with(&format!("differs {block}-{block} odd=unknown ")),
        "{report}"
    );
}

#[test]
fn under_load_a_verify_finds_nothing() {
    let mut unit = Unit::new(3, 64 * MIB);
    let device = unit.loop_device();
    let mut fio = Fio::start(&unit, &device);
    eventually("there is something to compare", || {
        unit.allocated("m3") > Fio::SPAN - MIB
    });
    // Most of a second for each: the load has to come between.
    unit.accepted("set copy_rate_max 64M");
    for command in ["verify", "verify repair"].into_iter().cycle().take(8) {
        let (op, report) = unit.verified(command);
        assert_eq!(count(&op, "differing_blocks"), 0, "{report}");
        fio.check();
    }
    fio.stop();
    unit.free(&device);
    unit.stop_and_compare();
}

#[test]
fn a_verify_can_be_held_and_ended() {
    let mut unit = Unit::new(2, 16 * MIB);
    unit.fill(16);
    unit.accepted("set copy_rate_max 1M");
    let op = unit.accepted("verify").number("operation");
    let file = |name: &str| unit.read(&format!("operations/{op}/{name}"));
    unit.accepted(&format!("pause {op}"));
    assert_eq!(file("state"), "paused\n");
    let refused = unit.command(b"verify").expect_err("a second one");
    assert!(
        refused.text.starts_with("error: in-use "),
        "{}",
        refused.text
    );
    let done = || file("progress").lines().next().map(str::to_owned);
    unit.accepted(&format!("resume {op}"));
    let before = done();
    eventually("it goes on", || done() != before);
    unit.accepted(&format!("cancel {op}"));
    assert_eq!(file("state"), "cancelled\n");
    assert!(file("report").contains("\nreason it was cancelled\n"));
    let again = unit.command(format!("cancel {op}").as_bytes());
    let again = again.expect_err("twice").text;
    assert!(again.starts_with("error: state-changed "), "{again}");
    // It does not hold up the end of the unit, and no mount goes on with it.
    unit.accepted("verify");
    unit.stop_and_compare();
    unit.mount();
    assert_eq!(unit.status()["operations"], Value::Array(Vec::new()));
    unit.stop();
}

#[test]
fn a_verify_ends_when_there_is_nobody_to_compare_with() {
    let mut unit = Unit::new(3, 8 * MIB);
    unit.fill(8);
    unit.accepted("set copy_rate_max 64k");
    let op = unit.accepted("verify").number("operation");
    let state = || unit.read(&format!("operations/{op}/state"));
    unit.accepted("expel m3");
    assert_eq!(state(), "running\n", "it goes on with two");
    unit.accepted("expel m2");
    eventually("it ends", || state() == "failed\n");
    let report = unit.report(op);
    let reason = "\nreason fewer than two source members are left\n";
    assert!(report.contains(reason), "{report}");
    let refused = unit.command(b"verify").expect_err("one source").text;
    assert!(refused.starts_with("error: last-source "), "{refused}");
    unit.accepted("set copy_rate_max max");
    for member in ["m2", "m3"] {
        let attach = || unit.command(format!("attach {member} policy=minicopy").as_bytes());
        eventually("its image is let go of", || attach().is_ok());
        eventually("it is back", || unit.state_of(member) == "source");
    }
    unit.stop_and_compare();
}

#[test]
fn a_member_that_hangs_in_a_repair_is_expelled_and_holds_up_nobody() {
    let (mut unit, dir) = with_m2_elsewhere();
    unit.fill(16);
    unit.accepted("set member_timeout 3");
    let at = 4 * MIB;
    unit.damage("m2", at);
    let frozen = Frozen::new(&unit, dir);
    let op = unit.accepted("verify repair source=m1").number("operation");
    eventually("it is expelled", || unit.state_of("m2") == "expelled");
    // The fence of the step is free, although its thread still writes.
    let seek = at / BLOCK;
    unit.sh(&format!(
        "timeout 20 dd if=/dev/zero of=$U bs=512 seek={seek} count=1 conv=notrunc status=none"
    ));
    let state = || unit.read(&format!("operations/{op}/state"));
    eventually("it ends", || state() == "failed\n");
    assert!(unit.report(op).contains("\nreason fewer than two "));
    drop(frozen);
    let attach = || unit.command(b"attach m2 policy=minicopy");
    eventually("it may come back", || attach().is_ok());
    eventually("it is back", || unit.state_of("m2") == "source");
    unit.stop_and_compare();
}

/// A write that nobody waits for any more keeps its fence. A verify that waited for that did not end, and kept the unit
/// from being stopped.
#[test]
fn a_verify_ends_although_a_write_that_was_given_up_holds_its_range() {
    // A write goes to all of them at the same time.
    let mut unit = Plan::new(2, 16 * MIB).direct().create();
    unit.sh("truncate -s 96M $D/disk; mkfs.ext4 -q $D/disk");
    let disk = unit.path("disk").display().to_string();
    let dir = unit.mount_device(&disk, "slow", "-o loop");
    for file in ["m1.img", "m2.img"] {
        unit.sh(&format!(
            "cp $I/{file} $D/slow; rm $I/{file}; ln -s $D/slow/{file} $I/{file}"
        ));
    }
    unit.mount();
    let frozen = Frozen::new(&unit, dir.display().to_string());
    let write = "dd if=/dev/zero of=$U bs=4k count=1 conv=notrunc oflag=direct status=none";
    let mut writer = start(&unit, write);
    eventually("it waits", || unit.read("state") == "mount-verify\n");
    let op = unit.accepted("verify").number("operation");
    pause(Duration::from_secs(1));
    unit.accepted("abort");
    assert!(!writer.wait().expect("ended").success(), "nobody has it");
    let state = || unit.read(&format!("operations/{op}/state"));
    eventually("it ends with one source", || state() == "failed\n");
    drop(frozen);
    unit.sh("shadowset wait dsa1 --timeout 60");
    unit.stop_and_compare();
}

#[test]
fn the_command_line_waits_and_tells_by_its_exit_code() {
    let unit = Unit::new(3, 4 * MIB);
    unit.fill(4);
    let ran = unit.try_sh("shadowset verify dsa1 --wait");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("verdict no block differs"), "{}", ran.out);
    unit.damage("m1", 0);
    let ran = unit.try_sh("shadowset verify dsa1 --wait --json");
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    let value: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(
        (&value["ok"], &value["differing_blocks"]),
        (&false.into(), &1.into())
    );
    assert_eq!(value["runs"][0]["odd"][0], "m1", "{value}");
    let ran = unit.try_sh("shadowset verify dsa1 --repair --wait");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let ran = unit.try_sh("shadowset verify dsa1 --range 0-99999999");
    assert_eq!(ran.code, 2, "{}{}", ran.out, ran.err);
}

/// Writes with O_DIRECT from memory that another process fills anew all the time.
const RACER: &str = r#"
room = mmap.mmap(-1, 1 << 17)
child = os.fork()
if child == 0:
    n = 0
    while True:
        n = (n + 1) % 251
        room[:] = bytes([n]) * len(room)
unit = os.open(T, os.O_RDWR | os.O_DIRECT)
try:
    for turn in range(400):
        os.pwritev(unit, [room], (turn % 40) * len(room))
    os.fsync(unit)
finally:
    os.kill(child, 9)
"#;

#[test]
fn a_program_that_rewrites_what_it_writes_leaves_the_members_equal() {
    let mut unit = Unit::new(3, 8 * MIB);
    let device = unit.loop_device();
    for target in [unit.file().display().to_string(), device.clone()] {
        unit.python(&format!("T = '{target}'\n{RACER}"));
        let (op, report) = unit.verified("verify");
        assert_eq!(count(&op, "differing_blocks"), 0, "{target}: {report}");
    }
    unit.free(&device);
    unit.stop_and_compare();
}
