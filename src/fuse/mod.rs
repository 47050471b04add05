//! Face 2: the mount. Glue only: inodes, session, errno.

mod dissolver;
mod face;
mod handles;
mod inode;
mod losses;
mod manager;
mod news;
mod notifier;
mod openers;
mod overflow;
mod parked;
mod rehearsal;
mod requests;
mod session;
mod unit;
mod workers;

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::server::Rehearsed;
use crate::server::setup::{Mounting, Setup};

/// The variable by which a service manager says where it listens.
pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Who may use the files of a mount, beside root and who has mounted it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights {
    /// Group of the files that take commands, and of the control socket.
    pub control_gid: Option<u32>,
    /// Permissions of these files.
    pub control_mode: u16,
    /// Group of the unit.
    pub unit_gid: Option<u32>,
    /// Permissions of the unit.
    pub unit_mode: u16,
}

impl Default for Rights {
    fn default() -> Self {
        Self {
            control_gid: None,
            control_mode: 0o600,
            unit_gid: None,
            unit_mode: 0o600,
        }
    }
}

/// Options of the mount itself.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Other users may enter the mount.
    pub allow_other: bool,
    /// What they may do there.
    pub rights: Rights,
    /// What the server is told of this mount.
    pub mounting: Mounting,
    /// The configuration that the unit is mounted from, for those who change it.
    pub config: Option<PathBuf>,
    /// The file of the log, where it has one of its own.
    pub log: Option<PathBuf>,
    /// The most units that are served on this node.
    pub units_max: usize,
    /// The most that all copies on this node read together, in bytes per second; none for no limit.
    pub copy_rate_max: Option<u64>,
}

/// Whether [`serve`] would begin to serve a unit, as far as that can be told without changing anything: what bitmaps decide
/// cannot. Names the members that would not serve at once.
///
/// # Errors
/// Those of [`serve`].
pub fn rehearse(setup: &Setup, dir: &Path, options: &MountOptions) -> Result<Vec<Rehearsed>> {
    rehearsal::rehearse(setup, dir, options)
}

/// Serves a unit until it is unmounted and its members are marked clean.
///
/// Call it before any thread is started: signals are collected for the whole process. `ready` is
/// called once, when the unit can be opened, with what the operator has to know of the way there.
///
/// # Errors
/// Whatever keeps the unit from being mounted; the caller has not seen `ready` then. Later ones
/// when a part of the server failed or the members could not be marked clean.
pub fn serve(
    setup: Setup,
    dir: &Path,
    options: MountOptions,
    ready: &mut dyn FnMut(&[String]),
) -> Result<()> {
    session::serve(&setup, dir, &options, ready)
}
