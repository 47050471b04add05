//! Merging by reading: a region still to be merged is merged before a read of it is answered (I11).
//!
//! Otherwise the master would answer, and after a crash without it another member with something else.
//! It is a copy step of its own, with the fence of the whole regions. Like every copy step it sets bits of
//! write intent in memory only: the durable stale set keeps its bits until the member is flushed.

use super::pipeline::{EIO, Errno, Fenced, Pipeline, WritePermit};
use super::reading::{Answered, Pinned, Read};
use super::rescue::Held;
use super::results::{Results, not_open};
use super::step::{Failure, Hold, Scratch, Stop, Target, copy_range};
use crate::io::aligned::AlignedBuf;
use crate::set::geometry::BLOCK_BYTES;
use crate::set::{ByteRange, MemberId, MergeStep, Role};

/// Most bytes that a merge moves at once.
const BUFFER_BYTES: u64 = 1 << 20;

/// A read that merges its regions first.
pub(super) struct Merge {
    permit: WritePermit,
    range: ByteRange,
    done: Answered,
}

impl std::fmt::Debug for Merge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut merge = f.debug_struct("Merge");
        merge.field("range", &self.range).finish_non_exhaustive()
    }
}

impl Merge {
    pub(super) fn permit(&self) -> &WritePermit {
        &self.permit
    }

    /// Whether another source has what a member does not give; not of a member that is written.
    pub(super) fn has_other(&self, member: MemberId) -> bool {
        self.permit.live().view().is_one_of_sources(member)
    }

    /// Begins the read once more, in place of a thread that a member holds. What that thread has merged is merged
    /// again.
    pub(super) fn begin_anew(self, pipeline: &Pipeline) {
        drop(self.permit);
        let mut buf = AlignedBuf::zeroed(self.range.len() as usize);
        pipeline.read_range(self.range, &mut buf, self.done);
    }

    /// The read, to be failed, and what is kept until its call has returned.
    pub(super) fn give_up(self, pipeline: &Pipeline) -> (WritePermit, Read) {
        let read = Read::new(Pinned::Live(pipeline.live()), self.range, self.done);
        (self.permit, read)
    }
}

impl Pipeline {
    /// Reads a range of which some regions may still have to be merged.
    pub(super) fn read_merged(&self, range: ByteRange, buf: &mut [u8], done: Answered) {
        let (fenced, whole, geometry) = loop {
            let geometry = self.live().view().geometry();
            let whole = geometry.bytes_of(geometry.regions_of(range));
            let Some(fenced) = self.enter_unless_dead(whole) else {
                return done(Err(EIO));
            };
            // The last region may have become longer.
            if fenced.live().view().geometry() == geometry {
                break (fenced, whole, geometry);
            }
        };
        // The copier or another reader may have been here.
        let merged = match fenced.live().view().unmerged(whole) {
            None => Some((Ok(fenced), done)),
            Some(step) => {
                let asked = geometry.round_out(range, BLOCK_BYTES);
                self.merge(fenced, step, (range, asked), done)
            }
        };
        match merged {
            Some((Ok(fenced), done)) => {
                self.go_on_reading(Read::new(Pinned::Fenced(fenced), range, done), buf);
            }
            Some((Err(error), done)) => done(Err(error)),
            // Another thread goes on with it.
            None => {}
        }
    }

    fn merge(
        &self,
        fenced: Fenced,
        mut step: MergeStep,
        (range, asked): (ByteRange, ByteRange),
        done: Answered,
    ) -> Option<(Result<Fenced, Errno>, Answered)> {
        let whole = step.range();
        let permit = fenced.permit_copy([step.regions()]);
        let mut scratch = Scratch::new(whole.len().min(BUFFER_BYTES) as usize);
        let merge = Merge {
            permit,
            range,
            done,
        };
        let mut hold = Hold::new(self, Held::Merge(merge));
        let merged = merge_step(&mut hold, &mut step, asked, &mut scratch);
        let Held::Merge(Merge { permit, done, .. }) = hold.into_held() else {
            return None;
        };
        let mut results = match merged {
            Err(Stop::Replaced) => return None,
            Err(Stop::Unreadable) => return Some((Err(EIO), done)),
            Ok((results, whole)) => {
                if whole {
                    permit.live().view().merged(step, results.good);
                }
                results
            }
        };
        // What a member lacks that could not be written, the sources have.
        let seats = permit.live().view().seats().iter();
        for source in seats.filter(|s| matches!(s.role, Role::Source)) {
            results.good.insert(source.id);
        }
        let settled = self.settle(permit.live(), Some(whole), &results);
        Some((settled.map(|()| permit.into_fenced()), done))
    }
}

/// Copies what members lack of the regions; where not all of it can be read, at least what is `asked` for.
/// Tells whether it was all.
fn merge_step(
    hold: &mut Hold<'_>,
    step: &mut MergeStep,
    asked: ByteRange,
    scratch: &mut Scratch,
) -> Result<(Results, bool), Stop> {
    let parts: Vec<_> = step.parts().collect();
    match merge_parts(hold, parts.iter().copied(), scratch) {
        Ok((results, equal)) => {
            equal
                .iter()
                .for_each(|(id, bytes)| step.found_equal(*id, *bytes));
            Ok((results, true))
        }
        // A bad place beside what is asked for: that alone is made equal, and the bits stay.
        Err(Stop::Unreadable) => {
            let asked = |(id, part): (_, ByteRange)| Some((id, part.overlap(asked)?));
            let parts = parts.into_iter().filter_map(asked);
            merge_parts(hold, parts, scratch).map(|(results, _)| (results, false))
        }
        Err(stop) => Err(stop),
    }
}

/// Copies parts from a source into the members that lack them; tells what each had already.
fn merge_parts(
    hold: &mut Hold<'_>,
    parts: impl Iterator<Item = (MemberId, ByteRange)>,
    scratch: &mut Scratch,
) -> Result<(Results, Vec<(MemberId, u64)>), Stop> {
    let (mut results, mut equal) = (Results::default(), Vec::new());
    for (id, part) in parts {
        if results.failed.contains(id) {
            continue;
        }
        let mut target = Target::new(id, true);
        copy_range(hold, (&mut [&mut target], part), scratch)?;
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
