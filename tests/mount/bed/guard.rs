//! Takes away what a test has set up, also when it fails, and nothing else.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{PATIENCE, needs, pause};

/// Usual longest life of a daemon; one that hangs would hang its test too.
pub(super) const LIFE: Duration = Duration::from_secs(170);

/// Something that has to be taken away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Thing {
    /// A mounted file system.
    Mount(PathBuf),
    /// A loop device.
    Loop(String),
}

/// What is set up now, in the order in which it was.
#[derive(Default)]
pub(super) struct Guard {
    mountpoint: Option<PathBuf>,
    daemon: Option<u32>,
    things: Vec<Thing>,
    images: Option<PathBuf>,
}

impl Guard {
    pub(super) fn daemon(&mut self, mountpoint: &Path, pid: u32) {
        self.mountpoint = Some(mountpoint.to_owned());
        self.daemon = Some(pid);
    }

    /// Where images may be immutable in the end.
    pub(super) fn images(&mut self, dir: &Path) {
        self.images = Some(dir.to_owned());
    }

    pub(super) fn daemon_gone(&mut self) {
        self.daemon = None;
    }

    pub(super) fn keep(&mut self, thing: Thing) {
        self.things.push(thing);
    }

    /// Takes one thing away; it has to work.
    pub(super) fn take_away(&mut self, thing: &Thing) {
        let (script, file) = match thing {
            Thing::Mount(dir) => (format!("umount {}", dir.display()), None),
            Thing::Loop(device) => (format!("losetup -d {device}"), backing_file(device)),
        };
        let (good, says) = run(&script);
        assert!(good, "{script}: {says}");
        if let (Thing::Loop(device), Some(file)) = (thing, file) {
            let_go(device, &file);
        }
        self.forget(thing);
    }

    /// Something was taken away by the test itself.
    pub(super) fn forget(&mut self, thing: &Thing) {
        self.things.retain(|kept| kept != thing);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        while let Some(thing) = self.things.pop() {
            run(&match thing {
                Thing::Mount(dir) => {
                    let dir = dir.display();
                    format!("fsfreeze -u {dir}; umount {dir} || umount -l {dir}")
                }
                Thing::Loop(device) => format!("losetup -d {device}"),
            });
        }
        // A daemon that was killed leaves its mount.
        if let Some(dir) = self.mountpoint.take() {
            let dir = dir.display();
            run(&format!(
                "! grep -q ' {dir} ' /proc/mounts || umount {dir} || umount -l {dir}"
            ));
        }
        if let Some(pid) = self.daemon.take() {
            run(&format!(
                "timeout 10 tail --pid={pid} -f /dev/null || kill -9 {pid}"
            ));
        }
        // Now that nobody makes them so any more.
        if let Some(dir) = self.images.take() {
            run(&format!("chattr -R -f -i {}", dir.display()));
        }
    }
}

/// The file behind a loop device.
fn backing_file(device: &str) -> Option<String> {
    let name = device.trim_start_matches("/dev/");
    std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()
}

/// Waits until a loop device that was detached has let go of its file, which it does when nobody has it open. Other tests
/// open all loop devices for a moment, to look for a free one or a file system.
fn let_go(device: &str, file: &str) {
    let end = Instant::now() + PATIENCE;
    while backing_file(device).as_deref() == Some(file) && Instant::now() < end {
        pause(Duration::from_millis(5));
    }
}

fn run(script: &str) -> (bool, String) {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "30", "sh", "-c", script]);
    command
        .env("PATH", needs::search_path())
        .stdin(Stdio::null());
    match command.output() {
        Ok(output) => {
            let says = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.success(), says)
        }
        Err(cause) => (false, cause.to_string()),
    }
}

/// Kills a daemon that lives too long: who waits for it gets an error instead of waiting for ever.
pub(super) struct Watchdog {
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(super) fn over(pid: u32, life: Duration) -> Self {
        let (alive, end) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            if end.recv_timeout(life) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the daemon {pid} has lived too long and is killed");
                run(&format!("kill -9 {pid}"));
            }
        });
        Self {
            alive: Some(alive),
            thread: Some(thread),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
