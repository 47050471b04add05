//! What the server keeps for each member beside the set: its files and their identity.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::sync::channel::{Receiver, TryRecvError, bounded};
use crate::sync::thread;
use uuid::Uuid;

use super::departure::{PATIENCE, in_time, within};
use super::immutable::Flag;
use super::results::given_up;
use super::run::Runner;
use super::setup::Protect;
use crate::error::{Error, Result};
use crate::io::lease::Lease;
use crate::io::scb_file::{self, ScbFile};
use crate::io::{self, Image, IoMode, Storage};
use crate::set::member::MEMBERS_MAX;
use crate::set::scb::{Lineage, ScbRow};
use crate::set::{
    Bytes, Code, Generation, MemberId, MemberSet, Moment, Scb, ScbFound, ScbState, Stamp, Written,
};

/// Who the set is, for its storage control blocks.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// Identity of the set.
    pub(super) set: Uuid,
    /// Label of the set.
    pub(super) label: String,
    /// The mounts up to this one.
    pub(super) lineage: Lineage,
    /// When the set was created, as far as its blocks know.
    pub(super) created: Option<Moment>,
    /// Where the blocks of devices are kept.
    pub(super) state_dir: PathBuf,
}

/// One member's files.
#[derive(Debug)]
pub(super) struct Seat {
    /// Where its storage control block is kept.
    pub(super) scb: PathBuf,
    /// The block's file, once it was written.
    pub(super) file: Option<ScbFile>,
    /// The size of the unit that it held at the start.
    pub(super) unit: Option<Bytes>,
    /// The state that was written last.
    pub(super) written: Option<ScbState>,
    /// How its image is read and written.
    pub(super) io: IoMode,
    /// Who its image is.
    pub(super) identity: Option<io::Identity>,
    /// Whether its member has given up its membership, and the place waits for another one.
    pub(super) vacant: bool,
    /// Whether the set has released it, so that its image may be somebody's own.
    pub(super) released: bool,
    /// What its image looked like when it left, if that was since the start.
    pub(super) stamp: Option<Stamp>,
    /// What the contents of its image were when it left, for people; also where that was before the start.
    pub(super) fingerprint: Option<String>,
    /// What is done for its image while it is away.
    pub(super) protect: Protect,
    /// The immutable flag of its image while it is away.
    pub(super) flag: Flag,
    /// The lease on its image while it is away.
    pub(super) lease: Option<Lease>,
    /// How often it has come and gone: a stamp of an earlier departure is late.
    pub(super) turns: u64,
    /// Calls of its image that were under way when it left, and may be still.
    pub(super) calls: Option<Weak<dyn Storage>>,
    /// A write of its block that has not returned in time.
    writing: Option<Receiver<Wrote>>,
}

impl Seat {
    /// The seat of a member whose block is kept at `scb`.
    pub(super) fn new(scb: PathBuf, io: IoMode) -> Self {
        Self {
            scb,
            file: None,
            unit: None,
            written: None,
            io,
            identity: None,
            vacant: false,
            released: false,
            stamp: None,
            fingerprint: None,
            protect: Protect::None,
            flag: Flag::default(),
            lease: None,
            turns: 0,
            calls: None,
            writing: None,
        }
    }

    /// Gives the place to another member. Stamps of the one before are late for it too.
    pub(super) fn replace(&mut self, next: Self) {
        let turns = self.turns;
        *self = Self { turns, ..next };
    }

    /// Opens the block's file for writing, unless it is.
    ///
    /// # Errors
    /// Why it cannot be written, in time.
    pub(super) fn open(&mut self) -> Result<()> {
        if self.file.is_none() {
            let path = self.scb.clone();
            let opened = within(PATIENCE_MAX, "block", move || open_block(&path));
            let file = opened.and_then(|file| file);
            self.file = Some(file.map_err(|cause| unwritable(&self.scb, cause))?);
        }
        Ok(())
    }

    /// Writes the block, on a thread of its own: its file system may not answer, and the control thread waits for
    /// so long at most. A write that has not returned may come later: until then there is no other.
    fn write(&mut self, scb: &Scb, patience: Duration) -> Result<()> {
        let failed = |cause| unwritable(&self.scb, cause);
        let waits = |out: &Receiver<_>| matches!(out.try_recv(), Err(TryRecvError::Empty));
        if self.writing.as_ref().is_some_and(waits) {
            return Err(failed(given_up()));
        }
        self.writing = None;
        let (done, written) = bounded(1);
        let (file, path, block) = (self.file.take(), self.scb.clone(), scb.clone());
        let write = move || drop(done.send(write_block(file, &path, &block)));
        thread::Builder::new()
            .name("block".into())
            .spawn(write)
            .map_err(failed)?;
        let Ok((file, outcome)) = written.recv_timeout(patience) else {
            self.writing = Some(written);
            return Err(failed(given_up()));
        };
        self.file = file;
        outcome.map_err(failed)?;
        self.written = Some(scb.state);
        Ok(())
    }
}

/// Refuses a block of somebody else, who may have come to its place while the member was away.
fn check_owner(path: &Path, set: Uuid, member: Uuid) -> Result<()> {
    let found = scb_file::read(path).map_err(|cause| unwritable(path, cause))?;
    let ScbFound::Read(scb) = found else {
        return Ok(());
    };
    if (scb.set, scb.member) == (set, member) {
        return Ok(());
    }
    let (path, member, set) = (path.display(), scb.name, scb.set);
    let text = format!("{path} is the storage control block of {member} of the set {set}");
    Err(Error::new(Code::OtherSet, text))
}

/// The storage of an image that becomes a member.
pub(super) fn storage(image: Image) -> Arc<dyn Storage> {
    #[cfg(shuttle)]
    return super::inspect::storage(image);
    #[cfg(not(shuttle))]
    image.into_storage()
}

/// A block's file, if it is open, and what came of a write.
type Wrote = (Option<ScbFile>, std::io::Result<()>);

fn open_block(path: &Path) -> std::io::Result<ScbFile> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    ScbFile::open_or_create(path)
}

fn write_block(file: Option<ScbFile>, path: &Path, scb: &Scb) -> Wrote {
    match file.map_or_else(|| open_block(path), Ok) {
        Err(error) => (None, Err(error)),
        Ok(mut file) => {
            let outcome = file.write(scb);
            (Some(file), outcome)
        }
    }
}

fn unwritable(path: &Path, cause: std::io::Error) -> Error {
    let text = format!(
        "the storage control block {} cannot be written",
        path.display()
    );
    Error::io(text, cause)
}

/// The longest time that is waited for a block; the control thread answers no command meanwhile.
pub(super) const PATIENCE_MAX: Duration = Duration::from_secs(20);

impl Runner {
    /// Opens all these blocks for writing: when one cannot be, none is written.
    ///
    /// # Errors
    /// The first that cannot.
    pub(super) fn open_blocks(&mut self, to: MemberSet) -> Result<()> {
        to.iter().try_for_each(|id| self.seats[id.index()].open())
    }

    /// Writes a generation to the members' blocks, one durable before the next ([`Written::order`]). Gives the members that failed and the first error.
    pub(super) fn write_blocks(
        &mut self,
        generation: Generation,
        clean: bool,
        to: MemberSet,
    ) -> Option<(MemberSet, Error)> {
        let table = self.set.table();
        let order = Written::order(to, |id| {
            let state = self.set.members()[id.index()].state.durable();
            (state, self.seats[id.index()].written)
        });
        // All that take part, and clean: the set is stopped, and its images are written no more.
        let mut stamps = match clean && to == self.set.writers() {
            true => self.stamps_at_rest(to),
            false => [const { None }; MEMBERS_MAX],
        };
        let mut source_written = !order.iter().any(|(_, source)| *source);
        let (mut failed, mut first) = (MemberSet::EMPTY, None);
        for (id, is_source) in order {
            if !is_source && !source_written {
                failed.insert(id);
                continue;
            }
            let Some(mut scb) = self.block(id, generation, clean, &table) else {
                continue;
            };
            scb.stamp = stamps[id.index()].take();
            let patience = self.pipeline.timeout(id).clamp(PATIENCE, PATIENCE_MAX);
            if let Err(error) = self.seats[id.index()].write(&scb, patience) {
                failed.insert(id);
                first.get_or_insert(error);
            }
            source_written |= !failed.contains(id);
        }
        first.map(|error| (failed, error))
    }

    /// Writes the block of a member that has left once more, with the stamp of its image.
    pub(super) fn write_stamp(&mut self, id: MemberId, stamp: Stamp) -> Result<()> {
        let (generation, table) = (self.set.generation(), self.set.table());
        let Some(block) = self.block(id, generation, true, &table) else {
            return Ok(());
        };
        let scb = Scb {
            stamp: Some(stamp),
            ..block
        };
        let seat = &mut self.seats[id.index()];
        if seat.file.is_none() {
            let (path, set, member) = (seat.scb.clone(), scb.set, scb.member);
            in_time("block", move || check_owner(&path, set, member))
                .map_err(|cause| unwritable(&seat.scb, cause))??;
        }
        seat.write(&scb, PATIENCE)
    }

    /// Removes the block of a member that is none any more, if it is its own. For a thread of its own.
    pub(super) fn remove_block(&self, id: MemberId) -> impl FnOnce() -> Result<()> + Send + use<> {
        let (set, member) = (self.identity.set, self.set.members()[id.index()].uuid);
        let path = self.seats[id.index()].scb.clone();
        move || {
            check_owner(&path, set, member)?;
            std::fs::remove_file(&path).map_err(|cause| unwritable(&path, cause))
        }
    }

    /// The block of a member, unless it is none any more.
    fn block(
        &self,
        id: MemberId,
        generation: Generation,
        clean: bool,
        table: &[ScbRow],
    ) -> Option<Scb> {
        let member = self.set.members()[id.index()].uuid;
        let row = table.iter().find(|row| row.member == member)?;
        Some(Scb {
            set: self.identity.set,
            member: row.member,
            name: row.name.clone(),
            state: row.state,
            label: self.identity.label.clone(),
            generation,
            lineage: self.identity.lineage.clone(),
            geometry: self.set.geometry_of(id, self.seats[id.index()].unit),
            clean,
            sequence: 0,
            table: table.to_vec(),
            created: self.identity.created,
            stamp: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The turns of a place began anew with the next member: a stamp of the last one's image was taken for its own.
    #[test]
    fn a_stamp_of_the_member_before_is_late_for_the_next_one() {
        let seat = || Seat::new(PathBuf::from("m.scb"), IoMode::Buffered);
        let (mut place, left) = (seat(), 2);
        place.turns = left;
        place.replace(seat());
        for _ in ["it comes", "it leaves"] {
            place.turns += 1;
            assert_ne!(place.turns, left);
        }
    }
}
