//! The members' storage as requests and copy steps meet it: faults, frozen images, I4.

use shadowset::set::{MemberId, MemberSet, Role, Seat, View};
use shadowset::testing::memory::Value;
use shadowset::testing::oracle::TORN;

use crate::ops::{Op, Strike};
use crate::world::{Checked, Violation, World, ensure, makes};

impl World {
    /// Writes one block of a member; says whether that failed.
    pub(crate) fn put(
        &mut self,
        member: MemberId,
        block: usize,
        value: Value,
        doomed: bool,
    ) -> Result<bool, Violation> {
        let frozen = self.disks[member.index()].frozen.is_some();
        ensure!(
            !frozen,
            "I5: {member:?} is written after its detach was answered"
        );
        let faults = self.plan.faults;
        let breaks = !self.quiet && self.rng.chance(faults.write);
        let sticks = breaks && self.rng.chance(faults.sticky);
        let shut = !self.disks[member.index()].open && self.rng.chance(500);
        let struck = self.strike(Op::Write);
        let fails = struck != Strike::Passes
            || doomed
            || breaks
            || shut
            || self.disks[member.index()].bad_writes;
        let lands = match fails {
            false => Some(value),
            true => match self.rng.below(3) {
                0 => None,
                1 => Some(value),
                // What is there already cannot be torn by the same again.
                _ if self.disks[member.index()].image.get(block) == value => Some(value),
                _ => Some(value | TORN),
            },
        };
        let disk = self.disk(member);
        disk.bad_writes |= sticks;
        if let Some(value) = lands {
            disk.image.put(block, value);
        }
        if fails {
            self.unmerged[block].extend(lands);
        }
        if struck == Strike::Crashes {
            return Err(Self::cut_short());
        }
        self.trace(&[member.index() as u64, block as u64, u64::from(fails)]);
        if fails && self.is_logging() {
            self.log(format!(
                "write error on m{} block {block}: {lands:?}",
                member.index() + 1
            ));
        }
        Ok(fails)
    }

    /// Flushes a member for the application; says whether that failed.
    pub(crate) fn flush_member(&mut self, at: usize, member: MemberId) -> Result<bool, Violation> {
        let faults = self.plan.faults;
        let doomed = self.requests[at].doomed;
        let fails = doomed || !self.quiet && self.rng.chance(faults.flush);
        let fails = match self.strike(Op::Flush) {
            Strike::Crashes => return Err(Self::cut_short()),
            struck => fails || struck == Strike::Fails,
        };
        let written = self.disks[member.index()].image.written();
        let tells = self.tells(member, written);
        let disk = self.disk(member);
        let fails = fails || disk.bad_flushes || !disk.open || tells;
        match fails {
            true => self.note_unflushed(member),
            false => disk.image.flush(disk.image.written()),
        }
        Ok(fails)
    }

    /// Whether a read of this member fails now; never when no other could answer.
    pub(crate) fn get_fails(&mut self, member: MemberId, others: bool) -> bool {
        let faults = self.plan.faults;
        if self.quiet || !others {
            return false;
        }
        let breaks = self.rng.chance(faults.read);
        let sticks = breaks && self.rng.chance(faults.sticky);
        let disk = self.disk(member);
        disk.bad_reads |= sticks;
        breaks || disk.bad_reads
    }

    /// Those of members that have failed whose medium is to blame: all or none.
    pub(crate) fn media_among(&mut self, failed: MemberSet) -> MemberSet {
        match self.rng.chance(300) {
            true => failed,
            false => MemberSet::EMPTY,
        }
    }

    /// Enters blocks as a writer (I4).
    pub(crate) fn go_inside(&mut self, blocks: std::ops::Range<usize>) -> Checked {
        // The data must show the lack of a fence even when nobody counts.
        let counts = !makes!(NoFence) && !makes!(CopyWithoutFence) && !makes!(VerifyWithoutFence);
        for block in blocks {
            self.inside[block] += 1;
            let alone = self.inside[block] == 1 || !counts;
            ensure!(alone, "I4: two writers in block {block}");
        }
        Ok(())
    }

    pub(crate) fn go_outside(&mut self, blocks: std::ops::Range<usize>) {
        for block in blocks {
            self.inside[block] -= 1;
        }
    }
}

/// Whether a source is left to ask beside `reader` and those that have failed.
pub(crate) fn has_other_source(view: &View, tried: MemberSet, reader: MemberId) -> bool {
    let left = |s: &&Seat| s.id != reader && !tried.contains(s.id);
    let mut others = view.seats().iter().filter(left);
    others.any(|s| matches!(s.role, Role::Source))
}
