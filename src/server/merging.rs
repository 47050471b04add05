//! Merging by reading: a region still to be merged is merged before a read of it is answered (I11).
//!
//! Otherwise the master would answer, and after a crash without it another member with something else.
//! It is a copy step of its own, with the fence of the whole regions. Like every copy step it sets bits of
//! write intent in memory only: the durable stale set keeps its bits until the member is flushed.

use super::pipeline::{EIO, Errno, Fenced, Pipeline, Results, WritePermit, not_open};
use super::step::{Failure, Scratch, Target, Unreadable, copy_range};
use crate::set::geometry::BLOCK_BYTES;
use crate::set::{ByteRange, MemberId, MergeStep, Role};

/// Most bytes that a merge moves at once.
const BUFFER_BYTES: u64 = 1 << 20;

impl Pipeline {
    /// Reads a range of which some regions may still have to be merged.
    ///
    /// # Errors
    /// EIO when no source could answer.
    pub(super) fn read_merged(&self, range: ByteRange, buf: &mut [u8]) -> Result<(), Errno> {
        let (fenced, whole, geometry) = loop {
            let geometry = self.live().view().geometry();
            let whole = geometry.bytes_of(geometry.regions_of(range));
            let fenced = self.enter(whole);
            // The last region may have become longer.
            if fenced.live().view().geometry() == geometry {
                break (fenced, whole, geometry);
            }
        };
        // The copier or another reader may have been here.
        if let Some(step) = fenced.live().view().unmerged(whole) {
            self.merge(&fenced, step, geometry.round_out(range, BLOCK_BYTES))?;
        }
        self.read_from(fenced.live(), range, buf).map(drop)
    }

    fn merge(
        &self,
        fenced: &Fenced<'_>,
        mut step: MergeStep,
        asked: ByteRange,
    ) -> Result<(), Errno> {
        let (live, range) = (fenced.live(), step.range());
        let mut scratch = Scratch::new(range.len().min(BUFFER_BYTES) as usize);
        let permit = fenced.permit_copy([step.regions()]);
        let mut results = match self.merge_parts(fenced, &permit, step.parts(), &mut scratch) {
            Ok((results, equal)) => {
                equal
                    .iter()
                    .for_each(|(id, bytes)| step.found_equal(*id, *bytes));
                live.view().merged(step, results.good);
                results
            }
            // A bad place beside what is asked for: that alone is made equal, and the bits stay.
            Err(Unreadable) => {
                let asked = |(id, part): (_, ByteRange)| Some((id, part.overlap(asked)?));
                let parts = step.parts().filter_map(asked);
                let merged = self.merge_parts(fenced, &permit, parts, &mut scratch);
                merged.map_err(|Unreadable| EIO)?.0
            }
        };
        // What a member lacks that could not be written, the sources have.
        let seats = live.view().seats().iter();
        for source in seats.filter(|s| matches!(s.role, Role::Source)) {
            results.good.insert(source.id);
        }
        self.settle(live, Some(range), &results)
    }

    /// Copies parts from a source into the members that lack them; tells what each had already.
    fn merge_parts(
        &self,
        fenced: &Fenced<'_>,
        permit: &WritePermit<'_>,
        parts: impl Iterator<Item = (MemberId, ByteRange)>,
        scratch: &mut Scratch,
    ) -> Result<(Results, Vec<(MemberId, u64)>), Unreadable> {
        let (mut results, mut equal) = (Results::default(), Vec::new());
        for (id, part) in parts {
            if results.failed.contains(id) {
                continue;
            }
            let mut target = Target::new(id, true);
            copy_range(self, fenced, permit, (&mut [&mut target], part), scratch)?;
            equal.push((id, target.equal));
            let outcome = match target.failed {
                None => Ok(()),
                Some(Failure::Target(error)) => Err(error),
                Some(Failure::Gone | Failure::Source) => Err(not_open()),
            };
            results.add(id, outcome);
        }
        Ok((results, equal))
    }
}
