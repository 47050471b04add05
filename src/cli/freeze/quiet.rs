//! The other side of the freezing process: has it bring everything to rest, and knows afterwards whether it was.
//!
//! Everything is open here too. Should the freezing process be killed or stopped, this one thaws.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::system;
use super::FREEZER;
use super::hook;
use super::rest::{LOOK, Rest};
use super::wire::{Cause, End, Plan, Released, THAW, Word};
use crate::error::{Error, Result};
use crate::set::Code;

/// How much longer than its limit the freezing process may be silent before it counts as lost.
const GRACE: Duration = Duration::from_secs(1);
/// How long letting go may take, once it has begun: what hangs comes to an end when it likes.
const THAWING: Duration = Duration::from_secs(60);

/// Everything is at rest, until [`Quiet::end`].
#[derive(Debug)]
pub(super) struct Quiet {
    plan: Plan,
    orders: ChildStdin,
    /// Whether the order was given, and in time.
    ordered: Arc<AtomicBool>,
    watcher: JoinHandle<Released>,
    since: Instant,
}

impl Quiet {
    /// Brings everything of the plan to rest. `files` are its file systems once more.
    ///
    /// # Errors
    /// [`Code::TimedOut`] when it takes too long, or why it cannot be; then it goes on again.
    pub(super) fn begin(plan: Plan, files: Vec<File>) -> Result<Self> {
        let since = Instant::now();
        let failed = |cause| Error::io("the process that freezes cannot be started", cause);
        let (child, mut orders, words) = spawn().map_err(failed)?;
        let text = serde_json::to_string(&plan).map_err(|cause| {
            Error::new(Code::Syntax, "a mount point is not UTF-8").caused_by(cause)
        })?;
        hook::line(&mut orders, &text).map_err(failed)?;
        let (begun, first) = mpsc::channel();
        let ordered = Arc::new(AtomicBool::new(false));
        let watcher = Watcher {
            child,
            words,
            files,
            begins: 0,
            thawed: None,
            ordered: Arc::clone(&ordered),
            plan: plan.clone(),
            since,
            begun,
        };
        let quiet = Self {
            plan,
            orders,
            ordered,
            watcher: std::thread::spawn(|| watcher.watch()),
            since,
        };
        match first_word(&first) {
            // Whoever was stopped in between comes too late.
            Ok(()) if quiet.is_over() => Err(quiet.late()),
            Ok(()) => Ok(quiet),
            // Something hangs in a call: it is thawed when that returns, and nobody can say when.
            Err(None) => Err(quiet.late()),
            Err(Some(error)) => {
                let _ = quiet.end();
                Err(error)
            }
        }
    }

    /// Whether the time is over, in which everything may be at rest.
    pub(super) fn is_over(&self) -> bool {
        self.since.elapsed() >= self.plan.patience()
    }

    /// What is said when the time is over.
    pub(super) fn late(&self) -> Error {
        let says = format!(
            "it has not come to rest in {} s, and goes on",
            self.plan.limit().as_secs_f64()
        );
        Error::new(Code::TimedOut, says)
            .with_hint("try again when less is written, or with a longer --freeze-timeout")
    }

    /// Lets everything go on; how that went.
    pub(super) fn end(mut self) -> Released {
        // Before the watcher may thaw in its stead.
        self.ordered.store(!self.is_over(), Ordering::SeqCst);
        // When it has ended meanwhile, the watcher knows.
        let _ = hook::line(&mut self.orders, THAW);
        let count = self.plan.places.len();
        self.watcher.join().unwrap_or_else(|_| Released {
            cause: Cause::Lost,
            ends: vec![End::Stuck("it is not known how it went on".into()); count],
            thaw_cmd: None,
        })
    }
}

/// Waits until everything is at rest; an error, or nothing when that takes too long.
fn first_word(first: &Receiver<Word>) -> std::result::Result<(), Option<Error>> {
    match first.recv() {
        Ok(Word::Frozen) => Ok(()),
        Ok(Word::Failed {
            code,
            sentence,
            hint,
        }) => {
            let code = Code::from_name(&code).unwrap_or(Code::Io);
            Err(Some(Error::new(code, sentence).with_hint(hint)))
        }
        Ok(_) => Err(None),
        Err(_) => Err(Some(Error::new(
            Code::Io,
            "the process that freezes has ended before its time",
        ))),
    }
}

fn spawn() -> io::Result<(Child, ChildStdin, ChildStdout)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(FREEZER);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    match (child.stdin.take(), child.stdout.take()) {
        (Some(orders), Some(words)) => Ok((child, orders, words)),
        _ => Err(io::Error::other("no pipes")),
    }
}

/// Hears the words of the freezing process, and does its work when it cannot.
struct Watcher {
    child: Child,
    words: ChildStdout,
    /// Those that it may have frozen are the first `begins`.
    files: Vec<File>,
    begins: usize,
    /// How it has let go.
    thawed: Option<Released>,
    ordered: Arc<AtomicBool>,
    plan: Plan,
    since: Instant,
    begun: Sender<Word>,
}

impl Watcher {
    fn watch(mut self) -> Released {
        let mut lines = Lines::default();
        let mut end = self.since + self.plan.limit() + GRACE;
        // From some words on it is slow, and there.
        let behind = self.plan.behind();
        let slowly = |time: Duration| Instant::now() + time + behind;
        loop {
            let line = lines.next(&mut self.words, end);
            let Some(word) = line.and_then(|text| serde_json::from_str(&text).ok()) else {
                return self.replace();
            };
            match &word {
                Word::Begins(index) => self.begins = index + 1,
                Word::Thawed(released) => {
                    end = slowly(GRACE);
                    self.thawed = Some(released.clone());
                }
                Word::Failed { .. } => {
                    end = slowly(THAWING);
                    // The last one that it began with: frozen by somebody else, perhaps, and then not ours to thaw.
                    self.begins = self.begins.saturating_sub(1);
                }
                Word::Late => end = slowly(THAWING),
                Word::Frozen | Word::Released(_) => {}
            }
            if matches!(word, Word::Begins(_) | Word::Thawed(_)) {
                continue;
            }
            let _ = self.begun.send(word.clone());
            if let Word::Released(released) = word {
                let _ = self.child.wait();
                return released;
            }
        }
    }

    /// The freezing process is killed or stopped: it is ended, and its work done.
    fn replace(mut self) -> Released {
        let _ = self.child.kill();
        // A call that it hangs in has to return first: only then is known whether something is frozen.
        let ended = system::process(self.child.id());
        while let Ok(Some(process)) = &ended {
            match system::wait_for_end(process, LOOK) {
                Ok(false) => self
                    .plan
                    .servers
                    .iter()
                    .for_each(|pid| system::continue_if_stopped(*pid)),
                Ok(true) | Err(_) => break,
            }
        }
        let _ = self.child.wait();
        let mut released = match self.thawed.take() {
            Some(released) => released,
            None => self.thaw(),
        };
        drop(self.begun);
        if let Some(text) = &self.plan.thaw_cmd {
            released.thaw_cmd = hook::run(text, &self.plan.env, self.plan.behind()).err();
        }
        released
    }

    /// Thaws what the freezing process may have frozen, and nothing else.
    fn thaw(&mut self) -> Released {
        let cause = match self.ordered.load(Ordering::SeqCst) {
            true => Cause::Lost,
            false => Cause::Early,
        };
        self.files.truncate(self.begins);
        let rest = Rest::assumed(std::mem::take(&mut self.files), self.since);
        rest.release(&self.plan.servers);
        let mut ends = rest.ends();
        ends.resize(self.plan.places.len(), End::Never);
        Released {
            cause,
            ends,
            thaw_cmd: None,
        }
    }
}

/// Lines of a pipe, with a deadline.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
}

impl Lines {
    /// The next line; nothing at the end of the pipe, or of the time.
    fn next(&mut self, pipe: &mut ChildStdout, end: Instant) -> Option<String> {
        loop {
            if let Some(at) = self.bytes.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=at).collect();
                return String::from_utf8(line).ok();
            }
            let left = end.saturating_duration_since(Instant::now());
            if !system::is_readable(pipe.as_fd(), left).ok()? {
                return None;
            }
            let mut buffer = [0; 4096];
            match pipe.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(length) => self.bytes.extend_from_slice(&buffer[..length]),
            }
        }
    }
}
