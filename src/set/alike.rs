//! Who is as right as the master where a crash has left them unequal.

use std::sync::Arc;

use super::member::MemberId;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The merging members that were sources when a crash came and have lacked nothing since: where they are still to be
/// merged, what they have is as right as what the master has, since nobody has read either there (I11).
///
/// Shared with the Views: who comes to lack something is none of them for requests of older epochs either.
#[derive(Clone, Debug, Default)]
pub(super) struct Alike(Arc<AtomicU64>);

impl Alike {
    pub(super) fn insert(&self, id: MemberId) {
        self.0.fetch_or(1 << id.index(), Ordering::AcqRel);
    }

    /// Before the bits are set that say what it lacks.
    pub(super) fn remove(&self, id: MemberId) {
        self.0.fetch_and(!(1 << id.index()), Ordering::AcqRel);
    }

    pub(super) fn contains(&self, id: MemberId) -> bool {
        self.0.load(Ordering::Acquire) & 1 << id.index() != 0
    }
}
