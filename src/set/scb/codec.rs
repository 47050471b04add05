//! The exact bytes of a storage control block; `docs/format.md` describes them.
//!
//! Fixed offsets, fixed widths, little-endian, a checksum over everything, written out by hand: the
//! format must change only when somebody changes it. Every length and code is checked on the way in.

mod stamp;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use uuid::Uuid;

use super::{
    Generation, LABEL_BYTES_MAX, LINEAGE_MAX, Lineage, MEMBERS_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX,
    SCB_BYTES, Scb, ScbError, ScbRow, ScbState, Slot,
};
use crate::set::geometry::{Bytes, Geometry};
use crate::set::member::Moment;

const MAGIC: [u8; 8] = *b"SHDWSCB\n";
const VERSION: u16 = 1;
/// Features that a program must know to read the block: none yet.
const INCOMPATIBLE_KNOWN: u64 = 0;
/// Compatible feature: the block holds a stamp.
const HAS_STAMP: u64 = 1;
const LINEAGE_AT: usize = 256;
const LINEAGE_ENTRY: usize = 16;
const TABLE_AT: usize = LINEAGE_AT + LINEAGE_MAX * LINEAGE_ENTRY;
const ROW_BYTES: usize = 64 + PATH_BYTES_MAX;
const STAMP_AT: usize = TABLE_AT + MEMBERS_MAX * ROW_BYTES;
const CRC_AT: usize = SCB_BYTES - 4;

const _: () = assert!(
    STAMP_AT + stamp::STAMP_BYTES <= CRC_AT,
    "table and stamp must fit a slot"
);

impl Scb {
    /// The bytes of one slot.
    ///
    /// # Errors
    /// [`ScbError`] when a field does not fit; nothing is ever cut.
    pub fn encode(&self) -> Result<[u8; SCB_BYTES], ScbError> {
        self.check()?;
        let mut to = Writer {
            buf: [0; SCB_BYTES],
            at: 0,
        };
        to.put(&MAGIC);
        to.put(&VERSION.to_le_bytes());
        to.skip_to(16);
        to.put(&INCOMPATIBLE_KNOWN.to_le_bytes());
        let compatible = self.stamp.as_ref().map_or(0, |_| HAS_STAMP);
        to.put(&compatible.to_le_bytes());
        to.put(&self.sequence.to_le_bytes());
        to.put(&self.generation.0.to_le_bytes());
        to.put(self.set.as_bytes());
        to.put(self.member.as_bytes());
        to.put(&self.geometry.size().0.to_le_bytes());
        to.put(&self.geometry.region_blocks().to_le_bytes());
        to.put(&[self.state.code(), u8::from(self.clean)]);
        to.put(&[short(self.table.len()), short(self.lineage.mounts.len())]);
        to.put(&[short(self.name.len()), short(self.label.len())]);
        to.skip_to(104);
        to.field(self.name.as_bytes(), NAME_BYTES_MAX);
        to.field(self.label.as_bytes(), LABEL_BYTES_MAX);
        to.put(&self.created.map_or(0, |at| at.0).to_le_bytes());
        to.skip_to(LINEAGE_AT);
        for (first, mark) in &self.lineage.mounts {
            to.put(&first.0.to_le_bytes());
            to.put(&mark.to_le_bytes());
        }
        to.skip_to(TABLE_AT);
        for row in &self.table {
            let path = row.path.as_os_str().as_bytes();
            to.put(row.member.as_bytes());
            to.put(&[row.state.code(), short(row.name.len())]);
            to.put(&u16::try_from(path.len()).unwrap_or(u16::MAX).to_le_bytes());
            to.put(&[0; 12]);
            to.field(row.name.as_bytes(), NAME_BYTES_MAX);
            to.field(path, PATH_BYTES_MAX);
        }
        to.skip_to(STAMP_AT);
        if let Some(stamp) = &self.stamp {
            to.stamp(stamp);
        }
        to.skip_to(CRC_AT);
        let crc = crc32c::crc32c(&to.buf[..CRC_AT]);
        to.put(&crc.to_le_bytes());
        Ok(to.buf)
    }

    /// The block in a slot.
    ///
    /// # Errors
    /// [`ScbError`] when the bytes are not exactly what a program that knows the format wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, ScbError> {
        let slot = bytes
            .get(..SCB_BYTES)
            .ok_or(ScbError::Truncated(bytes.len()))?;
        check_envelope(slot)?;
        let mut from = Reader { buf: slot, at: 24 };
        let compatible = from.u64()?;
        let sequence = from.sequence()?;
        let generation = from.generation()?;
        let (set, member) = (from.uuid()?, from.uuid()?);
        let geometry = Geometry::new(Bytes(from.u64()?), from.u32()?)?;
        let state = from.state()?;
        let clean = match from.u8()? {
            0 => false,
            1 => true,
            other => return Err(ScbError::field("clean flag", other)),
        };
        let (rows, mounts) = (usize::from(from.u8()?), usize::from(from.u8()?));
        let (name_len, label_len) = (usize::from(from.u8()?), usize::from(from.u8()?));
        from.at = 104;
        let name = from.text("name", name_len, NAME_BYTES_MAX)?;
        let label = from.text("label", label_len, LABEL_BYTES_MAX)?;
        let created = Some(from.u64()?).filter(|at| *at != 0).map(Moment);
        from.at = LINEAGE_AT;
        let lineage = from.lineage(mounts, generation)?;
        from.at = TABLE_AT;
        let table = from.table(rows)?;
        from.at = STAMP_AT;
        let stamp = match compatible & HAS_STAMP {
            0 => None,
            _ => Some(from.stamp()?),
        };
        let scb = Self {
            set,
            member,
            name,
            state,
            label,
            generation,
            lineage,
            geometry,
            clean,
            sequence,
            table,
            created,
            stamp,
        };
        scb.check()?;
        Ok(scb)
    }
}

/// The newer of two slots. One torn slot costs nothing but the write that tore it.
///
/// # Errors
/// The error of the slot that holds more, when no slot is whole, or a whole one is from a newer
/// program: an older slot beside it must not win.
pub fn newest(a: &[u8], b: &[u8]) -> Result<(Slot, Scb), ScbError> {
    match (Scb::decode(a), Scb::decode(b)) {
        (Err(e), _) | (_, Err(e)) if e.is_from_newer_program() => Err(e),
        (Ok(a), Ok(b)) if b.sequence > a.sequence => Ok((Slot::B, b)),
        (Ok(a), _) => Ok((Slot::A, a)),
        (Err(_), Ok(b)) => Ok((Slot::B, b)),
        (Err(ScbError::NoMagic), Err(e)) if !matches!(e, ScbError::Truncated(_)) => Err(e),
        (Err(e), Err(_)) => Err(e),
    }
}

/// Whether bytes begin like a slot, whole or damaged.
#[must_use]
pub fn has_magic(slot: &[u8]) -> bool {
    slot.starts_with(&MAGIC)
}

/// Magic, checksum, version, features: what stays where it is in every version of the format.
fn check_envelope(slot: &[u8]) -> Result<(), ScbError> {
    if !has_magic(slot) {
        return Err(ScbError::NoMagic);
    }
    let found = Reader {
        buf: slot,
        at: CRC_AT,
    }
    .u32()?;
    let computed = crc32c::crc32c(&slot[..CRC_AT]);
    if found != computed {
        return Err(ScbError::Checksum { found, computed });
    }
    let version = Reader { buf: slot, at: 8 }.u16()?;
    if version != VERSION {
        return Err(ScbError::Version(version));
    }
    match (Reader { buf: slot, at: 16 }).u64()? & !INCOMPATIBLE_KNOWN {
        0 => Ok(()),
        unknown => Err(ScbError::Features(unknown)),
    }
}

/// A length that its limit keeps under 256.
fn short(len: usize) -> u8 {
    debug_assert!(
        len <= usize::from(u8::MAX),
        "{len} was checked against its limit"
    );
    u8::try_from(len).unwrap_or(u8::MAX)
}

struct Writer {
    buf: [u8; SCB_BYTES],
    at: usize,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) {
        self.buf[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    /// A field of fixed width, filled up with zeros.
    fn field(&mut self, bytes: &[u8], width: usize) {
        assert!(
            bytes.len() <= width,
            "{} bytes in a field of {width}",
            bytes.len()
        );
        let end = self.at + width;
        self.put(bytes);
        self.skip_to(end);
    }

    fn skip_to(&mut self, at: usize) {
        assert!(self.at <= at, "the field before offset {at} is too long");
        self.at = at;
    }
}

struct Reader<'a> {
    buf: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ScbError> {
        let truncated = ScbError::Truncated(self.buf.len());
        let bytes = self
            .buf
            .get(self.at..)
            .and_then(|rest| rest.first_chunk::<N>());
        self.at += N;
        bytes.copied().ok_or(truncated)
    }

    fn u8(&mut self) -> Result<u8, ScbError> {
        self.take().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, ScbError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, ScbError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ScbError> {
        self.take().map(u64::from_le_bytes)
    }

    fn uuid(&mut self) -> Result<Uuid, ScbError> {
        self.take().map(Uuid::from_bytes)
    }

    fn generation(&mut self) -> Result<Generation, ScbError> {
        let number = self.u64()?;
        Generation::from_number(number).ok_or_else(|| ScbError::field("generation", number))
    }

    /// The number of a write, which the next one has to go beyond.
    fn sequence(&mut self) -> Result<u64, ScbError> {
        match self.u64()? {
            u64::MAX => Err(ScbError::field("number of the write", u64::MAX)),
            number => Ok(number),
        }
    }

    fn state(&mut self) -> Result<ScbState, ScbError> {
        let code = self.u8()?;
        let state = ScbState::ALL.get(usize::from(code)).copied();
        state.ok_or_else(|| ScbError::field("state", code))
    }

    /// The first `len` bytes of a field of `width` bytes.
    fn bytes(
        &mut self,
        field: &'static str,
        len: usize,
        width: usize,
    ) -> Result<Vec<u8>, ScbError> {
        if len > width {
            return Err(ScbError::field(field, format_args!("{len} bytes")));
        }
        let bytes = self.buf.get(self.at..self.at + len).map(<[u8]>::to_vec);
        self.at += width;
        bytes.ok_or(ScbError::Truncated(self.buf.len()))
    }

    fn text(&mut self, field: &'static str, len: usize, width: usize) -> Result<String, ScbError> {
        let bytes = self.bytes(field, len, width)?;
        String::from_utf8(bytes).map_err(|_| ScbError::field(field, "no UTF-8"))
    }

    /// The mounts, first generations rising and none beyond the block's own.
    fn lineage(&mut self, mounts: usize, newest: Generation) -> Result<Lineage, ScbError> {
        if !(1..=LINEAGE_MAX).contains(&mounts) {
            return Err(ScbError::field("number of mounts", mounts));
        }
        let mut lineage = Lineage {
            mounts: Vec::with_capacity(mounts),
        };
        for _ in 0..mounts {
            let (first, mark) = (self.generation()?, self.u64()?);
            if first > newest || lineage.tip().is_some_and(|t| t.0 >= first) {
                return Err(ScbError::field("lineage", first));
            }
            lineage.mounts.push((first, mark));
        }
        Ok(lineage)
    }

    fn table(&mut self, rows: usize) -> Result<Vec<ScbRow>, ScbError> {
        if rows > MEMBERS_MAX {
            return Err(ScbError::field("number of members", rows));
        }
        (0..rows).map(|_| self.row()).collect()
    }

    fn row(&mut self) -> Result<ScbRow, ScbError> {
        let member = self.uuid()?;
        let state = self.state()?;
        let name_len = usize::from(self.u8()?);
        let path_len = usize::from(self.u16()?);
        self.at += 12;
        let name = self.text("name", name_len, NAME_BYTES_MAX)?;
        let path = self.bytes("path", path_len, PATH_BYTES_MAX)?;
        Ok(ScbRow {
            member,
            name,
            path: PathBuf::from(OsString::from_vec(path)),
            state,
        })
    }
}
