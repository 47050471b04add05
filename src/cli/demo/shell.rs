//! Runs programs for the demonstration: the verbs of this one, and the tools of the file system.
//!
//! A signal that asks for the end is noticed here, between steps and while a program runs; programs
//! do not see it, because the mask of this process is theirs too. A verb that starts or ends a server
//! is always waited for: half of it would be left behind.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::site::Site;
use crate::error::{Error, Result};
use crate::io::sys::{self, POLL_IN, Signals};
use crate::set::Code;

/// No program of the demonstration may take longer.
const PROGRAM_MAX: Duration = Duration::from_secs(120);
/// Verbs that a signal does not cut short.
const WHOLE: [&str; 3] = ["mount", "stop", "loop"];

/// Where programs run, and what ends them.
#[derive(Debug)]
pub(super) struct Shell {
    own: PathBuf,
    dir: PathBuf,
    runtime: PathBuf,
    signals: Signals,
}

impl Shell {
    /// Collects the signals that ask for the end; call it before any thread is there.
    pub(super) fn new() -> Result<Self> {
        let own = std::env::current_exe()
            .map_err(|e| Error::io("demo: cannot find the own program", e))?;
        let signals =
            Signals::collect().map_err(|e| Error::io("demo: cannot collect signals", e))?;
        Ok(Self {
            own,
            dir: PathBuf::new(),
            runtime: PathBuf::new(),
            signals,
        })
    }

    /// The same, for programs that work at this site.
    pub(super) fn at(self, site: &Site) -> Self {
        Self {
            dir: site.dir.clone(),
            runtime: site.runtime(),
            ..self
        }
    }

    /// An error when a signal has asked for the end.
    pub(super) fn check(&self) -> Result<()> {
        let pending = sys::poll(&[(self.signals.as_fd(), POLL_IN)], Some(Duration::ZERO));
        match pending.map_err(|e| Error::io("demo: cannot look for signals", e))? {
            events if events.first() == Some(&0) => Ok(()),
            _ => Err(self.interrupted()),
        }
    }

    fn interrupted(&self) -> Error {
        let name = match self.signals.next() {
            Ok(libc::SIGINT) => "SIGINT",
            Ok(libc::SIGTERM) => "SIGTERM",
            Ok(libc::SIGHUP) => "SIGHUP",
            _ => "a signal",
        };
        Error::new(Code::Io, format!("demo: interrupted by {name}"))
            .with_hint("what was set up has been taken down, unless another line says otherwise")
    }

    /// Runs a verb of this program; its answer in JSON.
    pub(super) fn verb(&self, words: &[&OsStr]) -> Result<Value> {
        self.check()?;
        let whole = words.first().is_some_and(|w| WHOLE.iter().any(|v| w == v));
        self.run_verb(words, !whole)
    }

    /// Runs a verb to its end, whatever signals say.
    pub(super) fn quietly(&self, words: &[&OsStr]) -> Result<Value> {
        self.run_verb(words, false)
    }

    fn run_verb(&self, words: &[&OsStr], hasty: bool) -> Result<Value> {
        let mut command = Command::new(&self.own);
        command
            .args(words)
            .arg("--json")
            .env("SHADOWSET_RUNTIME_DIR", &self.runtime);
        let (status, stdout) = self.run(command, hasty)?;
        let value: Value = stdout
            .lines()
            .last()
            .and_then(|line| serde_json::from_str(line).ok())
            .unwrap_or_default();
        if status.success() && value["ok"] != false {
            return Ok(value);
        }
        let code = value["code"].as_str().and_then(Code::from_name);
        let verb = words
            .first()
            .map_or_else(String::new, |w| w.to_string_lossy().into());
        let says = match value["sentence"].as_str() {
            Some(says) => format!("demo: {says}"),
            None => format!("demo: {verb} has ended with {status}"),
        };
        let error = Error::new(code.unwrap_or(Code::Io), says);
        Err(match value["hint"].as_str() {
            Some(hint) => error.with_hint(hint),
            None => error,
        })
    }

    /// Runs a program that must end well; what it wrote.
    pub(super) fn tool(&self, program: &Path, words: &[&OsStr]) -> Result<String> {
        self.check()?;
        let mut command = Command::new(program);
        command.args(words);
        let (status, text) = self.run(command, true)?;
        if status.success() {
            return Ok(text);
        }
        let says = format!(
            "demo: {} has ended with {status}: {}",
            program.display(),
            text.trim().replace('\n', "; ")
        );
        Err(Error::new(Code::Io, says)
            .with_hint("try the command by hand; --keep leaves the images"))
    }

    fn run(&self, mut command: Command, hasty: bool) -> Result<(ExitStatus, String)> {
        let name = command.get_program().to_string_lossy().into_owned();
        let failed = |cause| Error::io(format!("demo: cannot run {name}"), cause);
        // A file takes any amount of text; a pipe that nobody empties would stop the program.
        let path = self.dir.join("answer");
        let answer = File::create(&path).map_err(failed)?;
        let errors = answer.try_clone().map_err(failed)?;
        command
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(answer)
            .stderr(errors);
        let mut child = command.spawn().map_err(failed)?;
        let status = self.wait(&mut child, hasty)?;
        let text = fs::read(&path).map_err(failed)?;
        Ok((status, String::from_utf8_lossy(&text).into_owned()))
    }

    fn wait(&self, child: &mut Child, hasty: bool) -> Result<ExitStatus> {
        let failed = |cause| Error::io("demo: cannot wait for a program", cause);
        let process = sys::pidfd_open(child.id()).map_err(failed)?;
        let end = Instant::now() + PROGRAM_MAX;
        let mut watched = vec![(process.as_fd(), POLL_IN)];
        if hasty {
            watched.push((self.signals.as_fd(), POLL_IN));
        }
        let left = end.saturating_duration_since(Instant::now());
        let events = sys::poll(&watched, Some(left)).map_err(failed)?;
        if events.first().is_some_and(|e| *e != 0) {
            return child.wait().map_err(failed);
        }
        child.kill().map_err(failed)?;
        child.wait().map_err(failed)?;
        if events.get(1).is_some_and(|e| *e != 0) {
            return Err(self.interrupted());
        }
        let says = format!("demo: a program has not ended in {PROGRAM_MAX:?}");
        Err(Error::new(Code::TimedOut, says).with_hint("the disk may be too slow: try --size 64M"))
    }
}

/// A program on the search path or where tools of the system are.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A command as it is typed.
pub(super) fn typed(program: &str, words: &[&OsStr]) -> String {
    let mut text = program.to_owned();
    for word in words {
        let word: OsString = (*word).to_owned();
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+".contains(c);
        text.push(' ');
        if !word.is_empty() && word.chars().all(plain) {
            text.push_str(&word);
        } else {
            text.push_str(&format!("'{}'", word.replace('\'', "'\\''")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own: the mask of signals stays with it.
    fn in_a_shell(act: impl FnOnce(&Shell) + Send + 'static) {
        let thread = std::thread::spawn(|| {
            let dir = tempfile::tempdir().expect("temporary directory");
            let mut shell = Shell::new().expect("a shell");
            shell.dir = dir.path().to_owned();
            act(&shell);
        });
        thread.join().expect("the assertions hold");
    }

    #[test]
    fn a_program_is_run_and_its_failure_is_told() {
        in_a_shell(|shell| {
            let sh = find("sh").expect("a shell is everywhere");
            let run = |text: &str| shell.tool(&sh, &["-c".as_ref(), text.as_ref()]);
            assert_eq!(
                run("echo one; echo two >&2").expect("ends well"),
                "one\ntwo\n"
            );
            let error = run("echo no luck; exit 3").expect_err("ends badly");
            assert!(
                error.to_string().contains("exit status: 3: no luck"),
                "{error}"
            );
            let long = run("i=0; while [ $i -lt 30000 ]; do echo 12345; i=$((i+1)); done");
            assert_eq!(long.expect("more than a pipe holds").len(), 180_000);
        });
    }

    #[test]
    fn a_command_is_shown_as_it_is_typed() {
        let words = ["detach", "dsa1", "it's", ""].map(OsStr::new);
        assert_eq!(
            typed("shadowset", &words),
            "shadowset detach dsa1 'it'\\''s' ''"
        );
    }
}
