//! Growing a unit: preparing what it needs on a thread of its own, and putting it in place.
//!
//! The larger bitmaps get a journal of their own in `grown/` below the state directory. The members' blocks
//! say which of the two counts: the one that was made for the size which they hold. When they have
//! the new size for good, the new journal takes the place of the old one. Nothing here decides
//! whether a unit may grow.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Message;
use super::candidate::refusal;
use super::departure::PATIENCE;
use super::home;
use super::pipeline::{Live, Stores};
use super::results::given_up;
use super::run::Runner;
use crate::error::Error;
use crate::io::Storage;
use crate::io::image::{LOOK_BYTES, is_blank_behind};
use crate::io::journal::Journal;
use crate::set::member::MEMBERS_MAX;
use crate::set::{Bytes, Code, Event, Geometry, MemberId, MemberSet, Refusal};
use crate::sync::channel::bounded;
use crate::sync::{Instant, thread};

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
    /// In use, and not in its place yet; whether it was told that it cannot be moved.
    InUse { told: bool },
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
        let mut blank = MemberSet::EMPTY;
        for id in (0..MEMBERS_MAX).filter_map(MemberId::new) {
            let Some(store) = &self.stores[id.index()] else {
                continue;
            };
            let zeros = self.is_blank(&**store).map_err(|e| {
                refusal(&Error::io(
                    "a member cannot be read behind the unit's end",
                    e,
                ))
            })?;
            if zeros {
                blank.insert(id);
            }
        }
        // Last: what is refused leaves no journal behind.
        let create = |kept| home::create_grown(&self.state_dir, self.set, self.geometry, kept);
        Ok((self.keep.map(create).transpose()?, blank))
    }

    /// Whether an image holds zeros where the unit grows. It may have become shorter since it was measured, which would
    /// look like zeros.
    fn is_blank(&self, store: &dyn Storage) -> io::Result<bool> {
        let (end, has) = (self.geometry.size().0, store.measure()?);
        if has < end {
            let text = format!("the image ends at byte {has} again");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        is_blank_behind(store, self.end.0, end, LOOK_BYTES)
    }
}

/// Insists on the size of the unit in all images that are written: only now that it has grown, or a resize that is
/// rehearsed or refused would.
pub(super) fn require_room(live: &Live) {
    let unit = live.view().geometry().size();
    for store in live.stores().iter().flatten() {
        store.require(unit.0);
    }
}

type Room = Vec<(MemberId, Bytes)>;

/// What these members have room for, and why that cannot be told of the others. All are asked at once, each on a
/// thread of its own: one that does not answer holds up none.
fn measure(
    stores: &Stores,
    members: MemberSet,
    patience: Duration,
) -> (Room, Vec<(MemberId, io::Error)>) {
    let (sender, answers) = bounded(MEMBERS_MAX);
    let (mut room, mut untold) = (Vec::new(), Vec::new());
    let mut asked = MemberSet::EMPTY;
    for id in members.iter() {
        let Some(store) = stores[id.index()].clone() else {
            continue;
        };
        let sender = sender.clone();
        let ask = move || {
            let len = store.measure();
            drop(store);
            let _ = sender.send((id, len));
        };
        match thread::Builder::new().name("measure".into()).spawn(ask) {
            Ok(_) => asked.insert(id),
            Err(error) => untold.push((id, error)),
        }
    }
    let begun = Instant::now();
    while !asked.is_empty() {
        let left = patience.saturating_sub(begun.elapsed());
        let Ok((id, len)) = answers.recv_timeout(left) else {
            break;
        };
        asked.remove(id);
        match len {
            Ok(len) => room.push((id, Bytes(len))),
            Err(error) => untold.push((id, error)),
        }
    }
    untold.extend(asked.iter().map(|id| (id, given_up())));
    (room, untold)
}

impl Runner {
    /// What the images of the members have room for now, of those that answer in time.
    pub(super) fn room(&self) -> Vec<(MemberId, Bytes)> {
        let (room, untold) = measure(&self.stores, self.set.writers(), PATIENCE);
        for (id, error) in untold {
            tracing::warn!(member = self.pipeline.name(id), %error, "its size cannot be told");
        }
        room
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

    /// Refuses a resize while an earlier one that was given up is still being prepared, or its journal is not in its place:
    /// both would make the same files.
    pub(super) fn refuse_unprepared(&mut self) -> Result<(), Refusal> {
        self.settle_growth();
        match self.growth {
            Growth::None | Growth::Ready(_) => Ok(()),
            Growth::Preparing => {
                let text = "an earlier resize is still being prepared";
                Err(Refusal::new(Code::InUse, text))
            }
            Growth::InUse { .. } => {
                let text = "the journal of an earlier resize is not in its place yet";
                let hint = "the log says why; it is tried again by itself, and by each resize";
                Err(Refusal::new(Code::InUse, text).with_hint(hint))
            }
        }
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
                self.growth = Growth::InUse { told: false };
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
        let Growth::InUse { told } = self.growth else {
            return;
        };
        if self.is_undurable() {
            return;
        }
        self.growth = match home::place_grown(&self.identity.state_dir) {
            Ok(()) => Growth::None,
            Err(error) => {
                if !told {
                    tracing::error!(%error, "the journal of the grown unit is not in its place; it is tried again");
                }
                Growth::InUse { told: true }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use super::super::setup::Durability;
    use super::super::verification::tests::Memory;
    use super::*;

    fn stores_of(members: &[Arc<Memory>]) -> Stores {
        let mut stores = Stores::default();
        for (store, member) in stores.iter_mut().zip(members) {
            let member: Arc<Memory> = Arc::clone(member);
            *store = Some(member);
        }
        stores
    }

    /// Its files stayed, as long as those of a large unit.
    #[test]
    fn a_growth_that_is_refused_leaves_no_journal() {
        let dir = tempfile::tempdir().expect("a directory");
        let member = Arc::new(Memory::default());
        member.is_hole.store(true, SeqCst);
        let has = member.measure().expect("a size");
        let grown = |size| Preparation {
            set: uuid::Uuid::nil(),
            state_dir: dir.path().to_owned(),
            keep: home::kept(Durability::Power),
            stores: stores_of(&[Arc::clone(&member)]),
            end: Bytes(has / 2),
            geometry: Geometry::new(Bytes(size), 127).expect("a size"),
        };
        let refusal = grown(2 * has).run().expect_err("it is cut short");
        assert!(refusal.text.contains("ends at byte"), "{refusal:?}");
        let names = || std::fs::read_dir(dir.path()).expect("a list").count();
        assert_eq!(names(), 0);
        assert!(grown(has).run().is_ok());
        assert_eq!(names(), 1);
    }

    /// A resize asked every writer for its size on the control thread: no command was answered any more.
    #[test]
    fn a_member_that_hangs_is_not_waited_for_to_tell_its_size() {
        let members = [(); 2].map(|()| Arc::new(Memory::default()));
        let stores = stores_of(&members);
        let [m1, m2] = [0, 1].map(|at| MemberId::new(at).expect("a place"));
        members[1].hang(true);
        let both = [m1, m2].into_iter().collect();
        let (room, untold) = measure(&stores, both, Duration::from_millis(100));
        assert!(matches!(room[..], [(id, _)] if id == m1), "{room:?}");
        assert!(matches!(untold[..], [(id, _)] if id == m2), "{untold:?}");
        members[1].hang(false);
        let (room, untold) = measure(&stores, both, PATIENCE);
        assert!(room.len() == 2 && untold.is_empty(), "{room:?} {untold:?}");
    }
}
