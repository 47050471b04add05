//! What the members' storage control blocks are known to hold: whether the membership is durable.
//!
//! Whoever writes the blocks asks here, before and behind. While a block of a member that takes part could not
//! be written nothing may say more than that block does: no block of somebody who has left (I14), and
//! no bitmap that proves a generation which a crash would leave behind (I3).

use super::member::{MEMBERS_MAX, MemberId, MemberSet};
use super::record::{BitmapKind, BitmapRecord, HomeChange};
use super::scb::{Generation, ScbState};

/// The last generation that is durable, what each block holds, and whose block is behind.
#[derive(Clone, Debug)]
pub struct Written {
    durable: Generation,
    lacking: MemberSet,
    held: [Option<Generation>; MEMBERS_MAX],
    put_off: Vec<HomeChange>,
}

impl Written {
    /// All members that take part hold this generation.
    #[must_use]
    pub fn new(durable: Generation) -> Self {
        Self {
            durable,
            lacking: MemberSet::EMPTY,
            held: [None; MEMBERS_MAX],
            put_off: Vec::new(),
        }
    }

    /// The block of this member holds this generation, also by a write that no change of membership asked for; none when
    /// that write has failed, and may be there all the same.
    pub fn found(&mut self, id: MemberId, generation: Option<Generation>) {
        self.held[id.index()] = generation;
    }

    /// The generations that these blocks hold, as far as they are known: what
    /// [`super::Event::BlocksFailed`] takes.
    #[must_use]
    pub fn held(&self, members: MemberSet) -> Vec<(MemberId, Option<Generation>)> {
        members
            .iter()
            .map(|id| (id, self.held[id.index()]))
            .collect()
    }

    /// Whether the membership of these writers is durable: none of them could say something else after a crash.
    #[must_use]
    pub fn is_durable(&self, writers: MemberSet) -> bool {
        self.lacking.and(writers).is_empty()
    }

    /// Whether these blocks may be written now: one of a member that has left must not be newer than those of
    /// the members that take part.
    #[must_use]
    pub fn may_write(&self, to: MemberSet, writers: MemberSet) -> bool {
        to.without(writers).is_empty() || self.is_durable(writers)
    }

    /// The order in which blocks are written, and of each whether it is a source's: who was a source before
    /// comes first, copy targets last, so that a crash in between leaves a source at the newest generation.
    /// When no source's block can be written the others are not written either. `state` gives the state that a
    /// block will hold, and the one that it held before.
    pub fn order(
        to: MemberSet,
        state: impl Fn(MemberId) -> (ScbState, Option<ScbState>),
    ) -> Vec<(MemberId, bool)> {
        let mut order: Vec<MemberId> = to.iter().collect();
        order.sort_by_key(|id| {
            let (now, before) = state(*id);
            (now != ScbState::Source, before != Some(ScbState::Source))
        });
        let source = |id: MemberId| (id, state(id).0 == ScbState::Source);
        order.into_iter().map(source).collect()
    }

    /// Blocks have been written, but for those of `failed`.
    pub fn note(
        &mut self,
        generation: Generation,
        to: MemberSet,
        failed: MemberSet,
        writers: MemberSet,
    ) {
        self.lacking = self.lacking.without(to).or(failed);
        for id in to.without(failed).iter() {
            self.held[id.index()] = Some(generation);
        }
        if self.is_durable(writers) && writers.without(to).is_empty() {
            self.durable = generation;
        }
    }

    /// What may be kept of a change of bitmaps now. While the membership is not durable write-intent proves the
    /// last generation that is, nothing is forgotten, since a member that has missed writes may still
    /// count as a source, and what a copy has drained is noted another time.
    #[must_use]
    pub fn admit(&mut self, change: &HomeChange, writers: MemberSet) -> Option<HomeChange> {
        if self.is_durable(writers) {
            return Some(change.clone());
        }
        match change {
            HomeChange::Renew(_) => {
                self.put_off.clear();
                Some(change.clone())
            }
            HomeChange::Add(record, map) => {
                Some(HomeChange::Add(self.proven(*record), map.clone()))
            }
            HomeChange::Describe(record) => Some(HomeChange::Describe(self.proven(*record))),
            HomeChange::Absorb(..) => Some(change.clone()),
            HomeChange::Retain(_) => None,
            HomeChange::Forget(_) => {
                self.put_off.push(change.clone());
                None
            }
        }
    }

    /// What was put off and may be carried out, once the membership is durable.
    #[must_use]
    pub fn settled(&mut self, writers: MemberSet) -> Vec<HomeChange> {
        match self.is_durable(writers) {
            true => std::mem::take(&mut self.put_off),
            false => Vec::new(),
        }
    }

    fn proven(&self, mut record: BitmapRecord) -> BitmapRecord {
        if record.kind == BitmapKind::Intent {
            record.tag.generation = self.durable.number();
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::member::{BitmapId, BitmapTag, Moment, Policy};

    fn set(places: &[usize]) -> MemberSet {
        places
            .iter()
            .filter_map(|place| MemberId::new(*place))
            .collect()
    }

    fn generation(number: u64) -> Generation {
        Generation::from_number(number).expect("not zero")
    }

    #[test]
    fn nothing_says_more_than_the_blocks_of_those_who_take_part() {
        let (writers, left) = (set(&[0, 1]), set(&[2]));
        let mut written = Written::new(generation(5));
        let lost = HomeChange::Forget(BitmapId(7));
        written.note(generation(6), writers, set(&[1]), writers);
        assert!(!written.is_durable(writers) && written.is_durable(set(&[0])));
        assert!(written.may_write(set(&[1]), writers) && !written.may_write(left, writers));
        let record = |kind| BitmapRecord {
            tag: BitmapTag {
                id: BitmapId(1),
                policy: Policy::default(),
                created: Moment(0),
                generation: 6,
            },
            kind,
            owner: uuid::Uuid::nil(),
        };
        let mut says = |kind| match written.admit(&HomeChange::Describe(record(kind)), writers) {
            Some(HomeChange::Describe(record)) => record.tag.generation,
            other => panic!("{other:?}"),
        };
        assert_eq!(says(BitmapKind::Intent), 5, "what is durable");
        assert_eq!(says(BitmapKind::Departed), 6);
        assert!(written.admit(&lost, writers).is_none());
        assert!(written.settled(writers).is_empty(), "not yet");
        written.note(generation(6), set(&[1]), MemberSet::EMPTY, writers);
        assert!(written.is_durable(writers) && written.may_write(left, writers));
        let settled = written.settled(writers);
        assert!(
            matches!(settled[..], [HomeChange::Forget(BitmapId(7))]),
            "{settled:?}"
        );
    }

    #[test]
    fn what_a_block_holds_is_known_when_it_was_found_or_written() {
        let mut written = Written::new(generation(5));
        let both = set(&[0, 1]);
        written.found(MemberId::new(0).expect("a place"), Some(generation(4)));
        let held = |written: &Written| {
            let held = written.held(both).into_iter();
            held.map(|(_, held)| held.map(Generation::number))
                .collect::<Vec<_>>()
        };
        assert_eq!(held(&written), [Some(4), None]);
        written.note(generation(6), both, set(&[0]), both);
        assert_eq!(held(&written), [Some(4), Some(6)], "one has failed");
    }

    /// Who was a source before, then who becomes one, then all others.
    #[test]
    fn sources_are_written_first() {
        use ScbState::{Source, Target};
        let states = [
            (Target, Some(Target)),
            (Source, Some(Target)),
            (Target, Some(Source)),
            (Source, Some(Source)),
        ];
        let order = Written::order(set(&[0, 1, 2, 3]), |id| states[id.index()]);
        let order: Vec<_> = order
            .iter()
            .map(|(id, source)| (id.index(), *source))
            .collect();
        assert_eq!(order, [(3, true), (1, true), (2, false), (0, false)]);
    }
}
