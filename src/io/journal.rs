//! The journal: the durable home of all bitmaps of one unit.
//!
//! Write-intent bitmaps, write bitmaps of departed members and the stale sets of running copies
//! outlive a crash and a power loss here, by I1: what [`Journal::mark`], [`Journal::add`] and the
//! others have returned is on disk, at every instant and after every crash. What is on disk may be
//! more: a mark is made durable for whole groups of 64 times `grain_words` regions, so that the
//! neighbours of a marked region need no write of their own. A snapshot holds words exactly.
//!
//! Two files hold a segment each: a snapshot of all maps and a log of batches behind it. When the
//! log is full the maps become a snapshot in the other file, which counts once it is durable as a
//! whole; until then the old one does. All space is taken when the journal is created. A batch has
//! pages of its own, so that a page that holds an acknowledged one is never written again.
//! `docs/format.md` describes every byte.
//!
//! New marks are committed in groups: while one thread writes, others gather, and one of them
//! writes for all, unless [`MessageSettings`] say otherwise.
//!
//! # After a failure
//! A write or sync of the journal that failed is never tried again: what is on disk is unknown, so
//! the journal latches and every later change fails. [`Journal::covers`] stays right for what was
//! durable before. The caller must not write to a member where `mark` failed. It either fails such
//! application writes, or first makes durable in the SCBs of all sources that the bitmaps of this
//! set are void (a full merge and full copies at the next mount), and goes on in memory.
//!
//! The journal must not decide which bitmap is used for what, nor clear a bit by itself.

mod backing;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gate;
mod log;
mod mode;
mod record;
mod segment;
#[cfg(test)]
mod tests;
mod words;
mod writer;

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use uuid::Uuid;

use crate::io::sys;
use crate::set::{BitmapId, BitmapRecord, Geometry, Home, Regions, WriteBitmap};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::swap::ArcSwap;
use crate::sync::{Mutex, MutexGuard};

pub use log::MAPS_MAX;
pub use mode::{BUFFERED_MOST, MessageCounts, MessageMode, MessageSettings};
pub use record::{Durability, OpenError, Options};

use gate::{Gate, Run};
use log::{ENTRIES_MAX, Entry};
use segment::Layout;
use words::{WORD, Words};
use writer::{Pair, Writer};

/// Unit of the log and of everything else in the files: no page holds two things that are written
/// at different times.
const PAGE: usize = 4096;
/// Names in the state directory.
const FILES: [&str; 2] = ["journal.a", "journal.b"];
/// Names of files that are not complete yet.
const NEW_FILES: [&str; 2] = ["journal.a.new", "journal.b.new"];
const MODE: u32 = 0o600;
/// A bitmap with more words than this goes to disk as part of a snapshot, not of a batch.
const BATCH_WORDS_MAX: usize = 1024;

// With one entry in front of the words; see `with_words`.
const _: () = assert!(BATCH_WORDS_MAX + 2 <= ENTRIES_MAX);

/// What a journal has to fit.
#[derive(Clone, Copy, Debug)]
struct Identity {
    set: Uuid,
    geometry: Geometry,
    /// The running boot of the machine; nil when unknown.
    boot: Uuid,
}

/// A map and its durable bits.
#[derive(Clone, Debug)]
struct Map {
    record: BitmapRecord,
    words: Arc<Words>,
}

impl Map {
    fn new(record: BitmapRecord, words: Words) -> Self {
        Self {
            record,
            words: Arc::new(words),
        }
    }
}

/// The open journal of a unit. Any thread may call any method.
#[derive(Debug)]
pub struct Journal {
    gate: Gate,
    /// Locked by the leader only.
    writer: Mutex<Writer>,
    /// Replaced by the leader only.
    maps: ArcSwap<Vec<Map>>,
    geometry: Geometry,
    grain: u64,
    /// The highest number that a map has had since the journal was opened.
    highest: AtomicU32,
    /// Something was cleared since the last snapshot.
    cleared: AtomicBool,
}

impl Journal {
    /// Makes a journal without a map and takes all the space that it will ever need: two files in
    /// `dir`, durable with their names when it returns.
    ///
    /// # Errors
    /// `AlreadyExists` when there is one, see [`Journal::delete`]; `StorageFull` when the space is
    /// not there; the system's error. After an error there is no journal and its space is free.
    pub fn create(dir: &Path, set: Uuid, geometry: Geometry, options: Options) -> io::Result<Self> {
        if dir.join(FILES[0]).try_exists()? {
            let text = format!("{}: there is a journal", dir.display());
            return Err(io::Error::new(ErrorKind::AlreadyExists, text));
        }
        let id = Identity::of(set, geometry);
        let a = open_file(&dir.join(NEW_FILES[0]), true)?;
        if !sys::try_lock(a.as_fd())? {
            return Err(ErrorKind::ResourceBusy.into());
        }
        let made = || {
            let b = open_file(&dir.join(NEW_FILES[1]), true)?;
            for file in [&a, &b] {
                file.set_len(0)?;
            }
            let pair: Pair = [Box::new(a), Box::new(b)];
            let writer = Writer::format(pair, &id, Layout::new(geometry), options)?;
            // The first file names the journal: it is there only when the second one is.
            for file in [1, 0] {
                std::fs::rename(dir.join(NEW_FILES[file]), dir.join(FILES[file]))?;
                File::open(dir)?.sync_all()?;
            }
            Ok(Self::new(writer, Vec::new(), geometry, options))
        };
        made().inspect_err(|_: &io::Error| {
            for name in NEW_FILES {
                let _ = std::fs::remove_file(dir.join(name));
            }
        })
    }

    /// Opens the journal in `dir` and hands out its maps as they were durable: at least what was
    /// acknowledged, at most that and what was under way, in whole groups.
    ///
    /// # Errors
    /// [`OpenError`]. The files are as they were.
    pub fn open(
        dir: &Path,
        set: Uuid,
        geometry: Geometry,
        options: Options,
    ) -> Result<(Self, Vec<(BitmapRecord, WriteBitmap)>), OpenError> {
        let a = match open_file(&dir.join(FILES[0]), false) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(OpenError::Missing),
            Err(e) => return Err(e.into()),
        };
        if !sys::try_lock(a.as_fd())? {
            return Err(OpenError::InUse);
        }
        let b = match open_file(&dir.join(FILES[1]), false) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(OpenError::Damaged(format!("{} is gone", FILES[1])));
            }
            Err(e) => return Err(e.into()),
        };
        let id = Identity::of(set, geometry);
        Self::open_on([Box::new(a), Box::new(b)], &id, options)
    }

    fn open_on(
        pair: Pair,
        id: &Identity,
        options: Options,
    ) -> Result<(Self, Vec<(BitmapRecord, WriteBitmap)>), OpenError> {
        let (writer, maps) = Writer::open(pair, id, options)?;
        let bitmaps = maps.iter();
        let bitmaps = bitmaps.map(|m| (m.record, m.words.to_bitmap(id.geometry)));
        let bitmaps = bitmaps.collect();
        Ok((Self::new(writer, maps, id.geometry, options), bitmaps))
    }

    /// Moves the journal in `from` to `to`, in the place of the one that is there; durable when it returns. It may
    /// be open. Cut short or failed, it is to be done again.
    ///
    /// # Errors
    /// The system's error.
    pub fn replace(from: &Path, to: &Path) -> io::Result<()> {
        // The first file names the journal: it comes last.
        for file in [FILES[1], FILES[0]] {
            match std::fs::rename(from.join(file), to.join(file)) {
                // Moved by the time before.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                other => other?,
            }
            for dir in [to, from] {
                File::open(dir)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// Whether a [`Journal::replace`] from `dir` was cut short.
    #[must_use]
    pub fn is_half_moved(dir: &Path) -> bool {
        let there = |file: &str| dir.join(file).exists();
        there(FILES[0]) && !there(FILES[1])
    }

    /// The unit that it was made for.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Whether there is a journal in `dir`, whosever it is.
    ///
    /// # Errors
    /// The system's error.
    pub fn is_in(dir: &Path) -> io::Result<bool> {
        dir.join(FILES[0]).try_exists()
    }

    /// Deletes the journal in `dir`, whatever is in it; durable when it returns. All bitmaps are
    /// lost.
    ///
    /// # Errors
    /// The system's error.
    pub fn delete(dir: &Path) -> io::Result<()> {
        if !dir.try_exists()? {
            return Ok(());
        }
        for name in FILES.iter().chain(&NEW_FILES) {
            match std::fs::remove_file(dir.join(name)) {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                other => other?,
            }
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    }

    fn new(writer: Writer, maps: Vec<Map>, geometry: Geometry, options: Options) -> Self {
        let highest = maps.iter().map(|m| m.record.tag.id.0).max();
        Self {
            highest: AtomicU32::new(highest.unwrap_or(0)),
            gate: Gate::default(),
            writer: Mutex::new(writer),
            maps: ArcSwap::from_pointee(maps),
            geometry,
            grain: u64::from(options.grain_words.max(1)),
            cleared: AtomicBool::new(false),
        }
    }

    /// Adds a map that begins with exactly the bits of `initial`; durable when it returns. An empty
    /// one costs one batch of the log.
    ///
    /// # Errors
    /// `StorageFull` when there are [`MAPS_MAX`] maps and `AlreadyExists` when the key is taken:
    /// nothing has changed. Otherwise the journal has failed.
    pub fn add(&self, record: BitmapRecord, initial: &WriteBitmap) -> io::Result<()> {
        self.check_geometry(initial);
        self.change(|maps| {
            let entries = vec![Entry::Add(record)];
            if maps.iter().any(|m| m.record.tag.id == record.tag.id) {
                return refuse(ErrorKind::AlreadyExists, record.tag.id, "is there already");
            }
            if maps.len() == MAPS_MAX {
                return refuse(
                    ErrorKind::StorageFull,
                    record.tag.id,
                    "would be one too many",
                );
            }
            let words = Words::from_bitmap(initial);
            let entries = with_words(entries, record.tag.id, &words);
            maps.push(Map::new(record, words));
            Ok(entries)
        })?;
        self.highest.fetch_max(record.tag.id.0, Ordering::AcqRel);
        Ok(())
    }

    /// Gives a map that is there another record, as when a write bitmap moves into the copy that
    /// drains it; durable when it returns.
    ///
    /// # Errors
    /// `NotFound`: nothing has changed. Otherwise the journal has failed.
    pub fn describe(&self, record: BitmapRecord) -> io::Result<()> {
        self.change(|maps| {
            find(maps, record.tag.id)?.record = record;
            Ok(Some(vec![Entry::Describe(record)]))
        })
    }

    /// Adds exactly these bits to a map, those that it finds set when it is called; durable when it
    /// returns. Others may be marking the map and setting more of the bits meanwhile.
    ///
    /// # Errors
    /// `NotFound`: nothing has changed. Otherwise the journal has failed.
    pub fn absorb(&self, id: BitmapId, bits: &WriteBitmap) -> io::Result<()> {
        self.check_geometry(bits);
        let lead = self.gate.lead()?;
        let maps = self.maps.load_full();
        let map = maps.iter().find(|m| m.record.tag.id == id);
        let Some(map) = map else {
            return refuse(ErrorKind::NotFound, id, "is not there");
        };
        // Read once: a bit that somebody sets behind this must not count as durable.
        let bits = Words::from_bitmap(bits);
        #[cfg(test)]
        if planted::is(planted::Mistake::AbsorbNotDurable) {
            map.words.absorb(&bits);
            return Ok(());
        }
        lead.run(|| {
            let mut writer = self.lock();
            match with_words(Vec::new(), id, &bits) {
                Some(entries) => writer.append(&entries, &maps)?,
                None => self.snapshot_with(&mut writer, &maps, id, &bits)?,
            }
            map.words.absorb(&bits);
            Ok(())
        })
    }

    /// Forgets a map; durable when it returns. Nobody may be using it.
    ///
    /// # Errors
    /// `NotFound`: nothing has changed. Otherwise the journal has failed.
    pub fn remove(&self, key: BitmapId) -> io::Result<()> {
        self.change(|maps| {
            find(maps, key)?;
            maps.retain(|m| m.record.tag.id != key);
            Ok(Some(vec![Entry::Remove(key)]))
        })
    }

    /// Whether every region of the run is durably marked already: a few atomic loads, no lock. False
    /// for a map that is not there.
    #[must_use]
    pub fn covers(&self, key: BitmapId, regions: Regions) -> bool {
        let maps = self.maps.load();
        let map = maps.iter().find(|m| m.record.tag.id == key);
        map.is_some_and(|m| m.words.covers(regions))
    }

    /// The groups that hold the regions, as words.
    fn groups(&self, key: BitmapId, regions: Regions, words: u64) -> Run {
        let first = regions.first().0 / WORD / self.grain * self.grain;
        let end = regions.end().0.div_ceil(WORD);
        let end = end.div_ceil(self.grain).saturating_mul(self.grain);
        Run {
            key,
            first,
            end: end.min(words),
        }
    }

    /// Writes marks, each batch of the log by itself, and lets everybody rely on it before the next one:
    /// a full log makes a snapshot of what may be relied on, and drops what does not stand in there.
    fn commit(&self, runs: &[Run]) -> io::Result<()> {
        let maps = self.maps.load_full();
        let words = |key| {
            maps.iter()
                .find(|m| m.record.tag.id == key)
                .map(|m| &m.words)
        };
        // A map that was removed while its mark waited needs it no more.
        let mine = runs.iter().filter(|r| words(r.key).is_some());
        for part in mine.collect::<Vec<_>>().chunks(ENTRIES_MAX) {
            let entries = part.iter().map(|r| Entry::Mark {
                key: r.key,
                first: r.first,
                end: r.end,
            });
            self.lock().append(&entries.collect::<Vec<_>>(), &maps)?;
            for run in part {
                let filled = words(run.key).is_some_and(|w| w.fill(run.first, run.end));
                assert!(filled, "a mark beyond map {}", run.key.0);
            }
        }
        Ok(())
    }

    /// Notes that of this map only these bits are still set: what else it has is copied and flushed (I1).
    /// Reaches the disk with the next snapshot. Nobody may be marking or absorbing into the map
    /// meanwhile: a bit that is set behind the reading of `left` would be lost.
    pub fn retain(&self, id: BitmapId, left: &WriteBitmap) {
        let maps = self.maps.load();
        if let Some(map) = maps.iter().find(|m| m.record.tag.id == id) {
            if map.words.keep_only(left) {
                self.cleared.store(true, Ordering::Release);
            }
        }
    }

    /// Writes a snapshot when something has changed since the last one, cleared regions above all.
    ///
    /// # Errors
    /// The journal has failed.
    pub fn checkpoint(&self) -> io::Result<()> {
        let lead = self.gate.lead()?;
        let mut writer = self.lock();
        if self.cleared.load(Ordering::Acquire) || !writer.is_fresh() {
            lead.run(|| self.snapshot(&mut writer, &self.maps.load_full()))?;
        }
        Ok(())
    }

    /// Ends the journal in order: afterwards it is good after a restart of the machine as well,
    /// whatever its durability was.
    ///
    /// # Errors
    /// The journal has failed.
    pub fn close(&self) -> io::Result<()> {
        let lead = self.gate.lead()?;
        let maps = self.maps.load_full();
        let cleared = self.cleared.load(Ordering::Acquire);
        lead.run(|| self.lock().close(&maps, cleared))
    }

    /// Has announcements of new marks committed by these rules, those that wait among them.
    pub fn set_messages(&self, settings: MessageSettings) {
        self.gate.set_messages(settings);
    }

    /// Counts announcements into these from now on: counts that outlive the journal.
    pub fn count_into(&self, counts: Arc<MessageCounts>) {
        self.gate.count_into(counts);
    }

    /// The error of every change after a failure; nothing before.
    ///
    /// # Errors
    /// The journal has failed.
    pub fn check(&self) -> io::Result<()> {
        self.gate.check()
    }

    /// Carries out a change that is no mark. `plan` changes a copy of the table and tells the
    /// entries, or none when only a snapshot will hold it.
    fn change(
        &self,
        plan: impl FnOnce(&mut Vec<Map>) -> io::Result<Option<Vec<Entry>>>,
    ) -> io::Result<()> {
        let lead = self.gate.lead()?;
        let old = self.maps.load_full();
        let mut new = Vec::clone(&old);
        let entries = plan(&mut new)?;
        lead.run(|| {
            let mut writer = self.lock();
            match entries {
                Some(entries) => writer.append(&entries, &old),
                None => self.snapshot(&mut writer, &new),
            }
        })?;
        self.maps.store(Arc::new(new));
        Ok(())
    }

    /// A snapshot in which one map has these bits as well. Whoever finds a bit set waits for nobody, so
    /// until the snapshot is durable they are in a copy only. The copy misses no mark: whoever writes
    /// one leads, and the caller does.
    fn snapshot_with(
        &self,
        writer: &mut Writer,
        maps: &[Map],
        id: BitmapId,
        bits: &Words,
    ) -> io::Result<()> {
        // Before the copy, see below.
        self.cleared.store(false, Ordering::Release);
        let new = maps.iter().map(|m| match m.record.tag.id == id {
            true => Map::new(m.record, m.words.with(bits)),
            false => m.clone(),
        });
        writer.switch(&new.collect::<Vec<_>>())
    }

    fn snapshot(&self, writer: &mut Writer, maps: &[Map]) -> io::Result<()> {
        // Before the words are read: what is cleared from now on may miss this snapshot.
        self.cleared.store(false, Ordering::Release);
        writer.switch(maps)
    }

    fn check_geometry(&self, map: &WriteBitmap) {
        assert_eq!(map.geometry(), self.geometry, "bitmaps of different units");
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Identity {
    fn of(set: Uuid, geometry: Geometry) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot = boot.ok().and_then(|text| text.trim().parse().ok());
        Self {
            set,
            geometry,
            boot: boot.unwrap_or(Uuid::nil()),
        }
    }
}

impl Home for Journal {
    type Error = io::Error;

    /// Marks the regions in all these maps, each rounded out to whole groups; durable when it
    /// returns. Costs a few loads where they are covered, and one write and one sync for all threads
    /// that wait and that the message mode lets go together. A map that is no longer there is passed over: it was deleted while the caller's View was
    /// alive, and nobody will use it.
    ///
    /// # Errors
    /// `NotFound` when a map has never been there, and nothing has changed. Otherwise the journal has failed; no member may be written, see the description of this module.
    fn mark(&self, bitmaps: &[BitmapId], regions: Regions) -> io::Result<()> {
        let maps = self.maps.load();
        let mut runs = Vec::new();
        for id in bitmaps {
            match maps.iter().find(|m| m.record.tag.id == *id) {
                Some(map) if !map.words.covers(regions) => {
                    runs.push(self.groups(*id, regions, map.words.len()));
                }
                Some(_) => {}
                None if id.0 == 0 || id.0 > self.highest.load(Ordering::Acquire) => {
                    return refuse(ErrorKind::NotFound, *id, "has never been there");
                }
                None => {}
            }
        }
        if runs.is_empty() {
            return Ok(());
        }
        drop(maps);
        let is_durable = |run: &Run| self.covers(run.key, regions);
        self.gate
            .mark(&runs, is_durable, |batch| self.commit(batch))
    }
}

/// The entries and behind them the bits, when they fit a batch.
fn with_words(mut entries: Vec<Entry>, key: BitmapId, words: &Words) -> Option<Vec<Entry>> {
    for (at, bits) in words.set_words() {
        if entries.len() > BATCH_WORDS_MAX {
            return None;
        }
        entries.push(Entry::Word { key, at, bits });
    }
    Some(entries)
}

fn find(maps: &mut [Map], key: BitmapId) -> io::Result<&mut Map> {
    let missing = || refuse(ErrorKind::NotFound, key, "is not there");
    let found = maps.iter_mut().find(|m| m.record.tag.id == key);
    found.map_or_else(missing, Ok)
}

fn refuse<T>(kind: ErrorKind, key: BitmapId, why: &str) -> io::Result<T> {
    let text = format!("map {} {why} in the journal", key.0);
    Err(io::Error::new(kind, text))
}

fn open_file(path: &Path, new: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(MODE);
    options.create(new).truncate(false).open(path)
}

/// Mistakes that the tests plant to see themselves fail.
#[cfg(test)]
mod planted {
    use std::cell::Cell;

    /// One mistake of a naive journal.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) enum Mistake {
        /// A new segment counts before it is durable.
        SegmentNotSynced,
        /// The segment that is found is not made durable before the other one is written.
        OpenedNotSynced,
        /// Batches of an older life of the file are replayed.
        OlderLife,
        /// A mark returns before it is durable.
        BatchNotSynced,
        /// Absorbed bits wait for the next snapshot, as those do that are not retained.
        AbsorbNotDurable,
        /// A word that loses a bit loses all.
        RetainDropsMore,
    }

    thread_local! {
        static PLANTED: Cell<Option<Mistake>> = const { Cell::new(None) };
    }

    pub(super) fn is(mistake: Mistake) -> bool {
        PLANTED.get() == Some(mistake)
    }

    pub(super) fn plant(mistake: Option<Mistake>) {
        PLANTED.set(mistake);
    }
}
