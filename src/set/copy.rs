//! Draining a stale set: one engine for full copy, minicopy, compare copy and merge.
//!
//! The work owns the bitmap it drains; it is moved to the copier and comes back when it ends.
//! A step is one run of regions, copied under the fence; only a finished step clears bits (I1).
//! The readers of the unit drain a merge as well: they merge what they are about to read (I11).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bitmap::{OwnedBitmap, WriteBitmap};
use super::geometry::{ByteRange, Geometry, Regions};
use super::member::MemberId;

/// Number of an operation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpId(pub u64);

impl std::fmt::Display for OpId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a copy starts from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CopyKind {
    /// Everything.
    Full,
    /// A write bitmap.
    Mini,
    /// Everything, in a member that may be equal in most places: only what differs is written.
    Compare,
    /// Everything, in a member that holds all acknowledged data already.
    Merge,
    /// What an unclean stop or a write that failed everywhere may have left different.
    Minimerge,
}

impl CopyKind {
    /// The word that `operations/*/kind` shows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full-copy",
            Self::Mini => "minicopy",
            Self::Compare => "compare-copy",
            Self::Merge => "merge",
            Self::Minimerge => "minimerge",
        }
    }

    /// Its turn among copies that wait: what is done soonest and matters most comes first.
    #[must_use]
    pub(super) fn turn(self) -> u8 {
        match self {
            Self::Minimerge => 0,
            Self::Mini => 1,
            Self::Compare => 2,
            Self::Full => 3,
            Self::Merge => 4,
        }
    }

    /// Whether the target is read as well, and written only where it differs.
    #[must_use]
    pub fn compares(self) -> bool {
        self.is_merge() || self == Self::Compare
    }

    /// Whether the target holds all acknowledged data, and is read where it is not stale.
    #[must_use]
    pub fn is_merge(self) -> bool {
        matches!(self, Self::Merge | Self::Minimerge)
    }
}

/// Counters of an operation; readers take them without stopping it.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicU64,
    done: AtomicU64,
    equal: AtomicU64,
    fence_block: AtomicU64,
}

impl Progress {
    /// Bytes of the regions that were stale at the start.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total.load(Ordering::Relaxed).max(self.done_bytes())
    }

    /// Bytes of the regions that have been drained.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes of the regions that were copied from a source to the target, holes included: what has been
    /// drained and was not found equal.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        self.done_bytes().saturating_sub(self.equal_bytes())
    }

    /// Bytes that were compared and found equal, so that they were not written.
    #[must_use]
    pub fn equal_bytes(&self) -> u64 {
        self.equal.load(Ordering::Relaxed)
    }

    /// Counts bytes that were found equal in regions that are drained next.
    pub(super) fn found_equal(&self, bytes: u64) {
        self.equal.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Clears the bits of regions that were copied under their fence. They are counted first: who finds
    /// that nothing is stale any more has to find them counted.
    fn drain(&self, stale: &WriteBitmap, regions: Regions) {
        let bytes = stale.weigh(regions);
        self.done.fetch_add(bytes, Ordering::AcqRel);
        let cleared = stale.clear(regions);
        debug_assert!(cleared <= regions.count(), "more bits than regions");
    }

    /// First block of the latest step.
    #[must_use]
    pub fn fence_block(&self) -> u64 {
        self.fence_block.load(Ordering::Relaxed)
    }
}

/// What is left of a merge, for the readers of the unit: they merge what they read first (I11).
#[derive(Clone, Debug)]
pub struct MergeRest {
    stale: Arc<WriteBitmap>,
    progress: Arc<Progress>,
}

impl MergeRest {
    pub(super) fn new(stale: Arc<WriteBitmap>, progress: Arc<Progress>) -> Self {
        Self { stale, progress }
    }

    /// The stale set, to look at.
    #[must_use]
    pub fn stale(&self) -> &WriteBitmap {
        &self.stale
    }

    /// The counters of the merge.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// These regions were copied into the member under their fence.
    pub(super) fn merged(&self, regions: Regions) {
        self.progress.drain(&self.stale, regions);
    }
}

/// One run of stale regions to be copied under one fence.
#[derive(Debug)]
#[must_use = "a step that is not finished leaves its regions stale"]
pub struct CopyStep {
    regions: Regions,
    range: ByteRange,
    stale: Arc<WriteBitmap>,
    /// What is copied of it.
    parts: Vec<Regions>,
    equal: u64,
}

impl CopyStep {
    /// The regions it drains.
    #[must_use]
    pub fn regions(&self) -> Regions {
        self.regions
    }

    /// Their bytes: what the fence has to cover.
    #[must_use]
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// The bytes to copy, looked at under the fence: readers may have merged some of the regions before.
    /// There the target answers reads, so a copy that fails must not touch them.
    pub fn parts(&mut self) -> Vec<ByteRange> {
        self.parts = self.stale.runs_in(self.regions);
        let geometry = self.stale.geometry();
        self.parts.iter().map(|r| geometry.bytes_of(*r)).collect()
    }

    /// So many bytes of its parts were found equal and not written.
    pub fn found_equal(&mut self, bytes: u64) {
        self.equal += bytes;
    }
}

/// A copy: a target and the stale set that is drained.
#[derive(Debug)]
pub struct CopyWork {
    op: OpId,
    kind: CopyKind,
    target: MemberId,
    bitmap: OwnedBitmap,
    cursor: u64,
    in_flight: u64,
    progress: Arc<Progress>,
}

impl CopyWork {
    /// A copy that drains `bitmap`; the total is set by [`CopyWork::begin`].
    #[must_use]
    pub fn new(op: OpId, kind: CopyKind, target: MemberId, bitmap: OwnedBitmap) -> Self {
        let progress = Arc::new(Progress::default());
        Self {
            op,
            kind,
            target,
            bitmap,
            cursor: 0,
            in_flight: 0,
            progress,
        }
    }

    /// Fixes the total: from now on no write of an older epoch can set a bit. Readers may have merged
    /// some of it by now.
    pub fn begin(&mut self) {
        assert_eq!(self.in_flight, 0, "a copy begins once");
        let done = self.progress.done_bytes();
        let total = done + self.bitmap.stale_bytes();
        self.progress.total.store(total, Ordering::Relaxed);
    }

    /// Number of its operation.
    #[must_use]
    pub fn op(&self) -> OpId {
        self.op
    }

    /// What it started from.
    #[must_use]
    pub fn kind(&self) -> CopyKind {
        self.kind
    }

    /// The member that is filled.
    #[must_use]
    pub fn target(&self) -> MemberId {
        self.target
    }

    /// The stale set, to mark and to read.
    #[must_use]
    pub fn stale(&self) -> Arc<WriteBitmap> {
        self.bitmap.marks()
    }

    /// The counters.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Gives the bitmap back: what is left of it is still right.
    #[must_use]
    pub fn into_bitmap(self) -> OwnedBitmap {
        assert_eq!(self.in_flight, 0, "a step is still under way");
        self.bitmap
    }

    /// Whether nothing is stale any more and no step is under way.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.is_idle() && self.bitmap.is_empty()
    }

    /// Whether no step is under way: when [`Self::next_step`] has none then, the copy has come to its end.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// The next run of stale regions, adjacent ones joined up to `budget` bytes (at least a region).
    ///
    /// `None` when nothing is left to begin; steps under way may still leave regions stale.
    pub fn next_step(&mut self, budget: u64) -> Option<CopyStep> {
        let geometry = self.geometry();
        let most = (budget / geometry.region_bytes()).max(1);
        let mut run = self.bitmap.next_run(self.cursor, most);
        // Behind the cursor lie the steps under way: look there again only when there is none.
        if run.is_none() && self.in_flight == 0 {
            run = self.bitmap.next_run(0, most);
        }
        let regions = run?;
        self.cursor = regions.end().0;
        self.in_flight += 1;
        let range = geometry.bytes_of(regions);
        assert!(regions.count() <= most, "a step keeps to its budget");
        assert!(
            range.end() <= geometry.size().0,
            "I7: a step beyond the unit"
        );
        self.progress
            .fence_block
            .store(range.blocks().first().0, Ordering::Relaxed);
        Some(CopyStep {
            regions,
            range,
            stale: self.bitmap.marks(),
            parts: vec![regions],
            equal: 0,
        })
    }

    /// Ends a step: clears its bits when the copy was good, else leaves them.
    pub fn finish(&mut self, step: CopyStep, good: bool) {
        assert!(self.in_flight > 0, "a step that was never begun");
        self.in_flight -= 1;
        if !good {
            return;
        }
        self.progress.found_equal(step.equal);
        for part in step.parts {
            self.progress.drain(&self.bitmap, part);
        }
    }

    fn geometry(&self) -> Geometry {
        self.bitmap.geometry()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::geometry::{BLOCK_BYTES, Bytes};
    use proptest::prelude::*;

    fn work(blocks: u64, marked: &[(u64, u64)]) -> CopyWork {
        let g = Geometry::new(Bytes(blocks * BLOCK_BYTES), 127).expect("valid");
        let map = WriteBitmap::empty(g);
        for &(offset, len) in marked {
            map.mark(g.regions_of(g.clip(Bytes(offset), Bytes(len)).expect("inside")));
        }
        let target = MemberId::new(1).expect("inside");
        let mut work = CopyWork::new(OpId(1), CopyKind::Mini, target, OwnedBitmap::new(map));
        work.begin();
        work
    }

    #[test]
    fn a_failed_step_stays_stale_and_comes_again() {
        let mut work = work(127 * 3, &[(0, 1), (65_024 * 2, 1)]);
        let first = work.next_step(1).expect("a run");
        let second = work.next_step(1).expect("a run");
        assert!(work.next_step(1).is_none(), "both are under way");
        work.finish(first, false);
        assert!(
            work.next_step(1).is_none(),
            "not while the other is under way"
        );
        work.finish(second, true);
        assert!(!work.is_drained());
        let again = work.next_step(1).expect("the failed one");
        assert_eq!(again.range().start(), 0);
        work.finish(again, true);
        assert!(work.is_drained());
    }

    #[test]
    fn adjacent_regions_are_joined_up_to_the_budget() {
        let mut work = work(127 * 10, &[(0, 65_024 * 10)]);
        let lengths: Vec<u64> = std::iter::from_fn(|| {
            let step = work.next_step(65_024 * 4)?;
            let len = step.range().len();
            work.finish(step, true);
            Some(len)
        })
        .collect();
        assert_eq!(lengths, [65_024 * 4, 65_024 * 4, 65_024 * 2]);
    }

    #[test]
    fn what_readers_merge_is_done_and_ends_the_copy() {
        let mut work = work(127 * 3 - 5, &[(0, 1), (65_024, 1), (65_024 * 2, 1)]);
        let rest = MergeRest::new(work.stale(), work.progress());
        let mut step = work.next_step(1).expect("a run");
        assert_eq!(step.parts(), [step.range()]);
        rest.merged(Regions::run(0, 2));
        assert!(step.parts().is_empty(), "a reader was there");
        let progress = work.progress();
        assert_eq!(progress.done_bytes(), 65_024 * 2);
        work.finish(step, true);
        assert_eq!(progress.done_bytes(), 65_024 * 2, "counted once");
        assert!(!work.is_drained());
        rest.merged(Regions::run(1, 3));
        assert!(work.next_step(1).is_none() && work.is_idle() && work.is_drained());
        let total = progress.total_bytes();
        assert_eq!(total, 65_024 * 3 - 5 * BLOCK_BYTES);
        assert_eq!(
            (progress.done_bytes(), progress.copied_bytes()),
            (total, total)
        );
    }

    #[test]
    fn a_total_holds_what_readers_have_merged_before_the_copy_began() {
        let mut work = work(127 * 3, &[(0, 65_024 * 3)]);
        MergeRest::new(work.stale(), work.progress()).merged(Regions::run(1, 2));
        work.begin();
        assert_eq!(work.progress().total_bytes(), 65_024 * 3);
    }

    proptest! {
        /// Bytes copied are exactly the bytes of the regions whose bits were set.
        #[test]
        fn copies_exactly_what_is_marked(
            blocks in 1u64..3000,
            writes in proptest::collection::vec((any::<u64>(), 1u64..200_000), 0..20),
            budget in 1u64..400_000,
        ) {
            let size = blocks * BLOCK_BYTES;
            let marked: Vec<_> = writes.iter().map(|&(a, l)| {
                let offset = a % size;
                (offset, l.min(size - offset))
            }).collect();
            let mut work = work(blocks, &marked);
            let expected = work.stale().stale_bytes();
            let mut copied = 0;
            while let Some(step) = work.next_step(budget) {
                copied += step.range().len();
                work.finish(step, true);
            }
            prop_assert!(work.is_drained());
            prop_assert_eq!(copied, expected);
            prop_assert_eq!(work.progress().done_bytes(), expected);
            prop_assert_eq!(work.progress().total_bytes(), expected);
        }
    }
}
