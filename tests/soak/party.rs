//! A load at work: bout after bout, until it is stopped or its file system dies under it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use shadowset::testing::Rng;

use crate::bed::pause;
use crate::child::Group;

/// Longest time from the word to stop to the end of a bout.
const PATIENCE: Duration = Duration::from_secs(120);

/// What came of a bout or a check: a sentence when it is bad.
pub(crate) type Verdict = Result<(), String>;

/// A program of somebody else that works on a file system and checks what it finds there.
pub(crate) trait Load: Sync {
    fn name(&self) -> &'static str;

    /// Lays down what the bouts work on, once on a new file system.
    fn prepare(&self, _dir: &Path) -> Verdict {
        Ok(())
    }

    /// A piece of work of some seconds, with the load's own verification.
    fn bout(&self, desk: &Desk, seed: u64) -> Verdict;

    /// What has to be found after a crash at any instant.
    fn holds(&self, _dir: &Path, _mark: Mark) -> Verdict {
        Ok(())
    }

    /// What else has to be found behind the end of a bout.
    fn rests(&self, _dir: &Path) -> Verdict {
        Ok(())
    }
}

/// How far a load had come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    /// The last transaction that was acknowledged.
    pub(crate) least: u64,
    /// The last one that was asked for.
    pub(crate) most: u64,
    /// Transactions of a benchmark that reports at its end.
    pub(crate) reported: u64,
}

impl Mark {
    /// Whether a crash may have left this transaction as the last.
    pub(crate) fn allows(self, found: u64) -> Verdict {
        match (self.least..=self.most).contains(&found) {
            true => Ok(()),
            false => Err(format!("{found} is the last one found, of {self:?}")),
        }
    }
}

/// Where a load works, and what it tells.
#[derive(Default)]
pub(crate) struct Desk {
    pub(crate) dir: PathBuf,
    pub(crate) group: Group,
    issued: AtomicU64,
    acknowledged: AtomicU64,
    reported: AtomicU64,
    bouts: AtomicU64,
    going: AtomicBool,
}

impl Desk {
    pub(crate) fn issue(&self, number: u64) {
        self.issued.store(number, Ordering::SeqCst);
    }

    pub(crate) fn acknowledge(&self, number: u64) {
        self.acknowledged.store(number, Ordering::SeqCst);
    }

    /// The last transaction, as a bout found it when it began.
    pub(crate) fn begin_at(&self, number: u64) {
        self.issue(number);
        self.acknowledge(number);
    }

    pub(crate) fn report(&self, count: u64) {
        self.reported.fetch_add(count, Ordering::SeqCst);
    }

    /// An empty directory for a bout, whatever a crash has left there.
    pub(crate) fn empty(&self, name: &str) -> Result<PathBuf, String> {
        let dir = self.dir.join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        }
        std::fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        Ok(dir)
    }

    fn go_on(&self, load: &dyn Load, seed: u64) -> Verdict {
        let mut rng = Rng::new(seed);
        while self.going.load(Ordering::SeqCst) {
            // Some of them read a seed as a signed number.
            load.bout(self, rng.below(1 << 31))?;
            self.bouts.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// One load on one file system.
pub(crate) struct Party {
    pub(crate) load: &'static dyn Load,
    desk: Arc<Desk>,
    prepared: bool,
    thread: Option<JoinHandle<Verdict>>,
}

impl Party {
    /// Nothing has been done yet.
    pub(crate) fn new(load: &'static dyn Load, fs: &Path) -> Self {
        let desk = Desk {
            dir: fs.join(load.name()),
            ..Desk::default()
        };
        Self {
            load,
            desk: Arc::new(desk),
            prepared: false,
            thread: None,
        }
    }

    pub(crate) fn start(&mut self, seed: u64) {
        if !self.prepared {
            std::fs::create_dir(&self.desk.dir).expect("a directory for the load");
            self.good(self.load.prepare(&self.desk.dir));
            self.prepared = true;
        }
        self.desk.group.open();
        self.desk.going.store(true, Ordering::SeqCst);
        let (desk, load) = (Arc::clone(&self.desk), self.load);
        self.thread = Some(std::thread::spawn(move || desk.go_on(load, seed)));
    }

    /// Fails when the load has ended.
    pub(crate) fn check(&mut self) {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.join();
            panic!("{} has ended", self.load.name());
        }
    }

    /// Ends the load in order: its last bout has to be a good one.
    pub(crate) fn stop(&mut self) {
        self.desk.going.store(false, Ordering::SeqCst);
        let since = Instant::now();
        while self.thread.as_ref().is_some_and(|t| !t.is_finished()) {
            let name = self.load.name();
            assert!(since.elapsed() < PATIENCE, "{name} does not end");
            pause(Duration::from_millis(20));
        }
        self.join();
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.good(thread.join().expect("a load"));
        }
    }

    /// The file system has died. What the load says of that does not count.
    pub(crate) fn die(&mut self) {
        self.desk.going.store(false, Ordering::SeqCst);
        self.desk.group.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// What its file system told behind this mark was no promise.
    pub(crate) fn promised(&self, mark: Mark) {
        self.desk.acknowledge(mark.least);
        self.desk.reported.store(mark.reported, Ordering::SeqCst);
    }

    pub(crate) fn mark(&self) -> Mark {
        let get = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Mark {
            // First what is reported and acknowledged, then what is asked for.
            reported: get(&self.desk.reported),
            least: get(&self.desk.acknowledged),
            most: get(&self.desk.issued),
        }
    }

    /// Bouts since the last question.
    pub(crate) fn bouts(&self) -> u64 {
        self.desk.bouts.swap(0, Ordering::SeqCst)
    }

    /// What the load finds in a file system, of which this one or a copy is mounted there.
    pub(crate) fn holds(&self, fs: &Path, mark: Mark) {
        if self.prepared {
            self.good(self.load.holds(&fs.join(self.load.name()), mark));
        }
    }

    /// What it finds behind its orderly end.
    pub(crate) fn rests(&self) {
        self.good(self.load.rests(&self.desk.dir));
    }

    fn good(&self, verdict: Verdict) {
        verdict.unwrap_or_else(|says| panic!("{}: {says}", self.load.name()));
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        self.die();
    }
}
