//! The real server under schedules that a test chooses: which thread goes on at every lock, channel, atomic and
//! access to a member. Only with `--cfg shuttle`; `make schedule` runs it.
#![cfg(shuttle)]
#![allow(clippy::expect_used, reason = "a test may stop at once")]

mod bed;
mod explore;
mod history;
mod member;
mod orders;
#[cfg(debug_assertions)]
mod planted;
mod scenarios;

/// What the bitmap of the product takes its atomics from in [`orders`].
mod sync {
    pub(crate) use loom::sync::atomic;
}
