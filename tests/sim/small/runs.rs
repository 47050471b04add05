//! The tests of the small world.

use shadowset::set::AttachPolicy;

use crate::small::deeds::Deed::{self, *};
use crate::small::explore::{Bounds, Found, explore, story};

/// Brings the second member back.
const COME_BACK: Deed = Attach(2, AttachPolicy::MinicopyOptional);

/// Everything that can begin.
fn everything(members: usize) -> Vec<Deed> {
    let mut begins = vec![
        Write(0, 1),
        Write(7, 2),
        Write(16, 1),
        Discard(0, 1),
        Flush,
        Read(0, 1),
    ];
    begins.extend([Doomed(0, 1), Tick, Merge, Stop, Kill, PowerLoss]);
    for m in 1..=members {
        begins.extend([FailOn(m), Detach(m), Expel(m), DeleteBitmap(m)]);
        begins.push(Attach(m, AttachPolicy::MinicopyOptional));
        begins.push(Attach(m, AttachPolicy::Full));
        begins.push(Attach(m, AttachPolicy::Compare));
    }
    begins
}

/// A member leaves and comes back, with writes across a border of regions, and crashes.
fn departures(members: usize) -> Bounds {
    Bounds {
        members,
        begins: vec![
            Write(7, 2),
            Flush,
            Detach(2),
            COME_BACK,
            Tick,
            Kill,
            PowerLoss,
        ],
        depth: 2,
        before: Vec::new(),
        states: usize::MAX,
    }
}

/// As [`departures`], from where the member is away and lacks a write.
fn returns(members: usize) -> Bounds {
    Bounds {
        begins: vec![Write(16, 1), Write(7, 2), COME_BACK, Detach(2), Kill],
        before: vec![Detach(2), Write(7, 2)],
        ..departures(members)
    }
}

/// Writes that fail, and what mends that.
fn failures(members: usize) -> Bounds {
    let compare = Attach(2, AttachPolicy::Compare);
    Bounds {
        begins: vec![
            Write(0, 1),
            Doomed(0, 1),
            FailOn(2),
            Discard(0, 1),
            Read(0, 1),
            Expel(2),
            Merge,
            compare,
            Stop,
            Kill,
        ],
        ..departures(members)
    }
}

fn at_once(members: usize) -> Bounds {
    Bounds {
        begins: everything(members),
        depth: 1,
        ..departures(members)
    }
}

fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok()
}

fn describe(name: &str, bounds: &Bounds, found: &Found) {
    let members = bounds.members;
    println!(
        "{name}, {members} members, depth {:?}: {} states, {} left by crashes, {} transitions, {} good ends, longest way {}, {:.1} s",
        found.depth,
        found.states,
        found.crashes,
        found.transitions,
        found.ends,
        found.longest,
        found.took.as_secs_f64()
    );
}

/// Every state of a world holds.
fn holds(name: &str, bounds: &Bounds) {
    let found = explore(bounds);
    describe(name, bounds, &found);
    if let Some((depth, way, text)) = &found.violation {
        panic!("{name}, depth {depth}: {text}\n{}", story(bounds, way));
    }
    assert!(found.ends > 0 && found.crashes > 10, "{name} is too small");
}

/// The worlds, the smallest first.
fn worlds(members: usize) -> [(&'static str, Bounds); 4] {
    [
        ("at once", at_once(members)),
        ("returns", returns(members)),
        ("departures", departures(members)),
        ("failures", failures(members)),
    ]
}

#[test]
fn every_order_of_two_members() {
    for (name, bounds) in worlds(2) {
        holds(name, &bounds);
    }
}

#[test]
fn every_order_of_three_members() {
    holds("at once", &at_once(3));
    let depth = 1;
    for (name, bounds) in [("departures", departures(3)), ("returns", returns(3))] {
        holds(name, &Bounds { depth, ..bounds });
    }
}

/// As deep as `SMALL_DEPTH` says, with two and three members unless `SMALL_MEMBERS` says one of them, and with everything
/// that can begin unless `SMALL_WORLD` names another world.
#[test]
fn as_deep_as_asked() {
    let Some(most) = number("SMALL_DEPTH") else {
        return println!("SMALL_DEPTH names no depth");
    };
    let only = number("SMALL_MEMBERS");
    let world = std::env::var("SMALL_WORLD").unwrap_or_default();
    let world = if world.is_empty() { "at once" } else { &world };
    for depth in 1..=most {
        for members in [2, 3]
            .into_iter()
            .filter(|n| only.is_none_or(|only| only == *n))
        {
            let mut worlds = worlds(members).into_iter();
            let (name, bounds) = worlds.find(|(name, _)| *name == world).expect("a world");
            holds(name, &Bounds { depth, ..bounds });
        }
    }
}

#[cfg(debug_assertions)]
mod mistakes {
    use shadowset::set::planted::{Mistake, plant};

    use super::*;

    /// Those that are found after so few states that every run can look for them, and in which world.
    const FOUND_SOON: [(Mistake, &str); 19] = [
        (Mistake::DiscardForgotten, "at once"),
        (Mistake::AckBeforeVerdict, "at once"),
        (Mistake::NoMerge, "at once"),
        (Mistake::CopyWithoutFence, "returns"),
        (Mistake::ReadTarget, "returns"),
        (Mistake::FirstRegionOnly, "departures"),
        (Mistake::BitAfterWrite, "departures"),
        (Mistake::NoRetirement, "departures"),
        (Mistake::NoSeed, "departures"),
        (Mistake::NoFence, "departures"),
        (Mistake::SkipTarget, "returns"),
        (Mistake::TrimWithoutFlush, "departures"),
        (Mistake::LeaveWithoutFlush, "departures"),
        (Mistake::MemoryBitFirst, "departures"),
        (Mistake::BitmapAfterView, "departures"),
        (Mistake::SeedForgotten, "departures"),
        (Mistake::NoMergeAtMount, "departures"),
        (Mistake::IntentClearedByAck, "departures"),
        (Mistake::GenerationFromClock, "departures"),
    ];
    /// So few states.
    const SOON: usize = 3000;

    /// What a world finds of a mistake.
    fn look(mistake: Mistake, bounds: &Bounds) -> Found {
        plant(Some(mistake));
        let found = explore(bounds);
        plant(None);
        found
    }

    #[test]
    fn the_small_world_finds_mistakes() {
        for (mistake, world) in FOUND_SOON {
            let bounds = worlds(2).into_iter().find(|(name, _)| *name == world);
            let bounds = bounds.expect("a world").1;
            let found = look(
                mistake,
                &Bounds {
                    states: SOON,
                    ..bounds
                },
            );
            println!("{mistake:?}: {} states", found.states);
            assert!(
                found.violation.is_some(),
                "{mistake:?} is not found in {world}"
            );
        }
    }

    /// With `SMALL_SURVEY` says of every mistake, or of the one that is named, which world finds it.
    #[test]
    fn survey() {
        let Ok(only) = std::env::var("SMALL_SURVEY") else {
            return println!("SMALL_SURVEY names no mistake");
        };
        let wanted = |m: &&Mistake| Mistake::named(&only).is_none_or(|named| named == **m);
        for mistake in Mistake::ALL.iter().filter(wanted) {
            let found = worlds(2).into_iter().find_map(|(name, bounds)| {
                let found = look(*mistake, &bounds);
                let (depth, _, text) = found.violation?;
                let text: String = text.chars().take(120).collect();
                Some(format!(
                    "{name}, depth {depth}, {} states: {text}",
                    found.states
                ))
            });
            println!(
                "{mistake:?}: {}",
                found.unwrap_or_else(|| "not found".to_owned())
            );
        }
    }
}
