//! What a test of schedules puts between the server and its members, and what it may ask while a member is written.
//! A schedule runs on one thread of the system.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use crate::io::{Image, Storage};
use crate::set::{ByteRange, Bytes, Epoch, Role, View};

/// Gives the storage in place of that of an image.
pub type Between = Box<dyn Fn(&Path, Arc<dyn Storage>) -> Arc<dyn Storage>>;

thread_local! {
    static BETWEEN: RefCell<Option<Between>> = const { RefCell::new(None) };
    /// The epochs that are not over.
    static EPOCHS: RefCell<Vec<View>> = const { RefCell::new(Vec::new()) };
}

/// Puts this between the server and all images to be opened, and forgets the epochs of other servers.
pub fn put_between(between: Between) {
    BETWEEN.with(|it| it.replace(Some(between)));
    let old = EPOCHS.with(RefCell::take);
    drop(old);
}

pub(super) fn storage(image: Image) -> Arc<dyn Storage> {
    let path = image.path().to_owned();
    let storage = image.into_storage() as Arc<dyn Storage>;
    BETWEEN.with(|it| match &*it.borrow() {
        Some(between) => between(&path, storage),
        None => storage,
    })
}

pub(super) fn epoch_begins(view: &View) {
    EPOCHS.with(|it| it.borrow_mut().push(view.clone()));
}

pub(super) fn epoch_ends(epoch: Epoch) {
    let over = EPOCHS.with(|it| {
        let mut epochs = it.borrow_mut();
        let place = epochs.iter().position(|view| view.epoch() == epoch);
        place.map(|place| epochs.swap_remove(place))
    });
    drop(over);
}

/// The places of the sources in the newest epoch.
#[must_use]
pub fn sources() -> Vec<usize> {
    let newest = |it: &RefCell<Vec<View>>| it.borrow().iter().max_by_key(|v| v.epoch()).cloned();
    let newest = EPOCHS.with(newest);
    let sources = newest.map(|view| view.sources());
    sources
        .into_iter()
        .flat_map(|all| all.iter().map(|id| id.index()).collect::<Vec<_>>())
        .collect()
}

/// Whether the member in this place may be written there: in some epoch that is not over all bits are set that the
/// write of an application needs, or those of a copy where the member is the target of one (I1). One that has been
/// expelled may still make a write that it was given before.
#[must_use]
pub fn may_be_written(place: usize, at: u64, len: u64) -> bool {
    let epochs = EPOCHS.with(|it| it.borrow().clone());
    let allows = |view: &View| {
        let seat = view.seats().iter().find(|seat| seat.id.index() == place);
        let copied = seat.is_some_and(|seat| !matches!(seat.role, Role::Source));
        let range: Option<ByteRange> = view.geometry().clip(Bytes(at), Bytes(len)).ok();
        range.is_some_and(|range| view.is_marked(range, copied))
    };
    epochs.iter().any(allows)
}
