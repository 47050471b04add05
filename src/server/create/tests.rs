//! Creation on real files: what is made, what is refused, and that a refusal changes nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;
use crate::server::setup::{Durability, IoMode, Protect, default_scb};
use crate::set::assess::{Found, Start, assess};

const MIB: u64 = 1 << 20;

struct Place {
    dir: TempDir,
    setup: Setup,
}

fn place(members: usize) -> Place {
    let dir = tempfile::tempdir().expect("a directory");
    let member = |n: usize| {
        let path = dir.path().join(format!("m{n}.img"));
        MemberSetup {
            name: format!("m{n}"),
            scb: default_scb("", &path, Path::new("/")),
            path,
            read_cost: 2,
            site: 0,
            timeout: 0,
            io: IoMode::Buffered,
            protect: Protect::None,
        }
    };
    let setup = Setup {
        unit: "dsa1".to_owned(),
        label: Some("payroll".to_owned()),
        region_blocks: 127,
        durability: Durability::Memory,
        state_dir: dir.path().join("state"),
        members: (1..=members).map(member).collect(),
    };
    Place { dir, setup }
}

impl Place {
    /// Writes an image: `len` bytes, zeros but for one byte near the end when it is not blank.
    fn image(&self, n: usize, len: u64, blank: bool) {
        let file = File::create(&self.setup.members[n].path).expect("makes");
        file.set_len(len).expect("sizes");
        if !blank {
            file.write_all_at(&[1], len - 1).expect("writes");
        }
    }

    /// Every file and its content.
    fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(self.dir.path()).expect("lists");
        let paths = entries.map(|e| e.expect("an entry").path());
        paths
            .map(|p| (p.clone(), fs::read(&p).unwrap_or_default()))
            .collect()
    }

    /// The code of a refusal, which must have changed nothing.
    fn refused(&self, from: Option<&str>, size: Option<Bytes>, erase: bool) -> Error {
        let before = self.content();
        let error = create(&self.setup, from, size, erase).expect_err("refused");
        assert_eq!(self.content(), before, "{error} changed something");
        error
    }

    /// A creation that fails when it makes the last block, which must have changed nothing.
    fn fails_at_the_last_block(&self) {
        let last = &self.setup.members.last().expect("members").scb;
        symlink("nowhere/block", last).expect("linked");
        let error = self.refused(None, Some(Bytes(MIB)), false);
        assert_eq!(error.code(), Code::NoSuchFile, "{error}");
        fs::remove_file(last).expect("removed");
    }

    fn states(&self) -> Vec<ScbState> {
        self.blocks().iter().map(|scb| scb.state).collect()
    }

    fn blocks(&self) -> Vec<Scb> {
        let read = |m: &MemberSetup| match scb_file::read(&m.scb).expect("readable") {
            ScbFound::Read(scb) => scb,
            other => panic!("{} has {other:?}", m.name),
        };
        self.setup.members.iter().map(read).collect()
    }
}

#[test]
fn new_images_are_sparse_and_all_are_sources() {
    let place = place(3);
    let created = create(&place.setup, None, Some(Bytes(64 * MIB)), false).expect("created");
    assert!(created.members.iter().all(|m| m.new_image && !m.copy));
    assert_eq!(created.geometry.size(), Bytes(64 * MIB));
    for member in &place.setup.members {
        let meta = member.path.metadata().expect("there");
        assert_eq!(
            (meta.len(), meta.blocks()),
            (64 * MIB, 0),
            "{}",
            member.name
        );
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    }
    let blocks = place.blocks();
    let found: Vec<Found> = blocks
        .iter()
        .map(|scb| Found {
            name: scb.name.clone(),
            image: Some(Bytes(64 * MIB)),
            scb: ScbFound::Read(scb.clone()),
        })
        .collect();
    let assembly = assess(&found, &[]).expect("assembles");
    assert_eq!(assembly.starts, [Start::Source; 3]);
    assert_eq!((assembly.set, assembly.clean), (created.set, true));
    assert_eq!(assembly.generation, Generation::FIRST);
}

/// A creation that was killed had made the file and not sized it, and the next one was refused, `erase` or not.
#[test]
fn an_empty_file_is_an_image_to_be_made() {
    let place = place(2);
    place.image(0, 0, true);
    for (from, size) in [(None, None), (Some("m1"), Some(Bytes(MIB)))] {
        place.refused(from, size, false);
    }
    place.fails_at_the_last_block();
    let created = create(&place.setup, None, Some(Bytes(MIB)), false).expect("created");
    assert!(created.members.iter().all(|m| m.new_image && !m.copy));
    for member in &place.setup.members {
        assert_eq!(member.path.metadata().expect("there").len(), MIB);
    }
}

/// A creation that was killed had made the file of a block and not written it, and the next one was refused.
#[test]
fn an_empty_control_block_is_none() {
    let place = place(2);
    fs::write(&place.setup.members[0].scb, "").expect("made");
    place.fails_at_the_last_block();
    create(&place.setup, None, Some(Bytes(MIB)), false).expect("created");
    assert_eq!(place.states(), [ScbState::Source; 2]);
}

#[test]
fn blank_images_are_taken_as_they_are_and_the_smallest_sets_the_size() {
    let place = place(3);
    place.image(0, 2 * MIB, true);
    place.image(1, MIB + 700, true);
    let created = create(&place.setup, None, None, false).expect("created");
    assert_eq!(created.geometry.size(), Bytes(MIB + 512));
    assert_eq!(place.states(), [ScbState::Source; 3]);
    let lens: Vec<u64> = place
        .setup
        .members
        .iter()
        .map(|m| m.path.metadata().expect("there").len())
        .collect();
    assert_eq!(lens, [2 * MIB, MIB + 700, MIB + 512]);
}

#[test]
fn the_named_member_wins_and_the_others_are_copied() {
    let place = place(3);
    place.image(0, 4 * MIB, false);
    place.image(1, 2 * MIB, false);
    let before = fs::read(&place.setup.members[0].path).expect("readable");
    let refused = place.refused(Some("m2"), None, false);
    assert_eq!(refused.code(), Code::NotBlank, "m1 would be overwritten");
    let created = create(&place.setup, Some("m2"), None, true).expect("created");
    assert_eq!(created.geometry.size(), Bytes(2 * MIB));
    assert_eq!(
        place.states(),
        [ScbState::Target, ScbState::Source, ScbState::Target]
    );
    let copied: Vec<bool> = created.members.iter().map(|m| m.copy).collect();
    assert_eq!(copied, [true, false, true]);
    assert_eq!(
        fs::read(&place.setup.members[0].path).expect("readable"),
        before
    );
}

/// The smallest image must not cut the data that was asked to win.
#[test]
fn the_winners_data_is_never_cut_to_a_smaller_member() {
    let place = place(2);
    place.image(0, 4 * MIB, false);
    place.image(1, 2 * MIB, true);
    let error = place.refused(Some("m1"), None, false);
    assert_eq!(error.code(), Code::MemberTooSmall);
    let text = error.to_string();
    assert!(
        text.contains("m2") && text.contains("2097152") && text.contains("4194304"),
        "{text}"
    );
}

#[test]
fn one_member_with_data_is_the_source() {
    let place = place(1);
    place.image(0, MIB, false);
    create(&place.setup, None, None, false).expect("created");
    assert_eq!(place.states(), [ScbState::Source]);
}

#[test]
fn data_is_not_overwritten_without_consent() {
    let place = place(2);
    place.image(1, 3 * MIB, false);
    let error = place.refused(None, None, false);
    assert_eq!(error.code(), Code::NotBlank);
    assert!(error.to_string().contains("m2"), "{error}");
    assert!(error.hint().contains("--from") && error.hint().contains("--erase"));
    // The first member would win, and it is blank.
    assert_eq!(place.refused(None, None, true).code(), Code::NotBlank);
    create(&place.setup, Some("m2"), None, true).expect("told to");
    assert_eq!(place.states(), [ScbState::Target, ScbState::Source]);
}

#[test]
fn a_member_of_a_set_is_not_taken_without_consent() {
    let place = place(2);
    create(&place.setup, None, Some(Bytes(MIB)), false).expect("created");
    let first = place.blocks()[0].set;
    let error = place.refused(None, None, false);
    assert_eq!(error.code(), Code::OtherSet);
    assert!(error.to_string().contains(&first.to_string()), "{error}");
    fs::write(&place.setup.members[0].scb, "letters").expect("writes");
    assert_eq!(place.refused(None, None, false).code(), Code::OtherSet);
    let again = create(&place.setup, None, None, true).expect("told to");
    assert_ne!(again.set, first);
    assert!(place.blocks().iter().all(|scb| scb.set == again.set));
    assert_eq!(
        place.states(),
        [ScbState::Source; 2],
        "blank images need no copy"
    );
}

#[test]
fn what_cannot_be_a_set_is_refused() {
    let none = place(0);
    assert_eq!(
        none.refused(None, Some(Bytes(MIB)), false).code(),
        Code::Config
    );
    let seven = place(7);
    assert_eq!(
        seven.refused(None, Some(Bytes(MIB)), false).code(),
        Code::TooManyMembers
    );
    let mut two = place(2);
    assert_eq!(
        two.refused(None, None, false).code(),
        Code::Config,
        "no size"
    );
    assert_eq!(
        two.refused(None, Some(Bytes(MIB + 1)), false).code(),
        Code::OutOfRange
    );
    assert_eq!(
        two.refused(Some("m9"), Some(Bytes(MIB)), false).code(),
        Code::NoSuchMember
    );
    assert_eq!(
        two.refused(Some("m1"), Some(Bytes(MIB)), false).code(),
        Code::NoSuchFile
    );
    two.setup.members[1].name = "m/2".to_owned();
    assert_eq!(
        two.refused(None, Some(Bytes(MIB)), false).code(),
        Code::Config
    );
    two.setup.members[1].name = "m1".to_owned();
    assert_eq!(
        two.refused(None, Some(Bytes(MIB)), false).code(),
        Code::Config
    );
    two.setup.members[1].name = "m2".to_owned();
    two.setup.members[1].scb = two.setup.members[0].scb.clone();
    assert_eq!(
        two.refused(None, Some(Bytes(MIB)), false).code(),
        Code::Config
    );
    two.setup.members[1].scb = two.setup.members[0].path.clone();
    assert_eq!(
        two.refused(None, Some(Bytes(MIB)), false).code(),
        Code::Config
    );
}

#[test]
fn places_where_no_image_can_be_are_refused() {
    let mut lost = place(1);
    lost.setup.members[0].path = lost.dir.path().join("no/where.img");
    assert_eq!(
        lost.refused(None, Some(Bytes(MIB)), false).code(),
        Code::NoSuchFile
    );
    let mut folder = place(1);
    folder.setup.members[0].path = folder.dir.path().to_owned();
    assert_eq!(
        folder.refused(None, Some(Bytes(MIB)), false).code(),
        Code::NotSupported
    );
}

#[test]
fn one_image_under_two_paths_is_refused() {
    let place = place(2);
    place.image(0, MIB, true);
    let [first, second] = [0, 1].map(|n| place.setup.members[n].path.clone());
    symlink(&first, &second).expect("links");
    assert_eq!(place.refused(None, None, false).code(), Code::AlreadyMember);
    fs::remove_file(&second).expect("removes");
    fs::hard_link(&first, &second).expect("links");
    assert_eq!(place.refused(None, None, true).code(), Code::AlreadyMember);
    fs::remove_file(&second).expect("removes");
    fs::remove_file(&first).expect("removes");
    symlink(&first, &second).expect("links");
    let dangling = place.refused(None, Some(Bytes(MIB)), false);
    assert_eq!(
        dangling.code(),
        Code::NoSuchFile,
        "a link to nowhere is no new image"
    );
}

#[test]
fn a_new_image_under_two_spellings_is_refused() {
    let mut place = place(2);
    place.setup.members[1].path = place.dir.path().join("./m1.img");
    let error = place.refused(None, Some(Bytes(MIB)), false);
    assert_eq!(error.code(), Code::AlreadyMember);
}

/// The second SCB cannot be made: its path is a link into a directory that is not there.
#[test]
fn a_failure_in_the_middle_removes_what_was_made() {
    let mut place = place(2);
    place.setup.members[0].scb = place.dir.path().join("new/deep/m1.scb");
    place.setup.members[1].scb = place.dir.path().join("link");
    symlink(
        place.dir.path().join("nowhere/scb"),
        &place.setup.members[1].scb,
    )
    .expect("links");
    place.refused(None, Some(Bytes(MIB)), false);
}
