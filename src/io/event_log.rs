//! The file that keeps events over the end of the unit: lines of text, appended by a thread of its own.
//!
//! Nobody waits for it: a file system that hangs holds up no event. It must not know what a line says. A line is
//! synced soon after it was handed over; a torn one at the end, and what is older than the lines that are kept,
//! is left out the next time the file is opened. Where it cannot be written, as on a full disk, it is written anew
//! with the last lines as soon as there is another one and that can be done.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sync::channel::{Receiver, Sender, bounded, unbounded};
use crate::sync::thread;

/// Name of the file in the state directory.
const NAME: &str = "events";
/// The last lines, which are read when the file is opened.
const KEPT: usize = 256;
/// Lines after which the file is written anew with the last ones.
const MOST: usize = 4096;
/// How long the end waits for the last lines to be on the disk.
const PATIENCE: Duration = Duration::from_secs(5);

/// The file, open for the life of the unit.
#[derive(Debug)]
pub struct EventLog {
    lines: Sender<String>,
    ended: Receiver<()>,
}

impl EventLog {
    /// Opens the file of a state directory; gives the last lines that it holds, oldest first, also when it cannot be
    /// written now.
    ///
    /// # Errors
    /// The system's error when it cannot be read; then nothing is kept.
    pub fn open(dir: &Path) -> io::Result<(Self, Vec<String>)> {
        let path = dir.join(NAME);
        let last = read(&path)?;
        let (lines, inbox) = unbounded();
        let (end, ended) = bounded(1);
        let kept = last.iter().cloned().collect();
        let mut writer = Writer {
            path,
            file: None,
            count: 0,
            last: kept,
        };
        let thread = thread::Builder::new().name("events".into());
        thread.spawn(move || {
            writer.run(&inbox);
            drop(end);
        })?;
        Ok((Self { lines, ended }, last))
    }

    /// Hands a line over, without its newline; never waits.
    pub fn append(&self, line: String) {
        // The thread ends with this value.
        let _ = self.lines.send(line);
    }

    /// Waits until what was handed over is on the disk, for a few seconds at most.
    pub fn close(self) {
        drop(self.lines);
        let _ = self.ended.recv_timeout(PATIENCE);
    }
}

/// The last whole lines of a file; none when there is no file.
fn read(path: &Path) -> io::Result<Vec<String>> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    Ok(last_lines(&bytes))
}

/// The last lines that have an end.
pub(super) fn last_lines(bytes: &[u8]) -> Vec<String> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n');
    let text = String::from_utf8_lossy(&bytes[..whole.unwrap_or(0)]);
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(KEPT)..];
    last.iter().map(|line| (*line).to_owned()).collect()
}

/// Replaces the file by one with these lines; the old one is there until the new one is whole.
fn rewrite<L: AsRef<str>>(path: &Path, lines: impl IntoIterator<Item = L>) -> io::Result<File> {
    let new = path.with_extension("new");
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = file.open(&new)?;
    let mut text = String::new();
    for line in lines {
        text.push_str(line.as_ref());
        text.push('\n');
    }
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    fs::rename(&new, path)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()?;
    Ok(file)
}

struct Writer {
    path: PathBuf,
    /// None when it has failed, or could not be made.
    file: Option<File>,
    /// Lines in the file.
    count: usize,
    last: VecDeque<String>,
}

impl Writer {
    /// Writes what comes until nobody can send any more.
    fn run(&mut self, inbox: &Receiver<String>) {
        // Without a torn line, and what is too old.
        self.settle(Self::renew);
        while let Ok(first) = inbox.recv() {
            let lines = std::iter::once(first).chain(inbox.try_iter()).collect();
            self.settle(|writer| writer.write(lines));
        }
    }

    /// Does something to the file, and gives it up when that fails; the next time it is written anew.
    fn settle(&mut self, act: impl FnOnce(&mut Self) -> io::Result<()>) {
        if let Err(error) = act(self) {
            self.file = None;
            tracing::warn!(%error, "{}: events are not kept now", self.path.display());
        }
    }

    fn renew(&mut self) -> io::Result<()> {
        self.file = Some(rewrite(&self.path, &self.last)?);
        self.count = self.last.len();
        Ok(())
    }

    fn write(&mut self, lines: Vec<String>) -> io::Result<()> {
        let mut text = lines.join("\n");
        text.push('\n');
        self.count += lines.len();
        self.last.extend(lines);
        let old = self.last.len().saturating_sub(KEPT);
        self.last.drain(..old);
        match &mut self.file {
            Some(file) if self.count <= MOST => {
                file.write_all(text.as_bytes())?;
                file.sync_data()
            }
            _ => self.renew(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    #[test]
    fn the_last_lines_are_there_again() {
        let dir = dir();
        for next in [0_usize, 200, 400] {
            let (log, before) = EventLog::open(dir.path()).expect("opens");
            let last = next.saturating_sub(KEPT)..next;
            let expected: Vec<String> = last.map(|n| n.to_string()).collect();
            assert_eq!(before, expected);
            (next..next + 200).for_each(|n| log.append(n.to_string()));
            log.close();
        }
    }

    #[test]
    fn a_torn_line_is_left_out() {
        let dir = dir();
        fs::write(dir.path().join(NAME), "one\ntwo\nthr").expect("written");
        let (log, lines) = EventLog::open(dir.path()).expect("opens");
        assert_eq!(lines, ["one", "two"]);
        log.append("three".to_owned());
        log.close();
        let text = fs::read_to_string(dir.path().join(NAME)).expect("read");
        assert_eq!(text, "one\ntwo\nthree\n");
    }

    #[test]
    fn what_could_not_be_written_is_written_later() {
        let dir = dir();
        fs::write(dir.path().join(NAME), "one\n").expect("written");
        // The new file cannot be made.
        let hindrance = dir.path().join("events.new");
        fs::create_dir(&hindrance).expect("made");
        let (log, lines) = EventLog::open(dir.path()).expect("can be read");
        assert_eq!(lines, ["one"]);
        fs::remove_dir(hindrance).expect("removed");
        log.append("two".to_owned());
        log.close();
        let text = fs::read_to_string(dir.path().join(NAME)).expect("read");
        assert_eq!(text, "one\ntwo\n");
        let mut writer = Writer {
            path: dir.path().join(NAME),
            // It cannot be written.
            file: File::open(dir.path().join(NAME)).ok(),
            count: 2,
            last: VecDeque::from(["one", "two"].map(str::to_owned)),
        };
        for line in ["three", "four"] {
            writer.settle(|writer| writer.write(vec![line.to_owned()]));
        }
        let text = fs::read_to_string(dir.path().join(NAME)).expect("read");
        assert_eq!(text, "one\ntwo\nthree\nfour\n");
    }

    #[test]
    fn the_file_does_not_grow_without_end() {
        let dir = dir();
        let (log, _) = EventLog::open(dir.path()).expect("opens");
        (0..3 * MOST).for_each(|n| log.append(n.to_string()));
        log.close();
        let text = fs::read_to_string(dir.path().join(NAME)).expect("read");
        let last = (3 * MOST - 1).to_string();
        assert!(text.lines().count() <= MOST, "{}", text.lines().count());
        assert_eq!(text.lines().last(), Some(last.as_str()));
    }
}
