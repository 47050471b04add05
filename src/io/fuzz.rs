//! Any bytes as storage control blocks, and as the small files.

#![allow(clippy::expect_used, reason = "a test ends at the first surprise")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::node_rate::{BYTES, Owed};
use super::scb_file::{self, ScbFile, Slots};
use super::{event_log, utab};
use crate::set::scb::{Claims, Content, SCB_BYTES, ScbError, Slot, claims, has_magic, newest};
use crate::set::{Scb, ScbFound};
use crate::testing::fuzz::{Input, Scratch, flip};

/// Four bytes say which bit is flipped in the end, and which slots get a right checksum; the file follows.
pub(crate) fn scb(bytes: &[u8]) {
    // A file of a real set is a seed as well, and has nothing in front.
    let in_front = if has_magic(bytes) {
        0
    } else {
        bytes.len().min(4)
    };
    let (head, rest) = bytes.split_at(in_front);
    let mut input = Input(head);
    let (bit, sealed) = (input.below(SCB_BYTES * 8), input.byte());
    let mut file = rest[..rest.len().min(2 * SCB_BYTES)].to_vec();
    for (slot, bytes) in file.chunks_exact_mut(SCB_BYTES).enumerate() {
        if sealed >> slot & 1 == 1 {
            seal(bytes);
        }
    }
    let (a, b) = file.split_at(file.len().min(SCB_BYTES));
    let blocks = [a, b].map(Scb::decode);
    for (slot, block) in [a, b].into_iter().zip(&blocks) {
        claimed(slot, block.as_ref().ok());
        match block {
            Ok(scb) => whole(scb, bit),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    match newest(a, b) {
        Ok((slot, scb)) => {
            let [a, b] = blocks.map(Result::ok);
            let most = [&a, &b].into_iter().flatten().map(|scb| scb.sequence).max();
            assert_eq!(
                Some(scb.sequence),
                most,
                "the newest of those that are whole"
            );
            let chosen = if slot == Slot::A { a } else { b };
            assert_eq!(chosen, Some(scb));
        }
        Err(error) => {
            let newer = |block: &Result<Scb, ScbError>| {
                block.as_ref().is_err_and(ScbError::is_from_newer_program)
            };
            let lost = blocks.iter().all(Result::is_err);
            assert!(
                lost || blocks.iter().any(newer),
                "{error}: one slot is whole"
            );
        }
    }
    in_a_file(&file);
}

fn seal(slot: &mut [u8]) {
    let (content, sum) = slot.split_at_mut(SCB_BYTES - 4);
    sum.copy_from_slice(&crc32c::crc32c(content).to_le_bytes());
}

/// A block says the same when it is written again, and no flipped bit of it is passed over.
fn whole(scb: &Scb, bit: usize) {
    let mut bytes = scb.encode().expect("what was read can be written");
    let again = Scb::decode(&bytes).expect("what was written can be read");
    assert_eq!(&again, scb);
    assert_eq!(again.encode().expect("as before"), bytes);
    flip(&mut bytes, bit);
    let error = Scb::decode(&bytes).expect_err("a bit is wrong");
    let told = matches!(error, ScbError::Checksum { .. } | ScbError::NoMagic);
    assert!(told, "bit {bit}: {error}");
}

/// What people are shown of it agrees with what counts.
fn claimed(slot: &[u8], block: Option<&Scb>) {
    let claims = claims(slot);
    if let Some(scb) = block {
        let Some(Claims { content, .. }) = claims else {
            panic!("a block that claims nothing");
        };
        assert_eq!(content, Content::Block(Box::new(scb.clone())));
    }
}

/// The same bytes as a file, which is never overwritten unless it holds a block, and goes on from there.
fn in_a_file(bytes: &[u8]) {
    let dir = Scratch::new();
    let path = dir.file("scb", bytes);
    let slots = Slots::read(&std::fs::File::open(&path).expect("there")).expect("read");
    let found = scb_file::read(&path).expect("read");
    match (slots.newest(), found) {
        (Ok((_, scb)), ScbFound::Read(found)) => {
            assert_eq!(found, scb);
            let mut file = ScbFile::open_or_create(&path).expect("it holds a block");
            file.write(&scb).expect("written");
            let ScbFound::Read(next) = scb_file::read(&path).expect("read") else {
                panic!("what was written is damaged");
            };
            let sequence = scb.sequence + 1;
            assert_eq!(next, Scb { sequence, ..scb });
        }
        (Err(_), ScbFound::Damaged(why)) => {
            assert!(!why.is_empty());
            if !bytes.is_empty() {
                ScbFile::open_or_create(&path).expect_err("it holds no block");
                assert_eq!(std::fs::read(&path).expect("read"), bytes);
            }
        }
        (slots, found) => panic!("{slots:?} and {found:?}"),
    }
}

/// The lines of the file of events, the rate of a node, the list of mounts.
pub(crate) fn records(bytes: &[u8]) {
    let lines = event_log::last_lines(bytes);
    let text = lines.iter().map(|line| format!("{line}\n"));
    let text: String = text.collect();
    let again = event_log::last_lines(text.as_bytes());
    // The end of a line may be two bytes.
    let bare = |lines: Vec<String>| -> Vec<String> {
        let lines = lines.iter().map(|line| line.trim_end_matches('\r'));
        lines
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(bare(again), bare(lines));
    // What is no text becomes longer: a byte that is none takes three.
    assert!(text.len() <= 3 * bytes.len() + 1);
    owed(bytes);
    listed(bytes);
}

/// What is owed is what was written, and no flipped bit of it is believed; no number is too large to reckon with.
fn owed(bytes: &[u8]) {
    let Some(file) = bytes.first_chunk() else {
        return;
    };
    let mut input = Input(&bytes[BYTES..]);
    let (rate, now) = (1 + input.below(1 << 24) as u64, input.below(1 << 24) as u64);
    for mut file in [*file, Owed::decode(*file).encode()] {
        let owed = Owed::decode(file);
        let later = owed.after(rate, now).and(u64::MAX / 2);
        let _ = later.time(rate);
        if owed.encode() == file {
            flip(&mut file, input.below(BYTES * 8));
            assert_eq!(Owed::decode(file), Owed::default());
        }
    }
}

/// A record comes and goes, and the records of others stay.
fn listed(list: &[u8]) {
    let (list, place) = list.split_at(
        list.iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1),
    );
    let place = Path::new(OsStr::from_bytes(place));
    let without = utab::changed(list, place, false);
    let with = utab::changed(list, place, true);
    assert_eq!(utab::changed(&with, place, true), with, "once");
    let again = utab::changed(&with, place, false);
    assert!(again.len() <= without.len());
    let others = list.split_inclusive(|b| *b == b'\n');
    for line in others.filter(|line| !line.starts_with(b"SRC=shadowset: ")) {
        assert!(with.split_inclusive(|b| *b == b'\n').any(|l| l == line));
    }
    let record = with.split_inclusive(|b| *b == b'\n').next_back();
    let record = record.expect("the record");
    assert!(record.is_ascii() && record.iter().filter(|b| **b == b' ').count() == 3);
}
