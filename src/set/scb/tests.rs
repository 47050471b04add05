//! The block's bytes: exact round trips, and nothing else is ever accepted.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::set::geometry::{Bytes, Lbn};
use crate::set::stamp::{DeviceFacts, Facts, FileFacts, Sample};

fn uuid(n: u8) -> Uuid {
    Uuid::from_bytes([n; 16])
}

fn block() -> Scb {
    let row = |n: u8, state| ScbRow {
        member: uuid(n),
        name: format!("m{n}"),
        path: PathBuf::from(format!("/srv/images/m{n}.img")),
        state,
    };
    let second = Generation::from_number(7).expect("in range");
    Scb {
        set: uuid(100),
        member: uuid(2),
        name: "m2".to_owned(),
        state: ScbState::Target,
        label: "payroll".to_owned(),
        generation: second.next(),
        lineage: Lineage::new(11).mounted(second, 12),
        geometry: Geometry::new(Bytes(1 << 20), 127).expect("valid"),
        clean: true,
        sequence: 3,
        table: vec![
            row(1, ScbState::Source),
            row(2, ScbState::Target),
            row(3, ScbState::Detached),
        ],
        created: Some(Moment(0x0102_0304_0506)),
        stamp: None,
    }
}

/// The block of the member that has left.
fn stamped(facts: Facts) -> Scb {
    let own = block().table[2].clone();
    Scb {
        member: own.member,
        name: own.name,
        state: own.state,
        stamp: Some(Stamp {
            size: 1 << 20,
            facts,
            samples: vec![sample(0, 21), sample(2040, 22)],
            opened: true,
            kept: true,
        }),
        ..block()
    }
}

fn sample(at: u64, hash: u64) -> Sample {
    Sample { at: Lbn(at), hash }
}

fn file() -> Facts {
    Facts::File(FileFacts {
        device: 31,
        inode: 32,
        mtime: (-2, 34),
        ctime: (35, 36),
        blocks: 33,
    })
}

fn device() -> Facts {
    Facts::Device(DeviceFacts {
        diskseq: 41,
        boot: uuid(43),
        written: 42,
    })
}

/// Gives a changed block the checksum that makes it whole.
fn sealed(mut bytes: [u8; SCB_BYTES]) -> [u8; SCB_BYTES] {
    let crc = crc32c::crc32c(&bytes[..SCB_BYTES - 4]);
    bytes[SCB_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn with(at: usize, value: &[u8]) -> Result<Scb, ScbError> {
    let mut bytes = block().encode().expect("encodes");
    bytes[at..at + value.len()].copy_from_slice(value);
    Scb::decode(&sealed(bytes))
}

#[test]
fn every_changed_byte_is_refused() {
    let good = block().encode().expect("encodes");
    for at in 0..SCB_BYTES {
        for flip in [1u8, 0x80, 0xff] {
            let mut bad = good;
            bad[at] ^= flip;
            assert!(Scb::decode(&bad).is_err(), "byte {at} xor {flip:#x}");
        }
    }
}

#[test]
fn a_truncated_block_is_refused_at_every_length() {
    let good = block().encode().expect("encodes");
    for len in 0..SCB_BYTES {
        assert_eq!(Scb::decode(&good[..len]), Err(ScbError::Truncated(len)));
    }
}

/// The offsets of `docs/format.md`, so that the codec and the document cannot both drift.
#[test]
fn the_bytes_are_where_the_format_says() {
    let bytes = block().encode().expect("encodes");
    assert_eq!(&bytes[..10], b"SHDWSCB\n\x01\0");
    assert_eq!(bytes[32..40], 3u64.to_le_bytes());
    assert_eq!(bytes[40..48], 8u64.to_le_bytes());
    assert_eq!(bytes[48..64], [100; 16]);
    assert_eq!(bytes[64..80], [2; 16]);
    assert_eq!(bytes[80..88], (1u64 << 20).to_le_bytes());
    assert_eq!(bytes[88..92], 127u32.to_le_bytes());
    assert_eq!(bytes[92..98], [1, 1, 3, 2, 2, 7]);
    assert_eq!(&bytes[104..107], b"m2\0");
    assert_eq!(&bytes[136..144], b"payroll\0");
    assert_eq!(bytes[256..264], 1u64.to_le_bytes());
    assert_eq!(bytes[280..288], 12u64.to_le_bytes());
    assert_eq!(bytes[1280..1296], [1; 16]);
    assert_eq!(bytes[1296 + 1088..1300 + 1088], [1, 2, 18, 0]);
    assert_eq!(&bytes[1312 + 2 * 1088..1315 + 2 * 1088], b"m3\0");
    assert_eq!(&bytes[1344..1364], b"/srv/images/m1.img\0\0");
    assert_eq!(bytes[200..208], 0x0102_0304_0506u64.to_le_bytes());
    assert_eq!(bytes[24..32], [0; 8], "no stamp, no feature");
    assert_eq!(bytes, sealed(bytes));
}

#[test]
fn the_bytes_of_a_stamp_are_where_the_format_says() {
    let bytes = stamped(file()).encode().expect("encodes");
    assert_eq!(bytes[24..32], 1u64.to_le_bytes());
    assert_eq!(bytes[7808..7816], [1, 2, 1, 1, 0, 0, 0, 0]);
    assert_eq!(bytes[7816..7824], (1u64 << 20).to_le_bytes());
    for (at, value) in [(7824, 31u64), (7832, 32), (7840, 33), (7856, 35)] {
        assert_eq!(bytes[at..at + 8], value.to_le_bytes(), "at {at}");
    }
    assert_eq!(bytes[7848..7856], (-2i64).to_le_bytes());
    assert_eq!(bytes[7864..7872], [34, 0, 0, 0, 36, 0, 0, 0]);
    for (at, value) in [(7872, 0u64), (7880, 21), (7888, 2040), (7896, 22)] {
        assert_eq!(bytes[at..at + 8], value.to_le_bytes(), "at {at}");
    }
    assert_eq!(bytes[7904..8188], [0; 284]);
    let bytes = stamped(device()).encode().expect("encodes");
    assert_eq!(bytes[7808..7810], [2, 2]);
    assert_eq!(bytes[7824..7832], 41u64.to_le_bytes());
    assert_eq!(bytes[7832..7840], 42u64.to_le_bytes());
    assert_eq!(bytes[7840..7856], [43; 16]);
    assert_eq!(bytes[7856..7872], [0; 16]);
}

#[test]
fn a_stamp_with_impossible_fields_is_refused() {
    let with = |scb: &Scb, at: usize, value: &[u8]| {
        let mut bytes = scb.encode().expect("encodes");
        bytes[at..at + value.len()].copy_from_slice(value);
        Scb::decode(&sealed(bytes))
    };
    let scb = stamped(file());
    for (at, value) in [
        (7808, &[0u8][..]),             // wiped
        (7808, &[3]),                   // unknown kind
        (7809, &[17]),                  // too many samples
        (7810, &[2]),                   // unknown mark
        (7811, &[2]),                   // unknown mark
        (7864, &[0, 0xca, 0x9a, 0x3b]), // a whole second of nanoseconds
        (7888, &[0, 0]),                // places that do not rise
    ] {
        assert!(with(&scb, at, value).is_err(), "{value:?} at {at}");
    }
    assert!(
        with(&block(), 24, &[1]).is_err(),
        "the feature, but no stamp"
    );
    let older = Scb {
        stamp: None,
        ..scb.clone()
    };
    assert_eq!(with(&scb, 24, &[0]), Ok(older), "no feature, so no stamp");
    let source = Scb {
        stamp: scb.stamp,
        ..block()
    };
    assert!(source.encode().is_err(), "who takes part has none");
}

#[test]
fn a_whole_block_of_a_newer_program_is_told_apart() {
    assert_eq!(with(8, &[2, 0]), Err(ScbError::Version(2)));
    assert_eq!(with(16, &[4]), Err(ScbError::Features(4)));
    assert_eq!(
        with(24, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        Ok(block()),
        "unknown compatible features are ignored"
    );
}

#[test]
fn whole_blocks_with_impossible_fields_are_refused() {
    for (at, value) in [
        (40, &[0u8; 8][..]), // generation 0
        (40, &[0xff; 8]),    // generation beyond the last
        (40, &[6, 0]),       // lineage beyond the generation
        (80, &[1]),          // size no multiple of 512
        (88, &[7, 0]),       // region too small
        (92, &[5]),          // unknown state
        (92, &[0]),          // state other than in the own row
        (93, &[2]),          // clean flag
        (94, &[0]),          // no row
        (94, &[1]),          // own row cut away
        (94, &[7]),          // too many rows
        (95, &[0]),          // no mount
        (95, &[65]),         // too many mounts
        (96, &[33]),         // name longer than its field
        (97, &[65]),         // label longer than its field
        (104, b"/"),         // name with a forbidden character
        (136, &[0xff]),      // label that is no UTF-8
        (272, &[1, 0]),      // lineage that does not rise
        (1280, &[2; 16]),    // a member twice
        (1296, &[9]),        // unknown state in a row
        (1298, &[0, 0]),     // empty path
        (1298, &[1, 4]),     // path longer than its field
        (1346, &[0]),        // path with a NUL
    ] {
        assert!(with(at, value).is_err(), "{value:?} at {at}");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_never_cut() {
    let mut long = block();
    long.table[0].path = PathBuf::from("/".repeat(PATH_BYTES_MAX + 1));
    let error = ScbError::PathTooLong {
        name: "m1".to_owned(),
        bytes: PATH_BYTES_MAX + 1,
    };
    assert_eq!(long.encode(), Err(error));
    long.table[0].path = PathBuf::from("/".repeat(PATH_BYTES_MAX));
    assert_eq!(
        Scb::decode(&long.encode().expect("the longest path")),
        Ok(long)
    );
    let name = Scb {
        label: "x".repeat(LABEL_BYTES_MAX + 1),
        ..block()
    };
    assert!(name.encode().is_err());
}

#[test]
fn names_follow_the_rule_of_the_manual() {
    for good in ["m1", "0", "A.b_c-d", &"x".repeat(32)] {
        assert_eq!(check_name(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        ".m1",
        "-m",
        "_m",
        "m/1",
        "m 1",
        "m\u{e9}",
        "m\n",
        &"x".repeat(33),
    ] {
        assert!(check_name(bad).is_err(), "{bad:?}");
    }
}

/// The next write would have had number 0, and would never have been the newest.
#[test]
fn a_number_that_no_write_can_follow_is_refused() {
    let at = |sequence| {
        let scb = Scb {
            sequence,
            ..block()
        };
        Scb::decode(&scb.encode().expect("encodes"))
    };
    assert!(at(u64::MAX - 1).is_ok());
    let error = at(u64::MAX).expect_err("the last number");
    assert!(matches!(error, ScbError::Field { field, .. } if field == "number of the write"));
}

#[test]
fn the_newer_of_two_slots_wins_and_a_torn_one_loses_nothing() {
    let at = |sequence| {
        Scb {
            sequence,
            ..block()
        }
        .encode()
        .expect("encodes")
    };
    let (old, new) = (at(4), at(5));
    let blank = [0; SCB_BYTES];
    let mut torn = new;
    torn[4096..].copy_from_slice(&old[4096..]);
    torn[200] ^= 1;
    let picked = |a: &[u8], b: &[u8]| newest(a, b).map(|(slot, scb)| (slot, scb.sequence));
    assert_eq!(picked(&old, &new), Ok((Slot::B, 5)));
    assert_eq!(picked(&new, &old), Ok((Slot::A, 5)));
    assert_eq!(picked(&old, &torn), Ok((Slot::A, 4)));
    assert_eq!(picked(&torn, &old), Ok((Slot::B, 4)));
    assert_eq!(picked(&new, &blank), Ok((Slot::A, 5)));
    assert_eq!(picked(&new, &[]), Ok((Slot::A, 5)));
    assert!(matches!(
        picked(&torn, &blank),
        Err(ScbError::Checksum { .. })
    ));
    assert!(matches!(
        picked(&blank, &torn),
        Err(ScbError::Checksum { .. })
    ));
    assert_eq!(picked(&blank, &blank), Err(ScbError::NoMagic));
    assert_eq!(picked(&blank, &[]), Err(ScbError::NoMagic), "it holds more");
    assert_eq!(picked(&new, &new), Ok((Slot::A, 5)), "the first of equals");
}

#[test]
fn a_slot_of_a_newer_program_is_not_passed_over() {
    let old = block().encode().expect("encodes");
    let mut bytes = old;
    bytes[8] = 2;
    assert_eq!(newest(&old, &sealed(bytes)), Err(ScbError::Version(2)));
    assert_eq!(newest(&sealed(bytes), &old), Err(ScbError::Version(2)));
}

#[test]
fn a_member_has_one_row_and_a_name_of_its_own() {
    let with = |member: Option<Uuid>, name: Option<&str>| {
        let mut scb = block();
        let mut row = scb.table[0].clone();
        row.member = member.unwrap_or(row.member);
        row.name = name.map_or(row.name, ToOwned::to_owned);
        scb.table.push(row);
        scb.check().is_ok()
    };
    let other = Some(uuid(77));
    assert!(with(other, Some("another")));
    assert!(!with(other, None) && !with(None, Some("another")));
}

#[test]
fn a_label_may_have_64_bytes() {
    assert!(check_label(&"x".repeat(64)).is_ok());
    assert!(check_label(&"x".repeat(65)).is_err());
}

/// A mount that is not known, and not older than all that are, was of another line.
#[test]
fn only_what_is_older_than_all_known_mounts_is_forgotten() {
    let generation = |n| Generation::from_number(n).expect("in range");
    let mut line = Lineage::new(1);
    for n in 2..=LINEAGE_MAX as u64 + 1 {
        line = line.mounted(generation(n), n);
    }
    let other = Lineage::new(999);
    let ancestry = |n| line.ancestry(generation(n), &other);
    assert_eq!(ancestry(1), Ancestry::Forgotten);
    assert_eq!(ancestry(2), Ancestry::Foreign);
}

#[test]
fn a_lineage_remembers_the_last_mounts() {
    let generation = |n| Generation::from_number(n).expect("in range");
    let mut line = Lineage::new(1);
    assert!(line.remembers(1) && !line.remembers(0));
    for n in 2..=LINEAGE_MAX as u64 + 1 {
        line = line.mounted(generation(n), n);
    }
    assert_eq!(line.mounts().len(), LINEAGE_MAX);
    assert_eq!(line.mounts()[0], (generation(2), 2), "the oldest has gone");
    assert!(line.remembers(2) && !line.remembers(1));
}

#[test]
fn a_lineage_knows_its_ancestors() {
    let g = |n| Generation::from_number(n).expect("in range");
    let line = Lineage::new(1).mounted(g(5), 2).mounted(g(9), 3);
    let before = Lineage::new(1).mounted(g(5), 2);
    assert_eq!(line.ancestry(g(8), &before), Ancestry::Ancestor);
    assert_eq!(
        line.ancestry(g(9), &before),
        Ancestry::Foreign,
        "went on beside the line"
    );
    assert_eq!(line.ancestry(g(12), &line), Ancestry::Ancestor);
    assert_eq!(
        line.ancestry(g(9), &before.mounted(g(9), 4)),
        Ancestry::Foreign
    );
    let long = (0..70).fold(line.clone(), |l, n| l.mounted(g(10 + n), 100 + n));
    assert_eq!(long.mounts.len(), LINEAGE_MAX);
    assert_eq!(long.ancestry(g(8), &before), Ancestry::Forgotten);
    assert_eq!(
        long.ancestry(g(78), &before.mounted(g(9), 4)),
        Ancestry::Foreign
    );
}

prop_compose! {
    fn any_stamp()(
        size in any::<u64>(),
        is_file in any::<bool>(),
        marks in any::<(bool, bool)>(),
        numbers in (any::<u64>(), any::<u64>(), any::<u64>(), any::<u128>()),
        times in ((any::<i64>(), 0u32..1_000_000_000), (any::<i64>(), 0u32..1_000_000_000)),
        samples in proptest::collection::btree_map(any::<u64>(), any::<u64>(), 0..=SAMPLES_MAX),
    ) -> Stamp {
        let (device, inode, blocks, boot) = numbers;
        let facts = match is_file {
            true => Facts::File(FileFacts { device, inode, blocks, mtime: times.0, ctime: times.1 }),
            false => Facts::Device(DeviceFacts { diskseq: device, written: inode, boot: Uuid::from_u128(boot) }),
        };
        let samples = samples.into_iter().map(|(at, hash)| sample(at, hash)).collect();
        Stamp { size, facts, samples, opened: marks.0, kept: marks.1 }
    }
}

prop_compose! {
    fn any_block()(
        rows in proptest::collection::vec((0u8..5, "[a-zA-Z0-9][a-zA-Z0-9._-]{0,29}", "/[^\0]{0,255}"), 1..=6),
        own in any::<prop::sample::Index>(),
        label in "[a-z \u{e4}]{0,32}",
        mounts in proptest::collection::vec((1u64..1000, any::<u64>()), 0..70),
        numbers in (1u64..1 << 40, 8u32..=8192, any::<u64>(), any::<u64>()),
        clean in any::<bool>(),
        created in proptest::option::of(1..u64::MAX),
        stamp in proptest::option::of(any_stamp()),
    ) -> Scb {
        let table: Vec<ScbRow> = rows.into_iter().zip(0u8..).map(|((state, name, path), n)| ScbRow {
            member: uuid(n),
            name: format!("{n}{name}"),
            path: PathBuf::from(path),
            state: ScbState::ALL[usize::from(state)],
        }).collect();
        let mut generation = Generation::FIRST;
        let mut lineage = Lineage::new(7);
        for (step, mark) in mounts {
            generation = Generation::from_number(generation.number() + step).expect("in range");
            lineage = lineage.mounted(generation, mark);
        }
        let own = own.get(&table).clone();
        let (blocks, region, sequence, set) = numbers;
        Scb {
            set: Uuid::from_u64_pair(set, sequence),
            member: own.member,
            name: own.name.clone(),
            state: own.state,
            label,
            generation,
            lineage,
            geometry: Geometry::new(Bytes(blocks * 512), region).expect("valid"),
            clean,
            sequence,
            table,
            created: created.map(Moment),
            stamp: stamp.filter(|_| own.state.has_left()),
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(scb in any_block()) {
        let bytes = scb.encode();
        prop_assert!(bytes.is_ok(), "{:?}", bytes.err());
        prop_assert_eq!(Scb::decode(&bytes.expect("checked")), Ok(scb));
    }

    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
        prop_assert!(Scb::decode(&bytes).is_err());
    }

    /// Whole blocks with random content: an error or a block that reads back as itself.
    #[test]
    fn sealed_garbage_never_panics(
        scb in any_block(),
        pokes in proptest::collection::vec((10usize..SCB_BYTES - 4, any::<u8>()), 1..40),
    ) {
        let mut bytes = scb.encode().expect("encodes");
        for (at, value) in pokes {
            bytes[at] = value;
        }
        if let Ok(read) = Scb::decode(&sealed(bytes)) {
            let again = read.encode().expect("what was read can be written");
            prop_assert_eq!(Scb::decode(&again), Ok(read));
        }
    }
}

/// What people are shown of a damaged slot stands where the block has it.
#[test]
fn claims_are_those_of_the_block() {
    let scb = block();
    let mut bytes = scb.encode().expect("encodes").to_vec();
    assert_eq!(claims(&bytes[..16]), None);
    assert_eq!(claims(b"somebody's letters, and many more of them"), None);
    bytes[24] = 6;
    let damaged = claims(&bytes).expect("begins like a slot");
    assert_eq!(
        (damaged.version, damaged.incompatible, damaged.compatible),
        (1, 0, 6)
    );
    assert_eq!(damaged.content, Content::Block(Box::new(scb.clone())));
    // The carrier's row says another state: no block, whatever the checksum.
    bytes[92] = 0;
    let header = Header {
        sequence: scb.sequence,
        generation: scb.generation.number(),
        set: scb.set,
        member: scb.member,
        size: scb.geometry.size().0,
        region_blocks: scb.geometry.region_blocks(),
        state: Some(ScbState::Source),
        clean: Some(scb.clean),
        name: scb.name,
        label: scb.label,
    };
    for len in [200, 1000, SCB_BYTES] {
        let cut = claims(&bytes[..len]).expect("begins like a slot");
        assert_eq!(cut.content, Content::Header(header.clone()), "{len} bytes");
    }
    let short = claims(&bytes[..199]).expect("begins like a slot");
    assert_eq!(short.content, Content::Unknown);
    bytes[8] = 2;
    let newer = claims(&bytes).expect("begins like a slot");
    assert_eq!((newer.version, newer.content), (2, Content::Unknown));
}

/// So that the next one exists for every generation that is read.
#[test]
fn a_generation_is_at_most_half_of_what_a_number_can_be() {
    let last = u64::MAX / 2;
    assert_eq!(
        Generation::from_number(last).map(Generation::number),
        Some(last)
    );
    assert_eq!(Generation::from_number(last + 1), None);
    assert_eq!(Generation::from_number(0), None);
}
