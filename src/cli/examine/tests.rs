//! What people and programs are shown, for blocks in every condition.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use uuid::Uuid;

use super::*;
use crate::io::scb_file::ScbFile;
use crate::set::geometry::{Bytes, Geometry};
use crate::set::scb::{Generation, Lineage, SCB_BYTES, ScbState};

const PLAIN: Out = Out {
    json: false,
    terminal: false,
    color: false,
};

fn generation(number: u64) -> Generation {
    Generation::from_number(number).expect("in range")
}

/// A place with an image and the file of its block.
struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self {
            dir: tempfile::tempdir().expect("a directory"),
        };
        let image = fs::File::create(site.image()).expect("an image");
        image.set_len(1 << 20).expect("sparse");
        site
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("m1.img")
    }

    fn scb(&self) -> PathBuf {
        self.dir.path().join("m1.img.scb")
    }

    fn block(&self) -> Scb {
        let row = |n: u8, state| ScbRow {
            member: Uuid::from_bytes([n; 16]),
            name: format!("m{n}"),
            path: self.dir.path().join(format!("m{n}.img")),
            state,
        };
        Scb {
            set: Uuid::from_bytes([9; 16]),
            member: Uuid::from_bytes([1; 16]),
            name: "m1".to_owned(),
            state: ScbState::Source,
            label: "payroll".to_owned(),
            generation: generation(8),
            lineage: Lineage::new(11)
                .mounted(generation(2), 12)
                .mounted(generation(7), 13),
            geometry: Geometry::new(Bytes(1 << 20), 127).expect("valid"),
            clean: true,
            sequence: 0,
            table: vec![row(1, ScbState::Source), row(2, ScbState::Detached)],
            created: None,
            stamp: None,
        }
    }

    /// Writes the blocks one after the other: the last one counts.
    fn write(&self, blocks: &[Scb]) {
        let mut file = ScbFile::overwrite(&self.scb()).expect("opens");
        for block in blocks {
            file.write(block).expect("writes");
        }
    }

    /// Two writes: the slot B counts.
    fn written(self) -> Self {
        let block = self.block();
        let before = Scb {
            generation: generation(7),
            clean: false,
            ..block.clone()
        };
        self.write(&[before, block]);
        self
    }

    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.scb()).expect("readable");
        change(&mut bytes);
        fs::write(self.scb(), bytes).expect("writes");
    }

    fn report(&self) -> Report {
        let args = ExamineArgs {
            path: self.image(),
            scb: None,
        };
        examine(&args).expect("a report")
    }

    /// The text with the directory's name taken out.
    fn text(&self) -> String {
        let dir = self.dir.path().display().to_string();
        self.report().text(PLAIN).replace(&dir, "/dir")
    }
}

/// Gives a changed slot the checksum that makes it whole.
fn seal(bytes: &mut [u8], slot: Slot) {
    let from = usize::try_from(slot.offset()).expect("small");
    let slot = &mut bytes[from..from + SCB_BYTES];
    let crc = crc32c::crc32c(&slot[..SCB_BYTES - 4]);
    slot[SCB_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_whole_block_reads_like_this() {
    let expected = "     scb: /dir/m1.img.scb, whole
  format: version 1, features 0x0 incompatible, 0x0 compatible
     set: 09090909-0909-0909-0909-090909090909 \"payroll\"
  member: m1, 01010101-0101-0101-0101-010101010101
   state: source, clean, generation 8, sequence 2
    unit: 1.00 MiB (2048 blocks), regions of 127 blocks
 lineage: 2 mounts since the creation, newest first, from generation 7, 2
   image: /dir/m1.img, 1.00 MiB, large enough, not locked

SLOT  SEQUENCE  GENERATION  STATE   CLEAN
A     1         7           source  no
B     2         8           source  yes    the newest

MEMBER     STATE     UUID                                  PATH
m1 (this)  source    01010101-0101-0101-0101-010101010101  /dir/m1.img
m2         detached  02020202-0202-0202-0202-020202020202  /dir/m2.img

verdict: a mount of m1 alone serves it as the source; a member with a higher generation than 8 would win over it
";
    assert_eq!(Site::new().written().text(), expected);
}

#[test]
fn programs_get_all_of_it() {
    let value = Site::new().written().report().value();
    let value: Value = serde_json::from_str(&value.to_string()).expect("JSON");
    for (pointer, expected) in [
        ("/condition", "whole".into()),
        ("/slot", "B".into()),
        ("/format/version", 1.into()),
        ("/format/incompatible", "0x0".into()),
        ("/block/uuid", "09090909-0909-0909-0909-090909090909".into()),
        ("/block/label", "payroll".into()),
        ("/block/member", "m1".into()),
        ("/block/state", "source".into()),
        ("/block/generation", 8.into()),
        ("/block/sequence", 2.into()),
        ("/block/clean", true.into()),
        ("/block/size", (1 << 20).into()),
        ("/block/region_blocks", 127.into()),
        ("/block/mounts", 2.into()),
        ("/block/lineage/0/generation", 7.into()),
        ("/block/lineage/0/mark", "000000000000000d".into()),
        ("/block/lineage/2/creation", true.into()),
        ("/block/members/1/name", "m2".into()),
        ("/block/members/1/state", "detached".into()),
        ("/slots/0/generation", 7.into()),
        ("/slots/1/newest", true.into()),
        ("/image/found", "argument".into()),
        ("/image/exists", true.into()),
        ("/image/large_enough", true.into()),
        ("/image/locked", false.into()),
        ("/verdict/alone", "source".into()),
        ("/verdict/code", Value::Null),
    ] {
        assert_eq!(
            value.pointer(pointer),
            Some(&expected),
            "{pointer}: {value}"
        );
    }
}

#[test]
fn a_torn_slot_is_told_and_the_other_one_counts() {
    let site = Site::new().written();
    site.change(|bytes| bytes[SCB_BYTES + 300] ^= 1);
    let report = site.report();
    let value = report.value();
    assert_eq!(
        (&value["condition"], &value["slot"]),
        (&"torn".into(), &"A".into())
    );
    assert_eq!(value["block"]["generation"], 7);
    let reason = value["slots"][1]["reason"].as_str().expect("a reason");
    assert!(
        reason.starts_with("damaged: the checksum is 0x"),
        "{reason}"
    );
    // What the torn slot says is there too, and said to be unchecked.
    assert_eq!(value["slots"][1]["unchecked"]["generation"], 8);
    let text = site.text();
    assert!(
        text.contains("whole in one slot, the other is damaged"),
        "{text}"
    );
    assert!(
        text.contains("B     -         -           -       -      damaged: "),
        "{text}"
    );
}

#[test]
fn of_two_damaged_slots_everything_is_shown_that_can_be_read() {
    let site = Site::new().written();
    // A byte of the table; and the code of the state, which makes the rest unreadable as a block.
    site.change(|bytes| {
        bytes[SCB_BYTES - 400] ^= 1;
        bytes[SCB_BYTES + 92] = 77;
    });
    let report = site.report();
    let value = report.value();
    assert_eq!(value["condition"], "damaged");
    assert_eq!(
        (&value["block"], &value["slot"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(value["slots"][0]["unchecked"]["members"][1]["name"], "m2");
    assert_eq!(value["slots"][1]["unchecked"]["generation"], 8);
    assert_eq!(value["slots"][1]["unchecked"]["state"], Value::Null);
    assert_eq!(value["verdict"]["code"], "config");
    let text = site.text();
    for part in [
        "scb: /dir/m1.img.scb, damaged\n",
        "slot A says, unchecked:\n",
        "m2         detached  02020202",
        "slot B says, unchecked:\n",
        "   state: of no known state, clean, generation 8, sequence 2\n",
        "verdict: a mount with this SCB is refused: the checksum is 0x",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let error = report.newest.as_ref().expect_err("damaged");
    let error = unusable(&report, error);
    assert_eq!((error.code(), error.exit_code()), (Code::Config, 1));
}

#[test]
fn a_slot_that_was_never_written_is_no_damage() {
    let site = Site::new();
    site.write(&[site.block()]);
    assert_eq!(site.report().value()["condition"], "whole");
    let text = site.text();
    assert!(
        text.contains("B     -         -           -       -      not written yet\n"),
        "{text}"
    );
    // The second write was cut: there is something, and it is not whole.
    site.change(|bytes| bytes.extend_from_slice(b"SHDWSCB\n\x01\0"));
    let value = site.report().value();
    assert_eq!(value["condition"], "torn");
    assert_eq!(
        value["slots"][1]["reason"],
        "damaged: only 10 of 8192 bytes are there"
    );
}

#[test]
fn a_newer_version_or_feature_says_so_and_the_older_slot_does_not_count() {
    for (at, byte, says) in [
        (
            8,
            7,
            "it has format version 7, this program knows version 1",
        ),
        (
            16,
            4,
            "it uses features that this program does not know (0x4)",
        ),
    ] {
        let site = Site::new().written();
        site.change(|bytes| {
            bytes[SCB_BYTES + at] = byte;
            seal(bytes, Slot::B);
        });
        let report = site.report();
        let value = report.value();
        assert_eq!(value["condition"], "newer");
        assert_eq!(value["block"], Value::Null);
        assert_eq!(value["slots"][1]["reason"], says);
        assert_eq!(value["slots"][1]["unchecked"], Value::Null);
        assert_eq!(value["slots"][0]["generation"], 7);
        let key = if at == 8 { "version" } else { "incompatible" };
        let shown = if at == 8 { 7.into() } else { "0x4".into() };
        assert_eq!(
            (&value["format"][key], &value["slots"][1]["format"][key]),
            (&shown, &shown)
        );
        let text = site.text();
        assert!(
            text.contains("of a newer format than this program knows"),
            "{text}"
        );
        let error = unusable(&report, report.newest.as_ref().expect_err("newer"));
        assert_eq!((error.code(), error.exit_code()), (Code::NotSupported, 1));
        assert!(error.to_string().ends_with(says), "{error}");
    }
}

#[test]
fn a_file_that_is_no_block_is_told_by_its_first_bytes() {
    let site = Site::new();
    for (content, says) in [
        (&b""[..], "it is empty"),
        (
            b"\x7fELF\x02",
            "it begins with 7f 45 4c 46 02, \"\\x7fELF\\x02\"",
        ),
        (&[0; 20_000], "it begins with zeros: 00 00"),
    ] {
        fs::write(site.scb(), content).expect("writes");
        let args = ExamineArgs {
            path: site.scb(),
            scb: None,
        };
        let error = examine(&args).expect_err("no block");
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!((error.code(), error.exit_code()), (Code::Config, 1));
    }
}

#[test]
fn the_verdict_is_that_of_the_election() {
    let site = Site::new();
    let verdict = |change: &dyn Fn(&mut Scb)| {
        let mut block = site.block();
        change(&mut block);
        site.write(&[block]);
        site.report().value()["verdict"].clone()
    };
    let state = |state: ScbState| {
        move |block: &mut Scb| {
            block.state = state;
            block.table[0].state = state;
        }
    };
    for left in [ScbState::Target, ScbState::Detached, ScbState::Expelled] {
        let value = verdict(&state(left));
        assert_eq!(
            (&value["alone"], &value["code"]),
            (&"refused".into(), &"needs-copy".into())
        );
    }
    let value = verdict(&state(ScbState::Merging));
    let says = value["sentence"].as_str().expect("text");
    assert!(says.contains("; its merge had not ended"), "{says}");
    let value = verdict(&|block| {
        block.clean = false;
        block.table[1].state = ScbState::Source;
    });
    let says = value["sentence"].as_str().expect("text");
    let expected = "a mount of m1 alone serves it as the source, without m2; with the other sources \
                    a merge follows; ";
    assert!(says.starts_with(expected), "{says}");
    let value = verdict(&|b| b.geometry = Geometry::new(Bytes(2 << 20), 127).expect("valid"));
    assert_eq!(value["code"], "member-too-small");
    fs::remove_file(site.image()).expect("removed");
    let report = site.report();
    assert_eq!(report.value()["image"]["exists"], false);
    assert_eq!(report.value()["verdict"]["code"], "needs-copy");
}

#[test]
fn a_locked_image_is_seen_without_taking_its_lock() {
    let site = Site::new().written();
    let image = crate::io::Image::open(&site.image(), crate::io::IoMode::Buffered).expect("opens");
    let value = site.report().value();
    assert_eq!(value["image"]["locked"], true);
    assert_eq!(value["verdict"]["code"], "image-locked");
    drop(image);
    assert_eq!(site.report().value()["image"]["locked"], false);
}

#[test]
fn texts_of_a_foreign_file_cannot_reach_the_terminal() {
    let site = Site::new();
    let mut block = site.block();
    block.table[1].path = PathBuf::from("/a\x1b]0;pwned\x07");
    site.write(&[block]);
    let text = site.text();
    assert!(
        !text.contains('\x1b') && text.contains("/a\\u{1b}]0;pwned\\u{7}"),
        "{text}"
    );
}

#[test]
fn a_block_device_is_told_its_size_without_being_opened() {
    let site = Site::new().written();
    let device = crate::io::testing::Loop::new(&site.image());
    let args = ExamineArgs {
        path: device.device.clone(),
        scb: Some(site.scb()),
    };
    let value = examine(&args).expect("a report").value();
    assert_eq!(value["image"]["kind"], "block-device");
    assert_eq!(value["image"]["size"], 1 << 20);
    assert_eq!(value["image"]["locked"], Value::Null);
    assert_eq!(value["verdict"]["alone"], "source");
    // The image below it is in use by it.
    let value = site.report().value();
    let path = device.device.display().to_string();
    assert_eq!(value["image"]["loop_devices"][0], path.as_str());
    assert_eq!(value["verdict"]["code"], "in-use");
    let args = ExamineArgs {
        path: device.device.clone(),
        scb: None,
    };
    let error = examine(&args).expect_err("no unit has it");
    assert_eq!((error.code(), error.exit_code()), (Code::NoSuchFile, 3));
}

#[test]
fn a_block_of_a_member_that_left_tells_what_its_image_looked_like() {
    use crate::set::stamp::{Facts, FileFacts};
    let facts = FileFacts {
        inode: 12,
        ..FileFacts::default()
    };
    let stamp = crate::set::Stamp {
        size: 1 << 20,
        facts: Facts::File(facts),
        samples: Vec::new(),
        opened: true,
        kept: false,
    };
    let block = Scb {
        state: ScbState::Detached,
        stamp: Some(stamp),
        ..Site::new().block()
    };
    let line = fields::of_block(&block).pop().expect("lines");
    assert_eq!(
        line.text,
        "1.00 MiB file, inode 12, 0 places hashed, opened by somebody since"
    );
    assert_eq!(line.values[0].1["facts"]["inode"], 12);
}
