//! `shadowset demo`: what a newcomer runs first.

use std::process::Command;

use serde_json::Value;

#[test]
fn the_demo_tells_the_truth_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ran = Command::new(env!("CARGO_BIN_EXE_shadowset"))
        .args(["demo", "--size", "64M", "--json", "--dir"])
        .arg(dir.path())
        .output()
        .expect("the program runs");
    let (out, err) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    assert!(ran.status.success(), "{out}{err}");
    let told: Value = serde_json::from_str(out.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{e}: {out}"));
    assert_eq!(told["ok"], true, "{out}");
    assert_eq!(told["story"]["equal"], true, "{out}");
    let left = std::fs::read_dir(dir.path()).expect("still there").count();
    assert_eq!(left, 0, "the directory is empty again");
    let place = dir.path().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(&place), "{mounts}");
}
