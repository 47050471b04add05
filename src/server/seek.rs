//! SEEK_DATA and SEEK_HOLE on the unit: one source is asked, and another one when that fails or does not answer. A seek
//! is a value that any thread can go on with. Nothing is merged for it: as long as something is still to be merged
//! everything counts as data, since a hole is a promise of zeros (I11).

use std::sync::Arc;

use crate::sync::swap::Guard;

use super::pipeline::{EIO, Errno, Live, Pipeline};
use super::rescue::Held;
use super::results::is_out_of_reach;
use crate::io::Seek;
use crate::set::{ByteRange, Bytes, MemberId, MemberSet};

const ENXIO: Errno = Errno(libc::ENXIO);

/// Called once with what a seek has found, on whatever thread it ended.
pub(super) type Sought = Box<dyn FnOnce(Result<u64, Errno>) + Send>;

/// A seek under way.
pub(super) struct Seeking {
    live: Guard<Arc<Live>>,
    what: Seek,
    /// From where it seeks to the end of the unit.
    range: ByteRange,
    /// Members that have not answered it, or with an error.
    tried: MemberSet,
    /// Those of them that have not answered.
    late: MemberSet,
    done: Sought,
}

impl std::fmt::Debug for Seeking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut seeking = f.debug_struct("Seeking");
        seeking.field("range", &self.range).finish_non_exhaustive()
    }
}

impl Seeking {
    /// Whether somebody else could answer it.
    pub(super) fn has_other(&self, but: MemberSet) -> bool {
        !self.untried().without(but).is_empty()
    }

    fn untried(&self) -> MemberSet {
        self.live.view().readers(self.range).without(self.tried)
    }

    /// Goes on in place of a thread that a member holds.
    pub(super) fn go_on_without(mut self, member: MemberId, pipeline: &Pipeline) {
        self.late.insert(member);
        pipeline.go_on_seeking(self);
    }

    /// Nobody answers it any more.
    pub(super) fn fail(self) {
        self.end(Err(EIO));
    }

    fn end(self, sought: Result<u64, Errno>) {
        // Who hears that the epoch is over may lock the images.
        drop(self.live);
        (self.done)(sought);
    }
}

impl Pipeline {
    /// Seeks the next data or hole at or behind `at`, as one source has it. `done` is called as with
    /// [`Self::read_then`].
    ///
    /// The error is ENXIO when there is no more data or `at` is at the end, and EIO when no source could answer.
    pub fn seek_then(&self, at: u64, what: Seek, done: Sought) {
        let rest = Bytes(self.size().saturating_sub(at));
        let Ok(range) = self.geometry().clip(Bytes(at), rest) else {
            return done(Err(ENXIO));
        };
        self.go_on_seeking(Seeking {
            live: self.live(),
            what,
            range,
            tried: MemberSet::EMPTY,
            late: MemberSet::EMPTY,
            done,
        });
    }

    /// Asks one source after the other until one has answered, and ends the seek.
    fn go_on_seeking(&self, mut seeking: Seeking) {
        loop {
            // Others may have come in.
            seeking.live = self.live();
            if seeking.live.view().is_merging() {
                let at = seeking.range.start();
                let sought = self.sought(&seeking, (seeking.what == Seek::Data).then_some(at));
                return seeking.end(sought);
            }
            let Some(id) = self.source_for(&mut seeking) else {
                return seeking.fail();
            };
            seeking.tried.insert(id);
            let Some(store) = seeking.live.store(id).cloned() else {
                continue;
            };
            let (at, what) = (seeking.range.start(), seeking.what);
            let asked = (id, self.watch.now());
            let (found, held) = self.watch.call(asked, Held::Seek(seeking), |_| {
                let found = store.seek(at, what);
                drop(store);
                found
            });
            let Some(Held::Seek(back)) = held else { return };
            seeking = back;
            if !found.as_ref().is_err_and(is_out_of_reach) {
                self.watch.answered(id);
            }
            if let Ok(found) = found {
                let sought = self.sought(&seeking, found);
                return seeking.end(sought);
            }
        }
    }

    /// The source to ask next. Members that do not answer come last; those that were left for another one are asked once
    /// more when nobody else can answer.
    fn source_for(&self, seeking: &mut Seeking) -> Option<MemberId> {
        if seeking.untried().is_empty() {
            let late = std::mem::take(&mut seeking.late);
            seeking.tried = seeking.tried.without(late.without(self.gone()));
        }
        let left = seeking.untried();
        let answering = left.without(self.silent_members());
        let mut order = answering.iter().chain(left.iter());
        order.find(|id| !self.is_lost(*id))
    }

    /// What is told of what a member has found.
    fn sought(&self, seeking: &Seeking, found: Option<u64>) -> Result<u64, Errno> {
        match found {
            Some(found) if found < self.size() => Ok(found),
            _ if seeking.what == Seek::Hole => Ok(self.size()),
            _ => Err(ENXIO),
        }
    }
}
