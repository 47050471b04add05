//! What people see of the set: a copy of its state with handles on the live counters.

use std::sync::Arc;

use super::bitmap::WriteBitmap;
use super::copy::OpId;
use super::geometry::{Bytes, Geometry};
use super::member::{BitmapId, BitmapTag, Departed, MemberId, MemberState, Moment};
use super::operation::Operation;
use super::scb::{Generation, ScbState};
use super::shadow::ShadowSet;
use super::view::Epoch;

/// State of the whole set, the worst that applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetState {
    /// All is as intended.
    Steady,
    /// A copy runs or waits.
    Copying,
    /// A merge runs or waits.
    Merging,
    /// A member is gone by fault.
    Reduced,
    /// A member does not answer, and requests wait for it.
    MountVerify,
    /// No source answers, and requests fail.
    Failed,
}

impl SetState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Steady,
        Self::Copying,
        Self::Merging,
        Self::Reduced,
        Self::MountVerify,
        Self::Failed,
    ];

    /// The word that `state` shows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Copying => "copying",
            Self::Merging => "merging",
            Self::Reduced => "reduced",
            Self::MountVerify => "mount-verify",
            Self::Failed => "failed",
        }
    }
}

/// One member as people see it.
#[derive(Clone, Debug)]
pub struct MemberStatus {
    /// Which.
    pub id: MemberId,
    /// Its name.
    pub name: String,
    /// Path of the image.
    pub path: String,
    /// Its identity.
    pub uuid: uuid::Uuid,
    /// The word of its state.
    pub state: &'static str,
    /// Why, one sentence; may be empty.
    pub reason: String,
    /// Since when.
    pub since: Moment,
    /// Size of the image.
    pub size: Bytes,
    /// Errors since the mount.
    pub errors: u64,
    /// Cost of a read.
    pub read_cost: u32,
    /// Its site.
    pub site: u32,
    /// Seconds that it may leave requests unanswered; 0 for those of the unit.
    pub timeout: u32,
    /// Whether it answers what it is asked.
    pub answers: bool,
    /// Its bitmap, whether kept for it or being drained.
    pub bitmap: Option<BitmapId>,
    /// Whether it could be attached.
    pub departed: bool,
    /// Why the bitmap that it may have had before the mount is lost.
    pub lost: Option<Arc<str>>,
}

/// One bitmap as people see it.
#[derive(Clone, Debug)]
pub struct BitmapStatus {
    /// Its number and what is known of it; `None` for the write-intent bitmap.
    pub tag: Option<BitmapTag>,
    /// The member that it belongs to; `None` for the write-intent bitmap.
    pub member: Option<MemberId>,
    /// Whether a copy drains it.
    pub in_use: bool,
    /// The bits.
    pub map: Arc<WriteBitmap>,
}

/// The set as people see it.
#[derive(Clone, Debug)]
pub struct SetStatus {
    /// Number of the membership.
    pub epoch: Epoch,
    /// Durable number of the membership.
    pub generation: Generation,
    /// Size and regions.
    pub geometry: Geometry,
    /// The worst state.
    pub state: SetState,
    /// The members in the order of their places.
    pub members: Vec<MemberStatus>,
    /// The bitmaps of departed and returning members.
    pub bitmaps: Vec<BitmapStatus>,
    /// Running, waiting and the last finished operations.
    pub operations: Vec<Operation>,
    /// The source that wins where members may differ.
    pub master: MemberId,
    /// Regions that the write-intent bitmaps mark.
    pub intent_bits: u64,
    /// Why a member that leaves gets no bitmap, although it should.
    pub homeless: Option<String>,
    /// Why bitmaps of the last mount are lost that would be of use.
    pub lost: Option<Arc<str>>,
}

impl SetStatus {
    /// Name of a member.
    #[must_use]
    pub fn name(&self, id: MemberId) -> &str {
        let member = self.members.iter().find(|m| m.id == id);
        member.map_or("", |m| m.name.as_str())
    }

    /// The bitmap with this number.
    #[must_use]
    pub fn bitmap(&self, id: BitmapId) -> Option<&BitmapStatus> {
        self.bitmaps
            .iter()
            .find(|b| b.tag.is_some_and(|t| t.id == id))
    }

    /// The operation with this number.
    #[must_use]
    pub fn operation(&self, id: OpId) -> Option<&Operation> {
        self.operations.iter().find(|o| o.id == id)
    }
}

impl MemberState {
    /// How the state is written into storage control blocks.
    #[must_use]
    pub fn durable(&self) -> ScbState {
        match self {
            Self::Source => ScbState::Source,
            Self::Target { kind, .. } if kind.is_merge() => ScbState::Merging,
            Self::Target { .. } => ScbState::Target,
            Self::Leaving(_) | Self::Detached(_) => ScbState::Detached,
            // What is missing has missed writes by the time anybody reads this.
            Self::Expelled(_) | Self::Missing(_) | Self::Vacant => ScbState::Expelled,
        }
    }
}

impl ShadowSet {
    /// A copy of the state for people.
    #[must_use]
    pub fn status(&self) -> SetStatus {
        SetStatus {
            epoch: self.epoch,
            generation: self.generation,
            geometry: self.geometry,
            state: self.worst(),
            members: self
                .ids()
                .filter(|id| !matches!(self.members[id.index()].state, MemberState::Vacant))
                .map(|id| self.member_status(id))
                .collect(),
            bitmaps: self.ids().filter_map(|id| self.bitmap_status(id)).collect(),
            operations: self.operations.clone(),
            master: self.sources.master(),
            intent_bits: self.intents().map(WriteBitmap::count).sum(),
            homeless: self.home.as_ref().err().map(|why| why.text.clone()),
            lost: self.lost.clone(),
        }
    }

    /// What the members that have left, have left behind.
    pub(super) fn departures(&self) -> impl Iterator<Item = &Departed> {
        self.members.iter().filter_map(|m| m.state.departed())
    }

    /// Whether a member has left.
    #[must_use]
    pub fn has_departed(&self) -> bool {
        self.departures().next().is_some()
    }

    /// Bits that are set in the bitmaps of members that have left.
    #[must_use]
    pub fn departed_bits(&self) -> u64 {
        let maps = self.departures().filter_map(Departed::marks);
        maps.map(|map| map.count()).sum()
    }

    /// The members, by place.
    #[must_use]
    pub fn members(&self) -> &[super::member::Member] {
        &self.members
    }

    /// The source that wins where members may differ.
    #[must_use]
    pub fn master(&self) -> MemberId {
        self.sources.master()
    }

    /// Size of the unit and of its regions.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn worst(&self) -> SetState {
        let any = |is: fn(&MemberState) -> bool| self.members.iter().any(|m| is(&m.state));
        if self.aborted {
            SetState::Failed
        } else if !self.silent.is_empty() {
            SetState::MountVerify
        } else if any(|s| matches!(s, MemberState::Expelled(_) | MemberState::Missing(_))) {
            SetState::Reduced
        } else if any(MemberState::is_merging) {
            SetState::Merging
        } else if any(|s| matches!(s, MemberState::Target { .. })) {
            SetState::Copying
        } else {
            SetState::Steady
        }
    }

    fn member_status(&self, id: MemberId) -> MemberStatus {
        let m = &self.members[id.index()];
        debug_assert!(
            MemberState::WORDS.contains(&m.state.name()),
            "a word of no list"
        );
        MemberStatus {
            id,
            name: m.name.clone(),
            path: m.path.clone(),
            uuid: m.uuid,
            state: m.state.name(),
            reason: m.reason.clone(),
            since: m.since,
            size: m.size,
            errors: m.errors,
            read_cost: m.read_cost,
            site: m.site,
            timeout: m.timeout,
            answers: !self.silent.contains(id),
            bitmap: self.bitmap_status(id).and_then(|b| Some(b.tag?.id)),
            departed: m.state.departed().is_some(),
            lost: m.state.departed().and_then(|d| d.lost.clone()),
        }
    }

    fn bitmap_status(&self, id: MemberId) -> Option<BitmapStatus> {
        let member = Some(id);
        match &self.members[id.index()].state {
            MemberState::Target { op, phase, .. } => {
                let tag = Some(self.operation_tag(*op)?);
                Some(BitmapStatus {
                    tag,
                    member,
                    in_use: true,
                    map: phase.stale(),
                })
            }
            state => {
                let departed = state.departed()?;
                let in_use = departed.is_with_copier();
                Some(BitmapStatus {
                    tag: Some(departed.tag?),
                    member,
                    in_use,
                    map: departed.marks()?,
                })
            }
        }
    }

    /// The write-intent bitmaps: in which regions the members may have writes that are not flushed.
    pub fn intents(&self) -> impl Iterator<Item = &WriteBitmap> {
        let old = self.old_intents.iter().map(|old| &*old.map);
        old.chain(std::iter::once(&*self.intent))
    }

    /// Running, waiting and the last finished operations.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Bytes of an operation that are done, and all of them.
    #[must_use]
    pub fn progress_of(&self, op: OpId) -> Option<(u64, u64)> {
        let operation = self.operations.iter().find(|o| o.id == op)?;
        let progress = &operation.progress;
        Some((progress.done_bytes(), progress.total_bytes()))
    }

    /// The durable number of the membership.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }
}
