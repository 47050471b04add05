//! Shell commands of the operator that bring applications to rest, with a limit on their time.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::system;

/// Runs a shell command until its end, or kills it and its children when the time is over.
///
/// # Errors
/// What is the matter, as words that go behind the command's name.
pub(super) fn run(text: &str, env: &[(String, String)], limit: Duration) -> Result<(), String> {
    let end = Instant::now() + limit;
    let child = start(text, env).map_err(|cause| format!("cannot be started: {cause}"))?;
    wait(child, end).map_err(|cause| format!("is lost: {cause}"))?
}

fn start(text: &str, env: &[(String, String)]) -> io::Result<Child> {
    let mut command = Command::new("sh");
    command.args(["-c", text]).envs(env.iter().cloned());
    // What it prints is for the operator, and standard output is not.
    let errors = io::stderr().as_fd().try_clone_to_owned()?;
    command.stdin(Stdio::null()).stdout(errors);
    command.process_group(0);
    system::default_signals(&mut command);
    command.spawn()
}

fn wait(mut child: Child, end: Instant) -> io::Result<Result<(), String>> {
    if let Some(process) = system::process(child.id())? {
        let left = end.saturating_duration_since(Instant::now());
        if !system::wait_for_end(&process, left)? {
            system::kill_group(child.id())?;
            child.wait()?;
            return Ok(Err("has not ended in time and was killed".to_owned()));
        }
    }
    let status = child.wait()?;
    Ok(match status.success() {
        true => Ok(()),
        false => Err(format!("has failed: {status}")),
    })
}

/// Writes one line at once.
pub(super) fn line(to: &mut impl Write, text: &str) -> io::Result<()> {
    to.write_all(format!("{text}\n").as_bytes())?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_its_environment_and_its_time() {
        let env = [("UNIT".to_owned(), "dsa1".to_owned())];
        let long = Duration::from_secs(60);
        assert_eq!(run("test $UNIT = dsa1", &env, long), Ok(()));
        let failed = run("exit 3", &env, long).expect_err("it fails");
        assert!(failed.contains("exit status: 3"), "{failed}");
        let since = Instant::now();
        // The shell has a child that would live on.
        let late = run("sleep 50; true", &env, Duration::from_millis(50));
        assert_eq!(late, Err("has not ended in time and was killed".into()));
        assert!(since.elapsed() < Duration::from_secs(20));
    }
}
