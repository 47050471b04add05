//! Configuration of a unit: TOML text to a checked [`Setup`], and back.
//!
//! A mistake is named with file, line, column and key. Nothing is guessed: an unknown key is an
//! error, and so is a word that has no meaning.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::rights::{Group, Said};
use super::{hints, place};
use crate::error::{Error, Result};
use crate::server::params::{OfMember, Param, SITE_MAX, TIMEOUT_MAX};
use crate::server::setup::{Durability, IoMode, MemberSetup, Protect, Setup, default_scb};
use crate::set::geometry::{REGION_BLOCKS_DEFAULT, REGION_BLOCKS_RANGE};
use crate::set::member::MEMBERS_MAX;
use crate::set::scb::check_name;
use crate::set::{Code, Policy, READ_COST};

/// Longest label, in bytes.
const LABEL_BYTES_MAX: usize = 64;

/// A configuration as read and checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Config {
    /// The unit.
    pub(super) setup: Setup,
    /// How it is mounted when the command line says nothing else.
    pub(super) mount: Mount,
    /// The parameters that it begins with.
    pub(super) params: Vec<(Param, u64)>,
}

/// Options of the `[mount]` table.
#[derive(Deserialize, Clone, PartialEq, Eq, Default, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct Mount {
    /// Other users than the owner of the mount may use it.
    #[serde(default)]
    pub(super) allow_other: bool,
    /// The unit cannot be written.
    #[serde(default)]
    pub(super) ro: bool,
    /// Where the log goes.
    pub(super) log: Option<PathBuf>,
    /// What is wanted of bitmaps for members that are absent.
    #[serde(default, deserialize_with = "policy_of_toml")]
    pub(super) policy: Option<Policy>,
    /// Every member of the set must be there.
    #[serde(default)]
    pub(super) require_members: bool,
    /// Members that only the control blocks name take part.
    #[serde(default)]
    pub(super) include: bool,
    /// No member may have to be copied.
    #[serde(default)]
    pub(super) nocopy: bool,
    /// What other users may do; the four of them are one [`Said`].
    pub(super) control_gid: Option<Group>,
    pub(super) control_mode: Option<String>,
    pub(super) unit_gid: Option<Group>,
    pub(super) unit_mode: Option<String>,
}

impl Mount {
    /// What other users may do.
    pub(super) fn rights(&self) -> Said {
        Said {
            control_gid: self.control_gid.clone(),
            control_mode: self.control_mode.clone(),
            unit_gid: self.unit_gid.clone(),
            unit_mode: self.unit_mode.clone(),
        }
    }
}

fn policy_of_toml<'de, D: Deserializer<'de>>(
    from: D,
) -> std::result::Result<Option<Policy>, D::Error> {
    let word = String::deserialize(from)?;
    policy(&word).map(Some).map_err(D::Error::custom)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    unit: Option<Spanned<String>>,
    label: Option<Spanned<String>>,
    region_blocks: Option<Spanned<u32>>,
    durability: Option<Spanned<String>>,
    state_dir: Option<PathBuf>,
    #[serde(default)]
    member: Vec<Spanned<Member>>,
    #[serde(default)]
    params: BTreeMap<Spanned<String>, Spanned<toml::Value>>,
    #[serde(default)]
    mount: Mount,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    name: Spanned<String>,
    path: Spanned<PathBuf>,
    scb: Option<Spanned<PathBuf>>,
    #[serde(default = "read_cost")]
    read_cost: u32,
    #[serde(default)]
    site: u8,
    #[serde(default)]
    timeout: u16,
    io: Option<Spanned<String>>,
    protect: Option<Spanned<String>>,
}

fn read_cost() -> u32 {
    READ_COST
}

/// Default of a parameter of a member, and what it takes.
pub(super) fn of_member(param: OfMember) -> (String, String) {
    let (default, most) = match param {
        OfMember::ReadCost => (READ_COST, u32::MAX),
        OfMember::Site => (0, SITE_MAX),
        OfMember::Timeout => (0, TIMEOUT_MAX),
    };
    (default.to_string(), format!("0 to {most}"))
}

/// Reads a configuration file.
pub(super) fn load(path: &Path) -> Result<Config> {
    let text = fs::read_to_string(path).map_err(|cause| {
        let missing = cause.kind() == io::ErrorKind::NotFound;
        let says = format!("cannot read the configuration {}", path.display());
        let error = Error::io(says, cause);
        if missing {
            let hint = "`shadowset list` shows the units; `shadowset create` makes a new one";
            return error.with_hint(hint);
        }
        error
    })?;
    parse(&text, path)
}

/// Reads the text of a configuration file; `path` names it and gives defaults.
pub(super) fn parse(text: &str, path: &Path) -> Result<Config> {
    let place = Source {
        text,
        path,
        hint: hints::CONFIG,
    };
    let file: File = place.read()?;
    let params = file
        .params
        .iter()
        .map(|(key, value)| place.param(key, value));
    let params = params.collect::<Result<Vec<_>>>()?;
    let unit = match &file.unit {
        Some(unit) => place.unit(unit)?,
        None => unit_of_file(path)?,
    };
    let state_dir = place.absolute(&file.state_dir.unwrap_or_else(|| place::state_dir(&unit)));
    let setup = Setup {
        label: place.label(file.label.as_ref())?,
        region_blocks: place.region_blocks(file.region_blocks.as_ref())?,
        durability: place.durability(file.durability.as_ref())?,
        members: place.members(&file.member, &state_dir)?,
        state_dir,
        unit,
    };
    file.mount.rights().rights().map_err(|(key, says)| {
        let text = format!("{}: [mount] {key}: {says}", path.display());
        Error::new(Code::Config, text)
    })?;
    let log = file.mount.log.as_deref().map(|log| place.absolute(log));
    let mount = Mount { log, ..file.mount };
    Ok(Config {
        setup,
        mount,
        params,
    })
}

/// The durability of a word; any other word is refused in one sentence.
pub(super) fn durability(word: &str) -> std::result::Result<Durability, String> {
    let wrong = || format!("durability is \"power\", \"crash\" or \"memory\", not \"{word}\"");
    Durability::from_name(word).ok_or_else(wrong)
}

/// The policy of a mount; any other word is refused in one sentence.
pub(super) fn policy(word: &str) -> std::result::Result<Policy, String> {
    let all = [Policy::Minicopy, Policy::MinicopyOptional];
    let wrong = || {
        format!("the policy of a mount is \"minicopy\" or \"minicopy=optional\", not \"{word}\"")
    };
    all.into_iter().find(|p| p.name() == word).ok_or_else(wrong)
}

/// Whether the name can be that of a unit or a member.
pub(super) fn valid_name(name: &str) -> bool {
    check_name(name).is_ok()
}

/// Why that is no name of a unit.
pub(super) const NO_UNIT: &str =
    "no unit is called `node`: node.toml is the configuration of the node";

/// Whether the name can be that of a unit: `node` is the name of the node's own configuration.
pub(super) fn valid_unit(name: &str) -> bool {
    valid_name(name) && name != "node"
}

/// The unit that a file without `unit` describes: its own name.
pub(super) fn unit_of_file(path: &Path) -> Result<String> {
    let stem = path
        .file_stem()
        .and_then(|s| s.to_str())
        .unwrap_or_default();
    if valid_unit(stem) {
        return Ok(stem.to_owned());
    }
    let says = format!(
        "{}: the file's name cannot be the name of a unit",
        path.display()
    );
    Err(Error::new(Code::Config, says).with_hint("add a line such as unit = \"dsa1\""))
}

/// A list of members that is not from a file: the same checks, without a line to name.
pub(super) fn members_of(
    pairs: &[(String, PathBuf)],
    state_dir: &Path,
) -> Result<Vec<MemberSetup>> {
    let member = |(name, path): &(String, PathBuf)| {
        let path = std::path::absolute(path)
            .map_err(|e| Error::io(format!("{name}: cannot use {}", path.display()), e))?;
        let scb = default_scb(name, &path, state_dir);
        let io = IoMode::Buffered;
        Ok(MemberSetup {
            name: name.clone(),
            path,
            scb,
            read_cost: READ_COST,
            site: 0,
            timeout: 0,
            io,
            protect: Protect::None,
        })
    };
    let members = pairs.iter().map(member).collect::<Result<Vec<_>>>()?;
    check_members(&members).map_err(|(_, says)| Error::new(Code::Config, says))?;
    Ok(members)
}

/// Checks what no member can tell alone; answers with the number of the member at fault.
fn check_members(members: &[MemberSetup]) -> std::result::Result<(), (usize, String)> {
    let mut names = BTreeSet::new();
    let mut paths = BTreeSet::new();
    for (i, m) in members.iter().enumerate() {
        if !valid_name(&m.name) {
            return Err((i, bad_name(&m.name)));
        }
        if !names.insert(&m.name) {
            return Err((i, format!("two members have the name {}", m.name)));
        }
        for path in [&m.path, &m.scb] {
            if !paths.insert(path) {
                return Err((i, format!("{} is named twice", path.display())));
            }
        }
    }
    match members.len() {
        0 => Err((
            0,
            "a set has one to six members, this one has none".to_owned(),
        )),
        n if n > MEMBERS_MAX => Err((
            MEMBERS_MAX,
            format!("a set has one to six members, this one has {n}"),
        )),
        _ => Ok(()),
    }
}

fn bad_name(name: &str) -> String {
    format!("\"{name}\" is no name: 1 to 32 of a-z A-Z 0-9 . _ -, first a letter or digit")
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The text of a file, to say where in it a mistake stands.
pub(super) struct Source<'a> {
    pub(super) text: &'a str,
    pub(super) path: &'a Path,
    /// What helps with any mistake in it.
    pub(super) hint: &'static str,
}

impl Source<'_> {
    /// What the file says, by the names of its keys.
    pub(super) fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        toml::from_str(self.text)
            .map_err(|e| self.wrong(e.span().unwrap_or(0..0), &first_line(e.message())))
    }

    /// A mistake at a place of the file.
    pub(super) fn wrong(&self, span: Range<usize>, says: &str) -> Error {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |i| i + 1);
        let column = before[start..].chars().count() + 1;
        let whole = self.text[start..].lines().next().unwrap_or_default();
        let key = whole.split_once('=').map_or(whole, |(key, _)| key).trim();
        let key = if key.is_empty() {
            String::new()
        } else {
            format!("{key}: ")
        };
        let file = self.path.display();
        let text = format!("{file}: line {line}, column {column}: {key}{says}");
        Error::new(Code::Config, text).with_hint(self.hint)
    }

    fn unit(&self, name: &Spanned<String>) -> Result<String> {
        match self.name(name)? {
            unit if valid_unit(&unit) => Ok(unit),
            _ => Err(self.wrong(name.span(), NO_UNIT)),
        }
    }

    fn name(&self, name: &Spanned<String>) -> Result<String> {
        if valid_name(name.get_ref()) {
            return Ok(name.get_ref().clone());
        }
        Err(self.wrong(name.span(), &bad_name(name.get_ref())))
    }

    fn param(&self, key: &Spanned<String>, value: &Spanned<toml::Value>) -> Result<(Param, u64)> {
        let param = Param::from_name(key.get_ref()).ok_or_else(|| {
            let says = format!("there is no parameter {}", key.get_ref());
            self.wrong(key.span(), &says)
        })?;
        let text = match value.get_ref() {
            toml::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let read = param.spec().read(&text);
        let value = read.map_err(|wrong| self.wrong(value.span(), &wrong.text))?;
        Ok((param, value))
    }

    fn label(&self, label: Option<&Spanned<String>>) -> Result<Option<String>> {
        let Some(label) = label else {
            return Ok(None);
        };
        check_label(label.get_ref()).map_err(|says| self.wrong(label.span(), &says))?;
        Ok(Some(label.get_ref().clone()))
    }

    fn region_blocks(&self, blocks: Option<&Spanned<u32>>) -> Result<u32> {
        let Some(blocks) = blocks else {
            return Ok(REGION_BLOCKS_DEFAULT);
        };
        check_region_blocks(*blocks.get_ref()).map_err(|says| self.wrong(blocks.span(), &says))
    }

    fn durability(&self, word: Option<&Spanned<String>>) -> Result<Durability> {
        let Some(word) = word else {
            return Ok(Durability::default());
        };
        durability(word.get_ref()).map_err(|says| self.wrong(word.span(), &says))
    }

    fn members(&self, members: &[Spanned<Member>], state_dir: &Path) -> Result<Vec<MemberSetup>> {
        let setups = members
            .iter()
            .map(|m| self.member(m.get_ref(), state_dir))
            .collect::<Result<Vec<_>>>()?;
        check_members(&setups).map_err(|(i, says)| {
            let Some(member) = members.get(i) else {
                return Error::new(Code::Config, format!("{}: {says}", self.path.display()))
                    .with_hint("a [[member]] has a name and a path");
            };
            self.wrong(member.span(), &says)
        })?;
        Ok(setups)
    }

    fn member(&self, m: &Member, state_dir: &Path) -> Result<MemberSetup> {
        let name = self.name(&m.name)?;
        if m.path.get_ref().as_os_str().is_empty() {
            return Err(self.wrong(m.path.span(), "the path is empty"));
        }
        let path = self.absolute(m.path.get_ref());
        let scb = m.scb.as_ref().map_or_else(
            || default_scb(&name, &path, state_dir),
            |s| self.absolute(s.get_ref()),
        );
        let io = match &m.io {
            None => IoMode::default(),
            Some(io) => {
                let named = IoMode::ALL.iter().find(|mode| mode.name() == io.get_ref());
                *named.ok_or_else(|| {
                    let says = "io is \"buffered\", \"direct\" or \"auto\", not";
                    self.wrong(io.span(), &format!("{says} \"{}\"", io.get_ref()))
                })?
            }
        };
        Ok(MemberSetup {
            name,
            path,
            scb,
            read_cost: m.read_cost,
            site: u32::from(m.site),
            timeout: u32::from(m.timeout),
            io,
            protect: self.protect(m)?,
        })
    }

    fn protect(&self, m: &Member) -> Result<Protect> {
        let Some(word) = &m.protect else {
            return Ok(Protect::None);
        };
        Protect::from_name(word.get_ref()).ok_or_else(|| {
            let word_is = word.get_ref();
            let says =
                format!("protect is \"none\", \"lease\" or \"immutable\", not \"{word_is}\"");
            self.wrong(word.span(), &says)
        })
    }

    /// Relative paths start at the configuration file, wherever the program was started.
    fn absolute(&self, path: &Path) -> PathBuf {
        self.path
            .parent()
            .map_or_else(|| path.to_owned(), |dir| dir.join(path))
    }
}

/// Checks a label.
pub(super) fn check_label(label: &str) -> std::result::Result<(), String> {
    match label.len() {
        0..=LABEL_BYTES_MAX if !label.contains(char::is_control) => Ok(()),
        0..=LABEL_BYTES_MAX => Err("a label has no control characters".to_owned()),
        n => Err(format!(
            "a label has at most {LABEL_BYTES_MAX} bytes, this one has {n}"
        )),
    }
}

/// Checks a region size.
pub(super) fn check_region_blocks(blocks: u32) -> std::result::Result<u32, String> {
    if REGION_BLOCKS_RANGE.contains(&blocks) {
        return Ok(blocks);
    }
    let (least, most) = (REGION_BLOCKS_RANGE.start(), REGION_BLOCKS_RANGE.end());
    Err(format!(
        "a region has {least} to {most} blocks, not {blocks}"
    ))
}

/// The text of a configuration file that describes the unit; `spec` is what mounts it.
pub(super) fn render(setup: &Setup, spec: &str) -> Result<String> {
    let mut text = String::new();
    let unit = &setup.unit;
    let _ = writeln!(
        text,
        "# Shadow set {unit}. Mount it: shadowset mount {spec} DIR"
    );
    let _ = writeln!(text, "unit = {}", quoted(unit));
    if let Some(label) = &setup.label {
        let _ = writeln!(text, "label = {}", quoted(label));
    }
    let _ = writeln!(
        text,
        "# One bit of a write bitmap stands for so many blocks of 512 bytes."
    );
    let _ = writeln!(text, "region_blocks = {}", setup.region_blocks);
    let _ = writeln!(
        text,
        "# Write bitmaps survive a loss of power (\"power\"), a crash of the daemon (\"crash\"), or\n\
         # not the end of the mount (\"memory\")."
    );
    let durability = setup.durability.name();
    let _ = writeln!(text, "durability = {}", quoted(durability));
    let _ = writeln!(text, "state_dir = {}", quoted(utf8(&setup.state_dir)?));
    for m in &setup.members {
        let _ = writeln!(text, "\n[[member]]\nname = {}", quoted(&m.name));
        let _ = writeln!(text, "path = {}", quoted(utf8(&m.path)?));
        if m.scb != default_scb(&m.name, &m.path, &setup.state_dir) {
            let _ = writeln!(text, "scb = {}", quoted(utf8(&m.scb)?));
        }
        let _ = writeln!(text, "# The member with the lowest cost is read first.");
        let _ = writeln!(text, "read_cost = {}", m.read_cost);
        if m.site != 0 {
            let _ = writeln!(text, "site = {}", m.site);
        }
        if m.timeout != 0 {
            let _ = writeln!(text, "timeout = {}", m.timeout);
        }
        if m.io != IoMode::default() {
            let _ = writeln!(text, "io = {}", quoted(m.io.name()));
        }
        if m.protect != Protect::None {
            let _ = writeln!(text, "protect = {}", quoted(m.protect.name()));
        }
    }
    Ok(text)
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        let says = format!("{}: a configuration cannot hold this path", path.display());
        Error::new(Code::Config, says).with_hint("use a path that is valid UTF-8")
    })
}

#[cfg(test)]
#[path = "config/page/tests.rs"]
mod page;
#[cfg(test)]
mod tests;
