//! Threads for data requests that would otherwise take the last worker.
//!
//! A member that is slow or hangs holds whoever waits for it. One worker has to stay free for the
//! control tree, which is needed just then; what it reads of the data path is handed over here.
//! Nothing bounds the queue: the kernel has at most `max_background` asynchronous requests in
//! flight, and of the others one for each caller that waits.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

/// Most threads; more requests than this wait for one of them.
pub(super) const THREADS_MAX: usize = 64;
/// How long a thread waits for work before it ends.
const IDLE: Duration = Duration::from_secs(5);

/// Called when a thread ends that should not.
pub(super) type OnEnd = Arc<dyn Fn() + Send + Sync>;

/// A request with all that its answer needs.
pub(super) type Job = Box<dyn FnOnce(Busy) + Send>;

/// A request that is not answered yet. Its thread may be held by a member when another one answers; then it
/// counts no more.
pub(super) struct Busy {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.busy -= 1;
        // Answered while its thread is in it still.
        let by = state.running.get(&self.number).copied();
        if by.is_some_and(|by| by != thread::current().id()) {
            state.lost += 1;
            state.running.remove(&self.number);
            if let Err(error) = Shared::start(&self.shared, &mut state) {
                tracing::warn!(%error, "no thread in place of one that a member holds");
            }
        }
        if state.busy == 0 {
            self.shared.quiet.notify_all();
        }
    }
}

/// How often the last worker lets the others go on before it hands a request over.
const YIELDS: u32 = 32;
/// Bits of a gate's count that hold who is inside; those above count who has left.
const INSIDE_BITS: u32 = 16;
const INSIDE: u64 = (1 << INSIDE_BITS) - 1;

/// How many data requests the workers may carry out themselves at once.
#[derive(Debug)]
pub(super) struct Gate {
    /// One number, so that entering and leaving cost one atomic addition each.
    count: AtomicU64,
    /// The count when it was last waited for in vain.
    stuck: AtomicU64,
    most: u64,
}

impl Gate {
    /// Leaves one of `workers` outside.
    pub(super) fn new(workers: usize) -> Self {
        assert!(workers > 1, "one worker stays free, another one works");
        let most = workers as u64 - 1;
        assert!(most < INSIDE, "all workers can be counted");
        Self {
            count: AtomicU64::new(0),
            stuck: AtomicU64::new(u64::MAX),
            most,
        }
    }

    /// Lets the calling worker in until the answer is dropped; `None` when it is the last one.
    pub(super) fn enter(&self) -> Option<Inside<'_>> {
        self.try_enter().or_else(|| self.enter_soon())
    }

    fn try_enter(&self) -> Option<Inside<'_>> {
        // Only the number counts; no data is passed on by it.
        let before = self.count.fetch_add(1, Relaxed);
        if before & INSIDE < self.most {
            return Some(Inside(self));
        }
        self.count.fetch_sub(1, Relaxed);
        None
    }

    /// Members that answer at once keep the others busy for moments only: to give up the processor
    /// costs less than to hand the request over. Who found nobody leaving is followed by nobody
    /// who waits until somebody leaves.
    #[cold]
    fn enter_soon(&self) -> Option<Inside<'_>> {
        let left = |count: u64| count >> INSIDE_BITS;
        let before = left(self.count.load(Relaxed));
        if self.stuck.load(Relaxed) == before {
            return None;
        }
        for _ in 0..YIELDS {
            thread::yield_now();
            let room = self.count.load(Relaxed) & INSIDE < self.most;
            if let Some(inside) = room.then(|| self.try_enter()).flatten() {
                return Some(inside);
            }
        }
        if left(self.count.load(Relaxed)) == before {
            self.stuck.store(before, Relaxed);
        }
        None
    }
}

/// A data request that a worker carries out itself.
#[derive(Debug)]
pub(super) struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        // One less inside, one more that has left.
        self.0.count.fetch_add((1 << INSIDE_BITS) - 1, Relaxed);
    }
}

/// The threads and what waits for them.
pub(super) struct Overflow {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    /// Nothing is begun that is not answered.
    quiet: Condvar,
    /// Called when a thread has failed.
    failed: OnEnd,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// Threads that wait for work.
    idle: usize,
    /// Requests that have been begun and are not answered.
    busy: usize,
    /// The number of the last request.
    last: u64,
    /// Requests that are being carried out, by number, each with its thread; not those of threads that are lost.
    running: HashMap<u64, ThreadId>,
    threads: usize,
    /// Those of them that members hold, while others have answered in their place.
    lost: usize,
    ends: bool,
}

impl std::fmt::Debug for Overflow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overflow").finish_non_exhaustive()
    }
}

impl Overflow {
    /// No thread is started before there is work; `failed` is called when one panics.
    pub(super) fn new(failed: OnEnd) -> Self {
        let shared = Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            quiet: Condvar::new(),
            failed,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Has a request carried out by another thread; by this one only when no thread can be had.
    pub(super) fn run(&self, job: Job) {
        let mut state = self.shared.lock();
        state.queue.push_back(job);
        if let Err(error) = Shared::start(&self.shared, &mut state) {
            // The threads that there are will come to it.
            tracing::warn!(%error, "a slow request waits for a thread");
            if state.threads == state.lost {
                return Shared::here(&self.shared, state);
            }
        }
        drop(state);
        self.shared.work.notify_one();
    }
}

impl Drop for Overflow {
    /// Waits until all requests are answered: no writer is left behind, but those that members hold.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        // The queue is empty when the last of those that were begun has seen to it.
        while state.busy > 0 || !(state.queue.is_empty() || state.threads == 0) {
            let waited = self.shared.quiet.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.ends = true;
        drop(state);
        self.shared.work.notify_all();
    }
}

impl Shared {
    /// Starts a thread if more requests wait than threads, and there may be one more.
    fn start(this: &Arc<Self>, state: &mut State) -> std::io::Result<()> {
        if state.idle >= state.queue.len() || state.threads - state.lost >= THREADS_MAX {
            return Ok(());
        }
        let shared = Arc::clone(this);
        thread::Builder::new()
            .name("overflow".into())
            .spawn(move || {
                let _failure = Failure(&shared);
                Self::work_on(&shared);
            })?;
        state.threads += 1;
        Ok(())
    }

    /// Counts a request as begun by this thread.
    fn begin(this: &Arc<Self>, state: &mut State) -> Busy {
        state.busy += 1;
        state.last += 1;
        let number = state.last;
        state.running.insert(number, thread::current().id());
        Busy {
            shared: Arc::clone(this),
            number,
        }
    }

    /// Carries the last request out on the calling thread, which is none of these: a member that holds it holds no thread
    /// that could be lost.
    fn here(this: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if let Some(job) = state.queue.pop_back() {
            let busy = Self::begin(this, &mut state);
            state.running.remove(&busy.number);
            drop(state);
            job(busy);
        }
    }

    /// Carries requests out until there has been none for a while.
    fn work_on(this: &Arc<Self>) {
        let mut state = this.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                let busy = Self::begin(this, &mut state);
                let number = busy.number;
                drop(state);
                job(busy);
                state = this.lock();
                // Another thread has answered, and this one was taken for lost.
                if state.running.remove(&number).is_none() {
                    state.lost -= 1;
                }
                continue;
            }
            if state.ends {
                return;
            }
            state.idle += 1;
            let waited = this.work.wait_timeout(state, IDLE);
            let (now, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = now;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                // Counted out under the lock that a new request is queued under.
                state.threads -= 1;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells when a thread ends by a panic.
struct Failure<'a>(&'a Shared);

impl Drop for Failure<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            (self.0.failed)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{bounded, unbounded};

    const SOON: Duration = Duration::from_secs(20);

    fn overflow() -> Overflow {
        Overflow::new(Arc::new(|| {}))
    }

    #[test]
    fn one_worker_stays_outside() {
        let gate = Gate::new(3);
        let (first, second) = (gate.enter(), gate.enter());
        assert!(first.is_some() && second.is_some() && gate.enter().is_none());
        drop(first);
        assert!(gate.enter().is_some());
        assert!(gate.enter().is_some(), "what was let in has left");
        drop(second);
        let all = (gate.enter(), gate.enter());
        assert!(all.0.is_some() && all.1.is_some() && gate.enter().is_none());
        assert_eq!(
            gate.stuck.load(Relaxed),
            4,
            "nobody has left since the fourth"
        );
    }

    #[test]
    fn requests_run_beside_each_other_and_the_rest_waits() {
        let overflow = overflow();
        let (began_tx, began) = unbounded();
        let (go_tx, go) = bounded::<()>(0);
        for n in 0..THREADS_MAX + 9 {
            let (began, go) = (began_tx.clone(), go.clone());
            overflow.run(Box::new(move |_busy| {
                began.send(n).expect("heard");
                // Goes on when the other end is dropped.
                let _ = go.recv();
            }));
        }
        for _ in 0..THREADS_MAX {
            began.recv_timeout(SOON).expect("a thread for each");
        }
        assert!(began.is_empty());
        assert_eq!(overflow.shared.lock().threads, THREADS_MAX);
        drop(go_tx);
        for _ in 0..9 {
            began.recv_timeout(SOON).expect("served later");
        }
    }

    #[test]
    fn threads_are_used_again() {
        let overflow = overflow();
        let (done_tx, done) = unbounded();
        for _ in 0..50 {
            let tell = done_tx.clone();
            overflow.run(Box::new(move |_busy| {
                tell.send(thread::current().id()).expect("heard");
            }));
            done.recv_timeout(SOON).expect("done");
        }
        // A thread that has answered may not wait again yet when the next request comes.
        assert!(overflow.shared.lock().threads < 50);
    }

    #[test]
    fn the_end_waits_for_all_requests() {
        let overflow = overflow();
        let count = Arc::new(AtomicU64::new(0));
        for _ in 0..500 {
            let count = Arc::clone(&count);
            overflow.run(Box::new(move |_busy| {
                count.fetch_add(1, Relaxed);
            }));
        }
        drop(overflow);
        assert_eq!(count.load(Relaxed), 500);
    }

    #[test]
    fn a_thread_that_is_held_is_replaced_and_not_waited_for() {
        let overflow = overflow();
        let (held_tx, held) = unbounded();
        let (go_tx, go) = bounded::<()>(0);
        for _ in 0..THREADS_MAX {
            let (held, go) = (held_tx.clone(), go.clone());
            overflow.run(Box::new(move |busy| {
                held.send(busy).expect("heard");
                let _ = go.recv();
            }));
        }
        let busy: Vec<Busy> = (0..THREADS_MAX)
            .map(|_| held.recv_timeout(SOON).expect("begun"))
            .collect();
        let (done_tx, done) = bounded(1);
        overflow.run(Box::new(move |_busy| done_tx.send(()).expect("heard")));
        assert!(done.is_empty(), "there is no thread for it");
        // Others have answered in their place.
        drop(busy);
        done.recv_timeout(SOON).expect("a thread more");
        drop(overflow);
        drop(go_tx);
    }

    /// A request whose thread was through when another one answered it once left a thread counted as lost that was
    /// none; when it had ended no thread was ever started again.
    #[test]
    fn an_answer_that_comes_late_loses_no_thread() {
        let overflow = overflow();
        let (held_tx, held) = bounded(1);
        overflow.run(Box::new(move |busy| held_tx.send(busy).expect("heard")));
        let busy = held.recv_timeout(SOON).expect("begun");
        while overflow.shared.lock().idle == 0 {
            thread::yield_now();
        }
        drop(busy);
        let state = overflow.shared.lock();
        assert_eq!((state.threads, state.lost, state.busy), (1, 0, 0));
        assert!(state.running.is_empty());
    }

    /// A worker carried a request out itself, since no thread could be had, and another one answered it: a thread counted as
    /// lost that was none, and none was ever started again.
    #[test]
    fn a_request_that_its_worker_carries_out_loses_no_thread() {
        let overflow = overflow();
        let mut state = overflow.shared.lock();
        state.queue.push_back(Box::new(|busy| {
            let other = thread::spawn(move || drop(busy));
            other.join().expect("answered");
        }));
        Shared::here(&overflow.shared, state);
        let state = overflow.shared.lock();
        assert_eq!((state.threads, state.lost, state.busy), (0, 0, 0));
        assert!(state.running.is_empty());
    }

    #[test]
    fn a_failure_is_told() {
        let (tx, rx) = bounded(1);
        let failed: OnEnd = Arc::new(move || tx.send(()).expect("heard"));
        let overflow = Overflow::new(failed);
        overflow.run(Box::new(|_busy| panic!("on purpose")));
        rx.recv_timeout(SOON).expect("told");
    }
}
