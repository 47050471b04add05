//! `status` and `status.json`: the whole state at one instant.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::render::Context;
use super::show::{Counters, bitmap_state, uncovered};
use super::stats::Stats;
use super::text::{ABSENT, line, moment};
use crate::server::Published;
use crate::set::{BitmapStatus, MemberId, MemberStatus, Operation};

/// Version of the JSON's form.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Status<'a> {
    schema: u32,
    unit: &'a str,
    uuid: String,
    label: &'a str,
    generation: u64,
    time: String,
    state: &'static str,
    size: u64,
    volsize: u64,
    region_blocks: u32,
    durability: &'static str,
    durability_reason: Option<&'a str>,
    bitmaps_lost: Option<&'a str>,
    read_only: bool,
    stalled: Option<String>,
    mounted: String,
    created: Option<String>,
    members: Vec<Member<'a>>,
    bitmaps: Vec<Bitmap<'a>>,
    operations: Vec<Op<'a>>,
    params: BTreeMap<&'static str, serde_json::Value>,
}

#[derive(Serialize)]
struct Member<'a> {
    name: &'a str,
    path: &'a str,
    uuid: String,
    state: &'static str,
    reason: Option<&'a str>,
    since: String,
    size: u64,
    errors: u64,
    bitmap: Option<String>,
    read_cost: u32,
    site: u32,
    timeout: u32,
    answers: bool,
    fingerprint: Option<&'a str>,
    stats: Stats,
}

#[derive(Serialize)]
struct Bitmap<'a> {
    id: String,
    member: Option<&'a str>,
    #[serde(rename = "type")]
    kind: &'static str,
    state: &'static str,
    policy: &'static str,
    created: String,
    generation: u64,
    bits: u64,
    set_bits: u64,
    set_bytes: u64,
    covered_bytes: u64,
    uncovered_bytes: u64,
}

#[derive(Serialize)]
struct Op<'a> {
    id: u64,
    kind: &'static str,
    source: Option<&'a str>,
    target: Option<&'a str>,
    state: &'static str,
    done_bytes: u64,
    total_bytes: u64,
    copied_bytes: u64,
    skipped_bytes: u64,
    percent: f64,
    rate_bps: Option<u64>,
    eta_s: Option<u64>,
    started: Option<String>,
    finished: Option<String>,
    differing_blocks: Option<u64>,
    unreadable_blocks: Option<u64>,
    repaired_blocks: Option<u64>,
}

impl<'a> Status<'a> {
    fn of(c: &Context<'a>) -> Self {
        let (now, set) = (c.now, &c.now.set);
        let members = set.members.iter().map(|m| Member::of(m, now));
        Self {
            schema: SCHEMA,
            unit: &now.unit,
            uuid: now.uuid.to_string(),
            label: &now.label,
            generation: set.generation.number(),
            time: moment(now.time),
            state: now.state_word(),
            size: set.geometry.size().0,
            volsize: set.geometry.size().0,
            region_blocks: set.geometry.region_blocks(),
            durability: now.durability_now().name(),
            durability_reason: set.homeless.as_deref(),
            bitmaps_lost: set.lost.as_deref(),
            read_only: now.read_only,
            stalled: now.stalled.map(moment),
            mounted: moment(now.mounted),
            created: now.created.map(moment),
            members: members.collect(),
            bitmaps: set
                .bitmaps
                .iter()
                .filter_map(|b| Bitmap::of(now, b))
                .collect(),
            operations: set.operations.iter().map(|o| Op::of(now, o)).collect(),
            params: now.params.texts().map(param).collect(),
        }
    }
}

impl<'a> Member<'a> {
    fn of(m: &'a MemberStatus, now: &'a Published) -> Self {
        Self {
            name: &m.name,
            path: &m.path,
            uuid: m.uuid.to_string(),
            state: m.state,
            reason: Some(m.reason.as_str()).filter(|r| !r.is_empty()),
            since: moment(m.since),
            size: m.size.0,
            errors: m.errors,
            bitmap: m.bitmap.map(|id| id.to_string()),
            read_cost: m.read_cost,
            site: m.site,
            timeout: m.timeout,
            answers: m.answers,
            fingerprint: now.fingerprint(m.id),
            stats: Stats::of(now.meters.of(m.id)),
        }
    }
}

impl<'a> Bitmap<'a> {
    fn of(now: &'a Published, b: &BitmapStatus) -> Option<Self> {
        let (tag, geometry) = (b.tag?, b.map.geometry());
        Some(Self {
            id: tag.id.to_string(),
            member: b.member.map(|id: MemberId| now.set.name(id)),
            kind: "minicopy",
            state: bitmap_state(b),
            policy: tag.policy.name(),
            created: moment(tag.created),
            generation: tag.generation,
            bits: geometry.regions(),
            set_bits: b.map.count(),
            set_bytes: b.map.stale_bytes(),
            covered_bytes: geometry.size().0,
            uncovered_bytes: uncovered(now, b),
        })
    }
}

impl<'a> Op<'a> {
    fn of(now: &'a Published, o: &Operation) -> Self {
        let (n, rate) = (Counters::of(now, o), now.rate(o.id));
        let found = o.verify().map(|verify| verify.findings.counts());
        Self {
            id: o.id.0,
            kind: o.kind(),
            source: o.source().map(|id| now.set.name(id)),
            target: o.target().map(|id| now.set.name(id)),
            state: o.state.name(),
            done_bytes: n.done,
            total_bytes: n.total,
            copied_bytes: n.copied,
            skipped_bytes: n.skipped,
            percent: n.hundredths(o.state) as f64 / 100.0,
            rate_bps: rate.bytes_per_second,
            eta_s: rate.eta_s,
            started: o.started.map(moment),
            finished: o.finished.map(moment),
            differing_blocks: found.map(|found| found.differing),
            unreadable_blocks: found.map(|found| found.unreadable),
            repaired_blocks: found.map(|found| found.repaired),
        }
    }
}

/// A parameter: its value is a number where it is written as one.
fn param((name, text): (&'static str, String)) -> (&'static str, serde_json::Value) {
    let number = text.parse::<u64>().map(serde_json::Value::from);
    (name, number.unwrap_or_else(|_| text.into()))
}

/// `status.json`.
pub(super) fn json(c: &Context<'_>) -> String {
    serde_json::to_string_pretty(&Status::of(c)).unwrap_or_default()
}

/// `status`: the same values as `key value` lines, a block for the unit and for each object.
pub(super) fn flat(c: &Context<'_>) -> String {
    let Ok(serde_json::Value::Object(mut whole)) = serde_json::to_value(Status::of(c)) else {
        return String::new();
    };
    let mut out = String::new();
    let blocks = ["members", "bitmaps", "operations"].map(|key| (key, whole.remove(key)));
    let params = whole.remove("params");
    for (name, content) in params.iter().filter_map(|p| p.as_object()).flatten() {
        whole.insert(format!("params.{name}"), content.clone());
    }
    let _ = block(&mut out, "unit", "unit", &whole);
    for (key, objects) in blocks {
        let (heading, id) = match key {
            "members" => ("member", "name"),
            "bitmaps" => ("bitmap", "id"),
            _ => ("operation", "id"),
        };
        for object in objects.iter().filter_map(|o| o.as_array()).flatten() {
            if let Some(object) = object.as_object() {
                out.push('\n');
                let _ = block(&mut out, heading, id, object);
            }
        }
    }
    out
}

/// One block: the object's name under `heading`, then its other values in the order of their keys.
fn block(
    out: &mut String,
    heading: &str,
    id: &str,
    object: &serde_json::Map<String, serde_json::Value>,
) -> std::fmt::Result {
    writeln!(out, "{heading} {}", value(object.get(id)))?;
    for (key, content) in object.iter().filter(|(key, _)| *key != id) {
        if key == "percent" {
            writeln!(out, "percent {:.2}", content.as_f64().unwrap_or_default())?;
        } else {
            writeln!(out, "{key} {}", value(Some(content)))?;
        }
    }
    Ok(())
}

fn value(content: Option<&serde_json::Value>) -> String {
    match content {
        None | Some(serde_json::Value::Null) => ABSENT.to_owned(),
        Some(serde_json::Value::String(text)) => line(text),
        Some(other) => other.to_string(),
    }
}
