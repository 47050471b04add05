//! What programs read of a unit: status.json by its schema, metrics by a parser of OpenMetrics, counters and the
//! numbers of events. The judges are other people's: jsonschema and prometheus_client for Python.

use crate::bed::{MIB, Plan, Unit, eventually};

/// Validates what it reads on its standard input against the schema.
const VALIDATE: &str = "
import json, sys
import jsonschema
schema = json.load(open(sys.argv[1]))
jsonschema.Draft202012Validator.check_schema(schema)
jsonschema.Draft202012Validator(schema).validate(json.load(sys.stdin))
";

/// Parses what it reads as OpenMetrics, and prints each sample as a line of name, labels and value.
const PARSE: &str = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    assert family.documentation, family.name
    for s in family.samples:
        labels = ','.join('%s=%s' % pair for pair in sorted(s.labels.items()))
        print(s.name, labels, '%g' % s.value)
";

fn validate(unit: &Unit) {
    std::fs::write(unit.path("validate.py"), VALIDATE).expect("written");
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/status.schema.json");
    unit.sh(&format!(
        "/usr/bin/python3 $D/validate.py {schema} < $S/status.json"
    ));
}

/// The samples of `metrics`.
fn samples(unit: &Unit) -> Vec<String> {
    std::fs::write(unit.path("parse.py"), PARSE).expect("written");
    let lines = unit.sh("/usr/bin/python3 $D/parse.py < $S/metrics");
    lines.lines().map(str::to_owned).collect()
}

fn sample(unit: &Unit, name: &str) -> f64 {
    let all = samples(unit);
    let line = all.iter().find_map(|line| line.strip_prefix(name));
    let value = line.unwrap_or_else(|| panic!("{name} is not in {all:#?}"));
    value.trim().parse().expect("a number")
}

fn counter(unit: &Unit, file: &str, key: &str) -> u64 {
    let text = unit.read(file);
    let line = text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then_some(value)
    });
    let value = line.unwrap_or_else(|| panic!("{key} is not in {text}"));
    value.parse().expect("a number")
}

#[test]
fn status_json_follows_its_schema_in_every_state() {
    let mut unit = Unit::new(3, 8 * MIB);
    validate(&unit);
    unit.detach("m3");
    unit.sh("dd if=/dev/urandom of=$U bs=64k count=4 conv=notrunc,fsync status=none");
    unit.accepted("stall 60");
    validate(&unit);
    unit.accepted("unstall");
    unit.accepted("set max_copies 0");
    unit.accepted("attach m3");
    validate(&unit);
    unit.accepted("set max_copies 4");
    eventually("it is back", || unit.state_of("m3") == "source");
    let verify = unit.accepted("verify");
    unit.finished(verify.number("operation"));
    unit.accepted("expel m2");
    validate(&unit);
    unit.stop();
}

#[test]
fn metrics_are_open_metrics_and_count_what_was_asked() {
    let mut unit = Unit::new(2, 8 * MIB);
    unit.sh("dd if=/dev/urandom of=$U bs=64k count=4 conv=notrunc,fsync oflag=direct status=none");
    unit.sh("dd if=$U of=$D/read bs=64k count=2 iflag=direct status=none");
    unit.detach("m2");
    unit.sh("dd if=/dev/urandom of=$U bs=64k count=1 conv=notrunc oflag=direct status=none");
    let bytes = |request| {
        sample(
            &unit,
            &format!("shadowset_request_bytes_total request={request},unit=dsa1"),
        )
    };
    assert_eq!((bytes("write"), bytes("read")), (327_680.0, 131_072.0));
    let writes = "shadowset_request_seconds_count request=write,unit=dsa1";
    assert_eq!(sample(&unit, writes), 5.0);
    let state = "shadowset_state shadowset_state=steady,unit=dsa1";
    assert_eq!(sample(&unit, state), 1.0);
    let away = "shadowset_member_state member=m2,shadowset_member_state=detached,unit=dsa1";
    assert_eq!(sample(&unit, away), 1.0);
    let bitmap = unit.read("members/m2/bitmap/set_bytes");
    let id = unit.sh("ls $S/bitmaps");
    let marked = format!("shadowset_bitmap_set_bytes bitmap={id},member=m2,unit=dsa1");
    assert_eq!(sample(&unit, &marked).to_string(), bitmap.trim());
    assert_eq!(counter(&unit, "stats/io", "write_bytes"), 327_680);
    assert_eq!(counter(&unit, "stats/io", "write_errors"), 0);
    unit.minicopy("m2");
    let copied = counter(&unit, "stats/copy", "minicopy_copied_bytes");
    assert_eq!(copied.to_string(), bitmap.trim());
    assert_eq!(counter(&unit, "stats/copy", "minicopy_done"), 1);
    let within: u64 = unit
        .read("stats/latency")
        .lines()
        .filter_map(|line| line.strip_prefix("write_within_")?.split_once(' '))
        .map(|(_, count)| count.parse::<u64>().expect("a number"))
        .sum();
    assert_eq!(within, 5);
    unit.accepted("reset-counters dry-run");
    assert_eq!(counter(&unit, "stats/io", "write_count"), 5);
    unit.accepted("reset-counters");
    assert_eq!(counter(&unit, "stats/io", "write_count"), 0);
    assert_eq!(counter(&unit, "stats/copy", "minicopy_done"), 0);
    assert_eq!(counter(&unit, "members/m1/stats", "write_count"), 0);
    samples(&unit);
    unit.stop_and_compare();
}

#[test]
fn errors_of_members_are_forgotten_by_reset_counters() {
    let mut unit = Unit::new(2, 8 * MIB);
    unit.accepted("expel m2");
    assert_eq!(unit.read("members/m2/errors"), "1\n");
    unit.accepted("reset-counters");
    assert_eq!(unit.read("members/m2/errors"), "0\n");
    assert_eq!(unit.state_of("m2"), "expelled");
    unit.stop();
}

#[test]
fn a_fingerprint_tells_images_apart_and_outlives_the_mount() {
    let mut unit = Unit::new(3, 8 * MIB);
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=8 conv=notrunc,fsync status=none");
    assert_eq!(unit.read("members/m2/fingerprint"), "-\n");
    unit.detach("m2");
    let second = unit.read("members/m2/fingerprint");
    assert!(second.starts_with("8388608-"), "{second}");
    unit.stop();
    unit.mount();
    assert_eq!(unit.read("members/m2/fingerprint"), second);
    unit.sh("dd if=/dev/urandom of=$U bs=1M count=8 conv=notrunc,fsync status=none");
    unit.minicopy("m2");
    assert_eq!(unit.read("members/m2/fingerprint"), "-\n");
    unit.detach("m2");
    assert_ne!(unit.read("members/m2/fingerprint"), second);
    unit.stop();
}

/// Number and name of each event.
fn numbered(unit: &Unit) -> Vec<(u64, String)> {
    let text = unit.read("events");
    let event = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let seq = event["seq"].as_u64().expect("a number");
        (seq, event["event"].as_str().expect("a name").to_owned())
    };
    text.lines().map(event).collect()
}

#[test]
fn events_keep_their_numbers_and_a_mount_tells_who_is_away() {
    let mut unit = Plan::new(2, 8 * MIB).mount();
    unit.detach("m2");
    let before = numbered(&unit);
    unit.stop();
    unit.mount();
    let after = numbered(&unit);
    assert_eq!(after[..before.len()], before);
    let new: Vec<&str> = after[before.len()..]
        .iter()
        .map(|(_, event)| event.as_str())
        .collect();
    assert_eq!(new, ["unmounted", "mounted", "member-away"]);
    assert!(after.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0));
    unit.kill();
    unit.mount();
    let last = numbered(&unit);
    let leap = last.windows(2).find(|pair| pair[1].0 > pair[0].0 + 1);
    let leap = leap.unwrap_or_else(|| panic!("{last:?}"));
    // What it told last may not be in the file, but its numbers are not used again.
    let (seq, event) = &leap[1];
    assert_eq!((*seq, event.as_str()), (leap[0].0 + 1001, "mounted"));
    assert!(*seq > after.last().expect("some").0, "{last:?}");
    unit.stop();
}
