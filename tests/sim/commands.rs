//! The operator of the simulator: commands at random, answered or timed out.

use shadowset::set::{
    Answer, Attach, AttachPolicy, CandidateId, Command, CopyKind, Effect, Event, Joiner, MemberId,
    MemberState, Policy, Refusal, Said, Scb, Ticket, Tuning,
};

use shadowset::testing::Image;

use crate::world::{
    Asked, Asker, BLOCK, Checked, Disk, Violation, World, ensure, makes, member, spoil,
};

impl World {
    /// Gives a command, or lets one time out.
    pub(crate) fn command(&mut self) -> Checked {
        if self.plan.limits > 0 && self.rng.chance(self.plan.limits) {
            return self.change_limits();
        }
        if self.plan.stalls > 0 && self.rng.chance(self.plan.stalls) {
            return self.stall_or_not();
        }
        if self.plan.verifies > 0 && self.rng.chance(self.plan.verifies) {
            return self.demand_verify();
        }
        let waits = |(n, a): (&u64, &Asker)| matches!(a, Asker::Command(_)).then_some(*n);
        let waiting: Option<u64> = self.tickets.iter().find_map(waits);
        if let Some(number) = waiting {
            if self.rng.chance(self.plan.timeouts) {
                return self.handle(Event::TimedOut(number));
            }
            if !self.rng.chance(self.plan.impatience) {
                return Ok(());
            }
        }
        let place = self.rng.place(self.set.members().len());
        let id = MemberId::new(place).unwrap_or_else(|| unreachable!("a member"));
        let (word, command) = match self.rng.below(20) {
            0..=6 => ("detach", self.detach(id)),
            7..=13 => self.attach(id)?,
            15 if self.rng.chance(300) => return self.delete_bitmap(),
            15 if self.rng.chance(300) => ("release", Command::Release { member: name(id) }),
            16 if self.plan.grows => self.resize(),
            14 if self.rng.chance(200) => {
                let tuning = Tuning::ReadCost(u32::from(self.rng.chance(500)));
                let member = name(id);
                ("tune", Command::Tune { member, tuning })
            }
            14 => ("expel", Command::Expel { member: name(id) }),
            15 if self.rng.chance(400) => {
                let full = self.rng.chance(500);
                ("demand merge", Command::Merge { full })
            }
            _ => return self.steer(),
        };
        self.give(word, Some(id), command)
    }

    fn detach(&mut self, id: MemberId) -> Command {
        let policy = match self.rng.below(6) {
            0 => Policy::Full,
            1 | 2 => Policy::Minicopy,
            _ => Policy::MinicopyOptional,
        };
        Command::Detach {
            member: name(id),
            policy,
        }
    }

    /// Gives a command behind its dry run: the dry run changes nothing and foretells the refusal of the run,
    /// word for word. A command that is refused changes nothing either.
    pub(crate) fn give(
        &mut self,
        word: &'static str,
        member: Option<MemberId>,
        command: Command,
    ) -> Checked {
        let foretold = self.foretell(&command)?;
        if self.is_undurable() && !makes!(CommandWhileHalted) {
            self.mark("a command is refused while the membership is not durable");
            return Ok(());
        }
        let number = self.next_id();
        let blocks = 0..self.inside.len();
        let asked = Asked {
            minicopy: matches!(
                &command,
                Command::Detach {
                    policy: Policy::Minicopy,
                    ..
                }
            ) || matches!(&command, Command::Attach(a) if a.policy == AttachPolicy::Minicopy),
            word,
            member,
            source: member.is_some_and(|id| self.sources().contains(id)),
            idle: self.requests.is_empty(),
            ended: blocks.map(|b| self.oracle.ended(b).len()).collect(),
            requests: self.started,
        };
        self.check_fresh()?;
        self.tickets.insert(number, Asker::Command(asked));
        if self.is_logging() {
            self.log(format!("command {command:?}"));
        }
        let now = self.moment();
        let effects = self
            .set
            .handle(now, Event::Command(Ticket::new(number), command));
        let refused = effects.iter().find_map(|e| match e {
            Effect::Reply(_, Err(refusal)) => Some(refusal),
            _ => None,
        });
        ensure!(
            refused == foretold.as_ref().err(),
            "a dry run says {foretold:?}, the run does {effects:?}"
        );
        ensure!(
            effects.len() == 1 || refused.is_none(),
            "a refusal does {effects:?}"
        );
        self.mark(match refused {
            Some(_) => "a dry run foretells a refusal",
            None => "a dry run foretells that a command runs",
        });
        self.carry_out(effects)?;
        match self.crashed {
            true => Ok(()),
            false => self.check_all(),
        }
    }

    /// What a dry run says; it leaves the set as it was, to the last bit.
    fn foretell(&self, command: &Command) -> Result<Result<Answer, Refusal>, Violation> {
        let before = format!("{:?}", self.set);
        let answer = self.set.dry_run(command.clone(), &[]);
        ensure!(
            before == format!("{:?}", self.set),
            "a dry run of {command:?} changes the set"
        );
        Ok(answer)
    }

    /// An attach of a departed member, or of a new image.
    fn attach(&mut self, id: MemberId) -> Result<(&'static str, Command), Violation> {
        let unit = self.geometry.size().0;
        let place = self.set.free_place().map(MemberId::index);
        let new = place.is_some() && self.rng.chance(60);
        let changed = self.rng.chance(self.plan.faults.changed);
        let policy = match self.rng.below(10) {
            0 => AttachPolicy::Minicopy,
            1 => AttachPolicy::Full,
            2 => AttachPolicy::Nocopy,
            3 => AttachPolicy::Compare,
            _ => AttachPolicy::MinicopyOptional,
        };
        let id = match new {
            false => id,
            true => self.set.free_place().unwrap_or(id),
        };
        let size = match new {
            _ if self.rng.chance(20) => unit - BLOCK,
            true => unit,
            false => self.disks[id.index()].blocks() * BLOCK,
        };
        let blank = new && self.rng.chance(500);
        let (word, joiner) = joiner(id, new, unit);
        let mut attach = Attach {
            word,
            joiner,
            size: shadowset::set::Bytes(size),
            blank,
            changed: changed.then(|| "its size".to_owned()),
            foreign: new,
            confirm: self.rng.chance(500),
            ..self.attach_of(id, policy)
        };
        if new {
            self.put_image(id.index(), attach.blank);
        } else {
            attach.said = self.said(self.disks[id.index()].scb.as_ref());
            let changed = changed && self.change_image(id, &attach);
            if !changed && !self.disks[id.index()].changed {
                attach.changed = None;
                self.bring_back(id, &mut attach)?;
                self.check_genuine(id, &attach)?;
            } else {
                attach.changed.get_or_insert("it was written".to_owned());
            }
            attach.blank_tail = self.loose_from(id) == self.inside.len();
        }
        Ok(("attach", Command::Attach(Box::new(attach))))
    }

    /// An attach of a member that comes back.
    pub(crate) fn attach_of(&self, id: MemberId, policy: AttachPolicy) -> Attach {
        let (word, joiner) = joiner(id, false, 0);
        let size = self.disks.get(id.index()).map_or(0, Disk::blocks) * BLOCK;
        Attach {
            word,
            joiner,
            candidate: CandidateId(self.now),
            size: shadowset::set::Bytes(size),
            blank: false,
            blank_tail: false,
            changed: None,
            said: None,
            foreign: false,
            policy,
            source: None,
            confirm: false,
        }
    }

    pub(crate) fn said(&self, scb: Option<&Scb>) -> Option<Said> {
        scb.map(|scb| Said::by(scb, &self.lineage))
    }

    /// Somebody puts an older copy of a departed member's image back, and its block of that time with it.
    /// The block tells, and where it has not changed since, the stamp of the image does.
    fn bring_back(&mut self, id: MemberId, attach: &mut Attach) -> Checked {
        let Some((contents, scb)) = self.disks[id.index()].old.clone() else {
            return Ok(());
        };
        let disk = &self.disks[id.index()];
        let (same_block, same) = (scb == disk.scb, *contents == *disk.image.contents());
        if same_block && same || !self.may_be_changed(id) || self.rng.chance(500) {
            return Ok(());
        }
        // Whose own block could not say that it has left may have one of that time.
        let departed = self.state(id).departed();
        let left = departed.and_then(|d| d.tag);
        let left = left.map_or(u64::MAX, |tag| tag.generation);
        let close = left..=left.saturating_add(1);
        let untold = departed.is_none_or(|d| !d.told) && !self.ops.heard.contains(id);
        let close = |scb: &Scb| untold && close.contains(&scb.generation.number());
        let by_stamp = same_block || scb.as_ref().is_none_or(close);
        let old = Attach {
            changed: by_stamp.then(|| "its contents".to_owned()),
            said: self.said(scb.as_ref()),
            ..attach.clone()
        };
        let Ok(plan) = self.set.plan_attach(&old) else {
            return Ok(());
        };
        let name = name(id);
        // One that its bitmap tells of as well may come in.
        ensure!(
            plan.kind != CopyKind::Mini || self.is_told_by_bitmap(id, &contents),
            "an older image of {name} comes in by minicopy: {plan:?}"
        );
        let disk = self.disk(id);
        (disk.image, disk.scb, disk.frozen) = (Image::new(contents), scb, None);
        disk.changed = true;
        self.mark("older image brought back");
        *attach = old;
        Ok(())
    }

    /// Somebody copies the image of a member and its block, whatever is under way.
    pub(crate) fn back_up(&mut self) {
        let place = self.rng.place(self.disks.len());
        let disk = &mut self.disks[place];
        disk.old = Some((disk.image.contents().to_vec(), disk.scb.clone()));
    }

    /// A place for a new image, whether it comes in or not.
    pub(crate) fn put_image(&mut self, place: usize, blank: bool) {
        let mut contents = vec![0; self.inside.len()];
        if !blank {
            spoil(&mut self.rng, &mut contents, false);
        }
        let disk = Disk::new(contents);
        match self.disks.get_mut(place) {
            Some(free) => *free = disk,
            None => self.disks.push(disk),
        }
    }

    /// Somebody else changes an image that the set has let go of, just before it comes back.
    fn change_image(&mut self, id: MemberId, attach: &Attach) -> bool {
        let planned = self.set.plan_attach(attach).is_ok();
        if !planned || !self.may_be_changed(id) {
            return false;
        }
        let disk = &mut self.disks[id.index()];
        let mut contents = disk.image.contents().to_vec();
        spoil(&mut self.rng, &mut contents, true);
        disk.image = Image::new(contents);
        (disk.frozen, disk.changed) = (None, true);
        self.mark("image changed outside");
        true
    }

    /// Whether somebody else could change the image: the set has let go of it.
    fn may_be_changed(&self, id: MemberId) -> bool {
        let gone = matches!(
            self.state(id),
            MemberState::Detached(_) | MemberState::Expelled(_) | MemberState::Missing(_)
        );
        gone && !self.ops.unclosed.contains(id)
            && self.set.attachable(id).is_ok()
            && self.tickets.is_empty()
    }

    fn delete_bitmap(&mut self) -> Checked {
        let bitmaps = self.set.status().bitmaps;
        if bitmaps.is_empty() {
            return Ok(());
        }
        let at = self.rng.place(bitmaps.len());
        match bitmaps[at].tag {
            Some(tag) => self.give("delete", None, Command::DeleteBitmap { id: tag.id }),
            None => Ok(()),
        }
    }

    fn steer(&mut self) -> Checked {
        let operations = self.set.status().operations;
        if operations.is_empty() {
            return self.give("reset counters", None, Command::ResetCounters);
        }
        let operation = &operations[self.rng.place(operations.len())];
        let op = operation.id;
        let (word, command) = match self.rng.below(9) {
            8 => {
                let rate = 1 << self.rng.below(40);
                ("limit", Command::Limit { op, rate })
            }
            0 | 1 => ("pause", Command::Pause(op)),
            2..=4 => ("resume", Command::Resume(op)),
            5 => ("forget", Command::Forget(op)),
            _ => ("cancel", Command::Cancel(op)),
        };
        self.give(word, operation.target(), command)
    }

    /// Lets every held copy go on, before the quiet phase.
    pub(crate) fn resume_all(&mut self) {
        for copy in &mut self.copies {
            copy.paused = false;
        }
        self.verifies
            .running
            .iter_mut()
            .for_each(|verify| verify.paused = false);
    }
}

pub(crate) fn name(id: MemberId) -> String {
    format!("m{}", id.index() + 1)
}

/// Whom an attach brings in, and the word that names it.
fn joiner(id: MemberId, new: bool, unit: u64) -> (String, Joiner) {
    if !new {
        return (name(id), Joiner::Departed(id));
    }
    let m = member(id.index(), unit);
    let joiner = Joiner::New {
        name: m.name,
        uuid: m.uuid,
        path: m.path.clone(),
    };
    (m.path, joiner)
}
