//! The command line on a running unit: what it prints, and its exit codes.

use serde_json::Value;

use crate::bed::{MIB, Plan, REGION, Ran, Thing, Unit};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Runs the program and checks its exit code.
fn shadowset(unit: &Unit, code: i32, line: &str) -> Ran {
    let ran = unit.try_sh(&format!("shadowset {line}"));
    assert_eq!(ran.code, code, "shadowset {line}: {ran:?}");
    ran
}

#[test]
fn a_unit_is_shown_in_every_manner() {
    let unit = Unit::new(2, 4 * MIB);
    let list = json(&shadowset(&unit, 0, "list --json").out);
    assert_eq!(list[0]["unit"], "dsa1");
    assert_eq!(list[0]["state"], "steady");
    assert_eq!(list[0]["pid"], unit.pid());
    assert_eq!(list[0]["mountpoint"].as_str(), unit.path("mnt").to_str());
    assert!(shadowset(&unit, 0, "list").out.contains("dsa1"));
    for name in ["dsa1", "$M", "$D/conf/dsa1.toml"] {
        let ran = shadowset(&unit, 0, &format!("status {name} --json"));
        let mut status = json(&ran.out);
        let mut own = unit.status();
        for status in [&mut status, &mut own] {
            status["time"].take();
        }
        assert_eq!(status, own, "{name}");
    }
    let text = shadowset(&unit, 0, "status").out;
    assert!(
        text.contains("dsa1") && text.contains("m2") && text.contains("source"),
        "{text}"
    );
    assert!(shadowset(&unit, 0, "show dsa1").out.contains("dsa1"));
    shadowset(&unit, 3, "status dsa9");
}

#[test]
fn the_whole_story_by_the_command_line() {
    let mut unit = Unit::new(3, 8 * MIB);
    let answer = json(&shadowset(&unit, 0, "detach dsa1 m3 --policy minicopy --json").out);
    let events = shadowset(&unit, 0, "events dsa1").out;
    assert!(events.contains("member-detached"), "{events}");
    assert_eq!(answer["ok"], true);
    let id = answer["bitmap"].as_str().expect("an id").to_owned();
    unit.sh("printf x | dd of=$U bs=1 seek=1M conv=notrunc status=none");
    let list = json(&shadowset(&unit, 0, "bitmap list dsa1 --json").out);
    assert_eq!(
        (&list[0]["member"], &list[0]["set_bits"]),
        (&"m3".into(), &1.into())
    );
    for name in ["m3", &id] {
        let one = shadowset(&unit, 0, &format!("bitmap show dsa1 {name}")).out;
        assert!(one.contains("set_bytes 65024\n"), "{one}");
        let ranges = shadowset(&unit, 0, &format!("bitmap extents dsa1 {name}")).out;
        assert_eq!(ranges, "2032 127\n");
    }
    let extents = json(&shadowset(&unit, 0, "bitmap extents dsa1 m3 --json").out);
    assert_eq!(extents[0]["start"], 2032 * 512);
    let plan = shadowset(&unit, 0, "attach dsa1 m3 --dry-run").out;
    assert!(
        plan.contains("verdict minicopy") && plan.contains("bytes 65024"),
        "{plan}"
    );
    assert_eq!(unit.state_of("m3"), "detached");
    let done = json(&shadowset(&unit, 0, "attach dsa1 m3 --policy minicopy --wait --json").out);
    assert_eq!(done["operation"]["copied_bytes"], 65024, "{done}");
    assert_eq!(unit.state_of("m3"), "source");
    let operation = done["operation"]["id"].as_u64().expect("a number");
    shadowset(&unit, 0, &format!("op wait dsa1 {operation}"));
    shadowset(&unit, 0, "wait dsa1 --for member=m3:source --timeout 5");
    shadowset(&unit, 0, "wait dsa1 --timeout 5");
    let ops = json(&shadowset(&unit, 0, "op list dsa1 --json").out);
    assert_eq!(ops[0]["id"], operation);
    unit.stop_and_compare();
    assert_eq!(
        json(&shadowset(&unit, 0, "list --json").out)[0]["state"],
        "not-mounted"
    );
}

#[test]
fn refusals_are_4_not_found_is_3_and_each_has_a_hint() {
    let unit = Unit::new(2, 4 * MIB);
    let says = |code: i32, line: &str, text: &str| {
        let err = shadowset(&unit, code, line).err;
        assert!(
            err.contains(text) && err.contains("\nhint: "),
            "{line}: {err}"
        );
    };
    says(3, "detach dsa1 m9", "shadowset: detach m9: ");
    shadowset(&unit, 0, "detach dsa1 m2 --policy none");
    says(
        4,
        "detach dsa1 m1",
        "shadowset: detach m1: m1 is the only source member\n",
    );
    says(
        4,
        "attach dsa1 m2 --policy minicopy",
        "shadowset: attach m2: ",
    );
    says(3, "op pause dsa1 99", "99");
    says(3, "bitmap show dsa1 m2", "");
    unit.sh("head -c 4M /dev/urandom > used.img");
    says(4, "attach dsa1 ./used.img", "--yes");
    let refused = json(&shadowset(&unit, 4, "detach dsa1 m1 --json").out);
    assert_eq!(
        (&refused["ok"], &refused["code"]),
        (&false.into(), &"last-source".into())
    );
    shadowset(&unit, 124, "wait dsa1 --for member=m2:source --timeout 0.2");
    shadowset(&unit, 0, "attach dsa1 ./used.img --yes --as m3 --wait");
    assert_eq!(unit.state_of("m3"), "source");
}

#[test]
fn a_loop_device_holds_the_unit_until_it_is_freed() {
    let mut unit = Unit::new(2, 4 * MIB);
    let device = unit.loop_device();
    let name = device.trim_start_matches("/dev/").to_owned();
    let direct = unit.sh(&format!("cat /sys/block/{name}/loop/dio"));
    assert_eq!(direct, "1", "direct I/O");
    assert_eq!(
        unit.sh(&format!("blockdev --getsize64 {device}")),
        (4 * MIB).to_string()
    );
    let busy = shadowset(&unit, 4, "stop dsa1").err;
    assert!(
        busy.contains("the unit is in use") && busy.contains("loop detach dsa1"),
        "{busy}"
    );
    assert_eq!(unit.status()["state"], "steady");
    let freed = shadowset(&unit, 0, "loop detach dsa1").out;
    assert_eq!(freed.trim(), device);
    shadowset(&unit, 3, "loop detach dsa1");
    unit.forget(&device);
    unit.stop_and_compare();
    shadowset(&unit, 3, "stop dsa1");
}

#[test]
fn a_second_loop_device_is_refused_and_names_the_first() {
    let unit = Unit::new(2, 4 * MIB);
    let device = unit.loop_device();
    let second = shadowset(&unit, 4, "loop attach dsa1").err;
    assert!(
        second.contains(&format!(
            "{device} is over the unit already\nhint: use {device}"
        )),
        "{second}"
    );
    assert_eq!(unit.sh("losetup -n -O NAME -j $U"), device);
}

#[test]
fn two_units_are_not_stacked_on_one_directory() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.sh("truncate -s 4M other.img
        shadowset create ./dsa2.toml --size 4M --member m1=other.img --state-dir $D/state2");
    let stacked = shadowset(&unit, 32, "mount ./dsa2.toml $M --log $D/log2").err;
    assert!(
        stacked.contains("dsa1 is mounted there\nhint: `shadowset stop dsa1`"),
        "{stacked}"
    );
    unit.sh("[ $(grep -c \" $M fuse.shadowset \" /proc/mounts) = 1 ]");
    assert_eq!(unit.status()["unit"], "dsa1");
    unit.stop();
    shadowset(&unit, 0, "mount ./dsa2.toml $M --log $D/log2");
    shadowset(&unit, 0, "stop dsa2 --wait");
}

#[test]
fn what_is_mounted_over_a_unit_is_not_taken_for_it() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.sh("mount -t tmpfs cover $M");
    let dir = unit.path("mnt");
    unit.keep(Thing::Mount(dir.clone()));
    // The unit itself answers, by its socket.
    for (line, says) in [
        ("status dsa1", "m1 "),
        ("detach dsa1 m2", "m2 is detached"),
        ("attach dsa1 m2 --wait", "is done"),
    ] {
        let out = shadowset(&unit, 0, line).out;
        assert!(out.contains(says), "{out}");
    }
    let says = shadowset(&unit, 4, "stop dsa1").err;
    assert!(says.contains("cover (tmpfs) is mounted over it"), "{says}");
    unit.take_away(&Thing::Mount(dir));
    assert_eq!(unit.state_of("m2"), "source");
    unit.stop_and_compare();
}

#[test]
fn a_dead_mount_goes_before_the_next_and_says_how() {
    let mut unit = Unit::new(2, 4 * MIB);
    let pid = unit.pid();
    unit.sh(&format!(
        "kill -9 {pid}; timeout 60 tail --pid={pid} -f /dev/null"
    ));
    unit.gone();
    let says = shadowset(&unit, 0, "mount dsa1 $M --log $D/log").err;
    assert!(
        says.contains("shadowset: warning: the dead mount of dsa1 on "),
        "{says}"
    );
    unit.sh("[ $(grep -c \" $M fuse.shadowset \" /proc/mounts) = 1 ]
        shadowset wait dsa1 --timeout 60");
    unit.stop_and_compare();
}

#[test]
fn a_dead_unit_that_is_stopped_by_force_says_which_devices_stay() {
    let mut unit = Unit::new(2, 4 * MIB);
    let device = unit.loop_device();
    let pid = unit.pid();
    unit.sh(&format!(
        "kill -9 {pid}; timeout 60 tail --pid={pid} -f /dev/null"
    ));
    unit.gone();
    let says = shadowset(&unit, 0, "stop dsa1 --force").err;
    assert!(
        says.starts_with(&format!("shadowset: warning: {device} stays over dsa1: ")),
        "{says}"
    );
    unit.sh(&format!("losetup -d {device}"));
    unit.forget(&device);
}

#[test]
fn a_dead_mount_in_use_is_taken_away_lazily_and_says_so() {
    let mut unit = Unit::new(2, 4 * MIB);
    let pid = unit.pid();
    let says = unit.sh(&format!(
        "exec 3< $U; kill -9 {pid}; timeout 60 tail --pid={pid} -f /dev/null
        shadowset mount dsa1 $M --log $D/log 2>&1"
    ));
    unit.gone();
    assert!(
        says.contains(" is taken away lazily: it is still in use"),
        "{says}"
    );
    unit.sh("shadowset wait dsa1 --timeout 60");
    unit.stop_and_compare();
}

#[test]
fn a_mount_without_a_member_says_which_and_why() {
    let mut unit = Unit::new(3, 4 * MIB);
    unit.stop();
    unit.sh("mv $I/m2.img kept");
    let ran = shadowset(&unit, 0, "mount dsa1 $M --log $D/log");
    assert!(
        ran.err.starts_with("shadowset: warning: m2 is missing: "),
        "{ran:?}"
    );
    assert_eq!((ran.err.lines().count(), ran.out.as_str()), (1, ""));
    shadowset(&unit, 0, "stop dsa1 --wait");
}

#[test]
fn a_unit_that_is_mounted_read_only_takes_no_commands() {
    let mut unit = Plan::new(2, 4 * MIB).options("ro").mount();
    for line in ["detach dsa1 m2", "loop attach dsa1"] {
        let says = shadowset(&unit, 4, line).err;
        assert!(
            says.contains("dsa1 is mounted read-only and ") && !says.contains("image"),
            "{says}"
        );
    }
    unit.stop();
}

#[test]
fn a_unit_that_is_mounted_read_only_is_merged_and_becomes_steady() {
    let mut unit = Plan::new(3, 64 * MIB).options("ro").create();
    // The first mount can be written, and its server dies over a write.
    unit.sh("shadowset mount dsa1 $M --log $D/log > /dev/null
        head -c 64M /dev/urandom > $D/data; dd if=$D/data of=$U bs=1M conv=notrunc status=none
        pid=$(cat $D/run/dsa1/pid); kill -9 $pid; timeout 60 tail --pid=$pid -f /dev/null");
    unit.mount();
    assert_eq!(unit.read("state"), "read-only\n");
    assert_eq!(unit.status()["read_only"], true);
    let kinds = unit.sh("cat $S/operations/*/kind | sort -u");
    assert_eq!(kinds, "minimerge");
    shadowset(&unit, 0, "wait dsa1 --timeout 60");
    let text = shadowset(&unit, 0, "status dsa1").out;
    assert!(text.contains("read-only, writes are refused"), "{text}");
    unit.sh("cmp $U $D/data; sync $U
        (printf x > $U) 2> says && exit 1; grep -q 'Read-only' says
        (echo stall 5 > $C) 2> says && exit 1; grep -q 'Read-only' says
        touch $U 2> says && exit 1; grep -q 'Read-only' says
        dev=$(losetup -r -f --show $U); cmp $dev $D/data; losetup -d $dev");
    // A lost member is told, although the state says something else.
    unit.stop();
    unit.assert_equal();
    unit.sh("mv $I/m2.img kept; mv $I/m2.scb kept.scb");
    unit.mount();
    assert_eq!(unit.read("state"), "read-only\n");
    shadowset(&unit, 5, "status dsa1");
    let says = shadowset(&unit, 124, "wait dsa1 --timeout 0.2").err;
    assert!(says.contains("dsa1 is not steady: m2 is missing"), "{says}");
    unit.stop();
    unit.sh("mv kept $I/m2.img; mv kept.scb $I/m2.scb");
    unit.assert_equal();
}

#[test]
fn hints_are_words_of_the_command_line() {
    let unit = Unit::new(2, 192 * MIB);
    unit.sh("head -c 192M /dev/zero | tr '\\0' x | dd of=$U bs=1M conv=notrunc iflag=fullblock status=none");
    unit.accepted("detach m2 policy=none");
    let hint = |line: &str| {
        let ran = unit.try_sh(&format!("shadowset {line}"));
        let hint = ran.err.lines().last().expect("a hint").to_owned();
        assert_eq!(ran.code, 4, "{line}: {ran:?}");
        hint
    };
    assert_eq!(
        hint("attach dsa1 m2 --policy minicopy"),
        "hint: use --policy minicopy=optional to copy everything"
    );
    assert_eq!(
        hint("attach dsa1 m2 --policy nocopy"),
        "hint: leave out --policy nocopy"
    );
    unit.accepted("set copy_rate_max 8M");
    let op = unit.accepted("attach m2 policy=full").number("operation");
    unit.accepted(&format!("pause {op}"));
    let text = shadowset(&unit, 0, "status dsa1").out;
    assert!(text.contains("paused") && !text.contains("eta"), "{text}");
    assert_eq!(
        hint("detach dsa1 m2"),
        format!("hint: `shadowset op cancel dsa1 {op}`, or wait: `shadowset wait dsa1`")
    );
    shadowset(&unit, 0, &format!("op cancel dsa1 {op}"));
}

#[test]
fn an_open_unit_is_busy_and_stop_waits_for_it_when_asked() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.sh("exec 3<> $U
        shadowset stop dsa1 && exit 1 || [ $? = 4 ]
        shadowset stop dsa1 --wait 3>&- & stopper=$!
        printf x >&3; exec 3>&-; wait $stopper");
    unit.gone();
    unit.assert_equal();
    assert_eq!(unit.contents("m2")[0], b'x');
}

#[test]
fn a_mount_that_cannot_be_is_32_and_says_why() {
    let unit = Unit::new(2, 4 * MIB);
    unit.sh("mkdir second");
    let again = shadowset(&unit, 32, "mount dsa1 second --log $D/log2").err;
    assert!(
        again.starts_with("shadowset: mount dsa1: ") && again.contains("\nhint: "),
        "{again}"
    );
    let locked = "mount none second -o unit=dsa2,members=$I/m1.img:$I/m2.img --log $D/log2";
    let locked = shadowset(&unit, 32, locked).err;
    assert!(
        locked.contains("images/m1.img is in use by another set or program\nhint: "),
        "{locked}"
    );
    assert_eq!(
        unit.sh("ls -A second; grep second /proc/mounts || true"),
        "",
        "no mount"
    );
    assert_eq!(unit.status()["state"], "steady");
    shadowset(&unit, 1, "mount dsa1 second -o colour=blue");
    shadowset(&unit, 32, "mount dsa9 second");
    shadowset(&unit, 32, "mount dsa1 $D/nowhere --log $D/log2");
}

#[test]
fn create_takes_one_members_data_and_copies_it_at_the_first_mount() {
    let mut unit = Plan::new(1, 4 * MIB).create();
    unit.sh(
        "head -c 4M /dev/urandom > a.img; head -c 4M /dev/urandom > b.img; cp a.img kept
        cat > conf/dsa1.toml <<END
state_dir = \"$D/state\"
[[member]]
name = \"a\"
path = \"$D/a.img\"
[[member]]
name = \"b\"
path = \"$D/b.img\"
END",
    );
    let refused = shadowset(&unit, 4, "create dsa1").err;
    assert!(refused.contains("hint: "), "{refused}");
    unit.sh("shadowset create dsa1 --from a --erase");
    unit.mount();
    unit.sh("shadowset wait dsa1 --timeout 60; cmp $U kept");
    unit.stop();
    unit.sh("cmp a.img kept; cmp b.img kept");
}

#[test]
fn a_lost_member_makes_the_status_5_until_it_is_back() {
    let mut unit = Unit::new(3, 8 * MIB);
    unit.sh(
        "head -c 8M /dev/urandom | dd of=$U bs=1M conv=notrunc,fsync iflag=fullblock status=none",
    );
    unit.accepted("expel m2");
    assert_eq!(unit.state_of("m2"), "expelled");
    assert_eq!(unit.read("state"), "reduced\n");
    let text = shadowset(&unit, 5, "status dsa1").out;
    assert!(text.contains("expelled"), "{text}");
    unit.sh("printf x | dd of=$U bs=1 seek=3M conv=notrunc status=none");
    // What was in flight or not yet known to be on all disks is marked as well.
    assert!(unit.bitmap("m2", "set_bytes") >= REGION);
    unit.minicopy("m2");
    shadowset(&unit, 0, "status dsa1");
    unit.stop_and_compare();
}

#[test]
fn a_watch_shows_each_change_and_ends_well_when_the_unit_is_taken_away() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.sh("shadowset status dsa1 --watch --json > watched & watcher=$!
        until grep -q steady watched; do :; done
        shadowset detach dsa1 m2
        until grep -q '\"detached\"' watched; do :; done
        shadowset stop dsa1 && exit 1 || [ $? = 4 ]
        shadowset stop dsa1 --force; wait $watcher; shadowset stop dsa1 || [ $? = 3 ]");
    unit.gone();
    unit.assert_equal();
}

#[test]
fn a_signal_takes_away_the_unit_and_not_what_is_mounted_over_it() {
    let mut unit = Unit::new(2, 4 * MIB);
    let pid = unit.pid();
    unit.sh("mount -t tmpfs cover $M; echo mine > $M/file");
    let dir = unit.path("mnt");
    unit.keep(Thing::Mount(dir.clone()));
    unit.sh(&format!(
        "kill -TERM {pid}; until grep -q 'cannot be unmounted' log; do :; done
        kill -TERM {pid}; until [ $(grep -c 'cannot be unmounted' log) = 2 ]; do :; done
        grep -qx mine $M/file"
    ));
    unit.take_away(&Thing::Mount(dir));
    assert_eq!(unit.status()["state"], "steady");
    unit.stop_and_compare();
}

#[test]
fn members_that_are_not_marked_clean_make_a_stop_fail() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.stop();
    // The server can write no file beyond so many bytes, and no block of a member below.
    unit.sh("trap '' XFSZ; shadowset mount dsa1 $M --log $D/log --json > mounted");
    let pid = unit.sh("grep -o '\"pid\":[0-9]*' mounted | cut -d: -f2");
    let says = unit.try_sh(&format!(
        "printf x | dd of=$U conv=notrunc status=none; prlimit --pid {pid} --fsize=1000
        shadowset stop dsa1 --wait"
    ));
    assert_eq!(says.code, 1, "{says:?}");
    assert!(says.err.starts_with("shadowset: stop dsa1: "), "{says:?}");
    let again = shadowset(&unit, 1, "stop dsa1").err;
    assert_eq!(
        again, says.err,
        "it is told as long as nobody mounts the unit"
    );
    unit.mount();
    unit.sh("shadowset wait dsa1 --timeout 60");
    unit.stop_and_compare();
    shadowset(&unit, 3, "stop dsa1");
}

#[test]
fn a_server_that_is_killed_while_it_is_stopped_is_no_good_end() {
    let mut unit = Unit::new(2, 4 * MIB);
    let pid = unit.pid();
    let says = unit.sh(&format!(
        "exec 3< $U; shadowset stop dsa1 --wait 3<&- 2> says & stopper=$!
        until readlink /proc/$stopper/fd/* | grep -q pidfd; do kill -0 $stopper; done
        shadowset stop dsa1 3<&- 2> /dev/null && exit 1
        kill -9 {pid}; wait $stopper && exit 1 || [ $? = 1 ]; cat says"
    ));
    unit.gone();
    unit.keep(Thing::Mount(unit.path("mnt")));
    assert!(
        says.starts_with("shadowset: stop dsa1: the server was killed\nhint: "),
        "{says}"
    );
}

#[test]
fn an_attach_by_a_link_is_waited_for() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.stop();
    unit.sh("mv $I/m2.img real.img; ln -s ../real.img $I/m2.img");
    unit.mount();
    unit.sh("truncate -s 4M m3.img; ln -s m3.img link");
    unit.accepted("detach m2 policy=none");
    for (path, members) in [("./link", 3), ("$I/m2.img", 3)] {
        let line = format!("attach dsa1 {path} --policy full --yes --wait --json");
        let done = json(&shadowset(&unit, 0, &line).out);
        assert_eq!(done["operation"]["state"], "done", "{done}");
        let status = unit.status();
        assert_eq!(status["members"].as_array().map(Vec::len), Some(members));
    }
    assert_eq!(unit.read("state"), "steady\n");
}

#[test]
fn an_attach_that_can_no_longer_end_well_is_not_waited_for() {
    let unit = Unit::new(2, 64 * MIB);
    unit.sh("head -c 64M /dev/zero | tr '\\0' x | dd of=$U bs=1M conv=notrunc iflag=fullblock status=none");
    unit.accepted("detach m2 policy=none");
    // It must not be over before it is cancelled.
    unit.accepted("set copy_rate_max 8M");
    let script = "shadowset attach dsa1 m2 --policy full --wait > waited 2>&1 & waiter=$!
        until grep -q operation waited; do :; done
        n=$(grep -o 'operation [0-9]*' waited | head -n 1 | cut -d' ' -f2)
        shadowset op cancel dsa1 $n || true
        wait $waiter; echo $?";
    let ran = unit.try_sh(script);
    assert_eq!(ran.out.lines().last(), Some("4"), "{ran:?}");
    assert!(unit.sh("cat waited").contains("was cancelled"));
}

#[test]
fn create_overwrites_no_data_unless_told_to() {
    let unit = Plan::new(2, 4 * MIB).create();
    unit.sh("head -c 4M /dev/urandom > p1; head -c 4M /dev/urandom > p2; cp p2 kept");
    let create = "create new --member a=$D/p1 --member b=$D/p2 --state-dir $D/s";
    for from in ["", " --from a"] {
        let refused = shadowset(&unit, 4, &format!("{create}{from}")).err;
        assert!(
            refused.contains("is not blank") && refused.contains("--erase"),
            "{refused}"
        );
        unit.sh("cmp p2 kept; ! test -e p2.scb");
    }
    shadowset(&unit, 0, &format!("{create} --from a --erase"));
    unit.sh("truncate -s 0 p3; truncate -s 4M p3; head -c 4M /dev/urandom > p4");
    let create = "create other --member a=$D/p4 --member b=$D/p3 --state-dir $D/o --from a";
    shadowset(&unit, 0, create);
}
