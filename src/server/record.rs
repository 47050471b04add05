//! Notices of the set as lines of the `events` file and of the log.

use crate::sync::Instant;
use std::time::Duration;

use super::handle::{Board, Rate};
use super::run::{Runner, now};
use super::tally::Tally;
use crate::set::{
    BitmapChange, BitmapId, CopyKind, Moment, Notice, OpId, Operation, SetStatus, rate_text,
};

/// Every event that there is.
pub const EVENTS: &[&str] = &[
    "mounted",
    "member-away",
    "unmounted",
    "bitmaps-lost",
    "bitmaps-in-memory",
    "member-detached",
    "member-expelled",
    "member-joined",
    "member-released",
    "member-silent",
    "member-answers",
    "read-error",
    "read-repaired",
    "request-failed",
    "verification-aborted",
    "copy-queued",
    "copy-started",
    "copy-progress",
    "copy-ended",
    "verify-started",
    "verify-progress",
    "verify-differs",
    "verify-ended",
    "bitmap-started",
    "bitmap-in-use",
    "bitmap-active",
    "bitmap-deleted",
    "bitmap-reset",
    "message-mode",
    "parameter-set",
    "counters-reset",
    "resized",
    "stalled",
    "unstalled",
];

/// A bad place makes many reads fail; so often people are told of each member, and the counter tells the rest.
const READ_ERRORS: Duration = Duration::from_secs(1);

/// From which `wbm_opcom_lvl` on a notice is told; 0 where that has no say in it.
fn level(notice: &Notice) -> u64 {
    match notice {
        Notice::Bitmap(..) => 1,
        Notice::IntentAnew(_) => 2,
        _ => 0,
    }
}

impl Runner {
    /// All counters begin at 0 again.
    fn begin_counting(&mut self) {
        self.tally = Tally::default();
        self.pipeline.meters.begin_anew();
        self.pipeline.announced().begin_anew();
        self.forget_switches();
    }

    /// Tells people of a notice, unless they want to know less.
    pub(super) fn note(&mut self, notice: &Notice) {
        if let Notice::CopyEnded { op, .. } | Notice::VerifyEnded { op, .. } = notice {
            self.speeds.end(*op, self.done_by(*op), Instant::now());
        }
        self.tally.note(notice);
        if *notice == Notice::CountersReset {
            self.begin_counting();
        }
        if let Notice::ReadError(id) = notice {
            let heard = &mut self.heard[id.index()];
            if heard.is_some_and(|last| last.elapsed() < READ_ERRORS) {
                return;
            }
            *heard = Some(Instant::now());
        }
        if level(notice) <= self.params.wbm_opcom_lvl() {
            record(&self.board, now(), notice, &self.set.status());
        }
    }
}

/// Writes a notice down for people.
fn record(board: &Board, time: Moment, notice: &Notice, set: &SetStatus) {
    let (event, facts) = describe(notice, set);
    log(notice, event, &facts);
    keep(board, time, event, facts);
}

/// Writes down that the unit is served from now on, by whom, and what is not as it should be: who reads the
/// events alone knows the state.
pub(super) fn record_start(board: &Board, time: Moment) {
    let now = board.state.load();
    let set = &now.set;
    let states = set
        .members
        .iter()
        .map(|m| format!("{}={}", m.name, m.state));
    let members: Vec<String> = states.collect();
    let facts = vec![
        ("state", now.state_word().to_owned()),
        ("members", members.join(" ")),
    ];
    keep(board, time, "mounted", facts);
    for member in set.members.iter().filter(|m| m.departed) {
        let mut facts = vec![
            ("member", member.name.clone()),
            ("state", member.state.to_owned()),
            ("reason", member.reason.clone()),
        ];
        facts.extend(member.bitmap.map(|id| ("bitmap", id.to_string())));
        keep(board, time, "member-away", facts);
    }
    let reasons = [
        ("bitmaps-lost", set.lost.as_deref()),
        ("bitmaps-in-memory", set.homeless.as_deref()),
    ];
    for (event, reason) in reasons {
        if let Some(reason) = reason {
            tracing::warn!("{event} reason={reason}");
            keep(board, time, event, vec![("reason", reason.to_owned())]);
        }
    }
}

/// Writes down that a parameter has another value.
pub(super) fn record_set(board: &Board, time: Moment, name: &str, old: &str, new: &str) {
    tracing::info!("parameter-set parameter={name} old={old} new={new}");
    let facts = changed(name.to_owned(), old.to_owned(), new.to_owned());
    keep(board, time, "parameter-set", facts);
}

/// Writes down that announcements are committed in another mode, after so many switches.
pub(super) fn record_mode(board: &Board, time: Moment, mode: &str, switches: u64) {
    tracing::info!("message-mode mode={mode} switches={switches}");
    let facts = vec![
        ("mode", mode.to_owned()),
        ("switches", switches.to_string()),
    ];
    keep(board, time, "message-mode", facts);
}

/// Writes down how far an operation has come.
pub(super) fn record_progress(board: &Board, time: Moment, op: &Operation, rate: Option<&Rate>) {
    let (done, total) = (op.progress.done_bytes(), op.progress.total_bytes());
    let mut facts = vec![
        ("operation", op.id.to_string()),
        ("done_bytes", done.to_string()),
        ("total_bytes", total.to_string()),
    ];
    let known = rate.and_then(|rate| rate.bytes_per_second);
    facts.extend(known.map(|speed| ("rate_bps", speed.to_string())));
    let eta = rate.and_then(|rate| rate.eta_s);
    facts.extend(eta.map(|seconds| ("eta_s", seconds.to_string())));
    let event = match op.verify() {
        Some(_) => "verify-progress",
        None => "copy-progress",
    };
    tracing::info!("{event} operation={} {done} of {total} bytes", op.id);
    keep(board, time, event, facts);
}

fn keep(board: &Board, time: Moment, event: &'static str, facts: Facts) {
    debug_assert!(EVENTS.contains(&event), "{event} is in no manual page");
    let facts = facts.into_iter();
    let facts = facts.map(|(key, value)| (key.into(), value));
    board.chronicle().keep(time, event, facts.collect());
}

/// Keys and values of an event.
type Facts = Vec<(&'static str, String)>;

fn changed(parameter: String, old: String, new: String) -> Facts {
    vec![("parameter", parameter), ("old", old), ("new", new)]
}

fn describe(notice: &Notice, set: &SetStatus) -> (&'static str, Facts) {
    let name = |id| set.name(id).to_owned();
    let copy = |op: &OpId, kind: &CopyKind, id| copy_facts(*op, *kind, name(id));
    match notice {
        Notice::Detached { member, bitmap } => {
            let mut facts = vec![("member", name(*member))];
            facts.extend(bitmap.map(|b| ("bitmap", b.to_string())));
            ("member-detached", facts)
        }
        Notice::CopyQueued(op, kind, id) => ("copy-queued", copy(op, kind, *id)),
        Notice::CopyStarted(op, kind, id) => ("copy-started", copy(op, kind, *id)),
        Notice::CopyEnded {
            op,
            kind,
            member,
            end,
            copied_bytes,
        } => {
            let mut facts = copy(op, kind, *member);
            facts.push(("state", (*end).to_owned()));
            facts.push(("copied_bytes", copied_bytes.to_string()));
            ("copy-ended", facts)
        }
        Notice::VerifyStarted(..) | Notice::VerifyDiffers(..) | Notice::VerifyEnded { .. } => {
            verify_event(notice)
        }
        Notice::Joined(id) => ("member-joined", vec![("member", name(*id))]),
        Notice::CountersReset => ("counters-reset", Vec::new()),
        Notice::FailedEverywhere(_)
        | Notice::Expelled { .. }
        | Notice::ReadRepaired(..)
        | Notice::ReadError(_)
        | Notice::Silent(_)
        | Notice::Answers(_)
        | Notice::Aborted(_) => fault_event(notice, set),
        Notice::Tuned(name, what, old, new) => {
            let [old, new] = [old, new].map(ToString::to_string);
            ("parameter-set", changed(format!("{name}.{what}"), old, new))
        }
        Notice::Limited(op, old, new) => {
            let [old, new] = [old, new].map(|rate| rate_text(*rate));
            ("parameter-set", changed(format!("{op}.rate_max"), old, new))
        }
        Notice::Released(name) => ("member-released", vec![("member", name.clone())]),
        Notice::HomeLost(why) => ("bitmaps-in-memory", vec![("reason", why.clone())]),
        Notice::Resized { from, to } => resized(from.0, to.0),
        Notice::Stalled(seconds) => ("stalled", vec![("seconds", seconds.to_string())]),
        Notice::Unstalled(end) => ("unstalled", vec![("reason", end.name().to_owned())]),
        Notice::Bitmap(id, member, change) => bitmap_event(*id, member, *change),
        Notice::IntentAnew(marked) => {
            let kind = ("type", "write-intent".to_owned());
            ("bitmap-reset", vec![kind, ("set_bits", marked.to_string())])
        }
    }
}

fn copy_facts(op: OpId, kind: CopyKind, member: String) -> Facts {
    vec![
        ("operation", op.to_string()),
        ("kind", kind.name().to_owned()),
        ("member", member),
    ]
}

/// A member that has failed, or does not answer.
fn fault_event(notice: &Notice, set: &SetStatus) -> (&'static str, Facts) {
    let of = |id| vec![("member", set.name(id).to_owned())];
    match notice {
        Notice::Expelled { member, reason } => {
            let mut facts = of(*member);
            facts.push(("reason", reason.clone()));
            ("member-expelled", facts)
        }
        Notice::ReadError(id) => ("read-error", of(*id)),
        Notice::Silent(id) => ("member-silent", of(*id)),
        Notice::Answers(id) => ("member-answers", of(*id)),
        Notice::ReadRepaired(id, range) => {
            let mut facts = of(*id);
            facts.push(("start", range.start().to_string()));
            facts.push(("bytes", range.len().to_string()));
            ("read-repaired", facts)
        }
        Notice::FailedEverywhere(answers) => {
            let reason = ("reason", answers.clone());
            ("request-failed", vec![reason])
        }
        Notice::Aborted(members) => {
            let names: Vec<&str> = members.iter().map(|id| set.name(id)).collect();
            ("verification-aborted", vec![("members", names.join(" "))])
        }
        _ => ("verification-aborted", Vec::new()),
    }
}

/// The unit has become larger.
fn resized(from: u64, to: u64) -> (&'static str, Facts) {
    let [before, size] = [from, to].map(|bytes| bytes.to_string());
    ("resized", vec![("before", before), ("size", size)])
}

/// What a verify has come to.
fn verify_event(notice: &Notice) -> (&'static str, Facts) {
    let of = |op: &OpId| vec![("operation", op.to_string())];
    match notice {
        Notice::VerifyDiffers(op, block) => {
            let mut facts = of(op);
            facts.push(("block", block.to_string()));
            ("verify-differs", facts)
        }
        Notice::VerifyEnded {
            op,
            state,
            counts,
            reason,
        } => {
            let mut facts = of(op);
            facts.push(("state", (*state).to_owned()));
            facts.push(("differing_blocks", counts.differing.to_string()));
            facts.push(("unreadable_blocks", counts.unreadable.to_string()));
            facts.push(("repaired_blocks", counts.repaired.to_string()));
            facts.extend(reason.clone().map(|reason| ("reason", reason)));
            ("verify-ended", facts)
        }
        Notice::VerifyStarted(op, range) => {
            let (mut facts, blocks) = (of(op), range.blocks());
            let blocks = format!("{}-{}", blocks.first().0, blocks.end().0 - 1);
            facts.push(("blocks", blocks));
            ("verify-started", facts)
        }
        _ => ("verify", Vec::new()),
    }
}

/// What has become of a write bitmap.
fn bitmap_event(id: BitmapId, member: &str, change: BitmapChange) -> (&'static str, Facts) {
    let (event, fact) = match change {
        BitmapChange::Started(policy) => ("bitmap-started", ("policy", policy.name().to_owned())),
        BitmapChange::Taken(op) => ("bitmap-in-use", ("operation", op.to_string())),
        BitmapChange::Returned(op) => ("bitmap-active", ("operation", op.to_string())),
        BitmapChange::Deleted(why) => ("bitmap-deleted", ("reason", why.to_owned())),
    };
    let bitmap = ("bitmap", id.to_string());
    (event, vec![bitmap, ("member", member.to_owned()), fact])
}

/// ERROR: a human must look. WARN: handled. INFO: each change of membership and each copy.
fn log(notice: &Notice, event: &str, facts: &Facts) {
    let facts: Vec<String> = facts
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let facts = facts.join(" ");
    match notice {
        Notice::Expelled { .. }
        | Notice::FailedEverywhere(_)
        | Notice::HomeLost(_)
        | Notice::VerifyDiffers(..)
        | Notice::Aborted(_) => {
            tracing::error!("{event} {facts}");
        }
        Notice::ReadError(_) | Notice::Silent(_) => tracing::warn!("{event} {facts}"),
        _ => tracing::info!("{event} {facts}"),
    }
}
