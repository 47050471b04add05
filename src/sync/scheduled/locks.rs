//! As those of [`std::sync`]. A lock is never poisoned: a thread that panics ends the schedule.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LockResult, PoisonError, TryLockError};
use std::time::Duration;

use super::world::{self, Waiter};

/// As [`std::sync::Mutex`].
#[derive(Debug, Default)]
pub struct Mutex<T: ?Sized> {
    waiting: std::sync::Mutex<Vec<Arc<Waiter>>>,
    value: std::sync::Mutex<T>,
}

/// As [`std::sync::MutexGuard`].
#[derive(Debug)]
pub struct MutexGuard<'a, T: ?Sized> {
    lock: &'a Mutex<T>,
    /// None while it is let go of.
    value: Option<std::sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    /// Holds a value.
    pub const fn new(value: T) -> Self {
        Self {
            waiting: std::sync::Mutex::new(Vec::new()),
            value: std::sync::Mutex::new(value),
        }
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits for the lock.
    ///
    /// # Errors
    /// None.
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        world::hasten();
        world::step();
        loop {
            let value = match self.value.try_lock() {
                Ok(value) => value,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    let waiter = Waiter::new();
                    self.waiting().push(Arc::clone(&waiter));
                    waiter.wait(None);
                    continue;
                }
            };
            let value = Some(value);
            return Ok(MutexGuard { lock: self, value });
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Waiter>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    /// All who wait try again, whoever comes first.
    fn drop(&mut self) {
        self.value = None;
        let waiting = std::mem::take(&mut *self.lock.waiting());
        for waiter in waiting {
            waiter.wake();
        }
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.value {
            Some(value) => value,
            None => unreachable!("it is let go of at its end"),
        }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.value {
            Some(value) => value,
            None => unreachable!("it is let go of at its end"),
        }
    }
}

/// As [`std::sync::WaitTimeoutResult`].
#[derive(Clone, Copy, Debug)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Whether the time was over.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

/// As [`std::sync::Condvar`].
#[derive(Debug, Default)]
pub struct Condvar(std::sync::Mutex<VecDeque<Arc<Waiter>>>);

type Waited<'a, T> = (MutexGuard<'a, T>, WaitTimeoutResult);

impl Condvar {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self(std::sync::Mutex::new(VecDeque::new()))
    }

    /// Waits until it is notified.
    ///
    /// # Errors
    /// None.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        Ok(self.wait_for(guard, None).0)
    }

    /// Waits until it is notified, or for so long.
    ///
    /// # Errors
    /// None.
    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        at_most: Duration,
    ) -> LockResult<Waited<'a, T>> {
        Ok(self.wait_for(guard, Some(at_most)))
    }

    /// Waits while the condition holds, or for so long.
    ///
    /// # Errors
    /// None.
    pub fn wait_timeout_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        at_most: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<Waited<'a, T>> {
        let end = world::time() + at_most;
        while condition(&mut guard) {
            let left = end.saturating_sub(world::time());
            if left.is_zero() {
                return Ok((guard, WaitTimeoutResult(true)));
            }
            guard = self.wait_for(guard, Some(left)).0;
        }
        Ok((guard, WaitTimeoutResult(false)))
    }

    /// Wakes all who wait.
    pub fn notify_all(&self) {
        let woken = std::mem::take(&mut *self.queue());
        for waiter in woken {
            waiter.wake();
        }
    }

    /// Wakes one who waits.
    pub fn notify_one(&self) {
        loop {
            let first = self.queue().pop_front();
            if first.is_none_or(|waiter| waiter.wake()) {
                return;
            }
        }
    }

    fn wait_for<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        at_most: Option<Duration>,
    ) -> Waited<'a, T> {
        let (lock, waiter) = (guard.lock, Waiter::new());
        self.queue().push_back(Arc::clone(&waiter));
        drop(guard);
        let woken = waiter.wait(at_most);
        self.queue().retain(|other| !Arc::ptr_eq(other, &waiter));
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        (guard, WaitTimeoutResult(!woken))
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<Waiter>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
