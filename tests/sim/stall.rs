//! Stalls in the simulator: who waits at the gate, and members that are quiet meanwhile.

use shadowset::set::{Command, Event, StallEnd};
use shadowset::testing::memory::Value;

use crate::requests::Kind;
use crate::world::{Checked, World, ensure};

/// A stall in force, as the world sees it.
#[derive(Debug, Default)]
pub(crate) struct Stall {
    /// New changes wait.
    pub(crate) held: bool,
    /// What every source holds, once the command is answered.
    quiet: Option<Vec<Value>>,
}

impl World {
    /// A stall, a longer one, or its end by the command or by its time.
    pub(crate) fn stall_or_not(&mut self) -> Checked {
        if self.ops.stall.held && self.rng.chance(150) {
            self.mark("a stall ended by its time");
            return self.handle(Event::StallOver(StallEnd::Time));
        }
        match self.rng.chance(500) {
            true => self.give("unstall", None, Command::Unstall),
            false => self.give("stall", None, Command::Stall { seconds: 30 }),
        }
    }

    /// Before requests have to end: the time of a stall ends it.
    pub(crate) fn end_stall(&mut self) -> Checked {
        match self.ops.stall.held {
            true => self.handle(Event::StallOver(StallEnd::Time)),
            false => Ok(()),
        }
    }

    /// A stall is answered: nobody changes the unit, and no source would lose anything.
    pub(crate) fn become_quiet(&mut self) -> Checked {
        for request in &self.requests {
            let changes = matches!(request.kind, Kind::Write(_) | Kind::Discard);
            ensure!(
                !changes || request.view.is_none(),
                "a stall is answered, and request {} is under way",
                request.id
            );
        }
        for id in self.sources().iter() {
            let image = &self.disks[id.index()].image;
            for block in 0..self.inside.len() {
                ensure!(
                    image.is_durable(block),
                    "a stall is answered, and block {block} of {id:?} is not flushed"
                );
            }
        }
        let first = self.sources().iter().next();
        let blocks = self.inside.len();
        self.ops.stall.quiet = first.map(|id| {
            let contents = self.disks[id.index()].image.contents();
            contents[..blocks].to_vec()
        });
        Ok(())
    }

    /// As long as changes are stalled no source changes, whatever else is done.
    pub(crate) fn check_stall(&self) -> Checked {
        ensure!(
            self.ops.stall.held == self.set.is_stalled() || self.stopping,
            "the gate and the set differ"
        );
        let Some(quiet) = &self.ops.stall.quiet else {
            return Ok(());
        };
        for id in self.sources().iter() {
            let contents = self.disks[id.index()].image.contents();
            ensure!(
                contents.starts_with(quiet),
                "the image of {id:?} changes while changes are stalled"
            );
        }
        Ok(())
    }
}
