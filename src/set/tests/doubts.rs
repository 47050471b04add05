//! What a flush that fails everywhere, or a merge, makes of copies that are under way.

use super::*;
use crate::set::copy::CopyKind;
use crate::set::event::{CopyEnd, Failure};
use crate::set::operation::OpState;
use crate::set::record::HomeChange;

/// An application has written; none of the sources could be flushed.
fn flush_fails(set: &ShadowSet, sources: MemberSet) -> Event {
    let failure = Failure {
        range: None,
        good: MemberSet::EMPTY,
        failed: sources,
        media: MemberSet::EMPTY,
        epoch: set.epoch,
        causes: Vec::new(),
    };
    Event::Failed(Ticket::new(9), failure)
}

/// Two sources, and the copy to a third.
fn copying() -> (ShadowSet, CopyWork) {
    let mut set = set(2);
    let effects = attach(&mut set, new_image("m3"));
    let work = copies(effects).remove(0);
    (set, work)
}

/// A flush that the set has asked for with this event, well ended.
fn last_flush(set: &mut ShadowSet, effects: &[Effect]) -> Vec<Effect> {
    let asked = |e: &Effect| match e {
        Effect::Flush(id, _) => Some(*id),
        _ => None,
    };
    let id = effects.iter().rev().find_map(asked).expect("a flush");
    let none = MemberSet::EMPTY;
    set.handle(Moment(1), Event::Flushed(id, none, none))
}

/// A step had read what the source's disk never got, and cleared the bits behind the verdict.
#[test]
fn a_step_under_way_leaves_what_came_into_doubt_since_it_has_read() {
    let (mut set, mut work) = copying();
    let doubted = Regions::run(3, 4);
    set.intent.mark(doubted);
    let step = work.next_step(|_| UNIT).expect("a step");
    let before = set.epoch;
    let event = flush_fails(&set, only(0).or(only(1)));
    let effects = set.handle(Moment(1), event);
    assert!(effects.iter().any(|e| matches!(e, Effect::Publish(_))));
    let stale = work.stale();
    work.finish(step, true);
    assert!(work.is_drained(), "its bits as well");
    // It comes to no end before.
    let ended = set.handle(
        Moment(1),
        Event::CopyEnded(Box::new(work), CopyEnd::Drained),
    );
    let promoted = last_flush(&mut set, &ended);
    assert_eq!(set.members()[2].state.name(), "copy-target");
    assert!(copies(promoted).is_empty(), "it waits");
    let effects = set.handle(Moment(1), Event::Retired(before));
    assert!(stale.covers(doubted));
    let durable = |e: &Effect| match e {
        Effect::Home(HomeChange::Absorb(id, map)) => *id == stale.id() && map.covers(doubted),
        _ => false,
    };
    assert!(effects.iter().any(durable));
    let goes_on = |work: &CopyWork| work.stale().id() == stale.id();
    assert!(copies(effects).iter().any(goes_on));
}

/// What was drained is noted as durable when no such step is under way.
#[test]
fn nothing_is_noted_as_drained_while_a_doubt_stands() {
    let (mut set, _work) = copying();
    set.intent.mark(Regions::run(3, 4));
    let before = set.epoch;
    let event = flush_fails(&set, only(0).or(only(1)));
    let _ = set.handle(Moment(1), event);
    let notes = |effects: Vec<Effect>| {
        let of_m3 = |e: &Effect| matches!(e, Effect::Flush(_, m) if *m == only(2));
        effects.iter().any(of_m3)
    };
    assert!(!notes(set.handle(Moment(1), Event::Beat)));
    let _ = set.handle(Moment(1), Event::Retired(before));
    assert!(notes(set.handle(Moment(1), Event::Beat)));
}

/// A copy had read from a member that a merge then corrected, and brought the wrong contents back.
#[test]
fn a_merge_has_copies_begin_anew() {
    let (mut set, mut work) = copying();
    let step = work.next_step(|_| UNIT / 2).expect("a step");
    work.finish(step, true);
    let under_way = work.next_step(|_| UNIT / 4).expect("a step");
    let (stale, before) = (work.stale(), set.epoch);
    let _ = set.handle(Moment(1), command(Command::Merge { full: true }));
    assert_eq!(stale.count(), geometry().regions());
    work.finish(under_way, true);
    let _ = set.handle(Moment(1), Event::Retired(before));
    assert_eq!(stale.count(), geometry().regions());
}

/// An image that has left is what it is: no bitmap of it becomes one of everything.
#[test]
fn a_merge_leaves_bitmaps_of_who_is_away_alone() {
    let mut set = set(3);
    let _ = detach(&mut set, "m3", Policy::Minicopy);
    let _ = give(&mut set, Command::Merge { full: true });
    let marks = set.members()[2].state.departed().and_then(|d| d.marks());
    assert_eq!(marks.expect("a bitmap").count(), 0);
}

/// It was copied in full, and what could return by itself did not.
#[test]
fn who_is_expelled_while_another_one_is_merged_has_a_bitmap() {
    let starts = [Start::Source, Start::Source, Start::StillMerging];
    let members = starts.iter().enumerate();
    let members = members.map(|(place, start)| (member(place, UNIT), *start));
    let mut set = begun(beginning(), members.collect());
    let _ = run(&mut set, Event::GivenUp(id(1), "silent".to_owned()));
    let _ = run(&mut set, Event::Quiet(id(1)));
    let plan = set.plan_attach(&returning(1, AttachPolicy::Minicopy));
    assert_eq!(plan.expect("by its bitmap").kind, CopyKind::Mini);
}

/// The command was answered while the copy was flushed for the last time, as it seemed.
#[test]
fn a_copy_that_is_paused_stays_so_when_it_has_to_go_on() {
    let (mut set, mut work) = copying();
    let op = work.op();
    let step = work.next_step(|_| UNIT).expect("a step");
    work.finish(step, true);
    let stale = work.stale();
    let ended = set.handle(
        Moment(1),
        Event::CopyEnded(Box::new(work), CopyEnd::Drained),
    );
    let _ = set.handle(Moment(1), command(Command::Pause(op)));
    stale.mark(Regions::run(3, 4));
    let effects = last_flush(&mut set, &ended);
    let held = |e: &Effect| matches!(e, Effect::PauseCopy(o) if *o == op);
    assert!(effects.iter().any(held));
    assert!(
        set.operations
            .iter()
            .any(|o| o.id == op && o.state == OpState::Paused)
    );
}
