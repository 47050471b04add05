//! Any text as a configuration, as options of a mount, as a size.

#![allow(clippy::expect_used, reason = "a test ends at the first surprise")]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::backup;
use super::config::{self, Config};
use super::mount_options::{self, Options};
use super::node::Node;
use super::rights::Group;
use super::{persist, size};
use crate::error::Error;
use crate::server::params::{Param, read_rate};
use crate::testing::fuzz::refused;

#[path = "../../mountpoint-helper/src/mountinfo.rs"]
pub(crate) mod mountinfo;
#[path = "../../mountpoint-helper/src/plan.rs"]
mod plan;

use plan::{Plan, plan};

const FILE: &str = "/etc/shadowset/dsa1.toml";

/// What is understood is the same when it is written and read again, and one parameter more changes nothing else.
pub(crate) fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match Node::parse(text, Path::new("/etc/shadowset/node.toml")) {
        Err(error) => says(&error),
        Ok(node) => {
            assert!((1..=10_000).contains(&node.units_max));
            assert_ne!(node.copy_rate_max, Some(0));
        }
    }
    match config::parse(text, Path::new(FILE)) {
        Err(error) => says(&error),
        Ok(config) => {
            let written = config::render(&config.setup, "dsa1").expect("all of it is UTF-8");
            let again = config::parse(&written, Path::new(FILE)).expect("what was written");
            assert_eq!(again.setup, config.setup, "{written}");
            changed(text, &config);
        }
    }
}

fn changed(text: &str, before: &Config) {
    for (name, value) in [("max_copies", 7), ("copy_rate_max", 1 << 20)] {
        let param = Param::from_name(name).expect("a parameter");
        // A table of parameters may be written in a way that an edit does not understand.
        let Ok(new) = persist::with_param(text, name, &param.spec().write(value)) else {
            continue;
        };
        let after = config::parse(&new, Path::new(FILE)).expect("one value is another one");
        assert_eq!((&after.setup, &after.mount), (&before.setup, &before.mount));
        let others = |config: &Config| -> Vec<_> {
            let params = config.params.iter().copied();
            params.filter(|set| set.0 != param).collect()
        };
        assert_eq!(others(&after), others(before));
        assert!(after.params.contains(&(param, value)), "{new}");
    }
}

/// What is understood says the same when it is printed, and when mount(8) hands it over through its helper.
pub(crate) fn options(bytes: &[u8]) {
    let list = OsString::from_vec(bytes.to_vec());
    handed_over(&list);
    let Some(text) = list.to_str() else {
        return;
    };
    sizes(text);
    match mount_options::parse(&[text.into()]) {
        Err(error) => says(&error),
        Ok(options) => {
            let text = printed(&options);
            let again = mount_options::parse(&[text.as_str().into()]);
            assert_eq!(again.expect(&text), options, "{text}");
        }
    }
}

/// The helper leaves out what is not for us, and changes nothing else.
fn handed_over(list: &OsStr) {
    let line = ["dsa1", "/mnt", "-o"].map(OsString::from).into_iter();
    let line = line.chain([list.to_owned()]);
    let step = match plan(OsStr::new("/sbin/mount.shadowset"), line, true) {
        Ok(Plan::Mount(step)) => step,
        Ok(other) => panic!("{other:?}"),
        Err(plan::Unusable(why)) => return assert!(list.to_str().is_none(), "{why}"),
    };
    let words = step.args.iter().position(|word| word == "-o");
    let words = words.map_or_else(OsString::new, |at| step.args[at + 1].clone());
    let end = ["--", "dsa1", "/mnt"].map(OsString::from);
    assert!(step.args.ends_with(&end), "{:?}", step.args);
    let Ok(direct) = mount_options::parse(&[list.to_owned()]) else {
        return;
    };
    let mut through = mount_options::parse(&[words]).expect("what is left is understood");
    if !direct.remount {
        // What a mount is anyway.
        through.read_write = direct.read_write;
    }
    assert_eq!(through, direct);
}

/// The options as a list.
fn printed(options: &Options) -> String {
    let group = |group: &Group| match group {
        Group::Number(number) => number.to_string(),
        Group::Name(name) => name.clone(),
    };
    let flags = [
        ("ro", options.read_only),
        ("rw", options.read_write),
        ("remount", options.remount),
        ("allow_other", options.allow_other),
        ("foreground", options.foreground),
        ("require_members", options.require_members),
        ("include", options.include),
        ("nocopy", options.nocopy),
    ];
    let members: Vec<String> = options.members.iter().map(|path| member(path)).collect();
    let members = Some(members.join(":")).filter(|list| !list.is_empty());
    let said = &options.said;
    let path = |path: &PathBuf| path.display().to_string();
    let values = [
        ("control_gid", said.control_gid.as_ref().map(group)),
        ("control_mode", said.control_mode.clone()),
        ("unit_gid", said.unit_gid.as_ref().map(group)),
        ("unit_mode", said.unit_mode.clone()),
        ("log", options.log.as_ref().map(path)),
        ("unit", options.unit.clone()),
        ("members", members),
        (
            "durability",
            options.durability.map(|d| d.name().to_owned()),
        ),
        ("policy", options.policy.map(|p| p.name().to_owned())),
    ];
    let flags = flags.into_iter().filter(|flag| flag.1);
    let mut words: Vec<String> = flags.map(|flag| flag.0.to_owned()).collect();
    for (key, value) in values {
        words.extend(value.map(|value| format!("{key}=\"{value}\"")));
    }
    for (param, value) in &options.params {
        words.push(format!("{}={}", param.name(), param.spec().write(*value)));
    }
    words.join(",")
}

fn member(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let text = std::str::from_utf8(bytes).expect("it was text");
    text.replace(':', "\\:")
}

fn sizes(text: &str) {
    if let Ok(bytes) = size::parse_size(text) {
        assert_eq!(size::parse_size(&bytes.0.to_string()), Ok(bytes));
    }
    let _ = size::parse_timeout(text);
    if let Ok(rate) = read_rate(text) {
        assert!(rate > 0, "{text}: no rate at all");
    }
    for param in Param::ALL {
        if let Ok(value) = param.spec().read(text) {
            let written = param.spec().write(value);
            let again = param.spec().read(&written);
            assert_eq!(
                again.ok(),
                Some(value),
                "{}: {text} {written}",
                param.name()
            );
        }
    }
}

/// What a backup has left behind, and the mounts of the system.
pub(crate) fn records(bytes: &[u8]) {
    backup::record::fuzz(bytes);
    let place = bytes.split(|byte| *byte == b' ').nth(4).unwrap_or_default();
    let place = OsStr::from_bytes(place);
    if let Some(unit) = mountinfo::unit_at(bytes, place) {
        assert!(mountinfo::has_unit(bytes, &unit), "{unit:?} on {place:?}");
    }
}

fn says(error: &Error) {
    refused(error.code(), &error.to_string(), error.hint());
}
