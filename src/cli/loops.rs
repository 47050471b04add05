//! `loop`: the virtual unit as a block device.

use serde_json::{Value, json};

use super::args::{LoopVerb, UnitArgs};
use super::output::{Out, about};
use super::{place, system};
use crate::error::{Error, Result};
use crate::set::Code;

/// `loop`.
pub(super) fn run(verb: &LoopVerb, out: Out) -> Result<u8> {
    match verb {
        LoopVerb::Attach(args) => attach(args, out),
        LoopVerb::Detach(args) => detach(args, out),
    }
}

fn attach(args: &UnitArgs, out: Out) -> Result<u8> {
    let unit = place::running(&args.unit)?;
    let subject = format!("loop attach {}", unit.unit);
    let device = system::loop_attach(&unit.file()).map_err(|e| about(&subject, &e))?;
    if !device.direct_io {
        // It works, with each block in memory twice: a reason for a word, not for a refusal.
        eprintln!(
            "shadowset: {} is without direct I/O",
            device.device.display()
        );
    }
    let name = device.device.display().to_string();
    out.either(
        &json!({ "ok": true, "device": name, "direct_io": device.direct_io }),
        &name,
    )?;
    Ok(0)
}

fn detach(args: &UnitArgs, out: Out) -> Result<u8> {
    let unit = place::running(&args.unit)?;
    let subject = format!("loop detach {}", unit.unit);
    let devices = system::loop_find(&unit.file()).map_err(|e| about(&subject, &e))?;
    if devices.is_empty() {
        let says = format!("{subject}: no loop device is over the unit");
        return Err(Error::new(Code::NoSuchFile, says).with_hint("`losetup -l` lists the devices"));
    }
    let mut freed = Vec::new();
    for device in devices {
        system::loop_detach(&device).map_err(|e| about(&subject, &e))?;
        freed.push(device.display().to_string());
    }
    let list = freed.iter().cloned().map(Value::String).collect();
    out.either(
        &json!({ "ok": true, "devices": Value::Array(list) }),
        &freed.join("\n"),
    )?;
    Ok(0)
}
