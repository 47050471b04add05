//! Goal: what one bad place of the master costs after a crash is nothing that another member has. Method: the data path on
//! members in memory, of which the first is the master and the others are to be merged.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crossbeam_channel::unbounded;

use super::super::pipeline::Errno;
use super::super::rescue::Held;
use super::super::shares::Step;
use super::super::step::{Hold, Scratch, Stop, Target, copy_range};
use super::super::verification::tests::{Bed, id};
use super::ALIGN;
use crate::set::{ByteRange, Bytes, MemberId, Role};

const PAGE: usize = ALIGN as usize;
/// The bad block of the second page.
const BAD: usize = PAGE + 512;
const EIO: Errno = Errno(libc::EIO);

/// Gives a page of the members these bytes: all others are 1.
fn fill(bed: &Bed, page: usize, contents: [u8; 3]) {
    for (member, byte) in bed.members.iter().zip(contents) {
        let mut bytes = member.bytes.lock().expect("no panic");
        bytes[page * PAGE..][..PAGE].fill(byte);
    }
}

/// What each member has in a page, at both ends.
fn held(bed: &Bed, page: usize) -> Vec<[u8; 2]> {
    let ends = |bytes: &[u8]| [bytes[page * PAGE], bytes[(page + 1) * PAGE - 1]];
    let members = bed.members.iter();
    let held = members.map(|member| ends(&member.bytes.lock().expect("no panic")));
    held.collect()
}

/// A member has a bad block in a page.
fn lose(bed: &Bed, member: usize, page: usize) {
    let at = page as u64 * ALIGN + 512;
    let mut lost = bed.members[member].lost.lock().expect("no panic");
    lost.push(at..at + 512);
}

/// The second page differs, and the master has a bad block there.
fn bed() -> Bed {
    bed_but(|_| None)
}

fn bed_but(role: impl Fn(MemberId) -> Option<Role>) -> Bed {
    let bed = Bed::merging_but(3, role);
    fill(&bed, 1, [7, 8, 9]);
    lose(&bed, 0, 1);
    bed
}

fn read(bed: &Bed, at: usize, len: usize) -> Result<Vec<u8>, Errno> {
    let mut buf = vec![0; len];
    bed.pipeline.read(at as u64, &mut buf)?;
    Ok(buf)
}

/// Copies a range, as a step would.
fn copy(bed: &Bed, range: ByteRange, targets: &[usize]) -> Result<Option<u64>, Stop> {
    let fenced = bed.pipeline.enter_to_copy(range).expect("somebody answers");
    let regions = bed.pipeline.geometry().regions_of(range);
    let step = Step::of_nobody(fenced.permit_copy([regions]), id(targets[0]));
    let mut hold = Hold::new(&bed.pipeline, Held::Step(step));
    let mut targets: Vec<Target> = targets
        .iter()
        .map(|at| Target::new(id(*at), true))
        .collect();
    let mut targets: Vec<&mut Target> = targets.iter_mut().collect();
    let mut scratch = Scratch::new(64 << 10);
    let copied = copy_range(&mut hold, (&mut targets[..], range), &mut scratch);
    assert!(targets.iter().all(|target| target.failed.is_none()));
    copied
}

/// Nothing has changed, and nobody is to leave for it.
fn is_as_before(bed: &Bed) {
    assert!(!bed.has_heard_by_now("ReadRepaired") && !bed.has_heard("Failed"));
    assert_eq!(held(bed, 1), [[7, 7], [8, 8], [9, 9]]);
}

/// The read failed, although all had what was flushed.
#[test]
fn what_the_master_cannot_read_is_that_of_who_is_to_be_merged() {
    let bed = bed();
    let answer = read(&bed, 0, 3 * PAGE).expect("an answer");
    let ends = |page: usize| [answer[page * PAGE], answer[(page + 1) * PAGE - 1]];
    assert_eq!([0, 1, 2].map(ends), [[1, 1], [8, 8], [1, 1]]);
    assert_eq!(held(&bed, 1), [[8, 8]; 3]);
    bed.hears("ReadRepaired(MemberId(0), ByteRange { start: 4096, end: 8192 })");
    assert!(bed.has_heard("Failed"), "all others lack it first");
    assert!(!bed.has_heard("ReadFailed 0"), "there is nothing to repair");
}

/// The merges ended, and all members but the master left.
#[test]
fn a_merge_goes_on_behind_a_bad_place_of_the_master() {
    let bed = bed();
    // Behind a part that was read; and where the next region begins, in the middle of a page.
    for page in [15, 16, 20, 200] {
        fill(&bed, page, [7, 8, 9]);
        lose(&bed, 0, page);
    }
    let whole = bed.pipeline.geometry().whole();
    assert!(matches!(copy(&bed, whole, &[1, 2]), Ok(None)));
    for page in [1, 15, 16, 20, 200] {
        assert_eq!(held(&bed, page), [[8, 8]; 3], "{page}");
    }
    let bytes = bed.members.iter();
    let mut bytes = bytes.map(|member| member.bytes.lock().expect("no panic").clone());
    let master = bytes.next();
    assert!(bytes.all(|bytes| Some(bytes) == master));
    assert!(!bed.has_heard_by_now("Failed flush"));
}

/// Half of a page cannot be written where the rest of it cannot be read.
#[test]
fn a_page_is_mended_whole_where_a_region_ends() {
    let bed = Bed::merging(3);
    let region = bed.pipeline.geometry().region_bytes();
    let page = (region / ALIGN) as usize;
    assert_ne!(region % ALIGN, 0, "the region ends inside the page");
    fill(&bed, page, [7, 8, 9]);
    lose(&bed, 0, page);
    assert_eq!(read(&bed, page * PAGE + 512, 512), Ok(vec![8; 512]));
    assert_eq!(held(&bed, page), [[8, 8], [8, 8], [8, 9]]);
    bed.hears("ReadRepaired(MemberId(0), ByteRange { start: 61440, end: 65536 })");
}

#[test]
fn bad_places_of_several_members_side_by_side_cost_nothing() {
    let bed = bed();
    fill(&bed, 2, [7, 8, 9]);
    lose(&bed, 0, 2);
    lose(&bed, 1, 1);
    lose(&bed, 2, 2);
    let answer = read(&bed, PAGE, 2 * PAGE).expect("an answer");
    assert_eq!((answer[0], answer[PAGE]), (9, 8));
    assert_eq!(held(&bed, 1), [[9, 9]; 3]);
    assert_eq!(held(&bed, 2), [[8, 8]; 3]);
    bed.hears("ReadRepaired(MemberId(0), ByteRange { start: 4096, end: 12288 })");
}

/// Its contents are from before the write that it has lost.
#[test]
fn who_cannot_be_flushed_or_has_left_is_not_believed() {
    for leaves in [false, true] {
        let bed = bed();
        bed.members[1].fails_flush.store(!leaves, SeqCst);
        if leaves {
            bed.pipeline.give_up(id(1));
        }
        assert_eq!(read(&bed, BAD, 512), Ok(vec![9; 512]));
        assert_eq!(held(&bed, 1)[0], [9, 9]);
        assert_eq!(bed.has_heard_by_now("Failed flush"), !leaves);
    }
}

#[test]
fn where_nobody_is_believed_the_read_fails() {
    let bed = bed();
    bed.members[1..]
        .iter()
        .for_each(|m| m.fails_flush.store(true, SeqCst));
    assert_eq!(read(&bed, BAD, 512), Err(EIO));
    assert_eq!(held(&bed, 1), [[7, 7], [8, 8], [9, 9]]);
    assert!(bed.has_heard_by_now("Failed flush") && !bed.has_heard("ReadRepaired"));
}

#[test]
fn a_master_that_has_lost_a_write_is_not_mended() {
    let bed = bed();
    bed.members[0].fails_flush.store(true, SeqCst);
    assert_eq!(read(&bed, BAD, 512), Err(EIO));
    is_as_before(&bed);
}

/// What it has there now is not known: all others lack it.
#[test]
fn a_master_that_cannot_be_mended_is_the_master_still() {
    for stays in [false, true] {
        let bed = bed();
        bed.members[0].cannot_write.store(!stays, SeqCst);
        bed.members[0].stays_lost.store(stays, SeqCst);
        assert_eq!(read(&bed, BAD, 512), Err(EIO));
        assert!(bed.has_heard_by_now("Failed"));
        assert!(!bed.has_heard("Failed flush") && !bed.has_heard("ReadRepaired"));
        assert_eq!(held(&bed, 1)[1..], [[8, 8], [9, 9]]);
        // What is beside the bad place is read, and merged.
        assert_eq!(read(&bed, 0, 512), Ok(vec![1; 512]));
    }
}

/// All others lack it before, and that is durable.
#[test]
fn a_master_is_not_written_before_all_others_lack_it() {
    let bed = bed();
    let verdicts = Arc::clone(&bed.verdicts);
    let held_back = verdicts.lock().expect("no panic");
    let (pipeline, (done, answer)) = (Arc::clone(&bed.pipeline), unbounded());
    std::thread::spawn(move || done.send(pipeline.read(BAD as u64, &mut [0; 512])));
    // A flush, and a read of what it has.
    bed.members[1].is_called(2);
    assert!(answer.recv_timeout(Duration::from_millis(500)).is_err());
    assert_eq!(held(&bed, 1), [[7, 7], [8, 8], [9, 9]]);
    drop(held_back);
    assert_eq!(answer.recv(), Ok(Ok(512)));
    assert_eq!(held(&bed, 1)[0], [8, 8]);
}

#[test]
fn nobody_is_mended_for_who_is_not_merged() {
    let bed = bed();
    let range = bed.pipeline.geometry().clip(Bytes(0), Bytes(8192));
    let copied = copy(&bed, range.expect("inside"), &[5]);
    assert!(matches!(copied, Err(Stop::Unreadable)));
    is_as_before(&bed);
}

/// The sources of a unit that is stalled are quiet.
#[test]
fn nobody_is_mended_during_a_stall() {
    let bed = bed();
    bed.pipeline.gate().stall(true);
    assert_eq!(read(&bed, BAD, 512), Err(EIO));
    is_as_before(&bed);
    bed.pipeline.gate().stall(false);
    assert_eq!(read(&bed, BAD, 512), Ok(vec![8; 512]));
}

#[test]
fn who_is_copied_to_is_not_believed() {
    let bed = bed_but(|member| (member != id(0)).then_some(Role::CopyTarget));
    let range = bed.pipeline.geometry().clip(Bytes(0), Bytes(8192));
    let copied = copy(&bed, range.expect("inside"), &[1, 2]);
    assert!(matches!(copied, Err(Stop::Unreadable)));
    is_as_before(&bed);
}

/// One that hangs in the middle would leave them different.
#[test]
fn of_several_sources_none_is_mended() {
    let bed = bed_but(|member| (member == id(1)).then_some(Role::Source));
    lose(&bed, 1, 1);
    assert_eq!(read(&bed, BAD, 512), Err(EIO));
    is_as_before(&bed);
}

/// What has been merged may have been read: a page in which two regions meet is that of who has been merged in one.
#[test]
fn what_has_been_merged_stays_what_it_is() {
    let bed = Bed::merging(3);
    let geometry = bed.pipeline.geometry();
    let region = geometry.region_bytes();
    let page = (region / ALIGN) as usize;
    // The first region is merged in the third member alone.
    let first = geometry.clip(Bytes(0), Bytes(region)).expect("inside");
    let live = bed.pipeline.live();
    let step = live.view().unmerged(first).expect("stale");
    live.view().merged(step, [id(2)].into_iter().collect());
    fill(&bed, page, [7, 8, 9]);
    let behind = page * PAGE + PAGE - 512;
    let mut lost = bed.members[0].lost.lock().expect("no panic");
    lost.push(behind as u64..behind as u64 + 512);
    drop(lost);
    assert_eq!(read(&bed, behind, 512), Ok(vec![9; 512]));
    assert_eq!(held(&bed, page)[0], [9, 9]);
}

/// A later write could come before it (I4).
#[test]
fn a_mend_that_hangs_keeps_its_fence() {
    let bed = bed();
    bed.members[0].hangs_at_write.store(true, SeqCst);
    let pipeline = Arc::clone(&bed.pipeline);
    let reads = std::thread::spawn(move || pipeline.read(BAD as u64, &mut [0; 512]));
    bed.hears("Silent");
    let calls = bed.calls();
    let written = bed.write(ALIGN);
    assert!(written.recv_timeout(Duration::from_secs(1)).is_err());
    assert_eq!(bed.calls(), calls);
    bed.members[0].hang(false);
    assert_eq!(reads.join().expect("no panic"), Ok(512));
    assert!(matches!(written.recv(), Ok(Ok(()))));
    assert_eq!(held(&bed, 1), [[7, 7]; 3]);
}
