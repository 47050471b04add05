//! The clock of a stall, and the gate that it closes. What a stall waits for is the set's.

use crate::sync::Instant;
use std::time::Duration;

use super::run::{Runner, now};
use crate::set::{Event, Moment, StallEnd};

/// A stall in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stall {
    /// When it ends by itself.
    at: Instant,
    /// The same, for people.
    pub(super) until: Moment,
}

impl Runner {
    /// Closes the gate for at most so many seconds from now, whatever was said before.
    pub(super) fn begin_stall(&mut self, seconds: u64) {
        self.pipeline.gate().stall(true);
        self.stall = Some(Stall {
            at: Instant::now() + Duration::from_secs(seconds),
            until: Moment(now().0.saturating_add(seconds.saturating_mul(1000))),
        });
    }

    /// Lets changes go on.
    pub(super) fn end_stall(&mut self) {
        self.pipeline.gate().stall(false);
        self.stall = None;
    }

    /// Ends a stall whose time is over.
    pub(super) fn keep_stall(&mut self) {
        if self.stall.is_some_and(|stall| stall.at <= Instant::now()) {
            self.feed(Event::StallOver(StallEnd::Time));
        }
    }

    /// How long the control thread may sleep because of a stall.
    pub(super) fn stall_left(&self) -> Option<Duration> {
        let left = |stall: Stall| stall.at.saturating_duration_since(Instant::now());
        self.stall.map(left)
    }
}
