//! The journal on a disk that loses power, or fails, at every single file operation.
//!
//! A script of random changes runs against a plain model. What was acknowledged must be there
//! afterwards; what is there must be what was acknowledged or under way.

use std::collections::BTreeMap;

use super::super::planted::{Mistake, plant};
use super::disk::{Rng, SECTOR, Sim, Trouble};
use super::threads::{buffered, single};
use super::*;

/// What a map has to hold: `live` at least, and at most what was not retained but may be on disk still.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Known {
    record: BitmapRecord,
    live: Vec<bool>,
    may: Vec<bool>,
}

type Model = BTreeMap<BitmapId, Known>;

/// What a script does.
#[derive(Clone, Debug)]
enum Op {
    Add(BitmapRecord, Vec<bool>),
    Describe(BitmapRecord),
    Absorb(BitmapId, Vec<bool>),
    Remove(BitmapId),
    Mark(Vec<BitmapId>, u64, u64),
    Retain(BitmapId, Vec<bool>),
    Checkpoint,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    seed: u64,
    geometry: Geometry,
    options: Options,
}

impl Case {
    fn new(seed: u64) -> Self {
        let large = seed % 4 == 3;
        Self {
            seed,
            geometry: unit(if large { 64 * 1100 + 5 } else { 64 * 6 + 7 }),
            options: Options {
                durability: Durability::Power,
                grain_words: [1, 2, 7][seed as usize % 3],
            },
        }
    }

    fn id(&self) -> Identity {
        Identity {
            set: SET,
            geometry: self.geometry,
            boot: Uuid::from_u128(1),
        }
    }

    /// Opens the journal that a run left, in the message mode of the case.
    fn open(&self, sim: &Sim) -> Result<(Journal, Vec<(BitmapRecord, WriteBitmap)>), OpenError> {
        let opened = Journal::open_on(sim.pair(), &self.id(), self.options)?;
        match (self.seed + self.seed / 4) % 3 {
            0 => {}
            1 => opened.0.set_messages(single()),
            // Nobody else comes in a script.
            _ => opened.0.set_messages(buffered(0)),
        }
        Ok(opened)
    }

    fn bits(&self, rng: &mut Rng) -> Vec<bool> {
        let (kind, n) = (rng.below(3), self.geometry.regions());
        (0..n)
            .map(|_| kind > 0 && rng.below(n) < [0, 20, n / 2][kind as usize])
            .collect()
    }

    fn op(&self, rng: &mut Rng, model: &Model) -> Op {
        let keys: Vec<BitmapId> = model.keys().copied().collect();
        let record = |key: BitmapId, rng: &mut Rng| {
            let mut record = record(key.0);
            record.tag.generation = rng.below(1000);
            record.owner = Uuid::from_u64_pair(0, rng.below(1000));
            record
        };
        let n = self.geometry.regions();
        let first = rng.below(n);
        let len = if rng.below(10) == 0 { n } else { 3 };
        let end = (first + 1 + rng.below(len)).min(n);
        if keys.is_empty() || (keys.len() < 6 && rng.below(8) == 0) {
            let key = BitmapId(rng.below(1000) as u32);
            if !model.contains_key(&key) {
                return Op::Add(record(key, rng), self.bits(rng));
            }
        }
        let key = keys[rng.below(keys.len() as u64) as usize];
        match rng.below(20) {
            0 => Op::Describe(record(key, rng)),
            1 | 4 => Op::Absorb(key, self.bits(rng)),
            2 => Op::Remove(key),
            3 => Op::Checkpoint,
            5 => Op::Retain(key, self.bits(rng)),
            6..9 => {
                let mut left = model[&key].live.clone();
                left[first as usize..end as usize].fill(false);
                Op::Retain(key, left)
            }
            _ => {
                let some = keys.into_iter().filter(|_| rng.below(2) == 0);
                Op::Mark(some.collect(), first, end)
            }
        }
    }

    fn bitmap(&self, bits: &[bool]) -> WriteBitmap {
        let words = bits.chunks(64).map(|word| {
            let bits = word.iter().enumerate();
            bits.fold(0, |word, (i, set)| word | u64::from(*set) << i)
        });
        WriteBitmap::from_words(self.geometry, words)
    }

    fn carry_out(&self, journal: &Journal, op: &Op) -> io::Result<()> {
        let run = |first, end| regions(self.geometry, first, end);
        match op {
            Op::Add(record, bits) => journal.add(*record, &self.bitmap(bits)),
            Op::Describe(record) => journal.describe(*record),
            Op::Absorb(key, bits) => {
                let bits = self.bitmap(bits);
                journal.absorb(*key, &bits)?;
                let durable = durable(journal, *key);
                let mut both = durable.iter().zip(bits.words());
                assert!(both.all(|(durable, bits)| durable & bits == bits));
                Ok(())
            }
            Op::Remove(key) => journal.remove(*key),
            Op::Mark(keys, first, end) => {
                journal.mark(keys, run(*first, *end))?;
                assert!(keys.iter().all(|k| journal.covers(*k, run(*first, *end))));
                Ok(())
            }
            Op::Retain(key, left) => {
                let left = self.bitmap(left);
                journal.retain(*key, &left);
                let durable = durable(journal, *key);
                let mut both = durable.iter().zip(left.words());
                assert!(both.all(|(durable, left)| durable & !left == 0));
                Ok(())
            }
            Op::Checkpoint => journal.checkpoint(),
        }
    }

    fn expect(&self, model: &mut Model, op: &Op) {
        match op {
            Op::Add(record, bits) => {
                let known = Known {
                    record: *record,
                    live: bits.clone(),
                    may: bits.clone(),
                };
                model.insert(record.tag.id, known);
            }
            Op::Describe(record) => known(model, record.tag.id).record = *record,
            Op::Absorb(key, bits) => {
                let map = known(model, *key);
                for (at, _) in bits.iter().enumerate().filter(|(_, set)| **set) {
                    (map.live[at], map.may[at]) = (true, true);
                }
            }
            Op::Remove(key) => {
                model.remove(key);
            }
            Op::Mark(keys, first, end) => {
                for key in keys {
                    self.expect_mark(known(model, *key), *first, *end);
                }
            }
            Op::Retain(key, left) => {
                let live = known(model, *key).live.iter_mut();
                live.zip(left).for_each(|(live, left)| *live &= left);
            }
            Op::Checkpoint => {
                for map in model.values_mut() {
                    map.may = map.live.clone();
                }
            }
        }
    }

    /// Whole groups, unless every region of the run was there already.
    fn expect_mark(&self, map: &mut Known, first: u64, end: u64) {
        if map.live[first as usize..end as usize]
            .iter()
            .all(|set| *set)
        {
            return;
        }
        let group = 64 * u64::from(self.options.grain_words);
        let first = (first / group * group) as usize;
        let end = end.next_multiple_of(group).min(self.geometry.regions()) as usize;
        map.live[first..end].fill(true);
        map.may[first..end].fill(true);
    }
}

/// The words that the journal takes for durable.
fn durable(journal: &Journal, key: BitmapId) -> Vec<u64> {
    let maps = journal.maps.load();
    let map = maps.iter().find(|m| m.record.tag.id == key).unwrap();
    map.words.iter().collect()
}

fn known(model: &mut Model, key: BitmapId) -> &mut Known {
    model.get_mut(&key).unwrap()
}

/// Whether what was read is what the model allows.
fn agrees(got: &[(BitmapRecord, WriteBitmap)], model: &Model) -> bool {
    got.len() == model.len()
        && got.iter().all(|(record, bits)| {
            let Some(map) = model.get(&record.tag.id) else {
                return false;
            };
            let bits = bits.to_bits();
            let inside = bits.iter().by_vals().zip(map.live.iter().zip(&map.may));
            map.record == *record
                && bits.len() == map.live.len()
                && inside
                    .into_iter()
                    .all(|(bit, (live, may))| (bit || !live) && (!bit || *may))
        })
}

/// Runs a script; the models before and behind the change that did not return, if one did not.
fn run(case: &Case, journal: &Journal, start: &Model, seed: u64) -> (Model, Option<Model>) {
    let (mut rng, mut model) = (Rng::new(seed), start.clone());
    for _ in 0..70 {
        let op = case.op(&mut rng, &model);
        let mut next = model.clone();
        case.expect(&mut next, &op);
        match case.carry_out(journal, &op) {
            Ok(()) => model = next,
            Err(_) => {
                // Latched: whatever writes is refused from now on.
                assert!(journal.check().is_err());
                assert!(journal.checkpoint().is_err());
                let key = model.keys().next().copied().unwrap_or(BitmapId(0));
                let all = case.geometry.all_regions();
                let empty = WriteBitmap::empty(case.geometry);
                let mut there = model.keys();
                assert!(
                    there.all(|k| journal.covers(*k, all) || journal.mark(&[*k], all).is_err())
                );
                assert!(journal.remove(key).is_err());
                assert!(
                    journal
                        .absorb(key, &WriteBitmap::full(case.geometry))
                        .is_err()
                );
                assert!(journal.add(record(2000), &empty).is_err());
                return (model, Some(next));
            }
        }
    }
    (model, None)
}

fn model_of(got: &[(BitmapRecord, WriteBitmap)]) -> Model {
    let known = got.iter().map(|(record, bits)| {
        let live: Vec<bool> = bits.to_bits().iter().by_vals().collect();
        let may = live.clone();
        (
            record.tag.id,
            Known {
                record: *record,
                live,
                may,
            },
        )
    });
    known.collect()
}

/// Opens what a run left and compares; `Err` says what is wrong.
fn reopen(
    case: &Case,
    sim: &Sim,
    models: &(Model, Option<Model>),
) -> Result<(Journal, Model), String> {
    let (journal, got) = case.open(sim).map_err(|e| e.to_string())?;
    let (before, after) = models;
    let good = agrees(&got, before) || after.as_ref().is_some_and(|m| agrees(&got, m));
    if good {
        Ok((journal, model_of(&got)))
    } else {
        Err("other maps or bits".to_owned())
    }
}

/// One script with trouble at one operation, the loss of power, then a second script with the
/// same fate.
fn round(case: &Case, base: &Sim, trouble: Option<Trouble>, loss: u64) -> Result<u64, String> {
    let sim = base.fork();
    sim.disk().trouble = trouble;
    let opened = case.open(&sim);
    let models = match &opened {
        Ok((journal, _)) => run(case, journal, &Model::new(), case.seed),
        Err(_) => (Model::new(), None),
    };
    let ops = sim.disk().ops;
    assert!(trouble.is_some() || models.1.is_none());
    drop(opened);
    // The process ends, the machine does not.
    let end = sim.fork();
    match trouble {
        Some(Trouble::Failure(_)) => {
            reopen(case, &end, &models).map_err(|e| format!("without a loss of power: {e}"))?;
        }
        _ => {
            // What it has not synced is read, and the power goes at once.
            end.disk().trouble = Some(Trouble::PowerLoss(loss % 6));
            drop(case.open(&end));
            let end = end.crashed(loss + 2);
            reopen(case, &end, &models).map_err(|e| format!("a kill before the loss: {e}"))?;
        }
    }
    let sim = sim.crashed(loss);
    let (journal, model) = reopen(case, &sim, &models)?;
    let at = sim.disk().ops + loss % 90;
    sim.disk().trouble = Some(Trouble::PowerLoss(at));
    let models = run(case, &journal, &model, loss);
    drop(journal);
    let sim = sim.crashed(loss + 1);
    reopen(case, &sim, &models).map_err(|e| format!("the second time: {e}"))?;
    Ok(ops)
}

/// Trouble at the first, the second, the third operation until the script passes untouched.
fn all_rounds(seed: u64, kind: impl Fn(u64) -> Trouble) -> Result<(), String> {
    let case = Case::new(seed);
    let base = Sim::formatted(&case.id(), case.options);
    let ops = round(&case, &base, None, seed)?;
    for at in 0..=ops {
        for loss in 0..2 {
            round(&case, &base, Some(kind(at)), seed * 1000 + at * 2 + loss)
                .map_err(|e| format!("seed {seed}, {:?}, loss {loss}: {e}", kind(at)))?;
        }
    }
    Ok(())
}

#[test]
fn a_loss_of_power_at_any_operation_loses_nothing() {
    for seed in 0..4 {
        all_rounds(seed, Trouble::PowerLoss).unwrap();
    }
}

#[test]
fn a_failure_at_any_operation_latches_and_loses_nothing() {
    for seed in 4..8 {
        all_rounds(seed, Trouble::Failure).unwrap();
    }
}

/// Without trouble the maps are exactly those of the model, coarse by the grain alone.
#[test]
fn after_an_untroubled_run_the_maps_are_exact() {
    let mut most = 0;
    for seed in 0..60 {
        let case = Case::new(seed);
        let sim = Sim::formatted(&case.id(), case.options);
        let (journal, _) = case.open(&sim).unwrap();
        let (mut model, failed) = run(&case, &journal, &Model::new(), seed);
        assert!(failed.is_none());
        journal.checkpoint().unwrap();
        case.expect(&mut model, &Op::Checkpoint);
        drop(journal);
        let lives = sim.pair().map(|file| Segment::read(file.as_ref()).unwrap());
        let lives = lives.map(|segment| segment.header.life.number);
        assert_eq!(lives[0].abs_diff(lives[1]), 1, "{lives:?}");
        most = most.max(lives[0]);
        let (_, got) = case.open(&sim).unwrap();
        assert_eq!(model_of(&got), model, "seed {seed}");
    }
    assert!(most > 8, "the files took turns no more than {most} times");
}

/// Each mistake makes the tests above fail.
#[test]
fn planted_mistakes_are_found() {
    for mistake in [
        Mistake::SegmentNotSynced,
        Mistake::OpenedNotSynced,
        Mistake::OlderLife,
        Mistake::BatchNotSynced,
        Mistake::AbsorbNotDurable,
        Mistake::RetainDropsMore,
    ] {
        plant(Some(mistake));
        let found = (0..12).find_map(|seed| all_rounds(seed, Trouble::PowerLoss).err());
        plant(None);
        assert!(found.is_some(), "{mistake:?} went unseen");
    }
}

proptest! {
    /// One sector of any of the two files rots: the journal says so, or nothing is missing but the
    /// last batch, which looks like one that was never finished.
    #[test]
    fn rot_is_noticed(
        seed in 0u64..40, file in 0usize..2, place in any::<u64>(), bits in 1u8..=255, wide: bool,
    ) {
        let case = Case::new(seed);
        let sim = Sim::formatted(&case.id(), case.options);
        let (journal, _) = case.open(&sim).unwrap();
        let (mut model, _) = run(&case, &journal, &Model::new(), seed);
        let add = Op::Add(record(5000), vec![false; case.geometry.regions() as usize]);
        case.carry_out(&journal, &add).unwrap();
        case.expect(&mut model, &add);
        let before = model.clone();
        let mark = Op::Mark(vec![BitmapId(5000)], 1, 2);
        case.carry_out(&journal, &mark).unwrap();
        case.expect(&mut model, &mark);
        drop(journal);
        {
            let mut disk = sim.disk();
            let live = &mut disk.files[file].live;
            let len = live.len() as u64;
            // The front and the log see as much as the words, which are most of the file.
            let at = match place % 3 {
                0 => place / 3 % 8192,
                1 => len - 1 - place / 3 % (16 * 4096),
                _ => place / 3 % len,
            };
            let at = at as usize;
            if wide {
                live[at / SECTOR * SECTOR..][..SECTOR].fill(bits);
            } else {
                live[at] ^= bits;
            }
        }
        match case.open(&sim) {
            Ok((_, got)) => prop_assert!(agrees(&got, &model) || agrees(&got, &before)),
            Err(e) => prop_assert!(matches!(e, OpenError::Damaged(_)), "{}", e),
        }
    }

    /// Any number of bytes anywhere, and a file that was cut: never a panic.
    #[test]
    fn garbage_is_survived(
        seed in 0u64..40, noise in proptest::collection::vec((0usize..2, any::<u64>(), any::<u8>()), 1..40),
        cut in proptest::option::of(any::<u64>()),
    ) {
        let case = Case::new(seed);
        let sim = Sim::formatted(&case.id(), case.options);
        let (journal, _) = case.open(&sim).unwrap();
        run(&case, &journal, &Model::new(), seed);
        drop(journal);
        {
            let mut disk = sim.disk();
            for (file, at, value) in noise {
                let live = &mut disk.files[file].live;
                let at = at as usize % live.len();
                live[at] = value;
            }
            if let Some(len) = cut {
                let file = &mut disk.files[len as usize % 2];
                let len = len as usize % file.live.len();
                file.live.truncate(len);
            }
        }
        let _ = case.open(&sim);
    }
}
