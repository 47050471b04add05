//! SEEK_DATA and SEEK_HOLE on the unit: one source is asked. Nothing is merged for it: as long as something is still
//! to be merged everything counts as data, since a hole is a promise of zeros (I11).

use std::sync::Arc;

use super::pipeline::{EIO, Errno, Pipeline};
use crate::io::{Seek, Storage};
use crate::set::{ByteRange, Bytes};

impl Pipeline {
    /// The next data or hole at or behind `at`, as one source has it.
    ///
    /// # Errors
    /// ENXIO when there is no more data or `at` is at the end; EIO.
    pub fn seek(&self, at: u64, what: Seek) -> Result<u64, Errno> {
        const ENXIO: Errno = Errno(libc::ENXIO);
        let rest = Bytes(self.size().saturating_sub(at));
        let range = self.geometry().clip(Bytes(at), rest).map_err(|_| ENXIO)?;
        let live = self.live();
        let what_is = |found: Option<u64>| match found {
            Some(found) if found < self.size() => Ok(found),
            _ if what == Seek::Hole => Ok(self.size()),
            _ => Err(ENXIO),
        };
        if live.view().is_merging() {
            return what_is((what == Seek::Data).then_some(at));
        }
        let silent = self.silent_members();
        // Members that do not answer come last, and hold no epoch.
        let view = live.view();
        let first = view.readers(range).without(silent).iter();
        let order: Vec<_> = first
            .chain(view.readers(range).and(silent).iter())
            .collect();
        let stores: Vec<_> = order
            .iter()
            .filter_map(|id| live.store(*id).cloned())
            .collect();
        drop(live);
        what_is(seek_on(&stores, range, what)?)
    }
}

/// Asks one source after the other.
fn seek_on(
    stores: &[Arc<dyn Storage>],
    range: ByteRange,
    what: Seek,
) -> Result<Option<u64>, Errno> {
    let mut found = stores.iter().map(|store| store.seek(range.start(), what));
    found.find_map(Result::ok).ok_or(EIO)
}
