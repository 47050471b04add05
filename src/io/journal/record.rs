//! How the journal is run, why it may not be opened, and the codes of what it is told of a bitmap.

use std::io;

use uuid::Uuid;

use crate::set::{BitmapKind, CopyKind, Geometry, Policy};

/// Kinds of bitmaps at the places of their codes on disk.
const KINDS: [BitmapKind; 10] = [
    BitmapKind::Intent,
    BitmapKind::Departed,
    BitmapKind::Copying(CopyKind::Full),
    BitmapKind::Copying(CopyKind::Mini),
    BitmapKind::Copying(CopyKind::Merge),
    BitmapKind::Copying(CopyKind::Minimerge),
    BitmapKind::Opening,
    BitmapKind::Untold,
    BitmapKind::Copying(CopyKind::Compare),
    BitmapKind::Suspect,
];

pub(super) fn kind_code(kind: BitmapKind) -> u8 {
    match kind {
        BitmapKind::Intent => 0,
        BitmapKind::Departed => 1,
        BitmapKind::Copying(CopyKind::Full) => 2,
        BitmapKind::Copying(CopyKind::Mini) => 3,
        BitmapKind::Copying(CopyKind::Merge) => 4,
        BitmapKind::Copying(CopyKind::Minimerge) => 5,
        BitmapKind::Opening => 6,
        BitmapKind::Untold => 7,
        BitmapKind::Copying(CopyKind::Compare) => 8,
        BitmapKind::Suspect => 9,
    }
}

pub(super) fn kind_of(code: u8) -> Option<BitmapKind> {
    KINDS.get(usize::from(code)).copied()
}

/// Policies at the places of their codes on disk.
const POLICIES: [Policy; 3] = [Policy::Minicopy, Policy::MinicopyOptional, Policy::Full];

pub(super) fn policy_code(policy: Policy) -> u8 {
    match policy {
        Policy::Minicopy => 0,
        Policy::MinicopyOptional => 1,
        Policy::Full => 2,
    }
}

pub(super) fn policy_of(code: u8) -> Option<Policy> {
    POLICIES.get(usize::from(code)).copied()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_the_code_of_its_place() {
        for (code, kind) in KINDS.iter().enumerate() {
            assert_eq!(usize::from(kind_code(*kind)), code, "{kind:?}");
        }
        assert_eq!(kind_of(10), None);
    }
}
