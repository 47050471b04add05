//! Mending sources by members that are to be merged: where nobody else can read, they hold what is as right.
//!
//! Where a merge is still to come after a crash, no program has read since, and contents of a merging member are as
//! right as the master's. So a bad place of the last one that may be read costs neither the members that are merged
//! nor what was flushed: it is written anew from one of them, flushed and read back, as by a read repair, under the
//! fence of the merge. Who is believed has been flushed before: one that has lost a write tells so then.

use super::Message;
use super::pipeline::{Fenced, Pipeline};
use super::repair::{ALIGN, read_back};
use super::results::{Results, is_out_of_reach};
use super::step::{Hold, Stop};
use crate::io::aligned::AlignedBuf;
use crate::set::{ByteRange, Bytes, Event, Marked, MemberId, MemberSet};

impl Pipeline {
    /// As [`Pipeline::enter_unless_dead`], with the borders of what is mended.
    pub(super) fn enter_to_copy(&self, range: ByteRange) -> Option<Fenced> {
        self.enter_unless_dead(self.geometry().round_out(range, ALIGN))
    }
}

/// Sources that are mended.
struct Mending {
    /// Those that could not read; none that could not be written either.
    sources: MemberSet,
    results: Results,
    /// Whether all members were flushed first.
    flushed: bool,
    /// What was written anew, from byte to byte.
    repaired: Vec<(MemberId, u64, u64)>,
    _marked: Marked,
}

/// Gives sources, all of which have failed to read a part, what they cannot read of it, if one of the targets is to be
/// merged there. Some source can read all of it then.
pub(super) fn mend(
    hold: &mut Hold<'_>,
    (sources, targets): (MemberSet, MemberSet),
    part: ByteRange,
) -> Result<(), Stop> {
    let (pipeline, live) = (hold.pipeline(), hold.permit()?.live());
    let merged = live.view().alike(part).and(targets);
    if merged.is_empty() || !pipeline.gate().lets_mend() {
        return Err(Stop::Unreadable);
    }
    let range = live.view().geometry().round_out(part, ALIGN);
    // The stale sets of the members to be merged say nothing of those that have left, nor of a second source (I1).
    let marked = pipeline.mark(live, range);
    let marked = marked.map_err(|_| Stop::Unreadable)?;
    hold.repairs(sources)?;
    let mut mending = Mending {
        sources: sources.without(pipeline.gone().or(hold.doubted)),
        results: Results::default(),
        flushed: false,
        repaired: Vec::new(),
        _marked: marked,
    };
    let mended = mending.mend(hold, range);
    hold.repairs(MemberSet::EMPTY)?;
    mending.tell(hold, range)?;
    mended
}

impl Mending {
    fn mend(&mut self, hold: &mut Hold<'_>, range: ByteRange) -> Result<(), Stop> {
        let mut room = AlignedBuf::zeroed(ALIGN as usize);
        let mut rest = Some(range);
        while let Some(range) = rest {
            let (piece, after) = range.split(ALIGN);
            rest = after;
            let bytes = &mut room[..piece.len() as usize];
            let bad = self.unread(hold, piece, bytes)?;
            if !bad.is_empty() {
                self.give(hold, bad, (piece, bytes))?;
            }
            if self.sources.is_empty() {
                return Err(Stop::Unreadable);
            }
        }
        Ok(())
    }

    /// Those that cannot read a piece.
    fn unread(
        &self,
        hold: &mut Hold<'_>,
        piece: ByteRange,
        bytes: &mut [u8],
    ) -> Result<MemberSet, Stop> {
        let mut bad = MemberSet::EMPTY;
        for id in self.sources.iter() {
            match hold.ask(id, |store| store.read_at(bytes, piece.start()))? {
                Ok(()) => {}
                Err(error) if is_out_of_reach(&error) => return Err(Stop::Unreadable),
                Err(_) => bad.insert(id),
            }
        }
        Ok(bad)
    }

    /// Gives a piece to those that cannot read it. Who has not got it is mended no further.
    fn give(
        &mut self,
        hold: &mut Hold<'_>,
        bad: MemberSet,
        (piece, bytes): (ByteRange, &mut [u8]),
    ) -> Result<(), Stop> {
        self.flush_first(hold)?;
        self.read_elsewhere(hold, bad, (piece, bytes))?;
        let bad = bad.without(self.doubtful(hold));
        for id in bad.iter() {
            let written = hold.call(id, |store| store.write_at(bytes, piece.start()))?;
            if written.as_ref().is_err_and(is_out_of_reach) {
                return Err(Stop::Unreadable);
            }
            self.results.add(id, written);
        }
        let flushed = hold.flush(bad.without(self.results.failed))?;
        self.results.add_flushed(flushed);
        for id in bad.without(self.results.failed).iter() {
            self.results.add(id, read_back(hold, (id, piece), bytes)?);
        }
        for id in bad.iter() {
            match self.results.failed.contains(id) {
                true => self.results.blame(id),
                false => self.repaired(id, piece),
            }
        }
        self.sources = self.sources.without(self.doubtful(hold));
        Ok(())
    }

    fn flush_first(&mut self, hold: &mut Hold<'_>) -> Result<(), Stop> {
        if !std::mem::replace(&mut self.flushed, true) {
            let all = hold.permit()?.live().view().writers();
            let flushed = hold.flush(all.without(hold.pipeline().gone()))?;
            self.results.add_flushed(flushed);
        }
        Ok(())
    }

    /// Those that may have lost a write, or could not be written: nothing is taken from them.
    fn doubtful(&self, hold: &Hold<'_>) -> MemberSet {
        let failed = self.results.failed.or(hold.doubted);
        failed.or(hold.pipeline().gone())
    }

    /// What another reader has of a piece, or who is as right there.
    fn read_elsewhere(
        &self,
        hold: &mut Hold<'_>,
        bad: MemberSet,
        (piece, bytes): (ByteRange, &mut [u8]),
    ) -> Result<(), Stop> {
        let view = hold.permit()?.live().view();
        let (readers, alike) = (view.readers(piece), view.alike(piece));
        let may = |id: &MemberId| !bad.or(self.doubtful(hold)).contains(*id);
        let others = readers.iter().chain(alike.iter());
        let others: Vec<MemberId> = others.filter(may).collect();
        for id in others {
            let read = hold.call(id, |store| {
                store.forget(piece.start(), piece.len());
                store.read_at(bytes, piece.start())
            })?;
            if read.is_ok() {
                return Ok(());
            }
        }
        Err(Stop::Unreadable)
    }

    fn repaired(&mut self, id: MemberId, piece: ByteRange) {
        let joins = |run: &&mut (MemberId, u64, u64)| (run.0, run.2) == (id, piece.start());
        match self.repaired.iter_mut().find(joins) {
            Some(run) => run.2 = piece.end(),
            None => self.repaired.push((id, piece.start(), piece.end())),
        }
    }

    /// Tells what was repaired, and who has failed, as after a failed write; nobody is to blame if no source is left.
    fn tell(mut self, hold: &mut Hold<'_>, range: ByteRange) -> Result<(), Stop> {
        let (pipeline, live) = (hold.pipeline(), hold.permit()?.live());
        let good = live.view().sources().without(self.results.failed);
        if !self.results.failed.is_empty() && !good.is_empty() {
            good.iter().for_each(|id| self.results.good.insert(id));
            let _ = pipeline.settle(live, Some(range), &self.results);
            hold.doubted = hold.doubted.or(self.results.failed);
        }
        for (id, from, to) in self.repaired {
            let range = pipeline.geometry().clip(Bytes(from), Bytes(to - from));
            let event = range.map(|range| Event::ReadRepaired(id, range));
            let _ = event.map(|event| pipeline.messages.send(Message::Event(event)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
