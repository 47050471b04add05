//! Goal: every kind of mistake is named with line, column and key. Method: a table of bad files.

use super::*;
use crate::cli::rights::Group;

const GOOD: &str = r#"
unit = "dsa7"
label = "payroll"
region_blocks = 64
durability = "memory"
state_dir = "/var/lib/shadowset/dsa7"

[[member]]
name = "m1"
path = "/srv/images/m1.img"
scb = "/srv/scb/m1"
read_cost = 5
site = 3
timeout = 60
io = "direct"
protect = "lease"

[[member]]
name = "m2"
path = "m2.img"

[params]

[mount]
allow_other = true
ro = true
log = "/var/log/dsa7"
policy = "minicopy"
require_members = true
include = true
nocopy = true
control_gid = "disk"
control_mode = "0660"
unit_gid = 6
"#;

fn read(text: &str) -> Result<Config> {
    parse(text, Path::new("/etc/shadowset/dsa1.toml"))
}

#[test]
fn every_key_is_read() {
    let config = read(GOOD).expect("valid");
    let setup = &config.setup;
    assert_eq!(
        (setup.unit.as_str(), setup.label.as_deref()),
        ("dsa7", Some("payroll"))
    );
    assert_eq!(
        (setup.region_blocks, setup.durability),
        (64, Durability::Memory)
    );
    assert_eq!(setup.state_dir, Path::new("/var/lib/shadowset/dsa7"));
    let first = MemberSetup {
        name: "m1".into(),
        path: "/srv/images/m1.img".into(),
        scb: "/srv/scb/m1".into(),
        read_cost: 5,
        site: 3,
        timeout: 60,
        io: IoMode::Direct,
        protect: Protect::Lease,
    };
    assert_eq!(setup.members[0], first);
    let mount = Mount {
        allow_other: true,
        ro: true,
        log: Some("/var/log/dsa7".into()),
        policy: Some(Policy::Minicopy),
        require_members: true,
        include: true,
        nocopy: true,
        control_gid: Some(Group::Name("disk".to_owned())),
        control_mode: Some("0660".to_owned()),
        unit_gid: Some(Group::Number(6)),
        unit_mode: None,
    };
    assert_eq!(config.mount, mount);
}

#[test]
fn what_is_left_out_has_a_default() {
    let config = read("[[member]]\nname = \"m1\"\npath = \"/a\"\n").expect("valid");
    let setup = config.setup;
    assert_eq!((setup.unit.as_str(), &setup.label), ("dsa1", &None));
    assert_eq!(setup.label_of_new(), "dsa1");
    assert_eq!(
        (setup.region_blocks, setup.durability),
        (127, Durability::Power)
    );
    assert_eq!(setup.state_dir, place::state_dir("dsa1"));
    let m = &setup.members[0];
    assert_eq!(
        (m.scb.as_path(), m.read_cost, m.site),
        (Path::new("/a.scb"), 2, 0)
    );
    assert_eq!((m.io, config.mount), (IoMode::Buffered, Mount::default()));
}

#[test]
fn relative_paths_start_at_the_file() {
    let setup = read(GOOD).expect("valid").setup;
    assert_eq!(setup.members[1].path, Path::new("/etc/shadowset/m2.img"));
    assert_eq!(setup.members[1].scb, Path::new("/etc/shadowset/m2.img.scb"));
}

/// The good file with one thing changed.
fn change(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

fn is_refused(text: &str, says: &str) {
    let error = read(text).expect_err(says);
    let shown = error.to_string();
    assert!(
        shown.starts_with("/etc/shadowset/dsa1.toml: line "),
        "{shown}"
    );
    assert!(shown.contains(says), "{shown}\nwanted: {says}");
    assert_eq!(error.code(), Code::Config);
}

#[test]
fn unknown_keys_are_named_with_line_and_column() {
    for (from, to, says) in [
        (
            "label =",
            "lable =",
            "line 3, column 1: lable: unknown field `lable`",
        ),
        (
            "site = 3",
            "sight = 3",
            "line 13, column 1: sight: unknown field `sight`",
        ),
        (
            "ro = true",
            "rw = true",
            "line 26, column 1: rw: unknown field `rw`",
        ),
        (
            "[mount]",
            "[mounts]",
            "line 24, column 2: [mounts]: unknown field `mounts`",
        ),
        (
            "[params]",
            "[params]\ncopies = 3",
            "line 23, column 1: copies: there is no parameter copies",
        ),
        (
            "[params]",
            "[params]\npriority = 1\nmax_copies = 201",
            "line 24, column 14: max_copies: takes 0 to 200 copies, not 201",
        ),
        (
            "[params]",
            "[params]\nmax_copies = true",
            "line 23, column 14: max_copies: takes 0 to 200 copies, not true",
        ),
        (
            "[params]",
            "[params]\ndefault_detach_policy = \"full\"",
            "line 23, column 25: default_detach_policy: takes minicopy, minicopy=optional, none, not full",
        ),
    ] {
        is_refused(&change(from, to), says);
    }
}

#[test]
fn bad_values_are_named_with_line_column_and_key() {
    for (from, to, says) in [
        (
            "64",
            "7",
            "line 4, column 17: region_blocks: a region has 8 to 8192 blocks",
        ),
        (
            "64",
            "-1",
            "line 4, column 17: region_blocks: invalid value",
        ),
        (
            "64",
            "\"64\"",
            "line 4, column 17: region_blocks: invalid type",
        ),
        (
            "64",
            "64 64",
            "line 4, column 17: region_blocks: string values must be quoted",
        ),
        (
            "\"direct\"",
            "\"odirect\"",
            "line 15, column 6: io: io is \"buffered\"",
        ),
        (
            "dsa7",
            "dsa 7",
            "line 2, column 8: unit: \"dsa 7\" is no name",
        ),
        (
            "\"m1\"",
            "\"-m1\"",
            "line 9, column 8: name: \"-m1\" is no name",
        ),
        (
            "path = \"m2.img\"",
            "path = \"\"",
            "line 20, column 8: path: the path is empty",
        ),
        ("path = \"m2.img\"", "", "missing field `path`"),
        ("\"payroll\"", "\"payroll", "line 3, column "),
        (
            "payroll",
            "a\\u0007b",
            "line 3, column 9: label: a label has no control",
        ),
        (
            "payroll",
            &"p".repeat(65),
            "line 3, column 9: label: a label has at most 64",
        ),
    ] {
        is_refused(&change(from, to), says);
    }
}

#[test]
fn the_words_of_durability_and_policy_are_these() {
    for durability in Durability::ALL {
        let text = change("memory", durability.name());
        assert_eq!(read(&text).expect("valid").setup.durability, durability);
        let again = render(&read(&text).expect("valid").setup, "dsa7").expect("UTF-8");
        assert!(again.contains(&format!("\ndurability = \"{}\"\n", durability.name())));
    }
    let says = "line 5, column 14: durability: durability is \"power\", \"crash\" or \"memory\", \
                not \"disk\"";
    is_refused(&change("memory", "disk"), says);
    let text = change("\"minicopy\"", "\"minicopy=optional\"");
    let policy = read(&text).expect("valid").mount.policy;
    assert_eq!(policy, Some(Policy::MinicopyOptional));
    let says = "line 28, column 10: policy: the policy of a mount is \"minicopy\" or \
                \"minicopy=optional\", not \"full\"";
    is_refused(&change("\"minicopy\"", "\"full\""), says);
}

#[test]
fn a_protection_that_is_not_there_is_refused() {
    let says = "line 16, column 11: protect: protect is \"none\", \"lease\" or \"immutable\", not \"leash\"";
    is_refused(&change("\"lease\"", "\"leash\""), says);
}

#[test]
fn members_that_collide_are_refused() {
    is_refused(
        &change("\"m2\"", "\"m1\""),
        "[[member]]: two members have the name m1",
    );
    for from in ["m2.img", "/srv/scb/m1"] {
        let says = "[[member]]: /srv/images/m1.img is named twice";
        is_refused(&change(from, "/srv/images/m1.img"), says);
    }
}

#[test]
fn a_set_without_members_is_refused() {
    let error = read("unit = \"dsa1\"\n").expect_err("no member");
    let says = "/etc/shadowset/dsa1.toml: a set has one to six members, this one has none";
    assert_eq!(error.to_string(), says);
}

#[test]
fn seven_members_are_one_too_many() {
    let member = |n: u32| format!("[[member]]\nname = \"m{n}\"\npath = \"/m{n}\"\n");
    let six: String = (1..=6).map(member).collect();
    assert_eq!(read(&six).expect("six members").setup.members.len(), 6);
    let error = read(&(six + &member(7))).expect_err("seven members");
    assert!(
        error
            .to_string()
            .contains("line 19, column 1: [[member]]: a set has one to six")
    );
}

#[test]
fn what_is_written_reads_back_as_the_same() {
    let setup = read(GOOD).expect("valid").setup;
    let text = render(&setup, "./x.toml").expect("UTF-8");
    assert_eq!(read(&text).expect("valid").setup, setup);
    let odd = Setup {
        label: Some("a \"b\" \\ c\u{e9}".to_owned()),
        ..setup
    };
    assert_eq!(
        read(&render(&odd, "dsa7").expect("UTF-8"))
            .expect("valid")
            .setup,
        odd
    );
    let silent = Setup { label: None, ..odd };
    let text = render(&silent, "dsa7").expect("UTF-8");
    assert_eq!(read(&text).expect("valid").setup, silent);
}

#[test]
fn a_file_name_that_names_no_unit_needs_the_key() {
    let error = parse(
        "[[member]]\nname=\"a\"\npath=\"/a\"",
        Path::new("/etc/.toml"),
    )
    .unwrap_err();
    assert!(error.to_string().contains("cannot be the name of a unit") && !error.hint().is_empty());
}

#[test]
fn the_examples_are_valid() {
    let two = include_str!("../../../examples/two-members.toml");
    let three = include_str!("../../../examples/three-members.toml");
    for (text, unit, members) in [(two, "dsa1", 2), (three, "payroll", 3)] {
        let setup = read(text).expect(unit).setup;
        assert_eq!((setup.unit.as_str(), setup.members.len()), (unit, members));
    }
}

#[test]
fn parameters_are_read_by_the_table() {
    let text = "[params]\nmax_copies = 0\ndefault_detach_policy = \"none\"\npriority = \"7\"";
    let params = read(&change("[params]", text)).expect("valid").params;
    let expected = [
        (Param::DefaultDetachPolicy, 2),
        (Param::MaxCopies, 0),
        (Param::Priority, 7),
    ];
    assert_eq!(params, expected);
}

#[test]
fn rights_that_make_no_sense_are_named_by_their_key() {
    let text = change("control_mode = \"0660\"", "control_mode = \"0666\"");
    let error = read(&text).expect_err("too wide");
    let says = "/etc/shadowset/dsa1.toml: [mount] control_mode: takes an octal mode";
    assert!(error.to_string().starts_with(says), "{error}");
}
