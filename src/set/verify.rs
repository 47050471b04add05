//! Verify: whether the sources hold the same. When it may begin, what ends it, and the work that is handed out.
//!
//! It fills no member: it takes no bitmap, changes no generation and is no part of the state of the unit. Whoever
//! cannot be repaired leaves by the rules of a failed write (`fault.rs`).

use std::sync::Arc;

use super::copy::{OpId, Progress};
use super::event::{Answer, Effect, Notice, Ticket};
use super::findings::{Findings, Repair};
use super::geometry::{BLOCK_BYTES, ByteRange, Bytes};
use super::member::MemberSet;
use super::operation::{OpState, Operation, Task};
use super::pending::Pending;
use super::refusal::{Code, Refusal};
use super::shadow::ShadowSet;

/// Whose bytes a repair takes, as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RepairBy {
    /// Those that more than half of the sources hold.
    Majority,
    /// Those of the source with this name.
    Member(String),
}

/// What a verify compares.
#[derive(Clone, Debug)]
pub struct Verify {
    /// Which bytes of the unit.
    pub range: ByteRange,
    /// Whether and how it repairs.
    pub repair: Option<Repair>,
    /// What it has found.
    pub findings: Arc<Findings>,
    /// Why it has ended before its time, or is about to.
    pub reason: Option<String>,
    /// The state that it is about to end in.
    pub(super) ending: Option<OpState>,
}

/// A verify that may begin.
#[derive(Debug)]
pub(super) struct VerifyPlan {
    range: ByteRange,
    repair: Option<Repair>,
    members: MemberSet,
}

/// The work of a verify; it is moved to the verifier, which tells its end.
#[derive(Debug)]
pub struct VerifyWork {
    op: OpId,
    repair: Option<Repair>,
    next: u64,
    end: u64,
    progress: Arc<Progress>,
    findings: Arc<Findings>,
}

impl VerifyWork {
    /// Number of its operation.
    #[must_use]
    pub fn op(&self) -> OpId {
        self.op
    }

    /// Whether and how it repairs.
    #[must_use]
    pub fn repair(&self) -> Option<Repair> {
        self.repair
    }

    /// The counters.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Where to write down what is found.
    #[must_use]
    pub fn findings(&self) -> Arc<Findings> {
        Arc::clone(&self.findings)
    }

    /// Where the next step begins and where it ends at the latest, in bytes: at most `budget` bytes and at least a block.
    /// The budget depends on the byte at which the step begins. `None` when everything is compared.
    #[must_use]
    pub fn next_step(&self, budget: impl Fn(u64) -> u64) -> Option<(u64, u64)> {
        if self.next == self.end {
            return None;
        }
        let most = (budget(self.next) / BLOCK_BYTES).max(1) * BLOCK_BYTES;
        self.progress.at_block(self.next / BLOCK_BYTES);
        Some((self.next, self.end.min(self.next.saturating_add(most))))
    }

    /// Everything before a byte is compared; so many bytes of the step were written.
    pub fn finish(&mut self, end: u64, written: u64) {
        assert!((self.next..=self.end).contains(&end), "a step goes forward");
        let bytes = end - self.next;
        self.progress.pass(bytes, bytes.saturating_sub(written));
        self.next = end;
    }
}

impl ShadowSet {
    /// The verify that has not ended yet.
    pub(super) fn verifying(&self) -> Option<OpId> {
        let runs = |o: &&Operation| matches!(o.task, Task::Verify(_)) && !o.state.is_over();
        self.operations.iter().find(runs).map(|o| o.id)
    }

    fn verify_mut(&mut self, op: OpId) -> Option<&mut Verify> {
        let operation = self.operations.iter_mut().find(|o| o.id == op)?;
        match &mut operation.task {
            Task::Verify(verify) => Some(verify),
            Task::Copy { .. } => None,
        }
    }

    /// Whether a verify may begin: of these blocks, first and last, and with this repair.
    pub(super) fn may_verify(
        &self,
        range: Option<(u64, u64)>,
        repair: Option<&RepairBy>,
    ) -> Result<VerifyPlan, Refusal> {
        if let Some(op) = self.verifying() {
            let text = format!("operation {op} verifies the unit already");
            let hint = format!("wait for it, or cancel it: cancel {op}");
            return Err(Refusal::new(Code::InUse, text).with_hint(hint));
        }
        let members = self.sources.all();
        if members.len() < 2 {
            let master = &self.members[self.sources.master().index()].name;
            let text =
                format!("{master} is the only source member, so there is nothing to compare");
            return Err(Refusal::new(Code::LastSource, text));
        }
        let range = self.blocks_to_verify(range)?;
        let repair = repair.map(|by| self.repair_by(by)).transpose()?;
        Ok(VerifyPlan {
            range,
            repair,
            members,
        })
    }

    fn blocks_to_verify(&self, range: Option<(u64, u64)>) -> Result<ByteRange, Refusal> {
        let Some((first, last)) = range else {
            return Ok(self.geometry.whole());
        };
        let blocks = self.geometry.blocks();
        if first > last || last >= blocks {
            let text = format!("{first}-{last} is no range of blocks of the unit");
            let hint = format!("its blocks are 0-{}; the first one comes first", blocks - 1);
            let refusal = Refusal::new(Code::OutOfRange, text).at(format!("range={first}-{last}"));
            return Err(refusal.with_hint(hint));
        }
        let (at, len) = (first * BLOCK_BYTES, (last - first + 1) * BLOCK_BYTES);
        let clipped = self.geometry.clip(Bytes(at), Bytes(len));
        clipped.map_err(|e| Refusal::new(Code::OutOfRange, e.to_string()))
    }

    fn repair_by(&self, by: &RepairBy) -> Result<Repair, Refusal> {
        let sources = self.sources.all();
        match by {
            RepairBy::Member(name) => self.named_source(name).map(Repair::From),
            RepairBy::Majority if sources.len() < 3 => {
                let names = sources
                    .iter()
                    .map(|id| self.members[id.index()].name.as_str());
                let names: Vec<&str> = names.collect();
                let text = "with two source members it cannot be told which of them is right";
                let hint = format!(
                    "name the one whose bytes are right: source={}",
                    names.join(" or source=")
                );
                Err(Refusal::new(Code::NoMajority, text)
                    .at("repair")
                    .with_hint(hint))
            }
            RepairBy::Majority => Ok(Repair::Majority),
        }
    }

    /// What a verify would do.
    pub(super) fn verify_answer(plan: &VerifyPlan) -> Answer {
        let (bytes, members) = (plan.range.len(), plan.members.len());
        let read = bytes.saturating_mul(members as u64);
        let text = match plan.repair {
            None => {
                format!("{bytes} bytes of {members} members would be compared, {read} bytes read")
            }
            Some(_) => format!(
                "{bytes} bytes of {members} members would be compared and repaired, {read} bytes read"
            ),
        };
        let facts = vec![
            ("verdict", "verify".to_owned()),
            ("bytes", bytes.to_string()),
            ("read_bytes", read.to_string()),
            ("members", members.to_string()),
        ];
        Answer { text, facts }
    }

    pub(super) fn verify(&mut self, ticket: Ticket, plan: &VerifyPlan) {
        self.last_op += 1;
        let op = OpId(self.last_op);
        let (range, repair, bytes) = (plan.range, plan.repair, plan.range.len());
        let (progress, findings) = (Arc::new(Progress::of(bytes)), Arc::new(Findings::default()));
        self.operations.push(Operation {
            id: op,
            task: Task::Verify(Verify {
                range,
                repair,
                findings: Arc::clone(&findings),
                reason: None,
                ending: None,
            }),
            state: OpState::Running,
            queued: self.now,
            started: Some(self.now),
            finished: None,
            progress: Arc::clone(&progress),
        });
        self.follow_verify();
        self.push(Effect::Notice(Notice::VerifyStarted(op, range)));
        self.push(Effect::StartVerify(Box::new(VerifyWork {
            op,
            repair,
            next: range.start(),
            end: range.end(),
            progress,
            findings,
        })));
        let text = format!(
            "verify operation {op} of {bytes} bytes on {} members",
            plan.members.len()
        );
        let facts = vec![
            ("operation", op.to_string()),
            ("kind", "verify".to_owned()),
            ("bytes", bytes.to_string()),
        ];
        self.accept(ticket, Answer { text, facts });
    }

    /// Looks, behind every event, whether the verify that runs can go on.
    pub(super) fn follow_verify(&mut self) {
        let Some(op) = self.verifying() else { return };
        let sources = self.sources.all();
        let names = sources
            .iter()
            .map(|id| (id, self.members[id.index()].name.clone()));
        let names: Vec<_> = names.collect();
        let closing = self.closing;
        let Some((repair, ending)) = self.verify_mut(op).map(|v| (v.repair, v.ending)) else {
            return;
        };
        if ending.is_some() {
            return;
        }
        match repair {
            _ if closing => self.stop_verify(op, OpState::Cancelled, "the unit was stopped"),
            _ if sources.len() < 2 => {
                let reason = "fewer than two source members are left";
                self.stop_verify(op, OpState::Failed, reason);
            }
            Some(Repair::From(id)) if !sources.contains(id) => {
                let reason = format!(
                    "{} is no source member any more",
                    self.members[id.index()].name
                );
                self.stop_verify(op, OpState::Failed, &reason);
            }
            _ => {
                if let Some(verify) = self.verify_mut(op) {
                    names
                        .iter()
                        .for_each(|(id, name)| verify.findings.know(*id, name));
                }
            }
        }
    }

    /// Has the verify end behind its step under way.
    fn stop_verify(&mut self, op: OpId, end: OpState, reason: &str) {
        if let Some(verify) = self.verify_mut(op) {
            (verify.ending, verify.reason) = (Some(end), Some(reason.to_owned()));
        }
        self.push(Effect::StopCopy(op));
    }

    /// Whether an operation is a verify that can be cancelled; `None` when it is another one.
    pub(super) fn may_end_verify(&self, op: OpId) -> Option<Result<OpId, Refusal>> {
        let operation = self.operations.iter().find(|o| o.id == op)?;
        match &operation.task {
            Task::Copy { .. } => None,
            Task::Verify(_) if operation.state.is_over() => Some(Err(self.not_running(op))),
            Task::Verify(verify) if verify.ending.is_some() => {
                Some(Err(Refusal::new(Code::StateChanged, last_step(op))))
            }
            Task::Verify(_) => Some(Ok(op)),
        }
    }

    /// Cancels a verify; answered when its last step has ended.
    pub(super) fn end_verify(&mut self, ticket: Ticket, op: OpId) {
        self.pending = Some(Pending::EndVerify { ticket, op });
        self.stop_verify(op, OpState::Cancelled, "it was cancelled");
    }

    /// A cancel that has waited too long, or for a unit that is being stopped.
    pub(super) fn give_up_end(&mut self, ticket: Ticket, op: OpId) {
        let refusal = match self.closing {
            true => Refusal::new(Code::StateChanged, "the unit is being stopped"),
            false => Refusal::new(Code::TimedOut, last_step(op)),
        };
        self.refuse(ticket, refusal);
    }

    /// A verify has found its first difference, in this block.
    pub(super) fn verify_differs(&mut self, op: OpId, block: u64) {
        self.push(Effect::Notice(Notice::VerifyDiffers(op, block)));
    }

    /// A verify has ended, with everything compared or before.
    pub(super) fn verify_ended(&mut self, op: OpId, complete: bool) {
        let now = self.now;
        let Some(verify) = self.verify_mut(op) else {
            return;
        };
        if complete {
            (verify.ending, verify.reason) = (Some(OpState::Done), None);
        }
        let state = *verify.ending.get_or_insert(OpState::Failed);
        if state == OpState::Failed {
            verify
                .reason
                .get_or_insert_with(|| "its thread has ended; see the log".to_owned());
        }
        let (counts, reason) = (verify.findings.counts(), verify.reason.clone());
        if let Some(o) = self.operations.iter_mut().find(|o| o.id == op) {
            (o.state, o.finished) = (state, Some(now));
        }
        let state = state.name();
        self.push(Effect::Notice(Notice::VerifyEnded {
            op,
            state,
            counts,
            reason,
        }));
        self.forget_oldest();
        if matches!(self.pending, Some(Pending::EndVerify { op: o, .. }) if o == op) {
            let text = format!("operation {op} is {state}");
            self.answer_pending(Ok(Answer {
                text,
                facts: Vec::new(),
            }));
        }
        self.close_when_quiet();
    }
}

/// What is said of an operation that ends by itself.
fn last_step(op: OpId) -> String {
    format!("operation {op} is still in its last step, and ends behind it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::event::{Command, Event};
    use crate::set::member::Moment;
    use crate::set::tests::set;

    fn give(set: &mut ShadowSet, command: Command) -> Vec<Effect> {
        set.handle(Moment(0), Event::Command(Ticket::new(1), command))
    }

    fn verify(set: &mut ShadowSet, repair: Option<RepairBy>) -> Vec<Effect> {
        let range = None;
        give(set, Command::Verify { range, repair })
    }

    fn by(name: &str) -> Option<RepairBy> {
        Some(RepairBy::Member(name.to_owned()))
    }

    fn refused(effects: &[Effect]) -> Option<Code> {
        effects.iter().find_map(|e| match e {
            Effect::Reply(_, Err(refusal)) => Some(refusal.code),
            _ => None,
        })
    }

    fn end(set: &mut ShadowSet, complete: bool) -> Vec<Effect> {
        let op = set.verifying().expect("one runs");
        set.handle(Moment(9), Event::VerifyEnded(op, complete))
    }

    fn last(set: &ShadowSet) -> (OpState, Option<&str>) {
        let last = set.operations.last().expect("an operation");
        (last.state, last.verify().and_then(|v| v.reason.as_deref()))
    }

    #[test]
    fn steps_go_over_the_range_once() {
        let progress = Arc::new(Progress::of(4096));
        let mut work = VerifyWork {
            op: OpId(1),
            repair: None,
            next: 512,
            end: 4608,
            progress: Arc::clone(&progress),
            findings: Arc::default(),
        };
        assert_eq!(work.next_step(|_| 1), Some((512, 1024)), "a block at least");
        assert_eq!(work.next_step(|_| 2047), Some((512, 2048)));
        work.finish(2048, 512);
        assert_eq!(
            (progress.done_bytes(), progress.copied_bytes()),
            (1536, 512)
        );
        assert_eq!(work.next_step(|_| u64::MAX), Some((2048, 4608)));
        work.finish(4608, 0);
        assert_eq!(work.next_step(|_| 1), None);
        assert_eq!(
            (progress.done_bytes(), progress.copied_bytes()),
            (4096, 512)
        );
    }

    #[test]
    fn who_may_verify_and_repair() {
        assert_eq!(refused(&verify(&mut set(1), None)), Some(Code::LastSource));
        let majority = Some(RepairBy::Majority);
        let two = verify(&mut set(2), majority.clone());
        assert_eq!(refused(&two), Some(Code::NoMajority));
        assert_eq!(refused(&verify(&mut set(3), majority)), None);
        assert_eq!(refused(&verify(&mut set(2), by("m2"))), None);
        let mut set = set(3);
        give(
            &mut set,
            Command::Expel {
                member: "m3".to_owned(),
            },
        );
        assert_eq!(refused(&verify(&mut set, by("m3"))), Some(Code::NotASource));
        assert_eq!(
            refused(&verify(&mut set, by("m9"))),
            Some(Code::NoSuchMember)
        );
        assert_eq!(refused(&verify(&mut set, None)), None);
        assert_eq!(refused(&verify(&mut set, None)), Some(Code::InUse));
        end(&mut set, true);
        assert_eq!(last(&set), (OpState::Done, None));
        assert_eq!(refused(&verify(&mut set, None)), None, "the next one may");
    }

    #[test]
    fn a_verify_ends_when_too_few_sources_or_not_the_named_one_is_left() {
        let expel = |set: &mut ShadowSet, member: &str| {
            let member = member.to_owned();
            let effects = give(set, Command::Expel { member });
            effects.iter().any(|e| matches!(e, Effect::StopCopy(_)))
        };
        let mut all = set(3);
        verify(&mut all, None);
        assert!(!expel(&mut all, "m3"), "two are left");
        assert!(expel(&mut all, "m2"));
        end(&mut all, false);
        let few = "fewer than two source members are left";
        assert_eq!(last(&all), (OpState::Failed, Some(few)));
        let mut named = set(4);
        verify(&mut named, by("m4"));
        assert!(!expel(&mut named, "m3") && expel(&mut named, "m4"));
        end(&mut named, false);
        let reason = "m4 is no source member any more";
        assert_eq!(last(&named), (OpState::Failed, Some(reason)));
    }

    #[test]
    fn a_cancel_is_answered_when_the_last_step_has_ended_and_a_stop_waits_for_it() {
        let mut set = set(2);
        verify(&mut set, None);
        let op = set.verifying().expect("one runs");
        let answered = |effects: &[Effect]| {
            let good = |e: &Effect| matches!(e, Effect::Reply(_, Ok(_)));
            effects.iter().any(good)
        };
        let cancel = give(&mut set, Command::Cancel(op));
        assert!(!answered(&cancel), "{cancel:?}");
        assert!(answered(&end(&mut set, false)));
        assert_eq!(last(&set), (OpState::Cancelled, Some("it was cancelled")));
        assert_eq!(
            refused(&give(&mut set, Command::Cancel(op))),
            Some(Code::StateChanged)
        );
        verify(&mut set, None);
        let stop = set.handle(Moment(1), Event::Shutdown);
        assert!(
            !stop.iter().any(|e| matches!(e, Effect::Flush(..))),
            "{stop:?}"
        );
        let quiet = end(&mut set, false);
        assert!(
            quiet.iter().any(|e| matches!(e, Effect::Flush(..))),
            "{quiet:?}"
        );
        assert_eq!(
            last(&set),
            (OpState::Cancelled, Some("the unit was stopped"))
        );
    }
}
