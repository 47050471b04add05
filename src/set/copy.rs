//! Draining a stale set: one engine for full copy, minicopy, compare copy and merge.
//!
//! The work owns the bitmap it drains; it is moved to the copier and comes back when it ends.
//! A step is a few runs of regions near each other, copied under one fence; only a finished step clears bits (I1).
//! Other copies that lack the same regions join a step, so that a source is read once for all of them. Nothing else
//! is shared: each has its own stale set, cursor and end.
//! The readers of the unit drain a merge as well: they merge what they are about to read (I11).

use crate::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use super::bitmap::{OwnedBitmap, WriteBitmap};
use super::geometry::{ByteRange, Geometry, Regions};
use super::member::MemberId;

/// How far a step reaches for scattered regions: so many times what it may copy, and no further than this many regions.
/// Writes between them wait for the step.
const SPAN: u64 = 4;
const SPAN_MAX: u64 = 128;

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
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full-copy",
            Self::Mini => "minicopy",
            Self::Compare => "compare-copy",
            Self::Merge => "merge",
            Self::Minimerge => "minimerge",
        }
    }

    /// Seconds that so many bytes take at the speed that was measured for this kind, in bytes per second; a
    /// full copy and a minicopy do the same work. `None` when neither was measured.
    #[must_use]
    pub fn eta(self, bytes: u64, expected: &[(Self, u64)]) -> Option<u64> {
        let measured = |kind: Self| expected.iter().find(|(k, rate)| *k == kind && *rate > 0);
        let like = match self {
            Self::Full => Self::Mini,
            Self::Mini => Self::Full,
            other => other,
        };
        let (_, rate) = measured(self).or_else(|| measured(like))?;
        Some(bytes.div_ceil(*rate))
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
    /// Its largest rate; 0 where it has none of its own.
    rate: AtomicU64,
}

/// A rate without a limit.
pub const UNLIMITED: u64 = u64::MAX;

/// A rate as it is written: bytes per second, or `max`.
#[must_use]
pub fn rate_text(rate: u64) -> String {
    match rate {
        UNLIMITED => "max".to_owned(),
        rate => rate.to_string(),
    }
}

impl Progress {
    /// Counters of an operation that has so many bytes to do.
    pub(super) fn of(total: u64) -> Self {
        let progress = Self::default();
        progress.total.store(total, Ordering::Relaxed);
        progress
    }

    /// A step begins at a block.
    pub(super) fn at_block(&self, block: u64) {
        self.fence_block.store(block, Ordering::Relaxed);
    }

    /// So many bytes more are done, of which so many were found equal.
    pub(super) fn pass(&self, bytes: u64, equal: u64) {
        self.found_equal(equal);
        self.done.fetch_add(bytes, Ordering::AcqRel);
    }

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

    /// The most that the operation may read, in bytes per second; [`UNLIMITED`] for no limit of its own.
    #[must_use]
    pub fn rate_max(&self) -> u64 {
        match self.rate.load(Ordering::Relaxed) {
            0 => UNLIMITED,
            rate => rate,
        }
    }

    /// Gives the operation another largest rate; gives the one before.
    pub(super) fn limit(&self, rate: u64) -> u64 {
        match self.rate.swap(rate, Ordering::Relaxed) {
            0 => UNLIMITED,
            rate => rate,
        }
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
    /// What may be stale beside that: steps of older epochs may clear bits that have been set since they have read.
    doubt: Option<Arc<WriteBitmap>>,
    progress: Arc<Progress>,
}

impl MergeRest {
    pub(crate) fn new(
        stale: Arc<WriteBitmap>,
        doubt: Option<Arc<WriteBitmap>>,
        progress: Arc<Progress>,
    ) -> Self {
        Self {
            stale,
            doubt,
            progress,
        }
    }

    /// Whether some of a range is still to be merged.
    #[must_use]
    pub fn is_stale(&self, range: ByteRange) -> bool {
        self.stale.is_stale(range) || self.doubt.as_ref().is_some_and(|d| d.is_stale(range))
    }

    /// Whether nothing is still to be merged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stale.is_empty() && self.doubt.as_ref().is_none_or(|d| d.is_empty())
    }

    /// What is still to be merged of these regions.
    pub(super) fn runs_in(&self, regions: Regions) -> Vec<Regions> {
        let mut runs = self.stale.runs_in(regions);
        if let Some(doubt) = &self.doubt {
            runs.extend(doubt.runs_in(regions));
            runs.sort_by_key(|run| run.first());
        }
        let join = |mut joined: Vec<Regions>, run: Regions| {
            match joined.last_mut() {
                Some(last) if run.first() <= last.end() => *last = last.join(run),
                _ => joined.push(run),
            }
            joined
        };
        runs.into_iter().fold(Vec::new(), join)
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

/// Runs of stale regions to be copied under one fence.
#[derive(Debug)]
#[must_use = "a step that is not finished leaves its regions stale"]
pub struct CopyStep {
    regions: Regions,
    range: ByteRange,
    stale: Arc<WriteBitmap>,
    /// The regions that it is for.
    runs: Vec<Regions>,
    /// What is copied of them.
    parts: Vec<Regions>,
    equal: u64,
    /// What the planted mistake takes for copied besides.
    #[cfg(debug_assertions)]
    claimed: Option<Regions>,
}

/// Bytes that are read once, and who of the steps that share them lacks them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The regions; each of these steps drains all of them.
    pub regions: Regions,
    /// Their bytes.
    pub range: ByteRange,
    /// The steps, by their places.
    pub steps: Vec<usize>,
}

/// What steps that share a fence have to copy, in order: each byte once, for all that lack it. Looked at under
/// the fence, as [`CopyStep::parts`].
pub fn pieces<'a>(steps: impl IntoIterator<Item = &'a mut CopyStep>) -> Vec<Piece> {
    let mut parts: Vec<(usize, Regions)> = Vec::new();
    let mut geometry = None;
    for (place, step) in steps.into_iter().enumerate() {
        geometry = Some(step.stale.geometry());
        step.look();
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::GapsCopied) {
            parts.push((place, step.regions));
            continue;
        }
        parts.extend(step.parts.iter().map(|run| (place, *run)));
    }
    let Some(geometry) = geometry else {
        return Vec::new();
    };
    let borders = parts
        .iter()
        .flat_map(|(_, run)| [run.first().0, run.end().0]);
    let mut borders: Vec<u64> = borders.collect();
    borders.sort_unstable();
    borders.dedup();
    let pieces = borders.windows(2).map(|border| {
        let run = Regions::run(border[0], border[1]);
        let holds =
            |(_, part): &&(usize, Regions)| part.first() <= run.first() && run.end() <= part.end();
        Piece {
            regions: run,
            range: geometry.bytes_of(run),
            steps: parts
                .iter()
                .filter(holds)
                .map(|(place, _)| *place)
                .collect(),
        }
    });
    pieces.filter(|piece| !piece.steps.is_empty()).collect()
}

impl CopyStep {
    /// The regions it drains, and what lies between them.
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
        self.look();
        let geometry = self.stale.geometry();
        self.parts.iter().map(|r| geometry.bytes_of(*r)).collect()
    }

    fn look(&mut self) {
        let stale = |run: &Regions| self.stale.runs_in(*run);
        self.parts = self.runs.iter().flat_map(stale).collect();
    }

    /// The bytes of its parts.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let geometry = self.stale.geometry();
        let bytes = self.parts.iter().map(|run| geometry.bytes_of(*run).len());
        bytes.sum()
    }

    /// Ends the step at a byte of the unit: what is not wholly before it stays stale.
    pub fn stop_at(&mut self, at: u64) {
        let end = at / self.stale.geometry().region_bytes();
        let before = |run: &Regions| {
            let (first, end) = (run.first().0, run.end().0.min(end));
            (first < end).then(|| Regions::run(first, end))
        };
        self.parts = self.parts.iter().filter_map(before).collect();
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
    /// The source that is read as long as it can be; the cheapest when none was named.
    from: Option<MemberId>,
    bitmap: OwnedBitmap,
    cursor: u64,
    /// The regions of the steps under way.
    under_way: Vec<Regions>,
    progress: Arc<Progress>,
}

impl CopyWork {
    /// Has it read this source as long as it can.
    pub(super) fn read_from(&mut self, source: MemberId) {
        self.from = Some(source);
    }

    /// The source that it should read, where one was named.
    #[must_use]
    pub fn from(&self) -> Option<MemberId> {
        self.from
    }

    /// A copy that drains `bitmap`; the total is set by [`CopyWork::begin`].
    #[must_use]
    pub fn new(op: OpId, kind: CopyKind, target: MemberId, bitmap: OwnedBitmap) -> Self {
        let progress = Arc::new(Progress::default());
        Self {
            op,
            kind,
            target,
            from: None,
            bitmap,
            cursor: 0,
            under_way: Vec::new(),
            progress,
        }
    }

    /// Fixes the total: from now on no write of an older epoch can set a bit. Readers may have merged
    /// some of it by now.
    pub fn begin(&mut self) {
        assert!(self.is_idle(), "a copy begins once");
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
        assert!(self.is_idle(), "a step is still under way");
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
        self.under_way.is_empty()
    }

    /// The next stale regions, together at most `budget` bytes (at least a region). The budget depends on the byte at
    /// which they begin.
    ///
    /// `None` when nothing is left to begin; steps under way may still leave regions stale.
    pub fn next_step(&mut self, budget: impl Fn(u64) -> u64) -> Option<CopyStep> {
        let mut run = self.next_free(self.cursor, &budget);
        // What has failed behind the cursor is tried again when nothing else is under way.
        if run.is_none() && self.is_idle() {
            run = self.next_free(0, &budget);
        }
        let regions = run?;
        self.cursor = regions.end().0;
        let runs = self.bitmap.runs_in(regions);
        Some(self.begin_step(regions, runs))
    }

    /// A step beside that of another copy, in some of the regions that it is for and under its fence; `None` when
    /// nothing is stale there, or when a step of this copy is on its way there.
    pub fn join(&mut self, lead: &CopyStep) -> Option<CopyStep> {
        if self.under_way.iter().any(|run| run.overlaps(lead.regions)) {
            return None;
        }
        let stale = |run: &Regions| self.bitmap.runs_in(*run);
        let runs: Vec<Regions> = lead.runs.iter().flat_map(stale).collect();
        let regions = runs.iter().copied().reduce(Regions::join)?;
        let step = self.begin_step(regions, runs);
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::SharedCursor) {
            let mut step = step;
            step.claimed = Some(Regions::run(0, regions.end().0));
            return Some(step);
        }
        Some(step)
    }

    /// The first run at or behind `from` that no step under way touches.
    fn next_free(&self, from: u64, budget: &impl Fn(u64) -> u64) -> Option<Regions> {
        let region_bytes = self.geometry().region_bytes();
        let mut from = from;
        loop {
            let first = self.bitmap.next_run(from, 1)?.first().0;
            let run = self.gather(first, |region| budget(region * region_bytes) / region_bytes)?;
            let busy = self.under_way.iter().filter(|busy| busy.overlaps(run));
            match busy.min_by_key(|busy| busy.first().0) {
                None => return Some(run),
                Some(busy) if run.first() < busy.first() => {
                    return Some(Regions::run(run.first().0, busy.first().0));
                }
                Some(busy) => from = busy.end().0,
            }
        }
    }

    /// Runs of stale regions near each other, together no more than there may be where each begins.
    fn gather(&self, first: u64, most: impl Fn(u64) -> u64) -> Option<Regions> {
        let at_first = most(first).max(1);
        let reach = first + SPAN_MAX.min(at_first * SPAN);
        let mut all = self.bitmap.next_run(first, at_first)?;
        let mut taken = all.count();
        while let Some(next) = self.bitmap.next_run(all.end().0, 1) {
            let left = most(next.first().0).saturating_sub(taken);
            let next = match left {
                0 => None,
                left => self.bitmap.next_run(next.first().0, left),
            };
            let Some(next) = next.filter(|run| run.end().0 <= reach) else {
                break;
            };
            taken += next.count();
            all = all.join(next);
        }
        Some(all)
    }

    fn begin_step(&mut self, regions: Regions, runs: Vec<Regions>) -> CopyStep {
        let geometry = self.geometry();
        self.under_way.push(regions);
        let range = geometry.bytes_of(regions);
        assert!(
            range.end() <= geometry.size().0,
            "I7: a step beyond the unit"
        );
        self.progress
            .fence_block
            .store(range.blocks().first().0, Ordering::Relaxed);
        CopyStep {
            regions,
            range,
            stale: self.bitmap.marks(),
            parts: runs.clone(),
            runs,
            equal: 0,
            #[cfg(debug_assertions)]
            claimed: None,
        }
    }

    /// Ends a step: clears its bits when the copy was good, else leaves them.
    pub fn finish(&mut self, step: CopyStep, good: bool) {
        let place = self.under_way.iter().position(|run| *run == step.regions);
        assert!(place.is_some(), "a step that was never begun");
        place.map(|place| self.under_way.swap_remove(place));
        if !good {
            return;
        }
        #[cfg(debug_assertions)]
        if let Some(claimed) = step.claimed {
            self.progress.drain(&self.bitmap, claimed);
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
        let first = work.next_step(|_| 1).expect("a run");
        let second = work.next_step(|_| 1).expect("a run");
        assert!(work.next_step(|_| 1).is_none(), "both are under way");
        work.finish(first, false);
        assert!(
            work.next_step(|_| 1).is_none(),
            "not while the other is under way"
        );
        work.finish(second, true);
        assert!(!work.is_drained());
        let again = work.next_step(|_| 1).expect("the failed one");
        assert_eq!(again.range().start(), 0);
        work.finish(again, true);
        assert!(work.is_drained());
    }

    #[test]
    fn what_is_in_doubt_is_still_to_be_merged() {
        let marks = |regions: &[u64]| {
            let marked: Vec<_> = regions.iter().map(|at| (65_024 * at, 1)).collect();
            work(127 * 10, &marked).stale()
        };
        let doubt = Some(marks(&[2, 4, 7, 9]));
        let rest = MergeRest::new(marks(&[1, 4]), doubt, Arc::default());
        let run = Regions::run;
        assert_eq!(
            rest.runs_in(run(0, 10)),
            [run(1, 3), run(4, 5), run(7, 8), run(9, 10)]
        );
        assert_eq!(rest.runs_in(run(5, 7)), []);
        assert_eq!(rest.runs_in(run(2, 5)), [run(2, 3), run(4, 5)]);
    }

    #[test]
    fn adjacent_regions_are_joined_up_to_the_budget() {
        let mut work = work(127 * 10, &[(0, 65_024 * 10)]);
        let lengths: Vec<u64> = std::iter::from_fn(|| {
            let step = work.next_step(|_| 65_024 * 4)?;
            let len = step.range().len();
            work.finish(step, true);
            Some(len)
        })
        .collect();
        assert_eq!(lengths, [65_024 * 4, 65_024 * 4, 65_024 * 2]);
    }

    #[test]
    fn scattered_regions_near_each_other_are_one_step() {
        let region = 65_024;
        let marks = [0, 2, 3, 9, 14, 600].map(|at| (at * region, 1));
        let mut work = work(127 * 1000, &marks);
        let mut first = work.next_step(|_| region * 4).expect("a run");
        assert_eq!(first.regions(), Regions::run(0, 10), "four regions of it");
        let lengths: Vec<u64> = first.parts().iter().map(|part| part.len()).collect();
        assert_eq!(lengths, [region, region * 2, region]);
        let second = work.next_step(|_| region * 4).expect("a run");
        assert_eq!(second.regions(), Regions::run(14, 15), "600 is far away");
        let third = work.next_step(|_| region * 4).expect("a run");
        for step in [first, second, third] {
            work.finish(step, true);
        }
        assert!(work.is_drained());
    }

    #[test]
    fn the_budget_of_a_hole_is_for_the_hole_alone() {
        let region = 65_024;
        let budget = |at: u64| {
            if at < region * 40 {
                1 << 30
            } else {
                region * 2
            }
        };
        // Two regions in a hole, and all behind it.
        let mut work = work(127 * 300, &[(0, region * 2), (region * 40, region * 200)]);
        let step = work.next_step(budget).expect("a run");
        assert_eq!(step.regions(), Regions::run(0, 2));
        assert_eq!(
            work.next_step(budget).expect("a run").regions(),
            Regions::run(40, 42)
        );
        // Every second region of a hole: no step takes them all.
        let marks: Vec<_> = (0..150).map(|n| (n * 2 * region, 1)).collect();
        let mut work = self::work(127 * 300, &marks);
        let step = work.next_step(|_| 1 << 30).expect("a run");
        assert!(step.regions().count() <= SPAN_MAX, "{:?}", step.regions());
    }

    #[test]
    fn a_step_that_stops_leaves_the_rest_stale() {
        let region = 65_024;
        let mut work = work(127 * 8, &[(0, region * 3), (region * 5, 1)]);
        let mut step = work.next_step(|_| region * 8).expect("a run");
        assert_eq!(
            (step.regions(), step.bytes()),
            (Regions::run(0, 6), region * 4)
        );
        assert_eq!(step.parts().len(), 2);
        step.stop_at(region * 2 + 1);
        assert_eq!(step.bytes(), region * 2);
        work.finish(step, true);
        let rest = work.next_step(|_| region * 8).expect("the rest");
        assert_eq!(
            (rest.regions(), rest.bytes()),
            (Regions::run(2, 6), region * 2)
        );
    }

    #[test]
    fn a_step_may_stop_where_a_run_begins() {
        let region = 65_024;
        let mut work = work(127 * 8, &[(0, region), (region * 2, region)]);
        let mut step = work.next_step(|_| region * 8).expect("a run");
        step.stop_at(region * 2);
        assert_eq!(step.bytes(), region);
    }

    #[test]
    fn a_step_ends_before_one_that_is_under_way() {
        let region = 65_024;
        let mut lead = work(127 * 8, &[(region * 2, region * 2)]);
        let mut other = work(127 * 8, &[(0, region * 8)]);
        let step = lead.next_step(|_| region * 2).expect("a run");
        let joined = other.join(&step).expect("it lacks them too");
        assert_eq!(joined.regions(), Regions::run(2, 4));
        let mut next = |budget| other.next_step(|_| budget).map(|step| step.regions());
        assert_eq!(next(region * 8), Some(Regions::run(0, 2)));
        assert_eq!(next(region * 8), Some(Regions::run(4, 8)));
        assert_eq!(next(region * 8), None);
    }

    #[test]
    fn what_was_found_equal_was_not_copied() {
        let region = 65_024;
        let mut work = work(127 * 4, &[(0, region * 4)]);
        let mut step = work.next_step(|_| region * 4).expect("a run");
        step.found_equal(region);
        step.found_equal(region);
        work.finish(step, true);
        let progress = work.progress();
        assert_eq!(
            (progress.equal_bytes(), progress.copied_bytes()),
            (region * 2, region * 2)
        );
    }

    #[test]
    fn people_see_where_a_copy_is() {
        let region = 65_024;
        let mut work = work(127 * 4, &[(region * 2, 1)]);
        let _step = work.next_step(|_| region).expect("a run");
        assert_eq!(work.progress().fence_block(), 127 * 2);
        work.progress().at_block(5);
        assert_eq!(work.progress().fence_block(), 5);
    }

    #[test]
    fn what_two_copies_lack_is_read_once_and_each_drains_its_own() {
        let region = 65_024;
        let mut lead = work(127 * 8, &[(0, region * 4)]);
        let mut other = work(127 * 8, &[(region, 1), (region * 3, region * 5)]);
        let step = lead.next_step(|_| region * 4).expect("a run");
        let joined = other.join(&step).expect("it lacks some of it");
        assert_eq!(joined.regions(), Regions::run(1, 4));
        assert!(other.join(&step).is_none(), "its own step is there");
        let own = other.next_step(|_| region * 8).expect("a run");
        assert_eq!(own.regions(), Regions::run(4, 8), "not what it has joined");
        let mut steps = [step, joined];
        let shared: Vec<_> = pieces(&mut steps)
            .into_iter()
            .map(|p| (p.range.start() / region, p.range.len() / region, p.steps))
            .collect();
        let both = vec![0, 1];
        let expected = [
            (0, 1, vec![0]),
            (1, 1, both.clone()),
            (2, 1, vec![0]),
            (3, 1, both),
        ];
        assert_eq!(shared, expected);
        let [step, joined] = steps;
        lead.finish(step, true);
        other.finish(joined, false);
        assert!(lead.is_drained() && !other.is_drained() && !other.is_idle());
        assert_eq!(
            other.stale().count(),
            6,
            "each copy ends its steps for itself"
        );
        other.finish(own, true);
        assert_eq!(
            other.next_step(|_| 1).expect("again").regions(),
            Regions::run(1, 2)
        );
    }

    #[test]
    fn what_readers_merge_is_done_and_ends_the_copy() {
        let mut work = work(127 * 3 - 5, &[(0, 1), (65_024, 1), (65_024 * 2, 1)]);
        let rest = MergeRest::new(work.stale(), None, work.progress());
        let mut step = work.next_step(|_| 1).expect("a run");
        assert_eq!(step.parts(), [step.range()]);
        rest.merged(Regions::run(0, 2));
        assert!(step.parts().is_empty(), "a reader was there");
        let progress = work.progress();
        assert_eq!(progress.done_bytes(), 65_024 * 2);
        work.finish(step, true);
        assert_eq!(progress.done_bytes(), 65_024 * 2, "counted once");
        assert!(!work.is_drained());
        rest.merged(Regions::run(1, 3));
        assert!(work.next_step(|_| 1).is_none() && work.is_idle() && work.is_drained());
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
        MergeRest::new(work.stale(), None, work.progress()).merged(Regions::run(1, 2));
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
            while let Some(mut step) = work.next_step(|_| budget) {
                let parts: u64 = step.parts().iter().map(|part| part.len()).sum();
                prop_assert!(parts <= budget.max(127 * BLOCK_BYTES), "more than its budget");
                copied += parts;
                work.finish(step, true);
            }
            prop_assert!(work.is_drained());
            prop_assert_eq!(copied, expected);
            prop_assert_eq!(work.progress().done_bytes(), expected);
            prop_assert_eq!(work.progress().total_bytes(), expected);
        }
    }
}
