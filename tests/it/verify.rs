//! Repairs that fail, and what is left of them. Needs root and a file system with immutable files.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use shadowset::server::Request;
use shadowset::server::setup::Durability;
use shadowset::set::{AttachPolicy, Code, Fate, RepairBy};

use crate::bed::Bed;
use crate::trouble::Unwritable;

const REGION: u64 = 65_024;

/// Somebody changes a byte of an image behind the unit's back.
fn damage(bed: &Bed, member: usize, at: u64) {
    let image = OpenOptions::new().write(true).open(bed.path(member));
    let image = image.expect("the image");
    image.write_all_at(b"damaged", at).expect("written");
    image.sync_all().expect("on the disk");
}

fn repair(bed: &Bed) -> Vec<Fate> {
    let request = Request::Verify {
        range: None,
        repair: Some(RepairBy::Majority),
    };
    bed.command(request).expect("it begins");
    bed.wait();
    let state = bed.handle().state();
    let last = state.set.operations.last().expect("the verify");
    assert_eq!(last.state.name(), "done");
    let report = last.verify().expect("a verify").findings.report();
    report.runs.iter().map(|run| run.fate).collect()
}

/// Brings a member back as soon as its image is let go of: that of one that was expelled is closed beside.
fn attach(bed: &Bed, member: &str) {
    loop {
        match bed.attach(member, AttachPolicy::MinicopyOptional) {
            Err(refusal) if matches!(refusal.code, Code::ImageLocked | Code::InUse) => {
                std::thread::yield_now();
            }
            answer => break drop(answer.expect("it may come back")),
        }
    }
}

#[test]
fn a_member_that_cannot_be_repaired_is_expelled_and_comes_back() {
    let mut bed = Bed::durable(3, REGION * 4, Durability::Power);
    let unit = bed.handle();
    let pipeline = unit.pipeline();
    pipeline
        .write(0, &[7; 4 * REGION as usize])
        .expect("written");
    pipeline.flush().expect("flushed");
    damage(&bed, 1, 5);
    damage(&bed, 2, REGION * 2);
    let unwritable = Unwritable::new(bed.path(2));
    assert_eq!(repair(&bed), [Fate::Repaired, Fate::Failed]);
    let state = |member| unit.state().member(member).expect("known").state;
    assert_eq!((state("m2"), state("m3")), ("source", "expelled"));
    assert_eq!(bed.image(1), bed.image(0));
    let mut byte = [0];
    pipeline.read(REGION * 2, &mut byte).expect("answered");
    assert_eq!(byte, [7]);
    drop(unwritable);
    attach(&bed, "m3");
    bed.wait();
    bed.stop();
    // By minicopy, or by compare copy when the flag has gone behind its stamp.
    assert_eq!(bed.image(2), bed.image(0));
}
