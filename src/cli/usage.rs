//! Wrong usage in the form of every other error: one sentence and a hint.
//!
//! The parser knows what is wrong; only how it is said is decided here.

use std::error::Error as _;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory};

use super::args::Args;
use crate::error::Error;
use crate::set::Code;

/// What helps with a value of this name.
const OF_VALUE: [(&str, &str); 2] = [
    (
        "--range <FIRST-LAST>",
        "as in --range 0-99: the first and the last block of 512 bytes",
    ),
    (
        "--for <GOAL>",
        "as in --for steady, --for op=7 or --for member=m2:source, with the unit before it",
    ),
];

/// The error of a line that was not understood; nothing for help and version, which are no errors.
pub(super) fn error(answer: &clap::Error, words: &[OsString]) -> Option<Error> {
    let is_answer = matches!(
        answer.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if is_answer {
        return None;
    }
    let (path, usage) = command_of(words);
    let subject = match path.as_str() {
        "" => String::new(),
        path => format!("{path}: "),
    };
    let says = format!("{subject}{}", sentence(answer));
    let unit = unit_of(words, &path);
    Some(Error::new(Code::Syntax, says).with_hint(hint(answer, &path, &usage, &unit)))
}

/// Whether the line asks for JSON, though it cannot be understood.
pub(super) fn wants_json(words: &[OsString]) -> bool {
    let options = words.iter().take_while(|word| *word != "--");
    options.into_iter().any(|word| word == "--json")
}

/// The verb of the line, such as `op pause`, and its form.
fn command_of(words: &[OsString]) -> (String, String) {
    let mut command = Args::command();
    command.build();
    let mut path = Vec::new();
    let mut at: &Command = &command;
    for word in words.iter().skip(1).filter_map(|word| word.to_str()) {
        if word.starts_with('-') {
            continue;
        }
        let Some(next) = at.find_subcommand(word) else {
            break;
        };
        path.push(word.to_owned());
        at = next;
    }
    let usage = at.clone().render_usage().to_string();
    let form = usage.trim_start_matches("Usage: ").trim().to_owned();
    (path.join(" "), form)
}

/// The unit of a line: the first word behind the verb.
fn unit_of(words: &[OsString], path: &str) -> String {
    let words = words.iter().skip(1).filter_map(|word| word.to_str());
    let mut words = words.filter(|word| !word.starts_with('-'));
    let unit = words.nth(path.split_whitespace().count());
    unit.unwrap_or("UNIT").to_owned()
}

fn text(answer: &clap::Error, kind: ContextKind) -> String {
    match answer.get(kind) {
        Some(ContextValue::String(one)) => one.clone(),
        Some(ContextValue::Strings(many)) => many.join(" "),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn sentence(answer: &clap::Error) -> String {
    let arg = text(answer, ContextKind::InvalidArg);
    let value = text(answer, ContextKind::InvalidValue);
    match answer.kind() {
        ErrorKind::InvalidValue if value.is_empty() => format!("{arg} has no value"),
        ErrorKind::InvalidValue => format!("{arg} is not `{value}`"),
        ErrorKind::ValueValidation => refused_value(answer, &arg, &value),
        ErrorKind::UnknownArgument if arg.starts_with('-') => format!("there is no option {arg}"),
        ErrorKind::UnknownArgument => format!("`{arg}` is one word too many"),
        ErrorKind::InvalidSubcommand => {
            let verb = text(answer, ContextKind::InvalidSubcommand);
            format!("there is no command `{verb}`")
        }
        ErrorKind::MissingSubcommand => "a command is missing".to_owned(),
        ErrorKind::MissingRequiredArgument => match arg.contains(' ') && !arg.starts_with('-') {
            true => format!("{arg} are missing"),
            false => format!("{arg} is missing"),
        },
        ErrorKind::ArgumentConflict => {
            let other = text(answer, ContextKind::PriorArg);
            match arg == other {
                true => format!("{arg} is given twice"),
                false => format!("{arg} and {other} exclude each other"),
            }
        }
        _ => first_line(&answer.to_string()),
    }
}

/// What a parser of ours says of a value; what that of a number says is told in other words.
fn refused_value(answer: &clap::Error, arg: &str, value: &str) -> String {
    let says = answer.source().map(ToString::to_string).unwrap_or_default();
    match says.as_str() {
        "" => format!("{arg} is not `{value}`"),
        large if large.contains("too large to fit") => format!("{arg}: {value} is too large"),
        digits if digits.contains("digit found") || digits.contains("parse integer") => {
            format!("{arg}: `{value}` is not a number")
        }
        says => format!("{arg}: {says}"),
    }
}

fn hint(answer: &clap::Error, path: &str, usage: &str, unit: &str) -> String {
    let arg = text(answer, ContextKind::InvalidArg);
    if arg == "<OPERATION>" {
        return format!("`shadowset op list {unit}` lists the operations");
    }
    if let Some((_, hint)) = OF_VALUE.iter().find(|(name, _)| *name == arg) {
        return (*hint).to_owned();
    }
    let words = text(answer, ContextKind::ValidValue);
    if !words.is_empty() {
        return format!("it takes {}", listed(answer).join(", "));
    }
    match (meant(answer).as_str(), path) {
        ("", "") => "`shadowset --help` lists the commands".to_owned(),
        ("", _) => format!("the form is: {usage}"),
        (meant, "") => format!("is `{meant}` meant? `shadowset --help` lists the commands"),
        (meant, _) => format!("is `{meant}` meant? The form is: {usage}"),
    }
}

/// The word that is most like the one that was typed; the parser gives it last.
fn meant(answer: &clap::Error) -> String {
    let kinds = [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg];
    let found = kinds.into_iter().find_map(|kind| answer.get(kind));
    match found {
        Some(ContextValue::Strings(words)) => words.last().cloned().unwrap_or_default(),
        Some(ContextValue::String(word)) => word.clone(),
        _ => String::new(),
    }
}

fn listed(answer: &clap::Error) -> Vec<String> {
    match answer.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(words)) => words.clone(),
        _ => Vec::new(),
    }
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::output::error_lines;

    fn lines(line: &str) -> String {
        let words: Vec<OsString> = std::iter::once("shadowset")
            .chain(line.split(' ').filter(|word| !word.is_empty()))
            .map(OsString::from)
            .collect();
        let answer = Args::try_parse_from(&words).expect_err(line);
        error(&answer, &words).map_or_else(String::new, |error| error_lines(&error))
    }

    #[test]
    fn each_mistake_is_one_sentence_and_a_hint() {
        let table = [
            (
                "statsu",
                "there is no command `statsu`",
                "is `status` meant? `shadowset --help` lists the commands",
            ),
            (
                "op pause dsa1 abc",
                "op pause: <OPERATION>: `abc` is not a number",
                "`shadowset op list dsa1` lists the operations",
            ),
            (
                "detach dsa1",
                "detach: <MEMBER> is missing",
                "the form is: shadowset detach [OPTIONS] <UNIT> <MEMBER>",
            ),
            (
                "detach",
                "detach: <UNIT> <MEMBER> are missing",
                "the form is: shadowset detach [OPTIONS] <UNIT> <MEMBER>",
            ),
            (
                "--json detach dsa1 m1 --policy half",
                "detach: --policy <POLICY> is not `half`",
                "it takes minicopy, minicopy=optional, none",
            ),
            (
                "merge dsa1 m1",
                "merge: `m1` is one word too many",
                "the form is: shadowset merge [OPTIONS] <UNIT>",
            ),
            (
                "merge dsa1 --ful",
                "merge: there is no option --ful",
                "is `--full` meant? The form is: shadowset merge [OPTIONS] <UNIT>",
            ),
            (
                "attach dsa1 m1 --wait --dry-run",
                "attach: --wait and --dry-run exclude each other",
                "the form is: shadowset attach [OPTIONS] <UNIT> <MEMBER|PATH>",
            ),
            (
                "wait dsa1 --for rain",
                "wait: --for <GOAL>: `rain` is not steady, op=N or member=NAME:STATE",
                "as in --for steady, --for op=7 or --for member=m2:source, with the unit before it",
            ),
            (
                "resize dsa1 1X",
                "resize: [SIZE]: `1X` is not a size: a number of bytes, or with k, M, G or T, as in 512M",
                "the form is: shadowset resize [OPTIONS] <UNIT> [SIZE]",
            ),
        ];
        for (line, sentence, hint) in table {
            let expected = format!("shadowset: {sentence}\nhint: {hint}\n");
            assert_eq!(lines(line), expected, "{line}");
        }
    }

    #[test]
    fn a_number_that_is_too_large_is_called_so() {
        let says = lines("op show dsa1 99999999999999999999");
        let expected = "op show: <OPERATION>: 99999999999999999999 is too large\n";
        assert!(says.contains(expected), "{says}");
    }

    #[test]
    fn help_is_no_error() {
        for line in ["--help", "op --help", "--version", "", "op"] {
            assert_eq!(lines(line), "", "{line}");
        }
    }

    #[test]
    fn json_is_wanted_before_a_double_hyphen() {
        let wants = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            wants_json(&words)
        };
        assert!(wants("shadowset --json list") && wants("shadowset op pause dsa1 x --json"));
        assert!(!wants("shadowset list") && !wants("shadowset x -- --json"));
    }
}
