//! Operations: what people see of copies, running and the last sixteen finished, and how they hold them.

use std::sync::Arc;

use super::copy::{CopyKind, OpId, Progress, rate_text};
use super::event::{Answer, Effect, Notice, Ticket};
use super::member::{BitmapTag, MemberId, Moment};
use super::refusal::{Code, Refusal};
use super::shadow::ShadowSet;

/// Finished operations that are remembered.
pub const OPERATIONS_KEPT: usize = 16;

/// State of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpState {
    /// Waits for its turn.
    Queued,
    /// Copies.
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

/// One operation.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its number.
    pub id: OpId,
    /// What it is.
    pub kind: CopyKind,
    /// The member that is filled.
    pub target: MemberId,
    /// The master when it was admitted.
    pub source: MemberId,
    /// Its state.
    pub state: OpState,
    /// The bitmap that it drains, when that has a number.
    pub tag: Option<BitmapTag>,
    /// When it was admitted.
    pub queued: Moment,
    /// When it first ran.
    pub started: Option<Moment>,
    /// When it ended.
    pub finished: Option<Moment>,
    /// Its counters.
    pub progress: Arc<Progress>,
}

impl ShadowSet {
    pub(super) fn pause(&mut self, ticket: Ticket, op: OpId) {
        self.steer(ticket, op, OpState::Running, OpState::Paused);
    }

    pub(super) fn resume(&mut self, ticket: Ticket, op: OpId) {
        self.steer(ticket, op, OpState::Paused, OpState::Running);
    }

    fn steer(&mut self, ticket: Ticket, op: OpId, from: OpState, to: OpState) {
        let state = self.operations.iter().find(|o| o.id == op).map(|o| o.state);
        if state != Some(from) {
            let refusal = match state {
                Some(s) if !s.is_over() => {
                    let text = format!("operation {op} is {}", s.name());
                    Refusal::new(Code::StateChanged, text).at(op.to_string())
                }
                _ => self.not_running(op),
            };
            return self.refuse(ticket, refusal);
        }
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

    /// Gives an operation that has not ended another largest rate; its copy goes by it at once.
    pub(super) fn limit_rate(&mut self, ticket: Ticket, op: OpId, rate: u64) {
        let found = self.operations.iter().find(|o| o.id == op);
        let Some(operation) = found.filter(|o| !o.state.is_over()) else {
            let refusal = self.not_running(op);
            return self.refuse(ticket, refusal);
        };
        let old = operation.progress.limit(rate);
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

    pub(super) fn forget(&mut self, ticket: Ticket, op: OpId) {
        let found = self.operations.iter().position(|o| o.id == op);
        match found.map(|i| (i, self.operations[i].state.is_over())) {
            Some((index, true)) => {
                self.operations.remove(index);
                let text = format!("operation {op} is forgotten");
                self.accept(
                    ticket,
                    Answer {
                        text,
                        facts: Vec::new(),
                    },
                );
            }
            Some((_, false)) => {
                let text = format!("operation {op} has not ended");
                self.refuse(ticket, Refusal::new(Code::InUse, text).at(op.to_string()));
            }
            None => {
                let refusal = self.not_running(op);
                self.refuse(ticket, refusal);
            }
        }
    }

    /// Why an operation cannot be steered: it is over, or there is none.
    pub(super) fn not_running(&self, op: OpId) -> Refusal {
        let word = op.to_string();
        match self.operations.iter().find(|o| o.id == op) {
            Some(o) => {
                let text = format!("operation {op} is {} already", o.state.name());
                Refusal::new(Code::StateChanged, text).at(word)
            }
            None => Refusal::new(Code::NoSuchOperation, format!("no operation {op}")).at(word),
        }
    }
}
