//! What the server does and in which order: the plan of each change, one durable operation after the other.

use shadowset::set::{BitmapKind, CopyKind, Written};

use crate::state::{Block, Intent, Journal, Kept, Members, Op, Role, Run, State, Write, bit};
use crate::{Mistake, Model};

impl Model {
    /// The blocks of all that take part, then the proof; the order of the blocks is found when they are written.
    pub(crate) fn write_down(&self, run: &mut Run) {
        if self.makes(Mistake::ProofAhead) {
            run.plan.push_back(Op::Prove);
        }
        run.plan.push_back(Op::Blocks(false));
        run.plan.push_back(Op::Prove);
    }

    fn advance(&self, run: &mut Run) {
        run.plan.push_back(Op::Advance);
        self.write_down(run);
    }

    /// A member leaves by an error; the request that found it is acknowledged behind that.
    pub(crate) fn expel(&self, state: &mut State, members: Members, then: Option<Op>) {
        let Some(run) = &mut state.run else { return };
        let journal = &state.journals[run.host];
        if self.makes(Mistake::AckAhead) {
            run.plan.extend(then.clone());
        }
        let leaving = (0..run.roles.len()).filter(|place| members & bit(*place) != 0);
        let leaving: Vec<usize> = leaving.collect();
        for place in &leaving {
            run.plan
                .push_back(Op::Own(*place, Some(leaves(run, journal, *place))));
            run.plan.push_back(Op::Role(*place, Role::Expelled));
        }
        match self.makes(Mistake::NoGeneration) {
            true => self.write_down(run),
            false => self.advance(run),
        }
        run.plan
            .extend(leaving.iter().map(|place| Op::Absorb(*place)));
        if !self.makes(Mistake::AckAhead) {
            run.plan.extend(then);
        }
    }

    /// Flush, cut, flush, and the member's own block last.
    pub(crate) fn detach(&self, state: &mut State, place: usize) {
        let Some(run) = &mut state.run else { return };
        let journal = &state.journals[run.host];
        let own = leaves(run, journal, place);
        let writers = writers(run);
        run.plan.extend(writers.iter().map(|m| Op::Flush(*m)));
        run.plan.push_back(Op::Own(place, Some(own)));
        run.plan.push_back(Op::Role(place, Role::Detached));
        self.advance(run);
        run.plan.push_back(Op::Intent(true));
        run.plan.extend(writers.iter().map(|m| Op::Flush(*m)));
        run.plan.push_back(Op::Trim);
        run.plan.push_back(Op::Block(place, true));
    }

    /// The member is written from now on; its bitmap is used where its block is the one that it left with.
    pub(crate) fn attach(&self, state: &mut State, place: usize) {
        let Some(run) = &mut state.run else { return };
        let own = state.journals[run.host].own[place].clone();
        let block = state.disks[place].block.as_ref();
        let usable =
            own.filter(|own| block.is_some_and(|block| is_the_one_that_left(run, own, block)));
        let (kind, set) = match &usable {
            Some(own) => (CopyKind::Mini, own.set),
            None => (CopyKind::Full, true),
        };
        let kept = Kept {
            kind: BitmapKind::Copying(kind),
            generation: run.generation,
            set,
        };
        run.plan.push_back(Op::Own(place, Some(kept)));
        run.plan.push_back(Op::Role(place, Role::Target));
        self.advance(run);
    }

    /// The copy, its flush, and the promotion.
    pub(crate) fn fill(&self, state: &mut State, place: usize) {
        let Some(run) = &mut state.run else { return };
        run.plan.push_back(Op::Copy(place));
        if !self.makes(Mistake::PromoteUnflushed) {
            run.plan.push_back(Op::Flush(place));
        }
        run.plan.push_back(Op::Retain(place));
        run.plan.push_back(Op::Role(place, Role::Source));
        self.advance(run);
        run.plan.push_back(Op::Own(place, None));
    }

    pub(crate) fn flush(&self, state: &mut State, answer: bool) {
        let Some(run) = &mut state.run else { return };
        let writers = writers(run);
        run.plan.extend(writers.iter().map(|m| Op::Flush(*m)));
        run.plan
            .push_back(if answer { Op::AckFlush } else { Op::Trim });
    }

    pub(crate) fn rotate(&self, state: &mut State) {
        let Some(run) = &mut state.run else { return };
        run.plan.push_back(Op::Intent(true));
    }

    pub(crate) fn stop(&self, state: &mut State) {
        let Some(run) = &mut state.run else { return };
        let writers = writers(run);
        if !self.makes(Mistake::CleanUnflushed) {
            run.plan.extend(writers.iter().map(|m| Op::Flush(*m)));
        }
        run.plan.extend([
            Op::Advance,
            Op::Blocks(true),
            Op::Intent(true),
            Op::Trim,
            Op::Stopped,
        ]);
    }

    /// A write begins: its bits are set in every bitmap, durably.
    pub(crate) fn write(&self, state: &mut State) {
        let Some(run) = &mut state.run else { return };
        let value = bit(usize::from(state.writes));
        state.writes += 1;
        if !self.makes(Mistake::Unmarked) {
            mark(&mut state.journals[run.host], run);
        }
        run.write = Some(Write {
            value,
            todo: writers(run).iter().map(|m| bit(*m)).sum(),
            failed: 0,
        });
    }

    /// Carries out the next operation of the plan, with all behind it that a crash would leave no trace of.
    pub(crate) fn step(&self, state: &mut State) {
        self.carry_out(state);
        let leaves_no_trace = |op: &Op| matches!(op, Op::Role(..) | Op::Advance | Op::Blocks(_));
        while state
            .run
            .as_ref()
            .and_then(|run| run.plan.front())
            .is_some_and(leaves_no_trace)
        {
            self.carry_out(state);
        }
    }

    fn carry_out(&self, state: &mut State) {
        let Some(mut run) = state.run.take() else {
            return;
        };
        let Some(op) = run.plan.pop_front() else {
            return;
        };
        let journal = &mut state.journals[run.host];
        match op {
            Op::Blocks(clean) => {
                let order = order(&run, state);
                let order = order.into_iter().map(|place| Op::Block(place, clean));
                order.rev().for_each(|op| run.plan.push_front(op));
            }
            Op::Block(place, clean) => write_block(state, &run, place, clean),
            Op::Advance => run.generation += 1,
            Op::Role(place, role) => run.roles[place] = role,
            Op::Copy(place) => {
                let master = run
                    .roles
                    .iter()
                    .position(|r| *r == Role::Source)
                    .expect("I2");
                state.disks[place].shown = state.disks[master].shown;
            }
            Op::Flush(place) => state.disks[place].durable = state.disks[place].shown,
            Op::Ack => {
                let value = run.write.take().map_or(0, |write| write.value);
                if self.makes(Mistake::Unmarked) {
                    mark(journal, &run);
                }
                state.promised |= value;
                state.known[run.host] |= value;
            }
            Op::AckFlush => state.flushed = state.promised,
            Op::Stopped => return,
            kept => keep(journal, &run, kept),
        }
        state.run = Some(run);
    }
}

pub(crate) fn writers(run: &Run) -> Vec<usize> {
    let all = 0..run.roles.len();
    all.filter(|place| run.roles[*place].is_written()).collect()
}

fn mark(journal: &mut Journal, run: &Run) {
    journal
        .intents
        .iter_mut()
        .last()
        .into_iter()
        .for_each(|intent| intent.set = true);
    let away = |place: usize| !run.roles[place].is_written();
    let own = journal
        .own
        .iter_mut()
        .enumerate()
        .filter(|(place, _)| away(*place));
    own.filter_map(|(_, own)| own.as_mut())
        .for_each(|own| own.set = true);
}

/// Changes what is kept of bitmaps.
fn keep(journal: &mut Journal, run: &Run, op: Op) {
    let mark = run.mounts.last().map_or(0, |mount| mount.1);
    match op {
        Op::Base(intent) => journal.intents.push(intent),
        Op::Inherit(doubt) => inherit(journal, doubt),
        Op::Intent(proves) => journal.intents.push(Intent {
            proves,
            generation: run.generation,
            mark,
            set: false,
        }),
        Op::Prove => {
            if let Some(last) = journal.intents.last_mut() {
                (last.proves, last.generation, last.mark) = (true, run.generation, mark);
            }
        }
        Op::Trim => {
            let last = journal.intents.len().saturating_sub(1);
            journal.intents.drain(..last);
        }
        Op::Own(place, kept) => journal.own[place] = kept,
        Op::Absorb(place) => {
            let doubt = journal.doubt();
            journal.own[place]
                .iter_mut()
                .for_each(|own| own.set |= doubt);
        }
        Op::Retain(place) => journal.own[place]
            .iter_mut()
            .for_each(|own| own.set = false),
        other => panic!("{other:?} keeps nothing"),
    }
}

/// The proof with the newest generation goes on, with all that is in doubt.
fn inherit(journal: &mut Journal, doubt: bool) {
    let rank = |intent: &Intent| (intent.proves, intent.generation);
    let Some(mut base) = journal.intents.drain(..).max_by_key(rank) else {
        return;
    };
    base.set |= doubt;
    journal.intents.push(base);
}

/// The bitmap of a member that leaves.
fn leaves(run: &Run, journal: &Journal, place: usize) -> Kept {
    let own = journal.own[place]
        .as_ref()
        .filter(|_| run.roles[place] != Role::Source);
    Kept {
        kind: BitmapKind::Departed,
        generation: run.generation,
        set: own.is_some_and(|own| own.set),
    }
}

/// As the product judges what the block of a member that comes back says.
fn is_the_one_that_left(run: &Run, own: &Kept, block: &Block) -> bool {
    let mark = block.mounts.last().map(|mount| mount.1);
    let line = run.mounts.iter().position(|mount| Some(mount.1) == mark);
    let next = line.and_then(|at| run.mounts.get(at + 1));
    let ancestor = line.is_some() && next.is_none_or(|next| block.generation < next.0);
    let left = own.generation;
    let told = block.state.has_left() && block.generation > left;
    ancestor && (told || (left..=left + 1).contains(&block.generation))
}

fn order(run: &Run, state: &State) -> Vec<usize> {
    let ids = writers(run)
        .into_iter()
        .filter_map(shadowset::set::MemberId::new);
    let order = Written::order(ids.collect(), |id| {
        let before = state.disks[id.index()]
            .block
            .as_ref()
            .map(|block| block.state);
        (run.roles[id.index()].durable(), before)
    });
    order.into_iter().map(|(id, _)| id.index()).collect()
}

fn write_block(state: &mut State, run: &Run, place: usize, clean: bool) {
    let block = Block {
        state: run.roles[place].durable(),
        generation: run.generation,
        mounts: run.mounts.clone(),
        clean,
        table: run.roles.iter().map(|role| role.durable()).collect(),
    };
    let old = state.disks[place].block.replace(block);
    let ours = |old: &Block| run.mounts.contains(old.mounts.last().expect("a line"));
    state.shrunk |= old.is_some_and(|old| ours(&old) && old.generation > run.generation);
}
