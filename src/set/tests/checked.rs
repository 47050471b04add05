//! The checks behind every event see what they are for.

use super::*;

fn broken(breaks: impl FnOnce(&mut ShadowSet)) {
    let mut set = set(2);
    breaks(&mut set);
    set.check_invariants();
}

#[test]
#[should_panic(expected = "I7: m2 is too small")]
fn a_source_without_room_for_the_unit() {
    broken(|set| set.members[1].size = Bytes(UNIT - 512));
}

#[test]
#[should_panic(expected = "I2: m2 as a source")]
fn a_source_that_is_not_counted_as_one() {
    broken(|set| {
        let _ = set.sources.remove(id(1));
    });
}

#[test]
#[should_panic(expected = "the current View is alive")]
fn a_view_that_is_over() {
    broken(|set| set.live.clear());
}

#[test]
#[should_panic(expected = "I1: coverage of the intent")]
fn an_intent_of_a_smaller_unit() {
    broken(|set| set.geometry = Geometry::new(Bytes(UNIT - 4096), 8).expect("a unit"));
}

#[test]
#[should_panic(expected = "m2 is written in the current epoch")]
fn a_departure_from_an_epoch_that_is_not_over() {
    let mut set = set(2);
    let _ = expel(&mut set, "m2");
    let departed = set.members[1].state.departed_mut();
    departed.expect("it is away").until = set.epoch;
    set.check_invariants();
}
