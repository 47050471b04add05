//! Goal: no flush succeeds on a member behind one that has failed until it is settled who leaves for it, in whatever order
//! results come (I10). Method: members in memory whose flush fails once, as the system tells of lost writes once.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::super::results::Results;
use super::super::verification::tests::{Bed, eventually, id};
use crate::set::{ByteRange, Bytes, MemberSet};

/// Flushes both members of a bed; the second one may fail.
fn flush(bed: &Bed) -> Results {
    let live = bed.pipeline.live();
    let results = bed.pipeline.flush_of(&live, live.view().writers());
    assert!(results.good.contains(id(0)));
    results
}

fn fails_once(bed: &Bed) {
    bed.members[1].fails_flush.store(true, SeqCst);
}

fn failed(results: &Results) -> bool {
    results.failed == only(1)
}

fn only(place: usize) -> MemberSet {
    [id(place)].into_iter().collect()
}

/// A failure is in the results of all flushes until it is settled. One of these that came late once settled the next
/// failure, and a flush behind that was acknowledged.
#[test]
fn a_late_result_settles_no_newer_failure() {
    let bed = Bed::new(2);
    let lanes = bed.pipeline.lanes();
    fails_once(&bed);
    let (first, late) = (flush(&bed), flush(&bed));
    assert!(failed(&first) && failed(&late));
    lanes.settled(&first);
    assert!(!failed(&flush(&bed)));
    fails_once(&bed);
    let newer = flush(&bed);
    lanes.settled(&late);
    assert!(failed(&newer) && failed(&flush(&bed)));
    lanes.settled(&newer);
    assert!(!failed(&flush(&bed)));
}

/// A flush that nobody waited for any more once failed without a word: what it lost was acknowledged by the next one.
#[test]
fn a_flush_that_is_given_up_and_fails_late_fails_the_next_one() {
    let bed = Bed::new(2);
    bed.members[1].hang(true);
    fails_once(&bed);
    let results = std::thread::scope(|scope| {
        let flushed = scope.spawn(|| flush(&bed));
        bed.members[1].is_called(1);
        bed.pipeline.lanes().give_up(id(1), || true);
        flushed.join().expect("no panic")
    });
    assert!(failed(&results));
    bed.pipeline.lanes().settled(&results);
    let storages = Arc::strong_count(&bed.members[1]);
    bed.members[1].hang(false);
    eventually(|| Arc::strong_count(&bed.members[1]) < storages);
    let next = flush(&bed);
    assert!(failed(&next));
    // Whether it is the same member that comes back, or another one.
    bed.pipeline.lanes().welcome(id(1));
    assert!(!failed(&flush(&bed)));
}

/// The watching thread knew of a departure whose member had come back, and failed the first flush behind its return.
#[test]
fn a_flush_of_a_member_that_has_come_back_is_not_given_up() {
    let bed = Bed::new(2);
    bed.members[1].hang(true);
    let results = std::thread::scope(|scope| {
        let flushed = scope.spawn(|| flush(&bed));
        bed.members[1].is_called(1);
        bed.pipeline
            .lanes()
            .give_up(id(1), || bed.pipeline.is_gone(id(1)));
        bed.members[1].hang(false);
        flushed.join().expect("no panic")
    });
    assert!(results.failed.is_empty());
}

fn range(bed: &Bed) -> ByteRange {
    let range = bed.pipeline.geometry().clip(Bytes(0), Bytes(4096));
    range.expect("inside")
}

/// A read repair once flushed past the lane: between its failure and the verdict a flush succeeded on the member. It counted as a
/// write of what it had repaired, as if nothing else were lost.
#[test]
fn a_read_repair_that_cannot_flush_fails_the_flushes_behind_it() {
    let bed = Bed::new(2);
    let verdict = bed.verdicts.lock().expect("no panic");
    fails_once(&bed);
    bed.pipeline.repair_later(id(1), range(&bed));
    bed.hears("Failed flush");
    assert!(failed(&flush(&bed)));
    drop(verdict);
    eventually(|| !failed(&flush(&bed)));
}

/// Flushes that take next to no time are made by the thread that asks. It comes to the second member when the first one
/// holds it and is given up.
#[test]
fn a_flush_that_a_member_holds_goes_on_with_the_next() {
    let bed = Bed::new(2);
    let all: MemberSet = [id(0), id(1)].into_iter().collect();
    assert!(!bed.pipeline.lanes().are_quick(all), "nothing is known yet");
    // The first ones may have been held up by others on the machine.
    eventually(|| bed.pipeline.flush().is_ok() && bed.pipeline.lanes().are_quick(all));
    let calls = || bed.calls();
    let [first, second] = calls();
    bed.members[0].hang(true);
    let (tell, told) = crossbeam_channel::bounded(1);
    let pipeline = Arc::clone(&bed.pipeline);
    let asker = std::thread::spawn(move || {
        pipeline.flush_then(Box::new(move |flushed| {
            let _ = tell.send(flushed);
        }));
    });
    bed.members[0].is_called(first + 1);
    assert!(
        !bed.pipeline.lanes().are_quick(all),
        "another one would wait"
    );
    assert_eq!(calls()[1], second, "one after the other");
    let watch = &bed.pipeline.watch;
    let (calls_out, flushes_out) = (watch.oldest()[0], watch.oldest_flush()[0]);
    assert!(
        calls_out.is_none() && flushes_out.is_some(),
        "it may take as long as a flush"
    );
    bed.pipeline.give_up(id(0));
    assert_eq!(told.recv(), Ok(Ok(())));
    assert_eq!(calls()[1], second + 1);
    bed.members[0].hang(false);
    asker.join().expect("no panic");
    assert!(bed.pipeline.flying.wait(std::time::Duration::from_secs(30)));
}

#[test]
fn a_quick_flush_that_fails_is_acknowledged_when_it_is_settled() {
    let bed = Bed::new(2);
    let all = [id(0), id(1)].into_iter().collect();
    eventually(|| bed.pipeline.flush().is_ok() && bed.pipeline.lanes().are_quick(all));
    fails_once(&bed);
    assert_eq!(bed.pipeline.flush(), Ok(()));
    bed.hears("Failed");
    assert!(!failed(&flush(&bed)), "settled");
}
