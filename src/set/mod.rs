//! The core: the shadow set as a value.
//!
//! No I/O, no threads, no clock, no log and no unsafe code in this folder. Events come in, effects
//! go out; the shadow server and the simulator carry them out.

pub mod bitmap;
pub mod geometry;
#[cfg(debug_assertions)]
#[doc(hidden)]
pub mod planted;
pub mod refusal;

pub use bitmap::{OwnedBitmap, WriteBitmap};
pub use geometry::{BlockRange, ByteRange, Bytes, Geometry, Lbn, Region, Regions};
pub use refusal::{Code, Refusal};
