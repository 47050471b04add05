//! Every refusal has its own code, and changes nothing.

use shadowset::io::{Image, IoMode};
use shadowset::server::setup::{Mounting, Setup};
use shadowset::server::{Request, create, start};
use shadowset::set::{AttachPolicy, Code, OpId, Policy, Refusal};

use crate::bed::Bed;

/// Gives the refusal's code after making sure that the membership is what it was.
fn refused(bed: &Bed, ask: impl FnOnce(&Bed) -> Result<shadowset::set::Answer, Refusal>) -> Code {
    let before = bed.handle().state().set.epoch;
    let refusal = ask(bed).expect_err("a refusal");
    assert!(
        !refusal.text.is_empty() && !refusal.hint().is_empty(),
        "{refusal:?}"
    );
    assert_eq!(
        bed.handle().state().set.epoch,
        before,
        "nothing has changed: {refusal:?}"
    );
    refusal.code
}

fn image(setup: &Setup, name: &str, size: u64, fill: u8) -> String {
    let path = setup.state_dir.join(name);
    std::fs::write(&path, vec![fill; size as usize]).expect("an image");
    path.display().to_string()
}

#[test]
fn who_cannot_leave() {
    let bed = Bed::new(2, 1 << 20);
    assert_eq!(
        refused(&bed, |b| b.detach("m9", Policy::Minicopy)),
        Code::NoSuchMember
    );
    bed.detach("m2", Policy::Minicopy).expect("detached");
    assert_eq!(
        refused(&bed, |b| b.detach("m1", Policy::Minicopy)),
        Code::LastSource
    );
    assert_eq!(
        refused(&bed, |b| b.detach("m2", Policy::Minicopy)),
        Code::AlreadyDetached
    );
    let expel = Request::Expel {
        member: "m1".into(),
    };
    assert_eq!(refused(&bed, |b| b.command(expel)), Code::LastSource);
}

#[test]
fn what_cannot_come_in() {
    let bed = Bed::new(2, 1 << 20);
    let optional = AttachPolicy::MinicopyOptional;
    let small = image(&bed.setup, "small", 4096, 0);
    assert_eq!(
        refused(&bed, |b| b.attach(&small, optional)),
        Code::MemberTooSmall
    );
    let used = image(&bed.setup, "used", 1 << 20, 7);
    assert_eq!(
        refused(&bed, |b| b.attach(&used, optional)),
        Code::NeedsConfirm
    );
    let blank = image(&bed.setup, "blank", 1 << 20, 0);
    assert_eq!(
        refused(&bed, |b| b.attach(&blank, AttachPolicy::Minicopy)),
        Code::NoBitmap
    );
    assert_eq!(
        refused(&bed, |b| b.attach(&blank, AttachPolicy::Nocopy)),
        Code::NeedsCopy
    );
    assert_eq!(
        refused(&bed, |b| b.attach("/no/such/file", optional)),
        Code::NoSuchFile
    );
    assert_eq!(
        refused(&bed, |b| b.attach("m7", optional)),
        Code::NoSuchMember
    );
    assert_eq!(
        refused(&bed, |b| b.attach("m1", optional)),
        Code::AlreadyMember
    );
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o444);
    std::fs::set_permissions(&blank, mode).expect("mode");
    assert_eq!(
        refused(&bed, |b| b.attach(&blank, optional)),
        Code::ReadOnlyImage
    );
    let other = Bed::new(1, 1 << 20);
    let path = other.path(0).display().to_string();
    assert_eq!(refused(&bed, |b| b.attach(&path, optional)), Code::OtherSet);
    let held = image(&bed.setup, "held", 1 << 20, 0);
    let _lock = Image::open(held.as_ref(), IoMode::Buffered).expect("an image");
    assert_eq!(
        refused(&bed, |b| b.attach(&held, optional)),
        Code::ImageLocked
    );
    let long = format!("/{}", "x".repeat(2000));
    assert_eq!(
        refused(&bed, |b| b.attach(&long, optional)),
        Code::OutOfRange
    );
}

#[test]
fn one_image_is_one_member() {
    let bed = Bed::new(2, 1 << 20);
    let optional = AttachPolicy::MinicopyOptional;
    let (link, hard) = (
        bed.setup.state_dir.join("link"),
        bed.setup.state_dir.join("hard"),
    );
    std::os::unix::fs::symlink(bed.path(0), &link).expect("a link");
    std::fs::hard_link(bed.path(0), &hard).expect("a link");
    for path in [link, hard, bed.path(0).to_owned()] {
        let path = path.display().to_string();
        assert_eq!(
            refused(&bed, |b| b.attach(&path, optional)),
            Code::AlreadyMember
        );
    }
}

#[test]
fn a_mount_knows_one_image_by_both_its_paths() {
    let mut bed = Bed::new(2, 1 << 20);
    bed.stop();
    let second = bed.path(1).to_owned();
    std::fs::remove_file(&second).expect("removed");
    std::os::unix::fs::symlink(bed.path(0), &second).expect("a link");
    let error = start(&bed.setup, &Mounting::default()).expect_err("one image");
    assert_eq!(error.code(), Code::AlreadyMember, "{error}");
}

#[test]
fn a_member_keeps_its_name() {
    let bed = Bed::new(2, 1 << 20);
    bed.detach("m2", Policy::Minicopy).expect("detached");
    let path = bed.path(1).display().to_string();
    let renamed = |name: &str| {
        Request::DryRun(Box::new(Request::Attach {
            what: path.clone(),
            name: Some(name.to_owned()),
            policy: AttachPolicy::Minicopy,
            source: None,
            confirm: false,
        }))
    };
    assert_eq!(
        refused(&bed, |b| b.command(renamed("m3"))),
        Code::AlreadyMember
    );
    bed.command(renamed("m2")).expect("its own name");
}

#[test]
fn a_bitmap_that_is_not_there_or_not_right() {
    let bed = Bed::new(2, 1 << 20);
    bed.detach("m2", Policy::Full).expect("detached");
    assert_eq!(
        refused(&bed, |b| b.attach("m2", AttachPolicy::Minicopy)),
        Code::NoBitmap
    );
    bed.attach("m2", AttachPolicy::Full).expect("attached");
    bed.wait();
    bed.detach("m2", Policy::Minicopy).expect("detached");
    let mut data = bed.image(1);
    data[77] ^= 1;
    std::fs::write(bed.path(1), data).expect("tampered");
    assert_eq!(
        refused(&bed, |b| b.attach("m2", AttachPolicy::Minicopy)),
        Code::ImageChanged
    );
    bed.attach("m2", AttachPolicy::MinicopyOptional)
        .expect("compared");
    assert_eq!(bed.wait(), 4096, "only what differs is written");
    assert_eq!(
        refused(&bed, |b| b.command(Request::Cancel(OpId(999)))),
        Code::NoSuchOperation
    );
}

#[test]
fn a_set_that_runs_is_not_created_anew() {
    let bed = Bed::new(2, 1 << 20);
    let error = create::create(&bed.setup, None, None, true).expect_err("a refusal");
    assert_eq!(error.code(), Code::ImageLocked, "{error}");
}

#[test]
fn a_set_with_another_label_is_not_started() {
    let mut bed = Bed::new(2, 1 << 20);
    bed.stop();
    let files = |setup: &Setup| -> Vec<Vec<u8>> {
        let members = setup.members.iter();
        let paths = members.flat_map(|m| [m.path.clone(), m.scb.clone()]);
        paths.map(|p| std::fs::read(p).expect("a file")).collect()
    };
    let before = files(&bed.setup);
    let other = Setup {
        label: Some("other".into()),
        ..bed.setup.clone()
    };
    let error = start(&other, &Mounting::default()).expect_err("a refusal");
    assert_eq!(error.code(), Code::WrongLabel, "{error}");
    assert_eq!(error.errno(), libc::EMEDIUMTYPE);
    let says = "the set has the label \"test\", the configuration \"other\"";
    assert!(error.to_string().contains(says), "{error}");
    assert!(error.hint().contains("leave out the label"), "{error}");
    assert!(files(&bed.setup) == before, "nothing is written");
    bed.setup.label = None;
    bed.start();
    assert_eq!(bed.handle().state().label, "test");
}
