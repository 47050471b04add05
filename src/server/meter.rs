//! Meters: what was asked of each member, and how long it took. Counters only grow, every access is relaxed, and
//! nothing is decided here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::set::MemberId;
use crate::set::member::MEMBERS_MAX;

/// Bounds of the latency buckets: powers of two from 16 us to 8 s, then all that took longer.
pub const BUCKETS: usize = 21;
const FIRST_LOG: u32 = 4;

/// What is asked of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// To read so many bytes.
    Read(u64),
    /// To write or zero so many bytes.
    Write(u64),
    /// To make its writes durable.
    Flush,
}

#[derive(Debug, Default)]
struct Kind {
    count: AtomicU64,
    bytes: AtomicU64,
    micros: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// The meters of one member, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Meter([Kind; 3]);

/// The meters of all members, by place.
#[derive(Debug, Default)]
pub struct Meters([Meter; MEMBERS_MAX]);

/// What a meter has counted since the mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counted {
    /// Requests that have ended.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The microseconds that they took.
    pub micros: u64,
    /// How many took up to 16 us, up to 32 us and so on, each counted once; the last ones longer than 8 s.
    pub buckets: [u64; BUCKETS],
}

/// The largest number of microseconds of a bucket; none for the last.
#[must_use]
pub fn bound(bucket: usize) -> Option<u64> {
    let log = u32::try_from(bucket).ok()? + FIRST_LOG;
    (bucket + 1 < BUCKETS).then(|| 1 << log)
}

fn bucket(micros: u64) -> usize {
    let above = u64::BITS - micros.saturating_sub(1).leading_zeros();
    (above.saturating_sub(FIRST_LOG) as usize).min(BUCKETS - 1)
}

impl Meters {
    /// A request of a member that began at this time has ended.
    pub(super) fn ended(&self, id: MemberId, asked: Asked, begun: Instant) {
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (kind, bytes) = match asked {
            Asked::Read(bytes) => (0, bytes),
            Asked::Write(bytes) => (1, bytes),
            Asked::Flush => (2, 0),
        };
        let kind = &self.0[id.index()].0[kind];
        kind.count.fetch_add(1, Ordering::Relaxed);
        kind.bytes.fetch_add(bytes, Ordering::Relaxed);
        kind.micros.fetch_add(micros, Ordering::Relaxed);
        kind.buckets[bucket(micros)].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted of reads, writes and flushes of a member.
    #[must_use]
    pub fn of(&self, id: MemberId) -> [Counted; 3] {
        let counted = |kind: &Kind| Counted {
            count: kind.count.load(Ordering::Relaxed),
            bytes: kind.bytes.load(Ordering::Relaxed),
            micros: kind.micros.load(Ordering::Relaxed),
            buckets: std::array::from_fn(|at| kind.buckets[at].load(Ordering::Relaxed)),
        };
        let [reads, writes, flushes] = &self.0[id.index()].0;
        [counted(reads), counted(writes), counted(flushes)]
    }

    /// Reads and writes of a member that have ended, and the time that they took.
    pub(super) fn total(&self, id: MemberId) -> (u64, Duration) {
        let [reads, writes, _] = &self.0[id.index()].0;
        let sum = |of: fn(&Kind) -> &AtomicU64| {
            of(reads).load(Ordering::Relaxed) + of(writes).load(Ordering::Relaxed)
        };
        (sum(|k| &k.count), Duration::from_micros(sum(|k| &k.micros)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_took_up_to_its_bound() {
        assert_eq!(
            (bucket(0), bucket(16), bucket(17), bucket(32)),
            (0, 0, 1, 1)
        );
        assert_eq!((bucket(8 << 20), bound(19)), (19, Some(8 << 20)));
        assert_eq!((bucket((8 << 20) + 1), bucket(u64::MAX)), (20, 20));
        assert_eq!((bound(0), bound(20)), (Some(16), None));
    }

    #[test]
    fn each_kind_is_counted_apart() {
        let (meters, id) = (Meters::default(), MemberId::new(1).expect("a place"));
        let begun = Instant::now();
        meters.ended(id, Asked::Read(512), begun);
        meters.ended(id, Asked::Write(4096), begun);
        meters.ended(id, Asked::Write(4096), begun);
        meters.ended(id, Asked::Flush, begun);
        let [reads, writes, flushes] = meters.of(id);
        assert_eq!((reads.count, reads.bytes), (1, 512));
        assert_eq!((writes.count, writes.bytes), (2, 8192));
        assert_eq!((flushes.count, flushes.bytes), (1, 0));
        assert_eq!(writes.buckets.iter().sum::<u64>(), 2);
        assert_eq!(meters.total(id).0, 3);
    }
}
