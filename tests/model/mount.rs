//! A mount: the election as the product has it, and the plan of the start, as `ShadowSet::assemble` and `begin` have it.

use std::collections::VecDeque;

use shadowset::set::assess::assess;
use shadowset::set::{Assembly, BitmapKind, Code, CopyKind, Refusal, Start};

use crate::state::{Intent, Journal, Kept, Members, Op, Role, Run, Start0, State, Told, bit};
use crate::{Mistake, Model};

/// Bitmaps of the last mount, as far as they are believed.
struct Past {
    known: bool,
    doubt: bool,
    /// Mark of that mount.
    last: u64,
}

impl Model {
    /// A mount by a host, with what it can see: refused, or a server whose plan is the start.
    pub(crate) fn mount(&self, state: &mut State, host: usize, visible: Members) {
        state.mounts += 1;
        let records = state.journals[host].records();
        let all = bit(state.disks.len()) - 1;
        state.parted |= visible != all || host != 0;
        let assembly = match assess(&state.found(visible), &records) {
            Ok(assembly) => assembly,
            Err(refusal) => {
                state.told = Some(refused(host, visible, &refusal));
                return;
            }
        };
        state.told = Some(elected(host, visible, &assembly, &state.journals[host]));
        if !assembly.believed {
            state.journals[host] = Journal {
                intents: Vec::new(),
                own: vec![None; state.disks.len()],
            };
        }
        let found = assembly.generation.number();
        let mounts = assembly.lineage.mounts().iter();
        let mut mounts: Vec<(u64, u64)> = mounts
            .map(|(first, mark)| (first.number(), *mark))
            .collect();
        let last = mounts.last().map_or(0, |mount| mount.1);
        if !self.makes(Mistake::MountWithoutMark) {
            mounts.push((found + 1, state.mounts));
        }
        let mut run = Run {
            host,
            visible,
            generation: found,
            mounts,
            roles: Vec::new(),
            plan: VecDeque::new(),
            write: None,
        };
        let past = Past {
            known: assembly.believed,
            doubt: state.journals[host].doubt() || !assembly.believed && !assembly.clean,
            last,
        };
        self.begin(&state.journals[host], &mut run, &assembly.starts, past);
        state.run = Some(run);
    }

    /// The first effects, as `ShadowSet::assemble` and `begin` have them.
    fn begin(&self, journal: &Journal, run: &mut Run, starts: &[Start], mut past: Past) {
        let master = starts
            .iter()
            .position(|s| *s == Start::Source)
            .expect("elected");
        past.doubt |= journal.own[master].as_ref().is_some_and(|own| own.set);
        // The oldest proof goes on; without one it begins with what is in doubt.
        if journal.intents.is_empty() {
            let intent = Intent {
                proves: true,
                generation: run.generation,
                mark: past.last,
                set: past.doubt,
            };
            run.plan.push_back(Op::Base(intent));
        } else {
            run.plan.push_back(Op::Inherit(past.doubt));
        }
        let mut spent = Vec::new();
        for (place, start) in starts.iter().enumerate() {
            let own = journal.own[place].clone();
            spent.extend(
                own.iter()
                    .filter(|_| *start == Start::Source)
                    .map(|_| place),
            );
            let (role, kept) = seat(*start, own, &past, run.generation);
            run.roles.push(role);
            run.plan.extend(kept.map(|kept| Op::Own(place, kept)));
        }
        run.plan
            .extend(spent.into_iter().map(|place| Op::Own(place, None)));
        let proven = self.makes(Mistake::OpeningProves);
        run.generation += 1;
        run.plan.push_back(Op::Intent(proven));
        self.write_down(run);
    }
}

/// What a member is from the start on, and what becomes of its bitmap where that changes.
fn seat(
    start: Start,
    own: Option<Kept>,
    past: &Past,
    generation: u64,
) -> (Role, Option<Option<Kept>>) {
    let set = past.doubt || own.as_ref().is_some_and(|own| own.set);
    let kept = |kind, generation, set| {
        Some(Some(Kept {
            kind,
            generation,
            set,
        }))
    };
    let copying = |kind, all: bool| kept(BitmapKind::Copying(kind), generation, all || set);
    let departed = |generation| kept(BitmapKind::Departed, generation, set);
    match start {
        Start::Source => (Role::Source, None),
        Start::Merging => (Role::Merging, copying(CopyKind::Minimerge, !past.known)),
        Start::StillMerging => {
            let all = own.is_none() || !past.known;
            (Role::Merging, copying(CopyKind::Minimerge, all))
        }
        Start::Copy { resume } => (
            Role::Target,
            copying(CopyKind::Mini, own.is_none() || !resume),
        ),
        Start::Detached => (Role::Detached, own.and_then(|own| departed(own.generation))),
        Start::Expelled | Start::Released => {
            (Role::Expelled, own.and_then(|own| departed(own.generation)))
        }
        Start::Missing { equal } => {
            let tells = own.is_some() || (past.known || !past.doubt) && equal;
            let bitmap = departed(generation).filter(|_| tells);
            (Role::Missing, bitmap.or(Some(None)))
        }
    }
}

fn elected(host: usize, visible: Members, assembly: &Assembly, journal: &Journal) -> Told {
    let starts = assembly.starts.iter();
    let own = journal.own.iter();
    Told::Elected {
        host,
        visible,
        starts: starts.map(|start| Start0::from(*start)).collect(),
        believed: assembly.believed,
        clean: assembly.clean,
        doubt: journal.doubt(),
        own: own.map(|kept| Some(kept.as_ref()?.set)).collect(),
    }
}

fn refused(host: usize, visible: Members, refusal: &Refusal) -> Told {
    let place = |word: &str| word.strip_prefix('m')?.parse().ok();
    Told::Refused {
        host,
        visible,
        split: refusal.code == Code::SplitBrain,
        word: refusal.word.as_deref().and_then(place),
    }
}
