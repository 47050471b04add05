//! The workloads, and fio, which does most of them.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::report::Figures;
use crate::things::{PATIENCE, Result, Shell};

/// By which way a target is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Via {
    /// Its file.
    File,
    /// A loop device over the file.
    Loop,
    /// A file system on the loop device.
    Ext4,
}

impl Via {
    const ALL: [Self; 3] = [Self::File, Self::Loop, Self::Ext4];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Loop => "loop",
            Self::Ext4 => "ext4",
        }
    }
}

/// What counts in a workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Counts {
    Requests,
    Bytes,
}

/// A workload of fio.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Job {
    pub(crate) name: &'static str,
    rw: &'static str,
    block: &'static str,
    depth: u32,
    sync: bool,
    counts: Counts,
}

const fn job(name: &'static str, rw: &'static str, block: &'static str, depth: u32) -> Job {
    Job {
        name,
        rw,
        block,
        depth,
        sync: false,
        counts: Counts::Requests,
    }
}

const JOBS: [Job; 7] = [
    job("read-4k-1", "randread", "4k", 1),
    job("read-4k-32", "randread", "4k", 32),
    job("write-4k-1", "randwrite", "4k", 1),
    job("write-4k-32", "randwrite", "4k", 32),
    Job {
        counts: Counts::Bytes,
        ..job("read-1m", "read", "1m", 4)
    },
    Job {
        counts: Counts::Bytes,
        ..job("write-1m", "write", "1m", 4)
    },
    Job {
        sync: true,
        ..job("sync-4k", "randwrite", "4k", 1)
    },
];

/// What is done on a file system: [`crate::ext4`].
pub(crate) const ON_EXT4: [&str; 3] = ["copy", "read-back", "append"];

/// A workload by one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Work {
    Fio(Via, Job),
    /// By its name in [`ON_EXT4`].
    Ext4(&'static str),
}

impl Work {
    pub(crate) fn via(self) -> Via {
        match self {
            Self::Fio(via, _) => via,
            Self::Ext4(_) => Via::Ext4,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fio(_, job) => job.name,
            Self::Ext4(name) => name,
        }
    }

    /// Whether it reads only.
    pub(crate) fn reads(self) -> bool {
        matches!(self, Self::Fio(_, job) if job.rw.ends_with("read"))
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.via().name(), self.name())
    }
}

/// All that a list names, or all; in the order in which they are run.
pub(crate) fn select(list: &str) -> Result<Vec<Work>> {
    let by_fio = [Via::File, Via::Loop].into_iter();
    let by_fio = by_fio.flat_map(|via| JOBS.map(|job| Work::Fio(via, job)));
    let all: Vec<Work> = by_fio.chain(ON_EXT4.map(Work::Ext4)).collect();
    if list.is_empty() {
        return Ok(all);
    }
    let is = |work: &Work, item: &str| {
        [work.via().name(), work.name(), &work.to_string()].contains(&item)
    };
    let items: Vec<&str> = list.split(',').map(str::trim).collect();
    if let Some(unknown) = items
        .iter()
        .find(|item| !all.iter().any(|work| is(work, item)))
    {
        let ways = Via::ALL.map(Via::name).join(", ");
        let jobs = JOBS.map(|job| job.name).join(", ");
        let on_ext4 = ON_EXT4.join(", ");
        return Err(format!(
            "WORK: {unknown} is none of {ways}, by file or loop {jobs}, on ext4 {on_ext4}"
        ));
    }
    let wanted = |work: &Work| items.iter().any(|item| is(work, item));
    Ok(all.into_iter().filter(wanted).collect())
}

/// A run of fio.
pub(crate) struct Run<'a> {
    pub(crate) job: Job,
    /// Where it reads and writes. In more than one place each request is made in each, and counted once.
    pub(crate) places: &'a [PathBuf],
    pub(crate) size: u64,
    pub(crate) time: Duration,
    pub(crate) seed: u32,
}

/// fio with what all its runs share.
pub(crate) fn fio(time: Duration, seed: u32) -> Command {
    let mut command = Command::new("fio");
    command.args(["--name=cell", "--output-format=json", "--lat_percentiles=1"]);
    command.arg(format!("--runtime={}ms", time.as_millis()));
    command.arg(format!("--randseed={}", seed + 1));
    command
}

impl Run<'_> {
    /// Runs it; what it has measured.
    pub(crate) fn measure(&self, shell: &Shell) -> Result<Figures> {
        let (job, copies) = (self.job, self.places.len() as u64);
        let mut command = fio(self.time, self.seed);
        command.args([
            "--time_based",
            "--ioengine=libaio",
            "--direct=1",
            "--norandommap",
        ]);
        command.args(["--allow_file_create=0", "--file_service_type=roundrobin:1"]);
        let places: Vec<_> = self
            .places
            .iter()
            .map(|place| place.to_string_lossy())
            .collect();
        command.arg(format!("--filename={}", places.join(":")));
        command.arg(format!("--size={}", self.size * copies));
        command.args([format!("--rw={}", job.rw), format!("--bs={}", job.block)]);
        command.arg(format!("--iodepth={}", job.depth));
        if job.sync {
            command.arg("--fdatasync=1");
        }
        let said = shell.run_for(&mut command, self.time + PATIENCE)?;
        figures(&said, job.counts, job.sync, copies)
    }
}

/// Reads what fio says of its only job.
pub(crate) fn figures(said: &str, counts: Counts, sync: bool, copies: u64) -> Result<Figures> {
    // It may say something in front of it.
    let json = said.find('{').map_or("", |start| &said[start..]);
    let report: Value = serde_json::from_str(json).map_err(|e| format!("fio: {e}"))?;
    let job = &report["jobs"][0];
    if job["error"] != 0 {
        return Err(format!("fio: error {}", job["error"]));
    }
    let side = if job["write"]["total_ios"] == 0 {
        "read"
    } else {
        "write"
    };
    let number = |key: &str| {
        job[side][key]
            .as_f64()
            .ok_or_else(|| format!("fio says no {key}"))
    };
    let copies = copies as f64;
    let value = match counts {
        Counts::Requests => number("iops")? / copies,
        Counts::Bytes => number("bw_bytes")? / copies / f64::from(1 << 20),
    };
    // Of a write with a sync behind it the sync takes the time.
    let times = &job[if sync { "sync" } else { side }]["lat_ns"]["percentile"];
    let time = |percentile: &str| times[percentile].as_f64().map(|ns| ns / 1000.0);
    Ok(Figures {
        value,
        unit: match counts {
            Counts::Requests => "IO/s",
            Counts::Bytes => "MiB/s",
        },
        bytes: number("io_bytes")? / copies,
        p50_us: time("50.000000"),
        p99_us: time("99.000000"),
    })
}
