//! Goes every way through a small world, things begun one by one: breadth first, by how many have begun.
//!
//! A world cannot be copied, so each state is reached anew from the start, by the acts that lead to it.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use shadowset::testing::{Path, Rng};

use crate::runs::catching;
use crate::small::deeds::{Act, Deed, STEPS, first};
use crate::world::{Checked, World};

/// Every so manieth state has to come to rest and to a good end.
const ENDS: usize = 50;

/// Which world is explored, and how far.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) members: usize,
    /// What may begin.
    pub(super) begins: Vec<Deed>,
    /// How many things begin at most.
    pub(super) depth: usize,
    /// What happens before, each to its end, one after the other.
    pub(super) before: Vec<Deed>,
    /// No more states than this.
    pub(super) states: usize,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) states: usize,
    pub(super) transitions: u64,
    pub(super) crashes: usize,
    /// States from which a good end was come to.
    pub(super) ends: usize,
    /// The longest way to a state.
    pub(super) longest: usize,
    /// The depth that was explored as a whole.
    pub(super) depth: Option<usize>,
    pub(super) took: Duration,
    /// The first violation: how many things had begun, the way to it, and what it is.
    pub(super) violation: Option<(usize, Vec<Act>, String)>,
}

pub(super) struct Explorer {
    bounds: Bounds,
    begun: Instant,
    seen: HashSet<u64>,
    crashed: HashSet<u64>,
    /// By how many things have begun: ways to states whose future is not known yet.
    open: Vec<VecDeque<Vec<Act>>>,
    found: Found,
}

/// Goes every way within bounds, up to the first violation.
pub(super) fn explore(bounds: &Bounds) -> Found {
    let bounds = bounds.clone();
    let mut open = vec![VecDeque::new(); bounds.depth + 1];
    open[0].push_back(Vec::new());
    let mut explorer = Explorer {
        bounds,
        begun: Instant::now(),
        seen: HashSet::new(),
        crashed: HashSet::new(),
        open,
        found: Found::default(),
    };
    explorer.run();
    explorer.found.states = explorer.seen.len();
    explorer.found.crashes = explorer.crashed.len();
    explorer.found.took = explorer.begun.elapsed();
    explorer.found
}

impl Explorer {
    fn run(&mut self) {
        for depth in 0..self.open.len() {
            while let Some(way) = self.open[depth].pop_front() {
                if self.seen.len() > self.bounds.states {
                    return;
                }
                self.follow(depth, &way);
                if self.found.violation.is_some() {
                    return;
                }
            }
            self.found.depth = Some(depth);
        }
    }

    /// Everything that can happen behind a way.
    fn follow(&mut self, depth: usize, way: &[Act]) {
        let world = self.at(way);
        let begins = self.bounds.begins.iter().copied();
        let begins = begins.filter(|_| depth < self.bounds.depth || world.crashed);
        let deeds: Vec<Deed> = begins
            .chain(STEPS)
            .filter(|deed| world.can(*deed))
            .collect();
        let fresh = world.crashed || self.crashed.insert(world.crash_number());
        let was_crashed = world.crashed;
        let mut world = Some(world);
        for deed in deeds {
            let crash = matches!(deed, Deed::Kill | Deed::PowerLoss);
            if crash && !fresh {
                continue;
            }
            let begins = !STEPS.contains(&deed) && !was_crashed;
            let mut path = Path::default();
            loop {
                let reached = world.take().unwrap_or_else(|| self.at(way));
                let act = |strike, choices: &[u8]| Act {
                    deed,
                    strike,
                    choices: choices.to_vec(),
                };
                let (took, ops) = self.take(
                    reached,
                    way,
                    act(0, &path.choices),
                    depth + usize::from(begins),
                );
                path = took;
                let strikes = depth + usize::from(begins) < self.bounds.depth;
                for strike in 1..if strikes { ops } else { 0 } {
                    let reached = self.at(way);
                    self.take(
                        reached,
                        way,
                        act(strike, &path.choices),
                        depth + 1 + usize::from(begins),
                    );
                }
                if self.found.violation.is_some() {
                    return;
                }
                if !path.advance() {
                    break;
                }
            }
        }
    }

    /// The world at the end of a way that was gone before.
    fn at(&self, way: &[Act]) -> World {
        let (mut world, begun) = first(self.bounds.members, &self.bounds.before, false);
        debug_assert!(begun.is_ok(), "{begun:?}");
        world.ops.replaying = true;
        for act in way {
            let (outcome, ..) = world.happen(act);
            debug_assert!(outcome.is_ok(), "{outcome:?}");
        }
        world.ops.replaying = false;
        world
    }

    /// Takes one act behind a way, and notes the state that it leads to.
    fn take(&mut self, mut world: World, way: &[Act], mut act: Act, depth: usize) -> (Path, u64) {
        self.found.transitions += 1;
        let mut taken = (Path::default(), 0);
        let outcome = catching(|| {
            let (outcome, path, ops) = world.happen(&act);
            taken = (path, ops);
            outcome?;
            match world.crashed {
                true => Ok(()),
                false => world.check_all(),
            }
        });
        act.choices.clone_from(&taken.0.choices);
        if let Err(text) = outcome {
            let way = way.iter().cloned().chain([act]).collect();
            self.found.violation = Some((depth, way, text));
            return taken;
        }
        let new = match world.crashed {
            true => self.crashed.insert(world.crash_number()),
            false => self.seen.insert(world.state_number()),
        };
        if !new {
            return taken;
        }
        let way: Vec<Act> = way.iter().cloned().chain([act]).collect();
        self.found.longest = self.found.longest.max(way.len());
        let ends = !world.crashed && self.seen.len() % ENDS == 0;
        if ends {
            self.found.ends += 1;
            if let Err(text) = catching(|| world.end_in_small()) {
                self.found.violation = Some((depth, way.clone(), format!("in the end: {text}")));
            }
        }
        if let Some(open) = self.open.get_mut(depth) {
            open.push_back(way);
        }
        taken
    }
}

impl World {
    /// From here on nothing happens but what was begun: it has to come to rest, and to a good end.
    pub(super) fn end_in_small(&mut self) -> Checked {
        self.rng = Rng::new(1);
        self.end_well()
    }
}

/// The way to a violation as the log of a run.
pub(super) fn story(bounds: &Bounds, way: &[Act]) -> String {
    let (mut world, begun) = first(bounds.members, &bounds.before, true);
    let outcome = catching(|| {
        begun?;
        for act in way {
            world.log(format!(
                "-- {:?} strike {} choices {:?}",
                act.deed, act.strike, act.choices
            ));
            world.happen(act).0?;
        }
        Ok(())
    });
    format!("{}\n{outcome:?}", world.last_operations(200).join("\n"))
}
