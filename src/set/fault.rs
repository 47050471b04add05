//! Faults: who leaves after a failed write, flush or read (I3, I10, I13).

use std::sync::Arc;

use super::bitmap::WriteBitmap;
use super::copy::CopyKind;
use super::event::{Effect, Failure, Notice, Ticket, Verdict};
use super::geometry::ByteRange;
use super::member::{Departed, MemberId, MemberSet, MemberState, Phase};
use super::record::HomeChange;
use super::refusal::Refusal;
use super::scb::Generation;
use super::shadow::{Purpose, ShadowSet, is_with_copier};
use super::view::Epoch;

/// Regions that members lack whose copy steps may clear their bits.
#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) map: Arc<WriteBitmap>,
    pub(super) members: MemberSet,
    /// What was being written then, and the requests of those epochs go on to mark.
    late: Vec<Arc<WriteBitmap>>,
    /// The last epoch of such steps.
    until: Epoch,
}

impl ShadowSet {
    /// A write or flush failed on some members. Its fence is held, so nothing else touches the range.
    pub(super) fn failed(&mut self, ticket: Ticket, failure: Failure) {
        let (good, failed) = (failure.good, failure.failed);
        assert!(!failed.is_empty(), "a failure on no member");
        assert!(
            good.and(failed).is_empty(),
            "a member cannot be good and failed"
        );
        if good.and(self.sources.all()).is_empty() {
            let answers: Vec<String> = failed
                .iter()
                .map(|id| format!("{}: {}", self.members[id.index()].name, failure.reason(id)))
                .collect();
            self.failed_everywhere(failure.range, (failed, failure.media), answers.join("; "));
            return self.push(Effect::Settle(ticket, Verdict::Fail));
        }
        let reason = |id| failure.reason(id);
        let judged = self.still_judged(failed, failure.epoch);
        if self.expel_all(judged, failure.media, reason) {
            #[cfg(debug_assertions)]
            let silent = super::planted::is(super::planted::Mistake::NoGeneration);
            #[cfg(not(debug_assertions))]
            let silent = false;
            if !silent {
                self.advance();
            }
            self.publish();
            self.settle_departures();
        }
        self.push(Effect::Settle(ticket, Verdict::Acknowledge));
    }

    /// A member that was away takes part from the next epoch on.
    pub(super) fn joins(&mut self, id: MemberId) {
        self.joined.insert(id, Epoch(self.epoch.0 + 1));
    }

    /// Those of members that have failed in an epoch which have not come back since.
    ///
    /// Who has come back was away: what it lacks of an older request is in its bitmap, by the write-intent bitmap of that
    /// epoch, and what it is flushed for is asked anew.
    pub(super) fn still_judged(&self, failed: MemberSet, epoch: Epoch) -> MemberSet {
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::ReturnedJudged) {
            return failed;
        }
        let back = |id: &MemberId| self.joined.get(id).is_some_and(|joined| *joined > epoch);
        failed.without(failed.iter().filter(back).collect())
    }

    /// A flush of the set's own failed on some members (I10: never retried).
    pub(super) fn flush_failed(&mut self, purpose: &Purpose, failed: MemberSet, media: MemberSet) {
        let failed = match purpose {
            Purpose::Promote(target) => self.rescue(*target, failed, media),
            _ => failed,
        };
        if failed.is_empty() {
            return;
        }
        if self.sources.all().without(failed).is_empty() {
            return self.failed_everywhere(None, (failed, media), "a flush failed".to_owned());
        }
        if self.expel_all(failed, media, |_| "a flush failed".to_owned()) {
            self.advance();
            self.publish();
            self.settle_departures();
        }
    }

    /// Judges the target of a copy that has ended by its own flush, where no source could be flushed: it may be all that
    /// is left of a unit whose last source is dying. Gives the others that have failed.
    fn rescue(&mut self, target: MemberId, failed: MemberSet, media: MemberSet) -> MemberSet {
        if failed.is_empty() || !self.sources.all().without(failed).is_empty() {
            return failed;
        }
        if !failed.contains(target) {
            // What has been written since is lost to those who have written it, whoever takes over (I10).
            self.promote(target);
            if self.sources.all().contains(target) {
                self.push(Effect::FlushLost);
            }
            return failed;
        }
        let only: MemberSet = [target].into_iter().collect();
        if self.expel_all(only, media, |_| "a flush failed".to_owned()) {
            self.advance();
            self.publish();
            self.settle_departures();
        }
        failed.without(only)
    }

    /// Expels those of `failed` that still take part, of which `media` are suspect; the caller has made sure
    /// that a source stays.
    fn expel_all(
        &mut self,
        failed: MemberSet,
        media: MemberSet,
        reason: impl Fn(MemberId) -> String,
    ) -> bool {
        let mut any = false;
        for id in failed.iter() {
            let state = &self.members[id.index()].state;
            if matches!(
                state,
                MemberState::Source | MemberState::Target { .. } | MemberState::Leaving(_)
            ) {
                self.expel(id, &reason(id), media.contains(id));
                any = true;
            }
        }
        any
    }

    /// No source has the write, or no source could be flushed: members may differ there, and none is
    /// to blame (I13).
    fn failed_everywhere(
        &mut self,
        range: Option<ByteRange>,
        (failed, media): (MemberSet, MemberSet),
        answers: String,
    ) {
        self.push(Effect::Notice(Notice::FailedEverywhere(answers)));
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::NoMerge) {
            return;
        }
        let doubt = Arc::new(self.doubt(range));
        // The fence of a write is held until here: no step that has read there is under way.
        let copying = match range {
            Some(_) => MemberSet::EMPTY,
            None => self.lacks_until_retired(&doubt),
        };
        self.lack(&doubt, self.ids().collect());
        let lost = range.is_none() && self.expel_leaving(failed, media);
        let mut others = self.sources.all();
        others.remove(self.sources.master());
        for id in others.iter() {
            let why = "a request failed on every source";
            self.make_merging(id, &doubt, CopyKind::Minimerge, why);
        }
        if lost || !others.is_empty() {
            self.advance();
        }
        if range.is_none() {
            // Behind the records, which take their time: sources that differ are read until the View is there.
            self.push(Effect::FlushLost);
        }
        if lost || !copying.is_empty() || !others.is_empty() {
            self.publish();
            self.settle_joins();
            self.settle_departures();
        }
        self.start_copies();
    }

    /// The images of members that are leaving are not stable (I5), though nobody else is to blame.
    fn expel_leaving(&mut self, failed: MemberSet, media: MemberSet) -> bool {
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::LeaverUnflushed) {
            return false;
        }
        let leaving = |id: &MemberId| self.members[id.index()].state.is_leaving();
        let leaving: MemberSet = failed.iter().filter(leaving).collect();
        self.expel_all(leaving, media, |_| "a flush failed".to_owned())
    }

    /// What a member that leaves in disorder was not flushed of may be lost, and copies and merges may have read that it is
    /// (fsync(2)): who they are for lacks it. No other copy has it from there, since none ends without a flush of all.
    pub(super) fn distrust(&mut self) {
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::SourceTrusted) {
            return;
        }
        let map = Arc::new(self.doubt(None));
        let copied = self.lacks_until_retired(&map);
        if let Some(doubt) = &mut self.doubt {
            // A write may have been on its way into an epoch that is over as soon as it has ended.
            let olds = self.old_intents.iter().map(|old| &old.map);
            for intent in olds.chain([&self.intent]) {
                if !doubt.late.iter().any(|late| Arc::ptr_eq(late, intent)) {
                    doubt.late.push(Arc::clone(intent));
                }
            }
        }
        self.lack(&map, copied);
    }

    /// Whether a member is leaving, and may have lost behind its cache what copies have read of it.
    ///
    /// Meanwhile no copy ends and no intent is forgotten, and who leaves beside it has what is not flushed in its bitmap. Nor is
    /// it flushed for the others: behind its own flush nothing may hold its image.
    pub(super) fn may_lose_more(&self) -> bool {
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::LeaverTrusted) {
            return false;
        }
        self.members.iter().any(|m| m.state.is_leaving())
    }

    /// Those of the members that are no sources may lack these regions, too.
    pub(super) fn lack(&mut self, doubt: &Arc<WriteBitmap>, members: MemberSet) {
        for id in members.iter() {
            let map = match &self.members[id.index()].state {
                MemberState::Target { phase, .. } => Some(phase.stale()),
                // It may have taken the write before it left, and lose its seeds after a flush.
                #[cfg(debug_assertions)]
                MemberState::Leaving(_)
                    if super::planted::is(super::planted::Mistake::LeavingForgotten) =>
                {
                    None
                }
                state => state.departed().and_then(Departed::marks),
            };
            if let Some(map) = map {
                map.absorb(doubt);
                self.push_home(HomeChange::Absorb(map.id(), Arc::clone(doubt)));
                self.drain_again(id);
            }
        }
    }

    /// Has members that are copied to lack regions once more when the requests of now have ended, and no copy end before:
    /// a step under way may have read what has changed since, and clears its bits at its end. With any of them another
    /// View is to be published.
    pub(super) fn lacks_until_retired(&mut self, map: &Arc<WriteBitmap>) -> MemberSet {
        let copied_to = |id: &MemberId| {
            let state = &self.members[id.index()].state;
            // A read of the unit may still merge who is leaving.
            let leaving = state.is_leaving() && state.name() != MemberState::Source.name();
            state.operation().is_some() || is_with_copier(state) || leaving
        };
        let members: MemberSet = self.ids().filter(copied_to).collect();
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::DoubtCleared) {
            return members;
        }
        match &mut self.doubt {
            _ if members.is_empty() => {}
            // A call that does not return may keep it for long, and each flush that fails adds to it.
            Some(doubt) => {
                doubt.map.absorb(map);
                doubt.members = doubt.members.or(members);
                doubt.until = self.epoch;
            }
            None => {
                let (map, until) = (Arc::clone(map), self.epoch);
                self.doubt = Some(Doubt {
                    map,
                    members,
                    late: Vec::new(),
                    until,
                });
            }
        }
        members
    }

    /// What a member may lack beside what its own bitmap says; no copy begins or ends until that has it.
    #[must_use]
    pub fn doubt_of(&self, id: MemberId) -> Option<&Arc<WriteBitmap>> {
        let doubt = self.doubt.as_ref();
        doubt.filter(|d| d.members.contains(id)).map(|d| &d.map)
    }

    /// Goes on with copies that a doubt holds up, once no step is under way that is older.
    pub(super) fn settle_doubt(&mut self) {
        let until = self.doubt.as_ref().map(|doubt| doubt.until);
        if until.is_some_and(|until| self.is_over(until)) {
            self.end_doubt();
            self.publish();
            self.start_copies();
        }
    }

    /// Nothing is under way that could clear the bits.
    pub(super) fn end_doubt(&mut self) {
        if let Some(doubt) = self.doubt.take() {
            doubt.late.iter().for_each(|late| doubt.map.absorb(late));
            self.lack(&doubt.map, doubt.members);
        }
    }

    /// Bits have come back to a target. A flush of it that is under way has nothing of what makes it equal there.
    fn drain_again(&mut self, id: MemberId) {
        match self.take_state(id) {
            MemberState::Target {
                op,
                kind,
                phase: Phase::Finishing(work),
            } => {
                let phase = Phase::Queued(work);
                self.members[id.index()].state = MemberState::Target { op, kind, phase };
            }
            state => self.members[id.index()].state = state,
        }
        let filled = self.members[id.index()].state.operation();
        for (_, purpose) in self.flushes.values_mut() {
            let ends = match purpose {
                Purpose::Promote(member) => *member == id,
                Purpose::Drained(op, _) => Some(*op) == filled,
                _ => false,
            };
            if ends {
                *purpose = Purpose::Nothing;
            }
        }
    }

    /// Where members may differ: the range of a write; after a flush everything not flushed yet.
    pub(super) fn doubt(&self, range: Option<ByteRange>) -> WriteBitmap {
        let map = WriteBitmap::empty(self.geometry);
        match range {
            Some(range) => {
                map.mark(self.geometry.regions_of(range));
            }
            None => {
                let olds = self.old_intents.iter().map(|old| &old.map);
                olds.chain([&self.intent])
                    .for_each(|intent| map.absorb(intent));
            }
        }
        map
    }

    /// Makes a source equal to the master again, where it may differ.
    pub(super) fn make_merging(
        &mut self,
        id: MemberId,
        doubt: &WriteBitmap,
        kind: CopyKind,
        why: &str,
    ) {
        assert_ne!(
            id,
            self.sources.master(),
            "I13: the master is what others are made equal to"
        );
        let removed = self.sources.remove(id);
        assert!(removed.is_ok(), "I2: the master stays");
        let map = WriteBitmap::empty(self.geometry);
        map.absorb(doubt);
        let state = self.new_target(id, kind, map);
        self.enter(id, state, why);
    }

    /// Blocks could not be written: who holds no record of the membership cannot stay in it (I3).
    pub(super) fn blocks_failed(&mut self, failed: &[(MemberId, Option<Generation>)]) {
        // At the end the next mount sees who was not marked clean.
        if self.closed {
            return;
        }
        let members: MemberSet = failed.iter().map(|(id, _)| *id).collect();
        let stays = !self.sources.all().without(members).is_empty();
        let reason = |_| "its storage control block could not be written".to_owned();
        let expelled = stays && self.expel_all(members, MemberSet::EMPTY, reason);
        for (id, held) in failed {
            self.has_block_of(*id, *held);
        }
        if expelled {
            self.advance();
            self.publish();
            self.settle_departures();
        }
    }

    /// The own block of a member that has left does not say so, and holds this generation.
    fn has_block_of(&mut self, id: MemberId, held: Option<Generation>) {
        let state = &mut self.members[id.index()].state;
        let before = held.map_or(self.generation.number() - 1, Generation::number);
        let Some(departed) = state.departed_mut() else {
            return;
        };
        departed.told = false;
        let Some(tag) = departed.tag.as_mut() else {
            return;
        };
        tag.generation = before;
        let tag = *tag;
        let kind = departed.kept_as();
        self.describe(id, tag, kind);
    }

    /// The own block of a member that has left says so at last.
    pub(super) fn told(&mut self, id: MemberId, generation: Generation) {
        let state = &mut self.members[id.index()].state;
        let expelled = matches!(state, MemberState::Expelled(_));
        #[cfg(debug_assertions)]
        let expelled = expelled && !super::planted::is(super::planted::Mistake::ExpelledUntold);
        if !expelled && !matches!(state, MemberState::Detached(_)) {
            return;
        }
        let later = |d: &&mut Departed| {
            let left = d.tag.map_or(0, |tag| tag.generation);
            !d.told && generation.number() > left
        };
        if let Some(departed) = state.departed_mut().filter(later) {
            departed.told = true;
            let (tag, kind) = (departed.tag, departed.kept_as());
            tag.into_iter().for_each(|tag| self.describe(id, tag, kind));
        }
    }

    /// Bitmaps can be kept no longer. They go on in memory; what is kept must not be believed by the next
    /// mount, and is not when the members are two generations ahead of it (`assess`).
    pub(super) fn home_lost(&mut self, why: Refusal) {
        // At the end what is kept may only be too much: what the last changes would have cleared.
        if self.home.is_err() || self.closed {
            return;
        }
        self.push(Effect::Notice(Notice::HomeLost(why.text.clone())));
        self.home = Err(why);
        self.generation = self.generation.next();
        self.advance();
    }

    pub(super) fn read_failed(&mut self, id: MemberId) {
        self.members[id.index()].errors += 1;
        self.push(Effect::Notice(Notice::ReadError(id)));
    }
}
