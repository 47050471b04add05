//! The judgement of commands: what a command would do, or why it is refused.
//!
//! Judging takes the set by `&self` and so changes nothing. A run goes through it first and a dry run
//! ends with it, so that the two cannot differ; what is done afterwards refuses nothing at once.

use std::sync::Arc;

use super::bitmap::WriteBitmap;
use super::copy::{CopyKind, OpId, rate_text};
use super::event::{Answer, Attach, Command, Tuning};
use super::geometry::{Bytes, Geometry};
use super::join::{AttachPlan, eta_text};
use super::member::{BitmapId, MemberId, MemberSet, Policy};
use super::operation::OpState;
use super::refusal::{Code, Refusal};
use super::shadow::ShadowSet;
use super::verify::VerifyPlan;

/// A command that may be carried out, with what has been found for it.
#[derive(Debug)]
pub(super) enum Judged {
    Detach(MemberId, Policy),
    Attach(Box<Attach>, AttachPlan),
    Expel(MemberId),
    Release(MemberId),
    Resize(Geometry, Vec<(MemberId, Bytes)>),
    Merge(MergePlan),
    Stall(u64),
    Unstall,
    Verify(VerifyPlan),
    EndVerify(OpId),
    Tune(MemberId, Tuning),
    Abort(MemberSet),
    ResetCounters,
    DeleteBitmap(MemberId, BitmapId),
    Limit(OpId, u64),
    Pause(OpId),
    Resume(OpId),
    Cancel(MemberId, OpId),
    Forget(OpId),
}

/// What a merge would make equal.
#[derive(Debug)]
pub(super) struct MergePlan {
    pub(super) kind: CopyKind,
    /// The regions that may differ.
    pub(super) map: Arc<WriteBitmap>,
    /// The members that are made equal to the master.
    pub(super) others: MemberSet,
}

impl ShadowSet {
    /// Says what a command would do, and does nothing. `expected` tells in bytes per second what copies of a
    /// kind do, where that was measured.
    ///
    /// # Errors
    /// The refusal that the command would get.
    pub fn dry_run(
        &self,
        command: Command,
        expected: &[(CopyKind, u64)],
    ) -> Result<Answer, Refusal> {
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::DryRunApart) {
            let judged = self.judge_alone(command)?;
            return Ok(self.would(&judged, expected));
        }
        let judged = self.judge(command)?;
        Ok(self.would(&judged, expected))
    }

    /// Decides whether a command may be carried out; what waits for something else can still fail later.
    pub(super) fn judge(&self, command: Command) -> Result<Judged, Refusal> {
        self.takes_commands()?;
        self.judge_alone(command)
    }

    /// Whether a command could be carried out now at all.
    pub(super) fn takes_commands(&self) -> Result<(), Refusal> {
        if self.closing {
            let text = "the unit is being stopped";
            return Err(Refusal::new(Code::StateChanged, text));
        }
        if self.pending.is_some() {
            return Err(Refusal::new(Code::InUse, "another command is under way"));
        }
        Ok(())
    }

    /// As [`Self::judge`], of a command that is the only one.
    fn judge_alone(&self, command: Command) -> Result<Judged, Refusal> {
        Ok(match command {
            Command::Detach { member, policy } => {
                Judged::Detach(self.may_detach(&member, policy)?, policy)
            }
            Command::Attach(attach) => {
                let plan = self.plan_attach(&attach);
                let plan = plan.map_err(|r| match r.word {
                    None => r.at(attach.word.as_str()),
                    Some(_) => r,
                })?;
                Judged::Attach(attach, plan)
            }
            Command::Expel { member } => Judged::Expel(self.may_expel(&member)?),
            Command::Release { member } => Judged::Release(self.may_release(&member)?),
            Command::Resize { size, room } => Judged::Resize(self.may_grow(size, &room)?, room),
            Command::Merge { full } => Judged::Merge(self.may_merge(full)?),
            Command::Stall { seconds } => Judged::Stall(seconds),
            Command::Unstall => {
                self.may_unstall()?;
                Judged::Unstall
            }
            Command::Tune { member, tuning } => Judged::Tune(self.find(&member)?, tuning),
            Command::Abort => Judged::Abort(self.may_abort()?),
            Command::ResetCounters => Judged::ResetCounters,
            Command::DeleteBitmap { id } => Judged::DeleteBitmap(self.may_delete(id)?, id),
            Command::Limit { op, rate } => Judged::Limit(self.may_limit(op)?, rate),
            Command::Pause(op) => Judged::Pause(self.may_steer(op, OpState::Running)?),
            Command::Resume(op) => Judged::Resume(self.may_steer(op, OpState::Paused)?),
            Command::Verify { range, repair } => {
                Judged::Verify(self.may_verify(range, repair.as_ref())?)
            }
            Command::Cancel(op) => match self.may_end_verify(op) {
                Some(verify) => Judged::EndVerify(verify?),
                None => Judged::Cancel(self.may_cancel(op)?, op),
            },
            Command::Forget(op) => Judged::Forget(self.may_forget(op)?),
        })
    }

    /// The member that a command names as `source=`, which has to be a source.
    pub(super) fn named_source(&self, name: &str) -> Result<MemberId, Refusal> {
        let at = |refusal: Refusal| refusal.at(format!("source={name}"));
        let id = self.find(name).map_err(at)?;
        if self.sources.all().contains(id) {
            return Ok(id);
        }
        let state = self.members[id.index()].state.name();
        let text = format!("{name} is {state}, and not a source member");
        Err(at(Refusal::new(Code::NotASource, text)))
    }

    /// What would be done, as an answer.
    fn would(&self, judged: &Judged, expected: &[(CopyKind, u64)]) -> Answer {
        let name = |id: &MemberId| self.members[id.index()].name.as_str();
        let (verdict, text) = match judged {
            Judged::Attach(attach, plan) => {
                let text = format!("{} would be attached", attach.word);
                return plan.answer(text, expected);
            }
            Judged::Resize(geometry, _) => {
                return self.growth_answer("the unit would have", self.geometry, *geometry);
            }
            Judged::Merge(plan) => return merge_answer(plan, expected),
            Judged::Verify(plan) => return Self::verify_answer(plan),
            Judged::Limit(op, rate) => return limit_answer(*op, *rate),
            Judged::Tune(id, tuning) => return tuning_answer(name(id), *tuning),
            Judged::Detach(id, policy) => {
                let policy = policy.name();
                let text = format!("{} would be detached with policy={policy}", name(id));
                return answer("detach", text).with("policy", policy);
            }
            Judged::Stall(seconds) => ("stall", self.would_stall(*seconds)),
            Judged::Unstall => ("unstall", "changes would go on".to_owned()),
            Judged::Expel(id) => ("expel", format!("{} would be expelled", name(id))),
            Judged::Release(id) => ("release", format!("{} would be released", name(id))),
            Judged::Abort(silent) => {
                let text = format!("nothing would wait for {} any longer", self.names(*silent));
                ("abort", text)
            }
            Judged::ResetCounters => {
                let text = "all counters would begin at 0 again";
                ("reset-counters", text.to_owned())
            }
            Judged::DeleteBitmap(id, bitmap) => {
                let text = format!(
                    "bitmap {bitmap} would be deleted, and {} would need a full copy",
                    name(id)
                );
                ("delete-bitmap", text)
            }
            Judged::Pause(op) => ("pause", format!("operation {op} would be held")),
            Judged::Resume(op) => ("resume", format!("operation {op} would go on")),
            Judged::Cancel(id, op) => {
                let text = format!("operation {op} would end, and {} be detached", name(id));
                ("cancel", text)
            }
            Judged::EndVerify(op) => ("cancel", format!("operation {op} would end")),
            Judged::Forget(op) => ("forget", format!("operation {op} would be forgotten")),
        };
        answer(verdict, text)
    }
}

fn merge_answer(plan: &MergePlan, expected: &[(CopyKind, u64)]) -> Answer {
    let (kind, bytes) = (plan.kind.name(), plan.map.stale_bytes());
    let members = plan.others.len();
    let into = members_text(members);
    let text = format!("{kind} of {bytes} bytes into {into} would begin");
    answer(kind, text)
        .with("bytes", &bytes.to_string())
        .with("extents", &plan.map.runs().count().to_string())
        .with("eta", &eta_text(plan.kind.eta(bytes, expected)))
}

/// A number of members, for a sentence.
pub(super) fn members_text(count: usize) -> String {
    match count {
        1 => "1 member".to_owned(),
        many => format!("{many} members"),
    }
}

fn limit_answer(op: OpId, rate: u64) -> Answer {
    set_answer(&format!("{op}.rate_max"), &rate_text(rate))
}

fn tuning_answer(member: &str, tuning: Tuning) -> Answer {
    let (what, value) = match tuning {
        Tuning::ReadCost(value) => ("read_cost", value),
        Tuning::Site(value) => ("site", value),
        Tuning::Timeout(value) => ("timeout", value),
    };
    set_answer(&format!("{member}.{what}"), &value.to_string())
}

/// What a dry run of `set` answers.
#[must_use]
pub fn set_answer(parameter: &str, value: &str) -> Answer {
    answer("set", format!("{parameter} would be {value}"))
        .with("parameter", parameter)
        .with("value", value)
}

pub(super) fn answer(verdict: &str, text: String) -> Answer {
    Answer {
        text,
        facts: vec![("verdict", verdict.to_owned())],
    }
}

impl Answer {
    fn with(mut self, key: &'static str, value: &str) -> Self {
        self.facts.push((key, value.to_owned()));
        self
    }
}
