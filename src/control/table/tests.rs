//! The table against the interface's rules.

use super::*;

#[test]
fn every_node_has_a_directory_before_it_and_a_sentence() {
    for (index, node) in TABLE.iter().enumerate() {
        assert!(node.doc.ends_with('.'), "{node:?}");
        let parent = node.parent();
        assert_eq!(parent.is_none(), index == 0, "{node:?}");
        if let Some(parent) = parent {
            let above = TABLE[..index].iter().find(|n| n.path == parent);
            assert_eq!(above.map(|n| n.kind), Some(Kind::Dir), "{node:?}");
        }
        let same = TABLE.iter().filter(|n| n.path == node.path).count();
        assert_eq!(same, 1, "{node:?}");
    }
}

#[test]
fn modes_are_those_of_the_interface() {
    for node in TABLE {
        let mode = match (node.kind, node.store, node.path) {
            (Kind::Dir, None, _) => 0o755,
            (Kind::Link, None, _) => 0o777,
            (Kind::File, None, "bitmaps/<id>/map") => 0o400,
            (Kind::File, None, _) => 0o444,
            (Kind::File, Some(_), _) => 0o600,
            other => panic!("{other:?}"),
        };
        assert_eq!(node.mode, mode, "{node:?}");
    }
}

#[test]
fn the_nodes_that_poll_are_those_of_the_interface() {
    let polls: Vec<&str> = TABLE.iter().filter(|n| n.polls).map(|n| n.path).collect();
    assert_eq!(
        polls,
        [
            "state",
            "status",
            "status.json",
            "control",
            "events",
            "members/<m>/state",
            "operations/<n>/state",
            "operations/<n>/progress",
        ]
    );
}

#[test]
fn help_lists_every_node_and_command() {
    let help = help();
    for node in TABLE {
        let lines: Vec<&str> = help.lines().filter(|l| l.ends_with(node.doc)).collect();
        assert!(
            lines
                .iter()
                .any(|l| l.contains(node.path) && l.contains(&format!("{:04o}", node.mode))),
            "{node:?}"
        );
    }
    for spec in COMMANDS {
        let line = format!("{}  {}", spec.syntax, spec.doc);
        assert!(
            help.contains(&line) && spec.syntax.starts_with(spec.verb),
            "{line}"
        );
    }
}
