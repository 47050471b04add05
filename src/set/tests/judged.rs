//! What a dry run says, and who may do what with an operation.

use super::*;
use crate::set::copy::{CopyKind, OpId};
use crate::set::event::Tuning;
use crate::set::limits::Limits;

/// A set of four: m2 is detached, m3 comes back by a minicopy that runs, and a full copy of m4 waits for its turn.
fn busy() -> ShadowSet {
    let mut set = set(4);
    let limits = Limits {
        copies: 1,
        ..Limits::default()
    };
    let _ = run(&mut set, Event::Limits(limits));
    for name in ["m2", "m3", "m4"] {
        let effects = detach(&mut set, name, Policy::Minicopy);
        write(&effects, Regions::run(0, 2));
    }
    let _ = attach(&mut set, returning(2, AttachPolicy::Minicopy));
    let _ = attach(&mut set, returning(3, AttachPolicy::Full));
    set
}

fn would(set: &ShadowSet, what: Command) -> Result<Answer, Code> {
    let before = format!("{set:?}");
    let answer = set.dry_run(what, &[(CopyKind::Merge, UNIT)]);
    assert_eq!(before, format!("{set:?}"), "a dry run changes nothing");
    answer.map_err(|refusal| refusal.code)
}

#[test]
fn a_dry_run_names_what_would_be_done() {
    let set = busy();
    let number = set.status().bitmaps[0].tag.expect("a number").id;
    let tune = |tuning| Command::Tune {
        member: named("m1"),
        tuning,
    };
    for (what, verdict, says) in [
        (Command::Stall { seconds: 5 }, "stall", "5 s, and m1 be"),
        (Command::ResetCounters, "reset-counters", "0 again"),
        (Command::DeleteBitmap { id: number }, "delete-bitmap", "m2"),
        (
            Command::Release {
                member: named("m2"),
            },
            "release",
            "m2",
        ),
        (
            Command::Expel {
                member: named("m3"),
            },
            "expel",
            "m3",
        ),
        (Command::Pause(OpId(1)), "pause", "operation 1"),
        (Command::Cancel(OpId(1)), "cancel", "operation 1"),
        (tune(Tuning::Site(2)), "set", "m1.site would be 2"),
        (tune(Tuning::ReadCost(7)), "set", "m1.read_cost would be 7"),
        (tune(Tuning::Timeout(9)), "set", "m1.timeout would be 9"),
        (
            Command::Limit {
                op: OpId(2),
                rate: 512,
            },
            "set",
            "2.rate_max would be 512",
        ),
    ] {
        let answer = would(&set, what).expect(says);
        assert_eq!(fact(&answer, "verdict"), verdict);
        assert!(answer.text.contains(says), "{}", answer.text);
    }
    let answer = would(&set, tune(Tuning::Site(2))).expect("it may");
    let facts = ["parameter", "value"].map(|key| fact(&answer, key));
    assert_eq!(facts, ["m1.site", "2"]);
}

#[test]
fn a_dry_run_of_a_detach_a_merge_and_a_verify_has_their_numbers() {
    let member = named("m2");
    let policy = Policy::Full;
    let answer = would(&set(2), Command::Detach { member, policy }).expect("it may");
    let facts = ["verdict", "policy"].map(|key| fact(&answer, key));
    assert_eq!(facts, ["detach", policy.name()]);
    for (sources, into) in [(2, "1 member"), (3, "2 members")] {
        let answer = would(&set(sources), Command::Merge { full: true }).expect("it may");
        assert!(answer.text.contains(into), "{}", answer.text);
        let facts = ["verdict", "bytes", "extents", "eta"].map(|key| fact(&answer, key));
        assert_eq!(facts, ["merge", "1048576", "1", "1"]);
    }
    let range = Some((1, 8));
    let repair = None;
    let answer = would(&set(3), Command::Verify { range, repair }).expect("it may");
    let facts = ["verdict", "bytes", "read_bytes", "members"].map(|key| fact(&answer, key));
    assert_eq!(facts, ["verify", "4096", "12288", "3"]);
}

#[test]
fn a_dry_run_of_what_ends_something_names_what_would_end() {
    let ready = |what: Event| {
        let mut set = set(3);
        let _ = run(&mut set, what);
        set
    };
    let verify = Command::Verify {
        range: None,
        repair: None,
    };
    let stalled = ready(command(Command::Stall { seconds: 5 }));
    let verifying = ready(command(verify));
    let silent = ready(Event::Silent(only(1)));
    for (set, what, verdict, says) in [
        (stalled, Command::Unstall, "unstall", "changes would go on"),
        (verifying, Command::Cancel(OpId(1)), "cancel", "1 would end"),
        (silent, Command::Abort, "abort", "wait for m2"),
    ] {
        let answer = would(&set, what).expect(says);
        assert_eq!(fact(&answer, "verdict"), verdict);
        assert!(answer.text.contains(says), "{}", answer.text);
    }
    assert_eq!(
        would(&set(3), Command::Unstall).err(),
        Some(Code::StateChanged)
    );
}

/// Nobody could say where the sources differ if it ended halfway.
#[test]
fn a_merge_ends_before_another_begins_and_is_not_cancelled() {
    let mut set = set(3);
    let _ = give(&mut set, Command::Merge { full: true });
    let refused = |what| set.dry_run(what, &[]).expect_err("it goes on");
    let again = refused(Command::Merge { full: false });
    assert_eq!(again.code, Code::MergePending);
    assert!(again.text.contains("is being merged already"), "{again}");
    let cancel = refused(Command::Cancel(set.operations()[0].id));
    assert_eq!(cancel.code, Code::MergePending);
    assert!(cancel.hint().contains("pause it"), "{}", cancel.hint());
}

#[test]
fn an_operation_is_steered_from_the_state_that_it_is_in() {
    let mut set = busy();
    let (runs, waits, none) = (OpId(1), OpId(2), OpId(9));
    let held = give(&mut set, Command::Pause(runs));
    assert!(
        matches!(held[0], Effect::PauseCopy(op) if op == runs),
        "{held:?}"
    );
    assert_eq!(set.operations()[0].state.name(), "paused");
    for (what, code) in [
        (Command::Pause(runs), Code::StateChanged),
        (Command::Pause(waits), Code::StateChanged),
        (Command::Resume(waits), Code::StateChanged),
        (Command::Pause(none), Code::NoSuchOperation),
        (Command::Forget(runs), Code::InUse),
        (Command::Forget(none), Code::NoSuchOperation),
        (Command::Limit { op: none, rate: 1 }, Code::NoSuchOperation),
        (Command::Cancel(none), Code::NoSuchOperation),
    ] {
        assert_eq!(would(&set, what.clone()).err(), Some(code), "{what:?}");
    }
    let hint = |what| {
        set.dry_run(what, &[])
            .expect_err("not now")
            .hint()
            .to_owned()
    };
    assert!(hint(Command::Pause(waits)).contains("max_copies"));
    assert!(!hint(Command::Pause(runs)).contains("max_copies"));
    let goes_on = give(&mut set, Command::Resume(runs));
    assert!(matches!(goes_on[0], Effect::ResumeCopy(op) if op == runs));
    assert_eq!(set.operations()[0].state.name(), "running");
    let _ = expel(&mut set, "m3");
    for what in [
        Command::Pause(runs),
        Command::Cancel(runs),
        Command::Limit { op: runs, rate: 1 },
    ] {
        assert_eq!(
            would(&set, what).err(),
            Some(Code::StateChanged),
            "it is over"
        );
    }
    let hint = |what| {
        set.dry_run(what, &[])
            .expect_err("not now")
            .hint()
            .to_owned()
    };
    assert!(hint(Command::Pause(runs)).contains("has ended"));
    assert!(would(&set, Command::Forget(runs)).is_ok());
    let _ = give(&mut set, Command::Forget(runs));
    assert_eq!(set.operations()[0].id, waits);
}

#[test]
fn a_bitmap_is_deleted_when_no_copy_uses_it() {
    let mut set = busy();
    let status = set.status();
    let of = |place| {
        let shown = status.bitmaps.iter().find(|b| b.member == Some(id(place)));
        shown.and_then(|b| b.tag).expect("a number").id
    };
    let delete = |id| Command::DeleteBitmap { id };
    let (idle, used) = (of(1), of(2));
    assert_eq!(would(&set, delete(used)).err(), Some(Code::InUse));
    let unknown = crate::set::member::BitmapId(99);
    assert_eq!(would(&set, delete(unknown)).err(), Some(Code::NoSuchBitmap));
    let effects = give(&mut set, delete(idle));
    let _ = good(effects);
    assert_eq!(would(&set, delete(idle)).err(), Some(Code::NoSuchBitmap));
    let bare = returning(1, AttachPolicy::Minicopy);
    assert_eq!(code(set.plan_attach(&bare)), Code::NoBitmap);
    // Its step is under way still.
    let _ = expel(&mut set, "m3");
    assert_eq!(would(&set, delete(used)).err(), Some(Code::InUse));
}

#[test]
fn a_new_image_comes_in_under_a_name_of_its_own() {
    let new = |name: &str, blank| Attach {
        blank,
        ..new_image(name)
    };
    let plan = |set: &ShadowSet, attach: &Attach| {
        let plan = set.plan_attach(attach);
        plan.map(|plan| plan.kind).map_err(|refusal| refusal.code)
    };
    let two = set(2);
    assert_eq!(plan(&two, &new("m2", true)), Err(Code::AlreadyMember));
    assert_eq!(plan(&two, &new("m3", false)), Err(Code::NeedsConfirm));
    assert_eq!(plan(&two, &new("m3", true)), Ok(CopyKind::Full));
    let confirmed = Attach {
        confirm: true,
        ..new("m3", false)
    };
    assert_eq!(plan(&two, &confirmed), Ok(CopyKind::Full));
    assert_eq!(plan(&set(6), &new("m7", true)), Err(Code::TooManyMembers));
}

#[test]
fn who_is_no_member_is_told_who_the_members_are() {
    let mut set = set(3);
    let _ = detach(&mut set, "m2", Policy::Full);
    let _ = give(
        &mut set,
        Command::Release {
            member: named("m2"),
        },
    );
    let refusal = set.dry_run(
        Command::Expel {
            member: named("m2"),
        },
        &[],
    );
    let refusal = refusal.expect_err("no member any more");
    assert_eq!(refusal.code, Code::NoSuchMember);
    assert!(
        refusal.text.ends_with("the members are m1, m3"),
        "{refusal}"
    );
}

/// The start of copies that a mount has found to do can be put off; those of commands go on.
#[test]
fn copies_of_the_mount_wait_while_they_are_delayed_and_others_do_not() {
    let mut from = beginning();
    from.limits.delayed = true;
    let starts = [Start::Source, Start::Copy { resume: false }, Start::Source];
    let members = starts.iter().enumerate();
    let members = members.map(|(place, start)| (member(place, UNIT), *start));
    let mut set = begun(from, members.collect());
    let states = |set: &ShadowSet| {
        set.operations()
            .iter()
            .map(|o| o.state.name())
            .collect::<Vec<_>>()
    };
    assert_eq!(states(&set), ["queued"]);
    let _ = detach(&mut set, "m3", Policy::Full);
    let _ = attach(&mut set, returning(2, AttachPolicy::Full));
    assert_eq!(states(&set), ["queued", "running"]);
    let _ = run(&mut set, Event::Limits(Limits::default()));
    assert_eq!(states(&set), ["running", "running"]);
    assert!(set.operations().iter().all(|o| o.started.is_some()));
}
