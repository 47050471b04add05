//! Many threads in one journal.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

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

/// Message modes that never switch: single-message, and buffered-message mode with an interval in milliseconds.
pub(super) fn single() -> MessageSettings {
    MessageSettings {
        mode: MessageMode::Manual,
        upper: u64::MAX,
        ..MessageSettings::default()
    }
}

pub(super) fn buffered(interval_ms: u64) -> MessageSettings {
    MessageSettings {
        mode: MessageMode::Manual,
        interval_ms,
        upper: 0,
        lower: 0,
    }
}

/// Twelve threads announce while the first commit is held: in single-message mode each gets a commit of its
/// own, in the order in which they came, and nobody returns before it.
#[test]
fn single_messages_are_committed_one_by_one() {
    let g = unit(64 * 64);
    let id = Identity::of(SET, g);
    let sim = Sim::formatted(&id, POWER);
    let (journal, syncs, go) = held(&sim, &id);
    journal.add(record(1), &WriteBitmap::empty(g)).unwrap();
    journal.set_messages(single());
    let before = syncs.load(Ordering::SeqCst);
    let done = Mutex::new(Vec::new());
    let mark = |at| {
        let regions = regions(g, at * 200, at * 200 + 1);
        journal.mark(&[BitmapId(1)], regions).unwrap();
        done.lock().unwrap().push(at);
    };
    let mark = &mark;
    std::thread::scope(|scope| {
        let held = go.lock().unwrap();
        for at in 0..12 {
            scope.spawn(move || mark(at));
            eventually(|| {
                let begun = syncs.load(Ordering::SeqCst) == before + 1;
                (begun && journal.gate.waiting() as u64 == at).then_some(())
            });
        }
        assert!(done.lock().unwrap().is_empty());
        drop(held);
    });
    assert_eq!(syncs.load(Ordering::SeqCst), before + 12);
    let counts = journal.gate.counts();
    assert_eq!((counts.announcements(), counts.commits()), (12, 12));
    assert_eq!(counts.sizes()[0], 12, "each by itself");
    let (_, maps) = Journal::open_on(sim.crashed(3).pair(), &id, POWER).unwrap();
    assert_eq!(maps[0].1.count(), 12 * 128);
}

/// Eight announcements wait for a ninth, which has an hour to come; then one commit serves all nine.
#[test]
fn nine_buffered_messages_are_one_commit() {
    let g = unit(64 * 64);
    let id = Identity::of(SET, g);
    let sim = Sim::formatted(&id, POWER);
    let (journal, syncs, _) = held(&sim, &id);
    journal.add(record(1), &WriteBitmap::empty(g)).unwrap();
    journal.set_messages(buffered(3_600_000));
    let before = syncs.load(Ordering::SeqCst);
    let mark = |at: u64| {
        let regions = regions(g, at * 200, at * 200 + 1);
        journal.mark(&[BitmapId(1)], regions).unwrap();
        assert!(journal.covers(BitmapId(1), regions));
    };
    let mark = &mark;
    std::thread::scope(|scope| {
        for at in 0..8 {
            scope.spawn(move || mark(at));
        }
        // Writes to regions that wait already announce nothing.
        scope.spawn(|| mark(3));
        eventually(|| (journal.gate.waiting() == 8).then_some(()));
        assert_eq!(syncs.load(Ordering::SeqCst), before, "eight are not enough");
        assert!(!journal.covers(BitmapId(1), regions(g, 0, 1)));
        mark(8);
    });
    assert_eq!(syncs.load(Ordering::SeqCst), before + 1);
    // The tenth is alone. It goes with other rules, or with its interval.
    std::thread::scope(|scope| {
        scope.spawn(|| mark(9));
        eventually(|| (journal.gate.waiting() == 1).then_some(()));
        assert_eq!(syncs.load(Ordering::SeqCst), before + 1);
        journal.set_messages(buffered(20));
    });
    let begun = std::time::Instant::now();
    mark(10);
    assert!(
        begun.elapsed() >= Duration::from_millis(20),
        "it waits for others"
    );
    let sizes = journal.gate.counts().sizes();
    assert_eq!((sizes[8], sizes[0]), (1, 2), "{sizes:?}");
}

/// In every mode the first write to a region is announced and no other, whoever else writes there.
#[test]
fn only_the_first_write_to_a_region_is_announced() {
    let g = unit(64 * 64);
    let id = Identity::of(SET, g);
    let modes = [MessageSettings::default(), single(), buffered(1)];
    for settings in modes {
        let sim = Sim::formatted(&id, POWER);
        let (journal, _) = Journal::open_on(sim.pair(), &id, POWER).unwrap();
        journal.add(record(1), &WriteBitmap::empty(g)).unwrap();
        journal.set_messages(settings);
        let (groups, barrier) = (g.regions() / 128, std::sync::Barrier::new(4));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (journal, barrier) = (&journal, &barrier);
                scope.spawn(move || {
                    for group in 0..groups {
                        // All at once into one group, each into a region of its own.
                        barrier.wait();
                        for at in 0..3 {
                            let at = group * 128 + thread * 3 + at;
                            journal
                                .mark(&[BitmapId(1)], regions(g, at, at + 1))
                                .unwrap();
                        }
                    }
                });
            }
        });
        let counts = journal.gate.counts();
        assert_eq!(counts.announcements(), groups, "{settings:?}");
        assert!(counts.commits() <= groups);
    }
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
        .mark(&runs, |_| false, |runs| journal.commit(runs))
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
/// nothing that returned is lost, in no message mode.
#[test]
fn many_threads_lose_nothing() {
    let g = wide();
    let id = Identity::of(SET, g);
    let cut = AtomicBool::new(false);
    for seed in 0..40 {
        let sim = Sim::formatted(&id, POWER);
        let (journal, _) = Journal::open_on(sim.pair(), &id, POWER).unwrap();
        journal.add(record(0), &WriteBitmap::empty(g)).unwrap();
        match seed % 3 {
            0 => {}
            1 => journal.set_messages(single()),
            _ => journal.set_messages(buffered(1)),
        }
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
