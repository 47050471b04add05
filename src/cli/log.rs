//! The log of a server: a file that was named, else the journal of systemd, else a file of its own.
//!
//! A server in the background must leave a trace of the members that it expels, also when nobody
//! has asked for a log. A log that cannot be written never keeps a unit from being served.

mod queue;

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use self::queue::Queue;
use super::{output, place, system};
use crate::error::{Error, Result};
use crate::io::sys::Signals;
use crate::set::Code;

/// Where the journal takes the standard error of a program as a stream.
const JOURNAL: &str = "/run/systemd/journal/stdout";
/// Priority of the lines in the journal, as of syslog(3): information.
const PRIORITY: u8 = 6;
/// How long the end of the program waits for the last lines to be written.
const PATIENCE: Duration = Duration::from_secs(2);

/// A hint that stands for the place of a server's log, until that is known.
pub(super) const SAYS_WHY: &str = "the log of the server says why";

/// Where the log of a running server is, as a hint: its standard error, when that is a file.
pub(super) fn of_running(unit: &str) -> String {
    let entry = system::runtime().and_then(|runtime| runtime.find(unit));
    let pid = entry.ok().flatten().and_then(|entry| entry.pid);
    let path = pid.and_then(|pid| fs::read_link(format!("/proc/{pid}/fd/2")).ok());
    let file = path.filter(|path| path.is_file());
    hint(unit, file.as_deref())
}

/// Opens a log to append to it.
pub(super) fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|cause| Error::io(format!("cannot open the log {}", path.display()), cause))
}

/// The standard error of a server for which no log was named.
pub(super) fn standard_error(unit: &str) -> Stdio {
    if let Ok(journal) = journal(Path::new(JOURNAL), &name(unit)) {
        return Stdio::from(OwnedFd::from(journal));
    }
    let path = own_file(unit);
    // The directory of an ordinary user may not be there yet; if it cannot be made, the open tells.
    let _ = path.parent().map(fs::create_dir_all);
    match open(&path) {
        Ok(file) => file.into(),
        Err(error) => {
            output::warn(&format!("{unit} is without a log: {error}"));
            Stdio::null()
        }
    }
}

/// Where to look when a server has failed; `named` is the log that was asked for.
pub(super) fn hint(unit: &str, named: Option<&Path>) -> String {
    match named {
        Some(path) => format!("{} may say why", path.display()),
        None if Path::new(JOURNAL).exists() => {
            format!("`journalctl -t {}` may say why", name(unit))
        }
        None => format!("{} may say why", own_file(unit).display()),
    }
}

/// Name of the log of a unit, in the journal and as a file.
fn name(unit: &str) -> String {
    format!("shadowset-{unit}")
}

fn own_file(unit: &str) -> PathBuf {
    if system::is_root() {
        return Path::new("/var/log").join(format!("{}.log", name(unit)));
    }
    place::state_dir(unit).with_file_name(format!("{unit}.log"))
}

/// A stream whose lines become entries of the journal.
fn journal(socket: &Path, identifier: &str) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.shutdown(Shutdown::Read)?;
    // Identifier, unit of systemd (the journal finds it), priority, no priorities in the lines, and
    // nothing passed on to syslog, the kernel's log or the console.
    write!(stream, "{identifier}\n\n{PRIORITY}\n0\n0\n0\n0\n")?;
    Ok(stream)
}

/// The log of this process.
#[derive(Debug)]
struct Log {
    queue: Queue,
    on_standard_error: bool,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Starts the log of this process: to a file, else to standard error. What is logged:
/// `$SHADOWSET_LOG`.
pub(super) fn start(path: Option<&Path>) -> Result<()> {
    let failed = |cause| Error::io("cannot start the log", cause);
    let filter =
        EnvFilter::try_from_env("SHADOWSET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let file = match path {
        Some(path) => open(path)?,
        // A descriptor of its own: who writes to this one holds no lock that others need.
        None => File::from(io::stderr().as_fd().try_clone_to_owned().map_err(failed)?),
    };
    let queue = queue_to(file).map_err(failed)?;
    let writer = queue.clone();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        // What cannot be logged is lost: told on standard error it would end the thread that logs.
        .log_internal_errors(false)
        .with_ansi(path.is_none() && io::stderr().is_terminal())
        .with_writer(move || writer.clone())
        .try_init()
        .map_err(|cause| Error::new(Code::Io, "cannot start the log").caused_by(cause))?;
    write_before_a_panic(queue.clone());
    LOG.get_or_init(|| Log {
        queue,
        on_standard_error: path.is_none(),
    });
    Ok(())
}

/// A queue whose thread gets no signals: those are for the thread that collects them later.
fn queue_to(file: File) -> io::Result<Queue> {
    let signals = Signals::collect()?;
    let queue = Queue::start(file);
    signals.release()?;
    queue
}

/// A panic ends the program: what was logged before it is written before its message. A log that takes nothing would
/// not take that either.
fn write_before_a_panic(queue: Queue) {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if queue.settle(PATIENCE) {
            tell(panic);
        }
    }));
}

/// Where errors are shown: on standard error; behind the lines of the log when that is there.
pub(super) fn errors() -> Box<dyn Write> {
    match LOG.get().filter(|log| log.on_standard_error) {
        Some(log) => Box::new(log.queue.clone()),
        None => Box::new(io::stderr()),
    }
}

/// Has the last lines written; a log that takes nothing holds up the end for a moment only.
pub(super) fn finish() {
    let _ = LOG.get().map(|log| log.queue.settle(PATIENCE));
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_journal_is_told_who_writes_and_then_gets_the_lines() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = dir.path().join("stdout");
        journal(&socket, "shadowset-dsa1").expect_err("there is no journal");
        let listener = UnixListener::bind(&socket).expect("socket");
        let mut stream = journal(&socket, "shadowset-dsa1").expect("it listens");
        stream.write_all(b"m2 is expelled\n").expect("written");
        drop(stream);
        let (mut accepted, _) = listener.accept().expect("connected");
        let mut text = String::new();
        accepted.read_to_string(&mut text).expect("UTF-8");
        assert_eq!(text, "shadowset-dsa1\n\n6\n0\n0\n0\n0\nm2 is expelled\n");
    }

    #[test]
    fn a_log_is_appended_to_and_named_in_the_hint() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("log");
        for line in ["one\n", "two\n"] {
            let mut file = open(&path).expect("opened");
            file.write_all(line.as_bytes()).expect("written");
        }
        assert_eq!(fs::read_to_string(&path).expect("file"), "one\ntwo\n");
        let expected = format!("{} may say why", path.display());
        assert_eq!(hint("dsa1", Some(&path)), expected);
        assert!(hint("dsa1", None).contains("dsa1"));
    }
}
