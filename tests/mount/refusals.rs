//! Refusals through the control tree: errno, code, sentence, hint; and nothing has changed.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::bed::{MIB, Plan, Refused, Thing, Unit};

/// What a refusal must not change: generation, states, bitmaps, and which operations there are.
/// How far an operation has come changes all the time.
fn membership(unit: &Unit) -> Value {
    let status = unit.status();
    let of = |list: &str, key: &str| -> Vec<Value> {
        let list = status[list].as_array().expect("a list");
        list.iter().map(|object| object[key].clone()).collect()
    };
    serde_json::json!([
        status["generation"],
        of("members", "name"),
        of("members", "state"),
        of("bitmaps", "id"),
        of("bitmaps", "set_bits"),
        of("operations", "id"),
        of("operations", "state"),
    ])
}

/// A command that has to be refused, and how: the code and the name of its errno.
fn refused(unit: &Unit, command: impl AsRef<[u8]>, code: &str, errno: i32) -> Refused {
    let before = membership(unit);
    let shown = String::from_utf8_lossy(command.as_ref()).into_owned();
    let answer = unit.command(command.as_ref());
    let refused = answer.expect_err(&shown);
    assert_eq!(refused.errno, errno, "{shown}: {refused:?}");
    let lines: Vec<&str> = refused.text.lines().collect();
    assert!(
        lines[0].starts_with(&format!("error: {code} E")),
        "{shown}: {refused:?}"
    );
    assert!(lines[1].len() > 10, "a sentence: {refused:?}");
    assert!(
        lines.last().is_some_and(|line| line.starts_with("hint: ")),
        "{refused:?}"
    );
    assert!(
        unit.read("last_error").starts_with(&refused.text),
        "{shown}"
    );
    assert!(unit.read("error_log").contains(&refused.text), "{shown}");
    assert_eq!(membership(unit), before, "{shown}: nothing has changed");
    refused
}

#[test]
fn a_malformed_command_is_refused() {
    let mut unit = Unit::new(2, 4 * MIB);
    let syntax = |command: &[u8]| refused(&unit, command, "syntax", libc::EINVAL);
    for command in [
        "\n",
        " ",
        "detach",
        "frobnicate m1",
        "detach m1 policy=half",
    ] {
        syntax(command.as_bytes());
    }
    for command in [
        "detach m1 policy",
        "detach m1 m2",
        "attach m1 as=/",
        "pause x",
    ] {
        syntax(command.as_bytes());
    }
    for command in [
        "detach m1 policy=none policy=none",
        "detach m1\ndetach m2\n",
    ] {
        syntax(command.as_bytes());
    }
    syntax(b"detach m1\0");
    syntax(b"detach \xff\xfe");
    syntax(b"detach \"m1");
    refused(&unit, vec![b'x'; 5000], "too-long", libc::E2BIG);
    refused(&unit, vec![b'x'; 4096], "too-long", libc::E2BIG);
    syntax(&[b'x'; 4095]);
    refused(&unit, "stall 1000", "out-of-range", libc::EINVAL);
    syntax(b"dissolve policy=none");
    let shown = refused(&unit, "detach m1  policy=half", "syntax", libc::EINVAL).text;
    assert!(
        shown.contains("\n  detach m1  policy=half\n             ^\n"),
        "{shown}"
    );
    unit.stop_and_compare();
}

#[test]
fn who_cannot_leave_stays() {
    let mut unit = Unit::new(2, 4 * MIB);
    let says = refused(&unit, "detach m9", "no-such-member", libc::ENOENT).text;
    assert!(says.contains("m9"), "{says}");
    unit.detach("m2");
    let says = refused(&unit, "detach m1", "last-source", libc::EBUSY).text;
    assert!(says.contains("m1 is the only source member"), "{says}");
    refused(&unit, "expel m1", "last-source", libc::EBUSY);
    refused(&unit, "detach m2", "already-detached", libc::EALREADY);
    refused(
        &unit,
        "delete-bitmap 00ff00ff",
        "no-such-bitmap",
        libc::ENOENT,
    );
    refused(&unit, "pause 77", "no-such-operation", libc::ENOENT);
    refused(&unit, "detach m1 dry-run", "last-source", libc::EBUSY);
    unit.minicopy("m2");
    unit.stop_and_compare();
}

#[test]
fn what_cannot_come_in_stays_out() {
    let unit = Unit::new(2, 4 * MIB);
    unit.sh(
        "truncate -s 4M blank.img; cp blank.img ro.img; chmod 444 ro.img
        truncate -s 1M small.img; head -c 4M /dev/urandom > used.img; mkfifo pipe
        ln -s images/m1.img soft; ln images/m1.img hard",
    );
    let attach = |name: &str, rest: &str| format!("attach {} {rest}", unit.path(name).display());
    refused(
        &unit,
        attach("small.img", ""),
        "member-too-small",
        libc::ENOSPC,
    );
    refused(&unit, attach("ro.img", ""), "read-only-image", libc::EROFS);
    for name in ["soft", "hard", "images/m1.img"] {
        refused(&unit, attach(name, ""), "already-member", libc::EEXIST);
    }
    refused(&unit, "attach m1", "already-member", libc::EEXIST);
    refused(&unit, attach("missing", ""), "no-such-file", libc::ENOENT);
    refused(&unit, "attach m9", "no-such-member", libc::ENOENT);
    refused(
        &unit,
        attach("used.img", ""),
        "needs-confirm",
        libc::ECANCELED,
    );
    refused(
        &unit,
        attach("blank.img", "policy=minicopy"),
        "no-bitmap",
        libc::ENODATA,
    );
    refused(
        &unit,
        attach("blank.img", "policy=nocopy"),
        "needs-copy",
        libc::ECANCELED,
    );
    refused(
        &unit,
        attach("blank.img", "as=m1"),
        "already-member",
        libc::EEXIST,
    );
    refused(&unit, "attach ./blank.img", "syntax", libc::EINVAL);
    refused(&unit, attach("pipe", ""), "not-supported", libc::EOPNOTSUPP);
    // A member of a running set, seen from another one.
    let other = Unit::new(1, 4 * MIB);
    let foreign = format!("attach {}", other.image("m1").display());
    refused(&unit, foreign, "image-locked", libc::EBUSY);
}

#[test]
fn a_bitmap_that_is_missing_or_not_right_is_no_minicopy() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.accepted("detach m2 policy=none");
    refused(
        &unit,
        "attach m2 policy=minicopy",
        "no-bitmap",
        libc::ENODATA,
    );
    let answer = unit.accepted("attach m2");
    unit.finished(answer.number("operation"));
    unit.detach("m2");
    let image = unit.image("m2").display().to_string();
    unit.sh(&format!(
        "printf x | dd of={image} bs=1 seek=77 conv=notrunc status=none"
    ));
    let says = refused(
        &unit,
        "attach m2 policy=minicopy",
        "image-changed",
        libc::ESTALE,
    );
    assert!(says.text.contains("written"), "{says:?}");
    let answer = unit.accepted("attach m2");
    assert_eq!(answer.text("kind"), "compare-copy");
    unit.finished(answer.number("operation"));
    unit.stop_and_compare();
}

#[test]
fn the_target_of_a_running_copy_stays_until_it_is_cancelled() {
    let mut unit = Unit::new(3, 192 * MIB);
    unit.sh("head -c 192M /dev/zero | tr '\\0' x | dd of=$U bs=1M conv=notrunc iflag=fullblock status=none");
    unit.accepted("detach m3 policy=none");
    unit.accepted("set copy_rate_max 8M");
    let op = unit.accepted("attach m3 policy=full").number("operation");
    unit.accepted(&format!("pause {op}"));
    let says = refused(&unit, "detach m3", "is-copy-target", libc::EBUSY).text;
    assert!(
        says.contains(&format!("hint: wait for it, or cancel it: cancel {op}")),
        "{says}"
    );
    refused(&unit, "attach m3", "is-copy-target", libc::EBUSY);
    refused(&unit, format!("pause {op}"), "state-changed", libc::EAGAIN);
    unit.accepted("detach m2 policy=none");
    refused(&unit, "detach m1", "last-source", libc::EBUSY);
    unit.accepted(&format!("cancel {op}"));
    unit.accepted("set copy_rate_max max");
    assert_eq!(unit.state_of("m3"), "detached");
    let left = unit.bitmap("m3", "set_bytes");
    assert!(left > 0, "it was held before its end");
    assert_eq!(
        unit.minicopy("m3")["copied_bytes"],
        left,
        "the rest and no more"
    );
    let answer = unit.accepted("attach m2");
    unit.finished(answer.number("operation"));
    unit.stop_and_compare();
}

#[test]
fn files_of_objects_take_their_own_commands_only() {
    let unit = Unit::new(2, 4 * MIB);
    let refused = unit
        .command_on("members/m2/state", b"pause 1")
        .expect_err("not here");
    assert_eq!(refused.errno, libc::EINVAL, "{refused:?}");
    unit.command_on("members/m2/state", b"detach policy=minicopy\n")
        .expect("detached");
    assert_eq!(unit.state_of("m2"), "detached");
    let answer = unit
        .command_on("members/m2/state", b"attach policy=minicopy")
        .expect("attached");
    unit.finished(answer.number("operation"));
    unit.detach("m2");
    unit.sh("rmdir $S/bitmaps/*; [ -z \"$(ls $S/bitmaps)\" ]");
    let ran = unit.try_sh("cat $S/members/m2/bitmap/bits");
    assert!(ran.err.contains("No such file"), "{ran:?}");
    unit.sh("echo > $S/error_log; [ -z \"$(cat $S/error_log)\" ]");
    assert!(
        unit.read("last_error")
            .starts_with("error: syntax EINVAL\n"),
        "kept"
    );
}

#[test]
fn an_unprivileged_user_reads_and_changes_nothing() {
    let unit = Plan::new(2, 4 * MIB).options("allow_other").mount();
    let mode = std::fs::metadata(unit.file())
        .expect("the unit")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let before = membership(&unit);
    let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    unit.sh(&format!(
        "{nobody} cat $S/status.json $S/status $S/show $S/help > /dev/null
        {nobody} ls -lR $S > /dev/null"
    ));
    let denied = |line: &str| {
        let ran = unit.try_sh(&format!("{nobody} {line}"));
        let says = ["Permission denied", "not permitted"];
        assert_ne!(ran.code, 0, "{line}");
        assert!(
            says.iter().any(|text| ran.err.contains(text)),
            "{line}: {ran:?}"
        );
    };
    denied("sh -c 'echo detach m2 > $C'");
    denied("sh -c 'echo detach > $S/members/m2/state'");
    denied("sh -c 'echo x > $S/error_log'");
    denied("head -c 1 $U");
    denied("dd if=/dev/zero of=$U bs=1 count=1 conv=notrunc");
    denied("truncate -s 0 $U");
    denied("chmod 666 $C");
    denied("mkdir $M/x");
    assert_eq!(membership(&unit), before);
}

/// It was listed as one that is being stopped, and said to be mounted nowhere.
#[test]
fn a_unit_that_a_user_may_not_look_at_is_not_said_to_be_gone() {
    let unit = Unit::new(2, 4 * MIB);
    let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let listed = unit.sh(&format!("{nobody} shadowset list"));
    assert!(listed.contains("unknown: not-permitted"), "{listed}");
    for line in ["status dsa1", "status $M", "detach dsa1 m2"] {
        let ran = unit.try_sh(&format!("{nobody} shadowset {line}"));
        let says = ran.err.contains("ermi") && !ran.err.contains("no unit is mounted");
        assert!(ran.code != 0 && says, "{line}: {ran:?}");
    }
    assert_eq!(unit.state_of("m2"), "source");
}

/// A second unit `dsa2` on `$D/mnt2` that has to be refused: its members and what else its configuration
/// says, then the code and a part of the sentence.
fn no_second_unit(unit: &Unit, lines: &str, code: &str, says: &str) {
    let config = format!("unit = \"dsa2\"\n{lines}");
    std::fs::write(unit.path("conf/dsa2.toml"), config).expect("the configuration");
    let dir = unit.path("mnt2");
    unit.keep(Thing::Mount(dir));
    let ran = unit.try_sh("shadowset mount dsa2 $D/mnt2 --log $D/log2 --json");
    assert_eq!(ran.code, 32, "{lines}: {ran:?}");
    let answer: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(answer["code"], code, "{lines}: {ran:?}");
    assert!(ran.err.contains(says), "{lines}: {ran:?}");
    assert!(ran.err.contains("\nhint: "), "{lines}: {ran:?}");
}

fn member(image: &std::path::Path, scb: &std::path::Path) -> String {
    let (image, scb) = (image.display(), scb.display());
    format!("[[member]]\nname = \"m1\"\npath = \"{image}\"\nscb = \"{scb}\"\n")
}

#[test]
fn one_image_is_in_one_unit_whatever_path_leads_to_it() {
    let mut unit = Unit::new(2, 4 * MIB);
    unit.sh(
        "mkdir $D/mnt2 $D/bound; cd $D; ln -s images/m1.img soft; ln images/m1.img hard
        mount --bind $I $D/bound",
    );
    unit.keep(Thing::Mount(unit.path("bound")));
    let state = format!("state_dir = \"{}\"\n", unit.path("state2").display());
    for name in ["images/m1.img", "soft", "hard", "bound/m1.img"] {
        let image = unit.path(name);
        let lines = format!("{state}{}", member(&image, &unit.path("images/m1.scb")));
        let says = format!("{} is in use by another set", image.display());
        no_second_unit(&unit, &lines, "image-locked", &says);
    }
    assert_eq!(unit.read("state"), "steady\n");
    unit.stop();
    let device = unit.sh("losetup -f --show $I/m1.img");
    unit.keep(Thing::Loop(device.clone()));
    let image = unit.image("m1").to_owned();
    let lines = format!("{state}{}", member(&image, &unit.path("images/m1.scb")));
    let says = format!("{} is behind {device}", image.display());
    no_second_unit(&unit, &lines, "in-use", &says);
    unit.free(&device);
    unit.assert_equal();
}

#[test]
fn one_state_directory_is_for_one_unit() {
    let mut unit = Plan::new(2, 4 * MIB).options("durability=memory").mount();
    unit.sh("mkdir $D/mnt2; ln -s state $D/link
        shadowset create $D/conf/new.toml --size 4M --member m1=$D/one.img");
    let member = member(&unit.path("one.img"), &unit.path("one.img.scb"));
    for name in ["state", "link"] {
        let dir = unit.path(name).display().to_string();
        let lines = format!("durability = \"memory\"\nstate_dir = \"{dir}\"\n{member}");
        let says = format!("the state directory {dir} is used by another unit");
        no_second_unit(&unit, &lines, "in-use", &says);
    }
    assert_eq!(unit.read("state"), "steady\n");
    unit.stop_and_compare();
}

#[test]
fn nothing_of_a_unit_lies_in_its_own_mount() {
    let unit = Unit::new(2, 4 * MIB);
    unit.sh("mkdir $D/mnt2; ln -s mnt2 $D/link; truncate -s 4M $D/mnt2/a.img $D/b.img");
    let (state, inside) = (unit.path("state2"), unit.path("mnt2"));
    let image = unit.path("b.img");
    let scb = unit.path("b.scb");
    for (state, image, scb, what) in [
        (&state, &inside.join("a.img"), &scb, "the image of m1"),
        (&state, &unit.path("link/a.img"), &scb, "the image of m1"),
        (
            &state,
            &image,
            &inside.join("b.scb"),
            "the storage control block of m1",
        ),
        (
            &unit.path("link/not/there"),
            &image,
            &scb,
            "the state directory",
        ),
    ] {
        let state = format!("state_dir = \"{}\"\n", state.display());
        let says = format!("{what} lies in the mount point {} itself", inside.display());
        let lines = format!("{state}{}", member(image, scb));
        no_second_unit(&unit, &lines, "not-supported", &says);
    }
    unit.sh("[ \"$(ls $D/mnt2)\" = a.img ] && [ ! -e $D/state2 ]");
}
