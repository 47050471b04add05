//! `stall` and `unstall`: words of the command line to one command of the control tree.

use clap::Args as ClapArgs;

use super::change::{Command, show};
use super::output::Out;
use super::place;
use crate::error::Result;

/// `stall`.
#[derive(ClapArgs, Debug)]
pub(super) struct StallArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    unit: String,
    /// For how long at most: 1 to 600.
    seconds: u64,
    /// Say what would happen and change nothing.
    #[arg(long, short = 'n')]
    dry_run: bool,
}

/// `unstall`.
#[derive(ClapArgs, Debug)]
pub(super) struct UnstallArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    unit: String,
    /// Say what would happen and change nothing.
    #[arg(long, short = 'n')]
    dry_run: bool,
}

/// `stall`.
pub(super) fn stall(args: &StallArgs, out: Out) -> Result<u8> {
    let command = Command::new("stall").word(&args.seconds.to_string())?;
    let command = command.flag("dry-run", args.dry_run);
    show(&place::tree(&args.unit)?.command(&command.text)?, out)
}

/// `unstall`.
pub(super) fn unstall(args: &UnstallArgs, out: Out) -> Result<u8> {
    let command = Command::new("unstall").flag("dry-run", args.dry_run);
    show(&place::tree(&args.unit)?.command(&command.text)?, out)
}
