//! `create`: the configuration of a new set and its member images.
//!
//! A configuration that exists is taken as it is: options that say something else are refused, never
//! written into it. One that was written here goes again when the set cannot be created.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::CreateArgs;
use super::output::{Out, about};
use super::size::human;
use super::{config, place};
use crate::error::{Error, Result};
use crate::io::scb_file::{self, ScbFound};
use crate::server::create::{self, Created, CreatedMember};
use crate::server::setup::{Durability, MemberSetup, Setup};
use crate::set::Code;
use crate::set::geometry::REGION_BLOCKS_DEFAULT;

/// What a size has to be.
const SIZE_HINT: &str = "a size is a multiple of 512 bytes, as in --size 512M or --size 1G";

/// `create`.
pub(super) fn run(args: &CreateArgs, out: Out) -> Result<u8> {
    let path = place::config_file(&args.unit)?;
    let existing = path.try_exists().map_err(|cause| {
        Error::io(
            format!("create {}: cannot look for {}", args.unit, path.display()),
            cause,
        )
    })?;
    let setup = if existing {
        let setup = config::load(&path)?.setup;
        agree(&setup, args, &path)?;
        setup
    } else {
        setup_of(args, &path)?
    };
    check_from(&setup, args)?;
    check_size(&setup, args)?;
    let mut written = None;
    if !existing {
        let text = config::render(&setup, &spec_of(&setup.unit, &path))?;
        if !args.dry_run {
            written = Some(write_new(&path, &text)?);
        }
    }
    let make = match args.dry_run {
        true => create::rehearse,
        false => create::create,
    };
    let created = make(&setup, args.from.as_deref(), args.size, args.erase);
    if let (Err(_), Some(written)) = (&created, &written) {
        // What is left of a failure would be taken for a set that exists.
        written.take_back();
    }
    let subject = format!("create {}", setup.unit);
    let created = created.map_err(|error| match error.code() {
        Code::OutOfRange => about(&subject, &error).with_hint(SIZE_HINT),
        Code::OtherSet if existing && is_complete(&setup) => {
            let says = format!("{subject}: the set exists already, with all its members");
            Error::new(error.code(), says)
                .with_hint(format!("`shadowset mount {} DIR` mounts it", args.unit))
        }
        _ => about(&subject, &error),
    })?;
    let mut value = value(&setup, &created, &path);
    if args.dry_run {
        // The set that is made gets another identity.
        value["uuid"] = Value::Null;
        value["verdict"] = "create".into();
    }
    out.either(&value, &text(args, &created, &path))?;
    Ok(0)
}

/// Whether the members that the configuration names are the members of one set, by these names.
fn is_complete(setup: &Setup) -> bool {
    let mut sets = BTreeSet::new();
    setup
        .members
        .iter()
        .all(|member| match scb_file::read(&member.scb) {
            Ok(ScbFound::Read(scb)) => {
                sets.insert(scb.set);
                scb.name == member.name && sets.len() == 1
            }
            _ => false,
        })
}

fn value(setup: &Setup, created: &Created, path: &Path) -> Value {
    let member = |m: &CreatedMember| {
        json!({ "name": m.name, "path": m.path.display().to_string(), "new_image": m.new_image,
            "copy": m.copy })
    };
    json!({
        "ok": true,
        "unit": setup.unit,
        "uuid": created.set.to_string(),
        "config": path.display().to_string(),
        "size": created.geometry.size().0,
        "members": created.members.iter().map(member).collect::<Vec<_>>(),
    })
}

fn text(args: &CreateArgs, created: &Created, path: &Path) -> String {
    let size = human(created.geometry.size().0);
    let is = if args.dry_run { "would be" } else { "is" };
    let mut text = format!("{} {is} created: {size}, {}\n", args.unit, path.display());
    for m in &created.members {
        let how = match (m.copy, m.new_image) {
            (true, _) => "copied onto at the first mount",
            (false, true) => "a new image",
            (false, false) => "taken as it is",
        };
        text.push_str(&format!("  {} {is} {how}: {}\n", m.name, m.path.display()));
    }
    match args.dry_run {
        true => text + "nothing has changed",
        false => text + &format!("mount it: shadowset mount {} DIR", args.unit),
    }
}

/// The unit that the options describe.
fn setup_of(args: &CreateArgs, path: &Path) -> Result<Setup> {
    let unit = config::unit_of_file(path)?;
    let wrong = |says: String| Error::new(Code::Syntax, format!("create {unit}: {says}"));
    if args.members.is_empty() {
        let says = format!(
            "create {unit}: {} is not there and no member is named",
            path.display()
        );
        return Err(Error::new(Code::Syntax, says)
            .with_hint("name each member: --member m1=/srv/images/m1.img"));
    }
    let label = args.label.clone().unwrap_or_else(|| unit.clone());
    config::check_label(&label).map_err(wrong)?;
    let region_blocks = args.region_blocks.unwrap_or(REGION_BLOCKS_DEFAULT);
    let state_dir = args
        .state_dir
        .clone()
        .unwrap_or_else(|| place::state_dir(&unit));
    let state_dir = absolute(&state_dir)?;
    Ok(Setup {
        label: Some(label),
        region_blocks: config::check_region_blocks(region_blocks).map_err(wrong)?,
        durability: Durability::default(),
        members: named_members(args, &unit, &state_dir)?,
        state_dir,
        unit,
    })
}

/// The members that the options name; what is wrong with them is wrong usage.
fn named_members(args: &CreateArgs, unit: &str, state_dir: &Path) -> Result<Vec<MemberSetup>> {
    config::members_of(&args.members, state_dir).map_err(|error| match error.code() {
        Code::Config => Error::new(Code::Syntax, format!("create {unit}: {error}"))
            .with_hint("--member NAME=PATH: each name and each image once"),
        _ => error,
    })
}

/// What mounts the unit: its name, where that leads to the file; else the file.
fn spec_of(unit: &str, path: &Path) -> String {
    if path == place::config_dir().join(format!("{unit}.toml")) {
        return unit.to_owned();
    }
    path.display().to_string()
}

/// Without an image there is nothing to take the size from.
fn check_size(setup: &Setup, args: &CreateArgs) -> Result<()> {
    if args.size.is_some() || setup.members.iter().any(|m| m.path.exists()) {
        return Ok(());
    }
    let says = format!(
        "create {}: no image is there and no --size is given",
        setup.unit
    );
    Err(Error::new(Code::Syntax, says).with_hint(SIZE_HINT))
}

/// Refuses options that say something else than the file.
fn agree(setup: &Setup, args: &CreateArgs, path: &Path) -> Result<()> {
    let differs = |what: &str, file: String, line: String| {
        let path = path.display();
        let says = format!(
            "create {}: {what} is {file} in {path}, not {line}",
            setup.unit
        );
        Err(Error::new(Code::Config, says).with_hint("leave out the option, or change the file"))
    };
    if !args.members.is_empty() {
        let given = named_members(args, &setup.unit, &setup.state_dir)?;
        let pairs = |members: &[MemberSetup]| -> Vec<(String, PathBuf)> {
            let mut all: Vec<_> = members
                .iter()
                .map(|m| (m.name.clone(), m.path.clone()))
                .collect();
            all.sort();
            all
        };
        let (file, line) = (pairs(&setup.members), pairs(&given));
        if file != line {
            return differs("the list of members", shown(&file), shown(&line));
        }
    }
    let of_file = setup.label_of_new();
    if let Some(label) = args.label.as_ref().filter(|label| *label != of_file) {
        return differs(
            "the label",
            format!("\"{of_file}\""),
            format!("\"{label}\""),
        );
    }
    if let Some(blocks) = args
        .region_blocks
        .filter(|blocks| *blocks != setup.region_blocks)
    {
        return differs(
            "region_blocks",
            setup.region_blocks.to_string(),
            blocks.to_string(),
        );
    }
    match &args.state_dir {
        Some(dir) if absolute(dir)? != setup.state_dir => {
            let file = setup.state_dir.display().to_string();
            differs("the state directory", file, dir.display().to_string())
        }
        _ => Ok(()),
    }
}

fn shown(pairs: &[(String, PathBuf)]) -> String {
    let one = |(name, path): &(String, PathBuf)| format!("{name}={}", path.display());
    pairs.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn check_from(setup: &Setup, args: &CreateArgs) -> Result<()> {
    match &args.from {
        Some(from) if !setup.members.iter().any(|m| m.name == *from) => {
            let says = format!(
                "create {}: --from {from}: no member is named {from}",
                setup.unit
            );
            let names: Vec<_> = setup.members.iter().map(|m| m.name.as_str()).collect();
            Err(Error::new(Code::NoSuchMember, says)
                .with_hint(format!("the members are {}", names.join(", "))))
        }
        _ => Ok(()),
    }
}

/// A configuration that was written, with the directories that were made for it, the innermost first.
#[derive(Debug)]
struct Written {
    path: PathBuf,
    dirs: Vec<PathBuf>,
}

impl Written {
    fn take_back(&self) {
        let _ = fs::remove_file(&self.path);
        self.leave_dirs();
    }

    fn leave_dirs(&self) {
        // One that holds something by now stays.
        self.dirs.iter().for_each(|dir| drop(fs::remove_dir(dir)));
    }
}

/// Writes a configuration that must not be there yet.
fn write_new(path: &Path, text: &str) -> Result<Written> {
    let failed = |cause: io::Error| Error::io(format!("cannot write {}", path.display()), cause);
    let missing = path.ancestors().skip(1).take_while(|dir| !dir.exists());
    let written = Written {
        path: path.to_owned(),
        dirs: missing.map(Path::to_owned).collect(),
    };
    let dir = path.parent().map_or(Ok(()), fs::create_dir_all);
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true);
    let mut file = dir.and_then(|()| options.open(path)).map_err(|cause| {
        written.leave_dirs();
        failed(cause)
    })?;
    let whole = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_directory_of(path));
    whole.map_err(|cause| {
        // Half a configuration would be taken for one that exists.
        written.take_back();
        failed(cause)
    })?;
    Ok(written)
}

/// Makes the name of a new file durable.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|cause| Error::io(format!("cannot use {}", path.display()), cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(members: &[(&str, &str)]) -> CreateArgs {
        CreateArgs {
            unit: "dsa1".into(),
            size: None,
            members: members
                .iter()
                .map(|(n, p)| ((*n).to_owned(), PathBuf::from(p)))
                .collect(),
            from: None,
            state_dir: Some("/state".into()),
            label: None,
            region_blocks: None,
            erase: false,
            dry_run: false,
        }
    }

    const PATH: &str = "/etc/shadowset/dsa1.toml";

    #[test]
    fn what_is_written_is_what_was_asked_for() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("sub/dsa1.toml");
        let setup = setup_of(&args(&[("m1", "/a"), ("m2", "/b")]), &path).expect("valid");
        write_new(&path, &config::render(&setup, "dsa1").expect("UTF-8")).expect("written");
        assert_eq!(config::load(&path).expect("valid").setup, setup);
        assert_eq!(setup.unit, "dsa1");
        let again = write_new(&path, "").unwrap_err();
        assert!(again.to_string().contains("cannot write"), "{again}");
        assert_eq!(config::load(&path).expect("untouched").setup, setup);
    }

    #[test]
    fn a_missing_file_needs_members() {
        let error = setup_of(&args(&[]), Path::new(PATH)).unwrap_err();
        assert_eq!((error.code(), error.exit_code()), (Code::Syntax, 2));
        assert!(error.hint().contains("--member"));
    }

    #[test]
    fn options_that_contradict_the_file_are_refused() {
        let good = args(&[("m1", "/a"), ("m2", "/b")]);
        let setup = setup_of(&good, Path::new(PATH)).expect("valid");
        let turned = args(&[("m2", "/b"), ("m1", "/a")]);
        for same in [&good, &turned, &args(&[])] {
            agree(&setup, same, Path::new(PATH)).expect("nothing else is said");
        }
        let other = args(&[("m1", "/a"), ("m2", "/c")]);
        let label = CreateArgs {
            label: Some("x".into()),
            ..args(&[])
        };
        let blocks = CreateArgs {
            region_blocks: Some(8),
            ..args(&[])
        };
        let state = CreateArgs {
            state_dir: Some("/else".into()),
            ..args(&[])
        };
        for (args, says) in [
            (
                other,
                "m1=/a m2=/b in /etc/shadowset/dsa1.toml, not m1=/a m2=/c",
            ),
            (label, "the label is \"dsa1\" in"),
            (blocks, "region_blocks is 127 in"),
            (state, "the state directory is /state in"),
        ] {
            let error = agree(&setup, &args, Path::new(PATH)).expect_err(says);
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn the_source_of_the_data_is_a_member() {
        let mut args = args(&[("m1", "/a")]);
        let setup = setup_of(&args, Path::new(PATH)).expect("valid");
        args.from = Some("m1".into());
        check_from(&setup, &args).expect("a member");
        args.from = Some("m2".into());
        assert_eq!(check_from(&setup, &args).unwrap_err().exit_code(), 3);
    }

    #[test]
    fn region_sizes_and_labels_are_checked() {
        let mut args = args(&[("m1", "/a")]);
        args.region_blocks = Some(7);
        assert!(
            setup_of(&args, Path::new(PATH))
                .unwrap_err()
                .to_string()
                .contains("not 7")
        );
        args.region_blocks = None;
        args.label = Some("l".repeat(65));
        assert!(
            setup_of(&args, Path::new(PATH))
                .unwrap_err()
                .to_string()
                .contains("64 bytes")
        );
    }
}
