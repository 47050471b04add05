//! Batches of the log and their entries: the exact bytes; `docs/format.md` describes them.
//!
//! A batch is whole or it is not there. It names the journal and the life of its segment, so that
//! bytes of an older life of the file are never taken for one.

use uuid::Uuid;

use super::record::{kind_code, kind_of, policy_code, policy_of};
use super::words::Words;
use super::{Map, PAGE};
use crate::set::{BitmapId, BitmapRecord, BitmapTag, Moment};

const MAGIC: [u8; 4] = *b"JBAT";
/// Bytes of a batch in front of its entries.
pub(super) const BATCH_HEAD: usize = 48;
const CRC_AT: usize = 4;
const SUMMED_FROM: usize = 8;
/// Bytes of a record, as an entry and in the header of a segment.
pub(super) const RECORD_BYTES: usize = 40;
/// Most bytes that the entries of a batch take.
pub(super) const BODY_MAX: usize = 16 * PAGE - BATCH_HEAD;
/// As many entries of any kind fit a batch.
pub(super) const ENTRIES_MAX: usize = BODY_MAX / RECORD_BYTES;
/// Most maps at once.
pub const MAPS_MAX: usize = 16;

/// One change of the maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// A new map without a bit.
    Add(BitmapRecord),
    /// Another record for a map that is there.
    Describe(BitmapRecord),
    /// The map is gone.
    Remove(BitmapId),
    /// All bits of the words `first .. end`.
    Mark { key: BitmapId, first: u64, end: u64 },
    /// Some bits of one word.
    Word { key: BitmapId, at: u64, bits: u64 },
}

/// The life that a batch belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Life {
    pub(super) journal: Uuid,
    pub(super) number: u64,
}

impl Entry {
    pub(super) fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Self::Add(record) => to.extend(encode_record(1, record)),
            Self::Describe(record) => to.extend(encode_record(2, record)),
            Self::Remove(key) => to.extend(entry_head(3, *key)),
            Self::Mark { key, first, end } => put_pair(to, entry_head(5, *key), *first, *end),
            Self::Word { key, at, bits } => put_pair(to, entry_head(6, *key), *at, *bits),
        }
    }

    /// The next entry of a batch; `None` when the bytes are no entry.
    fn decode(from: &mut Reader<'_>) -> Option<Self> {
        let code = *from.left.first()?;
        if matches!(code, 1 | 2) {
            let record = decode_record(code, from.take::<RECORD_BYTES>()?)?;
            return Some(match code {
                1 => Self::Add(record),
                _ => Self::Describe(record),
            });
        }
        let [_, a, b, c, key @ ..] = *from.take::<8>()?;
        let key = BitmapId(u32::from_le_bytes(key));
        if [a, b, c] != [0; 3] {
            return None;
        }
        Some(match code {
            3 => Self::Remove(key),
            5 => Self::Mark {
                key,
                first: from.number()?,
                end: from.number()?,
            },
            6 => Self::Word {
                key,
                at: from.number()?,
                bits: from.number()?,
            },
            _ => return None,
        })
    }

    /// Carries the change out; false when it does not fit the maps.
    pub(super) fn apply(&self, maps: &mut Vec<Map>, empty: impl FnOnce() -> Words) -> bool {
        let find = |maps: &[Map], key| maps.iter().position(|m| m.record.tag.id == key);
        match self {
            Self::Add(record) => {
                let fits = find(maps, record.tag.id).is_none() && maps.len() < MAPS_MAX;
                if fits {
                    maps.push(Map::new(*record, empty()));
                }
                fits
            }
            Self::Describe(record) => find(maps, record.tag.id).is_some_and(|at| {
                maps[at].record = *record;
                true
            }),
            Self::Remove(key) => find(maps, *key).is_some_and(|at| {
                maps.remove(at);
                true
            }),
            Self::Mark { key, first, end } => {
                find(maps, *key).is_some_and(|at| maps[at].words.fill(*first, *end))
            }
            Self::Word { key, at, bits } => {
                find(maps, *key).is_some_and(|map| maps[map].words.add(*at, *bits))
            }
        }
    }
}

fn entry_head(code: u8, key: BitmapId) -> [u8; 8] {
    let [a, b, c, d] = key.0.to_le_bytes();
    [code, 0, 0, 0, a, b, c, d]
}

fn put_pair(to: &mut Vec<u8>, head: [u8; 8], a: u64, b: u64) {
    to.extend(head);
    to.extend(a.to_le_bytes());
    to.extend(b.to_le_bytes());
}

/// The bytes of a record; `code` is that of the entry, or 1 in a header.
pub(super) fn encode_record(code: u8, record: &BitmapRecord) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..8].copy_from_slice(&entry_head(code, record.tag.id));
    bytes[1] = kind_code(record.kind);
    bytes[2] = policy_code(record.tag.policy);
    bytes[8..24].copy_from_slice(record.owner.as_bytes());
    bytes[24..32].copy_from_slice(&record.tag.generation.to_le_bytes());
    bytes[32..40].copy_from_slice(&record.tag.created.0.to_le_bytes());
    bytes
}

/// The record in these bytes, if there is one with this code.
pub(super) fn decode_record(code: u8, bytes: &[u8; RECORD_BYTES]) -> Option<BitmapRecord> {
    let mut from = Reader { left: bytes };
    let [found, kind, policy, zero, key @ ..] = *from.take::<8>()?;
    if (found, zero) != (code, 0) {
        return None;
    }
    let owner = Uuid::from_bytes(*from.take()?);
    let tag = BitmapTag {
        id: BitmapId(u32::from_le_bytes(key)),
        policy: policy_of(policy)?,
        generation: from.number()?,
        created: Moment(from.number()?),
    };
    let kind = kind_of(kind)?;
    Some(BitmapRecord { tag, kind, owner })
}

/// Writes the batch with this number into `to`, padded to whole pages.
pub(super) fn encode_batch(to: &mut Vec<u8>, life: Life, number: u64, entries: &[Entry]) {
    to.clear();
    to.resize(BATCH_HEAD, 0);
    for entry in entries {
        entry.encode(to);
    }
    let body = to.len() - BATCH_HEAD;
    assert!(body <= BODY_MAX, "a batch of {body} bytes");
    to[..4].copy_from_slice(&MAGIC);
    to[8..24].copy_from_slice(life.journal.as_bytes());
    to[24..32].copy_from_slice(&life.number.to_le_bytes());
    to[32..40].copy_from_slice(&number.to_le_bytes());
    to[40..44].copy_from_slice(&small(body).to_le_bytes());
    to[44..48].copy_from_slice(&small(entries.len()).to_le_bytes());
    let crc = crc32c::crc32c(&to[SUMMED_FROM..]);
    to[CRC_AT..SUMMED_FROM].copy_from_slice(&crc.to_le_bytes());
    to.resize(to.len().next_multiple_of(PAGE), 0);
}

fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A batch whose checksum is right.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    pub(super) life: Life,
    pub(super) number: u64,
    count: u32,
    body: &'a [u8],
}

impl<'a> Batch<'a> {
    /// The batch at the start of these bytes.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut from = Reader { left: bytes };
        if *from.take::<4>()? != MAGIC {
            return None;
        }
        let crc = u32::from_le_bytes(*from.take()?);
        let journal = Uuid::from_bytes(*from.take()?);
        let (life, number) = (from.number()?, from.number()?);
        let body = usize::try_from(u32::from_le_bytes(*from.take()?)).ok()?;
        let count = u32::from_le_bytes(*from.take()?);
        let end = BATCH_HEAD.checked_add(body).filter(|_| body <= BODY_MAX)?;
        let summed = bytes.get(SUMMED_FROM..end)?;
        (crc32c::crc32c(summed) == crc).then_some(Self {
            life: Life {
                journal,
                number: life,
            },
            number,
            count,
            body: &bytes[BATCH_HEAD..end],
        })
    }

    /// Bytes of the log that the batch takes.
    pub(super) fn bytes(&self) -> usize {
        (BATCH_HEAD + self.body.len()).next_multiple_of(PAGE)
    }

    /// Its entries; `None` when the body is not what the head says.
    pub(super) fn entries(&self) -> Option<Vec<Entry>> {
        let mut from = Reader { left: self.body };
        let mut entries = Vec::new();
        while !from.left.is_empty() {
            entries.push(Entry::decode(&mut from)?);
        }
        (small(entries.len()) == self.count).then_some(entries)
    }
}

/// Reads fields one after the other, never beyond the end.
#[derive(Debug)]
struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (field, left) = self.left.split_at_checked(N)?;
        self.left = left;
        field.try_into().ok()
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(|b| u64::from_le_bytes(*b))
    }
}
