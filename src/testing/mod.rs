//! What tests and simulations share: a seeded generator, members in memory, an oracle.
//!
//! Hidden from the documentation of the library: no product code uses it. It is pure, so that a
//! simulation is decided by its seed alone.

#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod memory;
pub mod oracle;
pub mod rng;

pub use memory::Image;
pub use oracle::Oracle;
pub use rng::{Path, Rng};
