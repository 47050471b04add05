//! SEEK_DATA and SEEK_HOLE on the unit: one source is asked. Nothing is merged for it: as long as something is still
//! to be merged everything counts as data, since a hole is a promise of zeros (I11).

use super::pipeline::{EIO, Errno, Live, Pipeline};
use crate::io::Seek;
use crate::set::{ByteRange, Bytes, MemberSet};

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
        what_is(seek_on(&live, range, what)?)
    }
}

/// Asks one source after the other.
fn seek_on(live: &Live, range: ByteRange, what: Seek) -> Result<Option<u64>, Errno> {
    let mut tried = MemberSet::EMPTY;
    while let Some(id) = live.view().plan_read(range, tried, |_| 0) {
        let found = live.store(id).map(|store| store.seek(range.start(), what));
        if let Some(Ok(found)) = found {
            return Ok(found);
        }
        tried.insert(id);
    }
    Err(EIO)
}
