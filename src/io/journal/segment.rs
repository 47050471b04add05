//! One segment: header, words of every map, note of what superseded it, and the log behind them.
//!
//! The exact bytes; `docs/format.md` describes them. This module must not repair: what is not
//! exactly right is damaged, and which segment counts is decided in `open`.

use std::io;

use uuid::Uuid;

use super::backing::Backing;
use super::log::{Batch, Life, MAPS_MAX, RECORD_BYTES, decode_record, encode_record};
use super::words::{Words, words_of};
use super::{Durability, Map, PAGE};
use crate::set::BitmapRecord;
use crate::set::{Bytes, Geometry};

const MAGIC: [u8; 8] = *b"SHDWJNL\n";
const NOTE_MAGIC: [u8; 8] = *b"SHDWJNX\n";
const VERSION: u16 = 1;
/// Features that a program must know to read the journal: none yet.
const INCOMPATIBLE_KNOWN: u64 = 0;
const CRC_AT: usize = PAGE - 4;
const TABLE_AT: usize = 256;
const ROW_BYTES: usize = 64;
const NOTE_AT: u64 = PAGE as u64;
const WORDS_AT: u64 = 2 * PAGE as u64;
/// The log of a small unit, and the largest log: a snapshot every 1024 batches at least, and not
/// more than half of what is written goes into snapshots of large units until the log is this large.
const LOG_BYTES: (u64, u64) = (4 << 20, 64 << 20);
/// The smallest log: the largest batch fits.
const LOG_BYTES_MIN: u64 = 16 * PAGE as u64;
/// Bytes of words that are written or read at once; a multiple of a page.
const PIECE: usize = 1 << 20;

const _: () = assert!(TABLE_AT + MAPS_MAX * ROW_BYTES <= CRC_AT);

/// Where the parts of a segment are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// Bytes of the words of one map.
    words: u64,
    /// Bytes between two maps.
    stride: u64,
    pub(super) log_bytes: u64,
}

impl Layout {
    pub(super) fn new(geometry: Geometry) -> Self {
        let words = words_of(geometry) * 8;
        let stride = words.next_multiple_of(PAGE as u64);
        Self {
            words,
            stride,
            log_bytes: (2 * stride).clamp(LOG_BYTES.0, LOG_BYTES.1),
        }
    }

    fn words_at(self, slot: usize) -> u64 {
        WORDS_AT + slot as u64 * self.stride
    }

    pub(super) fn log_at(self) -> u64 {
        self.words_at(MAPS_MAX)
    }

    /// Bytes of the file.
    pub(super) fn total(self) -> u64 {
        self.log_at() + self.log_bytes
    }
}

/// What a header says besides its table of maps.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) set: Uuid,
    pub(super) life: Life,
    pub(super) geometry: Geometry,
    pub(super) durability: Durability,
    /// Boot of the machine that wrote it.
    pub(super) boot: Uuid,
    pub(super) layout: Layout,
}

/// Why a segment cannot be used.
#[derive(Debug)]
pub(super) enum Fault {
    Damaged(String),
    Unsupported(String),
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damaged("the file was cut".to_owned()),
            _ => Self::Io(e),
        }
    }
}

fn damaged<T>(why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(why.into()))
}

/// Writes words and header: whole or recognised as not whole, whatever part of it gets lost. Not
/// durable yet.
pub(super) fn write_snapshot(to: &dyn Backing, header: &Header, maps: &[Map]) -> io::Result<()> {
    assert!(maps.len() <= MAPS_MAX, "{} maps", maps.len());
    let mut table = Vec::with_capacity(maps.len());
    for (slot, map) in maps.iter().enumerate() {
        let crc = write_words(to, header.layout.words_at(slot), &map.words)?;
        table.push((map.record, crc));
    }
    to.write_at(&encode_header(header, &table), 0)
}

/// Writes words as they are at this moment; their checksum is that of what was written.
fn write_words(to: &dyn Backing, mut at: u64, words: &Words) -> io::Result<u32> {
    let (mut crc, mut piece) = (0, Vec::with_capacity(PIECE));
    let mut words = words.iter().peekable();
    while words.peek().is_some() {
        piece.clear();
        piece.extend(words.by_ref().take(PIECE / 8).flat_map(u64::to_le_bytes));
        crc = crc32c::crc32c_append(crc, &piece);
        to.write_at(&piece, at)?;
        at += piece.len() as u64;
    }
    Ok(crc)
}

fn encode_header(header: &Header, table: &[(BitmapRecord, u32)]) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC);
    put(8, &VERSION.to_le_bytes());
    put(16, &INCOMPATIBLE_KNOWN.to_le_bytes());
    put(32, header.set.as_bytes());
    put(48, header.life.journal.as_bytes());
    put(64, &header.life.number.to_le_bytes());
    put(72, &header.geometry.size().0.to_le_bytes());
    put(80, &header.geometry.region_blocks().to_le_bytes());
    let count = u8::try_from(table.len()).unwrap_or(u8::MAX);
    put(84, &[header.durability.code(), count]);
    put(88, header.boot.as_bytes());
    put(104, &header.layout.log_at().to_le_bytes());
    put(112, &header.layout.log_bytes.to_le_bytes());
    for (row, (record, crc)) in table.iter().enumerate() {
        let at = TABLE_AT + row * ROW_BYTES;
        put(at, &encode_record(1, record));
        put(at + RECORD_BYTES, &crc.to_le_bytes());
    }
    seal(&mut page);
    page
}

fn seal(page: &mut [u8]) {
    let crc = crc32c::crc32c(&page[..CRC_AT]);
    page[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
}

/// A page with this magic whose checksum is right.
fn read_page(from: &dyn Backing, at: u64, magic: [u8; 8]) -> Result<Page, Fault> {
    let mut page = Page(vec![0; PAGE]);
    from.read_at(&mut page.0, at)?;
    if page.bytes::<8>(0) != magic {
        return damaged("it does not begin like a journal");
    }
    if crc32c::crc32c(&page.0[..CRC_AT]).to_le_bytes() != page.bytes(CRC_AT) {
        return damaged("the checksum of its header is wrong");
    }
    Ok(page)
}

struct Page(Vec<u8>);

impl Page {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.0[at..at + N]);
        field
    }

    fn number(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn uuid(&self, at: usize) -> Uuid {
        Uuid::from_bytes(self.bytes(at))
    }
}

/// The header of a segment and its table of maps.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) header: Header,
    table: Vec<(BitmapRecord, u32)>,
}

impl Segment {
    /// Reads and checks the header.
    pub(super) fn read(from: &dyn Backing) -> Result<Self, Fault> {
        let page = read_page(from, 0, MAGIC)?;
        let (version, features) = (u16::from_le_bytes(page.bytes(8)), page.number(16));
        if version != VERSION || features & !INCOMPATIBLE_KNOWN != 0 {
            return Err(Fault::Unsupported(format!(
                "version {version} with features {features:#x}, and this program knows version \
                 {VERSION} with features {INCOMPATIBLE_KNOWN:#x}"
            )));
        }
        let blocks = u32::from_le_bytes(page.bytes(80));
        let geometry = Geometry::new(Bytes(page.number(72)), blocks)
            .or_else(|e| damaged(format!("its geometry is none: {e}")))?;
        let [durability, count] = page.bytes(84);
        let Some(durability) = Durability::from_code(durability) else {
            return damaged(format!("{durability} is no durability"));
        };
        let mut layout = Layout::new(geometry);
        layout.log_bytes = page.number(112);
        let whole = layout.log_bytes % PAGE as u64 == 0;
        let fits = (LOG_BYTES_MIN..=LOG_BYTES.1).contains(&layout.log_bytes);
        if !whole || !fits || page.number(104) != layout.log_at() {
            return damaged("its log is out of place");
        }
        let header = Header {
            set: page.uuid(32),
            life: Life {
                journal: page.uuid(48),
                number: page.number(64),
            },
            geometry,
            durability,
            boot: page.uuid(88),
            layout,
        };
        let table = read_table(&page, usize::from(count))?;
        Ok(Self { header, table })
    }

    /// Reads the maps and replays the log.
    pub(super) fn load(&self, from: &dyn Backing) -> Result<Vec<Map>, Fault> {
        // Before there is memory for what the header says: the file has to be as long as that.
        from.read_at(&mut [0], self.header.layout.total() - 1)?;
        let mut maps = Vec::with_capacity(MAPS_MAX);
        for (slot, (record, crc)) in self.table.iter().enumerate() {
            let words = Words::empty(self.header.geometry);
            if self.read_words(from, slot, &words)? != *crc {
                return damaged(format!("the checksum of map {} is wrong", record.tag.id.0));
            }
            maps.push(Map::new(*record, words));
        }
        self.replay(from, &mut maps)?;
        Ok(maps)
    }

    /// Fills `to` and returns the checksum of what was read.
    fn read_words(&self, from: &dyn Backing, slot: usize, to: &Words) -> Result<u32, Fault> {
        let layout = self.header.layout;
        let (mut crc, mut index, mut done) = (0, 0, 0);
        let mut piece = vec![0; PIECE];
        while done < layout.words {
            let len = usize::try_from(layout.words - done).map_or(PIECE, |left| left.min(PIECE));
            from.read_at(&mut piece[..len], layout.words_at(slot) + done)?;
            crc = crc32c::crc32c_append(crc, &piece[..len]);
            for word in piece[..len].chunks_exact(8) {
                let mut bits = [0; 8];
                bits.copy_from_slice(word);
                to.add(index, u64::from_le_bytes(bits));
                index += 1;
            }
            done += len as u64;
        }
        Ok(crc)
    }

    /// Carries out every batch up to the first that is not there.
    fn replay(&self, from: &dyn Backing, maps: &mut Vec<Map>) -> Result<(), Fault> {
        let layout = self.header.layout;
        let len = usize::try_from(layout.log_bytes).or_else(|_| damaged("its log is too large"))?;
        let mut log = vec![0; len];
        from.read_at(&mut log, layout.log_at())?;
        let (mut at, mut number) = (0, 1);
        while let Some(batch) = Batch::decode(&log[at..]).filter(|b| self.next(b, number)) {
            let Some(entries) = batch.entries() else {
                return damaged(format!("batch {number} of its log is malformed"));
            };
            let empty = || Words::empty(self.header.geometry);
            if !entries.iter().all(|e| e.apply(maps, empty)) {
                return damaged(format!("batch {number} of its log does not fit its maps"));
            }
            at += batch.bytes();
            number += 1;
        }
        // The batch after one that is not there was never begun: if there is one, the log is no
        // torn one but a damaged one, and marks that somebody relies on are gone.
        let mut pages = log[at..].chunks(PAGE).enumerate();
        let later = pages.any(|(page, _)| {
            Batch::decode(&log[at + page * PAGE..])
                .is_some_and(|b| b.life == self.header.life && b.number >= number)
        });
        if later {
            return damaged(format!(
                "batch {number} of its log is gone, later ones are there"
            ));
        }
        Ok(())
    }

    fn next(&self, batch: &Batch<'_>, number: u64) -> bool {
        #[cfg(test)]
        if super::planted::is(super::planted::Mistake::OlderLife) {
            return batch.number == number;
        }
        batch.life == self.header.life && batch.number == number
    }

    /// Whether a later life was made durable elsewhere.
    pub(super) fn superseded(&self, from: &dyn Backing) -> Result<bool, Fault> {
        let life = self.header.life;
        match read_page(from, NOTE_AT, NOTE_MAGIC) {
            // A note of a later life of this file counts as well: the header may be an old one
            // whose successor got lost.
            Ok(note) => Ok(note.uuid(8) == life.journal && note.number(24) >= life.number),
            Err(Fault::Io(e)) => Err(Fault::Io(e)),
            Err(_) => Ok(false),
        }
    }
}

fn read_table(page: &Page, count: usize) -> Result<Vec<(BitmapRecord, u32)>, Fault> {
    if count > MAPS_MAX {
        return damaged(format!("{count} maps are too many"));
    }
    let mut table: Vec<(BitmapRecord, u32)> = Vec::with_capacity(count);
    for row in 0..count {
        let at = TABLE_AT + row * ROW_BYTES;
        let record = decode_record(1, &page.bytes(at));
        match record.filter(|r| table.iter().all(|(other, _)| other.tag.id != r.tag.id)) {
            Some(record) => {
                let crc = u32::from_le_bytes(page.bytes(at + RECORD_BYTES));
                table.push((record, crc));
            }
            None => return damaged(format!("row {row} of its table is malformed")),
        }
    }
    Ok(table)
}

/// Notes in a segment that the life after it is durable. Not durable yet.
pub(super) fn write_note(to: &dyn Backing, life: Life) -> io::Result<()> {
    let mut page = vec![0; PAGE];
    page[..8].copy_from_slice(&NOTE_MAGIC);
    page[8..24].copy_from_slice(life.journal.as_bytes());
    page[24..32].copy_from_slice(&life.number.to_le_bytes());
    seal(&mut page);
    to.write_at(&page, NOTE_AT)
}
