//! First writes to regions are announced to the durable bitmaps, and no others.

use std::sync::mpsc;
use std::time::Duration;

use shadowset::server::Request;
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

fn set(bed: &Bed, name: &str, value: &str) {
    let (name, value) = (name.to_owned(), value.to_owned());
    bed.command(Request::Set { name, value }).expect("set");
}

/// The first announcement to come switches to buffered-message mode.
fn switch_at_the_first(bed: &Bed) {
    for name in ["wbm_msg_upper", "wbm_msg_lower"] {
        set(bed, name, "0");
    }
    set(bed, "wbm_msg_int", "50");
    set(bed, "wbm_msg_mode", "manual");
}

/// With thresholds of 0 the first announcement switches to buffered messages for good: each waits for others.
#[test]
fn a_switch_of_the_message_mode_is_seen_and_told() {
    let bed = Bed::durable(2, 4 << 20, Durability::Power);
    let unit = bed.handle();
    switch_at_the_first(&bed);
    let counts = std::sync::Arc::clone(&unit.state().announced);
    assert_eq!((counts.mode(), counts.switches()), ("single", 0));
    let (sender, changes) = mpsc::channel();
    unit.on_change(Box::new(move || {
        let _ = sender.send(());
    }));
    let begun = std::time::Instant::now();
    unit.pipeline().write(70_000, &[1; 512]).expect("written");
    assert!(begun.elapsed() >= Duration::from_millis(50));
    assert_eq!((counts.mode(), counts.switches()), ("buffered", 1));
    let told = || {
        unit.events()
            .into_iter()
            .find(|e| e.event == "message-mode")
    };
    let event = loop {
        if let Some(event) = told() {
            break event;
        }
        let change = changes.recv_timeout(Duration::from_secs(60));
        change.expect("it is told within a second or so");
    };
    let facts = [("mode", "buffered"), ("switches", "1")];
    assert_eq!(
        event.facts,
        facts.map(|(key, value)| (key.into(), value.to_owned()))
    );
    set(&bed, "wbm_msg_mode", "auto");
    assert_eq!((counts.mode(), counts.switches()), ("auto", 1));
}

/// Lets time pass, of which the server makes use.
fn pass(millis: u64) {
    let time = Duration::from_millis(millis);
    shadowset::io::sys::poll(&[], Some(time)).expect("poll");
}

#[test]
fn counters_that_begin_anew_are_no_switches() {
    let bed = Bed::durable(2, 4 << 20, Durability::Power);
    let unit = bed.handle();
    switch_at_the_first(&bed);
    unit.pipeline().write(70_000, &[1; 512]).expect("written");
    let told = |bed: &Bed| {
        let events = bed.handle().events().into_iter();
        events.filter(|e| e.event == "message-mode").count()
    };
    while told(&bed) == 0 {
        pass(50);
    }
    bed.command(Request::ResetCounters).expect("they do");
    // Switches are looked at once a second.
    pass(2500);
    set(&bed, "max_copies", "3");
    assert_eq!((told(&bed), unit.state().announced.switches()), (1, 0));
}

#[test]
fn no_switch_is_told_where_nothing_is_told_of_bitmaps() {
    let bed = Bed::durable(2, 4 << 20, Durability::Power);
    let unit = bed.handle();
    set(&bed, "wbm_opcom_lvl", "0");
    // No look at the write-intent bitmap: only the switch changes the state.
    set(&bed, "hbmm_rtc", "65535");
    switch_at_the_first(&bed);
    let (sender, changes) = mpsc::channel();
    unit.on_change(Box::new(move || {
        let _ = sender.send(());
    }));
    unit.pipeline().write(70_000, &[1; 512]).expect("written");
    assert_eq!(unit.state().announced.switches(), 1);
    // It is seen within a second or so, and then nothing changes any more.
    while changes.recv_timeout(Duration::from_secs(3)).is_ok() {}
    assert!(unit.events().iter().all(|e| e.event != "message-mode"));
}

#[test]
fn without_bitmaps_on_disk_nothing_is_announced() {
    let bed = Bed::new(2, 4 << 20);
    let unit = bed.handle();
    unit.pipeline().write(0, &[1; 512]).expect("written");
    assert_eq!(unit.state().announced.announcements(), 0);
}
