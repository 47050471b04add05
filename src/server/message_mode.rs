//! Tells people of switches between single-message and buffered-message mode.
//!
//! The data path only counts them: it waits for no log (I8). They are looked at once a second, so
//! that a mode that is switched all the time leaves room for other events.

use crate::sync::Instant;
use std::time::Duration;

use super::record::record_mode;
use super::run::{Runner, now};
use crate::io::journal::MessageMode;

/// How often the count is looked at.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// From this `wbm_opcom_lvl` on they are told.
const LEVEL: u64 = 1;

/// What was told last, and when.
#[derive(Debug)]
pub(super) struct Told {
    switches: u64,
    at: Instant,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            switches: 0,
            at: Instant::now(),
        }
    }
}

impl Runner {
    /// Whether the mode may switch.
    pub(super) fn switches_modes(&self) -> bool {
        self.params.messages().mode == MessageMode::Manual
    }

    /// Switches are counted from 0 again: those so far have been told.
    pub(super) fn forget_switches(&mut self) {
        self.told.switches = 0;
    }

    /// Writes down that the mode has switched since it was looked at last, and whether it did.
    pub(super) fn notice_mode(&mut self, at: Instant) -> bool {
        if at.duration_since(self.told.at) < PAUSE {
            return false;
        }
        self.told.at = at;
        let counts = self.pipeline.announced();
        let before = std::mem::replace(&mut self.told.switches, counts.switches());
        // Who switches while the counters begin anew may have been counted before that.
        let switches = self.told.switches.saturating_sub(before);
        if switches > 0 && self.params.wbm_opcom_lvl() >= LEVEL {
            record_mode(&self.board, now(), counts.mode(), switches);
        }
        switches > 0
    }
}
