//! A flush that fails loses what it was for: the caches may show it for a while, and the disk never gets it (fsync(2)).
//! The server forgets the caches when it is settled who leaves. Up to then each later flush of the member fails as well.

use shadowset::set::{Event, MemberId, MemberSet, MemberState};
use shadowset::testing::Rng;
use shadowset::testing::memory::Value;

use crate::world::{Asker, Checked, World, ensure};

/// How many times as often a member that is leaving loses a write as any other.
const LEAVING: u64 = 16;

/// How often the set has not heard yet of a flush that has ended, per mille.
const LATE: u64 = 900;

/// How often a flush of such a member does not end yet, per mille.
const SLOW: u64 = 950;

/// Writes that are lost on their way to a disk before a flush tells of it. They are drawn apart from all else.
#[derive(Debug)]
pub(crate) struct Losses {
    rng: Rng,
    /// Of the blocks that a copy reads and that are not flushed, per mille.
    rate: u64,
}

impl Default for Losses {
    fn default() -> Self {
        Self {
            rng: Rng::new(0),
            rate: 0,
        }
    }
}

impl Losses {
    /// Those of a seed with this rate of flushes that fail.
    pub(crate) fn of(seed: u64, flush: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x10_55e5);
        let rate = match flush > 0 && rng.chance(250) {
            true => rng.between(1, 60),
            false => 0,
        };
        Self { rng, rate }
    }
}

/// The members of which an event tells that a flush has failed.
pub(crate) fn unflushed(event: &Event) -> MemberSet {
    match event {
        Event::Failed(_, failure) if failure.range.is_none() => failure.failed,
        Event::Flushed(_, failed, _) => *failed,
        _ => MemberSet::EMPTY,
    }
}

impl World {
    /// A flush of a member has failed.
    pub(crate) fn note_unflushed(&mut self, id: MemberId) {
        self.log(format!("{id:?} has lost what was not flushed"));
        let disk = self.disk(id);
        let written = disk.image.written();
        disk.unflushed.get_or_insert(written);
    }

    /// Whether a flush of a member that began at `written` fails for what has failed before, or for a write that is lost.
    pub(crate) fn tells(&self, id: MemberId, written: u64) -> bool {
        let disk = &self.disks[id.index()];
        let covered = |block: &usize| disk.image.last_write(*block).is_none_or(|n| n <= written);
        disk.unflushed.is_some() || disk.lost.keys().any(covered)
    }

    /// What a copy reads of a member: a write that is lost is not shown any more. An application that read it as well would
    /// see an older value; that is between it and the disk.
    pub(crate) fn get_for_copy(&mut self, id: MemberId, block: usize) -> Value {
        let disk = &self.disks[id.index()];
        let (shown, versions) = (disk.image.get(block), disk.image.versions(block, &[]));
        let now = (versions.len(), versions[0].0);
        let leaving = self.has_been_flushed_to_leave(id);
        let known = disk.lost.get(&block) == Some(&now);
        let losses = &mut self.ops.losses;
        if !known && (self.quiet || now.0 < 2 || losses.rate == 0) {
            return shown;
        }
        // Few steps read who is leaving.
        let often = if leaving { LEAVING } else { 1 };
        if !known && !losses.rng.chance(losses.rate * often) {
            return shown;
        }
        self.mark(match leaving {
            true => "a copy reads what a leaver has lost",
            false => "a copy reads what has lost a write",
        });
        self.log(format!(
            "a copy reads {} in block {block} of {id:?}, which is lost",
            now.1
        ));
        self.disk(id).lost.insert(block, now);
        now.1
    }

    /// Whether a member leaves, or will behind the flush that has just ended well.
    fn has_been_flushed_to_leave(&self, id: MemberId) -> bool {
        let asked = |asker: &Asker| match asker {
            Asker::Command(asked) => asked.word == "detach" && asked.member == Some(id),
            _ => false,
        };
        let flushed = || {
            let under_way = self.flushes.iter().filter(|flush| flush.ended.is_none());
            let mut under_way = under_way.flat_map(|flush| &flush.covers);
            under_way.all(|(member, _)| *member != id)
        };
        matches!(self.state(id), MemberState::Leaving(_))
            || self.tickets.values().any(asked) && flushed()
    }

    /// A disk that has lost a write takes its time to say so.
    pub(crate) fn is_slow_to_tell(&mut self, flush: usize) -> bool {
        if self.flushes[flush].ended.is_some() {
            return false;
        }
        let mut asked = self.flushes[flush].covers.iter();
        let lost = asked.any(|(id, _)| !self.disks[id.index()].lost.is_empty());
        lost && !self.quiet && self.ops.losses.rng.chance(SLOW)
    }

    /// The set hears late of a flush that has ended, in a world with losses.
    pub(crate) fn is_told_late(&mut self) -> bool {
        let losses = &mut self.ops.losses;
        !self.quiet && losses.rate > 0 && losses.rng.chance(LATE)
    }

    /// I5: nothing of what the image of a member that has left shows is to be lost.
    pub(crate) fn check_stable(&self, id: MemberId) -> Checked {
        let disk = &self.disks[id.index()];
        let lost = disk
            .leaves
            .iter()
            .find(|(block, left)| disk.image.get(*block) != *left);
        ensure!(
            lost.is_none(),
            "I5: {id:?} has left with a cache that shows what it has lost: {lost:?}"
        );
        Ok(())
    }

    /// Whether a member that is still to be flushed has lost a write of the block, and the set has not heard of that.
    pub(crate) fn has_lost(&self, block: usize) -> bool {
        let leaving = |id: &MemberId| matches!(self.state(*id), MemberState::Leaving(_));
        let asked = self.set.writers().or(self.ids().filter(leaving).collect());
        let lost = |id: MemberId| self.disks[id.index()].lost.contains_key(&block);
        asked.iter().any(lost)
    }

    /// Whether a request sees what a member of its View has lost, or has been merged by it: that too is between the application
    /// and the disk.
    pub(crate) fn shows_lost(&self, at: usize, block: usize, value: Value) -> bool {
        let view = self.requests[at].view.as_ref();
        let lost = |id: MemberId| {
            let left = self.disks[id.index()].lost.get(&block);
            left.is_some_and(|(_, left)| *left == value)
        };
        view.is_some_and(|view| view.writers().iter().any(lost))
    }

    /// It is settled who leaves. Who does not loses what was not flushed, or it was on the disk all the same; of the others
    /// see [`Self::lose_closed`].
    pub(crate) fn settle_unflushed(&mut self, failed: MemberSet) {
        let everywhere = std::mem::take(&mut self.ops.flush_lost);
        if everywhere {
            self.ops.lost_before = self.views.last_key_value().map(|(epoch, _)| *epoch);
        }
        let leaving = |id: &MemberId| matches!(self.state(*id), MemberState::Leaving(_));
        let stays = self
            .set
            .writers()
            .or(failed.iter().filter(leaving).collect());
        for id in failed.and(stays).iter() {
            let disk = self.disk(id);
            // Nobody was judged by a flush from before it has come back: the next one tells.
            if !everywhere && !disk.lost.is_empty() {
                continue;
            }
            disk.lost.clear();
            let written = disk.unflushed.take();
            if let Some(written) = written.filter(|_| everywhere && self.rng.chance(700)) {
                self.lose_some(id, written, true);
            }
        }
    }

    /// No source could be flushed, of which programs are told. Who has been filled may take over, with what it has read of
    /// them.
    pub(crate) fn tell_lost(&mut self, failed: MemberSet) {
        if failed.is_empty() || !self.sources().without(failed).is_empty() {
            return;
        }
        for id in failed.iter() {
            for (block, (_, value)) in self.disks[id.index()].lost.clone() {
                self.oracle.lost(block, &[value], self.now);
                self.unmerged[block].push(value);
            }
        }
    }

    /// The image of a member that was expelled is let go of, and nobody reads it any more.
    pub(crate) fn lose_closed(&mut self, id: MemberId) {
        let disk = self.disk(id);
        let all = disk.image.written();
        let lost = (!disk.lost.is_empty()).then_some(all);
        disk.lost.clear();
        if let Some(written) = disk.unflushed.take().or(lost) {
            self.lose_some(id, written, false);
        }
    }

    fn lose_some(&mut self, id: MemberId, written: u64, everywhere: bool) {
        let image = &self.disks[id.index()].image;
        let target = matches!(self.state(id), MemberState::Target { .. });
        for (block, values) in image.unflushed(written) {
            // What is being written now was not there when the flush began.
            let busy = self.oracle.is_written(block) || target && self.inside[block] > 0;
            if busy || self.rng.chance(500) {
                continue;
            }
            let value: Value = values[self.rng.place(values.len())];
            self.mark("a failed flush has lost a write");
            self.log(format!(
                "lost on m{}: block {block} is {value}",
                id.index() + 1
            ));
            match self.state(id) {
                // Its flush to come has nothing left to write: only then the cache shows what the disk has.
                MemberState::Leaving(_) => self.disk(id).leaves.push((block, value)),
                _ => self.disk(id).image.lose(block, written, value),
            }
            if everywhere {
                let now = self.now;
                self.oracle.lost(block, &values, now);
                self.unmerged[block].extend(values);
            }
        }
    }
}
