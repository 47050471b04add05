//! A verify between two calls of members: what another thread needs to go on with it when a member holds the one
//! that it is on ([`super::watch`]).
//!
//! What a stuck thread has read so far stays with it and is read anew. A member that is only late keeps no fence,
//! and is asked again without one until it answers or is expelled.

use std::io;
use std::sync::Arc;

use super::pipeline::{Fenced, Live, Pipeline, WritePermit};
use super::rescue::Held;
use super::results::{is_out_of_reach, not_open};
use super::verifier::{End, Run};
use super::watch::Time;
use crate::io::Storage;
use crate::io::aligned::{AlignedBuf, PAGE};
use crate::set::{MemberId, VerifyWork};

/// What a step holds.
#[derive(Debug)]
enum Grip {
    /// Nothing is compared now.
    Open,
    /// It reads.
    Fenced(Fenced),
    /// It repairs.
    Permit(WritePermit),
}

/// A verify under way.
pub(super) struct Errand {
    pub(super) run: Arc<Run>,
    pub(super) work: Box<VerifyWork>,
    pub(super) end: End,
    /// Whether people know that something differs.
    pub(super) told: bool,
    grip: Grip,
}

impl std::fmt::Debug for Errand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut errand = f.debug_struct("Errand");
        errand.field("op", &self.work.op()).finish_non_exhaustive()
    }
}

impl Errand {
    pub(super) fn new(run: Arc<Run>, work: VerifyWork, end: End) -> Self {
        Self {
            run,
            work: Box::new(work),
            end,
            told: false,
            grip: Grip::Open,
        }
    }

    /// Whether a slow member holds it for nothing: a fence of what is only read, or a wait that has to end.
    pub(super) fn is_held_needlessly(&self) -> bool {
        match self.grip {
            Grip::Open => self.run.is_stopped(),
            Grip::Fenced(_) => true,
            Grip::Permit(_) => false,
        }
    }

    /// With nothing held, and the permission that the call keeps, where it may still write.
    pub(super) fn leave(mut self) -> (Option<WritePermit>, Self) {
        let permit = match std::mem::replace(&mut self.grip, Grip::Open) {
            Grip::Permit(permit) => Some(permit),
            Grip::Fenced(_) | Grip::Open => None,
        };
        (permit, self)
    }

    /// Goes on in place of a thread that a member holds, which has not answered since then. What it has compared of
    /// its step is compared again.
    pub(super) fn go_on_without(mut self, late: (MemberId, Time), pipeline: &Arc<Pipeline>) {
        self.grip = Grip::Open;
        Run::work(self, pipeline, Some(late));
    }
}

/// Why a step goes no further.
pub(super) enum Stop {
    /// Another thread has taken its place: nothing of the verify is this thread's any more.
    Replaced,
    /// A member is out of reach since then.
    Late(MemberId, Time),
    /// Nothing may be written now.
    Later,
}

/// An errand on the thread that runs it.
pub(super) struct Hold<'a> {
    pub(super) pipeline: &'a Pipeline,
    errand: Option<Errand>,
}

impl<'a> Hold<'a> {
    pub(super) fn new(pipeline: &'a Pipeline, errand: Errand) -> Self {
        Self {
            pipeline,
            errand: Some(errand),
        }
    }

    /// The errand, with nothing held, unless another thread has it.
    pub(super) fn into_errand(self) -> Option<Errand> {
        let grip = Grip::Open;
        self.errand.map(|errand| Errand { grip, ..errand })
    }

    pub(super) fn errand(&mut self) -> Result<&mut Errand, Stop> {
        self.errand.as_mut().ok_or(Stop::Replaced)
    }

    /// From now on this range is held.
    pub(super) fn enter(&mut self, fenced: Fenced) -> Result<(), Stop> {
        self.errand()?.grip = Grip::Fenced(fenced);
        Ok(())
    }

    /// The epoch of the range that is held.
    pub(super) fn live(&self) -> Result<&Arc<Live>, Stop> {
        match self.errand.as_ref().map(|errand| &errand.grip) {
            Some(Grip::Fenced(fenced)) => Ok(fenced.live()),
            Some(Grip::Permit(permit)) => Ok(permit.live()),
            Some(Grip::Open) => Err(Stop::Later),
            None => Err(Stop::Replaced),
        }
    }

    /// Gets the permission to write from what is held, by `permit`; what fails lets go of it.
    pub(super) fn permit<E>(
        &mut self,
        permit: impl FnOnce(Fenced) -> Result<WritePermit, E>,
    ) -> Result<(), Stop> {
        let errand = self.errand()?;
        match std::mem::replace(&mut errand.grip, Grip::Open) {
            Grip::Fenced(fenced) => {
                let permit = permit(fenced).map_err(|_| Stop::Later)?;
                errand.grip = Grip::Permit(permit);
            }
            grip => errand.grip = grip,
        }
        Ok(())
    }

    /// Nothing more is written under this permission; the range is held still.
    pub(super) fn repaired(&mut self) -> Result<(), Stop> {
        let errand = self.errand()?;
        errand.grip = match std::mem::replace(&mut errand.grip, Grip::Open) {
            Grip::Permit(permit) => Grip::Fenced(permit.into_fenced()),
            grip => grip,
        };
        Ok(())
    }

    /// Calls a member; an error in the outcome is the member's.
    pub(super) fn call<R>(
        &mut self,
        id: MemberId,
        call: impl FnOnce(&dyn Storage) -> io::Result<R>,
    ) -> Result<io::Result<R>, Stop> {
        let Some(store) = self.live()?.store(id).cloned() else {
            return Ok(Err(not_open()));
        };
        let since = self.pipeline.watch.now();
        let outcome = self.call_since((id, since), |_| call(&*store))?;
        match outcome {
            Err(error) if is_out_of_reach(&error) && self.pipeline.waits_for(id) => {
                Err(Stop::Late(id, since))
            }
            outcome => Ok(outcome),
        }
    }

    fn call_since<R>(
        &mut self,
        (id, since): (MemberId, Time),
        call: impl FnOnce(&dyn Fn() -> bool) -> io::Result<R>,
    ) -> Result<io::Result<R>, Stop> {
        let errand = self.errand.take().ok_or(Stop::Replaced)?;
        let watch = &self.pipeline.watch;
        let held = Held::Verify(errand);
        let (outcome, held) = watch.call((id, since), held, |kept| call(&|| kept.is_there()));
        let Some(Held::Verify(errand)) = held else {
            return Err(Stop::Replaced);
        };
        self.errand = Some(errand);
        if !outcome.as_ref().is_err_and(is_out_of_reach) {
            watch.answered(id);
        }
        Ok(outcome)
    }

    /// Waits without a fence until a member answers again that has not since then, or takes part no more.
    pub(super) fn ask_again(&mut self, (id, since): (MemberId, Time)) -> Result<(), Stop> {
        let pipeline = self.pipeline;
        let run = Arc::clone(&self.errand()?.run);
        let mut room = AlignedBuf::zeroed(PAGE);
        self.call_since((id, since), |is_there| {
            loop {
                // Anew each time: it may be detached meanwhile, and its image must not stay locked.
                let store = pipeline.live().store(id).cloned();
                let Some(store) = store.filter(|_| !pipeline.is_lost(id)) else {
                    break Ok(());
                };
                let len = PAGE.min(store.len() as usize);
                let outcome = store.read_at(&mut room[..len], 0);
                drop(store);
                let lost = outcome.as_ref().is_err_and(is_out_of_reach);
                if !(lost && pipeline.waits_for(id) && is_there()) || run.is_stopped() {
                    break outcome;
                }
                run.look_later();
            }
        })
        .map(drop)
    }
}
