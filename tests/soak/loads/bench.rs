//! dbench and bonnie++: they fail when a call does not do what it should.

use crate::child::command;
use crate::party::{Desk, Load, Verdict};

/// The requests of a file server.
pub(crate) struct Dbench;

impl Load for Dbench {
    fn name(&self) -> &'static str {
        "dbench"
    }

    fn bout(&self, desk: &Desk, seed: u64) -> Verdict {
        let dir = desk.empty("bout")?;
        let mut bout = command("dbench");
        bout.args(["-c", "/usr/share/dbench/client.txt", "-t", "4", "-D"]);
        bout.arg(dir);
        // As it is, with each change of a directory synced, or with each write synced.
        bout.args([&[][..], &["-S"], &["-F"]][(seed % 3) as usize]);
        desk.group.run(bout.arg("2")).map(drop)
    }
}

/// Large files, and many small ones.
pub(crate) struct Bonnie;

impl Load for Bonnie {
    fn name(&self) -> &'static str {
        "bonnie"
    }

    fn bout(&self, desk: &Desk, seed: u64) -> Verdict {
        let dir = desk.empty("bout")?;
        let mut bout = command("bonnie++");
        bout.arg("-d").arg(dir);
        bout.args(["-u", "root", "-q", "-f", "-x", "1", "-r", "0"]);
        // Buffered, past the page cache, or each write synced, which takes long.
        bout.args(
            [
                &["-s", "24:8k", "-n", "1:20000:10:4"][..],
                &["-D", "-s", "24:8k", "-n", "0"],
                &["-b", "-s", "1:8k", "-n", "0"],
            ][(seed % 3) as usize],
        );
        desk.group.run(&mut bout).map(drop)
    }
}
