//! As [`std::thread`].

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use shuttle::thread::{ThreadId, current, yield_now};
pub use std::thread::{Result, panicking};

use super::world::{self, Waiter};

/// Who waits for the end of a thread; none behind that.
#[derive(Debug)]
struct End(Mutex<Option<Vec<Arc<Waiter>>>>);

impl End {
    fn lock(&self) -> MutexGuard<'_, Option<Vec<Arc<Waiter>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// However the thread ends.
struct Ends(Arc<End>);

impl Drop for Ends {
    fn drop(&mut self) {
        let waiting = self.0.lock().take();
        for waiter in waiting.into_iter().flatten() {
            waiter.wake();
        }
        world::thread_ends();
    }
}

/// As [`std::thread::JoinHandle`].
#[derive(Debug)]
pub struct JoinHandle<T> {
    inner: shuttle::thread::JoinHandle<T>,
    end: Arc<End>,
}

impl<T> JoinHandle<T> {
    /// Waits for its end.
    ///
    /// # Errors
    /// What it has panicked with.
    pub fn join(self) -> Result<T> {
        let waiter = Waiter::new();
        let waits = match &mut *self.end.lock() {
            Some(waiting) => {
                waiting.push(Arc::clone(&waiter));
                true
            }
            None => false,
        };
        if waits {
            waiter.wait(None);
        }
        self.inner.join()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.end.lock().is_none()
    }
}

/// As [`std::thread::Builder`].
#[derive(Debug, Default)]
pub struct Builder(shuttle::thread::Builder);

impl Builder {
    /// A thread without a name.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives it a name.
    #[must_use]
    pub fn name(self, name: String) -> Self {
        Self(self.0.name(name))
    }

    /// Starts it.
    ///
    /// # Errors
    /// None.
    pub fn spawn<F, T>(self, run: F) -> io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let end = Arc::new(End(Mutex::new(Some(Vec::new()))));
        let ends = Ends(Arc::clone(&end));
        world::thread_begins();
        let inner = self.0.spawn(move || {
            let _ends = ends;
            run()
        })?;
        Ok(JoinHandle { inner, end })
    }
}

/// Starts a thread.
pub fn spawn<F, T>(run: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    match Builder::new().spawn(run) {
        Ok(handle) => handle,
        Err(_) => unreachable!("threads of a schedule can always be had"),
    }
}
