//! Threads, locks, channels and clocks: the only place that chooses whose.
//!
//! A build of the product has those of std, crossbeam and arc-swap, at no cost. With `--cfg shuttle` a test decides
//! which thread goes on at each of these operations (`tests/schedule`).

#[cfg(shuttle)]
mod scheduled;

#[cfg(not(shuttle))]
mod chosen {
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, atomic};
    pub(crate) use std::thread;
    pub(crate) use std::time::Instant;

    pub(crate) use arc_swap as swap;
    pub(crate) use crossbeam_channel as channel;
}

#[cfg(shuttle)]
mod chosen {
    pub use super::scheduled::{Condvar, Instant, Mutex, MutexGuard, channel, swap, thread, world};
    pub use shuttle::sync::atomic;
}

#[cfg(not(shuttle))]
pub(crate) use chosen::*;
#[cfg(shuttle)]
pub use chosen::*;
