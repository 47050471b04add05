//! Who waits in a schedule, and until when. One schedule runs on one thread of the system, so nothing here is a
//! point at which another thread may go on, but for the waking itself.

use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use shuttle::future::batch_semaphore::{BatchSemaphore, Fairness};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::AtomicBool;

/// A schedule in which so much time passes has a wait that does not end.
const LIMIT: Duration = Duration::from_secs(3600);
/// One in so many locks lets a short wait end early.
const HASTE: u32 = 24;

/// When each wait with an end is over, in order.
type Ends = BTreeMap<(Duration, u64), Arc<Waiter>>;

#[derive(Default)]
struct World {
    time: Duration,
    /// Threads that could go on.
    running: usize,
    ends: Ends,
    last: u64,
    haste: Duration,
    /// Something has waited for ever.
    over: bool,
    /// Where each thread waits that does, if that is wanted.
    places: BTreeMap<u64, Backtrace>,
    traced: bool,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
    static STEP: AtomicBool = const { AtomicBool::new(false) };
}

/// A new schedule begins, on its first thread. Waits that end within `haste` may do so while others can go on.
pub fn begin(haste: Duration) {
    let world = World {
        running: 1,
        haste,
        traced: std::env::var_os("TRACE").is_some(),
        ..World::default()
    };
    let old = WORLD.with(|it| it.replace(world));
    drop(old);
}

/// The first thread has come to its end.
pub fn end() {
    thread_ends();
}

/// The time since the schedule began.
#[must_use]
pub fn time() -> Duration {
    WORLD.with(|it| it.borrow().time)
}

/// A point at which another thread may go on.
pub fn step() {
    STEP.with(|step| step.load(SeqCst));
}

/// Waits so long.
pub fn pause(time: Duration) {
    Waiter::new().wait(Some(time));
}

pub(super) fn thread_begins() {
    WORLD.with(|it| it.borrow_mut().running += 1);
}

pub(super) fn thread_ends() {
    WORLD.with(|it| {
        let mut world = it.borrow_mut();
        world.running = world.running.saturating_sub(1);
    });
    pass_time();
}

/// Lets the first wait end, now and then, if it is short.
pub(super) fn hasten() {
    let is_short = WORLD.with(|it| {
        let world = it.borrow();
        let first = world.ends.first_key_value();
        !world.haste.is_zero() && first.is_some_and(|((at, _), _)| *at <= world.time + world.haste)
    });
    if is_short && thread_rng().gen_ratio(1, HASTE) {
        end_first();
    }
}

/// Lets waits end, the first ones first, until somebody can go on.
fn pass_time() {
    while WORLD.with(|it| it.borrow().running == 0) && end_first() {}
}

/// Lets the first wait end that has an end.
fn end_first() -> bool {
    let first = WORLD.with(|it| {
        let mut world = it.borrow_mut();
        if world.over {
            return None;
        }
        let ((at, _), waiter) = world.ends.pop_first()?;
        world.time = world.time.max(at);
        Some(waiter)
    });
    let Some(waiter) = first else {
        return false;
    };
    // Once: what is dropped then may wait too.
    let late = WORLD.with(|it| {
        let mut world = it.borrow_mut();
        let late = world.time > LIMIT && !world.over;
        world.over |= late;
        let places = world.places.values().filter(|_| late);
        places.for_each(|place| eprintln!("waits:\n{place}"));
        late
    });
    assert!(!late, "an hour has passed: something waits for ever");
    waiter.wake_as(LATE);
    true
}

const WAITS: u8 = 0;
const WOKEN: u8 = 1;
const LATE: u8 = 2;

/// One wait of one thread.
#[derive(Debug)]
pub(super) struct Waiter {
    woken: AtomicU8,
    /// Set while its thread waits, to be counted as one that can go on.
    counted_out: AtomicU8,
    turn: BatchSemaphore,
}

impl Waiter {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            woken: AtomicU8::new(WAITS),
            counted_out: AtomicU8::new(0),
            turn: BatchSemaphore::new(0, Fairness::StrictlyFair),
        })
    }

    /// Ends the wait, which may not have begun; whether it had not ended yet.
    pub(super) fn wake(&self) -> bool {
        self.wake_as(WOKEN)
    }

    fn wake_as(&self, how: u8) -> bool {
        if self.woken.load(Relaxed) != WAITS {
            return false;
        }
        self.woken.store(how, Relaxed);
        if self.counted_out.swap(0, Relaxed) == 1 {
            thread_begins();
        }
        self.turn.release(1);
        true
    }

    /// Waits until it is woken, or for so long; whether it was woken.
    pub(super) fn wait(self: &Arc<Self>, at_most: Option<Duration>) -> bool {
        if self.woken.load(Relaxed) == WAITS {
            self.counted_out.store(1, Relaxed);
            let (number, end) = WORLD.with(|it| {
                let mut world = it.borrow_mut();
                world.running = world.running.saturating_sub(1);
                world.last += 1;
                let number = world.last;
                if world.traced {
                    world.places.insert(number, Backtrace::force_capture());
                }
                let end = at_most.map(|most| (world.time.saturating_add(most), number));
                if let Some(end) = end {
                    world.ends.insert(end, Arc::clone(self));
                }
                (number, end)
            });
            pass_time();
            let _ = self.turn.acquire_blocking(1);
            let ended = WORLD.with(|it| {
                let mut world = it.borrow_mut();
                let place = world.places.remove(&number);
                (place, end.and_then(|end| world.ends.remove(&end)))
            });
            drop(ended);
        }
        self.woken.load(Relaxed) != LATE
    }
}
