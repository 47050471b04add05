//! Write bitmaps: in which regions a member may differ from the unit.
//!
//! One bit per region. Bits are set by many threads and cleared by verified copies into the member and by
//! nothing else (I1), so clearing is private to this folder. Words are hand-made atomics:
//! a mark must report whether a bit is new, because only new bits have to become durable.

use crate::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use bitvec::prelude::{BitVec, Lsb0};

use super::geometry::{ByteRange, Geometry, Regions};
use super::member::BitmapId;

const WORD: u64 = u64::BITS as u64;

/// A stale set with one bit per region of the unit it was made for (its coverage).
#[derive(Debug)]
pub struct WriteBitmap {
    id: BitmapId,
    words: Box<[AtomicU64]>,
    set: AtomicU64,
    geometry: Geometry,
}

impl WriteBitmap {
    /// No region is stale.
    #[must_use]
    pub fn empty(geometry: Geometry) -> Self {
        Self::from_words(geometry, [])
    }

    /// Every region is stale.
    #[must_use]
    pub fn full(geometry: Geometry) -> Self {
        let map = Self::empty(geometry);
        map.mark(geometry.all_regions());
        map
    }

    /// A bitmap of these words: bit *i* of word *j* is region 64*j* + *i*. Missing words are zero;
    /// bits and words beyond the last region are dropped.
    #[must_use]
    pub fn from_words(geometry: Geometry, words: impl IntoIterator<Item = u64>) -> Self {
        let count = geometry.regions().div_ceil(WORD);
        let mut set = 0;
        let words = words.into_iter().chain(std::iter::repeat(0)).zip(0..count);
        let words = words.map(|(bits, at)| {
            let left = geometry.regions() - at * WORD;
            let bits = bits & u64::MAX >> WORD.saturating_sub(left);
            set += u64::from(bits.count_ones());
            AtomicU64::new(bits)
        });
        Self {
            id: BitmapId(0),
            words: words.collect(),
            set: AtomicU64::new(set),
            geometry,
        }
    }

    /// Gives it the number under which it is kept.
    #[must_use]
    pub fn named(mut self, id: BitmapId) -> Self {
        self.id = id;
        self
    }

    /// Its number; 0 for one that is not kept.
    #[must_use]
    pub fn id(&self) -> BitmapId {
        self.id
    }

    /// The same bits for a unit that has become larger; what lies behind its coverage has none.
    #[must_use]
    pub(super) fn grown(&self, geometry: Geometry) -> Self {
        assert!(self.fits(geometry), "I7: a bitmap never shrinks");
        Self::from_words(geometry, self.words()).named(self.id)
    }

    fn fits(&self, geometry: Geometry) -> bool {
        let same = self.geometry.region_blocks() == geometry.region_blocks();
        same && self.geometry.size() <= geometry.size()
    }

    /// A copy of the bits as they are now.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        Self::from_words(self.geometry, self.words()).named(self.id)
    }

    /// The words, as [`WriteBitmap::from_words`] takes them.
    pub fn words(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().map(|w| w.load(Ordering::Acquire))
    }

    /// What the bitmap covers.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Sets the bits of the run and returns how many were clear before.
    ///
    /// A region that was already marked costs one load and no store.
    pub fn mark(&self, regions: Regions) -> u64 {
        let mut new = 0;
        self.each_word(regions, |word, mask| {
            if word.load(Ordering::Acquire) & mask != mask {
                let old = word.fetch_or(mask, Ordering::AcqRel);
                new += u64::from((mask & !old).count_ones());
            }
        });
        if new > 0 {
            self.set.fetch_add(new, Ordering::AcqRel);
        }
        assert!(new <= regions.count(), "more new bits than regions");
        new
    }

    /// Clears the bits of the run and returns how many were set before (I1: after a verified copy).
    pub(super) fn clear(&self, regions: Regions) -> u64 {
        let mut gone = 0;
        self.each_word(regions, |word, mask| {
            let old = word.fetch_and(!mask, Ordering::AcqRel);
            gone += u64::from((mask & old).count_ones());
        });
        assert!(gone <= regions.count(), "more bits than regions");
        let before = self.set.fetch_sub(gone, Ordering::AcqRel);
        assert!(before >= gone, "more bits cleared than were set");
        gone
    }

    /// Bytes of the marked regions of the run.
    pub(super) fn weigh(&self, regions: Regions) -> u64 {
        let mut set = 0;
        self.each_word(regions, |word, mask| {
            set += u64::from((word.load(Ordering::Acquire) & mask).count_ones());
        });
        let full = self.geometry.region_bytes();
        let last = self.geometry.regions() - 1;
        if regions.end().0 <= last || !self.covers(Regions::run(last, last + 1)) {
            return set * full;
        }
        let missing = (last + 1) * full - self.geometry.size().0;
        (set * full).saturating_sub(missing)
    }

    /// The runs of marked regions inside a run, in order.
    #[must_use]
    pub fn runs_in(&self, regions: Regions) -> Vec<Regions> {
        let (mut from, end) = (regions.first().0, regions.end().0);
        let mut runs = Vec::new();
        while let Some(first) = self.find(from, true).filter(|at| *at < end) {
            from = self.find(first, false).unwrap_or(end).min(end);
            // Who clears bits at the same time may have cleared this one just now.
            if from > first {
                runs.push(Regions::run(first, from));
            }
        }
        runs
    }

    /// Whether no region is marked. Looks at the bits: [`Self::count`] lags behind a clear under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.find(0, true).is_none()
    }

    /// Adds all bits of another bitmap of the same unit, which may have been smaller then.
    pub(super) fn absorb(&self, other: &Self) {
        assert!(other.fits(self.geometry), "bitmaps of different units");
        let mut new = 0;
        for (mine, theirs) in self.words.iter().zip(&other.words) {
            let bits = theirs.load(Ordering::Acquire);
            new += u64::from((bits & !mine.fetch_or(bits, Ordering::AcqRel)).count_ones());
        }
        self.set.fetch_add(new, Ordering::AcqRel);
    }

    /// Whether every region of the run is marked.
    #[must_use]
    pub fn covers(&self, regions: Regions) -> bool {
        let mut all = true;
        self.each_word(regions, |word, mask| {
            all &= word.load(Ordering::Acquire) & mask == mask;
        });
        all
    }

    /// Whether any byte of the range may differ; what lies beyond the coverage always may.
    #[must_use]
    pub fn is_stale(&self, range: ByteRange) -> bool {
        if range.end() > self.geometry.size().0 {
            return true;
        }
        let mut any = false;
        let regions = self.geometry.regions_of(range);
        self.each_word(regions, |word, mask| {
            any |= word.load(Ordering::Acquire) & mask != 0;
        });
        any
    }

    /// Number of set bits.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.set.load(Ordering::Acquire)
    }

    /// Bytes of all marked regions: what a minicopy has to copy.
    #[must_use]
    pub fn stale_bytes(&self) -> u64 {
        let full = self.geometry.region_bytes();
        let last = self.geometry.regions() - 1;
        let word = &self.words[index(last)];
        let tail_set = word.load(Ordering::Acquire) >> (last % WORD) & 1;
        let tail_missing = (last + 1) * full - self.geometry.size().0;
        (self.count() * full).saturating_sub(tail_set * tail_missing)
    }

    /// The first run of marked regions at or behind `from`, of at most `max` regions.
    #[must_use]
    pub fn next_run(&self, from: u64, max: u64) -> Option<Regions> {
        assert!(max > 0, "a run of no region");
        let first = self.find(from, true)?;
        let most = self.geometry.regions().min(first.saturating_add(max));
        let end = self.find_until(first + 1, most, false);
        let end = end.unwrap_or(most).min(most);
        assert!(first >= from && end > first, "a run goes forward");
        assert!(end <= self.geometry.regions(), "a run ends with the unit");
        Some(Regions::run(first, end))
    }

    /// All runs of marked regions, joined, in order.
    pub fn runs(&self) -> impl Iterator<Item = Regions> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let run = self.next_run(from, u64::MAX)?;
            from = run.end().0;
            Some(run)
        })
    }

    /// A copy of the bits: bit *i* of byte *j* is region 8*j* + *i*.
    #[must_use]
    pub fn to_bits(&self) -> BitVec<u8, Lsb0> {
        let bytes = self
            .words
            .iter()
            .flat_map(|w| w.load(Ordering::Acquire).to_le_bytes());
        let mut bits = BitVec::<u8, Lsb0>::from_vec(bytes.collect());
        bits.truncate(usize::try_from(self.geometry.regions()).unwrap_or(usize::MAX));
        bits
    }

    /// Bytes of memory that the bits take.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    /// Finds the first region at or behind `from` whose bit equals `value`.
    fn find(&self, from: u64, value: bool) -> Option<u64> {
        self.find_until(from, self.geometry.regions(), value)
    }

    /// As [`Self::find`]; no word behind that of `end` is looked at.
    fn find_until(&self, from: u64, end: u64, value: bool) -> Option<u64> {
        let mut at = from;
        while at < end {
            let word = self.words[index(at)].load(Ordering::Acquire);
            let word = if value { word } else { !word } >> (at % WORD);
            if word != 0 {
                return Some(at + u64::from(word.trailing_zeros()));
            }
            at = (at / WORD + 1) * WORD;
        }
        None
    }

    fn each_word(&self, regions: Regions, mut visit: impl FnMut(&AtomicU64, u64)) {
        let (mut at, end) = (regions.first().0, regions.end().0);
        assert!(
            end <= self.geometry.regions(),
            "region {end} is beyond the bitmap"
        );
        while at < end {
            let stop = ((at / WORD + 1) * WORD).min(end);
            let mask = u64::MAX >> (WORD - (stop - at)) << (at % WORD);
            visit(&self.words[index(at)], mask);
            at = stop;
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "a unit of 2^60 bytes has 2^51 words at most"
)]
fn index(region: u64) -> usize {
    (region / WORD) as usize
}

/// The one owner of a write bitmap: it is moved into the copy that drains it and never copied (I1).
///
/// Others may hold a reference that marks and reads.
#[derive(Debug)]
pub struct OwnedBitmap(Arc<WriteBitmap>);

impl OwnedBitmap {
    /// A new owner of a new bitmap.
    #[must_use]
    pub fn new(map: WriteBitmap) -> Self {
        Self(Arc::new(map))
    }

    /// A reference that marks and reads, and cannot clear outside this folder.
    #[must_use]
    pub fn marks(&self) -> Arc<WriteBitmap> {
        Arc::clone(&self.0)
    }
}

impl std::ops::Deref for OwnedBitmap {
    type Target = WriteBitmap;

    fn deref(&self) -> &WriteBitmap {
        &self.0
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;
    use crate::set::geometry::{BLOCK_BYTES, Bytes};
    use proptest::prelude::*;

    fn geometry(blocks: u64) -> Geometry {
        Geometry::new(Bytes(blocks * BLOCK_BYTES), 127).expect("valid")
    }

    #[test]
    fn a_full_bitmap_weighs_the_unit() {
        for blocks in [1, 126, 127, 128, 127 * 64, 127 * 64 + 1, 127 * 65 - 1] {
            let map = WriteBitmap::full(geometry(blocks));
            assert_eq!(map.stale_bytes(), blocks * 512);
            assert_eq!(map.runs().count(), 1);
            assert_eq!(
                map.clear(map.geometry().all_regions()),
                map.geometry().regions()
            );
            assert_eq!(
                (map.count(), map.stale_bytes(), map.runs().count()),
                (0, 0, 0)
            );
        }
    }

    #[test]
    fn what_lies_beyond_the_coverage_is_stale() {
        let small = WriteBitmap::empty(geometry(127));
        let large = geometry(127 * 2);
        assert!(!small.is_stale(large.clip(Bytes(0), Bytes(65_024)).expect("inside")));
        assert!(small.is_stale(large.clip(Bytes(65_023), Bytes(2)).expect("inside")));
    }

    #[test]
    fn a_larger_unit_has_the_same_bits_and_none_behind() {
        let small = WriteBitmap::empty(geometry(127 * 70 + 1)).named(BitmapId(7));
        small.mark(Regions::run(0, 2));
        small.mark(Regions::run(70, 71));
        let large = small.grown(geometry(127 * 200));
        assert_eq!((large.id(), large.count()), (BitmapId(7), 3));
        assert!(
            large.covers(Regions::run(70, 71))
                && !large.is_stale(large.geometry().bytes_of(Regions::run(71, 200)))
        );
        let fresh = WriteBitmap::empty(large.geometry());
        fresh.absorb(&small);
        assert_eq!(fresh.to_bits(), large.to_bits());
        assert_eq!(
            large.stale_bytes(),
            3 * 65_024,
            "the short region is whole now"
        );
    }

    #[test]
    #[should_panic(expected = "I7")]
    fn a_bitmap_never_shrinks() {
        let _ = WriteBitmap::empty(geometry(200)).grown(geometry(199));
    }

    #[test]
    fn a_bitmap_takes_eight_bytes_for_64_regions() {
        let bytes = |regions: u64| WriteBitmap::empty(geometry(127 * regions)).memory_bytes();
        assert_eq!((bytes(1), bytes(64), bytes(65), bytes(640)), (8, 8, 16, 80));
    }

    proptest! {
        /// Marks, clears and reads against a plain bitvec.
        #[test]
        fn equals_a_plain_bitmap(
            blocks in 1u64..40_000,
            steps in proptest::collection::vec((any::<bool>(), any::<u64>(), any::<u64>()), 1..60),
        ) {
            let g = geometry(blocks);
            let map = WriteBitmap::empty(g);
            let mut plain: BitVec<u8, Lsb0> = BitVec::repeat(false, g.regions() as usize);
            for (mark, a, b) in steps {
                let first = a % g.regions();
                let end = first + 1 + b % (g.regions() - first);
                let run = Regions::run(first, end);
                let slice = &mut plain[first as usize..end as usize];
                let ones = slice.count_ones() as u64;
                slice.fill(mark);
                if mark {
                    prop_assert_eq!(map.mark(run), run.count() - ones);
                } else {
                    prop_assert_eq!(map.clear(run), ones);
                }
                prop_assert_eq!(map.count(), plain.count_ones() as u64);
                prop_assert_eq!(map.covers(run), mark);
            }
            prop_assert_eq!(&map.to_bits(), &plain);
            let runs: Vec<u64> = map.runs().flat_map(|r| r.first().0..r.end().0).collect();
            prop_assert_eq!(runs, plain.iter_ones().map(|i| i as u64).collect::<Vec<_>>());
            let bytes: u64 = map.runs().map(|r| g.bytes_of(r).len()).sum();
            prop_assert_eq!(map.stale_bytes(), bytes);
            prop_assert_eq!(map.is_empty(), plain.not_any());
            prop_assert_eq!(map.weigh(g.all_regions()), bytes);
            prop_assert_eq!(map.runs_in(g.all_regions()), map.runs().collect::<Vec<_>>());
            let half = Regions::run(0, g.regions().div_ceil(2));
            let runs: Vec<u64> = map.runs_in(half).iter().flat_map(|r| r.first().0..r.end().0).collect();
            let inside = plain.iter_ones().map(|i| i as u64).filter(|i| *i < half.end().0);
            prop_assert_eq!(runs, inside.collect::<Vec<_>>());
            let again = WriteBitmap::from_words(g, map.words().chain([u64::MAX]));
            prop_assert_eq!((again.to_bits(), again.count()), (map.to_bits(), map.count()));
            let all = WriteBitmap::from_words(g, std::iter::repeat(u64::MAX));
            prop_assert_eq!(all.count(), g.regions());
            let other = WriteBitmap::full(g);
            map.absorb(&other);
            prop_assert_eq!(map.count(), g.regions());
        }
    }
}
