//! Dry runs of every command on a mounted unit: they say what the run says, and leave no trace.

use crate::bed::{MIB, Plan, Unit, eventually};

/// A unit whose server does not flush by itself within a test, which would count in the statistics of its members.
fn unit() -> Unit {
    Plan::new(3, 4 * MIB).options("hbmm_rtc=65535").mount()
}

/// All that a command could change: the state and its events, the images and what is kept of the set.
fn everything(unit: &Unit) -> String {
    let mut status = unit.status();
    status["time"].take();
    let events = unit.read("events");
    let files = unit.sh("cd $I && stat -c '%n %s %Y %Z %b' * && sha256sum *");
    format!("{status:#}\n{events}\n{files}")
}

/// The code and the sentence of a refusal, without the command that it shows.
fn says(text: &str) -> Vec<&str> {
    text.lines().take(2).collect()
}

/// Gives each command as a dry run: these are accepted, those refused with this code, as the run is.
fn rehearse(unit: &Unit, accepted: &[&str], refused: &[(&str, &str)]) {
    let before = everything(unit);
    for command in accepted {
        let answer = unit.accepted(&format!("{command} dry-run"));
        assert!(answer.0.contains("would"), "{command}: {}", answer.0);
    }
    assert_eq!(everything(unit), before, "a dry run has changed something");
    for (command, code) in refused {
        let dry = unit.command(format!("{command} dry-run").as_bytes());
        let dry = dry.expect_err(command);
        let run = unit.command(command.as_bytes()).expect_err(command);
        assert!(dry.text.starts_with(&format!("error: {code} ")), "{dry:?}");
        assert_eq!(
            (says(&dry.text), dry.errno),
            (says(&run.text), run.errno),
            "{command}"
        );
    }
    assert_eq!(everything(unit), before, "a refusal has changed something");
}

#[test]
fn dry_runs_at_rest_say_what_the_run_says_and_leave_no_trace() {
    let unit = unit();
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=4 conv=notrunc status=none; sync $U");
    rehearse(
        &unit,
        &[
            "detach m2",
            "detach m3 policy=none",
            "expel m1",
            "merge",
            "merge full",
            "set max_copies 1",
            "set m2.read_cost 7",
        ],
        &[
            ("attach m2", "already-member"),
            ("release m2", "in-use"),
            ("resize", "state-changed"),
            ("resize 8388608", "member-too-small"),
            ("delete-bitmap 00ff00ff", "no-such-bitmap"),
            ("pause 77", "no-such-operation"),
            ("resume 77", "no-such-operation"),
            ("cancel 77", "no-such-operation"),
            ("set max_copies 999", "out-of-range"),
            ("set m9.read_cost 7", "no-such-member"),
            ("expel m9", "no-such-member"),
        ],
    );
    // Room that a dry run has seen is not remembered by it.
    unit.sh("truncate -s 8M $I/m1.img $I/m2.img $I/m3.img");
    rehearse(&unit, &["resize", "resize 6291456"], &[]);
}

#[test]
fn dry_runs_about_departed_members_and_copies_leave_no_trace() {
    let mut unit = unit();
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=4 conv=notrunc status=none; sync $U");
    let id = unit.detach("m3").text("bitmap").to_owned();
    unit.accepted("expel m2");
    // That is done behind the answer.
    eventually("its image is stamped", || {
        unit.read("members/m2/fingerprint") != "-\n"
    });
    unit.sh("printf x | dd of=$U bs=1 seek=1M conv=notrunc status=none; sync $U");
    rehearse(
        &unit,
        &[
            "attach m3",
            "attach m3 policy=compare",
            "attach m3 policy=full",
            "release m2",
            "release m3",
            &format!("delete-bitmap {id}"),
        ],
        &[
            ("attach m3 policy=nocopy", "needs-copy"),
            ("detach m1", "last-source"),
            ("expel m1", "last-source"),
            ("detach m3", "already-detached"),
            ("merge", "last-source"),
        ],
    );
    unit.accepted("set max_copies 0");
    let op = unit.accepted("attach m3").number("operation");
    let command = |verb: &str| format!("{verb} {op}");
    rehearse(
        &unit,
        &[
            &command("cancel"),
            &format!("set {op}.rate_max 1M"),
            "expel m3",
        ],
        &[
            (&command("pause"), "state-changed"),
            (&command("resume"), "state-changed"),
            (&format!("delete-bitmap {id}"), "in-use"),
            ("attach m3", "is-copy-target"),
            ("resize", "in-use"),
        ],
    );
    unit.accepted("set max_copies 2");
    unit.finished(op);
    unit.minicopy("m2");
    unit.stop_and_compare();
}

#[test]
fn a_copy_goes_on_through_dry_runs() {
    let mut unit = Unit::new(2, 8 * MIB);
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=8 conv=notrunc status=none");
    unit.accepted("detach m2 policy=none");
    unit.accepted("set copy_rate_max 64k");
    let op = unit.accepted("attach m2 policy=full").number("operation");
    let state = || {
        unit.read(&format!("operations/{op}/state"))
            .trim()
            .to_owned()
    };
    unit.accepted(&format!("cancel {op} dry-run"));
    let file = format!("operations/{op}/state");
    unit.command_on(&file, b"pause dry-run").expect("it runs");
    assert_eq!(state(), "running");
    unit.accepted(&format!("pause {op}"));
    unit.accepted(&format!("resume {op} dry-run"));
    assert_eq!(state(), "paused");
    unit.accepted("set copy_rate_max max dry-run");
    assert_eq!(unit.read("params/copy_rate_max").trim(), "65536");
    unit.accepted("set copy_rate_max max");
    unit.accepted(&format!("resume {op}"));
    unit.finished(op);
    unit.stop_and_compare();
}

#[test]
fn the_command_line_has_dry_runs() {
    let unit = Unit::new(3, 4 * MIB);
    unit.sh("cp $D/conf/dsa1.toml $D/before.toml");
    unit.detach("m3");
    let before = everything(&unit);
    let texts = [
        ("merge dsa1 --full -n", "verdict merge"),
        ("release dsa1 m3 --dry-run", "verdict release"),
        ("bitmap delete dsa1 m3 --dry-run", "verdict delete-bitmap"),
        ("params set dsa1 max_copies 3 --persist -n", "verdict set"),
    ];
    for (line, verdict) in texts {
        let says = unit.sh(&format!("shadowset {line}"));
        assert!(says.contains(verdict), "{line}: {says}");
    }
    for verb in ["pause", "resume", "cancel"] {
        let ran = unit.try_sh(&format!("shadowset op {verb} dsa1 9 --dry-run"));
        assert_eq!(ran.code, 3, "{verb}: {ran:?}");
    }
    assert_eq!(everything(&unit), before);
    unit.sh("cmp $D/conf/dsa1.toml $D/before.toml");
}
