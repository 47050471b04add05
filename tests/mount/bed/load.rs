//! Load: fio with verification on a loop device, and writers whose every write has a number.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use serde_json::Value;

use super::{MIB, Unit, eventually};

/// Two jobs of small writes and one of large ones, each in an area of its own, checked as they go.
///
/// A job that begins its area again has the last requests of the round before still in flight. What it
/// reads while it writes the same blocks is allowed to be a mixture, so such requests wait for each
/// other.
const JOBS: &str = "[global]
direct=1
ioengine=libaio
iodepth=32
rw=randwrite
verify=crc32c
verify_backlog=64
verify_fatal=1
serialize_overlap=1
exitall_on_error=1
time_based=1
runtime=600
size=16m
[small1]
bs=4k
[small2]
bs=4k
offset=16m
[large]
bsrange=4k-128k
offset=32m
";

/// fio at work.
pub(crate) struct Fio {
    child: Option<Child>,
    report: PathBuf,
}

impl Fio {
    /// Bytes of the device that the jobs use.
    pub(crate) const SPAN: u64 = 48 * MIB;

    /// Starts the jobs.
    pub(crate) fn start(unit: &Unit, device: &str) -> Self {
        let (jobs, report) = (unit.path("jobs.fio"), unit.path("fio.json"));
        std::fs::write(&jobs, JOBS).expect("the jobs");
        let mut command = unit.prepared("fio");
        command
            .arg(format!("--filename={device}"))
            .arg("--output-format=json");
        command
            .arg(format!("--output={}", report.display()))
            .arg(jobs);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        Self {
            child: Some(child.expect("fio starts")),
            report,
        }
    }

    /// Fails when fio has ended.
    pub(crate) fn check(&mut self) {
        let child = self.child.as_mut().expect("fio was started");
        if let Some(status) = child.try_wait().expect("a child") {
            panic!("fio has ended: {status}: {}", self.said());
        }
    }

    /// Ends fio in order and checks that no job has seen an error.
    pub(crate) fn stop(mut self) {
        self.check();
        let child = self.child.take().expect("fio was started");
        signal("TERM", child.id());
        let output = child.wait_with_output().expect("fio ends");
        let (text, errors) = (self.said(), String::from_utf8_lossy(&output.stderr));
        // 128 is fio's word for an end on request.
        assert_eq!(output.status.code(), Some(128), "{errors}{text}");
        assert!(errors.is_empty(), "{errors}");
        let start = text.find('{').expect("a report");
        let report: Value = serde_json::from_str(&text[start..]).expect("JSON");
        let jobs = report["jobs"].as_array().expect("jobs");
        assert_eq!(jobs.len(), 3);
        for job in jobs {
            assert_eq!(job["error"], 0, "{job}");
            for direction in ["read", "write"] {
                let count = job[direction]["total_ios"].as_u64().expect("a number");
                assert!(count > 1000, "{} has hardly run: {count}", job["jobname"]);
            }
        }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.report).unwrap_or_default()
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal("KILL", child.id());
            let _ = child.wait();
        }
    }
}

fn signal(name: &str, pid: u32) {
    let _ = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status();
}

/// Blocks of each writer's area.
const SLOTS: u64 = 256;
/// Bytes of a block.
const BLOCK: usize = 4096;

#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

/// Counters of one writer.
#[derive(Default)]
struct Counters {
    issued: AtomicU64,
    acknowledged: AtomicU64,
}

/// Writers on the unit with O_DIRECT: write n goes to slot n of the area, round and round, and holds
/// n. Each writer waits for one write before it issues the next.
pub(crate) struct Writers {
    counters: Vec<Arc<Counters>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Writers {
    /// Starts writers on the first part of a file.
    pub(crate) fn start(path: &Path, count: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let counters: Vec<Arc<Counters>> = (0..count).map(|_| Arc::default()).collect();
        let start = |(index, own): (u64, &Arc<Counters>)| {
            let (path, own, stop) = (path.to_owned(), Arc::clone(own), Arc::clone(&stop));
            std::thread::spawn(move || write_until(&path, index, &own, &stop))
        };
        let threads = (0..).zip(&counters).map(start).collect();
        Self {
            counters,
            stop,
            threads,
        }
    }

    /// The number of the last acknowledged write of each writer.
    pub(crate) fn acknowledged(&self) -> Vec<u64> {
        let last = |c: &Arc<Counters>| c.acknowledged.load(Ordering::SeqCst);
        self.counters.iter().map(last).collect()
    }

    /// The number of the last issued write of each writer.
    pub(crate) fn issued(&self) -> Vec<u64> {
        let last = |c: &Arc<Counters>| c.issued.load(Ordering::SeqCst);
        self.counters.iter().map(last).collect()
    }

    /// Waits until each writer has written `count` times more.
    pub(crate) fn go_on(&self, count: u64) {
        let before = self.issued();
        let all = |now: Vec<u64>| before.iter().zip(now).all(|(then, now)| now > then + count);
        eventually("every writer goes on", || all(self.acknowledged()));
    }

    /// Ends the writers and returns the number of the last write of each.
    pub(crate) fn stop(mut self) -> Vec<u64> {
        self.stop.store(true, Ordering::SeqCst);
        for ended in self.ends() {
            ended.expect("a writer saw an error");
        }
        self.acknowledged()
    }

    /// Waits until each writer has seen an error and returns the number of its last good write.
    pub(crate) fn died(mut self) -> Vec<u64> {
        for ended in self.ends() {
            ended.expect_err("a dead unit takes no writes");
        }
        self.acknowledged()
    }

    fn ends(&mut self) -> Vec<io::Result<()>> {
        let end = |thread: JoinHandle<io::Result<()>>| thread.join().expect("a writer");
        self.threads.drain(..).map(end).collect()
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn write_until(path: &Path, index: u64, own: &Counters, stop: &AtomicBool) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let mut block = Box::new(Block([0; BLOCK]));
    for number in 1u64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        for word in block.0.chunks_exact_mut(8) {
            word.copy_from_slice(&number.to_le_bytes());
        }
        own.issued.store(number, Ordering::SeqCst);
        let slot = index * SLOTS + number % SLOTS;
        file.write_all_at(&block.0, slot * BLOCK as u64)?;
        own.acknowledged.store(number, Ordering::SeqCst);
    }
    Ok(())
}

/// The number of the last write of each writer that an image holds.
///
/// # Panics
/// When a block is torn, or when a write is missing that came before one that is there.
pub(crate) fn last_writes(image: &[u8], writers: u64) -> Vec<u64> {
    let numbers: Vec<u64> = image[..usize::try_from(writers * SLOTS).expect("small") * BLOCK]
        .chunks_exact(BLOCK)
        .map(|block| {
            assert!(
                block.chunks_exact(8).all(|word| *word == block[..8]),
                "a torn block"
            );
            u64::from_le_bytes(block[..8].try_into().expect("8 bytes"))
        })
        .collect();
    let areas = numbers.chunks_exact(usize::try_from(SLOTS).expect("small"));
    let last = |area: &[u64]| {
        let last = *area.iter().max().expect("slots");
        for (slot, found) in (0..SLOTS).zip(area) {
            // The largest number up to the last one that belongs to this slot.
            let behind = (last + SLOTS - slot) % SLOTS;
            let expected = last.saturating_sub(behind);
            assert_eq!(*found, expected, "slot {slot} of a cut at {last}");
        }
        last
    };
    areas.map(last).collect()
}
