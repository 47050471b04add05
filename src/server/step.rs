//! Copying a range of the unit from a source into members, under the fence; holes stay holes.
//!
//! The copier and reads of what is still to be merged use it. What is read once is written to every target
//! that lacks it; a target that compares is written only where it differs. Whose bits are cleared afterwards is
//! the caller's to decide: nothing here touches a bitmap.

use std::io;

use super::pipeline::{Fenced, Pipeline, WritePermit};
use crate::io::aligned::AlignedBuf;
use crate::io::{Seek, Storage, Zero};
use crate::set::{ByteRange, MemberId, MemberSet};

/// Bytes that are compared, and written, as one.
const PIECE: usize = 4096;

/// Why a copy into a member failed.
pub(super) enum Failure {
    /// The target could not be written.
    Target(io::Error),
    /// No source could be read.
    Source,
    /// The target takes part no more; the control thread knows.
    Gone,
}

/// No source could be read.
pub(super) struct Unreadable;

/// A member that is filled.
pub(super) struct Target {
    pub(super) id: MemberId,
    /// Whether it is read first, and written only where it differs.
    pub(super) compares: bool,
    /// Bytes that it has had already.
    pub(super) equal: u64,
    /// Why nothing is written to it any more.
    pub(super) failed: Option<Failure>,
}

impl Target {
    pub(super) fn new(id: MemberId, compares: bool) -> Self {
        Self {
            id,
            compares,
            equal: 0,
            failed: None,
        }
    }
}

/// What is kept from range to range.
pub(super) struct Scratch {
    buf: AlignedBuf,
    theirs: Theirs,
    known: Option<Data>,
    /// Where the source was found to have a hole last, in bytes of the unit.
    hole: (u64, u64),
    /// Bytes that were read, ever.
    moved: u64,
}

impl Scratch {
    /// Room for so many bytes at once.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            buf: AlignedBuf::zeroed(bytes),
            theirs: Theirs { bytes, buf: None },
            known: None,
            hole: (0, 0),
            moved: 0,
        }
    }

    /// Bytes that were read from sources, ever.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// The hole that was found last, if it goes on at a byte. Only a hint: it may have been written since.
    pub(super) fn hole_at(&self, at: u64) -> Option<(u64, u64)> {
        Some(self.hole).filter(|hole| (hole.0..hole.1).contains(&at))
    }
}

/// Room for what a target has; made when one is compared.
struct Theirs {
    bytes: usize,
    buf: Option<AlignedBuf>,
}

impl Theirs {
    /// What a target has in a part, which is no longer than the room. `None` where it cannot be read.
    fn of(&mut self, store: &dyn Storage, part: ByteRange) -> Option<&[u8]> {
        let buf = self
            .buf
            .get_or_insert_with(|| AlignedBuf::zeroed(self.bytes));
        let bytes = &mut buf[..part.len() as usize];
        // After a failed flush the cache may hold what the medium does not.
        store.forget(part.start(), part.len());
        store.read_at(bytes, part.start()).ok()?;
        Some(bytes)
    }
}

/// Where a source is known to have data. To find the end of data may take time in proportion to its
/// length (tmpfs looks at every page), so one answer serves all the steps inside it. What has become
/// a hole there since is copied as the zeros that it reads as; no hole is ever believed in.
#[derive(Clone, Copy, Debug)]
struct Data {
    source: MemberId,
    start: u64,
    end: u64,
}

/// Copies one range, all of whose bytes are fenced, into these targets. What becomes of each is told in it.
pub(super) fn copy_range(
    pipeline: &Pipeline,
    fenced: &Fenced<'_>,
    permit: &WritePermit<'_>,
    (targets, range): (&mut [&mut Target], ByteRange),
    scratch: &mut Scratch,
) -> Result<(), Unreadable> {
    let mut rest = Some(range);
    while let Some(range) = rest {
        let (part, data, after) = next_part(fenced, targets, range, scratch);
        rest = after;
        if data {
            copy_data(pipeline, fenced, permit, (targets, part), scratch)?;
        } else {
            for target in targets.iter_mut() {
                target.take_hole(permit, part, &mut scratch.theirs);
            }
        }
    }
    Ok(())
}

/// Splits a range where the source changes from hole to data: the part, whether it is data, the rest.
fn next_part(
    fenced: &Fenced<'_>,
    targets: &[&mut Target],
    range: ByteRange,
    scratch: &mut Scratch,
) -> (ByteRange, bool, Option<ByteRange>) {
    let live = fenced.live();
    let tried = targets.iter().map(|t| t.id).collect::<MemberSet>();
    let planned = live.view().plan_read(range, tried, |_| 0);
    let Some((source, store)) = planned.and_then(|id| Some((id, live.store(id)?))) else {
        return (range, true, None);
    };
    let start = range.start();
    let seek = |what| store.seek(start, what).ok();
    let covers = |d: &Data| d.source == source && (d.start..d.end).contains(&start);
    let (border, data) = match scratch.known.filter(covers) {
        Some(found) => (Some(found.end), true),
        None => match seek(Seek::Data) {
            Some(Some(at)) if at <= start => (seek(Seek::Hole).flatten(), true),
            Some(at) => {
                scratch.hole = (start, at.unwrap_or(u64::MAX));
                (at.or(Some(range.end())), false)
            }
            None => (None, true),
        },
    };
    if let Some(end) = border.filter(|_| data) {
        scratch.known = Some(Data { source, start, end });
    }
    match border.map(|b| b.saturating_sub(start)) {
        Some(len) if len > 0 => {
            let (part, after) = range.split(len);
            (part, data, after)
        }
        _ => (range, true, None),
    }
}

fn copy_data(
    pipeline: &Pipeline,
    fenced: &Fenced<'_>,
    permit: &WritePermit<'_>,
    (targets, range): (&mut [&mut Target], ByteRange),
    scratch: &mut Scratch,
) -> Result<(), Unreadable> {
    let mut rest = Some(range);
    while let Some(range) = rest {
        let (part, after) = range.split(scratch.buf.len() as u64);
        rest = after;
        let bytes = &mut scratch.buf[..part.len() as usize];
        pipeline
            .read_from(fenced.live(), part, bytes)
            .map_err(|_| Unreadable)?;
        scratch.moved += part.len();
        for target in targets.iter_mut() {
            target.take(permit, Some(bytes), part, &mut scratch.theirs);
        }
    }
    Ok(())
}

impl Target {
    /// The source has a hole: so has the target then, in one call where nothing is compared.
    fn take_hole(&mut self, permit: &WritePermit<'_>, range: ByteRange, theirs: &mut Theirs) {
        if !self.compares {
            return self.take(permit, None, range, theirs);
        }
        let mut rest = Some(range);
        while let Some(range) = rest {
            let data = permit
                .store(self.id)
                .map(|s| s.seek(range.start(), Seek::Data));
            let hole = match data {
                Some(Ok(None)) => range.len(),
                Some(Ok(Some(at))) => at.saturating_sub(range.start()).min(range.len()),
                Some(Err(_)) | None => 0,
            };
            if hole > 0 {
                self.equal += hole;
                rest = range.split(hole).1;
            } else {
                let (part, after) = range.split(theirs.bytes as u64);
                rest = after;
                self.take(permit, None, part, theirs);
            }
        }
    }

    /// Gives the target what a source has in a part, zeros of a hole if it is `None`.
    fn take(
        &mut self,
        permit: &WritePermit<'_>,
        data: Option<&[u8]>,
        part: ByteRange,
        theirs: &mut Theirs,
    ) {
        if self.failed.is_some() {
            return;
        }
        let Some(store) = permit.store(self.id) else {
            self.failed = Some(Failure::Gone);
            return;
        };
        let has = match self.compares {
            true => theirs.of(store, part),
            false => None,
        };
        let written = match has {
            None => put(store, data, 0, part.start(), part.len()),
            Some(has) => {
                put_differing(store, data, has, part.start()).map(|equal| self.equal += equal)
            }
        };
        if let Err(error) = written {
            self.failed = Some(Failure::Target(error));
        }
    }
}

/// Writes `len` bytes at `at`, those behind `skip` of the data.
fn put(store: &dyn Storage, data: Option<&[u8]>, skip: usize, at: u64, len: u64) -> io::Result<()> {
    match data {
        Some(data) => store.write_at(&data[skip..skip + len as usize], at),
        None => store.zero_at(at, len, Zero::Punch),
    }
}

/// Writes the pieces in which the target has something else; gives the bytes of the others.
fn put_differing(store: &dyn Storage, data: Option<&[u8]>, has: &[u8], at: u64) -> io::Result<u64> {
    let mut equal = has.len() as u64;
    for (first, end) in differing(data, has, at) {
        let len = (end - first) as u64;
        put(store, data, first, at + first as u64, len)?;
        equal -= len;
    }
    Ok(equal)
}

/// The runs of pieces in which the bytes differ from zeros or `data`, as offsets. Pieces have the borders of
/// the image, whose offset `at` is.
fn differing(data: Option<&[u8]>, has: &[u8], at: u64) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut first = 0;
    while first < has.len() {
        let piece = PIECE - ((at + first as u64) % PIECE as u64) as usize;
        let end = (first + piece).min(has.len());
        let theirs = &has[first..end];
        let same = match data {
            Some(data) => data[first..end] == *theirs,
            None => theirs.iter().all(|byte| *byte == 0),
        };
        match runs.last_mut().filter(|last| last.1 == first && !same) {
            Some(last) => last.1 = end,
            None if same => {}
            None => runs.push((first, end)),
        }
        first = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pieces_that_differ_are_written() {
        let has = vec![0; 5 * PIECE];
        let mut data = has.clone();
        let at = 1000;
        assert_eq!(differing(Some(&data), &has, at), []);
        assert_eq!(differing(None, &has, at), []);
        // Bytes of the second, third and last piece of the image.
        (data[PIECE - 1], data[2 * PIECE], data[5 * PIECE - 1]) = (1, 1, 1);
        let border = |piece: usize| piece * PIECE - 1000;
        let runs = [(border(1), border(3)), (border(5), 5 * PIECE)];
        assert_eq!(differing(Some(&data), &has, at), runs);
        assert_eq!(differing(None, &data, at), runs);
    }
}
