//! A flush that fails loses what it was for: the caches may show it for a while, and the disk never gets it (fsync(2)).
//! The server forgets the caches when it is settled who leaves. Up to then each later flush of the member fails as well.

use shadowset::set::{Event, MemberId, MemberSet, MemberState};
use shadowset::testing::memory::Value;

use crate::world::World;

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
        let disk = self.disk(id);
        let written = disk.image.written();
        disk.unflushed.get_or_insert(written);
    }

    /// It is settled who leaves. Who does not loses what was not flushed, or it was on the disk all the same; of the others
    /// see [`Self::lose_closed`].
    pub(crate) fn settle_unflushed(&mut self, failed: MemberSet) {
        let everywhere = std::mem::take(&mut self.ops.flush_lost);
        if everywhere {
            self.ops.lost_before = self.views.last_key_value().map(|(epoch, _)| *epoch);
        }
        for id in failed.and(self.set.writers()).iter() {
            let written = self.disk(id).unflushed.take();
            if let Some(written) = written.filter(|_| everywhere && self.rng.chance(700)) {
                self.lose_some(id, written, true);
            }
        }
    }

    /// The image of a member that was expelled is let go of, and nobody reads it any more.
    pub(crate) fn lose_closed(&mut self, id: MemberId) {
        if let Some(written) = self.disk(id).unflushed.take() {
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
            self.disk(id).image.lose(block, written, value);
            if everywhere {
                let now = self.now;
                self.oracle.lost(block, &values, now);
                self.unmerged[block].extend(values);
            }
        }
    }
}
