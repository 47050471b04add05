//! The command of a backup, and the signals that are meant for it.

use std::io;
use std::os::fd::AsFd;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use super::super::freeze::{exit_code, to_errors};
use super::super::system;
use crate::error::{Error, Result};
use crate::io::sys;

/// Signals to this process, collected instead of ending it.
#[derive(Debug)]
pub(super) struct Signals(sys::Signals);

/// How the command has ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// It was not run: a signal came before.
    Before(i32),
    /// It could not be run.
    NotRun(io::Error),
    /// It has run.
    Ran(ExitStatus),
}

impl Ended {
    /// As a shell tells it.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Before(signal) => exit_of_signal(*signal),
            Self::NotRun(cause) if cause.kind() == io::ErrorKind::NotFound => 127,
            Self::NotRun(_) => 126,
            Self::Ran(status) => exit_code(*status),
        }
    }

    /// What has gone wrong, as words behind the command's name.
    pub(super) fn failure(&self) -> Option<String> {
        match self {
            Self::Before(signal) => Some(format!("was not run: signal {signal} came before")),
            Self::NotRun(cause) => Some(format!("cannot be run: {cause}")),
            Self::Ran(status) if status.success() => None,
            Self::Ran(status) => Some(format!("has failed: {status}")),
        }
    }
}

/// The exit code of who was ended by a signal.
fn exit_of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(1)
}

impl Signals {
    /// Collects signals from now on.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn collect() -> Result<Self> {
        let signals = sys::Signals::collect();
        signals.map(Self).map_err(failed)
    }

    /// A signal that has come.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn pending(&self) -> Result<Option<i32>> {
        let readable = system::is_readable(self.0.as_fd(), Duration::ZERO).map_err(failed)?;
        match readable {
            true => self.0.next().map(Some).map_err(failed),
            false => Ok(None),
        }
    }

    /// Lets signals end the process again.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn release(self) -> Result<()> {
        self.0.release().map_err(failed)
    }
}

fn failed(cause: io::Error) -> Error {
    Error::io("signals cannot be collected", cause)
}

/// Runs the command until its end and hands signals on to it. A terminal sends its own to both.
pub(super) fn run(mut command: Command, json: bool, signals: &Signals) -> Ended {
    system::default_signals(&mut command);
    let mut ran = || {
        if json {
            to_errors(&mut command)?;
        }
        let mut child = command.spawn()?;
        if let Some(process) = system::process(child.id())? {
            while let Some((signal, is_sent)) = signals.0.next_before(process.as_fd())? {
                if is_sent {
                    // It may have ended just now.
                    let _ = sys::kill(child.id(), signal);
                }
            }
        }
        child.wait()
    };
    ran().map_or_else(Ended::NotRun, Ended::Ran)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_ends_as_a_shell_would_tell_it() {
        let ran = |text: &str| {
            let status = Command::new("sh").args(["-c", text]).status();
            Ended::Ran(status.expect("a shell"))
        };
        assert_eq!(ran("exit 0").exit_code(), 0);
        assert_eq!(ran("exit 0").failure(), None);
        assert_eq!(ran("exit 3").exit_code(), 3);
        assert_eq!(ran("kill -9 $$").exit_code(), 137);
        let missing = Command::new("/no/such/program")
            .status()
            .expect_err("missing");
        assert_eq!(Ended::NotRun(missing).exit_code(), 127);
        let before = Ended::Before(15);
        assert_eq!(before.exit_code(), 143);
        assert!(before.failure().is_some_and(|how| how.contains("not run")));
    }
}
