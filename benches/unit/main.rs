//! How fast a unit is, beside a plain file and beside what people would take in its place.
//!
//! All targets are set up at once; one workload runs on each in turn, each round in the opposite order of the last.
//! `cargo bench --bench unit -- NAME=VALUE ...`; needs root, /dev/fuse and fio, and `make bench-peers` for the others.

mod ext4;
mod options;
mod peers;
mod process;
mod report;
mod target;
mod things;
mod work;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode};

use serde_json::{Value, json};
use shadowset::io::sys::{self, Signals};

use ext4::{Ext4, Tree};
use options::Options;
use report::{Cell, Cost, Figures};
use target::Target;
use things::{Result, STOPPED, Shell};
use work::{Job, ON_EXT4, Run, Via, Work};

fn main() -> ExitCode {
    let measured = Options::read(std::env::args().skip(1)).and_then(|options| bench(&options));
    match measured {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(130),
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Sets everything up, measures, and takes everything away. Whether it came to its end.
fn bench(options: &Options) -> Result<bool> {
    if sys::effective_uid() != 0 {
        return Err("loop devices and mounts need root".to_owned());
    }
    let signals = Signals::collect().map_err(|e| format!("signals: {e}"))?;
    let (base, state) = (scratch(&options.base)?, scratch(&options.state)?);
    let shell = Shell::new(signals, base.path());
    let tree = match options.works.iter().any(|work| work.via() == Via::Ext4) {
        true => Some(Tree::new(options, base.path(), &shell)?),
        false => None,
    };
    let (targets, missing) = start(options, &shell, (base.path(), state.path()))?;
    let mut bench = Bench {
        options,
        shell: &shell,
        tree: tree.as_ref(),
        targets: &targets,
        missing,
        cells: Vec::new(),
    };
    for round in 0..options.rounds {
        bench.round(round);
        bench.save()?;
    }
    print!("{}", bench.text());
    Ok(!shell.is_stopped())
}

/// Short, for the sake of sockets.
fn scratch(dir: &Path) -> Result<tempfile::TempDir> {
    let made = tempfile::Builder::new()
        .prefix("shadowset-bench-")
        .tempdir_in(dir);
    made.map_err(|e| format!("{}: {e}", dir.display()))
}

/// Targets that are not there, and why.
type Missing = Vec<(String, String)>;

/// All targets that can be started, and why the others cannot.
fn start(
    options: &Options,
    shell: &Shell,
    (base, state): (&Path, &Path),
) -> Result<(Vec<Target>, Missing)> {
    let (mut targets, mut missing) = (Vec::new(), Vec::new());
    for (n, name) in options.targets.iter().enumerate() {
        if shell.is_stopped() {
            return Err(STOPPED.to_owned());
        }
        let room = File::open(base).and_then(|dir| sys::free_bytes(dir.as_fd()));
        if room.map_err(|e| e.to_string())? < 8 * options.size {
            return Err(format!("{} has no room for {name}", base.display()));
        }
        let dirs = (base.join(n.to_string()), state.join(n.to_string()));
        match Target::start(shell, options, name, (&dirs.0, &dirs.1)) {
            Ok(target) => targets.push(target),
            Err(why) => {
                eprintln!("{name} is left out: {why}");
                missing.push((name.clone(), why));
            }
        }
    }
    Ok((targets, missing))
}

/// A run.
struct Bench<'a> {
    options: &'a Options,
    shell: &'a Shell,
    tree: Option<&'a Tree>,
    targets: &'a [Target],
    missing: Missing,
    cells: Vec<Cell>,
}

impl Bench<'_> {
    fn round(&mut self, round: u32) {
        let mut order: Vec<&Target> = self.targets.iter().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for work in &self.options.works {
            let Work::Fio(via, job) = *work else { continue };
            // What reads of two files cost is what reads of one cost.
            for target in order.iter().filter(|t| t.files.len() == 1 || !work.reads()) {
                let outcome = measured(target, || self.fio(target, via, job, round));
                self.note(target, *work, round, outcome);
            }
        }
        for target in order.iter().filter(|target| target.files.len() == 1) {
            self.on_ext4(target, round);
        }
    }

    fn fio(&self, target: &Target, via: Via, job: Job, round: u32) -> Result<Figures> {
        let places = match via {
            Via::File => &target.files,
            _ => target.loops.as_ref().map_err(String::clone)?,
        };
        let run = Run {
            job,
            places,
            size: self.options.size,
            time: self.options.time,
            seed: round,
        };
        run.measure(self.shell)
    }

    /// The steps that are asked for. What is read back has to be copied first.
    fn on_ext4(&mut self, target: &Target, round: u32) {
        let Some(tree) = self.tree else { return };
        let ext4 = Ext4 {
            shell: self.shell,
            target,
            tree,
            time: self.options.time,
            size: self.options.size,
        };
        let asked = |name| self.options.works.contains(&Work::Ext4(name));
        let mut good = ext4.make();
        for name in ON_EXT4 {
            let needed = asked(name) || name == "copy" && asked("read-back");
            if needed {
                let step = || good.clone().and_then(|()| ext4.step(name, round));
                let outcome = measured(target, step);
                good = outcome.as_ref().map(|_| ()).map_err(String::clone);
                self.note(target, Work::Ext4(name), round, outcome);
            }
        }
    }

    /// A cell that a signal has cut short says nothing.
    fn note(&mut self, target: &Target, work: Work, round: u32, outcome: Result<(Figures, Cost)>) {
        if self.shell.is_stopped() {
            return;
        }
        let said = match &outcome {
            Ok((figures, _)) => format!("{:.0} {}", figures.value, figures.unit),
            Err(why) => why.clone(),
        };
        eprintln!("round {} {work} {}: {said}", round + 1, target.name);
        // What one has left in the page cache must not be written to a disk in the time of the next.
        let mut sync = Command::new("sync");
        if let Err(why) = self.shell.run(sync.arg("-f").arg(&self.options.base)) {
            eprintln!("{why}");
        }
        self.cells.push(Cell {
            work: work.to_string(),
            target: target.name.clone(),
            round,
            outcome,
        });
    }

    /// Targets that the ratios can be to.
    fn against(&self) -> Vec<String> {
        let there = |name: &&String| self.targets.iter().any(|target| target.name == **name);
        self.options.against.iter().filter(there).cloned().collect()
    }

    fn text(&self) -> String {
        let against = self.against();
        let mut text = report::table(&report::rows(&self.cells, &against), &against);
        text.push('\n');
        for target in self.targets {
            let idle = target
                .idle_mib
                .map(|idle| format!("{idle:.1} MiB resident before the first request"));
            let says: Vec<String> = [idle, target.note.clone()].into_iter().flatten().collect();
            if !says.is_empty() {
                text.push_str(&format!("{}: {}\n", target.name, says.join("; ")));
            }
        }
        for (name, why) in &self.missing {
            text.push_str(&format!("{name} was left out: {why}\n"));
        }
        text
    }

    fn save(&self) -> Result<()> {
        let (out, against) = (&self.options.out, self.against());
        let target = |target: &Target| json!({"name": target.name, "note": target.note, "idle_mib": target.idle_mib});
        let rows = report::rows(&self.cells, &against);
        let report = json!({
            "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "fio": self.shell.run(Command::new("fio").arg("--version")).unwrap_or_default().trim(),
            "base": self.options.base, "size": self.options.size, "seconds": self.options.time.as_secs_f64(),
            "targets": self.targets.iter().map(target).collect::<Vec<_>>(),
            "missing": self.missing,
            "rows": rows.iter().map(|row| row.json(&against)).collect::<Vec<Value>>(),
            "cells": self.cells.iter().map(Cell::json).collect::<Vec<Value>>(),
        });
        let made = out.parent().map_or(Ok(()), fs::create_dir_all);
        let written = made.and_then(|()| fs::write(out, format!("{report:#}\n")));
        written.map_err(|e| format!("{}: {e}", out.display()))
    }
}

/// What comes of it, and what it costs the programs of the target.
fn measured(target: &Target, run: impl FnOnce() -> Result<Figures>) -> Result<(Figures, Cost)> {
    let pids = &target.pids;
    process::forget_peak(pids);
    let before = process::cpu_seconds(pids);
    let figures = run()?;
    let spent = process::cpu_seconds(pids) - before;
    let gib = figures.bytes / f64::from(1 << 30);
    let cost = Cost {
        cpu_s_per_gib: (gib > 0.0 && !pids.is_empty()).then(|| spent / gib),
        peak_mib: process::peak(pids),
    };
    Ok((figures, cost))
}
