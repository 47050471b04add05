//! Dissolving the set by a command: it is closed as at a stop, then the face takes the mount away. Whether it may be
//! is the set's judgement, and whether somebody uses the unit the face knows.

use super::run::Runner;
use crate::set::{Answer, Code, Event, Policy, Refusal, Ticket};

impl Runner {
    /// Closes the set; the answer comes when the members are marked clean.
    pub(super) fn dissolve(&mut self, ticket: Ticket, policy: Policy, dry_run: bool) {
        let judged = self.set.may_dissolve(policy);
        let judged = judged.and_then(|answer| self.refuse_used(dry_run).map(|()| answer));
        match judged {
            Ok(_) if !dry_run => {
                // Its end is not given up after some time: nothing could be begun anew.
                self.let_go_of_current();
                self.dissolving = Some(ticket);
                self.pipeline.gate().close();
                self.feed(Event::Shutdown);
            }
            answer => self.reply(&ticket, answer),
        }
    }

    /// Unless this is a dry run, nobody can open the unit once this has found nobody.
    fn refuse_used(&self, dry_run: bool) -> Result<(), Refusal> {
        let Some(ender) = self.board.ender.get() else {
            let text = "this unit is not ended by a command";
            return Err(Refusal::new(Code::NotSupported, text));
        };
        let used = match dry_run {
            true => ender.used_by(),
            false => ender.close(),
        };
        match used {
            None => Ok(()),
            Some(text) => {
                let hint = "unmount what lies on it, detach its loop device, end its programs";
                Err(Refusal::new(Code::InUse, text).with_hint(hint))
            }
        }
    }

    /// The set is closed: answers, and has the face end.
    pub(super) fn dissolved(&mut self, clean: bool) {
        let Some(ticket) = self.dissolving.take() else {
            return;
        };
        let unit = self.board.state.load().unit.clone();
        let answer = match clean {
            true => Ok(Answer {
                text: format!("{unit} is dissolved; its members are marked clean"),
                facts: Vec::new(),
            }),
            false => {
                let text = "no source member could be flushed; the next mount merges them";
                Err(Refusal::new(Code::Io, text))
            }
        };
        self.reply(&ticket, answer);
        if let Some(ender) = self.board.ender.get() {
            ender.end();
        }
    }
}
