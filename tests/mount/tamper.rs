//! Images that are away: reading them is free, and whatever else is done to them is noticed.

use std::time::Duration;

use crate::bed::{MIB, Plan, Refused, Thing, Unit, eventually, pause};
use crate::hang::start;

/// What can happen to the image `$F` while it is away: what it is, how, what the refusal says.
const CHANGES: [(&str, &str, &str); 6] = [
    ("touched", "touch -m $F", "it was written"),
    (
        "one block written",
        "dd if=/dev/zero of=$F bs=512 seek=77 count=1 conv=notrunc status=none",
        "it was written",
    ),
    (
        "one byte written and the time put back",
        "touch -r $F $D/time; printf x | dd of=$F bs=1 seek=99999 conv=notrunc status=none
        touch -r $D/time $F",
        "its inode was changed",
    ),
    ("made longer", "truncate -s +4096 $F", "its size is another"),
    (
        "replaced by a copy",
        "cp --preserve=all $F $D/images/copy; mv $D/images/copy $F",
        "another file is at its path",
    ),
    (
        "punched",
        "fallocate -p -o 8192 -l 4096 $F",
        "it was written",
    ),
];

fn refused(unit: &Unit, command: &str) -> Refused {
    match unit.command(command.as_bytes()) {
        Ok(answer) => panic!("{command}: {answer:?}"),
        Err(refused) => refused,
    }
}

/// A minicopy is refused. What is allowed to do more compares the images, and copies in full what is not
/// the image that left.
fn assert_stale(unit: &Unit, code: &str, says: &str) {
    let refusal = refused(unit, "attach m2 policy=minicopy");
    assert_eq!(refusal.errno, libc::ESTALE, "{says}: {refusal:?}");
    let first = format!("error: {code} ESTALE");
    assert!(refusal.text.starts_with(&first), "{says}: {refusal:?}");
    assert!(refusal.text.contains(says), "{says}: {refusal:?}");
    let answer = unit.accepted("attach m2 policy=minicopy=optional confirm");
    let kind = match code == "image-changed" && !says.contains("another file") {
        true => "compare-copy",
        false => "full-copy",
    };
    assert_eq!(answer.text("kind"), kind, "{says}");
    unit.finished(answer.number("operation"));
}

fn write(unit: &Unit, seek: u64) {
    unit.sh(&format!(
        "dd if=/dev/urandom of=$U bs=64k count=1 seek={seek} conv=notrunc,fsync status=none"
    ));
}

/// Runs a line with the image of m2 as `$F`.
fn on_image(unit: &Unit, line: &str) -> String {
    let image = unit.image("m2").display().to_string();
    unit.sh(&format!("F={image}\n{line}"))
}

#[test]
fn reading_a_detached_image_is_no_change() {
    let mut unit = Unit::new(2, 8 * MIB);
    unit.sh("truncate -s 8M $D/fs; mkfs.ext4 -q -F $D/fs
        dd if=$D/fs of=$U bs=1M conv=notrunc,fsync status=none");
    unit.detach("m2");
    write(&unit, 100);
    on_image(
        &unit,
        "cp $F $D/copy; cp --preserve=all $F $D/copy2; cat $F > $D/copy3; tar cf $D/copy.tar -C $I m2.img
        cmp $D/copy $D/copy3; rm $D/copy*",
    );
    let device = on_image(&unit, "losetup -r -f --show $F");
    unit.keep(Thing::Loop(device.clone()));
    let dir = unit.mount_device(&device, "quiet", "-o ro,noload");
    unit.sh(&format!("ls -lR {} > /dev/null", dir.display()));
    unit.take_away(&Thing::Mount(dir));
    unit.take_away(&Thing::Loop(device));
    unit.minicopy("m2");
    unit.stop_and_compare();
}

#[test]
fn whatever_changes_a_detached_image_is_noticed() {
    let mut unit = Unit::new(2, 8 * MIB);
    write(&unit, 1);
    for (what, line, says) in CHANGES {
        unit.detach("m2");
        write(&unit, 3);
        on_image(&unit, line);
        assert_stale(&unit, "image-changed", says);
        unit.detach("m2");
        unit.minicopy("m2");
        println!("{what}: noticed");
    }
    on_image(&unit, "truncate -s 8M $F");
    unit.stop_and_compare();
}

#[test]
fn a_change_is_noticed_after_a_restart_of_the_daemon() {
    let mut unit = Unit::new(2, 8 * MIB);
    for (what, line, says) in CHANGES {
        unit.detach("m2");
        write(&unit, 5);
        unit.stop();
        on_image(&unit, line);
        unit.mount();
        assert_stale(&unit, "image-changed", says);
        println!("{what}: noticed");
    }
    on_image(&unit, "truncate -s 8M $F");
    unit.stop_and_compare();
}

#[test]
fn what_was_not_changed_is_not_called_changed_after_a_restart() {
    let mut unit = Unit::new(2, 8 * MIB);
    unit.detach("m2");
    write(&unit, 3);
    unit.stop();
    on_image(&unit, "cat $F > /dev/null");
    unit.mount();
    write(&unit, 5);
    unit.minicopy("m2");
    unit.stop_and_compare();
}

#[test]
fn a_device_that_was_written_is_noticed() {
    let mut unit = Plan::new(2, 8 * MIB).on_devices().mount();
    write(&unit, 1);
    unit.detach("m2");
    write(&unit, 3);
    on_image(&unit, "cat $F > /dev/null");
    unit.minicopy("m2");
    unit.detach("m2");
    // Where no sample lies: only the sectors tell.
    on_image(
        &unit,
        "dd if=/dev/zero of=$F bs=512 seek=77 count=1 conv=notrunc status=none",
    );
    assert_stale(&unit, "image-changed", "it was written");
    unit.detach("m2");
    unit.stop();
    on_image(
        &unit,
        "dd if=/dev/zero of=$F bs=512 seek=77 count=1 conv=notrunc status=none",
    );
    unit.mount();
    assert_stale(&unit, "image-changed", "it was written");
    unit.stop_and_compare();
}

#[test]
fn an_older_image_that_comes_with_its_block_is_refused() {
    let mut unit = Unit::new(2, 8 * MIB);
    write(&unit, 1);
    unit.detach("m2");
    on_image(
        &unit,
        "cp --preserve=all $F $D/old; cp --preserve=all $I/m2.scb $D/old.scb",
    );
    write(&unit, 3);
    unit.minicopy("m2");
    write(&unit, 5);
    unit.detach("m2");
    // Renamed into place, as a restore does.
    let restore = "cp --preserve=all $D/old $I/new; mv $I/new $F
        cp --preserve=all $D/old.scb $I/new; mv $I/new $I/m2.scb";
    on_image(&unit, restore);
    assert_stale(&unit, "wrong-generation", "its image is an older one");
    unit.detach("m2");
    unit.stop();
    on_image(&unit, restore);
    unit.mount();
    assert_stale(&unit, "wrong-generation", "its image is an older one");
    unit.detach("m2");
    unit.minicopy("m2");
    unit.stop_and_compare();
}

#[test]
fn a_disk_is_carried_away_and_comes_back() {
    let unit = Unit::new(1, 8 * MIB);
    unit.sh("truncate -s 64M $D/disk; mkfs.ext4 -q -F $D/disk");
    let plug = |options: &str| {
        let device = unit.sh(&format!("losetup -f --show {options} $D/disk"));
        unit.keep(Thing::Loop(device.clone()));
        let dir = unit.mount_device(&device, "away", "");
        (device, dir)
    };
    let unplug = |(device, dir): (String, std::path::PathBuf)| {
        unit.take_away(&Thing::Mount(dir));
        unit.take_away(&Thing::Loop(device));
    };
    let disk = plug("");
    unit.sh("truncate -s 8M $D/away/m2.img");
    let path = unit.path("away/m2.img").display().to_string();
    let answer = unit.accepted(&format!("attach {path} as=m2"));
    unit.finished(answer.number("operation"));
    unit.detach("m2");
    // Nothing of the daemon keeps the file system busy.
    unplug(disk);
    write(&unit, 3);
    let disk = plug("");
    unit.minicopy("m2");
    unit.detach("m2");
    unit.sh(&format!("cmp {path} $U"));
    unplug(disk);
}

#[test]
fn a_lease_tells_who_opens_an_image_that_is_away() {
    let mut unit = Plan::new(2, 8 * MIB).leases().mount();
    let open = "python3 -c 'import os, sys; os.open(sys.argv[1], os.O_RDWR)' $F";
    let says = "another program has opened it for writing";
    unit.detach("m2");
    on_image(&unit, "cat $F > /dev/null");
    unit.minicopy("m2");
    unit.detach("m2");
    let held = on_image(&unit, &format!("date +%s; {open}; date +%s"));
    let times: Vec<u64> = held.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(times[1] - times[0] < 10, "the opener is let go: {held}");
    assert_stale(&unit, "image-changed", says);
    // The note and the lease outlive the daemon.
    unit.detach("m2");
    on_image(&unit, open);
    unit.stop();
    unit.mount();
    assert_stale(&unit, "image-changed", says);
    unit.detach("m2");
    unit.stop();
    unit.mount();
    on_image(&unit, open);
    assert_stale(&unit, "image-changed", says);
    unit.stop_and_compare();
}

/// Whoever opens the block of m2 waits until this has been told to end.
const HOLD: &str = "
import fcntl, os, signal
D, I = os.environ['D'], os.environ['I']
signal.signal(signal.SIGIO, signal.SIG_IGN)
block = os.open(I + '/m2.scb', os.O_RDWR)
fcntl.fcntl(block, fcntl.F_SETLEASE, fcntl.F_WRLCK)
open(D + '/held', 'w').close()
open(D + '/end').read()
";

/// It broke the lease that was taken again when its command had ended, and the image counted as written.
#[test]
fn a_look_that_nobody_waits_for_any_more_is_no_other_program() {
    let mut unit = Plan::new(2, 8 * MIB).leases().mount();
    unit.accepted("set command_timeout 2");
    unit.detach("m2");
    std::fs::write(unit.path("hold.py"), HOLD).expect("the program");
    unit.sh("mkfifo $D/end");
    let mut holder = start(&unit, "python3 $D/hold.py");
    eventually("it is held", || unit.path("held").exists());
    let refusal = refused(&unit, "attach m2 policy=minicopy");
    assert_eq!(refusal.errno, libc::ETIMEDOUT, "{refusal:?}");
    unit.sh("echo > $D/end");
    assert!(holder.wait().expect("ended").success());
    // It goes on.
    pause(Duration::from_secs(1));
    unit.accepted("set command_timeout 30");
    unit.minicopy("m2");
    unit.stop_and_compare();
}

fn immutable() -> Unit {
    Plan::new(2, 8 * MIB).immutable().on_a_disk().mount()
}

fn is_immutable(unit: &Unit) -> bool {
    let flags = on_image(unit, "lsattr $F");
    flags
        .split_whitespace()
        .next()
        .is_some_and(|f| f.contains('i'))
}

/// Nobody changes the image, and everybody may read it.
fn assert_untouchable(unit: &Unit) {
    assert!(is_immutable(unit));
    let refused = [
        "dd if=/dev/zero of=$F bs=512 count=1 conv=notrunc status=none",
        "rm -f $F",
        "mv $F $F.old",
        "mv $D/log2 $F",
        "truncate -s 0 $F",
        "chmod 600 $F",
    ];
    unit.sh("touch $D/log2");
    for line in refused {
        let line = format!("F={}\n{line}", unit.image("m2").display());
        let ran = unit.try_sh(&line);
        assert_ne!(ran.code, 0, "{ran:?}");
        assert!(ran.err.contains("not permitted"), "{ran:?}");
    }
    on_image(
        unit,
        "cat $F > $D/copy; cp --preserve=mode $F $D/copy2; cmp $D/copy $D/copy2",
    );
    let device = on_image(unit, "losetup -r -f --show $F");
    unit.keep(Thing::Loop(device.clone()));
    unit.sh(&format!("cmp {device} $D/copy; rm $D/copy $D/copy2"));
    // Nothing to attach, and the flag is there again.
    let refusal = refused_as_in_use(unit);
    assert!(refusal.text.contains(&device), "{refusal:?}");
    unit.take_away(&Thing::Loop(device));
    eventually("it is immutable again", || is_immutable(unit));
}

fn refused_as_in_use(unit: &Unit) -> Refused {
    let refusal = refused(unit, "attach m2 policy=minicopy");
    assert!(refusal.text.starts_with("error: in-use"), "{refusal:?}");
    refusal
}

#[test]
fn an_immutable_image_cannot_be_changed_while_it_is_away() {
    let mut unit = immutable();
    write(&unit, 1);
    for policy in ["minicopy", "minicopy", "full"] {
        unit.detach("m2");
        write(&unit, 3);
        assert_untouchable(&unit);
        let planned = unit.accepted("attach m2 policy=minicopy dry-run");
        assert_eq!(planned.text("verdict"), "minicopy");
        assert!(is_immutable(&unit), "nothing was to happen");
        on_image(
            &unit,
            "shadowset examine $F --scb $I/m2.scb | grep -q detached",
        );
        match policy {
            "minicopy" => drop(unit.minicopy("m2")),
            _ => {
                let answer = unit.accepted(&format!("attach m2 policy={policy}"));
                unit.finished(answer.number("operation"));
            }
        }
        assert!(!is_immutable(&unit));
    }
    write(&unit, 5);
    unit.stop_and_compare();
}

#[test]
fn an_immutable_image_outlives_the_daemon() {
    let mut unit = immutable();
    unit.detach("m2");
    write(&unit, 3);
    unit.stop();
    unit.mount();
    assert_untouchable(&unit);
    unit.minicopy("m2");
    // Killed while it is away; then as if killed between the end of the flag and the attach.
    for line in ["true", "chattr -i $F"] {
        unit.detach("m2");
        write(&unit, 4);
        let pid = unit.pid();
        unit.sh(&format!(
            "kill -9 {pid}; timeout 60 tail --pid={pid} -f /dev/null"
        ));
        unit.umount();
        unit.gone();
        on_image(&unit, line);
        unit.mount();
        unit.sh("shadowset wait dsa1 --timeout 60");
        eventually("it is immutable", || is_immutable(&unit));
        unit.minicopy("m2");
        assert!(!is_immutable(&unit));
    }
    unit.stop_and_compare();
    // Its member takes part all the same.
    on_image(&unit, "chattr +i $F");
    unit.mount();
    assert_eq!(unit.state_of("m2"), "source");
    write(&unit, 7);
    assert!(!is_immutable(&unit));
    unit.stop_and_compare();
}

#[test]
fn an_image_that_was_made_mutable_and_written_is_noticed() {
    let mut unit = immutable();
    write(&unit, 1);
    for (what, line, says) in CHANGES {
        // With its time put back only the ctime tells, which says nothing here.
        if what.contains("put back") {
            continue;
        }
        unit.detach("m2");
        write(&unit, 3);
        on_image(&unit, &format!("chattr -i $F\n{line}"));
        assert_stale(&unit, "image-changed", says);
        println!("{what}: noticed");
    }
    on_image(&unit, "truncate -s 8M $F");
    unit.stop_and_compare();
}

#[test]
fn an_image_that_is_released_is_not_immutable_any_more() {
    let mut unit = immutable();
    // One that was expelled gets the flag as soon as its image answers.
    unit.accepted("expel m2");
    eventually("it is immutable", || is_immutable(&unit));
    write(&unit, 3);
    unit.minicopy("m2");
    assert!(!is_immutable(&unit));
    unit.detach("m2");
    assert!(is_immutable(&unit));
    unit.accepted("release m2");
    assert!(!is_immutable(&unit));
    on_image(&unit, "rm $F");
    unit.stop();
}

/// What cannot be immutable is detached all the same, and its stamp tells as ever.
fn assert_stamp_alone(mut unit: Unit, why: &str) {
    let says = "its image is not immutable";
    unit.detach("m2");
    let log = unit.sh("cat $D/log");
    let line = log.lines().find(|line| line.contains(says));
    assert!(line.is_some_and(|line| line.contains(why)), "{log}");
    write(&unit, 3);
    unit.minicopy("m2");
    unit.detach("m2");
    on_image(
        &unit,
        "dd if=/dev/zero of=$F bs=512 seek=77 count=1 conv=notrunc status=none",
    );
    assert_stale(&unit, "image-changed", "it was written");
    unit.stop_and_compare();
}

#[test]
fn what_cannot_be_immutable_is_detached_all_the_same() {
    assert_stamp_alone(
        Plan::new(2, 8 * MIB).immutable().on_devices().mount(),
        "no regular file",
    );
    let starter = "setpriv --bounding-set=-linux_immutable";
    let plan = Plan::new(2, 8 * MIB).immutable().on_a_disk();
    let unit = plan.started_by(starter).mount();
    assert_stamp_alone(unit, "not permitted");
}

/// Holds the block of `m2`, so that whoever opens it waits.
const HOLDER: &str = r#"
import fcntl, signal
signal.signal(signal.SIGIO, lambda *_: None)
held = open(I + '/m2.scb', 'r+b')
fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
open(D + '/held', 'w').close()
while not os.path.exists(D + '/let-go'):
    time.sleep(0.02)
"#;

/// The look at an image was given up, went on later, took the flag away, and nothing set it again.
#[test]
fn an_image_is_immutable_again_behind_a_look_that_took_too_long() {
    let mut unit = immutable();
    write(&unit, 1);
    unit.detach("m2");
    assert!(is_immutable(&unit));
    unit.accepted("set command_timeout 1");
    let changed = || on_image(&unit, "stat -c %z $F");
    let before = changed();
    std::thread::scope(|scope| {
        let holder = scope.spawn(|| unit.python(HOLDER));
        eventually("it is held", || unit.path("held").exists());
        let late = refused(&unit, "attach m2 policy=minicopy");
        assert!(late.text.starts_with("error: timed-out"), "{late:?}");
        unit.sh("touch $D/let-go");
        holder.join().expect("no panic");
    });
    eventually("the flag is taken away", || changed() != before);
    eventually("it is there again", || is_immutable(&unit));
    unit.accepted("set command_timeout 30");
    eventually("it is let go of", || {
        unit.command(b"attach m2 policy=minicopy").is_ok()
    });
    unit.sh("shadowset wait dsa1 --timeout 60");
    unit.stop_and_compare();
}

/// The image of m2 is out of reach at a mount, behind a stop in order, and `line` happens to it.
fn absent_at_the_mount(line: &str) -> Unit {
    let mut unit = Unit::new(2, 8 * MIB);
    write(&unit, 1);
    unit.stop();
    // The directory moves, so that nothing changes the inode of the image.
    unit.sh("mkdir $D/disk; mv $I/m2.img $D/disk; ln -s $D/disk/m2.img $I/m2.img");
    unit.mount();
    write(&unit, 3);
    unit.stop();
    unit.sh("mv $D/disk $D/unplugged");
    unit.mount();
    assert_eq!(unit.state_of("m2"), "missing");
    write(&unit, 5);
    unit.sh(&format!(
        "mv $D/unplugged $D/disk; F=$D/disk/m2.img\n{line}"
    ));
    unit
}

#[test]
fn an_image_that_is_lost_at_a_mount_is_not_taken_for_the_blank_one_in_its_place() {
    let mut unit = absent_at_the_mount("rm $F; truncate -s 8M $F");
    let refusal = refused(&unit, "attach m2 policy=minicopy");
    assert_eq!(refusal.errno, libc::ESTALE, "{refusal:?}");
    let first = "error: image-changed ESTALE";
    assert!(refusal.text.starts_with(first), "{refusal:?}");
    // A blank image needs no consent. Which copy it is depends on the number that the file system gives it.
    let answer = unit.accepted("attach m2 policy=minicopy=optional");
    assert_ne!(answer.text("kind"), "minicopy");
    unit.finished(answer.number("operation"));
    unit.stop_and_compare();
}

#[test]
fn a_change_of_an_image_that_is_absent_at_a_mount_is_noticed() {
    for (what, line, says) in CHANGES {
        let line = line.replace("$D/images/copy", "$D/disk/copy");
        let mut unit = absent_at_the_mount(&line);
        assert_stale(&unit, "image-changed", says);
        println!("{what}: noticed");
        unit.sh("truncate -s 8M $D/disk/m2.img");
        unit.stop_and_compare();
    }
}

/// It is there at the next mount, which looks at it as one that has left without a word.
#[test]
fn a_change_of_an_image_that_was_absent_at_a_mount_is_noticed_at_the_next_one() {
    let mut unit = absent_at_the_mount("rm $F; truncate -s 8M $F");
    unit.stop();
    unit.mount();
    assert_eq!(unit.state_of("m2"), "expelled");
    let refusal = refused(&unit, "attach m2 policy=minicopy");
    assert!(
        refusal.text.starts_with("error: image-changed"),
        "{refusal:?}"
    );
    let answer = unit.accepted("attach m2 policy=minicopy=optional");
    unit.finished(answer.number("operation"));
    unit.stop_and_compare();
}

#[test]
fn an_image_that_is_absent_at_a_mount_comes_back_by_minicopy() {
    let mut unit = absent_at_the_mount("cat $F > /dev/null");
    unit.minicopy("m2");
    unit.stop_and_compare();
    // At the next mount, or at the one behind it.
    let mut unit = absent_at_the_mount("cat $F > /dev/null");
    for _ in 0..2 {
        unit.stop();
        unit.mount();
        write(&unit, 7);
    }
    unit.minicopy("m2");
    unit.stop_and_compare();
}

/// All of them are other files then, and none has left.
#[test]
fn a_set_that_was_copied_while_it_was_stopped_mounts_as_before() {
    let mut unit = Unit::new(2, 8 * MIB);
    write(&unit, 1);
    unit.stop();
    unit.sh("cp --sparse=always -r $I $D/copied; rm -r $I; mv $D/copied $I");
    unit.mount();
    for member in ["m1", "m2"] {
        assert_eq!(unit.state_of(member), "source");
        assert_eq!(unit.read(&format!("members/{member}/fingerprint")), "-\n");
        // What the stop has kept is the past since the first block of this mount.
        let says = unit.sh(&format!(
            "shadowset examine $I/{member}.img --scb $I/{member}.scb"
        ));
        assert!(!says.contains("stamp"), "{says}");
    }
    write(&unit, 3);
    unit.stop_and_compare();
    let says = unit.sh("shadowset examine $I/m2.img --scb $I/m2.scb");
    assert!(says.contains("places hashed"), "{says}");
}
