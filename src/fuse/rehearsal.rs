//! What a mount would be refused for, told without mounting.

use std::path::Path;

use super::MountOptions;
use super::session::{others, refuse_more, refuse_occupied};
use crate::error::Result;
use crate::io::mountpoint::stale;
use crate::io::runtime::Runtime;
use crate::server::setup::Setup;
use crate::server::{self, Rehearsed};

/// See [`super::rehearse`].
pub(super) fn rehearse(
    setup: &Setup,
    dir: &Path,
    options: &MountOptions,
) -> Result<Vec<Rehearsed>> {
    let unit = setup.unit.as_str();
    let runtime = Runtime::from_env()?;
    runtime.expect_free(unit)?;
    refuse_more(&runtime, 1, options.units_max)?;
    let others = others(&runtime, options);
    setup.check_apart(&dir.join(unit), &others)?;
    // A dead mount is taken away by the real one.
    if stale(dir).is_ok_and(|dead| dead.is_none()) {
        refuse_occupied(unit, dir)?;
    }
    setup.check_outside(dir, &others)?;
    server::rehearse(setup, &options.mounting)
}
