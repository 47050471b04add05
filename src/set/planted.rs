//! Planted mistakes: the proof that the simulator looks.
//!
//! Debug builds can switch on one mistake for the running thread; release builds hold none of
//! this. The simulator must fail for each of them, schedules of the server for those of its threads.

use std::cell::Cell;

use super::geometry::ByteRange;
use super::shadow::ShadowSet;

/// The mistakes, each as a variant, in the list of all, and by its name.
macro_rules! mistakes {
    ($($(#[$doc:meta])* $name:ident,)+; $($(#[$of_shell:meta])* $shell:ident,)+) => {
        /// One mistake that a naive program makes.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Mistake {
            $($(#[$doc])* $name,)+
            $($(#[$of_shell])* $shell,)+
        }

        impl Mistake {
            /// Every planted mistake that the simulator looks for.
            pub const ALL: &[Self] = &[$(Self::$name,)+];
            /// Those of the threads around the set, which schedules look for.
            pub const SHELL: &[Self] = &[$(Self::$shell,)+];

            /// The mistake of this name.
            #[must_use]
            pub fn named(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Self::$name),)+
                    $(stringify!($shell) => Some(Self::$shell),)+
                    _ => None,
                }
            }
        }
    };
}

mistakes! {
    /// A member is expelled that does not answer, although no other source does.
    LastGivenUp,
    /// A write that has failed since no member answered lets go of its fence, and comes to one of them later.
    AbortUnfenced,
    /// A read repair takes no fence.
    RepairUnfenced,
    /// A member comes back while calls of its image are under way.
    ReturnUnquiet,
    /// The place of a member that was released is given away while calls of its image are under way.
    PlaceUnquiet,
    /// Only the first region of a request is marked.
    FirstRegionOnly,
    /// The short last region is left out of copies.
    ShortTail,
    /// Application writes pass a copy target by.
    SkipTarget,
    /// A change of membership does not wait for the requests of the epoch before.
    NoRetirement,
    /// A copy step takes no fence.
    CopyWithoutFence,
    /// Bits are set after the member writes.
    BitAfterWrite,
    /// Discards set no bit.
    DiscardForgotten,
    /// A member that leaves by an error gets an empty bitmap.
    NoSeed,
    /// Two writes to the same blocks may run at once.
    NoFence,
    /// The View is loaded before the fence is held.
    ViewBeforeFence,
    /// A request with failures is acknowledged before the set has judged.
    AckBeforeVerdict,
    /// Write-intent bitmaps are dropped without a flush.
    TrimWithoutFlush,
    /// A drained copy becomes a source although bits have come back.
    PromoteUnchecked,
    /// Reads are answered by a copy target.
    ReadTarget,
    /// A detached member is not flushed behind the cut.
    LeaveWithoutFlush,
    /// An expulsion writes no new generation.
    NoGeneration,
    /// A copy step loads the View before its fence is held.
    CopyViewBeforeFence,
    /// A copy step clears its bits after it has let go of its fence and epoch.
    ClearAfterFence,
    /// A flush that an earlier detach or copy began ends a later one.
    StaleFlush,
    /// A write that failed on every source leaves the members as they are.
    NoMerge,
    /// A write that failed on every source sets no bit of members that are leaving.
    LeavingForgotten,
    /// A write is acknowledged before the expulsion is durable.
    SettleBeforePersist,
    /// After an unclean stop members are taken as they are.
    NoMergeAtMount,
    /// The bit in memory is set before the durable one.
    MemoryBitFirst,
    /// A bitmap is used for an older image that came back with its storage control block.
    OldImage,
    /// The write-intent bits of a write are cleared when it is acknowledged.
    IntentClearedByAck,
    /// What a copy has drained is noted as drained without a flush of its target.
    DrainedWithoutFlush,
    /// A copy target of the newest generation is taken as a source at a mount.
    TargetTrusted,
    /// The generation is what the clock says.
    GenerationFromClock,
    /// The bitmap of a member that leaves is kept only after the View without it is published.
    BitmapAfterView,
    /// A write-intent bitmap is forgotten although a departed member's bitmap lacks it still.
    SeedForgotten,
    /// Bitmaps are believed whatever generation they are of.
    BelieveAlways,
    /// A member whose block is older is always taken as left behind by the crash.
    ExcuseAlways,
    /// A read of a region still to be merged is answered without merging it.
    ReadUnmerged,
    /// The block of a member that leaves is written before those of the members that take part.
    BlockOfLeaverAhead,
    /// Bitmaps that are given up prove the generation that gives them up.
    LostHomeProves,
    /// A mount forgets what proves the generation that it has found before it writes another one.
    ProofForgotten,
    /// A bitmap proves a generation that no member's block has got.
    ProofAhead,
    /// A flush is acknowledged while the membership is not durable.
    FlushWhileHalted,
    /// A bitmap is forgotten while the membership that needs it no more is not durable.
    ForgetAhead,
    /// A write goes on with bits in memory only before the loss of their home is durable.
    WriteUnkept,
    /// A command is carried out while the membership that it builds on is not durable.
    CommandWhileHalted,
    /// A compare copy takes a whole step for equal when its first block is.
    CompareBySample,
    /// A compare copy looks at its target before the fence is held.
    CompareBeforeFence,
    /// A copy that joins a step of another takes all before it for copied, as the other has it.
    SharedCursor,
    /// The bits of a copy step are cleared when it has been read, not when it has been written.
    ClearAtRead,
    /// The answer to a cancel comes before the last step has ended.
    CancelEarly,
    /// More copies may run, and none of those that wait starts.
    LimitRaisedInVain,
    /// A copy starts although all are held.
    HeldCopyStarts,
    /// What a bitmap does not cover of a unit that has grown counts as equal.
    TailTrusted,
    /// A unit grows while requests write.
    GrowthWithoutHold,
    /// Sources are not made equal where the unit has grown.
    TailUnmerged,
    /// A dry run judges by fewer rules than the run.
    DryRunApart,
    /// A verify compares while applications write.
    VerifyWithoutFence,
    /// A repair takes what the fewest members hold.
    RepairFromMinority,
    /// A dry run of an attach sets bits in the member's own bitmap.
    DryRunMarks,
    /// A stall is answered while changes are under way.
    StallWithoutWait,
    /// A crash among the blocks that say that a copy has ended has the copy begin anew.
    EndedCopyAnew,
    /// A member that has come back is expelled for what a request or flush of before says.
    ReturnedJudged,
    /// A stall is answered before everything is flushed.
    StallWithoutFlush,
    /// A bitmap is used for an image of the generation in which its member was expelled, although the block of the one that
    /// left says that it has.
    ExpelledUntold,
    /// The block of a member that has left takes the size to which the unit has grown since.
    LeaverGrows,
    /// What is kept of a member that leaves says from the cut on that its block tells of it.
    ToldAtCut,
    /// What a copier still clears is noted as cleared when the unit is stopped.
    StoppedUndrained,
    /// A copy step under way clears what has come into doubt since it has read.
    DoubtCleared,
    /// Copies go on by what they have read of a source that is expelled, which may have lost it.
    SourceTrusted,
    /// Behind a copy its target alone is flushed, and none of those that it was read from.
    PromotedAlone,
    /// Copies end beside a source that is leaving, and intents are forgotten, before its last flush.
    LeaverTrusted,
    /// A member leaves in good order although a flush that failed everywhere was for its image as well.
    LeaverUnflushed,
    /// A copy step copies what lies between the regions that it drains as well.
    GapsCopied,
    ;
    /// Nobody waits for a fence.
    FencePassed,
    /// Who frees a fence looks whether anybody waits before it is free.
    WakeupLost,
    /// An epoch counts as over when the next is published.
    EpochNotAwaited,
    /// The bits of a write are set when it has been made.
    MarkedLate,
    /// A copy step frees its fence before its bits are cleared.
    ClearedLate,
    /// A write that failed on some member is acknowledged before the verdict.
    VerdictNotAwaited,
    /// A flush is acknowledged when the first member has answered.
    FlushHalfAwaited,
    /// A member is flushed again before it is settled whether it leaves since a flush failed.
    FlushTriedAgain,
    /// A change that has waited for its fence does not look at the gate again.
    GateNotAskedAgain,
    /// A read that has ended holds the storage that it read until it is answered.
    StorageHeld,
    /// Who has a request of a member that answers later does not have the member's storage.
    CallForgotten,
}

/// The name of the mistake that the whole build makes: `SHADOWSET_MUTANT=NoFence cargo test`.
const BUILT_IN: Option<&str> = option_env!("SHADOWSET_MUTANT");

thread_local! {
    static PLANTED: Cell<Option<Mistake>> = Cell::new(built_in());
}

/// The mistake that the whole build makes.
///
/// # Panics
///
/// When the build names a mistake that there is not.
fn built_in() -> Option<Mistake> {
    let known = |name| Mistake::named(name).unwrap_or_else(|| panic!("no mistake is named {name}"));
    BUILT_IN.map(known)
}

/// Whether the running thread makes this mistake.
#[must_use]
pub fn is(mistake: Mistake) -> bool {
    PLANTED.get() == Some(mistake)
}

/// Makes the running thread make one mistake, or none but the one that is built in.
pub fn plant(mistake: Option<Mistake>) {
    PLANTED.set(mistake.or_else(built_in));
}

/// Clears write-intent bits in memory, as [`Mistake::IntentClearedByAck`] does.
pub fn clear_intent(set: &ShadowSet, range: ByteRange) {
    set.intent.clear(set.geometry.regions_of(range));
}
