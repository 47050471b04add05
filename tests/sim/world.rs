//! The world of one seed: a set, its members, and what is under way. What it does is in the other files.

use std::collections::BTreeMap;
use std::sync::Arc;

use shadowset::server::fence::FenceTable;
use shadowset::set::Scb;
use shadowset::set::scb::Lineage;
use shadowset::set::{
    Beginning, BitmapId, ByteRange, Bytes, Epoch, Event, FlushId, Generation, Geometry, Limits,
    Member, MemberId, MemberSet, MemberState, Moment, Past, Policy, ShadowSet, Start, View,
    Written,
};
use shadowset::testing::memory::Value;
use shadowset::testing::{Image, Oracle, Rng};

use crate::copier::Copy;
use crate::growth::Growth;
use crate::home::SimHome;
use crate::limits::first_limits;
use crate::ops::Ops;
use crate::plan::Plan;
use crate::requests::Request;
use crate::unflushed::{Losses, unflushed};
use crate::verifier::Verifies;

pub(crate) const BLOCK: u64 = 512;

/// What was found wrong.
#[derive(Clone, Debug)]
pub(crate) struct Violation(pub(crate) String);

pub(crate) type Checked = Result<(), Violation>;

/// Gives a violation unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err($crate::world::Violation(format!($($text)+)));
        }
    };
}
pub(crate) use ensure;

/// Debug builds can make one mistake on purpose; release builds none.
macro_rules! makes {
    ($mistake:ident) => {{
        #[cfg(debug_assertions)]
        let planted = shadowset::set::planted::is(shadowset::set::planted::Mistake::$mistake);
        #[cfg(not(debug_assertions))]
        let planted = false;
        planted
    }};
}
pub(crate) use makes;

/// One member's storage.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) image: Image,
    pub(crate) open: bool,
    /// Contents at the answer to a detach: nothing may change them.
    pub(crate) frozen: Option<Vec<Value>>,
    pub(crate) bad_writes: bool,
    pub(crate) bad_reads: bool,
    pub(crate) bad_flushes: bool,
    /// How much had been written when a flush failed of which the set has not heard.
    pub(crate) unflushed: Option<u64>,
    /// Blocks of which writes are lost: how many values they have had since the last flush, and the one that is left.
    pub(crate) lost: BTreeMap<usize, (usize, Value)>,
    /// What will be left of blocks, once its cache is gone, of a member that is leaving.
    pub(crate) leaves: Vec<(usize, Value)>,
    /// Somebody else has written it; it stays so until its block says that it is being filled.
    pub(crate) changed: bool,
    /// Its storage control block.
    pub(crate) scb: Option<Scb>,
    /// A copy of image and block that somebody has made.
    pub(crate) old: Option<(Vec<Value>, Option<Scb>)>,
}

impl Disk {
    /// Blocks that the image has; the unit may have fewer.
    pub(crate) fn blocks(&self) -> u64 {
        self.image.len() as u64
    }

    /// Whether these blocks hold zeros.
    pub(crate) fn is_blank(&self, from: usize, to: usize) -> bool {
        (from..to.min(self.image.len())).all(|block| self.image.get(block) == 0)
    }

    pub(crate) fn new(contents: Vec<Value>) -> Self {
        Self {
            image: Image::new(contents),
            open: true,
            frozen: None,
            bad_writes: false,
            bad_reads: false,
            bad_flushes: false,
            unflushed: None,
            lost: BTreeMap::new(),
            leaves: Vec::new(),
            changed: false,
            scb: None,
            old: None,
        }
    }
}

/// A View and how many requests and copy steps hold it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) view: Arc<View>,
    pub(crate) pins: usize,
}

/// A flush that the set has asked for: per member, what it covers.
#[derive(Debug)]
pub(crate) struct Flushing {
    pub(crate) id: FlushId,
    pub(crate) covers: Vec<(MemberId, u64)>,
    /// Members whose calls were given up since.
    pub(crate) given_up: MemberSet,
    /// What came of it, when it has ended and the set has not heard.
    pub(crate) ended: Option<Event>,
}

/// Who waits for a ticket.
#[derive(Clone, Debug)]
pub(crate) enum Asker {
    /// A command: its word, the member, and when it was given.
    Command(Asked),
    /// A request with failures.
    Request(u64),
    /// A read repair that has failed.
    ReadRepair,
    /// A repair that failed on a member.
    Verify,
}

/// A command under way.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) word: &'static str,
    pub(crate) member: Option<MemberId>,
    /// Whether the member was a source when it was given.
    pub(crate) source: bool,
    /// Whether no request and no verify was under way when it was given.
    pub(crate) idle: bool,
    /// Per block, how many writes had ended when it was given.
    pub(crate) ended: Vec<usize>,
    /// A detach that must leave a bitmap, an attach that must be a minicopy.
    pub(crate) minicopy: bool,
    /// Requests that had been begun when it was given.
    pub(crate) requests: u64,
}

/// How often rare paths were taken.
pub(crate) type Marks = BTreeMap<&'static str, u64>;

/// The world of one seed.
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) turns: Turns,
    pub(crate) plan: Plan,
    pub(crate) set: ShadowSet,
    pub(crate) geometry: Geometry,
    pub(crate) disks: Vec<Disk>,
    pub(crate) oracle: Oracle,
    pub(crate) fences: FenceTable,
    /// Writers inside each block, counted apart from the fences (I4).
    pub(crate) inside: Vec<u8>,
    pub(crate) views: BTreeMap<Epoch, Held>,
    pub(crate) requests: Vec<Request>,
    pub(crate) copies: Vec<Copy>,
    /// The verify that runs, and what verifies have repaired.
    pub(crate) verifies: Verifies,
    pub(crate) inbox: Vec<Event>,
    pub(crate) flushes: Vec<Flushing>,
    pub(crate) tickets: BTreeMap<u64, Asker>,
    pub(crate) generation: u64,
    /// Bytes that the answer to an attach promised, by operation.
    pub(crate) promised: BTreeMap<u64, u64>,
    /// Bitmaps as people were told, and whether a copy drains them.
    pub(crate) told: BTreeMap<BitmapId, bool>,
    /// Members that were detached with a new bitmap, and the epoch of their cut.
    pub(crate) fresh: BTreeMap<MemberId, Epoch>,
    pub(crate) ids: u64,
    pub(crate) started: u64,
    pub(crate) now: u64,
    pub(crate) quiet: bool,
    /// The unit is being stopped: commands under way are refused, whatever they have done.
    pub(crate) stopping: bool,
    pub(crate) stopped: bool,
    /// Whether it was stopped in good order.
    pub(crate) clean: bool,
    /// The mounts up to now.
    pub(crate) lineage: Lineage,
    /// Per block, what members that were to be merged had in it.
    pub(crate) unmerged: Vec<Vec<Value>>,
    /// Blocks that were read while the membership was not durable: a member that has left unmerged may still be
    /// elected then.
    pub(crate) loosely_read: Vec<bool>,
    /// Blocks whose master was still to be merged there when it was elected, until a flush: what it had on disk
    /// may be what it shows after a loss of power.
    pub(crate) unsettled: Vec<bool>,
    /// Whether bitmaps were in memory only when the set stopped.
    pub(crate) gave_up: bool,
    /// Whether the set has been mounted while a member was absent.
    pub(crate) parted: bool,
    /// Where bitmaps are kept.
    pub(crate) home: SimHome,
    /// Operations on storage, and what strikes them.
    pub(crate) ops: Ops,
    pub(crate) crashed: bool,
    /// Whether the crash is a loss of power.
    pub(crate) power: bool,
    /// What the world expected before a mount: one that ends before its first View has served nobody, and the
    /// next may elect another master.
    pub(crate) before: Option<Expected>,
    /// Whether this life keeps bitmaps in memory only, and leaves those of the life before as they are.
    pub(crate) in_memory: bool,
    /// Whether the last life has served nobody.
    pub(crate) unserved: bool,
    /// Mark of the last mount that has served somebody.
    pub(crate) served: u64,
    /// Whether the first effects of a life are carried out.
    pub(crate) beginning: bool,
    /// What the members' blocks hold.
    pub(crate) written: Written,
    /// How a unit that grows is doing.
    pub(crate) growth: Growth,
    /// Members that are absent at the next mount.
    pub(crate) away: Vec<usize>,
    /// How many copies may run.
    pub(crate) limits: Limits,
    pub(crate) marks: Marks,
    pub(crate) trace: u64,
    log: Option<Vec<String>>,
}

/// What the world expects of the next mount.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) oracle: Oracle,
    pub(crate) unmerged: Vec<Vec<Value>>,
    pub(crate) loosely_read: Vec<bool>,
    /// Whether power was lost before.
    pub(crate) power: bool,
}

/// Which steps a run takes, and when.
#[derive(Debug)]
pub(crate) struct Turns {
    pub(crate) seed: u64,
    /// The only steps that are taken; without, all of the plan.
    pub(crate) only: Option<Vec<u64>>,
    /// The last step that was begun.
    pub(crate) last: u64,
    /// What the clock is ahead of the steps, or behind.
    pub(crate) skew: i64,
}

impl Turns {
    fn of(seed: u64) -> Self {
        Self {
            seed,
            only: None,
            last: 0,
            skew: 0,
        }
    }
}

/// What a run comes to.
#[derive(Clone, Debug)]
pub(crate) struct Ran {
    pub(crate) trace: u64,
    pub(crate) steps: u64,
    pub(crate) marks: Marks,
}

impl World {
    /// A world of this plan.
    pub(crate) fn with(mut rng: Rng, plan: Plan, seed: u64, log: bool) -> Self {
        let geometry =
            Geometry::new(Bytes(plan.blocks * BLOCK), plan.region_blocks).expect("a small unit");
        let unit: Vec<Value> = (0..plan.blocks).map(|b| value_of(b) % 5).collect();
        let (blocks, mut unmerged) = (unit.len(), vec![Vec::new(); unit.len()]);
        let (disks, members) = furnish(&mut rng, &plan, &unit, &mut unmerged);
        let limits = first_limits(&mut rng, &plan);
        let from = first_beginning(geometry, limits);
        Self {
            set: ShadowSet::assemble(from, members).expect("there is a source"),
            oracle: Oracle::new(&unit),
            inside: vec![0; blocks],
            parted: false,
            gave_up: false,
            unmerged,
            unsettled: vec![false; blocks],
            loosely_read: vec![false; blocks],
            rng,
            turns: Turns::of(seed),
            home: SimHome::new(plan.home.0, plan.home.1),
            ops: Ops::of(Losses::of(seed, plan.faults.flush)),
            plan,
            geometry,
            disks,
            fences: FenceTable::default(),
            views: BTreeMap::new(),
            requests: Vec::new(),
            copies: Vec::new(),
            verifies: Verifies::default(),
            inbox: Vec::new(),
            flushes: Vec::new(),
            tickets: BTreeMap::new(),
            generation: 1,
            promised: BTreeMap::new(),
            told: BTreeMap::new(),
            fresh: BTreeMap::new(),
            ids: 0,
            started: 0,
            now: 0,
            quiet: false,
            stopping: false,
            stopped: false,
            clean: false,
            lineage: crate::crash::first_lineage(),
            crashed: false,
            power: false,
            before: None,
            in_memory: false,
            unserved: false,
            served: 0,
            beginning: false,
            written: Written::new(Generation::FIRST),
            growth: Growth::default(),
            away: Vec::new(),
            limits,
            marks: Marks::new(),
            trace: seed,
            log: log.then(Vec::new),
        }
    }

    /// The last operations, when they were asked for.
    pub(crate) fn last_operations(&self, most: usize) -> &[String] {
        let log = self.log.as_deref().unwrap_or_default();
        &log[log.len().saturating_sub(most)..]
    }

    /// Gives an event to the set and carries out what it answers.
    pub(crate) fn handle(&mut self, event: Event) -> Checked {
        if self.log.is_some() {
            let text = format!("{event:?}");
            self.log(format!(
                "event {}",
                text.chars().take(160).collect::<String>()
            ));
        }
        let now = self.moment();
        if matches!(event, Event::Tick | Event::Beat) && self.is_undurable() {
            return self.persist_again();
        }
        let back = self.failed_before(&event);
        self.note_told(&event);
        let failed = unflushed(&event);
        self.tell_lost(failed);
        let effects = self.set.handle(now, event);
        self.check_returned(back)?;
        self.carry_out(effects)?;
        if self.crashed {
            return Ok(());
        }
        self.settle_unflushed(failed);
        self.check_all()
    }

    /// What the clock says: it may have been set back.
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.now.saturating_add_signed(self.turns.skew))
    }

    /// Pins the current View.
    pub(crate) fn pin(&mut self) -> Arc<View> {
        let mut last = self.views.last_entry().expect("a View is published");
        last.get_mut().pins += 1;
        Arc::clone(&last.get().view)
    }

    /// Lets a View go; tells when the last one has gone who held an old one.
    pub(crate) fn unpin(&mut self, epoch: Epoch) {
        let held = self.views.get_mut(&epoch).expect("it was pinned");
        held.pins -= 1;
        self.retire();
    }

    /// Sends word of every epoch that is over.
    pub(crate) fn retire(&mut self) {
        let current = self.views.last_key_value().map(|(epoch, _)| *epoch);
        let over = |(epoch, held): (&Epoch, &Held)| {
            (held.pins == 0 && Some(*epoch) != current).then_some(*epoch)
        };
        let over: Vec<Epoch> = self.views.iter().filter_map(over).collect();
        for epoch in over {
            self.views.remove(&epoch);
            self.inbox.push(Event::Retired(epoch));
        }
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    pub(crate) fn mark(&mut self, what: &'static str) {
        *self.marks.entry(what).or_default() += 1;
    }

    /// Mixes numbers into the hash that two runs of a seed must share.
    pub(crate) fn trace(&mut self, numbers: &[u64]) {
        for n in numbers {
            self.trace = (self.trace ^ n)
                .wrapping_mul(0x0100_0000_01b3)
                .rotate_left(17);
        }
    }

    pub(crate) fn log(&mut self, text: impl Into<String>) {
        let now = self.now;
        if let Some(log) = &mut self.log {
            log.push(format!("{now:6} {}", text.into()));
        }
    }

    pub(crate) fn is_logging(&self) -> bool {
        self.log.is_some()
    }

    /// All members that are sources now.
    pub(crate) fn sources(&self) -> MemberSet {
        let source = |id: &MemberId| matches!(self.state(*id), MemberState::Source);
        self.ids().filter(source).collect()
    }

    pub(crate) fn state(&self, id: MemberId) -> &MemberState {
        &self.set.members()[id.index()].state
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = MemberId> + use<> {
        (0..self.set.members().len()).filter_map(MemberId::new)
    }

    /// The bytes of one block.
    pub(crate) fn bytes_of(&self, block: usize) -> ByteRange {
        let range = self
            .geometry
            .clip(Bytes(block as u64 * BLOCK), Bytes(BLOCK));
        range.expect("a block of the unit")
    }

    /// Blocks of a full region.
    pub(crate) fn region_blocks(&self) -> u64 {
        u64::from(self.geometry.region_blocks())
    }

    pub(crate) fn disk(&mut self, id: MemberId) -> &mut Disk {
        &mut self.disks[id.index()]
    }
}

/// The blocks of a range as indexes.
pub(crate) fn blocks_of(range: ByteRange) -> std::ops::Range<usize> {
    let blocks = range.blocks();
    usize_of(blocks.first().0)..usize_of(blocks.end().0)
}

pub(crate) fn usize_of(n: u64) -> usize {
    usize::try_from(n).expect("a small world")
}

/// A number as the contents of a block; the highest bit is for torn writes.
pub(crate) fn value_of(n: u64) -> Value {
    u32::try_from(n & 0x7fff_ffff).expect("31 bits")
}

/// What a set that has never run begins with.
fn first_beginning(geometry: Geometry, limits: Limits) -> Beginning {
    Beginning {
        geometry,
        generation: Generation::FIRST,
        clean: true,
        last_mark: 0,
        unproven: false,
        mark: 0,
        absent: Policy::MinicopyOptional,
        past: Past::Unknown("it has just been created".to_owned()),
        home: Ok(()),
        limits,
        now: Moment(0),
    }
}

/// The disks of a plan and their members; `unmerged` gets what a member still to be merged may have in each block.
fn furnish(
    rng: &mut Rng,
    plan: &Plan,
    unit: &[Value],
    unmerged: &mut [Vec<Value>],
) -> (Vec<Disk>, Vec<(Member, Start)>) {
    let (mut disks, mut members) = (Vec::new(), Vec::new());
    for (n, start) in plan.starts.iter().enumerate() {
        let mut contents = unit.to_vec();
        if *start != Start::Source {
            spoil(rng, &mut contents, *start == Start::StillMerging);
        }
        if *start == Start::StillMerging {
            for (values, value) in unmerged.iter_mut().zip(&contents) {
                values.push(*value);
            }
        }
        let blank = !plan.grows || rng.chance(600);
        for _ in 0..larger(rng, plan) {
            contents.push(if blank { 0 } else { value_of(rng.below(4)) });
        }
        let size = contents.len() as u64 * BLOCK;
        disks.push(Disk::new(contents));
        members.push((member(n, size), *start));
    }
    (disks, members)
}

/// Blocks of an image behind the unit's end.
fn larger(rng: &mut Rng, plan: &Plan) -> u64 {
    match plan.grows {
        true => rng.between(3, 20),
        false if rng.chance(300) => rng.below(9),
        false => 0,
    }
}

pub(crate) fn member(place: usize, size: u64) -> Member {
    Member {
        name: format!("m{}", place + 1),
        uuid: uuid::Uuid::from_u128(place as u128 + 1),
        path: format!("/images/m{}", place + 1),
        size: Bytes(size),
        read_cost: 0,
        site: 0,
        timeout: 0,
        errors: 0,
        since: Moment(0),
        reason: String::new(),
        state: MemberState::Vacant,
    }
}

/// Makes contents differ from the unit's: some blocks, or all.
pub(crate) fn spoil(rng: &mut Rng, contents: &mut [Value], some: bool) {
    for value in contents {
        if !some || rng.chance(300) {
            *value = 0x7000_0000 | value_of(rng.below(1 << 20));
        }
    }
}
