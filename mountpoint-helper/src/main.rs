//! Helper of mount(8) and umount(8) for shadow sets.
//!
//! One binary under four names: `mount.shadowset`, `mount.fuse.shadowset`, `umount.shadowset` and
//! `umount.fuse.shadowset`. mount(8) looks for these and hands over its own command line; the
//! helper turns that into commands of `shadowset` and umount(8), runs them, and answers with the
//! exit codes of mount(8). It knows nothing of shadow sets and opens no image.

mod mountinfo;
mod plan;
#[cfg(test)]
#[path = "plan/tests.rs"]
mod plan_tests;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use plan::{Plan, Step, Tool};

/// Exit codes of mount(8).
mod exit {
    /// Wrong use or no permission.
    pub(crate) const USAGE: u8 = 1;
    /// The system did not do its part.
    pub(crate) const SYSTEM: u8 = 2;
    /// A mistake in a program of ours.
    pub(crate) const BUG: u8 = 4;
    /// The user interrupted.
    pub(crate) const INTERRUPTED: u8 = 8;
    /// The mount failed.
    pub(crate) const FAILED: u8 = 32;
}

/// Exit codes of `shadowset` that mean something here.
mod shadowset {
    /// Wrong use, of `mount`.
    pub(crate) const MOUNT_USAGE: i32 = 1;
    /// Wrong use.
    pub(crate) const USAGE: i32 = 2;
    /// No such unit, or it is not mounted.
    pub(crate) const NOT_FOUND: i32 = 3;
}

const SIGINT: i32 = 2;
const SIGABRT: i32 = 6;
const SIGSEGV: i32 = 11;

fn main() -> ExitCode {
    let mut argv = std::env::args_os();
    let name = argv.next().unwrap_or_default();
    let code = match plan::plan(&name, argv, is_root()) {
        Ok(plan) => execute(&plan),
        Err(plan::Unusable(why)) => fail(&why, exit::USAGE),
    };
    ExitCode::from(code)
}

/// Whether this process acts as root; where that cannot be told, who is asked next tells it.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn fail(why: &str, code: u8) -> u8 {
    eprintln!("shadowset: {why}");
    code
}

fn execute(plan: &Plan) -> u8 {
    match plan {
        Plan::Mount(step) => run(step).map_or_else(|code| code, mount_code),
        Plan::Stop(step) => run(step).map_or_else(|code| code, stop_code),
        Plan::Unmount { umount, dir, wait } => unmount(umount, dir, *wait),
    }
}

/// Unmounts, then waits until the daemon has marked the members clean: umount(2) itself returns
/// before that. Who holds the mount is asked first, because afterwards nothing tells.
fn unmount(umount: &Step, dir: &OsStr, wait: bool) -> u8 {
    let unit = unit_at(dir);
    let code = run(umount).map_or_else(|code| code, mount_code);
    let (0, true, Some(unit)) = (code, wait, unit) else {
        return code;
    };
    // `umount -r` may have made it read-only instead, and this may have been a second way to it.
    if unit_at(dir).is_some() || mountinfo::has_unit(&table(), &unit) {
        return code;
    }
    let stop = Step {
        tool: Tool::Shadowset,
        args: vec!["stop".into(), "--wait".into(), "--".into(), unit],
        namespace: None,
        verbose: umount.verbose,
    };
    let output = prepared(&stop).and_then(|mut command| {
        let output = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        output.map_err(|cause| cannot_run(&command, &cause))
    });
    match output {
        // The daemon has already ended: that is what was waited for.
        Ok(output) if output.status.code() == Some(shadowset::NOT_FOUND) => 0,
        Ok(output) => {
            // A closed channel changes nothing about what has happened.
            let _ = std::io::stderr().write_all(&output.stderr);
            stop_code(output.status)
        }
        Err(code) => code,
    }
}

fn unit_at(dir: &OsStr) -> Option<OsString> {
    mountinfo::unit_at(&table(), dir)
}

fn table() -> Vec<u8> {
    std::fs::read("/proc/self/mountinfo").unwrap_or_default()
}

/// The exit code of mount(8) for the end of a program that has mounted, or of umount(8) itself.
fn mount_code(status: ExitStatus) -> u8 {
    match status.code() {
        Some(shadowset::MOUNT_USAGE) => exit::USAGE,
        _ => stop_code(status),
    }
}

/// The exit code of umount(8) for the end of `shadowset stop`.
fn stop_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(0), _) => 0,
        (Some(shadowset::USAGE), _) => exit::USAGE,
        (_, Some(SIGINT)) => exit::INTERRUPTED,
        (_, Some(SIGABRT | SIGSEGV)) => exit::BUG,
        _ => exit::FAILED,
    }
}

fn run(step: &Step) -> Result<ExitStatus, u8> {
    let mut command = prepared(step)?;
    command
        .status()
        .map_err(|cause| cannot_run(&command, &cause))
}

/// The program of a step, shown where that is wanted.
fn prepared(step: &Step) -> Result<Command, u8> {
    let line = command_line(step, find("shadowset"));
    if step.verbose {
        let words: Vec<_> = line.iter().map(|word| word.to_string_lossy()).collect();
        println!("{}", words.join(" "));
    }
    let (program, args) = line.split_first().ok_or(exit::SYSTEM)?;
    let mut command = Command::new(program);
    if step.tool == Tool::Shadowset && !step.verbose {
        // umount(8) says nothing when all went well; errors are on the other channel.
        command.stdout(Stdio::null());
    }
    command.args(args);
    Ok(command)
}

fn cannot_run(command: &Command, cause: &std::io::Error) -> u8 {
    let program = command.get_program().to_string_lossy();
    let places = format!("looked for beside this helper, in PATH and in {USUAL_PLACES}");
    fail(
        &format!("cannot run {program}: {cause} ({places})"),
        exit::SYSTEM,
    )
}

/// Program and arguments; `shadowset` is where the program was found.
fn command_line(step: &Step, shadowset: Option<PathBuf>) -> Vec<OsString> {
    let mut line = Vec::new();
    if let Some(namespace) = &step.namespace {
        let mut enter = OsString::from("--mount=");
        enter.push(namespace);
        line.extend(["nsenter".into(), enter, "--".into()]);
    }
    line.push(match step.tool {
        Tool::Shadowset => shadowset.map_or_else(|| "shadowset".into(), PathBuf::into_os_string),
        Tool::Umount => "umount".into(),
    });
    line.extend(step.args.iter().cloned());
    line
}

/// Where programs are when nothing says otherwise; mount(8) runs its helpers without a PATH.
const USUAL_PLACES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program beside this one, else in PATH, else in one of the usual places.
fn find(name: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .map(|path| path.with_file_name(name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = OsString::from(USUAL_PLACES);
    let places = std::env::split_paths(&path).chain(std::env::split_paths(&usual));
    let named = places.map(|place| place.join(name));
    beside.into_iter().chain(named).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32) -> u8 {
        mount_code(ExitStatus::from_raw(code << 8))
    }

    #[test]
    fn codes_of_shadowset_become_codes_of_mount() {
        assert_eq!(
            [0, 1, 2, 3, 4, 32, 124].map(ended),
            [0, 1, 1, 32, 32, 32, 32]
        );
        let stopped = |code: i32| stop_code(ExitStatus::from_raw(code << 8));
        assert_eq!([0, 1, 2, 3, 4].map(stopped), [0, 32, 1, 32, 32]);
        let killed = |signal| mount_code(ExitStatus::from_raw(signal));
        assert_eq!([SIGINT, 9, SIGABRT, SIGSEGV].map(killed), [8, 32, 4, 4]);
    }

    #[test]
    fn a_namespace_is_entered_first() {
        let step = Step {
            tool: Tool::Shadowset,
            args: vec!["mount".into()],
            namespace: Some("/proc/7/fd/4".into()),
            verbose: false,
        };
        let line = command_line(&step, Some("/opt/shadowset".into()));
        assert_eq!(
            line,
            [
                "nsenter",
                "--mount=/proc/7/fd/4",
                "--",
                "/opt/shadowset",
                "mount"
            ]
        );
        let step = Step {
            namespace: None,
            ..step
        };
        assert_eq!(command_line(&step, None), ["shadowset", "mount"]);
    }
}
