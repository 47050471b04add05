//! What has been done and judged, as a table.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use crate::ground::KINDS;

/// Counts by what was counted and by file system.
pub(crate) struct Tally {
    since: Instant,
    seed: u64,
    counts: BTreeMap<(Part, &'static str), [u64; KINDS.len()]>,
}

/// Parts of the table, in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Part {
    /// Bouts of loads that ended well.
    Bouts,
    /// What the conductor did.
    Done,
    /// What was judged, and found good.
    Judged,
}

impl Tally {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            since: Instant::now(),
            seed,
            counts: BTreeMap::new(),
        }
    }

    pub(crate) fn minutes(&self) -> f64 {
        self.since.elapsed().as_secs_f64() / 60.0
    }

    pub(crate) fn add(&mut self, part: Part, what: &'static str, fs: &str, count: u64) {
        let column = KINDS.iter().position(|kind| kind.name == fs);
        let row = self.counts.entry((part, what)).or_default();
        row[column.expect("a file system of ours")] += count;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {:.1} minutes", self.seed, self.minutes())?;
        let mut last = None;
        for ((part, what), row) in &self.counts {
            if last.replace(part) != Some(part) {
                write!(f, "{:<28}", format!("{part:?}").to_lowercase())?;
                KINDS
                    .iter()
                    .try_for_each(|kind| write!(f, "{:>8}", kind.name))?;
                writeln!(f)?;
            }
            write!(f, "  {what:<26}")?;
            row.iter().try_for_each(|count| write!(f, "{count:>8}"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}
