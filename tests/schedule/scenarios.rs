//! What happens in a schedule.

use std::time::Duration;

use shadowset::server::Request;
use shadowset::server::setup::Durability;
use shadowset::set::AttachPolicy;
use shadowset::sync::thread::JoinHandle;

use super::bed::{Bed, attach_by, detach, join};
use super::explore::{By, Scenario};

/// Every scenario.
pub(crate) const ALL: &[Scenario] = &[
    CROWD, CYCLE, TWO, BROKEN, UNFLUSHED, FLUSHES, FULL, CANCELLED, STALL, SHUTDOWN, LATER, PARTS,
];

const NONE: Duration = Duration::ZERO;
/// Ticks, pauses and looks may come at any time; no wait for an answer ends early.
const HASTE: Duration = Duration::from_secs(1);

/// A member leaves and comes back by minicopy, beside these threads.
fn leaves_and_comes_back(bed: Bed, threads: impl IntoIterator<Item = JoinHandle<()>>) {
    let cut = bed.detach(1);
    bed.attach(1, &cut);
    bed.until_whole();
    join(threads);
    bed.finish();
}

/// Writes of a member fail, beside these threads; then it comes back.
fn fails_in_writes(bed: Bed, threads: impl IntoIterator<Item = JoinHandle<()>>) {
    let unit = &bed.unit;
    unit.members.fail_writes(1, true);
    // The others may be done.
    assert!(unit.write(0, 2), "a source is left");
    bed.until(|now| now.set.members[1].departed);
    unit.members.fail_writes(1, false);
    bed.bring_back(1);
    join(threads);
    bed.finish();
}

/// Many write the same few blocks.
pub(crate) const CROWD: Scenario = Scenario {
    name: "crowd",
    haste: NONE,
    run: || {
        let bed = Bed::new(2, Durability::Memory);
        let unit = &bed.unit;
        join([unit.crowd(4), unit.crowd(4), unit.crowd(4)]);
        unit.read(0, 8);
        bed.finish();
    },
};

/// A member leaves and comes back by minicopy, while two write and one reads.
pub(crate) const CYCLE: Scenario = Scenario {
    name: "cycle",
    haste: NONE,
    run: || {
        let bed = Bed::new(2, Durability::Crash);
        let unit = &bed.unit;
        let threads = [unit.writer(3), unit.writer(3), unit.reader(3)];
        leaves_and_comes_back(bed, threads);
    },
};

/// Two members leave and come back at once: their copies share steps. Time passes as it likes.
pub(crate) const TWO: Scenario = Scenario {
    name: "two",
    haste: HASTE,
    run: || {
        let bed = Bed::new(3, Durability::Memory);
        let first = bed.unit.writer(2);
        let cuts = [bed.detach(1), bed.detach(2)];
        let threads = [bed.unit.writer(3), bed.unit.reader(2), first];
        bed.attach(1, &cuts[0]);
        bed.attach(2, &cuts[1]);
        bed.until_whole();
        join(threads);
        bed.finish();
    },
};

/// A member fails in the middle of writes, and comes back by a compare copy.
pub(crate) const BROKEN: Scenario = Scenario {
    name: "broken",
    haste: NONE,
    run: || {
        let bed = Bed::new(2, Durability::Crash);
        let unit = &bed.unit;
        let threads = [unit.writer(3), unit.writer(3), unit.reader(2)];
        fails_in_writes(bed, threads);
    },
};

/// Members that answer later: one leaves and comes back, while many write the same blocks.
pub(crate) const LATER: Scenario = Scenario {
    name: "later",
    haste: NONE,
    run: || {
        let bed = Bed::later(2, Durability::Crash);
        let unit = &bed.unit;
        let threads = [unit.crowd(3), unit.writer(3), unit.reader(3)];
        leaves_and_comes_back(bed, threads);
    },
};

/// Of members that have a write at the same time, one fails.
pub(crate) const PARTS: Scenario = Scenario {
    name: "parts",
    haste: NONE,
    run: || {
        let bed = Bed::later(3, Durability::Crash);
        let unit = &bed.unit;
        let threads = [unit.crowd(3), unit.writer(3), unit.reader(2)];
        fails_in_writes(bed, threads);
    },
};

/// A flush of a member fails, and the system says so once.
pub(crate) const UNFLUSHED: Scenario = Scenario {
    name: "unflushed",
    haste: NONE,
    run: || {
        let bed = Bed::new(3, Durability::Crash);
        let unit = &bed.unit;
        let threads = [unit.flusher(2), unit.flusher(2), unit.writer(2)];
        unit.members.fail_flush(2);
        // The others may be done.
        unit.flush();
        bed.until(|now| now.set.members[2].departed);
        join(threads);
        bed.finish();
    },
};

/// Flushes while a member leaves and comes back.
pub(crate) const FLUSHES: Scenario = Scenario {
    name: "flushes",
    haste: HASTE,
    run: || {
        let bed = Bed::new(2, Durability::Memory);
        let unit = &bed.unit;
        let threads = [unit.flusher(3), unit.flusher(2)];
        leaves_and_comes_back(bed, threads);
    },
};

/// A member leaves while another is filled by a full copy.
pub(crate) const FULL: Scenario = Scenario {
    name: "full",
    haste: NONE,
    run: || {
        let bed = Bed::new(3, Durability::Memory);
        let unit = &bed.unit;
        bed.detach(2);
        let filled = attach_by(2, AttachPolicy::Full);
        unit.command(filled).expect("attached");
        let threads = [unit.writer(3), unit.reader(2)];
        let cut = bed.detach(1);
        bed.until(|now| now.set.members[2].state == "source");
        bed.attach(1, &cut);
        bed.until_whole();
        join(threads);
        bed.finish();
    },
};

/// A copy is ended in the middle, its member leaves, and comes back by what is left.
pub(crate) const CANCELLED: Scenario = Scenario {
    name: "cancelled",
    haste: NONE,
    run: || {
        let bed = Bed::new(2, Durability::Crash);
        let unit = &bed.unit;
        let cut = bed.detach(1);
        let early = unit.writer(3);
        join([unit.writer(3)]);
        bed.attach(1, &cut);
        // Refused where the copy has come to its end before.
        let _ = unit.command(Request::Cancel(unit.last_operation()));
        let threads = [unit.writer(4), early];
        bed.until(|now| now.set.operations.iter().all(|op| op.state.is_over()));
        if bed.unit.handle.state().set.members[1].departed {
            let back = attach_by(1, AttachPolicy::Minicopy);
            unit.command(back).expect("attached");
        }
        bed.until_whole();
        join(threads);
        bed.finish();
    },
};

/// Changes wait while nothing may change.
pub(crate) const STALL: Scenario = Scenario {
    name: "stall",
    haste: NONE,
    run: || {
        let bed = Bed::new(2, Durability::Memory);
        let unit = &bed.unit;
        let threads = [unit.crowd(3), unit.crowd(3), unit.crowd(3)];
        unit.command(Request::Stall { seconds: 60 })
            .expect("stalled");
        let before = [bed.image(0), bed.image(1)];
        assert!(before[0] == before[1], "a stalled unit is one");
        assert!(
            before[0] == unit.members.durable(0),
            "a stalled unit is flushed"
        );
        unit.read(0, 4);
        let after = [bed.image(0), bed.image(1)];
        assert!(before == after, "a stalled unit has changed");
        unit.command(Request::Unstall).expect("it goes on");
        join(threads);
        bed.finish();
    },
};

/// The unit is stopped while a copy runs and requests are under way; its next start goes on with it.
pub(crate) const SHUTDOWN: Scenario = Scenario {
    name: "shutdown",
    haste: NONE,
    run: || {
        let mut bed = Bed::new(2, Durability::Crash);
        let cut = bed.detach(1);
        join([bed.unit.writer(3)]);
        bed.attach(1, &cut);
        let late = bed.unit.spawn(|unit| {
            // Behind the end of the unit there is an error.
            let _ = (0..4).all(|first| unit.write(first, first + 3));
        });
        let command = bed.unit.spawn(|unit| drop(unit.command(detach(1))));
        bed.stop();
        join([late, command]);
        bed.start();
        if bed.unit.handle.state().set.members[1].departed {
            bed.attach_again(1);
        }
        bed.until_whole();
        bed.unit.read(0, super::bed::BLOCKS);
        join([bed.unit.writer(2)]);
        bed.finish();
    },
};

/// What has failed once: the scenario, the way, and the seed of the schedules.
const FOUND: [(Scenario, By, u64); 2] = [
    // A command came behind the last look of the control thread, and was never answered.
    (SHUTDOWN, By::Priority, 2),
    // A member was leaving at the stop: its last flush went on behind it, and the next start found its image locked.
    (SHUTDOWN, By::Priority, 46),
];

#[test]
fn what_was_found_by_a_schedule_stays_found() {
    for (scenario, by, seed) in FOUND {
        scenario.batch(by, seed);
    }
}

macro_rules! explored {
    ($($(#[$doc:meta])* $test:ident: $scenario:expr;)+) => {
        $($(#[$doc])* #[test] fn $test() { $scenario.explore(); })+
    };
}

explored! {
    many_write_the_same_blocks: CROWD;
    a_member_leaves_and_comes_back: CYCLE;
    two_members_leave_and_come_back: TWO;
    a_member_fails_in_writes: BROKEN;
    a_member_fails_in_flushes: UNFLUSHED;
    flushes_meet_a_detach: FLUSHES;
    a_detach_meets_a_full_copy: FULL;
    a_copy_is_cancelled: CANCELLED;
    changes_wait_for_a_stall: STALL;
    a_stop_meets_work_under_way: SHUTDOWN;
    members_answer_later: LATER;
    a_member_fails_in_its_part: PARTS;
}
