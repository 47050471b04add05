//! What members start with: from the bitmaps that were kept, and from what is not known.

use super::*;
use crate::set::bitmap::WriteBitmap;
use crate::set::copy::CopyKind;
use crate::set::event::BitmapChange;
use crate::set::member::{BitmapId, BitmapTag};
use crate::set::record::{BitmapKind, BitmapRecord, HomeChange};
use crate::set::said::Said;
use crate::set::scb::Ancestry;
use uuid::Uuid;

type Kept = (BitmapRecord, WriteBitmap);

/// A bitmap that was kept under a number with these regions, of generation 5 or another.
fn kept(number: u32, kind: BitmapKind, owner: Uuid, regions: (u64, u64), generation: u64) -> Kept {
    let tag = BitmapTag {
        id: BitmapId(number),
        policy: Policy::Minicopy,
        created: Moment(0),
        generation,
    };
    let map = WriteBitmap::empty(geometry()).named(tag.id);
    map.mark(Regions::run(regions.0, regions.1));
    (BitmapRecord { tag, kind, owner }, map)
}

/// What was in flight: three regions.
fn intent() -> Kept {
    kept(1, BitmapKind::Intent, Uuid::nil(), (10, 13), 5)
}

/// The bitmap of a member.
fn of(place: usize, kind: BitmapKind, regions: (u64, u64)) -> Kept {
    kept(2 + place as u32, kind, member(place, 0).uuid, regions, 5)
}

fn unclean(past: Past) -> Beginning {
    Beginning {
        generation: Generation::from_number(5).expect("not zero"),
        clean: false,
        absent: Policy::Minicopy,
        past,
        ..beginning()
    }
}

fn known(bitmaps: Vec<Kept>) -> Beginning {
    unclean(Past::Known(bitmaps))
}

fn unknown() -> Beginning {
    unclean(Past::Unknown(named("the journal was lost")))
}

/// Begins with a master and another member, with all effects.
fn start(from: Beginning, second: Start) -> (ShadowSet, Vec<Effect>) {
    let members = vec![(member(0, UNIT), Start::Source), (member(1, UNIT), second)];
    let mut set = ShadowSet::assemble(from, members).expect("a source");
    let effects = set.begin();
    let effects = carry_out(&mut set, effects);
    (set, effects)
}

/// What fills the second member: the kind, regions to copy, and whether its bitmap is one that people know.
fn filled(from: Beginning, second: Start) -> (CopyKind, u64, bool) {
    let (set, effects) = start(from, second);
    let works = copies(effects);
    let known = set.operations()[0].tag().is_some();
    (works[0].kind(), works[0].stale().count(), known)
}

fn forgotten(effects: &[Effect]) -> Vec<u32> {
    let forgets = |e: &Effect| match e {
        Effect::Home(HomeChange::Forget(id)) => Some(id.0),
        _ => None,
    };
    effects.iter().filter_map(forgets).collect()
}

const ALL: u64 = UNIT / REGION;

#[test]
fn a_source_is_merged_where_writes_may_have_been_in_flight() {
    let merged = |from| filled(from, Start::Merging);
    assert_eq!(merged(unknown()), (CopyKind::Merge, ALL, false));
    let some = merged(known(vec![intent()]));
    assert_eq!(some, (CopyKind::Minimerge, 3, false));
}

#[test]
fn a_merge_goes_on_with_what_it_had_to_do_and_what_was_in_flight() {
    let merged = |own| filled(known(vec![intent(), own]), Start::StillMerging);
    let full = of(1, BitmapKind::Copying(CopyKind::Merge), (0, 4));
    assert_eq!(merged(full), (CopyKind::Merge, 7, false));
    let some = of(1, BitmapKind::Copying(CopyKind::Minimerge), (0, 4));
    assert_eq!(merged(some), (CopyKind::Minimerge, 7, false));
    let lost = filled(known(vec![intent()]), Start::StillMerging);
    assert_eq!(lost, (CopyKind::Merge, ALL, false));
}

#[test]
fn a_copy_goes_on_as_what_it_was() {
    let resume = Start::Copy { resume: true };
    let copied = |kind| filled(known(vec![intent(), of(1, kind, (0, 4))]), resume);
    let copying = BitmapKind::Copying;
    assert_eq!(copied(copying(CopyKind::Full)), (CopyKind::Full, 7, false));
    assert_eq!(
        copied(copying(CopyKind::Compare)),
        (CopyKind::Compare, 7, false)
    );
    assert_eq!(copied(copying(CopyKind::Mini)), (CopyKind::Mini, 7, true));
    // It was leaving in the copy when the crash came.
    for leaving in [BitmapKind::Untold, BitmapKind::Departed] {
        assert_eq!(copied(leaving), (CopyKind::Mini, 7, true));
    }
    // Its attach could keep no bitmap, and what it left with before may be too little.
    let left = kept(3, BitmapKind::Departed, member(1, 0).uuid, (0, 4), 4);
    let unkept = filled(known(vec![intent(), left]), resume);
    assert_eq!(unkept, (CopyKind::Compare, ALL, false));
    let merge = copied(copying(CopyKind::Merge));
    assert_eq!(
        merge,
        (CopyKind::Mini, 7, true),
        "a merge that became a copy"
    );
    let lost = filled(known(vec![intent()]), resume);
    assert_eq!(lost, (CopyKind::Full, ALL, false));
}

/// Where the master was still to be merged itself, the others may differ from it too.
#[test]
fn others_are_merged_where_the_master_was_stale() {
    let own = of(0, BitmapKind::Copying(CopyKind::Minimerge), (0, 4));
    let (set, effects) = start(known(vec![intent(), own]), Start::Merging);
    assert!(
        forgotten(&effects).contains(&2),
        "the master is stale nowhere"
    );
    assert_eq!(set.operations()[0].progress.total_bytes(), 7 * REGION);
    let own = of(0, BitmapKind::Copying(CopyKind::Minimerge), (0, 4));
    let alone = filled(known(vec![own]), Start::Merging);
    assert_eq!(alone, (CopyKind::Minimerge, 4, false));
}

#[test]
fn the_bitmap_of_who_was_away_stays_what_it_was() {
    for (kind, start_as, told, suspect) in [
        (BitmapKind::Departed, Start::Detached, true, false),
        (BitmapKind::Untold, Start::Detached, false, false),
        (BitmapKind::Departed, Start::Expelled, true, false),
        (BitmapKind::Untold, Start::Expelled, false, false),
        (BitmapKind::Suspect, Start::Expelled, false, true),
    ] {
        let (set, effects) = start(known(vec![intent(), of(1, kind, (0, 4))]), start_as);
        let departed = set.members()[1].state.departed().expect("it is away");
        assert_eq!(
            (departed.told, departed.suspect),
            (told, suspect),
            "{kind:?}"
        );
        let bits = departed.marks().map(|map| map.count());
        assert_eq!(bits, Some(7), "{kind:?}: what was in flight too");
        let describes = |e: &Effect| match e {
            Effect::Home(HomeChange::Describe(r)) => r.tag.id == BitmapId(3),
            _ => false,
        };
        assert!(
            !effects.iter().any(describes),
            "{kind:?} is what it is kept as"
        );
        let new = |n: &&Notice| matches!(n, Notice::Bitmap(_, _, BitmapChange::Started(_)));
        assert!(!notices(&effects).iter().any(new), "it had one");
    }
    // Its copy had begun, and it has left since.
    let own = of(1, BitmapKind::Copying(CopyKind::Mini), (0, 4));
    let (_, effects) = start(known(vec![own]), Start::Detached);
    let as_untold = |e: &Effect| match e {
        Effect::Home(HomeChange::Describe(r)) => r.kind == BitmapKind::Untold,
        _ => false,
    };
    assert!(effects.iter().any(as_untold));
}

/// Regions that are known to be stale in an absent member; `None` for all.
fn missing(from: Beginning, equal: bool) -> Option<u64> {
    let (set, _) = start(from, Start::Missing { equal });
    let departed = set.members()[1].state.departed()?;
    departed.marks().map(|map| map.count())
}

#[test]
fn an_absent_member_gets_a_bitmap_when_it_is_known_what_it_lacks() {
    let own = || of(1, BitmapKind::Departed, (0, 4));
    assert_eq!(missing(known(vec![intent()]), true), Some(3));
    assert_eq!(
        missing(known(vec![intent()]), false),
        None,
        "it was no source"
    );
    assert_eq!(missing(known(vec![intent(), own()]), false), Some(7));
    assert_eq!(missing(unknown(), true), None);
    let clean = || Beginning {
        clean: true,
        ..unknown()
    };
    assert_eq!(missing(clean(), true), Some(0), "nothing was in flight");
    let unwanted = Beginning {
        absent: Policy::Full,
        ..clean()
    };
    assert_eq!(missing(unwanted, true), None);
    let homeless = Beginning {
        home: Err(Refusal::new(Code::Io, "no journal")),
        ..clean()
    };
    assert_eq!(missing(homeless, true), None);
}

#[test]
fn the_bitmap_of_an_absent_member_is_of_the_newest_generation() {
    let suspect = kept(3, BitmapKind::Suspect, member(1, 0).uuid, (0, 4), 4);
    let (set, effects) = start(known(vec![suspect]), Start::Missing { equal: false });
    let departed = set.members()[1].state.departed().expect("it is away");
    assert!(departed.suspect, "its medium failed once");
    assert_eq!(departed.tag.map(|tag| tag.generation), Some(5));
    let renewed = |e: &Effect| match e {
        Effect::Home(HomeChange::Describe(r)) => {
            (r.kind, r.tag.generation) == (BitmapKind::Suspect, 5)
        }
        _ => false,
    };
    assert!(effects.iter().any(renewed));
    let (_, effects) = start(known(vec![intent()]), Start::Missing { equal: true });
    let new =
        |n: &&Notice| matches!(n, Notice::Bitmap(_, who, BitmapChange::Started(_)) if who == "m2");
    assert!(notices(&effects).iter().any(new), "a new one is told of");
    let described = |e: &Effect| matches!(e, Effect::Home(HomeChange::Describe(r)) if r.kind == BitmapKind::Untold);
    assert!(!effects.iter().any(described), "it is of that generation");
}

#[test]
fn who_has_lost_its_bitmap_is_told_why() {
    let why = |start_as| {
        let (set, _) = start(unknown(), start_as);
        let departed = set.members()[1].state.departed();
        departed.and_then(|d| d.lost.clone()).is_some()
    };
    assert!(why(Start::Detached) && why(Start::Expelled));
    assert!(!why(Start::Missing { equal: true }) && !why(Start::Released));
    let (set, _) = start(unknown(), Start::Released);
    assert!(
        set.members()[1]
            .state
            .departed()
            .is_some_and(|d| d.released)
    );
}

/// The one that proves the newest generation stays.
#[test]
fn of_many_intents_the_newest_complete_one_goes_on() {
    let opening = kept(7, BitmapKind::Opening, Uuid::nil(), (0, 1), 6);
    let older = kept(8, BitmapKind::Intent, Uuid::nil(), (1, 2), 4);
    let members = vec![(member(0, UNIT), Start::Source)];
    let from = known(vec![opening, older, intent()]);
    let mut set = ShadowSet::assemble(from, members).expect("a source");
    let effects = set.begin();
    let mut gone = forgotten(&effects);
    gone.sort_unstable();
    assert_eq!(gone, [7, 8]);
    let bits: Vec<_> = set.intents().map(|map| (map.id().0, map.count())).collect();
    assert_eq!(bits[0], (1, 5), "with the bits of all");
}

/// The next mount finds what is left to copy, and nothing in flight.
#[test]
fn a_stop_leaves_exact_bitmaps() {
    let mut set = set(3);
    let effects = detach(&mut set, "m2", Policy::Minicopy);
    write(&effects, Regions::run(0, 5));
    let works = copies(give(&mut set, Command::Merge { full: true }));
    let mut effects = set.handle(Moment(1), Event::Shutdown);
    for work in works {
        let stopped = crate::set::event::CopyEnd::Stopped;
        effects.extend(run(&mut set, Event::CopyEnded(Box::new(work), stopped)));
    }
    let effects = carry_out(&mut set, effects);
    let retained = |e: &Effect| match e {
        Effect::Home(HomeChange::Retain(map)) => Some(map.count()),
        _ => None,
    };
    let retained: Vec<_> = effects.iter().filter_map(retained).collect();
    assert_eq!(retained, [5, ALL]);
    let intents: Vec<_> = set.intents().map(WriteBitmap::count).collect();
    assert_eq!(intents, [0]);
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, Effect::Stopped { clean: true }))
    );
}

/// A start that was cut short is known to its own bitmap only: that one outlives the blocks of the next start, and so do
/// some of those that got to no block that is here.
#[test]
fn what_proves_the_generation_that_was_found_is_forgotten_behind_the_next_one() {
    let mount = |mark| Uuid::from_u64_pair(0, mark);
    let opening =
        |(id, mark, generation)| kept(id, BitmapKind::Opening, mount(mark), (0, 1), generation);
    let others = [(3, 9, 6), (4, 10, 6), (5, 11, 6), (6, 12, 6)];
    let mut all: Vec<_> = [(2, 8, 5)].into_iter().chain(others).map(opening).collect();
    all.push(kept(1, BitmapKind::Intent, mount(7), (10, 13), 4));
    let from = Beginning {
        last_mark: 8,
        unproven: false,
        ..known(all)
    };
    let (_, effects) = start(from, Start::Source);
    let place = |is: &dyn Fn(&Effect) -> bool| effects.iter().position(is);
    let written = place(&|e| matches!(e, Effect::Persist { .. })).expect("blocks are written");
    assert_eq!(forgotten(&effects[..written]), [3], "too many");
    let later = forgotten(&effects[written..]);
    assert_eq!(later, [6, 5, 4, 2, 1], "the last one when all is flushed");
}

/// A crash came among the blocks: the one of a member that is absent is of the newest generation, or of the one before.
#[test]
fn who_is_absent_behind_a_crash_among_the_blocks_may_be_a_generation_behind() {
    for unproven in [false, true] {
        let from = Beginning {
            generation: Generation::from_number(5).expect("not zero"),
            unproven,
            ..known(vec![intent()])
        };
        let (set, _) = start(from, Start::Missing { equal: true });
        let said = |number: u64| Said {
            generation: Generation::from_number(number).expect("not zero"),
            has_left: false,
            unit: Bytes(UNIT),
            ancestry: Ancestry::Ancestor,
        };
        let is_it = |number| set.is_who_left(id(1), said(number));
        assert!(is_it(5) && !is_it(3));
        assert_eq!(is_it(4), unproven);
    }
}
