//! What must not hang: the unit as its own member, and the control tree while members hang.

use std::process::Child;

use crate::bed::{MIB, Plan, Thing, Unit, eventually};

/// An attach of something that lies on the unit, which has to be refused and to change nothing.
fn is_refused(unit: &Unit, what: &str) {
    let before = (
        unit.read("generation"),
        unit.read("state"),
        unit.status()["members"].clone(),
    );
    let command = format!("attach {what} as=m9 confirm");
    let refused = unit.command(command.as_bytes()).expect_err(what);
    assert_eq!(refused.errno, libc::EOPNOTSUPP, "{what}: {refused:?}");
    assert!(
        refused.text.contains("lies on the unit itself"),
        "{refused:?}"
    );
    let after = (
        unit.read("generation"),
        unit.read("state"),
        unit.status()["members"].clone(),
    );
    assert_eq!(before, after, "{what}");
}

#[test]
fn what_lies_on_the_unit_cannot_become_its_member() {
    let mut unit = Unit::new(2, 16 * MIB);
    is_refused(&unit, &unit.file().display().to_string());
    let device = unit.loop_device();
    is_refused(&unit, &device);
    unit.sh(&format!("mkfs.ext4 -q {device}"));
    let dir = unit.mount_device(&device, "fs", "");
    let image = dir.join("image").display().to_string();
    unit.sh(&format!("truncate -s 4M {image}"));
    is_refused(&unit, &image);
    unit.take_away(&Thing::Mount(dir));
    unit.free(&device);
    unit.stop_and_compare();
}

/// A frozen file system: whoever writes to it waits until this value is dropped.
pub(crate) struct Frozen<'a>(&'a Unit, String);

impl<'a> Frozen<'a> {
    pub(crate) fn new(unit: &'a Unit, dir: String) -> Self {
        unit.sh(&format!("fsfreeze -f {dir}"));
        Self(unit, dir)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let thawed = self.0.try_sh(&format!("fsfreeze -u {}", self.1));
        assert!(thawed.code == 0 || std::thread::panicking(), "{thawed:?}");
    }
}

/// A unit whose member m2 is on a file system of its own, with the directory of that.
pub(crate) fn with_m2_elsewhere() -> (Unit, String) {
    let mut unit = Plan::new(2, 16 * MIB).create();
    unit.sh("truncate -s 64M $D/disk; mkfs.ext4 -q $D/disk");
    let dir = unit.mount_device(&unit.path("disk").display().to_string(), "slow", "-o loop");
    unit.sh("cp $I/m2.img $D/slow/m2.img; rm $I/m2.img; ln -s $D/slow/m2.img $I/m2.img");
    unit.mount();
    let dir = dir.display().to_string();
    (unit, dir)
}

/// What the kernel tells of the unit's connection, wherever it is mounted on this machine.
pub(crate) fn connection(unit: &Unit) -> String {
    let dir = unit.mount_device("fusectl", "connections", "-t fusectl");
    unit.sh(&format!("echo {}/$(stat -c %Ld $M)", dir.display()))
}

/// Requests that are not answered, whether or not the daemon has read them.
pub(crate) fn in_flight(unit: &Unit, connection: &str) -> u64 {
    let waiting = unit.sh(&format!("cat {connection}/waiting"));
    waiting.parse().expect("a number")
}

/// A script that runs beside the test.
pub(crate) fn start(unit: &Unit, script: &str) -> Child {
    start_for(unit, 60, script)
}

/// The same, for so many seconds at most.
pub(crate) fn start_for(unit: &Unit, seconds: u32, script: &str) -> Child {
    let mut command = unit.prepared("timeout");
    command.args(["-k", "5", &seconds.to_string(), "bash", "-euc", script]);
    command.spawn().expect("timeout starts")
}

#[test]
fn the_control_tree_answers_while_a_member_hangs() {
    let (mut unit, dir) = with_m2_elsewhere();
    unit.sh("head -c 4096 /dev/urandom > $D/piece");
    let connection = connection(&unit);
    let frozen = Frozen::new(&unit, dir);
    let mut writers = start(
        &unit,
        "pids=
        for n in $(seq 0 11); do
            dd if=$D/piece of=$U bs=4k seek=$n count=1 conv=notrunc oflag=direct status=none &
            pids=\"$pids $!\"
        done
        for p in $pids; do wait $p; done",
    );
    eventually("all of them wait", || in_flight(&unit, &connection) >= 12);
    unit.sh("[[ $(timeout 10 cat $S/state) =~ ^(steady|mount-verify)$ ]]");
    unit.sh("timeout 10 cat $S/status.json > $D/status.json; grep -q '\"m2\"' $D/status.json");
    unit.sh("timeout 10 shadowset status dsa1 > /dev/null; timeout 10 stat $U > /dev/null");
    let refused = unit.command(b"detach m9").expect_err("there is no m9");
    assert!(refused.text.starts_with("error: no-such-"), "{refused:?}");
    assert!(
        in_flight(&unit, &connection) >= 12,
        "the member hangs still"
    );
    drop(frozen);
    assert!(writers.wait().expect("ended").success());
    unit.sh("for n in $(seq 0 11); do cmp -n 4096 -i 0:$((n * 4096)) $D/piece $U; done");
    eventually("it answers", || unit.read("state") == "steady\n");
    unit.stop_and_compare();
}

/// Waits until a daemon has ended.
fn ended(unit: &Unit, pid: u32) {
    unit.sh(&format!("timeout 20 tail --pid={pid} -f /dev/null"));
}

#[test]
fn a_connection_that_is_aborted_leaves_no_mount() {
    let mut unit = Unit::new(2, 4 * MIB);
    let pid = unit.pid();
    unit.sh("printf abc | dd of=$U conv=notrunc status=none");
    let connection = connection(&unit);
    unit.sh(&format!("echo 1 > {connection}/abort"));
    ended(&unit, pid);
    unit.gone();
    unit.sh("! grep -q \" $M \" /proc/mounts; grep -q 'was aborted' $D/log");
    unit.mount();
    unit.sh("[ $(head -c 3 $U) = abc ]");
    unit.stop_and_compare();
}

#[test]
fn a_stale_mount_in_another_directory_is_recovered_too() {
    let mut unit = Unit::new(2, 4 * MIB);
    let pid = unit.pid();
    // What the kernel has cached answers on after the daemon's death.
    unit.sh("stat $M $U > /dev/null");
    unit.sh(&format!("kill -9 {pid}"));
    ended(&unit, pid);
    unit.gone();
    unit.sh("grep -q \" $M \" /proc/mounts; mkdir $D/other");
    unit.sh("shadowset mount dsa1 $D/other --log $D/log > /dev/null");
    let other = Thing::Mount(unit.path("other"));
    unit.keep(other.clone());
    unit.sh("! grep -q \" $M \" /proc/mounts; shadowset wait dsa1 --timeout 60");
    let pid: u32 = unit.sh("cat $D/run/dsa1/pid").parse().expect("a number");
    unit.take_away(&other);
    ended(&unit, pid);
    unit.assert_equal();
}
