//! The shadow server: runs the rules of the set on real storage.

pub mod create;
pub mod setup;
