//! Rehearsals: what a command would do, by the same judgement, with nothing changed.
//!
//! A detach, an attach and a resize tell more than that and say themselves what they would do.

use super::bitmap::WriteBitmap;
use super::copy::CopyKind;
use super::event::{Answer, Command, Ticket};
use super::member::MemberSet;
use super::operation::OpState;
use super::refusal::{Code, Refusal};
use super::shadow::ShadowSet;

/// What a merge that is asked for would do.
pub(super) struct MergePlan {
    /// The sources that are made equal to the master.
    pub(super) others: MemberSet,
    pub(super) kind: CopyKind,
    pub(super) map: WriteBitmap,
}

impl ShadowSet {
    /// Answers what the command would do.
    pub(super) fn rehearse(&mut self, ticket: Ticket, command: &Command) {
        match self.judge(command) {
            Ok((text, facts)) => self.accept(ticket, Answer { text, facts }),
            Err(refusal) => self.refuse(ticket, refusal),
        }
    }

    fn judge(&self, command: &Command) -> Result<Judged, Refusal> {
        let op = |op, verb, from| {
            let may = self.may_steer(op, from);
            may.map(|()| (format!("operation {op} would {verb}"), Vec::new()))
        };
        match command {
            Command::Expel { member } => self
                .may_expel(member)
                .map(|_| (format!("{member} would be expelled"), Vec::new())),
            Command::Release { member } => {
                let (_, bitmap) = self.may_release(member)?;
                let lost = bitmap.map(|tag| ("bitmap", tag.id.to_string()));
                let text = format!("{member} would be released");
                Ok((text, lost.into_iter().collect()))
            }
            Command::Merge { full } => self.may_merge(*full).map(|plan| plan.judged()),
            Command::DeleteBitmap { id } => {
                let owner = &self.members[self.may_delete(*id)?.index()].name;
                let text = format!("bitmap {id} would be deleted; {owner} would need a full copy");
                Ok((text, vec![("member", owner.clone())]))
            }
            Command::Pause(id) => op(*id, "be held", OpState::Running),
            Command::Resume(id) => op(*id, "go on", OpState::Paused),
            Command::Cancel(id) => {
                let target = &self.members[self.may_cancel(*id)?.index()].name;
                let text = format!("operation {id} would end, and {target} be detached");
                Ok((text, vec![("member", target.clone())]))
            }
            _ => {
                let text = "this command has no dry-run";
                Err(Refusal::new(Code::NotSupported, text))
            }
        }
    }
}

/// A sentence and its facts.
type Judged = (String, Vec<(&'static str, String)>);

impl MergePlan {
    fn judged(self) -> Judged {
        let (kind, bytes) = (self.kind.name(), self.map.stale_bytes());
        let members = self.others.iter().count();
        let facts = vec![
            ("verdict", kind.to_owned()),
            ("bytes", bytes.to_string()),
            ("extents", self.map.runs().count().to_string()),
        ];
        let text = format!("{kind} of {bytes} bytes into {members} members would begin");
        (text, facts)
    }
}
