//! A member that looks at what the server does with it: a real image on tmpfs, with a step of the schedule before
//! every block, and with errors on demand.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shadowset::io::{Payload, Queue, Seek, Storage, Then, Zero, Zeroed};
use shadowset::server::inspect;
use shadowset::sync::{thread, world};

use super::bed::BLOCKS;
use super::history::{Id, contents, id_of};

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 512;

/// What is known of the members of a unit, whichever storage they have now.
#[derive(Debug, Default)]
pub(crate) struct Members {
    all: [Watched; 3],
    /// Whether they answer later, on threads of their own.
    pub(crate) later: bool,
}

/// What is known of one member.
#[derive(Debug, Default)]
struct Watched {
    state: Mutex<State>,
    /// Whether every write fails from now on.
    fails: AtomicBool,
    /// Whether the next flush fails.
    fails_flush: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Writes under way.
    writes: Vec<Range<u64>>,
    /// The image as the last flush has made it durable.
    durable: Vec<u8>,
    /// When the flush began that has made it so.
    durable_at: u64,
    clock: u64,
    /// A flush has failed: what was not flushed then never is, and the system tells nobody else.
    lost: bool,
    /// How often its image was opened.
    opened: u64,
    /// Writes of applications that have failed here.
    missed: Vec<Id>,
}

impl Members {
    /// Puts these between the server and its images.
    pub(crate) fn watch(self: &Arc<Self>) {
        let members = Arc::clone(self);
        inspect::put_between(Box::new(move |path: &Path, inner| {
            let place = place_of(path);
            let mut state = members.state(place);
            (state.lost, state.opened) = (false, state.opened + 1);
            drop(state);
            Arc::new(Member {
                place,
                inner,
                members: Arc::clone(&members),
            })
        }));
    }

    /// From now on every write of a member fails.
    pub(crate) fn fail_writes(&self, place: usize, fails: bool) {
        self.all[place].fails.store(fails, SeqCst);
    }

    /// The next flush of a member fails.
    pub(crate) fn fail_flush(&self, place: usize) {
        self.all[place].fails_flush.store(true, SeqCst);
    }

    /// How often the image of a member was opened.
    pub(crate) fn opened(&self, place: usize) -> u64 {
        self.state(place).opened
    }

    /// Whether a write has missed a member.
    pub(crate) fn has_missed(&self, place: usize, id: Id) -> bool {
        self.state(place).missed.contains(&id)
    }

    /// The image of a member as it is durable.
    pub(crate) fn durable(&self, place: usize) -> Vec<u8> {
        let state = self.state(place);
        match state.durable_at {
            0 => contents(0, BLOCKS),
            _ => state.durable.clone(),
        }
    }

    fn state(&self, place: usize) -> MutexGuard<'_, State> {
        let state = self.all[place].state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

/// `m1.img` is in place 0.
fn place_of(path: &Path) -> usize {
    let name = path.file_name().and_then(|name| name.to_str());
    let digit = name.and_then(|name| name.strip_prefix('m')?.chars().next()?.to_digit(10));
    digit.expect("an image of a member") as usize - 1
}

#[derive(Clone, Debug)]
struct Member {
    place: usize,
    inner: Arc<dyn Storage>,
    members: Arc<Members>,
}

/// A write under way.
struct Writing<'a> {
    member: &'a Member,
    range: Range<u64>,
}

impl<'a> Writing<'a> {
    /// Two writes of the same bytes at once break I4; one without its bits breaks I1.
    fn begin(member: &'a Member, range: Range<u64>) -> Self {
        let (place, len) = (member.place, range.end - range.start);
        assert!(
            inspect::may_be_written(place, range.start, len),
            "I1: member {place} is written at {range:?} before its bits are set"
        );
        let mut state = member.members.state(place);
        let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        let other = state.writes.iter().find(|other| overlaps(other)).cloned();
        state.writes.push(range.clone());
        drop(state);
        assert!(
            other.is_none(),
            "I4: member {place} is written at {range:?} and {other:?} at once"
        );
        Self { member, range }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut state = self.member.members.state(self.member.place);
        let place = state.writes.iter().position(|other| *other == self.range);
        place.map(|place| state.writes.swap_remove(place));
    }
}

/// The blocks of a range, cut at its ends.
fn blocks(at: u64, len: u64) -> impl Iterator<Item = Range<u64>> {
    let end = at + len;
    let next = move |from: &u64| (from / BLOCK + 1) * BLOCK;
    std::iter::successors(Some(at), move |from| Some(next(from)))
        .take_while(move |from| *from < end)
        .map(move |from| from..next(&from).min(end))
}

fn broken() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Member {
    fn watched(&self) -> &Watched {
        &self.members.all[self.place]
    }
}

impl Storage for Member {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn measure(&self) -> io::Result<u64> {
        self.inner.measure()
    }

    fn require(&self, len: u64) {
        self.inner.require(len);
    }

    fn align(&self) -> u64 {
        self.inner.align()
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        for block in blocks(at, buf.len() as u64) {
            world::step();
            let part = (block.start - at) as usize..(block.end - at) as usize;
            self.inner.read_at(&mut buf[part], block.start)?;
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<()> {
        let _writing = Writing::begin(self, at..at + buf.len() as u64);
        for block in blocks(at, buf.len() as u64) {
            world::step();
            if self.watched().fails.load(SeqCst) {
                let missed = id_of(&buf[..8]);
                self.members.state(self.place).missed.extend(missed);
                return Err(broken());
            }
            let part = (block.start - at) as usize..(block.end - at) as usize;
            self.inner.write_at(&buf[part], block.start)?;
        }
        world::step();
        Ok(())
    }

    fn zero_at(&self, at: u64, len: u64, how: Zero) -> io::Result<Zeroed> {
        let _writing = Writing::begin(self, at..at + len);
        world::step();
        if self.watched().fails.load(SeqCst) {
            return Err(broken());
        }
        let zeroed = self.inner.zero_at(at, len, how)?;
        world::step();
        Ok(zeroed)
    }

    fn allocate(&self, at: u64, len: u64) -> io::Result<u64> {
        self.inner.allocate(at, len)
    }

    /// Makes durable what was there when it began.
    fn flush(&self) -> io::Result<()> {
        let place = self.place;
        world::step();
        let mut image = vec![0; self.inner.len() as usize];
        self.inner.read_at(&mut image, 0)?;
        let begun = {
            let mut state = self.members.state(place);
            state.clock += 1;
            state.clock
        };
        world::step();
        let mut state = self.members.state(place);
        if self.watched().fails_flush.swap(false, SeqCst) {
            state.lost = true;
            return Err(broken());
        }
        if begun > state.durable_at && !state.lost {
            (state.durable, state.durable_at) = (image, begun);
        }
        Ok(())
    }

    fn seek(&self, at: u64, what: Seek) -> io::Result<Option<u64>> {
        world::step();
        self.inner.seek(at, what)
    }

    fn finds_holes(&self) -> bool {
        self.inner.finds_holes()
    }

    fn queue(&self) -> Option<&dyn Queue> {
        self.members.later.then_some(self)
    }
}

impl Queue for Member {
    fn begin(&self, at: u64, len: usize, mut payload: Payload, then: Then) {
        let member = self.clone();
        thread::spawn(move || {
            let outcome = match &mut payload {
                Payload::Room(slot) => member.read_at(&mut slot[..len], at),
                Payload::Data(slot) => member.write_at(&slot[..len], at),
            };
            drop(member);
            world::step();
            then(outcome, payload);
        });
    }
}
