//! Detach, write, attach: the member is equal again and exactly the marked regions were copied.

use std::sync::atomic::{AtomicBool, Ordering};

use shadowset::io::Zero;
use shadowset::server::Request;
use shadowset::set::{AttachPolicy, Policy};
use shadowset::testing::Rng;

use crate::bed::{Bed, attach};

const REGION: u64 = 65_024;

#[test]
fn a_minicopy_copies_exactly_the_regions_that_were_written() {
    let mut bed = Bed::new(3, REGION * 40 + 512);
    let unit = bed.handle();
    unit.pipeline().write(0, &[1; 100_000]).expect("written");
    let answer = bed.detach("m3", Policy::Minicopy).expect("detached");
    assert!(
        answer.facts.contains(&("set_bits", "0".into())),
        "an idle unit marks nothing"
    );
    let quiet = bed.image(2);
    // Two regions by one byte on each side of a border, one by a discard, the short last one.
    unit.pipeline()
        .write(REGION * 3 - 1, &[2, 2])
        .expect("written");
    unit.pipeline()
        .zero(REGION * 7, 512, Zero::Punch)
        .expect("discarded");
    unit.pipeline()
        .write(REGION * 40, &[3; 512])
        .expect("written");
    assert_eq!(bed.image(2), quiet, "nothing writes a detached image");
    bed.attach("m3", AttachPolicy::Minicopy).expect("attached");
    assert_eq!(bed.wait(), REGION * 3 + 512);
    unit.pipeline()
        .write(REGION * 20, &[4; 9])
        .expect("written");
    bed.stop();
    assert!(bed.image(0) == bed.image(1) && bed.image(1) == bed.image(2));
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn cycles_under_load_end_with_equal_members() {
    let mut bed = Bed::new(3, 4 << 20);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..3u64 {
            let (unit, stop) = (bed.handle(), &stop);
            scope.spawn(move || {
                let mut turn = writer + 1;
                while !stop.load(Ordering::Relaxed) {
                    turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let at = (turn >> 20) % ((4 << 20) - 5000);
                    let data = vec![(turn >> 32) as u8; 1 + (turn >> 40) as usize % 5000];
                    match turn % 16 {
                        0 => unit.pipeline().zero(at, data.len() as u64, Zero::Punch),
                        1 => unit.pipeline().flush(),
                        _ => unit.pipeline().write(at, &data),
                    }
                    .expect("good");
                }
            });
        }
        // Writers end when a check fails, too.
        let _end = End(&stop);
        for cycle in 0..20 {
            let member = ["m1", "m2", "m3"][cycle % 3];
            bed.detach(member, Policy::Minicopy).expect("detached");
            let quiet = bed.image(cycle % 3);
            bed.handle()
                .pipeline()
                .write(0, &[cycle as u8; 700])
                .expect("written");
            assert!(
                bed.image(cycle % 3) == quiet,
                "I5: the image of {member} has changed"
            );
            bed.attach(member, AttachPolicy::Minicopy)
                .expect("attached");
            bed.wait();
        }
    });
    bed.stop();
    assert!(bed.image(0) == bed.image(1) && bed.image(1) == bed.image(2));
}

#[test]
fn a_member_detached_without_a_bitmap_is_copied_in_full_and_keeps_holes() {
    let mut bed = Bed::new(2, 64 << 20);
    let unit = bed.handle();
    unit.pipeline()
        .write(5 << 20, &[7; 1 << 20])
        .expect("written");
    bed.detach("m2", Policy::Full).expect("detached");
    unit.pipeline()
        .write(9 << 20, &[8; 1 << 20])
        .expect("written");
    bed.attach("m2", AttachPolicy::MinicopyOptional)
        .expect("attached");
    assert_eq!(bed.wait(), 64 << 20);
    bed.stop();
    assert!(bed.image(0) == bed.image(1));
    let blocks =
        std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(bed.path(1)).expect("there"));
    assert!(
        blocks * 512 < 3 << 20,
        "holes were written: {blocks} blocks"
    );
}

/// Pages of data, of zeros that were written, and holes, in any order: the target gets each as it is.
#[test]
fn a_copy_makes_holes_of_holes_and_of_nothing_else() {
    const PAGE: u64 = 4096;
    let mut bed = Bed::new(2, 8 << 20);
    let unit = bed.handle();
    let pipeline = unit.pipeline();
    pipeline.write(0, &[7; 8 << 20]).expect("written");
    bed.detach("m2", Policy::Full).expect("detached");
    let mut rng = Rng::new(7);
    let mut page = 0;
    while page < (8 << 20) / PAGE {
        let (at, pages) = (
            page * PAGE,
            1 + rng.below(40).min((8 << 20) / PAGE - page - 1),
        );
        let bytes = pages * PAGE;
        match rng.below(3) {
            0 => {}
            1 => pipeline
                .write(at, &vec![0; bytes as usize])
                .expect("written"),
            _ => pipeline.zero(at, bytes, Zero::Punch).expect("punched"),
        }
        page += pages;
    }
    bed.attach("m2", AttachPolicy::Full).expect("attached");
    assert_eq!(bed.wait(), 8 << 20);
    bed.stop();
    assert!(bed.image(0) == bed.image(1));
    let blocks = [0, 1].map(|member| {
        let data = std::fs::metadata(bed.path(member)).expect("there");
        std::os::unix::fs::MetadataExt::blocks(&data)
    });
    assert_eq!(blocks[0], blocks[1]);
    assert!(blocks[0] < (7 << 20) / 512, "there are no holes");
}

#[test]
fn a_stopped_unit_starts_again_without_a_copy_and_knows_who_left() {
    let mut bed = Bed::new(3, 4 << 20);
    bed.handle()
        .pipeline()
        .write(1000, &[9; 3000])
        .expect("written");
    bed.detach("m2", Policy::Minicopy).expect("detached");
    bed.handle()
        .pipeline()
        .write(5000, &[1; 3000])
        .expect("written");
    let created = bed.handle().state().created;
    bed.stop();
    bed.start();
    let state = bed.handle().state();
    assert!(created.is_some() && state.created == created, "{created:?}");
    let states: Vec<&str> = state.set.members.iter().map(|m| m.state).collect();
    assert_eq!(states, ["source", "detached", "source"]);
    assert!(state.set.operations.is_empty(), "no copy starts unasked");
    let mut buf = [0; 3000];
    bed.handle().pipeline().read(5000, &mut buf).expect("read");
    assert_eq!(buf, [1; 3000]);
    bed.attach("m2", AttachPolicy::Full).expect("attached");
    bed.wait();
    bed.stop();
    assert!(bed.image(0) == bed.image(1) && bed.image(1) == bed.image(2));
}

#[test]
fn a_cancelled_copy_leaves_a_bitmap_of_what_is_left() {
    let mut bed = Bed::new(2, 32 << 20);
    bed.handle()
        .pipeline()
        .write(0, &vec![5; 32 << 20])
        .expect("written");
    // A copy may have ended before the command comes; another one is begun then.
    let cancelled = (0..50).any(|_| {
        bed.detach("m2", Policy::Full).expect("detached");
        bed.attach("m2", AttachPolicy::Full).expect("attached");
        let state = bed.handle().state();
        let op = state.set.operations.last().expect("a copy").id;
        let cancelled = bed.command(Request::Cancel(op)).is_ok();
        if !cancelled {
            bed.wait();
        }
        cancelled
    });
    assert!(cancelled, "no copy was caught while it ran");
    let state = bed.handle().state();
    assert_eq!(state.set.members[1].state, "detached");
    let left = state.set.bitmaps[0].map.stale_bytes();
    bed.attach("m2", AttachPolicy::Minicopy).expect("attached");
    assert_eq!(bed.wait(), left, "the rest, and no more");
    bed.stop();
    assert!(bed.image(0) == bed.image(1));
}

#[test]
fn a_compare_copy_writes_what_differs_and_nothing_else() {
    let bed = Bed::new(2, 8 << 20);
    let unit = bed.handle();
    unit.pipeline()
        .write(3 << 20, &[7; 100_000])
        .expect("written");
    bed.detach("m2", Policy::Full).expect("detached");
    let changed = |bed: &Bed| {
        let metadata = std::fs::metadata(bed.path(1)).expect("there");
        metadata.modified().expect("a time")
    };
    let before = changed(&bed);
    bed.attach("m2", AttachPolicy::Compare).expect("attached");
    assert_eq!(bed.wait(), 0, "nothing differs");
    assert_eq!(changed(&bed), before, "an equal image is not written");
    // Differences in the source, and in the target alone: in data, in a hole.
    bed.detach("m2", Policy::Minicopy).expect("detached");
    unit.pipeline().write(1 << 20, &[8; 512]).expect("written");
    let mut spoilt = bed.image(1);
    (
        spoilt[3 << 20],
        spoilt[(5 << 20) + 4095],
        spoilt[(8 << 20) - 1],
    ) = (1, 1, 1);
    bed.overwrite(1, &spoilt);
    let attach = attach("m2", AttachPolicy::MinicopyOptional);
    let plan = bed.command(Request::DryRun(Box::new(attach)));
    let facts = plan.expect("planned").facts;
    assert!(facts.contains(&("verdict", "compare".into())), "{facts:?}");
    bed.attach("m2", AttachPolicy::MinicopyOptional)
        .expect("attached");
    assert_eq!(bed.wait(), 4 * 4096);
    let state = unit.state();
    let op = state.set.operations.last().expect("a copy");
    assert_eq!(op.kind(), "compare-copy");
    assert_eq!(op.progress.equal_bytes(), (8 << 20) - 4 * 4096);
    assert!(bed.image(0) == bed.image(1));
}
