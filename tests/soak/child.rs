//! Processes of loads, each in a group of its own, so that nothing of them is left.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bed::needs::search_path;

/// Longest life of a process; one that hangs would hang its test too.
const SECONDS: &str = "150";

/// A program that is at the head of its group.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", SECONDS, program]);
    command.env("PATH", search_path()).env("LC_ALL", "C");
    command.stdin(Stdio::null()).process_group(0);
    command
}

/// A program that runs as somebody without rights.
pub(crate) fn unprivileged(program: &str) -> Command {
    let mut command = command("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
    command.arg(program);
    command
}

/// Gives a directory to whom `unprivileged` runs as.
pub(crate) fn give_away(dir: &Path) -> Result<(), String> {
    run(command("chown").arg("nobody:nogroup").arg(dir)).map(drop)
}

/// Runs a program that has to succeed; what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    Group::default().run(command)
}

/// What a program printed, when it has succeeded.
pub(crate) fn good(command: &Command, output: &Output) -> Result<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    match output.status.success() {
        true => Ok(out),
        false => Err(format!("{command:?}: {}: {out}{err}", output.status)),
    }
}

/// What runs for one load; nothing new once it is closed.
pub(crate) struct Group(Mutex<Option<Vec<u32>>>);

impl Default for Group {
    fn default() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }
}

impl Group {
    fn leaders(&self) -> MutexGuard<'_, Option<Vec<u32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(&self) {
        *self.leaders() = Some(Vec::new());
    }

    /// Kills what runs.
    pub(crate) fn close(&self) {
        for leader in self.leaders().take().unwrap_or_default() {
            kill_group(leader);
        }
    }

    /// Starts a program. Under the lock, or a close in between would miss it.
    pub(crate) fn spawn(&self, command: &mut Command) -> Result<Child, String> {
        let mut leaders = self.leaders();
        let leaders = leaders.as_mut().ok_or("the load has been closed")?;
        let child = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
        leaders.push(child.id());
        Ok(child)
    }

    /// Waits for the end of a program that was started here.
    pub(crate) fn ended(&self, command: &Command, child: Child) -> Result<String, String> {
        let id = child.id();
        let output = child.wait_with_output();
        if let Some(leaders) = self.leaders().as_mut() {
            leaders.retain(|leader| *leader != id);
        }
        good(command, &output.map_err(|e| e.to_string())?)
    }

    /// Runs a program that has to succeed; what it printed.
    pub(crate) fn run(&self, command: &mut Command) -> Result<String, String> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.spawn(command)?;
        self.ended(command, child)
    }
}

/// Kills a group whose leader was not waited for, and waits for that.
pub(crate) fn kill(leader: &mut Child) {
    if leader.try_wait().is_ok_and(|ended| ended.is_none()) {
        kill_group(leader.id());
        let _ = leader.wait();
    }
}

/// Kills a group and all that come from it: the children of a server have sessions of their own, and one that
/// waits for a lock does not see that its parent has gone.
fn kill_group(leader: u32) {
    let group = format!("-{leader}");
    // Nobody is born while they are counted.
    signal("-STOP", std::slice::from_ref(&group));
    let mut all = vec![group];
    children(leader, &mut all);
    signal("-KILL", &all);
}

fn children(parent: u32, all: &mut Vec<String>) {
    let list = format!("/proc/{parent}/task/{parent}/children");
    let list = std::fs::read_to_string(list).unwrap_or_default();
    for child in list.split_whitespace() {
        all.push(child.to_owned());
        children(child.parse().unwrap_or_default(), all);
    }
}

fn signal(name: &str, to: &[String]) {
    let mut kill = Command::new("kill");
    kill.arg(name).arg("--").args(to);
    // They may have ended meanwhile.
    let _ = kill.stderr(Stdio::null()).status();
}
