//! `attach`, `detach`, `release`, `merge` and `resize`: words of the command line to one command of the control tree.

use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::args::{AttachArgs, DetachArgs, MergeArgs, ReleaseArgs, ResizeArgs};
use super::freeze;
use super::model::{Operation, Status};
use super::output::Out;
use super::place;
use super::size::human;
use super::tree::{Answer, Tree};
use super::wait::{Progress, ended};
use crate::error::{Error, Result};
use crate::set::Code;

/// `detach`.
pub(super) fn detach(args: &DetachArgs, out: Out) -> Result<u8> {
    if args.quiet.is_wanted() || !args.with.is_empty() || args.exec.is_some() {
        return freeze::detach(args, out);
    }
    let mut command = Command::new("detach").word(&args.member)?;
    command = command
        .option("policy", args.policy.as_deref())?
        .flag("dry-run", args.dry_run);
    let answer = place::tree(&args.unit)?.command(&command.text)?;
    show(&answer, out)
}

/// `attach`.
pub(super) fn attach(args: &AttachArgs, out: Out) -> Result<u8> {
    let tree = place::tree(&args.unit)?;
    let command = Command::new("attach")
        .word(&target(&args.what)?)?
        .option("as", args.name.as_deref())?
        .option("policy", args.policy.as_deref())?
        .option("source", args.source.as_deref())?
        .flag("confirm", args.yes)
        .flag("dry-run", args.dry_run);
    let answer = tree.command(&command.text);
    let answer = answer.map_err(|error| or_image(&args.unit, &args.what, error))?;
    if !args.wait {
        return show(&answer, out);
    }
    if !out.json {
        show(&answer, out)?;
    }
    let operation = wait(&tree, &Started::of(&answer)?, out)?;
    let says = match &operation {
        Some(op) => done(op),
        None => "the copy has ended".to_owned(),
    };
    out.either(
        &json!({ "ok": true, "sentence": answer.sentence,
        "operation": operation.as_ref().map(operation_value) }),
        &says,
    )?;
    Ok(0)
}

/// `release`.
pub(super) fn release(args: &ReleaseArgs, out: Out) -> Result<u8> {
    let command = Command::new("release").word(&args.member)?;
    let command = command.flag("dry-run", args.dry_run);
    show(&place::tree(&args.unit)?.command(&command.text)?, out)
}

/// `merge`.
pub(super) fn merge(args: &MergeArgs, out: Out) -> Result<u8> {
    let command = Command::new("merge").flag("full", args.full);
    let command = command.flag("dry-run", args.dry_run);
    show(&place::tree(&args.unit)?.command(&command.text)?, out)
}

/// `resize`.
pub(super) fn resize(args: &ResizeArgs, out: Out) -> Result<u8> {
    let mut command = Command::new("resize");
    if let Some(size) = args.size {
        command = command.word(&size.to_string())?;
    }
    let command = command.flag("dry-run", args.dry_run);
    show(&place::tree(&args.unit)?.command(&command.text)?, out)
}

/// An operation that has ended well, with what it had to do.
fn done(op: &Operation) -> String {
    let mut text = format!("{} is done", op.title());
    if let Some(copied) = op.copied_bytes {
        text.push_str(&format!(", {} copied", human(copied)));
    }
    if let Some(skipped) = op.skipped_bytes.filter(|skipped| *skipped > 0) {
        text.push_str(&format!(", {} needed no copy", human(skipped)));
    }
    text
}

/// An operation as JSON.
pub(super) fn operation_value(op: &Operation) -> Value {
    json!({ "id": op.id, "kind": op.kind, "state": op.state, "copied_bytes": op.copied_bytes,
        "skipped_bytes": op.skipped_bytes, "total_bytes": op.total_bytes })
}

/// What is attached, as a word of a command: a member by name, or an image by its path.
fn target(what: &str) -> Result<String> {
    if !what.contains('/') {
        return Ok(what.to_owned());
    }
    let path = std::fs::canonicalize(what)
        .map_err(|cause| Error::io(format!("attach {what}: cannot use the image"), cause))?;
    let utf8 = PathBuf::into_os_string(path).into_string();
    utf8.map_err(|_| {
        Error::new(
            Code::Syntax,
            format!("attach {what}: the path is not UTF-8"),
        )
    })
}

/// A word that is no member, but a file here: a path has a slash in it.
fn or_image(unit: &str, what: &str, error: Error) -> Error {
    let is_missing = error.to_string().contains(&format!("no member {what};"));
    match error.code() {
        // Who is not found may also be the source.
        Code::NoSuchMember if is_missing && PathBuf::from(what).exists() => error.with_hint(
            format!("if the image is meant: `shadowset attach {unit} ./{what}`"),
        ),
        _ => error,
    }
}

/// What an attach has started, as its answer tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Started {
    member: String,
    operation: u64,
}

impl Started {
    /// Of the answer to an attach.
    pub(super) fn of(answer: &Answer) -> Result<Self> {
        match (answer.text("member"), answer.number("operation")) {
            (Some(member), Some(operation)) => Ok(Self {
                member: member.to_owned(),
                operation,
            }),
            _ => {
                let says = format!("the answer names no operation: {}", answer.sentence);
                let hint = "the server may be of another version: `cat .shadow/version`";
                Err(Error::new(Code::Io, says).with_hint(hint))
            }
        }
    }

    /// Goes on until the copy has ended; breaks with nothing when the operation was forgotten after
    /// a good end. An error when that end can no longer come.
    fn step(&self, status: &Status) -> Result<ControlFlow<Option<Operation>>> {
        if let Some(op) = status.operation(self.operation) {
            return Ok(match ended(op, &status.unit)? {
                true => ControlFlow::Break(Some(op.clone())),
                false => ControlFlow::Continue(()),
            });
        }
        let name = &self.member;
        let says = match status.member(name).map(|m| m.state.as_str()) {
            Some("source") => return Ok(ControlFlow::Break(None)),
            Some(state @ ("detached" | "expelled" | "missing")) => format!("{name} is {state}"),
            Some(_) => return Ok(ControlFlow::Continue(())),
            None => format!("{name} has left the set"),
        };
        let unit = &status.unit;
        let hint = format!("`shadowset events {unit}` says why; attach it again");
        Err(Error::new(Code::StateChanged, format!("attach {name}: {says}")).with_hint(hint))
    }
}

/// Waits for the end of the copy into the member; nothing when its operation is forgotten.
pub(super) fn wait(tree: &Tree, started: &Started, out: Out) -> Result<Option<Operation>> {
    let mut progress = Progress::new(out);
    let ended = tree.follow(None, |_, status| {
        if let Some(op) = status.operation(started.operation) {
            progress.show(op)?;
        }
        started.step(status)
    })?;
    progress.end();
    Ok(ended)
}

/// Shows an answer.
pub(super) fn show(answer: &Answer, out: Out) -> Result<u8> {
    if out.json {
        out.value(&answer_value(answer))?;
        return Ok(0);
    }
    let mut text = format!("{}\n", answer.sentence);
    for (key, value) in &answer.values {
        text.push_str(&format!("  {key} {value}\n"));
    }
    out.text(&text)?;
    Ok(0)
}

/// An answer as JSON: whole numbers as numbers, the rest as text.
pub(super) fn answer_value(answer: &Answer) -> Value {
    let mut map = Map::new();
    map.insert("ok".to_owned(), true.into());
    map.insert("sentence".to_owned(), answer.sentence.clone().into());
    for (key, value) in &answer.values {
        map.insert(key.clone(), fact(key, value));
    }
    Value::Object(map)
}

/// Facts that are lists, also those of one.
const LISTS: [&str; 2] = ["operations", "quiet"];

fn fact(key: &str, value: &str) -> Value {
    if LISTS.contains(&key) {
        return value.split_whitespace().map(|one| fact("", one)).collect();
    }
    // An id stays text, also when all its digits are decimal.
    let number = value.parse::<u64>().ok().filter(|_| key != "bitmap");
    number.map_or_else(|| value.into(), Value::from)
}

/// A command of the control tree, as it grows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Command {
    /// Its text.
    pub(super) text: String,
}

impl Command {
    /// A command that is a verb only.
    pub(super) fn new(verb: &str) -> Self {
        Self {
            text: verb.to_owned(),
        }
    }

    /// Adds a word, in quotes when it needs them.
    ///
    /// # Errors
    /// [`Code::Syntax`] when no command can hold it.
    pub(super) fn word(mut self, word: &str) -> Result<Self> {
        if word.is_empty() || word.contains(char::is_control) {
            let says = format!("{}: {word:?} cannot be a word of a command", self.text);
            let hint = match word.is_empty() {
                true => "what stands there is empty: a variable that is not set?",
                false => "use a name, or a link whose path has no control characters",
            };
            return Err(Error::new(Code::Syntax, says).with_hint(hint));
        }
        self.text.push(' ');
        if word.contains([' ', '"']) {
            let inside = word.replace('\\', "\\\\").replace('"', "\\\"");
            self.text.push_str(&format!("\"{inside}\""));
        } else {
            self.text.push_str(word);
        }
        Ok(self)
    }

    /// Adds `key=value` where there is a value.
    ///
    /// # Errors
    /// As [`Self::word`].
    pub(super) fn option(self, key: &str, value: Option<&str>) -> Result<Self> {
        match value {
            Some(value) => self.word(&format!("{key}={value}")),
            None => Ok(self),
        }
    }

    /// Adds a word when it is wanted.
    pub(super) fn flag(mut self, word: &str, wanted: bool) -> Self {
        if wanted {
            self.text.push(' ');
            self.text.push_str(word);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::tests::sample;

    #[test]
    fn a_command_is_its_words() {
        let command = Command::new("attach").word("m3").unwrap();
        let command = command.option("policy", Some("minicopy=optional")).unwrap();
        let command = command.option("as", None).unwrap().flag("confirm", true);
        assert_eq!(
            command.flag("dry-run", false).text,
            "attach m3 policy=minicopy=optional confirm"
        );
    }

    #[test]
    fn a_word_stays_one_word() {
        let text = |word: &str| Command::new("attach").word(word).map(|c| c.text);
        assert_eq!(text("/a b").unwrap(), "attach \"/a b\"");
        assert_eq!(text("/a\"b\\c").unwrap(), "attach \"/a\\\"b\\\\c\"");
        assert_eq!(text("/a\\c").unwrap(), "attach /a\\c");
        for word in ["", "a\nexpel", "a\tb", "a\0b"] {
            let error = text(word).unwrap_err();
            assert_eq!(
                (error.code(), error.exit_code()),
                (Code::Syntax, 2),
                "{word:?}"
            );
        }
    }

    #[test]
    fn the_operation_of_the_answer_is_waited_for_as_long_as_it_can_end_well() {
        let mut status = sample();
        let started = |member: &str, operation| Started {
            member: member.into(),
            operation,
        };
        let step = |status: &Status, of: &Started| match of.step(status) {
            Ok(ControlFlow::Break(op)) => Ok(Some(op.map(|op| op.id))),
            Ok(ControlFlow::Continue(())) => Ok(None),
            Err(error) => Err((error.exit_code(), error.to_string())),
        };
        assert_eq!(step(&status, &started("m3", 7)), Ok(None), "it runs");
        let cancelled = step(&status, &started("m2", 6)).unwrap_err();
        assert_eq!(cancelled.0, 4, "{}", cancelled.1);
        for (state, says) in [
            ("detached", "attach m3: m3 is detached"),
            ("expelled", "attach m3: m3 is expelled"),
            ("missing", "attach m3: m3 is missing"),
        ] {
            status.members[2].state = state.to_owned();
            let end = step(&status, &started("m3", 9));
            assert_eq!(end, Err((4, says.to_owned())));
        }
        let left = step(&status, &started("m9", 9)).unwrap_err();
        assert_eq!(left.1, "attach m9: m9 has left the set");
        status.members[2].state = "source".to_owned();
        assert_eq!(step(&status, &started("m3", 9)), Ok(Some(None)));
        status.operations[1].state = "done".to_owned();
        assert_eq!(step(&status, &started("m3", 7)), Ok(Some(Some(7))));
    }

    #[test]
    fn an_answer_names_the_member_and_the_operation() {
        let answer = |values: &[(&str, &str)]| Answer {
            sentence: "m3 is the target".into(),
            values: values
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
        };
        let started = Started::of(&answer(&[("member", "m3"), ("operation", "7")]));
        let expected = Started {
            member: "m3".into(),
            operation: 7,
        };
        assert_eq!(started.unwrap(), expected);
        assert_eq!(Started::of(&answer(&[])).unwrap_err().code(), Code::Io);
    }

    #[test]
    fn the_end_of_a_copy_says_what_it_had_to_do() {
        let expected = "minicopy m1 -> m3 is done, 40.0 MiB copied, 924 MiB needed no copy";
        assert_eq!(done(&sample().operations[1]), expected);
    }

    #[test]
    fn a_file_without_a_slash_is_named_in_the_hint() {
        let hint = |what: &str, code| {
            let says = format!("attach {what}: no member {what}; the members are m1");
            let error = Error::new(code, says).with_hint("another");
            or_image("dsa1", what, error).hint().to_owned()
        };
        let of_source = Error::new(Code::NoSuchMember, "attach Cargo.toml: no member m9; ...");
        let of_source = or_image("dsa1", "Cargo.toml", of_source.with_hint("another"));
        assert_eq!(of_source.hint(), "another");
        // Tests run in the directory of the package.
        let expected = "if the image is meant: `shadowset attach dsa1 ./Cargo.toml`";
        assert_eq!(hint("Cargo.toml", Code::NoSuchMember), expected);
        assert_eq!(hint("m9", Code::NoSuchMember), "another");
        assert_eq!(hint("Cargo.toml", Code::InUse), "another");
    }

    #[test]
    fn numbers_of_an_answer_stay_numbers() {
        let values = vec![
            ("bytes".into(), "65024".into()),
            ("verdict".into(), "minicopy".into()),
            ("bitmap".into(), "00000012".into()),
            ("operations".into(), "3".into()),
            ("quiet".into(), "m1 m2".into()),
        ];
        let value = answer_value(&Answer {
            sentence: "m3 would return".into(),
            values,
        });
        assert_eq!(value["bytes"], 65024);
        assert_eq!(value["verdict"], "minicopy");
        assert_eq!(value["bitmap"], "00000012");
        assert_eq!(value["ok"], true);
        assert_eq!(value["operations"], json!([3]));
        assert_eq!(value["quiet"], json!(["m1", "m2"]));
    }
}
