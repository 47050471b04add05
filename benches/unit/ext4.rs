//! Work on an ext4 on the loop device of a target: a tree of files copied, compared, and a log that grows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::options::Options;
use crate::report::Figures;
use crate::target::Target;
use crate::things::{PATIENCE, Result, Shell};
use crate::work::{Counts, figures, fio};

const MIB: f64 = 1_048_576.0;
/// Bytes of the tree that is copied where none is given.
const TREE: u64 = 24 << 20;
/// No directory of it has more.
const PART: u64 = 4 << 20;

/// The tree that is copied.
#[derive(Debug)]
pub(crate) struct Tree {
    path: PathBuf,
    bytes: u64,
}

impl Tree {
    /// The tree that is asked for, or one of sources that cargo has fetched, made in `dir`.
    pub(crate) fn new(options: &Options, dir: &Path, shell: &Shell) -> Result<Self> {
        let failed = |e: std::io::Error| format!("TREE: {e}");
        if let Some(path) = &options.tree {
            let bytes = weigh(path).map_err(failed)?;
            return Ok(Self {
                path: path.clone(),
                bytes,
            });
        }
        let path = dir.join("tree");
        fs::create_dir(&path).map_err(failed)?;
        let mut bytes = 0;
        for krate in crates().map_err(failed)? {
            let more = weigh(&krate).map_err(failed)?;
            if more <= PART && bytes + more <= TREE {
                shell.run(Command::new("cp").arg("-a").arg(&krate).arg(&path))?;
                bytes += more;
            }
        }
        match bytes {
            0 => Err("cargo has fetched no sources: TREE=DIR says what is copied".to_owned()),
            _ => Ok(Self { path, bytes }),
        }
    }

    fn speed(&self, time: Duration) -> Figures {
        Figures {
            value: self.bytes as f64 / MIB / time.as_secs_f64(),
            unit: "MiB/s",
            bytes: self.bytes as f64,
            p50_us: None,
            p99_us: None,
        }
    }
}

/// The sources that cargo has fetched, in the order of their names.
fn crates() -> std::io::Result<Vec<PathBuf>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")));
    let Some(home) = home else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for registry in fs::read_dir(home.join("registry/src"))? {
        for krate in fs::read_dir(registry?.path())? {
            found.push(krate?.path());
        }
    }
    found.sort();
    Ok(found)
}

fn weigh(path: &Path) -> std::io::Result<u64> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Ok(if meta.is_file() { meta.len() } else { 0 });
    }
    fs::read_dir(path)?.map(|entry| weigh(&entry?.path())).sum()
}

/// What the steps share.
pub(crate) struct Ext4<'a> {
    pub(crate) shell: &'a Shell,
    pub(crate) target: &'a Target,
    pub(crate) tree: &'a Tree,
    pub(crate) time: Duration,
    pub(crate) size: u64,
}

impl Ext4<'_> {
    /// A new file system. It has nothing left to do by itself later.
    pub(crate) fn make(&self) -> Result<()> {
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
        self.shell.run(mkfs.arg(self.target.device()?)).map(drop)
    }

    /// One step, by its name in [`crate::work::ON_EXT4`]. Each is on a mount of its own, and so finds nothing in the cache.
    pub(crate) fn step(&self, name: &str, seed: u32) -> Result<Figures> {
        let (place, _mounted) = self.target.mount(self.shell)?;
        match name {
            "copy" => self.copy(&place),
            "read-back" => self.read_back(&place),
            _ => self.append(&place, seed),
        }
    }

    fn copy(&self, place: &Path) -> Result<Figures> {
        let begun = Instant::now();
        let mut copy = Command::new("cp");
        self.shell
            .run(copy.arg("-a").arg(&self.tree.path).arg(place.join("tree")))?;
        self.shell.run(Command::new("sync").arg("-f").arg(place))?;
        Ok(self.tree.speed(begun.elapsed()))
    }

    fn read_back(&self, place: &Path) -> Result<Figures> {
        let begun = Instant::now();
        let mut diff = Command::new("diff");
        diff.args(["-r", "-q", "--no-dereference"]);
        self.shell
            .run(diff.arg(&self.tree.path).arg(place.join("tree")))?;
        Ok(self.tree.speed(begun.elapsed()))
    }

    /// Ends early rather than write anew what it has appended.
    fn append(&self, place: &Path, seed: u32) -> Result<Figures> {
        let mut command = fio(self.time, seed);
        command.args(["--ioengine=psync", "--rw=write", "--bs=8k", "--fdatasync=1"]);
        command.args(["--fallocate=none", &format!("--size={}", self.size / 2)]);
        command.arg(format!("--filename={}", place.join("log").display()));
        let said = self.shell.run_for(&mut command, self.time + PATIENCE)?;
        figures(&said, Counts::Requests, true, 1)
    }
}
