//! Numbers of the unit: blocks, bytes, regions, and the only conversions between them.
//!
//! A region is the grain of every bitmap: 127 blocks of 512 bytes unless the set was created
//! otherwise. The last region is shorter when the unit's size is no multiple of it.

use std::fmt;
use std::num::NonZeroU32;

/// Size of a block in bytes.
pub const BLOCK_BYTES: u64 = 512;
/// Blocks of a region unless the set was created otherwise (OpenVMS: 127).
pub const REGION_BLOCKS_DEFAULT: u32 = 127;
/// Smallest and largest region, in blocks.
pub const REGION_BLOCKS_RANGE: std::ops::RangeInclusive<u32> = 8..=8192;
/// Largest unit: every byte offset fits a signed file offset.
pub const UNIT_BYTES_MAX: u64 = 1 << 60;

/// Logical block number: which block of 512 bytes, from zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Lbn(pub u64);

/// A count or an offset in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Bytes(pub u64);

/// Number of a region, from zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Region(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a geometry or a range was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GeometryError {
    /// The unit has no block.
    #[error("the unit would have no block")]
    Empty,
    /// The size is no multiple of 512 bytes.
    #[error("{0} bytes is not a multiple of 512")]
    PartialBlock(u64),
    /// The size is beyond [`UNIT_BYTES_MAX`].
    #[error("{0} bytes is more than a unit can have")]
    TooLarge(u64),
    /// The region size is outside [`REGION_BLOCKS_RANGE`].
    #[error("a region of {0} blocks is outside 8 to 8192")]
    RegionBlocks(u32),
    /// The range is empty or reaches beyond the unit.
    #[error("the range is empty or reaches beyond the unit")]
    OutOfRange,
}

/// Size and region size of a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    size: Bytes,
    region_blocks: NonZeroU32,
}

impl Geometry {
    /// Checks and combines a unit size in bytes and a region size in blocks.
    ///
    /// # Errors
    /// [`GeometryError`] when the size is zero, no whole number of blocks or too large, or the
    /// region size is outside its range.
    pub fn new(size: Bytes, region_blocks: u32) -> Result<Self, GeometryError> {
        let blocks = NonZeroU32::new(region_blocks)
            .filter(|b| REGION_BLOCKS_RANGE.contains(&b.get()))
            .ok_or(GeometryError::RegionBlocks(region_blocks))?;
        match size.0 {
            0 => Err(GeometryError::Empty),
            n if n % BLOCK_BYTES != 0 => Err(GeometryError::PartialBlock(n)),
            n if n > UNIT_BYTES_MAX => Err(GeometryError::TooLarge(n)),
            _ => Ok(Self {
                size,
                region_blocks: blocks,
            }),
        }
    }

    /// The same regions for a unit of another size.
    ///
    /// # Errors
    /// As [`Geometry::new`].
    pub fn resized(self, size: Bytes) -> Result<Self, GeometryError> {
        Self::new(size, self.region_blocks())
    }

    /// The regions that reach behind an offset; `None` when the unit ends before.
    #[must_use]
    pub fn behind(self, offset: Bytes) -> Option<Regions> {
        let len = self.size.0.checked_sub(offset.0)?;
        let range = self.clip(offset, Bytes(len)).ok()?;
        Some(self.regions_of(range))
    }

    /// Size of the unit.
    #[must_use]
    pub fn size(self) -> Bytes {
        self.size
    }

    /// Blocks of the unit.
    #[must_use]
    pub fn blocks(self) -> u64 {
        self.size.0 / BLOCK_BYTES
    }

    /// Blocks of a full region.
    #[must_use]
    pub fn region_blocks(self) -> u32 {
        self.region_blocks.get()
    }

    /// Bytes of a full region.
    #[must_use]
    pub fn region_bytes(self) -> u64 {
        u64::from(self.region_blocks.get()) * BLOCK_BYTES
    }

    /// Number of regions; the last may be shorter than the others.
    #[must_use]
    pub fn regions(self) -> u64 {
        self.size.0.div_ceil(self.region_bytes())
    }

    /// The range `offset .. offset + len`, when it is not empty and inside the unit.
    ///
    /// # Errors
    /// [`GeometryError::OutOfRange`].
    pub fn clip(self, offset: Bytes, len: Bytes) -> Result<ByteRange, GeometryError> {
        let end = offset
            .0
            .checked_add(len.0)
            .ok_or(GeometryError::OutOfRange)?;
        if len.0 == 0 || end > self.size.0 {
            return Err(GeometryError::OutOfRange);
        }
        Ok(ByteRange {
            start: offset.0,
            end,
        })
    }

    /// The whole unit.
    #[must_use]
    pub fn whole(self) -> ByteRange {
        ByteRange {
            start: 0,
            end: self.size.0,
        }
    }

    /// All regions that the range touches.
    #[must_use]
    pub fn regions_of(self, range: ByteRange) -> Regions {
        assert!(
            range.end <= self.size.0,
            "the range belongs to a larger unit"
        );
        let bytes = self.region_bytes();
        #[cfg(debug_assertions)]
        let range = match super::planted::is(super::planted::Mistake::FirstRegionOnly) {
            true => range.split(1).0,
            false => range,
        };
        let regions = Regions {
            first: range.start / bytes,
            end: (range.end - 1) / bytes + 1,
        };
        assert!(regions.first < regions.end && regions.end <= self.regions());
        regions
    }

    /// The bytes of a run of regions; the unit's end cuts the last one.
    #[must_use]
    pub fn bytes_of(self, regions: Regions) -> ByteRange {
        assert!(
            regions.end <= self.regions(),
            "region {} is beyond the unit",
            regions.end
        );
        let bytes = self.region_bytes();
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::ShortTail) {
            return self.planted_bytes_of(regions);
        }
        ByteRange {
            start: regions.first * bytes,
            end: (regions.end * bytes).min(self.size.0),
        }
    }

    /// As [`Self::bytes_of`], without the short last region.
    #[cfg(debug_assertions)]
    fn planted_bytes_of(self, regions: Regions) -> ByteRange {
        let bytes = self.region_bytes();
        let start = regions.first * bytes;
        let whole = self.size.0 / bytes * bytes;
        let end = (regions.end * bytes).min(whole).max(start + BLOCK_BYTES);
        ByteRange { start, end }
    }

    /// All regions of the unit.
    #[must_use]
    pub fn all_regions(self) -> Regions {
        Regions {
            first: 0,
            end: self.regions(),
        }
    }

    /// The range, its borders moved outwards to multiples of `align` bytes and cut at the unit's end.
    #[must_use]
    pub fn round_out(self, range: ByteRange, align: u64) -> ByteRange {
        assert!(align.is_power_of_two(), "an alignment of {align}");
        let start = range.start & !(align - 1);
        let end = range.end.next_multiple_of(align).min(self.size.0);
        assert!(start <= range.start && end >= range.end);
        ByteRange { start, end }
    }
}

/// Bytes of one request: not empty, inside the unit. Only [`Geometry`] makes one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// First byte.
    #[must_use]
    pub fn start(self) -> u64 {
        self.start
    }

    /// First byte behind the range.
    #[must_use]
    pub fn end(self) -> u64 {
        self.end
    }

    /// Length in bytes, at least 1.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// The whole blocks that hold the range: what a fence covers.
    #[must_use]
    pub fn blocks(self) -> BlockRange {
        BlockRange {
            first: Lbn(self.start / BLOCK_BYTES),
            end: Lbn(self.end.div_ceil(BLOCK_BYTES)),
        }
    }

    /// What both have.
    #[must_use]
    pub fn overlap(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(Self { start, end })
    }

    /// The part of the range from its start to at most `len` bytes, and what remains.
    #[must_use]
    pub fn split(self, len: u64) -> (Self, Option<Self>) {
        assert!(len > 0, "a split of no byte");
        if len >= self.len() {
            return (self, None);
        }
        let at = self.start + len;
        (
            Self {
                start: self.start,
                end: at,
            },
            Some(Self {
                start: at,
                end: self.end,
            }),
        )
    }
}

/// A run of whole blocks: not empty, inside the unit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockRange {
    first: Lbn,
    end: Lbn,
}

impl BlockRange {
    /// First block.
    #[must_use]
    pub fn first(self) -> Lbn {
        self.first
    }

    /// First block behind the range.
    #[must_use]
    pub fn end(self) -> Lbn {
        self.end
    }

    /// Whether the two share a block.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first < other.end && other.first < self.end
    }
}

/// A run of regions `first .. end`: not empty, inside the unit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Regions {
    first: u64,
    end: u64,
}

impl Regions {
    /// The run `first .. end`; the caller has found it in a bitmap.
    pub(super) fn run(first: u64, end: u64) -> Self {
        assert!(first < end, "an empty run of regions");
        Self { first, end }
    }

    /// The smallest run that holds both.
    pub(super) fn join(self, other: Self) -> Self {
        Self::run(self.first.min(other.first), self.end.max(other.end))
    }

    /// Whether both have a region.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first < other.end && other.first < self.end
    }

    /// First region.
    #[must_use]
    pub fn first(self) -> Region {
        Region(self.first)
    }

    /// First region behind the run.
    #[must_use]
    pub fn end(self) -> Region {
        Region(self.end)
    }

    /// Number of regions, at least 1.
    #[must_use]
    pub fn count(self) -> u64 {
        self.end - self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry(blocks: u64, region: u32) -> Geometry {
        Geometry::new(Bytes(blocks * BLOCK_BYTES), region).expect("valid")
    }

    #[test]
    fn sizes_that_no_unit_can_have_are_refused() {
        assert_eq!(Geometry::new(Bytes(0), 127), Err(GeometryError::Empty));
        assert_eq!(
            Geometry::new(Bytes(513), 127),
            Err(GeometryError::PartialBlock(513))
        );
        assert_eq!(
            Geometry::new(Bytes(512), 7),
            Err(GeometryError::RegionBlocks(7))
        );
        assert_eq!(
            Geometry::new(Bytes(512), 8193),
            Err(GeometryError::RegionBlocks(8193))
        );
        let large = UNIT_BYTES_MAX + 512;
        assert_eq!(
            Geometry::new(Bytes(large), 127),
            Err(GeometryError::TooLarge(large))
        );
    }

    #[test]
    fn the_manuals_region_is_127_blocks() {
        let g = geometry(127 * 3 + 1, REGION_BLOCKS_DEFAULT);
        assert_eq!((g.region_bytes(), g.regions()), (65_024, 4));
        let tail = g.bytes_of(Regions::run(3, 4));
        assert_eq!(tail.len(), 512, "the short last region");
    }

    #[test]
    fn a_range_touches_the_regions_of_its_first_and_last_byte() {
        let g = geometry(127 * 4, 127);
        let regions = |o, l| {
            let r = g.regions_of(g.clip(Bytes(o), Bytes(l)).expect("inside"));
            (r.first().0, r.end().0)
        };
        assert_eq!(regions(0, 65_024), (0, 1));
        assert_eq!(regions(0, 65_025), (0, 2));
        assert_eq!(regions(65_023, 1), (0, 1));
        assert_eq!(regions(65_023, 2), (0, 2));
        assert_eq!(regions(65_024, 1), (1, 2));
        assert_eq!(regions(1, 65_024 * 3), (0, 4));
    }

    #[test]
    fn ranges_beyond_the_unit_are_refused() {
        let g = geometry(10, 127);
        for (offset, len) in [(0, 0), (5120, 1), (0, 5121), (u64::MAX, 2), (5119, 2)] {
            assert_eq!(
                g.clip(Bytes(offset), Bytes(len)),
                Err(GeometryError::OutOfRange)
            );
        }
    }

    #[test]
    fn ranges_that_only_touch_do_not_overlap() {
        let regions = Regions::run(2, 4);
        assert!(!regions.overlaps(Regions::run(0, 2)) && !regions.overlaps(Regions::run(4, 5)));
        assert!(regions.overlaps(Regions::run(3, 9)) && regions.overlaps(Regions::run(0, 3)));
        let g = geometry(16, 8);
        let blocks = |first: u64, end: u64| {
            let range = g.clip(Bytes(first * 512), Bytes((end - first) * 512));
            range.expect("inside").blocks()
        };
        assert!(!blocks(2, 4).overlaps(blocks(0, 2)) && !blocks(2, 4).overlaps(blocks(4, 5)));
        assert!(blocks(2, 4).overlaps(blocks(3, 9)) && blocks(2, 4).overlaps(blocks(0, 3)));
        let bytes = |at, len| g.clip(Bytes(at), Bytes(len)).expect("inside");
        assert_eq!(bytes(0, 8).overlap(bytes(8, 8)), None);
        assert_eq!(bytes(0, 8).overlap(bytes(7, 8)), Some(bytes(7, 1)));
    }

    #[test]
    fn what_lies_behind_an_offset_begins_in_its_region() {
        let g = geometry(127 * 4, 127);
        let first = |offset| g.behind(Bytes(offset)).map(|r| (r.first().0, r.end().0));
        assert_eq!(first(65_024 * 3 - 512), Some((2, 4)));
        assert_eq!(first(65_024 * 3), Some((3, 4)));
        assert_eq!(first(65_024 * 4), None);
        assert_eq!(first(65_024 * 5), None);
    }

    proptest! {
        #[test]
        fn ranges_are_cut_joined_and_rounded_as_bytes_are(
            (a, b) in (0u64..4000, 1u64..4000), (c, d) in (0u64..4000, 1u64..4000), shift in 9u32..14,
        ) {
            let g = geometry(16, 8);
            let range = |at: u64, len: u64| g.clip(Bytes(at), Bytes(len)).expect("inside");
            let (one, other) = (range(a, b), range(c, d));
            let both = (one.start()..one.end()).filter(|at| (c..c + d).contains(at));
            let both: Vec<u64> = both.collect();
            let overlap = one.overlap(other).map(|r| (r.start(), r.len()));
            prop_assert_eq!(overlap, both.first().map(|first| (*first, both.len() as u64)));
            let (head, rest) = one.split(d);
            prop_assert_eq!((head.start(), head.len()), (a, b.min(d)));
            prop_assert_eq!(rest.map(|r| (r.start(), r.end())), (b > d).then_some((a + d, a + b)));
            let align = 1u64 << shift;
            let out = g.round_out(one, align);
            prop_assert_eq!(out.start(), a / align * align);
            prop_assert_eq!(out.end(), (a + b).div_ceil(align).saturating_mul(align).min(8192));
        }

        #[test]
        fn regions_cover_the_unit_once(blocks in 1u64..5000, region in 8u32..300) {
            let g = geometry(blocks, region);
            let mut at = 0;
            for r in 0..g.regions() {
                let bytes = g.bytes_of(Regions::run(r, r + 1));
                prop_assert_eq!(bytes.start(), at);
                at = bytes.end();
            }
            prop_assert_eq!(at, g.size().0);
        }

        #[test]
        fn regions_of_is_the_naive_answer(
            blocks in 1u64..2000, region in 8u32..200, a in 0u64..1_000_000, b in 1u64..1_000_000,
        ) {
            let g = geometry(blocks, region);
            let (offset, len) = (a % g.size().0, 1 + b % g.size().0);
            if let Ok(range) = g.clip(Bytes(offset), Bytes(len)) {
                let touched: Vec<u64> = (0..g.regions()).filter(|r| {
                    let (s, e) = (r * g.region_bytes(), (r + 1) * g.region_bytes());
                    s < range.end() && range.start() < e
                }).collect();
                let got = g.regions_of(range);
                prop_assert_eq!(touched, (got.first().0..got.end().0).collect::<Vec<_>>());
                let blocks = range.blocks();
                prop_assert_eq!(blocks.first().0, offset / 512);
                prop_assert_eq!(blocks.end().0, (offset + len - 1) / 512 + 1);
            }
        }
    }
}
