//! `metrics`: counters and states as OpenMetrics text (version 1.0.0), for Prometheus and its like.
//!
//! Every name is in one table, which the manual page is checked against. Labels name objects as the tree does.
//! Nothing is counted here.

use std::fmt::Write as _;

use super::render::Context;
use super::show::Counters;
use super::stats::{ASKED, running_bytes};
use crate::server::Published;
use crate::server::meter::{Counted, bound};
use crate::set::{MemberState, SetState};

/// Kind of a family, as OpenMetrics calls it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Info,
    StateSet,
    Gauge,
    Counter,
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::StateSet => "stateset",
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// One family of metrics.
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    samples: fn(&Context<'_>, &mut Samples<'_>),
}

/// Where the samples of one family go.
struct Samples<'a> {
    out: &'a mut String,
    name: &'static str,
    unit: &'a str,
}

impl Samples<'_> {
    /// One sample; `suffix` follows the name of the family.
    fn add(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let _ = write!(self.out, "{}{suffix}{{unit=\"", self.name);
        escaped(self.out, self.unit);
        for (key, text) in labels {
            let _ = write!(self.out, "\",{key}=\"");
            escaped(self.out, text);
        }
        let _ = writeln!(self.out, "\"}} {value}");
    }

    fn states(&mut self, labels: &[(&str, &str)], states: &[&str], now: &str) {
        for state in states {
            let mut labels = labels.to_vec();
            labels.push((self.name, state));
            self.add("", &labels, u8::from(*state == now));
        }
    }

    fn histogram(&mut self, labels: &[(&str, &str)], counted: &Counted) {
        let mut so_far = 0;
        for (at, requests) in counted.buckets.into_iter().enumerate() {
            so_far += requests;
            let le = bound(at).map_or_else(|| "+Inf".to_owned(), seconds);
            let mut labels = labels.to_vec();
            labels.push(("le", &le));
            self.add("_bucket", &labels, so_far);
        }
        // Of the same look as the buckets: the count beside them may have gone on.
        self.add("_count", labels, so_far);
        self.add("_sum", labels, seconds(counted.micros));
    }
}

/// Microseconds in seconds, as OpenMetrics writes a float.
fn seconds(micros: u64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

fn escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

const fn family(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    samples: fn(&Context<'_>, &mut Samples<'_>),
) -> Family {
    Family {
        name,
        kind,
        help,
        samples,
    }
}

/// Every family, in the order of the text.
static FAMILIES: &[Family] = &[
    family(
        "shadowset",
        Kind::Info,
        "The unit and the program that serves it.",
        |c, to| {
            let uuid = c.now.uuid.to_string();
            let version = env!("CARGO_PKG_VERSION");
            let labels = [
                ("label", c.now.label.as_str()),
                ("uuid", &uuid),
                ("version", version),
            ];
            to.add("_info", &labels, 1);
        },
    ),
    family(
        "shadowset_state",
        Kind::StateSet,
        "State of the unit, the worst that applies.",
        |c, to| {
            let states = SetState::ALL.map(SetState::name);
            let states = [&states[..], &[Published::READ_ONLY]].concat();
            to.states(&[], &states, c.now.state_word());
        },
    ),
    family(
        "shadowset_size_bytes",
        Kind::Gauge,
        "Size of the unit.",
        |c, to| to.add("", &[], c.now.set.geometry.size()),
    ),
    family(
        "shadowset_generation",
        Kind::Gauge,
        "Durable number of the membership.",
        |c, to| to.add("", &[], c.now.set.generation.number()),
    ),
    family(
        "shadowset_request_seconds",
        Kind::Histogram,
        "How long requests of applications took.",
        |c, to| {
            for (asked, (counted, _)) in ASKED.into_iter().zip(c.now.meters.of_unit()) {
                to.histogram(&[("request", asked)], &counted);
            }
        },
    ),
    family(
        "shadowset_request_bytes",
        Kind::Counter,
        "Bytes that applications read and wrote.",
        |c, to| {
            for (asked, (counted, _)) in ASKED.into_iter().zip(c.now.meters.of_unit()).take(2) {
                to.add("_total", &[("request", asked)], counted.bytes);
            }
        },
    ),
    family(
        "shadowset_request_errors",
        Kind::Counter,
        "Requests of applications that failed.",
        |c, to| {
            for (asked, (_, errors)) in ASKED.into_iter().zip(c.now.meters.of_unit()) {
                to.add("_total", &[("request", asked)], errors);
            }
        },
    ),
    family(
        "shadowset_member_state",
        Kind::StateSet,
        "State of a member.",
        |c, to| {
            for m in &c.now.set.members {
                to.states(&[("member", &m.name)], MemberState::WORDS, m.state);
            }
        },
    ),
    family(
        "shadowset_member_answers",
        Kind::Gauge,
        "Whether a member answers what it is asked: 1 or 0.",
        |c, to| {
            for m in &c.now.set.members {
                to.add("", &[("member", &m.name)], u8::from(m.answers));
            }
        },
    ),
    family(
        "shadowset_member_errors",
        Kind::Counter,
        "Errors of a member.",
        |c, to| {
            for m in &c.now.set.members {
                to.add("_total", &[("member", &m.name)], m.errors);
            }
        },
    ),
    family(
        "shadowset_member_request_seconds",
        Kind::Histogram,
        "How long requests of a member took.",
        |c, to| {
            for m in &c.now.set.members {
                for (asked, counted) in ASKED.into_iter().zip(c.now.meters.of(m.id)) {
                    to.histogram(&[("member", &m.name), ("request", asked)], &counted);
                }
            }
        },
    ),
    family(
        "shadowset_member_request_bytes",
        Kind::Counter,
        "Bytes that were read from a member and written to it.",
        |c, to| {
            for m in &c.now.set.members {
                for (asked, counted) in ASKED.into_iter().zip(c.now.meters.of(m.id)).take(2) {
                    let labels = [("member", m.name.as_str()), ("request", asked)];
                    to.add("_total", &labels, counted.bytes);
                }
            }
        },
    ),
    family(
        "shadowset_bitmap_set_bytes",
        Kind::Gauge,
        "Bytes that differ, or may, of a member with a bitmap.",
        |c, to| bitmaps(c, to, |map| map.stale_bytes()),
    ),
    family(
        "shadowset_bitmap_set_bits",
        Kind::Gauge,
        "Regions whose bits are set in a bitmap.",
        |c, to| bitmaps(c, to, |map| map.count()),
    ),
    family(
        "shadowset_bitmap_memory_bytes",
        Kind::Gauge,
        "Memory that a bitmap takes.",
        |c, to| bitmaps(c, to, |map| map.memory_bytes()),
    ),
    family(
        "shadowset_operation_done_bytes",
        Kind::Gauge,
        "Bytes of an operation that are done; of those that are not over.",
        |c, to| operations(c, to, |n| n.done),
    ),
    family(
        "shadowset_operation_total_bytes",
        Kind::Gauge,
        "All bytes of an operation; of those that are not over.",
        |c, to| operations(c, to, |n| n.total),
    ),
    family(
        "shadowset_operations",
        Kind::Counter,
        "Operations that have ended.",
        |c, to| {
            for (kind, total) in c.now.tally.totals() {
                for (end, count) in [
                    ("done", total.done),
                    ("failed", total.failed),
                    ("cancelled", total.cancelled),
                ] {
                    to.add("_total", &[("kind", kind), ("end", end)], count);
                }
            }
        },
    ),
    family(
        "shadowset_copied_bytes",
        Kind::Counter,
        "Bytes that operations moved.",
        |c, to| {
            for (kind, total) in c.now.tally.totals() {
                let bytes = total.copied_bytes + running_bytes(c, kind);
                to.add("_total", &[("kind", kind)], bytes);
            }
        },
    ),
    family(
        "shadowset_announcements",
        Kind::Counter,
        "First writes to regions, which were announced to the durable bitmaps.",
        |c, to| to.add("_total", &[], c.now.announced.announcements()),
    ),
    family(
        "shadowset_commits",
        Kind::Counter,
        "Commits of announcements.",
        |c, to| to.add("_total", &[], c.now.announced.commits()),
    ),
];

fn bitmaps(c: &Context<'_>, to: &mut Samples<'_>, of: fn(&crate::set::WriteBitmap) -> u64) {
    for bitmap in &c.now.set.bitmaps {
        let Some(tag) = bitmap.tag else { continue };
        let member = bitmap.member.map_or("", |id| c.now.set.name(id));
        let id = tag.id.to_string();
        to.add("", &[("bitmap", &id), ("member", member)], of(&bitmap.map));
    }
}

fn operations(c: &Context<'_>, to: &mut Samples<'_>, of: fn(&Counters) -> u64) {
    for o in c.now.set.operations.iter().filter(|o| !o.state.is_over()) {
        let id = o.id.to_string();
        let target = o.target().map_or("", |id| c.now.set.name(id));
        let labels = [
            ("operation", id.as_str()),
            ("kind", o.kind()),
            ("member", target),
        ];
        to.add("", &labels, of(&Counters::of(c.now, o)));
    }
}

/// The name of every family.
pub fn names() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.name)
}

/// The whole text.
pub(super) fn metrics(c: &Context<'_>) -> String {
    let mut out = String::new();
    for family in FAMILIES {
        let (name, kind) = (family.name, family.kind.name());
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for unit in ["bytes", "seconds"] {
            if name.ends_with(unit) {
                let _ = writeln!(out, "# UNIT {name} {unit}");
            }
        }
        let _ = writeln!(out, "# HELP {name} {}", family.help);
        let mut samples = Samples {
            out: &mut out,
            name,
            unit: &c.now.unit,
        };
        (family.samples)(c, &mut samples);
    }
    out.push_str("# EOF\n");
    out
}
