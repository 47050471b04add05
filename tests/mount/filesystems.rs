//! File systems on a loop device over the unit, and discards on their way to the members.

use crate::bed::{MIB, REGION, Thing, Unit, eventually};

/// mkfs, mount, files, fstrim with a member away, umount, fsck; members equal and with holes.
fn lives_on_the_unit(mkfs: &str, fsck: &str, size: u64) {
    let mut unit = Unit::new(3, size);
    let device = unit.loop_device();
    unit.mkfs(mkfs, &device);
    let fs = unit.mount_device(&device, "fs", "");
    unit.sh(
        "mkdir fs/small; for n in $(seq 100); do head -c $((n * 137)) /dev/urandom > fs/small/$n; done
        head -c 1M /dev/urandom > fs/kept && cd fs
        sha256sum kept > $D/sums && head -c 32M /dev/urandom > big && sync -f .",
    );
    let full = unit.allocated("m1");
    unit.detach("m3");
    unit.sh("rm fs/big; sync -f fs");
    // A file system may free the blocks of a removed file some time later.
    eventually("fstrim makes holes in both members", || {
        unit.sh("sync -f fs; fstrim fs");
        ["m1", "m2"]
            .iter()
            .all(|member| unit.allocated(member) + 24 * MIB < full)
    });
    assert!(
        unit.bitmap("m3", "set_bytes") >= 24 * MIB,
        "discards are marked"
    );
    unit.sh("cp -r fs/kept fs/copy; sync -f fs");
    unit.minicopy("m3");
    let left = unit.allocated("m3");
    assert!(
        left + 24 * MIB < full,
        "m3: the minicopy wrote holes: {left} of {full}"
    );
    unit.sh("cd fs; sha256sum --quiet -c $D/sums; cmp kept copy");
    unit.take_away(&Thing::Mount(fs));
    unit.sh(&format!("{fsck} {device}"));
    unit.free(&device);
    unit.stop_and_compare();
    for member in ["m1", "m3"] {
        unit.sh(&format!("{fsck} $I/{member}.img"));
    }
}

#[test]
fn ext4_lives_on_the_unit() {
    lives_on_the_unit("mkfs.ext4 -q", "e2fsck -fn", 128 * MIB);
}

#[test]
fn xfs_lives_on_the_unit() {
    lives_on_the_unit("mkfs.xfs -q -f", "xfs_repair -n", 320 * MIB);
}

#[test]
fn btrfs_lives_on_the_unit() {
    lives_on_the_unit("mkfs.btrfs -q -f", "btrfs check --readonly", 256 * MIB);
}

#[test]
fn blkdiscard_makes_holes_and_is_tracked() {
    let mut unit = Unit::new(2, REGION * 512);
    let device = unit.loop_device();
    let fill = format!("dd if=/dev/urandom of={device} bs=1M oflag=direct status=none || true");
    unit.sh(&fill);
    let full = unit.allocated("m1");
    assert!(full >= REGION * 511, "{full}");
    unit.detach("m2");
    // 64 regions are a whole number of pages.
    let (at, length) = (REGION * 64, REGION * 128);
    unit.sh(&format!(
        "blkdiscard -o {at} -l {length} {device}; blkdiscard -z -o 0 -l 4096 {device}"
    ));
    assert!(
        unit.allocated("m1") <= full - length + 65536,
        "no hole in m1"
    );
    assert_eq!(unit.bitmap("m2", "set_bytes"), length + REGION);
    let first = 64 * 127;
    let ranges = format!("0 127\n{first} {}\n", 128 * 127);
    assert_eq!(unit.read("members/m2/bitmap/ranges"), ranges);
    unit.sh(&format!("cmp -n {length} -i {at}:0 {device} /dev/zero"));
    let op = unit.minicopy("m2");
    assert_eq!(op["copied_bytes"], length + REGION);
    unit.free(&device);
    unit.stop_and_compare();
    assert!(
        unit.allocated("m2") <= full - length + 65536,
        "the minicopy wrote the hole"
    );
}
