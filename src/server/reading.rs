//! Reads of the unit: from the best member that has the range, or from another one when that fails or does not
//! answer. A read is a value that any thread can go on with.

use crate::sync::Instant;
use crate::sync::atomic::Ordering;
use std::sync::Arc;

use crate::sync::swap::Guard;

use super::Message;
use super::meter::Asked;
use super::pipeline::{EIO, Errno, Fenced, Live, Pipeline};
use super::queued::Flight;
use super::rescue::Held;
use super::results::is_out_of_reach;
use super::watch::Time;
use crate::io::aligned::AlignedBuf;
use crate::set::{ByteRange, Bytes, MemberId, MemberSet, Preference};

/// Called once with the bytes of a read, on whatever thread it ended.
pub(super) type Answered = Box<dyn FnOnce(Result<&[u8], Errno>) + Send>;

/// What keeps the View of a read.
#[derive(Debug)]
pub(super) enum Pinned {
    Live(Guard<Arc<Live>>),
    /// It has merged its range, and holds the fence still.
    Fenced(Fenced),
}

/// A read under way.
pub(super) struct Read {
    pinned: Pinned,
    pub(super) range: ByteRange,
    /// Members that have not answered it.
    tried: MemberSet,
    /// The last of them that was out of reach, and since when one was.
    lost: Option<(MemberId, Time)>,
    done: Answered,
    /// Who is asked first, if that is settled already.
    pub(super) first: Option<MemberId>,
    /// While no thread waits for it.
    pub(super) flight: Option<Flight>,
}

impl std::fmt::Debug for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut read = f.debug_struct("Read");
        read.field("range", &self.range).finish_non_exhaustive()
    }
}

impl Read {
    pub(super) fn new(pinned: Pinned, range: ByteRange, done: Answered) -> Self {
        Self {
            pinned,
            range,
            tried: MemberSet::EMPTY,
            lost: None,
            done,
            first: None,
            flight: None,
        }
    }

    pub(super) fn live(&self) -> &Arc<Live> {
        match &self.pinned {
            Pinned::Live(live) => live,
            Pinned::Fenced(fenced) => fenced.live(),
        }
    }

    /// Whether somebody else could answer it.
    pub(super) fn has_other(&self, but: MemberSet) -> bool {
        let readers = self.live().view().readers(self.range);
        !readers.without(self.tried).without(but).is_empty()
    }

    /// Goes on in place of a thread that a member holds, which has not answered since then.
    pub(super) fn go_on_without(mut self, (member, since): (MemberId, Time), pipeline: &Pipeline) {
        self.tried.insert(member);
        self.lost = self.lost.or(Some((member, since)));
        let mut buf = AlignedBuf::zeroed(self.range.len() as usize);
        pipeline.go_on_reading(self, &mut buf);
    }

    /// A member has answered it.
    pub(super) fn succeed(self, bytes: &[u8]) {
        // Who hears that the epoch is over may lock the images.
        drop(self.pinned);
        (self.done)(Ok(bytes));
    }

    /// Nobody answers it any more.
    pub(super) fn fail(self) {
        drop(self.pinned);
        (self.done)(Err(EIO));
    }
}

impl Pipeline {
    /// Reads `buf.len()` bytes at `at`, fewer only at the end of the unit; what is still to be merged there is
    /// merged first (I11). `done` is called when it has come to its end: before this returns, but for a member
    /// that does not answer, which holds this thread and its buffer, and not the read.
    ///
    /// The error is EIO when no source could answer.
    pub fn read_then(&self, at: u64, buf: &mut [u8], done: Answered) {
        let left = self.size().saturating_sub(at);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let Ok(range) = self.geometry().clip(Bytes(at), Bytes(len as u64)) else {
            return done(Ok(&[]));
        };
        self.count_request();
        self.read_range(range, &mut buf[..len], done);
    }

    /// Reads a range of the unit.
    pub(super) fn read_range(&self, range: ByteRange, buf: &mut [u8], done: Answered) {
        let live = self.live();
        if live.view().unmerged(range).is_none() {
            let read = Read::new(Pinned::Live(live), range, done);
            if let Err(read) = self.begin_reading(read) {
                self.go_on_reading(read, buf);
            }
            return;
        }
        // Who waits for a fence keeps no epoch alive.
        drop(live);
        self.read_merged(range, buf, done);
    }

    /// What is preferred for a read beside low costs: its stream, this site, and those whose turn it is.
    fn preference(&self, range: ByteRange) -> Preference {
        let last = self.streams.member_at(range.start());
        // A read that stays with its stream uses up no turn.
        let taken = u64::from(last.is_none());
        let turn = || self.turns.fetch_add(taken, Ordering::Relaxed);
        Preference {
            site: self.params.site(),
            last,
            turn: self.params.takes_turns().then(turn),
        }
    }

    /// The member that answers a read best, one that answers at all if there is one.
    pub(super) fn route(&self, read: &Read) -> Option<MemberId> {
        let load = |id: MemberId| self.reading[id.index()].load(Ordering::Relaxed);
        let prefer = self.preference(read.range);
        let silent = self.silent_members();
        let choose = |tried| read.live().view().route(read.range, tried, &prefer, load);
        match silent.is_empty() {
            true => choose(read.tried),
            false => choose(read.tried.or(silent)).or_else(|| choose(read.tried)),
        }
    }

    /// Reads from one member after the other until one has answered, and ends the read.
    pub(super) fn go_on_reading(&self, mut read: Read, buf: &mut [u8]) {
        loop {
            let Some(id) = read.first.take().or_else(|| self.route(&read)) else {
                match self.wait_for_members(read) {
                    Some(again) if again.live().view().unmerged(again.range).is_none() => {
                        read = again;
                    }
                    Some(again) if matches!(again.pinned, Pinned::Fenced(_)) => read = again,
                    Some(again) => return self.read_range(again.range, buf, again.done),
                    None => return,
                }
                continue;
            };
            // Before the read: the next one of the stream may come while this one is under way.
            self.streams.note(read.range.end(), id);
            let (range, lost) = (read.range, read.lost.filter(|lost| lost.0 == id));
            let since = lost.map_or_else(|| self.watch.now(), |lost| lost.1);
            let store = read.live().store(id).cloned();
            let Some(store) = store.filter(|_| !self.is_lost(id)) else {
                // It is not even asked, and nothing is known of its bytes.
                read.tried.insert(id);
                continue;
            };
            let (reading, begun) = (&self.reading[id.index()], Instant::now());
            reading.fetch_add(1, Ordering::Relaxed);
            let (outcome, held) = self.watch.call((id, since), Held::Read(read), |_| {
                store.read_at(buf, range.start())
            });
            reading.fetch_sub(1, Ordering::Relaxed);
            self.meters.ended(id, Asked::Read(range.len()), begun);
            let held = held.unwrap_or(Held::Nothing);
            let Held::Read(back) = held else { return };
            read = back;
            match outcome {
                Ok(()) => {
                    self.watch.answered(id);
                    // Who hears that the epoch is over may lock the images.
                    if !makes!(StorageHeld) {
                        drop(store);
                    }
                    return read.succeed(buf);
                }
                Err(error) => self.read_failed(&mut read, (id, since), &error),
            }
        }
    }

    fn read_failed(&self, read: &mut Read, (id, since): (MemberId, Time), error: &std::io::Error) {
        read.tried.insert(id);
        if is_out_of_reach(error) {
            read.lost = Some((id, since));
            return;
        }
        self.watch.answered(id);
        let at = read.range.start();
        tracing::warn!(member = self.name(id), at, %error, "a read failed");
        let _ = self.messages.send(Message::ReadFailed(id, read.range));
    }

    /// Nobody has answered a read: it fails, or members that are out of reach are tried again in a while.
    fn wait_for_members(&self, read: Read) -> Option<Read> {
        let renewed = matches!(read.pinned, Pinned::Live(_))
            && read.lost.is_some_and(|lost| self.is_gone(lost.0))
            && self.live().view().epoch() > read.live().view().epoch();
        let lost = read.lost.filter(|lost| self.waits_for(lost.0));
        let mut read = match lost {
            // The member that it has waited for has left: somebody else may have come in.
            None if renewed => read,
            None => {
                read.fail();
                return None;
            }
            Some(lost) => match self.wait_for(lost, Held::Read(read)) {
                Held::Read(read) => read,
                _ => return None,
            },
        };
        read.tried = MemberSet::EMPTY;
        if renewed {
            read.lost = None;
        }
        // Others may have come in.
        if matches!(read.pinned, Pinned::Live(_)) {
            read.pinned = Pinned::Live(self.live());
        }
        Some(read)
    }
}
