//! What a backup that is cut off leaves behind, so that the next one can finish it: a file in the unit's state directory.
//!
//! It is locked as long as a backup runs. It names what was taken out exactly enough that no member is brought back that
//! somebody has taken out on purpose.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::model::{Member, Status};
use super::super::tree::Answer;
use super::super::{config, place, system};
use crate::error::{Error, Result};
use crate::io::sys;
use crate::set::Code;

/// The right to back up a unit, and the record of it.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    file: File,
}

/// A member that was taken out for a backup, or was about to be.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
struct Away {
    member: String,
    /// Generation of the set before.
    generation: Option<u64>,
    /// How, once it has left.
    left: Option<Left>,
}

/// One departure of a member. A copy that is cut off keeps the bitmap, and has its member leave anew.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Left {
    bitmap: String,
    generation: Option<u64>,
}

impl Left {
    /// The departure that a detach tells of, if there is a bitmap.
    pub(super) fn by(answer: &Answer) -> Option<Self> {
        Some(Self {
            bitmap: answer.text("bitmap")?.to_owned(),
            generation: answer.number("generation"),
        })
    }

    /// Whether a member has not left again since. Only a new departure makes the generation larger; a block that cannot
    /// be written makes it smaller.
    pub(super) fn is_last(&self, status: &Status, member: &Member) -> bool {
        let last = status.bitmap(&self.bitmap).and_then(|b| b.generation);
        member.bitmap.as_ref() == Some(&self.bitmap) && last <= self.generation
    }
}

impl Away {
    /// What the first line says.
    fn read(text: &str) -> Option<Self> {
        let line = text.lines().next().unwrap_or_default();
        // What was cut off while it was written was written before anything was taken out.
        serde_json::from_str(line).ok()
    }

    fn written(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }

    /// Whether it is this departure for which the member is away now.
    fn is_it(&self, status: &Status) -> bool {
        let Some(member) = status.member(&self.member) else {
            return false;
        };
        if member.state != "detached" {
            return false;
        }
        match (&self.left, self.generation) {
            (Some(left), _) => left.is_last(status, member),
            // Cut off before the bitmap was known: nothing else may have changed since.
            (None, Some(before)) => {
                let one_before = |now: u64| now.checked_sub(1) == Some(before);
                status.generation.is_some_and(one_before)
            }
            (None, None) => false,
        }
    }
}

impl Record {
    /// Takes the right to back up a unit.
    ///
    /// # Errors
    /// `InUse` when another backup of it runs; the system's error.
    pub(super) fn claim(unit: &str) -> Result<Self> {
        let path = state_dir(unit)?.join("backup");
        let failed = |e| Error::io(format!("{} cannot be opened", path.display()), e);
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let file = file.open(&path).map_err(failed)?;
        if !sys::try_lock(file.as_fd()).map_err(failed)? {
            return Err(at_work(unit, &system::others_with(&path)));
        }
        Ok(Self { path, file })
    }

    /// The member that an earlier backup has left away.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn left_away(&self, status: &Status) -> Result<Option<String>> {
        let text = fs::read_to_string(&self.path).map_err(|e| self.failed(e))?;
        Ok(Away::read(&text)
            .filter(|away| away.is_it(status))
            .map(|away| away.member))
    }

    /// A member is about to leave.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn begin(&self, member: &str, generation: Option<u64>) -> Result<()> {
        self.has_left(member, generation, None)
    }

    /// A member has left.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn has_left(
        &self,
        member: &str,
        generation: Option<u64>,
        left: Option<Left>,
    ) -> Result<()> {
        let away = Away {
            member: member.to_owned(),
            generation,
            left,
        };
        let text = away.written().map_err(|e| self.failed(e.into()))?;
        self.write(&text)
    }

    /// Has the command that is started next hold the right too: should it outlive this process, the member is not
    /// brought back while its image is read.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn share(&self) -> io::Result<()> {
        sys::pass_on(self.file.as_fd())
    }

    /// Nobody is away any more.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn clear(&self) -> Result<()> {
        self.write("")
    }

    fn write(&self, text: &str) -> Result<()> {
        let write = || {
            io::Seek::rewind(&mut &self.file)?;
            // The first line counts, and at no moment there is none: nothing else knows of a member that has left.
            (&self.file).write_all(text.as_bytes())?;
            self.file.set_len(text.len() as u64)?;
            self.file.sync_data()
        };
        write().map_err(|e| self.failed(e))
    }

    fn failed(&self, cause: io::Error) -> Error {
        Error::io(format!("{} cannot be used", self.path.display()), cause)
    }
}

/// Who has the right already: a backup, or the command of one that was killed.
fn at_work(unit: &str, who: &[String]) -> Error {
    let is_backup = |process: &String| process.ends_with("(shadowset)");
    let list = who.join(", ");
    let (says, hint) = match who.is_empty() || who.iter().any(is_backup) {
        true => (
            format!("another backup of {unit} is at work"),
            "wait for its end",
        ),
        false => (
            format!("a backup of {unit} was killed, and its command goes on: {list}"),
            "wait for its end, or end it; the next backup then attaches the member",
        ),
    };
    Error::new(Code::InUse, says).with_hint(hint)
}

/// Where a mounted unit keeps what belongs to it and to no member.
fn state_dir(unit: &str) -> Result<PathBuf> {
    Ok(match system::runtime()?.config(unit)? {
        Some(path) => config::load(&path)?.setup.state_dir,
        None => place::state_dir(unit),
    })
}

/// Any bytes as a record: what is understood is the same when it is written over anything and read again.
#[cfg(any(test, fuzzing))]
#[allow(clippy::expect_used, reason = "a test ends at the first surprise")]
pub(in crate::cli) fn fuzz(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(away) = Away::read(&text) {
        let line = away.written().expect("it was JSON");
        assert_eq!(Away::read(&(line + &text)), Some(away));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::tests::sample;

    #[test]
    fn a_command_that_outlives_its_backup_is_named() {
        let told = |who: &[&str]| {
            let who: Vec<_> = who.iter().map(|w| (*w).to_owned()).collect();
            at_work("dsa1", &who).to_string()
        };
        let running = "another backup of dsa1 is at work";
        assert_eq!(told(&[]), running, "nobody may be looked at");
        assert_eq!(told(&["process 7 (shadowset)", "process 8 (tar)"]), running);
        assert_eq!(
            told(&["process 8 (sh)", "process 9 (tar)"]),
            "a backup of dsa1 was killed, and its command goes on: process 8 (sh), process 9 (tar)"
        );
    }

    #[test]
    fn only_the_departure_of_the_backup_is_undone() {
        let away = |generation, left: Option<(&str, u64)>| Away {
            member: "m1".into(),
            generation,
            left: left.map(|(bitmap, generation)| Left {
                bitmap: bitmap.into(),
                generation: Some(generation),
            }),
        };
        let mut status = sample();
        status.generation = Some(8);
        (status.bitmaps[0].id, status.bitmaps[0].generation) = ("0000000c".into(), Some(7));
        let m1 = status
            .members
            .iter_mut()
            .find(|m| m.name == "m1")
            .expect("m1");
        (m1.state, m1.bitmap) = ("detached".into(), Some("0000000c".into()));
        let table = [
            (away(Some(7), Some(("0000000c", 7))), true, "the same one"),
            (
                away(Some(8), Some(("0000000c", 8))),
                true,
                "its block could not be written",
            ),
            (
                away(Some(6), Some(("0000000a", 6))),
                false,
                "it came back and left again",
            ),
            (
                away(Some(5), Some(("0000000c", 5))),
                false,
                "its copy was cancelled",
            ),
            (away(Some(7), None), true, "cut off at the detach"),
            (
                away(Some(6), None),
                false,
                "something else has changed since",
            ),
            (away(None, None), false, "nothing is known"),
        ];
        for (away, expected, why) in table {
            assert_eq!(away.is_it(&status), expected, "{why}");
        }
        let m1 = status
            .members
            .iter_mut()
            .find(|m| m.name == "m1")
            .expect("m1");
        m1.state = "source".into();
        assert!(
            !away(Some(7), Some(("0000000c", 7))).is_it(&status),
            "it is back"
        );
    }
}
