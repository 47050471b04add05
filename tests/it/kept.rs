//! Bitmaps that are kept: what a stop, a loss of the state directory and commands leave of them.

use std::path::Path;

use shadowset::server::setup::{Durability, Mounting};
use shadowset::server::{EventRecord, Handle, Request, start};
use shadowset::set::{AttachPolicy, Bytes, Code, Policy};

use crate::bed::Bed;

const REGION: u64 = 65_024;

fn write(unit: &Handle, at: u64) {
    unit.pipeline().write(at, &[7; 512]).expect("written");
}

fn told(bed: &Bed, event: &str, reason: &str) -> bool {
    let is = |e: &EventRecord| e.event == event && e.facts[0].1.contains(reason);
    bed.handle().events().iter().any(is)
}

fn set_bits(unit: &Handle, member: &str) -> Option<u64> {
    let state = unit.state();
    let id = state.member(member)?.bitmap?;
    state.set.bitmap(id).map(|b| b.map.count())
}

#[test]
fn a_bitmap_survives_a_stop_and_drains_what_was_written_before_and_after() {
    let mut bed = Bed::durable(3, REGION * 40, Durability::Power);
    bed.detach("m3", Policy::Minicopy).expect("detached");
    write(&bed.handle(), REGION * 3);
    bed.stop();
    bed.start();
    assert_eq!(set_bits(&bed.handle(), "m3"), Some(1));
    write(&bed.handle(), REGION * 9);
    bed.attach("m3", AttachPolicy::Minicopy).expect("attached");
    assert_eq!(bed.wait(), 2 * REGION);
    bed.stop();
    assert!(bed.image(0) == bed.image(1) && bed.image(1) == bed.image(2));
}

#[test]
fn a_state_directory_that_was_lost_costs_bitmaps_and_no_data() {
    let mut bed = Bed::durable(3, REGION * 4, Durability::Power);
    bed.detach("m3", Policy::Minicopy).expect("detached");
    write(&bed.handle(), 0);
    bed.stop();
    for name in ["journal.a", "journal.b"] {
        std::fs::remove_file(bed.setup.state_dir.join(name)).expect("removed");
    }
    bed.start();
    assert_eq!(set_bits(&bed.handle(), "m3"), None);
    let refusal = bed.attach("m3", AttachPolicy::Minicopy);
    let refusal = refusal.expect_err("no bitmap");
    assert_eq!(refusal.code, Code::NoBitmap);
    assert!(refusal.text.contains("there is no journal"), "{refusal:?}");
    assert!(told(&bed, "bitmaps-lost", "there is no journal"));
    bed.attach("m3", AttachPolicy::MinicopyOptional)
        .expect("a full copy");
    bed.wait();
    bed.stop();
    assert!(bed.image(0) == bed.image(2));
}

#[test]
fn bitmaps_from_before_a_mount_in_memory_are_not_believed() {
    let mut bed = Bed::durable(2, REGION * 4, Durability::Power);
    bed.detach("m2", Policy::Minicopy).expect("detached");
    bed.stop();
    bed.setup.durability = Durability::Memory;
    bed.start();
    write(&bed.handle(), REGION);
    bed.stop();
    bed.setup.durability = Durability::Power;
    bed.start();
    assert_eq!(set_bits(&bed.handle(), "m2"), None);
    assert!(told(
        &bed,
        "bitmaps-lost",
        "knows nothing of the last mount, as after one with durability = \"memory\""
    ));
    bed.stop();
}

/// A unit whose bitmaps are all there says nothing of lost ones.
#[test]
fn nothing_is_said_of_bitmaps_that_nobody_misses() {
    let mut bed = Bed::durable(2, REGION * 4, Durability::Power);
    assert!(!told(&bed, "bitmaps-lost", ""), "a new set has none");
    bed.stop();
    for name in ["journal.a", "journal.b"] {
        std::fs::remove_file(bed.setup.state_dir.join(name)).expect("removed");
    }
    bed.start();
    assert!(!told(&bed, "bitmaps-lost", ""), "nobody is away");
    bed.stop();
}

#[test]
fn a_mount_that_insists_is_refused_as_long_as_it_cannot_have_what_it_wants() {
    let mut bed = Bed::durable(3, REGION * 4, Durability::Power);
    bed.detach("m3", Policy::Minicopy).expect("detached");
    bed.stop();
    let away = bed.path(1).with_extension("away");
    std::fs::rename(bed.path(1), &away).expect("taken away");
    let insisting = |bed: &Bed, mounting| start(&bed.setup, &mounting).expect_err("refused");
    let every = Mounting {
        require_members: true,
        ..Mounting::default()
    };
    for _ in 0..2 {
        let error = insisting(&bed, every.clone());
        assert_eq!(error.code(), Code::NoSuchFile, "{error}");
        assert!(error.to_string().starts_with("m2: "), "{error}");
        bed.start();
        bed.stop();
    }
    for name in ["journal.a", "journal.b"] {
        std::fs::remove_file(bed.setup.state_dir.join(name)).expect("removed");
    }
    let bitmaps = Mounting {
        policy: Policy::Minicopy,
        ..Mounting::default()
    };
    let error = insisting(&bed, bitmaps);
    assert_eq!(error.code(), Code::NoBitmap, "{error}");
    assert!(error.to_string().contains("there is no journal"), "{error}");
}

#[test]
fn who_is_absent_at_the_mount_gets_a_bitmap() {
    let mut bed = Bed::durable(2, REGION * 8, Durability::Power);
    bed.stop();
    // A directory comes and goes, which leaves the image what it was: a new name would not.
    let (path, disk) = (bed.path(1).to_owned(), bed.path(1).with_extension("disk"));
    let image = disk.join("image");
    std::fs::create_dir(&disk).expect("made");
    std::fs::rename(&path, &image).expect("moved");
    std::os::unix::fs::symlink(&image, &path).expect("linked");
    bed.start();
    bed.stop();
    let away = path.with_extension("away");
    std::fs::rename(&disk, &away).expect("taken away");
    bed.start();
    let state = bed.handle().state();
    assert_eq!(state.member("m2").expect("known").state, "missing");
    write(&bed.handle(), REGION * 5);
    std::fs::rename(&away, &disk).expect("brought back");
    bed.attach("m2", AttachPolicy::Minicopy).expect("attached");
    assert_eq!(bed.wait(), REGION);
    bed.stop();
    assert!(bed.image(0) == bed.image(1));
}

#[test]
fn bits_of_every_mount_are_kept() {
    let mut bed = Bed::durable(3, REGION * 40, Durability::Power);
    bed.detach("m3", Policy::Minicopy).expect("detached");
    for mount in 0..4 {
        write(&bed.handle(), REGION * (3 + mount));
        bed.stop();
        bed.start();
        assert_eq!(set_bits(&bed.handle(), "m3"), Some(mount + 1));
    }
    bed.attach("m3", AttachPolicy::Minicopy).expect("attached");
    assert_eq!(bed.wait(), 4 * REGION);
    bed.stop();
    assert!(bed.image(0) == bed.image(2));
}

/// A crash came after the block of m1 that says that m2 has left, and before that of m2.
#[test]
fn a_detach_that_a_crash_cut_short_is_finished_at_the_mount() {
    let mut bed = Bed::durable(2, REGION * 8, Durability::Power);
    let read = |path: &Path| (path.to_owned(), std::fs::read(path).expect("a file"));
    write(&bed.handle(), REGION);
    let mut then = vec![read(&bed.setup.members[1].scb)];
    bed.detach("m2", Policy::Minicopy).expect("detached");
    then.push(read(&bed.setup.members[0].scb));
    for name in ["journal.a", "journal.b"] {
        then.push(read(&bed.setup.state_dir.join(name)));
    }
    bed.stop();
    for (path, bytes) in then {
        std::fs::write(path, bytes).expect("put back");
    }
    bed.start();
    let state = bed.handle().state();
    assert_eq!(state.member("m2").expect("known").state, "detached");
    write(&bed.handle(), REGION * 5);
    bed.stop();
    bed.start();
    bed.attach("m2", AttachPolicy::Minicopy).expect("attached");
    assert!(bed.wait() < REGION * 8);
    bed.stop();
    assert!(bed.image(0) == bed.image(1));
}

#[test]
fn a_released_member_is_forgotten_and_its_place_is_free() {
    let mut bed = Bed::durable(3, REGION * 4, Durability::Power);
    let release = || Request::Release {
        member: "m2".into(),
    };
    let refusal = bed.command(release()).expect_err("it takes part");
    assert_eq!(refusal.code, Code::InUse);
    bed.detach("m2", Policy::Minicopy).expect("detached");
    bed.command(release()).expect("released");
    assert!(bed.handle().state().member("m2").is_none());
    assert!(!bed.setup.members[1].scb.exists(), "its block is gone");
    let refusal = bed.command(release()).expect_err("no such member");
    assert_eq!(refusal.code, Code::NoSuchMember);
    // What is left of it is an image like any other.
    let path = bed.path(1).display().to_string();
    let attach = Request::Attach {
        what: path,
        name: Some("m9".into()),
        policy: AttachPolicy::MinicopyOptional,
        source: None,
        confirm: true,
    };
    bed.command(attach).expect("attached as another");
    bed.wait();
    assert_eq!(bed.handle().state().set.members.len(), 3);
    bed.stop();
    assert!(bed.image(0) == bed.image(1) && bed.image(0) == bed.image(2));
}

#[test]
fn a_merge_on_demand_makes_members_equal_everywhere() {
    let mut bed = Bed::new(2, REGION * 4);
    write(&bed.handle(), 0);
    // Somebody has written into one member behind the set's back.
    let mut spoilt = bed.image(1);
    spoilt[REGION as usize * 2] ^= 1;
    bed.overwrite(1, &spoilt);
    let answer = bed.command(Request::Merge { full: true }).expect("merges");
    assert!(
        answer.facts.contains(&("kind", "merge".into())),
        "{answer:?}"
    );
    assert_eq!(bed.wait(), 4096, "only what differs is written");
    let answer = bed.command(Request::Merge { full: false }).expect("merges");
    assert!(
        answer.facts.contains(&("kind", "minimerge".into())),
        "{answer:?}"
    );
    bed.wait();
    bed.stop();
    assert!(bed.image(0) == bed.image(1));
}

#[test]
fn a_new_set_does_not_take_over_the_bitmaps_of_another() {
    let mut bed = Bed::durable(1, REGION * 4, Durability::Power);
    bed.stop();
    for path in [&bed.setup.members[0].path, &bed.setup.members[0].scb] {
        std::fs::remove_file(path).expect("the set is gone");
    }
    let create =
        |erase| shadowset::server::create::create(&bed.setup, None, Some(Bytes(REGION)), erase);
    let error = create(false).expect_err("its bitmaps are there");
    assert_eq!(error.code(), Code::OtherSet, "{error}");
    assert!(!bed.path(0).exists(), "nothing is made");
    create(true).expect("they may go");
    bed.start();
    bed.stop();
}
