//! Storage control block (SCB): what a member knows of its set, and its exact bytes.
//!
//! Every member carries one beside its image. At mount they alone decide whose data is newest, so
//! the only way from bytes to an [`Scb`] is [`Scb::decode`], which refuses whatever is not exactly
//! what [`Scb::encode`] wrote. An SCB is written into two slots in turn: a torn write leaves the
//! block before it. The layout is described byte by byte in `docs/format.md`.
//!
//! This module must not repair: a block that is nearly right is damaged.

mod claims;
mod codec;

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use uuid::Uuid;

use super::geometry::{Geometry, GeometryError};
use super::member::{MEMBERS_MAX, Moment};
use super::record::BitmapRecord;
use super::stamp::{SAMPLES_MAX, Stamp};

pub use claims::{Claims, Content, Header, claims};
pub use codec::{has_magic, newest};

/// Bytes of one slot.
pub const SCB_BYTES: usize = 8192;
/// Longest name of a member in bytes.
pub const NAME_BYTES_MAX: usize = 32;
/// Longest label of a set in bytes.
pub const LABEL_BYTES_MAX: usize = 64;
/// Longest path of a member in bytes.
pub const PATH_BYTES_MAX: usize = 1024;
/// Mounts that a [`Lineage`] remembers.
pub const LINEAGE_MAX: usize = 64;

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

    /// First generation and mark of each mount, oldest first; at most [`LINEAGE_MAX`].
    #[must_use]
    pub fn mounts(&self) -> &[(Generation, u64)] {
        &self.mounts
    }

    /// The newest mount: its first generation and its mark.
    fn tip(&self) -> Option<(Generation, u64)> {
        self.mounts.last().copied()
    }

    /// Whether the mount that kept this write-intent bitmap had written its generation in this line.
    #[must_use]
    pub fn holds_record(&self, intent: &BitmapRecord) -> bool {
        let (generation, mark) = (intent.tag.generation, intent.owner.as_u64_pair().1);
        let Some(i) = self.mounts.iter().position(|m| m.1 == mark) else {
            return false;
        };
        let next = self.mounts.get(i + 1);
        self.mounts[i].0.0 <= generation && next.is_none_or(|next| generation < next.0.0)
    }

    /// Whether a mount that wrote this generation would still be known.
    #[must_use]
    pub fn remembers(&self, generation: u64) -> bool {
        self.mounts.first().is_some_and(|m| m.0.0 <= generation)
    }

    /// Mark of the newest mount.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.tip().map_or(0, |tip| tip.1)
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
    /// When the set was created, for people; not zero.
    pub created: Option<Moment>,
    /// What the image looked like when it left. None of us has written it since: the block of a member
    /// that comes in has none before its first write.
    pub stamp: Option<Stamp>,
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
        if self.lineage.tip().is_none_or(|tip| tip.0 > self.generation) {
            return Err(ScbError::field("lineage", self.generation));
        }
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
        if let Some(stamp) = &self.stamp {
            if !self.state.has_left() || stamp.samples.len() > SAMPLES_MAX {
                return Err(ScbError::field("stamp", &self.name));
            }
        }
        match self.row(self.member) {
            Some(own) if own.name == self.name && own.state == self.state => Ok(()),
            _ => Err(ScbError::field("table (the carrier's own row)", &self.name)),
        }
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

#[cfg(test)]
mod tests;
