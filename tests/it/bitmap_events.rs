//! Events about bitmaps, and how much of them `wbm_opcom_lvl` lets through.

use std::sync::mpsc;
use std::time::Duration;

use shadowset::server::Request;
use shadowset::server::params::Param;
use shadowset::server::setup::Durability;
use shadowset::set::{AttachPolicy, OpId, Policy};

use crate::bed::Bed;

const REGION: u64 = 65_024;

/// Events whose name begins like this, with their facts.
fn told(bed: &Bed, like: &str) -> Vec<String> {
    let events = bed.handle().events();
    let events = events.iter().filter(|e| e.event.starts_with(like));
    let text = |e: &shadowset::server::EventRecord| {
        let facts = e.facts.iter().map(|(key, value)| format!(" {key}={value}"));
        e.event.to_string() + &facts.collect::<String>()
    };
    events.map(text).collect()
}

fn set(bed: &Bed, name: &str, value: &str) {
    let (name, value) = (name.to_owned(), value.to_owned());
    bed.command(Request::Set { name, value }).expect("set");
}

fn id(bed: &Bed, member: &str) -> String {
    let state = bed.handle().state();
    let member = state.member(member).expect("a member");
    member.bitmap.expect("it has a bitmap").to_string()
}

/// Ends the copy of an attach before it is done; the member keeps what is left in a bitmap.
fn cancelled(bed: &Bed, policy: AttachPolicy) {
    set(bed, "max_copies", "0");
    let answer = bed.attach("m2", policy).expect("attached");
    let op = answer.facts.iter().find(|(key, _)| *key == "operation");
    let op = op.expect("an operation").1.parse().expect("a number");
    bed.command(Request::Cancel(OpId(op))).expect("cancelled");
    set(bed, "max_copies", "4");
}

#[test]
fn what_becomes_of_a_bitmap_is_told() {
    let bed = Bed::new(3, REGION * 8);
    bed.detach("m2", Policy::Minicopy).expect("detached");
    let first = id(&bed, "m2");
    cancelled(&bed, AttachPolicy::Minicopy);
    bed.attach("m2", AttachPolicy::Minicopy).expect("attached");
    bed.wait();
    let life = [
        format!("bitmap-started bitmap={first} member=m2 policy=minicopy"),
        format!("bitmap-in-use bitmap={first} member=m2 operation=1"),
        format!("bitmap-active bitmap={first} member=m2 operation=1"),
        format!("bitmap-in-use bitmap={first} member=m2 operation=2"),
        format!("bitmap-deleted bitmap={first} member=m2 reason=its minicopy is done"),
    ];
    assert_eq!(told(&bed, "bitmap-"), life);
    // A full copy has none, and leaves one when it ends too early; another copy needs it not.
    bed.detach("m2", Policy::Full).expect("detached");
    assert_eq!(told(&bed, "bitmap-").len(), life.len());
    cancelled(&bed, AttachPolicy::Full);
    let second = id(&bed, "m2");
    bed.attach("m2", AttachPolicy::Full).expect("attached");
    bed.wait();
    bed.command(Request::Expel {
        member: "m3".to_owned(),
    })
    .expect("expelled");
    let third = id(&bed, "m3");
    bed.command(Request::Release {
        member: "m3".to_owned(),
    })
    .expect("released");
    let rest = [
        format!("bitmap-started bitmap={second} member=m2 policy=minicopy=optional"),
        format!(
            "bitmap-deleted bitmap={second} member=m2 reason=its member comes back by another copy"
        ),
        format!("bitmap-started bitmap={third} member=m3 policy=minicopy=optional"),
        format!("bitmap-deleted bitmap={third} member=m3 reason=its member is released"),
    ];
    assert_eq!(told(&bed, "bitmap-")[life.len()..], rest);
}

#[test]
fn a_mount_tells_of_the_bitmap_of_a_missing_member() {
    let mut bed = Bed::durable(2, REGION * 8, Durability::Power);
    bed.stop();
    std::fs::rename(bed.path(1), bed.path(1).with_extension("away")).expect("moved");
    bed.start();
    let started = format!(
        "bitmap-started bitmap={} member=m2 policy=minicopy=optional",
        id(&bed, "m2")
    );
    assert_eq!(told(&bed, "bitmap-"), std::slice::from_ref(&started));
    bed.stop();
    bed.start();
    // Events outlive the mount.
    assert_eq!(told(&bed, "bitmap-"), [started], "it is the same one still");
    bed.stop();
}

#[test]
fn nothing_is_told_of_bitmaps_at_level_0_but_their_loss() {
    let mut bed = Bed::durable(2, REGION * 8, Durability::Power);
    set(&bed, "wbm_opcom_lvl", "0");
    bed.detach("m2", Policy::Minicopy).expect("detached");
    assert_eq!(told(&bed, "bitmap-"), [""; 0]);
    set(&bed, "wbm_opcom_lvl", "1");
    bed.attach("m2", AttachPolicy::Minicopy).expect("attached");
    bed.wait();
    assert_eq!(told(&bed, "bitmap-").len(), 2, "at once");
    bed.detach("m2", Policy::Minicopy).expect("detached");
    bed.stop();
    for name in ["journal.a", "journal.b"] {
        std::fs::remove_file(bed.setup.state_dir.join(name)).expect("removed");
    }
    bed.start_with(Param::WbmOpcomLvl, 0);
    assert_eq!(told(&bed, "bitmaps-lost").len(), 1);
    bed.stop();
}

#[test]
fn a_new_write_intent_bitmap_is_told_at_level_2() {
    let bed = Bed::durable(2, REGION * 8, Durability::Power);
    let (sender, changes) = mpsc::channel();
    bed.handle().on_change(Box::new(move || {
        let _ = sender.send(());
    }));
    // A detach begins the write-intent bitmap anew.
    bed.handle()
        .pipeline()
        .write(0, &[1; 512])
        .expect("written");
    bed.detach("m2", Policy::Minicopy).expect("detached");
    assert_eq!(
        told(&bed, "bitmap-reset"),
        [""; 0],
        "level 1 is the default"
    );
    set(&bed, "wbm_opcom_lvl", "2");
    set(&bed, "hbmm_rtc", "1");
    for region in [1, 2, 3] {
        let written = bed.handle().pipeline().write(region * REGION, &[1; 512]);
        written.expect("written");
    }
    while told(&bed, "bitmap-reset").is_empty() {
        let change = changes.recv_timeout(Duration::from_secs(60));
        change.expect("it begins anew within seconds");
    }
    let event = &told(&bed, "bitmap-reset")[0];
    assert!(
        event.starts_with("bitmap-reset type=write-intent set_bits="),
        "{event}"
    );
}
