//! Read repair in the simulator: a block that a member could not read is rewritten from another source, under the
//! fence and with its bits set, some time later.

use std::sync::Arc;

use shadowset::set::{ByteRange, Event, Failure, MemberId, MemberSet, Ticket, View};

use crate::storage::has_other_source;
use crate::world::{Asker, Checked, World, blocks_of, ensure, makes};

/// A repair that waits or is under way.
#[derive(Debug)]
pub(crate) struct Repairing {
    member: MemberId,
    range: ByteRange,
    /// Its place at the fence, once it has come there.
    place: Option<u64>,
    view: Option<Arc<View>>,
    /// What another source has, once it is read.
    value: Option<u32>,
    /// It has failed, and the set has not judged yet.
    waits: bool,
}

impl World {
    /// A read of a block failed on a member.
    pub(crate) fn repair_later(&mut self, member: MemberId, block: usize) {
        if self.ops.repair.is_none() {
            self.ops.repair = Some(Repairing {
                member,
                range: self.bytes_of(block),
                place: None,
                view: None,
                value: None,
                waits: false,
            });
        }
    }

    pub(crate) fn step_repair(&mut self) -> Checked {
        let Some(mut repair) = self.ops.repair.take() else {
            return Ok(());
        };
        if repair.waits {
            self.ops.repair = Some(repair);
            return Ok(());
        }
        let Some(place) = repair.place else {
            repair.place = Some(self.fences.enter(repair.range.blocks()));
            self.ops.repair = Some(repair);
            return Ok(());
        };
        let Some(view) = repair.view.clone() else {
            if self.fences.may_pass(place) || makes!(RepairUnfenced) {
                // The data must show the lack of a fence.
                if !makes!(RepairUnfenced) {
                    self.go_inside(blocks_of(repair.range))?;
                }
                repair.view = Some(self.pin());
            }
            self.ops.repair = Some(repair);
            return Ok(());
        };
        self.go_on_repairing(repair, &view)
    }

    fn go_on_repairing(&mut self, mut repair: Repairing, view: &View) -> Checked {
        let (member, range) = (repair.member, repair.range);
        let mut tried = MemberSet::EMPTY;
        tried.insert(member);
        let alone = !has_other_source(view, MemberSet::EMPTY, member);
        let hangs = self.ops.silence.is_hung(member);
        let left = !view.readers(range).contains(member);
        if self.is_undurable() || left || alone || hangs && repair.value.is_none() {
            return self.end_repair(&repair);
        }
        let Some(value) = repair.value else {
            if view.mark(range, &self.home).is_err() {
                return self.end_repair(&repair);
            }
            let source = view.plan_read(range, tried, |_| 0);
            let Some(source) = source.filter(|id| !self.ops.silence.is_hung(*id)) else {
                return self.end_repair(&repair);
            };
            let block = blocks_of(range).start;
            repair.value = Some(self.disks[source.index()].image.get(block));
            self.ops.repair = Some(repair);
            return Ok(());
        };
        if hangs && !self.ops.silence.is_gone(member) {
            self.ops.repair = Some(repair);
            return Ok(());
        }
        // A sector that could not be read holds what it is given, or can be read no better than before.
        let fails = !self.quiet && self.rng.chance(300);
        if !fails {
            let frozen = self.disks[member.index()].frozen.is_some();
            ensure!(
                !frozen,
                "I5: {member:?} is repaired after its detach was answered"
            );
            let image = &mut self.disk(member).image;
            image.put(blocks_of(range).start, value);
            image.flush(image.written());
            self.mark("a read repair");
            return self.end_repair(&repair);
        }
        self.mark("a read repair that failed");
        let failed: MemberSet = [member].into_iter().collect();
        let number = self.next_id();
        self.tickets.insert(number, Asker::ReadRepair);
        let failure = Failure {
            range: Some(range),
            good: view.sources().without(failed),
            failed,
            media: failed,
            epoch: view.epoch(),
            causes: Vec::new(),
        };
        self.inbox.push(Event::Failed(Ticket::new(number), failure));
        repair.waits = true;
        self.ops.repair = Some(repair);
        Ok(())
    }

    /// The set has judged a repair that failed.
    pub(crate) fn read_repair_judged(&mut self) -> Checked {
        match self.ops.repair.take() {
            Some(repair) => self.end_repair(&repair),
            None => Ok(()),
        }
    }

    fn end_repair(&mut self, repair: &Repairing) -> Checked {
        if repair.view.is_some() && !makes!(RepairUnfenced) {
            self.go_outside(blocks_of(repair.range));
        }
        if let Some(place) = repair.place {
            self.fences.leave(place);
        }
        if let Some(view) = &repair.view {
            self.unpin(view.epoch());
        }
        self.check_blocks(blocks_of(repair.range))
    }
}
