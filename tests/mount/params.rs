//! Parameters of a mounted unit: through its files, its commands, its configuration and the command line.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bed::{MIB, Plan, Thing, Unit, eventually};

/// Value of a parameter in `status.json`.
fn param(unit: &Unit, name: &str) -> Value {
    unit.status()["params"][name].clone()
}

/// States of the operations that have not ended, by target.
fn copies(unit: &Unit) -> Vec<(String, String)> {
    let status = unit.status();
    let text = |op: &Value, key: &str| op[key].as_str().expect("a text").to_owned();
    let all = status["operations"].as_array().expect("a list");
    let all = all
        .iter()
        .map(|op| (text(op, "target"), text(op, "state")))
        .filter(|(_, state)| state == "running" || state == "queued" || state == "paused");
    all.collect()
}

#[test]
fn a_parameter_is_set_by_its_file_and_by_a_command() {
    let unit = Unit::new(2, 4 * MIB);
    let dir = unit.path("mnt/.shadow/params");
    let mode = |name: &str| {
        let meta = fs::metadata(dir.join(name)).expect("there");
        meta.permissions().mode() & 0o7777
    };
    assert_eq!(
        (mode(""), mode("HELP"), mode("max_copies")),
        (0o755, 0o444, 0o600)
    );
    assert_eq!(unit.sh("cat $M/.shadow/params/max_copies"), "4");
    unit.sh("echo 2 > $M/.shadow/params/max_copies");
    assert_eq!(unit.sh("cat $M/.shadow/params/max_copies"), "2");
    let answer = unit.accepted("set max_copies 3");
    assert_eq!((answer.number("value"), answer.number("old")), (3, 2));
    assert_eq!(param(&unit, "max_copies"), 3);
    for (command, errno, code) in [
        ("set max_copies 201", libc::EINVAL, "out-of-range"),
        ("set max_copies few", libc::EINVAL, "syntax"),
        ("set max_copies", libc::EINVAL, "syntax"),
        ("set copies 1", libc::ENOENT, "no-such-parameter"),
        (
            "set default_detach_policy full",
            libc::EINVAL,
            "out-of-range",
        ),
    ] {
        let refused = unit.command(command.as_bytes()).expect_err(command);
        assert_eq!(refused.errno, errno, "{refused:?}");
        assert!(
            refused.text.starts_with(&format!("error: {code} ")),
            "{refused:?}"
        );
    }
    let refused = unit
        .command_on("params/max_copies", b"201")
        .expect_err("too many");
    let says =
        "error: out-of-range EINVAL\nmax_copies takes 0 to 200 copies, not 201\n  201\n  ^\n";
    assert!(refused.text.starts_with(says), "{refused:?}");
    assert_eq!(param(&unit, "max_copies"), 3);
    let events = unit.sh("cat $M/.shadow/events");
    let set: Vec<&str> = events
        .lines()
        .filter(|l| l.contains("\"parameter-set\""))
        .collect();
    assert_eq!(set.len(), 2, "{events}");
    let facts = "\"parameter\":\"max_copies\",\"old\":\"2\",\"new\":\"3\"";
    assert!(set[1].contains(facts), "{events}");
}

#[test]
fn copies_are_held_and_start_when_they_may() {
    let unit = Plan::new(3, 4 * MIB).options("max_copies=0").mount();
    unit.accepted("detach m2");
    unit.accepted("detach m3");
    for member in ["m2", "m3"] {
        unit.accepted(&format!("attach {member} policy=full"));
    }
    let waits = |m: &str| (m.to_owned(), "queued".to_owned());
    assert_eq!(copies(&unit), [waits("m2"), waits("m3")]);
    unit.accepted("set priority 0");
    unit.accepted("set max_copies 1");
    assert_eq!(
        copies(&unit),
        [waits("m2"), waits("m3")],
        "the priority is 0"
    );
    unit.accepted("set priority 1");
    unit.sh("shadowset wait dsa1 --timeout 30");
    assert_eq!(unit.state_of("m2"), "source");
    assert_eq!(unit.state_of("m3"), "source");
    let events = unit.sh("grep -o 'copy-[a-z]*\",\"operation\":\"[0-9]*' $M/.shadow/events");
    let started: Vec<&str> = events.lines().filter(|l| l.contains("started")).collect();
    let order = [1, 2].map(|op| format!("copy-started\",\"operation\":\"{op}"));
    assert_eq!(started, order, "{events}");
}

#[test]
fn a_detach_that_does_not_say_goes_by_the_parameter() {
    let unit = Unit::new(3, 4 * MIB);
    unit.accepted("set default_detach_policy none");
    let answer = unit.accepted("detach m3");
    assert!(!answer.0.contains("bitmap 0"), "{}", answer.0);
    let answer = unit.accepted("detach m2 policy=minicopy");
    assert!(answer.0.contains("bitmap 0"), "{}", answer.0);
}

#[test]
fn a_value_is_kept_in_the_configuration_and_in_force_at_the_next_mount() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.sh("printf '# mine\n[params]\npriority = 9 # nine\n' >> $D/conf/dsa1.toml");
    unit.sh("chmod 640 $D/conf/dsa1.toml");
    let before = unit.sh("cat $D/conf/dsa1.toml");
    unit.sh("shadowset params set dsa1 max_copies 7");
    assert_eq!(unit.sh("cat $D/conf/dsa1.toml"), before);
    unit.sh("shadowset params set $M max_copies 6 --persist");
    unit.sh("shadowset params set dsa1 priority 0 --persist");
    let expected = before.replace("priority = 9", "priority = 0") + "\nmax_copies = 6";
    assert_eq!(unit.sh("cat $D/conf/dsa1.toml"), expected);
    assert_eq!(unit.sh("stat -c %a $D/conf/dsa1.toml"), "640");
    assert_eq!(unit.sh("ls -A $D/conf"), "dsa1.toml");
    unit.stop();
    unit.mount();
    assert_eq!(
        (param(&unit, "max_copies"), param(&unit, "priority")),
        (6.into(), 0.into())
    );
    unit.stop();
    unit.sh("sed -i 's/max_copies = 6/max_copies = 600/' $D/conf/dsa1.toml");
    let ran = unit.try_sh("shadowset mount $D/conf/dsa1.toml $M");
    assert_eq!(ran.code, 32, "{ran:?}");
    assert!(
        ran.err
            .contains("max_copies: takes 0 to 200 copies, not 600"),
        "{ran:?}"
    );
}

#[test]
fn the_command_line_lists_gets_and_sets() {
    let unit = Plan::new(2, 4 * MIB).options("command_timeout=20").mount();
    let list = unit.sh("shadowset params list dsa1");
    let lines: Vec<Vec<&str>> = list
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    let timeout = lines
        .iter()
        .find(|l| l[0] == "command_timeout")
        .expect("listed");
    assert_eq!(timeout[..3], ["command_timeout", "20", "30"]);
    let json = unit.sh("shadowset params list dsa1 --json");
    let mut json: Value = serde_json::from_str(&json).expect("JSON");
    let all = json.as_object_mut().expect("an object");
    let of_members: Vec<_> = all
        .keys()
        .filter(|name| name.contains('.'))
        .cloned()
        .collect();
    let names = ["m1", "m2"].map(|m| ["read_cost", "site", "timeout"].map(|p| format!("{m}.{p}")));
    assert_eq!(of_members, names.concat());
    all.retain(|name, _| !name.contains('.'));
    assert_eq!(json, unit.status()["params"]);
    assert_eq!(unit.sh("shadowset params get dsa1 command_timeout"), "20");
    let one = unit.sh("shadowset --json params get dsa1 command_timeout");
    assert_eq!(one, "{\"parameter\":\"command_timeout\",\"value\":20}");
    for (line, code, says) in [
        ("get dsa1 rate", 3, "there is no parameter rate"),
        ("set dsa1 rate 1", 3, "set rate: there is no parameter rate"),
        (
            "set dsa1 max_copies -1",
            2,
            "max_copies takes 0 to 200 copies, not -1",
        ),
        (
            "set dsa1 max_copies 999 --persist",
            2,
            "max_copies takes 0 to 200",
        ),
    ] {
        let ran = unit.try_sh(&format!("shadowset params {line}"));
        assert_eq!(ran.code, code, "{line}: {ran:?}");
        assert!(ran.err.contains(says), "{line}: {ran:?}");
    }
    assert_eq!(param(&unit, "max_copies"), 4);
    let names = unit.sh("shadowset complete -- params get dsa1 default_");
    assert!(
        names.starts_with("default_detach_policy\t"),
        "completions know the names: {names}"
    );
}

#[test]
fn nothing_is_kept_for_a_unit_without_a_configuration() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.stop();
    unit.sh("for m in m1 m2; do mv $I/$m.scb $I/$m.img.scb; done");
    unit.sh("shadowset mount none $M -o members=$I/m1.img:$I/m2.img,unit=dsa1,durability=memory");
    let ran = unit.try_sh("shadowset params set dsa1 max_copies 1 --persist");
    let kept = (ran.code, param(&unit, "max_copies"));
    unit.sh("shadowset stop dsa1");
    assert_eq!(kept, (1, 4.into()), "{ran:?}");
    assert!(
        ran.err.contains("mounted without a configuration"),
        "{ran:?}"
    );
}

#[test]
fn intent_begins_anew_as_often_as_the_parameter_says() {
    let unit = Plan::new(2, 4 * MIB).options("hbmm_rtc=65535").mount();
    let write = || unit.sh("printf x | dd of=$U bs=1 seek=1M conv=notrunc,fsync status=none");
    let announced = || {
        let stats = unit.read("stats/bitmap");
        let line = stats.lines().find_map(|l| l.strip_prefix("announcements "));
        line.expect("a line").parse::<u64>().expect("a number")
    };
    write();
    let first = announced();
    assert!(first > 0, "the first write marks its region");
    write();
    assert_eq!(announced(), first, "the mark stands");
    unit.accepted("set hbmm_rtc 1");
    eventually("the region is announced anew", || {
        write();
        announced() > first
    });
}

#[test]
fn a_node_serves_as_many_units_as_it_may() {
    let unit = Unit::new(2, 4 * MIB);
    unit.sh("echo 'max_units = 1' > $D/conf/node.toml; mkdir $D/second $D/state2; truncate -s 1M $I/x1.img");
    unit.sh("shadowset create dsa2 --size 1M --member m1=$I/x1.img --state-dir $D/state2");
    let list = unit.sh("shadowset list");
    assert!(list.contains("dsa2") && !list.contains("node"), "{list}");
    let ran = unit.try_sh("shadowset mount dsa2 $D/second --log $D/log2");
    assert_eq!(ran.code, 32, "{ran:?}");
    let says =
        "shadowset: mount dsa2: this node serves at most 1 unit\nhint: stop another unit first";
    assert!(ran.err.starts_with(says), "{ran:?}");
    assert_eq!(unit.sh("ls $D/run"), "dsa1", "nothing is left of it");
    unit.sh("echo 'max_units = 2' > $D/conf/node.toml");
    unit.sh("shadowset mount dsa2 $D/second --log $D/log2; shadowset stop dsa2");
}

#[test]
fn cost_and_site_of_a_member_are_set_and_kept() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.sh("echo 5 > $M/.shadow/members/m1/read_cost");
    assert_eq!(unit.read("members/m1/read_cost"), "5\n");
    let answer = unit.accepted("set m2.site 3");
    assert_eq!((answer.number("value"), answer.number("old")), (3, 0));
    for (command, code) in [
        ("set m9.site 3", "no-such-member ENOENT"),
        ("set m1.weight 3", "no-such-parameter ENOENT"),
        ("set m1.site x", "syntax EINVAL"),
        ("set m1.site 256", "out-of-range EINVAL"),
    ] {
        let refused = unit.command(command.as_bytes()).expect_err(command);
        assert!(
            refused.text.starts_with(&format!("error: {code}\n")),
            "{refused:?}"
        );
    }
    let events = unit.sh("cat $M/.shadow/events");
    assert!(
        events.contains("\"parameter\":\"m1.read_cost\",\"old\":\"2\",\"new\":\"5\""),
        "{events}"
    );
    assert_eq!(unit.sh("shadowset params get dsa1 m2.site"), "3");
    unit.sh("shadowset params set dsa1 m2.read_cost 9 --persist");
    unit.stop();
    unit.mount();
    assert_eq!(unit.read("members/m2/read_cost"), "9\n");
    assert_eq!(unit.read("members/m1/read_cost"), "2\n", "it was not kept");
}

#[test]
fn copies_of_a_mount_begin_when_they_have_waited() {
    let mut unit = Plan::new(3, 4 * MIB).mount();
    unit.accepted("set max_copies 0");
    unit.accepted("detach m3");
    unit.accepted("attach m3 policy=full");
    unit.stop();
    unit.sh("printf '[params]\nrec_dly = 65535\n' >> $D/conf/dsa1.toml");
    unit.mount();
    assert_eq!(copies(&unit), [("m3".to_owned(), "queued".to_owned())]);
    unit.accepted("detach m2");
    unit.sh("shadowset attach dsa1 m2 --wait");
    assert_eq!(unit.state_of("m2"), "source", "a command does not wait");
    assert_eq!(copies(&unit), [("m3".to_owned(), "queued".to_owned())]);
    // Longer than the mount is old, so that the end of the time is seen by itself.
    unit.accepted("set rec_dly 5");
    unit.sh("shadowset wait dsa1 --timeout 30");
    assert_eq!(unit.state_of("m3"), "source");
}

/// A copy keeps its largest rate, another one holds at once, and nothing is copied anew.
#[test]
fn a_rate_holds_at_once_and_loses_nothing() {
    let unit = Unit::new(2, 8 * MIB);
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=8 conv=notrunc status=none");
    unit.accepted("detach m2 policy=none");
    unit.accepted("set copy_rate_max 64k");
    let number = unit.accepted("attach m2 policy=full").number("operation");
    let done = || {
        let progress = unit.read(&format!("operations/{number}/progress"));
        let line = progress.lines().find(|l| l.starts_with("done_bytes "));
        line.and_then(|l| l.split(' ').nth(1)?.parse::<u64>().ok())
    };
    eventually("the first steps end", || done() > Some(0));
    let before = done();
    assert!(
        before < Some(8 * MIB),
        "two steps are most of the first minute: {before:?}"
    );
    assert_eq!(
        unit.read(&format!("operations/{number}/state")).trim(),
        "running"
    );
    unit.accepted("set copy_rate_max max");
    let operation = unit.finished(number);
    assert_eq!(operation["copied_bytes"].as_u64(), Some(8 * MIB));
    unit.sh("cmp $I/m1.img $I/m2.img");
}

/// The contents of a file of an operation, without its line end.
fn of_operation(unit: &Unit, number: u64, file: &str) -> String {
    let text = unit.read(&format!("operations/{number}/{file}"));
    text.trim_end().to_owned()
}

/// Bytes that an operation has done.
fn done_bytes(unit: &Unit, number: u64) -> u64 {
    let progress = of_operation(unit, number, "progress");
    let line = progress.lines().find_map(|l| l.strip_prefix("done_bytes "));
    line.expect("a line").parse().expect("a number")
}

/// One copy keeps its own rate while another one that shares its reads does not wait for it.
#[test]
fn an_operation_has_a_rate_of_its_own() {
    let unit = Unit::new(3, 8 * MIB);
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=8 conv=notrunc status=none");
    unit.accepted("detach m2 policy=none");
    unit.accepted("detach m3 policy=none");
    unit.accepted("set max_copies 0");
    let slow = unit.accepted("attach m2 policy=full").number("operation");
    let free = unit.accepted("attach m3 policy=full").number("operation");
    assert_eq!(of_operation(&unit, slow, "rate_max"), "max");
    let file = format!("operations/{slow}/rate_max");
    let answer = unit.command_on(&file, b"64k\n").expect("a rate");
    assert_eq!((answer.text("value"), answer.text("old")), ("65536", "max"));
    assert_eq!(of_operation(&unit, slow, "rate_max"), "65536");
    for (value, code) in [
        ("fast", "syntax EINVAL"),
        ("0", "out-of-range EINVAL"),
        ("1 2", "syntax EINVAL"),
        ("-1", "syntax EINVAL"),
    ] {
        let refused = unit.command_on(&file, value.as_bytes()).expect_err(value);
        let says = format!("error: {code}\n");
        assert!(refused.text.starts_with(&says), "{value}: {refused:?}");
    }
    assert_eq!(of_operation(&unit, slow, "rate_max"), "65536");
    unit.accepted("set max_copies 2");
    // Also where the free one leads a step, which the other joins only when it may.
    let operation = unit.finished(free);
    assert_eq!(operation["copied_bytes"].as_u64(), Some(8 * MIB));
    assert!(done_bytes(&unit, slow) < 4 * MIB, "it has its own rate");
    assert_eq!(of_operation(&unit, slow, "state"), "running");
    unit.accepted(&format!("set {slow}.rate_max max"));
    let operation = unit.finished(slow);
    assert_eq!(operation["copied_bytes"].as_u64(), Some(8 * MIB));
    unit.sh("cmp $I/m1.img $I/m2.img && cmp $I/m1.img $I/m3.img");
    let events = unit.sh("cat $M/.shadow/events");
    let facts = format!("\"parameter\":\"{slow}.rate_max\",\"old\":\"65536\",\"new\":\"max\"");
    assert!(events.contains(&facts), "{events}");
    let refused = unit.command_on(&file, b"1M").expect_err("it has ended");
    let says = format!("error: state-changed EAGAIN\noperation {slow} is done already\n");
    assert!(refused.text.starts_with(&says), "{refused:?}");
    assert_eq!(of_operation(&unit, slow, "rate_max"), "max");
    let refused = unit.command(b"set 99.rate_max 1M").expect_err("unknown");
    assert!(
        refused
            .text
            .starts_with("error: no-such-operation ENOENT\n")
    );
}

/// A rate of its own lifts no operation above that of the unit; the other way round is tested above.
#[test]
fn the_lower_rate_holds() {
    let unit = Unit::new(2, 8 * MIB);
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=8 conv=notrunc status=none");
    unit.accepted("detach m2 policy=none");
    unit.accepted("set max_copies 0");
    unit.accepted("set copy_rate_max 64k");
    let number = unit.accepted("attach m2 policy=full").number("operation");
    unit.accepted(&format!("set {number}.rate_max 1G"));
    unit.accepted("set max_copies 1");
    eventually("the first steps end", || done_bytes(&unit, number) > 0);
    assert_eq!(of_operation(&unit, number, "state"), "running");
    assert!(done_bytes(&unit, number) < 8 * MIB);
    // It ends at once, though its next step would be due in half a minute.
    let begun = Instant::now();
    unit.accepted(&format!("set {number}.rate_max 1"));
    unit.accepted(&format!("cancel {number}"));
    assert_eq!(unit.state_of("m2"), "detached");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// A second unit of the same node, with a copy that waits.
const SECOND_UNIT: &str = "
mkdir $D/second $D/state2; truncate -s 24M $I/x1.img $I/x2.img
shadowset create dsa2 --size 24M --member m1=$I/x1.img --member m2=$I/x2.img --state-dir $D/state2
shadowset mount dsa2 $D/second --log $D/log2
dd if=/dev/urandom of=$D/second/dsa2 bs=1M count=24 conv=notrunc status=none
echo detach m2 policy=none > $D/second/.shadow/control
echo set max_copies 0 > $D/second/.shadow/control
echo attach m2 policy=full > $D/second/.shadow/control";

/// Bytes that the copy of the second unit has done.
fn done_by_second(unit: &Unit) -> u64 {
    let line = unit.sh("grep -h ^done_bytes $D/second/.shadow/operations/*/progress");
    line["done_bytes ".len()..].parse().expect("a number")
}

/// A unit beside another one of 24 MiB, with a copy of each that waits; the node reads 4 MiB a second.
fn two_units(mib: u64) -> (Unit, u64) {
    let mut unit = Plan::new(2, mib * MIB).create();
    unit.sh("echo 'copy_rate_max = \"4M\"' > $D/conf/node.toml");
    unit.mount();
    unit.sh(&format!(
        "dd if=/dev/urandom of=$U bs=1M count={mib} conv=notrunc status=none"
    ));
    unit.accepted("detach m2 policy=none");
    unit.accepted("set max_copies 0");
    let number = unit.accepted("attach m2 policy=full").number("operation");
    unit.sh(SECOND_UNIT);
    unit.keep(Thing::Mount(unit.path("second")));
    (unit, number)
}

/// Two steps of each unit may begin before anything has to be waited for.
const AHEAD: u64 = 4 * 32 * 127 * 512;

#[test]
fn copies_of_all_units_share_the_rate_of_the_node() {
    let (unit, number) = two_units(24);
    let begun = Instant::now();
    unit.accepted("set max_copies 1");
    unit.sh("echo set max_copies 1 > $D/second/.shadow/control");
    unit.finished(number);
    unit.sh("shadowset wait dsa2 --timeout 60");
    let (bytes, took) = (48 * MIB, begun.elapsed().as_secs_f64());
    let rate = (bytes - AHEAD) as f64 / took / MIB as f64;
    assert!(rate <= 4.2, "{rate} MiB/s together in {took} s");
    assert!(rate >= 2.0, "{rate} MiB/s together in {took} s");
    unit.take_away(&Thing::Mount(unit.path("second")));
}

/// Whoever dies leaves its part of the rate to the others.
#[test]
fn a_unit_that_is_killed_takes_nothing_of_the_rate_with_it() {
    let (unit, number) = two_units(64);
    unit.accepted("set max_copies 1");
    unit.sh("echo set max_copies 1 > $D/second/.shadow/control");
    eventually("both copy", || {
        done_bytes(&unit, number) > 0 && done_by_second(&unit) > 0
    });
    unit.sh("kill -9 $(cat $D/run/dsa2/pid)");
    let (before, begun) = (done_bytes(&unit, number), Instant::now());
    unit.finished(number);
    let took = begun.elapsed().as_secs_f64();
    let rate = (64 * MIB - before) as f64 / took / MIB as f64;
    // All of the rate and two seconds for what the dead one has read are 17 s, half of the rate is 30 s.
    assert!(
        took < 25.0,
        "{rate} MiB/s alone in {took} s, from {before} on"
    );
    assert!(
        rate <= 8.0,
        "{rate} MiB/s alone in {took} s, from {before} on"
    );
}

/// Threads of an operation: one for each step that may be under way.
fn threads(unit: &Unit, number: u64) -> usize {
    // One may end between its name and the look at it.
    let all = unit.sh("cat /proc/$(cat $D/run/dsa1/pid)/task/*/comm 2> /dev/null || true");
    let name = format!("copy-{number}");
    all.lines().filter(|line| *line == name).count()
}

#[test]
fn a_copy_does_as_many_steps_at_once_as_the_parameter_says() {
    let unit = Plan::new(2, 8 * MIB).options("max_copies=0").mount();
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=8 conv=notrunc status=none");
    unit.accepted("detach m2 policy=none");
    let number = unit.accepted("attach m2 policy=full").number("operation");
    unit.accepted(&format!("set {number}.rate_max 64k"));
    unit.accepted("set max_copies 1");
    eventually("two unless told otherwise", || threads(&unit, number) == 2);
    // Many leave at the same time, and none too many; while it is held as well.
    for command in ["pause", "resume"] {
        unit.accepted(&format!("{command} {number}"));
        for depth in [8, 1, 5, 2, 8, 1] {
            unit.accepted(&format!("set copy_depth {depth}"));
            eventually("as many threads", || threads(&unit, number) == depth);
        }
    }
    for depth in ["0", "9"] {
        let command = format!("set copy_depth {depth}");
        let refused = unit.command(command.as_bytes()).expect_err(depth);
        let says = "error: out-of-range EINVAL\ncopy_depth takes 1 to 8 steps, not ";
        assert!(refused.text.starts_with(says), "{refused:?}");
    }
    assert_eq!(threads(&unit, number), 1);
    unit.accepted(&format!("set {number}.rate_max max"));
    let operation = unit.finished(number);
    assert_eq!(operation["copied_bytes"].as_u64(), Some(8 * MIB));
    eventually("none is left", || threads(&unit, number) == 0);
    unit.sh("cmp $I/m1.img $I/m2.img");
}

/// Another depth holds for a copy that waits for its rate, and is no way round that rate.
#[test]
fn another_depth_keeps_the_rate() {
    let unit = Plan::new(2, 32 * MIB).options("max_copies=0").mount();
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=32 conv=notrunc status=none");
    unit.accepted("detach m2 policy=none");
    unit.accepted("set copy_rate_max 64k");
    let number = unit.accepted("attach m2 policy=full").number("operation");
    unit.accepted("set max_copies 1");
    let step = 32 * 127 * 512;
    eventually("two steps end", || done_bytes(&unit, number) == 2 * step);
    unit.accepted("set copy_depth 8");
    eventually("six more end", || done_bytes(&unit, number) == 8 * step);
    // Those that wait would be due after minutes. They take no further step, nor do others in their place.
    for _ in 0..20 {
        unit.accepted("set copy_depth 1");
        unit.accepted("set copy_depth 8");
    }
    assert_eq!(done_bytes(&unit, number), 8 * step);
    unit.accepted("set copy_rate_max max");
    let operation = unit.finished(number);
    assert_eq!(operation["copied_bytes"].as_u64(), Some(32 * MIB));
    unit.sh("cmp $I/m1.img $I/m2.img");
}
