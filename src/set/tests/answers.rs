//! What commands do at once, and what they answer.

use super::*;
use crate::set::copy::{CopyKind, OpId, UNLIMITED};
use crate::set::event::Failure;
use crate::set::member::Returns;
use crate::set::record::{BitmapKind, HomeChange};
use crate::set::stall::StallEnd;

#[test]
fn a_set_is_closed_for_minicopies_only_when_a_member_could_come_back_later() {
    let may = |set: &ShadowSet, policy| set.may_dissolve(policy).map_err(|r| r.code);
    let answer = set(1).may_dissolve(Policy::MinicopyOptional);
    assert_eq!(fact(&answer.expect("it may"), "verdict"), "dissolve");
    assert_eq!(may(&set(1), Policy::Minicopy), Err(Code::LastSource));
    let mut two = set(2);
    assert!(may(&two, Policy::Minicopy).is_ok());
    let _ = give(&mut two, Command::Merge { full: true });
    assert_eq!(may(&two, Policy::Minicopy), Err(Code::MergePending));
    assert!(may(&two, Policy::Full).is_ok());
    let _ = two.handle(Moment(1), Event::Shutdown);
    assert_eq!(may(&two, Policy::Full), Err(Code::StateChanged));
}

#[test]
fn errors_are_counted_until_they_are_reset() {
    let mut set = set(2);
    for _ in 0..2 {
        let _ = run(&mut set, Event::ReadFailed(id(1)));
    }
    let errors = |set: &ShadowSet| set.status().members.iter().map(|m| m.errors).sum::<u64>();
    assert_eq!((set.status().members[1].errors, errors(&set)), (2, 2));
    let effects = give(&mut set, Command::ResetCounters);
    assert_eq!(notices(&effects), [&Notice::CountersReset]);
    let _ = good(effects);
    assert_eq!(errors(&set), 0);
}

#[test]
fn a_rate_of_an_operation_is_told_with_the_one_before() {
    let mut set = set(2);
    let mut works = copies(give(&mut set, Command::Merge { full: true }));
    let (op, progress) = (works[0].op(), works.remove(0).progress());
    assert_eq!(progress.rate_max(), UNLIMITED);
    let mut limit = |rate| give(&mut set, Command::Limit { op, rate });
    let effects = limit(4096);
    assert_eq!(notices(&effects), [&Notice::Limited(op, UNLIMITED, 4096)]);
    let answer = good(effects);
    assert_eq!(
        (fact(&answer, "value"), fact(&answer, "old")),
        ("4096", "max")
    );
    assert_eq!(progress.rate_max(), 4096);
    let again = limit(4096);
    assert!(notices(&again).is_empty(), "nothing has changed");
    assert_eq!(fact(&good(again), "old"), "4096");
    assert_eq!(fact(&good(limit(UNLIMITED)), "value"), "max");
    assert_eq!(progress.rate_max(), UNLIMITED);
}

#[test]
fn what_the_member_answered_is_why_it_was_expelled() {
    let mut set = set(3);
    let failure = |range| Failure {
        range,
        good: only(0),
        failed: only(1),
        media: MemberSet::EMPTY,
        epoch: Epoch(1),
        causes: vec![(id(0), named("fine")), (id(1), named("no room"))],
    };
    let write = Some(geometry().whole());
    let _ = run(&mut set, Event::Failed(Ticket::new(1), failure(write)));
    assert_eq!(set.members()[1].reason, "a write failed: no room");
    let flush = Failure {
        failed: only(2),
        ..failure(None)
    };
    let _ = run(&mut set, Event::Failed(Ticket::new(2), flush));
    assert_eq!(set.members()[2].reason, "a flush failed");
}

/// The record of its bitmap follows what the own block of a detached member says.
#[test]
fn a_detached_member_is_untold_until_its_block_says_so() {
    let mut set = set(2);
    let _ = detach(&mut set, "m2", Policy::Minicopy);
    let left = set.generation();
    let kinds = |effects: &[Effect]| {
        let kind = |e: &Effect| match e {
            Effect::Home(HomeChange::Describe(r)) if r.owner == member(1, 0).uuid => Some(r.kind),
            _ => None,
        };
        effects.iter().filter_map(kind).collect::<Vec<_>>()
    };
    let told = |set: &ShadowSet| set.members()[1].state.departed().map(|d| d.told);
    assert_eq!(told(&set), Some(true));
    let again = run(&mut set, Event::Told(id(1), left));
    assert!(kinds(&again).is_empty(), "nothing new");
    let before = Generation::from_number(left.number() - 1);
    let failed = Event::BlocksFailed(vec![(id(1), before)]);
    assert_eq!(kinds(&run(&mut set, failed)), [BitmapKind::Untold]);
    assert_eq!(told(&set), Some(false));
    let earlier = before.expect("not the first");
    let late = run(&mut set, Event::Told(id(1), earlier));
    assert!(kinds(&late).is_empty(), "of an earlier departure");
    let effects = run(&mut set, Event::Told(id(1), left));
    assert_eq!(kinds(&effects), [BitmapKind::Departed]);
    assert_eq!(told(&set), Some(true));
}

#[test]
fn an_abort_expels_who_does_not_answer_where_others_do() {
    let mut set = set(2);
    let nobody = refused(give(&mut set, Command::Abort));
    assert_eq!(nobody.code, Code::NotInMountVerify);
    let _ = run(&mut set, Event::Silent(only(1)));
    let effects = give(&mut set, Command::Abort);
    assert!(
        !effects.iter().any(|e| matches!(e, Effect::Abort(_))),
        "what waits goes on with the other"
    );
    let answer = good(effects);
    assert_eq!(answer.text, "expelled: m2");
    assert_eq!(fact(&answer, "members"), "m2");
    assert_eq!(set.members()[1].state.name(), "expelled");
}

#[test]
fn an_abort_expels_nobody_when_no_source_answers() {
    let mut set = set(2);
    let both = only(0).or(only(1));
    let _ = run(&mut set, Event::Silent(both));
    let effects = give(&mut set, Command::Abort);
    let aborts = |e: &Effect| matches!(e, Effect::Abort(who) if *who == both);
    assert!(effects.iter().any(aborts), "{effects:?}");
    let answer = good(effects);
    assert!(answer.text.contains("m1, m2"), "{}", answer.text);
    assert_eq!(fact(&answer, "members"), "m1, m2");
    assert!(set.members().iter().all(|m| m.state.name() == "source"));
}

#[test]
fn a_cancel_of_a_verify_that_waits_too_long_says_so() {
    for (event, code) in [
        (Event::TimedOut(1), Code::TimedOut),
        (Event::Shutdown, Code::StateChanged),
    ] {
        let mut set = set(2);
        let verify = Command::Verify {
            range: None,
            repair: None,
        };
        let op = fact(&good(give(&mut set, verify)), "operation").to_owned();
        let op = OpId(op.parse().expect("a number"));
        let told = run(&mut set, Event::VerifyDiffers(op, 7));
        assert_eq!(notices(&told), [&Notice::VerifyDiffers(op, 7)]);
        assert!(answers(give(&mut set, Command::Cancel(op))).is_empty());
        let refusal = refused(set.handle(Moment(1), event));
        assert_eq!(refusal.code, code);
    }
}

#[test]
fn a_stall_that_is_not_reached_ends_for_the_cause_that_ended_it() {
    for (end, code) in [
        (StallEnd::Stop, Code::StateChanged),
        (StallEnd::Time, Code::TimedOut),
    ] {
        let mut set = set(1);
        let waits = set.handle(Moment(1), command(Command::Stall { seconds: 9 }));
        assert!(answers(waits).is_empty(), "requests are under way");
        let effects = set.handle(Moment(1), Event::StallOver(end));
        assert_eq!(notices(&effects), [&Notice::Unstalled(end)]);
        assert_eq!(refused(effects).code, code);
        assert!(!set.is_stalled());
    }
}

#[test]
fn who_was_too_slow_comes_back_when_it_is_fast_and_who_was_expelled_by_command_does_not() {
    let mut set = set(3);
    let returns = |set: &ShadowSet, place: usize| {
        let departed = set.members()[place].state.departed();
        departed.map(|d| (d.returns, d.called))
    };
    let _ = run(&mut set, Event::TooSlow(id(1)));
    assert_eq!(returns(&set, 1), Some((Returns::WhenFast, true)));
    let _ = run(&mut set, Event::Quiet(id(1)));
    assert_eq!(returns(&set, 1), Some((Returns::WhenFast, false)));
    let _ = expel(&mut set, "m3");
    assert_eq!(returns(&set, 2), Some((Returns::Never, true)));
}

#[test]
fn sixteen_ended_operations_are_remembered_and_the_oldest_is_forgotten_first() {
    let mut set = set(2);
    for n in 1..=20 {
        let verify = Command::Verify {
            range: None,
            repair: None,
        };
        let _ = give(&mut set, verify);
        let _ = run(&mut set, Event::VerifyEnded(OpId(n), true));
    }
    let kept: Vec<_> = set.operations().iter().map(|o| o.id.0).collect();
    assert_eq!(kept, (5..=20).collect::<Vec<_>>());
}

#[test]
fn a_copy_takes_as_long_as_what_was_measured_of_its_like() {
    let measured = [(CopyKind::Full, 100), (CopyKind::Merge, 0)];
    assert_eq!(CopyKind::Full.eta(250, &measured), Some(3));
    assert_eq!(
        CopyKind::Mini.eta(200, &measured),
        Some(2),
        "as a full copy"
    );
    assert_eq!(
        CopyKind::Merge.eta(200, &measured),
        None,
        "nothing was moved"
    );
    assert_eq!(CopyKind::Compare.eta(200, &measured), None);
    let both = [(CopyKind::Full, 100), (CopyKind::Mini, 10)];
    assert_eq!(CopyKind::Mini.eta(200, &both), Some(20), "its own first");
}

#[test]
fn a_merge_fills_all_other_sources_each_by_its_own_operation() {
    let mut set = set(3);
    let would = set.dry_run(Command::Merge { full: true }, &[]);
    assert_eq!(fact(&would.expect("it may"), "verdict"), "merge");
    let answer = good(give(&mut set, Command::Merge { full: true }));
    assert_eq!(fact(&answer, "operations"), "1 2");
    assert_eq!(fact(&answer, "bytes"), UNIT.to_string());
    let targets: Vec<_> = set.operations().iter().map(|o| o.target()).collect();
    assert_eq!(targets, [Some(id(1)), Some(id(2))]);
    assert_eq!(set.status().members[2].state, "merging");
}

/// The manual's order.
#[test]
fn copies_start_by_their_kind_and_then_in_their_order() {
    use CopyKind::{Compare, Full, Merge, Mini, Minimerge};
    let mut kinds = [Merge, Full, Mini, Compare, Minimerge];
    kinds.sort_by_key(|kind| kind.turn());
    assert_eq!(kinds, [Minimerge, Mini, Compare, Full, Merge]);
    let merges = kinds.map(CopyKind::is_merge);
    assert_eq!(merges, [true, false, false, false, true]);
    let compares = kinds.map(CopyKind::compares);
    assert_eq!(compares, [true, false, true, false, true]);
}
