//! Every mistake that can be planted is found.

use shadowset::set::planted::{Mistake, plant};

use crate::kinds::Kind;
use crate::runs::{attempt, corpus, named, number};

/// The kind of worlds that finds a mistake best.
fn kind_of(mistake: Mistake) -> Kind {
    use Mistake::*;
    match mistake {
        CommandWhileHalted => Kind::Busy,
        BlockOfLeaverAhead | ProofAhead | FlushWhileHalted | ForgetAhead => Kind::Bad,
        WriteUnkept | LostHomeProves => Kind::Lost,
        ReadUnmerged => Kind::Held,
        TailTrusted | GrowthWithoutHold | TailUnmerged | DryRunMarks | LeaverGrows => Kind::Growing,
        LastGivenUp | ReturnUnquiet | PlaceUnquiet | AbortUnfenced => Kind::Hanging,
        _ => Kind::Plain,
    }
}

/// The first seed of a run of every test that finds a mistake: of its kind of worlds, or of the corpus.
fn find(mistake: Mistake) -> Option<(u64, String)> {
    let kind = kind_of(mistake);
    let known = corpus()
        .into_iter()
        .filter(|entry| Mistake::named(entry.finds) == Some(mistake));
    let known = known.inspect(|entry| assert_eq!(entry.kind, kind, "{mistake:?}"));
    plant(Some(mistake));
    let found = known
        .map(|entry| entry.seed)
        .chain(0..kind.facts().seeds)
        .find_map(|seed| Some((seed, attempt(&mut kind.world(seed, false)).err()?)));
    plant(None);
    found
}

/// So a build with any of them fails in a run of the tests. What is missed here has its first seed by
/// `SIM_HUNT=NAME SIM_SEEDS=100000 cargo test --profile sim --test sim hunt -- --nocapture`, and that goes into the corpus.
#[test]
fn planted_mistakes_are_caught() {
    let mut missed = Vec::new();
    for &mistake in Mistake::ALL {
        match find(mistake) {
            Some((seed, text)) => {
                let name = kind_of(mistake).facts().name;
                println!("{mistake:?}: {name} seed {seed}: {text}");
            }
            None => missed.push(mistake),
        }
    }
    assert!(
        missed.is_empty(),
        "not found by the seeds of every run: {missed:?}"
    );
}

#[test]
fn hunt() {
    let Ok(name) = std::env::var("SIM_HUNT") else {
        return println!("SIM_HUNT names no mistake");
    };
    let mistake = Mistake::named(&name).expect("a mistake");
    let kind = std::env::var("SIM_WORLD").map_or(kind_of(mistake), |name| named(&name));
    let most = number("SIM_SEEDS").unwrap_or(100_000);
    plant(Some(mistake));
    let first = (0..most).find(|seed| attempt(&mut kind.world(*seed, false)).is_err());
    plant(None);
    println!("{} {first:?} {mistake:?}", kind.facts().name);
    assert!(first.is_some(), "not within {most} seeds");
}
