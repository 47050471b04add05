//! What is durable of a bitmap besides its bits, and the border to where it is kept.

use std::convert::Infallible;

use uuid::Uuid;

use super::copy::CopyKind;
use super::geometry::Regions;
use super::member::{BitmapId, BitmapTag};

/// What a bitmap is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BitmapKind {
    /// The write-intent bitmap: regions whose writes are not flushed on all members yet.
    Intent,
    /// The write bitmap of a member that has left.
    Departed,
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
