//! The tree of a unit that has a little of everything.

use std::sync::mpsc;

use super::*;
use crate::control::testing::Fake;
use crate::server::setup::Durability;

fn tree() -> (Arc<Fake>, Tree) {
    let fake = Fake::new();
    let unit: Arc<dyn Unit> = Arc::clone(&fake) as Arc<dyn Unit>;
    let tree = Tree::new(unit, Arc::new(Logbook::default()));
    (fake, tree)
}

fn at(tree: &Tree, path: &str) -> NodeRef {
    path.split('/').fold(NodeRef::ROOT, |dir, name| {
        tree.lookup(dir, name)
            .unwrap_or_else(|| panic!("{path}: no {name}"))
    })
}

fn text(tree: &Tree, path: &str) -> String {
    let bytes = tree.show(at(tree, path)).expect("there");
    String::from_utf8(bytes).expect("UTF-8")
}

fn store(tree: &Tree, path: &str, bytes: &[u8]) -> StoreOutcome {
    let (tx, rx) = mpsc::channel();
    let done: Stored = Box::new(move |outcome| tx.send(outcome).expect("still waiting"));
    tree.store(at(tree, path), bytes, done);
    rx.recv().expect("answered")
}

/// Every node that can be reached, with its path.
fn walk(tree: &Tree, dir: NodeRef, path: &str, out: &mut Vec<(String, NodeRef)>) {
    for entry in tree.list(dir).expect("a directory") {
        let path = format!("{path}{}", entry.name);
        assert_eq!(tree.lookup(dir, &entry.name), Some(entry.node));
        assert_eq!(tree.parent(entry.node), dir, "{path}");
        out.push((path.clone(), entry.node));
        if entry.node.node().kind == Kind::Dir {
            walk(tree, entry.node, &format!("{path}/"), out);
        }
    }
}

#[test]
fn every_node_is_reached_renders_and_ends_with_a_newline() {
    let (_, tree) = tree();
    let mut nodes = Vec::new();
    walk(&tree, NodeRef::ROOT, "", &mut nodes);
    for (path, node) in &nodes {
        let attr = tree.attr(*node).expect("there");
        assert_eq!(attr.mode, node.node().mode);
        assert_eq!(NodeRef::from_number(node.number()), Some(*node), "{path}");
        let contents = tree.show(*node);
        assert_eq!(contents.is_none(), attr.kind == Kind::Dir, "{path}");
        if let (Some(contents), Kind::File) = (contents, attr.kind) {
            let empty_is_right = path == "error_log";
            let binary = path.ends_with("/map");
            assert!(
                binary || empty_is_right || contents.ends_with(b"\n"),
                "{path}"
            );
        }
    }
    for node in TABLE.iter().skip(1) {
        assert!(
            nodes.iter().any(|(_, n)| n.node().path == node.path),
            "{node:?}"
        );
    }
    let mut numbers: Vec<u64> = nodes.iter().map(|(_, n)| n.number()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), nodes.len(), "numbers belong to one node");
}

/// Files that show one thing, and what they show.
const SHOWN: &[(&str, &str)] = &[
    ("abi", "1\n"),
    ("name", "dsa1\n"),
    ("label", "payroll\n"),
    ("size", "196096\n"),
    ("region_blocks", "127\n"),
    ("generation", "5\n"),
    ("created", "-\n"),
    ("state", "copying\n"),
    ("last_error", "none\n"),
    (
        "events",
        "{\"seq\":93,\"time\":\"1970-01-01T00:00:01.000Z\",\"event\":\"member-detached\",\
             \"member\":\"m3\",\"bitmap\":\"00000007\"}\n",
    ),
    ("members/m1/path", "/srv/images/m1.img\n"),
    ("members/m1/reason", "-\n"),
    ("members/m2/state", "copy-target\n"),
    ("members/m3/since", "1970-01-01T00:00:02.000Z\n"),
    ("members/m3/bitmap", "../../bitmaps/00000007"),
    (
        "members/m3/plan",
        "verdict minicopy\nreason its bitmap tells what has changed\nbytes 131072\n\
             extents 2\neta 2\n",
    ),
    (
        "members/m1/plan",
        "verdict refused\nreason m1 is a source member already\nbytes 0\nextents 0\neta -\n",
    ),
    ("bitmaps/00000007/member", "m3\n"),
    ("bitmaps/00000007/state", "active\n"),
    ("bitmaps/00000008/state", "in-use\n"),
    ("bitmaps/00000007/durability", "memory\n"),
    ("bitmaps/00000007/bits", "4\n"),
    ("bitmaps/00000007/set_bits", "3\n"),
    ("bitmaps/00000007/set_bytes", "131072\n"),
    ("bitmaps/00000007/percent", "75.00\n"),
    ("bitmaps/00000007/uncovered_bytes", "0\n"),
    ("bitmaps/00000007/ranges", "0 127\n254 129\n"),
    (
        "bitmaps/00000007/extents.json",
        "[{\"start\":0,\"length\":65024,\"data\":true},\
             {\"start\":130048,\"length\":66048,\"data\":true}]\n",
    ),
    ("operations/9/kind", "minicopy\n"),
    ("params/max_copies", "4\n"),
    ("params/default_detach_policy", "minicopy=optional\n"),
    ("operations/9/target", "m2\n"),
    ("operations/9/finished", "-\n"),
    (
        "operations/9/progress",
        "done_bytes 65024\ntotal_bytes 130048\nskipped_bytes 66048\ncopied_bytes 65024\n\
             percent 50.00\nrate_bps 1048576\neta_s 2\nfence_block 0\n",
    ),
];

#[test]
fn files_show_what_is_published() {
    let (_, tree) = tree();
    for (path, content) in SHOWN {
        assert_eq!(text(&tree, path), *content, "{path}");
    }
    assert_eq!(
        tree.show(at(&tree, "bitmaps/00000007/map")),
        Some(vec![0b1101])
    );
}

#[test]
fn a_read_only_unit_says_so() {
    let (fake, tree) = tree();
    fake.change(|p| p.read_only = true);
    assert_eq!(text(&tree, "state"), "read-only\n");
}

#[test]
fn the_durability_is_that_of_the_unit() {
    let (fake, tree) = tree();
    for durability in Durability::ALL {
        fake.change(|p| p.durability = durability);
        let name = durability.name();
        let shown = text(&tree, "bitmaps/00000007/durability");
        assert_eq!(shown, format!("{name}\n"));
        let json: serde_json::Value =
            serde_json::from_str(&text(&tree, "status.json")).expect("JSON");
        assert_eq!(json["durability"], name);
        let warned = text(&tree, "show").contains("end with this mount");
        assert_eq!(warned, durability == Durability::Memory);
    }
}

#[test]
fn status_json_has_every_field_of_the_interface() {
    let (_, tree) = tree();
    let json: serde_json::Value = serde_json::from_str(&text(&tree, "status.json")).expect("JSON");
    let has = |object: &serde_json::Value, keys: &str| {
        for key in keys.split_whitespace() {
            assert!(object.get(key).is_some(), "{key} is missing");
        }
    };
    has(
        &json,
        "schema unit uuid label generation time state size volsize region_blocks durability \
         members bitmaps operations params",
    );
    assert_eq!(json["schema"], 1);
    assert_eq!(json["durability"], "memory");
    assert_eq!(json["time"], "1970-01-01T00:01:00.000Z");
    for member in json["members"].as_array().expect("a list") {
        has(
            member,
            "name path uuid state reason since size errors bitmap read_cost site fingerprint stats",
        );
    }
    assert_eq!(json["members"][0]["reason"], serde_json::Value::Null);
    assert_eq!(json["members"][2]["bitmap"], "00000007");
    for bitmap in json["bitmaps"].as_array().expect("a list") {
        has(
            bitmap,
            "id member type state policy created generation bits set_bits set_bytes covered_bytes \
             uncovered_bytes",
        );
    }
    for operation in json["operations"].as_array().expect("a list") {
        has(
            operation,
            "id kind source target state done_bytes total_bytes copied_bytes skipped_bytes \
             percent rate_bps eta_s started finished",
        );
    }
    assert_eq!(json["params"]["max_copies"], 4);
    assert_eq!(json["params"]["default_detach_policy"], "minicopy=optional");
    let params = json["params"].as_object().expect("an object");
    assert_eq!(params.len(), Param::ALL.len());
    assert_eq!(json["operations"][0]["percent"], 50.0);
    assert_eq!(json["operations"][0]["finished"], serde_json::Value::Null);
}

#[test]
fn the_flat_status_has_a_block_for_each_object() {
    let (_, tree) = tree();
    let status = text(&tree, "status");
    let blocks: Vec<&str> = status.split("\n\n").collect();
    assert_eq!(blocks.len(), 1 + 3 + 2 + 1);
    assert!(blocks[0].starts_with("unit dsa1\n") && blocks[0].contains("\nstate copying\n"));
    assert!(blocks[0].contains("\nparams.max_copies 4\n"), "{status}");
    let policy = "\nparams.default_detach_policy minicopy=optional\n";
    assert!(blocks[0].contains(policy), "{status}");
    assert!(blocks[3].starts_with("member m3\n") && blocks[3].contains("\nbitmap 00000007\n"));
    assert!(blocks[1].contains("\nreason -\n"));
    assert!(blocks[5].starts_with("bitmap 00000007\n"));
    assert!(blocks[6].starts_with("operation 9\n") && blocks[6].contains("\npercent 50.00\n"));
}

#[test]
fn commands_go_to_the_server_and_answers_come_back() {
    let (fake, tree) = tree();
    let good = store(&tree, "control", b"delete-bitmap 00000007\n");
    assert_eq!(
        (good.errno, good.text.as_str()),
        (0, "ok: it is done\nbitmap 00000007\n")
    );
    assert_eq!(store(&tree, "members/m3/state", b"attach").errno, 0);
    assert_eq!(store(&tree, "operations/9/state", b"pause\n").errno, 0);
    let requests = fake.requests.lock().expect("not poisoned");
    assert_eq!(requests[0], Request::DeleteBitmap(BitmapId(7)));
    assert!(matches!(&requests[1], Request::Attach { what, .. } if what == "m3"));
    assert_eq!(requests[2], Request::Pause(OpId(9)));
}

#[test]
fn the_file_of_a_parameter_takes_its_value_alone() {
    let (fake, tree) = tree();
    assert_eq!(store(&tree, "params/max_copies", b"2\n").errno, 0);
    for wrong in [&b""[..], b"1 2", b"set max_copies 2", b"\"2"] {
        let refused = store(&tree, "params/max_copies", wrong);
        assert_eq!(refused.errno, libc::EINVAL, "{refused:?}");
        assert!(
            refused.text.starts_with("error: syntax EINVAL\n"),
            "{refused:?}"
        );
    }
    assert_eq!(store(&tree, "members/m1/read_cost", b"7").errno, 0);
    let refused = store(&tree, "params/HELP", b"1");
    assert_eq!(refused.errno, libc::EPERM);
    let requests = fake.requests.lock().expect("not poisoned");
    let set = |name: &str, value: &str| Request::Set {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    assert_eq!(
        *requests,
        [set("max_copies", "2"), set("m1.read_cost", "7")]
    );
    for name in text(&tree, "params/HELP")
        .lines()
        .skip(1)
        .map(|l| l.split(' ').next())
    {
        let name = name.expect("a name");
        assert!(tree.lookup(at(&tree, "params"), name).is_some(), "{name}");
    }
}

#[test]
fn refusals_are_read_back_and_logged() {
    let (_, tree) = tree();
    let refused = store(&tree, "control", b"expel m1\n");
    assert_eq!(refused.errno, libc::EBUSY);
    let expected = "error: last-source EBUSY\nm1 is the only source member\n  expel m1\n        ^\n\
                    hint: attach another member first\n";
    assert_eq!(refused.text, expected);
    assert!(text(&tree, "last_error").starts_with(expected));
    assert_eq!(store(&tree, "control", b"\n").errno, libc::EINVAL);
    assert_eq!(text(&tree, "error_log").matches("error: ").count(), 2);
    assert_eq!(store(&tree, "error_log", b"x").errno, 0);
    assert_eq!(text(&tree, "error_log"), "");
    assert_ne!(text(&tree, "last_error"), "none\n");
    assert_eq!(store(&tree, "state", b"x").errno, libc::EPERM);
}

#[test]
fn what_has_vanished_is_gone_everywhere() {
    let (fake, tree) = tree();
    let (bits, state) = (
        at(&tree, "bitmaps/00000007/bits"),
        at(&tree, "operations/9/state"),
    );
    fake.change(|p| {
        p.set.bitmaps.pop();
        p.set.operations.clear();
        p.set.members[2].bitmap = None;
    });
    assert_eq!((tree.show(bits), tree.attr(bits)), (None, None));
    assert_eq!(tree.list(tree.parent(bits)), None);
    assert_eq!(tree.lookup(at(&tree, "bitmaps"), "00000007"), None);
    assert_eq!(tree.lookup(at(&tree, "members/m3"), "bitmap"), None);
    let (tx, rx) = mpsc::channel();
    let done: Stored = Box::new(move |outcome| tx.send(outcome).expect("still waiting"));
    tree.store(state, b"pause", done);
    let outcome = rx.recv().expect("answered");
    assert_eq!(outcome.errno, libc::ENOENT);
    assert!(outcome.text.contains("operation 9 does not exist any more"));
}

#[test]
fn rmdir_deletes_bitmaps_and_forgets_operations_and_nothing_else() {
    let (fake, tree) = tree();
    let rmdir = |dir: &str, name: &str| {
        let (tx, rx) = mpsc::channel();
        let done: Stored = Box::new(move |outcome| tx.send(outcome).expect("still waiting"));
        tree.rmdir(at(&tree, dir), name, done);
        rx.recv().expect("answered").errno
    };
    assert_eq!(rmdir("bitmaps", "00000007"), 0);
    assert_eq!(rmdir("operations", "9"), 0);
    assert_eq!(rmdir("members", "m1"), libc::EPERM);
    assert_eq!(rmdir("bitmaps", "00000009"), libc::ENOENT);
    assert_eq!(
        *fake.requests.lock().expect("not poisoned"),
        [Request::DeleteBitmap(BitmapId(7)), Request::Forget(OpId(9))]
    );
}

#[test]
fn a_look_tells_which_state_it_shows() {
    let (fake, tree) = tree();
    let status = at(&tree, "status.json");
    let (seq, text) = tree.look(status).expect("there");
    assert_eq!((seq, Some(&text)), (tree.seq(), tree.show(status).as_ref()));
    fake.change(|p| p.set.members[0].errors = 1);
    assert_eq!(tree.seq(), seq + 1);
    let (now, changed) = tree.look(status).expect("there");
    assert!(now == seq + 1 && changed != text);
}

#[test]
fn numbers_that_belong_to_no_node_are_refused() {
    assert_eq!(NodeRef::from_number(TABLE.len() as u64), None);
    assert_eq!(
        NodeRef::from_number(1 << INDEX_BITS | 1),
        None,
        "abi of an object"
    );
}
