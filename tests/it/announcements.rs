//! First writes to regions are announced to the durable bitmaps, and no others.

use shadowset::server::setup::Durability;

use crate::bed::Bed;

#[test]
fn the_first_write_to_a_region_is_announced_and_counted() {
    let bed = Bed::durable(2, 4 << 20, Durability::Power);
    let unit = bed.handle();
    let counts = std::sync::Arc::clone(&unit.state().announced);
    let before = (counts.announcements(), counts.commits());
    for _ in 0..50 {
        unit.pipeline().write(70_000, &[1; 512]).expect("written");
    }
    let after = (counts.announcements(), counts.commits());
    assert_eq!(after, (before.0 + 1, before.1 + 1));
    assert_eq!((counts.mode(), counts.switches()), ("auto", 0));
    assert_eq!(counts.sizes()[0], after.1, "nobody else writes");
}

#[test]
fn without_bitmaps_on_disk_nothing_is_announced() {
    let bed = Bed::new(2, 4 << 20);
    let unit = bed.handle();
    unit.pipeline().write(0, &[1; 512]).expect("written");
    assert_eq!(unit.state().announced.announcements(), 0);
}
