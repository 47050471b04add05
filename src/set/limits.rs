//! Limits that the operator sets: of copies, and of the write-intent bitmap; and what follows when they change.

use super::shadow::ShadowSet;

/// Copies that run at once unless told otherwise (SHADOW_MAX_COPY).
const COPIES_DEFAULT: usize = 4;

/// What the operator has limited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The most copies and merges that run at once.
    pub copies: usize,
    /// Whether none may start, whatever the number.
    pub held: bool,
    /// Whether those that the mount has queued may not start yet.
    pub delayed: bool,
    /// The write-intent bitmap is rotated only when it marks more blocks than this.
    pub reset_blocks: u64,
    /// A member that is too slow is expelled only if so many sources stay that answer.
    pub min_members: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            copies: COPIES_DEFAULT,
            held: false,
            delayed: false,
            reset_blocks: 0,
            min_members: 1,
        }
    }
}

impl Limits {
    /// As many may run; one more starts only while fewer do.
    #[must_use]
    pub fn at_once(self) -> usize {
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::HeldCopyStarts) {
            return self.copies;
        }
        if self.held { 0 } else { self.copies }
    }
}

impl ShadowSet {
    /// Other limits are in force: what waits may start. What runs goes on.
    pub(super) fn limit(&mut self, limits: Limits) {
        self.limits = limits;
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::LimitRaisedInVain) {
            return;
        }
        self.start_copies();
    }
}
