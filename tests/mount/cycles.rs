//! Detach and attach, again and again, under a load that checks what it reads.

use std::time::Duration;

use crate::bed::{Fio, MIB, Plan, REGION, Unit, eventually};

/// Cycles of a run under load.
fn cycles() -> usize {
    let asked = std::env::var("SHADOWSET_CYCLES");
    asked.map_or(20, |text| {
        text.parse().expect("SHADOWSET_CYCLES is a number")
    })
}

#[test]
fn fio_sees_no_error_while_members_come_and_go() {
    let plan = Plan::new(3, Fio::SPAN + MIB).life(Duration::from_secs(600));
    come_and_go(plan.mount(), cycles());
}

/// All of a request goes to them at once, and no thread waits for it.
#[test]
fn fio_sees_no_error_on_direct_members_either() {
    let unit = Plan::new(3, Fio::SPAN + MIB).direct().mount();
    come_and_go(unit, cycles() / 4);
}

fn come_and_go(mut unit: Unit, cycles: usize) {
    let device = unit.loop_device();
    let mut fio = Fio::start(&unit, &device);
    for cycle in 0..cycles {
        let member = ["m1", "m2", "m3"][cycle % 3];
        unit.detach(member);
        let quiet = unit.checksum(member);
        eventually("writes are marked", || unit.bitmap(member, "set_bits") > 8);
        assert_eq!(
            unit.checksum(member),
            quiet,
            "I5: {member} in cycle {cycle}"
        );
        let marked = unit.bitmap(member, "set_bytes");
        let op = unit.minicopy(member);
        let total = op["total_bytes"].as_u64().expect("a number");
        // Writes went on until the attach was in force; all of them are in whole regions.
        assert!(
            total >= marked,
            "{total} of {marked} bytes in cycle {cycle}"
        );
        assert_eq!(total % REGION, 0, "cycle {cycle}");
        assert_eq!(unit.state_of(member), "source");
        fio.check();
    }
    fio.stop();
    unit.free(&device);
    unit.stop_and_compare();
}

#[test]
fn a_minicopy_copies_the_marked_regions_and_nothing_else() {
    // Forty regions and a short one of three blocks.
    let mut unit = Unit::new(3, REGION * 40 + 1536);
    unit.sh("dd if=/dev/urandom of=$U bs=64k conv=notrunc,fsync status=none || true");
    let answer = unit.detach("m2");
    assert_eq!(answer.number("set_bits"), 0, "an idle unit marks nothing");
    let quiet = unit.checksum("m2");
    unit.python(&format!(
        "f = os.open(U, os.O_RDWR)
r = {REGION}
os.pwrite(f, b'a', 0)
os.pwrite(f, b'ab', 4 * r - 1)
os.pwrite(f, b'c' * r, 10 * r)
os.pwrite(f, b'd', 40 * r + 1535)"
    ));
    let expected = "0 127\n381 254\n1270 127\n5080 3\n";
    assert_eq!(unit.read("members/m2/bitmap/ranges"), expected);
    assert_eq!(unit.bitmap("m2", "set_bits"), 5);
    assert_eq!(unit.bitmap("m2", "set_bytes"), 4 * REGION + 1536);
    assert_eq!(unit.checksum("m2"), quiet);
    let op = unit.minicopy("m2");
    assert_eq!(op["copied_bytes"], 4 * REGION + 1536);
    assert_eq!(
        unit.status()["bitmaps"].as_array().map(Vec::len),
        Some(0),
        "used once"
    );
    unit.stop_and_compare();
}

#[test]
fn a_unit_of_six_members_detaches_all_but_one() {
    let mut unit = Unit::new(6, 8 * MIB);
    for n in 2..=6 {
        unit.sh(&format!(
            "dd if=/dev/urandom of=$U bs=1M count=1 seek={n} conv=notrunc status=none"
        ));
        unit.detach(&format!("m{n}"));
    }
    assert_eq!(
        unit.status()["state"],
        "steady",
        "detached on purpose is no fault"
    );
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=1 conv=notrunc status=none");
    for n in [4, 2, 6, 3, 5] {
        unit.minicopy(&format!("m{n}"));
    }
    unit.stop_and_compare();
}

/// Bytes that the daemon has read, requests and control files included.
fn read_bytes(unit: &Unit) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", unit.pid())).expect("readable");
    let mut lines = io.lines().filter_map(|line| line.strip_prefix("rchar: "));
    lines.next().and_then(|n| n.parse().ok()).expect("a number")
}

#[test]
fn two_full_copies_together_read_the_source_once() {
    const SIZE: u64 = 64 * MIB;
    let mut unit = Unit::new(3, SIZE);
    unit.sh("head -c 64M /dev/urandom | dd of=$U bs=1M iflag=fullblock conv=notrunc status=none");
    unit.accepted("set max_copies 0");
    // So slow that it does not matter which of them begins a little earlier.
    unit.accepted("set copy_rate_max 40M");
    let operations = ["m2", "m3"].map(|member| {
        unit.accepted(&format!("detach {member} policy=none"));
        let answer = unit.accepted(&format!("attach {member} policy=full"));
        answer.number("operation")
    });
    let before = read_bytes(&unit);
    unit.accepted("set max_copies 2");
    for operation in operations {
        let done = unit.finished(operation);
        assert_eq!(done["copied_bytes"], SIZE, "{done}");
    }
    let read = read_bytes(&unit) - before;
    assert!(
        (SIZE..SIZE + SIZE / 4).contains(&read),
        "{read} bytes were read"
    );
    unit.stop_and_compare();
}
