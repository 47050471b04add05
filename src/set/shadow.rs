//! The shadow set: the rules of change. `handle(event)` gives effects; nothing else changes it.
//!
//! Commands run one at a time: the shell hands in the next when the last was answered. What
//! has to wait (a flush, the end of an epoch) comes back as an event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::bitmap::{OwnedBitmap, WriteBitmap};
use super::copy::{CopyKind, CopyWork, OpId};
use super::epochs::{OldIntent, Pace};
use super::event::{Answer, BitmapChange, Command, Effect, Event, FlushId, Notice, Ticket};
use super::fault::Doubt;
use super::geometry::Geometry;
use super::judge::Judged;
use super::limits::Limits;
use super::member::{
    BitmapId, BitmapTag, Departed, MEMBERS_MAX, Member, MemberId, MemberSet, MemberState, Moment,
    Phase, Policy, Sources,
};
use super::operation::{OpState, Operation, Task};
use super::pending::Pending;
use super::record::{BitmapKind, BitmapRecord, HomeChange};
use super::refusal::{Code, Refusal};
use super::scb::Generation;
use super::stall::StallEnd;
use super::view::Epoch;

/// What a flush is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// Everything that is dirty, before a member leaves by the command with this ticket.
    BeforeCut(u64),
    /// Everything that is dirty, before the unit grows by the command with this ticket.
    BeforeGrowth(u64),
    /// Everything that is dirty, behind the last change, for the stall with this ticket.
    Stall(u64),
    /// The member behind the cut, and all others.
    Leave(MemberId),
    /// Write-intent bitmaps up to this epoch are needless afterwards.
    Trim(Epoch),
    /// The target of a running copy: these regions are left, what else it has drained is durable afterwards.
    Drained(OpId, Box<WriteBitmap>),
    /// The target of a drained copy.
    Promote(MemberId),
    /// The end.
    Close,
    /// What it was for has ended otherwise; its failures still count.
    Nothing,
}

/// The shadow set.
#[derive(Debug)]
pub struct ShadowSet {
    pub(super) geometry: Geometry,
    pub(super) generation: Generation,
    pub(super) members: Vec<Member>,
    pub(super) sources: Sources,
    pub(super) epoch: Epoch,
    pub(super) live: BTreeSet<Epoch>,
    pub(super) intent: Arc<WriteBitmap>,
    /// Mark of this mount, on its intents.
    pub(super) mark: Uuid,
    pub(super) old_intents: Vec<OldIntent>,
    /// What came into doubt while copy steps were under way.
    pub(super) doubt: Option<Doubt>,
    pub(super) pace: Pace,
    /// Why bitmaps cannot be kept, when they cannot.
    pub(super) home: Result<(), Refusal>,
    /// Why bitmaps of the last mount are lost that would be of use.
    pub(super) lost: Option<Arc<str>>,
    /// Flushes under way, with the epoch in which they began.
    pub(super) flushes: BTreeMap<FlushId, (Epoch, Purpose)>,
    /// The epochs in which members have come back.
    pub(super) joined: BTreeMap<MemberId, Epoch>,
    pub(super) pending: Option<Pending>,
    pub(super) operations: Vec<Operation>,
    pub(super) limits: Limits,
    /// Members that do not answer.
    pub(super) silent: MemberSet,
    /// Places of members that were released while calls of their images were under way.
    pub(super) unquiet: MemberSet,
    /// No source answers, and nobody waits for one any more.
    pub(super) aborted: bool,
    /// Changes of applications wait by command.
    pub(super) stalled: bool,
    pub(super) closing: bool,
    /// The last generation is written.
    pub(super) closed: bool,
    pub(super) now: Moment,
    pub(super) effects: Vec<Effect>,
    /// Bitmaps that end when the first generation is written.
    pub(super) needless: Vec<BitmapId>,
    pub(super) last_op: u64,
    /// The last operation that the mount has queued.
    pub(super) mount_op: u64,
    pub(super) last_bitmap: u32,
    pub(super) last_flush: u64,
}

impl ShadowSet {
    /// Takes one event and gives the effects to carry out, in order.
    #[must_use]
    pub fn handle(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        self.now = now;
        match event {
            Event::Command(ticket, command) => self.command(ticket, command),
            Event::TimedOut(number) => self.timed_out(number),
            Event::Retired(epoch) => self.retired(epoch),
            Event::Flushed(id, failed, media) => self.flushed(id, failed, media),
            Event::Failed(ticket, failure) => self.failed(ticket, failure),
            Event::ReadFailed(id) => self.read_failed(id),
            Event::ReadRepaired(id, range) => {
                self.push(Effect::Notice(Notice::ReadRepaired(id, range)));
            }
            Event::CopyEnded(work, end) => self.copy_ended(*work, end),
            Event::VerifyDiffers(op, block) => self.verify_differs(op, block),
            Event::VerifyEnded(op, complete) => self.verify_ended(op, complete),
            Event::BlocksFailed(members) => self.blocks_failed(&members),
            Event::Told(id, generation) => self.told(id, generation),
            Event::Silent(members) => self.silent(members),
            Event::GivenUp(id, why) => self.given_up(id, &why),
            Event::TooSlow(id) => self.too_slow(id),
            Event::WaitedEnough => self.waited_enough(),
            Event::Quiet(id) => self.quiet(id),
            Event::HomeLost(why) => self.home_lost(why),
            Event::GrowthReady(number, ready) => self.growth_ready(number, ready),
            Event::Tick => self.tick(),
            Event::Beat => self.beat(),
            Event::Limits(limits) => self.limit(limits),
            Event::StallOver(end) => self.stall_over(end),
            Event::Shutdown => self.shutdown(),
        }
        self.follow_verify();
        self.forget_lost();
        self.check_invariants();
        std::mem::take(&mut self.effects)
    }

    /// Bitmaps of the last mount are of no use any more when everybody is equal, or has left since.
    pub(super) fn forget_lost(&mut self) {
        let lacks = |s: &MemberState| match s {
            MemberState::Target { .. } => true,
            state => state.departed().is_some_and(|d| d.lost.is_some()),
        };
        if !self.members.iter().any(|m| lacks(&m.state)) {
            self.lost = None;
        }
    }

    fn command(&mut self, ticket: Ticket, command: Command) {
        let judged = match self.judge(command) {
            Ok(judged) => judged,
            Err(refusal) => return self.refuse(ticket, refusal),
        };
        match judged {
            Judged::Detach(member, policy) => self.detach(ticket, member, policy),
            Judged::Attach(attach, plan) => self.attach(ticket, *attach, plan),
            Judged::Expel(member) => self.expel_command(ticket, member),
            Judged::Release(member) => self.release(ticket, member),
            Judged::Tune(member, tuning) => self.tune(ticket, member, tuning),
            Judged::Resize(geometry, room) => self.resize(ticket, geometry, &room),
            Judged::Merge(plan) => self.merge(ticket, &plan),
            Judged::Abort(silent) => self.abort(ticket, silent),
            Judged::ResetCounters => self.reset_counters(ticket),
            Judged::Stall(seconds) => self.stall(ticket, seconds),
            Judged::Unstall => self.unstall(ticket),
            Judged::Verify(plan) => self.verify(ticket, &plan),
            Judged::EndVerify(op) => self.end_verify(ticket, op),
            Judged::DeleteBitmap(owner, id) => self.delete_bitmap(ticket, owner, id),
            Judged::Limit(op, rate) => self.limit_rate(ticket, op, rate),
            Judged::Pause(op) => self.steer(ticket, op, OpState::Paused),
            Judged::Resume(op) => self.steer(ticket, op, OpState::Running),
            Judged::Cancel(member, op) => self.cancel(ticket, member, op),
            Judged::Forget(op) => self.forget(ticket, op),
        }
    }

    /// A new operation that fills `id` from a new stale set, as a state of that member.
    pub(super) fn new_target(
        &mut self,
        id: MemberId,
        kind: CopyKind,
        map: WriteBitmap,
    ) -> MemberState {
        let map = OwnedBitmap::new(map.named(self.new_id()));
        let owner = self.members[id.index()].uuid;
        let what = BitmapKind::Copying(kind);
        self.keep(&map.marks(), what, owner, Policy::default());
        self.target_of(id, kind, map, None)
    }

    /// As [`Self::new_target`], draining a bitmap that exists.
    pub(super) fn target_of(
        &mut self,
        id: MemberId,
        kind: CopyKind,
        map: OwnedBitmap,
        tag: Option<BitmapTag>,
    ) -> MemberState {
        self.last_op += 1;
        let op = OpId(self.last_op);
        let work = CopyWork::new(op, kind, id, map);
        self.operations.push(Operation {
            id: op,
            task: Task::Copy {
                kind,
                target: id,
                source: self.sources.master(),
                tag,
            },
            state: OpState::Queued,
            queued: self.now,
            started: None,
            finished: None,
            progress: work.progress(),
        });
        self.push(Effect::Notice(Notice::CopyQueued(op, kind, id)));
        MemberState::Target {
            op,
            kind,
            phase: Phase::Joining(Box::new(work)),
        }
    }

    pub(super) fn new_id(&mut self) -> BitmapId {
        self.last_bitmap += 1;
        BitmapId(self.last_bitmap)
    }

    /// Has a new bitmap kept.
    pub(super) fn keep(
        &mut self,
        map: &Arc<WriteBitmap>,
        kind: BitmapKind,
        owner: Uuid,
        policy: Policy,
    ) -> BitmapTag {
        let tag = self.tag_of(map.id(), policy);
        let record = BitmapRecord { tag, kind, owner };
        self.push_home(HomeChange::Add(record, Arc::clone(map)));
        tag
    }

    /// Gives a member's bitmap another record.
    pub(super) fn describe(&mut self, id: MemberId, tag: BitmapTag, kind: BitmapKind) {
        let owner = self.members[id.index()].uuid;
        self.push_home(HomeChange::Describe(BitmapRecord { tag, kind, owner }));
    }

    /// Tells people what has become of the write bitmap of a member.
    pub(super) fn tell_bitmap(&mut self, bitmap: BitmapId, of: MemberId, change: BitmapChange) {
        let member = self.members[of.index()].name.clone();
        self.push(Effect::Notice(Notice::Bitmap(bitmap, member, change)));
    }

    pub(super) fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Changes what is kept of a bitmap; one without a number is not kept, and none when what is kept is given up: it must
    /// prove nothing that comes later.
    pub(super) fn push_home(&mut self, change: HomeChange) {
        #[cfg(debug_assertions)]
        let proves = super::planted::is(super::planted::Mistake::LostHomeProves);
        #[cfg(not(debug_assertions))]
        let proves = false;
        if change.id() != BitmapId(0) && (self.home.is_ok() || proves) {
            self.push(Effect::Home(change));
        }
    }

    pub(super) fn accept(&mut self, ticket: Ticket, answer: Answer) {
        self.push(Effect::Reply(ticket, Ok(answer)));
    }

    pub(super) fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        self.push(Effect::Reply(ticket, Err(refusal)));
    }

    /// Changes a member's state.
    pub(super) fn enter(&mut self, id: MemberId, state: MemberState, reason: impl Into<String>) {
        let member = &mut self.members[id.index()];
        (member.state, member.since, member.reason) = (state, self.now, reason.into());
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::StaleFlush) {
            return;
        }
        // A flush that was begun for the state before must not end the next one.
        for (_, purpose) in self.flushes.values_mut() {
            if matches!(purpose, Purpose::Leave(m) | Purpose::Promote(m) if *m == id) {
                *purpose = Purpose::Nothing;
            }
        }
    }

    /// Takes a member's state out, to be replaced at once.
    pub(super) fn take_state(&mut self, id: MemberId) -> MemberState {
        std::mem::replace(&mut self.members[id.index()].state, MemberState::Vacant)
    }

    /// All members that writes go to.
    #[must_use]
    pub fn writers(&self) -> MemberSet {
        let takes_part =
            |m: &Member| matches!(m.state, MemberState::Source | MemberState::Target { .. });
        self.ids()
            .filter(|id| takes_part(&self.members[id.index()]))
            .collect()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = MemberId> + use<> {
        (0..self.members.len()).filter_map(MemberId::new)
    }

    /// The next generation, durable in every member that takes part (I3, I6).
    pub(super) fn advance(&mut self) {
        self.generation = self.generation.next();
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::GenerationFromClock) {
            self.planted_generation();
        }
        self.write_generation();
    }

    #[cfg(debug_assertions)]
    fn planted_generation(&mut self) {
        // Two changes in one tick of the clock still differ.
        let by_clock = Generation::from_number(self.now.0 + 2);
        let other = by_clock.filter(|g| g.next() != self.generation);
        self.generation = other.unwrap_or(self.generation);
    }

    /// Writes the generation to the members' blocks, then the proof that all of them have it.
    pub(super) fn write_generation(&mut self) {
        let (generation, to) = (self.generation, self.writers());
        self.push(Effect::Persist {
            generation,
            clean: false,
            to,
        });
        let record = self.intent_record(BitmapKind::Intent);
        self.push_home(HomeChange::Describe(record));
    }

    /// Asks for a flush of some members.
    pub(super) fn flush(&mut self, members: MemberSet, purpose: Purpose) {
        self.last_flush += 1;
        let id = FlushId(self.last_flush);
        self.flushes.insert(id, (self.epoch, purpose));
        self.push(Effect::Flush(id, members));
    }

    fn flushed(&mut self, id: FlushId, failed: MemberSet, media: MemberSet) {
        let Some((epoch, purpose)) = self.flushes.remove(&id) else {
            return;
        };
        let lost = self.sources.all().without(failed).is_empty();
        self.flush_failed(&purpose, self.still_judged(failed, epoch), media);
        match purpose {
            Purpose::BeforeCut(ticket) => self.cut(ticket, lost),
            Purpose::BeforeGrowth(ticket) => self.prepare_growth(ticket, lost),
            Purpose::Stall(ticket) => self.become_quiet(ticket, lost),
            Purpose::Leave(member) => self.left(member, failed, media),
            Purpose::Trim(through) => self.trimmed(through, failed, lost),
            Purpose::Drained(op, left) => {
                if failed.is_empty() {
                    self.drained(op, *left);
                }
            }
            // A stop waits for the flush of a promotion, also when that has become needless.
            Purpose::Nothing => self.close_when_quiet(),
            Purpose::Promote(member) => {
                self.promote(member);
                self.close_when_quiet();
            }
            Purpose::Close => self.closed(!lost),
        }
    }

    fn timed_out(&mut self, number: u64) {
        if self
            .pending
            .as_ref()
            .is_none_or(|p| p.ticket().number() != number)
        {
            return;
        }
        if let Some(pending) = self.pending.take() {
            self.give_up(pending);
        }
    }

    fn shutdown(&mut self) {
        self.closing = true;
        if let Some(pending) = self.pending.take() {
            self.give_up(pending);
        }
        self.stall_over(StallEnd::Stop);
        let running: Vec<OpId> = self.running().collect();
        for op in running {
            self.push(Effect::StopCopy(op));
        }
        self.close_when_quiet();
    }

    /// Ends when no copy and no verify is running: flush everything, then mark the members clean.
    pub(super) fn close_when_quiet(&mut self) {
        let ending = |(_, p): &(_, Purpose)| matches!(p, Purpose::Close | Purpose::Promote(_));
        let asked = self.flushes.values().any(ending);
        let busy = self.running().next().is_some() || self.verifying().is_some();
        if self.closing && !asked && !busy {
            self.flush(self.writers(), Purpose::Close);
        }
    }

    /// The last flush has ended: clean when a source has everything (I6).
    fn closed(&mut self, clean: bool) {
        if !clean {
            return self.push(Effect::Stopped { clean });
        }
        self.generation = self.generation.next();
        let (generation, to) = (self.generation, self.writers());
        self.push(Effect::Persist {
            generation,
            clean: true,
            to,
        });
        self.closed = true;
        self.leave_in_order();
        self.push(Effect::Stopped { clean });
    }

    /// Leaves the bitmaps exact for the next mount: everything is flushed and no request is left.
    fn leave_in_order(&mut self) {
        // A stop waits for no last flush.
        if self.may_lose_more() {
            self.distrust();
        }
        self.end_doubt();
        for id in self.ids() {
            let absorbed = self.members[id.index()].state.departed_mut();
            let absorbed = absorbed.map(Departed::absorb_seeds).unwrap_or_default();
            absorbed
                .into_iter()
                .for_each(|change| self.push_home(change));
            // Marks are made durable for whole groups; nobody marks any more.
            let left = match &self.members[id.index()].state {
                MemberState::Target { phase, .. } => Some(phase.stale()),
                // A step of its copy may be under way: what that clears is not flushed.
                state if is_with_copier(state) => None,
                state => state.departed().and_then(Departed::marks),
            };
            if let Some(left) = left {
                self.push_home(HomeChange::Retain(left));
            }
        }
        let fresh = self.fresh_intent();
        let last = std::mem::replace(&mut self.intent, fresh);
        let record = self.intent_record(BitmapKind::Intent);
        self.push_home(HomeChange::Add(record, Arc::clone(&self.intent)));
        for old in std::mem::take(&mut self.old_intents) {
            self.push_home(HomeChange::Forget(old.map.id()));
        }
        self.push_home(HomeChange::Forget(last.id()));
    }

    pub(super) fn running(&self) -> impl Iterator<Item = OpId> + '_ {
        self.members.iter().filter_map(|m| match &m.state {
            MemberState::Target {
                op,
                phase: Phase::Running(_),
                ..
            } => Some(*op),
            _ => None,
        })
    }

    /// Finds a member by name.
    pub(super) fn find(&self, name: &str) -> Result<MemberId, Refusal> {
        let vacant = |m: &Member| matches!(m.state, MemberState::Vacant);
        let named = |m: &Member| m.name == name && !vacant(m);
        let index = self.members.iter().position(named);
        index.and_then(MemberId::new).ok_or_else(|| {
            let members = self.members.iter().filter(|m| !vacant(m));
            let names: Vec<&str> = members.map(|m| m.name.as_str()).collect();
            let text = format!("no member {name}; the members are {}", names.join(", "));
            Refusal::new(Code::NoSuchMember, text).at(name)
        })
    }

    /// Checks what must hold after every event.
    ///
    /// # Panics
    /// When an invariant does not hold: going on could lose data.
    pub fn check_invariants(&self) {
        assert!(!self.sources.all().is_empty(), "I2: no source");
        assert!(
            self.sources.all().contains(self.sources.master()),
            "I2: the master is a source"
        );
        assert!(
            (1..=MEMBERS_MAX).contains(&self.members.len()),
            "one to six members"
        );
        assert!(self.live.contains(&self.epoch), "the current View is alive");
        assert_eq!(
            self.live.last(),
            Some(&self.epoch),
            "the current View is the newest"
        );
        self.ids().for_each(|id| self.check_member(id));
        self.check_intents();
        if let Some(pending) = &self.pending {
            assert!(
                pending
                    .member()
                    .is_none_or(|id| id.index() < self.members.len()),
                "a command about nobody"
            );
            assert!(!self.closing, "a command of a unit that is being stopped");
        }
        let numbers: BTreeSet<OpId> = self.operations.iter().map(|o| o.id).collect();
        assert_eq!(
            numbers.len(),
            self.operations.len(),
            "an operation is listed once"
        );
        assert!(
            numbers.last().is_none_or(|op| op.0 <= self.last_op),
            "an unknown operation"
        );
    }

    fn check_member(&self, id: MemberId) {
        let member = &self.members[id.index()];
        let (name, size) = (&member.name, member.size);
        let source = matches!(member.state, MemberState::Source);
        assert_eq!(
            source,
            self.sources.all().contains(id),
            "I2: {name} as a source"
        );
        match &member.state {
            MemberState::Source => {
                assert!(size >= self.geometry.size(), "I7: {name} is too small");
            }
            MemberState::Target { op, phase, .. } => {
                let stale = phase.stale();
                assert_eq!(
                    stale.geometry(),
                    self.geometry,
                    "I1: coverage of a copy into {name}"
                );
                assert!(size >= self.geometry.size(), "I7: {name} is too small");
                let operation = self.operations.iter().find(|o| o.id == *op);
                assert!(
                    operation.is_some_and(|o| !o.state.is_over()),
                    "{name} without a copy"
                );
                assert!(
                    operation.is_some_and(|o| o.target() == Some(id)),
                    "the copy of another"
                );
            }
            MemberState::Leaving(d)
            | MemberState::Detached(d)
            | MemberState::Expelled(d)
            | MemberState::Missing(d) => {
                assert!(
                    d.until < self.epoch,
                    "{name} is written in the current epoch"
                );
                assert!(
                    d.tag.is_some() == d.marks().is_some(),
                    "a bitmap has a number"
                );
            }
            MemberState::Vacant => {}
        }
    }
}

/// As [`Departed::is_with_copier`], of any member.
pub(super) fn is_with_copier(state: &MemberState) -> bool {
    #[cfg(debug_assertions)]
    if super::planted::is(super::planted::Mistake::StoppedUndrained) {
        return false;
    }
    state.departed().is_some_and(Departed::is_with_copier)
}
