//! Which member answers a read: the choice among those that may.
//!
//! Who may is said by the View, from the stale sets. This module must not know of these: whatever it
//! prefers, it takes one of the candidates.

use super::member::MemberId;

/// How much dearer than the best member, in units of read cost or waiting reads, the member of a stream may
/// be before the stream leaves it. A disk, or the kernel's read-ahead of an image, gives a stream that stays
/// several times what it gives one that comes and goes; a member this much busier has other work.
pub const STICKY: u64 = 8;

/// What is preferred, beside low costs, when the member of a read is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Preference {
    /// Site of this node; 0 when it has none.
    pub site: u32,
    /// Which member answered the read that ended where this one begins.
    pub last: Option<MemberId>,
    /// Number of this read among those that continue no stream, when members of equal read cost take turns.
    pub turn: Option<u64>,
}

/// The cost of reading a member of which nothing else is said.
pub const READ_COST: u32 = 2;

/// A member that may answer a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Which member.
    pub id: MemberId,
    /// Cost of a read, lower is preferred.
    pub read_cost: u32,
    /// Site of the member; 0 when it has none.
    pub site: u32,
    /// Reads that it is busy with.
    pub load: u64,
}

impl Candidate {
    /// Whether the member is known to be elsewhere: who has no site is at every one.
    fn is_remote(&self, site: u32) -> bool {
        self.site != site && self.site != 0 && site != 0
    }

    fn cost(&self) -> u64 {
        self.load.saturating_add(u64::from(self.read_cost))
    }
}

impl Preference {
    /// The member to read from; `None` when there is no candidate.
    ///
    /// One of another site only where there is none of this one, whatever the costs. Of those, that of
    /// the stream, unless it is dearer than the best by more than [`STICKY`]; else the one whose turn it
    /// is; else the cheapest by read cost plus load, the first of equals.
    #[must_use]
    pub fn choose(&self, candidates: impl Iterator<Item = Candidate> + Clone) -> Option<MemberId> {
        let remote = |c: &Candidate| c.is_remote(self.site);
        let best = candidates.clone().min_by_key(|c| (remote(c), c.cost()))?;
        let near = candidates.filter(|c| remote(c) == remote(&best));
        if let Some(last) = self.last {
            let stays =
                |c: &Candidate| c.id == last && c.cost() <= best.cost().saturating_add(STICKY);
            if let Some(same) = near.clone().find(stays) {
                return Some(same.id);
            }
        }
        let Some(turn) = self.turn else {
            return Some(best.id);
        };
        let least = near.clone().map(|c| c.read_cost).min()?;
        let equal = near.filter(|c| c.read_cost == least);
        let count = equal.clone().count() as u64;
        equal
            .clone()
            .zip(0..)
            .find(|(_, n)| *n == turn % count)
            .map(|(c, _)| c.id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(index: usize) -> MemberId {
        MemberId::new(index).expect("inside")
    }

    /// Members by place: read cost, site, load.
    fn choose(prefer: Preference, members: &[(u32, u32, u64)]) -> Option<usize> {
        let candidates = members.iter().enumerate().map(|(n, m)| Candidate {
            id: id(n),
            read_cost: m.0,
            site: m.1,
            load: m.2,
        });
        prefer.choose(candidates).map(MemberId::index)
    }

    const NOTHING: Preference = Preference {
        site: 0,
        last: None,
        turn: None,
    };

    #[test]
    fn the_cheapest_by_cost_and_load_is_read_and_of_equals_the_first() {
        assert_eq!(choose(NOTHING, &[]), None);
        assert_eq!(choose(NOTHING, &[(2, 0, 0), (2, 0, 0)]), Some(0));
        assert_eq!(choose(NOTHING, &[(2, 0, 1), (2, 0, 0)]), Some(1));
        assert_eq!(choose(NOTHING, &[(2, 0, 3), (6, 0, 0), (5, 0, 1)]), Some(0));
        assert_eq!(choose(NOTHING, &[(2, 0, 5), (6, 0, 0), (5, 0, 2)]), Some(1));
        assert_eq!(
            choose(NOTHING, &[(u32::MAX, 0, u64::MAX), (9, 0, 9)]),
            Some(1)
        );
    }

    #[test]
    fn another_site_is_read_only_where_there_is_no_local_member() {
        let at = |site| Preference { site, ..NOTHING };
        let members = [(1, 2, 0), (500, 1, 1 << 40)];
        assert_eq!(choose(at(1), &members), Some(1));
        assert_eq!(choose(at(2), &members), Some(0));
        assert_eq!(choose(at(3), &members), Some(0), "the cheapest elsewhere");
        assert_eq!(choose(at(0), &members), Some(0), "a node without a site");
        let anywhere = [(1, 0, 0), (0, 1, 4)];
        assert_eq!(choose(at(1), &anywhere), Some(0), "a member without a site");
        // Neither a stream nor a turn leads away from the site.
        let stream = Preference {
            last: Some(id(0)),
            ..at(1)
        };
        assert_eq!(choose(stream, &members), Some(1));
        let turn = Preference {
            turn: Some(0),
            ..at(1)
        };
        assert_eq!(choose(turn, &members), Some(1));
    }

    #[test]
    fn a_stream_stays_until_its_member_is_much_busier() {
        let stream = Preference {
            last: Some(id(1)),
            ..NOTHING
        };
        assert_eq!(choose(stream, &[(2, 0, 0), (2, 0, STICKY)]), Some(1));
        assert_eq!(choose(stream, &[(2, 0, 0), (2, 0, STICKY + 1)]), Some(0));
        assert_eq!(choose(stream, &[(2, 0, 5), (42, 0, 5)]), Some(0));
        assert_eq!(choose(stream, &[(2, 0, 0)]), Some(0), "it is not there");
    }

    #[test]
    fn members_of_least_cost_take_turns() {
        let turn = |turn| Preference {
            turn: Some(turn),
            ..NOTHING
        };
        let members = [(9, 0, 0), (2, 0, 30), (2, 0, 0), (2, 7, 0)];
        let turns: Vec<_> = (0..7).filter_map(|n| choose(turn(n), &members)).collect();
        assert_eq!(turns, [1, 2, 3, 1, 2, 3, 1]);
        let stream = Preference {
            last: Some(id(2)),
            ..turn(0)
        };
        assert_eq!(choose(stream, &members), Some(2), "a stream stays");
    }

    proptest! {
        /// Whatever is preferred, somebody is chosen where somebody may be, by the rules in their order.
        #[test]
        fn the_choice_is_one_of_the_candidates_and_the_rules_hold(
            members in proptest::collection::vec((0u32..12, 0u32..3, 0u64..14), 1..=6),
            site in 0u32..3, last in proptest::option::of(0usize..6), turn in proptest::option::of(any::<u64>()),
        ) {
            let prefer = Preference { site, last: last.map(id), turn };
            let chosen = choose(prefer, &members).expect("somebody is there");
            let remote = |m: &(u32, u32, u64)| site != 0 && m.1 != 0 && m.1 != site;
            let cost = |m: &(u32, u32, u64)| u64::from(m.0) + m.2;
            let got = members[chosen];
            let local = members.iter().any(|m| !remote(m));
            prop_assert!(!local || !remote(&got), "a local member can answer");
            let peers = || members.iter().filter(|m| remote(m) == remote(&got));
            let best = peers().map(cost).min().expect("the chosen one at least");
            let stays = last == Some(chosen) && cost(&got) <= best + STICKY;
            if turn.is_some() {
                let least = peers().map(|m| m.0).min();
                prop_assert!(stays || Some(got.0) == least);
            } else {
                prop_assert!(stays || cost(&got) == best);
            }
        }
    }
}
