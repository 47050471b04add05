//! Completions: what may stand at the end of a line, for the scripts of the shells.
//!
//! Words and options come from the declaration of the arguments, names from the units that are
//! mounted or configured. Nothing is changed, and what cannot be asked is left out: a completion
//! never fails.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Args as ClapArgs, Command, CommandFactory};
use clap_complete::Shell;

use super::args::Args;
use super::model::{Operation, Status};
use super::output::Out;
use super::{place, system};
use crate::error::Result;
use crate::server::params::{Kind, Param};
use crate::set::MemberState;

/// The line has a path here.
const FILES: &str = ":files";
/// The line has a directory here.
const DIRS: &str = ":dirs";

/// `complete`: between the scripts of the shells and the program only.
#[derive(ClapArgs, Debug)]
pub(super) struct CompleteArgs {
    /// The words behind the name of the program; the last one is to be completed and may be empty.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// The script of a shell that asks the program itself; none for shells that have no such script.
pub(super) fn script(shell: Shell) -> Option<&'static str> {
    match shell {
        Shell::Bash => Some(include_str!("complete/completions.bash")),
        Shell::Zsh => Some(include_str!("complete/completions.zsh")),
        Shell::Fish => Some(include_str!("complete/completions.fish")),
        _ => None,
    }
}

/// `complete`: one word on each line, behind a tab what it means.
pub(super) fn run(args: &CompleteArgs, out: Out) -> Result<u8> {
    let mut text = String::new();
    for (word, meaning) in candidates(&args.words, &Live) {
        let _ = match meaning.is_empty() {
            true => writeln!(text, "{word}"),
            false => writeln!(text, "{word}\t{meaning}"),
        };
    }
    out.text(&text)?;
    Ok(0)
}

/// A word and what it means.
type Candidate = (String, String);

/// What the names of a line stand for.
trait Names {
    /// The mounted units.
    fn mounted(&self) -> Vec<String>;
    /// The configured units.
    fn configured(&self) -> Vec<String>;
    /// The state of a unit.
    fn status(&self, unit: &str) -> Option<Status>;
}

/// Those of this node.
struct Live;

impl Names for Live {
    fn mounted(&self) -> Vec<String> {
        let units = system::running().unwrap_or_default();
        units.into_iter().map(|unit| unit.unit).collect()
    }

    fn configured(&self) -> Vec<String> {
        let all = place::configured().into_iter();
        all.filter_map(|(_, config)| Some(config.ok()?.setup.unit))
            .collect()
    }

    fn status(&self, unit: &str) -> Option<Status> {
        place::tree(unit).and_then(|tree| tree.status()).ok()
    }
}

/// A line, read as far as it goes.
#[derive(Default)]
struct Line {
    /// The verb, such as `op pause`.
    verb: Vec<String>,
    /// Its words that are no options.
    places: Vec<String>,
    /// Only places follow.
    is_closed: bool,
}

impl Line {
    /// The unit that the line names.
    fn unit(&self) -> &str {
        self.places.first().map_or("", String::as_str)
    }

    fn verb(&self) -> String {
        self.verb.join(" ")
    }
}

/// What may stand at the end of the line.
fn candidates(words: &[String], names: &dyn Names) -> Vec<Candidate> {
    let Some((last, before)) = words.split_last() else {
        return Vec::new();
    };
    let mut root = Args::command();
    root.build();
    let mut command = &root;
    let mut line = Line::default();
    let mut wants: Option<&Arg> = None;
    for word in before {
        if wants.take().is_some() {
            continue;
        }
        match word.as_str() {
            "--" => line.is_closed = true,
            option if option.starts_with('-') && !line.is_closed => {
                wants = option_of(command, option).filter(|_| !option.contains('='));
            }
            place => match command.find_subcommand(place) {
                Some(next) => {
                    line.verb.push(place.to_owned());
                    command = next;
                }
                None => line.places.push(place.to_owned()),
            },
        }
    }
    let found = at_end(command, wants, &line, last, names);
    let fits = |(word, _): &Candidate| word.starts_with(last.as_str()) || word.starts_with(':');
    found.into_iter().filter(fits).collect()
}

fn at_end(
    command: &Command,
    wants: Option<&Arg>,
    line: &Line,
    last: &str,
    names: &dyn Names,
) -> Vec<Candidate> {
    if let Some(arg) = wants {
        return values(arg, line, names);
    }
    if let Some((option, _)) = last.split_once('=').filter(|_| last.starts_with("--")) {
        let values = option_of(command, option).map(|arg| values(arg, line, names));
        let values = values.unwrap_or_default().into_iter();
        return values
            .map(|(value, meaning)| match value.starts_with(':') {
                true => (value, meaning),
                false => (format!("{option}={value}"), meaning),
            })
            .collect();
    }
    if last.starts_with('-') && !line.is_closed {
        return options(command);
    }
    if command.has_subcommands() {
        // A word that is no verb leads nowhere.
        return match line.places.is_empty() {
            true => verbs(command),
            false => Vec::new(),
        };
    }
    let place = command.get_positionals().nth(line.places.len());
    place.map_or_else(Vec::new, |arg| values(arg, line, names))
}

/// The option of a word such as `--policy`, `--policy=none` or `-o`, when it takes a value.
fn option_of<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let name = word.split('=').next().unwrap_or(word);
    let is_it = |arg: &&Arg| {
        let long = arg.get_long().map(|long| format!("--{long}"));
        let short = arg.get_short().map(|short| format!("-{short}"));
        [long, short].into_iter().flatten().any(|own| own == name)
    };
    let found = command.get_arguments().find(is_it);
    found.filter(|arg| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append))
}

fn options(command: &Command) -> Vec<Candidate> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let named = shown.filter_map(|arg| {
        let help = arg.get_help().map(ToString::to_string);
        Some((format!("--{}", arg.get_long()?), first(help)))
    });
    named.collect()
}

fn verbs(command: &Command) -> Vec<Candidate> {
    let is_shown = |verb: &&Command| !verb.is_hide_set() && verb.get_name() != "help";
    let named = command.get_subcommands().filter(is_shown).map(|verb| {
        let about = verb.get_about().map(ToString::to_string);
        (verb.get_name().to_owned(), first(about))
    });
    named.collect()
}

fn first(text: Option<String>) -> String {
    let text = text.unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

fn plain(words: impl IntoIterator<Item = impl Into<String>>) -> Vec<Candidate> {
    let plain = words.into_iter().map(|word| (word.into(), String::new()));
    plain.collect()
}

/// What may be the value of an argument.
fn values(arg: &Arg, line: &Line, names: &dyn Names) -> Vec<Candidate> {
    let (verb, unit) = (line.verb(), line.unit());
    match arg.get_id().as_str() {
        "unit" | "spec" if matches!(verb.as_str(), "create" | "mount") => {
            [plain(names.configured()), plain([FILES])].concat()
        }
        "unit" => plain(names.mounted()),
        "dir" | "state_dir" | "freeze" => plain([DIRS]),
        "path" | "log" | "scb" | "members" | "device" | "command" => plain([FILES]),
        "what" => [members(&verb, unit, names), plain([FILES])].concat(),
        "member" | "source" => members(&verb, unit, names),
        "bitmap" => bitmaps(unit, names),
        "operation" => operations(&verb, unit, names),
        "name" if verb.starts_with("params") => parameters(unit, names),
        "value" => values_of(line.places.get(1).map_or("", String::as_str)),
        "goal" => goals(unit, names),
        _ => {
            let known = arg.get_possible_values().into_iter();
            let known = known.map(|value| value.get_name().to_owned());
            plain(known)
        }
    }
}

/// The members that the verb can be meant for.
fn members(verb: &str, unit: &str, names: &dyn Names) -> Vec<Candidate> {
    let status = names.status(unit);
    let members = status.into_iter().flat_map(|status| status.members);
    let is_away = |state: &str| matches!(state, "detached" | "expelled" | "missing");
    let meant = members.filter(|member| match verb {
        "attach" | "release" => is_away(&member.state),
        "detach" | "expel" | "backup" => !is_away(&member.state),
        _ => true,
    });
    meant.map(|member| (member.name, member.state)).collect()
}

fn bitmaps(unit: &str, names: &dyn Names) -> Vec<Candidate> {
    let status = names.status(unit);
    let bitmaps = status.into_iter().flat_map(|status| status.bitmaps);
    let both = bitmaps.flat_map(|bitmap| {
        let meaning = format!("bitmap {}, {}", bitmap.id, bitmap.state);
        let of_member = bitmap.member.map(|member| (member, meaning.clone()));
        [Some((bitmap.id, meaning)), of_member]
    });
    both.flatten().collect()
}

/// The operations that the verb can be meant for.
fn operations(verb: &str, unit: &str, names: &dyn Names) -> Vec<Candidate> {
    let status = names.status(unit);
    let all = status.into_iter().flat_map(|status| status.operations);
    let is_meant = |op: &Operation| match verb {
        "op pause" => op.state == "running",
        "op resume" => op.state == "paused",
        "op cancel" | "op wait" => !op.has_ended(),
        _ => true,
    };
    let meant = all.filter(is_meant);
    meant
        .map(|op| (op.id.to_string(), format!("{} {}", op.title(), op.state)))
        .collect()
}

fn parameters(unit: &str, names: &dyn Names) -> Vec<Candidate> {
    let of_unit = Param::ALL.iter();
    let of_unit = of_unit.map(|p| (p.name().to_owned(), p.spec().doc().to_owned()));
    let status = names.status(unit);
    let (members, operations) = status
        .map(|status| (status.members, status.operations))
        .unwrap_or_default();
    let of_members = members.into_iter().flat_map(|member| {
        ["read_cost", "site", "timeout"]
            .map(|name| (format!("{}.{name}", member.name), String::new()))
    });
    let going = operations.into_iter().filter(|op| !op.has_ended());
    let of_operations = going.map(|op| (format!("{}.rate_max", op.id), op.title()));
    of_unit.chain(of_members).chain(of_operations).collect()
}

/// The words of a parameter; of numbers its default.
fn values_of(name: &str) -> Vec<Candidate> {
    let Some(spec) = Param::from_name(name).map(Param::spec) else {
        return Vec::new();
    };
    match spec.kind {
        Kind::Word(words) => plain(words.iter().copied()),
        _ => vec![(spec.write(spec.default), "default".to_owned())],
    }
}

fn goals(unit: &str, names: &dyn Names) -> Vec<Candidate> {
    let mut goals = plain(["steady"]);
    let Some(status) = names.status(unit) else {
        return goals;
    };
    let going = status.operations.iter().filter(|op| !op.has_ended());
    goals.extend(going.map(|op| (format!("op={}", op.id), op.title())));
    for member in &status.members {
        goals.extend(plain(
            MemberState::WORDS
                .iter()
                .map(|state| format!("member={}:{state}", member.name)),
        ));
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::tests::sample;

    struct Known;

    impl Names for Known {
        fn mounted(&self) -> Vec<String> {
            vec!["dsa1".to_owned()]
        }

        fn configured(&self) -> Vec<String> {
            vec!["dsa1".to_owned(), "dsa2".to_owned()]
        }

        fn status(&self, unit: &str) -> Option<Status> {
            (unit == "dsa1").then(sample)
        }
    }

    /// The words that may stand behind the last blank of a line.
    fn words(line: &str) -> String {
        let line: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let found = candidates(&line, &Known).into_iter();
        found.map(|(word, _)| word).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn names_of_a_line_are_those_of_its_unit() {
        let table = [
            ("sta", "status stall"),
            ("op p", "pause"),
            ("status ", "dsa1"),
            ("mount ", "dsa1 dsa2 :files"),
            ("mount dsa1 ", ":dirs"),
            ("detach dsa1 ", "m1 m3"),
            ("detach dsa9 ", ""),
            ("attach dsa1 m", "m2 :files"),
            ("release dsa1 ", "m2"),
            ("verify dsa1 --repair --source m", "m1 m2 m3"),
            ("bitmap show dsa1 ", "0a0b0c0d m2 00000007 m3"),
            ("op cancel dsa1 ", "7"),
            ("op show dsa1 ", "6 7"),
            ("op resume dsa1 ", ""),
            ("params get dsa1 7", "7.rate_max"),
            ("params get dsa1 m1.", "m1.read_cost m1.site m1.timeout"),
            ("params set dsa1 auto_return ", "off minicopy"),
            ("params set dsa1 max_copies ", "4"),
            ("detach dsa1 m1 --po", "--policy"),
            ("detach dsa1 m1 --policy m", "minicopy minicopy=optional"),
            ("detach --policy none dsa1 m", "m1 m3"),
            ("detach dsa1 m1 --policy=n", "--policy=none"),
            ("wait dsa1 --for op", "op=7"),
            ("wait dsa1 --for member=m3:s", "member=m3:source"),
            ("detach dsa1 m1 ", ""),
            ("completions z", "zsh"),
            ("nothing ", ""),
            ("comple", "completions"),
        ];
        for (line, expected) in table {
            assert_eq!(words(line), expected, "{line}");
        }
    }

    #[test]
    fn each_verb_can_be_completed_up_to_its_end() {
        // An argument without a rule of its own would be left out in silence.
        let mut root = Args::command();
        root.build();
        let ruled = [
            "unit",
            "device",
            "command",
            "spec",
            "dir",
            "path",
            "what",
            "member",
            "bitmap",
            "operation",
            "name",
            "value",
            "shell",
        ];
        let free = ["seconds", "size"];
        for verb in root.get_subcommands().flat_map(leaves) {
            for arg in verb.get_positionals() {
                let id = arg.get_id().as_str();
                assert!(
                    ruled.contains(&id) || free.contains(&id) || verb.is_hide_set(),
                    "{}: {id}",
                    verb.get_name()
                );
            }
        }
    }

    fn leaves(command: &Command) -> Vec<&Command> {
        match command.has_subcommands() {
            true => command.get_subcommands().flat_map(leaves).collect(),
            false => vec![command],
        }
    }
}
