//! fio: random writes with a checksum in each block, read back as it goes.

use std::path::Path;

use crate::child::{self, command};
use crate::party::{Desk, Load, Mark, Verdict};

/// Past the page cache. A write of 4 KiB to it is there or not, at any crash.
const DIRECT: &str = "direct";
/// Through the page cache. Its pages may change while they are written, so a crash may tear them.
const BUFFERED: &str = "buffered";

pub(crate) struct Fio;

/// A job on one of the files, with a checksum in each 4 KiB.
fn job(dir: &Path, file: &str, rw: &str) -> std::process::Command {
    let mut command = command("fio");
    command.args([
        "--output-format=terse",
        "--size=16m",
        "--verify=crc32c",
        "--verify_interval=4096",
        "--verify_fatal=1",
        &format!("--filename={}", dir.join(file).display()),
        &format!("--direct={}", u8::from(file == DIRECT)),
        &format!("--rw={rw}"),
        &format!("--name={rw}"),
    ]);
    // Its files of state would go there.
    command.current_dir(dir);
    command
}

fn fill(dir: &Path, file: &str) -> std::process::Command {
    let mut fill = job(dir, file, "write");
    fill.args(["--bs=64k", "--do_verify=0", "--end_fsync=1"]);
    fill
}

fn check(dir: &Path, file: &str) -> Verdict {
    child::run(job(dir, file, "read").arg("--bs=64k")).map(drop)
}

impl Load for Fio {
    fn name(&self) -> &'static str {
        "fio"
    }

    fn prepare(&self, dir: &Path) -> Verdict {
        child::run(&mut fill(dir, DIRECT)).map(drop)
    }

    fn bout(&self, desk: &Desk, seed: u64) -> Verdict {
        // After a crash its blocks may be torn.
        desk.group.run(&mut fill(&desk.dir, BUFFERED))?;
        for file in [DIRECT, BUFFERED] {
            let mut bout = job(&desk.dir, file, "randwrite");
            let seed = format!("--randseed={seed}");
            bout.args(["--time_based", "--runtime=3", "--verify_backlog=64", &seed]);
            match file {
                // A job that begins its file again may not read what it is writing.
                DIRECT => bout.args(["--ioengine=libaio", "--iodepth=16", "--bsrange=4k-64k"]),
                _ => bout.args(["--ioengine=psync", "--bs=4k", "--fsync=32"]),
            };
            desk.group.run(bout.arg("--serialize_overlap=1"))?;
        }
        Ok(())
    }

    fn holds(&self, dir: &Path, _mark: Mark) -> Verdict {
        check(dir, DIRECT)
    }

    fn rests(&self, dir: &Path) -> Verdict {
        check(dir, BUFFERED)
    }
}
