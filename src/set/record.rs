//! What is durable of a bitmap besides its bits, and the border to where it is kept.

use std::convert::Infallible;
use std::sync::Arc;

use uuid::Uuid;

use super::bitmap::WriteBitmap;
use super::copy::CopyKind;
use super::geometry::{Geometry, Regions};
use super::member::{BitmapId, BitmapTag};

/// What a bitmap is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BitmapKind {
    /// The write-intent bitmap: regions whose writes are not flushed on all members yet. Proves that
    /// every member's storage control block had got the generation of its record.
    Intent,
    /// The write-intent bitmap of a mount that is about to write its first generation.
    Opening,
    /// The write bitmap of a member that has left, and whose own storage control block says so.
    Departed,
    /// The same of one whose own block does not say so, or not yet.
    Untold,
    /// The write bitmap of a member that was expelled by an error of its medium: it may differ elsewhere too.
    Suspect,
    /// The stale set of a member that is being filled.
    Copying(CopyKind),
}

/// What is known of a bitmap besides its bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BitmapRecord {
    /// Number, policy, time and generation.
    pub tag: BitmapTag,
    /// What it is for.
    pub kind: BitmapKind,
    /// The member that it belongs to; of a write-intent bitmap the mark of the mount that made it.
    pub owner: Uuid,
}

/// A change of what is kept of bitmaps.
#[derive(Clone, Debug)]
pub enum HomeChange {
    /// Begin anew, with no bitmap, for a unit of this geometry. What was kept before counts until the members'
    /// blocks say that the unit has this size, and no longer.
    Renew(Geometry),
    /// Keep this bitmap, with its bits as they are.
    Add(BitmapRecord, Arc<WriteBitmap>),
    /// Give a bitmap another record.
    Describe(BitmapRecord),
    /// Add these bits to a bitmap.
    Absorb(BitmapId, Arc<WriteBitmap>),
    /// Of this bitmap only the bits that are set here are set still: what else it had is copied and
    /// flushed. May become durable late, or never.
    Retain(Arc<WriteBitmap>),
    /// Keep this bitmap no longer.
    Forget(BitmapId),
}

impl HomeChange {
    /// The bitmap that it is about.
    #[must_use]
    pub fn id(&self) -> BitmapId {
        match self {
            Self::Renew(_) => BitmapId(0),
            Self::Add(record, _) | Self::Describe(record) => record.tag.id,
            Self::Absorb(id, _) | Self::Forget(id) => *id,
            Self::Retain(bits) => bits.id(),
        }
    }
}

/// Where bitmaps outlive the process. The set's own rules decide what is in it; whoever is about to
/// write a member makes new bits durable through it first (I1).
pub trait Home {
    /// Why a bit could not be made durable.
    type Error;

    /// Makes the regions durable in all these bitmaps; may round out. Cheap where they are already.
    ///
    /// # Errors
    /// No member may be written.
    fn mark(&self, bitmaps: &[BitmapId], regions: Regions) -> Result<(), Self::Error>;
}

/// No home: bitmaps end with the process (`durability = "memory"`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Homeless;

impl Home for Homeless {
    type Error = Infallible;

    fn mark(&self, _: &[BitmapId], _: Regions) -> Result<(), Infallible> {
        Ok(())
    }
}
