//! The bitmap alone, under every order in which its accesses may be seen: the file of the product, with the atomics of
//! loom. Clearing a region excludes marking it, by the fence (I4), so no test does both to one at once.

#[path = "../../src/set/bitmap.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "only the accesses are of interest"
)]
mod bitmap;

// What the file finds beside it in the product.
#[path = "../../src/set/geometry.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "only the accesses are of interest"
)]
mod geometry;
mod member {
    pub(super) use shadowset::set::BitmapId;
}
#[cfg(debug_assertions)]
mod planted {
    pub(super) use shadowset::set::planted::{Mistake, is};
}

use geometry::{Bytes, Geometry, Regions};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
use loom::thread;

use bitmap::WriteBitmap;

/// Two words: 64 regions and one more.
fn empty() -> Arc<WriteBitmap> {
    let geometry = Geometry::new(Bytes(65 * 8 * 512), 8).expect("valid");
    Arc::new(WriteBitmap::empty(geometry))
}

fn run(first: u64, end: u64) -> Regions {
    Regions::run(first, end)
}

/// What it counts is what is set.
fn check_count(map: &WriteBitmap) {
    let set: u64 = map.words().map(|word| u64::from(word.count_ones())).sum();
    assert_eq!(map.count(), set);
}

#[test]
fn who_finds_a_mark_finds_what_came_before_it() {
    loom::model(|| {
        let (map, durable) = (empty(), Arc::new(AtomicU64::new(0)));
        let marker = {
            let (map, durable) = (Arc::clone(&map), Arc::clone(&durable));
            thread::spawn(move || {
                durable.store(1, Relaxed);
                map.mark(run(63, 65));
            })
        };
        // As another writer in the same region: with its mark set it does not ask whether it is durable (I1).
        if map.mark(run(64, 65)) == 0 {
            assert_eq!(durable.load(Relaxed), 1, "in memory before it is durable");
        }
        marker.join().expect("it ends");
        check_count(&map);
    });
}

#[test]
fn marks_of_the_same_regions_are_new_once() {
    loom::model(|| {
        let map = empty();
        let marks = |first, end| {
            let map = Arc::clone(&map);
            thread::spawn(move || map.mark(run(first, end)))
        };
        let others = [marks(62, 65), marks(63, 64)];
        let own = map.mark(run(61, 64));
        let new: u64 = others
            .into_iter()
            .map(|other| other.join().expect("it ends"))
            .sum();
        assert_eq!((own + new, map.count()), (4, 4));
        assert!(map.covers(run(61, 65)));
    });
}

#[test]
fn clearing_a_region_leaves_marks_beside_it() {
    loom::model(|| {
        let map = empty();
        map.mark(run(1, 3));
        let marker = {
            let map = Arc::clone(&map);
            thread::spawn(move || {
                assert_eq!(map.mark(run(3, 5)), 2);
                assert_eq!(map.mark(run(0, 1)), 1);
            })
        };
        assert_eq!(map.clear(run(1, 3)), 2);
        marker.join().expect("it ends");
        assert!(map.covers(run(3, 5)) && map.covers(run(0, 1)));
        assert!(!map.is_stale(map.geometry().bytes_of(run(1, 3))));
        check_count(&map);
    });
}

#[test]
fn a_scan_misses_no_mark_that_was_there_before_it() {
    loom::model(|| {
        let (map, written) = (empty(), Arc::new(AtomicU64::new(0)));
        map.mark(run(2, 3));
        let writer = {
            let (map, written) = (Arc::clone(&map), Arc::clone(&written));
            thread::spawn(move || {
                map.mark(run(63, 65));
                written.store(1, loom::sync::atomic::Ordering::Release);
            })
        };
        let copier = {
            let map = Arc::clone(&map);
            thread::spawn(move || map.clear(run(2, 3)))
        };
        let seen = written.load(loom::sync::atomic::Ordering::Acquire);
        let first = map.next_run(3, 8);
        if seen == 1 {
            assert_eq!(first, Some(run(63, 65)), "what is written is marked");
            assert!(!map.is_empty());
        }
        assert!(first.is_none_or(|found| found.first().0 >= 63));
        writer.join().expect("it ends");
        assert_eq!(copier.join().expect("it ends"), 1);
        assert_eq!(map.runs_in(run(0, 65)), [run(63, 65)]);
        check_count(&map);
    });
}

#[test]
fn a_bitmap_that_takes_in_another_loses_no_mark() {
    loom::model(|| {
        let (map, other) = (empty(), empty());
        other.mark(run(0, 2));
        let marker = {
            let map = Arc::clone(&map);
            thread::spawn(move || map.mark(run(1, 3)))
        };
        map.absorb(&other);
        marker.join().expect("it ends");
        assert!(map.covers(run(0, 3)));
        check_count(&map);
    });
}
