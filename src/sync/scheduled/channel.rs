//! As the channels of crossbeam.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

pub use crossbeam_channel::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError};

use super::locks::{Condvar, Mutex, MutexGuard};
use super::world;

#[derive(Debug)]
struct State<T> {
    queue: VecDeque<T>,
    room: usize,
    senders: usize,
    receivers: usize,
}

#[derive(Debug)]
struct Channel<T> {
    state: Mutex<State<T>>,
    moved: Condvar,
}

impl<T> Channel<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        let waited = self.moved.wait(state);
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

/// As [`crossbeam_channel::Sender`].
pub struct Sender<T>(Arc<Channel<T>>);

/// As [`crossbeam_channel::Receiver`].
pub struct Receiver<T>(Arc<Channel<T>>);

/// A channel that is never full.
#[must_use]
pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    bounded(usize::MAX)
}

/// A channel for so many messages, one at least.
#[must_use]
pub fn bounded<T>(room: usize) -> (Sender<T>, Receiver<T>) {
    assert!(room > 0, "a channel without room is not made here");
    let state = State {
        queue: VecDeque::new(),
        room,
        senders: 1,
        receivers: 1,
    };
    let channel = Arc::new(Channel {
        state: Mutex::new(state),
        moved: Condvar::new(),
    });
    (Sender(Arc::clone(&channel)), Receiver(channel))
}

impl<T> Sender<T> {
    /// Sends, and waits for room.
    ///
    /// # Errors
    /// Nobody will receive it.
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        let mut state = self.0.lock();
        while state.receivers > 0 && state.queue.len() >= state.room {
            state = self.0.wait(state);
        }
        if state.receivers == 0 {
            return Err(SendError(message));
        }
        state.queue.push_back(message);
        drop(state);
        self.0.moved.notify_all();
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// Waits for a message.
    ///
    /// # Errors
    /// Nobody will send one.
    pub fn recv(&self) -> Result<T, RecvError> {
        let mut state = self.0.lock();
        loop {
            match Self::take(&self.0, state) {
                Ok(message) => return Ok(message),
                Err(Some(back)) => state = self.0.wait(back),
                Err(None) => return Err(RecvError),
            }
        }
    }

    /// Waits for a message, or for so long.
    ///
    /// # Errors
    /// The time is over, or nobody will send one.
    pub fn recv_timeout(&self, at_most: Duration) -> Result<T, RecvTimeoutError> {
        let (end, mut state) = (world::time() + at_most, self.0.lock());
        loop {
            match Self::take(&self.0, state) {
                Ok(message) => return Ok(message),
                Err(None) => return Err(RecvTimeoutError::Disconnected),
                Err(Some(back)) => {
                    let left = end.saturating_sub(world::time());
                    if left.is_zero() {
                        return Err(RecvTimeoutError::Timeout);
                    }
                    let waited = self.0.moved.wait_timeout(back, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Takes a message that is there.
    ///
    /// # Errors
    /// There is none, or there never will be.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        match Self::take(&self.0, self.0.lock()) {
            Ok(message) => Ok(message),
            Err(Some(_)) => Err(TryRecvError::Empty),
            Err(None) => Err(TryRecvError::Disconnected),
        }
    }

    /// The messages that are there.
    pub fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.try_recv().ok())
    }

    /// All messages to come.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }

    /// A message; or the lock, if one may come.
    #[allow(clippy::type_complexity, reason = "a lock or none")]
    fn take<'a>(
        channel: &Channel<T>,
        mut state: MutexGuard<'a, State<T>>,
    ) -> Result<T, Option<MutexGuard<'a, State<T>>>> {
        if let Some(message) = state.queue.pop_front() {
            drop(state);
            channel.moved.notify_all();
            return Ok(message);
        }
        Err((state.senders > 0).then_some(state))
    }
}

impl<T> IntoIterator for Receiver<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        IntoIter(self)
    }
}

/// As [`crossbeam_channel::IntoIter`].
#[derive(Debug)]
pub struct IntoIter<T>(Receiver<T>);

impl<T> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.recv().ok()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.lock().receivers += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.lock().senders -= 1;
        self.0.moved.notify_all();
    }
}

impl<T> Drop for Receiver<T> {
    /// Messages that nobody can receive any more go with the last one.
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receivers -= 1;
        let lost = match state.receivers {
            0 => std::mem::take(&mut state.queue),
            _ => VecDeque::new(),
        };
        drop(state);
        drop(lost);
        self.0.moved.notify_all();
    }
}

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender")
    }
}

impl<T> std::fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Receiver")
    }
}
