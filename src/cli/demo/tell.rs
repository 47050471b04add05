//! How the demonstration is told: numbered steps, the commands, and what was measured.
//!
//! With `--json` nothing is told but the closing numbers.

use super::measure::Table;
use super::site::{MEMBERS, Site};
use crate::cli::output::{Out, Tone};
use crate::cli::size::human;
use crate::error::Result;

/// The teller.
#[derive(Debug)]
pub(super) struct Tell {
    out: Out,
    step: u32,
}

impl Tell {
    /// Nothing is told yet.
    pub(super) fn new(out: Out) -> Self {
        Self { out, step: 0 }
    }

    /// One line as it is.
    pub(super) fn line(&self, line: &str) -> Result<()> {
        if self.out.json {
            return Ok(());
        }
        self.out.line(line)
    }

    /// What is going to happen, and where.
    pub(super) fn begin(&self, site: &Site, size: u64) -> Result<()> {
        let (members, size) = (MEMBERS.len(), human(size));
        let dir = site.dir.display();
        self.line(&format!(
            "A virtual unit of {size} on {members} members, in a directory of its own"
        ))?;
        self.command(&format!("cd {dir}"))?;
        self.command("export SHADOWSET_RUNTIME_DIR=$PWD/run")
    }

    /// The next step.
    pub(super) fn step(&mut self, title: &str) -> Result<()> {
        self.step += 1;
        let title = self.out.paint(Tone::Strong, title);
        self.line(&format!("\n{:>2}. {title}", self.step))
    }

    /// A command that is run, or the one that does what is done here.
    pub(super) fn command(&self, text: &str) -> Result<()> {
        self.line(&format!("    $ {text}"))
    }

    /// What came of it.
    pub(super) fn fact(&self, text: &str) -> Result<()> {
        self.line(&format!("      {text}"))
    }

    /// The closing table.
    pub(super) fn table(&self, table: &Table) -> Result<()> {
        let full = &table.full;
        let head = format!(
            "\nFull copy against minicopy, {} of data from m1 to m3",
            human(full.bytes)
        );
        self.line(&self.out.paint(Tone::Strong, &head))?;
        self.line("")?;
        for line in rows(table) {
            self.line(&line)?;
        }
        self.line("")?;
        for line in [
            "changed: part of the regions, chosen at random, in which one block was written",
            "time:    from the attach to the end of the copy, target flushed; a median of 3 where short",
            "manual:  Table 7-1, minicopy time in percent of full copy time on the disks of then",
        ] {
            self.line(line)?;
        }
        Ok(())
    }
}

fn rows(table: &Table) -> Vec<String> {
    let row = |cells: [&str; 6]| {
        let [changed, regions, bytes, time, share, manual] = cells;
        let row = format!(
            "  {changed:>9}  {regions:>13}  {bytes:>12}  {time:>9}  {share:>12}  {manual:>8}"
        );
        row.trim_end().to_owned()
    };
    let full = &table.full;
    let mut rows = vec![
        row([
            "changed",
            "regions",
            "bytes copied",
            "time",
            "of full copy",
            "manual",
        ]),
        row([
            "full copy",
            &format!("{0}/{0}", table.regions),
            &human(full.bytes),
            &time(full.seconds),
            "100.0 %",
            "",
        ]),
    ];
    for line in &table.lines {
        rows.push(row([
            &format!("{} %", line.percent),
            &format!("{}/{}", line.regions, table.regions),
            &human(line.copy.bytes),
            &time(line.copy.seconds),
            &format!("{:.1} %", table.share(&line.copy)),
            &format!("{:.1} %", line.manual),
        ]));
    }
    rows
}

/// Seconds for people.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// Bytes per second for people.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "three digits of a rate are shown; a float that is too large saturates"
)]
pub(super) fn rate(bytes: u64, seconds: f64) -> String {
    if seconds <= 0.0 {
        return "in no time".to_owned();
    }
    format!("{}/s", human((bytes as f64 / seconds) as u64))
}

#[cfg(test)]
mod tests {
    use super::super::measure::{Copy, Line};
    use super::*;

    #[test]
    fn the_table_stands_in_columns() {
        let copy = |bytes, seconds| Copy { bytes, seconds };
        let table = Table {
            regions: 16514,
            full: copy(1 << 30, 2.0),
            lines: vec![
                Line {
                    percent: 1,
                    regions: 165,
                    manual: 6.5,
                    copy: copy(165 * 65024, 0.02),
                },
                Line {
                    percent: 50,
                    regions: 8257,
                    manual: 71.9,
                    copy: copy(8257 * 65024, 1.125),
                },
            ],
        };
        let expected = [
            "    changed        regions  bytes copied       time  of full copy    manual",
            "  full copy    16514/16514      1.00 GiB     2.00 s       100.0 %",
            "        1 %      165/16514      10.2 MiB    20.0 ms         1.0 %     6.5 %",
            "       50 %     8257/16514       512 MiB     1.12 s        56.2 %    71.9 %",
        ];
        assert_eq!(rows(&table), expected);
    }

    #[test]
    fn rates_and_times_have_units() {
        assert_eq!(rate(1 << 30, 2.0), "512 MiB/s");
        assert_eq!(rate(1, 0.0), "in no time");
        assert_eq!(
            (time(0.0123), time(12.3)),
            ("12.3 ms".into(), "12.30 s".into())
        );
    }
}
