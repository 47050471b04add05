//! The beginning: from what an election decided and what outlived the last mount to a set that runs.
//!
//! Who is no master starts with what its own bitmap has and what may have been in flight: the
//! write-intent bitmaps that were kept. They are kept on until everything is flushed, since an end of
//! the process leaves writes that only the page cache has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::assess::Start;
use super::bitmap::{OwnedBitmap, WriteBitmap};
use super::copy::CopyKind;
use super::epochs::{OldIntent, Pace};
use super::event::{BitmapChange, Effect};
use super::geometry::Geometry;
use super::limits::Limits;
use super::member::{
    BitmapId, BitmapTag, Departed, Held, Member, MemberId, MemberSet, MemberState, Moment, Policy,
    Sources,
};
use super::record::{BitmapKind, BitmapRecord, HomeChange};
use super::refusal::{Code, Refusal};
use super::scb::Generation;
use super::shadow::ShadowSet;
use super::view::Epoch;

/// How many starts that were cut short are remembered besides the one that was found, until another gets further. There
/// may be many in a row, and each bitmap takes memory.
const STARTS_SPARED: usize = 3;

/// Bitmaps that were kept over the last mount.
#[derive(Debug)]
pub enum Past {
    /// All of them, as they were durable: a record, and the bits that it names.
    Known(Vec<(BitmapRecord, WriteBitmap)>),
    /// None that can be believed; why, in words.
    Unknown(String),
}

/// What a set begins with.
#[derive(Debug)]
pub struct Beginning {
    /// Unit size and region size.
    pub geometry: Geometry,
    /// The newest generation that was found.
    pub generation: Generation,
    /// Whether the newest generation may have got no further than some blocks.
    pub unproven: bool,
    /// Whether the set was stopped in order.
    pub clean: bool,
    /// Mark in the lineage of the mount before, which wrote that generation.
    pub last_mark: u64,
    /// Mark of this mount in the lineage.
    pub mark: u64,
    /// What is wanted of bitmaps for members that are absent.
    pub absent: Policy,
    /// The bitmaps.
    pub past: Past,
    /// Why bitmaps cannot be kept, when they should be and cannot.
    pub home: Result<(), Refusal>,
    /// What the operator has limited.
    pub limits: Limits,
    /// The time, for people.
    pub now: Moment,
}

/// The bitmaps of the past, by what they are for.
struct Legacy {
    /// Why they are not known, if so.
    lost: Option<Arc<str>>,
    intents: Vec<(BitmapRecord, WriteBitmap)>,
    owned: Vec<(BitmapRecord, WriteBitmap)>,
    /// Where members may differ that were equal but for what was in flight; `None`: nowhere.
    doubt: Option<Arc<WriteBitmap>>,
    /// Bitmaps that are needless once those that take their place are kept.
    spent: Vec<BitmapId>,
    /// Whether the newest generation may have got no further than some blocks.
    unproven: bool,
}

impl Legacy {
    fn of(past: Past, (clean, unproven): (bool, bool), geometry: Geometry) -> Self {
        let named = |(record, map): (BitmapRecord, WriteBitmap)| (record, map.named(record.tag.id));
        let (lost, all): (_, Vec<_>) = match past {
            // Marks go by the number: without one they would be durable nowhere (I3).
            Past::Known(all) => (None, all.into_iter().map(named).collect()),
            Past::Unknown(why) => (Some(why.into()), Vec::new()),
        };
        let known = lost.is_none();
        let is_intent =
            |r: &BitmapRecord| matches!(r.kind, BitmapKind::Intent | BitmapKind::Opening);
        let (intents, owned): (Vec<_>, Vec<_>) = all.into_iter().partition(|(r, _)| is_intent(r));
        let doubt = match known || clean {
            true => WriteBitmap::empty(geometry),
            false => WriteBitmap::full(geometry),
        };
        intents.iter().for_each(|(_, map)| doubt.absorb(map));
        #[cfg(debug_assertions)]
        let none = super::planted::is(super::planted::Mistake::NoMergeAtMount);
        #[cfg(not(debug_assertions))]
        let none = false;
        let doubt = (doubt.count() > 0 && !none).then(|| Arc::new(doubt));
        Self {
            lost,
            intents,
            owned,
            doubt,
            spent: Vec::new(),
            unproven,
        }
    }

    fn is_known(&self) -> bool {
        self.lost.is_none()
    }

    /// A master that was still to be merged, since no better one is there: where it was stale, the others may
    /// differ from it, and what was copied there may not be flushed.
    fn doubt_of_master(&mut self, owner: Uuid, set: &mut ShadowSet) {
        let Some((record, map)) = self.take(owner, set) else {
            return;
        };
        let doubt = WriteBitmap::empty(set.geometry);
        self.doubt.iter().for_each(|known| doubt.absorb(known));
        doubt.absorb(&map);
        self.doubt = (doubt.count() > 0).then(|| Arc::new(doubt));
        self.spent.push(record.tag.id);
    }

    /// All bitmaps of one member in one, the others to be forgotten. The newest tells what the member left
    /// with: a crash may have come before the one that it replaces was forgotten.
    fn take(&mut self, owner: Uuid, set: &mut ShadowSet) -> Option<(BitmapRecord, WriteBitmap)> {
        let (mut mine, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.owned)
            .into_iter()
            .partition(|(r, _)| r.owner == owner);
        self.owned = rest;
        mine.sort_by_key(|(r, _)| std::cmp::Reverse((r.tag.generation, r.tag.id)));
        let mut mine = mine.into_iter();
        let first = mine.next()?;
        for (record, map) in mine {
            let map = Arc::new(map);
            first.1.absorb(&map);
            set.push_home(HomeChange::Absorb(first.0.tag.id, map));
            set.push_home(HomeChange::Forget(record.tag.id));
        }
        Some(first)
    }
}

impl ShadowSet {
    /// Assembles a set from its members; `begin` gives the first effects.
    ///
    /// # Errors
    /// [`Code::LastSource`] when no member starts as a source (I2).
    pub fn assemble(from: Beginning, members: Vec<(Member, Start)>) -> Result<Self, Refusal> {
        let is_source = |(_, start): &(Member, Start)| *start == Start::Source;
        let master = members.iter().position(is_source).and_then(MemberId::new);
        let master = master.ok_or_else(|| Refusal::new(Code::LastSource, "no source member"))?;
        let geometry = from.geometry;
        let mut legacy = Legacy::of(from.past, (from.clean, from.unproven), geometry);
        let ids = legacy.intents.iter().chain(&legacy.owned);
        let last_bitmap = ids.map(|(record, _)| record.tag.id.0).max().unwrap_or(0);
        let mut set = Self {
            geometry,
            generation: from.generation,
            members: Vec::new(),
            sources: Sources::new(master),
            epoch: Epoch(0),
            live: BTreeSet::new(),
            intent: Arc::new(WriteBitmap::empty(geometry)),
            mark: Uuid::from_u64_pair(0, from.mark),
            old_intents: Vec::new(),
            doubt: None,
            pace: Pace::new(),
            home: from.home,
            lost: None,
            flushes: BTreeMap::new(),
            joined: BTreeMap::new(),
            unquiet: MemberSet::EMPTY,
            pending: None,
            operations: Vec::new(),
            limits: from.limits,
            silent: MemberSet::EMPTY,
            aborted: false,
            stalled: false,
            closing: false,
            closed: false,
            now: from.now,
            effects: Vec::new(),
            needless: Vec::new(),
            last_op: 0,
            mount_op: 0,
            last_bitmap,
            last_flush: 0,
        };
        let owner = members[master.index()].0.uuid;
        legacy.doubt_of_master(owner, &mut set);
        set.inherit_intents(&mut legacy, (from.generation, from.last_mark));
        for (index, (member, start)) in members.into_iter().enumerate() {
            let id = MemberId::new(index)
                .ok_or_else(|| Refusal::new(Code::TooManyMembers, "more than six members"))?;
            set.members.push(member);
            set.seat(id, start, &mut legacy, from.absent);
        }
        let new = from.generation == Generation::FIRST;
        set.lost = legacy.lost.filter(|_| !new);
        set.forget_lost();
        let strays = legacy.owned.iter().map(|(record, _)| record.tag.id);
        set.needless = strays.chain(legacy.spent).collect();
        Ok(set)
    }

    /// The first effects: bitmaps, a new generation in the members' control blocks, the first View, copies.
    #[must_use]
    pub fn begin(&mut self) -> Vec<Effect> {
        self.intent = self.fresh_intent();
        self.generation = self.generation.next();
        let record = self.intent_record(BitmapKind::Opening);
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::ProofForgotten) {
            self.forget_needless();
        }
        self.push_home(HomeChange::Add(record, Arc::clone(&self.intent)));
        self.write_generation();
        // Not before: what proves the generation that was found has to be there if no block gets this one.
        self.forget_needless();
        self.publish();
        self.mount_op = self.last_op;
        // No request is older than the first View.
        self.settle_joins();
        self.trim_intents();
        self.check_invariants();
        std::mem::take(&mut self.effects)
    }

    fn forget_needless(&mut self) {
        for id in std::mem::take(&mut self.needless) {
            self.push_home(HomeChange::Forget(id));
        }
    }

    /// Goes on with the intents of the past, in one bitmap, until all members are flushed. The one that
    /// every member's block has got the generation of stays: it tells a member that was left behind by the
    /// crash from one that somebody has put back. Those of starts that were cut short stay until this one is
    /// further: only they know the newest generation, here or at a member that is absent. `last` is the one that was
    /// found, and the mark of its mount.
    fn inherit_intents(&mut self, legacy: &mut Legacy, last: (Generation, u64)) {
        // Of two starts that got to one generation the later one is more likely to be in a block.
        let rank = |r: &BitmapRecord| (r.kind == BitmapKind::Intent, r.tag.generation, r.tag.id);
        legacy
            .intents
            .sort_by_key(|(record, _)| std::cmp::Reverse(rank(record)));
        let mut all = std::mem::take(&mut legacy.intents).into_iter();
        let base = match all.next() {
            Some((_, map)) => {
                if let Some(doubt) = &legacy.doubt {
                    map.absorb(doubt);
                    self.push_home(HomeChange::Absorb(map.id(), Arc::clone(doubt)));
                }
                map
            }
            None => self.first_intent(legacy, last.1),
        };
        let newest = (last.0.number(), last.1);
        let mut spared = 0;
        for (record, _) in all {
            let (tag, (_, mark)) = (record.tag, record.owner.as_u64_pair());
            let spare = record.kind == BitmapKind::Opening && spared < STARTS_SPARED;
            spared += usize::from(spare);
            match spare || (tag.generation, mark) == newest {
                true => legacy.spent.push(tag.id),
                false => self.push_home(HomeChange::Forget(tag.id)),
            }
        }
        self.old_intents.push(OldIntent {
            map: Arc::new(base),
            until: Epoch(0),
        });
    }

    /// A bitmap for what may have been in flight when nothing of the past is known. Should this mount crash
    /// before everything is flushed, the next one has to know; and it has to know the generation that was
    /// found, when whoever has it is absent then.
    fn first_intent(&mut self, legacy: &Legacy, last_mark: u64) -> WriteBitmap {
        let map = WriteBitmap::empty(self.geometry).named(self.new_id());
        // All in one: a record that is believed must not come without its bits.
        legacy.doubt.iter().for_each(|doubt| map.absorb(doubt));
        let record = BitmapRecord {
            tag: self.tag_of(map.id(), Policy::default()),
            kind: BitmapKind::Intent,
            owner: Uuid::from_u64_pair(0, last_mark),
        };
        self.push_home(HomeChange::Add(record, Arc::new(map.snapshot())));
        map
    }

    /// Puts a member into its first state.
    fn seat(&mut self, id: MemberId, start: Start, legacy: &mut Legacy, absent: Policy) {
        let owner = self.members[id.index()].uuid;
        let own = legacy.take(owner, self);
        let known = own.as_ref().map(|(record, _)| record.tag.id);
        let state = match start {
            Start::Source => {
                self.sources.add(id);
                let spent = own.map(|(record, _)| record.tag.id);
                legacy.spent.extend(spent);
                MemberState::Source
            }
            Start::Merging => self.seat_merging(id, own, legacy, legacy.is_known()),
            Start::StillMerging => {
                let sure = own.is_some();
                self.seat_merging(id, own, legacy, sure)
            }
            Start::Copy { resume: true } => self.seat_copy(id, own, legacy),
            Start::Copy { resume: false } => {
                if let Some(useless) = known {
                    self.push_home(HomeChange::Forget(useless));
                }
                self.seat_copy(id, None, legacy)
            }
            Start::Detached => MemberState::Detached(self.seat_departed(owner, own, legacy)),
            Start::Expelled => MemberState::Expelled(self.seat_departed(owner, own, legacy)),
            Start::Released => {
                let useless = own.map(|(record, _)| record.tag.id);
                legacy.spent.extend(useless);
                let released = true;
                let departed = Departed::without_bitmap(Epoch(0));
                MemberState::Missing(Departed {
                    released,
                    ..departed
                })
            }
            Start::Missing { equal } => {
                MemberState::Missing(self.seat_missing(owner, own, legacy, (absent, equal)))
            }
        };
        let member = &mut self.members[id.index()];
        (member.state, member.since) = (state, self.now);
        // Who is missing gets its bitmap now.
        let away = matches!(start, Start::Detached | Start::Expelled);
        let lacks = |d: &&mut Departed| away && d.tag.is_none();
        if let Some(departed) = member.state.departed_mut().filter(lacks) {
            departed.lost.clone_from(&legacy.lost);
        }
        let bitmap = member.state.departed().and_then(|d| d.tag);
        if let Some(tag) = bitmap.filter(|tag| Some(tag.id) != known) {
            self.tell_bitmap(tag.id, id, BitmapChange::Started(tag.policy));
        }
    }

    /// A bitmap of the past with what may have been in flight, under its new record; or a new one.
    fn inherit(
        &mut self,
        own: Option<(BitmapRecord, WriteBitmap)>,
        legacy: &Legacy,
        (kind, owner, policy): (BitmapKind, Uuid, Policy),
    ) -> (OwnedBitmap, BitmapTag) {
        let Some((mut record, map)) = own else {
            let id = self.new_id();
            let map = WriteBitmap::empty(self.geometry).named(id);
            legacy.doubt.iter().for_each(|doubt| map.absorb(doubt));
            let map = OwnedBitmap::new(map);
            let tag = self.keep(&map.marks(), kind, owner, policy);
            return (map, tag);
        };
        if let Some(doubt) = &legacy.doubt {
            map.absorb(doubt);
            self.push_home(HomeChange::Absorb(map.id(), Arc::clone(doubt)));
        }
        if record.kind != kind {
            record.kind = kind;
            self.push_home(HomeChange::Describe(record));
        }
        (OwnedBitmap::new(map), record.tag)
    }

    /// A member that is equal to the master but for its own bitmap and what was in flight, if that is
    /// `sure`; else but for everything.
    fn seat_merging(
        &mut self,
        id: MemberId,
        own: Option<(BitmapRecord, WriteBitmap)>,
        legacy: &Legacy,
        sure: bool,
    ) -> MemberState {
        let whole = own
            .as_ref()
            .is_some_and(|(r, _)| r.kind == BitmapKind::Copying(CopyKind::Merge));
        if !sure || !legacy.is_known() {
            return self.new_target(id, CopyKind::Merge, WriteBitmap::full(self.geometry));
        }
        let kind = match whole {
            true => CopyKind::Merge,
            false => CopyKind::Minimerge,
        };
        let owner = self.members[id.index()].uuid;
        let what = (BitmapKind::Copying(kind), owner, Policy::default());
        let (map, _) = self.inherit(own, legacy, what);
        self.target_of(id, kind, map, None)
    }

    /// A member that was being filled goes on from what was left.
    fn seat_copy(
        &mut self,
        id: MemberId,
        own: Option<(BitmapRecord, WriteBitmap)>,
        legacy: &mut Legacy,
    ) -> MemberState {
        let Some((record, map)) = own else {
            return self.new_target(id, CopyKind::Full, WriteBitmap::full(self.geometry));
        };
        let kind = match record.kind {
            BitmapKind::Copying(kind) if kind.is_merge() => CopyKind::Mini,
            BitmapKind::Copying(kind) => kind,
            // It was leaving in the copy, and no block says so yet.
            BitmapKind::Departed | BitmapKind::Untold
                if record.tag.generation == self.generation.number() =>
            {
                CopyKind::Mini
            }
            // That of the copy could not be kept, and what the member left with does not tell what the copy was for.
            _ => {
                legacy.spent.push(record.tag.id);
                let all = WriteBitmap::full(self.geometry);
                return self.new_target(id, CopyKind::Compare, all);
            }
        };
        let what = (BitmapKind::Copying(kind), record.owner, record.tag.policy);
        let (map, tag) = self.inherit(Some((record, map)), legacy, what);
        let tag = (kind == CopyKind::Mini).then_some(tag);
        self.target_of(id, kind, map, tag)
    }

    fn seat_departed(
        &mut self,
        owner: Uuid,
        own: Option<(BitmapRecord, WriteBitmap)>,
        legacy: &Legacy,
    ) -> Departed {
        let mut departed = Departed::without_bitmap(Epoch(0));
        if let Some((record, map)) = own {
            let kind = match record.kind {
                kind @ (BitmapKind::Departed | BitmapKind::Suspect) => kind,
                // Also of one that was about to come back.
                _ => BitmapKind::Untold,
            };
            departed.suspect = kind == BitmapKind::Suspect;
            // Of the others whoever mounts tells what their own blocks say.
            departed.told = kind == BitmapKind::Departed;
            let what = (kind, owner, record.tag.policy);
            let (map, tag) = self.inherit(Some((record, map)), legacy, what);
            (departed.held, departed.tag) = (Held::Here(map), Some(tag));
        }
        departed
    }

    /// An absent member lacks what was in flight and what will be written: a bitmap tells both, if what was
    /// in flight is known.
    fn seat_missing(
        &mut self,
        owner: Uuid,
        own: Option<(BitmapRecord, WriteBitmap)>,
        legacy: &mut Legacy,
        (policy, equal): (Policy, bool),
    ) -> Departed {
        let certain = legacy.is_known() || legacy.doubt.is_none();
        let tells = own.is_some() || certain && equal;
        if !tells || policy == Policy::Full || self.home.is_err() {
            legacy.spent.extend(own.map(|(record, _)| record.tag.id));
            return Departed::without_bitmap(Epoch(0));
        }
        let suspect = own
            .as_ref()
            .is_some_and(|(r, _)| r.kind == BitmapKind::Suspect);
        let kind = match suspect {
            true => BitmapKind::Suspect,
            false => BitmapKind::Untold,
        };
        let (map, mut tag) = self.inherit(own, legacy, (kind, owner, policy));
        // Its block has the newest generation, or the one before when a crash came among the blocks.
        let newest = self.generation.number() - u64::from(legacy.unproven);
        if tag.generation != newest {
            tag.generation = newest;
            self.push_home(HomeChange::Describe(BitmapRecord { tag, kind, owner }));
        }
        let mut departed = Departed::without_bitmap(Epoch(0));
        departed.suspect = suspect;
        (departed.held, departed.tag) = (Held::Here(map), Some(tag));
        departed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::event::Event;
    use crate::set::geometry::Regions;
    use crate::set::tests as bed;

    fn member(place: usize) -> Member {
        bed::member(place - 1, bed::UNIT)
    }

    #[test]
    fn what_is_lost_is_named_while_somebody_lacks_it() {
        let lost = |generation: u64, second: Start| {
            let from = Beginning {
                generation: Generation::from_number(generation).expect("not zero"),
                past: Past::Unknown("why".to_owned()),
                ..bed::beginning()
            };
            let members = vec![(member(1), Start::Source), (member(2), second)];
            let set = ShadowSet::assemble(from, members).expect("there is a source");
            set.status().lost.is_some()
        };
        assert!(lost(9, Start::Detached) && lost(9, Start::StillMerging));
        let copy = Start::Copy { resume: true };
        assert!(lost(9, copy) && !lost(1, copy), "a new set had none");
        let missing = Start::Missing { equal: true };
        assert!(!lost(9, Start::Source) && !lost(9, missing));
    }

    /// A crash came between a new bitmap and the end of the one that it replaces.
    #[test]
    fn of_two_bitmaps_of_a_member_the_newest_tells_what_it_left_with() {
        let geometry = bed::geometry();
        let kept = |(id, generation, region): (u32, u64, u64)| {
            let tag = BitmapTag {
                id: BitmapId(id),
                policy: Policy::Minicopy,
                created: Moment(0),
                generation,
            };
            let record = BitmapRecord {
                tag,
                kind: BitmapKind::Departed,
                owner: Uuid::from_u128(2),
            };
            let map = WriteBitmap::empty(geometry).named(tag.id);
            map.mark(Regions::run(region, region + 1));
            (record, map)
        };
        for order in [[(7, 5, 3), (9, 8, 4)], [(9, 8, 4), (7, 5, 3)]] {
            let from = Beginning {
                generation: Generation::from_number(9).expect("not zero"),
                past: Past::Known(order.map(kept).into()),
                absent: Policy::Minicopy,
                ..bed::beginning()
            };
            let members = vec![(member(1), Start::Source), (member(2), Start::Detached)];
            let mut set = ShadowSet::assemble(from, members).expect("there is a source");
            let _ = set.begin();
            let departed = set.members()[1].state.departed().expect("it is away");
            let tag = departed.tag.expect("it has a bitmap");
            assert_eq!((tag.id.0, tag.generation), (9, 8), "{order:?}");
            let bits = departed.marks().expect("it has a bitmap");
            assert!(bits.covers(Regions::run(3, 5)), "all bits in one");
        }
    }

    /// Bits below the threshold stay; a beat never rotates.
    #[test]
    fn intent_is_rotated_at_a_tick_that_finds_more_than_the_threshold() {
        let from = Beginning {
            generation: Generation::from_number(1).expect("not zero"),
            past: Past::Unknown("why".to_owned()),
            limits: Limits {
                reset_blocks: 8,
                ..Limits::default()
            },
            ..bed::beginning()
        };
        let mut set =
            ShadowSet::assemble(from, vec![(member(1), Start::Source)]).expect("a source");
        let _ = set.begin();
        set.old_intents.clear();
        let mut rotates = |region: Option<u64>, event: Event| {
            if let Some(region) = region {
                set.intent.mark(Regions::run(region, region + 1));
            }
            let before = set.epoch;
            let _ = set.handle(Moment(0), event);
            set.epoch != before
        };
        assert!(!rotates(Some(0), Event::Tick), "one region of 8 blocks");
        assert!(!rotates(Some(1), Event::Beat), "a beat is no look");
        assert!(rotates(None, Event::Tick), "two regions");
    }
}
