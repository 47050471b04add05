//! What is measured: one file that holds a unit, whoever provides it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::options::Options;
use crate::peers;
use crate::process;
use crate::things::{Result, Shell, Thing, Things, is_mounted};

const MIB: usize = 1 << 20;

/// A target that is ready.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    /// What has to be said beside its figures.
    pub(crate) note: Option<String>,
    /// Its file; of the floor of two writes the two files.
    pub(crate) files: Vec<PathBuf>,
    /// A loop device over each file, or why there is none.
    pub(crate) loops: Result<Vec<PathBuf>>,
    /// A directory of its own.
    pub(crate) dir: PathBuf,
    /// The programs that serve it.
    pub(crate) pids: Vec<u32>,
    /// What they had resident before the first request.
    pub(crate) idle_mib: Option<f64>,
    _things: Things,
}

/// Where a target comes to be.
pub(crate) struct Ground<'a> {
    pub(crate) shell: &'a Shell,
    pub(crate) options: &'a Options,
    pub(crate) dir: &'a Path,
    /// A directory for what is durable of it, if it keeps something there.
    pub(crate) state: &'a Path,
    pub(crate) things: &'a mut Things,
}

/// What a kind of target has started.
#[derive(Default)]
pub(crate) struct Started {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) pids: Vec<u32>,
    pub(crate) note: Option<String>,
}

impl Target {
    /// Starts the target of this name, in directories of its own, with a loop device over it and every block written.
    pub(crate) fn start(
        shell: &Shell,
        options: &Options,
        name: &str,
        (dir, state): (&Path, &Path),
    ) -> Result<Self> {
        for dir in [dir, state] {
            fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        }
        let mut things = Things::default();
        let ground = Ground {
            shell,
            options,
            dir,
            state,
            things: &mut things,
        };
        let started = begin(name, ground)?;
        let idle_mib = process::resident(&started.pids);
        for file in &started.files {
            fill(file, options.size, shell).map_err(|e| format!("{}: {e}", file.display()))?;
        }
        let loops = started
            .files
            .iter()
            .map(|file| things.attach(file))
            .collect();
        Ok(Self {
            name: name.to_owned(),
            note: started.note,
            files: started.files,
            loops,
            dir: dir.to_owned(),
            pids: started.pids,
            idle_mib,
            _things: things,
        })
    }

    /// Mounts what is on its loop device, until the result is dropped.
    pub(crate) fn mount(&self, shell: &Shell) -> Result<(PathBuf, Things)> {
        let place = self.dir.join("ext4");
        fs::create_dir_all(&place).map_err(|e| e.to_string())?;
        let device = self.device()?;
        let mut things = Things::default();
        shell.set_up(Command::new("mount").arg(device).arg(&place))?;
        things.keep(Thing::Mount(place.clone()));
        Ok((place, things))
    }

    /// Its loop device.
    pub(crate) fn device(&self) -> Result<&Path> {
        let first = self.loops.as_ref().map_err(String::clone)?.first();
        first
            .map(PathBuf::as_path)
            .ok_or_else(|| "it has no file".to_owned())
    }
}

fn begin(name: &str, ground: Ground<'_>) -> Result<Started> {
    match name {
        "plain" => plain(&ground, 1),
        "two" => plain(&ground, 2),
        "nbdfuse" => peers::nbdfuse(ground),
        "quorum" => peers::quorum(ground),
        "qsd" => peers::qsd(ground),
        "btrfs" => peers::btrfs(ground),
        _ => Ours::read(name)?.start(ground),
    }
}

/// Images of the size of the unit.
pub(crate) fn images(ground: &Ground<'_>, count: usize) -> Result<Vec<PathBuf>> {
    let image = |n: usize| {
        let path = ground.dir.join(format!("m{n}.img"));
        let made = File::create(&path).and_then(|file| file.set_len(ground.options.size));
        made.map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    };
    (1..=count).map(image).collect()
}

fn plain(ground: &Ground<'_>, count: usize) -> Result<Started> {
    Ok(Started {
        files: images(ground, count)?,
        ..Started::default()
    })
}

/// Writes every block, so that no cell allocates any.
fn fill(file: &Path, size: u64, shell: &Shell) -> std::io::Result<()> {
    let file = File::options().write(true).open(file)?;
    let bytes: Vec<u8> = (0..MIB).map(|at| (at * 31 % 251) as u8).collect();
    for at in (0..size).step_by(MIB) {
        if shell.is_stopped() {
            break;
        }
        file.write_all_at(&bytes, at)?;
    }
    file.sync_all()
}

/// A unit of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Ours {
    members: usize,
    /// One member more, which is away with a bitmap.
    bitmap: bool,
    direct: bool,
    /// Options of mount, the last of two in force.
    options: String,
    program: Option<PathBuf>,
}

impl Ours {
    /// shadowset-MEMBERS[+bitmap][+power][+direct][+OPTION=VALUE][@PROGRAM]
    fn read(name: &str) -> Result<Self> {
        let (shape, program) = match name.split_once('@') {
            Some((shape, program)) => (shape, Some(PathBuf::from(program))),
            None => (name, None),
        };
        let mut words = shape.split('+');
        let members = words
            .next()
            .and_then(|word| word.strip_prefix("shadowset-")?.parse().ok());
        let mut ours = Self {
            members: members.ok_or_else(|| format!("{name}: no such target"))?,
            bitmap: false,
            direct: false,
            options: "durability=memory".to_owned(),
            program,
        };
        for word in words {
            match word {
                "bitmap" => ours.bitmap = true,
                "direct" => ours.direct = true,
                "power" => ours.options.push_str(",durability=power"),
                _ if word.contains('=') => ours.options.push_str(&format!(",{word}")),
                _ => return Err(format!("{name}: {word} is not understood")),
            }
        }
        Ok(ours)
    }

    fn start(&self, ground: Ground<'_>) -> Result<Started> {
        let (shell, dir) = (ground.shell, ground.dir);
        let program = self.program.as_ref().unwrap_or(&ground.options.program);
        let call = |words: &[&str]| {
            let mut command = Command::new(program);
            command.env("SHADOWSET_CONFIG_DIR", dir.join("conf"));
            command.env("SHADOWSET_RUNTIME_DIR", dir.join("run"));
            command.args(words);
            command
        };
        let place = dir.join("mnt");
        for name in ["conf", "run", "mnt"] {
            fs::create_dir(dir.join(name)).map_err(|e| e.to_string())?;
        }
        let members = self.members + usize::from(self.bitmap);
        let text = self.configuration(dir, ground.state, members);
        fs::write(dir.join("conf/dsa1.toml"), text).map_err(|e| e.to_string())?;
        shell.run(&mut call(&[
            "create",
            "dsa1",
            "--size",
            &ground.options.size.to_string(),
        ]))?;
        let stop = call(&["stop", "dsa1", "--wait"]);
        let mut mount = call(&["mount", "dsa1", &place.to_string_lossy(), "--json"]);
        mount
            .args(["-o", &self.options])
            .arg("--log")
            .arg(dir.join("log"));
        let said = shell.set_up(&mut mount);
        if is_mounted(&place) {
            ground.things.keep(Thing::Unit(place.clone(), stop));
        }
        let said: Value = serde_json::from_str(&said?).map_err(|e| format!("mount: {e}"))?;
        let pid = said["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        if self.bitmap {
            let last = format!("m{members}");
            shell.run(&mut call(&[
                "detach", "dsa1", &last, "--policy", "minicopy",
            ]))?;
        }
        Ok(Started {
            files: vec![place.join("dsa1")],
            pids: vec![pid.ok_or("mount tells no process")?],
            note: None,
        })
    }

    fn configuration(&self, dir: &Path, state: &Path, members: usize) -> String {
        let io = if self.direct { "direct" } else { "buffered" };
        let member = |n: usize| {
            let image = dir.join(format!("m{n}.img"));
            format!("[[member]]\nname = \"m{n}\"\npath = {image:?}\nio = \"{io}\"\n")
        };
        let members: String = (1..=members).map(member).collect();
        format!("state_dir = {state:?}\n{members}")
    }
}
