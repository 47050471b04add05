//! Operations: what people see of copies and verifies, running and the last sixteen finished, and how they hold them.

use std::sync::Arc;

use super::copy::{CopyKind, OpId, Progress, rate_text};
use super::event::{Answer, Effect, Notice, Ticket};
use super::findings::Repair;
use super::member::{BitmapTag, MemberId, MemberState, Moment, Phase};
use super::refusal::{Code, Refusal};
use super::shadow::ShadowSet;
use super::verify::Verify;

/// Finished operations that are remembered.
pub const OPERATIONS_KEPT: usize = 16;

/// State of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpState {
    /// Waits for its turn.
    Queued,
    /// Copies, or compares.
    Running,
    /// Held by the operator.
    Paused,
    /// Has ended well.
    Done,
    /// Has ended by an error.
    Failed,
    /// Was ended by the operator.
    Cancelled,
}

impl OpState {
    /// The word that `operations/*/state` shows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// What an operation does.
#[derive(Clone, Debug)]
pub enum Task {
    /// Fills a member.
    Copy {
        /// What it started from.
        kind: CopyKind,
        /// The member that is filled.
        target: MemberId,
        /// The master when it was admitted.
        source: MemberId,
        /// The bitmap that it drains, when that has a number.
        tag: Option<BitmapTag>,
    },
    /// Compares the sources.
    Verify(Verify),
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its number.
    pub id: OpId,
    /// What it does.
    pub task: Task,
    /// Its state.
    pub state: OpState,
    /// When it was admitted.
    pub queued: Moment,
    /// When it first ran.
    pub started: Option<Moment>,
    /// When it ended.
    pub finished: Option<Moment>,
    /// Its counters.
    pub progress: Arc<Progress>,
}

impl Operation {
    /// The word that `operations/*/kind` shows.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match &self.task {
            Task::Copy { kind, .. } => kind.name(),
            Task::Verify(_) => "verify",
        }
    }

    /// The member that it fills, when it fills one.
    #[must_use]
    pub fn target(&self) -> Option<MemberId> {
        match &self.task {
            Task::Copy { target, .. } => Some(*target),
            Task::Verify(_) => None,
        }
    }

    /// The master when a copy was admitted, or the source whose bytes a verify takes for right.
    #[must_use]
    pub fn source(&self) -> Option<MemberId> {
        match &self.task {
            Task::Copy { source, .. } => Some(*source),
            Task::Verify(verify) => match verify.repair {
                Some(Repair::From(source)) => Some(source),
                Some(Repair::Majority) | None => None,
            },
        }
    }

    /// The bitmap that it drains, when that has a number.
    #[must_use]
    pub fn tag(&self) -> Option<BitmapTag> {
        match &self.task {
            Task::Copy { tag, .. } => *tag,
            Task::Verify(_) => None,
        }
    }

    /// What it compares, when it is a verify.
    #[must_use]
    pub fn verify(&self) -> Option<&Verify> {
        match &self.task {
            Task::Copy { .. } => None,
            Task::Verify(verify) => Some(verify),
        }
    }
}

impl ShadowSet {
    /// Has a copy that was just made read this source as long as it can, where one was named.
    pub(super) fn read_from(
        &mut self,
        from: Option<MemberId>,
        mut state: MemberState,
    ) -> MemberState {
        if let (Some(from), MemberState::Target { op, phase, .. }) = (from, &mut state) {
            if let Phase::Joining(work) = phase {
                work.read_from(from);
            }
            let operation = self.operations.iter_mut().find(|o| o.id == *op);
            if let Some(Task::Copy { source, .. }) = operation.map(|o| &mut o.task) {
                *source = from;
            }
        }
        state
    }

    /// Whether an operation is in this state.
    pub(super) fn may_steer(&self, op: OpId, from: OpState) -> Result<OpId, Refusal> {
        let state = self.operations.iter().find(|o| o.id == op).map(|o| o.state);
        match state {
            Some(s) if s == from => Ok(op),
            Some(s) if !s.is_over() => {
                let text = format!("operation {op} is {}", s.name());
                let hint = match s {
                    OpState::Queued => "it waits for its turn: see max_copies and priority",
                    _ => "its state file says what it does now",
                };
                let refusal = Refusal::new(Code::StateChanged, text).at(op.to_string());
                Err(refusal.with_hint(hint))
            }
            _ => Err(self.not_running(op)),
        }
    }

    /// The copier has an operation. One that was paused at its last flush, which was not the last one, stays so.
    pub(super) fn runs(&mut self, op: OpId) {
        let mut paused = self
            .operations
            .iter()
            .filter(|o| o.state == OpState::Paused);
        match paused.any(|o| o.id == op) {
            true => self.push(Effect::PauseCopy(op)),
            false => self.set_operation(op, OpState::Running),
        }
    }

    /// Holds an operation or lets it go on.
    pub(super) fn steer(&mut self, ticket: Ticket, op: OpId, to: OpState) {
        self.set_operation(op, to);
        self.push(match to {
            OpState::Paused => Effect::PauseCopy(op),
            _ => Effect::ResumeCopy(op),
        });
        let text = format!("operation {op} is {}", to.name());
        self.accept(
            ticket,
            Answer {
                text,
                facts: Vec::new(),
            },
        );
    }

    /// Whether an operation can have another rate: it has not ended.
    pub(super) fn may_limit(&self, op: OpId) -> Result<OpId, Refusal> {
        let lives = |o: &&Operation| o.id == op && !o.state.is_over();
        match self.operations.iter().find(lives) {
            Some(_) => Ok(op),
            None => Err(self.not_running(op)),
        }
    }

    /// Gives an operation another largest rate; its copy goes by it at once.
    pub(super) fn limit_rate(&mut self, ticket: Ticket, op: OpId, rate: u64) {
        let found = self.operations.iter().find(|o| o.id == op);
        let old = found.map_or(rate, |operation| operation.progress.limit(rate));
        if old != rate {
            self.push(Effect::Notice(Notice::Limited(op, old, rate)));
        }
        let parameter = format!("{op}.rate_max");
        let text = format!("{parameter} is {}", rate_text(rate));
        let facts = vec![
            ("parameter", parameter),
            ("value", rate_text(rate)),
            ("old", rate_text(old)),
        ];
        self.accept(ticket, Answer { text, facts });
    }

    /// Whether an operation can be forgotten: it has ended.
    pub(super) fn may_forget(&self, op: OpId) -> Result<OpId, Refusal> {
        match self.operations.iter().find(|o| o.id == op) {
            Some(o) if o.state.is_over() => Ok(op),
            Some(_) => {
                let text = format!("operation {op} has not ended");
                Err(Refusal::new(Code::InUse, text).at(op.to_string()))
            }
            None => Err(self.not_running(op)),
        }
    }

    pub(super) fn forget(&mut self, ticket: Ticket, op: OpId) {
        self.operations.retain(|o| o.id != op);
        let answer = Answer {
            text: format!("operation {op} is forgotten"),
            facts: Vec::new(),
        };
        self.accept(ticket, answer);
    }

    /// Why an operation cannot be steered: it is over, or there is none.
    pub(super) fn not_running(&self, op: OpId) -> Refusal {
        let word = op.to_string();
        match self.operations.iter().find(|o| o.id == op) {
            Some(o) => {
                let text = format!("operation {op} is {} already", o.state.name());
                let refusal = Refusal::new(Code::StateChanged, text).at(word);
                refusal.with_hint("nothing can be done with an operation that has ended")
            }
            None => Refusal::new(Code::NoSuchOperation, format!("no operation {op}")).at(word),
        }
    }
}
