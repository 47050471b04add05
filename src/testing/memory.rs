//! A member in memory: what it shows, what is durable of it, and the writes in between.

use std::collections::{BTreeMap, VecDeque};

/// A value stands for the contents of one block.
pub type Value = u32;

/// The image of a member, one value per block.
#[derive(Clone, Debug)]
pub struct Image {
    shown: Vec<Value>,
    durable: Vec<Value>,
    unflushed: VecDeque<(u64, usize, Value)>,
    writes_to: Vec<u32>,
    last: u64,
}

impl Image {
    /// A durable image with these contents.
    #[must_use]
    pub fn new(contents: Vec<Value>) -> Self {
        Self {
            durable: contents.clone(),
            writes_to: vec![0; contents.len()],
            shown: contents,
            unflushed: VecDeque::new(),
            last: 0,
        }
    }

    /// What a read of the block gives.
    #[must_use]
    pub fn get(&self, block: usize) -> Value {
        self.shown[block]
    }

    /// The values that a block may have after a loss of power, oldest first, each with the flushes that have
    /// begun behind it: `begun` are what [`Image::written`] gave to them.
    pub fn versions(&self, block: usize, begun: &[u64]) -> Vec<(Value, u64)> {
        let covered = |n: u64| {
            let places = begun
                .iter()
                .enumerate()
                .filter(|(_, written)| n <= **written);
            places.map(|(place, _)| 1 << place).sum()
        };
        let later = self.unflushed.iter().filter(|w| w.1 == block);
        let later = later.map(|(n, _, value)| (*value, covered(*n)));
        [(self.durable[block], u64::MAX)]
            .into_iter()
            .chain(later)
            .collect()
    }

    /// The number of the last write of a block that is not flushed: a flush covers it that began at that number or later.
    #[must_use]
    pub fn last_write(&self, block: usize) -> Option<u64> {
        let mut writes = self.unflushed.iter().rev();
        writes.find(|w| w.1 == block).map(|w| w.0)
    }

    /// Number of blocks.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "an image has a block")]
    pub fn len(&self) -> usize {
        self.shown.len()
    }

    /// What a read of every block gives.
    #[must_use]
    pub fn contents(&self) -> &[Value] {
        &self.shown
    }

    /// Writes a block: seen by every later read, durable after a flush that begins later.
    pub fn put(&mut self, block: usize, value: Value) {
        self.last += 1;
        self.shown[block] = value;
        self.writes_to[block] += 1;
        self.unflushed.push_back((self.last, block, value));
    }

    /// What a flush that begins now makes durable, to be given to [`Image::flush`].
    #[must_use]
    pub fn written(&self) -> u64 {
        self.last
    }

    /// Ends a flush that began at `written`.
    pub fn flush(&mut self, written: u64) {
        let begun = |w: &&(u64, usize, Value)| w.0 <= written;
        while let Some(&(_, block, value)) = self.unflushed.front().filter(begun) {
            self.durable[block] = value;
            self.writes_to[block] -= 1;
            self.unflushed.pop_front();
        }
    }

    /// The blocks with writes that a flush which began at `written` covers, and what each may hold when that flush fails:
    /// the durable value first, then those written since.
    #[must_use]
    pub fn unflushed(&self, written: u64) -> BTreeMap<usize, Vec<Value>> {
        let mut may = BTreeMap::new();
        for (n, block, value) in &self.unflushed {
            if *n <= written {
                let durable = || vec![self.durable[*block]];
                may.entry(*block).or_insert_with(durable).push(*value);
            }
        }
        may
    }

    /// A flush that began at `written` has failed, and left `value` in a block.
    pub fn lose(&mut self, block: usize, written: u64, value: Value) {
        let stays = |w: &(u64, usize, Value)| w.1 != block || w.0 > written;
        self.unflushed.retain(stays);
        let mut left = self.unflushed.iter().filter(|w| w.1 == block);
        self.writes_to[block] = left.clone().count() as u32;
        self.shown[block] = left.next_back().map_or(value, |w| w.2);
        self.durable[block] = value;
    }

    /// What a loss of power leaves: for each block `keep` chooses from the durable value and those
    /// written since.
    pub fn after_power_loss(&self, keep: &mut impl FnMut(&[Value]) -> Value) -> Vec<Value> {
        let mut may: Vec<Vec<Value>> = self.durable.iter().map(|value| vec![*value]).collect();
        for (_, block, value) in &self.unflushed {
            may[*block].push(*value);
        }
        may.iter()
            .map(|values| match values[..] {
                [only] => only,
                _ => keep(values),
            })
            .collect()
    }

    /// Whether a loss of power could not change the block.
    #[must_use]
    pub fn is_durable(&self, block: usize) -> bool {
        self.writes_to[block] == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_covers_what_was_written_before_it_began() {
        let mut image = Image::new(vec![0; 3]);
        image.put(0, 7);
        let begun = image.written();
        image.put(0, 8);
        image.put(2, 9);
        image.flush(begun);
        assert_eq!(image.contents(), [8, 0, 9]);
        assert_eq!(image.durable, [7, 0, 0]);
        assert!(!image.is_durable(0) && image.is_durable(1) && !image.is_durable(2));
        let kept = image.after_power_loss(&mut |values| values[values.len() - 1]);
        assert_eq!(kept, [8, 0, 9]);
        let lost = image.after_power_loss(&mut |values| values[0]);
        assert_eq!(lost, [7, 0, 0]);
        image.flush(image.written());
        assert_eq!(image.durable, [8, 0, 9]);
        assert!(image.is_durable(0) && image.is_durable(2));
    }

    #[test]
    fn a_flush_that_fails_leaves_any_of_what_it_was_for() {
        let mut image = Image::new(vec![0; 3]);
        image.put(0, 7);
        image.put(1, 8);
        let begun = image.written();
        image.put(1, 9);
        image.put(2, 9);
        let may = image.unflushed(begun);
        assert_eq!(
            may.into_iter().collect::<Vec<_>>(),
            [(0, vec![0, 7]), (1, vec![0, 8])]
        );
        image.lose(0, begun, 0);
        image.lose(1, begun, 0);
        assert_eq!(image.contents(), [0, 9, 9]);
        assert!(image.is_durable(0) && !image.is_durable(1));
        assert_eq!((image.last_write(0), image.last_write(2)), (None, Some(4)));
        image.flush(image.written());
        assert_eq!(image.durable, [0, 9, 9]);
    }
}
