//! A stall: changes of applications wait, and what was written before is flushed, so that the sources are quiet
//! (the manual's STALL=WRITES).
//!
//! The gate holds new changes before they pin an epoch. When the requests of the epochs before are over, all is
//! flushed, and the command is answered. There is no clock here: the shell ends a stall whose time is over.

use super::event::{Answer, Effect, Notice, Ticket};
use super::member::{MemberId, MemberSet};
use super::pending::Pending;
use super::refusal::{Code, Refusal};
use super::shadow::{Purpose, ShadowSet};

/// Why changes go on after a stall.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StallEnd {
    /// The operator has said so.
    Command,
    /// Its time is over.
    Time,
    /// The unit is being stopped.
    Stop,
    /// What was under way did not end, or could not be flushed.
    Failed,
}

impl StallEnd {
    /// The word that people see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Time => "time",
            Self::Stop => "stop",
            Self::Failed => "failed",
        }
    }
}

/// How far a stall is that is not answered yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StallStage {
    /// The requests of older epochs are awaited.
    Retiring,
    /// Everything is being flushed; these were the sources then.
    Flushing(MemberSet),
}

impl ShadowSet {
    /// Has changes wait. A second stall begins its time anew: the sources are quiet already.
    pub(super) fn stall(&mut self, ticket: Ticket, seconds: u64) {
        self.push(Effect::Stall(seconds));
        if self.stalled {
            self.push(Effect::Notice(Notice::Stalled(seconds)));
            let answer = self.stall_answer(seconds);
            return self.accept(ticket, answer);
        }
        self.stalled = true;
        self.pending = Some(Pending::Stall {
            ticket,
            seconds,
            stage: StallStage::Retiring,
        });
        match self.old_intents.is_empty() {
            true => self.rotate(),
            false => self.publish(),
        }
        self.settle_stall();
    }

    /// Flushes once no request of an older epoch is left: nobody changes the unit now.
    pub(super) fn settle_stall(&mut self) {
        let older = super::view::Epoch(self.epoch.0.saturating_sub(1));
        let (is_over, sources) = (self.is_over(older), self.sources.all());
        #[cfg(debug_assertions)]
        let is_over = is_over || super::planted::is(super::planted::Mistake::StallWithoutWait);
        let Some(Pending::Stall { ticket, stage, .. }) = &mut self.pending else {
            return;
        };
        if *stage != StallStage::Retiring || !is_over {
            return;
        }
        *stage = StallStage::Flushing(sources);
        let number = ticket.number();
        #[cfg(debug_assertions)]
        if super::planted::is(super::planted::Mistake::StallWithoutFlush) {
            return self.become_quiet(number, false);
        }
        self.flush(self.writers(), Purpose::Stall(number));
    }

    /// What was to be flushed is: the sources are quiet.
    pub(super) fn become_quiet(&mut self, number: u64, lost: bool) {
        let sources = self.sources.all();
        let Some(Pending::Stall {
            ticket,
            seconds,
            stage: StallStage::Flushing(flushed),
        }) = &mut self.pending
        else {
            return;
        };
        if ticket.number() != number {
            return;
        }
        let (seconds, before) = (*seconds, std::mem::replace(flushed, sources));
        if lost {
            self.end_stall(StallEnd::Failed);
            let text = "no source member could be flushed";
            return self.answer_pending(Err(Refusal::new(Code::Io, text)));
        }
        // Into one that has become a source since, a copy may have written behind that flush.
        if !sources.without(before).is_empty() {
            return self.flush(self.writers(), Purpose::Stall(number));
        }
        self.push(Effect::Notice(Notice::Stalled(seconds)));
        let answer = self.stall_answer(seconds);
        self.answer_pending(Ok(answer));
    }

    fn stall_answer(&self, seconds: u64) -> Answer {
        let quiet = self.names_of(self.sources.all());
        let written = self.names_of(self.writers().without(self.sources.all()));
        let mut text = format!(
            "changes wait for at most {seconds} s; flushed and quiet: {}",
            quiet.join(", ")
        );
        let mut facts = vec![("seconds", seconds.to_string()), ("quiet", quiet.join(" "))];
        if !written.is_empty() {
            text = format!("{text}; still written by copies: {}", written.join(", "));
            facts.push(("written", written.join(" ")));
        }
        Answer { text, facts }
    }

    fn names_of(&self, of: MemberSet) -> Vec<&str> {
        let name = |id: MemberId| self.members[id.index()].name.as_str();
        of.iter().map(name).collect()
    }

    /// Lets changes go on.
    pub(super) fn unstall(&mut self, ticket: Ticket) {
        self.end_stall(StallEnd::Command);
        let answer = Answer {
            text: "changes go on".to_owned(),
            facts: Vec::new(),
        };
        self.accept(ticket, answer);
    }

    /// Whether there is a stall to end. Who ends one that has ended by itself is told so: what he has done
    /// meanwhile was not done on quiet members.
    pub(super) fn may_unstall(&self) -> Result<(), Refusal> {
        if self.stalled {
            return Ok(());
        }
        let hint = "when its seconds were over, ask for more of them next time";
        Err(Refusal::new(Code::StateChanged, "no changes are stalled").with_hint(hint))
    }

    /// The shell ends a stall: its time is over, or the unit is being stopped.
    pub(super) fn stall_over(&mut self, end: StallEnd) {
        if !self.stalled {
            return;
        }
        match self.pending.take() {
            Some(pending @ Pending::Stall { .. }) => self.refuse_stall(pending, end),
            other => {
                self.pending = other;
                self.end_stall(end);
            }
        }
    }

    /// A stall that has waited too long, or of a unit that is being stopped.
    pub(super) fn give_up_stall(&mut self, pending: Pending) {
        let end = match self.closing {
            true => StallEnd::Stop,
            false => StallEnd::Failed,
        };
        self.refuse_stall(pending, end);
    }

    fn refuse_stall(&mut self, pending: Pending, end: StallEnd) {
        self.end_stall(end);
        let refusal = match end {
            StallEnd::Stop => Refusal::new(Code::StateChanged, "the unit is being stopped"),
            _ => {
                let text = "what was under way did not end in time, so changes go on";
                Refusal::new(Code::TimedOut, text)
            }
        };
        self.refuse(pending.into_ticket(), refusal);
    }

    fn end_stall(&mut self, end: StallEnd) {
        self.stalled = false;
        self.push(Effect::Unstall);
        self.push(Effect::Notice(Notice::Unstalled(end)));
    }

    /// Whether changes of applications wait by command.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// What a stall would do, for a dry run.
    pub(super) fn would_stall(&self, seconds: u64) -> String {
        let names = self.names_of(self.sources.all()).join(", ");
        format!("changes would wait for at most {seconds} s, and {names} be flushed and quiet")
    }
}
