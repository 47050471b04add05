//! A mounted unit on temporary images, told as a story: `unit.sh("...")`, `unit.command("...")`.

mod control;
mod guard;
mod image;
mod load;
pub(crate) mod needs;
mod run;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use shadowset::io::sys;

pub(crate) use control::{Answer, Refused};
pub(crate) use guard::Thing;
pub(crate) use load::{Fio, Writers, last_writes};
pub(crate) use run::Ran;

use guard::{Guard, LIFE, Watchdog};

/// 2^20 bytes.
pub(crate) const MIB: u64 = 1 << 20;
/// Bytes of a region of 127 blocks.
pub(crate) const REGION: u64 = 127 * 512;
/// Longest time that anything may take to come true.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a unit is made of.
pub(crate) struct Plan {
    size: u64,
    members: usize,
    devices: bool,
    direct: bool,
    protect: &'static str,
    disk: bool,
    options: &'static str,
    starter: &'static str,
    life: Duration,
    place: Option<PathBuf>,
}

impl Plan {
    /// New image files.
    pub(crate) fn new(members: usize, size: u64) -> Self {
        Self {
            size,
            members,
            devices: false,
            direct: false,
            protect: "none",
            disk: false,
            options: "",
            starter: "",
            life: LIFE,
            place: None,
        }
    }

    /// Members that are block devices.
    pub(crate) fn on_devices(mut self) -> Self {
        self.devices = true;
        self
    }

    /// Members past the page cache.
    pub(crate) fn direct(mut self) -> Self {
        self.direct = true;
        self
    }

    /// Leases on the images of members that are away.
    pub(crate) fn leases(mut self) -> Self {
        self.protect = "lease";
        self
    }

    /// Images of members that are away are made immutable.
    pub(crate) fn immutable(mut self) -> Self {
        self.protect = "immutable";
        self
    }

    /// Images on an ext4 file system of their own, whatever that of the test is.
    pub(crate) fn on_a_disk(mut self) -> Self {
        self.disk = true;
        self
    }

    /// Images, their records and the state directory in the directories `images` and `state` of a place.
    pub(crate) fn at(mut self, place: &Path) -> Self {
        self.place = Some(place.to_owned());
        self
    }

    /// What starts the daemon, in front of its own words.
    pub(crate) fn started_by(mut self, starter: &'static str) -> Self {
        self.starter = starter;
        self
    }

    /// Mount options.
    pub(crate) fn options(mut self, options: &'static str) -> Self {
        self.options = options;
        self
    }

    /// Longest life of a daemon, where the usual one is too short.
    pub(crate) fn life(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// Creates the unit and mounts it.
    pub(crate) fn mount(self) -> Unit {
        let mut unit = self.create();
        unit.mount();
        unit
    }

    /// Creates the unit.
    pub(crate) fn create(self) -> Unit {
        let size = self.size;
        let unit = self.prepare();
        unit.sh(&format!("shadowset create dsa1 --size {size}"));
        unit
    }

    /// Everything but the set itself.
    pub(crate) fn prepare(self) -> Unit {
        needs::check();
        let dir = tempfile::Builder::new().prefix("shadowset-").tempdir();
        let dir = dir.expect("a temporary directory");
        let mut unit = Unit {
            paths: Vec::new(),
            options: self.options,
            life: self.life,
            starter: self.starter.to_owned(),
            guard: Mutex::new(Guard::default()),
            pid: None,
            watchdog: None,
            dir,
        };
        unit.sh("chmod 755 $D; mkdir $M $I $D/conf $D/run $D/state");
        unit.guard().images(&unit.path("images"));
        if let Some(place) = &self.place {
            let place = place.display();
            unit.sh(&format!(
                "rmdir $I $D/state; ln -s {place}/images {place}/state $D"
            ));
        }
        if self.disk {
            unit.sh("truncate -s 64M $D/disk; mkfs.ext4 -q -F $D/disk");
            let device = unit.sh("losetup -f --show $D/disk");
            unit.keep(Thing::Loop(device.clone()));
            unit.mount_device(&device, "images", "");
        }
        let image = |n: usize| unit.path(&format!("images/m{}.img", n + 1));
        unit.paths = (0..self.members).map(image).collect();
        if self.devices {
            let device = |path: &PathBuf| PathBuf::from(unit.new_device(path, self.size));
            unit.paths = unit.paths.iter().map(device).collect();
        }
        unit.write_config(self.direct, self.protect);
        unit
    }
}

/// A unit `dsa1` in a temporary directory.
pub(crate) struct Unit {
    paths: Vec<PathBuf>,
    options: &'static str,
    life: Duration,
    starter: String,
    guard: Mutex<Guard>,
    pid: Option<u32>,
    watchdog: Option<Watchdog>,
    dir: tempfile::TempDir,
}

impl Unit {
    /// A mounted unit on new image files.
    pub(crate) fn new(members: usize, size: u64) -> Self {
        Plan::new(members, size).mount()
    }

    fn write_config(&self, direct: bool, protect: &str) {
        let mut text = format!("state_dir = \"{}\"\n", self.path("state").display());
        for (n, path) in self.paths.iter().enumerate() {
            let io = if direct { "direct" } else { "buffered" };
            let scb = self.path(&format!("images/m{}.scb", n + 1));
            text.push_str(&format!(
                "[[member]]\nname = \"m{}\"\npath = \"{}\"\nscb = \"{}\"\nio = \"{io}\"\nprotect = \"{protect}\"\n",
                n + 1,
                path.display(),
                scb.display()
            ));
        }
        std::fs::write(self.path("conf/dsa1.toml"), text).expect("the configuration");
    }

    /// A path in the unit's own directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The file of the virtual unit.
    pub(crate) fn file(&self) -> PathBuf {
        self.path("mnt/dsa1")
    }

    /// The image of a member `m1`, `m2` and so on.
    pub(crate) fn image(&self, member: &str) -> &Path {
        let number: usize = member[1..].parse().expect("the name is m and a number");
        &self.paths[number - 1]
    }

    /// The daemon.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.expect("the unit is mounted")
    }

    /// What starts the daemon from now on, in front of its own words.
    pub(crate) fn start_by(&mut self, starter: &str) {
        starter.clone_into(&mut self.starter);
    }

    fn mount_line(&self) -> String {
        let options = match self.options {
            "" => String::new(),
            options => format!("-o {options}"),
        };
        let starter = &self.starter;
        let line = format!("{starter} shadowset mount dsa1 $M {options} --log $D/log --json");
        // A starter may stay beside the daemon, and must not hold the ends of our pipes.
        format!(
            "code=0; {line} > $D/said 2> $D/complaint || code=$?
            cat $D/said; cat $D/complaint >&2; exit $code"
        )
    }

    /// Mounts the unit.
    pub(crate) fn mount(&mut self) {
        let answer = self.sh(&self.mount_line());
        self.mounted(&answer);
    }

    /// Mounts the unit, or gives the refusal.
    pub(crate) fn try_mount(&mut self) -> Result<(), Ran> {
        let ran = self.try_sh(&self.mount_line());
        if ran.code != 0 {
            return Err(ran);
        }
        self.mounted(&ran.out);
        Ok(())
    }

    fn mounted(&mut self, answer: &str) {
        let answer: Value = serde_json::from_str(answer).expect("JSON");
        let pid = answer["pid"].as_u64().and_then(|pid| pid.try_into().ok());
        self.pid = Some(pid.expect("a process id"));
        self.guard().daemon(&self.path("mnt"), self.pid());
        self.watchdog = Some(Watchdog::over(self.pid(), self.life));
    }

    /// The daemon stands still.
    pub(crate) fn halt(&self) {
        self.sh(&format!("kill -STOP {}", self.pid()));
    }

    /// Kills the daemon and waits for its end.
    pub(crate) fn kill(&self) {
        let pid = self.pid();
        self.sh(&format!(
            "kill -9 {pid}; timeout 60 tail -s 0.02 --pid={pid} -f /dev/null"
        ));
    }

    /// Unmounts and waits for the daemon's end.
    pub(crate) fn stop(&mut self) {
        // A program that another test starts just now may still hold a file of ours.
        self.sh("shadowset stop dsa1 --wait");
        self.gone();
    }

    /// Stops the unit as `stop` does, if that works. A daemon that could not mark its members clean has ended too.
    pub(crate) fn try_stop(&mut self) -> Option<()> {
        let stopped = self.try_sh("shadowset stop dsa1 --wait").code == 0;
        if stopped || self.try_sh("grep -qF \" $M \" /proc/self/mounts").code != 0 {
            self.gone();
        }
        stopped.then_some(())
    }

    /// Whether there is a daemon, as far as the test knows.
    pub(crate) fn is_mounted(&self) -> bool {
        self.pid.is_some()
    }

    /// umount(8), as soon as nobody holds a file of the mount.
    pub(crate) fn umount(&self) {
        eventually("it can be unmounted", || self.try_sh("umount $M").code == 0);
    }

    /// Notes that the daemon has ended.
    pub(crate) fn gone(&mut self) {
        self.pid = None;
        self.watchdog = None;
        self.guard().daemon_gone();
    }

    /// Stops the unit and compares its members byte for byte.
    pub(crate) fn stop_and_compare(&mut self) {
        self.stop();
        self.assert_equal();
    }

    /// Compares the images of all members.
    pub(crate) fn assert_equal(&self) {
        for pair in self.paths.windows(2) {
            let (a, b) = (pair[0].display(), pair[1].display());
            self.sh(&format!("cmp {a} {b}"));
        }
    }

    /// A loop device over the unit.
    pub(crate) fn loop_device(&self) -> String {
        let device = self.sh("shadowset loop attach dsa1");
        self.keep(Thing::Loop(device.clone()));
        device
    }

    /// Frees a loop device over the unit.
    pub(crate) fn free(&self, device: &str) {
        self.take_away(&Thing::Loop(device.to_owned()));
    }

    /// Makes a file system. mkfs.btrfs looks at all that is mounted, also at the devices of other tests, whose server
    /// may just have been killed.
    pub(crate) fn mkfs(&self, mkfs: &str, device: &str) {
        let line = format!("{mkfs} {device}");
        match mkfs.starts_with("mkfs.btrfs") {
            true => eventually("a btrfs is made", || self.try_sh(&line).code == 0),
            false => drop(self.sh(&line)),
        }
    }

    /// Notes that a loop device has been freed by the test itself.
    pub(crate) fn forget(&self, device: &str) {
        self.guard().forget(&Thing::Loop(device.to_owned()));
    }

    /// Notes that the test itself has taken a mount away from `$D/<name>`.
    pub(crate) fn forget_mount(&self, name: &str) {
        self.guard().forget(&Thing::Mount(self.path(name)));
    }

    /// A loop device over a new file that has nothing to do with the unit.
    fn new_device(&self, file: &Path, size: u64) -> String {
        let file = file.display();
        let device = self.sh(&format!(
            "truncate -s {size} {file}; losetup -f --show {file}"
        ));
        self.keep(Thing::Loop(device.clone()));
        device
    }

    fn guard(&self) -> MutexGuard<'_, Guard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers what has to be taken away in the end.
    pub(crate) fn keep(&self, thing: Thing) {
        self.guard().keep(thing);
    }

    /// Notes that something has been taken away by the test itself.
    pub(crate) fn forget_thing(&self, thing: &Thing) {
        self.guard().forget(thing);
    }

    /// Takes something away that was registered.
    pub(crate) fn take_away(&self, thing: &Thing) {
        self.guard().take_away(thing);
    }

    /// Mounts a file system on `$D/<name>`.
    pub(crate) fn mount_device(&self, device: &str, name: &str, options: &str) -> PathBuf {
        let dir = self.path(name);
        let shown = dir.display();
        self.sh(&format!(
            "mkdir -p {shown}; mount {options} {device} {shown}"
        ));
        self.keep(Thing::Mount(dir.clone()));
        dir
    }

    /// The whole state.
    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.read("status.json")).expect("status.json is JSON")
    }

    /// A file below `.shadow`.
    pub(crate) fn read(&self, name: &str) -> String {
        let path = self.path("mnt/.shadow").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Detaches a member with a bitmap.
    pub(crate) fn detach(&self, member: &str) -> Answer {
        self.accepted(&format!("detach {member} policy=minicopy"))
    }

    /// Attaches a member by minicopy, waits for the end and returns the operation.
    pub(crate) fn minicopy(&self, member: &str) -> Value {
        let answer = self.accepted(&format!("attach {member} policy=minicopy"));
        assert_eq!(answer.text("kind"), "minicopy", "{}", answer.0);
        let op = self.finished(answer.number("operation"));
        assert_eq!(
            op["total_bytes"].as_u64(),
            Some(answer.number("bytes")),
            "{op}"
        );
        assert_eq!(op["copied_bytes"], op["total_bytes"], "{op}");
        op
    }

    /// Waits until an operation has ended well and returns it.
    pub(crate) fn finished(&self, number: u64) -> Value {
        // A verify that has found something ends with 1.
        self.sh(&format!(
            "shadowset op wait dsa1 {number} --timeout 60 || [ $? = 1 ]"
        ));
        let status = self.status();
        let operations = status["operations"].as_array().expect("a list");
        let op = operations.iter().find(|op| op["id"] == number);
        let op = op
            .unwrap_or_else(|| panic!("operation {number} is forgotten"))
            .clone();
        assert_eq!(op["state"], "done", "{op}");
        op
    }

    /// Waits until nothing is copied or merged; who has been expelled may stay away.
    pub(crate) fn rest(&self) {
        let runs = |op: &Value| op["finished"].is_null();
        eventually("no copy runs", || {
            let status = self.status();
            !status["operations"]
                .as_array()
                .expect("a list")
                .iter()
                .any(runs)
        });
    }

    /// The state of a member.
    pub(crate) fn state_of(&self, member: &str) -> String {
        self.read(&format!("members/{member}/state"))
            .trim()
            .to_owned()
    }

    /// A number from the bitmap of a member.
    pub(crate) fn bitmap(&self, member: &str, name: &str) -> u64 {
        let text = self.read(&format!("members/{member}/bitmap/{name}"));
        text.trim().parse().expect("a number")
    }
}

/// A number from the environment.
pub(crate) fn asked(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Waits for a while, to look at something again.
pub(crate) fn pause(time: Duration) {
    sys::poll(&[], Some(time)).expect("poll");
}

/// Waits until something is so; the state is looked at again after a short while.
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "still not so: {what}");
        sys::poll(&[], Some(Duration::from_millis(5))).expect("poll");
    }
}
