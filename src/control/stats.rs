//! Counters of the unit, of members and of operations as people and programs read them.

use std::fmt::Write as _;

use serde::Serialize;

use super::render::Context;
use crate::server::meter::{Counted, bound};
use crate::set::MemberStatus;

/// The counters of a member in `status.json`.
#[derive(Serialize)]
pub(super) struct Stats {
    reads: u64,
    read_bytes: u64,
    read_us: u64,
    writes: u64,
    write_bytes: u64,
    write_us: u64,
    flushes: u64,
    flush_us: u64,
}

impl Stats {
    pub(super) fn of([reads, writes, flushes]: [Counted; 3]) -> Self {
        Self {
            reads: reads.count,
            read_bytes: reads.bytes,
            read_us: reads.micros,
            writes: writes.count,
            write_bytes: writes.bytes,
            write_us: writes.micros,
            flushes: flushes.count,
            flush_us: flushes.micros,
        }
    }
}

/// What is asked for, in the order of the meters.
pub(super) const ASKED: [&str; 3] = ["read", "write", "flush"];

/// `stats/io`: what applications asked of the unit.
pub(super) fn io(c: &Context<'_>) -> String {
    let mut out = String::new();
    for (name, (counted, errors)) in ASKED.into_iter().zip(c.now.meters.of_unit()) {
        totals(&mut out, name, &counted);
        let _ = writeln!(out, "{name}_errors {errors}");
    }
    out
}

/// `stats/latency`: how many requests of applications took how long.
pub(super) fn latency(c: &Context<'_>) -> String {
    let mut out = String::new();
    for (name, (counted, _)) in ASKED.into_iter().zip(c.now.meters.of_unit()) {
        within(&mut out, name, &counted);
    }
    out
}

/// `stats/copy`: what has come of operations, and the bytes that they moved, those that run included.
pub(super) fn copy(c: &Context<'_>) -> String {
    let mut out = String::new();
    for (kind, total) in c.now.tally.totals() {
        let key = kind.replace('-', "_");
        let bytes = total.copied_bytes + running_bytes(c, kind);
        let _ = writeln!(
            out,
            "{key}_done {}\n{key}_failed {}\n{key}_cancelled {}\n{key}_copied_bytes {bytes}",
            total.done, total.failed, total.cancelled,
        );
    }
    out
}

/// Bytes that operations of a kind have moved which are not over.
pub(super) fn running_bytes(c: &Context<'_>, kind: &str) -> u64 {
    let operations = c.now.set.operations.iter();
    let running = operations.filter(|o| o.kind() == kind && !o.state.is_over());
    running.map(|o| o.progress.copied_bytes()).sum()
}

fn totals(out: &mut String, name: &str, counted: &Counted) {
    let Counted {
        count,
        bytes,
        micros,
        ..
    } = counted;
    let _ = writeln!(
        out,
        "{name}_count {count}\n{name}_bytes {bytes}\n{name}_us {micros}"
    );
}

fn within(out: &mut String, name: &str, counted: &Counted) {
    for (at, requests) in counted.buckets.into_iter().enumerate() {
        let within = bound(at).map_or_else(|| "more".to_owned(), |us| us.to_string());
        let _ = writeln!(out, "{name}_within_{within} {requests}");
    }
}

/// `members/<m>/stats`: requests, bytes, microseconds, and how many requests took how long.
pub(super) fn member(c: &Context<'_>, m: &MemberStatus) -> String {
    let mut out = format!("errors {}\n", m.errors);
    for (name, counted) in ASKED.into_iter().zip(c.now.meters.of(m.id)) {
        totals(&mut out, name, &counted);
        within(&mut out, name, &counted);
    }
    out
}
