//! The tests: many seeds of every kind, once-failed seeds, planted mistakes, replay.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Instant;

use crate::kinds::{KINDS, Kind};
use crate::shrink;
use crate::world::{Marks, Ran, Violation, World};

/// So many seeds that fail are enough.
const FAILURES_MAX: usize = 20;
/// Of a thousand seeds of `SIM_SEEDS`, how many each kind that is not plain gets; a wide one costs as much as ten.
const PER_THOUSAND: u64 = 60;

thread_local! {
    static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// Panics of worlds are reported by the test, not twice.
fn silence() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !SILENT.get() {
                before(info);
            }
        }));
    });
}

/// Runs a world; a violation and a panic of the core are both a text.
pub(crate) fn attempt(world: &mut World) -> Result<Ran, String> {
    catching(|| world.run())
}

/// Runs something in a world; a violation and a panic are both a text.
pub(crate) fn catching<T>(run: impl FnOnce() -> Result<T, Violation>) -> Result<T, String> {
    silence();
    SILENT.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    SILENT.set(false);
    match outcome {
        Ok(outcome) => outcome.map_err(|violation| violation.0),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(format!("panic: {}", text.unwrap_or_default()))
        }
    }
}

pub(crate) fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Runs a seed twice: the second run must do what the first did.
fn twice(kind: Kind, seed: u64) -> Result<Ran, String> {
    let run = || attempt(&mut kind.world(seed, false));
    let ran = run()?;
    let again = run().map(|again| (again.trace, again.steps));
    match again == Ok((ran.trace, ran.steps)) {
        true => Ok(ran),
        false => Err(format!("it does something else again: {again:?}")),
    }
}

/// What has come of many seeds.
#[derive(Default)]
struct Tally {
    steps: u64,
    marks: Marks,
    failures: Vec<(u64, String)>,
}

/// Runs seeds on as many threads as `SIM_THREADS` says.
fn run_all(kind: Kind, seeds: std::ops::Range<u64>) -> Tally {
    let (next, tally) = (AtomicU64::new(seeds.start), Mutex::new(Tally::default()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let outcome = twice(kind, seed);
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                Ok(ran) => {
                    tally.steps += 2 * ran.steps;
                    for (what, count) in ran.marks {
                        *tally.marks.entry(what).or_default() += count;
                    }
                }
                Err(text) => {
                    println!("{} seed {seed}: {text}", kind.facts().name);
                    tally.failures.push((seed, text));
                }
            }
            if tally.failures.len() >= FAILURES_MAX {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..number("SIM_THREADS").unwrap_or(1) {
            scope.spawn(work);
        }
    });
    tally.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// How many seeds of this kind are run: each kind has its share of `SIM_SEEDS`.
fn wanted(kind: Kind) -> u64 {
    let others = PER_THOUSAND * (KINDS.len() as u64 - 2) + PER_THOUSAND / 10;
    let share = match kind {
        Kind::Plain => 1000 - others,
        Kind::Wide => PER_THOUSAND / 10,
        _ => PER_THOUSAND,
    };
    match number("SIM_SEEDS") {
        Some(all) => all * share / 1000,
        None => kind.facts().seeds,
    }
}

/// Every seed of a kind holds, and the rare paths are taken.
fn hold(kind: Kind) {
    let (facts, first) = (kind.facts(), number("SIM_FIRST").unwrap_or(0));
    let (begun, seeds) = (Instant::now(), wanted(kind));
    let tally = run_all(kind, first..first + seeds);
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{}: {seeds} seeds twice, {} steps in {seconds:.1} s, {} crashes: {:#?}",
        facts.name,
        tally.steps,
        ["kill", "loss of power"]
            .map(|w| tally.marks.get(w).copied().unwrap_or(0))
            .iter()
            .sum::<u64>(),
        tally.marks
    );
    if let Some((seed, text)) = tally.failures.iter().min() {
        let failed = tally.failures.len();
        panic!(
            "{failed} seeds fail; seed {seed}: {text}\n{}",
            shrink::report(kind, *seed)
        );
    }
    for what in facts.rare.iter().filter(|_| seeds >= facts.seeds) {
        assert!(
            tally.marks.contains_key(what),
            "no seed has come to: {what}"
        );
    }
}

macro_rules! hold {
    ($($name:ident: $kind:ident,)+) => {
        $(#[test]
        fn $name() {
            hold(Kind::$kind);
        })+

        #[test]
        fn every_kind_is_run() {
            let run = [$(Kind::$kind),+];
            assert!(KINDS.iter().all(|facts| run.contains(&facts.kind)));
        }
    };
}

hold! {
    seeds_hold: Plain,
    seeds_hold_with_wide_requests: Wide,
    seeds_hold_with_bad_blocks: Bad,
    seeds_hold_with_bad_blocks_and_many_commands: Busy,
    seeds_hold_where_bitmaps_are_lost: Lost,
    seeds_hold_with_held_merges: Held,
    seeds_hold_while_units_grow: Growing,
    seeds_hold_while_members_hang: Hanging,
}

pub(crate) fn named(name: &str) -> Kind {
    let facts = KINDS.iter().find(|facts| facts.name == name);
    facts
        .unwrap_or_else(|| panic!("no world is named {name}"))
        .kind
}

/// Runs the seed of `SIM_SEED` and prints its operations; `SIM_WORLD` names its kind, `SIM_STEPS` the only steps.
#[test]
fn replay() {
    let Some(seed) = number("SIM_SEED") else {
        return println!("SIM_SEED names no seed");
    };
    let kind = named(&std::env::var("SIM_WORLD").unwrap_or("plain".to_owned()));
    let mut world = kind.world(seed, true);
    world.turns.only = std::env::var("SIM_STEPS")
        .ok()
        .map(|text| shrink::read(&text));
    println!("{:?}", world.plan);
    let outcome = attempt(&mut world);
    println!("{}", world.last_operations(usize::MAX).join("\n"));
    assert!(outcome.is_ok(), "seed {seed}: {outcome:?}");
}

/// A line of `corpus.txt`.
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) seed: u64,
    /// A planted mistake, or `-`.
    pub(crate) finds: &'static str,
}

/// Seeds that have found something.
pub(crate) fn corpus() -> Vec<Entry> {
    let lines = include_str!("corpus.txt").lines();
    let lines = lines.filter(|line| !line.starts_with('#'));
    let entry = |line: &'static str| {
        let mut words = line.split_whitespace();
        Some(Entry {
            kind: named(words.next()?),
            seed: words.next()?.parse().ok()?,
            finds: words.next()?,
        })
    };
    let entry = |line| entry(line).unwrap_or_else(|| panic!("no kind, seed and finding: {line}"));
    lines.map(entry).collect()
}

#[test]
fn seeds_that_once_failed_hold() {
    for Entry { kind, seed, .. } in corpus() {
        let outcome = twice(kind, seed);
        let name = kind.facts().name;
        assert!(
            outcome.is_ok(),
            "{name} {seed}: {outcome:?}\n{}",
            shrink::report(kind, seed)
        );
    }
}
