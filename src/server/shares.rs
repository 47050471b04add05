//! Steps of copies that share a fence: what is held for them while members are called, and what came of each.

use std::sync::Arc;

use super::copier::Run;
use super::pipeline::{Fenced, Pipeline, WritePermit};
use super::queued::Flight;
use super::rescue::Held;
use super::results::is_of_medium;
use super::step::{Failure, Hold, Scratch, Stop, Target, copy_range};
use crate::set::{CopyEnd, CopyStep, MemberId, Piece, pieces};

/// Steps of copies that share a fence, the first leading, with the permission to write their targets.
pub(super) struct Step {
    permit: WritePermit,
    /// A source that is written, by a read repair: what it is in must have ended before the fence does (I4).
    written: Option<MemberId>,
    /// A stop waits for that one.
    _flight: Option<Flight>,
    shares: Vec<Share>,
    /// What they lack.
    pieces: Vec<Piece>,
}

/// A step of one of the copies that share a fence.
pub(super) struct Share {
    pub(super) run: Arc<Run>,
    pub(super) step: CopyStep,
}

/// What came of a step.
pub(super) enum Outcome {
    Copied,
    /// The copy has to end.
    Ends(CopyEnd),
    /// Nothing is known of what the target has got.
    CutShort,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut step = f.debug_struct("Step");
        step.field("shares", &self.shares.len())
            .finish_non_exhaustive()
    }
}

impl Step {
    /// What is held for a step that is nobody's: of a read repair.
    pub(super) fn of_nobody(permit: WritePermit, written: MemberId, flight: Flight) -> Self {
        Self {
            permit,
            written: Some(written),
            _flight: Some(flight),
            shares: Vec::new(),
            pieces: Vec::new(),
        }
    }

    /// Looks at what the steps lack, under the fence that they share.
    pub(super) fn begin(mut shares: Vec<Share>, fenced: Fenced) -> Self {
        let pieces = pieces(shares.iter_mut().map(|share| &mut share.step));
        let permit = fenced.permit_copy(pieces.iter().map(|piece| piece.regions));
        Self {
            permit,
            written: None,
            _flight: None,
            shares,
            pieces,
        }
    }

    pub(super) fn permit(&self) -> &WritePermit {
        &self.permit
    }

    /// Whether another source has what a member does not give; not of a member that is written.
    pub(super) fn has_other(&self, member: MemberId) -> bool {
        self.written != Some(member) && self.permit.live().view().is_one_of_sources(member)
    }

    /// Ends it in place of a thread that a member holds.
    pub(super) fn give_back(self, pipeline: &Arc<Pipeline>) {
        let (permit, shares) = self.leave();
        // The bits first, then the fence.
        let lead = shares.finish();
        drop(permit);
        if let Some(lead) = lead {
            Run::replace_thread(&lead, pipeline);
        }
    }

    /// What is to be ended while the call keeps its fence.
    pub(super) fn leave(self) -> (WritePermit, Shares) {
        (self.permit, Shares(self.shares))
    }

    /// Copies what its shares lack, and tells what came of each; nothing when another thread has ended it.
    pub(super) fn copy(
        mut self,
        pipeline: &Pipeline,
        scratch: &mut Scratch,
    ) -> Option<(Self, Vec<Outcome>)> {
        let writers = self.permit.live().view().writers();
        let target = |share: &Share| Target {
            failed: (!writers.contains(share.run.target)).then_some(Failure::Gone),
            from: share.run.from,
            ..Target::new(share.run.target, share.run.compares)
        };
        let mut targets: Vec<Target> = self.shares.iter().map(target).collect();
        let pieces = std::mem::take(&mut self.pieces);
        let mut hold = Hold::new(pipeline, Held::Step(self));
        let stopped_at = copy_pieces(&mut hold, &pieces, &mut targets, scratch);
        let Held::Step(mut step) = hold.into_held() else {
            return None;
        };
        // What looked like a hole has data: no fence is held for so much of it.
        if let Some(at) = stopped_at {
            step.shares
                .iter_mut()
                .for_each(|share| share.step.stop_at(at));
        }
        let shares = step.shares.iter_mut().zip(targets);
        let outcomes = shares.map(|(share, target)| {
            share.step.found_equal(target.equal);
            let ends = |failure| Outcome::Ends(end_by(failure));
            target.failed.map_or(Outcome::Copied, ends)
        });
        let outcomes = outcomes.collect();
        Some((step, outcomes))
    }

    /// Ends the steps with what came of each, then the fence.
    pub(super) fn finish(self, outcomes: Vec<Outcome>, read: u64) {
        let permit = (!makes!(ClearedLate)).then_some(self.permit);
        for (share, outcome) in self.shares.into_iter().zip(outcomes) {
            share.run.finish(share.step, outcome, read);
        }
        drop(permit);
    }
}

/// Steps that another thread ends.
pub(super) struct Shares(Vec<Share>);

impl Shares {
    pub(super) fn new(shares: Vec<Share>) -> Self {
        Self(shares)
    }

    /// They are taken again some time.
    pub(super) fn cut_short(self) {
        drop(self.finish());
    }

    /// As [`Self::cut_short`]; gives the copy whose thread leads them.
    fn finish(self) -> Option<Arc<Run>> {
        let lead = self.0.first().map(|share| Arc::clone(&share.run));
        for share in self.0 {
            share.run.finish(share.step, Outcome::CutShort, 0);
        }
        lead
    }

    /// Ends them, the thread that led them being held.
    pub(super) fn give_back(self, pipeline: &Arc<Pipeline>) {
        if let Some(lead) = self.finish() {
            Run::replace_thread(&lead, pipeline);
        }
    }
}

/// Copies pieces into those of the targets that lack them. Gives the byte at which it has stopped, if it may
/// read no more. When another thread has taken what is held, nothing counts.
fn copy_pieces(
    hold: &mut Hold<'_>,
    pieces: &[Piece],
    targets: &mut [Target],
    scratch: &mut Scratch,
) -> Option<u64> {
    for piece in pieces {
        let lacks = |(place, target): &(usize, &mut Target)| {
            piece.steps.contains(place) && target.failed.is_none()
        };
        let lacking = targets.iter_mut().enumerate().filter(lacks);
        let mut lacking: Vec<&mut Target> = lacking.map(|(_, target)| target).collect();
        if lacking.is_empty() {
            continue;
        }
        match copy_range(hold, (&mut lacking[..], piece.range), scratch) {
            Ok(None) => {}
            Ok(Some(at)) => return Some(at),
            Err(Stop::Replaced) => return None,
            Err(Stop::Unreadable) => lacking
                .into_iter()
                .for_each(|target| target.failed = Some(Failure::Source)),
        }
    }
    None
}

/// How a copy ends whose target has failed.
fn end_by(failure: Failure) -> CopyEnd {
    match failure {
        Failure::Target(error) => {
            let text = format!("a copy step could not be written: {error}");
            CopyEnd::TargetFailed(text, is_of_medium(&error))
        }
        Failure::Source => CopyEnd::SourceFailed("no source could be read".to_owned()),
        Failure::Gone => CopyEnd::Stopped,
    }
}
