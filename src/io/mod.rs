//! Bytes and durability: the only place with system calls.

pub mod aligned;
pub mod event_log;
pub mod file;
pub mod filesystems;
pub mod fingerprint;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod image;
pub mod immutable;
pub mod journal;
pub mod lease;
pub mod loopdev;
pub mod mountpoint;
pub mod node_rate;
pub mod pressure;
mod ring;
pub mod runtime;
pub mod scb_file;
pub mod slots;
pub mod state_dir;
pub mod storage;
pub mod sys;
#[cfg(test)]
pub(crate) mod testing;
pub mod utab;

pub use file::FileStorage;
pub use image::{Identity, Image, IoMode};
pub use storage::{Queue, SPACE_BYTES, Seek, Storage, Then, Zero, Zeroed};
pub use sys::uring::Payload;
