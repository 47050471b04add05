//! The election at mount: what each configured member is, decided from the blocks alone.
//!
//! The newest generation wins, whatever the order of the configuration (I6); wall clocks have no
//! say. A member becomes a source only when its own block says so at the newest generation.
//! Everything older is copied again; what changed apart from the newest is refused, never merged
//! and never overwritten.
//!
//! This module must not look at images beyond their size, and must not change a block.
//!
//! It relies on the order in which the server writes blocks at a change of membership: the sources
//! first, then the copy targets, the departed member last, one at a time and durable each. So
//! whatever a crash leaves out, a source is among the holders of the newest generation.

use uuid::Uuid;

use super::geometry::{Bytes, Geometry};
use super::record::{BitmapKind, BitmapRecord};
use super::refusal::{Code, Refusal};
use super::scb::{Ancestry, Generation, Lineage, Scb, ScbRow, ScbState};

/// What was found where a member's storage control block should be.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant, reason = "at most six exist, at mount")]
pub enum ScbFound {
    /// No file.
    None,
    /// A file that is no whole block; the text says which file and why.
    Damaged(String),
    /// A whole block.
    Read(Scb),
}

/// What was found of one configured member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Name in the configuration.
    pub name: String,
    /// Size of the image, when it is there.
    pub image: Option<Bytes>,
    /// Its storage control block.
    pub scb: ScbFound,
}

/// How a member enters the mounted set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// As a source; the first one is the master of a merge.
    Source,
    /// As a source that may differ from the master where writes were in flight.
    Merging,
    /// As a source that may differ where it was to be merged, and where writes were in flight.
    StillMerging,
    /// As a copy target.
    Copy {
        /// Whether it lacks only what was left of its copy, if that is known; else everything.
        resume: bool,
    },
    /// Not at all: it left on request.
    Detached,
    /// Not at all: it left by an error.
    Expelled,
    /// Not at all: it has been released, and its image may be somebody's own since.
    Released,
    /// Not at all: its image or its block is not there.
    Missing {
        /// Whether it was a source: then it lacks only what was in flight, and what is written from now on.
        equal: bool,
    },
}

impl Start {
    /// Whether the member is written from the first View on.
    #[must_use]
    pub fn takes_part(self) -> bool {
        matches!(
            self,
            Self::Source | Self::Merging | Self::StillMerging | Self::Copy { .. }
        )
    }
}

/// The set as the blocks have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assembly {
    /// Identity of the set.
    pub set: Uuid,
    /// Label of the set.
    pub label: String,
    /// Unit size and region size.
    pub geometry: Geometry,
    /// The newest generation that was found; the mount writes the next one.
    pub generation: Generation,
    /// The mounts up to now; the mount adds its own.
    pub lineage: Lineage,
    /// Whether the set was stopped in order.
    pub clean: bool,
    /// What each configured member is, in the order of the configuration.
    pub starts: Vec<Start>,
    /// The identity of each configured member, where it is known.
    pub members: Vec<Option<Uuid>>,
    /// The table of the newest generation; may hold members that are not configured.
    pub table: Vec<ScbRow>,
    /// Whether the bitmaps that were kept belong to the newest generation.
    pub believed: bool,
    /// Whether the newest generation may have got no further than some blocks: a crash came among them.
    pub unproven: bool,
}

/// What the bitmaps that were kept prove. Every change of membership writes the blocks first and then notes
/// its generation with the write-intent bitmap.
#[derive(Clone, Copy, Debug)]
struct Proof {
    /// Nothing has happened since that they know nothing of: they may be used.
    believed: bool,
    /// The newest generation that every member's block had got.
    complete: Option<u64>,
}

impl Proof {
    fn of(kept: &[BitmapRecord], newest: &Scb) -> Self {
        let ours = |r: &&BitmapRecord| {
            let intent = matches!(r.kind, BitmapKind::Intent | BitmapKind::Opening);
            intent && newest.lineage.holds_record(r)
        };
        let complete = kept.iter().filter(ours);
        let complete = complete.filter(|r| r.kind == BitmapKind::Intent);
        let complete = complete.map(|r| r.tag.generation).max();
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::BelieveAlways) {
            return Self::planted(kept, complete);
        }
        let mark = newest.lineage.mark();
        let newest = newest.generation.number();
        let knows = |r: &BitmapRecord| {
            // One generation may be missing, of the change that was under way. Not that of a later mount,
            // which has kept no bitmaps: it would have noted its generation before it wrote a block.
            let same_mount = r.owner.as_u64_pair().1 == mark;
            r.tag.generation == newest || same_mount && r.tag.generation + 1 == newest
        };
        Self {
            believed: kept.iter().filter(ours).any(knows),
            complete,
        }
    }

    #[cfg(debug_assertions)]
    fn planted(kept: &[BitmapRecord], complete: Option<u64>) -> Self {
        let believed = !kept.is_empty();
        Self { believed, complete }
    }

    /// Whether this generation, the newest, is not known to be in every block.
    fn lacks(self, newest: Generation) -> bool {
        self.believed && self.complete.is_some_and(|c| c < newest.number())
    }

    /// Whether a block that is older than the newest was left behind by a crash among the writes of the
    /// newest generation, and not put back by somebody.
    fn excuses(self, block: Generation) -> bool {
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::ExcuseAlways) {
            return true;
        }
        self.believed && self.complete.is_some_and(|c| block.number() >= c)
    }
}

/// Decides what each configured member is. `kept` are the records of the bitmaps that outlived the last mount.
///
/// # Errors
/// A refusal that names the member: never created, of another set, one member twice, a damaged
/// block, diverged copies, an image that is too small, or no source among what is there.
pub fn assess(found: &[Found], kept: &[BitmapRecord]) -> Result<Assembly, Refusal> {
    let blocks: Vec<(&Found, &Scb)> = found.iter().filter_map(|f| Some((f, f.block()?))).collect();
    let set = elect_set(found, &blocks)?;
    refuse_strangers(set, &blocks)?;
    refuse_twins(&blocks)?;
    let Some(newest) = newest(&blocks, kept) else {
        return Err(never_created(found));
    };
    refuse_damaged(found, newest.1)?;
    refuse_split(newest, &blocks)?;
    refuse_outdated(found, newest.1, kept)?;
    let proof = Proof::of(kept, newest.1);
    let starts = starts(found, newest.1, proof);
    let led_by_merging = is_led_by_merging(found, &starts);
    refuse_small(found, &starts, newest.1.geometry.size())?;
    refuse_without_source(found, &starts, newest)?;
    let newest = newest.1;
    Ok(Assembly {
        set,
        label: newest.label.clone(),
        geometry: newest.geometry,
        generation: newest.generation,
        lineage: newest.lineage.clone(),
        clean: newest.clean && !led_by_merging,
        members: found.iter().map(|f| f.identity(newest)).collect(),
        starts,
        table: newest.table.clone(),
        believed: proof.believed,
        unproven: proof.lacks(newest.generation),
    })
}

impl Found {
    fn block(&self) -> Option<&Scb> {
        match &self.scb {
            ScbFound::Read(scb) => Some(scb),
            ScbFound::None | ScbFound::Damaged(_) => None,
        }
    }

    /// The member's identity: its own block's, else the one that the table has under its name.
    fn identity(&self, newest: &Scb) -> Option<Uuid> {
        let named = || {
            newest
                .table
                .iter()
                .find(|r| r.name == self.name)
                .map(|r| r.member)
        };
        self.block().map(|b| b.member).or_else(named)
    }
}

/// The set that most blocks belong to, the first one among equals.
fn elect_set(found: &[Found], blocks: &[(&Found, &Scb)]) -> Result<Uuid, Refusal> {
    let votes = |set: Uuid| blocks.iter().filter(|b| b.1.set == set).count();
    // `max_by_key` takes the last of equals, so the order is turned round.
    let elected = blocks
        .iter()
        .rev()
        .map(|b| b.1.set)
        .max_by_key(|set| votes(*set));
    elected.ok_or_else(|| never_created(found))
}

fn never_created(found: &[Found]) -> Refusal {
    let damaged = found.iter().find_map(|f| match &f.scb {
        ScbFound::Damaged(why) => Some(damaged(&f.name, why)),
        _ => None,
    });
    damaged.unwrap_or_else(|| {
        Refusal::new(
            Code::Config,
            "the set has never been created: no member has an SCB",
        )
        .with_hint(
            "`shadowset create UNIT` makes a new set; where the SCBs were lost, `shadowset create UNIT --from \
             NAME --erase` keeps the data of that member",
        )
    })
}

fn damaged(name: &str, why: &str) -> Refusal {
    Refusal::new(Code::Config, format!("the SCB of {name} is damaged: {why}"))
        .at(name)
        .with_hint("restore the file, or take the member out of the configuration")
}

fn refuse_strangers(set: Uuid, blocks: &[(&Found, &Scb)]) -> Result<(), Refusal> {
    let Some((stranger, scb)) = blocks.iter().find(|b| b.1.set != set) else {
        return Ok(());
    };
    let text = format!(
        "{} belongs to another set, {} ({:?})",
        stranger.name, scb.set, scb.label
    );
    Err(Refusal::new(Code::OtherSet, text).at(&stranger.name))
}

/// A copied image with its copied block would make one member count twice.
fn refuse_twins(blocks: &[(&Found, &Scb)]) -> Result<(), Refusal> {
    for (i, (found, scb)) in blocks.iter().enumerate() {
        if let Some((first, _)) = blocks[..i].iter().find(|b| b.1.member == scb.member) {
            let text = format!(
                "{} and {} carry the SCB of one member, {}",
                first.name, found.name, scb.member
            );
            return Err(Refusal::new(Code::AlreadyMember, text)
                .at(&found.name)
                .with_hint("one is a copy of the other: remove the SCB of the copy"));
        }
    }
    Ok(())
}

/// A block of the newest generation; of a member that claims the data when there is one, and of the line that
/// the bitmaps come from when there are two.
fn newest<'a>(
    blocks: &[(&'a Found, &'a Scb)],
    kept: &[BitmapRecord],
) -> Option<(&'a Found, &'a Scb)> {
    // Of two lines the one that the latest bitmap is of has served the unit: the other may have got no further
    // than a start that was refused, whatever its generation. Both may hold the older bitmaps.
    let known = |scb: &Scb, proven: bool| {
        let held = kept.iter().filter(|r| scb.lineage.holds_record(r));
        let held = held.filter(|r| !proven || r.kind == BitmapKind::Intent);
        held.map(|r| r.tag.generation).max()
    };
    let rank = |(_, scb): &(&Found, &Scb)| {
        let claims = scb.state.claims_data();
        (known(scb, true), scb.generation, claims, known(scb, false))
    };
    blocks.iter().rev().copied().max_by_key(rank)
}

/// A damaged block could be the newest, unless the set knows that its member had left.
fn refuse_damaged(found: &[Found], newest: &Scb) -> Result<(), Refusal> {
    for f in found {
        let ScbFound::Damaged(why) = &f.scb else {
            continue;
        };
        let row = newest.table.iter().find(|r| r.name == f.name);
        if !row.is_some_and(|r| r.state.has_left()) {
            return Err(damaged(&f.name, why));
        }
    }
    Ok(())
}

/// Bitmaps that tell of a generation that no block comes from: who has it is absent, and whoever is there may
/// have missed writes since (I3).
fn refuse_outdated(found: &[Found], newest: &Scb, kept: &[BitmapRecord]) -> Result<(), Refusal> {
    let unknown = |r: &&BitmapRecord| {
        let generation = r.tag.generation;
        r.kind == BitmapKind::Intent
            && (generation > newest.generation.number()
                || !newest.lineage.holds_record(r) && newest.lineage.remembers(generation))
    };
    let last = kept.iter().filter(unknown).map(|r| r.tag.generation).max();
    let Some(last) = last else {
        return Ok(());
    };
    let there = |row: &&ScbRow| {
        let same =
            |f: &Found| f.image.is_some() && f.block().is_some_and(|b| b.member == row.member);
        found.iter().any(same)
    };
    let absent = newest.table.iter().filter(|row| !there(row));
    let absent: Vec<&str> = absent.map(|row| row.name.as_str()).collect();
    let has = newest.generation;
    let but = match last > has.number() {
        true => format!("the set has reached {last}"),
        false => {
            format!("the last mount had another generation {last}, which it does not come from")
        }
    };
    let text = format!(
        "the newest block that is there has generation {has}, but {but}: a member that is absent has \
         newer data"
    );
    let without = "to go on without, and lose what it alone has, remove journal.a, journal.b and grown from the state directory";
    Err(
        Refusal::new(Code::WrongGeneration, text).with_hint(match absent[..] {
            [] => without.to_owned(),
            _ => format!("bring back {}; {without}", absent.join(", ")),
        }),
    )
}

/// A member that claims the data must be an ancestor of the newest block, or its equal.
fn refuse_split(newest: (&Found, &Scb), blocks: &[(&Found, &Scb)]) -> Result<(), Refusal> {
    let (winner, newest) = newest;
    for (found, scb) in blocks.iter().filter(|b| b.1.state.claims_data()) {
        let known = newest
            .row(scb.member)
            .is_some_and(|r| !r.state.claims_data());
        let related = match newest.lineage.ancestry(scb.generation, &scb.lineage) {
            Ancestry::Ancestor => scb.generation < newest.generation || scb.table == newest.table,
            Ancestry::Forgotten => known,
            Ancestry::Foreign => false,
        };
        if !related {
            let text = format!(
                "{} (generation {}) and {} (generation {}) have both changed apart from each other",
                winner.name, newest.generation, found.name, scb.generation
            );
            return Err(Refusal::new(Code::SplitBrain, text).at(&found.name));
        }
    }
    Ok(())
}

/// Whether the master is a member that was still to be merged: then a source that is absent is not its equal.
fn is_led_by_merging(found: &[Found], starts: &[Start]) -> bool {
    let mut all = found.iter().zip(starts);
    let master = all.find(|(_, start)| **start == Start::Source);
    let block = master.and_then(|(found, _)| found.block());
    block.is_some_and(|block| block.state == ScbState::Merging)
}

fn starts(found: &[Found], newest: &Scb, proof: Proof) -> Vec<Start> {
    let alone: Vec<Start> = found.iter().map(|f| start_of(f, newest, proof)).collect();
    // A member that is still to be merged is the master only when no other source is there.
    let master = alone.iter().position(|s| *s == Start::Source);
    let merging = |s: &Start| matches!(s, Start::StillMerging | Start::Merging);
    let master = master.or_else(|| alone.iter().position(merging));
    let merged = |(i, start): (usize, Start)| match start {
        _ if Some(i) == master => Start::Source,
        Start::Source if !newest.clean => Start::Merging,
        other => other,
    };
    alone.into_iter().enumerate().map(merged).collect()
}

/// What a member is by itself; which source is the master is decided by the others.
fn start_of(found: &Found, newest: &Scb, proof: Proof) -> Start {
    // The table knows about a departure even when the member's own block does not.
    let row = found
        .identity(newest)
        .and_then(|m| newest.row(m))
        .map(|r| r.state);
    match row {
        Some(ScbState::Detached) => return Start::Detached,
        Some(ScbState::Expelled) => return Start::Expelled,
        _ => {}
    }
    match (found.image, found.block()) {
        (Some(_), Some(_)) if row.is_none() => Start::Released,
        (Some(_), Some(scb)) if scb.generation < newest.generation => {
            left_behind(scb, row, newest, proof)
        }
        (Some(_), Some(scb)) => match scb.state {
            ScbState::Source => Start::Source,
            ScbState::Merging => Start::StillMerging,
            #[cfg(debug_assertions)]
            ScbState::Target if super::planted::is(super::planted::Mistake::TargetTrusted) => {
                Start::Source
            }
            ScbState::Target => Start::Copy { resume: true },
            ScbState::Detached | ScbState::Expelled => Start::Copy { resume: false },
        },
        _ => Start::Missing {
            equal: row == Some(ScbState::Source),
        },
    }
}

/// What a member is whose block is older than the newest, which does not say that it has left.
fn left_behind(scb: &Scb, row: Option<ScbState>, newest: &Scb, proof: Proof) -> Start {
    let excused = proof.excuses(scb.generation);
    let unproven = proof.lacks(newest.generation);
    #[cfg(debug_assertions)]
    let row = planted_row(row, scb.state);
    match (row, scb.state) {
        (Some(ScbState::Source), ScbState::Source) if excused => Start::Merging,
        (Some(ScbState::Source | ScbState::Merging), ScbState::Source | ScbState::Merging)
            if excused =>
        {
            Start::StillMerging
        }
        // Also when the copy had ended and the crash came among the blocks that say so: its bitmap is kept until all do.
        (Some(ScbState::Target | ScbState::Source), ScbState::Target) if excused => {
            Start::Copy { resume: true }
        }
        // Its attach had not begun to write it: its bitmap is as good as before.
        (Some(ScbState::Target), ScbState::Detached) if unproven => Start::Detached,
        (Some(ScbState::Target), ScbState::Expelled) if unproven => Start::Expelled,
        _ => Start::Copy { resume: false },
    }
}

/// What only a planted mistake makes of a copy that had just ended.
#[cfg(debug_assertions)]
fn planted_row(row: Option<ScbState>, own: ScbState) -> Option<ScbState> {
    let anew = super::planted::is(super::planted::Mistake::EndedCopyAnew);
    row.filter(|row| !anew || (*row, own) != (ScbState::Source, ScbState::Target))
}

/// Images that departed are checked when they are attached.
fn refuse_small(found: &[Found], starts: &[Start], unit: Bytes) -> Result<(), Refusal> {
    for (f, start) in found.iter().zip(starts) {
        let enters = start.takes_part();
        let Some(size) = f.image.filter(|size| enters && *size < unit) else {
            continue;
        };
        let text = format!(
            "the image of {} has {size} bytes, the unit has {unit} bytes",
            f.name
        );
        return Err(Refusal::new(Code::MemberTooSmall, text).at(&f.name));
    }
    Ok(())
}

fn refuse_without_source(
    found: &[Found],
    starts: &[Start],
    newest: (&Found, &Scb),
) -> Result<(), Refusal> {
    if starts.contains(&Start::Source) {
        return Ok(());
    }
    let names = |wanted: fn(&Start) -> bool| {
        let all = found.iter().zip(starts).filter(|(_, s)| wanted(s));
        all.map(|(f, _)| f.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let kinds = [
        (names(|s| matches!(s, Start::Copy { .. })), "to be copied"),
        (names(|s| *s == Start::Detached), "detached"),
        (names(|s| *s == Start::Expelled), "expelled"),
        (names(|s| *s == Start::Released), "released"),
        (names(|s| matches!(s, Start::Missing { .. })), "missing"),
    ];
    let there: Vec<String> = kinds
        .iter()
        .filter(|(names, _)| !names.is_empty())
        .map(|(names, word)| format!("{names} {word}"))
        .collect();
    let sources: Vec<&str> = newest
        .1
        .table
        .iter()
        .filter(|r| r.state.claims_data())
        .map(|r| r.name.as_str())
        .collect();
    let text = format!(
        "there is no source member of generation {}: {}; only a source has all data",
        newest.1.generation,
        there.join("; ")
    );
    Err(Refusal::new(Code::NeedsCopy, text).with_hint(format!(
        "bring back one of its sources: {}",
        sources.join(", ")
    )))
}

#[cfg(test)]
mod tests;
