//! A data path with nobody behind it, neither control thread nor watch: what a request costs by itself. For
//! benchmarks; members that fail have no place here.

use std::sync::Arc;

use crate::sync::channel::unbounded;

use super::params::{Params, Values};
use super::pipeline::{Errno, Live, Pipeline, Stores};
use crate::io::Storage;
use crate::set::{ByteRange, Bytes, Epoch, Geometry, MemberId, Role, Seat, View, WriteBitmap};

/// The data path of a unit whose members are all sources.
#[derive(Debug)]
pub struct Bare {
    pipeline: Arc<Pipeline>,
}

impl Bare {
    /// A unit of this geometry on these members, with bitmaps of so many members that are away. Nothing when a set
    /// cannot have so many members.
    #[must_use]
    pub fn new(geometry: Geometry, members: &[Arc<dyn Storage>], bitmaps: usize) -> Option<Self> {
        let mut stores = Stores::default();
        let mut seats = Vec::new();
        for (place, member) in members.iter().enumerate() {
            let id = MemberId::new(place)?;
            stores[id.index()] = Some(Arc::clone(member));
            seats.push(Seat {
                id,
                role: Role::Source,
                read_cost: 0,
                site: 0,
            });
        }
        let empty = || Arc::new(WriteBitmap::empty(geometry));
        let marks = (0..bitmaps).map(|_| empty()).collect();
        let view = View::new(Epoch(1), seats, marks, empty());
        let live = Live::new(view, &stores, unbounded().0);
        let params = Arc::new(Params::new(Values::default()));
        let pipeline = Pipeline::new(live, false, None, params);
        Some(Self { pipeline })
    }

    /// The whole path.
    #[must_use]
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Pins the epoch and lets go of it; gives its number.
    #[must_use]
    pub fn pin(&self) -> u64 {
        self.pipeline.live().view().epoch().0
    }

    /// Fences a range, pins the epoch, and lets go of both.
    ///
    /// # Errors
    /// Those of a write, which wants the same.
    pub fn enter(&self, at: u64, len: u64) -> Result<(), Errno> {
        self.pipeline
            .enter_to_change(self.range(at, len)?)
            .map(drop)
    }

    /// As [`Self::enter`], and marks every bitmap: all that a write does beside writing.
    ///
    /// # Errors
    /// Those of a write, which wants the same.
    pub fn permit(&self, at: u64, len: u64) -> Result<(), Errno> {
        let range = self.range(at, len)?;
        let fenced = self.pipeline.enter_to_change(range)?;
        self.pipeline.permit(fenced, range).map(drop)
    }

    fn range(&self, at: u64, len: u64) -> Result<ByteRange, Errno> {
        let inside = self.pipeline.geometry().clip(Bytes(at), Bytes(len));
        inside.map_err(|_| Errno(libc::ENOSPC))
    }
}
