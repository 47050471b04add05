//! Operations: what people see of copies, running and the last sixteen finished.

use std::sync::Arc;

use super::copy::{CopyKind, OpId, Progress};
use super::member::{BitmapTag, MemberId, Moment};

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
