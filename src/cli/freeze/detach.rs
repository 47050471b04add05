//! `detach` of one or more members with everything on their units at rest, and what is done with the images then.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::super::args::DetachArgs;
use super::super::change::{Command as Words, answer_value};
use super::super::output::{self, Out, warn};
use super::super::tree::Answer;
use super::report::{exit_code, to_errors};
use super::{Frozen, Leaving, Standing};
use crate::error::{Error, Result};
use crate::set::Code;

/// What to know of an image that has the identity of a mounted file system.
const TWINS: &str = "the image has the identity of the mounted btrfs: mount it with Linux 6.7 or later, or elsewhere";

/// `detach` with `--freeze`, `--freeze-cmd`, `--with` or `--exec`.
pub(in crate::cli) fn detach(args: &DetachArgs, out: Out) -> Result<u8> {
    let leaving = leaving(args)?;
    let rehearsed = leaving
        .iter()
        .map(Leaving::rehearse)
        .collect::<Result<Vec<_>>>()?;
    let standing = Standing::find(&leaving, &args.quiet, args.quiet.freeze.is_some())?;
    let images = leaving
        .iter()
        .map(Leaving::image)
        .collect::<Result<Vec<_>>>()?;
    let mut told = Told {
        leaving: &leaving,
        images: &images,
        standing: &standing,
        answers: rehearsed,
        frozen: None,
    };
    if args.dry_run {
        return told.show(out);
    }
    let (answers, frozen) = standing.during(&leaving, |_| {})?;
    (told.answers, told.frozen) = (answers, Some(frozen));
    let shown = told.show(out);
    // The file systems are open in it, and may be unmounted while the command runs.
    drop(standing);
    match &args.exec {
        Some(text) => {
            output::unless_reader_has_gone(shown)?;
            exec(text, &leaving[0], &images[0], out)
        }
        None => shown,
    }
}

/// The member that is named first, and those that leave at the same moment.
fn leaving(args: &DetachArgs) -> Result<Vec<Leaving>> {
    if !args.with.is_empty() && !args.quiet.is_wanted() {
        let says = format!(
            "detach {}: --with needs --freeze or --freeze-cmd",
            args.member
        );
        return Err(Error::new(Code::Syntax, says).with_hint(
            "members of two units have left at the same moment only when nothing was written meanwhile",
        ));
    }
    let command = |member: &str| -> Result<String> {
        let words = Words::new("detach").word(member)?;
        Ok(words.option("policy", args.policy.as_deref())?.text)
    };
    let mut all = vec![Leaving::new(
        &args.unit,
        &args.member,
        command(&args.member)?,
    )?];
    for (unit, member) in &args.with {
        all.push(Leaving::new(unit, member, command(member)?)?);
    }
    Ok(all)
}

/// What has happened, or would happen.
struct Told<'a> {
    leaving: &'a [Leaving],
    images: &'a [PathBuf],
    standing: &'a Standing,
    answers: Vec<Answer>,
    frozen: Option<Vec<Frozen>>,
}

impl Told<'_> {
    fn show(&self, out: Out) -> Result<u8> {
        out.either(&self.value(), self.text().trim_end())?;
        let found = &self.standing.found;
        if self.frozen.is_some() && found.iter().any(|fs| fs.fstype == "btrfs") {
            warn(TWINS);
        }
        Ok(0)
    }

    fn value(&self) -> Value {
        let mut all = self.leaving.iter().zip(self.images).zip(&self.answers);
        let one = |((one, image), answer): ((&Leaving, &PathBuf), &Answer)| {
            let mut value = answer_value(answer);
            value["unit"] = one.unit.unit.clone().into();
            value["image"] = image.display().to_string().into();
            value["mount"] = self.standing.mount_lines(one, image).into();
            value
        };
        let mut value = all.next().map(one).unwrap_or_default();
        value["with"] = all.map(one).collect();
        let found = self.standing.found.iter();
        value["freeze"] = found
            .map(|fs| fs.mountpoint.display().to_string())
            .collect();
        if let Some(frozen) = &self.frozen {
            value["frozen"] = frozen.iter().map(Frozen::value).collect();
        }
        value
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for ((one, image), answer) in self.leaving.iter().zip(self.images).zip(&self.answers) {
            text.push_str(&format!("{}\n", answer.sentence));
            for (key, value) in &answer.values {
                text.push_str(&format!("  {key} {value}\n"));
            }
            for line in self.standing.mount_lines(one, image) {
                text.push_str(&format!("  {line}\n"));
            }
        }
        match &self.frozen {
            Some(frozen) => frozen
                .iter()
                .for_each(|one| text.push_str(&format!("{}\n", one.line()))),
            None => self.standing.found.iter().for_each(|fs| {
                text.push_str(&format!(
                    "freeze {} {}\n",
                    fs.mountpoint.display(),
                    fs.fstype
                ));
            }),
        }
        text
    }
}

/// Runs a shell command on the image; its exit code is that of the verb.
fn exec(text: &str, one: &Leaving, image: &Path, out: Out) -> Result<u8> {
    let failed = |cause| Error::io(format!("{}: cannot run `{text}`", one.subject()), cause);
    let mut command = Command::new("sh");
    command.args(["-c", text]);
    if out.json {
        to_errors(&mut command).map_err(failed)?;
    }
    command
        .env("SHADOWSET_UNIT", &one.unit.unit)
        .env("SHADOWSET_MEMBER", &one.member)
        .env("SHADOWSET_IMAGE", image);
    let status = command.status().map_err(failed)?;
    let code = exit_code(status);
    if code != 0 {
        let says = format!(
            "{} is detached, but `{text}` has failed: {status}",
            one.member
        );
        let error = Error::new(Code::Io, says).with_hint("the image is as it was when it left");
        output::report(&error, false);
    }
    Ok(code)
}
