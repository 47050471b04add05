//! Goal: the ways out that an error tells are those of the command line. Method: sets made by the binary itself, and dry runs of
//! their mounts, which need no server.

use std::fs;

use super::{Place, json};

/// A set of these members in `NAME.toml`.
fn create(place: &Place, name: &str, members: &[&str], more: &[&str]) {
    let (config, state) = (format!("./{name}.toml"), format!("{name}-state"));
    let mut words = vec!["create", &config, "--size", "1M", "--state-dir", &state];
    for member in members {
        words.extend(["--member", member]);
    }
    words.extend(more);
    place.expect(0, &words);
}

/// What a dry run of the mount says.
fn rehearsed(place: &Place, code: i32, name: &str, options: &str) -> String {
    let config = format!("./{name}.toml");
    let (stdout, stderr) = place.expect(code, &["mount", "-n", &config, "empty", "-o", options]);
    stdout + &stderr
}

#[test]
fn a_member_of_a_set_that_is_gone_has_a_way_in() {
    let place = Place::new();
    create(&place, "old", &["m1=a.img", "m2=b.img"], &[]);
    create(&place, "new", &["m1=a.img", "m3=c.img"], &["--erase"]);
    let text = fs::read_to_string(place.path("new.toml")).expect("a configuration");
    let old = place.path("b.img");
    let member = format!(
        "\n[[member]]\nname = \"m2\"\npath = \"{}\"\n",
        old.display()
    );
    fs::write(place.path("new.toml"), text + &member).expect("file");
    let said = rehearsed(&place, 32, "new", "ro");
    let way = format!(
        "move {}.scb away, mount, and `shadowset attach ./new.toml m2 --yes`",
        old.display()
    );
    assert!(
        said.contains("m2 belongs to another set") && said.contains(&way),
        "{said}"
    );
    fs::remove_file(place.path("b.img.scb")).expect("there");
    rehearsed(&place, 0, "new", "ro");
}

#[test]
fn a_mount_that_may_copy_nothing_speaks_of_its_option() {
    let place = Place::new();
    fs::write(place.path("b.img"), vec![1; 1 << 20]).expect("file");
    create(&place, "dsa2", &["m1=b.img", "m2=c.img"], &["--from", "m1"]);
    let said = rehearsed(&place, 32, "dsa2", "nocopy");
    assert!(
        said.contains("hint: leave out nocopy, of -o") && !said.contains("--policy"),
        "{said}"
    );
}

#[test]
fn no_unit_is_called_as_the_configuration_of_the_node() {
    let place = Place::new();
    let create = [
        "create",
        "./node.toml",
        "--size",
        "1M",
        "--member",
        "m1=a.img",
    ];
    let (_, said) = place.expect(3, &create);
    assert!(said.contains("no unit is called `node`"), "{said}");
    assert!(!place.path("node.toml").exists() && !place.path("a.img").exists());
    fs::write(place.path("node.toml"), "").expect("file");
    let (_, said) = place.expect(32, &["mount", "-n", "./node.toml", "empty"]);
    assert!(said.contains("no unit is called `node`"), "{said}");
    let text = "unit = \"node\"\n[[member]]\nname = \"m1\"\npath = \"/a\"\n";
    fs::write(place.path("other.toml"), text).expect("file");
    let (_, said) = place.expect(32, &["mount", "-n", "./other.toml", "empty"]);
    assert!(
        said.contains("line 1") && said.contains("no unit is called `node`"),
        "{said}"
    );
}

#[test]
fn a_dry_run_of_a_mount_says_who_would_not_serve_at_once() {
    let place = Place::new();
    fs::write(place.path("a.img"), vec![1; 1 << 20]).expect("file");
    let members = ["m1=a.img", "m2=b.img", "m3=c.img"];
    create(&place, "dsa1", &members, &["--from", "m1"]);
    fs::remove_file(place.path("c.img")).expect("there");
    let said = rehearsed(&place, 0, "dsa1", "ro");
    for line in [
        "m2 would be copied: its copy is to be done",
        "m3 would be missing: its image",
    ] {
        assert!(
            said.contains(&format!("shadowset: warning: {line}")),
            "{said}"
        );
    }
    let members = format!("members={}", place.path("a.img").display());
    let words = [
        "mount",
        "-n",
        "none",
        "empty",
        "--json",
        "-o",
        &members,
        "-o",
        "unit=dsa1",
    ];
    let said = json(&place.expect(0, &words).0);
    let warnings = said["warnings"].to_string();
    assert!(
        warnings.contains("m2 would be missing: it is not in the configuration, nor in"),
        "{said}"
    );
}
