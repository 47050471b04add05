//! SQLite, by its command line: what was acknowledged to the client is there after a crash.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::transactions::{Dialogue, EVERYTHING, SCHEMA, whole};
use crate::child::{self, command};
use crate::party::{Desk, Load, Mark, Verdict};

/// A database with one way to keep its journal.
pub(crate) struct Sqlite {
    name: &'static str,
    mode: &'static str,
}

pub(crate) const WAL: Sqlite = Sqlite {
    name: "sqlite-wal",
    mode: "wal",
};
pub(crate) const ROLLBACK: Sqlite = Sqlite {
    name: "sqlite-rollback",
    mode: "delete",
};

/// The client; EXTRA since FULL does not sync the removal of a journal.
fn client(dir: &Path) -> Command {
    let mut client = command("sqlite3");
    client.args(["-batch", "-bail", "-cmd", "PRAGMA synchronous=EXTRA"]);
    client.arg(dir.join("db"));
    client
}

impl Load for Sqlite {
    fn name(&self) -> &'static str {
        self.name
    }

    fn prepare(&self, dir: &Path) -> Verdict {
        let text = format!("PRAGMA journal_mode={};\n{SCHEMA}", self.mode);
        let said = child::run(client(dir).arg(text))?;
        match said.trim() == self.mode {
            true => Ok(()),
            false => Err(format!("the mode is {said}")),
        }
    }

    fn bout(&self, desk: &Desk, _seed: u64) -> Verdict {
        let mut dialogue = Dialogue::start(desk, client(&desk.dir))?;
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(4) {
            dialogue.next()?;
        }
        dialogue.end()
    }

    fn holds(&self, dir: &Path, mark: Mark) -> Verdict {
        let text = format!("PRAGMA integrity_check;\n{EVERYTHING}");
        let said = child::run(client(dir).arg(text))?;
        let rows = said.strip_prefix("ok\n").ok_or_else(|| said.clone())?;
        whole(rows, mark)
    }
}
