//! The point in time of a detach: what the image holds, and that nothing touches it afterwards.

use std::process::{Child, Stdio};

use crate::bed::{MIB, Thing, Unit, Writers, eventually, last_writes};

#[test]
fn a_detached_image_holds_what_was_acknowledged_and_nothing_that_came_later() {
    const WRITERS: u64 = 4;
    let mut unit = Unit::new(3, 8 * MIB);
    let writers = Writers::start(&unit.file(), WRITERS);
    for round in 0..6 {
        let member = ["m3", "m2", "m1"][round % 3];
        writers.go_on(50);
        let acknowledged = writers.acknowledged();
        unit.detach(member);
        let issued = writers.issued();
        let image = unit.contents(member);
        let held = last_writes(&image, WRITERS);
        for writer in 0..held.len() {
            let (from, held, to) = (acknowledged[writer], held[writer], issued[writer]);
            assert!(
                (from..=to).contains(&held),
                "round {round}, writer {writer}: acknowledged {from}, held {held}, issued {to}"
            );
        }
        writers.go_on(300);
        assert!(unit.contents(member) == image, "I5: {member} has changed");
        unit.minicopy(member);
    }
    let last = writers.stop();
    unit.stop_and_compare();
    assert_eq!(last_writes(&unit.contents("m1"), WRITERS), last);
}

/// A shell loop that writes files until it is dropped.
struct Busy(Child);

impl Busy {
    fn start(unit: &Unit, dir: &str) -> Self {
        let script = format!(
            "n=0; while :; do n=$((n+1)); head -c 20000 /dev/urandom > {dir}/busy.$((n % 40)); done"
        );
        let mut command = unit.prepared("sh");
        command.args(["-c", &script]).stderr(Stdio::null());
        Self(command.spawn().expect("a shell"))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_frozen_file_system_leaves_a_clean_image() {
    let mut unit = Unit::new(3, 96 * MIB);
    let device = unit.loop_device();
    unit.sh(&format!("mkfs.ext4 -q {device}"));
    unit.mount_device(&device, "fs", "");
    unit.sh(
        "for n in $(seq 30); do head -c 30000 /dev/urandom > fs/kept.$n; done
        cd fs; sha256sum kept.* > $D/sums",
    );
    let busy = Busy::start(&unit, "fs");
    unit.sh("shadowset detach dsa1 m3 --policy minicopy --freeze");
    let quiet = unit.checksum("m3");
    unit.sh("e2fsck -fn $I/m3.img");
    let image = unit.sh("losetup -r -f --show $I/m3.img");
    unit.keep(Thing::Loop(image.clone()));
    let backup = unit.mount_device(&image, "backup", "-o ro");
    unit.sh("cd backup; sha256sum --quiet -c $D/sums; tar cf $D/backup.tar .; ls kept.* | wc -l");
    unit.take_away(&Thing::Mount(backup));
    unit.take_away(&Thing::Loop(image));
    assert_eq!(
        unit.checksum("m3"),
        quiet,
        "looking at it has not changed it"
    );
    unit.minicopy("m3");
    drop(busy);
    // A program that the shell had started may outlive it for a moment.
    eventually("the file system can be unmounted", || {
        unit.try_sh("umount fs").code == 0
    });
    unit.forget_mount("fs");
    unit.sh(&format!("e2fsck -fn {device}"));
    unit.free(&device);
    unit.stop_and_compare();
    unit.sh("e2fsck -fn $I/m3.img");
}
