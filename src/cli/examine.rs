//! `examine`: the storage control block of one image, whole, damaged or of another set.
//!
//! It looks at files alone, so it works while the unit runs and when it does not. It must never write,
//! and must take no lock: not even for an instant, since a mount could meet it.

mod fields;
mod report;
mod subject;
mod verdict;

use std::path::Path;

use self::report::Report;
use self::subject::Subject;
use self::verdict::Verdict;
use super::args::ExamineArgs;
use super::output::{self, Out, about};
use crate::error::{Error, Result};
use crate::io::scb_file::Slots;
use crate::set::Code;
use crate::set::scb::{Content, Scb, ScbError, ScbRow, Slot, claims};

/// Exit code when there is a block that cannot be read.
const EXIT_DAMAGED: u8 = 1;

/// `examine`.
pub(super) fn run(args: &ExamineArgs, out: Out) -> Result<u8> {
    let what = format!("examine {}", args.path.display());
    let failed = |error: Error| about(&what, &error);
    let report = examine(args).map_err(failed)?;
    if out.json {
        out.value(&report.value())?;
    } else {
        out.text(&report.text(out))?;
    }
    match &report.newest {
        Ok(_) => Ok(0),
        Err(error) => {
            // The answer is on standard output already, as far as there is one.
            output::report(&failed(unusable(&report, error)), false);
            Ok(EXIT_DAMAGED)
        }
    }
}

fn examine(args: &ExamineArgs) -> Result<Report> {
    let Subject { scb, image } = subject::find(args)?;
    let file = subject::open(&scb)?;
    let read = |cause| Error::io(format!("{} cannot be read", scb.display()), cause);
    let slots = Slots::read_settled(&file).map_err(read)?;
    if !slots.is_ours() {
        return Err(foreign(&scb, &slots));
    }
    let newest = slots.newest();
    let own = newest.as_ref().ok().map(|(_, scb)| scb.clone());
    // Bytes that were not checked may name any path: none of theirs is looked for.
    let from_block = own.as_ref().and_then(own_row);
    let image = image.or(from_block.map(|row| (row.path.clone(), "block")));
    let image = image.map(|(path, found)| subject::look(&path, found));
    Ok(Report {
        verdict: Verdict::of(&newest, image.as_ref()),
        path: args.path.clone(),
        scb,
        slots,
        newest,
        image,
    })
}

fn own_row(scb: &Scb) -> Option<&ScbRow> {
    scb.row(scb.member)
}

/// A file that was never that of a block.
fn foreign(scb: &Path, slots: &Slots) -> Error {
    let begins = subject::begins(slots.bytes(Slot::A));
    let says = format!("{} is no SCB file: {begins}", scb.display());
    let hint = if slots.bytes(Slot::A).is_empty() {
        "its creation was interrupted; `shadowset create` fills it"
    } else {
        "an SCB file begins with SHDWSCB; if both slots have lost that, restore the file"
    };
    Error::new(Code::Config, says).with_hint(hint)
}

/// Why a block cannot be used, for standard error and the exit code.
fn unusable(report: &Report, error: &ScbError) -> Error {
    let scb = report.scb.display();
    if error.is_from_newer_program() {
        return Error::new(Code::NotSupported, format!("the SCB in {scb}: {error}"))
            .with_hint("use a newer shadowset");
    }
    let known = [Slot::A, Slot::B].iter().any(|slot| {
        claims(report.slots.bytes(*slot)).is_some_and(|c| c.content != Content::Unknown)
    });
    let error = Error::new(
        Code::Config,
        format!("the SCB in {scb} is damaged: {error}"),
    );
    error.with_hint(if known {
        "what could be read is shown and was not checked; restore the file"
    } else {
        "nothing of it can be read; restore the file"
    })
}

#[cfg(test)]
mod tests;
