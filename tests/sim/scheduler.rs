//! The scheduler: what happens next is drawn; then everything comes to rest, then the unit stops.

use shadowset::set::{AttachPolicy, Event};
use shadowset::testing::Rng;

use crate::world::{Checked, Ran, Violation, World, ensure};

/// Steps that the quiet phase may take.
const QUIET_STEPS: u64 = 200_000;

/// What a step draws from: its own numbers, so that a step left out changes as little as can be of the others.
fn draws_of(seed: u64, step: u64) -> Rng {
    Rng::new(Rng::new(seed).bits() ^ Rng::new(!step).bits())
}

impl World {
    /// Runs to the end: steps with faults and commands, then quiet, then a stop in good order.
    pub(crate) fn run(&mut self) -> Result<Ran, Violation> {
        self.begin_life()?;
        let only = self.turns.only.take();
        for step in only.unwrap_or_else(|| (0..self.plan.steps).collect()) {
            self.turns.last = step;
            self.rng = draws_of(self.turns.seed, step);
            let outcome = self.step();
            self.unless_crashed(outcome)?;
        }
        self.rng = draws_of(self.turns.seed, u64::MAX);
        // From here on nothing crashes.
        self.ops.coming = None;
        self.plan.faults.planned += std::mem::take(&mut self.plan.faults.block);
        if self.crashed {
            self.reboot()?;
        }
        if self.plan.stop_early {
            self.drain_requests()?;
        } else {
            self.be_quiet()?;
            self.check_quiet()?;
            self.check_rotation()?;
            self.reunite()?;
        }
        self.stop()?;
        if self.plan.stop_early && self.stopped {
            self.start_again()?;
        }
        Ok(Ran {
            trace: self.trace,
            steps: self.now,
            marks: self.marks.clone(),
        })
    }

    fn step(&mut self) -> Checked {
        self.now += 1;
        self.draw_crash();
        if self.crashed {
            return self.reboot();
        }
        if self.rng.chance(self.plan.backups) {
            self.back_up();
        }
        if self.rng.below(10_000) < self.plan.clock {
            self.set_clock();
        }
        self.draw_silence()?;
        if self.ops.repair.is_some() && self.rng.chance(300) {
            return self.step_repair();
        }
        self.stamp_one();
        let deed = self.rng.weighted(&self.plan.deeds).unwrap_or(0);
        self.trace(&[deed as u64]);
        match deed {
            0 => self.new_request(),
            1 => self.step_request(),
            2 => self.step_copy(),
            3 => self.deliver(),
            4 => self.end_flush(),
            _ => self.command(),
        }
    }

    /// Somebody sets the clock, to any time.
    fn set_clock(&mut self) {
        let clock = self.rng.below(2 * self.now + 1);
        self.mark(match clock < self.moment().0 {
            true => "clock set back",
            false => "clock set forward",
        });
        self.turns.skew = i64::try_from(clock).unwrap_or(0) - i64::try_from(self.now).unwrap_or(0);
    }

    /// Faults stop, nothing new comes in: everything must end in a bounded number of steps.
    pub(crate) fn be_quiet(&mut self) -> Checked {
        self.quiet = true;
        for disk in &mut self.disks {
            (disk.bad_reads, disk.bad_writes, disk.bad_flushes) = (false, false, false);
        }
        self.wake_all();
        self.log("quiet");
        self.resume_all();
        self.raise_limits()?;
        self.end_stall()?;
        for _ in 0..QUIET_STEPS {
            if self.is_idle() || self.crashed {
                return Ok(());
            }
            self.now += 1;
            self.come_late_in_quiet()?;
            self.step_repair()?;
            match self.rng.below(4) {
                0 => self.step_request()?,
                1 => self.step_copy()?,
                2 => self.deliver()?,
                _ => self.end_flush()?,
            }
        }
        let open: Vec<_> = self.tickets.iter().collect();
        Err(Violation(format!(
            "not idle after {QUIET_STEPS} quiet steps: {} requests, {} copies, {open:?}",
            self.requests.len(),
            self.copies.len()
        )))
    }

    /// The write-intent bitmap of a unit that rests becomes empty.
    pub(crate) fn check_rotation(&mut self) -> Checked {
        // Intent that was set again and again is rotated at every 32nd tick only.
        for _ in 0..100 {
            self.handle(Event::Tick)?;
            self.come_to_rest()?;
        }
        let left: u64 = self.set.intents().map(|map| map.count()).sum();
        ensure!(left == 0, "{left} write-intent bits are left at rest");
        Ok(())
    }

    /// What a tick has begun ends.
    fn come_to_rest(&mut self) -> Checked {
        for _ in 0..QUIET_STEPS {
            if self.is_idle() || self.crashed {
                return Ok(());
            }
            self.deliver()?;
            self.end_flush()?;
            self.come_late_in_quiet()?;
            self.step_repair()?;
        }
        Err(Violation("a tick at rest begins what does not end".into()))
    }

    /// Whoever is away comes back; who is refused has a reason for it. Then all are equal.
    fn reunite(&mut self) -> Checked {
        for id in self.ids().collect::<Vec<_>>() {
            if self.state(id).departed().is_some() {
                self.attach_member(id.index() + 1, AttachPolicy::MinicopyOptional)?;
                self.be_quiet()?;
            }
        }
        self.check_equal()
    }

    /// The last requests end, while copies, commands and faults go on.
    fn drain_requests(&mut self) -> Checked {
        self.mark("stop with work under way");
        self.wake_all();
        self.end_stall()?;
        for _ in 0..QUIET_STEPS {
            if self.requests.is_empty() && self.ops.silence.is_over() && self.ops.repair.is_none() {
                return Ok(());
            }
            self.now += 1;
            self.come_late_in_quiet()?;
            self.step_repair()?;
            match self.rng.below(4) {
                0 => self.step_copy()?,
                1 => self.deliver()?,
                2 => self.end_flush()?,
                _ => self.step_request()?,
            }
        }
        Err(Violation("the last requests do not end".into()))
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.requests.is_empty()
            && self.copies.is_empty()
            && self.verifies.running.is_none()
            && self.inbox.is_empty()
            && self.flushes.is_empty()
            && self.ops.silence.is_over()
            && self.ops.repair.is_none()
    }

    /// Stops the unit in good order.
    pub(crate) fn stop(&mut self) -> Checked {
        self.stopping = true;
        self.handle(Event::Shutdown)?;
        for _ in 0..QUIET_STEPS {
            if self.crashed {
                return Ok(());
            }
            if self.stopped {
                break;
            }
            self.now += 1;
            self.step_copy()?;
            self.end_flush()?;
            self.deliver()?;
        }
        ensure!(self.stopped, "the unit does not stop");
        ensure!(self.tickets.is_empty(), "not answered: {:?}", self.tickets);
        self.check_stopped()
    }

    /// Delivers one event that waits, whichever.
    pub(crate) fn deliver(&mut self) -> Checked {
        if self.inbox.is_empty() {
            if !self.quiet && self.rng.chance(200) {
                let late = self.plan.limits > 0 && self.rng.chance(500);
                return self.handle(if late { Event::Beat } else { Event::Tick });
            }
            return match self.quiet {
                true => self.persist_again(),
                false => Ok(()),
            };
        }
        let at = self.rng.place(self.inbox.len());
        let event = self.inbox.swap_remove(at);
        self.handle(event)
    }
}
