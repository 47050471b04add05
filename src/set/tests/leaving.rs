//! Who may leave, how, and what is left of a command that waited too long.

use super::*;
use crate::set::copy::CopyKind;
use crate::set::event::{CopyEnd, Failure};
use crate::set::member::Held;
use crate::set::record::{BitmapKind, HomeChange};
use crate::set::said::Said;
use crate::set::scb::Ancestry;

fn may_leave(set: &ShadowSet, name: &str, policy: Policy) -> Result<(), Code> {
    let member = named(name);
    let answer = set.dry_run(Command::Detach { member, policy }, &[]);
    answer.map(|_| ()).map_err(|refusal| refusal.code)
}

/// Two sources, and a member that is merged since a start that knew nothing.
fn merging() -> ShadowSet {
    let starts = [Start::Source, Start::Source, Start::StillMerging];
    let members = starts.iter().enumerate();
    let members = members.map(|(place, start)| (member(place, UNIT), *start));
    begun(beginning(), members.collect())
}

/// A detach whose first flush has ended: the member is behind its cut.
fn behind_the_cut(set: &mut ShadowSet, number: u64) -> Vec<Effect> {
    let detach = Command::Detach {
        member: named("m2"),
        policy: Policy::Minicopy,
    };
    let none = MemberSet::EMPTY;
    let effects = set.handle(Moment(1), Event::Command(Ticket::new(number), detach));
    set.handle(Moment(1), Event::Flushed(flush_of(&effects), none, none))
}

#[test]
fn each_state_has_its_own_refusal_of_a_detach() {
    let mut set = merging();
    let policy = Policy::MinicopyOptional;
    assert_eq!(may_leave(&set, "m3", policy), Err(Code::MergePending));
    let sure = Policy::Minicopy;
    assert_eq!(may_leave(&set, "m2", sure), Err(Code::MergePending));
    assert_eq!(may_leave(&set, "m2", policy), Ok(()));
    let _ = detach(&mut set, "m2", policy);
    let departed = set.members()[1].state.departed().expect("it is away");
    assert!(departed.tag.is_none(), "it would not be complete");
    assert_eq!(may_leave(&set, "m2", policy), Err(Code::AlreadyDetached));
    assert_eq!(may_leave(&set, "m1", policy), Err(Code::LastSource));
    let _ = attach(&mut set, returning(1, AttachPolicy::Full));
    assert_eq!(may_leave(&set, "m2", policy), Err(Code::IsCopyTarget));
}

#[test]
fn who_is_out_already_is_told_how_it_came_to_be() {
    let starts = [
        Start::Source,
        Start::Source,
        Start::Source,
        Start::Missing { equal: true },
    ];
    let members = starts.into_iter().enumerate();
    let members = members.map(|(place, start)| (member(place, UNIT), start));
    let mut set = begun(beginning(), members.collect());
    let _ = expel(&mut set, "m2");
    let _ = detach(&mut set, "m3", Policy::Full);
    for (name, says) in [
        ("m2", "m2 was expelled"),
        ("m3", "m3 is detached already"),
        ("m4", "m4 is missing"),
    ] {
        let refusal = refused(detach(&mut set, name, Policy::Full));
        assert_eq!(
            (refusal.code, refusal.text.as_str()),
            (Code::AlreadyDetached, says)
        );
    }
}

/// It was said to be detached already, although its image was neither flushed nor quiet.
#[test]
fn who_is_still_leaving_is_not_said_to_be_out() {
    let mut set = set(2);
    let member = named("m2");
    let policy = Policy::Full;
    let detach = Command::Detach { member, policy };
    let ticket = Ticket::new(1);
    let effects = set.handle(Moment(1), Event::Command(ticket, detach.clone()));
    let none = MemberSet::EMPTY;
    // Its last requests do not end in time.
    let _ = set.handle(Moment(1), Event::Flushed(flush_of(&effects), none, none));
    let _ = set.handle(Moment(2), Event::TimedOut(1));
    let is_leaving = |set: &ShadowSet| matches!(set.members()[1].state, MemberState::Leaving(_));
    assert!(is_leaving(&set));
    let expel = Command::Expel {
        member: named("m2"),
    };
    for command in [detach, expel] {
        let refusal = refused(give(&mut set, command));
        let said = (refusal.code, refusal.text.as_str());
        assert_eq!(said, (Code::InUse, "m2 is still leaving"));
    }
    assert!(is_leaving(&set));
}

#[test]
fn a_bitmap_is_made_when_it_is_wanted_and_complete() {
    let makes = |mut set: ShadowSet, policy| {
        let _ = detach(&mut set, "m2", policy);
        set.members()[1]
            .state
            .departed()
            .is_some_and(|d| d.tag.is_some())
    };
    assert!(makes(set(2), Policy::Minicopy) && makes(set(2), Policy::MinicopyOptional));
    assert!(!makes(set(2), Policy::Full) && !makes(merging(), Policy::MinicopyOptional));
}

#[test]
fn a_flush_of_a_detach_that_was_given_up_does_not_cut_the_next_one() {
    let mut set = set(3);
    let detach = |set: &mut ShadowSet, number, name: &str| {
        let member = named(name);
        let policy = Policy::Minicopy;
        let detach = Command::Detach { member, policy };
        flush_of(&set.handle(Moment(1), Event::Command(Ticket::new(number), detach)))
    };
    let none = MemberSet::EMPTY;
    let first = detach(&mut set, 1, "m2");
    assert_eq!(
        refused(set.handle(Moment(1), Event::TimedOut(1))).code,
        Code::TimedOut
    );
    let _ = detach(&mut set, 2, "m3");
    let late = set.handle(Moment(1), Event::Flushed(first, none, none));
    assert!(late.is_empty(), "{late:?}");
}

#[test]
fn who_is_expelled_is_let_go_of_once_and_its_bitmap_covers_the_unit() {
    let mut set = set(3);
    let closes = |effects: &[Effect]| {
        let close = |e: &&Effect| matches!(e, Effect::Close(who) if *who == id(1));
        effects.iter().filter(close).count()
    };
    assert_eq!(closes(&expel(&mut set, "m2")), 1);
    let departed = set.members()[1].state.departed().expect("it is away");
    assert_eq!(
        (departed.covers, departed.closed),
        (Some(Bytes(UNIT)), true)
    );
    assert_eq!(closes(&expel(&mut set, "m3")), 0);
    assert_eq!(set.members()[1].errors, 1);
}

#[test]
fn until_it_has_left_a_member_is_shown_as_what_it_was() {
    let mut set = set(2);
    let _ = detach(&mut set, "m2", Policy::Minicopy);
    let _ = attach(&mut set, returning(1, AttachPolicy::Full));
    let op = set.operations()[0].id;
    let _ = set.handle(Moment(1), command(Command::Cancel(op)));
    assert!(set.members()[1].state.departed().is_some());
    assert_eq!(set.status().members[1].state, "copy-target");
}

#[test]
fn who_fails_behind_its_cut_is_expelled_and_its_medium_is_remembered() {
    let mut set = set(2);
    let cut = behind_the_cut(&mut set, 1);
    let older = Epoch(view(&cut).epoch().0 - 1);
    let effects = set.handle(Moment(1), Event::Retired(older));
    let failed = Event::Flushed(flush_of(&effects), only(1), only(1));
    let effects = run(&mut set, failed);
    assert_eq!(refused(effects).code, Code::Io);
    assert_eq!(set.members()[1].state.name(), "expelled");
    let _ = run(&mut set, Event::Quiet(id(1)));
    let plan = set.plan_attach(&returning(1, AttachPolicy::default()));
    assert_eq!(plan.expect("it may").kind, CopyKind::Compare);
}

#[test]
fn a_detach_that_times_out_behind_its_cut_is_undone() {
    let mut set = set(2);
    let cut = behind_the_cut(&mut set, 1);
    write(&cut, Regions::run(3, 5));
    let effects = set.handle(Moment(1), Event::TimedOut(1));
    let works = copies(carry_out(&mut set, effects));
    assert!(works.is_empty(), "requests of before the cut are under way");
    assert_eq!(set.status().members[1].state, "copy-target");
    let older = Epoch(view(&cut).epoch().0);
    let _ = set.handle(Moment(1), Event::Retired(Epoch(older.0 - 1)));
    let operation = &set.operations()[0];
    assert_eq!(
        (operation.kind(), operation.state.name()),
        ("minicopy", "running")
    );
    assert_eq!(operation.progress.total_bytes(), 2 * REGION);
}

#[test]
fn what_a_command_that_timed_out_leaves_behind_is_said() {
    let text = |set: &mut ShadowSet| refused(set.handle(Moment(1), Event::TimedOut(1))).text;
    let mut set = set(2);
    let _ = behind_the_cut(&mut set, 1);
    assert!(text(&mut set).contains("a minicopy brings it back"));
    // Its copy step is under way: it leaves when that has ended.
    let mut set = super::set(2);
    let _ = detach(&mut set, "m2", Policy::Minicopy);
    let works = copies(attach(&mut set, returning(1, AttachPolicy::Full)));
    let _ = set.handle(Moment(1), command(Command::Cancel(works[0].op())));
    assert!(text(&mut set).contains("will be detached"));
    let departed = set.members()[1].state.departed();
    assert!(departed.is_some_and(|d| matches!(d.held, Held::WithCopier(_))));
    for work in works {
        let _ = run(&mut set, Event::CopyEnded(Box::new(work), CopyEnd::Stopped));
    }
}

#[test]
fn an_attach_that_times_out_is_undone_and_a_detach_ends_no_merge() {
    let mut set = set(2);
    let _ = detach(&mut set, "m2", Policy::Minicopy);
    let back = Box::new(returning(1, AttachPolicy::Minicopy));
    let _ = set.handle(Moment(1), command(Command::Attach(back)));
    let effects = set.handle(Moment(1), Event::TimedOut(1));
    assert!(set.members()[1].state.departed().is_some(), "{effects:?}");
    assert_eq!(set.operations()[0].state.name(), "cancelled");
    let mut set = super::set(2);
    let member = named("m2");
    let policy = Policy::Full;
    let _ = set.handle(Moment(1), command(Command::Detach { member, policy }));
    let failure = Failure {
        range: Some(geometry().whole()),
        good: MemberSet::EMPTY,
        failed: only(0).or(only(1)),
        media: MemberSet::EMPTY,
        epoch: Epoch(1),
        causes: Vec::new(),
    };
    let _ = set.handle(Moment(1), Event::Failed(Ticket::new(2), failure));
    let _ = set.handle(Moment(1), Event::TimedOut(1));
    assert_eq!(set.status().members[1].state, "merging");
    assert!(set.members()[1].state.departed().is_none(), "it stays");
}

#[test]
fn members_that_do_not_answer_are_told_of_and_so_is_their_answer() {
    let mut set = set(3);
    let state = |set: &ShadowSet| set.status().state.name();
    let effects = run(&mut set, Event::Silent(only(1)));
    assert_eq!(notices(&effects), [&Notice::Silent(id(1))]);
    assert_eq!(state(&set), "mount-verify");
    assert!(!set.status().members[1].answers && set.status().members[0].answers);
    let all = only(0).or(only(1)).or(only(2));
    let _ = run(&mut set, Event::Silent(all));
    let effects = run(&mut set, Event::WaitedEnough);
    assert_eq!(notices(&effects), [&Notice::Aborted(all)]);
    assert_eq!(state(&set), "failed");
    let effects = run(&mut set, Event::Silent(only(1).or(only(2))));
    assert_eq!(notices(&effects), [&Notice::Answers(id(0))]);
    assert_eq!(state(&set), "mount-verify");
    assert!(run(&mut set, Event::WaitedEnough).is_empty(), "m1 answers");
    let why = named("it did not answer");
    let _ = run(&mut set, Event::GivenUp(id(1), why.clone()));
    assert_eq!(
        (set.members()[1].state.name(), &set.members()[1].reason),
        ("expelled", &why)
    );
    let gone = run(&mut set, Event::Silent(only(1)));
    assert_eq!(
        notices(&gone),
        [&Notice::Answers(id(2))],
        "who is away owes nothing"
    );
    assert_eq!(state(&set), "reduced");
}

#[test]
fn the_last_that_answers_is_not_given_up_and_a_slow_one_only_while_enough_stay() {
    let mut set = set(2);
    let _ = run(&mut set, Event::Silent(only(0)));
    let _ = run(&mut set, Event::GivenUp(id(1), named("it did not answer")));
    assert_eq!(set.members()[1].state.name(), "source");
    for (min_members, leaves) in [(0, true), (2, true), (3, false)] {
        let mut set = super::set(3);
        let limits = Limits {
            min_members,
            ..Limits::default()
        };
        let _ = run(&mut set, Event::Limits(limits));
        let _ = run(&mut set, Event::TooSlow(id(1)));
        assert_eq!(
            set.members()[1].state.name() == "expelled",
            leaves,
            "{min_members}"
        );
    }
}

/// A flush that began before a member was expelled ends when it is a copy target again: it failed there long ago.
#[test]
fn what_was_before_a_return_expels_nobody_again() {
    let mut set = set(2);
    let ask = |set: &mut ShadowSet| {
        set.handle(
            Moment(1),
            command(Command::Detach {
                member: named("m2"),
                policy: Policy::Minicopy,
            }),
        )
    };
    let flush = flush_of(&ask(&mut set));
    let failure = |epoch| Failure {
        range: Some(geometry().whole()),
        good: only(0),
        failed: only(1),
        media: MemberSet::EMPTY,
        epoch,
        causes: Vec::new(),
    };
    let old = failure(Epoch(1));
    let _ = run(&mut set, Event::Failed(Ticket::new(2), old.clone()));
    let _ = run(&mut set, Event::Quiet(id(1)));
    let _ = attach(&mut set, returning(1, AttachPolicy::default()));
    let is = |set: &ShadowSet| set.members()[1].state.name();
    let target = is(&set);
    let _ = run(&mut set, Event::Flushed(flush, only(1), MemberSet::EMPTY));
    let _ = run(&mut set, Event::Failed(Ticket::new(3), old));
    let joined = set.epoch;
    let before = failure(Epoch(joined.0 - 1));
    let _ = run(&mut set, Event::Failed(Ticket::new(4), before));
    assert_eq!(is(&set), target);
    let _ = run(&mut set, Event::Failed(Ticket::new(5), failure(joined)));
    assert_eq!(is(&set), "expelled");
}

/// Others have the unit open beside the program that asked for the flush. Of a write it alone is told.
#[test]
fn a_flush_of_an_application_that_failed_everywhere_is_told_to_all() {
    let lost = |range, failed: MemberSet| {
        let mut set = set(2);
        let failure = Failure {
            range,
            good: only(0).or(only(1)).without(failed),
            failed,
            media: MemberSet::EMPTY,
            epoch: Epoch(1),
            causes: Vec::new(),
        };
        let effects = run(&mut set, Event::Failed(Ticket::new(2), failure));
        effects.iter().any(|e| matches!(e, Effect::FlushLost))
    };
    let both = only(0).or(only(1));
    assert!(lost(None, both));
    assert!(!lost(None, only(1)) && !lost(Some(geometry().whole()), both));
}

/// Somebody has to tell a program: the system will not say it again.
#[test]
fn a_flush_of_its_own_that_failed_everywhere_is_told_to_all() {
    let lost = |failed| {
        let mut set = set(2);
        let detach = Command::Detach {
            member: named("m2"),
            policy: Policy::Minicopy,
        };
        let flush = flush_of(&set.handle(Moment(1), command(detach)));
        let effects = run(&mut set, Event::Flushed(flush, failed, MemberSet::EMPTY));
        effects.iter().any(|e| matches!(e, Effect::FlushLost))
    };
    assert!(lost(only(0).or(only(1))));
    assert!(!lost(only(1)) && !lost(MemberSet::EMPTY));
}

fn kinds_of(effects: &[Effect], place: usize) -> Vec<BitmapKind> {
    let owner = member(place, 0).uuid;
    let kind = |e: &Effect| match e {
        Effect::Home(HomeChange::Add(r, _) | HomeChange::Describe(r)) if r.owner == owner => {
            Some(r.kind)
        }
        _ => None,
    };
    effects.iter().filter_map(kind).collect()
}

/// A stop behind the cut left a record that said that its block told of it, and a block that did not: it was copied in full.
#[test]
fn a_departure_counts_as_told_of_when_its_block_is_written() {
    let mut set = set(2);
    let cut = behind_the_cut(&mut set, 2);
    assert_eq!(kinds_of(&cut, 1), [BitmapKind::Untold]);
    let effects = carry_out(&mut set, cut);
    let said = |e: &Effect| matches!(e, Effect::Persist { to, .. } if *to == only(1));
    let told = |e: &Effect| kinds_of(std::slice::from_ref(e), 1) == [BitmapKind::Departed];
    let (said, told) = (effects.iter().position(said), effects.iter().position(told));
    assert!(said.is_some() && said < told, "{said:?} {told:?}");
}

/// Whoever put an image and its block of that generation back had it taken for the one that left.
#[test]
fn who_was_expelled_is_known_by_its_block_once_that_says_so() {
    let mut set = set(3);
    let effects = expel(&mut set, "m2");
    assert_eq!(kinds_of(&effects, 1), [BitmapKind::Untold]);
    let departed = set.members()[1].state.departed();
    let left = departed.and_then(|d| d.tag).expect("a bitmap").generation;
    let block = |number: u64, has_left| Said {
        generation: Generation::from_number(number).expect("not zero"),
        has_left,
        unit: Bytes(UNIT),
        ancestry: Ancestry::Ancestor,
    };
    assert!(
        set.is_who_left(id(1), block(left, false)),
        "out of reach then"
    );
    assert!(
        !set.tells_departure(id(1), block(left, true)),
        "of another one"
    );
    assert!(set.tells_departure(id(1), block(left + 1, true)));
    let earlier = Generation::from_number(left).expect("not zero");
    let _ = run(&mut set, Event::Told(id(1), earlier));
    assert!(
        set.is_who_left(id(1), block(left, false)),
        "of an earlier departure"
    );
    let effects = run(&mut set, Event::Told(id(1), earlier.next()));
    assert_eq!(kinds_of(&effects, 1), [BitmapKind::Departed]);
    assert!(
        !set.is_who_left(id(1), block(left, false)),
        "an older image"
    );
    assert!(set.is_who_left(id(1), block(left + 1, true)));
}

/// What was merged again behind the beginning of its last flush may not be on the disk.
#[test]
fn a_flush_that_failed_everywhere_has_a_copy_end_by_another_one() {
    let mut set = set(2);
    let work = copies(give(&mut set, Command::Merge { full: false })).remove(0);
    let op = work.op();
    let ended = Event::CopyEnded(Box::new(work), CopyEnd::Drained);
    let promotes = flush_of(&set.handle(Moment(1), ended));
    let failure = Failure {
        range: None,
        good: MemberSet::EMPTY,
        failed: only(0).or(only(1)),
        media: MemberSet::EMPTY,
        epoch: Epoch(1),
        causes: Vec::new(),
    };
    let before = set.epoch;
    let failed = set.handle(Moment(1), Event::Failed(Ticket::new(3), failure));
    assert!(copies(failed).is_empty(), "a step may be under way");
    let again = copies(set.handle(Moment(1), Event::Retired(before)));
    assert_eq!(again[0].op(), op, "it goes on");
    let none = MemberSet::EMPTY;
    let _ = set.handle(Moment(1), Event::Flushed(promotes, none, none));
    assert_eq!(set.members()[1].state.name(), "merging");
    let ended = Event::CopyEnded(
        Box::new(again.into_iter().next().expect("one")),
        CopyEnd::Drained,
    );
    let _ = run(&mut set, ended);
    assert_eq!(set.members()[1].state.name(), "source");
}

/// A step of a cancelled copy clears bits behind the last flush of a stop.
#[test]
fn what_a_copier_still_clears_is_kept_over_a_stop() {
    for with_copier in [true, false] {
        let mut set = set(2);
        let _ = detach(&mut set, "m2", Policy::Minicopy);
        let work = copies(attach(
            &mut set,
            returning(1, AttachPolicy::MinicopyOptional),
        ))
        .remove(0);
        let bitmap = work.stale().id();
        let cancel = Command::Cancel(work.op());
        let _ = set.handle(Moment(1), command(cancel));
        if !with_copier {
            let _ = set.handle(
                Moment(1),
                Event::CopyEnded(Box::new(work), CopyEnd::Stopped),
            );
        }
        let effects = run(&mut set, Event::Shutdown);
        let retains =
            |e: &Effect| matches!(e, Effect::Home(HomeChange::Retain(m)) if m.id() == bitmap);
        assert_eq!(effects.iter().any(retains), !with_copier);
    }
}
