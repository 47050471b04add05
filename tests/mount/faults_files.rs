//! Faults of images that are plain files: no room, cut short, and a write that only one member has when the server is
//! killed.

use crate::bed::{Plan, Unit, eventually};
use crate::faults::{Checker, SIZE, bring_back, end, errors};

/// A unit of so many members, the last `full` of which are on a tmpfs that has room for 3 MiB of data.
fn with_little_room(members: usize, full: usize) -> Unit {
    let mut unit = Plan::new(members, SIZE).create();
    unit.mount_device("none", "small", "-t tmpfs -o size=3M");
    for n in members - full + 1..=members {
        unit.sh(&format!(
            "truncate -s {SIZE} $D/small/m{n}.img; rm $I/m{n}.img; ln -s $D/small/m{n}.img $I/m{n}.img"
        ));
    }
    unit.mount();
    unit
}

fn make_room(unit: &Unit) {
    unit.sh("mount -o remount,size=64M $D/small");
}

#[test]
fn a_member_without_room_leaves_and_comes_back_by_minicopy() {
    for members in [2, 3] {
        let unit = with_little_room(members, 1);
        let last = format!("m{members}");
        let mut checker = Checker::start(&unit);
        eventually("it is expelled", || unit.state_of(&last) == "expelled");
        checker.go_on();
        make_room(&unit);
        bring_back(&unit, &last, "minicopy");
        checker.stop();
        end(unit);
    }
}

#[test]
fn without_room_on_any_member_the_program_is_told_so_and_nobody_leaves() {
    for members in [1, 2] {
        let mut unit = with_little_room(members, members);
        unit.sh("head -c 8M /dev/urandom > $D/expected");
        let fill = "dd if=$D/expected of=$U bs=64k conv=notrunc oflag=direct status=none";
        let ran = unit.try_sh(fill);
        assert!(
            ran.code == 1 && ran.err.contains("No space left on device"),
            "{ran:?}"
        );
        for n in 1..=members {
            let state = unit.state_of(&format!("m{n}"));
            assert!(
                matches!(state.as_str(), "source" | "merging"),
                "m{n}: {state}"
            );
        }
        make_room(&unit);
        unit.sh(fill);
        eventually("they are equal again", || unit.read("state") == "steady\n");
        unit.sh("cmp -n 8M $D/expected $U");
        unit.stop_and_compare();
    }
}

#[test]
fn a_copy_into_a_member_without_room_fails_alone() {
    let mut unit = with_little_room(3, 1);
    unit.sh("head -c 8M /dev/urandom > $D/expected
        dd if=$D/expected of=$U bs=64k conv=notrunc oflag=direct status=none");
    assert_eq!(unit.state_of("m3"), "expelled");
    unit.detach("m2");
    unit.sh("dd if=$D/expected of=$U bs=64k conv=notrunc oflag=direct status=none");
    let [second, third] = ["attach m2 policy=minicopy", "attach m3"]
        .map(|command| unit.accepted(command).number("operation"));
    unit.finished(second);
    eventually("the copy into m3 has failed", || {
        unit.read(&format!("operations/{third}/state")) == "failed\n"
    });
    assert_eq!(unit.state_of("m3"), "expelled");
    make_room(&unit);
    bring_back(&unit, "m3", "minicopy");
    unit.sh("cmp -n 8M $D/expected $U");
    unit.stop_and_compare();
}

#[test]
fn an_image_that_is_cut_short_gives_no_wrong_byte() {
    for direct in [false, true] {
        let plan = Plan::new(3, SIZE);
        let unit = match direct {
            true => plan.direct().mount(),
            false => plan.mount(),
        };
        unit.accepted("set m3.read_cost 1");
        let mut checker = Checker::start(&unit);
        unit.sh("truncate -s 2M $I/m3.img");
        eventually("it is expelled", || unit.state_of("m3") == "expelled");
        assert!(errors(&unit, "m3") > 0);
        checker.go_on();
        // As long as the unit's size it can come back, and nothing in it is believed.
        unit.sh(&format!("truncate -s {SIZE} $I/m3.img"));
        bring_back(&unit, "m3", "compare-copy");
        checker.stop();
        end(unit);
    }
}

#[test]
fn the_only_image_that_is_cut_short_is_an_error_to_the_program() {
    let mut unit = Plan::new(1, SIZE).mount();
    unit.sh("head -c 16M /dev/urandom > $D/expected
        dd if=$D/expected of=$U bs=1M conv=notrunc,fsync status=none; truncate -s 2M $I/m1.img");
    for request in [
        "dd if=$U of=$D/read bs=64k skip=100 count=1 iflag=direct status=none",
        "dd if=$D/expected of=$U bs=64k count=1 conv=notrunc oflag=direct status=none",
        "sync $U",
    ] {
        let ran = unit.try_sh(request);
        assert!(
            ran.code == 1 && ran.err.contains("Input/output error"),
            "{request}: {ran:?}"
        );
    }
    assert_eq!(unit.state_of("m1"), "source");
    unit.sh(
        "dd if=$U of=$D/read bs=1M count=2 iflag=direct status=none; cmp -n 2M $D/read $D/expected",
    );
    // Nothing could be flushed: the members are not clean, and whoever stops the unit is told.
    assert_eq!(unit.try_sh("shadowset stop dsa1 --wait").code, 1);
    unit.gone();
}

/// A write that one member could not take is acknowledged only when the other's record says that it is out: else
/// the old data could win after a crash, as it does with a quorum that keeps the child that failed.
#[test]
fn a_write_that_one_member_missed_is_never_unread_after_a_kill() {
    for bad in ["m1", "m2"] {
        let mut unit = Plan::new(2, SIZE).create();
        let other = if bad == "m1" { "m2" } else { "m1" };
        unit.mount_device("none", "small", "-t tmpfs -o size=3M");
        unit.sh(&format!(
            "truncate -s {SIZE} $D/small/image; rm $I/{bad}.img; ln -s $D/small/image $I/{bad}.img"
        ));
        unit.mount();
        unit.sh(
            "head -c 4M /dev/urandom > $D/old; head -c 4M /dev/urandom > $D/new
            dd if=$D/old of=$U bs=64k count=16 conv=notrunc,fsync status=none
            head -c 1900k /dev/zero > $D/small/rest",
        );
        let pid = unit.pid();
        // The last write of these is the first that finds no room; the server dies when it is acknowledged.
        unit.python(&format!(
            "
f = os.open(U, os.O_RDWR | os.O_DIRECT)
data = open(D + '/new', 'rb').read()
buf = mmap.mmap(-1, 1 << 16)
for at in range(0, 4 << 20, 1 << 16):
    buf[:] = data[at:at + (1 << 16)]
    assert os.pwritev(f, [buf], at) == 1 << 16
    if 'expelled' in open(S + '/members/{bad}/state').read(): break
else: raise AssertionError('there was room')
os.kill({pid}, 9)
print(at + (1 << 16))
open(D + '/written', 'w').write(str(at + (1 << 16)))
"
        ));
        unit.sh(&format!(
            "timeout 60 tail --pid={pid} -f /dev/null; umount $M; mount -o remount,size=64M $D/small"
        ));
        unit.gone();
        // The member that missed it alone is no unit.
        unit.sh(&format!("mv $I/{other}.img kept"));
        let alone = unit.try_sh("shadowset mount dsa1 $M --log $D/log");
        assert_eq!(alone.code, 32, "{bad} alone is elected: {alone:?}");
        unit.sh(&format!("mv kept $I/{other}.img"));
        unit.mount();
        assert_ne!(unit.state_of(bad), "source");
        unit.sh("n=$(cat $D/written); for i in 1 2 3; do cmp -n $n $D/new $U; done");
        bring_back(&unit, bad, "minicopy");
        eventually("all rests", || unit.read("state") == "steady\n");
        unit.stop_and_compare();
        unit.sh("cmp -n $(cat $D/written) $D/new $I/m1.img");
    }
}
