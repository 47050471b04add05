//! The small world: three regions, two or three members, and everything that can happen in any order.
//!
//! The random runs go deep into few orders of events; here a bounded number of things begin, and every order of
//! their steps is taken, with every outcome of a crash. States that were met before are not followed again.

mod deeds;
mod explore;
mod runs;
mod state;
