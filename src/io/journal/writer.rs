//! The writer: which segment counts, where its log ends, and the change to the other one.
//!
//! Used by one thread at a time, the leader.

use std::io;

use uuid::Uuid;

use super::backing::{Backing, write_zeros};
use super::log::{BATCH_HEAD, BODY_MAX, Entry, Life, encode_batch};
use super::segment::{Fault, Header, Layout, Segment, write_note, write_snapshot};
use super::{Durability, Identity, Map, OpenError, Options, PAGE};

/// The two files.
pub(super) type Pair = [Box<dyn Backing>; 2];

/// Writes batches and snapshots.
#[derive(Debug)]
pub(super) struct Writer {
    pair: Pair,
    /// File of the segment that counts.
    active: usize,
    /// Its header; the next one is made from it.
    header: Header,
    durability: Durability,
    boot: Uuid,
    /// Number of the next batch.
    number: u64,
    /// Where it goes, from the start of the log.
    at: u64,
    buffer: Vec<u8>,
}

impl Writer {
    /// Takes the space of two new files and begins the first life in the first one.
    pub(super) fn format(
        pair: Pair,
        id: &Identity,
        layout: Layout,
        options: Options,
    ) -> io::Result<Self> {
        for file in &pair {
            file.reserve(layout.total(), true)?;
            write_zeros(file.as_ref(), layout.log_at(), layout.log_bytes)?;
            file.sync()?;
        }
        let header = Header {
            set: id.set,
            life: Life {
                journal: Uuid::new_v4(),
                number: 1,
            },
            geometry: id.geometry,
            durability: options.durability,
            boot: id.boot,
            layout,
        };
        write_snapshot(pair[0].as_ref(), &header, &[])?;
        pair[0].sync()?;
        Ok(Self::at_start(pair, 0, header))
    }

    fn at_start(pair: Pair, active: usize, header: Header) -> Self {
        Self {
            pair,
            active,
            durability: header.durability,
            boot: header.boot,
            header,
            number: 1,
            at: 0,
            buffer: Vec::new(),
        }
    }

    /// Finds the segment that counts, reads it, and begins a new life in the other file: nothing is
    /// ever appended to a log whose end was cut.
    pub(super) fn open(
        pair: Pair,
        id: &Identity,
        options: Options,
    ) -> Result<(Self, Vec<Map>), OpenError> {
        let (active, header, maps) = choose(&pair, id)?;
        for file in &pair {
            file.reserve(header.layout.total(), false)?;
        }
        let mut writer = Self::at_start(pair, active, header);
        (writer.durability, writer.boot) = (options.durability, id.boot);
        // Who wrote it last may have been killed before its sync: it must not be read from the page cache alone when the
        // other file, the last one that is durable, is written.
        if writer.is_synced() && !skip(Skip::Opened) {
            writer.pair[active].sync()?;
        }
        writer.switch(&maps)?;
        Ok((writer, maps))
    }

    /// Whether nothing was written behind the snapshot.
    pub(super) fn is_fresh(&self) -> bool {
        self.at == 0
    }

    /// Writes entries behind the log as one batch, durable when it returns; nothing for no entry.
    /// `maps` is what they change: the snapshot that makes room for them, and without them.
    pub(super) fn append(&mut self, entries: &[Entry], maps: &[Map]) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        encode_batch(&mut buffer, self.header.life, self.number, entries);
        if self.at + buffer.len() as u64 > self.header.layout.log_bytes {
            self.switch(maps)?;
            encode_batch(&mut buffer, self.header.life, self.number, entries);
        }
        let file = &self.pair[self.active];
        file.write_at(&buffer, self.header.layout.log_at() + self.at)?;
        if self.durability == Durability::Power && !skip(Skip::Batch) {
            file.sync()?;
        }
        self.at += buffer.len() as u64;
        self.number += 1;
        self.buffer = buffer;
        Ok(())
    }

    /// Whether the next life has to outlive a loss of power: the first of weaker durability must not be lost behind one
    /// that promised more.
    fn is_synced(&self) -> bool {
        [self.durability, self.header.durability].contains(&Durability::Power)
    }

    /// Makes the maps a new life in the other file. The old one counts until the new one is
    /// durable as a whole; nothing is acknowledged in the new one before the old one says so.
    pub(super) fn switch(&mut self, maps: &[Map]) -> io::Result<()> {
        let sync = self.is_synced();
        let (old, new) = (self.active, 1 - self.active);
        let mut header = self.header.clone();
        header.life.number += 1;
        (header.durability, header.boot) = (self.durability, self.boot);
        write_snapshot(self.pair[new].as_ref(), &header, maps)?;
        if sync && !skip(Skip::Segment) {
            self.pair[new].sync()?;
        }
        write_note(self.pair[old].as_ref(), self.header.life)?;
        if sync {
            self.pair[old].sync()?;
        }
        self.header = header;
        (self.active, self.number, self.at) = (new, 1, 0);
        Ok(())
    }

    /// Begins a life that survives everything and that nobody appends to, unless this one does, and nothing
    /// was `cleared` in it.
    pub(super) fn close(&mut self, maps: &[Map], cleared: bool) -> io::Result<()> {
        let weak = self.header.durability != Durability::Power;
        self.durability = Durability::Power;
        if weak || cleared {
            self.switch(maps)
        } else {
            Ok(())
        }
    }
}

/// The segment that counts: its file, its header and its maps.
fn choose(pair: &Pair, id: &Identity) -> Result<(usize, Header, Vec<Map>), OpenError> {
    let mut found = Vec::new();
    let mut faults = Vec::new();
    for (file, backing) in pair.iter().enumerate() {
        match Segment::read(backing.as_ref()) {
            Ok(segment) => found.push((file, segment)),
            Err(Fault::Unsupported(text)) => return Err(OpenError::Unsupported(text)),
            Err(fault) => faults.push((file, fault)),
        }
    }
    check(&found, id)?;
    found.sort_by_key(|(_, segment)| std::cmp::Reverse(segment.header.life.number));
    for (file, segment) in found {
        let from = pair[file].as_ref();
        match segment.superseded(from) {
            Ok(false) => {}
            Ok(true) => {
                let newer = "what superseded it was durable and cannot be read";
                faults.push((file, Fault::Damaged(newer.to_owned())));
                break;
            }
            Err(fault) => return Err(explain(vec![(file, fault)])),
        }
        if lost(&segment.header, id.boot) {
            return Err(OpenError::NotDurable);
        }
        match segment.load(from) {
            Ok(maps) => return Ok((file, segment.header, maps)),
            Err(fault) => faults.push((file, fault)),
        }
    }
    Err(explain(faults))
}

/// Whether what was written without a sync may be gone.
fn lost(header: &Header, boot: Uuid) -> bool {
    header.durability == Durability::Crash && (header.boot != boot || boot.is_nil())
}

fn check(found: &[(usize, Segment)], id: &Identity) -> Result<(), OpenError> {
    for (_, segment) in found {
        if segment.header.set != id.set {
            return Err(OpenError::OtherSet(segment.header.set));
        }
        if segment.header.geometry != id.geometry {
            return Err(OpenError::OtherGeometry(segment.header.geometry));
        }
    }
    match found {
        [(_, a), (_, b)] if a.header.life.journal != b.header.life.journal => Err(
            OpenError::Damaged("its two files are those of different journals".to_owned()),
        ),
        [(_, a), (_, b)] if a.header.life.number == b.header.life.number => Err(
            OpenError::Damaged("its two files claim the same place in time".to_owned()),
        ),
        _ => Ok(()),
    }
}

fn explain(faults: Vec<(usize, Fault)>) -> OpenError {
    let mut texts = Vec::new();
    for (file, fault) in faults {
        match fault {
            Fault::Io(e) => return OpenError::Io(e),
            Fault::Damaged(text) | Fault::Unsupported(text) => {
                texts.push(format!("{}: {text}", super::FILES[file]));
            }
        }
    }
    OpenError::Damaged(texts.join("; "))
}

/// Syncs that a planted mistake leaves out.
#[derive(Clone, Copy)]
enum Skip {
    Opened,
    Segment,
    Batch,
}

#[cfg(test)]
fn skip(what: Skip) -> bool {
    super::planted::is(match what {
        Skip::Opened => super::planted::Mistake::OpenedNotSynced,
        Skip::Segment => super::planted::Mistake::SegmentNotSynced,
        Skip::Batch => super::planted::Mistake::BatchNotSynced,
    })
}

#[cfg(not(test))]
fn skip(_: Skip) -> bool {
    false
}

const _: () = assert!(BATCH_HEAD + BODY_MAX == 16 * PAGE, "whole pages");
