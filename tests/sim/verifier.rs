//! The verifier of the simulator: steps under the fence as the real one has them. Under no load it may find a
//! difference, but where the world has damaged a member just then.

use std::sync::Arc;

use shadowset::set::{
    ByteRange, Bytes, Command, Contents, Event, Failure, MemberId, MemberSet, Repair, RepairBy,
    Role, Ticket, VerifyWork, View, compare,
};
use shadowset::testing::memory::Value;

use crate::commands::name;
use crate::world::{Asker, BLOCK, Checked, Violation, World, blocks_of, ensure, makes};

/// The verify that runs, and what verifies have done.
#[derive(Debug, Default)]
pub(crate) struct Verifies {
    pub(crate) running: Option<Verifying>,
    /// Blocks that were repaired, and in which epoch.
    pub(crate) repairs: Vec<(usize, u64)>,
}

/// A verify that runs.
#[derive(Debug)]
pub(crate) struct Verifying {
    work: Box<VerifyWork>,
    step: Option<Step>,
    pub(crate) paused: bool,
    pub(crate) stopped: bool,
}

impl Verifying {
    pub(crate) fn new(work: Box<VerifyWork>) -> Self {
        Self {
            work,
            step: None,
            paused: false,
            stopped: false,
        }
    }
}

/// A step under way.
#[derive(Debug)]
struct Step {
    range: ByteRange,
    /// Its place at the fence.
    place: u64,
    inside: bool,
    view: Option<Arc<View>>,
    unread: Vec<(MemberId, usize)>,
    /// What each source had in a block; `None` where it could not be read.
    read: Vec<(MemberId, usize, Option<Value>)>,
    /// A repair has failed on a member, and the set has not judged yet.
    waits: bool,
}

/// A block of a member that somebody damages, and what it held.
#[derive(Clone, Copy, Debug)]
struct Damage {
    member: MemberId,
    block: usize,
    held: Value,
}

impl World {
    pub(crate) fn start_verify(&mut self, work: Box<VerifyWork>) -> Checked {
        ensure!(self.verifies.running.is_none(), "two verifies at once");
        self.verifies.running = Some(Verifying::new(work));
        Ok(())
    }

    /// A verify of the unit or of a part of it, with or without a repair.
    pub(crate) fn demand_verify(&mut self) -> Checked {
        let blocks = self.geometry.blocks();
        let range = self.rng.chance(300).then(|| {
            let first = self.rng.below(blocks + 1);
            (first, first + self.rng.below(blocks))
        });
        let place = self.rng.place(self.set.members().len());
        let member = MemberId::new(place).map(name).unwrap_or_default();
        let repair = match self.rng.below(4) {
            0 => None,
            1 => Some(RepairBy::Member(member)),
            _ => Some(RepairBy::Majority),
        };
        self.give("verify", None, Command::Verify { range, repair })
    }

    /// What the set says to the verify that runs.
    pub(crate) fn with_verify(
        &mut self,
        op: shadowset::set::OpId,
        change: impl Fn(&mut Verifying),
    ) {
        self.verifies
            .running
            .iter_mut()
            .filter(|v| v.work.op() == op)
            .for_each(change);
    }

    pub(crate) fn step_verify(&mut self) -> Checked {
        let Some(verify) = &mut self.verifies.running else {
            return Ok(());
        };
        match &mut verify.step {
            None => self.begin_verify_step(),
            Some(step) if step.waits => Ok(()),
            Some(step) if !step.inside => {
                let (place, blocks) = (step.place, blocks_of(step.range));
                if self.fences.may_pass(place) || makes!(VerifyWithoutFence) {
                    self.go_inside(blocks)?;
                    self.with_step(|step| step.inside = true);
                }
                Ok(())
            }
            Some(step) if step.view.is_none() => self.load_verify(),
            Some(step) if !step.unread.is_empty() => self.read_verify(),
            Some(_) => self.judge_verify(),
        }
    }

    fn with_step(&mut self, change: impl FnOnce(&mut Step)) {
        if let Some(step) = self.verifies.running.as_mut().and_then(|v| v.step.as_mut()) {
            change(step);
        }
    }

    fn begin_verify_step(&mut self) -> Checked {
        let most = self
            .rng
            .between(1, self.plan.budget_regions * self.geometry.region_bytes());
        let halted = self.is_undurable();
        let Some(verify) = &mut self.verifies.running else {
            return Ok(());
        };
        let next = verify.work.next_step(|_| most);
        let Some((from, to)) = next.filter(|_| !verify.stopped) else {
            let ended = Event::VerifyEnded(verify.work.op(), next.is_none());
            self.verifies.running = None;
            self.inbox.push(ended);
            return Ok(());
        };
        if verify.paused || halted {
            return Ok(());
        }
        let range = self.geometry.clip(Bytes(from), Bytes(to - from));
        let range = range.map_err(|e| Violation(format!("a verify of {from} to {to}: {e}")))?;
        let step = Step {
            range,
            place: self.fences.enter(range.blocks()),
            inside: false,
            view: None,
            unread: Vec::new(),
            read: Vec::new(),
            waits: false,
        };
        verify.step = Some(step);
        Ok(())
    }

    /// The fence is held: whom to compare in the View of now. A repair waits while the unit grows.
    fn load_verify(&mut self) -> Checked {
        let repairs = self
            .verifies
            .running
            .as_ref()
            .is_some_and(|v| v.work.repair().is_some());
        if self.growth.held && repairs {
            return Ok(());
        }
        let view = self.pin();
        let sources = view
            .seats()
            .iter()
            .filter(|s| matches!(s.role, Role::Source));
        let sources: Vec<MemberId> = sources.map(|s| s.id).collect();
        let mut blocks = 0..0;
        self.with_step(|step| {
            blocks = blocks_of(step.range);
            let all = sources
                .iter()
                .flat_map(|m| blocks.clone().map(move |b| (*m, b)));
            (step.unread, step.view) = (all.collect(), Some(Arc::clone(&view)));
        });
        match sources.len() {
            // The set is about to end it.
            0 | 1 => self.leave_verify_step().map(drop),
            _ => Ok(()),
        }
    }

    fn read_verify(&mut self) -> Checked {
        for _ in 0..=self.rng.below(self.plan.stride) {
            let step = self.verifies.running.as_ref().and_then(|v| v.step.as_ref());
            let left = step.map_or(0, |step| step.unread.len());
            if left == 0 {
                break;
            }
            let (n, mut next) = (self.rng.place(left), None);
            self.with_step(|step| next = Some(step.unread.swap_remove(n)));
            let Some((member, block)) = next else { break };
            let fails = self.get_fails(member, true);
            if fails {
                self.inbox.push(Event::ReadFailed(member));
            }
            let value = self.disks[member.index()].image.get(block);
            self.with_step(|step| step.read.push((member, block, (!fails).then_some(value))));
        }
        Ok(())
    }

    /// Everything is read: nothing may differ, but for what the world damages now.
    fn judge_verify(&mut self) -> Checked {
        let Some((view, read, repair)) = self.verifies.running.as_ref().and_then(|verify| {
            let step = verify.step.as_ref()?;
            let view = Arc::clone(step.view.as_ref()?);
            Some((view, step.read.clone(), verify.work.repair()))
        }) else {
            return Ok(());
        };
        let mut blocks: Vec<usize> = read.iter().map(|(_, block, _)| *block).collect();
        blocks.sort_unstable();
        blocks.dedup();
        for block in &blocks {
            let held = held(&read, *block);
            // What a flush has lost since then is being merged by now.
            let lost = Some(view.epoch()) < self.ops.lost_before;
            ensure!(
                lost || difference(*block, &held).is_none_or(|d| !d.differs()),
                "a verify gives a false alarm in block {block}: {held:?}"
            );
        }
        if let Some(repair) = repair.filter(|_| !makes!(VerifyWithoutFence)) {
            if let Some(damage) = self.draw_damage(&view, &read, &blocks, repair) {
                return self.damage_and_repair(&view, &read, damage, repair);
            }
        }
        self.end_verify_step(0)
    }

    /// A member other than the one that is taken for right, where the others can tell.
    fn draw_damage(
        &mut self,
        view: &View,
        read: &[(MemberId, usize, Option<Value>)],
        blocks: &[usize],
        repair: Repair,
    ) -> Option<Damage> {
        let block = blocks[self.rng.place(blocks.len())];
        let held = held(read, block);
        let enough = match repair {
            Repair::Majority => held.len() > 2,
            Repair::From(right) => held.iter().any(|(m, _)| *m == right),
        };
        let (member, value) = held[self.rng.place(held.len())];
        let all_read = held.iter().all(|(_, value)| value.is_some());
        let takes_part = view.writers().contains(member);
        let may = enough && all_read && takes_part && repair != Repair::From(member);
        let unkept = !self.home.keeps() && self.is_undurable();
        let held = value.filter(|_| may && !unkept && self.rng.chance(300))?;
        Some(Damage {
            member,
            block,
            held,
        })
    }

    /// The medium of a member is found to hold something else, and the verify repairs it. No request comes between:
    /// what it would read of that member nobody has written.
    fn damage_and_repair(
        &mut self,
        view: &Arc<View>,
        read: &[(MemberId, usize, Option<Value>)],
        damage: Damage,
        repair: Repair,
    ) -> Checked {
        let Damage {
            member,
            block,
            held: was,
        } = damage;
        let range = self.bytes_of(block);
        if !self.mark_durably(view, range, false)? {
            return self.carry_out(Vec::new());
        }
        self.check_marked(view, block, 0)?;
        self.verifies.repairs.push((block, view.epoch().0));
        let wrong = was ^ 0x0055_0000;
        self.disk(member).image.put(block, wrong);
        let mut contents = held(read, block);
        contents
            .iter_mut()
            .filter(|(m, _)| *m == member)
            .for_each(|c| c.1 = Some(wrong));
        let found = difference(block, &contents);
        let found = found.ok_or_else(|| Violation(format!("a verify misses block {block}")))?;
        let right = found.right(repair);
        let value = contents.iter().find(|(m, _)| right.contains(*m));
        let Some((_, Some(value))) = value else {
            return Err(Violation(format!(
                "a repair of {contents:?} knows no right"
            )));
        };
        for writer in view.writers().without(right).iter() {
            let frozen = self.disks[writer.index()].frozen.is_some();
            ensure!(
                !frozen,
                "I5: {writer:?} is repaired after its detach was answered"
            );
            let image = &mut self.disk(writer).image;
            image.put(block, *value);
            image.flush(image.written());
        }
        self.mark("a verify has repaired a member");
        self.fail_repair(view, member)
    }

    /// Now and then what was written cannot be read back.
    fn fail_repair(&mut self, view: &View, member: MemberId) -> Checked {
        if self.quiet || self.plan.faults.none() || !self.rng.chance(300) {
            return self.end_verify_step(BLOCK);
        }
        let failed: MemberSet = [member].into_iter().collect();
        let sources = view
            .seats()
            .iter()
            .filter(|s| matches!(s.role, Role::Source));
        let good = sources.map(|s| s.id).collect::<MemberSet>().without(failed);
        let mut range = None;
        self.with_step(|step| (step.waits, range) = (true, Some(step.range)));
        let number = self.next_id();
        self.tickets.insert(number, Asker::Verify);
        let failure = Failure {
            range,
            good,
            failed,
            media: failed,
            epoch: view.epoch(),
            causes: Vec::new(),
        };
        self.inbox.push(Event::Failed(Ticket::new(number), failure));
        self.mark("a repair failed on a member");
        Ok(())
    }

    /// The set has judged a repair that failed.
    pub(crate) fn repair_judged(&mut self) -> Checked {
        self.end_verify_step(0)
    }

    fn end_verify_step(&mut self, written: u64) -> Checked {
        let range = self.leave_verify_step()?;
        if let (Some(verify), Some(range)) = (&mut self.verifies.running, range) {
            verify.work.finish(range.end(), written);
        }
        range.map_or(Ok(()), |range| self.check_blocks(blocks_of(range)))
    }

    /// Lets go of fence and View.
    fn leave_verify_step(&mut self) -> Result<Option<ByteRange>, Violation> {
        let Some(step) = self.verifies.running.as_mut().and_then(|v| v.step.take()) else {
            return Ok(None);
        };
        self.go_outside(blocks_of(step.range));
        self.fences.leave(step.place);
        if let Some(view) = step.view {
            self.unpin(view.epoch());
        }
        Ok(Some(step.range))
    }
}

fn held(read: &[(MemberId, usize, Option<Value>)], block: usize) -> Vec<(MemberId, Option<Value>)> {
    let of_block = read.iter().filter(|(_, b, _)| *b == block);
    of_block
        .map(|(member, _, value)| (*member, *value))
        .collect()
}

/// What the real comparison says of a block.
fn difference(
    block: usize,
    held: &[(MemberId, Option<Value>)],
) -> Option<shadowset::set::Difference> {
    let bytes = |value: Value| value.to_le_bytes().repeat(BLOCK as usize / 4);
    let all: Vec<_> = held
        .iter()
        .map(|(m, value)| (*m, value.map(bytes)))
        .collect();
    let contents: Vec<_> = all
        .iter()
        .map(|(member, bytes)| Contents {
            member: *member,
            bytes: bytes.as_deref(),
        })
        .collect();
    compare(block as u64 * BLOCK, &contents).pop()
}
