//! What mount(8) and umount(8) were seen to pass, and what becomes of it: one line each.

use std::ffi::OsString;

use crate::command_line;
use crate::plan::{Plan, Step, Unusable, plan};

/// Where a row has no line of its own for who calls: root.
const ROWS: &[(&str, &str)] = &[
    // mount -t shadowset SPEC DIR
    (
        "/sbin/mount.shadowset dsa1 /srv -o rw",
        "shadowset mount -- dsa1 /srv",
    ),
    // ... with options of all kinds, as fstab has them
    (
        "mount.shadowset none /srv -s -v -o ro,nosuid,nodev,noexec,members=a:b,allow_other,_netdev,user,nofail",
        "[shown] shadowset mount --sloppy -o ro,members=a:b,allow_other -- none /srv",
    ),
    (
        "mount.shadowset c.toml /srv -o defaults,noauto,x-systemd.requires=a,X-b,comment=c",
        "shadowset mount -- c.toml /srv",
    ),
    (
        "mount.shadowset c /srv -o rw,noexec,nosuid,nodev,user",
        "shadowset mount -- c /srv",
    ),
    // ... in quotes, which are for commas
    (
        "mount.shadowset dsa1 /srv -o \"ro\",rw,\"noexec\",\"x-a,b\"",
        "shadowset mount -- dsa1 /srv",
    ),
    // mount -f -n
    (
        "mount.shadowset dsa1 /srv -f -n -o rw",
        "shadowset mount --dry-run -- dsa1 /srv",
    ),
    (
        "mount.fuse.shadowset dsa1 /srv -sfnv -o rw",
        "[shown] shadowset mount --dry-run --sloppy -- dsa1 /srv",
    ),
    // mount -o remount,ro DIR, with what the kernel shows of the mount
    (
        "mount.shadowset dsa1 /srv -o ro,remount,nosuid,nodev,noexec,noatime,user_id=0,allow_other",
        "shadowset mount -o ro,remount,noatime,user_id=0,allow_other -- dsa1 /srv",
    ),
    (
        "mount.shadowset dsa1 /srv -o rw,remount",
        "shadowset mount -o rw,remount -- dsa1 /srv",
    ),
    (
        "mount.shadowset dsa1 /srv -f -o rw,remount",
        "shadowset mount --dry-run -o rw,remount -- dsa1 /srv",
    ),
    // mount -t shadowset.sub
    (
        "mount.shadowset dsa1 /srv -o rw -t shadowset.sub",
        "shadowset mount -- dsa1 /srv",
    ),
    // mount -N
    (
        "mount.shadowset dsa1 srv -o rw -N /proc/9/fd/4",
        "nsenter --mount=/proc/9/fd/4 -- shadowset mount -- dsa1 srv",
    ),
    // mount -t fuse.shadowset
    (
        "mount.fuse.shadowset dsa1 /srv -s -n",
        "shadowset mount --sloppy -- dsa1 /srv",
    ),
    // the stock mount.fuse3 appends dev,suid
    (
        "mount.shadowset c /srv -o rw,dev,suid",
        "shadowset mount -- c /srv",
    ),
    // mount.fuse3 -o drop_privileges
    (
        "mount.shadowset dsa1 /dev/fd/3 -o rw",
        "refused: /dev/fd/3: a mount that mount.fuse3 has made",
    ),
    // several -o, -r, the last of ro and rw
    (
        "mount.shadowset c /srv -o ro -o log=f",
        "shadowset mount -o ro,log=f -- c /srv",
    ),
    (
        "mount.shadowset c /srv -r -o rw",
        "shadowset mount -o ro -- c /srv",
    ),
    (
        "mount.shadowset c /srv -o rw,ro",
        "shadowset mount -o ro -- c /srv",
    ),
    (
        "mount.shadowset c /srv -o ro,rw",
        "shadowset mount -- c /srv",
    ),
    // what the program knows, or refuses by name
    (
        "mount.shadowset c /srv -o rw,durability=crash,policy=minicopy=optional,nocopy",
        "shadowset mount -o durability=crash,policy=minicopy=optional,nocopy -- c /srv",
    ),
    (
        "mount.shadowset c /srv -o rw,polcy=full",
        "shadowset mount -o polcy=full -- c /srv",
    ),
    // a comma in quotes belongs to the value
    (
        "mount.shadowset none /srv -o ro,members=\"a,b:c\",nofail",
        "shadowset mount -o ro,members=\"a,b:c\" -- none /srv",
    ),
    // umount DIR
    ("umount.fuse.shadowset /srv", "shadowset stop -- /srv"),
    ("umount.shadowset /srv -v", "[shown] shadowset stop -- /srv"),
    ("umount.fuse.shadowset srv -n", "shadowset stop -- ./srv"),
    (
        "umount.fuse /srv -t fuse.shadowset",
        "shadowset stop -- /srv",
    ),
    (
        "umount.fuse.shadowset /srv -N /proc/9/fd/4",
        "nsenter --mount=/proc/9/fd/4 -- shadowset stop -- /srv",
    ),
    // umount -l, -f, -r
    (
        "umount.fuse.shadowset /srv -l -v",
        "[shown] umount -i -l -- /srv",
    ),
    (
        "umount.fuse.shadowset /srv -f -n",
        "umount -i -f -n -- /srv, then waits",
    ),
    (
        "umount.fuse.shadowset /srv -r",
        "umount -i -r -- /srv, then waits",
    ),
    (
        "umount.fuse.shadowset /srv -f -N /proc/9/fd/4",
        "nsenter --mount=/proc/9/fd/4 -- umount -i -f -- /srv",
    ),
    // what is not understood is named
    ("mount.shadowset dsa1", "refused: expected SPEC and DIR"),
    (
        "mount.shadowset dsa1 /srv extra",
        "refused: expected SPEC and DIR",
    ),
    ("mount.shadowset dsa1 /srv -o", "refused: -o: no value"),
    ("mount.shadowset dsa1 /srv -N", "refused: -N: no value"),
    ("mount.shadowset dsa1 /srv -q", "refused: -q: unknown flag"),
    ("umount.fuse.shadowset", "refused: expected DIR"),
    (
        "helper dsa1 /srv",
        "refused: helper: not a name that mount(8) uses",
    ),
];

/// The same for a user who is not root.
const OF_USERS: &[(&str, &str)] = &[
    // with and without a line in fstab, and mount.fuse3 -o setuid=nobody
    (
        "mount.shadowset dsa1 /srv -o rw,noexec,nosuid,nodev,user",
        "refused: only root can mount a unit",
    ),
    (
        "mount.shadowset dsa1 /srv -o rw",
        "refused: only root can mount a unit",
    ),
    (
        "mount.shadowset dsa1 /srv -f -o rw",
        "shadowset mount --dry-run -- dsa1 /srv",
    ),
    // his own mount, which another program has made
    ("umount.fuse.shadowset /srv", "shadowset stop -- /srv"),
];

/// A plan as one line.
fn shown(line: &str, is_root: bool) -> String {
    let mut words = line.split(' ').map(OsString::from);
    let name = words.next().expect("a name");
    match plan(&name, words, is_root) {
        Err(Unusable(why)) => format!("refused: {why}"),
        Ok(Plan::Mount(step) | Plan::Stop(step)) => of_step(&step),
        Ok(Plan::Unmount { umount, dir, wait }) => {
            assert!(line.contains(&dir.into_string().expect("UTF-8")));
            of_step(&umount) + if wait { ", then waits" } else { "" }
        }
    }
}

fn of_step(step: &Step) -> String {
    let words = command_line(step, None);
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let shown = if step.verbose { "[shown] " } else { "" };
    format!("{shown}{}", words.join(" "))
}

#[test]
fn every_command_line_of_mount_8_has_its_plan() {
    for (rows, is_root) in [(ROWS, true), (OF_USERS, false)] {
        for (line, expected) in rows {
            let plan = shown(line, is_root);
            let is_start = expected.starts_with("refused") && plan.starts_with(expected);
            assert!(
                is_start || plan == *expected,
                "{line}\n is {plan}\nnot {expected}"
            );
        }
    }
}
