//! What the sources hold in the same place: compared block by block, and the report of where they differ.
//!
//! Nothing here reads or writes a member, or knows why two contents differ.

use crate::sync::{Mutex, MutexGuard};
use std::fmt;
use std::sync::PoisonError;

use super::geometry::{BLOCK_BYTES, ByteRange, Bytes, Geometry};
use super::member::{MEMBERS_MAX, MemberId, MemberSet};

/// Runs that a report names; what comes behind is only counted.
pub const RUNS_KEPT: usize = 1000;

/// What one source holds in a piece of the unit.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// Which source.
    pub member: MemberId,
    /// Its bytes; `None` where it could not be read.
    pub bytes: Option<&'a [u8]>,
}

/// Whose bytes a repair takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repair {
    /// Those that more than half of the sources hold.
    Majority,
    /// Those of this source.
    From(MemberId),
}

/// What has become of blocks that differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Nothing was written.
    Left,
    /// The others were written from the right one, flushed and read back.
    Repaired,
    /// Writing them has failed on some member.
    Failed,
}

impl Fate {
    /// The word that a report has for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Repaired => "repaired",
            Self::Failed => "failed",
        }
    }
}

/// A run of blocks in which the sources differ alike, or in which some cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    first: u64,
    end: u64,
    /// The sources; who has the same number holds the same, who has none could not be read.
    groups: Vec<(MemberId, Option<u8>)>,
}

impl Difference {
    /// First block.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Blocks of it.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.end - self.first
    }

    /// Its bytes in a unit of this geometry.
    #[must_use]
    pub fn range(&self, geometry: Geometry) -> Option<ByteRange> {
        let bytes = |blocks| Bytes(blocks * BLOCK_BYTES);
        geometry.clip(bytes(self.first), bytes(self.blocks())).ok()
    }

    /// Whether two sources hold different bytes; else somebody could only not be read.
    #[must_use]
    pub fn differs(&self) -> bool {
        let mut groups = self.groups.iter().filter_map(|(_, group)| *group);
        let first = groups.next();
        groups.any(|group| Some(group) != first)
    }

    /// What more than half of the sources hold, those counted that cannot be read.
    fn majority(&self) -> Option<u8> {
        let holds = |group: u8| {
            self.groups
                .iter()
                .filter(|(_, g)| *g == Some(group))
                .count()
        };
        let all = 0..self.groups.len() as u8;
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::RepairFromMinority) {
            return self.planted_minority();
        }
        all.into_iter()
            .find(|group| 2 * holds(*group) > self.groups.len())
    }

    /// What the fewest sources hold.
    #[cfg(debug_assertions)]
    fn planted_minority(&self) -> Option<u8> {
        let groups = || self.groups.iter().filter_map(|(_, group)| *group);
        groups().min_by_key(|group| groups().filter(|g| g == group).count())
    }

    /// The members that are not as the most are, or cannot be read. `None` when no more than half hold the same: then
    /// it cannot be told who is right.
    #[must_use]
    pub fn odd(&self) -> Option<MemberSet> {
        let majority = Some(self.majority()?);
        let odd = self.groups.iter().filter(|(_, group)| *group != majority);
        Some(odd.map(|(id, _)| *id).collect())
    }

    /// The sources that hold what a repair takes for right; none when that cannot be told, or not be read.
    #[must_use]
    pub fn right(&self, repair: Repair) -> MemberSet {
        let right = match repair {
            Repair::Majority => self.majority(),
            Repair::From(member) => {
                let named = self.groups.iter().find(|(id, _)| *id == member);
                named.and_then(|(_, group)| *group)
            }
        };
        let holders = self
            .groups
            .iter()
            .filter(|(_, group)| right.is_some() && *group == right);
        holders.map(|(id, _)| *id).collect()
    }
}

/// Compares what the sources hold in a piece that begins at a byte of the unit: the runs of blocks in which not all
/// hold the same, or not all can be read. Everything is a whole number of blocks.
#[must_use]
pub fn compare(at: u64, contents: &[Contents<'_>]) -> Vec<Difference> {
    if hold_the_same(contents) {
        return Vec::new();
    }
    let len = contents.iter().filter_map(|c| Some(c.bytes?.len())).max();
    let block = BLOCK_BYTES as usize;
    let mut runs: Vec<Difference> = Vec::new();
    for place in 0..len.unwrap_or(0) / block {
        let groups = groups(contents, place * block);
        if groups.iter().all(|(_, group)| *group == Some(0)) {
            continue;
        }
        let lbn = at / BLOCK_BYTES + place as u64;
        match runs
            .last_mut()
            .filter(|run| run.end == lbn && run.groups == groups)
        {
            Some(run) => run.end += 1,
            None => runs.push(Difference {
                first: lbn,
                end: lbn + 1,
                groups,
            }),
        }
    }
    runs
}

/// Whether there is nothing to look for, mostly: one comparison of all, and no block by itself.
fn hold_the_same(contents: &[Contents<'_>]) -> bool {
    let first = contents.first().and_then(|c| c.bytes);
    first.is_some() && contents.iter().all(|c| c.bytes == first)
}

/// Numbers the sources by what they hold in a block.
fn groups(contents: &[Contents<'_>], at: usize) -> Vec<(MemberId, Option<u8>)> {
    let mut seen: Vec<&[u8]> = Vec::new();
    let mut groups = Vec::with_capacity(contents.len());
    for c in contents {
        let block = c.bytes.map(|bytes| &bytes[at..at + BLOCK_BYTES as usize]);
        let group = block.map(|block| {
            let known = seen.iter().position(|other| *other == block);
            known.unwrap_or_else(|| {
                seen.push(block);
                seen.len() - 1
            })
        });
        groups.push((c.member, group.and_then(|place| u8::try_from(place).ok())));
    }
    groups
}

/// Digest of what a source held in a run of blocks: FNV-1a of 64 bits. Not the CRC-32C that is used elsewhere: data
/// that ends with its own CRC-32C, as of file systems and of test programs, has the same one whatever it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digest(u64);

impl Digest {
    const NOTHING: Self = Self(0xcbf2_9ce4_8422_2325);
    const PRIME: u64 = 0x0100_0000_01b3;

    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::NOTHING.go_on(bytes)
    }

    /// The digest of what it is of, and these bytes behind it.
    fn go_on(self, bytes: &[u8]) -> Self {
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(Self::PRIME);
        Self(bytes.iter().fold(self.0, step))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Blocks that a verify has found something in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Two sources hold different bytes.
    pub differing: u64,
    /// Some source cannot be read, and the others hold the same.
    pub unreadable: u64,
    /// Of both, those that were repaired.
    pub repaired: u64,
}

/// One line of a report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// First block.
    pub first: u64,
    /// Last block.
    pub last: u64,
    /// Whether sources hold different bytes, and not only somebody could not be read.
    pub differs: bool,
    /// Names of those that are not as the most are; `None` when it cannot be told who is right.
    pub odd: Option<Vec<String>>,
    /// What has become of it.
    pub fate: Fate,
    /// Each source by name with a digest of what it held; `None` where it could not be read.
    pub digests: Vec<(String, Option<Digest>)>,
}

/// What a verify has found, for people.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The runs, in the order of the unit, the first [`RUNS_KEPT`] of them.
    pub runs: Vec<Run>,
    /// All blocks, those of runs that are left out too.
    pub counts: Counts,
    /// Blocks of runs that are left out.
    pub left_out: u64,
}

/// A run as it is kept: with places in the list of names.
#[derive(Debug)]
struct Kept {
    difference: Difference,
    names: Vec<usize>,
    digests: Vec<Option<Digest>>,
    fate: Fate,
}

#[derive(Debug, Default)]
struct Book {
    kept: Vec<Kept>,
    counts: Counts,
    left_out: u64,
    names: Vec<String>,
    /// For the place of a member, where its name is.
    places: [usize; MEMBERS_MAX],
}

/// What a verify finds, as it goes on. Readers take it without stopping it.
#[derive(Debug, Default)]
pub struct Findings(Mutex<Book>);

impl Findings {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the member at this place has this name.
    pub(super) fn know(&self, id: MemberId, name: &str) {
        let mut book = self.lock();
        if book
            .names
            .get(book.places[id.index()])
            .is_none_or(|known| known != name)
        {
            book.places[id.index()] = book.names.len();
            book.names.push(name.to_owned());
        }
    }

    /// Writes down a difference that was found in these contents, which begin at a byte of the unit.
    pub fn add(&self, difference: Difference, at: u64, contents: &[Contents<'_>], fate: Fate) {
        let mut book = self.lock();
        let blocks = difference.blocks();
        match difference.differs() {
            true => book.counts.differing += blocks,
            false => book.counts.unreadable += blocks,
        }
        if fate == Fate::Repaired {
            book.counts.repaired += blocks;
        }
        let from = (difference.first * BLOCK_BYTES - at) as usize;
        let len = (blocks * BLOCK_BYTES) as usize;
        let held = contents
            .iter()
            .map(|c| c.bytes.map(|bytes| &bytes[from..][..len]));
        let names: Vec<usize> = contents
            .iter()
            .map(|c| book.places[c.member.index()])
            .collect();
        let goes_on = |kept: &&mut Kept| {
            kept.difference.end == difference.first
                && kept.difference.groups == difference.groups
                && (kept.fate, &kept.names) == (fate, &names)
        };
        if let Some(kept) = book.kept.last_mut().filter(goes_on) {
            kept.difference.end = difference.end;
            for (digest, bytes) in kept.digests.iter_mut().zip(held) {
                *digest = digest.zip(bytes).map(|(digest, bytes)| digest.go_on(bytes));
            }
        } else if book.kept.len() < RUNS_KEPT {
            let digests = held.map(|bytes| bytes.map(Digest::of));
            book.kept.push(Kept {
                difference,
                names,
                digests: digests.collect(),
                fate,
            });
        } else {
            book.left_out += blocks;
        }
    }

    /// How many blocks there are up to now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// All of it up to now.
    #[must_use]
    pub fn report(&self) -> Report {
        let book = self.lock();
        let name = |place: usize| book.names.get(place).cloned().unwrap_or_default();
        let run = |kept: &Kept| {
            let members = kept.difference.groups.iter().zip(&kept.names);
            let odd = kept.difference.odd().map(|odd| {
                let odd = members.clone().filter(|((id, _), _)| odd.contains(*id));
                odd.map(|(_, place)| name(*place)).collect()
            });
            let digests = kept.names.iter().zip(&kept.digests);
            Run {
                first: kept.difference.first,
                last: kept.difference.end - 1,
                differs: kept.difference.differs(),
                odd,
                fate: kept.fate,
                digests: digests
                    .map(|(place, digest)| (name(*place), *digest))
                    .collect(),
            }
        };
        Report {
            runs: book.kept.iter().map(run).collect(),
            counts: book.counts,
            left_out: book.left_out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(place: usize) -> MemberId {
        MemberId::new(place).expect("a place")
    }

    fn contents(images: &[Option<Vec<u8>>]) -> Vec<Contents<'_>> {
        let of = |place: usize| Contents {
            member: id(place),
            bytes: images[place].as_deref(),
        };
        (0..images.len()).map(of).collect()
    }

    /// Images of four blocks, each block filled with one of these numbers.
    fn images(values: &[[u8; 4]]) -> Vec<Option<Vec<u8>>> {
        let image = |blocks: &[u8; 4]| blocks.iter().flat_map(|v| [*v; 512]).collect();
        values.iter().map(|blocks| Some(image(blocks))).collect()
    }

    fn findings(names: &[&str]) -> Findings {
        let findings = Findings::default();
        for (place, name) in names.iter().enumerate() {
            findings.know(id(place), name);
        }
        findings
    }

    #[test]
    fn the_odd_one_of_three_is_named_and_of_two_none_is() {
        let three = images(&[[1, 1, 1, 1], [1, 1, 1, 1], [1, 7, 7, 1]]);
        let found = compare(512 * 40, &contents(&three));
        assert_eq!(found.len(), 1);
        let one = &found[0];
        assert_eq!((one.first(), one.blocks(), one.differs()), (41, 2, true));
        assert_eq!(one.odd(), Some([id(2)].into_iter().collect()));
        assert_eq!(
            one.right(Repair::Majority),
            [id(0), id(1)].into_iter().collect()
        );
        assert_eq!(
            one.right(Repair::From(id(2))),
            [id(2)].into_iter().collect()
        );
        let two = images(&[[1, 1, 1, 1], [1, 7, 1, 1]]);
        let one = &compare(0, &contents(&two))[0];
        assert_eq!(
            (one.odd(), one.right(Repair::Majority)),
            (None, MemberSet::EMPTY)
        );
        assert_eq!(
            one.right(Repair::From(id(1))),
            [id(1)].into_iter().collect()
        );
        let four = images(&[[1; 4], [1; 4], [2; 4], [2; 4]]);
        assert_eq!(
            compare(0, &contents(&four))[0].odd(),
            None,
            "no strict majority"
        );
    }

    #[test]
    fn a_difference_has_its_bytes_in_a_unit_that_holds_them() {
        let two = images(&[[1, 1, 1, 1], [1, 7, 7, 1]]);
        let found = &compare(512 * 8, &contents(&two))[0];
        let unit = |blocks: u64| Geometry::new(Bytes(blocks * 512), 8).expect("a unit");
        let range = found.range(unit(11)).map(|r| (r.start(), r.len()));
        assert_eq!(range, Some((512 * 9, 1024)));
        assert_eq!(found.range(unit(10)), None, "it ends before");
    }

    #[test]
    fn blocks_are_counted_by_what_was_found_and_done() {
        let findings = findings(&["m1", "m2", "m3"]);
        let mut three = images(&[[1, 1, 1, 1], [1, 1, 1, 1], [1, 7, 7, 1]]);
        let differs = |fate| {
            let held = contents(&three);
            findings.add(compare(0, &held).remove(0), 0, &held, fate);
        };
        differs(Fate::Repaired);
        differs(Fate::Left);
        three[2] = None;
        let held = contents(&three);
        for fate in [Fate::Repaired, Fate::Failed] {
            findings.add(compare(0, &held).remove(0), 0, &held, fate);
        }
        let counts = Counts {
            differing: 4,
            unreadable: 8,
            repaired: 6,
        };
        assert_eq!(
            (findings.counts(), findings.report().counts),
            (counts, counts)
        );
    }

    #[test]
    fn runs_of_different_odd_ones_are_apart() {
        let three = images(&[[1, 2, 1, 1], [1, 1, 7, 7], [1, 1, 1, 7]]);
        let found = compare(0, &contents(&three));
        let odd: Vec<_> = found.iter().map(|d| (d.first(), d.odd())).collect();
        let of = |place| Some([id(place)].into_iter().collect());
        assert_eq!(odd, [(1, of(0)), (2, of(1)), (3, of(0))]);
    }

    #[test]
    fn who_cannot_be_read_is_no_difference_and_no_vote() {
        let mut three = images(&[[1; 4], [1, 1, 2, 1], [1; 4]]);
        three[2] = None;
        let found = compare(0, &contents(&three));
        assert_eq!(
            found.iter().map(Difference::differs).collect::<Vec<_>>(),
            [false, true, false]
        );
        assert_eq!(found[0].odd(), Some([id(2)].into_iter().collect()));
        assert_eq!(found[1].odd(), None, "one of three is no majority");
        assert_eq!(found[1].right(Repair::From(id(2))), MemberSet::EMPTY);
    }

    #[test]
    fn runs_are_joined_over_steps_with_one_digest() {
        let findings = findings(&["m1", "m2"]);
        let whole = images(&[[1, 1, 2, 3], [1, 5, 6, 3]]);
        for step in 0..2usize {
            let half =
                |image: &Option<Vec<u8>>| image.as_ref().map(|i| i[step * 1024..][..1024].to_vec());
            let half: Vec<_> = whole.iter().map(half).collect();
            let (at, contents) = (step as u64 * 1024, contents(&half));
            for difference in compare(at, &contents) {
                findings.add(difference, at, &contents, Fate::Left);
            }
        }
        let report = findings.report();
        let digest = |n: usize| Digest::of(&whole[n].as_ref().expect("read")[512..1536]);
        let digests = vec![
            ("m1".to_owned(), Some(digest(0))),
            ("m2".to_owned(), Some(digest(1))),
        ];
        let run = Run {
            first: 1,
            last: 2,
            differs: true,
            odd: None,
            fate: Fate::Left,
            digests,
        };
        assert_eq!(report.runs, [run]);
        assert_eq!(
            report.counts,
            Counts {
                differing: 2,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn a_digest_is_fnv_1a_and_tells_blocks_with_their_own_checksum_apart() {
        // From the reference of the algorithm's authors.
        assert_eq!(Digest::of(b"foobar").to_string(), "85944171f73967e8");
        let sealed = |byte: u8| {
            let data = [byte; 508];
            [&data[..], &crc32c::crc32c(&data).to_le_bytes()].concat()
        };
        let (a, b) = (sealed(1), sealed(2));
        assert_eq!(
            crc32c::crc32c(&a),
            crc32c::crc32c(&b),
            "why it is not this one"
        );
        assert_ne!(Digest::of(&a), Digest::of(&b));
    }

    #[test]
    fn a_report_is_bounded_and_its_counts_are_exact() {
        let findings = findings(&["m1", "m2"]);
        let two = images(&[[1, 0, 1, 0], [0, 0, 0, 0]]);
        let contents = contents(&two);
        for step in 0..600 {
            let at = step * 2048;
            for difference in compare(at, &contents) {
                findings.add(difference, at, &contents, Fate::Left);
            }
        }
        let report = findings.report();
        let found = (report.runs.len(), report.counts.differing, report.left_out);
        assert_eq!(found, (RUNS_KEPT, 1200, 200));
    }

    #[test]
    fn a_name_stays_with_what_was_found_under_it() {
        let findings = findings(&["m1", "m2"]);
        let two = images(&[[1; 4], [0; 4]]);
        let contents = contents(&two);
        let found = |at| compare(at, &contents).remove(0);
        findings.add(found(0), 0, &contents, Fate::Left);
        findings.know(id(1), "m9");
        findings.add(found(2048), 2048, &contents, Fate::Left);
        let runs = findings.report().runs;
        let names: Vec<_> = runs.iter().map(|run| run.digests[1].0.as_str()).collect();
        assert_eq!(names, ["m2", "m9"]);
    }

    proptest! {
        /// Exactly the blocks in which not all are equal are found, each once and in order.
        #[test]
        fn exactly_the_blocks_that_differ_are_found(
            images in proptest::collection::vec(proptest::collection::vec(0u8..3, 24), 2..6),
        ) {
            let bytes: Vec<_> = images.iter()
                .map(|i| Some(i.iter().flat_map(|v| [*v; 512]).collect::<Vec<u8>>()))
                .collect();
            let found: Vec<u64> = compare(0, &contents(&bytes)).iter()
                .flat_map(|d| d.first()..d.first() + d.blocks())
                .collect();
            let expected: Vec<u64> = (0..24u64)
                .filter(|b| images.iter().any(|i| i[*b as usize] != images[0][*b as usize]))
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
