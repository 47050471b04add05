//! Stalls and verifies: what they wait for, and what is said of them.

use super::*;
use crate::set::event::{CopyEnd, FlushId};
use crate::set::findings::Repair;
use crate::set::operation::OpState;
use crate::set::stall::StallEnd;
use crate::set::verify::{RepairBy, VerifyWork};

fn stall(set: &mut ShadowSet, seconds: u64) -> Vec<Effect> {
    give(set, Command::Stall { seconds })
}

/// Of those that are asked for: one that lets go of old bitmaps may follow.
fn first_flush(effects: &[Effect]) -> FlushId {
    let flush = |e: &Effect| match e {
        Effect::Flush(id, _) => Some(*id),
        _ => None,
    };
    effects.iter().find_map(flush).expect("a flush")
}

#[test]
fn a_stall_is_answered_when_what_was_under_way_is_over_and_flushed() {
    let mut set = set(2);
    let begun = set.handle(Moment(1), command(Command::Stall { seconds: 9 }));
    assert!(matches!(begun[0], Effect::Stall(9)), "changes wait first");
    let quiet = |e: &[Effect]| notices(e).contains(&&Notice::Stalled(9));
    assert!(!quiet(&begun) && !begun.iter().any(|e| matches!(e, Effect::Flush(..))));
    let older = Epoch(view(&begun).epoch().0 - 1);
    let flushes = set.handle(Moment(1), Event::Retired(older));
    assert!(!quiet(&flushes) && answers(Vec::new()).is_empty());
    let effects = carry_out(&mut set, flushes);
    assert!(quiet(&effects));
    let answer = good(effects);
    let facts = ["seconds", "quiet", "written"].map(|key| fact(&answer, key));
    assert_eq!(facts, ["9", "m1 m2", ""]);
    assert!(answer.text.contains("m1, m2") && set.is_stalled());
    let again = stall(&mut set, 5);
    assert!(matches!(again[0], Effect::Stall(5)), "its time begins anew");
    assert_eq!(notices(&again), [&Notice::Stalled(5)]);
    assert_eq!(fact(&good(again), "seconds"), "5");
    let ended = give(&mut set, Command::Unstall);
    assert!(ended.iter().any(|e| matches!(e, Effect::Unstall)));
    assert_eq!(notices(&ended), [&Notice::Unstalled(StallEnd::Command)]);
    assert_eq!(good(ended).text, "changes go on");
    assert_eq!(
        refused(give(&mut set, Command::Unstall)).code,
        Code::StateChanged
    );
}

#[test]
fn a_stall_names_who_is_still_written_by_copies() {
    let mut set = set(2);
    let _ = give(&mut set, Command::Merge { full: true });
    let answer = good(stall(&mut set, 9));
    assert_eq!(
        (fact(&answer, "quiet"), fact(&answer, "written")),
        ("m1", "m2")
    );
    assert!(answer.text.ends_with("still written by copies: m2"));
}

/// What a copy wrote into it last may be behind the flush of the stall.
#[test]
fn who_becomes_a_source_during_the_flush_of_a_stall_is_flushed_once_more() {
    let mut set = set(2);
    let none = MemberSet::EMPTY;
    let work = copies(give(&mut set, Command::Merge { full: false })).remove(0);
    let ended = set.handle(
        Moment(1),
        Event::CopyEnded(Box::new(work), CopyEnd::Drained),
    );
    let promotes = first_flush(&ended);
    let begun = set.handle(Moment(1), command(Command::Stall { seconds: 9 }));
    let older = Epoch(view(&begun).epoch().0 - 1);
    let stalls = set.handle(Moment(1), Event::Retired(older));
    let stalls = first_flush(&stalls);
    let _ = set.handle(Moment(1), Event::Flushed(promotes, none, none));
    let effects = set.handle(Moment(1), Event::Flushed(stalls, none, none));
    let again = first_flush(&effects);
    assert!(answers(effects).is_empty(), "m2 may not be flushed");
    let effects = set.handle(Moment(1), Event::Flushed(again, none, none));
    assert_eq!(fact(&good(effects), "quiet"), "m1 m2");
}

#[test]
fn a_flush_of_a_stall_that_was_given_up_makes_no_other_one_quiet() {
    let mut set = set(1);
    let mut begin = |number| {
        let stall = Command::Stall { seconds: 9 };
        let begun = set.handle(Moment(1), Event::Command(Ticket::new(number), stall));
        let older = Epoch(view(&begun).epoch().0 - 1);
        let effects = set.handle(Moment(1), Event::Retired(older));
        let first = first_flush(&effects);
        if number == 1 {
            let effects = set.handle(Moment(1), Event::TimedOut(1));
            assert_eq!(refused(effects).code, Code::TimedOut);
        }
        first
    };
    let (first, second) = (begin(1), begin(2));
    let none = MemberSet::EMPTY;
    let late = set.handle(Moment(1), Event::Flushed(first, none, none));
    assert!(answers(late).is_empty(), "of the first one");
    let failed = set.handle(Moment(1), Event::Flushed(second, only(0), none));
    assert!(notices(&failed).contains(&&Notice::Unstalled(StallEnd::Failed)));
    assert_eq!(refused(failed).code, Code::Io);
}

fn verify(set: &mut ShadowSet, range: Option<(u64, u64)>, repair: Option<RepairBy>) -> VerifyWork {
    let effects = give(set, Command::Verify { range, repair });
    let work = effects.into_iter().find_map(|e| match e {
        Effect::StartVerify(work) => Some(*work),
        _ => None,
    });
    work.expect("it runs")
}

#[test]
fn a_verify_is_of_the_blocks_from_the_first_to_the_last() {
    let blocks = UNIT / 512;
    for (range, bytes) in [
        (None, (0, UNIT)),
        (Some((0, blocks - 1)), (0, UNIT)),
        (Some((7, 7)), (7 * 512, 8 * 512)),
        (Some((3, 10)), (3 * 512, 11 * 512)),
    ] {
        let work = verify(&mut set(2), range, None);
        assert_eq!(work.next_step(|_| UNIT), Some(bytes));
        assert_eq!(work.progress().fence_block(), bytes.0 / 512);
        assert_eq!(work.progress().total_bytes(), bytes.1 - bytes.0);
        assert_eq!(work.repair(), None);
    }
    for wrong in [(2, 1), (0, blocks), (blocks, blocks)] {
        let range = Some(wrong);
        let repair = None;
        let refusal = set(2).dry_run(Command::Verify { range, repair }, &[]);
        let refusal = refusal.expect_err("no range of it");
        assert_eq!(refusal.code, Code::OutOfRange);
        assert!(refusal.hint().contains("0-2047"), "{}", refusal.hint());
    }
    let named_source = Some(RepairBy::Member(named("m2")));
    let work = verify(&mut set(2), None, named_source);
    assert_eq!(work.repair(), Some(Repair::From(id(1))));
}

#[test]
fn a_verify_that_is_about_to_end_is_not_cancelled() {
    let mut set = set(2);
    let op = verify(&mut set, None, None).op();
    let _ = expel(&mut set, "m2");
    assert_eq!(
        set.status().operation(op).map(|o| o.state),
        Some(OpState::Running)
    );
    let refusal = refused(give(&mut set, Command::Cancel(op)));
    assert_eq!(refusal.code, Code::StateChanged);
    assert!(refusal.text.contains("its last step"), "{refusal:?}");
}
