//! Face 1: the mount.

use std::path::Path;

use crate::error::{Error, Result};
use crate::server::setup::Setup;
use crate::set::Code;

/// Options of a mount.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MountOptions {
    /// Users other than the owner of the mount may use it.
    pub allow_other: bool,
    /// The unit cannot be written.
    pub read_only: bool,
}

/// Serves a unit until it is unmounted.
///
/// # Errors
/// The unit cannot be mounted.
pub fn serve(
    setup: Setup,
    dir: &Path,
    options: MountOptions,
    ready: &mut dyn FnMut(),
) -> Result<()> {
    let _ = (options, ready);
    let says = format!("{} cannot be mounted on {}", setup.unit, dir.display());
    Err(Error::new(Code::NotSupported, says))
}
