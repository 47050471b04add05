//! Copies of a mounted unit: what is foretold of them, their speed, and their end by a command.

use crate::bed::{MIB, REGION, Unit, Writers, eventually};
use crate::hang::{Frozen, start, with_m2_elsewhere};

/// A value of a group of `key value` lines.
fn value(text: &str, key: &str) -> String {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {key} in {text}"))
        .to_owned()
}

fn number(text: &str, key: &str) -> u64 {
    let value = value(text, key);
    value.parse().unwrap_or_else(|_| panic!("{key} is {value}"))
}

/// Whether two numbers of bytes are equal within 1 %.
fn are_close(foretold: u64, found: u64) -> bool {
    foretold.abs_diff(found) * 100 <= found
}

#[test]
fn a_copy_moves_what_was_foretold() {
    let mut unit = Unit::new(2, 8 * MIB);
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=8 conv=notrunc status=none");
    for policy in ["full", "compare", "minicopy"] {
        unit.detach("m2");
        for region in [3, 4, 40, 100] {
            let at = region * REGION;
            unit.sh(&format!(
                "printf {policy} | dd of=$U bs=1 seek={at} conv=notrunc status=none"
            ));
        }
        let foretold = unit.accepted(&format!("attach m2 policy={policy} dry-run"));
        assert_eq!(foretold.text("verdict"), policy);
        let (bytes, extents) = (foretold.number("bytes"), foretold.number("extents"));
        assert_eq!(extents, if policy == "minicopy" { 3 } else { 1 });
        if policy == "minicopy" {
            let plan = unit.read("members/m2/plan");
            let planned = (number(&plan, "bytes"), number(&plan, "extents"));
            assert_eq!(planned, (bytes, extents), "{plan}");
        }
        let run = unit.accepted(&format!("attach m2 policy={policy}"));
        let op = unit.finished(run.number("operation"));
        // A compare copy reads what was foretold, and writes what differs.
        let found = match policy {
            "compare" => op["done_bytes"].as_u64(),
            _ => op["copied_bytes"].as_u64(),
        };
        assert!(are_close(bytes, found.expect("a number")), "{bytes}: {op}");
    }
    unit.stop_and_compare();
}

#[test]
fn the_time_of_a_copy_is_foretold_by_the_last_one() {
    let unit = Unit::new(2, 8 * MIB);
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=8 conv=notrunc status=none");
    unit.detach("m2");
    unit.sh("printf x | dd of=$U conv=notrunc status=none");
    let foretold = |what: &str| unit.accepted(&format!("attach m2 policy={what} dry-run"));
    assert_eq!(foretold("full").text("eta"), "-", "nothing was measured");
    assert_eq!(value(&unit.read("members/m2/plan"), "eta"), "-");
    unit.accepted("set copy_rate_max 4M");
    let op = unit.accepted("attach m2 policy=full").number("operation");
    unit.finished(op);
    unit.detach("m2");
    unit.sh("printf y | dd of=$U conv=notrunc status=none");
    let eta = foretold("full").number("eta");
    assert!((1..=8).contains(&eta), "8 MiB at 4 MiB/s, and {eta} s");
    assert_eq!(foretold("minicopy").number("eta"), 1);
    assert_eq!(number(&unit.read("members/m2/plan"), "eta"), 1);
    assert_eq!(foretold("compare").text("eta"), "-", "another kind");
}

#[test]
fn a_held_copy_has_no_speed() {
    let unit = Unit::new(2, 32 * MIB);
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=32 conv=notrunc status=none");
    unit.accepted("detach m2 policy=none");
    unit.accepted("set copy_rate_max 1M");
    let op = unit.accepted("attach m2 policy=full").number("operation");
    let progress = || unit.read(&format!("operations/{op}/progress"));
    let speed = || (value(&progress(), "rate_bps"), value(&progress(), "eta_s"));
    eventually("its speed is known", || speed().1 != "-");
    unit.accepted(&format!("pause {op}"));
    let unknown = ("-".to_owned(), "-".to_owned());
    assert_eq!(speed(), unknown);
    let status = unit.status();
    assert!(status["operations"][0]["eta_s"].is_null(), "{status}");
    unit.accepted("set copy_rate_max max");
    assert_eq!(speed(), unknown, "as long as it is held");
    unit.accepted(&format!("resume {op}"));
    unit.finished(op);
}

#[test]
fn after_a_cancel_nothing_touches_the_target() {
    let (mut unit, dir) = with_m2_elsewhere();
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=16 conv=notrunc status=none");
    unit.accepted("detach m2 policy=none");
    unit.accepted("set max_copies 0");
    let op = unit.accepted("attach m2 policy=full").number("operation");
    let frozen = Frozen::new(&unit, dir);
    unit.accepted("set max_copies 1");
    let pid = unit.pid();
    let waiting = format!("cat /proc/{pid}/task/*/stat 2> /dev/null | grep -c ') D '; true");
    let waiting = || unit.sh(&waiting).trim().parse::<u32>().expect("a number");
    eventually("two steps write", || waiting() >= 2);
    // They cannot end now; what the target holds when the answer comes is what it keeps.
    let mut cancel = start(
        &unit,
        &format!(
            "echo cancel {op} > $S/control; touch $D/ended; sha256sum < $D/slow/m2.img > $D/answered"
        ),
    );
    let state = || unit.read(&format!("operations/{op}/state"));
    eventually("it is taken", || state() == "cancelled\n");
    // Their first writes wait for the regions of those steps.
    let writers = Writers::start(&unit.file(), 2);
    // A time to look, not to wait for: an answer that comes too early comes at once.
    let early = unit.try_sh("timeout 2 bash -c 'until [ -e $D/ended ]; do :; done'");
    assert_eq!(early.code, 124, "it is answered while its steps write");
    drop(frozen);
    assert!(cancel.wait().expect("ended").success());
    assert_eq!(unit.state_of("m2"), "detached");
    writers.go_on(20);
    writers.stop();
    unit.sh("sync $D/slow/m2.img; sha256sum < $D/slow/m2.img | cmp - $D/answered");
    unit.accepted("set max_copies 2");
    unit.minicopy("m2");
    unit.stop_and_compare();
}

#[test]
fn a_copy_reads_the_source_that_was_named() {
    let mut unit = Unit::new(3, 16 * MIB);
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=8 conv=notrunc,fsync status=none");
    let byte = |member: &str| unit.sh(&format!("od -An -tx1 -j 4000000 -N 1 $I/{member}.img"));
    // What tells the sources apart, behind the back of the set.
    let put = "dd of=$I/m2.img bs=1 seek=4000000 conv=notrunc status=none";
    unit.sh(&format!("printf '\\251' | {put}"));
    unit.sh("printf '\\146' | dd of=$I/m1.img bs=1 seek=4000000 conv=notrunc status=none");
    for source in ["m2", "m1"] {
        unit.detach("m3");
        for (word, errno, says) in [
            ("m3", libc::EBUSY, "m3 is detached"),
            ("m9", libc::ENOENT, "m9"),
        ] {
            let command = format!("attach m3 source={word}");
            let refused = unit.command(command.as_bytes()).expect_err("no source");
            assert_eq!(refused.errno, errno, "{refused:?}");
            assert!(refused.text.contains(says), "{refused:?}");
        }
        let copied = || {
            let answer = unit.accepted(&format!("attach m3 policy=full source={source}"));
            let op = answer.number("operation");
            let named = unit.read(&format!("operations/{op}/source"));
            assert_eq!(named, format!("{source}\n"));
            unit.finished(op);
            byte("m3") == byte(source)
        };
        // A source that does not answer for a moment, as on a busy machine, is passed over.
        let mut tries = 0;
        while !copied() {
            tries += 1;
            assert!(tries < 20, "{source} is never read");
            unit.detach("m3");
        }
    }
    assert_ne!(byte("m1"), byte("m2"));
    unit.sh(&format!("printf '\\146' | {put}"));
    unit.stop_and_compare();
}
