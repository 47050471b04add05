//! Copying a range of the unit from a source into members, under the fence; holes stay holes.
//!
//! The copier and reads of what is still to be merged use it. What is read once is written to every target
//! that lacks it; a target that compares is written only where it differs. Whose bits are cleared afterwards is
//! the caller's to decide: nothing here touches a bitmap.

use std::io;

use super::pipeline::{Pipeline, WritePermit};
use super::rescue::Held;
use super::results::{Results, is_out_of_reach, not_open};
use super::sources::Sources;
use super::watch::Time;
use crate::io::aligned::AlignedBuf;
use crate::io::{SPACE_BYTES, Seek, Storage, Zero, Zeroed};
use crate::set::{ByteRange, MemberId, MemberSet};

/// Bytes that are compared, written, or told to be a hole as one.
const PIECE: usize = 4096;

/// Fewest bytes of zeros of a block device that are discarded in a target: each discard is a request of its own.
const DISCARD: u64 = 64 << 10;

/// Why a copy into a member failed.
pub(super) enum Failure {
    /// The target could not be written.
    Target(io::Error),
    /// No source could be read.
    Source,
    /// The target takes part no more; the control thread knows.
    Gone,
}

/// Why a range was not copied.
pub(super) enum Stop {
    /// No source could be read.
    Unreadable,
    /// A member held the thread so long that another one has taken its place: nothing of the copy is this
    /// thread's any more.
    Replaced,
}

/// What a copy holds while it calls members: with it go fence and epoch when another thread takes it.
pub(super) struct Hold<'a> {
    pipeline: &'a Pipeline,
    held: Option<Held>,
}

impl<'a> Hold<'a> {
    pub(super) fn new(pipeline: &'a Pipeline, held: Held) -> Self {
        Self {
            pipeline,
            held: Some(held),
        }
    }

    /// What it held, if it was not taken.
    pub(super) fn into_held(self) -> Held {
        self.held.unwrap_or(Held::Nothing)
    }

    pub(super) fn permit(&self) -> Result<&WritePermit, Stop> {
        match &self.held {
            Some(Held::Merge(merge)) => Ok(merge.permit()),
            Some(Held::Step(step)) => Ok(step.permit()),
            _ => Err(Stop::Replaced),
        }
    }

    /// Calls a member; an error in the outcome is the member's. One that is out of reach is called again, as long as
    /// requests of applications wait for it, too.
    pub(super) fn call<R>(
        &mut self,
        id: MemberId,
        mut call: impl FnMut(&dyn Storage) -> io::Result<R>,
    ) -> Result<io::Result<R>, Stop> {
        let since = self.now();
        loop {
            match self.ask_since((id, since), &mut call)? {
                Err(error) if is_out_of_reach(&error) && self.pipeline.waits_for(id) => {
                    self.wait_for((id, since))?;
                }
                outcome => return Ok(outcome),
            }
        }
    }

    pub(super) fn pipeline(&self) -> &'a Pipeline {
        self.pipeline
    }

    pub(super) fn now(&self) -> Time {
        self.pipeline.watch.now()
    }

    pub(super) fn wait_for(&mut self, lost: (MemberId, Time)) -> Result<(), Stop> {
        let held = self.held.take().ok_or(Stop::Replaced)?;
        self.held = Some(self.pipeline.wait_for(lost, held));
        self.permit().map(drop)
    }

    /// As [`Self::call`], once.
    pub(super) fn ask<R>(
        &mut self,
        id: MemberId,
        call: impl FnOnce(&dyn Storage) -> io::Result<R>,
    ) -> Result<io::Result<R>, Stop> {
        self.ask_since((id, self.now()), call)
    }

    fn ask_since<R>(
        &mut self,
        (id, since): (MemberId, Time),
        call: impl FnOnce(&dyn Storage) -> io::Result<R>,
    ) -> Result<io::Result<R>, Stop> {
        let Some(store) = self.permit()?.store(id).cloned() else {
            return Ok(Err(not_open()));
        };
        let held = self.held.take().ok_or(Stop::Replaced)?;
        let watch = &self.pipeline.watch;
        let (outcome, held) = watch.call((id, since), held, |_| call(&*store));
        self.held = Some(held.ok_or(Stop::Replaced)?);
        // What was left to this call is only to be dropped by it.
        self.permit()?;
        if !outcome.as_ref().is_err_and(is_out_of_reach) {
            watch.answered(id);
        }
        Ok(outcome)
    }

    /// Flushes members, each on its lane.
    pub(super) fn flush(&self, members: MemberSet) -> Result<Results, Stop> {
        Ok(self.pipeline.flush_of(self.permit()?.live(), members))
    }

    /// Whether a member finds holes; this calls nobody.
    fn finds_holes(&self, id: MemberId) -> bool {
        let store = self.permit().ok().and_then(|permit| permit.store(id));
        store.is_some_and(|store| store.finds_holes())
    }
}

/// A member that is filled.
pub(super) struct Target {
    pub(super) id: MemberId,
    /// The source that it should be filled from.
    pub(super) from: Option<MemberId>,
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
            from: None,
            compares,
            equal: 0,
            failed: None,
        }
    }
}

/// What is kept from range to range.
pub(super) struct Scratch {
    /// Most bytes of a part.
    bytes: u64,
    room: Room,
    theirs: Theirs,
    known: Option<Data>,
    /// Where the source was found to have a hole last, in bytes of the unit.
    hole: (u64, u64),
    /// Most bytes of a hole that are given to the targets at once: few until they have taken one without writing zeros.
    hole_part: u64,
    /// Bytes that were read, or written as zeros, ever.
    moved: u64,
    /// A copy stops when that becomes so much.
    most: u64,
}

impl Scratch {
    /// Room for so many bytes at once.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            bytes: bytes as u64,
            room: Room::new(bytes),
            theirs: Theirs { bytes, room: None },
            known: None,
            hole: (0, 0),
            hole_part: bytes as u64,
            moved: 0,
            most: u64::MAX,
        }
    }

    /// From now on no more than so many bytes are moved, but for the last part.
    pub(super) fn allow(&mut self, bytes: u64) {
        self.most = self.moved.saturating_add(bytes);
    }

    /// Bytes that were read from sources, or moved in targets where sources have holes, ever.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// The hole that was found last, if it goes on at a byte. Only a hint: it may have been written since.
    pub(super) fn hole_at(&self, at: u64) -> Option<(u64, u64)> {
        Some(self.hole).filter(|hole| (hole.0..hole.1).contains(&at))
    }

    /// The targets have a hole of the source now, for which so many bytes had to be moved. Those count as data does: no
    /// fence is held for many of them, and the rates are kept.
    fn gave_hole(&mut self, moved: u64) {
        self.moved += moved;
        self.hole_part = match moved {
            0 => SPACE_BYTES,
            _ => {
                self.hole = (0, 0);
                self.bytes
            }
        };
    }

    /// The end of the hole that the source has at a byte, if it has one there.
    fn hole(
        &mut self,
        hold: &mut Hold<'_>,
        source: MemberId,
        at: u64,
    ) -> Result<Option<u64>, Stop> {
        let covers = |d: &Data| d.source == source && (d.start..d.end).contains(&at);
        if self.known.as_ref().is_some_and(covers) {
            return Ok(None);
        }
        // What cannot be asked for holes has data.
        let found = hold.ask(source, |store| store.seek(at, Seek::Data))?;
        let data = found.map_or(at, |data| data.unwrap_or(u64::MAX));
        if data <= at {
            return Ok(None);
        }
        self.hole = (at, data);
        Ok(Some(data))
    }

    /// How many bytes of a range that was read the source has alike from its start: data, or a hole.
    fn run_read(
        &mut self,
        hold: &mut Hold<'_>,
        source: MemberId,
        range: ByteRange,
    ) -> Result<(u64, bool), Stop> {
        let len = range.len();
        let finds_holes = hold.finds_holes(source);
        let mut from = 0;
        while let Some((first, end)) = self.zeros(range, from) {
            let at = range.start() + first;
            let hole = match finds_holes {
                true => self.hole(hold, source, at)?,
                false => (end - first >= DISCARD).then_some(u64::MAX),
            };
            match hole {
                Some(data) if first == 0 => return Ok((end.min(data - at), true)),
                Some(_) => return Ok((first, false)),
                None if finds_holes => {
                    from = end.min(self.end_of_data(hold, source, at)? - range.start());
                }
                None => from = end,
            }
        }
        Ok((len, false))
    }

    /// The first run of pieces that were read as zeros, at or behind `from`, in bytes of the range.
    fn zeros(&self, range: ByteRange, from: u64) -> Option<(u64, u64)> {
        let bytes = self.room.get(range);
        let mut run: Option<(usize, usize)> = None;
        for (first, end) in borders(range.start(), from as usize, bytes.len()) {
            match (&mut run, is_zero(&bytes[first..end])) {
                (Some(run), true) => run.1 = end,
                (None, true) => run = Some((first, end)),
                (Some(_), false) => break,
                (None, false) => {}
            }
        }
        run.map(|(first, end)| (first as u64, end as u64))
    }

    /// Where the data ends that the source has at a byte.
    fn end_of_data(&mut self, hold: &mut Hold<'_>, source: MemberId, at: u64) -> Result<u64, Stop> {
        let covers = |d: &Data| d.source == source && (d.start..d.end).contains(&at);
        if let Some(known) = self.known.filter(covers) {
            return Ok(known.end);
        }
        let end = hold.ask(source, |store| store.seek(at, Seek::Hole))?;
        let end = end.ok().flatten().filter(|end| *end > at);
        let end = end.unwrap_or(u64::MAX);
        self.known = Some(Data {
            source,
            start: at,
            end,
        });
        Ok(end)
    }
}

/// Room for a part of an image. It lies in memory as in the image's pages, so that the system copies whole pages.
struct Room {
    buf: AlignedBuf,
    /// The byte of the image that belongs to the first one here.
    origin: u64,
}

impl Room {
    fn new(bytes: usize) -> Self {
        Self {
            buf: AlignedBuf::zeroed(bytes + PIECE),
            origin: 0,
        }
    }

    /// Room for a part, which is no longer than was said.
    fn begin(&mut self, part: ByteRange) -> &mut [u8] {
        let skew = part.start() % PIECE as u64;
        self.origin = part.start() - skew;
        &mut self.buf[skew as usize..][..part.len() as usize]
    }

    /// What is there of a range inside that part.
    fn get(&self, range: ByteRange) -> &[u8] {
        &self.buf[(range.start() - self.origin) as usize..][..range.len() as usize]
    }
}

/// Room for what a target has; made when one is compared.
struct Theirs {
    bytes: usize,
    room: Option<Room>,
}

impl Theirs {
    /// What a target has in a part, which is no longer than the room. `None` where it cannot be read.
    fn of(
        &mut self,
        hold: &mut Hold<'_>,
        target: MemberId,
        part: ByteRange,
    ) -> Result<Option<&[u8]>, Stop> {
        let room = self.room.get_or_insert_with(|| Room::new(self.bytes));
        let bytes = room.begin(part);
        let read = hold.call(target, |store| {
            // After a failed flush the cache may hold what the medium does not.
            store.forget(part.start(), part.len());
            store.read_at(bytes, part.start())
        })?;
        Ok(read.is_ok().then_some(bytes))
    }
}

/// Where a source is known to have data. To find the end of data may take time in proportion to its length (tmpfs
/// looks at every page), so it is asked for only where zeros were read, and one answer serves all the steps
/// inside it. What has become a hole there since is copied as the zeros that it reads as.
#[derive(Clone, Copy, Debug)]
struct Data {
    source: MemberId,
    start: u64,
    end: u64,
}

/// Copies one range, all of whose bytes are fenced, into these targets. What becomes of each is told in it. Gives the
/// byte at which it has stopped, if it may read no more.
pub(super) fn copy_range(
    hold: &mut Hold<'_>,
    (targets, range): (&mut [&mut Target], ByteRange),
    scratch: &mut Scratch,
) -> Result<Option<u64>, Stop> {
    // Copies that share a step name the same.
    let named = targets.first().and_then(|target| target.from);
    let mut sources = Sources::but(targets.iter().map(|t| t.id).collect(), named);
    let mut rest = Some(range);
    while let Some(range) = rest {
        if scratch.moved >= scratch.most {
            return Ok(Some(range.start()));
        }
        let source = sources.next(hold, range)?;
        let hole = scratch.hole(hold, source, range.start())?;
        let (part, after) = range.split(match hole {
            Some(end) => (end - range.start()).min(scratch.hole_part),
            None => scratch.bytes,
        });
        if hole.is_some() {
            let mut moved = 0;
            for target in targets.iter_mut() {
                moved = moved.max(target.take_hole(hold, part, &mut scratch.theirs)?);
            }
            scratch.gave_hole(moved);
            rest = after;
            continue;
        }
        let bytes = scratch.room.begin(part);
        let since = hold.now();
        let read = hold.ask(source, |store| store.read_at(bytes, part.start()))?;
        if let Err(error) = read {
            sources.failed(hold, (source, since), part, &error);
            continue;
        }
        sources.answered();
        rest = after;
        scratch.moved += part.len();
        scratch.hole = (0, 0);
        copy_read(hold, source, (targets, part), scratch)?;
    }
    Ok(None)
}

/// Gives the targets what was read of a part: zeros that are a hole of the source as a hole.
fn copy_read(
    hold: &mut Hold<'_>,
    source: MemberId,
    (targets, part): (&mut [&mut Target], ByteRange),
    scratch: &mut Scratch,
) -> Result<(), Stop> {
    let mut rest = Some(part);
    while let Some(range) = rest {
        let (len, hole) = scratch.run_read(hold, source, range)?;
        let (piece, after) = range.split(len);
        rest = after;
        let bytes = scratch.room.get(piece);
        for target in targets.iter_mut() {
            match hole {
                true => target.take_hole(hold, piece, &mut scratch.theirs)?,
                false => target.take(hold, Some(bytes), piece, &mut scratch.theirs)?,
            };
        }
    }
    Ok(())
}

impl Target {
    /// The source has a hole: so has the target then. Gives how many bytes it had to read or to write for that.
    fn take_hole(
        &mut self,
        hold: &mut Hold<'_>,
        range: ByteRange,
        theirs: &mut Theirs,
    ) -> Result<u64, Stop> {
        if !self.compares {
            return self.take(hold, None, range, theirs);
        }
        let (mut rest, mut moved) = (Some(range), 0);
        while let Some(range) = rest {
            let data = hold.call(self.id, |store| store.seek(range.start(), Seek::Data))?;
            let hole = match data {
                Ok(None) => range.len(),
                Ok(Some(at)) => at.saturating_sub(range.start()).min(range.len()),
                Err(_) => 0,
            };
            if hole > 0 {
                self.equal += hole;
                rest = range.split(hole).1;
            } else {
                let (part, after) = range.split(theirs.bytes as u64);
                rest = after;
                self.take(hold, None, part, theirs)?;
                moved += part.len();
            }
        }
        Ok(moved)
    }

    /// Gives the target what a source has in a part, zeros of a hole if it is `None`. Gives how many bytes were written
    /// where nothing is compared.
    fn take(
        &mut self,
        hold: &mut Hold<'_>,
        data: Option<&[u8]>,
        part: ByteRange,
        theirs: &mut Theirs,
    ) -> Result<u64, Stop> {
        if self.failed.is_some() {
            return Ok(0);
        }
        if hold.permit()?.store(self.id).is_none() {
            self.failed = Some(Failure::Gone);
            return Ok(0);
        }
        let has = match self.compares {
            true => theirs.of(hold, self.id, part)?,
            false => None,
        };
        let Some(has) = has else {
            return self.fill(hold, data, part);
        };
        let written = hold.call(self.id, |store| {
            put_differing(store, data, has, part.start())
        })?;
        match written {
            Ok(equal) => self.equal += equal,
            Err(error) => self.failed = Some(Failure::Target(error)),
        }
        Ok(0)
    }

    /// As [`Self::take`], whatever the target has, in as many calls as that takes: each has its own time to be answered.
    fn fill(
        &mut self,
        hold: &mut Hold<'_>,
        data: Option<&[u8]>,
        part: ByteRange,
    ) -> Result<u64, Stop> {
        let (mut rest, mut written) = (Some(part), 0);
        while let Some(range) = rest {
            let (at, len) = (range.start(), range.len());
            let skip = (at - part.start()) as usize;
            match hold.call(self.id, |store| put(store, data, skip, at, len))? {
                Ok(done) => {
                    written += if done.written { done.bytes } else { 0 };
                    rest = range.split(done.bytes).1;
                }
                Err(error) => {
                    self.failed = Some(Failure::Target(error));
                    break;
                }
            }
        }
        Ok(written)
    }
}

/// Writes the first of `len` bytes at `at`, those behind `skip` of the data: all of data, of zeros as many as one call
/// does.
fn put(
    store: &dyn Storage,
    data: Option<&[u8]>,
    skip: usize,
    at: u64,
    len: u64,
) -> io::Result<Zeroed> {
    let (bytes, written) = (len, true);
    match data {
        Some(data) => store
            .write_at(&data[skip..skip + len as usize], at)
            .map(|()| Zeroed { bytes, written }),
        None => store.zero_at(at, len, Zero::Punch),
    }
}

/// Writes the pieces in which the target has something else; gives the bytes of the others.
fn put_differing(store: &dyn Storage, data: Option<&[u8]>, has: &[u8], at: u64) -> io::Result<u64> {
    let mut equal = has.len() as u64;
    for (mut first, end) in differing(data, has, at) {
        equal -= (end - first) as u64;
        while first < end {
            let put = put(store, data, first, at + first as u64, (end - first) as u64)?;
            first += put.bytes as usize;
        }
    }
    Ok(equal)
}

/// The runs of pieces in which the bytes differ from zeros or `data`, as offsets; the image's offset is `at`.
fn differing(data: Option<&[u8]>, has: &[u8], at: u64) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (first, end) in borders(at, 0, has.len()) {
        let theirs = &has[first..end];
        let same = match data {
            Some(data) => data[first..end] == *theirs,
            None => is_zero(theirs),
        };
        match runs.last_mut().filter(|last| last.1 == first && !same) {
            Some(last) => last.1 = end,
            None if same => {}
            None => runs.push((first, end)),
        }
    }
    runs
}

/// The pieces between two offsets of what begins at `at` of an image; pieces have the borders of the image.
fn borders(at: u64, from: usize, to: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut next = from;
    std::iter::from_fn(move || {
        let first = next;
        next = to.min(first + PIECE - ((at + first as u64) % PIECE as u64) as usize);
        (first < to).then_some((first, next))
    })
}

/// Whether a piece holds zeros.
fn is_zero(piece: &[u8]) -> bool {
    static ZEROS: [u8; PIECE] = [0; PIECE];
    *piece == ZEROS[..piece.len()]
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
