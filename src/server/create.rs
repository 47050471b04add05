//! Creates a set: images that are missing or empty as sparse files, and one storage control block per member.
//!
//! Everything is checked before anything is changed, and what was made is removed again when a
//! later step fails. The exception is `erase`, which was asked for: an SCB that it replaced is not
//! brought back.
//!
//! This module must not write into an image that holds anything: what loses is overwritten by the copy at
//! the first mount, not here.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::run::now;
use super::setup::{MemberSetup, Setup};
use crate::error::{Error, Result};
use crate::io::journal::Journal;
use crate::io::scb_file::{self, ScbFile, ScbFound};
use crate::io::state_dir::{self, StateDir};
use crate::io::{Identity, Image, Storage, mountpoint};
use crate::set::geometry::BLOCK_BYTES;
use crate::set::member::MEMBERS_MAX;
use crate::set::scb::{self, PATH_BYTES_MAX};
use crate::set::{Bytes, Code, Generation, Geometry, Lineage, Scb, ScbRow, ScbState};

/// Only the owner of the set reads and writes its images.
const IMAGE_MODE: u32 = 0o600;

/// A set that was created.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Created {
    /// Identity of the set.
    pub set: Uuid,
    /// Unit size and region size.
    pub geometry: Geometry,
    /// The members in the order of the configuration.
    pub members: Vec<CreatedMember>,
}

/// A member of a set that was created.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreatedMember {
    /// Name in the set.
    pub name: String,
    /// Its image.
    pub path: PathBuf,
    /// Whether the image was made, as a sparse file, or was an empty file.
    pub new_image: bool,
    /// Whether the first mount copies onto it.
    pub copy: bool,
}

/// What is known of a member before anything is changed.
struct Plan<'a> {
    member: &'a MemberSetup,
    /// The image when it is there, locked: no running set has it.
    image: Option<Image>,
    /// An empty file in its place, locked: what a creation that was killed may leave. It is as good as none.
    empty: Option<Image>,
}

/// Creates the set of a configuration. `from` names the member whose data wins; `size` is needed
/// when no image is there; `erase` overwrites data and SCBs.
///
/// # Errors
/// A refusal that names the member, or an error of the system; nothing is changed by either.
pub fn create(
    setup: &Setup,
    from: Option<&str>,
    size: Option<Bytes>,
    erase: bool,
) -> Result<Created> {
    let prepared = prepare(setup, from, size, erase)?;
    erase_bitmaps(&setup.state_dir)?;
    let mut undo = Undo::default();
    let size = prepared.geometry.size();
    make(&prepared.plans, &prepared.blocks, size, &mut undo)?;
    undo.forget();
    Ok(prepared.created())
}

/// What [`create`] would make; nothing is changed.
///
/// # Errors
/// The refusals of [`create`].
pub fn rehearse(
    setup: &Setup,
    from: Option<&str>,
    size: Option<Bytes>,
    erase: bool,
) -> Result<Created> {
    prepare(setup, from, size, erase).map(|prepared| prepared.created())
}

/// A set that may be made as it is asked for.
struct Prepared<'a> {
    plans: Vec<Plan<'a>>,
    blocks: Vec<Scb>,
    geometry: Geometry,
}

impl Prepared<'_> {
    fn created(&self) -> Created {
        let members = self
            .plans
            .iter()
            .zip(&self.blocks)
            .map(|(plan, block)| CreatedMember {
                name: plan.member.name.clone(),
                path: plan.member.path.clone(),
                new_image: plan.image.is_none(),
                copy: block.state == ScbState::Target,
            });
        Created {
            set: self.blocks[0].set,
            geometry: self.geometry,
            members: members.collect(),
        }
    }
}

/// Everything that is refused is refused here, before anything has changed.
fn prepare<'a>(
    setup: &'a Setup,
    from: Option<&str>,
    size: Option<Bytes>,
    erase: bool,
) -> Result<Prepared<'a>> {
    check_setup(setup, from)?;
    refuse_duplicates(&setup.members)?;
    let plans = setup.members.iter().map(plan).collect::<Result<Vec<_>>>()?;
    let size = unit_size(&plans, from, size)?;
    let geometry = Geometry::new(size, setup.region_blocks)
        .map_err(|e| Error::new(Code::OutOfRange, format!("{}: {e}", setup.unit)))?;
    refuse_small(&plans, size)?;
    refuse_members_of_sets(&plans, erase)?;
    refuse_bitmaps(&setup.state_dir, erase)?;
    let source = source(&plans, from, erase)?;
    let blocks = blocks(setup, geometry, source);
    for block in &blocks {
        block
            .check()
            .map_err(|e| Error::new(Code::Config, format!("{}: {e}", block.name)))?;
    }
    Ok(Prepared {
        plans,
        blocks,
        geometry,
    })
}

fn check_setup(setup: &Setup, from: Option<&str>) -> Result<()> {
    let wrong = |text: String| Err(Error::new(Code::Config, text));
    match setup.members.len() {
        0 => return wrong(format!("{} has no member", setup.unit)),
        n if n > MEMBERS_MAX => {
            let text = format!("{} has {n} members, the most is {MEMBERS_MAX}", setup.unit);
            return Err(Error::new(Code::TooManyMembers, text));
        }
        _ => {}
    }
    scb::check_label(setup.label_of_new())
        .map_err(|e| Error::new(Code::Config, format!("{}: {e}", setup.unit)))?;
    for (i, member) in setup.members.iter().enumerate() {
        scb::check_name(&member.name)
            .map_err(|e| Error::new(Code::Config, format!("{}: {e}", setup.unit)))?;
        let before = &setup.members[..i];
        if before.iter().any(|m| m.name == member.name) {
            return wrong(format!("two members have the name {}", member.name));
        }
        let files = |m: &MemberSetup| [m.path.clone(), m.scb.clone()];
        if member.path == member.scb
            || before
                .iter()
                .any(|m| files(m).contains(&member.scb) || m.scb == member.path)
        {
            return wrong(format!(
                "the SCB of {} would share the file {} with another",
                member.name,
                member.scb.display()
            ));
        }
    }
    match from {
        Some(name) if !setup.members.iter().any(|m| m.name == name) => Err(Error::new(
            Code::NoSuchMember,
            format!("{} has no member {name}", setup.unit),
        )),
        _ => Ok(()),
    }
}

/// A mounted unit lies alone in its directory.
fn refuse_in_unit(member: &MemberSetup) -> Result<()> {
    let dir = member.scb.parent().unwrap_or(Path::new("/"));
    match mountpoint::mounted(dir) {
        Ok(Some(on)) if on.fstype == mountpoint::FSTYPE => {
            let (scb, unit) = (member.scb.display(), on.source.to_string_lossy());
            let text = format!(
                "{}: {scb} cannot be made where the unit {unit} is mounted",
                member.name
            );
            Err(Error::new(Code::NotSupported, text).with_hint(
                "name an image that lies elsewhere: a mounted unit lies alone in its directory",
            ))
        }
        // What is wrong with the directory is told when it is used.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn plan(member: &MemberSetup) -> Result<Plan<'_>> {
    let path = &member.path;
    if path.as_os_str().len() > PATH_BYTES_MAX {
        let text = format!(
            "the path of {} is longer than {PATH_BYTES_MAX} bytes",
            member.name
        );
        return Err(Error::new(Code::Config, text));
    }
    refuse_in_unit(member)?;
    let new = fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
    if new {
        check_parent(member)?;
        return Ok(Plan {
            member,
            image: None,
            empty: None,
        });
    }
    let image = Image::open(path, member.io)?;
    let is_empty = image.size() == 0 && matches!(image.identity(), Identity::File { .. });
    let (image, empty) = match is_empty {
        true => (None, Some(image)),
        false => (Some(image), None),
    };
    Ok(Plan {
        member,
        image,
        empty,
    })
}

/// The directory of a new image has to be there already.
fn check_parent(member: &MemberSetup) -> Result<()> {
    let parent = member.path.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let meta = fs::metadata(parent)
        .map_err(|e| Error::io(format!("{}: look at {}", member.name, parent.display()), e))?;
    if meta.is_dir() {
        return Ok(());
    }
    let text = format!("{} of {} is no directory", parent.display(), member.name);
    Err(Error::new(Code::Config, text))
}

impl Plan<'_> {
    /// Whether the member's image is new or reads as zeros throughout.
    fn is_blank(&self) -> Result<bool> {
        self.image
            .as_ref()
            .map_or(Ok(true), |image| image.is_blank(u64::MAX))
    }
}

/// Refuses two paths to one image.
pub(super) fn refuse_duplicates(members: &[MemberSetup]) -> Result<()> {
    let who = |m: &MemberSetup| match Identity::of(&m.path) {
        Ok(Some(identity)) => Ok(identity),
        _ => Err(resolved(&m.path)),
    };
    for (i, member) in members.iter().enumerate() {
        let same = |other: &&MemberSetup| who(member) == who(other);
        if let Some(first) = members[..i].iter().find(same) {
            let text = format!(
                "{} and {} are the same image: {} and {}",
                first.name,
                member.name,
                first.path.display(),
                member.path.display()
            );
            return Err(Error::new(Code::AlreadyMember, text)
                .with_hint("give each member an image of its own"));
        }
    }
    Ok(())
}

/// The path of an image that is not there, with its directory resolved.
fn resolved(path: &Path) -> PathBuf {
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    match (fs::canonicalize(parent), path.file_name()) {
        (Ok(dir), Some(name)) => dir.join(name),
        _ => path.to_owned(),
    }
}

/// The size that was asked for, else the winner's when there is one, else the smallest image's.
fn unit_size(plans: &[Plan<'_>], from: Option<&str>, size: Option<Bytes>) -> Result<Bytes> {
    if let Some(size) = size {
        return Ok(size);
    }
    let smallest = plans
        .iter()
        .filter_map(|p| p.image.as_ref())
        .map(Image::size)
        .min();
    let winner = plans.iter().find(|p| Some(p.member.name.as_str()) == from);
    let winner = winner.and_then(|p| p.image.as_ref()).map(Image::size);
    match winner.or(smallest) {
        Some(bytes) => Ok(Bytes(bytes / BLOCK_BYTES * BLOCK_BYTES)),
        None => Err(
            Error::new(Code::Config, "no image is there, so the size is not known")
                .with_hint("say it: `--size 10G`"),
        ),
    }
}

fn refuse_small(plans: &[Plan<'_>], unit: Bytes) -> Result<()> {
    for plan in plans {
        let Some(image) = plan.image.as_ref().filter(|i| i.size() < unit.0) else {
            continue;
        };
        let text = format!(
            "the image of {} has {} bytes, the unit would have {unit} bytes",
            plan.member.name,
            image.size()
        );
        return Err(Error::new(Code::MemberTooSmall, text));
    }
    Ok(())
}

fn refuse_members_of_sets(plans: &[Plan<'_>], erase: bool) -> Result<()> {
    for MemberSetup { name, scb, .. } in plans.iter().map(|p| p.member) {
        let found = scb_file::read(scb)
            .map_err(|e| Error::io(format!("{name}: read {}", scb.display()), e))?;
        let text = match found {
            ScbFound::None => continue,
            ScbFound::Damaged(_) if is_empty(scb) => continue,
            _ if erase => continue,
            ScbFound::Read(scb) => {
                format!(
                    "{name} belongs to the set {} ({:?}) already",
                    scb.set, scb.label
                )
            }
            ScbFound::Damaged(why) => format!("{name} may belong to a set already: {why}"),
        };
        return Err(Error::new(Code::OtherSet, text)
            .with_hint("add `--erase` to take it out of that set for good"));
    }
    Ok(())
}

/// Whether a file is there and empty: a creation that was killed may leave it, and it says nothing.
fn is_empty(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == 0)
}

/// Bitmaps in the state directory are those of another set, since this one is new.
fn refuse_bitmaps(dir: &Path, erase: bool) -> Result<()> {
    let found = Journal::is_in(dir)
        .map_err(|e| Error::io(format!("{} cannot be looked at", dir.display()), e))?;
    if !found || erase {
        return Ok(());
    }
    let text = format!("{} holds the bitmaps of a set", dir.display());
    Err(Error::new(Code::OtherSet, text).with_hint(
        "if that set is gone for good, add `--erase`, with `--from NAME` if the data of its member NAME is to be kept; \
         else give this one a state_dir of its own",
    ))
}

/// Removes what [`refuse_bitmaps`] would have refused, unless a running unit uses it.
fn erase_bitmaps(dir: &Path) -> Result<()> {
    let failed = |e| {
        Error::io(
            format!("the bitmaps in {} cannot be removed", dir.display()),
            e,
        )
    };
    if !Journal::is_in(dir).map_err(failed)? {
        return Ok(());
    }
    let _claimed = StateDir::claim(dir)?;
    Journal::delete(dir).map_err(failed)
}

/// The member whose data wins; `None` when all are equal because all are blank.
fn source(plans: &[Plan<'_>], from: Option<&str>, erase: bool) -> Result<Option<usize>> {
    if let Some(name) = from {
        let at = plans.iter().position(|p| p.member.name == name);
        if let Some(missing) = at.map(|i| &plans[i]).filter(|p| p.image.is_none()) {
            let text = format!(
                "the data of {name} should win, but {} does not exist or is empty",
                missing.member.path.display()
            );
            return Err(Error::new(Code::NoSuchFile, text));
        }
        if !erase {
            let others = plans.iter().enumerate();
            let others = others.filter(|(place, _)| Some(*place) != at);
            others.map(|(_, plan)| plan).try_for_each(refuse_data)?;
        }
        return Ok(at);
    }
    if plans.len() == 1 {
        return Ok(None);
    }
    for plan in plans {
        if !plan.is_blank()? {
            // Also where all may be erased: nobody has said whose data is to be kept.
            let (name, path) = (&plan.member.name, plan.member.path.display());
            let text = format!("{name} is not blank ({path}), and the members would differ");
            let hint =
                "`--from NAME --erase` takes the data of one member and overwrites the others";
            return Err(Error::new(Code::NotBlank, text).with_hint(hint));
        }
    }
    Ok(None)
}

/// Refuses an image that holds data which would be overwritten.
fn refuse_data(plan: &Plan<'_>) -> Result<()> {
    if plan.is_blank()? {
        return Ok(());
    }
    let (name, path) = (&plan.member.name, plan.member.path.display());
    let text = format!("{name} is not blank ({path}), and its data would be overwritten");
    Err(Error::new(Code::NotBlank, text).with_hint("add `--erase` if nobody needs it"))
}

fn blocks(setup: &Setup, geometry: Geometry, source: Option<usize>) -> Vec<Scb> {
    let table: Vec<ScbRow> = setup
        .members
        .iter()
        .enumerate()
        .map(|(i, member)| ScbRow {
            member: Uuid::new_v4(),
            name: member.name.clone(),
            path: member.path.clone(),
            state: match source {
                Some(s) if s != i => ScbState::Target,
                _ => ScbState::Source,
            },
        })
        .collect();
    let set = Uuid::new_v4();
    let lineage = Lineage::new(random_mark());
    let created = now();
    let block = |row: &ScbRow| Scb {
        set,
        member: row.member,
        name: row.name.clone(),
        state: row.state,
        label: setup.label_of_new().to_owned(),
        generation: Generation::FIRST,
        lineage: lineage.clone(),
        geometry,
        clean: true,
        sequence: 0,
        table: table.clone(),
        created: Some(created),
        stamp: None,
    };
    table.iter().map(block).collect()
}

/// A mark for [`Lineage`]: one per creation and one per mount.
#[must_use]
pub fn random_mark() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    // Two fields of a version 4 UUID are fixed; the halves together leave every bit random.
    high ^ low.rotate_left(32)
}

/// Files and directories that were made, and empty files that were filled; those still listed are removed, and emptied,
/// when it is dropped.
#[derive(Default)]
struct Undo {
    made: Vec<PathBuf>,
    filled: Vec<PathBuf>,
}

impl Undo {
    /// Everything has worked.
    fn forget(&mut self) {
        self.made.clear();
        self.filled.clear();
    }

    /// Makes a directory with its missing parents, durably.
    fn make_directory(&mut self, dir: &Path) -> io::Result<()> {
        let missing = dir.ancestors().filter(|d| !d.as_os_str().is_empty());
        let missing: Vec<&Path> = missing.take_while(|d| !d.exists()).collect();
        for dir in missing.into_iter().rev() {
            let made = state_dir::make(dir);
            // It may be there although its name could not be made durable.
            if dir.is_dir() {
                self.made.push(dir.to_owned());
            }
            made?;
        }
        Ok(())
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            let removed = if path.is_dir() {
                fs::remove_dir(path)
            } else {
                fs::remove_file(path)
            };
            if let Err(e) = removed {
                tracing::warn!("{} could not be removed: {e}", path.display());
            }
        }
        for path in &self.filled {
            if let Err(e) = File::create(path) {
                tracing::warn!("{} could not be emptied: {e}", path.display());
            }
        }
    }
}

/// Images first, durably with their names: an SCB must never tell of an image that was not made, or is not there behind a
/// loss of power.
fn make(plans: &[Plan<'_>], blocks: &[Scb], size: Bytes, undo: &mut Undo) -> Result<()> {
    for plan in plans {
        let (doing, durable) = match &plan.image {
            // Zeros that are in the cache alone are none behind a loss of power, and no SCB would say so.
            Some(image) => ("flush", image.storage().flush()),
            None => ("make", make_image(plan, size, undo)),
        };
        let (name, path) = (&plan.member.name, plan.member.path.display());
        durable.map_err(|e| Error::io(format!("{name}: {doing} {path}"), e))?;
    }
    for (plan, block) in plans.iter().zip(blocks) {
        let path = &plan.member.scb;
        let new = fs::symlink_metadata(path).is_err();
        if is_empty(path) {
            undo.filled.push(path.clone());
        }
        if let Some(dir) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            let doing = || format!("{}: make {}", plan.member.name, dir.display());
            undo.make_directory(dir)
                .map_err(|e| Error::io(doing(), e))?;
        }
        let file = if new {
            ScbFile::open_or_create(path)
        } else {
            ScbFile::overwrite(path)
        };
        // It may be there although its name could not be made durable.
        if new && fs::symlink_metadata(path).is_ok() {
            undo.made.push(path.clone());
        }
        let written = file.and_then(|mut file| file.write(block));
        let doing = || format!("{}: write {}", plan.member.name, path.display());
        written.map_err(|e| Error::io(doing(), e))?;
    }
    Ok(())
}

fn make_image(plan: &Plan<'_>, size: Bytes, undo: &mut Undo) -> io::Result<()> {
    let path = &plan.member.path;
    let (is_new, mut options) = (plan.empty.is_none(), OpenOptions::new());
    options.write(true).create_new(is_new).mode(IMAGE_MODE);
    let file = options.open(path)?;
    let undone = if is_new {
        &mut undo.made
    } else {
        &mut undo.filled
    };
    undone.push(path.clone());
    file.set_len(size.0)?;
    file.sync_all()?;
    scb_file::sync_directory(path)
}

#[cfg(test)]
mod tests;
