//! Epochs: publishing a membership, knowing when the one before is over, and the write-intent bitmaps
//! that rotate with them.
//!
//! Intent is never cleared bit by bit: each View has a bitmap of its own, which is dropped as a whole when
//! its epoch is over and its writes are flushed on every member.

use std::sync::Arc;

use super::bitmap::WriteBitmap;
use super::event::Effect;
use super::member::{MemberId, MemberState};
use super::shadow::{Purpose, ShadowSet};
use super::view::{Epoch, Role, Seat, View};

/// A write-intent bitmap whose epoch is over but whose writes are not flushed yet.
#[derive(Debug)]
pub(super) struct OldIntent {
    pub(super) map: Arc<WriteBitmap>,
    pub(super) until: Epoch,
}

impl ShadowSet {
    /// Publishes the membership as it is now, with a fresh write-intent bitmap.
    pub(super) fn publish(&mut self) {
        let fresh = Arc::new(WriteBitmap::empty(self.geometry));
        let old = std::mem::replace(&mut self.intent, fresh);
        if old.count() > 0 || self.live.contains(&self.epoch) {
            self.old_intents.push(OldIntent {
                map: old,
                until: self.epoch,
            });
        }
        assert!(
            self.live.iter().all(|e| *e <= self.epoch),
            "an epoch of the future"
        );
        self.epoch = self.epoch.next();
        let new = self.live.insert(self.epoch);
        assert!(new, "an epoch is published once");
        let seats = self.writers().iter().map(|id| self.seat_of(id)).collect();
        let marks = self
            .members
            .iter()
            .filter_map(|m| m.state.departed()?.marks())
            .collect();
        let view = View::new(self.epoch, seats, marks, Arc::clone(&self.intent));
        self.push(Effect::Publish(Box::new(view)));
    }

    fn seat_of(&self, id: MemberId) -> Seat {
        let member = &self.members[id.index()];
        let role = match &member.state {
            MemberState::Target { kind, phase, .. } if kind.is_merge() => {
                Role::Merging(phase.stale())
            }
            MemberState::Target { .. } => Role::CopyTarget,
            _ => Role::Source,
        };
        Seat {
            id,
            role,
            read_cost: member.read_cost,
        }
    }

    /// Whether no request of this epoch or an older one is left.
    pub(super) fn is_over(&self, epoch: Epoch) -> bool {
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::NoRetirement) {
            return true;
        }
        self.live.first().is_none_or(|oldest| *oldest > epoch)
    }

    pub(super) fn retired(&mut self, epoch: Epoch) {
        assert!(
            epoch < self.epoch || self.closing,
            "the current View has retired"
        );
        let was_live = self.live.remove(&epoch);
        assert!(was_live, "an epoch retires once");
        self.settle_departures();
        self.settle_joins();
        self.trim_intents();
    }

    pub(super) fn tick(&mut self) {
        if self.intent.count() > 0 && self.old_intents.is_empty() && self.pending.is_none() {
            self.publish();
        }
        self.trim_intents();
    }

    /// Flushes the writes of past epochs, so that their intent can be forgotten.
    fn trim_intents(&mut self) {
        let trimming = |p: &Purpose| matches!(p, Purpose::Trim(_));
        let busy = self.flushes.values().any(trimming);
        let over = self
            .old_intents
            .iter()
            .map(|o| o.until)
            .filter(|e| self.is_over(*e))
            .max();
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::TrimWithoutFlush) {
            return self.old_intents.retain(|old| Some(old.until) > over);
        }
        if let Some(through) = over.filter(|_| !busy && !self.closing) {
            self.flush(self.writers(), Purpose::Trim(through));
        }
    }
}
