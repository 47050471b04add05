//! Commands about membership that neither take a member out nor bring one in: release and merge.

use std::path::PathBuf;
use std::sync::Arc;

use super::bitmap::WriteBitmap;
use super::copy::CopyKind;
use super::event::{Answer, BitmapChange, Effect, Notice, Ticket, Tuning};
use super::judge::{MergePlan, answer, members_text};
use super::member::{MEMBERS_MAX, Member, MemberId, MemberState, Policy};
use super::record::HomeChange;
use super::refusal::{Code, Refusal};
use super::scb::ScbRow;
use super::shadow::ShadowSet;

impl ShadowSet {
    /// A member that has left gives up its membership (the manual's OVERRIDE=SHADOW_MEMBERSHIP): its row and
    /// its bitmap go, and its place is free.
    pub(super) fn release(&mut self, ticket: Ticket, id: MemberId) {
        let member = &self.members[id.index()];
        let name = member.name.clone();
        let departed = member.state.departed();
        let bitmap = departed.and_then(|d| d.tag);
        if departed.is_some_and(|d| d.called) {
            self.unquiet.insert(id);
        }
        if let Some(tag) = bitmap {
            // First: writes of the next View do not set its bits.
            self.push_home(HomeChange::Forget(tag.id));
            let why = "its member is released";
            self.tell_bitmap(tag.id, id, BitmapChange::Deleted(why));
        }
        self.members[id.index()].state = MemberState::Vacant;
        self.advance();
        self.publish();
        self.push(Effect::Release(id));
        self.push(Effect::Notice(Notice::Released(name.clone())));
        let text = format!("{name} is released; it is no member any more");
        let facts = vec![("member", name)];
        self.accept(ticket, Answer { text, facts });
    }

    /// Whether a member may be released now.
    pub(super) fn may_release(&self, name: &str) -> Result<MemberId, Refusal> {
        let id = self.find(name)?;
        let state = &self.members[id.index()].state;
        let Some(departed) = state.departed() else {
            let text = format!("{name} is {}", state.name());
            let hint = match state.operation() {
                Some(op) if !state.is_merging() => format!("end its copy first: cancel {op}"),
                _ => format!("take it out first: detach {name} policy=none"),
            };
            return Err(Refusal::new(Code::InUse, text).at(name).with_hint(hint));
        };
        let copying = departed.is_with_copier();
        if copying || matches!(state, MemberState::Leaving(_)) || !self.is_over(departed.until) {
            return Err(Refusal::still_leaving(name).at(name));
        }
        Ok(id)
    }

    /// Gives a member another cost or site; requests of the next View go by it.
    pub(super) fn tune(&mut self, ticket: Ticket, id: MemberId, tuning: Tuning) {
        let member = &mut self.members[id.index()];
        let name = member.name.clone();
        let (what, place, new) = match tuning {
            Tuning::ReadCost(new) => ("read_cost", &mut member.read_cost, new),
            Tuning::Site(new) => ("site", &mut member.site, new),
            Tuning::Timeout(new) => ("timeout", &mut member.timeout, new),
        };
        let old = std::mem::replace(place, new);
        if old != new {
            self.publish();
            let notice = Notice::Tuned(name.clone(), what, old, new);
            self.push(Effect::Notice(notice));
        }
        let parameter = format!("{name}.{what}");
        let text = format!("{parameter} is {new}");
        let facts = vec![
            ("parameter", parameter),
            ("value", new.to_string()),
            ("old", old.to_string()),
        ];
        self.accept(ticket, Answer { text, facts });
    }

    /// Whether the whole set may be closed (the manual's DISMOUNT of a virtual unit): with policy=minicopy only
    /// when a member that misses a later mount could come back by minicopy. The shell closes it; this is the
    /// answer of a dry run.
    ///
    /// # Errors
    /// What stands against it.
    pub fn may_dissolve(&self, policy: Policy) -> Result<Answer, Refusal> {
        self.takes_commands()?;
        if policy == Policy::Minicopy {
            self.may_come_back_later()?;
        }
        let text = "the members would be marked clean, and the unit be taken away";
        Ok(answer("dissolve", text.to_owned()))
    }

    fn may_come_back_later(&self) -> Result<(), Refusal> {
        if let Some(busy) = self.members.iter().find(|m| m.state.is_merging()) {
            let text = format!("{} is being merged", busy.name);
            return Err(Refusal::new(Code::MergePending, text).at("policy=minicopy"));
        }
        if self.sources.all().len() == 1 {
            let master = &self.members[self.sources.master().index()].name;
            let text = format!("{master} is the only source member, so none can come back later");
            let refusal = Refusal::new(Code::LastSource, text).at("policy=minicopy");
            return Err(refusal.with_hint("`dissolve` without a policy closes the set as it is"));
        }
        Ok(())
    }

    /// Has errors be counted from 0 again, and the shell with what it counts (the manual's RESET_COUNTERS).
    pub(super) fn reset_counters(&mut self, ticket: Ticket) {
        for member in &mut self.members {
            member.errors = 0;
        }
        self.push(Effect::Notice(Notice::CountersReset));
        let text = "all counters begin at 0 again".to_owned();
        let facts = Vec::new();
        self.accept(ticket, Answer { text, facts });
    }

    /// Whether and where the other sources can be made equal to the master.
    pub(super) fn may_merge(&self, full: bool) -> Result<MergePlan, Refusal> {
        if let Some(busy) = self.members.iter().find(|m| m.state.is_merging()) {
            let text = format!("{} is being merged already", busy.name);
            return Err(Refusal::new(Code::MergePending, text));
        }
        let mut others = self.sources.all();
        others.remove(self.sources.master());
        if others.is_empty() {
            let master = &self.members[self.sources.master().index()].name;
            let text = format!("{master} is the only source member, so there is nothing to merge");
            return Err(Refusal::new(Code::LastSource, text));
        }
        let (kind, map) = match full {
            true => (CopyKind::Merge, WriteBitmap::full(self.geometry)),
            false => (CopyKind::Minimerge, self.doubt(None)),
        };
        let map = Arc::new(map);
        Ok(MergePlan { kind, map, others })
    }

    /// Has the other sources made equal to the master.
    pub(super) fn merge(&mut self, ticket: Ticket, plan: &MergePlan) {
        let MergePlan { kind, map, others } = plan;
        // Copies have read from who may have been wrong there.
        let copying = self.lacks_until_retired(map);
        self.lack(map, copying);
        let first = self.last_op + 1;
        for id in others.iter() {
            self.make_merging(id, map, *kind, "a merge was asked for");
        }
        let (last, bytes) = (self.last_op, map.stale_bytes());
        self.advance();
        self.publish();
        self.settle_joins();
        let text = format!(
            "{} of {bytes} bytes into {}",
            kind.name(),
            members_text(others.len()),
        );
        let operations: Vec<String> = (first..=last).map(|op| op.to_string()).collect();
        let facts = vec![
            ("kind", kind.name().to_owned()),
            ("operations", operations.join(" ")),
            ("bytes", bytes.to_string()),
        ];
        self.accept(ticket, Answer { text, facts });
    }

    /// The place that the next new member gets: a free one, or the one behind the last. A call under way is known by the
    /// place of its member, so nobody else gets it before all of them have returned.
    #[must_use]
    pub fn free_place(&self) -> Option<MemberId> {
        let mut vacant = self.vacant();
        let last = MemberId::new(self.members.len());
        vacant.find(|id| !self.is_unquiet(*id)).or(last)
    }

    fn is_unquiet(&self, place: MemberId) -> bool {
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::PlaceUnquiet) {
            return false;
        }
        self.unquiet.contains(place)
    }

    fn vacant(&self) -> impl Iterator<Item = MemberId> {
        let vacant = |id: &MemberId| matches!(self.members[id.index()].state, MemberState::Vacant);
        let places = (0..self.members.len()).filter_map(MemberId::new);
        places.filter(vacant)
    }

    /// The place of a new member, or why there is none.
    pub(super) fn may_be_more(&self) -> Result<MemberId, Refusal> {
        let full = || {
            let text = format!("the set has {MEMBERS_MAX} members already");
            Refusal::new(Code::TooManyMembers, text)
        };
        let waits = |id: MemberId| {
            let text = format!(
                "calls of the image of {}, which was released, have not returned yet",
                self.members[id.index()].name
            );
            Refusal::new(Code::InUse, text)
                .with_hint("its place is free when its image has answered them")
        };
        let none = || self.vacant().next().map_or_else(full, waits);
        self.free_place().ok_or_else(none)
    }

    /// The members as the storage control blocks list them.
    #[must_use]
    pub fn table(&self) -> Vec<ScbRow> {
        let members = self.members.iter();
        let released = |m: &Member| m.state.departed().is_some_and(|d| d.released);
        let members = members.filter(|m| !matches!(m.state, MemberState::Vacant) && !released(m));
        let rows = members.map(|m| ScbRow {
            member: m.uuid,
            name: m.name.clone(),
            path: PathBuf::from(&m.path),
            state: m.state.durable(),
        });
        rows.collect()
    }
}
