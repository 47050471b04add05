//! Members that are block devices, and members past the page cache.

use std::os::unix::fs::MetadataExt;

use crate::bed::{MIB, Plan, REGION, Unit};

/// Odd offsets and lengths, with and without a member; the unit's contents against a plain file.
fn takes_odd_writes(mut unit: Unit) {
    unit.sh("truncate -s $(stat -c %s $U) $D/model");
    let write = |at: u64, length: u64| {
        unit.sh(&format!(
            "head -c {length} /dev/urandom > $D/piece
            for f in $U $D/model; do
                dd if=$D/piece of=$f bs=64k oflag=seek_bytes seek={at} conv=notrunc status=none
            done"
        ));
    };
    write(1, 1);
    write(4095, 2);
    write(REGION - 3, 7);
    write(5 * MIB + 511, 300_001);
    unit.detach("m2");
    let quiet = unit.checksum("m2");
    for n in 0..12 {
        write(n * 600_011 + 13, 1 + n * 977);
    }
    write(unit.contents("m1").len() as u64 - 1, 1);
    unit.sh("cmp $U $D/model");
    assert_eq!(unit.checksum("m2"), quiet, "I5");
    unit.minicopy("m2");
    write(7 * MIB - 1, 4097);
    unit.sh("sync $U; cmp $U $D/model");
    unit.stop_and_compare();
    let image = unit.image("m1").display().to_string();
    unit.sh(&format!("cmp {image} $D/model"));
    unit.mount();
    assert_eq!(
        unit.status()["operations"].as_array().map(Vec::len),
        Some(0)
    );
    unit.sh("cmp $U $D/model");
    unit.stop();
}

#[test]
fn files_past_the_page_cache_take_odd_writes() {
    takes_odd_writes(Plan::new(2, 8 * MIB).direct().mount());
}

#[test]
fn block_devices_take_odd_writes() {
    takes_odd_writes(Plan::new(2, 8 * MIB).on_devices().mount());
}

#[test]
fn block_devices_past_the_page_cache_take_odd_writes() {
    takes_odd_writes(Plan::new(2, 8 * MIB).on_devices().direct().mount());
}

#[test]
fn a_device_that_is_a_member_is_held() {
    let unit = Plan::new(2, 8 * MIB).on_devices().mount();
    let device = unit.image("m1").display().to_string();
    // Who asks for it alone does not get it: no mount, no mkfs on a member.
    let ran = unit.try_sh(&format!("mkfs.ext4 -q {device} < /dev/null"));
    assert_ne!(ran.code, 0);
    assert!(ran.err.contains("in use"), "{ran:?}");
}

/// Loop devices discard by holes in their files.
#[test]
fn a_copy_between_devices_discards_what_reads_as_zeros() {
    let mut unit = Plan::new(2, 16 * MIB).on_devices().mount();
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=16 conv=notrunc status=none");
    unit.accepted("detach m2 policy=none");
    unit.sh("fallocate --punch-hole -o 4M -l 10M $U; sync $U");
    let answer = unit.accepted("attach m2 policy=full");
    unit.finished(answer.number("operation"));
    unit.stop_and_compare();
    let allocated = ["m1", "m2"].map(|member| {
        let device = unit.image(member).display().to_string();
        let file = unit.sh(&format!("losetup -n -O BACK-FILE {device}"));
        std::fs::metadata(file).expect("the file").blocks() * 512
    });
    assert!(allocated[0] < 7 * MIB, "{allocated:?}");
    assert!(allocated[1] <= allocated[0] + MIB / 8, "{allocated:?}");
}
