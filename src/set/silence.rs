//! Members that do not answer: mount verification (the manual's word), its end by an answer, by an expulsion or
//! by an abort.
//!
//! Whether a member answers, and how long it has not, the shell knows, which has the clock. Who does not
//! answer is expelled only for another source that does: as long as none answers, all that is asked of the unit
//! waits, and nobody is to blame.

use super::event::{Answer, Effect, Notice, Ticket};
use super::member::{MemberId, MemberSet, MemberState, Returns};
use super::refusal::{Code, Refusal};
use super::shadow::ShadowSet;

impl ShadowSet {
    /// These members have owed an answer for a while, and no others.
    pub(super) fn silent(&mut self, now: MemberSet) {
        let now = now.and(self.callable());
        let before = std::mem::replace(&mut self.silent, now);
        for id in now.without(before).iter() {
            self.push(Effect::Notice(Notice::Silent(id)));
        }
        for id in before.without(now).and(self.callable()).iter() {
            self.push(Effect::Notice(Notice::Answers(id)));
        }
        if !self.sources.all().without(now).is_empty() {
            self.aborted = false;
        }
    }

    /// Members of which something may be asked.
    fn callable(&self) -> MemberSet {
        let leaving =
            |id: &MemberId| matches!(self.members[id.index()].state, MemberState::Leaving(_));
        let leaving: MemberSet = self.ids().filter(leaving).collect();
        self.writers().or(leaving)
    }

    /// A member has not answered for longer than it may.
    pub(super) fn given_up(&mut self, id: MemberId, why: &str) {
        if self.may_give_up(id) {
            self.expel(id, why, false);
            self.advance();
            self.publish();
            self.settle_departures();
        }
    }

    /// A member is too slow: it leaves for as long as it is, if enough sources stay.
    pub(super) fn too_slow(&mut self, id: MemberId) {
        let mut silent = self.silent;
        silent.insert(id);
        let others = self.sources.all().without(silent).len();
        if others >= self.limits.min_members.max(1) && self.may_give_up(id) {
            self.given_up(id, "its requests took longer than max_latency");
            self.returns(id, Returns::WhenFast);
        }
    }

    /// Whether somebody else answers for a member.
    fn may_give_up(&self, id: MemberId) -> bool {
        let mut silent = self.silent;
        silent.insert(id);
        let others = !self.sources.all().without(silent).is_empty();
        #[cfg(debug_assertions)]
        let others = others || super::planted::is(super::planted::Mistake::LastGivenUp);
        others && self.callable().contains(id)
    }

    /// No source has answered for as long as the unit may wait.
    pub(super) fn waited_enough(&mut self) {
        if self.sources.all().without(self.silent).is_empty() {
            self.stop_waiting();
        }
    }

    /// What waits for members that do not answer fails.
    fn stop_waiting(&mut self) {
        self.aborted = true;
        self.push(Effect::Abort(self.silent));
        self.push(Effect::Notice(Notice::Aborted(self.silent)));
    }

    /// Whether there is a verification to be cut short.
    pub(super) fn may_abort(&self) -> Result<MemberSet, Refusal> {
        match self.silent.is_empty() {
            false => Ok(self.silent),
            true => {
                let text = "every member answers, so there is no mount verification to abort";
                Err(Refusal::new(Code::NotInMountVerify, text))
            }
        }
    }

    /// Nothing waits any longer for members that do not answer: they are expelled where others answer for them,
    /// else what waits fails.
    pub(super) fn abort(&mut self, ticket: Ticket, silent: MemberSet) {
        for id in silent.iter() {
            self.given_up(id, "it did not answer, and mount verification was aborted");
        }
        let left = silent.and(self.sources.all());
        let text = match left.is_empty() {
            true => format!("expelled: {}", self.names(silent)),
            false => format!("requests that wait for {} fail", self.names(left)),
        };
        if !left.is_empty() {
            self.stop_waiting();
        }
        let facts = vec![("members", self.names(silent))];
        self.accept(ticket, Answer { text, facts });
    }

    /// The names of members, for a sentence.
    pub(super) fn names(&self, members: MemberSet) -> String {
        let names = members
            .iter()
            .map(|id| self.members[id.index()].name.as_str());
        names.collect::<Vec<_>>().join(", ")
    }

    /// Whether a member that has left comes back by itself.
    pub(super) fn returns(&mut self, id: MemberId, returns: Returns) {
        if let Some(departed) = self.members[id.index()].state.departed_mut() {
            departed.returns = returns;
        }
    }

    /// Every call of a member that was expelled has returned: nothing writes its image any more.
    pub(super) fn quiet(&mut self, id: MemberId) {
        self.unquiet.remove(id);
        if let Some(departed) = self.members[id.index()].state.departed_mut() {
            departed.called = false;
        }
    }
}
