//! The election on random histories: of one lineage, and of lineages that parted.

use proptest::prelude::*;

use super::*;

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
                Start::Merging | Start::StillMerging => Merging,
                Start::Copy { .. } => Target,
                Start::Detached => Detached,
                Start::Expelled | Start::Released | Start::Missing { .. } => Expelled,
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
            let assembly = assess(&in_order, &[]);
            prop_assert!(assembly.is_ok(), "{:?}\n{:#?}", assembly.err(), in_order);
            let assembly = assembly.expect("checked");
            prop_assert_eq!(assembly.generation, newest);
            for (n, start) in assembly.starts.iter().enumerate() {
                if matches!(start, Start::Source | Start::Merging | Start::StillMerging) {
                    let own = &world.blocks[n];
                    prop_assert_eq!(own.generation, newest, "m{}", n);
                    prop_assert!(own.state.claims_data() && !absent[n], "m{}", n);
                }
            }
            let unequal = assembly.starts.iter().filter(|s| **s == Start::Source).count();
            prop_assert!(assembly.clean || unequal == 1, "{:?}", assembly.starts);

            // The order of the configuration decides nothing but who is the master.
            let shuffled: Vec<Found> = order.iter().map(|n| in_order[*n].clone()).collect();
            let other = assess(&shuffled, &[]);
            prop_assert!(other.is_ok(), "{:?}", other.err());
            let other = other.expect("checked").starts;
            let kind = |s: Start| match s {
                Start::Merging | Start::StillMerging => Start::Source,
                other => other,
            };
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
            let assembly = assess(&world.found(&none), &[]).expect("one lineage");
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
                let assembly = assess(&world.found(&absent), &[]).expect("a source is there");
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
