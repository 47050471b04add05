//! When a unit may become larger, and what is stale behind its old end.

use super::*;
use crate::set::record::{BitmapKind, HomeChange};

const TWICE: u64 = 2 * UNIT;

fn resize(set: &ShadowSet, size: Option<u64>) -> Result<u64, Code> {
    let size = size.map(Bytes);
    let room = Vec::new();
    let answer = set.dry_run(Command::Resize { size, room }, &[]);
    let size = |answer: Answer| fact(&answer, "size").parse().expect("a size");
    answer.map(size).map_err(|refusal| refusal.code)
}

/// Makes a unit twice as large; `blank` have zeros behind its end.
fn grow(set: &mut ShadowSet, blank: MemberSet) -> Vec<Effect> {
    let size = Some(Bytes(TWICE));
    let room = Vec::new();
    let mut effects = give(set, Command::Resize { size, room });
    effects.extend(run(set, Event::GrowthReady(1, Ok(blank))));
    assert_eq!(set.geometry().size(), Bytes(TWICE));
    effects
}

#[test]
fn a_unit_grows_by_whole_blocks_up_to_the_smallest_source() {
    let set = of_sizes(&[TWICE + 100, TWICE + 1024]);
    assert_eq!(resize(&set, None), Ok(TWICE));
    assert_eq!(resize(&set, Some(UNIT + 512)), Ok(UNIT + 512));
    assert_eq!(resize(&set, Some(TWICE)), Ok(TWICE));
    assert_eq!(resize(&set, Some(TWICE + 512)), Err(Code::MemberTooSmall));
    assert_eq!(resize(&set, Some(UNIT)), Err(Code::StateChanged));
    assert_eq!(resize(&set, Some(UNIT - 512)), Err(Code::OutOfRange));
    assert_eq!(resize(&set, Some(UNIT + 1)), Err(Code::OutOfRange));
    let room = vec![(id(0), Bytes(4 * UNIT))];
    let answer = set.dry_run(Command::Resize { size: None, room }, &[]);
    let larger = answer.expect("its image was enlarged");
    assert_eq!(fact(&larger, "size"), (TWICE + 1024).to_string());
}

#[test]
fn nobody_is_being_filled_while_a_unit_grows() {
    let mut set = of_sizes(&[TWICE, TWICE]);
    let _ = detach(&mut set, "m2", Policy::Full);
    assert_eq!(resize(&set, None), Ok(TWICE), "who is away does not matter");
    let size = Bytes(TWICE);
    let back = Attach {
        size,
        ..returning(1, AttachPolicy::Full)
    };
    let works = copies(attach(&mut set, back));
    assert_eq!(resize(&set, None), Err(Code::InUse));
    let _ = expel(&mut set, "m2");
    assert_eq!(
        resize(&set, None),
        Err(Code::InUse),
        "its copier is not back"
    );
    drop(works);
    let mut merging = of_sizes(&[TWICE, TWICE]);
    let _ = give(&mut merging, Command::Merge { full: true });
    assert_eq!(resize(&merging, None), Err(Code::MergePending));
}

#[test]
fn who_is_too_small_to_come_back_is_named() {
    let mut set = of_sizes(&[TWICE, UNIT, TWICE]);
    for name in ["m2", "m3"] {
        let _ = detach(&mut set, name, Policy::Minicopy);
    }
    let mut effects = grow(&mut set, only(0));
    effects.retain(|e| matches!(e, Effect::Reply(..)));
    let answer = good(effects);
    assert_eq!(fact(&answer, "before"), UNIT.to_string());
    assert_eq!(fact(&answer, "too_small"), "m2");
}

#[test]
fn who_leaves_and_is_larger_than_the_smallest_is_warned_about() {
    let warned = |sizes: &[u64], policy| {
        let mut set = of_sizes(sizes);
        let answer = good(detach(&mut set, "m2", policy));
        !fact(&answer, "warning").is_empty()
    };
    let policy = Policy::Minicopy;
    assert!(warned(&[UNIT, TWICE], policy));
    assert!(!warned(&[UNIT, TWICE], Policy::Full), "no bitmap");
    assert!(!warned(&[TWICE, TWICE], policy));
    assert!(!warned(&[TWICE, UNIT], policy));
}

#[test]
fn sources_are_made_equal_behind_the_old_end_unless_all_have_zeros_there() {
    let merging = |blank| {
        let mut set = of_sizes(&[TWICE, TWICE]);
        let works = copies(grow(&mut set, blank));
        works
            .iter()
            .map(|work| work.progress().total_bytes())
            .sum::<u64>()
    };
    assert_eq!(merging(only(0).or(only(1))), 0);
    for blank in [MemberSet::EMPTY, only(0), only(1)] {
        assert_eq!(merging(blank), UNIT, "{blank:?}");
    }
}

/// The bitmap of a member that is away covers the new part: all of it, or nothing where the unit begins with zeros
/// and the image has them too.
#[test]
fn who_comes_back_to_a_larger_unit_lacks_what_it_gained() {
    let lacks = |zeros: bool, blank_tail: bool| {
        let mut set = of_sizes(&[TWICE, TWICE]);
        let _ = detach(&mut set, "m2", Policy::Minicopy);
        let blank = if zeros { only(0) } else { MemberSet::EMPTY };
        let _ = grow(&mut set, blank);
        let attach_of = Attach {
            size: Bytes(TWICE),
            blank_tail,
            ..returning(1, AttachPolicy::Minicopy)
        };
        let plan = set.plan_attach(&attach_of).expect("a bitmap");
        let works = copies(attach(&mut set, attach_of));
        assert_eq!(works[0].progress().total_bytes(), plan.bytes, "as planned");
        plan.bytes
    };
    assert_eq!(lacks(true, true), 0);
    assert_eq!(lacks(true, false), UNIT, "it may hold anything");
    assert_eq!(lacks(false, true), UNIT, "the unit may hold anything");
    assert_eq!(lacks(false, false), UNIT);
}

#[test]
fn a_larger_bitmap_is_kept_as_what_the_smaller_one_was() {
    for told in [true, false] {
        let mut set = of_sizes(&[TWICE, TWICE]);
        let _ = detach(&mut set, "m2", Policy::Minicopy);
        if !told {
            let _ = run(&mut set, Event::BlocksFailed(vec![(id(1), None)]));
        }
        let effects = grow(&mut set, only(0));
        let kind = |e: &Effect| match e {
            Effect::Home(HomeChange::Add(r, _)) if r.owner == member(1, 0).uuid => Some(r.kind),
            _ => None,
        };
        let kinds: Vec<_> = effects.iter().filter_map(kind).collect();
        let expected = match told {
            true => BitmapKind::Departed,
            false => BitmapKind::Untold,
        };
        assert_eq!(kinds, [expected]);
    }
}

#[test]
fn a_preparation_that_fails_or_is_of_another_resize_grows_nothing() {
    let start = || {
        let mut set = of_sizes(&[TWICE]);
        let room = Vec::new();
        let effects = give(&mut set, Command::Resize { size: None, room });
        let prepares = |e: &Effect| matches!(e, Effect::PrepareGrowth(1, _));
        assert!(effects.iter().any(prepares), "{effects:?}");
        set
    };
    let mut set = start();
    let of_another = run(&mut set, Event::GrowthReady(9, Ok(only(0))));
    assert!(of_another.is_empty(), "{of_another:?}");
    let failed = Refusal::new(Code::Io, "no room for bitmaps");
    let effects = run(&mut set, Event::GrowthReady(1, Err(failed)));
    assert!(effects.iter().any(|e| matches!(e, Effect::Lift)));
    assert_eq!(refused(effects).code, Code::Io);
    assert_eq!(set.geometry().size(), Bytes(UNIT));
}

/// Its own block is written again behind the growth, with its stamp.
#[test]
fn the_block_of_who_has_left_says_how_large_the_unit_was() {
    let mut set = of_sizes(&[TWICE; 3]);
    let before = set.geometry();
    let _ = detach(&mut set, "m3", Policy::Minicopy);
    let _ = expel(&mut set, "m2");
    let _ = grow(&mut set, only(0));
    for place in 0..3 {
        let expected = if place == 0 { set.geometry() } else { before };
        assert_eq!(set.geometry_of(id(place), None), expected);
    }
}
