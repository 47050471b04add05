//! Members: who may do what. States own their data; the last source cannot leave.

use std::sync::Arc;

use uuid::Uuid;

use super::bitmap::{OwnedBitmap, WriteBitmap};
use super::copy::{CopyKind, CopyWork, OpId};
use super::geometry::Bytes;
use super::record::{BitmapKind, HomeChange};
use super::view::Epoch;

/// Most members of a shadow set (OpenVMS V8.4).
pub const MEMBERS_MAX: usize = 6;

/// Milliseconds since 1970, for people only: nothing is ever ordered by it (I6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Moment(pub u64);

/// Which member: its place in the set for the life of the process, 0 to 5.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemberId(u8);

impl MemberId {
    /// The place `index`, when the set can have it.
    #[must_use]
    pub fn new(index: usize) -> Option<Self> {
        let id = u8::try_from(index).ok()?;
        (index < MEMBERS_MAX).then_some(Self(id))
    }

    /// The place as an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Some members of a set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct MemberSet(u8);

impl MemberSet {
    /// No member.
    pub const EMPTY: Self = Self(0);

    /// Whether no member is in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Number of members in it.
    #[must_use]
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether the member is in it.
    #[must_use]
    pub fn contains(self, id: MemberId) -> bool {
        self.0 & (1 << id.0) != 0
    }

    /// Puts a member in.
    pub fn insert(&mut self, id: MemberId) {
        self.0 |= 1 << id.0;
    }

    /// Takes a member out.
    pub fn remove(&mut self, id: MemberId) {
        self.0 &= !(1 << id.0);
    }

    /// Members in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Members in either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Members in this one only.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The members, lowest place first.
    pub fn iter(self) -> impl Iterator<Item = MemberId> {
        (0..MEMBERS_MAX as u8)
            .map(MemberId)
            .filter(move |id| self.contains(*id))
    }
}

impl FromIterator<MemberId> for MemberSet {
    fn from_iter<I: IntoIterator<Item = MemberId>>(ids: I) -> Self {
        let mut set = Self::EMPTY;
        for id in ids {
            set.insert(id);
        }
        set
    }
}

/// The source members: never none (I2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sources {
    master: MemberId,
    others: MemberSet,
}

/// The answer to a removal of the last source.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the only source member cannot leave")]
pub struct LastSource;

impl Sources {
    /// A set with one source.
    #[must_use]
    pub fn new(master: MemberId) -> Self {
        Self {
            master,
            others: MemberSet::EMPTY,
        }
    }

    /// The source that wins where members may differ.
    #[must_use]
    pub fn master(self) -> MemberId {
        self.master
    }

    /// All sources.
    #[must_use]
    pub fn all(self) -> MemberSet {
        let mut all = self.others;
        all.insert(self.master);
        all
    }

    /// Adds a source.
    pub fn add(&mut self, id: MemberId) {
        if id != self.master {
            self.others.insert(id);
        }
    }

    /// Removes a source; another becomes master when the master leaves.
    ///
    /// # Errors
    /// [`LastSource`], and nothing has changed.
    pub fn remove(&mut self, id: MemberId) -> Result<(), LastSource> {
        if id == self.master {
            self.master = self.others.iter().next().ok_or(LastSource)?;
        }
        self.others.remove(self.master);
        self.others.remove(id);
        Ok(())
    }
}

/// What a departure or an attach wants of a bitmap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// A minicopy or nothing.
    Minicopy,
    /// A minicopy if possible, else a full copy.
    #[default]
    MinicopyOptional,
    /// No bitmap; a full copy.
    Full,
}

impl Policy {
    /// The word that a detach uses for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Minicopy => "minicopy",
            Self::MinicopyOptional => "minicopy=optional",
            Self::Full => "none",
        }
    }
}

/// Number of a bitmap, shown as 8 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BitmapId(pub u32);

impl std::fmt::Display for BitmapId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// What is known of a bitmap beside its bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BitmapTag {
    /// Its number.
    pub id: BitmapId,
    /// The policy it was made under.
    pub policy: Policy,
    /// When it was made.
    pub created: Moment,
    /// Generation in force when the member left with it: the last one that its block took part in.
    pub generation: u64,
}

/// Where the stale set of a departed member is.
#[derive(Debug)]
pub enum Held {
    /// Nowhere: everything is stale.
    Nothing,
    /// Here.
    Here(OwnedBitmap),
    /// With the copier, which has been told to stop.
    WithCopier(Arc<WriteBitmap>),
}

/// Whether a member that has left comes back without a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Returns {
    /// It waits for a command.
    #[default]
    Never,
    /// It was out of reach, or did not answer: where that is wanted it comes back when it answers again.
    IfWanted,
    /// It was too slow: it comes back when it is fast again.
    WhenFast,
}

/// What a departed member left behind.
#[derive(Debug)]
pub struct Departed {
    /// Its write bitmap.
    pub held: Held,
    /// What is known of the bitmap.
    pub tag: Option<BitmapTag>,
    /// Write-intent bitmaps of the time of the departure: stale as well, until they are absorbed or
    /// proven needless by a flush of all members.
    pub seeds: Vec<Arc<WriteBitmap>>,
    /// The end of the unit when the member left, if that was in this mount: behind it its bitmap tells only
    /// what was written.
    pub covers: Option<Bytes>,
    /// The last epoch in which the member was written.
    pub until: Epoch,
    /// What the member was before, as people see it until it has left.
    pub was: &'static str,
    /// Whether its storage was let go of.
    pub closed: bool,
    /// Whether its own storage control block says that it has left.
    pub told: bool,
    /// Whether it was released and is only configured: it has no row in the table of members.
    pub released: bool,
    /// Whether an error of its medium expelled it: then its bitmap does not tell all.
    pub suspect: bool,
    /// Whether it comes back by itself.
    pub returns: Returns,
    /// Whether calls of its image may be under way for which nobody waits: they may still write it.
    pub called: bool,
    /// Why the bitmap that it may have had before the start is lost.
    pub lost: Option<Arc<str>>,
}

impl Departed {
    /// A departure without a bitmap.
    #[must_use]
    pub fn without_bitmap(until: Epoch) -> Self {
        Self {
            held: Held::Nothing,
            tag: None,
            seeds: Vec::new(),
            covers: None,
            until,
            was: "source",
            closed: true,
            told: false,
            released: false,
            suspect: false,
            returns: Returns::Never,
            called: false,
            lost: None,
        }
    }

    /// Whether a step of its copy was under way when it left, and has not ended yet.
    #[must_use]
    pub fn is_with_copier(&self) -> bool {
        matches!(self.held, Held::WithCopier(_))
    }

    /// As what its bitmap is kept.
    pub(super) fn kept_as(&self) -> BitmapKind {
        match (self.suspect, self.told) {
            (true, _) => BitmapKind::Suspect,
            (false, true) => BitmapKind::Departed,
            (false, false) => BitmapKind::Untold,
        }
    }

    /// The bits that a write has to set.
    #[must_use]
    pub fn marks(&self) -> Option<Arc<WriteBitmap>> {
        match &self.held {
            Held::Nothing => None,
            Held::Here(map) => Some(map.marks()),
            Held::WithCopier(map) => Some(Arc::clone(map)),
        }
    }

    /// Takes the seeds into the bitmap (I1: every departure starts from the write-intent bitmap). Gives
    /// what its durable form has to take in as well, before a seed may be forgotten.
    #[must_use]
    pub(super) fn absorb_seeds(&mut self) -> Vec<HomeChange> {
        let seeds = std::mem::take(&mut self.seeds);
        let Some(map) = self.marks() else {
            return Vec::new();
        };
        let absorb = |seed: Arc<WriteBitmap>| {
            map.absorb(&seed);
            HomeChange::Absorb(map.id(), seed)
        };
        seeds.into_iter().map(absorb).collect()
    }
}

/// How far a copy into a member has come.
#[derive(Debug)]
pub enum Phase {
    /// Written by applications, waits until no request of an older epoch is left.
    Joining(Box<CopyWork>),
    /// Waits for its turn.
    Queued(Box<CopyWork>),
    /// The copier has the work.
    Running(Arc<WriteBitmap>),
    /// Drained; its last flush is under way.
    Finishing(Box<CopyWork>),
}

impl Phase {
    /// The stale set that is being drained.
    #[must_use]
    pub fn stale(&self) -> Arc<WriteBitmap> {
        match self {
            Self::Joining(work) | Self::Queued(work) | Self::Finishing(work) => work.stale(),
            Self::Running(map) => Arc::clone(map),
        }
    }
}

/// State of a member.
#[derive(Debug)]
pub enum MemberState {
    /// Its contents are the unit's.
    Source,
    /// A copy or a merge fills it; applications write it.
    Target {
        /// The operation.
        op: OpId,
        /// What fills it.
        kind: CopyKind,
        /// How far it is.
        phase: Phase,
    },
    /// Behind the cut of a detach, not yet stable.
    Leaving(Departed),
    /// Taken out on purpose.
    Detached(Departed),
    /// Taken out by an error.
    Expelled(Departed),
    /// Not there when the set was mounted.
    Missing(Departed),
    /// No member: it gave up its membership, and its place is free.
    Vacant,
}

impl MemberState {
    /// Every word that `members/*/state` shows.
    pub const WORDS: &'static [&'static str] = &[
        "source",
        "copy-target",
        "merging",
        "detached",
        "expelled",
        "missing",
    ];

    /// The word that `members/*/state` shows.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Leaving(departed) => departed.was,
            Self::Target { kind, .. } if kind.is_merge() => "merging",
            Self::Target { .. } => "copy-target",
            Self::Detached(_) => "detached",
            Self::Expelled(_) => "expelled",
            Self::Missing(_) => "missing",
            Self::Vacant => "vacant",
        }
    }

    /// Whether the member is being merged.
    #[must_use]
    pub fn is_merging(&self) -> bool {
        matches!(self, Self::Target { kind, .. } if kind.is_merge())
    }

    /// What the member left behind, when it has departed.
    #[must_use]
    pub fn departed(&self) -> Option<&Departed> {
        match self {
            Self::Leaving(d) | Self::Detached(d) | Self::Expelled(d) | Self::Missing(d) => Some(d),
            _ => None,
        }
    }

    /// As [`MemberState::departed`], to change it.
    pub(super) fn departed_mut(&mut self) -> Option<&mut Departed> {
        match self {
            Self::Leaving(d) | Self::Detached(d) | Self::Expelled(d) | Self::Missing(d) => Some(d),
            _ => None,
        }
    }
}

/// One member.
#[derive(Debug)]
pub struct Member {
    /// Name in the set.
    pub name: String,
    /// Identity, kept in its storage control block.
    pub uuid: Uuid,
    /// Path of the image, for people and for opening it again.
    pub path: String,
    /// Size of the image.
    pub size: Bytes,
    /// Cost of a read, lower is preferred.
    pub read_cost: u32,
    /// Site of the member.
    pub site: u32,
    /// Seconds that it may leave requests unanswered; 0 for those of the unit.
    pub timeout: u32,
    /// Errors seen since the mount.
    pub errors: u64,
    /// Since when the state holds.
    pub since: Moment,
    /// Why it is in its state, one sentence; empty when there is nothing to say.
    pub reason: String,
    /// The state.
    pub state: MemberState,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: usize) -> MemberId {
        MemberId::new(index).expect("inside")
    }

    #[test]
    fn the_last_source_stays() {
        let mut sources = Sources::new(id(0));
        sources.add(id(3));
        sources.add(id(0));
        assert_eq!(sources.all().len(), 2);
        assert_eq!(sources.remove(id(0)), Ok(()));
        assert_eq!(sources.master(), id(3));
        assert_eq!(sources.remove(id(3)), Err(LastSource));
        assert_eq!(sources.all().iter().collect::<Vec<_>>(), [id(3)]);
    }

    #[test]
    fn a_set_of_members_is_a_set() {
        let mut set: MemberSet = [id(5), id(1)].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [id(1), id(5)]);
        set.remove(id(5));
        assert!(!set.contains(id(5)) && set.contains(id(1)) && set.len() == 1);
        assert!(MemberId::new(6).is_none());
        let other: MemberSet = [id(1), id(2)].into_iter().collect();
        assert_eq!(set.or(other), other, "who is in both is in it");
    }
}
