//! What is done with time: rotating intent, noting what copies have drained, and what of it waits.

use super::*;
use crate::set::record::{BitmapKind, HomeChange};

fn rotates(effects: &[Effect]) -> bool {
    let anew = |n: &&Notice| matches!(n, Notice::IntentAnew(_));
    notices(effects).iter().any(anew)
}

fn retained(effects: &[Effect]) -> Vec<(u32, u64)> {
    let left = |e: &Effect| match e {
        Effect::Home(HomeChange::Retain(map)) => Some((map.id().0, map.count())),
        _ => None,
    };
    effects.iter().filter_map(left).collect()
}

fn flushes(effects: &[Effect]) -> Vec<MemberSet> {
    let flush = |e: &Effect| match e {
        Effect::Flush(_, members) => Some(*members),
        _ => None,
    };
    effects.iter().filter_map(flush).collect()
}

/// A set of two sources, written somewhere since the last tick.
fn written() -> ShadowSet {
    let mut set = set(3);
    let effects = expel(&mut set, "m3");
    write(&effects, Regions::run(0, 3));
    set
}

#[test]
fn intent_is_not_rotated_while_an_old_one_waits_for_its_flush() {
    let mut set = written();
    let first = set.handle(Moment(1), Event::Tick);
    assert!(rotates(&first));
    let waits = set.handle(Moment(1), Event::Tick);
    assert!(!rotates(&waits), "the requests of its epoch are not over");
    write(&first, Regions::run(5, 6));
    let older = Epoch(view(&first).epoch().0 - 1);
    let effects = set.handle(Moment(1), Event::Retired(older));
    assert_eq!(flushes(&effects), [only(0).or(only(1))]);
    let again = set.handle(Moment(1), Event::Tick);
    assert!(
        !rotates(&again) && flushes(&again).is_empty(),
        "it is under way"
    );
    let forgotten = carry_out(&mut set, effects);
    let forgets = |e: &Effect| matches!(e, Effect::Home(HomeChange::Forget(_)));
    assert!(forgotten.iter().any(forgets));
    assert!(rotates(&run(&mut set, Event::Tick)));
}

#[test]
fn intent_is_not_rotated_while_a_command_is_under_way_or_the_unit_stops() {
    let mut set = written();
    let detach = Command::Detach {
        member: named("m2"),
        policy: Policy::default(),
    };
    let begun = set.handle(Moment(1), command(detach));
    assert!(!rotates(&set.handle(Moment(1), Event::Tick)));
    carry_out(&mut set, begun);
    let mut set = written();
    let _ = set.handle(Moment(1), Event::Shutdown);
    assert!(!rotates(&set.handle(Moment(1), Event::Tick)));
}

/// After a crash a copy goes on where it was: what it had drained is noted now and then, behind a flush.
#[test]
fn what_copies_have_drained_is_noted_for_each_of_them() {
    let mut set = set(3);
    let works = copies(give(&mut set, Command::Merge { full: true }));
    let mut works = works.into_iter();
    let (mut first, mut second) = (works.next().expect("m2"), works.next().expect("m3"));
    for (work, steps) in [(&mut first, 1), (&mut second, 2)] {
        for _ in 0..steps {
            let step = work.next_step(|_| REGION).expect("a region");
            work.finish(step, true);
        }
    }
    let begun = set.handle(Moment(1), Event::Beat);
    assert_eq!(flushes(&begun), [only(1), only(2)]);
    assert!(retained(&begun).is_empty(), "not before the flush");
    let again = set.handle(Moment(1), Event::Beat);
    assert!(flushes(&again).is_empty(), "the last one is under way");
    let noted = retained(&carry_out(&mut set, begun));
    let left = |work: &CopyWork| (work.stale().id().0, work.stale().count());
    assert_eq!(noted, [left(&first), left(&second)]);
    assert_ne!(noted[0].1, noted[1].1);
    let _ = set.handle(Moment(1), Event::Shutdown);
    assert!(flushes(&set.handle(Moment(1), Event::Beat)).is_empty());
}

#[test]
fn bitmaps_are_lost_once() {
    let mut set = set(2);
    let lost = || Event::HomeLost(Refusal::new(Code::Io, "the journal cannot be written"));
    let before = set.generation().number();
    let effects = run(&mut set, lost());
    assert_eq!(
        set.generation().number(),
        before + 2,
        "not believed any more"
    );
    assert!(matches!(notices(&effects)[..], [Notice::HomeLost(_)]));
    assert!(run(&mut set, lost()).is_empty());
    assert_eq!(set.generation().number(), before + 2);
}

/// It cannot be read, so it is of the generation before at best.
#[test]
fn a_member_whose_block_is_unknown_left_a_generation_ago() {
    let mut set = set(2);
    let _ = detach(&mut set, "m2", Policy::Minicopy);
    let effects = run(&mut set, Event::BlocksFailed(vec![(id(1), None)]));
    let described = |e: &Effect| match e {
        Effect::Home(HomeChange::Describe(r)) if r.kind == BitmapKind::Untold => {
            Some(r.tag.generation)
        }
        _ => None,
    };
    let left: Vec<_> = effects.iter().filter_map(described).collect();
    assert_eq!(left, [set.generation().number() - 1]);
}

#[test]
fn a_member_is_tuned_once() {
    use crate::set::event::Tuning;
    let mut set = set(1);
    let mut tune = || {
        let (member, tuning) = (named("m1"), Tuning::Site(3));
        give(&mut set, Command::Tune { member, tuning })
    };
    let first = tune();
    assert_eq!(notices(&first), [&Notice::Tuned(named("m1"), "site", 0, 3)]);
    assert_eq!(view(&first).seats()[0].site, 3);
    let second = tune();
    assert!(notices(&second).is_empty());
    assert_eq!(fact(&good(second), "old"), "3");
}
