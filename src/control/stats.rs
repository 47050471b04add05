//! Counters of members as people and programs read them.

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

/// `members/<m>/stats`: requests, bytes, microseconds, and how many requests took how long.
pub(super) fn member(c: &Context<'_>, m: &MemberStatus) -> String {
    let mut out = format!("errors {}\n", m.errors);
    let kinds = c.now.meters.of(m.id);
    for (name, counted) in ["read", "write", "flush"].into_iter().zip(kinds) {
        let Counted {
            count,
            bytes,
            micros,
            buckets,
        } = counted;
        let _ = writeln!(
            out,
            "{name}_count {count}\n{name}_bytes {bytes}\n{name}_us {micros}"
        );
        for (at, requests) in buckets.into_iter().enumerate() {
            let within = bound(at).map_or_else(|| "more".to_owned(), |us| us.to_string());
            let _ = writeln!(out, "{name}_within_{within} {requests}");
        }
    }
    out
}
