//! The arguments of the program: one declaration, from which parser, help and completions come.
//!
//! Arguments only: nothing here opens, reads or decides anything.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};
use clap_complete::Shell;

use super::freeze::FreezeArgs;
use super::params::AnyParam;
use super::size::{parse_size, parse_timeout};
use super::wait::Goal;
use crate::set::geometry::Bytes;

/// Keeps one virtual disk file on mirrored member images; detaches and attaches members by minicopy.
#[derive(Parser, Debug)]
#[command(name = "shadowset", version, about, propagate_version = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused in this \
    state,\n            5 reduced or failed (status only), 32 not mounted (mount only), 124 timeout"
)]
pub(super) struct Args {
    /// Answer in JSON.
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// What to do.
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// Every verb of the program.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// Creates a shadow set: its configuration and its member images.
    Create(CreateArgs),
    /// Mounts a unit; returns when the virtual unit can be opened.
    Mount(MountArgs),
    /// Unmounts a unit; returns when its members are closed.
    Stop(StopArgs),
    /// Lists the mounted and the configured units.
    List,
    /// Shows the state of a unit, or of all mounted ones.
    Status(StatusArgs),
    /// Shows a unit in the manner of SHOW SHADOW.
    Show(UnitArgs),
    /// Shows the storage control block of an image, whole or damaged; changes and locks nothing.
    Examine(ExamineArgs),
    /// Takes a member out of the set and starts a write bitmap for it.
    Detach(DetachArgs),
    /// Detaches a member with everything at rest, runs a command on its image, and attaches it.
    Backup(super::backup::BackupArgs),
    /// Brings a member back, by minicopy when there is a bitmap, or adds an image.
    Attach(AttachArgs),
    /// Takes a member out at once, as after an error.
    Expel(super::expel::ExpelArgs),
    /// Has nothing wait any longer for members that do not answer.
    Abort(super::expel::AbortArgs),
    /// Gives up a departed member: its row and its bitmap go, and its image may be written.
    Release(ReleaseArgs),
    /// Makes the other sources equal to the master: where writes may be in flight, or everywhere.
    Merge(MergeArgs),
    /// Compares the source members block by block, and repairs what differs.
    Verify(super::verify::VerifyArgs),
    /// Makes a mounted unit larger, to a size or as far as its members have room.
    Resize(ResizeArgs),
    /// Has writes wait, for a number of seconds at most; the members are quiet when this returns.
    Stall(super::stall::StallArgs),
    /// Lets writes go on before the seconds of a stall are over.
    Unstall(super::stall::UnstallArgs),
    /// Write bitmaps of detached members.
    #[command(subcommand)]
    Bitmap(BitmapVerb),
    /// Copies, merges and verifies.
    #[command(subcommand)]
    Op(OpVerb),
    /// Parameters of a mounted unit.
    #[command(subcommand)]
    Params(ParamsVerb),
    /// Sets the counters of requests and errors back to zero.
    ResetCounters(super::expel::ResetArgs),
    /// Waits until a unit is in a given state.
    Wait(WaitArgs),
    /// Prints what has happened to a unit.
    Events(EventsArgs),
    /// Loop devices over the virtual unit.
    #[command(subcommand)]
    Loop(LoopVerb),
    /// Plays the whole story on temporary images, with the numbers of this machine.
    Demo(super::demo::DemoArgs),
    /// Prints the completions for a shell.
    Completions(CompletionsArgs),
    /// Prints what may stand at the end of a line: for those scripts only.
    #[command(hide = true)]
    Complete(super::complete::CompleteArgs),
}

/// A verb that needs a unit only.
#[derive(ClapArgs, Debug)]
pub(super) struct UnitArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    pub(super) unit: String,
}

/// `create`.
#[derive(ClapArgs, Debug)]
pub(super) struct CreateArgs {
    /// Name of the unit, or the path of its configuration file; a missing file is written.
    pub(super) unit: String,
    /// Size of the virtual unit, with k, M, G or T for powers of 1024.
    #[arg(long, value_parser = parse_size)]
    pub(super) size: Option<Bytes>,
    /// A member and its image: a file or a block device. Once per member.
    #[arg(long = "member", value_name = "NAME=PATH", value_parser = parse_member)]
    pub(super) members: Vec<(String, PathBuf)>,
    /// The member whose data is kept; the others are copied from it at the first mount.
    #[arg(long, value_name = "NAME")]
    pub(super) from: Option<String>,
    /// Directory for what belongs to the unit and to no member.
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<PathBuf>,
    /// Label of the set; the unit's name unless given.
    #[arg(long)]
    pub(super) label: Option<String>,
    /// Blocks of 512 bytes that one bit of a write bitmap stands for.
    #[arg(long, value_name = "BLOCKS")]
    pub(super) region_blocks: Option<u32>,
    /// Agree that images which hold data lose it.
    #[arg(long)]
    pub(super) erase: bool,
    /// Say what would be made and make nothing.
    #[arg(long, short = 'n')]
    pub(super) dry_run: bool,
}

/// `mount`.
#[derive(ClapArgs, Debug)]
pub(super) struct MountArgs {
    /// Path of a configuration, name of a unit, or `none` with -o members=A:B.
    pub(super) spec: String,
    /// Mount point: an existing directory.
    pub(super) dir: PathBuf,
    /// Serve in this process instead of a new one.
    #[arg(long)]
    pub(super) foreground: bool,
    /// Mount options, separated by commas; a value with a comma in it stands in double quotes.
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(super) options: Vec<OsString>,
    /// Append the log to this file.
    #[arg(long, value_name = "FILE")]
    pub(super) log: Option<PathBuf>,
    /// Go on without mount options that are unknown, and name them.
    #[arg(short = 's', long)]
    pub(super) sloppy: bool,
    /// Check everything that can be checked without a server, and mount nothing.
    #[arg(short = 'n', long, conflicts_with = "foreground")]
    pub(super) dry_run: bool,
    /// Report readiness on standard output: between launcher and server only.
    #[arg(long, hide = true, requires = "foreground")]
    pub(super) ready_pipe: bool,
}

/// `stop`.
#[derive(ClapArgs, Debug)]
pub(super) struct StopArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    pub(super) unit: String,
    /// Wait as long as the unit is in use instead of refusing.
    #[arg(long)]
    pub(super) wait: bool,
    /// Detach the mount at once; the server ends when the last user has closed the unit.
    #[arg(long)]
    pub(super) force: bool,
}

/// `status`.
#[derive(ClapArgs, Debug)]
#[command(
    after_help = "With --json: the unit's status.json, an object; without UNIT an array of \
    these, one per mounted unit."
)]
pub(super) struct StatusArgs {
    /// Name of a mounted unit, its mount point, or its configuration file; all units without it.
    pub(super) unit: Option<String>,
    /// Go on until the unit is unmounted, showing each change. Keeps the mount in use meanwhile:
    /// `stop` without --force is refused.
    #[arg(long, short, requires = "unit")]
    pub(super) watch: bool,
}

/// `examine`.
#[derive(ClapArgs, Debug)]
#[command(
    after_help = "Exit codes: 0 a block can be read, 1 it cannot (damaged, of a newer version, or \
    no block), 3 not found"
)]
pub(super) struct ExamineArgs {
    /// An image, a file or a block device, or the file of a storage control block.
    pub(super) path: PathBuf,
    /// The file of the image's storage control block, when it lies elsewhere.
    #[arg(long, value_name = "FILE")]
    pub(super) scb: Option<PathBuf>,
}

/// `detach`.
#[derive(ClapArgs, Debug)]
pub(super) struct DetachArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    pub(super) unit: String,
    /// Name of the member.
    pub(super) member: String,
    /// Whether the member gets a write bitmap.
    #[arg(long, value_parser = ["minicopy", "minicopy=optional", "none"])]
    pub(super) policy: Option<String>,
    /// How applications are brought to rest for it.
    #[command(flatten)]
    pub(super) quiet: FreezeArgs,
    /// A member of another unit that leaves in the same rest.
    #[arg(long, value_name = "UNIT:MEMBER", value_parser = parse_other)]
    pub(super) with: Vec<(String, String)>,
    /// Shell command to run when the member has left; SHADOWSET_IMAGE is its image.
    #[arg(long, value_name = "CMD", conflicts_with = "dry_run")]
    pub(super) exec: Option<String>,
    /// Say what would happen and change nothing.
    #[arg(long, short = 'n')]
    pub(super) dry_run: bool,
}

/// `attach`.
#[derive(ClapArgs, Debug)]
pub(super) struct AttachArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    pub(super) unit: String,
    /// Name of a detached member, or the path of an image (with a slash in it).
    #[arg(value_name = "MEMBER|PATH")]
    pub(super) what: String,
    /// Name for a new member.
    #[arg(long = "as", value_name = "NAME")]
    pub(super) name: Option<String>,
    /// What kind of copy is allowed.
    #[arg(long, value_parser = ["minicopy", "minicopy=optional", "compare", "full", "nocopy"])]
    pub(super) policy: Option<String>,
    /// The source member that the copy should read.
    #[arg(long, value_name = "MEMBER")]
    pub(super) source: Option<String>,
    /// Agree that the image is overwritten.
    #[arg(long, short)]
    pub(super) yes: bool,
    /// Return when the copy has ended.
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) wait: bool,
    /// Say what would happen and change nothing.
    #[arg(long, short = 'n')]
    pub(super) dry_run: bool,
}

/// `release`.
#[derive(ClapArgs, Debug)]
pub(super) struct ReleaseArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    pub(super) unit: String,
    /// Name of the member.
    pub(super) member: String,
    /// Say what would happen and change nothing.
    #[arg(long, short = 'n')]
    pub(super) dry_run: bool,
}

/// `merge`.
#[derive(ClapArgs, Debug)]
pub(super) struct MergeArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    pub(super) unit: String,
    /// Everywhere, not only where writes may be in flight.
    #[arg(long)]
    pub(super) full: bool,
    /// Say what would happen and change nothing.
    #[arg(long, short = 'n')]
    pub(super) dry_run: bool,
}

/// `resize`.
#[derive(ClapArgs, Debug)]
pub(super) struct ResizeArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    pub(super) unit: String,
    /// New size: bytes, or with k, M, G or T. Without it, all that the members have room for.
    #[arg(value_parser = super::size::parse_size)]
    pub(super) size: Option<crate::set::geometry::Bytes>,
    /// Say what would happen and change nothing.
    #[arg(long, short = 'n')]
    pub(super) dry_run: bool,
}

/// `bitmap`.
#[derive(Subcommand, Debug)]
pub(super) enum BitmapVerb {
    /// Lists the bitmaps.
    List(UnitArgs),
    /// Shows one bitmap.
    Show(BitmapArgs),
    /// Prints the ranges that were written, in blocks; with --json in bytes.
    Extents(BitmapArgs),
    /// Deletes a bitmap: the attach of its member becomes a full copy.
    Delete(BitmapDeleteArgs),
}

/// One bitmap.
#[derive(ClapArgs, Debug)]
pub(super) struct BitmapArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    pub(super) unit: String,
    /// Id of the bitmap, or the name of its member.
    #[arg(value_name = "ID|MEMBER")]
    pub(super) bitmap: String,
}

/// `bitmap delete`.
#[derive(ClapArgs, Debug)]
pub(super) struct BitmapDeleteArgs {
    /// Which bitmap.
    #[command(flatten)]
    pub(super) bitmap: BitmapArgs,
    /// Say what would happen and change nothing.
    #[arg(long, short = 'n')]
    pub(super) dry_run: bool,
}

/// `op`.
#[derive(Subcommand, Debug)]
pub(super) enum OpVerb {
    /// Lists the running and the last finished operations.
    List(UnitArgs),
    /// Shows everything of one operation, of a verify its report too.
    Show(OpArgs),
    /// Holds an operation.
    Pause(OpSteerArgs),
    /// Lets a held operation go on.
    Resume(OpSteerArgs),
    /// Ends an operation; the regions still to copy stay marked.
    Cancel(OpSteerArgs),
    /// Waits for the end of an operation.
    Wait(OpWaitArgs),
}

/// One operation.
#[derive(ClapArgs, Debug)]
pub(super) struct OpArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    pub(super) unit: String,
    /// Number of the operation.
    pub(super) operation: u64,
}

/// `op pause`, `op resume` and `op cancel`.
#[derive(ClapArgs, Debug)]
pub(super) struct OpSteerArgs {
    /// Which operation.
    #[command(flatten)]
    pub(super) op: OpArgs,
    /// Say what would happen and change nothing.
    #[arg(long, short = 'n')]
    pub(super) dry_run: bool,
}

/// `op wait`.
#[derive(ClapArgs, Debug)]
pub(super) struct OpWaitArgs {
    /// Which operation.
    #[command(flatten)]
    pub(super) op: OpArgs,
    /// Give up after this time: seconds, or with s, m or h.
    #[arg(long, value_parser = parse_timeout)]
    pub(super) timeout: Option<Duration>,
}

/// `params`.
#[derive(Subcommand, Debug)]
pub(super) enum ParamsVerb {
    /// Lists the parameters with their values and what they take.
    List(UnitArgs),
    /// Prints the value of a parameter.
    Get(ParamArgs),
    /// Gives a parameter another value, at once in force.
    Set(ParamSetArgs),
}

/// One parameter.
#[derive(ClapArgs, Debug)]
pub(super) struct ParamArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    pub(super) unit: String,
    /// Name of the parameter, MEMBER.read_cost, MEMBER.site, MEMBER.timeout, or OPERATION.rate_max.
    #[arg(value_parser = AnyParam)]
    pub(super) name: String,
}

/// `params set`.
#[derive(ClapArgs, Debug)]
pub(super) struct ParamSetArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    pub(super) unit: String,
    /// Name of the parameter, MEMBER.read_cost, MEMBER.site, MEMBER.timeout, or OPERATION.rate_max.
    #[arg(value_parser = AnyParam)]
    pub(super) name: String,
    /// The value.
    #[arg(allow_hyphen_values = true)]
    pub(super) value: String,
    /// Write it into the unit's configuration too; its comments stay.
    #[arg(long)]
    pub(super) persist: bool,
    /// Say what would happen and change nothing.
    #[arg(long, short = 'n')]
    pub(super) dry_run: bool,
}

/// `wait`.
#[derive(ClapArgs, Debug)]
pub(super) struct WaitArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    pub(super) unit: String,
    /// What to wait for: `steady`, `op=N` or `member=NAME:STATE`.
    #[arg(long = "for", value_name = "GOAL", default_value = "steady")]
    pub(super) goal: Goal,
    /// Give up after this time: seconds, or with s, m or h.
    #[arg(long, value_parser = parse_timeout)]
    pub(super) timeout: Option<Duration>,
}

/// `events`.
#[derive(ClapArgs, Debug)]
pub(super) struct EventsArgs {
    /// Name of a mounted unit, its mount point, or its configuration file.
    pub(super) unit: String,
    /// Go on with what happens from now on.
    #[arg(long, short)]
    pub(super) follow: bool,
}

/// `loop`.
#[derive(Subcommand, Debug)]
pub(super) enum LoopVerb {
    /// Sets up a loop device with direct I/O over the unit and prints its name.
    Attach(UnitArgs),
    /// Frees the loop devices over the unit.
    Detach(UnitArgs),
    /// Prints the unit that a loop device is over; asks no server.
    Unit(super::loops::DeviceArgs),
}

/// `completions`.
#[derive(ClapArgs, Debug)]
pub(super) struct CompletionsArgs {
    /// Which shell.
    pub(super) shell: Shell,
}

/// Splits `UNIT:MEMBER`; a unit may be a path.
fn parse_other(text: &str) -> Result<(String, String), String> {
    match text.rsplit_once(':') {
        Some((unit, member)) if !unit.is_empty() && !member.is_empty() => {
            Ok((unit.to_owned(), member.to_owned()))
        }
        _ => Err("expected UNIT:MEMBER, as in dsa2:m3".to_owned()),
    }
}

/// Splits `NAME=PATH`.
fn parse_member(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(path)))
        }
        _ => Err("expected NAME=PATH, as in m1=/srv/images/m1.img".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("shadowset").chain(line.split(' ')))
    }

    #[test]
    fn the_declaration_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_documented_line_is_accepted() {
        let lines = [
            "create dsa1 --size 1G --member m1=/a --member m2=/b --from m1 --state-dir /s --erase",
            "create ./dsa1.toml",
            "mount dsa1 /mnt --foreground",
            "mount none /mnt -o ro,members=/a:/b,unit=dsa2 --log /tmp/log",
            "stop dsa1 --wait --force",
            "list --json",
            "status",
            "status dsa1 --watch --json",
            "--json show dsa1",
            "examine /srv/m1.img --json",
            "examine /dev/sdb --scb /var/lib/shadowset/dsa1/m1.scb",
            "detach dsa1 m3 --policy minicopy --dry-run",
            "detach dsa1 m3 --freeze --with dsa2:m2 --json",
            "detach dsa1 m3 --freeze=/data --exec true --freeze-timeout 2.5",
            "detach dsa1 m3 --freeze-cmd a --thaw-cmd b",
            "backup dsa1 m3 -- borg create repo::now {}",
            "backup dsa1 m3 --no-freeze --json -n -- cat",
            "attach dsa1 m3 --policy minicopy=optional --wait",
            "attach dsa1 /srv/m4.img --as m4 --yes --json",
            "release dsa1 m3 --json",
            "merge dsa1",
            "merge dsa1 --full",
            "verify dsa1 --range 0-99 --repair --source m1 --wait --json",
            "verify dsa1 -n",
            "resize dsa1",
            "resize dsa1 36G --dry-run",
            "bitmap list dsa1",
            "bitmap show dsa1 m3",
            "bitmap extents dsa1 0a0b0c0d --json",
            "bitmap delete dsa1 0a0b0c0d",
            "op list dsa1",
            "op show dsa1 7 --json",
            "op pause dsa1 7",
            "op resume dsa1 7",
            "op cancel dsa1 7",
            "op wait dsa1 7 --timeout 5m",
            "params list dsa1 --json",
            "params get dsa1 max_copies",
            "params set dsa1 max_copies 2 --persist",
            "wait dsa1 --for steady --timeout 10",
            "wait dsa1 --for op=3",
            "wait dsa1 --for member=m3:source",
            "events dsa1 --follow",
            "loop attach dsa1",
            "loop detach dsa1",
            "demo",
            "demo --size 256M --dir /var/tmp --keep --json",
            "completions bash",
        ];
        for line in lines {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn wrong_usage_is_an_error_that_names_the_word() {
        let table = [
            ("frobnicate", "frobnicate"),
            ("detach dsa1", "MEMBER"),
            ("examine", "PATH"),
            ("detach dsa1 m1 --policy half", "half"),
            ("detach dsa1 m1 --freeze --with dsa2", "UNIT:MEMBER"),
            ("detach dsa1 m1 --freeze-timeout 0", "10 minutes"),
            ("backup dsa1 m1", "CMD"),
            ("backup dsa1 m1 --freeze --no-freeze -- cat", "--no-freeze"),
            ("detach dsa1 m1 --thaw-cmd b", "--freeze-cmd"),
            ("release dsa1", "MEMBER"),
            ("merge dsa1 m1", "m1"),
            ("attach dsa1 m1 --wait --dry-run", "--dry-run"),
            ("verify dsa1 --source m1", "--repair"),
            ("create dsa1 --size 1X", "1X"),
            ("create dsa1 --member m1", "NAME=PATH"),
            ("wait dsa1 --for rain", "rain"),
            ("wait dsa1 --for op=x", "op=x"),
            ("op pause dsa1 seven", "seven"),
            ("params set dsa1 max_copies", "<VALUE>"),
            ("status --watch", "<UNIT>"),
            ("mount dsa1 /mnt --ready-pipe", "--foreground"),
            ("completions tcl", "tcl"),
        ];
        for (line, word) in table {
            let error = parse(line).expect_err(line);
            assert!(error.to_string().contains(word), "{line}: {error}");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn lists_of_mount_options_are_kept_as_they_are() {
        let args = parse("mount none /mnt -o ro,log=/l -o allow_other").expect("valid");
        let Verb::Mount(mount) = args.verb else {
            unreachable!("asked for mount")
        };
        assert_eq!(mount.options, ["ro,log=/l", "allow_other"]);
    }
}
