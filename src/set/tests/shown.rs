//! What people are shown of a set.

use super::*;
use crate::set::copy::CopyKind;
use crate::set::findings::Fate;
use crate::set::member::BitmapId;
use crate::set::operation::OpState;
use crate::set::refusal::Code;
use crate::set::scb::{SCB_BYTES, Slot};
use crate::set::stall::StallEnd;
use crate::set::status::SetState;

fn are_words(mut words: Vec<String>) {
    let all = words.len();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), all, "{words:?}");
    assert!(words.iter().all(|word| !word.is_empty()), "{words:?}");
}

#[test]
fn different_things_have_different_words() {
    are_words(SetState::ALL.map(|s| named(s.name())).into());
    let ends = [
        StallEnd::Command,
        StallEnd::Time,
        StallEnd::Stop,
        StallEnd::Failed,
    ];
    are_words(ends.map(|e| named(e.name())).into());
    let fates = [Fate::Left, Fate::Repaired, Fate::Failed];
    are_words(fates.map(|f| named(f.name())).into());
    let kinds = [
        CopyKind::Full,
        CopyKind::Mini,
        CopyKind::Compare,
        CopyKind::Merge,
        CopyKind::Minimerge,
    ];
    are_words(kinds.map(|k| named(k.name())).into());
    let policies = [Policy::Minicopy, Policy::MinicopyOptional, Policy::Full];
    are_words(policies.map(|p| named(p.name())).into());
    let states = [
        OpState::Queued,
        OpState::Running,
        OpState::Paused,
        OpState::Done,
        OpState::Failed,
        OpState::Cancelled,
    ];
    are_words(states.map(|s| named(s.name())).into());
    are_words(Code::ALL.iter().map(ToString::to_string).collect());
    are_words((0..20).map(|n| BitmapId(n).to_string()).collect());
    are_words((0..20).map(|n| Bytes(n).to_string()).collect());
    let generations = (1..20).filter_map(Generation::from_number);
    are_words(generations.map(|g| g.to_string()).collect());
    are_words(
        (0..20)
            .map(|n| crate::set::copy::OpId(n).to_string())
            .collect(),
    );
}

#[test]
fn an_operation_is_shown_by_what_it_does() {
    let mut set = set(2);
    let verify = Command::Verify {
        range: None,
        repair: None,
    };
    let effects = give(&mut set, verify);
    let work = effects.iter().find_map(|e| match e {
        Effect::StartVerify(work) => Some(work),
        _ => None,
    });
    let work = work.expect("it runs");
    let shown = &set.operations()[0];
    assert_eq!((shown.kind(), shown.source()), ("verify", None));
    let compared = shown.verify().expect("a verify");
    // What the thread counts and finds is what people see.
    work.progress().pass(512, 0);
    assert_eq!(shown.progress.done_bytes(), 512);
    assert!(std::sync::Arc::ptr_eq(&work.findings(), &compared.findings));
    let _ = run(&mut set, Event::VerifyEnded(work.op(), true));
    let _ = give(&mut set, Command::Merge { full: true });
    let shown = &set.operations()[1];
    assert_eq!((shown.kind(), shown.source()), ("merge", Some(id(0))));
}

#[test]
fn a_status_finds_members_and_bitmaps() {
    let mut set = set(3);
    let _ = detach(&mut set, "m2", Policy::Minicopy);
    let _ = detach(&mut set, "m3", Policy::Minicopy);
    let status = set.status();
    assert_eq!((status.name(id(1)), status.name(id(2))), ("m2", "m3"));
    assert_eq!(status.name(id(5)), "");
    for shown in &status.bitmaps {
        let tag = shown.tag.expect("a number");
        let found = status.bitmap(tag.id).expect("it is there");
        assert_eq!(found.member, shown.member);
    }
    assert_eq!(status.bitmaps.len(), 2);
    assert!(status.bitmap(BitmapId(99)).is_none());
}

#[test]
fn a_view_knows_its_sources_and_whether_something_is_to_be_merged() {
    let mut set = set(2);
    let effects = give(&mut set, Command::Merge { full: true });
    let shown = view(&effects);
    assert!(!shown.is_one_of_sources(id(0)), "the only one");
    assert!(!shown.is_one_of_sources(id(1)), "a member to be merged");
    assert!(shown.is_merging());
    assert_eq!(shown.sources(), only(0));
    let step = shown.unmerged(geometry().whole()).expect("all of it");
    assert_eq!(step.members(), only(1));
    shown.merged(step, MemberSet::EMPTY);
    assert!(shown.is_merging(), "it could not be written");
    let mut step = shown.unmerged(geometry().whole()).expect("all of it");
    step.found_equal(id(1), REGION);
    shown.merged(step, only(1));
    assert!(!shown.is_merging(), "readers have merged it all");
    let progress = &set.operations()[0].progress;
    let counted = (progress.done_bytes(), progress.equal_bytes());
    assert_eq!(counted, (UNIT, REGION));
    let mut set = super::set(3);
    let effects = expel(&mut set, "m3");
    let shown = view(&effects);
    assert!(shown.is_one_of_sources(id(0)) && shown.is_one_of_sources(id(1)));
    assert!(!shown.is_one_of_sources(id(2)) && !shown.is_merging());
}

#[test]
fn the_two_slots_of_a_block_lie_behind_each_other() {
    assert_eq!(Slot::A.offset(), 0);
    assert_eq!(Slot::B.offset(), SCB_BYTES as u64);
}

#[test]
fn a_state_is_written_so_that_a_start_knows_what_is_stale() {
    use crate::set::scb::ScbState;
    let mut set = set(3);
    let written = |set: &ShadowSet| {
        set.table()
            .into_iter()
            .map(|row| row.state)
            .collect::<Vec<_>>()
    };
    let _ = give(&mut set, Command::Merge { full: true });
    let source = ScbState::Source;
    assert_eq!(
        written(&set),
        [source, ScbState::Merging, ScbState::Merging]
    );
    let mut set = super::set(3);
    let _ = detach(&mut set, "m2", Policy::Full);
    let _ = expel(&mut set, "m3");
    assert_eq!(
        written(&set),
        [source, ScbState::Detached, ScbState::Expelled]
    );
    let _ = attach(&mut set, returning(1, AttachPolicy::Full));
    assert_eq!(
        written(&set),
        [source, ScbState::Target, ScbState::Expelled]
    );
}
