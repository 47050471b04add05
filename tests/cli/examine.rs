//! Goal: `examine` finds the block that a path means, tells damage by its exit code, and leaves every
//! file as it was. Method: sets made by the binary itself, then files changed byte by byte.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::{Place, json};

/// Bytes of one slot.
const SLOT: usize = 8192;

/// A set of two members, m1.img and m2.img, in `set/`.
fn with_set() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("set")).expect("directory");
    let words = [
        "create",
        "dsa1",
        "--size",
        "1M",
        "--member",
        "m1=set/m1.img",
        "--member",
        "m2=set/m2.img",
        "--state-dir",
        "state",
    ];
    place.expect(0, &words);
    place
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("readable");
    change(&mut bytes);
    fs::write(path, bytes).expect("writes");
}

/// Bytes, times and place of everything in `set/`, and who is there at all.
fn snapshot(place: &Place) -> Vec<(String, Vec<u8>, [i64; 6], u64)> {
    let entries = fs::read_dir(place.path("set")).expect("a directory");
    let mut all: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let meta = fs::metadata(&path).expect("there");
            let times = [
                meta.atime(),
                meta.atime_nsec(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.ctime(),
                meta.ctime_nsec(),
            ];
            // The look of the test itself must not be what changes the time of access.
            let mut options = OpenOptions::new();
            let file = options.read(true).custom_flags(libc::O_NOATIME).open(&path);
            let mut bytes = Vec::new();
            let read = file.and_then(|mut file| file.read_to_end(&mut bytes));
            read.expect("readable");
            (path.display().to_string(), bytes, times, meta.ino())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn the_block_is_found_by_its_image_and_by_itself() {
    let place = with_set();
    for path in ["set/m1.img", "set/m1.img.scb", "./set/../set/m1.img"] {
        let (stdout, stderr) = place.expect(0, &["examine", path]);
        assert!(
            stdout.contains("  member: m1, ") && stderr.is_empty(),
            "{stdout}{stderr}"
        );
        assert!(
            stdout.contains("verdict: a mount of m1 alone serves it as the source"),
            "{stdout}"
        );
    }
    let (stdout, _) = place.expect(0, &["examine", "set/m2.img", "--json"]);
    let value = json(&stdout);
    for key in [
        "path",
        "scb",
        "condition",
        "slot",
        "format",
        "block",
        "slots",
        "image",
        "verdict",
    ] {
        assert!(!value[key].is_null(), "{key}: {value}");
    }
    assert_eq!(value["block"]["member"], "m2");
    // Under another name, or elsewhere.
    fs::copy(place.path("set/m1.img.scb"), place.path("block")).expect("copied");
    place.expect(0, &["examine", "block"]);
    let (stdout, _) = place.expect(0, &["examine", "set/m2.img", "--scb", "block", "--json"]);
    assert_eq!(json(&stdout)["block"]["member"], "m1");
    // The image is gone, and its block is not.
    fs::remove_file(place.path("set/m1.img")).expect("removed");
    for path in ["set/m1.img", "set/m1.img.scb"] {
        let (stdout, _) = place.expect(0, &["examine", path, "--json"]);
        assert_eq!(json(&stdout)["image"]["exists"], false);
    }
}

#[test]
fn a_block_that_lies_elsewhere_is_found_by_the_configuration() {
    let place = with_set();
    fs::rename(place.path("set/m1.img.scb"), place.path("elsewhere")).expect("renamed");
    let (_, stderr) = place.expect(3, &["examine", "set/m1.img"]);
    assert!(
        stderr.contains("m1.img.scb, its SCB, is not there"),
        "{stderr}"
    );
    change(&place.path("conf/dsa1.toml"), |bytes| {
        let text = String::from_utf8(bytes.clone()).expect("UTF-8");
        let scb = format!(
            "scb = \"{}\"\n[[member]]",
            place.path("elsewhere").display()
        );
        // Into the first member's table.
        let mut parts = text.splitn(3, "[[member]]");
        let mut part = || parts.next().expect("two members").to_owned();
        *bytes = format!("{}[[member]]{}{scb}{}", part(), part(), part()).into_bytes();
    });
    let (stdout, _) = place.expect(0, &["examine", "set/m1.img", "--json"]);
    assert_eq!(json(&stdout)["block"]["member"], "m1");
}

#[test]
fn damage_is_1_with_what_could_be_read() {
    let place = with_set();
    let scb = place.path("set/m1.img.scb");
    let whole = fs::read(&scb).expect("readable");
    // The second slot, torn: the block is not lost.
    change(&scb, |bytes| bytes.extend_from_slice(&whole[..4000]));
    let (stdout, stderr) = place.expect(0, &["examine", "set/m1.img"]);
    assert!(
        stdout.contains("damaged: only 4000 of 8192 bytes are there"),
        "{stdout}"
    );
    assert!(stderr.is_empty(), "{stderr}");
    // Both slots.
    change(&scb, |bytes| bytes[4000] ^= 1);
    let (stdout, stderr) = place.expect(1, &["examine", "set/m1.img"]);
    assert!(stdout.contains("slot A says, unchecked:\n"), "{stdout}");
    assert!(stdout.contains("  member: m1, "), "{stdout}");
    assert!(
        stderr.contains("m1.img.scb is damaged: the checksum is 0x"),
        "{stderr}"
    );
    assert_eq!(
        stderr.lines().count(),
        2,
        "one sentence and a hint: {stderr}"
    );
    let (stdout, _) = place.expect(1, &["examine", "set/m1.img", "--json"]);
    let value = json(&stdout);
    assert_eq!(value["condition"], "damaged");
    assert_eq!(value["slots"][0]["unchecked"]["member"], "m1");
    // Of a newer version, and whole.
    fs::write(&scb, &whole).expect("writes");
    change(&scb, |bytes| {
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[..SLOT - 4]);
        bytes[SLOT - 4..SLOT].copy_from_slice(&crc.to_le_bytes());
    });
    let (stdout, stderr) = place.expect(1, &["examine", "set/m1.img"]);
    assert!(stdout.contains("  format: version 2, "), "{stdout}");
    assert!(stderr.contains("it has format version 2"), "{stderr}");
}

#[test]
fn what_is_no_block_is_refused_by_what_it_is() {
    let place = with_set();
    let empty = place.path("empty.scb");
    fs::write(&empty, "").expect("writes");
    fs::write(place.path("letter"), "Dear operator,").expect("writes");
    fs::write(place.path("letter.scb"), "Dear operator,").expect("writes");
    for (code, words, says) in [
        (
            1,
            &["examine", "empty.scb"][..],
            "is no SCB file: it is empty\n",
        ),
        (
            1,
            &["examine", "letter.scb"],
            "is no SCB file: it begins with 44 65 61 72 ",
        ),
        (1, &["examine", "letter"], "\"Dear operator,\"\n"),
        (
            1,
            &["examine", "conf"],
            "conf is a directory, no image and no SCB file\n",
        ),
        (
            1,
            &["examine", "/dev/null"],
            "is a character device, no image",
        ),
        (
            1,
            &["examine", "letter", "--scb", "conf"],
            "conf is a directory, no SCB file\n",
        ),
        (
            3,
            &["examine", "conf/dsa1.toml"],
            "conf/dsa1.toml is no SCB file, it begins with ",
        ),
        (
            3,
            &["examine", "none.img"],
            "none.img cannot be looked at: No such file",
        ),
        (
            3,
            &["examine", "set/m1.img", "--scb", "none"],
            "none cannot be opened: No such file",
        ),
        (2, &["examine"], "PATH"),
    ] {
        let (stdout, stderr) = place.expect(code, words);
        assert!(
            stdout.is_empty() && stderr.contains(says),
            "{words:?}: {stdout}{stderr}"
        );
    }
    let (stdout, _) = place.expect(3, &["examine", "none.img", "--json"]);
    assert_eq!(json(&stdout)["code"], "no-such-file");
}

#[test]
fn nothing_is_changed_whatever_is_found() {
    let place = with_set();
    fs::write(place.path("set/foreign.scb"), "Dear operator,").expect("writes");
    fs::write(place.path("set/empty.scb"), "").expect("writes");
    fs::write(place.path("set/alone.img"), [7; 512]).expect("writes");
    let damaged = place.path("set/m2.img.scb");
    change(&damaged, |bytes| bytes[4000] ^= 1);
    let before = snapshot(&place);
    for (path, _, _, _) in &before {
        for words in [&["examine", path][..], &["examine", path, "--json"]] {
            let output = place.run(words);
            assert!(
                output.status.code().is_some_and(|code| code < 4),
                "{output:?}"
            );
        }
    }
    assert_eq!(snapshot(&place), before);
}
