//! The control thread: owns the set, feeds it events, carries its effects out in order.

use crate::sync::Instant;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::sync::channel::{Receiver, RecvTimeoutError, Sender};

use super::Message;
use super::candidate::{Looking, Wish};
use super::copier::Copier;
use super::departure::in_time;
use super::growth::{Growth, require_room};
use super::handle::{Board, Done, Request};
use super::herald::Herald;
use super::home::Snapshots;
use super::message_mode::Told;
use super::params::Params;
use super::pipeline::{Live, Pipeline, Stores};
use super::returning::{self, Attempts};
use super::seat::{Identity, Seat, storage};
use super::setup::usual_scb;
use super::speed::Speeds;
use super::stall::Stall;
use super::tally::Tally;
use crate::io::{self, Image, IoMode};
use crate::set::member::MEMBERS_MAX;
use crate::set::{
    Answer, CandidateId, Code, Command, Effect, Event, FlushId, Generation, MemberId, MemberSet,
    Moment, Refusal, ShadowSet, Ticket, Verdict, Written,
};

/// How often what was begun is driven on.
const TICK: Duration = Duration::from_secs(5);
/// How often the progress of copies is published.
const PROGRESS: Duration = Duration::from_millis(250);
/// How often growing bitmaps are published.
const BITS: Duration = Duration::from_secs(1);

/// Who waits for a ticket.
enum Waiter {
    Command(Done),
    Data(Sender<Verdict>),
}

/// What the control thread owns.
pub(super) struct Runner {
    pub(super) set: ShadowSet,
    pub(super) identity: Identity,
    pub(super) seats: Vec<Seat>,
    pub(super) candidates: HashMap<CandidateId, Image>,
    pub(super) last_candidate: u64,
    pub(super) stores: Stores,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) copier: Copier,
    pub(super) verifier: super::verifier::Verifier,
    pub(super) board: Arc<Board>,
    pub(super) messages: Sender<Message>,
    pub(super) params: Arc<Params>,
    waiters: HashMap<u64, Waiter>,
    pub(super) queue: VecDeque<(Request, Done)>,
    current: Option<(u64, Instant)>,
    /// The attach whose image is being looked at.
    pub(super) looking: Option<Looking>,
    /// Looks under way, also those that nobody waits for any more.
    pub(super) looks: u32,
    /// Stamps of images that have been noted.
    pub(super) stamps: u64,
    last_ticket: u64,
    pub(super) speeds: Speeds,
    pub(super) herald: Herald,
    pub(super) tally: Tally,
    /// Who waits for the end of the set.
    pub(super) dissolving: Option<Ticket>,
    /// When the mount began, and whether its merges and copies still wait for their time.
    pub(super) begun: Instant,
    pub(super) delayed: bool,
    pub(super) told: Told,
    /// Changes of applications wait by command.
    pub(super) stall: Option<Stall>,
    last_tick: Instant,
    /// When the write-intent bitmap was looked at last.
    last_look: Instant,
    /// Bits of all bitmaps when the state was published last, and when that was.
    last_bits: (u64, Instant),
    pub(super) snapshots: Snapshots,
    /// When members that have left are tried again.
    pub(super) attempts: Attempts,
    /// When people were last told of a read error of each member.
    pub(super) heard: [Option<Instant>; MEMBERS_MAX],
    /// What the members' blocks hold (I3).
    pub(super) written: Written,
    /// Members whose blocks failed in this batch of effects.
    pub(super) just_failed: MemberSet,
    /// Members that have left, and whose images are to be let go of once that is durable.
    pub(super) unclosed: MemberSet,
    /// How far the growth of the journal is.
    pub(super) growth: Growth,
    /// Why bitmaps could not be kept, in this batch of effects.
    pub(super) home_error: Option<String>,
    stopped: bool,
    pub(super) failure: Option<String>,
}

/// What [`Runner::new`] is made of.
pub(super) struct Parts {
    pub(super) set: ShadowSet,
    pub(super) identity: Identity,
    pub(super) seats: Vec<Seat>,
    pub(super) stores: Stores,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) board: Arc<Board>,
    pub(super) messages: Sender<Message>,
    pub(super) params: Arc<Params>,
    pub(super) copier: Copier,
    /// The generations that the members' blocks hold.
    pub(super) blocks: Vec<(MemberId, Generation)>,
}

impl Runner {
    pub(super) fn new(parts: Parts) -> Self {
        let mut written = Written::new(parts.set.generation());
        for (id, generation) in parts.blocks {
            written.found(id, Some(generation));
        }
        Self {
            set: parts.set,
            identity: parts.identity,
            seats: parts.seats,
            candidates: HashMap::new(),
            last_candidate: 0,
            stores: parts.stores,
            verifier: parts.copier.verifier(),
            pipeline: parts.pipeline,
            copier: parts.copier,
            board: parts.board,
            messages: parts.messages,
            params: parts.params,
            waiters: HashMap::new(),
            queue: VecDeque::new(),
            current: None,
            looking: None,
            looks: 0,
            stamps: 0,
            last_ticket: 0,
            speeds: Speeds::default(),
            herald: Herald::default(),
            tally: Tally::default(),
            dissolving: None,
            begun: Instant::now(),
            delayed: true,
            told: Told::default(),
            stall: None,
            last_tick: Instant::now(),
            last_look: Instant::now(),
            last_bits: (0, Instant::now()),
            snapshots: Snapshots::default(),
            attempts: Attempts::default(),
            heard: [None; MEMBERS_MAX],
            written,
            just_failed: MemberSet::EMPTY,
            unclosed: MemberSet::EMPTY,
            growth: Growth::default(),
            home_error: None,
            stopped: false,
            failure: None,
        }
    }

    /// Runs until the set is closed; gives the reason when it could not be closed in good order.
    pub(super) fn run(mut self, messages: Receiver<Message>) -> Result<(), String> {
        self.protect_all();
        while !self.stopped {
            match messages.recv_timeout(self.patience()) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.keep_time();
            self.next_request();
        }
        // Commands are refused as they are dropped, here and with the channel.
        self.queue.clear();
        self.pipeline.end_watch();
        // Who still waits for an answer gets none, and lets go of its epoch.
        drop(messages);
        self.let_go();
        self.failure.map_or(Ok(()), Err)
    }

    fn patience(&self) -> Duration {
        let deadline = self
            .current
            .map(|(_, at)| at.saturating_duration_since(Instant::now()));
        let deadline = deadline.into_iter().chain(self.stall_left()).min();
        let busy = match self.speeds.is_idle() {
            false => PROGRESS,
            true if self.delayed || self.set.has_departed() || self.switches_modes() => BITS,
            true => TICK.min(self.params.hbmm_rtc()),
        };
        deadline.map_or(busy, |left| left.min(busy))
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Request(request, done) => self.queue.push_back((request, done)),
            Message::Event(event) => {
                self.note_end(&event);
                self.feed(event);
            }
            Message::Flushed(id, results) => {
                self.feed(Event::Flushed(id, results.failed, results.media));
                self.pipeline.lanes().settled(&results);
            }
            Message::Returned => self.notice_returns(),
            Message::ReadFailed(id, range) => {
                self.feed(Event::ReadFailed(id));
                self.pipeline.repair_later(id, range);
            }
            Message::HomeLost(why, done) => {
                self.lose_home(why);
                let _ = done.send(());
            }
            Message::Looked(ticket, looked) => self.looked(ticket, *looked),
            Message::GrowthPrepared(number, prepared) => self.growth_prepared(number, *prepared),
            Message::Stamped(id, turn, stamp) => self.stamped(id, turn, stamp),
            Message::Failed(failure, answer) => {
                let ticket = self.ticket(Waiter::Data(answer));
                self.feed(Event::Failed(ticket, failure));
            }
        }
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        self.notice_openers();
        if let Some((ticket, _)) = self.current.filter(|(_, deadline)| *deadline <= now) {
            self.feed(Event::TimedOut(ticket));
            self.give_up_look(ticket);
        }
        self.keep_stall();
        self.end_delay();
        self.tick(now);
        self.tell_progress(now);
        self.return_members(now);
        let switched = self.notice_mode(now);
        let progress = |op| self.set.progress_of(op);
        if self.speeds.sample(progress, now) || self.bits_have_grown(now) || switched {
            self.publish_state();
        }
    }

    /// Drives on what was begun, and looks at the write-intent bitmap when its time has come.
    fn tick(&mut self, now: Instant) {
        let look = now.duration_since(self.last_look) >= self.params.hbmm_rtc();
        if !look && now.duration_since(self.last_tick) < TICK {
            return;
        }
        self.last_tick = now;
        self.settle_growth();
        if look {
            self.last_look = now;
        }
        match self.is_undurable() {
            true => self.persist_again(),
            false if look => self.feed(Event::Tick),
            false => self.feed(Event::Beat),
        }
    }

    /// Whether writes have set bits of departed members' bitmaps; looked at once a second.
    fn bits_have_grown(&mut self, now: Instant) -> bool {
        let (bits, at) = self.last_bits;
        if now.duration_since(at) < BITS {
            return false;
        }
        self.last_bits = (self.set.departed_bits(), now);
        self.last_bits.0 != bits
    }

    /// Hands the next command to the set when the last was answered.
    fn next_request(&mut self) {
        while self.current.is_none() {
            let Some((request, done)) = self.queue.pop_front() else {
                return;
            };
            let ticket = self.ticket(Waiter::Command(done));
            if let Err(refusal) = self.refuse_undurable() {
                self.reply(&ticket, Err(refusal));
                continue;
            }
            self.current = Some((
                ticket.number(),
                Instant::now() + self.params.command_timeout(),
            ));
            self.obey(ticket, request, false);
        }
    }

    /// Carries out a request, or only says what it would do.
    fn obey(&mut self, ticket: Ticket, request: Request, dry_run: bool) {
        match request {
            Request::DryRun(request) => self.obey(ticket, *request, true),
            Request::Attach {
                what,
                name,
                policy,
                source,
                confirm,
            } => {
                let wish = Wish {
                    what,
                    name,
                    policy,
                    source,
                    confirm,
                    dry_run,
                };
                if let Err(refusal) = self.start_look(&ticket, wish) {
                    self.reply(&ticket, Err(refusal));
                }
            }
            Request::Return { member } => match self.refuse_return(&member) {
                Err(refusal) => self.reply(&ticket, Err(refusal)),
                Ok(()) => self.obey(ticket, returning::attach(member), dry_run),
            },
            Request::Dissolve { policy } => self.dissolve(ticket, policy, dry_run),
            Request::Set { name, value } => self.set_param(ticket, &name, &value, dry_run),
            Request::Resize { size } => match self.refuse_unprepared() {
                Err(refusal) => self.reply(&ticket, Err(refusal)),
                Ok(()) => {
                    let room = self.room();
                    self.give(ticket, Command::Resize { size, room }, dry_run);
                }
            },
            request => {
                if let Some(command) = request.command(&self.params) {
                    self.give(ticket, command, dry_run);
                }
            }
        }
    }

    /// Gives a command to the set, or asks what it would do: the one judgement either way.
    pub(super) fn give(&mut self, ticket: Ticket, command: Command, dry_run: bool) {
        match dry_run {
            false => self.feed(Event::Command(ticket, command)),
            true => {
                let answer = self.set.dry_run(command, &self.speeds.expected());
                self.reply(&ticket, answer);
            }
        }
    }

    /// The command under way is waited for without an end.
    pub(super) fn let_go_of_current(&mut self) {
        self.current = None;
    }

    fn ticket(&mut self, waiter: Waiter) -> Ticket {
        self.last_ticket += 1;
        self.waiters.insert(self.last_ticket, waiter);
        Ticket::new(self.last_ticket)
    }

    /// Feeds one event to the set and carries out what comes of it.
    pub(super) fn feed(&mut self, event: Event) {
        let quiet = matches!(
            event,
            Event::Tick | Event::Beat | Event::Retired(_) | Event::Flushed(..)
        );
        let effects = self.set.handle(now(), event);
        if !(quiet && effects.is_empty()) {
            self.carry_out(effects);
        }
    }

    /// Carries effects out in order. When a control block could not be written, no answer that relies
    /// on it is given (I3).
    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) {
        // State first: who has an answer finds the state that it speaks of.
        let (answers, effects): (Vec<_>, Vec<_>) = effects
            .into_iter()
            .partition(|e| matches!(e, Effect::Reply(..) | Effect::Settle(..) | Effect::Lift));
        for effect in effects {
            self.perform(effect);
        }
        if let Some(why) = self.home_error.take() {
            self.lose_home(why);
        }
        // Whoever leaves because of its block has left before anybody relies on the change.
        self.report_blocks();
        self.hold(self.is_undurable());
        self.close_late();
        self.settle_growth();
        self.publish_state();
        for answer in answers {
            self.perform(answer);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Adopt(candidate, id) => self.adopt(candidate, id),
            Effect::Persist {
                generation,
                clean,
                to,
            } => self.persist(generation, clean, to),
            Effect::Publish(view) => {
                let live = Live::new(*view, &self.stores, self.messages.clone());
                require_room(&live);
                self.pipeline.publish(live);
            }
            Effect::PrepareGrowth(number, geometry) => self.prepare_growth(number, geometry),
            Effect::Hold => self.pipeline.gate().hold_for_growth(),
            Effect::Lift => self.lift(),
            Effect::Stall(seconds) => self.begin_stall(seconds),
            Effect::Unstall => self.end_stall(),
            Effect::Flush(id, members) => self.flush(id, members),
            Effect::FlushLost => self.flush_lost(),
            Effect::StartCopy(work) => self.start_copy(work),
            Effect::StartVerify(work) => self.start_verify(*work),
            Effect::PauseCopy(op) => self.pause(op, true),
            Effect::ResumeCopy(op) => self.pause(op, false),
            Effect::StopCopy(op) => self.stop_work(op),
            // It may still count as a source after a crash.
            Effect::GiveUp(id) => self.pipeline.give_up(id),
            Effect::Abort(members) => self.pipeline.abort(members),
            Effect::Close(id) if self.is_undurable() => self.unclosed.insert(id),
            Effect::Close(id) => self.close(id),
            Effect::Release(id) => self.release(id),
            Effect::Reply(ticket, answer) => self.reply(&ticket, answer),
            Effect::Settle(ticket, verdict) => self.settle(&ticket, verdict),
            Effect::Notice(notice) => self.note(&notice),
            Effect::Home(change) => self.change_home(&change),
            Effect::Stopped { clean } => {
                self.stopped = true;
                if clean {
                    self.close_home();
                } else {
                    let reason = "no source member could be flushed; the next mount merges them";
                    self.failure = Some(reason.to_owned());
                }
                self.dissolved(clean);
            }
        }
    }

    fn adopt(&mut self, candidate: CandidateId, id: MemberId) {
        let Some(image) = self.candidates.remove(&candidate) else {
            return;
        };
        let known = self.seats.get(id.index()).is_some_and(|seat| !seat.vacant);
        if !known {
            let name = &self.set.members()[id.index()].name;
            let is_device = matches!(image.identity(), io::Identity::Device { .. });
            let image = (image.path(), is_device);
            let scb = usual_scb(name, image, &self.identity.state_dir);
            let seat = Seat::new(scb, IoMode::Buffered);
            match self.seats.get_mut(id.index()) {
                Some(vacant) => vacant.replace(seat),
                None => self.seats.push(seat),
            }
        }
        let seat = &mut self.seats[id.index()];
        (seat.identity, seat.stamp) = (Some(image.identity()), None);
        seat.fingerprint = None;
        seat.released = false;
        seat.turns += 1;
        self.pipeline.welcome(id);
        self.pipeline.lanes().welcome(id);
        self.stores[id.index()] = Some(storage(image));
    }

    /// Removes the block of a member that is none any more. When that fails the block stays, and tells an
    /// attach or `create` of a membership that the set knows nothing of.
    fn release(&mut self, id: MemberId) {
        let (give_up_flag, remove_block) = (self.give_up_flag(id), self.remove_block(id));
        let seat = &mut self.seats[id.index()];
        seat.vacant = true;
        let open = (seat.lease.take(), seat.file.take());
        let removed = in_time("release", move || {
            drop(open);
            give_up_flag();
            remove_block().map_err(|error| error.to_string())
        });
        if let Err(error) = removed.unwrap_or_else(|e| Err(e.to_string())) {
            let member = &self.set.members()[id.index()].name;
            tracing::warn!(member, %error, "the control block of a released member stays");
        }
    }

    fn flush(&self, id: FlushId, members: MemberSet) {
        let messages = self.messages.clone();
        let done = move |results| {
            let _ = messages.send(Message::Flushed(id, Box::new(results)));
        };
        let pipeline = &self.pipeline;
        let (lanes, asked) = (pipeline.lanes(), pipeline.asked(members));
        lanes.flush_later(self.stores.clone(), asked, &pipeline.watch, done);
    }

    pub(super) fn reply(&mut self, ticket: &Ticket, answer: Result<Answer, Refusal>) {
        if self
            .current
            .is_some_and(|(number, _)| number == ticket.number())
        {
            self.current = None;
        }
        let answer = match answer {
            Ok(_) if self.is_undurable() => Err(Refusal::new(
                Code::Io,
                "a storage control block could not be written",
            )),
            other => other,
        };
        match self.waiters.remove(&ticket.number()) {
            Some(Waiter::Command(done)) => done(answer),
            _ => tracing::error!(ticket = ticket.number(), "nobody waits for this answer"),
        }
    }

    fn settle(&mut self, ticket: &Ticket, verdict: Verdict) {
        let verdict = if self.is_undurable() {
            Verdict::Fail
        } else {
            verdict
        };
        if let Some(Waiter::Data(answer)) = self.waiters.remove(&ticket.number()) {
            let _ = answer.send(verdict);
        }
    }
}

/// The time of day, for people.
pub(super) fn now() -> Moment {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Moment(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

const _: () = assert!(MEMBERS_MAX <= 8, "a set of members is one byte");
