//! Bytes and durability: the only place with system calls.

pub mod storage;

pub use storage::{Seek, Storage, Zero};
