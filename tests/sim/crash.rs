//! Crashes: the program is killed, or power is lost; then the set is elected and assembled anew.
//!
//! A crash may come between any two storage control blocks of one change of membership. What is
//! left is the images, of which a loss of power keeps any part of what was not flushed, and the
//! blocks. Bitmaps are gone, as with `durability = "memory"`.

use std::path::PathBuf;

use shadowset::set::scb::{Lineage, ScbRow};
use shadowset::set::{
    Found, Generation, MemberId, MemberSet, Moment, Scb, ScbFound, ScbState, ShadowSet, Start,
    assess,
};
use shadowset::testing::memory::Value;
use shadowset::testing::{Image, Oracle};

use crate::world::{Checked, Violation, World, ensure, member};

impl World {
    /// Lets a crash come now, or between the next writes of control blocks.
    pub(crate) fn draw_crash(&mut self) {
        if self.crash_after.is_none() && self.rng.below(10_000) < self.plan.crashes {
            self.crash_after = Some(self.rng.below(6));
            self.crashed = self.rng.chance(500);
        }
    }

    /// Writes a generation to the members' blocks in the server's order, as far as it comes.
    pub(crate) fn write_blocks(&mut self, generation: Generation, clean: bool, to: MemberSet) {
        let table = self.table();
        let mut order: Vec<MemberId> = to.iter().collect();
        order.sort_by_key(|id| {
            let before = self.disks[id.index()].scb.as_ref().map(|scb| scb.state);
            let now = table[id.index()].state;
            (now != ScbState::Source, before != Some(ScbState::Source))
        });
        for id in order {
            if self.crash_after == Some(0) {
                self.crashed = true;
                return self.mark("crash between control blocks");
            }
            self.crash_after = self.crash_after.map(|left| left - 1);
            let scb = self.block(id.index(), generation, clean, &table);
            self.disks[id.index()].scb = Some(scb);
        }
    }

    fn table(&self) -> Vec<ScbRow> {
        let rows = self.set.members().iter().map(|m| ScbRow {
            member: m.uuid,
            name: m.name.clone(),
            path: PathBuf::from(&m.path),
            state: m.state.durable(),
        });
        rows.collect()
    }

    fn block(&self, place: usize, generation: Generation, clean: bool, table: &[ScbRow]) -> Scb {
        Scb {
            set: uuid::Uuid::from_u128(99),
            member: table[place].member,
            name: table[place].name.clone(),
            state: table[place].state,
            label: "simulated".into(),
            generation,
            lineage: self.lineage.clone(),
            geometry: self.geometry,
            clean,
            sequence: 0,
            table: table.to_vec(),
        }
    }

    /// The blocks of a set that was just created.
    pub(crate) fn first_blocks(&mut self) {
        let table = self.table();
        for place in 0..self.disks.len() {
            if self.plan.starts[place] != Start::Missing {
                let scb = self.block(place, Generation::FIRST, true, &table);
                self.disks[place].scb = Some(scb);
            }
        }
    }

    /// Crashes and starts again from images and control blocks.
    pub(crate) fn reboot(&mut self) -> Checked {
        let power = self.rng.chance(500);
        self.mark(if power { "loss of power" } else { "kill" });
        self.log(if power { "loss of power" } else { "kill" });
        (self.crashed, self.crash_after) = (false, None);
        self.forget_all();
        for disk in &mut self.disks {
            let mut keep = |values: &[Value]| values[self.rng.place(values.len())];
            let contents = match power {
                true => disk.image.after_power_loss(&mut keep),
                false => disk.image.contents().to_vec(),
            };
            disk.image = Image::new(contents);
            disk.open = true;
            (disk.bad_reads, disk.bad_writes, disk.bad_flushes) = (false, false, false);
        }
        let found = self.find();
        let assembly = assess(&found)
            .map_err(|refusal| Violation(format!("I14: no set after a crash: {refusal:?}")))?;
        let (starts, generation) = (assembly.starts, assembly.generation);
        // A generation that no block has got is free again.
        self.generation = generation.number();
        self.lineage = assembly.lineage.mounted(generation.next(), self.now + 1);
        self.check_elected(&starts, power)?;
        let members = found.iter().zip(&starts).enumerate();
        let members = members.map(|(n, (f, s))| (member(n, f.image.unwrap_or_default().0), *s));
        let set = ShadowSet::assemble(
            self.geometry,
            generation,
            members.collect(),
            Moment(self.now),
        );
        self.set = set.map_err(|refusal| Violation(format!("I2: {refusal:?}")))?;
        let effects = self.set.begin();
        self.carry_out(effects)
    }

    /// What was under way is gone.
    fn forget_all(&mut self) {
        self.requests.clear();
        self.copies.clear();
        self.inbox.clear();
        self.flushes.clear();
        self.tickets.clear();
        self.views.clear();
        self.promised.clear();
        self.fresh.clear();
        self.fences = shadowset::server::fence::FenceTable::default();
        self.inside.fill(0);
    }

    /// What a mount finds: every member that some block knows of.
    fn find(&mut self) -> Vec<Found> {
        let blocks = self.disks.iter().filter_map(|d| d.scb.as_ref());
        let newest = blocks.max_by_key(|scb| scb.generation).cloned();
        let known = |place: &usize| {
            let uuid = self.set.members()[*place].uuid;
            newest.as_ref().is_some_and(|scb| scb.row(uuid).is_some())
        };
        let members = (0..self.set.members().len()).filter(known).count();
        // A new image that no block has heard of is not configured yet.
        self.disks.truncate(members);
        let found = self
            .disks
            .iter()
            .zip(self.set.members())
            .map(|(disk, m)| Found {
                name: m.name.clone(),
                image: Some(m.size),
                scb: disk.scb.clone().map_or(ScbFound::None, ScbFound::Read),
            });
        found.collect()
    }

    /// I14: every source of the elected set has what was acknowledged, after a loss of power what
    /// was flushed; sources are equal.
    fn check_elected(&mut self, starts: &[Start], power: bool) -> Checked {
        let sources: Vec<usize> = (0..starts.len())
            .filter(|n| starts[*n] == Start::Source)
            .collect();
        let master = self.disks[sources[0]].image.contents().to_vec();
        for (block, value) in master.iter().enumerate() {
            let right = self.oracle.survives(block, *value, power);
            ensure!(
                right,
                "I14: after a crash (power {power}) block {block} of m{} has {value}, wrong: {:?}",
                sources[0] + 1,
                self.oracle.values(block)
            );
            for other in &sources {
                let has = self.disks[*other].image.get(block);
                ensure!(
                    has == *value,
                    "I6: block {block} of two sources: {value}, {has}"
                );
            }
        }
        self.oracle = Oracle::new(&master);
        for (disk, start) in self.disks.iter_mut().zip(starts) {
            if *start != Start::Detached {
                disk.frozen = None;
            }
        }
        Ok(())
    }
}

/// The lineage of a new set.
pub(crate) fn first_lineage() -> Lineage {
    Lineage::new(0)
}
