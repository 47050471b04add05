//! Range fences as a plain list: overlapping ranges are let in one after the other, as they came.

use crate::set::BlockRange;

/// All who hold or wait for a range, in the order of their coming.
#[derive(Clone, Debug, Default)]
pub struct FenceTable {
    queue: Vec<(u64, BlockRange)>,
}

impl FenceTable {
    /// Queues `who` for the range.
    pub fn ask(&mut self, who: u64, range: BlockRange) {
        assert!(
            self.queue.iter().all(|(other, _)| *other != who),
            "{who} asks twice"
        );
        self.queue.push((who, range));
    }

    /// Whether `who` holds its range: nobody who came before wants a block of it.
    #[must_use]
    pub fn holds(&self, who: u64) -> bool {
        let Some(at) = self.queue.iter().position(|(other, _)| *other == who) else {
            return false;
        };
        let range = self.queue[at].1;
        self.queue[..at].iter().all(|(_, r)| !r.overlaps(range))
    }

    /// Gives the range back.
    pub fn release(&mut self, who: u64) {
        self.queue.retain(|(other, _)| *other != who);
    }

    /// Whether nobody holds or waits for anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::{Bytes, Geometry};

    #[test]
    fn who_came_first_is_let_in_first() {
        let g = Geometry::new(Bytes(512 * 100), 8).expect("valid");
        let range = |first: u64, end: u64| {
            let bytes = g.clip(Bytes(first * 512), Bytes((end - first) * 512));
            bytes.expect("inside").blocks()
        };
        let mut fences = FenceTable::default();
        fences.ask(1, range(0, 10));
        fences.ask(2, range(5, 15));
        fences.ask(3, range(12, 20));
        fences.ask(4, range(20, 30));
        let held = |f: &FenceTable| (1..=4).map(|who| f.holds(who)).collect::<Vec<_>>();
        assert_eq!(held(&fences), [true, false, false, true]);
        fences.release(1);
        assert_eq!(held(&fences), [false, true, false, true]);
        fences.release(2);
        assert_eq!(held(&fences), [false, false, true, true]);
    }
}
