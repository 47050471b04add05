//! Shell and Python on a unit, with names for its places and a limit on the time.
//!
//! `$M` mount point, `$U` the unit's file, `$S` `.shadow`, `$C` its control file, `$I` the directory
//! of images, `$D` the directory of everything.

use std::process::{Command, Stdio};

use super::Unit;
use super::needs;

/// Seconds that one script may run.
const SECONDS: &str = "90";

/// Helpers that every Python script has.
const PYTHON: &str = "
import errno, json, mmap, os, select, sys, time
D = os.environ['D']; M = os.environ['M']; U = os.environ['U']; S = os.environ['S']
C = os.environ['C']; I = os.environ['I']
def fails(name, call, *args):
    try:
        call(*args)
    except OSError as e:
        assert errno.errorcode[e.errno] == name, (name, e)
    else:
        raise AssertionError('%s: no error' % name)
def image(n):
    with open('%s/m%d.img' % (I, n), 'rb') as f: return f.read()
";

/// What a script came to.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Its exit code; 137 when it was killed.
    pub(crate) code: i32,
    /// Its standard output.
    pub(crate) out: String,
    /// Its standard error.
    pub(crate) err: String,
}

impl Unit {
    /// A bash script that has to succeed; its standard output without the last line end.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.good(
            script,
            self.run(&["bash", "-eu", "-o", "pipefail", "-c", script]),
        )
    }

    /// A bash script that may fail.
    pub(crate) fn try_sh(&self, script: &str) -> Ran {
        self.run(&["bash", "-u", "-c", script])
    }

    /// A script for another shell, which has to succeed.
    pub(crate) fn with_shell(&self, shell: &str, script: &str) -> String {
        self.good(script, self.run(&[shell, "-eu", "-c", script]))
    }

    /// A Python script that has to succeed.
    pub(crate) fn python(&self, script: &str) -> String {
        let whole = format!("{PYTHON}{script}");
        self.good(script, self.run(&["python3", "-c", &whole]))
    }

    fn good(&self, script: &str, ran: Ran) -> String {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(8).collect();
        assert_eq!(
            ran.code, 0,
            "{script}\n{}{}\nlog: {last:#?}",
            ran.out, ran.err
        );
        ran.out.trim_end_matches('\n').to_owned()
    }

    fn run(&self, words: &[&str]) -> Ran {
        let output = self
            .prepared("timeout")
            .args(["-k", "5", SECONDS])
            .args(words)
            .output();
        let output = output.expect("timeout starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran {
            code: output.status.code().unwrap_or(137),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    /// A command with the names of the unit's places in its environment.
    pub(crate) fn prepared(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let places = [
            ("D", ""),
            ("M", "mnt"),
            ("U", "mnt/dsa1"),
            ("S", "mnt/.shadow"),
            ("C", "mnt/.shadow/control"),
            ("I", "images"),
            ("SHADOWSET_CONFIG_DIR", "conf"),
            ("SHADOWSET_RUNTIME_DIR", "run"),
        ];
        for (name, place) in places {
            let place = self.path(place).display().to_string();
            command.env(name, place.trim_end_matches('/'));
        }
        command.env("PATH", needs::search_path()).env("LC_ALL", "C");
        command.stdin(Stdio::null()).current_dir(self.path(""));
        command
    }
}
