//! The oracle: per block, the values that a read may give. Naive on purpose.
//!
//! A block holds the value of the last acknowledged write, or of a write since then that has not
//! ended or has failed. It knows nothing of members, epochs and bitmaps.

use std::collections::BTreeSet;

use super::memory::Value;

/// Marks a value that a failed write left behind: neither the old contents nor the new.
pub const TORN: Value = 1 << 31;

#[derive(Clone, Debug)]
struct Block {
    /// The values that it may have now.
    may: Vec<Value>,
    /// Values that it could have up to a moment.
    could: Vec<(Value, u64)>,
    /// Values that only reads have denied since a write was acknowledged.
    denied: Vec<Value>,
    /// The latest change of `may`.
    changed: u64,
    /// Whether it was read since the program began.
    read: bool,
    /// Writes that have not ended.
    writing: u32,
    /// All writes that have ended, in order.
    ended: Vec<Ended>,
    /// The last of them that an acknowledged flush has covered.
    stable: usize,
}

/// A write that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// The epoch in which it wrote.
    pub epoch: u64,
    /// What it wrote.
    pub value: Value,
    /// Whether it was acknowledged.
    pub good: bool,
}

/// What a unit may contain.
#[derive(Clone, Debug)]
pub struct Oracle {
    blocks: Vec<Block>,
}

impl Oracle {
    /// A unit with these contents.
    #[must_use]
    pub fn new(contents: &[Value]) -> Self {
        let blocks = contents.iter().map(|value| Block::new(*value)).collect();
        Self { blocks }
    }

    /// The unit has this number of blocks only.
    pub fn truncate(&mut self, blocks: usize) {
        self.blocks.truncate(blocks);
    }

    /// The unit has grown by blocks with these contents.
    pub fn grow(&mut self, contents: &[Value]) {
        let blocks = contents.iter().map(|value| Block::new(*value));
        self.blocks.extend(blocks);
    }

    /// The program has ended and begins anew with these contents. Without a loss of power writes that were
    /// not flushed may still be lost by a later one.
    pub fn restart(&mut self, contents: &[Value], power: bool) {
        if power {
            *self = Self::new(contents);
            return;
        }
        for (b, value) in self.blocks.iter_mut().zip(contents) {
            (b.may, b.writing) = (vec![*value], 0);
            (b.could, b.changed, b.read) = (Vec::new(), 0, false);
            b.denied.clear();
            b.ended.drain(..b.stable);
            b.stable = 0;
            for ended in &mut b.ended {
                ended.epoch = 0;
            }
            b.ended.push(Ended {
                epoch: 0,
                value: *value,
                good: true,
            });
        }
    }

    /// A write of `value` begins.
    pub fn begin(&mut self, block: usize, value: Value, now: u64) {
        let b = &mut self.blocks[block];
        b.may.extend([value, value | TORN]);
        (b.changed, b.writing) = (now, b.writing + 1);
    }

    /// Whether a write of the block has not ended.
    #[must_use]
    pub fn is_written(&self, block: usize) -> bool {
        self.blocks[block].writing > 0
    }

    /// A flush has failed for all: the block has any of the values that were to be flushed, as if a write of each had
    /// failed.
    pub fn lost(&mut self, block: usize, values: &[Value], now: u64) {
        let b = &mut self.blocks[block];
        let (epoch, good) = (0, false);
        let ended = values.iter().map(|value| Ended {
            epoch,
            value: *value,
            good,
        });
        b.ended.extend(ended);
        b.may.extend(values);
        (b.changed, b.read) = (now, false);
        b.denied.clear();
    }

    /// A write ends.
    pub fn end(&mut self, block: usize, ended: Ended, now: u64) {
        let b = &mut self.blocks[block];
        if ended.good {
            b.narrow(ended.value, now);
            b.denied.clear();
        }
        (b.changed, b.writing) = (now, b.writing - 1);
        b.ended.push(ended);
    }

    /// Judges what a read that began at `began` has found.
    ///
    /// When nothing has happened to the block since, every later read must find the same (I11).
    ///
    /// # Errors
    /// Says what would have been right.
    pub fn read(&mut self, block: usize, value: Value, began: u64, now: u64) -> Result<(), String> {
        let b = &mut self.blocks[block];
        let was = |(v, until): &(Value, u64)| *v == value && *until >= began;
        b.read = true;
        if b.may.contains(&value) {
            if b.writing == 0 && b.changed < began && b.may.len() > 1 {
                b.deny(value);
                b.narrow(value, now);
            }
            Ok(())
        } else if b.could.iter().any(was) {
            Ok(())
        } else {
            Err(format!(
                "block {block} has {value}, it may have {:?}",
                b.may
            ))
        }
    }

    /// Whether a member may have this value now.
    #[must_use]
    pub fn may_have(&self, block: usize, value: Value) -> bool {
        self.blocks[block].may.contains(&value)
    }

    /// An acknowledged flush that began at `began` covers all blocks that have not changed since.
    pub fn flushed(&mut self, began: u64) {
        for b in &mut self.blocks {
            if b.writing == 0 && b.changed < began {
                // What failed writes have left may be flushed as well as what was before them.
                let good = b.ended.iter().rposition(|w| w.good);
                b.stable = good.unwrap_or(0);
            }
        }
    }

    /// Whether a block of a source may have this value after a crash: after a loss of power any
    /// since the last flush, after a kill what a read could have found.
    #[must_use]
    pub fn survives(&self, block: usize, value: Value, power: bool) -> bool {
        let b = &self.blocks[block];
        let left = |w: &Ended| value == w.value || !w.good && value == w.value | TORN;
        b.may.contains(&value) || power && b.ended[b.stable..].iter().any(left)
    }

    /// Whether the block could have this value but for a read that has found another one. Writes that have failed
    /// since then change nothing in that.
    #[must_use]
    pub fn only_read_denies(&self, block: usize, value: Value) -> bool {
        self.blocks[block].denied.contains(&value)
    }

    /// Whether the block was read since the program began: then all members that take part have what
    /// the oracle knows, also where they were still to be merged (I11).
    #[must_use]
    pub fn was_read(&self, block: usize) -> bool {
        self.blocks[block].read
    }

    /// All that decides what is allowed in a block from now on, when no read or flush has begun but those of
    /// `began`, and no cut comes before the epoch `cut`. Also how many writes have ended that matter no more.
    #[must_use]
    pub fn digest(&self, block: usize, began: &[u64], cut: u64) -> (String, usize) {
        let b = &self.blocks[block];
        let since = |moment: u64| {
            let places = began
                .iter()
                .enumerate()
                .filter(|(_, began)| moment >= **began);
            places.map(|(place, _)| 1 << place).sum::<u64>()
        };
        let could: BTreeSet<_> = b
            .could
            .iter()
            .map(|(value, until)| (*value, since(*until)))
            .collect();
        let could: Vec<_> = could.into_iter().filter(|(_, seen)| *seen > 0).collect();
        let (may, denied): (BTreeSet<_>, BTreeSet<_>) =
            (b.may.iter().collect(), b.denied.iter().collect());
        let first = b.ended.iter().rposition(|w| w.good && w.epoch <= cut);
        let first = first.unwrap_or(0).min(b.stable);
        let now = (b.writing, b.read, since(b.changed), b.stable - first);
        let text = format!("{:?}", (may, could, denied, now, &b.ended[first..]));
        (text, first)
    }

    /// The values that the block may have now.
    #[must_use]
    pub fn values(&self, block: usize) -> &[Value] {
        &self.blocks[block].may
    }

    /// When the values that the block may have changed last.
    #[must_use]
    pub fn changed(&self, block: usize) -> u64 {
        self.blocks[block].changed
    }

    /// The writes of a block that have ended, in order.
    #[must_use]
    pub fn ended(&self, block: usize) -> &[Ended] {
        &self.blocks[block].ended
    }

    /// Whether the value is what the writes up to an epoch leave in the block.
    #[must_use]
    pub fn is_cut(&self, block: usize, value: Value, last: u64) -> bool {
        let mut may = Vec::new();
        for write in self.blocks[block].ended.iter().filter(|w| w.epoch <= last) {
            if write.good {
                may.clear();
            }
            may.extend([write.value, write.value | TORN]);
        }
        may.contains(&value)
    }
}

impl Block {
    fn new(value: Value) -> Self {
        Self {
            may: vec![value],
            could: Vec::new(),
            denied: Vec::new(),
            changed: 0,
            read: false,
            writing: 0,
            ended: vec![Ended {
                epoch: 0,
                value,
                good: true,
            }],
            stable: 0,
        }
    }

    fn deny(&mut self, but: Value) {
        let others = self.may.iter().filter(|value| **value != but);
        self.denied.extend(others);
    }

    fn narrow(&mut self, value: Value, now: u64) {
        for gone in std::mem::take(&mut self.may) {
            if gone != value {
                self.could.push((gone, now));
            }
        }
        self.may.push(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(value: Value, good: bool) -> Ended {
        Ended {
            epoch: 1,
            value,
            good,
        }
    }

    #[test]
    fn a_read_may_find_what_was_there_while_it_ran() {
        let mut oracle = Oracle::new(&[5]);
        oracle.begin(0, 6, 10);
        assert!(oracle.read(0, 5, 11, 11).is_ok() && oracle.read(0, 6, 11, 11).is_ok());
        oracle.end(0, end(6, true), 12);
        assert!(oracle.read(0, 5, 11, 13).is_ok(), "it began before");
        assert!(
            oracle.read(0, 5, 13, 14).is_err(),
            "older than acknowledged"
        );
        assert!(oracle.read(0, 6, 13, 14).is_ok());
    }

    #[test]
    fn a_failed_write_after_a_read_leaves_open_what_only_the_read_denied() {
        let mut oracle = Oracle::new(&[5]);
        oracle.begin(0, 6, 10);
        oracle.end(0, end(6, false), 12);
        assert!(oracle.read(0, 6, 14, 15).is_ok() && oracle.only_read_denies(0, 5));
        oracle.begin(0, 7, 16);
        oracle.end(0, end(7, false), 17);
        assert!(oracle.only_read_denies(0, 5) && !oracle.only_read_denies(0, 7));
        oracle.begin(0, 8, 18);
        oracle.end(0, end(8, true), 19);
        assert!(!oracle.only_read_denies(0, 5), "a write was acknowledged");
    }

    #[test]
    fn a_loss_of_power_takes_what_was_not_flushed() {
        let mut oracle = Oracle::new(&[5]);
        oracle.begin(0, 6, 10);
        oracle.end(0, end(6, true), 12);
        assert!(oracle.survives(0, 5, true) && oracle.survives(0, 6, true));
        assert!(!oracle.survives(0, 5, false), "a kill takes nothing");
        oracle.flushed(13);
        assert!(!oracle.survives(0, 5, true) && oracle.survives(0, 6, true));
    }

    #[test]
    fn a_flush_that_failed_may_have_lost_what_was_acknowledged() {
        let mut oracle = Oracle::new(&[5]);
        oracle.begin(0, 6, 10);
        oracle.end(0, end(6, true), 12);
        assert!(oracle.read(0, 5, 13, 13).is_err() && oracle.read(0, 6, 13, 13).is_ok());
        oracle.lost(0, &[5, 6], 14);
        assert!(oracle.read(0, 5, 15, 16).is_ok() && oracle.is_cut(0, 5, 1));
        assert!(oracle.read(0, 6, 17, 18).is_err(), "decided");
    }

    #[test]
    fn after_a_failed_write_the_first_read_decides() {
        let mut oracle = Oracle::new(&[5]);
        oracle.begin(0, 6, 10);
        oracle.end(0, end(6, false), 12);
        assert!(oracle.read(0, 6, 11, 13).is_ok(), "began before the end");
        assert!(oracle.read(0, 5, 14, 15).is_ok());
        assert!(oracle.read(0, 6, 16, 17).is_err(), "decided");
        assert!(oracle.is_cut(0, 5, 1) && oracle.is_cut(0, 6, 1) && !oracle.is_cut(0, 6, 0));
    }
}
