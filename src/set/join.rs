//! Joining: attach, the copies that fill members, and their promotion to sources.
//!
//! An attach publishes the member as a target first and waits until no request of an older epoch
//! is left; only then no write can set a bit of its bitmap behind the copier's back.

use super::bitmap::{OwnedBitmap, WriteBitmap};
use super::copy::{CopyKind, CopyWork, OpId};
use super::event::{
    Answer, Attach, AttachPolicy, BitmapChange, CopyEnd, Effect, Joiner, Notice, Ticket,
};
use super::grow::extent_of;
use super::member::{BitmapTag, Departed, Held, Member, MemberId, MemberState, Phase};
use super::operation::{OPERATIONS_KEPT, OpState, Task};
use super::pending::Pending;
use super::record::{BitmapKind, HomeChange};
use super::refusal::{Code, Refusal};
use super::route::READ_COST;
use super::shadow::{Purpose, ShadowSet};

/// What an attach would do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachPlan {
    /// What would fill the member.
    pub kind: CopyKind,
    /// Why, one sentence.
    pub reason: String,
    /// Bytes to copy.
    pub bytes: u64,
    /// Runs of regions to copy.
    pub extents: u64,
    /// The source that it should read, where one was named.
    pub source: Option<MemberId>,
}

impl AttachPlan {
    /// The plan as the answer of a dry run.
    pub(super) fn answer(&self, text: String, expected: &[(CopyKind, u64)]) -> Answer {
        let verdict = match self.kind {
            CopyKind::Mini => "minicopy",
            CopyKind::Compare => "compare",
            CopyKind::Full | CopyKind::Merge | CopyKind::Minimerge => "full",
        };
        let facts = vec![
            ("verdict", verdict.to_owned()),
            ("reason", self.reason.clone()),
            ("bytes", self.bytes.to_string()),
            ("extents", self.extents.to_string()),
            ("eta", eta_text(self.kind.eta(self.bytes, expected))),
        ];
        Answer { text, facts }
    }
}

/// Seconds to go, as answers show them.
pub(super) fn eta_text(eta: Option<u64>) -> String {
    eta.map_or_else(|| "-".to_owned(), |eta| eta.to_string())
}

/// The refusal of a member whose image may still be written by calls that nobody waits for.
#[must_use]
pub fn calls_are_out(member: &str) -> Refusal {
    let text = format!("calls of the image of {member} have not returned yet");
    let hint = "it can come back when its image has answered them";
    Refusal::new(Code::InUse, text).with_hint(hint)
}

impl ShadowSet {
    pub(super) fn attach(&mut self, ticket: Ticket, attach: Attach, plan: AttachPlan) {
        let (id, candidate) = (self.joiner(&attach), attach.candidate);
        self.members[id.index()].size = attach.size;
        if plan.kind == CopyKind::Mini {
            self.mark_uncovered(id, &attach);
        }
        let (map, tag) = match self.take_state(id) {
            MemberState::Detached(d) | MemberState::Expelled(d) | MemberState::Missing(d) => {
                (take_bitmap(d.held), d.tag)
            }
            _ => (None, None),
        };
        self.push(Effect::Adopt(candidate, id));
        let state = match (map, tag) {
            (Some(map), Some(tag)) if plan.kind == CopyKind::Mini => self.fill(id, map, tag),
            (_, tag) => {
                let full = WriteBitmap::full(self.geometry);
                let state = self.new_target(id, plan.kind, full);
                if let Some(unused) = tag {
                    self.push_home(HomeChange::Forget(unused.id));
                    let why = "its member comes back by another copy";
                    self.tell_bitmap(unused.id, id, BitmapChange::Deleted(why));
                }
                state
            }
        };
        let state = self.read_from(plan.source, state);
        self.enter(id, state, plan.reason);
        self.joins(id);
        self.pending = Some(Pending::Attach { ticket, member: id });
        self.advance();
        self.publish();
        self.settle_joins();
    }

    /// Decides what an attach would do; changes nothing.
    ///
    /// # Errors
    /// The refusal, each cause with its own code and numbers.
    pub fn plan_attach(&self, attach: &Attach) -> Result<AttachPlan, Refusal> {
        if attach.size < self.geometry.size() {
            let (has, needs) = (attach.size, self.geometry.size());
            let text = format!("{} has {has} bytes, the unit {needs}", attach.word);
            return Err(Refusal::new(Code::MemberTooSmall, text));
        }
        let source = attach.source.as_deref().map(|name| self.named_source(name));
        let source = source.transpose()?;
        let plan = match &attach.joiner {
            Joiner::Departed(id) => self.plan_return(*id, attach)?,
            Joiner::New { name, .. } => self.plan_new(name, attach)?,
        };
        Ok(AttachPlan { source, ..plan })
    }

    fn plan_return(&self, id: MemberId, attach: &Attach) -> Result<AttachPlan, Refusal> {
        let name = self.attachable(id)?;
        self.check_calls(id)?;
        let usable = self.usable_bitmap(id, attach);
        if let (Err(refusal), AttachPolicy::Minicopy) = (&usable, attach.policy) {
            return Err(refusal.clone());
        }
        if attach.foreign && !attach.blank && !attach.confirm {
            let text = format!("the image at {name}'s path is another one and is not blank");
            return Err(Refusal::new(Code::NeedsConfirm, text));
        }
        let map = match usable {
            Ok(map) => map,
            // Somebody who changed an image has changed little of it, mostly.
            Err(refusal) if refusal.code == Code::ImageChanged && !attach.foreign => {
                return self.plan_everything(attach.policy, CopyKind::Compare, refusal.text);
            }
            Err(refusal) => {
                return self.plan_everything(attach.policy, CopyKind::Full, refusal.text);
            }
        };
        if matches!(attach.policy, AttachPolicy::Full | AttachPolicy::Compare) {
            let reason = "asked for".to_owned();
            return self.plan_everything(attach.policy, CopyKind::Full, reason);
        }
        let suspect = self.members[id.index()].state.departed();
        let suspect = suspect.is_some_and(|d| d.suspect);
        if suspect && attach.policy != AttachPolicy::Minicopy {
            let reason = format!("an error of its medium expelled {name}");
            return self.plan_everything(attach.policy, CopyKind::Compare, reason);
        }
        let uncovered = self.uncovered(id, attach);
        let (bytes, extents) = extent_of(map, uncovered);
        if attach.policy == AttachPolicy::Nocopy && bytes > 0 {
            let text = format!("{name} lacks {bytes} bytes, and nocopy was given");
            return Err(Refusal::new(Code::NeedsCopy, text));
        }
        let reason = match uncovered {
            None => "its bitmap tells what has changed".to_owned(),
            Some(_) => format!(
                "its bitmap tells what has changed in the unit as it was; the {} bytes behind are copied whole",
                self.geometry
                    .size()
                    .0
                    .saturating_sub(self.coverage(id, attach).0)
            ),
        };
        Ok(AttachPlan {
            kind: CopyKind::Mini,
            reason,
            bytes,
            extents,
            source: None,
        })
    }

    /// Whether a member can be attached now; gives its name.
    ///
    /// # Errors
    /// Says why not.
    pub fn attachable(&self, id: MemberId) -> Result<&str, Refusal> {
        let member = &self.members[id.index()];
        let name = member.name.as_str();
        match &member.state {
            MemberState::Source => Err(Refusal::new(
                Code::AlreadyMember,
                format!("{name} is a source member already"),
            )),
            MemberState::Target { kind, op, .. } => {
                let text = format!("{name} is the target of {} operation {op}", kind.name());
                Err(Refusal::new(Code::IsCopyTarget, text))
            }
            MemberState::Vacant => {
                let text = format!("{name} has given up its membership");
                Err(Refusal::new(Code::NoSuchMember, text))
            }
            MemberState::Leaving(d)
            | MemberState::Detached(d)
            | MemberState::Expelled(d)
            | MemberState::Missing(d) => {
                if d.is_with_copier()
                    || !self.is_over(d.until)
                    || matches!(member.state, MemberState::Leaving(_))
                {
                    return Err(Refusal::still_leaving(name));
                }
                Ok(name)
            }
        }
    }

    /// Refuses a member whose image may still be written by calls that nobody waits for.
    fn check_calls(&self, id: MemberId) -> Result<(), Refusal> {
        let member = &self.members[id.index()];
        let called = member.state.departed().is_some_and(|d| d.called);
        #[cfg(debug_assertions)]
        let called = called && !super::planted::is(super::planted::Mistake::ReturnUnquiet);
        if !called {
            return Ok(());
        }
        Err(calls_are_out(&member.name))
    }

    fn plan_new(&self, name: &str, attach: &Attach) -> Result<AttachPlan, Refusal> {
        self.may_be_more()?;
        if self.find(name).is_ok() {
            let text = format!("a member {name} exists already");
            return Err(
                Refusal::new(Code::AlreadyMember, text).with_hint("choose another name: as=NAME")
            );
        }
        let reason = format!("{} was never a member", attach.word);
        let plan = self.plan_everything(attach.policy, CopyKind::Full, reason)?;
        if !attach.blank && !attach.confirm {
            let text = format!("{} was never a member and is not blank", attach.word);
            return Err(Refusal::new(Code::NeedsConfirm, text));
        }
        Ok(plan)
    }

    /// A copy that begins with everything: of this kind, unless the policy names one.
    fn plan_everything(
        &self,
        policy: AttachPolicy,
        kind: CopyKind,
        reason: String,
    ) -> Result<AttachPlan, Refusal> {
        let bytes = self.geometry.size().0;
        match policy {
            AttachPolicy::Minicopy => Err(Refusal::new(Code::NoBitmap, reason)),
            AttachPolicy::Nocopy => Err(Refusal::new(
                Code::NeedsCopy,
                format!("{reason}, and nocopy was given"),
            )),
            AttachPolicy::MinicopyOptional | AttachPolicy::Full | AttachPolicy::Compare => {
                Ok(AttachPlan {
                    kind: match policy {
                        AttachPolicy::Full => CopyKind::Full,
                        AttachPolicy::Compare => CopyKind::Compare,
                        _ => kind,
                    },
                    reason,
                    bytes,
                    extents: 1,
                    source: None,
                })
            }
        }
    }

    /// The place of the member that comes in; a new one is made for a new image.
    fn joiner(&mut self, attach: &Attach) -> MemberId {
        match &attach.joiner {
            Joiner::Departed(id) => *id,
            Joiner::New { name, uuid, path } => {
                let id = self.free_place();
                let member = Member {
                    name: name.clone(),
                    uuid: *uuid,
                    path: path.clone(),
                    size: attach.size,
                    read_cost: READ_COST,
                    site: 0,
                    timeout: 0,
                    errors: 0,
                    since: self.now,
                    reason: String::new(),
                    state: MemberState::Vacant,
                };
                match id.and_then(|id| self.members.get_mut(id.index())) {
                    Some(vacant) => *vacant = member,
                    None => self.members.push(member),
                }
                id.unwrap_or_else(|| unreachable!("the plan has counted the members"))
            }
        }
    }

    /// Brings a member back by what its bitmap says, after a detach that timed out.
    pub(super) fn rejoin(&mut self, id: MemberId, departed: Departed) {
        let state = match (take_bitmap(departed.held), departed.tag) {
            (Some(map), Some(tag)) => self.fill(id, map, tag),
            _ => self.new_target(id, CopyKind::Full, WriteBitmap::full(self.geometry)),
        };
        self.enter(id, state, "its detach timed out");
    }

    /// Moves a write bitmap into the minicopy that drains it.
    fn fill(&mut self, id: MemberId, map: OwnedBitmap, tag: BitmapTag) -> MemberState {
        self.describe(id, tag, BitmapKind::Copying(CopyKind::Mini));
        let state = self.target_of(id, CopyKind::Mini, map, Some(tag));
        self.tell_bitmap(tag.id, id, BitmapChange::Taken(OpId(self.last_op)));
        state
    }

    /// Queues the copies of members that every request knows by now.
    pub(super) fn settle_joins(&mut self) {
        let older = super::view::Epoch(self.epoch.0.saturating_sub(1));
        if !self.is_over(older) {
            return;
        }
        for id in self.ids() {
            let joining = |s: &MemberState| {
                matches!(
                    s,
                    MemberState::Target {
                        phase: Phase::Joining(_),
                        ..
                    }
                )
            };
            if !joining(&self.members[id.index()].state) {
                continue;
            }
            if let MemberState::Target {
                op,
                kind,
                phase: Phase::Joining(mut work),
            } = self.take_state(id)
            {
                work.begin();
                self.admit(id, &work);
                let phase = Phase::Queued(work);
                self.members[id.index()].state = MemberState::Target { op, kind, phase };
            }
        }
        self.start_copies();
    }

    /// Answers the attach that waited for this.
    fn admit(&mut self, id: MemberId, work: &CopyWork) {
        if matches!(self.pending, Some(Pending::Attach { member, .. }) if member == id) {
            let (op, kind) = (work.op(), work.kind().name());
            let bytes = work.progress().total_bytes();
            let name = &self.members[id.index()].name;
            let text = format!("{name} is the target of {kind} operation {op}, {bytes} bytes");
            let facts = vec![
                ("member", name.clone()),
                ("operation", op.to_string()),
                ("kind", kind.to_owned()),
                ("bytes", bytes.to_string()),
            ];
            self.answer_pending(Ok(Answer { text, facts }));
        }
    }

    /// Starts queued copies: minimerges first, then minicopies, compare copies, full copies and full merges (the
    /// order of the manual), each in the order of their admission.
    pub(super) fn start_copies(&mut self) {
        while !self.closing
            && self.doubt.is_none()
            && self.running().count() < self.limits.at_once()
        {
            let Some(id) = self.next_queued() else { return };
            if let MemberState::Target {
                op,
                kind,
                phase: Phase::Queued(work),
            } = self.take_state(id)
            {
                let phase = Phase::Running(work.stale());
                self.members[id.index()].state = MemberState::Target { op, kind, phase };
                self.push(Effect::Notice(Notice::CopyStarted(op, kind, id)));
                self.push(Effect::StartCopy(work));
                self.runs(op);
            }
        }
    }

    fn next_queued(&self) -> Option<MemberId> {
        let waits = self.may_lose_more();
        let queued = |id: &MemberId| match &self.members[id.index()].state {
            // It could come to no end.
            MemberState::Target {
                phase: Phase::Queued(work),
                ..
            } if waits && work.is_drained() => None,
            MemberState::Target {
                op,
                kind,
                phase: Phase::Queued(_),
            } if !self.limits.delayed || op.0 > self.mount_op => Some((kind.turn(), *op)),
            _ => None,
        };
        self.ids()
            .filter(|id| queued(id).is_some())
            .min_by_key(queued)
    }

    /// A copy has come back from the copier.
    pub(super) fn copy_ended(&mut self, work: CopyWork, end: CopyEnd) {
        let (id, op) = (work.target(), work.op());
        assert!(id.index() < self.members.len(), "a copy of nobody");
        let running = self.target_of_running(op) == Some(id);
        if !running {
            self.reclaim(id, work);
        } else {
            self.park(id, work);
            match end {
                CopyEnd::Drained => {
                    // Of its sources as well: what they have lost by now may have been read.
                    let members = self.writers();
                    #[cfg(debug_assertions)]
                    let members = match super::planted::is(super::planted::Mistake::PromotedAlone) {
                        true => [id].into_iter().collect(),
                        false => members,
                    };
                    self.flush(members, Purpose::Promote(id));
                }
                CopyEnd::Stopped => {}
                CopyEnd::TargetFailed(reason, media) => {
                    self.expel(id, &reason, media);
                    self.advance();
                    self.publish();
                    self.settle_departures();
                }
                CopyEnd::SourceFailed(reason) => self.withdraw(id, op, OpState::Failed, &reason),
            }
        }
        self.start_copies();
        self.close_when_quiet();
    }

    /// Holds the work of a member that is still a target.
    fn park(&mut self, id: MemberId, work: CopyWork) {
        let (op, kind) = (work.op(), work.kind());
        let phase = Phase::Finishing(Box::new(work));
        self.members[id.index()].state = MemberState::Target { op, kind, phase };
    }

    /// Gives the bitmap back to a member that left while its copy ran.
    fn reclaim(&mut self, id: MemberId, work: CopyWork) {
        let state = &mut self.members[id.index()].state;
        let waits = |d: &&mut Departed| d.is_with_copier();
        if let Some(departed) = state.departed_mut().filter(waits) {
            departed.held = Held::Here(work.into_bitmap());
        }
        self.settle_departures();
    }

    /// All members are flushed behind a drained copy: its target becomes a source, unless bits have come back.
    pub(super) fn promote(&mut self, id: MemberId) {
        let finishing = |s: &MemberState| {
            matches!(
                s,
                MemberState::Target {
                    phase: Phase::Finishing(_),
                    ..
                }
            )
        };
        if !finishing(&self.members[id.index()].state) {
            return;
        }
        let MemberState::Target {
            op,
            kind,
            phase: Phase::Finishing(work),
        } = self.take_state(id)
        else {
            return;
        };
        #[cfg(debug_assertions)]
        let unchecked = super::planted::is(super::planted::Mistake::PromoteUnchecked);
        #[cfg(not(debug_assertions))]
        let unchecked = false;
        let early = !work.is_drained() || self.doubt.is_some() || self.may_lose_more();
        if early && !unchecked {
            let phase = Phase::Queued(work);
            self.members[id.index()].state = MemberState::Target { op, kind, phase };
            return self.start_copies();
        }
        let stale = work.stale();
        assert!(stale.is_empty(), "I1: a source has no stale region");
        assert!(
            self.members[id.index()].size >= self.geometry.size(),
            "I7: a source is large enough"
        );
        self.sources.add(id);
        self.enter(id, MemberState::Source, "");
        self.advance();
        // Later than the block that says that the member is a source.
        self.push_home(HomeChange::Forget(stale.id()));
        self.publish();
        let drained = self.operation_tag(op);
        self.end_operation(op, OpState::Done);
        if let Some(tag) = drained {
            self.tell_bitmap(tag.id, id, BitmapChange::Deleted("its minicopy is done"));
        }
        self.push(Effect::Notice(Notice::Joined(id)));
    }

    /// The member that an unfinished operation fills.
    pub(super) fn target_of_running(&self, op: OpId) -> Option<MemberId> {
        let fills = |s: &MemberState| matches!(s, MemberState::Target { op: o, .. } if *o == op);
        self.ids().find(|id| fills(&self.members[id.index()].state))
    }

    pub(super) fn operation_tag(&self, op: OpId) -> Option<BitmapTag> {
        self.operations.iter().find(|o| o.id == op)?.tag()
    }

    pub(super) fn set_operation(&mut self, op: OpId, state: OpState) {
        let now = self.now;
        if let Some(o) = self.operations.iter_mut().find(|o| o.id == op) {
            o.state = state;
            o.started.get_or_insert(now);
        }
    }

    /// Ends an operation; the oldest finished ones are forgotten.
    pub(super) fn end_operation(&mut self, op: OpId, state: OpState) {
        let now = self.now;
        let Some(o) = self.operations.iter_mut().find(|o| o.id == op) else {
            return;
        };
        (o.state, o.finished) = (state, Some(now));
        let Task::Copy { kind, target, .. } = o.task else {
            return;
        };
        let (member, copied_bytes) = (target, o.progress.copied_bytes());
        let end = state.name();
        self.push(Effect::Notice(Notice::CopyEnded {
            op,
            kind,
            member,
            end,
            copied_bytes,
        }));
        self.forget_oldest();
    }

    pub(super) fn forget_oldest(&mut self) {
        let over = || self.operations.iter().filter(|o| o.state.is_over());
        let oldest = over().min_by_key(|o| (o.finished, o.id)).map(|o| o.id);
        if over().count() > OPERATIONS_KEPT {
            self.operations.retain(|o| Some(o.id) != oldest);
        }
    }
}

fn take_bitmap(held: Held) -> Option<OwnedBitmap> {
    match held {
        Held::Here(map) => Some(map),
        Held::Nothing | Held::WithCopier(_) => None,
    }
}
