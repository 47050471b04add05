//! `op`: copies, merges and verifies.

use super::args::{OpSteerArgs, OpVerb, UnitArgs};
use super::bitmap::raw;
use super::change::{self, Command};
use super::model::Status;
use super::output::{Out, table};
use super::place;
use super::size::{human, human_seconds};
use super::tree::parse_status;
use super::wait::{self, seconds};
use crate::error::Result;

/// `op`.
pub(super) fn run(verb: &OpVerb, out: Out) -> Result<u8> {
    match verb {
        OpVerb::List(args) => list(args, out),
        OpVerb::Pause(args) => command("pause", args, out),
        OpVerb::Resume(args) => command("resume", args, out),
        OpVerb::Cancel(args) => command("cancel", args, out),
        OpVerb::Wait(args) => wait::operation(args, out),
    }
}

fn command(verb: &str, args: &OpSteerArgs, out: Out) -> Result<u8> {
    let command = Command::new(verb).word(&args.op.operation.to_string())?;
    let command = command.flag("dry-run", args.dry_run);
    change::show(&place::tree(&args.op.unit)?.command(&command.text)?, out)
}

fn list(args: &UnitArgs, out: Out) -> Result<u8> {
    let text = place::tree(&args.unit)?.read("status.json")?;
    if out.json {
        out.value(&raw(&text, "operations"))?;
    } else {
        out.text(&rows(&parse_status(&text)?))?;
    }
    Ok(0)
}

fn rows(status: &Status) -> String {
    let head = [
        "OP", "WHAT", "STATE", "DONE", "OF", "PERCENT", "ETA", "STARTED", "FINISHED",
    ];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    for op in &status.operations {
        let eta = op.eta_s.filter(|_| op.is_moving());
        cells.push(vec![
            op.id.to_string(),
            op.title(),
            op.state.clone(),
            human(op.done_bytes),
            human(op.total_bytes),
            format!("{:.2}", op.percent()),
            or_dash(eta.map(|eta| human_seconds(seconds(eta)))),
            or_dash(op.started.clone()),
            or_dash(op.finished.clone()),
        ]);
    }
    table(&cells)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::tests::sample;

    #[test]
    fn operations_are_listed_with_what_is_left() {
        let text = rows(&sample());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let running =
            "7 minicopy m1 -> m3 running 40.0 MiB 100 MiB 40.00 3s 2026-11-25T13:20:02Z -";
        assert_eq!(words(lines[2]), words(running));
        assert!(lines[1].contains("cancelled") && lines[1].contains("50.00"));
    }
}
