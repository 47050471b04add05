//! `mount -o remount`: read-only or not, and parameters, of a unit that is mounted.
//!
//! What a mount begins with cannot be changed while it lasts: that is refused where the mount tells
//! that it is different, and nothing is changed then.

use std::path::Path;

use serde_json::{Value, json};

use super::args::MountArgs;
use super::bitmap::raw;
use super::mount_options::Options;
use super::output::{Out, about};
use super::system::{self, Running};
use super::tree::{self, Tree};
use super::{place, stop};
use crate::error::{Error, Result};
use crate::server::params::{Param, Values};
use crate::set::Code;

/// `mount -o remount`.
pub(super) fn run(args: &MountArgs, options: &Options, out: Out) -> Result<()> {
    let unit = mounted_at(&args.dir)?;
    let subject = format!("remount {}", unit.unit);
    let remount = Remount::of(&subject, unit, options)?;
    if !args.dry_run {
        remount.perform(&subject)?;
    }
    let (unit, read_only) = (&remount.unit.unit, remount.becomes_read_only);
    let would = if args.dry_run { "would be" } else { "is" };
    let word = if read_only { "read-only" } else { "writable" };
    let value =
        json!({ "ok": true, "dry_run": args.dry_run, "unit": unit, "read_only": read_only });
    out.either(&value, &format!("{unit} {would} mounted {word}"))
}

fn mounted_at(dir: &Path) -> Result<Running> {
    let doing = || format!("remount: cannot use the mount point {}", dir.display());
    let dir = std::path::absolute(dir).map_err(|cause| Error::io(doing(), cause))?;
    place::running(&dir.to_string_lossy()).map_err(|error| about("remount", &error))
}

/// What is to be done.
struct Remount {
    unit: Running,
    is_read_only: bool,
    becomes_read_only: bool,
    /// Commands that set what differs.
    settings: Vec<String>,
}

impl Remount {
    fn of(subject: &str, unit: Running, options: &Options) -> Result<Self> {
        let doing = || format!("{subject}: cannot look at the mount");
        let on = system::mounted(&unit.mountpoint).map_err(|cause| Error::io(doing(), cause))?;
        let on = on.filter(|on| on.is_unit(&unit.unit));
        let on = on.ok_or_else(|| tree::nothing_at(&unit.mountpoint))?;
        let text = Tree::of(&unit).read("status.json")?;
        refuse_changes(subject, &unit.unit, options, on.allow_other, &text)?;
        let becomes_read_only = match (options.read_only, options.read_write) {
            (false, false) => on.read_only,
            (read_only, _) => read_only,
        };
        let began_read_only = raw(&text, "read_only") == true;
        if began_read_only && !becomes_read_only {
            return Err(tree::read_only(subject, &unit.unit, "stays so"));
        }
        let settings = settings(options, &raw(&text, "params"));
        if becomes_read_only && on.read_only && !settings.is_empty() {
            return Err(tree::read_only(subject, &unit.unit, "takes no parameters"));
        }
        Ok(Self {
            unit,
            is_read_only: on.read_only,
            becomes_read_only,
            settings,
        })
    }

    /// Parameters are set while the unit can be written.
    fn perform(&self, subject: &str) -> Result<()> {
        let tree = Tree::of(&self.unit);
        if self.is_read_only && !self.becomes_read_only {
            self.change(subject)?;
        }
        for setting in &self.settings {
            tree.command(setting)?;
        }
        if self.becomes_read_only && !self.is_read_only {
            self.change(subject)?;
        }
        Ok(())
    }

    fn change(&self, subject: &str) -> Result<()> {
        system::remount(&self.unit, self.becomes_read_only).map_err(|error| match error.code() {
            Code::InUse => stop::busy(subject, &self.unit),
            _ => about(subject, &error),
        })
    }
}

/// Refuses what only a new mount can change.
fn refuse_changes(
    subject: &str,
    unit: &str,
    options: &Options,
    allow_other: bool,
    status: &str,
) -> Result<()> {
    let durability = raw(status, "durability");
    let wanted = options.durability.map(|durability| durability.name());
    let other_name = options.unit.as_deref().is_some_and(|name| name != unit);
    let what = if other_name {
        "unit"
    } else if options.allow_other && !allow_other {
        "allow_other"
    } else if wanted.is_some_and(|wanted| durability != wanted) {
        "durability"
    } else {
        return Ok(());
    };
    let says = format!("{subject}: {what} cannot be changed while the unit is mounted");
    let hint = format!("`shadowset stop {unit}`, then mount it with other options");
    Err(Error::new(Code::NotSupported, says).with_hint(hint))
}

/// The commands for the parameters that have another value than is wanted, the last one of each.
fn settings(options: &Options, now: &Value) -> Vec<String> {
    let mut wanted = Values::default();
    let mut named: Vec<Param> = Vec::new();
    for (param, value) in &options.params {
        wanted.set(*param, *value);
        named.retain(|known| known != param);
        named.push(*param);
    }
    let text = |param: &Param| (param.name(), param.spec().write(wanted.get(*param)));
    let is_so = |name: &str, text: &str| match &now[name] {
        Value::String(value) => value == text,
        value => value.as_u64().map(|number| number.to_string()).as_deref() == Some(text),
    };
    let differing = named
        .iter()
        .map(text)
        .filter(|(name, text)| !is_so(name, text));
    differing
        .map(|(name, text)| format!("set {name} {text}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::mount_options::parse;

    const STATUS: &str = r#"{"durability": "power", "read_only": false,
        "params": {"max_copies": 4, "default_detach_policy": "minicopy=optional"}}"#;

    fn refused(line: &str, allow_other: bool) -> Option<String> {
        let options = parse(&[line.into()]).expect("valid");
        let checked = refuse_changes("remount dsa1", "dsa1", &options, allow_other, STATUS);
        checked.err().map(|error| error.to_string())
    }

    #[test]
    fn what_only_a_new_mount_can_change_is_refused_by_name() {
        let says = |what| {
            let says = format!("remount dsa1: {what} cannot be changed while the unit is mounted");
            Some(says)
        };
        assert_eq!(refused("remount,allow_other", false), says("allow_other"));
        assert_eq!(
            refused("remount,durability=crash", false),
            says("durability")
        );
        assert_eq!(refused("remount,unit=dsa2", false), says("unit"));
        assert_eq!(
            refused(
                "remount,allow_other,unit=dsa1,durability=power,log=/l",
                true
            ),
            None
        );
    }

    #[test]
    fn only_parameters_that_differ_are_set() {
        let line = "max_copies=9,default_detach_policy=minicopy=optional,max_copies=3,priority=1";
        let options = parse(&[line.into()]).expect("valid");
        let commands = settings(&options, &raw(STATUS, "params"));
        assert_eq!(commands, ["set max_copies 3", "set priority 1"]);
        let options = parse(&["max_copies=4".into()]).expect("valid");
        assert!(settings(&options, &raw(STATUS, "params")).is_empty());
    }
}
