//! What the tests need of the machine: a loud failure names what is missing.

use std::path::Path;
use std::process::Command;
use std::sync::Once;

/// A program and the Debian package that brings it.
const TOOLS: [(&str, &str); 32] = [
    ("bash", "bash"),
    ("dash", "dash"),
    ("fio", "fio"),
    ("python3", "python3"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_repair", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("btrfs", "btrfs-progs"),
    ("losetup", "mount"),
    ("mount", "mount"),
    ("blkdiscard", "util-linux"),
    ("fstrim", "util-linux"),
    ("addpart", "util-linux"),
    ("fsfreeze", "util-linux"),
    ("fallocate", "util-linux"),
    ("setpriv", "util-linux"),
    ("findmnt", "util-linux"),
    ("unshare", "util-linux"),
    ("qemu-io", "qemu-utils"),
    ("pdp11", "simh"),
    ("strace", "strace"),
    ("nbdkit", "nbdkit"),
    ("sqlite3", "sqlite3"),
    ("stress-ng", "stress-ng"),
    ("dbench", "dbench"),
    ("bonnie++", "bonnie++"),
    ("nbdfuse", "libnbd-bin"),
    ("systemd-analyze", "systemd"),
    ("systemd-tmpfiles", "systemd"),
    ("udevadm", "udev"),
];

/// Loop devices that have a node, for machines without udev.
const NODES: &str = "for n in $(seq 0 31); do
    [ -e /dev/loop$n ] || mknod -m 0660 /dev/loop$n b 7 $n || [ -e /dev/loop$n ] || exit 1; done";

/// Where programs are looked for.
pub(crate) fn search_path() -> String {
    let own = Path::new(env!("CARGO_BIN_EXE_shadowset")).parent();
    let own = own.expect("the program is in a directory").display();
    let usual = std::env::var("PATH").unwrap_or_default();
    format!("{own}:{usual}:/usr/sbin:/sbin:/usr/bin:/bin")
}

/// Fails when the machine cannot run these tests.
pub(super) fn check() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let says = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).env("PATH", search_path());
            command.output().expect("a shell")
        };
        let id = String::from_utf8(says("id -u").stdout).expect("UTF-8");
        assert_eq!(id.trim(), "0", "these tests mount: run them as root");
        for path in ["/dev/fuse", "/dev/loop-control"] {
            assert!(Path::new(path).exists(), "these tests need {path}");
        }
        for (tool, package) in TOOLS {
            let there = says(&format!("command -v {tool}")).status.success();
            assert!(
                there,
                "{tool} is missing: install the package {package} (make tools)"
            );
        }
        let nodes = says(NODES);
        assert!(
            nodes.status.success(),
            "no nodes of loop devices: {nodes:?}"
        );
    });
}
