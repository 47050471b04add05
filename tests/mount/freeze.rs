//! Frozen detach: what the image holds, and that nothing stays frozen, whoever is stopped or killed meanwhile.

use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bed::{MIB, Thing, Unit, eventually, pause};

/// A unit with a file system on it, mounted on `$D/fs`.
struct Ground {
    unit: Unit,
    device: String,
    fs: PathBuf,
}

impl Ground {
    fn new(mkfs: &str, size: u64) -> Self {
        let unit = Unit::new(3, size);
        let device = unit.loop_device();
        unit.mkfs(mkfs, &device);
        let fs = unit.mount_device(&device, "fs", "");
        Self { unit, device, fs }
    }

    fn ext4() -> Self {
        Self::new("mkfs.ext4 -q", 64 * MIB)
    }

    /// Takes everything away and compares the members.
    fn end(mut self) {
        self.unit.take_away(&Thing::Mount(self.fs.clone()));
        self.unit.free(&self.device);
        self.unit.stop_and_compare();
    }

    /// Runs the program; it has to end with this code.
    fn shadowset(&self, code: i32, line: &str) -> (Value, String) {
        let ran = self.unit.try_sh(&format!("shadowset {line} --json"));
        assert_eq!(ran.code, code, "{line}: {ran:?}");
        let value = serde_json::from_str(&ran.out);
        let value = value.unwrap_or_else(|e| panic!("{line}: {e}: {ran:?}"));
        (value, ran.err)
    }

    fn is_refused(&self, code: i32, line: &str, says: &str) {
        let (value, _) = self.shadowset(code, line);
        let sentence = value["sentence"].as_str().expect("a sentence");
        assert!(sentence.contains(says), "{line}: {value}");
        assert_eq!(self.unit.state_of("m3"), "source", "{line}");
    }

    /// Starts a frozen detach that is stopped before anything is frozen; the freezing goes on without it.
    fn start_and_stop(&self, limit: &str) -> Child {
        // The shell's parent is the process that freezes, and the command line is the parent of that.
        let stop = "kill -STOP $(cut -d' ' -f4 /proc/$PPID/stat)";
        let mut command = self.unit.prepared("shadowset");
        command.args([
            "detach",
            "dsa1",
            "m3",
            "--freeze",
            "--freeze-timeout",
            limit,
        ]);
        command.args(["--freeze-cmd", stop]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("it starts")
    }

    /// Waits until a write to the file system hangs.
    fn frozen(&self) -> Probe {
        let mut last = None;
        eventually("the file system is frozen", || {
            last = Some(Probe::start(self)).filter(|probe| probe.0.is_some());
            last.is_some()
        });
        last.expect("a write that hangs")
    }
}

/// A write that hangs, as long as its file system is frozen.
struct Probe(Option<Child>);

impl Probe {
    fn start(ground: &Ground) -> Self {
        let mut command = ground.unit.prepared("touch");
        let mut child = command.arg(ground.fs.join("probe")).spawn().expect("touch");
        for _ in 0..100 {
            pause(Duration::from_millis(10));
            if child.try_wait().expect("a child").is_some() {
                return Self(None);
            }
        }
        Self(Some(child))
    }

    /// Waits for the end of the write.
    fn thawed(mut self, since: Instant, limit: Duration) {
        let mut child = self.0.take().expect("it hangs");
        eventually("the file system is thawed", || {
            child.try_wait().expect("a child").is_some()
        });
        let time = since.elapsed();
        // Room for a busy machine between the thaw and here; a wrong one comes after a minute or never.
        assert!(time < limit + Duration::from_secs(20), "{time:?}");
    }
}

fn signal(name: &str, pid: u32) {
    let mut kill = std::process::Command::new("kill");
    let sent = kill.args([format!("-{name}"), pid.to_string()]).status();
    assert!(sent.expect("kill").success(), "{name} to {pid}");
}

/// The process that freezes for a command line.
fn freezer_of(cli: &Child) -> u32 {
    let path = format!("/proc/{0}/task/{0}/children", cli.id());
    let children = std::fs::read_to_string(path).expect("its children");
    children.trim().parse().expect("it has one child")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// 400 files that nobody has flushed, from the image of a member that has left.
fn holds_every_file(mkfs: &str, size: u64) {
    let ground = Ground::new(mkfs, size);
    let unit = &ground.unit;
    unit.sh("mkdir fs/files; cd fs/files
        for n in $(seq 400); do head -c 20000 /dev/urandom > $n; done; sha256sum * > $D/sums");
    let plan = ground.shadowset(0, "detach dsa1 m3 --freeze --dry-run").0;
    assert_eq!(plan["freeze"][0].as_str(), ground.fs.to_str(), "{plan}");
    assert_eq!(unit.state_of("m3"), "source");
    let (told, _) = ground.shadowset(0, "detach dsa1 m3 --policy minicopy --freeze");
    assert_eq!(told["frozen"][0]["mountpoint"].as_str(), ground.fs.to_str());
    assert!(told["frozen"][0]["seconds"].as_f64() > Some(0.0), "{told}");
    unit.sh("touch fs/later; sync -f fs");
    let line = told["mount"][0].as_str().expect("a command").to_owned();
    unit.sh(&format!("mkdir image; {}", line.replace(" DIR", " image")));
    let image = unit.path("image");
    unit.keep(Thing::Mount(image.clone()));
    let count = unit.sh("cd image/files; sha256sum --quiet -c $D/sums; ls | wc -l");
    assert_eq!(count, "400");
    assert!(
        !image.join("later").exists(),
        "the image is mounted, not the unit"
    );
    unit.take_away(&Thing::Mount(image));
    // Which it could not be if it had been written to.
    unit.minicopy("m3");
    ground.end();
}

#[test]
fn a_frozen_ext4_is_whole_on_the_image() {
    holds_every_file("mkfs.ext4 -q", 64 * MIB);
}

#[test]
fn a_frozen_xfs_is_whole_on_the_image() {
    holds_every_file("mkfs.xfs -q -f", 320 * MIB);
}

#[test]
fn a_frozen_btrfs_is_whole_on_the_image() {
    holds_every_file("mkfs.btrfs -q -f", 128 * MIB);
}

#[test]
fn what_cannot_be_frozen_is_refused_and_nothing_leaves() {
    let ground = Ground::ext4();
    let unit = &ground.unit;
    let detach = "detach dsa1 m3 --freeze";
    ground.is_refused(3, "detach dsa1 m3 --freeze=images", "is no mount point");
    ground.is_refused(
        3,
        "detach dsa1 m3 --freeze=$M",
        "is not mounted from a loop device",
    );
    ground.is_refused(3, "detach dsa1 m9 --freeze", "m9");
    ground.is_refused(2, "detach dsa1 m3 --with dsa1:m2", "--with needs");
    // Somebody else has frozen it, and it stays so.
    unit.sh("fsfreeze -f fs");
    ground.is_refused(4, detach, "is frozen already");
    unit.sh("fsfreeze -u fs");
    // Writes that wait for the end of a stall would keep the freezing waiting.
    unit.accepted("stall 60");
    ground.is_refused(4, detach, "writes to dsa1 are held");
    unit.accepted("unstall");
    unit.take_away(&Thing::Mount(ground.fs.clone()));
    ground.is_refused(3, detach, "no file system is mounted");
    // A program that has claimed the device.
    let claim = format!(
        "f = os.open('{}', os.O_RDONLY | os.O_EXCL)
p = os.popen('shadowset {detach} --json')
assert 'is in use, but not by a mount' in p.read()
assert p.close() >> 8 == 4",
        ground.device
    );
    unit.python(&claim);
    assert_eq!(unit.state_of("m3"), "source");
    unit.free(&ground.device);
}

#[test]
fn a_server_that_writes_to_what_is_to_be_frozen_is_refused() {
    let ground = Ground::ext4();
    let unit = &ground.unit;
    // A second unit whose log is on the first one's file system: nothing of the first is in its own way.
    unit.sh(
        "sed 's,images/,&two-,; s,/state\",/state2\",' conf/dsa1.toml > conf/dsa2.toml
        shadowset create dsa2 --size 8M; mkdir mnt2
        shadowset mount dsa2 mnt2 --log fs/log",
    );
    unit.keep(Thing::Mount(unit.path("mnt2")));
    let says = "the server of dsa2 has ";
    ground.is_refused(4, "detach dsa1 m3 --freeze --with dsa2:m3", says);
    ground.shadowset(0, "detach dsa1 m3 --freeze");
    unit.sh("shadowset stop dsa2 --wait");
    unit.forget_mount("mnt2");
    unit.minicopy("m3");
    ground.end();
}

/// Program, directory, output and log of the command line are on what it freezes.
#[test]
fn a_command_line_on_the_frozen_file_system_does_not_wait_for_itself() {
    let ground = Ground::new("mkfs.ext4 -q", 256 * MIB);
    let unit = &ground.unit;
    unit.sh("cp $(command -v shadowset) fs/; cd fs
        ./shadowset detach dsa1 m3 --freeze --freeze-timeout 20 > out 2> err
        grep -q '^frozen .* ext4 ' out; ! [ -s err ]
        ./shadowset attach dsa1 m3 --policy minicopy --wait > out 2> err
        ./shadowset backup dsa1 m3 -- cp {} $D/copy.img > out 2> err; ! [ -s err ]");
    ground.end();
}

#[test]
fn commands_of_the_operator_run_before_and_behind() {
    let ground = Ground::ext4();
    let unit = &ground.unit;
    unit.take_away(&Thing::Mount(ground.fs.clone()));
    let hooks = "--freeze-cmd 'echo freeze $SHADOWSET_UNIT $SHADOWSET_MEMBER >> story'";
    let thaw = "--thaw-cmd 'cat $S/members/m3/state >> story'";
    ground.shadowset(
        0,
        &format!("detach dsa1 m3 {hooks} {thaw} --exec 'echo $SHADOWSET_IMAGE >> story'"),
    );
    let image = unit.image("m3").display().to_string();
    assert_eq!(
        unit.sh("cat story"),
        format!("freeze dsa1 m3\ndetached\n{image}")
    );
    unit.minicopy("m3");
    unit.sh("rm story");
    // Who has begun to come to rest is told to go on, also when that has failed.
    ground.is_refused(
        1,
        &format!("detach dsa1 m3 --freeze-cmd 'exit 3' {thaw}"),
        "exit status: 3",
    );
    let hanging = format!("detach dsa1 m3 --freeze-cmd 'sleep 60' {thaw} --freeze-timeout 1");
    ground.is_refused(1, &hanging, "has not ended in time");
    assert_eq!(unit.sh("cat story"), "source\nsource");
    let (told, _) = ground.shadowset(1, "detach dsa1 m3 --freeze-cmd true --thaw-cmd 'exit 4'");
    let says = told["sentence"].as_str().expect("a sentence");
    assert!(
        says.contains("m3 is detached, but the command of --thaw-cmd"),
        "{says}"
    );
    unit.minicopy("m3");
    let ran = unit.try_sh("shadowset detach dsa1 m3 --exec 'exit 9'");
    assert_eq!(
        (ran.code, unit.state_of("m3").as_str()),
        (9, "detached"),
        "{ran:?}"
    );
    unit.free(&ground.device);
}

#[test]
fn a_stopped_server_keeps_nothing_frozen() {
    let ground = Ground::ext4();
    let limit = Duration::from_secs(10);
    for _ in 0..3 {
        let since = Instant::now();
        let mut cli = ground.start_and_stop("10");
        let probe = ground.frozen();
        ground.unit.halt();
        probe.thawed(since, limit);
        signal("CONT", cli.id());
        let code = cli.wait().expect("a child").code();
        assert_eq!(code, Some(124));
        assert_eq!(ground.unit.state_of("m3"), "source");
    }
    // Stopped before the freezing has come to its end, which then waits for it.
    ground.unit.sh("head -c 1M /dev/urandom > fs/new");
    let stop = format!("--freeze-cmd 'kill -STOP {}'", ground.unit.pid());
    let line = format!("detach dsa1 m3 --freeze --freeze-timeout 2 {stop}");
    ground.is_refused(124, &line, "has not come to rest in 2 s");
    ground.unit.sh("touch fs/thawed");
    ground.shadowset(0, "detach dsa1 m3 --freeze");
    ground.unit.minicopy("m3");
    ground.end();
}

#[test]
fn a_killed_server_keeps_nothing_frozen() {
    for _ in 0..3 {
        let mut ground = Ground::ext4();
        let since = Instant::now();
        let mut cli = ground.start_and_stop("10");
        let probe = ground.frozen();
        signal("KILL", ground.unit.pid());
        probe.thawed(since, Duration::from_secs(10));
        signal("CONT", cli.id());
        assert_ne!(cli.wait().expect("a child").code(), Some(0));
        ground.unit.gone();
        ground.unit.sh("umount -l fs");
    }
}

#[test]
fn a_command_line_that_is_stopped_or_killed_keeps_nothing_frozen() {
    let ground = Ground::ext4();
    let limit = Duration::from_secs(10);
    for _ in 0..3 {
        // Killed: at once.
        let mut cli = ground.start_and_stop("60");
        let probe = ground.frozen();
        signal("KILL", cli.id());
        probe.thawed(Instant::now(), limit);
        cli.wait().expect("a child");
        // Stopped: in time, and it knows when it goes on.
        let since = Instant::now();
        let cli = ground.start_and_stop("10");
        ground.frozen().thawed(since, limit);
        signal("CONT", cli.id());
        let output = cli.wait_with_output().expect("a child");
        assert_eq!(output.status.code(), Some(124), "{output:?}");
        assert!(
            text(&output).contains("has not come to rest in 10 s"),
            "{output:?}"
        );
        assert_eq!(ground.unit.state_of("m3"), "source");
    }
    ground.end();
}

#[test]
fn a_freezing_process_that_is_stopped_or_killed_keeps_nothing_frozen() {
    let ground = Ground::ext4();
    let since = Instant::now();
    let cli = ground.start_and_stop("10");
    let probe = ground.frozen();
    signal("STOP", freezer_of(&cli));
    signal("CONT", cli.id());
    // The limit is the freezing process's own, and a second is given to it.
    probe.thawed(since, Duration::from_secs(11));
    let output = cli.wait_with_output().expect("a child");
    assert_eq!(
        output.status.code(),
        Some(0),
        "it was frozen all the time: {output:?}"
    );
    ground.unit.minicopy("m3");
    let cli = ground.start_and_stop("60");
    let probe = ground.frozen();
    let killed = Instant::now();
    signal("KILL", freezer_of(&cli));
    signal("CONT", cli.id());
    probe.thawed(killed, Duration::from_secs(10));
    let output = cli.wait_with_output().expect("a child");
    let is_away = ground.unit.state_of("m3") == "detached";
    // It has ended before the detach, which may have come about all the same.
    let says = ["its time", "what a crash would have left"][usize::from(is_away)];
    assert_ne!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output).contains(says), "{output:?}");
    if is_away {
        ground.unit.minicopy("m3");
    }
    ground.end();
}

/// What it leaves frozen is thawed here, and then the member has not left yet.
#[test]
fn a_freezing_process_that_ends_before_the_member_has_left_is_told_of() {
    let unit = Unit::new(3, 4 * MIB);
    let stop = format!(
        "kill -STOP {}; echo $PPID > freezer.new; mv freezer.new freezer",
        unit.pid()
    );
    let mut command = unit.prepared("shadowset");
    command.args(["detach", "dsa1", "m3", "--freeze-timeout", "60"]);
    command.args(["--freeze-cmd", &stop, "--thaw-cmd", "touch thawed"]);
    let cli = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let cli = cli.expect("it starts");
    eventually("the server is stopped", || unit.path("freezer").exists());
    // The command line asks the server, which does not answer yet.
    pause(Duration::from_secs(1));
    signal("KILL", freezer_of(&cli));
    eventually("it goes on", || unit.path("thawed").exists());
    signal("CONT", unit.pid());
    let output = cli.wait_with_output().expect("a child");
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    let says = "its image may hold what a crash would have left";
    assert!(text(&output).contains(says), "{output:?}");
    assert_eq!(unit.state_of("m3"), "detached");
}

#[test]
fn what_somebody_else_has_frozen_is_left_alone_when_the_freezing_process_is_killed() {
    let ground = Ground::ext4();
    let kill = "--freeze-cmd 'fsfreeze -f fs; kill -9 $PPID; sleep 1'";
    let line = format!("detach dsa1 m3 --freeze {kill}");
    ground.is_refused(1, &line, "has ended before its time");
    // Which fails where nothing is frozen.
    ground.unit.sh("fsfreeze -u fs");
    ground.end();
}

#[test]
fn a_command_behind_may_take_longer_than_anything_is_at_rest() {
    let ground = Ground::ext4();
    let hooks = "--freeze-cmd true --thaw-cmd 'sleep 4; echo thawed >> story' --freeze-timeout 1";
    ground.shadowset(0, &format!("detach dsa1 m3 --freeze {hooks}"));
    assert_eq!(ground.unit.sh("cat story"), "thawed");
    ground.unit.minicopy("m3");
    ground.end();
}

#[test]
fn all_partitions_are_frozen_or_the_one_that_is_named() {
    let mut unit = Unit::new(3, 64 * MIB);
    let device = unit.loop_device();
    // In blocks of 512 bytes. Where nobody makes nodes, the test does.
    unit.sh(&format!(
        "mkdir image
        for n in 1 2; do
            addpart {device} $n $((n * 40960)) 40960; p={device}p$n; s=/sys/class/block/${{p#/dev/}}
            [ -e $p ] || mknod $p b $(tr : ' ' < $s/dev); mkfs.ext4 -q $p
        done"
    ));
    let mounts = [1, 2].map(|n| {
        let dir = unit.mount_device(&format!("{device}p{n}"), &format!("fs{n}"), "");
        unit.sh(&format!("echo {n} > fs{n}/file"));
        dir
    });
    let told = unit.sh("shadowset detach dsa1 m3 --freeze --json");
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["frozen"].as_array().map(Vec::len), Some(2), "{told}");
    for n in [1, 2] {
        let line = told["mount"][n - 1].as_str().expect("a command");
        let look = format!(
            "{}; cat image/file; umount image",
            line.replace(" DIR", " image")
        );
        assert_eq!(unit.sh(&look), n.to_string(), "{line}");
    }
    unit.minicopy("m3");
    let told = unit.sh("shadowset detach dsa1 m3 --freeze=fs2 --dry-run --json");
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["freeze"].as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!(told["freeze"][0].as_str(), mounts[1].to_str());
    for dir in mounts {
        unit.take_away(&Thing::Mount(dir));
    }
    unit.sh(&format!(
        "delpart {device} 1; delpart {device} 2; rm -f {device}p[12]"
    ));
    unit.free(&device);
    unit.stop_and_compare();
}

/// The server takes the command when it is continued, and that is when everything goes on.
#[test]
fn a_detach_that_may_have_come_too_late_is_told_of() {
    let ground = Ground::new("mkfs.btrfs -q -f", 128 * MIB);
    let unit = &ground.unit;
    // So that freezing has nothing to write, and is done while the server is stopped.
    unit.sh("sync -f fs; fsfreeze -f fs; fsfreeze -u fs");
    let stop = format!("--freeze-cmd 'kill -STOP {}'", unit.pid());
    let line = format!("detach dsa1 m3 --freeze --freeze-timeout 2 {stop}");
    let (told, _) = ground.shadowset(124, &line);
    let says = told["sentence"].as_str().expect("a sentence");
    // A btrfs that had something to write after all was never at rest.
    let expected = match unit.state_of("m3").as_str() {
        "detached" => "its image may hold what a crash would have left",
        _ => "has not come to rest in 2 s",
    };
    assert!(says.contains(expected), "{says}");
    unit.sh("touch fs/thawed");
    if unit.state_of("m3") == "detached" {
        unit.minicopy("m3");
    }
    ground.end();
}

#[test]
fn members_of_two_units_leave_at_one_moment() {
    let ground = Ground::ext4();
    let unit = &ground.unit;
    unit.sh(
        "sed 's,images/,&two-,; s,/state\",/state2\",' conf/dsa1.toml > conf/dsa2.toml
        shadowset create dsa2 --size 64M; mkdir mnt2 fs2 image image2
        shadowset mount dsa2 mnt2 --log log2",
    );
    unit.keep(Thing::Mount(unit.path("mnt2")));
    let device = unit.sh("d=$(shadowset loop attach dsa2); mkfs.ext4 -q $d; echo $d");
    unit.keep(Thing::Loop(device.clone()));
    let fs2 = unit.mount_device(&device, "fs2", "");
    // A number goes to one file system, then to the other.
    let script = "n=0; while :; do n=$((n+1)); echo $n >> fs/n; echo $n >> fs2/n; done";
    let mut writer = unit.prepared("bash");
    let mut writer = writer.args(["-c", script]).spawn().expect("a shell");
    eventually("it writes", || unit.try_sh("test -s fs2/n").code == 0);
    let (told, _) = ground.shadowset(0, "detach dsa1 m3 --freeze --with dsa2:m2");
    assert_eq!(told["with"][0]["unit"], "dsa2", "{told}");
    assert_eq!(told["frozen"].as_array().map(Vec::len), Some(2), "{told}");
    let _ = writer.kill();
    writer.wait().expect("a child");
    let lines = [&told["mount"][0], &told["with"][0]["mount"][0]];
    let [one, two] = lines.map(|line| line.as_str().expect("a command").to_owned());
    unit.sh(&format!(
        "{}; {}",
        one.replace(" DIR", " image"),
        two.replace(" DIR", " image2")
    ));
    unit.keep(Thing::Mount(unit.path("image")));
    unit.keep(Thing::Mount(unit.path("image2")));
    let numbers = unit.sh("tail -qn1 image/n image2/n");
    let numbers: Vec<u64> = numbers
        .lines()
        .map(|n| n.parse().expect("a number"))
        .collect();
    assert!(
        numbers[0] == numbers[1] || numbers[0] == numbers[1] + 1,
        "{numbers:?}"
    );
    unit.take_away(&Thing::Mount(unit.path("image2")));
    unit.take_away(&Thing::Mount(unit.path("image")));
    unit.take_away(&Thing::Mount(fs2));
    unit.take_away(&Thing::Loop(device));
    unit.sh("shadowset stop dsa2 --wait");
    unit.forget_mount("mnt2");
    unit.minicopy("m3");
    ground.end();
}
