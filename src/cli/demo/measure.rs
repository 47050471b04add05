//! The closing measurement: a full copy, and minicopies of growing parts of the unit.
//!
//! Done on two members, so that three times the disk's traffic is not taken for the cost of a copy.
//! Commands go to the control file itself: the start of a program would be part of the time.

use std::fs::{File, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::pieces::Random;
use super::site::{UNIT, Undo};
use super::tell::{rate, time};
use super::{Demo, compare};
use crate::cli::model::Status;
use crate::cli::size::human;
use crate::cli::tree::Tree;
use crate::cli::wait::ended;
use crate::error::{Error, Result};
use crate::set::Code;

/// Percent of the regions, and what the manual's Table 7-1 has for them.
const MANUAL: [(u32, f64); 7] = [
    (1, 6.5),
    (5, 21.7),
    (10, 33.1),
    (25, 50.2),
    (50, 71.9),
    (75, 79.5),
    (100, 84.4),
];
/// The last row that is always measured.
const ALWAYS: u32 = 50;
/// The last row that is always measured three times: short copies vary most.
const THRICE: u32 = 10;
/// On a disk that copies the unit in less there is time to measure everything three times.
const VERY_FAST: f64 = 1.5;
/// A disk that copies the unit in less has time for all rows.
const FAST: f64 = 3.0;
/// No copy may take longer.
const COPY_MAX: Duration = Duration::from_secs(600);
/// How often the wait for a copy looks for signals.
const TICK: Duration = Duration::from_secs(1);

/// A copy that was measured.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Copy {
    /// Bytes that were written to the target.
    pub(super) bytes: u64,
    /// From the attach to the end.
    pub(super) seconds: f64,
}

/// A row of the table.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Line {
    /// Percent of the regions that were written.
    pub(super) percent: u32,
    /// How many they are.
    pub(super) regions: u64,
    /// Percent of the time of a full copy in the manual.
    pub(super) manual: f64,
    /// The minicopy.
    pub(super) copy: Copy,
}

/// What was measured.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Table {
    /// Regions of the unit.
    pub(super) regions: u64,
    /// The full copy.
    pub(super) full: Copy,
    /// The minicopies.
    pub(super) lines: Vec<Line>,
}

impl Table {
    /// A copy's time in percent of that of the full copy.
    pub(super) fn share(&self, copy: &Copy) -> f64 {
        100.0 * copy.seconds / self.full.seconds
    }

    /// The full copy in JSON.
    pub(super) fn full_value(&self) -> Value {
        json!({ "bytes": self.full.bytes, "seconds": self.full.seconds, "regions": self.regions })
    }

    /// The rows in JSON.
    pub(super) fn lines_value(&self) -> Value {
        let line = |line: &Line| {
            json!({ "percent": line.percent, "regions": line.regions,
                "bytes": line.copy.bytes, "seconds": line.copy.seconds,
                "percent_of_full": self.share(&line.copy), "manual_percent": line.manual })
        };
        self.lines.iter().map(line).collect()
    }
}

impl Demo {
    /// Measures the copies on the unit that the story has left.
    pub(super) fn measure(&mut self) -> Result<Table> {
        self.tell.step("Measure: full copy against minicopy")?;
        self.mount()?;
        let unit = self.site.unit();
        let open = OpenOptions::new().read(true).write(true).open(&unit);
        let unit = open.map_err(|e| Error::io(format!("demo: cannot open {UNIT}"), e))?;
        let tree = Tree::at(&self.site.mount());
        // Two members tell as much and spare the disk a third of the writes.
        tree.command("detach m2 policy=none")?;
        self.fill(&unit)?;
        let full = self.full_copy(&tree)?;
        let (bytes, seconds) = (human(full.bytes), time(full.seconds));
        self.tell
            .fact(&format!("full copy: {bytes} in {seconds}"))?;
        let regions = Regions::of(&tree.status()?, self.size)?;
        let mut table = Table {
            regions: regions.count,
            full,
            lines: Vec::new(),
        };
        for (percent, manual) in MANUAL {
            if percent > ALWAYS && full.seconds > FAST {
                break;
            }
            let short = percent <= THRICE || full.seconds < VERY_FAST;
            let mut runs = Vec::new();
            for run in 0..if short { 3 } else { 1 } {
                let chosen = regions.choose(percent, u64::from(percent) << 8 | run);
                runs.push(self.minicopy(&tree, &unit, &chosen, &regions)?);
            }
            table.lines.push(Line {
                percent,
                regions: regions.share(percent),
                manual,
                copy: median(runs),
            });
        }
        drop(unit);
        self.stop()?;
        self.compare(&["m1", "m3"])?;
        Ok(table)
    }

    /// Writes the whole unit, with data that nothing can make smaller.
    fn fill(&self, unit: &File) -> Result<()> {
        let mut buf = vec![0; 1 << 20];
        Random::new(self.size).fill(&mut buf);
        let begun = Instant::now();
        let mut at = 0;
        while at < self.size {
            self.shell.check()?;
            let len = (self.size - at).min(buf.len() as u64);
            for block in buf.chunks_mut(512) {
                block[..8].copy_from_slice(&at.to_le_bytes());
            }
            unit.write_all_at(&buf[..len as usize], at)
                .map_err(unwritten)?;
            at += len;
        }
        unit.sync_all().map_err(unwritten)?;
        let seconds = begun.elapsed().as_secs_f64();
        self.tell.fact(&format!(
            "filled: {} on m1 and m3 at {}, flushed",
            human(self.size),
            rate(self.size, seconds)
        ))
    }

    fn full_copy(&self, tree: &Tree) -> Result<Copy> {
        let mut runs = Vec::new();
        loop {
            tree.command("detach m3 policy=none")?;
            let run = self.copy(tree, "attach m3 policy=full")?;
            runs.push(run);
            if run.seconds >= VERY_FAST || runs.len() == 3 {
                return Ok(median(runs));
            }
        }
    }

    /// A minicopy of regions in each of which one block is written.
    fn minicopy(
        &self,
        tree: &Tree,
        unit: &File,
        chosen: &[u64],
        regions: &Regions,
    ) -> Result<Copy> {
        tree.command("detach m3 policy=minicopy")?;
        for region in chosen {
            self.shell.check()?;
            let mut block = [0; 512];
            Random::new(*region).fill(&mut block);
            unit.write_all_at(&block, region * regions.bytes)
                .map_err(unwritten)?;
        }
        unit.sync_all().map_err(unwritten)?;
        let marked = tree
            .status()?
            .bitmap("m3")
            .and_then(|bitmap| bitmap.set_bits);
        agree("regions marked", marked, chosen.len() as u64)?;
        let copy = self.copy(tree, "attach m3 policy=minicopy")?;
        let bytes = chosen.iter().map(|region| regions.len(*region)).sum();
        agree("bytes copied", Some(copy.bytes), bytes)?;
        Ok(copy)
    }

    /// Attaches m3 and waits for the end of the copy.
    fn copy(&self, tree: &Tree, command: &str) -> Result<Copy> {
        let before = tree.status()?.operations.iter().map(|op| op.id).max();
        let begun = Instant::now();
        tree.command(command)?;
        let end = begun + COPY_MAX;
        loop {
            let followed = tree.follow(Some(Instant::now() + TICK), |_, status| {
                let new = status.operations.iter().find(|op| Some(op.id) > before);
                match new {
                    Some(op) if ended(op, UNIT)? => Ok(ControlFlow::Break(op.copied_bytes)),
                    _ => Ok(ControlFlow::Continue(())),
                }
            });
            let seconds = begun.elapsed().as_secs_f64();
            match followed {
                Ok(bytes) => {
                    let bytes = bytes.ok_or_else(|| wrong("a copy without a number of bytes"))?;
                    return Ok(Copy { bytes, seconds });
                }
                Err(error) if error.code() == Code::TimedOut && Instant::now() < end => {
                    self.shell.check()?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Stops the unit; its members are closed when this returns.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.shown(&["stop".as_ref(), UNIT.as_ref()])?;
        self.site.undo.retain(|undo| *undo != Undo::Unit);
        Ok(())
    }

    /// Compares the images of these members.
    pub(super) fn compare(&self, members: &[&str]) -> Result<compare::Compared> {
        let images: Vec<_> = members.iter().map(|m| self.site.image(m)).collect();
        let begun = Instant::now();
        let compared = compare::images(&images, || self.shell.check())?;
        self.tell.fact(&format!(
            "{} are equal: {} compared byte for byte in {}, {} are holes in all",
            members.join(", "),
            human(compared.read),
            time(begun.elapsed().as_secs_f64()),
            human(compared.holes)
        ))?;
        Ok(compared)
    }
}

/// The regions of the unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Regions {
    count: u64,
    bytes: u64,
    size: u64,
}

impl Regions {
    fn of(status: &Status, size: u64) -> Result<Self> {
        let blocks = status
            .region_blocks
            .filter(|blocks| *blocks > 0)
            .ok_or_else(|| wrong("no size of regions"))?;
        let bytes = blocks * 512;
        let count = size.div_ceil(bytes);
        Ok(Self { count, bytes, size })
    }

    /// Bytes of a region; the last one may be shorter.
    fn len(&self, region: u64) -> u64 {
        self.bytes.min(self.size - region * self.bytes)
    }

    fn share(&self, percent: u32) -> u64 {
        (self.count * u64::from(percent) / 100).max(1)
    }

    /// So many percent of the regions, in order; each as likely as the others.
    fn choose(&self, percent: u32, seed: u64) -> Vec<u64> {
        let (mut random, mut wanted) = (Random::new(seed), self.share(percent));
        let mut chosen = Vec::new();
        for region in 0..self.count {
            if random.next() % (self.count - region) < wanted {
                chosen.push(region);
                wanted -= 1;
            }
        }
        chosen
    }
}

/// The one in the middle by its time.
fn median(mut runs: Vec<Copy>) -> Copy {
    assert!(!runs.is_empty(), "there is a run at least");
    runs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    runs[runs.len() / 2]
}

fn agree(what: &str, found: Option<u64>, expected: u64) -> Result<()> {
    if found == Some(expected) {
        return Ok(());
    }
    let found = found.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
    Err(wrong(&format!("{what}: {found}, not {expected}")))
}

fn wrong(what: &str) -> Error {
    Error::new(Code::Io, format!("demo: {what}"))
        .with_hint("this must not happen: please report it")
}

fn unwritten(cause: std::io::Error) -> Error {
    Error::io(format!("demo: cannot write {UNIT}"), cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_regions_are_chosen_and_all_are_likely() {
        let regions = Regions {
            count: 1000,
            bytes: 65024,
            size: 999 * 65024 + 512,
        };
        assert_eq!((regions.len(0), regions.len(999)), (65024, 512));
        for (percent, count) in [(1, 10), (50, 500), (100, 1000)] {
            let chosen = regions.choose(percent, 7);
            assert_eq!(chosen.len(), count);
            assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(chosen.iter().all(|region| *region < 1000));
        }
        let ends = |seed| {
            regions
                .choose(10, seed)
                .iter()
                .filter(|r| **r >= 500)
                .count()
        };
        let upper: usize = (0..100).map(ends).sum();
        assert!((4700..5300).contains(&upper), "{upper} of 10000");
        let few = Regions {
            count: 3,
            ..regions
        };
        assert_eq!(few.choose(1, 1).len(), 1);
    }

    #[test]
    fn a_median_is_in_the_middle() {
        let copies = |times: &[f64]| -> Vec<Copy> {
            let copy = |seconds: &f64| Copy {
                bytes: 1,
                seconds: *seconds,
            };
            times.iter().map(copy).collect()
        };
        assert_eq!(median(copies(&[3.0, 1.0, 2.0])), copies(&[2.0])[0]);
        assert_eq!(median(copies(&[5.0])), copies(&[5.0])[0]);
    }

    #[test]
    fn numbers_that_do_not_agree_are_an_error() {
        agree("bytes copied", Some(3), 3).expect("equal");
        let error = agree("bytes copied", Some(2), 3).expect_err("not equal");
        assert_eq!(error.to_string(), "demo: bytes copied: 2, not 3");
        agree("bytes copied", None, 3).expect_err("unknown");
    }
}
