//! Events and effects: everything that goes into the set and everything that comes out of it.

use super::copy::{CopyKind, CopyWork, OpId};
use super::findings::Counts;
use super::geometry::{ByteRange, Bytes, Geometry};
use super::limits::Limits;
use super::member::{BitmapId, MemberId, MemberSet, Policy};
use super::record::HomeChange;
use super::refusal::Refusal;
use super::said::Said;
use super::scb::Generation;
use super::stall::StallEnd;
use super::verify::{RepairBy, VerifyWork};
use super::view::{Epoch, View};

/// A question that is answered exactly once, by [`Effect::Reply`] or [`Effect::Settle`].
#[derive(PartialEq, Eq, Debug)]
#[must_use = "somebody waits for the answer"]
pub struct Ticket(u64);

impl Ticket {
    /// A ticket with the asker's number.
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// The asker's number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0
    }
}

/// Number of a flush that the set has asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlushId(pub u64);

/// Number of an image that the shell has opened for an attach.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CandidateId(pub u64);

/// What an attach may do to bring the member in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AttachPolicy {
    /// A minicopy or nothing.
    Minicopy,
    /// A minicopy if possible; a compare copy where the image was changed or its medium failed; else a full copy.
    #[default]
    MinicopyOptional,
    /// A compare copy.
    Compare,
    /// A full copy.
    Full,
    /// No copy at all.
    Nocopy,
}

/// Whom an attach brings in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Joiner {
    /// A member that has departed.
    Departed(MemberId),
    /// An image that was no member.
    New {
        /// Its name in the set.
        name: String,
        /// Its identity.
        uuid: uuid::Uuid,
        /// Path of the image.
        path: String,
    },
}

/// An attach whose image has been opened and looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attach {
    /// The word of the command that names the member or image.
    pub word: String,
    /// Who comes in.
    pub joiner: Joiner,
    /// The opened image.
    pub candidate: CandidateId,
    /// Size of the image.
    pub size: Bytes,
    /// Whether the image holds nothing but zeros.
    pub blank: bool,
    /// Whether it does behind the end that the unit had when the member left.
    pub blank_tail: bool,
    /// Why the image is not as the set left it, when it is not.
    pub changed: Option<String>,
    /// What the block of a departed member says; `None` when it has none.
    pub said: Option<Said>,
    /// Whether nothing shows that the image was ever this member.
    pub foreign: bool,
    /// What may be done.
    pub policy: AttachPolicy,
    /// The source that the copy should read, by name; `None` for the cheapest.
    pub source: Option<String>,
    /// Whether the operator agrees to overwrite an image that was never a member.
    pub confirm: bool,
}

/// What decides which member is read, with its new value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tuning {
    /// Cost of a read.
    ReadCost(u32),
    /// Site of the member.
    Site(u32),
    /// Seconds that it may leave requests unanswered before it is expelled; 0 for those of the unit.
    Timeout(u32),
}

/// A command of the operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Take a member out on purpose.
    Detach {
        /// Its name.
        member: String,
        /// What is wanted of a bitmap.
        policy: Policy,
    },
    /// Bring a member in.
    Attach(Box<Attach>),
    /// Take a member out at once, as after an error.
    Expel {
        /// Its name.
        member: String,
    },
    /// Have a departed member give up its membership: its row and its bitmap go.
    Release {
        /// Its name.
        member: String,
    },
    /// Make the unit larger.
    Resize {
        /// Its new size; `None` for the largest that all its members have room for.
        size: Option<Bytes>,
        /// What the images of its members have room for now.
        room: Vec<(MemberId, Bytes)>,
    },
    /// Make the other sources equal to the master.
    Merge {
        /// Everywhere, not only where writes may be in flight.
        full: bool,
    },
    /// Have changes of applications wait, and everything flushed.
    Stall {
        /// How long at most; the shell ends it.
        seconds: u64,
    },
    /// Let changes go on.
    Unstall,
    /// Compare the sources.
    Verify {
        /// First and last block; `None` for the whole unit.
        range: Option<(u64, u64)>,
        /// Whether and how what differs is repaired.
        repair: Option<RepairBy>,
    },
    /// Read a member sooner or later than the others from now on.
    Tune {
        /// Its name.
        member: String,
        /// What changes.
        tuning: Tuning,
    },
    /// Wait no longer for members that do not answer.
    Abort,
    /// Have the errors of members, and all that the shell counts, be counted from 0 again.
    ResetCounters,
    /// Delete an unused bitmap.
    DeleteBitmap {
        /// Its number.
        id: BitmapId,
    },
    /// Let an operation read no more than so many bytes per second from now on.
    Limit {
        /// Which operation.
        op: OpId,
        /// The rate; [`UNLIMITED`](super::UNLIMITED) for no limit of its own.
        rate: u64,
    },
    /// Hold an operation.
    Pause(OpId),
    /// Let an operation go on.
    Resume(OpId),
    /// End an operation; the member that it fills is detached and keeps what is left of its bitmap.
    Cancel(OpId),
    /// Forget a finished operation.
    Forget(OpId),
}

/// Why a copy came back from the copier.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CopyEnd {
    /// Nothing is stale any more.
    Drained,
    /// It was told to stop.
    Stopped,
    /// The target could not be written, and whether that was an error of its medium.
    TargetFailed(String, bool),
    /// No source could be read.
    SourceFailed(String),
}

/// Results of a request that failed on at least one member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What was written; `None` for a flush.
    pub range: Option<ByteRange>,
    /// Members on which it was good.
    pub good: MemberSet,
    /// Members on which it failed.
    pub failed: MemberSet,
    /// Those of them whose medium failed: they may hold other bytes than were ever written.
    pub media: MemberSet,
    /// The epoch of the request: it tells nothing of members that have come back since.
    pub epoch: Epoch,
    /// What the members answered, for people.
    pub causes: Vec<(MemberId, String)>,
}

impl Failure {
    /// What a member answered: a sentence that begins with `what` failed.
    pub(super) fn reason(&self, id: MemberId) -> String {
        let what = match self.range {
            Some(_) => "a write failed",
            None => "a flush failed",
        };
        match self.causes.iter().find(|(member, _)| *member == id) {
            Some((_, cause)) => format!("{what}: {cause}"),
            None => what.to_owned(),
        }
    }
}

/// What goes in.
#[derive(Debug)]
pub enum Event {
    /// A command.
    Command(Ticket, Command),
    /// A command has waited too long.
    TimedOut(u64),
    /// No request of this epoch is left.
    Retired(Epoch),
    /// A flush has ended: members on which it failed, and those of them whose medium is to blame.
    Flushed(FlushId, MemberSet, MemberSet),
    /// A write or flush failed on some members; its fence is held until the answer.
    Failed(Ticket, Failure),
    /// A read failed on a member and was answered from another, or not at all.
    ReadFailed(MemberId),
    /// A range that a member could not read was rewritten, and can be read now.
    ReadRepaired(MemberId, ByteRange),
    /// A copy has come back.
    CopyEnded(Box<CopyWork>, CopyEnd),
    /// A verify has found its first difference, in this block.
    VerifyDiffers(OpId, u64),
    /// A verify has come to its end, with everything compared or before.
    VerifyEnded(OpId, bool),
    /// Storage control blocks of these members could not be written; with the generations that they hold.
    BlocksFailed(Vec<(MemberId, Option<Generation>)>),
    /// The storage control block of a member that has left says so, with this generation. Of an earlier departure it is of
    /// no account.
    Told(MemberId, Generation),
    /// The members that have owed an answer for a while.
    Silent(MemberSet),
    /// A member has not answered for longer than it may: why it has to leave, as a sentence says it.
    GivenUp(MemberId, String),
    /// The requests of a member have taken too long for a while.
    TooSlow(MemberId),
    /// No source has answered for longer than the unit may wait.
    WaitedEnough,
    /// All calls of the image of a member that was expelled have returned.
    Quiet(MemberId),
    /// Bitmaps can be kept no longer: those that are kept must not be believed after a restart.
    HomeLost(Refusal),
    /// What a resize needs is prepared: the members that hold nothing but zeros behind the unit's end, by the
    /// number of its command.
    GrowthReady(u64, Result<MemberSet, Refusal>),
    /// Some time has passed: a moment to rotate the write-intent bitmap.
    Tick,
    /// As a tick, but the write-intent bitmap stays.
    Beat,
    /// Other limits are in force.
    Limits(Limits),
    /// A stall ends, though nobody has asked for that.
    StallOver(StallEnd),
    /// No request will come any more: stop copies, flush, mark the members clean.
    Shutdown,
}

/// The answer to a good command.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// One sentence.
    pub text: String,
    /// Facts: key and value.
    pub facts: Vec<(&'static str, String)>,
}

/// What a request with failures comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Every source that is left has it: acknowledge.
    Acknowledge,
    /// No source has it: the application gets the error.
    Fail,
}

/// What has become of a write bitmap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BitmapChange {
    /// From now on it marks what its member lacks. The policy that it was made under.
    Started(Policy),
    /// Its member has come back, and this operation drains it.
    Taken(OpId),
    /// Its member has left again before this operation was done: it marks what the member lacks still.
    Returned(OpId),
    /// There is no such bitmap any more. Why, as part of a sentence.
    Deleted(&'static str),
}

/// Something that people and their programs want to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A member has left on purpose.
    Detached {
        /// Which.
        member: MemberId,
        /// Its new bitmap.
        bitmap: Option<BitmapId>,
    },
    /// A member has left by an error.
    Expelled {
        /// Which.
        member: MemberId,
        /// Why.
        reason: String,
    },
    /// An operation has been admitted.
    CopyQueued(OpId, CopyKind, MemberId),
    /// An operation has started.
    CopyStarted(OpId, CopyKind, MemberId),
    /// An operation has ended.
    CopyEnded {
        /// Which.
        op: OpId,
        /// What it was.
        kind: CopyKind,
        /// Its target.
        member: MemberId,
        /// The word of its last state.
        end: &'static str,
        /// Bytes that were moved.
        copied_bytes: u64,
    },
    /// A verify of these bytes has started.
    VerifyStarted(OpId, ByteRange),
    /// A verify has found its first difference, in this block.
    VerifyDiffers(OpId, u64),
    /// A verify has ended.
    VerifyEnded {
        /// Which.
        op: OpId,
        /// The word of its last state.
        state: &'static str,
        /// The blocks that it has found.
        counts: Counts,
        /// Why it has ended before its time.
        reason: Option<String>,
    },
    /// A member has become a source.
    Joined(MemberId),
    /// A request failed on every source, and what each answered.
    FailedEverywhere(String),
    /// A read failed on a member.
    ReadError(MemberId),
    /// A range that a member could not read was rewritten, and can be read now.
    ReadRepaired(MemberId, ByteRange),
    /// A member does not answer: requests wait for it.
    Silent(MemberId),
    /// It has answered.
    Answers(MemberId),
    /// Nothing waits any longer for these members: what they alone could answer has failed.
    Aborted(MemberSet),
    /// Something has become of the write bitmap of a member, given by name: it may be none any more.
    Bitmap(BitmapId, String, BitmapChange),
    /// The write-intent bitmap has begun anew; so many regions were marked in the one before.
    IntentAnew(u64),
    /// A member is read sooner or later than before: its name, what has changed, the old and the new value.
    Tuned(String, &'static str, u32, u32),
    /// An operation has another largest rate: the old and the new one.
    Limited(OpId, u64, u64),
    /// A member has given up its membership.
    Released(String),
    /// Everything is counted from 0 again.
    CountersReset,
    /// Bitmaps are in memory only from now on.
    HomeLost(String),
    /// Changes of applications wait, for so many seconds at most, and the sources are quiet.
    Stalled(u64),
    /// Changes go on.
    Unstalled(StallEnd),
    /// The unit has become larger.
    Resized {
        /// Its size before.
        from: Bytes,
        /// Its size.
        to: Bytes,
    },
}

/// What comes out; the shell carries effects out in order.
#[derive(Debug)]
pub enum Effect {
    /// The candidate is now the member's storage.
    Adopt(CandidateId, MemberId),
    /// Write this generation to the members' storage control blocks, durably, before going on (I3).
    Persist {
        /// The generation.
        generation: Generation,
        /// Whether the set is closed in good order.
        clean: bool,
        /// Whose blocks.
        to: MemberSet,
    },
    /// Change what is kept of bitmaps, durably, before going on. Nothing where bitmaps have no home.
    Home(HomeChange),
    /// Prepare a home of bitmaps for a unit of this geometry, and look at what the members hold behind the
    /// unit's end: [`Event::GrowthReady`] with this number.
    PrepareGrowth(u64, Geometry),
    /// Have new changes of applications wait, before they pin an epoch. Reads and flushes go on.
    Hold,
    /// Let changes go on; what was prepared and not used is dropped. Carried out with the answers.
    Lift,
    /// Have new changes of applications wait, before they pin an epoch, for at most so many seconds from now:
    /// then [`Event::StallOver`]. Reads and flushes go on.
    Stall(u64),
    /// Let changes go on that wait by [`Effect::Stall`].
    Unstall,
    /// Publish the View; tell when the one before has retired.
    Publish(Box<View>),
    /// Flush these members and tell which failed.
    Flush(FlushId, MemberSet),
    /// A flush has failed on every source: the system tells of lost writes once, so whoever has the unit open has to be
    /// told with its next flush (I10).
    FlushLost,
    /// Hand the work to the copier.
    StartCopy(Box<CopyWork>),
    /// Hand the work to the verifier.
    StartVerify(Box<VerifyWork>),
    /// Hold a running copy or verify: no step begins until it is resumed.
    PauseCopy(OpId),
    /// Let a held copy or verify go on.
    ResumeCopy(OpId),
    /// Have the copier give the work back, or the verifier end.
    StopCopy(OpId),
    /// Nothing waits any longer for calls of a member that has been expelled: what they may do to its image, its
    /// bitmap tells.
    GiveUp(MemberId),
    /// Answer with errors what waits for these members; they stay what they are.
    Abort(MemberSet),
    /// Let go of the member's storage; [`Event::Quiet`] when all calls of it have returned.
    Close(MemberId),
    /// It is no member any more: its control block says nothing that is true.
    Release(MemberId),
    /// Answer a command.
    Reply(Ticket, Result<Answer, Refusal>),
    /// Answer a request that failed on some members.
    Settle(Ticket, Verdict),
    /// Tell people.
    Notice(Notice),
    /// The set is closed; not in good order when writes may be lost on every source.
    Stopped {
        /// Whether the members are flushed and marked clean.
        clean: bool,
    },
}
