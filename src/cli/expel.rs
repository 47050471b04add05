//! `expel`, `abort` and `reset-counters`: words of the command line to one command of the control tree.

use clap::Args as ClapArgs;

use super::change::{Command, show};
use super::output::Out;
use super::place;
use crate::error::Result;

/// `expel`.
#[derive(ClapArgs, Debug)]
pub(super) struct ExpelArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    unit: String,
    /// Name of the member.
    member: String,
    /// Say what would happen and change nothing.
    #[arg(long, short = 'n')]
    dry_run: bool,
}

/// `abort`.
#[derive(ClapArgs, Debug)]
pub(super) struct AbortArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    unit: String,
    /// Say what would happen and change nothing.
    #[arg(long, short = 'n')]
    dry_run: bool,
}

/// `reset-counters`.
#[derive(ClapArgs, Debug)]
pub(super) struct ResetArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    unit: String,
    /// Say what would happen and change nothing.
    #[arg(long, short = 'n')]
    dry_run: bool,
}

/// `expel`.
pub(super) fn expel(args: &ExpelArgs, out: Out) -> Result<u8> {
    let command = Command::new("expel").word(&args.member)?;
    let command = command.flag("dry-run", args.dry_run);
    show(&place::tree(&args.unit)?.command(&command.text)?, out)
}

/// `abort`.
pub(super) fn abort(args: &AbortArgs, out: Out) -> Result<u8> {
    let command = Command::new("abort").flag("dry-run", args.dry_run);
    show(&place::tree(&args.unit)?.command(&command.text)?, out)
}

/// `reset-counters`.
pub(super) fn reset(args: &ResetArgs, out: Out) -> Result<u8> {
    let command = Command::new("reset-counters").flag("dry-run", args.dry_run);
    show(&place::tree(&args.unit)?.command(&command.text)?, out)
}
