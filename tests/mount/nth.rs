//! The N-th operation: short scripts in which the N-th write, flush, open ... of the disk fails or is the last one, for N = 1,
//! 2, 3 and so on until the script passes untouched. The same for memory and threads, by strace(1), which counts for each
//! thread alone. Without `SHADOWSET_NTH=all`, or the name of a script, only some N are tried.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::bed::{Ran, eventually};
use crate::disk::{CHANGES, Counts, Fault, Kind, Strike};
use crate::trial::{SIZE, Trial, has_panicked};

/// How many N of each kind are tried when not all are.
const SOME: u64 = 1;
/// After so many failures at one kind of operations the rest is not tried.
const MOST_FAILED: usize = 20;

/// A script: how it begins, untouched, and what is struck.
#[derive(Clone, Copy)]
struct Script {
    name: &'static str,
    begin: fn() -> Trial,
    run: fn(&mut Run<'_>) -> Option<()>,
}

static SCRIPTS: [Script; 5] = [
    Script {
        name: "a life",
        begin: created,
        run: a_life,
    },
    Script {
        name: "an expulsion",
        begin: || Trial::mounted(3),
        run: an_expulsion,
    },
    Script {
        name: "a full copy",
        begin: without_m3,
        run: a_full_copy,
    },
    Script {
        name: "a creation",
        begin: || Trial::prepare(3),
        run: a_creation,
    },
    Script {
        name: "a mount after a kill",
        begin: killed,
        run: a_mount,
    },
];

/// What fails, and how.
const FAILURES: [(&[Kind], i32); 12] = [
    (&[Kind::Write], libc::EIO),
    (&[Kind::Write], libc::ENOSPC),
    (&[Kind::Sync], libc::EIO),
    (&[Kind::Space], libc::EIO),
    (&[Kind::Space], libc::ENOSPC),
    (&[Kind::Name], libc::EIO),
    (&[Kind::Name], libc::ENOSPC),
    (&[Kind::Open], libc::EIO),
    (&[Kind::Open], libc::ENOMEM),
    (&[Kind::Read], libc::EIO),
    (&[Kind::Look], libc::EIO),
    (&[Kind::Look], libc::ENOMEM),
];

/// One run of a script.
struct Run<'a> {
    trial: &'a mut Trial,
    /// The server may die, and then nothing has to work.
    deadly: bool,
    /// The others may still be merged: then an error of the master is one of the last source.
    merges: bool,
    /// Nothing will be struck, so nothing may be refused.
    untouched: bool,
}

impl Run<'_> {
    /// A command line that works or says why not.
    fn line(&mut self, line: &str) -> Option<()> {
        let ran = self.trial.unit.try_sh(line);
        self.accept(line, &ran)
    }

    fn accept(&self, line: &str, ran: &Ran) -> Option<()> {
        let was_killed = self.deadly && ran.code == 137;
        if ran.code == 0 || was_killed {
            return (ran.code == 0).then_some(());
        }
        let is_refusal = [1, 3, 4, 5, 32].contains(&ran.code) && ran.err.contains("shadowset: ");
        let says = is_refusal && !ran.err.contains("panicked");
        assert!(says, "{line}: {ran:?}");
        None
    }

    /// Whether a command has worked; it may be refused only when something is struck.
    fn has_worked(&self, done: std::io::Result<()>) -> bool {
        assert!(!self.untouched || done.is_ok(), "refused: {done:?}");
        done.is_ok()
    }

    /// Whether a member comes back; calls of its image may be under way for a moment.
    fn attach(&mut self, member: &str, policy: &str) -> bool {
        let mut has_worked = self.trial.attach(member, policy).is_ok();
        if self.untouched {
            eventually("it comes back", || {
                has_worked = has_worked || self.trial.attach(member, policy).is_ok();
                has_worked
            });
        }
        has_worked
    }

    fn mount(&mut self) -> Option<()> {
        match self.trial.unit.try_mount() {
            Ok(()) => Some(()),
            Err(ran) => self.accept("mount", &ran),
        }
    }

    /// Waits until no copy runs, or until there is nobody who copies.
    fn rest(&mut self) -> Option<()> {
        let unit = &self.trial.unit;
        let operations = unit.path("mnt/.shadow/status.json");
        let mut said = Ok(String::new());
        let runs = r#""finished":null"#;
        eventually("no copy runs", || {
            said = std::fs::read_to_string(&operations);
            said.as_ref()
                .is_ok_and(|text| !text.replace(' ', "").contains(runs))
                || said.is_err()
        });
        assert!(self.deadly || said.is_ok(), "{said:?}");
        said.ok().map(drop)
    }

    /// Requests of a program, which sees no error as long as a source is left.
    fn work(&mut self, seed: u64, steps: usize) -> Option<()> {
        let done = self.trial.try_writer(0, seed).and_then(|mut writer| {
            (0..steps).try_for_each(|_| writer.step().and_then(|()| writer.sync()))
        });
        if let Err(error) = &done {
            assert!(self.deadly || self.merges, "a program sees {error}");
        }
        done.ok()
    }
}

fn created() -> Trial {
    let trial = Trial::prepare(3);
    trial
        .unit
        .sh(&format!("shadowset create dsa1 --size {SIZE}"));
    trial
}

fn without_m3() -> Trial {
    let mut trial = Trial::mounted(3);
    trial.command("detach m3 policy=none").expect("detached");
    trial
}

fn killed() -> Trial {
    let mut trial = Trial::mounted(3);
    let mut writer = trial.writer(0, 1);
    for _ in 0..8 {
        writer.step().expect("written");
    }
    drop(writer);
    trial.unit.kill();
    trial.bury();
    trial
}

fn a_life(run: &mut Run<'_>) -> Option<()> {
    run.mount()?;
    a_life_of_a_mounted_unit(run)
}

fn a_life_of_a_mounted_unit(run: &mut Run<'_>) -> Option<()> {
    run.work(1, 6)?;
    let left = run.trial.detach("m3");
    let left = run.has_worked(left);
    run.work(2, 6)?;
    if left && run.attach("m3", "minicopy") {
        run.rest()?;
    }
    run.work(3, 4)?;
    run.trial.unit.try_stop()
}

fn an_expulsion(run: &mut Run<'_>) -> Option<()> {
    run.work(1, 4)?;
    let left = run.trial.command("expel m2");
    run.has_worked(left);
    run.work(2, 4)?;
    run.attach("m2", "minicopy=optional");
    run.rest()?;
    run.trial.unit.try_stop()
}

fn a_full_copy(run: &mut Run<'_>) -> Option<()> {
    run.work(1, 3)?;
    run.attach("m3", "full");
    run.work(2, 3)?;
    run.rest()?;
    run.trial.unit.try_stop()
}

/// One that was killed leaves what only `--erase` overwrites.
fn a_creation(run: &mut Run<'_>) -> Option<()> {
    run.line(&format!("shadowset create dsa1 --size {SIZE}"))
}

fn a_mount(run: &mut Run<'_>) -> Option<()> {
    run.mount()?;
    run.merges = true;
    run.work(3, 3)?;
    run.rest()?;
    run.trial.unit.try_stop()
}

/// Runs a script with a fault, restarts and judges. Says how many operations there were, and whether one was struck.
fn strike(script: &Script, kinds: &'static [Kind], nth: u64, strike: Strike) -> (Counts, bool) {
    let what = format!("{}: {strike:?} at {nth} of {kinds:?}", script.name);
    println!("{what}");
    let mut trial = (script.begin)();
    trial.disk.arm(Fault { kinds, nth, strike });
    let deadly = matches!(strike, Strike::Kill);
    let mut run = Run {
        trial: &mut trial,
        deadly,
        merges: false,
        untouched: nth == u64::MAX,
    };
    let passed = (script.run)(&mut run).is_some();
    let (counts, struck) = trial.disk.disarm();
    assert!(passed || struck, "{what}: it fails by itself");
    let is_dead = deadly && struck;
    trial.disk.serve(None);
    match (trial.unit.is_mounted(), is_dead) {
        (true, true) => trial.bury(),
        (true, false) => trial.unit.stop(),
        (false, _) => {}
    }
    if script.name == "a creation" && !passed {
        create_again(&trial, is_dead);
    }
    trial.unit.mount();
    trial.judge(&what);
    trial.reunite(&what);
    (counts, struck)
}

/// A creation that has failed has left nothing, one that was killed nothing in the way but a block that was written.
fn create_again(trial: &Trial, was_killed: bool) {
    let blocks = trial.unit.sh("find $I/ -name '*.scb' -size +0");
    assert!(was_killed || blocks.is_empty(), "{blocks}");
    let erase = if blocks.is_empty() { "" } else { "--erase" };
    trial
        .unit
        .sh(&format!("shadowset create dsa1 --size {SIZE} {erase}"));
}

/// Whether all N are tried: of all scripts, or of one that is named.
fn all() -> bool {
    std::env::var_os("SHADOWSET_NTH").is_some()
}

/// The scripts that are asked for, with their numbers.
fn scripts() -> impl Iterator<Item = (u64, &'static Script)> {
    let which = std::env::var("SHADOWSET_NTH").unwrap_or("all".to_owned());
    let is_asked = move |script: &Script| which == "all" || which == script.name;
    (0..)
        .zip(&SCRIPTS)
        .filter(move |(_, script)| is_asked(script))
}

/// What was tried: how many were struck, and at which of them something did not hold.
#[derive(Default)]
struct Tried {
    struck: u64,
    failed: Vec<String>,
}

impl Tried {
    /// N = 1, 2, 3 ... until nothing is struck, or the chosen ones. One that fails does not hide those behind it.
    /// Where there are any to strike, at least one must be.
    fn each(
        &mut self,
        count: u64,
        chosen: impl Iterator<Item = u64>,
        what: impl Debug,
        strike: impl Fn(u64) -> bool,
    ) {
        let (begun, before) = (Instant::now(), self.struck);
        let (failed, most) = (self.failed.len(), self.failed.len() + MOST_FAILED);
        for nth in chosen {
            if !self.one(nth, &what, &strike) || self.failed.len() == most {
                break;
            }
        }
        let is_tried = self.struck > before || self.failed.len() > failed;
        // A chosen one need not come every time; the first does.
        if count > 0 && !is_tried && !self.one(1, &what, &strike) {
            self.failed.push(format!("nothing is struck: {what:?}"));
        }
        println!(
            "{what:?}: {} struck, {:.1?}",
            self.struck - before,
            begun.elapsed()
        );
    }

    /// Whether there was an N-th one to strike.
    fn one(&mut self, nth: u64, what: &impl Debug, strike: impl Fn(u64) -> bool) -> bool {
        match catch_unwind(AssertUnwindSafe(|| strike(nth))) {
            Ok(is_struck) => {
                self.struck += u64::from(is_struck);
                is_struck
            }
            Err(_) => {
                self.failed.push(format!("{nth} of {what:?}"));
                true
            }
        }
    }

    fn end(self) {
        assert!(
            self.failed.is_empty(),
            "{} struck, failed at {:#?}",
            self.struck,
            self.failed
        );
    }
}

/// All N, or some of as many as there were when nothing was struck.
fn all_or_some(count: u64, which: u64) -> Box<dyn Iterator<Item = u64>> {
    if all() {
        return Box::new(1..);
    }
    let stride = count.div_ceil(SOME).max(1);
    let first = 1 + which * 7 % stride;
    Box::new((first..=count).step_by(usize::try_from(stride).expect("small")))
}

/// How many operations there are when nothing is struck.
fn untouched(script: &Script) -> Counts {
    let counts = strike(script, CHANGES, u64::MAX, Strike::Kill).0;
    println!("{}: {counts:?}", script.name);
    counts
}

#[test]
fn an_operation_that_fails_costs_a_member_at_most() {
    let mut tried = Tried::default();
    for (n, script) in scripts() {
        let counts = untouched(script);
        for (m, (kinds, errno)) in (0..).zip(FAILURES) {
            let count = counts.of(kinds);
            let chosen = all_or_some(count, n + 3 * m);
            tried.each(count, chosen, (script.name, kinds, errno), |nth| {
                strike(script, kinds, nth, Strike::Fail(errno)).1
            });
        }
    }
    tried.end();
}

#[test]
fn a_kill_at_any_operation_loses_nothing() {
    let mut tried = Tried::default();
    for (n, script) in scripts() {
        let count = untouched(script).of(CHANGES);
        let ways = if all() { 1 } else { 2 };
        for which in [n, n + 3].into_iter().take(ways) {
            let chosen = all_or_some(count, which);
            tried.each(count, chosen, (script.name, "killed"), |nth| {
                strike(script, CHANGES, nth, Strike::Kill).1
            });
        }
    }
    tried.end();
}

/// What has failed once: the script, what was struck, and how.
const FOUND: [(usize, &[Kind], u64, i32); 1] = [
    // A control block was left behind whose name could not be made durable, and the next creation refused.
    (3, &[Kind::Sync], 4, libc::EIO),
];

#[test]
fn what_was_found_by_an_operation_that_failed_stays_found() {
    for (script, kinds, nth, errno) in FOUND {
        let (_, struck) = strike(&SCRIPTS[script], kinds, nth, Strike::Fail(errno));
        assert!(struck, "{kinds:?} {nth}");
    }
}

/// What strace makes fail in the server, for each of its threads.
const CALLS: [(&str, &str); 5] = [
    ("mmap,mremap", "ENOMEM"),
    ("brk", "ENOMEM"),
    ("clone,clone3", "EAGAIN"),
    ("socket,bind,listen", "EMFILE"),
    ("pidfd_open,epoll_create1,eventfd2,signalfd4", "EMFILE"),
];

/// A life whose server is under strace. Without memory it may end, by a sentence or by an abort that names the memory.
fn strike_calls(calls: &str, errno: &str, nth: u64) -> bool {
    let what = format!("{calls} {nth}: {errno}");
    let mut trial = created();
    trial.unit.start_by(&format!(
        "strace -D -f -qq -o $D/trace -e trace={calls} -e inject={calls}:error={errno}:when={nth}"
    ));
    let mut run = Run {
        trial: &mut trial,
        deadly: true,
        merges: false,
        untouched: false,
    };
    let mount = run.trial.unit.try_mount();
    if let Err(ran) = &mount {
        assert!(![0, 124, 137].contains(&ran.code), "{what}: {ran:?}");
        assert!(
            !ran.err.is_empty() && !has_panicked(&ran.err),
            "{what}: {ran:?}"
        );
    } else {
        let _ = a_life_of_a_mounted_unit(&mut run);
    }
    trial.unit.start_by("");
    if trial.unit.is_mounted() {
        let _ = trial.unit.try_stop();
    }
    if trial.unit.is_mounted() {
        trial.unit.kill();
        trial.bury();
    }
    trial.unit.mount();
    trial.judge(&what);
    trial.reunite(&what);
    let trace = std::fs::read_to_string(trial.unit.path("trace"));
    trace.is_ok_and(|trace| trace.contains("(INJECTED)"))
}

#[test]
fn a_call_of_the_system_that_fails_loses_nothing() {
    let mut tried = Tried::default();
    for (calls, errno) in CALLS {
        let chosen: Box<dyn Iterator<Item = u64>> = if all() {
            Box::new(1..)
        } else {
            Box::new([1, 3].into_iter())
        };
        tried.each(1, chosen, (calls, errno), |nth| {
            strike_calls(calls, errno, nth)
        });
    }
    tried.end();
}
