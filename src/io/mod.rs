//! Bytes and durability: the only place with system calls.

pub mod scb_file;
pub mod storage;

pub use storage::{Seek, Storage, Zero};
