//! A unit that has grown, and whose new journal cannot be moved into its place.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use shadowset::server::Request;
use shadowset::server::setup::{Durability, Setup};
use shadowset::set::{AttachPolicy, Bytes, Code, Policy, Refusal};

use crate::bed::Bed;
use crate::trouble::{REGION, Unwritable, begin, killed, write};

/// Something else is in the place of one of the files.
struct Obstacle(PathBuf);

impl Obstacle {
    fn new(state_dir: &Path) -> Self {
        let place = state_dir.join("journal.b");
        std::fs::rename(&place, state_dir.join("journal.b.away")).expect("carried away");
        std::fs::create_dir(&place).expect("a directory in its place");
        Self(place)
    }
}

impl Drop for Obstacle {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).expect("removed");
    }
}

fn resize(bed: &Bed, regions: u64) -> Result<(), Refusal> {
    let size = Some(Bytes(REGION * regions));
    bed.command(Request::Resize { size }).map(drop)
}

/// Grows a unit of images that are large enough, the new journal staying where it was made.
fn grow(bed: &Bed) -> Obstacle {
    for place in 0..2 {
        let image = std::fs::File::options().write(true).open(bed.path(place));
        let larger = image.expect("opened").set_len(REGION * 16);
        larger.expect("enlarged");
    }
    let obstacle = Obstacle::new(&bed.setup.state_dir);
    resize(bed, 8).expect("grown");
    assert!(bed.setup.state_dir.join("grown/journal.b").exists());
    obstacle
}

/// Its bitmaps are there, and the unit has its new size.
fn starts_whole(setup: &Setup) {
    let running = begin(setup).expect("started");
    let state = running.handle().state();
    assert_eq!(state.set.geometry.size(), Bytes(REGION * 8));
    assert!(state.member("m3").expect("known").bitmap.is_some());
    assert!(!setup.state_dir.join("grown").exists());
    running.stop().expect("stopped");
}

/// The next resize made its journal in the place of the one that was in use; and a start whose move of it failed once made
/// a new one, over which the one after moved the old.
#[test]
fn a_journal_that_is_not_in_its_place_yet_is_not_lost() {
    let bed = Bed::durable(3, REGION * 4, Durability::Power);
    bed.detach("m3", Policy::Minicopy).expect("detached");
    write(&bed.handle(), REGION, 7);
    let obstacle = grow(&bed);
    let refusal = resize(&bed, 12).expect_err("not in its place");
    assert_eq!(refusal.code, Code::InUse, "{}", refusal.text);
    let (_dir, setup) = killed(&bed);
    starts_whole(&setup);
    let (_dir, setup) = killed(&bed);
    std::fs::create_dir(setup.state_dir.join("journal.b")).expect("an obstacle");
    for _ in 0..2 {
        assert_eq!(
            begin(&setup).expect_err("it cannot be moved").code(),
            Code::Io
        );
    }
    std::fs::remove_dir(setup.state_dir.join("journal.b")).expect("removed");
    starts_whole(&setup);
    drop(obstacle);
    resize(&bed, 12).expect("grown again");
}

/// It knows of a write that this member has missed, and the older journal in its place does not; nor does its own block, which
/// could not be written.
#[test]
fn a_mount_that_it_refuses_is_not_decided_by_the_older_journal() {
    let bed = Bed::durable(2, REGION * 4, Durability::Power);
    let obstacle = grow(&bed);
    let unwritable = Unwritable::new(&bed.setup.members[1].scb);
    let member = "m2".into();
    bed.command(Request::Expel { member }).expect("expelled");
    write(&bed.handle(), REGION, 7);
    let (_dir, setup) = killed(&bed);
    drop((obstacle, unwritable));
    let file = |name: &str| setup.state_dir.join(name);
    std::fs::rename(file("journal.b.away"), file("journal.b")).expect("the older one");
    for path in [&setup.members[0].path, &setup.members[0].scb] {
        std::fs::remove_file(path).expect("it is away");
    }
    for _ in 0..2 {
        let refusal = begin(&setup).expect_err("m1 has newer data");
        assert_eq!(refusal.code(), Code::WrongGeneration, "{refusal}");
    }
}

/// Its block could not be written when it left, and took the size that the unit had by the next mount: what lay behind the old
/// end in its image counted as equal.
#[test]
fn a_member_that_left_before_the_unit_grew_is_copied_behind_its_old_end() {
    let mut bed = Bed::durable(2, REGION * 4, Durability::Power);
    for (place, tail) in [0, 9].into_iter().enumerate() {
        let mut image = bed.image(place);
        image.resize((REGION * 8) as usize, tail);
        let file = std::fs::File::options().write(true).open(bed.path(place));
        let behind = &image[(REGION * 4) as usize..];
        let written = file.expect("opened").write_all_at(behind, REGION * 4);
        written.expect("enlarged");
    }
    let unwritable = Unwritable::new(&bed.setup.members[1].scb);
    let member = "m2".into();
    bed.command(Request::Expel { member }).expect("expelled");
    resize(&bed, 8).expect("grown");
    write(&bed.handle(), 0, 7);
    bed.stop();
    drop(unwritable);
    bed.start();
    bed.attach("m2", AttachPolicy::MinicopyOptional)
        .expect("attached");
    bed.wait();
    assert_eq!(
        bed.handle().state().member("m2").expect("known").state,
        "source"
    );
    assert!(bed.image(0) == bed.image(1));
}
