//! What the command line and the process that freezes for it say to each other: one JSON value per line.
//!
//! The first line is the plan, then comes the order to thaw. The other way go the words of the freezing process.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The line that asks to thaw.
pub(super) const THAW: &str = "thaw";

/// What has to be brought to rest, and for how long at most.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Plan {
    /// File systems, in the order in which they are frozen.
    pub(super) places: Vec<Place>,
    /// Servers of the units under them.
    pub(super) servers: Vec<u32>,
    /// When all of it has to be over, in milliseconds from the beginning.
    pub(super) limit_ms: u64,
    /// Shell command that brings the applications to rest, before.
    pub(super) freeze_cmd: Option<String>,
    /// Shell command that lets them go on, behind.
    pub(super) thaw_cmd: Option<String>,
    /// Environment of the two.
    pub(super) env: Vec<(String, String)>,
}

impl Plan {
    /// When all of it has to be over.
    pub(super) fn limit(&self) -> Duration {
        Duration::from_millis(self.limit_ms)
    }

    /// When thawing begins without an order: early enough to be done in time.
    pub(super) fn patience(&self) -> Duration {
        self.limit() * 9 / 10
    }

    /// Longest time of the command behind.
    pub(super) fn behind(&self) -> Duration {
        self.limit().max(Duration::from_secs(60))
    }
}

/// A mounted file system.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// Where it is mounted.
    pub(super) mountpoint: PathBuf,
    /// Number of the mount that has to be there.
    pub(super) mount_id: u64,
}

/// What the freezing process says.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(super) enum Word {
    /// The file system of this number in the plan is brought to rest from now on.
    Begins(usize),
    /// Everything is at rest.
    Frozen,
    /// It cannot be, and everything goes on again.
    Failed {
        /// Name of a code.
        code: String,
        /// What is the matter.
        sentence: String,
        /// What to do about it.
        hint: String,
    },
    /// The time is over, and something is still on its way to rest.
    Late,
    /// The file systems go on again; what the command behind comes to is not known yet.
    Thawed(Released),
    /// Everything goes on again.
    Released(Released),
}

/// How the rest has ended.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Released {
    /// Why.
    pub(super) cause: Cause,
    /// Of each file system, in the order of the plan.
    pub(super) ends: Vec<End>,
    /// What was the matter with the command behind, if anything.
    pub(super) thaw_cmd: Option<String>,
}

/// Why the rest has ended.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// It was asked for, or something had failed.
    Order,
    /// The time was over.
    Deadline,
    /// The one who had asked for it has ended.
    Alone,
    /// The freezing process has ended, or was stopped, behind the order.
    Lost,
    /// It has ended before.
    Early,
}

/// How a file system has ended its rest.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// It was never frozen.
    Never,
    /// It was frozen until it was thawed here: microseconds.
    Thawed(u64),
    /// Somebody else had thawed it.
    ThawedBefore,
    /// It cannot be thawed, and why.
    Stuck(String),
}
