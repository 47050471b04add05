//! The shadow server: runs the rules of the set on real storage.
//!
//! One control thread owns the set: events in, effects out. The data path is parallel and meets it in the
//! published View. This module must not know of any face.

/// Debug builds can make one mistake on purpose; release builds none.
macro_rules! makes {
    ($mistake:ident) => {{
        #[cfg(debug_assertions)]
        let planted = crate::set::planted::is(crate::set::planted::Mistake::$mistake);
        #[cfg(not(debug_assertions))]
        let planted = false;
        planted
    }};
}

mod admission;
#[doc(hidden)]
pub mod bare;
mod candidate;
mod change;
mod chronicle;
mod compare;
mod copier;
pub mod create;
mod departure;
mod dissolve;
mod durable;
mod errand;
pub mod fence;
mod flushing;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gate;
mod growth;
pub mod handle;
mod herald;
mod home;
mod immutable;
#[cfg(shuttle)]
pub mod inspect;
mod lane;
mod merging;
mod message_mode;
pub mod meter;
pub mod params;
pub mod pipeline;
mod publish;
mod queued;
mod reading;
mod record;
mod repair;
mod rescue;
mod results;
mod returning;
mod roster;
mod run;
mod seat;
mod seek;
pub mod setup;
mod shares;
mod sources;
mod speed;
mod stall;
mod start;
mod step;
mod streams;
pub mod tally;
mod throttle;
mod tune;
mod verification;
mod verifier;
mod waiting;
mod watch;

pub use chronicle::{EVENTS_KEPT, EventRecord};
pub use handle::{Done, Ender, Handle, Published, Rate, Request};
pub use pipeline::{Errno, Pipeline};
pub use record::EVENTS;
pub use roster::Rehearsed;
pub use start::{Running, rehearse, start};

use crate::sync::channel::Sender;

use crate::set::{
    ByteRange, Event, Failure, FlushId, MemberId, MemberSet, Refusal, Stamp, Verdict,
};

/// What the control thread is told.
pub(crate) enum Message {
    /// A command of an operator.
    Request(Request, Done),
    /// Something has happened.
    Event(Event),
    /// A flush of the set's own has ended.
    Flushed(FlushId, Box<results::Results>),
    /// All calls of a member that has left may have returned.
    Returned,
    /// A member could not read a range.
    ReadFailed(MemberId, ByteRange),
    /// The image of an attach has been looked at.
    Looked(u64, Box<candidate::Looked>),
    /// What a growth of the unit needs is there, or why not.
    GrowthPrepared(u64, Box<Result<(growth::Prepared, MemberSet), Refusal>>),
    /// A write could not make its bits durable; its thread waits until the journal is given up.
    HomeLost(String, Sender<()>),
    /// The image of an expelled member has been looked at; the number tells which departure.
    Stamped(MemberId, u64, Result<Stamp, String>),
    /// A request failed on some members; its thread waits for the verdict.
    Failed(Failure, Sender<Verdict>),
}
