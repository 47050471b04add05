//! Threads, locks and time under a schedule that a test chooses.
//!
//! Everything that waits does so on a [`world::Waiter`], so that the world knows when nobody can go on. Then, and
//! only then, time passes: to the end of the first wait that has one. With haste, waits that are short may end while
//! others run too, as on a machine whose processors are busy elsewhere.

pub mod channel;
mod locks;
pub mod swap;
pub mod thread;
mod time;
pub mod world;

pub use locks::{Condvar, Mutex, MutexGuard};
pub use time::Instant;
