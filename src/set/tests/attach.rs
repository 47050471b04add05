//! What an attach would do, and does.

use super::*;
use crate::set::copy::CopyKind;
use crate::set::event::{BitmapChange, CopyEnd};
use crate::set::record::HomeChange;
use crate::set::said::Said;
use crate::set::scb::Ancestry;

fn kind(set: &ShadowSet, attach: &Attach) -> Result<CopyKind, Code> {
    let plan = set.plan_attach(attach);
    plan.map(|plan| plan.kind).map_err(|refusal| refusal.code)
}

/// A set whose second member is detached, with three regions written since.
fn away() -> ShadowSet {
    let mut set = set(3);
    let effects = detach(&mut set, "m2", Policy::Minicopy);
    write(&effects, Regions::run(4, 7));
    set
}

#[test]
fn an_image_that_was_never_the_member_is_overwritten_only_when_blank_or_confirmed() {
    let set = away();
    let foreign = |blank, confirm| Attach {
        foreign: true,
        changed: Some(named("it is another image")),
        blank,
        confirm,
        ..returning(1, AttachPolicy::default())
    };
    assert_eq!(kind(&set, &foreign(false, false)), Err(Code::NeedsConfirm));
    assert_eq!(kind(&set, &foreign(true, false)), Ok(CopyKind::Full));
    assert_eq!(kind(&set, &foreign(false, true)), Ok(CopyKind::Full));
}

#[test]
fn a_copy_reads_the_source_that_was_named() {
    let mut set = away();
    let mut attach_it = |source: Option<&str>| {
        let source = source.map(named);
        let attach_of = returning(1, AttachPolicy::Minicopy);
        copies(attach(
            &mut set,
            Attach {
                source,
                ..attach_of
            },
        ))
    };
    let works = attach_it(Some("m3"));
    assert_eq!(works[0].from(), Some(id(2)));
    let operation = &set.operations()[0];
    assert_eq!(operation.source(), Some(id(2)));
    let mut other = away();
    let works = copies(attach(&mut other, returning(1, AttachPolicy::Minicopy)));
    assert_eq!(works[0].from(), None, "the cheapest");
}

#[test]
fn a_minicopy_is_of_what_was_written_since() {
    let mut set = away();
    let plan = set.plan_attach(&returning(1, AttachPolicy::Nocopy));
    assert_eq!(code(plan), Code::NeedsCopy);
    let plan = set.plan_attach(&returning(1, AttachPolicy::Minicopy));
    let plan = plan.expect("a bitmap");
    assert_eq!((plan.bytes, plan.extents), (3 * REGION, 1));
    assert_eq!((set.has_departed(), set.departed_bits()), (true, 3));
    let effects = attach(&mut set, returning(1, AttachPolicy::Minicopy));
    assert_eq!((set.has_departed(), set.departed_bits()), (false, 0));
    let works = copies(effects);
    let op = works[0].op();
    assert_eq!(set.progress_of(op), Some((0, 3 * REGION)));
    works[0].progress().pass(REGION, 0);
    assert_eq!(set.progress_of(op), Some((REGION, 3 * REGION)));
    assert_eq!(set.progress_of(crate::set::copy::OpId(op.0 + 1)), None);
}

#[test]
fn the_block_of_who_left_is_of_a_later_generation_and_says_that_it_has_left() {
    let set = away();
    let left = set.members()[1].state.departed().and_then(|d| d.tag);
    let left = left.expect("a bitmap").generation;
    let said = |generation: u64| Said {
        generation: Generation::from_number(generation).expect("not zero"),
        has_left: true,
        unit: Bytes(UNIT),
        ancestry: Ancestry::Ancestor,
    };
    assert!(set.is_who_left(id(1), said(left + 1)));
    assert!(!set.is_who_left(id(1), said(left)), "an older image");
    let mut bare = super::set(2);
    let _ = detach(&mut bare, "m2", Policy::Full);
    assert!(!bare.is_who_left(id(1), said(99)), "no bitmap tells of it");
}

/// Each cause of another copy than a minicopy, and each policy.
#[test]
fn what_fills_a_member_that_comes_back() {
    let set = away();
    let with = |policy, changed: bool| Attach {
        changed: changed.then(|| named("its samples differ")),
        ..returning(1, policy)
    };
    use AttachPolicy::{Compare, Full, Minicopy, MinicopyOptional, Nocopy};
    for (policy, as_it_left, changed) in [
        (Minicopy, Ok(CopyKind::Mini), Err(Code::ImageChanged)),
        (MinicopyOptional, Ok(CopyKind::Mini), Ok(CopyKind::Compare)),
        (Compare, Ok(CopyKind::Compare), Ok(CopyKind::Compare)),
        (Full, Ok(CopyKind::Full), Ok(CopyKind::Full)),
        (Nocopy, Err(Code::NeedsCopy), Err(Code::NeedsCopy)),
    ] {
        assert_eq!(kind(&set, &with(policy, false)), as_it_left, "{policy:?}");
        assert_eq!(kind(&set, &with(policy, true)), changed, "{policy:?}");
    }
    let mut bare = super::set(2);
    let _ = detach(&mut bare, "m2", Policy::Full);
    assert_eq!(kind(&bare, &with(Minicopy, false)), Err(Code::NoBitmap));
    assert_eq!(
        kind(&bare, &with(MinicopyOptional, false)),
        Ok(CopyKind::Full)
    );
    let mut idle = super::set(2);
    let _ = detach(&mut idle, "m2", Policy::Minicopy);
    assert_eq!(
        kind(&idle, &with(Nocopy, false)),
        Ok(CopyKind::Mini),
        "nothing to copy"
    );
    let small = Attach {
        size: Bytes(UNIT - 512),
        ..with(MinicopyOptional, false)
    };
    assert_eq!(kind(&idle, &small), Err(Code::MemberTooSmall));
}

/// It may hold other bytes than it was given: its bitmap does not tell all.
#[test]
fn who_left_by_an_error_of_its_medium_is_compared_unless_a_minicopy_is_asked_for() {
    let mut set = set(2);
    let failure = crate::set::event::Failure {
        range: Some(geometry().whole()),
        good: only(0),
        failed: only(1),
        media: only(1),
        epoch: Epoch(1),
        causes: Vec::new(),
    };
    let _ = run(&mut set, Event::Failed(Ticket::new(1), failure));
    let early = returning(1, AttachPolicy::default());
    assert_eq!(kind(&set, &early), Err(Code::InUse), "calls are under way");
    let _ = run(&mut set, Event::Quiet(id(1)));
    assert_eq!(kind(&set, &early), Ok(CopyKind::Compare));
    let forced = returning(1, AttachPolicy::Minicopy);
    assert_eq!(kind(&set, &forced), Ok(CopyKind::Mini));
}

#[test]
fn a_dry_run_tells_what_would_be_copied_and_for_how_long() {
    let set = away();
    let would = |policy, expected: &[(CopyKind, u64)]| {
        let attach = Command::Attach(Box::new(returning(1, policy)));
        let answer = set.dry_run(attach, expected).expect("it may");
        ["verdict", "bytes", "extents", "eta"].map(|key| fact(&answer, key).to_owned())
    };
    let mini = would(AttachPolicy::Minicopy, &[(CopyKind::Mini, REGION)]);
    assert_eq!(mini, ["minicopy", "12288", "1", "3"]);
    let full = would(AttachPolicy::Full, &[]);
    assert_eq!(full, ["full", "1048576", "1", "-"]);
    assert_eq!(would(AttachPolicy::Compare, &[])[0], "compare");
}

#[test]
fn a_bitmap_that_is_not_used_is_forgotten_and_all_is_copied() {
    let mut set = away();
    let tag = set.members()[1].state.departed().and_then(|d| d.tag);
    let number = tag.expect("a bitmap").id;
    let effects = attach(&mut set, returning(1, AttachPolicy::Full));
    let forgets = |e: &Effect| matches!(e, Effect::Home(HomeChange::Forget(id)) if *id == number);
    assert!(effects.iter().any(forgets), "{effects:?}");
    let ended =
        |n: &&Notice| matches!(n, Notice::Bitmap(id, _, BitmapChange::Deleted(_)) if *id == number);
    assert!(notices(&effects).iter().any(ended));
    assert_eq!(copies(effects)[0].progress().total_bytes(), UNIT);
}

#[test]
fn who_is_still_leaving_can_neither_come_back_nor_be_released() {
    let refuses = |set: &ShadowSet| {
        let policy = AttachPolicy::default();
        assert_eq!(kind(set, &returning(1, policy)), Err(Code::InUse));
        let released = set.dry_run(
            Command::Release {
                member: named("m2"),
            },
            &[],
        );
        assert_eq!(code(released), Code::InUse);
        let grows = set.dry_run(
            Command::Resize {
                size: None,
                room: vec![],
            },
            &[],
        );
        let _ = grows.expect_err("not now");
    };
    // Behind its cut.
    let mut set = set(2);
    let policy = Policy::Minicopy;
    let member = named("m2");
    let effects = set.handle(Moment(1), command(Command::Detach { member, policy }));
    let Some(Effect::Flush(flush, _)) = effects.last() else {
        unreachable!("a flush first");
    };
    let none = MemberSet::EMPTY;
    let _ = set.handle(Moment(1), Event::Flushed(*flush, none, none));
    let _ = set.handle(Moment(1), Event::TimedOut(7));
    let departed = set.members()[1].state.departed();
    assert!(departed.is_some(), "leaving");
    assert!(set.attachable(id(1)).is_err());
    // Expelled, with requests under way that still hold the View with it.
    let mut set = super::set(2);
    let _ = set.handle(
        Moment(1),
        command(Command::Expel {
            member: named("m2"),
        }),
    );
    refuses(&set);
    // Expelled, and a copy step of it under way.
    let mut set = away();
    let works = copies(attach(&mut set, returning(1, AttachPolicy::Minicopy)));
    let _ = expel(&mut set, "m2");
    let _ = run(&mut set, Event::Quiet(id(1)));
    refuses(&set);
    for work in works {
        let _ = run(&mut set, Event::CopyEnded(Box::new(work), CopyEnd::Stopped));
    }
    let back = returning(1, AttachPolicy::default());
    assert_eq!(kind(&set, &back), Ok(CopyKind::Mini));
}

#[test]
fn a_hint_ends_a_copy_and_never_a_merge() {
    let hint = |set: &ShadowSet, name: &str| {
        let release = Command::Release {
            member: named(name),
        };
        let refusal = set.dry_run(release, &[]).expect_err("it takes part");
        refusal.hint().to_owned()
    };
    let mut set = away();
    assert!(hint(&set, "m1").contains("detach m1"));
    let _ = attach(&mut set, returning(1, AttachPolicy::Minicopy));
    assert!(hint(&set, "m2").contains("cancel 1"));
    let mut merging = super::set(2);
    let _ = give(&mut merging, Command::Merge { full: true });
    assert!(hint(&merging, "m2").contains("detach m2"));
}

/// A disk that hangs is released and another one taken in its stead: by their place its calls would be those of the new one,
/// which would count as silent.
#[test]
fn the_place_of_a_released_member_is_free_when_its_calls_have_returned() {
    let release = |set: &mut ShadowSet, name: &str| {
        let _ = run(set, Event::GivenUp(id(1), "it hangs".into()));
        let _ = give(
            set,
            Command::Release {
                member: named(name),
            },
        );
    };
    let mut set = set(2);
    release(&mut set, "m2");
    assert_eq!(set.free_place(), Some(id(2)));
    let _ = run(&mut set, Event::Quiet(id(1)));
    assert_eq!(set.free_place(), Some(id(1)));
    let mut all = super::set(6);
    release(&mut all, "m2");
    let refusal = all.plan_attach(&new_image("m7")).expect_err("no place");
    assert_eq!(refusal.code, Code::InUse);
    assert!(refusal.text.contains("m2, which was released"), "{refusal}");
    let _ = run(&mut all, Event::Quiet(id(1)));
    assert!(all.plan_attach(&new_image("m7")).is_ok());
}

/// It was read before all others, and is the slow one as often as not.
#[test]
fn a_new_member_costs_as_much_to_read_as_one_that_is_configured() {
    let mut set = set(2);
    let _ = attach(&mut set, new_image("m3"));
    assert_eq!(set.members()[2].read_cost, crate::set::READ_COST);
}

#[test]
fn a_new_member_gets_the_first_free_place_and_a_released_one_is_in_no_table() {
    let mut set = set(2);
    assert_eq!(set.free_place(), Some(id(2)));
    assert_eq!(super::set(6).free_place(), None);
    let _ = detach(&mut set, "m2", Policy::Full);
    let _ = give(
        &mut set,
        Command::Release {
            member: named("m2"),
        },
    );
    assert_eq!(set.free_place(), Some(id(1)));
    let names = |set: &ShadowSet| {
        set.table()
            .into_iter()
            .map(|row| row.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&set), ["m1"]);
    // Configured still, at the next mount.
    let starts = [Start::Source, Start::Released];
    let members = starts.iter().enumerate();
    let members = members.map(|(place, start)| (member(place, UNIT), *start));
    assert_eq!(names(&begun(beginning(), members.collect())), ["m1"]);
}
