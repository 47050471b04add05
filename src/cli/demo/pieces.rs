//! What is written and looked for again: numbered pieces whose bytes follow from slot and number.
//!
//! A piece is a file on the file system, or a part of the disk where there is none. Reading one
//! compares every byte with what was written; a checksum would prove less.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::set::Code;

/// Bytes of a piece.
pub(super) const PIECE: usize = 256 << 10;
/// Bytes of slot and number at the start of a piece.
const HEAD: usize = 16;

/// A small generator of numbers that look random; the same for the same start.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// A generator with this start.
    pub(super) fn new(start: u64) -> Self {
        Self(start)
    }

    /// The next number (the generator called SplitMix64).
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Fills a buffer.
    pub(super) fn fill(&mut self, buf: &mut [u8]) {
        for part in buf.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
    }
}

/// The bytes of a piece: number 0 is the first one in a slot.
pub(super) fn make(slot: u64, number: u64, buf: &mut [u8]) {
    let (head, body) = buf.split_at_mut(HEAD);
    head[..8].copy_from_slice(&slot.to_le_bytes());
    head[8..].copy_from_slice(&number.to_le_bytes());
    Random::new(slot << 40 ^ number).fill(body);
}

/// The number of the piece when every byte is that of a piece of this slot.
fn number_of(slot: u64, found: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(found.get(8..HEAD)?.try_into().ok()?);
    let mut expected = vec![0; found.len()];
    make(slot, number, &mut expected);
    (expected == found).then_some(number)
}

/// Which slots there are: some are written once, the others in turn for as long as a writer runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// Slots that are written once.
    pub(super) still: u64,
    /// Slots that are written in turn.
    pub(super) busy: u64,
}

impl Layout {
    /// Two sixteenths of the disk.
    pub(super) fn of(size: u64) -> Self {
        let slots = (size / 16 / PIECE as u64).max(1);
        Self {
            still: slots,
            busy: slots,
        }
    }

    /// The slot that the writer's piece of this number goes to; numbers start with 1.
    pub(super) fn slot(self, number: u64) -> u64 {
        assert!(number > 0, "number 0 is that of the pieces written once");
        self.still + (number - 1) % self.busy
    }

    /// The newest of the first `count` pieces of the writer that went to this slot; 0 for none.
    fn newest(self, slot: u64, count: u64) -> u64 {
        let first = slot - self.still + 1;
        if count < first {
            0
        } else {
            count - (count - first) % self.busy
        }
    }
}

/// Pieces of the writer that had been acknowledged before and after something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    /// Acknowledged before it began: these must be there.
    pub(super) before: u64,
    /// Acknowledged when it was over: one more may have been under way.
    pub(super) after: u64,
}

/// Where pieces are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Files in a directory.
    Files(PathBuf),
    /// Parts of a disk, its image, or a device over it.
    Disk(PathBuf),
}

impl Place {
    fn file(&self, slot: u64) -> (PathBuf, u64) {
        match self {
            Self::Files(dir) => (dir.join(format!("piece-{slot:05}")), 0),
            Self::Disk(disk) => (disk.clone(), slot * PIECE as u64),
        }
    }

    /// What the pieces are called.
    pub(super) fn noun(&self) -> &'static str {
        match self {
            Self::Files(_) => "files",
            Self::Disk(_) => "pieces of the disk",
        }
    }

    /// Writes a piece; returns when it is acknowledged as being on disk.
    pub(super) fn write(&self, slot: u64, bytes: &[u8]) -> io::Result<()> {
        let (path, at) = self.file(slot);
        let Self::Files(_) = self else {
            let disk = OpenOptions::new().write(true).open(path)?;
            disk.write_all_at(bytes, at)?;
            return disk.sync_data();
        };
        // A name never stands for half a piece.
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&new, &path)
    }

    /// Looks at every piece that must be there; how many there were.
    ///
    /// # Errors
    /// The first piece that is not what was written.
    pub(super) fn check(&self, layout: Layout, span: Span) -> Result<u64> {
        let mut found = vec![0; PIECE];
        let mut count = 0;
        for slot in 0..layout.still + layout.busy {
            let (path, at) = self.file(slot);
            let (oldest, newest) = if slot < layout.still {
                (0, 0)
            } else {
                let ends = [span.before, span.after + 1].map(|c| layout.newest(slot, c));
                if ends[0] == 0 {
                    continue;
                }
                (ends[0], ends[1])
            };
            let read = File::open(&path).and_then(|file| file.read_exact_at(&mut found, at));
            read.map_err(|e| Error::io(format!("demo: cannot read {}", path.display()), e))?;
            // A piece of the disk that was being written at the cut may be half there.
            let torn = matches!(self, Self::Disk(_)) && newest > oldest;
            match number_of(slot, &found) {
                Some(number) if (oldest..=newest).contains(&number) => count += 1,
                None if torn => {}
                other => return Err(wrong(&path, at, other, oldest)),
            }
        }
        Ok(count)
    }
}

fn wrong(path: &std::path::Path, at: u64, found: Option<u64>, expected: u64) -> Error {
    let what = match found {
        Some(number) => format!("number {number}"),
        None => "no piece".to_owned(),
    };
    let path = path.display();
    let says = format!("demo: {path} at byte {at} holds {what}, not number {expected}");
    Error::new(Code::Io, says).with_hint("this must not happen: please report it with --keep")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { still: 2, busy: 3 };

    #[test]
    fn the_newest_piece_of_a_slot_is_known_from_the_count() {
        for count in 0..12 {
            for slot in 2..5 {
                let slow = (1..=count).rev().find(|n| LAYOUT.slot(*n) == slot);
                assert_eq!(
                    LAYOUT.newest(slot, count),
                    slow.unwrap_or(0),
                    "{count} {slot}"
                );
            }
        }
    }

    fn written(place: &Place, count: u64) {
        let mut buf = vec![0; PIECE];
        let still = (0..LAYOUT.still).map(|slot| (slot, 0));
        for (slot, number) in still.chain((1..=count).map(|n| (LAYOUT.slot(n), n))) {
            make(slot, number, &mut buf);
            place.write(slot, &buf).expect("written");
        }
    }

    fn places(dir: &std::path::Path) -> [Place; 2] {
        let disk = dir.join("disk");
        let file = File::create(&disk).expect("a file");
        file.set_len(5 * PIECE as u64).expect("sparse");
        [Place::Files(dir.to_owned()), Place::Disk(disk)]
    }

    #[test]
    fn all_pieces_are_found_in_files_and_on_a_disk() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for place in places(dir.path()) {
            written(&place, 4);
            let span = |before, after| Span { before, after };
            assert_eq!(place.check(LAYOUT, span(4, 4)).expect("all"), 5);
            assert_eq!(
                place
                    .check(LAYOUT, span(2, 4))
                    .expect("newer ones may be there"),
                4
            );
            place
                .check(LAYOUT, span(5, 5))
                .expect_err("number 5 was promised");
            place
                .check(LAYOUT, span(1, 2))
                .expect_err("number 4 had not been written");
        }
    }

    #[test]
    fn a_changed_bit_and_a_torn_piece_are_noticed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let [files, disk] = places(dir.path());
        let span = Span {
            before: 4,
            after: 4,
        };
        for (place, slot) in [(&files, 1), (&disk, 0), (&disk, 4)] {
            written(place, 4);
            let (path, at) = place.file(slot);
            let file = File::options()
                .read(true)
                .write(true)
                .open(path)
                .expect("there");
            let mut byte = [0];
            file.read_exact_at(&mut byte, at + 1000).expect("read");
            file.write_all_at(&[byte[0] ^ 4], at + 1000)
                .expect("written");
            place.check(LAYOUT, span).expect_err("a bit is wrong");
        }
        // Slot 3 may have been in the middle of number 5, which was under way.
        written(&disk, 4);
        let (path, at) = disk.file(3);
        let file = File::options().write(true).open(path).expect("there");
        file.write_all_at(&[0xff; 512], at + 512).expect("written");
        assert_eq!(disk.check(LAYOUT, span).expect("excused"), 4);
        disk.check(
            LAYOUT,
            Span {
                before: 3,
                after: 3,
            },
        )
        .expect_err("nothing excuses it");
    }
}
