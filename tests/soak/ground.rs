//! A unit of three members, a loop device over it, and a file system on that.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::bed::{MIB, Plan, Thing, Unit, eventually};
use crate::tally::{Part, Tally};

/// Names of the members.
pub(crate) const MEMBERS: [&str; 3] = ["m1", "m2", "m3"];

/// A file system, and who judges it.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    mkfs: &'static str,
    /// For a copy, whose original may be mounted.
    beside: &'static str,
    fsck: &'static str,
}

pub(crate) const KINDS: [Kind; 3] = [
    Kind {
        name: "ext4",
        mkfs: "mkfs.ext4 -q",
        beside: "loop",
        fsck: "e2fsck -fn",
    },
    Kind {
        name: "xfs",
        mkfs: "mkfs.xfs -q -f",
        beside: "loop,nouuid",
        fsck: "xfs_repair -n",
    },
    Kind {
        name: "btrfs",
        mkfs: "mkfs.btrfs -q -f",
        beside: "loop",
        fsck: "btrfs check --readonly",
    },
];

/// Longest life of a server.
const LIFE: Duration = Duration::from_secs(900);

/// What is mounted now.
pub(crate) struct Ground {
    pub(crate) unit: Unit,
    pub(crate) kind: &'static Kind,
    /// And what had been written to it: its counters are older than its binding.
    device: Option<(String, u64)>,
    stopped: bool,
}

impl Ground {
    /// A new file system, mounted.
    pub(crate) fn new(kind: &'static Kind) -> Self {
        let unit = Plan::new(MEMBERS.len(), 768 * MIB).life(LIFE).mount();
        let device = unit.loop_device();
        unit.mkfs(kind.mkfs, &device);
        unit.free(&device);
        let mut ground = Self {
            unit,
            kind,
            device: None,
            stopped: false,
        };
        ground.up();
        ground
    }

    /// Where the file system is mounted.
    pub(crate) fn fs(&self) -> PathBuf {
        self.unit.path("fs")
    }

    /// Mounts what is not mounted; a file system that has died recovers by its journal.
    pub(crate) fn up(&mut self) {
        if std::mem::take(&mut self.stopped) {
            self.unit.mount();
        }
        if self.device.is_none() {
            let device = self.unit.loop_device();
            let before = written(&device);
            self.unit.mount_device(&device, "fs", "");
            self.device = Some((device, before));
        }
    }

    /// Unmounts the file system, so that nothing of it is in a cache, and frees its device.
    fn off(&mut self, tally: &mut Tally) {
        let Some((device, before)) = self.device.take() else {
            return;
        };
        let fs = self.fs();
        // Who was killed may need a while to let go.
        let line = format!("umount {}", fs.display());
        eventually("the file system can be unmounted", || {
            self.unit.try_sh(&line).code == 0
        });
        self.unit.forget_thing(&Thing::Mount(fs));
        let written = (written(&device) - before) / MIB;
        tally.add(Part::Done, "MiB written", self.kind.name, written);
        self.unit.free(&device);
    }

    /// The file system is as if it had just been booted.
    pub(crate) fn again(&mut self, tally: &mut Tally) {
        self.off(tally);
        self.up();
    }

    /// kill -9 of the server, under everything that stands on it.
    pub(crate) fn kill(&mut self, tally: &mut Tally) {
        self.unit.kill();
        tally.add(Part::Done, "kill -9", self.kind.name, 1);
    }

    /// What an operator does behind a kill. Nothing may begin that nobody asked for.
    pub(crate) fn recover(&mut self, tally: &mut Tally) {
        self.off(tally);
        self.unit.umount();
        self.unit.gone();
        self.unit.mount();
        let status = self.unit.status();
        let begun = status["operations"].as_array().expect("a list");
        let asked_for = |op: &Value| op["kind"] == "minimerge" || op["kind"] == "minicopy";
        let log = std::fs::read_to_string(self.unit.path("log")).unwrap_or_default();
        assert!(begun.iter().all(asked_for), "{status}\n{log}");
        self.up();
    }

    /// The judges of the whole: the file system's own, and the comparison of all members.
    pub(crate) fn judge(&mut self, tally: &mut Tally) {
        let (kind, fs) = (self.kind, self.fs());
        scrub(&self.unit, kind, &fs, tally);
        self.off(tally);
        self.reunite();
        let device = self.unit.loop_device();
        fsck(&self.unit, kind, &device, tally);
        self.unit.free(&device);
        self.unit.stop();
        self.stopped = true;
        self.unit.assert_equal();
        tally.add(Part::Judged, "cmp of the members", kind.name, 1);
    }

    /// Brings back whoever is away, by minicopy: all had a bitmap.
    fn reunite(&self) {
        self.unit.sh("shadowset wait dsa1 --timeout 80");
        for member in MEMBERS {
            if self.unit.state_of(member) != "source" {
                self.unit.minicopy(member);
            }
        }
    }

    /// A copy of the image of a member that is away, mounted, so that its journal recovers; then `look`, then the judges.
    pub(crate) fn look_at_copy(&self, member: &str, tally: &mut Tally, look: impl FnOnce(&Path)) {
        let (unit, kind) = (&self.unit, self.kind);
        let image = unit.image(member).display();
        unit.sh(&format!("cp --sparse=always {image} $D/copy.img"));
        let copy = unit.path("copy.img").display().to_string();
        let dir = unit.mount_device(&copy, "copy", &format!("-o {}", kind.beside));
        look(&dir);
        scrub(unit, kind, &dir, tally);
        unit.take_away(&Thing::Mount(dir));
        fsck(unit, kind, &copy, tally);
        unit.sh("rm $D/copy.img");
    }

    /// The image itself, as the command that froze it says: every file can be read.
    pub(crate) fn read_image(&self, mount_line: &str, tally: &mut Tally) {
        let unit = &self.unit;
        let line = mount_line.replace(" DIR", " image");
        unit.sh(&format!("mkdir -p image; {line}"));
        let dir = unit.path("image");
        unit.keep(Thing::Mount(dir.clone()));
        unit.sh("find image -xdev -type f -exec cat {} + > /dev/null");
        unit.take_away(&Thing::Mount(dir));
        tally.add(Part::Judged, "frozen image read", self.kind.name, 1);
    }
}

/// Bytes that were written to a block device.
fn written(device: &str) -> u64 {
    let name = device.trim_start_matches("/dev/");
    let path = format!("/sys/block/{name}/stat");
    let stat = std::fs::read_to_string(&path).expect("counters of a device");
    let sectors = stat.split_whitespace().nth(6);
    sectors
        .and_then(|n| n.parse::<u64>().ok())
        .expect("sectors")
        * 512
}

fn fsck(unit: &Unit, kind: &Kind, place: &str, tally: &mut Tally) {
    unit.sh(&format!("{} {place}", kind.fsck));
    tally.add(Part::Judged, kind.fsck, kind.name, 1);
}

/// Reads everything and compares checksums, where a file system has them.
fn scrub(unit: &Unit, kind: &Kind, dir: &Path, tally: &mut Tally) {
    if kind.name != "btrfs" {
        return;
    }
    let said = unit.sh(&format!("btrfs scrub start -B -r {}", dir.display()));
    assert!(said.contains("no errors found"), "{said}");
    // It leaves a record; a copy has another name there than the one that is written in it.
    let mut names = said.split_whitespace().skip_while(|word| *word != "for");
    let id = names.nth(1).expect("the name of the file system");
    unit.sh(&format!("rm -f /var/lib/btrfs/scrub.*.{id}"));
    tally.add(Part::Judged, "btrfs scrub", kind.name, 1);
}
