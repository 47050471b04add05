//! The limits of copies in the simulator: changed at any time, and raised again in the end.

use shadowset::set::member::Phase;
use shadowset::set::{Command, Event, Limits, MemberState, Tuning};
use shadowset::testing::Rng;

use crate::plan::Plan;
use crate::world::{Checked, World, ensure};

/// The limits that a world begins with.
pub(crate) fn first_limits(rng: &mut Rng, plan: &Plan) -> Limits {
    match plan.limits {
        0 => Limits {
            held: plan.held,
            ..Limits::default()
        },
        _ => draw_limits(rng),
    }
}

/// Limits at random: few copies, or none; intent that is rotated late.
fn draw_limits(rng: &mut Rng) -> Limits {
    Limits {
        copies: rng.place(4),
        held: rng.chance(200),
        delayed: rng.chance(100),
        reset_blocks: rng.below(4) * 8,
        min_members: 1,
    }
}

impl World {
    /// Other limits, while anything is under way.
    pub(crate) fn change_limits(&mut self) -> Checked {
        if self.rng.chance(200) {
            let place = self.rng.place(self.set.members().len());
            let number = u32::try_from(self.rng.below(3)).unwrap_or(0);
            let tuning = match self.rng.chance(500) {
                true => Tuning::ReadCost(number),
                false => Tuning::Site(number),
            };
            let member = format!("m{}", place + 1);
            return self.give("tune", None, Command::Tune { member, tuning });
        }
        let limits = draw_limits(&mut self.rng);
        self.limit(limits)
    }

    /// No limit that matters: what waits goes on.
    pub(crate) fn raise_limits(&mut self) -> Checked {
        match self.limits == Limits::default() {
            true => Ok(()),
            false => self.limit(Limits::default()),
        }
    }

    fn limit(&mut self, limits: Limits) -> Checked {
        self.limits = limits;
        let (running, waiting) = self.copies_of_set();
        if waiting > 0 && running < self.at_once() {
            self.mark("more copies may run, and one waits");
        }
        if self.at_once() == 0 {
            self.mark("all copies are held");
        }
        self.handle(Event::Limits(limits))?;
        let (still, waiting) = self.copies_of_set();
        let mut members = self.ids();
        let in_doubt = members.any(|id| self.set.doubt_of(id).is_some());
        // A copy that has come to its end waits for who is leaving.
        let leaving = |id| matches!(self.state(id), MemberState::Leaving(_));
        let leaving = self.ids().any(leaving);
        let closing = self.stopping || self.crashed || in_doubt || leaving;
        ensure!(
            closing || waiting == 0 || limits.delayed || still >= self.at_once(),
            "{still} copies run and {waiting} wait, {} may run",
            self.at_once()
        );
        ensure!(
            closing || still >= running,
            "a limit has stopped a copy: {running} ran, {still} run"
        );
        Ok(())
    }

    /// A copy starts: no more run than may.
    pub(crate) fn check_limit(&self) -> Checked {
        let (running, _) = self.copies_of_set();
        ensure!(
            running <= self.at_once(),
            "{running} copies run, {} may",
            self.at_once()
        );
        Ok(())
    }

    fn at_once(&self) -> usize {
        match self.limits.held {
            true => 0,
            false => self.limits.copies,
        }
    }

    /// Copies that run, and copies that wait for their turn.
    fn copies_of_set(&self) -> (usize, usize) {
        let count = |is: fn(&Phase) -> bool| {
            let of = |id| matches!(self.state(id), MemberState::Target { phase, .. } if is(phase));
            self.ids().filter(|id| of(*id)).count()
        };
        let running = count(|phase| matches!(phase, Phase::Running(_)));
        (running, count(|phase| matches!(phase, Phase::Queued(_))))
    }
}
