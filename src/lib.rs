//! shadowset: one virtual disk file, mirrored members, minicopy.
//!
//! Modules in dependency order; each knows only those above it:
//!
//! - `sync` threads, locks and clocks, or those of a schedule
//! - [`set`] the shadow set as a value: geometry, bitmaps, members, views, copies, rules of change
//! - [`error`] one error type: stable code, sentence, cause, hint
//! - [`io`] bytes and durability: the only place with system calls
//! - [`server`] runs the rules: one control thread, the data path, the copier
//! - [`control`] `.shadow/` as one static table
//! - [`socket`] face 1: the socket in the runtime directory
//! - [`fuse`] face 2: the mount
//! - [`cli`] face 3: the command line

pub mod error;
pub mod io;
pub mod server;
pub mod set;

#[cfg(not(shuttle))]
mod sync;
#[cfg(shuttle)]
pub mod sync;

// A schedule goes no further than the server.
#[cfg(not(shuttle))]
pub mod cli;
#[cfg(not(shuttle))]
pub mod control;
#[cfg(not(shuttle))]
pub mod fuse;
#[cfg(not(shuttle))]
pub mod socket;

#[doc(hidden)]
pub mod testing;
