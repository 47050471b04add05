//! Behind the slots: what the image looked like at a stop in order, for a member that is absent at the next mount.
//!
//! Kept as the block that the member would have, had it been detached there. It counts beside just that block in a
//! slot, so nobody has to take it away: the next write of a block makes it the past. Who does not know of
//! it reads the slots as ever.

use crate::set::scb::{SCB_BYTES, Scb, ScbState};
use crate::set::stamp::Stamp;

/// Where it begins in the file.
pub(super) const OFFSET: u64 = 2 * SCB_BYTES as u64;

/// A block as a slot can hold it, and what is kept behind the slots: the stamp of a member that has not left.
pub(super) fn apart(block: Scb) -> (Scb, Option<Scb>) {
    if block.state.has_left() {
        return (block, None);
    }
    let rest = block.stamp.clone().map(|stamp| detached(&block, stamp));
    let block = Scb {
        stamp: None,
        ..block
    };
    (block, rest)
}

/// The stamp that counts beside the newest block of a file.
pub(super) fn stamp(newest: &Scb, bytes: &[u8]) -> Option<Stamp> {
    if !newest.clean || newest.state.has_left() {
        return None;
    }
    let rest = Scb::decode(bytes).ok()?;
    let stamp = rest.stamp.clone()?;
    (rest == detached(newest, stamp.clone())).then_some(stamp)
}

fn detached(block: &Scb, stamp: Stamp) -> Scb {
    let mut scb = block.clone();
    let own = scb
        .table
        .iter_mut()
        .filter(|row| row.member == block.member);
    own.for_each(|row| row.state = ScbState::Detached);
    (scb.state, scb.stamp) = (ScbState::Detached, Some(stamp));
    scb
}

#[cfg(test)]
mod tests {
    use super::super::tests::block;
    use super::super::{ScbFile, ScbFound};
    use super::super::{Slots, read};
    use super::*;
    use crate::set::stamp::{Facts, FileFacts};
    use std::path::Path;

    fn stopped(generation: u64) -> Scb {
        let stamp = Stamp {
            size: generation,
            facts: Facts::File(FileFacts::default()),
            samples: Vec::new(),
            opened: false,
            kept: false,
        };
        Scb {
            stamp: Some(stamp),
            ..block(generation)
        }
    }

    fn stamped(path: &Path) -> Option<u64> {
        match read(path).expect("readable") {
            ScbFound::Read(scb) => scb.stamp.map(|stamp| stamp.size),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_stamp_of_a_stop_is_there_until_the_next_write() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("scb");
        let mut file = ScbFile::open_or_create(&path).expect("opens");
        for generation in [1, 3] {
            file.write(&stopped(generation)).expect("writes");
            assert_eq!(stamped(&path), Some(generation));
            let slots = Slots::read(&std::fs::File::open(&path).expect("opens")).expect("reads");
            let (slot, newest) = slots.newest().expect("a block");
            assert!(newest.stamp.is_some() && newest.clean);
            let alone = slots.block(slot).expect("a block");
            assert_eq!(alone.stamp, None, "the slots are what they were");
            file.write(&block(generation + 1)).expect("writes");
            assert_eq!(stamped(&path), None);
        }
    }

    /// A block of the same sequence number, where the write of the other one was cut.
    #[test]
    fn the_stamp_of_another_block_counts_for_nothing() {
        let kept = |scb: Scb| {
            let (_, rest) = apart(scb);
            rest.expect("a stamp").encode().expect("encodes")
        };
        let bytes = kept(stopped(2));
        assert!(stamp(&block(2), &bytes).is_some());
        assert_eq!(stamp(&block(3), &bytes), None, "another generation");
        let unclean = |scb| Scb {
            clean: false,
            ..scb
        };
        assert_eq!(stamp(&unclean(block(2)), &kept(unclean(stopped(2)))), None);
        let later = Scb {
            sequence: 1,
            ..block(2)
        };
        assert_eq!(stamp(&later, &bytes), None, "a write behind it");
        let mut torn = bytes;
        torn[8000] ^= 1;
        assert_eq!(stamp(&block(2), &torn), None);
        assert_eq!(stamp(&block(2), &[]), None, "an older file");
    }
}
