//! What the members' storage control blocks are known to hold: whether the membership is durable.
//!
//! Whoever writes the blocks asks here, before and behind. While a block of a member that takes part could not
//! be written nothing may say more than that block does: no block of somebody who has left (I14), and
//! no bitmap that proves a generation which a crash would leave behind (I3).

use super::member::{MemberId, MemberSet};
use super::record::{BitmapKind, BitmapRecord};
use super::scb::{Generation, ScbState};

/// The last generation that is durable, and whose block is not.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    durable: Generation,
    lacking: MemberSet,
}

impl Written {
    /// All members that take part hold this generation.
    #[must_use]
    pub fn new(durable: Generation) -> Self {
        Self {
            durable,
            lacking: MemberSet::EMPTY,
        }
    }

    /// Whether the membership of these writers is durable: none of them could say something else after a crash.
    #[must_use]
    pub fn is_durable(&self, writers: MemberSet) -> bool {
        self.lacking.and(writers).is_empty()
    }

    /// Whether these blocks may be written now: one of a member that has left must not be newer than those of
    /// the members that take part.
    #[must_use]
    pub fn may_write(&self, to: MemberSet, writers: MemberSet) -> bool {
        to.without(writers).is_empty() || self.is_durable(writers)
    }

    /// The order in which blocks are written, and of each whether it is a source's: who was a source before
    /// comes first, copy targets last, so that a crash in between leaves a source at the newest generation.
    /// When no source's block can be written the others are not written either. `state` gives the state that a
    /// block will hold, and the one that it held before.
    pub fn order(
        to: MemberSet,
        state: impl Fn(MemberId) -> (ScbState, Option<ScbState>),
    ) -> Vec<(MemberId, bool)> {
        let mut order: Vec<MemberId> = to.iter().collect();
        order.sort_by_key(|id| {
            let (now, before) = state(*id);
            (now != ScbState::Source, before != Some(ScbState::Source))
        });
        let source = |id: MemberId| (id, state(id).0 == ScbState::Source);
        order.into_iter().map(source).collect()
    }

    /// Blocks have been written, but for those of `failed`.
    pub fn note(
        &mut self,
        generation: Generation,
        to: MemberSet,
        failed: MemberSet,
        writers: MemberSet,
    ) {
        self.lacking = self.lacking.without(to).or(failed);
        if self.is_durable(writers) && writers.without(to).is_empty() {
            self.durable = generation;
        }
    }

    /// The record under which a bitmap may be kept now: write-intent proves a durable generation only.
    #[must_use]
    pub fn proven(&self, mut record: BitmapRecord, writers: MemberSet) -> BitmapRecord {
        if record.kind == BitmapKind::Intent && !self.is_durable(writers) {
            record.tag.generation = self.durable.number();
        }
        record
    }
}
