//! shadowset: one virtual disk file, mirrored members, minicopy.
//!
//! Modules in dependency order; each knows only those above it:
//!
//! - [`set`] the shadow set as a value: geometry, bitmaps, members, views, copies, rules of change
//! - [`error`] one error type: stable code, sentence, cause, hint
//! - [`io`] bytes and durability: the only place with system calls
//! - [`server`] runs the rules: one control thread, the data path, the copier
//! - [`control`] `.shadow/` as one static table
//! - [`socket`] face 1: the socket in the runtime directory
//! - [`fuse`] face 2: the mount
//! - [`cli`] face 3: the command line

pub mod cli;
pub mod control;
pub mod error;
pub mod fuse;
pub mod io;
pub mod server;
pub mod set;
pub mod socket;
#[doc(hidden)]
pub mod testing;
