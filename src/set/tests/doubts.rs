//! What a flush that fails everywhere, or a merge, makes of copies that are under way.

use std::sync::Arc;

use super::*;
use crate::set::copy::CopyKind;
use crate::set::event::{CopyEnd, Failure};
use crate::set::member::Departed;
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
pub(super) fn copying() -> (ShadowSet, CopyWork) {
    let mut set = set(2);
    let effects = attach(&mut set, new_image("m3"));
    let work = copies(effects).remove(0);
    (set, work)
}

/// The epochs before this one that are not over.
pub(super) fn older(set: &ShadowSet) -> Vec<Epoch> {
    let older = set.live.iter().copied();
    older.filter(|epoch| *epoch < set.epoch).collect()
}

fn last_flush(set: &mut ShadowSet, effects: &[Effect]) -> Vec<Effect> {
    let done = Event::Flushed(flush_of(effects), MemberSet::EMPTY, MemberSet::EMPTY);
    set.handle(Moment(1), done)
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

/// A member that such a step had merged answered reads with what was lost, until it was merged once more.
#[test]
fn reads_merge_what_is_in_doubt() {
    let mut set = set(2);
    let mut work = copies(give(&mut set, Command::Merge { full: true })).remove(0);
    let doubted = Regions::run(3, 4);
    let range = geometry().bytes_of(doubted);
    set.intent.mark(doubted);
    let step = work.next_step(|_| UNIT).expect("a step");
    let before = set.epoch;
    let event = flush_fails(&set, only(0).or(only(1)));
    let effects = set.handle(Moment(1), event);
    work.finish(step, true);
    assert_eq!(view(&effects).readers(range), only(0));
    assert!(view(&effects).unmerged(range).is_some());
    let elsewhere = geometry().bytes_of(Regions::run(5, 6));
    assert!(view(&effects).unmerged(elsewhere).is_none());
    assert_eq!(view(&effects).readers(elsewhere), only(0).or(only(1)));
    let effects = set.handle(Moment(1), Event::Retired(before));
    let step = view(&effects).unmerged(range).expect("stale once more");
    view(&effects).merged(step, only(1));
    assert!(view(&effects).unmerged(range).is_none(), "no doubt is left");
}

/// A call that did not return kept a bitmap of the whole unit for each flush that failed meanwhile.
#[test]
fn flushes_that_fail_behind_each_other_leave_one_doubt() {
    let (mut set, work) = copying();
    let (stale, both) = (work.stale(), only(0).or(only(1)));
    let regions = [Regions::run(3, 4), Regions::run(7, 9)];
    for doubted in regions {
        set.intent.mark(doubted);
        let event = flush_fails(&set, both);
        let _ = set.handle(Moment(1), event);
    }
    stale.clear(geometry().regions_of(geometry().whole()));
    for epoch in older(&set) {
        assert!(stale.is_empty() && set.doubt.is_some(), "the last steps");
        let _ = set.handle(Moment(1), Event::Retired(epoch));
    }
    assert!(regions.iter().all(|run| stale.covers(*run)) && set.doubt.is_none());
}

/// A disk that fills up had lost a write before its flush told of it, and a copy had read that.
#[test]
fn a_copy_lacks_what_a_source_that_is_expelled_may_have_lost() {
    let expulsions: [fn(&mut ShadowSet) -> Vec<Effect>; 4] = [
        |set| {
            let mut event = flush_fails(set, only(0));
            if let Event::Failed(_, failure) = &mut event {
                failure.good = only(1).or(only(2));
            }
            set.handle(Moment(1), event)
        },
        |set| set.handle(Moment(1), Event::GivenUp(id(0), "silent".to_owned())),
        |set| {
            let member = named("m1");
            set.handle(Moment(1), command(Command::Expel { member }))
        },
        |set| {
            let effects = set.handle(Moment(1), Event::Beat);
            let flush = flush_of(&effects);
            set.handle(Moment(1), Event::Flushed(flush, only(0), only(0)))
        },
    ];
    for expelled in expulsions {
        let (mut set, mut work) = copying();
        let (lost, late) = (Regions::run(3, 4), Regions::run(8, 9));
        set.rotate();
        set.intent.mark(lost);
        let intent = Arc::clone(&set.intent);
        let step = work.next_step(|_| UNIT).expect("a step");
        let effects = expelled(&mut set);
        assert_eq!(set.members()[0].state.name(), "expelled");
        assert!(!view(&effects).writers().contains(id(0)));
        let kept = |e: &Effect| matches!(e, Effect::Home(HomeChange::Absorb(map, what)) if *map == work.stale().id() && what.covers(lost));
        assert!(effects.iter().any(kept));
        // By a request that knows nothing yet.
        intent.mark(late);
        let stale = work.stale();
        work.finish(step, true);
        for epoch in older(&set) {
            let _ = set.handle(Moment(1), Event::Retired(epoch));
        }
        assert!(stale.covers(lost) && stale.covers(late));
    }
}

/// A copy reads of such a member as well, where it is equal already.
#[test]
fn a_copy_lacks_what_a_member_that_is_merged_may_have_lost() {
    let (mut set, _) = copying();
    let _ = set.handle(Moment(1), command(Command::Merge { full: true }));
    assert!(set.members()[1].state.is_merging());
    let lost = Regions::run(3, 4);
    let MemberState::Target { phase, .. } = &set.members()[2].state else {
        panic!("a target");
    };
    let stale = phase.stale();
    stale.clear(geometry().regions_of(geometry().whole()));
    set.intent.mark(lost);
    let _ = set.handle(Moment(1), Event::GivenUp(id(1), "silent".to_owned()));
    assert!(stale.covers(lost));
}

/// The flush that let it forget what was being written when it left was good: the source was not asked any more.
#[test]
fn who_leaves_its_copy_lacks_what_the_source_may_have_lost() {
    let (mut set, work) = copying();
    let (op, stale) = (work.op(), work.stale());
    let lost = Regions::run(3, 4);
    set.intent.mark(lost);
    stale.clear(geometry().regions_of(geometry().whole()));
    let _ = set.handle(Moment(1), command(Command::Cancel(op)));
    assert!(set.members()[2].state.is_leaving());
    let _ = set.handle(Moment(1), Event::GivenUp(id(0), "silent".to_owned()));
    assert!(stale.covers(lost));
}

/// It has what it was written itself, and came back by a copy of more than was written since.
#[test]
fn who_leaves_as_a_source_lacks_nothing_that_another_one_may_have_lost() {
    for gone in [true, false] {
        let mut set = set(3);
        if gone {
            let _ = detach(&mut set, "m3", Policy::Minicopy);
            set.intent.mark(Regions::run(3, 4));
        } else {
            let (member, policy) = (named("m3"), Policy::Minicopy);
            set.intent.mark(Regions::run(3, 4));
            let effects = set.handle(Moment(1), command(Command::Detach { member, policy }));
            let flushed = Event::Flushed(flush_of(&effects), MemberSet::EMPTY, MemberSet::EMPTY);
            let _ = set.handle(Moment(1), flushed);
            assert!(set.members()[2].state.is_leaving());
        }
        let _ = set.handle(Moment(1), Event::GivenUp(id(0), "silent".to_owned()));
        assert_eq!(set.members()[0].state.name(), "expelled");
        let marks = set.members()[2].state.departed().and_then(Departed::marks);
        assert_eq!(marks.expect("a bitmap").count(), 0);
        assert!(set.doubt.is_none(), "no copy would wait");
    }
}

/// A source had lost a write by then, and nobody was told until the target was one as well.
#[test]
fn all_are_flushed_before_a_target_becomes_a_source() {
    let (mut set, mut work) = copying();
    let step = work.next_step(|_| UNIT).expect("a step");
    work.finish(step, true);
    let lost = Regions::run(3, 4);
    set.intent.mark(lost);
    let stale = work.stale();
    let drained = Event::CopyEnded(Box::new(work), CopyEnd::Drained);
    let effects = set.handle(Moment(1), drained);
    let all =
        |e: &Effect| matches!(e, Effect::Flush(_, m) if *m == only(0).or(only(1)).or(only(2)));
    assert!(effects.iter().any(all));
    let flush = flush_of(&effects);
    let _ = set.handle(Moment(1), Event::Flushed(flush, only(0), MemberSet::EMPTY));
    assert_eq!(set.members()[0].state.name(), "expelled");
    assert_eq!(set.members()[2].state.name(), "copy-target");
    assert!(stale.covers(lost));
}

/// The last source could be read, and not flushed any more: the copy ended for ever, and each end told all programs of lost writes.
#[test]
fn who_is_filled_takes_over_from_sources_that_cannot_be_flushed() {
    for broken in [false, true] {
        let mut set = set(1);
        let mut work = copies(attach(&mut set, new_image("m2"))).remove(0);
        let step = work.next_step(|_| UNIT).expect("a step");
        work.finish(step, true);
        set.intent.mark(Regions::run(3, 4));
        let drained = Event::CopyEnded(Box::new(work), CopyEnd::Drained);
        let flush = flush_of(&set.handle(Moment(1), drained));
        let failed = match broken {
            true => only(0).or(only(1)),
            false => only(0),
        };
        let effects = set.handle(Moment(1), Event::Flushed(flush, failed, MemberSet::EMPTY));
        let told = |e: &Effect| matches!(e, Effect::FlushLost);
        assert!(effects.iter().any(told));
        let states = set.members().iter().map(|m| m.state.name());
        let wanted = match broken {
            true => ["source", "expelled"],
            false => ["expelled", "source"],
        };
        assert_eq!(states.collect::<Vec<_>>(), wanted);
    }
}

/// The flush that was to make its image stable succeeded: it had nothing left to write.
#[test]
fn a_detach_fails_by_a_flush_that_failed_everywhere() {
    for range in [None, Some(geometry().whole())] {
        let mut set = set(3);
        let (member, policy) = (named("m3"), Policy::Minicopy);
        let flush = flush_of(&set.handle(Moment(1), command(Command::Detach { member, policy })));
        let before = set.epoch;
        let _ = set.handle(
            Moment(1),
            Event::Flushed(flush, MemberSet::EMPTY, MemberSet::EMPTY),
        );
        assert!(set.members()[2].state.is_leaving());
        let failure = Failure {
            range,
            good: MemberSet::EMPTY,
            failed: only(0).or(only(1)).or(only(2)),
            media: MemberSet::EMPTY,
            epoch: before,
            causes: Vec::new(),
        };
        let effects = set.handle(Moment(1), Event::Failed(Ticket::new(9), failure));
        let expelled = set.members()[2].state.name() == "expelled";
        assert_eq!(expelled, range.is_none());
        let refused = answers(effects).into_iter().any(|answer| answer.is_err());
        assert_eq!(refused, range.is_none());
    }
}

/// A read of the unit that has merged it clears the bits in the bitmap that it took along.
#[test]
fn who_leaves_its_merge_lacks_what_came_into_doubt() {
    let mut set = set(2);
    let work = copies(give(&mut set, Command::Merge { full: true })).remove(0);
    let doubted = Regions::run(3, 4);
    set.intent.mark(doubted);
    let stale = work.stale();
    let ended = Event::CopyEnded(
        Box::new(work),
        CopyEnd::SourceFailed("it cannot be read".to_owned()),
    );
    let _ = set.handle(Moment(1), ended);
    assert!(set.members()[1].state.is_leaving());
    let event = flush_fails(&set, only(0));
    let _ = set.handle(Moment(1), event);
    stale.clear(doubted);
    for epoch in older(&set) {
        let _ = set.handle(Moment(1), Event::Retired(epoch));
    }
    assert!(stale.covers(doubted));
}

/// The members differ when the caches are forgotten: not before the records of that are durable, and before any View in
/// which copies read.
#[test]
fn caches_are_forgotten_between_the_records_and_the_view() {
    let mut set = set(2);
    let generation = set.generation();
    let event = flush_fails(&set, only(0).or(only(1)));
    let effects = set.handle(Moment(1), event);
    let place = |is: fn(&Effect) -> bool| effects.iter().position(is).expect("an effect");
    let lost = place(|e| matches!(e, Effect::FlushLost));
    let durable = place(|e| matches!(e, Effect::Persist { .. }));
    let shown = place(|e| matches!(e, Effect::Publish(_)));
    assert!(durable < lost && lost < shown);
    assert!(set.generation() > generation);
    // The only source: nothing is recorded.
    let mut set = super::set(1);
    let generation = set.generation();
    let event = flush_fails(&set, only(0));
    let effects = set.handle(Moment(1), event);
    assert!(effects.iter().any(|e| matches!(e, Effect::FlushLost)));
    assert_eq!(set.generation(), generation);
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

/// The flush of the first end of a copy says nothing of the second.
#[test]
fn a_copy_that_has_come_to_an_end_again_waits_for_its_own_flush() {
    let (mut set, mut work) = copying();
    let drained = |work: CopyWork| Event::CopyEnded(Box::new(work), CopyEnd::Drained);
    let step = work.next_step(|_| UNIT).expect("a step");
    work.finish(step, true);
    let first = set.handle(Moment(1), drained(work));
    set.intent.mark(Regions::run(3, 4));
    let before = set.epoch;
    let event = flush_fails(&set, only(0).or(only(1)));
    let _ = set.handle(Moment(1), event);
    let again = copies(set.handle(Moment(1), Event::Retired(before)));
    let mut works = again.into_iter().filter(|work| work.target() == id(2));
    let mut work = works.next().expect("it goes on");
    let step = work.next_step(|_| UNIT).expect("a step");
    work.finish(step, true);
    let second = set.handle(Moment(1), drained(work));
    let _ = last_flush(&mut set, &first);
    assert_eq!(set.members()[2].state.name(), "copy-target");
    let _ = last_flush(&mut set, &second);
    assert_eq!(set.members()[2].state.name(), "source");
}

/// What had been drained when a flush of the target began was noted as durable, with what came into doubt meanwhile.
#[test]
fn a_flush_from_before_a_doubt_notes_nothing_as_drained() {
    for doubt in [true, false] {
        let (mut set, _work) = copying();
        let noting = set.handle(Moment(1), Event::Beat);
        if doubt {
            let event = flush_fails(&set, only(0).or(only(1)));
            let _ = set.handle(Moment(1), event);
        }
        let effects = last_flush(&mut set, &noting);
        let notes = |e: &Effect| matches!(e, Effect::Home(HomeChange::Retain(_)));
        assert_eq!(effects.iter().any(notes), !doubt);
    }
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
