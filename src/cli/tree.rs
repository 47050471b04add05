//! Client of a mounted `.shadow` tree: reads its files, writes commands, waits for changes.
//!
//! Every verb that looks at or changes a running unit goes through here; none has another way in. Where the mount
//! cannot be reached, since it was taken away lazily or another one lies over it, the control socket is asked.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::line::{self, Line};
use super::model::Status;
use super::system::{self, Change, Running};
use super::{hints, log};
use crate::error::{Error, Result};
use crate::set::Code;

/// How long a server may take to say how its unit is, where it must not hold up what others say.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer that is read from `control`.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The control tree of one mounted unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Tree {
    mountpoint: PathBuf,
    /// The unit that has to be there; none when whatever is mounted there is meant.
    unit: Option<String>,
}

/// What a command answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    /// What has happened, or would happen.
    pub(super) sentence: String,
    /// Further facts, in the order of the server.
    pub(super) values: Vec<(String, String)>,
}

impl Answer {
    /// A fact.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        let value = self.values.iter().find(|(k, _)| k == key);
        value.map(|(_, value)| value.as_str())
    }

    /// A fact that is a number.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.text(key).and_then(|value| value.parse().ok())
    }
}

/// A file of the tree as it was when it was opened; knows when it has changed since.
#[derive(Debug)]
pub(super) struct Snapshot {
    source: Source,
    /// The text of the file.
    pub(super) text: String,
}

/// What tells of the next change.
#[derive(Debug)]
enum Source {
    Mounted(Opened),
    /// The connection, and the number of the state.
    Line(Line, u64),
}

/// A file of a mount.
#[derive(Debug)]
struct Opened {
    file: File,
    path: PathBuf,
    /// Tells when something was mounted or unmounted since before the file was opened.
    mounts: File,
}

impl Tree {
    /// The tree of a mounted unit.
    pub(super) fn of(unit: &Running) -> Self {
        Self {
            mountpoint: unit.mountpoint.clone(),
            unit: Some(unit.unit.clone()),
        }
    }

    /// The tree under a mount point.
    pub(super) fn at(mountpoint: &Path) -> Self {
        Self {
            mountpoint: mountpoint.to_owned(),
            unit: None,
        }
    }

    /// Makes sure that the unit that is meant is the one that answers: another one may have been
    /// mounted over it.
    ///
    /// # Errors
    /// [`Code::InUse`] with the unit that is there, [`Code::NotMounted`] when none is.
    pub(super) fn verify(&self) -> Result<()> {
        let Some(unit) = &self.unit else {
            return Ok(());
        };
        let name = fs::read_to_string(self.path("name"));
        let name = name.map_err(|cause| self.wrong("read", "name", cause))?;
        let (other, dir) = (name.trim_end(), self.mountpoint.display());
        if other == unit {
            return Ok(());
        }
        let says = format!("{unit} cannot be reached: {other} is mounted over it at {dir}");
        Err(Error::new(Code::InUse, says).with_hint(format!("`shadowset stop {other}` first")))
    }

    /// How the unit is named in a hint.
    pub(super) fn named(&self) -> String {
        match &self.unit {
            Some(unit) => unit.clone(),
            None => self.mountpoint.display().to_string(),
        }
    }

    /// A path below `.shadow`.
    fn path(&self, name: &str) -> PathBuf {
        self.mountpoint.join(".shadow").join(name)
    }

    /// Reads a file below `.shadow`.
    pub(super) fn read(&self, name: &str) -> Result<String> {
        self.snapshot(name).map(|snapshot| snapshot.text)
    }

    /// Reads a file below `.shadow` and keeps it open to wait for its next change.
    pub(super) fn snapshot(&self, name: &str) -> Result<Snapshot> {
        if let Err(error) = self.verify() {
            return self.asked(name).ok_or(error);
        }
        let read = || {
            let (path, mounts) = (self.path(name), system::mounts()?);
            let file = File::open(&path)?;
            let text = read_from_start(&file, usize::MAX)?;
            let source = Source::Mounted(Opened { file, path, mounts });
            Ok(Snapshot { source, text })
        };
        read().map_err(|cause| self.wrong("read", name, cause))
    }

    /// The control socket, if it can be used.
    fn line(&self) -> Option<Line> {
        let unit = self.unit.as_deref()?;
        let runtime = system::runtime().ok()?;
        Line::open(&runtime.base().join(unit)).ok()
    }

    /// A file as the control socket gives it, if it does.
    fn asked(&self, name: &str) -> Option<Snapshot> {
        let line = self.line()?;
        let told = line.ask(&format!("read {name}")).ok()?;
        (told.errno == 0).then(|| Snapshot {
            source: Source::Line(line, told.seq),
            text: told.text,
        })
    }

    /// The text of the state, of a server that is waited for only so long. The control socket is asked first: from a
    /// read of the mount there is no way back.
    ///
    /// # Errors
    /// [`Code::TimedOut`] when it does not answer; as [`Self::read`].
    pub(super) fn status_in_time(&self) -> Result<String> {
        let told = self.line().map(|line| {
            line.limit(PATIENCE)?;
            line.ask("read status.json")
        });
        match told {
            Some(Ok(told)) if told.errno == 0 => Ok(told.text),
            Some(Err(cause)) if line::is_late(&cause) => {
                let says = format!("{} does not answer", self.named());
                Err(Error::new(Code::TimedOut, says).with_hint(
                    "its server is stopped, or very busy: `shadowset list` has its process",
                ))
            }
            _ => self.read("status.json"),
        }
    }

    /// The whole state.
    pub(super) fn status(&self) -> Result<Status> {
        self.read("status.json")
            .and_then(|text| parse_status(&text))
    }

    /// Carries out one command and returns its answer.
    ///
    /// # Errors
    /// The refusal of the server, with its code, sentence and hint.
    pub(super) fn command(&self, text: &str) -> Result<Answer> {
        let subject = subject(text);
        if let Err(error) = self.verify() {
            let line = self.line().ok_or(error)?;
            let told = line.ask(text);
            let ended = |cause| Error::io(format!("{subject}: the server has ended"), cause);
            let told = told.map_err(ended)?;
            return match told.errno {
                0 => Ok(parse_answer(&told.text)),
                _ => Err(self.with_log(refusal(text, &self.named(), &told.text))),
            };
        }
        let mut control = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path("control"))
            .map_err(|cause| match cause.kind() {
                io::ErrorKind::ReadOnlyFilesystem => {
                    self.made_read_only(read_only(&subject, &self.named(), "takes no commands"))
                }
                _ => self.wrong("open", "control", cause),
            })?;
        let written = control.write(text.as_bytes());
        let answer = match (read_from_start(&control, ANSWER_BYTES_MAX), &written) {
            (Ok(answer), _) => answer,
            (Err(_), Err(_)) => String::new(),
            (Err(cause), Ok(_)) => {
                let says = format!("{subject}: the server has ended before its answer was read");
                return Err(
                    Error::io(says, cause).with_hint("mount the unit and look at its state")
                );
            }
        };
        match (written, answer.split_once(' ').map(|(word, _)| word)) {
            (_, Some("error:")) => Err(self.with_log(refusal(text, &self.named(), &answer))),
            (Ok(_), Some("ok:")) => Ok(parse_answer(&answer)),
            (Ok(_), _) => {
                let says = format!("{subject}: the server's answer makes no sense: {answer:?}");
                Err(Error::new(Code::Io, says))
            }
            (Err(cause), _) => Err(Error::io(subject, cause)),
        }
    }

    /// Shows each new state to `step` until it breaks, or until the deadline.
    ///
    /// # Errors
    /// [`Code::TimedOut`] at the deadline, [`Code::NotMounted`] when the unit goes away.
    pub(super) fn follow<T>(
        &self,
        deadline: Option<Instant>,
        mut step: impl FnMut(&Snapshot, &Status) -> Result<ControlFlow<T>>,
    ) -> Result<T> {
        loop {
            // A new open each time: a change between the reading and the wait ends the wait at once.
            let snapshot = self.snapshot("status.json")?;
            let status = parse_status(&snapshot.text)?;
            let step = step(&snapshot, &status).map_err(|error| self.with_log(error));
            if let ControlFlow::Break(value) = step? {
                return Ok(value);
            }
            if !snapshot.wait(deadline)? {
                let says = format!(
                    "{}: not in the time given; it is {}",
                    status.unit, status.state
                );
                return Err(Error::new(Code::TimedOut, says).with_hint(format!(
                    "`shadowset status {}` shows its state",
                    status.unit
                )));
            }
        }
    }

    /// The error, its hint on the log made one on the place of that.
    fn with_log(&self, error: Error) -> Error {
        match &self.unit {
            Some(unit) if error.hint() == log::SAYS_WHY => error.with_hint(log::of_running(unit)),
            _ => error,
        }
    }

    /// The error of a unit that takes no commands: one that was only remounted so takes them again without a stop.
    fn made_read_only(&self, error: Error) -> Error {
        match self.status() {
            Ok(status) if !status.read_only => {
                let dir = self.mountpoint.display();
                error.with_hint(format!(
                    "`mount -o remount,rw {dir}` has it take commands again"
                ))
            }
            _ => error,
        }
    }

    /// What to do where the server has ended: a loop device keeps the mount in use.
    fn way_out_of_death(&self) -> String {
        let dir = self.mountpoint.display();
        let again = format!("`umount {dir}`, then mount the unit again");
        let unit = self.unit.as_deref();
        match unit.filter(|unit| !system::loops_by_name(&self.mountpoint.join(unit)).is_empty()) {
            Some(unit) => {
                format!(
                    "unmount what is on its loop device, `shadowset loop detach {unit}`, {again}"
                )
            }
            None => again,
        }
    }

    fn wrong(&self, doing: &str, name: &str, cause: io::Error) -> Error {
        let dir = self.mountpoint.display();
        let gone = [libc::ENOTCONN, libc::ECONNABORTED, libc::ENODEV];
        if cause
            .raw_os_error()
            .is_some_and(|errno| gone.contains(&errno))
        {
            return Error::new(Code::NotMounted, format!("the server of {dir} has ended"))
                .with_hint(self.way_out_of_death());
        }
        let is_there = match fs::metadata(self.mountpoint.join(".shadow")) {
            Ok(meta) => meta.is_dir(),
            // Nothing is known of what may not be looked at.
            Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
        };
        if !is_there {
            return nothing_at(&self.mountpoint);
        }
        Error::io(
            format!("cannot {doing} {}", self.path(name).display()),
            cause,
        )
    }
}

impl Snapshot {
    /// Waits for a change, which the end of the mount is too; false when the deadline came first.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Result<bool> {
        let waited = match &self.source {
            Source::Mounted(opened) => opened.wait(deadline),
            Source::Line(line, seq) => line.wait(*seq, deadline),
        };
        waited.map_err(|cause| Error::io("cannot wait for a change of the state", cause))
    }
}

impl Opened {
    fn wait(&self, deadline: Option<Instant>) -> io::Result<bool> {
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            match system::wait_for_change(self.file.as_fd(), self.mounts.as_fd(), left) {
                Ok(Some(Change::File)) => return Ok(true),
                // The open file keeps the server of a mount that was taken away.
                Ok(Some(Change::Mounts)) if !self.is_there() => return Ok(true),
                Ok(Some(Change::Mounts)) => {}
                Ok(None) if left.is_none_or(|left| left > Duration::ZERO) => {}
                Ok(None) => return Ok(false),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
    }

    /// Whether the path still leads into the mount of the open file.
    fn is_there(&self) -> bool {
        let same = |found: Metadata| Ok(self.file.metadata()?.dev() == found.dev());
        fs::metadata(&self.path).and_then(same).unwrap_or(false)
    }
}

/// A unit that is mounted read-only, and what it therefore does not do.
pub(super) fn read_only(subject: &str, unit: &str, therefore: &str) -> Error {
    let says = format!("{subject}: {unit} is mounted read-only and {therefore}");
    Error::new(Code::ReadOnlyImage, says).with_hint(format!(
        "`shadowset stop {unit}`, then mount it without -o ro"
    ))
}

/// Reads `status.json`.
pub(super) fn parse_status(text: &str) -> Result<Status> {
    serde_json::from_str(text).map_err(|cause| {
        Error::new(Code::Io, "status.json cannot be understood")
            .caused_by(cause)
            .with_hint("the server may be of another version: `cat .shadow/version`")
    })
}

/// Reads a file of size zero: to its end, by offset, as control files want it.
fn read_from_start(file: &File, bytes_max: usize) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while bytes.len() < bytes_max {
        let at = u64::try_from(bytes.len()).map_err(io::Error::other)?;
        match file.read_at(&mut buffer, at) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// What an error is about: the verb and its object.
fn subject(command: &str) -> String {
    let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
    if let Some(quoted) = rest.strip_prefix('"') {
        return format!("{verb} {}", unquoted(quoted));
    }
    match rest.split_whitespace().next() {
        Some(object) if !object.contains('=') => format!("{verb} {object}"),
        _ => verb.to_owned(),
    }
}

/// What stands before the next double quote.
fn unquoted(text: &str) -> String {
    let mut word = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next().filter(|c| *c != '"') {
        let escaped = if c == '\\' { chars.next() } else { None };
        word.push(escaped.unwrap_or(c));
    }
    word
}

fn parse_answer(answer: &str) -> Answer {
    let mut lines = answer.lines();
    let first = lines.next().unwrap_or_default();
    let sentence = first.strip_prefix("ok:").unwrap_or(first).trim().to_owned();
    let value = |line: &str| {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        (key.to_owned(), value.trim().to_owned())
    };
    Answer {
        sentence,
        values: lines.filter(|l| !l.is_empty()).map(value).collect(),
    }
}

/// `error: CODE ERRNO`, the sentence, maybe the command with a caret, `hint: ...`.
///
/// A server that cannot take the command says a sentence and no more. The caret is left out: it stands under words that the operator has not typed.
fn refusal(command: &str, unit: &str, answer: &str) -> Error {
    let subject = subject(command);
    let mut lines = answer.lines().peekable();
    let first = lines.next_if(|first| first.starts_with("error:"));
    let code = first.and_then(|first| first.split_whitespace().nth(1));
    let code = code.and_then(Code::from_name).unwrap_or(Code::Io);
    let error = Error::new(
        code,
        format!("{subject}: {}", lines.next().unwrap_or_default()),
    );
    match lines.find_map(|line| line.strip_prefix("hint: ")) {
        Some(hint) => error.with_hint(hints::translate(code, hint, unit, command)),
        None => error,
    }
}

/// A directory on which no unit is mounted.
pub(super) fn nothing_at(dir: &Path) -> Error {
    let says = format!("no unit is mounted at {}", dir.display());
    Error::new(Code::NotMounted, says)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::error_lines;

    #[test]
    fn a_refusal_is_shown_with_its_command_and_hint() {
        let answer = "error: last-source EBUSY\nm1 is the only source member\n  detach m1\n         \
                      ^\nhint: attach another member first\n";
        let error = refusal("detach m1 policy=minicopy", "dsa1", answer);
        assert_eq!((error.code(), error.exit_code()), (Code::LastSource, 4));
        let shown = error_lines(&error);
        let expected = "shadowset: detach m1: m1 is the only source member\n\
                        hint: attach another member first\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_refusal_without_a_word_or_with_an_unknown_code_is_still_shown() {
        let error = refusal(
            "merge",
            "dsa1",
            "error: of-a-newer-server EBUSY\nnot now\nhint: later\n",
        );
        assert_eq!((error.code(), error.exit_code()), (Code::Io, 1));
        assert_eq!(
            error_lines(&error),
            "shadowset: merge: not now\nhint: later\n"
        );
        let error = refusal("merge", "dsa1", "too many programs are served already\n");
        assert_eq!(
            error.to_string(),
            "merge: too many programs are served already"
        );
        let error = refusal("merge", "dsa1", "error: timed-out ETIMEDOUT\nno answer\n");
        assert_eq!(
            (error.exit_code(), error.hint()),
            (124, Code::TimedOut.hint())
        );
    }

    #[test]
    fn an_answer_is_a_sentence_and_values() {
        let answer = parse_answer("ok: m3 would return\nverdict minicopy\nreason a bitmap\neta\n");
        assert_eq!(answer.sentence, "m3 would return");
        let values = [("verdict", "minicopy"), ("reason", "a bitmap"), ("eta", "")];
        let expected: Vec<_> = values.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(answer.values, expected);
        let answer = parse_answer("ok: m3 is the target\noperation 7\nkind minicopy\n");
        let numbers = ["operation", "kind", "bytes"].map(|key| answer.number(key));
        assert_eq!(numbers, [Some(7), None, None]);
    }

    #[test]
    fn the_subject_is_verb_and_object() {
        assert_eq!(subject("detach m1 policy=none"), "detach m1");
        assert_eq!(subject("detach \"m 1\" policy=none"), "detach m 1");
        assert_eq!(
            subject(r#"attach "/a \"b\" \\c" confirm"#),
            r#"attach /a "b" \c"#
        );
        assert_eq!(subject("verify range=1-2"), "verify");
        assert_eq!(subject("merge"), "merge");
    }

    #[test]
    fn a_place_without_a_unit_is_not_mounted() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let error = Tree::at(dir.path()).status().unwrap_err();
        assert_eq!((error.code(), error.exit_code()), (Code::NotMounted, 3));
    }

    #[test]
    fn another_unit_at_the_place_is_told_by_name() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(dir.path().join(".shadow")).expect("directory");
        std::fs::write(dir.path().join(".shadow/name"), "dsa2\n").expect("file");
        std::fs::write(dir.path().join(".shadow/control"), "").expect("file");
        let running = |unit: &str| Running {
            unit: unit.into(),
            pid: None,
            mountpoint: dir.path().to_owned(),
        };
        Tree::of(&running("dsa2")).verify().expect("it is the one");
        let tree = Tree::of(&running("dsa1"));
        for error in [
            tree.command("detach m2").unwrap_err(),
            tree.status().unwrap_err(),
        ] {
            let says = error.to_string();
            assert!(
                says.starts_with("dsa1 cannot be reached: dsa2 is mounted"),
                "{says}"
            );
            assert_eq!((error.code(), error.exit_code()), (Code::InUse, 4));
        }
        let control = std::fs::read(dir.path().join(".shadow/control")).expect("file");
        assert!(control.is_empty(), "no command was sent");
    }

    #[test]
    fn a_file_of_the_tree_is_read_whole() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(dir.path().join(".shadow")).expect("directory");
        let text = "x".repeat(200_000);
        std::fs::write(dir.path().join(".shadow/show"), &text).expect("file");
        let tree = Tree::at(dir.path());
        assert_eq!(tree.read("show").expect("file"), text);
        let error = tree.read("nothing").unwrap_err();
        assert_eq!(error.code(), Code::NoSuchFile);
    }
}
