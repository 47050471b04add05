//! Merging by reading in the simulator: a read of what is still to be merged takes the fence of the whole
//! regions, copies them into the merging members, clears their bits, and is answered then (I11).

use shadowset::set::{
    ByteRange, Event, Failure, MemberId, MemberSet, MergeStep, Outcome, Role, Ticket, Verdict, View,
};
use shadowset::testing::memory::Value;

use crate::requests::{Request, Stage};
use crate::storage::has_other_source;
use crate::world::{Asker, BLOCK, Checked, Violation, World, blocks_of, usize_of};

/// What a read merges before it is answered.
#[derive(Debug)]
pub(crate) struct Merging {
    step: MergeStep,
    todo: Vec<(MemberId, usize)>,
    /// Read from a source and not written yet.
    carried: Vec<(MemberId, usize, Value)>,
    good: MemberSet,
    tried: MemberSet,
}

impl Merging {
    fn new(step: MergeStep) -> Self {
        let members = step.members();
        let of = |(m, part)| blocks_of(part).map(move |b| (m, b));
        Self {
            todo: step.parts().flat_map(of).collect(),
            carried: Vec::new(),
            good: members,
            tried: MemberSet::EMPTY,
            step,
        }
    }

    fn give_up(&mut self, member: MemberId) {
        self.good.remove(member);
        self.todo.retain(|(m, _)| *m != member);
        self.carried.retain(|(m, ..)| *m != member);
    }
}

impl World {
    /// All bytes of the regions of a range.
    pub(crate) fn whole(&self, range: ByteRange) -> ByteRange {
        self.geometry.bytes_of(self.geometry.regions_of(range))
    }

    /// The fence is held and the View pinned: what is still to be merged now?
    pub(crate) fn begin_merging(&mut self, at: usize, view: &View, whole: ByteRange) {
        self.requests[at].stage = match view.unmerged(whole) {
            Some(step) => {
                let _marked = view.mark_copy([step.regions()]);
                self.requests[at].merging = Some(Merging::new(step));
                Stage::Merge
            }
            None => Stage::Move,
        };
    }

    /// Copies a few blocks; then the bits are cleared.
    pub(crate) fn merge_some(&mut self, at: usize) -> Checked {
        for _ in 0..=self.rng.burst(self.plan.stride) {
            let Some(merging) = &mut self.requests[at].merging else {
                return Err(Violation("a read merges nothing".into()));
            };
            let (todo, carried) = (merging.todo.len(), merging.carried.len());
            if todo + carried == 0 {
                return self.end_merging(at);
            }
            if carried == 0 || todo > 0 && (self.rng.path().is_some() || self.rng.chance(500)) {
                let n = self.rng.any(todo);
                self.fetch(at, n)?;
            } else {
                let n = self.rng.any(carried);
                self.store(at, n)?;
            }
        }
        Ok(())
    }

    /// Reads a block that a member is to get.
    fn fetch(&mut self, at: usize, n: usize) -> Checked {
        let busy = usize_of(self.rng.member());
        let request = &self.requests[at];
        let (Some(merging), Some(view)) = (&request.merging, request.view.clone()) else {
            return Ok(());
        };
        let ((member, block), tried) = (merging.todo[n], merging.tried);
        let cost = |id: MemberId| u64::from(id.index() == busy);
        let Some(source) = view.plan_read(self.bytes_of(block), tried, cost) else {
            return Err(Violation("a merge has no source left to ask".into()));
        };
        if self.ops.silence.is_hung(source) {
            if let (true, Some(merging)) = (
                has_other_source(&view, tried, source),
                &mut self.requests[at].merging,
            ) {
                merging.tried.insert(source);
            }
            return Ok(());
        }
        let fails = self.get_fails(source, has_other_source(&view, tried, source));
        let value = self.disks[source.index()].image.get(block);
        self.trace(&[source.index() as u64, u64::from(value)]);
        if fails {
            self.inbox.push(Event::ReadFailed(source));
        }
        if let Some(merging) = &mut self.requests[at].merging {
            if fails {
                merging.tried.insert(source);
            } else {
                merging.todo.swap_remove(n);
                merging.carried.push((member, block, value));
            }
        }
        Ok(())
    }

    /// Writes a block that was read.
    fn store(&mut self, at: usize, n: usize) -> Checked {
        let Some(merging) = &mut self.requests[at].merging else {
            return Ok(());
        };
        let (member, ..) = merging.carried[n];
        if self.ops.silence.is_hung(member) && !self.ops.silence.is_gone(member) {
            return Ok(());
        }
        let (member, block, value) = merging.carried.swap_remove(n);
        if self.disks[member.index()].image.get(block) == value {
            merging.step.found_equal(member, BLOCK);
            return Ok(());
        }
        if self.put(member, block, value, false)? {
            let request = &mut self.requests[at];
            request.failed.insert(member);
            if let Some(merging) = &mut request.merging {
                merging.give_up(member);
            }
        }
        Ok(())
    }

    /// Clears the bits under the fence; who could not be written is reported before the answer.
    fn end_merging(&mut self, at: usize) -> Checked {
        let request = &mut self.requests[at];
        let (Some(merging), Some(view)) = (request.merging.take(), request.view.clone()) else {
            return Ok(());
        };
        let (range, failed) = (merging.step.range(), merging.step.members());
        let failed = failed.without(merging.good);
        view.merged(merging.step, merging.good);
        let sources = view.seats().iter();
        let sources = sources.filter(|s| matches!(s.role, Role::Source));
        let good = sources
            .map(|s| s.id)
            .collect::<MemberSet>()
            .or(merging.good);
        let id = request.id;
        request.stage = Stage::Move;
        self.mark("merge by reading");
        if view.settle(good, failed) == Outcome::Report {
            self.mark("a merge by reading failed on a member");
            let number = self.next_id();
            self.tickets.insert(number, Asker::Request(id));
            let failure = Failure {
                range: Some(range),
                good,
                failed,
                media: self.media_among(failed),
                epoch: view.epoch(),
                causes: Vec::new(),
            };
            self.inbox.push(Event::Failed(Ticket::new(number), failure));
            self.requests[at].stage = Stage::Waiting;
        }
        Ok(())
    }

    /// The set has judged: the read is answered, or fails when no source is left that is good.
    pub(crate) fn merging_judged(&mut self, at: usize, verdict: Verdict) -> Checked {
        if verdict == Verdict::Acknowledge {
            self.requests[at].stage = Stage::Move;
            return Ok(());
        }
        self.end_read(at)
    }

    /// The unit has grown while a read waited for its fence, and its last region is longer now.
    pub(crate) fn fence_again(&mut self, at: usize) -> Checked {
        self.mark("a read that waited while the unit grew");
        let request = &mut self.requests[at];
        let (place, whole) = (request.place.take(), request.whole.take());
        request.stage = Stage::Fence;
        let view = request.view.take();
        if let (Some(place), Some(whole), Some(view)) = (place, whole, view) {
            self.go_outside(blocks_of(whole));
            self.fences.leave(place);
            self.unpin(view.epoch());
        }
        Ok(())
    }

    /// A read ends; it lets go of its fence when it has one.
    pub(crate) fn end_read(&mut self, at: usize) -> Checked {
        let request: Request = self.requests.swap_remove(at);
        self.log(format!("read {} ends", request.id));
        let fenced = request
            .place
            .zip(request.whole)
            .map(|(place, whole)| (place, blocks_of(whole)));
        if let Some((place, blocks)) = &fenced {
            self.go_outside(blocks.clone());
            self.fences.leave(*place);
        }
        self.unpin(request.view.expect("loaded").epoch());
        fenced.map_or(Ok(()), |(_, blocks)| self.check_blocks(blocks))
    }
}
