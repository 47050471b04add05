//! The bits of one map as the journal's files hold them, or as the next snapshot will.
//!
//! Read by the data path without a lock. Bits are set only behind a durable batch; a bit that was
//! cleared may still be set on disk, never the other way round.

use crate::sync::atomic::{AtomicU64, Ordering};

#[cfg(test)]
use super::planted;
use crate::set::{Geometry, Regions, WriteBitmap};

/// Regions of a word.
pub(super) const WORD: u64 = u64::BITS as u64;

/// Words that a bitmap of this geometry has.
pub(super) fn words_of(geometry: Geometry) -> u64 {
    geometry.regions().div_ceil(WORD)
}

/// The durable words of one map.
#[derive(Debug)]
pub(super) struct Words {
    words: Box<[AtomicU64]>,
    /// Bits of the last word that are regions.
    tail: u64,
}

impl Words {
    pub(super) fn empty(geometry: Geometry) -> Self {
        Self::from_words(geometry, std::iter::empty())
    }

    pub(super) fn from_bitmap(map: &WriteBitmap) -> Self {
        Self::from_words(map.geometry(), map.words())
    }

    fn from_words(geometry: Geometry, words: impl Iterator<Item = u64>) -> Self {
        let count = words_of(geometry);
        let words = words.chain(std::iter::repeat(0)).zip(0..count);
        Self {
            words: words.map(|(bits, _)| AtomicU64::new(bits)).collect(),
            tail: u64::MAX >> (count * WORD - geometry.regions()),
        }
    }

    pub(super) fn to_bitmap(&self, geometry: Geometry) -> WriteBitmap {
        WriteBitmap::from_words(geometry, self.iter())
    }

    pub(super) fn len(&self) -> u64 {
        self.words.len() as u64
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().map(|w| w.load(Ordering::Acquire))
    }

    /// Words that are not zero, with their index.
    pub(super) fn set_words(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..).zip(self.iter()).filter(|(_, bits)| *bits != 0)
    }

    /// Whether every region of the run is set: loads alone.
    pub(super) fn covers(&self, regions: Regions) -> bool {
        let mut all = true;
        self.each(regions, |word, mask| {
            all &= word.load(Ordering::Acquire) & mask == mask;
        });
        all
    }

    /// A copy with the bits of the other as well.
    pub(super) fn with(&self, other: &Self) -> Self {
        let words = self
            .iter()
            .zip(other.iter())
            .map(|(a, b)| AtomicU64::new(a | b));
        Self {
            words: words.collect(),
            tail: self.tail,
        }
    }

    /// Adds the bits of the other.
    pub(super) fn absorb(&self, other: &Self) {
        for (word, bits) in self.words.iter().zip(other.iter()) {
            if bits != 0 {
                word.fetch_or(bits, Ordering::AcqRel);
            }
        }
    }

    /// Clears all bits that are not in `left`; true when one was set.
    pub(super) fn keep_only(&self, left: &WriteBitmap) -> bool {
        let mut any = false;
        for (word, left) in self.words.iter().zip(left.words()) {
            #[cfg(test)]
            let left = match planted::is(planted::Mistake::RetainDropsMore) {
                true if left != u64::MAX => 0,
                _ => left,
            };
            any |= word.fetch_and(left, Ordering::AcqRel) & !left != 0;
        }
        any
    }

    /// Sets every bit of the words `first .. end`; false, and nothing set, when they are not there.
    pub(super) fn fill(&self, first: u64, end: u64) -> bool {
        if first >= end || end > self.len() {
            return false;
        }
        for word in &self.words[index(first)..index(end)] {
            word.fetch_or(u64::MAX, Ordering::AcqRel);
        }
        self.trim();
        true
    }

    /// Adds bits to a word; false when it is not there.
    pub(super) fn add(&self, at: u64, bits: u64) -> bool {
        if at >= self.len() {
            return false;
        }
        self.words[index(at)].fetch_or(bits, Ordering::AcqRel);
        self.trim();
        true
    }

    /// Drops bits that are no region.
    fn trim(&self) {
        if let Some(last) = self.words.last() {
            last.fetch_and(self.tail, Ordering::AcqRel);
        }
    }

    fn each(&self, regions: Regions, mut visit: impl FnMut(&AtomicU64, u64)) {
        let (mut at, end) = (regions.first().0, regions.end().0);
        assert!(
            end <= self.len() * WORD,
            "region {end} is beyond the journal"
        );
        while at < end {
            let stop = ((at / WORD + 1) * WORD).min(end);
            let mask = u64::MAX >> (WORD - (stop - at)) << (at % WORD);
            visit(&self.words[index(at / WORD)], mask);
            at = stop;
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "words that are in memory have an index"
)]
fn index(word: u64) -> usize {
    word as usize
}
