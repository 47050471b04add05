//! One file and a copy of it in memory, as in fsx: the script beside this.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use crate::child::{self, command};
use crate::party::{Desk, Load, Mark, Verdict};

const SCRIPT: &str = include_str!("fsx.py");

pub(crate) struct Fsx;

fn script(verb: &str, dir: &Path) -> std::process::Command {
    let mut python = command("python3");
    python.args(["-u", "-c", SCRIPT, verb]).arg(dir);
    python
}

impl Load for Fsx {
    fn name(&self) -> &'static str {
        "fsx"
    }

    fn bout(&self, desk: &Desk, seed: u64) -> Verdict {
        let mut bout = script("bout", &desk.dir);
        bout.arg(seed.to_string()).arg("4");
        bout.stdin(Stdio::piped()).stdout(Stdio::piped());
        bout.stderr(Stdio::piped());
        let mut child = desk.group.spawn(&mut bout)?;
        let mut answer = child.stdin.take().ok_or("no input")?;
        let said = BufReader::new(child.stdout.take().ok_or("no output")?);
        for line in said.lines() {
            let line = line.map_err(|e| e.to_string())?;
            let (word, number) = line.split_once(' ').ok_or("half a line")?;
            let number = number.parse().map_err(|_| format!("no number: {line}"))?;
            match word {
                "begin" => desk.begin_at(number),
                "seal" => {
                    // Known before anything of it is there.
                    desk.issue(number);
                    answer.write_all(b"\n").map_err(|e| e.to_string())?;
                }
                _ => desk.acknowledge(number),
            }
        }
        desk.group.ended(&bout, child).map(drop)
    }

    fn holds(&self, dir: &Path, mark: Mark) -> Verdict {
        let said = child::run(&mut script("seal", dir))?;
        mark.allows(said.trim().parse().map_err(|_| said)?)
    }

    fn rests(&self, dir: &Path) -> Verdict {
        child::run(&mut script("rests", dir)).map(drop)
    }
}
