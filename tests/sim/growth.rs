//! Growth in the simulator: the gate, what images hold behind the unit's end, and a world that becomes larger.

use shadowset::set::{
    Bytes, Command, Effect, Event, Geometry, MemberId, MemberSet, MemberState, Refusal,
};
use shadowset::testing::memory::Value;

use crate::world::{BLOCK, Checked, World, ensure, makes, usize_of};

/// How a unit that grows is doing.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    /// New changes wait, because the unit is about to grow.
    pub(crate) held: bool,
    /// The last life ended while the membership was not durable.
    pub(crate) unsaid: bool,
    /// A crash has left blocks that say two sizes of the unit.
    pub(crate) growing: bool,
}

impl World {
    /// A resize to some size, or to all that there is room for.
    pub(crate) fn resize(&mut self) -> (&'static str, Command) {
        let unit = self.set.geometry().size().0;
        let writers = self.set.writers().iter();
        let room = writers.map(|id| (id, Bytes(self.disks[id.index()].blocks() * BLOCK)));
        let size = match self.rng.chance(500) {
            true => None,
            false => Some(Bytes(
                unit.saturating_sub(BLOCK) + self.rng.below(20) * BLOCK,
            )),
        };
        let command = Command::Resize {
            size,
            room: room.collect(),
        };
        ("resize", command)
    }

    /// A resize to so many blocks, or as far as it goes with 0.
    pub(crate) fn resize_to(&mut self, blocks: u64) -> Checked {
        let writers = self.set.writers().iter();
        let room = writers.map(|id| (id, Bytes(self.disks[id.index()].blocks() * BLOCK)));
        let command = Command::Resize {
            size: (blocks > 0).then_some(Bytes(blocks * BLOCK)),
            room: room.collect(),
        };
        self.give("resize", None, command)
    }

    /// The shell has prepared a growth, or could not.
    pub(crate) fn prepare_growth(&mut self, number: u64, geometry: Geometry) {
        let fails = !self.quiet && !self.plan.faults.none() && self.rng.chance(100);
        let ready = match fails {
            true => Err(Refusal::new(
                shadowset::set::Code::BitmapNoSpace,
                "no room for a larger journal",
            )),
            false => Ok(self.blank_tails(geometry)),
        };
        self.inbox.push(Event::GrowthReady(number, ready));
    }

    /// The members that hold zeros alone behind the end; now and then it cannot be told.
    fn blank_tails(&mut self, geometry: Geometry) -> MemberSet {
        let from = usize_of(self.set.geometry().blocks());
        let to = usize_of(geometry.blocks());
        let writers = self.set.writers();
        let mut blank = MemberSet::EMPTY;
        for id in writers.iter() {
            let zeros = self.disks[id.index()].is_blank(from, to);
            if zeros && !self.rng.chance(50) {
                blank.insert(id);
            }
        }
        blank
    }

    pub(crate) fn gate(&mut self, effect: &Effect) {
        self.growth.held = matches!(effect, Effect::Hold) && !makes!(GrowthWithoutHold);
    }

    /// Takes in the size that the unit has now, with these contents behind the end that it had.
    pub(crate) fn fit(&mut self, geometry: Geometry, contents: &[Value]) -> Checked {
        // What no block could say was never promised.
        ensure!(
            self.growth.unsaid || geometry.size() >= self.geometry.size(),
            "I7: the unit has shrunk from {} to {} bytes",
            self.geometry.size(),
            geometry.size()
        );
        let (before, blocks) = (self.inside.len(), usize_of(geometry.blocks()));
        self.geometry = geometry;
        if before == blocks {
            return Ok(());
        }
        if blocks < before {
            return self.shrink(blocks);
        }
        self.mark("the unit grows");
        self.oracle.grow(&contents[before..blocks]);
        self.inside.resize(blocks, 0);
        self.unsettled.resize(blocks, false);
        self.loosely_read.resize(blocks, false);
        for block in before..blocks {
            let disks = self.disks.iter().filter(|disk| block < disk.image.len());
            self.unmerged
                .push(disks.map(|disk| disk.image.get(block)).collect());
        }
        if let Some(before) = &mut self.before {
            let known = before.unmerged.len();
            before.oracle.grow(&contents[known.min(blocks)..blocks]);
            before
                .unmerged
                .extend_from_slice(&self.unmerged[known.min(blocks)..]);
        }
        Ok(())
    }

    fn shrink(&mut self, blocks: usize) -> Checked {
        self.mark("a growth that no block could say");
        self.oracle.truncate(blocks);
        self.inside.truncate(blocks);
        self.unsettled.truncate(blocks);
        self.loosely_read.truncate(blocks);
        self.unmerged.truncate(blocks);
        if let Some(before) = &mut self.before {
            before.oracle.truncate(blocks);
            before.unmerged.truncate(blocks);
        }
        Ok(())
    }

    /// After a View of a larger unit: its master tells what is behind the end.
    pub(crate) fn fit_to_set(&mut self) -> Checked {
        let geometry = self.set.geometry();
        let master = self.set.master();
        let contents = self.disks[master.index()].image.contents().to_vec();
        self.fit(geometry, &contents)
    }

    /// The block behind which the bitmap of a member that has left tells only what was written, and where the
    /// image may differ all the same.
    pub(crate) fn loose_from(&self, id: MemberId) -> usize {
        let (disk, state) = (&self.disks[id.index()], self.state(id));
        let blocks = self.inside.len();
        let Some(departed) = state.departed() else {
            return blocks;
        };
        if matches!(state, MemberState::Leaving(_)) {
            return blocks;
        }
        let block = disk.scb.as_ref().map(|scb| scb.geometry.size());
        let covers = departed.covers.into_iter().chain(block).min();
        let from = usize_of(covers.unwrap_or_default().0 / BLOCK).min(disk.image.len());
        let whole = disk.image.len() >= blocks;
        match whole && disk.is_blank(from, blocks.max(from)) {
            true => blocks,
            false => from,
        }
    }
}
