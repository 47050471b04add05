//! The examples of shadowset-backup(7) and the scripts of `examples/`, as they stand there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::bed::{MIB, Thing, Unit};

fn source(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What the displays of the section EXAMPLES have a reader type: one script per display.
fn typed(page: &str) -> Vec<String> {
    let examples = page.split_once("\n.Sh EXAMPLES\n").expect("a section").1;
    let examples = examples.split("\n.Sh ").next().expect("its end");
    let displays = examples.split(".Bd -literal -offset indent\n").skip(1);
    let scripts = displays.map(|display| {
        let text = display.split("\n.Ed").next().expect("its end");
        let lines = text
            .lines()
            .map(|line| line.strip_prefix("# ").unwrap_or(line));
        lines.collect::<Vec<_>>().join("\n").replace("\\e", "\\")
    });
    scripts.collect()
}

/// The places of the manual page as places of the unit's own.
fn here(script: &str) -> String {
    let places = [
        ("/srv/images", "$I"),
        (" /backup/", " $D/backup/"),
        ("=/backup/", "=$D/backup/"),
        ("/data", "$D/data"),
        ("/mnt", "$D/look"),
    ];
    places
        .iter()
        .fold(script.to_owned(), |text, (page, place)| {
            text.replace(page, place)
        })
}

#[test]
fn the_examples_of_the_backup_page_work_in_their_order() {
    let mut unit = Unit::new(3, 64 * MIB);
    let device = unit.loop_device();
    unit.sh(&format!("mkfs.ext4 -q {device}; mkdir backup look"));
    let data = unit.mount_device(&device, "data", "");
    unit.sh("for n in $(seq 50); do head -c 5000 /dev/urandom > data/$n; done");
    let scripts = typed(&source("man/shadowset-backup.7"));
    assert_eq!(scripts.len(), 5, "{scripts:#?}");
    for script in &scripts {
        // Whatever a script that fails has left there.
        unit.keep(Thing::Mount(unit.path("look")));
        let script = here(script);
        unit.sh(&script);
        unit.forget_mount("look");
        assert_eq!(unit.state_of("m3"), "source", "{script}");
    }
    // What they have made.
    unit.sh("mkdir tar files; tar -xzf backup/dsa1.tar.gz -C tar; tar -xzf backup/files.tar.gz -C files");
    unit.sh("for n in $(seq 50); do cmp data/$n files/$n; done");
    unit.sh("e2fsck -fn $(find tar -name m3.img)");
    unit.take_away(&Thing::Mount(data));
    unit.free(&device);
    unit.stop_and_compare();
}

/// Puts a program into the path of the scripts that notes its words and does this.
fn stand_in(unit: &Unit, name: &str, does: &str) {
    unit.sh("mkdir -p bin");
    let path = unit.path("bin").join(name);
    fs::write(
        &path,
        format!("#!/bin/sh\necho {name} \"$@\" >> $D/story\n{does}\n"),
    )
    .expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
}

fn example(name: &str) -> String {
    format!(
        "PATH=$D/bin:$PATH {}/examples/{name}",
        env!("CARGO_MANIFEST_DIR")
    )
}

#[test]
fn the_nightly_script_backs_up_with_each_of_its_tools() {
    let unit = Unit::new(3, 4 * MIB);
    unit.sh("head -c 4M /dev/urandom | dd of=$U bs=1M iflag=fullblock conv=notrunc,fsync status=none; mkdir store");
    let nightly = example("nightly-backup.sh");
    unit.sh(&format!("{nightly} dsa1 m3 store"));
    unit.sh("mkdir out; tar -xzf store/dsa1-*.tar.gz -C out; cmp $U $(find out -name m3.img)");
    for tool in ["borg", "restic"] {
        stand_in(
            &unit,
            tool,
            "for word; do :; done; [ ! -f \"$word\" ] || cp \"$word\" $D/kept",
        );
        unit.sh(&format!(
            "TOOL={tool} {nightly} dsa1 m3 store; cmp $U kept; rm kept"
        ));
        assert_eq!(unit.state_of("m3"), "source");
    }
    let story = unit.sh("cat story");
    for line in [
        "borg create store::dsa1-",
        "borg prune ",
        "restic -r store backup ",
        "restic -r store forget ",
    ] {
        assert!(story.contains(line), "{line}: {story}");
    }
    stand_in(&unit, "borg", "exit 2");
    let failed = unit.try_sh(&format!("TOOL=borg {nightly} dsa1 m3 store"));
    assert_eq!(
        (failed.code, unit.state_of("m3").as_str()),
        (2, "source"),
        "{failed:?}"
    );
}

#[test]
fn the_script_for_a_virtual_machine_asks_its_guest() {
    let unit = Unit::new(3, 4 * MIB);
    unit.sh(
        "head -c 4M /dev/urandom | dd of=$U bs=1M iflag=fullblock conv=notrunc,fsync status=none",
    );
    stand_in(&unit, "virsh", "cat $S/members/m3/state >> $D/story");
    unit.sh(&format!(
        "{} dsa1 m3 vm1 $D/vm1.img; cmp $U vm1.img",
        example("vm-backup.sh")
    ));
    let story = "virsh domfsfreeze vm1\nsource\nvirsh domfsthaw vm1\ndetached";
    assert_eq!(unit.sh("cat story"), story);
    assert_eq!(unit.state_of("m3"), "source");
    let none = unit.try_sh(&format!("{} dsa9", example("vm-disk.sh")));
    assert_eq!(none.code, 3, "{none:?}");
    assert!(none.err.contains("no unit dsa9 is mounted"), "{none:?}");
    stand_in(&unit, "virsh", "[ $1 = domfsthaw ]");
    let failed = unit.try_sh(&format!(
        "{} dsa1 m3 vm1 $D/no.img",
        example("vm-backup.sh")
    ));
    assert_eq!(failed.code, 1, "{failed:?}");
    assert!(unit.sh("tail -n1 story").contains("domfsthaw"));
    assert!(!unit.path("no.img").exists());
    assert_eq!(unit.state_of("m3"), "source");
}
