//! `attach` and `detach`: words of the command line to one command of the control tree.

use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::args::{AttachArgs, DetachArgs};
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
    let target = Target::of(args)?;
    let command = Command::new("attach")
        .word(target.word())?
        .option("as", args.name.as_deref())?
        .option("policy", args.policy.as_deref())?
        .flag("confirm", args.yes)
        .flag("dry-run", args.dry_run);
    // Operations that were there before are not the one that this attach starts.
    let before = tree.status()?.operations.iter().map(|op| op.id).max();
    let answer = tree.command(&command.text)?;
    if !args.wait {
        return show(&answer, out);
    }
    if !out.json {
        show(&answer, out)?;
    }
    let number = answer.number("operation");
    let newest = |status: &Status, member: &str| match number {
        Some(number) => status.operation(number).cloned(),
        None => newest(status, member, before).cloned(),
    };
    let operation = wait(&tree, &target, newest, out)?;
    let says = match &operation {
        Some(op) => done(op),
        None => "nothing had to be copied".to_owned(),
    };
    out.either(
        &json!({ "ok": true, "sentence": answer.sentence,
        "operation": operation.as_ref().map(operation_value) }),
        &says,
    )?;
    Ok(0)
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

fn operation_value(op: &Operation) -> Value {
    json!({ "id": op.id, "kind": op.kind, "state": op.state, "copied_bytes": op.copied_bytes,
        "skipped_bytes": op.skipped_bytes, "total_bytes": op.total_bytes })
}

/// What is attached: a member by name, or an image by path.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Target {
    Member(String),
    Image { path: String, name: Option<String> },
}

impl Target {
    fn of(args: &AttachArgs) -> Result<Self> {
        if !args.what.contains('/') {
            return Ok(Self::Member(args.what.clone()));
        }
        let path = std::fs::canonicalize(&args.what).map_err(|cause| {
            Error::io(format!("attach {}: cannot use the image", args.what), cause)
        })?;
        let utf8 = PathBuf::into_os_string(path).into_string();
        let path = utf8.map_err(|_| {
            Error::new(
                Code::Syntax,
                format!("attach {}: the path is not UTF-8", args.what),
            )
        })?;
        Ok(Self::Image {
            path,
            name: args.name.clone(),
        })
    }

    fn word(&self) -> &str {
        match self {
            Self::Member(name) => name,
            Self::Image { path, .. } => path,
        }
    }

    /// The name of the member, once it is one.
    fn member(&self, status: &Status) -> Option<String> {
        match self {
            Self::Member(name)
            | Self::Image {
                name: Some(name), ..
            } => Some(name.clone()),
            Self::Image { path, name: None } => status
                .members
                .iter()
                .find(|m| m.path == *path)
                .map(|m| m.name.clone()),
        }
    }
}

/// Waits for the end of the copy into the member; nothing when it needed none.
fn wait(
    tree: &Tree,
    target: &Target,
    newest: impl Fn(&Status, &str) -> Option<Operation>,
    out: Out,
) -> Result<Option<Operation>> {
    let mut progress = Progress::new(out);
    let ended = tree.follow(None, |_, status| {
        let Some(member) = target.member(status) else {
            let says = format!("attach {}: the member has left the set", target.word());
            return Err(Error::new(Code::StateChanged, says));
        };
        match newest(status, &member) {
            Some(op) => {
                progress.show(&op)?;
                Ok(if ended(&op)? {
                    ControlFlow::Break(Some(op))
                } else {
                    ControlFlow::Continue(())
                })
            }
            None if status.member(&member).is_some_and(|m| m.state == "source") => {
                Ok(ControlFlow::Break(None))
            }
            None => Ok(ControlFlow::Continue(())),
        }
    })?;
    progress.end();
    Ok(ended)
}

/// The newest operation into the member that was not there before.
fn newest<'a>(status: &'a Status, member: &str, before: Option<u64>) -> Option<&'a Operation> {
    let into = |op: &&Operation| op.target.as_deref() == Some(member);
    let new = |op: &&Operation| before.is_none_or(|before| op.id > before);
    status
        .operations
        .iter()
        .filter(into)
        .filter(new)
        .max_by_key(|op| op.id)
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
fn answer_value(answer: &Answer) -> Value {
    let mut map = Map::new();
    map.insert("ok".to_owned(), true.into());
    map.insert("sentence".to_owned(), answer.sentence.clone().into());
    for (key, value) in &answer.values {
        // An id stays text, also when all its digits are decimal.
        let number = value.parse::<u64>().ok().filter(|_| key != "bitmap");
        map.insert(
            key.clone(),
            number.map_or_else(|| value.clone().into(), Value::from),
        );
    }
    Value::Object(map)
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
            return Err(Error::new(Code::Syntax, says)
                .with_hint("use a name, or a link whose path has no control characters"));
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
    fn option(self, key: &str, value: Option<&str>) -> Result<Self> {
        match value {
            Some(value) => self.word(&format!("{key}={value}")),
            None => Ok(self),
        }
    }

    /// Adds a word when it is wanted.
    fn flag(mut self, word: &str, wanted: bool) -> Self {
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
    fn only_an_operation_of_this_attach_is_waited_for() {
        let status = sample();
        assert_eq!(newest(&status, "m3", Some(6)).map(|op| op.id), Some(7));
        assert!(
            newest(&status, "m3", Some(7)).is_none(),
            "it was there before"
        );
        assert!(
            newest(&status, "m2", Some(6)).is_none(),
            "the cancelled one is older"
        );
        assert_eq!(newest(&status, "m2", None).map(|op| op.id), Some(6));
    }

    #[test]
    fn the_end_of_a_copy_says_what_it_had_to_do() {
        let expected = "minicopy m1 -> m3 is done, 40.0 MiB copied, 924 MiB needed no copy";
        assert_eq!(done(&sample().operations[1]), expected);
    }

    #[test]
    fn a_new_member_is_found_by_its_image() {
        let status = sample();
        let image = |path: &str, name: Option<&str>| Target::Image {
            path: path.into(),
            name: name.map(str::to_owned),
        };
        assert_eq!(
            image("/img/c.raw", None).member(&status).as_deref(),
            Some("m3")
        );
        assert_eq!(image("/img/d.raw", None).member(&status), None);
        assert_eq!(
            image("/img/d.raw", Some("m4")).member(&status).as_deref(),
            Some("m4")
        );
    }

    #[test]
    fn numbers_of_an_answer_stay_numbers() {
        let values = vec![
            ("bytes".into(), "65024".into()),
            ("verdict".into(), "minicopy".into()),
            ("bitmap".into(), "00000012".into()),
        ];
        let value = answer_value(&Answer {
            sentence: "m3 would return".into(),
            values,
        });
        assert_eq!(value["bytes"], 65024);
        assert_eq!(value["verdict"], "minicopy");
        assert_eq!(value["bitmap"], "00000012");
        assert_eq!(value["ok"], true);
    }
}
