//! What counts as a change, and where samples lie.

use proptest::prelude::*;

use super::*;

fn file() -> FileFacts {
    FileFacts {
        device: 1,
        inode: 2,
        mtime: (3, 4),
        ctime: (5, 6),
        blocks: 7,
    }
}

fn device() -> DeviceFacts {
    DeviceFacts {
        diskseq: 1,
        boot: Uuid::from_u128(2),
        written: 3,
    }
}

fn stamp(facts: Facts) -> Stamp {
    Stamp {
        size: 1 << 20,
        facts,
        samples: vec![Sample {
            at: Lbn(0),
            hash: 9,
        }],
        opened: false,
        kept: false,
    }
}

/// What the change from one to the other is called.
fn said(then: Facts, now: Facts) -> String {
    stamp(then).change(&stamp(now)).unwrap_or_default()
}

/// Its words are for people who compare two images.
#[test]
fn a_fingerprint_differs_when_a_bit_of_the_samples_or_the_size_does() {
    let print = |size, hash| {
        let mut stamp = stamp(Facts::File(file()));
        (stamp.size, stamp.samples[0].hash) = (size, hash);
        stamp.fingerprint()
    };
    let one = print(4096, 9);
    assert!(one.starts_with("4096-") && one == print(4096, 9));
    assert_ne!(one, print(8192, 9));
    for bit in 0..64 {
        assert_ne!(one, print(4096, 9 ^ 1 << bit), "bit {bit}");
    }
}

#[test]
fn a_file_that_nobody_wrote_is_unchanged() {
    assert_eq!(said(Facts::File(file()), Facts::File(file())), "");
    let moved = FileFacts {
        device: 99,
        blocks: 8,
        ..file()
    };
    assert_eq!(
        said(Facts::File(file()), Facts::File(moved)),
        "",
        "a disk that was carried away, packed by its file system"
    );
}

#[test]
fn each_change_of_a_file_has_its_words() {
    let inode = FileFacts { inode: 3, ..file() };
    let clone = FileFacts {
        device: 9,
        ctime: (5, 7),
        ..file()
    };
    let written = FileFacts {
        mtime: (3, 5),
        ctime: (8, 0),
        ..file()
    };
    let hidden = FileFacts {
        ctime: (8, 0),
        ..file()
    };
    for (now, words) in [
        (inode, "another file is at its path"),
        (clone, "another file is at its path"),
        (written, "it was written"),
        (hidden, "its inode was changed"),
    ] {
        assert_eq!(said(Facts::File(file()), Facts::File(now)), words);
    }
    assert_eq!(
        said(Facts::File(file()), Facts::Device(device())),
        "another file is at its path"
    );
}

#[test]
fn of_an_image_that_was_immutable_only_the_ctime_is_forgiven() {
    let lifted = FileFacts {
        ctime: (8, 0),
        ..file()
    };
    let moved = FileFacts {
        device: 9,
        ..lifted
    };
    let written = FileFacts {
        mtime: (3, 5),
        ..lifted
    };
    let elsewhere = FileFacts {
        device: 9,
        ..written
    };
    let other = FileFacts { inode: 3, ..lifted };
    let mut then = stamp(Facts::File(file()));
    then.kept = true;
    for (now, words) in [
        (file(), ""),
        (lifted, ""),
        (moved, ""),
        (written, "it was written"),
        (elsewhere, "another file is at its path"),
        (other, "another file is at its path"),
    ] {
        let now = stamp(Facts::File(now));
        assert_eq!(then.change(&now).unwrap_or_default(), words, "{now:?}");
    }
    let mut now = stamp(Facts::File(lifted));
    now.samples[0].hash += 1;
    assert_eq!(
        then.change(&now).as_deref(),
        Some("its contents are others")
    );
    now.size += 512;
    assert_eq!(then.change(&now).as_deref(), Some("its size is another"));
}

#[test]
fn size_and_contents_count_for_both_kinds() {
    for facts in [Facts::File(file()), Facts::Device(device())] {
        let then = stamp(facts);
        let mut now = then.clone();
        now.samples[0].hash += 1;
        assert_eq!(
            then.change(&now).as_deref(),
            Some("its contents are others")
        );
        now.size += 512;
        assert_eq!(then.change(&now).as_deref(), Some("its size is another"));
    }
}

#[test]
fn an_image_that_was_opened_counts_as_changed() {
    let mut then = stamp(Facts::File(file()));
    then.opened = true;
    let says = then.change(&stamp(Facts::File(file())));
    assert_eq!(
        says.as_deref(),
        Some("another program has opened it for writing")
    );
}

#[test]
fn after_a_restart_only_samples_tell_of_a_device() {
    let then = Facts::Device(device());
    let written = DeviceFacts {
        written: 4,
        ..device()
    };
    let replaced = DeviceFacts {
        diskseq: 2,
        written: 0,
        ..device()
    };
    let restarted = DeviceFacts {
        boot: Uuid::from_u128(3),
        ..replaced
    };
    assert_eq!(said(then, then), "");
    assert_eq!(said(then, Facts::Device(written)), "it was written");
    assert_eq!(
        said(then, Facts::Device(replaced)),
        "its disk was taken away and came back"
    );
    assert_eq!(said(then, Facts::Device(restarted)), "");
}

#[test]
fn both_halves_of_an_identity_move_the_samples() {
    let places = |high, low| Stamp::places(Uuid::from_u64_pair(high, low), 1 << 40);
    for other in [0, u64::MAX] {
        assert_ne!(places(1, other), places(2, other));
        assert_ne!(places(other, 1), places(other, 2));
    }
}

#[test]
fn parts_of_a_whole_are_together_the_whole() {
    let borders: Vec<u64> = (0..=4).map(|n| share(10, n, 4)).collect();
    assert_eq!(borders, [0, 3, 6, 8, 10]);
}

#[test]
fn small_images_are_sampled_whole() {
    let member = Uuid::from_u128(77);
    let places = |size| Stamp::places(member, size);
    assert_eq!(places(0), []);
    assert_eq!(places(512), [Lbn(0)]);
    assert_eq!(places(4097), [Lbn(0), Lbn(8)]);
    let all: Vec<Lbn> = (0..16).map(|n| Lbn(8 * n)).collect();
    assert_eq!(places(65536), all);
}

proptest! {
    #[test]
    fn samples_are_spread_evenly(member in any::<u128>(), size in 1u64..=1 << 60) {
        let places = Stamp::places(Uuid::from_u128(member), size);
        let pages = size.div_ceil(SAMPLE_BYTES);
        prop_assert_eq!(places.len() as u64, pages.min(SAMPLES_MAX as u64));
        prop_assert_eq!(places[0], Lbn(0));
        prop_assert_eq!(places[places.len() - 1], Lbn((pages - 1) * 8));
        prop_assert!(places.windows(2).all(|p| p[0] < p[1]));
        let widest = places.windows(2).map(|p| p[1].0 - p[0].0).max().unwrap_or(0);
        prop_assert!(widest <= 2 * 8 * pages.div_ceil(SAMPLES_MAX as u64));
        prop_assert_eq!(places, Stamp::places(Uuid::from_u128(member), size));
    }
}
