//! kill -9: the next mount recovers, merges by itself and keeps what was acknowledged.

use std::os::unix::fs::FileExt;

use crate::bed::{MIB, Plan, Unit, Writers, eventually, last_writes};

/// Which numbers the writers had reached when the unit died under them.
fn write_and_kill(unit: &Unit, count: u64) -> Vec<u64> {
    let writers = Writers::start(&unit.file(), count);
    writers.go_on(300);
    unit.kill();
    // Their next write fails; what counts is what was acknowledged before.
    writers.died()
}

#[test]
fn after_kill_9_a_merge_runs_by_itself_and_nothing_acknowledged_is_lost() {
    let mut unit = Unit::new(3, 16 * MIB);
    unit.sh(
        "head -c 16M /dev/urandom | dd of=$U bs=1M conv=notrunc,fsync iflag=fullblock status=none",
    );
    let acknowledged = write_and_kill(&unit, 3);
    let ran = unit.try_sh("cat $U > /dev/null");
    assert!(ran.err.contains("not connected"), "{ran:?}");
    // A dead mount is taken away by hand here.
    unit.umount();
    unit.gone();
    unit.mount();
    let merges = unit.status();
    let merges = merges["operations"].as_array().expect("a list");
    assert!(
        !merges.is_empty() && merges.iter().all(|op| op["kind"] == "minimerge"),
        "{merges:?}"
    );
    let before = last_writes(&std::fs::read(unit.file()).expect("the unit"), 3);
    for (held, acknowledged) in before.iter().zip(&acknowledged) {
        assert!(held >= acknowledged, "{held} of {acknowledged}");
    }
    unit.sh("shadowset wait dsa1 --timeout 60");
    for member in ["m1", "m2", "m3"] {
        assert_eq!(unit.state_of(member), "source");
    }
    let after = last_writes(&std::fs::read(unit.file()).expect("the unit"), 3);
    assert_eq!(before, after, "I11: a read is as good as a merge");
    unit.stop_and_compare();
    unit.mount();
    assert_eq!(
        unit.status()["operations"].as_array().map(Vec::len),
        Some(0),
        "clean now"
    );
    unit.stop();
}

/// A thread of the server that waited for the server itself would outlive kill -9, with the locks of all images: the unit
/// could not be mounted again. One did so when it had just been mounted.
#[test]
fn the_server_asks_nothing_of_its_own_mount() {
    let starter = "strace -D -f -o $D/trace -e trace=%file";
    let mut unit = Plan::new(2, 4 * MIB).started_by(starter).mount();
    let pid = unit.pid();
    unit.detach("m2");
    unit.sh("printf x | dd of=$U bs=1 conv=notrunc,fsync status=none");
    unit.minicopy("m2");
    unit.stop_and_compare();
    let trace = || std::fs::read_to_string(unit.path("trace")).expect("a trace");
    let pid = format!("{pid} ");
    let is_last = |line: &str| line.starts_with(&pid) && line.contains("+++ exited with 0");
    eventually("strace has ended", || trace().lines().any(is_last));
    let (trace, below) = (trace(), format!("\"{}/", unit.path("mnt").display()));
    // The program that was started first waits for the server, and looks at the mount.
    let first = trace.split_inclusive(' ').next().expect("a process");
    let servers = trace.lines().filter(|line| !line.starts_with(first));
    let asked: Vec<&str> = servers.filter(|line| line.contains(&below)).collect();
    assert!(asked.is_empty(), "{asked:#?}");
    assert!(trace.contains("m2.img"), "it sees the server");
}

#[test]
fn a_stale_mount_is_recovered_by_the_next_one() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.sh("head -c 1M /dev/urandom | dd of=$U bs=64k conv=notrunc iflag=fullblock status=none");
    unit.kill();
    let ran = unit.try_sh("shadowset list");
    assert!(ran.out.contains("dead"), "{ran:?}");
    unit.gone();
    unit.mount();
    unit.sh(
        "shadowset wait dsa1 --timeout 60; [ $(grep -c \" $M fuse.shadowset \" /proc/mounts) = 1 ]",
    );
    unit.stop_and_compare();
}

#[test]
fn a_bitmap_in_memory_ends_with_the_daemon_and_says_so() {
    let mut unit = Plan::new(3, 8 * MIB).options("durability=memory").mount();
    assert!(
        unit.sh("shadowset status dsa1")
            .contains("in memory, they end with the mount")
    );
    unit.sh("head -c 8M /dev/urandom | dd of=$U bs=1M conv=notrunc iflag=fullblock status=none");
    unit.detach("m3");
    unit.sh("head -c 1M /dev/urandom | dd of=$U bs=1M conv=notrunc iflag=fullblock status=none");
    unit.kill();
    unit.umount();
    unit.gone();
    unit.mount();
    unit.sh("shadowset wait dsa1 --timeout 60");
    assert_eq!(unit.state_of("m3"), "detached", "no copy starts unasked");
    let refused = unit
        .command(b"attach m3 policy=minicopy")
        .expect_err("no bitmap is left");
    assert_eq!(refused.errno, libc::ENODATA, "{refused:?}");
    assert!(
        refused.text.starts_with("error: no-bitmap ENODATA\n"),
        "{refused:?}"
    );
    assert_eq!(unit.state_of("m3"), "detached");
    let answer = unit.accepted("attach m3");
    assert_eq!(answer.text("kind"), "full-copy");
    let op = unit.finished(answer.number("operation"));
    assert_eq!(op["copied_bytes"], 8 * MIB, "{op}");
    unit.stop_and_compare();
}

/// Has the running merges of a unit that was just mounted held.
fn hold_merges(unit: &Unit) -> Vec<u64> {
    let status = unit.status();
    let merges = status["operations"].as_array().expect("a list").iter();
    let merges: Vec<u64> = merges.filter_map(|op| op["id"].as_u64()).collect();
    for op in &merges {
        unit.accepted(&format!("pause {op}"));
    }
    merges
}

/// 4096 bytes of the unit or of a member's image.
fn block(unit: &Unit, name: &str, at: u64) -> Vec<u8> {
    let path = match name {
        "unit" => unit.file(),
        member => unit.image(member).to_owned(),
    };
    let file = std::fs::File::open(path).expect("a file");
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, at).expect("4096 bytes");
    bytes
}

#[test]
fn a_read_merges_its_region_and_another_master_answers_the_same() {
    const READ: u64 = 254 * MIB;
    const UNREAD: u64 = 255 * MIB;
    // So slow that no merge ends before it is held.
    let options = "durability=memory,copy_rate_max=8M";
    let mut unit = Plan::new(3, 256 * MIB).options(options).mount();
    unit.sh("head -c 256M /dev/zero | tr '\\0' x | dd of=$U bs=1M conv=notrunc iflag=fullblock status=none");
    unit.kill();
    unit.umount();
    unit.gone();
    // As a write that was in flight: no two members have the same.
    for n in 1..=3 {
        unit.sh(&format!(
            "for at in {READ} {UNREAD}; do
                printf m{n} | dd of=$I/m{n}.img bs=1 seek=$at conv=notrunc status=none; done"
        ));
    }
    unit.mount();
    let merges = hold_merges(&unit);
    assert_eq!(merges.len(), 2);
    let answer = block(&unit, "unit", READ);
    for member in ["m1", "m2", "m3"] {
        assert_eq!(
            block(&unit, member, READ),
            answer,
            "I11: {member} where it was read"
        );
    }
    // The merges were held: where nothing was read, members differ still.
    assert_ne!(block(&unit, "m1", UNREAD), block(&unit, "m2", UNREAD));
    assert_ne!(block(&unit, "m2", UNREAD), block(&unit, "m3", UNREAD));
    unit.kill();
    unit.umount();
    unit.gone();
    let master = String::from_utf8_lossy(&answer[..2]).into_owned();
    unit.sh(&format!("mv $I/{master}.img away"));
    unit.mount();
    assert_eq!(unit.state_of(&master), "missing");
    assert_eq!(block(&unit, "unit", READ), answer, "I11: without {master}");
    unit.stop();
}

/// A mount whose last threads found no descriptors was told to be ready, and died right behind that.
#[test]
fn a_mount_is_ready_only_when_all_its_threads_run() {
    let mut unit = Plan::new(1, 4 * MIB).create();
    let (mut refused, mut served) = (0, 0);
    for most in 16.. {
        unit.start_by(&format!("prlimit --nofile={most}:{most}"));
        match unit.try_mount() {
            Err(ran) => {
                let said = ran.err.contains("error") && !ran.err.contains("panicked");
                assert!(said && !unit.is_mounted(), "{most}: {ran:?}");
                refused += 1;
            }
            Ok(()) => {
                unit.sh("cmp -n 4M $U $I/m1.img");
                unit.stop();
                served += 1;
            }
        }
        if served == 3 {
            break;
        }
    }
    assert!(refused > 3, "{refused}");
}

/// Whoever is refused a mount has changed nothing: what a stop made good for a restart of the machine stays good, although
/// its bitmaps are written without syncs as a rule.
#[test]
fn a_refused_mount_leaves_the_bitmaps_good_for_a_restart() {
    let mut unit = Plan::new(3, 8 * MIB).options("durability=crash").mount();
    unit.accepted("detach m3 policy=minicopy");
    unit.sh("printf later | dd of=$U bs=1 conv=notrunc status=none");
    unit.stop();
    unit.sh("mv $I/m2.img away; mv $I/m2.scb away.scb");
    let refused = unit.try_sh("shadowset mount dsa1 $M -o durability=crash,require_members");
    assert_ne!(refused.code, 0, "{refused:?}");
    unit.sh("mv away $I/m2.img; mv away.scb $I/m2.scb");
    let script = "echo 0b5d2a9e-6c1f-4a53-8d57-3f1e9c2b7a64 > boot
        mount --bind boot /proc/sys/kernel/random/boot_id
        shadowset mount dsa1 $M -o durability=crash
        cat $M/.shadow/status.json
        shadowset stop dsa1";
    std::fs::write(unit.path("script"), script).expect("a script");
    let says = unit.sh("cd $D; unshare -m --propagation private bash -eu script");
    assert!(says.contains(r#""bitmaps_lost": null"#), "{says}");
}
