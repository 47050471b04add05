//! The copier of the simulator: steps under the fence, several in flight, as the real one.

use std::sync::Arc;

use shadowset::set::{
    ByteRange, CopyEnd, CopyStep, CopyWork, Event, MemberId, MemberSet, OpId, View, pieces,
};
use shadowset::testing::memory::Value;

use crate::storage::has_other_source;
use crate::world::{BLOCK, Checked, Violation, World, blocks_of, makes, usize_of};

/// Copy steps that run at once.
const STEPS_MAX: usize = 3;

/// A copy that the copier has.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) op: OpId,
    pub(crate) work: Box<CopyWork>,
    pub(crate) steps: Vec<Step>,
    pub(crate) paused: bool,
    /// No new step begins; the copy goes back when those under way have ended.
    pub(crate) end: Option<CopyEnd>,
    /// The target takes no part any more: the word to stop is on its way.
    lost: bool,
    /// Bytes that were stale when it came.
    pub(crate) stale: u64,
}

impl Copy {
    pub(crate) fn new(work: Box<CopyWork>) -> Self {
        Self {
            op: work.op(),
            stale: work.stale().stale_bytes(),
            work,
            steps: Vec::new(),
            paused: false,
            end: None,
            lost: false,
        }
    }

    /// All that decides what it does next.
    pub(crate) fn digest(&self) -> String {
        let steps: Vec<String> = self.steps.iter().map(Step::digest).collect();
        format!(
            "{:?}",
            (&self.work, steps, self.paused, &self.end, self.lost)
        )
    }
}

/// A step under way.
#[derive(Debug)]
pub(crate) struct Step {
    id: u64,
    range: ByteRange,
    /// The step of this copy, then those of others that have joined it.
    shares: Vec<Share>,
    /// Its place at the fence.
    place: u64,
    /// Whether its bits are still to be cleared although its fence is gone.
    late: bool,
    inside: bool,
    /// Whether source and target are known.
    ready: bool,
    view: Option<Arc<View>>,
    source: Option<MemberId>,
    tried: MemberSet,
    /// What is to be copied, known when the fence is held: a block and the shares that lack it.
    todo: Vec<(usize, Vec<usize>)>,
    unread: Vec<(usize, Vec<usize>)>,
    /// Read, and not written yet for a share.
    unwritten: Vec<(usize, usize, Value)>,
    /// What the planted mistakes have seen: whether the first block was equal, and blocks before the fence.
    sample: Option<bool>,
    early: Vec<(usize, Value)>,
}

/// A step of one copy.
#[derive(Debug)]
struct Share {
    op: OpId,
    target: MemberId,
    compares: bool,
    /// Gone when a planted mistake has cleared its bits too early.
    step: Option<CopyStep>,
    good: bool,
}

impl Share {
    fn new(work: &CopyWork, step: CopyStep) -> Self {
        Self {
            op: work.op(),
            target: work.target(),
            compares: work.kind().compares(),
            step: Some(step),
            good: true,
        }
    }
}

impl Step {
    fn blocks(&self) -> std::ops::Range<usize> {
        blocks_of(self.range)
    }

    /// Takes what is still written to a member.
    pub(crate) fn take_from(&mut self, id: MemberId) -> Vec<(usize, Value)> {
        let mut taken = Vec::new();
        for n in (0..self.shares.len())
            .filter(|n| self.shares[*n].target == id)
            .collect::<Vec<_>>()
        {
            let own = self.unwritten.iter().filter(|(share, ..)| *share == n);
            taken.extend(own.map(|(_, block, value)| (*block, *value)));
            self.give_up(n);
        }
        taken
    }

    /// All that decides what it does next; its place at the fence is told apart, and its View by the epoch.
    fn digest(&self) -> String {
        let epoch = self.view.as_ref().map(|view| view.epoch());
        let way = (
            self.late,
            self.inside,
            self.ready,
            epoch,
            self.source,
            self.tried,
        );
        let blocks = (&self.todo, &self.unread, &self.unwritten);
        let mistaken = (self.sample, &self.early);
        format!("{:?}", (self.range, &self.shares, way, blocks, mistaken))
    }

    /// Its place at the fence, and what it wants there.
    pub(crate) fn fence(&self) -> (u64, std::ops::Range<usize>) {
        (self.place, self.blocks())
    }

    /// Nothing is written for a share any more.
    fn give_up(&mut self, n: usize) {
        self.shares[n].good = false;
        self.unwritten.retain(|(share, ..)| *share != n);
    }
}

impl World {
    pub(crate) fn step_copy(&mut self) -> Checked {
        if self.verifies.running.is_some() && (self.copies.is_empty() || self.rng.chance(400)) {
            return self.step_verify();
        }
        if self.copies.is_empty() {
            return Ok(());
        }
        let at = self.rng.place(self.copies.len());
        let copy = &self.copies[at];
        let halted = self.is_undurable() && !makes!(CommandWhileHalted);
        let may_begin = !halted
            && !copy.paused
            && copy.end.is_none()
            && !copy.lost
            && copy.steps.len() < STEPS_MAX;
        if may_begin && (copy.steps.is_empty() || self.rng.chance(400)) && self.begin_step(at) {
            return Ok(());
        }
        let copy = &self.copies[at];
        if copy.steps.is_empty() {
            if !copy.work.is_idle() {
                return self.advance_any();
            }
            if !halted || copy.end.is_some() {
                self.give_back(at);
            }
            return Ok(());
        }
        let n = self.rng.place(self.copies[at].steps.len());
        self.advance(at, n)
    }

    fn begin_step(&mut self, at: usize) -> bool {
        let most = self.plan.budget_regions * self.geometry.region_bytes();
        let budget = 1 + self.rng.burst(most).min(most - 1);
        let Some(step) = self.copies[at].work.next_step(|_| budget) else {
            return false;
        };
        let id = self.next_id();
        let range = step.range();
        self.trace(&[id, step.regions().first().0]);
        let place = self.fences.enter(range.blocks());
        let target = self.copies[at].work.target();
        let image = &self.disks[target.index()].image;
        let early = blocks_of(range).map(|b| (b, image.get(b)));
        let early = match makes!(CompareBeforeFence) {
            true => early.collect(),
            false => Vec::new(),
        };
        let view = makes!(CopyViewBeforeFence).then(|| self.pin());
        let mut shares = vec![Share::new(&self.copies[at].work, step)];
        self.join(at, &mut shares);
        self.copies[at].steps.push(Step {
            id,
            range,
            shares,
            unread: Vec::new(),
            todo: Vec::new(),
            inside: false,
            ready: false,
            place,
            late: false,
            view,
            source: None,
            tried: MemberSet::EMPTY,
            unwritten: Vec::new(),
            sample: None,
            early,
        });
        true
    }

    /// Has other copies join a step, mostly.
    fn join(&mut self, at: usize, shares: &mut Vec<Share>) {
        for (other, copy) in self.copies.iter_mut().enumerate() {
            let may = other != at && !copy.paused && copy.end.is_none() && !copy.lost;
            if !may || !self.rng.chance(700) {
                continue;
            }
            let lead = shares[0].step.as_ref();
            if let Some(step) = lead.and_then(|lead| copy.work.join(lead)) {
                shares.push(Share::new(&copy.work, step));
            }
        }
        if shares.len() > 1 {
            self.mark("a step of several copies");
        }
    }

    /// Goes on with a step of any copy: one that another leads is not this one's to end.
    fn advance_any(&mut self) -> Checked {
        let steps = self.copies.iter().enumerate();
        let steps = steps.flat_map(|(at, copy)| (0..copy.steps.len()).map(move |n| (at, n)));
        let steps: Vec<_> = steps.collect();
        let any = self.rng.place(steps.len());
        let (at, n) = steps[any];
        self.advance(at, n)
    }

    /// Nothing is under way: the copy goes back when it has ended.
    fn give_back(&mut self, at: usize) {
        let copy = &self.copies[at];
        let end = match &copy.end {
            Some(end) => end.clone(),
            None if copy.paused || copy.lost => return,
            None => CopyEnd::Drained,
        };
        let copy = self.copies.swap_remove(at);
        self.promised.remove(&copy.op.0);
        self.inbox.push(Event::CopyEnded(copy.work, end));
    }

    fn advance(&mut self, at: usize, n: usize) -> Checked {
        self.trace(&[self.copies[at].steps[n].id]);
        let step = &self.copies[at].steps[n];
        if step.late {
            return self.clear(at, n);
        }
        if !step.inside {
            if self.fences.may_pass(step.place) || makes!(CopyWithoutFence) {
                self.go_inside(self.copies[at].steps[n].blocks())?;
                self.copies[at].steps[n].inside = true;
            }
            return Ok(());
        }
        if !step.ready {
            return self.load_step(at, n);
        }
        if !step.unread.is_empty() {
            return self.read_step(at, n);
        }
        self.write_step(at, n)
    }

    /// Loads the View and chooses the source; who is filled must take part in this View.
    fn load_step(&mut self, at: usize, n: usize) -> Checked {
        let view = match self.copies[at].steps[n].view.take() {
            Some(view) => view,
            None => self.pin(),
        };
        let step = &mut self.copies[at].steps[n];
        (step.view, step.ready) = (Some(Arc::clone(&view)), true);
        let steps = step.shares.iter_mut().filter_map(|s| s.step.as_mut());
        let mut todo = Vec::new();
        let pieces = pieces(steps);
        let _marked = view.mark_copy(pieces.iter().map(|piece| piece.regions));
        for piece in pieces {
            todo.extend(blocks_of(piece.range).map(|block| (block, piece.steps.clone())));
        }
        // A step that reads more than it should stops, behind its first region at the earliest.
        let region = self.geometry.region_bytes();
        if step.range.len() > region && self.rng.chance(100) {
            let stop = step.range.start() + self.rng.between(region, step.range.len());
            let steps = step.shares.iter_mut().filter_map(|s| s.step.as_mut());
            steps.for_each(|step| step.stop_at(stop));
            let end = usize_of(stop / region * region / BLOCK);
            todo.retain(|(block, _)| *block < end);
        }
        (step.todo, step.unread) = (todo.clone(), todo);
        let gone = |share: &Share| !view.seats().iter().any(|s| s.id == share.target);
        let shares = step.shares.iter().enumerate();
        let gone: Vec<usize> = shares.filter(|(_, s)| gone(s)).map(|(n, _)| n).collect();
        for share in gone {
            let op = self.copies[at].steps[n].shares[share].op;
            self.copy_of(op)?.lost = true;
            self.copies[at].steps[n].give_up(share);
        }
        if self.copies[at].steps[n].shares.iter().all(|s| !s.good) {
            return self.finish_step(at, n);
        }
        self.choose_source(at, n)
    }

    fn copy_of(&mut self, op: OpId) -> Result<&mut Copy, Violation> {
        let copy = self.copies.iter_mut().find(|copy| copy.op == op);
        copy.ok_or_else(|| Violation(format!("operation {op} is gone under its step")))
    }

    fn choose_source(&mut self, at: usize, n: usize) -> Checked {
        let turn = self.rng.member();
        let step = &mut self.copies[at].steps[n];
        let Some(view) = &step.view else {
            return Ok(());
        };
        let cost = |id: MemberId| u64::from(id.index() as u64 == turn);
        step.source = view.plan_read(step.range, step.tried, cost);
        if step.source.is_none() {
            let ops: Vec<OpId> = step.shares.iter().map(|s| s.op).collect();
            (0..ops.len()).for_each(|share| step.give_up(share));
            for op in ops {
                let end = CopyEnd::SourceFailed("no source".into());
                self.copy_of(op)?.end.get_or_insert(end);
            }
            return self.finish_step(at, n);
        }
        Ok(())
    }

    fn read_step(&mut self, at: usize, n: usize) -> Checked {
        for _ in 0..=self.rng.burst(self.plan.stride) {
            let step = &self.copies[at].steps[n];
            let (Some(source), Some(view)) = (step.source, &step.view) else {
                break;
            };
            let Some((block, _)) = step.unread.last() else {
                break;
            };
            let block = *block;
            if self.ops.silence.is_hung(source) {
                if has_other_source(view, step.tried, source) {
                    let step = &mut self.copies[at].steps[n];
                    step.tried.insert(source);
                    step.unwritten.clear();
                    step.unread = step.todo.clone();
                    return self.choose_source(at, n);
                }
                return Ok(());
            }
            let others = has_other_source(view, step.tried, source);
            // Now and then a copy may lose its only source: that is no loss of data.
            let others = others || self.rng.path().is_none() && self.rng.chance(100);
            if self.get_fails(source, others) {
                self.inbox.push(Event::ReadFailed(source));
                let step = &mut self.copies[at].steps[n];
                step.tried.insert(source);
                step.unwritten.clear();
                step.unread = step.todo.clone();
                return self.choose_source(at, n);
            }
            let value = self.get_for_copy(source, block);
            let step = &mut self.copies[at].steps[n];
            let (_, lacking) = step.unread.pop().unwrap_or_default();
            let lacking = lacking.into_iter().filter(|share| step.shares[*share].good);
            step.unwritten
                .extend(lacking.map(|share| (share, block, value)));
        }
        if makes!(ClearAtRead) && self.copies[at].steps[n].unread.is_empty() {
            return self.clear_early(at, n);
        }
        Ok(())
    }

    /// The planted mistake: what is read is taken for copied.
    fn clear_early(&mut self, at: usize, n: usize) -> Checked {
        for share in 0..self.copies[at].steps[n].shares.len() {
            let share = &mut self.copies[at].steps[n].shares[share];
            let (op, step) = (share.op, share.step.take());
            let copy = self.copy_of(op)?;
            step.into_iter()
                .for_each(|step| copy.work.finish(step, true));
        }
        Ok(())
    }

    fn write_step(&mut self, at: usize, n: usize) -> Checked {
        for _ in 0..=self.rng.burst(self.plan.stride) {
            let left = self.copies[at].steps[n].unwritten.len();
            if left == 0 {
                return self.finish_step(at, n);
            }
            let next = self.rng.any(left);
            let (share, ..) = self.copies[at].steps[n].unwritten[next];
            let target = self.copies[at].steps[n].shares[share].target;
            if self.ops.silence.is_hung(target) && !self.ops.silence.is_gone(target) {
                continue;
            }
            let (share, block, value) = self.copies[at].steps[n].unwritten.swap_remove(next);
            if self.has_already(at, (n, share), (block, value)) {
                let share = &mut self.copies[at].steps[n].shares[share];
                share
                    .step
                    .iter_mut()
                    .for_each(|step| step.found_equal(BLOCK));
                continue;
            }
            let (op, target) = {
                let share = &self.copies[at].steps[n].shares[share];
                (share.op, share.target)
            };
            self.check_needed(target, block)?;
            if self.put(target, block, value, false)? {
                let media = self.rng.chance(300);
                let end = CopyEnd::TargetFailed("write error".into(), media);
                self.copy_of(op)?.end.get_or_insert(end);
                self.copies[at].steps[n].give_up(share);
            }
        }
        Ok(())
    }

    /// Whether the copy compares, and finds the value in its target; one that cannot be read is written.
    fn has_already(
        &mut self,
        at: usize,
        (n, share): (usize, usize),
        (block, value): (usize, Value),
    ) -> bool {
        let sharing = &self.copies[at].steps[n].shares[share];
        let (target, lead) = (sharing.target, share == 0);
        if !sharing.compares || self.get_fails(target, true) {
            return false;
        }
        let step = &self.copies[at].steps[n];
        let seen = step.early.iter().find(|(b, _)| lead && *b == block);
        let has = match seen {
            Some((_, before)) => *before,
            None => self.disks[target.index()].image.get(block),
        };
        let equal = step.sample.unwrap_or(has == value);
        if makes!(CompareBySample) {
            self.copies[at].steps[n].sample = Some(equal);
        }
        self.trace(&[u64::from(equal)]);
        equal
    }

    fn finish_step(&mut self, at: usize, n: usize) -> Checked {
        if makes!(ClearAfterFence) {
            self.copies[at].steps[n].late = true;
            return self.let_go_early(at, n);
        }
        self.clear(at, n)
    }

    /// Gives the steps back to their works, under their fence.
    fn clear(&mut self, at: usize, n: usize) -> Checked {
        let step = self.copies[at].steps.swap_remove(n);
        let blocks = step.blocks();
        for share in step.shares {
            let Some(own) = share.step else { continue };
            let work = &mut self.copy_of(share.op)?.work;
            work.finish(own, share.good);
            if work.kind().is_merge() && share.good {
                self.mark("merge step");
            }
        }
        if !step.late {
            self.release(blocks.clone(), step.place, step.view.as_deref());
        }
        self.check_blocks(blocks)
    }

    /// The planted mistake: fence and epoch are let go of, and the bits are cleared some time later.
    fn let_go_early(&mut self, at: usize, n: usize) -> Checked {
        let step = &mut self.copies[at].steps[n];
        let (blocks, place, view) = (step.blocks(), step.place, step.view.take());
        self.release(blocks, place, view.as_deref());
        Ok(())
    }

    fn release(&mut self, blocks: std::ops::Range<usize>, place: u64, view: Option<&View>) {
        self.go_outside(blocks);
        self.fences.leave(place);
        if let Some(view) = view {
            self.unpin(view.epoch());
        }
    }
}
