//! The election: a table of cases, and random histories with one true lineage.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::set::scb::ScbState::{Detached, Expelled, Merging, Source, Target};

const UNIT: Bytes = Bytes(1 << 20);

fn uuid(n: usize) -> Uuid {
    Uuid::from_u128(n as u128 + 1)
}

fn generation(n: u64) -> Generation {
    Generation::from_number(n).expect("in range")
}

/// The block of member `own` of a set whose members have these states.
fn block(own: usize, at: u64, clean: bool, states: &[ScbState]) -> Scb {
    let table: Vec<ScbRow> = states
        .iter()
        .enumerate()
        .map(|(n, state)| ScbRow {
            member: uuid(n),
            name: format!("m{n}"),
            path: PathBuf::from(format!("/m{n}")),
            state: *state,
        })
        .collect();
    Scb {
        set: Uuid::from_u128(900),
        member: uuid(own),
        name: table[own].name.clone(),
        state: table[own].state,
        label: "payroll".to_owned(),
        generation: generation(at),
        lineage: Lineage::new(1),
        geometry: Geometry::new(UNIT, 127).expect("valid"),
        clean,
        sequence: 1,
        table,
    }
}

fn found(n: usize, scb: ScbFound) -> Found {
    Found {
        name: format!("m{n}"),
        image: Some(UNIT),
        scb,
    }
}

fn read(n: usize, scb: Scb) -> Found {
    found(n, ScbFound::Read(scb))
}

fn started(found: &[Found]) -> Vec<Start> {
    assess(found).expect("assembles").starts
}

fn refused(found: &[Found]) -> (Code, String) {
    let refusal = assess(found).expect_err("refused");
    (refusal.code, refusal.text)
}

/// Two mounts of halves of one set, each without the other.
fn halves(a: u64, b: u64) -> [Found; 2] {
    let mut left = block(0, a, true, &[Source, Expelled]);
    let mut right = block(1, b, true, &[Expelled, Source]);
    left.lineage = left.lineage.mounted(generation(5), 20);
    right.lineage = right.lineage.mounted(generation(5), 30);
    [read(0, left), read(1, right)]
}

#[test]
fn equal_and_clean_members_are_all_sources() {
    let both = [Source, Source];
    let set = [
        read(0, block(0, 4, true, &both)),
        read(1, block(1, 4, true, &both)),
    ];
    let assembly = assess(&set).expect("assembles");
    assert_eq!(assembly.starts, [Start::Source, Start::Source]);
    assert_eq!((assembly.generation, assembly.clean), (generation(4), true));
    assert_eq!(
        (assembly.set, assembly.label.as_str()),
        (Uuid::from_u128(900), "payroll")
    );
    assert_eq!(assembly.geometry.size(), UNIT);
    assert_eq!(assembly.members, [Some(uuid(0)), Some(uuid(1))]);
}

#[test]
fn equal_and_unclean_members_are_merged_from_the_first_source() {
    let all = [Source, Source, Source];
    let set: Vec<Found> = (0..3).map(|n| read(n, block(n, 4, false, &all))).collect();
    assert_eq!(
        started(&set),
        [Start::Source, Start::Merging, Start::Merging]
    );
    let merging = [Merging, Source, Source];
    let set: Vec<Found> = (0..3)
        .map(|n| read(n, block(n, 4, false, &merging)))
        .collect();
    assert_eq!(
        started(&set),
        [Start::Merging, Start::Source, Start::Merging]
    );
    let set: Vec<Found> = (0..3)
        .map(|n| read(n, block(n, 4, true, &merging)))
        .collect();
    assert_eq!(
        started(&set),
        [Start::Merging, Start::Source, Start::Source]
    );
    assert_eq!(
        started(&set[..1]),
        [Start::Source],
        "the only one that is there"
    );
}

#[test]
fn the_newest_generation_wins_whatever_the_order() {
    let old = read(0, block(0, 3, false, &[Source, Source]));
    let new = read(1, block(1, 4, true, &[Target, Source]));
    assert_eq!(
        started(&[old.clone(), new.clone()]),
        [Start::FullCopy, Start::Source]
    );
    assert_eq!(started(&[new, old]), [Start::Source, Start::FullCopy]);
}

#[test]
fn a_departure_is_known_from_the_newest_table() {
    let states = [Source, Detached, Expelled, Target];
    let was = [Source; 4];
    let set = [
        read(0, block(0, 9, true, &states)),
        read(1, block(1, 8, false, &was)),
        read(2, block(2, 8, false, &was)),
        read(3, block(3, 9, true, &states)),
    ];
    let expected = [
        Start::Source,
        Start::Detached,
        Start::Expelled,
        Start::FullCopy,
    ];
    assert_eq!(started(&set), expected);
}

#[test]
fn a_departed_member_may_lack_its_block_or_have_a_damaged_one() {
    let states = [Source, Detached, Detached];
    let set = [
        read(0, block(0, 9, true, &states)),
        found(1, ScbFound::None),
        found(2, ScbFound::Damaged("bad".to_owned())),
    ];
    let assembly = assess(&set).expect("assembles");
    assert_eq!(
        assembly.starts,
        [Start::Source, Start::Detached, Start::Detached]
    );
    assert_eq!(
        assembly.members,
        [Some(uuid(0)), Some(uuid(1)), Some(uuid(2))]
    );
}

#[test]
fn what_is_not_there_is_missing() {
    let states = [Source, Source, Source];
    let gone = Found {
        image: None,
        ..read(1, block(1, 9, true, &states))
    };
    let set = [
        read(0, block(0, 9, true, &states)),
        gone,
        found(2, ScbFound::None),
    ];
    assert_eq!(
        started(&set),
        [Start::Source, Start::Missing, Start::Missing]
    );
}

#[test]
fn a_set_without_blocks_was_never_created() {
    let set = [found(0, ScbFound::None), found(1, ScbFound::None)];
    let (code, text) = refused(&set);
    assert_eq!(code, Code::Config);
    assert!(text.contains("never been created"), "{text}");
    assert!(
        assess(&set)
            .expect_err("refused")
            .hint()
            .contains("shadowset create")
    );
    assert_eq!(refused(&[]).0, Code::Config);
}

#[test]
fn a_damaged_block_of_a_present_member_is_refused_by_name() {
    let good = read(0, block(0, 9, true, &[Source, Source]));
    let bad = found(
        1,
        ScbFound::Damaged("/m1.scb: the checksum is wrong".to_owned()),
    );
    for set in [vec![good, bad.clone()], vec![bad]] {
        let (code, text) = refused(&set);
        assert_eq!(code, Code::Config);
        assert!(text.contains("m1") && text.contains("/m1.scb"), "{text}");
    }
}

#[test]
fn an_image_of_another_set_is_refused_by_name() {
    let mut other = block(1, 30, true, &[Source, Source]);
    other.set = Uuid::from_u128(901);
    let ours = |n| read(n, block(n, 3, true, &[Source, Source, Source]));
    for set in [
        vec![ours(0), read(1, other.clone())],
        vec![read(1, other), ours(0), ours(2)],
    ] {
        let (code, text) = refused(&set);
        assert_eq!(code, Code::OtherSet);
        assert!(text.starts_with("m1 belongs"), "{text}");
    }
}

#[test]
fn one_member_twice_is_refused() {
    let own = block(0, 3, true, &[Source, Source]);
    let (code, text) = refused(&[read(0, own.clone()), read(1, own)]);
    assert_eq!(code, Code::AlreadyMember);
    assert!(text.contains("m0 and m1"), "{text}");
}

#[test]
fn an_image_that_became_too_small_is_refused_with_both_numbers() {
    let states = [Source, Source];
    let small = Found {
        image: Some(Bytes(4096)),
        ..read(1, block(1, 9, true, &states))
    };
    let (code, text) = refused(&[read(0, block(0, 9, true, &states)), small.clone()]);
    assert_eq!(code, Code::MemberTooSmall);
    assert!(
        text.contains("m1") && text.contains("4096") && text.contains("1048576"),
        "{text}"
    );
    let gone = [Source, Detached];
    let set = [read(0, block(0, 10, true, &gone)), small];
    assert_eq!(
        started(&set),
        [Start::Source, Start::Detached],
        "it does not enter"
    );
}

#[test]
fn halves_that_were_changed_apart_are_refused_at_every_age() {
    for (a, b) in [(7, 7), (7, 6), (6, 7), (40, 6), (5, 5)] {
        let (code, text) = refused(&halves(a, b));
        assert_eq!(code, Code::SplitBrain, "{a} and {b}");
        assert!(text.contains("m0") && text.contains("m1"), "{text}");
    }
}

#[test]
fn a_member_that_was_only_left_behind_is_no_split() {
    let mut left = block(0, 9, false, &[Source, Expelled]);
    left.lineage = left.lineage.mounted(generation(5), 20);
    let behind = block(1, 4, true, &[Source, Source]);
    assert_eq!(
        started(&[read(0, left), read(1, behind)]),
        [Start::Source, Start::Expelled]
    );
}

#[test]
fn copy_targets_and_departed_members_are_never_sources() {
    for own in [Target, Detached, Expelled] {
        let (code, text) = refused(&[read(0, block(0, 9, true, &[own, Source]))]);
        assert_eq!(code, Code::NeedsCopy);
        assert!(
            text.contains("no source member") && text.contains("m0"),
            "{text}"
        );
    }
    // The newest source is known but not there; what is left is older.
    let gone = Found {
        image: None,
        ..read(0, block(0, 9, true, &[Source, Expelled]))
    };
    let refusal = assess(&[gone, read(1, block(1, 8, true, &[Source, Source]))]);
    let refusal = refusal.expect_err("refused");
    assert_eq!(refusal.code, Code::NeedsCopy);
    assert!(refusal.hint().contains("m0"), "{}", refusal.hint());
}

/// One event of a history.
#[derive(Clone, Debug)]
enum Event {
    Detach(usize),
    Expel(usize),
    Attach(usize),
    Complete(usize),
    CleanStop,
    Crash,
}

fn event(members: usize) -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..members).prop_map(Event::Detach),
        (0..members).prop_map(Event::Expel),
        (0..members).prop_map(Event::Attach),
        (0..members).prop_map(Event::Complete),
        Just(Event::CleanStop),
        Just(Event::Crash),
    ]
}

/// A set with its blocks as a server writes them; a budget of block writes ends in a crash.
struct World {
    blocks: Vec<Scb>,
    states: Vec<ScbState>,
    generation: Generation,
    lineage: Lineage,
    clean: bool,
    /// Members that the running server sees.
    here: Vec<bool>,
    mounted: bool,
    budget: usize,
    marks: u64,
}

impl World {
    fn new(members: usize, budget: usize) -> Self {
        let states = vec![Source; members];
        Self {
            blocks: (0..members).map(|n| block(n, 1, true, &states)).collect(),
            states,
            generation: Generation::FIRST,
            lineage: Lineage::new(1),
            clean: true,
            here: vec![true; members],
            mounted: false,
            budget,
            marks: 1,
        }
    }

    /// Writes one block, unless the crash comes first.
    fn write(&mut self, n: usize) -> bool {
        let Some(left) = self.budget.checked_sub(1) else {
            return false;
        };
        self.budget = left;
        let fresh = block(n, self.generation.number(), self.clean, &self.states);
        self.blocks[n] = Scb {
            lineage: self.lineage.clone(),
            ..fresh
        };
        true
    }

    /// The next generation: sources first, then targets. `late` members have just become sources.
    fn advance(&mut self, late: Option<usize>) -> bool {
        self.generation = self.generation.next();
        let mut order: Vec<usize> = (0..self.states.len())
            .filter(|n| self.here[*n] && !self.states[*n].has_left())
            .collect();
        order.sort_by_key(|n| (!self.states[*n].claims_data(), Some(*n) == late));
        order.into_iter().all(|n| self.write(n))
    }

    fn sources(&self) -> usize {
        self.states.iter().filter(|s| s.claims_data()).count()
    }

    fn leave(&mut self, n: usize, state: ScbState) -> bool {
        let only = self.states[n].claims_data() && self.sources() == 1;
        if only || self.states[n].has_left() {
            return true;
        }
        self.states[n] = state;
        // An expelled member cannot be written any more.
        self.advance(None) && (state == Expelled || self.write(n))
    }

    /// Carries out an event; `false` is a crash.
    fn apply(&mut self, event: &Event) -> bool {
        match *event {
            Event::Detach(n) => self.leave(n, Detached),
            Event::Expel(n) => self.leave(n, Expelled),
            Event::Attach(n) if self.here[n] && self.states[n].has_left() => {
                self.states[n] = Target;
                self.advance(None)
            }
            Event::Complete(n) if matches!(self.states[n], Target | Merging) => {
                self.states[n] = Source;
                self.advance(Some(n))
            }
            Event::Attach(_) | Event::Complete(_) => true,
            Event::CleanStop => {
                self.clean = true;
                self.mounted = !self.advance(None);
                false
            }
            Event::Crash => false,
        }
    }

    fn found(&self, absent: &[bool]) -> Vec<Found> {
        let one = |(n, scb): (usize, &Scb)| Found {
            image: (!absent[n]).then_some(UNIT),
            ..found(
                n,
                if absent[n] {
                    ScbFound::None
                } else {
                    ScbFound::Read(scb.clone())
                },
            )
        };
        self.blocks.iter().enumerate().map(one).collect()
    }

    /// Takes over an assembly as a server does at mount.
    fn mount(&mut self, assembly: &Assembly, absent: &[bool]) -> bool {
        self.generation = assembly.generation;
        self.marks += 1;
        self.lineage = assembly.lineage.mounted(self.generation.next(), self.marks);
        self.clean = false;
        self.here = absent.iter().map(|a| !a).collect();
        self.states = assembly
            .starts
            .iter()
            .map(|start| match start {
                Start::Source => Source,
                Start::Merging => Merging,
                Start::FullCopy => Target,
                Start::Detached => Detached,
                Start::Expelled | Start::Missing => Expelled,
            })
            .collect();
        self.advance(None)
    }

    /// Absent members, but never the last holder of the newest generation that has the data.
    fn absent(&self, wanted: &[bool]) -> Vec<bool> {
        let newest = self.blocks.iter().map(|b| b.generation).max();
        let holds = |b: &Scb| Some(b.generation) == newest && b.state.claims_data();
        let keep = self.blocks.iter().position(holds);
        (0..self.blocks.len())
            .map(|n| wanted[n] && Some(n) != keep)
            .collect()
    }
}

/// One life of the server: who is absent, how many block writes it lives, what happens.
type Life = (Vec<bool>, usize, Vec<Event>);

fn life(members: usize) -> impl Strategy<Value = Life> {
    (
        proptest::collection::vec(prop::bool::weighted(0.2), members),
        0usize..24,
        proptest::collection::vec(event(members), 0..8),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn one_lineage_always_assembles_from_its_newest_sources(
        lives in proptest::collection::vec(life(4), 1..12),
        order in Just((0..4).collect::<Vec<usize>>()).prop_shuffle(),
    ) {
        let mut world = World::new(4, 0);
        for (wanted, budget, events) in lives {
            let absent = world.absent(&wanted);
            let in_order = world.found(&absent);
            let newest = world.blocks.iter().zip(&absent).filter(|(_, a)| !**a)
                .map(|(b, _)| b.generation).max().expect("somebody is here");
            let assembly = assess(&in_order);
            prop_assert!(assembly.is_ok(), "{:?}\n{:#?}", assembly.err(), in_order);
            let assembly = assembly.expect("checked");
            prop_assert_eq!(assembly.generation, newest);
            for (n, start) in assembly.starts.iter().enumerate() {
                if matches!(start, Start::Source | Start::Merging) {
                    let own = &world.blocks[n];
                    prop_assert_eq!(own.generation, newest, "m{}", n);
                    prop_assert!(own.state.claims_data() && !absent[n], "m{}", n);
                }
            }
            let unequal = assembly.starts.iter().filter(|s| **s == Start::Source).count();
            prop_assert!(assembly.clean || unequal == 1, "{:?}", assembly.starts);

            // The order of the configuration decides nothing but who is the master.
            let shuffled: Vec<Found> = order.iter().map(|n| in_order[*n].clone()).collect();
            let other = assess(&shuffled);
            prop_assert!(other.is_ok(), "{:?}", other.err());
            let other = other.expect("checked").starts;
            let kind = |s: Start| if s == Start::Merging { Start::Source } else { s };
            for (at, n) in order.iter().enumerate() {
                prop_assert_eq!(kind(other[at]), kind(assembly.starts[*n]));
            }

            world.budget = budget;
            if world.mount(&assembly, &absent) {
                let _ = events.iter().all(|e| world.apply(e));
            }
        }
    }

    /// The opposite: a source that goes on alone after the others went on without it is refused.
    #[test]
    fn lineages_that_parted_are_never_assembled(
        before in proptest::collection::vec(any::<bool>(), 0..4),
        left in proptest::collection::vec(event(1), 0..6),
        lives in (1usize..5, 1usize..5),
    ) {
        let mut world = World::new(2, 0);
        for clean in before {
            let none = [false, false];
            let assembly = assess(&world.found(&none)).expect("one lineage");
            world.budget = 100;
            prop_assert!(world.mount(&assembly, &none));
            prop_assert!(world.apply(&Event::Complete(0)) && world.apply(&Event::Complete(1)));
            world.apply(if clean { &Event::CleanStop } else { &Event::Crash });
        }
        let fork = world.blocks.clone();
        let mut ends = Vec::new();
        for (own, lives) in [lives.0, lives.1].into_iter().enumerate() {
            world.blocks.clone_from(&fork);
            let absent = [own != 0, own != 1];
            for _ in 0..lives {
                let assembly = assess(&world.found(&absent)).expect("a source is there");
                world.budget = 100;
                world.marks += 1000 * (own as u64 + 1);
                prop_assert!(world.mount(&assembly, &absent));
                let _ = left.iter().all(|e| world.apply(e));
            }
            ends.push(world.blocks[own].clone());
        }
        let both = [read(0, ends[0].clone()), read(1, ends[1].clone())];
        prop_assert_eq!(refused(&both).0, Code::SplitBrain);
    }
}
