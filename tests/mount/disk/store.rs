//! What a disk holds, and what is left of it when its power goes: a value, without a mount.
//!
//! Each write stays unflushed, sector by sector, until its file is synced. Without power a sector holds one of the values
//! that it had since the last sync, whatever its neighbours hold; a file that has grown has its old or its new length; of
//! the changes of a directory a first part is there. A move to another directory has happened in both or in neither. A file
//! that is cut short is so at once: what it held never comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::time::SystemTime;

use shadowset::testing::Rng;

/// What is written or lost as a whole.
pub(super) const SECTOR: usize = 512;
/// The directory of everything.
pub(super) const ROOT: u64 = 1;

type Sector = [u8; SECTOR];

/// Times of a change, which only a sync of everything makes durable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) changed: SystemTime,
    pub(super) modified: SystemTime,
}

impl Times {
    fn now() -> Self {
        let now = SystemTime::now();
        Self {
            changed: now,
            modified: now,
        }
    }
}

/// A file.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u16,
    pub(super) times: Times,
    durable: Vec<u8>,
    durable_times: Times,
    /// What each sector has held since the last sync, the newest last.
    since: BTreeMap<usize, Vec<Sector>>,
}

impl Content {
    fn new(mode: u16) -> Self {
        let times = Times::now();
        Self {
            bytes: Vec::new(),
            mode,
            times,
            durable: Vec::new(),
            durable_times: times,
            since: BTreeMap::new(),
        }
    }

    /// What a read gives.
    pub(super) fn read(&self, at: u64, len: usize) -> &[u8] {
        let start = usize::try_from(at).map_or(usize::MAX, |at| at);
        let start = start.min(self.bytes.len());
        &self.bytes[start..self.bytes.len().min(start + len)]
    }

    /// Writes bytes; a file that is too short grows.
    pub(super) fn write(&mut self, at: u64, data: &[u8]) {
        let at = usize::try_from(at).expect("a small file");
        let end = at + data.len();
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        self.bytes[at..end].copy_from_slice(data);
        for sector in at / SECTOR..end.div_ceil(SECTOR) {
            let held = sector_of(&self.bytes, sector);
            self.since.entry(sector).or_default().push(held);
        }
        self.times = Times::now();
    }

    /// Makes a range zero, as far as the file goes.
    pub(super) fn zero(&mut self, at: u64, len: u64) {
        let end = (at + len).min(self.bytes.len() as u64);
        if at < end {
            self.write(at, &vec![0; usize::try_from(end - at).expect("small")]);
        }
    }

    /// Gives the file another length.
    pub(super) fn resize(&mut self, len: u64) {
        let len = usize::try_from(len).expect("a small file");
        if len < self.bytes.len() {
            self.durable.truncate(len);
            self.since.retain(|sector, _| sector * SECTOR < len);
        }
        self.bytes.resize(len, 0);
        self.times = Times::now();
    }

    /// Makes the contents durable, and the times where not only data counts.
    pub(super) fn sync(&mut self, data_only: bool) {
        self.durable.resize(self.bytes.len(), 0);
        for sector in std::mem::take(&mut self.since).into_keys() {
            let (start, end) = (sector * SECTOR, (sector + 1) * SECTOR);
            let end = end.min(self.bytes.len());
            if start < end {
                self.durable[start..end].copy_from_slice(&self.bytes[start..end]);
            }
        }
        if !data_only {
            self.durable_times = self.times;
        }
    }

    fn lose_power(&mut self, how: Loss, rng: &mut Rng) {
        if how.keeps(rng) {
            self.durable.resize(self.bytes.len(), 0);
        }
        for (sector, values) in std::mem::take(&mut self.since) {
            // The old value is one of those that may be there.
            let place = match how {
                Loss::All => 0,
                Loss::None => values.len(),
                Loss::Some => rng.place(values.len() + 1),
            };
            let start = sector * SECTOR;
            let end = (start + SECTOR).min(self.durable.len());
            if place > 0 && start < end {
                self.durable[start..end].copy_from_slice(&values[place - 1][..end - start]);
            }
        }
        self.bytes.clone_from(&self.durable);
        if how.keeps(rng) {
            self.durable_times = self.times;
        }
        self.times = self.durable_times;
    }
}

fn sector_of(bytes: &[u8], sector: usize) -> Sector {
    let mut held = [0; SECTOR];
    let bytes = &bytes[sector * SECTOR..bytes.len().min((sector + 1) * SECTOR)];
    held[..bytes.len()].copy_from_slice(bytes);
    held
}

/// A directory.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) now: BTreeMap<OsString, u64>,
    durable: BTreeMap<OsString, u64>,
    since: Vec<Change>,
}

/// What one call does to a directory: a name goes, another one comes.
#[derive(Debug)]
struct Change {
    gone: Option<OsString>,
    come: Option<(OsString, u64)>,
    /// The number of a move, of which another directory has the other half.
    half_of: Option<u64>,
}

impl Change {
    fn new(gone: Option<OsString>, come: Option<(OsString, u64)>, half_of: Option<u64>) -> Self {
        Self {
            gone,
            come,
            half_of,
        }
    }

    fn apply(&self, names: &mut BTreeMap<OsString, u64>) {
        if let Some(name) = &self.gone {
            names.remove(name);
        }
        if let Some((name, inode)) = &self.come {
            names.insert(name.clone(), *inode);
        }
    }
}

impl Names {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.since.push(change);
    }

    /// How many changes a loss of power leaves.
    fn kept(&self, how: Loss, rng: &mut Rng) -> usize {
        match how {
            Loss::All => 0,
            Loss::None => self.since.len(),
            Loss::Some => rng.place(self.since.len() + 1),
        }
    }

    /// Makes the first changes durable.
    fn keep(&mut self, kept: usize) {
        for change in self.since.drain(..kept) {
            change.apply(&mut self.durable);
        }
    }

    fn moves(&self) -> impl Iterator<Item = (usize, u64)> {
        let halves = self.since.iter().enumerate();
        halves.filter_map(|(place, change)| Some((place, change.half_of?)))
    }

    fn lose_power(&mut self) {
        self.since.clear();
        self.now.clone_from(&self.durable);
    }
}

/// What a loss of power does to what is not flushed.
#[derive(Clone, Copy, Debug)]
enum Loss {
    All,
    None,
    Some,
}

impl Loss {
    fn keeps(self, rng: &mut Rng) -> bool {
        match self {
            Self::All => false,
            Self::None => true,
            Self::Some => rng.chance(500),
        }
    }
}

/// What a number names.
#[derive(Debug)]
pub(super) enum Node {
    File(Content),
    Dir(Names),
}

/// All files and directories.
#[derive(Debug)]
pub(super) struct Store {
    nodes: BTreeMap<u64, Node>,
    /// Moves between directories.
    moves: u64,
}

impl Store {
    /// A disk with one directory.
    pub(super) fn new() -> Self {
        let root = Node::Dir(Names::default());
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            moves: 0,
        }
    }

    pub(super) fn node(&self, inode: u64) -> Option<&Node> {
        self.nodes.get(&inode)
    }

    pub(super) fn file(&mut self, inode: u64) -> Option<&mut Content> {
        match self.nodes.get_mut(&inode) {
            Some(Node::File(content)) => Some(content),
            _ => None,
        }
    }

    pub(super) fn names(&self, inode: u64) -> Option<&BTreeMap<OsString, u64>> {
        match self.nodes.get(&inode) {
            Some(Node::Dir(names)) => Some(&names.now),
            _ => None,
        }
    }

    /// What a name of a directory stands for.
    pub(super) fn look_up(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.names(parent)?.get(name).copied()
    }

    /// A new file or directory. Those of the root are durable at once, since nothing makes one at work.
    pub(super) fn make(&mut self, parent: u64, name: &OsStr, mode: Option<u16>) -> u64 {
        let inode = self.nodes.keys().max().map_or(ROOT, |last| last + 1);
        let node = match mode {
            Some(mode) => Node::File(Content::new(mode)),
            None => Node::Dir(Names::default()),
        };
        self.nodes.insert(inode, node);
        let come = Some((name.to_owned(), inode));
        self.change(parent, Change::new(None, come, None));
        if mode.is_none() && parent == ROOT {
            self.sync_names(ROOT);
        }
        inode
    }

    pub(super) fn remove(&mut self, parent: u64, name: &OsStr) {
        let gone = Some(name.to_owned());
        self.change(parent, Change::new(gone, None, None));
    }

    /// Gives a file another name in this or another directory, in place of what has it.
    pub(super) fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> bool {
        let Some(inode) = self.look_up(from.0, from.1) else {
            return false;
        };
        let (gone, come) = (Some(from.1.to_owned()), Some((to.1.to_owned(), inode)));
        if from.0 == to.0 {
            self.change(from.0, Change::new(gone, come, None));
            return true;
        }
        self.moves += 1;
        let number = Some(self.moves);
        self.change(from.0, Change::new(gone, None, number));
        self.change(to.0, Change::new(None, come, number));
        true
    }

    pub(super) fn sync_names(&mut self, inode: u64) {
        let len = self.dirs().find(|(dir, _)| *dir == inode);
        let len = len.map(|(_, names)| names.since.len());
        self.keep(len.map(|len| (inode, len)).into_iter().collect());
    }

    fn dirs(&self) -> impl Iterator<Item = (u64, &Names)> {
        self.nodes.iter().filter_map(|(inode, node)| match node {
            Node::Dir(names) => Some((*inode, names)),
            Node::File(_) => None,
        })
    }

    /// Makes so many changes of each directory durable, and what they need in others: the other half of a move.
    fn keep(&mut self, mut kept: BTreeMap<u64, usize>) {
        loop {
            let moved: BTreeSet<u64> = self
                .dirs()
                .flat_map(|(dir, names)| {
                    let kept = kept.get(&dir).copied().unwrap_or(0);
                    names.moves().filter(move |(place, _)| *place < kept)
                })
                .map(|(_, number)| number)
                .collect();
            let before = kept.clone();
            for (dir, names) in self.dirs() {
                let halves = names.moves().filter(|(_, number)| moved.contains(number));
                let needed = halves.map(|(place, _)| place + 1).max().unwrap_or(0);
                let kept = kept.entry(dir).or_default();
                *kept = needed.max(*kept);
            }
            if kept == before {
                break;
            }
        }
        for (dir, kept) in kept {
            if let Some(Node::Dir(names)) = self.nodes.get_mut(&dir) {
                names.keep(kept);
            }
        }
    }

    fn change(&mut self, parent: u64, change: Change) {
        if let Some(Node::Dir(names)) = self.nodes.get_mut(&parent) {
            names.change(change);
        }
    }

    /// What is not flushed is lost, or kept, or in part.
    pub(super) fn lose_power(&mut self, rng: &mut Rng) {
        let how = [Loss::All, Loss::None, Loss::Some, Loss::Some][rng.place(4)];
        let kept = self.dirs().map(|(dir, names)| (dir, names.kept(how, rng)));
        let kept = kept.collect();
        self.keep(kept);
        for node in self.nodes.values_mut() {
            match node {
                Node::File(content) => content.lose_power(how, rng),
                Node::Dir(names) => names.lose_power(),
            }
        }
    }
}

#[test]
fn what_is_synced_is_kept_and_the_rest_is_old_or_new_sector_by_sector() {
    let mut seen = [0; 3];
    for seed in 0..200 {
        let (mut rng, mut store) = (Rng::new(seed), Store::new());
        let inode = store.make(ROOT, OsStr::new("a"), Some(0o600));
        store.sync_names(ROOT);
        let file = store.file(inode).expect("made");
        file.write(0, &[1; 2 * SECTOR]);
        file.sync(true);
        file.write(0, &[2; 2 * SECTOR]);
        file.write(SECTOR as u64, &[3; 2 * SECTOR]);
        store.rename((ROOT, OsStr::new("a")), (ROOT, OsStr::new("b")));
        store.lose_power(&mut rng);
        let names = store.names(ROOT).expect("a directory");
        assert_eq!(names.len(), 1, "a rename loses no file");
        seen[2] |= 1 << usize::from(names.contains_key(OsStr::new("b")));
        let file = store.file(inode).expect("kept");
        assert!([2, 3].contains(&(file.bytes.len() / SECTOR)));
        for (n, allowed) in [vec![1, 2], vec![1, 2, 3]].iter().enumerate() {
            let held = sector_of(&file.bytes, n);
            assert!(held.iter().all(|byte| *byte == held[0]), "not torn");
            assert!(allowed.contains(&held[0]), "{}", held[0]);
            seen[n] |= 1 << held[0];
        }
    }
    assert_eq!(seen, [0b110, 0b1110, 0b11], "each of them happens");
}

#[test]
fn a_move_between_directories_has_happened_in_both_or_in_neither() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let (mut rng, mut store) = (Rng::new(seed), Store::new());
        let dir = store.make(ROOT, OsStr::new("dir"), None);
        store.make(dir, OsStr::new("a"), Some(0o600));
        store.make(ROOT, OsStr::new("b"), Some(0o600));
        store.sync_names(ROOT);
        store.sync_names(dir);
        store.make(dir, OsStr::new("before"), Some(0o600));
        store.rename((dir, OsStr::new("a")), (ROOT, OsStr::new("b")));
        store.make(ROOT, OsStr::new("behind"), Some(0o600));
        let synced = rng.chance(500);
        if synced {
            store.sync_names(ROOT);
        }
        store.lose_power(&mut rng);
        let has = |dir, name| store.look_up(dir, OsStr::new(name)).is_some();
        let moved = !has(dir, "a");
        assert!(has(ROOT, "b") && (moved || !synced), "seed {seed}");
        assert!(!moved || has(dir, "before"), "its first part is there");
        assert!(moved || !has(ROOT, "behind"), "seed {seed}");
        seen.insert((moved, has(dir, "before"), has(ROOT, "behind")));
    }
    assert_eq!(seen.len(), 4, "each of them happens");
}
