//! `loop`: the virtual unit as a block device.

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde_json::{Value, json};

use super::args::{LoopVerb, UnitArgs};
use super::output::{Out, about};
use super::place;
use super::system::{self, Running};
use super::tree::{Tree, read_only};
use crate::error::{Error, Result};
use crate::set::Code;

/// `loop unit`.
#[derive(ClapArgs, Debug)]
pub(super) struct DeviceArgs {
    /// The loop device: /dev/loopN.
    pub(super) device: PathBuf,
}

/// `loop`.
pub(super) fn run(verb: &LoopVerb, out: Out) -> Result<u8> {
    match verb {
        LoopVerb::Attach(args) => attach(args, out),
        LoopVerb::Detach(args) => detach(args, out),
        LoopVerb::Unit(args) => unit(args, out),
    }
}

/// For the rule of udev, which must not wait for a server.
fn unit(args: &DeviceArgs, out: Out) -> Result<u8> {
    let device = args.device.display();
    let unit = system::unit_under(&args.device)?.ok_or_else(|| {
        let says = format!("loop unit: {device} is over no mounted unit");
        Error::new(Code::NoSuchFile, says).with_hint("`losetup -l` lists the devices")
    })?;
    out.either(&json!({ "ok": true, "unit": unit }), &unit)?;
    Ok(0)
}

fn attach(args: &UnitArgs, out: Out) -> Result<u8> {
    let unit = place::running(&args.unit)?;
    let subject = format!("loop attach {}", unit.unit);
    Tree::of(&unit).verify()?;
    let file = unit.file();
    let _turn = system::loop_turn(&file).map_err(|e| about(&subject, &e))?;
    let there = system::loop_find(&file).map_err(|e| about(&subject, &e))?;
    if let Some(device) = there.first() {
        // Two block devices over one disk keep two caches that know nothing of each other.
        let (name, device) = (&unit.unit, device.display());
        let says = format!("{subject}: {device} is over the unit already");
        let hint = format!("use {device}, or free it: `shadowset loop detach {name}`");
        return Err(Error::new(Code::InUse, says).with_hint(hint));
    }
    let device = system::loop_attach(&file).map_err(|e| match e.code() {
        Code::ReadOnlyImage => read_only(&subject, &unit.unit, "gets no loop device"),
        _ => about(&subject, &e),
    })?;
    if !device.direct_io {
        // It works, with each block in memory twice: a reason for a word, not for a refusal.
        eprintln!(
            "shadowset: {} is without direct I/O",
            device.device.display()
        );
    }
    let name = device.device.display().to_string();
    out.either(
        &json!({ "ok": true, "device": name, "direct_io": device.direct_io,
            "block_size": device.block_size }),
        &name,
    )?;
    Ok(0)
}

fn detach(args: &UnitArgs, out: Out) -> Result<u8> {
    let unit = place::running(&args.unit)?;
    let subject = format!("loop detach {}", unit.unit);
    let file = unit.file();
    let (devices, free) = found(&unit, &file, &subject)?;
    if devices.is_empty() {
        let says = format!("{subject}: no loop device is over the unit");
        return Err(Error::new(Code::NoSuchFile, says).with_hint("`losetup -l` lists the devices"));
    }
    let mut freed = Vec::new();
    for device in devices {
        free(&file, &device).map_err(|e| partly(&subject, &freed, &e))?;
        freed.push(device.display().to_string());
    }
    let list = freed.iter().cloned().map(Value::String).collect();
    out.either(
        &json!({ "ok": true, "devices": Value::Array(list) }),
        &freed.join("\n"),
    )?;
    Ok(0)
}

/// How a loop device over a file is freed.
type Free = fn(&Path, &Path) -> Result<()>;

/// The devices over a unit, and how they are freed: a device keeps the mount of a dead server in use, whose file has only
/// its path left.
fn found(unit: &Running, file: &Path, subject: &str) -> Result<(Vec<PathBuf>, Free)> {
    match Tree::of(unit).verify() {
        Ok(()) => {
            let devices = system::loop_find(file).map_err(|e| about(subject, &e))?;
            Ok((devices, system::loop_detach))
        }
        Err(error) if error.code() == Code::NotMounted && unit.pid.is_none() => {
            Ok((system::loops_by_name(file), system::loop_detach_from_dead))
        }
        Err(error) => Err(error),
    }
}

/// A device that cannot be freed, and those that were before.
fn partly(subject: &str, freed: &[String], error: &Error) -> Error {
    let error = about(subject, error);
    if freed.is_empty() {
        return error;
    }
    let says = format!("{error}; {} is free now", freed.join(", "));
    Error::new(error.code(), says).with_hint(error.hint())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_devices_that_were_freed_before() {
        let error = Error::new(Code::InUse, "/dev/loop2 is in use").with_hint("unmount it");
        let says = |freed: &[String]| partly("loop detach dsa1", freed, &error).to_string();
        let alone = "loop detach dsa1: /dev/loop2 is in use";
        assert_eq!(says(&[]), alone);
        let freed = ["/dev/loop1".to_owned()];
        assert_eq!(says(&freed), format!("{alone}; /dev/loop1 is free now"));
    }
}
