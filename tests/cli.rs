//! Goal: the program's exit codes and the two channels it writes to. Method: the real binary, in
//! directories of its own, on a control tree made of plain files where no server is needed.

#![allow(clippy::expect_used, reason = "a test that cannot go on has failed")]

#[path = "cli/completions.rs"]
mod completions;
#[path = "cli/examine.rs"]
mod examine;
#[path = "cli/hints.rs"]
mod hints;
#[path = "cli/install.rs"]
mod install;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use shadowset::io::runtime::{Runtime, RuntimeDir};

/// A place with configurations, a runtime directory and a tree that looks like a mounted unit.
struct Place {
    dir: tempfile::TempDir,
    /// Keeps the unit among the running ones.
    claimed: Option<RuntimeDir>,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            dir: tempfile::tempdir().expect("temporary directory"),
            claimed: None,
        };
        for dir in ["conf", "run", "mnt", "empty"] {
            fs::create_dir(place.path(dir)).expect("directory");
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes `mnt` look like a mounted unit in this state.
    fn tree(&mut self, state: &str) -> String {
        let claimed = self.claimed.take().unwrap_or_else(|| {
            let runtime = Runtime::at(self.path("run"));
            runtime.claim("dsa1").expect("nobody else serves it")
        });
        claimed.set_mountpoint(&self.path("mnt")).expect("file");
        self.claimed = Some(claimed);
        let shadow = self.path("mnt/.shadow");
        fs::create_dir_all(&shadow).expect("directory");
        let status = format!(
            r#"{{"unit": "dsa1", "state": "{state}", "size": 1048576, "members": [
                {{"name": "m1", "path": "/a", "state": "source"}}], "bitmaps": [],
                "operations": [{{"id": 3, "kind": "minicopy", "target": "m1", "state": "done"}}]}}"#
        );
        fs::write(shadow.join("name"), "dsa1\n").expect("file");
        fs::write(shadow.join("status.json"), status).expect("file");
        let event = r#"{"seq": 1, "time": "2026-11-25T12:41:00Z", "event": "mount"}"#;
        fs::write(shadow.join("events"), format!("{event}\n").repeat(3000)).expect("file");
        self.path("mnt").display().to_string()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shadowset"));
        command
            .args(words)
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command.env("SHADOWSET_CONFIG_DIR", self.path("conf"));
        command.env("SHADOWSET_RUNTIME_DIR", self.path("run"));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("the program starts")
    }

    /// Runs, checks the exit code and returns both channels.
    fn expect(&self, code: i32, words: &[&str]) -> (String, String) {
        let output = self.run(words);
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        assert_eq!(
            output.status.code(),
            Some(code),
            "{words:?}: {stdout}{stderr}"
        );
        (stdout, stderr)
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn wrong_usage_is_2_and_help_is_0() {
    let place = Place::new();
    let (stdout, stderr) = place.expect(2, &["frobnicate"]);
    let expected = "shadowset: there is no command `frobnicate`\n\
                    hint: `shadowset --help` lists the commands\n";
    assert_eq!((stdout.as_str(), stderr.as_str()), ("", expected));
    let (stdout, stderr) = place.expect(2, &["op", "pause", "dsa1", "abc", "--json"]);
    assert!(
        stderr.starts_with("shadowset: op pause: <OPERATION>: `abc` is not a number\nhint: "),
        "{stderr}"
    );
    assert_eq!(
        (&json(&stdout)["code"], &json(&stdout)["ok"]),
        (&"syntax".into(), &false.into())
    );
    place.expect(2, &["wait", "dsa1", "--for", "rain"]);
    let (stdout, _) = place.expect(0, &["--help"]);
    assert!(stdout.contains("Exit codes: 0 done"), "{stdout}");
    let (stdout, _) = place.expect(0, &["completions", "bash"]);
    assert!(stdout.contains("shadowset"), "{stdout}");
}

#[test]
fn a_unit_that_is_not_mounted_is_3_with_a_hint() {
    let place = Place::new();
    for verb in ["status", "show", "stop"] {
        let (stdout, stderr) = place.expect(3, &[verb, "dsa1"]);
        assert!(stdout.is_empty());
        let expected = "shadowset: there is no unit dsa1\n\
                        hint: `shadowset list` shows the mounted and the configured units\n";
        assert_eq!(stderr, expected);
    }
    let text = "[[member]]\nname = \"m1\"\npath = \"/a\"\n";
    fs::write(place.path("conf/dsa1.toml"), text).expect("file");
    fs::write(place.path("dsa2.toml"), text).expect("file");
    for (unit, word) in [("dsa1", "dsa1"), ("dsa2", "./dsa2.toml")] {
        let (_, stderr) = place.expect(3, &["status", word]);
        let expected = format!(
            "shadowset: {unit} is not mounted\nhint: `shadowset mount {word} DIR` mounts it\n"
        );
        assert_eq!(stderr, expected);
    }
    let empty = place.path("empty").display().to_string();
    for dir in [empty.as_str(), "./empty"] {
        let (_, stderr) = place.expect(3, &["status", dir]);
        let says = format!("shadowset: no unit is mounted at {dir}\n");
        assert!(stderr.starts_with(&says), "{stderr}");
    }
    let (stdout, _) = place.expect(3, &["--json", "detach", "dsa1", "m1"]);
    assert_eq!(json(&stdout)["code"], "not-mounted");
    let (stdout, _) = place.expect(0, &["status"]);
    assert_eq!(stdout, "no unit is mounted\n");
}

#[test]
fn status_is_5_when_a_member_is_lost_and_0_when_it_was_detached() {
    let mut place = Place::new();
    for (state, code) in [("steady", 0), ("copying", 0), ("reduced", 5), ("failed", 5)] {
        let mount = place.tree(state);
        let (stdout, stderr) = place.expect(code, &["status", &mount]);
        assert!(
            stdout.contains(&format!("state: {state},")) && stderr.is_empty(),
            "{stdout}"
        );
        let (stdout, _) = place.expect(code, &["status", &mount, "--json"]);
        assert_eq!(json(&stdout)["state"], state);
    }
}

#[test]
fn waiting_is_0_when_it_is_so_and_124_when_time_is_up() {
    let mut place = Place::new();
    let mount = place.tree("steady");
    place.expect(0, &["wait", &mount]);
    place.expect(0, &["wait", &mount, "--for", "op=3"]);
    place.expect(0, &["op", "wait", &mount, "3"]);
    place.expect(0, &["wait", &mount, "--for", "member=m1:source"]);
    place.expect(3, &["wait", &mount, "--for", "op=9"]);
    let goal = "member=m1:detached";
    let (_, stderr) = place.expect(124, &["wait", &mount, "--for", goal, "--timeout", "0.1"]);
    assert!(stderr.starts_with("shadowset: dsa1: not in the time given; it is steady\nhint: "));
}

#[test]
fn a_copy_that_has_failed_names_the_log_and_a_verify_its_differences() {
    let mut place = Place::new();
    place.tree("steady");
    let shadow = place.path("mnt/.shadow");
    let status = r#"{"unit": "dsa1", "state": "steady", "size": 1048576, "members": [],
        "bitmaps": [], "operations": [
        {"id": 4, "kind": "full-copy", "source": "m1", "target": "m2", "state": "failed"},
        {"id": 5, "kind": "verify", "state": "done", "differing_blocks": 3}]}"#;
    fs::write(shadow.join("status.json"), status).expect("file");
    let (_, stderr) = place.expect(1, &["op", "wait", "dsa1", "4"]);
    assert!(
        stderr.contains("operation 4 (full-copy m1 -> m2) has failed\nhint: ")
            && stderr.ends_with(" may say why\n"),
        "{stderr}"
    );
    fs::create_dir_all(shadow.join("operations/5")).expect("directory");
    let report = "verdict 3 blocks differ\ndiffering_blocks 3\nrepaired_blocks 0\n\
                  differs 8-10 odd=unknown fate=left m1=0a m2=0b\n";
    fs::write(shadow.join("operations/5/report"), report).expect("file");
    fs::write(shadow.join("operations/5/rate_max"), "max\n").expect("file");
    for words in [
        ["op", "wait", "dsa1", "5"],
        ["wait", "dsa1", "--for", "op=5"],
    ] {
        let (stdout, _) = place.expect(1, &words);
        let last: Vec<&str> = stdout.lines().rev().take(2).collect();
        let expected = [
            "`shadowset op show dsa1 5` shows which",
            "op 5 verify: 3 blocks differ",
        ];
        assert_eq!(last, expected);
        let (stdout, _) = place.expect(1, &[&words[..], &["--json"]].concat());
        assert_eq!(json(&stdout)["report"]["differing_blocks"], 3);
    }
    let (stdout, _) = place.expect(0, &["op", "show", "dsa1", "5"]);
    assert!(
        stdout
            .starts_with("id 5\nkind verify\nstate done\nrate_max max\nverdict 3 blocks differ\n"),
        "{stdout}"
    );
    let (stdout, _) = place.expect(0, &["op", "show", "dsa1", "5", "--json"]);
    assert_eq!(json(&stdout)["report"]["runs"][0]["last"], 10);
    place.expect(3, &["op", "show", "dsa1", "9"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut place = Place::new();
    let mount = place.tree("steady");
    let mut command = place.command(&["events", &mount]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut [0; 10]).expect("the first event");
    drop(stdout);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[test]
fn create_writes_a_configuration_once_and_takes_it_back_when_it_fails() {
    let place = Place::new();
    let config = place.path("conf/dsa1.toml");
    place.expect(2, &["create", "dsa1", "--size", "1M"]);
    let (_, stderr) = place.expect(2, &["create", "dsa1", "--size", "1000", "--member", "m1=a"]);
    assert!(stderr.contains("multiple of 512 bytes"), "{stderr}");
    let (_, stderr) = place.expect(2, &["create", "dsa1", "--member", "m1=a"]);
    assert!(stderr.contains("no --size is given"), "{stderr}");
    let twice = [
        "create", "dsa1", "--size", "1M", "--member", "m1=a", "--member", "m1=b",
    ];
    let (_, stderr) = place.expect(2, &twice);
    assert!(stderr.contains("two members have the name m1"), "{stderr}");
    assert!(!config.exists(), "nothing is left of a failure");
    let state = place.path("state").display().to_string();
    let state_dir = ["--state-dir", state.as_str()];
    let words = [
        "create", "dsa1", "--size", "1M", "--member", "m1=a", "--member", "m2=b", "--json",
    ];
    let (stdout, _) = place.expect(0, &[&words[..], &state_dir].concat());
    let created = json(&stdout);
    assert_eq!(
        (&created["unit"], &created["size"]),
        (&"dsa1".into(), &1_048_576.into())
    );
    assert_eq!(
        fs::metadata(place.path("b")).expect("the image").len(),
        1 << 20
    );
    let written = fs::read_to_string(&config).expect("the configuration");
    assert!(written.contains("Mount it: shadowset mount dsa1 DIR\n"));
    let elsewhere = ["create", "./dsa3.toml", "--size", "1M", "--member", "m1=c3"];
    place.expect(0, &[&elsewhere[..], &state_dir].concat());
    let other = fs::read_to_string(place.path("dsa3.toml")).expect("the configuration");
    let path = place.path("dsa3.toml");
    let says = format!("Mount it: shadowset mount {} DIR\n", path.display());
    assert!(other.contains(&says), "{other}");
    let (_, stderr) = place.expect(1, &["create", "dsa1", "--member", "m1=c"]);
    assert!(stderr.contains("the list of members is m1="), "{stderr}");
    place.expect(4, &["create", "dsa1"]);
    assert_eq!(
        fs::read_to_string(&config).expect("the configuration"),
        written
    );
    let (stdout, _) = place.expect(0, &["list", "--json"]);
    let list = json(&stdout);
    assert_eq!(
        (&list[0]["unit"], &list[0]["state"]),
        (&"dsa1".into(), &"not-mounted".into())
    );
}

#[test]
fn a_dry_run_of_create_says_what_would_be_made_and_makes_nothing() {
    let place = Place::new();
    let state = place.path("state").display().to_string();
    fs::write(place.path("b"), [7; 4096]).expect("file");
    let words = [
        "create",
        "dsa1",
        "--size",
        "4k",
        "--member",
        "m1=a",
        "--member",
        "m2=b",
        "--state-dir",
        &state,
    ];
    let run = |code: i32, more: &[&str]| place.expect(code, &[&words[..], more].concat());
    let (_, refused) = run(4, &["-n"]);
    assert_eq!(
        refused,
        run(4, &[]).1,
        "the run is refused in the same words"
    );
    let (stdout, _) = run(0, &["-n", "--from", "m2", "--json"]);
    let would = json(&stdout);
    assert_eq!(
        (&would["verdict"], &would["uuid"]),
        (&"create".into(), &serde_json::Value::Null)
    );
    let members = &would["members"];
    assert_eq!(
        (&members[0]["new_image"], &members[0]["copy"]),
        (&true.into(), &true.into())
    );
    let made = ["a", "a.scb", "b.scb", "state", "conf/dsa1.toml"];
    assert!(!made.iter().any(|name| place.path(name).exists()));
    let (stdout, _) = run(0, &["-n", "--from", "m2"]);
    assert!(
        stdout.contains("m1 would be copied onto at the first mount: ")
            && stdout.ends_with("nothing has changed\n"),
        "{stdout}"
    );
    run(0, &["--from", "m2"]);
    assert!(place.path("conf/dsa1.toml").exists());
}

#[test]
fn a_mount_that_fails_is_32_and_an_unknown_option_1() {
    let place = Place::new();
    let (_, stderr) = place.expect(1, &["mount", "dsa1", "empty", "-o", "rw,colour"]);
    assert!(stderr.contains("unknown option `colour`"), "{stderr}");
    let (_, stderr) = place.expect(32, &["mount", "dsa1", "empty"]);
    assert!(stderr.contains("hint: `shadowset list`"), "{stderr}");
    place.expect(1, &["mount", "dsa1"]);
    place.expect(1, &["mount", "--frobnicate", "dsa1", "empty"]);
    let bad = place.path("conf/dsa1.toml");
    fs::write(&bad, "unit = \"dsa1\"\ndurability = \"disk\"\n").expect("file");
    let (_, stderr) = place.expect(32, &["mount", "dsa1", "empty"]);
    let at = format!(
        "shadowset: {}: line 2, column 14: durability: ",
        bad.display()
    );
    assert!(stderr.starts_with(&at), "{stderr}");
    let missing = format!("members={}", place.path("none.img").display());
    let log = place.path("log").display().to_string();
    let words = [
        "mount", "none", "empty", "-o", &missing, "--log", &log, "--json",
    ];
    let (stdout, stderr) = place.expect(32, &words);
    assert_eq!(
        stderr.lines().count(),
        2,
        "one sentence and a hint: {stderr}"
    );
    assert!(stderr.starts_with("shadowset: mount dsa1: "), "{stderr}");
    assert_eq!(json(&stdout)["ok"], false);
    assert!(fs::metadata(Path::new(&log)).expect("the log").len() > 0);
}

#[test]
fn half_a_configuration_is_not_left_behind() {
    let place = Place::new();
    let program = env!("CARGO_BIN_EXE_shadowset");
    let script =
        format!("trap '' XFSZ; ulimit -f 0; exec {program} create dsa1 --size 1M --member m1=a");
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(place.path(""));
    command.env("SHADOWSET_CONFIG_DIR", place.path("conf"));
    let output = command.output().expect("bash starts");
    let says = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{says}");
    assert!(says.contains("cannot write"), "{says}");
    assert!(!place.path("conf/dsa1.toml").exists(), "{says}");
    let state = place.path("state").display().to_string();
    let again = ["create", "dsa1", "--size", "1M", "--member", "m1=a"];
    place.expect(0, &[&again[..], &["--state-dir", &state]].concat());
}

#[test]
fn a_create_that_is_refused_leaves_no_directory() {
    let place = Place::new();
    let create = |member: &str| {
        let member = format!("a={}", place.path(member).display());
        let words = ["create", "./p/q/a.toml", "--size", "64M", "--member"];
        place.run(&[&words[..], &[&member]].concat()).status.code()
    };
    assert_eq!(create("none/a.img"), Some(3));
    assert!(!place.path("p").exists(), "the directories were not there");
    fs::create_dir(place.path("p")).expect("directory");
    assert_eq!(create("none/a.img"), Some(3));
    assert!(place.path("p").exists() && !place.path("p/q").exists());
    assert_eq!(create("a.img"), Some(0));
    assert!(place.path("p/q/a.toml").exists());
}

#[test]
fn a_set_that_exists_is_not_to_be_erased_to_be_made_again() {
    let place = Place::new();
    let (image, state) = (place.path("a.img"), place.path("state"));
    let member = format!("a={}", image.display());
    let state = state.display().to_string();
    let options = ["--size", "1M", "--member", &member, "--state-dir", &state];
    let words = [&["create", "dsa1"], &options[..]].concat();
    place.expect(0, &words);
    let (_, stderr) = place.expect(4, &words);
    assert!(stderr.contains("the set exists already"), "{stderr}");
    assert!(
        stderr.contains("hint: `shadowset mount dsa1 DIR`"),
        "{stderr}"
    );
    // Another unit that wants its image is told what that means.
    let words = [&["create", "dsa2"], &options[..]].concat();
    let (_, stderr) = place.expect(4, &words);
    assert!(stderr.contains("--erase"), "{stderr}");
}

/// The first member won, blank or not, and the data of the other one was overwritten.
#[test]
fn whose_data_is_kept_is_said_or_nothing_is_made() {
    for holds in ["a.img", "b.img"] {
        let place = Place::new();
        let (a, b) = (place.path("a.img"), place.path("b.img"));
        for image in [&a, &b] {
            fs::write(image, vec![0; 1 << 20]).expect("file");
        }
        fs::write(place.path(holds), vec![7; 1 << 20]).expect("file");
        let (a, b) = (format!("a={}", a.display()), format!("b={}", b.display()));
        let state = place.path("state").display().to_string();
        let members = ["--member", &a, "--member", &b, "--state-dir", &state];
        let words = [&["create", "dsa1"], &members[..], &["--erase"]].concat();
        let (_, stderr) = place.expect(4, &words);
        assert!(
            stderr.contains("is not blank") && stderr.contains("--from NAME --erase"),
            "{stderr}"
        );
        assert!(!place.path("a.img.scb").exists() && !place.path("b.img.scb").exists());
        let name = &holds[..1];
        place.expect(0, &[&words[..], &["--from", name]].concat());
    }
}

#[test]
fn no_hint_sends_to_a_log_that_nobody_writes() {
    let place = Place::new();
    let member = format!("a={}", place.path("a.img").display());
    fs::create_dir(place.path("conf/dir.toml")).expect("directory");
    fs::write(place.path("conf/latin.toml"), b"label = \"\xe4\"\n").expect("file");
    let of_file = [
        "--size",
        "1M",
        "--member",
        &member,
        "--state-dir",
        "/etc/passwd",
    ];
    for (words, says) in [
        ([&["create", "dsa1"], &of_file[..]].concat(), "no directory"),
        (vec!["create", "./conf/dir.toml"], "name a file"),
        (vec!["status", "./conf/latin.toml"], "UTF-8"),
    ] {
        let output = place.run(&words);
        let says_all = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{words:?}");
        assert!(
            says_all.contains(says) && !says_all.contains("see the log"),
            "{says_all}"
        );
    }
}

#[test]
fn a_comma_in_double_quotes_belongs_to_an_option() {
    let place = Place::new();
    let options = "rw,members=\"/a,b:/a,b\"";
    let (_, stderr) = place.expect(32, &["mount", "none", "empty", "-o", options]);
    assert!(stderr.contains("/a,b is named twice"), "{stderr}");
    let (_, stderr) = place.expect(1, &["mount", "none", "empty", "-o", "ro,members=\"/a"]);
    assert!(stderr.contains("is not closed"), "{stderr}");
}

#[test]
fn a_server_tells_its_launcher_also_what_it_finds_before_it_serves() {
    let place = Place::new();
    let words = ["mount", "dsa9", "empty", "--foreground", "--ready-pipe"];
    let (stdout, _) = place.expect(32, &words);
    let mut lines = stdout.lines();
    assert_eq!(lines.next(), Some("error: no-such-file"), "{stdout}");
    let says = lines.next().unwrap_or_default();
    assert!(
        says.starts_with("cannot read the configuration "),
        "{stdout}"
    );
    assert!(
        lines.next().is_some_and(|hint| !hint.is_empty()),
        "{stdout}"
    );
}

#[test]
fn a_bad_end_is_told_by_a_later_stop_until_the_unit_is_claimed_again() {
    let place = Place::new();
    let runtime = Runtime::at(place.path("run"));
    let claimed = runtime.claim("dsa1").expect("nobody else serves it");
    let says = "dsa1: m1 cannot be marked clean";
    claimed.set_failed(says).expect("file");
    drop(claimed);
    let (_, stderr) = place.expect(1, &["stop", "dsa1"]);
    assert!(
        stderr.starts_with("shadowset: stop dsa1: m1 cannot be marked clean\nhint: "),
        "{stderr}"
    );
    drop(runtime.claim("dsa1").expect("nobody else serves it"));
    place.expect(3, &["stop", "dsa1"]);
}

#[test]
fn a_name_is_no_directory_and_a_directory_without_a_mount_is_no_unit() {
    let mut place = Place::new();
    fs::create_dir_all(place.path("dsa1/.shadow")).expect("directory");
    fs::write(place.path("dsa1/.shadow/name"), "dsa1\n").expect("file");
    let (_, stderr) = place.expect(3, &["status", "./dsa1"]);
    assert!(stderr.contains("no unit is mounted at ./dsa1"), "{stderr}");
    let (_, stderr) = place.expect(3, &["status", "dsa1"]);
    assert!(stderr.contains("there is no unit dsa1"), "{stderr}");
    place.tree("steady");
    let (stdout, _) = place.expect(0, &["status", "dsa1"]);
    assert!(stdout.contains("state: steady"), "{stdout}");
}
