//! Files that version 1 of each format wrote, kept so that later versions go on reading them. The set had
//! three members of 16 MiB; m3 was detached with a bitmap, block 20000 was written, the daemon killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use shadowset::io::journal::{Durability, Journal, Options};
use shadowset::io::scb_file;
use shadowset::set::{
    BitmapKind, BitmapRecord, Bytes, Geometry, Scb, ScbFound, ScbState, WriteBitmap, assess,
};

/// Bytes of a journal of this unit; behind the ones that are kept there are zeros.
const JOURNAL_BYTES: u64 = 4_268_032;

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/formats/v1")
        .join(name)
}

fn block(name: &str) -> Scb {
    match scb_file::read(&sample(name)).expect("read") {
        ScbFound::Read(scb) => scb,
        other => panic!("{name}: {other:?}"),
    }
}

/// The bitmaps of the journal, opened in a copy.
fn bitmaps(scb: &Scb) -> Vec<(BitmapRecord, WriteBitmap)> {
    let dir = tempfile::tempdir().expect("a directory");
    fs::copy(sample("journal.a"), dir.path().join("journal.a")).expect("copied");
    for name in ["journal.a", "journal.b"] {
        let file = File::options()
            .create(true)
            .append(true)
            .open(dir.path().join(name));
        file.and_then(|f| f.set_len(JOURNAL_BYTES)).expect("a file");
    }
    let options = Options {
        durability: Durability::Power,
        grain_words: 1,
    };
    let opened = Journal::open(dir.path(), scb.set, scb.geometry, options);
    opened.expect("opened").1
}

#[test]
fn a_control_block_of_version_1_is_read() {
    let geometry = Geometry::new(Bytes(16 << 20), 127).expect("valid");
    let (source, away) = (block("m1.img.scb"), block("m3.img.scb"));
    for (scb, name, state) in [
        (&source, "m1", ScbState::Source),
        (&away, "m3", ScbState::Detached),
    ] {
        assert_eq!((scb.name.as_str(), scb.state), (name, state));
        assert_eq!((scb.label.as_str(), scb.geometry), ("dsa1", geometry));
        assert_eq!(scb.generation.number(), 3);
        assert!(scb.created.is_some(), "when the set was created");
        let table: Vec<_> = scb
            .table
            .iter()
            .map(|r| (r.name.as_str(), r.state))
            .collect();
        let expected = [
            ("m1", ScbState::Source),
            ("m2", ScbState::Source),
            ("m3", ScbState::Detached),
        ];
        assert_eq!(table, expected);
    }
    assert!(!source.clean && source.stamp.is_none());
    assert!(away.clean && away.stamp.is_some(), "m3 was stamped");
    assert_eq!((source.set, &source.lineage), (away.set, &away.lineage));
}

/// The block of m2 of a set of two, stopped in order.
#[test]
fn the_stamp_of_a_stop_of_version_1_is_read() {
    let scb = block("stopped.img.scb");
    assert_eq!((scb.name.as_str(), scb.state), ("m2", ScbState::Source));
    assert_eq!((scb.clean, scb.generation.number()), (true, 3));
    let stamp = scb.stamp.expect("behind the slots");
    assert_eq!((stamp.size, stamp.samples.len()), (16 << 20, 16));
    assert!(!stamp.kept && !stamp.opened);
}

#[test]
fn a_journal_of_version_1_is_read() {
    let scb = block("m1.img.scb");
    let maps = bitmaps(&scb);
    let departed: Vec<_> = maps
        .iter()
        .filter(|(r, _)| r.kind == BitmapKind::Departed)
        .collect();
    let [(record, bits)] = departed[..] else {
        panic!("{maps:?}");
    };
    assert_eq!(record.owner, block("m3.img.scb").member);
    let written = scb
        .geometry
        .clip(Bytes(20_000 * 512), Bytes(512))
        .expect("inside");
    assert!(
        bits.is_stale(written),
        "block 20000 was written after the detach"
    );
    let records: Vec<_> = maps.iter().map(|(record, _)| *record).collect();
    let found = [shadowset::set::Found {
        name: "m1".into(),
        image: Some(Bytes(16 << 20)),
        scb: ScbFound::Read(scb),
    }];
    assert!(assess(&found, &records).expect("assembles").believed);
}
