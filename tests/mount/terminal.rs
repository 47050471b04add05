//! What programs, terminals and pipes get of the command line: JSON of each verb, colours, bars.

use serde_json::Value;

use crate::bed::{MIB, Unit};

/// Verbs on a unit whose m3 is detached and whose operation 1 is a verify that has ended, with the exit
/// code of each.
const LINES: [(&str, i32); 33] = [
    ("list", 0),
    ("status", 0),
    ("status dsa1", 0),
    ("show dsa1", 0),
    ("examine $I/m1.img --scb $I/m1.scb", 0),
    ("detach dsa1 m2 -n", 0),
    ("attach dsa1 m3 -n", 0),
    ("release dsa1 m3 -n", 0),
    ("expel dsa1 m2 -n", 0),
    ("abort dsa1 -n", 4),
    ("merge dsa1 -n", 0),
    ("verify dsa1 -n", 0),
    ("verify dsa1 --wait", 0),
    ("resize dsa1 -n", 4),
    ("reset-counters dsa1 -n", 0),
    ("stall dsa1 1 -n", 0),
    ("unstall dsa1 -n", 4),
    ("bitmap list dsa1", 0),
    ("bitmap show dsa1 m3", 0),
    ("bitmap extents dsa1 m3", 0),
    ("bitmap delete dsa1 m3 -n", 0),
    ("op list dsa1", 0),
    ("op show dsa1 1", 0),
    ("op pause dsa1 1 -n", 4),
    ("op wait dsa1 1", 0),
    ("params list dsa1", 0),
    ("params get dsa1 m1.site", 0),
    ("params set dsa1 max_copies 2 -n", 0),
    ("wait dsa1", 0),
    ("loop detach dsa1", 3),
    ("completions bash", 0),
    ("mount dsa1 $M --log $D/log2", 32),
    ("frobnicate", 2),
];

#[test]
fn each_verb_answers_in_json() {
    let unit = Unit::new(3, 4 * MIB);
    unit.sh("shadowset verify dsa1 --wait; shadowset detach dsa1 m3 --policy minicopy");
    for (line, code) in LINES {
        let ran = unit.try_sh(&format!("shadowset --json {line}"));
        assert_eq!(ran.code, code, "{line}: {ran:?}");
        let value: Value =
            serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{line}: {e}: {}", ran.out));
        assert_eq!(code != 0, value["ok"] == false, "{line}: {value}");
    }
    let events = unit.sh("shadowset events dsa1 --json");
    for line in events.lines() {
        let event: Value = serde_json::from_str(line).expect("one on each line");
        assert!(event["seq"].is_u64(), "{event}");
    }
}

/// Runs a line on a terminal and gives what it writes there.
fn on_a_terminal(unit: &Unit, environment: &str, line: &str) -> String {
    unit.sh(&format!(
        "TERM=xterm {environment} script -qec '{line}' typed > terminal; cat terminal"
    ))
}

#[test]
fn colours_and_bars_are_for_terminals() {
    let unit = Unit::new(2, 8 * MIB);
    let status = "shadowset status dsa1";
    let shown = on_a_terminal(&unit, "", status);
    assert!(shown.contains("\x1b[32msteady\x1b[0m"), "{shown:?}");
    for environment in ["NO_COLOR=1", "TERM=dumb"] {
        let shown = on_a_terminal(&unit, environment, status);
        assert!(
            !shown.contains('\x1b') && shown.contains("steady"),
            "{shown:?}"
        );
    }
    assert!(!unit.sh(status).contains('\x1b'));
    unit.sh(
        "head -c 8M /dev/urandom | dd of=$U bs=1M conv=notrunc,fsync iflag=fullblock status=none
        shadowset detach dsa1 m2 --policy none; shadowset params set dsa1 copy_rate_max 2M",
    );
    let attach = "shadowset attach dsa1 m2 --policy full --wait";
    let shown = on_a_terminal(&unit, "", attach);
    assert!(
        shown.contains("] 100 % ") || shown.contains("=>"),
        "{shown:?}"
    );
    unit.sh("shadowset detach dsa1 m2 --policy none");
    let ran = unit.try_sh(attach);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let lines: Vec<&str> = ran
        .out
        .lines()
        .filter(|line| line.starts_with("op "))
        .collect();
    assert!(
        !ran.out.contains(['\r', '\x1b']) && lines.len() > 1,
        "{ran:?}"
    );
    assert!(lines.windows(2).all(|two| two[0] != two[1]), "{ran:?}");
}

#[test]
fn a_reader_that_goes_away_ends_each_verb_well() {
    let unit = Unit::new(2, 4 * MIB);
    for line in [
        "status dsa1",
        "params list dsa1",
        "events dsa1",
        "list",
        "--help",
    ] {
        unit.sh(&format!(
            "shadowset {line} 2> errors | head -n 1 > first; [ -s first ]; [ ! -s errors ]"
        ));
    }
}
