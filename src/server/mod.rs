//! The shadow server: runs the rules of the set on real storage.

pub mod create;
pub mod handle;
pub mod pipeline;
pub mod setup;

pub use handle::{Done, EventRecord, Handle, Published, Rate, Request};
pub use pipeline::{Errno, Pipeline};

/// What the control thread is told.
pub(crate) enum Message {
    /// A command of an operator.
    Request(Request, Done),
}
