//! Face 1: the mount. Glue only: inodes, session, errno.

use std::path::Path;

use crate::error::Result;
use crate::server::setup::Setup;

/// Options of the mount itself.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// Other users may enter the mount.
    pub allow_other: bool,
    /// The unit takes no writes.
    pub read_only: bool,
}

/// Serves a unit until it is unmounted and its members are marked clean.
///
/// # Errors
/// Whatever keeps the unit from being mounted; the caller has not seen `ready` then.
pub fn serve(
    _setup: Setup,
    _dir: &Path,
    _options: MountOptions,
    _ready: &mut dyn FnMut(),
) -> Result<()> {
    Ok(())
}
