//! What the journal is told of a map, how it is run, and why it may not be opened.

use std::io;

use uuid::Uuid;

use crate::set::Geometry;

/// Names a map for as long as it is in the journal; chosen by the caller, unique at any time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MapKey(pub u32);

/// What a copy that drains a map started from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CopyOf {
    /// Everything.
    Full,
    /// The write bitmap of the member.
    Mini,
    /// The write-intent bitmap.
    Merge,
}

/// What a map is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MapKind {
    /// The write-intent bitmap of an epoch.
    Intent,
    /// The write bitmap of a member that has left.
    Departed,
    /// The stale set of a member that is being filled.
    Copying(CopyOf),
}

impl MapKind {
    pub(super) const ALL: [Self; 5] = [
        Self::Intent,
        Self::Departed,
        Self::Copying(CopyOf::Full),
        Self::Copying(CopyOf::Mini),
        Self::Copying(CopyOf::Merge),
    ];

    /// Its code on disk: the place in [`MapKind::ALL`].
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Intent => 0,
            Self::Departed => 1,
            Self::Copying(CopyOf::Full) => 2,
            Self::Copying(CopyOf::Mini) => 3,
            Self::Copying(CopyOf::Merge) => 4,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

/// What is known of a map besides its bits. The journal stores it and reads nothing but the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapRecord {
    /// Its name.
    pub key: MapKey,
    /// What it is for.
    pub kind: MapKind,
    /// The member that it belongs to; nil for a write-intent bitmap.
    pub member: Uuid,
    /// Generation of the set when it was made.
    pub generation: u64,
    /// Policy of the departure or the attach, in the caller's own code.
    pub policy: u8,
    /// When it was made, in milliseconds since 1970; for people, never compared.
    pub created_ms: u64,
}

/// What the journal survives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Power loss: every change is synced before it returns.
    Power,
    /// The end of the process, not that of the machine: changes are written and not synced. After a
    /// restart of the machine the journal is refused unless it was closed.
    Crash,
}

impl Durability {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Power => 0,
            Self::Crash => 1,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        [Self::Power, Self::Crash].get(usize::from(code)).copied()
    }
}

/// How a journal is run; may differ from one opening to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// What it survives.
    pub durability: Durability,
    /// Words of 64 regions that one mark makes durable at once; 0 counts as 1.
    pub grain_words: u32,
}

/// Why a journal was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none.
    #[error("there is no journal")]
    Missing,
    /// Another process has it open.
    #[error("another process uses the journal")]
    InUse,
    /// Its content cannot be believed: no bitmap in it may be used.
    #[error("the journal is damaged: {0}")]
    Damaged(String),
    /// It was written under [`Durability::Crash`] and the machine has been restarted since.
    #[error("the journal was written without syncs before the last restart of the machine")]
    NotDurable,
    /// A newer program wrote it.
    #[error("the journal has a newer format: {0}")]
    Unsupported(String),
    /// It belongs to this set.
    #[error("the journal belongs to the set {0}")]
    OtherSet(Uuid),
    /// It was made for a unit of this geometry.
    #[error("the journal was made for a unit of {size} bytes", size = .0.size())]
    OtherGeometry(Geometry),
    /// The system's error.
    #[error(transparent)]
    Io(#[from] io::Error),
}
