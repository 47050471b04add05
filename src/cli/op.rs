//! `op`: copies, merges and verifies.

use serde_json::{Map, Value};

use super::args::{OpArgs, OpSteerArgs, OpVerb, UnitArgs};
use super::bitmap::raw;
use super::change::{self, Command};
use super::model::Status;
use super::output::{Out, table};
use super::place;
use super::size::{human, human_seconds};
use super::tree::{Tree, parse_status};
use super::verify;
use super::wait::{self, no_such_operation, seconds};
use crate::error::Result;

/// `op`.
pub(super) fn run(verb: &OpVerb, out: Out) -> Result<u8> {
    match verb {
        OpVerb::List(args) => list(args, out),
        OpVerb::Show(args) => show(args, out),
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

/// Fields in the order in which they are shown; others follow.
const FIELDS: [&str; 15] = [
    "id",
    "kind",
    "source",
    "target",
    "state",
    "done_bytes",
    "total_bytes",
    "copied_bytes",
    "skipped_bytes",
    "percent",
    "rate_bps",
    "eta_s",
    "rate_max",
    "started",
    "finished",
];

/// All that is known of one operation.
fn show(args: &OpArgs, out: Out) -> Result<u8> {
    let tree = place::tree(&args.unit)?;
    if out.json {
        out.value(&value(&tree, args.operation)?)?;
        return Ok(0);
    }
    let op = find(&tree, args.operation)?;
    let mut text = lines(&op);
    if op["kind"] == "verify" {
        text.push_str(&verify::found(&tree, args.operation)?.text);
    }
    out.text(&text)?;
    Ok(0)
}

/// All that is known of one operation, as JSON.
pub(super) fn value(tree: &Tree, number: u64) -> Result<Value> {
    let mut op = find(tree, number)?;
    if op["kind"] == "verify" {
        let found = verify::found(tree, number)?;
        op.insert("report".to_owned(), found.value(number));
    }
    Ok(Value::Object(op))
}

/// An operation as the server shows it, with the rate that it was given.
fn find(tree: &Tree, number: u64) -> Result<Map<String, Value>> {
    let all = raw(&tree.read("status.json")?, "operations");
    let mut all = all.as_array().into_iter().flatten();
    let op = all.find(|op| op["id"] == number).and_then(Value::as_object);
    let mut op = op
        .ok_or_else(|| no_such_operation(number, &tree.named()))?
        .clone();
    let rate = tree.read(&format!("operations/{number}/rate_max"))?;
    let rate = rate.trim_end();
    let rate = rate
        .parse::<u64>()
        .map_or_else(|_| rate.into(), Value::from);
    op.insert("rate_max".to_owned(), rate);
    Ok(op)
}

/// `key value` lines; what there is not is a dash. The counts of a verify stand in its report.
fn lines(op: &Map<String, Value>) -> String {
    let others = op.keys().map(String::as_str);
    let others = others.filter(|key| !FIELDS.contains(key) && !key.ends_with("_blocks"));
    let fields = FIELDS.into_iter().chain(others);
    let line = |key: &str| match op.get(key) {
        None => String::new(),
        Some(Value::Null) => format!("{key} -\n"),
        Some(Value::String(text)) => format!("{key} {text}\n"),
        Some(value) => format!("{key} {value}\n"),
    };
    fields.map(line).collect()
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
    fn an_operation_is_shown_with_every_field_also_those_of_newer_servers() {
        let op = serde_json::json!({ "newer": true, "state": "done", "id": 7, "eta_s": null,
            "repaired_blocks": 3, "rate_max": "max", "percent": 40.0 });
        let text = lines(op.as_object().expect("an object"));
        let expected = "id 7\nstate done\npercent 40.0\neta_s -\nrate_max max\nnewer true\n";
        assert_eq!(text, expected);
    }

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
