//! Short memory: dirty pages of a file system on the unit, and a server that has to write them.

use crate::bed::{MIB, Thing, Unit, eventually};

/// Runs the rest of the script in a control group that may use 48 MiB, of either version.
const SHORT_OF_MEMORY: &str = "
    group=
    if [ -e /sys/fs/cgroup/memory/memory.limit_in_bytes ]; then
        group=/sys/fs/cgroup/memory/shadowset-test-$$; limit=memory.limit_in_bytes
    elif grep -qw memory /sys/fs/cgroup/cgroup.subtree_control; then
        group=/sys/fs/cgroup/shadowset-test-$$; limit=memory.max
    fi
    if [ -n \"$group\" ] && mkdir $group && echo 48M > $group/$limit; then
        trap 'echo $$ > ${group%/*}/cgroup.procs; rmdir $group' EXIT
        echo $$ > $group/cgroup.procs
    else
        echo 'no control group: more dirty pages than that instead' >&2
    fi
";

#[test]
fn dirty_pages_of_a_file_system_on_the_unit_are_written_when_memory_is_short() {
    let mut unit = Unit::new(2, 512 * MIB);
    let device = unit.loop_device();
    unit.sh(&format!("mkfs.ext4 -q {device}"));
    let dir = unit.mount_device(&device, "fs", "");
    unit.sh("head -c 64M /dev/urandom > $D/data");
    // Many times what may be dirty: each of them is written for the next one to find memory.
    unit.sh(&format!(
        "{SHORT_OF_MEMORY}
        for n in 1 2 3 4 5 6; do cp $D/data $D/fs/$n; done; sync $D/fs/6"
    ));
    unit.sh(
        "echo 1 > /proc/sys/vm/drop_caches; for n in 1 2 3 4 5 6; do cmp $D/data $D/fs/$n; done",
    );
    assert_eq!(unit.read("state"), "steady\n");
    unit.take_away(&Thing::Mount(dir));
    unit.free(&device);
    unit.stop_and_compare();
}

#[test]
fn the_server_says_what_it_has_got_against_short_memory() {
    let mut unit = Unit::new(2, 4 * MIB);
    let pid = unit.pid();
    let adjusted = unit.sh(&format!("cat /proc/{pid}/oom_score_adj"));
    let told = unit.sh("grep -c 'when memory is short the server .*is not killed' $D/log || true");
    assert_eq!(adjusted == "-1000", told == "1", "{adjusted}, told {told}");
    unit.sh(&format!(
        "grep -q 'when memory is short the server .*is not paged out' $D/log
        [ $(awk '/^VmLck/ {{ print $2 }}' /proc/{pid}/status) -gt 0 ]
        ! grep WARN $D/log"
    ));
    unit.stop_and_compare();
}

#[test]
fn what_lies_on_the_unit_is_refused_when_a_dead_mount_is_recovered() {
    let mut unit = Unit::new(2, 32 * MIB);
    let device = unit.loop_device();
    unit.sh(&format!("mkfs.ext4 -q {device}"));
    let dir = unit.mount_device(&device, "fs", "");
    unit.sh("mkdir $D/fs/run
        sed \"s:^state_dir.*:state_dir = '$D/fs/state':\" conf/dsa1.toml > state.toml
        sed \"s:images/m2.scb:fs/m2.scb:\" conf/dsa1.toml > scb.toml
        cp conf/dsa1.toml $D/fs/dsa1.toml; sync");
    let pid = unit.pid();
    unit.sh(&format!(
        "kill -9 {pid}; timeout 60 tail --pid={pid} -f /dev/null"
    ));
    unit.gone();
    // Of a file system whose device is dead the kernel answers what it remembers, for as long as it likes.
    let cases = [
        (
            "the state directory",
            "shadowset mount ./state.toml $M -o unit=dsa1 --log $D/log",
        ),
        (
            "the storage control block of m2",
            "shadowset mount ./scb.toml $M -o unit=dsa1 --log $D/log",
        ),
    ];
    for (what, line) in cases {
        let ran = unit.try_sh(line);
        let says = format!("{what} lies on a loop device over the unit itself: ");
        assert!(ran.code == 32 && ran.err.contains(&says), "{what}: {ran:?}");
    }
    for line in [
        "shadowset mount $D/fs/dsa1.toml $M --log $D/log",
        "shadowset mount dsa1 $M --log $D/fs/log",
        "SHADOWSET_RUNTIME_DIR=$D/fs/run shadowset mount dsa1 $M --log $D/log",
    ] {
        let ran = unit.try_sh(line);
        assert!(ran.code == 32 && !ran.err.is_empty(), "{line}: {ran:?}");
    }
    unit.sh("[ $(grep -c \" $M fuse.shadowset \" /proc/mounts) = 1 ]");
    unit.take_away(&Thing::Mount(dir));
    unit.free(&device);
    unit.mount();
    eventually("the merge ends", || unit.read("state") == "steady\n");
    unit.stop_and_compare();
    let hidden = unit.try_sh("cp conf/dsa1.toml $M/; shadowset mount $M/dsa1.toml $M --log $D/log");
    let says = "the configuration lies in the mount point ";
    assert!(hidden.code == 32 && hidden.err.contains(says), "{hidden:?}");
    let hidden = unit.try_sh("shadowset mount dsa1 $M --log $M/log");
    assert!(
        hidden.code == 32 && hidden.err.contains("the log lies in the mount point "),
        "{hidden:?}"
    );
}
