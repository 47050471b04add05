//! What a source that is leaving has lost behind its cache, and copies have read of it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::doubts::{copying, older};
use super::*;
use crate::set::bitmap::WriteBitmap;
use crate::set::event::{CopyEnd, FlushId};
use crate::set::record::HomeChange;

fn lost() -> Regions {
    Regions::run(3, 4)
}

/// The flushes that are asked for, and of whom.
fn flushes(effects: &[Effect]) -> Vec<(FlushId, MemberSet)> {
    let flush = |e: &Effect| match e {
        Effect::Flush(id, members) => Some((*id, *members)),
        _ => None,
    };
    effects.iter().filter_map(flush).collect()
}

fn well(set: &mut ShadowSet, flush: FlushId) -> Vec<Effect> {
    set.handle(
        Moment(1),
        Event::Flushed(flush, MemberSet::EMPTY, MemberSet::EMPTY),
    )
}

fn ended(set: &mut ShadowSet, work: CopyWork, end: CopyEnd) -> Vec<Effect> {
    set.handle(Moment(1), Event::CopyEnded(Box::new(work), end))
}

fn retire(set: &mut ShadowSet) -> Vec<Effect> {
    let mut effects = Vec::new();
    for epoch in older(set) {
        effects.extend(set.handle(Moment(1), Event::Retired(epoch)));
    }
    effects
}

/// Two sources and the copy to a third. The first one is behind its cut; a request of before it has written what that source
/// loses, and a step of before it has copied what it had there.
fn leaving() -> (ShadowSet, CopyWork, Arc<WriteBitmap>) {
    let (mut set, mut work) = copying();
    let (member, policy) = (named("m1"), Policy::Minicopy);
    let detach = Command::Detach { member, policy };
    let asked = set.handle(Moment(1), Event::Command(Ticket::new(7), detach));
    let _ = well(&mut set, flush_of(&asked));
    assert!(set.members()[0].state.is_leaving());
    set.old_intents[0].map.mark(lost());
    let stale = work.stale();
    let step = work.next_step(|_| UNIT).expect("a step");
    work.finish(step, true);
    assert!(!stale.covers(lost()));
    (set, work, stale)
}

#[test]
fn no_copy_ends_while_a_source_is_leaving() {
    for fails in [false, true] {
        let (mut set, work, stale) = leaving();
        let (promote, _) = flushes(&ended(&mut set, work, CopyEnd::Drained))[0];
        let effects = well(&mut set, promote);
        assert!(
            copies(effects).is_empty(),
            "it would end at once, again and again"
        );
        assert_eq!(set.members()[2].state.name(), "copy-target");
        let asked = flushes(&retire(&mut set));
        assert_eq!(asked.len(), 1, "nothing is forgotten before");
        let failed = if fails { only(0) } else { MemberSet::EMPTY };
        let mut effects = set.handle(Moment(1), Event::Flushed(asked[0].0, failed, failed));
        effects.extend(retire(&mut set));
        assert_eq!(stale.covers(lost()), fails);
        let work = copies(effects).remove(0);
        assert_eq!(work.is_drained(), !fails);
    }
}

#[test]
fn who_leaves_its_copy_beside_a_source_that_is_leaving_lacks_what_is_not_flushed() {
    let (mut set, work, stale) = leaving();
    stale.mark(Regions::run(20, 21));
    let _ = ended(&mut set, work, CopyEnd::SourceFailed("bad".to_owned()));
    assert!(set.members()[2].state.is_leaving());
    let asked = flushes(&retire(&mut set));
    let of = |member| {
        asked
            .iter()
            .find(|f| f.1.contains(id(member)) && !f.1.contains(id(2 - member)))
    };
    let (own, other) = (of(2).expect("a flush").0, of(0).expect("a flush").0);
    well(&mut set, own);
    assert_eq!(set.members()[2].state.name(), "detached");
    let _ = set.handle(Moment(1), Event::Flushed(other, only(0), only(0)));
    retire(&mut set);
    assert_eq!(set.members()[0].state.name(), "expelled");
    assert!(stale.covers(lost()), "in the bitmap that it has left with");
}

/// It was a copy target then, and those who are filled are read by nobody.
#[test]
fn who_did_not_become_stable_in_time_is_doubted() {
    let (mut set, work, stale) = leaving();
    let _ = set.handle(Moment(1), Event::TimedOut(7));
    assert_eq!(set.members()[0].state.name(), "copy-target");
    retire(&mut set);
    let (promote, _) = flushes(&ended(&mut set, work, CopyEnd::Drained))[0];
    let _ = set.handle(Moment(1), Event::Flushed(promote, only(0), only(0)));
    retire(&mut set);
    assert_ne!(set.members()[2].state.name(), "source");
    assert!(stale.covers(lost()));
}

/// A stop waits for no member that hangs while it is leaving.
#[test]
fn what_was_read_of_who_is_leaving_is_copied_again_by_the_next_mount() {
    let (mut set, work, stale) = leaving();
    stale.mark(Regions::run(20, 21));
    let mut effects = set.handle(Moment(1), Event::Shutdown);
    effects.extend(ended(&mut set, work, CopyEnd::Stopped));
    let (close, _) = *flushes(&effects).last().expect("a flush");
    let effects = well(&mut set, close);
    let kept = |e: &Effect| match e {
        Effect::Home(HomeChange::Retain(map)) => map.id() == stale.id() && map.covers(lost()),
        _ => false,
    };
    assert!(effects.iter().any(kept));
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, Effect::Stopped { clean: true }))
    );
}

/// The write had taken the View before the intent was begun anew.
#[test]
fn what_requests_of_old_epochs_mark_later_is_in_doubt_as_well() {
    let (mut set, mut work) = copying();
    let late = Regions::run(8, 9);
    let old = Arc::clone(&set.intent);
    set.rotate();
    set.effects.clear();
    let stale = work.stale();
    let step = work.next_step(|_| UNIT).expect("a step");
    let _ = set.handle(Moment(1), Event::GivenUp(id(0), "silent".to_owned()));
    old.mark(late);
    work.finish(step, true);
    retire(&mut set);
    assert!(stale.covers(late));
}

/// The only source fails each flush and the target of its copy none. Everything happens in the order in which it was asked
/// for: what is flushed for old intents came before the copy's end, again and again.
#[test]
fn a_last_source_that_fails_each_flush_is_left() {
    let mut set = set(1);
    let begun = attach(&mut set, new_image("m2"));
    let copy = |e: &Effect| matches!(e, Effect::StartCopy(_));
    set.intent.mark(lost());
    let mut effects = set.handle(Moment(1), Event::Tick);
    effects.extend(begun.into_iter().filter(copy));
    let mut queue: VecDeque<Effect> = effects.into();
    let mut events = 0;
    while let Some(effect) = queue.pop_front() {
        let event = match effect {
            Effect::Flush(flush, members) => {
                let failed = members.and(only(0));
                Event::Flushed(flush, failed, failed)
            }
            Effect::Publish(view) => Event::Retired(Epoch(view.epoch().0 - 1)),
            Effect::StartCopy(mut work) => {
                while let Some(step) = work.next_step(|_| UNIT) {
                    work.finish(step, true);
                }
                Event::CopyEnded(work, CopyEnd::Drained)
            }
            _ => continue,
        };
        events += 1;
        assert!(events < 100, "it goes round");
        queue.extend(set.handle(Moment(1), event));
    }
    assert_eq!(set.members()[0].state.name(), "expelled");
    assert_eq!(set.members()[1].state.name(), "source");
}

#[test]
fn what_could_not_be_flushed_is_flushed_again_at_the_next_beat() {
    let mut set = set(1);
    set.intent.mark(lost());
    let _ = set.handle(Moment(1), Event::Tick);
    let (trim, _) = flushes(&retire(&mut set))[0];
    let mut effects = set.handle(Moment(1), Event::Flushed(trim, only(0), only(0)));
    effects.extend(retire(&mut set));
    assert_eq!(flushes(&effects), [], "not at once");
    let again = flushes(&set.handle(Moment(1), Event::Beat));
    assert_eq!(again.len(), 1);
    well(&mut set, again[0].0);
    assert!(set.old_intents.is_empty());
}
