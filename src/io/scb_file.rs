//! The file of a storage control block: two slots, written in turn, durable when a write returns.
//!
//! A write goes to the slot that does not hold the newest block, so that a stop at any instant
//! leaves the block before it. A file that does not look like ours is never overwritten, unless
//! [`ScbFile::overwrite`] is called by name.
//!
//! Behind the slots there may be a stamp (`rest`), as a part of the block that it belongs to.
//!
//! This module must not decide anything from a block: that is the election's business.

mod rest;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::sys;
use crate::set::scb::{SCB_BYTES, Scb, ScbError, Slot, has_magic, newest};

pub use crate::set::assess::ScbFound;

/// Only the owner of the set may see or change its blocks.
const MODE: u32 = 0o600;

/// How often a look begins again when a slot changes under it.
const SETTLE_TRIES: u32 = 50;
/// How long a slot that is not whole must stay the same to be taken for damaged.
const SETTLE_PAUSE: Duration = Duration::from_millis(20);

/// What is at `path`.
///
/// # Errors
/// The system's error, except that the file is not there.
pub fn read(path: &Path) -> io::Result<ScbFound> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(ScbFound::None),
        Err(e) => return Err(e),
    };
    let slots = Slots::read(&file)?;
    Ok(match slots.newest() {
        Ok((slot, scb)) => {
            let other = slots.block(slot.other());
            if let Some(error) = other.err().filter(|_| slots.has_content(slot.other())) {
                let path = path.display();
                tracing::warn!(%path, %error, "one slot is damaged: the other one counts");
            }
            ScbFound::Read(scb)
        }
        Err(e) => ScbFound::Damaged(format!("{}: {e}", path.display())),
    })
}

/// Makes durable what is at `path`: who wrote it may have been killed before its sync, and what is decided by it must not
/// be durable before it.
///
/// # Errors
/// The system's error.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_data()
}

/// The open file of one member's block.
#[derive(Debug)]
pub struct ScbFile {
    file: File,
    path: PathBuf,
    next: Slot,
    sequence: u64,
}

impl ScbFile {
    /// Opens the file of a block, whose newest block is durable then, or makes an empty one that a write fills. A new
    /// file and its name are durable after the first write.
    ///
    /// # Errors
    /// `InvalidData` when the file is there and holds no whole block; the system's error.
    pub fn open_or_create(path: &Path) -> io::Result<Self> {
        // An empty file is a creation that was interrupted: there is nothing to lose.
        let file = Self::options().create(true).truncate(false).open(path)?;
        if file.metadata()?.len() == 0 {
            sync_directory(path)?;
            return Ok(Self::blank(file, path));
        }
        let (slot, scb) = Slots::read(&file)?.newest().map_err(|e| {
            let text = format!("{}: {e}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        // As in `sync`. A write takes the other slot, which may hold the last block that is durable.
        file.sync_data()?;
        let next = slot.other();
        Ok(Self {
            file,
            path: path.to_owned(),
            next,
            sequence: scb.sequence,
        })
    }

    /// Empties the file, whatever it held, or makes it.
    ///
    /// # Errors
    /// The system's error.
    pub fn overwrite(path: &Path) -> io::Result<Self> {
        let file = Self::options().create(true).truncate(true).open(path)?;
        sync_directory(path)?;
        Ok(Self::blank(file, path))
    }

    /// Writes the block into the older slot and makes it durable. The sequence number of `scb` is
    /// not used: the file counts its own writes. After an error the newest block is what it was. Only the stamp of a
    /// member that has not left may be lacking behind it.
    ///
    /// # Errors
    /// `InvalidInput` when the block cannot be written; the system's error.
    pub fn write(&mut self, scb: &Scb) -> io::Result<()> {
        let sequence = self.sequence + 1;
        let (block, rest) = rest::apart(Scb {
            sequence,
            ..scb.clone()
        });
        let bytes = self.encode(&block)?;
        if let Some(rest) = rest {
            let kept = self.encode(&rest);
            let kept = kept.and_then(|bytes| self.file.write_all_at(&bytes, rest::OFFSET));
            if let Err(error) = kept {
                let path = self.path.display();
                tracing::warn!(%path, %error, "the stamp of an image is not kept");
            }
        }
        self.file.write_all_at(&bytes, self.next.offset())?;
        self.file.sync_data()?;
        self.next = self.next.other();
        self.sequence = sequence;
        Ok(())
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn encode(&self, scb: &Scb) -> io::Result<[u8; SCB_BYTES]> {
        scb.encode().map_err(|e| {
            let text = format!("{}: the block cannot be written: {e}", self.path.display());
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })
    }

    fn blank(file: File, path: &Path) -> Self {
        Self {
            file,
            path: path.to_owned(),
            next: Slot::A,
            sequence: 0,
        }
    }

    fn options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(MODE);
        options
    }
}

/// Makes the name of a file durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// The bytes of both slots, and of what is behind them, as far as the file has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slots {
    a: Vec<u8>,
    b: Vec<u8>,
    rest: Vec<u8>,
}

impl Slots {
    /// Reads both slots.
    ///
    /// # Errors
    /// The system's error.
    pub fn read(file: &File) -> io::Result<Self> {
        Ok(Self {
            a: read_part(file, Slot::A.offset())?,
            b: read_part(file, Slot::B.offset())?,
            rest: read_part(file, rest::OFFSET)?,
        })
    }

    /// Reads both slots while a server may be writing one: a slot that is not whole counts only
    /// when it has stayed so for a moment.
    ///
    /// # Errors
    /// The system's error.
    pub fn read_settled(file: &File) -> io::Result<Self> {
        let pause = || sys::poll(&[], Some(SETTLE_PAUSE)).map(drop);
        settle(|| Self::read(file), pause)
    }

    /// The bytes of one slot; fewer than 8192 where the file ends in it.
    #[must_use]
    pub fn bytes(&self, slot: Slot) -> &[u8] {
        match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        }
    }

    /// Whether anything was ever written into a slot.
    fn has_content(&self, slot: Slot) -> bool {
        self.bytes(slot).iter().any(|byte| *byte != 0)
    }

    /// The block in one slot.
    ///
    /// # Errors
    /// Why it is none.
    pub fn block(&self, slot: Slot) -> Result<Scb, ScbError> {
        Scb::decode(self.bytes(slot))
    }

    /// Whether one of the slots begins like one, whole or damaged.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        has_magic(&self.a) || has_magic(&self.b)
    }

    /// The block of the file, with the stamp that counts beside it, and the slot that holds it.
    ///
    /// # Errors
    /// Why there is none; [`ScbError::NoMagic`] when the file is not ours.
    pub fn newest(&self) -> Result<(Slot, Scb), ScbError> {
        match newest(&self.a, &self.b) {
            // A file of ours that was cut says so; anything else without the magic is not ours.
            Err(_) if !self.is_ours() => Err(ScbError::NoMagic),
            Ok((slot, mut scb)) => {
                if let Some(stamp) = rest::stamp(&scb, &self.rest) {
                    scb.stamp = Some(stamp);
                }
                Ok((slot, scb))
            }
            other => other,
        }
    }
}

/// Reads until both slots are whole, or one that is not has stayed the same over a pause.
fn settle(
    mut read: impl FnMut() -> io::Result<Slots>,
    mut pause: impl FnMut() -> io::Result<()>,
) -> io::Result<Slots> {
    let mut slots = read()?;
    for _ in 0..SETTLE_TRIES {
        if [Slot::A, Slot::B].iter().all(|s| slots.block(*s).is_ok()) {
            break;
        }
        pause()?;
        let now = read()?;
        if now == slots {
            break;
        }
        slots = now;
    }
    Ok(slots)
}

fn read_part(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; SCB_BYTES];
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], offset + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(have);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use uuid::Uuid;

    use super::*;
    use crate::set::geometry::{Bytes, Geometry};
    use crate::set::scb::{Generation, Lineage, ScbRow, ScbState};

    pub(super) fn block(generation: u64) -> Scb {
        let member = Uuid::from_bytes([1; 16]);
        let row = ScbRow {
            member,
            name: "m1".to_owned(),
            path: PathBuf::from("/m1"),
            state: ScbState::Source,
        };
        Scb {
            set: Uuid::from_bytes([9; 16]),
            member,
            name: row.name.clone(),
            state: row.state,
            label: String::new(),
            generation: Generation::from_number(generation).expect("in range"),
            lineage: Lineage::new(1),
            geometry: Geometry::new(Bytes(512), 127).expect("valid"),
            clean: true,
            sequence: 0,
            table: vec![row],
            created: None,
            stamp: None,
        }
    }

    fn generation_at(path: &Path) -> Option<u64> {
        match read(path).expect("readable") {
            ScbFound::Read(scb) => Some(scb.generation.number()),
            ScbFound::None | ScbFound::Damaged(_) => None,
        }
    }

    #[test]
    fn the_last_write_is_read_also_after_reopening() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("m1.img.scb");
        assert_eq!(read(&path).expect("readable"), ScbFound::None);
        for generation in 1..9 {
            let mut file = ScbFile::open_or_create(&path).expect("opens");
            file.write(&block(generation)).expect("writes");
            assert_eq!(generation_at(&path), Some(generation));
            file.write(&block(generation + 1)).expect("writes");
            assert_eq!(generation_at(&path), Some(generation + 1));
        }
        let meta = path.metadata().expect("there");
        assert_eq!(
            (meta.len(), meta.permissions().mode() & 0o7777),
            (16384, 0o600)
        );
    }

    /// Whichever slot is torn, and wherever, the block of the other one is read, and the next
    /// write goes to the torn slot.
    #[test]
    fn a_torn_slot_loses_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("scb");
        let mut file = ScbFile::open_or_create(&path).expect("opens");
        file.write(&block(1)).expect("writes");
        file.write(&block(2)).expect("writes");
        let whole = std::fs::read(&path).expect("readable");
        for (slot, other) in [(0, 2), (SCB_BYTES, 1)] {
            for at in [0, 8, 40, 300, 8191] {
                let mut torn = whole.clone();
                torn[slot + at] ^= 0xff;
                std::fs::write(&path, &torn).expect("writes");
                assert_eq!(
                    generation_at(&path),
                    Some(other),
                    "byte {at} of the slot at {slot}"
                );
                let mut file = ScbFile::open_or_create(&path).expect("opens");
                file.write(&block(7)).expect("writes");
                assert_eq!(generation_at(&path), Some(7));
                let now = std::fs::read(&path).expect("readable");
                let kept = SCB_BYTES - slot;
                assert_eq!(now[kept..kept + SCB_BYTES], whole[kept..kept + SCB_BYTES]);
            }
        }
    }

    /// Who looks while a block is being written sees two whole slots, not the write.
    #[test]
    fn a_look_goes_on_as_long_as_a_torn_slot_changes() {
        let whole = block(1).encode().expect("encodes");
        let slots = |bytes: usize| Slots {
            a: whole.to_vec(),
            b: whole[..bytes].to_vec(),
            rest: Vec::new(),
        };
        let look = |found: &[usize]| {
            let mut left = found.iter();
            let settled = settle(
                || Ok(slots(*left.next().expect("not asked again"))),
                || Ok(()),
            );
            (settled.expect("no error").b.len(), left.len())
        };
        assert_eq!(look(&[SCB_BYTES]), (SCB_BYTES, 0));
        assert_eq!(look(&[0, 100, 5000, SCB_BYTES, 0]), (SCB_BYTES, 1));
        assert_eq!(look(&[100, 5000, 5000, SCB_BYTES]), (5000, 1));
        assert_eq!(look(&[0, 0, SCB_BYTES]), (0, 1));
    }

    #[test]
    fn foreign_and_damaged_files_are_not_touched_unless_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("scb");
        for content in [
            b"somebody's letters".to_vec(),
            vec![7; 20_000],
            b"SHDWSCB\n".to_vec(),
        ] {
            std::fs::write(&path, &content).expect("writes");
            let found = read(&path).expect("readable");
            assert!(
                matches!(&found, ScbFound::Damaged(why) if why.contains("scb: ")),
                "{found:?}"
            );
            let error = ScbFile::open_or_create(&path)
                .map(|_| ())
                .expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert_eq!(std::fs::read(&path).expect("readable"), content);
        }
        ScbFile::overwrite(&path)
            .expect("told")
            .write(&block(1))
            .expect("writes");
        assert_eq!(generation_at(&path), Some(1));
    }

    #[test]
    fn a_block_that_does_not_fit_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("scb");
        let mut file = ScbFile::open_or_create(&path).expect("opens");
        file.write(&block(1)).expect("writes");
        let bad = Scb {
            label: "x".repeat(65),
            ..block(2)
        };
        assert_eq!(
            file.write(&bad).expect_err("refused").kind(),
            io::ErrorKind::InvalidInput
        );
        assert_eq!(generation_at(&path), Some(1));
        file.write(&block(2)).expect("writes");
        assert_eq!(generation_at(&path), Some(2));
    }
}
