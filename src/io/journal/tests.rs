//! The journal on real files, and bytes that nobody wrote.

mod disk;
mod sim;
mod speed;
mod threads;

use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use disk::{Sim, layout};

use super::backing::Backing;
use super::log::{Batch, Life, encode_batch};
use super::segment::{Segment, write_note};
use super::*;
use crate::io::testing::eventually;
use crate::set::{BitmapKind, BitmapTag, Bytes, CopyKind, Moment, Policy};

const SET: Uuid = Uuid::from_bytes([9; 16]);
const POWER: Options = Options {
    durability: Durability::Power,
    grain_words: 2,
};
const CRASH: Options = Options {
    durability: Durability::Crash,
    grain_words: 2,
};

/// A unit with this many regions of 8 blocks.
fn unit(regions: u64) -> Geometry {
    Geometry::new(Bytes(regions * 4096), 8).unwrap()
}

fn regions(g: Geometry, first: u64, end: u64) -> Regions {
    g.regions_of(
        g.clip(Bytes(first * 4096), Bytes((end - first) * 4096))
            .unwrap(),
    )
}

fn record(key: u32) -> BitmapRecord {
    let tag = BitmapTag {
        id: BitmapId(key),
        policy: Policy::Full,
        created: Moment(1_700_000_000_123),
        generation: u64::from(key) + 7,
    };
    BitmapRecord {
        tag,
        kind: super::record::kind_of(u8::try_from(key % 7).unwrap()).unwrap(),
        owner: Uuid::from_u128(u128::from(key) << 70),
    }
}

fn open(dir: &Path, g: Geometry, options: Options) -> (Journal, Vec<(BitmapRecord, WriteBitmap)>) {
    // A program that another test starts holds all locks of this one until it runs.
    eventually(|| match Journal::open(dir, SET, g, options) {
        Err(OpenError::InUse) => None,
        other => Some(other.unwrap()),
    })
}

/// A bitmap with these runs of regions and nothing else.
fn only(g: Geometry, runs: &[(u64, u64)]) -> WriteBitmap {
    let map = WriteBitmap::empty(g);
    for (first, end) in runs {
        map.mark(regions(g, *first, *end));
    }
    map
}

fn set_regions(map: &WriteBitmap) -> Vec<u64> {
    map.to_bits().iter_ones().map(|r| r as u64).collect()
}

#[test]
fn what_was_marked_is_there_after_reopening_in_whole_groups() {
    let dir = tempfile::tempdir().unwrap();
    let g = unit(64 * 7 + 5);
    let journal = Journal::create(dir.path(), SET, g, POWER).unwrap();
    let seed = only(g, &[(3, 4), (450, 453)]);
    journal.add(record(1), &WriteBitmap::empty(g)).unwrap();
    journal.add(record(2), &seed).unwrap();
    journal
        .mark(&[BitmapId(1), BitmapId(2)], regions(g, 200, 201))
        .unwrap();
    assert!(journal.covers(BitmapId(1), regions(g, 128, 256)));
    assert!(!journal.covers(BitmapId(1), regions(g, 128, 257)));
    drop(journal);
    let (journal, maps) = open(dir.path(), g, POWER);
    let group: Vec<u64> = (128..256).collect();
    assert_eq!(maps[0].0, record(1));
    assert_eq!(set_regions(&maps[0].1), group);
    assert_eq!(maps[1].0, record(2));
    assert_eq!(
        set_regions(&maps[1].1),
        [&[3][..], &group, &[450, 451, 452]].concat()
    );
    journal.remove(BitmapId(1)).unwrap();
    journal.retain(BitmapId(2), &only(g, &[(450, 453)]));
    let moved = BitmapRecord {
        kind: BitmapKind::Copying(CopyKind::Mini),
        ..record(2)
    };
    journal.describe(moved).unwrap();
    journal.checkpoint().unwrap();
    drop(journal);
    let (journal, maps) = open(dir.path(), g, POWER);
    assert_eq!(maps.len(), 1);
    assert_eq!(
        (maps[0].0, set_regions(&maps[0].1)),
        (moved, vec![450, 451, 452])
    );
    journal.mark(&[BitmapId(2)], g.all_regions()).unwrap();
    assert!(journal.covers(BitmapId(2), g.all_regions()));
}

/// A copy step is smaller than a group; what it drained must not come back for its neighbours' sake.
#[test]
fn a_region_that_was_not_retained_has_to_be_marked_again() {
    let dir = tempfile::tempdir().unwrap();
    let g = unit(256);
    let journal = Journal::create(dir.path(), SET, g, POWER).unwrap();
    journal.add(record(1), &WriteBitmap::full(g)).unwrap();
    journal.retain(BitmapId(1), &only(g, &[(0, 10), (20, 256)]));
    assert!(!journal.covers(BitmapId(1), regions(g, 19, 20)));
    assert!(journal.covers(BitmapId(1), regions(g, 20, 256)));
    journal.checkpoint().unwrap();
    journal.mark(&[BitmapId(1)], regions(g, 12, 13)).unwrap();
    assert!(journal.covers(BitmapId(1), g.all_regions()));
    drop(journal);
    assert_eq!(open(dir.path(), g, POWER).1[0].1.count(), 256);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let g = unit(64);
    let journal = Journal::create(dir.path(), SET, g, POWER).unwrap();
    let kind = |r: io::Result<()>| r.map_err(|e| e.kind());
    let empty = WriteBitmap::empty(g);
    for key in 0..16 {
        assert_eq!(kind(journal.add(record(key), &empty)), Ok(()));
    }
    assert_eq!(
        kind(journal.add(record(16), &empty)),
        Err(ErrorKind::StorageFull)
    );
    assert_eq!(
        kind(journal.add(record(3), &empty)),
        Err(ErrorKind::AlreadyExists)
    );
    assert_eq!(kind(journal.remove(BitmapId(77))), Err(ErrorKind::NotFound));
    assert_eq!(
        kind(journal.absorb(BitmapId(77), &WriteBitmap::full(g))),
        Err(ErrorKind::NotFound)
    );
    assert_eq!(kind(journal.describe(record(77))), Err(ErrorKind::NotFound));
    journal.retain(BitmapId(77), &empty);
    assert!(!journal.covers(BitmapId(77), regions(g, 0, 1)));
    journal.check().unwrap();
    journal.remove(BitmapId(3)).unwrap();
    journal.add(record(16), &empty).unwrap();
    drop(journal);
    let keys = open(dir.path(), g, POWER).1;
    let keys: Vec<u32> = keys.iter().map(|m| m.0.tag.id.0).collect();
    assert_eq!(
        keys,
        [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    );
}

/// A write may still hold a View with the bitmap of a member that was removed meanwhile.
#[test]
fn a_mark_passes_over_a_map_that_was_removed_and_refuses_one_that_was_never_there() {
    let dir = tempfile::tempdir().unwrap();
    let g = unit(64);
    let journal = Journal::create(dir.path(), SET, g, POWER).unwrap();
    journal.add(record(3), &WriteBitmap::empty(g)).unwrap();
    let gone = BitmapId(77);
    for never in [gone, BitmapId(0)] {
        let refused = journal.mark(&[never, BitmapId(3)], regions(g, 0, 1));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!journal.covers(BitmapId(3), regions(g, 0, 1)));
    }
    journal.add(record(77), &WriteBitmap::empty(g)).unwrap();
    journal.remove(gone).unwrap();
    journal.mark(&[gone], regions(g, 0, 1)).unwrap();
    journal
        .mark(&[gone, BitmapId(3)], regions(g, 0, 1))
        .unwrap();
    assert!(!journal.covers(gone, regions(g, 0, 1)));
    assert!(journal.covers(BitmapId(3), regions(g, 0, 1)));
    drop(journal);
    let maps = open(dir.path(), g, POWER).1;
    assert_eq!(maps.len(), 1);
    assert_eq!(maps[0].1.count(), 64);
}

/// Without a snapshot in between: the end in order takes one.
#[test]
fn what_was_cleared_is_cleared_after_an_end_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let g = unit(64);
    let journal = Journal::create(dir.path(), SET, g, POWER).unwrap();
    journal.add(record(1), &WriteBitmap::full(g)).unwrap();
    let left = WriteBitmap::empty(g);
    left.mark(regions(g, 7, 9));
    journal.retain(BitmapId(1), &left);
    journal.close().unwrap();
    drop(journal);
    let maps = open(dir.path(), g, POWER).1;
    assert_eq!(maps[0].1.count(), 2);
}

/// Few bits are a batch, many are a snapshot; both add exactly themselves and are there at once.
#[test]
fn absorbed_bits_are_durable_and_exact() {
    let g = unit(64 * 1100 + 5);
    let id = Identity::of(SET, g);
    let sim = Sim::formatted(&id, POWER);
    let (journal, _) = Journal::open_on(sim.pair(), &id, POWER).unwrap();
    let every = |step: usize| {
        let ones = (0..g.regions()).step_by(step).map(|at| (at, at + 1));
        only(g, &ones.collect::<Vec<_>>())
    };
    journal.add(record(0), &every(5000)).unwrap();
    journal.add(record(1), &every(3000)).unwrap();
    let mut expected = set_regions(&every(5000));
    for bits in [every(700), every(64), WriteBitmap::empty(g)] {
        journal.absorb(BitmapId(0), &bits).unwrap();
        expected.extend(set_regions(&bits));
        expected.sort_unstable();
        expected.dedup();
        let (_, maps) = Journal::open_on(sim.crashed(3).pair(), &id, POWER).unwrap();
        assert_eq!(set_regions(&maps[0].1), expected);
        assert_eq!(set_regions(&maps[1].1), set_regions(&every(3000)));
        for at in &expected {
            assert!(journal.covers(BitmapId(0), regions(g, *at, at + 1)));
        }
        assert!(!journal.covers(BitmapId(0), regions(g, 1, 2)));
    }
}

#[test]
fn a_journal_is_opened_by_its_own_set_only_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let (g, dir) = (unit(64), dir.path());
    let try_open = |set, g| Journal::open(dir, set, g, POWER).map(|_| ());
    assert!(matches!(try_open(SET, g), Err(OpenError::Missing)));
    let journal = Journal::create(dir, SET, g, POWER).unwrap();
    assert!(matches!(try_open(SET, g), Err(OpenError::InUse)));
    drop(journal);
    let again = Journal::create(dir, SET, g, POWER).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    let other = Uuid::from_u128(5);
    let refused = |set, g| {
        eventually(|| match try_open(set, g) {
            Err(OpenError::InUse) => None,
            other => Some(other.unwrap_err()),
        })
    };
    assert!(matches!(refused(other, g), OpenError::OtherSet(SET)));
    assert!(matches!(refused(SET, unit(65)), OpenError::OtherGeometry(found) if found == g));
    std::fs::rename(dir.join("journal.b"), dir.join("x")).unwrap();
    assert!(matches!(refused(SET, g), OpenError::Damaged(text) if text.contains("journal.b")));
    std::fs::rename(dir.join("x"), dir.join("journal.b")).unwrap();
    drop(open(dir, g, POWER));
    Journal::delete(dir).unwrap();
    assert!(matches!(try_open(SET, g), Err(OpenError::Missing)));
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
}

/// All space is taken at once: blocks, not only a length.
#[test]
fn the_space_is_taken_at_creation_and_never_grows() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let g = unit(64 * 4096);
    let journal = Journal::create(dir.path(), SET, g, POWER).unwrap();
    let total = Layout::new(g).total();
    let sizes = || {
        let meta = FILES.map(|f| dir.path().join(f).metadata().unwrap());
        meta.map(|m| (m.len(), m.blocks() * 512))
    };
    for (len, space) in sizes() {
        assert_eq!(len, total);
        assert!(space >= total, "{space} of {total} bytes are there");
    }
    for key in 0..16 {
        journal.add(record(key), &WriteBitmap::full(g)).unwrap();
    }
    journal.checkpoint().unwrap();
    assert!(sizes().iter().all(|(len, _)| *len == total));
}

/// A life without syncs is good as long as the machine runs, and afterwards if it was closed.
#[test]
fn without_syncs_a_restart_of_the_machine_voids_the_journal() {
    let g = unit(300);
    let boot = |n| Identity {
        set: SET,
        geometry: g,
        boot: Uuid::from_u128(n),
    };
    let sim = Sim::formatted(&boot(1), CRASH);
    let (journal, _) = Journal::open_on(sim.pair(), &boot(1), CRASH).unwrap();
    journal.add(record(1), &WriteBitmap::empty(g)).unwrap();
    let syncs = sim.syncs();
    for at in 0..100 {
        journal
            .mark(&[BitmapId(1)], regions(g, at, at + 1))
            .unwrap();
        journal.checkpoint().unwrap();
    }
    assert_eq!(sim.syncs(), syncs, "no sync without a need");
    drop(journal);
    let (journal, maps) = Journal::open_on(sim.pair(), &boot(1), POWER).unwrap();
    assert_eq!(maps[0].1.count(), 128);
    drop(journal);
    let (journal, _) = Journal::open_on(sim.pair(), &boot(1), CRASH).unwrap();
    journal.mark(&[BitmapId(1)], regions(g, 128, 129)).unwrap();
    drop(journal);
    for seed in 0..50 {
        let lost = sim.crashed(seed);
        let error = Journal::open_on(lost.pair(), &boot(2), CRASH).unwrap_err();
        assert!(
            matches!(error, OpenError::NotDurable | OpenError::Damaged(_)),
            "seed {seed}: {error}"
        );
    }
    let (journal, _) = Journal::open_on(sim.pair(), &boot(1), CRASH).unwrap();
    journal.close().unwrap();
    for seed in 0..50 {
        let kept = sim.crashed(seed);
        let (_, maps) = Journal::open_on(kept.pair(), &boot(2), CRASH).unwrap();
        assert_eq!(maps[0].1.count(), 256);
    }
}

/// Where space is short nothing is left behind, and a full disk later is no matter.
#[test]
fn space_is_short_at_creation_or_never() {
    let g = unit(300);
    let id = Identity::of(SET, g);
    let short = layout(g);
    let sim = Sim::new();
    sim.limit_space(short.total() * 2 - 1);
    let error = Writer::format(sim.pair(), &id, short, POWER).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    let sim = Sim::new();
    sim.limit_space(short.total() * 2);
    Writer::format(sim.pair(), &id, short, POWER).unwrap();
    let (journal, _) = Journal::open_on(sim.pair(), &id, POWER).unwrap();
    for key in 0..200 {
        journal.add(record(key), &WriteBitmap::full(g)).unwrap();
        if key >= 15 {
            journal.remove(BitmapId(key - 15)).unwrap();
        }
    }
    journal.checkpoint().unwrap();
}

fn seal(page: &mut [u8]) {
    let crc = crc32c::crc32c(&page[..PAGE - 4]).to_le_bytes();
    page[PAGE - 4..].copy_from_slice(&crc);
}

/// There was memory for bitmaps of that size before anybody looked at the length of the files.
#[test]
fn a_header_that_claims_more_than_its_file_holds_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::create(dir.path(), SET, unit(64), POWER).unwrap();
    journal
        .add(record(1), &WriteBitmap::empty(unit(64)))
        .unwrap();
    journal.checkpoint().unwrap();
    drop(journal);
    let huge = Geometry::new(Bytes(1 << 60), 8).unwrap();
    for name in FILES {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(dir.path().join(name))
            .unwrap();
        let mut page = vec![0; PAGE];
        file.read_exact_at(&mut page, 0).unwrap();
        page[72..80].copy_from_slice(&huge.size().0.to_le_bytes());
        page[104..112].copy_from_slice(&Layout::new(huge).log_at().to_le_bytes());
        seal(&mut page);
        file.write_all_at(&page, 0).unwrap();
    }
    let refused = |g: Geometry| {
        eventually(|| match Journal::open(dir.path(), SET, g, POWER) {
            Err(OpenError::InUse) => None,
            other => Some(other.unwrap_err()),
        })
    };
    assert!(matches!(refused(unit(64)), OpenError::OtherGeometry(found) if found == huge));
    let error = refused(huge);
    assert!(matches!(&error, OpenError::Damaged(text) if text.contains("the file was cut")));
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let g = unit(64);
    drop(Journal::create(dir.path(), SET, g, POWER).unwrap());
    let path = dir.path().join(FILES[0]);
    for (at, value) in [(8, 2), (16, 1)] {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let mut page = vec![0; PAGE];
        file.read_exact_at(&mut page, 0).unwrap();
        let old = page[at];
        page[at] = value;
        seal(&mut page);
        file.write_all_at(&page, 0).unwrap();
        let error = eventually(|| match Journal::open(dir.path(), SET, g, POWER) {
            Err(OpenError::InUse) => None,
            other => Some(other.unwrap_err()),
        });
        assert!(matches!(&error, OpenError::Unsupported(text) if text.contains("version")));
        page[at] = old;
        seal(&mut page);
        file.write_all_at(&page, 0).unwrap();
    }
    drop(open(dir.path(), g, POWER));
}

/// Exact bytes, so that the format changes only when somebody changes it.
#[test]
fn the_bytes_are_those_that_are_described() {
    let life = Life {
        journal: Uuid::from_bytes([0xab; 16]),
        number: 3,
    };
    let entries = [
        Entry::Add(record(0x0102_0304)),
        Entry::Mark {
            key: BitmapId(5),
            first: 6,
            end: 8,
        },
        Entry::Remove(BitmapId(9)),
    ];
    let mut bytes = Vec::new();
    encode_batch(&mut bytes, life, 7, &entries);
    assert_eq!(bytes.len(), 4096);
    assert_eq!(&bytes[..4], b"JBAT");
    assert_eq!(bytes[4..8], crc32c::crc32c(&bytes[8..120]).to_le_bytes());
    assert_eq!(bytes[8..24], [0xab; 16]);
    assert_eq!(
        bytes[24..48],
        [
            3, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 72, 0, 0, 0, 3, 0, 0, 0
        ]
    );
    assert_eq!(
        bytes[48..56],
        [1, (0x0102_0304 % 7) as u8, 2, 0, 4, 3, 2, 1]
    );
    assert_eq!(bytes[72..80], (0x0102_0304u64 + 7).to_le_bytes());
    assert_eq!(bytes[80..88], 1_700_000_000_123u64.to_le_bytes());
    assert_eq!(bytes[88..96], [5, 0, 0, 0, 5, 0, 0, 0]);
    assert_eq!(
        bytes[96..112],
        [6, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(bytes[112..120], [3, 0, 0, 0, 9, 0, 0, 0]);
    let batch = Batch::decode(&bytes).unwrap();
    assert_eq!((batch.life, batch.number), (life, 7));
    assert_eq!(batch.entries().unwrap(), entries);
}

proptest! {
    /// A body of any bytes under a right checksum: an error, or a change, never a panic.
    #[test]
    fn any_body_under_a_right_checksum_is_survived(
        noise in proptest::collection::vec((0usize..200, any::<u8>()), 0..12),
        keys in proptest::collection::vec(0u32..3, 1..4),
    ) {
        let g = unit(130);
        let id = Identity::of(SET, g);
        let sim = Sim::formatted(&id, POWER);
        let segment = Segment::read(sim.pair()[0].as_ref()).unwrap();
        let entries: Vec<Entry> = keys.iter().flat_map(|k| [
            Entry::Add(record(*k)),
            Entry::Mark { key: BitmapId(*k), first: 0, end: 2 },
            Entry::Word { key: BitmapId(*k), at: 1, bits: u64::MAX },
            Entry::Describe(record(*k)),
        ]).collect();
        let mut bytes = Vec::new();
        encode_batch(&mut bytes, segment.header.life, 1, &entries);
        let len = 48 + u32::from_le_bytes(bytes[40..44].try_into().unwrap()) as usize;
        for (at, value) in noise {
            bytes[(44 + at) % len] = value;
        }
        let body = u32::from_le_bytes(bytes[40..44].try_into().unwrap()) as usize;
        if 48 + body <= bytes.len() {
            let crc = crc32c::crc32c(&bytes[8..48 + body]).to_le_bytes();
            bytes[4..8].copy_from_slice(&crc);
        }
        let pair = sim.pair();
        pair[0].write_at(&bytes, layout(g).log_at()).unwrap();
        if let Ok((_, maps)) = Journal::open_on(pair, &id, POWER) {
            prop_assert!(maps.iter().all(|m| m.1.count() <= 130));
        }
    }

    /// A header of any bytes under a right checksum.
    #[test]
    fn any_header_under_a_right_checksum_is_survived(
        noise in proptest::collection::vec((8usize..1300, any::<u8>()), 1..8),
    ) {
        let g = unit(130);
        let id = Identity::of(SET, g);
        let sim = Sim::formatted(&id, POWER);
        let pair = sim.pair();
        let mut page = vec![0; PAGE];
        pair[0].read_at(&mut page, 0).unwrap();
        for (at, value) in noise {
            page[at] = value;
        }
        seal(&mut page);
        pair[0].write_at(&page, 0).unwrap();
        let _ = Journal::open_on(pair, &id, POWER);
    }
}

/// The note of a later life counts against an older header of the same file.
#[test]
fn a_header_older_than_the_note_beside_it_is_not_believed() {
    let g = unit(64);
    let id = Identity::of(SET, g);
    let sim = Sim::formatted(&id, POWER);
    let pair = sim.pair();
    let segment = Segment::read(pair[0].as_ref()).unwrap();
    let mut life = segment.header.life;
    assert!(!segment.superseded(pair[0].as_ref()).unwrap());
    life.number += 2;
    write_note(pair[0].as_ref(), life).unwrap();
    assert!(segment.superseded(pair[0].as_ref()).unwrap());
    let error = Journal::open_on(pair, &id, POWER).unwrap_err();
    assert!(matches!(&error, OpenError::Damaged(text) if text.contains("superseded")));
}
