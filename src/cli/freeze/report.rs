//! What is told of a rest: how long each file system was frozen, whether the image can be relied on, and how it is mounted.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use serde_json::{Value, json};

use super::wire::{Cause, End, Released};
use crate::error::{Error, Result};
use crate::io::filesystems::FileSystem;
use crate::set::Code;

/// A file system that was frozen while members left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::cli) struct Frozen {
    mountpoint: String,
    fstype: String,
    device: String,
    time: Duration,
}

impl Frozen {
    /// For people: `/data ext4 84 ms`.
    pub(in crate::cli) fn line(&self) -> String {
        let time = self.time.as_millis();
        format!("frozen {} {} {time} ms", self.mountpoint, self.fstype)
    }

    /// For programs.
    pub(in crate::cli) fn value(&self) -> Value {
        json!({ "mountpoint": self.mountpoint, "fstype": self.fstype, "device": self.device,
            "seconds": self.time.as_secs_f64() })
    }
}

/// A refusal that came after some members had left.
pub(super) fn partly(error: Error, gone: &[&str]) -> Error {
    match gone {
        [] => error,
        gone => {
            let says = format!("{error}; {} is detached", gone.join(", "));
            Error::new(error.code(), says).with_hint(error.hint())
        }
    }
}

/// The times of the rest.
///
/// # Errors
/// Why the images of the members that have left may not be what they should: they hold what a crash would have left.
pub(super) fn frozen(
    found: &[FileSystem],
    released: &Released,
    gone: &[&str],
) -> Result<Vec<Frozen>> {
    let mut all = Vec::new();
    let late = !matches!(released.cause, Cause::Order | Cause::Lost);
    for (fs, end) in found.iter().zip(&released.ends) {
        let shown = fs.mountpoint.display();
        match end {
            _ if late => {
                return Err(unclean(
                    gone,
                    &format!("{shown} had to go on before that was sure"),
                    Code::TimedOut,
                ));
            }
            End::Thawed(micros) => all.push(Frozen {
                mountpoint: shown.to_string(),
                fstype: fs.fstype.clone(),
                device: fs.device.display().to_string(),
                time: Duration::from_micros(*micros),
            }),
            End::ThawedBefore | End::Never => {
                let how = format!("somebody had thawed {shown} before");
                return Err(unclean(gone, &how, Code::StateChanged));
            }
            End::Stuck(why) => {
                let says = format!(
                    "{} is detached, but {shown} cannot be thawed: {why}",
                    gone.join(", ")
                );
                let hint = format!("`fsfreeze -u {shown}`");
                return Err(Error::new(Code::Io, says).with_hint(hint));
            }
        }
    }
    if late {
        return Err(unclean(
            gone,
            "the applications had to go on before that was sure",
            Code::TimedOut,
        ));
    }
    if let Some(how) = &released.thaw_cmd {
        let says = format!(
            "{} is detached, but the command of --thaw-cmd {how}",
            gone.join(", ")
        );
        return Err(Error::new(Code::Io, says).with_hint("let the applications go on by hand"));
    }
    Ok(all)
}

fn unclean(gone: &[&str], how: &str, code: Code) -> Error {
    let says = format!(
        "{} is detached, but {how}: its image may hold what a crash would have left",
        gone.join(", ")
    );
    Error::new(code, says).with_hint("attach it and detach it again")
}

/// How the file system is mounted to be read from a detached image.
pub(super) fn mount_line(fs: &FileSystem, image: &Path) -> String {
    let is_device = std::fs::metadata(image).is_ok_and(|meta| meta.file_type().is_block_device());
    line(&fs.fstype, fs.span, image, is_device)
}

fn line(fstype: &str, span: Option<(u64, u64)>, image: &Path, is_device: bool) -> String {
    let own = match fstype {
        // The log of a frozen xfs is never empty, and the original is mounted with the same identity.
        "xfs" => ",norecovery,nouuid",
        _ => "",
    };
    let how = match (span, is_device) {
        (Some((start, bytes)), _) => format!(",loop,offset={start},sizelimit={bytes}"),
        (None, false) => ",loop".to_owned(),
        (None, true) => String::new(),
    };
    format!("mount -t {fstype} -o ro{own}{how} {} DIR", quoted(image))
}

/// Has a command print on standard error, where standard output is for a value.
pub(in crate::cli) fn to_errors(command: &mut Command) -> io::Result<()> {
    command.stdout(io::stderr().as_fd().try_clone_to_owned()?);
    Ok(())
}

/// The exit code of a command as a shell tells it.
pub(in crate::cli) fn exit_code(status: ExitStatus) -> u8 {
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// A path as a word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%=".contains(c);
    match text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_system_has_its_own_way_to_be_read() {
        let image = Path::new("/usb/c.img");
        let line = |fstype, span, device| line(fstype, span, image, device);
        let table = [
            (
                line("ext4", None, false),
                "mount -t ext4 -o ro,loop /usb/c.img DIR",
            ),
            (
                line("xfs", None, true),
                "mount -t xfs -o ro,norecovery,nouuid /usb/c.img DIR",
            ),
            (
                line("btrfs", Some((1 << 20, 4096)), true),
                "mount -t btrfs -o ro,loop,offset=1048576,sizelimit=4096 /usb/c.img DIR",
            ),
        ];
        for (line, expected) in table {
            assert_eq!(line, expected);
        }
        assert_eq!(quoted(Path::new("/a b/it's")), "'/a b/it'\\''s'");
    }

    #[test]
    fn a_rest_that_ended_too_early_is_an_error_that_says_so() {
        let released = |cause, thaw_cmd: Option<&str>| Released {
            cause,
            ends: Vec::new(),
            thaw_cmd: thaw_cmd.map(str::to_owned),
        };
        let end = |cause, thaw_cmd| frozen(&[], &released(cause, thaw_cmd), &["m3"]);
        assert_eq!(end(Cause::Order, None).expect("good"), []);
        assert_eq!(end(Cause::Lost, None).expect("thawed here"), []);
        let late = end(Cause::Deadline, None).expect_err("late");
        assert_eq!((late.code(), late.exit_code()), (Code::TimedOut, 124));
        let early = end(Cause::Early, None).expect_err("thawed before the member had left");
        assert_eq!(early.code(), Code::TimedOut);
        assert!(
            late.to_string().starts_with("m3 is detached, but "),
            "{late}"
        );
        let hook = end(Cause::Order, Some("has failed: exit status: 1")).expect_err("failed");
        assert_eq!(
            hook.to_string(),
            "m3 is detached, but the command of --thaw-cmd has failed: exit status: 1"
        );
    }
}
