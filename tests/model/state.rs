//! The state of the model: members with their storage control blocks, journals, and the server that runs.

use std::collections::VecDeque;

use shadowset::set::scb::Lineage;
use shadowset::set::{
    BitmapId, BitmapKind, BitmapRecord, BitmapTag, Bytes, Found, Generation, Geometry, Moment,
    Policy, Scb, ScbFound, ScbRow, ScbState, Start,
};
use uuid::Uuid;

/// The writes that somebody holds: bit by bit.
pub(crate) type Writes = u8;
/// Some members: bit by bit.
pub(crate) type Members = u8;

/// What a storage control block says.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Block {
    pub(crate) state: ScbState,
    pub(crate) generation: u64,
    pub(crate) mounts: Vec<(u64, u64)>,
    pub(crate) clean: bool,
    pub(crate) table: Vec<ScbState>,
}

/// A member: its block, and what its image shows and would show after a loss of power.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Disk {
    pub(crate) shown: Writes,
    pub(crate) durable: Writes,
    pub(crate) block: Option<Block>,
}

/// A write-intent bitmap that is kept; the unit is one region.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Intent {
    /// Whether it proves its generation.
    pub(crate) proves: bool,
    pub(crate) generation: u64,
    pub(crate) mark: u64,
    pub(crate) set: bool,
}

/// A member's own bitmap that is kept.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Kept {
    pub(crate) kind: BitmapKind,
    pub(crate) generation: u64,
    pub(crate) set: bool,
}

/// What a host keeps of bitmaps.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Journal {
    /// The newest last.
    pub(crate) intents: Vec<Intent>,
    pub(crate) own: Vec<Option<Kept>>,
}

/// What a member is to the server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Role {
    Source,
    Merging,
    Target,
    Detached,
    Expelled,
    Missing,
}

impl Role {
    pub(crate) fn durable(self) -> ScbState {
        match self {
            Self::Source => ScbState::Source,
            Self::Merging => ScbState::Merging,
            Self::Target => ScbState::Target,
            Self::Detached => ScbState::Detached,
            Self::Expelled | Self::Missing => ScbState::Expelled,
        }
    }

    pub(crate) fn is_written(self) -> bool {
        matches!(self, Self::Source | Self::Merging | Self::Target)
    }
}

/// One durable operation of the server, or what may come only behind some.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Op {
    /// The blocks of all that take part, one after the other in the order of the server; whether clean.
    Blocks(bool),
    /// The block of a member, with the membership as it is now.
    Block(usize, bool),
    /// A first write-intent bitmap, for what is in doubt.
    Base(Intent),
    /// The write-intent bitmap that proves the most goes on; whether there is a doubt besides.
    Inherit(bool),
    /// The next generation counts; its blocks come next.
    Advance,
    /// A new write-intent bitmap; whether it proves its generation.
    Intent(bool),
    /// The newest one proves the generation.
    Prove,
    /// All write-intent bitmaps but the newest are forgotten.
    Trim,
    /// A member's own bitmap.
    Own(usize, Option<Kept>),
    /// A member's own bitmap marks what may not be flushed.
    Absorb(usize),
    /// A member's own bitmap is empty.
    Retain(usize),
    Role(usize, Role),
    /// A copy of the unit into a member.
    Copy(usize),
    Flush(usize),
    /// The application is told that its write is good.
    Ack,
    /// The same of its flush.
    AckFlush,
    Stopped,
}

/// A write under way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Write {
    pub(crate) value: Writes,
    pub(crate) todo: Members,
    pub(crate) failed: Members,
}

/// A server that runs.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Run {
    pub(crate) host: usize,
    pub(crate) visible: Members,
    pub(crate) generation: u64,
    pub(crate) mounts: Vec<(u64, u64)>,
    pub(crate) roles: Vec<Role>,
    pub(crate) plan: VecDeque<Op>,
    pub(crate) write: Option<Write>,
}

/// How the last attempt to mount has ended, until something else happens.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Told {
    Elected {
        host: usize,
        visible: Members,
        starts: Vec<Start0>,
        /// Whether the bitmaps are used, and where members may differ by them: all, and one by one.
        believed: bool,
        clean: bool,
        doubt: bool,
        own: Vec<Option<bool>>,
    },
    Refused {
        host: usize,
        visible: Members,
        split: bool,
        /// The member that is named.
        word: Option<usize>,
    },
}

/// As [`Start`], which has no hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Start0 {
    Source,
    Merging,
    StillMerging,
    Copy(bool),
    Detached,
    Expelled,
    Missing(bool),
}

impl From<Start> for Start0 {
    fn from(start: Start) -> Self {
        match start {
            Start::Source => Self::Source,
            Start::Merging => Self::Merging,
            Start::StillMerging => Self::StillMerging,
            Start::Copy { resume } => Self::Copy(resume),
            Start::Detached => Self::Detached,
            Start::Expelled | Start::Released => Self::Expelled,
            Start::Missing { equal } => Self::Missing(equal),
        }
    }
}

/// Everything.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    pub(crate) disks: Vec<Disk>,
    pub(crate) journals: Vec<Journal>,
    pub(crate) run: Option<Run>,
    pub(crate) told: Option<Told>,
    /// Acknowledged, and not lost by a loss of power.
    pub(crate) promised: Writes,
    /// Of these what a flush has covered.
    pub(crate) flushed: Writes,
    /// What each host's journal has seen acknowledged.
    pub(crate) known: Vec<Writes>,
    pub(crate) writes: u8,
    pub(crate) mounts: u64,
    pub(crate) changes: u8,
    pub(crate) failures: u8,
    /// Whether hosts or absent members have parted the set, or somebody has given something up.
    pub(crate) parted: bool,
    /// A block was overwritten by an older generation of its own line.
    pub(crate) shrunk: bool,
}

pub(crate) fn bit(place: usize) -> u8 {
    1 << place
}

pub(crate) fn identity(place: usize) -> Uuid {
    Uuid::from_u128(place as u128 + 1)
}

pub(crate) fn geometry() -> Geometry {
    Geometry::new(Bytes(4096), 8).expect("a unit of one region")
}

fn generation(number: u64) -> Generation {
    Generation::from_number(number).expect("not zero")
}

pub(crate) fn lineage(mounts: &[(u64, u64)]) -> Lineage {
    let (first, rest) = mounts.split_first().expect("a set has a first line");
    let line = rest
        .iter()
        .fold(Lineage::new(first.1), |line, (number, mark)| {
            line.mounted(generation(*number), *mark)
        });
    assert_eq!(line.mounts().len(), mounts.len());
    line
}

impl Block {
    fn scb(&self, place: usize) -> Scb {
        let row = |(place, state): (usize, &ScbState)| ScbRow {
            member: identity(place),
            name: format!("m{place}"),
            path: format!("/m{place}").into(),
            state: *state,
        };
        Scb {
            set: Uuid::from_u128(99),
            member: identity(place),
            name: format!("m{place}"),
            state: self.state,
            label: String::new(),
            generation: generation(self.generation),
            lineage: lineage(&self.mounts),
            geometry: geometry(),
            clean: self.clean,
            sequence: 0,
            table: self.table.iter().enumerate().map(row).collect(),
            created: None,
            stamp: None,
        }
    }
}

impl Journal {
    /// As the election sees it.
    pub(crate) fn records(&self) -> Vec<BitmapRecord> {
        let tag = |id: usize, generation| BitmapTag {
            id: BitmapId(u32::try_from(id).expect("few") + 1),
            policy: Policy::default(),
            created: Moment(0),
            generation,
        };
        let intents = self
            .intents
            .iter()
            .enumerate()
            .map(|(n, intent)| BitmapRecord {
                tag: tag(n, intent.generation),
                kind: match intent.proves {
                    true => BitmapKind::Intent,
                    false => BitmapKind::Opening,
                },
                owner: Uuid::from_u64_pair(0, intent.mark),
            });
        let own = self.own.iter().enumerate().filter_map(|(n, kept)| {
            let kept = kept.as_ref()?;
            Some(BitmapRecord {
                tag: tag(n + 10, kept.generation),
                kind: kept.kind,
                owner: identity(n),
            })
        });
        intents.chain(own).collect()
    }

    pub(crate) fn doubt(&self) -> bool {
        self.intents.iter().any(|intent| intent.set)
    }
}

impl State {
    /// A set that was created and never mounted.
    pub(crate) fn new(members: usize, hosts: usize) -> Self {
        let block = Block {
            state: ScbState::Source,
            generation: 1,
            mounts: vec![(1, 0)],
            clean: true,
            table: vec![ScbState::Source; members],
        };
        let disk = Disk {
            shown: 0,
            durable: 0,
            block: Some(block),
        };
        let journal = Journal {
            intents: Vec::new(),
            own: vec![None; members],
        };
        Self {
            disks: vec![disk; members],
            journals: vec![journal; hosts],
            run: None,
            told: None,
            promised: 0,
            flushed: 0,
            known: vec![0; hosts],
            writes: 0,
            mounts: 0,
            changes: 0,
            failures: 0,
            parted: false,
            shrunk: false,
        }
    }

    /// What a mount finds where these members are visible.
    pub(crate) fn found(&self, visible: Members) -> Vec<Found> {
        let found = self.disks.iter().enumerate().map(|(place, disk)| {
            let there = visible & bit(place) != 0;
            let block = disk.block.as_ref().filter(|_| there);
            Found {
                name: format!("m{place}"),
                image: there.then_some(Bytes(4096)),
                scb: block.map_or(ScbFound::None, |block| ScbFound::Read(block.scb(place))),
            }
        });
        found.collect()
    }

    /// The members that are visible and claim to hold all data.
    pub(crate) fn claiming(&self, visible: Members) -> impl Iterator<Item = &Disk> {
        let disks = self.disks.iter().enumerate();
        let disks = disks.filter(move |(place, _)| visible & bit(*place) != 0);
        disks
            .map(|(_, disk)| disk)
            .filter(|disk| disk.block.as_ref().is_some_and(|b| b.state.claims_data()))
    }
}
