//! Publishing the state of the unit, for everybody who reads it without asking the control thread.

use std::sync::Arc;

use super::handle::Published;
use super::run::{Runner, now};

impl Runner {
    /// Publishes the state as it is now.
    pub(super) fn publish_state(&mut self) {
        let timeouts = self.set.members().iter().map(|member| member.timeout);
        self.pipeline.set_timeouts(timeouts);
        let names = self.set.members().iter().map(|member| member.name.as_str());
        self.pipeline.set_names(names);
        let last = self.board.state.load();
        let state = Published {
            seq: last.seq + 1,
            time: now(),
            mounted: last.mounted,
            created: last.created,
            unit: last.unit.clone(),
            label: last.label.clone(),
            uuid: last.uuid,
            read_only: last.read_only,
            stalled: self.stall.map(|stall| stall.until),
            durability: last.durability,
            set: self.set.status(),
            rates: self.speeds.rates(),
            expected: self.speeds.expected(),
            announced: Arc::clone(&last.announced),
            meters: Arc::clone(&last.meters),
            tally: self.tally,
            fingerprints: self.seats.iter().map(|s| s.fingerprint.clone()).collect(),
            params: self.params.values(),
        };
        self.board.publish(state);
    }
}
