//! The home of bitmaps, simulated: what has returned is durable, except for bits that a copy has
//! drained, which may come back after a crash.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use shadowset::set::{
    BitmapId, BitmapRecord, Bytes, Geometry, Home, HomeChange, Regions, WriteBitmap,
};
use shadowset::testing::Rng;

/// As many bitmaps as a journal has room for.
const ROOM: usize = 16;

/// A bitmap that is kept.
#[derive(Debug)]
struct Kept {
    record: BitmapRecord,
    bits: WriteBitmap,
    /// With the bits that were drained and may not be gone yet.
    late: Option<WriteBitmap>,
}

/// The home is broken: nothing more becomes durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Broken;

/// A home.
#[derive(Debug)]
pub(crate) struct SimHome {
    kept: RefCell<BTreeMap<BitmapId, Kept>>,
    /// What was kept before the unit grew last, and the size that it has grown to: it counts until the blocks
    /// say so.
    before: RefCell<Option<(Geometry, BTreeMap<BitmapId, Kept>)>>,
    /// Regions that one mark makes durable at once.
    grain: u64,
    pub(crate) broken: Cell<bool>,
    /// The next mark that has to reach the storage does not.
    pub(crate) refuses: Cell<bool>,
    /// Marks that had to reach the storage.
    pub(crate) commits: Cell<u64>,
    /// The set goes on in memory.
    pub(crate) given_up: Cell<bool>,
    /// Whether anything is kept: not with `durability = "memory"`.
    pub(crate) used: bool,
    /// Whether it is left alone in this life.
    rests: bool,
    /// The highest number that a bitmap has had.
    highest: Cell<u32>,
    /// The last life that served anybody has kept its bitmaps, and none since has given them up.
    pub(crate) sure: bool,
    /// A member was given up whose mounts the journal may know.
    pub(crate) of_given_up: bool,
    /// A change that a planted mistake holds back.
    pub(crate) held_back: Vec<HomeChange>,
}

impl Home for SimHome {
    type Error = Broken;

    fn mark(&self, bitmaps: &[BitmapId], regions: Regions) -> Result<(), Broken> {
        if !self.used || self.rests || self.given_up.get() {
            return Ok(());
        }
        let kept = self.kept.borrow();
        let stray = |id: &&BitmapId| id.0 == 0 || id.0 > self.highest.get();
        assert_eq!(bitmaps.iter().find(stray), None, "I3: never kept");
        let mine = || bitmaps.iter().filter_map(|id| kept.get(id));
        if mine().all(|map| map.bits.covers(regions)) {
            return Ok(());
        }
        if self.broken.get() {
            return Err(Broken);
        }
        self.commits.set(self.commits.get() + 1);
        if self.refuses.get() {
            return Err(Broken);
        }
        for map in mine() {
            let groups = self.groups(map.bits.geometry(), regions);
            map.bits.mark(groups);
            map.late.iter().for_each(|late| {
                late.mark(groups);
            });
        }
        Ok(())
    }
}

impl SimHome {
    pub(crate) fn new(used: bool, grain: u64) -> Self {
        Self {
            kept: RefCell::default(),
            before: RefCell::default(),
            grain,
            broken: Cell::new(false),
            refuses: Cell::new(false),
            commits: Cell::new(0),
            given_up: Cell::new(false),
            used,
            rests: false,
            highest: Cell::new(0),
            sure: false,
            of_given_up: false,
            held_back: Vec::new(),
        }
    }

    fn groups(&self, geometry: Geometry, regions: Regions) -> Regions {
        let first = regions.first().0 / self.grain * self.grain;
        let end = regions.end().0.div_ceil(self.grain) * self.grain;
        region_run(geometry, first, end.min(geometry.regions()))
    }

    /// The next life keeps its bitmaps in memory only, or no longer does.
    pub(crate) fn rest(&mut self, rests: bool) {
        self.rests = rests;
        self.broken.set(false);
        self.given_up.set(false);
    }

    /// All that decides what it does next.
    pub(crate) fn digest(&self) -> String {
        let highest = BitmapId(self.highest.get());
        let ends = (
            self.broken.get(),
            self.given_up.get(),
            self.rests,
            self.sure,
        );
        format!("{:?}", (self.kept.borrow().values(), ends, highest))
    }

    /// Whether bitmaps are kept now.
    pub(crate) fn keeps(&self) -> bool {
        self.used && !self.rests && !self.broken.get() && !self.given_up.get()
    }

    /// Carries out a change.
    pub(crate) fn change(&self, change: &HomeChange) {
        let mut kept = self.kept.borrow_mut();
        match change {
            HomeChange::Renew(geometry) => {
                let before = std::mem::take(&mut *kept);
                *self.before.borrow_mut() = Some((*geometry, before));
            }
            HomeChange::Add(record, map) => {
                let bits = map.snapshot();
                let new = Kept {
                    record: *record,
                    bits,
                    late: None,
                };
                let highest = self.highest.get().max(record.tag.id.0);
                self.highest.set(highest);
                let old = kept.insert(record.tag.id, new);
                assert!(old.is_none(), "{} is kept twice", record.tag.id);
                assert!(kept.len() <= ROOM, "too many bitmaps are kept");
            }
            HomeChange::Describe(record) => {
                let map = kept.get_mut(&record.tag.id);
                map.unwrap_or_else(|| panic!("{} is not kept", record.tag.id))
                    .record = *record;
            }
            HomeChange::Absorb(id, bits) => {
                let map = kept.get(id);
                let map = map.unwrap_or_else(|| panic!("{id} is not kept"));
                add(&map.bits, bits);
                map.late.iter().for_each(|late| add(late, bits));
            }
            HomeChange::Retain(left) => {
                let map = kept.get_mut(&left.id());
                let map = map.unwrap_or_else(|| panic!("{} is not kept", left.id()));
                let both = map.bits.words().zip(left.words()).map(|(a, b)| a & b);
                let both = WriteBitmap::from_words(left.geometry(), both).named(left.id());
                let before = std::mem::replace(&mut map.bits, both);
                map.late.get_or_insert(before);
            }
            HomeChange::Forget(id) => {
                let old = kept.remove(id);
                assert!(old.is_some(), "{id} is not kept");
            }
        }
    }

    /// Goes back to what was kept before the unit grew, when the blocks say that it has not.
    pub(crate) fn choose(&self, elect: impl Fn(&[BitmapRecord]) -> Option<Geometry>) {
        let Some((grown, before)) = self.before.take() else {
            return;
        };
        let records = self.records();
        if elect(&records).is_some_and(|elected| elected != grown) {
            self.kept.replace(before);
        }
    }

    /// What a crash leaves: the records and bits.
    pub(crate) fn after_crash(&self, rng: &mut Rng) -> Vec<(BitmapRecord, WriteBitmap)> {
        let mut kept = self.kept.borrow_mut();
        for map in kept.values_mut() {
            if let Some(late) = map.late.take() {
                if rng.chance(500) {
                    map.bits = late;
                }
            }
        }
        // As the journal has them: bits, and a record that names them.
        let bits = |map: &Kept| WriteBitmap::from_words(map.bits.geometry(), map.bits.words());
        kept.values().map(|map| (map.record, bits(map))).collect()
    }

    /// The records of all bitmaps.
    pub(crate) fn records(&self) -> Vec<BitmapRecord> {
        self.kept.borrow().values().map(|map| map.record).collect()
    }

    /// A new home, as after a crash that has left nothing to believe.
    pub(crate) fn renew(&mut self, believed: bool) {
        if !believed {
            self.kept.borrow_mut().clear();
        }
        self.broken.set(false);
        self.given_up.set(false);
    }

    /// The durable bits of a bitmap.
    pub(crate) fn with_bits<T>(&self, id: BitmapId, look: impl Fn(&WriteBitmap) -> T) -> Option<T> {
        self.kept.borrow().get(&id).map(|map| look(&map.bits))
    }

    /// Number of bitmaps that are kept.
    pub(crate) fn len(&self) -> usize {
        self.kept.borrow().len()
    }
}

/// The regions `first .. end`.
pub(crate) fn region_run(geometry: Geometry, first: u64, end: u64) -> Regions {
    let (start, end) = (
        first * geometry.region_bytes(),
        end * geometry.region_bytes(),
    );
    let end = end.min(geometry.size().0);
    let range = geometry.clip(Bytes(start), Bytes(end - start));
    geometry.regions_of(range.expect("regions of the unit"))
}

fn add(to: &WriteBitmap, bits: &WriteBitmap) {
    bits.runs().for_each(|run| {
        to.mark(run);
    });
}
