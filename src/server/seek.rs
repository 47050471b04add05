//! SEEK_DATA and SEEK_HOLE on the unit: one source is asked. Nothing is merged for it: as long as something is still
//! to be merged everything counts as data, since a hole is a promise of zeros (I11).

use super::pipeline::{EIO, Errno, Pipeline};
use crate::io::Seek;
use crate::set::{Bytes, MemberSet};

impl Pipeline {
    /// The next data or hole at or behind `at`, as one source has it.
    ///
    /// # Errors
    /// ENXIO when there is no more data or `at` is at the end; EIO.
    pub fn seek(&self, at: u64, what: Seek) -> Result<u64, Errno> {
        const ENXIO: Errno = Errno(libc::ENXIO);
        let rest = Bytes(self.size().saturating_sub(at));
        let range = self.geometry().clip(Bytes(at), rest).map_err(|_| ENXIO)?;
        let what_is = |found: Option<u64>| match found {
            Some(found) if found < self.size() => Ok(found),
            _ if what == Seek::Hole => Ok(self.size()),
            _ => Err(ENXIO),
        };
        let mut tried = MemberSet::EMPTY;
        loop {
            let live = self.live();
            if live.view().is_merging() {
                return what_is((what == Seek::Data).then_some(at));
            }
            let left = live.view().readers(range).without(tried);
            // Members that do not answer come last.
            let answering = left.without(self.silent_members());
            let mut order = answering.iter().chain(left.iter());
            let id = order.find(|id| !self.is_lost(*id)).ok_or(EIO)?;
            tried.insert(id);
            if let Ok(found) = self.look_at(live, id, |store| store.seek(range.start(), what)) {
                return what_is(found);
            }
        }
    }
}
