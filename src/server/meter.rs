//! Meters: what was asked of the unit and of each member, and how long it took. Counters grow until somebody has
//! them begin anew, every access is relaxed, and nothing is decided here.

use crate::sync::Instant;
use crate::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::set::MemberId;
use crate::set::member::MEMBERS_MAX;

/// Bounds of the latency buckets: powers of two from 16 us to 8 s, then all that took longer.
pub const BUCKETS: usize = 21;
const FIRST_LOG: u32 = 4;

/// What is asked of a member, or of the unit.
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

/// The meters of the unit, and of all members by place.
#[derive(Debug, Default)]
pub struct Meters {
    members: [Meter; MEMBERS_MAX],
    unit: Meter,
    /// Requests of applications that ended with an error: reads, writes, flushes.
    failed: [AtomicU64; 3],
}

/// What a meter has counted since the mount, or since it was to begin anew.
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

impl Asked {
    /// Its place among the kinds, and its bytes.
    fn kind(self) -> (usize, u64) {
        match self {
            Self::Read(bytes) => (0, bytes),
            Self::Write(bytes) => (1, bytes),
            Self::Flush => (2, 0),
        }
    }
}

impl Kind {
    fn counted(&self) -> Counted {
        Counted {
            count: self.count.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            micros: self.micros.load(Ordering::Relaxed),
            buckets: std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed)),
        }
    }

    fn begin_anew(&self) {
        let all = [&self.count, &self.bytes, &self.micros];
        for counter in all.into_iter().chain(&self.buckets) {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

impl Meter {
    fn ended(&self, asked: Asked, begun: Instant) {
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (kind, bytes) = asked.kind();
        let kind = &self.0[kind];
        kind.count.fetch_add(1, Ordering::Relaxed);
        kind.bytes.fetch_add(bytes, Ordering::Relaxed);
        kind.micros.fetch_add(micros, Ordering::Relaxed);
        kind.buckets[bucket(micros)].fetch_add(1, Ordering::Relaxed);
    }

    fn counted(&self) -> [Counted; 3] {
        self.0.each_ref().map(Kind::counted)
    }
}

impl Meters {
    /// A request of a member that began at this time has ended.
    pub(super) fn ended(&self, id: MemberId, asked: Asked, begun: Instant) {
        self.members[id.index()].ended(asked, begun);
    }

    /// A request of an application that began at this time has ended, well or not.
    pub(super) fn requested(&self, asked: Asked, begun: Instant, good: bool) {
        self.unit.ended(asked, begun);
        if !good {
            self.failed[asked.kind().0].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was counted of reads, writes and flushes of a member.
    #[must_use]
    pub fn of(&self, id: MemberId) -> [Counted; 3] {
        self.members[id.index()].counted()
    }

    /// What was counted of reads, writes and flushes of applications, and how many of them failed. Zeros count as
    /// writes.
    #[must_use]
    pub fn of_unit(&self) -> [(Counted, u64); 3] {
        let counted = self.unit.counted();
        std::array::from_fn(|kind| (counted[kind], self.failed[kind].load(Ordering::Relaxed)))
    }

    /// Has everything be counted from 0 again. A request that ends at the same time may be counted in part.
    pub(super) fn begin_anew(&self) {
        let meters = self.members.iter().chain(std::iter::once(&self.unit));
        meters.flat_map(|meter| &meter.0).for_each(Kind::begin_anew);
        let failed = self.failed.iter();
        failed.for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    /// Reads and writes of a member that have ended, and the time that they took.
    pub(super) fn total(&self, id: MemberId) -> (u64, Duration) {
        let [reads, writes, _] = &self.members[id.index()].0;
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

    #[test]
    fn requests_of_applications_are_counted_apart_until_they_begin_anew() {
        let (meters, id) = (Meters::default(), MemberId::new(0).expect("a place"));
        let begun = Instant::now();
        meters.requested(Asked::Write(512), begun, true);
        meters.requested(Asked::Write(512), begun, false);
        meters.requested(Asked::Flush, begun, true);
        meters.ended(id, Asked::Read(512), begun);
        let [reads, (writes, failed), flushes] = meters.of_unit();
        assert_eq!((writes.count, writes.bytes, failed), (2, 1024, 1));
        assert_eq!((reads.0.count, flushes.0.count), (0, 1));
        meters.begin_anew();
        assert_eq!(meters.of_unit(), [(Counted::default(), 0); 3]);
        assert_eq!(meters.of(id), [Counted::default(); 3]);
    }
}
