//! The data path: reads, writes, discards and flushes of the unit, on the caller's thread.
//!
//! Order of a write: fence, View, bits, members, verdict, fence freed. The fence comes before the View,
//! so that a request that waits keeps no old epoch alive. Nothing here waits for the control thread,
//! except for the verdict on a request that failed on some member (I3, I8).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use crossbeam_channel::{Sender, bounded};

use super::Message;
use super::fence::{Fence, FenceGuard};
use super::gate::Gate;
use super::home::Home;
use super::lane::Lanes;
use super::params::Params;
use super::streams::Streams;
use super::throttle::Rates;
use crate::io::journal::{Journal, MessageCounts};
use crate::io::{Storage, Zero};
use crate::set::member::MEMBERS_MAX;
use crate::set::{
    ByteRange, Bytes, Event, Failure, Geometry, Homeless, Marked, MemberId, MemberSet, Outcome,
    Preference, Regions, Verdict, View,
};

/// The storage of each member, by place.
pub(super) type Stores = [Option<Arc<dyn Storage>>; MEMBERS_MAX];

/// Failure of a request: an errno for the application.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

pub(super) const EIO: Errno = Errno(libc::EIO);
/// Bytes that a copy inside the unit moves at once.
const COPY_BYTES: usize = 1 << 20;

/// One epoch with the storage of its members. When the last request drops it, the epoch has retired.
#[derive(Debug)]
pub(super) struct Live {
    view: View,
    stores: Stores,
    align: u64,
    messages: Sender<Message>,
}

impl Live {
    /// Joins a View with the storage of the members that take part.
    pub(super) fn new(view: View, all: &Stores, messages: Sender<Message>) -> Self {
        let mut stores = Stores::default();
        for seat in view.seats() {
            stores[seat.id.index()].clone_from(&all[seat.id.index()]);
        }
        let align = stores
            .iter()
            .flatten()
            .map(|s| s.align())
            .max()
            .unwrap_or(1);
        Self {
            view,
            stores,
            align,
            messages,
        }
    }

    pub(super) fn view(&self) -> &View {
        &self.view
    }

    pub(super) fn store(&self, id: MemberId) -> Option<&Arc<dyn Storage>> {
        self.stores[id.index()].as_ref()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Who hears that the epoch is over may lock the images: let go of them first.
        self.stores = Stores::default();
        // A closed channel means that the control thread has ended and nobody waits.
        let _ = self
            .messages
            .send(Message::Event(Event::Retired(self.view.epoch())));
    }
}

/// A fenced range in a pinned epoch.
#[derive(Debug)]
pub(super) struct Fenced<'a> {
    _fence: FenceGuard<'a>,
    live: Guard<Arc<Live>>,
}

impl Fenced<'_> {
    pub(super) fn live(&self) -> &Live {
        &self.live
    }

    /// Sets the bits of a copy step.
    pub(super) fn permit_copy(&self, runs: impl IntoIterator<Item = Regions>) -> WritePermit<'_> {
        WritePermit {
            live: &self.live,
            _marked: self.live.view.mark_copy(runs),
        }
    }
}

/// Permission to write members: the fence is held, the bits are set, the epoch is pinned (I1, I4).
#[derive(Debug)]
#[must_use = "a permit is there to be used"]
pub(super) struct WritePermit<'a> {
    live: &'a Live,
    _marked: Marked,
}

impl WritePermit<'_> {
    /// The storage of a member that takes part, to be written.
    pub(super) fn store(&self, id: MemberId) -> Option<&dyn Storage> {
        self.live.store(id).map(|s| &**s)
    }

    /// Applies one change to every member that takes part, one after the other: with page-cached
    /// members the time goes into copying bytes, and a second thread costs more than it gives.
    fn apply(&self, change: impl Fn(&dyn Storage) -> io::Result<()>) -> Results {
        let mut results = Results::default();
        for id in self.live.view.writers().iter() {
            let outcome = self.store(id).map_or_else(|| Err(not_open()), &change);
            results.add(id, outcome);
        }
        results
    }
}

/// What came of a request on each member.
#[derive(Debug, Default)]
pub(super) struct Results {
    pub(super) good: MemberSet,
    pub(super) failed: MemberSet,
    /// Those that failed by an error of their medium.
    media: MemberSet,
    first: Option<io::Error>,
}

impl Results {
    pub(super) fn add(&mut self, id: MemberId, outcome: io::Result<()>) {
        match outcome {
            Ok(()) => self.good.insert(id),
            Err(error) => {
                tracing::warn!(member = id.index(), %error, "a request failed on a member");
                self.good.remove(id);
                self.failed.insert(id);
                if is_of_medium(&error) {
                    self.media.insert(id);
                }
                self.first.get_or_insert(error);
            }
        }
    }

    fn errno(&self) -> Errno {
        Errno(
            self.first
                .as_ref()
                .and_then(io::Error::raw_os_error)
                .unwrap_or(libc::EIO),
        )
    }
}

/// Whether an error says that a medium may hold other bytes than it was given, not that it is out of reach.
pub(super) fn is_of_medium(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EIO
                | libc::EBADMSG
                | libc::EUCLEAN
                | libc::ENODATA
                | libc::EILSEQ
                | libc::EREMOTEIO
        )
    )
}

pub(super) fn not_open() -> io::Error {
    io::Error::other("the member is not open")
}

/// The data path of a running unit. Every method may be called by any number of threads.
#[derive(Debug)]
pub struct Pipeline {
    /// Regions; the size is that of the unit at its start.
    geometry: Geometry,
    /// Size of the unit. Stored when a View of that size is there, so that who has it finds such a View.
    size: AtomicU64,
    gate: Gate,
    fence: Fence,
    live: ArcSwap<Live>,
    lanes: Lanes,
    reading: [AtomicU64; MEMBERS_MAX],
    streams: Streams,
    /// Reads so far that continued no stream, where members take turns.
    turns: AtomicU64,
    params: Arc<Params>,
    /// Requests of applications that have come in, ever.
    requests: AtomicU64,
    /// Where bits become durable; none when bitmaps are kept in memory only.
    home: ArcSwapOption<Journal>,
    /// What is counted of the announcements to it, whichever it is.
    announced: Arc<MessageCounts>,
    messages: Sender<Message>,
}

impl Pipeline {
    pub(super) fn new(
        live: Live,
        read_only: bool,
        home: Option<Journal>,
        params: Arc<Params>,
    ) -> Self {
        let pipeline = Self {
            geometry: live.view.geometry(),
            size: AtomicU64::new(live.view.geometry().size().0),
            gate: Gate::new(read_only),
            fence: Fence::default(),
            lanes: Lanes::default(),
            reading: Default::default(),
            streams: Streams::default(),
            turns: AtomicU64::new(0),
            params,
            requests: AtomicU64::new(0),
            home: ArcSwapOption::empty(),
            announced: Arc::default(),
            messages: live.messages.clone(),
            live: ArcSwap::from_pointee(live),
        };
        pipeline.set_home(home.map(Arc::new));
        pipeline
    }

    /// Makes this the epoch of all requests to come.
    pub(super) fn publish(&self, live: Live) {
        let size = live.view.geometry().size();
        self.live.store(Arc::new(live));
        self.size.store(size.0, Ordering::Release);
    }

    pub(super) fn home(&self) -> Home {
        self.home.load_full()
    }

    /// Keeps bitmaps there from now on, before anybody announces anything to it.
    pub(super) fn set_home(&self, home: Home) {
        if let Some(journal) = &home {
            journal.count_into(Arc::clone(&self.announced));
            journal.set_messages(self.params.messages());
        }
        self.home.store(home);
    }

    /// Has announcements to the home committed as the parameters say now.
    pub(super) fn follow_messages(&self) {
        if let Some(journal) = &*self.home.load() {
            journal.set_messages(self.params.messages());
        }
    }

    /// What is counted of announcements of new marks.
    pub(super) fn announced(&self) -> &Arc<MessageCounts> {
        &self.announced
    }

    /// Sets the bits of an application's write; with them comes the permission to write.
    fn permit<'a>(
        &self,
        fenced: &'a Fenced<'_>,
        range: ByteRange,
    ) -> Result<WritePermit<'a>, Errno> {
        let live = &*fenced.live;
        let marked = loop {
            let home = self.home.load();
            let Some(journal) = &*home else {
                self.gate.pass_unkept()?;
                let Ok(marked) = live.view.mark(range, &Homeless);
                break marked;
            };
            match live.view.mark(range, &**journal) {
                Ok(marked) => break marked,
                Err(error) => self.lose_home(&error)?,
            }
        };
        Ok(WritePermit {
            live,
            _marked: marked,
        })
    }

    /// Waits until the set has given the journal up, which is durable then.
    fn lose_home(&self, error: &io::Error) -> Result<(), Errno> {
        let (done, given_up) = bounded(1);
        let told = self
            .messages
            .send(Message::HomeLost(error.to_string(), done));
        told.ok().and_then(|()| given_up.recv().ok()).ok_or(EIO)
    }

    /// The lanes on which members are flushed.
    pub(super) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Pins the epoch.
    pub(super) fn live(&self) -> Guard<Arc<Live>> {
        self.live.load()
    }

    pub(super) fn geometry(&self) -> Geometry {
        let size = Bytes(self.size.load(Ordering::Acquire));
        self.geometry.resized(size).unwrap_or(self.geometry)
    }

    /// Requests of applications that have come in; wraps around.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Size of the unit in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Waits for the fence of a range, then pins the epoch. The fence covers what the members
    /// have to read and write again at unaligned borders.
    pub(super) fn enter(&self, range: ByteRange) -> Fenced<'_> {
        let (mut align, mut geometry) = {
            let live = self.live.load();
            (live.align, live.view.geometry())
        };
        loop {
            let fence = self
                .fence
                .acquire(geometry.round_out(range, align).blocks());
            let live = self.live.load();
            if live.align <= align && live.view.geometry() == geometry {
                return Fenced {
                    _fence: fence,
                    live,
                };
            }
            (align, geometry) = (live.align, live.view.geometry());
        }
    }

    /// Fills the buffer from `at`; returns the number of bytes, fewer only at the end of the unit. What is
    /// still to be merged there is merged first (I11).
    ///
    /// # Errors
    /// EIO when no source could answer.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let left = self.size().saturating_sub(at);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let Ok(range) = self.geometry().clip(Bytes(at), Bytes(len as u64)) else {
            return Ok(0);
        };
        self.count_request();
        let live = self.live.load();
        if live.view.unmerged(range).is_none() {
            self.read_from(&live, range, &mut buf[..len])?;
        } else {
            // Who waits for a fence keeps no epoch alive.
            drop(live);
            self.read_merged(range, &mut buf[..len])?;
        }
        Ok(len)
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

    /// Reads a range from the best member that has it, or the next one when that fails.
    pub(super) fn read_from(
        &self,
        live: &Live,
        range: ByteRange,
        buf: &mut [u8],
    ) -> Result<MemberId, Errno> {
        let mut tried = MemberSet::EMPTY;
        let load = |id: MemberId| self.reading[id.index()].load(Ordering::Relaxed);
        let prefer = self.preference(range);
        while let Some(id) = live.view.route(range, tried, &prefer, load) {
            // Before the read: the next one of the stream may come while this one is under way.
            self.streams.note(range.end(), id);
            let reading = &self.reading[id.index()];
            reading.fetch_add(1, Ordering::Relaxed);
            let outcome = live.store(id).map_or_else(
                || Err(not_open()),
                |store| store.read_at(buf, range.start()),
            );
            reading.fetch_sub(1, Ordering::Relaxed);
            let Err(error) = outcome else { return Ok(id) };
            tracing::warn!(member = id.index(), at = range.start(), %error, "a read failed");
            let _ = self.messages.send(Message::Event(Event::ReadFailed(id)));
            tried.insert(id);
        }
        Err(EIO)
    }

    /// Writes the buffer at `at`.
    ///
    /// # Errors
    /// ENOSPC beyond the end, EROFS, EIO or what the members answered when no source has it.
    pub fn write(&self, at: u64, data: &[u8]) -> Result<(), Errno> {
        if data.is_empty() {
            return Ok(());
        }
        let range = self.writable(at, data.len() as u64)?;
        self.change(range, |store| store.write_at(data, at))
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn zero(&self, at: u64, len: u64, how: Zero) -> Result<(), Errno> {
        let range = self.writable(at, len)?;
        self.change(range, |store| store.zero_at(at, len, how))
    }

    fn writable(&self, at: u64, len: u64) -> Result<ByteRange, Errno> {
        self.gate.pass()?;
        self.geometry()
            .clip(Bytes(at), Bytes(len))
            .map_err(|_| Errno(libc::ENOSPC))
    }

    /// What all copies of the unit together may and should do.
    pub(super) fn copy_rates(&self) -> Rates {
        Rates {
            least: self.params.copy_rate_min(),
            most: self.params.copy_rate_max(),
        }
    }

    /// Steps of each copy that may be under way at once.
    pub(super) fn copy_depth(&self) -> usize {
        self.params.copy_depth()
    }

    /// The gate that every change passes.
    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    fn change(
        &self,
        range: ByteRange,
        change: impl Fn(&dyn Storage) -> io::Result<()>,
    ) -> Result<(), Errno> {
        self.count_request();
        let fenced = self.enter_to_change(range)?;
        let results = self.permit(&fenced, range)?.apply(change);
        self.settle(&fenced.live, Some(range), &results)
    }

    /// As [`Self::enter`], once changes may pass. Who waits at the gate keeps no epoch alive.
    fn enter_to_change(&self, range: ByteRange) -> Result<Fenced<'_>, Errno> {
        loop {
            let fenced = self.enter(range);
            // The gate is closed before a View is published that must not be written yet.
            if self.gate.is_open() {
                return Ok(fenced);
            }
            drop(fenced);
            self.gate.pass()?;
        }
    }

    /// Acknowledges, or asks the control thread who has to leave first (I3, I13).
    pub(super) fn settle(
        &self,
        live: &Live,
        range: Option<ByteRange>,
        results: &Results,
    ) -> Result<(), Errno> {
        let (good, failed) = (results.good, results.failed);
        if live.view.settle(good, failed) == Outcome::Done {
            return Ok(());
        }
        let (answer, verdict) = bounded(1);
        let failure = Failure {
            range,
            good,
            failed,
            media: results.media,
        };
        let asked = self.messages.send(Message::Failed(failure, answer));
        match asked.ok().and_then(|()| verdict.recv().ok()) {
            Some(Verdict::Acknowledge) => Ok(()),
            Some(Verdict::Fail) | None => Err(results.errno()),
        }
    }

    /// Allocates space inside the unit; what the range reads as does not change.
    ///
    /// # Errors
    /// EFBIG beyond the end; ENOSPC.
    pub fn allocate(&self, at: u64, len: u64) -> Result<(), Errno> {
        let range = self.writable(at, len).map_err(|e| match e {
            Errno(libc::ENOSPC) => Errno(libc::EFBIG),
            other => other,
        })?;
        let fenced = self.enter(range);
        for store in fenced.live.stores.iter().flatten() {
            let outcome = store.allocate(at, len);
            outcome.map_err(|e| Errno(e.raw_os_error().unwrap_or(libc::EIO)))?;
        }
        Ok(())
    }

    /// Copies `len` bytes inside the unit; returns the number of bytes copied.
    ///
    /// # Errors
    /// As [`Self::read`] and [`Self::write`].
    pub fn copy(&self, from: u64, to: u64, len: u64) -> Result<u64, Errno> {
        let len = len.min(self.size().saturating_sub(from));
        let mut buf = vec![0; COPY_BYTES.min(usize::try_from(len).unwrap_or(COPY_BYTES))];
        let mut done = 0;
        while done < len {
            let piece = buf
                .len()
                .min(usize::try_from(len - done).unwrap_or(buf.len()));
            let moved = self
                .read(from + done, &mut buf[..piece])
                .and_then(|got| self.write(to + done, &buf[..got]).map(|()| got));
            match moved {
                Ok(got) => done += got as u64,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Makes every write that has returned durable on every source (I10).
    ///
    /// # Errors
    /// EIO when it failed on every source, or while the membership cannot be made durable: who is no
    /// member any more may then be elected after a crash, and was not flushed (I3).
    pub fn flush(&self) -> Result<(), Errno> {
        self.count_request();
        let live = self.live.load();
        // Behind the View: the gate is closed before one is published that is not durable.
        self.gate.pass_flush()?;
        let members = live.view.writers();
        let results = self.lanes.flush(live.stores.clone(), members);
        self.settle(&live, None, &results)
    }
}
