//! Letting go of a member's image, and the evidence of what it looked like then.
//!
//! A stamp is read on a thread of its own: a device that does not answer must not stop the control
//! thread. It must not decide anything: without a stamp a departure is as good, only without evidence.

use crate::sync::Instant;
use crate::sync::thread;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::sync::channel::{Receiver, bounded};

use super::Message;
use super::immutable;
use super::pipeline::Pipeline;
use super::results::given_up;
use super::roster::Unfinished;
use super::run::Runner;
use super::setup::Protect;
use crate::io::lease::Lease;
use crate::io::{Identity, Storage, fingerprint};
use crate::set::member::MEMBERS_MAX;
use crate::set::{Event, MemberId, MemberSet, MemberState, Stamp};

/// How long the answer to a command waits for an image that has left; it was flushed just before.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether calls have returned, beside when one has.
const CALLS: Duration = Duration::from_millis(50);

/// What comes of work on a thread of its own, if it ends in time. The control thread asks nothing of the file system
/// of a member in another way: one that does not answer would keep it from all commands.
pub(super) fn in_time<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    within(PATIENCE, name, work)
}

/// As [`in_time`], with another patience.
pub(super) fn within<T: Send + 'static>(
    patience: Duration,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let answer = begin(name, work)?;
    answer.recv_timeout(patience).map_err(|_| given_up())
}

/// Begins work on a thread of its own. What comes late is let go of.
pub(super) fn begin<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Receiver<T>> {
    let (sender, answer) = bounded(1);
    let work = move || drop(sender.send(work()));
    thread::Builder::new().name(name.into()).spawn(work)?;
    Ok(answer)
}

/// What has come of work that was begun, by then: several that were begun together have one deadline.
pub(super) fn until<T>(deadline: Instant, begun: io::Result<Receiver<T>>) -> io::Result<T> {
    let left = deadline.saturating_duration_since(Instant::now());
    begun?.recv_timeout(left).map_err(|_| given_up())
}

/// Gives a lease back: its file is closed.
fn give_back(lease: Lease) {
    if let Err(error) = in_time("lease", move || drop(lease)) {
        tracing::warn!(%error, "a lease is not given back yet");
    }
}

/// Waits until no call of an image is under way, or for so long; says whether there is none.
pub(super) fn have_returned(
    pipeline: &Pipeline,
    calls: &Weak<dyn Storage>,
    at_most: Option<Duration>,
) -> bool {
    let begun = Instant::now();
    while calls.strong_count() > 0 {
        if at_most.is_some_and(|most| begun.elapsed() >= most) {
            return false;
        }
        pipeline.watch.pause(CALLS);
    }
    true
}

impl Runner {
    /// Lets go of the images. A request may have come late, and nothing waits for the last flush of a member that is
    /// leaving; but who locks the images next has to find nobody who has them.
    pub(super) fn let_go(&mut self) {
        let silent = self.pipeline.silent_members();
        let stores = std::mem::take(&mut self.stores).map(|store| Some(Arc::downgrade(&store?)));
        let ids = (0..MEMBERS_MAX).filter_map(MemberId::new);
        for id in ids.filter(|id| !silent.contains(*id)) {
            if let Some(calls) = &stores[id.index()] {
                have_returned(&self.pipeline, calls, Some(PATIENCE));
            }
        }
    }

    /// Tells the set of members whose calls have all returned, whoever was to tell it.
    pub(super) fn notice_returns(&mut self) {
        for id in (0..self.seats.len()).filter_map(MemberId::new) {
            let calls = &mut self.seats[id.index()].calls;
            if calls.take_if(|calls| calls.strong_count() == 0).is_some() {
                self.feed(Event::Quiet(id));
            }
        }
    }

    /// Lets go of a member's storage. Who left on purpose is stamped before the answer and while its image
    /// is still locked; who was expelled may not answer, and is stamped when it does.
    pub(super) fn close(&mut self, id: MemberId) {
        let store = self.stores[id.index()].take();
        let (has_store, calls) = (store.is_some(), store.as_ref().map(Arc::downgrade));
        let member = &self.set.members()[id.index()];
        let detached = matches!(member.state, MemberState::Detached(_));
        let seat = &mut self.seats[id.index()];
        (seat.stamp, seat.fingerprint) = (None, None);
        // An open file would keep a disk from being carried away.
        let block = seat.file.take();
        seat.turns += 1;
        let turn = seat.turns;
        let look = self.last_look(id);
        if detached {
            // Its image is still locked meanwhile.
            let stamp = in_time("stamp", move || {
                drop(block);
                let stamp = look();
                drop(store);
                stamp
            });
            return self.keep_stamp(id, stamp.unwrap_or_else(|e| Err(e.to_string())));
        }
        self.seats[id.index()].calls.clone_from(&calls);
        let (messages, pipeline) = (self.messages.clone(), Arc::clone(&self.pipeline));
        let look = move || {
            // The lock of one that was expelled must not keep it out.
            drop((store, block));
            // Calls that nobody waits for may write it until they return.
            let _ = calls.is_none_or(|calls| have_returned(&pipeline, &calls, None));
            let _ = messages.send(match has_store {
                true => Message::Returned,
                false => Message::Event(Event::Quiet(id)),
            });
            drop(messages.send(Message::Stamped(id, turn, look())));
        };
        if let Err(error) = thread::Builder::new().name("stamp".into()).spawn(look) {
            self.keep_stamp(id, Err(error.to_string()));
        }
    }

    /// What an image looks like that is let go of; it is made immutable before if that is wanted, since the flag
    /// sets the ctime that the stamp holds. For a thread of its own.
    fn last_look(&self, id: MemberId) -> impl FnOnce() -> Result<Stamp, String> + Send + use<> {
        let (member, seat) = (&self.set.members()[id.index()], &self.seats[id.index()]);
        let (path, uuid) = (PathBuf::from(&member.path), member.uuid);
        let (name, immutable, flag) = (member.name.clone(), seat.immutable(), seat.flag.clone());
        flag.away(true);
        move || {
            let flagged = immutable.map_or(Ok(false), |identity| flag.set(&path, identity));
            let kept = *flagged.as_ref().unwrap_or(&false);
            immutable::warn(&name, flagged.map(drop));
            let stamp = fingerprint::take(&path, uuid);
            stamp
                .map(|s| Stamp { kept, ..s })
                .map_err(|e| e.to_string())
        }
    }

    /// What the images of these members look like that nothing writes any more, as far as they answer in time: a member
    /// that is absent at the next mount has left now.
    pub(super) fn stamps_at_rest(&self, members: MemberSet) -> [Option<Stamp>; MEMBERS_MAX] {
        let begin = |id: MemberId| {
            let member = &self.set.members()[id.index()];
            let (path, uuid) = (PathBuf::from(&member.path), member.uuid);
            let look = begin("stamp", move || fingerprint::take(&path, uuid));
            (id, &member.name, look)
        };
        let looks: Vec<_> = members.iter().map(begin).collect();
        let deadline = Instant::now() + PATIENCE;
        let mut stamps = [const { None }; MEMBERS_MAX];
        for (id, member, look) in looks {
            match until(deadline, look).and_then(|stamp| stamp) {
                Ok(stamp) => stamps[id.index()] = Some(stamp),
                Err(error) => tracing::warn!(member, %error, "its image could not be stamped"),
            }
        }
        stamps
    }

    /// Ends a departure that was cut short: its block says so now, and what its image looks like. From now on
    /// changes are noticed. An image that has its stamp keeps it: what it looks like now may be a change.
    pub(super) fn finish_departure(&mut self, departure: Unfinished) {
        let id = departure.id;
        let to = [id].into_iter().collect();
        let generation = match (departure.has_left, departure.stamp) {
            (None, Some(stamp)) => return self.note_stamp(id, stamp),
            (Some(generation), Some(_)) => return self.feed(Event::Told(id, generation)),
            (Some(generation), None) => generation,
            (None, None) => {
                self.persist(self.set.generation(), true, to);
                self.set.generation()
            }
        };
        if self.just_failed.and(to).is_empty() {
            self.feed(Event::Told(id, generation));
        }
        let stamp = in_time("stamp", self.last_look(id));
        self.keep_stamp(id, stamp.unwrap_or_else(|e| Err(e.to_string())));
    }

    /// The image of a member that was expelled has answered, if it has not come back since.
    pub(super) fn stamped(&mut self, id: MemberId, turn: u64, stamp: Result<Stamp, String>) {
        let expelled = matches!(
            self.set.members()[id.index()].state,
            MemberState::Expelled(_)
        );
        if expelled && self.seats[id.index()].turns == turn {
            self.keep_stamp(id, stamp);
            self.publish_state();
        }
    }

    fn keep_stamp(&mut self, id: MemberId, stamp: Result<Stamp, String>) {
        let member = self.set.members()[id.index()].name.clone();
        let stamp = match stamp {
            Ok(stamp) => stamp,
            Err(error) => return tracing::warn!(member, error, "its image could not be stamped"),
        };
        self.lease(id);
        self.note_stamp(id, stamp);
    }

    /// Keeps the stamp and makes it durable if that can be done.
    fn note_stamp(&mut self, id: MemberId, stamp: Stamp) {
        let member = self.set.members()[id.index()].name.clone();
        self.stamps += 1;
        let seat = &mut self.seats[id.index()];
        seat.fingerprint = Some(stamp.fingerprint());
        seat.stamp = Some(stamp.clone());
        // No block may be newer than those of the members that take part (I3).
        if self.is_undurable() {
            return tracing::warn!(member, "the stamp of its image is not durable");
        }
        let written = self.write_stamp(id, stamp);
        let holds = written.is_ok().then(|| self.set.generation());
        self.written.found(id, holds);
        match written {
            // The stamp comes with a block that says that the member has left, also where that could not be written just before.
            Ok(()) => {
                self.just_failed.remove(id);
                let told = Event::Told(id, self.set.generation());
                drop(self.messages.send(Message::Event(told)));
            }
            Err(error) => tracing::warn!(member, %error, "the stamp of its image is not durable"),
        }
        self.seats[id.index()].file = None;
    }

    /// Takes a lease on the image of a member that is away, where that was asked for.
    fn lease(&mut self, id: MemberId) {
        // A look would break it, and count as somebody who opens the image. It ends with another try for all.
        if self.looks > 0 {
            return;
        }
        let (member, seat) = (&self.set.members()[id.index()], &mut self.seats[id.index()]);
        let away = matches!(
            member.state,
            MemberState::Detached(_) | MemberState::Expelled(_)
        );
        let device = matches!(seat.identity, Some(Identity::Device { .. }));
        if !away || device || seat.protect != Protect::Lease || seat.lease.is_some() {
            return;
        }
        let path = PathBuf::from(&member.path);
        let taken = in_time("lease", move || Lease::take(&path));
        match taken.and_then(|taken| taken) {
            Ok(lease) => seat.lease = Some(lease),
            Err(error) => {
                let member = &member.name;
                tracing::warn!(member, %error, "there is no lease on its image");
            }
        }
    }

    /// Takes the leases and sets the flags that are missing: after a start, and after an attach that was refused.
    pub(super) fn protect_all(&mut self) {
        (0..self.seats.len())
            .filter_map(MemberId::new)
            .for_each(|id| self.lease(id));
        self.set_flags();
    }

    /// Gives all leases back, and sets no flags: the set itself is about to open an image.
    pub(super) fn give_leases_back(&mut self) {
        self.hold_flags();
        self.notice_openers();
        let leases = self.seats.iter_mut().map(|seat| seat.lease.take());
        leases.flatten().for_each(give_back);
    }

    /// Notes which images somebody opens for writing, and lets the openers go on.
    pub(super) fn notice_openers(&mut self) {
        for id in (0..self.seats.len()).filter_map(MemberId::new) {
            let broken = |lease: &mut Lease| !lease.holds();
            // It is dropped behind the note: the opener writes when the note is durable.
            let Some(lease) = self.seats[id.index()].lease.take_if(broken) else {
                continue;
            };
            let member = self.set.members()[id.index()].name.clone();
            tracing::warn!(member, "another program opens its image for writing");
            match self.stamp_of(id) {
                Some(stamp) => {
                    let opened = true;
                    self.note_stamp(id, Stamp { opened, ..stamp });
                }
                None => tracing::warn!(member, "its image has no stamp"),
            }
            give_back(lease);
        }
    }

    /// The stamp that was taken since the start, else the one in the member's block.
    fn stamp_of(&self, id: MemberId) -> Option<Stamp> {
        let seat = &self.seats[id.index()];
        let (scb, uuid) = (seat.scb.clone(), self.set.members()[id.index()].uuid);
        let durable = || in_time("stamp", move || immutable::stamp_in(&scb, uuid)).ok()?;
        seat.stamp.clone().or_else(durable)
    }
}
