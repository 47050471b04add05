//! The ground the demonstration stands on: its directory, and how to undo what it has set up.
//!
//! What is set up is put on a stack; taking down goes from its top. Nothing is removed below a mount
//! point that is still in use: files of something that is mounted there would go.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::shell::Shell;
use crate::cli::system;
use crate::error::{Error, Result};
use crate::io::runtime::Runtime;
use crate::io::{loopdev, mountpoint, sys};
use crate::set::Code;

/// Name of the unit.
pub(super) const UNIT: &str = "dsa1";
/// The configuration, in the directory of the run.
pub(super) const CONFIG: &str = "dsa1.toml";
/// Where the unit is mounted, there.
pub(super) const MOUNT: &str = "mnt";
/// Where the file system on the unit is mounted, there.
pub(super) const FILES: &str = "files";
/// Where the file system on a single image is mounted for reading, there.
pub(super) const LOOK: &str = "look";
/// Names of the members.
pub(super) const MEMBERS: [&str; 3] = ["m1", "m2", "m3"];

/// How long somebody who only looks at a device or a mount may keep it.
const BUSY_MAX: Duration = Duration::from_secs(10);
/// How long a server that was asked to end may write.
const END_MAX: Duration = Duration::from_secs(60);
/// How often a busy thing is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// One thing to undo.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Undo {
    /// The directory with everything in it.
    Directory,
    /// The unit is mounted.
    Unit,
    /// A loop device is set up.
    Loop(PathBuf),
    /// A file system is mounted.
    Mount(PathBuf),
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory => f.write_str("its directory"),
            Self::Unit => write!(f, "the unit {UNIT}"),
            Self::Loop(device) => write!(f, "{}", device.display()),
            Self::Mount(dir) => write!(f, "the mount on {}", dir.display()),
        }
    }
}

/// The directory of one run.
#[derive(Debug)]
pub(super) struct Site {
    /// Everything is below it.
    pub(super) dir: PathBuf,
    /// What is to be undone, oldest first.
    pub(super) undo: Vec<Undo>,
}

impl Site {
    /// Makes the directory, which nobody else may enter.
    pub(super) fn new(parent: &Path) -> Result<Self> {
        let parent = fs::canonicalize(parent)
            .map_err(|e| Error::io(format!("demo: cannot use {}", parent.display()), e))?;
        let dir = make_dir(&parent)?;
        let site = Self {
            dir,
            undo: Vec::new(),
        };
        for sub in [site.mount(), site.files(), site.look()] {
            fs::create_dir(&sub)
                .map_err(|e| Error::io(format!("demo: cannot make {}", sub.display()), e))?;
        }
        Ok(site)
    }

    /// The runtime directory of the run.
    pub(super) fn runtime(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The image of a member.
    pub(super) fn image(&self, member: &str) -> PathBuf {
        self.dir.join(image_name(member))
    }

    /// Where the unit is mounted.
    pub(super) fn mount(&self) -> PathBuf {
        self.dir.join(MOUNT)
    }

    /// The virtual unit.
    pub(super) fn unit(&self) -> PathBuf {
        self.mount().join(UNIT)
    }

    /// Where the file system on the unit is mounted.
    pub(super) fn files(&self) -> PathBuf {
        self.dir.join(FILES)
    }

    /// Where the file system on a single image is mounted for reading.
    pub(super) fn look(&self) -> PathBuf {
        self.dir.join(LOOK)
    }

    /// Undoes one thing in its turn.
    pub(super) fn undo(&mut self, undo: &Undo, shell: &Shell) -> Result<()> {
        self.take_down(undo, shell)?;
        self.undo.retain(|other| other != undo);
        Ok(())
    }

    /// Undoes one thing, by force where asking does not help.
    pub(super) fn take_down(&self, undo: &Undo, shell: &Shell) -> Result<()> {
        match undo {
            Undo::Directory => self.remove(),
            Undo::Unit => self.stop(shell),
            Undo::Loop(device) => patiently(|| loopdev::detach(device)),
            Undo::Mount(dir) => {
                let asked = patiently(|| mountpoint::unmount(dir, false));
                asked.or_else(|error| match error.code() {
                    Code::InUse => mountpoint::unmount(dir, true),
                    _ => Err(error),
                })
            }
        }
    }

    fn remove(&self) -> Result<()> {
        for dir in [self.mount(), self.files(), self.look()] {
            let mounted = mountpoint::mounted(&dir)
                .map_err(|e| Error::io(format!("cannot examine {}", dir.display()), e))?;
            if mounted.is_some() {
                let says = format!("something is mounted on {}", dir.display());
                return Err(Error::new(Code::InUse, says));
            }
        }
        let failed = |e| Error::io(format!("cannot remove {}", self.dir.display()), e);
        fs::remove_dir_all(&self.dir).map_err(failed)
    }

    /// Asks the unit to end; a server that does not is killed, and its mount taken away.
    fn stop(&self, shell: &Shell) -> Result<()> {
        let asked = shell.quietly(&["stop".as_ref(), UNIT.as_ref()]);
        let Err(refused) = asked else { return Ok(()) };
        let runtime = Runtime::at(self.runtime());
        let Some(entry) = runtime.find(UNIT)?.filter(|entry| entry.alive) else {
            return self.unmount_stale();
        };
        mountpoint::unmount(&self.mount(), true).or_else(|e| {
            if e.code() == Code::NotMounted {
                Ok(())
            } else {
                Err(e)
            }
        })?;
        let Some(pid) = entry.pid else {
            return Err(refused);
        };
        let failed = |e| Error::io(format!("process {pid} cannot be ended"), e);
        let Some(server) = system::process(pid).map_err(failed)? else {
            return Ok(());
        };
        if !system::wait_for_end(&server, END_MAX).map_err(failed)? {
            sys::kill(pid, libc::SIGKILL).map_err(failed)?;
            system::wait_for_end(&server, END_MAX).map_err(failed)?;
        }
        Ok(())
    }

    fn unmount_stale(&self) -> Result<()> {
        match mountpoint::unmount(&self.mount(), true) {
            Err(error) if error.code() != Code::NotMounted => Err(error),
            _ => Ok(()),
        }
    }
}

/// The name of a member's image.
pub(super) fn image_name(member: &str) -> String {
    format!("{member}.img")
}

fn make_dir(parent: &Path) -> Result<PathBuf> {
    let own = std::process::id();
    for number in 0..100 {
        let dir = parent.join(format!("shadowset-demo-{own}.{number}"));
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => {
                let says = format!("demo: cannot make a directory in {}", parent.display());
                return Err(Error::io(says, e));
            }
        }
    }
    let says = format!("demo: {} is full of earlier runs", parent.display());
    Err(Error::new(Code::Io, says).with_hint("remove shadowset-demo-* there"))
}

/// Tries again as long as somebody uses the thing, for a while.
fn patiently(mut act: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + BUSY_MAX;
    loop {
        match act() {
            Err(error) if error.code() == Code::InUse && Instant::now() < end => {
                system::pause(RETRY).map_err(|e| Error::io("cannot wait", e))?;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_has_a_directory_of_its_own_and_removes_it() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let (one, two) = (
            Site::new(parent.path()).expect("made"),
            Site::new(parent.path()).expect("made"),
        );
        assert_ne!(one.dir, two.dir);
        fs::write(one.image("m1"), b"data").expect("written");
        one.remove().expect("removed");
        assert!(!one.dir.exists() && two.dir.exists());
    }

    #[test]
    fn a_busy_thing_is_tried_again_and_other_errors_are_not() {
        let mut tries = 0;
        patiently(|| {
            tries += 1;
            match tries {
                1..3 => Err(Error::new(Code::InUse, "busy")),
                _ => Ok(()),
            }
        })
        .expect("free at last");
        assert_eq!(tries, 3);
        let mut tries = 0;
        let error = patiently(|| {
            tries += 1;
            Err(Error::new(Code::NotMounted, "not there"))
        });
        assert_eq!(
            (error.map_err(|e| e.code()), tries),
            (Err(Code::NotMounted), 1)
        );
    }
}
