//! man/shadowset.toml.5 against the keys that are read, in both directions.

use std::collections::BTreeMap;

use super::*;
use crate::cli::node::Node;

const PAGE: &str = include_str!("../../../../man/shadowset.toml.5");

/// The items of each section, such as `site Pq 0 to 255, default 0`.
fn sections(page: &str) -> BTreeMap<String, Vec<String>> {
    let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut section = String::new();
    for line in page.lines() {
        if let Some(title) = line.strip_prefix(".Ss ").or(line.strip_prefix(".Sh ")) {
            section = title.to_owned();
        }
        let item = line
            .strip_prefix(".It Cm ")
            .or(line.strip_prefix(".It Va "));
        if let Some(item) = item {
            let items = sections.entry(section.clone()).or_default();
            items.push(item.to_owned());
        }
    }
    sections
}

/// The keys of a table, from the error about one that is none.
fn keys(error: &Error) -> Vec<String> {
    let text = error.to_string();
    let (_, expected) = text.split_once("expected ").expect("an unknown key");
    let words = expected.split('`').skip(1).step_by(2);
    let mut keys: Vec<String> = words.map(str::to_owned).collect();
    keys.sort();
    keys
}

fn of_unit(text: &str) -> Error {
    parse(text, Path::new("/etc/shadowset/dsa1.toml")).expect_err(text)
}

/// The first words of the items of a section, sorted.
fn names(page: &str, section: &str) -> Vec<String> {
    let sections = sections(page);
    let items = sections
        .get(section)
        .unwrap_or_else(|| panic!("there is no section {section}"));
    let name = |item: &String| item.split(' ').next().unwrap_or_default().to_owned();
    let mut names: Vec<String> = items.iter().map(name).collect();
    names.sort();
    names
}

#[test]
fn every_key_stands_in_the_page_and_no_other() {
    let mut unit = keys(&of_unit("zzz = 1"));
    // Tables have sections of their own.
    unit.retain(|key| !matches!(key.as_str(), "member" | "params" | "mount"));
    assert_eq!(names(PAGE, "The unit"), unit);
    let member = keys(&of_unit("[[member]]\nzzz = 1"));
    assert_eq!(names(PAGE, "[[member]]"), member);
    let mount = keys(&of_unit("[mount]\nzzz = 1"));
    assert_eq!(names(PAGE, "[mount]"), mount);
    let node = Node::parse("zzz = 1", Path::new("/etc/shadowset/node.toml"));
    assert_eq!(names(PAGE, "node.toml"), keys(&node.expect_err("no key")));
    let known = ["The unit", "[[member]]", "[params]", "[mount]", "node.toml"];
    for section in sections(PAGE).keys() {
        assert!(known.contains(&section.as_str()), "{section}");
    }
}

#[test]
fn parameters_and_ranges_in_the_page_are_those_that_are_read() {
    let found = sections(PAGE);
    let row = |param: &Param| {
        let spec = param.spec();
        let (takes, default) = (spec.takes(), spec.write(spec.default));
        format!("{} Pq {takes}, default {default}", spec.name)
    };
    let rows: Vec<String> = Param::ALL.iter().map(row).collect();
    assert_eq!(found["[params]"], rows);
    let of_members = [
        ("read_cost", OfMember::ReadCost),
        ("site", OfMember::Site),
        ("timeout", OfMember::Timeout),
    ];
    for (name, param) in of_members {
        let (default, takes) = of_member(param);
        let row = format!("{name} Pq {takes}, default {default}");
        assert!(found["[[member]]"].contains(&row), "{row}");
    }
    let (least, most) = (REGION_BLOCKS_RANGE.start(), REGION_BLOCKS_RANGE.end());
    let row = format!("region_blocks Pq {least} to {most}, default {REGION_BLOCKS_DEFAULT}");
    assert!(found["The unit"].contains(&row), "{row}");
    let row = crate::cli::node::units_row();
    assert!(found["node.toml"].contains(&row), "{row}");
}

#[test]
fn a_page_that_lacks_a_key_or_has_one_too_many_is_noticed() {
    let less = PAGE.replace(".It Cm durability", ".It Em durability");
    assert_ne!(names(&less, "The unit"), names(PAGE, "The unit"));
    let more = PAGE.replace(".Ss [mount]\n", ".Ss [mount]\n.It Cm colour\n");
    assert_ne!(names(&more, "[mount]"), names(PAGE, "[mount]"));
}

/// The literal displays behind `EXAMPLES`.
fn examples() -> Vec<String> {
    let (_, examples) = PAGE.split_once(".Sh EXAMPLES\n").expect("examples");
    let displays = examples.split(".Bd -literal -offset indent\n").skip(1);
    let text = |display: &str| display.split(".Ed\n").next().map(str::to_owned);
    displays.filter_map(text).collect()
}

#[test]
fn the_examples_of_the_page_are_valid() {
    let [two, three, node] = &examples()[..] else {
        panic!("three examples");
    };
    let path = Path::new("/etc/shadowset/dsa1.toml");
    assert_eq!(parse(two, path).expect("valid").setup.members.len(), 2);
    let three = parse(three, path).expect("valid");
    assert_eq!((three.setup.members.len(), three.params.len()), (3, 3));
    assert!(three.mount.require_members && three.mount.log.is_some());
    let node = Node::parse(node, Path::new("/etc/shadowset/node.toml")).expect("valid");
    assert_eq!((node.units_max, node.copy_rate_max), (40, Some(200 << 20)));
}
