//! Storage control block (SCB): what a member knows of its set, and its exact bytes.
//!
//! Every member carries one beside its image. At mount they alone decide whose data is newest, so
//! the only way from bytes to an [`Scb`] is [`Scb::decode`], which refuses whatever is not exactly
//! what [`Scb::encode`] wrote. An SCB is written into two slots in turn: a torn write leaves the
//! block before it. The layout is described byte by byte in `docs/format.md`.
//!
//! This module must not repair: a block that is nearly right is damaged.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use uuid::Uuid;

use super::geometry::{Bytes, Geometry, GeometryError};

/// Bytes of one slot.
pub const SCB_BYTES: usize = 8192;
/// Most members of a set.
pub const MEMBERS_MAX: usize = 6;
/// Longest name of a member in bytes.
pub const NAME_BYTES_MAX: usize = 32;
/// Longest label of a set in bytes.
pub const LABEL_BYTES_MAX: usize = 64;
/// Longest path of a member in bytes.
pub const PATH_BYTES_MAX: usize = 1024;
/// Mounts that a [`Lineage`] remembers.
pub const LINEAGE_MAX: usize = 64;

const MAGIC: [u8; 8] = *b"SHDWSCB\n";
const VERSION: u16 = 1;
/// Features that a program must know to read the block: none yet.
const INCOMPATIBLE_KNOWN: u64 = 0;
const LINEAGE_AT: usize = 256;
const LINEAGE_ENTRY: usize = 16;
const TABLE_AT: usize = LINEAGE_AT + LINEAGE_MAX * LINEAGE_ENTRY;
const ROW_BYTES: usize = 64 + PATH_BYTES_MAX;
const CRC_AT: usize = SCB_BYTES - 4;

const _: () = assert!(
    TABLE_AT + MEMBERS_MAX * ROW_BYTES <= CRC_AT,
    "the table must fit a slot"
);

/// Durable age of a set's membership: grows by one with each change, never shrinks (I6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Generation(u64);

impl Generation {
    /// Generation of a new set.
    pub const FIRST: Self = Self(1);

    /// Largest generation that a block may hold; `next` is defined for every one read.
    const MAX: u64 = u64::MAX >> 1;

    /// The generation with this number, unless no set can have it.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        (1..=Self::MAX).contains(&number).then_some(Self(number))
    }

    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        assert!(self.0 < u64::MAX, "the generations are used up");
        Self(self.0 + 1)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Durable state of a member.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ScbState {
    /// Holds all acknowledged data.
    Source,
    /// Is being filled by a copy: it holds the set's data only in part.
    Target,
    /// Holds acknowledged data, but may differ where writes were in flight at an unclean stop.
    Merging,
    /// Left on request.
    Detached,
    /// Left by an error.
    Expelled,
}

impl ScbState {
    /// Every state, at the index of its code in the block.
    const ALL: [Self; 5] = [
        Self::Source,
        Self::Target,
        Self::Merging,
        Self::Detached,
        Self::Expelled,
    ];

    fn code(self) -> u8 {
        match self {
            Self::Source => 0,
            Self::Target => 1,
            Self::Merging => 2,
            Self::Detached => 3,
            Self::Expelled => 4,
        }
    }

    /// Whether a member in this state claims to hold all acknowledged data.
    #[must_use]
    pub fn claims_data(self) -> bool {
        matches!(self, Self::Source | Self::Merging)
    }

    /// Whether a member in this state has left the set.
    #[must_use]
    pub fn has_left(self) -> bool {
        matches!(self, Self::Detached | Self::Expelled)
    }
}

/// One row of the table of members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScbRow {
    /// Identity of the member.
    pub member: Uuid,
    /// Name of the member, unique in the set.
    pub name: String,
    /// Where its image was last; a hint for people, never trusted.
    pub path: PathBuf,
    /// Its state.
    pub state: ScbState,
}

/// Whether a block is an ancestor in a lineage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ancestry {
    /// It is: the lineage went on from it.
    Ancestor,
    /// It is not: somebody changed the set that the lineage knows nothing of.
    Foreign,
    /// It is older than anything the lineage remembers.
    Forgotten,
}

/// The mounts that a set's generations come from, oldest first, the running one last.
///
/// Every mount draws a random mark. Two servers that changed two halves of a set apart from each
/// other counted the same generations, but under different marks: that tells a member that was
/// merely left behind from one that went its own way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lineage {
    mounts: Vec<(Generation, u64)>,
}

impl Lineage {
    /// The lineage of a new set; `mark` is random.
    #[must_use]
    pub fn new(mark: u64) -> Self {
        Self {
            mounts: vec![(Generation::FIRST, mark)],
        }
    }

    /// The lineage after a mount that writes `first` as its first generation under a random mark.
    #[must_use]
    pub fn mounted(&self, first: Generation, mark: u64) -> Self {
        assert!(
            self.mounts.last().is_none_or(|m| m.0 < first),
            "generations only grow (I6)"
        );
        let kept = self.mounts.len().saturating_sub(LINEAGE_MAX - 1);
        let mut mounts = self.mounts[kept..].to_vec();
        mounts.push((first, mark));
        Self { mounts }
    }

    /// The newest mount: its first generation and its mark.
    fn tip(&self) -> Option<(Generation, u64)> {
        self.mounts.last().copied()
    }

    /// How a block of this generation, whose own lineage is `other`, relates to this lineage.
    #[must_use]
    pub fn ancestry(&self, generation: Generation, other: &Self) -> Ancestry {
        let Some((_, mark)) = other.tip() else {
            return Ancestry::Foreign;
        };
        match self.mounts.iter().position(|m| m.1 == mark) {
            // Generations that a mount wrote after the next one had begun are not in this line.
            Some(i)
                if self
                    .mounts
                    .get(i + 1)
                    .is_none_or(|next| generation < next.0) =>
            {
                Ancestry::Ancestor
            }
            Some(_) => Ancestry::Foreign,
            None if self.mounts.len() == LINEAGE_MAX && generation < self.mounts[0].0 => {
                Ancestry::Forgotten
            }
            None => Ancestry::Foreign,
        }
    }
}

/// Why bytes are no storage control block, or a block cannot become bytes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ScbError {
    /// There are fewer bytes than a slot has.
    #[error("only {0} of 8192 bytes are there")]
    Truncated(usize),
    /// The slot does not begin with the magic bytes.
    #[error("there is no storage control block")]
    NoMagic,
    /// The checksum does not match.
    #[error("the checksum is {found:#010x}, the content has {computed:#010x}")]
    Checksum {
        /// As the block says.
        found: u32,
        /// As the bytes have it.
        computed: u32,
    },
    /// The block is of another format version.
    #[error("it has format version {0}, this program knows version 1")]
    Version(u16),
    /// The block uses features that must be known.
    #[error("it uses features that this program does not know ({0:#x})")]
    Features(u64),
    /// A field holds a value that it cannot have.
    #[error("its {field} is impossible: {value}")]
    Field {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// Size and region size do not fit each other.
    #[error("its geometry is impossible: {0}")]
    Geometry(#[from] GeometryError),
    /// A path is too long for the table.
    #[error("the path of {name} has {bytes} bytes, the most is 1024")]
    PathTooLong {
        /// Name of the member.
        name: String,
        /// Length of its path.
        bytes: usize,
    },
}

impl ScbError {
    fn field(field: &'static str, value: impl fmt::Display) -> Self {
        Self::Field {
            field,
            value: value.to_string(),
        }
    }

    /// Whether the block is whole but made by a program that knows more than this one. It must
    /// not be passed over in favour of an older slot.
    #[must_use]
    pub fn is_from_newer_program(&self) -> bool {
        matches!(self, Self::Version(_) | Self::Features(_))
    }
}

/// A storage control block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scb {
    /// Identity of the set.
    pub set: Uuid,
    /// Identity of the member that carries the block.
    pub member: Uuid,
    /// Name of that member.
    pub name: String,
    /// State of that member.
    pub state: ScbState,
    /// Label of the set, at most 64 bytes.
    pub label: String,
    /// Generation of the membership.
    pub generation: Generation,
    /// The mounts that the generations come from.
    pub lineage: Lineage,
    /// Unit size and region size.
    pub geometry: Geometry,
    /// Whether the set was stopped in order: then all sources of this generation are equal.
    pub clean: bool,
    /// Number of the write of this member's block; the file counts it, not the caller.
    pub sequence: u64,
    /// One to six members, the carrier among them, departed ones too.
    pub table: Vec<ScbRow>,
}

impl Scb {
    /// The row of a member.
    #[must_use]
    pub fn row(&self, member: Uuid) -> Option<&ScbRow> {
        self.table.iter().find(|r| r.member == member)
    }

    /// Whether the block can be written: names, label, paths, table.
    ///
    /// # Errors
    /// [`ScbError`] that names the field.
    pub fn check(&self) -> Result<(), ScbError> {
        check_label(&self.label)?;
        if !(1..=MEMBERS_MAX).contains(&self.table.len()) {
            return Err(ScbError::field("number of members", self.table.len()));
        }
        for (i, row) in self.table.iter().enumerate() {
            check_row(row)?;
            if self.table[..i]
                .iter()
                .any(|r| r.member == row.member || r.name == row.name)
            {
                return Err(ScbError::field("table (a member twice)", &row.name));
            }
        }
        match self.row(self.member) {
            Some(own) if own.name == self.name && own.state == self.state => Ok(()),
            _ => Err(ScbError::field("table (the carrier's own row)", &self.name)),
        }
    }

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
        to.skip_to(32);
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
        let mut from = Reader { buf: slot, at: 32 };
        let sequence = from.u64()?;
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
        from.at = LINEAGE_AT;
        let lineage = from.lineage(mounts, generation)?;
        from.at = TABLE_AT;
        let table = from.table(rows)?;
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
        };
        scb.check()?;
        Ok(scb)
    }
}

/// One of the two places of a block in its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// The other slot.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Where the slot begins in the file.
    #[must_use]
    pub fn offset(self) -> u64 {
        match self {
            Self::A => 0,
            Self::B => SCB_BYTES as u64,
        }
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

/// Checks the name of a member: 1 to 32 of `a-z A-Z 0-9 . _ -`, first a letter or digit.
///
/// # Errors
/// [`ScbError::Field`].
pub fn check_name(name: &str) -> Result<(), ScbError> {
    let bytes = name.as_bytes();
    let good = (1..=NAME_BYTES_MAX).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b));
    if good {
        Ok(())
    } else {
        Err(ScbError::field("name", format_args!("{name:?}")))
    }
}

/// Checks the label of a set: at most 64 bytes, no control characters.
///
/// # Errors
/// [`ScbError::Field`].
pub fn check_label(label: &str) -> Result<(), ScbError> {
    if label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control) {
        return Err(ScbError::field("label", format_args!("{label:?}")));
    }
    Ok(())
}

fn check_row(row: &ScbRow) -> Result<(), ScbError> {
    check_name(&row.name)?;
    let path = row.path.as_os_str().as_bytes();
    if path.len() > PATH_BYTES_MAX {
        return Err(ScbError::PathTooLong {
            name: row.name.clone(),
            bytes: path.len(),
        });
    }
    if path.is_empty() || path.contains(&0) {
        return Err(ScbError::field("path", format_args!("{:?}", row.path)));
    }
    Ok(())
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
