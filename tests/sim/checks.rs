//! What must hold: the invariants, checked at the storage and against the oracle.

use std::sync::Arc;

use shadowset::set::member::{Departed, Held};
use shadowset::set::{Answer, MemberId, MemberState, Verdict, View, WriteBitmap};
use shadowset::testing::memory::Value;

use crate::home::region_run;
use crate::world::{Asked, Checked, World, blocks_of, ensure, usize_of};

/// The stale set of a member that is no source: bitmaps, or everything.
enum StaleSet {
    All,
    Maps(Vec<Arc<WriteBitmap>>),
}

impl StaleSet {
    fn of(state: &MemberState) -> Option<Self> {
        match state {
            MemberState::Source => None,
            MemberState::Vacant => None,
            MemberState::Target { phase, .. } => Some(Self::Maps(vec![phase.stale()])),
            MemberState::Leaving(d)
            | MemberState::Detached(d)
            | MemberState::Expelled(d)
            | MemberState::Missing(d) => Some(Self::departed(d)),
        }
    }

    fn departed(departed: &Departed) -> Self {
        match (&departed.held, departed.marks()) {
            (Held::Nothing, _) | (_, None) => Self::All,
            (_, Some(map)) => {
                let mut maps = departed.seeds.clone();
                maps.push(map);
                Self::Maps(maps)
            }
        }
    }
}

impl World {
    fn in_maps<'a>(&self, maps: impl IntoIterator<Item = &'a WriteBitmap>, block: usize) -> bool {
        let range = self.bytes_of(block);
        maps.into_iter().any(|map| map.is_stale(range))
    }

    fn is_stale(&self, stale: &StaleSet, block: usize) -> bool {
        match stale {
            StaleSet::All => true,
            StaleSet::Maps(maps) => self.in_maps(maps.iter().map(|m| &**m), block),
        }
    }

    /// I1 at the storage: before a member is written, every departed member's bit is set.
    pub(crate) fn check_marked(&self, view: &View, block: usize, id: u64) -> Checked {
        let range = self.bytes_of(block);
        let intended = self.set.intents().any(|map| map.is_stale(range));
        ensure!(
            intended,
            "I1: request {id} writes block {block} without a write-intent bit"
        );
        for member in self.ids() {
            let Some(departed) = self.state(member).departed() else {
                continue;
            };
            let stale = match view.writers().contains(member) {
                true => self.is_stale(&StaleSet::departed(departed), block),
                false => departed.marks().is_none_or(|map| map.is_stale(range)),
            };
            ensure!(
                stale,
                "I1: request {id} writes block {block} before the bit of {member:?}"
            );
        }
        Ok(())
    }

    /// I1 and I2 over the whole unit.
    pub(crate) fn check_all(&self) -> Checked {
        if self.ops.replaying {
            return Ok(());
        }
        for (place, disk) in self.disks.iter().enumerate() {
            if let Some(frozen) = &disk.frozen {
                let same = disk.image.contents() == frozen;
                ensure!(same, "I5: the image of m{} has changed", place + 1);
            }
        }
        self.check_stall()?;
        self.check_told()?;
        self.check_kept()?;
        self.check_blocks(0..self.inside.len())
    }

    /// The leftmost part of the chain (I1): what is set in memory is set durably, in the bitmap or in a
    /// write-intent bitmap.
    fn check_kept(&self) -> Checked {
        if !self.home.keeps() {
            return Ok(());
        }
        let ids: Vec<_> = self.set.intents().map(WriteBitmap::id).collect();
        for id in self.ids() {
            let map = match self.state(id) {
                MemberState::Target { phase, .. } => Some(phase.stale()),
                state => state.departed().and_then(Departed::marks),
            };
            let Some(map) = map else { continue };
            let seeds = self.state(id).departed().map(|d| &d.seeds[..]);
            for seed in seeds.unwrap_or_default() {
                let kept = self.home.with_bits(seed.id(), |_| ());
                ensure!(
                    kept.is_some(),
                    "I1: seed {} of {id:?} is not kept",
                    seed.id()
                );
            }
            for run in map.runs() {
                for region in run.first().0..run.end().0 {
                    let one = region_run(self.geometry, region, region + 1);
                    let durable = |id| self.home.with_bits(id, |bits| bits.covers(one));
                    let own = durable(map.id());
                    ensure!(
                        own.is_some(),
                        "I1: bitmap {} of {id:?} is not kept",
                        map.id()
                    );
                    let any = own == Some(true) || ids.iter().any(|id| durable(*id) == Some(true));
                    ensure!(any, "I1: region {region} of {id:?} is set in memory only");
                }
            }
        }
        // None is forgotten while the membership is not durable; the journal has room for 16.
        let most = if self.is_undurable() { 16 } else { 9 };
        ensure!(
            self.home.len() <= most,
            "{} bitmaps are kept",
            self.home.len()
        );
        Ok(())
    }

    /// I1 over some blocks, those inside a fence left out.
    pub(crate) fn check_blocks(&self, blocks: std::ops::Range<usize>) -> Checked {
        if self.ops.replaying {
            return Ok(());
        }
        let sources = self.sources();
        let Some(first) = sources.iter().next() else {
            return Err(crate::world::Violation("I2: no source".into()));
        };
        let others: Vec<(MemberId, StaleSet)> = self
            .ids()
            .filter_map(|id| Some((id, StaleSet::of(self.state(id))?)))
            .collect();
        for block in blocks {
            let value = self.disks[first.index()].image.get(block);
            let durable = self.in_maps(self.set.intents(), block);
            for id in sources.iter() {
                let kept = durable || self.disks[id.index()].image.is_durable(block);
                ensure!(
                    kept,
                    "I1: block {block} of {id:?} is neither flushed nor intended"
                );
            }
            if self.inside[block] > 0 {
                continue;
            }
            ensure!(
                self.oracle.may_have(block, value),
                "block {block} of {first:?} has {value}, it may have {:?}",
                self.oracle.values(block)
            );
            for id in sources.iter() {
                let other = self.disks[id.index()].image.get(block);
                ensure!(
                    other == value,
                    "block {block}: {first:?} {value}, {id:?} {other}"
                );
            }
            self.check_others(block, &others)?;
        }
        Ok(())
    }

    /// Whether such an image of a member that has left differs from the unit only where its bitmap says so.
    pub(crate) fn is_told_by_bitmap(&self, id: MemberId, contents: &[Value]) -> bool {
        let (Some(stale), Some(source)) =
            (StaleSet::of(self.state(id)), self.sources().iter().next())
        else {
            return false;
        };
        let loose = self.loose_from(id).min(contents.len());
        let source = self.disks[source.index()].image.contents();
        let equal = |block: &usize| contents[*block] == source[*block] || self.inside[*block] > 0;
        (0..loose).all(|block| equal(&block) || self.is_stale(&stale, block))
    }

    /// A copy writes nothing that no bit of its target asks for.
    pub(crate) fn check_needed(&self, target: MemberId, block: usize) -> Checked {
        let MemberState::Target { phase, .. } = self.state(target) else {
            return Ok(());
        };
        let needed = phase.stale().is_stale(self.bytes_of(block));
        ensure!(
            needed,
            "block {block} of {target:?} is copied without a bit"
        );
        Ok(())
    }

    /// Members that are no sources equal the unit where they are not stale, flushed as well.
    fn check_others(&self, block: usize, others: &[(MemberId, StaleSet)]) -> Checked {
        let sources = self.sources();
        for (id, stale) in others {
            // What is cleared in memory while the unit stops is kept.
            let departed = self.state(*id).departed();
            let ends = self.stopping && departed.is_some_and(Departed::is_with_copier);
            let loose = block >= self.loose_from(*id) || ends;
            let doubted = self.in_maps(self.set.doubt_of(*id).map(|map| &**map), block);
            let doubted = doubted || self.has_lost(block);
            if loose || doubted || self.is_stale(stale, block) || self.disks[id.index()].changed {
                continue;
            }
            let has = self.disks[id.index()].image.get(block);
            for source in sources.iter() {
                let value = self.disks[source.index()].image.get(block);
                let state = self.state(*id).name();
                ensure!(
                    has == value,
                    "I1: {state} {id:?} has {has} in block {block}, {source:?} {value}"
                );
            }
            let everybody = sources.iter().chain([*id]);
            let target = matches!(self.state(*id), MemberState::Target { .. });
            for m in everybody {
                let kept = self.disks[m.index()].image.is_durable(block)
                    || target && self.in_maps(self.set.intents(), block);
                ensure!(
                    kept,
                    "I1: a power loss could part {m:?} and {id:?} in block {block} unseen"
                );
            }
        }
        Ok(())
    }

    /// I5: the image holds the writes of all epochs up to the cut and no other, flushed.
    pub(crate) fn check_cut(&self, id: MemberId, asked: &Asked, answer: &Answer) -> Checked {
        let MemberState::Detached(departed) = self.state(id) else {
            return Err(crate::world::Violation(format!(
                "{id:?} is answered but not detached"
            )));
        };
        let disk = &self.disks[id.index()];
        for block in 0..self.inside.len() {
            let ended = &self.oracle.ended(block)[..asked.ended[block]];
            let before = ended.iter().all(|w| w.epoch <= departed.until.0);
            ensure!(
                before,
                "I5: block {block}: a write from before the command is not in the cut"
            );
            let value = disk.image.get(block);
            ensure!(
                self.oracle.is_cut(block, value, departed.until.0),
                "I5: block {block} of {id:?} has {value}, not what the cut has"
            );
            ensure!(
                disk.image.is_durable(block),
                "I5: block {block} of {id:?} is not flushed"
            );
        }
        let begun = self
            .views
            .first_key_value()
            .is_some_and(|(e, _)| *e <= departed.until);
        ensure!(!begun, "I5: a request of the cut's epoch is still running");
        let bits = answer.facts.iter().find(|f| f.0 == "set_bits");
        let mut repairs = self.verifies.repairs.iter();
        let verified =
            self.verifies.running.is_some() || repairs.any(|(_, epoch)| *epoch > departed.until.0);
        // Beside one that is still leaving it has what is not flushed.
        let leaving = |other| matches!(self.state(other), MemberState::Leaving(_));
        let alone = !self.ids().any(leaving);
        let idle = asked.idle && asked.requests == self.started && !verified && alone;
        if let (Some((_, bits)), true, true) = (bits, idle, self.plan.faults.none()) {
            ensure!(bits == "0", "an idle unit's new bitmap has {bits} bits");
        }
        Ok(())
    }

    /// I3: who has missed an acknowledged write is of an older generation than every source.
    pub(crate) fn check_generations(&self, request: u64, verdict: Verdict) -> Checked {
        let Some(request) = self.requests.iter().find(|r| r.id == request) else {
            return Ok(());
        };
        if verdict == Verdict::Fail {
            return Ok(());
        }
        for failed in request.failed.iter() {
            let source = matches!(self.state(failed), MemberState::Source);
            ensure!(!source, "I3: {failed:?} missed a write and is a source");
            let old = self.disks[failed.index()]
                .scb
                .as_ref()
                .map(|scb| scb.generation);
            for source in self.sources().iter() {
                let new = self.disks[source.index()]
                    .scb
                    .as_ref()
                    .map(|scb| scb.generation);
                ensure!(
                    new > old,
                    "I3: {failed:?} {old:?} could win against {source:?} {new:?}"
                );
            }
        }
        Ok(())
    }

    /// A detach that was refused or given up has not taken the member out.
    pub(crate) fn check_not_detached(&self, member: Option<MemberId>, late: bool) -> Checked {
        let state = member.map(|id| self.state(id));
        let wrong = match state {
            Some(MemberState::Detached(_)) => late,
            Some(MemberState::Leaving(_)) => !late,
            _ => false,
        };
        ensure!(!wrong, "a detach that was refused has detached {member:?}");
        Ok(())
    }

    /// A new bitmap has exactly the bits of the regions written since the cut, without faults.
    pub(crate) fn check_fresh(&self) -> Checked {
        if !self.plan.faults.none() {
            return Ok(());
        }
        for (id, until) in &self.fresh {
            let Some(map) = self.state(*id).departed().and_then(Departed::marks) else {
                continue;
            };
            let mut regions = vec![false; usize_of(self.geometry.regions())];
            let written = (0..self.inside.len()).filter(|block| {
                let ended = self.oracle.ended(*block);
                let repaired = |(at, epoch): &(usize, u64)| *at == *block && *epoch > until.0;
                ended.iter().any(|w| w.epoch > until.0)
                    || self.verifies.repairs.iter().any(repaired)
                    || self.is_marking(*block, until.0)
            });
            for block in written {
                regions[block / usize_of(self.region_blocks())] = true;
            }
            let bits: Vec<bool> = map.to_bits().iter().by_vals().collect();
            ensure!(
                bits == regions,
                "{id:?}: bits {bits:?}, written {regions:?}"
            );
        }
        Ok(())
    }

    /// Whether a request that has set its bits in an epoch after `until` is in the block.
    fn is_marking(&self, block: usize, until: u64) -> bool {
        self.requests.iter().any(|r| {
            let later = r.view.as_ref().is_some_and(|v| v.epoch().0 > until);
            let range = r.range.filter(|_| later && r.has_marked());
            range.is_some_and(|range| blocks_of(range).contains(&block))
        })
    }

    /// I6: a member that is marked clean is flushed.
    pub(crate) fn check_durable(&self, id: MemberId) -> Checked {
        for block in 0..self.inside.len() {
            let durable = self.disks[id.index()].image.is_durable(block);
            ensure!(
                durable,
                "I6: clean, but block {block} of {id:?} is not flushed"
            );
        }
        Ok(())
    }

    /// I10: an acknowledged flush has made durable what had been acknowledged when it began.
    pub(crate) fn check_flushed(&self, began: u64) -> Checked {
        for block in 0..self.inside.len() {
            let quiet = self.inside[block] == 0 && self.oracle.changed(block) < began;
            for id in self.sources().iter().filter(|_| quiet) {
                let durable = self.disks[id.index()].image.is_durable(block);
                ensure!(durable, "I10: block {block} of {id:?} is not flushed");
            }
        }
        Ok(())
    }

    /// Nothing is under way: everything is answered and ended, and all sources are equal.
    pub(crate) fn check_quiet(&self) -> Checked {
        ensure!(self.tickets.is_empty(), "not answered: {:?}", self.tickets);
        ensure!(self.fences.is_empty(), "a fence is left");
        ensure!(self.views.len() == 1, "old epochs are left");
        for operation in &self.set.status().operations {
            let over = operation.state.is_over();
            ensure!(over, "operation {} is {:?}", operation.id, operation.state);
        }
        for id in self.ids() {
            let leaving = matches!(self.state(id), MemberState::Leaving(_));
            ensure!(!leaving, "{id:?} is leaving for ever");
        }
        self.check_all()
    }

    /// The unit is stopped: the sources are equal, flushed and of one generation (I6).
    pub(crate) fn check_stopped(&self) -> Checked {
        self.check_all()?;
        let generations: Vec<_> = self
            .sources()
            .iter()
            .map(|id| {
                self.disks[id.index()]
                    .scb
                    .as_ref()
                    .map(|scb| scb.generation)
            })
            .collect();
        let equal = generations.windows(2).all(|w| w[0] == w[1]);
        // Who could not be marked clean is merged at the next mount.
        ensure!(equal || !self.clean, "I6: sources of {generations:?}");
        ensure!(
            self.clean || !self.quiet,
            "without faults the stop is not clean"
        );
        let marked = |id: MemberId| self.disks[id.index()].scb.as_ref().is_some_and(|s| s.clean);
        let all = self.sources().iter().all(marked);
        // A home that is lost in the stop itself takes the mark back: the next mount merges.
        let lost = self.home.given_up.get() && !all;
        ensure!(
            all || !self.clean || lost,
            "I6: clean {}, marked {all}",
            self.clean
        );
        Ok(())
    }
}
