//! Where a unit keeps its bitmaps: opening the journal at the start, and the effects that concern it.
//!
//! Losing the journal is never a loss of data: the next mount merges and copies more. So a journal that
//! does not fit the newest control blocks is made anew, and one that fails while the unit runs is
//! given up before another write is acknowledged.

use crate::sync::Instant;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::growth::Growth;
use super::run::Runner;
use super::setup::{Durability, Setup};
use crate::error::{Error, Result};
use crate::io::journal::{self, Journal, OpenError, Options};
use crate::set::{BitmapRecord, Code, Event, Geometry, HomeChange, Past, Refusal, WriteBitmap};

/// Groups of regions that become durable together, unless [`GRAIN`] forbids it. A load that writes everywhere
/// commits each group once per rotation of the write-intent bitmap, every 160 s.
const GROUPS: u64 = 8192;
/// Words of 64 regions in a group, fewest and most: 32 and 254 MiB with regions of 127 blocks. A commit costs about
/// as much as a sync of the disk, whatever the grain. With fewer words a stream of 200 MB/s on a disk with
/// syncs of 8 ms would spend more than a twentieth of its time on them; with more words a few places
/// that are written make large merges after a crash.
const GRAIN: std::ops::RangeInclusive<u64> = 8..=64;

/// Ends a journal in order, also behind a start that is refused: with `durability = "crash"` it outlives a restart of the
/// machine only then.
pub(super) fn end(journal: &Journal) {
    if let Err(error) = journal.close() {
        tracing::error!(%error, "the journal could not be closed");
    }
}

/// A journal that was found, with its bitmaps.
type Opened = (Journal, Vec<(BitmapRecord, WriteBitmap)>);

/// The journal of a unit while it is being assembled.
pub(super) struct Found {
    opened: std::result::Result<Opened, String>,
}

/// How a journal is kept, for one that is made later.
pub(super) type Kept = journal::Durability;

/// Where the journal of a unit is made that is about to grow.
fn grown_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("grown")
}

/// Makes the journal of a unit that is about to grow, beside the one that counts.
///
/// # Errors
/// There is no room for it, or the system's error.
pub(super) fn create_grown(
    state_dir: &Path,
    set: uuid::Uuid,
    geometry: Geometry,
    durability: Kept,
) -> std::result::Result<Journal, Refusal> {
    let dir = grown_dir(state_dir);
    let made = create(&dir, set, geometry, options(durability, geometry));
    // The blocks are going to rely on it: its directory has to survive a loss of power.
    let made = made.and_then(|journal| {
        std::fs::File::open(state_dir)?.sync_all()?;
        Ok(journal)
    });
    made.map_err(|error| {
        drop_grown(state_dir);
        let text = format!("a journal cannot be made in {}", dir.display());
        match no_room(&error) {
            true => Refusal::new(Code::BitmapNoSpace, text),
            false => Refusal::new(Code::Io, format!("{text}: {error}")),
        }
    })
}

/// Drops a journal that was made for a growth which did not happen.
pub(super) fn drop_grown(state_dir: &Path) {
    let dir = grown_dir(state_dir);
    let dropped = Journal::delete(&dir).and_then(|()| match std::fs::remove_dir(&dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    });
    if let Err(error) = dropped {
        tracing::warn!(%error, "{} stays", dir.display());
    }
}

/// Puts the journal of a grown unit into the place of the one before; may be done twice.
///
/// # Errors
/// The system's error; then it is to be tried again, before another journal is made in either place.
pub(super) fn place_grown(state_dir: &Path) -> io::Result<()> {
    let dir = grown_dir(state_dir);
    Journal::replace(&dir, state_dir)?;
    if let Err(error) = std::fs::remove_dir(&dir) {
        tracing::warn!(%error, "{} stays, and is empty", dir.display());
    }
    Ok(())
}

/// What a mount would elect with the bitmaps of these records: the unit's geometry.
pub(super) type Elect<'a> = &'a dyn Fn(&[BitmapRecord]) -> Result<Geometry>;

/// Finishes or undoes a growth that a crash has cut short: what would be elected with the bitmaps in it tells
/// whether the unit has grown.
///
/// # Errors
/// It cannot be told, since the journal cannot be opened now and may be another time, or by a refusal of the election: the
/// journal that it takes the place of may know less. It cannot be moved.
fn settle_grown(
    dir: &Path,
    set: uuid::Uuid,
    (geometry, kept): (Geometry, Kept),
    elect: Elect<'_>,
) -> Result<()> {
    let grown = grown_dir(dir);
    if !grown.is_dir() {
        return Ok(());
    }
    // A move that was cut short is decided by names, which must not come back.
    let durable = [dir, grown.as_path()].map(|dir| std::fs::File::open(dir)?.sync_all());
    if let Some(error) = durable.into_iter().find_map(io::Result::err) {
        return Err(Error::io(
            format!("{} is not durable", grown.display()),
            error,
        ));
    }
    let counts = match open(&grown, set, (geometry, kept)) {
        Ok((journal, maps)) => {
            let elected = elect(&records(&maps)).inspect_err(|_| end(&journal))?;
            elected == journal.geometry()
        }
        // One that is half in its place was on its way there.
        Err(error) if is_worthless(&error) || matches!(error, OpenError::OtherSet(_)) => {
            Journal::is_half_moved(&grown)
        }
        Err(error) => return Err(unopened(&grown, error)),
    };
    if !counts {
        drop_grown(dir);
        return Ok(());
    }
    place_grown(dir).map_err(|e| {
        Error::io(format!("{} cannot be moved", grown.display()), e)
            .with_hint("repair the state directory: the journal there is that of the unit")
    })
}

/// Whether no later try to open a journal could find bitmaps in it.
fn is_worthless(error: &OpenError) -> bool {
    use OpenError::{Damaged, Missing, NotDurable, OtherGeometry};
    matches!(error, Missing | Damaged(_) | NotDurable | OtherGeometry(_))
}

/// Why a mount is refused whose journal cannot be opened.
fn unopened(dir: &Path, error: OpenError) -> Error {
    let place = format!("the journal in {}", dir.display());
    match error {
        OpenError::InUse => Error::new(Code::InUse, format!("{place} is used by another unit")),
        OpenError::OtherSet(other) => {
            let text = format!("{place} belongs to the set {other}");
            Error::new(Code::OtherSet, text)
                .with_hint("give this unit a state_dir of its own, or remove the files")
        }
        OpenError::Unsupported(what) => {
            let text = format!("{place} is of a newer program: {what}");
            Error::new(Code::NotSupported, text)
        }
        OpenError::Io(cause) => Error::io(format!("{place} cannot be read"), cause)
            .with_hint("repair the state directory; durability = \"memory\" does without"),
        worthless => Error::new(Code::Io, format!("{place}: {worthless}")),
    }
}

/// Opens a journal, whatever size of the unit it was made for: who is elected may depend on what is in it.
fn open(
    dir: &Path,
    set: uuid::Uuid,
    (geometry, kept): (Geometry, Kept),
) -> std::result::Result<Opened, OpenError> {
    match Journal::open(dir, set, geometry, options(kept, geometry)) {
        Err(OpenError::OtherGeometry(other)) => {
            Journal::open(dir, set, other, options(kept, other))
        }
        opened => opened,
    }
}

fn records(maps: &[(BitmapRecord, WriteBitmap)]) -> Vec<BitmapRecord> {
    maps.iter().map(|(record, _)| *record).collect()
}

/// Opens the journal of a set, if there is one that can be read. What is damaged, or was made for another
/// size, is made anew later.
///
/// # Errors
/// It is used by another daemon, belongs to another set, is of a newer program, or the system's error.
pub(super) fn find(
    setup: &Setup,
    set: uuid::Uuid,
    geometry: Geometry,
    elect: Elect<'_>,
) -> Result<Found> {
    let Some(kept) = kept(setup.durability) else {
        let why = "durability = \"memory\" looks for no journal".to_owned();
        return Ok(Found { opened: Err(why) });
    };
    let dir = &setup.state_dir;
    settle_grown(dir, set, (geometry, kept), elect)?;
    match open(dir, set, (geometry, kept)) {
        Ok(opened) => Ok(Found { opened: Ok(opened) }),
        Err(error) if is_worthless(&error) => Ok(Found {
            opened: Err(format!("{error} ({})", dir.display())),
        }),
        Err(error) => Err(unopened(dir, error)),
    }
}

impl Found {
    /// The records of the bitmaps.
    pub(super) fn records(&self) -> Vec<BitmapRecord> {
        self.opened
            .as_ref()
            .map_or(Vec::new(), |(_, maps)| records(maps))
    }

    /// Ends the journal that was found.
    pub(super) fn end(&self) {
        self.opened.iter().for_each(|(journal, _)| end(journal));
    }

    /// The journal to go on with, and what is known of the past: the one that was found when its bitmaps
    /// are `believed`, else a new one. A state directory without room is no error: the unit is
    /// served, and refuses what needs a bitmap.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub(super) fn settle(
        self,
        setup: &Setup,
        set: uuid::Uuid,
        geometry: Geometry,
        believed: bool,
    ) -> Result<Settled> {
        let dir = &setup.state_dir;
        let lost = match self.opened {
            Ok((journal, maps)) if believed && journal.geometry() == geometry => {
                return Ok(Settled {
                    journal: Some(journal),
                    past: Past::Known(maps),
                    home: Ok(()),
                });
            }
            Ok(outdated) => {
                // Its files are closed before they are made anew.
                drop(outdated);
                let dir = dir.display();
                format!(
                    "the journal in {dir} knows nothing of the last mount, as after one with durability = \"memory\" or \
                     another state directory"
                )
            }
            Err(why) => why,
        };
        let past = Past::Unknown(lost);
        let Some(kept) = kept(setup.durability) else {
            return Ok(Settled {
                journal: None,
                past,
                home: Ok(()),
            });
        };
        let (journal, home) = match create(dir, set, geometry, options(kept, geometry)) {
            Ok(journal) => (Some(journal), Ok(())),
            Err(error) if no_room(&error) => {
                let text = format!("there is no room for bitmaps in {}", dir.display());
                tracing::warn!(%error, "{text}");
                let hint = "free space there, then stop the unit and mount it again";
                (
                    None,
                    Err(Refusal::new(Code::BitmapNoSpace, text).with_hint(hint)),
                )
            }
            Err(error) => {
                let doing = format!("a journal cannot be made in {}", dir.display());
                return Err(Error::io(doing, error)
                    .with_hint("durability = \"memory\" does without a state directory"));
            }
        };
        Ok(Settled {
            journal,
            past,
            home,
        })
    }
}

/// Where bitmaps are kept from now on.
pub(super) struct Settled {
    pub(super) journal: Option<Journal>,
    pub(super) past: Past,
    /// Why they cannot be kept although they should.
    pub(super) home: std::result::Result<(), Refusal>,
}

/// How the journal is kept; `None` when there is none.
pub(super) fn kept(durability: Durability) -> Option<Kept> {
    match durability {
        Durability::Power => Some(journal::Durability::Power),
        Durability::Crash => Some(journal::Durability::Crash),
        Durability::Memory => None,
    }
}

fn options(durability: Kept, geometry: Geometry) -> Options {
    Options {
        durability,
        grain_words: grain_words(geometry),
    }
}

/// Words of 64 regions that one mark makes durable at once.
fn grain_words(geometry: Geometry) -> u32 {
    let words = geometry.regions().div_ceil(u64::from(u64::BITS));
    let grain = words.div_ceil(GROUPS).clamp(*GRAIN.start(), *GRAIN.end());
    u32::try_from(grain).unwrap_or(1)
}

fn create(
    dir: &Path,
    set: uuid::Uuid,
    geometry: Geometry,
    options: Options,
) -> io::Result<Journal> {
    std::fs::create_dir_all(dir)?;
    Journal::delete(dir)?;
    Journal::create(dir, set, geometry, options)
}

fn no_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

impl Runner {
    /// Changes what is kept of bitmaps. Behind one change that has failed no other is made: bits that one was to keep may
    /// be forgotten by the next.
    pub(super) fn change_home(&mut self, change: &HomeChange) {
        if self.home_error.is_some() {
            return;
        }
        let Some(journal) = self.pipeline.home() else {
            return;
        };
        let Some(change) = self.written.admit(change, self.set.writers()) else {
            return;
        };
        let outcome = match &change {
            HomeChange::Renew(_) => {
                self.renew_home();
                return;
            }
            HomeChange::Add(record, map) => journal.add(*record, map),
            HomeChange::Describe(record) => journal.describe(*record),
            HomeChange::Absorb(id, bits) => journal.absorb(*id, bits),
            HomeChange::Retain(left) => {
                journal.retain(left.id(), left);
                self.snapshots.take(|| journal.checkpoint())
            }
            HomeChange::Forget(id) => journal.remove(*id),
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "bitmaps can be kept no longer");
            self.home_error.get_or_insert(error.to_string());
        }
    }

    /// Gives the journal up, once: from the next generation on nobody believes it.
    pub(super) fn lose_home(&mut self, why: String) {
        if self.pipeline.home().is_none() {
            return;
        }
        let hint = "repair the state directory and mount the unit again";
        let refusal = Refusal::new(Code::Io, format!("bitmaps cannot be kept: {why}"));
        self.feed(Event::HomeLost(refusal.with_hint(hint)));
        self.pipeline.set_home(None);
        // It is believed nowhere, wherever it lies.
        if matches!(self.growth, Growth::InUse { .. }) {
            self.growth = Growth::None;
        }
    }

    /// Ends the journal in order.
    pub(super) fn close_home(&self) {
        let Some(journal) = self.pipeline.home() else {
            return;
        };
        end(&journal);
        self.pipeline.set_home(None);
    }
}

/// When snapshots of the bitmaps are taken for what copies have cleared. What is missing in the last one is
/// copied once more after a crash, and a large one takes long: they get a twentieth of the time.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    next: Option<Instant>,
}

impl Snapshots {
    const SHARE: u32 = 20;

    fn take(&mut self, snapshot: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let begun = Instant::now();
        if self.next.is_some_and(|next| begun < next) {
            return Ok(());
        }
        let outcome = snapshot();
        self.next = Some(begun + begun.elapsed() * Self::SHARE);
        outcome
    }
}

/// The journal as the data path holds it.
pub(super) type Home = Option<Arc<Journal>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::Bytes;

    #[test]
    fn snapshots_that_take_long_are_rare() {
        let mut snapshots = Snapshots::default();
        let mut taken = 0;
        for _ in 0..3 {
            let take = snapshots.take(|| {
                taken += 1;
                Ok(())
            });
            take.expect("taken");
            // As one that has taken an hour.
            snapshots.next = snapshots
                .next
                .map(|next| next + std::time::Duration::from_secs(3600));
        }
        assert_eq!(taken, 1);
        snapshots.next = Some(Instant::now());
        snapshots
            .take(|| {
                taken += 1;
                Ok(())
            })
            .expect("taken");
        assert_eq!(taken, 2);
    }

    #[test]
    fn groups_are_small_in_small_units_and_few_in_large_ones() {
        let grain = |gib: u64| {
            let geometry = Geometry::new(Bytes(gib << 30), 127).expect("valid");
            grain_words(geometry)
        };
        assert_eq!((grain(1), grain(64), grain(256)), (8, 8, 9));
        assert_eq!((grain(1024), grain(64 * 1024)), (33, 64));
    }
}
