//! Deterministic simulation of the shadow set: one thread, one seed, every interleaving.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails where the world is not as it must be"
)]

mod checks;
mod commands;
mod copier;
mod crash;
mod departed;
mod growth;
mod home;
mod kinds;
mod limits;
mod merging;
#[cfg(debug_assertions)]
mod mutants;
mod ops;
mod others;
mod plan;
mod repairer;
mod requests;
mod returned;
mod runs;
mod scheduler;
mod scripts;
mod shell;
mod shrink;
mod silence;
mod small;
mod stall;
mod storage;
mod told;
mod unflushed;
mod verifier;
mod world;
