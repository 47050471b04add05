//! Changes that wait for the end of a stall, without a thread each.
//!
//! A stall holds every write for as long as its operator likes. Were each to hold a worker or one of
//! the threads for slow requests, reads would soon wait with them. Nothing here decides when a
//! stall ends: a change that comes too early waits at the gate of the data path.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::overflow::{Job, Overflow};

/// Whether changes have to wait now.
type IsStalled = Box<dyn Fn() -> bool + Send + Sync>;

/// Changes that wait, and the thread that lets them go on.
pub(super) struct Parked {
    room: Arc<Room>,
    overflow: Arc<Overflow>,
    keeper: Option<JoinHandle<()>>,
}

/// Where changes wait.
pub(super) struct Room {
    is_stalled: IsStalled,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    ends: bool,
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parked").finish_non_exhaustive()
    }
}

impl Parked {
    /// Nobody waits yet. What has waited goes on in threads of `overflow`.
    ///
    /// # Errors
    /// No thread could be started.
    pub(super) fn start(
        overflow: Arc<Overflow>,
        is_stalled: impl Fn() -> bool + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let room = Arc::new(Room {
            is_stalled: Box::new(is_stalled),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let (kept, threads) = (Arc::clone(&room), Arc::clone(&overflow));
        let keeper = thread::Builder::new()
            .name("stalled".into())
            .spawn(move || kept.keep(&threads))?;
        Ok(Self {
            room,
            overflow,
            keeper: Some(keeper),
        })
    }

    /// The place where changes wait, to be woken by [`Room::look`] when a stall may have ended.
    pub(super) fn room(&self) -> Arc<Room> {
        Arc::clone(&self.room)
    }

    /// Has a change carried out elsewhere, behind a stall when there is one.
    pub(super) fn run(&self, job: Job) {
        if let Some(job) = self.room.park(job) {
            self.room.hand_over(job, &self.overflow);
        }
    }
}

impl Drop for Parked {
    /// No request is left that could be answered: what still waits is dropped.
    fn drop(&mut self) {
        self.room.lock().ends = true;
        self.room.changed.notify_all();
        let ended = self.keeper.take().map(JoinHandle::join);
        if ended.is_some_and(|ended| ended.is_err()) {
            tracing::error!("the thread that lets stalled changes go on has failed");
        }
    }
}

impl Room {
    /// Has a job wait; gives it back when there is no stall.
    fn park(&self, job: Job) -> Option<Job> {
        let mut state = self.lock();
        // Under the lock: whoever ends a stall looks here afterwards, and finds the job.
        if state.ends || !(self.is_stalled)() {
            return Some(job);
        }
        state.jobs.push(job);
        None
    }

    /// Has a thread carry a job out, unless a stall has begun by the time that it comes to it.
    fn hand_over(self: &Arc<Self>, job: Job, overflow: &Overflow) {
        let room = Arc::clone(self);
        overflow.run(Box::new(move |busy| {
            if let Some(job) = room.park(job) {
                job(busy);
            }
        }));
    }

    /// Lets changes go on when the stall that they wait for has ended.
    pub(super) fn look(&self) {
        let state = self.lock();
        if !state.jobs.is_empty() {
            self.changed.notify_all();
        }
    }

    fn keep(self: &Arc<Self>, overflow: &Overflow) {
        let mut state = self.lock();
        while !state.ends {
            if !state.jobs.is_empty() && !(self.is_stalled)() {
                let jobs = std::mem::take(&mut state.jobs);
                drop(state);
                jobs.into_iter()
                    .for_each(|job| self.hand_over(job, overflow));
                state = self.lock();
                continue;
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        state.jobs.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::overflow::THREADS_MAX;
    use crossbeam_channel::{Sender, bounded, unbounded};
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(20);

    fn parked(stalled: &Arc<AtomicBool>) -> Parked {
        let stalled = Arc::clone(stalled);
        let overflow = Arc::new(Overflow::new(Arc::new(|| {})));
        Parked::start(overflow, move || stalled.load(SeqCst)).expect("a thread")
    }

    fn tell(to: &Sender<u32>, n: u32) -> Job {
        let to = to.clone();
        Box::new(move |_| to.send(n).expect("heard"))
    }

    #[test]
    fn changes_of_a_stall_hold_no_thread_and_go_on_behind_it() {
        let stalled = Arc::new(AtomicBool::new(true));
        let parked = parked(&stalled);
        let (done_tx, done) = unbounded();
        for n in 0..500 {
            parked.run(tell(&done_tx, n));
        }
        parked.room().look();
        // Were the others to hold threads, this one would find none.
        parked.overflow.run(tell(&done_tx, 1000));
        assert_eq!(done.recv_timeout(SOON), Ok(1000));
        assert!(done.is_empty(), "a stalled change went on");
        stalled.store(false, SeqCst);
        parked.room().look();
        let all = (0..500).map(|_| done.recv_timeout(SOON).expect("went on"));
        assert_eq!(all.sum::<u32>(), (0..500).sum::<u32>());
    }

    /// Those that no thread had come to by the next stall held all threads as long as it lasted.
    #[test]
    fn changes_that_have_not_gone_on_by_the_next_stall_wait_again() {
        let stalled = Arc::new(AtomicBool::new(true));
        let parked = parked(&stalled);
        let (done_tx, done) = unbounded();
        for n in 0..500 {
            parked.run(tell(&done_tx, n));
        }
        let (go_tx, go) = bounded::<()>(0);
        let (began_tx, began) = unbounded();
        for _ in 0..THREADS_MAX {
            let (began, go) = (began_tx.clone(), go.clone());
            parked.overflow.run(Box::new(move |_| {
                began.send(()).expect("heard");
                // Goes on when the other end is dropped.
                let _ = go.recv();
            }));
        }
        let all = (0..THREADS_MAX).try_for_each(|_| began.recv_timeout(SOON));
        all.expect("every thread is held");
        stalled.store(false, SeqCst);
        parked.room().look();
        while !parked.room.lock().jobs.is_empty() {
            thread::yield_now();
        }
        stalled.store(true, SeqCst);
        // Waits behind what has been handed over.
        let (last_tx, last) = unbounded();
        parked.overflow.run(tell(&last_tx, 0));
        drop(go_tx);
        assert_eq!(last.recv_timeout(SOON), Ok(0));
        assert!(done.is_empty(), "a stalled change went on");
        stalled.store(false, SeqCst);
        parked.room().look();
        let all = (0..500).map(|_| done.recv_timeout(SOON).expect("went on"));
        assert_eq!(all.sum::<u32>(), (0..500).sum::<u32>());
    }

    #[test]
    fn without_a_stall_a_change_goes_on_at_once() {
        let parked = parked(&Arc::default());
        let (done_tx, done) = unbounded();
        parked.run(tell(&done_tx, 7));
        assert_eq!(done.recv_timeout(SOON), Ok(7));
    }

    #[test]
    fn the_end_waits_for_no_stall() {
        let parked = parked(&Arc::new(AtomicBool::new(true)));
        let (done_tx, done) = unbounded();
        parked.run(tell(&done_tx, 7));
        drop(done_tx);
        drop(parked);
        assert!(done.recv_timeout(SOON).is_err(), "dropped, not carried out");
    }
}
