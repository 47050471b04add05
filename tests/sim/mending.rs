//! Merges in the simulator whose sources cannot be read: they are given what a member has that a crash has left as right
//! as them, under the fence of the step.

use shadowset::set::{ByteRange, Event, Failure, MemberId, MemberSet, Role, Ticket, View};
use shadowset::testing::memory::Value;

use crate::world::{Asker, Checked, Violation, World, ensure, makes};

impl World {
    /// Gives the readers of these blocks what a merging member has, for targets that are merged; says whether that was possible.
    pub(crate) fn mend(
        &mut self,
        view: &View,
        targets: MemberSet,
        blocks: &[usize],
    ) -> Result<bool, Violation> {
        let merged = |id: MemberId| {
            let mut seats = view.seats().iter();
            seats.any(|s| s.id == id && matches!(s.role, Role::Merging(_)))
        };
        let sources = view.sources();
        let master = sources.iter().next().filter(|_| sources.len() == 1);
        let Some(master) = master.filter(|_| targets.iter().all(merged)) else {
            return Ok(false);
        };
        if blocks.is_empty() || self.is_undurable() || self.rng.chance(300) {
            return Ok(false);
        }
        for block in blocks {
            let range = self.bytes_of(*block);
            let Some(believed) = self.believed(view, range) else {
                return Ok(false);
            };
            let value = self.disks[believed.index()].image.get(*block);
            self.believe(believed, *block, value)?;
            if !makes!(MendedUnlacked) {
                self.have_lacked(view, range)?;
            }
            let disk = self.disk(master);
            disk.image.put(*block, value);
            disk.image.flush(disk.image.written());
            disk.bad_reads = false;
        }
        self.mark("a merge mends its source");
        Ok(true)
    }

    /// Before the master is written all others lack it (I1).
    fn have_lacked(&mut self, view: &View, range: ByteRange) -> Checked {
        let number = self.next_id();
        self.tickets.insert(number, Asker::Mend);
        let failure = Failure {
            range: Some(range),
            good: MemberSet::EMPTY,
            failed: view.sources(),
            media: MemberSet::EMPTY,
            epoch: view.epoch(),
            causes: Vec::new(),
        };
        self.handle(Event::Failed(Ticket::new(number), failure))?;
        match self.crashed {
            true => Err(Self::cut_short()),
            false => Ok(()),
        }
    }

    /// I14: what a crash has left in a member is as right as what it has left in the master, as long as nobody has read or
    /// written there since.
    fn believe(&mut self, id: MemberId, block: usize, value: Value) -> Checked {
        if self.oracle.may_have(block, value) {
            return Ok(());
        }
        let untouched = self.oracle.changed(block) == 0 && !self.oracle.was_read(block);
        ensure!(
            untouched && self.unmerged[block].contains(&value),
            "I14: {value} of {id:?} is taken for right in block {block}, it may have {:?}",
            self.oracle.values(block)
        );
        self.oracle.lost(block, &[value], self.now);
        Ok(())
    }

    /// Who is taken for right, if all that are asked can be flushed.
    fn believed(&self, view: &View, range: ByteRange) -> Option<MemberId> {
        let well = |id: MemberId| {
            let disk = &self.disks[id.index()];
            let whole = disk.lost.is_empty() && disk.unflushed.is_none();
            let bad = disk.bad_flushes || disk.bad_writes || disk.frozen.is_some();
            disk.open && whole && !bad && !self.ops.silence.is_hung(id)
        };
        let believed = view.alike(range).iter().find(|id| well(*id))?;
        let readers = view.readers(range);
        (readers == view.sources() && readers.iter().all(well)).then_some(believed)
    }
}
