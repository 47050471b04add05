//! Page-aligned memory for requests that outlive the thread that began them.
//!
//! A fixed number of slots: who gets none carries its request out itself, which holds it up as it should be
//! held up then. What was used last is given out first, so that a unit at rest or at low depth touches few pages.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError};

use super::aligned::AlignedBuf;
use crate::sync::{Mutex, MutexGuard};

/// Pool of one size.
#[derive(Debug)]
struct Shelf {
    bytes: usize,
    most: usize,
    /// Held to push or to pop only.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What has been used and is not now.
    free: Vec<AlignedBuf>,
    /// Pool that exist.
    made: usize,
}

/// The slots of a unit.
#[derive(Debug)]
pub struct Pool([Shelf; 2]);

impl Default for Pool {
    /// For the requests of file systems and data bases, and for streams: 2 MiB and 24 MiB at most.
    fn default() -> Self {
        Self([Shelf::new(16 << 10, 128), Shelf::new(1 << 20, 24)])
    }
}

impl Shelf {
    fn new(bytes: usize, most: usize) -> Self {
        Self {
            bytes,
            most,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<AlignedBuf> {
        let mut state = self.lock();
        let free = state.free.pop();
        if free.is_none() && state.made < self.most {
            state.made += 1;
            drop(state);
            return Some(AlignedBuf::zeroed(self.bytes));
        }
        free
    }
}

impl Pool {
    /// Memory of `len` bytes at least, with any content; none when all are in use, or none is that large.
    pub fn take(self: &Arc<Self>, len: usize) -> Option<Slot> {
        let shelf = self.0.iter().position(|shelf| len <= shelf.bytes)?;
        Some(Slot {
            memory: Some(self.0[shelf].take()?),
            pool: Arc::clone(self),
            shelf,
        })
    }
}

/// Memory for one request; it goes back when it is dropped.
#[derive(Debug)]
pub struct Slot {
    /// Nothing only while it is dropped.
    memory: Option<AlignedBuf>,
    pool: Arc<Pool>,
    shelf: usize,
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.0[self.shelf].lock().free.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::aligned::PAGE;

    #[test]
    fn there_is_an_end_of_them_and_each_comes_back() {
        let few = Arc::new(Pool([Shelf::new(512, 2), Shelf::new(4096, 1)]));
        let take = |len| few.take(len);
        let (first, second) = (take(512), take(1));
        assert!(take(512).is_none(), "two are all");
        drop(second);
        let mut again = take(512).expect("one has come back");
        again.fill(9);
        assert!(take(512).is_none());
        drop((first, again));
        assert_eq!(few.0[0].lock().made, 2);
        let last = take(512).expect("there");
        assert_eq!(last[0], 9, "what was used last is given out first");
    }

    #[test]
    fn a_slot_holds_what_is_asked_for() {
        let pool = Arc::<Pool>::default();
        for len in [1, 4096, 16 << 10, (16 << 10) + 1, 1 << 20] {
            let slot = pool.take(len).expect("a slot");
            assert!(slot.len() >= len && slot.as_ptr() as usize % PAGE == 0);
        }
        assert!(pool.take((1 << 20) + 1).is_none());
    }
}
