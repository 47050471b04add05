//! A unit whose members lie on a disk that fails: writers that remember what they have written, and the judgement of what
//! is there after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use shadowset::io::aligned::AlignedBuf;
use shadowset::io::sys::{self, Fallocate};
use shadowset::testing::Rng;

use crate::bed::{MIB, Plan, Unit};
use crate::disk::Disk;

/// Bytes of a unit.
pub(crate) const SIZE: u64 = 2 * MIB + 512;
/// Parts of it; each has one writer at a time.
const AREAS: usize = 2;
/// Bytes of a sector, in which every word holds the same number.
const SECTOR: u64 = 512;
/// Stands for a sector that is no number.
const TORN: u64 = u64::MAX;

/// What was written on one part.
#[derive(Debug)]
pub(crate) struct Area {
    first: u64,
    base: Vec<u64>,
    log: Vec<Entry>,
    /// How many of the log are acknowledged, and how many by a flush.
    acknowledged: usize,
    flushed: usize,
    /// The last number; none comes twice.
    last: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    at: usize,
    len: usize,
    value: u64,
}

impl Area {
    fn new(n: usize) -> Self {
        let all = SIZE / SECTOR;
        let (first, end) = (all * n as u64 / 2, all * (n as u64 + 1) / 2);
        Self {
            first,
            base: vec![0; (end - first) as usize],
            log: Vec::new(),
            acknowledged: 0,
            flushed: 0,
            last: (n as u64) << 32,
        }
    }

    /// What the part holds when the first of its log have been done.
    fn after(&self, count: usize) -> Vec<u64> {
        let mut values = self.base.clone();
        for entry in &self.log[..count] {
            values[entry.at..entry.at + entry.len].fill(entry.value);
        }
        values
    }

    /// Its part of all values.
    fn of<'a>(&self, all: &'a [u64]) -> &'a [u64] {
        let first = self.first as usize;
        &all[first..first + self.base.len()]
    }

    /// Each sector holds what was flushed, or what was written there later.
    fn assert_kept(&self, all: &[u64], what: &str) {
        let must = self.after(self.flushed);
        for (at, (found, must)) in self.of(all).iter().zip(&must).enumerate() {
            let covers = |entry: &&Entry| (entry.at..entry.at + entry.len).contains(&at);
            let later = self.log[self.flushed..].iter().filter(covers);
            let may: Vec<u64> = later.map(|entry| entry.value).collect();
            let sector = self.first + at as u64;
            assert!(
                found == must || may.contains(found),
                "{what}: sector {sector} holds {found:#x}, flushed was {must:#x}, later {may:x?}"
            );
        }
    }

    /// The part is as it was behind one of its writes.
    fn assert_cut(&self, all: &[u64], from: usize, to: usize, what: &str) {
        let found = self.of(all);
        let is_cut = |count: usize| self.after(count) == found;
        assert!(
            (from..=to).any(is_cut),
            "{what}: no cut between {from} and {to}"
        );
    }

    /// Begins anew with what is there.
    fn settle(&mut self, all: &[u64]) {
        self.base = self.of(all).to_vec();
        self.log.clear();
        (self.acknowledged, self.flushed) = (0, 0);
    }
}

/// The number of each sector.
fn values(bytes: &[u8]) -> Vec<u64> {
    let value = |sector: &[u8]| {
        let whole = sector.chunks_exact(8).all(|word| *word == sector[..8]);
        let value = u64::from_le_bytes(sector[..8].try_into().expect("8 bytes"));
        if whole { value } else { TORN }
    };
    bytes.chunks_exact(SECTOR as usize).map(value).collect()
}

/// Writes one part, one request after the other.
pub(crate) struct Writer {
    file: File,
    /// The same, whose writes are durable when they have returned.
    through: File,
    area: Arc<Mutex<Area>>,
    rng: Rng,
}

impl Writer {
    /// One request: a write mostly, sometimes zeros, a flush, or a write that needs none.
    pub(crate) fn step(&mut self) -> io::Result<()> {
        match self.rng.place(10) {
            0 => self.sync(),
            1 => self.write_through(),
            2 => self.change(true),
            _ => self.change(false),
        }
    }

    /// A write that needs no flush.
    pub(crate) fn write_through(&mut self) -> io::Result<()> {
        let (at, len, value) = self.issue(false);
        write(&self.through, (at, len, value))?;
        let mut area = lock(&self.area);
        area.acknowledged = area.log.len();
        area.flushed = area.acknowledged;
        Ok(())
    }

    /// A flush.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        let done = lock(&self.area).acknowledged;
        self.file.sync_data()?;
        lock(&self.area).flushed = done;
        Ok(())
    }

    fn change(&mut self, zero: bool) -> io::Result<()> {
        let (at, len, value) = self.issue(zero);
        if zero {
            let fd = self.file.as_fd();
            sys::fallocate(fd, Fallocate::PunchHole, at * SECTOR, len * SECTOR)?;
        } else {
            write(&self.file, (at, len, value))?;
        }
        let mut area = lock(&self.area);
        area.acknowledged = area.log.len();
        Ok(())
    }

    fn issue(&mut self, zero: bool) -> (u64, u64, u64) {
        let mut area = lock(&self.area);
        let room = area.base.len() as u64;
        let most = [8, 64, 300][self.rng.place(3)];
        let len = self.rng.between(1, most);
        let at = self.rng.below(room - len);
        area.last += 1;
        let value = if zero { 0 } else { area.last };
        let entry = Entry {
            at: at as usize,
            len: len as usize,
            value,
        };
        area.log.push(entry);
        (area.first + at, len, value)
    }

    /// Goes on in a thread until there is an error.
    pub(crate) fn run(mut self) -> JoinHandle<io::Error> {
        std::thread::spawn(move || {
            loop {
                if let Err(error) = self.step() {
                    return error;
                }
            }
        })
    }
}

/// Fills sectors with a number.
fn write(file: &File, (at, len, value): (u64, u64, u64)) -> io::Result<()> {
    let mut bytes = AlignedBuf::zeroed((len * SECTOR) as usize);
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&value.to_le_bytes());
    }
    file.write_all_at(&bytes, at * SECTOR)
}

fn lock(area: &Mutex<Area>) -> MutexGuard<'_, Area> {
    area.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The unit, its disk, and what has to be there.
pub(crate) struct Trial {
    // Before the disk that it needs.
    pub(crate) unit: Unit,
    pub(crate) disk: Disk,
    areas: Vec<Arc<Mutex<Area>>>,
    /// What images hold that have left on purpose.
    cuts: BTreeMap<String, Vec<u8>>,
    /// Members for which a full copy was asked for.
    full: BTreeSet<String>,
}

/// Whether code of ours has panicked. std does when a thread gets no memory for its start, and has no other way.
pub(crate) fn has_panicked(says: &str) -> bool {
    let mut panics = says.lines().filter(|line| line.contains("panicked"));
    panics.any(|line| !line.contains("unix/stack_overflow.rs"))
}

impl Trial {
    /// Everything but the set itself.
    pub(crate) fn prepare(members: usize) -> Self {
        let disk = Disk::mount();
        let unit = Plan::new(members, SIZE).at(disk.path()).prepare();
        Self {
            unit,
            disk,
            areas: (0..AREAS)
                .map(|n| Arc::new(Mutex::new(Area::new(n))))
                .collect(),
            cuts: BTreeMap::new(),
            full: BTreeSet::new(),
        }
    }

    /// A set that is mounted.
    pub(crate) fn mounted(members: usize) -> Self {
        Self::with_room(members, 0)
    }

    /// A set that is mounted, with so many bytes more in its images than in the unit.
    pub(crate) fn with_room(members: usize, room: u64) -> Self {
        let mut trial = Self::prepare(members);
        let all = SIZE + room;
        trial.unit.sh(&format!(
            "shadowset create dsa1 --size {SIZE}; truncate -s {all} images/*.img; sync images/*.img"
        ));
        trial.unit.mount();
        trial
    }

    /// A writer of one part.
    pub(crate) fn writer(&self, part: usize, seed: u64) -> Writer {
        self.try_writer(part, seed).expect("the unit")
    }

    /// The same, of a unit whose server may be dead.
    pub(crate) fn try_writer(&self, part: usize, seed: u64) -> io::Result<Writer> {
        let open = |flags: i32| {
            let mut options = OpenOptions::new();
            let options = options.write(true).custom_flags(libc::O_DIRECT | flags);
            options.open(self.unit.file())
        };
        Ok(Writer {
            file: open(0)?,
            through: open(libc::O_DSYNC)?,
            area: Arc::clone(&self.areas[part]),
            rng: Rng::new(seed),
        })
    }

    /// A command; an error when it was refused, which says why, or when nobody answers any more.
    pub(crate) fn command(&mut self, text: &str) -> io::Result<()> {
        let control = self.unit.path("mnt/.shadow/control");
        let mut file = OpenOptions::new().read(true).write(true).open(control)?;
        let done = file.write_all(text.as_bytes());
        let mut answer = [0; 8192];
        if let (Err(error), Ok(length)) = (&done, file.read_at(&mut answer, 0)) {
            let says = String::from_utf8_lossy(&answer[..length]);
            let sentence = says
                .strip_prefix("error: ")
                .and_then(|s| s.split_once('\n'));
            let is_told = sentence.is_some_and(|(_, why)| !why.trim().is_empty());
            assert!(is_told, "{text}: {error}, and no reason: {says:?}");
        }
        done
    }

    /// Takes a member out; what its image holds is a cut, whatever comes.
    pub(crate) fn detach(&mut self, member: &str) -> io::Result<()> {
        let from: Vec<usize> = self.each(|area| area.acknowledged);
        self.command(&format!("detach {member} policy=minicopy"))?;
        let to: Vec<usize> = self.each(|area| area.log.len());
        let image = self.disk.image(member);
        let found = values(&image);
        for (n, area) in self.areas.iter().enumerate() {
            lock(area).assert_cut(&found, from[n], to[n], member);
        }
        self.cuts.insert(member.to_owned(), image);
        Ok(())
    }

    /// Brings a member back.
    pub(crate) fn attach(&mut self, member: &str, policy: &str) -> io::Result<()> {
        // It may begin although the answer never comes.
        self.cuts.remove(member);
        if policy == "full" {
            self.full.insert(member.to_owned());
        }
        self.command(&format!("attach {member} policy={policy}"))
    }

    fn each<T>(&self, look: impl Fn(&Area) -> T) -> Vec<T> {
        self.areas.iter().map(|area| look(&lock(area))).collect()
    }

    /// Waits for the end of a server that was killed, and takes its mount away.
    pub(crate) fn bury(&mut self) {
        let pid = self.unit.pid();
        self.unit
            .sh(&format!("timeout 20 tail -s 0.02 --pid={pid} -f /dev/null"));
        self.unit.umount();
        self.unit.gone();
    }

    /// What is read now is what was flushed or written later, is read again, and stays; images that have left are what
    /// they were; nothing is copied in full that was not before.
    pub(crate) fn judge(&mut self, what: &str) {
        self.assert_nothing_unasked(what);
        let first = std::fs::read(self.unit.file()).expect("the unit");
        let found = values(&first);
        for area in &self.areas {
            lock(area).assert_kept(&found, what);
        }
        self.unit.rest();
        let again = std::fs::read(self.unit.file()).expect("the unit");
        assert!(first == again, "{what}: I11: two reads differ");
        for (member, cut) in &self.cuts {
            let same = self.disk.image(member) == *cut;
            assert!(same, "{what}: I5: the image of {member} has changed");
        }
        for area in &self.areas {
            lock(area).settle(&found);
        }
        let log = std::fs::read_to_string(self.unit.path("log")).expect("the log");
        assert!(!has_panicked(&log), "{what}: {log}");
    }

    /// Copies that nobody has asked for.
    pub(crate) fn assert_nothing_unasked(&self, what: &str) {
        let status = self.unit.status();
        let operations = status["operations"].as_array().expect("a list");
        for op in operations {
            let (kind, target) = (op["kind"].as_str(), op["target"].as_str());
            let asked = target.is_some_and(|target| self.full.contains(target));
            let whole = ["full-copy", "merge", "compare-copy"]
                .map(Some)
                .contains(&kind);
            assert!(!whole || asked, "{what}: {op}\n{status}");
        }
    }

    /// Brings back whoever is away: by minicopy who has left on purpose. In the end all members hold what the unit does.
    pub(crate) fn reunite(&mut self, what: &str) {
        let members = self.unit.status()["members"].as_array().cloned();
        for member in members.expect("a list") {
            let name = member["name"].as_str().expect("a name");
            let policy = match member["state"].as_str() {
                Some("source") => continue,
                Some("detached") if self.cuts.contains_key(name) => "minicopy",
                _ => "minicopy=optional",
            };
            self.unit.sh(&format!(
                "shadowset attach dsa1 {name} --policy {policy} --yes --wait"
            ));
        }
        self.cuts.clear();
        self.full.clear();
        let unit = std::fs::read(self.unit.file()).expect("the unit");
        let members = self.unit.status()["members"].as_array().map_or(0, Vec::len);
        self.unit.stop();
        for n in 1..=members {
            let same = self.disk.image(&format!("m{n}")).starts_with(&unit);
            assert!(same, "{what}: m{n} is not what the unit was");
        }
    }
}
