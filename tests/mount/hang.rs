//! What must not hang: the unit as its own member, and the control tree while members hang.

use crate::bed::{MIB, Thing, Unit};

/// An attach of something that lies on the unit, which has to be refused and to change nothing.
fn is_refused(unit: &Unit, what: &str) {
    let before = (unit.read("generation"), unit.read("state"), unit.status()["members"].clone());
    let command = format!("attach {what} as=m9 confirm");
    let refused = unit.command(command.as_bytes()).expect_err(what);
    assert_eq!(refused.errno, libc::EOPNOTSUPP, "{what}: {refused:?}");
    assert!(refused.text.contains("lies on the unit itself"), "{refused:?}");
    let after = (unit.read("generation"), unit.read("state"), unit.status()["members"].clone());
    assert_eq!(before, after, "{what}");
}

#[test]
fn what_lies_on_the_unit_cannot_become_its_member() {
    let mut unit = Unit::new(2, 16 * MIB);
    is_refused(&unit, &unit.file().display().to_string());
    let device = unit.loop_device();
    is_refused(&unit, &device);
    unit.sh(&format!("mkfs.ext4 -q {device}"));
    let dir = unit.mount_device(&device, "fs", "");
    let image = dir.join("image").display().to_string();
    unit.sh(&format!("truncate -s 4M {image}"));
    is_refused(&unit, &image);
    unit.take_away(&Thing::Mount(dir));
    unit.free(&device);
    unit.stop_and_compare();
}
