//! Members that do not answer, in the simulator: what is asked of them waits, then others go on in its place, and
//! what they were given may come into their images at any time later, until they have answered it all.

use shadowset::set::{Command, Event, MemberId, MemberSet, MemberState, Verdict};
use shadowset::testing::memory::Value;

use crate::requests::{Kind, Request, Stage};
use crate::world::{Checked, World, makes};

/// Who does not answer, and what it has been given.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    hung: Vec<MemberId>,
    /// As the set was told last.
    told: MemberSet,
    /// Members that were expelled: nothing waits for them.
    gone: MemberSet,
    /// Members that were let go of, with calls that may be under way.
    closing: MemberSet,
    /// Writes that nobody waits for: the request, the member, and what may come there.
    late: Vec<(u64, MemberId, usize, Value)>,
    /// Requests that were answered with errors: they keep their fence and View until what they wrote has come.
    lingering: Vec<Request>,
}

impl Silence {
    pub(crate) fn is_hung(&self, id: MemberId) -> bool {
        self.hung.contains(&id)
    }

    pub(crate) fn is_gone(&self, id: MemberId) -> bool {
        self.gone.contains(id)
    }

    fn hung(&self) -> MemberSet {
        self.hung.iter().copied().collect()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.late.is_empty() && self.lingering.is_empty() && self.closing.is_empty()
    }
}

impl World {
    /// Members begin to hang and go on; the set hears of it; late writes come.
    pub(crate) fn draw_silence(&mut self) -> Checked {
        if self.plan.hangs == 0 {
            return Ok(());
        }
        if self.rng.below(10_000) < self.plan.hangs {
            let place = self.rng.place(self.disks.len());
            let id = MemberId::new(place).unwrap_or_else(|| unreachable!("a member"));
            if self.disks[place].open && !self.ops.silence.is_hung(id) {
                self.log(format!("m{} hangs", place + 1));
                self.ops.silence.hung.push(id);
            }
        }
        match self.rng.below(100) {
            0 => self.wake_one(),
            1..=3 => self.tell_silence(),
            4..=8 => self.come_late()?,
            9 => self.wait_enough()?,
            10 if self.rng.chance(100) => {
                let place = self.rng.place(self.disks.len());
                self.inbox.extend(MemberId::new(place).map(Event::TooSlow));
            }
            _ => {}
        }
        Ok(())
    }

    fn wake_one(&mut self) {
        if !self.ops.silence.hung.is_empty() {
            let at = self.rng.place(self.ops.silence.hung.len());
            let id = self.ops.silence.hung.swap_remove(at);
            self.log(format!("m{} answers", id.index() + 1));
        }
    }

    /// Every member answers from now on.
    pub(crate) fn wake_all(&mut self) {
        if self.plan.hangs > 0 {
            self.ops.silence.hung.clear();
            self.tell_silence();
        }
    }

    /// Tells the set who does not answer, and mostly who has not for too long.
    fn tell_silence(&mut self) {
        let hung = self.ops.silence.hung().without(self.ops.silence.gone);
        if hung != self.ops.silence.told {
            self.ops.silence.told = hung;
            self.inbox.push(Event::Silent(hung));
        } else if let Some(id) = hung.iter().next() {
            self.mark("a member does not answer in time");
            self.inbox.push(Event::GivenUp(id, "it hangs".into()));
        }
    }

    /// Nobody waits any longer: the time is over, or the operator says so.
    fn wait_enough(&mut self) -> Checked {
        let waiting = self.ops.silence.told;
        if waiting.is_empty() || !self.rng.chance(200) {
            return Ok(());
        }
        if self.now % 2 == 0 {
            return self.give("abort", None, Command::Abort);
        }
        self.inbox.push(Event::WaitedEnough);
        Ok(())
    }

    /// As [`Self::come_late`], where anything can.
    pub(crate) fn come_late_in_quiet(&mut self) -> Checked {
        match self.ops.silence.is_over() {
            true => Ok(()),
            false => self.come_late(),
        }
    }

    /// Something comes that nobody waits for, or what comes no more has an end.
    pub(crate) fn come_late(&mut self) -> Checked {
        let late = &self.ops.silence.late;
        if !late.is_empty() {
            let at = self.rng.place(late.len());
            let (_, id, block, value) = late[at];
            if self.ops.silence.is_hung(id) && !self.quiet {
                return Ok(());
            }
            self.ops.silence.late.swap_remove(at);
            if self.rng.chance(800) {
                self.mark("a write comes late");
                self.log(format!("late on m{}: block {block}", id.index() + 1));
                self.disk(id).image.put(block, value);
                self.unmerged[block].push(value);
                self.check_blocks(block..block + 1)?;
            }
        }
        self.end_lingering()?;
        let owes = |id: &MemberId| self.ops.silence.late.iter().any(|(_, m, ..)| m == id);
        let quiet: Vec<_> = self
            .ops
            .silence
            .closing
            .iter()
            .filter(|id| !owes(id))
            .collect();
        for id in quiet {
            self.ops.silence.closing.remove(id);
            self.inbox.push(Event::Quiet(id));
        }
        Ok(())
    }

    /// Lets go of the fences of requests whose writes have all come.
    fn end_lingering(&mut self) -> Checked {
        let late = &self.ops.silence.late;
        let over = |r: &Request| !late.iter().any(|(id, ..)| *id == r.id);
        if let Some(at) = self.ops.silence.lingering.iter().position(over) {
            let request = self.ops.silence.lingering.swap_remove(at);
            self.requests.push(request);
            self.finish(self.requests.len() - 1, Verdict::Fail)?;
            return self.end_lingering();
        }
        Ok(())
    }

    /// A request has been answered: says whether it keeps what it holds.
    pub(crate) fn lingers(&self, request: &Request) -> bool {
        let owed = self
            .ops
            .silence
            .late
            .iter()
            .any(|(id, ..)| *id == request.id);
        owed && request.lingers && !makes!(AbortUnfenced)
    }

    /// The application has its error. Until its calls have returned the write counts as one under way.
    pub(crate) fn linger(&mut self, at: usize) {
        let request = self.requests.swap_remove(at);
        self.mark("a failed write keeps its fence");
        self.ops.silence.lingering.push(request);
    }

    /// A member's storage is let go of.
    pub(crate) fn close_disk(&mut self, id: MemberId) {
        self.disk(id).open = false;
        self.lose_closed(id);
        if matches!(self.state(id), MemberState::Expelled(_)) {
            self.ops.unstamped.insert(id);
            match self.plan.hangs {
                0 => self.inbox.push(Event::Quiet(id)),
                _ => self.ops.silence.closing.insert(id),
            }
        }
    }

    /// A member has come back.
    pub(crate) fn open_disk(&mut self, id: MemberId) {
        self.ops.silence.gone.remove(id);
        self.ops.unstamped.remove(id);
        self.ops.heard.remove(id);
    }

    /// Nothing waits any longer for a member.
    pub(crate) fn give_up_calls(&mut self, id: MemberId) {
        self.ops.silence.gone.insert(id);
        self.give_up_flushes(id);
        if self.plan.hangs > 0 {
            let mut only = MemberSet::EMPTY;
            only.insert(id);
            self.take_calls(only, false);
            self.take_steps(id);
        }
    }

    /// What waits for these members fails.
    pub(crate) fn abort_calls(&mut self, members: MemberSet) {
        self.mark("a verification is aborted");
        self.take_calls(members, true);
        let readers = self.requests.iter_mut();
        for request in readers.filter(|r| r.kind == Kind::Read && r.stage == Stage::Move) {
            let view = request.view.as_ref().zip(request.range);
            let may = view.map(|(view, range)| view.readers(range).without(members));
            request.unanswered = may.is_some_and(MemberSet::is_empty);
        }
    }

    /// Takes what requests still ask of members: it may come late. With `fails` they keep their fences.
    fn take_calls(&mut self, members: MemberSet, fails: bool) {
        for at in 0..self.requests.len() {
            let request = &mut self.requests[at];
            if request.stage != Stage::Move || request.kind == Kind::Read {
                continue;
            }
            for (member, block) in request.take_from(members) {
                let request = &mut self.requests[at];
                request.lingers |= fails;
                let (id, value) = (request.id, request.value());
                if request.kind != Kind::Flush {
                    self.ops.silence.late.push((id, member, block, value));
                }
            }
        }
    }

    /// Takes what copy steps still write to a member.
    fn take_steps(&mut self, id: MemberId) {
        let taken = self.copies.iter_mut().flat_map(|copy| &mut copy.steps);
        let taken: Vec<_> = taken.flat_map(|step| step.take_from(id)).collect();
        let taken = taken.into_iter();
        self.ops
            .silence
            .late
            .extend(taken.map(|(block, value)| (0, id, block, value)));
    }

    /// The program ends: what was on its way comes or does not.
    pub(crate) fn forget_silence(&mut self) {
        for (_, id, block, value) in std::mem::take(&mut self.ops.silence.late) {
            if self.rng.chance(500) {
                self.disk(id).image.put(block, value);
            }
        }
        self.ops.silence = Silence::default();
    }
}
