//! Stalls on a mount: writes wait, reads and flushes do not, and the images are quiet.

use crate::bed::{MIB, Unit, eventually};
use crate::hang::{connection, in_flight, start};

/// A script that writes the piece at so many places of the unit at once; all must be written well.
fn writers(count: usize) -> String {
    format!(
        "pids=
        for n in $(seq 0 {}); do
            dd if=$D/piece of=$U bs=4k seek=$n count=1 conv=notrunc oflag=direct status=none &
            pids=\"$pids $!\"
        done
        for p in $pids; do wait $p; done",
        count - 1
    )
}

/// A unit of two members with a piece of 4 KiB to write.
fn unit() -> Unit {
    let unit = Unit::new(2, 8 * MIB);
    unit.sh(
        "head -c 8M /dev/urandom | dd of=$U bs=1M conv=notrunc iflag=fullblock status=none
        head -c 4096 /dev/urandom > $D/piece",
    );
    unit
}

fn digests(unit: &Unit) -> String {
    unit.sh("sha256sum $I/m1.img $I/m2.img")
}

/// Whether all of the writers have ended well.
fn all_written(unit: &Unit, count: usize) {
    unit.sh(&format!(
        "for n in $(seq 0 {}); do cmp -n 4096 -i 0:$((n * 4096)) $D/piece $U; done",
        count - 1
    ));
}

fn released_by(unit: &Unit, reason: &str) {
    let events = unit.read("events");
    let last = events.lines().rfind(|line| line.contains("\"unstalled\""));
    let last = last.unwrap_or_else(|| panic!("{events}"));
    assert!(
        last.contains(&format!("\"reason\":\"{reason}\"")),
        "{events}"
    );
}

#[test]
fn writes_wait_while_reads_and_flushes_are_answered_and_no_image_changes() {
    let mut unit = unit();
    let connection = connection(&unit);
    let answer = unit.accepted("stall 600");
    assert_eq!(answer.text("quiet"), "m1 m2", "{}", answer.0);
    let before = digests(&unit);
    // Behind a write that waits the kernel itself has a flush wait.
    unit.sh("timeout 5 sync $U");
    // More than there are threads that could wait.
    let mut written = start(&unit, &writers(100));
    eventually("all of them wait", || in_flight(&unit, &connection) >= 100);
    unit.sh(
        "timeout 5 dd if=$U of=$D/read bs=1M iflag=direct status=none; cmp $D/read $I/m1.img
        timeout 5 cat $S/status | grep -q '^stalled 20'
        timeout 5 shadowset show dsa1 | grep -q 'writes are stalled until 20'
        timeout 5 shadowset status dsa1 | grep -q 'writes: stalled until 20'",
    );
    assert!(unit.status()["stalled"].is_string());
    assert_eq!(unit.read("state"), "steady\n");
    assert_eq!(digests(&unit), before, "an image changes");
    assert!(written.try_wait().expect("it runs").is_none());
    unit.accepted("unstall");
    released_by(&unit, "command");
    assert!(written.wait().expect("ended").success());
    all_written(&unit, 100);
    assert!(unit.status()["stalled"].is_null());
    unit.stop_and_compare();
}

#[test]
fn a_stall_ends_by_its_time_and_a_second_one_begins_the_time_anew() {
    let mut unit = unit();
    unit.accepted("stall 600 dry-run");
    assert!(unit.status()["stalled"].is_null(), "a dry run");
    let none = unit.command(b"unstall").expect_err("nothing is stalled");
    assert_eq!(none.errno, libc::EAGAIN, "{none:?}");
    unit.accepted("stall 600");
    let first = unit.status()["stalled"].clone();
    unit.accepted("stall 1");
    assert_ne!(unit.status()["stalled"], first);
    // Written when the second stall is over, not the first.
    unit.sh(&format!("timeout 30 bash -euc '{}'", writers(1)));
    released_by(&unit, "time");
    all_written(&unit, 1);
    let connection = connection(&unit);
    for change in ["fallocate -p -o 4M -l 1M $U", "fallocate -o 4M -l 1M $U"] {
        unit.accepted("stall 600");
        let before = digests(&unit);
        let mut changed = start(&unit, change);
        eventually("it waits", || in_flight(&unit, &connection) >= 1);
        assert_eq!(digests(&unit), before, "an image changes");
        unit.accepted("unstall");
        assert!(changed.wait().expect("ended").success());
    }
    unit.sh("[ $(dd if=$U bs=1M skip=4 count=1 status=none | tr -d '\\0' | wc -c) = 0 ]");
    for (bad, errno) in [
        ("0", libc::EINVAL),
        ("601", libc::EINVAL),
        ("x", libc::EINVAL),
    ] {
        let refused = unit.command(format!("stall {bad}").as_bytes());
        assert_eq!(refused.expect_err(bad).errno, errno, "{bad}");
    }
    unit.stop_and_compare();
}

#[test]
fn members_leave_and_come_back_while_writes_are_stalled() {
    let mut unit = unit();
    let connection = connection(&unit);
    unit.sh("shadowset stall dsa1 600");
    let before = digests(&unit);
    let mut written = start(&unit, &writers(3));
    eventually("all of them wait", || in_flight(&unit, &connection) >= 3);
    unit.detach("m2");
    assert_eq!(unit.bitmap("m2", "set_bits"), 0, "nothing is in flight");
    unit.minicopy("m2");
    unit.detach("m2");
    assert_eq!(digests(&unit), before, "an image changes");
    unit.sh("shadowset unstall dsa1");
    assert!(written.wait().expect("ended").success());
    assert!(unit.bitmap("m2", "set_bits") > 0);
    unit.minicopy("m2");
    all_written(&unit, 3);
    unit.stop_and_compare();
}

#[test]
fn a_unit_that_is_taken_away_lets_stalled_writes_end_well() {
    for by_signal in [true, false] {
        let mut unit = unit();
        let connection = connection(&unit);
        let pid = unit.pid();
        unit.accepted("stall 600");
        let mut written = start(&unit, &writers(2));
        eventually("both wait", || in_flight(&unit, &connection) >= 2);
        if by_signal {
            unit.sh(&format!(
                "kill -TERM {pid}; until grep -q 'in use, so it is served on' $D/log; do :; done
                [ $(timeout 5 cat $S/state) = steady ]; kill -TERM {pid}"
            ));
        } else {
            unit.sh("shadowset stop dsa1 --force");
        }
        assert!(written.wait().expect("ended").success());
        unit.sh(&format!("timeout 30 tail --pid={pid} -f /dev/null"));
        unit.gone();
        unit.assert_equal();
        unit.sh("for n in 0 1; do cmp -n 4096 -i 0:$((n * 4096)) $D/piece $I/m1.img; done");
    }
}

#[test]
fn a_stalled_unit_that_nobody_uses_is_stopped_at_once() {
    let mut unit = unit();
    unit.accepted("stall 600");
    unit.sh("timeout 30 shadowset stop dsa1 --wait");
    unit.gone();
    unit.assert_equal();
}
