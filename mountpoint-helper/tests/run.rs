//! The helper as mount(8) runs it: under its name, beside a program that records its arguments.
//!
//! One test, because a program that has just been written cannot be run while another thread's
//! fork still holds it open.

#![allow(clippy::expect_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const RECORDER: &str = "#!/bin/sh\n\
    here=${0%/*}\n\
    printf '<%s>' \"$@\" >\"$here/args\"\n\
    exit \"$(cat \"$here/code\")\"\n";

fn helper(dir: &Path, code: i32, args: &[&str]) -> (Output, String) {
    fs::write(dir.join("code"), code.to_string()).expect("write the code");
    fs::write(dir.join("args"), "").expect("forget the arguments");
    let output = Command::new(dir.join("mount.shadowset"))
        .args(args)
        .output()
        .expect("run");
    let seen = fs::read_to_string(dir.join("args")).expect("read the arguments");
    (output, seen)
}

#[test]
fn mount_calls_the_program_beside_it_and_answers_as_mount_does() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let dir = dir.path();
    let built = env!("CARGO_BIN_EXE_mount-shadowset");
    fs::copy(built, dir.join("mount.shadowset")).expect("copy");
    let recorder = dir.join("shadowset");
    fs::write(&recorder, RECORDER).expect("write");
    fs::set_permissions(&recorder, fs::Permissions::from_mode(0o755)).expect("make it a program");

    let (output, seen) = helper(dir, 0, &["a b", "/srv", "-v", "-o", "rw,nofail,unit=u"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(seen, "<mount><-o><unit=u><--><a b></srv>");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        shown.ends_with("shadowset mount -o unit=u -- a b /srv\n"),
        "{shown}"
    );

    for (code, answer) in [(1, 1), (2, 1), (4, 32), (32, 32)] {
        let (output, _) = helper(dir, code, &["dsa1", "/srv", "-o", "rw"]);
        assert_eq!(output.status.code(), Some(answer), "for {code}");
    }

    let (output, seen) = helper(dir, 0, &["dsa1", "/srv", "-f", "-o", "rw"]);
    let checked = "<mount><--dry-run><--><dsa1></srv>";
    assert_eq!((output.status.code(), seen.as_str()), (Some(0), checked));
    let (output, seen) = helper(dir, 0, &["dsa1"]);
    assert_eq!((output.status.code(), seen.as_str()), (Some(1), ""));
    assert!(output.stderr.starts_with(b"shadowset: "));
}
