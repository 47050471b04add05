//! Losses of power: members, control blocks and state directory on a disk that keeps what was flushed and of the rest what
//! chance wants. `SHADOWSET_POWER_ROUNDS` sets the number of rounds, `SHADOWSET_POWER_SEED` the first seed.

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use shadowset::io::scb_file::{self, ScbFile, ScbFound};
use shadowset::io::sys;
use shadowset::set::{Generation, Scb};
use shadowset::testing::Rng;

use crate::bed::{MIB, Plan, asked};
use crate::disk::{CHANGES, Disk, Fault, Kind, Strike};
use crate::trial::{SIZE, Trial, Writer};

const ROUNDS: u64 = 16;
/// Rounds after which all members come together.
const REUNION: u64 = 4;
/// How long the chosen operation is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Something is done to a member, as its state has it. What is refused is refused.
fn steer(trial: &mut Trial, rng: &mut Rng) {
    let member = ["m1", "m2", "m3"][rng.place(3)];
    let state = trial
        .unit
        .path(&format!("mnt/.shadow/members/{member}/state"));
    // Without power nobody answers.
    let Ok(state) = std::fs::read_to_string(state) else {
        return;
    };
    let done = match state.trim() {
        "source" if rng.chance(150) => trial.command("merge"),
        "source" => trial.detach(member),
        "detached" => {
            let policies = ["minicopy", "minicopy", "minicopy=optional", "full"];
            trial.attach(member, policies[rng.place(4)])
        }
        _ => Ok(()),
    };
    let _ = done;
}

/// Writes and changes of the membership until the power goes; false when it had to be cut by hand.
fn work_until_dark(trial: &mut Trial, rng: &mut Rng) -> bool {
    let writers = [0, 1].map(|part| trial.writer(part, rng.bits()));
    trial.disk.arm(Fault {
        kinds: CHANGES,
        nth: rng.between(1, 600),
        strike: Strike::Kill,
    });
    let writers = writers.map(Writer::run);
    for _ in 0..rng.below(5) {
        trial.disk.wait(Duration::from_millis(rng.below(60)));
        steer(trial, rng);
    }
    let came = trial.disk.wait(PATIENCE);
    if !came {
        trial.disk.cut();
        sys::kill(trial.unit.pid(), libc::SIGKILL).expect("it lives");
    }
    for writer in writers {
        let error = writer.join().expect("a writer");
        assert!(trial.disk.is_struck(), "with power: {error}");
    }
    came
}

/// Power comes back, and sometimes goes again while the unit is mounted; or it was the server only that has ended. Says how
/// often that was.
fn come_back(trial: &mut Trial, rng: &mut Rng) -> u64 {
    trial.bury();
    for again in 1.. {
        let power = rng.chance(600);
        trial.disk.serve(power.then_some(&mut *rng));
        if rng.chance(700) {
            trial.unit.mount();
            return again;
        }
        trial.disk.arm(Fault {
            kinds: CHANGES,
            nth: rng.between(1, 60),
            strike: Strike::Kill,
        });
        if trial.unit.try_mount().is_err() {
            trial.unit.try_sh("umount -l $M");
            continue;
        }
        // It goes on by itself for a while, with merges and copies.
        if !trial.disk.wait(Duration::from_millis(200)) {
            trial.disk.disarm();
            return again;
        }
        trial.bury();
    }
    unreachable!("some mount has power")
}

/// What has come of some rounds.
#[derive(Debug, Default)]
struct Tally {
    rounds: u64,
    /// Of the power, or of the server alone.
    ends: u64,
    /// At an operation that was chosen beforehand.
    chosen: u64,
}

/// Goes on with a unit that is mounted until the rounds are over and all members are together again.
fn play(mut trial: Trial, seed: u64, rounds: u64) -> Tally {
    let (mut rng, mut tally) = (Rng::new(seed), Tally::default());
    for round in 1..=rounds {
        let what = format!("seed {seed}, round {round}");
        tally.chosen += u64::from(work_until_dark(&mut trial, &mut rng));
        tally.ends += come_back(&mut trial, &mut rng);
        trial.judge(&what);
        tally.rounds = round;
        if round % REUNION == 0 {
            trial.reunite(&what);
            trial.unit.mount();
        }
    }
    trial.reunite("the end");
    tally
}

#[test]
fn what_was_flushed_outlives_any_loss_of_power() {
    let rounds = asked("SHADOWSET_POWER_ROUNDS").unwrap_or(ROUNDS);
    let seed = asked("SHADOWSET_POWER_SEED").unwrap_or(1);
    let begun = Instant::now();
    let tally = play(Trial::mounted(3), seed, rounds);
    println!("{tally:?}, {:.1?}", begun.elapsed());
    assert!(tally.chosen * 4 > rounds, "{tally:?}");
}

/// One start after the other ends before it serves anybody: a member that has left can still come back by its bitmap,
/// and nothing is merged that was not in flight.
#[test]
fn starts_that_are_cut_short_cost_no_bitmap() {
    let mut trial = Trial::mounted(3);
    trial.writer(0, 1).step().expect("written");
    trial.detach("m3").expect("detached");
    trial.writer(0, 2).step().expect("written");
    trial.unit.kill();
    trial.bury();
    let path = trial.disk.path().join("images/m1.scb");
    let written = |trial: &Trial| {
        trial.disk.serve(None);
        match scb_file::read(&path).expect("there") {
            ScbFound::Read(scb) => scb.generation,
            other => panic!("no block: {other:?}"),
        }
    };
    let mut cut_short = Vec::new();
    // The last operations of a start write the blocks, those before them change what is kept of bitmaps.
    for nth in (8..40).rev().chain([u64::MAX]) {
        let before = written(&trial);
        if !start(&mut trial, nth) {
            cut_short.push(written(&trial) > before);
            continue;
        }
        let what = format!("behind starts that ended before operation {nth}");
        trial.assert_nothing_unasked(&what);
        let status = trial.unit.status();
        let bitmap = &status["members"][2]["bitmap"];
        assert!(!bitmap.is_null(), "{what}: {status}");
        trial.unit.kill();
        trial.bury();
    }
    let got_to_a_block = cut_short.iter().filter(|got| **got).count();
    assert!(got_to_a_block > 1 && cut_short.len() > got_to_a_block + 5);
}

/// The server ends while an expelled member is stamped: its own block tells of its departure already, and the set does not know
/// that it does. The start that finishes this took the image as it was by then for what had left.
#[test]
fn an_image_that_is_changed_before_its_departure_is_finished_is_noticed() {
    let mut changed = 0;
    // The first operations write the blocks of the others.
    for nth in 12..40 {
        let mut trial = Trial::mounted(3);
        trial.disk.arm(Fault {
            kinds: CHANGES,
            nth,
            strike: Strike::Kill,
        });
        let expelled = trial.command("expel m3");
        // With what is written behind the answer.
        let _ = expelled.and_then(|()| trial.try_writer(0, 1)?.step());
        if !trial.disk.disarm().1 {
            trial.unit.kill();
        }
        trial.bury();
        trial.disk.serve(None);
        let block = scb_file::read(&trial.disk.path().join("images/m3.scb"));
        match block.expect("readable") {
            ScbFound::Read(own) if own.state.has_left() && own.stamp.is_some() => changed += 1,
            _ => continue,
        }
        let image = "of=images/m3.img conv=notrunc";
        trial
            .unit
            .sh(&format!("dd if=/dev/urandom bs=512 count=1 {image}"));
        trial.unit.mount();
        let answer = trial.command("attach m3 policy=minicopy");
        answer.expect_err(&format!("operation {nth}: the image was changed"));
        if changed == 6 {
            return;
        }
    }
    panic!("{changed} times a block had told");
}

/// A resize that ends at some operation, by a kill or a loss of power, and starts that do: the unit has one size or the other,
/// the larger one if that was acknowledged, and what has left comes back by its bitmap.
#[test]
fn a_unit_grows_or_does_not_and_keeps_its_bitmaps() {
    let rounds = asked("SHADOWSET_POWER_ROUNDS").unwrap_or(ROUNDS / 2);
    let mut rng = Rng::new(asked("SHADOWSET_POWER_SEED").unwrap_or(1));
    let mut struck = 0;
    for round in 0..rounds {
        let (mut trial, acknowledged, was_struck) = cut_growth(round, rng.between(1, 60));
        struck += u64::from(was_struck);
        for last in 1..=4 {
            let power = rng.chance(500);
            trial.disk.serve(power.then_some(&mut rng));
            let some = rng.between(1, 60);
            if start_or_end(&mut trial, if last < 4 { some } else { u64::MAX }) {
                break;
            }
            assert!(last < 4, "round {round}: it is not mounted any more");
        }
        let what = format!("round {round}");
        trial.judge(&what);
        let size = std::fs::metadata(trial.unit.file())
            .expect("the unit")
            .len();
        let allowed = [SIZE + MIB, SIZE];
        let allowed = &allowed[..2 - usize::from(acknowledged)];
        assert!(allowed.contains(&size), "{what}: {size}, {acknowledged}");
        let m3 = &trial.unit.status()["members"][2];
        assert!(!m3["bitmap"].is_null(), "{what}: {m3}");
        trial.reunite(&what);
    }
    assert!(struck * 4 > rounds, "{struck} of {rounds}");
}

/// A unit whose server has ended at an operation of a resize, or behind it; whether that was acknowledged, and the operation was
/// there.
fn cut_growth(seed: u64, nth: u64) -> (Trial, bool, bool) {
    let mut trial = Trial::with_room(3, MIB);
    trial.detach("m3").expect("detached");
    let mut writer = trial.writer(0, seed);
    for _ in 0..8 {
        writer.step().expect("written");
    }
    trial.disk.arm(Fault {
        kinds: CHANGES,
        nth,
        strike: Strike::Kill,
    });
    let answer = trial.command(&format!("resize {}", SIZE + MIB));
    let (_, struck) = trial.disk.disarm();
    if !struck {
        trial.unit.kill();
    }
    drop(writer);
    trial.bury();
    (trial, answer.is_ok(), struck)
}

/// Starts with a server that ends at an operation. Whether it is mounted and lives.
fn start(trial: &mut Trial, nth: u64) -> bool {
    trial.disk.serve(None);
    start_or_end(trial, nth)
}

fn start_or_end(trial: &mut Trial, nth: u64) -> bool {
    trial.disk.arm(Fault {
        kinds: CHANGES,
        nth,
        strike: Strike::Kill,
    });
    let mounted = trial.unit.try_mount().is_ok();
    let (_, struck) = trial.disk.disarm();
    if !mounted {
        trial.unit.try_sh("umount -l $M");
    } else if struck {
        // At one of its first operations behind the mount.
        trial.bury();
    }
    mounted && !struck
}

/// Who has written a control block is killed before it is durable. The next one that opens it writes the other slot, and the
/// power goes.
#[test]
fn a_block_that_is_found_is_durable_before_the_other_slot_is_written() {
    let trial = Trial::mounted(1);
    trial.unit.kill();
    let path = trial.disk.path().join("images/m1.scb");
    let read = || match scb_file::read(&path).expect("there") {
        ScbFound::Read(scb) => scb,
        other => panic!("no block: {other:?}"),
    };
    let write = |generation: Generation| {
        let mut file = ScbFile::open_or_create(&path).expect("a block");
        let scb = Scb {
            generation,
            ..read()
        };
        // Behind the sync of what was found.
        trial.disk.arm(Fault {
            kinds: &[Kind::Sync],
            nth: 1,
            strike: Strike::Fail(libc::EIO),
        });
        file.write(&scb).expect_err("it is not synced");
        trial.disk.disarm();
    };
    for seed in 0..40 {
        let first = read().generation.next();
        write(first);
        write(first.next());
        trial.disk.serve(Some(&mut Rng::new(seed)));
        let found = read().generation;
        assert!(found >= first, "{found} is older than {first}");
    }
}

/// The kernel leaves it to the server that a write of `O_DSYNC` is durable when it returns.
#[test]
fn a_write_of_a_synchronous_handle_needs_no_flush() {
    let (mut trial, mut rng) = (Trial::mounted(2), Rng::new(7));
    let mut writer = trial.writer(0, 7);
    for _ in 0..8 {
        writer.write_through().expect("written");
    }
    trial.disk.cut();
    sys::kill(trial.unit.pid(), libc::SIGKILL).expect("it lives");
    drop(writer);
    trial.bury();
    trial.disk.serve(Some(&mut rng));
    trial.unit.mount();
    trial.judge("behind the loss of power");
    trial.unit.stop();
}

/// Rounds in which a mistake has to show.
const FOUND_WITHIN: u64 = 40;

/// The same rounds find a server that leaves flushes out. strace has those of some files do nothing and succeed.
#[test]
fn a_flush_that_is_left_out_is_seen() {
    for files in [
        &["images/m1.img"][..],
        &["state/journal.a", "state/journal.b"],
    ] {
        let begun = Instant::now();
        let played = catch_unwind(|| {
            let mut trial = Trial::mounted(3);
            trial.unit.stop();
            let paths = files.iter().map(|file| trial.disk.path().join(file));
            let paths: String = paths
                .map(|path| format!(" -P {}", path.display()))
                .collect();
            trial.unit.start_by(&format!(
                "strace -D -f --seccomp-bpf -qq -o $D/trace{paths} -e trace=fdatasync -e inject=fdatasync:retval=0"
            ));
            trial.unit.mount();
            play(trial, 1, FOUND_WITHIN)
        });
        let found = played.expect_err("a mistake that nobody sees");
        let says = found.downcast_ref::<String>().cloned().unwrap_or_default();
        println!("{files:?}: {says}, {:.1?}", begun.elapsed());
        assert!(
            says.contains("seed 1, round"),
            "found as what it is: {says}"
        );
    }
}

/// The names of new images, and of the directories of their control blocks, were left to chance.
#[test]
fn what_a_creation_has_made_outlives_a_loss_of_power() {
    for seed in 0..12 {
        let disk = Disk::mount();
        let unit = Plan::new(2, MIB).at(disk.path()).prepare();
        let config = unit.path("conf/dsa1.toml");
        let text = std::fs::read_to_string(&config).expect("the configuration");
        let text = text.replace("/state\"", "/state/units/dsa1\"");
        let text = text.replace("/images/m1.scb", "/state/units/dsa1/m1.scb");
        let text = text.replace("/images/m2.scb", "/state/units/dsa1/m2.scb");
        std::fs::write(&config, text).expect("the configuration");
        unit.sh(&format!("shadowset create dsa1 --size {MIB}"));
        disk.serve(Some(&mut Rng::new(seed)));
        for member in ["m1", "m2"] {
            let block = unit.path(&format!("state/units/dsa1/{member}.scb"));
            let found = scb_file::read(&block).expect("readable");
            assert!(matches!(found, ScbFound::Read(_)), "seed {seed}: {found:?}");
            assert_eq!(disk.image(member).len() as u64, MIB, "seed {seed}");
        }
    }
}

/// Images of zeros that only the cache had were taken for equal, and nobody noticed what came of them.
#[test]
fn what_a_creation_takes_for_blank_is_so_behind_a_loss_of_power() {
    for seed in 0..8 {
        let disk = Disk::mount();
        let unit = Plan::new(2, MIB).at(disk.path()).prepare();
        unit.sh(
            "cd images; for n in 1 2; do head -c 1M /dev/urandom > m$n.img; done; sync m1.img m2.img .
            for n in 1 2; do dd if=/dev/zero of=m$n.img bs=64k count=16 conv=notrunc status=none; done",
        );
        unit.sh("shadowset create dsa1");
        disk.serve(Some(&mut Rng::new(seed)));
        for member in ["m1", "m2"] {
            let found = scb_file::read(&unit.path(&format!("images/{member}.scb")));
            assert!(matches!(found, Ok(ScbFound::Read(_))), "{seed}: {found:?}");
            let image = disk.image(member);
            assert!(image == [0; MIB as usize], "seed {seed}: {member}");
        }
    }
}
