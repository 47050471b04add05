//! Members that do not answer, or too late, behind nbdkit: what goes on meanwhile, and who comes back by itself.

use std::time::{Duration, Instant};

use crate::bed::{Plan, Unit, eventually};
use crate::faults::{Checker, Fault, SIZE, bring_back, end, serve, unit};
use crate::hang::start;

/// Serves `$D/back.img`; each request takes half a second while `$D/slow` is there.
const SLOW: &str = "exec nbdfuse $D/nbd/image --command nbdkit -s eval \
    get_size='stat -c %s $D/back.img' can_write='exit 0' can_flush='exit 0' \
    pread='if [ -e $D/slow ]; then sleep 0.5; fi
        dd if=$D/back.img iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none' \
    pwrite='if [ -e $D/slow ]; then sleep 0.5; fi
        dd of=$D/back.img oflag=seek_bytes conv=notrunc seek=$4 status=none' \
    flush='if [ -e $D/slow ]; then sleep 0.5; fi'";

/// How long a command of the shell takes.
fn takes(unit: &Unit, script: &str) -> Duration {
    let begun = Instant::now();
    unit.sh(script);
    begun.elapsed()
}

#[test]
fn a_member_that_hangs_holds_up_no_reads_no_status_and_no_command() {
    let (unit, bad) = unit(2, Fault::Hang);
    unit.accepted(&format!("set {bad}.timeout 600"));
    unit.sh("head -c 8M /dev/urandom > $D/expected
        dd if=$D/expected of=$U bs=1M conv=notrunc,fsync status=none");
    Fault::Hang.begin(&unit);
    let mut writer = start(
        &unit,
        "dd if=$D/expected of=$U bs=64k count=1 conv=notrunc oflag=direct status=none",
    );
    let reads = (0..20).map(|n| {
        let read = format!(
            "dd if=$U of=$D/read bs=4k skip={} count=1 iflag=direct status=none",
            100 * n
        );
        takes(&unit, &read)
    });
    let reads: Vec<Duration> = reads.collect();
    eventually("it is told", || unit.read("state") == "mount-verify\n");
    let status = takes(&unit, "cat $S/status.json > $D/status.json");
    let command = takes(&unit, "echo set max_copies 3 > $S/control");
    println!("reads {reads:?}, status {status:?}, command {command:?}");
    // What hangs takes for ever: the bound is for a busy machine.
    for time in reads.into_iter().chain([status, command]) {
        assert!(time < Duration::from_secs(15), "{time:?}");
    }
    Fault::Hang.end(&unit);
    assert!(writer.wait().expect("ended").success());
    eventually("it answers", || unit.read("state") == "steady\n");
    end(unit);
}

/// A file system whose server is stopped until this value is dropped.
struct Stopped<'a>(&'a Unit);

impl<'a> Stopped<'a> {
    fn new(unit: &'a Unit) -> Self {
        unit.sh("kill -STOP $(cat $D/nbdfuse.pid)");
        Self(unit)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let goes_on = self.0.try_sh("kill -CONT $(cat $D/nbdfuse.pid)");
        assert!(goes_on.code == 0 || std::thread::panicking(), "{goes_on:?}");
    }
}

/// Looks for data and holes until a member is known to be silent.
const LOOK: &str = "
import os
U, S = os.environ['U'], os.environ['S']
unit = os.open(U, os.O_RDONLY)
while 'member-silent' not in open(S + '/events').read():
    assert os.lseek(unit, 0, os.SEEK_DATA) <= 1 << 20
    assert os.lseek(unit, 1 << 20, os.SEEK_HOLE) > 1 << 20
";

/// The answer to a program that looked for data or holes was once left to the thread that the member held.
#[test]
fn a_member_that_hangs_holds_up_nobody_who_looks_for_holes() {
    let mut unit = Plan::new(2, SIZE).create();
    unit.sh("mkdir $D/nbd; mv $I/m1.img $D/back.img; ln -s $D/nbd/image $I/m1.img");
    serve(
        &unit,
        "exec nbdfuse -P $D/nbdfuse.pid $D/nbd/image --command nbdkit -s file $D/back.img",
    );
    unit.mount();
    unit.accepted("set member_timeout 600");
    unit.sh("dd if=/dev/urandom of=$U bs=64k seek=16 count=1 conv=notrunc,fsync status=none");
    std::fs::write(unit.path("look.py"), LOOK).expect("the program");
    let stopped = Stopped::new(&unit);
    let mut looks = start(&unit, "python3 $D/look.py");
    eventually("all is answered", || {
        looks.try_wait().expect("a child").is_some()
    });
    assert!(looks.wait().expect("ended").success());
    assert_eq!(unit.state_of("m1"), "source", "it hangs still");
    drop(stopped);
    eventually("it answers", || unit.read("state") == "steady\n");
    unit.stop_and_compare();
}

#[test]
fn a_member_that_answers_again_comes_back_by_itself_if_that_is_wanted() {
    let (unit, bad) = unit(2, Fault::Hang);
    unit.accepted("set auto_return minicopy");
    let mut checker = Checker::start(&unit);
    Fault::Hang.begin(&unit);
    eventually("it is expelled", || unit.state_of(&bad) == "expelled");
    checker.go_on();
    Fault::Hang.end(&unit);
    eventually("it comes back", || unit.state_of(&bad) == "source");
    let events = unit.read("events");
    assert!(events.contains("\"kind\":\"minicopy\""), "{events}");
    // Who was expelled by command stays away.
    unit.accepted(&format!("expel {bad}"));
    checker.go_on();
    assert_eq!(unit.state_of(&bad), "expelled");
    bring_back(&unit, &bad, "minicopy");
    checker.stop();
    end(unit);
}

#[test]
fn a_member_that_is_too_slow_leaves_until_it_is_fast_again() {
    let mut unit = Plan::new(2, SIZE).create();
    unit.sh("mkdir $D/nbd; mv $I/m2.img $D/back.img; ln -s $D/nbd/image $I/m2.img");
    serve(&unit, SLOW);
    unit.mount();
    unit.accepted("set max_latency 200");
    unit.accepted("set min_members 2");
    let mut checker = Checker::start(&unit);
    unit.sh("touch $D/slow");
    // So many sources would not stay.
    eventually("it is slow", || {
        let events = unit.read("events");
        events.contains("member-silent")
            || unit
                .read("members/m2/stats")
                .contains("write_within_524288 ")
    });
    assert_eq!(unit.state_of("m2"), "source");
    unit.accepted("set min_members 1");
    eventually("it has left", || unit.state_of("m2") == "expelled");
    assert!(unit.read("members/m2/state").contains("expelled"));
    let reason = unit.status()["members"][1]["reason"].clone();
    assert!(
        reason.as_str().is_some_and(|r| r.contains("max_latency")),
        "{reason}"
    );
    checker.go_on();
    unit.sh("rm $D/slow");
    eventually("it comes back", || unit.state_of("m2") == "source");
    checker.stop();
    end(unit);
}

#[test]
fn a_member_whose_server_is_killed_leaves_and_its_image_comes_back() {
    let (unit, bad) = unit(2, Fault::Hang);
    let mut checker = Checker::start(&unit);
    unit.sh("kill -9 $(cat $D/nbdkit.pid)");
    eventually("it is expelled", || unit.state_of(&bad) == "expelled");
    checker.go_on();
    // Another path to the same bytes is another image, for all that anybody knows.
    unit.sh("umount -l $D/nbd; rm $I/m2.img; ln -s $D/back.img $I/m2.img");
    let answer = unit.accepted(&format!("attach {bad} policy=compare confirm"));
    unit.finished(answer.number("operation"));
    checker.stop();
    end(unit);
}
