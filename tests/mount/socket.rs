//! The control socket and the rights of others: what can be done where the mount cannot be reached, and by whom.

use crate::bed::{MIB, Plan, Unit, eventually};

/// Asks one question at the socket, and prints the errno and the text.
const ASK: &str = "
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
f = s.makefile('rw')
f.write(sys.argv[2] + '\\n')
f.flush()
errno, size, _ = map(int, f.readline().split())
print(errno, f.read(size), end='')
";

fn ask(unit: &Unit, question: &str) -> String {
    std::fs::write(unit.path("ask.py"), ASK).expect("written");
    unit.sh(&format!(
        "python3 $D/ask.py $D/run/dsa1/control.sock '{question}'"
    ))
}

#[test]
fn a_unit_that_was_unmounted_lazily_is_managed_by_its_socket() {
    let mut unit = Unit::new(3, 16 * MIB);
    let device = unit.loop_device();
    unit.sh("umount -l $M; ! [ -e $M/.shadow ]");
    assert_eq!(ask(&unit, "read state"), "0 steady");
    assert!(ask(&unit, "detach m9").starts_with("2 error: no-such-member ENOENT\n"));
    let script = format!(
        "shadowset status dsa1 | grep -q m3
        shadowset detach dsa1 m3 --policy minicopy
        dd if=/dev/urandom of={device} bs=64k count=4 oflag=direct status=none
        shadowset show dsa1 | grep -q 'm3 .*detached'
        shadowset attach dsa1 m3 --policy minicopy --wait
        shadowset wait dsa1 --for steady --timeout 20
        shadowset events dsa1 | grep -q member-joined
        shadowset detach dsa1 m3
        shadowset params set dsa1 max_copies 0
        shadowset attach dsa1 m3
        rc=0; shadowset wait dsa1 --for steady --timeout 1 2> $D/says || rc=$?
        [ $rc = 124 ]; grep -q 'not in the time given' $D/says
        shadowset params set dsa1 max_copies 4
        shadowset wait dsa1 --for steady --timeout 20"
    );
    unit.sh(&script);
    unit.free(&device);
    unit.sh(&format!(
        "timeout 30 tail --pid={} -f /dev/null",
        unit.pid()
    ));
    unit.gone();
    unit.sh("! [ -e $D/run/dsa1 ]");
    unit.assert_equal();
}

#[test]
fn a_group_may_give_commands_and_use_the_unit_if_the_mount_says_so() {
    let mut unit = Plan::new(2, 8 * MIB)
        .options("allow_other,control_gid=4242,control_mode=0660,unit_gid=4243,unit_mode=0640")
        .mount();
    unit.sh("chmod 755 $D/run
        member() { setpriv --reuid 65534 --regid 65534 --groups $1 bash -c \"$2\"; }
        stat -c '%a %g' $S/control $S/params/max_copies $U $S/status > $D/modes
        printf '660 4242\\n660 4242\\n640 4243\\n444 0\\n' | cmp - $D/modes
        member 4242 \"echo detach m2 > $S/control\"
        grep -q detached $S/members/m2/state
        ! member 4243 \"echo attach m2 > $S/control\"
        member 4243 \"head -c 512 $U | wc -c | grep -q 512\"
        ! member 4243 \"dd if=/dev/zero of=$U bs=512 count=1 conv=notrunc status=none\"
        ! member 4242 \"head -c 1 $U\"
        member 4242 \"grep -q steady $S/state\"");
    std::fs::write(unit.path("ask.py"), ASK).expect("written");
    unit.sh(
        "chmod 755 $D $D/run/dsa1; chmod 644 $D/ask.py
        try() { setpriv --reuid 65534 --regid 65534 --groups $1 /usr/bin/python3 $D/ask.py $D/run/dsa1/control.sock \"$2\"; }
        try 4242 'attach m2' | grep -q '^0 ok:'
        ! try 4243 'detach m2'",
    );
    eventually("it is back", || unit.state_of("m2") == "source");
    unit.stop_and_compare();
}

#[test]
fn rights_that_make_no_sense_are_refused() {
    let unit = Plan::new(2, 8 * MIB).create();
    for (options, says) in [
        (
            "control_mode=0666",
            "control_mode: takes an octal mode from 0600 to 0660",
        ),
        (
            "unit_gid=no-such-group-here",
            "there is no group no-such-group-here",
        ),
    ] {
        let failed = unit.try_sh(&format!("shadowset mount dsa1 $M -o {options}"));
        assert_eq!(failed.code, 1, "{failed:?}");
        assert!(failed.err.contains(says), "{failed:?}");
    }
}

#[test]
fn a_set_is_dissolved_by_a_command_when_nobody_uses_it() {
    let mut unit = Unit::new(2, 8 * MIB);
    let refused = unit
        .command(b"dissolve policy=full")
        .expect_err("no such policy");
    assert_eq!(refused.errno, libc::EINVAL, "{refused:?}");
    let device = unit.loop_device();
    let refused = unit.command(b"dissolve").expect_err("in use");
    assert_eq!(refused.errno, libc::EBUSY, "{refused:?}");
    assert!(refused.text.contains("the unit is open"), "{refused:?}");
    unit.sh(&format!(
        "dd if=/dev/urandom of={device} bs=1M count=2 oflag=direct status=none"
    ));
    unit.free(&device);
    unit.detach("m2");
    let refused = unit
        .command(b"dissolve policy=minicopy")
        .expect_err("one source");
    assert_eq!(refused.errno, libc::EBUSY, "{refused:?}");
    assert!(
        refused.text.contains("m1 is the only source member"),
        "{refused:?}"
    );
    unit.minicopy("m2");
    eventually("its loop device is gone", || {
        unit.command(b"dissolve policy=minicopy dry-run").is_ok()
    });
    assert_eq!(unit.state_of("m2"), "source", "a dry run");
    let answer = unit.accepted("dissolve policy=minicopy");
    assert!(answer.0.contains("marked clean"), "{}", answer.0);
    unit.sh(&format!(
        "timeout 30 tail --pid={} -f /dev/null; ! [ -e $S ]",
        unit.pid()
    ));
    unit.gone();
    unit.assert_equal();
    unit.mount();
    assert_eq!(unit.read("state"), "steady\n");
    let operations = unit.status()["operations"]
        .as_array()
        .expect("a list")
        .len();
    assert_eq!(operations, 0, "it was clean");
    unit.stop();
}

#[test]
fn a_reader_of_the_control_tree_does_not_hold_a_dissolved_unit() {
    let mut unit = Unit::new(2, 8 * MIB);
    unit.sh("exec 7< $S/events
        [ \"$(head -n 1 <&7 | grep -c mounted)\" = 1 ]
        pid=$(cat $D/run/dsa1/pid)
        echo dissolve > $S/control
        timeout 30 tail --pid=$pid -f /dev/null
        ! [ -e $D/run/dsa1 ]");
    unit.gone();
    unit.assert_equal();
    unit.mount();
    assert_eq!(unit.read("state"), "steady\n");
    unit.stop();
}
