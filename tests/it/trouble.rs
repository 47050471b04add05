//! Control blocks that cannot be written, images that are somebody else's by now, places that cannot be read.
//! Needs root and a file system with immutable files: nothing else lets a write into an open file fail.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use shadowset::error::Error;
use shadowset::io::journal::{self, Journal, Options};
use shadowset::io::{Identity, immutable, sys};
use shadowset::server::setup::{Durability, Mounting, Setup};
use shadowset::server::{Handle, Request, Running, create, start};
use shadowset::set::{AttachPolicy, BitmapKind, Bytes, Code, OpId, Policy};

use crate::bed::{self, Bed};

pub(crate) const REGION: u64 = 65_024;

/// A file that cannot be written, until this is dropped.
pub(crate) struct Unwritable(PathBuf);

impl Unwritable {
    pub(crate) fn new(path: &Path) -> Self {
        let identity = Identity::of(path).expect("looked at").expect("a file");
        let set = immutable::set(path, identity);
        assert!(set.expect("root on ext4 or the like"), "immutable now");
        Self(path.to_owned())
    }
}

impl Drop for Unwritable {
    fn drop(&mut self) {
        immutable::clear(&self.0, None).expect("as it was");
    }
}

pub(crate) fn write(unit: &Handle, at: u64, value: u8) {
    unit.pipeline().write(at, &[value; 512]).expect("written");
}

fn release(unit: &Bed, member: &str) {
    let member = member.into();
    unit.command(Request::Release { member }).expect("released");
}

fn state(unit: &Handle, member: &str) -> &'static str {
    unit.state().member(member).expect("known").state
}

fn copy_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("a type").is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
        }
    }
}

/// What kill -9 would leave of a running unit.
pub(crate) fn killed(bed: &Bed) -> (tempfile::TempDir, Setup) {
    let dir = tempfile::tempdir().expect("a directory");
    copy_files(&bed.setup.state_dir, dir.path());
    let grown = bed.setup.state_dir.join("grown");
    if grown.exists() {
        let to = dir.path().join("grown");
        std::fs::create_dir(&to).expect("made");
        copy_files(&grown, &to);
    }
    let members = bed.setup.members.len();
    let setup = Setup {
        durability: bed.setup.durability,
        ..bed::setup(dir.path(), members)
    };
    (dir, setup)
}

fn created(members: usize, durability: Durability) -> (tempfile::TempDir, Setup) {
    let dir = tempfile::tempdir().expect("a directory");
    let setup = Setup {
        durability,
        ..bed::setup(dir.path(), members)
    };
    create::create(&setup, None, Some(Bytes(REGION * 4)), false).expect("created");
    (dir, setup)
}

pub(crate) fn begin(setup: &Setup) -> Result<Running, Error> {
    start(setup, &Mounting::default())
}

/// The bytes that the copies of a mount have copied until all are over, by kind.
fn copies(unit: &Handle) -> Vec<(&'static str, u64)> {
    bed::wait(unit);
    let state = unit.state();
    let all = state.set.operations.iter();
    all.map(|o| (o.kind(), o.progress.copied_bytes())).collect()
}

/// Its disk was away at the release, so that its control block stayed; then it came back to its place.
#[test]
fn a_released_image_is_not_overwritten_by_the_next_mount() {
    let mut bed = Bed::durable(2, REGION * 4, Durability::Power);
    write(&bed.handle(), 0, 7);
    bed.detach("m2", Policy::Minicopy).expect("detached");
    let files = [bed.path(1).to_owned(), bed.setup.members[1].scb.clone()];
    let away = |path: &Path| path.with_extension("away");
    for path in &files {
        std::fs::rename(path, away(path)).expect("carried away");
    }
    release(&bed, "m2");
    bed.stop();
    for path in &files {
        std::fs::rename(away(path), path).expect("brought back");
    }
    let own = vec![9; (REGION * 4) as usize];
    std::fs::write(&files[0], &own).expect("used for something else");
    for _ in 0..2 {
        bed.start();
        bed.wait();
        assert_eq!(state(&bed.handle(), "m2"), "missing");
        bed.stop();
    }
    bed.start();
    let refusal = bed.attach("m2", AttachPolicy::Full).expect_err("consent");
    assert_eq!(refusal.code, Code::NeedsConfirm);
    bed.stop();
    assert!(bed.image(1) == own);
}

#[test]
fn a_release_leaves_the_block_of_another_set() {
    let bed = Bed::durable(2, REGION * 4, Durability::Power);
    bed.detach("m2", Policy::Minicopy).expect("detached");
    let mut other = Bed::durable(1, REGION * 4, Durability::Power);
    other.stop();
    let (theirs, ours) = (&other.setup.members[0], &bed.setup.members[1]);
    std::fs::copy(&theirs.path, &ours.path).expect("at its path now");
    std::fs::copy(&theirs.scb, &ours.scb).expect("at its path now");
    release(&bed, "m2");
    let there = std::fs::read(&ours.scb).expect("still there");
    assert!(there == std::fs::read(&theirs.scb).expect("a block"));
}

/// The only source that stays cannot write down that the other has left: nothing may say more than its block.
#[test]
fn a_departure_that_cannot_be_written_down_has_not_happened_after_a_crash() {
    for expel in [false, true] {
        let bed = Bed::durable(2, REGION * 4, Durability::Power);
        let unwritable = Unwritable::new(&bed.setup.members[0].scb);
        let answer = match expel {
            true => bed.command(Request::Expel {
                member: "m2".into(),
            }),
            false => bed.detach("m2", Policy::Minicopy),
        };
        assert_eq!(answer.expect_err("not durable").code, Code::Io);
        let unit = bed.handle();
        assert!(unit.pipeline().write(0, &[1; 512]).is_err(), "halted");
        assert!(unit.pipeline().flush().is_err(), "m1 alone was flushed");
        drop(unwritable);
        let (_dir, setup) = killed(&bed);
        let running = begin(&setup).expect("assembles by itself");
        assert_eq!(state(&running.handle(), "m1"), "source");
        copies(&running.handle());
        assert_eq!(state(&running.handle(), "m2"), "source", "expel {expel}");
        running.stop().expect("stopped");
    }
}

#[test]
fn whose_own_block_cannot_be_written_comes_back_by_minicopy() {
    let bed = Bed::durable(3, REGION * 4, Durability::Power);
    let unwritable = Unwritable::new(&bed.setup.members[1].scb);
    bed.detach("m3", Policy::Minicopy).expect("detached");
    drop(unwritable);
    assert_eq!(state(&bed.handle(), "m2"), "expelled");
    attach_expelled(&bed, "m2");
    bed.wait();
    let unwritable = Unwritable::new(&bed.setup.members[1].scb);
    bed.detach("m2", Policy::Minicopy).expect("detached");
    drop(unwritable);
    write(&bed.handle(), 0, 5);
    bed.attach("m2", AttachPolicy::Minicopy).expect("attached");
    bed.wait();
    assert!(bed.image(0) == bed.image(1));
}

#[test]
fn who_could_not_be_marked_clean_is_merged_at_the_next_mount() {
    let (_dir, setup) = created(2, Durability::Power);
    let running = begin(&setup).expect("started");
    write(&running.handle(), 0, 5);
    let unwritable = Unwritable::new(&setup.members[1].scb);
    running.stop().expect_err("m2 is not marked clean");
    drop(unwritable);
    let running = begin(&setup).expect("started");
    let kinds: Vec<_> = copies(&running.handle()).into_iter().map(|c| c.0).collect();
    assert_eq!(kinds, ["minimerge"]);
    running.stop().expect("stopped");
}

#[test]
fn a_start_that_cannot_write_every_block_writes_none() {
    for durability in [Durability::Memory, Durability::Power] {
        let (_dir, setup) = created(2, durability);
        let unwritable = Unwritable::new(&setup.members[1].scb);
        begin(&setup).expect_err("m2 cannot be written");
        drop(unwritable);
        let running = begin(&setup).expect("started");
        assert_eq!(copies(&running.handle()), [], "nothing is lacking");
        running.stop().expect("stopped");
    }
}

/// Its disk was out of reach, so that its block does not say that it has left, and nothing is known of its image.
#[test]
fn an_image_without_a_stamp_gets_one_at_the_mount() {
    let bed = Bed::durable(2, REGION * 2048, Durability::Power);
    let unwritable = Unwritable::new(&bed.setup.members[1].scb);
    let member = "m2".into();
    bed.command(Request::Expel { member }).expect("expelled");
    write(&bed.handle(), REGION * 3, 1);
    let (_dir, setup) = killed(&bed);
    drop(unwritable);
    let running = begin(&setup).expect("started");
    let image = std::fs::File::options()
        .write(true)
        .open(&setup.members[1].path);
    let written = image.and_then(|i| i.write_all_at(&[9; 512], REGION * 1500));
    written.expect("somebody writes");
    let attach = bed::attach("m2", AttachPolicy::Minicopy);
    let refusal = bed::command(&running.handle(), attach).expect_err("it was written");
    assert_eq!(refusal.code, Code::ImageChanged);
    running.stop().expect("stopped");
}

/// The most that merges read, so that one does not end before it is held.
fn rate(bed: &Bed, value: &str) {
    let (name, value) = ("copy_rate_max".to_owned(), value.to_owned());
    bed.command(Request::Set { name, value }).expect("set");
}

/// A region that is still to be merged cannot be read as a whole.
#[test]
fn a_read_beside_a_bad_place_is_answered_while_a_merge_is_pending() {
    let regions = 8192;
    let bed = Bed::new(2, REGION * regions);
    let buf = vec![1; REGION as usize];
    for region in 0..regions {
        let at = REGION * region;
        bed.handle().pipeline().write(at, &buf).expect("written");
    }
    rate(&bed, "8M");
    bed.command(Request::Merge { full: true }).expect("merges");
    bed.command(Request::Pause(OpId(1))).expect("held");
    let last = REGION * (regions - 1);
    // What is behind the end of the image cannot be read.
    let image = std::fs::File::options().write(true).open(bed.path(0));
    let short = REGION * regions - 4096;
    image.expect("an image").set_len(short).expect("shortened");
    let mut read = [0; 512];
    let unit = bed.handle();
    assert_eq!(unit.pipeline().read(last, &mut read), Ok(512));
    assert_eq!(read, [1; 512]);
    assert_eq!(state(&unit, "m2"), "merging");
    assert!(
        unit.pipeline()
            .read(REGION * regions - 512, &mut read)
            .is_err()
    );
}

/// Blocks of a disk that is full or gone for a while.
fn unwritable(bed: &Bed, members: &[usize]) -> Vec<Unwritable> {
    let scb = |n: &usize| Unwritable::new(&bed.setup.members[*n].scb);
    members.iter().map(scb).collect()
}

fn expel(bed: &Bed, member: &str) -> Result<(), Code> {
    let member = member.into();
    let answer = bed.command(Request::Expel { member });
    answer.map(drop).map_err(|refusal| refusal.code)
}

/// Brings a member back by minicopy whose image the set is just letting go of.
fn attach_expelled(bed: &Bed, member: &str) {
    loop {
        match bed.attach(member, AttachPolicy::Minicopy) {
            Err(refusal) if refusal.code == Code::ImageLocked => std::thread::yield_now(),
            answer => return drop(answer.expect("attached")),
        }
    }
}

/// Waits until a member is in a state.
fn becomes(unit: &Handle, member: &str, wanted: &str) {
    let (sender, changes) = std::sync::mpsc::channel();
    unit.on_change(Box::new(move || {
        let _ = sender.send(());
    }));
    while state(unit, member) != wanted {
        let told = changes.recv_timeout(std::time::Duration::from_secs(60));
        assert!(told.is_ok(), "{member} stays {}", state(unit, member));
    }
}

#[test]
fn writes_go_on_when_one_of_the_blocks_can_be_written_again() {
    let bed = Bed::durable(3, REGION * 4, Durability::Power);
    let mut all = unwritable(&bed, &[0, 1]);
    assert_eq!(expel(&bed, "m3"), Err(Code::Io));
    drop(all.pop());
    // The other cannot: it leaves, and the change is durable without it.
    becomes(&bed.handle(), "m1", "expelled");
    write(&bed.handle(), 0, 5);
    assert_eq!(state(&bed.handle(), "m2"), "source");
    drop(all);
    for member in ["m1", "m3"] {
        attach_expelled(&bed, member);
        bed.wait();
    }
    assert!(bed.image(0) == bed.image(1) && bed.image(1) == bed.image(2));
}

#[test]
fn a_detach_that_its_own_block_does_not_tell_of_outlives_a_stop() {
    let mut bed = Bed::durable(2, REGION * 4, Durability::Power);
    let block = unwritable(&bed, &[1]);
    bed.detach("m2", Policy::Minicopy).expect("detached");
    write(&bed.handle(), REGION, 5);
    bed.stop();
    drop(block);
    for _ in 0..2 {
        bed.start();
        assert_eq!(state(&bed.handle(), "m2"), "detached");
        bed.stop();
    }
    bed.start();
    bed.attach("m2", AttachPolicy::Minicopy).expect("attached");
    bed.wait();
    bed.stop();
    assert!(bed.image(0) == bed.image(1));
}

#[test]
fn a_member_whose_block_fails_together_with_the_journal_comes_back_by_minicopy() {
    let bed = Bed::durable(2, REGION * 4, Durability::Power);
    let journal = ["journal.a", "journal.b"].map(|name| bed.setup.state_dir.join(name));
    // The journal last: whatever writes there next finds both.
    let block = unwritable(&bed, &[1]);
    let files = journal.map(|path| Unwritable::new(&path));
    write(&bed.handle(), 0, 5);
    becomes(&bed.handle(), "m2", "expelled");
    drop((files, block));
    attach_expelled(&bed, "m2");
    bed.wait();
    assert!(bed.image(0) == bed.image(1));
}

/// Which member lacks a write is not durable: what tells of the write must be kept.
#[test]
fn who_missed_a_write_while_nothing_could_be_written_down_is_merged() {
    let regions = 512;
    let mut bed = Bed::durable(3, REGION * regions, Durability::Power);
    let buf = vec![1; REGION as usize];
    for region in 0..regions {
        let at = REGION * region;
        bed.handle().pipeline().write(at, &buf).expect("written");
    }
    // One that is being merged, so that a departure gets no bitmap.
    rate(&bed, "1M");
    bed.command(Request::Merge { full: true }).expect("merges");
    bed.command(Request::Pause(OpId(2))).expect("held");
    rate(&bed, "max");
    becomes(&bed.handle(), "m2", "source");
    let blocks = unwritable(&bed, &[0, 1, 2]);
    let image = Unwritable::new(bed.path(1));
    let unit = bed.handle();
    assert!(unit.pipeline().write(0, &[5; 512]).is_err(), "m2 lacks it");
    drop(unit);
    bed.try_stop().expect_err("nothing could be marked clean");
    drop((blocks, image));
    bed.start();
    bed.wait();
    bed.stop();
    assert!(bed.image(0) == bed.image(1) && bed.image(0) == bed.image(2));
}

/// It would fill an image that counts as a source after a crash.
#[test]
fn no_command_is_carried_out_while_the_last_one_cannot_be_written_down() {
    let bed = Bed::durable(2, REGION * 64, Durability::Power);
    for region in 0..64 {
        write(&bed.handle(), REGION * region, 1);
    }
    let before = bed.image(1);
    let blocks = unwritable(&bed, &[0, 1]);
    assert_eq!(expel(&bed, "m1"), Err(Code::Io));
    std::fs::write(bed.path(0), vec![0; before.len()]).expect("another image");
    let refusal = bed.attach("m1", AttachPolicy::MinicopyOptional);
    assert_eq!(refusal.expect_err("not durable").code, Code::Io);
    let state = bed.handle().state();
    assert!(state.set.operations.is_empty(), "no copy has begun");
    drop(blocks);
    assert!(bed.image(1) == before);
}

/// A file that cannot be opened for now, until this is dropped.
struct Unopened(PathBuf);

impl Unopened {
    fn new(path: &Path) -> Self {
        std::fs::rename(path, path.with_extension("away")).expect("carried away");
        std::os::unix::fs::symlink(path, path).expect("a link to itself");
        Self(path.to_owned())
    }
}

impl Drop for Unopened {
    fn drop(&mut self) {
        std::fs::rename(self.0.with_extension("away"), &self.0).expect("brought back");
    }
}

/// The unit was killed when it had grown, and the new journal was not in its place yet. An error that passed had it
/// dropped, and all bitmaps with it.
#[test]
fn a_journal_of_a_growth_that_cannot_be_opened_now_is_kept() {
    let bed = Bed::durable(3, REGION * 4, Durability::Power);
    bed.detach("m3", Policy::Minicopy).expect("detached");
    write(&bed.handle(), REGION, 7);
    for place in 0..2 {
        let image = std::fs::File::options().write(true).open(bed.path(place));
        let grown = image.expect("opened").set_len(REGION * 8);
        grown.expect("enlarged");
    }
    let size = Some(Bytes(REGION * 8));
    bed.command(Request::Resize { size }).expect("grown");
    bed::wait(&bed.handle());
    let (_dir, setup) = killed(&bed);
    let grown = setup.state_dir.join("grown");
    std::fs::create_dir(&grown).expect("made");
    for file in ["journal.a", "journal.b"] {
        let from = setup.state_dir.join(file);
        std::fs::rename(from, grown.join(file)).expect("as before it came into its place");
    }
    let unopened = Unopened::new(&grown.join("journal.a"));
    assert_eq!(begin(&setup).expect_err("not now").code(), Code::Io);
    drop(unopened);
    let running = begin(&setup).expect("its bitmaps are there");
    let state = running.handle().state();
    assert_eq!(state.set.geometry.size(), Bytes(REGION * 8));
    assert!(state.member("m3").expect("known").bitmap.is_some());
    running.stop().expect("stopped");
}

/// A copy ended while no control block could be written. What it had lacked was to be forgotten when one could, and was
/// kept until the next change of the membership.
#[test]
fn what_was_put_off_is_forgotten_when_the_membership_is_durable_again() {
    let bed = Bed::durable(3, REGION * 4, Durability::Power);
    let kept = || {
        let (_dir, setup) = killed(&bed);
        let state = bed.handle().state();
        let options = Options {
            durability: journal::Durability::Power,
            grain_words: 8,
        };
        let opened = Journal::open(&setup.state_dir, state.uuid, state.set.geometry, options);
        let maps = opened.expect("a journal").1;
        let others = maps.iter().filter(|(r, _)| r.kind != BitmapKind::Intent);
        others.count()
    };
    let can_write = || bed.handle().pipeline().write(0, &[1; 512]).is_ok();
    let eventually = |so: &dyn Fn() -> bool| {
        let begun = std::time::Instant::now();
        while !so() {
            assert!(begun.elapsed().as_secs() < 30, "it should be so by now");
            sys::poll(&[], Some(std::time::Duration::from_millis(20))).expect("a pause");
        }
    };
    let priority = |value: &str| {
        let (name, value) = ("priority".to_owned(), value.to_owned());
        bed.command(Request::Set { name, value }).expect("set");
    };
    bed.detach("m3", Policy::Minicopy).expect("detached");
    write(&bed.handle(), REGION, 7);
    priority("0");
    bed.attach("m3", AttachPolicy::Minicopy).expect("it waits");
    assert_eq!(kept(), 1);
    let blocks = bed.setup.members.iter();
    let unwritable: Vec<_> = blocks.map(|m| Unwritable::new(&m.scb)).collect();
    priority("5000");
    eventually(&|| !can_write());
    assert_eq!(kept(), 1, "it may count still");
    drop(unwritable);
    eventually(&can_write);
    assert_eq!(kept(), 0);
}
