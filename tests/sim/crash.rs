//! Crashes: the program is killed, or power is lost; then the set is elected and assembled anew.
//!
//! A crash may come between any two storage control blocks of one change of membership, and between any
//! two changes of the home of bitmaps. What is left is the images, of which a loss of power keeps any
//! part of what was not flushed, the blocks, and the home, unless bitmaps are kept in memory only.

use std::collections::BTreeMap;

use shadowset::set::scb::{LINEAGE_MAX, Lineage, ScbRow};
use shadowset::set::{
    Assembly, Beginning, BitmapKind, BitmapRecord, Code, Found, Generation, Geometry, Member,
    MemberId, MemberSet, Past, Policy, Refusal, Scb, ScbFound, ScbState, ShadowSet, Start,
    WriteBitmap, Written, assess,
};
use shadowset::testing::Image;
use shadowset::testing::memory::Value;

use crate::ops::{Coming, Op, Strike, Trouble};
use crate::returned::Returned;
use crate::stall::Stall;
use crate::verifier::Verifies;
use crate::world::{Checked, Disk, Expected, Violation, World, ensure, makes, member};

impl World {
    /// Lets a crash come now, or at one of the next operations on storage.
    pub(crate) fn draw_crash(&mut self) {
        let free = !self.crashed && self.ops.coming.is_none();
        if free && self.rng.below(10_000) < self.plan.crashes {
            let what = match self.rng.chance(500) {
                true => Trouble::Power,
                false => Trouble::Kill,
            };
            self.ops.coming = Some(Coming {
                left: self.rng.below(12),
                what,
                blocks_only: self.rng.chance(700),
            });
            self.power = what == Trouble::Power;
            self.crashed = self.rng.chance(500);
        }
    }

    /// Writes a generation to the members' blocks in the server's order, as far as it comes.
    pub(crate) fn write_blocks(&mut self, generation: Generation, clean: bool, to: MemberSet) {
        let (table, writers) = (self.set.table(), self.set.writers());
        if !self.written.may_write(to, writers) && !makes!(BlockOfLeaverAhead) {
            self.mark("a member leaves before its set is durable");
            self.ops.just_failed = self.ops.just_failed.or(to);
            return;
        }
        let mut failed = MemberSet::EMPTY;
        let order = Written::order(to, |id| {
            let before = self.disks[id.index()].scb.as_ref().map(|scb| scb.state);
            (self.state(id).durable(), before)
        });
        let mut source_written = !order.iter().any(|(_, source)| *source);
        for (id, is_source) in order {
            if !is_source && !source_written {
                failed.insert(id);
                continue;
            }
            match self.strike(Op::Block) {
                Strike::Crashes => return self.mark("crash between control blocks"),
                Strike::Fails => failed.insert(id),
                Strike::Passes if self.is_bad_block() => failed.insert(id),
                Strike::Passes => {}
            }
            source_written |= !failed.contains(id);
            // What seems to have failed may be there all the same.
            if failed.contains(id) && self.rng.chance(700) {
                continue;
            }
            let scb = self.block(id.index(), generation, clean, &table);
            let disk = &mut self.disks[id.index()];
            disk.changed &= scb.state.has_left();
            disk.scb = Some(scb);
        }
        if self.beginning && !failed.is_empty() {
            self.mark("a start is refused: a control block cannot be written");
            self.ops.refused += 1;
            self.crashed = true;
            return;
        }
        self.ops.just_failed = self.ops.just_failed.without(to).or(failed);
        // Two changes in a row may have got no further than some blocks then.
        self.home.sure &= failed.is_empty();
        self.written.note(generation, to, failed, writers);
        for change in self.written.settled(writers) {
            self.change_home(&change);
        }
    }

    fn is_bad_block(&mut self) -> bool {
        let rate = self.plan.faults.block;
        // A block knows the last mounts only: before all of them were refused somebody has looked after its disk.
        if self.quiet || rate == 0 || self.ops.refused > LINEAGE_MAX / 4 {
            return false;
        }
        // Often no block at all can be written for a while, as when their disk is full or gone.
        if self.ops.stuck > 0 {
            self.ops.stuck -= 1;
            return true;
        }
        let bad = self.rng.chance(rate);
        if bad && !self.beginning && self.rng.chance(200) {
            self.ops.stuck = self.rng.below(40);
        }
        bad
    }

    pub(crate) fn block(
        &self,
        place: usize,
        generation: Generation,
        clean: bool,
        table: &[ScbRow],
    ) -> Scb {
        let member = self.set.members()[place].uuid;
        let held = self.disks[place].scb.as_ref();
        let held = held.map(|scb| scb.geometry.size());
        let id = MemberId::new(place).expect("a place");
        let row = table.iter().find(|row| row.member == member);
        let row = row.unwrap_or_else(|| panic!("m{} has no row", place + 1));
        Scb {
            set: uuid::Uuid::from_u128(99),
            member: row.member,
            name: row.name.clone(),
            state: row.state,
            label: "simulated".into(),
            generation,
            lineage: self.lineage.clone(),
            geometry: self.set.geometry_of(id, held),
            clean,
            sequence: 0,
            table: table.to_vec(),
            created: None,
            stamp: None,
        }
    }

    /// The blocks of a set that was just created.
    fn first_blocks(&mut self) {
        let table = self.set.table();
        for place in 0..self.disks.len() {
            if !matches!(self.plan.starts[place], Start::Missing { .. }) {
                let scb = self.block(place, Generation::FIRST, true, &table);
                self.disks[place].scb = Some(scb);
            }
        }
    }

    /// Ends this life: what is in memory is lost, and with the power what was not flushed.
    fn go_down(&mut self, power: bool) {
        self.growth.unsaid = self.is_undurable();
        self.mark(if power { "loss of power" } else { "kill" });
        self.log(if power { "loss of power" } else { "kill" });
        self.crashed = false;
        (self.stopping, self.stopped) = (false, false);
        self.ops.just_failed = MemberSet::EMPTY;
        self.ops.stuck = 0;
        self.ops.unclosed = MemberSet::EMPTY;
        (self.ops.unstamped, self.ops.heard) = (MemberSet::EMPTY, MemberSet::EMPTY);
        // Epochs begin anew.
        self.ops.returned = Returned::default();
        self.ops.lost_before = None;
        match self.views.is_empty() {
            true => self.mark("crash during a mount"),
            false => self.before = None,
        }
        self.forget_all();
        for disk in &mut self.disks {
            let mut drawn = BTreeMap::new();
            let mut keep = |values: &[Value]| values[self.rng.alike(&mut drawn, values.len())];
            // A killed program leaves what the page cache has: seen, and not flushed.
            if power {
                disk.image = Image::new(disk.image.after_power_loss(&mut keep));
            }
            disk.open = true;
            (disk.bad_reads, disk.bad_writes, disk.bad_flushes) = (false, false, false);
            (disk.unflushed, disk.lost) = (None, BTreeMap::new());
            disk.leaves.clear();
        }
        self.home.held_back.clear();
        self.growth.held = false;
        self.ops.stall = Stall::default();
    }

    /// Crashes and starts again from images and control blocks.
    pub(crate) fn reboot(&mut self) -> Checked {
        let power = self.power;
        self.go_down(power);
        self.find_home();
        let kept = self.kept_by_crash();
        let records: Vec<_> = kept.iter().map(|(record, _)| *record).collect();
        let older = self.put_back(&records);
        let (found, assembly) = self.elect(&records)?;
        self.check_older(older, &assembly.starts)?;
        let (starts, generation) = (assembly.starts, assembly.generation);
        self.fit_to_elected(assembly.geometry, &starts)?;
        // A generation that no block has got is free again.
        self.generation = generation.number();
        // Random in the server; here it must only be another one.
        let mark = self.next_id();
        self.lineage = assembly.lineage.mounted(generation.next(), mark);
        let fits = kept
            .first()
            .is_none_or(|(_, map)| map.geometry() == assembly.geometry);
        let believed = assembly.believed && self.home.used && fits;
        // Nobody but crashes has touched blocks and bitmaps.
        let touched = older.is_some() || self.plan.absent > 0;
        let calm = !touched && !self.growth.growing && !self.in_memory;
        let sure = std::mem::replace(&mut self.home.sure, believed);
        ensure!(
            believed || !sure || !calm,
            "I3: no bitmap is believed: {records:?}"
        );
        if !self.in_memory {
            self.home.renew(believed);
        }
        self.mark(if believed {
            "bitmaps believed"
        } else {
            "bitmaps not believed"
        });
        let stale = self.stale_of_master(&found, &starts, believed, &kept);
        self.log(format!(
            "elected {starts:?} believed {believed} {records:?}"
        ));
        self.check_either(&starts, power, &stale)?;
        self.check_unasked(believed, &starts, &kept)?;
        let past = match believed {
            true => Past::Known(kept),
            false => Past::Unknown("not believed".to_owned()),
        };
        let members = found.iter().zip(&starts).enumerate();
        let members = members.map(|(n, (f, s))| (member(n, f.image.unwrap_or_default().0), *s));
        let beginning = Beginning {
            geometry: self.geometry,
            generation,
            clean: assembly.clean,
            last_mark: assembly.lineage.mark(),
            unproven: assembly.unproven,
            mark,
            absent: Policy::MinicopyOptional,
            past,
            home: Ok(()),
            limits: self.limits,
            now: self.moment(),
        };
        self.live_again(beginning, members.collect())
    }

    /// The first effects of a new life.
    fn live_again(&mut self, from: Beginning, members: Vec<(Member, Start)>) -> Checked {
        self.written = Written::new(from.generation);
        for (id, disk) in self.disks.iter().enumerate() {
            if let (Some(id), Some(scb)) = (MemberId::new(id), &disk.scb) {
                self.written.found(id, Some(scb.generation));
            }
        }
        let set = ShadowSet::assemble(from, members);
        self.set = set.map_err(|refusal| Violation(format!("I2: {refusal:?}")))?;
        self.begin_life()?;
        if self.crashed {
            Ok(())
        } else {
            self.check_all()
        }
    }

    /// Carries out the first effects. A control block that cannot be written ends the life before it serves
    /// anybody.
    pub(crate) fn begin_life(&mut self) -> Checked {
        self.beginning = true;
        let effects = self.set.begin();
        if self.disks.iter().all(|disk| disk.scb.is_none()) {
            self.first_blocks();
        }
        let unfinished = self.unfinished();
        let mut begun = self.carry_out(effects);
        self.beginning = false;
        if !self.crashed {
            self.begin_told()?;
        }
        if begun.is_ok() && !self.crashed {
            begun = self.finish_departures(unfinished);
        }
        if !self.views.is_empty() {
            self.served = self.lineage.mark();
            self.home.sure = self.home.keeps();
            self.ops.refused = 0;
        }
        begun
    }

    /// What would be elected tells which of two homes counts, when the unit was growing. Then nobody is absent.
    fn find_home(&mut self) {
        let mut sizes = self
            .disks
            .iter()
            .filter_map(|d| Some(d.scb.as_ref()?.geometry));
        let first = sizes.next();
        self.growth.growing = sizes.any(|geometry| Some(geometry) != first);
        let found = self.find();
        let elect = |records: &[_]| assess(&found, records).ok().map(|a| a.geometry);
        self.home.choose(elect);
    }

    fn fit_to_elected(&mut self, geometry: Geometry, starts: &[Start]) -> Checked {
        let master = starts.iter().position(|s| *s == Start::Source).unwrap_or(0);
        let contents = self.disks[master].image.contents().to_vec();
        self.fit(geometry, &contents)
    }

    /// What is kept of bitmaps over a crash, as far as the next life looks for it. Now and then a life keeps
    /// nothing; what the one before has kept lies there until the life after.
    fn kept_by_crash(&mut self) -> Vec<(BitmapRecord, WriteBitmap)> {
        let lost = self.home.given_up.get() || self.home.broken.get();
        self.gave_up = lost || self.in_memory;
        self.home.sure &= !self.gave_up;
        self.in_memory = !self.quiet && self.home.used && self.rng.chance(self.plan.memory);
        self.home.rest(self.in_memory);
        if self.in_memory {
            self.mark("a life with bitmaps in memory only");
            return Vec::new();
        }
        self.home.after_crash(&mut self.rng)
    }

    /// Somebody puts an older copy of an image back after the crash, and its block of that time: one that
    /// is older than any crash could have left it. Others hold all data.
    fn put_back(&mut self, kept: &[BitmapRecord]) -> Option<usize> {
        let newest = self.disks.iter().filter_map(|d| d.scb.as_ref());
        let newest = newest.map(|scb| scb.generation.number()).max()?;
        let age = |scb: &Option<Scb>| scb.as_ref().map(|scb| scb.generation.number());
        let holds = |disk: &Disk| {
            // One that has parted may be ahead by its number and lack what was served since.
            let source =
                |scb: &Scb| scb.state == ScbState::Source && scb.lineage.mark() == self.served;
            age(&disk.scb) == Some(newest) && disk.scb.as_ref().is_some_and(source)
        };
        // Starts that are cut short one after the other leave a block more than one generation behind.
        let intents = kept.iter().filter(|r| r.kind == BitmapKind::Intent);
        let complete = intents.map(|r| r.tag.generation).max();
        let older = |place: &usize| {
            let old = self.disks[*place].old.as_ref();
            let old = old.and_then(|(_, scb)| age(scb));
            let others = self.disks.iter().enumerate();
            let others = others.filter(|(n, disk)| n != place && holds(disk)).count();
            let old = old.filter(|old| complete.is_none_or(|c| *old < c));
            old.is_some_and(|old| old + 2 <= newest) && others > 0
        };
        let place = (0..self.disks.len()).find(older)?;
        if self.quiet || self.rng.chance(500) {
            return None;
        }
        let disk = &mut self.disks[place];
        let (contents, scb) = disk.old.clone()?;
        (disk.image, disk.scb) = (Image::new(contents), scb);
        (disk.changed, disk.frozen) = (true, None);
        self.mark("older image put back in a crash");
        Some(place)
    }

    /// I14: an older image is no source, and is not merged.
    fn check_older(&self, place: Option<usize>, starts: &[Start]) -> Checked {
        let Some(start) = place.and_then(|place| starts.get(place)) else {
            return Ok(());
        };
        let trusted = matches!(
            start,
            Start::Source | Start::Merging | Start::StillMerging | Start::Copy { resume: true }
        );
        ensure!(!trusted, "I14: an older image starts as {start:?}");
        Ok(())
    }

    /// A copy that was under way goes on, where nobody but the crash has touched blocks and bitmaps.
    fn check_unasked(
        &self,
        believed: bool,
        starts: &[Start],
        kept: &[(BitmapRecord, WriteBitmap)],
    ) -> Checked {
        let calm = self.plan.faults.block == 0 && self.plan.absent == 0 && self.plan.memory == 0;
        if !believed || !calm {
            return Ok(());
        }
        let blocks = self.disks.iter().filter_map(|disk| disk.scb.as_ref());
        let newest = blocks.map(|scb| scb.generation).max();
        for (disk, start) in self.disks.iter().zip(starts) {
            // The block of one that left since without a word is older.
            let was =
                |scb: &Scb| scb.state == ScbState::Target && Some(scb.generation.next()) >= newest;
            // Of a copy that has done nothing yet nothing is lost.
            let begun = |(r, map): &(BitmapRecord, WriteBitmap)| {
                let whole = map.count() == map.geometry().regions();
                disk.scb.as_ref().is_some_and(|scb| scb.member == r.owner) && !whole
            };
            let ours = disk.scb.as_ref().is_some_and(was) && !disk.changed;
            let ours = ours && kept.iter().any(begun);
            let goes_on = *start != Start::Copy { resume: false };
            ensure!(goes_on || !ours, "a copy begins anew: {starts:?}");
        }
        Ok(())
    }

    /// Elects a master among what is there; when that is not possible because somebody is absent, all are.
    fn elect(&mut self, records: &[BitmapRecord]) -> Result<(Vec<Found>, Assembly), Violation> {
        let all = self.find();
        let mut some = all.clone();
        let may = !self.quiet && !records.is_empty() && !self.gave_up && !self.growth.growing;
        for (place, found) in some.iter_mut().enumerate() {
            // Without bitmaps nothing tells that a member that is absent is the only one with all data.
            let away = self.away.contains(&place) && !records.is_empty() && !self.gave_up;
            if away || may && self.rng.chance(self.plan.absent) {
                (found.image, found.scb) = (None, ScbFound::None);
                self.disks[place].open = false;
            }
        }
        if let Ok(assembly) = assess(&some, records) {
            for (found, size) in some.iter_mut().zip(&all) {
                found.image = size.image;
            }
            if assembly
                .starts
                .iter()
                .any(|s| matches!(s, Start::Missing { .. }))
            {
                self.mark("mounted without a member");
                self.parted = true;
            }
            return Ok((some, assembly));
        }
        self.disks.iter_mut().for_each(|disk| disk.open = true);
        let mut all = all;
        let mut judged = assess(&all, records);
        while let Err(refusal) = &judged {
            // A member that was absent had begun a generation that no other saw: the operator gives it up.
            let place = all
                .iter()
                .position(|f| Some(&f.name) == refusal.word.as_ref());
            let place = place.map(|place| self.given_up(place));
            judged = match (refusal.code, self.parted, place) {
                (Code::SplitBrain, true, Some(place)) => {
                    self.mark("split brain");
                    self.home.of_given_up = true;
                    (all[place].scb, self.disks[place].scb) = (ScbFound::None, None);
                    assess(&all, records)
                }
                // The journal still speaks of the mount that was given up: it is removed, as the refusal says.
                (Code::WrongGeneration, true, None) if self.home.of_given_up => {
                    self.mark("the journal of a mount that was given up is removed");
                    self.home.of_given_up = false;
                    assess(&all, &[])
                }
                _ => break,
            };
        }
        let assembly = judged
            .map_err(|refusal| Violation(format!("I14: no set after a crash: {refusal:?}")))?;
        Ok((all, assembly))
    }

    /// Whom the operator gives up of two that have parted: the one that is named, unless the other has got no
    /// further than a start that was refused. The operator knows which one has served.
    fn given_up(&self, named: usize) -> usize {
        let line = |place: usize| Some(self.disks[place].scb.as_ref()?.lineage.mark());
        let newest = |place: &usize| {
            let scb = self.disks[*place].scb.as_ref();
            scb.map(|scb| scb.generation)
        };
        let other = |place: &usize| {
            *place != named && line(*place).is_some() && line(*place) != Some(self.served)
        };
        match line(named) == Some(self.served) {
            true => (0..self.disks.len()).filter(other).max_by_key(newest),
            false => None,
        }
        .unwrap_or(named)
    }

    /// Checks what was elected. After a mount that served nobody the sources may be as that mount found them,
    /// or as they could be before it.
    fn check_either(&mut self, starts: &[Start], power: bool, stale: &[bool]) -> Checked {
        let before = self.before.take();
        self.unserved = before.is_some();
        let expected = Expected {
            oracle: self.oracle.clone(),
            unmerged: self.unmerged.clone(),
            loosely_read: self.loosely_read.clone(),
            power,
        };
        let outcome = self.check_elected(starts, power, stale);
        // Of mounts one after the other that served nobody, what was before the first.
        let Some(earlier) = before else {
            self.before = Some(expected);
            return outcome;
        };
        let power = power || earlier.power;
        let (oracle, unmerged) = (earlier.oracle.clone(), earlier.unmerged.clone());
        let loosely_read = earlier.loosely_read.clone();
        self.before = Some(Expected { power, ..earlier });
        if outcome.is_ok() {
            return outcome;
        }
        self.mark("another master after a crash during a mount");
        (self.oracle, self.unmerged) = (oracle, unmerged);
        self.loosely_read = loosely_read;
        self.check_elected(starts, power, stale)
    }

    /// What was under way is gone.
    fn forget_all(&mut self) {
        self.forget_silence();
        self.ops.repair = None;
        self.requests.clear();
        self.copies.clear();
        self.verifies = Verifies::default();
        self.inbox.clear();
        self.flushes.clear();
        self.tickets.clear();
        self.views.clear();
        self.promised.clear();
        self.told.clear();
        self.fresh.clear();
        self.fences = shadowset::server::fence::FenceTable::default();
        self.inside.fill(0);
    }

    /// What a mount without these members, counted from one, would come to; nothing is changed.
    pub(crate) fn elect_without(&mut self, away: &[usize]) -> Result<Assembly, Refusal> {
        let mut found = self.find();
        for m in away {
            (found[m - 1].image, found[m - 1].scb) = (None, ScbFound::None);
        }
        assess(&found, &self.home.records())
    }

    /// What a mount finds: every member that some block knows of.
    fn find(&mut self) -> Vec<Found> {
        let blocks = self.disks.iter().filter_map(|d| d.scb.as_ref());
        let newest = blocks.max_by_key(|scb| scb.generation).cloned();
        let known = |place: &usize| {
            let uuid = self.set.members()[*place].uuid;
            newest.as_ref().is_some_and(|scb| scb.row(uuid).is_some())
        };
        // A place that is free in between is that of an image which is configured and no member.
        let last = (0..self.set.members().len()).rfind(known);
        let members = last.map_or(0, |place| place + 1);
        // A new image that no block has heard of is not configured yet.
        self.disks.truncate(members);
        let found = self
            .disks
            .iter()
            .zip(self.set.members())
            .map(|(disk, m)| Found {
                name: m.name.clone(),
                image: Some(m.size),
                scb: disk.scb.clone().map_or(ScbFound::None, ScbFound::Read),
            });
        found.collect()
    }

    /// Where a master was still to be merged when the set stopped, since the one before is absent. There it
    /// may have what was in flight at an earlier crash and was never read since.
    fn stale_of_master(
        &self,
        found: &[Found],
        starts: &[Start],
        believed: bool,
        kept: &[(BitmapRecord, WriteBitmap)],
    ) -> Vec<bool> {
        let master = starts.iter().position(|s| *s == Start::Source).unwrap_or(0);
        let merging =
            matches!(&found[master].scb, ScbFound::Read(b) if b.state == ScbState::Merging);
        let uuid = self.set.members()[master].uuid;
        let own = kept.iter().find(|(record, _)| record.owner == uuid);
        let stale = |block| match own {
            Some((_, map)) if believed => map.is_stale(self.bytes_of(block)),
            _ => true,
        };
        (0..self.inside.len())
            .map(|block| merging && stale(block))
            .collect()
    }

    /// I14: every source of the elected set has what was acknowledged, after a loss of power what
    /// was flushed; sources are equal.
    fn check_elected(&mut self, starts: &[Start], power: bool, stale: &[bool]) -> Checked {
        let sources: Vec<usize> = (0..starts.len())
            .filter(|n| starts[*n] == Start::Source)
            .collect();
        let master = self.disks[sources[0]].image.contents().to_vec();
        for (block, value) in master.iter().enumerate().take(self.inside.len()) {
            // What a read has merged may be lost with the power, and with nothing else.
            let merged = self.oracle.was_read(block) && !power && !self.loosely_read[block];
            let unsettled = self.unsettled[block] && (power || self.unserved);
            let open = stale[block] && !merged || unsettled;
            let unmerged = open && self.unmerged[block].contains(value);
            let loose = self.loosely_read[block] && self.oracle.only_read_denies(block, *value);
            let right = unmerged || loose || self.oracle.survives(block, *value, power);
            ensure!(
                right,
                "I14: after a crash (power {power}) block {block} of m{} has {value}, wrong: {:?}",
                sources[0] + 1,
                self.oracle.values(block)
            );
            for other in &sources {
                let has = self.disks[*other].image.get(block);
                ensure!(
                    has == *value,
                    "I6: block {block} of two sources: {value}, {has}"
                );
            }
        }
        self.oracle.restart(&master[..self.inside.len()], power);
        self.loosely_read.fill(false);
        let unsettled = self.unsettled.iter_mut().zip(stale);
        unsettled.for_each(|(unsettled, stale)| *unsettled |= *stale);
        for (disk, _) in self.disks.iter().zip(starts).filter(|(_, s)| merges(**s)) {
            for (block, values) in self.unmerged.iter_mut().enumerate() {
                values.push(disk.image.get(block));
            }
        }
        for (disk, start) in self.disks.iter_mut().zip(starts) {
            if *start != Start::Detached {
                disk.frozen = None;
            }
        }
        Ok(())
    }
}

fn merges(start: Start) -> bool {
    matches!(start, Start::Merging | Start::StillMerging)
}

/// The lineage of a new set.
pub(crate) fn first_lineage() -> Lineage {
    Lineage::new(0)
}
