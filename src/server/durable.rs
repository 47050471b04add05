//! Writing a membership down in the members' control blocks, and what waits as long as that fails (I3).
//!
//! Nothing here decides who leaves: that is the set's, which is told whose block could not be written.

use super::run::Runner;
use crate::set::{Code, Event, Generation, HomeChange, MemberSet, Refusal};

impl Runner {
    pub(super) fn persist(&mut self, generation: Generation, clean: bool, to: MemberSet) {
        self.write_down(generation, clean, to);
        if self.is_undurable() {
            self.pipeline.gate().hold();
            self.copier.halt(true);
            self.verifier.halt(true);
        }
        self.settle_home();
    }

    /// Carries out what was put off as long as the membership was not durable, if it is now.
    fn settle_home(&mut self) {
        for change in self.written.settled(self.set.writers()) {
            self.change_home(&change);
        }
    }

    fn write_down(&mut self, generation: Generation, clean: bool, to: MemberSet) {
        let writers = self.set.writers();
        if !self.written.may_write(to, writers) {
            tracing::warn!("a member leaves, and its block cannot say so yet");
            self.just_failed = self.just_failed.or(to);
            return;
        }
        let failed = self.write_blocks(generation, clean, to);
        let lacking = failed.as_ref().map_or(MemberSet::EMPTY, |(m, _)| *m);
        self.written.note(generation, to, lacking, writers);
        self.just_failed = self.just_failed.without(to).or(lacking);
        if let Some((_, error)) = failed {
            tracing::error!(%error, "a storage control block could not be written");
            if clean && to == writers {
                self.failure = Some(error.to_string());
            }
        }
    }

    /// Holds changes and copies back as long as the membership is not durable (I3).
    pub(super) fn hold(&mut self, held: bool) {
        self.pipeline.gate().halt(held);
        self.copier.halt(held);
        self.verifier.halt(held);
    }

    /// Lets go of the images that were kept because their departure was not durable.
    pub(super) fn close_late(&mut self) {
        if !self.is_undurable() {
            let unclosed = std::mem::take(&mut self.unclosed);
            unclosed.iter().for_each(|id| self.close(id));
        }
    }

    /// Tells the set whose blocks could not be written.
    pub(super) fn report_blocks(&mut self) {
        let failed = std::mem::take(&mut self.just_failed);
        if !failed.is_empty() {
            self.feed(Event::BlocksFailed(self.written.held(failed)));
        }
    }

    /// Whether a member that takes part could say something else after a crash (I3).
    pub(super) fn is_undurable(&self) -> bool {
        !self.written.is_durable(self.set.writers())
    }

    /// Refuses a command while the membership is not durable: what it builds on may not have happened after a
    /// crash.
    pub(super) fn refuse_undurable(&self) -> Result<(), Refusal> {
        if !self.is_undurable() {
            return Ok(());
        }
        let text = "the last change of membership cannot be written to the storage control blocks";
        let hint = "the log names the files; it is tried again every few seconds";
        Err(Refusal::new(Code::Io, text).with_hint(hint))
    }

    /// Tries again to make a membership durable that no member could write down.
    pub(super) fn persist_again(&mut self) {
        let (generation, to) = (self.set.generation(), self.set.writers());
        self.write_down(generation, false, to);
        if !self.is_undurable() {
            self.change_home(&HomeChange::Describe(self.set.proof()));
            self.settle_home();
        }
        self.carry_out(Vec::new());
    }
}
