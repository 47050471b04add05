//! The copier of the simulator: steps under the fence, several in flight, as the real one.

use std::sync::Arc;

use shadowset::set::{CopyEnd, CopyStep, CopyWork, Event, MemberId, MemberSet, OpId, View};
use shadowset::testing::memory::Value;

use crate::storage::has_other_source;
use crate::world::{BLOCK, Checked, REGION_BLOCKS, World, blocks_of, makes};

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
}

/// A step under way.
#[derive(Debug)]
pub(crate) struct Step {
    id: u64,
    step: CopyStep,
    /// Its place at the fence.
    place: u64,
    /// Whether it was good, when its bits are still to be cleared although its fence is gone.
    late: Option<bool>,
    inside: bool,
    /// Whether source and target are known.
    ready: bool,
    view: Option<Arc<View>>,
    source: Option<MemberId>,
    tried: MemberSet,
    /// What is to be copied, known when the fence is held.
    todo: Vec<usize>,
    unread: Vec<usize>,
    unwritten: Vec<(usize, Value)>,
    /// What the planted mistakes have seen: whether the first block was equal, and blocks before the fence.
    sample: Option<bool>,
    early: Vec<(usize, Value)>,
}

impl Step {
    fn blocks(&self) -> std::ops::Range<usize> {
        blocks_of(self.step.range())
    }
}

impl World {
    pub(crate) fn step_copy(&mut self) -> Checked {
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
            if !halted || copy.end.is_some() {
                self.give_back(at);
            }
            return Ok(());
        }
        let n = self.rng.place(self.copies[at].steps.len());
        self.advance(at, n)
    }

    fn begin_step(&mut self, at: usize) -> bool {
        let budget = self
            .rng
            .between(1, self.plan.budget_regions * REGION_BLOCKS * BLOCK);
        let Some(step) = self.copies[at].work.next_step(budget) else {
            return false;
        };
        let id = self.next_id();
        self.trace(&[id, step.regions().first().0]);
        let place = self.fences.enter(step.range().blocks());
        let target = self.copies[at].work.target();
        let image = &self.disks[target.index()].image;
        let early = blocks_of(step.range()).map(|b| (b, image.get(b)));
        let early = match makes!(CompareBeforeFence) {
            true => early.collect(),
            false => Vec::new(),
        };
        let view = makes!(CopyViewBeforeFence).then(|| self.pin());
        self.copies[at].steps.push(Step {
            id,
            unread: Vec::new(),
            todo: Vec::new(),
            step,
            inside: false,
            ready: false,
            place,
            late: None,
            view,
            source: None,
            tried: MemberSet::EMPTY,
            unwritten: Vec::new(),
            sample: None,
            early,
        });
        true
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
        self.inbox.push(Event::CopyEnded(copy.work, end));
    }

    fn advance(&mut self, at: usize, n: usize) -> Checked {
        self.trace(&[self.copies[at].steps[n].id]);
        let step = &self.copies[at].steps[n];
        if let Some(good) = step.late {
            return self.clear(at, n, good);
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

    /// Loads the View and chooses the source; the target must take part in this View.
    fn load_step(&mut self, at: usize, n: usize) -> Checked {
        let view = match self.copies[at].steps[n].view.take() {
            Some(view) => view,
            None => self.pin(),
        };
        let copy = &mut self.copies[at];
        let target = copy.work.target();
        let step = &mut copy.steps[n];
        (step.view, step.ready) = (Some(Arc::clone(&view)), true);
        step.todo = step.step.parts().into_iter().flat_map(blocks_of).collect();
        step.unread = step.todo.clone();
        let _marked = view.mark_copy(step.step.regions());
        if !view.seats().iter().any(|s| s.id == target) {
            copy.lost = true;
            return self.finish_step(at, n, false);
        }
        self.choose_source(at, n)
    }

    fn choose_source(&mut self, at: usize, n: usize) -> Checked {
        let turn = self.rng.below(6);
        let step = &mut self.copies[at].steps[n];
        let Some(view) = &step.view else {
            return Ok(());
        };
        let cost = |id: MemberId| u64::from(id.index() as u64 == turn);
        step.source = view.plan_read(step.step.range(), step.tried, cost);
        if step.source.is_none() {
            self.copies[at]
                .end
                .get_or_insert(CopyEnd::SourceFailed("no source".into()));
            return self.finish_step(at, n, false);
        }
        Ok(())
    }

    fn read_step(&mut self, at: usize, n: usize) -> Checked {
        for _ in 0..=self.rng.below(6) {
            let step = &self.copies[at].steps[n];
            let (Some(source), Some(view)) = (step.source, &step.view) else {
                break;
            };
            let Some(&block) = step.unread.last() else {
                break;
            };
            let others = has_other_source(view, step.tried, source);
            // Now and then a copy may lose its only source: that is no loss of data.
            let others = others || self.rng.chance(100);
            if self.get_fails(source, others) {
                self.inbox.push(Event::ReadFailed(source));
                let step = &mut self.copies[at].steps[n];
                step.tried.insert(source);
                step.unwritten.clear();
                step.unread = step.todo.clone();
                return self.choose_source(at, n);
            }
            let value = self.disks[source.index()].image.get(block);
            let step = &mut self.copies[at].steps[n];
            step.unread.pop();
            step.unwritten.push((block, value));
        }
        Ok(())
    }

    fn write_step(&mut self, at: usize, n: usize) -> Checked {
        let target = self.copies[at].work.target();
        for _ in 0..=self.rng.below(6) {
            let left = self.copies[at].steps[n].unwritten.len();
            if left == 0 {
                return self.finish_step(at, n, true);
            }
            let next = self.rng.place(left);
            let (block, value) = self.copies[at].steps[n].unwritten.swap_remove(next);
            if self.has_already(at, n, (block, value)) {
                self.copies[at].steps[n].step.found_equal(BLOCK);
                continue;
            }
            if self.put(target, block, value, false)? {
                let media = self.rng.chance(300);
                self.copies[at]
                    .end
                    .get_or_insert(CopyEnd::TargetFailed("write error".into(), media));
                return self.finish_step(at, n, false);
            }
        }
        Ok(())
    }

    /// Whether the copy compares, and finds the value in its target; one that cannot be read is written.
    fn has_already(&mut self, at: usize, n: usize, (block, value): (usize, Value)) -> bool {
        let work = &self.copies[at].work;
        let target = work.target();
        if !work.kind().compares() || self.get_fails(target, true) {
            return false;
        }
        let step = &self.copies[at].steps[n];
        let seen = step.early.iter().find(|(b, _)| *b == block);
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

    fn finish_step(&mut self, at: usize, n: usize, good: bool) -> Checked {
        if makes!(ClearAfterFence) {
            self.copies[at].steps[n].late = Some(good);
            return self.let_go_early(at, n);
        }
        self.clear(at, n, good)
    }

    /// Gives the step back to its work, under its fence.
    fn clear(&mut self, at: usize, n: usize, good: bool) -> Checked {
        let copy = &mut self.copies[at];
        let step = copy.steps.swap_remove(n);
        let blocks = step.blocks();
        copy.work.finish(step.step, good);
        if copy.work.kind().is_merge() && good {
            self.mark("merge step");
        }
        if step.late.is_none() {
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
