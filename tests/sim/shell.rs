//! The shell of the simulator: carries effects out in order and ends flushes.

use shadowset::set::{
    Answer, BitmapKind, Code, CopyEnd, Effect, Event, FlushId, Generation, HomeChange, MemberId,
    MemberSet, Notice, OpId, Refusal, Ticket, Verdict, View,
};

use crate::ops::{Op, Strike};
use crate::requests::{Kind, Stage};
use crate::stall::Stall;
use crate::world::{Asked, Asker, Checked, Flushing, Held, World, ensure, makes};

impl World {
    pub(crate) fn carry_out(&mut self, mut effects: Vec<Effect>) -> Checked {
        self.ops.doubted |= self.ids().any(|id| self.set.doubt_of(id).is_some());
        if makes!(SettleBeforePersist) {
            effects.sort_by_key(|effect| !matches!(effect, Effect::Settle(..)));
        } else {
            // As the server has it: answers come last.
            effects.sort_by_key(|effect| {
                matches!(
                    effect,
                    Effect::Settle(..) | Effect::Reply(..) | Effect::Lift
                )
            });
        }
        for change in std::mem::take(&mut self.home.held_back) {
            self.change_home(&change);
        }
        let mut told = false;
        for effect in effects {
            let answers = matches!(effect, Effect::Settle(..) | Effect::Reply(..));
            if answers && !told && !makes!(SettleBeforePersist) {
                self.lose_home()?;
                self.report_blocks()?;
                told = true;
            }
            if self.crashed {
                return Ok(());
            }
            if self.is_logging() {
                self.log_effect(&effect);
            }
            self.carry_out_one(effect)?;
            if self.crashed {
                return Ok(());
            }
        }
        self.lose_home()?;
        self.report_blocks()?;
        if !self.is_undurable() {
            let unclosed = std::mem::take(&mut self.ops.unclosed);
            unclosed.iter().for_each(|id| self.close_disk(id));
        }
        if !self.crashed {
            self.retire();
        }
        Ok(())
    }

    fn log_effect(&mut self, effect: &Effect) {
        let text = match effect {
            Effect::Publish(view) => format!(
                "effect Publish {:?} {:?}",
                view.epoch(),
                view.seats()
                    .iter()
                    .map(|s| s.id.index() + 1)
                    .collect::<Vec<_>>()
            ),
            other => format!("effect {other:?}").chars().take(200).collect(),
        };
        self.log(text);
    }

    fn carry_out_one(&mut self, effect: Effect) -> Checked {
        match effect {
            Effect::Adopt(_, id) => self.adopt(id),
            Effect::Persist {
                generation,
                clean,
                to,
            } => self.persist(generation, clean, to)?,
            Effect::Home(change) if makes!(BitmapAfterView) && is_departure(&change) => {
                self.home.held_back.push(change);
            }
            Effect::Home(change) => self.change_home(&change),
            Effect::PrepareGrowth(number, geometry) => self.prepare_growth(number, geometry),
            Effect::Hold | Effect::Lift => self.gate(&effect),
            Effect::Stall(_) => self.ops.stall.held = true,
            Effect::Unstall => self.ops.stall = Stall::default(),
            Effect::FlushLost => {
                self.mark("a flush failed everywhere");
                self.ops.flush_lost = true;
            }
            Effect::Publish(view) => self.publish(*view)?,
            Effect::Flush(id, members) => self.begin_flush(id, members),
            Effect::StartCopy(work) => {
                self.check_limit()?;
                let copy = crate::copier::Copy::new(work);
                if let (Some(promised), true) =
                    (self.promised.remove(&copy.op.0), self.plan.faults.none())
                {
                    ensure!(
                        promised == copy.stale,
                        "{promised} bytes promised, {} stale",
                        copy.stale
                    );
                }
                self.copies.push(copy);
            }
            Effect::StartVerify(work) => self.start_verify(work)?,
            Effect::PauseCopy(op) => self.pause(op, !self.quiet),
            Effect::ResumeCopy(op) => self.pause(op, false),
            Effect::StopCopy(op) => self.stop_copy(op),
            Effect::Close(id) if self.is_undurable() => self.ops.unclosed.insert(id),
            Effect::GiveUp(id) => self.give_up_calls(id),
            Effect::Abort(members) => self.abort_calls(members),
            Effect::Close(id) => self.close_disk(id),
            Effect::Release(id) => {
                let disk = self.disk(id);
                (disk.scb, disk.frozen) = (None, None);
            }
            Effect::Reply(ticket, answer) => self.reply(&ticket, answer)?,
            Effect::Settle(ticket, verdict) => self.settle_ticket(ticket.number(), verdict)?,
            Effect::Notice(notice) => self.notice(&notice)?,
            Effect::Stopped { clean } => {
                let marked = self.ops.just_failed.and(self.set.writers()).is_empty();
                (self.stopped, self.clean) = (true, clean && marked);
            }
        }
        Ok(())
    }

    /// Ends a request as the set has it.
    fn settle_ticket(&mut self, ticket: u64, verdict: Verdict) -> Checked {
        let asker = self.tickets.remove(&ticket);
        if let Some(Asker::Verify) = asker {
            return self.repair_judged();
        }
        if let Some(Asker::ReadRepair) = asker {
            return self.read_repair_judged();
        }
        let Some(Asker::Request(id)) = asker else {
            return Err(crate::world::Violation(format!(
                "ticket {ticket} is settled: {asker:?}"
            )));
        };
        let verdict = match self.is_undurable() {
            true => Verdict::Fail,
            false => verdict,
        };
        self.check_generations(id, verdict)?;
        if let Some(r) = self.requests.iter_mut().find(|r| r.id == id) {
            r.stage = Stage::Answered(verdict);
        }
        Ok(())
    }

    /// Changes what is kept of bitmaps, unless a crash comes first or the home breaks.
    pub(crate) fn change_home(&mut self, change: &HomeChange) {
        if !self.home.keeps() {
            return;
        }
        let admitted = self.written.admit(change, self.set.writers());
        let retained = makes!(ForgetAhead) && matches!(change, HomeChange::Forget(_));
        let change = match admitted {
            _ if makes!(ProofAhead) || retained => change.clone(),
            Some(change) => change,
            None => return self.mark("a change of bitmaps was put off"),
        };
        let change = &change;
        let struck = self.strike(Op::Change);
        if struck == Strike::Crashes {
            return self.mark("crash between changes of bitmaps");
        }
        let breaks = !self.quiet && self.rng.below(10_000) < self.plan.faults.home;
        let breaks = breaks || struck == Strike::Fails;
        if breaks {
            return self.break_home();
        }
        self.home.change(change);
    }

    /// Nothing more becomes durable; the set is told.
    pub(crate) fn break_home(&mut self) {
        self.log("the home of bitmaps breaks");
        self.mark("bitmaps could be kept no longer");
        self.home.broken.set(true);
    }

    /// Tells the set that the home is broken; then writes go on in memory.
    fn lose_home(&mut self) -> Checked {
        if !self.home.broken.get() || self.home.given_up.get() || self.crashed {
            return Ok(());
        }
        let why = Refusal::new(Code::Io, "the home of bitmaps is broken");
        let now = self.moment();
        let effects = self.set.handle(now, Event::HomeLost(why));
        for effect in effects {
            // What has failed once may take the next change all the same.
            if let Effect::Home(change) = &effect {
                self.home.change(change);
                continue;
            }
            self.carry_out_one(effect)?;
            if self.crashed {
                return Ok(());
            }
        }
        self.home.given_up.set(true);
        Ok(())
    }

    fn pause(&mut self, op: OpId, paused: bool) {
        self.with_copy(op, |c| c.paused = paused);
        self.with_verify(op, |v| v.paused = paused);
    }

    fn with_copy(&mut self, op: OpId, change: impl Fn(&mut crate::copier::Copy)) {
        self.copies
            .iter_mut()
            .filter(|c| c.op == op)
            .for_each(change);
    }

    fn stop_copy(&mut self, op: OpId) {
        self.with_verify(op, |v| v.stopped = true);
        let under_way = self
            .copies
            .iter()
            .any(|c| c.op == op && !c.steps.is_empty());
        let cancel = self
            .tickets
            .values()
            .any(|a| matches!(a, Asker::Command(c) if c.word == "cancel"));
        if under_way && cancel {
            self.mark("copy cancelled with steps in flight");
        }
        self.with_copy(op, |c| {
            c.end.get_or_insert(CopyEnd::Stopped);
        });
    }

    /// A flush covers what is written when it begins.
    fn begin_flush(&mut self, id: FlushId, members: MemberSet) {
        self.note_flush(id);
        let covers = |m: MemberId| (m, self.disks[m.index()].image.written());
        self.flushes.push(Flushing {
            id,
            covers: members.iter().map(covers).collect(),
            given_up: MemberSet::EMPTY,
            ended: None,
        });
    }

    fn adopt(&mut self, id: MemberId) {
        self.note_return(id);
        self.open_disk(id);
        let disk = &mut self.disks[id.index()];
        disk.open = true;
        disk.frozen = None;
        (disk.bad_reads, disk.bad_writes, disk.bad_flushes) = (false, false, false);
        disk.unflushed = None;
        disk.lost.clear();
        disk.leaves.clear();
        let moving = |r: &crate::requests::Request| {
            r.stage == Stage::Move && matches!(r.kind, Kind::Write(_) | Kind::Discard)
        };
        if self.requests.iter().any(moving) {
            self.mark("attach during writes");
        }
    }

    fn persist(&mut self, generation: Generation, clean: bool, to: MemberSet) -> Checked {
        let number = generation.number();
        ensure!(
            number >= self.generation,
            "I6: generation {number} after {}",
            self.generation
        );
        let grows = number > self.generation || clean;
        ensure!(
            grows,
            "I6: generation {number} is written for a second change"
        );
        self.generation = number;
        for id in to.iter().filter(|_| clean) {
            self.check_durable(id)?;
        }
        self.write_blocks(generation, clean, to);
        // Threads that copy are stopped by nobody but themselves.
        while self.stopping && !self.copies.is_empty() && self.rng.chance(700) && !self.crashed {
            self.step_copy()?;
        }
        Ok(())
    }

    fn publish(&mut self, view: View) -> Checked {
        let epoch = view.epoch();
        let last = self.views.last_key_value().map(|(e, _)| *e);
        ensure!(last.is_none_or(|l| l < epoch), "epochs grow");
        let view = std::sync::Arc::new(view);
        self.views.insert(epoch, Held { view, pins: 0 });
        self.fit_to_set()
    }

    fn notice(&mut self, notice: &Notice) -> Checked {
        match notice {
            Notice::Expelled { member, .. } => {
                self.mark("expulsion");
                if self.copies.iter().any(|c| c.work.target() == *member) {
                    self.mark("expulsion of a running copy target");
                }
            }
            Notice::Bitmap(id, member, change) => self.hear(*id, member, *change)?,
            Notice::VerifyEnded { state: "done", .. } => self.mark("a verify is done"),
            Notice::VerifyDiffers(_, block) => {
                return Err(crate::world::Violation(format!("block {block} differs")));
            }
            Notice::Resized { .. } => {
                self.mark("resized");
                self.fresh.clear();
            }
            Notice::CopyQueued(_, kind, _) if kind.is_merge() && self.now > 0 => {
                self.mark("failed everywhere, then a merge");
            }
            Notice::CopyEnded {
                op,
                kind,
                end,
                copied_bytes,
                ..
            } => {
                if *end == "done" {
                    self.mark(kind.name());
                }
                let status = self.set.status();
                let operation = status.operation(*op);
                let total = operation.map(|o| o.progress.total_bytes());
                let equal = operation.map_or(0, |o| o.progress.equal_bytes());
                ensure!(equal == 0 || kind.compares(), "operation {op} compares");
                let exact = self.plan.faults.none() && !self.ops.doubted && *end == "done";
                let total = total.unwrap_or(*copied_bytes);
                ensure!(
                    !exact || *copied_bytes + equal == total,
                    "operation {op} copied {copied_bytes} bytes, {total} were stale"
                );
            }
            _ => {}
        }
        Ok(())
    }

    fn reply(&mut self, ticket: &Ticket, answer: Result<Answer, Refusal>) -> Checked {
        let asker = self.tickets.remove(&ticket.number());
        let Some(Asker::Command(asked)) = asker else {
            return Err(crate::world::Violation(format!(
                "{ticket:?} is answered: {asker:?}"
            )));
        };
        if asked.word == "detach" && answer.is_ok() && self.ops.stall.held {
            self.mark("a detach while changes are stalled");
        }
        let answer = match answer {
            Ok(_) if self.is_undurable() => Err(Refusal::new(
                Code::Io,
                "a storage control block could not be written",
            )),
            other => other,
        };
        match answer {
            Ok(answer) => {
                self.mark(asked.word);
                match (asked.word, asked.member) {
                    ("detach", Some(id)) => self.detached(id, &asked, &answer)?,
                    ("cancel", Some(id)) => self.freeze(id),
                    ("stall", _) => self.become_quiet()?,
                    ("delete" | "release", _) => self.fresh.clear(),
                    // Copies lack what is merged as well.
                    ("demand merge" | "expel" | "abort", _) => self.promised.clear(),
                    ("attach", Some(id)) => {
                        let mini = answer.facts.contains(&("kind", "minicopy".to_owned()));
                        ensure!(mini || !asked.minicopy, "no minicopy: {answer:?}");
                        self.fresh.remove(&id);
                        let fact = |key| answer.facts.iter().find(|f| f.0 == key)?.1.parse().ok();
                        if let (Some(op), Some(bytes)) = (fact("operation"), fact("bytes")) {
                            self.promised.insert(op, bytes);
                        }
                    }
                    _ => {}
                }
            }
            Err(refusal) => {
                let (io, late) = (refusal.code == Code::Io, refusal.code == Code::TimedOut);
                if asked.word == "detach" && io {
                    self.mark("expulsion during detach");
                }
                if late && refusal.text.contains("stable") {
                    if asked.word == "detach" {
                        self.mark("detach timed out behind the cut");
                    }
                    // Copies lack what that member may have lost, also one whose copy was cancelled.
                    self.promised.clear();
                }
                if asked.word == "detach" && asked.source && !io && !self.stopping {
                    self.check_not_detached(asked.member, late)?;
                }
                if let (true, "attach", Some(id)) = (late, asked.word, asked.member) {
                    self.fresh.remove(&id);
                    self.mark("attach timed out");
                }
            }
        }
        Ok(())
    }

    fn freeze(&mut self, id: MemberId) {
        let contents = self.disks[id.index()].image.contents().to_vec();
        self.disk(id).frozen = Some(contents);
    }

    fn detached(&mut self, id: MemberId, asked: &Asked, answer: &Answer) -> Checked {
        self.check_stable(id)?;
        self.freeze(id);
        let bitmap = answer.facts.iter().any(|f| f.0 == "bitmap");
        ensure!(bitmap || !asked.minicopy, "no bitmap: {answer:?}");
        // Beside another one that is leaving it has what is not flushed, too.
        let leaving = |other| matches!(self.state(other), shadowset::set::MemberState::Leaving(_));
        let exact = bitmap && !self.ids().any(leaving);
        if let (true, Some(departed)) = (exact, self.state(id).departed()) {
            let until = departed.until;
            self.fresh.insert(id, until);
        }
        self.check_cut(id, asked, answer)
    }

    /// Ends one of the flushes that the set has asked for.
    pub(crate) fn end_flush(&mut self) -> Checked {
        if self.flushes.is_empty() {
            return Ok(());
        }
        let at = self.rng.place(self.flushes.len());
        // One flush may hang for long while others end.
        if !self.quiet && self.flushes[at].id.0 % 7 == 0 && !self.rng.chance(20) {
            return Ok(());
        }
        let hangs = |(id, _): &(MemberId, u64)| {
            self.ops.silence.is_hung(*id) && !self.ops.silence.is_gone(*id)
        };
        if self.flushes[at].covers.iter().any(hangs)
            && self.flushes[at].ended.is_none()
            && !self.quiet
        {
            return Ok(());
        }
        if self.is_slow_to_tell(at) {
            return Ok(());
        }
        let event = match self.flushes[at].ended.take() {
            Some(event) => event,
            None => self.flush_members(at)?,
        };
        match self.is_told_late() {
            true => self.flushes[at].ended = Some(event),
            false => {
                self.flushes.swap_remove(at);
                self.inbox.push(event);
            }
        }
        Ok(())
    }

    fn flush_members(&mut self, at: usize) -> Result<Event, crate::world::Violation> {
        let flush = &self.flushes[at];
        let (flush, covers, given_up) = (flush.id, flush.covers.clone(), flush.given_up);
        let faults = self.plan.faults;
        let everywhere = !self.quiet && self.rng.chance(faults.flush_everywhere);
        let mut failed = MemberSet::EMPTY;
        for (id, written) in covers {
            let breaks = !self.quiet && self.rng.chance(faults.flush);
            let struck = self.strike(Op::Flush);
            if struck == Strike::Crashes {
                return Err(Self::cut_short());
            }
            let breaks = breaks || struck == Strike::Fails;
            let sticks = breaks && self.rng.chance(faults.sticky);
            let gone = self.ops.silence.is_gone(id) || given_up.contains(id);
            let tells = self.tells(id, written);
            let disk = self.disk(id);
            disk.bad_flushes |= sticks;
            let fails = everywhere || breaks || disk.bad_flushes || tells;
            if fails || gone {
                failed.insert(id);
                if !gone {
                    self.note_unflushed(id);
                }
            } else {
                disk.image.flush(written);
            }
        }
        let media = match failed.is_empty() {
            true => failed,
            false => self.media_among(failed),
        };
        Ok(Event::Flushed(flush, failed, media))
    }
}

fn is_departure(change: &HomeChange) -> bool {
    matches!(change, HomeChange::Add(record, _) if matches!(record.kind, BitmapKind::Untold | BitmapKind::Suspect))
}
