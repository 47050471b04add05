//! Which member answers a read, seen by images that somebody has made different behind the unit's back.

use std::os::unix::fs::FileExt;

use shadowset::server::Request;
use shadowset::set::{AttachPolicy, Policy};

use crate::bed::Bed;

const SIZE: u64 = 4 << 20;

/// A unit whose members at these sites say their number, from 1, wherever they are read.
fn told_apart(sites: &[u32]) -> Bed {
    let mut bed = Bed::new(sites.len(), SIZE);
    bed.stop();
    for (member, site) in bed.setup.members.iter_mut().zip(sites) {
        member.site = *site;
    }
    bed.start();
    for (at, number) in (0..sites.len()).zip(1..) {
        let image = std::fs::OpenOptions::new().write(true).open(bed.path(at));
        let image = image.expect("an image");
        image
            .write_all_at(&vec![number; 4 << 20], 0)
            .expect("written");
    }
    bed
}

fn set(bed: &Bed, name: &str, value: &str) {
    let (name, value) = (name.to_owned(), value.to_owned());
    bed.command(Request::Set { name, value }).expect("set");
}

/// The members that answer reads of 512 bytes at these places.
fn readers(bed: &Bed, places: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let unit = bed.handle();
    let reader = |at| {
        let mut buf = [0; 512];
        unit.pipeline().read(at, &mut buf).expect("read");
        assert!(buf.iter().all(|b| *b == buf[0]), "one member for one read");
        buf[0]
    };
    places.into_iter().map(reader).collect()
}

/// Places that continue no stream.
fn scattered() -> impl Iterator<Item = u64> {
    (0..6).map(|n| n * 300_032)
}

fn stream(from: u64) -> impl Iterator<Item = u64> {
    (0..6).map(move |n| from + n * 512)
}

/// Who answered, and who should have.
type Story = Vec<(Vec<u8>, [u8; 6])>;

/// A member that lets a read wait for a tenth of a second is passed over for a while, as on a busy machine: then the story is
/// told anew.
fn comes_true(story: fn() -> Story) {
    const TIMES: usize = 5;
    let wrong = || story().into_iter().find(|(got, wanted)| got != wanted);
    let wrong: Vec<_> = (0..TIMES).map_while(|_| wrong()).collect();
    assert!(wrong.len() < TIMES, "{wrong:?}");
}

#[test]
fn members_take_turns_where_that_is_wanted_and_a_stream_stays() {
    comes_true(|| {
        let bed = told_apart(&[0, 0, 0]);
        let mut story = Story::new();
        // Idle and equal: the first.
        story.push((readers(&bed, scattered()), [1; 6]));
        set(&bed, "read_policy", "round-robin");
        story.push((readers(&bed, scattered()), [1, 2, 3, 1, 2, 3]));
        story.push((readers(&bed, stream(1 << 20)), [1; 6]));
        story.push((readers(&bed, stream(2 << 20)), [2; 6]));
        // Each goes on where it is, one read of the one and one of the other.
        let both = (6..9).flat_map(|n| [(1 << 20) + n * 512, (2 << 20) + n * 512]);
        story.push((readers(&bed, both), [1, 2, 1, 2, 1, 2]));
        set(&bed, "read_policy", "cost");
        story.push((readers(&bed, scattered()), [1; 6]));
        story
    });
}

#[test]
fn another_site_is_read_when_no_local_member_is_left() {
    comes_true(|| {
        let bed = told_apart(&[2, 1, 1]);
        let mut story = Story::new();
        // This node has no site yet.
        story.push((readers(&bed, scattered()), [1; 6]));
        set(&bed, "site_id", "1");
        story.push((readers(&bed, scattered()), [2; 6]));
        set(&bed, "read_policy", "round-robin");
        story.push((readers(&bed, scattered()), [2, 3, 2, 3, 2, 3]));
        for member in ["m2", "m3"] {
            bed.detach(member, Policy::MinicopyOptional)
                .expect("detached");
        }
        story.push((readers(&bed, scattered()), [1; 6]));
        bed.attach("m2", AttachPolicy::MinicopyOptional)
            .expect("attached");
        bed.wait();
        story.push((readers(&bed, scattered()), [2; 6]));
        story
    });
}
