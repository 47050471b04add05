//! Start of a unit: assemble the set from what is there, start the thread.

use crate::sync::thread;
use crate::sync::thread::JoinHandle;
use std::sync::Arc;
use std::time::Duration;

use crate::sync::channel::{Receiver, Sender, unbounded};

use super::chronicle::Chronicle;
use super::copier::Copier;
use super::create::random_mark;
use super::departure::PATIENCE;
use super::handle::{Board, Handle, Published};
use super::home::{self, Settled};
use super::params::Params;
use super::pipeline::{Live, Pipeline};
use super::record::record_start;
use super::roster::{Rehearsed, Roster, Unfinished};
use super::run::{Parts, Runner, now};
use super::seat::Identity;
use super::setup::{Mounting, Setup};
use super::tally::Tally;
use super::{Message, admission};
use crate::error::{Error, Result};
use crate::io::state_dir::StateDir;
use crate::set::assess::{Assembly, Start, assess};
use crate::set::{Beginning, Code, Effect, Event, Member, MemberSet, Moment, ShadowSet, View};

/// A unit that runs.
#[derive(Debug)]
pub struct Running {
    handle: Handle,
    thread: JoinHandle<std::result::Result<(), String>>,
    /// It calls no member, so it ends when it is told.
    watch: JoinHandle<()>,
    /// Given back when the thread has ended.
    _state_dir: StateDir,
}

impl Running {
    /// What the faces see.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends copies, flushes the members and marks them clean. No request may come any more.
    ///
    /// # Errors
    /// [`Code::Io`] when the members could not be marked clean; the next mount merges them.
    pub fn stop(self) -> Result<()> {
        self.handle.pipeline.gate().close();
        self.handle.pipeline.await_changes();
        // What members do not answer any more is told to nobody.
        while !self.handle.pipeline.flying.wait(PATIENCE) {
            let silent = self.handle.pipeline.silent_members();
            self.handle.pipeline.abort(silent);
        }
        // A closed channel means that the thread has ended already; the join tells why.
        let _ = self.handle.messages.send(Message::Event(Event::Shutdown));
        let ended = self.thread.join();
        // Also behind a control thread that has failed. Who locks the images next finds nobody who has them.
        self.handle.pipeline.end_watch();
        let _ = self.watch.join();
        let log = self.handle.board.chronicle().end(now());
        if let Some(log) = log {
            // Without the lock: readers of events do not wait for the file.
            log.close();
        }
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(Error::new(Code::Io, reason)),
            Err(_) => Err(Error::new(
                Code::Io,
                "the control thread has failed; see the log",
            )),
        }
    }
}

/// Opens the members of a unit, assembles the set and starts to serve it.
///
/// # Errors
/// Why the set cannot be assembled: an image that is locked, missing control blocks, split brain, another
/// label; [`Code::InUse`] when another unit has the state directory; what `mounting` asks for and
/// cannot have.
pub fn start(setup: &Setup, mounting: &Mounting) -> Result<Running> {
    let state_dir = StateDir::claim(&setup.state_dir)?;
    let (roster, assembly, home) = elect(setup, mounting)?;
    let mark = random_mark();
    let params = Arc::new(Params::new(mounting.params));
    let beginning = Beginning {
        geometry: assembly.geometry,
        generation: assembly.generation,
        clean: assembly.clean,
        last_mark: assembly.lineage.mark(),
        unproven: assembly.unproven,
        mark,
        absent: mounting.policy,
        past: home.past,
        home: home.home,
        limits: params.limits(Duration::ZERO),
        now: now(),
    };
    let journal = home.journal;
    let assembled = assemble(beginning, roster.members(&assembly), (setup, mounting));
    let mut set = assembled.inspect_err(|_| journal.iter().for_each(home::end))?;
    let effects = set.begin();
    let first = first_view(&effects)?;
    let (messages, inbox) = unbounded();
    let unfinished = roster.unfinished(&assembly, &set);
    let (seats, created) = (roster.seats(&assembly), roster.created());
    let blocks = roster.generations();
    let stores = roster.stores(&assembly);
    let live = Live::new(first, &stores, messages.clone());
    let pipeline = Pipeline::new(live, mounting.read_only, journal, Arc::clone(&params));
    let first = published(setup, &assembly, &set, mounting);
    let events = Chronicle::open(&setup.state_dir);
    let board = board((first, events), created, &pipeline);
    let copier = copier(&pipeline, &messages, mounting);
    let handle = Handle {
        board: Arc::clone(&board),
        pipeline: Arc::clone(&pipeline),
        messages: messages.clone(),
    };
    let identity = identity(setup, assembly, created, mark);
    let parts = Parts {
        set,
        identity,
        seats,
        stores,
        pipeline,
        board,
        messages,
        params,
        copier,
        blocks,
    };
    let mut runner = Runner::new(parts);
    let begun = first_effects(&mut runner, effects, unfinished);
    let rest = begun.inspect_err(|_| runner.close_home())?;
    run(runner, rest, inbox, handle, state_dir)
}

/// Whether [`start`] would find a set that it may assemble, as far as its control blocks tell: the journal is not opened, for
/// that may change it. The images are locked for the moment. Names the members that would not serve at
/// once, as far as the blocks tell.
///
/// # Errors
/// Those of [`start`].
pub fn rehearse(setup: &Setup, mounting: &Mounting) -> Result<Vec<Rehearsed>> {
    StateDir::expect_free(&setup.state_dir)?;
    let mut roster = Roster::look(&setup.members)?;
    let first = roster.assess()?;
    setup.check_label(&first.label)?;
    roster.add_unconfigured(&first, setup, mounting.include)?;
    let assembly = roster.assess()?;
    let mut mounting = mounting.clone();
    // After an unclean stop the bitmaps tell who is copied.
    mounting.nocopy &= assembly.clean;
    admission::check(&roster.found(), &assembly, &mounting)?;
    Ok(roster.rehearsed(&assembly))
}

fn board(
    (first, events): (Published, Chronicle),
    created: Option<Moment>,
    pipeline: &Pipeline,
) -> Arc<Board> {
    let first = Published {
        created,
        announced: Arc::clone(pipeline.announced()),
        meters: Arc::clone(&pipeline.meters),
        ..first
    };
    Arc::new(Board::new(first, events))
}

fn copier(pipeline: &Arc<Pipeline>, messages: &Sender<Message>, mounting: &Mounting) -> Copier {
    let (pipeline, messages) = (Arc::clone(pipeline), messages.clone());
    Copier::new(pipeline, messages, mounting.node_rate.clone())
}

/// What the members' blocks say of the set from this mount on.
fn identity(setup: &Setup, assembly: Assembly, created: Option<Moment>, mark: u64) -> Identity {
    Identity {
        set: assembly.set,
        label: assembly.label,
        lineage: assembly.lineage.mounted(assembly.generation.next(), mark),
        created,
        state_dir: setup.state_dir.clone(),
    }
}

/// Looks at everything that is there and decides who starts as what; all refusals but those that bitmaps
/// cause come from here.
fn elect(setup: &Setup, mounting: &Mounting) -> Result<(Roster, Assembly, Settled)> {
    let mut roster = Roster::look(&setup.members)?;
    let first = roster.assess()?;
    setup.check_label(&first.label)?;
    roster.add_unconfigured(&first, setup, mounting.include)?;
    let found = roster.found();
    let elect = |records: &[_]| Ok(assess(&found, records)?.geometry);
    let home = home::find(setup, first.set, first.geometry, &elect)?;
    let admitted = admit(&mut roster, &home, mounting);
    let assembly = admitted.inspect_err(|_| home.end())?;
    let home = home.settle(setup, assembly.set, assembly.geometry, assembly.believed)?;
    Ok((roster, assembly, home))
}

/// What the set is, with what its bitmaps tell.
fn admit(roster: &mut Roster, home: &home::Found, mounting: &Mounting) -> Result<Assembly> {
    let assembly = assess(&roster.found(), &home.records())?;
    admission::check(&roster.found(), &assembly, mounting)?;
    roster.open_immutable(&assembly)?;
    Ok(assembly)
}

/// The set, when it is as the mount insists.
fn assemble(
    from: Beginning,
    members: Vec<(Member, Start)>,
    (setup, mounting): (&Setup, &Mounting),
) -> Result<ShadowSet> {
    let kept = from.home.clone();
    let set = ShadowSet::assemble(from, members)?;
    admission::check_bitmaps(&set.status(), &kept, mounting, setup.durability)?;
    Ok(set)
}

/// Carries out what must be so before anybody writes, the first View being in force already; gives the rest.
fn first_effects(
    runner: &mut Runner,
    effects: Vec<Effect>,
    unfinished: Vec<Unfinished>,
) -> Result<Vec<Effect>> {
    let mut rest = Vec::new();
    // A start that is refused since a block cannot be opened has not changed the bitmaps.
    for effect in &effects {
        if let Effect::Persist { to, .. } = effect {
            runner.open_blocks(*to)?;
        }
    }
    for effect in effects {
        match effect {
            Effect::Persist {
                generation,
                clean,
                to,
            } => {
                if let Some((_, error)) = runner.write_blocks(generation, clean, to) {
                    return Err(error);
                }
                runner.written.note(generation, to, MemberSet::EMPTY, to);
            }
            Effect::Home(change) => runner.change_home(&change),
            Effect::Publish(_) => {}
            other => rest.push(other),
        }
    }
    for departure in unfinished {
        runner.finish_departure(departure);
    }
    Ok(rest)
}

/// Carries the other effects out and starts the control thread.
fn run(
    mut runner: Runner,
    rest: Vec<Effect>,
    inbox: Receiver<Message>,
    handle: Handle,
    state_dir: StateDir,
) -> Result<Running> {
    runner.publish_state();
    record_start(&runner.board, now());
    runner.carry_out(rest);
    let watched = Arc::clone(&runner.pipeline);
    let watch = thread::Builder::new()
        .name("watch".into())
        .spawn(move || watched.keep_watch())
        .map_err(|e| unstarted(&handle, "watching", e))?;
    let thread = thread::Builder::new().name("control".into());
    let thread = thread
        .spawn(move || runner.run(inbox))
        .map_err(|e| unstarted(&handle, "control", e))?;
    Ok(Running {
        handle,
        thread,
        watch,
        _state_dir: state_dir,
    })
}

/// A thread of the unit cannot be started.
fn unstarted(handle: &Handle, name: &str, cause: std::io::Error) -> Error {
    handle.pipeline.end_watch();
    let journal = handle.pipeline.home();
    journal.iter().for_each(|journal| home::end(journal));
    Error::io(format!("the {name} thread cannot be started"), cause)
}

fn first_view(effects: &[Effect]) -> Result<View> {
    let view = effects.iter().find_map(|e| match e {
        Effect::Publish(view) => Some((**view).clone()),
        _ => None,
    });
    view.ok_or_else(|| Error::new(Code::Io, "there is no first View"))
}

fn published(
    setup: &Setup,
    assembly: &Assembly,
    set: &ShadowSet,
    mounting: &Mounting,
) -> Published {
    Published {
        seq: 0,
        time: now(),
        mounted: now(),
        created: None,
        unit: setup.unit.clone(),
        label: assembly.label.clone(),
        uuid: assembly.set,
        read_only: mounting.read_only,
        stalled: None,
        durability: setup.durability,
        set: set.status(),
        rates: Vec::new(),
        expected: Vec::new(),
        announced: Arc::default(),
        meters: Arc::default(),
        tally: Tally::default(),
        fingerprints: Vec::new(),
        params: mounting.params,
    }
}
