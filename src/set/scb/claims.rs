//! What the bytes of a slot claim: for people who look at a file that may be damaged.
//!
//! Nothing in it was checked. This module must not serve a decision: a block that counts comes from
//! [`Scb::decode`] alone.

use uuid::Uuid;

use super::{LABEL_BYTES_MAX, NAME_BYTES_MAX, SCB_BYTES, Scb, ScbState, has_magic};

/// Where the label ends: shorter bytes have no header.
const HEADER_BYTES: usize = 200;
/// Where the checksum is, and what it covers.
const CRC_AT: usize = SCB_BYTES - 4;

/// What a slot claims.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claims {
    /// Format version.
    pub version: u16,
    /// Features that a reader must know.
    pub incompatible: u64,
    /// Features that a reader may ignore.
    pub compatible: u64,
    /// The rest.
    pub content: Content,
}

/// What follows version and features.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// All fields keep their rules; whether the checksum matches is not said.
    Block(Box<Scb>),
    /// A field breaks its rule, or is cut off: what stands at the fixed places.
    Header(Header),
    /// The bytes mean something else in this version, or are too few.
    Unknown,
}

/// What stands at the fixed places of a slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Number of the write.
    pub sequence: u64,
    /// Generation, in range or not.
    pub generation: u64,
    /// Identity of the set.
    pub set: Uuid,
    /// Identity of the member that carries the block.
    pub member: Uuid,
    /// Unit size in bytes.
    pub size: u64,
    /// Blocks per region.
    pub region_blocks: u32,
    /// State of the member, when its code is one.
    pub state: Option<ScbState>,
    /// Whether the set was stopped in order, when the flag is one.
    pub clean: Option<bool>,
    /// Name of the member; bytes that are no text are replaced.
    pub name: String,
    /// Label of the set, in the same way.
    pub label: String,
}

/// What a slot claims; nothing when it does not begin like one, or ends before its features.
#[must_use]
pub fn claims(slot: &[u8]) -> Option<Claims> {
    if !has_magic(slot) {
        return None;
    }
    Some(Claims {
        version: u16::from_le_bytes(at(slot, 8)?),
        incompatible: u64::from_le_bytes(at(slot, 16)?),
        compatible: u64::from_le_bytes(at(slot, 24)?),
        content: content(slot),
    })
}

fn content(slot: &[u8]) -> Content {
    match Scb::decode(&sealed(slot)) {
        Ok(scb) => Content::Block(Box::new(scb)),
        Err(e) if e.is_from_newer_program() => Content::Unknown,
        Err(_) => header(slot).map_or(Content::Unknown, Content::Header),
    }
}

/// The slot with the checksum that its content has; what is cut off becomes zeros.
fn sealed(slot: &[u8]) -> Vec<u8> {
    let mut bytes = slot.to_vec();
    bytes.resize(SCB_BYTES, 0);
    let crc = crc32c::crc32c(&bytes[..CRC_AT]);
    bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn header(slot: &[u8]) -> Option<Header> {
    let slot = slot.get(..HEADER_BYTES)?;
    let text = |from: usize, len: u8, most: usize| {
        let len = usize::from(len).min(most);
        String::from_utf8_lossy(&slot[from..from + len]).into_owned()
    };
    Some(Header {
        sequence: u64::from_le_bytes(at(slot, 32)?),
        generation: u64::from_le_bytes(at(slot, 40)?),
        set: Uuid::from_bytes(at(slot, 48)?),
        member: Uuid::from_bytes(at(slot, 64)?),
        size: u64::from_le_bytes(at(slot, 80)?),
        region_blocks: u32::from_le_bytes(at(slot, 88)?),
        state: ScbState::ALL.get(usize::from(slot[92])).copied(),
        clean: [false, true].get(usize::from(slot[93])).copied(),
        name: text(104, slot[96], NAME_BYTES_MAX),
        label: text(136, slot[97], LABEL_BYTES_MAX),
    })
}

/// The `N` bytes at a fixed place.
fn at<const N: usize>(slot: &[u8], from: usize) -> Option<[u8; N]> {
    slot.get(from..)?.first_chunk().copied()
}
