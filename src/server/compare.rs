//! One step of a verify: what the sources have in a range is read, compared, and repaired where that is asked for.
//!
//! A repair is a write like that of an application: fence, View, bits of all bitmaps, members, verdict (I1, I3, I4).
//! It goes to every member that takes part and does not hold the right bytes, so that no copy brings the wrong ones
//! back.

use std::io;

use super::Message;
use super::copier::STEP_BYTES;
use super::errand::{Hold, Stop};
use super::results::Results;
use crate::io::Seek;
use crate::io::aligned::AlignedBuf;
use crate::set::geometry::BLOCK_BYTES;
use crate::set::{
    ByteRange, Bytes, Contents, Difference, Event, Fate, MemberId, MemberSet, Repair, compare,
};

/// Bytes that are read again as one where a longer read has failed, and where one of these has.
const RETRY_BYTES: usize = 64 << 10;
const PART_BYTES: u64 = 4096;
/// So many parts may fail of a member in a piece until the rest counts as unreadable: each may take long, and the
/// fence is held.
const RETRIES: usize = 8;

/// What the thread of a verify keeps from step to step.
#[derive(Default)]
pub(super) struct Comparer {
    /// Room for a piece of each source.
    rooms: Vec<AlignedBuf>,
    /// Where the hole ends that all sources had where the last step has ended; only a hint.
    hole: u64,
}

impl Comparer {
    /// Where the hole ends in which the next step begins, if it does.
    pub(super) fn hole(&self) -> u64 {
        self.hole
    }

    /// Compares from one byte to another, of data no more than `most` bytes; not while there are no two sources that
    /// answer. What is compared is told to the work at once, so that another thread can go on behind it. Gives the
    /// bytes that were read, holes left out, also of a step that stops.
    pub(super) fn step(
        &mut self,
        hold: &mut Hold<'_>,
        (from, to): (u64, u64),
        most: u64,
    ) -> (u64, Result<(), Stop>) {
        let most = (most / BLOCK_BYTES).max(1) * BLOCK_BYTES;
        let mut done = Done { end: from, read: 0 };
        let outcome = self.compare(hold, to, most, &mut done);
        (done.read, outcome)
    }

    fn compare(
        &mut self,
        hold: &mut Hold<'_>,
        to: u64,
        most: u64,
        done: &mut Done,
    ) -> Result<(), Stop> {
        let pipeline = hold.pipeline;
        let len = Bytes(to - done.end);
        let range = pipeline.geometry().clip(Bytes(done.end), len);
        let range = range.map_err(|_| Stop::Later)?;
        let fenced = match hold.errand()?.work.repair() {
            Some(_) => pipeline.enter_to_change(range).map_err(|_| Stop::Later)?,
            // A write that is waited for no longer keeps its fence until its member answers.
            None => pipeline.enter_unless_dead(range).ok_or(Stop::Later)?,
        };
        hold.enter(fenced)?;
        let sources = hold.live()?.view().sources();
        if sources.len() < 2 || !sources.and(pipeline.silent_members()).is_empty() {
            return Err(Stop::Later);
        }
        while done.end < to {
            let data = data_from(hold, sources, done.end)?;
            if data > done.end {
                (done.end, self.hole) = (data.min(to), data);
                hold.errand()?.work.finish(done.end, 0);
                continue;
            }
            if done.read >= most {
                break;
            }
            let len = (to - done.end).min(most - done.read).min(STEP_BYTES);
            self.piece(hold, sources, len, done)?;
        }
        Ok(())
    }

    /// Reads and compares one piece.
    fn piece(
        &mut self,
        hold: &mut Hold<'_>,
        sources: MemberSet,
        len: u64,
        done: &mut Done,
    ) -> Result<(), Stop> {
        let at = done.end;
        let room = || AlignedBuf::zeroed(STEP_BYTES as usize);
        let rooms = sources.len().max(self.rooms.len());
        self.rooms.resize_with(rooms, room);
        let mut bad = Vec::with_capacity(sources.len());
        for (id, room) in sources.iter().zip(&mut self.rooms) {
            bad.push(read(hold, id, &mut room[..len as usize], at)?);
        }
        // Where all could be read it is one piece.
        let whole = bad.iter().all(Vec::is_empty);
        let part = if whole { len } else { PART_BYTES };
        let mut from = 0;
        while from < len {
            let part = part.min(len - from);
            let held = sources.iter().zip(&self.rooms).zip(&bad);
            let contents = held.map(|((member, room), bad)| Contents {
                member,
                bytes: (!bad.contains(&from)).then(|| &room[from as usize..][..part as usize]),
            });
            let written = judge(hold, &contents.collect::<Vec<_>>(), at + from)?;
            from += part;
            (done.end, done.read) = (at + from, done.read + part);
            hold.errand()?.work.finish(done.end, written);
        }
        Ok(())
    }
}

/// How far a step is.
struct Done {
    /// Everything before this byte is compared.
    end: u64,
    /// Bytes that were read.
    read: u64,
}

/// The first byte at or behind one where some source may have data.
fn data_from(hold: &mut Hold<'_>, sources: MemberSet, at: u64) -> Result<u64, Stop> {
    let mut data = u64::MAX;
    for id in sources.iter() {
        let store = hold.live()?.store(id);
        if !store.is_some_and(|store| store.finds_holes()) {
            return Ok(at);
        }
        let found = hold.call(id, |store| store.seek(at, Seek::Data))?;
        // Reading tells more than an error does.
        data = data.min(found.map_or(at, |found| found.unwrap_or(u64::MAX)));
        if data <= at {
            break;
        }
    }
    Ok(data)
}

/// Reads what the medium of a source has; gives the places of the parts that cannot be read.
fn read(hold: &mut Hold<'_>, id: MemberId, room: &mut [u8], at: u64) -> Result<Vec<u64>, Stop> {
    let len = room.len() as u64;
    let outcome = hold.call(id, |store| {
        // The cache may hold what the medium does not.
        store.forget(at, len);
        store.read_at(room, at)
    })?;
    let Err(error) = outcome else {
        return Ok(Vec::new());
    };
    tracing::warn!(member = hold.pipeline.name(id), at, %error, "a read of a verify failed");
    let event = Event::ReadFailed(id);
    let _ = hold.pipeline.messages.send(Message::Event(event));
    let (mut bad, mut from) = (Vec::new(), 0);
    while from < room.len() {
        let long = room.len().min(from + RETRY_BYTES);
        if try_again(hold, id, &bad, (&mut room[from..long], at + from as u64))? {
            from = long;
        }
        while from < long {
            let end = long.min(from + PART_BYTES as usize);
            if !try_again(hold, id, &bad, (&mut room[from..end], at + from as u64))? {
                bad.push(from as u64);
            }
            from = end;
        }
    }
    Ok(bad)
}

/// Reads a part again, unless so many have failed that there is no hope; says whether it is read.
fn try_again(
    hold: &mut Hold<'_>,
    id: MemberId,
    bad: &[u64],
    (room, at): (&mut [u8], u64),
) -> Result<bool, Stop> {
    if bad.len() >= RETRIES {
        return Ok(false);
    }
    Ok(hold.call(id, |store| store.read_at(room, at))?.is_ok())
}

/// Compares contents and writes down what differs; gives the bytes that were repaired.
fn judge(hold: &mut Hold<'_>, contents: &[Contents<'_>], at: u64) -> Result<u64, Stop> {
    let differences = compare(at, contents);
    if differences.is_empty() {
        return Ok(0);
    }
    let fates = match hold.errand()?.work.repair() {
        Some(repair) => mend(hold, contents, (at, &differences), repair)?,
        None => vec![Fate::Left; differences.len()],
    };
    let errand = hold.errand()?;
    let first = differences.iter().find(|d| d.differs());
    if let (false, Some(first)) = (errand.told, first) {
        errand.told = true;
        let event = Event::VerifyDiffers(errand.work.op(), first.first());
        let _ = hold.pipeline.messages.send(Message::Event(event));
    }
    let (findings, mut written) = (hold.errand()?.work.findings(), 0);
    for (difference, fate) in differences.into_iter().zip(fates) {
        if fate == Fate::Repaired {
            written += difference.blocks() * BLOCK_BYTES;
        }
        findings.add(difference, at, contents, fate);
    }
    Ok(written)
}

/// Bytes that some members are to get, and who has them.
struct Job<'a> {
    range: ByteRange,
    bytes: &'a [u8],
    holder: MemberId,
    members: MemberSet,
}

/// Writes what is right into the members that do not hold it, flushes them and reads it back. Who fails is reported
/// as after a failed write, before the fence is let go of.
fn mend(
    hold: &mut Hold<'_>,
    contents: &[Contents<'_>],
    (at, differences): (u64, &[Difference]),
    repair: Repair,
) -> Result<Vec<Fate>, Stop> {
    let view = hold.live()?.view();
    let (geometry, writers) = (view.geometry(), view.writers());
    let job = |difference: &Difference| {
        let right = difference.right(repair);
        let holder = contents.iter().find(|c| right.contains(c.member));
        let range = difference.range(geometry)?;
        let bytes = &holder?.bytes?[(range.start() - at) as usize..][..range.len() as usize];
        Some(Job {
            range,
            bytes,
            holder: holder?.member,
            members: writers.without(right),
        })
    };
    let mut jobs: Vec<_> = differences.iter().map(job).collect();
    let ends = jobs
        .iter()
        .flatten()
        .map(|job| (job.range.start(), job.range.end()));
    let Some((from, to)) = ends.reduce(|a, b| (a.0, b.1)) else {
        return Ok(vec![Fate::Left; jobs.len()]);
    };
    let span = geometry.clip(Bytes(from), Bytes(to - from));
    let span = span.map_err(|_| Stop::Later)?;
    // Without its bits nothing is written (I1).
    let pipeline = hold.pipeline;
    hold.permit(|fenced| pipeline.permit(fenced, span))?;
    let mut results = Results::default();
    ask_holders(hold, &mut jobs, &mut results)?;
    for job in jobs.iter().flatten() {
        write(hold, job, &mut results)?;
    }
    flush(hold, results.good, &mut results)?;
    for job in jobs.iter().flatten() {
        read_back(hold, job, &mut results)?;
    }
    let sources: MemberSet = contents.iter().map(|c| c.member).collect();
    // As long as no source answers, nobody is to blame; where all have answered, with errors, they have failed.
    let is_lost = sources.iter().any(|id| pipeline.is_lost(id));
    let is_trusted = pipeline.trust(sources, &mut results);
    if !is_trusted && (is_lost || !sources.without(results.failed).is_empty()) {
        return Err(Stop::Later);
    }
    let settled = pipeline.settle(hold.live()?, Some(span), &results);
    hold.repaired()?;
    let failed = results.failed.and(sources);
    let fate = |job: &Option<Job<'_>>| match job {
        None => Fate::Left,
        Some(job) if settled.is_ok() && job.members.and(failed).is_empty() => Fate::Repaired,
        Some(_) => Fate::Failed,
    };
    Ok(jobs.iter().map(fate).collect())
}

/// Flushes those who are taken for right: who has lost a write that the others still have tells so now, and is not.
fn ask_holders(
    hold: &mut Hold<'_>,
    jobs: &mut [Option<Job<'_>>],
    results: &mut Results,
) -> Result<(), Stop> {
    let holders = jobs.iter().flatten().map(|job| job.holder).collect();
    flush(hold, holders, results)?;
    // Of who has left since, its lane may have told by then.
    let pipeline = hold.pipeline;
    let wrong = |id| results.failed.contains(id) || pipeline.is_gone(id);
    for job in jobs {
        job.take_if(|job| wrong(job.holder));
    }
    Ok(())
}

fn write(hold: &mut Hold<'_>, job: &Job<'_>, results: &mut Results) -> Result<(), Stop> {
    for id in job.members.without(results.failed).iter() {
        let outcome = hold.call(id, |store| store.write_at(job.bytes, job.range.start()))?;
        results.add(id, outcome);
    }
    Ok(())
}

/// Flushes members, each once, on its lane.
fn flush(hold: &mut Hold<'_>, members: MemberSet, results: &mut Results) -> Result<(), Stop> {
    let flushed = hold.pipeline.flush_of(hold.live()?, members);
    results.add_flushed(flushed);
    Ok(())
}

/// Compares what the members of a job have on their medium now.
fn read_back(hold: &mut Hold<'_>, job: &Job<'_>, results: &mut Results) -> Result<(), Stop> {
    let mut room = AlignedBuf::zeroed(job.bytes.len());
    for id in job.members.and(results.good).iter() {
        let outcome = hold.call(id, |store| {
            store.forget(job.range.start(), job.range.len());
            store.read_at(&mut room, job.range.start())
        })?;
        match outcome {
            Ok(()) if *room == *job.bytes => {}
            Ok(()) => results.add(id, Err(io::Error::from_raw_os_error(libc::EIO))),
            Err(error) => results.add(id, Err(error)),
        }
    }
    Ok(())
}
