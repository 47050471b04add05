//! Read repair: a range that a member could not read is rewritten from another source, and read back.
//!
//! A disk puts a bad sector somewhere else when it is written. The rewrite has the fence of the range and its bits
//! of write intent, as any write; the reader does not wait for it, since another source has answered. A member
//! that cannot be repaired is reported as one on which a write has failed.

use crate::sync::thread;
use crate::sync::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, PoisonError};

use super::Message;
use super::pipeline::Pipeline;
use super::rescue::Held;
use super::results::{Results, is_out_of_reach};
use super::shares::Step;
use super::step::{Hold, Stop};
use crate::io::aligned::AlignedBuf;
use crate::set::geometry::BLOCK_BYTES;
use crate::set::{ByteRange, Event, MemberId, MemberSet};

/// Most ranges that wait; a read finds what is left out again.
const WAITING_MAX: usize = 64;
/// Borders of what is rewritten: the blocks of most disks and file systems.
const ALIGN: u64 = 4096;

const _: () = assert!(ALIGN % BLOCK_BYTES == 0);

/// Ranges to be repaired, and whether a thread is at it.
#[derive(Debug, Default)]
pub(super) struct Repairs(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    ranges: VecDeque<(MemberId, ByteRange)>,
    busy: bool,
}

impl Repairs {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a range; says whether a thread has to be started.
    fn note(&self, member: MemberId, range: ByteRange) -> bool {
        let mut waiting = self.lock();
        let known = waiting.ranges.iter().any(|known| *known == (member, range));
        if known || waiting.ranges.len() >= WAITING_MAX {
            return false;
        }
        waiting.ranges.push_back((member, range));
        !std::mem::replace(&mut waiting.busy, true)
    }

    fn next(&self) -> Option<(MemberId, ByteRange)> {
        let mut waiting = self.lock();
        let next = waiting.ranges.pop_front();
        waiting.busy = next.is_some();
        next
    }
}

impl Pipeline {
    /// Has a range of a member repaired that it could not read.
    pub(super) fn repair_later(self: &Arc<Self>, member: MemberId, range: ByteRange) {
        let range = self.geometry().round_out(range, ALIGN);
        if !self.repairs.note(member, range) {
            return;
        }
        let pipeline = Arc::clone(self);
        let work = move || {
            while let Some((member, range)) = pipeline.repairs.next() {
                pipeline.repair(member, range);
            }
        };
        if let Err(error) = thread::Builder::new().name("repair".into()).spawn(work) {
            tracing::warn!(%error, "no thread for a read repair");
            self.repairs.lock().busy = false;
        }
    }

    fn repair(&self, member: MemberId, range: ByteRange) {
        let fenced = self.enter(range);
        // A stop waits for it, or finds that it has not begun.
        let flight = self.flying.begin();
        // A stall may have begun meanwhile, and this be an epoch that it does not wait for.
        if !self.gate().is_open() {
            return;
        }
        // It may have left, or be stale there by now.
        if !fenced.live().view().readers(range).contains(member) {
            return;
        }
        let Ok(permit) = self.permit(fenced, range) else {
            return;
        };
        let step = Step::of_nobody(permit, member, flight);
        let mut hold = Hold::new(self, Held::Step(step));
        let mut results = Results::default();
        let repaired = rewrite(&mut hold, (member, range), &mut results);
        let (Held::Step(step), Ok(repaired)) = (hold.into_held(), repaired) else {
            return;
        };
        if !results.failed.is_empty() {
            let live = step.permit().live();
            // As long as no source answers, nobody is to blame.
            if self.trust(live.view().sources(), &mut results) {
                let _ = self.settle(live, Some(range), &results);
            }
        }
        if repaired {
            let repaired = Event::ReadRepaired(member, range);
            let _ = self.messages.send(Message::Event(repaired));
        }
    }
}

/// Gives a member what another source has, and reads it back from the medium. Says whether it has it now; where nobody
/// has failed and it has not, nothing is known of the member that is worse than of all.
fn rewrite(
    hold: &mut Hold<'_>,
    (member, range): (MemberId, ByteRange),
    results: &mut Results,
) -> Result<bool, Stop> {
    let Some((source, bytes)) = read_elsewhere(hold, member, range)? else {
        return Ok(false);
    };
    // Who has lost a write that the member may still have tells so now: its old contents would be all there is. The
    // source of the bytes may be one that is still merged elsewhere.
    let mut asked = hold.permit()?.live().view().sources();
    asked.insert(source);
    results.add_flushed(hold.flush(asked.without(hold.pipeline().gone()))?);
    let told = |id| results.failed.contains(id) || hold.pipeline().is_gone(id);
    if told(source) || told(member) {
        return Ok(false);
    }
    let written = hold.call(member, |store| store.write_at(&bytes, range.start()))?;
    if written.as_ref().is_err_and(is_out_of_reach) {
        // It says nothing of its medium, and was given up meanwhile.
        return Ok(false);
    }
    results.add(member, written);
    results.add_flushed(hold.flush(results.good)?);
    if results.good.contains(member) {
        results.add(member, read_back(hold, (member, range), &bytes)?);
    }
    let repaired = results.good.contains(member);
    if !repaired {
        results.blame(member);
    }
    Ok(repaired)
}

/// Whether a member has these bytes on its medium.
fn read_back(
    hold: &mut Hold<'_>,
    (member, range): (MemberId, ByteRange),
    bytes: &[u8],
) -> Result<io::Result<()>, Stop> {
    let mut back = AlignedBuf::zeroed(bytes.len());
    let read = hold.call(member, |store| {
        store.forget(range.start(), range.len());
        store.read_at(&mut back, range.start())
    })?;
    let differs = || io::Error::other("it reads other bytes than were written");
    Ok(read.and_then(|()| (*back == *bytes).then_some(()).ok_or_else(differs)))
}

/// What another source has in a range, if one can read it.
fn read_elsewhere(
    hold: &mut Hold<'_>,
    member: MemberId,
    range: ByteRange,
) -> Result<Option<(MemberId, AlignedBuf)>, Stop> {
    let mut tried: MemberSet = [member].into_iter().collect();
    let mut bytes = AlignedBuf::zeroed(range.len() as usize);
    loop {
        let planned = hold.permit()?.live().view().plan_read(range, tried, |_| 0);
        let Some(source) = planned else {
            return Ok(None);
        };
        let read = hold.ask(source, |store| store.read_at(&mut bytes, range.start()))?;
        if read.is_ok() {
            return Ok(Some((source, bytes)));
        }
        tried.insert(source);
    }
}
