//! Commands as a program gives them: one write on the control file, the answer on the same file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Unit;

/// A good answer.
#[derive(Debug)]
pub(crate) struct Answer(pub(crate) String);

/// A refusal.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The errno of write(2).
    pub(crate) errno: i32,
    /// What is read on the same file.
    pub(crate) text: String,
}

impl Answer {
    /// A fact of the answer.
    pub(crate) fn text(&self, key: &str) -> &str {
        let facts = self
            .0
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(' '));
        let mut found = facts.filter(|(k, _)| *k == key);
        found
            .next()
            .unwrap_or_else(|| panic!("no {key} in {}", self.0))
            .1
    }

    /// A fact that is a number.
    pub(crate) fn number(&self, key: &str) -> u64 {
        self.text(key).parse().expect("a number")
    }
}

impl Unit {
    /// One command on `control`.
    pub(crate) fn command(&self, command: &[u8]) -> Result<Answer, Refused> {
        self.command_on("control", command)
    }

    /// One command on a file below `.shadow`.
    pub(crate) fn command_on(&self, name: &str, command: &[u8]) -> Result<Answer, Refused> {
        let path = self.path("mnt/.shadow").join(name);
        let mut file = open(&path);
        let written = file.write(command);
        let text = read_all(&file);
        match written {
            Ok(length) => {
                assert_eq!(length, command.len(), "a command is taken whole");
                assert!(text.starts_with("ok: "), "{text}");
                Ok(Answer(text))
            }
            Err(cause) => {
                let errno = cause.raw_os_error().expect("an errno");
                Err(Refused { errno, text })
            }
        }
    }

    /// A command that has to be carried out.
    pub(crate) fn accepted(&self, command: &str) -> Answer {
        let answer = self.command(command.as_bytes());
        answer.unwrap_or_else(|refused| panic!("{command}: {refused:?}"))
    }
}

fn open(path: &Path) -> File {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads to the end; the size of a control file is 0.
fn read_all(file: &File) -> String {
    let (mut text, mut buffer) = (Vec::new(), [0; 8192]);
    loop {
        match file
            .read_at(&mut buffer, text.len() as u64)
            .expect("the answer")
        {
            0 => return String::from_utf8(text).expect("UTF-8"),
            length => text.extend_from_slice(&buffer[..length]),
        }
    }
}
