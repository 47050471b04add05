//! Who could take part in a set that is being assembled: images, control blocks, places.

use std::path::Path;

use uuid::Uuid;

use super::create::refuse_duplicates;
use super::departure::within;
use super::pipeline::Stores;
use super::run::now;
use super::seat::{PATIENCE_MAX, Seat, storage};
use super::setup::{MemberSetup, Protect, Setup, default_scb};
use crate::error::{Error, Result};
use crate::io::{Image, IoMode, immutable, scb_file};
use crate::set::assess::{Assembly, Found, ScbFound, Start, assess};
use crate::set::member::{MEMBERS_MAX, Member};
use crate::set::scb::Ancestry;
use crate::set::{
    Bytes, Code, Generation, MemberId, MemberState, Moment, READ_COST, Refusal, Said, ScbRow,
    ShadowSet, Stamp,
};

/// One member as it was found.
struct Entry {
    setup: MemberSetup,
    block: ScbFound,
    image: Option<Image>,
    /// Whether the image is immutable by the set itself, and open only to be looked at.
    immutable: bool,
    /// Why nothing was looked for.
    unsought: Option<&'static str>,
}

/// A member that would not serve at once, if its unit were mounted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rehearsed {
    /// Its name.
    pub name: String,
    /// The state that it would have.
    pub state: &'static str,
    /// Why.
    pub reason: String,
}

/// A departure that was cut short.
#[derive(Clone, Debug)]
pub(super) struct Unfinished {
    pub(super) id: MemberId,
    /// The generation of the member's own block, if that tells that it has left.
    pub(super) has_left: Option<Generation>,
    /// What its image looked like, if its block says so.
    pub(super) stamp: Option<Stamp>,
}

/// The members that were found, configured ones first.
pub(super) struct Roster {
    entries: Vec<Entry>,
    configured: usize,
}

impl Roster {
    /// Reads the block and opens the image of each configured member.
    ///
    /// # Errors
    /// A block that cannot be read; an image that is there and cannot be opened or locked.
    pub(super) fn look(members: &[MemberSetup]) -> Result<Self> {
        let entries = members
            .iter()
            .map(Entry::look)
            .collect::<Result<Vec<_>>>()
            .map_err(|error| match error.code() {
                // By nobody but another member that has the same image.
                Code::ImageLocked => refuse_duplicates(members).err().unwrap_or(error),
                _ => error,
            })?;
        Ok(Self {
            configured: entries.len(),
            entries,
        })
    }

    /// Adds the members that the set has and the configuration has not: absent, unless they are to be
    /// included. Their places are those of the newest table.
    ///
    /// # Errors
    /// More than six members; as [`Self::look`].
    pub(super) fn add_unconfigured(
        &mut self,
        assembly: &Assembly,
        setup: &Setup,
        include: bool,
    ) -> Result<()> {
        let configured = |row: &&ScbRow| assembly.members.contains(&Some(row.member));
        for row in assembly.table.iter().filter(|row| !configured(row)) {
            let (member, path) = (&row.name, row.path.display());
            if self.entries.iter().any(|e| e.setup.name == row.name) {
                tracing::warn!(member, %path, "the set had another member of this name: it is dropped");
                continue;
            }
            let setup = MemberSetup {
                name: row.name.clone(),
                path: row.path.clone(),
                scb: default_scb(&row.name, &row.path, &setup.state_dir),
                read_cost: READ_COST,
                site: 0,
                timeout: 0,
                io: IoMode::Buffered,
                protect: Protect::None,
            };
            self.entries
                .push(match unsought(include, row.state.has_left()) {
                    Some(why) => {
                        tracing::warn!(member, %path, "a member of the set is left out: {why}");
                        Entry::absent(setup, why)
                    }
                    None => Entry::look(&setup)?,
                });
        }
        if self.entries.len() > MEMBERS_MAX {
            let text = format!(
                "{} members are configured and {} more belong to the set; the most is {MEMBERS_MAX}",
                self.configured,
                self.entries.len() - self.configured
            );
            return Err(Error::new(Code::TooManyMembers, text));
        }
        Ok(())
    }

    /// Opens the immutable images of members that take part after all: a crash came between.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub(super) fn open_immutable(&mut self, assembly: &Assembly) -> Result<()> {
        let entries = self.entries.iter_mut().zip(&assembly.starts);
        for (entry, _) in entries.filter(|(e, start)| e.immutable && start.takes_part()) {
            let (member, path) = (&entry.setup.name, &entry.setup.path);
            let identity = entry.image.take().map(|image| image.identity());
            if let Err(error) = immutable::clear(path, identity) {
                tracing::warn!(member, %error, "its image stays immutable");
            }
            entry.image = Some(Image::open(path, entry.setup.io)?);
            entry.immutable = false;
        }
        Ok(())
    }

    /// Members that have left, are there, and whose own blocks do not say so, or say so and nothing of what their
    /// images look like; or the set does not know what they say. A crash has cut the departure short, or the disk was out of
    /// reach then.
    pub(super) fn unfinished(&self, assembly: &Assembly, set: &ShadowSet) -> Vec<Unfinished> {
        let lacks = |(index, entry): (usize, &Entry)| {
            let (id, there) = (MemberId::new(index)?, entry.image.is_some());
            let ScbFound::Read(own) = &entry.block else {
                return None;
            };
            let said = Said::by(own, &assembly.lineage);
            let tells = set.tells_departure(id, said);
            let departed = set.members()[index].state.departed();
            let lacks = !tells || own.stamp.is_none() || departed.is_some_and(|d| !d.told);
            let it_is = set.is_who_left(id, said) || cut_short(assembly, index, said);
            (there && lacks && it_is).then_some(Unfinished {
                id,
                has_left: tells.then_some(said.generation),
                stamp: own.stamp.clone(),
            })
        };
        self.entries.iter().enumerate().filter_map(lacks).collect()
    }

    /// The generations that the blocks hold.
    pub(super) fn generations(&self) -> Vec<(MemberId, Generation)> {
        let of = |(index, entry): (usize, &Entry)| match &entry.block {
            ScbFound::Read(scb) => Some((MemberId::new(index)?, scb.generation)),
            ScbFound::None | ScbFound::Damaged(_) => None,
        };
        self.entries.iter().enumerate().filter_map(of).collect()
    }

    /// The election by the blocks alone. A member of another set is refused with the way out.
    pub(super) fn assess(&self) -> std::result::Result<Assembly, Refusal> {
        assess(&self.found(), &[]).map_err(|refusal| {
            let named = |entry: &&Entry| refusal.word.as_ref() == Some(&entry.setup.name);
            match self.entries.iter().find(named) {
                Some(entry) if refusal.code == Code::OtherSet => {
                    let (name, scb) = (&entry.setup.name, entry.setup.scb.display());
                    let hint = format!(
                        "release it from that set; if that set is gone, move {scb} away, mount, and \
                         `shadowset attach UNIT {name} --yes` overwrites the image"
                    );
                    refusal.with_hint(hint)
                }
                _ => refusal,
            }
        })
    }

    /// What the election looks at.
    pub(super) fn found(&self) -> Vec<Found> {
        let found = self.entries.iter().map(|entry| Found {
            name: entry.setup.name.clone(),
            image: entry.image.as_ref().map(|i| Bytes(i.size())),
            scb: entry.block.clone(),
        });
        found.collect()
    }

    /// The members with what each of them is.
    pub(super) fn members(&self, assembly: &Assembly) -> Vec<(Member, Start)> {
        let members = self.entries.iter().enumerate().map(|(index, entry)| {
            let start = assembly.starts[index];
            let reason = entry.unsought.unwrap_or(reason(start));
            let member = Member {
                name: entry.setup.name.clone(),
                uuid: assembly.members[index].unwrap_or_else(Uuid::new_v4),
                path: entry.setup.path.display().to_string(),
                size: entry.image.as_ref().map_or(Bytes(0), |i| Bytes(i.size())),
                read_cost: entry.setup.read_cost,
                site: entry.setup.site,
                timeout: entry.setup.timeout,
                errors: 0,
                since: now(),
                reason: reason.to_owned(),
                state: MemberState::Vacant,
            };
            (member, start)
        });
        members.collect()
    }

    /// Who would not serve at once.
    pub(super) fn rehearsed(&self, assembly: &Assembly) -> Vec<Rehearsed> {
        let all = self.members(assembly).into_iter();
        let told = all.filter_map(|(member, start)| {
            let state = match start {
                Start::Source | Start::Detached | Start::Released => return None,
                Start::Merging | Start::StillMerging => "merging",
                Start::Copy { .. } => "copy-target",
                Start::Expelled => "expelled",
                Start::Missing { .. } => "missing",
            };
            let (name, reason) = (member.name, member.reason);
            Some(Rehearsed {
                name,
                state,
                reason,
            })
        });
        told.collect()
    }

    /// When the set was created; a block that an older program wrote does not know.
    pub(super) fn created(&self) -> Option<Moment> {
        self.entries.iter().find_map(|entry| match &entry.block {
            ScbFound::Read(scb) => scb.created,
            ScbFound::None | ScbFound::Damaged(_) => None,
        })
    }

    /// The files of each member.
    pub(super) fn seats(&self, assembly: &Assembly) -> Vec<Seat> {
        let entries = self.entries.iter().zip(&assembly.starts);
        let seats = entries.map(|(entry, start)| {
            let released = *start == Start::Released;
            let mut seat = Seat::new(entry.setup.scb.clone(), entry.setup.io);
            (seat.protect, seat.released) = (entry.setup.protect, released);
            if let ScbFound::Read(scb) = &entry.block {
                let away = scb.stamp.as_ref().filter(|_| !start.takes_part());
                seat.fingerprint = away.map(Stamp::fingerprint);
                seat.unit = Some(scb.geometry.size());
            }
            seat.identity = entry.image.as_ref().map(Image::identity);
            seat
        });
        seats.collect()
    }

    /// The storage of the members that take part; the others are closed again, and their locks freed.
    pub(super) fn stores(self, assembly: &Assembly) -> Stores {
        let mut stores = Stores::default();
        for (index, entry) in self.entries.into_iter().enumerate() {
            let takes_part = assembly.starts[index].takes_part();
            if let Some(image) = entry.image.filter(|_| takes_part) {
                stores[index] = Some(storage(image));
            }
        }
        stores
    }
}

impl Entry {
    /// An image that is missing is decided upon later, and one that has left may be in other hands;
    /// anything else that keeps it from being opened ends the start.
    fn look(setup: &MemberSetup) -> Result<Self> {
        let block = scb_file::read(&setup.scb)
            .map_err(|e| Error::io(format!("{} cannot be read", setup.scb.display()), e))?;
        let left = matches!(&block, ScbFound::Read(scb) if scb.state.has_left());
        match sync_block(&setup.scb, &block) {
            Err(error) if left => tracing::warn!(member = setup.name, %error, "it has left"),
            synced => synced?,
        }
        let kept =
            matches!(&block, ScbFound::Read(scb) if scb.stamp.as_ref().is_some_and(|s| s.kept));
        let ours = kept || setup.protect == Protect::Immutable;
        let immutable = ours && immutable::is_set(&setup.path);
        let opened = match immutable {
            true => Image::glance(&setup.path),
            false => Image::open(&setup.path, setup.io),
        };
        let image = match opened {
            Ok(image) => Some(image),
            Err(error) if left || error.code() == Code::NoSuchFile => {
                tracing::warn!(member = setup.name, %error, "a member takes no part");
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            setup: setup.clone(),
            block,
            image,
            immutable,
            unsought: None,
        })
    }

    fn absent(setup: MemberSetup, why: &'static str) -> Self {
        Self {
            setup,
            block: ScbFound::None,
            image: None,
            immutable: false,
            unsought: Some(why),
        }
    }
}

/// Makes a block durable by which others are decided upon; that of a member that has left may be out of reach.
fn sync_block(path: &Path, block: &ScbFound) -> Result<()> {
    if *block == ScbFound::None {
        return Ok(());
    }
    let at = path.to_owned();
    let synced = within(PATIENCE_MAX, "block", move || scb_file::sync(&at));
    let undurable = |e| Error::io(format!("{} is not durable", path.display()), e);
    synced.and_then(|done| done).map_err(undurable)
}

/// Whether the detach of a member was cut short by the crash: the others' blocks say that it has left, as
/// the last thing that happened, and its own does not yet.
fn cut_short(assembly: &Assembly, index: usize, said: Said) -> bool {
    let last = said.generation.next() == assembly.generation && !assembly.clean;
    let detached = assembly.starts[index] == Start::Detached;
    detached && last && !said.has_left && said.ancestry == Ancestry::Ancestor
}

/// Why a member that only the set names is not looked for, if it is not: a mount that is to include the others takes back
/// nobody who has left.
fn unsought(include: bool, has_left: bool) -> Option<&'static str> {
    match (include, has_left) {
        (true, false) => None,
        (true, true) => Some("it had left the set, and include takes back nobody who has"),
        (false, _) => Some("it is not in the configuration, nor in the option members"),
    }
}

fn reason(start: Start) -> &'static str {
    match start {
        Start::Source => "",
        Start::Merging | Start::StillMerging => "the unit was not stopped in order",
        Start::Copy { resume: true } => "its copy is to be done, or goes on",
        Start::Copy { resume: false } => "it was behind when the unit was mounted",
        Start::Detached => "detached before the unit was mounted",
        Start::Expelled => "expelled before the unit was mounted",
        Start::Released => "it was released from the set, and nothing is known of its image since",
        Start::Missing { .. } => "its image or its control block was not there at the mount",
    }
}
