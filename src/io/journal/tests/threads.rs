//! Many threads in one journal.

use std::sync::atomic::{AtomicBool, AtomicU64};

use super::disk::{Rng, Sim, Trouble};
use super::*;

/// A file whose sync waits until it is told, so that others can gather.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) file: Box<dyn Backing>,
    pub(super) syncs: Arc<AtomicU64>,
    pub(super) go: Arc<Mutex<()>>,
}

impl Backing for Held {
    fn reserve(&self, len: u64, fresh: bool) -> io::Result<()> {
        self.file.reserve(len, fresh)
    }
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_at(buf, at)
    }
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_at(bytes, at)
    }
    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        drop(self.go.lock().unwrap());
        self.file.sync()
    }
}

/// A journal whose syncs wait while the lock is held, and how many have begun.
fn held(sim: &Sim, id: &Identity) -> (Journal, Arc<AtomicU64>, Arc<Mutex<()>>) {
    let (syncs, go) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(())));
    let hold = |file| -> Box<dyn Backing> {
        Box::new(Held {
            file,
            syncs: Arc::clone(&syncs),
            go: Arc::clone(&go),
        })
    };
    let (journal, _) = Journal::open_on(sim.pair().map(hold), id, POWER).unwrap();
    (journal, syncs, go)
}

/// While one thread syncs, eleven others gather: one more sync serves the eight that need one, and
/// the three whose groups are under way need none.
#[test]
fn threads_that_wait_share_one_sync() {
    let g = unit(64 * 64);
    let id = Identity::of(SET, g);
    let sim = Sim::formatted(&id, POWER);
    let (journal, syncs, go) = held(&sim, &id);
    journal.add(record(1), &WriteBitmap::empty(g)).unwrap();
    let before = syncs.load(Ordering::SeqCst);
    let done = AtomicU64::new(0);
    let mark = |at| {
        let regions = regions(g, at, at + 1);
        journal.mark(&[BitmapId(1)], regions).unwrap();
        assert!(journal.covers(BitmapId(1), regions));
        done.fetch_add(1, Ordering::SeqCst);
    };
    std::thread::scope(|scope| {
        let held = go.lock().unwrap();
        scope.spawn(|| mark(0));
        eventually(|| (syncs.load(Ordering::SeqCst) == before + 1).then_some(()));
        for at in 1..=8 {
            scope.spawn(move || mark(at * 200));
        }
        for at in 1..=3 {
            scope.spawn(move || mark(at * 30));
        }
        eventually(|| (journal.gate.waiting() == 8).then_some(()));
        assert_eq!(
            done.load(Ordering::SeqCst),
            0,
            "nobody returns before the sync"
        );
        assert!(
            !journal.covers(BitmapId(1), regions(g, 0, 1)),
            "and nobody may rely on a mark before it"
        );
        drop(held);
    });
    assert_eq!(syncs.load(Ordering::SeqCst), before + 2);
    drop(journal);
    let (_, maps) = Journal::open_on(sim.crashed(3).pair(), &id, POWER).unwrap();
    assert_eq!(maps[0].1.count(), 9 * 128);
}

/// Every `step`th region.
fn every(g: Geometry, step: usize) -> WriteBitmap {
    let ones = (0..g.regions()).step_by(step).map(|at| (at, at + 1));
    only(g, &ones.collect::<Vec<_>>())
}

/// A large unit: bits in all its words do not fit a batch.
fn wide() -> Geometry {
    unit(64 * 1100 + 5)
}

/// The bits of a seed may be set by others while it is absorbed, in a batch or in a snapshot; those
/// set too late are not durable and must not pass for it.
#[test]
fn a_bit_that_is_set_during_an_absorb_does_not_count() {
    let g = wide();
    let id = Identity::of(SET, g);
    for (step, late) in [(7000, 3), (50, 3)] {
        let sim = Sim::formatted(&id, POWER);
        let (journal, syncs, go) = held(&sim, &id);
        journal.add(record(1), &WriteBitmap::empty(g)).unwrap();
        let seed = every(g, step);
        let before = syncs.load(Ordering::SeqCst);
        std::thread::scope(|scope| {
            let held = go.lock().unwrap();
            scope.spawn(|| journal.absorb(BitmapId(1), &seed).unwrap());
            eventually(|| (syncs.load(Ordering::SeqCst) > before).then_some(()));
            assert!(!journal.covers(BitmapId(1), regions(g, 0, 1)), "too early");
            seed.mark(regions(g, late, late + 1));
            drop(held);
        });
        assert!(journal.covers(BitmapId(1), regions(g, 0, 1)));
        assert!(!journal.covers(BitmapId(1), regions(g, late, late + 1)));
        let (_, maps) = Journal::open_on(sim.crashed(5).pair(), &id, POWER).unwrap();
        assert_eq!(set_regions(&maps[0].1), set_regions(&every(g, step)));
    }
}

/// A mark that comes while a snapshot with absorbed bits is written waits for it, and is in the
/// log behind it.
#[test]
fn a_mark_that_waits_for_an_absorb_is_not_lost() {
    let g = wide();
    let id = Identity::of(SET, g);
    let sim = Sim::formatted(&id, POWER);
    let (journal, syncs, go) = held(&sim, &id);
    journal.add(record(1), &WriteBitmap::empty(g)).unwrap();
    let (seed, before) = (every(g, 50), syncs.load(Ordering::SeqCst));
    std::thread::scope(|scope| {
        let held = go.lock().unwrap();
        scope.spawn(|| journal.absorb(BitmapId(1), &seed).unwrap());
        eventually(|| (syncs.load(Ordering::SeqCst) > before).then_some(()));
        scope.spawn(|| journal.mark(&[BitmapId(1)], regions(g, 3, 4)).unwrap());
        eventually(|| (journal.gate.waiting() == 1).then_some(()));
        assert!(!journal.covers(BitmapId(1), regions(g, 3, 4)));
        drop(held);
    });
    assert!(journal.covers(BitmapId(1), regions(g, 0, 128)));
    let (_, maps) = Journal::open_on(sim.crashed(5).pair(), &id, POWER).unwrap();
    seed.mark(regions(g, 0, 128));
    assert_eq!(set_regions(&maps[0].1), set_regions(&seed));
}

/// More marks than a batch takes, at the end of a log: those of the first batch are in the snapshot
/// that makes room for the second one.
#[test]
fn marks_that_take_two_batches_survive_the_end_of_the_log() {
    let g = unit(64 * 6000);
    let id = Identity::of(SET, g);
    let sim = Sim::formatted(&id, POWER);
    let (journal, _) = Journal::open_on(sim.pair(), &id, POWER).unwrap();
    journal.add(record(1), &WriteBitmap::empty(g)).unwrap();
    let run = |first| gate::Run {
        key: BitmapId(1),
        first,
        end: first + 1,
    };
    let runs: Vec<_> = (0..6000).step_by(2).map(run).collect();
    journal
        .gate
        .mark(&runs, |runs| journal.commit(runs))
        .unwrap();
    let (_, maps) = Journal::open_on(sim.crashed(1).pair(), &id, POWER).unwrap();
    assert_eq!(maps[0].1.count(), 3000 * 64);
}

/// What one thread was promised: these runs of map 0 are durable.
type Promised = Vec<(u64, u64)>;

/// Marks regions of map 0, most of them in clean groups, until the power is gone.
fn mark_until_the_end(journal: &Journal, g: Geometry, seed: u64) -> Promised {
    let (mut rng, mut promised) = (Rng::new(seed), Vec::new());
    for _ in 0..60 {
        let first = rng.below(g.regions() - 3);
        let end = first + 1 + rng.below(3);
        if journal
            .mark(&[BitmapId(0)], regions(g, first, end))
            .is_err()
        {
            break;
        }
        assert!(journal.covers(BitmapId(0), regions(g, first, end)));
        promised.push((first, end));
    }
    promised
}

/// What the last map but 0 has to hold at least and at most.
#[derive(Default)]
struct Last {
    id: u32,
    least: Promised,
}

/// Adds maps, absorbs into map 0 and into them, retains little of them, and removes them.
fn change_until_the_end(journal: &Journal, g: Geometry, seed: u64) -> (Promised, Last) {
    let (mut rng, mut promised, mut last) = (Rng::new(seed), Vec::new(), Last::default());
    let mut round = |id: u32| -> io::Result<()> {
        journal.add(record(id), &WriteBitmap::empty(g))?;
        let before = std::mem::replace(&mut last, Last { id, least: vec![] });
        let bits = every(g, [9000, 50][rng.below(2) as usize]);
        let at = rng.below(g.regions());
        bits.mark(regions(g, at, at + 1));
        journal.absorb(BitmapId(id), &bits)?;
        last.least = vec![(0, 1), (at, at + 1)];
        journal.retain(BitmapId(id), &only(g, &last.least));
        journal.absorb(BitmapId(0), &bits)?;
        promised.extend(set_regions(&bits).into_iter().map(|at| (at, at + 1)));
        if rng.below(3) == 0 {
            journal.checkpoint()?;
        }
        if before.id > 0 {
            journal.remove(BitmapId(before.id))?;
        }
        Ok(())
    };
    let _ = (1..12).try_for_each(&mut round);
    (promised, last)
}

/// Threads that mark clean groups while another one changes everything, until the power is lost:
/// nothing that returned is lost.
#[test]
fn many_threads_lose_nothing() {
    let g = wide();
    let id = Identity::of(SET, g);
    let cut = AtomicBool::new(false);
    for seed in 0..40 {
        let sim = Sim::formatted(&id, POWER);
        let (journal, _) = Journal::open_on(sim.pair(), &id, POWER).unwrap();
        journal.add(record(0), &WriteBitmap::empty(g)).unwrap();
        let ops = sim.disk().ops;
        sim.disk().trouble = Some(Trouble::PowerLoss(ops + 7 * seed));
        let (mut promised, last) = std::thread::scope(|scope| {
            let journal = &journal;
            let mark = |n| scope.spawn(move || mark_until_the_end(journal, g, seed * 10 + n));
            let markers: Vec<_> = (0..6).map(mark).collect();
            let (promised, last) = change_until_the_end(journal, g, seed);
            let marked = markers.into_iter().flat_map(|m| m.join().unwrap());
            ([promised, marked.collect()].concat(), last)
        });
        cut.fetch_or(journal.check().is_err(), Ordering::SeqCst);
        drop(journal);
        let (_, maps) = Journal::open_on(sim.crashed(seed).pair(), &id, POWER).unwrap();
        let map = |id| maps.iter().find(|m| m.0.tag.id == BitmapId(id));
        promised.sort_unstable();
        for (first, end) in promised {
            let there = map(0).unwrap().1.covers(regions(g, first, end));
            assert!(there, "seed {seed}: regions {first} to {end} are lost");
        }
        for (first, end) in last.least {
            let there = map(last.id).unwrap().1.covers(regions(g, first, end));
            assert!(there, "seed {seed}: map {} lost {first}", last.id);
        }
        assert!(maps.len() <= 3, "seed {seed}: {} maps", maps.len());
    }
    assert!(cut.into_inner(), "no loss of power came into a run");
}
