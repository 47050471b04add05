//! Mending the master by members that are to be merged: where nobody else can read, they hold what is as right.
//!
//! Where a merge is still to come after a crash, no program has read since, and contents of a merging member are as
//! right as the master's. So a bad place of the last one that may be read costs neither the members that are merged
//! nor what was flushed: it is written anew from one of them, flushed and read back, as by a read repair, under the
//! fence of the merge. Who is believed has been flushed before: one that has lost a write tells so then. All others lack
//! the place before it is written, and get it from the master.

use std::io;

use super::Message;
use super::pipeline::{Fenced, Pipeline};
use super::repair::{ALIGN, read_back};
use super::results::{Results, is_out_of_reach};
use super::step::{Hold, Stop};
use crate::io::aligned::AlignedBuf;
use crate::set::{ByteRange, Bytes, Event, Marked, MemberId, MemberSet, View};

impl Pipeline {
    /// As [`Pipeline::enter_unless_dead`], with the borders of what is mended.
    pub(super) fn enter_to_copy(&self, range: ByteRange) -> Option<Fenced> {
        self.enter_unless_dead(self.geometry().round_out(range, ALIGN))
    }
}

/// A master that is mended.
struct Mending {
    master: MemberId,
    /// What is mended, with whole pieces.
    range: ByteRange,
    results: Results,
    /// Whether all members were flushed first.
    flushed: bool,
    /// Whether all others lack it, which is durable.
    lacked: bool,
    /// What was written anew, from byte to byte.
    repaired: Vec<(u64, u64)>,
    _marked: Marked,
}

/// Gives the only reader, which has failed to read a part, what it cannot read of it, if one of the targets is to be
/// merged there. It can read all of it then.
pub(super) fn mend(
    hold: &mut Hold<'_>,
    (readers, targets): (MemberSet, MemberSet),
    part: ByteRange,
) -> Result<(), Stop> {
    let (pipeline, live) = (hold.pipeline(), hold.permit()?.live());
    let view = live.view();
    let merged = view.alike(part).and(targets);
    // Several of them would have to be equal behind it, whatever comes in between.
    let only = readers.iter().next().filter(|_| readers.len() == 1);
    let master = only.filter(|id| view.sources().contains(*id) && view.sources().len() == 1);
    let master = master.filter(|_| !merged.is_empty() && pipeline.gate().lets_mend());
    let master = master.ok_or(Stop::Unreadable)?;
    let range = view.geometry().round_out(part, ALIGN);
    // The stale sets say nothing of those that have left (I1).
    let marked = pipeline.mark(live, range);
    let marked = marked.map_err(|_| Stop::Unreadable)?;
    hold.repairs(readers)?;
    let mut mending = Mending {
        master,
        range,
        results: Results::default(),
        flushed: false,
        lacked: false,
        repaired: Vec::new(),
        _marked: marked,
    };
    let mended = mending.mend(hold);
    hold.repairs(MemberSet::EMPTY)?;
    mending.tell(hold)?;
    mended
}

impl Mending {
    fn mend(&mut self, hold: &mut Hold<'_>) -> Result<(), Stop> {
        let mut room = AlignedBuf::zeroed(ALIGN as usize);
        let mut rest = Some(self.range);
        while let Some(range) = rest {
            let (piece, after) = range.split(ALIGN);
            rest = after;
            let bytes = &mut room[..piece.len() as usize];
            let read = hold.call(self.master, |store| store.read_at(bytes, piece.start()))?;
            match read {
                Ok(()) => {}
                Err(error) if is_out_of_reach(&error) => return Err(Stop::Unreadable),
                Err(_) => self.give(hold, (piece, bytes))?,
            }
        }
        Ok(())
    }

    /// Gives the master a piece that it cannot read.
    fn give(
        &mut self,
        hold: &mut Hold<'_>,
        (piece, bytes): (ByteRange, &mut [u8]),
    ) -> Result<(), Stop> {
        self.flush_first(hold)?;
        self.read_elsewhere(hold, (piece, bytes))?;
        self.have_lacked(hold)?;
        let master = self.master;
        let written = hold.call(master, |store| store.write_at(bytes, piece.start()))?;
        if written.as_ref().is_err_and(is_out_of_reach) {
            return Err(Stop::Unreadable);
        }
        self.results.add(master, written);
        if self.results.good.contains(master) {
            let flushed = hold.flush([master].into_iter().collect())?;
            self.results.add_flushed(flushed);
        }
        if self.results.good.contains(master) {
            self.results
                .add(master, read_back(hold, (master, piece), bytes)?);
        }
        if self.results.failed.contains(master) {
            return Err(Stop::Unreadable);
        }
        match self
            .repaired
            .last_mut()
            .filter(|run| run.1 == piece.start())
        {
            Some(run) => run.1 = piece.end(),
            None => self.repaired.push((piece.start(), piece.end())),
        }
        Ok(())
    }

    fn flush_first(&mut self, hold: &mut Hold<'_>) -> Result<(), Stop> {
        if !std::mem::replace(&mut self.flushed, true) {
            let all = hold.permit()?.live().view().writers();
            let flushed = hold.flush(all.without(hold.pipeline().gone()))?;
            self.results.add_flushed(flushed);
        }
        match self.doubtful(hold).contains(self.master) {
            true => Err(Stop::Unreadable),
            false => Ok(()),
        }
    }

    /// Those that may have lost a write, or could not be written: nothing is taken from them.
    fn doubtful(&self, hold: &Hold<'_>) -> MemberSet {
        let failed = self.results.failed.or(hold.doubted);
        failed.or(hold.pipeline().gone())
    }

    /// What a member has of a piece that is as right there.
    fn read_elsewhere(
        &self,
        hold: &mut Hold<'_>,
        (piece, bytes): (ByteRange, &mut [u8]),
    ) -> Result<(), Stop> {
        let believed = self.believed(hold.permit()?.live().view(), piece);
        for id in believed.without(self.doubtful(hold)).iter() {
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

    /// The members that are as right as the master in a piece. One that has been merged in a region of it already is what
    /// programs may have read there: where there are such, it is one of them.
    fn believed(&self, view: &View, piece: ByteRange) -> MemberSet {
        let geometry = view.geometry();
        let mut believed = view.alike(piece);
        let mut rest = Some(piece);
        while let Some(range) = rest {
            let border = geometry.region_bytes() - range.start() % geometry.region_bytes();
            let (part, after) = range.split(border);
            rest = after;
            let mut merged = view.readers(part);
            merged.remove(self.master);
            if !merged.is_empty() {
                believed = believed.and(merged);
            }
        }
        believed
    }

    /// Before the master is written: who is no source lacks it (I1), as behind a write that has failed everywhere.
    fn have_lacked(&mut self, hold: &mut Hold<'_>) -> Result<(), Stop> {
        if !std::mem::replace(&mut self.lacked, true) {
            let mut results = Results::default();
            let anew = io::Error::other("it cannot be read at a place, which is written anew");
            results.add(self.master, Err(anew));
            let live = hold.permit()?.live();
            let _ = hold.pipeline().settle(live, Some(self.range), &results);
        }
        Ok(())
    }

    /// Tells what was repaired, and who has failed, as after a failed write; nobody is to blame if no source is left.
    fn tell(mut self, hold: &mut Hold<'_>) -> Result<(), Stop> {
        let (pipeline, live) = (hold.pipeline(), hold.permit()?.live());
        let bad = self.results.failed.or(pipeline.gone());
        let good = live.view().sources().without(bad);
        if !self.results.failed.is_empty() && !good.is_empty() {
            good.iter().for_each(|id| self.results.good.insert(id));
            let _ = pipeline.settle(live, Some(self.range), &self.results);
            hold.doubted = hold.doubted.or(self.results.failed);
        }
        for (from, to) in self.repaired {
            let range = pipeline.geometry().clip(Bytes(from), Bytes(to - from));
            let event = range.map(|range| Event::ReadRepaired(self.master, range));
            let _ = event.map(|event| pipeline.messages.send(Message::Event(event)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
