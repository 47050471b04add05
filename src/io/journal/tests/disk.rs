//! A disk that can lose power: the sectors that were not synced are kept, dropped or torn.

use std::collections::BTreeSet;

use super::*;

pub(super) const SECTOR: usize = 512;

/// A small generator of random numbers; equal seeds give equal runs.
#[derive(Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A segment with a short log: it is full after 16 batches.
pub(super) fn layout(g: Geometry) -> Layout {
    let mut layout = Layout::new(g);
    layout.log_bytes = 16 * PAGE as u64;
    layout
}

/// What happens at the operation whose number is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// It and all later ones do not happen.
    PowerLoss(u64),
    /// It fails; a sync that fails forgets what it should have written.
    Failure(u64),
}

#[derive(Clone, Debug, Default)]
pub(super) struct SimFile {
    pub(super) live: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    pub(super) files: [SimFile; 2],
    pub(super) ops: u64,
    syncs: u64,
    space: Option<u64>,
    pub(super) trouble: Option<Trouble>,
}

impl Disk {
    /// Counts an operation and lets it happen or not.
    fn step(&mut self) -> io::Result<()> {
        self.ops += 1;
        match self.trouble {
            Some(Trouble::PowerLoss(at)) if self.ops > at => Err(io::Error::other("no power")),
            Some(Trouble::Failure(at)) if self.ops == at + 1 => {
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            _ => Ok(()),
        }
    }

    /// Power is lost: every sector that was not synced is old, new, or torn.
    fn lose(&mut self, seed: u64) {
        let mut rng = Rng::new(seed);
        let kept = rng.below(4);
        for file in &mut self.files {
            for sector in std::mem::take(&mut file.dirty) {
                let (at, end) = (sector * SECTOR, (sector + 1) * SECTOR);
                let tear = match rng.below(20) {
                    0 => rng.below(SECTOR as u64) as usize,
                    n if n % 4 < kept => SECTOR,
                    _ => 0,
                };
                let new = file.live[at..at + tear].to_vec();
                file.durable[at..at + tear].copy_from_slice(&new);
                if tear > 0 && tear < SECTOR {
                    file.durable[at + tear..end].fill(0x5a);
                }
            }
            file.live.clone_from(&file.durable);
        }
        self.trouble = None;
    }
}

/// Two files on a disk that can lose power.
#[derive(Clone, Debug, Default)]
pub(super) struct Sim(Arc<Mutex<Disk>>);

#[derive(Debug)]
struct Handle(Sim, usize);

impl Sim {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// A new journal with a short log.
    pub(super) fn formatted(id: &Identity, options: Options) -> Self {
        let sim = Self::new();
        Writer::format(sim.pair(), id, layout(id.geometry), options).unwrap();
        sim
    }

    pub(super) fn pair(&self) -> Pair {
        [0, 1].map(|file| Box::new(Handle(self.clone(), file)) as Box<dyn Backing>)
    }

    /// Another disk with the same content, troubles apart.
    pub(super) fn fork(&self) -> Self {
        let mut disk = self.disk().clone();
        (disk.trouble, disk.ops) = (None, 0);
        Self(Arc::new(Mutex::new(disk)))
    }

    /// Another disk: this one after a loss of power.
    pub(super) fn crashed(&self, seed: u64) -> Self {
        let sim = self.fork();
        sim.disk().lose(seed);
        sim
    }

    pub(super) fn limit_space(&self, bytes: u64) {
        self.disk().space = Some(bytes);
    }

    pub(super) fn syncs(&self) -> u64 {
        self.disk().syncs
    }

    pub(super) fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }
}

impl Backing for Handle {
    fn reserve(&self, len: u64, fresh: bool) -> io::Result<()> {
        let mut disk = self.0.disk();
        if fresh {
            if disk.space.is_some_and(|space| space < len) {
                return Err(ErrorKind::StorageFull.into());
            }
            disk.space = disk.space.map(|space| space - len);
            let zeros = vec![0; len as usize];
            disk.files[self.1] = SimFile {
                live: zeros.clone(),
                durable: zeros,
                dirty: BTreeSet::new(),
            };
        }
        // Space that a file lost is taken again.
        disk.files[self.1].live.resize(len as usize, 0);
        disk.files[self.1].durable.resize(len as usize, 0);
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let disk = self.0.disk();
        let from = disk.files[self.1]
            .live
            .get(at as usize..at as usize + buf.len());
        buf.copy_from_slice(from.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut disk = self.0.disk();
        let happens = disk.step();
        let file = &mut disk.files[self.1];
        let at = at as usize;
        assert!(at % SECTOR == 0, "writes begin at a sector");
        assert!(at + bytes.len() <= file.live.len(), "a write needs space");
        // What a write that did not return has done is unknown: the sectors may be new.
        file.live[at..at + bytes.len()].copy_from_slice(bytes);
        file.dirty
            .extend(at / SECTOR..(at + bytes.len()).div_ceil(SECTOR));
        happens
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.0.disk();
        let happens = disk.step();
        if happens.is_err() {
            if matches!(disk.trouble, Some(Trouble::Failure(_))) {
                disk.files[self.1].dirty.clear();
            }
            return happens;
        }
        disk.syncs += 1;
        let file = &mut disk.files[self.1];
        for sector in std::mem::take(&mut file.dirty) {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            file.durable[range.clone()].copy_from_slice(&file.live[range]);
        }
        Ok(())
    }
}
