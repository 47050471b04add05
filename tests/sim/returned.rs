//! Members that have come back: nothing from before is held against them.

use std::collections::BTreeMap;

use shadowset::set::{Epoch, Event, FlushId, MemberId, MemberSet, MemberState};

use crate::world::{Checked, World, ensure};

/// Who has come back in which epoch, and the epochs of flushes.
#[derive(Debug, Default)]
pub(crate) struct Returned {
    joined: BTreeMap<MemberId, Epoch>,
    flushes: BTreeMap<FlushId, Epoch>,
}

impl World {
    fn newest(&self) -> Epoch {
        self.views.last_key_value().map_or(Epoch(0), |(e, _)| *e)
    }

    /// A member comes in: it takes part from the next epoch on.
    pub(crate) fn note_return(&mut self, id: MemberId) {
        let next = Epoch(self.newest().0 + 1);
        self.ops.returned.joined.insert(id, next);
    }

    pub(crate) fn note_flush(&mut self, id: FlushId) {
        let now = self.newest();
        self.ops.returned.flushes.insert(id, now);
    }

    /// A flush under way fails on a member whose calls are given up.
    pub(crate) fn give_up_flushes(&mut self, id: MemberId) {
        for flush in &mut self.flushes {
            flush.given_up.insert(id);
        }
    }

    /// Copy targets that an event says have failed, in an epoch before they came back.
    pub(crate) fn failed_before(&mut self, event: &Event) -> MemberSet {
        let (failed, epoch) = match event {
            Event::Failed(_, failure) => (failure.failed, Some(failure.epoch)),
            Event::Flushed(id, failed, _) => (*failed, self.ops.returned.flushes.remove(id)),
            _ => return MemberSet::EMPTY,
        };
        let joined = |id: &MemberId| self.ops.returned.joined.get(id).copied();
        let before = |id: &MemberId| joined(id) > epoch && epoch.is_some();
        let target = |id: &MemberId| matches!(self.state(*id), MemberState::Target { .. });
        failed.iter().filter(before).filter(target).collect()
    }

    pub(crate) fn check_returned(&mut self, back: MemberSet) -> Checked {
        for id in back.iter() {
            self.mark("a failure from before a return");
            let expelled = matches!(self.state(id), MemberState::Expelled(_));
            ensure!(
                !expelled,
                "{id:?} is expelled for what was before it came back"
            );
        }
        Ok(())
    }
}
