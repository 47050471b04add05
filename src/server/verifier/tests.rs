//! Goal: a verify comes to its end whatever hangs, and blames nobody for it. Method: members in memory that hang when
//! they are told to, and the work of a set that is at rest.

use std::sync::atomic::Ordering::SeqCst;

use super::*;
use crate::server::verification::tests::{Bed, SOON};
use crate::set::tests::{beginning, member};
use crate::set::{
    Beginning, Command, Effect, Geometry, Moment, RepairBy, ShadowSet, Start, Ticket,
};

/// The work of a verify of the whole unit, as a set of so many members gives it.
fn work(geometry: Geometry, members: usize, repair: Option<RepairBy>) -> VerifyWork {
    let beginning = Beginning {
        geometry,
        ..beginning()
    };
    let source = |place| (member(place, geometry.size().0), Start::Source);
    let members = (0..members).map(source).collect();
    let mut set = ShadowSet::assemble(beginning, members).expect("sources");
    drop(set.begin());
    let range = None;
    let verify = Event::Command(Ticket::new(1), Command::Verify { range, repair });
    let effects = set.handle(Moment(1), verify);
    let work = effects.into_iter().find_map(|effect| match effect {
        Effect::StartVerify(work) => Some(*work),
        _ => None,
    });
    work.expect("it runs")
}

/// A verify that repairs from the first member, if it repairs.
fn begun(bed: &Bed, repairs: bool) -> (Verifier, OpId) {
    begun_by(bed, repairs.then(|| RepairBy::Member("m1".to_owned())))
}

fn begun_by(bed: &Bed, repair: Option<RepairBy>) -> (Verifier, OpId) {
    let (pipeline, messages) = (Arc::clone(&bed.pipeline), bed.pipeline.messages.clone());
    let mut verifier = Verifier::new(pipeline, messages, (None, Crowd::default()));
    let work = work(bed.pipeline.geometry(), bed.members.len(), repair);
    let op = work.op();
    verifier.start(work);
    (verifier, op)
}

/// Two members that differ. Nobody watches, so that an abort holds.
fn differing() -> Bed {
    let bed = Bed::unwatched(&[false; 2]);
    bed.members[1].bytes.lock().expect("no panic")[..4096].fill(9);
    bed
}

/// All members hang, and nobody waits for them any longer.
fn abort(bed: &Bed) {
    bed.pipeline.silent.store(0b11, SeqCst);
    bed.abort(&[0, 1]);
}

/// It asked the member on, and a stop of the unit waited for it.
#[test]
fn a_verify_that_waits_for_a_member_ends_when_it_is_told() {
    let bed = Bed::new(2);
    bed.members.iter().for_each(|member| member.hang(true));
    let (verifier, op) = begun(&bed, false);
    // Once more, with nothing held.
    bed.members[0].is_called(2);
    verifier.stop(op);
    bed.hears("VerifyEnded");
}

#[test]
fn an_abort_ends_the_wait_of_a_verify() {
    let bed = Bed::new(2);
    bed.members.iter().for_each(|member| member.hang(true));
    let (verifier, op) = begun(&bed, false);
    bed.members[0].is_called(2);
    bed.pipeline.end_watch();
    verifier.stop(op);
    abort(&bed);
    bed.hears("VerifyEnded");
}

/// What it writes comes before any later write (I4).
#[test]
fn a_repair_that_is_given_up_ends_and_keeps_its_fence() {
    let bed = differing();
    bed.members[1].answers.store(1, SeqCst);
    bed.members[1].hang(true);
    let (verifier, op) = begun(&bed, true);
    // The first one was its read.
    bed.members[1].is_called(2);
    verifier.stop(op);
    abort(&bed);
    bed.hears("VerifyEnded");
    bed.pipeline.aborted.store(false, SeqCst);
    bed.pipeline.silent.store(0, SeqCst);
    let written = bed.write(0);
    assert!(written.recv_timeout(Duration::from_secs(1)).is_err());
    bed.members[1].hang(false);
    assert_eq!(written.recv_timeout(SOON), Ok(Ok(())));
    assert_eq!((bed.members[0].first(), bed.members[1].first()), (7, 7));
}

/// The other one was taken for good, although it hung as well, and the one that was flushed was expelled.
#[test]
fn nobody_is_blamed_for_a_flush_of_a_repair_that_is_given_up() {
    let bed = differing();
    bed.members[0].answers.store(1, SeqCst);
    bed.members[0].hang(true);
    let (verifier, op) = begun(&bed, true);
    // The first one was its read.
    bed.members[0].is_called(2);
    abort(&bed);
    verifier.stop(op);
    bed.hears("VerifyEnded");
    assert!(!bed.has_heard("Failed"));
    assert_eq!(bed.members[1].first(), 9);
}

/// It did the same step again and again.
#[test]
fn a_verify_ends_although_its_repair_fails_on_every_source() {
    let bed = Bed::unwatched(&[false; 3]);
    for (place, member) in bed.members.iter().enumerate() {
        member.bytes.lock().expect("no panic")[place * 4096..][..512].fill(9);
        member.cannot_write.store(true, SeqCst);
    }
    let (_verifier, _) = begun_by(&bed, Some(RepairBy::Majority));
    bed.hears("VerifyEnded");
    assert!(bed.has_heard("Failed"));
}
