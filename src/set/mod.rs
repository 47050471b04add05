//! The core: the shadow set as a value.
//!
//! No I/O, no threads, no clock, no log and no unsafe code in this folder. Events come in, effects
//! go out; the shadow server and the simulator carry them out.

pub mod assess;
pub mod bitmap;
mod command;
pub mod copy;
mod epochs;
pub mod event;
mod fault;
pub mod findings;
pub mod geometry;
mod grow;
pub mod join;
mod judge;
mod leave;
mod limits;
pub mod member;
pub mod mount;
pub mod operation;
mod pending;
#[cfg(debug_assertions)]
#[doc(hidden)]
pub mod planted;
pub mod record;
pub mod refusal;
pub mod route;
pub mod said;
pub mod scb;
pub mod shadow;
mod silence;
mod stall;
pub mod stamp;
pub mod status;
#[cfg(test)]
pub(crate) mod tests;
pub mod verify;
pub mod view;
mod written;

pub use assess::{Assembly, Found, ScbFound, Start, assess};
pub use bitmap::{OwnedBitmap, WriteBitmap};
pub use copy::{
    CopyKind, CopyStep, CopyWork, MergeRest, OpId, Piece, Progress, UNLIMITED, pieces, rate_text,
};
pub use event::{
    Answer, Attach, AttachPolicy, BitmapChange, CandidateId, Command, CopyEnd, Effect, Event,
    Failure, FlushId, Joiner, Notice, Ticket, Tuning, Verdict,
};
pub use findings::{
    Contents, Counts, Difference, Digest, Fate, Findings, Repair, Report, Run, compare,
};
pub use geometry::{BlockRange, ByteRange, Bytes, Geometry, Lbn, Region, Regions};
pub use join::{AttachPlan, calls_are_out};
pub use judge::set_answer;
pub use limits::Limits;
pub use member::{
    BitmapId, BitmapTag, Member, MemberId, MemberSet, MemberState, Moment, Policy, Returns, Sources,
};
pub use mount::{Beginning, Past};
pub use operation::{OpState, Operation, Task};
pub use record::{BitmapKind, BitmapRecord, Home, HomeChange, Homeless};
pub use refusal::{Code, Refusal};
pub use route::{Preference, READ_COST};
pub use said::{Said, has_no_bitmap};
pub use scb::{Generation, Lineage, Scb, ScbRow, ScbState};
pub use shadow::ShadowSet;
pub use stall::StallEnd;
pub use stamp::Stamp;
pub use status::{BitmapStatus, MemberStatus, SetState, SetStatus};
pub use verify::{RepairBy, Verify, VerifyWork};
pub use view::{Epoch, Marked, MergeStep, Outcome, Role, Seat, View};
pub use written::Written;
