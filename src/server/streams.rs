//! Which member answered the reads of the last sequential streams, so that each stays with its member.
//!
//! A hint and no more: an entry that is lost or wrong costs a read from another member, which is as good.
//! So there is no lock and no order between the entries, every access is relaxed, and two streams may take
//! each other's place. A read costs one load and one store here, whatever the number of streams: the
//! place follows from the offset at which the next read of the stream will begin.

use crate::sync::atomic::{AtomicU64, Ordering};

use crate::set::MemberId;

/// Places as a power of two. A read that belongs to no stream takes a place as well: with more places a
/// stream between many of those is found again more often, with fewer all stay in the processor's cache.
const PLACES_LOG: u32 = 8;
/// Bits of an entry that tell the member; the offset stands above them.
const MEMBER_BITS: u32 = 3;

/// The ends of the last reads with the members that answered them.
#[derive(Debug)]
pub(super) struct Streams([AtomicU64; 1 << PLACES_LOG]);

impl Default for Streams {
    fn default() -> Self {
        // No read ends at 0: an entry of zeros is none.
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Streams {
    /// The member that answered a read which ended at this byte, if it is remembered.
    pub(super) fn member_at(&self, start: u64) -> Option<MemberId> {
        let entry = self.place(start).load(Ordering::Relaxed);
        let found = start > 0 && entry >> MEMBER_BITS == start;
        let index = usize::try_from(entry & ((1 << MEMBER_BITS) - 1)).ok()?;
        MemberId::new(index).filter(|_| found)
    }

    /// Remembers who answers a read that ends at this byte.
    pub(super) fn note(&self, end: u64, member: MemberId) {
        let entry = end << MEMBER_BITS | member.index() as u64;
        self.place(end).store(entry, Ordering::Relaxed);
    }

    fn place(&self, at: u64) -> &AtomicU64 {
        // Offsets are mostly multiples of a power of two: the product's highest bits depend on all of theirs.
        // The shift keeps two streams that go on at one pace from meeting always once they meet.
        let mixed = (at ^ at >> 21).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = mixed >> (u64::BITS - PLACES_LOG);
        &self.0[usize::try_from(hash).unwrap_or(0)]
    }
}

const _: () = assert!(crate::set::member::MEMBERS_MAX <= 1 << MEMBER_BITS);
const _: () = assert!(crate::set::geometry::UNIT_BYTES_MAX.leading_zeros() >= MEMBER_BITS);

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: usize) -> MemberId {
        MemberId::new(index).expect("inside")
    }

    #[test]
    fn a_stream_is_found_where_it_ended_and_nowhere_else() {
        let streams = Streams::default();
        assert_eq!(streams.member_at(0), None);
        assert_eq!(streams.member_at(4096), None);
        streams.note(4096, id(5));
        assert_eq!(streams.member_at(4096), Some(id(5)));
        for at in (0..1 << 20).step_by(512).filter(|at| *at != 4096) {
            assert_eq!(streams.member_at(at), None, "at {at}");
        }
        streams.note(4096, id(0));
        assert_eq!(streams.member_at(4096), Some(id(0)));
        let end = crate::set::geometry::UNIT_BYTES_MAX;
        streams.note(end, id(3));
        assert_eq!(streams.member_at(end), Some(id(3)));
    }

    /// Eight streams of 1 MiB reads side by side: each finds its own member, nearly always.
    #[test]
    fn streams_side_by_side_seldom_take_each_others_place() {
        let streams = Streams::default();
        let (mut found, reads) = (0, 200);
        for n in 0..reads {
            for stream in 0..8 {
                let start = (stream << 34) + (n << 20) + (1 << 20);
                let member = id(stream as usize % 6);
                found += u64::from(streams.member_at(start) == Some(member));
                streams.note(start + (1 << 20), member);
            }
        }
        assert!(found > reads * 8 * 9 / 10, "{found} of {}", reads * 8);
    }
}
