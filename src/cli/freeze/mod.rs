//! Freezing: file systems and applications on units are brought to rest while members are detached.
//!
//! This module finds what has to be frozen and refuses what would wait for itself. The freezing is done by a process of
//! its own ([`freezer`]), because nothing may stay frozen when the command line or a server is killed or stopped.

mod detach;
pub(super) mod freezer;
mod hook;
mod quiet;
mod report;
mod rest;
mod wire;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args as ClapArgs;

use self::quiet::Quiet;
use self::wire::{Place, Plan};
use super::model::Status;
use super::output::about;
use super::place;
use super::size::parse_timeout;
use super::system::{self, Running};
use super::tree::{Answer, Tree};
use crate::error::{Error, Result};
use crate::io::filesystems::{self, FileSystem};
use crate::set::Code;

pub(super) use self::detach::detach;
pub(super) use self::report::{Frozen, exit_code, to_errors};

/// The word that begins the process that freezes.
pub(super) const FREEZER: &str = "freezer";

/// How applications and file systems are brought to rest.
#[derive(ClapArgs, Clone, Debug)]
pub(super) struct FreezeArgs {
    /// Freeze the file systems on loop devices over the unit while the member is detached, or only the one that is
    /// mounted on MOUNTPOINT.
    #[arg(
        long,
        value_name = "MOUNTPOINT",
        num_args = 0..=1,
        require_equals = true
    )]
    pub(super) freeze: Option<Option<PathBuf>>,
    /// Shell command that brings applications to rest, before anything is frozen.
    #[arg(long, value_name = "CMD")]
    pub(super) freeze_cmd: Option<String>,
    /// Shell command that lets them go on; run too when the other has failed or its time is over.
    #[arg(long, value_name = "CMD", requires = "freeze_cmd")]
    pub(super) thaw_cmd: Option<String>,
    /// How long anything may be at rest: seconds, or with s or m.
    #[arg(long, value_name = "TIME", value_parser = parse_limit, default_value = "10")]
    pub(super) freeze_timeout: Duration,
}

/// A time in which something may be at rest.
fn parse_limit(text: &str) -> std::result::Result<Duration, String> {
    let time = parse_timeout(text)?;
    let (min, max) = (Duration::from_secs(1), Duration::from_secs(600));
    match (min..=max).contains(&time) {
        true => Ok(time),
        false => Err(format!("`{text}` is not between 1 s and 10 minutes")),
    }
}

impl FreezeArgs {
    /// Whether anything is to be brought to rest.
    pub(super) fn is_wanted(&self) -> bool {
        self.freeze.is_some() || self.freeze_cmd.is_some()
    }
}

/// A member that is to leave its unit.
#[derive(Debug)]
pub(super) struct Leaving {
    /// The unit.
    pub(super) unit: Running,
    /// Its control tree.
    pub(super) tree: Tree,
    /// The member.
    pub(super) member: String,
    /// The command of the control tree.
    pub(super) command: String,
}

impl Leaving {
    /// A member of the unit that an argument means.
    pub(super) fn new(unit: &str, member: &str, command: String) -> Result<Self> {
        let unit = place::running(unit)?;
        Ok(Self {
            tree: Tree::of(&unit),
            unit,
            member: member.to_owned(),
            command,
        })
    }

    /// What errors are about.
    pub(super) fn subject(&self) -> String {
        format!("detach {}", self.member)
    }

    /// What the server would do, before anything is brought to rest for it.
    pub(super) fn rehearse(&self) -> Result<Answer> {
        let answer = self.tree.command(&format!("{} dry-run", self.command))?;
        let status = self.tree.status()?;
        refuse_standing(&self.subject(), &status)?;
        Ok(answer)
    }

    /// The image of the member.
    pub(super) fn image(&self) -> Result<PathBuf> {
        let status = self.tree.status()?;
        let member = status.member(&self.member);
        member
            .map(|member| PathBuf::from(&member.path))
            .ok_or_else(|| {
                let says = format!("{}: no member is named so", self.subject());
                Error::new(Code::NoSuchMember, says)
            })
    }
}

/// Freezing writes; a unit whose writes wait would keep what is frozen waiting.
fn refuse_standing(subject: &str, status: &Status) -> Result<()> {
    let unit = &status.unit;
    let (how, hint) = match (&status.stalled, status.state.as_str()) {
        (Some(until), _) => (
            format!("writes to {unit} are held until {until}"),
            format!("`shadowset unstall {unit}`"),
        ),
        (None, "mount-verify") => (
            format!("no member of {unit} answers"),
            format!("`shadowset status {unit}` shows for whom it waits"),
        ),
        _ => return Ok(()),
    };
    let says = format!("{subject}: {how}, so nothing can be frozen");
    Err(Error::new(Code::InUse, says).with_hint(hint))
}

/// What has to be brought to rest for some members to leave.
#[derive(Debug)]
pub(super) struct Standing {
    /// File systems on the units, in the order in which they are frozen.
    pub(super) found: Vec<FileSystem>,
    /// Units, and disks over them.
    disks: Vec<(String, PathBuf)>,
    plan: Plan,
}

impl Standing {
    /// Looks for the file systems, and makes sure that freezing them holds up nobody who is needed.
    ///
    /// # Errors
    /// `NoSuchFile` when there are none though they are wanted; what refuses to be frozen.
    pub(super) fn find(leaving: &[Leaving], args: &FreezeArgs, wanted: bool) -> Result<Self> {
        let (mut found, mut disks) = (Vec::new(), Vec::new());
        if wanted {
            for one in units(leaving) {
                let failed = |error| about(&one.subject(), &error);
                for disk in system::loop_find(&one.unit.file()).map_err(&failed)? {
                    found.append(&mut on_disk(&disk, args).map_err(&failed)?);
                    disks.push((one.unit.unit.clone(), disk));
                }
            }
            found = chosen(found, args).map_err(|e| about(&leaving[0].subject(), &e))?;
        }
        // What was mounted later may lie in a file of what was mounted before, and has to be written into it.
        found.sort_by_key(|fs| std::cmp::Reverse(fs.mount_id));
        for one in units(leaving) {
            refuse_server_on(one, &found)?;
        }
        let plan = plan(leaving, args, &found);
        Ok(Self { found, disks, plan })
    }

    /// Whether there is anything to bring to rest.
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty() && self.plan.freeze_cmd.is_none()
    }

    /// How the file systems on the image of a member that leaves are mounted to be read.
    pub(super) fn mount_lines(&self, one: &Leaving, image: &Path) -> Vec<String> {
        let is_its = |fs: &&FileSystem| {
            let owner = self.disks.iter().find(|(_, disk)| *disk == fs.disk);
            owner.is_some_and(|(unit, _)| *unit == one.unit.unit)
        };
        let mut on_image: Vec<_> = self.found.iter().filter(is_its).collect();
        on_image.sort_by_key(|fs| fs.span);
        on_image
            .iter()
            .map(|fs| report::mount_line(fs, image))
            .collect()
    }

    /// Brings it to rest, has the members leave one after the other, and lets it go on. `gone` hears of each at once.
    ///
    /// # Errors
    /// Why it cannot be, or why a member cannot leave; and, after the members have left, that something went on
    /// before that.
    pub(super) fn during(
        &self,
        leaving: &[Leaving],
        mut gone: impl FnMut(&Answer),
    ) -> std::result::Result<(Vec<Answer>, Vec<Frozen>), Broken> {
        if self.is_empty() {
            let (answers, refused) = all_leave(leaving, &|| None, &mut gone);
            return refused.map_or(Ok((answers, Vec::new())), Err);
        }
        let subject = leaving[0].subject();
        let files = self.found.iter().map(|fs| fs.file.try_clone());
        let files = files.collect::<std::io::Result<_>>();
        let files = files.map_err(|e| Error::io(format!("{subject}: cannot freeze"), e))?;
        let quiet = Quiet::begin(self.plan.clone(), files).map_err(|e| about(&subject, &e))?;
        let late = || quiet.is_over().then(|| quiet.late());
        let (answers, refused) = all_leave(leaving, &late, &mut gone);
        let released = quiet.end();
        let gone: Vec<&str> = leaving[..answers.len()]
            .iter()
            .map(|one| one.member.as_str())
            .collect();
        if let Some(broken) = refused {
            return Err(Broken {
                error: report::partly(broken.error, &gone),
                ..broken
            });
        }
        let frozen = report::frozen(&self.found, &released, &gone).map_err(|error| Broken {
            error,
            may_be_gone: true,
        })?;
        Ok((answers, frozen))
    }
}

/// Why members have not left as they should.
#[derive(Debug)]
pub(super) struct Broken {
    /// What is the matter.
    pub(super) error: Error,
    /// Whether the last one of them that was asked to may have left all the same.
    pub(super) may_be_gone: bool,
}

impl Broken {
    /// The answer to the command is an error.
    fn by_command(error: Error) -> Self {
        // Somebody else has taken it out before, or is about to. Other errors may have come when it had left.
        let may_be_gone = !matches!(error.code(), Code::AlreadyDetached | Code::InUse);
        Self { error, may_be_gone }
    }
}

/// Nobody was asked yet.
impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        let may_be_gone = false;
        Self { error, may_be_gone }
    }
}

impl From<Broken> for Error {
    fn from(broken: Broken) -> Self {
        broken.error
    }
}

/// Has members leave one after the other, until it is too late for that; the answers, and why it went no further.
fn all_leave(
    leaving: &[Leaving],
    late: &dyn Fn() -> Option<Error>,
    gone: &mut dyn FnMut(&Answer),
) -> (Vec<Answer>, Option<Broken>) {
    let mut answers = Vec::new();
    for one in leaving {
        if let Some(error) = late() {
            return (answers, Some(about(&one.subject(), &error).into()));
        }
        match one.tree.command(&one.command) {
            Ok(answer) => {
                gone(&answer);
                answers.push(answer);
            }
            Err(error) => return (answers, Some(Broken::by_command(error))),
        }
    }
    (answers, None)
}

/// One of the leaving members of each unit.
fn units(leaving: &[Leaving]) -> impl Iterator<Item = &Leaving> {
    let is_first = |(at, one): &(usize, &Leaving)| {
        !leaving[..*at]
            .iter()
            .any(|before| before.unit.unit == one.unit.unit)
    };
    leaving
        .iter()
        .enumerate()
        .filter(is_first)
        .map(|(_, one)| one)
}

/// File systems on a loop device. Commands of the operator answer for what cannot be seen.
fn on_disk(disk: &Path, args: &FreezeArgs) -> Result<Vec<FileSystem>> {
    match filesystems::on_disk(disk) {
        Err(error) if error.code() == Code::InUse && args.freeze_cmd.is_some() => Ok(Vec::new()),
        other => other,
    }
}

/// The one that was asked for, or all of them.
fn chosen(found: Vec<FileSystem>, args: &FreezeArgs) -> Result<Vec<FileSystem>> {
    match &args.freeze {
        Some(Some(mountpoint)) => Ok(vec![filesystems::select(found, mountpoint)?]),
        Some(None) if found.is_empty() => {
            let says = "no file system is mounted from a loop device over the unit";
            Err(Error::new(Code::NoSuchFile, says).with_hint(
                "leave --freeze out; applications that open the unit itself are brought to rest by --freeze-cmd",
            ))
        }
        _ => Ok(found),
    }
}

/// A server that writes to what is frozen would wait for itself.
fn refuse_server_on(one: &Leaving, found: &[FileSystem]) -> Result<()> {
    let Some(pid) = one.unit.pid else {
        return Ok(());
    };
    let subject = one.subject();
    let open = filesystems::open_file_of(pid, found).map_err(|cause| {
        let says = format!("{subject}: cannot see which files the server has open");
        Error::io(says, cause)
    })?;
    let Some(path) = open else {
        return Ok(());
    };
    let says = format!(
        "{subject}: the server of {} has {} open, on the file system to be frozen, and would wait for itself",
        one.unit.unit,
        path.display()
    );
    Err(Error::new(Code::InUse, says)
        .with_hint("keep its images, its state directory and its log outside of the unit"))
}

fn plan(leaving: &[Leaving], args: &FreezeArgs, found: &[FileSystem]) -> Plan {
    let place = |fs: &FileSystem| Place {
        mountpoint: fs.mountpoint.clone(),
        mount_id: fs.mount_id,
    };
    let first = &leaving[0];
    Plan {
        places: found.iter().map(place).collect(),
        servers: units(leaving).filter_map(|one| one.unit.pid).collect(),
        limit_ms: u64::try_from(args.freeze_timeout.as_millis()).unwrap_or(u64::MAX),
        freeze_cmd: args.freeze_cmd.clone(),
        thaw_cmd: args.thaw_cmd.clone(),
        env: vec![
            ("SHADOWSET_UNIT".to_owned(), first.unit.unit.clone()),
            ("SHADOWSET_MEMBER".to_owned(), first.member.clone()),
        ],
    }
}
