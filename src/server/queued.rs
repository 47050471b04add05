//! Requests of members that answer later: no thread waits for them.
//!
//! Only what goes well ends here. What does not is begun anew by a thread that may wait, with the patience that any
//! other member gets, and what it fails with then is what counts. So the end of a request never holds up the thread
//! that tells of it.

use crate::sync::Instant;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard};
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::change::Change;
use super::meter::Asked;
use super::pipeline::{Live, Pipeline, WritePermit};
use super::reading::Read;
use super::rescue::{Failed, Held, Rescue};
use super::results::{given_up, not_open};
use super::watch::Ticket;
use crate::io::Payload;
use crate::io::aligned::AlignedBuf;
use crate::io::slots::Slot;
use crate::set::{MemberId, MemberSet};

/// Requests that no thread waits for, and who waits until there are none.
#[derive(Debug, Default)]
pub(super) struct Flying {
    count: AtomicU64,
    awaited: AtomicBool,
    lock: Mutex<()>,
    none: Condvar,
}

/// One of them; it is over when this is dropped.
#[derive(Debug)]
pub(super) struct Flight(Arc<Flying>);

impl Flying {
    pub(super) fn begin(self: &Arc<Self>) -> Flight {
        self.count.fetch_add(1, Ordering::SeqCst);
        Flight(Arc::clone(self))
    }

    /// Waits until all are answered, or for so long; says whether they are. Who begins another one by now finds the
    /// gate closed.
    pub(super) fn wait(&self, at_most: Duration) -> bool {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.awaited.store(true, Ordering::SeqCst);
        let some = |(): &mut ()| self.count.load(Ordering::SeqCst) > 0;
        let waited = self.none.wait_timeout_while(lock, at_most, some);
        waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let last = self.0.count.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.0.awaited.load(Ordering::SeqCst) {
            drop(self.0.lock.lock());
            self.0.none.notify_all();
        }
    }
}

/// A change that several members have at the same time.
#[derive(Debug)]
pub(super) struct Joint(Mutex<Parts>);

#[derive(Debug)]
struct Parts {
    /// Until the last member has answered.
    change: Option<Change>,
    /// Members that have not answered.
    left: MemberSet,
    /// Whether a member was given up that is a member still, and may write yet.
    given_up: bool,
    /// Then the range stays fenced until its call returns (I4).
    kept: Option<Arc<WritePermit>>,
}

impl Parts {
    /// Keeps the fence of a change that is over.
    fn keep(&mut self, change: Change) -> Failed {
        let (permit, failed) = Failed::of(change);
        self.kept = Some(permit);
        failed
    }
}

impl Joint {
    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a member has answered; the last one gets what is to be done then.
    fn answer(&self, id: MemberId, outcome: io::Result<()>) -> Option<Answered> {
        let mut parts = self.lock();
        // Another one has answered in its place.
        if !parts.left.contains(id) {
            return None;
        }
        parts.left.remove(id);
        let is_last = parts.left.is_empty();
        let change = parts.change.as_mut()?;
        change.results.add(id, outcome);
        let change = parts.change.take_if(|_| is_last)?;
        if !parts.given_up {
            return Some(Answered::All(change));
        }
        Some(Answered::Without(parts.keep(change)))
    }

    /// Notes that nobody waits for a member that may still write.
    pub(super) fn give_up(&self, id: MemberId) -> Option<Failed> {
        self.lock().given_up = true;
        match self.answer(id, Err(given_up()))? {
            Answered::Without(failed) => Some(failed),
            Answered::All(change) => Some(self.lock().keep(change)),
        }
    }
}

/// What is to be done when nobody's answer to a change is waited for any more.
enum Answered {
    All(Change),
    Without(Failed),
}

impl Pipeline {
    /// A copy of the bytes of a change for the members that answer later; none when there is no memory for it now.
    pub(super) fn keep(&self, data: &[u8]) -> Option<Arc<Slot>> {
        let mut slot = self.slots.take(data.len())?;
        slot[..data.len()].copy_from_slice(data);
        Some(Arc::new(slot))
    }

    /// Hands a change to the members that answer later, all at the same time. The others have had it.
    pub(super) fn begin_changing(self: &Arc<Self>, mut change: Change, slot: &Arc<Slot>) {
        let all = std::mem::replace(&mut change.queued, MemberSet::EMPTY);
        change.flight = Some(self.flying.begin());
        let (range, live) = (change.range, Arc::clone(change.permit.live()));
        let joint = Arc::new(Joint(Mutex::new(Parts {
            change: Some(change),
            left: all,
            given_up: false,
            kept: None,
        })));
        for id in all.iter() {
            let store = live.store(id).filter(|_| !self.is_lost(id));
            let Some((store, queue)) = store.and_then(|store| Some((store, store.queue()?))) else {
                self.answered(&joint, id, Err(given_up()));
                continue;
            };
            let held = Held::Part(Arc::clone(&joint));
            let ticket = self.watch.begin((id, self.watch.now()), held);
            let (begun, this) = (Instant::now(), Arc::clone(self));
            let store = (!makes!(CallForgotten)).then(|| Arc::clone(store));
            let then = move |outcome: io::Result<()>, payload| {
                // As long as somebody has it, it may still write.
                drop(store);
                this.meters.ended(id, Asked::Write(range.len()), begun);
                this.part_ended((ticket, id), outcome, payload);
            };
            let (len, payload) = (range.len() as usize, Payload::Data(Arc::clone(slot)));
            queue.begin(range.start(), len, payload, Box::new(then));
        }
    }

    fn part_ended(
        self: &Arc<Self>,
        (ticket, id): (Ticket, MemberId),
        outcome: io::Result<()>,
        payload: Payload,
    ) {
        let held = self.watch.end(ticket);
        let Some(Held::Part(joint)) = held else {
            return;
        };
        match (outcome, payload) {
            (Err(_), Payload::Data(slot)) => {
                self.rescue(vec![Rescue::Again(joint, id, slot)]);
            }
            (outcome, _) => {
                self.watch.answered(id);
                self.answered(&joint, id, outcome);
            }
        }
    }

    /// Has a member take its part of a change on this thread.
    pub(super) fn change_again(self: &Arc<Self>, joint: Arc<Joint>, id: MemberId, slot: &Slot) {
        let part = joint.lock().change.as_ref().map(|change| {
            let store = change.permit.store(id).cloned();
            (store, change.range)
        });
        let Some((store, range)) = part else { return };
        let write = || {
            let store = store.as_ref().ok_or_else(not_open)?;
            store.write_at(&slot[..range.len() as usize], range.start())?;
            Ok(range.len())
        };
        let (outcome, held) = self.call_patiently(id, Held::Part(joint), (range.len(), write));
        // Who hears that the epoch is over may lock the images.
        drop(store);
        if let Held::Part(joint) = held {
            self.answered(&joint, id, outcome.map(drop));
        }
    }

    /// Notes what a member has answered, and concludes the change behind the last one.
    pub(super) fn answered(self: &Arc<Self>, joint: &Joint, id: MemberId, outcome: io::Result<()>) {
        match joint.answer(id, outcome) {
            None => {}
            Some(Answered::All(change)) if change.results.failed.is_empty() => {
                self.conclude(change);
            }
            // The verdict has to be waited for.
            Some(Answered::All(change)) => self.rescue(vec![Rescue::Conclude(change)]),
            Some(Answered::Without(failed)) => self.rescue(vec![Rescue::Failed(failed)]),
        }
    }

    /// Begins a read of a member that answers later.
    ///
    /// # Errors
    /// The read, when it is better carried out by the thread that has it: nobody else reads this member, there is no
    /// memory, or the member answers nobody later.
    pub(super) fn begin_reading(&self, mut read: Read) -> Result<(), Read> {
        let queued = read.live().queued(read.range);
        if queued.is_empty() {
            return Err(read);
        }
        read.first = self.route(&read);
        let target = read.first.filter(|id| {
            let alone = self.reading[id.index()].load(Ordering::Relaxed) == 0;
            queued.contains(*id) && !alone && !self.is_lost(*id)
        });
        let (Some(id), Some(this)) = (target, self.this.upgrade()) else {
            return Err(read);
        };
        let len = read.range.len() as usize;
        let Some(slot) = self.slots.take(len) else {
            return Err(read);
        };
        self.streams.note(read.range.end(), id);
        self.reading[id.index()].fetch_add(1, Ordering::Relaxed);
        read.flight = Some(self.flying.begin());
        let (range, live): (_, Arc<Live>) = (read.range, Arc::clone(read.live()));
        let ticket = self.watch.begin((id, self.watch.now()), Held::Read(read));
        let (begun, store) = (Instant::now(), live.store(id).cloned());
        let then = move |outcome: io::Result<()>, payload| {
            drop(store);
            this.reading[id.index()].fetch_sub(1, Ordering::Relaxed);
            this.meters.ended(id, Asked::Read(range.len()), begun);
            this.read_ended((ticket, id), outcome, &payload);
        };
        match live.store(id).and_then(|store| store.queue()) {
            Some(queue) => queue.begin(range.start(), len, Payload::Room(slot), Box::new(then)),
            None => then(Err(not_open()), Payload::Room(slot)),
        }
        Ok(())
    }

    fn read_ended(
        self: &Arc<Self>,
        (ticket, id): (Ticket, MemberId),
        outcome: io::Result<()>,
        payload: &Payload,
    ) {
        let Some(Held::Read(read)) = self.watch.end(ticket) else {
            return;
        };
        match (outcome, payload) {
            (Ok(()), Payload::Room(slot)) => {
                self.watch.answered(id);
                let len = read.range.len() as usize;
                read.succeed(&slot[..len]);
            }
            _ => self.rescue(vec![Rescue::ReadAgain(read)]),
        }
    }

    /// Reads on this thread.
    pub(super) fn read_again(&self, read: Read) {
        let mut buf = AlignedBuf::zeroed(read.range.len() as usize);
        self.go_on_reading(read, &mut buf);
    }
}
