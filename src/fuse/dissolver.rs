//! What a command that closes the set needs of the mount: whether somebody uses the unit, and its end.

use std::sync::{Arc, Weak};

use super::unit::Unit;
use crate::server::Ender;

/// Ends the mount when the set was closed by a command.
pub(super) struct Dissolver<F> {
    unit: Weak<Unit>,
    end: F,
}

impl<F: Fn()> Dissolver<F> {
    /// That of the mount of a unit; `end` must not block.
    pub(super) fn new(unit: &Arc<Unit>, end: F) -> Self {
        let unit = Arc::downgrade(unit);
        Self { unit, end }
    }
}

impl<F: Fn() + Send + Sync> Ender for Dissolver<F> {
    fn used_by(&self) -> Option<String> {
        says_open(self.unit.upgrade().map_or(0, |unit| unit.opens().count()))
    }

    fn close(&self) -> Option<String> {
        says_open(self.unit.upgrade().map_or(0, |unit| unit.opens().close()))
    }

    fn end(&self) {
        (self.end)();
    }
}

fn says_open(opens: u64) -> Option<String> {
    match opens {
        0 => None,
        1 => Some("the unit is open once".to_owned()),
        many => Some(format!("the unit is open {many} times")),
    }
}
