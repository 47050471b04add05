//! `verify`: has a unit compare its source members, and shows what the comparison has found.

use std::ops::ControlFlow;

use clap::Args as ClapArgs;
use serde_json::{Map, Value, json};

use super::change::{Command, show};
use super::output::Out;
use super::place;
use super::tree::{Answer, Tree};
use super::wait::{Progress, ended};
use crate::error::{Error, Result};
use crate::set::Code;

/// Exit code of a verify behind which members still differ.
const EXIT_DIFFERS: u8 = 1;

/// `verify`.
#[derive(ClapArgs, Debug)]
#[command(
    after_help = "Exit codes with --wait: 0 nothing differs, or all of it was repaired, 1 something does, \
    4 it was cancelled"
)]
pub(super) struct VerifyArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    unit: String,
    /// First and last block of 512 bytes; the whole unit without it.
    #[arg(long, value_name = "FIRST-LAST")]
    range: Option<String>,
    /// Write what more than half of the members hold into the others.
    #[arg(long)]
    repair: bool,
    /// Take the bytes of this member for right, whatever the others hold.
    #[arg(long, value_name = "MEMBER", requires = "repair")]
    source: Option<String>,
    /// Return when it has ended, and show its report.
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// Say what would be read and begin nothing.
    #[arg(long, short = 'n')]
    dry_run: bool,
}

/// `verify`.
pub(super) fn run(args: &VerifyArgs, out: Out) -> Result<u8> {
    let tree = place::tree(&args.unit)?;
    let command = Command::new("verify")
        .option("range", args.range.as_deref())?
        .flag("repair", args.repair)
        .option("source", args.source.as_deref())?
        .flag("dry-run", args.dry_run);
    let answer = tree.command(&command.text)?;
    if !args.wait {
        return show(&answer, out);
    }
    if !out.json {
        show(&answer, out)?;
    }
    let op = operation(&answer)?;
    let ended = wait(&tree, op, out);
    let found = found(&tree, op)?;
    if ended.is_ok() {
        out.either(&found.value(op), found.text.trim_end())?;
    } else if !out.json {
        out.text(&found.text)?;
    }
    ended.map(|()| found.exit_code())
}

/// What a verify has found up to now.
#[derive(Debug)]
pub(super) struct Found {
    /// The report as the server writes it.
    pub(super) text: String,
    report: Report,
}

/// Reads the report of a verify.
pub(super) fn found(tree: &Tree, op: u64) -> Result<Found> {
    let text = tree.read(&format!("operations/{op}/report"))?;
    let report = Report::parse(&text);
    Ok(Found { text, report })
}

impl Found {
    /// The report as a value.
    pub(super) fn value(&self, op: u64) -> Value {
        self.report.value(op)
    }

    /// Its first line: what differs, in words.
    pub(super) fn verdict(&self) -> &str {
        let first = self.text.lines().next().unwrap_or_default();
        first.strip_prefix("verdict ").unwrap_or(first)
    }

    /// Whether the members are equal now, as far as it has looked.
    pub(super) fn is_good(&self) -> bool {
        self.report.is_good()
    }

    /// 0, or 1 when members differ.
    pub(super) fn exit_code(&self) -> u8 {
        match self.is_good() {
            true => 0,
            false => EXIT_DIFFERS,
        }
    }
}

fn operation(answer: &Answer) -> Result<u64> {
    answer.number("operation").ok_or_else(|| {
        let says = format!("the answer names no operation: {}", answer.sentence);
        Error::new(Code::Io, says)
    })
}

/// Waits for the end of the verify.
fn wait(tree: &Tree, number: u64, out: Out) -> Result<()> {
    let mut progress = Progress::new(out);
    let outcome = tree.follow(None, |_, status| {
        let Some(op) = status.operation(number) else {
            let says = format!("operation {number} is forgotten");
            let hint = format!("`shadowset op list {}` lists the operations", status.unit);
            return Err(Error::new(Code::NoSuchOperation, says).with_hint(hint));
        };
        progress.show(op)?;
        Ok(match ended(op, &status.unit)? {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    });
    progress.end();
    outcome
}

/// The report of a verify, taken apart.
#[derive(Debug, Default)]
struct Report {
    values: Map<String, Value>,
    runs: Vec<Value>,
}

impl Report {
    fn parse(text: &str) -> Self {
        let mut report = Self::default();
        for line in text.lines() {
            match line.split_once(' ') {
                Some((what @ ("differs" | "unreadable"), rest)) => {
                    report.runs.push(line_value(what, rest));
                }
                Some(("...", rest)) => {
                    let left_out = rest.split(' ').find_map(|word| word.parse::<u64>().ok());
                    report
                        .values
                        .insert("blocks_left_out".to_owned(), left_out.into());
                }
                Some((key, value)) => {
                    let value = match (value, value.parse::<u64>()) {
                        ("-", _) => Value::Null,
                        (_, Ok(number)) => number.into(),
                        (text, Err(_)) => text.into(),
                    };
                    report.values.insert(key.to_owned(), value);
                }
                None => {}
            }
        }
        report
    }

    fn count(&self, key: &str) -> u64 {
        self.values.get(key).and_then(Value::as_u64).unwrap_or(0)
    }

    /// Whether the members are equal now, as far as it has looked.
    fn is_good(&self) -> bool {
        let found = self.count("differing_blocks") + self.count("unreadable_blocks");
        found == self.count("repaired_blocks")
    }

    fn value(&self, op: u64) -> Value {
        let mut map = Map::new();
        map.insert("ok".to_owned(), self.is_good().into());
        map.insert("operation".to_owned(), op.into());
        map.extend(self.values.clone());
        map.insert("runs".to_owned(), self.runs.clone().into());
        Value::Object(map)
    }
}

/// One run of blocks: `8-9 odd=m3 fate=left m1=0a0b0c0d ...`.
fn line_value(what: &str, rest: &str) -> Value {
    let mut words = rest.split(' ');
    let blocks = words.next().and_then(|blocks| blocks.split_once('-'));
    let number = |text: &str| text.parse::<u64>().ok();
    let (first, last) = blocks.map_or((None, None), |(a, b)| (number(a), number(b)));
    let (mut odd, mut fate, mut digests) = (Value::Null, Value::Null, Map::new());
    for (place, (key, value)) in words.filter_map(|word| word.split_once('=')).enumerate() {
        match (place, key) {
            (0, _) if value == "unknown" => {}
            (0, _) => odd = value.split(',').collect(),
            (1, _) => fate = value.into(),
            (_, name) => {
                digests.insert(name.to_owned(), value.into());
            }
        }
    }
    json!({ "what": what, "first": first, "last": last, "odd": odd, "fate": fate, "digests": digests })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "verdict 3 blocks differ\nblocks 0-99\ncompared_bytes 51200\ndiffering_blocks 3\n\
        unreadable_blocks 0\nrepaired_blocks 1\ndigest fnv1a64\nreason -\n\
        differs 8-8 odd=m3 fate=repaired m1=0a0b0c0d m2=0a0b0c0d m3=00000001\n\
        differs 9-10 odd=unknown fate=left odd=00000001 m2=00000002\n... and 7 more blocks\n";

    #[test]
    fn a_report_becomes_a_value() {
        let value = Report::parse(TEXT).value(7);
        assert_eq!(
            (&value["ok"], &value["operation"]),
            (&json!(false), &json!(7))
        );
        assert_eq!(
            (&value["reason"], &value["blocks_left_out"]),
            (&Value::Null, &json!(7))
        );
        let one = &value["runs"][0];
        assert_eq!(
            (&one["odd"], &one["fate"]),
            (&json!(["m3"]), &json!("repaired"))
        );
        assert_eq!(one["digests"]["m3"], "00000001");
        // A member may have any name.
        let two = &value["runs"][1];
        assert_eq!((&two["odd"], &two["last"]), (&Value::Null, &json!(10)));
        assert_eq!(two["digests"]["odd"], "00000001");
    }

    #[test]
    fn what_was_repaired_is_good() {
        let good = TEXT.replace("repaired_blocks 1", "repaired_blocks 3");
        assert!(Report::parse(&good).is_good());
        assert!(!Report::parse(TEXT).is_good());
    }
}
