//! Every mistake that can be planted is found.

use shadowset::set::planted::{Mistake, plant};

use crate::kinds::Kind;
use crate::runs::{attempt, corpus};

/// Within so many seeds every planted mistake must be found.
const SEEDS_MAX: u64 = 10_000;

/// The kind of worlds that finds a mistake best.
fn kind_of(mistake: Mistake) -> Kind {
    use Mistake::*;
    match mistake {
        CommandWhileHalted => Kind::Busy,
        BlockOfLeaverAhead | ProofAhead | FlushWhileHalted | ForgetAhead => Kind::Bad,
        WriteUnkept => Kind::Lost,
        ReadUnmerged => Kind::Held,
        TailTrusted | GrowthWithoutHold | TailUnmerged | DryRunMarks => Kind::Growing,
        LastGivenUp | ReturnUnquiet | AbortUnfenced => Kind::Hanging,
        _ => Kind::Plain,
    }
}

/// The first seed that finds a mistake. One that takes long to find is in the corpus and tried before others.
fn find(mistake: Mistake) -> Option<(u64, String)> {
    let kind = kind_of(mistake);
    let known = corpus()
        .into_iter()
        .filter(|entry| Mistake::named(entry.finds) == Some(mistake));
    let known = known.inspect(|entry| assert_eq!(entry.kind, kind, "{mistake:?}"));
    plant(Some(mistake));
    let found = known
        .map(|entry| entry.seed)
        .chain(0..SEEDS_MAX)
        .find_map(|seed| Some((seed, attempt(&mut kind.world(seed, false)).err()?)));
    plant(None);
    found
}

/// The simulator finds every mistake; two of three are found by the seeds that every run of the tests has.
#[test]
fn planted_mistakes_are_caught() {
    let (mut missed, mut soon) = (Vec::new(), 0);
    for &mistake in Mistake::ALL {
        let kind = kind_of(mistake);
        match find(mistake) {
            Some((seed, text)) => {
                soon += usize::from(seed < kind.facts().seeds);
                println!("{mistake:?}: {} seed {seed}: {text}", kind.facts().name);
            }
            None => missed.push(mistake),
        }
    }
    let all = Mistake::ALL.len();
    println!("{soon} of {all} by the seeds of every run");
    assert!(
        missed.is_empty(),
        "not found in {SEEDS_MAX} seeds: {missed:?}"
    );
    assert!(3 * soon >= 2 * all, "only {soon} of {all} are found soon");
}
