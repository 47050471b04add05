//! As arc-swap, where each load and each store is one step.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use super::world;

/// As [`arc_swap::Guard`].
#[derive(Debug)]
pub struct Guard<T>(T);

impl<T> Deref for Guard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// As [`arc_swap::ArcSwapAny`].
#[derive(Debug)]
pub struct ArcSwapAny<T>(Mutex<T>);

/// As [`arc_swap::ArcSwap`].
pub type ArcSwap<T> = ArcSwapAny<Arc<T>>;
/// As [`arc_swap::ArcSwapOption`].
pub type ArcSwapOption<T> = ArcSwapAny<Option<Arc<T>>>;

impl<T: Clone> ArcSwapAny<T> {
    /// Holds a value.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// The value, until it is dropped.
    pub fn load(&self) -> Guard<T> {
        Guard(self.load_full())
    }

    /// The value.
    pub fn load_full(&self) -> T {
        world::step();
        let value = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        value.clone()
    }

    /// Sets the value.
    pub fn store(&self, new: T) {
        drop(self.swap(new));
    }

    /// Sets the value; gives the one before.
    pub fn swap(&self, new: T) -> T {
        world::step();
        let mut value = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *value, new)
    }
}

impl<T> ArcSwap<T> {
    /// Holds a value.
    pub fn from_pointee(value: T) -> Self {
        Self::new(Arc::new(value))
    }
}

impl<T> ArcSwapOption<T> {
    /// Holds none.
    #[must_use]
    pub fn empty() -> Self {
        Self::new(None)
    }
}

impl<T: Clone + Default> Default for ArcSwapAny<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}
