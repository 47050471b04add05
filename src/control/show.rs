//! The texts of single files.

use std::fmt::Write as _;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::render::Context;
use super::table::Drawn;
use super::text::{self, ABSENT, line, maybe, maybe_moment, moment, percent};
use crate::server::setup::Durability;
use crate::server::{EventRecord, Published};
use crate::set::{
    BitmapStatus, CopyKind, MemberStatus, OpState, Operation, Regions, has_no_bitmap,
};

pub(super) fn abi(_: &Context<'_>) -> String {
    super::ABI.to_string()
}

pub(super) fn version(_: &Context<'_>) -> String {
    concat!("shadowset ", env!("CARGO_PKG_VERSION")).to_owned()
}

pub(super) fn name(c: &Context<'_>) -> String {
    line(&c.now.unit)
}

pub(super) fn uuid(c: &Context<'_>) -> String {
    c.now.uuid.to_string()
}

pub(super) fn label(c: &Context<'_>) -> String {
    line(&c.now.label)
}

pub(super) fn size(c: &Context<'_>) -> String {
    c.now.set.geometry.size().to_string()
}

pub(super) fn region_blocks(c: &Context<'_>) -> String {
    c.now.set.geometry.region_blocks().to_string()
}

pub(super) fn generation(c: &Context<'_>) -> String {
    c.now.set.generation.number().to_string()
}

pub(super) fn created(c: &Context<'_>) -> String {
    maybe_moment(c.now.created)
}

pub(super) fn state(c: &Context<'_>) -> String {
    c.now.state_word().to_owned()
}

pub(super) fn control(_: &Context<'_>) -> String {
    "Write one command; read its answer on the same file. `cat .shadow/help` lists the commands.\n"
        .to_owned()
}

pub(super) fn last_error(c: &Context<'_>) -> String {
    c.logbook.last().unwrap_or_else(|| "none\n".to_owned())
}

pub(super) fn error_log(c: &Context<'_>) -> String {
    c.logbook.log()
}

struct EventLine<'a>(&'a EventRecord);

impl Serialize for EventLine<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(3 + self.0.facts.len()))?;
        map.serialize_entry("seq", &self.0.seq)?;
        map.serialize_entry("time", &moment(self.0.time))?;
        map.serialize_entry("event", &self.0.event)?;
        for (key, value) in &self.0.facts {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

pub(super) fn events(c: &Context<'_>) -> String {
    let mut out = String::new();
    for event in (c.events)() {
        if let Ok(json) = serde_json::to_string(&EventLine(&event)) {
            out.push_str(&json);
            out.push('\n');
        }
    }
    out
}

pub(super) fn member_path(_: &Context<'_>, m: &MemberStatus) -> String {
    line(&m.path)
}

pub(super) fn member_reason(_: &Context<'_>, m: &MemberStatus) -> String {
    line(&m.reason)
}

pub(super) fn member_since(_: &Context<'_>, m: &MemberStatus) -> String {
    moment(m.since)
}

pub(super) fn member_fingerprint(c: &Context<'_>, m: &MemberStatus) -> String {
    maybe(c.now.fingerprint(m.id))
}

/// What an attach of the member would do, as far as the set knows without looking at the image.
struct Plan {
    verdict: &'static str,
    reason: String,
    bytes: u64,
    extents: u64,
}

impl Plan {
    fn refused(reason: String) -> Self {
        Self {
            verdict: "refused",
            reason,
            bytes: 0,
            extents: 0,
        }
    }

    fn of(now: &Published, m: &MemberStatus) -> Self {
        let name = &m.name;
        if !m.departed {
            return Self::refused(match m.state {
                "source" => format!("{name} is a source member already"),
                state => format!("{name} is {state} already"),
            });
        }
        let size = now.set.geometry.size();
        if m.size < size && m.state != "missing" {
            return Self::refused(format!("{name} has {} bytes, the unit {size}", m.size));
        }
        match m.bitmap.and_then(|id| now.set.bitmap(id)) {
            Some(bitmap) if bitmap.in_use => Self::refused(format!("{name} is still leaving")),
            Some(bitmap) => Self {
                verdict: "minicopy",
                reason: "its bitmap tells what has changed".to_owned(),
                bytes: bitmap.map.stale_bytes() + uncovered(now, bitmap),
                extents: bitmap.map.runs().count() as u64,
            },
            None => Self {
                verdict: "full",
                reason: has_no_bitmap(name, m.lost.as_deref()),
                bytes: size.0,
                extents: 1,
            },
        }
    }
}

pub(super) fn member_plan(c: &Context<'_>, m: &MemberStatus) -> String {
    let plan = Plan::of(c.now, m);
    let kind = match plan.verdict {
        "minicopy" => Some(CopyKind::Mini),
        "full" => Some(CopyKind::Full),
        _ => None,
    };
    format!(
        "verdict {}\nreason {}\nbytes {}\nextents {}\neta {}\n",
        plan.verdict,
        line(&plan.reason),
        plan.bytes,
        plan.extents,
        maybe(kind.and_then(|kind| kind.eta(plan.bytes, &c.now.expected))),
    )
}

pub(super) fn bitmap_state(bitmap: &BitmapStatus) -> &'static str {
    if bitmap.in_use { "in-use" } else { "active" }
}

pub(super) fn bitmap_member(c: &Context<'_>, b: &Drawn<'_>) -> String {
    maybe(b.status.member.map(|id| c.member_name(id)))
}

pub(super) fn bitmap_created(_: &Context<'_>, b: &Drawn<'_>) -> String {
    moment(b.tag.created)
}

pub(super) fn bitmap_bits(_: &Context<'_>, b: &Drawn<'_>) -> String {
    b.status.map.geometry().regions().to_string()
}

pub(super) fn bitmap_percent(_: &Context<'_>, b: &Drawn<'_>) -> String {
    let map = &b.status.map;
    percent(map.count(), map.geometry().regions())
}

pub(super) fn bitmap_covered(_: &Context<'_>, b: &Drawn<'_>) -> String {
    b.status.map.geometry().size().to_string()
}

/// Bytes of the unit behind the end of a bitmap.
pub(super) fn uncovered(now: &Published, bitmap: &BitmapStatus) -> u64 {
    let covered = bitmap.map.geometry().size().0;
    now.set.geometry.size().0.saturating_sub(covered)
}

pub(super) fn bitmap_ranges(_: &Context<'_>, b: &Drawn<'_>) -> String {
    let geometry = b.status.map.geometry();
    let mut out = String::new();
    for run in b.status.map.runs() {
        let blocks = geometry.bytes_of(run).blocks();
        let (first, end) = (blocks.first().0, blocks.end().0);
        let _ = writeln!(out, "{first} {}", end - first);
    }
    out
}

#[derive(Serialize)]
struct Extent {
    start: u64,
    length: u64,
    data: bool,
}

pub(super) fn bitmap_extents(_: &Context<'_>, b: &Drawn<'_>) -> String {
    let geometry = b.status.map.geometry();
    let extent = |run: Regions| {
        let bytes = geometry.bytes_of(run);
        Extent {
            start: bytes.start(),
            length: bytes.len(),
            data: true,
        }
    };
    let extents: Vec<Extent> = b.status.map.runs().map(extent).collect();
    serde_json::to_string(&extents).unwrap_or_default()
}

pub(super) fn operation_source(c: &Context<'_>, o: &Operation) -> String {
    maybe(o.source().map(|id| c.member_name(id)))
}

pub(super) fn operation_target(c: &Context<'_>, o: &Operation) -> String {
    maybe(o.target().map(|id| c.member_name(id)))
}

pub(super) fn operation_started(_: &Context<'_>, o: &Operation) -> String {
    maybe_moment(o.started)
}

pub(super) fn operation_finished(_: &Context<'_>, o: &Operation) -> String {
    maybe_moment(o.finished)
}

/// The counters of an operation, read once.
pub(super) struct Counters {
    pub(super) done: u64,
    pub(super) total: u64,
    pub(super) skipped: u64,
    pub(super) copied: u64,
    pub(super) fence_block: u64,
}

impl Counters {
    pub(super) fn of(now: &Published, o: &Operation) -> Self {
        let total = o.progress.total_bytes();
        Self {
            done: o.progress.done_bytes().min(total),
            total,
            skipped: now.set.geometry.size().0.saturating_sub(total) + o.progress.equal_bytes(),
            copied: o.progress.copied_bytes(),
            fence_block: o.progress.fence_block(),
        }
    }

    /// What remains counts as nothing only when the operation is over.
    pub(super) fn hundredths(&self, state: OpState) -> u64 {
        match (self.total, state) {
            (0, OpState::Done) => 10_000,
            (0, _) => 0,
            (total, _) => text::hundredths(self.done, total),
        }
    }

    pub(super) fn percent(&self, state: OpState) -> String {
        let share = self.hundredths(state);
        format!("{}.{:02}", share / 100, share % 100)
    }
}

pub(super) fn operation_progress(c: &Context<'_>, o: &Operation) -> String {
    let (n, rate) = (Counters::of(c.now, o), c.now.rate(o.id));
    format!(
        "done_bytes {}\ntotal_bytes {}\nskipped_bytes {}\ncopied_bytes {}\npercent {}\n\
         rate_bps {}\neta_s {}\nfence_block {}\n",
        n.done,
        n.total,
        n.skipped,
        n.copied,
        n.percent(o.state),
        maybe(rate.bytes_per_second),
        maybe(rate.eta_s),
        n.fence_block,
    )
}

/// `stats/bitmap`: the counters, with the number of commits of each size.
pub(super) fn announcements(c: &Context<'_>) -> String {
    let counts = &c.now.announced;
    let mode = match c.now.durability_now() {
        Durability::Memory => ABSENT,
        _ => counts.mode(),
    };
    let mut out = format!(
        "mode {mode}\nannouncements {}\ncommits {}\nmode_switches {}\n",
        counts.announcements(),
        counts.commits(),
        counts.switches(),
    );
    let sizes = counts.sizes();
    let (more, each) = sizes.split_last().unwrap_or((&0, &[]));
    for (size, commits) in (1..).zip(each) {
        let _ = writeln!(out, "commits_of_{size} {commits}");
    }
    let _ = writeln!(out, "commits_of_more {more}");
    out
}
