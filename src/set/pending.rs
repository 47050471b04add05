//! The command that is under way, and not answered yet.

use super::copy::OpId;
use super::event::Ticket;
use super::geometry::Geometry;
use super::grow::GrowthStage;
use super::member::{MemberId, Policy};
use super::stall::StallStage;

/// A command that is not answered yet.
#[derive(Debug)]
pub(super) enum Pending {
    Detach {
        ticket: Ticket,
        member: MemberId,
        policy: Policy,
    },
    Attach {
        ticket: Ticket,
        member: MemberId,
    },
    Cancel {
        ticket: Ticket,
        member: MemberId,
    },
    EndVerify {
        ticket: Ticket,
        op: OpId,
    },
    Resize {
        ticket: Ticket,
        geometry: Geometry,
        stage: GrowthStage,
    },
    Stall {
        ticket: Ticket,
        seconds: u64,
        stage: StallStage,
    },
}

impl Pending {
    pub(super) fn ticket(&self) -> &Ticket {
        match self {
            Self::Detach { ticket, .. }
            | Self::Attach { ticket, .. }
            | Self::Cancel { ticket, .. }
            | Self::EndVerify { ticket, .. }
            | Self::Resize { ticket, .. }
            | Self::Stall { ticket, .. } => ticket,
        }
    }

    pub(super) fn into_ticket(self) -> Ticket {
        match self {
            Self::Detach { ticket, .. }
            | Self::Attach { ticket, .. }
            | Self::Cancel { ticket, .. }
            | Self::EndVerify { ticket, .. }
            | Self::Resize { ticket, .. }
            | Self::Stall { ticket, .. } => ticket,
        }
    }

    /// The member that it is about, when it is about one.
    pub(super) fn member(&self) -> Option<MemberId> {
        match self {
            Self::Detach { member, .. }
            | Self::Attach { member, .. }
            | Self::Cancel { member, .. } => Some(*member),
            Self::EndVerify { .. } | Self::Resize { .. } | Self::Stall { .. } => None,
        }
    }
}
