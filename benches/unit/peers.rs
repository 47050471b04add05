//! What people would take in place of ours, where it is installed: `make bench-peers`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::target::{Ground, Started, images};
use crate::things::{Result, Shell, Thing, Things, is_mounted};

/// Room for what btrfs keeps beside a file that is written anew and anew.
const SPARE: u64 = 512 << 20;

/// Whether these programs can be found.
fn need(tools: &[&str]) -> Result<()> {
    let usual = std::env::var("PATH").unwrap_or_default();
    let places: Vec<&str> = usual.split(':').chain(["/usr/sbin", "/sbin"]).collect();
    let there = |tool: &&&str| {
        places
            .iter()
            .any(|place| Path::new(place).join(tool).exists())
    };
    match tools.iter().find(|tool| !there(tool)) {
        Some(tool) => Err(format!("{tool} is not installed: make bench-peers")),
        None => Ok(()),
    }
}

/// One file, no mirror: the file plugin of nbdkit, and nbdfuse.
pub(crate) fn nbdfuse(ground: Ground<'_>) -> Result<Started> {
    need(&["nbdkit", "nbdfuse"])?;
    let image = images(&ground, 1)?;
    let socket = ground.dir.join("socket");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit
        .arg("--foreground")
        .arg("--unix")
        .arg(&socket)
        .arg("file")
        .args(image);
    mount_nbd(ground, &socket, &mut nbdkit)
}

/// A quorum of two files, by NBD to nbdfuse.
pub(crate) fn quorum(ground: Ground<'_>) -> Result<Started> {
    need(&["qemu-storage-daemon", "nbdfuse"])?;
    let socket = ground.dir.join("socket");
    let mut daemon = storage_daemon(&images(&ground, 2)?);
    daemon
        .arg("--nbd-server")
        .arg(format!("addr.type=unix,addr.path={}", socket.display()));
    daemon.args([
        "--export",
        "type=nbd,id=unit,name=,node-name=unit,writable=on",
    ]);
    mount_nbd(ground, &socket, &mut daemon)
}

/// The same quorum as a file by QEMU itself.
pub(crate) fn qsd(ground: Ground<'_>) -> Result<Started> {
    need(&["qemu-storage-daemon"])?;
    let file = ground.dir.join("unit");
    File::create(&file).map_err(|e| e.to_string())?;
    let mut daemon = storage_daemon(&images(&ground, 2)?);
    let place = file.display();
    daemon.arg("--export");
    daemon.arg(format!(
        "type=fuse,id=unit,node-name=unit,mountpoint={place},writable=on,growable=off"
    ));
    let pid = mounted_by(&mut daemon, &file, ground.shell, ground.things)?;
    let version = ground
        .shell
        .run(Command::new("qemu-storage-daemon").arg("--version"))?;
    let version = version.lines().next().unwrap_or_default();
    Ok(Started {
        files: vec![file],
        pids: vec![pid],
        note: Some(format!(
            "{version}; with two requests in flight 7.2 and 10.0 write wrong bytes, so that its figures are of \
            work that is not all done"
        )),
    })
}

fn storage_daemon(images: &[PathBuf]) -> Command {
    let mut daemon = Command::new("qemu-storage-daemon");
    let mut children = String::new();
    for (n, image) in images.iter().enumerate() {
        let node = format!(
            "driver=file,node-name=image{n},filename={},aio=threads",
            image.display()
        );
        daemon.args(["--blockdev", &node]);
        daemon.args([
            "--blockdev",
            &format!("driver=raw,node-name=member{n},file=image{n}"),
        ]);
        children.push_str(&format!(",children.{n}=member{n}"));
    }
    let quorum =
        format!("driver=quorum,node-name=unit,vote-threshold=1,read-pattern=fifo{children}");
    daemon.args(["--blockdev", &quorum]);
    daemon
}

/// Starts a server at a socket, and nbdfuse over it.
fn mount_nbd(ground: Ground<'_>, socket: &Path, server: &mut Command) -> Result<Started> {
    let place = ground.dir.join("mnt");
    fs::create_dir(&place).map_err(|e| e.to_string())?;
    let serves = ground
        .shell
        .stay(ground.things, server, || socket.exists())?;
    let file = place.join("unit");
    let mut nbdfuse = Command::new("nbdfuse");
    nbdfuse.arg(&file).arg("--unix").arg(socket);
    let mounts = mounted_by(&mut nbdfuse, &place, ground.shell, ground.things)?;
    Ok(Started {
        files: vec![file],
        pids: vec![serves, mounts],
        note: None,
    })
}

/// Starts a program that mounts by itself. It may do so late: its mount is taken away behind it.
fn mounted_by(
    daemon: &mut Command,
    place: &Path,
    shell: &Shell,
    things: &mut Things,
) -> Result<u32> {
    things.keep(Thing::Mount(place.to_owned()));
    shell.stay(things, daemon, || is_mounted(place))
}

/// A file on a btrfs raid1 over two loop devices; all in the kernel.
pub(crate) fn btrfs(ground: Ground<'_>) -> Result<Started> {
    need(&["mkfs.btrfs", "btrfs"])?;
    let (size, place) = (ground.options.size, ground.dir.join("mnt"));
    fs::create_dir(&place).map_err(|e| e.to_string())?;
    let mut disks = Vec::new();
    for image in images(&ground, 2)? {
        let long = File::options().write(true).open(&image);
        let long = long.and_then(|file| file.set_len(size * 2 + SPARE));
        long.map_err(|e| e.to_string())?;
        disks.push(ground.things.attach(&image)?);
    }
    let mut mkfs = Command::new("mkfs.btrfs");
    mkfs.args(["-q", "-f", "-d", "raid1", "-m", "raid1"])
        .args(&disks);
    ground.shell.run(&mut mkfs)?;
    let known = disks.iter().cloned().map(Thing::Known);
    known.for_each(|disk| ground.things.keep(disk));
    let mut mount = Command::new("mount");
    let both: Vec<_> = disks
        .iter()
        .map(|disk| format!("device={}", disk.display()))
        .collect();
    mount
        .args(["-t", "btrfs", "-o", &both.join(",")])
        .args(disks.first())
        .arg(&place);
    ground.shell.set_up(&mut mount)?;
    ground.things.keep(Thing::Mount(place.clone()));
    let file = place.join("unit");
    let made = File::create(&file).and_then(|file| file.set_len(size));
    made.map_err(|e| e.to_string())?;
    Ok(Started {
        files: vec![file],
        ..Started::default()
    })
}
