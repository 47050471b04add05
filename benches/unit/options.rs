//! What is asked for: `NAME=VALUE`, once for each name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::things::Result;
use crate::work::{self, Work};

/// All names, with what they mean when they are left out.
const NAMES: &str = "
  TARGETS=...    which of plain, two, nbdfuse, quorum, qsd, btrfs, and units of ours (all of these, and six units):
                 shadowset-MEMBERS[+bitmap][+power][+direct][+OPTION=VALUE of mount -o][@PROGRAM]
  WORK=...       file, loop, ext4, a workload (write-4k-32), or one by one way (loop:write-4k-32) (everything)
  ROUNDS=N       rounds (5)
  SECONDS=S      seconds of a cell (3)
  SIZE=MIB       size of each unit and file (256)
  BASE=DIR       where images are: memory or a disk (/dev/shm)
  STATE=DIR      where units of ours keep durable bitmaps (the directory of temporary files)
  AGAINST=...    targets that the ratios are to (plain,two,nbdfuse,quorum)
  TREE=DIR       what is copied onto ext4 (sources of crates that cargo has fetched, 24 MiB of them)
  PROGRAM=FILE   the program of ours (the one that was built with this)
  OUT=FILE       where the figures go as JSON (target/bench/unit.json)";

/// Everything that can be had on Debian.
const TARGETS: &str = "plain,two,shadowset-1,shadowset-2,shadowset-3,shadowset-6,shadowset-2+bitmap,\
    shadowset-2+power,nbdfuse,quorum,qsd,btrfs";

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) targets: Vec<String>,
    pub(crate) works: Vec<Work>,
    pub(crate) rounds: u32,
    pub(crate) time: Duration,
    pub(crate) size: u64,
    pub(crate) base: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) against: Vec<String>,
    pub(crate) tree: Option<PathBuf>,
    pub(crate) program: PathBuf,
    pub(crate) out: PathBuf,
}

impl Options {
    /// Reads the words of the command line. That of cargo has one of its own.
    pub(crate) fn read(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            targets: list(TARGETS),
            works: work::select("")?,
            rounds: 5,
            time: Duration::from_secs(3),
            size: 256 << 20,
            base: "/dev/shm".into(),
            state: std::env::temp_dir(),
            against: list("plain,two,nbdfuse,quorum"),
            tree: None,
            program: env!("CARGO_BIN_EXE_shadowset").into(),
            out: Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench/unit.json"),
        };
        for word in words.filter(|word| word != "--bench") {
            let pair = word.split_once('=');
            pair.ok_or_else(|| format!("{word}: NAME=VALUE is wanted"))
                .and_then(|(name, value)| options.set(name, value))
                .map_err(|why| {
                    format!("{why}\nThe names, and what is meant without them:{NAMES}")
                })?;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "TARGETS" => self.targets = list(value),
            "WORK" => self.works = work::select(value)?,
            "ROUNDS" => self.rounds = number(name, value)?,
            "SECONDS" => {
                let time = Duration::try_from_secs_f64(number(name, value)?);
                self.time = time.map_err(|e| format!("{name}={value}: {e}"))?;
            }
            "SIZE" => self.size = number::<u64>(name, value)? << 20,
            "BASE" => self.base = value.into(),
            "STATE" => self.state = value.into(),
            "AGAINST" => self.against = list(value),
            "TREE" => self.tree = Some(value.into()),
            "PROGRAM" => self.program = value.into(),
            "OUT" => self.out = value.into(),
            _ => return Err(format!("{name}: no such name")),
        }
        Ok(())
    }
}

fn list(text: &str) -> Vec<String> {
    let items = text.split(',').map(str::trim);
    items
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

fn number<N: std::str::FromStr>(name: &str, value: &str) -> Result<N> {
    value
        .parse()
        .map_err(|_| format!("{name}={value}: a number is wanted"))
}
