//! `backup`: the whole procedure. Brings everything to rest, takes a member out, runs a command on its image and brings the
//! member back, whatever becomes of the command.
//!
//! What this verb has taken out it brings back; what somebody else has taken out it leaves alone.

pub(super) mod record;
mod run;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::Command;

use clap::Args as ClapArgs;
use serde_json::{Value, json};

use self::record::{Left, Record};
use self::run::{Ended, Signals};
use super::change::{Command as Words, Started, operation_value, wait};
use super::freeze::{Broken, FreezeArgs, Frozen, Leaving, Standing};
use super::model::{Operation, Status};
use super::output::{self, Out, warn};
use super::size::human;
use crate::error::{Error, Result};
use crate::set::Code;

/// `backup`.
#[derive(ClapArgs, Debug)]
#[command(
    after_help = "Exit codes: 0 backed up and attached; that of CMD when it has failed, 128 and the signal when one has \
    ended it,\n            126 and 127 when it could not be run; else as with other verbs"
)]
pub(super) struct BackupArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    unit: String,
    /// Name of the member.
    member: String,
    /// How applications are brought to rest for it.
    #[command(flatten)]
    quiet: FreezeArgs,
    /// Freeze no file system, also when there is one on a loop device over the unit.
    #[arg(long, conflicts_with = "freeze")]
    no_freeze: bool,
    /// Say what would happen and change nothing.
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// The command to run on the image; `{}` in its words stands for the path of the image.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// `backup`.
pub(super) fn run(args: &BackupArgs, out: Out) -> Result<u8> {
    let backup = Backup::new(args, out)?;
    if args.dry_run {
        return backup.rehearse();
    }
    let record = Record::claim(&backup.one.unit.unit)?;
    backup.finish_earlier(&record)?;
    let standing = backup.prepare()?;
    // From here on no signal ends this process before the member is on its way back.
    backup.carry_out(standing, &record, Signals::collect()?)
}

struct Backup<'a> {
    args: &'a BackupArgs,
    one: Leaving,
    out: Out,
}

/// What has come of a backup.
struct Done {
    frozen: Vec<Frozen>,
    image: String,
    ended: Ended,
    operation: Option<Operation>,
}

impl<'a> Backup<'a> {
    fn new(args: &'a BackupArgs, out: Out) -> Result<Self> {
        let command = Words::new("detach").word(&args.member)?.text;
        let command = format!("{command} policy=minicopy");
        let one = Leaving::new(&args.unit, &args.member, command)?;
        Ok(Self { args, one, out })
    }

    fn subject(&self) -> String {
        format!("backup {}", self.one.member)
    }

    /// An error of a command of the tree, as one of this verb.
    fn about(&self, error: &Error) -> Error {
        let says = error.to_string();
        let member = &self.one.member;
        let inner = ["detach", "attach"].map(|verb| format!("{verb} {member}: "));
        let rest = inner
            .iter()
            .find_map(|inner| says.strip_prefix(inner.as_str()));
        let says = format!("{}: {}", self.subject(), rest.unwrap_or(&says));
        Error::new(error.code(), says).with_hint(error.hint())
    }

    /// What would happen.
    fn rehearse(&self) -> Result<u8> {
        let standing = self.prepare()?;
        let image = self.one.image()?;
        let places = standing
            .found
            .iter()
            .map(|fs| fs.mountpoint.display().to_string());
        let places: Vec<_> = places.collect();
        let words: Vec<_> = self
            .words(&image)
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let says = format!(
            "{} would leave {} with {} frozen, `{}` would run, and {} would be attached by minicopy",
            self.one.member,
            self.one.unit.unit,
            if places.is_empty() {
                "nothing".to_owned()
            } else {
                places.join(", ")
            },
            words.join(" "),
            self.one.member,
        );
        let value = json!({ "ok": true, "sentence": says, "image": image.display().to_string(),
            "freeze": places, "command": words });
        self.out.either(&value, &says)?;
        Ok(0)
    }

    /// Makes sure that the member may leave, and finds what has to be at rest for it.
    fn prepare(&self) -> Result<Standing> {
        let status = self.one.tree.status()?;
        refuse_merge(&self.subject(), &status)?;
        self.one.rehearse().map_err(|error| self.about(&error))?;
        let others = status
            .members
            .iter()
            .filter(|m| m.state == "source" && m.name != self.one.member);
        if let (Some(only), 1) = (others.clone().next(), others.count()) {
            warn(&format!(
                "during the backup {} alone holds what is written to {}",
                only.name, status.unit
            ));
        }
        let leaving = std::slice::from_ref(&self.one);
        Standing::find(leaving, &self.args.quiet, !self.args.no_freeze)
            .map_err(|error| self.about(&error))
    }

    /// Brings back what a backup that was killed has left away.
    fn finish_earlier(&self, record: &Record) -> Result<()> {
        let status = self.one.tree.status()?;
        let Some(member) = record.left_away(&status)? else {
            return record.clear();
        };
        warn(&format!(
            "an earlier backup of {member} was cut off: it is attached now"
        ));
        let started = self.attach(&member)?;
        record.clear()?;
        wait(&self.one.tree, &started, self.out)?;
        Ok(())
    }

    fn carry_out(&self, standing: Standing, record: &Record, signals: Signals) -> Result<u8> {
        let image = self.one.image()?;
        let generation = self.one.tree.status()?.generation;
        record.begin(&self.one.member, generation)?;
        let (mut noted, mut departure) = (Ok(()), None);
        // Not when everything goes on again, which may take its time: without it the next backup would not know.
        let left = standing.during(std::slice::from_ref(&self.one), |answer| {
            departure = Left::by(answer);
            noted = record.has_left(&self.one.member, generation, departure.clone());
        });
        let frozen = match left {
            Ok((_, frozen)) => frozen,
            Err(broken) => return Err(self.undo(record, &broken)),
        };
        // They are open in it, and may be unmounted while the command runs.
        drop(standing);
        // Whatever goes wrong from here on, the member comes back.
        if let Err(error) = noted {
            warn(&error.to_string());
        }
        let ended = match signals.pending().unwrap_or_default() {
            Some(signal) => Ended::Before(signal),
            None => match record.share() {
                Ok(()) => self.run_command(&image, &signals),
                Err(cause) => Ended::NotRun(cause),
            },
        };
        self.tell_end(&ended);
        let away = |error| self.still_away(&error);
        let status = self.one.tree.status().map_err(away)?;
        if is_another_departure(&status, &self.one.member, departure.as_ref()) {
            record.clear()?;
            return Err(self.disturbed());
        }
        let started = self.attach(&self.one.member).map_err(away)?;
        record.clear()?;
        // The copy goes on by itself, so that waiting for it may be given up.
        signals.release()?;
        let waited = wait(&self.one.tree, &started, self.out);
        let operation = match output::unless_reader_has_gone(waited)? {
            Some(operation) => operation,
            // Without a word, which is how it is with JSON.
            None => wait(
                &self.one.tree,
                &started,
                Out {
                    json: true,
                    ..self.out
                },
            )?,
        };
        let image = image.display().to_string();
        self.show(&Done {
            frozen,
            image,
            ended,
            operation,
        })
    }

    /// The command has ended, and the member could not be attached.
    fn still_away(&self, error: &Error) -> Error {
        let (subject, member, unit) = (self.subject(), &self.one.member, &self.one.unit.unit);
        let says = error.to_string();
        let cause = says.strip_prefix(&format!("{subject}: ")).unwrap_or(&says);
        let hint = match error.code() {
            Code::NotMounted => format!("mount {unit} again: the next backup brings {member} back"),
            Code::NoBitmap => format!("`shadowset attach {unit} {member}` copies everything"),
            _ => error.hint().to_owned(),
        };
        let says = format!("{subject}: the command has ended, but {member} is still away: {cause}");
        Error::new(error.code(), says).with_hint(hint)
    }

    fn disturbed(&self) -> Error {
        let member = &self.one.member;
        let says = format!(
            "{}: somebody else has attached {member} while the command ran, which may have read a mixture",
            self.subject()
        );
        Error::new(Code::StateChanged, says).with_hint("back it up again")
    }

    /// Leaves nothing of a backup whose member has left, or may have, under the wrong conditions.
    fn undo(&self, record: &Record, broken: &Broken) -> Error {
        let error = self.about(&broken.error);
        if !broken.may_be_gone {
            // Should it be away, somebody else has taken it out.
            return record.clear().err().unwrap_or(error);
        }
        let state = self.one.tree.status();
        let state = state
            .ok()
            .and_then(|s| s.member(&self.one.member).map(|m| m.state.clone()));
        match state.as_deref() {
            Some("detached") => {}
            Some(_) => return record.clear().err().unwrap_or(error),
            None => return error,
        }
        let back = self.attach(&self.one.member).and_then(|_| record.clear());
        let how = match back {
            Ok(()) => "it is attached again",
            Err(_) => "it is still away",
        };
        let hint = format!(
            "`shadowset status {}` shows its state; try again",
            self.one.unit.unit
        );
        Error::new(error.code(), format!("{error}; {how}")).with_hint(hint)
    }

    fn attach(&self, member: &str) -> Result<Started> {
        let words = Words::new("attach").word(member)?.text;
        let answer = self.one.tree.command(&format!("{words} policy=minicopy"));
        Started::of(&answer.map_err(|error| self.about(&error))?)
    }

    /// The words of the command, with the path of the image in them.
    fn words(&self, image: &Path) -> Vec<OsString> {
        let words = self.args.command.iter();
        words
            .map(|word| with_image(word, image.as_os_str()))
            .collect()
    }

    fn run_command(&self, image: &Path, signals: &Signals) -> Ended {
        let words = self.words(image);
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env("SHADOWSET_UNIT", &self.one.unit.unit)
            .env("SHADOWSET_MEMBER", &self.one.member)
            .env("SHADOWSET_IMAGE", image);
        run::run(command, self.out.json, signals)
    }

    fn tell_end(&self, ended: &Ended) {
        if let Some(how) = ended.failure() {
            let name = self.args.command[0].to_string_lossy();
            let says = format!("{}: `{name}` {how}", self.subject());
            let error = Error::new(Code::Io, says).with_hint("the member is attached all the same");
            output::report(&error, false);
        }
    }

    fn show(&self, done: &Done) -> Result<u8> {
        let code = done.ended.exit_code();
        let value = self.value(done, code);
        let mut text = format!("{} is back", self.one.member);
        if let Some(copied) = done.operation.as_ref().and_then(|op| op.copied_bytes) {
            text.push_str(&format!(", {} copied", human(copied)));
        }
        for one in &done.frozen {
            text.push_str(&format!("\n{}", one.line()));
        }
        output::unless_reader_has_gone(self.out.either(&value, &text))?;
        Ok(code)
    }

    fn value(&self, done: &Done, code: u8) -> Value {
        let frozen: Vec<_> = done.frozen.iter().map(Frozen::value).collect();
        json!({ "ok": code == 0, "unit": self.one.unit.unit, "member": self.one.member,
            "image": done.image, "frozen": frozen, "exit": code,
            "operation": done.operation.as_ref().map(operation_value) })
    }
}

/// What is being merged may change behind the back of a backup.
fn refuse_merge(subject: &str, status: &Status) -> Result<()> {
    if !status
        .members
        .iter()
        .any(|member| member.state == "merging")
    {
        return Ok(());
    }
    let unit = &status.unit;
    let says = format!("{subject}: {unit} is being merged");
    Err(Error::new(Code::MergePending, says)
        .with_hint(format!("`shadowset wait {unit}`, then try again")))
}

/// Whether a member is back, or away by another departure than this one.
fn is_another_departure(status: &Status, member: &str, this: Option<&Left>) -> bool {
    let Some(member) = status.member(member) else {
        return false;
    };
    match member.state.as_str() {
        // Who is away is not expelled before it has come back.
        "source" | "copy-target" | "merging" | "expelled" => true,
        // Where the bitmap was lost, attach says so.
        "detached" => {
            let is_this = this.is_some_and(|this| this.is_last(status, member));
            member.bitmap.is_some() && !is_this
        }
        _ => false,
    }
}

/// A word of the command with the path in each place of `{}`.
fn with_image(word: &OsStr, image: &OsStr) -> OsString {
    let (mut bytes, mut rest) = (Vec::new(), word.as_bytes());
    while let Some(at) = rest.windows(2).position(|two| two == b"{}") {
        bytes.extend_from_slice(&rest[..at]);
        bytes.extend_from_slice(image.as_bytes());
        rest = &rest[at + 2..];
    }
    bytes.extend_from_slice(rest);
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::tests::sample;

    #[test]
    fn the_image_stands_wherever_a_word_has_braces() {
        let with = |word: &str| with_image(word.as_ref(), "/m3.img".as_ref());
        assert_eq!(with("{}"), "/m3.img");
        assert_eq!(with("if={},of={}.old"), "if=/m3.img,of=/m3.img.old");
        assert_eq!(with("{"), "{");
        assert_eq!(with(""), "");
    }

    #[test]
    fn a_unit_that_is_being_merged_is_not_backed_up() {
        let mut status = sample();
        assert!(refuse_merge("backup m3", &status).is_ok());
        status.members[1].state = "merging".to_owned();
        let refused = refuse_merge("backup m3", &status).expect_err("merging");
        assert_eq!(
            (refused.code(), refused.exit_code()),
            (Code::MergePending, 4)
        );
    }
}
