//! `status` and `show`: a unit for people, and its changes as they come.

use std::fmt::Write as _;
use std::ops::ControlFlow;

use serde_json::Value;

use super::args::{StatusArgs, UnitArgs};
use super::model::{Bitmap, Member, Operation, Status};
use super::output::{Out, Tone, plain, table};
use super::place;
use super::size::{human, human_seconds};
use super::system;
use super::tree::{Tree, parse_status};
use super::wait::seconds;
use crate::error::{Error, Result};
use crate::server::Rehearsed;
use crate::set::Code;

/// Exit code when members are missing by fault or the unit has failed.
const EXIT_DEGRADED: u8 = 5;
/// Width of a progress bar in characters.
const BAR_WIDTH: usize = 26;

/// `show`: what the unit itself shows.
pub(super) fn show(args: &UnitArgs, out: Out) -> Result<u8> {
    let tree = place::tree(&args.unit)?;
    out.text(&tree.read(if out.json { "status.json" } else { "show" })?)?;
    Ok(0)
}

/// `status`.
pub(super) fn run(args: &StatusArgs, out: Out) -> Result<u8> {
    match &args.unit {
        Some(unit) if args.watch => watch(&place::tree(unit)?, out),
        Some(unit) => one(&place::tree(unit)?, out),
        None => all(out),
    }
}

fn one(tree: &Tree, out: Out) -> Result<u8> {
    let text = tree.read("status.json")?;
    let status = parse_status(&text)?;
    out.text(&if out.json { text } else { render(&status, out) })?;
    Ok(exit_code(&status))
}

/// Every mounted unit; one that cannot be read does not hide the others.
fn all(out: Out) -> Result<u8> {
    let mut worst = 0;
    let mut values = Vec::new();
    let units = system::running()?;
    for (i, unit) in units.iter().enumerate() {
        let text = Tree::of(unit).status_in_time();
        match text.and_then(|text| parse_status(&text).map(|status| (text, status))) {
            Ok((text, status)) => {
                worst = worst.max(exit_code(&status));
                if out.json {
                    values.push(serde_json::from_str::<Value>(&text).unwrap_or_default());
                } else {
                    let gap = if i == 0 { "" } else { "\n" };
                    out.text(&format!("{gap}{}", render(&status, out)))?;
                }
            }
            Err(error) => {
                worst = EXIT_DEGRADED;
                super::output::report(&error, false);
            }
        }
    }
    match (out.json, units.is_empty()) {
        (true, _) => out.value(&Value::Array(values))?,
        (false, true) => out.line("no unit is mounted")?,
        (false, false) => {}
    }
    Ok(worst)
}

fn exit_code(status: &Status) -> u8 {
    if status.is_degraded() {
        EXIT_DEGRADED
    } else {
        0
    }
}

/// Shows each change until the unit goes away: that end is a good one.
fn watch(tree: &Tree, out: Out) -> Result<u8> {
    let mut last = String::new();
    let followed: Result<()> = tree.follow(None, |snapshot, status| {
        if out.json {
            let value: Value = serde_json::from_str(&snapshot.text).unwrap_or_default();
            out.value(&value)?;
        } else if out.terminal {
            // From the top, then what is left of the picture before goes.
            out.text(&format!("\x1b[H\x1b[2J{}", render(status, out)))?;
        } else {
            let line = change_line(status);
            if line != last {
                out.line(&line)?;
                last = line;
            }
        }
        Ok(ControlFlow::Continue(()))
    });
    match followed {
        Err(error) if error.code() == Code::NotMounted => {
            if !out.json {
                out.line("the unit is not mounted any more")?;
            }
            Ok(0)
        }
        Err(error) => Err(error),
        Ok(()) => Err(Error::new(Code::Io, "the watch has ended by itself")),
    }
}

/// One line that differs exactly when something has changed that a reader wants to know.
fn change_line(status: &Status) -> String {
    let mut line = format!("{} {}", status.unit, status.state);
    for m in &status.members {
        let _ = write!(line, " {}={}", m.name, m.state);
    }
    for op in status.operations.iter().filter(|op| !op.has_ended()) {
        let _ = write!(
            line,
            "; op {} {} {} {:.0} %",
            op.id,
            op.title(),
            op.state,
            op.percent()
        );
    }
    line
}

/// The unit for people.
pub(super) fn render(status: &Status, out: Out) -> String {
    let mut text = String::new();
    let label = status
        .label
        .as_deref()
        .filter(|label| *label != status.unit);
    let label = label
        .map(|label| format!(" \"{label}\""))
        .unwrap_or_default();
    let _ = writeln!(
        text,
        "    unit: {}{label}, {} ({} blocks)",
        out.paint(Tone::Strong, &status.unit),
        human(status.size),
        status.size / 512
    );
    if let Some(uuid) = &status.uuid {
        let _ = writeln!(text, "     set: {uuid}");
    }
    let state = out.paint(tone(&status.state), &status.state);
    let _ = write!(text, "   state: {state}, {}", meaning(status));
    if let Some(generation) = status.generation {
        let _ = write!(text, " (generation {generation})");
    }
    text.push('\n');
    if let Some(until) = &status.stalled {
        let _ = writeln!(text, "  writes: stalled until {until} at most");
    }
    let meant = status.durability_reason.is_none();
    if meant && status.durability.as_deref() == Some("memory") {
        text.push_str(" bitmaps: in memory, they end with the mount\n");
    }
    for warning in of_bitmaps(status) {
        let _ = writeln!(text, "          {warning}");
    }
    for op in status.operations.iter().filter(|op| !op.has_ended()) {
        text.push_str(&operation_block(op, out));
    }
    text.push('\n');
    text.push_str(&members(status, out));
    let _ = writeln!(text, "\nerrors: {}", errors(status));
    text
}

fn operation_block(op: &Operation, out: Out) -> String {
    let what = if op.kind == "verify" {
        "  verify"
    } else {
        "    copy"
    };
    let mut text = format!("{what}: {}\n", operation_line(op));
    if out.terminal {
        let _ = writeln!(text, "          {}", bar(op.percent()));
    }
    if let Some(skipped) = op.skipped_bytes.filter(|skipped| *skipped > 0) {
        let _ = writeln!(text, "          {} need no copy", human(skipped));
    }
    text
}

/// An operation in one line.
pub(super) fn operation_line(op: &Operation) -> String {
    let mut line = format!("op {} {} {}", op.id, op.title(), op.state);
    let done = op.done_bytes;
    let _ = write!(
        line,
        ", {:.2} %, {} of {}",
        op.percent(),
        human(done),
        human(op.total_bytes)
    );
    if !op.is_moving() {
        return line;
    }
    if let Some(rate) = op.rate_bps.filter(|rate| *rate > 0.0) {
        let _ = write!(line, ", {}/s", human(seconds(rate)));
    }
    if let Some(eta) = op.eta_s {
        let _ = write!(line, ", eta {}", human_seconds(seconds(eta)));
    }
    line
}

fn bar(percent: f64) -> String {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 100"
    )]
    let done = (percent.clamp(0.0, 100.0) as usize) * BAR_WIDTH / 100;
    let head = if done < BAR_WIDTH { ">" } else { "" };
    let rest = BAR_WIDTH - done - head.len();
    format!("[{}{head}{}]", "=".repeat(done), "-".repeat(rest))
}

fn members(status: &Status, out: Out) -> String {
    let head = ["MEMBER", "STATE", "SIZE", "ERRORS", "BITMAP", "PATH"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for m in &status.members {
        let bitmap = m.bitmap.as_deref().and_then(|id| status.bitmap(id));
        let state = match m.state.as_str() {
            "detached" | "expelled" => match &m.since {
                Some(since) => format!("{} since {}", m.state, minute(since)),
                None => m.state.clone(),
            },
            _ => m.state.clone(),
        };
        rows.push(vec![
            m.name.clone(),
            out.paint(tone(&m.state), &state),
            m.size.map_or_else(|| "-".to_owned(), human),
            m.errors.unwrap_or(0).to_string(),
            bitmap.map_or_else(|| "-".to_owned(), bitmap_cell),
            plain(&m.path),
        ]);
    }
    table(&rows)
}

fn bitmap_cell(bitmap: &Bitmap) -> String {
    match bitmap.set_bytes {
        Some(bytes) => format!("{}, {} to copy", bitmap.state, human(bytes)),
        None => bitmap.state.clone(),
    }
}

/// The faults, in words.
fn errors(status: &Status) -> String {
    let fault = |m: &Member| {
        let reason = m.reason.as_deref().unwrap_or("the reason is not known");
        match (m.state.as_str(), m.errors.unwrap_or(0)) {
            (_, _) if m.answers == Some(false) => Some(format!("{} does not answer", m.name)),
            ("expelled" | "missing", _) => Some(format!("{} is {}: {reason}", m.name, m.state)),
            (_, 0) => None,
            (_, 1) => Some(format!("{} has had one error", m.name)),
            (_, n) => Some(format!("{} has had {n} errors", m.name)),
        }
    };
    let faults: Vec<_> = status.members.iter().filter_map(fault).collect();
    if faults.is_empty() {
        "none known".to_owned()
    } else {
        faults.join("; ")
    }
}

/// `2026-11-25T12:41:00Z` without its seconds.
fn minute(time: &str) -> &str {
    time.get(..16).unwrap_or(time)
}

/// How many members serve, and which do not.
fn census(status: &Status) -> String {
    let all = status.members.len();
    let sources = status.members.iter().filter(|m| m.state == "source");
    let verb = match sources.clone().count() {
        1 => "is a source",
        _ => "are sources",
    };
    let noun = if all == 1 { "member" } else { "members" };
    let mut text = format!("{} of {all} {noun} {verb}", sources.count());
    for m in status.members.iter().filter(|m| m.state != "source") {
        let _ = write!(text, ", {} is {}", m.name, m.state);
    }
    text
}

/// What an operator has to know of a unit that has just been mounted: one line for each member that
/// neither serves nor was detached on purpose.
pub(super) fn warnings(status: &Status) -> Vec<String> {
    let warning = |m: &Member| {
        let (name, reason) = (&m.name, m.reason.as_deref());
        let into = |op: &&Operation| op.target.as_ref() == Some(name) && !op.has_ended();
        let op = status.operations.iter().find(into);
        let op = op.map(|op| format!("op {} {}", op.id, op.title()));
        let why = reason.map(str::to_owned).or(op);
        let because = |what: String, why: Option<String>| match why {
            Some(why) => format!("{name} is {what}: {why}"),
            None => format!("{name} is {what}"),
        };
        match (m.state.as_str(), done_to(&m.state)) {
            ("source" | "detached", _) => None,
            (_, Some(done)) => Some(because(format!("being {done}"), why)),
            (state, None) => Some(because(
                state.to_owned(),
                Some(reason.unwrap_or("the reason is not known").to_owned()),
            )),
        }
    };
    let of_members = status.members.iter().filter_map(warning);
    of_members.chain(of_bitmaps(status)).collect()
}

/// What is done to a member in this state.
fn done_to(state: &str) -> Option<&'static str> {
    match state {
        "copy-target" => Some("copied"),
        "merging" => Some("merged"),
        _ => None,
    }
}

/// The same line for a member of a unit that is not mounted.
pub(super) fn would_be(member: &Rehearsed) -> String {
    let what = done_to(member.state).unwrap_or(member.state);
    format!("{} would be {what}: {}", member.name, member.reason)
}

fn of_bitmaps(status: &Status) -> impl Iterator<Item = String> {
    let lost = |why| format!("bitmaps of the last mount are lost: {why}");
    let homeless = |why| format!("a member that leaves gets no bitmap: {why}");
    let lost = status.bitmaps_lost.as_ref().map(lost);
    let homeless = status.durability_reason.as_ref().map(homeless);
    lost.into_iter().chain(homeless)
}

fn meaning(status: &Status) -> String {
    let text = match status.state.as_str() {
        "steady" => return census(status),
        "copying" => "a member is being brought up to date",
        "merging" => "the members are being made equal after an unclean stop",
        "reduced" => "a member was lost; the others serve",
        "mount-verify" => "a member does not answer; what is written to it waits",
        "read-only" => "writes are refused",
        "failed" => "no source member answers; requests end with an error",
        _ => "see shadowset(8)",
    };
    text.to_owned()
}

fn tone(state: &str) -> Tone {
    match state {
        "steady" | "source" => Tone::Good,
        "reduced" | "mount-verify" | "failed" | "expelled" | "missing" => Tone::Bad,
        _ => Tone::Busy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::tests::sample;

    const PLAIN: Out = Out {
        json: false,
        terminal: false,
        color: false,
    };

    #[test]
    fn the_sample_reads_like_this() {
        let expected = "    unit: dsa1 \"payroll\", 1.00 GiB (2097152 blocks)
     set: 3f0c7f6e-8a3d-4e0e-9d4b-4f0e8f3ac001
   state: copying, a member is being brought up to date (generation 118)
 bitmaps: in memory, they end with the mount
    copy: op 7 minicopy m1 -> m3 running, 40.00 %, 40.0 MiB of 100 MiB, 20.0 MiB/s, eta 3s
          924 MiB need no copy

MEMBER  STATE                            SIZE      ERRORS  BITMAP                    PATH
m1      source                           1.00 GiB  0       -                         /img/a.raw
m2      detached since 2026-11-25T12:41  2.00 GiB  0       active, 19.2 MiB to copy  /img/b.raw
m3      copy-target                      1.00 GiB  2       in-use, 62.0 MiB to copy  /img/c.raw

errors: m3 has had 2 errors
";
        assert_eq!(render(&sample(), PLAIN), expected);
    }

    #[test]
    fn colours_and_bars_are_for_terminals_that_want_them() {
        let terminal = Out {
            terminal: true,
            ..PLAIN
        };
        let plain = render(&sample(), terminal);
        assert!(plain.contains("[==========>---------------]") && !plain.contains('\x1b'));
        assert!(!render(&sample(), PLAIN).contains("==="));
        let color = Out {
            color: true,
            ..terminal
        };
        assert!(render(&sample(), color).contains("\x1b[33mcopying\x1b[0m"));
    }

    #[test]
    fn a_path_says_nothing_to_a_terminal() {
        let mut status = sample();
        status.members[0].path = "/img/\x1b[2Ja\nm9".to_owned();
        let text = render(&status, PLAIN);
        assert!(text.contains("/img/\\u{1b}[2Ja\\nm9\n"), "{text}");
    }

    #[test]
    fn a_bar_is_as_long_as_the_part_done() {
        assert_eq!(bar(0.0), format!("[>{}]", "-".repeat(25)));
        assert_eq!(
            bar(50.0),
            format!("[{}>{}]", "=".repeat(13), "-".repeat(12))
        );
        assert_eq!(bar(100.0), format!("[{}]", "=".repeat(26)));
    }

    #[test]
    fn a_lost_member_is_named_with_its_reason_and_the_exit_code_is_5() {
        let mut status = sample();
        assert_eq!(exit_code(&status), 0);
        status.state = "reduced".to_owned();
        status.members[2].state = "expelled".to_owned();
        status.members[2].reason = Some("write error at block 7".to_owned());
        assert_eq!(errors(&status), "m3 is expelled: write error at block 7");
        assert_eq!(exit_code(&status), 5);
        assert!(render(&status, PLAIN).contains("state: reduced, a member was lost"));
    }

    #[test]
    fn only_bitmaps_that_end_with_the_mount_are_worth_a_line() {
        assert!(render(&sample(), PLAIN).contains("bitmaps: in memory"));
        for durability in ["power", "crash"] {
            let mut status = sample();
            status.durability = Some(durability.to_owned());
            assert!(!render(&status, PLAIN).contains("bitmaps:"));
        }
    }

    #[test]
    fn a_steady_unit_says_who_serves() {
        let mut status = sample();
        status.state = "steady".to_owned();
        status.members[2].state = "detached".to_owned();
        let says = "state: steady, 1 of 3 members is a source, m2 is detached, m3 is detached (";
        assert!(render(&status, PLAIN).contains(says));
        for member in &mut status.members {
            member.state = "source".to_owned();
        }
        assert_eq!(census(&status), "3 of 3 members are sources");
    }

    #[test]
    fn a_mount_warns_of_each_member_that_is_not_there_against_the_will() {
        let mut status = sample();
        let copied = "m3 is being copied: op 7 minicopy m1 -> m3";
        assert_eq!(warnings(&status), [copied], "m2 was detached on purpose");
        status.members[1].state = "missing".to_owned();
        status.members[1].reason = Some("No such file or directory".to_owned());
        status.members[2].state = "expelled".to_owned();
        let expected = [
            "m2 is missing: No such file or directory",
            "m3 is expelled: the reason is not known",
        ];
        assert_eq!(warnings(&status), expected);
        status.members[1].state = "merging".to_owned();
        status.members[1].reason = None;
        assert_eq!(warnings(&status)[0], "m2 is being merged");
    }

    #[test]
    fn an_operation_that_is_held_has_no_rate() {
        let mut status = sample();
        status.operations[1].state = "paused".to_owned();
        let expected = "op 7 minicopy m1 -> m3 paused, 40.00 %, 40.0 MiB of 100 MiB";
        assert_eq!(operation_line(&status.operations[1]), expected);
    }

    #[test]
    fn a_detached_member_is_no_error() {
        let mut status = sample();
        status.members[2].errors = Some(0);
        assert_eq!(errors(&status), "none known");
    }

    #[test]
    fn a_change_line_has_whole_percents() {
        let mut status = sample();
        let line = change_line(&status);
        assert_eq!(
            line,
            "dsa1 copying m1=source m2=detached m3=copy-target; \
             op 7 minicopy m1 -> m3 running 40 %"
        );
        status.operations[1].done_bytes += 1;
        assert_eq!(change_line(&status), line);
    }
}
