//! The proof that schedules look: each planted mistake of the server's threads is found by one.

use std::panic::{AssertUnwindSafe, catch_unwind};

use shadowset::set::planted::{Mistake, plant};

use super::explore::{BATCH, By, Scenario};
use super::scenarios::*;

/// Within so many schedules each mistake must be found.
const WITHIN: usize = 20_000;

/// Where a mistake is looked for.
fn scenario(mistake: Mistake) -> Scenario {
    match mistake {
        Mistake::FencePassed | Mistake::WakeupLost => CROWD,
        Mistake::FlushHalfAwaited => FLUSHES,
        Mistake::FlushTriedAgain => UNFLUSHED,
        Mistake::VerdictNotAwaited => BROKEN,
        Mistake::CallForgotten => PARTS,
        Mistake::ClearedLate => CANCELLED,
        Mistake::GateNotAskedAgain => STALL,
        _ => CYCLE,
    }
}

/// How many schedules it takes, to the batch.
fn find(mistake: Mistake) -> Option<usize> {
    let (scenario, mut run) = (scenario(mistake), 0);
    for seed in 1.. {
        for by in [By::Random, By::Priority] {
            if run >= WITHIN {
                return None;
            }
            run += BATCH;
            let found = std::thread::spawn(move || {
                plant(Some(mistake));
                catch_unwind(AssertUnwindSafe(|| scenario.batch(by, seed))).is_err()
            });
            if found.join().expect("it is caught") {
                return Some(run);
            }
        }
    }
    None
}

#[test]
fn planted_mistakes_are_found() {
    let found = Mistake::SHELL
        .iter()
        .map(|mistake| (*mistake, find(*mistake)));
    let found: Vec<_> = found.inspect(|found| println!("{found:?}")).collect();
    let missed: Vec<_> = found
        .iter()
        .filter(|(_, within)| within.is_none())
        .collect();
    assert!(
        missed.is_empty(),
        "not within {WITHIN} schedules: {missed:?}"
    );
}

/// A schedule is decided by what the scheduler chooses, and by nothing else.
#[test]
fn a_schedule_can_be_repeated() {
    ALL.iter().for_each(|scenario| scenario.repeat(3));
}
