//! A seed that fails, with as few of its steps as still fail.

use crate::kinds::Kind;
use crate::runs::attempt;
use crate::world::World;

/// Runs that a search may take.
const RUNS_MAX: usize = 4000;

/// Where a run of some steps fails: the last step that was begun, and why.
fn fails(kind: Kind, seed: u64, steps: &[u64]) -> Option<(u64, String)> {
    let mut world = kind.world(seed, false);
    world.turns.only = Some(steps.to_vec());
    let text = attempt(&mut world).err()?;
    Some((world.turns.last, text))
}

/// The steps of a seed that are enough for it to fail, and why it does; `None` for one that holds.
///
/// Pieces are left out, half of the steps first, then smaller ones (delta debugging, Zeller 1999), as long as what is
/// left fails in any way.
pub(crate) fn shrink(kind: Kind, seed: u64) -> Option<(Vec<u64>, String)> {
    let all: Vec<u64> = (0..kind.world(seed, false).plan.steps).collect();
    let (last, mut text) = fails(kind, seed, &all)?;
    let mut steps: Vec<u64> = (0..=last).collect();
    let (mut size, mut runs) = (steps.len() / 2, 0);
    while size > 0 && runs < RUNS_MAX {
        let (mut end, before) = (steps.len(), steps.len());
        while end > 0 && runs < RUNS_MAX {
            let start = end.saturating_sub(size);
            let mut fewer = steps.clone();
            fewer.drain(start..end.min(fewer.len()));
            runs += 1;
            if let Some((last, why)) = fails(kind, seed, &fewer) {
                fewer.retain(|step| *step <= last);
                (steps, text) = (fewer, why);
            }
            end = start.min(steps.len());
        }
        if size > 1 || steps.len() == before {
            size /= 2;
        }
    }
    Some((steps, text))
}

/// What to print of a seed that fails: why, the operations of the fewest steps, and what runs them again.
pub(crate) fn report(kind: Kind, seed: u64) -> String {
    let Some((steps, text)) = shrink(kind, seed) else {
        let name = kind.facts().name;
        return format!(
            "it holds when it runs again\nreplay: SIM_WORLD={name} SIM_SEED={seed} cargo test --test sim replay -- --nocapture\n"
        );
    };
    let mut world: World = kind.world(seed, true);
    world.turns.only = Some(steps.clone());
    let again = attempt(&mut world).err();
    let (name, operations) = (kind.facts().name, world.last_operations(120).join("\n"));
    format!(
        "with {} steps, same again {}: {text}\n{operations}\nreplay: SIM_WORLD={name} SIM_SEED={seed} SIM_STEPS={} \
         cargo test --test sim replay -- --nocapture\n",
        steps.len(),
        again.as_deref() == Some(&text),
        written(&steps),
    )
}

/// Steps as `SIM_STEPS` has them: `3-9,14`.
fn written(steps: &[u64]) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for step in steps {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *step => *last = *step,
            _ => runs.push((*step, *step)),
        }
    }
    let run = |(first, last): &(u64, u64)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

/// The steps that a text names.
pub(crate) fn read(text: &str) -> Vec<u64> {
    let number = |word: &str| word.parse::<u64>().expect("a number of a step");
    let run = |word: &str| match word.split_once('-') {
        Some((first, last)) => number(first)..=number(last),
        None => number(word)..=number(word),
    };
    text.split(',').flat_map(run).collect()
}

#[test]
fn steps_are_written_as_they_are_read() {
    let steps = [0, 1, 2, 5, 7, 8];
    assert_eq!(written(&steps), "0-2,5,7-8");
    assert_eq!(read(&written(&steps)), steps);
}

/// A mistake shows in few steps, and these are what fails again.
#[cfg(debug_assertions)]
#[test]
fn a_seed_that_fails_shrinks() {
    use shadowset::set::planted::{Mistake, plant};
    plant(Some(Mistake::DiscardForgotten));
    let mut seeds = 0..100;
    let seed = seeds.find(|seed| attempt(&mut Kind::Plain.world(*seed, false)).is_err());
    let seed = seed.expect("a seed that fails");
    let (steps, text) = shrink(Kind::Plain, seed).expect("it fails again");
    assert_eq!(fails(Kind::Plain, seed, &steps).expect("again").1, text);
    let all = Kind::Plain.world(seed, false).plan.steps;
    println!("seed {seed}: {} of {all} steps: {text}", steps.len());
    assert!(steps.len() < 40, "{steps:?}");
    let said = report(Kind::Plain, seed);
    assert!(
        said.contains("same again true") && said.contains("Discard"),
        "{said}"
    );
    plant(None);
}
