//! The data path: reads, writes, discards and flushes of the unit, on the caller's thread.
//!
//! Order of a write: fence, View, bits, members, verdict, fence freed. The fence comes before the View,
//! so that a request that waits keeps no old epoch alive. Nothing here waits for the control thread,
//! except for the verdict on a request that failed on some member (I3, I8). What reads and changes do is in
//! modules of their own.

use crate::sync::Instant;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::io;
use std::sync::{Arc, Weak};

use crate::sync::channel::{Sender, bounded};
use crate::sync::swap::{ArcSwap, ArcSwapOption, Guard};

use super::Message;
use super::fence::{Fence, FenceGuard};
use super::gate::Gate;
use super::home::Home;
use super::lane::Lanes;
use super::meter::{Asked, Meters};
use super::params::Params;
use super::queued::Flying;
use super::repair::Repairs;
use super::rescue::{Held, Unstarted};
use super::results::Results;
use super::streams::Streams;
use super::throttle::Rates;
use super::verification::Standing;
use super::watch::Watch;
use crate::io::Storage;
use crate::io::journal::{Journal, MessageCounts};
use crate::io::slots::Pool;
use crate::set::member::MEMBERS_MAX;
use crate::set::{
    BlockRange, ByteRange, Bytes, Event, Failure, Geometry, Homeless, Marked, MemberId, MemberSet,
    Outcome, Regions, Verdict, View,
};

/// The storage of each member, by place.
pub(super) type Stores = [Option<Arc<dyn Storage>>; MEMBERS_MAX];

/// Failure of a request: an errno for the application.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

pub(super) const EIO: Errno = Errno(libc::EIO);

/// One epoch with the storage of its members. When the last request drops it, the epoch has retired.
#[derive(Debug)]
pub(super) struct Live {
    view: View,
    stores: Stores,
    align: u64,
    /// Members that answer later.
    queued: MemberSet,
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
        #[cfg(shuttle)]
        super::inspect::epoch_begins(&view);
        let queues = |id: &MemberId| {
            let store = stores[id.index()].as_ref();
            store.is_some_and(|store| store.queue().is_some())
        };
        let queued = view.seats().iter().map(|seat| seat.id);
        let queued = queued.filter(queues).collect();
        Self {
            view,
            stores,
            align,
            queued,
            messages,
        }
    }

    pub(super) fn view(&self) -> &View {
        &self.view
    }

    pub(super) fn store(&self, id: MemberId) -> Option<&Arc<dyn Storage>> {
        self.stores[id.index()].as_ref()
    }

    pub(super) fn stores(&self) -> Stores {
        self.stores.clone()
    }

    /// Members that take this range without a thread that waits: its borders are blocks of them all.
    pub(super) fn queued(&self, range: ByteRange) -> MemberSet {
        match self.queued.is_empty() || (range.start() | range.end()) & (self.align - 1) != 0 {
            true => MemberSet::EMPTY,
            false => self.queued,
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Who hears that the epoch is over may lock the images: let go of them first.
        self.stores = Stores::default();
        #[cfg(shuttle)]
        super::inspect::epoch_ends(self.view.epoch());
        if makes!(EpochNotAwaited) {
            return;
        }
        // A closed channel means that the control thread has ended and nobody waits.
        let _ = self
            .messages
            .send(Message::Event(Event::Retired(self.view.epoch())));
    }
}

/// A fenced range in a pinned epoch. Whoever has it may let go of it, on any thread.
#[derive(Debug)]
pub(super) struct Fenced {
    _fence: FenceGuard,
    live: Guard<Arc<Live>>,
}

impl Fenced {
    pub(super) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Sets the bits of a copy step.
    pub(super) fn permit_copy(self, runs: impl IntoIterator<Item = Regions>) -> WritePermit {
        let marked = self.live.view.mark_copy(runs);
        WritePermit {
            fenced: self,
            _marked: marked,
        }
    }
}

/// Permission to write members: the fence is held, the bits are set, the epoch is pinned (I1, I4).
#[derive(Debug)]
#[must_use = "a permit is there to be used"]
pub(super) struct WritePermit {
    fenced: Fenced,
    _marked: Marked,
}

impl WritePermit {
    pub(super) fn live(&self) -> &Arc<Live> {
        self.fenced.live()
    }

    /// The storage of a member that takes part, to be written.
    pub(super) fn store(&self, id: MemberId) -> Option<&Arc<dyn Storage>> {
        self.live().store(id)
    }

    /// What it is for is done; the range is fenced still.
    pub(super) fn into_fenced(self) -> Fenced {
        self.fenced
    }
}

/// The data path of a running unit. Every method may be called by any number of threads.
#[derive(Debug)]
pub struct Pipeline {
    /// Regions; the size is that of the unit at its start.
    geometry: Geometry,
    /// Size of the unit. Stored when a View of that size is there, so that who has it finds such a View.
    size: AtomicU64,
    gate: Gate,
    fence: Arc<Fence>,
    live: ArcSwap<Live>,
    lanes: Lanes,
    /// Calls of members that are under way.
    pub(super) watch: Watch<Held>,
    /// What was asked of each member, and how long it took.
    pub(super) meters: Arc<Meters>,
    /// What has found no thread yet that goes on with it.
    pub(super) unstarted: Unstarted,
    /// What is to be rewritten since a member could not read it.
    pub(super) repairs: Repairs,
    /// Memory of requests that no thread waits for, and their number.
    pub(super) slots: Arc<Pool>,
    pub(super) flying: Arc<Flying>,
    /// Itself, for who goes on on another thread.
    pub(super) this: Weak<Self>,
    /// The names of the members by place, for the log.
    names: ArcSwap<Vec<String>>,
    /// What is known of members beside the View.
    pub(super) standing: Standing,
    /// Members that do not answer now; reads avoid them.
    pub(super) silent: AtomicU8,
    /// Nobody waits any more for members that do not answer.
    pub(super) aborted: AtomicBool,
    /// How often a flush has failed on every source.
    losses: AtomicU64,
    pub(super) reading: [AtomicU64; MEMBERS_MAX],
    pub(super) streams: Streams,
    /// Reads so far that continued no stream, where members take turns.
    pub(super) turns: AtomicU64,
    pub(super) params: Arc<Params>,
    /// Requests of applications that have come in, ever.
    requests: AtomicU64,
    /// Where bits become durable; none when bitmaps are kept in memory only.
    home: ArcSwapOption<Journal>,
    /// What is counted of the announcements to it, whichever it is.
    announced: Arc<MessageCounts>,
    pub(super) messages: Sender<Message>,
}

impl Pipeline {
    pub(super) fn new(
        live: Live,
        read_only: bool,
        home: Option<Journal>,
        params: Arc<Params>,
    ) -> Arc<Self> {
        let meters = Arc::<Meters>::default();
        let pipeline = Arc::new_cyclic(|this| Self {
            geometry: live.view.geometry(),
            size: AtomicU64::new(live.view.geometry().size().0),
            gate: Gate::new(read_only),
            fence: Arc::default(),
            lanes: Lanes::new(Arc::clone(&meters)),
            watch: Watch::new(),
            meters,
            unstarted: Unstarted::default(),
            repairs: Repairs::default(),
            slots: Arc::default(),
            flying: Arc::default(),
            this: Weak::clone(this),
            names: ArcSwap::default(),
            standing: Standing::default(),
            silent: AtomicU8::new(0),
            aborted: AtomicBool::new(false),
            losses: AtomicU64::new(0),
            reading: Default::default(),
            streams: Streams::default(),
            turns: AtomicU64::new(0),
            params,
            requests: AtomicU64::new(0),
            home: ArcSwapOption::empty(),
            announced: Arc::default(),
            messages: live.messages.clone(),
            live: ArcSwap::from_pointee(live),
        });
        pipeline.set_home(home.map(Arc::new));
        pipeline
    }

    /// Makes this the epoch of all requests to come.
    pub(super) fn publish(&self, live: Live) {
        let size = live.view.geometry().size();
        let over = makes!(EpochNotAwaited).then(|| self.live().view.epoch());
        self.live.store(Arc::new(live));
        if let Some(epoch) = over {
            let _ = self.messages.send(Message::Event(Event::Retired(epoch)));
        }
        self.size.store(size.0, Ordering::Release);
    }

    /// Lets go of the members: the unit has been stopped, and who still knows it finds none of them open.
    pub(super) fn let_go(&self) {
        let (last, none) = (self.live.load_full(), Stores::default());
        let closed = Live::new(last.view.clone(), &none, self.messages.clone());
        self.live.store(Arc::new(closed));
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
    pub(super) fn permit(&self, fenced: Fenced, range: ByteRange) -> Result<WritePermit, Errno> {
        if makes!(MarkedLate) {
            return Ok(fenced.permit_copy([]));
        }
        let marked = loop {
            let home = self.home.load();
            let Some(journal) = &*home else {
                self.gate.pass_unkept()?;
                let Ok(marked) = fenced.live.view.mark(range, &Homeless);
                break marked;
            };
            match fenced.live.view.mark(range, &**journal) {
                Ok(marked) => break marked,
                Err(error) => self.lose_home(&error)?,
            }
        };
        Ok(WritePermit {
            fenced,
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

    /// Gives the members their names, by place.
    pub(super) fn set_names<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) {
        let known = self.names.load();
        if !known.iter().map(String::as_str).eq(names.clone()) {
            self.names
                .store(Arc::new(names.map(str::to_owned).collect()));
        }
    }

    /// The name of a member, for the log.
    pub(super) fn name(&self, id: MemberId) -> String {
        let names = self.names.load();
        names.get(id.index()).cloned().unwrap_or_default()
    }

    /// The lanes on which members are flushed.
    pub(super) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Pins the epoch for longer than a call.
    pub(super) fn live_now(&self) -> Arc<Live> {
        self.live.load_full()
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

    /// Counts a request of an application that began at this time and has ended, well or not.
    pub fn requested(&self, asked: Asked, begun: Instant, good: bool) {
        self.meters.requested(asked, begun, good);
    }

    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Size of the unit in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Waits for the fence of a range, then pins the epoch. The fence covers what the members
    /// have to read and write again at unaligned borders.
    pub(super) fn enter(&self, range: ByteRange) -> Fenced {
        loop {
            if let Some(fenced) = self.enter_by(range, |range| Some(self.fence.acquire(range))) {
                return fenced;
            }
        }
    }

    /// As [`Self::enter`], but not while no source answers and nobody is to wait for one.
    pub(super) fn enter_unless_dead(&self, range: ByteRange) -> Option<Fenced> {
        if self.is_dead() {
            return None;
        }
        self.enter_by(range, |range| {
            self.fence.acquire_unless(range, || self.is_dead())
        })
    }

    /// As [`Self::enter`], by one way to wait for a fence, which may give up.
    fn enter_by(
        &self,
        range: ByteRange,
        acquire: impl Fn(BlockRange) -> Option<FenceGuard>,
    ) -> Option<Fenced> {
        let (mut align, mut geometry) = {
            let live = self.live.load();
            (live.align, live.view.geometry())
        };
        loop {
            let fence = acquire(geometry.round_out(range, align).blocks())?;
            let live = self.live.load();
            if live.align <= align && live.view.geometry() == geometry {
                return Some(Fenced {
                    _fence: fence,
                    live,
                });
            }
            (align, geometry) = (live.align, live.view.geometry());
        }
    }

    pub(super) fn writable(&self, at: u64, len: u64) -> Result<ByteRange, Errno> {
        self.gate.pass()?;
        self.geometry()
            .clip(Bytes(at), Bytes(len))
            .map_err(|_| Errno(libc::ENOSPC))
    }

    /// Whether no source answers and nobody is to wait for one.
    pub(super) fn is_dead(&self) -> bool {
        self.aborted.load(Ordering::Relaxed) && {
            let sources = self.live.load().view.sources();
            sources.without(self.silent_members()).is_empty()
        }
    }

    /// Has changes that wait for a fence look whether there is anything to wait for.
    pub(super) fn rouse_fence(&self) {
        self.fence.rouse();
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

    /// As [`Self::enter`], once changes may pass. Who waits at the gate keeps no epoch alive.
    pub(super) fn enter_to_change(&self, range: ByteRange) -> Result<Fenced, Errno> {
        loop {
            let fenced = self.enter_unless_dead(range).ok_or(EIO)?;
            // The gate is closed before a View is published that must not be written yet.
            if self.gate.is_open() || makes!(GateNotAskedAgain) {
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
        // What a repair could not flush is more than what it has written, and lost to those who have written it (I10).
        let flushed = results.tickets().any(|(_, ticket)| ticket > 0);
        let failure = Failure {
            range: range.filter(|_| !flushed),
            good,
            failed,
            media: results.media,
            epoch: live.view.epoch(),
            causes: results.causes(),
        };
        let asked = self.messages.send(Message::Failed(failure, answer));
        if makes!(VerdictNotAwaited) {
            return Ok(());
        }
        let verdict = asked.ok().and_then(|()| verdict.recv().ok());
        self.lanes.settled(results);
        match verdict {
            Some(Verdict::Acknowledge) => Ok(()),
            Some(Verdict::Fail) | None => Err(results.errno()),
        }
    }

    /// Whether changes wait now because the operator has stalled them.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.gate.is_stalled()
    }

    /// Flushes members, each on its lane, and waits for all of them.
    pub(super) fn flush_of(&self, live: &Live, members: MemberSet) -> Results {
        let asked = self.asked(members);
        self.lanes.flush(live.stores.clone(), asked, &self.watch)
    }

    /// A flush has failed on every source. Before the lanes flush again, so that no flush slips through (I10).
    pub(super) fn flush_lost(&self) {
        self.losses.fetch_add(1, Ordering::AcqRel);
    }

    /// How often a flush has failed on every source, whoever asked for it. Writes are lost then, and a flush that succeeds
    /// later does not say so: who flushes has to look here behind it (I10).
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }
}
