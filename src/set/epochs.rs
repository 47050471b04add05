//! Epochs: publishing a membership, knowing when the one before is over, and the write-intent bitmaps.
//!
//! Intent is never cleared bit by bit: now and then it is rotated. A View with a fresh intent is
//! published, and the old one is dropped as a whole when the epochs that set its bits are over and
//! their writes are flushed on every member.

use std::sync::Arc;

use super::bitmap::WriteBitmap;
use super::copy::{MergeRest, OpId};
use super::event::{Effect, Notice};
use super::member::{BitmapId, BitmapTag, MemberId, MemberSet, MemberState, Phase, Policy};
use super::record::{BitmapKind, BitmapRecord, HomeChange};
use super::shadow::{Purpose, ShadowSet};
use super::view::{Epoch, Role, Seat, View};

/// Most ticks between two rotations of intent that finds its bits set again each time.
const PACE_MAX: u32 = 32;

/// A write-intent bitmap whose writes are not flushed yet.
#[derive(Debug)]
pub(super) struct OldIntent {
    pub(super) map: Arc<WriteBitmap>,
    pub(super) until: Epoch,
}

/// When intent is rotated. A set of regions that is written all the time would be marked anew after each
/// rotation, which costs commits and gains nothing: then the pause between rotations doubles.
#[derive(Debug)]
pub(super) struct Pace {
    pause: u32,
    ticks: u32,
    before: u64,
    /// No source could be flushed for the intents of the past: they wait for the next beat.
    rests: bool,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            pause: 1,
            ticks: 0,
            before: 0,
            rests: false,
        }
    }

    /// Whether this tick rotates an intent of `bits` bits.
    fn beat(&mut self, bits: u64) -> bool {
        self.ticks += 1;
        if self.ticks < self.pause {
            return false;
        }
        self.pause = match bits >= self.before / 2 && self.before > 0 {
            true => (self.pause * 2).min(PACE_MAX),
            false => 1,
        };
        (self.ticks, self.before) = (0, bits);
        bits > 0
    }
}

impl ShadowSet {
    /// Publishes the membership as it is now.
    pub(super) fn publish(&mut self) {
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

    /// Publishes the membership with a fresh write-intent bitmap.
    pub(super) fn rotate(&mut self) {
        let fresh = self.fresh_intent();
        let old = std::mem::replace(&mut self.intent, fresh);
        let marked = old.count();
        self.old_intents.push(OldIntent {
            map: old,
            until: self.epoch,
        });
        let record = self.intent_record(BitmapKind::Intent);
        self.push_home(HomeChange::Add(record, Arc::clone(&self.intent)));
        self.publish();
        self.push(Effect::Notice(Notice::IntentAnew(marked)));
    }

    pub(super) fn fresh_intent(&mut self) -> Arc<WriteBitmap> {
        let id = self.new_id();
        Arc::new(WriteBitmap::empty(self.geometry).named(id))
    }

    /// The proof of the generation: the record of the current intent, once every member's block has it.
    #[must_use]
    pub fn proof(&self) -> BitmapRecord {
        self.intent_record(BitmapKind::Intent)
    }

    /// The record of the current intent: the generation that every member's block has got by now.
    pub(super) fn intent_record(&self, kind: BitmapKind) -> BitmapRecord {
        BitmapRecord {
            tag: self.tag_of(self.intent.id(), Policy::default()),
            kind,
            owner: self.mark,
        }
    }

    pub(super) fn tag_of(&self, id: BitmapId, policy: Policy) -> BitmapTag {
        BitmapTag {
            id,
            policy,
            created: self.now,
            generation: self.generation.number(),
        }
    }

    fn seat_of(&self, id: MemberId) -> Seat {
        let member = &self.members[id.index()];
        let role = match &member.state {
            MemberState::Target { op, kind, phase } if kind.is_merge() => {
                let operation = self.operations.iter().find(|o| o.id == *op);
                let progress = operation.map(|o| Arc::clone(&o.progress));
                let (stale, doubt) = (phase.stale(), self.doubt_of(id).cloned());
                Role::Merging(MergeRest::new(stale, doubt, progress.unwrap_or_default()))
            }
            MemberState::Target { .. } => Role::CopyTarget,
            _ => Role::Source,
        };
        Seat {
            id,
            role,
            read_cost: member.read_cost,
            site: member.site,
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
        self.settle_doubt();
        self.settle_joins();
        self.settle_growth();
        self.settle_stall();
        self.trim_intents();
    }

    pub(super) fn tick(&mut self) {
        if self.old_intents.is_empty() && self.pending.is_none() && !self.closing {
            let bits = self.intent.count();
            let blocks = bits.saturating_mul(u64::from(self.geometry.region_blocks()));
            if blocks > self.limits.reset_blocks && self.pace.beat(bits) {
                self.rotate();
            }
        }
        self.beat();
    }

    /// Drives on what was begun: flushes for intents of the past and for what copies have drained.
    pub(super) fn beat(&mut self) {
        self.pace.rests = false;
        self.trim_intents();
        self.note_drained();
    }

    /// Flushes the writes of past epochs, so that their intent can be forgotten.
    pub(super) fn trim_intents(&mut self) {
        let trimming = |(_, p): &(_, Purpose)| matches!(p, Purpose::Trim(_));
        let busy = self.flushes.values().any(trimming);
        let over = self
            .old_intents
            .iter()
            .map(|o| o.until)
            .filter(|e| self.is_over(*e))
            .max();
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::TrimWithoutFlush) {
            return over
                .into_iter()
                .for_each(|through| self.forget_intents(through));
        }
        let waits = self.pace.rests || self.may_lose_more();
        if let Some(through) = over.filter(|_| !busy && !self.closing && !waits) {
            self.flush(self.writers(), Purpose::Trim(through));
        }
    }

    /// The writes of past epochs are flushed, or some member has failed. A last source whose every flush fails would be asked
    /// again at once, before each flush of a copy that is to take over from it.
    pub(super) fn trimmed(&mut self, through: Epoch, failed: MemberSet, lost: bool) {
        self.pace.rests |= lost;
        if failed.is_empty() {
            self.forget_intents(through);
        }
    }

    /// Drops the intents up to an epoch: their writes are flushed. One that is a seed of a departed member
    /// stays in that member's bitmap (I1).
    pub(super) fn forget_intents(&mut self, through: Epoch) {
        self.settle_departures();
        let (gone, kept) = std::mem::take(&mut self.old_intents)
            .into_iter()
            .partition(|old| old.until <= through);
        self.old_intents = kept;
        for old in gone {
            let is_seed = |m: &super::member::Member| {
                let seeds = m.state.departed().map(|d| &d.seeds);
                seeds.is_some_and(|seeds| seeds.iter().any(|s| s.id() == old.map.id()))
            };
            #[cfg(debug_assertions)]
            let unseen = super::planted::is(super::planted::Mistake::SeedForgotten);
            #[cfg(not(debug_assertions))]
            let unseen = false;
            match !unseen && self.members.iter().any(is_seed) {
                true => self.old_intents.insert(0, old),
                false => self.push_home(HomeChange::Forget(old.map.id())),
            }
        }
        self.old_intents.sort_by_key(|old| old.until);
    }

    /// Has the targets of running copies flushed, so that what they have drained is drained after a crash.
    fn note_drained(&mut self) {
        let noting = |(_, p): &(_, Purpose)| matches!(p, Purpose::Drained(..));
        if self.closing || self.doubt.is_some() || self.flushes.values().any(noting) {
            return;
        }
        let running = |id: MemberId| match &self.members[id.index()].state {
            MemberState::Target {
                op,
                phase: Phase::Running(stale),
                ..
            } => Some((id, *op, stale.snapshot())),
            _ => None,
        };
        let running: Vec<_> = self.ids().filter_map(running).collect();
        for (id, op, left) in running {
            #[cfg(debug_assertions)]
            if super::planted::is(super::planted::Mistake::DrainedWithoutFlush) {
                self.drained(op, left);
                continue;
            }
            self.flush(
                [id].into_iter().collect(),
                Purpose::Drained(op, Box::new(left)),
            );
        }
    }

    /// The target was flushed: what was not stale when the flush began is not stale durably either.
    pub(super) fn drained(&mut self, op: OpId, left: WriteBitmap) {
        let target = self
            .ids()
            .find_map(|id| match &self.members[id.index()].state {
                MemberState::Target { op: o, phase, .. } if *o == op => Some(phase.stale()),
                _ => None,
            });
        if let Some(stale) = target {
            // Nobody else marks the stale set of a member that is being filled.
            left.absorb(&stale);
            self.push_home(HomeChange::Retain(Arc::new(left)));
        }
    }

    /// Checks what must hold of the write-intent bitmaps after every event.
    pub(super) fn check_intents(&self) {
        assert_eq!(
            self.intent.geometry(),
            self.geometry,
            "I1: coverage of the intent"
        );
        let mut last = None;
        for old in &self.old_intents {
            assert_eq!(
                old.map.geometry(),
                self.geometry,
                "I1: coverage of an old intent"
            );
            assert!(
                last < Some(old.until),
                "intents are kept in the order of their epochs"
            );
            assert!(old.until < self.epoch, "the current intent is no old one");
            last = Some(old.until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ticks that rotate, of so many, when each finds these bits.
    fn rotations(pace: &mut Pace, ticks: u32, bits: u64) -> Vec<u32> {
        (1..=ticks).filter(|_| pace.beat(bits)).collect()
    }

    #[test]
    fn intent_that_is_marked_anew_each_time_is_rotated_less_and_less() {
        let mut pace = Pace::new();
        let often = [1, 2, 4, 8, 16, 32, 64, 96, 128];
        assert_eq!(rotations(&mut pace, 128, 10), often);
        // Half as many are as many.
        assert_eq!(rotations(&mut pace, 64, 5), [32, 64]);
        // Fewer are not: the writers have gone elsewhere.
        assert_eq!(rotations(&mut pace, 35, 1), [32, 33, 35]);
    }

    #[test]
    fn intent_without_a_bit_is_not_rotated() {
        let mut pace = Pace::new();
        assert!(rotations(&mut pace, 5, 0).is_empty());
        assert_eq!(
            rotations(&mut pace, 2, 1),
            [1, 2],
            "nor does it count as one"
        );
    }
}
