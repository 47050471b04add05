//! A model of generations and elections, checked in every state: what the blocks of the members, the journal and
//! the images can be after any crash, and what the next mount makes of them.
//!
//! The election and the order of the blocks are the product's own. The writing side is a model of the server: each
//! change is a plan of durable operations, and the program may end between any two of them.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails where the model is not as it must be"
)]

mod mount;
mod properties;
mod server;
mod state;

use std::collections::BTreeSet;
use std::time::Instant;

use stateright::{Checker, Property};

use crate::state::{Members, Op, Role, State, Told, bit};

/// A mistake of the server that the model can make, and the properties must find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mistake {
    /// A write is acknowledged before the expulsion of who missed it is durable.
    AckAhead,
    /// An expulsion writes no new generation.
    NoGeneration,
    /// The journal proves a generation before the blocks have it.
    ProofAhead,
    /// A mount counts as proven before its first block is written.
    OpeningProves,
    /// A mount goes on in the line of the one before.
    MountWithoutMark,
    /// A copied member becomes a source before it is flushed.
    PromoteUnflushed,
    /// A write sets its bits when it is acknowledged.
    Unmarked,
    /// A stop marks the members clean without a flush.
    CleanUnflushed,
}

/// How much may happen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    members: usize,
    hosts: usize,
    writes: u8,
    mounts: u64,
    changes: u8,
    failures: u8,
}

/// The model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    bounds: Bounds,
    mistake: Option<Mistake>,
}

/// What can happen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Deed {
    Mount(usize, Members),
    Step,
    Write,
    Put(usize),
    Fail(usize),
    Settle,
    Flush,
    /// A flush of the server's own, after which old write-intent bitmaps are needless.
    Trim,
    Rotate,
    Detach(usize),
    Expel(usize),
    Attach(usize),
    Fill(usize),
    Stop,
    Kill,
    /// Who keeps what was not flushed.
    PowerLoss(Members),
    /// The operator gives a member up after a refusal that names it.
    GiveUp(usize),
    /// The operator removes the journal after a refusal.
    RemoveJournal(usize),
}

impl Model {
    pub(crate) fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn while_down(&self, state: &State, deeds: &mut Vec<Deed>) {
        let all = bit(state.disks.len()) - 1;
        if let Some(Told::Refused {
            host,
            split,
            word,
            visible,
        }) = &state.told
        {
            let named = word.filter(|_| *split);
            deeds.extend(named.map(Deed::GiveUp));
            if *visible == all && !split {
                deeds.push(Deed::RemoveJournal(*host));
            }
            return;
        }
        if state.mounts < self.bounds.mounts {
            let hosts = 0..self.bounds.hosts;
            deeds.extend(
                hosts.flat_map(|host| (1..=all).map(move |visible| Deed::Mount(host, visible))),
            );
        }
    }

    fn while_up(&self, state: &State, deeds: &mut Vec<Deed>) {
        let Some(run) = &state.run else { return };
        deeds.push(Deed::Kill);
        let unflushed = |place: &usize| state.disks[*place].shown != state.disks[*place].durable;
        let unflushed = (0..state.disks.len())
            .filter(unflushed)
            .map(bit)
            .sum::<u8>();
        // Where hosts part the set kills alone are enough to follow.
        let alone = self.bounds.hosts == 1;
        let kept = (0..=unflushed).filter(|kept| alone && kept & !unflushed == 0);
        deeds.extend(kept.map(Deed::PowerLoss));
        if !run.plan.is_empty() {
            return deeds.push(Deed::Step);
        }
        if run.write.is_some() {
            return self.while_writing(state, deeds);
        }
        if state.writes < self.bounds.writes {
            deeds.push(Deed::Write);
        }
        deeds.extend([Deed::Stop]);
        if alone && state.flushed != state.promised {
            deeds.push(Deed::Flush);
        }
        let journal = &state.journals[run.host];
        match journal.intents.len() {
            _ if !alone => {}
            1 if journal.doubt() => deeds.push(Deed::Rotate),
            1 => {}
            _ => deeds.push(Deed::Trim),
        }
        self.changes(state, deeds);
    }

    fn while_writing(&self, state: &State, deeds: &mut Vec<Deed>) {
        let Some(run) = &state.run else { return };
        let Some(write) = &run.write else { return };
        let todo = (0..state.disks.len()).filter(|place| write.todo & bit(*place) != 0);
        deeds.extend(todo.clone().map(Deed::Put));
        let good =
            |place: usize| run.roles[place] == Role::Source && write.failed & bit(place) == 0;
        let others =
            |place: usize| (0..state.disks.len()).any(|other| other != place && good(other));
        if state.failures < self.bounds.failures {
            deeds.extend(todo.filter(|place| others(*place)).map(Deed::Fail));
        }
        if write.todo == 0 {
            deeds.push(Deed::Settle);
        }
    }

    /// What the operator can do about the members, and copies that can be done.
    fn changes(&self, state: &State, deeds: &mut Vec<Deed>) {
        let Some(run) = &state.run else { return };
        let sources = run
            .roles
            .iter()
            .filter(|role| **role == Role::Source)
            .count();
        for (place, role) in run.roles.iter().enumerate() {
            if matches!(role, Role::Target | Role::Merging) {
                deeds.push(Deed::Fill(place));
            }
            if state.changes == self.bounds.changes {
                continue;
            }
            match role {
                Role::Source if sources > 1 => {
                    deeds.extend([Deed::Detach(place), Deed::Expel(place)]);
                }
                Role::Target | Role::Merging => deeds.push(Deed::Expel(place)),
                Role::Detached | Role::Expelled | Role::Missing
                    if run.visible & bit(place) != 0 =>
                {
                    deeds.push(Deed::Attach(place));
                }
                _ => {}
            }
        }
    }

    fn happen(&self, state: &mut State, deed: Deed) {
        state.told = None;
        let changes = matches!(deed, Deed::Detach(_) | Deed::Expel(_) | Deed::Attach(_));
        state.changes += u8::from(changes);
        match deed {
            Deed::Mount(host, visible) => self.mount(state, host, visible),
            Deed::Step => self.step(state),
            Deed::Write => self.write(state),
            Deed::Put(place) | Deed::Fail(place) => {
                put(state, place, matches!(deed, Deed::Fail(_)));
            }
            Deed::Settle => {
                let failed = state
                    .run
                    .as_ref()
                    .and_then(|run| run.write.as_ref())
                    .map_or(0, |w| w.failed);
                match failed {
                    0 => state
                        .run
                        .iter_mut()
                        .for_each(|run| run.plan.push_back(Op::Ack)),
                    failed => self.expel(state, failed, Some(Op::Ack)),
                }
            }
            Deed::Flush => self.flush(state, true),
            Deed::Trim => self.flush(state, false),
            Deed::Rotate => self.rotate(state),
            Deed::Detach(place) => self.detach(state, place),
            Deed::Expel(place) => self.expel(state, bit(place), None),
            Deed::Attach(place) => self.attach(state, place),
            Deed::Fill(place) => self.fill(state, place),
            Deed::Stop => self.stop(state),
            Deed::Kill => state.run = None,
            Deed::PowerLoss(kept) => state.lose_power(kept),
            Deed::GiveUp(place) => state.give_up(place),
            Deed::RemoveJournal(host) => state.remove_journal(host),
        }
    }
}

fn put(state: &mut State, place: usize, fails: bool) {
    let Some(write) = state.run.as_mut().and_then(|run| run.write.as_mut()) else {
        return;
    };
    write.todo &= !bit(place);
    match fails {
        true => {
            write.failed |= bit(place);
            state.failures += 1;
        }
        false => state.disks[place].shown |= write.value,
    }
}

impl State {
    fn lose_power(&mut self, kept: Members) {
        self.run = None;
        for (place, disk) in self.disks.iter_mut().enumerate() {
            match kept & bit(place) {
                0 => disk.shown = disk.durable,
                _ => disk.durable = disk.shown,
            }
        }
        self.promised = self.flushed;
        self.known
            .iter_mut()
            .for_each(|known| *known &= self.flushed);
    }

    /// What only this member holds is given up with it.
    fn give_up(&mut self, place: usize) {
        self.parted = true;
        self.disks[place].block = None;
        let others = self.claiming(u8::MAX).map(|disk| disk.shown);
        let held = others.fold(0, |held, shown| held | shown);
        self.forget_but(held);
    }

    /// What nobody who is there holds as a source is given up.
    fn remove_journal(&mut self, host: usize) {
        self.parted = true;
        self.journals[host].intents.clear();
        self.journals[host].own.fill(None);
        self.known[host] = 0;
    }

    fn forget_but(&mut self, held: u8) {
        self.promised &= held;
        self.flushed &= held;
        self.known.iter_mut().for_each(|known| *known &= held);
    }
}

impl stateright::Model for Model {
    type State = State;
    type Action = Deed;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.bounds.members, self.bounds.hosts)]
    }

    fn actions(&self, state: &State, deeds: &mut Vec<Deed>) {
        match state.run {
            None => self.while_down(state, deeds),
            Some(_) => self.while_up(state, deeds),
        }
    }

    fn next_state(&self, state: &State, deed: Deed) -> Option<State> {
        let mut next = state.clone();
        self.happen(&mut next, deed);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

/// Worlds that together have everything: one host with changes of membership, two that part the set.
const WORLDS: [Bounds; 5] = [
    world(2, 1, 2, 2, (1, 1)),
    world(3, 1, 1, 2, (1, 0)),
    world(2, 2, 2, 3, (0, 0)),
    world(3, 2, 1, 2, (0, 1)),
    world(2, 1, 1, 2, (2, 0)),
];

const fn world(
    members: usize,
    hosts: usize,
    writes: u8,
    mounts: u64,
    (changes, failures): (u8, u8),
) -> Bounds {
    Bounds {
        members,
        hosts,
        writes,
        mounts,
        changes,
        failures,
    }
}

fn number(name: &str) -> u8 {
    let number = std::env::var(name).ok().and_then(|text| text.parse().ok());
    number.unwrap_or(0)
}

/// Every state of each world has all that must hold; what must come about does in some. `MODEL_MORE` says how much
/// more of everything happens.
#[test]
fn every_state_of_the_model() {
    let (more, mut seen) = (number("MODEL_MORE"), BTreeSet::new());
    let only: Option<usize> = std::env::var("MODEL_WORLD")
        .ok()
        .and_then(|text| text.parse().ok());
    for (n, mut bounds) in WORLDS.into_iter().enumerate() {
        if only.is_some_and(|only| only != n) {
            continue;
        }
        bounds.mounts += u64::from(more);
        bounds.changes += more;
        bounds.failures += more;
        let (begun, model) = (
            Instant::now(),
            Model {
                bounds,
                mistake: None,
            },
        );
        let checker = stateright::Model::checker(model)
            .threads(2)
            .spawn_bfs()
            .join();
        let (states, depth) = (checker.unique_state_count(), checker.max_depth());
        println!(
            "{bounds:?}: {states} states, depth {depth}, {:?}",
            begun.elapsed()
        );
        for (name, path) in checker.discoveries() {
            assert!(!properties::must_hold(name), "{name}: {path:#?}");
            seen.insert(name);
        }
    }
    let missing = properties::must_happen().filter(|name| !seen.contains(name));
    assert_eq!(
        missing.collect::<Vec<_>>(),
        Vec::<&str>::new(),
        "never came about"
    );
}

/// Each mistake breaks the property that is there for it, in some world.
#[test]
fn mistakes_break_properties() {
    let lost = "the master has every promised write";
    let mistakes = [
        (Mistake::AckAhead, lost),
        (Mistake::NoGeneration, lost),
        (Mistake::PromoteUnflushed, lost),
        (
            Mistake::ProofAhead,
            "a set that has not parted can be mounted",
        ),
        (
            Mistake::OpeningProves,
            "a set that has not parted can be mounted",
        ),
        (
            Mistake::MountWithoutMark,
            "diverged copies are not taken for one set",
        ),
        (Mistake::Unmarked, "what differs is known to be stale"),
        (Mistake::CleanUnflushed, "no source is behind"),
    ];
    for (mistake, property) in mistakes {
        // Only hosts that part the set need marks to be told apart.
        let parts = mistake == Mistake::MountWithoutMark;
        let bounds = WORLDS[if parts { 2 } else { 0 }];
        let model = Model {
            bounds,
            mistake: Some(mistake),
        };
        let finds = stateright::HasDiscoveries::AnyOf([property].into());
        let checker = stateright::Model::checker(model)
            .finish_when(finds)
            .spawn_bfs()
            .join();
        println!("{mistake:?}: {} states", checker.unique_state_count());
        let found = checker.discoveries();
        assert!(
            found.contains_key(property),
            "{mistake:?} breaks {:?}",
            found.keys()
        );
    }
}
