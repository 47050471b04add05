//! The data path of the simulator: the order of the real pipeline as steps of a state machine.
//!
//! Fence, View, bits, member writes block by block, verdict, release. Reads take no
//! fence, unless they merge first (`merging.rs`).

use std::sync::Arc;

use shadowset::set::{
    ByteRange, Bytes, Event, Failure, Homeless, MemberId, MemberSet, Outcome, Preference, Ticket,
    Verdict, View,
};
use shadowset::testing::memory::Value;
use shadowset::testing::oracle::Ended;

use crate::merging::Merging;
use crate::ops::{Op, Strike};
use crate::storage::has_other_source;
use crate::world::{Asker, BLOCK, Checked, Violation, World, blocks_of, ensure, makes, usize_of};

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Write(Value),
    Discard,
    Flush,
    Read,
}

/// How far a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Fence,
    Load,
    Mark,
    /// A read merges.
    Merge,
    /// The planted mistake: the bits become durable behind those in memory.
    Commit,
    Move,
    Settle,
    Waiting,
    Answered(Verdict),
}

/// A request of an application.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) stage: Stage,
    /// Its place at the fence, once it has come there.
    pub(crate) place: Option<u64>,
    /// What a read has fenced, or waits for.
    pub(crate) whole: Option<ByteRange>,
    /// Is given its turn seldom.
    slow: bool,
    /// `None` for a flush.
    pub(crate) range: Option<ByteRange>,
    pub(crate) view: Option<Arc<View>>,
    began: u64,
    todo: Vec<(MemberId, usize)>,
    unread: Vec<usize>,
    good: MemberSet,
    pub(crate) failed: MemberSet,
    /// Fails on every member.
    pub(crate) doomed: bool,
    reader: Option<MemberId>,
    pub(crate) merging: Option<Merging>,
    settled: bool,
    /// It has failed although what it has written may come: its range stays fenced until then.
    pub(crate) lingers: bool,
    /// A read that nobody answers any more.
    pub(crate) unanswered: bool,
}

impl Request {
    /// Takes what is still to be done on members: they have failed it.
    pub(crate) fn take_from(&mut self, members: MemberSet) -> Vec<(MemberId, usize)> {
        let (taken, todo) = std::mem::take(&mut self.todo)
            .into_iter()
            .partition(|(m, _)| members.contains(*m));
        self.todo = todo;
        let taken: Vec<(MemberId, usize)> = taken;
        for (member, _) in &taken {
            self.good.remove(*member);
            self.failed.insert(*member);
        }
        taken
    }

    pub(crate) fn value(&self) -> Value {
        match self.kind {
            Kind::Write(value) => value,
            _ => 0,
        }
    }

    /// Whether it is a write that has set its bits.
    pub(crate) fn has_marked(&self) -> bool {
        let writes = matches!(self.kind, Kind::Write(_) | Kind::Discard);
        writes && !matches!(self.stage, Stage::Fence | Stage::Load | Stage::Mark)
    }

    /// All that decides what it does next; its place at the fence is told apart, and its View by the epoch.
    pub(crate) fn digest(&self) -> String {
        let epoch = self.view.as_ref().map(|view| view.epoch());
        let left = (&self.todo, &self.unread, self.reader, &self.merging);
        let results = (
            self.good,
            self.failed,
            self.settled,
            self.lingers,
            self.unanswered,
        );
        let asked = (self.kind, self.stage, self.range, self.whole, self.doomed);
        format!("{:?}", (self.id, asked, epoch, left, results))
    }

    /// Whether nothing is left to be written.
    pub(crate) fn is_written(&self) -> bool {
        self.stage == Stage::Move && self.kind != Kind::Read && self.todo.is_empty()
    }

    /// When it began, once it has its View.
    pub(crate) fn began(&self) -> Option<u64> {
        self.view.as_ref().map(|_| self.began)
    }

    pub(crate) fn blocks(&self) -> std::ops::Range<usize> {
        self.range.map_or(0..0, blocks_of)
    }
}

impl World {
    pub(crate) fn new_request(&mut self) -> Checked {
        if self.requests.len() >= self.plan.requests_max {
            return Ok(());
        }
        let kind = match self.rng.weighted(&self.plan.kinds) {
            Some(0) => Kind::Write(self.fresh_value()),
            Some(1) => Kind::Discard,
            Some(2) => Kind::Flush,
            _ => Kind::Read,
        };
        let range = (kind != Kind::Flush).then(|| self.draw_range());
        let everywhere = self.plan.faults.everywhere;
        let doomed = kind != Kind::Read && self.rng.chance(everywhere);
        self.ask(kind, range, doomed);
        Ok(())
    }

    /// A value that no other write has.
    pub(crate) fn fresh_value(&mut self) -> Value {
        crate::world::value_of(self.next_id() + 100)
    }

    /// A request begins; a `doomed` one fails on every member.
    pub(crate) fn ask(&mut self, kind: Kind, range: Option<ByteRange>, doomed: bool) {
        let id = self.next_id();
        let stage = match kind {
            Kind::Write(_) | Kind::Discard => Stage::Fence,
            Kind::Flush | Kind::Read => Stage::Load,
        };
        self.started += 1;
        let slow = self.rng.chance(self.plan.slow);
        let view = (makes!(ViewBeforeFence) && stage == Stage::Fence).then(|| self.pin());
        if self.is_logging() {
            self.log(format!(
                "request {id} {kind:?} {:?} doomed={doomed}",
                range.map(blocks_of)
            ));
        }
        self.requests.push(Request {
            id,
            kind,
            stage,
            place: None,
            whole: None,
            slow,
            range,
            view,
            began: self.now,
            todo: Vec::new(),
            unread: Vec::new(),
            good: MemberSet::EMPTY,
            failed: MemberSet::EMPTY,
            doomed,
            reader: None,
            merging: None,
            settled: false,
            lingers: false,
            unanswered: false,
        });
    }

    /// A range, often across a region border, now and then not aligned to blocks.
    fn draw_range(&mut self) -> ByteRange {
        let most = self.plan.blocks_max;
        let blocks = self.rng.between(1, most);
        let unit = self.geometry.blocks();
        let hot = match self.plan.hot_blocks == self.plan.blocks {
            true => unit,
            false => self.plan.hot_blocks,
        };
        let mut first = self.rng.below(hot.min(unit));
        if self.rng.chance(200) {
            let region = self.region_blocks();
            first = (first / region * region).saturating_sub(self.rng.below(3));
        }
        let first = first.min(unit - blocks);
        if blocks > (1 << 20) / BLOCK {
            self.mark("a request of more than 1 MiB");
        }
        let (mut start, mut len) = (first * BLOCK, blocks * BLOCK);
        if self.rng.chance(200) {
            start += self.rng.below(BLOCK);
            len = blocks * BLOCK - start % BLOCK - self.rng.below(BLOCK - start % BLOCK);
        }
        let range = self.geometry.clip(Bytes(start), Bytes(len));
        range.expect("inside the unit")
    }

    pub(crate) fn step_request(&mut self) -> Checked {
        if self.requests.is_empty() {
            return Ok(());
        }
        let at = self.rng.place(self.requests.len());
        if self.requests[at].slow && !self.quiet && self.rng.chance(950) {
            return Ok(());
        }
        self.go_on(at)
    }

    /// One step of a request.
    pub(crate) fn go_on(&mut self, at: usize) -> Checked {
        let (id, stage) = (self.requests[at].id, self.requests[at].stage);
        self.trace(&[id]);
        match stage {
            Stage::Fence => self.wait_for_fence(at),
            Stage::Load => self.load(at),
            Stage::Mark => self.mark_bits(at),
            Stage::Merge => self.merge_some(at),
            Stage::Commit => {
                self.commit_late(at);
                Ok(())
            }
            Stage::Move if self.requests[at].kind == Kind::Read => self.read_some(at),
            Stage::Move => self.write_some(at),
            Stage::Settle => self.settle(at),
            Stage::Waiting => Ok(()),
            Stage::Answered(verdict) if self.requests[at].kind == Kind::Read => {
                self.merging_judged(at, verdict)
            }
            Stage::Answered(verdict) => self.finish(at, verdict),
        }
    }

    /// Queues at the fence, then goes on when nobody who came before wants a block of the range.
    fn wait_for_fence(&mut self, at: usize) -> Checked {
        let Some(mut range) = self.requests[at].range else {
            return Ok(());
        };
        if self.requests[at].kind == Kind::Read {
            let whole = self.whole(range);
            range = *self.requests[at].whole.get_or_insert(whole);
        }
        let request = &mut self.requests[at];
        let Some(place) = request.place else {
            request.place = Some(self.fences.enter(range.blocks()));
            return Ok(());
        };
        if self.fences.may_pass(place) || makes!(NoFence) {
            self.go_inside(blocks_of(range))?;
            self.requests[at].stage = Stage::Load;
        }
        Ok(())
    }

    fn load(&mut self, at: usize) -> Checked {
        let changes = matches!(self.requests[at].kind, Kind::Write(_) | Kind::Discard);
        if self.growth.held && changes {
            self.mark("a change waits until the unit has grown");
            return Ok(());
        }
        if self.ops.stall.held && changes {
            self.mark("a change waits for the end of a stall");
            return Ok(());
        }
        let view = match self.requests[at].view.take() {
            Some(view) => view,
            None => self.pin(),
        };
        let now = self.now;
        let request = &mut self.requests[at];
        request.began = now;
        let blocks = request.blocks();
        let writers = view.writers();
        match request.kind {
            Kind::Read => request.unread = blocks.clone().collect(),
            Kind::Flush => request.todo = writers.iter().map(|m| (m, 0)).collect(),
            Kind::Write(_) | Kind::Discard => {
                let all = writers.iter();
                let all = all.flat_map(|m| blocks.clone().map(move |b| (m, b)));
                request.todo = all.collect();
            }
        }
        if request.kind != Kind::Read {
            request.good = writers;
        }
        let (kind, value, epoch) = (request.kind, request.value(), view.epoch());
        request.stage = match kind {
            Kind::Write(_) | Kind::Discard => Stage::Mark,
            _ => Stage::Move,
        };
        let fenced = request.place.is_some();
        request.view = Some(Arc::clone(&view));
        self.trace(&[epoch.0]);
        if let (Kind::Read, Some(range)) = (kind, self.requests[at].range) {
            return self.load_read(at, &view, (range, fenced));
        }
        if matches!(kind, Kind::Write(_) | Kind::Discard) {
            for block in blocks {
                let last = self.oracle.ended(block).last().map_or(0, |w| w.epoch);
                ensure!(
                    last <= epoch.0,
                    "I5: block {block}: epoch {} after {last}",
                    epoch.0
                );
                self.oracle.begin(block, value, now);
            }
        }
        let unguarded = kind == Kind::Flush && makes!(FlushWhileHalted);
        if kind != Kind::Read && self.is_undurable() && !unguarded {
            self.mark("refused while the membership is not durable");
            self.requests[at].stage = Stage::Answered(Verdict::Fail);
        }
        Ok(())
    }

    /// A read that has its View: what is still to be merged there is merged first.
    fn load_read(&mut self, at: usize, view: &View, (range, fenced): (ByteRange, bool)) -> Checked {
        if fenced {
            let whole = self.whole(range);
            if self.requests[at].whole != Some(whole) {
                return self.fence_again(at);
            }
            self.begin_merging(at, view, whole);
        } else if view.unmerged(range).is_some() && !makes!(ReadUnmerged) {
            // Who waits for a fence keeps no epoch alive.
            self.requests[at].view = None;
            self.requests[at].stage = Stage::Fence;
            self.unpin(view.epoch());
        }
        Ok(())
    }

    /// Sets the bits; one whose bits cannot become durable waits until the set has given the home up.
    fn mark_bits(&mut self, at: usize) -> Checked {
        if self.home.keeps() && !self.quiet && self.rng.below(10_000) < self.plan.faults.home {
            self.break_home();
        }
        let request = &self.requests[at];
        let forgets =
            makes!(BitAfterWrite) || makes!(DiscardForgotten) && request.kind == Kind::Discard;
        let mut next = Stage::Move;
        if let (Some(view), Some(range), false) = (&request.view, request.range, forgets) {
            if makes!(MemoryBitFirst) {
                let regions = self.geometry.regions_of(range);
                let known = self
                    .set
                    .intents()
                    .last()
                    .is_some_and(|map| map.covers(regions));
                let _ = view.mark(range, &Homeless);
                next = if known { Stage::Move } else { Stage::Commit };
            } else {
                let (view, struck) = (Arc::clone(view), self.is_struck(Op::Mark));
                if !self.mark_durably(&view, range, struck)? {
                    return self.carry_out(Vec::new());
                }
            }
        }
        if !self.home.keeps() && self.is_undurable() && !makes!(WriteUnkept) {
            self.mark("bits in memory only, and no block says so yet");
            next = Stage::Answered(Verdict::Fail);
        }
        self.requests[at].stage = next;
        Ok(())
    }

    /// Sets the bits; says whether they are set. Only a mark that has to reach the storage counts.
    pub(crate) fn mark_durably(
        &mut self,
        view: &View,
        range: ByteRange,
        struck: bool,
    ) -> Result<bool, Violation> {
        let before = self.home.commits.get();
        self.home.refuses.set(struck);
        let good = view.mark(range, &self.home).is_ok();
        self.home.refuses.set(false);
        if self.home.commits.get() == before {
            return Ok(good);
        }
        match self.strike(Op::Mark) {
            Strike::Passes => Ok(good),
            Strike::Crashes => Err(Self::cut_short()),
            Strike::Fails => {
                self.break_home();
                Ok(false)
            }
        }
    }

    fn commit_late(&mut self, at: usize) {
        let request = &self.requests[at];
        if let (Some(view), Some(range)) = (&request.view, request.range) {
            let _ = view.mark(range, &self.home);
        }
        self.requests[at].stage = Stage::Move;
    }

    /// Writes or flushes a few of what is to be done, in any order.
    fn write_some(&mut self, at: usize) -> Checked {
        for _ in 0..=self.rng.burst(self.plan.stride) {
            let request = &mut self.requests[at];
            if request.todo.is_empty() {
                request.stage = Stage::Settle;
                if let (true, Some(view), Some(range)) =
                    (makes!(BitAfterWrite), &request.view, request.range)
                {
                    let _marked = view.mark(range, &Homeless);
                }
                break;
            }
            let next = self.rng.place(request.todo.len());
            let (member, block) = request.todo[next];
            if self.ops.silence.is_hung(member) && !self.ops.silence.is_gone(member) {
                continue;
            }
            let request = &mut self.requests[at];
            request.todo.swap_remove(next);
            let fails = match request.kind {
                Kind::Flush => self.flush_member(at, member)?,
                _ => self.write_member(at, member, block)?,
            };
            if fails {
                let request = &mut self.requests[at];
                request.good.remove(member);
                request.failed.insert(member);
                // The rest of the write may or may not be tried.
                if self.rng.chance(500) {
                    request.todo.retain(|(m, _)| *m != member);
                }
            }
        }
        Ok(())
    }

    fn write_member(
        &mut self,
        at: usize,
        member: MemberId,
        block: usize,
    ) -> Result<bool, Violation> {
        let request = &self.requests[at];
        let (value, doomed, id) = (request.value(), request.doomed, request.id);
        if let Some(view) = request.view.clone() {
            self.check_marked(&view, block, id)?;
        }
        self.put(member, block, value, doomed)
    }

    fn settle(&mut self, at: usize) -> Checked {
        let request = &self.requests[at];
        let (range, good, failed) = (request.range, request.good, request.failed);
        let view = request.view.as_ref().expect("loaded");
        match view.settle(good, failed) {
            Outcome::Done => self.finish(at, Verdict::Acknowledge),
            Outcome::Report => {
                let epoch = view.epoch();
                let (id, number) = (request.id, self.next_id());
                self.tickets.insert(number, Asker::Request(id));
                let failure = Failure {
                    range,
                    good,
                    failed,
                    media: self.media_among(failed),
                    epoch,
                    causes: Vec::new(),
                };
                self.inbox.push(Event::Failed(Ticket::new(number), failure));
                self.requests[at].stage = Stage::Waiting;
                if makes!(AckBeforeVerdict) {
                    self.let_go(at, true);
                }
                Ok(())
            }
        }
    }

    /// The application gets its answer; the fence and the View are let go.
    pub(crate) fn finish(&mut self, at: usize, verdict: Verdict) -> Checked {
        if verdict == Verdict::Fail && self.lingers(&self.requests[at]) {
            self.linger(at);
            return Ok(());
        }
        self.let_go(at, verdict == Verdict::Acknowledge);
        let request = self.requests.swap_remove(at);
        self.free(&request);
        #[cfg(debug_assertions)]
        if let (true, Some(range)) = (makes!(IntentClearedByAck), request.range) {
            shadowset::set::planted::clear_intent(&self.set, range);
        }
        if self.is_logging() {
            self.log(format!("request {} ends: {verdict:?}", request.id));
        }
        if let Some(view) = &request.view {
            self.unpin(view.epoch());
        }
        match request.kind {
            Kind::Flush if verdict == Verdict::Acknowledge => {
                self.oracle.flushed(request.began);
                self.unsettled.fill(false);
                self.check_flushed(request.began)
            }
            _ => self.check_blocks(request.blocks()),
        }
    }

    /// The write counts as ended, and its range is free.
    fn let_go(&mut self, at: usize, good: bool) {
        let request = &mut self.requests[at];
        if std::mem::replace(&mut request.settled, true) {
            return;
        }
        let epoch = request.view.as_ref().map_or(0, |v| v.epoch().0);
        let (value, blocks) = (request.value(), request.blocks());
        for block in blocks {
            let ended = Ended { epoch, value, good };
            self.oracle.end(block, ended, self.now);
            if !good {
                // A member that is to be merged may have it, and nobody else.
                self.unmerged[block].push(value);
            }
        }
    }

    /// The range of a request is free.
    pub(crate) fn free(&mut self, request: &Request) {
        if let Some(place) = request.place {
            self.go_outside(request.blocks());
            self.fences.leave(place);
        }
    }

    /// Reads a few blocks; the member is chosen anew after an error.
    fn read_some(&mut self, at: usize) -> Checked {
        for _ in 0..=self.rng.burst(self.plan.stride) {
            let Some(&block) = self.requests[at].unread.last() else {
                return self.end_read(at);
            };
            if self.requests[at].unanswered {
                return self.end_read(at);
            }
            let (reader, others) = self.reader(at)?;
            if self.ops.silence.is_hung(reader) {
                if others {
                    let request = &mut self.requests[at];
                    request.failed.insert(reader);
                    request.reader = None;
                    request.unread = request.blocks().collect();
                }
                return Ok(());
            }
            let request = &mut self.requests[at];
            let began = request.began;
            if self.get_fails(reader, others) {
                let request = &mut self.requests[at];
                request.failed.insert(reader);
                request.reader = None;
                // The whole range is read anew.
                request.unread = request.blocks().collect();
                self.inbox.push(Event::ReadFailed(reader));
                self.repair_later(reader, block);
                return Ok(());
            }
            self.requests[at].unread.pop();
            let value = self.disks[reader.index()].image.get(block);
            self.trace(&[u64::from(value)]);
            self.loosely_read[block] |= self.is_undurable();
            if self.shows_lost(at, block, value) {
                continue;
            }
            let judged = self.oracle.read(block, value, began, self.now);
            judged.map_err(|text| Violation(format!("I11: read from {reader:?}: {text}")))?;
        }
        Ok(())
    }

    /// The member that answers a read, and whether another source could.
    fn reader(&mut self, at: usize) -> Result<(MemberId, bool), Violation> {
        let last = MemberId::new(usize_of(self.rng.member()));
        let request = &mut self.requests[at];
        let (Some(range), Some(view)) = (request.range, &request.view) else {
            return Err(Violation("a read without a View".into()));
        };
        // Any member that may answer, whatever its place.
        let prefer = Preference {
            last,
            ..Preference::default()
        };
        let plan = || view.route(range, request.failed, &prefer, |_| 0);
        let Some(reader) = request.reader.or_else(plan) else {
            return Err(Violation("a read has no member left to ask".into()));
        };
        request.reader = Some(reader);
        Ok((reader, has_other_source(view, request.failed, reader)))
    }
}
