//! The core: the shadow set as a value.
//!
//! No I/O, no threads, no clock, no log and no unsafe code in this folder. Events come in, effects
//! go out; the shadow server and the simulator carry them out.

pub mod assess;
pub mod bitmap;
pub mod geometry;
#[cfg(debug_assertions)]
#[doc(hidden)]
pub mod planted;
pub mod refusal;
pub mod scb;

pub use assess::{Assembly, Found, ScbFound, Start, assess};
pub use bitmap::{OwnedBitmap, WriteBitmap};
pub use geometry::{BlockRange, ByteRange, Bytes, Geometry, Lbn, Region, Regions};
pub use refusal::{Code, Refusal};
pub use scb::{Generation, Lineage, Scb, ScbRow, ScbState};
