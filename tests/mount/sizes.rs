//! Members of different sizes, and a unit that grows while it is used.

use std::fs::File;
use std::os::unix::fs::FileExt;

use shadowset::testing::Rng;

use crate::bed::{MIB, Plan, REGION, Thing, Unit, eventually};

/// The manual's 18, 36 and 36, scaled down to MiB.
const SMALL: u64 = 18 * MIB;
const LARGE: u64 = 36 * MIB;

/// A unit of 18 MiB on m1 of 18 MiB and m2 and m3 of 36 MiB; `behind` is done with the images before.
fn unit(behind: &str) -> Unit {
    let mut unit = Plan::new(3, SMALL).mount();
    unit.sh("head -c 18M /dev/urandom > $D/old; dd if=$D/old of=$U bs=1M conv=notrunc status=none");
    unit.stop();
    unit.sh("truncate -s 36M $I/m2.img; truncate -s 36M $I/m3.img");
    unit.sh(behind);
    unit.mount();
    unit
}

/// The example up to the return of the member that left first: it lacks 3 regions of the old part and 2 of
/// the new one.
fn up_to_the_return(unit: &Unit) {
    let left = unit.detach("m3");
    assert!(left.text("warning").contains("m1 is smaller"), "{}", left.0);
    unit.accepted("detach m1 policy=none");
    let grown = unit.accepted("resize");
    assert_eq!(grown.number("size"), LARGE);
    assert_eq!(grown.text("too_small"), "m1");
    assert_eq!(unit.sh("stat -c %s $U"), LARGE.to_string());
    for name in ["size", "volsize"] {
        assert_eq!(unit.read(name).trim(), LARGE.to_string());
    }
    let refused = unit.command(b"attach m1").expect_err("m1 is too small");
    let text = format!("m1 has {SMALL} bytes, the unit {LARGE}");
    assert_eq!(refused.errno, libc::ENOSPC);
    assert!(refused.text.contains(&text), "{}", refused.text);
    for region in [0, 100, 200, SMALL / REGION + 5, SMALL / REGION + 90] {
        let at = region * REGION + 7;
        unit.sh(&format!(
            "head -c 5 /dev/urandom | dd of=$U oflag=seek_bytes seek={at} conv=notrunc status=none"
        ));
    }
}

/// The member comes back; gives the bytes that were copied, which the plan has told.
fn come_back(unit: &mut Unit) -> u64 {
    let plan = unit.accepted("attach m3 policy=minicopy dry-run");
    let operation = unit.minicopy("m3");
    let copied = operation["copied_bytes"].as_u64().expect("a number");
    assert_eq!(plan.number("bytes"), copied, "{}", plan.0);
    unit.sh("cmp $I/m2.img $U");
    unit.stop();
    unit.sh("cmp $I/m2.img $I/m3.img");
    copied
}

/// OpenVMS's rule: what the bitmap does not cover is copied as a whole.
#[test]
fn the_tail_that_a_bitmap_does_not_cover_is_copied_whole() {
    let mut unit = unit("printf x | dd of=$I/m3.img bs=1 seek=30M conv=notrunc status=none");
    up_to_the_return(&unit);
    let copied = come_back(&mut unit);
    let first = SMALL / REGION;
    assert_eq!(copied, 3 * REGION + LARGE - first * REGION);
}

/// Ours: where the unit began with zeros and the image has them still, only what was written is copied.
#[test]
fn of_a_tail_of_zeros_only_what_was_written_is_copied() {
    let mut unit = unit("");
    up_to_the_return(&unit);
    assert_eq!(come_back(&mut unit), 5 * REGION);
}

/// What was behind the unit's end differs: the master's is the unit's, for every reader.
#[test]
fn sources_that_differ_behind_the_end_are_merged() {
    let mut unit = unit(
        "for n in 2 3; do head -c 18M /dev/urandom | dd of=$I/m$n.img bs=1M seek=18 conv=notrunc status=none; done",
    );
    unit.accepted("detach m1 policy=none");
    unit.accepted("resize");
    unit.sh("cmp $U $I/m2.img || cmp $U $I/m3.img");
    eventually("the merge ends", || unit.state_of("m3") == "source");
    unit.stop();
    unit.sh("cmp $I/m2.img $I/m3.img; cmp -n 18874368 $I/m2.img $D/old");
}

#[test]
fn a_resize_is_refused_with_numbers() {
    let unit = unit("");
    let says = |command: &str, errno: i32, text: &str| {
        let refused = unit.command(command.as_bytes()).expect_err(command);
        assert_eq!(refused.errno, errno, "{command}: {}", refused.text);
        assert!(refused.text.contains(text), "{command}: {}", refused.text);
    };
    let more = SMALL + MIB;
    let text = format!("m1 has {SMALL} bytes, the unit would have {more}");
    says(&format!("resize {more}"), libc::ENOSPC, &text);
    says("resize", libc::EAGAIN, "m1 has room for no more");
    says("resize 512", libc::EINVAL, "does not shrink");
    says("resize 1M", libc::EINVAL, "not a number of bytes");
    says(
        &format!("resize {}", more + 1),
        libc::EINVAL,
        "multiple of 512",
    );
    assert_eq!(unit.read("size").trim(), SMALL.to_string());
    // An image that becomes larger makes room.
    unit.sh("truncate -s 20M $I/m1.img");
    let plan = unit.accepted("resize dry-run");
    assert_eq!(plan.number("size"), 20 * MIB);
    assert_eq!(unit.read("size").trim(), SMALL.to_string());
    let grown = unit.accepted(&format!("resize {more}"));
    assert_eq!(grown.number("before"), SMALL);
    assert_eq!(unit.read("size").trim(), more.to_string());
}

/// A rehearsal made the server insist on the size that the images had for a moment.
#[test]
fn images_that_were_enlarged_may_shrink_again_unless_the_unit_has_grown() {
    let mut unit = Unit::new(2, 4 * MIB);
    let write = "dd if=/dev/urandom of=$U bs=64k count=2 conv=notrunc,fsync status=none";
    let asked = [
        ("resize dry-run", true),
        ("resize 1073741824", false),
        ("resize 512", false),
    ];
    for (command, accepted) in asked {
        unit.sh("truncate -s 8M $I/m1.img $I/m2.img");
        let answer = unit.command(command.as_bytes());
        assert_eq!(answer.is_ok(), accepted, "{command}");
        unit.sh("truncate -s 4M $I/m1.img $I/m2.img");
        unit.sh(write);
        assert_eq!(unit.state_of("m2"), "source", "{command}");
    }
    unit.stop();
    unit.sh("cmp $I/m1.img $I/m2.img");
    unit.mount();
    unit.sh("truncate -s 8M $I/m1.img $I/m2.img");
    unit.accepted("resize 6291456");
    unit.sh("truncate -s 6M $I/m1.img $I/m2.img");
    unit.sh(write);
    assert_eq!(unit.state_of("m2"), "source");
    unit.sh("truncate -s 5M $I/m2.img");
    unit.sh(write);
    eventually("it is expelled", || unit.state_of("m2") == "expelled");
    unit.stop();
}

/// btrfs on a loop device grows while it is used; after a kill the size is what it was.
#[test]
fn a_file_system_grows_on_line() {
    let mut unit = Unit::new(3, 256 * MIB);
    let device = unit.loop_device();
    unit.mkfs("mkfs.btrfs -q", &device);
    let fs = unit.mount_device(&device, "fs", "");
    unit.sh("head -c 20M /dev/urandom > fs/old; sync -f fs; sha256sum fs/old > $D/sums");
    unit.detach("m3");
    unit.sh("for n in 1 2 3; do truncate -s 320M $I/m$n.img; done || true");
    unit.sh(
        "(while [ ! -e $D/enough ]; do dd if=/dev/urandom of=fs/busy bs=64k count=64 conv=notrunc,fsync status=none; done) > $D/out 2>&1 &
         echo $! > $D/pid",
    );
    let grown = unit.accepted("resize");
    assert_eq!(grown.number("size"), 320 * MIB);
    unit.sh(&format!(
        "losetup -c {device}; test $(blockdev --getsize64 {device}) = {}
        btrfs filesystem resize max fs; touch $D/enough
        while kill -0 $(cat $D/pid) 2>> $D/said; do :; done
        head -c 24M /dev/urandom > fs/new; sync -f fs; sha256sum fs/new >> $D/sums
        sha256sum --quiet -c $D/sums",
        320 * MIB
    ));
    unit.take_away(&Thing::Mount(fs));
    unit.sh(&format!("btrfs check --readonly {device} 2>&1"));
    unit.free(&device);
    unit.kill();
    unit.gone();
    unit.mount();
    assert_eq!(unit.read("size").trim(), (320 * MIB).to_string());
    eventually("the merge ends", || unit.state_of("m2") == "source");
    unit.stop();
    unit.sh("cmp $I/m1.img $I/m2.img; btrfs check --readonly $I/m2.img 2>&1");
}

/// Three bitmaps of 17 million regions each, marked all over.
#[test]
fn a_unit_of_a_tebibyte_with_three_bitmaps_takes_little_memory() {
    const SIZE: u64 = 1 << 40;
    let mut unit = Plan::new(4, SIZE).options("durability=crash").mount();
    let mut rng = Rng::new(11);
    for member in ["m2", "m3", "m4"] {
        unit.detach(member);
        let file = File::options().write(true).open(unit.file()).expect("open");
        for _ in 0..1000 {
            let at = rng.below(SIZE / 4096) * 4096;
            file.write_all_at(&[1; 512], at).expect("written");
        }
    }
    // The pages of the program and its libraries are locked too; how many these are is a matter of the build.
    let status = std::fs::read_to_string(format!("/proc/{}/status", unit.pid()));
    let own = status.as_deref().expect("readable").lines();
    let mut own = own.filter_map(|line| line.strip_prefix("RssAnon:"));
    let kib = own.next().expect("a line").trim().trim_end_matches(" kB");
    let kib: u64 = kib.parse().expect("a number");
    println!("{kib} KiB of its own");
    assert!(kib < 28 << 10, "{kib} KiB");
    unit.stop();
}
