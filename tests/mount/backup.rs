//! `backup`: whatever happens in between, the member comes back.

use std::process::{Child, Stdio};

use serde_json::Value;

use crate::bed::{MIB, Thing, Unit, eventually};

/// Runs a backup of `m3` with the given words; it has to end with this code.
fn backup(unit: &Unit, code: i32, words: &str) -> (Value, String) {
    let ran = unit.try_sh(&format!("shadowset backup dsa1 m3 --json {words}"));
    assert_eq!(ran.code, code, "{words}: {ran:?}");
    (serde_json::from_str(&ran.out).unwrap_or_default(), ran.err)
}

/// Starts a backup whose command waits, and returns when the command runs and its prelude is over.
fn start(unit: &Unit, prelude: &str, script: &str) -> Child {
    unit.sh("rm -f running");
    let script = format!("{prelude} echo $$ > running.new; mv running.new running; {script}");
    // Who runs the tests in the background may have some signals ignored.
    let mut command = unit.prepared("env");
    command.args(["--default-signal", "shadowset"]);
    command.args(["backup", "dsa1", "m3", "--", "sh", "-c", &script]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    eventually("the command runs", || unit.path("running").exists());
    child.expect("it starts")
}

fn send(unit: &Unit, name: &str, pid: u32) {
    unit.sh(&format!("kill -{name} {pid}"));
}

#[test]
fn a_backup_of_a_file_system_holds_what_was_written_before() {
    let mut unit = Unit::new(3, 64 * MIB);
    let device = unit.loop_device();
    unit.sh(&format!("mkfs.ext4 -q {device}"));
    let fs = unit.mount_device(&device, "fs", "");
    unit.sh("for n in $(seq 100); do head -c 9000 /dev/urandom > fs/$n; done; cd fs; sha256sum [0-9]* > $D/sums");
    let (plan, _) = backup(&unit, 0, "-n -- cp {} copy.img");
    let image = unit.image("m3").display().to_string();
    assert_eq!(plan["command"][1], image.as_str(), "{plan}");
    assert_eq!(plan["freeze"][0].as_str(), fs.to_str(), "{plan}");
    assert!(!unit.path("copy.img").exists());
    // The application goes on while the command runs, and standard output is not for the command.
    let script = "'echo $SHADOWSET_UNIT $SHADOWSET_MEMBER; cp $SHADOWSET_IMAGE copy.img; echo x > fs/later; sync fs/later'";
    let (told, err) = backup(&unit, 0, &format!("-- sh -c {script}"));
    assert!(err.contains("dsa1 m3\n"), "{err}");
    assert_eq!(
        (&told["ok"], &told["exit"]),
        (&true.into(), &0.into()),
        "{told}"
    );
    assert_eq!(told["frozen"][0]["fstype"], "ext4", "{told}");
    assert_eq!(told["operation"]["kind"], "minicopy", "{told}");
    assert!(
        told["operation"]["copied_bytes"].as_u64() < Some(8 * MIB),
        "{told}"
    );
    assert_eq!(unit.state_of("m3"), "source");
    unit.sh("e2fsck -fn copy.img; mkdir copy; mount -o ro,loop copy.img copy");
    let copy = Thing::Mount(unit.path("copy"));
    unit.keep(copy.clone());
    unit.sh("cd copy; sha256sum --quiet -c $D/sums; [ ! -e later ]");
    unit.take_away(&copy);
    let (told, _) = backup(&unit, 0, "--no-freeze -- true");
    assert_eq!(told["frozen"], Value::Array(Vec::new()));
    unit.take_away(&Thing::Mount(fs));
    unit.free(&device);
    unit.stop_and_compare();
}

#[test]
fn a_member_that_somebody_else_attaches_meanwhile_is_no_backup() {
    let unit = Unit::new(3, 4 * MIB);
    let attach = "shadowset attach dsa1 m3 --policy minicopy --wait";
    let detach = "shadowset detach dsa1 m3 --policy minicopy";
    // A copy that is given up keeps the bitmap, and its target may have been written.
    let give_up = r#"printf x | dd of=$U conv=notrunc status=none; echo set max_copies 0 > $C
        n=$(shadowset attach dsa1 m3 | grep -o "operation [0-9]*" | head -n 1 | cut -d" " -f2)
        echo cancel $n > $C; echo set max_copies 4 > $C"#;
    for (script, state) in [
        (attach.to_owned(), "source"),
        (format!("{attach}; {detach}"), "detached"),
        (give_up.to_owned(), "detached"),
        (format!("{attach}; shadowset expel dsa1 m3"), "expelled"),
    ] {
        let (told, _) = backup(&unit, 4, &format!("-- sh -c '{script}'"));
        assert_eq!(told["code"], "state-changed", "{told}");
        assert_eq!(unit.state_of("m3"), state);
        if state != "source" {
            unit.minicopy("m3");
        }
    }
    backup(&unit, 0, "-- true");
}

#[test]
fn a_file_system_can_be_unmounted_while_the_command_runs() {
    let unit = Unit::new(3, 64 * MIB);
    let device = unit.loop_device();
    unit.sh(&format!("mkfs.ext4 -q {device}"));
    let fs = unit.mount_device(&device, "fs", "");
    let script = format!("'umount fs && mount {device} fs'");
    backup(&unit, 0, &format!("-- sh -c {script}"));
    unit.sh(&format!(
        "shadowset detach dsa1 m3 --freeze --exec {script}"
    ));
    unit.minicopy("m3");
    unit.take_away(&Thing::Mount(fs));
    unit.free(&device);
}

#[test]
fn a_command_that_fails_gives_its_code_and_the_member_comes_back() {
    let unit = Unit::new(3, 4 * MIB);
    let table = [
        ("sh -c 'exit 7'", 7, "exit status: 7"),
        ("sh -c 'kill -9 $$'", 137, "SIGKILL"),
        ("$D/missing", 127, "cannot be run"),
        ("$D/log", 126, "cannot be run"),
    ];
    for (command, code, how) in table {
        let (told, err) = backup(&unit, code, &format!("-- {command}"));
        assert!(err.contains("backup m3: `") && err.contains(how), "{err}");
        assert_eq!((&told["ok"], &told["exit"]), (&false.into(), &code.into()));
        assert_eq!(unit.state_of("m3"), "source", "{command}");
    }
    let err = backup(&unit, 2, "").1;
    assert!(err.contains("<CMD>"), "{err}");
}

#[test]
fn a_reader_that_goes_away_takes_no_exit_code_along() {
    let unit = Unit::new(3, 4 * MIB);
    for json in ["", "--json"] {
        let line = format!("shadowset backup dsa1 m3 {json} -- sh -c 'sleep 1; exit 7' | true");
        let ran = unit.try_sh(&format!("{line}; exit ${{PIPESTATUS[0]}}"));
        assert_eq!(ran.code, 7, "{json}: {ran:?}");
        assert_eq!(unit.state_of("m3"), "source");
    }
    let line = "shadowset detach dsa1 m3 --freeze-cmd 'sleep 1' --exec 'touch ran; exit 9' | true";
    let ran = unit.try_sh(&format!("{line}; exit ${{PIPESTATUS[0]}}"));
    assert_eq!(ran.code, 9, "{ran:?}");
    assert!(unit.path("ran").exists());
}

#[test]
fn signals_reach_the_command_and_the_member_comes_back() {
    let unit = Unit::new(3, 4 * MIB);
    for (name, code) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        let child = start(&unit, "", "exec sleep 60");
        assert_eq!(unit.state_of("m3"), "detached");
        send(&unit, name, child.id());
        let output = child.wait_with_output().expect("a child");
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(unit.state_of("m3"), "source", "{name}");
    }
    // A shell would lift what is blocked; other programs are not to have to.
    backup(
        &unit,
        0,
        "-- grep -q 'SigBlk:.0000000000000000' /proc/self/status",
    );
    // A command may end in its own way.
    let child = start(&unit, "trap 'exit 5' TERM;", "while :; do sleep 0.05; done");
    send(&unit, "TERM", child.id());
    let output = child.wait_with_output().expect("a child");
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!(unit.state_of("m3"), "source");
}

#[test]
fn a_backup_that_was_killed_is_finished_by_the_next_one() {
    let mut unit = Unit::new(3, 4 * MIB);
    let mut child = start(&unit, "", "exec sleep 60");
    let second = unit.try_sh("shadowset backup dsa1 m2 -- true");
    assert_eq!(second.code, 4, "{second:?}");
    assert!(second.err.contains("another backup of dsa1"), "{second:?}");
    send(&unit, "KILL", child.id());
    child.wait().expect("a child");
    unit.sh("kill $(cat running)");
    assert_eq!(unit.state_of("m3"), "detached");
    // Also when the unit was stopped meanwhile, and for another member.
    unit.stop();
    unit.mount();
    let other = unit.try_sh("shadowset backup dsa1 m2 -- true");
    assert_eq!(other.code, 0, "{other:?}");
    assert!(
        other.err.contains("an earlier backup of m3 was cut off"),
        "{other:?}"
    );
    assert_eq!(unit.state_of("m3"), "source");
    // A plain attach finishes it too, and what is detached on purpose then stays away.
    let mut child = start(&unit, "", "exec sleep 60");
    send(&unit, "KILL", child.id());
    child.wait().expect("a child");
    unit.sh("kill $(cat running)");
    unit.minicopy("m3");
    unit.detach("m3");
    let (told, _) = backup(&unit, 4, "-- true");
    assert_eq!(told["code"], "already-detached", "{told}");
    let other = unit.try_sh("shadowset backup dsa1 m2 -- true");
    assert_eq!(other.code, 0, "{other:?}");
    assert_eq!(unit.state_of("m3"), "detached");
    unit.minicopy("m3");
    unit.stop_and_compare();
}

#[test]
fn a_member_that_somebody_else_takes_out_meanwhile_stays_away() {
    let unit = Unit::new(3, 4 * MIB);
    let other = "'shadowset detach dsa1 m3 --policy minicopy'";
    let (told, _) = backup(&unit, 4, &format!("--freeze-cmd {other} -- touch ran"));
    assert_eq!(told["code"], "already-detached", "{told}");
    assert!(!unit.path("ran").exists());
    assert_eq!(unit.state_of("m3"), "detached");
    unit.minicopy("m3");
}

/// Applications that take their time to go on; other things change before the next backup.
#[test]
fn a_backup_that_was_killed_behind_the_detach_is_finished_by_the_next_one() {
    let mut unit = Unit::new(3, 4 * MIB);
    let mut command = unit.prepared("shadowset");
    command.args(["backup", "dsa1", "m3", "--freeze-cmd", "true"]);
    command.args(["--thaw-cmd", "touch thawing; sleep 3", "--", "true"]);
    let mut child = command.spawn().expect("it starts");
    eventually("m3 has left", || unit.path("thawing").exists());
    send(&unit, "KILL", child.id());
    child.wait().expect("a child");
    unit.stop();
    unit.mount();
    let other = unit.try_sh("shadowset backup dsa1 m2 -- true");
    assert_eq!(other.code, 0, "{other:?}");
    assert_eq!(unit.state_of("m3"), "source", "{other:?}");
}

#[test]
fn a_command_that_outlives_its_backup_keeps_the_image_as_it_is() {
    let unit = Unit::new(3, 4 * MIB);
    let mut child = start(&unit, "", "exec sleep 60");
    send(&unit, "KILL", child.id());
    child.wait().expect("a child");
    let second = unit.try_sh("shadowset backup dsa1 m2 -- true");
    assert_eq!(second.code, 4, "{second:?}");
    let command = format!(
        "its command goes on: process {} (sleep)",
        unit.sh("cat running")
    );
    assert!(second.err.contains(&command), "{second:?}");
    assert_eq!(unit.state_of("m3"), "detached");
    unit.sh("kill $(cat running)");
    eventually("its command has ended", || {
        unit.try_sh("shadowset backup dsa1 m2 -- true").code == 0
    });
    assert_eq!(unit.state_of("m3"), "source");
}

#[test]
fn a_command_that_changes_the_image_is_told_of() {
    let unit = Unit::new(3, 4 * MIB);
    let (told, err) = backup(
        &unit,
        4,
        "-- sh -c 'printf x | dd of={} conv=notrunc status=none'",
    );
    assert_eq!(told["code"], "image-changed", "{told}");
    assert!(
        err.contains("m3 is still away: the image of m3 was changed"),
        "{err}"
    );
    assert!(err.contains("\nhint: "), "{err}");
    assert_eq!(unit.state_of("m3"), "detached");
}

#[test]
fn the_last_source_is_not_backed_up_and_the_last_but_one_with_a_word() {
    let unit = Unit::new(2, 4 * MIB);
    let ran = unit.try_sh("shadowset backup dsa1 m2 -- true");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.err.contains("warning: during the backup m1 alone"),
        "{ran:?}"
    );
    unit.detach("m2");
    let ran = unit.try_sh("shadowset backup dsa1 m1 -- touch $D/ran");
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(
        ran.err.contains("backup m1: m1 is the only source member"),
        "{ran:?}"
    );
    assert!(!unit.path("ran").exists());
}

#[test]
fn a_copy_elsewhere_is_kept_up_by_its_changes_alone() {
    let mut unit = Unit::new(3, 16 * MIB);
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=8 conv=notrunc,fsync status=none");
    unit.detach("m3");
    unit.sh("cp $I/m3.img $D/vault");
    for (day, (away, next)) in [("m3", "m2"), ("m2", "m3"), ("m3", "m2")]
        .iter()
        .enumerate()
    {
        let at = 3 * day + 1;
        unit.sh(&format!(
            "dd if=/dev/urandom of=$U bs=64k seek={at} count=2 conv=notrunc,fsync status=none"
        ));
        unit.detach(next);
        // As shadowset-backup(7) has it.
        unit.sh(&format!(
            "bytes=0
            while read -r first count; do
                dd if=$I/{next}.img of=$D/vault bs=512 skip=\"$first\" \\
                    seek=\"$first\" count=\"$count\" conv=notrunc status=none
                bytes=$((bytes + count * 512))
            done < $S/members/{away}/bitmap/ranges
            [ $bytes -lt 400000 ]
            cmp $I/{next}.img $D/vault"
        ));
        unit.minicopy(away);
    }
    unit.minicopy("m2");
    unit.stop_and_compare();
}
