//! Start of a unit: open the images, read their control blocks, assemble the set, start the thread.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, unbounded};
use uuid::Uuid;

use super::Message;
use super::create::random_mark;
use super::handle::{Board, Handle, Published};
use super::pipeline::{Live, Pipeline, Stores};
use super::record::record_start;
use super::run::{Parts, Runner, now};
use super::seat::{Identity, Seat};
use super::setup::{MemberSetup, Mounting, Setup};
use crate::error::{Error, Result};
use crate::io::scb_file;
use crate::io::state_dir::StateDir;
use crate::io::{Image, Storage};
use crate::set::assess::{Assembly, Found, ScbFound, Start, assess};
use crate::set::member::Member;
use crate::set::{Bytes, Code, Effect, Event, MemberState, Moment, ScbRow, ShadowSet, View};

/// A unit that runs.
#[derive(Debug)]
pub struct Running {
    handle: Handle,
    thread: JoinHandle<std::result::Result<(), String>>,
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
        self.handle.pipeline.close();
        // A closed channel means that the thread has ended already; the join tells why.
        let _ = self.handle.messages.send(Message::Event(Event::Shutdown));
        match self.thread.join() {
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
/// label; [`Code::InUse`] when another unit has the state directory.
pub fn start(setup: &Setup, mounting: &Mounting) -> Result<Running> {
    let state_dir = StateDir::claim(&setup.state_dir)?;
    let read_only = mounting.read_only;
    let blocks = read_blocks(&setup.members)?;
    let images = open_images(&setup.members, &blocks)?;
    let assembly = assess(&found(&setup.members, blocks, &images))?;
    setup.check_label(&assembly.label)?;
    warn_of_unconfigured(&assembly);
    let (messages, inbox) = unbounded();
    let mut set = assemble(setup, &assembly, &images)?;
    let effects = set.begin();
    let seats = seats(&setup.members, &images);
    let stores = stores(images, &assembly);
    let first =
        first_view(&effects).ok_or_else(|| Error::new(Code::Io, "there is no first View"))?;
    let live = Live::new(first, &stores, messages.clone());
    let pipeline = Arc::new(Pipeline::new(live, read_only));
    let board = Arc::new(Board::new(published(setup, &assembly, &set, read_only)));
    let handle = Handle {
        board: Arc::clone(&board),
        pipeline: Arc::clone(&pipeline),
        messages: messages.clone(),
    };
    let first = assembly.generation.next();
    let lineage = assembly.lineage.mounted(first, random_mark());
    let identity = Identity {
        set: assembly.set,
        label: assembly.label,
        lineage,
        state_dir: setup.state_dir.clone(),
    };
    let parts = Parts {
        set,
        identity,
        seats,
        stores,
        pipeline,
        board,
        messages,
    };
    run(Runner::new(parts), effects, inbox, handle, state_dir)
}

/// Carries the first effects out and starts the control thread.
fn run(
    mut runner: Runner,
    effects: Vec<Effect>,
    inbox: Receiver<Message>,
    handle: Handle,
    state_dir: StateDir,
) -> Result<Running> {
    // The first View is in force already; the blocks must say so before anybody writes.
    let (persist, rest): (Vec<_>, Vec<_>) = effects
        .into_iter()
        .partition(|e| matches!(e, Effect::Persist { .. }));
    for effect in persist {
        if let Effect::Persist {
            generation,
            clean,
            to,
        } = effect
        {
            if let Some((_, error)) = runner.write_blocks(generation, clean, to) {
                return Err(error);
            }
        }
    }
    let rest = rest
        .into_iter()
        .filter(|e| !matches!(e, Effect::Publish(_)))
        .collect();
    record_start(&runner.board, now(), &runner.set.status());
    runner.carry_out(rest);
    let thread = std::thread::Builder::new().name("control".into());
    let thread = thread
        .spawn(move || runner.run(&inbox))
        .map_err(|e| Error::io("the control thread cannot be started", e))?;
    Ok(Running {
        handle,
        thread,
        _state_dir: state_dir,
    })
}

fn read_blocks(members: &[MemberSetup]) -> Result<Vec<ScbFound>> {
    let read = |member: &MemberSetup| {
        let path = &member.scb;
        scb_file::read(path).map_err(|e| Error::io(format!("{} cannot be read", path.display()), e))
    };
    members.iter().map(read).collect()
}

/// Opens what is there. An image that is missing is decided upon later, and one that has left may be in
/// other hands; anything else ends the start.
fn open_images(members: &[MemberSetup], blocks: &[ScbFound]) -> Result<Vec<Option<Image>>> {
    let mut images: Vec<Option<Image>> = Vec::new();
    for (member, block) in members.iter().zip(blocks) {
        let left = matches!(block, ScbFound::Read(scb) if scb.state.has_left());
        let image = match Image::open(&member.path, member.io) {
            Ok(image) => Some(image),
            Err(error) if left || error.code() == Code::NoSuchFile => {
                tracing::warn!(member = member.name, %error, "a member takes no part");
                None
            }
            Err(error) => return Err(error),
        };
        images.push(image);
    }
    Ok(images)
}

fn found(members: &[MemberSetup], blocks: Vec<ScbFound>, images: &[Option<Image>]) -> Vec<Found> {
    let parts = members.iter().zip(blocks).zip(images);
    let found = parts.map(|((member, scb), image)| Found {
        name: member.name.clone(),
        image: image.as_ref().map(|i| Bytes(i.size())),
        scb,
    });
    found.collect()
}

/// Members that the set has and the configuration has not take no part, and need a full copy later.
fn warn_of_unconfigured(assembly: &Assembly) {
    let configured = |row: &&ScbRow| assembly.members.contains(&Some(row.member));
    for row in assembly.table.iter().filter(|row| !configured(row)) {
        let (member, path) = (&row.name, row.path.display());
        tracing::warn!(member, %path, "a member of the set is not in the configuration");
    }
}

fn assemble(setup: &Setup, assembly: &Assembly, images: &[Option<Image>]) -> Result<ShadowSet> {
    let members = setup.members.iter().enumerate().map(|(index, member)| {
        let size = images[index].as_ref().map_or(Bytes(0), |i| Bytes(i.size()));
        let member = Member {
            name: member.name.clone(),
            uuid: assembly.members[index].unwrap_or_else(Uuid::new_v4),
            path: member.path.display().to_string(),
            size,
            read_cost: member.read_cost,
            site: member.site,
            errors: 0,
            since: Moment::default(),
            reason: reason(assembly.starts[index]).to_owned(),
            state: MemberState::Missing,
        };
        (member, assembly.starts[index])
    });
    Ok(ShadowSet::assemble(
        assembly.geometry,
        assembly.generation,
        members.collect(),
        now(),
    )?)
}

fn reason(start: Start) -> &'static str {
    match start {
        Start::Source => "",
        Start::Merging => "the unit was not stopped in order",
        Start::FullCopy => "it was behind when the unit was mounted",
        Start::Detached => "detached before the unit was mounted",
        Start::Expelled => "expelled before the unit was mounted",
        Start::Missing => "its image or its control block was not there at the mount",
    }
}

fn seats(members: &[MemberSetup], images: &[Option<Image>]) -> Vec<Seat> {
    let seats = members.iter().zip(images).map(|(member, image)| {
        let mut seat = Seat::new(member.scb.clone(), member.io);
        seat.identity = image.as_ref().map(Image::identity);
        seat
    });
    seats.collect()
}

/// The storage of the members that take part; the others are closed again, and their locks freed.
fn stores(images: Vec<Option<Image>>, assembly: &Assembly) -> Stores {
    let mut stores = Stores::default();
    for (index, image) in images.into_iter().enumerate() {
        let takes_part = matches!(
            assembly.starts[index],
            Start::Source | Start::Merging | Start::FullCopy
        );
        if let Some(image) = image.filter(|_| takes_part) {
            stores[index] = Some(image.into_storage() as Arc<dyn Storage>);
        }
    }
    stores
}

fn first_view(effects: &[Effect]) -> Option<View> {
    effects.iter().find_map(|e| match e {
        Effect::Publish(view) => Some((**view).clone()),
        _ => None,
    })
}

fn published(setup: &Setup, assembly: &Assembly, set: &ShadowSet, read_only: bool) -> Published {
    Published {
        seq: 0,
        time: now(),
        mounted: now(),
        created: None,
        unit: setup.unit.clone(),
        label: assembly.label.clone(),
        uuid: assembly.set,
        read_only,
        durability: setup.durability,
        set: set.status(),
        rates: Vec::new(),
    }
}
