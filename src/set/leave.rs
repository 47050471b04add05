//! Departures: detach, cancel, expel. Every one starts its bitmap from the write-intent bitmap (I1).
//!
//! A detach is: flush everything, cut (publish a View without the member), wait until the
//! requests of older epochs are done, flush again, let go. The cut is the point in time that the image
//! holds (I5); applications are never held.

use super::bitmap::{OwnedBitmap, WriteBitmap};
use super::copy::OpId;
use super::event::{Answer, BitmapChange, Effect, Notice, Ticket};
use super::member::{
    BitmapId, BitmapTag, Departed, Held, MemberId, MemberSet, MemberState, Phase, Policy, Returns,
};
use super::operation::OpState;
use super::pending::Pending;
use super::record::{BitmapKind, HomeChange};
use super::refusal::{Code, Refusal};
use super::shadow::{Purpose, ShadowSet};

impl ShadowSet {
    pub(super) fn detach(&mut self, ticket: Ticket, member: MemberId, policy: Policy) {
        let number = ticket.number();
        self.pending = Some(Pending::Detach {
            ticket,
            member,
            policy,
        });
        self.flush(self.writers(), Purpose::BeforeCut(number));
    }

    /// Whether a member may be detached now; the causes that OpenVMS reports as one (SRCMEM) differ.
    pub(super) fn may_detach(&self, name: &str, policy: Policy) -> Result<MemberId, Refusal> {
        let id = self.find(name)?;
        let refuse = |code, text: String| Err(Refusal::new(code, text).at(name));
        let out = Code::AlreadyDetached;
        match &self.members[id.index()].state {
            MemberState::Source => {}
            MemberState::Target { kind, op, .. } if kind.is_merge() => {
                let text = format!("{name} is being merged by operation {op}");
                let hint = "wait for the merge; expel takes it out at once";
                return Err(Refusal::new(Code::MergePending, text)
                    .at(name)
                    .with_hint(hint));
            }
            MemberState::Target { kind, op, .. } => {
                let text = format!("{name} is the target of {} operation {op}", kind.name());
                let hint = format!("wait for it, or cancel it: cancel {op}");
                return Err(Refusal::new(Code::IsCopyTarget, text)
                    .at(name)
                    .with_hint(hint));
            }
            MemberState::Leaving(_) => return Err(Refusal::still_leaving(name).at(name)),
            MemberState::Detached(_) => return refuse(out, format!("{name} is detached already")),
            MemberState::Expelled(_) => return refuse(out, format!("{name} was expelled")),
            MemberState::Missing(_) | MemberState::Vacant => {
                return refuse(out, format!("{name} is missing"));
            }
        }
        if self.sources.clone().remove(id).is_err() {
            return refuse(
                Code::LastSource,
                format!("{name} is the only source member"),
            );
        }
        if let (Policy::Minicopy, Err(why)) = (policy, &self.home) {
            return Err(why.clone().at(name));
        }
        if policy == Policy::Minicopy && self.merge_pending() {
            let text =
                format!("a merge is pending, so {name} cannot have a bitmap that is complete");
            return refuse(Code::MergePending, text);
        }
        Ok(id)
    }

    fn merge_pending(&self) -> bool {
        self.members.iter().any(|m| m.state.is_merging())
    }

    /// Everything is flushed: the member leaves with the next View.
    pub(super) fn cut(&mut self, number: u64, lost: bool) {
        let (member, policy) = match &self.pending {
            Some(Pending::Detach {
                ticket,
                member,
                policy,
            }) if ticket.number() == number => (*member, *policy),
            _ => return,
        };
        if lost {
            let text = "no source member could be flushed";
            return self.answer_pending(Err(Refusal::new(Code::Io, text)));
        }
        let name = self.members[member.index()].name.clone();
        // The flush may have expelled somebody.
        if let Err(refusal) = self.may_detach(&name, policy) {
            return self.answer_pending(Err(refusal));
        }
        // A command may do without one, an expulsion does not.
        let without = policy == Policy::MinicopyOptional && self.merge_pending();
        let policy = match self.home {
            Ok(()) if !without => policy,
            _ => Policy::Full,
        };
        let departed = self.depart(member, policy, false);
        self.enter(member, MemberState::Leaving(departed), "");
        self.advance();
        // What was written up to the cut is flushed behind it, and then not in the way of the new bitmap.
        match self.old_intents.is_empty() {
            true => self.rotate(),
            false => self.publish(),
        }
        self.settle_departures();
    }

    /// Takes a member out of the sources or out of its copy; the next View must be published.
    ///
    /// `suspect` says that an error of its medium is the cause.
    pub(super) fn depart(&mut self, id: MemberId, policy: Policy, suspect: bool) -> Departed {
        let was = self.members[id.index()].state.name();
        // Until its own block says that it has left.
        let kind = match suspect {
            true => BitmapKind::Suspect,
            #[cfg(debug_assertions)]
            false if super::planted::is(super::planted::Mistake::ToldAtCut) => BitmapKind::Departed,
            false => BitmapKind::Untold,
        };
        let (held, tag) = match self.take_state(id) {
            MemberState::Source => {
                let removed = self.sources.remove(id);
                assert!(removed.is_ok(), "I2: the last source leaves");
                match policy != Policy::Full {
                    true => {
                        let (map, tag) = self.new_bitmap(id, policy, kind);
                        self.tell_bitmap(tag.id, id, BitmapChange::Started(policy));
                        (Held::Here(map), Some(tag))
                    }
                    false => (Held::Nothing, None),
                }
            }
            MemberState::Target { op, phase, .. } => {
                let map = phase.stale().id();
                let had = self.operation_tag(op);
                let mut tag = had.unwrap_or(self.tag_of(map, policy));
                // What a copy without a bitmap has left to do becomes one.
                let new = BitmapChange::Started(policy);
                let change = had.map_or(new, |_| BitmapChange::Returned(op));
                self.tell_bitmap(tag.id, id, change);
                // Its block has the generation of today, not that of its first departure.
                tag.generation = self.generation.number();
                self.describe(id, tag, kind);
                (self.stop(op, phase), Some(tag))
            }
            other => unreachable_state(&other),
        };
        assert!(
            !self.writers().contains(id),
            "who departs is written no more"
        );
        let mut seeds: Vec<_> = self.old_intents.iter().map(|o| o.map.clone()).collect();
        seeds.push(self.intent.clone());
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::NoSeed) {
            seeds.clear();
        }
        Departed {
            held,
            tag,
            seeds,
            covers: Some(self.geometry.size()),
            was,
            closed: false,
            suspect,
            ..Departed::without_bitmap(self.epoch)
        }
    }

    fn new_bitmap(
        &mut self,
        id: MemberId,
        policy: Policy,
        kind: BitmapKind,
    ) -> (OwnedBitmap, BitmapTag) {
        let owner = self.members[id.index()].uuid;
        let map = OwnedBitmap::new(WriteBitmap::empty(self.geometry).named(self.new_id()));
        let tag = self.keep(&map.marks(), kind, owner, policy);
        (map, tag)
    }

    fn stop(&mut self, op: OpId, phase: Phase) -> Held {
        match phase {
            Phase::Joining(work) | Phase::Queued(work) | Phase::Finishing(work) => {
                Held::Here(work.into_bitmap())
            }
            Phase::Running(map) => {
                self.push(Effect::StopCopy(op));
                Held::WithCopier(map)
            }
        }
    }

    /// Goes on with departures whose last epoch is over.
    pub(super) fn settle_departures(&mut self) {
        for id in self.ids() {
            let state = &self.members[id.index()].state;
            let Some(until) = state.departed().map(|d| d.until) else {
                continue;
            };
            if !self.is_over(until) {
                continue;
            }
            if matches!(state, MemberState::Leaving(_)) {
                self.settle_leaving(id);
            } else if let Some(departed) = self.members[id.index()].state.departed_mut() {
                let absorbed = departed.absorb_seeds();
                // Nothing writes it any more, so what it looks like now is what it was left as.
                let closed = std::mem::replace(&mut departed.closed, true);
                absorbed
                    .into_iter()
                    .for_each(|change| self.push_home(change));
                if !closed {
                    self.push(Effect::Close(id));
                }
            }
        }
    }

    fn settle_leaving(&mut self, id: MemberId) {
        let leaves = |(_, p): &(_, Purpose)| matches!(p, Purpose::Leave(m) if *m == id);
        let asked = self.flushes.values().any(leaves);
        let state = &self.members[id.index()].state;
        let stopping = state.departed().is_some_and(Departed::is_with_copier);
        if !asked && !stopping {
            #[cfg(debug_assertions)]
            if super::planted::is(super::planted::Mistake::LeaveWithoutFlush) {
                return self.left(id, MemberSet::EMPTY, MemberSet::EMPTY);
            }
            let members = self.writers().or([id].into_iter().collect());
            self.flush(members, Purpose::Leave(id));
        }
    }

    /// The member and all others are flushed behind the cut: its image is stable (I5).
    pub(super) fn left(&mut self, id: MemberId, failed: MemberSet, media: MemberSet) {
        if failed.contains(id) && self.members[id.index()].state.is_leaving() {
            // Nobody is blamed when a flush fails everywhere, but this image is not stable.
            self.expel(id, "a flush failed", media.contains(id));
            self.advance();
            self.publish();
            return self.settle_departures();
        }
        let MemberState::Leaving(mut departed) = self.take_checked(id, MemberState::is_leaving)
        else {
            return;
        };
        let until = departed.until;
        let flushed = failed.is_empty() && !self.may_lose_more();
        if flushed {
            departed.seeds.clear();
        }
        for change in departed.absorb_seeds() {
            self.push_home(change);
        }
        assert!(departed.seeds.is_empty(), "I1: no seed is left behind");
        assert!(!departed.is_with_copier(), "I5: its copier still runs");
        (departed.closed, departed.told) = (true, true);
        let tag = departed.tag;
        let set_bits = departed.marks().map_or(0, |map| map.count());
        let reason = match self.members[id.index()].reason.as_str() {
            "" => "detached by command".to_owned(),
            reason => reason.to_owned(),
        };
        self.enter(id, MemberState::Detached(departed), reason);
        if flushed {
            self.forget_intents(until);
        }
        let to = [id].into_iter().collect();
        self.push(Effect::Persist {
            generation: self.generation,
            clean: true,
            to,
        });
        // Not before: should a stop or a crash cut this short, the next mount takes its block for what it is.
        tag.into_iter()
            .for_each(|tag| self.describe(id, tag, BitmapKind::Departed));
        self.push(Effect::Close(id));
        let bitmap = tag.map(|tag| tag.id);
        self.push(Effect::Notice(Notice::Detached { member: id, bitmap }));
        if self.is_pending_about(id) {
            let name = &self.members[id.index()].name;
            let mut answer = departure(name, tag, set_bits);
            answer.facts.extend(self.smaller_than(id));
            self.answer_pending(Ok(answer));
        }
        self.start_copies();
    }

    pub(super) fn is_pending_about(&self, id: MemberId) -> bool {
        let about = |p: &Pending| p.member() == Some(id);
        self.pending.as_ref().is_some_and(about)
    }

    fn take_checked(&mut self, id: MemberId, is: fn(&MemberState) -> bool) -> MemberState {
        match is(&self.members[id.index()].state) {
            true => self.take_state(id),
            false => MemberState::Vacant,
        }
    }

    pub(super) fn answer_pending(&mut self, answer: Result<Answer, Refusal>) {
        if let Some(pending) = self.pending.take() {
            self.push(Effect::Reply(pending.into_ticket(), answer));
        }
    }

    /// Takes a member out because of an error, of its medium when it is `suspect`; all its later writes set
    /// bits instead.
    pub(super) fn expel(&mut self, id: MemberId, reason: &str, suspect: bool) {
        let state = &self.members[id.index()].state;
        let op = state.operation();
        // Who is merged is read where it is equal.
        if op.is_none() || state.is_merging() {
            self.distrust();
        }
        let mut departed = match self.take_checked(id, MemberState::is_leaving) {
            MemberState::Leaving(departed) => self.suspected(id, departed, suspect),
            _ => self.depart(id, Policy::MinicopyOptional, suspect),
        };
        departed.called = true;
        departed.returns = match suspect {
            true => Returns::Never,
            false => Returns::IfWanted,
        };
        self.silent.remove(id);
        self.push(Effect::GiveUp(id));
        if let Some(op) = op {
            self.end_operation(op, OpState::Failed);
        }
        self.members[id.index()].errors += 1;
        self.enter(id, MemberState::Expelled(departed), reason);
        let notice = Notice::Expelled {
            member: id,
            reason: reason.to_owned(),
        };
        self.push(Effect::Notice(notice));
        if self.is_pending_about(id) {
            let name = &self.members[id.index()].name;
            let text = format!("{name} was expelled: {reason}");
            self.answer_pending(Err(Refusal::new(Code::Io, text)));
        }
    }

    /// A member that was leaving in good order has failed.
    fn suspected(&mut self, id: MemberId, mut departed: Departed, suspect: bool) -> Departed {
        departed.suspect |= suspect;
        if let (true, Some(tag)) = (suspect, departed.tag) {
            self.describe(id, tag, BitmapKind::Suspect);
        }
        departed
    }

    pub(super) fn expel_command(&mut self, ticket: Ticket, id: MemberId) {
        self.expel(id, "expelled by command", false);
        self.returns(id, Returns::Never);
        self.advance();
        self.publish();
        self.settle_departures();
        let text = format!("{} is expelled", self.members[id.index()].name);
        self.accept(
            ticket,
            Answer {
                text,
                facts: Vec::new(),
            },
        );
    }

    /// Whether a member may be expelled now.
    pub(super) fn may_expel(&self, name: &str) -> Result<MemberId, Refusal> {
        let id = self.find(name)?;
        match &self.members[id.index()].state {
            MemberState::Source if self.sources.clone().remove(id).is_err() => {
                let text = format!("{name} is the only source member");
                Err(Refusal::new(Code::LastSource, text).at(name))
            }
            MemberState::Source | MemberState::Target { .. } => Ok(id),
            MemberState::Leaving(_) => Err(Refusal::still_leaving(name).at(name)),
            state => {
                let text = format!("{name} is {} already", state.name());
                Err(Refusal::new(Code::AlreadyDetached, text).at(name))
            }
        }
    }

    /// Whether an operation may be cancelled now; gives its target.
    pub(super) fn may_cancel(&self, op: OpId) -> Result<MemberId, Refusal> {
        let Some(id) = self.target_of_running(op) else {
            return Err(self.not_running(op));
        };
        if self.members[id.index()].state.is_merging() {
            let text = format!("operation {op} is a merge, and a merge has to end");
            let hint = "it may be held: pause it";
            return Err(Refusal::new(Code::MergePending, text).with_hint(hint));
        }
        Ok(id)
    }

    pub(super) fn cancel(&mut self, ticket: Ticket, id: MemberId, op: OpId) {
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::CancelEarly) {
            self.withdraw(id, op, OpState::Cancelled, "its copy was cancelled");
            return self.accept(ticket, Answer::default());
        }
        self.pending = Some(Pending::Cancel { ticket, member: id });
        self.withdraw(id, op, OpState::Cancelled, "its copy was cancelled");
    }

    /// Ends a copy in good order: its target leaves as in a detach, with what is left to copy.
    pub(super) fn withdraw(&mut self, id: MemberId, op: OpId, end: OpState, reason: &str) {
        let departed = self.depart(id, Policy::MinicopyOptional, false);
        self.end_operation(op, end);
        self.enter(id, MemberState::Leaving(departed), reason);
        // A detach that waits for its first flush asked for a whole image, and this is none (I5).
        if matches!(self.pending, Some(Pending::Detach { member, .. }) if member == id) {
            let name = &self.members[id.index()].name;
            let text = format!("{name} leaves because its merge failed: {reason}");
            self.answer_pending(Err(Refusal::new(Code::Io, text)));
        }
        self.advance();
        self.publish();
        self.settle_departures();
    }

    /// Whether a bitmap may be deleted: no copy uses it. Gives its member.
    pub(super) fn may_delete(&self, bitmap: BitmapId) -> Result<MemberId, Refusal> {
        let refuse = |code, text| Err(Refusal::new(code, text).at(bitmap.to_string()));
        let departed = |id: &MemberId| self.members[id.index()].state.departed();
        let owns = |d: &Departed| d.tag.is_some_and(|tag| tag.id == bitmap);
        let owner = self.ids().find(|id| departed(id).is_some_and(owns));
        let here = |id: &MemberId| departed(id).is_some_and(|d| matches!(d.held, Held::Here(_)));
        match owner {
            Some(owner) if here(&owner) => Ok(owner),
            None if !self.bitmap_in_use(bitmap) => {
                refuse(Code::NoSuchBitmap, format!("no bitmap {bitmap}"))
            }
            _ => refuse(Code::InUse, format!("bitmap {bitmap} is used by a copy")),
        }
    }

    pub(super) fn delete_bitmap(&mut self, ticket: Ticket, owner: MemberId, id: BitmapId) {
        if let Some(departed) = self.members[owner.index()].state.departed_mut() {
            (departed.held, departed.tag) = (Held::Nothing, None);
            departed.seeds.clear();
        }
        // First: writes of the next View do not set its bits.
        self.push_home(HomeChange::Forget(id));
        self.publish();
        self.tell_bitmap(id, owner, BitmapChange::Deleted("by command"));
        let text = format!("bitmap {id} is deleted; its member needs a full copy");
        self.accept(
            ticket,
            Answer {
                text,
                facts: Vec::new(),
            },
        );
    }

    fn bitmap_in_use(&self, id: BitmapId) -> bool {
        self.operations
            .iter()
            .any(|op| !op.state.is_over() && op.tag().is_some_and(|t| t.id == id))
    }

    /// A command that waited too long, or for a unit that is being stopped.
    pub(super) fn give_up(&mut self, pending: Pending) {
        let attaching = matches!(pending, Pending::Attach { .. });
        if matches!(pending, Pending::Stall { .. }) {
            return self.give_up_stall(pending);
        }
        if let Pending::EndVerify { ticket, op } = pending {
            return self.give_up_end(ticket, op);
        }
        let Some(member) = pending.member() else {
            return self.give_up_growth(pending);
        };
        let ticket = pending.into_ticket();
        let name = self.members[member.index()].name.clone();
        let text = match &self.members[member.index()].state {
            // Behind the cut only a minicopy brings the member back.
            MemberState::Leaving(d) if matches!(d.held, Held::Here(_)) => {
                format!("{name} did not become stable in time; a minicopy brings it back")
            }
            MemberState::Leaving(_) => {
                format!("{name} is leaving, and will be detached when its last requests have ended")
            }
            _ => format!("{name}: the members did not answer in time"),
        };
        if self.closing {
            let refusal = Refusal::new(Code::StateChanged, "the unit is being stopped");
            return self.refuse(ticket, refusal);
        }
        self.take_back(member, attaching);
        self.refuse(ticket, Refusal::new(Code::TimedOut, text));
    }

    /// Undoes what a command that timed out had begun.
    fn take_back(&mut self, id: MemberId, attaching: bool) {
        match self.take_state(id) {
            MemberState::Leaving(mut departed) if matches!(departed.held, Held::Here(_)) => {
                self.distrust();
                for change in departed.absorb_seeds() {
                    self.push_home(change);
                }
                self.rejoin(id, departed);
                self.advance();
                self.publish();
            }
            MemberState::Target {
                op,
                kind,
                phase: phase @ Phase::Joining(_),
            } if attaching => {
                self.members[id.index()].state = MemberState::Target { op, kind, phase };
                self.withdraw(id, op, OpState::Cancelled, "its attach timed out");
            }
            state => self.members[id.index()].state = state,
        }
    }
}

impl MemberState {
    pub(super) fn is_leaving(&self) -> bool {
        matches!(self, Self::Leaving(_))
    }

    /// The operation that fills the member.
    pub(super) fn operation(&self) -> Option<OpId> {
        match self {
            Self::Target { op, .. } => Some(*op),
            _ => None,
        }
    }
}

fn unreachable_state(state: &MemberState) -> ! {
    unreachable!("I2: a member that takes no part departs: {}", state.name())
}

/// What a command is told when its member has left.
fn departure(name: &str, bitmap: Option<BitmapTag>, set_bits: u64) -> Answer {
    let Some(bitmap) = bitmap else {
        let text = format!("{name} is detached without a bitmap");
        return Answer {
            text,
            facts: Vec::new(),
        };
    };
    let text = format!("{name} is detached with bitmap {}", bitmap.id);
    let facts = vec![
        ("bitmap", bitmap.id.to_string()),
        ("generation", bitmap.generation.to_string()),
        ("set_bits", set_bits.to_string()),
    ];
    Answer { text, facts }
}
