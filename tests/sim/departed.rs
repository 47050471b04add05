//! What becomes of a member behind its departure: its own block says that it has left, at once or later, and when it comes
//! back as it left its bitmap is enough.

use shadowset::set::bitmap::OwnedBitmap;
use shadowset::set::member::Held;
use shadowset::set::scb::Ancestry;
use shadowset::set::{Attach, AttachPolicy, CopyKind, Event, MemberId, MemberState};

use crate::commands::name;
use crate::ops::{Op, Strike};
use crate::world::{Checked, World, ensure};

impl World {
    /// The image of one that was expelled has answered: its block can say that it has left.
    pub(crate) fn stamp_one(&mut self) {
        let Some(id) = self.ops.unstamped.iter().next() else {
            return;
        };
        if !self.rng.chance(100) {
            return;
        }
        self.ops.unstamped.remove(id);
        let expelled = matches!(self.state(id), MemberState::Expelled(_));
        if !expelled || self.is_undurable() || self.disks[id.index()].changed {
            return;
        }
        match self.strike(Op::Block) {
            Strike::Crashes => return self.mark("crash before an expelled member was told"),
            Strike::Fails => {}
            Strike::Passes => {
                self.mark("an expelled member was told");
                self.say_left(id);
                self.written.found(id, Some(self.set.generation()));
                let told = Event::Told(id, self.set.generation());
                return self.inbox.push(told);
            }
        }
        // It may be there all the same.
        self.written.found(id, None);
        if self.rng.chance(300) {
            self.say_left(id);
        }
    }

    /// The set hears what the block of a member that is away says.
    pub(crate) fn note_told(&mut self, event: &Event) {
        if let Event::Told(id, generation) = event {
            let state = self.state(*id);
            let away = matches!(state, MemberState::Detached(_) | MemberState::Expelled(_));
            let left = state.departed().and_then(|d| d.tag);
            if away && left.is_some_and(|left| generation.number() > left.generation) {
                self.ops.heard.insert(*id);
            }
        }
    }

    fn say_left(&mut self, id: MemberId) {
        let table = self.set.table();
        let scb = self.block(id.index(), self.set.generation(), true, &table);
        self.disk(id).scb = Some(scb);
    }

    /// Who has left, is there, and does not say so yet: the crash came between.
    pub(crate) fn unfinished(&self) -> Vec<MemberId> {
        let lacks = |id: &MemberId| {
            let disk = &self.disks[id.index()];
            let said = self.said(disk.scb.as_ref());
            let left = matches!(
                self.state(*id),
                MemberState::Detached(_) | MemberState::Expelled(_)
            );
            let told = self.state(*id).departed().is_some_and(|d| d.told);
            let lacks = said.is_some_and(|said| !self.set.tells_departure(*id, said) || !told);
            let it_is = said.is_some_and(|said| self.set.is_who_left(*id, said));
            left && disk.open && lacks && it_is
        };
        self.ids().filter(lacks).collect()
    }

    /// Ends departures that were cut short, as the server does with its first effects.
    pub(crate) fn finish_departures(&mut self, unfinished: Vec<MemberId>) -> Checked {
        for id in unfinished {
            if self.crashed {
                return Ok(());
            }
            let said = self.said(self.disks[id.index()].scb.as_ref());
            if said.is_none_or(|said| !self.set.tells_departure(id, said)) {
                let generation = self.set.generation();
                self.write_blocks(generation, true, [id].into_iter().collect());
            }
            if !self.crashed && !self.ops.just_failed.contains(id) {
                self.mark("a departure that was cut short has its end");
                let said = self.said(self.disks[id.index()].scb.as_ref());
                let generation = said.map_or(self.set.generation(), |said| said.generation);
                let (now, told) = (self.moment(), Event::Told(id, generation));
                self.note_told(&told);
                let effects = self.set.handle(now, told);
                self.carry_out(effects)?;
            }
        }
        Ok(())
    }

    /// Behind a stop in order: who was away, or about to leave, comes back by its bitmap.
    pub(crate) fn start_again(&mut self) -> Checked {
        self.mark("started again behind a stop");
        self.power = false;
        self.reboot()?;
        for id in self.ids().collect::<Vec<_>>() {
            let attach = self.attach_of(id, AttachPolicy::MinicopyOptional);
            self.check_genuine(id, &attach)?;
        }
        Ok(())
    }

    /// An image that comes back as it was left needs no more than what its bitmap says.
    pub(crate) fn check_genuine(&self, id: MemberId, attach: &Attach) -> Checked {
        let departed = self.state(id).departed();
        // Of a copy that has done nothing yet nothing is lost.
        let some = |map: &OwnedBitmap| map.marks().count() < self.geometry.regions();
        let tells = departed.is_some_and(|d| match &d.held {
            Held::Here(map) => some(map) && !d.suspect,
            _ => false,
        });
        // Behind starts that were refused, or a crash among the blocks and a mount without the member, its block may be older than
        // the set can tell.
        let calm = self.plan.faults.block + self.plan.faults.planned + self.plan.absent == 0;
        if !tells || !calm || self.disks[id.index()].changed {
            return Ok(());
        }
        let attach = Attach {
            policy: AttachPolicy::MinicopyOptional,
            changed: None,
            said: self.said(self.disks[id.index()].scb.as_ref()),
            ..attach.clone()
        };
        let Ok(plan) = self.set.plan_attach(&attach) else {
            return Ok(());
        };
        let (name, told) = (name(id), departed.map(|d| (d.told, d.tag)));
        let said = attach.said;
        // Members that were mounted apart from each other have parted.
        let parted = said.is_some_and(|said| said.ancestry == Ancestry::Foreign);
        ensure!(
            parted || plan.kind == CopyKind::Mini,
            "{name} comes back as it left, and is copied: {plan:?}, {told:?}, {said:?}"
        );
        Ok(())
    }
}
