//! The oracle: when each write began and was acknowledged, and so what each block may hold at any time.
//!
//! It knows nothing of members. A block holds the number of the write that wrote it, all over.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::member::BLOCK;

/// Number of a write; 0 is what was there before.
pub(crate) type Id = u64;
/// A place in the order of all that happens.
pub(crate) type Time = u64;

/// One write.
#[derive(Clone, Copy, Debug)]
struct Write {
    first: usize,
    end: usize,
    begun: Time,
    /// Not while it is under way, nor when it has failed.
    acknowledged: Option<Time>,
}

impl Write {
    fn is_before(&self, time: Time) -> bool {
        self.acknowledged.is_some_and(|at| at < time)
    }

    fn covers(&self, block: usize) -> bool {
        (self.first..self.end).contains(&block)
    }
}

#[derive(Debug)]
struct State {
    time: Time,
    /// By number.
    writes: Vec<Write>,
}

/// All writes of a unit.
#[derive(Debug)]
pub(crate) struct History(Mutex<State>);

impl History {
    pub(crate) fn new(blocks: usize) -> Self {
        let initial = Write {
            first: 0,
            end: blocks,
            begun: 0,
            acknowledged: Some(0),
        };
        Self(Mutex::new(State {
            time: 0,
            writes: vec![initial],
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time, which goes on.
    pub(crate) fn now(&self) -> Time {
        let mut state = self.lock();
        state.time += 1;
        state.time
    }

    /// A write of these blocks begins; gives its number.
    pub(crate) fn begin(&self, first: usize, end: usize) -> Id {
        let begun = self.now();
        let mut state = self.lock();
        state.writes.push(Write {
            first,
            end,
            begun,
            acknowledged: None,
        });
        state.writes.len() as Id - 1
    }

    /// It is acknowledged.
    pub(crate) fn acknowledge(&self, id: Id) {
        let now = self.now();
        self.lock().writes[id as usize].acknowledged = Some(now);
    }

    /// Checks what was seen, between two times, of blocks from `first` on: no write that began later, none that was
    /// overwritten before.
    pub(crate) fn check(&self, what: &str, first: usize, bytes: &[u8], (from, to): (Time, Time)) {
        let state = self.lock();
        for (block, bytes) in (first..).zip(bytes.chunks(BLOCK as usize)) {
            let id = id_of(bytes).unwrap_or_else(|| panic!("{what}: block {block} is torn"));
            let seen = state.writes[id as usize];
            assert!(seen.covers(block), "{what}: block {block} holds write {id}");
            assert!(
                seen.begun < to,
                "{what}: block {block} holds write {id} of a later time"
            );
            let newer =
                |w: &&Write| w.covers(block) && w.is_before(from) && seen.is_before(w.begun);
            let newer = state.writes.iter().position(|w| newer(&w));
            assert!(
                newer.is_none(),
                "{what}: block {block} holds write {id}, write {newer:?} is lost"
            );
        }
    }

    /// Checks that an image holds all writes up to a point between two times, and none behind it (I5).
    pub(crate) fn check_cut(&self, image: &[u8], times: (Time, Time)) {
        self.check("I5: the cut", 0, image, times);
        let state = self.lock();
        let ids: Vec<Id> = image.chunks(BLOCK as usize).filter_map(id_of).collect();
        for held in &ids {
            let held = state.writes[*held as usize];
            // What was acknowledged before this write began is in the cut too, and so is all of this one.
            let before = |w: &&Write| w.is_before(held.begun) || w.begun == held.begun;
            for earlier in state.writes.iter().filter(before) {
                for block in earlier.first..earlier.end {
                    let there = state.writes[ids[block] as usize];
                    assert!(
                        !there.is_before(earlier.begun),
                        "I5: the cut holds {held:?} and at block {block} not {earlier:?}"
                    );
                }
            }
        }
    }
}

/// The write that a block holds; none when it holds parts of several.
pub(crate) fn id_of(bytes: &[u8]) -> Option<Id> {
    let mut ids = bytes
        .chunks(8)
        .map(|id| Id::from_le_bytes(id.try_into().expect("8 bytes")));
    let first = ids.next()?;
    ids.all(|id| id == first).then_some(first)
}

/// What a write puts into so many blocks.
pub(crate) fn contents(id: Id, blocks: usize) -> Vec<u8> {
    id.to_le_bytes().repeat(blocks * BLOCK as usize / 8)
}
