//! Growing a unit: preparing what it needs on a thread of its own, and putting it in place.
//!
//! The larger bitmaps get a journal of their own in `grown/` below the state directory. The members' blocks
//! say which of the two counts: the one that was made for the size which they hold. When they have
//! the new size for good, the new journal takes the place of the old one. Nothing here decides
//! whether a unit may grow.

use std::path::PathBuf;
use std::sync::Arc;

use super::Message;
use super::candidate::refusal;
use super::home;
use super::pipeline::Stores;
use super::run::Runner;
use crate::error::Error;
use crate::io::image::{LOOK_BYTES, is_blank_behind};
use crate::io::journal::Journal;
use crate::set::member::MEMBERS_MAX;
use crate::set::{Bytes, Code, Event, Geometry, MemberId, MemberSet, Refusal};
use crate::sync::thread;

/// A journal for a unit that is about to grow; none where bitmaps are in memory only.
pub(crate) type Prepared = Option<Journal>;

/// How far the growth of the journal is.
#[derive(Debug, Default)]
pub(super) enum Growth {
    /// There is none.
    #[default]
    None,
    /// A thread is at it, also when its command was given up.
    Preparing,
    /// Ready, and not used yet.
    Ready(Box<Prepared>),
    /// In use, and not in its place yet.
    InUse,
}

/// What has to be done before the unit grows.
struct Preparation {
    set: uuid::Uuid,
    state_dir: PathBuf,
    keep: Option<home::Kept>,
    stores: Stores,
    end: Bytes,
    geometry: Geometry,
}

impl Preparation {
    fn run(&self) -> Result<(Prepared, MemberSet), Refusal> {
        let journal = match &self.keep {
            None => None,
            Some(kept) => Some(home::create_grown(
                &self.state_dir,
                self.set,
                self.geometry,
                *kept,
            )?),
        };
        let mut blank = MemberSet::EMPTY;
        for id in (0..MEMBERS_MAX).filter_map(MemberId::new) {
            let Some(store) = &self.stores[id.index()] else {
                continue;
            };
            let zeros = is_blank_behind(&**store, self.end.0, self.geometry.size().0, LOOK_BYTES);
            let zeros = zeros.map_err(|e| {
                refusal(&Error::io(
                    "a member cannot be read behind the unit's end",
                    e,
                ))
            })?;
            if zeros {
                blank.insert(id);
            }
        }
        Ok((journal, blank))
    }
}

impl Runner {
    /// What the images of the members have room for now.
    pub(super) fn room(&self) -> Vec<(MemberId, Bytes)> {
        let writers = self.set.writers();
        let room = |id: MemberId| {
            let store = self.stores[id.index()].as_ref()?;
            match store.measure() {
                Ok(len) => Some((id, Bytes(len))),
                Err(error) => {
                    tracing::warn!(member = self.pipeline.name(id), %error, "its size cannot be told");
                    None
                }
            }
        };
        writers.iter().filter_map(room).collect()
    }

    /// Prepares a growth on a thread of its own: a device may hang, and a journal takes space.
    pub(super) fn prepare_growth(&mut self, number: u64, geometry: Geometry) {
        let preparation = Preparation {
            set: self.identity.set,
            state_dir: self.identity.state_dir.clone(),
            keep: self
                .pipeline
                .home()
                .and_then(|_| home::kept(self.board.state.load().durability)),
            stores: self.stores.clone(),
            end: self.set.geometry().size(),
            geometry,
        };
        self.growth = Growth::Preparing;
        let messages = self.messages.clone();
        // A closed channel means that the unit has ended and nobody waits.
        let tell = move |prepared| {
            let _ = messages.send(Message::GrowthPrepared(number, Box::new(prepared)));
        };
        let told = tell.clone();
        let thread = thread::Builder::new().name("growth".into());
        if let Err(error) = thread.spawn(move || told(preparation.run())) {
            let error = Error::io("no thread could be started", error);
            tell(Err(refusal(&error)));
        }
    }

    /// Refuses a resize while an earlier one that was given up is still being prepared: both would make
    /// the same files.
    pub(super) fn refuse_unprepared(&self) -> Result<(), Refusal> {
        if !matches!(self.growth, Growth::Preparing) {
            return Ok(());
        }
        let text = "an earlier resize is still being prepared";
        Err(Refusal::new(Code::InUse, text))
    }

    /// Goes on with a growth that is prepared.
    pub(super) fn growth_prepared(
        &mut self,
        number: u64,
        prepared: Result<(Prepared, MemberSet), Refusal>,
    ) {
        self.growth = Growth::None;
        let ready = prepared.map(|(journal, blank)| {
            self.growth = Growth::Ready(Box::new(journal));
            blank
        });
        self.feed(Event::GrowthReady(number, ready));
    }

    /// Keeps bitmaps in the new journal from now on.
    pub(super) fn renew_home(&mut self) {
        if let Growth::Ready(journal) = std::mem::take(&mut self.growth) {
            // A home that was given up meanwhile stays so.
            if let (Some(journal), Some(_)) = (*journal, self.pipeline.home()) {
                self.pipeline.set_home(Some(Arc::new(journal)));
                self.growth = Growth::InUse;
            }
        }
    }

    /// Lets changes go on, and drops a journal that was made for nothing.
    pub(super) fn lift(&mut self) {
        if matches!(self.growth, Growth::Ready(_)) {
            // Its files are closed before they are removed.
            self.growth = Growth::None;
            home::drop_grown(&self.identity.state_dir);
        }
        self.pipeline.gate().lift();
    }

    /// Puts the new journal into its place once every block says that the unit has grown.
    pub(super) fn settle_growth(&mut self) {
        if !matches!(self.growth, Growth::InUse) || self.is_undurable() {
            return;
        }
        self.growth = Growth::None;
        if let Err(error) = home::place_grown(&self.identity.state_dir) {
            tracing::error!(%error, "the journal of the grown unit stays beside its place; the next mount moves it");
        }
    }
}
