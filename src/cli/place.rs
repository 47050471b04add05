//! Where things are: configurations, state directories, and the unit that an argument means.

use std::fs;
use std::path::{Path, PathBuf};

use super::config::{self, NO_UNIT, valid_name};
use super::system::{self, Running};
use super::tree::{Tree, nothing_at};
use crate::error::{Error, Result};
use crate::set::Code;

/// The directory of configurations: `$SHADOWSET_CONFIG_DIR`, else `/etc/shadowset`.
pub(super) fn config_dir() -> PathBuf {
    std::env::var_os("SHADOWSET_CONFIG_DIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| PathBuf::from("/etc/shadowset"), PathBuf::from)
}

/// The configuration of the node, among those of its units.
pub(super) const NODE_FILE: &str = "node.toml";

/// The usual state directory of a unit: of the system for root, of the user for others.
pub(super) fn state_dir(unit: &str) -> PathBuf {
    let user_state = || {
        let set = |name| {
            std::env::var_os(name)
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from)
        };
        set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")))
    };
    let base = if system::is_root() {
        None
    } else {
        user_state()
    };
    base.unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("shadowset")
        .join(unit)
}

/// The configuration file that an argument means: a path, or the name of a unit.
pub(super) fn config_file(argument: &str) -> Result<PathBuf> {
    if is_path(argument) {
        let doing = || format!("cannot use the path {argument}");
        let path = std::path::absolute(argument).map_err(|cause| Error::io(doing(), cause))?;
        // Beside others it would be hidden as the node's.
        return match path.file_name().is_some_and(|name| name == NODE_FILE) {
            true => Err(no_unit_of_node()),
            false => Ok(path),
        };
    }
    if argument == "node" {
        return Err(no_unit_of_node());
    }
    if valid_name(argument) {
        return Ok(config_dir().join(format!("{argument}.toml")));
    }
    let says = format!("`{argument}` is neither the name of a unit nor the path of a .toml file");
    Err(Error::new(Code::NoSuchFile, says).with_hint("`shadowset list` shows the units"))
}

fn no_unit_of_node() -> Error {
    Error::new(Code::NoSuchFile, NO_UNIT).with_hint("choose another name")
}

/// The mounted unit that an argument means: its name, its mount point or its configuration. A name
/// is looked up first, so that no file or directory of the same name is taken for it.
pub(super) fn running(argument: &str) -> Result<Running> {
    let all = system::running()?;
    if let Some(found) = all.iter().find(|r| r.unit == argument) {
        return Ok(found.clone());
    }
    if let Some(found) = at_path(argument, &all)? {
        return Ok(found);
    }
    let name = if valid_name(argument) && !is_path(argument) {
        argument.to_owned()
    } else {
        config::load(&config_file(argument)?)?.setup.unit
    };
    let found = all.into_iter().find(|r| r.unit == name);
    found.ok_or_else(|| not_mounted(&name, argument))
}

/// Whether an argument is a path and no name: it has a slash, or is that of a configuration.
fn is_path(argument: &str) -> bool {
    argument.contains('/')
        || Path::new(argument)
            .extension()
            .is_some_and(|extension| extension == "toml")
}

/// The unit of a mount point; none when the argument is no directory, an error when nothing of ours
/// is mounted there.
fn at_path(argument: &str, all: &[Running]) -> Result<Option<Running>> {
    if !argument.contains('/') {
        return Ok(None);
    }
    // Before anything looks into a mount whose server may have died.
    let path = std::path::absolute(argument).ok();
    let here = |path: Option<&PathBuf>| {
        let here = all.iter().filter(|r| path == Some(&r.mountpoint));
        here.max_by_key(|r| r.covered_by().is_none()).cloned()
    };
    if let Some(found) = here(path.as_ref()) {
        return Ok(Some(found));
    }
    let Ok(mountpoint) = fs::canonicalize(argument) else {
        return Ok(None);
    };
    if let Some(found) = here(Some(&mountpoint)) {
        return Ok(Some(found));
    }
    if !mountpoint.is_dir() {
        return Ok(None);
    }
    let doing = |cause| Error::io(format!("cannot use the mount point {argument}"), cause);
    // Not in the runtime directory: a mount of another user's server.
    let unit = system::unit_at(&mountpoint).map_err(doing)?;
    let unit = unit.ok_or_else(|| nothing_at(Path::new(argument)))?;
    Ok(Some(Running {
        unit,
        pid: None,
        mountpoint,
    }))
}

/// A unit that is configured, or none at all; it is mounted by the word that was used for it.
fn not_mounted(name: &str, argument: &str) -> Error {
    let is_configured = config_file(argument).is_ok_and(|path| path.exists());
    if is_configured {
        return Error::new(Code::NotMounted, format!("{name} is not mounted"))
            .with_hint(format!("`shadowset mount {argument} DIR` mounts it"));
    }
    Error::new(Code::NotMounted, format!("there is no unit {name}"))
        .with_hint("`shadowset list` shows the mounted and the configured units")
}

/// The control tree of the mounted unit that an argument means.
pub(super) fn tree(argument: &str) -> Result<Tree> {
    Ok(Tree::of(&running(argument)?))
}

/// The configurations in the directory, sorted; `None` where a file cannot be read as one.
pub(super) fn configured() -> Vec<(PathBuf, Result<config::Config>)> {
    let Ok(entries) = fs::read_dir(config_dir()) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .filter(|path| path.file_name().is_none_or(|name| name != NODE_FILE))
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|path| (path.clone(), config::load(&path)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_file_in_the_directory_and_a_path_is_itself() {
        assert_eq!(config_file("dsa1").unwrap(), config_dir().join("dsa1.toml"));
        assert_eq!(
            config_file("/x/dsa1.toml").unwrap(),
            Path::new("/x/dsa1.toml")
        );
        assert_eq!(config_file("/x/conf").unwrap(), Path::new("/x/conf"));
        assert!(config_file("dsa1.toml").unwrap().is_absolute());
        for node in ["node", "node.toml", "./conf/node.toml", "/x/node.toml"] {
            assert!(
                config_file(node).is_err(),
                "{node}: that file is the node's"
            );
        }
        let error = config_file("dsa 1").unwrap_err();
        assert_eq!((error.code(), error.exit_code()), (Code::NoSuchFile, 3));
    }
}
