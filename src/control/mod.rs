//! `.shadow/` as one static table: what it holds, what its files say, what may be written to them.
//!
//! [`table::TABLE`] is the only list of files: it serves them, documents them (`help`) and names the
//! commands. Everything here is text and rules; a face brings the bytes. Reading takes what the
//! shadow server has published and counters, and never waits for I/O or for a command. No FUSE in
//! this folder, and no system calls.

pub mod answer;
pub mod command;
mod display;
pub mod logbook;
mod metrics;
mod render;
mod report;
mod show;
mod stats;
mod status;
pub mod table;
mod text;
pub mod tree;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(any(test, fuzzing))]
pub(crate) mod testing;

pub use metrics::names as metric_names;
pub use table::{Kind, Node, TABLE, help};
pub use tree::{Attr, Entry, NodeRef, StoreOutcome, Stored, Tree, Unit};

/// Version of the interface: files and keys are only added within one.
pub const ABI: u32 = 1;
