//! The View: one epoch of the membership, immutable, shared by everything that moves data.
//!
//! The data path holds a View for the length of one request. A change of membership is: build the
//! next View, publish it, wait until the last request of the old one is done.

use std::sync::Arc;

use super::bitmap::WriteBitmap;
use super::copy::MergeRest;
use super::geometry::{ByteRange, Geometry, Regions};
use super::member::{BitmapId, MemberId, MemberSet};
use super::record::Home;
use super::route::{Candidate, Preference};

/// Number of a View, for the life of the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The next one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What a member does in an epoch.
#[derive(Clone, Debug)]
pub enum Role {
    /// Written and read.
    Source,
    /// Written; read nowhere until it is a source.
    CopyTarget,
    /// Written; read where its stale set has no bit.
    Merging(MergeRest),
}

/// A member that takes part in an epoch.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Which member.
    pub id: MemberId,
    /// What it does.
    pub role: Role,
    /// Cost of a read, lower is preferred.
    pub read_cost: u32,
    /// Site of the member; 0 when it has none.
    pub site: u32,
}

/// One epoch of the membership.
#[derive(Clone, Debug)]
pub struct View {
    epoch: Epoch,
    geometry: Geometry,
    seats: Vec<Seat>,
    marks: Vec<Arc<WriteBitmap>>,
    intent: Arc<WriteBitmap>,
    /// All bitmaps that a write has to set, by number.
    ids: Box<[BitmapId]>,
}

/// Proof that all bits of a range are set: a member may be written only with it (I1).
#[derive(Debug)]
#[must_use = "a member is written only with the proof that the bits are set"]
pub struct Marked(());

/// Regions to be merged before they are read, and the merging members that are stale there (I11).
///
/// Made by [`View::unmerged`]. It is good for one merge in that View, under the fence of all its bytes,
/// which is taken before the View is loaded; then [`View::merged`] takes it.
#[derive(Debug)]
#[must_use = "regions that are not merged must not be read"]
pub struct MergeStep {
    epoch: Epoch,
    regions: Regions,
    range: ByteRange,
    parts: Vec<(MemberId, Regions, ByteRange)>,
    equal: Vec<(MemberId, u64)>,
}

impl MergeStep {
    /// All regions from the first to the last that is stale somewhere.
    #[must_use]
    pub fn regions(&self) -> Regions {
        self.regions
    }

    /// Their bytes: what the fence has to cover.
    #[must_use]
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// What to copy into which member: where it is stale, and nothing else. Elsewhere it answers reads, so a
    /// copy that fails must not touch that.
    pub fn parts(&self) -> impl Iterator<Item = (MemberId, ByteRange)> + '_ {
        self.parts.iter().map(|(id, _, range)| (*id, *range))
    }

    /// So many bytes of a member's parts were found equal and not written.
    pub fn found_equal(&mut self, member: MemberId, bytes: u64) {
        self.equal.push((member, bytes));
    }

    /// The members that are stale there.
    #[must_use]
    pub fn members(&self) -> MemberSet {
        self.parts.iter().map(|(id, ..)| *id).collect()
    }
}

/// What the results of a write or a flush mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Good everywhere: acknowledge.
    Done,
    /// Something failed: the shadow server decides who leaves, then it is acknowledged (I3, I13).
    Report,
}

impl View {
    /// A View of the given members; `marks` are the bitmaps of those who have left.
    pub(crate) fn new(
        epoch: Epoch,
        seats: Vec<Seat>,
        marks: Vec<Arc<WriteBitmap>>,
        intent: Arc<WriteBitmap>,
    ) -> Self {
        let sources = seats
            .iter()
            .filter(|s| matches!(s.role, Role::Source))
            .count();
        assert!(sources > 0, "I2: a View without a source");
        let ids: MemberSet = seats.iter().map(|s| s.id).collect();
        assert_eq!(ids.len(), seats.len(), "a member has one seat");
        let geometry = intent.geometry();
        let covers = |map: &Arc<WriteBitmap>| map.geometry() == geometry;
        assert!(marks.iter().all(covers), "I1: a bitmap covers the unit");
        let ids = marks.iter().chain([&intent]).map(|map| map.id()).collect();
        Self {
            epoch,
            geometry,
            seats,
            marks,
            intent,
            ids,
        }
    }

    /// Its number.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The unit's geometry.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The members that take part.
    #[must_use]
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// Sets the bits of the range, wherever they are not set yet, before any member is written (I1): the
    /// durable ones first. Were the memory bit first, another writer in the region would find it set
    /// and write before it is durable.
    ///
    /// # Errors
    /// That of the home; no member may be written.
    pub fn mark<H: Home>(&self, range: ByteRange, home: &H) -> Result<Marked, H::Error> {
        let regions = self.geometry.regions_of(range);
        home.mark(&self.ids, regions)?;
        for map in &self.marks {
            map.mark(regions);
        }
        self.intent.mark(regions);
        debug_assert!(self.intent.covers(regions), "I1: marked");
        Ok(Marked(()))
    }

    /// Whether all bits are set that a write of the range needs, or the write of a copy.
    #[cfg(shuttle)]
    #[must_use]
    pub fn is_marked(&self, range: ByteRange, copied: bool) -> bool {
        let regions = self.geometry.regions_of(range);
        let marked = |map: &Arc<WriteBitmap>| map.covers(regions);
        marked(&self.intent) && (copied || self.marks.iter().all(marked))
    }

    /// Sets the write-intent bits of a copy step: what it writes is not flushed yet either. In memory
    /// only: the durable form of the stale set keeps its bits until the target is flushed.
    pub fn mark_copy(&self, runs: impl IntoIterator<Item = Regions>) -> Marked {
        for regions in runs {
            self.intent.mark(regions);
        }
        Marked(())
    }

    /// The members that a write goes to.
    #[must_use]
    pub fn writers(&self) -> MemberSet {
        let seats = self.seats.iter();
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::SkipTarget) {
            return seats
                .filter(|s| matches!(s.role, Role::Source))
                .map(|s| s.id)
                .collect();
        }
        seats.map(|s| s.id).collect()
    }

    /// The members that may answer a read of the range: those whose stale set misses it.
    #[must_use]
    pub fn readers(&self, range: ByteRange) -> MemberSet {
        let may = |s: &&Seat| match &s.role {
            Role::Source => true,
            #[cfg(debug_assertions)]
            Role::CopyTarget => super::planted::is(super::planted::Mistake::ReadTarget),
            #[cfg(not(debug_assertions))]
            Role::CopyTarget => false,
            Role::Merging(rest) => !rest.is_stale(range),
        };
        self.seats.iter().filter(may).map(|s| s.id).collect()
    }

    /// The sources.
    #[must_use]
    pub fn sources(&self) -> MemberSet {
        let sources = self.seats.iter().filter(|s| matches!(s.role, Role::Source));
        sources.map(|s| s.id).collect()
    }

    /// Whether a member is a source, and not the only one.
    #[must_use]
    pub fn is_one_of_sources(&self, id: MemberId) -> bool {
        self.sources().contains(id) && self.sources().len() > 1
    }

    /// Whether something is still to be merged, anywhere.
    #[must_use]
    pub fn is_merging(&self) -> bool {
        let rest = |seat: &Seat| matches!(&seat.role, Role::Merging(rest) if !rest.is_empty());
        self.seats.iter().any(rest)
    }

    /// What has to be merged before the range may be read: all regions of it, from the first to the last,
    /// that are stale in some merging member. `None` when the range may be read as it is.
    #[must_use]
    pub fn unmerged(&self, range: ByteRange) -> Option<MergeStep> {
        let regions = self.geometry.regions_of(range);
        let mut parts = Vec::new();
        for seat in &self.seats {
            if let Role::Merging(rest) = &seat.role {
                let runs = rest.runs_in(regions).into_iter();
                parts.extend(runs.map(|run| (seat.id, run, self.geometry.bytes_of(run))));
            }
        }
        let regions = parts.iter().map(|part| part.1).reduce(Regions::join)?;
        Some(MergeStep {
            epoch: self.epoch,
            regions,
            range: self.geometry.bytes_of(regions),
            parts,
            equal: Vec::new(),
        })
    }

    /// Ends a merge before a read: clears the bits of the members that were `good`, into which all their
    /// parts were copied from a source, while the fence of the regions is still held (I1).
    pub fn merged(&self, step: MergeStep, good: MemberSet) {
        assert_eq!(step.epoch, self.epoch, "a merge of another epoch");
        for (id, bytes) in step.equal.iter().filter(|part| good.contains(part.0)) {
            self.rest_of(*id)
                .inspect(|rest| rest.progress().found_equal(*bytes));
        }
        for (id, run, _) in step.parts.iter().filter(|part| good.contains(part.0)) {
            self.rest_of(*id).inspect(|rest| rest.merged(*run));
        }
    }

    fn rest_of(&self, id: MemberId) -> Option<&MergeRest> {
        let seat = self.seats.iter().find(|s| s.id == id);
        seat.and_then(|s| match &s.role {
            Role::Merging(rest) => Some(rest),
            _ => None,
        })
    }

    /// The member to read the range from: the cheapest by read cost plus `load`, not one of `tried`.
    #[must_use]
    pub fn plan_read(
        &self,
        range: ByteRange,
        tried: MemberSet,
        load: impl Fn(MemberId) -> u64,
    ) -> Option<MemberId> {
        self.route(range, tried, &Preference::default(), load)
    }

    /// The member to read the range from, by what is preferred, by read cost and by `load`, the number of
    /// reads that a member is busy with; not one of `tried`.
    #[must_use]
    pub fn route(
        &self,
        range: ByteRange,
        tried: MemberSet,
        prefer: &Preference,
        load: impl Fn(MemberId) -> u64,
    ) -> Option<MemberId> {
        assert!(
            range.end() <= self.geometry.size().0,
            "I7: a read beyond the unit"
        );
        let left = self.readers(range).without(tried);
        let candidates = self.seats.iter().filter(|s| left.contains(s.id));
        prefer.choose(candidates.map(|s| Candidate {
            id: s.id,
            read_cost: s.read_cost,
            site: s.site,
            load: load(s.id),
        }))
    }

    /// Judges the results of a write or flush.
    #[must_use]
    pub fn settle(&self, good: MemberSet, failed: MemberSet) -> Outcome {
        assert!(
            good.and(failed).is_empty(),
            "a member cannot be good and failed"
        );
        assert!(
            !good.or(failed).is_empty(),
            "I2: a request that went nowhere"
        );
        if failed.is_empty() {
            Outcome::Done
        } else {
            Outcome::Report
        }
    }
}
