//! `wait` and `op wait`: return when the unit is in a given state, woken by its changes.
//!
//! Nothing here looks again after a while: the control file says when there is something to see.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::str::FromStr;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::args::{OpWaitArgs, WaitArgs};
use super::model::{Operation, Status};
use super::output::{Out, warn};
use super::place;
use super::size::human_seconds;
use super::status::operation_line;
use super::tree::Tree;
use super::verify;
use super::{log, op};
use crate::error::{Error, Result};
use crate::set::{Code, MemberState};

/// What can be waited for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Goal {
    /// The unit is steady: no copy, no merge, no member lost.
    Steady,
    /// An operation has ended.
    Operation(u64),
    /// A member is in a state.
    Member(String, String),
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "steady" {
            return Ok(Self::Steady);
        }
        if let Some(number) = text.strip_prefix("op=") {
            let number = number.parse();
            return number
                .map(Self::Operation)
                .map_err(|_| format!("`{text}` has no number"));
        }
        let member = text
            .strip_prefix("member=")
            .and_then(|rest| rest.rsplit_once(':'));
        match member {
            Some((name, state)) if MemberState::WORDS.contains(&state) => {
                Ok(Self::Member(name.to_owned(), state.to_owned()))
            }
            Some((_, state)) => Err(format!(
                "`{state}` is not one of {}",
                MemberState::WORDS.join(", ")
            )),
            None => Err(format!("`{text}` is not steady, op=N or member=NAME:STATE")),
        }
    }
}

impl Goal {
    /// Whether the state is the one; an error when it can no longer come.
    fn reached(&self, status: &Status) -> Result<bool> {
        match self {
            Self::Steady => Ok(status.is_steady()),
            Self::Operation(id) => match status.operation(*id) {
                Some(op) => ended(op, &status.unit),
                None => Err(no_such_operation(*id, &status.unit)),
            },
            Self::Member(name, state) => match status.member(name) {
                Some(member) => Ok(member.state == *state),
                None => Err(
                    Error::new(Code::NoSuchMember, format!("no member is named {name}")).with_hint(
                        format!("`shadowset status {}` shows the members", status.unit),
                    ),
                ),
            },
        }
    }

    /// For whom it waits, when nothing runs that would bring the goal about.
    fn stuck(&self, status: &Status) -> Option<String> {
        let brings = |op: &Operation| !op.has_ended() && op.kind != "verify";
        let running = status.operations.iter().any(brings);
        if *self != Self::Steady || running || status.is_steady() {
            return None;
        }
        let lost = status.members.iter();
        let lost = lost.filter(|m| matches!(m.state.as_str(), "expelled" | "missing"));
        let lost: Vec<_> = lost.map(|m| format!("{} is {}", m.name, m.state)).collect();
        let says = format!("{} is not steady: {}", status.unit, lost.join(", "));
        (!lost.is_empty()).then_some(says)
    }

    fn operation<'a>(&self, status: &'a Status) -> Option<&'a Operation> {
        match self {
            Self::Operation(id) => status.operation(*id),
            Self::Member(name, _) => status
                .operations
                .iter()
                .find(|op| !op.has_ended() && op.target.as_ref() == Some(name)),
            Self::Steady => status.operations.iter().find(|op| !op.has_ended()),
        }
    }
}

/// Whether an operation is done; an error when it has ended otherwise.
pub(super) fn ended(op: &Operation, unit: &str) -> Result<bool> {
    match op.state.as_str() {
        "done" => Ok(true),
        "failed" => {
            let says = format!("operation {} ({}) has failed", op.id, op.title());
            let hint = match op.kind.as_str() {
                "verify" => format!("`shadowset op show {unit} {}` says why", op.id),
                _ => log::SAYS_WHY.to_owned(),
            };
            Err(Error::new(Code::Io, says).with_hint(hint))
        }
        "cancelled" => {
            let says = format!("operation {} ({}) was cancelled", op.id, op.title());
            let hint = match op.kind.as_str() {
                "verify" => "begin another one: it would start at its first block",
                _ => "attach the member to go on",
            };
            Err(Error::new(Code::StateChanged, says).with_hint(hint))
        }
        _ => Ok(false),
    }
}

/// No operation has this number.
pub(super) fn no_such_operation(id: u64, unit: &str) -> Error {
    Error::new(Code::NoSuchOperation, format!("there is no operation {id}")).with_hint(format!(
        "`shadowset op list {unit}` lists the running and the last finished ones"
    ))
}

/// `wait`.
pub(super) fn run(args: &WaitArgs, out: Out) -> Result<u8> {
    let tree = place::tree(&args.unit)?;
    wait_for(&tree, &args.goal, args.timeout, out)
}

/// `op wait`.
pub(super) fn operation(args: &OpWaitArgs, out: Out) -> Result<u8> {
    let tree = place::tree(&args.op.unit)?;
    wait_for(
        &tree,
        &Goal::Operation(args.op.operation),
        args.timeout,
        out,
    )
}

fn wait_for(tree: &Tree, goal: &Goal, timeout: Option<Duration>, out: Out) -> Result<u8> {
    let mut progress = Progress::new(out);
    // A time beyond the clock's end is no limit.
    let deadline = timeout.and_then(|time| Instant::now().checked_add(time));
    let mut warned = false;
    let (status, op) = tree.follow(deadline, |_, status| {
        if let Some(says) = goal.stuck(status).filter(|_| !warned) {
            warned = true;
            warn(&format!(
                "{says}; the wait goes on until who is away is brought back"
            ));
        }
        let op = goal.operation(status);
        op.map_or(Ok(()), |op| progress.show(op))?;
        Ok(match goal.reached(status)? {
            true => ControlFlow::Break((status.clone(), op.cloned())),
            false => ControlFlow::Continue(()),
        })
    })?;
    progress.end();
    let (unit, state) = (&status.unit, &status.state);
    let says = match (goal, op) {
        (Goal::Operation(_), Some(op)) => return told(tree, &op, unit, out),
        (Goal::Member(name, state), _) => format!("{name} is {state}"),
        _ => format!("{unit} is {state}"),
    };
    out.either(&json!({ "ok": true, "state": state }), &says)?;
    Ok(0)
}

/// Tells of an operation that was waited for, and of a verify what it has found: its end is not all.
fn told(tree: &Tree, op: &Operation, unit: &str, out: Out) -> Result<u8> {
    let number = op.id;
    if out.json {
        out.value(&op::value(tree, number)?)?;
    }
    if op.kind != "verify" {
        // Its last line was its end.
        return Ok(0);
    }
    let found = verify::found(tree, number)?;
    if !out.json {
        out.line(&format!("op {number} verify: {}", found.verdict()))?;
        if !found.is_good() {
            out.line(&format!("`shadowset op show {unit} {number}` shows which"))?;
        }
    }
    Ok(found.exit_code())
}

/// Shows how an operation goes on: a bar on a terminal, else one line per change.
#[derive(Debug)]
pub(super) struct Progress {
    out: Out,
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    /// Nothing is shown until there is something to show.
    pub(super) fn new(out: Out) -> Self {
        let terminal = std::io::stderr().is_terminal() && !out.json;
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let template = "{prefix} [{bar:28}] {percent:>3} % {bytes}/{total_bytes} {msg}";
            bar.with_style(
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("=> "),
            )
        });
        Self {
            out,
            bar,
            last: String::new(),
        }
    }

    /// Shows the operation as it is now.
    pub(super) fn show(&mut self, op: &Operation) -> Result<()> {
        if let Some(bar) = &self.bar {
            bar.set_prefix(format!("op {} {}", op.id, op.title()));
            bar.set_length(op.total_bytes);
            bar.set_message(match op.eta_s {
                Some(eta) if op.is_moving() => format!("eta {}", human_seconds(seconds(eta))),
                _ => op.state.clone(),
            });
            bar.set_position(op.done_bytes.min(op.total_bytes));
            return Ok(());
        }
        // Two lines that differ in the tenth of a percent only are one change to a reader.
        let line = format!(
            "op {} {} {} {:.0} %",
            op.id,
            op.title(),
            op.state,
            op.percent()
        );
        if self.out.json || line == self.last {
            return Ok(());
        }
        self.last = line;
        self.out.line(&operation_line(op))
    }

    /// Leaves the bar as it stands.
    pub(super) fn end(&self) {
        if let Some(bar) = self.bar.as_ref().filter(|bar| bar.length() != Some(0)) {
            bar.abandon();
        }
    }
}

/// A number of seconds without its fraction, rounded up; what is no time is none.
pub(super) fn seconds(value: f64) -> u64 {
    Duration::try_from_secs_f64(value.ceil()).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::tests::sample;

    #[test]
    fn who_will_not_come_by_itself_is_named() {
        let mut status = sample();
        status.state = "reduced".into();
        for op in &mut status.operations {
            op.state = "done".into();
        }
        for member in &mut status.members {
            member.state = "source".into();
        }
        assert_eq!(Goal::Steady.stuck(&status), None, "nobody is lost");
        let (unit, name) = (status.unit.clone(), status.members[0].name.clone());
        status.members[0].state = "expelled".into();
        let says = format!("{unit} is not steady: {name} is expelled");
        assert_eq!(Goal::Steady.stuck(&status), Some(says));
        assert_eq!(Goal::Operation(1).stuck(&status), None);
        status.operations[0].state = "running".into();
        assert_eq!(Goal::Steady.stuck(&status), None, "something runs");
    }

    #[test]
    fn goals_are_read_and_others_are_refused() {
        let table = [
            ("steady", Ok(Goal::Steady)),
            ("op=12", Ok(Goal::Operation(12))),
            (
                "member=m3:source",
                Ok(Goal::Member("m3".into(), "source".into())),
            ),
            ("op=", Err("`op=` has no number")),
            (
                "member=m3:gone",
                Err("`gone` is not one of source, copy-target"),
            ),
            ("member=m3", Err("`member=m3` is not steady")),
            (
                "idle",
                Err("`idle` is not steady, op=N or member=NAME:STATE"),
            ),
        ];
        for (text, expected) in table {
            match (text.parse::<Goal>(), expected) {
                (Ok(goal), Ok(expected)) => assert_eq!(goal, expected),
                (Err(says), Err(expected)) => assert!(says.starts_with(expected), "{says}"),
                (got, expected) => panic!("{text}: {got:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn a_goal_is_reached_when_the_state_is_the_one() {
        let mut status = sample();
        let member = |state: &str| Goal::Member("m3".into(), state.into());
        assert!(!Goal::Steady.reached(&status).unwrap());
        assert!(member("copy-target").reached(&status).unwrap());
        assert!(!member("source").reached(&status).unwrap());
        assert!(!Goal::Operation(7).reached(&status).unwrap());
        status.state = "steady".to_owned();
        status.operations[1].state = "done".to_owned();
        assert!(Goal::Steady.reached(&status).unwrap());
        assert!(Goal::Operation(7).reached(&status).unwrap());
        for op in &mut status.operations {
            op.state = "done".to_owned();
        }
        // The word of a unit that takes no writes hides what else holds.
        status.state = "read-only".to_owned();
        for member in &mut status.members {
            member.state = "source".to_owned();
        }
        assert!(Goal::Steady.reached(&status).unwrap());
        status.members[0].state = "expelled".to_owned();
        assert!(!Goal::Steady.reached(&status).unwrap());
        assert!(Goal::Steady.stuck(&status).is_some());
        status.members[0].state = "source".to_owned();
        status.operations[1].state = "running".to_owned();
        assert!(!Goal::Steady.reached(&status).unwrap());
    }

    #[test]
    fn what_cannot_come_any_more_is_an_error_with_its_exit_code() {
        let mut status = sample();
        let code = |goal: Goal, status: &Status| goal.reached(status).unwrap_err().exit_code();
        assert_eq!(code(Goal::Operation(99), &status), 3);
        assert_eq!(code(Goal::Member("m9".into(), "source".into()), &status), 3);
        assert_eq!(code(Goal::Operation(6), &status), 4, "cancelled");
        status.operations[1].state = "failed".to_owned();
        assert_eq!(code(Goal::Operation(7), &status), 1, "failed");
    }

    #[test]
    fn times_to_go_are_rounded_up() {
        let table = [
            (0.0, 0),
            (0.2, 1),
            (3.0, 3),
            (-1.0, 0),
            (f64::NAN, 0),
            (f64::INFINITY, 0),
        ];
        for (value, expected) in table {
            assert_eq!(seconds(value), expected, "{value}");
        }
    }
}
