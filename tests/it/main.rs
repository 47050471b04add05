//! The server without a mount: real images, real threads, the public interface of the library.

#![allow(clippy::expect_used, reason = "a test may stop at once")]

mod announcements;
mod bed;
mod bitmap_events;
mod cycle;
mod formats;
mod grown;
mod kept;
mod library;
mod refusals;
mod routing;
mod silence;
mod trouble;
mod verify;
