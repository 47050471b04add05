//! Programs that are run, and what has to be taken away in the end, also behind an error or a signal.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use shadowset::io::sys::{self, Signals};
use shadowset::io::{loopdev, mountpoint};

pub(crate) type Result<T> = std::result::Result<T, String>;

/// Longest time that a program may take beside what it measures.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// What ends a run early. The signal is left pending, so that every later call sees it too.
pub(crate) const STOPPED: &str = "stopped by a signal";
/// Longest time that something to be taken away may stay in use.
const BUSY: Duration = Duration::from_secs(10);

/// Runs programs, until a signal says that it is enough.
#[derive(Debug)]
pub(crate) struct Shell {
    signals: Signals,
    dir: PathBuf,
}

impl Shell {
    /// What programs say goes through files in `dir`.
    pub(crate) fn new(signals: Signals, dir: &Path) -> Self {
        let dir = dir.to_owned();
        Self { signals, dir }
    }

    /// Whether a signal has come.
    pub(crate) fn is_stopped(&self) -> bool {
        let asked = [(self.signals.as_fd(), libc::POLLIN)];
        let come = sys::poll(&asked, Some(Duration::ZERO));
        come.is_ok_and(|events| events != [0])
    }

    /// Runs a program that has to succeed; what it printed.
    pub(crate) fn run(&self, command: &mut Command) -> Result<String> {
        self.run_for(command, PATIENCE)
    }

    /// As [`Self::run`], but a signal waits for its end: half of what it sets up could not be taken away.
    pub(crate) fn set_up(&self, command: &mut Command) -> Result<String> {
        self.run_while(command, PATIENCE, false)
    }

    /// As [`Self::run`], for so long at most.
    pub(crate) fn run_for(&self, command: &mut Command, longest: Duration) -> Result<String> {
        self.run_while(command, longest, true)
    }

    fn run_while(&self, command: &mut Command, longest: Duration, heeds: bool) -> Result<String> {
        if self.is_stopped() {
            return Err(STOPPED.to_owned());
        }
        let name = command.get_program().to_string_lossy().into_owned();
        let failed = |e: io::Error| format!("{name}: {e}");
        let (out, err) = (self.dir.join("out"), self.dir.join("err"));
        let (to, complaints) = (File::create(&out), File::create(&err));
        let mut child = start(command, to.map_err(failed)?, complaints.map_err(failed)?)?;
        let waited = self.wait(&child, longest, heeds);
        if waited.is_err() {
            let _ = sys::kill_group(child.id(), libc::SIGKILL);
        }
        let status = child.wait().map_err(failed)?;
        waited.map_err(|why| format!("{name}: {why}"))?;
        let says = |path| fs::read(path).map(|said| String::from_utf8_lossy(&said).into_owned());
        let (out, err) = (says(out).map_err(failed)?, says(err).map_err(failed)?);
        match status.success() {
            true => Ok(out),
            false => Err(format!("{name}: {status}: {}", last(&err, &out))),
        }
    }

    fn wait(&self, child: &Child, longest: Duration, heeds: bool) -> Result<()> {
        let end = sys::pidfd_open(child.id()).map_err(|e| e.to_string())?;
        let heeded = if heeds { libc::POLLIN } else { 0 };
        let asked = [(self.signals.as_fd(), heeded), (end.as_fd(), libc::POLLIN)];
        let events = sys::poll(&asked, Some(longest)).map_err(|e| e.to_string())?;
        match events.as_slice() {
            [0, 0] => Err(format!("still not done after {} s", longest.as_secs())),
            [0, _] => Ok(()),
            _ => Err(STOPPED.to_owned()),
        }
    }

    /// Starts a program that stays, and waits until it is ready.
    pub(crate) fn stay(
        &self,
        things: &mut Things,
        command: &mut Command,
        ready: impl Fn() -> bool,
    ) -> Result<u32> {
        let name = command.get_program().to_string_lossy().into_owned();
        let log = self.dir.join("log");
        let to = File::create(&log).and_then(|file| Ok((file.try_clone()?, file)));
        let (out, err) = to.map_err(|e| format!("{name}: {e}"))?;
        let child = start(command, out, err)?;
        let pid = child.id();
        things.keep(Thing::Daemon(child));
        let gone =
            || fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|l| l.is_empty());
        if eventually(|| ready() || gone()) && ready() {
            return Ok(pid);
        }
        let said = fs::read_to_string(&log).unwrap_or_default();
        Err(format!("{name} is not ready: {}", last(&said, "")))
    }
}

/// The end of what a program says, of the first text that has something, as one line.
fn last(first: &str, second: &str) -> String {
    let text = if first.trim().is_empty() {
        second
    } else {
        first
    };
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let letters = line.chars().count();
    line.chars().skip(letters.saturating_sub(200)).collect()
}

/// In a group of its own: a terminal sends its signals to all of a group, and we take away in order.
fn start(command: &mut Command, out: File, err: File) -> Result<Child> {
    command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .process_group(0);
    sys::unblock_signals(command);
    let name = command.get_program().to_string_lossy().into_owned();
    command.spawn().map_err(|e| format!("{name}: {e}"))
}

/// Waits until something is so; whether it came in time.
pub(crate) fn eventually(so: impl Fn() -> bool) -> bool {
    let end = Instant::now() + BUSY;
    while !so() {
        if Instant::now() > end || sys::poll(&[], Some(Duration::from_millis(5))).is_err() {
            return false;
        }
    }
    true
}

/// Whether something is mounted there.
pub(crate) fn is_mounted(place: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let place = place.to_string_lossy();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&*place))
}

/// Something that has to be taken away.
#[derive(Debug)]
pub(crate) enum Thing {
    /// A mounted file system.
    Mount(PathBuf),
    /// A loop device.
    Loop(PathBuf),
    /// A disk of a btrfs, which the kernel would know by its number when another one has that.
    Known(PathBuf),
    /// A program that stays.
    Daemon(Child),
    /// A mounted unit of ours: its mount point, and what stops it.
    Unit(PathBuf, Command),
}

impl Thing {
    fn take_away(self) {
        let (what, gone) = match self {
            Self::Mount(place) => (place.clone(), unmount(&place)),
            Self::Loop(device) => (device.clone(), loopdev::detach(&device).is_ok()),
            Self::Known(device) => (device.clone(), ends_well(forget(&device))),
            Self::Daemon(child) => (format!("process {}", child.id()).into(), end(child)),
            Self::Unit(place, stop) => (place.clone(), ends_well(stop) || unmount(&place)),
        };
        if !gone {
            let _ = writeln!(io::stderr(), "{} is left behind", what.display());
        }
    }
}

fn forget(device: &Path) -> Command {
    let mut forget = Command::new("btrfs");
    forget.args(["device", "scan", "--forget"]).arg(device);
    forget
}

fn unmount(place: &Path) -> bool {
    let tried = || !is_mounted(place) || mountpoint::unmount(place, false).is_ok();
    eventually(tried) || mountpoint::unmount(place, true).is_ok()
}

/// Runs a program that takes something away, and kills it when something holds it up.
fn ends_well(mut command: Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let Ok(mut child) = command.process_group(0).spawn() else {
        return false;
    };
    if !ends(&child) {
        let _ = sys::kill_group(child.id(), libc::SIGKILL);
    }
    child.wait().is_ok_and(|status| status.success())
}

fn end(mut child: Child) -> bool {
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        if sys::kill_group(child.id(), signal).is_ok() && ends(&child) {
            return child.wait().is_ok();
        }
    }
    child.try_wait().is_ok_and(|ended| ended.is_some())
}

/// Waits for the end of a program, for a while.
fn ends(child: &Child) -> bool {
    let end = sys::pidfd_open(child.id());
    let waited = end.and_then(|end| sys::poll(&[(end.as_fd(), libc::POLLIN)], Some(BUSY)));
    waited.is_ok_and(|events| events != [0])
}

/// What is set up now. The last comes first when it is taken away.
#[derive(Debug, Default)]
pub(crate) struct Things(Vec<Thing>);

impl Things {
    pub(crate) fn keep(&mut self, thing: Thing) {
        self.0.push(thing);
    }

    /// A loop device over a file, past the page cache of the file.
    pub(crate) fn attach(&mut self, file: &Path) -> Result<PathBuf> {
        let attached = loopdev::attach(file, true, 0).map_err(|e| e.to_string())?;
        self.keep(Thing::Loop(attached.device.clone()));
        match attached.direct_io {
            true => Ok(attached.device),
            false => Err(format!(
                "{}: no direct I/O for a loop device",
                file.display()
            )),
        }
    }
}

impl Drop for Things {
    fn drop(&mut self) {
        while let Some(thing) = self.0.pop() {
            thing.take_away();
        }
    }
}
