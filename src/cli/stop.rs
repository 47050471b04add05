//! `stop`: takes the mount away and returns when the server has closed the members.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::args::StopArgs;
use super::output::{self, Out, about};
use super::system::{self, Running};
use super::tree::Tree;
use super::{config, place};
use crate::error::{Error, Result};
use crate::set::Code;

/// How long a server may take to flush and close its members once nobody uses them.
const END_MAX: Duration = Duration::from_secs(300);
/// How long a server may take to end that has closed its members.
const LAST: Duration = Duration::from_secs(3);
/// How often a unit in use is tried again; its server's end ends the wait at once.
const RETRY: Duration = Duration::from_millis(200);

/// `stop`.
pub(super) fn run(args: &StopArgs, out: Out) -> Result<u8> {
    let unit = place::running(&args.unit).map_err(|error| last_word(&args.unit, error))?;
    let server = match unit.pid {
        Some(pid) => system::process(pid).map_err(|cause| failed(&unit, cause))?,
        None => None,
    };
    refuse_covered(&unit)?;
    // Nothing tells of them once the mount is gone.
    let devices = if args.force {
        unit.loop_devices()
    } else {
        Vec::new()
    };
    if args.force {
        end_stall(&unit);
    }
    take_away(&unit, args, server.as_ref())?;
    warn_of_devices(&unit, &devices);
    let ended = match &server {
        // Its users may keep the server of a detached mount for as long as they like.
        Some(_) if args.force && !args.wait => is_over(server.as_ref(), Duration::ZERO),
        Some(_) if args.wait => wait_for_end(&unit, server.as_ref(), None),
        _ => wait_for_end(&unit, server.as_ref(), Some(END_MAX)),
    };
    let ended = ended.map_err(|cause| failed(&unit, cause))?;
    if !ended && !args.force {
        let says = format!("stop {}: the server still writes to its members", unit.unit);
        return Err(Error::new(Code::TimedOut, says).with_hint("its log says what it waits for"));
    }
    let goes_on = ended && is_served_elsewhere(&unit)?;
    let ended = ended && !goes_on;
    if ended {
        refuse_unclean(&unit)?;
    }
    let name = &unit.unit;
    let says = match ended {
        true => format!("{name} is stopped"),
        false if goes_on => format!("one way to {name} is taken away; it is still served"),
        false => format!("{name} ends when its last user has closed it"),
    };
    out.either(
        &json!({ "ok": true, "unit": unit.unit, "ended": ended }),
        &says,
    )?;
    Ok(0)
}

/// Whatever is mounted over the unit is not to be taken away in its stead.
fn refuse_covered(unit: &Running) -> Result<()> {
    let Some(other) = unit.covered_by() else {
        return Ok(());
    };
    let (name, dir) = (&unit.unit, unit.mountpoint.display());
    let says = format!("stop {name}: {other} is mounted over it at {dir}");
    Err(Error::new(Code::InUse, says).with_hint(format!("take {other} away first")))
}

/// Whoever waits for the end of a stall could not close the unit. When that cannot be ended now, its time does it.
fn end_stall(unit: &Running) {
    let tree = Tree::of(unit);
    if tree.status().is_ok_and(|status| status.stalled.is_some()) {
        let _ = tree.command("unstall");
    }
}

/// A loop device outlives the unit under it.
fn warn_of_devices(unit: &Running, devices: &[PathBuf]) {
    for device in devices {
        let (name, device) = (&unit.unit, device.display());
        output::warn(&format!(
            "{device} stays over {name}: unmount what is on it, then `losetup -d {device}`"
        ));
    }
}

fn take_away(unit: &Running, args: &StopArgs, server: Option<&OwnedFd>) -> Result<()> {
    loop {
        // Somebody else has taken it away, and what was under it is none of ours.
        if unit.covered_by().is_some() {
            return Ok(());
        }
        match unmount(unit, args.force) {
            Ok(()) => return Ok(()),
            // Unmounted before, and still closing its members: that end is what is wanted.
            Err(error) if error.code() == Code::NotMounted && server.is_some() => return Ok(()),
            Err(error) if error.code() != Code::InUse => {
                return Err(about(&format!("stop {}", unit.unit), &error));
            }
            Err(_) if !args.wait => return Err(busy(&format!("stop {}", unit.unit), unit)),
            Err(_) => {}
        }
        let over = match server {
            Some(_) => is_over(server, RETRY),
            None => system::pause(RETRY).map(|()| false),
        };
        if over.map_err(|cause| failed(unit, cause))? {
            return Ok(());
        }
    }
}

/// umount(2) for root; others need the helper that mounted for them.
fn unmount(unit: &Running, lazy: bool) -> Result<()> {
    if system::is_root() {
        return system::unmount(unit, lazy);
    }
    system::expect_mounted(unit)?;
    let mountpoint = &unit.mountpoint;
    let failed = |cause| Error::io(format!("cannot unmount {}", mountpoint.display()), cause);
    let mut command = Command::new("fusermount3");
    command
        .arg("-u")
        .args(lazy.then_some("-z"))
        .arg("--")
        .arg(mountpoint);
    let output = command.stdin(Stdio::null()).output().map_err(failed)?;
    let says = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false if says.contains("busy") => Err(Error::new(Code::InUse, says.trim())),
        false => Err(failed(io::Error::other(says.trim().to_owned()))),
    }
}

fn is_over(server: Option<&OwnedFd>, time: Duration) -> io::Result<bool> {
    server.map_or(Ok(true), |server| system::wait_for_end(server, time))
}

fn wait_for_end(
    unit: &Running,
    server: Option<&OwnedFd>,
    at_most: Option<Duration>,
) -> io::Result<bool> {
    let begun = Instant::now();
    let mut told = false;
    while !is_over(server, RETRY)? {
        if !told && begun.elapsed() >= LAST {
            told = true;
            output::warn(&format!(
                "{} is unmounted, but its server goes on: somebody has the unit open still (`losetup -a` shows loop \
                 devices), or its members are being closed; this waits for it",
                unit.unit
            ));
        }
        if at_most.is_some_and(|most| begun.elapsed() >= most) {
            return Ok(false);
        }
        // It takes its claim away when it has closed the members; then nothing but a member can hold it.
        if has_let_go(unit) {
            if !is_over(server, LAST)? {
                output::warn(&format!(
                    "{} has ended, but a member that does not answer holds its process: that image stays locked \
                     until it does",
                    unit.unit
                ));
            }
            break;
        }
    }
    Ok(true)
}

/// Whether the server has given its claim to the unit back.
fn has_let_go(unit: &Running) -> bool {
    let left = system::runtime().and_then(|runtime| runtime.find(&unit.unit));
    matches!(left, Ok(None))
}

/// A unit that has ended before it was asked for may have ended badly.
fn last_word(argument: &str, error: Error) -> Error {
    if error.code() != Code::NotMounted || !config::valid_name(argument) {
        return error;
    }
    let told = system::runtime().and_then(|runtime| runtime.failed(argument));
    match told {
        Ok(Some(sentence)) => unclean(argument, &sentence),
        Ok(None) | Err(_) => error,
    }
}

/// Whether what has gone was a second way to the unit, as by `mount --bind`.
fn is_served_elsewhere(unit: &Running) -> Result<bool> {
    if unit.pid.is_some() {
        return Ok(false);
    }
    let left = system::runtime()?.find(&unit.unit)?;
    Ok(left.is_some_and(|left| left.alive))
}

/// A server that has ended without marking its members clean: the unit is stopped, but not well.
fn refuse_unclean(unit: &Running) -> Result<()> {
    let Some(pid) = unit.pid else {
        let name = &unit.unit;
        output::warn(&format!(
            "the server of {name} had died: its members are not marked clean, and the next mount merges \
             the sources if there are several"
        ));
        return Ok(());
    };
    let runtime = system::runtime()?;
    if let Some(sentence) = runtime.failed(&unit.unit)? {
        return Err(unclean(&unit.unit, &sentence));
    }
    let left = runtime.find(&unit.unit)?;
    if left.is_some_and(|left| !left.alive && left.pid == Some(pid)) {
        return Err(unclean(&unit.unit, "the server was killed"));
    }
    Ok(())
}

fn unclean(unit: &str, sentence: &str) -> Error {
    let sentence = output::sentence_about(&format!("stop {unit}"), sentence);
    Error::new(Code::Io, sentence)
        .with_hint("members may not be marked clean; then the next mount merges the sources if there are several")
}

/// A unit that is in use, and who keeps it so.
pub(super) fn busy(subject: &str, unit: &Running) -> Error {
    let name = &unit.unit;
    let devices = unit.loop_devices();
    let devices: Vec<_> = devices.iter().map(|d| d.display().to_string()).collect();
    let devices = devices.join(", ");
    if devices.is_empty() {
        let dir = unit.mountpoint.display();
        let hint = format!(
            "`fuser -vm {dir}` names its users; `shadowset stop --wait {name}` waits for them"
        );
        return Error::new(Code::InUse, format!("{subject}: the unit is in use")).with_hint(hint);
    }
    let says = format!("{subject}: the unit is in use by {devices}");
    let hint = format!("unmount what is on {devices}, then `shadowset loop detach {name}`");
    Error::new(Code::InUse, says).with_hint(hint)
}

fn failed(unit: &Running, cause: io::Error) -> Error {
    Error::io(
        format!("stop {}: cannot wait for the server", unit.unit),
        cause,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_unit_is_a_refusal_with_a_way_out() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mountpoint = dir.path().to_owned();
        let unit = Running {
            unit: "dsa1".into(),
            pid: None,
            mountpoint,
        };
        let error = busy("stop dsa1", &unit);
        assert_eq!((error.code(), error.exit_code()), (Code::InUse, 4));
        assert!(error.hint().contains("fuser -vm"), "{}", error.hint());
    }

    #[test]
    fn the_end_of_a_server_is_noticed() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("cat is there");
        let server = system::process(child.id())
            .expect("a process")
            .expect("it runs");
        assert!(!is_over(Some(&server), Duration::ZERO).expect("poll"));
        drop(child.stdin.take());
        assert!(is_over(Some(&server), END_MAX).expect("poll"));
        child.wait().expect("ended");
        assert!(is_over(None, END_MAX).expect("nothing to wait for"));
    }
}
