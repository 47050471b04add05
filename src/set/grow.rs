//! Growth: the unit becomes larger while applications go on (I7).
//!
//! All bitmaps cover the unit, so all of them change at one instant, between two epochs and with no writer
//! between: changes wait at the gate until the requests of the epochs before are over. What lies behind
//! the old end was never part of the unit. There sources may differ, and are merged; a member that has
//! left lacks everything, but for zeros where the unit has zeros (see [`ShadowSet::uncovered`]).

use std::sync::Arc;

use super::bitmap::{OwnedBitmap, WriteBitmap};
use super::copy::CopyKind;
use super::event::{Answer, Attach, Effect, Notice, Ticket};
use super::geometry::{BLOCK_BYTES, Bytes, Geometry, Regions};
use super::member::{Held, Member, MemberId, MemberSet, MemberState};
use super::pending::Pending;
use super::record::{BitmapKind, BitmapRecord, HomeChange};
use super::refusal::{Code, Refusal};
use super::shadow::{Purpose, ShadowSet};

/// How far a resize is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum GrowthStage {
    /// Everything is being flushed: a member that hangs is found before anything has changed.
    Flushing,
    /// The shell prepares a home for larger bitmaps.
    Preparing,
    /// Changes are held; the requests of older epochs are awaited. These members have zeros behind the end.
    Retiring(MemberSet),
}

impl ShadowSet {
    pub(super) fn resize(
        &mut self,
        ticket: Ticket,
        geometry: Geometry,
        room: &[(MemberId, Bytes)],
    ) {
        for (id, room) in room {
            let member = &mut self.members[id.index()];
            member.size = member.size.max(*room);
        }
        let number = ticket.number();
        self.pending = Some(Pending::Resize {
            ticket,
            geometry,
            stage: GrowthStage::Flushing,
        });
        self.flush(self.writers(), Purpose::BeforeGrowth(number));
    }

    /// What the unit would be with this size, or with all that its members have room for: what `room` says
    /// of them, at least what is known.
    pub(super) fn may_grow(
        &self,
        size: Option<Bytes>,
        room: &[(MemberId, Bytes)],
    ) -> Result<Geometry, Refusal> {
        self.check_at_rest()?;
        let unit = self.geometry.size();
        let has = |id: MemberId| {
            let found = room.iter().filter(|(member, _)| *member == id);
            let known = self.members[id.index()].size;
            found.fold(known, |most, (_, room)| most.max(*room))
        };
        let sources = self.sources.all();
        let Some((smallest, has)) = sources.iter().map(|id| (id, has(id))).min_by_key(|s| s.1)
        else {
            return Err(Refusal::new(Code::LastSource, "no source member"));
        };
        let smallest = &self.members[smallest.index()].name;
        let room = has.0 - has.0 % BLOCK_BYTES;
        let to = size.unwrap_or(Bytes(room.max(unit.0)));
        let refuse = |code, text: String| Err(Refusal::new(code, text).at(to.to_string()));
        if to < unit {
            let text =
                format!("the unit has {unit} bytes, and does not shrink to {to} while mounted");
            return refuse(Code::OutOfRange, text);
        }
        let geometry = self.geometry.resized(to).map_err(|error| {
            Refusal::new(Code::OutOfRange, error.to_string()).at(to.to_string())
        })?;
        if to.0 > room {
            let text = format!("{smallest} has {has} bytes, the unit would have {to}");
            let hint = "enlarge its image first, or take the member out";
            return Err(Refusal::new(Code::MemberTooSmall, text)
                .at(to.to_string())
                .with_hint(hint));
        }
        if to == unit {
            let text = match size {
                Some(_) => format!("the unit has {unit} bytes already"),
                None => {
                    format!("the unit has {unit} bytes, and {smallest} has room for no more")
                }
            };
            let hint = "enlarge the images of the members, then give a size or none";
            return Err(Refusal::new(Code::StateChanged, text).with_hint(hint));
        }
        Ok(geometry)
    }

    /// Refuses to grow while a member is being filled or is leaving.
    fn check_at_rest(&self) -> Result<(), Refusal> {
        for Member { name, state, .. } in &self.members {
            let refusal = match state {
                MemberState::Target { op, kind, .. } if kind.is_merge() => {
                    let text = format!("{name} is being merged by operation {op}");
                    Refusal::new(Code::MergePending, text).with_hint("wait for the merge")
                }
                MemberState::Target { op, kind, .. } => {
                    let text = format!("{name} is the target of {} operation {op}", kind.name());
                    let hint = format!("wait for it, or cancel it: cancel {op}");
                    Refusal::new(Code::InUse, text).with_hint(hint)
                }
                MemberState::Leaving(_) => Refusal::still_leaving(name),
                state => match state.departed().map(|d| &d.held) {
                    Some(Held::WithCopier(_)) => Refusal::still_leaving(name),
                    _ => continue,
                },
            };
            return Err(refusal);
        }
        Ok(())
    }

    pub(super) fn growth_answer(&self, says: &str, from: Geometry, to: Geometry) -> Answer {
        let (from, to) = (from.size(), to.size());
        let mut facts = vec![("size", to.to_string()), ("before", from.to_string())];
        let away = self.members.iter().filter(|m| m.state.departed().is_some());
        let small: Vec<&str> = away
            .filter(|m| m.size < to)
            .map(|m| m.name.as_str())
            .collect();
        let mut text = format!("{says} {to} bytes");
        if !small.is_empty() {
            let names = small.join(", ");
            text = format!("{text}; too small to come back: {names}");
            facts.push(("too_small", small.join(" ")));
        }
        Answer { text, facts }
    }

    /// The stage of the pending resize with this number, or of any.
    fn growth(&self, number: Option<u64>) -> Option<(Geometry, GrowthStage)> {
        match &self.pending {
            Some(Pending::Resize {
                ticket,
                geometry,
                stage,
            }) if number.is_none_or(|n| ticket.number() == n) => Some((*geometry, *stage)),
            _ => None,
        }
    }

    fn enter_stage(&mut self, to: GrowthStage) {
        if let Some(Pending::Resize { stage, .. }) = &mut self.pending {
            *stage = to;
        }
    }

    /// Everything is flushed: the shell prepares what the larger unit needs.
    pub(super) fn prepare_growth(&mut self, number: u64, lost: bool) {
        let Some((geometry, GrowthStage::Flushing)) = self.growth(Some(number)) else {
            return;
        };
        let lost = lost.then(|| Refusal::new(Code::Io, "no source member could be flushed"));
        // The flush may have expelled somebody.
        let refused = lost.or_else(|| self.may_grow(Some(geometry.size()), &[]).err());
        if let Some(refusal) = refused {
            return self.answer_pending(Err(refusal));
        }
        self.enter_stage(GrowthStage::Preparing);
        self.push(Effect::PrepareGrowth(number, geometry));
    }

    /// Holds changes and waits for those under way.
    pub(super) fn growth_ready(&mut self, number: u64, ready: Result<MemberSet, Refusal>) {
        let Some((geometry, GrowthStage::Preparing)) = self.growth(Some(number)) else {
            // It was given up meanwhile. What was prepared is dropped, unless another resize holds changes by now.
            if self.growth(None).is_none() {
                self.push(Effect::Lift);
            }
            return;
        };
        let may = self.may_grow(Some(geometry.size()), &[]);
        match ready.and_then(|blank| may.map(|_| blank)) {
            Err(refusal) => self.abandon_growth(refusal),
            Ok(blank) => {
                self.enter_stage(GrowthStage::Retiring(blank));
                self.push(Effect::Hold);
                self.publish();
                self.settle_growth();
            }
        }
    }

    fn abandon_growth(&mut self, refusal: Refusal) {
        self.push(Effect::Lift);
        self.answer_pending(Err(refusal));
    }

    /// A resize that has waited too long, or of a unit that is being stopped.
    pub(super) fn give_up_growth(&mut self, pending: Pending) {
        self.push(Effect::Lift);
        let refusal = match self.closing {
            true => Refusal::new(Code::StateChanged, "the unit is being stopped"),
            false => Refusal::new(Code::TimedOut, "the members did not answer in time"),
        };
        self.refuse(pending.into_ticket(), refusal);
    }

    /// Grows once no request of an older epoch is left: nobody writes now.
    pub(super) fn settle_growth(&mut self) {
        let Some((geometry, GrowthStage::Retiring(blank))) = self.growth(None) else {
            return;
        };
        let older = super::view::Epoch(self.epoch.0.saturating_sub(1));
        if !self.is_over(older) {
            return;
        }
        if let Err(refusal) = self.may_grow(Some(geometry.size()), &[]) {
            return self.abandon_growth(refusal);
        }
        let from = self.geometry;
        self.grow(geometry, blank);
        self.push(Effect::Lift);
        let to = geometry.size();
        let notice = Notice::Resized {
            from: from.size(),
            to,
        };
        self.push(Effect::Notice(notice));
        let answer = self.growth_answer("the unit has", from, geometry);
        self.answer_pending(Ok(answer));
    }

    fn grow(&mut self, geometry: Geometry, blank: MemberSet) {
        let tail = geometry.behind(self.geometry.size());
        self.geometry = geometry;
        self.push(Effect::Home(HomeChange::Renew(geometry)));
        self.grow_intent();
        let zeros = blank.contains(self.sources.master());
        for id in self.ids() {
            self.grow_departed(id, tail.filter(|_| !zeros));
        }
        let equal = self.sources.all().without(blank).is_empty();
        #[cfg(debug_assertions)]
        let equal = equal || super::planted::is(super::planted::Mistake::TailUnmerged);
        if !equal {
            let map = WriteBitmap::empty(geometry);
            tail.into_iter().for_each(|tail| {
                map.mark(tail);
            });
            let mut others = self.sources.all();
            others.remove(self.sources.master());
            let why = "the unit has grown";
            for id in others.iter() {
                self.make_merging(id, &map, CopyKind::Minimerge, why);
            }
        }
        self.advance();
        self.publish();
        self.settle_joins();
    }

    /// One intent for all that is not flushed yet.
    fn grow_intent(&mut self) {
        let fresh = self.fresh_intent();
        for old in std::mem::take(&mut self.old_intents) {
            fresh.absorb(&old.map);
        }
        fresh.absorb(&self.intent);
        self.intent = fresh;
        let record = self.intent_record(BitmapKind::Intent);
        self.push_home(HomeChange::Add(record, Arc::clone(&self.intent)));
    }

    /// A larger bitmap for a member that has left, with the bits of the one before and of its seeds.
    fn grow_departed(&mut self, id: MemberId, stale: Option<Regions>) {
        let (geometry, member) = (self.geometry, &mut self.members[id.index()]);
        let owner = member.uuid;
        let Some(departed) = member.state.departed_mut() else {
            return;
        };
        let seeds = std::mem::take(&mut departed.seeds);
        let (Held::Here(map), Some(tag)) = (&departed.held, departed.tag) else {
            return;
        };
        let map = map.grown(geometry);
        seeds.iter().for_each(|seed| map.absorb(seed));
        stale.into_iter().for_each(|tail| {
            map.mark(tail);
        });
        let map = OwnedBitmap::new(map);
        let marks = map.marks();
        departed.held = Held::Here(map);
        let kind = departed.kept_as();
        let record = BitmapRecord { tag, kind, owner };
        self.push_home(HomeChange::Add(record, marks));
    }

    /// A warning where a smaller member keeps the unit from growing: the bitmap of the larger one, which has
    /// left first, does not cover what the unit would gain without it.
    pub(super) fn smaller_than(&self, id: MemberId) -> Option<(&'static str, String)> {
        let member = &self.members[id.index()];
        member.state.departed()?.tag?;
        let sources = self
            .sources
            .all()
            .iter()
            .map(|id| &self.members[id.index()]);
        let smallest = sources.min_by_key(|m| m.size)?;
        let text = format!(
            "{} is smaller; when it is to be taken out as well and the unit to grow, take it out first",
            smallest.name
        );
        (smallest.size < member.size).then_some(("warning", text))
    }

    /// The regions that a departed member's bitmap does not cover: behind the end that the unit had when it
    /// left, where the bitmap tells only what was written since. That is enough where the unit began with
    /// zeros, as its bitmap was made to say, and the image has zeros still; else all of them are stale.
    pub(super) fn uncovered(&self, id: MemberId, attach: &Attach) -> Option<Regions> {
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::TailTrusted) {
            return None;
        }
        let behind = self.geometry.behind(self.coverage(id, attach));
        behind.filter(|_| !attach.blank_tail)
    }

    /// What the own block of a member says of the unit: of one that has left what its bitmap covers, the unit as it was then.
    /// `held` is what its block has said up to now.
    #[must_use]
    pub fn geometry_of(&self, id: MemberId, held: Option<Bytes>) -> Geometry {
        let departed = self.members[id.index()].state.departed();
        let left = departed.and_then(|d| d.covers.or(held));
        #[cfg(debug_assertions)]
        let left = left.filter(|_| !super::planted::is(super::planted::Mistake::LeaverGrows));
        let then = left.and_then(|size| self.geometry.resized(size).ok());
        then.unwrap_or(self.geometry)
    }

    /// The end of the unit when a member left that comes back: by its own block, or as this mount knows.
    pub(super) fn coverage(&self, id: MemberId, attach: &Attach) -> Bytes {
        let departed = self.members[id.index()].state.departed();
        let known = departed.and_then(|d| d.covers);
        let said = attach.said.map(|said| said.unit);
        known.into_iter().chain(said).min().unwrap_or_default()
    }

    /// Makes stale what the bitmap of a member that comes back does not cover, durably (I1).
    pub(super) fn mark_uncovered(&mut self, id: MemberId, attach: &Attach) {
        let Some(tail) = self.uncovered(id, attach) else {
            return;
        };
        let departed = self.members[id.index()].state.departed();
        let Some(map) = departed.and_then(super::member::Departed::marks) else {
            return;
        };
        let bits = WriteBitmap::empty(self.geometry);
        bits.mark(tail);
        map.absorb(&bits);
        self.push_home(HomeChange::Absorb(map.id(), Arc::new(bits)));
    }
}

/// Bytes and runs of what a bitmap says, and of what it does not cover.
pub(super) fn extent_of(map: &OwnedBitmap, uncovered: Option<Regions>) -> (u64, u64) {
    let Some(tail) = uncovered else {
        return (map.stale_bytes(), map.runs().count() as u64);
    };
    #[cfg(debug_assertions)]
    if super::planted::is(super::planted::Mistake::DryRunMarks) {
        map.marks().mark(tail);
    }
    let whole = map.snapshot();
    whole.mark(tail);
    (whole.stale_bytes(), whole.runs().count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::assess::Start;
    use crate::set::event::{Command, Event};
    use crate::set::member::Moment;
    use crate::set::tests::{UNIT, beginning, begun, member};

    /// A set of one source at rest, whose image is twice as large as the unit.
    fn set() -> ShadowSet {
        begun(beginning(), vec![(member(0, 2 * UNIT), Start::Source)])
    }

    /// Gives a resize and ends its flush: the shell prepares it.
    fn resize(set: &mut ShadowSet, number: u64) {
        let command = Command::Resize {
            size: None,
            room: Vec::new(),
        };
        let effects = set.handle(Moment(0), Event::Command(Ticket::new(number), command));
        let flush = effects.iter().find_map(|effect| match effect {
            Effect::Flush(id, _) => Some(*id),
            _ => None,
        });
        let flush = flush.expect("a flush first");
        let effects = set.handle(
            Moment(0),
            Event::Flushed(flush, MemberSet::EMPTY, MemberSet::EMPTY),
        );
        let prepares = |e: &Effect| matches!(e, Effect::PrepareGrowth(n, _) if *n == number);
        assert!(effects.iter().any(prepares), "{effects:?}");
    }

    fn lifts(effects: &[Effect]) -> bool {
        effects.iter().any(|e| matches!(e, Effect::Lift))
    }

    #[test]
    fn a_preparation_that_comes_late_does_not_open_the_gate_of_the_next_resize() {
        let mut set = set();
        let ready = || Ok(MemberSet::EMPTY);
        resize(&mut set, 1);
        assert!(lifts(&set.handle(Moment(0), Event::TimedOut(1))));
        resize(&mut set, 2);
        let held = set.handle(Moment(0), Event::GrowthReady(2, ready()));
        assert!(held.iter().any(|e| matches!(e, Effect::Hold)), "{held:?}");
        let late = set.handle(Moment(0), Event::GrowthReady(1, ready()));
        assert!(!lifts(&late), "changes would pass while the unit grows");
        let older = super::super::view::Epoch(set.epoch.0 - 1);
        let grown = set.handle(Moment(0), Event::Retired(older));
        assert!(lifts(&grown), "{grown:?}");
        assert_eq!(set.geometry().size(), Bytes(2 * UNIT));
    }
}
